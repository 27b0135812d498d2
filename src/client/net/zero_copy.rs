//! Reading and writing without a copy: see [`crate::borrow`].

use core::net::SocketAddr;
use std::io::{self, Write};

use rustix::io::Errno;

use super::{Socket, TcpStream, UdpSocket};
use crate::borrow::Borrowed;
use crate::readiness::{POLLIN, POLLOUT};

impl Socket {
    /// What can be read, in place, and who sent it if it is a datagram.
    pub(crate) fn borrow_received(&self, dont_wait: bool) -> io::Result<(Borrowed, Option<SocketAddr>)> {
        let (piece, header) = self.attempt(POLLIN, dont_wait, || self.session().borrow_received(self.slot))?;
        Ok((piece, header.map(|h| self.sender(&h))))
    }

    /// Room for up to `want` bytes.
    pub(crate) fn borrow_room(&self, want: usize, dont_wait: bool) -> io::Result<Borrowed> {
        self.attempt(POLLOUT, dont_wait, || self.session().borrow_room(self.slot, want))
    }
}

impl TcpStream {
    /// The bytes that have arrived, where they lie: read without a copy. Waits for some as [`std::io::Read::read`]
    /// does. What is received stays until [`Received::consume`] says how much of it was read; dropping it instead
    /// reads nothing.
    ///
    /// Not always all of it: a stream lies in at most two blocks of memory, and this lends from one. The rest comes
    /// with the next call.
    ///
    /// # Errors
    /// As for reading. `ResourceBusy`, also of other reads meanwhile: the stream is lent already.
    pub fn peek_slices(&self) -> io::Result<Received<'_>> {
        let (piece, _) = self.0.borrow_received(false)?;
        Ok(Received { socket: &self.0, piece })
    }

    /// Room for up to `want` bytes, at least one, in the stream's own buffer: written without a copy. Waits for room as
    /// [`std::io::Write::write`] does. What is written leaves with [`Reserved::commit`]; dropping it sends nothing.
    ///
    /// # Errors
    /// As for writing. EINVAL: `want` is 0. `ResourceBusy`, also of other writes meanwhile: it is lent already.
    pub fn reserve(&self, want: usize) -> io::Result<Reserved<'_>> {
        Ok(Reserved { socket: &self.0, piece: self.0.borrow_room(want, false)?, written: 0 })
    }
}

impl UdpSocket {
    /// The next datagram where it lies, and its sender. It stays until [`Received::consume`].
    ///
    /// # Errors
    /// As [`Self::recv_from`]. `ResourceBusy`: it is lent already.
    pub fn peek_slices(&self) -> io::Result<(Received<'_>, Option<SocketAddr>)> {
        let (piece, from) = self.0.borrow_received(false)?;
        Ok((Received { socket: &self.0, piece }, from))
    }
}

/// Bytes that were received, lent by a socket.
#[derive(Debug)]
#[must_use = "reads nothing unless it is consumed"]
pub struct Received<'s> {
    socket: &'s Socket,
    piece: Borrowed,
}

impl Received<'_> {
    /// The bytes, in two parts of which the second may be empty.
    #[must_use]
    pub fn slices(&self) -> [&[u8]; 2] {
        // SAFETY: they live no longer than `self`, which holds the socket and with it the session, and whose end gives
        // the piece back.
        unsafe { self.piece.slices() }
    }

    /// Bytes in both parts.
    #[must_use]
    pub fn len(&self) -> usize {
        self.piece.len()
    }

    /// Nothing is there and nothing will come: the end of the stream. An empty datagram is not empty in this sense.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.piece.is_empty()
    }

    /// The first `used` bytes were read; the rest comes again. Of a datagram nothing comes again.
    ///
    /// # Errors
    /// EINVAL: more than there is; then nothing was read.
    pub fn consume(self, used: usize) -> io::Result<()> {
        if used > self.len() {
            return Err(Errno::INVAL.into());
        }
        // A datagram is one, even if it is empty, and read, even if nothing of it was looked at.
        let used = if self.piece.is_datagram() { used.max(1) } else { used };
        let this = core::mem::ManuallyDrop::new(self);
        Ok(this.socket.session().return_received(this.socket.slot, &this.piece, used)?)
    }
}

impl Drop for Received<'_> {
    fn drop(&mut self) {
        // It can't be refused: this is the only one to give it back.
        let _ = self.socket.session().return_received(self.socket.slot, &self.piece, 0);
    }
}

/// Room for bytes that are to be sent, lent by a stream: to be written as two slices, or from front to back by
/// [`Write`], which writes less than it was given once the room is full.
#[derive(Debug)]
#[must_use = "sends nothing unless it is committed"]
pub struct Reserved<'s> {
    socket: &'s Socket,
    piece: Borrowed,
    /// Bytes that went through [`Write`].
    written: usize,
}

impl Reserved<'_> {
    /// The room, in two parts of which the second may be empty. What stands there is what was sent some time ago.
    #[must_use]
    pub fn slices(&mut self) -> [&mut [u8]; 2] {
        // SAFETY: as in `Received::slices`; the slices borrow `self` alone.
        unsafe { self.piece.slices_mut() }
    }

    /// Bytes in both parts. Never 0.
    #[must_use]
    #[allow(clippy::len_without_is_empty, reason = "it is never empty")]
    pub fn len(&self) -> usize {
        self.piece.len()
    }

    /// Bytes that were written by [`Write`] so far.
    #[must_use]
    pub fn written(&self) -> usize {
        self.written
    }

    /// Sends the first `written` bytes; 0 sends nothing.
    ///
    /// # Errors
    /// EINVAL: more than there is room for; EPIPE and the connection's error as for writing. Nothing was sent then.
    pub fn commit(self, written: usize) -> io::Result<()> {
        self.commit_with(written, false)
    }

    /// The same with MSG_MORE: a last partial segment waits for what follows.
    ///
    /// # Errors
    /// As [`Self::commit`].
    pub fn commit_more(self, written: usize) -> io::Result<()> {
        self.commit_with(written, true)
    }

    fn commit_with(self, written: usize, more: bool) -> io::Result<()> {
        if written > self.len() {
            return Err(Errno::INVAL.into());
        }
        let this = core::mem::ManuallyDrop::new(self);
        Ok(this.socket.session().commit_room(this.socket.slot, &this.piece, written, more)?)
    }
}

impl Write for Reserved<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let done = self.written;
        let mut copied = 0;
        for (part, start) in self.slices().into_iter().scan(0, |end, part| {
            let start = *end;
            *end += part.len();
            Some((part, start))
        }) {
            // What is left of this part behind what was written before and just now.
            let from = (done + copied).saturating_sub(start).min(part.len());
            let n = (part.len() - from).min(data.len() - copied);
            part[from..from + n].copy_from_slice(&data[copied..copied + n]);
            copied += n;
        }
        self.written += copied;
        Ok(copied)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        let _ = self.socket.session().commit_room(self.socket.slot, &self.piece, 0, false);
    }
}
