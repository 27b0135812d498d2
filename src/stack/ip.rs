//! IP on the way in, both families: a frame's payload becomes a checked [`Datagram`] for the protocol above it. Also
//! the headers on the way out.
//!
//! Dropped here: lengths that don't fit, bad header checksums, source routes, and addresses that no honest packet from
//! a wire has (RFC 1122 3.2.1.3): our own or a group's as a source, loopback on either side.

use crate::ethernet::{self, Kind};
use crate::fragment::{Key, Outcome, Piece, Whole};
use crate::stack::context;
use crate::tcp::{SegmentMeta, Verdict as TcpVerdict};
use crate::{Host, Instant, Stack, Unknown, Verdict, checksum, icmp};
use core::net::{IpAddr, SocketAddr};
use smoltcp::wire::{IpProtocol, Ipv4Packet, Ipv6Packet};

pub(crate) const ICMP: u8 = 1;
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const ICMPV6: u8 = 58;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const NO_NEXT_HEADER: u8 = 59;
const DESTINATION_OPTIONS: u8 = 60;
/// IPv6 headers between the first and the transport's. Honest packets have three at most.
const MAX_EXTENSIONS: usize = 8;
/// RFC 1700; Linux uses the same.
pub(crate) const DEFAULT_TTL: u8 = 64;
/// Header and payload together.
pub(crate) const MAX_PACKET: usize = 65_535;

/// What an IP header says, in or out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub protocol: u8,
    /// DSCP and ECN.
    pub tos: u8,
    /// Out: 0 for the default.
    pub ttl: u8,
}

/// A packet that came, without its payload.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Datagram<'a> {
    pub header: Header,
    /// To a broadcast or multicast address, of IP or of the link: never answered with errors (RFC 1122 3.2.2).
    pub group: bool,
    /// From ourselves: no wire has touched it, so checksums say nothing.
    pub loopback: bool,
    /// The packet as it came, for ICMP errors to quote. Empty: it came in fragments, or through no wire.
    pub original: &'a [u8],
}

/// Cuts an IPv4 packet into the fragments of one datagram: where one lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cut {
    pub offset: usize,
    pub more: bool,
    pub id: u32,
}

/// Bytes of the header that [`emit_header`] writes.
pub(crate) const fn header_len(to: IpAddr, cut: bool) -> usize {
    match to {
        IpAddr::V4(_) => 20,
        IpAddr::V6(_) if cut => 48,
        IpAddr::V6(_) => 40,
    }
}

/// Writes the header of a packet with `len` bytes of payload to the front of `out`. `id` is for IPv4 packets that may
/// be fragmented; None sets "don't fragment" (RFC 6864 4.1: then the ID means nothing). Gives the header's length.
/// Source and destination are of one family, or nothing is written.
pub(crate) fn emit_header(out: &mut [u8], h: &Header, len: usize, id: Option<u16>, cut: Option<Cut>) -> usize {
    let ttl = if h.ttl == 0 { DEFAULT_TTL } else { h.ttl };
    #[allow(clippy::cast_possible_truncation, reason = "callers keep packets below 64 KiB")]
    match (h.source, h.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            // RFC 791 3.1: the ID, then a bit that says "don't fragment" and one that more follow, then the place.
            let (id, place) = match (cut, id) {
                (Some(cut), _) => (cut.id as u16, u16::from(cut.more) << 13 | (cut.offset >> 3) as u16),
                (None, Some(id)) => (id, 0),
                (None, None) => (0, 1 << 14),
            };
            let mut p = [0; 20];
            p[0] = 0x45;
            p[1] = h.tos;
            p[2..4].copy_from_slice(&((20 + len) as u16).to_be_bytes());
            p[4..6].copy_from_slice(&id.to_be_bytes());
            p[6..8].copy_from_slice(&place.to_be_bytes());
            p[8] = ttl;
            p[9] = h.protocol;
            p[12..16].copy_from_slice(&source.octets());
            p[16..].copy_from_slice(&destination.octets());
            let checksum = checksum::finish(checksum::sum(&p));
            p[10..12].copy_from_slice(&checksum.to_be_bytes());
            out[..20].copy_from_slice(&p);
            20
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let extension = if cut.is_some() { 8 } else { 0 };
            if let Some(cut) = cut {
                // RFC 8200 4.5
                out[40] = h.protocol;
                out[41] = 0;
                out[42..44].copy_from_slice(&(cut.offset as u16 & !7 | u16::from(cut.more)).to_be_bytes());
                out[44..48].copy_from_slice(&cut.id.to_be_bytes());
            }
            let mut p = Ipv6Packet::new_unchecked(out);
            p.set_version(6);
            p.set_traffic_class(h.tos);
            p.set_flow_label(0);
            p.set_payload_len((extension + len) as u16);
            p.set_next_header(IpProtocol::from(if cut.is_some() { FRAGMENT } else { h.protocol }));
            p.set_hop_limit(ttl);
            p.set_src_addr(source);
            p.set_dst_addr(destination);
            40 + extension
        }
        _ => 0,
    }
}

