//! Explicit congestion notification (RFC 3168), and the receiver's part of DCTCP (RFC 8257 3.2).
//!
//! ```text
//!   SYN     ECE CWR ─▶             asks, if the configuration or the congestion control wants it
//!           ◀─ ECE        SYN-ACK  agrees
//!   data    ECT ──── router: CE ─▶
//!           ◀─ ECE            ACK  until CWR comes; with DCTCP exactly for what was marked
//!   data    CWR ─▶                 the window was reduced, once for each window of data
//! ```

use super::segment::{ACK, CWR, ECE, SYN, Segment};
use crate::Ecn;

/// The two bits of the IP header.
pub(super) const ECT0: u8 = 2;
pub(super) const CE: u8 = 3;

/// A connection's state.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct EcnState {
    /// Both sides agreed.
    pub on: bool,
    /// Our SYN asks for it; one that is sent again no more (RFC 3168 6.1.1.1).
    pub asks: bool,
    /// Marks are echoed and counted exactly, and every segment may be marked (RFC 8257).
    pub exact: bool,
    /// The next new data segment carries CWR.
    pub reduced: bool,
    /// ACKs carry ECE.
    pub echoes: bool,
    /// The peer has sent a segment that could be marked.
    pub seen: bool,
}

/// What a segment's mark asks of the receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reaction {
    Nothing,
    /// No ACK should be held back: the peer's window may be very small.
    Quick,
    /// The state changed: what is unacknowledged must be acknowledged with the old state before (RFC 8257 3.2), and
    /// what comes now at once.
    Flip,
    /// The peer's window has become small: acknowledge at once.
    Now,
}

impl EcnState {
    /// For a connection that is being opened.
    pub const fn opening(mode: Ecn, exact: bool) -> Self {
        let asks = matches!(mode, Ecn::Request) || exact;
        Self { on: false, asks, exact, reduced: false, echoes: false, seen: false }
    }

    /// Flags of our SYN, or of a SYN-ACK.
    pub const fn syn_flags(&self, answer: bool, again: bool) -> u8 {
        match (answer, again) {
            (true, _) if self.on => ECE,
            (false, false) if self.asks => ECE | CWR,
            _ => 0,
        }
    }

    /// Takes the answer to our SYN (RFC 3168 6.1.1): ECE alone agrees.
    pub fn on_syn_ack(&mut self, segment: &Segment<'_>) {
        self.on = self.asks && segment.flags & (SYN | ACK | ECE | CWR) == SYN | ACK | ECE;
    }

    /// Flags and IP bits of a segment. `fresh`: it carries data for the first time.
    pub fn mark(&mut self, fresh: bool) -> (u8, u8) {
        if !self.on {
            return (0, 0);
        }
        let mut flags = if self.echoes { ECE } else { 0 };
        if fresh && core::mem::take(&mut self.reduced) {
            flags |= CWR;
        }
        // RFC 3168 6.1.4 and 6.1.5: neither pure ACKs nor retransmissions. DCTCP marks them all (RFC 8257 5, as Linux),
        // because a switch that drops what it can't mark would drop them first.
        (flags, if fresh || self.exact { ECT0 } else { 0 })
    }

    /// Takes what a segment with payload says.
    pub fn on_data(&mut self, segment: &Segment<'_>) -> Reaction {
        if !self.on {
            return Reaction::Nothing;
        }
        let mut reaction = Reaction::Nothing;
        if segment.has(CWR) && !self.exact {
            self.echoes = false;
            reaction = Reaction::Now;
        }
        let marked = segment.ecn == CE;
        if segment.ecn == 0 {
            // As Linux: probably a retransmission, so the peer's window is small.
            return if self.seen { Reaction::Quick } else { reaction };
        }
        self.seen = true;
        if self.exact {
            return if marked == self.echoes { Reaction::Nothing } else { Reaction::Flip };
        }
        if marked && !self.echoes {
            self.echoes = true;
            return Reaction::Quick;
        }
        reaction
    }
}

/// Whether a SYN asks for ECN and we agree: RFC 3168 6.1.1, and no bit of the IP header set, because some
/// middleboxes set them all.
pub(super) const fn accepts(mode: Ecn, segment: &Segment<'_>, exact: bool) -> bool {
    segment.has(ECE | CWR) && (exact || !matches!(mode, Ecn::Off) && segment.ecn == 0)
}

/// Whether an acknowledgment tells of marks.
pub(super) const fn is_marked(segment: &Segment<'_>) -> bool {
    segment.has(ECE) && !segment.has(SYN)
}
