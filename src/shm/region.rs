//! Checked access to a mapping of a group's memfd. Every number comes from the private [`Geometry`].

use core::ptr::NonNull;
use core::sync::atomic::Ordering;

use crate::accept::AcceptRing;
use crate::dirty::DirtySet;
use crate::layout::{
    EventQueue, Geometry, GeometryError, Header, MAGIC, MAX_EVENT_QUEUES, MAX_PROCESSES, Process, ShardDoor, VERSION,
};
use crate::slot::Slot;
use crate::split::{self, Split};
use crate::stream::Ring;
use crate::sync::AtomicU32;

/// One mapping. Does not unmap: whoever mapped it does, after the last use.
#[derive(Clone, Copy)]
pub struct Region {
    base: NonNull<u8>,
    geometry: Geometry,
    places: Places,
}

/// Where the parts begin that are looked up for every request, in bytes: what the geometry says, worked out once.
#[derive(Clone, Copy)]
struct Places {
    doors: u64,
    queues: u64,
    slots: u64,
    rings: u64,
    /// Slots, and bytes of both rings of one.
    count: u32,
    each: u64,
}

impl Places {
    fn of(g: &Geometry) -> Self {
        Self {
            doors: g.doors_at(),
            queues: g.queues_at(),
            slots: g.slots_at(),
            rings: g.rx_at(0),
            count: g.slots(),
            each: g.rx_at(1) - g.rx_at(0),
        }
    }
}