impl Stack {
    /// Takes a frame from the wire.
    pub fn handle_frame(&mut self, now: Instant, frame: &[u8], host: &mut dyn Host, unknown: Unknown) -> Verdict {
        self.now = now;
        self.counters.frames_in += 1;
        self.counters.bytes_in += frame.len() as u64;
        let incoming = match ethernet::parse(self.config.mac, frame) {
            Ok(incoming) => incoming,
            Err(ethernet::Refused::Malformed) => return self.malformed(),
            Err(ethernet::Refused::NotOurs) => return self.not_ours(),
        };
        let verdict = match incoming.kind {
            Kind::Arp => {
                self.handle_arp(now, incoming.payload);
                Verdict::Handled
            }
            Kind::Ipv4 => self.handle_ipv4(now, incoming.payload, incoming.group, host, unknown),
            Kind::Ipv6 => self.handle_ipv6(now, incoming.payload, incoming.group, host, unknown),
        };
        if verdict != Verdict::Handled {
            // Whoever takes it from here counts it.
            self.counters.frames_in -= 1;
            self.counters.bytes_in -= frame.len() as u64;
        }
        verdict
    }

    /// A fuzzer can't guess checksums: in its builds all of them are right, as smoltcp has it for the other protocols.
    const fn checks_sums(&self) -> bool {
        self.config.checksums && !cfg!(fuzzing)
    }

    pub(crate) const fn malformed(&mut self) -> Verdict {
        self.counters.drop_malformed += 1;
        Verdict::Handled
    }

    const fn not_ours(&mut self) -> Verdict {
        self.counters.drop_not_ours += 1;
        Verdict::Handled
    }

    fn handle_ipv4(
        &mut self,
        now: Instant,
        packet: &[u8],
        group: bool,
        host: &mut dyn Host,
        unknown: Unknown,
    ) -> Verdict {
        let Ok(p) = Ipv4Packet::new_checked(packet) else { return self.malformed() };
        if p.version() != 4 {
            return self.malformed();
        }
        let header = &packet[..usize::from(p.header_len())];
        if self.checks_sums() && checksum::finish(checksum::sum(header)) != 0 {
            self.counters.drop_checksum += 1;
            return Verdict::Handled;
        }
        // Ethernet pads short frames: the packet ends where its header says.
        let original = &packet[..usize::from(p.total_len())];
        let (options, payload) = original[20..].split_at(usize::from(p.header_len()) - 20);
        if !options_are_harmless(options) {
            return self.malformed();
        }
        let header = Header {
            source: p.src_addr().into(),
            destination: p.dst_addr().into(),
            protocol: p.next_header().into(),
            tos: p.dscp() << 2 | p.ecn(),
            ttl: p.hop_limit(),
        };
        let group = match self.admit(&header, group) {
            Ok(group) => group,
            Err(verdict) => return verdict,
        };
        let d = Datagram { header, group, loopback: false, original };
        if p.more_frags() || p.frag_offset() != 0 {
            let id = u32::from(p.ident());
            return self.handle_fragment(
                now,
                &d,
                (id, usize::from(p.frag_offset()), p.more_frags()),
                payload,
                host,
                unknown,
            );
        }
        self.deliver(now, &d, payload, host, unknown)
    }

