//! read, write, send, recv, sendfile, splice and their kin; messages are next door.

use core::ffi::{c_int, c_void};
use std::io::{IoSlice, IoSliceMut};

use libc::{iovec, off_t, size_t, sockaddr, socklen_t, ssize_t};
use sidestep_client::{DatagramOptions, Session};

use super::{candidate, export, guard, ours};
use crate::address;
use crate::errno::Errno;
use crate::socket::{self, Done, Socket};
use crate::{memory, real, table, transfer};

/// Bytes into `bufs`, whatever kind of socket.
fn receive_any(
    session: &Session,
    socket: &Socket,
    slot: u32,
    bufs: &mut [IoSliceMut<'_>],
    flags: c_int,
) -> Result<ssize_t, Errno> {
    if socket.is_datagram() {
        let (got, header) = transfer::receive_datagram(session, socket, slot, bufs, flags)?;
        return Ok(transfer::datagram_len(got, &header, flags) as ssize_t);
    }
    transfer::receive(session, socket, slot, bufs, flags).map(|n| n as ssize_t)
}

/// Bytes out of `bufs` to the connected peer.
fn send_any(
    session: &Session,
    socket: &Socket,
    slot: u32,
    bufs: &mut [IoSlice<'_>],
    flags: c_int,
) -> Result<ssize_t, Errno> {
    let sent = if socket.is_datagram() {
        transfer::send_datagram(session, socket, slot, bufs, flags, (None, &DatagramOptions::default()))
    } else {
        transfer::send(session, socket, slot, bufs, flags)
    };
    sent.map(|n| n as ssize_t)
}

/// A program's buffer to write into.
///
/// # Safety
/// `buffer` is null or points to `len` writable bytes.
unsafe fn target<'a>(buffer: *mut c_void, len: usize) -> Result<&'a mut [u8], Errno> {
    if len == 0 {
        return Ok(&mut []);
    }
    let len = len.min(transfer::MOST_BYTES);
    memory::writable(buffer.cast(), len)?;
    // SAFETY: looked at. The memory may never have been written; it is only written to here.
    Ok(unsafe { core::slice::from_raw_parts_mut(buffer.cast(), len) })
}

/// A program's buffer to read from.
///
/// # Safety
/// `buffer` is null or points to `len` readable bytes.
unsafe fn source<'a>(buffer: *const c_void, len: usize) -> Result<&'a [u8], Errno> {
    if len == 0 {
        return Ok(&[]);
    }
    let len = len.min(transfer::MOST_BYTES);
    memory::readable(buffer.cast(), len)?;
    // SAFETY: looked at.
    Ok(unsafe { core::slice::from_raw_parts(buffer.cast(), len) })
}

/// Where a datagram goes, if the call says so.
///
/// # Safety
/// `to` is null or points to `len` bytes.
pub(super) unsafe fn destination(
    socket: &Socket,
    to: *const sockaddr,
    len: socklen_t,
) -> Result<Option<std::net::SocketAddr>, Errno> {
    if to.is_null() || len == 0 {
        return Ok(None);
    }
    // SAFETY: asks nothing of the pointer.
    unsafe { address::read_destination(socket.domain(), to, len) }
}

/// The slot of a UDP socket that is about to send to `to`, claimed now if it was undecided. None: the kernel's.
pub(super) fn slot_to_send(
    session: &'static Session,
    socket: &'static Socket,
    fd: c_int,
    to: Option<std::net::SocketAddr>,
) -> Result<Option<u32>, Errno> {
    match (socket.claimed(), to) {
        (Some(slot), _) => Ok(Some(slot)),
        (None, Some(to)) if socket.is_datagram() => match socket::sending(session, socket, fd, to)? {
            Done::Here => Ok(socket.claimed()),
            Done::Kernel => Ok(None),
        },
        (None, _) => Ok(None),
    }
}

/// What no C call returns: the call is the kernel's.
pub(super) const KERNEL: ssize_t = ssize_t::MIN;

export! {
    /// read(2).
    fn read(fd: c_int, buffer: *mut c_void, len: size_t) -> ssize_t {
        let Some((session, socket, slot)) = ours(fd) else { return real::read(fd, buffer, len) };
        if len == 0 {
            return 0;
        }
        guard(|| receive_any(session, socket, slot, &mut [IoSliceMut::new(target(buffer, len)?)], 0))
    }

    /// write(2).
    fn write(fd: c_int, buffer: *const c_void, len: size_t) -> ssize_t {
        let Some((session, socket, slot)) = ours(fd) else { return real::write(fd, buffer, len) };
        guard(|| send_any(session, socket, slot, &mut [IoSlice::new(source(buffer, len)?)], 0))
    }

    /// readv(2).
    fn readv(fd: c_int, pieces: *const iovec, count: c_int) -> ssize_t {
        let Some((session, socket, slot)) = ours(fd) else { return real::readv(fd, pieces, count) };
        guard(|| {
            let count = usize::try_from(count).map_err(|_| Errno(libc::EINVAL))?;
            transfer::targets(pieces, count, |bufs| match bufs.is_empty() {
                // No pieces, or empty ones.
                true => Ok(0),
                false => receive_any(session, socket, slot, bufs, 0),
            })
        })
    }

    /// writev(2).
    fn writev(fd: c_int, pieces: *const iovec, count: c_int) -> ssize_t {
        let Some((session, socket, slot)) = ours(fd) else { return real::writev(fd, pieces, count) };
        guard(|| {
            let count = usize::try_from(count).map_err(|_| Errno(libc::EINVAL))?;
            transfer::sources(pieces, count, |bufs| send_any(session, socket, slot, bufs, 0))
        })
    }

    /// recv(2).
    fn recv(fd: c_int, buffer: *mut c_void, len: size_t, flags: c_int) -> ssize_t {
        let Some((session, socket, slot)) = ours(fd) else { return real::recv(fd, buffer, len, flags) };
        if flags & (libc::MSG_TRUNC | libc::MSG_PEEK) == libc::MSG_TRUNC && !socket.is_datagram() {
            return guard(|| transfer::throw_away(session, socket, slot, len, flags).map(|n| n as ssize_t));
        }
        guard(|| receive_any(session, socket, slot, &mut [IoSliceMut::new(target(buffer, len)?)], flags))
    }

    /// send(2).
    fn send(fd: c_int, buffer: *const c_void, len: size_t, flags: c_int) -> ssize_t {
        let Some((session, socket, slot)) = ours(fd) else { return real::send(fd, buffer, len, flags) };
        guard(|| send_any(session, socket, slot, &mut [IoSlice::new(source(buffer, len)?)], flags))
    }

    /// recvfrom(2).
    fn recvfrom(
        fd: c_int,
        buffer: *mut c_void,
        len: size_t,
        flags: c_int,
        from: *mut sockaddr,
        from_len: *mut socklen_t,
    ) -> ssize_t {
        let Some((session, socket, slot)) = ours(fd) else {
            return real::recvfrom(fd, buffer, len, flags, from, from_len);
        };
        guard(|| {
            let mut bufs = [IoSliceMut::new(target(buffer, len)?)];
            if !socket.is_datagram() {
                let got = receive_any(session, socket, slot, &mut bufs, flags)?;
                if !from.is_null() {
                    // TCP gives no address.
                    memory::writable(from_len.cast(), size_of::<socklen_t>())?;
                    from_len.write_unaligned(0);
                }
                return Ok(got);
            }
            let (got, header) = transfer::receive_datagram(session, socket, slot, &mut bufs, flags)?;
            address::write(socket.domain(), &transfer::sender(socket, &header), from, from_len)?;
            Ok(transfer::datagram_len(got, &header, flags) as ssize_t)
        })
    }

    /// sendto(2).
    fn sendto(
        fd: c_int,
        buffer: *const c_void,
        len: size_t,
        flags: c_int,
        to: *const sockaddr,
        to_len: socklen_t,
    ) -> ssize_t {
        let Some((session, socket)) = candidate(fd) else {
            return real::sendto(fd, buffer, len, flags, to, to_len);
        };
        let outcome = guard(|| {
            // TCP ignores a destination.
            let to = if socket.is_datagram() { destination(socket, to, to_len)? } else { None };
            let Some(slot) = slot_to_send(session, socket, fd, to)? else { return Ok(KERNEL) };
            let mut bufs = [IoSlice::new(source(buffer, len)?)];
            if !socket.is_datagram() {
                return send_any(session, socket, slot, &mut bufs, flags);
            }
            let extra = DatagramOptions::default();
            transfer::send_datagram(session, socket, slot, &bufs, flags, (to, &extra)).map(|n| n as ssize_t)
        });
        if outcome == KERNEL { real::sendto(fd, buffer, len, flags, to, to_len) } else { outcome }
    }

    /// sendfile(2).
    fn sendfile(to: c_int, from: c_int, offset: *mut off_t, len: size_t) -> ssize_t {
        if table::socket(from).is_some_and(|s| s.claimed().is_some()) {
            crate::errno::set(libc::EINVAL);
            return -1;
        }
        let Some((session, socket, slot)) = ours(to) else { return real::sendfile(to, from, offset, len) };
        guard(|| {
            transfer::send_file(session, socket, slot, from, offset, len).map(|n| n as ssize_t)
        })
    }

    /// sendfile(2) with 64-bit offsets: the same on 64-bit machines.
    fn sendfile64(to: c_int, from: c_int, offset: *mut off_t, len: size_t) -> ssize_t {
        sendfile(to, from, offset, len)
    }

    /// splice(2).
    fn splice(from: c_int, from_at: *mut i64, to: c_int, to_at: *mut i64, len: size_t, flags: u32) -> ssize_t {
        match (ours(from), ours(to)) {
            (None, None) => real::splice(from, from_at, to, to_at, len, flags),
            (Some((session, socket, slot)), None) if !socket.is_datagram() => guard(|| {
                splice_offsets(from_at, to_at)?;
                transfer::splice_in(session, socket, slot, to, len, flags).map(|n| n as ssize_t)
            }),
            (None, Some((session, socket, slot))) if !socket.is_datagram() => guard(|| {
                splice_offsets(to_at, from_at)?;
                transfer::splice_out(session, socket, slot, from, len, flags).map(|n| n as ssize_t)
            }),
            _ => {
                crate::errno::set(libc::EINVAL);
                -1
            }
        }
    }

    /// read(2) of programs built with _FORTIFY_SOURCE.
    fn __read_chk(fd: c_int, buffer: *mut c_void, len: size_t, room: size_t) -> ssize_t {
        check(len, room);
        read(fd, buffer, len)
    }

    /// recv(2) of the same.
    fn __recv_chk(fd: c_int, buffer: *mut c_void, len: size_t, room: size_t, flags: c_int) -> ssize_t {
        check(len, room);
        recv(fd, buffer, len, flags)
    }

    /// recvfrom(2) of the same.
    fn __recvfrom_chk(
        fd: c_int,
        buffer: *mut c_void,
        len: size_t,
        room: size_t,
        flags: c_int,
        from: *mut sockaddr,
        from_len: *mut socklen_t,
    ) -> ssize_t {
        check(len, room);
        recvfrom(fd, buffer, len, flags, from, from_len)
    }

    /// Alias of read in the C library.
    fn __read(fd: c_int, buffer: *mut c_void, len: size_t) -> ssize_t {
        read(fd, buffer, len)
    }

    /// Alias of write in the C library.
    fn __write(fd: c_int, buffer: *const c_void, len: size_t) -> ssize_t {
        write(fd, buffer, len)
    }

    /// Alias of send in the C library.
    fn __send(fd: c_int, buffer: *const c_void, len: size_t, flags: c_int) -> ssize_t {
        send(fd, buffer, len, flags)
    }
}

/// splice(2): neither a pipe nor a socket has positions, and Linux has an error for each.
fn splice_offsets(of_socket: *mut i64, of_pipe: *mut i64) -> Result<(), Errno> {
    match (of_socket.is_null(), of_pipe.is_null()) {
        (_, false) => Err(Errno(libc::ESPIPE)),
        (false, true) => Err(Errno(libc::EINVAL)),
        (true, true) => Ok(()),
    }
}

/// As the C library does when a program would write beyond its buffer.
fn check(len: usize, room: usize) {
    if len > room {
        crate::engine::say("*** buffer overflow detected ***: terminated\n");
        std::process::abort();
    }
}
