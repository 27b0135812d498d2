//! The border to C: pointers in, addresses in and out, errors out, and no panic across.

use core::cell::{Cell, RefCell};
use core::ffi::{c_int, c_void};
use core::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::ffi::CString;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

use rustix::io::Errno;

use super::ss_sock;
use crate::net::Socket;

const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;

thread_local! {
    pub(super) static LAST: Cell<c_int> = const { Cell::new(0) };
    pub(super) static TEXT: RefCell<CString> = RefCell::new(CString::default());
}

/// Notes an error for `ss_errno` and `ss_strerror`.
pub(super) fn note(errno: c_int, text: String) {
    LAST.with(|l| l.set(errno));
    TEXT.with(|t| *t.borrow_mut() = CString::new(text).unwrap_or_default());
}

/// Runs `f`; an error or a panic is noted and becomes -1.
pub(super) fn guard(f: impl FnOnce() -> io::Result<isize>) -> isize {
    match catch_unwind(AssertUnwindSafe(f)) {
        Ok(Ok(n)) => n,
        Ok(Err(e)) => {
            note(e.raw_os_error().unwrap_or(Errno::IO.raw_os_error()), e.to_string());
            -1
        }
        Err(_) => {
            note(Errno::IO.raw_os_error(), "a bug in Sidestep: please report it".to_owned());
            -1
        }
    }
}

pub(super) fn bad<T>(errno: Errno) -> io::Result<T> {
    Err(errno.into())
}

/// # Safety
/// `sock` is null or a socket that was not closed.
pub(super) unsafe fn socket<'a>(sock: *mut ss_sock) -> io::Result<&'a Socket> {
    // SAFETY: the caller's word.
    unsafe { sock.as_ref() }.map_or_else(|| bad(Errno::BADF), |s| Ok(&s.socket))
}

/// # Safety
/// `buf` is null or points to `len` readable bytes.
pub(super) unsafe fn bytes<'a>(buf: *const c_void, len: usize) -> io::Result<&'a [u8]> {
    match (buf.is_null(), len) {
        (_, 0) => Ok(&[]),
        (true, _) => bad(Errno::FAULT),
        // SAFETY: the caller's word; longer than isize::MAX can't be an object, so it is cut.
        _ => Ok(unsafe { core::slice::from_raw_parts(buf.cast(), len.min(isize::MAX as usize)) }),
    }
}

/// # Safety
/// `buf` is null or points to `len` writable bytes that nobody else uses meanwhile.
pub(super) unsafe fn bytes_mut<'a>(buf: *mut c_void, len: usize) -> io::Result<&'a mut [u8]> {
    match (buf.is_null(), len) {
        (_, 0) => Ok(&mut []),
        (true, _) => bad(Errno::FAULT),
        // SAFETY: as in `bytes`. C hands in memory that may not be written yet; it is only written to.
        _ => Ok(unsafe { core::slice::from_raw_parts_mut(buf.cast(), len.min(isize::MAX as usize)) }),
    }
}

/// Reads a `struct sockaddr_in` or `sockaddr_in6`.
///
/// # Safety
/// `at` is null or points to `len` readable bytes.
pub(super) unsafe fn read_address(at: *const c_void, len: u32) -> io::Result<SocketAddr> {
    // SAFETY: the caller's word.
    let b = unsafe { bytes(at, len as usize) }?;
    let family = b.first_chunk().map(|f| u16::from_ne_bytes(*f));
    match family {
        Some(AF_INET) if b.len() >= 16 => {
            let ip = Ipv4Addr::new(b[4], b[5], b[6], b[7]);
            Ok(SocketAddrV4::new(ip, u16::from_be_bytes([b[2], b[3]])).into())
        }
        Some(AF_INET6) if b.len() >= 28 => {
            let ip: [u8; 16] = b[8..24].try_into().unwrap_or_default();
            let scope = u32::from_ne_bytes([b[24], b[25], b[26], b[27]]);
            Ok(SocketAddrV6::new(Ipv6Addr::from(ip), u16::from_be_bytes([b[2], b[3]]), 0, scope).into())
        }
        Some(AF_INET | AF_INET6) | None => bad(Errno::INVAL),
        Some(_) => bad(Errno::AFNOSUPPORT),
    }
}

/// Writes an address as the kernel does: cut to `*len` bytes, the full length left in `*len`.
///
/// # Safety
/// Both null, or `len` points to a length and `at` to that many writable bytes.
pub(super) unsafe fn write_address(address: SocketAddr, at: *mut c_void, len: *mut u32) -> io::Result<()> {
    if at.is_null() && len.is_null() {
        return Ok(());
    }
    // SAFETY: the caller's word.
    let Some(len) = (unsafe { len.as_mut() }) else { return bad(Errno::FAULT) };
    let mut b = [0u8; 28];
    let size = match address {
        SocketAddr::V4(a) => {
            b[..2].copy_from_slice(&AF_INET.to_ne_bytes());
            b[4..8].copy_from_slice(&a.ip().octets());
            16
        }
        SocketAddr::V6(a) => {
            b[..2].copy_from_slice(&AF_INET6.to_ne_bytes());
            b[8..24].copy_from_slice(&a.ip().octets());
            b[24..28].copy_from_slice(&a.scope_id().to_ne_bytes());
            28
        }
    };
    b[2..4].copy_from_slice(&address.port().to_be_bytes());
    let room = (*len as usize).min(size);
    // SAFETY: the caller's word.
    unsafe { bytes_mut(at, room) }?.copy_from_slice(&b[..room]);
    *len = size as u32;
    Ok(())
}
