//! What an acknowledgment does to the sender: what arrived, what is lost, whether a reduction was a mistake, and how
//! much may be in flight next.
//!
//! ```text
//!   on_ack ─▶ scoreboard (what arrived) ─▶ rtt ─▶ react ─▶ adjust_window
//!                                                  │
//!        Open ──ECE──▶ Reduction ──┐               ├ losses found: Recovery
//!         ▲ └──loss──▶ Recovery ◀──┘               ├ all acknowledged, or a mistake: Open
//!         └──timer───▶ Timeout                     └ F-RTO
//! ```
//!
//! The order of things is Linux's (`tcp_ack`), so that windows come out as its users know them.

use super::Context;
use super::congestion::{Acked, Cause, Congested, PathSample, Repair};
use super::connection::{Connection, NEVER};
use super::ecn;
use super::isn;
use super::recovery::{Arrived, Detected, Phase};
use super::segment::{MAX_SACK, Segment};
use crate::{Instant, TcpConfig};
use core::time::Duration;

/// Sending while the window is being reduced: proportional rate reduction (RFC 6937, with the bound that its revision
/// makes the only one: in slow start's way while nothing more is lost, else by what was delivered). In bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Reduction {
    /// The window before.
    prior: u32,
    delivered: u32,
    /// Sent since it began.
    pub out: u32,
    /// What may be in flight now.
    pub window: u32,
}

/// What one acknowledgment says, beside what arrived.
struct News {
    advanced: bool,
    /// An ACK that changes nothing, without SACK (RFC 5681 2).
    duplicate: bool,
    /// It tells of marks.
    marked: bool,
    /// D-SACK: something arrived twice.
    twice: bool,
    /// It answers an original transmission, because its timestamp is older than any repetition.
    of_original: bool,
}

impl Connection {
    /// How much may be in flight.
    pub fn allowance(&self) -> u64 {
        match self.board.phase() {
            Phase::Reduction | Phase::Recovery if self.delivery.is_none() => self.reduction.window.into(),
            _ => self.congestion.window(),
        }
    }

    /// Takes the acknowledgment of a segment that is acceptable. `seq` and `ack` are positions, `len` is SEG.LEN.
    pub fn on_ack(
        &mut self,
        cx: &Context<'_>,
        config: &TcpConfig,
        segment: &Segment<'_>,
        seq: u64,
        ack: u64,
        len: u64,
    ) {
        let now = cx.now;
        let full = self.full_segment();
        let window_changed = self.update_window(segment, seq, ack);
        let mut arrived = Arrived::default();
        let twice = self.sack && !segment.sack_blocks().is_empty() && self.take_sacks(segment, ack, now, &mut arrived);
        let advanced = ack > self.una;
        let acked = ack.saturating_sub(self.una);
        let in_flight_before = self.board.in_flight();
        let was_repairing = self.board.phase() == Phase::Recovery;
        if advanced {
            self.on_new_ack(ack, now, &mut arrived);
        }
        if self.board.is_empty() && !advanced && !twice {
            // Nothing was outstanding, so it says nothing, but for a D-SACK.
            return;
        }
        self.measure(segment, &arrived, advanced, now);
        self.delivered = self.delivered.wrapping_add(arrived.segments);
        let marked = self.ecn.on && ecn::is_marked(segment);
        if marked {
            self.delivered_marked = self.delivered_marked.wrapping_add(arrived.segments);
        }
        if self.ecn.exact && self.ecn.on && arrived.bytes > 0 {
            self.congestion.on_delivery(arrived.bytes, marked, self.una, self.nxt);
        }
        let duplicate = !self.sack && !advanced && len == 0 && !window_changed;
        let news = News { advanced, duplicate, marked, twice, of_original: self.answers_original(segment) };
        self.on_tail_probe_acked(now, ack, &news, arrived.sacked, window_changed || len > 0);
        let lost_before = self.board.lost_bytes();
        let mut detected = Detected::default();
        if advanced && !marked && !twice && !self.board.is_disordered() && self.board.phase() == Phase::Open {
            // The common case.
            self.reorder_at = NEVER;
            self.board.forget_first_retransmission();
        } else {
            detected = self.react(now, &news, &mut arrived);
        }
        if self.delivery.is_some() {
            let lost = self.board.lost_bytes().saturating_sub(lost_before);
            self.model_path(now, &arrived, in_flight_before, lost);
            self.expand_send_buffer(config);
            return;
        }
        if was_repairing && self.board.phase() == Phase::Open {
            // What is acknowledged by the end of a recovery counts for the window, as RFC 3465 2.1 counts it, however
            // long ago it arrived. (Linux counts the last arrival only, and stays below the law at high loss.)
            arrived.bytes = acked.max(arrived.bytes);
        }
        self.adjust_window(now, &news, &arrived, detected.found, full);
        self.expand_send_buffer(config);
    }

