//! Programs to stack: dirty slots, and messages of the control thread.
//!
//! Every shared word is read once, then checked, then used. A program that writes numbers that can't be loses that
//! socket and nothing else.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use sidestep_shm::Slot;
use sidestep_shm::slot::{CONGESTION, kind, load_address, option, request, status, store_address};
use sidestep_stack::{Congestion, Error, Instant, ListenAddress, MtuDiscovery, Stack, Stream, TcpOptions, TcpState};

use super::apps::{Apps, DatagramSocket, Kind, Listener, Socket, StreamSocket, token};
use super::mailbox::{Message, Notice};
use super::run::Shard;
use crate::clock::Clock;
use crate::control::address::{endpoint, is_unspecified, mapped};
use crate::control::group::Group;
use crate::port::FrameIo;

/// Dirty slots of one group looked at in one turn: bounds what a program can make a turn cost.
const COMMAND_BUDGET: usize = 256;

impl<P: FrameIo, C: Clock> Shard<P, C> {
    /// Whatever the control thread wants. Rare, so it may cost a few allocations.
    pub(super) fn messages(&mut self, now: Instant) {
        while let Some(message) = self.mailboxes[self.number as usize].next_message() {
            // A control thread that no longer waits for a reply is no concern of the shard.
            match message {
                Message::AddGroup { group, reply } => {
                    self.apps.add_group(group);
                    self.apps.beat(now);
                    let _ = reply.send(());
                }
                Message::RemoveGroup { group, reply } => {
                    let _ = reply.send(self.apps.remove_group(group));
                }
                Message::CountSockets { group, reply } => {
                    let _ = reply.send(self.apps.count_sockets(group));
                }
                Message::EventQueue { group, queue, doorbell, reply } => {
                    self.apps.set_doorbell(group, queue, doorbell);
                    let _ = reply.send(());
                }
                Message::ProcessDied { group, process, last, reply } => {
                    self.apps.process_died(&mut self.stack, now, group, process, last);
                    let _ = reply.send(());
                }
                Message::Listen { group, slot, at, backlog, options, reuse_port, reply } => {
                    let done = self.apps.listen(&mut self.stack, (group, slot), at, backlog, *options, reuse_port);
                    let _ = reply.send(done);
                }
                Message::CloseShared { group, slot, reply } => {
                    self.apps.close_shared(&mut self.stack, now, group, slot);
                    let _ = reply.send(());
                }
                Message::OpenDatagram { group, slot, at, reuse, reply } => {
                    let _ = reply.send(self.apps.open_datagram(&mut self.stack, group, slot, at, reuse));
                }
                Message::Neighbor(update) => self.stack.neighbor_update(now, update),
                Message::UsesPort { at, reply } => {
                    let mut used = false;
                    self.stack.tcp_for_each(&mut |_, _, info| {
                        let family = if info.local.is_ipv4() { at.ipv4 } else { at.ipv6 };
                        let here = family && at.address.is_none_or(|a| a == info.local.ip());
                        used |= info.local.port() == at.port && here && info.state != TcpState::Listen;
                    });
                    let _ = reply.send(used);
                }
                Message::Info { group, slot, reply } => {
                    let _ = reply.send(self.apps.info(&mut self.stack, now, group, slot));
                }
                Message::Sockets { reply } => {
                    let _ = reply.send(self.sockets());
                }
                Message::Report { reply } => {
                    let _ = reply.send(Box::new(self.report()));
                }
                Message::Latency { recent, reply } => {
                    let _ = reply.send(Box::new(self.apps.latency.report(self.number, recent)));
                }
                Message::Stop => self.stopping = true,
            }
        }
    }
}

impl Apps {
    /// Looks at the slots that programs marked. Returns how many.
    pub(super) fn commands(&mut self, stack: &mut Stack, now: Instant) -> usize {
        let mut total = 0;
        for g in 0..self.views.len() {
            let Some(group) = self.views[g].as_ref().map(|v| Arc::clone(&v.group)) else { continue };
            let Some(door) = group.region().door(self.shard) else { continue };
            if !door.dirty.is_empty() {
                total += door.dirty.harvest(COMMAND_BUDGET, |slot| self.command(stack, now, &group, slot));
            }
        }
        self.counters.commands += total as u64;
        total
    }

