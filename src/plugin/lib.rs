//! `libsidestep_packetdrill.so`: packetdrill drives the Sidestep stack with it, in virtual time and without a device.
//!
//! `packetdrill --so_filename=libsidestep_packetdrill.so --so_flags=defaults SCRIPT.pkt` loads the library and calls
//! [`packetdrill_interface_init`], which fills a table of C functions. Enters: system calls of the script, bare IP
//! packets, questions for the time. Leaves: their results, bare IP packets with the time at which they left.
//!
//! [`engine`] has the clock and the calls that wait, [`sockets`] the calls themselves; this file is the border to C.

use std::ffi::{CStr, c_char, c_int, c_long, c_longlong, c_uint, c_ulong, c_void};
use std::io::{IoSlice, IoSliceMut};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use libc::{
    epoll_event, iovec, msghdr, pollfd, size_t, sockaddr, sockaddr_in, sockaddr_in6, socklen_t, ssize_t, timeval,
};

pub mod engine;
pub mod sockets;

use engine::{Outcome, Plugin};

type User = *mut c_void;

/// The table, member by member in packetdrill's order.
#[repr(C)]
pub struct PacketdrillInterface {
    pub userdata: User,
    pub free: unsafe extern "C" fn(User),
    pub socket: unsafe extern "C" fn(User, c_int, c_int, c_int) -> c_int,
    pub bind: unsafe extern "C" fn(User, c_int, *const sockaddr, socklen_t) -> c_int,
    pub listen: unsafe extern "C" fn(User, c_int, c_int) -> c_int,
    pub accept: unsafe extern "C" fn(User, c_int, *mut sockaddr, *mut socklen_t) -> c_int,
    pub connect: unsafe extern "C" fn(User, c_int, *const sockaddr, socklen_t) -> c_int,
    pub read: unsafe extern "C" fn(User, c_int, *mut c_void, size_t) -> ssize_t,
    pub readv: unsafe extern "C" fn(User, c_int, *const iovec, c_int) -> ssize_t,
    pub recv: unsafe extern "C" fn(User, c_int, *mut c_void, size_t, c_int) -> ssize_t,
    pub recvfrom:
        unsafe extern "C" fn(User, c_int, *mut c_void, size_t, c_int, *mut sockaddr, *mut socklen_t) -> ssize_t,
    pub recvmsg: unsafe extern "C" fn(User, c_int, *mut msghdr, c_int) -> ssize_t,
    pub write: unsafe extern "C" fn(User, c_int, *const c_void, size_t) -> ssize_t,
    pub writev: unsafe extern "C" fn(User, c_int, *const iovec, c_int) -> ssize_t,
    pub send: unsafe extern "C" fn(User, c_int, *const c_void, size_t, c_int) -> ssize_t,
    pub sendto: unsafe extern "C" fn(User, c_int, *const c_void, size_t, c_int, *const sockaddr, socklen_t) -> ssize_t,
    pub sendmsg: unsafe extern "C" fn(User, c_int, *const msghdr, c_int) -> ssize_t,
    /// Declared with `...` in C; the argument comes in the same register all the same on the ABIs of Linux.
    pub fcntl: unsafe extern "C" fn(User, c_int, c_int, c_long) -> c_int,
    pub ioctl: unsafe extern "C" fn(User, c_int, c_ulong, *mut c_void) -> c_int,
    pub close: unsafe extern "C" fn(User, c_int) -> c_int,
    pub shutdown: unsafe extern "C" fn(User, c_int, c_int) -> c_int,
    pub getsockopt: unsafe extern "C" fn(User, c_int, c_int, c_int, *mut c_void, *mut socklen_t) -> c_int,
    pub setsockopt: unsafe extern "C" fn(User, c_int, c_int, c_int, *const c_void, socklen_t) -> c_int,
    pub poll: unsafe extern "C" fn(User, *mut pollfd, libc::nfds_t, c_int) -> c_int,
    pub netdev_send: unsafe extern "C" fn(User, *const c_void, size_t) -> c_int,
    pub netdev_receive: unsafe extern "C" fn(User, *mut c_void, *mut size_t, *mut c_longlong) -> c_int,
    pub usleep: unsafe extern "C" fn(User, c_uint) -> c_int,
    pub gettimeofday: unsafe extern "C" fn(User, *mut timeval, *mut c_void) -> c_int,
    pub epoll_create: unsafe extern "C" fn(User, c_int) -> c_int,
    pub epoll_ctl: unsafe extern "C" fn(User, c_int, c_int, c_int, *mut epoll_event) -> c_int,
    pub epoll_wait: unsafe extern "C" fn(User, c_int, *mut epoll_event, c_int, c_int) -> c_int,
    pub pipe: unsafe extern "C" fn(User, *mut c_int) -> c_int,
    pub splice: unsafe extern "C" fn(User, c_int, *mut i64, c_int, *mut i64, size_t, c_uint) -> c_int,
}

