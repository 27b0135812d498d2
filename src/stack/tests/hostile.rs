//! Frames that no honest peer sends.

use super::*;
use crate::TcpOptions;
use proptest::prelude::*;
use smoltcp::wire::{IpProtocol, Ipv4Packet, Ipv6Packet, UdpPacket};

const NOW: Instant = Instant::from_millis(50_000);

fn node(checksums: bool) -> Node {
    let mut config = config(B);
    config.checksums = checksums;
    let mut node = Node::new(config);
    node.frames(NOW);
    node.stack.udp_open(Token(2), at_any(7), false).unwrap();
    node.stack.tcp_listen(Token(3), at_any(80), 16, CAPACITY, TcpOptions::default(), false).unwrap();
    node
}

fn framed(ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut f = [&mac(B)[..], &mac(A)[..], &ethertype.to_be_bytes()[..]].concat();
    f.extend_from_slice(payload);
    f
}

fn v4(source: [u8; 4], destination: [u8; 4], protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut p = vec![0; 20 + payload.len()];
    p[20..].copy_from_slice(payload);
    let mut h = Ipv4Packet::new_unchecked(&mut p);
    h.set_version(4);
    h.set_header_len(20);
    h.set_total_len(u16::try_from(20 + payload.len()).unwrap());
    h.set_hop_limit(64);
    h.set_next_header(IpProtocol::from(protocol));
    h.set_src_addr(source.into());
    h.set_dst_addr(destination.into());
    h.fill_checksum();
    framed(0x0800, &p)
}

fn v6(source: &str, destination: &str, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut p = vec![0; 40 + payload.len()];
    p[40..].copy_from_slice(payload);
    let mut h = Ipv6Packet::new_unchecked(&mut p);
    h.set_version(6);
    h.set_payload_len(u16::try_from(payload.len()).unwrap());
    h.set_hop_limit(64);
    h.set_next_header(IpProtocol::from(protocol));
    h.set_src_addr(source.parse().unwrap());
    h.set_dst_addr(destination.parse().unwrap());
    framed(0x86dd, &p)
}

fn udp(port: u16, len: usize) -> Vec<u8> {
    let mut p = vec![0; 8 + len];
    let mut h = UdpPacket::new_unchecked(&mut p);
    h.set_src_port(5555);
    h.set_dst_port(port);
    h.set_len(u16::try_from(8 + len).unwrap());
    p
}

const PEER: [u8; 4] = [10, 0, 0, 1];
const OWN: [u8; 4] = [10, 0, 0, 2];

#[test]
fn padding_is_cut_off_and_short_packets_are_dropped() {
    let mut n = node(true);
    let good = v4(PEER, OWN, 17, &udp(7, 3));
    let mut padded = good.clone();
    padded.resize(60, 0xee);
    n.frame(NOW, &padded);
    assert_eq!(n.memory.datagrams.pop().unwrap().2, [0; 3]);
    for len in 0..good.len() {
        n.frame(NOW, &good[..len]);
    }
    assert!(n.memory.datagrams.is_empty());
    assert_eq!(n.stack.counters().drop_malformed, good.len() as u64);
}

#[test]
fn headers_with_wrong_numbers() {
    // Byte of the IP header, value, which counter.
    let cases: [(usize, u8); 8] = [(0, 0x44), (0, 0x4f), (0, 0x65), (0, 0x40), (2, 0x7f), (3, 19), (3, 0), (0, 0x05)];
    for (at, value) in cases {
        let mut n = node(false);
        let mut frame = v4(PEER, OWN, 17, &udp(7, 3));
        frame[14 + at] = value;
        n.frame(NOW, &frame);
        assert!(n.memory.datagrams.is_empty(), "{at} {value}");
        assert_eq!(n.stack.counters().drop_malformed, 1, "{at} {value}");
    }
    // UDP lengths.
    for len in [0, 7, 12, 0xffff_u16] {
        let mut n = node(false);
        let mut packet = udp(7, 3);
        packet[4..6].copy_from_slice(&len.to_be_bytes());
        n.frame(NOW, &v4(PEER, OWN, 17, &packet));
        assert_eq!(n.stack.counters().drop_malformed, 1, "{len}");
    }
}