    fn command(&mut self, stack: &mut Stack, now: Instant, group: &Group, slot: u32) {
        let Some(shared) = group.region().slot(slot) else { return };
        let Some(index) = self.index_of(group.index, slot) else {
            self.command_new(stack, now, group, slot, shared);
            return;
        };
        match self.get(index).map(|s| &s.kind) {
            Some(Kind::Stream(_)) => self.command_stream(stack, now, group, shared, index),
            Some(Kind::Datagram(_)) => self.command_datagram(stack, group, slot, shared, index),
            Some(Kind::Listener(l)) if shared.is_held() => {
                let (id, version) = (l.id, shared.options_version.load(Ordering::Acquire));
                if let Some(socket) = self.at(index)
                    && socket.options_version != version
                {
                    socket.options_version = version;
                    let _ = stack.tcp_set_options(now, id, read_options(shared));
                }
            }
            Some(Kind::Listener(_)) => {
                // Here at once, so that what the program does after close() finds it closed; elsewhere by the notice.
                self.stop_listening(stack, now, index);
                self.notices.push(Notice::Unheld { group: group.index, slot });
            }
            Some(Kind::Over { .. }) => self.reap(index),
            None => {}
        }
    }

    /// A slot that this shard doesn't know: a connection to open, or a socket that was given up before it lived.
    fn command_new(&mut self, stack: &mut Stack, now: Instant, group: &Group, slot: u32, shared: &Slot) {
        if slot >= group.region().geometry().open_slots {
            return;
        }
        let kind = shared.kind.load(Ordering::Acquire);
        if !shared.is_held() {
            // `kind` is written after the first hold, so a slot with a kind and no holder was given up.
            if kind != 0 && matches!(group.user(slot), 0 | crate::control::group::USED_BY_CONTROL) {
                self.notices.push(Notice::Unheld { group: group.index, slot });
            }
            return;
        }
        let wants = shared.request.load(Ordering::Acquire);
        if wants & request::CONNECT != 0 && matches!(kind, kind::TCP4 | kind::TCP6) {
            self.connect(stack, now, group, slot, shared);
        }
    }

    fn connect(&mut self, stack: &mut Stack, now: Instant, group: &Group, slot: u32, shared: &Slot) {
        if !group.take(slot, self.shard + 1) {
            return;
        }
        let remote = wanted_remote(shared);
        let local_bytes = load_address(&shared.wanted_local_address);
        let local_port = shared.wanted_local_port.load(Ordering::Relaxed) as u16;
        let local = match (is_unspecified(local_bytes), local_port) {
            (true, 0) => None,
            (true, port) if remote.is_ipv4() => Some((std::net::Ipv4Addr::UNSPECIFIED, port).into()),
            (true, port) => Some((std::net::Ipv6Addr::UNSPECIFIED, port).into()),
            (false, port) => Some(endpoint(local_bytes, port)),
        };
        let options = read_options(shared);
        let version = shared.options_version.load(Ordering::Relaxed);
        let geometry = *group.region().geometry();
        let stream =
            Stream { token: token(group.index, slot), rx_capacity: geometry.rx_bytes, tx_capacity: geometry.tx_bytes };
        shared.shard.store(self.shard, Ordering::Relaxed);
        let index = self.insert(group.index, slot, Kind::Stream(StreamSocket::default()));
        match stack.tcp_connect(now, stream.token, local, remote, stream, options, self) {
            Ok((id, local)) => {
                store_address(&shared.local_address, mapped(local.ip()));
                store_address(&shared.remote_address, mapped(remote.ip()));
                shared.local_port.store(local.port().into(), Ordering::Relaxed);
                shared.remote_port.store(remote.port().into(), Ordering::Relaxed);
                shared.tcp_state.store(sidestep_stack::TcpState::SynSent as u32, Ordering::Relaxed);
                shared.status.fetch_or(status::OPEN | status::CONNECTING | status::BOUND, Ordering::Release);
                if let Some(socket) = self.at(index) {
                    socket.options_version = version;
                    if let Kind::Stream(s) = &mut socket.kind {
                        s.id = Some(id);
                    }
                }
                if options.fast_open > 0 {
                    // What the SYN is to carry is written already.
                    self.command_stream(stack, now, group, shared, index);
                }
            }
            Err(error) => {
                shared.error.store(errno(error), Ordering::Release);
                shared.status.fetch_or(status::BROKEN | status::CLOSED, Ordering::Release);
                if let Some(socket) = self.at(index) {
                    socket.kind = Kind::Over { stream_bytes: 0, queued: None, buffers: None };
                }
                self.notify(group.index, slot);
                self.reap(index);
            }
        }
    }

