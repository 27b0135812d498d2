//! Socket addresses in the form that shared memory and the control socket use: 16 bytes, IPv4 mapped into IPv6.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use sidestep_shm::slot::kind;

/// `::` : any address, or none.
pub(crate) const UNSPECIFIED: [u8; 16] = [0; 16];

/// An address as 16 bytes. The IPv4 wildcard becomes `::ffff:0.0.0.0`, which is not the IPv6 wildcard.
#[must_use]
pub fn to_wire(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// The address as a socket of `kind` shows it: an IPv4 socket shows IPv4, an IPv6 socket shows IPv4 in mapped form.
#[must_use]
pub fn from_wire(kind: u32, address: [u8; 16], port: u16) -> SocketAddr {
    let v6 = Ipv6Addr::from(address);
    let ip =
        if is_v4(kind) { IpAddr::V4(v6.to_ipv4_mapped().unwrap_or(Ipv4Addr::UNSPECIFIED)) } else { IpAddr::V6(v6) };
    SocketAddr::new(ip, port)
}

/// Whether a socket of `kind` speaks IPv4 only.
pub(crate) fn is_v4(kind: u32) -> bool {
    kind == kind::TCP4 || kind == kind::UDP4
}

/// Whether a socket of `kind` sends datagrams.
pub(crate) fn is_udp(kind: u32) -> bool {
    kind == kind::UDP4 || kind == kind::UDP6
}

/// The wildcard of the socket's family, port 0.
pub(crate) fn any(kind: u32) -> SocketAddr {
    let ip = if is_v4(kind) { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { IpAddr::V6(Ipv6Addr::UNSPECIFIED) };
    SocketAddr::new(ip, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_come_back_in_the_sockets_family() {
        let v4: IpAddr = "192.0.2.7".parse().unwrap();
        assert_eq!(from_wire(kind::TCP4, to_wire(v4), 80), "192.0.2.7:80".parse().unwrap());
        assert_eq!(from_wire(kind::TCP6, to_wire(v4), 80), "[::ffff:192.0.2.7]:80".parse().unwrap());
        let v6: IpAddr = "2001:db8::1".parse().unwrap();
        assert_eq!(from_wire(kind::UDP6, to_wire(v6), 53), "[2001:db8::1]:53".parse().unwrap());
        assert_ne!(to_wire(any(kind::UDP4).ip()), UNSPECIFIED);
    }
}
