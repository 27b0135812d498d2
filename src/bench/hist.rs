//! Histograms of latencies in nanoseconds, and the two text forms that HdrHistogram's tools read.

use std::fmt::Write as _;
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

use hdrhistogram::Histogram;
use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::IntervalLogWriterBuilder;

/// Longest latency that is told from longer ones.
const HIGHEST: u64 = 60_000_000_000;
/// Significant decimal digits: values are right to 0.1 %.
const DIGITS: u8 = 3;

/// An empty histogram for 1 ns to 60 s.
#[must_use]
pub fn empty() -> Histogram<u64> {
    #[allow(clippy::expect_used, reason = "the bounds are constants that the crate accepts, as the test below shows")]
    Histogram::new_with_bounds(1, HIGHEST, DIGITS).expect("constant bounds")
}

/// Records a latency; a longer one than the histogram knows counts as the longest.
pub fn record(histogram: &mut Histogram<u64>, ns: u64) {
    histogram.saturating_record(ns.max(1));
}

/// The percentile distribution as HdrHistogram prints it (`.hgrm`), values in microseconds.
#[must_use]
pub fn hgrm(histogram: &Histogram<u64>) -> String {
    let mut out = format!("{:>12} {:>14} {:>10} {:>14}\n\n", "Value", "Percentile", "TotalCount", "1/(1-Percentile)");
    let us = |ns: u64| ns as f64 / 1e3;
    let mut seen = 0;
    for step in histogram.iter_quantiles(5) {
        seen += step.count_since_last_iteration();
        let quantile = step.quantile_iterated_to();
        let _ = write!(out, "{:>12.3} {quantile:>14.12} {seen:>10}", us(step.value_iterated_to()));
        // The last line has no such number: it would be infinite.
        let _ = if quantile < 1.0 { writeln!(out, " {:>14.2}", 1.0 / (1.0 - quantile)) } else { writeln!(out) };
    }
    let (mean, deviation) = (histogram.mean() / 1e3, histogram.stdev() / 1e3);
    let _ = writeln!(out, "#[Mean    = {mean:>12.3}, StdDeviation   = {deviation:>12.3}]");
    let _ = writeln!(out, "#[Max     = {:>12.3}, Total count    = {:>12}]", us(histogram.max()), histogram.len());
    let _ = writeln!(
        out,
        "#[Buckets = {:>12}, SubBuckets     = {:>12}]",
        histogram.buckets(),
        (2 * 10u32.pow(histogram.sigfig().into())).next_power_of_two()
    );
    out
}

/// Writes an interval log (`.hlog`): one histogram for every interval of the run. `begin`: wall-clock time of the first.
///
/// # Errors
/// The file can't be written.
pub fn write_hlog(path: &Path, begin: SystemTime, each: Duration, intervals: &[Histogram<u64>]) -> io::Result<()> {
    let mut file = io::BufWriter::new(std::fs::File::create(path)?);
    let mut serializer = V2DeflateSerializer::new();
    let mut builder = IntervalLogWriterBuilder::new();
    builder.add_comment("sidestep bench: latencies in nanoseconds");
    builder.with_start_time(begin).with_base_time(begin).with_max_value_divisor(1e6);
    let mut log = builder.begin_log_with(&mut file, &mut serializer)?;
    for (n, histogram) in intervals.iter().enumerate() {
        log.write_histogram(histogram, each * n as u32, each, None)
            .map_err(|e| io::Error::other(format!("write an interval: {e:?}")))?;
    }
    drop(log);
    io::Write::flush(&mut file)
}

/// The curve of a histogram: share of slower values and the value in microseconds, ten points a decade.
#[must_use]
pub fn curve(histogram: &Histogram<u64>) -> Vec<(f64, f64)> {
    if histogram.is_empty() {
        return Vec::new();
    }
    let decades = (histogram.len() as f64).log10().ceil().clamp(1.0, 6.0) as u32;
    let above = (0..=10 * decades).map(|n| 10f64.powf(-f64::from(n) / 10.0));
    above.map(|above| (above, histogram.value_at_quantile(1.0 - above) as f64 / 1e3)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled() -> Histogram<u64> {
        let mut h = empty();
        (1..=1000).for_each(|n| record(&mut h, n * 1000));
        h
    }

    #[test]
    fn percentiles_are_printed_to_the_last() {
        let text = hgrm(&filled());
        let last = text.lines().rfind(|l| !l.starts_with('#')).unwrap();
        let words: Vec<&str> = last.split_whitespace().collect();
        assert_eq!(words[1..], ["1.000000000000", "1000"], "{text}");
        assert!(text.contains("Total count    =         1000"), "{text}");
        let half = text.lines().find(|l| l.contains(" 0.500000000000")).unwrap();
        let value: f64 = half.split_whitespace().next().unwrap().parse().unwrap();
        assert!((499.0..502.0).contains(&value), "{half}");
    }

    #[test]
    fn values_beyond_the_end_count_as_the_end() {
        let mut h = empty();
        record(&mut h, 0);
        record(&mut h, u64::MAX);
        assert_eq!((h.len(), h.min()), (2, 1));
        assert!(h.max() >= HIGHEST);
    }

    #[test]
    fn a_log_can_be_read_back() {
        use hdrhistogram::serialization::Deserializer;
        use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};
        let path = std::env::temp_dir().join(format!("sidestep-unit-{}.hlog", std::process::id()));
        write_hlog(&path, SystemTime::UNIX_EPOCH, Duration::from_secs(1), &[filled(), empty()]).unwrap();
        let text = std::fs::read(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let mut counts = Vec::new();
        for entry in IntervalLogIterator::new(&text) {
            if let LogEntry::Interval(interval) = entry.unwrap() {
                use base64_of_the_log as decode;
                let bytes = decode(interval.encoded_histogram());
                counts.push(Deserializer::new().deserialize::<u64, _>(&mut &bytes[..]).unwrap().len());
            }
        }
        assert_eq!(counts, [1000, 0]);
    }

    /// RFC 4648, enough for a test.
    fn base64_of_the_log(text: &str) -> Vec<u8> {
        let digit = |c: u8| match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' => 62,
            _ => 63,
        };
        let digits: Vec<u8> = text.bytes().filter(|c| *c != b'=').map(digit).collect();
        let bits = |chunk: &[u8]| chunk.iter().fold(0u32, |all, d| all << 6 | u32::from(*d)) << (6 * (4 - chunk.len()));
        digits.chunks(4).flat_map(|chunk| bits(chunk).to_be_bytes()[1..chunk.len()].to_vec()).collect()
    }

    #[test]
    fn a_curve_rises() {
        let curve = curve(&filled());
        assert_eq!(curve.len(), 31);
        assert!(curve.windows(2).all(|w| w[0].1 <= w[1].1 && w[0].0 > w[1].0));
    }
}