    fn command_stream(&mut self, stack: &mut Stack, now: Instant, group: &Group, shared: &Slot, index: usize) {
        // The holders first: what the last one wrote before it let go is then seen below.
        let held = shared.is_held();
        let wants = shared.request.load(Ordering::Acquire);
        let tx_tail = shared.tx_tail.load(Ordering::Acquire);
        let rx_head = shared.rx_head.load(Ordering::Acquire);
        let version = shared.options_version.load(Ordering::Acquire);

        let mut grown = false;
        let Some(socket) = self.at(index) else { return };
        let slot = socket.slot;
        let new_options = version != socket.options_version;
        socket.options_version = version;
        let Kind::Stream(s) = &mut socket.kind else { return };
        let Some(id) = s.id else { return };
        s.note_switch(shared);
        let tx_span = s.tx_split(group.region(), slot).map_or(0, |split| split.span() as u64);
        if tx_tail < s.tx_tail || tx_tail - s.tx_head > tx_span || !(s.rx_head..=s.rx_tail).contains(&rx_head) {
            self.punish(stack, now, index);
            return;
        }
        // The stack refuses only sockets that it has given up; their last event is on its way.
        if new_options {
            let _ = stack.tcp_set_options(now, id, read_options(shared));
        }
        let wrote = tx_tail > s.tx_tail && !s.finished;
        if wrote {
            s.tx_tail = tx_tail;
            let _ = stack.tcp_send(now, id, tx_tail);
            if wants & request::RECORD != 0 {
                let end = shared.record_end.swap(0, Ordering::AcqRel);
                if end != 0 {
                    // Its position is the one nearest below what was written.
                    let back = (tx_tail as u32).wrapping_sub(end >> 1) & (u32::MAX >> 1);
                    let _ = stack.tcp_end_record(id, tx_tail.saturating_sub(back.into()));
                }
            }
        }
        if rx_head > s.rx_head {
            s.rx_head = rx_head;
            grown = s.buffers.is_some();
            let _ = stack.tcp_received(now, id, rx_head);
        }
        if wants & request::FINISH != 0 && !s.finished {
            s.finished = true;
            let _ = stack.tcp_finish(now, id);
        }
        // All of them are below 256.
        let news = wants & !u32::from(s.requests) & (request::FINISH | request::STOP_READING);
        s.requests |= wants as u8;
        if wants & request::ABORT != 0 {
            self.aborting.push(id);
        }
        if wrote {
            self.follow_write(group, slot, tx_tail, shared);
        }
        let Some(Socket { kind: Kind::Stream(s), .. }) = self.at(index) else { return };
        if held {
            s.queued = None;
        } else if !s.orphan {
            self.let_go(stack, now, shared, index);
        }
        if grown {
            self.trim(index);
        }
        if news != 0 {
            // Threads that wait on the other end of a shutdown.
            let slot = self.get(index).map_or(u32::MAX, |s| s.slot);
            self.notify(group.index, slot);
        }
    }

