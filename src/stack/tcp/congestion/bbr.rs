//! BBR, the first version, as draft-cardwell-iccrg-bbr-congestion-control-00 has it, with Linux's allowance for
//! acknowledgments that come in bunches. The window and the pace follow from two measurements, the largest rate of
//! delivery and the shortest round trip of late; a loss by itself changes neither.
//!
//! ```text
//!   Startup ──rate grows no more──▶ Drain ──queue is empty──▶ ProbeBw ◀──┐
//!      any ──shortest round trip is 10 s old──▶ ProbeRtt ──200 ms────────┘ (or back to Startup)
//! ```

use super::{Cause, Congested, CongestionControl, PathSample, Repair, initial_window};
use crate::Instant;
use core::time::Duration;

/// Gains in thousandths. 2/ln 2 doubles the rate each round trip; its inverse drains what that put into the queue.
const UNIT: u64 = 1000;
const HIGH_GAIN: u64 = 2885;
const DRAIN_GAIN: u64 = 347;
const WINDOW_GAIN: u64 = 2000;
/// A little more than the rate for a round trip, as much less, then six at the rate.
const CYCLE: [u64; 8] = [1250, 750, UNIT, UNIT, UNIT, UNIT, UNIT, UNIT];
/// Paced a hundredth below the measured rate, so that queues drain.
const PACE_MARGIN: u64 = 990;

/// Round trips for which the largest rate counts.
const RATE_ROUNDS: usize = 10;
/// How long the shortest round trip counts, and how long the window is small to measure it anew.
const RTT_LIFETIME: Duration = Duration::from_secs(10);
const PROBE_TIME: Duration = Duration::from_millis(200);
/// Segments in flight that keep acknowledgments coming.
const LEAST_SEGMENTS: u64 = 4;
/// The pipe is full when three round trips in a row brought less than a quarter more.
const FULL_ROUNDS: u8 = 3;
/// What leaves at once: a millisecond at the rate, no more than so many bytes.
const QUANTUM: Duration = Duration::from_millis(1);
const MOST_QUANTUM: u64 = 65_536;
/// Bunches of acknowledgments are looked at over so many round trips (twice that is remembered), in so many bytes, and
/// make up for so much time at most.
const BUNCH_ROUNDS: u8 = 5;
const BUNCH_BYTES: u64 = 1 << 30;
const BUNCH_TIME: Duration = Duration::from_millis(100);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Startup,
    Drain,
    ProbeBw,
    ProbeRtt,
}

/// The largest rate of the last rounds. It only ages when a new sample comes: a program's pause proves nothing.
#[derive(Clone, Copy, Debug, Default)]
struct LargestRate {
    /// Round and rate.
    samples: [(u64, u64); RATE_ROUNDS],
    best: u64,
}

impl LargestRate {
    fn add(&mut self, round: u64, rate: u64) {
        let slot = &mut self.samples[(round % RATE_ROUNDS as u64) as usize];
        *slot = if slot.0 == round { (round, slot.1.max(rate)) } else { (round, rate) };
        let recent = |sample: &&(u64, u64)| sample.0 + RATE_ROUNDS as u64 > round;
        self.best = self.samples.iter().filter(recent).map(|sample| sample.1).max().unwrap_or(0);
    }
}

/// How much more is acknowledged at once than the rate explains.
#[derive(Clone, Copy, Debug, Default)]
struct Bunches {
    largest: [u64; 2],
    which: usize,
    rounds: u8,
    since: Instant,
    acked: u64,
}