#[test]
fn checksums_count() {
    let mut n = node(true);
    let mut frame = v4(PEER, OWN, 17, &udp(7, 3));
    frame[14 + 8] ^= 1;
    n.frame(NOW, &frame);
    assert_eq!(n.stack.counters().drop_checksum, 1);
    let mut packet = udp(7, 3);
    packet[6..8].copy_from_slice(&[1, 2]);
    n.frame(NOW, &v4(PEER, OWN, 17, &packet));
    n.frame(NOW, &v4(PEER, OWN, 1, &[8, 0, 1, 1, 0, 0, 0, 0]));
    n.frame(NOW, &v4(PEER, OWN, 6, &[0; 20]));
    // No checksum: fine with IPv4, not with IPv6.
    n.frame(NOW, &v6("2001:db8::1", "2001:db8::2", 17, &udp(7, 3)));
    assert_eq!(n.stack.counters().drop_checksum, 5);
    assert!(n.memory.datagrams.is_empty() && !n.stack.has_output());
    n.frame(NOW, &v4(PEER, OWN, 17, &udp(7, 3)));
    assert_eq!(n.memory.datagrams.len(), 1);
}

#[test]
fn addresses_that_no_packet_from_a_wire_has() {
    for (source, destination) in [
        (OWN, OWN),
        ([127, 0, 0, 1], OWN),
        (PEER, [127, 0, 0, 1]),
        ([224, 0, 0, 1], OWN),
        ([255; 4], OWN),
        ([10, 0, 0, 255], OWN),
        ([0; 4], OWN),
    ] {
        let mut n = node(true);
        for payload in [udp(7, 1), udp(9, 1)] {
            n.frame(NOW, &v4(source, destination, 17, &payload));
        }
        assert_eq!(n.stack.counters().drop_malformed, 2, "{source:?} {destination:?}");
        assert!(n.memory.datagrams.is_empty() && !n.stack.has_output());
    }
    for (source, destination) in [
        ("2001:db8::2", "2001:db8::2"),
        ("::1", "2001:db8::2"),
        ("2001:db8::1", "::1"),
        ("ff02::1", "2001:db8::2"),
        ("::", "2001:db8::2"),
        ("::ffff:10.0.0.1", "2001:db8::2"),
    ] {
        let mut n = node(false);
        n.frame(NOW, &v6(source, destination, 17, &udp(9, 1)));
        assert_eq!(n.stack.counters().drop_malformed, 1, "{source} {destination}");
        assert!(!n.stack.has_output());
    }
}

#[test]
fn nothing_is_said_about_groups_errors_or_pieces() {
    let mut n = node(false);
    // A unicast address in a broadcast frame, groups, and ICMP errors about nothing of ours.
    let mut frame = v4(PEER, OWN, 17, &udp(9, 1));
    frame[..6].fill(0xff);
    n.frame(NOW, &frame);
    n.frame(NOW, &v4(PEER, [10, 0, 0, 255], 17, &udp(9, 1)));
    n.frame(NOW, &v4(PEER, [224, 0, 0, 1], 1, &[8, 0, 0, 0, 0, 0, 0, 0]));
    n.frame(NOW, &v4(PEER, [10, 0, 0, 255], 1, &[8, 0, 0, 0, 0, 0, 0, 0]));
    n.frame(NOW, &v4(PEER, OWN, 1, &[3, 3, 0, 0, 0, 0, 0, 0, 0x45, 0, 0, 0]));
    n.frame(NOW, &v6("2001:db8::1", "ff02::1", 17, &udp(9, 1)));
    n.frame(NOW, &v6("2001:db8::1", "ff02::1", 58, &[128, 0, 0, 0, 0, 0, 0, 0]));
    // A later fragment alone, for ever.
    let mut piece = v4(PEER, OWN, 17, &[0; 64]);
    piece[14 + 6..14 + 8].copy_from_slice(&[0x20, 8]);
    n.frame(NOW, &piece);
    let later = NOW + Duration::from_secs(31);
    n.stack.handle_timers(later, &mut n.memory);
    assert!(n.frames(later).is_empty());
    assert_eq!(n.stack.counters().drop_fragment, 1);
    // The first one alone is reported, after its time.
    let mut piece = v4(PEER, OWN, 17, &[0; 64]);
    piece[14 + 6] = 0x20;
    n.frame(later, &piece);
    let learn = v4_arp_reply();
    n.stack.handle_timers(later + SECOND * 31, &mut n.memory);
    n.frames(later + SECOND * 31);
    n.frame(later + SECOND * 31, &learn);
    let frames = n.frames(later + SECOND * 31);
    assert_eq!((frames.len(), frames[0][34], frames[0][35]), (1, 11, 1));
}

