//! How requests a second grow with cores: one shard, engine and program a core, on frame replay, that is without a
//! device ([`super::replay`]). Nothing is shared between shards, so what is lost is lost in the machine: caches, memory,
//! clock rates, the other half of a core.

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use sidestep_client::now_ns;

use super::cpu::CpuTimes;
use super::hist;
use super::measure::{Measurement, Round};
use super::replay::Replay;
use crate::clock::MonotonicClock;

/// Requests between two looks at the clock.
const PIECE: u64 = 1_000;

/// What to run.
#[derive(Clone, Debug)]
pub struct Cores {
    /// CPUs for the shards, in turn.
    pub cores: Vec<usize>,
    /// Connections of each shard.
    pub connections: u32,
    /// Bytes of a request and its answer.
    pub size: u32,
    pub round: Duration,
    pub rounds: u32,
}

impl Cores {
    /// Measures with 1, 2, … shards. `say` hears of each.
    ///
    /// # Errors
    /// An engine can't be made, or its answers stop.
    pub fn run(&self, say: &mut dyn FnMut(&str), stop: &AtomicBool) -> anyhow::Result<Vec<Measurement>> {
        let mut all: Vec<Measurement> = Vec::new();
        for shards in 1..=self.cores.len() {
            let mut rounds = Vec::new();
            for _ in 0..self.rounds {
                if stop.load(Ordering::Relaxed) {
                    return Ok(all);
                }
                rounds.push(self.round(shards)?);
            }
            let mut m = Measurement {
                test: "cores".into(),
                stack: "sidestep".into(),
                connections: self.connections * shards as u32,
                size: self.size,
                reply_size: self.size,
                depth: 1,
                shards: shards as u32,
                ..Measurement::of(&rounds)
            };
            let first = all.first().map_or(m.rate_per_s, |m| m.rate_per_s);
            let efficiency = m.rate_per_s / shards as f64 / first.max(1.0);
            m.note = format!(
                "{shards} shard{}, {:.0}/s each, efficiency {efficiency:.2}; frame replay, no device",
                if shards == 1 { "" } else { "s" },
                m.rate_per_s / shards as f64,
            );
            say(&format!("{shards} shards: {:.0}/s, efficiency {efficiency:.2}", m.rate_per_s));
            all.push(m);
        }
        Ok(all)
    }

    fn round(&self, shards: usize) -> anyhow::Result<Round> {
        let (begin, answered) = (Barrier::new(shards), AtomicU64::new(0));
        let spans: Vec<anyhow::Result<(f64, Vec<super::cpu::CpuShare>)>> = std::thread::scope(|scope| {
            let (begin, answered) = (&begin, &answered);
            let threads: Vec<_> = self.cores[..shards]
                .iter()
                .map(|&core| {
                    scope.spawn(move || {
                        let pinned = core_affinity::set_for_current(core_affinity::CoreId { id: core });
                        let replay = Replay::new(MonotonicClock, Box::new(|| ()), self.connections, self.size);
                        let warm = replay.and_then(|mut replay| {
                            replay.answer(PIECE)?;
                            Ok(replay)
                        });
                        // Whoever failed must come here too, or the others would wait for it.
                        begin.wait();
                        let mut replay = warm?;
                        anyhow::ensure!(pinned, "can't run on core {core}");
                        let cpu = CpuTimes::now()?;
                        let (start, before) = (now_ns(), replay.answered());
                        let end = start + self.round.as_nanos() as u64;
                        while now_ns() < end {
                            replay.answer(PIECE)?;
                        }
                        answered.fetch_add(replay.answered() - before, Ordering::Relaxed);
                        Ok(((now_ns() - start) as f64 / 1e9, cpu.until(&CpuTimes::now()?)))
                    })
                })
                .collect();
            let joined = threads.into_iter().map(|t| t.join().unwrap_or_else(|p| std::panic::resume_unwind(p)));
            joined.collect()
        });
        let mut seconds = 0.0f64;
        let mut cpu = Vec::new();
        for span in spans {
            let (took, shares) = span?;
            seconds = seconds.max(took);
            cpu = shares;
        }
        let operations = answered.load(Ordering::Relaxed);
        Ok(Round {
            seconds,
            operations,
            bytes: operations * 2 * u64::from(self.size),
            errors: 0,
            lost: 0,
            latencies: hist::empty(),
            cpu,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_core_answers() {
        let cores = Cores { cores: vec![0], connections: 8, size: 64, round: Duration::from_millis(50), rounds: 1 };
        let all = cores.run(&mut |_| (), &AtomicBool::new(false)).unwrap();
        assert_eq!((all.len(), all[0].shards), (1, 1));
        assert!(all[0].rate_per_s > 0.0 && all[0].note.contains("frame replay"), "{:?}", all[0]);
    }
}
