//! Reading and writing in place: pieces of a stream's rings, borrowed, instead of copies into and out of them.
//!
//! ```text
//!   borrow_received ─▶ bytes where the engine left them ─▶ return_received(how many were used)
//!   borrow_room     ─▶ room where the engine will read  ─▶ commit_room(how many were written)
//! ```
//!
//! Between the two calls the socket's lock of that direction is *lent* ([`sidestep_shm::lock`]): nobody else moves the
//! position, so the engine neither overwrites received bytes nor sends half-written ones, and another call on the same
//! direction fails with EBUSY. The other direction is free, so that a program can copy straight from what it received
//! into what it sends.
//!
//! A stream that outgrows its ring goes on in another block (`sidestep_shm::split`). That does not move what is
//! borrowed: the engine keeps a block as long as the reader stands in it, and a writer changes blocks only under the
//! lock. A connection that breaks keeps its rings until its last holder closes it.
//!
//! With datagrams a borrowing is one datagram, and its payload is what is borrowed.

use core::sync::atomic::Ordering;

use rustix::io::Errno;
use sidestep_shm::datagram::{HEADER_BYTES, Header};
use sidestep_shm::slot::status;

use crate::address::is_udp;
use crate::session::Session;
use crate::stamps;
use crate::sys::Held;

#[cfg(test)]
mod tests;

/// A borrowed piece of a ring.
///
/// The addresses hold until the piece is given back, or the socket closed; it must be given back to the session and slot
/// that it came from. Nothing else writes there meanwhile, but for programs of the same group that don't keep to the
/// rules, which are this program's own.
#[derive(Debug)]
pub struct Borrowed {
    /// At most two parts, in the order of the stream: address and bytes.
    pieces: [(*mut u8, usize); 2],
    /// Where it lies in the stream.
    position: u64,
    /// Bytes of the ring that a datagram takes with its header; 0: of a stream.
    record: u64,
}

// SAFETY: addresses in the group's mapping, which any thread may use; the lock says who does.
unsafe impl Send for Borrowed {}
// SAFETY: as above; a shared reference gives nothing but numbers.
unsafe impl Sync for Borrowed {}

impl Borrowed {
    const NOTHING: Self = Self { pieces: [(core::ptr::null_mut(), 0); 2], position: 0, record: 0 };

    /// Bytes in both parts.
    #[must_use]
    pub fn len(&self) -> usize {
        self.pieces[0].1 + self.pieces[1].1
    }

    /// Nothing was borrowed: the end of the stream. An empty datagram is something.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0 && self.record == 0
    }

    /// Whether it is a datagram's payload.
    #[must_use]
    pub fn is_datagram(&self) -> bool {
        self.record > 0
    }

    /// Address and bytes of both parts. The second is empty unless the ring's end lies in between.
    #[must_use]
    pub fn pieces(&self) -> [(*mut u8, usize); 2] {
        self.pieces
    }

    /// Both parts as slices.
    ///
    /// # Safety
    /// For as long as the slices live the piece isn't given back, the socket not closed, and the session not dropped.
    #[must_use]
    pub(crate) unsafe fn slices<'a>(&self) -> [&'a [u8]; 2] {
        // SAFETY: addresses of the mapping, of that many bytes, by construction; the caller keeps them valid. Whoever
        // could write there keeps off while the lock is lent.
        self.pieces.map(|(p, n)| if n == 0 { &[][..] } else { unsafe { core::slice::from_raw_parts(p, n) } })
    }

    /// The same to write into.
    ///
    /// # Safety
    /// As [`Self::slices`]; the piece is room for sending, and no other slice of it is in use.
    #[must_use]
    #[allow(clippy::mut_from_ref, reason = "the memory is the ring's, not this value's")]
    pub(crate) unsafe fn slices_mut<'a>(&self) -> [&'a mut [u8]; 2] {
        // SAFETY: as above; the engine reads there only once the piece is committed.
        self.pieces.map(|(p, n)| if n == 0 { &mut [][..] } else { unsafe { core::slice::from_raw_parts_mut(p, n) } })
    }
}

impl Session {
    /// Borrows what can be read now: of a stream, as much as lies in one block; of a datagram socket, the payload of the
    /// next one, with its header. What is empty ([`Borrowed::is_empty`]) is the end of the stream and need not be given
    /// back; everything else must, by [`Self::return_received`].
    ///
    /// # Errors
    /// As [`Self::receive`] and [`Self::receive_datagram`]; EBUSY: borrowed already.
    pub fn borrow_received(&self, slot: u32) -> Result<(Borrowed, Option<Header>), Errno> {
        let shared = self.slot(slot)?;
        if is_udp(shared.kind.load(Ordering::Relaxed)) {
            return self.borrow_datagram(slot);
        }
        // Before the bytes: see `receive`.
        let state = shared.status.load(Ordering::Acquire);
        if state & status::LISTENING != 0 {
            return Err(Errno::NOTCONN);
        }
        let (held, queued) = loop {
            let held = Held::take(&shared.rx_lock, self.process())?;
            let queued = crate::stream::readable(shared, usize::MAX);
            if queued > 0 {
                break (held, queued);
            }
            // Nothing to lend. What else there is to say, receive() says; bytes that come meanwhile it leaves.
            drop(held);
            self.receive(slot, &mut [], true)?;
            if crate::stream::readable(shared, usize::MAX) == 0 {
                return Ok((Borrowed::NOTHING, None));
            }
        };
        let split = self.region().rx_split(slot).ok_or(Errno::IO)?;
        let position = shared.rx_head.load(Ordering::Relaxed);
        let pieces = split.pieces(position, queued.min(split.span()));
        held.lend(self.process());
        Ok((Borrowed { pieces, position, record: 0 }, None))
    }

