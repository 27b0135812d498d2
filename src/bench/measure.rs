//! What a run comes to: one object a measurement, the same in tables, JSON and reports.

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::cpu::{self, CpuShare};
use super::hist;

/// One round as it was measured.
#[derive(Clone, Debug)]
pub struct Round {
    pub seconds: f64,
    /// Requests that were answered (connections made, datagrams answered, frames moved).
    pub operations: u64,
    /// Payload bytes both ways; for streams, one way.
    pub bytes: u64,
    /// Broken connections, refused ones.
    pub errors: u64,
    /// Datagrams or frames without an answer.
    pub lost: u64,
    /// In nanoseconds; empty where a test has no latency.
    pub latencies: Histogram<u64>,
    pub cpu: Vec<CpuShare>,
}

/// A test on a stack: medians over its rounds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Measurement {
    /// "rr", "stream", "crr", "udp", "idle", "raw ping", "nginx + wrk", …
    pub test: String,
    /// "kernel", "kernel tuned", "sidestep", "raw", …
    pub stack: String,
    pub connections: u32,
    /// Bytes of a request (of a write; of a frame).
    pub size: u32,
    pub rounds: u32,
    pub rate_per_s: f64,
    /// Smallest and largest of the rounds.
    pub rate_range: [f64; 2],
    /// None where a test has no latency.
    pub p50_us: Option<f64>,
    pub p99_us: Option<f64>,
    pub p999_us: Option<f64>,
    pub p99_range_us: Option<[f64; 2]>,
    pub gbit_per_s: f64,
    /// Percent of each core, means over the rounds.
    pub cpu: Vec<CpuShare>,
    /// Rate (for streams: bits) divided by that of the stack named "kernel" in the same test; above 1 is better.
    #[serde(default)]
    pub ratio_to_kernel: Option<f64>,
    /// The same against raw AF_XDP.
    #[serde(default)]
    pub ratio_to_raw: Option<f64>,
    #[serde(default)]
    pub seconds_a_round: f64,
    /// Requests under way on a connection at most.
    #[serde(default)]
    pub depth: u32,
    #[serde(default)]
    pub reply_size: u32,
    /// Of the engine, where their number is what is looked at; else 0.
    #[serde(default)]
    pub shards: u32,
    /// Open loop: what was asked for. None: closed loop.
    #[serde(default)]
    pub intended_rate: Option<f64>,
    #[serde(default)]
    pub errors: u64,
    #[serde(default)]
    pub lost: u64,
    /// Share of slower requests and microseconds, over all rounds.
    #[serde(default)]
    pub curve: Vec<(f64, f64)>,
    /// What a reader must know: "frame replay", "offloads off", …
    #[serde(default)]
    pub note: String,
}

impl Measurement {
    /// The medians of `rounds`; names and sizes are the caller's.
    #[must_use]
    pub fn of(rounds: &[Round]) -> Self {
        let rates: Vec<f64> = rounds.iter().map(|r| r.operations as f64 / r.seconds).collect();
        let bits: Vec<f64> = rounds.iter().map(|r| r.bytes as f64 * 8e-9 / r.seconds).collect();
        let at = |quantile: f64| {
            let values = rounds.iter().filter(|r| !r.latencies.is_empty());
            values.map(|r| r.latencies.value_at_quantile(quantile) as f64 / 1e3).collect::<Vec<f64>>()
        };
        let known = |values: Vec<f64>| (!values.is_empty()).then(|| median(&values));
        let p99 = at(0.99);
        let all = merged(rounds);
        let cpu: Vec<Vec<CpuShare>> = rounds.iter().map(|r| r.cpu.clone()).collect();
        Self {
            rounds: rounds.len() as u32,
            rate_per_s: median(&rates),
            rate_range: range(&rates),
            p50_us: known(at(0.5)),
            p999_us: known(at(0.999)),
            p99_range_us: (!p99.is_empty()).then(|| range(&p99)),
            p99_us: known(p99),
            gbit_per_s: median(&bits),
            cpu: cpu::mean(&cpu),
            seconds_a_round: rounds.first().map_or(0.0, |r| r.seconds),
            errors: rounds.iter().map(|r| r.errors).sum(),
            lost: rounds.iter().map(|r| r.lost).sum(),
            curve: hist::curve(&all),
            ..Self::default()
        }
    }

    /// The medians of several runs of one test on one stack, each of one round; names and sizes are the first one's.
    #[must_use]
    pub fn median_of(runs: &[Self]) -> Self {
        let Some(first) = runs.first() else { return Self::default() };
        let all = |part: fn(&Self) -> f64| runs.iter().map(part).collect::<Vec<f64>>();
        let known = |part: fn(&Self) -> Option<f64>| {
            let values: Vec<f64> = runs.iter().filter_map(part).collect();
            (!values.is_empty()).then(|| median(&values))
        };
        let p99: Vec<f64> = runs.iter().filter_map(|m| m.p99_us).collect();
        let rates = all(|m| m.rate_per_s);
        let cpu: Vec<Vec<CpuShare>> = runs.iter().map(|m| m.cpu.clone()).collect();
        let points = runs.iter().map(|m| m.curve.len()).min().unwrap_or(0);
        let point = |n: usize| {
            let values: Vec<f64> = runs.iter().map(|m| m.curve[n].1).collect();
            (first.curve[n].0, median(&values))
        };
        Self {
            rounds: runs.len() as u32,
            rate_per_s: median(&rates),
            rate_range: range(&rates),
            p50_us: known(|m| m.p50_us),
            p99_us: known(|m| m.p99_us),
            p999_us: known(|m| m.p999_us),
            p99_range_us: (!p99.is_empty()).then(|| range(&p99)),
            gbit_per_s: median(&all(|m| m.gbit_per_s)),
            cpu: cpu::mean(&cpu),
            errors: runs.iter().map(|m| m.errors).sum(),
            lost: runs.iter().map(|m| m.lost).sum(),
            curve: (0..points).map(point).collect(),
            ..first.clone()
        }
    }

