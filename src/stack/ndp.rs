//! ARP (RFC 826, 5227) and neighbour discovery (RFC 4861): who has which address on the link. Messages only; what is
//! known is in `neighbor`.
//!
//! Nothing is asked before an address is used (RFC 4862 5.4 wants duplicates looked for: addresses here are given by
//! an operator, as static ones on a server); at the start they are announced.

use crate::egress::Arp;
use crate::ethernet;
use crate::ip::Datagram;
use crate::neighbor::{Heard, Solicit};
use crate::outbox::Reply;
use crate::route::{ALL_NODES, solicited_node};
use crate::stack::context;
use crate::{Error, Host, Instant, Mac, NeighborMode, Stack};
use alloc::vec;
use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use smoltcp::wire::{ArpHardware, ArpOperation, ArpPacket, EthernetProtocol};

const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
const SOURCE_LINK_ADDRESS: u8 = 1;
const TARGET_LINK_ADDRESS: u8 = 2;
const SOLICITED: u8 = 0x40;
const OVERRIDE: u8 = 0x20;
/// RFC 4861 6.1, 7.1: whoever forwarded it would have lowered it, so it is from this link.
const ON_LINK_TTL: u8 = 255;

impl Stack {
    /// Queues the frames that tell the link which addresses are ours: RFC 5227 2.3, RFC 4861 7.2.6.
    pub(crate) fn announce(&mut self) {
        let addresses: Vec<_> = self.routes.addresses().collect();
        for address in addresses {
            match address {
                IpAddr::V4(v4) => {
                    self.push_arp(Arp { request: true, source: v4, target: v4, target_mac: None });
                }
                IpAddr::V6(v6) => self.advertise(v6, ALL_NODES, OVERRIDE),
            }
        }
    }

    fn push_arp(&mut self, arp: Arp) {
        if self.arps.len() < self.config.limits.outbox {
            self.arps.push_back(arp);
        } else {
            self.counters.drop_queue_full += 1;
        }
    }

    pub(crate) fn handle_arp(&mut self, now: Instant, packet: &[u8]) {
        self.counters.arp_in += 1;
        if self.config.neighbor_mode == NeighborMode::External {
            self.counters.drop_not_ours += 1;
            return;
        }
        let Some((operation, sender, mac, target)) = parse_arp(packet) else {
            self.malformed();
            return;
        };
        // A sender that can't be, or that claims to be us.
        if sender.is_multicast() || sender.is_loopback() || self.routes.is_broadcast(sender.into()) || mac[0] & 1 == 1 {
            self.malformed();
            return;
        }
        if self.routes.is_own(sender.into()) {
            return;
        }
        let for_us = self.routes.is_own(target.into());
        match operation {
            ArpOperation::Request if for_us => {
                self.push_arp(Arp { request: false, source: target, target: sender, target_mac: Some(mac) });
                self.heard(now, sender.into(), mac, Heard::Request);
            }
            ArpOperation::Reply if for_us => self.heard(now, sender.into(), mac, Heard::Answer),
            _ => self.heard(now, sender.into(), mac, Heard::Announcement),
        }
    }

    /// Keeps what was heard, if the address can be a neighbour's at all.
    fn heard(&mut self, now: Instant, address: IpAddr, mac: Mac, heard: Heard) {
        // RFC 5227 1.1: a probe has no address yet.
        let on_link = self.routes.lookup(address).is_some_and(|hop| hop.next_hop == address);
        if address.is_unspecified() || !on_link {
            return;
        }
        if let Some(packets) = self.neighbors.learn(now, address, mac, heard) {
            self.release(address, packets);
        }
    }