const _: () = assert!(size_of::<PacketdrillInterface>() == 33 * size_of::<usize>());

/// Fills the table. The thread that calls this is the one that moves time. Flags that make no sense end the process, as
/// packetdrill does with what it can't run.
///
/// # Safety
/// `flags` is null or a C string, `out` points to room for the table.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn packetdrill_interface_init(flags: *const c_char, out: *mut PacketdrillInterface) {
    // SAFETY: the caller's word.
    let flags = if flags.is_null() { c"" } else { unsafe { CStr::from_ptr(flags) } };
    let plugin = Plugin::new(&flags.to_string_lossy()).unwrap_or_else(|what| {
        eprintln!("libsidestep_packetdrill: {what}");
        std::process::exit(1);
    });
    let table = PacketdrillInterface {
        userdata: Arc::into_raw(plugin).cast_mut().cast(),
        free,
        socket,
        bind,
        listen,
        accept,
        connect,
        read,
        readv,
        recv,
        recvfrom,
        recvmsg,
        write,
        writev,
        send,
        sendto,
        sendmsg,
        fcntl,
        ioctl,
        close,
        shutdown,
        getsockopt,
        setsockopt,
        poll,
        netdev_send,
        netdev_receive,
        usleep,
        gettimeofday,
        epoll_create,
        epoll_ctl,
        epoll_wait,
        pipe,
        splice,
    };
    // SAFETY: the caller's word.
    unsafe { out.write(table) };
}

/// The plug-in behind `user`.
///
/// # Safety
/// `user` is the table's, and [`free`] has not been called.
unsafe fn plugin<'a>(user: User) -> &'a Plugin {
    // SAFETY: made by Arc::into_raw above, and still held.
    unsafe { &*user.cast::<Plugin>() }
}

/// -1 and errno, or the value.
fn answer(outcome: Outcome) -> isize {
    outcome.unwrap_or_else(|errno| {
        // SAFETY: the place is this thread's own.
        unsafe { *libc::__errno_location() = errno };
        -1
    })
}

fn short(outcome: Outcome) -> c_int {
    answer(outcome) as c_int
}

/// Reads an address. Ok(None): AF_UNSPEC.
///
/// # Safety
/// `address` is null or points to `len` bytes.
unsafe fn address(address: *const sockaddr, len: socklen_t) -> Result<Option<SocketAddr>, i32> {
    if address.is_null() {
        return Err(libc::EFAULT);
    }
    // SAFETY: the caller's word; every sockaddr begins with its family. Alignment is not relied on.
    unsafe {
        match i32::from(address.cast::<libc::sa_family_t>().read_unaligned()) {
            libc::AF_UNSPEC => Ok(None),
            libc::AF_INET if len as usize >= size_of::<sockaddr_in>() => {
                let v4 = address.cast::<sockaddr_in>().read_unaligned();
                let ip = Ipv4Addr::from(u32::from_be(v4.sin_addr.s_addr));
                Ok(Some((ip, u16::from_be(v4.sin_port)).into()))
            }
            libc::AF_INET6 if len as usize >= size_of::<sockaddr_in6>() => {
                let v6 = address.cast::<sockaddr_in6>().read_unaligned();
                Ok(Some((Ipv6Addr::from(v6.sin6_addr.s6_addr), u16::from_be(v6.sin6_port)).into()))
            }
            _ => Err(libc::EINVAL),
        }
    }
}

