//! setsockopt and getsockopt. What the stack knows is checked and answered by the client library; as long as a socket is
//! nobody's yet it is kept here, to be repeated on its slot. The kernel's socket underneath hears of it too, in case
//! that it becomes the socket. What the stack doesn't know is refused, but for a list of what can do no harm.

use core::ffi::{c_int, c_void};
use core::sync::atomic::Ordering;

use libc::socklen_t;
use sidestep_client::shm::wire::INFO_BYTES;
use sidestep_client::{Number, Session, Setting};

use crate::errno::{self, Errno};
use crate::socket::Socket;
use crate::{memory, real};

/// A bit in [`Socket::touched`] for each.
const _: () = assert!(Setting::COUNT <= u64::BITS as usize);

/// Bits of `Socket::wants`: control messages for recvmsg().
pub mod wants {
    /// IP_PKTINFO.
    pub const PKTINFO4: u32 = 1;
    /// IPV6_RECVPKTINFO.
    pub const PKTINFO6: u32 = 2;
    /// IP_RECVTOS.
    pub const TOS4: u32 = 4;
    /// IPV6_RECVTCLASS.
    pub const TOS6: u32 = 8;
    /// IP_RECVTTL.
    pub const TTL4: u32 = 16;
    /// IPV6_RECVHOPLIMIT.
    pub const TTL6: u32 = 32;
}

const WANTED: [(c_int, c_int, u32); 6] = [
    (libc::IPPROTO_IP, libc::IP_PKTINFO, wants::PKTINFO4),
    (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, wants::PKTINFO6),
    (libc::IPPROTO_IP, libc::IP_RECVTOS, wants::TOS4),
    (libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS, wants::TOS6),
    (libc::IPPROTO_IP, libc::IP_RECVTTL, wants::TTL4),
    (libc::IPPROTO_IPV6, libc::IPV6_RECVHOPLIMIT, wants::TTL6),
];

/// Reads an option that the placeholder holds.
fn held<T>(fd: c_int, level: c_int, name: c_int) -> Option<T> {
    let mut value = core::mem::MaybeUninit::<T>::zeroed();
    let mut len = size_of::<T>() as socklen_t;
    // SAFETY: room for a T, and its length; the types used here are plain integers, for which any bytes will do.
    unsafe {
        (real::getsockopt(fd, level, name, value.as_mut_ptr().cast(), &raw mut len) == 0).then(|| value.assume_init())
    }
}

/// Options that the kernel may take for us although the stack does nothing about them: docs/POSIX.md says why. All
/// others that the stack doesn't know are refused.
const WITHOUT_EFFECT: [(c_int, &[c_int]); 4] = [
    (
        libc::SOL_SOCKET,
        &[
            libc::SO_RCVTIMEO,
            libc::SO_SNDTIMEO,
            libc::SO_PRIORITY,
            libc::SO_MARK,
            libc::SO_BUSY_POLL,
            SO_PREFER_BUSY_POLL,
            SO_BUSY_POLL_BUDGET,
            libc::SO_DONTROUTE,
            libc::SO_OOBINLINE,
            libc::SO_DEBUG,
            libc::SO_INCOMING_CPU,
            libc::SO_SELECT_ERR_QUEUE,
        ],
    ),
    (
        libc::IPPROTO_IP,
        &[
            libc::IP_RECVERR,
            libc::IP_FREEBIND,
            libc::IP_BIND_ADDRESS_NO_PORT,
            libc::IP_MULTICAST_TTL,
            libc::IP_MULTICAST_LOOP,
            libc::IP_MULTICAST_IF,
            IP_MULTICAST_ALL,
        ],
    ),
    (
        libc::IPPROTO_IPV6,
        &[
            libc::IPV6_RECVERR,
            libc::IPV6_MULTICAST_IF,
            libc::IPV6_MULTICAST_LOOP,
            IPV6_MULTICAST_ALL,
            libc::IPV6_MTU,
            IPV6_USE_MIN_MTU,
            libc::IPV6_DONTFRAG,
            IPV6_AUTOFLOWLABEL,
            IPV6_ADDR_PREFERENCES,
            libc::IPV6_FREEBIND,
        ],
    ),
    (libc::IPPROTO_TCP, &[libc::TCP_THIN_LINEAR_TIMEOUTS, libc::TCP_THIN_DUPACK]),
];
/// Of linux/socket.h, linux/in.h and linux/in6.h, where the libc crate lacks them.
const SO_PREFER_BUSY_POLL: c_int = 69;
const SO_BUSY_POLL_BUDGET: c_int = 70;
const IP_MULTICAST_ALL: c_int = 49;
const IPV6_MULTICAST_ALL: c_int = 29;
const IPV6_USE_MIN_MTU: c_int = 63;
const IPV6_AUTOFLOWLABEL: c_int = 70;
const IPV6_ADDR_PREFERENCES: c_int = 72;

