//! Many scenarios side by side: as many at a time as there are cores, and one table of what they found.

use std::fmt::Write as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::report::{Report, TrafficReport};
use super::run::{Run, RunOptions};
use super::scenario::{Scenario, Variant};

/// Runs all of them on `jobs` threads, each run on one. `done` hears of each that ends.
///
/// # Errors
/// The first run that could not be made.
pub fn run_all(
    all: &[(Variant, Scenario)],
    jobs: usize,
    done: &(dyn Fn(usize, &Report) + Sync),
) -> anyhow::Result<Vec<Report>> {
    let next = AtomicUsize::new(0);
    let reports: Mutex<Vec<Option<anyhow::Result<Report>>>> = Mutex::new(all.iter().map(|_| None).collect());
    std::thread::scope(|scope| {
        for _ in 0..jobs.clamp(1, all.len()) {
            scope.spawn(|| {
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    let Some((_, scenario)) = all.get(n) else { return };
                    let report = Run::new(scenario, RunOptions::default()).and_then(|run| run.finish(&mut |_, _| ()));
                    if let Ok(report) = &report {
                        done(n, report);
                    }
                    if let Ok(mut reports) = reports.lock() {
                        reports[n] = Some(report);
                    }
                }
            });
        }
    });
    let reports = reports.into_inner().map_err(|_| anyhow::anyhow!("a run panicked"))?;
    reports.into_iter().flatten().collect()
}

/// One line for each traffic of each run.
#[must_use]
pub fn table(all: &[(Variant, Scenario)], reports: &[Report]) -> String {
    let mut out = String::new();
    let names: Vec<&str> = all.first().map(|(v, _)| v.iter().map(|c| c.name.as_str()).collect()).unwrap_or_default();
    for name in &names {
        let _ = write!(out, "{name:>10} ");
    }
    let _ = writeln!(
        out,
        "{:<14} {:>10} {:>8} {:>8} {:>9} {:>9} {:>10} {:>8}",
        "traffic", "Mbit/s", "of path", "law", "of law", "resent", "p99", "fairness"
    );
    for ((variant, _), report) in all.iter().zip(reports) {
        for t in &report.traffic {
            for c in variant {
                let _ = write!(out, "{:>10} ", c.value);
            }
            let _ = writeln!(out, "{}", line(t));
        }
    }
    out
}

fn line(t: &TrafficReport) -> String {
    let or_dash = |value: Option<String>| value.unwrap_or_else(|| "-".into());
    let is_bulk = !t.flows.is_empty();
    let path = t.path_mbit.filter(|p| p.is_finite() && is_bulk);
    let law = t.law_mbit.filter(|l| l.is_finite() && is_bulk);
    format!(
        "{:<14} {:>10} {:>8} {:>8} {:>9} {:>9} {:>10} {:>8}{}",
        t.name,
        or_dash(is_bulk.then(|| format!("{:.1}", t.goodput_mbit))),
        or_dash(path.map(|p| format!("{:.1} %", t.goodput_mbit / p * 100.0))),
        or_dash(law.map(|l| format!("{l:.1}"))),
        or_dash(law.map(|l| format!("{:.2}", t.goodput_mbit / l))),
        t.retransmitted_segments,
        or_dash(t.answering.or(t.connecting).map(|p| format!("{:.0} us", p.p99))),
        or_dash(t.fairness.map(|f| format!("{f:.4}"))),
        if t.reaches_bar == Some(false) { "  BELOW" } else { "" },
    )
}