    /// Lets a controller that models the path decide.
    fn model_path(&mut self, now: Instant, arrived: &Arrived, in_flight_before: u64, lost: u64) {
        let Some(delivery) = &mut self.delivery else { return };
        let least = self.rtt.minimum().unwrap_or_default();
        let rate = delivery.on_delivered(now, arrived.bytes, arrived.latest, least);
        let in_flight = self.board.in_flight();
        let seen = PathSample {
            now,
            rate,
            bytes: arrived.bytes,
            lost,
            rtt: arrived.newest_rtt.or(arrived.sack_rtt),
            smoothed: self.rtt.smoothed(),
            in_flight_before,
            in_flight,
            repair: match self.board.phase() {
                Phase::Open | Phase::Reduction => Repair::None,
                Phase::Recovery => Repair::Recovery,
                Phase::Timeout => Repair::Timeout,
            },
            mss: self.full_segment(),
        };
        if self.congestion.on_path(&seen)
            && let Some(delivery) = &mut self.delivery
        {
            delivery.mark_limited(in_flight);
        }
    }

    /// Looks for losses when the time for something to arrive has passed.
    pub fn on_reordering_timeout(&mut self, now: Instant) {
        let detected = self.detect(now, false);
        if !detected.found || self.board.phase() == Phase::Timeout {
            return;
        }
        if self.board.phase() != Phase::Recovery {
            self.enter_recovery(now, false);
            // As if one segment had arrived: the first retransmission goes out, and the others with what comes.
            let full = self.full_segment();
            self.reduce(u64::from(full), false, full);
        }
    }

    /// The retransmission timer fired.
    pub fn enter_timeout(&mut self, now: Instant) {
        let phase = self.board.phase();
        let repairing = matches!(phase, Phase::Recovery | Phase::Timeout);
        // Once for each window of data; and once for a phase that a mistake had ended.
        let reduce = !repairing && phase != Phase::Reduction
            || self.board.recovery_point() <= self.una
            || phase == Phase::Timeout && self.timeouts == 0;
        let outstanding = self.nxt - self.una;
        self.board.on_timeout(self.nxt, now);
        if reduce {
            self.board.begin_undo(self.una, true);
            self.may_restore = true;
        }
        // RFC 5682 2.1 step 1 (and RFC 6298 5.5): not when a repair was under way, but for repeated timeouts.
        self.board.doubts_timeout = !repairing || self.timeouts > 0;
        let in_flight = self.board.in_flight();
        let (cause, mss) = (Cause::Timeout { reduce }, self.full_segment());
        self.congestion.on_congestion(&Congested { now, cause, outstanding, in_flight, mss });
        self.ecn.reduced = self.ecn.on;
        self.reorder_at = NEVER;
        self.pace_at = Instant::ZERO;
        self.tail_probe_due = false;
        self.tail_probe = None;
    }

    /// Takes SACK blocks. True if the first tells of something that came twice (RFC 2883 4).
    fn take_sacks(&mut self, segment: &Segment<'_>, ack: u64, now: Instant, arrived: &mut Arrived) -> bool {
        let full = self.full_segment();
        let mut blocks = [(0, 0); MAX_SACK];
        let mut count = 0;
        let mut twice = false;
        let all = segment.sack_blocks();
        for (nth, &(left, right)) in all.iter().enumerate() {
            let (left, right) = (self.send_position(left), self.send_position(right));
            if left >= right || right > self.nxt {
                // Reversed, or beyond what was sent.
                continue;
            }
            if nth == 0 {
                let inside = all.get(1).is_some_and(|&(outer_left, outer_right)| {
                    self.send_position(outer_left) <= left && right <= self.send_position(outer_right)
                });
                // Within the largest window below: older ones are nonsense.
                if (right <= ack || inside) && left + self.max_window.max(1) >= self.una {
                    twice = true;
                    let segments = u32::try_from((right - left).div_ceil(u64::from(full))).unwrap_or(u32::MAX);
                    self.board.explain(segments, right);
                    self.needless = self.needless.saturating_add(segments);
                    // More than was sent again: the network makes copies, and they say nothing about us (as Linux).
                    if self.needless <= self.retransmits {
                        self.board.on_needless(ack, self.nxt);
                    }
                }
            }
            if left >= self.una.max(ack) {
                blocks[count] = (left, right);
                count += 1;
            }
        }
        if count > 0 {
            let least = self.rtt.minimum().unwrap_or_default();
            self.board.on_sacks(&blocks[..count], now, full, least, arrived);
        }
        twice
    }

