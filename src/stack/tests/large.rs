//! Packets of several segments, cut as a device would cut them.

use super::sockets::echo;
use super::*;
use crate::Large;
use smoltcp::wire::{Ipv4Packet, Ipv6Packet, TcpPacket};

/// What the device makes of one packet: each frame with its lengths, number, flags and checksums.
pub(super) fn cut(packet: &[u8], large: &Large) -> Vec<Vec<u8>> {
    assert_eq!(packet.len(), large.len);
    let (headers, transport) = (usize::from(large.headers), usize::from(large.transport));
    let payload = &packet[headers..];
    assert_eq!(payload.len(), usize::from(large.segment) * usize::from(large.frames));
    let pieces: Vec<&[u8]> = payload.chunks(large.segment.into()).collect();
    let mut frames = Vec::new();
    for (i, piece) in pieces.iter().enumerate() {
        let mut frame = packet[..headers].to_vec();
        frame.extend_from_slice(piece);
        let ends = if large.ipv6 {
            let mut ip = Ipv6Packet::new_unchecked(&mut frame[14..transport]);
            ip.set_payload_len(u16::try_from(headers - transport + piece.len()).unwrap());
            (ip.src_addr().into(), ip.dst_addr().into())
        } else {
            let mut ip = Ipv4Packet::new_unchecked(&mut frame[14..transport]);
            ip.set_total_len(u16::try_from(headers - 14 + piece.len()).unwrap());
            ip.fill_checksum();
            (ip.src_addr().into(), ip.dst_addr().into())
        };
        // The field has the pseudo-header's sum for the whole, which a device adjusts: with the complement of that in its
        // place the checksum of the whole comes out right.
        let mut whole = packet[transport..].to_vec();
        let sum = TcpPacket::new_unchecked(&whole[..]).checksum();
        TcpPacket::new_unchecked(&mut whole[..]).fill_checksum(&ends.0, &ends.1);
        let zeroed = {
            let mut zeroed = packet[transport..].to_vec();
            TcpPacket::new_unchecked(&mut zeroed[..]).set_checksum(0);
            zeroed
        };
        assert_eq!(add(sum, words(&zeroed)), !TcpPacket::new_unchecked(&whole[..]).checksum(), "pseudo-header");
        let mut tcp = TcpPacket::new_unchecked(&mut frame[transport..]);
        tcp.set_seq_number(tcp.seq_number() + i * piece.len());
        tcp.set_psh(tcp.psh() && i + 1 == pieces.len());
        tcp.fill_checksum(&ends.0, &ends.1);
        frames.push(frame);
    }
    frames
}

fn words(bytes: &[u8]) -> u16 {
    let mut padded = bytes.to_vec();
    padded.resize(bytes.len().next_multiple_of(2), 0);
    padded.chunks(2).fold(0, |sum, word| add(sum, u16::from_be_bytes([word[0], word[1]])))
}

/// One's complement.
const fn add(a: u16, b: u16) -> u16 {
    let (sum, carry) = a.overflowing_add(b);
    sum + carry as u16
}

#[test]
fn what_a_device_cuts_arrives_like_anything_else() {
    for remote in ["10.0.0.2:80", "[2001:db8::2]:80"] {
        let mut net = Net::new();
        net.nodes.iter_mut().for_each(|n| n.cuts = true);
        echo(&mut net, A, at(remote), 1 << 20);
        for n in &net.nodes {
            let c = n.stack.counters();
            assert_eq!((c.drop_checksum, c.drop_malformed, c.drop_no_neighbor, c.tcp_retransmits), (0, 0, 0, 0));
            assert!(n.large > 20, "{remote}: only {} large packets", n.large);
        }
        let sent = [A, B].map(|n| net.log.iter().filter(|(from, _)| *from == n).count() as u64);
        assert_eq!(sent, [A, B].map(|n| net.nodes[n].stack.counters().frames_out), "each frame is counted");
        let of = |n| net.log.iter().filter(move |(from, _)| *from == n);
        let bytes = [A, B].map(|n| of(n).map(|(_, f)| f.len() as u64).sum::<u64>());
        assert_eq!(bytes, [A, B].map(|n| net.nodes[n].stack.counters().bytes_out));
        assert!(net.log.iter().all(|(_, f)| f.len() <= 1514));
    }
}
