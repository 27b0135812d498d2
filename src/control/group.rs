//! A group: a program and what it forks, and the memory that they share with the engine.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags, fallocate, fcntl_add_seals, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use sidestep_shm::{Geometry, Region};

/// Stream bytes beyond which a freed slot's pages go back to the machine: below, the next socket uses them warm.
const KEEP_WARM_BYTES: u64 = 32 * 1024;

/// The engine's side of a group. Shards hold it too: the mapping lives until the last of them lets go.
#[derive(Debug)]
pub struct Group {
    /// Index in the tables of the control thread and of every shard.
    pub index: u32,
    /// What a process must know to join.
    pub token: u128,
    memfd: OwnedFd,
    /// One eventfd a shard, rung by the group's programs.
    doorbells: Vec<OwnedFd>,
    region: SharedRegion,
    /// Private: which slots the engine uses, so that damage in shared memory can't give one out twice. 0: none;
    /// otherwise shard + 1, or [`USED_BY_CONTROL`].
    users: Box<[AtomicU32]>,
    /// Private: slots whose local port the control thread has in its books.
    bound: Box<[AtomicBool]>,
}

/// A slot that the control thread keeps: bound, listening, or datagrams.
pub const USED_BY_CONTROL: u32 = u32::MAX;

/// A mapping that unmaps itself.
struct SharedRegion {
    region: Region,
    base: NonNull<u8>,
    bytes: usize,
}

impl std::fmt::Debug for SharedRegion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes at {:p}", self.bytes, self.base)
    }
}

// SAFETY: a Region is Send and Sync; the base pointer is used for unmapping only.
unsafe impl Send for SharedRegion {}
// SAFETY: as above.
unsafe impl Sync for SharedRegion {}

impl Drop for SharedRegion {
    fn drop(&mut self) {
        // SAFETY: mapped by `Group::new` with this length; nobody has a reference, because the group is gone.
        unsafe {
            let _ = munmap(self.base.as_ptr().cast(), self.bytes);
        }
    }
}

impl Group {
    /// Makes the memory and seals it: neither side can shrink it under the other.
    ///
    /// # Errors
    /// Out of descriptors or address space; a geometry that can't be.
    pub fn new(index: u32, token: u128, geometry: Geometry) -> io::Result<Self> {
        let geometry = geometry.validate().map_err(io::Error::other)?;
        let bytes = geometry.region_bytes();
        let memfd = memfd_create("sidestep", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        ftruncate(&memfd, bytes)?;
        fcntl_add_seals(&memfd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        let length = usize::try_from(bytes).map_err(io::Error::other)?;
        // SAFETY: a fresh mapping of a file that is long enough and sealed against shrinking.
        let base = unsafe {
            let flags = MapFlags::SHARED | MapFlags::NORESERVE;
            mmap(std::ptr::null_mut(), length, ProtFlags::READ | ProtFlags::WRITE, flags, &memfd, 0)?
        };
        let base = NonNull::new(base.cast::<u8>()).ok_or_else(|| io::Error::other("mapped at address zero"))?;
        // SAFETY: page-aligned, `bytes` long, zeroed because the file is new, and mapped until SharedRegion is dropped.
        let region = unsafe { Region::create(base, bytes, geometry) }.map_err(io::Error::other)?;
        let doorbells = (0..geometry.shards)
            .map(|_| eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(Into::into))
            .collect::<io::Result<_>>()?;
        let slots = geometry.slots() as usize;
        Ok(Self {
            index,
            token,
            memfd,
            doorbells,
            region: SharedRegion { region, base, bytes: length },
            users: (0..slots).map(|_| AtomicU32::new(0)).collect(),
            bound: (0..slots).map(|_| AtomicBool::new(false)).collect(),
        })
    }

    #[must_use]
    pub fn region(&self) -> &Region {
        &self.region.region
    }

    #[must_use]
    pub fn memfd(&self) -> BorrowedFd<'_> {
        self.memfd.as_fd()
    }

    /// The eventfd by which programs ring `shard`.
    #[must_use]
    pub fn doorbell(&self, shard: u32) -> Option<BorrowedFd<'_>> {
        self.doorbells.get(shard as usize).map(AsFd::as_fd)
    }

    #[must_use]
    pub fn doorbells(&self) -> &[OwnedFd] {
        &self.doorbells
    }

