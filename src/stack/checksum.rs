//! The Internet checksum (RFC 1071), eight bytes at a time.
//!
//! One's complement addition cares neither about the width of its words nor about their byte order, as long as all have
//! the same: so sums are of native 64-bit words, and only the folded result is turned into network order.

use core::net::IpAddr;

/// Adds with the carry brought around.
const fn add(sum: u64, word: u64) -> u64 {
    let (sum, carry) = sum.overflowing_add(word);
    sum + carry as u64
}

/// Sum of `bytes`, which begin at an even place of what is summed.
pub(crate) fn sum(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<8>();
    let mut sum = words.iter().fold(0, |sum, word| add(sum, u64::from_ne_bytes(*word)));
    let (words, rest) = rest.as_chunks::<4>();
    if let [word] = words {
        sum = add(sum, u64::from(u32::from_ne_bytes(*word)));
    }
    let (words, rest) = rest.as_chunks::<2>();
    if let [word] = words {
        sum = add(sum, u64::from(u16::from_ne_bytes(*word)));
    }
    if let [byte] = rest {
        sum = add(sum, u64::from(u16::from_ne_bytes([*byte, 0])));
    }
    sum
}

/// The field's value for a sum of everything that it covers, itself counted as 0. Of a header that has the right one,
/// it is 0.
#[allow(clippy::cast_possible_truncation, reason = "folded to 16 bits")]
pub(crate) const fn finish(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    u16::from_be(!((sum & 0xffff) + (sum >> 16)) as u16)
}

/// The checksum of a packet of TCP's kind: with the pseudo-header of RFC 9293 3.1 and RFC 8200 8.1, its own field counted
/// as it stands.
pub(crate) fn transport(source: IpAddr, destination: IpAddr, protocol: u8, packet: &[u8]) -> u16 {
    finish(add(sum(packet), pseudo(source, destination, protocol, packet.len())))
}

/// The pseudo-header's own sum, not complemented: what a device that makes checksums finds in the field.
pub(crate) fn pseudo_header(source: IpAddr, destination: IpAddr, protocol: u8, len: usize) -> u16 {
    !finish(pseudo(source, destination, protocol, len))
}

fn pseudo(source: IpAddr, destination: IpAddr, protocol: u8, len: usize) -> u64 {
    let addresses = match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            u64::from(u32::from_ne_bytes(source.octets())) + u64::from(u32::from_ne_bytes(destination.octets()))
        }
        (source, destination) => [source, destination].into_iter().fold(0, |total, address| match address {
            IpAddr::V4(v4) => add(total, sum(&v4.octets())),
            IpAddr::V6(v6) => add(total, sum(&v6.octets())),
        }),
    };
    #[allow(clippy::cast_possible_truncation, reason = "packets are shorter than 64 KiB")]
    let rest = u32::from_ne_bytes((len as u32 + u32::from(protocol)).to_be_bytes());
    add(addresses, u64::from(rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use proptest::prelude::*;
    use smoltcp::wire::{IpAddress, IpProtocol, UdpPacket};

    /// As RFC 1071 4.1 has it.
    fn plain(bytes: &[u8]) -> u16 {
        let mut sum = 0_u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }

    proptest! {
        #[test]
        fn as_in_the_rfc(bytes in prop::collection::vec(any::<u8>(), 0..120), full in any::<bool>()) {
            let bytes = if full { Vec::from_iter(bytes.iter().map(|_| 0xff)) } else { bytes };
            prop_assert_eq!(finish(sum(&bytes)), plain(&bytes));
        }
    }

    #[test]
    fn with_pseudo_header_as_smoltcp() {
        for (source, destination) in [("10.0.0.1", "10.255.255.255"), ("fd00::1", "ff02::ffff:ffff")] {
            let (source, destination): (IpAddr, IpAddr) = (source.parse().unwrap(), destination.parse().unwrap());
            for len in 8..40_u8 {
                let mut packet: Vec<u8> = (0..len).map(|n| n.wrapping_mul(97)).collect();
                packet[4..6].copy_from_slice(&u16::from(len).to_be_bytes());
                packet[6..8].fill(0);
                let ours = transport(source, destination, IpProtocol::Udp.into(), &packet);
                UdpPacket::new_unchecked(&mut packet)
                    .fill_checksum(&IpAddress::from(source), &IpAddress::from(destination));
                assert_eq!(packet[6..8], ours.to_be_bytes());
                assert_eq!(transport(source, destination, IpProtocol::Udp.into(), &packet), 0);
            }
        }
    }
}
