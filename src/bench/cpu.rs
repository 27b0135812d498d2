//! Where the time of every core went, from /proc/stat (proc_stat(5)). A tick is 10 ms: shares of short rounds are coarse.

use std::io;

use serde::{Deserialize, Serialize};

/// Ticks of one core since boot, in the order of the file: user, nice, system, idle, iowait, irq, softirq, steal.
type Ticks = [u64; 8];

/// All cores at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuTimes(Vec<(u32, Ticks)>);

/// Shares of one core in a span of time, in percent of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CpuShare {
    pub core: u32,
    /// With nice.
    pub user: f64,
    pub system: f64,
    /// With hard interrupts.
    pub softirq: f64,
    /// With waiting for disks.
    pub idle: f64,
    /// Taken by other virtual machines on the host.
    pub steal: f64,
}

impl CpuShare {
    /// Percent of the core that was worked.
    #[must_use]
    pub fn busy(&self) -> f64 {
        self.user + self.system + self.softirq
    }
}

impl CpuTimes {
    /// Reads /proc/stat.
    ///
    /// # Errors
    /// It can't be read.
    pub fn now() -> io::Result<Self> {
        Ok(Self::parse(&std::fs::read_to_string("/proc/stat")?))
    }

    fn parse(text: &str) -> Self {
        let line = |line: &str| {
            let mut words = line.split_ascii_whitespace();
            let core = words.next()?.strip_prefix("cpu")?.parse().ok()?;
            let mut ticks = Ticks::default();
            for (tick, word) in ticks.iter_mut().zip(words) {
                *tick = word.parse().ok()?;
            }
            Some((core, ticks))
        };
        Self(text.lines().filter_map(line).collect())
    }

    /// Shares of each core between `self` and `later`.
    #[must_use]
    pub fn until(&self, later: &Self) -> Vec<CpuShare> {
        let cores = later.0.iter().filter_map(|(core, after)| {
            let (_, before) = self.0.iter().find(|(c, _)| c == core)?;
            let mut spent = [0.0; 8];
            for (n, spent) in spent.iter_mut().enumerate() {
                *spent = after[n].saturating_sub(before[n]) as f64;
            }
            let all: f64 = spent.iter().sum();
            let share = |parts: f64| if all > 0.0 { parts * 100.0 / all } else { 0.0 };
            let [user, nice, system, idle, iowait, irq, softirq, steal] = spent;
            Some(CpuShare {
                core: *core,
                user: share(user + nice),
                system: share(system),
                softirq: share(irq + softirq),
                idle: share(idle + iowait),
                steal: share(steal),
            })
        });
        cores.collect()
    }
}

/// Means over several spans of equal length, core by core.
#[must_use]
pub fn mean(rounds: &[Vec<CpuShare>]) -> Vec<CpuShare> {
    let Some(first) = rounds.first() else { return Vec::new() };
    let n = rounds.len() as f64;
    let of = |core: u32, part: fn(&CpuShare) -> f64| {
        rounds.iter().flatten().filter(|s| s.core == core).map(part).sum::<f64>() / n
    };
    let cores = first.iter().map(|s| CpuShare {
        core: s.core,
        user: of(s.core, |s| s.user),
        system: of(s.core, |s| s.system),
        softirq: of(s.core, |s| s.softirq),
        idle: of(s.core, |s| s.idle),
        steal: of(s.core, |s| s.steal),
    });
    cores.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_of_a_core_add_up() {
        let a = CpuTimes::parse("cpu  1 1 1 1\ncpu0 100 0 50 800 10 5 35 0 0 0\ncpu1 0 0 0 10 0 0 0 0\nintr 5\n");
        let b = CpuTimes::parse("cpu  1 1 1 1\ncpu0 150 10 70 810 10 5 45 0 0 0\ncpu1 0 0 0 10 0 0 0 0\nintr 5\n");
        let shares = a.until(&b);
        assert_eq!(shares.len(), 2);
        let CpuShare { core, user, system, softirq, idle, steal } = shares[0];
        assert_eq!((core, user, system, softirq, idle, steal), (0, 60.0, 20.0, 10.0, 10.0, 0.0));
        assert_eq!(shares[1], CpuShare { core: 1, ..CpuShare::default() }, "no tick, no share");
        assert_eq!(mean(&[shares.clone(), shares.clone()]), shares);
    }

    #[test]
    fn this_machine_can_be_read() {
        assert!(!CpuTimes::now().unwrap().0.is_empty());
    }
}
