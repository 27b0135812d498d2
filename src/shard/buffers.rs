//! Streams that outgrow their slot's rings: blocks of the pool, and where a stream passes from one to the next.
//!
//! What a shard knows here is its own: programs read the maps in the slot, and of what they write only a position is
//! taken. A lie about it garbles the liar's stream and nothing else. See [`sidestep_shm::split`].

use std::sync::atomic::Ordering;

use sidestep_shm::split::{map, unmap};
use sidestep_shm::stream::Ring;
use sidestep_shm::{Region, Slot, Split, lock};
use sidestep_stack::Stack;

use super::apps::{Apps, Kind, Socket, StreamSocket};
use super::pool::Pool;
use crate::control::group::Group;

/// Sockets looked at in one sweep; eight a second.
const SWEEP: usize = 128;
/// Pages go back when this much (as a power of two) went through a connection since the last time.
const WORTH_SHIFT: u32 = 15;
/// Who has a slot's lock while the engine does: no process has this number.
const LOCKED_BY_ENGINE: u32 = sidestep_shm::layout::MAX_PROCESSES;

/// A stream grows by this factor at least, so that it seldom does.
const GROWTH: u32 = 4;
/// Blocks larger than this are made for what is wanted and no more, in bytes.
const GENEROUS: u32 = 4 << 20;

/// The blocks of a stream that has outgrown its slot. Most never do.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    pub rx: Way,
    pub tx: Way,
    /// The block that the program may go on in; 0: no other than `tx.after`.
    tx_offer: u32,
    /// `Slot::tx_map` as last seen.
    tx_map: u64,
}

/// One direction: positions below `at` lie in `before`, the others in `after`. References; 0 is the slot's own ring.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Way {
    before: u32,
    after: u32,
    at: u64,
}

impl Way {
    fn split<'a>(&self, region: &'a Region, own: Ring<'a>) -> Option<Split<'a>> {
        let ring = |block| if block == 0 { Some(own) } else { region.block(block) };
        let after = ring(self.after)?;
        Some(Split::new(if self.at == 0 { after } else { ring(self.before)? }, after, self.at))
    }

    /// Goes on in `block` from `at`.
    fn switch(&mut self, at: u64, block: u32) {
        (self.before, self.after, self.at) = (self.after, block, at);
    }

    /// The old block, once `head` has passed it.
    fn passed(&mut self, head: u64) -> Option<u32> {
        (self.before != 0 && head >= self.at).then(|| std::mem::take(&mut self.before))
    }
}

impl Buffers {
    fn blocks(&self) -> impl Iterator<Item = u32> {
        [self.rx.before, self.rx.after, self.tx.before, self.tx.after, self.tx_offer].into_iter().filter(|b| *b != 0)
    }
}

fn length(region: &Region, block: u32, own: u32) -> u32 {
    if block == 0 { own } else { region.geometry().block(block).map_or(0, |b| b.1) }
}

impl StreamSocket {
    /// Where the received stream lies.
    pub(super) fn rx_split<'a>(&self, region: &'a Region, slot: u32) -> Option<Split<'a>> {
        let own = region.rx(slot)?;
        self.buffers.as_ref().map_or(Some(Split::new(own, own, 0)), |b| b.rx.split(region, own))
    }

    /// Where the stream to be sent lies.
    pub(super) fn tx_split<'a>(&self, region: &'a Region, slot: u32) -> Option<Split<'a>> {
        let own = region.tx(slot)?;
        self.buffers.as_ref().map_or(Some(Split::new(own, own, 0)), |b| b.tx.split(region, own))
    }

    /// Takes note of a switch that the program says it made. To be called after its tail was read.
    pub(super) fn note_switch(&mut self, shared: &Slot) {
        let Some(buffers) = &mut self.buffers else { return };
        let said = shared.tx_map.load(Ordering::Acquire);
        if said != buffers.tx_map && buffers.tx_offer != 0 {
            buffers.tx_map = said;
            let offer = std::mem::take(&mut buffers.tx_offer);
            buffers.tx.switch(unmap(said).0, offer);
        }
    }
}

impl Apps {
    /// The receive buffer of a stream is to hold `bytes`; everything written so far is below `written`. Returns what it
    /// holds then.
    pub(super) fn grow_rx(&mut self, group: u32, slot: u32, written: u64, bytes: u32) -> u32 {
        let Some(view) = self.views.get_mut(group as usize).and_then(Option::as_mut) else { return 0 };
        let Some(index) = view.index_of(slot) else { return 0 };
        let Some(Socket { kind: Kind::Stream(s), .. }) = self.sockets.get_mut(index).and_then(Option::as_mut) else {
            return 0;
        };
        let region = view.group.region();
        let Some(shared) = region.slot(slot) else { return 0 };
        let way = s.buffers.as_ref().map(|b| b.rx).unwrap_or_default();
        let holds = length(region, way.after, region.geometry().rx_bytes);
        if bytes <= holds || s.rx_head < way.at {
            return holds;
        }
        let Some(block) = view.pool.take_for(bytes, holds) else {
            self.counters.buffers_refused += 1;
            return holds;
        };
        let buffers = s.buffers.get_or_insert_default();
        let old = buffers.rx.before;
        buffers.rx.switch(written, block);
        let which = 1 - unmap(shared.rx_map.load(Ordering::Relaxed)).1;
        shared.rx_blocks[which].store(block, Ordering::Relaxed);
        shared.rx_map.store(map(written, which), Ordering::Release);
        give_back(&mut view.pool, &view.group, old);
        let holds = length(region, block, 0);
        self.counters.buffers_grown += 1;
        holds
    }

