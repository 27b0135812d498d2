//! Neighbours, echo, fragments, routes.

use super::*;
use crate::{Error, NeighborUpdate, Route, StaticNeighbor};
use smoltcp::wire::{EthernetFrame, EthernetProtocol, Ipv4Packet, Ipv6Packet};

fn ping(net: &mut Net, from: &str, to: &str, len: usize) {
    let mut message = vec![if from.contains(':') { 128 } else { 8 }, 0, 0, 0, 0, 1, 0, 1];
    message.resize(8 + len, 0x5a);
    net.nodes[A].stack.send_icmp(ip(from), ip(to), 0, 0, message);
    net.run(SECOND);
}

fn ethertypes(net: &Net) -> Vec<(usize, u16)> {
    let kind = |f: &Vec<u8>| u16::from_be_bytes([f[12], f[13]]);
    net.log.iter().map(|(n, f)| (*n, kind(f))).collect()
}

#[test]
fn announcements_at_the_start() {
    let mut net = Net::new();
    net.run(SECOND);
    assert_eq!(ethertypes(&net), [(0, 0x0806), (0, 0x86dd), (1, 0x0806), (1, 0x86dd)]);
    let arp = &net.log[0].1;
    assert_eq!(arp[..6], [0xff; 6]);
    assert_eq!((&arp[28..32], &arp[38..42]), (&[10, 0, 0, 1][..], &[10, 0, 0, 1][..]));
    let na = Ipv6Packet::new_checked(&net.log[1].1[14..]).unwrap();
    assert_eq!((na.hop_limit(), na.payload()[0]), (255, 136));
    assert_eq!(net.nodes[B].stack.counters().drop_malformed, 0);
}

#[test]
fn arp_then_ping() {
    let mut net = Net::new();
    net.run(SECOND);
    net.log.clear();
    ping(&mut net, "10.0.0.1", "10.0.0.2", 56);
    assert_eq!(ethertypes(&net), [(0, 0x0806), (1, 0x0806), (0, 0x0800), (1, 0x0800)], "{:?}", net.log);
    let reply = Ipv4Packet::new_checked(&net.log[3].1[14..]).unwrap();
    assert!(reply.verify_checksum());
    assert_eq!(reply.payload()[0], 0);
    assert_eq!(reply.payload()[8..], [0x5a; 56]);
    assert_eq!(net.nodes[A].stack.counters().icmp_in, 2, "an advertisement and the answer");
    // The second needs no question.
    ping(&mut net, "10.0.0.1", "10.0.0.2", 56);
    assert_eq!(net.log.len(), 6);
}

#[test]
fn ndp_then_ping() {
    let mut net = Net::new();
    net.run(SECOND);
    net.log.clear();
    ping(&mut net, "2001:db8::1", "2001:db8::2", 56);
    let kinds: Vec<_> =
        net.log.iter().map(|(n, f)| (*n, Ipv6Packet::new_checked(&f[14..]).unwrap().payload()[0])).collect();
    assert_eq!(kinds, [(0, 135), (1, 136), (0, 128), (1, 129)]);
    assert_eq!(net.log[0].1[..6], [0x33, 0x33, 0xff, 0, 0, 2], "asked at the solicited-node group");
}

#[test]
fn long_pings_go_in_fragments_both_ways() {
    for (from, to) in [("10.0.0.1", "10.0.0.2"), ("2001:db8::1", "2001:db8::2")] {
        let mut net = Net::new();
        net.run(SECOND);
        let before = net.nodes[A].stack.counters().icmp_in;
        for len in [1452, 1453, 1473, 4000, 65_400] {
            ping(&mut net, from, to, len);
        }
        let counters = net.nodes[A].stack.counters();
        // The neighbour's answer counts with IPv6.
        let extra = u64::from(from.contains(':'));
        assert_eq!(counters.icmp_in - before, 5 + extra, "{from}");
        assert_eq!((counters.drop_malformed, counters.drop_checksum, counters.drop_fragment), (0, 0, 0));
    }
}

#[test]
fn a_neighbour_that_is_not_there() {
    let mut net = Net::new();
    let stack = &mut net.nodes[A].stack;
    let id = stack.udp_open(Token(1), at_any(0), false).unwrap();
    stack.udp_set_peer(id, Some(at("10.0.0.99:7")), &mut net.nodes[A].memory).unwrap();
    net.nodes[A].send(id, Token(1), at("10.0.0.99:7"), vec![1]);
    let start = net.now;
    net.run_until(SECOND * 10, |net| {
        net.nodes[A].events.contains(&Event::DatagramError { token: Token(1), error: Error::HostUnreachable })
    });
    assert_eq!(net.now.since(start).as_secs(), 3);
    assert_eq!(net.log.iter().filter(|(n, f)| *n == A && f[12..14] == [8, 6]).count(), 4, "itself and three questions");
    // TCP hears of it too, and another destination is resolved meanwhile.
    let node = &mut net.nodes[A];
    let options = crate::TcpOptions::default();
    let (mut memory, now) = (Memory::default(), net.now);
    node.stack.tcp_connect(now, Token(2), None, at("10.0.0.98:7"), stream(2), options, &mut memory).unwrap();
    net.run(SECOND * 5);
    assert_eq!(net.nodes[A].states[&2].error, Some(Error::HostUnreachable));
}

