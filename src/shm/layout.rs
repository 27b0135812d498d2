//! What lies where in a group's memfd.
//!
//! ```text
//!  0      Header (one page)
//!  +      ShardDoor x shards       dirty slots for a shard, its sleeping flag
//!  +      free set                 slots that a program may claim (one DirtySet used as a set of bits)
//!  +      EventQueue x queues      dirty slots for one waiter of a program, its sleeping flag
//!  +      Process x processes      who is attached
//!  +      Slot x slots
//!  +      receive and transmit ring of each slot, page-aligned; pages exist only once they were used
//!  +      pool of each shard: blocks for streams that need more than their ring (`split`)
//! ```

use crate::dirty::{DirtySet, Door};
use crate::slot::Slot;
use crate::split::GRANULE_BYTES;
use crate::sync::{AtomicU32, AtomicU64};

/// First eight bytes of every region: "SIDESTEP".
pub const MAGIC: u64 = u64::from_le_bytes(*b"SIDESTEP");
/// Version of this layout; engine and library must agree exactly.
pub const VERSION: u32 = 6;
/// Unit in which memory is given out and given back, in bytes.
pub const PAGE_BYTES: u64 = 4096;
/// Most slots in a group: what a three-level set of 64-bit words can name.
pub const MAX_SLOTS: u32 = 64 * 64 * 64;
/// Most processes attached to one group; `Slot::holders` has a bit for each.
pub const MAX_PROCESSES: u32 = 1024;
/// Number of no process: holds what is on its way from one to another.
pub const IN_TRANSIT: u32 = MAX_PROCESSES - 1;
/// Most event queues (epoll instances and blocked threads) in one group; `Slot::watchers` has a bit for each.
pub const MAX_EVENT_QUEUES: u32 = 1024;
/// Most shards of an engine.
pub const MAX_SHARDS: u32 = 64;
/// Smallest and largest ring, in bytes. The largest keeps any stream position difference within 31 bits.
pub const MIN_RING_BYTES: u32 = 4096;
/// See [`MIN_RING_BYTES`].
pub const MAX_RING_BYTES: u32 = 1 << 30;

/// Most bytes in all pools of a group: what a block's reference can name.
pub const MAX_POOL_BYTES: u64 = 1 << 43;

/// The numbers from which every offset follows. Each side keeps its own copy and never re-reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Shards of the engine.
    pub shards: u32,
    /// Slots that programs claim for sockets they open: numbers `0..open_slots`.
    pub open_slots: u32,
    /// Slots that each shard hands out for accepted connections; shard `s` owns
    /// `open_slots + s * accept_slots ..` of that length.
    pub accept_slots: u32,
    /// Capacity of every receive ring, in bytes, a power of two.
    pub rx_bytes: u32,
    /// Capacity of every transmit ring, in bytes, a power of two.
    pub tx_bytes: u32,
    /// Memory that each shard may give to streams that outgrow their ring, in bytes, a multiple of [`GRANULE_BYTES`];
    /// may be 0.
    pub pool_bytes: u64,
}

/// Why a geometry can't be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GeometryError {
    /// Shards must be 1 to [`MAX_SHARDS`].
    Shards(u32),
    /// All slots together must be 1 to [`MAX_SLOTS`].
    Slots(u64),
    /// A ring must be a power of two from [`MIN_RING_BYTES`] to [`MAX_RING_BYTES`].
    Ring(u32),
    /// A pool must be a multiple of [`GRANULE_BYTES`], and all together no more than [`MAX_POOL_BYTES`].
    Pool(u64),
    /// The region is smaller than the geometry that it claims.
    Truncated { need: u64, have: u64 },
    /// Not a region of this version.
    Foreign,
}

impl core::fmt::Display for GeometryError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Shards(n) => write!(f, "{n} shards: must be 1 to {MAX_SHARDS}"),
            Self::Slots(n) => write!(f, "{n} socket slots: must be 1 to {MAX_SLOTS}"),
            Self::Ring(n) => {
                write!(f, "a ring of {n} bytes: must be a power of two from {MIN_RING_BYTES} to {MAX_RING_BYTES}")
            }
            Self::Pool(n) => {
                write!(
                    f,
                    "a pool of {n} bytes: must be a multiple of {GRANULE_BYTES}, at most {MAX_POOL_BYTES} for all shards"
                )
            }
            Self::Truncated { need, have } => write!(f, "shared memory of {have} bytes where the layout needs {need}"),
            Self::Foreign => write!(f, "not shared memory of this version of Sidestep (layout {VERSION})"),
        }
    }
}

impl core::error::Error for GeometryError {}

