//! Between the shared memory of programs and the stack: who has which socket on this shard.
//!
//! Everything here is private to the shard. What a program may write (positions, requests, options, addresses) is read
//! once in [`super::commands`], checked against what stands here, and then used. Three directions:
//! [`super::commands`] (programs to stack), [`super::deliver`] (stack to programs), [`super::host`] (the stack's own
//! questions: memory, accept, datagrams).

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use sidestep_shm::{Geometry, Region};
use sidestep_stack::{Instant, SocketId, Stack, Token};

use super::buffers::Buffers;
use super::idle::Sleeper;
use super::mailbox::Notices;
use super::pool::Pool;
use crate::control::group::Group;
use crate::latency::Profile;

/// One group as this shard sees it.
pub(super) struct View {
    pub group: Arc<Group>,
    /// Index + 1 into `Apps::sockets` by slot; 0: not on this shard.
    by_slot: Box<[u32]>,
    /// Memory for streams that outgrow their slot.
    pub pool: Pool,
    /// Accept slots of this shard that are free, the warmest last.
    pub free: Vec<u32>,
    /// How to ring each event queue.
    pub doorbells: Vec<Option<Arc<OwnedFd>>>,
}

impl View {
    /// Index of the socket in `slot`, if it lives here.
    pub fn index_of(&self, slot: u32) -> Option<usize> {
        let entry = *self.by_slot.get(slot as usize)?;
        (entry != 0).then(|| entry as usize - 1)
    }
}

/// A socket of this shard. Positions here are the truth; those in the slot are what programs see or say.
#[derive(Debug)]
pub(super) struct Socket {
    pub group: u32,
    pub slot: u32,
    pub kind: Kind,
    /// The newest options that were applied; see `Slot::options_version`.
    pub options_version: u32,
}

#[derive(Debug)]
pub(super) enum Kind {
    Stream(StreamSocket),
    Listener(Listener),
    Datagram(DatagramSocket),
    /// The stack is done with it, but programs still have it open, or may still accept it.
    Over {
        stream_bytes: u64,
        queued: Option<(u32, u64)>,
        buffers: Option<Box<Buffers>>,
    },
}

#[derive(Debug, Default)]
pub(super) struct StreamSocket {
    /// None only between `Host::accept` and the stack's `Accepted` event.
    pub id: Option<SocketId>,
    pub rx_head: u64,
    pub rx_tail: u64,
    pub tx_head: u64,
    pub tx_tail: u64,
    pub finished: bool,
    /// Requests that were seen already.
    pub requests: u8,
    /// The programs have let go; the stack finishes alone.
    pub orphan: bool,
    /// Where it waits to be accepted: listening slot and position in its ring.
    pub queued: Option<(u32, u64)>,
    /// What the transmit buffer should hold, as the program was told, and the most that the pool was asked for.
    pub tx_limit: u32,
    /// A power of two.
    pub tx_asked: u8,
    /// How far both streams were when this was looked at last, folded, and when its pages were given back last, in
    /// units of 32 KiB: see `Apps::sweep`.
    pub seen: u8,
    pub emptied_at: u16,
    /// None: the slot's own rings.
    pub buffers: Option<Box<Buffers>>,
}

#[derive(Debug)]
pub(super) struct Listener {
    pub id: SocketId,
    pub backlog: u32,
    /// Next position in the accept ring, and the position that programs have reached, as last checked.
    pub tail: u64,
    pub head: u64,
    /// Streams given to the stack by `Host::accept` whose `Accepted` event has not come yet.
    pub coming: u32,
}

#[derive(Debug)]
pub(super) struct DatagramSocket {
    pub id: SocketId,
    pub rx_head: u64,
    pub rx_tail: u64,
    pub tx_head: u64,
    pub tx_tail: u64,
    pub connected: bool,
    /// Among those of `Apps::leaving`.
    pub leaving: bool,
}

/// Sockets, groups and what is to be rung.
pub struct Apps {
    pub(super) shard: u32,
    pub(super) notices: Arc<Notices>,
    /// Datagram sockets (group, slot) that nobody holds and that may have something to send still.
    pub(super) leaving: Vec<(u32, u32)>,
    /// Connections to be reset at the end of this turn.
    pub(super) aborting: Vec<SocketId>,
    pub(super) views: Vec<Option<View>>,
    pub(super) sockets: Vec<Option<Socket>>,
    vacant: Vec<u32>,
    /// Event queues that sleep and have something to see: rung once the turn's state is written.
    pub(super) to_ring: Vec<Arc<OwnedFd>>,
    sleeper: Option<Sleeper>,
    /// The socket that was looked at last for pages to give back.
    pub(super) swept: usize,
    pub(super) counters: AppCounters,
    pub(super) latency: Profile,
}

/// Counters of the border to programs. All only grow.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub struct AppCounters {
    /// Dirty slots looked at.
    pub commands: u64,
    /// Sleeping programs woken (one system call each).
    pub wakeups: u64,
    /// Sockets lost because their program wrote numbers that can't be.
    pub hostile: u64,
    pub accept_overflow: u64,
    pub slots_exhausted: u64,
    pub datagrams_dropped: u64,
    /// Stream buffers that became larger, and that could not for want of memory in the pool.
    pub buffers_grown: u64,
    pub buffers_refused: u64,
    /// Buffers of idle connections whose pages went back to the machine.
    pub buffers_emptied: u64,
    pub sockets_opened: u64,
    pub sockets_closed: u64,
}

