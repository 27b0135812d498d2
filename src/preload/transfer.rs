//! Bytes and datagrams between the program's buffers and a slot: blocking, flags, signals.

use core::ffi::{c_int, c_void};
use core::net::{IpAddr, SocketAddr};
use core::sync::atomic::Ordering;
use std::io::{IoSlice, IoSliceMut};

use libc::iovec;
use sidestep_client::shm::datagram::Header;
use sidestep_client::{DatagramOptions, POLLERR, POLLHUP, POLLIN, POLLOUT, POLLRDHUP, Session, now_ns};

use crate::errno::{self, Errno};
use crate::socket::Socket;
use crate::table::lock;
use crate::{engine, memory, real};

/// Most pieces of one call: UIO_MAXIOV.
pub const MOST_PIECES: usize = 1024;
/// Pieces that a call handles without allocating.
const FEW_PIECES: usize = 16;
/// Most bytes of one call: MAX_RW_COUNT.
pub const MOST_BYTES: usize = 0x7fff_f000;
/// Payload of the longest datagram over either family.
const MOST_DATAGRAM: usize = 65_527;
/// Bytes that a copying call (sendfile, splice) moves at a time.
const COPY_BYTES: usize = 64 * 1024;

/// Calls `with` with the buffers of `pieces` as slices to read from.
///
/// # Errors
/// EINVAL: too many. EFAULT: a pointer that is none.
///
/// # Safety
/// As writev.
pub unsafe fn sources<R>(
    pieces: *const iovec,
    count: usize,
    with: impl FnOnce(&mut [IoSlice<'_>]) -> Result<R, Errno>,
) -> Result<R, Errno> {
    // SAFETY: the caller's word.
    let pieces = unsafe { checked(pieces, count, false)? };
    // SAFETY: readable, by the caller's word; not null, by `checked`.
    let slice = |p: &iovec| IoSlice::new(unsafe { core::slice::from_raw_parts(p.iov_base.cast(), p.iov_len) });
    let filled = || pieces.iter().filter(|p| p.iov_len > 0).map(slice);
    if count <= FEW_PIECES {
        let mut few = [IoSlice::new(&[]); FEW_PIECES];
        let n = few.iter_mut().zip(filled()).map(|(to, from)| *to = from).count();
        with(&mut few[..n])
    } else {
        with(&mut filled().collect::<Vec<_>>())
    }
}

/// The same for buffers to write into.
///
/// # Errors
/// As [`sources`].
///
/// # Safety
/// As readv.
pub unsafe fn targets<R>(
    pieces: *const iovec,
    count: usize,
    with: impl FnOnce(&mut [IoSliceMut<'_>]) -> Result<R, Errno>,
) -> Result<R, Errno> {
    // SAFETY: the caller's word.
    let pieces = unsafe { checked(pieces, count, true)? };
    // SAFETY: writable, by the caller's word; not null, by `checked`. Programs may hand over memory that was never
    // written; it is only written to here.
    let slice = |p: &iovec| IoSliceMut::new(unsafe { core::slice::from_raw_parts_mut(p.iov_base.cast(), p.iov_len) });
    let filled = pieces.iter().filter(|p| p.iov_len > 0).map(slice);
    if count <= FEW_PIECES {
        let mut few = [const { None }; FEW_PIECES];
        let n = few.iter_mut().zip(filled).map(|(to, from)| *to = Some(from)).count();
        let mut few = few.map(|piece: Option<IoSliceMut<'_>>| piece.unwrap_or(IoSliceMut::new(&mut [])));
        with(&mut few[..n])
    } else {
        with(&mut filled.collect::<Vec<_>>())
    }
}

/// The pieces, and what they point to, looked at: to be read from, or (`write`) written to.
///
/// # Safety
/// Nobody changes them meanwhile.
unsafe fn checked<'a>(pieces: *const iovec, count: usize, write: bool) -> Result<&'a [iovec], Errno> {
    if count == 0 {
        return Ok(&[]);
    }
    if count > MOST_PIECES {
        return Err(Errno(libc::EINVAL));
    }
    memory::readable(pieces.cast(), count * size_of::<iovec>())?;
    // SAFETY: looked at.
    let pieces = unsafe { core::slice::from_raw_parts(pieces, count) };
    if pieces.iter().any(|p| p.iov_len > isize::MAX as usize) {
        return Err(Errno(libc::EINVAL));
    }
    for piece in pieces {
        if write {
            memory::writable(piece.iov_base.cast(), piece.iov_len)?;
        } else {
            memory::readable(piece.iov_base.cast(), piece.iov_len)?;
        }
    }
    Ok(pieces)
}

fn may_wait(socket: &Socket, flags: c_int) -> bool {
    flags & libc::MSG_DONTWAIT == 0 && !socket.is_nonblocking()
}

/// Runs `attempt` until it does something else than EAGAIN, sleeping in between if the call may.
fn blocking<T>(
    session: &Session,
    socket: &Socket,
    (interest, may_wait): (u32, bool),
    mut attempt: impl FnMut() -> Result<T, sidestep_client::Errno>,
) -> Result<T, Errno> {
    let timeout = if interest == POLLIN { &socket.receive_timeout } else { &socket.send_timeout };
    loop {
        match attempt() {
            Err(sidestep_client::Errno::AGAIN) if may_wait => {
                if !engine::wait(session, socket, interest, timeout.load(Ordering::Relaxed))? {
                    return Err(errno::AGAIN);
                }
            }
            other => return other.map_err(Errno::from),
        }
    }
}

// ---- streams ------------------------------------------------------------------------------------------------------

/// recv(2) and its kin on TCP.
///
/// # Errors
/// Linux's.
pub fn receive(
    session: &Session,
    socket: &Socket,
    slot: u32,
    mut bufs: &mut [IoSliceMut<'_>],
    flags: c_int,
) -> Result<usize, Errno> {
    if flags & libc::MSG_OOB != 0 {
        return Err(Errno(libc::EINVAL));
    }
    if flags & libc::MSG_ERRQUEUE != 0 {
        return Err(errno::AGAIN);
    }
    let total: usize = bufs.iter().map(|b| b.len()).sum();
    let peek = flags & libc::MSG_PEEK != 0;
    let how = (POLLIN, may_wait(socket, flags));
    if peek && flags & libc::MSG_WAITALL != 0 && how.1 {
        wait_for_all(session, socket, slot, total)?;
    }
    let mut done = 0;
    loop {
        let one = blocking(session, socket, how, || {
            if flags & libc::MSG_TRUNC != 0 && !peek {
                session.discard(slot, total - done)
            } else {
                session.receive(slot, bufs, peek)
            }
        });
        match one {
            Ok(n) => {
                done += n;
                let all = flags & libc::MSG_WAITALL != 0 && !peek && how.1;
                if n == 0 || done >= total || !all {
                    return Ok(done);
                }
                if flags & libc::MSG_TRUNC == 0 {
                    IoSliceMut::advance_slices(&mut bufs, n);
                }
            }
            Err(_) if done > 0 => return Ok(done),
            Err(error) => return Err(error),
        }
    }
}

/// recv(2) with MSG_TRUNC on TCP: bytes are thrown away, and the buffer is not looked at.
///
/// # Errors
/// Linux's.
pub fn throw_away(session: &Session, socket: &Socket, slot: u32, len: usize, flags: c_int) -> Result<usize, Errno> {
    blocking(session, socket, (POLLIN, may_wait(socket, flags)), || session.discard(slot, len))
}

/// Waits until `total` bytes can be looked at, no more can come, or the ring is as full as it gets.
fn wait_for_all(session: &Session, socket: &Socket, slot: u32, total: usize) -> Result<(), Errno> {
    let timeout = socket.receive_timeout.load(Ordering::Relaxed);
    let start = now_ns();
    loop {
        let over = session.readiness(slot) & (POLLRDHUP | POLLERR | POLLHUP) != 0;
        let queued = session.queued_in(slot);
        if over || queued >= total.min(session.region().geometry().rx_bytes as usize / 2) {
            return Ok(());
        }
        if timeout > 0 && now_ns() - start >= timeout {
            return Ok(());
        }
        // Nothing wakes for "more": looked at now and then. Programs hardly ever ask for this.
        if queued > 0 {
            rustix::event::poll(&mut [], Some(&rustix::event::Timespec { tv_sec: 0, tv_nsec: engine::NAP_NS as _ }))
                .map_err(Errno::from)?;
        } else if !engine::wait(session, socket, POLLIN, timeout)? {
            return Ok(());
        }
    }
}

/// send(2) and its kin on TCP. A blocking socket takes everything.
///
/// # Errors
/// Linux's. EPIPE comes with SIGPIPE unless the flags say MSG_NOSIGNAL.
pub fn send(
    session: &Session,
    socket: &Socket,
    slot: u32,
    mut bufs: &mut [IoSlice<'_>],
    flags: c_int,
) -> Result<usize, Errno> {
    // MSG_OOB is sent along with the rest, without a mark: RFC 6093 5 asks for new programs not to use it, and the few
    // old ones (ftp's ABOR) read it in line anyway.
    if flags & libc::MSG_FASTOPEN != 0 {
        return Err(Errno(libc::EOPNOTSUPP));
    }
    let total: usize = bufs.iter().map(|b| b.len()).sum();
    let (more, record) = (flags & libc::MSG_MORE != 0, flags & libc::MSG_EOR != 0);
    let how = (POLLOUT, may_wait(socket, flags));
    let zero_copy = flags & libc::MSG_ZEROCOPY != 0;
    let mut done = 0;
    loop {
        let send = || if record { session.send_record(slot, bufs) } else { session.send(slot, bufs, more) };
        match blocking(session, socket, how, send) {
            Ok(n) => {
                done += n;
                if done >= total {
                    if zero_copy {
                        session.note_copied(slot);
                    }
                    return Ok(done);
                }
                if !how.1 {
                    socket.starved.fetch_add(1, Ordering::Relaxed);
                    if zero_copy {
                        session.note_copied(slot);
                    }
                    return Ok(done);
                }
                IoSlice::advance_slices(&mut bufs, n);
            }
            Err(_) if done > 0 => return Ok(done),
            Err(error) => {
                if error == errno::AGAIN {
                    socket.starved.fetch_add(1, Ordering::Relaxed);
                } else if error.0 == libc::EPIPE && flags & libc::MSG_NOSIGNAL == 0 {
                    // SAFETY: no pointers. To this thread, as Linux does.
                    unsafe { libc::raise(libc::SIGPIPE) };
                }
                return Err(error);
            }
        }
    }
}

// ---- datagrams ----------------------------------------------------------------------------------------------------

/// recv(2) and its kin on UDP: bytes in `bufs`, and the header.
///
/// # Errors
/// Linux's.
pub fn receive_datagram(
    session: &Session,
    socket: &Socket,
    slot: u32,
    bufs: &mut [IoSliceMut<'_>],
    flags: c_int,
) -> Result<(usize, Header), Errno> {
    if flags & libc::MSG_ERRQUEUE != 0 {
        return Err(errno::AGAIN);
    }
    let peek = flags & libc::MSG_PEEK != 0;
    blocking(session, socket, (POLLIN, may_wait(socket, flags)), || session.receive_datagram(slot, bufs, peek))
}

/// What the call returns for a datagram: MSG_TRUNC asks for its real length.
#[must_use]
pub fn datagram_len(got: usize, header: &Header, flags: c_int) -> usize {
    if flags & libc::MSG_TRUNC != 0 { header.len as usize } else { got }
}

/// send(2) and its kin on UDP.
///
/// # Errors
/// Linux's.
pub fn send_datagram(
    session: &Session,
    socket: &Socket,
    slot: u32,
    bufs: &[IoSlice<'_>],
    flags: c_int,
    (to, extra): (Option<SocketAddr>, &DatagramOptions),
) -> Result<usize, Errno> {
    if flags & libc::MSG_OOB != 0 {
        return Err(Errno(libc::EOPNOTSUPP));
    }
    if to.is_some_and(|to| session.kernel_serves(to.ip().to_canonical())) {
        // The socket lives in the stack, which has no way there.
        return Err(Errno(libc::ENETUNREACH));
    }
    let how = (POLLOUT, may_wait(socket, flags));
    let mut corked = lock(&socket.corked);
    if flags & libc::MSG_MORE != 0 || corked.is_some() {
        // The first piece says where the whole goes.
        let (to, bytes) = corked.get_or_insert_with(|| (to, Vec::new()));
        bufs.iter().for_each(|piece| bytes.extend_from_slice(piece));
        let len = bufs.iter().map(|b| b.len()).sum();
        if bytes.len() > MOST_DATAGRAM {
            *corked = None;
            return Err(Errno(libc::EMSGSIZE));
        }
        if flags & libc::MSG_MORE != 0 {
            return Ok(len);
        }
        let (to, bytes) = (*to, core::mem::take(bytes));
        *corked = None;
        drop(corked);
        return blocking(session, socket, how, || session.send_datagram(slot, &[IoSlice::new(&bytes)], to, extra))
            .map(|_| len);
    }
    drop(corked);
    let outcome = blocking(session, socket, how, || session.send_datagram(slot, bufs, to, extra));
    if outcome == Err(errno::AGAIN) {
        socket.starved.fetch_add(1, Ordering::Relaxed);
    }
    outcome
}

/// The sender of a datagram.
#[must_use]
pub fn sender(socket: &Socket, header: &Header) -> SocketAddr {
    let ip = std::net::Ipv6Addr::from(header.remote);
    let ip = if socket.domain() == libc::AF_INET { IpAddr::V6(ip).to_canonical() } else { IpAddr::V6(ip) };
    SocketAddr::new(ip, header.remote_port)
}

// ---- copying calls ------------------------------------------------------------------------------------------------

/// sendfile(2) into a slot: from `offset`, or from the file's own position when that is null.
///
/// # Errors
/// Linux's. Sources without positions give EINVAL.
///
/// # Safety
/// `offset` is null or points to an offset.
pub unsafe fn send_file(
    session: &Session,
    socket: &Socket,
    slot: u32,
    from: c_int,
    offset: *mut i64,
    len: usize,
) -> Result<usize, Errno> {
    // SAFETY: the caller's word; lseek has no pointers.
    let start =
        unsafe { if offset.is_null() { libc::lseek(from, 0, libc::SEEK_CUR) } else { offset.read_unaligned() } };
    if start < 0 {
        // A pipe or a socket can't be a source; a bad descriptor is one.
        let bad = offset.is_null() && errno::get() == libc::EBADF;
        return Err(Errno(if bad { libc::EBADF } else { libc::EINVAL }));
    }
    let len = len.min(MOST_BYTES);
    let piece = if socket.is_datagram() { COPY_BYTES / 2 } else { COPY_BYTES };
    let mut buffer: Vec<u8> = Vec::with_capacity(piece.min(len));
    let mut done = 0;
    let mut outcome = Ok(());
    while done < len {
        // Read no more than there is room for, or on a blocking socket at least something.
        let room = session.send_room(slot);
        if room == 0 && !may_wait(socket, 0) {
            outcome = Err(no_room(session, socket, slot));
            break;
        }
        let want = (len - done).min(buffer.capacity()).min(if room == 0 { COPY_BYTES } else { room });
        // SAFETY: `want` bytes of capacity.
        let got = unsafe { real::pread(from, buffer.as_mut_ptr().cast(), want, start + done as i64) };
        if got <= 0 {
            outcome = if got < 0 { Err(Errno(errno::get())) } else { Ok(()) };
            // The file ended early: nothing follows what was announced as more.
            let _ = session.set_option(slot, sidestep_client::shm::slot::option::MORE, false);
            break;
        }
        // SAFETY: just written by pread.
        unsafe { buffer.set_len(got as usize) };
        // More follows unless this is the end of what was asked for, as the kernel's sendfile tells TCP.
        let more = if done + (got as usize) < len { libc::MSG_MORE } else { 0 };
        // What is read at a time makes a datagram.
        let sent = if socket.is_datagram() {
            send_datagram(session, socket, slot, &[IoSlice::new(&buffer)], 0, (None, &DatagramOptions::default()))
        } else {
            send(session, socket, slot, &mut [IoSlice::new(&buffer)], more)
        };
        match sent {
            Ok(sent) => {
                done += sent;
                if sent < got as usize {
                    break;
                }
            }
            Err(error) => {
                outcome = Err(error);
                break;
            }
        }
    }
    let end = start + done as i64;
    // SAFETY: as above.
    unsafe {
        if offset.is_null() {
            libc::lseek(from, end, libc::SEEK_SET);
        } else {
            offset.write_unaligned(end);
        }
    }
    if done > 0 { Ok(done) } else { outcome.map(|()| 0) }
}

/// Why a copying call that may not wait ends: the connection is over, or its buffer is full.
fn no_room(session: &Session, socket: &Socket, slot: u32) -> Errno {
    // Nothing is sent; what send() would say first is asked.
    if let Err(error) = send(session, socket, slot, &mut [], 0) {
        return error;
    }
    socket.starved.fetch_add(1, Ordering::Relaxed);
    errno::AGAIN
}

/// splice(2) from a slot into the pipe `to`.
///
/// # Errors
/// Linux's.
pub fn splice_in(
    session: &Session,
    socket: &Socket,
    slot: u32,
    to: c_int,
    len: usize,
    flags: u32,
) -> Result<usize, Errno> {
    if len == 0 {
        return Ok(0);
    }
    if flags & libc::SPLICE_F_NONBLOCK != 0 && !is_ready(to, libc::POLLOUT) {
        return Err(errno::AGAIN);
    }
    let mut buffer = vec![0; COPY_BYTES.min(len)];
    // SPLICE_F_NONBLOCK is the pipe's: a socket waits or not as its own flag says. Looked at first and taken after the pipe took it, so that a full pipe loses nothing.
    let got = receive(session, socket, slot, &mut [IoSliceMut::new(&mut buffer)], libc::MSG_PEEK)?;
    // SAFETY: `got` bytes of the buffer.
    let put = unsafe { real::write(to, buffer.as_ptr().cast::<c_void>(), got) };
    if put < 0 {
        return Err(Errno(errno::get()));
    }
    Ok(session.discard(slot, put as usize)?)
}

/// Whether a pipe is ready now, or never will be.
fn is_ready(pipe: c_int, events: i16) -> bool {
    let mut one = libc::pollfd { fd: pipe, events, revents: 0 };
    // SAFETY: one member.
    unsafe { real::poll(&raw mut one, 1, 0) != 0 }
}

/// splice(2) from the pipe `from` into a slot.
///
/// # Errors
/// Linux's.
pub fn splice_out(
    session: &Session,
    socket: &Socket,
    slot: u32,
    from: c_int,
    len: usize,
    flags: u32,
) -> Result<usize, Errno> {
    if len == 0 {
        return Ok(0);
    }
    let wait = may_wait(socket, 0);
    while session.send_room(slot) == 0 {
        let why = no_room(session, socket, slot);
        let timeout = socket.send_timeout.load(Ordering::Relaxed);
        if why != errno::AGAIN || !wait || !engine::wait(session, socket, POLLOUT, timeout)? {
            return Err(why);
        }
    }
    if flags & libc::SPLICE_F_NONBLOCK != 0 && !is_ready(from, libc::POLLIN) {
        return Err(errno::AGAIN);
    }
    let mut buffer = vec![0; COPY_BYTES.min(len).min(session.send_room(slot))];
    // SAFETY: the buffer's own length.
    let got = unsafe { real::read(from, buffer.as_mut_ptr().cast(), buffer.len()) };
    if got < 0 {
        return Err(Errno(errno::get()));
    }
    // What was taken from the pipe has to go: there was room for it, and only another writer could have filled it.
    let more = if flags & libc::SPLICE_F_MORE != 0 { libc::MSG_MORE } else { 0 };
    let mut left: &[u8] = &buffer[..got as usize];
    while !left.is_empty() {
        match send(session, socket, slot, &mut [IoSlice::new(left)], more) {
            Ok(n) => left = &left[n..],
            Err(error) if error == errno::AGAIN => {
                engine::wait(session, socket, POLLOUT, engine::NAP_NS)?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(got as usize)
}