    fn on_new_ack(&mut self, ack: u64, now: Instant, arrived: &mut Arrived) {
        let full = self.full_segment();
        self.board.on_ack(ack, now, full, self.rtt.minimum().unwrap_or_default(), arrived);
        self.una = ack;
        self.stalled_since = now;
        self.stats.on_progress(now);
        self.on_path_progress(now);
        self.changed = true;
        self.soft_error = None;
        if self.options.more && !self.options.cork {
            // What MSG_MORE held back has waited long enough.
            self.cork_at = NEVER;
        }
        self.small_due = false;
        self.timeouts = 0;
        // RFC 6298 5.3.
        self.retransmit_at = NEVER;
    }

    /// Takes round-trip samples. The back-off ends with the first (RFC 6298 5.7, Karn).
    fn measure(&mut self, segment: &Segment<'_>, arrived: &Arrived, advanced: bool, now: Instant) {
        let newest = arrived.newest_rtt.or(arrived.sack_rtt);
        let oldest = arrived.oldest_rtt.or(arrived.sack_rtt);
        if let (Some(oldest), Some(newest)) = (oldest, newest) {
            self.rtt.sample(now, oldest, newest);
            self.backoff = 0;
        } else if advanced
            && self.timestamps
            && let Some(timestamps) = segment.timestamps.filter(|t| t.echo != 0)
        {
            // RFC 7323 4: timestamps measure what was retransmitted too, if only by the millisecond.
            let elapsed = isn::timestamp(now, self.timestamp_offset).wrapping_sub(timestamps.echo);
            if elapsed < 1 << 20 {
                // It was between one tick less and one more. What is known already is finer than that on a short path:
                // sampled as a whole millisecond, every recovery would make the path look many times longer.
                let about = Duration::from_millis(u64::from(elapsed));
                let tick = Duration::from_millis(1);
                let known =
                    self.rtt.has_sample() && (about.saturating_sub(tick)..=about + tick).contains(&self.rtt.smoothed());
                if !known {
                    let took = about.max(tick);
                    self.rtt.sample(now, took, took);
                }
                self.backoff = 0;
            }
        }
    }

    /// RFC 3522 3.2: the echo of a timestamp older than the first retransmission's is of the original. Both have the
    /// same millisecond on short paths; then it says nothing.
    fn answers_original(&self, segment: &Segment<'_>) -> bool {
        let Some(first_at) = self.board.undo().first_at else { return false };
        let Some(timestamps) = segment.timestamps.filter(|t| self.timestamps && t.echo != 0) else { return false };
        let first = isn::timestamp(first_at, self.timestamp_offset);
        timestamps.echo.wrapping_sub(first).cast_signed() < 0
    }

    /// RFC 8985 7.4: a probe that filled a hole at the end hides that there was a loss. Only a D-SACK says that there
    /// was none, or a duplicate ACK that says nothing else.
    fn on_tail_probe_acked(&mut self, now: Instant, ack: u64, news: &News, sacked: bool, other: bool) {
        self.tail_probe_due &= !self.board.is_empty();
        let Some(probe) = self.tail_probe else { return };
        let end = probe.end();
        if ack < end {
            return;
        }
        if !probe.is_repetition() || news.twice {
            self.tail_probe = None;
        } else if ack > end {
            self.tail_probe = None;
            if self.board.phase() == Phase::Open {
                self.congest(now, Cause::Loss);
                self.board.begin_undo(self.una, false);
            }
        } else if !news.advanced && !sacked && !other {
            self.tail_probe = None;
        }
    }