/// Where a call writes an address: both pointers null, or both of the caller's.
#[derive(Clone, Copy)]
struct Told(*mut sockaddr, *mut socklen_t);

impl Told {
    /// Writes as much as fits, and how long it is.
    ///
    /// # Safety
    /// The pointers are null or good, as accept(2) wants them.
    unsafe fn tell(self, to: SocketAddr) {
        if self.0.is_null() || self.1.is_null() {
            return;
        }
        // SAFETY: the caller's word; plain integers, for which zero is a value.
        unsafe {
            let put = |from: *const u8, len: usize| {
                let room = self.1.read() as usize;
                core::ptr::copy_nonoverlapping(from, self.0.cast(), len.min(room));
                self.1.write(len as socklen_t);
            };
            match to {
                SocketAddr::V4(v4) => {
                    let mut out: sockaddr_in = core::mem::zeroed();
                    out.sin_family = libc::AF_INET as _;
                    out.sin_port = v4.port().to_be();
                    out.sin_addr.s_addr = u32::from(*v4.ip()).to_be();
                    put((&raw const out).cast(), size_of::<sockaddr_in>());
                }
                SocketAddr::V6(v6) => {
                    let mut out: sockaddr_in6 = core::mem::zeroed();
                    out.sin6_family = libc::AF_INET6 as _;
                    out.sin6_port = v6.port().to_be();
                    out.sin6_addr.s6_addr = v6.ip().octets();
                    put((&raw const out).cast(), size_of::<sockaddr_in6>());
                }
            }
        }
    }
}

/// Buffers to write into. They live for as long as the C call that handed them over, which waits for their user.
///
/// # Safety
/// As readv.
unsafe fn targets(pieces: *const iovec, count: usize) -> Result<Vec<IoSliceMut<'static>>, i32> {
    let mut out = Vec::new();
    for i in 0..count {
        // SAFETY: the caller's word.
        let piece = unsafe { pieces.add(i).read() };
        match (piece.iov_base.is_null(), piece.iov_len) {
            (_, 0) => {}
            (true, _) => return Err(libc::EFAULT),
            (false, len) => {
                // SAFETY: the caller's word.
                let bytes = unsafe { core::slice::from_raw_parts_mut(piece.iov_base.cast(), len) };
                out.push(IoSliceMut::new(bytes));
            }
        }
    }
    Ok(out)
}

/// Buffers to read from; see [`targets`].
///
/// # Safety
/// As writev.
unsafe fn sources(pieces: *const iovec, count: usize) -> Result<Vec<IoSlice<'static>>, i32> {
    let mut out = Vec::new();
    for i in 0..count {
        // SAFETY: the caller's word.
        let piece = unsafe { pieces.add(i).read() };
        match (piece.iov_base.is_null(), piece.iov_len) {
            (_, 0) => {}
            (true, _) => return Err(libc::EFAULT),
            (false, len) => {
                // SAFETY: the caller's word.
                let bytes = unsafe { core::slice::from_raw_parts(piece.iov_base.cast(), len) };
                out.push(IoSlice::new(bytes));
            }
        }
    }
    Ok(out)
}

fn one(base: *const c_void, len: size_t) -> iovec {
    iovec { iov_base: base.cast_mut(), iov_len: len }
}

unsafe extern "C" fn free(user: User) {
    // SAFETY: the table's own reference, given back once.
    drop(unsafe { Arc::from_raw(user.cast::<Plugin>()) });
}

