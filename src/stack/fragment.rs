//! Reassembly of IP fragments, for both families: fragments in, whole datagrams out.
//!
//! What is kept is bounded in datagrams, bytes and pieces, and every datagram has 30 s (RFC 8200 4.5 asks for 60, Linux
//! takes 30). When there is no room the oldest goes, so a flood that never finishes anything can't lock others out.
//! Fragments that overlap spoil their datagram, and what still comes of it too (RFC 5722; done for IPv4 as well): no
//! honest sender makes them, and firewalls are passed with them.

use crate::Instant;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::net::IpAddr;
use core::time::Duration;

const LIFETIME: Duration = Duration::from_secs(30);
/// Datagrams in the making.
const MAX_DATAGRAMS: usize = 64;
/// Bytes in all of them together.
const MAX_BYTES: usize = 1 << 20;
/// Pieces that a datagram may have lying apart or in all: the largest one in fragments for the smallest IPv4 MTU that
/// is in use (576) has 119.
const MAX_PIECES: usize = 256;
/// Header and payload of an IP packet.
const MAX_LENGTH: usize = 65_535;

/// RFC 791 3.2 and RFC 8200 4.5: fragments with the same four belong together. (IPv6 leaves the protocol out; having it
/// in both changes nothing for an honest sender.)
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub protocol: u8,
    pub id: u32,
}

/// One fragment as its header describes it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Piece<'a> {
    pub offset: usize,
    /// More follow.
    pub more: bool,
    pub tos: u8,
    pub ttl: u8,
    pub data: &'a [u8],
}

/// A datagram that is complete, or that never will be.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Whole {
    pub key: Key,
    pub tos: u8,
    pub ttl: u8,
    pub payload: Vec<u8>,
}

#[derive(Debug)]
struct Partial {
    deadline: Instant,
    /// Overlaps were seen: everything of it is thrown away.
    spoiled: bool,
    /// Length of the whole, once the last fragment came.
    total: Option<usize>,
    /// Start and end of what has come, by start.
    pieces: BTreeMap<usize, usize>,
    received: usize,
    buffer: Vec<u8>,
    tos: u8,
    ttl: u8,
}

#[derive(Debug, Default)]
pub(crate) struct Reassembly {
    partials: BTreeMap<Key, Partial>,
    bytes: usize,
}

/// What became of a fragment.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Whole(Whole),
    Waiting,
    /// It can't belong to anything.
    Dropped,
}

impl Reassembly {
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes a fragment.
    pub fn add(&mut self, now: Instant, key: Key, piece: &Piece<'_>) -> Outcome {
        let start = piece.offset;
        let end = start + piece.data.len();
        // RFC 791 3.2, RFC 8200 4.5: all but the last are multiples of 8; nothing is longer than an IP packet.
        if piece.data.is_empty() || end > MAX_LENGTH || (piece.more && !piece.data.len().is_multiple_of(8)) {
            return Outcome::Dropped;
        }
        if !self.partials.contains_key(&key) {
            while self.partials.len() >= MAX_DATAGRAMS {
                self.evict(None);
            }
            let partial = Partial {
                deadline: now + LIFETIME,
                spoiled: false,
                total: None,
                pieces: BTreeMap::new(),
                received: 0,
                buffer: Vec::new(),
                tos: 0,
                ttl: 0,
            };
            self.partials.insert(key, partial);
        }
        let Some(p) = self.partials.get_mut(&key) else { return Outcome::Dropped };
        if p.spoiled {
            return Outcome::Dropped;
        }
        // The same fragment again: the network may do that (RFC 8200 4.5).
        if p.pieces.get(&start) == Some(&end) {
            return Outcome::Waiting;
        }
        let before = p.pieces.range(..=start).next_back().is_some_and(|(_, &e)| e > start);
        let after = p.pieces.range(start..end).next().is_some();
        let last = p.pieces.last_key_value().map_or(0, |(_, &e)| e);
        let length = match p.total {
            // A second end, or something beyond the end.
            Some(total) => !piece.more || end > total,
            None => !piece.more && last > end,
        };
        if before || after || length || p.pieces.len() >= MAX_PIECES {
            self.bytes -= p.buffer.len();
            p.spoiled = true;
            p.buffer = Vec::new();
            p.pieces.clear();
            return Outcome::Dropped;
        }
        if !piece.more {
            p.total = Some(end);
        }
        if start == 0 {
            p.ttl = piece.ttl;
            p.tos |= piece.tos;
        } else if piece.tos & 3 == 3 {
            // RFC 3168 5.3: congestion that one fragment met is congestion that the datagram met.
            p.tos |= 3;
        }
        if p.buffer.len() < end {
            self.bytes += end - p.buffer.len();
            p.buffer.resize(end, 0);
        }
        p.buffer[start..end].copy_from_slice(piece.data);
        p.pieces.insert(start, end);
        p.received += piece.data.len();
        if p.total == Some(p.received) {
            self.bytes -= p.buffer.len();
            let Some(p) = self.partials.remove(&key) else { return Outcome::Dropped };
            return Outcome::Whole(Whole { key, tos: p.tos, ttl: p.ttl, payload: p.buffer });
        }
        while self.bytes > MAX_BYTES && self.evict(Some(key)) {}
        Outcome::Waiting
    }