    /// The state machine of recovery, for acknowledgments that aren't plain.
    fn react(&mut self, now: Instant, news: &News, arrived: &mut Arrived) -> Detected {
        let full = self.full_segment();
        if news.marked {
            // Congestion is certain: nothing is undone.
            self.may_restore = false;
        }
        match self.board.phase() {
            Phase::Open => self.board.forget_first_retransmission(),
            // RFC 3168 6.1.2: until CWR has arrived.
            Phase::Reduction if self.una > self.board.recovery_point() => self.board.open(),
            Phase::Recovery if self.una >= self.board.recovery_point() => {
                if !self.sack {
                    self.board.forget_duplicates();
                }
                if self.try_undo_recovery(news) {
                    return Detected::default();
                }
            }
            _ => {}
        }
        match self.board.phase() {
            Phase::Recovery => {
                if news.duplicate {
                    self.board.on_duplicate(full, arrived);
                } else if news.advanced && self.board.undo().armed && news.of_original {
                    // What filled the hole had only been late. With retransmissions under way nothing more is sent for
                    // now; without, it was all a mistake.
                    if self.board.has_retransmissions() {
                        return Detected::default();
                    }
                    self.undo(true);
                    self.board.open();
                } else if self.is_explained() {
                    self.undo(false);
                    self.board.open();
                }
                let detected = self.detect(now, news.advanced);
                if self.board.phase() != Phase::Recovery { self.try_to_open(now, news, detected) } else { detected }
            }
            Phase::Timeout => {
                self.on_ack_after_timeout(news, arrived);
                let detected = self.detect(now, news.advanced);
                if self.board.phase() == Phase::Open || detected.again {
                    return self.try_to_open(now, news, detected);
                }
                detected
            }
            Phase::Open | Phase::Reduction => {
                if news.duplicate {
                    self.board.on_duplicate(full, arrived);
                }
                if self.is_explained() {
                    self.undo(false);
                    self.board.open();
                }
                let detected = self.detect(now, news.advanced);
                self.try_to_open(now, news, detected)
            }
        }
    }

    /// Recovery if something is lost; a reduction if there are marks; else on.
    fn try_to_open(&mut self, now: Instant, news: &News, detected: Detected) -> Detected {
        if self.board.has_lost() {
            self.enter_recovery(now, news.marked);
            return detected;
        }
        if !self.board.is_repairing() {
            self.board.forget_first_retransmission();
        }
        if news.marked && self.board.phase() == Phase::Open {
            // RFC 3168 6.1.2: once for each window of data.
            self.board.begin_undo(self.una, false);
            self.congest(now, Cause::Marks);
            self.board.enter(Phase::Reduction, self.nxt);
        }
        detected
    }

    fn detect(&mut self, now: Instant, advanced: bool) -> Detected {
        self.reorder_at = NEVER;
        if !self.sack {
            return self.board.detect_by_order(advanced);
        }
        let window = self.board.reordering_window(self.rtt.minimum(), self.rtt.smoothed());
        let detected = self.board.detect(now, window);
        self.reorder_at = detected.look_again.unwrap_or(NEVER);
        detected
    }

    fn enter_recovery(&mut self, now: Instant, marked: bool) {
        self.board.begin_undo(self.una, true);
        if self.board.phase() == Phase::Reduction {
            // The window has been reduced for this already.
            self.may_restore = false;
        } else {
            self.congest(now, Cause::Loss);
            self.may_restore = !marked;
        }
        self.board.enter(Phase::Recovery, self.nxt);
    }

    /// Tells the congestion control, and begins a proportional reduction from what the window was.
    fn congest(&mut self, now: Instant, cause: Cause) {
        let prior = narrow(self.allowance());
        self.reduction = Reduction { prior, delivered: 0, out: 0, window: prior };
        let congested = Congested {
            now,
            cause,
            outstanding: self.nxt - self.una,
            in_flight: self.board.in_flight(),
            mss: self.full_segment(),
        };
        self.congestion.on_congestion(&congested);
        self.ecn.reduced = self.ecn.on;
        self.tail_probe_due = false;
        self.tail_probe = None;
    }

    /// RFC 5682 3.1, with SACK and without, and Eifel.
    fn on_ack_after_timeout(&mut self, news: &News, arrived: &mut Arrived) {
        let recovered = self.una >= self.board.recovery_point();
        self.board.probes_with_new = false;
        if news.advanced && (self.is_explained() || self.board.undo().armed && news.of_original) {
            self.undo_timeout(self.sack);
            return;
        }
        if self.board.doubts_timeout {
            // Step 3.b: something arrived that was sent once, before the timeout.
            // Without SACK an ACK that covers a retransmission too says nothing about the rest.
            if arrived.original && (self.sack || !arrived.retransmission) {
                self.undo_timeout(true);
                return;
            }
            if self.nxt > self.board.recovery_point() {
                // 3.a: the new data arrived, the old didn't.
                if arrived.sacked || news.duplicate {
                    self.board.doubts_timeout = false;
                }
            } else if news.advanced && !recovered {
                // 2.b: new data goes before retransmissions, if there is any that may be sent.
                self.board.enter(Phase::Timeout, self.nxt);
                let unsent = self.tail > self.nxt && self.send_edge > self.nxt;
                self.board.probes_with_new = unsent;
                self.board.doubts_timeout = unsent;
                return;
            }
        }
        if recovered {
            self.try_undo_recovery(news);
            return;
        }
        if !self.sack {
            if news.duplicate && self.nxt > self.board.recovery_point() {
                self.board.on_duplicate(self.full_segment(), arrived);
            } else if news.advanced {
                self.board.forget_duplicates();
            }
        }
    }

