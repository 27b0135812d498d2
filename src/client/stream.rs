//! Bytes of TCP: between the program's buffers and the slot's rings.
//!
//! The engine writes `rx_tail` and `tx_head`; programs write `rx_head` and `tx_tail`, one at a time under the slot's
//! lock. Positions are never trusted: what they say is cut to the ring's capacity.

use core::sync::atomic::Ordering;
use std::io::{IoSlice, IoSliceMut};

use rustix::io::Errno;
use sidestep_shm::slot::{option, request, status};
use sidestep_shm::{Slot, Split};

use crate::session::Session;
use crate::socket::take_error;
use crate::stamps;
use crate::sys::Held;

/// Largest number of bytes read before the engine is told, so that the window that the peer sees stays open.
const MOST_UNTOLD: u64 = 32_768;
/// Least such number, about two segments: the smallest update of a window that RFC 9293 3.8.6.2.2 allows a receiver.
const LEAST_UNTOLD: u64 = 2048;

/// Bytes to read.
pub(crate) fn readable(shared: &Slot, capacity: usize) -> usize {
    let tail = shared.rx_tail.load(Ordering::Acquire);
    cut(tail, shared.rx_head.load(Ordering::Relaxed), capacity)
}

/// Room in a ring of `capacity` bytes.
pub(crate) fn writable(shared: &Slot, capacity: usize) -> usize {
    let head = shared.tx_head.load(Ordering::Acquire);
    capacity - cut(shared.tx_tail.load(Ordering::Relaxed), head, capacity)
}

/// The transmit buffer of a stream as it stands.
pub(crate) struct Room {
    /// Bytes that may be written now.
    pub free: usize,
    /// Bytes that the buffer holds.
    pub limit: usize,
    /// Bytes not acknowledged.
    pub queued: usize,
}

impl Room {
    /// Whether a program that waits for room should be told of it, as sk_stream_is_writeable() has it: a third of the
    /// buffer is free.
    pub(crate) fn is_worth_telling(&self) -> bool {
        self.free >= self.limit / 3
    }
}

/// Room to write in a stream whose bytes lie in `split`.
pub(crate) fn room(shared: &Slot, split: &Split<'_>) -> Room {
    let head = shared.tx_head.load(Ordering::Acquire);
    let tail = shared.tx_tail.load(Ordering::Relaxed);
    let queued = cut(tail, head, split.span());
    let limit = match shared.tx_limit.load(Ordering::Relaxed) as usize {
        0 => split.capacity(),
        limit => limit,
    };
    let mut free = limit.saturating_sub(queued).min(split.room(head, tail));
    // TCP_NOTSENT_LOWAT: as long as that much waits to be sent there is none.
    let lowat = shared.notsent_lowat.load(Ordering::Relaxed) as u64;
    if lowat != 0 && tail.saturating_sub(shared.tx_next.load(Ordering::Acquire).max(head)) >= lowat {
        free = 0;
    }
    // As long as the block is smaller than the limit, it is what can be waited for.
    Room { free, limit: limit.min(split.capacity()), queued }
}

/// What the receive buffer holds, as the engine says.
fn receive_limit(shared: &Slot, split: &Split<'_>) -> usize {
    match shared.rx_limit.load(Ordering::Relaxed) as usize {
        0 => split.capacity(),
        limit => limit.min(split.span()),
    }
}

/// `tail - head`, at most `capacity`; nothing when head is beyond tail, which can only be damage.
fn cut(tail: u64, head: u64, capacity: usize) -> usize {
    usize::try_from(tail.saturating_sub(head)).unwrap_or(usize::MAX).min(capacity)
}

/// Whether reading from `head` on to `to` is to be told to the engine: the ring had been more than half full, or the
/// stream passed one of the marks that stand every eighth of the ring.
pub(crate) fn worth_telling(head: u64, to: u64, was_queued: usize, capacity: usize) -> bool {
    let step = (capacity as u64 / 8).clamp(LEAST_UNTOLD, MOST_UNTOLD);
    was_queued > capacity / 2 || head / step != to / step
}

