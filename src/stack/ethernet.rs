//! Ethernet II: the outermost header. Tagged frames (802.1Q) are not ours.

use crate::Mac;
use core::net::IpAddr;
use smoltcp::wire::{EthernetAddress, EthernetFrame, EthernetProtocol};

/// Bytes of the header.
pub(crate) const HEADER: usize = 14;
/// All ones.
pub(crate) const BROADCAST: Mac = [0xff; 6];

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Arp,
    Ipv4,
    Ipv6,
}

/// A frame that is for us.
#[derive(Debug)]
pub(crate) struct Incoming<'a> {
    pub kind: Kind,
    /// It came to a broadcast or multicast address.
    pub group: bool,
    pub payload: &'a [u8],
}

/// Why a frame goes no further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    Malformed,
    NotOurs,
}

/// Takes the header off a frame that is addressed to `own`, or to a group.
pub(crate) fn parse(own: Mac, frame: &[u8]) -> Result<Incoming<'_>, Refused> {
    let frame = EthernetFrame::new_checked(frame).map_err(|_| Refused::Malformed)?;
    let destination = frame.dst_addr();
    let group = !destination.is_unicast();
    if !group && destination.0 != own {
        return Err(Refused::NotOurs);
    }
    // 802.3: a source is never a group. Answering one would reach everybody.
    if frame.src_addr().is_multicast() {
        return Err(Refused::Malformed);
    }
    let kind = match frame.ethertype() {
        EthernetProtocol::Arp => Kind::Arp,
        EthernetProtocol::Ipv4 => Kind::Ipv4,
        EthernetProtocol::Ipv6 => Kind::Ipv6,
        EthernetProtocol::Unknown(_) => return Err(Refused::NotOurs),
    };
    Ok(Incoming { kind, group, payload: frame.payload() })
}

/// Writes the header to the front of `out`, which has at least [`HEADER`] bytes.
pub(crate) fn emit(out: &mut [u8], source: Mac, destination: Mac, kind: Kind) {
    let mut frame = EthernetFrame::new_unchecked(out);
    frame.set_src_addr(EthernetAddress(source));
    frame.set_dst_addr(EthernetAddress(destination));
    frame.set_ethertype(match kind {
        Kind::Arp => EthernetProtocol::Arp,
        Kind::Ipv4 => EthernetProtocol::Ipv4,
        Kind::Ipv6 => EthernetProtocol::Ipv6,
    });
}

/// The Ethernet address of a multicast group: RFC 1112 6.4 and RFC 2464 7.
pub(crate) const fn group_mac(group: IpAddr) -> Mac {
    match group {
        IpAddr::V4(v4) => {
            let [_, b, c, d] = v4.octets();
            [0x01, 0x00, 0x5e, b & 0x7f, c, d]
        }
        IpAddr::V6(v6) => {
            let o = v6.octets();
            [0x33, 0x33, o[12], o[13], o[14], o[15]]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    const OWN: Mac = [2, 0, 0, 0, 0, 1];

    fn frame(destination: Mac, source: Mac, ethertype: u16) -> Vec<u8> {
        let mut f = Vec::new();
        f.extend_from_slice(&destination);
        f.extend_from_slice(&source);
        f.extend_from_slice(&ethertype.to_be_bytes());
        f.extend_from_slice(&[0; 46]);
        f
    }

    #[test]
    fn only_frames_for_us() {
        let peer = [2, 0, 0, 0, 0, 2];
        let get = |d, s, e| parse(OWN, &frame(d, s, e)).map(|i| (i.kind, i.group));
        assert_eq!(get(OWN, peer, 0x0800), Ok((Kind::Ipv4, false)));
        assert_eq!(get(BROADCAST, peer, 0x0806), Ok((Kind::Arp, true)));
        assert_eq!(get(OWN, peer, 0x86dd), Ok((Kind::Ipv6, false)));
        assert_eq!(get([2, 0, 0, 0, 0, 9], peer, 0x0800), Err(Refused::NotOurs));
        assert_eq!(get(OWN, BROADCAST, 0x0800), Err(Refused::Malformed));
        assert_eq!(get(OWN, peer, 0x8100), Err(Refused::NotOurs), "a VLAN tag");
        assert_eq!(parse(OWN, &frame(OWN, peer, 0x0800)[..13]).err(), Some(Refused::Malformed));
    }

    #[test]
    fn groups_have_their_macs() {
        assert_eq!(group_mac("224.129.2.3".parse().unwrap()), [1, 0, 0x5e, 1, 2, 3]);
        assert_eq!(group_mac("ff02::1:ff12:3456".parse().unwrap()), [0x33, 0x33, 0xff, 0x12, 0x34, 0x56]);
    }
}
