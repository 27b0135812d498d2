//! The neighbour cache: which Ethernet address an IP address on the link has. RFC 4861's machine, simplified, for both
//! families (RFC 826 says nothing of states).
//!
//! ```text
//!   lookup ─▶ incomplete ──reply──▶ reachable ──30 s──▶ (use, 5 s) ─▶ probe ──reply──▶ reachable
//!                 │ 3 x 1 s            ▲                               │ 3 x 1 s
//!                 ▼                    │                               ▼
//!               failed             stale ◀── hints (requests, gratuitous changes)   failed
//! ```
//!
//! Packets wait in an incomplete entry, a few and bounded. The table is bounded too: a resolution that we start may
//! push out the entry that went unused longest; what strangers say only fills room that is free.

use crate::outbox::Reply;
use crate::{Instant, Mac, NeighborMode, NeighborUpdate, StaticNeighbor};
use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::vec::Vec;
use core::net::IpAddr;
use core::time::Duration;

/// RFC 4861 10, REACHABLE_TIME.
const REACHABLE: Duration = Duration::from_secs(30);
/// RFC 4861 10, RETRANS_TIMER; RFC 1122 2.3.2.1 allows one request a second.
const RETRY: Duration = Duration::from_secs(1);
/// RFC 4861 10, DELAY_FIRST_PROBE_TIME.
const DELAY: Duration = Duration::from_secs(5);
/// RFC 4861 10, MAX_MULTICAST_SOLICIT and MAX_UNICAST_SOLICIT.
const ATTEMPTS: u8 = 3;
/// Entries that there is room for besides the permanent ones, however low the limit.
const MIN_ROOM: usize = 16;
const FOREVER: Instant = Instant::from_nanos(u64::MAX);

/// What the cache knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lookup {
    /// The answer may be remembered until then, as long as [`Neighbors::epoch`] stays the same.
    Known { mac: Mac, until: Instant },
    /// It is being asked for: [`Neighbors::hold`] the packet.
    Pending,
}

/// A question to put on the wire (or, in external mode, to the driver).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Solicit {
    pub address: IpAddr,
    /// Some: only ask whether it is still there.
    pub mac: Option<Mac>,
}

/// How an address and a MAC were heard of together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    /// The answer to a question of ours: proves that frames go both ways.
    Answer,
    /// Someone who talks to us names itself: worth an entry if there is room.
    Request,
    /// Said to everybody: only changes what is known already.
    Announcement,
    /// RFC 4861 7.2.5: an answer that must not replace another MAC (override flag clear).
    WeakAnswer,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// From the configuration, never changed.
    Static(Mac),
    /// From the kernel's table.
    External(Mac),
    Reachable {
        mac: Mac,
        until: Instant,
    },
    Stale(Mac),
    Probe {
        mac: Mac,
        sent: u8,
        next: Instant,
    },
    Incomplete {
        sent: u8,
        next: Instant,
    },
    /// Did not answer. Kept to remember when it was asked last.
    Failed,
}

#[derive(Debug)]
struct Entry {
    state: State,
    pending: VecDeque<Reply>,
    asked: Option<Instant>,
    used: Instant,
}

/// The cache of one stack.
#[derive(Debug)]
pub(crate) struct Neighbors {
    mode: NeighborMode,
    entries: BTreeMap<IpAddr, Entry>,
    timers: BTreeSet<(Instant, IpAddr)>,
    limit: usize,
    per_neighbor: usize,
    epoch: u32,
    /// Questions that came up; the stack takes them.
    pub solicits: Vec<Solicit>,
    /// Neighbours that did not answer, with the packets that waited; the stack takes them.
    pub failed: Vec<(IpAddr, VecDeque<Reply>)>,
}

impl Neighbors {
    pub fn new(mode: NeighborMode, fixed: &[StaticNeighbor], limit: usize, per_neighbor: usize) -> Self {
        let mut entries = BTreeMap::new();
        for n in fixed {
            let state = State::Static(n.mac);
            entries.insert(n.address, Entry { state, pending: VecDeque::new(), asked: None, used: Instant::ZERO });
        }
        let limit = limit.max(entries.len() + MIN_ROOM);
        Self {
            mode,
            entries,
            timers: BTreeSet::new(),
            limit,
            per_neighbor: per_neighbor.max(1),
            epoch: 0,
            solicits: Vec::new(),
            failed: Vec::new(),
        }
    }

    /// Changes when an answer given earlier may have become wrong.
    pub const fn epoch(&self) -> u32 {
        self.epoch
    }