unsafe extern "C" fn socket(user: User, domain: c_int, kind: c_int, protocol: c_int) -> c_int {
    // SAFETY: the table's userdata, as for all functions below.
    short(unsafe { plugin(user) }.socket(domain, kind, protocol))
}

unsafe extern "C" fn bind(user: User, fd: c_int, to: *const sockaddr, len: socklen_t) -> c_int {
    // SAFETY: userdata, and C's contract for the address.
    unsafe { short(address(to, len).and_then(|to| plugin(user).bind(fd, to.ok_or(libc::EAFNOSUPPORT)?))) }
}

unsafe extern "C" fn listen(user: User, fd: c_int, backlog: c_int) -> c_int {
    // SAFETY: userdata.
    short(unsafe { plugin(user) }.listen(fd, backlog))
}

unsafe extern "C" fn accept(user: User, fd: c_int, to: *mut sockaddr, len: *mut socklen_t) -> c_int {
    let told = Told(to, len);
    // SAFETY: userdata; C's contract for the pointers, which are good until this returns.
    short(unsafe { plugin(user) }.accept(fd, move |remote| unsafe { told.tell(remote) }))
}

unsafe extern "C" fn connect(user: User, fd: c_int, to: *const sockaddr, len: socklen_t) -> c_int {
    // SAFETY: userdata, and C's contract for the address.
    unsafe { short(address(to, len).and_then(|to| plugin(user).connect(fd, to))) }
}

unsafe extern "C" fn read(user: User, fd: c_int, to: *mut c_void, len: size_t) -> ssize_t {
    // SAFETY: C's contract for read.
    unsafe { recv(user, fd, to, len, 0) }
}

unsafe extern "C" fn readv(user: User, fd: c_int, pieces: *const iovec, count: c_int) -> ssize_t {
    let count = usize::try_from(count).map_err(|_| libc::EINVAL);
    // SAFETY: userdata, and C's contract for the pieces.
    unsafe { answer(count.and_then(|n| targets(pieces, n)).and_then(|to| plugin(user).receive(fd, to, 0, |_, _| ()))) }
}

unsafe extern "C" fn recv(user: User, fd: c_int, to: *mut c_void, len: size_t, flags: c_int) -> ssize_t {
    // SAFETY: C's contract for recv; no address is asked for.
    unsafe { recvfrom(user, fd, to, len, flags, core::ptr::null_mut(), core::ptr::null_mut()) }
}

unsafe extern "C" fn recvfrom(
    user: User,
    fd: c_int,
    to: *mut c_void,
    len: size_t,
    flags: c_int,
    from: *mut sockaddr,
    from_len: *mut socklen_t,
) -> ssize_t {
    let told = Told(from, from_len);
    // SAFETY: userdata; C's contract for the pointers, which are good until this returns.
    unsafe {
        let tell = move |sender: Option<SocketAddr>, _| sender.into_iter().for_each(|s| told.tell(s));
        answer(targets(&one(to, len), 1).and_then(|to| plugin(user).receive(fd, to, flags, tell)))
    }
}

unsafe extern "C" fn recvmsg(user: User, fd: c_int, message: *mut msghdr, flags: c_int) -> ssize_t {
    if message.is_null() {
        return answer(Err(libc::EFAULT));
    }
    // SAFETY: userdata; C's contract for the message and what it points to.
    unsafe {
        let (pieces, count) = ((*message).msg_iov, (*message).msg_iovlen);
        let tell = move |sender: Option<SocketAddr>, cut: bool| {
            let told = Told((*message).msg_name.cast(), &raw mut (*message).msg_namelen);
            sender.into_iter().for_each(|s| told.tell(s));
            if cut {
                (*message).msg_flags |= libc::MSG_TRUNC;
            }
        };
        (*message).msg_flags = 0;
        (*message).msg_controllen = 0;
        answer(targets(pieces, count).and_then(|to| plugin(user).receive(fd, to, flags, tell)))
    }
}

