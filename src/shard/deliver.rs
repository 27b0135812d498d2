//! Stack to programs: events become the state in slots, dirty bits in event queues, and, last, doorbells.

use std::sync::atomic::Ordering;

use rustix::net::{SendFlags, send};
use sidestep_shm::slot::status;
use sidestep_stack::{Event, Instant, SocketId, Stack, TcpSnapshot, TcpState, Token};

use super::apps::{Apps, Kind, Socket, StreamSocket, untoken};
use super::commands::errno;
use super::mailbox::Notice;

impl Apps {
    /// Takes everything that the stack has to say, then rings whoever sleeps.
    pub(super) fn deliver(&mut self, stack: &mut Stack, now: Instant) {
        while let Some(event) = stack.poll_event() {
            match event {
                Event::Tcp { token, socket, state } => self.tcp_changed(token, socket, &state),
                Event::Accepted { listener, stream, socket, .. } => self.accepted(stack, now, listener, stream, socket),
                Event::DatagramError { token, error } => {
                    let (group, slot) = untoken(token);
                    if let Some(shared) = self.region(group).and_then(|r| r.slot(slot)) {
                        shared.error.store(errno(error), Ordering::Release);
                        self.notify(group, slot);
                    }
                }
                Event::DatagramSent { token } => {
                    let (group, slot) = untoken(token);
                    self.notify(group, slot);
                }
                Event::NeighborWanted { address } => self.notices.push(Notice::NeighborWanted { address }),
            }
        }
        self.let_datagrams_go(stack);
        self.ring();
    }

