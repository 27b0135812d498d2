//! The stacks side by side: the same tests on the kernel, a tuned kernel, Sidestep and bare AF_XDP, each in a
//! laboratory of its own, one core a side, in turns: round 1 of every stack, then round 2, so that whatever disturbs
//! the machine disturbs all of them.
//!
//! Everything that a stack needs (engines, servers) is started for one measurement and ended after it: what idles
//! beside a measurement would cost it something.

mod contender;
mod programs;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::Context;

use contender::Contender;
pub use contender::Stack;

use super::lab::{Lab, Link, Offloads, find};
use super::measure::{Measurement, set_ratios};

/// One test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Test {
    /// Requests and answers of 64 bytes.
    Rr { connections: u32 },
    /// Bulk data over one connection.
    Stream,
    /// Connect, request, answer, close.
    Crr { connections: u32 },
    /// Datagrams of 64 bytes and their answers.
    Udp { connections: u32 },
    /// nginx under wrk.
    Nginx { connections: u32 },
    /// redis-server under redis-benchmark, GET.
    Redis { connections: u32 },
    /// iperf3, one connection.
    Iperf3,
}

impl Test {
    /// Parses `rr`, `rr:32`, `nginx:50`, …
    ///
    /// # Errors
    /// No such test.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (name, number) = text.split_once(':').map_or((text, None), |(name, n)| (name, Some(n)));
        let connections = |default| match number.map(str::parse::<u32>) {
            None => Ok(default),
            Some(Ok(n)) if (1..=100_000).contains(&n) => Ok(n),
            Some(_) => Err(format!("{text}: a number of connections must follow ':'")),
        };
        let alone = |test| if number.is_none() { Ok(test) } else { Err(format!("{text}: {name} has one connection")) };
        match name {
            "rr" => Ok(Self::Rr { connections: connections(1)? }),
            "crr" => Ok(Self::Crr { connections: connections(32)? }),
            "udp" => Ok(Self::Udp { connections: connections(1)? }),
            "nginx" => Ok(Self::Nginx { connections: connections(50)? }),
            "redis" => Ok(Self::Redis { connections: connections(50)? }),
            "stream" => alone(Self::Stream),
            "iperf3" => alone(Self::Iperf3),
            _ => Err(format!("{text}: must be rr, stream, crr, udp, nginx, redis or iperf3, as rr:32")),
        }
    }

    /// Those that the table has unless told otherwise.
    #[must_use]
    pub fn usual() -> Vec<Self> {
        vec![
            Self::Rr { connections: 1 },
            Self::Rr { connections: 32 },
            Self::Rr { connections: 256 },
            Self::Stream,
            Self::Crr { connections: 32 },
            Self::Udp { connections: 1 },
            Self::Nginx { connections: 50 },
            Self::Redis { connections: 50 },
            Self::Iperf3,
        ]
    }

    /// The programs that it needs.
    fn needs(self) -> &'static [&'static str] {
        match self {
            Self::Nginx { .. } => &["nginx", "wrk"],
            Self::Redis { .. } => &["redis-server", "redis-benchmark"],
            Self::Iperf3 => &["iperf3"],
            _ => &[],
        }
    }

    fn name(self) -> String {
        match self {
            Self::Rr { connections } => format!("rr, {connections} connections"),
            Self::Stream => "stream".into(),
            Self::Crr { connections } => format!("crr, {connections} connections"),
            Self::Udp { connections } => format!("udp, {connections} sockets"),
            Self::Nginx { connections } => format!("nginx + wrk, {connections} connections"),
            Self::Redis { connections } => format!("redis, {connections} connections"),
            Self::Iperf3 => "iperf3".into(),
        }
    }
}

/// A comparison.
pub struct Plan<'a> {
    pub tests: Vec<Test>,
    pub stacks: Vec<Stack>,
    pub rounds: u32,
    pub time: Duration,
    pub warmup: Duration,
    /// The server's core, and the load generator's.
    pub cores: [usize; 2],
    pub mtu: u32,
    /// Two devices that a cable joins, instead of veth pairs.
    pub devices: Option<[String; 2]>,
    /// The built `sidestep`, which serves, loads and is the engine.
    pub binary: PathBuf,
    /// Called with every command before it starts, for signal masks and the like.
    pub prepare: &'a (dyn Fn(&mut Command) + Sync),
}

/// What came of it.
pub struct Comparison {
    pub measurements: Vec<Measurement>,
    /// Tests and stacks that could not be run, and why.
    pub skipped: Vec<String>,
}