    /// Takes an ICMPv6 message of neighbour discovery, at least 8 bytes long.
    pub(crate) fn handle_ndp(&mut self, now: Instant, d: &Datagram<'_>, message: &[u8]) {
        if self.config.neighbor_mode == NeighborMode::External {
            return;
        }
        let (IpAddr::V6(source), IpAddr::V6(destination)) = (d.header.source, d.header.destination) else { return };
        // RFC 4861 7.1
        if d.loopback || d.header.ttl != ON_LINK_TTL || message[1] != 0 {
            self.malformed();
            return;
        }
        let kind = message[0];
        if !matches!(kind, SOLICITATION | ADVERTISEMENT) {
            // Routers' words: addresses and routes come from the configuration, and redirects from nobody.
            return;
        }
        let parsed = message.get(8..24).and_then(|t| <[u8; 16]>::try_from(t).ok()).map(Ipv6Addr::from).and_then(|t| {
            let wanted = if kind == SOLICITATION { SOURCE_LINK_ADDRESS } else { TARGET_LINK_ADDRESS };
            Some((t, link_address(&message[24..], wanted)?))
        });
        let Some((target, mac)) = parsed.filter(|(t, _)| !t.is_multicast()) else {
            self.malformed();
            return;
        };
        if kind == SOLICITATION {
            if source.is_unspecified() {
                // RFC 4861 7.1.1: someone asks whether the address is free.
                if mac.is_some() || destination != solicited_node(target) {
                    self.malformed();
                } else if self.routes.is_own(target.into()) {
                    self.advertise(target, ALL_NODES, OVERRIDE);
                }
                return;
            }
            if !self.routes.is_own(target.into()) {
                return;
            }
            if let Some(mac) = mac {
                self.heard(now, source.into(), mac, Heard::Request);
            }
            self.advertise(target, source, SOLICITED | OVERRIDE);
            return;
        }
        let (solicited, overriding) = (message[4] & SOLICITED != 0, message[4] & OVERRIDE != 0);
        if solicited && destination.is_multicast() {
            self.malformed();
            return;
        }
        if self.routes.is_own(target.into()) {
            return;
        }
        let known = self.neighbors.mac_of(target.into());
        match (mac.or(known), solicited, overriding) {
            (Some(mac), true, true) => self.heard(now, target.into(), mac, Heard::Answer),
            (Some(mac), true, false) => self.heard(now, target.into(), mac, Heard::WeakAnswer),
            (Some(mac), false, true) => self.heard(now, target.into(), mac, Heard::Announcement),
            // Unasked and not to override: RFC 4861 7.2.5 learns nothing from it that we would use.
            _ => {}
        }
    }

    fn advertise(&mut self, target: Ipv6Addr, to: Ipv6Addr, flags: u8) {
        let message = message(ADVERTISEMENT, flags, target, TARGET_LINK_ADDRESS, self.config.mac);
        self.send_icmp(target.into(), to.into(), 0, ON_LINK_TTL, message);
    }

    /// Does what the neighbour cache wants done: questions to the wire or the driver, bad news to who waited.
    pub(crate) fn settle_neighbors(&mut self, now: Instant, host: &mut dyn Host) {
        if self.neighbors.solicits.is_empty() && self.neighbors.failed.is_empty() {
            return;
        }
        for solicit in core::mem::take(&mut self.neighbors.solicits) {
            self.solicit(solicit);
        }
        for (address, packets) in core::mem::take(&mut self.neighbors.failed) {
            self.tcp.unreachable(context!(self, now, host), address);
            for packet in packets {
                self.counters.drop_no_neighbor += 1;
                self.undeliverable(&packet, Error::HostUnreachable);
            }
        }
    }

    fn solicit(&mut self, Solicit { address, mac }: Solicit) {
        if self.config.neighbor_mode == NeighborMode::External {
            if self.wanted.len() < self.config.limits.neighbors && !self.wanted.contains(&address) {
                self.wanted.push_back(address);
            }
            return;
        }
        match (address, self.routes.source_for(address)) {
            (IpAddr::V4(target), Some(IpAddr::V4(source))) => {
                self.push_arp(Arp { request: true, source, target, target_mac: mac });
            }
            (IpAddr::V6(target), Some(IpAddr::V6(source))) => {
                let message = message(SOLICITATION, 0, target, SOURCE_LINK_ADDRESS, self.config.mac);
                let to = if mac.is_some() { target } else { solicited_node(target) };
                self.send_icmp(source.into(), to.into(), 0, ON_LINK_TTL, message);
            }
            _ => {}
        }
    }

    /// Tells the socket that a UDP packet came from that it can't be sent (TCP hears of it by connection).
    pub(crate) fn undeliverable(&mut self, packet: &Reply, error: Error) {
        let (crate::ip::UDP, Some(ports)) = (packet.protocol, packet.payload.first_chunk::<4>()) else { return };
        let local = SocketAddr::new(packet.source, u16::from_be_bytes([ports[0], ports[1]]));
        let remote = SocketAddr::new(packet.destination, u16::from_be_bytes([ports[2], ports[3]]));
        if let Some(id) = self.udp.find(local, remote)
            && self.udp.get(id).is_ok_and(|s| s.connected.is_some())
        {
            self.udp.note_error(id, error);
        }
    }
}