    /// Whether addresses are ones that a packet from the wire may have, and if so whether it came to a group.
    fn admit(&mut self, h: &Header, group: bool) -> Result<bool, Verdict> {
        let (source, destination) = (h.source, h.destination);
        let unspecified = source.is_unspecified();
        // RFC 4861 7.1.1: looking for duplicates is done without an address. DHCP too, but nothing here serves it.
        let probing = unspecified && h.protocol == ICMPV6 && destination.is_multicast();
        let bad_source = source.is_multicast()
            || source.is_loopback()
            || (unspecified && !probing)
            || self.routes.is_broadcast(source)
            // LAND, and everything else in our name.
            || self.routes.is_own(source)
            || is_mapped(source)
            || is_mapped(destination)
            || destination.is_loopback();
        if bad_source {
            return Err(self.malformed());
        }
        if self.routes.is_own(destination) {
            return Ok(group);
        }
        let ours = if destination.is_multicast() {
            self.routes.in_group(destination)
        } else {
            self.routes.is_broadcast(destination)
        };
        if ours { Ok(true) } else { Err(self.not_ours()) }
    }

    fn handle_ipv6(
        &mut self,
        now: Instant,
        packet: &[u8],
        group: bool,
        host: &mut dyn Host,
        unknown: Unknown,
    ) -> Verdict {
        let Ok(p) = Ipv6Packet::new_checked(packet) else { return self.malformed() };
        if p.version() != 6 {
            return self.malformed();
        }
        let original = &packet[..p.total_len()];
        let mut header = Header {
            source: p.src_addr().into(),
            destination: p.dst_addr().into(),
            protocol: p.next_header().into(),
            tos: p.traffic_class(),
            ttl: p.hop_limit(),
        };
        let mut payload = &original[40..];
        let piece;
        match walk(header.protocol, payload) {
            Ok(walked) => {
                header.protocol = walked.protocol;
                payload = &payload[walked.offset..];
                piece = walked.piece;
            }
            Err(Stop::Drop) => return self.malformed(),
            Err(Stop::Unknown { at, code }) => {
                let group = match self.admit(&header, group) {
                    Ok(group) => group,
                    Err(verdict) => return verdict,
                };
                self.counters.drop_not_ours += 1;
                let d = Datagram { header, group, loopback: false, original };
                #[allow(clippy::cast_possible_truncation, reason = "a packet is shorter than 64 KiB")]
                self.icmp_error(now, &d, &[], icmp::Report::Parameter { code, pointer: 40 + at as u32 });
                return Verdict::Handled;
            }
        }
        let group = match self.admit(&header, group) {
            Ok(group) => group,
            Err(verdict) => return verdict,
        };
        let d = Datagram { header, group, loopback: false, original };
        match piece {
            None => self.deliver(now, &d, payload, host, unknown),
            Some(piece) => self.handle_fragment(now, &d, piece, payload, host, unknown),
        }
    }

    /// `(id, offset, more)` is the fragment's place.
    fn handle_fragment(
        &mut self,
        now: Instant,
        d: &Datagram<'_>,
        (id, offset, more): (u32, usize, bool),
        data: &[u8],
        host: &mut dyn Host,
        unknown: Unknown,
    ) -> Verdict {
        let Header { source, destination, protocol, tos, ttl } = d.header;
        let key = Key { source, destination, protocol, id };
        match self.reassembly.add(now, key, &Piece { offset, more, tos, ttl, data }) {
            Outcome::Waiting => Verdict::Handled,
            Outcome::Dropped => {
                self.counters.drop_fragment += 1;
                Verdict::Handled
            }
            Outcome::Whole(whole) => self.handle_whole(now, whole, d.group, host, unknown),
        }
    }

    fn handle_whole(
        &mut self,
        now: Instant,
        whole: Whole,
        group: bool,
        host: &mut dyn Host,
        unknown: Unknown,
    ) -> Verdict {
        let mut header = Header {
            source: whole.key.source,
            destination: whole.key.destination,
            protocol: whole.key.protocol,
            tos: whole.tos,
            ttl: whole.ttl,
        };
        let mut payload = &whole.payload[..];
        if header.destination.is_ipv4() && payload.len() + 20 > MAX_PACKET {
            self.counters.drop_fragment += 1;
            return Verdict::Handled;
        }
        if header.destination.is_ipv6() {
            // Destination options may stand behind the fragment header; another fragment header may not.
            match walk(header.protocol, payload) {
                Ok(w) if w.piece.is_none() => {
                    header.protocol = w.protocol;
                    payload = &payload[w.offset..];
                }
                _ => return self.malformed(),
            }
        }
        let d = Datagram { header, group, loopback: false, original: &[] };
        let verdict = self.deliver(now, &d, payload, host, unknown);
        self.keep_stray(&d.header, payload, verdict)
    }

