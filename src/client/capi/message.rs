//! sendmsg(2) and recvmsg(2), alone and as part of a batch.

use core::ffi::c_int;
use std::io::{self, IoSlice, IoSliceMut};

use libc::{iovec, msghdr};
use rustix::io::Errno;

use super::border::{bad, bytes, bytes_mut, guard, read_address, socket, write_address};
use super::{MSG_DONTWAIT, MSG_MORE, MSG_NOSIGNAL, MSG_PEEK, MSG_TRUNC, ss_sock};
use crate::batch::Batch;
use crate::datagram::DatagramOptions;
use crate::net::Socket;
use crate::readiness::{POLLIN, POLLOUT};
use crate::sys::Deadline;

/// UIO_MAXIOV.
const MOST_PIECES: usize = 1024;

/// # Safety
/// The header's `msg_iov` is null or points to `msg_iovlen` pieces.
unsafe fn pieces(header: &msghdr) -> io::Result<&[iovec]> {
    let count = header.msg_iovlen;
    match (header.msg_iov.is_null(), count) {
        (_, 0) => Ok(&[]),
        (_, n) if n > MOST_PIECES => bad(Errno::MSGSIZE),
        (true, _) => bad(Errno::FAULT),
        // SAFETY: the caller's word.
        _ => Ok(unsafe { core::slice::from_raw_parts(header.msg_iov, count) }),
    }
}

/// What waits for the engine must have told it first.
fn or_flush<T>(batch: &mut Batch<'_>, mut verb: impl FnMut(&mut Batch<'_>) -> Result<T, Errno>) -> Result<T, Errno> {
    match verb(batch) {
        Err(Errno::AGAIN) => {
            batch.flush();
            verb(batch)
        }
        outcome => outcome,
    }
}

/// recvmsg(2): the bytes received. Control messages there are none. Waits unless told not to, and no longer than
/// `limit`; before it sleeps, what the batch has is done.
///
/// # Safety
/// The header as for recvmsg(2).
pub(super) unsafe fn receive_message(
    s: &Socket,
    mut batch: Option<&mut Batch<'_>>,
    header: &mut msghdr,
    (flags, limit): (c_int, Option<Deadline>),
) -> io::Result<usize> {
    if flags & !(MSG_DONTWAIT | MSG_PEEK | MSG_TRUNC) != 0 {
        return bad(Errno::OPNOTSUPP);
    }
    // SAFETY: the caller's word.
    let buffers = unsafe { pieces(header) }?.iter().map(|p| unsafe { bytes_mut(p.iov_base, p.iov_len) });
    let mut buffers = buffers.map(|b| b.map(IoSliceMut::new)).collect::<io::Result<Vec<_>>>()?;
    let (peek, dont_wait) = (flags & MSG_PEEK != 0, flags & MSG_DONTWAIT != 0);
    let (session, slot) = (s.session(), s.slot());
    header.msg_flags = 0;
    header.msg_controllen = 0;
    if !session.is_datagram(slot) {
        header.msg_namelen = 0;
        return s.attempt_until(POLLIN, (dont_wait, limit), || match &mut batch {
            Some(batch) => or_flush(batch, |b| b.receive(slot, &mut buffers, peek)),
            None => session.receive(slot, &mut buffers, peek),
        });
    }
    let (n, about) = s.attempt_until(POLLIN, (dont_wait, limit), || match &mut batch {
        Some(batch) => or_flush(batch, |b| b.receive_datagram(slot, &mut buffers, peek)),
        None => session.receive_datagram(slot, &mut buffers, peek),
    })?;
    if about.len as usize > n {
        header.msg_flags |= MSG_TRUNC;
    }
    if !header.msg_name.is_null() {
        // SAFETY: the caller's word.
        unsafe { write_address(s.sender(&about), header.msg_name, &raw mut header.msg_namelen) }?;
    }
    Ok(if flags & MSG_TRUNC != 0 { about.len as usize } else { n })
}

/// sendmsg(2): the bytes sent.
///
/// # Safety
/// The header as for sendmsg(2).
pub(super) unsafe fn send_message(
    s: &Socket,
    mut batch: Option<&mut Batch<'_>>,
    header: &msghdr,
    flags: c_int,
) -> io::Result<usize> {
    if flags & !(MSG_DONTWAIT | MSG_NOSIGNAL | MSG_MORE) != 0 || header.msg_controllen != 0 {
        return bad(Errno::OPNOTSUPP);
    }
    // SAFETY: the caller's word.
    let buffers = unsafe { pieces(header) }?.iter().map(|p| unsafe { bytes(p.iov_base, p.iov_len) });
    let buffers = buffers.map(|b| b.map(IoSlice::new)).collect::<io::Result<Vec<_>>>()?;
    let (session, slot, how) = (s.session(), s.slot(), (flags & MSG_DONTWAIT != 0, None));
    if !session.is_datagram(slot) {
        let more = flags & MSG_MORE != 0;
        let sent = s.attempt_until(POLLOUT, how, || match &mut batch {
            Some(batch) => or_flush(batch, |b| b.send(slot, &buffers, more)),
            None => session.send(slot, &buffers, more),
        })?;
        if sent < buffers.iter().map(|b| b.len()).sum() {
            s.note_starved();
        }
        return Ok(sent);
    }
    let to = match header.msg_name.is_null() {
        true => None,
        // SAFETY: the caller's word.
        false => Some(unsafe { read_address(header.msg_name, header.msg_namelen) }?),
    };
    let extra = DatagramOptions::default();
    s.attempt_until(POLLOUT, how, || match &mut batch {
        Some(batch) => or_flush(batch, |b| b.send_datagram(slot, &buffers, to, &extra)),
        None => session.send_datagram(slot, &buffers, to, &extra),
    })
}

/// See `include/sidestep.h`.
///
/// # Safety
/// `sock` is null or open; `header` is null or as for recvmsg(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ss_recvmsg(sock: *mut ss_sock, header: *mut msghdr, flags: c_int) -> isize {
    guard(|| {
        // SAFETY: the caller's word.
        let (s, header) = unsafe { (socket(sock)?, header.as_mut()) };
        let Some(header) = header else { return bad(Errno::FAULT) };
        // SAFETY: the caller's word.
        unsafe { receive_message(s, None, header, (flags, None)) }.map(|n| n as isize)
    })
}

/// See `include/sidestep.h`.
///
/// # Safety
/// `sock` is null or open; `header` is null or as for sendmsg(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ss_sendmsg(sock: *mut ss_sock, header: *const msghdr, flags: c_int) -> isize {
    guard(|| {
        // SAFETY: the caller's word.
        let (s, header) = unsafe { (socket(sock)?, header.as_ref()) };
        let Some(header) = header else { return bad(Errno::FAULT) };
        // SAFETY: the caller's word.
        unsafe { send_message(s, None, header, flags) }.map(|n| n as isize)
    })
}