    /// The MAC of `address`; starts to ask for it if nothing is known.
    pub fn lookup(&mut self, now: Instant, address: IpAddr) -> Lookup {
        if !self.entries.contains_key(&address) {
            self.make_room();
            let entry = Entry { state: State::Failed, pending: VecDeque::new(), asked: None, used: now };
            self.entries.insert(address, entry);
        }
        let Some(e) = self.entries.get_mut(&address) else { return Lookup::Pending };
        e.used = now;
        match e.state {
            State::Static(mac) | State::External(mac) => Lookup::Known { mac, until: FOREVER },
            State::Reachable { mac, until } if now < until => Lookup::Known { mac, until },
            State::Reachable { mac, .. } | State::Stale(mac) => {
                // Still the best guess: RFC 4861 7.3.3 goes on using it, and asks only if nothing confirms it soon.
                let next = now + DELAY;
                e.state = State::Probe { mac, sent: 0, next };
                self.timers.insert((next, address));
                Lookup::Known { mac, until: next }
            }
            State::Probe { mac, next, .. } => Lookup::Known { mac, until: next },
            State::Incomplete { .. } => Lookup::Pending,
            State::Failed => {
                // However often its users try again, it is asked once a second at most.
                let soonest = e.asked.map_or(now, |t| t + RETRY);
                let (sent, next) = if soonest <= now {
                    e.asked = Some(now);
                    self.solicits.push(Solicit { address, mac: None });
                    (1, now + RETRY)
                } else {
                    (0, soonest)
                };
                e.state = State::Incomplete { sent, next };
                self.timers.insert((next, address));
                Lookup::Pending
            }
        }
    }

    /// Keeps a packet until `address` is known. Gives back the one that had to go for it.
    pub fn hold(&mut self, address: IpAddr, packet: Reply) -> Option<Reply> {
        let per_neighbor = self.per_neighbor;
        let Some(e) = self.entries.get_mut(&address) else { return Some(packet) };
        // RFC 1122 2.3.2.2: keep the latest.
        let oldest = if e.pending.len() >= per_neighbor { e.pending.pop_front() } else { None };
        e.pending.push_back(packet);
        oldest
    }

    /// Takes what was heard of a neighbour. Some when packets or connections may have waited for it.
    pub fn learn(&mut self, now: Instant, address: IpAddr, mac: Mac, heard: Heard) -> Option<VecDeque<Reply>> {
        let known = self.entries.contains_key(&address);
        // A group or nothing as a MAC would spread our frames, or lose them.
        if mac[0] & 1 == 1 || mac == [0; 6] || self.mode == NeighborMode::External {
            return None;
        }
        if !known {
            if heard == Heard::Request && self.entries.len() < self.limit {
                let state = State::Stale(mac);
                self.entries.insert(address, Entry { state, pending: VecDeque::new(), asked: None, used: now });
            }
            return None;
        }
        let e = self.entries.get_mut(&address)?;
        let confirmed = State::Reachable { mac, until: now + REACHABLE };
        let old = e.state;
        let new = match (old, heard) {
            (State::Static(_) | State::External(_), _) => return None,
            (_, Heard::Answer) => confirmed,
            (State::Reachable { mac: m, .. } | State::Stale(m) | State::Probe { mac: m, .. }, Heard::WeakAnswer) => {
                if m == mac { confirmed } else { State::Stale(m) }
            }
            (_, Heard::WeakAnswer) => confirmed,
            (State::Reachable { mac: m, .. } | State::Stale(m) | State::Probe { mac: m, .. }, _) if m == mac => old,
            (_, Heard::Request | Heard::Announcement) => State::Stale(mac),
        };
        e.state = new;
        let pending = core::mem::take(&mut e.pending);
        if let State::Incomplete { next, .. } | State::Probe { next, .. } = old
            && new != old
        {
            self.timers.remove(&(next, address));
        }
        if old.mac() != new.mac() {
            self.epoch = self.epoch.wrapping_add(1);
        }
        matches!(old, State::Incomplete { .. }).then_some(pending)
    }

    pub fn mac_of(&self, address: IpAddr) -> Option<Mac> {
        self.entries.get(&address)?.state.mac()
    }

