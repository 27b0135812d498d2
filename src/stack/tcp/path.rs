//! How large packets may be on the way to the peer: what ICMP says (RFC 1191, RFC 8201), and what can be found out when
//! ICMP says nothing (RFC 4821, as Linux with tcp_mtu_probing = 1).
//!
//! A path whose routers drop large packets silently is a black hole: the handshake works and data never arrives. After
//! some timeouts in a row of segments that are larger than nearly every path takes, segments become small; once data
//! flows, a larger one is tried now and then, halving the distance to what was agreed on.
//!
//! ```text
//!   timeouts ─▶ low = 1024, or half of it   ─▶ data flows ─▶ probe of (low + high) / 2
//!                 ▲                                            │ acknowledged: low = probe
//!                 └────── black hole again                     │ sent again:   high = probe - 1
//! ```
//!
//! Sizes here are payload and options of a segment, as in an MSS option.

use super::connection::{Connection, MIN_MSS, NEVER, path_mss};
use super::rare::Rare;
use super::recovery::Phase;
use crate::Instant;
use core::time::Duration;

/// What nearly every path takes (tcp_base_mss).
const BASE_MSS: u16 = 1024;
/// Timeouts in a row after which a path may be a black hole (tcp_retries1).
pub(super) const SUSPICIOUS_TIMEOUTS: u8 = 3;
/// A search ends when it knows the size to this many bytes (tcp_probe_threshold).
const PRECISION: u16 = 8;
/// RFC 1191 6.3, RFC 8201 5.3 and tcp_probe_interval: paths change, so larger packets are tried again after this.
pub(super) const LIFETIME: Duration = Duration::from_secs(600);
/// Segments that must follow a probe, so that its loss shows itself by SACKs (tcp_mtu_probe).
const FOLLOWERS: u64 = 4;

#[derive(Debug)]
pub(super) struct Path {
    /// What both sides agreed on: no segment is larger, whatever the path takes.
    pub agreed: u16,
    /// What was known of the path before the connection began.
    pub limit: u16,
    /// Until when a smaller size that ICMP told is believed; [`NEVER`] when none was told.
    until: Instant,
}

#[derive(Debug)]
pub(super) struct Search {
    /// Goes through for sure, and may go through.
    low: u16,
    high: u16,
    /// First and last position of the probe that is under way, and its size.
    probe: Option<(u64, u64, u16)>,
    /// When to look for more again, once all is known.
    again_at: Instant,
}

impl Path {
    /// `limit`: what the path takes, as other connections found.
    pub const fn new(agreed: u16, limit: u16) -> Self {
        Self { agreed, limit, until: NEVER }
    }
}

impl Connection {
    fn is_searching(&self) -> bool {
        self.rare.as_deref().is_some_and(|rare| rare.search.is_some())
    }

    /// Both sides have agreed on segments of `mss` bytes.
    pub fn agree_on_segments(&mut self, mss: u16, now: Instant) {
        self.path.agreed = mss;
        self.mss = mss.min(self.path.limit).max(MIN_MSS);
        if self.mss < mss {
            self.path.until = now + LIFETIME;
        }
    }

    /// The path takes smaller packets only: `mtu` bytes with the IP header.
    pub fn limit_path(&mut self, mtu: usize, now: Instant) {
        let mss = path_mss(self.key.local, mtu).max(MIN_MSS);
        if mss < self.mss {
            self.path.until = now + LIFETIME;
            if let Some(search) = self.rare.as_deref_mut().and_then(Rare::search) {
                search.high = search.high.min(mss);
                search.low = search.low.min(mss);
            }
            self.set_segment_size(mss);
        }
    }

    /// Forgets what ICMP said too long ago. Should it still hold, ICMP says it again.
    pub fn forget_old_path(&mut self, now: Instant) {
        if now >= self.path.until {
            self.path.until = NEVER;
            if !self.is_searching() {
                self.mss = self.path.agreed;
            }
        }
    }