impl Plan<'_> {
    /// Runs everything. `say` hears a line for every measurement; `stop` ends after the current one, and what is
    /// whole is kept.
    ///
    /// # Errors
    /// No laboratory can be made.
    pub fn run(&self, say: &mut dyn FnMut(&str), stop: &dyn Fn() -> bool) -> anyhow::Result<Comparison> {
        let mut skipped = Vec::new();
        let tests = self.tests.iter().copied().filter(|test| match missing(*test) {
            None => true,
            Some(program) => {
                skipped.push(format!("{}: {program} is not installed", test.name()));
                false
            }
        });
        let tests: Vec<Test> = tests.collect();
        let mut done: BTreeMap<(usize, usize), Vec<Measurement>> = BTreeMap::new();
        let mut broken: Vec<(usize, usize)> = Vec::new();
        let total = tests.len() * self.stacks.len() * self.rounds as usize;
        let mut labs: Vec<Option<Lab>> = self.stacks.iter().map(|_| None).collect();
        let mut count = 0;
        'rounds: for round in 0..self.rounds {
            for (t, test) in tests.iter().enumerate() {
                for (s, stack) in self.stacks.iter().enumerate() {
                    count += 1;
                    if stop() {
                        break 'rounds;
                    }
                    if broken.contains(&(t, s)) {
                        continue;
                    }
                    let name = format!("{} on {}", test.name(), stack.name());
                    if let Some(why) = stack.refuses(*test, self.devices.is_some()) {
                        broken.push((t, s));
                        skipped.push(format!("{name}: {why}"));
                        continue;
                    }
                    if self.devices.is_some() {
                        // One pair of devices: whoever measures has them.
                        labs.iter_mut().for_each(|lab| *lab = None);
                    }
                    if labs[s].is_none() {
                        labs[s] = Some(self.lab(*stack)?);
                    }
                    let Some(lab) = &labs[s] else { continue };
                    match (Contender { plan: self, stack: *stack, lab }).measure(*test) {
                        Ok(m) => {
                            let p50 = m.p50_us.map_or_else(String::new, |p| format!(", p50 {p:.1} us"));
                            let speed = if m.p50_us.is_some() {
                                format!("{:.0}/s", m.rate_per_s)
                            } else {
                                format!("{:.2} Gbit/s", m.gbit_per_s)
                            };
                            say(&format!("{count} of {total}: {name}, round {}: {speed}{p50}", round + 1));
                            done.entry((t, s)).or_default().push(m);
                        }
                        Err(_) if stop() => break 'rounds,
                        Err(error) => {
                            say(&format!("{count} of {total}: {name}: {error:#}"));
                            skipped.push(format!("{name}, round {}: {error:#}", round + 1));
                            // A second try may tell a hiccup from something that can't work.
                            if round > 0 || self.rounds == 1 {
                                broken.push((t, s));
                            }
                        }
                    }
                }
            }
        }
        let mut measurements: Vec<Measurement> = done.values().map(|runs| Measurement::median_of(runs)).collect();
        set_ratios(&mut measurements);
        Ok(Comparison { measurements, skipped })
    }

    fn lab(&self, stack: Stack) -> anyhow::Result<Lab> {
        let kernel = stack.is_kernel();
        let lab = match &self.devices {
            Some([a, b]) => Lab::with_devices([a, b], kernel),
            None => Lab::new(Link { queues: 1, mtu: self.mtu, kernel, offloads: stack.offloads() }),
        };
        lab.with_context(|| format!("make a laboratory for {} (needs root, iproute2 and ethtool)", stack.name()))
    }
}

fn missing(test: Test) -> Option<&'static str> {
    test.needs().iter().copied().find(|program| find(program).is_none())
}

/// Offloads by stack are part of what is compared.
impl Stack {
    fn offloads(self) -> Offloads {
        match self {
            Self::Kernel | Self::KernelSpin => Offloads::Default,
            Self::KernelTuned => Offloads::All,
            Self::KernelPlain | Self::Sidestep | Self::Library | Self::Raw => Offloads::None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_are_named() {
        assert_eq!(Test::parse("rr"), Ok(Test::Rr { connections: 1 }));
        assert_eq!(Test::parse("redis:500"), Ok(Test::Redis { connections: 500 }));
        for wrong in ["rr:", "rr:0", "stream:2", "ping", ""] {
            assert!(Test::parse(wrong).is_err(), "{wrong}");
        }
    }
}