/// A socket's name in the stack: group in the upper half, slot in the lower.
pub(super) fn token(group: u32, slot: u32) -> Token {
    Token(u64::from(group) << 32 | u64::from(slot))
}

pub(super) fn untoken(token: Token) -> (u32, u32) {
    ((token.0 >> 32) as u32, token.0 as u32)
}

impl Apps {
    pub(super) fn new(shard: u32, notices: Arc<Notices>) -> Self {
        Self {
            shard,
            notices,
            leaving: Vec::new(),
            aborting: Vec::new(),
            views: Vec::new(),
            sockets: Vec::new(),
            vacant: Vec::new(),
            to_ring: Vec::new(),
            sleeper: None,
            swept: 0,
            counters: AppCounters::default(),
            latency: Profile::default(),
        }
    }

    // ---- groups ---------------------------------------------------------------------------------------------------

    pub(super) fn add_group(&mut self, group: Arc<Group>) {
        let geometry = *group.region().geometry();
        if let (Some(sleeper), Some(fd)) = (&self.sleeper, group.doorbell(self.shard))
            && let Err(error) = sleeper.add_doorbell(fd)
        {
            tracing::error!(%error, group = group.index, "can't sleep on a group's doorbell; it is looked at 8 times a second");
        }
        let index = group.index as usize;
        if self.views.len() <= index {
            self.views.resize_with(index + 1, || None);
        }
        self.views[index] = Some(View {
            by_slot: vec![0; geometry.slots() as usize].into(),
            pool: Pool::new(geometry.pool_range(self.shard)),
            free: geometry.accept_range(self.shard).rev().collect(),
            doorbells: vec![None; sidestep_shm::layout::MAX_EVENT_QUEUES as usize],
            group,
        });
    }

    /// False while sockets of the group remain.
    pub(super) fn remove_group(&mut self, group: u32) -> bool {
        if self.count_sockets(group) > 0 {
            return false;
        }
        if let Some(view) = self.views.get_mut(group as usize).and_then(Option::take)
            && let (Some(sleeper), Some(fd)) = (&self.sleeper, view.group.doorbell(self.shard))
        {
            sleeper.remove(fd);
        }
        true
    }

    pub(super) fn count_sockets(&self, group: u32) -> usize {
        self.sockets.iter().flatten().filter(|s| s.group == group).count()
    }

    /// Event queue `queue` of `group` is rung through `doorbell` from now on.
    pub(super) fn set_doorbell(&mut self, group: u32, queue: u32, doorbell: Option<Arc<OwnedFd>>) {
        if let Some(view) = self.view_mut(group)
            && let Some(entry) = view.doorbells.get_mut(queue as usize)
        {
            *entry = doorbell;
        }
    }

    pub(super) fn view(&self, group: u32) -> Option<&View> {
        self.views.get(group as usize)?.as_ref()
    }

    pub(super) fn view_mut(&mut self, group: u32) -> Option<&mut View> {
        self.views.get_mut(group as usize)?.as_mut()
    }

    pub(super) fn region(&self, group: u32) -> Option<&Region> {
        self.view(group).map(|v| v.group.region())
    }

    pub(super) fn geometry(&self, group: u32) -> Option<Geometry> {
        self.region(group).map(|r| *r.geometry())
    }

    // ---- sockets --------------------------------------------------------------------------------------------------

    /// Index of the socket in `slot`, if it lives here.
    pub(super) fn index_of(&self, group: u32, slot: u32) -> Option<usize> {
        self.view(group)?.index_of(slot)
    }

    pub(super) fn at(&mut self, index: usize) -> Option<&mut Socket> {
        self.sockets.get_mut(index)?.as_mut()
    }

    pub(super) fn get(&self, index: usize) -> Option<&Socket> {
        self.sockets.get(index)?.as_ref()
    }

    pub(super) fn socket_mut(&mut self, group: u32, slot: u32) -> Option<&mut Socket> {
        let index = self.index_of(group, slot)?;
        self.at(index)
    }

    pub(super) fn stream_mut(&mut self, group: u32, slot: u32) -> Option<&mut StreamSocket> {
        match &mut self.socket_mut(group, slot)?.kind {
            Kind::Stream(s) => Some(s),
            _ => None,
        }
    }

    pub(super) fn listener_mut(&mut self, group: u32, slot: u32) -> Option<&mut Listener> {
        match &mut self.socket_mut(group, slot)?.kind {
            Kind::Listener(l) => Some(l),
            _ => None,
        }
    }

