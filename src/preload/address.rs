//! Socket addresses of C programs <-> Rust's.

use core::ffi::c_int;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

use libc::{sockaddr, sockaddr_in, sockaddr_in6, sockaddr_storage, socklen_t};

use crate::errno::Errno;
use crate::memory;

/// What a program gave as an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Given {
    Inet(SocketAddr),
    /// AF_UNSPEC: connect() dissolves an association with it.
    Unspecified,
}

/// Linux takes IPv6 addresses without the scope field that RFC 2133 did not have.
const SIN6_LEN_RFC2133: usize = 24;

/// Reads an address that belongs to a socket of `domain`.
///
/// # Errors
/// EFAULT for a pointer that is none, EINVAL for a short length, EAFNOSUPPORT for the wrong family: bind(2), connect(2).
///
/// # Safety
/// Nothing is asked of `address`: memory that can't be read is EFAULT.
pub unsafe fn read(domain: c_int, address: *const sockaddr, len: socklen_t) -> Result<Given, Errno> {
    // SAFETY: as for this function.
    let (family, given) = unsafe { copy(address, len)? };
    let need = if domain == libc::AF_INET { size_of::<sockaddr_in>() } else { SIN6_LEN_RFC2133 };
    if family == libc::AF_UNSPEC {
        return Ok(Given::Unspecified);
    }
    // An IPv6 socket takes IPv4 only in mapped form, and looks at the length first.
    if (len as usize) < need {
        return Err(Errno(libc::EINVAL));
    }
    match (domain, family) {
        (libc::AF_INET, libc::AF_INET) => Ok(Given::Inet(inet(&given))),
        (libc::AF_INET6, libc::AF_INET6) => Ok(Given::Inet(inet6(&given))),
        _ => Err(Errno(libc::EAFNOSUPPORT)),
    }
}

/// Reads the destination of a datagram from a socket of `domain`; None: the connected peer. Linux takes more here than
/// in connect(): an IPv4 socket any address without a family, an IPv6 socket IPv4 in its own form.
///
/// # Errors
/// As [`read`].
///
/// # Safety
/// As [`read`].
pub unsafe fn read_destination(
    domain: c_int,
    address: *const sockaddr,
    len: socklen_t,
) -> Result<Option<SocketAddr>, Errno> {
    // SAFETY: as for this function.
    let (family, given) = unsafe { copy(address, len)? };
    let holds = |bytes: usize| if len as usize >= bytes { Ok(()) } else { Err(Errno(libc::EINVAL)) };
    match (domain, family) {
        (libc::AF_INET, _) => {
            holds(size_of::<sockaddr_in>())?;
            let known = matches!(family, libc::AF_INET | libc::AF_UNSPEC);
            if known { Ok(Some(inet(&given))) } else { Err(Errno(libc::EAFNOSUPPORT)) }
        }
        (_, libc::AF_INET6) => holds(SIN6_LEN_RFC2133).map(|()| Some(inet6(&given))),
        (_, libc::AF_INET) => {
            holds(size_of::<sockaddr_in>())?;
            let v4 = inet(&given);
            let IpAddr::V4(ip) = v4.ip() else { return Ok(Some(v4)) };
            Ok(Some(SocketAddr::new(ip.to_ipv6_mapped().into(), v4.port())))
        }
        (_, libc::AF_UNSPEC) => Ok(None),
        _ => Err(Errno(libc::EINVAL)),
    }
}

/// The program's structure and its family.
///
/// # Safety
/// As [`read`].
unsafe fn copy(address: *const sockaddr, len: socklen_t) -> Result<(c_int, sockaddr_storage), Errno> {
    let len = len as usize;
    if len < size_of::<libc::sa_family_t>() || len > size_of::<sockaddr_storage>() {
        return Err(Errno(libc::EINVAL));
    }
    memory::readable(address.cast(), len)?;
    // SAFETY: all-zero is a valid sockaddr_storage; no more is copied than either side has.
    unsafe {
        let mut given: sockaddr_storage = core::mem::zeroed();
        core::ptr::copy_nonoverlapping(address.cast::<u8>(), (&raw mut given).cast::<u8>(), len);
        Ok((c_int::from(given.ss_family), given))
    }
}

fn inet(given: &sockaddr_storage) -> SocketAddr {
    // SAFETY: sockaddr_storage holds every socket address.
    let sin = unsafe { &*core::ptr::from_ref(given).cast::<sockaddr_in>() };
    let ip = Ipv4Addr::from(sin.sin_addr.s_addr.to_ne_bytes());
    SocketAddr::new(IpAddr::V4(ip), u16::from_be(sin.sin_port))
}

fn inet6(given: &sockaddr_storage) -> SocketAddr {
    // SAFETY: as above.
    let sin6 = unsafe { &*core::ptr::from_ref(given).cast::<sockaddr_in6>() };
    let ip = Ipv6Addr::from(sin6.sin6_addr.s6_addr);
    SocketAddr::V6(SocketAddrV6::new(ip, u16::from_be(sin6.sin6_port), 0, sin6.sin6_scope_id))
}