/// The same for a stream of which `queued` bytes could be read before.
#[inline]
pub(crate) fn reader_is_worth_telling(shared: &Slot, ring: &Split<'_>, (head, to): (u64, u64), queued: usize) -> bool {
    let limit = receive_limit(shared, ring);
    // A sender whose segments are as long as half the buffer waits until that much is free (RFC 9293 3.8.6.2.1): the
    // engine must know that everything is. Elsewhere a window that is a little too small holds nobody up.
    let crowded = to - head == queued as u64 && limit < 3 * shared.send_mss.load(Ordering::Relaxed) as usize;
    crowded || worth_telling(head, to, queued, limit)
}

/// Makes what was written up to `to` the engine's, by whoever has `tx_lock`.
#[inline]
pub(crate) fn publish(shared: &Slot, to: u64, more: bool) {
    if more != (shared.options.load(Ordering::Relaxed) & option::MORE != 0) {
        hold_back(shared, more);
    }
    stamps::wrote(shared, to);
    shared.tx_tail.store(to, Ordering::Release);
}

impl Session {
    /// Bytes that [`Self::send`] would take now, as far as can be told without taking them.
    #[must_use]
    pub fn send_room(&self, slot: u32) -> usize {
        let shared = self.region().slot(slot);
        shared.zip(self.region().tx_split(slot)).map_or(0, |(shared, split)| room(shared, &split).free)
    }