    /// Gives up datagrams whose fragments did not all come in time.
    pub(crate) fn expire_fragments(&mut self, now: Instant) {
        while let Some(whole) = self.reassembly.expire(now) {
            self.counters.drop_fragment += 1;
            let Key { source, destination, protocol, .. } = whole.key;
            // RFC 792: only who sent the first fragment hears of it. No errors about ICMP, which may be errors.
            if whole.payload.is_empty() || matches!(protocol, ICMP | ICMPV6) {
                continue;
            }
            let header = Header { source, destination, protocol, tos: whole.tos, ttl: whole.ttl };
            let group = !self.routes.is_own(destination);
            let d = Datagram { header, group, loopback: false, original: &[] };
            self.icmp_error(now, &d, &whole.payload, icmp::Report::FragmentsMissing);
        }
    }

    /// Hands a whole datagram to the protocol above.
    pub(crate) fn deliver(
        &mut self,
        now: Instant,
        d: &Datagram<'_>,
        payload: &[u8],
        host: &mut dyn Host,
        unknown: Unknown,
    ) -> Verdict {
        match d.header.protocol {
            TCP => self.handle_tcp(now, d, payload, host, unknown),
            UDP => self.handle_udp(now, d, payload, host, unknown),
            ICMP if d.header.destination.is_ipv4() => self.handle_icmp(now, d, payload, host, unknown),
            ICMPV6 if d.header.destination.is_ipv6() => self.handle_icmp(now, d, payload, host, unknown),
            NO_NEXT_HEADER => Verdict::Handled,
            _ => {
                self.icmp_error(now, d, payload, icmp::Report::ProtocolUnreachable);
                self.not_ours()
            }
        }
    }

    fn handle_tcp(
        &mut self,
        now: Instant,
        d: &Datagram<'_>,
        segment: &[u8],
        host: &mut dyn Host,
        unknown: Unknown,
    ) -> Verdict {
        let Header { source, destination, tos, ttl, .. } = d.header;
        // RFC 1122 4.2.3.10: connections are with one peer.
        if d.group || segment.len() < 20 {
            return self.malformed();
        }
        if self.config.checksums && !d.loopback && checksum::transport(source, destination, TCP, segment) != 0 {
            self.counters.drop_checksum += 1;
            return Verdict::Handled;
        }
        let meta = SegmentMeta { source, destination, tos, ttl };
        let answer = unknown == Unknown::Answer;
        match self.tcp.handle_segment(context!(self, now, host), &meta, segment, answer) {
            TcpVerdict::Handled => Verdict::Handled,
            TcpVerdict::Unknown => elsewhere(TCP, d, segment),
        }
    }
}

/// The verdict for a transport packet of at least 4 bytes that no one here wants.
pub(crate) fn elsewhere(protocol: u8, d: &Datagram<'_>, segment: &[u8]) -> Verdict {
    let port = |at: usize| u16::from_be_bytes([segment[at], segment[at + 1]]);
    let remote = SocketAddr::new(d.header.source, port(0));
    let local = SocketAddr::new(d.header.destination, port(2));
    elsewhere_flow(protocol, local, remote)
}

/// The verdict for something of a flow that no one here knows.
pub(crate) fn elsewhere_flow(protocol: u8, local: SocketAddr, remote: SocketAddr) -> Verdict {
    let mut hash = 0x811c_9dc5_u32;
    for side in [remote, local] {
        let address = match side.ip() {
            IpAddr::V4(v4) => u128::from(u32::from(v4)),
            IpAddr::V6(v6) => u128::from(v6),
        };
        for word in [address >> 96, address >> 64, address >> 32, address, u128::from(side.port())] {
            #[allow(clippy::cast_possible_truncation, reason = "32 bits at a time")]
            let word = word as u32;
            hash = (hash ^ word).wrapping_mul(0x9e37_79b1).rotate_left(13);
        }
    }
    Verdict::Elsewhere { protocol, local_port: local.port(), hash: hash ^ hash >> 16 }
}

/// ::ffff:0:0/96 never goes over a wire (RFC 4291 2.5.5.2); who lets it in lets IPv4 filters be passed.
const fn is_mapped(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some())
}