    /// The transmit buffer of a stream is to hold `bytes`.
    pub(super) fn grow_tx(&mut self, index: usize, bytes: u32) {
        let Some(Socket { group, slot, kind: Kind::Stream(s), .. }) =
            self.sockets.get_mut(index).and_then(Option::as_mut)
        else {
            return;
        };
        let Some(view) = self.views.get_mut(*group as usize).and_then(Option::as_mut) else { return };
        let region = view.group.region();
        let Some(shared) = region.slot(*slot) else { return };
        let after = s.buffers.as_ref().map_or(0, |b| b.tx.after);
        let holds = length(region, after, region.geometry().tx_bytes);
        if bytes > holds {
            if s.buffers.as_ref().is_some_and(|b| b.tx_offer != 0) {
                // It has not taken the last one yet.
                return;
            }
            if u64::from(bytes) > 1 << s.tx_asked {
                s.tx_asked = bytes.next_power_of_two().trailing_zeros() as u8;
                if let Some(block) = view.pool.take_for(bytes, holds) {
                    s.buffers.get_or_insert_default().tx_offer = block;
                    shared.tx_offer.store(block, Ordering::Release);
                    self.counters.buffers_grown += 1;
                } else {
                    self.counters.buffers_refused += 1;
                }
            }
        }
        if bytes != s.tx_limit {
            s.tx_limit = bytes;
            shared.tx_limit.store(bytes, Ordering::Release);
        }
    }

    /// Gives back the blocks that both sides have passed.
    pub(super) fn trim(&mut self, index: usize) {
        let Some(Socket { group, kind: Kind::Stream(s), .. }) = self.sockets.get_mut(index).and_then(Option::as_mut)
        else {
            return;
        };
        let Some(buffers) = &mut s.buffers else { return };
        let passed = [buffers.rx.passed(s.rx_head), buffers.tx.passed(s.tx_head)];
        let Some(view) = self.views.get_mut(*group as usize).and_then(Option::as_mut) else { return };
        for block in passed.into_iter().flatten() {
            give_back(&mut view.pool, &view.group, block);
        }
    }

    /// Gives back the pages of connections that have become idle: some at a time, often enough.
    pub(super) fn sweep(&mut self, stack: &Stack) {
        for _ in 0..SWEEP.min(self.sockets.len()) {
            self.swept = (self.swept + 1) % self.sockets.len();
            if self.empty_if_idle(stack, self.swept).is_some() {
                self.counters.buffers_emptied += 1;
            }
        }
    }

    /// None: it isn't idle, or has no pages that are worth a system call.
    fn empty_if_idle(&mut self, stack: &Stack, index: usize) -> Option<()> {
        let Socket { group, slot, kind: Kind::Stream(s), .. } = self.sockets.get_mut(index)?.as_mut()? else {
            return None;
        };
        let moved = s.rx_tail.wrapping_add(s.tx_tail);
        let folded = moved.to_le_bytes().iter().fold(0u8, |sum, byte| sum.wrapping_mul(31).wrapping_add(*byte));
        let mark = (moved >> WORTH_SHIFT) as u16;
        if std::mem::replace(&mut s.seen, folded) != folded || s.emptied_at == mark || !stack.tcp_is_quiet(s.id?) {
            return None;
        }
        let view = self.views.get(*group as usize)?.as_ref()?;
        let shared = view.group.region().slot(*slot)?;
        // Reading is over when its end is published. Writing is only when nobody has the lock: bytes come before the
        // position that tells of them.
        if shared.rx_head.load(Ordering::Acquire) != s.rx_tail || !lock::try_lock(&shared.tx_lock, LOCKED_BY_ENGINE) {
            return None;
        }
        let empty = shared.tx_tail.load(Ordering::Acquire) == s.tx_head;
        if empty {
            view.group.give_rings_back(*slot);
            s.buffers.iter().flat_map(|b| b.blocks()).for_each(|block| view.group.give_pages_back(block));
            s.emptied_at = mark;
        }
        lock::unlock(&shared.tx_lock);
        empty.then_some(())
    }

    /// A stream is gone, and nobody reads what it left.
    pub(super) fn drop_buffers(&mut self, group: u32, buffers: &Buffers) {
        let Some(view) = self.view_mut(group) else { return };
        for block in buffers.blocks() {
            give_back(&mut view.pool, &view.group, block);
        }
    }

    /// Bytes of the pools that streams have.
    pub(super) fn buffer_bytes(&self) -> u64 {
        self.views.iter().flatten().map(|v| v.pool.used()).sum()
    }
}

impl Pool {
    /// A block for a stream that wants `bytes` and has `holds`; less than it wants if that is all there is.
    fn take_for(&mut self, bytes: u32, holds: u32) -> Option<u32> {
        let ample = bytes.max(holds.saturating_mul(GROWTH).min(GENEROUS)).min(sidestep_shm::layout::MAX_RING_BYTES);
        let mut size = ample.next_power_of_two();
        while size > holds {
            if let Some(block) = self.take(size) {
                return Some(block);
            }
            size /= 2;
        }
        None
    }
}

fn give_back(pool: &mut Pool, group: &Group, block: u32) {
    if block != 0 && pool.give(block) {
        group.give_pages_back(block);
    }
}