    /// Puts a socket on this shard. The caller has taken the slot.
    pub(super) fn insert(&mut self, group: u32, slot: u32, kind: Kind) -> usize {
        let socket = Socket { group, slot, kind, options_version: 0 };
        let index = self.vacant.pop().map_or(self.sockets.len(), |i| i as usize);
        if index == self.sockets.len() {
            self.sockets.push(None);
        }
        self.sockets[index] = Some(socket);
        if let Some(view) = self.view_mut(group) {
            view.by_slot[slot as usize] = index as u32 + 1;
        }
        self.counters.sockets_opened += 1;
        index
    }

    /// Takes a socket off this shard.
    pub(super) fn remove(&mut self, index: usize) -> Option<Socket> {
        let mut socket = self.sockets.get_mut(index)?.take()?;
        let buffers = match &mut socket.kind {
            Kind::Stream(s) => s.buffers.take(),
            Kind::Over { buffers, .. } => buffers.take(),
            _ => None,
        };
        if let Some(buffers) = buffers {
            self.drop_buffers(socket.group, &buffers);
        }
        self.vacant.push(index as u32);
        if let Some(view) = self.view_mut(socket.group) {
            view.by_slot[socket.slot as usize] = 0;
        }
        self.counters.sockets_closed += 1;
        self.latency.forget(token(socket.group, socket.slot));
        Some(socket)
    }

    pub(super) fn indices_of_group(&self, group: u32) -> Vec<usize> {
        let of_group = |(i, s): (usize, &Option<Socket>)| s.as_ref().filter(|s| s.group == group).map(|_| i);
        self.sockets.iter().enumerate().filter_map(of_group).collect()
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Socket> {
        self.sockets.iter().flatten()
    }

    /// Gives a connection's slot back: to the programs, to this shard's list, or to the control thread's books.
    pub(super) fn release_slot(&mut self, group: u32, slot: u32, stream_bytes: u64) {
        let Some(view) = self.view_mut(group) else { return };
        let bound = view.group.is_bound(slot);
        if bound {
            // The control thread frees the port, then the slot.
            self.notices.push(super::mailbox::Notice::Unheld { group, slot });
            return;
        }
        view.group.free(slot, stream_bytes);
        if slot >= view.group.region().geometry().open_slots {
            view.free.push(slot);
        }
    }

    /// Frees what a socket leaves behind once neither the stack nor any program needs it.
    pub(super) fn reap(&mut self, index: usize) {
        let Some(socket) = self.get(index) else { return };
        let (group, slot) = (socket.group, socket.slot);
        let Kind::Over { stream_bytes, queued, .. } = socket.kind else { return };
        let held = self.region(group).and_then(|r| r.slot(slot)).is_some_and(sidestep_shm::Slot::is_held);
        let waits = queued.is_some_and(|(listening, position)| !self.was_taken(group, listening, position));
        if !held && !waits {
            self.remove(index);
            self.release_slot(group, slot, stream_bytes);
        }
    }

    /// Tells every event queue that watches `slot` to look.
    pub(super) fn notify(&mut self, group: u32, slot: u32) {
        let Some(view) = self.views.get(group as usize).and_then(Option::as_ref) else { return };
        let region = view.group.region();
        let Some(shared) = region.slot(slot) else { return };
        let to_ring = &mut self.to_ring;
        shared.each_watcher(|queue| {
            let Some(waiter) = region.event_queue(queue) else { return };
            waiter.dirty.mark(slot);
            if waiter.door.must_ring()
                && let Some(doorbell) = view.doorbells.get(queue as usize).and_then(Option::as_ref)
            {
                to_ring.push(Arc::clone(doorbell));
            }
        });
    }

    /// A program wrote numbers that can't be: its socket is reset, everything else goes on.
    pub(super) fn punish(&mut self, stack: &mut Stack, now: Instant, index: usize) {
        self.counters.hostile += 1;
        if let Some(Socket { kind: Kind::Stream(stream), .. }) = self.at(index)
            && let Some(id) = stream.id
        {
            let _ = stack.tcp_abort(now, id);
        }
    }

    // ---- sleeping -------------------------------------------------------------------------------------------------

    /// Called once, before any group is added.
    pub(super) fn sleep_on(&mut self, sleeper: Sleeper) {
        self.sleeper = Some(sleeper);
    }

    pub(super) fn sleeper(&self) -> Option<&Sleeper> {
        self.sleeper.as_ref()
    }

    /// Closes the doors; false when a program has said something meanwhile.
    pub(super) fn prepare_sleep(&self) -> bool {
        let doors = || self.views.iter().flatten().filter_map(|v| v.group.region().door(self.shard));
        doors().for_each(|d| d.door.close());
        doors().all(|d| d.dirty.is_empty())
    }

    /// Whether no program has said anything.
    pub(super) fn is_quiet(&self) -> bool {
        self.views.iter().flatten().filter_map(|v| v.group.region().door(self.shard)).all(|d| d.dirty.is_empty())
    }

    pub(super) fn awake(&self) {
        for door in self.views.iter().flatten().filter_map(|v| v.group.region().door(self.shard)) {
            door.door.open();
        }
    }

    /// Signs of life for programs that wait.
    pub(super) fn beat(&self, now: Instant) {
        for view in self.views.iter().flatten() {
            view.group.region().header().heartbeat.store(now.as_nanos(), Ordering::Release);
        }
    }
}