/// Model-based congestion control.
#[derive(Clone, Debug)]
pub struct Bbr {
    window: u64,
    /// What the window was before the repair or the probe that goes on.
    prior: u64,
    /// Bytes per second; None before the first round trip.
    pace: Option<u64>,
    mode: Mode,
    rate: LargestRate,
    /// Number of the round trip, and the count of delivered bytes at which it ends.
    round: u64,
    round_end: u64,
    shortest: Option<Duration>,
    shortest_at: Instant,
    full_rate: u64,
    full_rounds: u8,
    is_full: bool,
    /// Place in [`CYCLE`], and since when.
    phase: usize,
    phase_at: Instant,
    /// When the window may grow again, and whether a round trip has passed with it small.
    probe_until: Option<Instant>,
    probe_round: bool,
    /// For one round trip from the start of a repair: no more is sent than arrives.
    conserving: bool,
    repair: Repair,
    /// The first after a pause.
    restarted: bool,
    bunches: Bunches,
}

impl Bbr {
    #[must_use]
    pub fn new(mss: u32) -> Self {
        Self {
            window: initial_window(mss),
            prior: 0,
            pace: None,
            mode: Mode::Startup,
            rate: LargestRate::default(),
            round: 0,
            round_end: 0,
            shortest: None,
            shortest_at: Instant::ZERO,
            full_rate: 0,
            full_rounds: 0,
            is_full: false,
            phase: 0,
            phase_at: Instant::ZERO,
            probe_until: None,
            probe_round: false,
            conserving: false,
            repair: Repair::None,
            restarted: false,
            bunches: Bunches::default(),
        }
    }

    const fn pace_gain(&self) -> u64 {
        match self.mode {
            Mode::Startup => HIGH_GAIN,
            Mode::Drain => DRAIN_GAIN,
            Mode::ProbeBw => CYCLE[self.phase],
            Mode::ProbeRtt => UNIT,
        }
    }

    const fn window_gain(&self) -> u64 {
        match self.mode {
            Mode::Startup | Mode::Drain => HIGH_GAIN,
            Mode::ProbeBw => WINDOW_GAIN,
            Mode::ProbeRtt => UNIT,
        }
    }

    /// What fills the path `gain` times, and what the sender and the receiver hold back.
    fn target(&self, gain: u64, mss: u64) -> u64 {
        let Some(shortest) = self.shortest.filter(|_| self.rate.best > 0) else { return 10 * mss };
        let product = bytes_in(self.rate.best, shortest);
        let quantum = bytes_in(self.pace.unwrap_or(self.rate.best), QUANTUM).min(MOST_QUANTUM).max(2 * mss);
        let probing = if self.mode == Mode::ProbeBw && self.phase == 0 { 2 * mss } else { 0 };
        scaled(product, gain) + 3 * quantum + probing
    }

    fn save_window(&mut self) {
        let plain = self.repair == Repair::None && self.mode != Mode::ProbeRtt;
        self.prior = if plain { self.window } else { self.prior.max(self.window) };
    }

    /// Returns whether a round trip begins.
    fn update_rate(&mut self, seen: &PathSample) -> bool {
        let Some(prior) = seen.rate.prior else { return false };
        let begins = prior >= self.round_end;
        if begins {
            self.round_end = seen.rate.delivered;
            self.round += 1;
            self.conserving = false;
        }
        if let Some(rate) = seen.rate.bytes_per_second
            && (!seen.rate.limited || rate >= self.rate.best)
        {
            self.rate.add(self.round, rate);
        }
        begins
    }

    fn update_bunches(&mut self, seen: &PathSample, begins: bool) {
        let b = &mut self.bunches;
        if begins {
            b.rounds += 1;
            if b.rounds >= BUNCH_ROUNDS {
                b.rounds = 0;
                b.which ^= 1;
                b.largest[b.which] = 0;
            }
        }
        let mut expected = bytes_in(self.rate.best, seen.now.since(b.since));
        if b.acked <= expected || b.acked + seen.bytes >= BUNCH_BYTES {
            b.acked = 0;
            b.since = seen.now;
            expected = 0;
        }
        b.acked += seen.bytes;
        let more = b.acked.saturating_sub(expected).min(self.window);
        b.largest[b.which] = b.largest[b.which].max(more);
    }

    fn bunched(&self) -> u64 {
        if !self.is_full {
            return 0;
        }
        self.bunches.largest[0].max(self.bunches.largest[1]).min(bytes_in(self.rate.best, BUNCH_TIME))
    }

