//! What is in flight, what arrived and what was lost: the sender's memory of its segments and the rules of recovery.
//!
//! A record for each segment sent and not yet acknowledged, oldest first and without gaps, with the time it left. That
//! is all that SACK (RFC 6675), NewReno (RFC 6582) and time-based detection (RFC 8985) need.
//!
//! ```text
//!   sent ──▶ in flight ──ACK──▶ gone
//!              │  ▲  └──SACK──▶ SACKED ──ACK──▶ gone
//!         lost │  │ retransmitted
//!              ▼  │
//!             LOST
//! ```

use crate::Instant;
use alloc::collections::VecDeque;
use core::time::Duration;

/// The peer has it, but something before it is missing.
const SACKED: u8 = 1;
/// Taken for lost and not sent again yet.
const LOST: u8 = 2;
/// Sent more than once: its acknowledgment says nothing about the round-trip time (Karn).
const RETRANSMITTED: u8 = 4;

/// RFC 5681 3.2.
const DUPLICATES: u32 = 3;

/// Records above which the memory of a quiet connection is given back.
const KEEP_RECORDS: usize = 4;

/// A segment that is not acknowledged yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sent {
    /// First position; SYN and FIN count as one each.
    pub seq: u64,
    pub sent_at: Instant,
    pub len: u32,
    flags: u8,
}

impl Sent {
    pub fn end(&self) -> u64 {
        self.seq + u64::from(self.len)
    }
}

/// What the sender is doing about losses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Open,
    /// Found by acknowledgments; over when everything sent until then is acknowledged.
    Recovery,
    /// Found by the retransmission timer; likewise.
    Timeout,
}

/// What an acknowledgment delivered.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Delivered {
    /// Bytes cumulatively acknowledged.
    pub bytes: u64,
    /// From the segment sent last among those sent once.
    pub rtt: Option<Duration>,
}

/// What [`Scoreboard::detect`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Detected {
    /// Something is newly lost.
    pub found: bool,
    /// When something else will be, if nothing arrives.
    pub look_again: Option<Instant>,
}

#[derive(Debug)]
pub(super) struct Scoreboard {
    sent: VecDeque<Sent>,
    /// Bytes marked SACKED and LOST.
    sacked: u64,
    lost: u64,
    /// Without SACK: bytes that duplicate ACKs say have arrived.
    duplicated: u64,
    duplicates: u32,
    phase: Phase,
    /// End of what was sent when the phase began.
    recovery_point: u64,
    /// No record before this position is LOST.
    lost_from: u64,
    /// Every record before this position that was sent once is marked.
    marked_below: u64,
    /// In-flight records that were sent more than once.
    retransmissions: usize,
    /// The segment sent last among those that have arrived: when, its end, and how long it took there and back
    /// (RACK.xmit_ts, RACK.end_seq and RACK.rtt of RFC 8985).
    newest: (Instant, u64),
    newest_rtt: Duration,
    /// The first retransmission of a recovery doesn't wait for the window (RFC 6675 5, step 4.3).
    urgent: bool,
}

