//! What is in flight, what arrived and what was lost: the sender's memory of its segments. What follows from it for the
//! connection is in `acks`.
//!
//! A record for each segment sent and not yet acknowledged, oldest first and without gaps, with the time it left. That
//! is all that SACK (RFC 2018), NewReno (RFC 6582) and time-based detection (RFC 8985) need.
//!
//! ```text
//!   sent ──▶ in flight ──ACK──▶ gone
//!              │  ▲  └──SACK──▶ SACKED ──ACK──▶ gone
//!         lost │  │ retransmitted
//!              ▼  │
//!             LOST
//! ```
//!
//! **Cost.** The peer decides how often this is walked, so no walk may begin anew each time. Segments sent once lie in
//! the order of their sending; the search for losses goes on where it stopped (`scan_from`). Those sent again stand in
//! a queue of their own, in order too. What a SACK block said before is skipped. `lost_from` is always at the first lost
//! segment.

mod rack;
mod undo;

use undo::Undo;

use crate::Instant;
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use core::time::Duration;

/// The peer has it, but something before it is missing.
const SACKED: u8 = 1;
/// Taken for lost and not sent again yet.
const LOST: u8 = 2;
/// Sent more than once: its acknowledgment says nothing about the round-trip time (Karn).
const RETRANSMITTED: u8 = 4;

/// RFC 5681 3.2, and DupThresh of RFC 8985 6.2.
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

    const fn is(&self, flags: u8) -> bool {
        self.flags & flags != 0
    }
}

/// What the sender is doing about losses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Open,
    /// Marks made the window smaller (RFC 3168). Over when something sent after that is acknowledged.
    Reduction,
    /// Found by acknowledgments; over when everything sent until then is acknowledged.
    Recovery,
    /// Found by the retransmission timer; likewise.
    Timeout,
}

/// What an acknowledgment shows to have arrived.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Arrived {
    /// Bytes newly known to have arrived, acknowledged or SACKed, and how many segments.
    pub bytes: u64,
    pub segments: u32,
    /// Of the cumulatively acknowledged segments that were sent once and not SACKed before: the oldest and the newest.
    pub oldest_rtt: Option<Duration>,
    pub newest_rtt: Option<Duration>,
    /// Of what was newly SACKed.
    pub sack_rtt: Option<Duration>,
    /// Something was newly SACKed.
    pub sacked: bool,
    /// Something that was sent before this phase began, and once (RFC 5682).
    pub original: bool,
    /// Something that was sent more than once.
    pub retransmission: bool,
    /// When that left of it which was sent last, as far as it is certain which sending arrived.
    pub latest: Option<Instant>,
    /// How far SACKs had come before those of this acknowledgment.
    highest: Option<u64>,
}

/// What [`Scoreboard::detect`] says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Detected {
    /// Something is newly lost.
    pub found: bool,
    /// A retransmission is among it.
    pub again: bool,
    /// When something else will be, if nothing arrives.
    pub look_again: Option<Instant>,
}

/// How many segments are what, as TCP_INFO counts them: what is lost stays so while it is sent again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub unacked: u32,
    pub sacked: u32,
    pub lost: u32,
    pub retransmitted: u32,
}

/// What only a connection with losses has.
#[derive(Debug, Default)]
struct Repair {
    /// Segments that were sent more than once, in the order of their last sending: when, and any position of it.
    /// Entries whose segment has arrived or is lost again are skipped.
    resent: VecDeque<(Instant, u64)>,
    /// The SACK blocks that came last.
    blocks: [(u64, u64); 4],
    places: Places,
    undo: Undo,
}