    fn update_cycle(&mut self, seen: &PathSample) {
        let mss = u64::from(seen.mss);
        if self.mode != Mode::ProbeBw {
            return;
        }
        let whole = seen.now.since(self.phase_at) > self.shortest.unwrap_or_default();
        let over = match CYCLE[self.phase] {
            UNIT => whole,
            // More must have been in flight, or it proves nothing; unless something was lost for it.
            gain if gain > UNIT => whole && (seen.lost > 0 || seen.in_flight_before >= self.target(gain, mss)),
            _ => whole || seen.in_flight_before <= self.target(UNIT, mss),
        };
        if over {
            self.phase = (self.phase + 1) % CYCLE.len();
            self.phase_at = seen.now;
        }
    }

    fn enter_probe_bw(&mut self, now: Instant) {
        self.mode = Mode::ProbeBw;
        // Not all flows at once, and never where the queue would have to be drained first.
        self.phase = 2 + (now.as_nanos() >> 16) as usize % (CYCLE.len() - 2);
        self.phase_at = now;
    }

    fn check_full(&mut self, seen: &PathSample, begins: bool) {
        if self.is_full || !begins || seen.rate.limited {
            return;
        }
        if self.rate.best >= self.full_rate / 4 * 5 {
            self.full_rate = self.rate.best;
            self.full_rounds = 0;
            return;
        }
        self.full_rounds += 1;
        self.is_full = self.full_rounds >= FULL_ROUNDS;
    }

    fn check_drain(&mut self, seen: &PathSample) {
        if self.mode == Mode::Startup && self.is_full {
            self.mode = Mode::Drain;
        }
        if self.mode == Mode::Drain && seen.in_flight <= self.target(UNIT, seen.mss.into()) {
            self.enter_probe_bw(seen.now);
        }
    }

    fn update_shortest(&mut self, seen: &PathSample, begins: bool) {
        let expired = seen.now.since(self.shortest_at) > RTT_LIFETIME;
        if let Some(rtt) = seen.rtt
            && (expired || self.shortest.is_none_or(|shortest| rtt <= shortest))
        {
            self.shortest = Some(rtt);
            self.shortest_at = seen.now;
        }
        if expired && !self.restarted && self.mode != Mode::ProbeRtt {
            self.save_window();
            self.mode = Mode::ProbeRtt;
            self.probe_until = None;
        }
        if self.mode == Mode::ProbeRtt {
            match self.probe_until {
                None if seen.in_flight <= LEAST_SEGMENTS * u64::from(seen.mss) => {
                    self.probe_until = Some(seen.now + PROBE_TIME);
                    self.probe_round = false;
                    self.round_end = seen.rate.delivered;
                }
                Some(until) => {
                    self.probe_round |= begins;
                    if self.probe_round && seen.now >= until {
                        self.shortest_at = seen.now;
                        self.window = self.window.max(self.prior);
                        if self.is_full { self.enter_probe_bw(seen.now) } else { self.mode = Mode::Startup }
                    }
                }
                None => {}
            }
        }
        if seen.bytes > 0 {
            self.restarted = false;
        }
    }

    fn update_pace(&mut self, seen: &PathSample) {
        if self.rate.best == 0 {
            // Before the first sample: the window in a round trip.
            if self.pace.is_none() && !seen.smoothed.is_zero() {
                self.pace = Some(scaled(per_second(self.window, seen.smoothed), HIGH_GAIN));
            }
            return;
        }
        let pace = scaled(scaled(self.rate.best, self.pace_gain()), PACE_MARGIN).max(1);
        if self.is_full || self.pace.is_none_or(|slower| pace > slower) {
            self.pace = Some(pace);
        }
    }