unsafe extern "C" fn write(user: User, fd: c_int, from: *const c_void, len: size_t) -> ssize_t {
    // SAFETY: C's contract for write.
    unsafe { send(user, fd, from, len, 0) }
}

unsafe extern "C" fn writev(user: User, fd: c_int, pieces: *const iovec, count: c_int) -> ssize_t {
    let count = usize::try_from(count).map_err(|_| libc::EINVAL);
    // SAFETY: userdata, and C's contract for the pieces.
    unsafe { answer(count.and_then(|n| sources(pieces, n)).and_then(|from| plugin(user).send(fd, from, 0, None))) }
}

unsafe extern "C" fn send(user: User, fd: c_int, from: *const c_void, len: size_t, flags: c_int) -> ssize_t {
    // SAFETY: userdata, and C's contract for the buffer.
    unsafe { answer(sources(&one(from, len), 1).and_then(|from| plugin(user).send(fd, from, flags, None))) }
}

unsafe extern "C" fn sendto(
    user: User,
    fd: c_int,
    from: *const c_void,
    len: size_t,
    flags: c_int,
    to: *const sockaddr,
    to_len: socklen_t,
) -> ssize_t {
    // SAFETY: userdata, and C's contract for buffer and address.
    unsafe {
        let to = if to.is_null() { Ok(None) } else { address(to, to_len) };
        answer(to.and_then(|to| sources(&one(from, len), 1).and_then(|from| plugin(user).send(fd, from, flags, to))))
    }
}

unsafe extern "C" fn sendmsg(user: User, fd: c_int, message: *const msghdr, flags: c_int) -> ssize_t {
    if message.is_null() {
        return answer(Err(libc::EFAULT));
    }
    // SAFETY: userdata; C's contract for the message and what it points to.
    unsafe {
        let message = &*message;
        let to = match message.msg_name.is_null() {
            true => Ok(None),
            false => address(message.msg_name.cast(), message.msg_namelen),
        };
        let from = sources(message.msg_iov, message.msg_iovlen);
        answer(to.and_then(|to| plugin(user).send(fd, from?, flags, to)))
    }
}

unsafe extern "C" fn fcntl(user: User, fd: c_int, command: c_int, argument: c_long) -> c_int {
    // SAFETY: userdata.
    short(unsafe { plugin(user) }.fcntl(fd, command, argument))
}

unsafe extern "C" fn ioctl(user: User, fd: c_int, request: c_ulong, to: *mut c_void) -> c_int {
    // SAFETY: userdata; the requests that are known write an int.
    unsafe {
        let outcome = plugin(user).ioctl(fd, request);
        if let (Ok(n), false) = (outcome, to.is_null()) {
            to.cast::<c_int>().write(n as c_int);
        }
        short(outcome.map(|_| 0))
    }
}

unsafe extern "C" fn close(user: User, fd: c_int) -> c_int {
    // SAFETY: userdata.
    short(unsafe { plugin(user) }.close(fd))
}

unsafe extern "C" fn shutdown(user: User, fd: c_int, how: c_int) -> c_int {
    // SAFETY: userdata.
    short(unsafe { plugin(user) }.shutdown(fd, how))
}

unsafe extern "C" fn getsockopt(
    user: User,
    fd: c_int,
    level: c_int,
    name: c_int,
    to: *mut c_void,
    len: *mut socklen_t,
) -> c_int {
    if to.is_null() || len.is_null() {
        return short(Err(libc::EFAULT));
    }
    // SAFETY: userdata; C's contract for the buffer and its length.
    unsafe {
        let out = core::slice::from_raw_parts_mut(to.cast::<u8>(), len.read() as usize);
        let outcome = plugin(user).getsockopt(fd, level, name, out);
        if let Ok(n) = outcome {
            len.write(n as socklen_t);
        }
        short(outcome.map(|_| 0))
    }
}