    /// The last holder is gone, unless the connection still waits to be accepted.
    fn let_go(&mut self, stack: &mut Stack, now: Instant, shared: &Slot, index: usize) {
        let Some(Socket { group, kind: Kind::Stream(StreamSocket { queued, .. }), .. }) = self.get(index) else {
            return;
        };
        if let Some((listening, position)) = *queued
            && !self.was_taken(*group, listening, position)
        {
            return;
        }
        let Some(Socket { kind: Kind::Stream(s), .. }) = self.at(index) else { return };
        s.orphan = true;
        s.queued = None;
        let Some(id) = s.id else { return };
        // SO_LINGER with zero seconds: the last close resets. So does one that leaves bytes unread; what the program
        // answered before it gave up reading (an HTTP error to an upload too long) must be on its way by then.
        if shared.linger.load(Ordering::Relaxed) == 1 || stack.tcp_has_unread(id) {
            self.aborting.push(id);
        } else {
            let _ = stack.tcp_close(now, id);
        }
    }

    /// Resets what programs gave up, after everything that they wrote before and that may leave has left: the kernel
    /// sends within send(), so that a RST never overtakes it. True when there was something.
    pub(super) fn abort_due(&mut self, stack: &mut Stack, now: Instant) -> bool {
        let any = !self.aborting.is_empty();
        for id in self.aborting.drain(..) {
            // Refused only for a connection that is over already.
            let _ = stack.tcp_abort(now, id);
        }
        any
    }

    /// Whether programs have moved beyond `position` in a listener's accept ring. A closed listener's are all taken.
    pub(super) fn was_taken(&self, group: u32, listening: u32, position: u64) -> bool {
        let Some(Kind::Listener(l)) = self.index_of(group, listening).and_then(|i| self.get(i)).map(|s| &s.kind) else {
            return true;
        };
        let head = self.region(group).and_then(|r| r.accept_ring(listening, self.shard)).map_or(0, |r| r.head());
        position < head && head <= l.tail
    }

    fn command_datagram(&mut self, stack: &mut Stack, group: &Group, slot: u32, shared: &Slot, index: usize) {
        // Before the positions: whoever lets go has written before.
        let held = shared.is_held();
        let wants = shared.request.load(Ordering::Acquire);
        let version = shared.options_version.load(Ordering::Acquire);
        let tx_tail = shared.tx_tail.load(Ordering::Acquire);
        let capacity = u64::from(group.region().geometry().tx_bytes);
        let remote = wanted_remote(shared);
        let Some(Socket { kind: Kind::Datagram(d), .. }) = self.at(index) else { return };
        let id = d.id;
        let leaves = !held && !d.leaving;
        d.leaving |= leaves;
        if leaves {
            self.leaving.push((group.index, slot));
        }
        let Some(Socket { kind: Kind::Datagram(d), .. }) = self.at(index) else { return };
        if tx_tail < d.tx_tail || tx_tail - d.tx_head > capacity {
            self.counters.hostile += 1;
            self.let_datagrams_go(stack);
            return;
        }
        let to_send = tx_tail > d.tx_tail;
        d.tx_tail = tx_tail;
        // connect() of a datagram socket may be called again; port 0 (AF_UNSPEC) dissolves the association.
        let peer = (wants & request::CONNECT != 0 && remote.port() != 0).then_some(remote);
        let known = endpoint(load_address(&shared.remote_address), shared.remote_port.load(Ordering::Relaxed) as u16);
        let changed = if d.connected { peer != Some(known) } else { peer.is_some() };
        d.connected = peer.is_some();
        if changed {
            match stack.udp_set_peer(id, peer, self) {
                Ok(local) => {
                    store_address(&shared.local_address, mapped(local.ip()));
                    store_address(&shared.remote_address, peer.map_or([0; 16], |p| mapped(p.ip())));
                    shared.remote_port.store(peer.map_or(0, |p| p.port().into()), Ordering::Relaxed);
                    if peer.is_some() {
                        shared.status.fetch_or(status::CONNECTED, Ordering::Release);
                    } else {
                        shared.status.fetch_and(!status::CONNECTED, Ordering::Release);
                    }
                }
                Err(error) => {
                    shared.error.store(errno(error), Ordering::Release);
                    shared.status.fetch_and(!status::CONNECTED, Ordering::Release);
                    if let Some(Socket { kind: Kind::Datagram(d), .. }) = self.at(index) {
                        d.connected = false;
                    }
                    let _ = stack.udp_set_peer(id, None, self);
                }
            }
        }
        if version != shared.seen_version.load(Ordering::Relaxed) {
            shared.seen_version.store(version, Ordering::Release);
            self.notify(group.index, slot);
        }
        if to_send {
            stack.udp_send_ready(id);
        }
        self.let_datagrams_go(stack);
    }