// SAFETY: everything reachable is atomics, or bytes that are only ever copied.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    /// Lays out fresh, zeroed memory: the engine's call.
    ///
    /// # Errors
    /// A geometry that can't be, or that doesn't fit in `len` bytes.
    ///
    /// # Safety
    /// `base` must be page-aligned and point to `len` zeroed bytes, mapped shared, readable and writable, for as long
    /// as this value or a copy is used; the file behind them must be sealed against shrinking.
    pub unsafe fn create(base: NonNull<u8>, len: u64, geometry: Geometry) -> Result<Self, GeometryError> {
        let geometry = fitting(geometry, len)?;
        let region = Self { base, geometry, places: Places::of(&geometry) };
        let h = region.header();
        h.version.store(VERSION, Ordering::Relaxed);
        h.shards.store(geometry.shards, Ordering::Relaxed);
        h.open_slots.store(geometry.open_slots, Ordering::Relaxed);
        h.accept_slots.store(geometry.accept_slots, Ordering::Relaxed);
        h.rx_bytes.store(geometry.rx_bytes, Ordering::Relaxed);
        h.tx_bytes.store(geometry.tx_bytes, Ordering::Relaxed);
        h.pool_bytes.store(geometry.pool_bytes, Ordering::Relaxed);
        (0..geometry.open_slots).for_each(|s| region.free_slots().mark(s));
        h.magic.store(MAGIC, Ordering::Release);
        Ok(region)
    }

    /// Opens what the engine laid out: the program's call.
    ///
    /// # Errors
    /// Memory that is not of this version, or whose numbers don't fit.
    ///
    /// # Safety
    /// As for [`Self::create`], but for the zeroes; `len` is at least one page.
    pub unsafe fn open(base: NonNull<u8>, len: u64) -> Result<Self, GeometryError> {
        // SAFETY: the first page is a Header by the caller's word; all bit patterns are valid for atomics.
        let h = unsafe { base.cast::<Header>().as_ref() };
        if h.magic.load(Ordering::Acquire) != MAGIC || h.version.load(Ordering::Relaxed) != VERSION {
            return Err(GeometryError::Foreign);
        }
        let geometry = Geometry {
            shards: h.shards.load(Ordering::Relaxed),
            open_slots: h.open_slots.load(Ordering::Relaxed),
            accept_slots: h.accept_slots.load(Ordering::Relaxed),
            rx_bytes: h.rx_bytes.load(Ordering::Relaxed),
            tx_bytes: h.tx_bytes.load(Ordering::Relaxed),
            pool_bytes: h.pool_bytes.load(Ordering::Relaxed),
        };
        let geometry = fitting(geometry, len)?;
        Ok(Self { base, geometry, places: Places::of(&geometry) })
    }

    /// The private copy of the numbers.
    #[must_use]
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// Address of the first byte.
    #[must_use]
    pub fn base(&self) -> NonNull<u8> {
        self.base
    }

    #[must_use]
    pub fn header(&self) -> &Header {
        self.at(0)
    }

    #[must_use]
    pub fn door(&self, shard: u32) -> Option<&ShardDoor> {
        (shard < self.geometry.shards).then(|| self.nth(self.places.doors, shard))
    }

    /// Slots that programs may claim.
    #[must_use]
    pub fn free_slots(&self) -> &DirtySet {
        self.at(self.geometry.free_at())
    }

    #[must_use]
    pub fn event_queue(&self, queue: u32) -> Option<&EventQueue> {
        (queue < MAX_EVENT_QUEUES).then(|| self.nth(self.places.queues, queue))
    }

    #[must_use]
    pub fn process(&self, process: u32) -> Option<&Process> {
        (process < MAX_PROCESSES).then(|| self.nth(self.geometry.processes_at(), process))
    }

    #[must_use]
    pub fn slot(&self, slot: u32) -> Option<&Slot> {
        (slot < self.places.count).then(|| self.nth(self.places.slots, slot))
    }

    /// Receive ring of `slot`.
    #[must_use]
    pub fn rx(&self, slot: u32) -> Option<Ring<'_>> {
        // SAFETY: `Places` has the geometry's numbers: rx_at + rx_bytes lies inside the region for every slot number below
        // slots().
        (slot < self.places.count).then(|| unsafe { Ring::new(self.ring_at(slot, 0), self.geometry.rx_bytes) })
    }

    /// Transmit ring of `slot`.
    #[must_use]
    pub fn tx(&self, slot: u32) -> Option<Ring<'_>> {
        // SAFETY: as in `rx`; the transmit ring follows the receive ring.
        (slot < self.places.count)
            .then(|| unsafe { Ring::new(self.ring_at(slot, self.geometry.rx_bytes), self.geometry.tx_bytes) })
    }

    /// # Safety
    /// `slot` is below `places.count`, `within` below the bytes of its rings.
    unsafe fn ring_at(&self, slot: u32, within: u32) -> *mut u8 {
        let offset = self.places.rings + u64::from(slot) * self.places.each + u64::from(within);
        // SAFETY: inside the region, by the caller's word.
        unsafe { self.base.as_ptr().add(offset as usize) }
    }

    /// A block of the pool; None when there is no such block.
    #[must_use]
    pub fn block(&self, reference: u32) -> Option<Ring<'_>> {
        let (at, bytes) = self.geometry.block(reference)?;
        // SAFETY: `Geometry::block` gives only what lies inside the pools, which lie inside the region.
        Some(unsafe { Ring::new(self.base.as_ptr().add(at as usize), bytes) })
    }

    /// Where the received stream of `slot` lies, as its map says. Look at `rx_tail` before.
    #[must_use]
    pub fn rx_split(&self, slot: u32) -> Option<Split<'_>> {
        let shared = self.slot(slot)?;
        self.split(self.rx(slot)?, shared.rx_map.load(Ordering::Acquire), &shared.rx_blocks)
    }

    /// Where the stream of `slot` that is to be sent lies, as its map says: for whoever has `tx_lock`.
    #[must_use]
    pub fn tx_split(&self, slot: u32) -> Option<Split<'_>> {
        let shared = self.slot(slot)?;
        self.split(self.tx(slot)?, shared.tx_map.load(Ordering::Acquire), &shared.tx_blocks)
    }

    fn split<'a>(&'a self, own: Ring<'a>, map: u64, blocks: &[AtomicU32; 2]) -> Option<Split<'a>> {
        let (at, which) = split::unmap(map);
        let ring = |which: usize| match blocks[which].load(Ordering::Relaxed) {
            0 => Some(own),
            reference => self.block(reference),
        };
        let after = ring(which)?;
        // The other one may be in the course of being replaced when it isn't needed any more.
        let before = if at == 0 { after } else { ring(1 - which).unwrap_or(after) };
        Some(Split::new(before, after, at))
    }

    /// Before more is written to the transmit stream of `slot`, by whoever has `tx_lock`: goes on in the block that the
    /// engine offers, if everything before the last switch is acknowledged. `head` and `tail` as they stand.
    pub fn take_offer(&self, slot: u32, head: u64, tail: u64) {
        let Some(shared) = self.slot(slot) else { return };
        let offer = shared.tx_offer.load(Ordering::Acquire);
        let (at, which) = split::unmap(shared.tx_map.load(Ordering::Relaxed));
        if offer == shared.tx_blocks[which].load(Ordering::Relaxed) || head < at || self.block(offer).is_none() {
            return;
        }
        shared.tx_blocks[1 - which].store(offer, Ordering::Relaxed);
        shared.tx_map.store(split::map(tail, 1 - which), Ordering::Release);
    }

    /// The queue in which `shard` leaves finished handshakes for the listening socket in `slot`: it lies in the
    /// slot's receive ring, which a listener has no other use for.
    #[must_use]
    pub fn accept_ring(&self, slot: u32, shard: u32) -> Option<AcceptRing<'_>> {
        if slot >= self.places.count || shard >= self.geometry.shards {
            return None;
        }
        let share = AcceptRing::share_bytes(&self.geometry);
        let at = self.geometry.rx_at(slot) + u64::from(shard) * u64::from(share);
        // SAFETY: the shares of all shards lie side by side inside the receive ring; validate() has seen to their
        // size; `share` is a multiple of 64 and the ring page-aligned, so the atomics are aligned.
        Some(unsafe { AcceptRing::new(self.base.as_ptr().add(at as usize), share) })
    }

    fn at<T>(&self, offset: u64) -> &T {
        debug_assert!(offset + size_of::<T>() as u64 <= self.geometry.region_bytes());
        // SAFETY: offsets come from the validated geometry, lie inside the region, are aligned to 64 bytes, and every
        // T here is made of atomics only, for which any bytes are valid and writes by others are no data race.
        unsafe { self.base.add(offset as usize).cast::<T>().as_ref() }
    }

    fn nth<T>(&self, offset: u64, n: u32) -> &T {
        self.at(offset + u64::from(n) * size_of::<T>() as u64)
    }
}

