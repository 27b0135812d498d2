//! Which addresses are ours, and where packets for others go: longest prefix over on-link prefixes and routes.
//!
//! The table is made once from the configuration and is small, so it is searched in order; the fast path asks the
//! next-hop cache of `egress` first.

use crate::{InterfaceAddress, Route};
use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Largest IP packet in bytes between two programs of ours: what the IPv4 header can say. Linux's loopback has one more.
pub(crate) const LOOPBACK_MTU: usize = 65_535;

/// Where a packet goes next and, if its sender doesn't care, from which address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hop {
    pub next_hop: IpAddr,
    pub source: IpAddr,
}

/// One line of the table.
#[derive(Clone, Copy, Debug)]
struct Entry {
    network: IpAddr,
    prefix_bits: u8,
    gateway: Option<IpAddr>,
    source: IpAddr,
}

/// Our addresses and routes.
#[derive(Clone, Debug)]
pub(crate) struct Routes {
    addresses: Vec<InterfaceAddress>,
    /// Longest prefix first; among equals in the order of the configuration, on-link prefixes before routes.
    entries: Vec<Entry>,
}

impl Routes {
    pub fn new(addresses: &[InterfaceAddress], routes: &[Route]) -> Self {
        let mut table = Self { addresses: addresses.to_vec(), entries: Vec::new() };
        for a in addresses {
            table.add(a.address, a.prefix_bits, None, a.address);
        }
        for r in routes {
            let via = r.gateway.unwrap_or(r.network);
            if let Some(source) = table.source_towards(via) {
                table.add(r.network, r.prefix_bits, r.gateway, source);
            }
        }
        // RFC 4291 2.8: link-local addresses are on link everywhere, also where we have none: neighbours and routers
        // use theirs when they talk to us.
        let link_local = IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0));
        if let Some(source) = table.source_towards(link_local) {
            table.add(link_local, 10, None, source);
        }
        table.entries.sort_by_key(|e| core::cmp::Reverse(e.prefix_bits));
        table
    }

    fn add(&mut self, network: IpAddr, prefix_bits: u8, gateway: Option<IpAddr>, source: IpAddr) {
        self.entries.push(Entry { network, prefix_bits, gateway, source });
    }

    /// The address to use towards `via`: one on its link, else the first of its family that is not link-local, else
    /// the first of its family.
    fn source_towards(&self, via: IpAddr) -> Option<IpAddr> {
        let family = || self.addresses.iter().filter(|a| a.address.is_ipv4() == via.is_ipv4());
        family()
            .find(|a| prefix_contains(a.address, a.prefix_bits, via))
            .or_else(|| family().find(|a| !is_link_local(a.address)))
            .or_else(|| family().next())
            .map(|a| a.address)
    }

    /// Next hop and source for a unicast destination that is not ours. None: no route.
    pub fn lookup(&self, destination: IpAddr) -> Option<Hop> {
        let e = self.entries.iter().find(|e| prefix_contains(e.network, e.prefix_bits, destination))?;
        Some(Hop { next_hop: e.gateway.unwrap_or(destination), source: e.source })
    }

    /// The source address of a packet to `remote`, whatever kind of address that is.
    pub fn source_for(&self, remote: IpAddr) -> Option<IpAddr> {
        if remote.is_unspecified() || remote.is_loopback() {
            // As Linux: 127.0.0.1 also towards the other addresses of its network.
            return Some(if remote.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() });
        }
        if self.is_own(remote) {
            return Some(remote);
        }
        if remote.is_multicast() || self.is_broadcast(remote) {
            let link = self.entries.iter().find(|e| prefix_contains(e.network, e.prefix_bits, remote));
            return link.map(|e| e.source).or_else(|| self.source_towards(remote));
        }
        self.lookup(remote).map(|hop| hop.source)
    }

    /// Whether `address` was configured as ours.
    pub fn is_own(&self, address: IpAddr) -> bool {
        self.addresses.iter().any(|a| a.address == address)
    }

    /// Whether packets to `address` stay in the stack.
    pub fn is_local(&self, address: IpAddr) -> bool {
        self.is_own(address) || address.is_loopback()
    }

    /// 255.255.255.255, or the last or first address of an on-link prefix (RFC 1122 3.2.1.3; RFC 3021 has none for
    /// /31).
    pub fn is_broadcast(&self, address: IpAddr) -> bool {
        let IpAddr::V4(v4) = address else { return false };
        if v4.is_broadcast() {
            return true;
        }
        self.addresses.iter().any(|a| {
            let IpAddr::V4(own) = a.address else { return false };
            if a.prefix_bits == 0 || a.prefix_bits > 30 {
                return false;
            }
            let host = u32::MAX >> a.prefix_bits;
            let same_link = (u32::from(own) ^ u32::from(v4)) & !host == 0;
            same_link && (u32::from(v4) & host == host || u32::from(v4) & host == 0)
        })
    }

    /// Whether `group` is one that every node listens to, or the solicited-node group of an address of ours
    /// (RFC 4291 2.8).
    pub fn in_group(&self, group: IpAddr) -> bool {
        match group {
            IpAddr::V4(v4) => v4 == Ipv4Addr::new(224, 0, 0, 1),
            IpAddr::V6(v6) => {
                v6 == ALL_NODES
                    || self.addresses.iter().any(|a| matches!(a.address, IpAddr::V6(own) if solicited_node(own) == v6))
            }
        }
    }

    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.addresses.iter().map(|a| a.address)
    }
}

