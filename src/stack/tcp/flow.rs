//! From a segment's four-tuple to the record that owns it, in constant time.
//!
//! Open addressing with linear probing over 8-byte slots (hash and reference); the key itself is only in the record,
//! which is touched next anyway. The hash is keyed, so a peer can't choose tuples that collide.

use crate::siphash::SipKey;
use alloc::vec;
use alloc::vec::Vec;
use core::net::{IpAddr, SocketAddr};

/// Both ends of a connection, ours first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FlowKey {
    pub local: IpAddr,
    pub remote: IpAddr,
    pub local_port: u16,
    pub remote_port: u16,
}

impl FlowKey {
    pub const fn new(local: SocketAddr, remote: SocketAddr) -> Self {
        Self { local: local.ip(), remote: remote.ip(), local_port: local.port(), remote_port: remote.port() }
    }

    pub const fn local(&self) -> SocketAddr {
        SocketAddr::new(self.local, self.local_port)
    }

    pub const fn remote(&self) -> SocketAddr {
        SocketAddr::new(self.remote, self.remote_port)
    }

    pub fn hash(&self, key: SipKey) -> u64 {
        let ports = u64::from(self.local_port) << 16 | u64::from(self.remote_port);
        match (self.local, self.remote) {
            (IpAddr::V4(local), IpAddr::V4(remote)) => {
                key.hash_words([u64::from(local.to_bits()) << 32 | u64::from(remote.to_bits()), ports])
            }
            (local, remote) => {
                let [a, b] = halves(local);
                let [c, d] = halves(remote);
                key.hash_words([a, b, c, d, ports])
            }
        }
    }

    /// Hash for [`FlowTable`].
    pub fn table_hash(&self, key: SipKey) -> u64 {
        let ports = u64::from(self.local_port) << 16 | u64::from(self.remote_port);
        match (self.local, self.remote) {
            (IpAddr::V4(local), IpAddr::V4(remote)) => {
                key.hash_words_fast([u64::from(local.to_bits()) << 32 | u64::from(remote.to_bits()), ports])
            }
            (local, remote) => {
                let ([a, b], [c, d]) = (halves(local), halves(remote));
                key.hash_words_fast([a, b, c, d, ports])
            }
        }
    }

    /// Hash of the two addresses alone: what RFC 6191 and 7323 need to stay the same from one connection to the next.
    pub fn hash_hosts(&self, key: SipKey) -> u64 {
        Self { local_port: 0, remote_port: 0, ..*self }.hash(key)
    }
}

#[allow(clippy::cast_possible_truncation)]
fn halves(address: IpAddr) -> [u64; 2] {
    let bits = match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
        IpAddr::V6(v6) => v6.to_bits(),
    };
    [(bits >> 64) as u64, bits as u64]
}

/// Where a flow's record is: which table, and the index in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FlowRef {
    Connection(u32),
    HalfOpen(u32),
    TimeWait(u32),
}

const KIND_SHIFT: u32 = 30;
const INDEX_MASK: u32 = (1 << KIND_SHIFT) - 1;

impl FlowRef {
    pub const fn pack(self) -> u32 {
        match self {
            Self::Connection(index) => index & INDEX_MASK,
            Self::HalfOpen(index) => index & INDEX_MASK | 1 << KIND_SHIFT,
            Self::TimeWait(index) => index & INDEX_MASK | 2 << KIND_SHIFT,
        }
    }

    pub const fn unpack(packed: u32) -> Self {
        let index = packed & INDEX_MASK;
        match packed >> KIND_SHIFT {
            0 => Self::Connection(index),
            1 => Self::HalfOpen(index),
            _ => Self::TimeWait(index),
        }
    }
}

const EMPTY: u32 = u32::MAX;

#[derive(Clone, Copy, Debug)]
struct Slot {
    hash: u32,
    reference: u32,
}

/// The table. At most three quarters full.
#[derive(Debug)]
pub(super) struct FlowTable {
    slots: Vec<Slot>,
    used: usize,
}

impl FlowTable {
    pub fn new() -> Self {
        Self { slots: vec![Slot { hash: 0, reference: EMPTY }; 256], used: 0 }
    }