    /// Takes the kernel's word, [`NeighborMode::External`]. As [`Self::learn`].
    pub fn update(&mut self, now: Instant, update: NeighborUpdate) -> Option<VecDeque<Reply>> {
        let address = update.address;
        let old = self.entries.get(&address).map(|e| e.state);
        match (old, update.mac) {
            (Some(State::Static(_)), _) | (None, None) => return None,
            (None, Some(_)) if self.entries.len() >= self.limit => return None,
            (None, Some(mac)) => {
                let state = State::External(mac);
                self.entries.insert(address, Entry { state, pending: VecDeque::new(), asked: None, used: now });
                return None;
            }
            (Some(_), _) => {}
        }
        let e = self.entries.get_mut(&address)?;
        let old = e.state;
        e.state = update.mac.map_or(State::Failed, State::External);
        let pending = core::mem::take(&mut e.pending);
        if let State::Incomplete { next, .. } | State::Probe { next, .. } = old {
            self.timers.remove(&(next, address));
        }
        if old.mac() != update.mac {
            self.epoch = self.epoch.wrapping_add(1);
        }
        match (old, update.mac) {
            (State::Incomplete { .. }, Some(_)) => Some(pending),
            (State::Incomplete { .. }, None) => {
                self.failed.push((address, pending));
                None
            }
            _ => None,
        }
    }

    /// Asks again, or gives up.
    pub fn handle_timers(&mut self, now: Instant) {
        while let Some(&(at, address)) = self.timers.first() {
            if at > now {
                break;
            }
            self.timers.pop_first();
            let Some(e) = self.entries.get_mut(&address) else { continue };
            let next = now + RETRY;
            match &mut e.state {
                State::Incomplete { sent, next: n } if *sent < ATTEMPTS => {
                    *sent += 1;
                    *n = next;
                    e.asked = Some(now);
                    self.timers.insert((next, address));
                    self.solicits.push(Solicit { address, mac: None });
                }
                State::Probe { mac, sent, next: n } if *sent < ATTEMPTS => {
                    *sent += 1;
                    *n = next;
                    e.asked = Some(now);
                    let mac = Some(*mac);
                    self.timers.insert((next, address));
                    self.solicits.push(Solicit { address, mac });
                }
                State::Incomplete { .. } => {
                    e.state = State::Failed;
                    let pending = core::mem::take(&mut e.pending);
                    self.failed.push((address, pending));
                }
                State::Probe { .. } => {
                    e.state = State::Failed;
                    self.epoch = self.epoch.wrapping_add(1);
                }
                _ => {}
            }
        }
    }

    pub fn next_deadline(&self) -> Option<Instant> {
        self.timers.first().map(|&(at, _)| at)
    }

    /// Makes room for one more entry: the one that went unused longest goes, those that are asked for last. Linear in
    /// the limit, but only when we ourselves reach for more neighbours than the table holds.
    fn make_room(&mut self) {
        if self.entries.len() < self.limit {
            return;
        }
        let victim = self
            .entries
            .iter()
            .filter(|(_, e)| !matches!(e.state, State::Static(_)))
            .min_by_key(|(_, e)| (matches!(e.state, State::Incomplete { .. }), e.used))
            .map(|(&address, _)| address);
        let Some(address) = victim else { return };
        let Some(e) = self.entries.remove(&address) else { return };
        self.epoch = self.epoch.wrapping_add(1);
        if let State::Incomplete { next, .. } | State::Probe { next, .. } = e.state {
            self.timers.remove(&(next, address));
        }
        if matches!(e.state, State::Incomplete { .. }) {
            self.failed.push((address, e.pending));
        }
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.entries.len()
    }
}