/// ff02::1
pub(crate) const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// RFC 4291 2.7.1: ff02::1:ff00:0/104 and the last 24 bits of the address.
pub(crate) const fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let s = address.segments();
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | (s[6] & 0xff), s[7])
}

/// The loopback address of the family of `of`: itself if it is one already.
pub(crate) const fn loopback_of(of: IpAddr) -> IpAddr {
    match of {
        IpAddr::V4(v4) if v4.is_loopback() => of,
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
    }
}

const fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.segments()[0] & 0xffc0 == 0xfe80,
    }
}

/// Whether `address` lies in `network`/`bits`. Families that differ never match; bits beyond the family's count as all.
fn prefix_contains(network: IpAddr, bits: u8, address: IpAddr) -> bool {
    match (network, address) {
        (IpAddr::V4(n), IpAddr::V4(a)) => {
            let difference = u32::from(n) ^ u32::from(a);
            difference.checked_shr(32 - u32::from(bits.min(32))).unwrap_or(0) == 0
        }
        (IpAddr::V6(n), IpAddr::V6(a)) => {
            let difference = u128::from(n) ^ u128::from(a);
            difference.checked_shr(128 - u32::from(bits.min(128))).unwrap_or(0) == 0
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn table() -> Routes {
        let address = |text, prefix_bits| InterfaceAddress { address: ip(text), prefix_bits };
        let route = |network, prefix_bits, gateway: Option<&str>| Route {
            network: ip(network),
            prefix_bits,
            gateway: gateway.map(ip),
        };
        Routes::new(
            &[address("10.0.0.2", 24), address("192.168.7.9", 16), address("2001:db8::2", 64)],
            &[
                route("0.0.0.0", 0, Some("10.0.0.1")),
                route("172.16.0.0", 12, Some("192.168.0.1")),
                route("172.16.5.0", 24, Some("192.168.0.2")),
                route("172.16.5.0", 24, Some("192.168.0.3")),
                route("::", 0, Some("fe80::1")),
            ],
        )
    }

    #[test]
    fn the_longest_prefix_wins_and_among_equals_the_first() {
        let t = table();
        let hop = |text| t.lookup(ip(text)).unwrap();
        assert_eq!(hop("10.0.0.77"), Hop { next_hop: ip("10.0.0.77"), source: ip("10.0.0.2") });
        assert_eq!(hop("8.8.8.8"), Hop { next_hop: ip("10.0.0.1"), source: ip("10.0.0.2") });
        assert_eq!(hop("172.17.0.1"), Hop { next_hop: ip("192.168.0.1"), source: ip("192.168.7.9") });
        assert_eq!(hop("172.16.5.1").next_hop, ip("192.168.0.2"));
        assert_eq!(hop("2001:db8::9").next_hop, ip("2001:db8::9"));
        assert_eq!(hop("2001:db9::9"), Hop { next_hop: ip("fe80::1"), source: ip("2001:db8::2") });
        assert_eq!(hop("fe80::9").next_hop, ip("fe80::9"));
        let none = Routes::new(&[], &[]);
        assert_eq!(none.lookup(ip("1.2.3.4")), None);
    }

    #[test]
    fn kinds_of_addresses() {
        let t = table();
        for text in ["255.255.255.255", "10.0.0.255", "10.0.0.0", "192.168.255.255"] {
            assert!(t.is_broadcast(ip(text)), "{text}");
        }
        for text in ["10.0.0.2", "10.0.1.255", "192.168.7.255", "2001:db8::2"] {
            assert!(!t.is_broadcast(ip(text)), "{text}");
        }
        assert!(t.in_group(ip("ff02::1")) && t.in_group(ip("ff02::1:ff00:2")) && t.in_group(ip("224.0.0.1")));
        assert!(!t.in_group(ip("ff02::1:ff00:3")) && !t.in_group(ip("224.0.0.2")));
        assert_eq!(t.source_for(ip("127.0.0.9")), Some(ip("127.0.0.1")));
        assert_eq!(t.source_for(ip("0.0.0.0")), Some(ip("127.0.0.1")));
        assert_eq!(t.source_for(ip("192.168.7.9")), Some(ip("192.168.7.9")));
        assert_eq!(t.source_for(ip("ff02::5")), Some(ip("2001:db8::2")));
        assert_eq!(t.source_for(ip("10.0.0.255")), Some(ip("10.0.0.2")));
    }
}
