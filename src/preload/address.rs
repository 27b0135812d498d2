//! Socket addresses of C programs <-> Rust's.

use core::ffi::c_int;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

use libc::{sockaddr, sockaddr_in, sockaddr_in6, sockaddr_storage, socklen_t};

use crate::errno::Errno;

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
/// EFAULT for a null pointer, EINVAL for a short length, EAFNOSUPPORT for the wrong family: bind(2), connect(2).
///
/// # Safety
/// `address` is null or points to `len` readable bytes.
pub unsafe fn read(domain: c_int, address: *const sockaddr, len: socklen_t) -> Result<Given, Errno> {
    let len = len as usize;
    if address.is_null() {
        return Err(Errno(libc::EFAULT));
    }
    if len < size_of::<libc::sa_family_t>() {
        return Err(Errno(libc::EINVAL));
    }
    // SAFETY: at least the family is there; callers' structures may lie at any address.
    let family = c_int::from(unsafe { (&raw const (*address).sa_family).read_unaligned() });
    match family {
        libc::AF_UNSPEC => Ok(Given::Unspecified),
        libc::AF_INET => {
            if len < size_of::<sockaddr_in>() {
                return Err(Errno(libc::EINVAL));
            }
            if domain != libc::AF_INET {
                // An IPv6 socket takes IPv4 only in mapped form.
                return Err(Errno(libc::EAFNOSUPPORT));
            }
            // SAFETY: long enough, by the check above.
            let sin = unsafe { address.cast::<sockaddr_in>().read_unaligned() };
            let ip = Ipv4Addr::from(sin.sin_addr.s_addr.to_ne_bytes());
            Ok(Given::Inet(SocketAddr::new(IpAddr::V4(ip), u16::from_be(sin.sin_port))))
        }
        libc::AF_INET6 => {
            if domain != libc::AF_INET6 {
                return Err(Errno(libc::EAFNOSUPPORT));
            }
            if len < SIN6_LEN_RFC2133 {
                return Err(Errno(libc::EINVAL));
            }
            // SAFETY: all-zero is a valid sockaddr_in6.
            let mut sin6: sockaddr_in6 = unsafe { core::mem::zeroed() };
            // SAFETY: no more than either side has.
            unsafe {
                core::ptr::copy_nonoverlapping(
                    address.cast::<u8>(),
                    (&raw mut sin6).cast::<u8>(),
                    len.min(size_of::<sockaddr_in6>()),
                );
            }
            let ip = Ipv6Addr::from(sin6.sin6_addr.s6_addr);
            let port = u16::from_be(sin6.sin6_port);
            Ok(Given::Inet(SocketAddr::V6(SocketAddrV6::new(ip, port, 0, sin6.sin6_scope_id))))
        }
        _ => Err(Errno(libc::EAFNOSUPPORT)),
    }
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
/// `len` is null or points to a length, and `address` to that many writable bytes.
pub unsafe fn write(
    domain: c_int,
    endpoint: &SocketAddr,
    address: *mut sockaddr,
    len: *mut socklen_t,
) -> Result<(), Errno> {
    if address.is_null() {
        return Ok(());
    }
    if len.is_null() {
        return Err(Errno(libc::EFAULT));
    }
    let (from, full) = to_c(domain, endpoint);
    // SAFETY: by the caller's word; no more than either side has.
    unsafe {
        let room = len.read_unaligned();
        if room > i32::MAX as socklen_t {
            return Err(Errno(libc::EINVAL));
        }
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
            assert_eq!(read(libc::AF_INET6, p, len), Err(Errno(libc::EAFNOSUPPORT)));
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
