//! What tells that a reduction was a mistake: D-SACKs that explain all retransmissions (RFC 3708), an echo of an original
//! transmission (Eifel, RFC 3522). What follows is in `acks`.

use super::{LOST, Phase, RETRANSMITTED, Scoreboard};
use crate::Instant;

/// Whether a reduction was a mistake: nothing was lost, and everything that was sent again had arrived already.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::tcp) struct Undo {
    /// A reduction can be taken back.
    pub armed: bool,
    /// What was acknowledged when it began: D-SACKs below are about earlier mistakes.
    pub from: u64,
    /// Retransmissions since then that no D-SACK has called needless; None before the first.
    pub unexplained: Option<u32>,
    /// When the first of them left: an echo of an earlier timestamp is of an original (RFC 3522).
    pub first_at: Option<Instant>,
}

impl Scoreboard {
    pub fn undo(&self) -> Undo {
        self.repair.as_ref().map_or(Undo::default(), |repair| repair.undo)
    }

    /// A reduction begins that can be taken back if it was a mistake; or none can be (`armed`).
    pub fn begin_undo(&mut self, una: u64, armed: bool) {
        let under_way = self.retransmissions;
        let undo = &mut self.repair().undo;
        undo.armed = armed;
        undo.from = una;
        undo.unexplained = (under_way > 0).then_some(under_way);
    }

    pub fn end_undo(&mut self) {
        if let Some(repair) = &mut self.repair {
            repair.undo.armed = false;
        }
    }

    /// Nothing is being retransmitted: the next retransmission is a first one.
    pub fn forget_first_retransmission(&mut self) {
        if let Some(repair) = &mut self.repair {
            repair.undo.first_at = None;
        }
    }

    /// A D-SACK for so many segments that end at `end`.
    pub fn explain(&mut self, segments: u32, end: u64) {
        if let Some(repair) = &mut self.repair
            && repair.undo.armed
            && end > repair.undo.from
            && let Some(count) = &mut repair.undo.unexplained
        {
            *count = count.saturating_sub(segments);
        }
    }

    /// Nothing was lost after all. After a timeout everything is looked at again, because nothing but the timer had
    /// found it.
    pub fn unmark(&mut self) {
        for sent in &mut self.sent {
            if sent.is(LOST) {
                sent.flags &= !LOST;
                self.retransmissions += u32::from(sent.is(RETRANSMITTED));
            }
        }
        self.lost = 0;
        if self.phase == Phase::Timeout {
            self.repair().places.scan_from = 0;
        }
    }
}