    fn update_window(&mut self, seen: &PathSample) {
        let mss = u64::from(seen.mss);
        if seen.bytes > 0 {
            let before = core::mem::replace(&mut self.repair, seen.repair);
            if seen.lost > 0 {
                self.window = self.window.saturating_sub(seen.lost).max(mss);
            }
            if seen.repair == Repair::Recovery && before != Repair::Recovery {
                self.conserving = true;
                self.round_end = seen.rate.delivered;
                self.window = seen.in_flight + seen.bytes;
            } else if seen.repair == Repair::None && before != Repair::None {
                self.window = self.window.max(self.prior);
                self.conserving = false;
            }
            if self.conserving {
                self.window = self.window.max(seen.in_flight + seen.bytes);
            } else {
                let target = self.target(self.window_gain(), mss) + self.bunched();
                if self.is_full {
                    self.window = (self.window + seen.bytes).min(target);
                } else if self.window < target || seen.rate.delivered < initial_window(seen.mss) {
                    self.window += seen.bytes;
                }
                self.window = self.window.max(LEAST_SEGMENTS * mss);
            }
        }
        if self.mode == Mode::ProbeRtt {
            self.window = self.window.min(LEAST_SEGMENTS * mss);
        }
    }
}

impl CongestionControl for Bbr {
    fn window(&self) -> u64 {
        self.window
    }

    fn threshold(&self) -> u64 {
        if self.prior == 0 { u64::MAX } else { self.prior }
    }

    fn set(&mut self, window: u64, _: u64) {
        self.window = window;
    }

    fn on_ack(&mut self, _: &super::Acked) {}

    fn on_congestion(&mut self, congested: &Congested) {
        self.save_window();
        if matches!(congested.cause, Cause::Timeout { .. }) {
            self.repair = Repair::Timeout;
            self.full_rate = 0;
            self.window = congested.in_flight + u64::from(congested.mss);
        }
    }

    fn undo(&mut self) {
        // The rate may not have been full after all.
        self.full_rate = 0;
        self.full_rounds = 0;
        self.window = self.window.max(self.prior);
    }

    fn pacing_rate(&self) -> Option<u64> {
        self.pace
    }

    fn models_path(&self) -> bool {
        true
    }

    fn on_path(&mut self, seen: &PathSample) -> bool {
        let begins = self.update_rate(seen);
        self.update_bunches(seen, begins);
        self.update_cycle(seen);
        self.check_full(seen, begins);
        self.check_drain(seen);
        self.update_shortest(seen, begins);
        self.update_pace(seen);
        self.update_window(seen);
        self.mode == Mode::ProbeRtt
    }

    fn on_restart(&mut self, now: Instant) {
        self.restarted = true;
        self.bunches.since = now;
        self.bunches.acked = 0;
        if self.mode == Mode::ProbeBw && self.rate.best > 0 {
            self.pace = Some(scaled(self.rate.best, PACE_MARGIN).max(1));
        }
    }
}

fn scaled(bytes: u64, gain: u64) -> u64 {
    bytes.saturating_mul(gain) / UNIT
}

/// Bytes in a time at a rate per second.
fn bytes_in(rate: u64, time: Duration) -> u64 {
    u64::try_from(u128::from(rate) * time.as_nanos() / 1_000_000_000).unwrap_or(u64::MAX)
}