fn v4_arp_reply() -> Vec<u8> {
    let mut p = vec![0, 1, 8, 0, 6, 4, 0, 2];
    p.extend_from_slice(&mac(A));
    p.extend_from_slice(&PEER);
    p.extend_from_slice(&mac(B));
    p.extend_from_slice(&OWN);
    framed(0x0806, &p)
}

#[test]
fn source_routes_and_unknown_protocols() {
    let mut n = node(false);
    let mut packet = vec![0x47, 0, 0, 36, 0, 0, 0, 0, 64, 17, 0, 0];
    packet.extend_from_slice(&PEER);
    packet.extend_from_slice(&OWN);
    packet.extend_from_slice(&[131, 7, 4, 1, 2, 3, 4, 0]);
    packet.extend_from_slice(&udp(7, 0));
    n.frame(NOW, &framed(0x0800, &packet));
    assert_eq!((n.stack.counters().drop_malformed, n.memory.datagrams.len()), (1, 0));
    packet[20] = 7;
    n.frame(NOW, &framed(0x0800, &packet));
    assert_eq!(n.memory.datagrams.len(), 1);
    n.frame(NOW, &v4_arp_reply());
    n.frame(NOW, &v4(PEER, OWN, 132, &[0; 16]));
    assert!(n.stack.has_output());
}

#[test]
fn arp_and_ndp_floods_stay_bounded() {
    let mut n = node(false);
    for i in 0..20_000_u32 {
        let mut f = v4_arp_reply();
        f[28..32].copy_from_slice(&(0x0a00_0100_u32 + i).to_be_bytes());
        f[21] = if i % 2 == 0 { 1 } else { 2 };
        n.frame(NOW, &f);
        let target = "2001:db8::2".parse::<core::net::Ipv6Addr>().unwrap().octets();
        let mut m = vec![135, 0, 0, 0, 0, 0, 0, 0];
        m.extend_from_slice(&target);
        m.extend_from_slice(&[1, 1, 2, 0, 0, 0, 0, 9]);
        let mut f = v6(&std::format!("2001:db8::{:x}:{:x}", i >> 8, 16 + (i & 0xff)), "2001:db8::2", 58, &m);
        f[14 + 7] = 255;
        n.frame(NOW, &f);
    }
    assert!(n.stack.neighbors.len() <= Limits::default().neighbors);
    assert!(n.stack.counters().drop_queue_full > 0);
    assert!(n.frames(NOW).len() <= 4 * Limits::default().outbox);
}

#[test]
fn redirects_and_router_words_change_nothing() {
    let mut n = node(false);
    let before = n.stack.source_for(ip("192.0.2.1"));
    let mut redirect = vec![5, 1, 0, 0, 10, 0, 0, 66];
    redirect.extend_from_slice(&v4(OWN, [192, 0, 2, 1], 17, &udp(7, 8))[14..]);
    n.frame(NOW, &v4(PEER, OWN, 1, &redirect));
    let mut advertisement = v6("fe80::1", "ff02::1", 58, &[134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0]);
    advertisement[14 + 7] = 255;
    n.frame(NOW, &advertisement);
    assert_eq!(n.stack.source_for(ip("192.0.2.1")), before);
    assert!(!n.stack.has_output());
}