    /// Datagram sockets that nobody holds end when what they had to send is sent: sendto() has said that it would be.
    /// In the stack at once, so that a datagram that the program sends after close() finds nobody; the slot comes back
    /// when the books know.
    pub(super) fn let_datagrams_go(&mut self, stack: &mut Stack) {
        let mut at = 0;
        while let Some(&(group, slot)) = self.leaving.get(at) {
            let socket = self.index_of(group, slot).and_then(|i| self.get(i)).map(|s| &s.kind);
            if let Some(Kind::Datagram(d)) = socket {
                if d.tx_head < d.tx_tail {
                    at += 1;
                    continue;
                }
                stack.udp_close(d.id);
            }
            self.leaving.swap_remove(at);
            self.notices.push(Notice::Unheld { group, slot });
        }
    }

    /// TCP_INFO of a socket, with what its program has written and read until now.
    fn info(
        &mut self,
        stack: &mut Stack,
        now: Instant,
        group: u32,
        slot: u32,
    ) -> Option<Box<[u8; sidestep_stack::TCP_INFO_BYTES]>> {
        let shared = Arc::clone(&self.view(group)?.group);
        self.command(stack, now, &shared, slot);
        let id = match &self.get(self.index_of(group, slot)?)?.kind {
            Kind::Stream(s) => s.id?,
            Kind::Listener(l) => l.id,
            Kind::Datagram(_) | Kind::Over { .. } => return None,
        };
        let mut info = stack.tcp_info(id).ok()?;
        if let Some(Kind::Listener(l)) = self.index_of(group, slot).and_then(|i| self.get(i)).map(|s| &s.kind) {
            // Linux counts those that wait to be accepted (sk_ack_backlog), and not the half-open ones.
            let head = shared.region().accept_ring(slot, self.shard).map_or(l.head, |ring| ring.head());
            info.half_open = u32::try_from(l.tail.saturating_sub(head)).unwrap_or(0);
            info.backlog = l.backlog;
        }
        Some(Box::new(info.to_linux()))
    }

    // ---- messages -------------------------------------------------------------------------------------------------

    fn listen(
        &mut self,
        stack: &mut Stack,
        (group, slot): (u32, u32),
        at: ListenAddress,
        backlog: u32,
        options: TcpOptions,
        reuse_port: bool,
    ) -> Result<(), Error> {
        if let Some(l) = self.listener_mut(group, slot) {
            // listen() again changes the backlog.
            l.backlog = backlog;
            return Ok(());
        }
        let geometry = self.geometry(group).ok_or(Error::NoSuchSocket)?;
        let ring = self.region(group).and_then(|r| r.accept_ring(slot, self.shard)).ok_or(Error::NoSuchSocket)?;
        ring.reset();
        let id = stack.tcp_listen(token(group, slot), at, backlog, geometry.rx_bytes, options, reuse_port)?;
        let version =
            self.region(group).and_then(|r| r.slot(slot)).map_or(0, |s| s.options_version.load(Ordering::Acquire));
        let index = self.insert(group, slot, Kind::Listener(Listener { id, backlog, tail: 0, head: 0, coming: 0 }));
        if let Some(socket) = self.at(index) {
            socket.options_version = version;
        }
        Ok(())
    }

    fn open_datagram(
        &mut self,
        stack: &mut Stack,
        group: u32,
        slot: u32,
        at: ListenAddress,
        reuse: bool,
    ) -> Result<(), Error> {
        let id = stack.udp_open_beside(token(group, slot), at, reuse)?;
        let socket =
            DatagramSocket { id, rx_head: 0, rx_tail: 0, tx_head: 0, tx_tail: 0, connected: false, leaving: false };
        self.insert(group, slot, Kind::Datagram(socket));
        Ok(())
    }