fn fitting(geometry: Geometry, have: u64) -> Result<Geometry, GeometryError> {
    let geometry = geometry.validate()?;
    let need = geometry.region_bytes();
    if have < need { Err(GeometryError::Truncated { need, have }) } else { Ok(geometry) }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::alloc::{Layout, alloc_zeroed, dealloc};

    fn with_memory(len: u64, test: impl FnOnce(NonNull<u8>)) {
        let layout = Layout::from_size_align(len as usize, 4096).unwrap();
        // SAFETY: the layout has a size; freed below with the same layout.
        let base = NonNull::new(unsafe { alloc_zeroed(layout) }).unwrap();
        test(base);
        // SAFETY: allocated above.
        unsafe { dealloc(base.as_ptr(), layout) };
    }

    #[test]
    fn a_created_region_opens_and_every_part_is_inside() {
        let g =
            Geometry { shards: 2, open_slots: 3, accept_slots: 2, rx_bytes: 4096, tx_bytes: 8192, pool_bytes: 1 << 17 };
        with_memory(g.region_bytes(), |base| {
            // SAFETY: fresh zeroed memory of that length.
            let engine = unsafe { Region::create(base, g.region_bytes(), g) }.unwrap();
            // SAFETY: the same memory.
            let program = unsafe { Region::open(base, g.region_bytes()) }.unwrap();
            assert_eq!(program.geometry(), &g);
            assert!(program.slot(6).is_some() && program.slot(7).is_none() && program.rx(7).is_none());
            assert!(
                program.door(2).is_none() && program.event_queue(1024).is_none() && program.process(1024).is_none()
            );
            engine.rx(6).unwrap().write(4090, b"over the edge");
            let mut out = [0; 13];
            program.rx(6).unwrap().read(4090, &mut out);
            assert_eq!(&out, b"over the edge");
            // A transmit stream moves into a block that the engine offers, once.
            let slot = engine.slot(6).unwrap();
            program.take_offer(6, 0, 100);
            assert_eq!(program.tx_split(6).unwrap().capacity(), 8192, "nothing was offered");
            slot.tx_offer.store(crate::split::reference(2, 17), Ordering::Relaxed);
            program.take_offer(6, 0, 8000);
            let split = program.tx_split(6).unwrap();
            assert_eq!((split.capacity(), split.span(), split.is_settled(7999)), (1 << 17, 8192 + (1 << 17), false));
            slot.tx_offer.store(0, Ordering::Relaxed);
            program.take_offer(6, 7999, 9000);
            assert_eq!(program.tx_split(6).unwrap().capacity(), 1 << 17, "the last switch isn't over");
            slot.tx_blocks[1].store(u32::MAX, Ordering::Relaxed);
            assert!(program.tx_split(6).is_none() && program.block(crate::split::reference(3, 17)).is_none());
            let mut claimed: std::vec::Vec<_> = std::iter::from_fn(|| program.free_slots().claim()).collect();
            claimed.sort_unstable();
            assert_eq!(claimed, [0, 1, 2]);
            // SAFETY: the same memory, said to be shorter.
            let short = unsafe { Region::open(base, 8192) };
            assert!(matches!(short, Err(GeometryError::Truncated { .. })));
            engine.header().version.store(99, Ordering::Relaxed);
            // SAFETY: the same memory.
            assert_eq!(unsafe { Region::open(base, g.region_bytes()) }.err(), Some(GeometryError::Foreign));
        });
    }
}