/// Operation, sender, sender's MAC, target. None unless it is about IPv4 on Ethernet.
fn parse_arp(packet: &[u8]) -> Option<(ArpOperation, Ipv4Addr, Mac, Ipv4Addr)> {
    // smoltcp finds the fields by the lengths that the packet gives, so they are checked before any other.
    let p = ArpPacket::new_checked(packet).ok().filter(|p| (p.hardware_len(), p.protocol_len()) == (6, 4))?;
    if p.hardware_type() != ArpHardware::Ethernet || p.protocol_type() != EthernetProtocol::Ipv4 {
        return None;
    }
    let address = |bytes: &[u8]| <[u8; 4]>::try_from(bytes).ok().map(Ipv4Addr::from);
    let mac = p.source_hardware_addr().try_into().ok()?;
    Some((p.operation(), address(p.source_protocol_addr())?, mac, address(p.target_protocol_addr())?))
}

/// Writes an ARP packet behind the Ethernet header of `out`. Gives the frame's length.
pub(crate) fn emit_arp(out: &mut [u8], own: Mac, arp: &Arp) -> usize {
    let to = arp.target_mac.unwrap_or(ethernet::BROADCAST);
    ethernet::emit(out, own, to, ethernet::Kind::Arp);
    let mut p = ArpPacket::new_unchecked(&mut out[ethernet::HEADER..]);
    p.set_hardware_type(ArpHardware::Ethernet);
    p.set_protocol_type(EthernetProtocol::Ipv4);
    p.set_hardware_len(6);
    p.set_protocol_len(4);
    p.set_operation(if arp.request { ArpOperation::Request } else { ArpOperation::Reply });
    p.set_source_hardware_addr(&own);
    p.set_source_protocol_addr(&arp.source.octets());
    p.set_target_hardware_addr(&if arp.request { [0; 6] } else { to });
    p.set_target_protocol_addr(&arp.target.octets());
    ethernet::HEADER + 28
}

/// A solicitation or advertisement with one link-layer address option.
fn message(kind: u8, flags: u8, target: Ipv6Addr, option: u8, mac: Mac) -> Vec<u8> {
    let mut m = vec![kind, 0, 0, 0, flags, 0, 0, 0];
    m.extend_from_slice(&target.octets());
    m.extend_from_slice(&[option, 1]);
    m.extend_from_slice(&mac);
    m
}

/// Looks for a link-layer address option. None when the options are malformed: then RFC 4861 7.1 drops the message.
fn link_address(mut options: &[u8], wanted: u8) -> Option<Option<Mac>> {
    let mut found = None;
    while !options.is_empty() {
        let len = usize::from(*options.get(1)?) * 8;
        if len == 0 {
            return None;
        }
        let option = options.get(..len)?;
        if option[0] == wanted {
            found = option[2..8].try_into().ok();
        }
        options = &options[len..];
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_have_lengths() {
        let mac = [2, 0, 0, 0, 0, 7];
        let option = [1, 1, 2, 0, 0, 0, 0, 7];
        assert_eq!(link_address(&option, 1), Some(Some(mac)));
        assert_eq!(link_address(&option, 2), Some(None));
        assert_eq!(link_address(&[], 1), Some(None));
        assert_eq!(link_address(&[14, 1, 0, 0, 0, 0, 0, 0, 1, 1, 2, 0, 0, 0, 0, 7], 1), Some(Some(mac)));
        assert_eq!(link_address(&[1, 0, 2, 0, 0, 0, 0, 7], 1), None);
        assert_eq!(link_address(&[1, 2, 2, 0, 0, 0, 0, 7], 1), None);
        assert_eq!(link_address(&[1], 1), None);
    }

    #[test]
    fn arp_of_other_links_is_refused() {
        let arp = Arp { request: false, source: [10, 0, 0, 1].into(), target: [10, 0, 0, 2].into(), target_mac: None };
        let mut out = [0; 60];
        let len = emit_arp(&mut out, [2; 6], &arp);
        let packet = &out[14..len];
        let parsed = parse_arp(packet).unwrap();
        assert_eq!(parsed, (ArpOperation::Reply, arp.source, [2; 6], arp.target));
        for (at, value) in [(0, 9), (1, 9), (2, 9), (4, 8), (5, 16), (4, 0), (5, 0)] {
            let mut bad = packet.to_vec();
            bad[at] = value;
            assert_eq!(parse_arp(&bad), None, "{at}");
        }
        for len in 0..28 {
            assert_eq!(parse_arp(&packet[..len]), None);
        }
    }
}