/// Positions that matter while something is missing.
#[derive(Clone, Copy, Debug, Default)]
struct Places {
    /// The first LOST record, if there is one.
    lost_from: u64,
    /// Every record before this position that was sent once is SACKED or LOST.
    scan_from: u64,
    /// End of the highest segment that was SACKed (RACK.fack).
    highest: u64,
    /// What was sent when a D-SACK widened the reordering window last; 0: none (RACK.dsack_round).
    dsack_round: u64,
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
    sacked_segments: u32,
    phase: Phase,
    /// End of what was sent when the phase began.
    recovery_point: u64,
    /// In-flight records that were sent more than once.
    retransmissions: u32,
    /// The segment sent last among those that have arrived: when, its end; and how long took what arrived last
    /// (RACK.xmit_ts, RACK.end_seq and RACK.rtt of RFC 8985).
    newest: (Instant, u64),
    newest_nanos: u64,
    /// How far apart segments have arrived out of order, in segments; and how often.
    pub reordering: u16,
    pub reordered: u16,
    /// RACK.reo_wnd_mult and RACK.reo_wnd_persist.
    steps: u8,
    persist: u8,
    /// F-RTO's second step: new data goes before retransmissions, to see whether the timeout was a mistake.
    pub probes_with_new: bool,
    /// F-RTO goes on.
    pub doubts_timeout: bool,
    repair: Option<Box<Repair>>,
}