impl Geometry {
    /// Checks every bound that the layout rests on.
    ///
    /// # Errors
    /// The first number that is out of range.
    pub fn validate(self) -> Result<Self, GeometryError> {
        if self.shards == 0 || self.shards > MAX_SHARDS {
            return Err(GeometryError::Shards(self.shards));
        }
        let slots = u64::from(self.open_slots) + u64::from(self.shards) * u64::from(self.accept_slots);
        if slots == 0 || slots > u64::from(MAX_SLOTS) || self.open_slots == 0 {
            return Err(GeometryError::Slots(slots));
        }
        // A listener keeps an accept ring for each shard in its receive ring: 1 KiB each is 112 connections.
        if self.rx_bytes < self.shards * 1024 {
            return Err(GeometryError::Ring(self.rx_bytes));
        }
        for ring in [self.rx_bytes, self.tx_bytes] {
            if !ring.is_power_of_two() || !(MIN_RING_BYTES..=MAX_RING_BYTES).contains(&ring) {
                return Err(GeometryError::Ring(ring));
            }
        }
        let pools = self.pool_bytes.checked_mul(self.shards.into());
        if !self.pool_bytes.is_multiple_of(GRANULE_BYTES) || pools.is_none_or(|all| all > MAX_POOL_BYTES) {
            return Err(GeometryError::Pool(self.pool_bytes));
        }
        Ok(self)
    }

    /// All slots of the group.
    #[must_use]
    pub fn slots(&self) -> u32 {
        self.open_slots + self.shards * self.accept_slots
    }

    /// First slot and count of those that `shard` hands out for accepted connections.
    #[must_use]
    pub fn accept_range(&self, shard: u32) -> core::ops::Range<u32> {
        let first = self.open_slots + shard * self.accept_slots;
        first..first + self.accept_slots
    }

    pub(crate) fn doors_at(&self) -> u64 {
        PAGE_BYTES
    }
    pub(crate) fn free_at(&self) -> u64 {
        page_up(self.doors_at() + u64::from(self.shards) * size_of::<ShardDoor>() as u64)
    }
    pub(crate) fn queues_at(&self) -> u64 {
        page_up(self.free_at() + size_of::<DirtySet>() as u64)
    }
    pub(crate) fn processes_at(&self) -> u64 {
        page_up(self.queues_at() + u64::from(MAX_EVENT_QUEUES) * size_of::<EventQueue>() as u64)
    }
    pub(crate) fn slots_at(&self) -> u64 {
        page_up(self.processes_at() + u64::from(MAX_PROCESSES) * size_of::<Process>() as u64)
    }
    pub(crate) fn data_at(&self) -> u64 {
        page_up(self.slots_at() + u64::from(self.slots()) * size_of::<Slot>() as u64)
    }

    /// Offset of the receive ring of `slot`, in bytes from the start of the region.
    #[must_use]
    pub fn rx_at(&self, slot: u32) -> u64 {
        self.data_at() + u64::from(slot) * (u64::from(self.rx_bytes) + u64::from(self.tx_bytes))
    }

    /// Offset of the transmit ring of `slot`.
    #[must_use]
    pub fn tx_at(&self, slot: u32) -> u64 {
        self.rx_at(slot) + u64::from(self.rx_bytes)
    }

    /// Bytes of the whole region. Most of them never become memory.
    #[must_use]
    pub fn region_bytes(&self) -> u64 {
        self.pools_at() + u64::from(self.shards) * self.pool_bytes
    }

    pub(crate) fn pools_at(&self) -> u64 {
        let rings = self.data_at() + u64::from(self.slots()) * (u64::from(self.rx_bytes) + u64::from(self.tx_bytes));
        rings.next_multiple_of(GRANULE_BYTES)
    }

    /// First granule of the pool of `shard`, and how many it has.
    #[must_use]
    pub fn pool_range(&self, shard: u32) -> core::ops::Range<u32> {
        let each = (self.pool_bytes / GRANULE_BYTES) as u32;
        shard * each..(shard + 1) * each
    }

    /// Offset and length of the block with this reference, in bytes from the start of the region. None: there is no
    /// such block.
    #[must_use]
    pub fn block(&self, reference: u32) -> Option<(u64, u32)> {
        let (granule, shift) = crate::split::resolve(reference)?;
        let (at, bytes) = (u64::from(granule) * GRANULE_BYTES, 1u32 << shift);
        let end = at + u64::from(bytes);
        (end <= u64::from(self.shards) * self.pool_bytes).then_some((self.pools_at() + at, bytes))
    }
}

fn page_up(n: u64) -> u64 {
    n.next_multiple_of(PAGE_BYTES)
}