impl State {
    const fn mac(&self) -> Option<Mac> {
        match *self {
            Self::Static(mac)
            | Self::External(mac)
            | Self::Reachable { mac, .. }
            | Self::Stale(mac)
            | Self::Probe { mac, .. } => Some(mac),
            Self::Incomplete { .. } | Self::Failed => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    const A: Mac = [2, 0, 0, 0, 0, 0xa];
    const B: Mac = [2, 0, 0, 0, 0, 0xb];

    fn ip(n: u32) -> IpAddr {
        IpAddr::V4((0x0a00_0000 + n).into())
    }

    fn packet(n: u8) -> Reply {
        Reply { source: ip(1), destination: ip(2), protocol: 17, tos: 0, ttl: 0, payload: vec![n] }
    }

    fn at(ms: u64) -> Instant {
        Instant::from_millis(ms)
    }

    fn cache() -> Neighbors {
        Neighbors::new(NeighborMode::Own, &[StaticNeighbor { address: ip(9), mac: B }], 32, 2)
    }

    #[test]
    fn asks_three_times_and_gives_up() {
        let mut n = cache();
        assert_eq!(n.lookup(at(0), ip(2)), Lookup::Pending);
        assert!(n.hold(ip(2), packet(1)).is_none() && n.hold(ip(2), packet(2)).is_none());
        assert_eq!(n.hold(ip(2), packet(3)).unwrap().payload, [1], "the oldest goes");
        for s in 1..=3 {
            assert_eq!(n.next_deadline(), Some(at(s * 1000)));
            n.handle_timers(at(s * 1000));
        }
        assert_eq!(n.solicits.len(), 3);
        let (address, pending) = n.failed.pop().unwrap();
        assert_eq!((address, pending.len()), (ip(2), 2));
        assert_eq!(n.next_deadline(), None);
        // The next use asks again, but not within a second of the last question.
        n.solicits.clear();
        assert_eq!(n.lookup(at(3_000), ip(2)), Lookup::Pending);
        assert_eq!(n.solicits.len(), 1);
    }

    #[test]
    fn an_answer_releases_what_waited_and_ages() {
        let mut n = cache();
        n.lookup(at(0), ip(2));
        n.hold(ip(2), packet(1));
        assert_eq!(n.learn(at(5), ip(2), A, Heard::Answer).unwrap().len(), 1);
        assert_eq!(n.next_deadline(), None);
        assert_eq!(n.lookup(at(6), ip(2)), Lookup::Known { mac: A, until: at(30_005) });
        n.solicits.clear();
        // After 30 s it is still used, and probed after another 5.
        assert!(matches!(n.lookup(at(31_000), ip(2)), Lookup::Known { mac: A, .. }));
        assert_eq!(n.solicits, []);
        for s in 36..=39 {
            assert!(matches!(n.lookup(at(s * 1000), ip(2)), Lookup::Known { mac: A, .. }));
            n.handle_timers(at(s * 1000));
        }
        assert_eq!(n.solicits, [Solicit { address: ip(2), mac: Some(A) }; 3]);
        assert_eq!(n.lookup(at(40_000), ip(2)), Lookup::Pending, "gone after three probes");
    }

    #[test]
    fn announcements_change_but_do_not_add() {
        let mut n = cache();
        n.learn(at(0), ip(5), A, Heard::Announcement);
        assert_eq!(n.len(), 1);
        n.learn(at(0), ip(5), A, Heard::Request);
        assert_eq!(n.len(), 2);
        let epoch = n.epoch();
        n.learn(at(0), ip(5), B, Heard::Announcement);
        assert_ne!(n.epoch(), epoch);
        assert!(matches!(n.lookup(at(1), ip(5)), Lookup::Known { mac: B, .. }));
        // RFC 4861 7.2.5: without the override flag another MAC is not taken.
        n.learn(at(1), ip(5), A, Heard::WeakAnswer);
        assert!(matches!(n.lookup(at(1), ip(5)), Lookup::Known { mac: B, .. }));
        // Static entries, groups and zeros.
        n.learn(at(1), ip(9), A, Heard::Answer);
        n.learn(at(1), ip(5), [0xff; 6], Heard::Answer);
        n.learn(at(1), ip(5), [0; 6], Heard::Answer);
        assert!(matches!(n.lookup(at(1), ip(9)), Lookup::Known { mac: B, .. }));
        assert!(matches!(n.lookup(at(1), ip(5)), Lookup::Known { mac: B, .. }));
    }

    #[test]
    fn floods_stay_within_the_limit() {
        let mut n = cache();
        for i in 100..10_000 {
            n.learn(at(0), ip(i), A, Heard::Request);
        }
        assert_eq!(n.len(), 32);
        for i in 20_000..21_000 {
            n.lookup(at(u64::from(i)), ip(i));
            n.hold(ip(i), packet(0));
        }
        assert_eq!(n.len(), 32);
        assert_eq!(n.timers.len(), 31, "timers of entries that are gone are gone");
        assert!(matches!(n.lookup(at(0), ip(9)), Lookup::Known { .. }), "static ones stay");
    }

    #[test]
    fn the_kernel_tells() {
        let mut n = Neighbors::new(NeighborMode::External, &[], 32, 8);
        assert_eq!(n.lookup(at(0), ip(2)), Lookup::Pending);
        n.hold(ip(2), packet(1));
        assert_eq!(n.learn(at(0), ip(2), A, Heard::Answer), None, "frames say nothing here");
        assert_eq!(n.update(at(1), NeighborUpdate { address: ip(2), mac: Some(A) }).unwrap().len(), 1);
        assert_eq!(n.lookup(at(100_000), ip(2)), Lookup::Known { mac: A, until: FOREVER });
        n.update(at(1), NeighborUpdate { address: ip(2), mac: None });
        assert_eq!(n.lookup(at(100_000), ip(2)), Lookup::Pending);
    }
}