    fn borrow_datagram(&self, slot: u32) -> Result<(Borrowed, Option<Header>), Errno> {
        // Also takes what is pending or damaged, and leaves the datagram.
        let (_, header) = self.receive_datagram(slot, &mut [], true)?;
        let shared = self.slot(slot)?;
        let ring = self.region().rx(slot).ok_or(Errno::BADF)?;
        if header == Header::default() && crate::datagram::next_len(shared, ring).is_none() {
            // Shut down for reading.
            return Ok((Borrowed::NOTHING, None));
        }
        let held = Held::take(&shared.rx_lock, self.process())?;
        // Another thread may have read it in between.
        let (position, header) = crate::datagram::next_whole(shared, ring).ok_or(Errno::AGAIN)?;
        let pieces = ring.pieces(position + HEADER_BYTES as u64, header.len as usize);
        held.lend(self.process());
        Ok((Borrowed { pieces, position, record: Header::record_bytes(header.len as usize) }, Some(header)))
    }

    /// Gives a piece back of which the first `used` bytes were read; the rest comes again. A datagram is done with,
    /// however much of it was read; with 0 it comes again too.
    ///
    /// # Errors
    /// EINVAL: more than was borrowed (it stays borrowed then), or given back already.
    pub fn return_received(&self, slot: u32, piece: &Borrowed, used: usize) -> Result<(), Errno> {
        if piece.is_empty() && used == 0 {
            return Ok(());
        }
        let shared = self.slot(slot)?;
        if used > piece.len().max(usize::from(piece.record > 0)) {
            return Err(Errno::INVAL);
        }
        let held = Held::take_back(&shared.rx_lock, self.process())?;
        if used == 0 {
            return Ok(());
        }
        let queued = crate::stream::readable(shared, usize::MAX);
        let to = piece.position + if piece.record > 0 { piece.record } else { used as u64 };
        shared.rx_head.store(to, Ordering::Release);
        let worth = if piece.record > 0 {
            let capacity = self.region().geometry().rx_bytes as usize;
            crate::stream::worth_telling(piece.position, to, queued, capacity)
        } else {
            stamps::read(shared, to);
            let split = self.region().rx_split(slot);
            split.is_none_or(|s| crate::stream::reader_is_worth_telling(shared, &s, (piece.position, to), queued))
        };
        drop(held);
        if worth {
            self.mark(shared, slot);
        }
        Ok(())
    }

    /// Borrows room for up to `want` bytes in a stream's transmit buffer. It must be given back by
    /// [`Self::commit_room`].
    ///
    /// # Errors
    /// As [`Self::send`]; EAGAIN: no room at all. EINVAL: `want` is 0. EOPNOTSUPP: datagrams. EBUSY: borrowed already.
    pub fn borrow_room(&self, slot: u32, want: usize) -> Result<Borrowed, Errno> {
        let shared = self.slot(slot)?;
        if is_udp(shared.kind.load(Ordering::Relaxed)) {
            return Err(Errno::OPNOTSUPP);
        }
        if want == 0 {
            return Err(Errno::INVAL);
        }
        self.may_send(shared)?;
        let held = Held::take(&shared.tx_lock, self.process())?;
        let position = shared.tx_tail.load(Ordering::Relaxed);
        self.region().take_offer(slot, shared.tx_head.load(Ordering::Acquire), position);
        let split = self.region().tx_split(slot).ok_or(Errno::IO)?;
        let room = crate::stream::room(shared, &split).free.min(want);
        if room == 0 {
            return Err(Errno::AGAIN);
        }
        let pieces = split.pieces(position, room);
        held.lend(self.process());
        Ok(Borrowed { pieces, position, record: 0 })
    }

    /// Sends the first `written` bytes of borrowed room and gives the rest back. With `more` (MSG_MORE) a last partial
    /// segment waits for what follows.
    ///
    /// # Errors
    /// EINVAL: more than was borrowed (it stays borrowed then), or given back already. EPIPE: nothing more can be sent
    /// since; otherwise the connection's pending error, once. After these two the room is given back.
    pub fn commit_room(&self, slot: u32, piece: &Borrowed, written: usize, more: bool) -> Result<(), Errno> {
        let shared = self.slot(slot)?;
        if written > piece.len() {
            return Err(Errno::INVAL);
        }
        let held = Held::take_back(&shared.tx_lock, self.process())?;
        if written == 0 {
            return Ok(());
        }
        // Whether the engine lives was looked at when the room was lent.
        crate::stream::is_open_for_sending(shared)?;
        // A full buffer is sent whatever is announced to follow: see `send`.
        let fills = |split| written >= crate::stream::room(shared, &split).free;
        let more = more && !self.region().tx_split(slot).is_none_or(fills);
        crate::stream::publish(shared, piece.position + written as u64, more);
        drop(held);
        self.mark_now(shared, slot);
        Ok(())
    }

    /// Gives back what this process borrowed of a socket that is about to be closed: nothing read, nothing sent.
    pub fn end_borrowing(&self, slot: u32) {
        if let Ok(shared) = self.slot(slot) {
            for word in [&shared.rx_lock, &shared.tx_lock] {
                drop(Held::take_back(word, self.process()));
            }
        }
    }
}
