//! Which segments are lost: by time and the order of arrivals (RACK, RFC 8985 6.2), or without SACK by duplicate
//! acknowledgments (RFC 6582).

use super::{Arrived, DUPLICATES, Detected, LOST, Phase, RETRANSMITTED, SACKED, Scoreboard, Sent};
use crate::Instant;
use core::time::Duration;

/// Segments of reordering that are told at most, as Linux's tcp_max_reordering.
const MAX_REORDERING: u64 = 300;
/// Recoveries for which a larger reordering window stays (RFC 8985 6.2, step 4).
const PERSIST: u8 = 16;

impl Scoreboard {
    /// NewReno's losses: the first segment after three duplicates (RFC 5681 3.2), and then the first after each partial
    /// acknowledgment (RFC 6582 3.2).
    pub fn detect_by_order(&mut self, advanced: bool) -> Detected {
        let open = matches!(self.phase, Phase::Open | Phase::Reduction);
        let lost = if open { self.duplicates >= DUPLICATES } else { self.phase == Phase::Recovery && advanced };
        let found = lost && self.sent.front().is_some_and(|front| !front.is(LOST | RETRANSMITTED));
        if found {
            self.mark_lost(0);
        }
        Detected { found, again: false, look_again: None }
    }

    /// How much later a segment may arrive than one sent after it (RFC 8985 6.2 step 4): not at all while no reordering
    /// was seen and three segments have arrived beyond a gap.
    pub fn reordering_window(&self, least: Option<Duration>, smoothed: Duration) -> Duration {
        let repairing = matches!(self.phase, Phase::Recovery | Phase::Timeout);
        if self.reordered == 0 && (repairing || self.sacked_segments >= DUPLICATES) {
            return Duration::ZERO;
        }
        // Without a sample as long as RFC 8985 7.2 without one.
        least.map_or(Duration::from_millis(10), |least| (least / 4 * u32::from(self.steps)).min(smoothed))
    }

    /// RFC 8985 6.2 step 4: a D-SACK says that something was sent again needlessly; the window grows, once in a round
    /// trip.
    pub fn on_needless(&mut self, ack: u64, nxt: u64) {
        let round = &mut self.repair().places.dsack_round;
        if *round == 0 || ack >= *round {
            *round = nxt;
            self.steps = self.steps.saturating_add(1);
            self.persist = PERSIST;
        }
    }

    /// Marks as lost what was sent before something that has arrived and had its time (RFC 8985 6.2 step 5).
    pub fn detect(&mut self, now: Instant, reorder: Duration) -> Detected {
        let mut detected = Detected::default();
        if self.sacked == 0 && self.phase == Phase::Open && self.retransmissions == 0 {
            return detected;
        }
        let patience = Duration::from_nanos(self.newest_nanos) + reorder;
        let mut scan_from = self.places().scan_from;
        let mut index = self.sent.partition_point(|sent| sent.seq < scan_from);
        while let Some(sent) = self.sent.get(index).copied() {
            if !sent.is(SACKED | LOST | RETRANSMITTED) {
                let overdue = sent.sent_at + patience;
                if (sent.sent_at, sent.end()) >= self.newest {
                    break;
                }
                if now < overdue {
                    detected.look_again = Some(overdue);
                    break;
                }
                self.mark_lost(index);
                detected.found = true;
            }
            scan_from = sent.end();
            index += 1;
        }
        self.repair().places.scan_from = scan_from;
        while let Some((at, position)) = self.repair.as_ref().and_then(|repair| repair.resent.front().copied()) {
            let index = self.sent.partition_point(|sent| sent.end() <= position);
            let current = self.sent.get(index).copied();
            let current = current.filter(|s| s.sent_at == at && s.is(RETRANSMITTED) && !s.is(SACKED | LOST));
            if let Some(sent) = current {
                let overdue = at + patience;
                if (at, sent.end()) >= self.newest {
                    break;
                }
                if now < overdue {
                    detected.look_again = Some(detected.look_again.map_or(overdue, |other| other.min(overdue)));
                    break;
                }
                self.mark_lost(index);
                detected.found = true;
                detected.again = true;
            }
            if let Some(repair) = &mut self.repair {
                repair.resent.pop_front();
            }
        }
        detected
    }

    /// RFC 8985 6.2 step 2.
    pub(super) fn note_arrival(&mut self, sent: &Sent, now: Instant, least: Duration, arrived: &mut Arrived) {
        let took = now.since(sent.sent_at);
        if sent.is(RETRANSMITTED) && took < least {
            // An earlier transmission arrived, not this one.
            return;
        }
        arrived.latest = arrived.latest.max(Some(sent.sent_at));
        self.newest_nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.newest = self.newest.max((sent.sent_at, sent.end()));
    }

    /// RFC 8985 6.2 step 3: something sent once arrived after what was sent later.
    pub(super) fn note_reordering(&mut self, seq: u64, highest: u64, mss: u32) {
        let segments = (highest - seq).div_ceil(u64::from(mss.max(1))).min(MAX_REORDERING);
        #[allow(clippy::cast_possible_truncation, reason = "at most MAX_REORDERING")]
        {
            self.reordering = self.reordering.max(segments as u16);
        }
        self.reordered = self.reordered.saturating_add(1);
    }
}
