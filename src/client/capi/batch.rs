//! Many messages of one socket, and many sockets, in one call.

use core::ffi::{c_int, c_uint, c_void};
use core::time::Duration;
use std::io::{IoSlice, IoSliceMut};

use rustix::io::Errno;

use super::border::{bad, bytes, bytes_mut, guard, socket};
use super::message::{receive_message, send_message};
use super::{MSG_DONTWAIT, MSG_MORE, MSG_NOSIGNAL, ss_sock};
use crate::datagram::DatagramOptions;
use crate::net::Socket;
use crate::sys::Deadline;

/// `struct ss_io`.
#[repr(C)]
pub struct ss_io {
    pub(super) sock: *mut ss_sock,
    pub(super) buf: *mut c_void,
    pub(super) len: usize,
    pub(super) result: isize,
}

/// Messages of one recvmmsg(2) or sendmmsg(2): UIO_MAXIOV.
const MOST_MESSAGES: usize = 1024;
const MSG_WAITFORONE: c_int = 0x1_0000;

/// Runs `one` on every entry, in batches of one session each, and returns how many went well.
///
/// # Safety
/// `entries` is null or points to `count` entries, whose sockets are null or open, and whose buffers are good.
unsafe fn each(
    entries: *mut ss_io,
    count: usize,
    one: impl Fn(&mut crate::batch::Batch<'_>, &Socket, &ss_io) -> std::io::Result<usize>,
) -> std::io::Result<isize> {
    if entries.is_null() && count > 0 {
        return bad(Errno::FAULT);
    }
    // SAFETY: the caller's word.
    let entries = if count == 0 { &mut [] } else { unsafe { core::slice::from_raw_parts_mut(entries, count) } };
    let mut good = 0;
    let mut left = entries.iter_mut().peekable();
    while let Some(entry) = left.next() {
        // SAFETY: the caller's word.
        let Ok(first) = (unsafe { socket(entry.sock) }) else {
            entry.result = -(Errno::BADF.raw_os_error() as isize);
            continue;
        };
        let session = first.session();
        let mut batch = session.batch();
        let mut run = |socket: &Socket, entry: &mut ss_io| {
            entry.result = match one(&mut batch, socket, entry) {
                Ok(n) => {
                    good += 1;
                    n as isize
                }
                Err(e) => -(e.raw_os_error().unwrap_or(libc::EIO) as isize),
            };
        };
        run(first, entry);
        // SAFETY: the caller's word.
        let same = |e: &&mut ss_io| unsafe { socket(e.sock) }.is_ok_and(|s| core::ptr::eq(s.session(), session));
        while let Some(entry) = left.next_if(same) {
            // SAFETY: the caller's word.
            if let Ok(socket) = unsafe { socket(entry.sock) } {
                run(socket, entry);
            }
        }
    }
    Ok(good)
}

/// See `include/sidestep.h`.
///
/// # Safety
/// `entries` is null or points to `count` entries, whose sockets are null or open, and whose buffers are good.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ss_recv_many(entries: *mut ss_io, count: usize) -> isize {
    guard(|| {
        let one = |batch: &mut crate::batch::Batch<'_>, s: &Socket, e: &ss_io| {
            // SAFETY: the caller's word.
            let into = &mut [IoSliceMut::new(unsafe { bytes_mut(e.buf, e.len) }?)];
            Ok(if s.session().is_datagram(s.slot()) {
                batch.receive_datagram(s.slot(), into, false)?.0
            } else {
                batch.receive(s.slot(), into, false)?
            })
        };
        // SAFETY: the caller's word.
        unsafe { each(entries, count, one) }
    })
}