/// Longest value of an option of the stack's: a name.
const LONGEST_VALUE: usize = 64;

/// setsockopt(2) on a socket that is the stack's or may become so.
///
/// # Errors
/// As [`Setting::parse`]; ENOPROTOOPT for what the stack doesn't know; EFAULT; what the kernel says of the rest.
///
/// # Safety
/// As setsockopt.
pub unsafe fn set(
    session: &Session,
    socket: &Socket,
    fd: c_int,
    (level, name): (c_int, c_int),
    value: *const c_void,
    len: socklen_t,
) -> Result<c_int, Errno> {
    // SAFETY: the caller's word.
    let keep = || unsafe { real::setsockopt(fd, level, name, value, len) };
    if (level, name) == (libc::SOL_SOCKET, libc::SO_ZEROCOPY) && socket.is_datagram() {
        return Err(Errno(libc::EOPNOTSUPP));
    }
    let of_other_family = level == libc::IPPROTO_IPV6 && socket.domain() == libc::AF_INET;
    if of_other_family || level == libc::IPPROTO_TCP && socket.is_datagram() {
        return Err(Errno(libc::ENOPROTOOPT));
    }
    if len > i32::MAX as socklen_t {
        return Err(Errno(libc::EINVAL));
    }
    let length = (len as usize).min(LONGEST_VALUE);
    let bytes = if length == 0 {
        &[][..]
    } else {
        memory::readable(value.cast(), length)?;
        // SAFETY: looked at.
        unsafe { core::slice::from_raw_parts(value.cast::<u8>(), length) }
    };
    if let Some(setting) = Setting::parse(level, name, bytes)? {
        if let Some(slot) = socket.claimed() {
            session.setsockopt(slot, level, name, bytes)?;
        }
        socket.settings[setting.index()].store(setting.value(), Ordering::Relaxed);
        socket.touched.fetch_or(1 << setting.index(), Ordering::Relaxed);
        // In case that the socket becomes the kernel's. Its limits and its opinion are not ours.
        let before = errno::get();
        keep();
        errno::set(before);
        return Ok(0);
    }
    let wanted = WANTED.iter().any(|w| (w.0, w.1) == (level, name));
    if !wanted && !WITHOUT_EFFECT.iter().any(|(l, names)| *l == level && names.contains(&name)) {
        return Err(Errno(libc::ENOPROTOOPT));
    }
    let outcome = kernel(keep())?;
    was_set(socket, fd, level, name);
    Ok(outcome)
}

/// After the placeholder took an option that this library acts upon: timeouts, control messages.
pub fn was_set(socket: &Socket, fd: c_int, level: c_int, name: c_int) {
    if level == libc::SOL_SOCKET && (name == libc::SO_RCVTIMEO || name == libc::SO_SNDTIMEO) {
        let place = if name == libc::SO_RCVTIMEO { &socket.receive_timeout } else { &socket.send_timeout };
        if let Some(time) = held::<libc::timeval>(fd, level, name) {
            let ns = (time.tv_sec as u64).saturating_mul(1_000_000_000) + time.tv_usec as u64 * 1000;
            place.store(ns, Ordering::Relaxed);
        }
    } else if let Some(&(.., bit)) = WANTED.iter().find(|w| (w.0, w.1) == (level, name)) {
        if held::<c_int>(fd, level, name).is_some_and(|v| v != 0) {
            socket.wants.fetch_or(bit, Ordering::Relaxed);
        } else {
            socket.wants.fetch_and(!bit, Ordering::Relaxed);
        }
    }
}

/// Repeats what was set before on a slot that was just claimed.
pub fn repeat(session: &Session, socket: &Socket, slot: u32) {
    let touched = socket.touched.load(Ordering::Relaxed);
    for index in (0..Setting::COUNT).filter(|i| touched & 1 << i != 0) {
        if let Some(setting) = Setting::restore(index, socket.settings[index].load(Ordering::Relaxed)) {
            // A slot that can't be is noticed by the call that comes next.
            let _ = session.set(slot, setting);
        }
    }
}

