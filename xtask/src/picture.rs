//! The comparison as a table on the terminal and as one file that a browser shows: two percentile curves.

use crate::demo::Rounds;
use anyhow::{Context, Result};
use sidestep_e2e::load::Sample;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

const SHARES: [(&str, f64); 5] = [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999), ("max", 1.0)];

/// The table: medians over the rounds, so that one disturbed round does not decide.
#[must_use]
pub fn table(rounds: &Rounds, tap: bool) -> String {
    let name = if tap { "Sidestep/TAP" } else { "Sidestep" };
    let mut text = format!("   {:<14}{name:>14}{:>14}{:>16}\n", "", "kernel", "kernel/Sidestep");
    for (label, share) in SHARES {
        let of = |samples: &[Sample]| median(samples.iter().map(|s| s.percentile(share) as f64 / 1e3));
        let (ours, theirs) = (of(&rounds.sidestep), of(&rounds.kernel));
        let _ = writeln!(text, "   {label:<14}{ours:>11.1} us{theirs:>11.1} us{:>15.2}x", theirs / ours);
    }
    let of = |samples: &[Sample]| median(samples.iter().map(Sample::rate));
    let (ours, theirs) = (of(&rounds.sidestep), of(&rounds.kernel));
    let _ = writeln!(text, "   {:<14}{ours:>14.0}{theirs:>14.0}{:>15.2}x", "requests/s", ours / theirs);
    text.push_str("   (medians of the rounds; a ratio above 1 is in Sidestep's favour)\n");
    text
}

/// Writes `folder/latency.html` and gives its path.
///
/// # Errors
/// When it can't be written.
pub fn write(folder: &Path, rounds: &Rounds, tap: bool, table: &str) -> Result<PathBuf> {
    fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    let path = folder.join("latency.html");
    let merge = |samples: &[Sample]| {
        samples.iter().fold(Sample::default(), |mut all, one| {
            all.merge(one);
            all
        })
    };
    let name = if tap { "Sidestep over TAP" } else { "Sidestep over AF_XDP" };
    let (ours, theirs) = (merge(&rounds.sidestep), merge(&rounds.kernel));
    let curves = [(name, "#c2410c", &ours), ("kernel", "#1d4ed8", &theirs)];
    let html = format!(
        "<!DOCTYPE html><meta charset=utf-8><title>Sidestep: latency</title>\n\
         <body style=\"font:15px sans-serif;max-width:56em;margin:2em auto\">\n\
         <h1>Latency of {} requests to nginx, by share of the requests</h1>\n{}<pre>{table}</pre>\n",
        ours.latencies_ns.len(),
        svg(&curves)
    );
    fs::write(&path, html).with_context(|| path.display().to_string())?;
    Ok(path)
}

const WIDTH: f64 = 820.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 80.0;
const BOTTOM: f64 = 50.0;

/// Percentile curves. Across: the share of slower requests, each step a tenth of the one before; up: latency in
/// logarithms.
fn svg(curves: &[(&str, &str, &Sample)]) -> String {
    let all = || curves.iter().flat_map(|(_, _, s)| s.latencies_ns.first().into_iter().chain(s.latencies_ns.last()));
    let low = (*all().min().unwrap_or(&1) as f64).max(1.0).log10().floor();
    let high = (*all().max().unwrap_or(&10) as f64).max(10.0).log10().ceil().max(low + 1.0);
    let nines = curves.iter().map(|(_, _, s)| s.latencies_ns.len() as f64).fold(10.0, f64::max).log10();
    let x = |share_above: f64| LEFT + (WIDTH - LEFT - 20.0) * (-share_above.log10()) / nines;
    let y = |ns: f64| HEIGHT - BOTTOM - (HEIGHT - BOTTOM - 20.0) * (ns.max(1.0).log10() - low) / (high - low);
    let mut out =
        format!("<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-size=\"13\">\n");
    for decade in low as i32..=high as i32 {
        for step in [1.0, 2.0, 5.0] {
            let ns = 10f64.powi(decade) * step;
            if ns.log10() > high + 1e-9 {
                break;
            }
            let (at, left, right) = (y(ns), LEFT, WIDTH - 20.0);
            let _ = writeln!(out, "<path d=\"M{left} {at:.1}H{right}\" stroke=\"#ddd\"/>");
            let _ = writeln!(
                out,
                "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                left - 8.0,
                at + 4.0,
                label(ns)
            );
        }
    }
    let shares = [(0.5, "50 %"), (0.1, "90 %"), (0.01, "99 %"), (0.001, "99.9 %"), (0.0001, "99.99 %")];
    for (above, name) in shares.iter().filter(|(above, _)| -f64::log10(*above) <= nines + 1e-9) {
        let (at, bottom) = (x(*above), HEIGHT - BOTTOM);
        let _ = writeln!(out, "<path d=\"M{at:.1} 20V{bottom}\" stroke=\"#ddd\"/>");
        let _ = writeln!(out, "<text x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\">{name}</text>", bottom + 20.0);
    }
    for (row, (name, colour, sample)) in curves.iter().enumerate() {
        let n = sample.latencies_ns.len();
        let points = (0..=400).map(|i| {
            let above = 10f64.powf(-nines * f64::from(i) / 400.0);
            (x(above), y(sample.percentile(1.0 - above) as f64))
        });
        let line: Vec<String> = points.map(|(px, py)| format!("{px:.1} {py:.1}")).collect();
        if n > 0 {
            let line = line.join("L");
            let _ = writeln!(out, "<path d=\"M{line}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2.5\"/>");
        }
        let (tx, ty) = (LEFT + 20.0, 40.0 + 20.0 * row as f64);
        let _ = writeln!(out, "<text x=\"{tx}\" y=\"{ty}\" fill=\"{colour}\" font-weight=\"bold\">{name}</text>");
    }
    out.push_str("</svg>\n");
    out
}

fn label(ns: f64) -> String {
    match ns {
        ns if ns >= 1e9 => format!("{} s", ns / 1e9),
        ns if ns >= 1e6 => format!("{} ms", ns / 1e6),
        ns if ns >= 1e3 => format!("{} us", ns / 1e3),
        ns => format!("{ns} ns"),
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn rounds() -> Rounds {
        let sample = |from: u64| Sample {
            latencies_ns: (0..2000).map(|i| from + i * 10).collect(),
            elapsed: Duration::from_millis(20),
        };
        Rounds { sidestep: vec![sample(10_000); 3], kernel: vec![sample(40_000); 3] }
    }

    #[test]
    fn the_table_has_both_sides_and_the_ratio() {
        let text = table(&rounds(), false);
        let p50 = text.lines().find(|l| l.contains("p50")).unwrap();
        assert!(p50.contains("20.0 us") && p50.contains("50.0 us") && p50.contains("2.50x"), "{text}");
    }

    #[test]
    fn the_picture_is_one_file_with_two_curves() {
        let folder = std::env::temp_dir().join(format!("sidestep-unit-picture-{}", std::process::id()));
        let rounds = rounds();
        let path = write(&folder, &rounds, false, &table(&rounds, false)).unwrap();
        let html = fs::read_to_string(path).unwrap();
        assert_eq!(html.matches("stroke-width=\"2.5\"").count(), 2);
        assert!(!html.contains("NaN") && !html.contains("inf"), "{html}");
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn medians_ignore_one_bad_round() {
        assert_eq!(median([3.0, 1.0, 900.0].into_iter()), 3.0);
        assert_eq!(median(std::iter::empty()), 0.0);
    }
}
