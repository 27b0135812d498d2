//! setsockopt(2), getsockopt(2), and the one thing that fcntl(2) does on sockets.

use core::ffi::{c_int, c_void};
use core::time::Duration;

use rustix::io::Errno;

use super::border::{bad, bytes, bytes_mut, guard, socket};
use super::ss_sock;

/// A `struct timeval`, as SO_RCVTIMEO has it.
fn timeval(value: &[u8]) -> Result<Option<Duration>, Errno> {
    let (Some(seconds), Some(micros)) = (value.first_chunk(), value.get(8..).and_then(<[u8]>::first_chunk)) else {
        return Err(Errno::INVAL);
    };
    let (seconds, micros) = (i64::from_ne_bytes(*seconds), i64::from_ne_bytes(*micros));
    match (u64::try_from(seconds), u32::try_from(micros)) {
        (Ok(0), Ok(0)) => Ok(None),
        (Ok(s), Ok(us)) if us < 1_000_000 => Ok(Some(Duration::new(s, us * 1000))),
        // Linux: a time before now is no time at all.
        (Err(_), Ok(us)) if us < 1_000_000 => Ok(Some(Duration::from_nanos(1))),
        _ => Err(Errno::DOM),
    }
}

/// See `include/sidestep.h`.
///
/// # Safety
/// `sock` is null or open; `value` points to `len` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ss_setsockopt(
    sock: *mut ss_sock,
    level: c_int,
    name: c_int,
    value: *const c_void,
    len: u32,
) -> c_int {
    guard(|| {
        // SAFETY: the caller's word.
        let (s, value) = unsafe { (socket(sock)?, bytes(value, len as usize)?) };
        match (level, name) {
            (libc::SOL_SOCKET, libc::SO_RCVTIMEO) => s.set_read_timeout(timeval(value)?),
            (libc::SOL_SOCKET, libc::SO_SNDTIMEO) => s.set_write_timeout(timeval(value)?),
            _ => s.session().setsockopt(s.slot(), level, name, value)?,
        }
        Ok(0)
    }) as c_int
}

/// See `include/sidestep.h`.
///
/// # Safety
/// `sock` is null or open; `len` is null or points to a length, `value` to that many writable bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ss_getsockopt(
    sock: *mut ss_sock,
    level: c_int,
    name: c_int,
    value: *mut c_void,
    len: *mut u32,
) -> c_int {
    guard(|| {
        // SAFETY: the caller's word.
        let (s, len) = unsafe { (socket(sock)?, len.as_mut()) };
        let Some(len) = len else { return bad(Errno::FAULT) };
        // SAFETY: the caller's word.
        let out = unsafe { bytes_mut(value, *len as usize) }?;
        let (session, slot) = (s.session(), s.slot());
        let number = |n: c_int, out: &mut [u8]| {
            let n = n.to_ne_bytes();
            let most = out.len().min(n.len());
            out[..most].copy_from_slice(&n[..most]);
            most
        };
        let datagram = session.is_datagram(slot);
        let written = match (level, name) {
            (libc::SOL_SOCKET, libc::SO_TYPE) => {
                number(if datagram { libc::SOCK_DGRAM } else { libc::SOCK_STREAM }, out)
            }
            (libc::SOL_SOCKET, libc::SO_PROTOCOL) => {
                number(if datagram { libc::IPPROTO_UDP } else { libc::IPPROTO_TCP }, out)
            }
            (libc::SOL_SOCKET, libc::SO_DOMAIN) => number(s.domain(), out),
            (libc::SOL_SOCKET, libc::SO_RCVTIMEO | libc::SO_SNDTIMEO) => {
                let timeout = if name == libc::SO_RCVTIMEO { s.read_timeout() } else { s.write_timeout() };
                let timeout = timeout.unwrap_or_default();
                let mut value = [0; 16];
                value[..8].copy_from_slice(&timeout.as_secs().to_ne_bytes());
                value[8..].copy_from_slice(&u64::from(timeout.subsec_micros()).to_ne_bytes());
                let most = out.len().min(value.len());
                out[..most].copy_from_slice(&value[..most]);
                most
            }
            _ => session.getsockopt(slot, level, name, out)?,
        };
        *len = written as u32;
        Ok(0)
    }) as c_int
}

/// See `include/sidestep.h`.
///
/// # Safety
/// `sock` is null or open.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ss_fcntl(sock: *mut ss_sock, command: c_int, argument: c_int) -> c_int {
    guard(|| {
        // SAFETY: the caller's word.
        let s = unsafe { socket(sock) }?;
        match command {
            libc::F_GETFL => Ok((libc::O_RDWR | if s.is_nonblocking() { libc::O_NONBLOCK } else { 0 }) as isize),
            libc::F_SETFL => {
                s.set_nonblocking(argument & libc::O_NONBLOCK != 0);
                Ok(0)
            }
            _ => bad(Errno::INVAL),
        }
    }) as c_int
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_linuxs() {
        let value = |s: i64, us: i64| [s.to_ne_bytes(), us.to_ne_bytes()].concat();
        assert_eq!(timeval(&value(0, 0)), Ok(None));
        assert_eq!(timeval(&value(2, 500_000)), Ok(Some(Duration::from_millis(2500))));
        assert_eq!(timeval(&value(-1, 0)), Ok(Some(Duration::from_nanos(1))));
        assert_eq!((timeval(&value(0, 1_000_000)), timeval(&value(0, -1))), (Err(Errno::DOM), Err(Errno::DOM)));
        assert_eq!(timeval(&[0; 12]), Err(Errno::INVAL));
    }
}