/// The C structure for a socket of `domain`, and its length. IPv6 sockets show IPv4 in mapped form.
#[must_use]
pub fn to_c(domain: c_int, endpoint: &SocketAddr) -> (sockaddr_storage, socklen_t) {
    // SAFETY: all-zero is a valid sockaddr_storage.
    let mut out: sockaddr_storage = unsafe { core::mem::zeroed() };
    if domain == libc::AF_INET {
        let IpAddr::V4(ip) = endpoint.ip().to_canonical() else { return to_c(libc::AF_INET6, endpoint) };
        let sin = sockaddr_in {
            sin_family: libc::AF_INET as _,
            sin_port: endpoint.port().to_be(),
            sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(ip.octets()) },
            sin_zero: [0; 8],
        };
        // SAFETY: sockaddr_storage is large enough and aligned for every socket address.
        unsafe { (&raw mut out).cast::<sockaddr_in>().write(sin) };
        (out, size_of::<sockaddr_in>() as socklen_t)
    } else {
        let ip = match endpoint.ip() {
            // The wildcard has no mapped form.
            IpAddr::V4(ip) if ip.is_unspecified() => Ipv6Addr::UNSPECIFIED,
            IpAddr::V4(ip) => ip.to_ipv6_mapped(),
            IpAddr::V6(ip) => ip,
        };
        let sin6 = sockaddr_in6 {
            sin6_family: libc::AF_INET6 as _,
            sin6_port: endpoint.port().to_be(),
            sin6_flowinfo: 0,
            sin6_addr: libc::in6_addr { s6_addr: ip.octets() },
            sin6_scope_id: 0,
        };
        // SAFETY: as above.
        unsafe { (&raw mut out).cast::<sockaddr_in6>().write(sin6) };
        (out, size_of::<sockaddr_in6>() as socklen_t)
    }
}

/// Gives an address back to a program as getsockname(2) does: as much as fits, and the full length. A null `address`
/// asks for nothing.
///
/// # Errors
/// EFAULT when `len` is null although `address` is not, EINVAL for a negative length.
///
/// # Safety
/// Nothing is asked of the pointers: memory that can't be written is EFAULT.
pub unsafe fn write(
    domain: c_int,
    endpoint: &SocketAddr,
    address: *mut sockaddr,
    len: *mut socklen_t,
) -> Result<(), Errno> {
    if address.is_null() {
        return Ok(());
    }
    memory::writable(len.cast(), size_of::<socklen_t>())?;
    let (from, full) = to_c(domain, endpoint);
    // SAFETY: looked at above and below; no more than either side has.
    unsafe {
        let room = len.read_unaligned();
        if room > i32::MAX as socklen_t {
            return Err(Errno(libc::EINVAL));
        }
        memory::writable(address.cast(), room.min(full) as usize)?;
        core::ptr::copy_nonoverlapping((&raw const from).cast::<u8>(), address.cast::<u8>(), room.min(full) as usize);
        len.write_unaligned(full);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn back(domain: c_int, endpoint: SocketAddr) -> Result<Given, Errno> {
        let (c, len) = to_c(domain, &endpoint);
        // SAFETY: a whole structure.
        unsafe { read(domain, (&raw const c).cast(), len) }
    }

    #[test]
    fn addresses_come_back() {
        for text in ["10.0.0.1:80", "0.0.0.0:0"] {
            let e: SocketAddr = text.parse().unwrap();
            assert_eq!(back(libc::AF_INET, e), Ok(Given::Inet(e)));
        }
        let six: SocketAddr = "[2001:db8::1]:65535".parse().unwrap();
        assert_eq!(back(libc::AF_INET6, six), Ok(Given::Inet(six)));
        let mapped: SocketAddr = "[::ffff:10.0.0.1]:80".parse().unwrap();
        assert_eq!(back(libc::AF_INET6, "10.0.0.1:80".parse().unwrap()), Ok(Given::Inet(mapped)));
    }

    #[test]
    fn wrong_ones_give_the_kernels_errors() {
        let (c, len) = to_c(libc::AF_INET, &"1.2.3.4:5".parse().unwrap());
        let p = (&raw const c).cast::<sockaddr>();
        // SAFETY: a whole structure.
        unsafe {
            assert_eq!(read(libc::AF_INET6, p, len), Err(Errno(libc::EINVAL)), "the length comes first");
            let (six, long) = to_c(libc::AF_INET6, &"[::1]:5".parse().unwrap());
            let six = (&raw const six).cast::<sockaddr>();
            assert_eq!(read(libc::AF_INET, six, long), Err(Errno(libc::EAFNOSUPPORT)));
            let mapped: SocketAddr = "[::ffff:1.2.3.4]:5".parse().unwrap();
            assert_eq!(read_destination(libc::AF_INET6, p, len), Ok(Some(mapped)));
            assert_eq!(read(libc::AF_INET, p, len - 1), Err(Errno(libc::EINVAL)));
            assert_eq!(read(libc::AF_INET, core::ptr::null(), len), Err(Errno(libc::EFAULT)));
        }
    }

    #[test]
    fn a_short_buffer_gets_what_fits_and_the_full_length() {
        let mut out = [0u8; 4];
        let mut len: socklen_t = 4;
        let from = "1.2.3.4:1286".parse().unwrap();
        // SAFETY: four bytes, and the length says so.
        unsafe { write(libc::AF_INET, &from, out.as_mut_ptr().cast(), &raw mut len) }.unwrap();
        assert_eq!((len, &out[2..]), (16, &[5, 6][..]));
    }
}