    /// One byte to each waiter that sleeps. Sent without waiting whatever the program did to its end.
    fn ring(&mut self) {
        for doorbell in self.to_ring.drain(..) {
            // A full queue means that it will wake anyway; an error, that the program broke its own doorbell.
            let _ = send(&doorbell, &[1], SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
            self.counters.wakeups += 1;
        }
    }

    /// The stack made a connection of a stream that `Host::accept` gave it: it goes to the accept ring now.
    fn accepted(&mut self, stack: &mut Stack, now: Instant, listener: Token, stream: Token, id: SocketId) {
        let ((group, listening), (_, slot)) = (untoken(listener), untoken(stream));
        let position = self.listener_mut(group, listening).map(|l| {
            l.coming = l.coming.saturating_sub(1);
            l.tail += 1;
            l.tail - 1
        });
        let Some(s) = self.stream_mut(group, slot) else { return };
        s.id = Some(id);
        let Some(position) = position else {
            // The listener closed between the handshake and here.
            s.queued = None;
            s.orphan = true;
            let _ = stack.tcp_abort(now, id);
            return;
        };
        s.queued = Some((listening, position));
        let Some(region) = self.region(group) else { return };
        if let (Some(shared), Some(from)) = (region.slot(slot), region.slot(listening)) {
            inherit_options(shared, from);
            // Options set since listen(): marks of a listener come to one shard only, so each looks for itself.
            let version = from.options_version.load(Ordering::Acquire);
            let known = self.index_of(group, listening).and_then(|i| self.get(i)).map(|l| l.options_version);
            if known != Some(version) {
                let _ = stack.tcp_set_options(now, id, super::read_options(shared));
            }
        }
        if let Some(ring) = region.accept_ring(listening, self.shard) {
            ring.push(position, slot);
        }
        self.notify(group, listening);
    }

    fn tcp_changed(&mut self, token: Token, id: SocketId, new: &TcpSnapshot) {
        let (group, slot) = untoken(token);
        let Some(index) = self.index_of(group, slot) else { return };
        let Some(Socket { kind: Kind::Stream(s), .. }) = self.at(index) else { return };
        if s.id.is_some_and(|known| known != id) {
            return;
        }
        s.rx_tail = new.rx_tail;
        s.tx_head = new.tx_head;
        let (limit_changed, grown) = (s.tx_limit != new.tx_limit, s.buffers.is_some());
        let stream_bytes = s.rx_tail.max(s.tx_tail);
        let following = self.latency.is_following();
        let Some(shared) = self.region(group).and_then(|r| r.slot(slot)) else { return };
        // Programs read these lines; a store that changes nothing would take them away all the same.
        for (word, value) in
            [(&shared.send_mss, new.send_mss), (&shared.tcp_state, new.state as u32), (&shared.rx_limit, new.rx_limit)]
        {
            if word.load(Ordering::Relaxed) != value {
                word.store(value, Ordering::Relaxed);
            }
        }
        if shared.notsent_lowat.load(Ordering::Relaxed) != 0 {
            shared.tx_next.store(new.tx_next, Ordering::Release);
        }
        if let Some(error) = new.error {
            shared.error.store(errno(error), Ordering::Release);
        }
        if following {
            // Before the bytes: whoever sees them sees that they are followed.
            self.follow_news(token, new.rx_tail, new.tx_head);
        }
        let Some(shared) = self.region(group).and_then(|r| r.slot(slot)) else { return };
        // Bytes first, then what says that they are there, then what says that no more will come.
        shared.rx_tail.store(new.rx_tail, Ordering::Release);
        shared.tx_head.store(new.tx_head, Ordering::Release);
        shared.status.store(status_of(new, shared.status.load(Ordering::Relaxed)), Ordering::SeqCst);
        if limit_changed || grown {
            // Before anyone looks for room.
            self.trim(index);
            self.grow_tx(index, new.tx_limit);
        }
        self.notify(group, slot);
        if new.released
            && let Some(socket) = self.at(index)
            && let Kind::Stream(StreamSocket { queued, buffers, .. }) = &mut socket.kind
        {
            socket.kind = Kind::Over { stream_bytes, queued: *queued, buffers: buffers.take() };
            self.reap(index);
        }
    }
}

/// Status bits that follow from a connection's state.
fn status_of(new: &TcpSnapshot, old: u32) -> u32 {
    let mut bits = old & (status::OPEN | status::BOUND | status::CONNECTED | status::BROKEN);
    match new.state {
        // Opened by a cookie (RFC 7413), it is the program's already.
        TcpState::SynReceived if old & status::CONNECTED != 0 => {}
        TcpState::SynSent | TcpState::SynReceived => bits |= status::CONNECTING,
        TcpState::Closed | TcpState::Listen => {}
        _ => bits |= status::CONNECTED,
    }
    if new.peer_finished {
        bits |= status::PEER_FINISHED;
    }
    let finished = matches!(
        new.state,
        TcpState::FinWait1 | TcpState::FinWait2 | TcpState::Closing | TcpState::LastAck | TcpState::TimeWait
    );
    if finished {
        bits |= status::FINISHED;
    }
    if new.error.is_some() {
        bits |= status::BROKEN;
    }
    if new.released || new.state == TcpState::Closed {
        bits |= status::CLOSED;
    }
    bits
}

/// An accepted socket starts with the options of its listener (as on Linux).
fn inherit_options(to: &sidestep_shm::Slot, from: &sidestep_shm::Slot) {
    let words = [
        (&to.options, &from.options),
        (&to.keep_idle_s, &from.keep_idle_s),
        (&to.keep_interval_s, &from.keep_interval_s),
        (&to.keep_count, &from.keep_count),
        (&to.user_timeout_ms, &from.user_timeout_ms),
        (&to.linger, &from.linger),
        (&to.tos, &from.tos),
        (&to.ttl, &from.ttl),
        (&to.max_segment, &from.max_segment),
        (&to.receive_buffer, &from.receive_buffer),
        (&to.send_buffer, &from.send_buffer),
        (&to.window_clamp, &from.window_clamp),
        (&to.notsent_lowat, &from.notsent_lowat),
        (&to.receive_lowat, &from.receive_lowat),
        (&to.max_pacing_rate, &from.max_pacing_rate),
        (&to.syn_retries, &from.syn_retries),
        (&to.linger2, &from.linger2),
        (&to.mtu_discovery, &from.mtu_discovery),
        (&to.congestion, &from.congestion),
    ];
    for (to, from) in words {
        to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}