    /// recv(2) on TCP: fills `bufs` as far as there are bytes, and returns how many it put there. 0 is the end of the
    /// stream (or no room in `bufs`). With `peek` the bytes stay.
    ///
    /// # Errors
    /// EAGAIN: nothing yet. ENOTCONN: not connected. Otherwise the connection's pending error (ECONNRESET, ETIMEDOUT,
    /// ECONNREFUSED, …), once, and only after what had arrived before it.
    pub fn receive(&self, slot: u32, bufs: &mut [IoSliceMut<'_>], peek: bool) -> Result<usize, Errno> {
        let tell = |shared: &Slot| self.mark(shared, slot);
        match self.receive_once(slot, bufs, peek, tell) {
            Err(Errno::AGAIN) if self.has_come() => self.receive_once(slot, bufs, peek, tell),
            outcome => outcome,
        }
    }

    /// The same; `tell` tells the engine, if it is to be told.
    pub(crate) fn receive_once(
        &self,
        slot: u32,
        bufs: &mut [IoSliceMut<'_>],
        peek: bool,
        tell: impl FnOnce(&Slot),
    ) -> Result<usize, Errno> {
        let shared = self.slot(slot)?;
        // Before the bytes: a connection that had ended when the ring was still empty gets no more of them.
        let mut state = shared.status.load(Ordering::Acquire);
        if state & status::LISTENING != 0 {
            return Err(Errno::NOTCONN);
        }
        let held = Held::take(&shared.rx_lock, self.process())?;
        let mut queued = readable(shared, usize::MAX);
        if queued == 0 && state & (status::PEER_FINISHED | status::BROKEN | status::CLOSED) == 0 {
            if !self.bury_if_dead(shared) {
                drop(held);
                return at_the_end(shared, state);
            }
            state = shared.status.load(Ordering::Acquire);
            queued = readable(shared, usize::MAX);
        }
        if queued == 0 {
            drop(held);
            return at_the_end(shared, state);
        }
        // After the tail: the map covers everything up to it.
        let ring = self.region().rx_split(slot).ok_or(Errno::IO)?;
        queued = queued.min(ring.span());
        let head = shared.rx_head.load(Ordering::Relaxed);
        let mut done = 0;
        for buf in bufs.iter_mut() {
            let n = buf.len().min(queued - done);
            ring.read(head + done as u64, &mut buf[..n]);
            done += n;
        }
        if peek || done == 0 {
            return Ok(done);
        }
        let to = head + done as u64;
        shared.rx_head.store(to, Ordering::Release);
        stamps::read(shared, to);
        drop(held);
        if reader_is_worth_telling(shared, &ring, (head, to), queued) {
            tell(shared);
        }
        Ok(done)
    }

    /// Reads and throws away up to `most` bytes (MSG_TRUNC on TCP). Otherwise as [`Self::receive`].
    ///
    /// # Errors
    /// As [`Self::receive`].
    pub fn discard(&self, slot: u32, most: usize) -> Result<usize, Errno> {
        let mut waste = [0u8; 2048];
        let mut done = 0;
        while done < most {
            let n = waste.len().min(most - done);
            match self.receive(slot, &mut [IoSliceMut::new(&mut waste[..n])], false) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(_) if done > 0 => break,
                Err(e) => return Err(e),
            }
        }
        Ok(done)
    }

    /// send(2) on TCP: takes as many bytes as there is room for and returns how many. With `more` (MSG_MORE) a last
    /// partial segment waits for what follows.
    ///
    /// # Errors
    /// EAGAIN: no room, or still connecting. EPIPE: not connected, or nothing more can be sent (SIGPIPE is the
    /// caller's business). Otherwise the connection's pending error, once.
    pub fn send(&self, slot: u32, bufs: &[IoSlice<'_>], more: bool) -> Result<usize, Errno> {
        self.send_telling(slot, bufs, (more, false), |shared| self.mark_now(shared, slot))
    }

    /// [`Self::send`] with MSG_EOR: if all of it was taken, no segment holds both its end and what is sent next.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub fn send_record(&self, slot: u32, bufs: &[IoSlice<'_>]) -> Result<usize, Errno> {
        self.send_telling(slot, bufs, (false, true), |shared| self.mark_now(shared, slot))
    }

    /// Both; `tell` tells the engine.
    #[inline]
    pub(crate) fn send_telling(
        &self,
        slot: u32,
        bufs: &[IoSlice<'_>],
        (more, record): (bool, bool),
        tell: impl FnOnce(&Slot),
    ) -> Result<usize, Errno> {
        let shared = self.slot(slot)?;
        self.may_send(shared)?;
        let held = Held::take(&shared.tx_lock, self.process())?;
        let tail = shared.tx_tail.load(Ordering::Relaxed);
        self.region().take_offer(slot, shared.tx_head.load(Ordering::Acquire), tail);
        let ring = self.region().tx_split(slot).ok_or(Errno::IO)?;
        let room = room(shared, &ring).free;
        let mut done = 0;
        for buf in bufs {
            let n = buf.len().min(room - done);
            ring.write(tail + done as u64, &buf[..n]);
            done += n;
        }
        if done == 0 {
            let wanted = bufs.iter().any(|b| !b.is_empty());
            return if wanted { Err(Errno::AGAIN) } else { Ok(0) };
        }
        // As Linux: a full buffer is sent whatever is announced to follow, or nothing would ever make room for it.
        let more = more && done < room;
        if record && done == bufs.iter().map(|b| b.len()).sum() {
            // The engine puts the half that is missing back by how far the stream is.
            shared.record_end.store(((tail + done as u64) as u32).wrapping_mul(2) | 1, Ordering::Release);
            shared.request.fetch_or(request::RECORD, Ordering::SeqCst);
        }
        publish(shared, tail + done as u64, more);
        drop(held);
        tell(shared);
        Ok(done)
    }

    /// sendto(2) with MSG_FASTOPEN on TCP: starts a connection whose SYN carries the first of these bytes, if the server
    /// gave a cookie before (RFC 7413); if not, its SYN asks for one and the bytes follow the handshake. Returns how many
    /// bytes were taken.
    ///
    /// # Errors
    /// As [`Self::connect`].
    pub fn connect_with(&self, slot: u32, remote: std::net::SocketAddr, bufs: &[IoSlice<'_>]) -> Result<usize, Errno> {
        let shared = self.slot(slot)?;
        let begun = status::CONNECTING | status::CONNECTED | status::LISTENING | status::BROKEN;
        let fresh = shared.status.load(Ordering::Acquire) & begun == 0
            && shared.request.load(Ordering::Relaxed) & request::CONNECT == 0;
        let mut done = 0;
        if fresh {
            let held = Held::take(&shared.tx_lock, self.process())?;
            let ring = self.region().tx_split(slot).ok_or(Errno::IO)?;
            let room = room(shared, &ring).free;
            for buf in bufs {
                let n = buf.len().min(room - done);
                ring.write(done as u64, &buf[..n]);
                done += n;
            }
            shared.tx_tail.store(done as u64, Ordering::Release);
            drop(held);
            shared.options.fetch_or(option::FAST_OPEN, Ordering::Release);
        }
        match self.connect(slot, remote) {
            Ok(()) => Ok(done),
            Err(error) => {
                if fresh {
                    shared.tx_tail.store(0, Ordering::Release);
                }
                Err(error)
            }
        }
    }
}

impl Session {
    /// Whether a stream can be written to, room or not.
    #[inline]
    pub(crate) fn may_send(&self, shared: &Slot) -> Result<(), Errno> {
        self.bury_if_dead(shared);
        is_open_for_sending(shared)
    }
}

/// The same of an engine that lives.
#[inline]
pub(crate) fn is_open_for_sending(shared: &Slot) -> Result<(), Errno> {
    if let Some(error) = take_error(shared) {
        return Err(error);
    }
    let state = shared.status.load(Ordering::Acquire);
    let asked = shared.request.load(Ordering::Relaxed);
    let over = status::BROKEN | status::CLOSED | status::FINISHED | status::LISTENING;
    if state & over != 0 || asked & (request::FINISH | request::ABORT) != 0 {
        return Err(Errno::PIPE);
    }
    if state & status::CONNECTED == 0 {
        return Err(if asked & request::CONNECT != 0 { Errno::AGAIN } else { Errno::PIPE });
    }
    Ok(())
}

/// Sets or clears MSG_MORE's bit, before the bytes that it is about become visible.
fn hold_back(shared: &Slot, more: bool) {
    if more {
        shared.options.fetch_or(option::MORE, Ordering::Release);
    } else {
        shared.options.fetch_and(!option::MORE, Ordering::Release);
    }
    shared.options_version.fetch_add(1, Ordering::Release);
    shared.request.fetch_or(request::OPTIONS, Ordering::SeqCst);
}

/// What recv() says when no byte is there. `state` was read before the ring was found empty.
fn at_the_end(shared: &Slot, state: u32) -> Result<usize, Errno> {
    // As tcp_recvmsg(): once the FIN was read the stream has ended well, whatever comes after it. An error (EPIPE, when a
    // RST answers what was still sent) stays for send() and SO_ERROR.
    if state & status::PEER_FINISHED != 0 {
        return Ok(0);
    }
    if let Some(error) = take_error(shared) {
        return Err(error);
    }
    let asked = shared.request.load(Ordering::Relaxed);
    let ended = status::PEER_FINISHED | status::BROKEN | status::CLOSED;
    if state & ended != 0 || asked & request::STOP_READING != 0 {
        return Ok(0);
    }
    if state & status::CONNECTED == 0 && asked & request::CONNECT == 0 {
        return Err(Errno::NOTCONN);
    }
    Err(Errno::AGAIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nonsense_positions_are_cut() {
        assert_eq!(cut(10, 4, 64), 6);
        assert_eq!(cut(u64::MAX, 4, 64), 64);
        assert_eq!(cut(3, 4, 64), 0);
    }

    #[test]
    fn the_engine_hears_of_reading_often_enough_but_not_of_each_read() {
        let capacity = 65_536;
        assert!(!worth_telling(0, 64, 64, capacity));
        assert!(worth_telling(0, 64, capacity / 2 + 1, capacity));
        // However small the reads, an emptied ring has been told.
        let mut head = 0;
        let told = (0..1024).filter(|_| {
            head += 64;
            worth_telling(head - 64, head, 100, capacity)
        });
        assert_eq!(told.count(), 8);
        assert!(worth_telling(1000, 3000, 2000, 4096));
    }
}