/// Whether IPv4 options are well-formed and without a source route (RFC 7126 4.3, 4.4).
fn options_are_harmless(mut options: &[u8]) -> bool {
    while let Some(&kind) = options.first() {
        match kind {
            0 => return true,
            1 => options = &options[1..],
            131 | 137 => return false,
            _ => match options.get(1) {
                Some(&len) if len >= 2 && usize::from(len) <= options.len() => options = &options[usize::from(len)..],
                _ => return false,
            },
        }
    }
    true
}

/// Where a chain of IPv6 headers led.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Walked {
    pub protocol: u8,
    /// Bytes of extension headers.
    pub offset: usize,
    /// A fragment header: id, offset, more. The walk ends behind it.
    pub piece: Option<(u32, usize, bool)>,
}

/// Why a chain leads nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    Drop,
    /// RFC 4443 3.4: answered with a parameter problem of this code, pointing `at` a byte behind the IPv6 header.
    Unknown {
        at: usize,
        code: u8,
    },
}

/// Walks IPv6 extension headers (RFC 8200 4), a bounded number of them.
pub(crate) fn walk(first: u8, chain: &[u8]) -> Result<Walked, Stop> {
    let mut protocol = first;
    let mut offset = 0;
    let mut fragmented = false;
    for n in 0..=MAX_EXTENSIONS {
        let rest = &chain[offset..];
        match protocol {
            HOP_BY_HOP | DESTINATION_OPTIONS | ROUTING => {
                // Options of every hop stand first or nowhere.
                if protocol == HOP_BY_HOP && n != 0 {
                    return Err(Stop::Drop);
                }
                let len = (usize::from(*rest.get(1).ok_or(Stop::Drop)?) + 1) * 8;
                let body = rest.get(..len).ok_or(Stop::Drop)?;
                if protocol == ROUTING {
                    // RFC 8200 4.4: with no segments left it says nothing. Type 0 is abandoned (RFC 5095), and as an
                    // end node we forward by no other.
                    if body[2] == 0 || body[3] != 0 {
                        return Err(Stop::Drop);
                    }
                } else {
                    check_options(body).map_err(|stop| match stop {
                        Stop::Unknown { at, code } => Stop::Unknown { at: at + offset, code },
                        Stop::Drop => Stop::Drop,
                    })?;
                }
                protocol = body[0];
                offset += len;
            }
            FRAGMENT => {
                let h = rest.get(..8).ok_or(Stop::Drop)?;
                let place = u16::from_be_bytes([h[2], h[3]]);
                let id = u32::from_be_bytes([h[4], h[5], h[6], h[7]]);
                let piece = (id, usize::from(place & !7), place & 1 == 1);
                if fragmented {
                    return Err(Stop::Drop);
                }
                // RFC 6946: this fragment is the whole datagram, so the walk goes on behind it.
                if (piece.1, piece.2) == (0, false) {
                    fragmented = true;
                    protocol = h[0];
                    offset += 8;
                    continue;
                }
                return Ok(Walked { protocol: h[0], offset: offset + 8, piece: Some(piece) });
            }
            _ => return Ok(Walked { protocol, offset, piece: None }),
        }
    }
    Err(Stop::Drop)
}