/// See `include/sidestep.h`.
///
/// # Safety
/// As [`ss_recv_many`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ss_send_many(entries: *mut ss_io, count: usize) -> isize {
    guard(|| {
        let one = |batch: &mut crate::batch::Batch<'_>, s: &Socket, e: &ss_io| {
            // SAFETY: the caller's word.
            let from = &[IoSlice::new(unsafe { bytes(e.buf, e.len) }?)];
            let sent = if s.session().is_datagram(s.slot()) {
                batch.send_datagram(s.slot(), from, None, &DatagramOptions::default())
            } else {
                batch.send(s.slot(), from, false)
            };
            if !matches!(sent, Ok(n) if n == e.len) {
                s.note_starved();
            }
            Ok(sent?)
        };
        // SAFETY: the caller's word.
        unsafe { each(entries, count, one) }
    })
}

/// The messages of one call.
///
/// # Safety
/// `messages` is null or points to `count` of them.
unsafe fn all<'a>(messages: *mut libc::mmsghdr, count: c_uint) -> std::io::Result<&'a mut [libc::mmsghdr]> {
    let count = (count as usize).min(MOST_MESSAGES);
    match (messages.is_null(), count) {
        (_, 0) => Ok(&mut []),
        (true, _) => bad(Errno::FAULT),
        // SAFETY: the caller's word.
        _ => Ok(unsafe { core::slice::from_raw_parts_mut(messages, count) }),
    }
}

/// See `include/sidestep.h`.
///
/// # Safety
/// `sock` is null or open; `messages` as for recvmmsg(2); `timeout` is null or points to a time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ss_recvmmsg(
    sock: *mut ss_sock,
    messages: *mut libc::mmsghdr,
    count: c_uint,
    flags: c_int,
    timeout: *const libc::timespec,
) -> c_int {
    guard(|| {
        // SAFETY: the caller's word.
        let (s, messages) = unsafe { (socket(sock)?, all(messages, count)?) };
        // SAFETY: the caller's word.
        let limit = match unsafe { timeout.as_ref() } {
            None => None,
            Some(t) if t.tv_sec < 0 || !(0..1_000_000_000).contains(&t.tv_nsec) => return bad(Errno::INVAL),
            Some(t) => Some(Deadline::after(Duration::new(t.tv_sec as u64, t.tv_nsec as u32))),
        };
        let mut flags = flags;
        let for_one = flags & MSG_WAITFORONE != 0;
        flags &= !MSG_WAITFORONE;
        let mut batch = s.session().batch();
        for (done, message) in messages.iter_mut().enumerate() {
            // SAFETY: the caller's word.
            let outcome = unsafe { receive_message(s, Some(&mut batch), &mut message.msg_hdr, (flags, limit)) };
            match outcome {
                Ok(n) => message.msg_len = n as c_uint,
                Err(_) if done > 0 => return Ok(done as isize),
                Err(error) => return Err(error),
            }
            if for_one {
                flags |= MSG_DONTWAIT;
            }
        }
        Ok(messages.len() as isize)
    }) as c_int
}

/// See `include/sidestep.h`.
///
/// # Safety
/// `sock` is null or open; `messages` as for sendmmsg(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ss_sendmmsg(
    sock: *mut ss_sock,
    messages: *mut libc::mmsghdr,
    count: c_uint,
    flags: c_int,
) -> c_int {
    guard(|| {
        // SAFETY: the caller's word.
        let (s, messages) = unsafe { (socket(sock)?, all(messages, count)?) };
        if flags & !(MSG_DONTWAIT | MSG_NOSIGNAL | MSG_MORE) != 0 {
            return bad(Errno::OPNOTSUPP);
        }
        let mut batch = s.session().batch();
        for (done, message) in messages.iter_mut().enumerate() {
            // SAFETY: the caller's word.
            match unsafe { send_message(s, Some(&mut batch), &message.msg_hdr, flags) } {
                Ok(n) => message.msg_len = n as c_uint,
                Err(_) if done > 0 => return Ok(done as isize),
                Err(error) => return Err(error),
            }
        }
        Ok(messages.len() as isize)
    }) as c_int
}
