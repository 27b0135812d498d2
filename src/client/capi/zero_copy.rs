//! Reading and writing in place. What is lent is kept with the socket, so that C hands no token around.

use core::ffi::{c_int, c_void};
use std::sync::{MutexGuard, PoisonError};

use libc::iovec;
use rustix::io::Errno;

use super::border::{bad, guard, write_address};
use super::{MSG_DONTWAIT, MSG_MORE, MSG_NOSIGNAL, ss_sock};
use crate::borrow::Borrowed;

type Kept<'a> = MutexGuard<'a, Option<Borrowed>>;

fn kept(place: &std::sync::Mutex<Option<Borrowed>>) -> Kept<'_> {
    place.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Writes where the pieces lie.
///
/// # Safety
/// `out` points to two writable iovecs.
unsafe fn tell(piece: &Borrowed, out: *mut iovec) {
    for (i, (at, len)) in piece.pieces().into_iter().enumerate() {
        // SAFETY: the caller's word.
        unsafe { out.add(i).write(iovec { iov_base: at.cast(), iov_len: len }) };
    }
}

/// A socket that is being closed gives back what it lent.
pub(super) fn end(sock: &ss_sock) {
    if kept(&sock.received).take().is_some() | kept(&sock.reserved).take().is_some() {
        sock.socket.session().end_borrowing(sock.socket.slot());
    }
}

/// # Safety
/// `sock` is null or a socket that was not closed.
unsafe fn open<'a>(sock: *mut ss_sock) -> std::io::Result<&'a ss_sock> {
    // SAFETY: the caller's word.
    unsafe { sock.as_ref() }.map_or_else(|| bad(Errno::BADF), Ok)
}

/// See `include/sidestep.h`.
///
/// # Safety
/// `sock` is null or open; `pieces` is null or points to two iovecs; `address` and `len` as for recvfrom(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ss_recv_zc(
    sock: *mut ss_sock,
    pieces: *mut iovec,
    flags: c_int,
    address: *mut c_void,
    len: *mut u32,
) -> isize {
    guard(|| {
        // SAFETY: the caller's word.
        let s = unsafe { open(sock) }?;
        if pieces.is_null() {
            return bad(Errno::FAULT);
        }
        if flags & !MSG_DONTWAIT != 0 {
            return bad(Errno::OPNOTSUPP);
        }
        let (piece, from) = s.socket.borrow_received(flags & MSG_DONTWAIT != 0)?;
        let n = piece.len();
        // SAFETY: the caller's word.
        unsafe { tell(&piece, pieces) };
        if !piece.is_empty() {
            *kept(&s.received) = Some(piece);
        }
        if let Some(from) = from {
            // SAFETY: the caller's word.
            unsafe { write_address(from, address, len) }?;
        }
        Ok(n as isize)
    })
}

/// See `include/sidestep.h`.
///
/// # Safety
/// `sock` is null or open.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ss_recv_done(sock: *mut ss_sock, used: usize) -> c_int {
    guard(|| {
        // SAFETY: the caller's word.
        let s = unsafe { open(sock) }?;
        let mut kept = kept(&s.received);
        let Some(piece) = kept.as_ref() else {
            // After the end of the stream there is nothing to give back.
            return if used == 0 { Ok(0) } else { bad(Errno::INVAL) };
        };
        if used > piece.len() {
            return bad(Errno::INVAL);
        }
        let used = if piece.is_datagram() { used.max(1) } else { used };
        let outcome = s.socket.session().return_received(s.socket.slot(), piece, used);
        *kept = None;
        outcome?;
        Ok(0)
    }) as c_int
}

/// See `include/sidestep.h`.
///
/// # Safety
/// `sock` is null or open; `pieces` is null or points to two iovecs.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ss_send_reserve(sock: *mut ss_sock, want: usize, pieces: *mut iovec, flags: c_int) -> isize {
    guard(|| {
        // SAFETY: the caller's word.
        let s = unsafe { open(sock) }?;
        if pieces.is_null() {
            return bad(Errno::FAULT);
        }
        if flags & !(MSG_DONTWAIT | MSG_NOSIGNAL) != 0 {
            return bad(Errno::OPNOTSUPP);
        }
        let piece = s.socket.borrow_room(want, flags & MSG_DONTWAIT != 0)?;
        let n = piece.len();
        // SAFETY: the caller's word.
        unsafe { tell(&piece, pieces) };
        *kept(&s.reserved) = Some(piece);
        Ok(n as isize)
    })
}

/// See `include/sidestep.h`.
///
/// # Safety
/// `sock` is null or open.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ss_send_commit(sock: *mut ss_sock, written: usize, flags: c_int) -> c_int {
    guard(|| {
        // SAFETY: the caller's word.
        let s = unsafe { open(sock) }?;
        if flags & !(MSG_MORE | MSG_NOSIGNAL) != 0 {
            return bad(Errno::OPNOTSUPP);
        }
        let mut kept = kept(&s.reserved);
        let Some(piece) = kept.as_ref().filter(|p| written <= p.len()) else { return bad(Errno::INVAL) };
        let outcome = s.socket.session().commit_room(s.socket.slot(), piece, written, flags & MSG_MORE != 0);
        *kept = None;
        outcome?;
        Ok(0)
    }) as c_int
}