/// What a new connection has of its listener beside what the engine copies from slot to slot.
pub fn inherit(listener: &Socket, to: &Socket, fd: c_int) {
    let timeouts = [
        (libc::SO_RCVTIMEO, &listener.receive_timeout, &to.receive_timeout),
        (libc::SO_SNDTIMEO, &listener.send_timeout, &to.send_timeout),
    ];
    for (name, from, to) in timeouts {
        let ns = from.load(Ordering::Relaxed);
        if ns == 0 {
            continue;
        }
        to.store(ns, Ordering::Relaxed);
        // The placeholder answers when the program asks.
        let time = libc::timeval { tv_sec: (ns / 1_000_000_000) as _, tv_usec: (ns % 1_000_000_000 / 1000) as _ };
        let len = size_of::<libc::timeval>() as socklen_t;
        // SAFETY: a whole structure.
        unsafe { real::setsockopt(fd, libc::SOL_SOCKET, name, (&raw const time).cast(), len) };
    }
}

/// getsockopt(2) for a socket with a slot. None: the placeholder has the answer.
///
/// # Errors
/// EFAULT, EINVAL.
///
/// # Safety
/// As getsockopt.
pub unsafe fn get(
    session: &Session,
    socket: &Socket,
    slot: u32,
    (level, name): (c_int, c_int),
    value: *mut c_void,
    len: *mut socklen_t,
) -> Result<Option<()>, Errno> {
    let mut answer = [0; INFO_BYTES];
    // Some answers depend on how much is asked for.
    memory::writable(len.cast(), size_of::<socklen_t>())?;
    // SAFETY: looked at.
    let asked = unsafe { len.read_unaligned() as usize };
    let room = asked.min(answer.len());
    match session.getsockopt(slot, level, name, &mut answer[..room.max(4)]) {
        Ok(n) => {
            if (level, name) == (libc::SOL_SOCKET, libc::SO_ERROR) && answer[..4] != [0; 4] {
                socket.connecting.store(false, Ordering::Relaxed);
            }
            // Options of IP that fit a byte are given as one to who has no room for an int.
            let n = if level == libc::IPPROTO_IP && (1..4).contains(&asked) && answer[1..4] == [0; 3] { 1 } else { n };
            // SAFETY: the caller's word.
            unsafe { give_bytes(&answer[..n], value, len) }.map(Some)
        }
        Err(sidestep_client::Errno::NOPROTOOPT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The same for a socket that is nobody's yet, as far as the kernel would answer with its own limits. None: the
/// placeholder has the answer.
///
/// # Errors
/// EFAULT, EINVAL.
///
/// # Safety
/// As getsockopt.
pub unsafe fn get_undecided(
    socket: &Socket,
    (level, name): (c_int, c_int),
    value: *mut c_void,
    len: *mut socklen_t,
) -> Result<Option<()>, Errno> {
    let which = match (level, name) {
        (libc::SOL_SOCKET, libc::SO_RCVBUF) => Number::ReceiveBuffer,
        (libc::SOL_SOCKET, libc::SO_SNDBUF) => Number::SendBuffer,
        _ => return Ok(None),
    };
    let index = Setting::Number(which, 0).index();
    if socket.touched.load(Ordering::Relaxed) & 1 << index == 0 {
        return Ok(None);
    }
    let doubled = socket.settings[index].load(Ordering::Relaxed).saturating_mul(2);
    // SAFETY: the caller's word.
    unsafe { give_bytes(&doubled.to_ne_bytes(), value, len) }.map(Some)
}

/// Writes an answer as getsockopt does: as much as fits, and how much that was.
///
/// # Safety
/// As getsockopt.
unsafe fn give_bytes(answer: &[u8], value: *mut c_void, len: *mut socklen_t) -> Result<(), Errno> {
    memory::writable(len.cast(), size_of::<socklen_t>())?;
    // SAFETY: looked at.
    unsafe {
        let room = len.read_unaligned();
        if room > i32::MAX as socklen_t {
            return Err(Errno(libc::EINVAL));
        }
        let n = room.min(answer.len() as socklen_t);
        memory::writable(value.cast(), n as usize)?;
        core::ptr::copy_nonoverlapping(answer.as_ptr(), value.cast(), n as usize);
        len.write_unaligned(n);
    }
    Ok(())
}

/// The C call's answer for a call that went to the placeholder.
pub fn kernel(outcome: c_int) -> Result<c_int, Errno> {
    if outcome < 0 { Err(Errno(errno::get())) } else { Ok(outcome) }
}