#[test]
fn paths_are_not_made_smaller_than_any_link() {
    for (mtu, expected) in [(68_u16, 552), (0, 552), (1400, 1400), (9000, 1500)] {
        let mut n = node(false);
        let id = n.stack.udp_open(Token(9), at_any(99), false).unwrap();
        let mut error = vec![3, 4, 0, 0, 0, 0];
        error.extend_from_slice(&mtu.to_be_bytes());
        let mut quoted = udp(5555, 8);
        quoted[..2].copy_from_slice(&99_u16.to_be_bytes());
        error.extend_from_slice(&v4(OWN, PEER, 17, &quoted)[14..]);
        n.frame(NOW, &v4([10, 0, 0, 9], OWN, 1, &error));
        n.frame(NOW, &v4_arp_reply());
        n.send(id, Token(9), at("10.0.0.1:5555"), vec![0; 2000]);
        n.frames(NOW);
        n.frame(NOW, &v4_arp_reply());
        let frames = n.frames(NOW);
        assert!(frames[0].len() - 14 <= expected && frames[0].len() - 14 > expected - 8, "{mtu}");
    }
}

/// Frames of an honest exchange of everything: what mutations start from.
fn corpus() -> Vec<Vec<u8>> {
    let mut net = Net::new();
    let listener = net.nodes[B].stack.tcp_listen(Token(3), at_any(80), 16, CAPACITY, TcpOptions::default(), false);
    listener.unwrap();
    let a = net.nodes[A].stack.udp_open(Token(1), at_any(0), false).unwrap();
    net.nodes[B].stack.udp_open(Token(2), at_any(7), false).unwrap();
    for (token, remote) in [(5, "10.0.0.2"), (6, "2001:db8::2")] {
        let remote = |port| SocketAddr::new(ip(remote), port);
        let (node, now) = (&mut net.nodes[A], net.now);
        node.memory.sending.insert(token, vec![1; 3000]);
        let options = TcpOptions::default();
        let (id, _) = node
            .stack
            .tcp_connect(now, Token(token), None, remote(80), stream(token), options, &mut node.memory)
            .unwrap();
        node.stack.tcp_send(now, id, 3000).unwrap();
        for (port, len) in [(7, 20), (9, 20), (7, 4000)] {
            net.nodes[A].send(a, Token(1), remote(port), vec![2; len]);
        }
        net.run(SECOND);
        let (source, echo) = if token == 5 { (ip("10.0.0.1"), 8) } else { (ip("2001:db8::1"), 128) };
        net.nodes[A].stack.send_icmp(source, remote(0).ip(), 0, 0, vec![echo; 3000]);
        net.run(SECOND);
    }
    // Errors about what B sent, too: all frames, to B.
    net.log
        .into_iter()
        .map(|(_, mut f)| {
            if f[0] & 1 == 0 {
                f[..6].copy_from_slice(&mac(B));
            }
            f
        })
        .collect()
}