    fn close_shared(&mut self, stack: &mut Stack, now: Instant, group: u32, slot: u32) {
        let Some(index) = self.index_of(group, slot) else { return };
        match self.get(index).map(|s| &s.kind) {
            Some(Kind::Listener(_)) => {
                self.stop_listening(stack, now, index);
                self.remove(index);
                // Threads that wait in accept(), when it was shutdown() that ended it.
                self.notify(group, slot);
            }
            Some(Kind::Datagram(d)) => {
                stack.udp_close(d.id);
                self.remove(index);
            }
            Some(Kind::Over { .. }) => {
                self.remove(index);
            }
            Some(Kind::Stream(_)) | None => {}
        }
    }

    /// No new connections, and none of those that nobody accepted.
    fn stop_listening(&mut self, stack: &mut Stack, now: Instant, index: usize) {
        let Some(&Socket { group, slot, kind: Kind::Listener(Listener { id, .. }), .. }) = self.get(index) else {
            return;
        };
        stack.tcp_unlisten(id);
        self.reset_unaccepted(stack, now, group, slot);
    }

    /// As Linux: connections that nobody accepted are reset when their listener closes.
    fn reset_unaccepted(&mut self, stack: &mut Stack, now: Instant, group: u32, listening: u32) {
        let Some(shared_group) = self.view(group).map(|v| Arc::clone(&v.group)) else { return };
        let region = shared_group.region();
        let head = region.accept_ring(listening, self.shard).map_or(0, |r| r.head());
        // Which connections wait is known by our own books: what stands in the ring may be damaged.
        let waits = |s: &Socket| match s.kind {
            Kind::Stream(StreamSocket { queued: Some((l, position)), .. })
            | Kind::Over { queued: Some((l, position)), .. }
                if s.group == group && l == listening =>
            {
                Some((s.slot, position))
            }
            _ => None,
        };
        let waiting: Vec<(u32, u64)> = self.all().filter_map(waits).collect();
        for (slot, position) in waiting {
            let held = region.slot(slot).is_none_or(Slot::is_held);
            // There is no queue any more, whatever the books of the listener, which may still be there, say of it.
            if let Some(Kind::Stream(StreamSocket { queued, .. }) | Kind::Over { queued, .. }) =
                self.socket_mut(group, slot).map(|s| &mut s.kind)
            {
                *queued = None;
            }
            if let Some(index) = self.index_of(group, slot) {
                self.reap(index);
            }
            if held {
                continue;
            }
            if position < head {
                // Accepted, used and closed before the listener was: what it wrote is still to be sent. A program that
                // only claims so gains nothing, the connection ends either way.
                self.command(stack, now, &shared_group, slot);
            } else if let Some(s) = self.stream_mut(group, slot)
                && let Some(id) = s.id
            {
                s.orphan = true;
                let _ = stack.tcp_abort(now, id);
            }
        }
    }

    /// A process is gone: it holds nothing any more, and what only it held is closed.
    fn process_died(&mut self, stack: &mut Stack, now: Instant, group: u32, process: u32, last: bool) {
        let Some(shared_group) = self.view(group).map(|v| Arc::clone(&v.group)) else { return };
        for index in self.indices_of_group(group) {
            let Some(slot) = self.get(index).map(|s| s.slot) else { continue };
            let Some(shared) = shared_group.region().slot(slot) else { continue };
            shared.break_locks(process);
            let held = shared.let_go(process) || last;
            if last {
                shared.let_all_go();
            }
            // A connection that it claimed from the accept ring without living to hold it counts as held by it.
            let claimed = match self.get(index).map(|s| &s.kind) {
                Some(Kind::Stream(StreamSocket { queued: Some((listening, position)), .. })) => shared_group
                    .region()
                    .accept_ring(*listening, self.shard)
                    .and_then(|r| r.entry(*position))
                    .is_some_and(|(s, claimant)| s == slot && claimant == Some(process)),
                _ => false,
            };
            if claimed && let Some(s) = self.stream_mut(group, slot) {
                s.queued = None;
            }
            if !shared.is_held() && (held || claimed) {
                self.command(stack, now, &shared_group, slot);
            }
        }
    }
}