    /// Throws the oldest away, but not `keep`.
    fn evict(&mut self, keep: Option<Key>) -> bool {
        let oldest = self.partials.iter().filter(|(k, _)| Some(**k) != keep).min_by_key(|(_, p)| p.deadline);
        let Some((&key, _)) = oldest else { return false };
        if let Some(p) = self.partials.remove(&key) {
            self.bytes -= p.buffer.len();
        }
        true
    }

    pub fn next_deadline(&self) -> Option<Instant> {
        // 64 entries at most.
        self.partials.values().map(|p| p.deadline).min()
    }

    /// Takes out a datagram whose time is over. Its payload begins with the first fragment's if that came, else it is
    /// empty: then RFC 792 wants no report.
    pub fn expire(&mut self, now: Instant) -> Option<Whole> {
        let key = self.partials.iter().find(|(_, p)| p.deadline <= now).map(|(&key, _)| key)?;
        let mut p = self.partials.remove(&key)?;
        self.bytes -= p.buffer.len();
        let first = p.pieces.get(&0).copied().unwrap_or(0);
        p.buffer.truncate(first);
        Some(Whole { key, tos: p.tos, ttl: p.ttl, payload: p.buffer })
    }
}

/// How a payload is cut: offset and length of the fragment that begins at `offset`, `room` bytes at most.
pub(crate) const fn cut(total: usize, offset: usize, room: usize) -> (usize, bool) {
    let left = total.saturating_sub(offset);
    if left <= room { (left, false) } else { (room & !7, true) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    fn key(id: u32) -> Key {
        Key { source: [10, 0, 0, 1].into(), destination: [10, 0, 0, 2].into(), protocol: 17, id }
    }

    fn piece(offset: usize, data: &[u8], more: bool) -> Piece<'_> {
        Piece { offset, more, tos: 0, ttl: 64, data }
    }

    fn at(s: u64) -> Instant {
        Instant::from_millis(s * 1000)
    }

    #[test]
    fn any_order_and_duplicates() {
        let data: Vec<u8> = (0..40).collect();
        let mut r = Reassembly::new();
        assert_eq!(r.add(at(0), key(1), &piece(32, &data[32..], false)), Outcome::Waiting);
        assert_eq!(r.add(at(0), key(1), &piece(0, &data[..16], true)), Outcome::Waiting);
        assert_eq!(r.add(at(0), key(1), &piece(0, &data[..16], true)), Outcome::Waiting);
        let Outcome::Whole(w) = r.add(at(0), key(1), &piece(16, &data[16..32], true)) else { panic!() };
        assert_eq!(w.payload, data);
        assert_eq!((r.bytes, r.partials.len()), (0, 0));
    }

    #[test]
    fn overlaps_spoil_everything_that_follows() {
        let data = [0; 64];
        for (offset, len, more) in [(8, 16, true), (0, 8, true), (8, 8, false), (0, 64, true)] {
            let mut r = Reassembly::new();
            r.add(at(0), key(1), &piece(0, &data[..16], true));
            assert_eq!(r.add(at(0), key(1), &piece(offset, &data[..len], more)), Outcome::Dropped, "{offset} {len}");
            assert_eq!(r.add(at(0), key(1), &piece(16, &data[..8], false)), Outcome::Dropped);
            assert_eq!(r.bytes, 0);
        }
    }

    #[test]
    fn ends_that_disagree_spoil_it() {
        let data = [0; 64];
        let mut r = Reassembly::new();
        r.add(at(0), key(1), &piece(16, &data[..8], false));
        assert_eq!(r.add(at(0), key(1), &piece(24, &data[..8], true)), Outcome::Dropped);
        let mut r = Reassembly::new();
        r.add(at(0), key(1), &piece(16, &data[..8], true));
        assert_eq!(r.add(at(0), key(1), &piece(8, &data[..8], false)), Outcome::Dropped);
    }

    #[test]
    fn impossible_pieces() {
        let data = [0; 64];
        let mut r = Reassembly::new();
        assert_eq!(r.add(at(0), key(1), &piece(0, &[], true)), Outcome::Dropped);
        assert_eq!(r.add(at(0), key(1), &piece(0, &data[..7], true)), Outcome::Dropped);
        assert_eq!(r.add(at(0), key(1), &piece(65_528, &data[..8], false)), Outcome::Dropped, "ping of death");
        assert!(r.partials.is_empty());
    }

    #[test]
    fn floods_are_bounded_and_time_out() {
        let data = vec![0; 60_000];
        let mut r = Reassembly::new();
        for id in 0..10_000 {
            r.add(at(0), key(id), &piece(0, &data, true));
            assert!(r.partials.len() <= MAX_DATAGRAMS && r.bytes <= MAX_BYTES);
        }
        // Tiny pieces of one datagram.
        for i in 0..5000 {
            r.add(at(1), key(20_000), &piece(i * 16, &data[..8], true));
        }
        assert!(r.partials[&key(20_000)].spoiled);
        let mut expired = 0;
        while r.expire(at(31)).is_some() {
            expired += 1;
        }
        assert!(expired > 10 && r.partials.is_empty() && r.bytes == 0, "{expired}");
        assert_eq!(r.next_deadline(), None);
    }

    #[test]
    fn cuts_are_multiples_of_eight_but_for_the_last() {
        assert_eq!(cut(3000, 0, 1480), (1480, true));
        assert_eq!(cut(3000, 1480, 1475), (1472, true));
        assert_eq!(cut(3000, 2960, 1480), (40, false));
    }
}
