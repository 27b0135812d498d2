//! What poll(2) would say of a socket, computed from its slot as Linux computes it.

use core::sync::atomic::Ordering;

use sidestep_shm::Slot;
use sidestep_shm::slot::{request, status};

use crate::address::is_udp;
use crate::session::Session;
use crate::stream::{readable, room, writable};

/// There is something to read, or the end, or an error.
pub const POLLIN: u32 = 0x1;
/// There is room to write, or writing would fail at once.
pub const POLLOUT: u32 = 0x4;
/// An error is pending.
pub const POLLERR: u32 = 0x8;
/// Both directions are over.
pub const POLLHUP: u32 = 0x10;
/// Set along with [`POLLIN`].
pub const POLLRDNORM: u32 = 0x40;
/// Set along with [`POLLOUT`].
pub const POLLWRNORM: u32 = 0x100;
/// Room for priority data: set along with [`POLLOUT`] of datagrams.
pub const POLLWRBAND: u32 = 0x200;
/// The peer's half is over.
pub const POLLRDHUP: u32 = 0x2000;

const IN: u32 = POLLIN | POLLRDNORM;
const OUT: u32 = POLLOUT | POLLWRNORM;

impl Session {
    /// The poll bits of the socket. A slot that can't be, and any socket of an engine that is gone, gives all of
    /// ERR, HUP, IN and OUT.
    #[must_use]
    pub fn readiness(&self, slot: u32) -> u32 {
        let Ok(shared) = self.slot(slot) else { return POLLERR | POLLHUP | IN | OUT };
        if self.bury_if_dead(shared) {
            return POLLERR | POLLHUP | POLLRDHUP | IN | OUT;
        }
        // Status before positions: what it says of the end must not be newer than the bytes found.
        let state = shared.status.load(Ordering::Acquire);
        let asked = shared.request.load(Ordering::Relaxed);
        if is_udp(shared.kind.load(Ordering::Relaxed)) {
            return self.datagram_readiness(slot, shared, asked);
        }
        if state & status::LISTENING != 0 {
            return if self.has_connections(slot) { IN } else { 0 };
        }
        self.stream_readiness(slot, shared, state, asked)
    }

    /// tcp_poll().
    fn stream_readiness(&self, slot: u32, shared: &Slot, state: u32, asked: u32) -> u32 {
        let Some(tx) = self.region().tx_split(slot) else { return 0 };
        let error = shared.error.load(Ordering::Acquire) != 0;
        // The engine stores the error first: whoever sees it knows the rest.
        let began = state & status::CONNECTED != 0 || asked & request::CONNECT != 0;
        let broken = state & (status::BROKEN | status::CLOSED) != 0 || error && began;
        let no_more_in = broken || state & status::PEER_FINISHED != 0 || asked & request::STOP_READING != 0;
        let no_more_out = broken || state & status::FINISHED != 0 || asked & request::FINISH != 0;
        let mut bits = 0;
        let notices = shared.copies_done.load(Ordering::Relaxed) != shared.copies_told.load(Ordering::Relaxed);
        if error || notices {
            bits |= POLLERR;
        }
        if no_more_in && no_more_out || !began {
            bits |= POLLHUP;
        }
        if no_more_in {
            bits |= IN | POLLRDHUP;
        }
        // A handshake under way is neither readable nor writable; a socket that never began one is "writable": the
        // write fails at once.
        if began && !broken && state & status::CONNECTED == 0 {
            return bits;
        }
        // SO_RCVLOWAT, but never more than can come.
        let least = (shared.receive_lowat.load(Ordering::Relaxed) as usize)
            .clamp(1, shared.rx_limit.load(Ordering::Relaxed).max(1) as usize);
        if readable(shared, usize::MAX) >= least {
            bits |= IN;
        }
        if no_more_out || room(shared, &tx).is_worth_telling() {
            bits |= OUT;
        }
        bits
    }

    /// datagram_poll().
    fn datagram_readiness(&self, slot: u32, shared: &Slot, asked: u32) -> u32 {
        let (Some(rx), Some(tx)) = (self.region().rx(slot), self.region().tx(slot)) else { return 0 };
        let mut bits = 0;
        if shared.error.load(Ordering::Acquire) != 0 {
            bits |= POLLERR;
        }
        if asked & request::STOP_READING != 0 {
            bits |= IN | POLLRDHUP;
            if asked & request::FINISH != 0 {
                bits |= POLLHUP;
            }
        }
        if readable(shared, rx.capacity()) > 0 {
            bits |= IN;
        }
        // sock_writeable(): half of the buffer is free.
        if writable(shared, tx.capacity()) >= tx.capacity() / 2 {
            bits |= OUT | POLLWRBAND;
        }
        bits
    }

    /// Whether accept() would find a connection.
    fn has_connections(&self, slot: u32) -> bool {
        (0..self.region().geometry().shards)
            .any(|shard| self.region().accept_ring(slot, shard).is_some_and(|ring| !ring.is_empty()))
    }
}