    /// Every retransmission arrived twice.
    fn is_explained(&self) -> bool {
        let undo = self.board.undo();
        undo.armed && undo.unexplained == Some(0)
    }

    /// Everything sent before the phase is acknowledged: over, one way or the other. True if the state is kept.
    fn try_undo_recovery(&mut self, news: &News) -> bool {
        if self.is_explained() || self.board.undo().armed && news.of_original {
            self.undo(false);
        }
        if !self.sack && self.una == self.board.recovery_point() && !self.board.is_empty() {
            // RFC 6582 4: without SACK, duplicates of what was retransmitted needlessly look like new losses until
            // something above is acknowledged.
            return true;
        }
        self.board.open();
        false
    }

    fn undo_timeout(&mut self, open: bool) {
        self.undo(true);
        self.timeouts = 0;
        if open {
            self.board.open();
        }
    }

    /// RFC 4015: back to what was before.
    fn undo(&mut self, unmark: bool) {
        if unmark {
            self.board.unmark();
        }
        if core::mem::take(&mut self.may_restore) {
            self.congestion.undo();
            self.ecn.reduced = false;
        }
        self.board.end_undo();
    }

    /// What may be in flight from here on.
    fn adjust_window(&mut self, now: Instant, news: &News, arrived: &Arrived, newly_lost: bool, full: u32) {
        match self.board.phase() {
            Phase::Reduction | Phase::Recovery => self.reduce(arrived.bytes, news.advanced && !newly_lost, full),
            Phase::Open | Phase::Timeout => {
                // With much reordering, what is SACKed is progress too.
                let progress = news.advanced || arrived.sacked && self.board.reordering > 3;
                if progress && arrived.bytes > 0 {
                    let acked = Acked {
                        now,
                        bytes: arrived.bytes,
                        rtt: self.rtt.smoothed(),
                        sample: arrived.newest_rtt.or(arrived.sack_rtt),
                        una: self.una,
                        nxt: self.nxt,
                        limited: self.is_window_limited(),
                        mss: full,
                    };
                    self.congestion.on_ack(&acked);
                }
            }
        }
    }

    /// RFC 6937 3.1, by bytes. `good`: the acknowledgment moves on and shows no further loss.
    fn reduce(&mut self, delivered: u64, good: bool, full: u32) {
        let r = &mut self.reduction;
        let (in_flight, target, full) = (self.board.in_flight(), self.congestion.threshold(), u64::from(full));
        if delivered == 0 {
            return;
        }
        r.delivered = r.delivered.saturating_add(narrow(delivered));
        let (prior, so_far, out) = (u64::from(r.prior), u64::from(r.delivered), u64::from(r.out));
        let mut allowance = if in_flight > target {
            // In whole segments, rounded up: a part can't be sent.
            let due = target.min(prior).saturating_mul(so_far).div_ceil(prior.max(1));
            due.div_ceil(full).saturating_mul(full).saturating_sub(out)
        } else {
            let mut allowance = so_far.saturating_sub(out).max(delivered);
            if good {
                allowance += full;
            }
            allowance.min(target - in_flight)
        };
        if out == 0 {
            // The first retransmission goes out whatever is in flight.
            allowance = allowance.max(full);
        }
        r.window = narrow(in_flight + allowance);
    }

    /// RFC 9293 3.10.7.4, fifth: SND.WND, SND.WL1, SND.WL2. True if the edge or the size has changed.
    fn update_window(&mut self, segment: &Segment<'_>, seq: u64, ack: u64) -> bool {
        if seq < self.window_seq || seq == self.window_seq && ack < self.window_ack || ack < self.una {
            return false;
        }
        let window = u64::from(segment.window) << self.send_scale;
        let changed = self.send_edge != ack + window;
        self.send_edge = ack + window;
        self.window_seq = seq;
        self.window_ack = ack;
        self.max_window = self.max_window.max(window);
        if window > 0 {
            self.probe_due = false;
        }
        changed
    }
}

/// Windows are less than 2^30 (RFC 7323 2.3).
fn narrow(bytes: u64) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}