/// Where a program wants its socket connected.
fn wanted_remote(shared: &Slot) -> SocketAddr {
    let port = shared.wanted_remote_port.load(Ordering::Relaxed) as u16;
    endpoint(load_address(&shared.wanted_remote_address), port)
}

/// The options of a slot, as the stack takes them.
pub(crate) fn read_options(shared: &Slot) -> TcpOptions {
    let bits = shared.options.load(Ordering::Relaxed);
    let bytes = |word: &AtomicU32| word.load(Ordering::Relaxed).min(sidestep_shm::layout::MAX_RING_BYTES);
    let small = |word: &AtomicU32| u8::try_from(word.load(Ordering::Relaxed)).unwrap_or(u8::MAX);
    let seconds = |word: u32| (word != 0).then(|| Duration::from_secs(word.into()));
    let user_timeout = shared.user_timeout_ms.load(Ordering::Relaxed);
    let max_segment = shared.max_segment.load(Ordering::Relaxed);
    TcpOptions {
        no_delay: bits & option::NO_DELAY != 0,
        cork: bits & option::CORK != 0,
        more: bits & option::MORE != 0,
        quick_ack: bits & option::QUICK_ACK != 0,
        keep_alive: bits & option::KEEP_ALIVE != 0,
        keepalive_idle: seconds(shared.keep_idle_s.load(Ordering::Relaxed)),
        keepalive_interval: seconds(shared.keep_interval_s.load(Ordering::Relaxed)),
        keepalive_probes: u8::try_from(shared.keep_count.load(Ordering::Relaxed)).ok().filter(|&n| n > 0),
        user_timeout: (user_timeout != 0).then(|| Duration::from_millis(user_timeout.into())),
        max_segment: u16::try_from(max_segment).ok().filter(|&n| n > 0),
        tos: shared.tos.load(Ordering::Relaxed) as u8,
        ttl: shared.ttl.load(Ordering::Relaxed) as u8,
        receive_buffer: bytes(&shared.receive_buffer),
        send_buffer: bytes(&shared.send_buffer),
        window_clamp: bytes(&shared.window_clamp),
        notsent_lowat: bytes(&shared.notsent_lowat),
        max_pacing_rate: shared.max_pacing_rate.load(Ordering::Relaxed).into(),
        syn_retries: small(&shared.syn_retries),
        linger2: shared.linger2.load(Ordering::Relaxed).cast_signed().clamp(-1, 120) as i16,
        defer_accept: small(&shared.defer_accept),
        fast_open: if bits & option::FAST_OPEN != 0 {
            1
        } else {
            u16::try_from(shared.fast_open.load(Ordering::Relaxed)).unwrap_or(u16::MAX)
        },
        fast_open_no_cookie: bits & option::NO_COOKIE != 0,
        mtu_discovery: shared
            .mtu_discovery
            .load(Ordering::Relaxed)
            .checked_sub(1)
            .and_then(|n| MtuDiscovery::from_number(u8::try_from(n).ok()?))
            .unwrap_or_default(),
        congestion: (shared.congestion.load(Ordering::Relaxed) as usize)
            .checked_sub(1)
            .and_then(|n| Congestion::by_name(CONGESTION.get(n)?)),
    }
}

/// The errno that Linux has for an error of the stack.
#[must_use]
pub(crate) fn errno(error: Error) -> u32 {
    use rustix::io::Errno;
    let errno = match error {
        Error::Refused => Errno::CONNREFUSED,
        Error::Reset => Errno::CONNRESET,
        Error::BrokenPipe => Errno::PIPE,
        Error::Aborted => Errno::CONNABORTED,
        Error::TimedOut => Errno::TIMEDOUT,
        Error::HostUnreachable => Errno::HOSTUNREACH,
        Error::NetworkUnreachable => Errno::NETUNREACH,
        Error::AddressInUse => Errno::ADDRINUSE,
        Error::AddressNotAvailable => Errno::ADDRNOTAVAIL,
        Error::MessageTooLong => Errno::MSGSIZE,
        Error::NoBuffers => Errno::NOBUFS,
        Error::NoSuchSocket => Errno::BADF,
        Error::Protocol => Errno::PROTO,
    };
    errno.raw_os_error().cast_unsigned()
}