    #[cfg(test)]
    pub fn bytes(&self) -> usize {
        self.slots.capacity() * size_of::<Slot>()
    }

    #[cfg(test)]
    pub const fn len(&self) -> usize {
        self.used
    }

    /// The record with this hash for which `is_it` holds.
    pub fn find(&self, hash: u64, mut is_it: impl FnMut(FlowRef) -> bool) -> Option<FlowRef> {
        let mut at = self.home(hash as u32);
        loop {
            let slot = self.slots[at];
            if slot.reference == EMPTY {
                return None;
            }
            if slot.hash == hash as u32 && is_it(FlowRef::unpack(slot.reference)) {
                return Some(FlowRef::unpack(slot.reference));
            }
            at = self.after(at);
        }
    }

    /// Adds a record whose key is not in the table.
    pub fn insert(&mut self, hash: u64, reference: FlowRef) {
        if self.used * 4 >= self.slots.len() * 3 {
            self.grow();
        }
        self.place(Slot { hash: hash as u32, reference: reference.pack() });
        self.used += 1;
    }

    pub fn remove(&mut self, hash: u64, reference: FlowRef) {
        let packed = reference.pack();
        let mut hole = self.home(hash as u32);
        while self.slots[hole].reference != packed {
            if self.slots[hole].reference == EMPTY {
                return;
            }
            hole = self.after(hole);
        }
        self.used -= 1;
        // Knuth 6.4 R: move back whatever could not be found any more past the hole; no tombstones.
        let mut at = hole;
        loop {
            at = self.after(at);
            let slot = self.slots[at];
            if slot.reference == EMPTY {
                break;
            }
            let mask = self.slots.len() - 1;
            let distance = at.wrapping_sub(self.home(slot.hash)) & mask;
            if distance >= at.wrapping_sub(hole) & mask {
                self.slots[hole] = slot;
                hole = at;
            }
        }
        self.slots[hole].reference = EMPTY;
    }

    fn place(&mut self, slot: Slot) {
        let mut at = self.home(slot.hash);
        while self.slots[at].reference != EMPTY {
            at = self.after(at);
        }
        self.slots[at] = slot;
    }

    fn grow(&mut self) {
        let larger = vec![Slot { hash: 0, reference: EMPTY }; self.slots.len() * 2];
        for slot in core::mem::replace(&mut self.slots, larger) {
            if slot.reference != EMPTY {
                self.place(slot);
            }
        }
    }

    const fn home(&self, hash: u32) -> usize {
        hash as usize & (self.slots.len() - 1)
    }

    const fn after(&self, at: usize) -> usize {
        (at + 1) & (self.slots.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        /// Few distinct hashes, so that everything collides.
        #[test]
        fn as_a_map(steps in prop::collection::vec((any::<bool>(), 0_u32..600, 0_u64..40), 1..900)) {
            let mut table = FlowTable::new();
            let mut model = BTreeMap::new();
            for (add, index, hash) in steps {
                let hash = hash * 6_700_417;
                let reference = FlowRef::TimeWait(index);
                if add && !model.contains_key(&index) {
                    table.insert(hash, reference);
                    model.insert(index, hash);
                } else if let Some(hash) = model.remove(&index) {
                    table.remove(hash, reference);
                } else {
                    table.remove(hash, reference);
                }
                prop_assert_eq!(table.len(), model.len());
                for (index, hash) in &model {
                    let reference = FlowRef::TimeWait(*index);
                    prop_assert_eq!(table.find(*hash, |r| r == reference), Some(reference));
                }
            }
        }
    }

    #[test]
    fn ends_and_families_hash_apart() {
        let key = SipKey::new([7; 16]);
        let flow = |local: &str, remote: &str| FlowKey::new(local.parse().unwrap(), remote.parse().unwrap());
        let a = flow("1.2.3.4:5", "6.7.8.9:10");
        assert_ne!(a.hash(key), flow("6.7.8.9:10", "1.2.3.4:5").hash(key));
        assert_ne!(a.hash(key), flow("[::1]:5", "[::2]:10").hash(key));
        assert_eq!(a.hash_hosts(key), flow("1.2.3.4:50", "6.7.8.9:100").hash_hosts(key));
        assert!(size_of::<FlowKey>() <= 40);
    }
}