    /// Largest IP packet to the peer as far as we know, in bytes.
    pub fn path_mtu(&self) -> u32 {
        u32::from(self.mss) + if self.key.local.is_ipv4() { 40 } else { 60 }
    }

    /// Timeout after timeout: perhaps only because segments are too large.
    pub fn suspect_black_hole(&mut self, now: Instant) {
        let low = match self.rare.as_deref().and_then(|rare| rare.search.as_ref()) {
            Some(search) => (search.low / 2).max(MIN_MSS),
            None => BASE_MSS.min(self.mss),
        };
        // If small segments don't arrive either, the size is not what's wrong.
        if u64::from(low) >= u64::from(self.board.first_len()) + u64::from(self.mss) - u64::from(self.full_segment()) {
            return;
        }
        let rare = self.rare.get_or_insert_default();
        let high = rare.search.as_ref().map_or(self.mss, |search| search.high);
        rare.search = Some(Search { low, high, probe: None, again_at: now });
        self.set_segment_size(low);
    }

    fn set_segment_size(&mut self, mss: u16) {
        let smaller = mss < self.mss;
        self.mss = mss;
        if smaller {
            let full = self.full_segment();
            self.board.on_smaller_segments(full);
            if self.board.has_lost() && self.board.phase() != Phase::Timeout {
                // RFC 1191 6.5: to be sent again, but not because of congestion.
                self.board.enter(Phase::Timeout, self.nxt);
                self.board.end_undo();
            }
        }
    }

    /// Bytes of payload of a probe that may be sent now. `room`: what the peer's window takes.
    pub fn plan_path_probe(&self, now: Instant, in_flight: u64, window: u64, unsent: u64, room: u64) -> Option<u32> {
        let search = self.rare.as_deref()?.search.as_ref()?;
        let high = search.high;
        if now < search.again_at
            || search.probe.is_some()
            || high < search.low + PRECISION
            || self.board.phase() != Phase::Open
        {
            return None;
        }
        let size = search.low + (high - search.low).div_ceil(2);
        let full = u64::from(self.full_segment());
        let len = u64::from(size) - (u64::from(self.mss) - full);
        let wanted = len + FOLLOWERS * full;
        (len > full && unsent >= wanted && room >= wanted && in_flight + len <= window).then_some(len as u32)
    }

    /// A segment of this payload leaves for the first time: is it a probe?
    pub fn note_path_probe(&mut self, seq: u64, len: u32) {
        let full = self.full_segment();
        if len <= full {
            return;
        }
        let size = u16::try_from(len + u32::from(self.mss) - full).unwrap_or(u16::MAX);
        if let Some(search) = self.rare.as_deref_mut().and_then(Rare::search) {
            search.probe = Some((seq, seq + u64::from(len), size));
        }
    }

    /// What begins at `seq` is sent again: if it was a probe, that was too large.
    pub fn on_path_probe_lost(&mut self, seq: u64, now: Instant) {
        let Some(search) = self.rare.as_deref_mut().and_then(Rare::search) else { return };
        if let Some((start, _, size)) = search.probe.filter(|probe| probe.0 == seq) {
            debug_assert!(start == seq);
            search.probe = None;
            search.high = size - 1;
            search.settle(self.path.agreed, now);
        }
    }

    /// Something new was acknowledged.
    pub fn on_path_progress(&mut self, now: Instant) {
        let Some(search) = self.rare.as_deref_mut().and_then(Rare::search) else { return };
        if let Some((_, _, size)) = search.probe.filter(|probe| probe.1 <= self.una) {
            search.probe = None;
            search.low = size;
            search.settle(self.path.agreed, now);
            self.mss = size.min(self.path.agreed);
        }
    }
}

impl Search {
    /// With all that can be known known, rests and then begins anew.
    fn settle(&mut self, agreed: u16, now: Instant) {
        if self.high < self.low + PRECISION {
            self.again_at = now + LIFETIME;
            self.high = agreed;
        } else {
            self.again_at = now;
        }
    }
}