    /// The number that ratios are made of: bits for streams, else the rate.
    #[must_use]
    pub fn speed(&self) -> f64 {
        if self.p50_us.is_none() && self.gbit_per_s > 0.0 && self.shards == 0 {
            self.gbit_per_s
        } else {
            self.rate_per_s
        }
    }

    /// Cores that were busy, as a sum over all: 1.5 is one and a half.
    #[must_use]
    pub fn cores_busy(&self) -> f64 {
        self.cpu.iter().map(CpuShare::busy).sum::<f64>() / 100.0
    }
}

/// All rounds as one histogram.
#[must_use]
pub fn merged(rounds: &[Round]) -> Histogram<u64> {
    rounds.iter().fold(hist::empty(), |mut all, round| {
        all += &round.latencies;
        all
    })
}

/// Sets the ratios of measurements of one test and size: against `kernel` and against `raw`.
pub fn set_ratios(all: &mut [Measurement]) {
    let before = all.to_vec();
    for m in all {
        let same = |o: &&Measurement| {
            o.test == m.test
                && (o.connections, o.size, o.depth, o.reply_size) == (m.connections, m.size, m.depth, m.reply_size)
        };
        let to = |stack: &str| {
            let base = before.iter().filter(same).find(|o| o.stack == stack)?.speed();
            (base > 0.0).then(|| m.speed() / base)
        };
        let ratios = (to("kernel"), to("raw"));
        (m.ratio_to_kernel, m.ratio_to_raw) = ratios;
    }
}

/// The middle of `values`; of an even number, the mean of the two in the middle; 0 for none.
#[must_use]
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => 0.0,
        n if n % 2 == 1 => sorted[n / 2],
        n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
    }
}

/// Smallest and largest.
fn range(values: &[f64]) -> [f64; 2] {
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    if least.is_infinite() { [0.0; 2] } else { [least, values.iter().copied().fold(0.0, f64::max)] }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(operations: u64, ns: u64) -> Round {
        let mut latencies = hist::empty();
        (0..operations).for_each(|_| hist::record(&mut latencies, ns));
        Round { seconds: 2.0, operations, bytes: operations * 128, errors: 0, lost: 1, latencies, cpu: Vec::new() }
    }

    #[test]
    fn one_disturbed_round_does_not_decide() {
        let m = Measurement::of(&[round(1000, 10_000), round(10, 900_000), round(1200, 9_000)]);
        assert_eq!((m.rounds, m.rate_per_s, m.rate_range, m.lost), (3, 500.0, [5.0, 600.0], 3));
        assert!((9.99..10.02).contains(&m.p50_us.unwrap()), "{m:?}");
        assert!(m.p99_range_us.unwrap()[1] > 890.0);
        assert!((m.gbit_per_s - 500.0 * 128.0 * 8e-9).abs() < 1e-12);
    }

    #[test]
    fn runs_come_together_as_rounds_do() {
        let rounds = [round(1000, 10_000), round(10, 900_000), round(1200, 9_000)];
        let runs: Vec<Measurement> = rounds.iter().map(|r| Measurement::of(std::slice::from_ref(r))).collect();
        let (one, other) = (Measurement::of(&rounds), Measurement::median_of(&runs));
        assert_eq!((one.rate_per_s, one.rate_range, one.p50_us), (other.rate_per_s, other.rate_range, other.p50_us));
        assert_eq!((other.rounds, other.lost), (3, 3));
        assert_eq!(other.curve.len(), runs[1].curve.len());
    }

    #[test]
    fn ratios_are_within_one_test_and_size() {
        let of = |stack: &str, size, rate| Measurement {
            test: "rr".into(),
            stack: stack.into(),
            size,
            rate_per_s: rate,
            p50_us: Some(1.0),
            ..Measurement::default()
        };
        let mut all = [of("kernel", 64, 100.0), of("sidestep", 64, 250.0), of("raw", 64, 500.0), of("raw", 128, 1.0)];
        set_ratios(&mut all);
        assert_eq!((all[1].ratio_to_kernel, all[1].ratio_to_raw), (Some(2.5), Some(0.5)));
        assert_eq!((all[0].ratio_to_kernel, all[3].ratio_to_kernel), (Some(1.0), None));
    }

    #[test]
    fn medians() {
        assert_eq!(median(&[]), 0.0);
        assert_eq!(median(&[3.0, 1.0, 900.0]), 3.0);
        assert_eq!(median(&[1.0, 2.0]), 1.5);
        assert_eq!(range(&[]), [0.0, 0.0]);
    }

    #[test]
    fn json_has_the_promised_names() {
        let text = serde_json::to_value(Measurement::of(&[round(10, 5)])).unwrap();
        for name in [
            "test",
            "stack",
            "connections",
            "size",
            "rounds",
            "rate_per_s",
            "p50_us",
            "p99_us",
            "p999_us",
            "gbit_per_s",
            "cpu",
            "ratio_to_kernel",
            "ratio_to_raw",
        ] {
            assert!(text.get(name).is_some(), "{name}");
        }
    }
}