fn per_second(bytes: u64, time: Duration) -> u64 {
    u64::try_from(u128::from(bytes) * 1_000_000_000 / time.as_nanos().max(1)).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::super::Rate;
    use super::*;

    const MSS: u32 = 1000;
    const RTT: Duration = Duration::from_millis(10);

    /// A path of 10 MB/s and 10 ms on which one acknowledgment comes for each round trip's worth.
    struct Path {
        bbr: Bbr,
        now: Instant,
        delivered: u64,
        rate: u64,
    }

    impl Path {
        fn new() -> Self {
            let now = Instant::from_millis(1000);
            Self { bbr: Bbr::new(MSS), now, delivered: 0, rate: 10_000_000 }
        }

        /// One round trip in ten acknowledgments; `lost` bytes of it in the first.
        fn round(&mut self, lost: u64, repair: Repair, rtt: Duration) {
            // A window in a round trip, if the path has that much.
            let window = self.bbr.window();
            let most = bytes_in(self.rate, rtt);
            let prior = self.delivered;
            let moved = window.min(most);
            for part in 0..10 {
                self.now = self.now + rtt / 10;
                self.delivered += moved / 10;
                let rate = Rate {
                    delivered: self.delivered,
                    prior: Some(prior),
                    bytes_per_second: Some(per_second(moved, rtt)),
                    limited: false,
                };
                self.bbr.on_path(&PathSample {
                    now: self.now,
                    rate,
                    bytes: moved / 10,
                    lost: if part == 0 { lost } else { 0 },
                    rtt: Some(rtt),
                    smoothed: rtt,
                    in_flight_before: window,
                    in_flight: moved.min(window),
                    repair,
                    mss: MSS,
                });
            }
        }

        fn rounds(&mut self, count: usize) {
            for _ in 0..count {
                self.round(0, Repair::None, RTT);
            }
        }
    }

    #[test]
    fn finds_the_rate_and_holds_two_products() {
        let mut path = Path::new();
        path.rounds(40);
        let bbr = &path.bbr;
        assert_eq!((bbr.mode, bbr.rate.best), (Mode::ProbeBw, 10_000_000));
        let product = 100_000;
        let extra = 3 * 9_900 * 5 / 4 + 2 * u64::from(MSS) + bbr.bunched();
        assert!((2 * product..=2 * product + extra).contains(&bbr.window()), "{}", bbr.window());
        let pace = bbr.pacing_rate().unwrap();
        assert!((7_400_000..=12_400_000).contains(&pace), "{pace}");
    }

    #[test]
    fn one_loss_in_each_round_trip_changes_little() {
        let mut path = Path::new();
        path.rounds(40);
        let before = path.bbr.window();
        for _ in 0..20 {
            path.bbr.on_congestion(&Congested {
                now: path.now,
                cause: Cause::Loss,
                outstanding: before,
                in_flight: before,
                mss: MSS,
            });
            path.round(u64::from(MSS), Repair::Recovery, RTT);
            path.round(0, Repair::None, RTT);
        }
        assert!(path.bbr.window() >= before * 9 / 10, "{} of {before}", path.bbr.window());
        assert_eq!(path.bbr.rate.best, 10_000_000);
    }

    #[test]
    fn follows_a_path_that_became_slower() {
        let mut path = Path::new();
        path.rounds(40);
        path.rate = 2_000_000;
        path.rounds(20);
        assert_eq!(path.bbr.rate.best, 2_000_000);
        assert!(path.bbr.window() < 100_000, "{}", path.bbr.window());
    }

    #[test]
    fn the_shortest_round_trip_is_measured_anew() {
        let mut path = Path::new();
        path.rounds(40);
        let before = path.bbr.window();
        // A queue that stays: eleven seconds of it.
        for _ in 0..900 {
            path.round(0, Repair::None, RTT * 6 / 5);
        }
        let mut small = 0;
        for _ in 0..60 {
            path.round(0, Repair::None, RTT * 6 / 5);
            small += usize::from(path.bbr.mode == Mode::ProbeRtt);
        }
        assert!(path.bbr.shortest > Some(RTT), "{:?}", path.bbr.shortest);
        assert!(path.bbr.mode == Mode::ProbeBw && path.bbr.window() >= before * 9 / 10, "{small}: {:?}", path.bbr);
    }

    #[test]
    fn a_timeout_begins_again_and_a_mistake_is_forgotten() {
        let mut path = Path::new();
        path.rounds(40);
        let before = path.bbr.window();
        let cause = Cause::Timeout { reduce: true };
        let congested = Congested { now: path.now, cause, outstanding: before, in_flight: 0, mss: MSS };
        path.bbr.on_congestion(&congested);
        assert_eq!((path.bbr.window(), path.bbr.threshold()), (1000, before));
        path.bbr.undo();
        assert_eq!(path.bbr.window(), before);
    }
}