unsafe extern "C" fn setsockopt(
    user: User,
    fd: c_int,
    level: c_int,
    name: c_int,
    from: *const c_void,
    len: socklen_t,
) -> c_int {
    if from.is_null() {
        return short(Err(libc::EFAULT));
    }
    // SAFETY: userdata; C's contract for the buffer.
    unsafe {
        let value = core::slice::from_raw_parts(from.cast::<u8>(), len as usize);
        short(plugin(user).setsockopt(fd, level, name, value))
    }
}

unsafe extern "C" fn poll(user: User, entries: *mut pollfd, count: libc::nfds_t, timeout: c_int) -> c_int {
    let count = count as usize;
    // SAFETY: userdata; C's contract for the entries, which are good until this returns.
    unsafe {
        let all = (0..count).map(|i| &*entries.add(i)).map(|e| (e.fd, e.events)).collect();
        short(plugin(user).poll(all, timeout, move |i, revents| (*entries.add(i)).revents = revents))
    }
}

unsafe extern "C" fn netdev_send(user: User, packet: *const c_void, len: size_t) -> c_int {
    // SAFETY: userdata; packetdrill hands over a packet of `len` bytes.
    unsafe { plugin(user).inject(core::slice::from_raw_parts(packet.cast(), len)) };
    0
}

unsafe extern "C" fn netdev_receive(user: User, to: *mut c_void, len: *mut size_t, time: *mut c_longlong) -> c_int {
    // SAFETY: userdata; packetdrill hands over a buffer of `*len` bytes.
    unsafe {
        let Some((at, packet)) = plugin(user).next_packet() else { return -1 };
        let n = packet.len().min(len.read());
        core::ptr::copy_nonoverlapping(packet.as_ptr(), to.cast(), n);
        len.write(n);
        time.write(at as c_longlong);
    }
    0
}

unsafe extern "C" fn usleep(user: User, micros: c_uint) -> c_int {
    // SAFETY: userdata.
    unsafe { plugin(user) }.sleep(Duration::from_micros(micros.into()));
    0
}

unsafe extern "C" fn gettimeofday(user: User, to: *mut timeval, _zone: *mut c_void) -> c_int {
    // SAFETY: userdata; C's contract for the time.
    unsafe {
        let now = plugin(user).look_at_clock();
        to.write(timeval { tv_sec: (now / 1_000_000) as _, tv_usec: (now % 1_000_000) as _ });
    }
    0
}

unsafe extern "C" fn epoll_create(user: User, size: c_int) -> c_int {
    // SAFETY: userdata.
    short(unsafe { plugin(user) }.epoll_create(size))
}

unsafe extern "C" fn epoll_ctl(user: User, epfd: c_int, what: c_int, fd: c_int, event: *mut epoll_event) -> c_int {
    // SAFETY: userdata; C's contract for the event.
    unsafe {
        let event = (!event.is_null()).then(|| event.read_unaligned()).map(|e| (e.events, e.u64));
        short(plugin(user).epoll_ctl(epfd, what, fd, event))
    }
}

unsafe extern "C" fn epoll_wait(user: User, epfd: c_int, to: *mut epoll_event, most: c_int, timeout: c_int) -> c_int {
    // SAFETY: userdata; C's contract for the events, which are good until this returns.
    unsafe { short(plugin(user).epoll_wait(epfd, most, timeout, move |i, event| to.add(i).write_unaligned(event))) }
}

unsafe extern "C" fn pipe(user: User, to: *mut c_int) -> c_int {
    // SAFETY: userdata; C's contract: room for two.
    unsafe {
        let ends = plugin(user).pipe();
        to.write(ends[0]);
        to.add(1).write(ends[1]);
    }
    0
}

unsafe extern "C" fn splice(
    user: User,
    from: c_int,
    _from_at: *mut i64,
    to: c_int,
    _to_at: *mut i64,
    len: size_t,
    _flags: c_uint,
) -> c_int {
    // SAFETY: userdata.
    short(unsafe { plugin(user) }.splice(from, to, len))
}