/// Gives frames to a stack that believes every checksum, and lets time pass.
fn survive(frames: &[Vec<u8>], unknown: Unknown) {
    let mut n = node(false);
    let mut now = NOW;
    for frame in frames {
        n.stack.handle_frame(now, frame, &mut n.memory, unknown);
        n.frames(now);
        now = now + Duration::from_millis(10);
        if n.stack.next_deadline().is_some_and(|at| at <= now) {
            n.stack.handle_timers(now, &mut n.memory);
        }
    }
    for _ in 0..20 {
        now = n.stack.next_deadline().map_or(now, |at| at.max(now));
        n.stack.handle_timers(now, &mut n.memory);
        n.frames(now);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes(
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
        ethertype in prop_oneof![Just(0x0800_u16), Just(0x86dd), Just(0x0806), any::<u16>()],
        protocol in prop_oneof![Just(1_u8), Just(6), Just(17), Just(58), Just(0), Just(43), Just(44), Just(60)],
    ) {
        let raw = framed(ethertype, &bytes);
        let four = v4(PEER, OWN, protocol, &bytes);
        let six = v6("2001:db8::1", "2001:db8::2", protocol, &bytes);
        let mut near = v6("fe80::1", "2001:db8::2", protocol, &bytes);
        near[14 + 7] = 255;
        for unknown in [Unknown::Answer, Unknown::Report] {
            survive(&[bytes.clone(), raw.clone(), four.clone(), six.clone(), near.clone()], unknown);
        }
    }

    #[test]
    fn mutated_frames(
        changes in proptest::collection::vec(
            (any::<prop::sample::Index>(), any::<prop::sample::Index>(), any::<u8>(), 0..4_u8), 1..60),
    ) {
        std::thread_local! {
            static CORPUS: Vec<Vec<u8>> = corpus();
        }
        let mut frames = CORPUS.with(Clone::clone);
        for (which, place, value, how) in changes {
            let frame = which.get(&frames).clone();
            let at = which.index(frames.len());
            let mut changed = frame;
            // Headers are where it hurts.
            let place = place.index(changed.len().clamp(1, 110)).min(changed.len());
            match (how, changed.get_mut(place)) {
                (0, Some(byte)) => *byte = value,
                (1, _) => changed.truncate(place),
                (2, Some(byte)) => *byte ^= 1 << (value % 8),
                _ => changed.extend(core::iter::repeat_n(value, usize::from(value))),
            }
            frames.insert(at, changed);
        }
        survive(&frames, Unknown::Answer);
    }
}

#[test]
fn nobody_takes_our_address_or_a_neighbours_by_shouting() {
    let mut n = node(false);
    n.stack.tcp_listen(Token(4), at_any(81), 4, CAPACITY, TcpOptions::default(), false).unwrap();
    // Known by an answer to a question of ours.
    n.frame(NOW, &v4_arp_reply());
    let arp = |sender: [u8; 4], from: [u8; 6], target: [u8; 4], reply: bool| {
        let mut p = vec![0, 1, 8, 0, 6, 4, 0, 1 + u8::from(reply)];
        p.extend_from_slice(&from);
        p.extend_from_slice(&sender);
        p.extend_from_slice(&[0; 6]);
        p.extend_from_slice(&target);
        framed(0x0806, &p)
    };
    let before = n.stack.neighbors.len();
    for i in 0..1000_u32 {
        let mac = [2, 9, 9, 9, (i >> 8) as u8, i as u8];
        // As us; as everybody; with a group's Ethernet address; off the link.
        n.frame(NOW, &arp(OWN, mac, OWN, i % 2 == 0));
        n.frame(NOW, &arp([10, 0, 0, 255], mac, OWN, true));
        n.frame(NOW, &arp(PEER, [1, 0, 0x5e, 0, 0, 1], PEER, true));
        n.frame(NOW, &arp([192, 0, 2, (i & 0xff) as u8], mac, OWN, true));
        // Strangers that announce themselves are not remembered.
        n.frame(NOW, &arp([10, 0, 0, 3 + (i % 200) as u8], mac, [10, 0, 0, 3 + (i % 200) as u8], true));
    }
    n.frames(NOW);
    assert_eq!(n.stack.neighbors.len(), before);
    // RFC 4861 7.1: from beyond the link nobody says who has an address.
    let mut claim = v6("2001:db8::1", "2001:db8::2", 58, &{
        let mut m = vec![136, 0, 0, 0, 0x20, 0, 0, 0];
        m.extend_from_slice(&"2001:db8::1".parse::<core::net::Ipv6Addr>().unwrap().octets());
        m.extend_from_slice(&[2, 1, 2, 9, 9, 9, 9, 9]);
        m
    });
    let malformed = n.stack.counters().drop_malformed;
    for hops in [0, 64, 254] {
        claim[14 + 7] = hops;
        n.frame(NOW, &claim);
    }
    assert_eq!(n.stack.counters().drop_malformed - malformed, 3);
    assert_eq!(n.stack.neighbors.len(), before);
    // And we still answer for ours.
    n.frame(NOW, &arp(PEER, mac(A), OWN, false));
    assert_eq!(n.frames(NOW).len(), 1);
}

#[test]
fn a_neighbour_that_changes_all_the_time_keeps_its_connections() {
    let mut net = Net::new();
    let options = TcpOptions::default();
    net.nodes[B].stack.tcp_listen(Token(3), at_any(80), 16, CAPACITY, options, false).unwrap();
    let (now, node) = (net.now, &mut net.nodes[A]);
    node.memory.sending.insert(5, vec![1; 50_000]);
    let (id, _) =
        node.stack.tcp_connect(now, Token(5), None, at("10.0.0.2:80"), stream(5), options, &mut node.memory).unwrap();
    node.stack.tcp_send(now, id, 50_000).unwrap();
    // Gratuitous changes between two addresses; frames for the wrong one are lost.
    for i in 0..200_u32 {
        let mut f = framed(0x0806, &[0, 1, 8, 0, 6, 4, 0, 2]);
        f.extend_from_slice(&if i % 2 == 0 { [2, 9, 9, 9, 9, 9] } else { mac(B) });
        f.extend_from_slice(&[10, 0, 0, 2]);
        f.extend_from_slice(&mac(A));
        f.extend_from_slice(&[10, 0, 0, 1]);
        f[..6].copy_from_slice(&mac(A));
        let now = net.now;
        net.nodes[A].frame(now, &f);
        net.run(Duration::from_millis(5));
    }
    net.run(Duration::from_secs(120));
    assert_eq!(net.nodes[B].memory.received.values().map(Vec::len).sum::<usize>(), 50_000);
}

#[test]
fn chains_of_extension_headers_end() {
    let mut n = node(false);
    // A datagram behind as many headers as there are; more than eight are not walked.
    for count in 0..30_usize {
        let before = n.memory.datagrams.len();
        let mut chain = Vec::new();
        for i in 0..count {
            chain.extend_from_slice(&[if i + 1 == count { 17 } else { 60 }, 0, 1, 4, 0, 0, 0, 0]);
        }
        chain.extend_from_slice(&udp(7, 3));
        n.frame(NOW, &v6("2001:db8::1", "2001:db8::2", if count == 0 { 17 } else { 60 }, &chain));
        assert_eq!(n.memory.datagrams.len() - before, usize::from(count <= 8), "{count}");
    }
    // Fragment headers in fragment headers, hop-by-hop options in the middle, lengths beyond the packet.
    let bad: [&[u8]; 4] = [
        &[44, 0, 0, 0, 0, 0, 0, 1, 44, 0, 0, 0, 0, 0, 0, 1, 17, 0, 0, 0, 0, 0, 0, 1],
        &[0, 0, 1, 4, 0, 0, 0, 0, 17, 0, 1, 4, 0, 0, 0, 0],
        &[17, 255, 1, 4, 0, 0, 0, 0],
        &[17, 0, 9, 200, 0, 0, 0, 0],
    ];
    let before = n.memory.datagrams.len();
    for (i, chain) in bad.into_iter().enumerate() {
        let bytes = [chain, &udp(7, 3)].concat();
        n.frame(NOW, &v6("2001:db8::1", "2001:db8::2", if i == 0 { 44 } else { 60 }, &bytes));
    }
    assert_eq!(n.memory.datagrams.len(), before);
}

#[test]
fn fragments_that_overlap_or_never_end() {
    let mut n = node(false);
    let piece = |id: u16, offset: usize, more: bool, bytes: &[u8]| {
        let mut f = v4(PEER, OWN, 17, bytes);
        f[14 + 4..14 + 6].copy_from_slice(&id.to_be_bytes());
        f[14 + 6..14 + 8].copy_from_slice(&((offset / 8) as u16 | u16::from(more) << 13).to_be_bytes());
        f
    };
    let mut whole = udp(7, 56);
    whole[8..].fill(1);
    // Teardrop and its kin: the second lies within, before or across the first. RFC 5722: all of it goes.
    for (id, (offset, len)) in [(0_usize, 16_usize), (8, 8), (16, 24), (24, 8), (0, 64)].into_iter().enumerate() {
        n.frame(NOW, &piece(id as u16, 0, true, &whole[..32]));
        n.frame(NOW, &piece(id as u16, offset, true, &vec![9; len]));
        n.frame(NOW, &piece(id as u16, 32, false, &whole[32..]));
        assert!(n.memory.datagrams.iter().all(|(_, _, d)| d.iter().all(|b| *b == 1)), "{offset} {len}");
    }
    // FragmentSmack: many datagrams of tiny pieces, none of which is ever whole. An honest one still gets through.
    for id in 1000..6000_u16 {
        for at in 1..20 {
            n.frame(NOW, &piece(id, at * 16, true, &[0; 8]));
        }
    }
    let before = n.memory.datagrams.len();
    n.frame(NOW, &piece(7, 0, true, &whole[..32]));
    n.frame(NOW, &piece(7, 32, false, &whole[32..]));
    assert_eq!(n.memory.datagrams.len() - before, 1);
    // Nothing of it stays.
    let later = NOW + SECOND * 31;
    n.stack.handle_timers(later, &mut n.memory);
    assert_eq!(n.stack.reassembly.next_deadline(), None);
}
