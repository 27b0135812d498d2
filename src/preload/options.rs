//! setsockopt and getsockopt: the kernel's socket underneath validates and keeps every option; those that matter to the
//! stack are repeated on the slot, and what only the stack knows is answered from there.

use core::ffi::{c_int, c_void};
use core::sync::atomic::Ordering;

use libc::socklen_t;
use sidestep_client::shm::slot::option;
use sidestep_client::{Number, Session};

use crate::errno::{self, Errno};
use crate::real;
use crate::socket::Socket;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Meaning {
    Bit(u32),
    Number(Number),
    /// The slot's number, 0 standing for the kernel's default of -1.
    Linger,
}

use Meaning::{Bit, Linger};

/// Level, name, what it is on the slot, whether a listener's connections inherit it. The position is the bit in
/// `Socket::touched`.
const FORWARDED: [(c_int, c_int, Meaning, bool); 19] = [
    (libc::IPPROTO_TCP, libc::TCP_NODELAY, Bit(option::NO_DELAY), true),
    (libc::IPPROTO_TCP, libc::TCP_CORK, Bit(option::CORK), true),
    (libc::IPPROTO_TCP, libc::TCP_QUICKACK, Bit(option::QUICK_ACK), true),
    (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, Meaning::Number(Number::KeepIdle), true),
    (libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, Meaning::Number(Number::KeepInterval), true),
    (libc::IPPROTO_TCP, libc::TCP_KEEPCNT, Meaning::Number(Number::KeepCount), true),
    (libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, Meaning::Number(Number::UserTimeout), true),
    (libc::IPPROTO_TCP, libc::TCP_MAXSEG, Meaning::Number(Number::MaxSegment), true),
    (libc::SOL_SOCKET, libc::SO_KEEPALIVE, Bit(option::KEEP_ALIVE), true),
    (libc::SOL_SOCKET, libc::SO_REUSEADDR, Bit(option::REUSE_ADDRESS), false),
    (libc::SOL_SOCKET, libc::SO_REUSEPORT, Bit(option::REUSE_PORT), false),
    (libc::SOL_SOCKET, libc::SO_BROADCAST, Bit(option::BROADCAST), false),
    (libc::SOL_SOCKET, libc::SO_LINGER, Linger, true),
    (libc::IPPROTO_IP, libc::IP_TOS, Meaning::Number(Number::Tos), true),
    (libc::IPPROTO_IP, libc::IP_TTL, Meaning::Number(Number::Ttl), true),
    (libc::IPPROTO_IPV6, libc::IPV6_TCLASS, Meaning::Number(Number::Tos), true),
    (libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS, Meaning::Number(Number::Ttl), true),
    (libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, Bit(option::V6_ONLY), false),
    (libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_HOPS, Meaning::Number(Number::Ttl), false),
];

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

fn position(level: c_int, name: c_int) -> Option<usize> {
    FORWARDED.iter().position(|f| (f.0, f.1) == (level, name))
}

/// Reads an option that the placeholder holds.
fn held<T>(fd: c_int, level: c_int, name: c_int) -> Option<T> {
    let mut value = core::mem::MaybeUninit::<T>::zeroed();
    let mut len = size_of::<T>() as socklen_t;
    // SAFETY: room for a T, and its length; the types used here are plain integers, for which any bytes will do.
    unsafe {
        (real::getsockopt(fd, level, name, value.as_mut_ptr().cast(), &raw mut len) == 0).then(|| value.assume_init())
    }
}

/// setsockopt(2), after the placeholder took the option.
pub fn was_set(session: Option<&Session>, socket: &Socket, fd: c_int, level: c_int, name: c_int) {
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
    } else if let Some(position) = position(level, name) {
        socket.touched.fetch_or(1 << position, Ordering::Relaxed);
        if let (Some(session), Some(slot)) = (session, socket.claimed()) {
            forward(session, fd, slot, position);
        }
    }
}

/// Repeats what was set on the placeholder on a slot that was just claimed.
pub fn repeat(session: &Session, socket: &Socket, fd: c_int, slot: u32) {
    let touched = socket.touched.load(Ordering::Relaxed);
    (0..FORWARDED.len()).filter(|p| touched & 1 << p != 0).for_each(|p| forward(session, fd, slot, p));
}

