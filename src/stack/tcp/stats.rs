//! What a connection counts about itself, for TCP_INFO only: nothing here decides anything.

use crate::Instant;
use core::time::Duration;

/// What a connection with something to send waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(u8)]
pub(super) enum Limited {
    /// Nothing to send.
    #[default]
    Idle,
    /// The network.
    Busy,
    /// The peer's window.
    Window,
    /// The program, which can't write more before something is acknowledged.
    Buffer,
}

/// 131 µs: a word of them lasts 6 days, and Linux counts by the millisecond.
const UNIT: u32 = 17;

#[derive(Debug, Default)]
pub(super) struct Stats {
    pub bytes_retransmitted: u64,
    pub segments_out: u32,
    pub segments_in: u32,
    pub data_segments_out: u32,
    pub data_segments_in: u32,
    pub out_of_order: u32,
    pub timeouts: u16,
    pub timeout_recoveries: u16,
    timeout_millis: u32,
    /// Since when timeouts are unanswered; zero when none are.
    timeout_since: Instant,
    pub last_data_in: Instant,
    limited: Limited,
    since: Instant,
    /// Time in each state but `Idle`, in units of 2^[`UNIT`] nanoseconds.
    spent: [u32; 3],
}

impl Stats {
    /// Of a connection that begins.
    pub fn new(now: Instant) -> Self {
        Self { last_data_in: now, ..Self::default() }
    }

    /// From now on this is what it waits for.
    pub fn limited_by(&mut self, limited: Limited, now: Instant) {
        if limited != self.limited {
            self.close_account(now);
            self.limited = limited;
        }
    }

    fn close_account(&mut self, now: Instant) {
        if let Some(spent) = (self.limited as usize).checked_sub(1).and_then(|at| self.spent.get_mut(at)) {
            let elapsed = now.since(self.since).as_nanos() as u64;
            *spent = spent.saturating_add(u32::try_from(elapsed >> UNIT).unwrap_or(u32::MAX));
            // What is less than a unit goes to the next account.
            self.since = Instant::from_nanos(now.as_nanos() - (elapsed & ((1 << UNIT) - 1)));
        } else {
            self.since = now;
        }
    }

    /// Time with something to send, with a closed window, and with a full buffer.
    pub fn times(&self, now: Instant) -> (Duration, Duration, Duration) {
        let mut spent = self.spent.map(|units| u64::from(units) << UNIT);
        if let Some(running) = (self.limited as usize).checked_sub(1).and_then(|at| spent.get_mut(at)) {
            *running += u64::try_from(now.since(self.since).as_nanos()).unwrap_or(0);
        }
        let [busy, window, buffer] = spent.map(Duration::from_nanos);
        (busy + window + buffer, window, buffer)
    }

    pub fn on_timeout(&mut self, now: Instant) {
        self.timeouts = self.timeouts.saturating_add(1);
        if self.timeout_since == Instant::ZERO {
            self.timeout_since = now;
        }
    }

    /// Something new was acknowledged.
    pub fn on_progress(&mut self, now: Instant) {
        if self.timeout_since != Instant::ZERO {
            self.timeout_recoveries = self.timeout_recoveries.saturating_add(1);
            let millis = u32::try_from(now.since(self.timeout_since).as_millis()).unwrap_or(u32::MAX);
            self.timeout_millis = self.timeout_millis.saturating_add(millis);
            self.timeout_since = Instant::ZERO;
        }
    }

    /// When the first of the timeouts was that are unanswered.
    pub const fn timeout_since(&self) -> Instant {
        self.timeout_since
    }

    pub fn timeout_time(&self) -> Duration {
        Duration::from_millis(self.timeout_millis.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_moment_is_in_one_account() {
        let at = Instant::from_millis;
        let mut stats = Stats::default();
        stats.limited_by(Limited::Busy, at(10));
        stats.limited_by(Limited::Busy, at(15));
        stats.limited_by(Limited::Window, at(20));
        stats.limited_by(Limited::Idle, at(50));
        stats.limited_by(Limited::Buffer, at(100));
        let millis = Duration::from_millis;
        let (busy, window, buffer) = stats.times(at(107));
        let near = |time: Duration, right: u64| time.abs_diff(millis(right)) < Duration::from_micros(263);
        assert!(near(busy, 47) && near(window, 30) && near(buffer, 7), "{busy:?} {window:?} {buffer:?}");
        stats.on_timeout(at(200));
        stats.on_timeout(at(400));
        stats.on_progress(at(500));
        stats.on_progress(at(600));
        assert_eq!((stats.timeouts, stats.timeout_recoveries, stats.timeout_time()), (2, 1, millis(300)));
    }
}
