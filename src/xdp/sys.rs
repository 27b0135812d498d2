//! The system calls of this module that no crate wraps, and errors with advice.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::port::PortError;

/// linux/bpf.h: the part of `union bpf_attr` that BPF_LINK_CREATE reads for XDP.
#[repr(C)]
struct LinkCreate {
    prog_fd: u32,
    target_ifindex: u32,
    attach_type: u32,
    flags: u32,
}

const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_XDP: u32 = 37;

/// linux/if_link.h: XDP in front of the kernel's packet buffers, after they are made.
pub const XDP_FLAGS_SKB_MODE: u32 = 1 << 1;
/// linux/if_link.h: XDP in the driver.
pub const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;

/// Attaches a program to a device. The attachment lives as long as the returned descriptor: it ends with the process,
/// however that dies. (libbpf's `attach_xdp` is the same call without a way to give the flags.)
pub fn bpf_link_create_xdp(program: BorrowedFd<'_>, ifindex: u32, flags: u32) -> io::Result<OwnedFd> {
    let attr = LinkCreate { prog_fd: program.as_raw_fd() as u32, target_ifindex: ifindex, attach_type: BPF_XDP, flags };
    // SAFETY: `attr` is a prefix of `union bpf_attr` that lives through the call, and its size is passed.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, BPF_LINK_CREATE, &raw const attr, size_of::<LinkCreate>()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// The number of the XDP program that a device has, as `bpftool prog` and `ip link` show it.
pub fn xdp_program_id(ifindex: u32) -> Option<u32> {
    let mut id = 0;
    // SAFETY: `id` is a valid place for the result through the call.
    let rc = unsafe { libbpf_rs::libbpf_sys::bpf_xdp_query_id(ifindex as i32, 0, &mut id) };
    (rc == 0 && id != 0).then_some(id)
}

/// A packet socket (packet(7)) that gets nothing until it is bound to a protocol.
pub fn packet_socket() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: plain arguments.
    let fd = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// setsockopt(2) with an `int`.
pub fn set_int_option(fd: BorrowedFd<'_>, level: i32, name: i32, value: i32) -> io::Result<()> {
    // SAFETY: the pointer and length describe `value`, which lives through the call.
    let rc = unsafe {
        libc::setsockopt(fd.as_raw_fd(), level, name, (&raw const value).cast(), size_of::<i32>() as libc::socklen_t)
    };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Builds an error; an empty `hint` is replaced by the advice that goes with the errno, if there is any.
pub fn error(what: impl Into<String>, cause: io::Error, hint: impl Into<String>) -> PortError {
    let mut hint = hint.into();
    if hint.is_empty() {
        hint = match cause.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => {
                "this needs CAP_NET_ADMIN, CAP_NET_RAW and CAP_BPF: run as root, or give the program these \
                 capabilities (setcap cap_net_admin,cap_net_raw,cap_bpf+ep FILE)"
                    .into()
            }
            // AF_XDP answers ENOBUFS when the pages of a UMEM exceed the limit on locked memory.
            Some(libc::ENOBUFS | libc::ENOMEM) => {
                "not enough memory may be locked: raise the limit (ulimit -l unlimited, LimitMEMLOCK=infinity in the \
                 unit), or use fewer frames"
                    .into()
            }
            _ => String::new(),
        };
    }
    PortError { what: what.into(), cause, hint }
}