/// Brings one option from the placeholder to the slot. The kernel has checked the value.
fn forward(session: &Session, fd: c_int, slot: u32, position: usize) {
    let (level, name, meaning, _) = FORWARDED[position];
    // A slot that can't be is noticed by the call that comes next.
    let _ = match meaning {
        Bit(bit) => held::<c_int>(fd, level, name).map(|v| session.set_option(slot, bit, v != 0)),
        Meaning::Number(which) => {
            // -1 gives the default back; MAXSEG can't be read back on an unconnected socket: the kernel answers with
            // the value that was set.
            held::<c_int>(fd, level, name).map(|v| session.set_number(slot, which, u32::try_from(v).unwrap_or(0)))
        }
        Linger => held::<libc::linger>(fd, level, name).map(|l| {
            let value = if l.l_onoff == 0 { 0 } else { u32::try_from(l.l_linger).unwrap_or(0).saturating_add(1) };
            session.set_number(slot, Number::Linger, value)
        }),
    };
}

/// Gives a new connection the options of its listener, as Linux does.
pub fn inherit(session: &Session, listener: &Socket, from: u32, to: u32) {
    let touched = listener.touched.load(Ordering::Relaxed);
    let inherited = FORWARDED.iter().enumerate().filter(|&(p, f)| touched & 1 << p != 0 && f.3);
    for (_, &(.., meaning, _)) in inherited {
        let _ = match meaning {
            Bit(bit) => session.set_option(to, bit, session.option(from, bit)),
            Meaning::Number(which) => session.set_number(to, which, session.number(from, which)),
            Linger => session.set_number(to, Number::Linger, session.number(from, Number::Linger)),
        };
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
    let number = |n: c_int| {
        // SAFETY: the caller's word.
        unsafe { give(&n, value, len) }.map(Some)
    };
    match (level, name) {
        (libc::SOL_SOCKET, libc::SO_ERROR) => {
            let error = session.take_error(slot) as c_int;
            if error != 0 {
                socket.connecting.store(false, Ordering::Relaxed);
            }
            number(error)
        }
        (libc::SOL_SOCKET, libc::SO_ACCEPTCONN) => number(c_int::from(session.is_listening(slot))),
        (libc::IPPROTO_TCP, libc::TCP_INFO) if !socket.is_datagram() => {
            // SAFETY: the caller's word.
            unsafe { give(&session.tcp_info(slot)?, value, len) }.map(Some)
        }
        (libc::IPPROTO_TCP, libc::TCP_MAXSEG) if !socket.is_datagram() => {
            match session.region().slot(slot).map_or(0, |s| s.send_mss.load(Ordering::Relaxed)) {
                0 => Ok(None),
                mss => number(mss as c_int),
            }
        }
        _ => {
            let Some(position) = position(level, name) else { return Ok(None) };
            match FORWARDED[position].2 {
                Bit(option::QUICK_ACK) => Ok(None),
                Bit(bit) => number(c_int::from(session.option(slot, bit))),
                // A default stands on the placeholder.
                Meaning::Number(which) => match session.number(slot, which) {
                    0 => Ok(None),
                    n => number(n as c_int),
                },
                Linger => match session.number(slot, Number::Linger) {
                    0 => Ok(None),
                    n => {
                        let linger = libc::linger { l_onoff: 1, l_linger: n as c_int - 1 };
                        // SAFETY: the caller's word.
                        unsafe { give(&linger, value, len) }.map(Some)
                    }
                },
            }
        }
    }
}

/// Writes an answer as getsockopt does: as much as fits, and how much that was.
///
/// # Safety
/// As getsockopt.
unsafe fn give<T>(answer: &T, value: *mut c_void, len: *mut socklen_t) -> Result<(), Errno> {
    if value.is_null() || len.is_null() {
        return Err(Errno(libc::EFAULT));
    }
    // SAFETY: not null, and the caller's word.
    unsafe {
        let room = len.read_unaligned();
        if room > i32::MAX as socklen_t {
            return Err(Errno(libc::EINVAL));
        }
        let n = room.min(size_of::<T>() as socklen_t);
        core::ptr::copy_nonoverlapping(core::ptr::from_ref(answer).cast::<u8>(), value.cast(), n as usize);
        len.write_unaligned(n);
    }
    Ok(())
}

/// SO_ZEROCOPY promises notifications that the stack doesn't send.
///
/// # Errors
/// EOPNOTSUPP.
pub fn refuse(socket: &Socket, level: c_int, name: c_int) -> Result<(), Errno> {
    let refused = socket.claimed().is_some() && (level, name) == (libc::SOL_SOCKET, libc::SO_ZEROCOPY);
    if refused { Err(Errno(libc::EOPNOTSUPP)) } else { Ok(()) }
}

/// The C call's answer for a call that went to the placeholder.
pub fn kernel(outcome: c_int) -> Result<c_int, Errno> {
    if outcome < 0 { Err(Errno(errno::get())) } else { Ok(outcome) }
}