    /// Takes `slot` for `user`; false when the engine uses it already, or there is no such slot.
    #[must_use]
    pub fn take(&self, slot: u32, user: u32) -> bool {
        self.users
            .get(slot as usize)
            .is_some_and(|u| u.compare_exchange(0, user, Ordering::AcqRel, Ordering::Relaxed).is_ok())
    }

    /// The control thread no longer uses `slot`, which its programs still have open.
    pub fn give_back(&self, slot: u32) {
        if let Some(u) = self.users.get(slot as usize) {
            let _ = u.compare_exchange(USED_BY_CONTROL, 0, Ordering::AcqRel, Ordering::Relaxed);
        }
    }

    /// Who uses `slot`; see `users`.
    #[must_use]
    pub fn user(&self, slot: u32) -> u32 {
        self.users.get(slot as usize).map_or(0, |u| u.load(Ordering::Acquire))
    }

    /// Notes whether the control thread has a port in its books for `slot`.
    pub fn set_bound(&self, slot: u32, bound: bool) {
        if let Some(b) = self.bound.get(slot as usize) {
            b.store(bound, Ordering::Release);
        }
    }

    #[must_use]
    pub fn is_bound(&self, slot: u32) -> bool {
        self.bound.get(slot as usize).is_some_and(|b| b.load(Ordering::Acquire))
    }

    /// The pages of a slot's own rings go back to the machine.
    pub fn give_rings_back(&self, slot: u32) {
        let g = self.region().geometry();
        if slot < g.slots() {
            let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            let _ = fallocate(&self.memfd, punch, g.rx_at(slot), u64::from(g.rx_bytes) + u64::from(g.tx_bytes));
        }
    }

    /// The pages of a block of the pool go back to the machine.
    pub fn give_pages_back(&self, block: u32) {
        if let Some((at, bytes)) = self.region().geometry().block(block) {
            let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            // As in `free`: a block that stays memory is only used again later.
            let _ = fallocate(&self.memfd, punch, at, bytes.into());
        }
    }

    /// Makes a slot as new and gives it back. `stream_bytes` is what went through its rings: their pages go back to
    /// the machine if it was much. An accept slot goes to the caller's list, an open slot to the programs' set.
    pub fn free(&self, slot: u32, stream_bytes: u64) {
        let region = self.region();
        let Some(shared) = region.slot(slot) else { return };
        shared.reset();
        if stream_bytes > KEEP_WARM_BYTES {
            let g = region.geometry();
            let length = u64::from(g.rx_bytes) + u64::from(g.tx_bytes);
            // Losing the race for memory is no reason to stop: the pages are used again by the next socket.
            let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            let _ = fallocate(&self.memfd, punch, g.rx_at(slot), length);
        }
        if let Some(u) = self.users.get(slot as usize) {
            u.store(0, Ordering::Release);
        }
        if slot < region.geometry().open_slots {
            region.free_slots().mark(slot);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: Geometry =
        Geometry { shards: 2, open_slots: 4, accept_slots: 2, rx_bytes: 65536, tx_bytes: 65536, pool_bytes: 0 };

    #[test]
    fn memory_is_sealed() {
        let g = Group::new(0, 1, SMALL).unwrap();
        assert!(ftruncate(g.memfd(), 4096).is_err(), "a program could make the engine fault");
        assert!(ftruncate(g.memfd(), 1 << 40).is_err());
    }

    #[test]
    fn a_slot_has_one_user_and_comes_back_clean() {
        let g = Group::new(0, 1, SMALL).unwrap();
        assert!(g.take(2, 1) && !g.take(2, 2) && !g.take(99, 1));
        assert!(g.region().free_slots().remove(2));
        let slot = g.region().slot(2).unwrap();
        slot.rx_tail.store(9, Ordering::Relaxed);
        slot.hold(5);
        g.region().rx(2).unwrap().write(0, &[7; 100]);
        g.free(2, 1 << 20);
        assert_eq!((slot.rx_tail.load(Ordering::Relaxed), slot.is_held(), g.user(2)), (0, false, 0));
        assert!(g.region().free_slots().contains(2));
        let mut byte = [1];
        g.region().rx(2).unwrap().read(0, &mut byte);
        assert_eq!(byte, [0], "pages were given back");
    }
}
