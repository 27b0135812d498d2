//! How fast a connection sends within its window: pacing, and whether the window is in use at all.
//!
//! Pacing spreads a window over its round trip, so that bursts don't overflow queues on the way. It costs a timer for
//! each burst, and the wheel has ticks of 65 µs: on paths shorter than [`PACED_FROM`] acknowledgments are the clock.

use super::connection::Connection;
use crate::{Instant, TcpConfig};
use core::time::Duration;

/// Round trips from which a window is spread over them.
const PACED_FROM: Duration = Duration::from_millis(1);
/// What may leave at once: as much as the rate gives in this time ...
const BURST_TIME: Duration = Duration::from_millis(1);
/// Two ticks of the wheel.
const TICKS: Duration = Duration::from_micros(131);
/// ... or so many segments, as the first window has; with a rate that someone has set, fewer.
const BURST_SEGMENTS: u64 = 10;
const BURST_SEGMENTS_LIMITED: u64 = 2;

/// How much of the window was in use in the last round trip (RFC 7661 and, for the decay, RFC 2861; the rules are
/// Linux's).
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Usage {
    /// Where the round trip ends.
    end: u64,
    /// When the window was used up last, and the most that was outstanding since.
    full_at: Instant,
    most_since: u32,
    /// Most bytes outstanding in the round trip, and whether the window was the limit.
    most: u32,
    limited: bool,
}

impl Connection {
    /// Whether the window may grow: a slow start may double what was used.
    pub fn is_window_limited(&self) -> bool {
        let window = self.congestion.window();
        if window < self.congestion.threshold() { window < 2 * u64::from(self.usage.most) } else { self.usage.limited }
    }

    /// New data has just been sent.
    pub fn note_use(&mut self, now: Instant, config: &TcpConfig) {
        let full = u64::from(self.full_segment());
        let outstanding = u32::try_from(self.nxt - self.una).unwrap_or(u32::MAX);
        let limited = self.board.in_flight() + full > self.allowance();
        let u = &mut self.usage;
        if self.una >= u.end || limited || !u.limited && outstanding > u.most {
            u.limited = limited;
            u.most = outstanding;
            u.end = self.nxt;
        }
        if let Some(delivery) = &mut self.delivery {
            if !limited && self.nxt >= self.tail {
                delivery.mark_limited(self.board.in_flight());
            }
            return;
        }
        if limited {
            u.full_at = now;
            u.most_since = 0;
            return;
        }
        u.most_since = u.most_since.max(outstanding);
        let unused = now.since(u.full_at);
        // The first comparison is nearly always enough.
        if unused >= config.min_rto
            && config.slow_start_after_idle
            && unused >= self.rtt.timeout(0, config.min_rto, config.max_rto)
        {
            self.shrink_unused(now);
        }
    }

    /// RFC 2861: what hasn't been used for a while isn't known to be there. Half of the difference goes.
    fn shrink_unused(&mut self, now: Instant) {
        let full = self.full_segment();
        let (window, threshold) = (self.congestion.window(), self.congestion.threshold());
        let used = u64::from(self.usage.most_since).max(super::congestion::initial_window(full));
        if self.board.phase() == super::recovery::Phase::Open && used < window {
            self.congestion.set(window.midpoint(used), threshold.max(window / 4 * 3));
        }
        self.usage.full_at = now;
        self.usage.most_since = 0;
    }

    /// Nothing was sent for longer than a timeout (RFC 5681 4.1): half of the window for each, down to the initial one.
    pub fn restart_after_idle(&mut self, now: Instant, config: &TcpConfig) {
        let timeout = self.timeout(config);
        let idle = now.since(self.last_send);
        if self.delivery.is_some() {
            self.congestion.on_restart(now);
            return;
        }
        if !config.slow_start_after_idle || idle <= timeout {
            return;
        }
        let (window, threshold) = (self.congestion.window(), self.congestion.threshold());
        let least = super::congestion::initial_window(self.full_segment()).min(window);
        let halvings = (idle.as_nanos() / timeout.as_nanos().max(1)).min(32) as u32;
        self.congestion.set((window >> halvings).max(least), threshold.max(window / 4 * 3));
        self.usage.full_at = now;
        self.usage.most_since = 0;
    }

    /// Bytes per second. As Linux: twice what the window gives in slow start, so that it can double, and a fifth more
    /// afterwards. `u64::MAX` before the first sample.
    pub fn pacing_rate(&self) -> u64 {
        let chosen = self.congestion.pacing_rate().unwrap_or_else(|| {
            let window = self.allowance().max(self.board.in_flight());
            let slow_start = self.congestion.window() < self.congestion.threshold() / 2;
            let percent = if slow_start { 200 } else { 120 };
            let nanos = self.rtt.smoothed().as_nanos();
            let rate = u128::from(window) * percent * 10_000_000;
            rate.checked_div(nanos).map_or(u64::MAX, |rate| u64::try_from(rate).unwrap_or(u64::MAX))
        });
        match self.options.max_pacing_rate {
            0 => chosen,
            most => chosen.min(most),
        }
    }

    /// So many bytes have just left: when may the next?
    pub fn note_paced(&mut self, now: Instant, len: u32, config: &TcpConfig) {
        let limited = self.options.max_pacing_rate > 0;
        let long = config.pacing && self.rtt.smoothed() >= PACED_FROM;
        if !limited && !long && self.congestion.pacing_rate().is_none() {
            return;
        }
        let rate = self.pacing_rate().max(1);
        if rate == u64::MAX {
            return;
        }
        let time = |bytes: u64| Duration::from_nanos(bytes.saturating_mul(1_000_000_000) / rate);
        let segments = if limited { BURST_SEGMENTS_LIMITED } else { BURST_SEGMENTS };
        // What was not sent in time is kept up to a burst: a late timer costs nothing.
        // A controller that sets the pace means it: no more than what the timer's ticks need.
        let least = if self.congestion.pacing_rate().is_some() { TICKS } else { BURST_TIME };
        let credit = time(segments * u64::from(self.full_segment())).max(least);
        self.pace_at = self.pace_at.max(now - credit) + time(u64::from(len));
    }

    /// What may leave at once in so much time, if the connection is paced.
    pub fn paced_bytes(&self, time: Duration) -> Option<u64> {
        if self.pace_at == Instant::ZERO {
            return None;
        }
        let bytes = u128::from(self.pacing_rate()) * time.as_nanos() / 1_000_000_000;
        Some(u64::try_from(bytes).unwrap_or(u64::MAX))
    }

    /// When something that waits may leave, if only pacing holds it back.
    pub fn paced_until(&self, now: Instant) -> Option<Instant> {
        let waits = now < self.pace_at && (self.tail > self.nxt || self.board.has_lost());
        waits.then_some(self.pace_at)
    }
}