/// The first page. Written by the engine, before the program sees it, but for `heartbeat`.
#[repr(C, align(64))]
pub struct Header {
    pub magic: AtomicU64,
    pub version: AtomicU32,
    pub shards: AtomicU32,
    pub open_slots: AtomicU32,
    pub accept_slots: AtomicU32,
    pub rx_bytes: AtomicU32,
    pub tx_bytes: AtomicU32,
    pub pool_bytes: AtomicU64,
    pub(crate) reserved: [AtomicU32; 6],
    /// CLOCK_MONOTONIC, nanoseconds, of the engine's last sign of life. A program that waits takes an engine whose
    /// sign is older than [`ENGINE_SILENT_NS`] for dead.
    pub heartbeat: AtomicU64,
}

/// How often the engine writes [`Header::heartbeat`] at least.
pub const HEARTBEAT_EVERY_NS: u64 = 250_000_000;
/// A heartbeat older than this means that the engine is stopped or gone (20 missed beats: a busy host may starve it).
pub const ENGINE_SILENT_NS: u64 = 5_000_000_000;

/// How programs reach one shard. Programs mark, the shard harvests; the shard writes `door`.
#[repr(C, align(64))]
pub struct ShardDoor {
    pub door: Door,
    pub dirty: DirtySet,
}

/// How the engine reaches one waiter (an epoll instance, a thread in poll or in a blocking call).
#[repr(C, align(64))]
pub struct EventQueue {
    /// Written by the waiter; the engine and other programs read it.
    pub door: Door,
    /// Process number + 1 of the owner, 0 when free. Claimed by compare-and-swap; the engine clears it for the dead.
    pub owner: AtomicU32,
    pub(crate) reserved: [AtomicU32; 15],
    /// Marked by the engine, harvested by the owner.
    pub dirty: DirtySet,
}

/// One attached process. Written by the engine.
#[repr(C, align(64))]
pub struct Process {
    /// Process id as the engine sees it, 0 when free.
    pub pid: AtomicU32,
    pub(crate) reserved: [AtomicU32; 15],
}

#[cfg(not(loom))]
const _: () = {
    // The ABI, pinned: change VERSION with any of these.
    assert!(size_of::<Header>() == 128);
    assert!(size_of::<DirtySet>() == 8 * (8 + 64 + 4096));
    assert!(size_of::<Door>() == 64);
    assert!(size_of::<ShardDoor>() == 64 + 33_344);
    assert!(size_of::<EventQueue>() == 128 + 33_344);
    assert!(size_of::<Process>() == 64);
    assert!(size_of::<Slot>() == 832);
    assert!(align_of::<Slot>() == 64);
};

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: Geometry =
        Geometry { shards: 2, open_slots: 64, accept_slots: 64, rx_bytes: 65536, tx_bytes: 4096, pool_bytes: 1 << 20 };

    #[test]
    fn parts_do_not_overlap() {
        let g = SMALL.validate().unwrap();
        assert_eq!(g.slots(), 192);
        assert_eq!(g.accept_range(1), 128..192);
        let cuts =
            [g.doors_at(), g.free_at(), g.queues_at(), g.processes_at(), g.slots_at(), g.data_at(), g.region_bytes()];
        assert!(cuts.windows(2).all(|w| w[0] < w[1]));
        assert!(g.tx_at(191) + 4096 <= g.pools_at() && g.pools_at().is_multiple_of(GRANULE_BYTES));
        assert_eq!((g.pool_range(1), g.region_bytes() - g.pools_at()), (16..32, 2 << 20));
        // The last block of all, and one that would reach beyond.
        let block = |granule, shift| g.block(crate::split::reference(granule, shift));
        assert_eq!(block(16, 20), Some((g.pools_at() + (1 << 20), 1 << 20)));
        assert_eq!((block(17, 20), block(32, 16), g.block(0)), (None, None, None));
        assert_eq!(g.rx_at(7) % PAGE_BYTES, 0);
    }

    #[test]
    fn impossible_geometries_are_refused() {
        let bad = |f: fn(&mut Geometry)| {
            let mut g = SMALL;
            f(&mut g);
            g.validate().unwrap_err()
        };
        assert_eq!(bad(|g| g.shards = 0), GeometryError::Shards(0));
        assert_eq!(bad(|g| g.shards = 65), GeometryError::Shards(65));
        assert_eq!(bad(|g| g.accept_slots = u32::MAX), GeometryError::Slots(64 + 2 * u64::from(u32::MAX)));
        assert_eq!(bad(|g| g.open_slots = 0), GeometryError::Slots(128));
        assert_eq!(bad(|g| g.rx_bytes = 5000), GeometryError::Ring(5000));
        assert_eq!(bad(|g| g.tx_bytes = 1 << 31), GeometryError::Ring(1 << 31));
        assert_eq!(bad(|g| g.pool_bytes = 100), GeometryError::Pool(100));
        assert_eq!(bad(|g| g.pool_bytes = 1 << 43), GeometryError::Pool(1 << 43));
    }
}
