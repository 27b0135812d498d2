//! What a shard tells of its profile.

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::{HIGHEST_NS, STAGES, Timeline};

/// One shard's answer.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct LatencyReport {
    pub shard: u32,
    /// One data segment in so many is followed; 0: none.
    pub every: u32,
    /// Requests followed to their end.
    pub followed: u64,
    /// Given up after a second: not read, not acknowledged.
    pub abandoned: u64,
    /// The program's stamps can't be.
    pub garbled: u64,
    pub stages: Vec<StageReport>,
    /// The slowest first.
    pub slowest: Vec<Timeline>,
    /// The newest last; only where asked for.
    #[serde(default)]
    pub recent: Vec<Timeline>,
}

/// The times of one stage.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StageReport {
    pub stage: String,
    pub count: u64,
    pub mean_us: f64,
    pub p50_us: f64,
    pub p90_us: f64,
    pub p99_us: f64,
    pub p999_us: f64,
    pub max_us: f64,
    /// Nanoseconds and how often: a histogram to build upon.
    pub buckets: Vec<(u64, u64)>,
}

impl StageReport {
    /// Of a histogram in nanoseconds.
    #[must_use]
    pub fn of(stage: &str, h: &Histogram<u64>) -> Self {
        let at = |quantile: f64| h.value_at_quantile(quantile) as f64 / 1e3;
        Self {
            stage: stage.into(),
            count: h.len(),
            mean_us: h.mean() / 1e3,
            p50_us: at(0.5),
            p90_us: at(0.9),
            p99_us: at(0.99),
            p999_us: at(0.999),
            max_us: h.max() as f64 / 1e3,
            buckets: h.iter_recorded().map(|b| (b.value_iterated_to(), b.count_at_value())).collect(),
        }
    }

    /// The histogram that it was made of.
    #[must_use]
    pub fn histogram(&self) -> Histogram<u64> {
        let mut h = empty();
        self.buckets.iter().for_each(|(ns, count)| h.saturating_record_n(*ns, *count));
        h
    }
}

/// The stages of some requests, or of several shards together.
#[must_use]
pub fn summarize<'a>(
    requests: impl Iterator<Item = &'a Timeline>,
    shards: impl Iterator<Item = &'a LatencyReport>,
) -> Vec<StageReport> {
    let mut all: Vec<Histogram<u64>> = STAGES.iter().map(|_| empty()).collect();
    for line in requests {
        for (stage, h) in STAGES.iter().zip(&mut all) {
            if let Some(ns) = line.stage(stage) {
                h.saturating_record(ns.max(1));
            }
        }
    }
    for report in shards {
        for (stage, h) in STAGES.iter().zip(&mut all) {
            if let Some(part) = report.stages.iter().find(|s| s.stage == stage.name) {
                part.buckets.iter().for_each(|(ns, count)| h.saturating_record_n(*ns, *count));
            }
        }
    }
    STAGES.iter().zip(&all).map(|(stage, h)| StageReport::of(stage.name, h)).collect()
}

fn empty() -> Histogram<u64> {
    #[allow(clippy::expect_used, reason = "the bounds are constants that the crate accepts")]
    Histogram::new_with_bounds(1, HIGHEST_NS, 2).expect("constant bounds")
}
