//! Checksums that the sender's kernel left to hardware that isn't there: frames of a local veth or bridge reach packet
//! sockets with only the pseudo-header summed.

/// Computes the TCP or UDP checksum of an Ethernet frame, with up to two VLAN tags. False if there is none to compute:
/// not IP, another protocol, a fragment, or cut short; the frame is unchanged then.
pub fn finish_checksum(frame: &mut [u8]) -> bool {
    finish(frame).is_some()
}

const TCP: u8 = 6;
const UDP: u8 = 17;

fn finish(frame: &mut [u8]) -> Option<()> {
    let mut at = 12;
    let mut ethertype = be16(frame, at)?;
    for _ in 0..2 {
        if ethertype == 0x8100 || ethertype == 0x88a8 {
            at += 4;
            ethertype = be16(frame, at)?;
        }
    }
    at += 2;
    let packet = frame.get_mut(at..)?;
    // Where addresses are, what follows the IP headers, and where it begins and ends.
    let (addresses, protocol, start, end) = match ethertype {
        0x0800 => {
            let header = usize::from(packet.first()? & 0xf) * 4;
            if header < 20 || be16(packet, 6)? & 0x3fff != 0 {
                return None;
            }
            (12..20, *packet.get(9)?, header, usize::from(be16(packet, 2)?))
        }
        0x86dd => {
            let end = 40 + usize::from(be16(packet, 4)?);
            let (mut next, mut start) = (*packet.get(6)?, 40);
            // Hop-by-hop, routing and destination options (RFC 8200 section 4); a fragment has no whole checksum.
            while matches!(next, 0 | 43 | 60) {
                next = *packet.get(start)?;
                start += (usize::from(*packet.get(start + 1)?) + 1) * 8;
            }
            (8..40, next, start, end)
        }
        _ => return None,
    };
    let field = start
        + match protocol {
            TCP => 16,
            UDP => 6,
            _ => return None,
        };
    if end > packet.len() || field + 2 > end {
        return None;
    }
    packet[field..field + 2].fill(0);
    let length = (end - start) as u32;
    let sum = sum(&packet[addresses]) + u64::from(length) + u64::from(protocol) + sum(&packet[start..end]);
    let folded = fold(sum);
    // RFC 768: a computed zero is sent as all ones. Harmless for TCP, where both mean the same.
    let checksum = if folded == 0xffff { 0xffff } else { !folded };
    packet[field..field + 2].copy_from_slice(&checksum.to_be_bytes());
    Some(())
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn sum(bytes: &[u8]) -> u64 {
    let (pairs, rest) = bytes.as_chunks::<2>();
    let last = rest.first().map_or(0, |&b| u64::from(b) << 8);
    pairs.iter().map(|&pair| u64::from(u16::from_be_bytes(pair))).sum::<u64>() + last
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[cfg(test)]
mod tests {
    use smoltcp::phy::ChecksumCapabilities;
    use smoltcp::wire::{IpAddress, IpProtocol, Ipv4Packet, Ipv4Repr, Ipv6Packet, Ipv6Repr, UdpPacket, UdpRepr};

    use super::*;

    fn udp(ip: usize, emit_ip: impl Fn(&mut [u8], usize), ends: (IpAddress, IpAddress)) -> Vec<u8> {
        let udp = UdpRepr { src_port: 1234, dst_port: 53 };
        let payload = b"odd length!";
        let length = udp.header_len() + payload.len();
        let mut packet = vec![0; ip + length + 3];
        emit_ip(&mut packet[..ip + length], length);
        let mut datagram = UdpPacket::new_unchecked(&mut packet[ip..ip + length]);
        let fill = |buffer: &mut [u8]| buffer.copy_from_slice(payload);
        udp.emit(&mut datagram, &ends.0, &ends.1, payload.len(), fill, &ChecksumCapabilities::ignored());
        datagram.set_checksum(0x1234);
        packet
    }

    #[test]
    fn what_smoltcp_finds_right_was_computed_right() {
        let (a4, b4) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        let emit = |bytes: &mut [u8], length| {
            let repr = Ipv4Repr {
                src_addr: a4,
                dst_addr: b4,
                next_header: IpProtocol::Udp,
                payload_len: length,
                hop_limit: 64,
            };
            repr.emit(&mut Ipv4Packet::new_unchecked(bytes), &ChecksumCapabilities::default());
        };
        let packet = udp(20, emit, (a4.into(), b4.into()));
        // Tagged, and with padding after the packet.
        let mut frame = [&[0; 12][..], &[0x81, 0, 0, 5, 8, 0], &packet].concat();
        assert!(finish_checksum(&mut frame));
        let packet = Ipv4Packet::new_checked(&frame[18..]).unwrap();
        assert!(UdpPacket::new_checked(packet.payload()).unwrap().verify_checksum(&a4.into(), &b4.into()));

        let (a6, b6) = ("2001:db8::1".parse().unwrap(), "2001:db8::2".parse().unwrap());
        let emit = |bytes: &mut [u8], length| {
            let repr = Ipv6Repr {
                src_addr: a6,
                dst_addr: b6,
                next_header: IpProtocol::Udp,
                payload_len: length,
                hop_limit: 64,
            };
            repr.emit(&mut Ipv6Packet::new_unchecked(bytes));
        };
        let mut frame = [&[0; 12][..], &[0x86, 0xdd], &udp(40, emit, (a6.into(), b6.into()))].concat();
        assert!(finish_checksum(&mut frame));
        let packet = Ipv6Packet::new_checked(&frame[14..]).unwrap();
        assert!(UdpPacket::new_checked(packet.payload()).unwrap().verify_checksum(&a6.into(), &b6.into()));
    }

    #[test]
    fn nonsense_is_left_alone() {
        for length in 0..80 {
            for fill in [0u8, 0x45, 0x81, 0xff] {
                let mut frame = vec![fill; length];
                if length > 14 {
                    frame[12..14].copy_from_slice(&[0x08, 0x00]);
                }
                let before = frame.clone();
                if !finish_checksum(&mut frame) {
                    assert_eq!(frame, before);
                }
            }
        }
    }
}