impl Scoreboard {
    pub const fn new() -> Self {
        Self {
            sent: VecDeque::new(),
            sacked: 0,
            lost: 0,
            duplicated: 0,
            duplicates: 0,
            sacked_segments: 0,
            phase: Phase::Open,
            recovery_point: 0,
            retransmissions: 0,
            newest: (Instant::ZERO, 0),
            newest_nanos: 0,
            reordering: DUPLICATES as u16,
            reordered: 0,
            steps: 1,
            persist: 0,
            probes_with_new: false,
            doubts_timeout: false,
            repair: None,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.sent.is_empty()
    }

    /// Segments that are not acknowledged.
    pub fn len(&self) -> usize {
        self.sent.len()
    }

    pub const fn phase(&self) -> Phase {
        self.phase
    }

    pub const fn recovery_point(&self) -> u64 {
        self.recovery_point
    }

    /// Whether something is missing between what arrived, or may be.
    pub const fn is_disordered(&self) -> bool {
        self.sacked > 0 || self.lost > 0 || self.duplicates > 0
    }

    /// Whether there is something to retransmit.
    pub const fn has_lost(&self) -> bool {
        self.lost > 0
    }

    pub const fn has_retransmissions(&self) -> bool {
        self.retransmissions > 0
    }

    /// Bytes taken for lost and not sent again yet.
    pub const fn lost_bytes(&self) -> u64 {
        self.lost
    }

    /// Bytes that are in the network as far as we know ("pipe" of RFC 6675).
    pub fn in_flight(&self) -> u64 {
        let (Some(first), Some(last)) = (self.sent.front(), self.sent.back()) else { return 0 };
        (last.end() - first.seq).saturating_sub(self.sacked + self.lost + self.duplicated)
    }

    pub fn counts(&self) -> Counts {
        let count = |f: &dyn Fn(&Sent) -> bool| {
            u32::try_from(self.sent.iter().filter(|sent| f(sent)).count()).unwrap_or(u32::MAX)
        };
        let repairing = matches!(self.phase, Phase::Recovery | Phase::Timeout);
        Counts {
            unacked: u32::try_from(self.sent.len()).unwrap_or(u32::MAX),
            sacked: self.sacked_segments + self.duplicates.min(count(&|sent| !sent.is(LOST))),
            lost: count(&|sent| sent.is(LOST)) + if repairing { self.retransmissions } else { 0 },
            retransmitted: self.retransmissions,
        }
    }

    /// Records a segment of new data.
    pub fn push(&mut self, seq: u64, len: u32, now: Instant) {
        self.sent.push_back(Sent { seq, sent_at: now, len, flags: 0 });
    }

    /// Takes a cumulative acknowledgment up to `ack`, which is beyond what was acknowledged before.
    /// `least` is the shortest round trip of late.
    pub fn on_ack(&mut self, ack: u64, now: Instant, mss: u32, least: Duration, arrived: &mut Arrived) {
        let mut bytes = 0;
        let highest = arrived.highest.unwrap_or(self.places().highest);
        let mut out_of_order = None;
        while let Some(front) = self.sent.front_mut() {
            if front.seq >= ack {
                break;
            }
            if front.end() > ack {
                let cut = ack - front.seq;
                front.seq = ack;
                #[allow(clippy::cast_possible_truncation, reason = "less than len")]
                {
                    front.len -= cut as u32;
                }
                bytes += cut;
                match front.flags & (SACKED | LOST) {
                    SACKED => self.sacked -= cut,
                    LOST => {
                        self.lost -= cut;
                        arrived.bytes += cut;
                    }
                    _ => arrived.bytes += cut,
                }
                break;
            }
            let front = *front;
            self.sent.pop_front();
            bytes += u64::from(front.len);
            self.forget(&front);
            if front.is(SACKED) {
                continue;
            }
            arrived.bytes += u64::from(front.len);
            arrived.segments += 1;
            if front.is(RETRANSMITTED) {
                arrived.retransmission = true;
            } else {
                let took = now.since(front.sent_at);
                arrived.oldest_rtt.get_or_insert(took);
                arrived.newest_rtt = Some(took);
                arrived.original |= front.end() <= self.recovery_point;
                if front.seq < highest {
                    out_of_order.get_or_insert(front.seq);
                }
            }
            self.note_arrival(&front, now, least, arrived);
        }
        if let Some(seq) = out_of_order {
            self.note_reordering(seq, highest, mss);
        }
        // What duplicates have told of doesn't arrive a second time, but for the segment that filled the hole.
        arrived.bytes -= self.duplicated.min(arrived.bytes.saturating_sub(u64::from(mss)));
        if self.phase == Phase::Open || self.phase == Phase::Reduction {
            self.duplicated = 0;
            self.duplicates = 0;
        } else {
            // RFC 6582 3.2 step 3: deflate by what was acknowledged, less the segment that will replace it.
            self.duplicated = self.duplicated.saturating_sub(bytes.saturating_sub(u64::from(mss)));
        }
        self.seek_lost();
    }

    /// Takes SACK blocks, already checked to lie within what is outstanding.
    pub fn on_sacks(&mut self, blocks: &[(u64, u64)], now: Instant, mss: u32, least: Duration, arrived: &mut Arrived) {
        let before = self.repair().blocks;
        let highest = self.places().highest;
        arrived.highest = Some(highest);
        let (mut lowest, mut top) = (u64::MAX, highest);
        for &(left, right) in blocks {
            let mut index = self.sent.partition_point(|sent| sent.seq < left);
            while let Some(sent) = self.sent.get(index).copied() {
                // Parts of segments don't count: a peer that reports crumbs gets no work for it (CVE-2019-11477 and
                // kin).
                if sent.end() > right {
                    break;
                }
                if sent.is(SACKED) {
                    // Whatever the peer said before needs no second look.
                    let known = before.iter().find(|block| block.0 <= sent.seq && sent.seq < block.1);
                    let past = known.map_or(0, |block| self.sent.partition_point(|s| s.end() <= block.1.min(right)));
                    index = past.max(index + 1);
                    continue;
                }
                self.forget(&sent);
                self.sent[index].flags = sent.flags & !LOST | SACKED;
                self.sacked += u64::from(sent.len);
                self.sacked_segments += 1;
                arrived.bytes += u64::from(sent.len);
                arrived.segments += 1;
                arrived.sacked = true;
                if sent.is(RETRANSMITTED) {
                    arrived.retransmission = true;
                } else {
                    arrived.sack_rtt = Some(now.since(sent.sent_at));
                    arrived.original |= sent.end() <= self.recovery_point;
                    if sent.seq < highest {
                        lowest = lowest.min(sent.seq);
                    }
                }
                self.note_arrival(&sent, now, least, arrived);
                top = top.max(sent.end());
                index += 1;
            }
        }
        if lowest < highest {
            self.note_reordering(lowest, highest, mss);
        }
        let repair = self.repair();
        repair.places.highest = top;
        repair.blocks = [(0, 0); 4];
        for (place, block) in repair.blocks.iter_mut().zip(blocks) {
            *place = *block;
        }
        self.seek_lost();
    }

    /// Without SACK: an ACK that acknowledged nothing new (RFC 5681 2): something arrived. Only data in flight makes it
    /// count.
    pub fn on_duplicate(&mut self, mss: u32, arrived: &mut Arrived) {
        let (Some(first), Some(last)) = (self.sent.front(), self.sent.back()) else { return };
        self.duplicates = self.duplicates.saturating_add(1);
        // RFC 5681 3.2 step 4 bounds nothing, but a peer can make up any number of duplicates.
        let limit = (last.end() - first.seq).saturating_sub(u64::from(mss));
        let before = self.duplicated;
        self.duplicated = (before + u64::from(mss)).min(limit).max(before);
        if self.duplicated > before {
            arrived.bytes += self.duplicated - before;
            arrived.segments += 1;
        }
    }

    /// The first lost segment, and its index for [`Self::retransmitted`].
    pub fn next_lost(&self) -> Option<(usize, Sent)> {
        if self.lost == 0 {
            return None;
        }
        let from = self.places().lost_from;
        let index = self.sent.partition_point(|sent| sent.seq < from);
        self.sent.get(index).filter(|sent| sent.is(LOST)).map(|sent| (index, *sent))
    }

    /// The last segment, if it may be in flight: what a tail loss probe repeats.
    pub fn last_in_flight(&self) -> Option<(usize, Sent)> {
        self.sent.back().filter(|sent| !sent.is(SACKED | LOST)).map(|sent| (self.sent.len() - 1, *sent))
    }

    /// Whether the oldest segment, or any that is under way, was sent more than once.
    pub fn is_repairing(&self) -> bool {
        self.retransmissions > 0 || self.sent.front().is_some_and(|front| front.is(RETRANSMITTED))
    }

    /// The first `len` positions of the segment at `index` leave again. `probe`: as a tail loss probe, which no undo
    /// counts.
    pub fn retransmitted(&mut self, index: usize, len: u32, now: Instant, probe: bool) {
        let Some(sent) = self.sent.get_mut(index) else { return };
        let whole = *sent;
        let len = len.min(whole.len);
        sent.len = len;
        sent.sent_at = now;
        sent.flags = whole.flags & !LOST | RETRANSMITTED;
        if whole.is(LOST) {
            self.lost -= u64::from(len);
            self.retransmissions += 1;
        } else if !whole.is(RETRANSMITTED) {
            self.retransmissions += 1;
        }
        if len < whole.len {
            // Segments have become smaller since it was sent.
            let rest = Sent { seq: whole.seq + u64::from(len), len: whole.len - len, ..whole };
            self.sent.insert(index + 1, rest);
        }
        let repair = self.repair();
        repair.resent.push_back((now, whole.seq));
        if !probe {
            repair.undo.unexplained = Some(repair.undo.unexplained.map_or(1, |count| count.saturating_add(1)));
            repair.undo.first_at.get_or_insert(now);
        }
        self.seek_lost();
    }

    /// Begins a phase other than [`Phase::Open`].
    pub fn enter(&mut self, phase: Phase, nxt: u64) {
        self.phase = phase;
        self.recovery_point = nxt;
    }

    /// Back to [`Phase::Open`].
    pub fn open(&mut self) {
        if self.phase == Phase::Recovery {
            self.persist = self.persist.saturating_sub(1);
            if self.persist == 0 {
                self.steps = 1;
            }
        }
        self.phase = Phase::Open;
        self.probes_with_new = false;
        self.doubts_timeout = false;
        self.forget_duplicates();
    }

    pub const fn forget_duplicates(&mut self) {
        self.duplicated = 0;
        self.duplicates = 0;
    }

    /// The retransmission timer fired: everything is lost that isn't SACKED and that left so long ago that it would
    /// have been acknowledged (RFC 6675 5.1, RFC 8985 6.3).
    pub fn on_timeout(&mut self, nxt: u64, now: Instant) {
        // RFC 2018 8: a peer may take back what it SACKed. If it had not, it would have acknowledged the first.
        let reneged = self.sent.front().is_some_and(|front| front.is(SACKED));
        let patience = Duration::from_nanos(self.newest_nanos);
        for (index, sent) in self.sent.iter_mut().enumerate() {
            if reneged {
                sent.flags &= !SACKED;
            }
            if !sent.is(SACKED) && (index == 0 || now >= sent.sent_at + patience) {
                sent.flags |= LOST;
            }
        }
        if reneged {
            self.sacked = 0;
            self.sacked_segments = 0;
            self.repair().places.scan_from = 0;
            self.repair().blocks = [(0, 0); 4];
        }
        self.lost = self.sent.iter().filter(|s| s.is(LOST)).map(|s| u64::from(s.len)).sum();
        let resent = self.sent.iter().filter(|s| s.is(RETRANSMITTED) && !s.is(SACKED | LOST)).count();
        self.retransmissions = u32::try_from(resent).unwrap_or(u32::MAX);
        self.forget_duplicates();
        self.repair().places.lost_from = 0;
        self.enter(Phase::Timeout, nxt);
        self.probes_with_new = false;
        self.seek_lost();
    }

    /// Segments have become smaller: what doesn't fit any more was lost for that reason alone.
    pub fn on_smaller_segments(&mut self, mss: u32) {
        for index in 0..self.sent.len() {
            let sent = self.sent[index];
            if sent.len > mss && !sent.is(SACKED | LOST) {
                self.mark_lost(index);
            }
        }
    }

    /// Bytes of the oldest segment that is not acknowledged.
    pub fn first_len(&self) -> u32 {
        self.sent.front().map_or(0, |sent| sent.len)
    }

    /// Gives back the memory of a busier time.
    pub fn trim(&mut self) {
        if self.sent.is_empty() {
            if self.sent.capacity() > KEEP_RECORDS {
                self.sent = VecDeque::new();
            }
            if self.phase == Phase::Open {
                self.repair = None;
            }
        }
    }

    fn repair(&mut self) -> &mut Repair {
        self.repair.get_or_insert_default()
    }

    fn places(&self) -> Places {
        self.repair.as_ref().map_or(Places::default(), |repair| repair.places)
    }

    fn mark_lost(&mut self, index: usize) {
        let sent = &mut self.sent[index];
        if !sent.is(SACKED | LOST) {
            if sent.is(RETRANSMITTED) {
                self.retransmissions = self.retransmissions.saturating_sub(1);
            }
            sent.flags |= LOST;
            let (seq, len, first) = (sent.seq, u64::from(sent.len), self.lost == 0);
            self.lost += len;
            let places = &mut self.repair().places;
            places.lost_from = if first { seq } else { places.lost_from.min(seq) };
        }
    }

    /// Moves `lost_from` on to the first LOST record.
    fn seek_lost(&mut self) {
        if self.lost == 0 {
            return;
        }
        let lost_from = self.places().lost_from;
        let from = self.sent.partition_point(|sent| sent.seq < lost_from);
        if let Some(seq) = self.sent.range(from..).find(|sent| sent.is(LOST)).map(|sent| sent.seq) {
            self.repair().places.lost_from = seq;
        }
    }

    /// Takes a record out of the sums of its marks.
    fn forget(&mut self, sent: &Sent) {
        if sent.is(SACKED) {
            self.sacked -= u64::from(sent.len);
            self.sacked_segments -= 1;
        } else if sent.is(LOST) {
            self.lost -= u64::from(sent.len);
        } else if sent.is(RETRANSMITTED) {
            self.retransmissions = self.retransmissions.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests;