#[test]
fn neighbours_are_probed_after_30_seconds_of_use() {
    let mut net = Net::new();
    for _ in 0..40 {
        ping(&mut net, "10.0.0.1", "10.0.0.2", 1);
    }
    let asked = net.log.iter().filter(|(n, f)| *n == A && f[12..14] == [8, 6] && f[21] == 1 && f[41] == 2);
    let macs: Vec<_> = asked.map(|(_, f)| f[..6].to_vec()).collect();
    assert_eq!(macs, [vec![0xff; 6], mac(B).to_vec()], "one question to all, one to it alone");
    assert_eq!(net.nodes[A].stack.counters().drop_no_neighbor, 0);
}

#[test]
fn static_neighbours_and_gateways() {
    let mut a = config(A);
    a.neighbors = vec![StaticNeighbor { address: ip("10.0.0.77"), mac: mac(B) }];
    a.routes = vec![Route { network: ip("0.0.0.0"), prefix_bits: 0, gateway: Some(ip("10.0.0.77")) }];
    let mut net = Net::with(a, config(B));
    net.run(SECOND);
    net.log.clear();
    ping(&mut net, "10.0.0.1", "192.0.2.1", 1);
    let frame = EthernetFrame::new_checked(&net.log[0].1).unwrap();
    assert_eq!((frame.dst_addr().0, frame.ethertype()), (mac(B), EthernetProtocol::Ipv4));
    assert_eq!(net.log.len(), 1);
    assert_eq!(net.nodes[B].stack.counters().drop_not_ours, 1);
    assert_eq!(net.nodes[A].stack.source_for(ip("192.0.2.1")), Some(ip("10.0.0.1")));
    assert_eq!(net.nodes[A].stack.source_for(ip("2001:db9::1")), None);
}

#[test]
fn the_driver_resolves_in_external_mode() {
    let mut a = config(A);
    a.neighbor_mode = NeighborMode::External;
    let mut net = Net::with(a, config(B));
    net.run(SECOND);
    net.log.clear();
    ping(&mut net, "10.0.0.1", "10.0.0.2", 1);
    let wanted = Event::NeighborWanted { address: ip("10.0.0.2") };
    assert!(net.log.is_empty());
    assert!(net.nodes[A].events.contains(&wanted));
    let update = NeighborUpdate { address: ip("10.0.0.2"), mac: Some(mac(B)) };
    let now = net.now;
    net.nodes[A].stack.neighbor_update(now, update);
    net.nodes[A].events.clear();
    net.run(SECOND);
    // B must resolve A, and A does not answer ARP here: the kernel would.
    assert!(net.log.iter().any(|(n, f)| *n == A && f[12..14] == [8, 0]));
    assert!(!net.log.iter().any(|(n, f)| *n == A && f[12..14] == [8, 6]));
    // Unknown for ever: asked once a second however many packets there are.
    for _ in 0..50 {
        net.nodes[A].stack.send_icmp(ip("10.0.0.1"), ip("10.0.0.50"), 0, 0, vec![8, 0, 0, 0, 0, 0, 0, 0]);
        net.run(SECOND / 10);
    }
    let count = net.nodes[A].events.iter().filter(|e| matches!(e, Event::NeighborWanted { .. })).count();
    assert!((4..=6).contains(&count), "{count}");
}

#[test]
fn ids_of_fragments_are_not_guessable() {
    let mut net = Net::new();
    let mut ids = Vec::new();
    for _ in 0..8 {
        net.log.clear();
        ping(&mut net, "10.0.0.1", "10.0.0.2", 2000);
        let id = |f: &Vec<u8>| u16::from_be_bytes([f[18], f[19]]);
        ids.extend(net.log.iter().filter(|(n, f)| *n == A && f[12..14] == [8, 0]).map(|(_, f)| id(f)).take(1));
    }
    let steps: Vec<_> = ids.windows(2).map(|w| w[1].wrapping_sub(w[0])).collect();
    assert!(steps.windows(2).any(|w| w[0] != w[1]), "{ids:?}");
}