/// RFC 8200 4.2: options that are not known say by their two highest bits what to do.
fn check_options(header: &[u8]) -> Result<(), Stop> {
    let mut at = 2;
    while let Some(&kind) = header.get(at) {
        if kind == 0 {
            at += 1;
            continue;
        }
        let len = usize::from(*header.get(at + 1).ok_or(Stop::Drop)?);
        if at + 2 + len > header.len() {
            return Err(Stop::Drop);
        }
        // PadN, and router alert (RFC 2711), which asks routers only.
        if !matches!(kind, 1 | 5) {
            match kind >> 6 {
                0 => {}
                1 => return Err(Stop::Drop),
                // To groups only 10 is answered, 11 is not; icmp_error answers neither.
                _ => return Err(Stop::Unknown { at, code: 2 }),
            }
        }
        at += 2 + len;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::ALL_NODES;

    #[test]
    fn chains_end_somewhere() {
        let hop = [60, 0, 1, 4, 0, 0, 0, 0];
        let destination = [17, 0, 1, 4, 0, 0, 0, 0];
        let chain = [hop, destination].concat();
        assert_eq!(walk(HOP_BY_HOP, &chain), Ok(Walked { protocol: UDP, offset: 16, piece: None }));
        // Hop-by-hop options in second place; a routing header of type 0; one with segments left.
        assert_eq!(walk(DESTINATION_OPTIONS, &[0, 0, 1, 4, 0, 0, 0, 0, 17, 0, 1, 4, 0, 0, 0, 0]), Err(Stop::Drop));
        assert_eq!(walk(ROUTING, &[17, 0, 0, 0, 0, 0, 0, 0]), Err(Stop::Drop));
        assert_eq!(walk(ROUTING, &[17, 0, 4, 1, 0, 0, 0, 0]), Err(Stop::Drop));
        assert_eq!(walk(ROUTING, &[17, 0, 4, 0, 0, 0, 0, 0]).map(|w| w.protocol), Ok(UDP));
        // Headers past the end, and more than anybody needs.
        assert_eq!(walk(HOP_BY_HOP, &[17, 1, 1, 4, 0, 0, 0, 0]), Err(Stop::Drop));
        assert_eq!(walk(HOP_BY_HOP, &[17]), Err(Stop::Drop));
        let many = [60, 0, 1, 4, 0, 0, 0, 0].repeat(100);
        assert_eq!(walk(DESTINATION_OPTIONS, &many), Err(Stop::Drop));
        let fragments = [44, 0, 0, 0, 0, 0, 0, 0].repeat(1000);
        assert_eq!(walk(FRAGMENT, &fragments), Err(Stop::Drop));
        let mixed = [[44, 0, 1, 4, 0, 0, 0, 0], [60, 0, 0, 0, 0, 0, 0, 0]].concat().repeat(1000);
        assert_eq!(walk(DESTINATION_OPTIONS, &mixed), Err(Stop::Drop));
    }

    #[test]
    fn options_say_what_to_do_with_them() {
        let with = |kind: u8| [17, 0, kind, 2, 0, 0, 1, 0];
        assert!(walk(DESTINATION_OPTIONS, &with(0x1e)).is_ok());
        assert_eq!(walk(DESTINATION_OPTIONS, &with(0x5e)), Err(Stop::Drop));
        assert_eq!(walk(DESTINATION_OPTIONS, &with(0x9e)), Err(Stop::Unknown { at: 2, code: 2 }));
        assert_eq!(walk(DESTINATION_OPTIONS, &[17, 0, 0x1e, 9, 0, 0, 0, 0]), Err(Stop::Drop));
        assert!(options_are_harmless(&[1, 1, 7, 3, 4, 0]));
        assert!(!options_are_harmless(&[131, 7, 4, 1, 2, 3, 4, 0]));
        assert!(!options_are_harmless(&[7, 0, 0, 0]) && !options_are_harmless(&[7]) && !options_are_harmless(&[7, 9]));
    }

    #[test]
    fn headers_that_we_write_can_be_read() {
        let h = Header {
            source: [10, 0, 0, 1].into(),
            destination: [10, 0, 0, 2].into(),
            protocol: UDP,
            tos: 0xb9,
            ttl: 0,
        };
        let mut out = [0xaa; 64];
        assert_eq!(emit_header(&mut out, &h, 44, None, Some(Cut { offset: 1480, more: true, id: 0x1_2345 })), 20);
        let p = Ipv4Packet::new_checked(&out).unwrap();
        assert!(p.verify_checksum() && p.more_frags() && !p.dont_frag());
        assert_eq!((p.frag_offset(), p.ident(), p.dscp() << 2 | p.ecn(), p.hop_limit()), (1480, 0x2345, 0xb9, 64));
        let h = Header { source: ALL_NODES.into(), destination: ALL_NODES.into(), ..h };
        let mut out = [0xaa; 64];
        assert_eq!(emit_header(&mut out, &h, 16, None, Some(Cut { offset: 1448, more: true, id: 7 })), 48);
        let p = Ipv6Packet::new_checked(&out).unwrap();
        assert_eq!(p.traffic_class(), 0xb9);
        let w = walk(p.next_header().into(), p.payload()).unwrap();
        assert_eq!(w, Walked { protocol: UDP, offset: 8, piece: Some((7, 1448, true)) });
    }
}
