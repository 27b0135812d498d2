//! The latency profile's view of this shard's sockets: see [`crate::latency`].

use std::sync::atomic::Ordering;

use sidestep_shm::Slot;
use sidestep_shm::slot::load_address;
use sidestep_stack::{Instant, Token};

use super::apps::{Apps, token, untoken};
use crate::control::address::endpoint;
use crate::control::group::Group;
use crate::latency::{STAMPS, Timeline};

impl Apps {
    /// A segment that is to be followed was handled; it may have brought no data.
    pub(super) fn follow_segment(&mut self, taken: Instant, handled: Instant) {
        let Self { latency, views, .. } = self;
        latency.handled(taken, handled, |token| {
            let (group, slot) = untoken(token);
            let group = &views.get(group as usize)?.as_ref()?.group;
            begin(group, slot, group.region().slot(slot)?)
        });
    }

    /// A program has written up to `tx_tail`.
    pub(super) fn follow_write(&mut self, group: &Group, slot: u32, tx_tail: u64, shared: &Slot) {
        let token = token(group.index, slot);
        self.latency.wrote(token, |_| begin(group, slot, shared));
        if self.latency.is_following() {
            self.latency.command(token, tx_tail, shared);
        }
    }

    /// A socket's news are about to be written to its slot.
    pub(super) fn follow_news(&mut self, token: Token, rx_tail: u64, tx_head: u64) {
        let Self { latency, views, .. } = self;
        let (group, slot) = untoken(token);
        if let Some(view) = views.get(group as usize).and_then(Option::as_ref)
            && let Some(shared) = view.group.region().slot(slot)
        {
            latency.publish(token, rx_tail, tx_head, shared);
        }
    }

    pub(super) fn look_at_followed(&mut self, now: Instant) {
        let Self { latency, views, .. } = self;
        latency.look(now, |line| views.get(line.group as usize)?.as_ref()?.group.region().slot(line.slot));
    }
}

/// A timeline without stamps.
fn begin(group: &Group, slot: u32, shared: &Slot) -> Option<Timeline> {
    let holder = |(word, bits): (usize, u64)| (bits != 0).then(|| word as u32 * 64 + bits.trailing_zeros());
    let holders = shared.holders.iter().map(|bits| bits.load(Ordering::Relaxed));
    Some(Timeline {
        group: group.index,
        slot,
        process: holders.enumerate().find_map(holder).unwrap_or(u32::MAX),
        local: endpoint(load_address(&shared.local_address), shared.local_port.load(Ordering::Relaxed) as u16),
        remote: endpoint(load_address(&shared.remote_address), shared.remote_port.load(Ordering::Relaxed) as u16),
        stamps: [0; STAMPS.len()],
    })
}