impl Scoreboard {
    pub const fn new() -> Self {
        Self {
            sent: VecDeque::new(),
            sacked: 0,
            lost: 0,
            duplicated: 0,
            duplicates: 0,
            phase: Phase::Open,
            recovery_point: 0,
            lost_from: 0,
            marked_below: 0,
            retransmissions: 0,
            newest: (Instant::ZERO, 0),
            newest_rtt: Duration::ZERO,
            urgent: false,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.sent.is_empty()
    }

    pub const fn phase(&self) -> Phase {
        self.phase
    }

    pub const fn is_urgent(&self) -> bool {
        self.urgent
    }

    /// Bytes that are in the network as far as we know ("pipe" of RFC 6675).
    pub fn in_flight(&self) -> u64 {
        let (Some(first), Some(last)) = (self.sent.front(), self.sent.back()) else { return 0 };
        (last.end() - first.seq).saturating_sub(self.sacked + self.lost + self.duplicated)
    }

    /// Records a segment of new data.
    pub fn push(&mut self, seq: u64, len: u32, now: Instant) {
        self.sent.push_back(Sent { seq, sent_at: now, len, flags: 0 });
    }

    /// Takes a cumulative acknowledgment up to `ack`, which is beyond what was acknowledged before.
    /// `least` is the shortest round trip ever seen.
    pub fn on_ack(&mut self, ack: u64, now: Instant, mss: u32, least: Duration) -> Delivered {
        let mut delivered = Delivered::default();
        while let Some(front) = self.sent.front_mut() {
            if front.seq >= ack {
                break;
            }
            if front.end() > ack {
                let cut = ack - front.seq;
                front.seq = ack;
                front.len -= cut as u32;
                delivered.bytes += cut;
                match front.flags & (SACKED | LOST) {
                    SACKED => self.sacked -= cut,
                    LOST => self.lost -= cut,
                    _ => {}
                }
                break;
            }
            let front = *front;
            self.sent.pop_front();
            delivered.bytes += u64::from(front.len);
            self.forget(&front);
            if front.flags & SACKED == 0 {
                self.note_arrival(&front, now, least, &mut delivered.rtt);
            }
        }
        if self.phase == Phase::Open {
            self.duplicated = 0;
            self.duplicates = 0;
        } else {
            // RFC 6582 3.2 step 3: deflate by what was acknowledged, less the segment that will replace it.
            self.duplicated = self.duplicated.saturating_sub(delivered.bytes.saturating_sub(u64::from(mss)));
        }
        delivered
    }

    /// Ends recovery when `una` has passed its point. True if it ended now.
    pub fn try_recover(&mut self, una: u64) -> bool {
        if self.phase == Phase::Open || una < self.recovery_point {
            return false;
        }
        self.phase = Phase::Open;
        self.duplicated = 0;
        self.duplicates = 0;
        self.urgent = false;
        true
    }

    /// Takes a SACK block, already checked to lie within what is outstanding. Returns a round-trip sample if it has one.
    pub fn on_sack(&mut self, left: u64, right: u64, now: Instant, least: Duration) -> Option<Duration> {
        let mut rtt = None;
        let first = self.sent.partition_point(|sent| sent.seq < left);
        for index in first..self.sent.len() {
            let sent = self.sent[index];
            // Parts of segments don't count: a peer that reports crumbs gets no work for it (CVE-2019-11477 and kin).
            if sent.end() > right {
                break;
            }
            if sent.flags & SACKED == 0 {
                self.forget(&sent);
                self.sent[index].flags = sent.flags & !LOST | SACKED;
                self.sacked += u64::from(sent.len);
                self.note_arrival(&sent, now, least, &mut rtt);
            }
        }
        rtt
    }

    /// Without SACK: an ACK that acknowledged nothing new (RFC 5681 2). Only data in flight makes it count.
    pub fn on_duplicate(&mut self, mss: u32) {
        if self.sent.is_empty() || self.phase == Phase::Timeout {
            return;
        }
        self.duplicates = self.duplicates.saturating_add(1);
        // RFC 5681 3.2 step 4 bounds nothing, but a peer can make up any number of duplicates.
        let outstanding = self.sent.back().map_or(0, Sent::end) - self.sent[0].seq;
        self.duplicated = (self.duplicated + u64::from(mss)).min(outstanding.saturating_sub(u64::from(mss)));
        if self.duplicates == DUPLICATES && self.phase == Phase::Open {
            self.mark_lost(0);
        }
    }

    /// NewReno: an ACK inside recovery that doesn't end it says that the next segment is missing too (RFC 6582 3.2).
    pub fn on_partial_ack(&mut self) {
        if let Some(front) = self.sent.front()
            && front.flags & (LOST | RETRANSMITTED) == 0
        {
            self.mark_lost(0);
            self.urgent = true;
        }
    }

    /// Marks what SACKs and the order of arrivals show to be lost. `reorder` is how much later a segment may arrive
    /// than one sent after it.
    pub fn detect(&mut self, mss: u32, now: Instant, reorder: Duration) -> Detected {
        let mut detected = Detected { found: false, look_again: None };
        if self.sacked == 0 && self.phase == Phase::Open {
            return detected;
        }
        let (mut above, mut count) = (0, 0);
        for index in (0..self.sent.len()).rev() {
            let sent = self.sent[index];
            if sent.seq < self.marked_below && self.retransmissions == 0 {
                break;
            }
            if sent.flags & SACKED != 0 {
                above += u64::from(sent.len);
                count += 1;
            }
            if sent.flags & (SACKED | LOST) != 0 {
                continue;
            }
            // RFC 6675 IsLost(): three segments, or more than two segments' bytes, arrived beyond it.
            let passed = count >= DUPLICATES || above > u64::from(2 * mss);
            if passed {
                self.marked_below = self.marked_below.max(sent.end());
            }
            let mut lost = passed && sent.flags & RETRANSMITTED == 0;
            // RFC 8985 6.2 step 5: something sent after it has arrived, and it had its time. The only rule for what was
            // sent again already.
            if !lost && (sent.sent_at, sent.end()) < self.newest {
                let overdue = sent.sent_at + self.newest_rtt + reorder;
                lost = now >= overdue;
                if !lost {
                    detected.look_again = Some(detected.look_again.map_or(overdue, |at: Instant| at.min(overdue)));
                }
            }
            if lost {
                self.mark_lost(index);
                detected.found = true;
            }
        }
        detected
    }

    /// Whether there is something to retransmit.
    pub const fn has_lost(&self) -> bool {
        self.lost > 0
    }

    /// The first lost segment, and its index for [`Self::retransmitted`].
    pub fn next_lost(&self) -> Option<(usize, Sent)> {
        if self.lost == 0 {
            return None;
        }
        let from = self.sent.partition_point(|sent| sent.seq < self.lost_from);
        (from..self.sent.len()).map(|index| (index, self.sent[index])).find(|(_, sent)| sent.flags & LOST != 0)
    }

    /// The last segment, if it may be in flight: what a tail loss probe repeats.
    pub fn last_in_flight(&self) -> Option<(usize, Sent)> {
        self.sent.back().filter(|sent| sent.flags & (SACKED | LOST) == 0).map(|sent| (self.sent.len() - 1, *sent))
    }

    /// Segments that are not acknowledged.
    pub fn len(&self) -> usize {
        self.sent.len()
    }

    /// The first `len` positions of the segment at `index` leave again.
    pub fn retransmitted(&mut self, index: usize, len: u32, now: Instant) {
        let Some(sent) = self.sent.get_mut(index) else { return };
        let whole = *sent;
        let len = len.min(whole.len);
        sent.len = len;
        sent.sent_at = now;
        sent.flags = whole.flags & !LOST | RETRANSMITTED;
        if whole.flags & LOST != 0 {
            self.lost -= u64::from(len);
            self.retransmissions += 1;
            self.urgent = false;
            self.lost_from = whole.seq + u64::from(len);
        } else if whole.flags & RETRANSMITTED == 0 {
            self.retransmissions += 1;
        }
        if len < whole.len {
            // Segments have become smaller since it was sent.
            let rest = Sent { seq: whole.seq + u64::from(len), len: whole.len - len, ..whole };
            self.sent.insert(index + 1, rest);
        }
    }

    /// Losses were found: enters recovery unless it is under way. True if it is new, and the window must shrink.
    pub fn try_enter_recovery(&mut self, nxt: u64) -> bool {
        if self.phase != Phase::Open {
            return false;
        }
        self.phase = Phase::Recovery;
        self.recovery_point = nxt;
        self.urgent = true;
        true
    }

    /// The retransmission timer fired: everything that is not SACKED is lost (RFC 6675 5.1).
    pub fn on_timeout(&mut self, nxt: u64) {
        // RFC 2018 8: a peer may take back what it SACKed. If it had not, it would have acknowledged the first.
        let reneged = self.sent.front().is_some_and(|front| front.flags & SACKED != 0);
        for sent in &mut self.sent {
            if reneged {
                sent.flags &= !SACKED;
            }
            if sent.flags & SACKED == 0 {
                sent.flags |= LOST;
            }
        }
        if reneged {
            self.sacked = 0;
        }
        self.lost = self.sent.iter().filter(|s| s.flags & LOST != 0).map(|s| u64::from(s.len)).sum();
        self.retransmissions = 0;
        self.duplicated = 0;
        self.duplicates = 0;
        self.lost_from = 0;
        self.phase = Phase::Timeout;
        self.recovery_point = nxt;
        self.urgent = true;
    }

    /// Segments have become smaller: what doesn't fit any more was lost for that reason alone.
    pub fn on_smaller_segments(&mut self, mss: u32) {
        for index in 0..self.sent.len() {
            let sent = self.sent[index];
            if sent.len > mss && sent.flags & (SACKED | LOST) == 0 {
                self.mark_lost(index);
            }
        }
    }

    /// Gives back the memory of a busier time.
    pub fn trim(&mut self) {
        if self.sent.is_empty() && self.sent.capacity() > KEEP_RECORDS {
            self.sent = VecDeque::new();
        }
    }

    fn mark_lost(&mut self, index: usize) {
        let sent = &mut self.sent[index];
        if sent.flags & (SACKED | LOST) == 0 {
            if sent.flags & RETRANSMITTED != 0 {
                self.retransmissions = self.retransmissions.saturating_sub(1);
            }
            sent.flags |= LOST;
            self.lost += u64::from(sent.len);
            self.lost_from = self.lost_from.min(sent.seq);
        }
    }

    /// Takes a record out of the sums of its marks.
    fn forget(&mut self, sent: &Sent) {
        if sent.flags & SACKED != 0 {
            self.sacked -= u64::from(sent.len);
        } else if sent.flags & LOST != 0 {
            self.lost -= u64::from(sent.len);
        } else if sent.flags & RETRANSMITTED != 0 {
            self.retransmissions = self.retransmissions.saturating_sub(1);
        }
    }

    fn note_arrival(&mut self, sent: &Sent, now: Instant, least: Duration, rtt: &mut Option<Duration>) {
        let took = now.since(sent.sent_at);
        if sent.flags & RETRANSMITTED == 0 {
            *rtt = Some(took);
        } else if took < least {
            // An earlier transmission arrived, not this one (RFC 8985 6.2 step 2).
            return;
        }
        if (sent.sent_at, sent.end()) > self.newest {
            self.newest = (sent.sent_at, sent.end());
            self.newest_rtt = took;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MSS: u32 = 1000;
    const LEAST: Duration = Duration::from_millis(10);

    fn board(segments: u64) -> Scoreboard {
        let mut board = Scoreboard::new();
        for i in 0..segments {
            board.push(i * 1000, MSS, Instant::from_millis(i));
        }
        board
    }

    fn at(millis: u64) -> Instant {
        Instant::from_millis(millis)
    }

    fn lost(board: &Scoreboard) -> std::vec::Vec<u64> {
        board.sent.iter().filter(|s| s.flags & LOST != 0).map(|s| s.seq / 1000).collect()
    }

    #[test]
    fn three_segments_beyond_a_gap_mark_it() {
        let mut board = board(10);
        for (right, expect) in [(2, false), (3, false), (4, true)] {
            board.on_sack(1000, right * 1000, at(20), LEAST);
            assert_eq!(board.detect(MSS, at(20), Duration::from_secs(1)).found, expect);
        }
        assert_eq!(lost(&board), [0]);
        assert!(board.try_enter_recovery(10_000) && board.is_urgent() && !board.try_enter_recovery(10_000));
        assert_eq!(board.in_flight(), 6000);
        let (index, first) = board.next_lost().unwrap();
        assert_eq!((index, first.seq), (0, 0));
        board.retransmitted(index, 1000, at(21));
        assert_eq!((board.in_flight(), board.has_lost()), (7000, false));
        let delivered = board.on_ack(4000, at(30), MSS, LEAST);
        // Its segments were retransmitted or sampled when they were SACKed.
        assert_eq!((delivered.bytes, delivered.rtt), (4000, None));
        assert!(!board.try_recover(4000));
        assert_eq!(board.on_ack(10_000, at(40), MSS, LEAST).rtt, Some(Duration::from_millis(31)));
        assert!(board.try_recover(10_000));
        assert!(board.is_empty() && board.in_flight() == 0);
    }

    #[test]
    fn a_lost_retransmission_is_found_by_time() {
        let mut board = board(10);
        board.on_sack(1000, 5000, at(20), LEAST);
        board.detect(MSS, at(20), Duration::from_millis(2));
        board.try_enter_recovery(10_000);
        board.retransmitted(0, 1000, at(21));
        // Both leave in one moment: then the order is that of the numbers.
        board.push(10_000, MSS, at(21));
        board.on_sack(10_000, 11_000, at(41), LEAST);
        let detected = board.detect(MSS, at(41), Duration::from_millis(2));
        assert!(!lost(&board).contains(&0));
        assert_eq!(detected.look_again, Some(at(43)));
        assert!(board.detect(MSS, at(43), Duration::from_millis(2)).found);
        assert!(lost(&board).contains(&0));
    }

    #[test]
    fn an_arrival_that_is_too_early_is_of_an_earlier_transmission() {
        let mut board = board(10);
        board.on_timeout(10_000);
        board.retransmitted(0, 1000, at(100));
        board.on_ack(1000, at(101), MSS, LEAST);
        assert_eq!(board.newest, (Instant::ZERO, 0));
    }

    #[test]
    fn new_reno() {
        let mut board = board(10);
        board.on_duplicate(MSS);
        board.on_duplicate(MSS);
        assert_eq!((board.has_lost(), board.in_flight()), (false, 8000));
        board.on_duplicate(MSS);
        assert!(board.has_lost() && board.try_enter_recovery(10_000));
        board.retransmitted(0, 1000, at(20));
        for _ in 0..1000 {
            board.on_duplicate(MSS);
        }
        assert!(board.in_flight() <= 10_000, "made-up duplicates don't wrap");
        board.on_ack(3000, at(30), MSS, LEAST);
        assert!(!board.try_recover(3000));
        board.on_partial_ack();
        assert_eq!(lost(&board), [3]);
    }

    #[test]
    fn timeouts_take_back_what_was_reneged() {
        let mut board = board(4);
        board.on_sack(1000, 3000, at(9), LEAST);
        board.on_timeout(4000);
        assert_eq!(lost(&board), [0, 3]);
        board.on_ack(1000, at(10), MSS, LEAST);
        board.on_timeout(4000);
        assert_eq!(lost(&board), [1, 2, 3]);
    }

    #[test]
    fn smaller_segments_split() {
        let mut board = board(2);
        board.on_smaller_segments(600);
        let (index, _) = board.next_lost().unwrap();
        board.retransmitted(index, 600, at(3));
        let (index, next) = board.next_lost().unwrap();
        assert_eq!((index, next.seq, next.len), (1, 600, 400));
    }

    proptest! {
        /// Whatever acknowledgments come, the sums match the records.
        #[test]
        fn sums_hold(steps in prop::collection::vec((0_u8..7, 0_u64..40, 0_u64..40), 1..80)) {
            let mut board = board(20);
            let (mut una, mut nxt) = (0, 20_000);
            for (time, (what, a, b)) in steps.into_iter().enumerate() {
                let now = at(100 + time as u64);
                match what {
                    0 => { board.push(nxt, MSS, now); nxt += 1000; }
                    1 => { let ack = (una + a * 333).min(nxt); if ack > una { board.on_ack(ack, now, MSS, LEAST); una = ack; board.try_recover(una); } }
                    2 => { let l = una + a * 250; let r = (l + b * 250).min(nxt); if l < r { board.on_sack(l, r, now, LEAST); } }
                    3 => { if board.detect(MSS, now, Duration::from_millis(a)).found { board.try_enter_recovery(nxt); } }
                    4 => { if let Some((index, sent)) = board.next_lost() { board.retransmitted(index, (b as u32 * 100 + 1).min(sent.len), now); } }
                    5 if b > 20 => if let Some((index, sent)) = board.last_in_flight() { board.retransmitted(index, sent.len, now); }
                    5 => board.on_duplicate(MSS),
                    _ => if !board.is_empty() { board.on_timeout(nxt) },
                }
                let sum = |flag| board.sent.iter().filter(|s| s.flags & (SACKED | LOST) == flag).map(|s| u64::from(s.len)).sum::<u64>();
                prop_assert_eq!(board.sacked, sum(SACKED));
                prop_assert_eq!(board.lost, sum(LOST));
                prop_assert!(board.next_lost().is_some() == (board.lost > 0));
                prop_assert_eq!(board.in_flight(), sum(0).saturating_sub(board.duplicated));
                let again = board.sent.iter().filter(|s| s.flags == RETRANSMITTED).count();
                prop_assert_eq!(board.retransmissions, again);
            }
        }
    }
}
