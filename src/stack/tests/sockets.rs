//! UDP and TCP through everything below them.

use super::*;
use crate::{Error, SocketId, TcpOptions, TcpState};

/// Opens a socket on each node; B's has port 7.
fn udp_pair(net: &mut Net) -> (SocketId, SocketId) {
    let a = net.nodes[A].stack.udp_open(Token(1), at_any(0), false).unwrap();
    let b = net.nodes[B].stack.udp_open(Token(2), at_any(7), false).unwrap();
    (a, b)
}

#[test]
fn datagrams_of_all_sizes_in_both_families() {
    for remote in ["10.0.0.2:7", "[2001:db8::2]:7"] {
        let mut net = Net::new();
        let (a, b) = udp_pair(&mut net);
        let longest = if remote.starts_with('1') { 65_507 } else { 65_527 };
        for len in [0, 1, 1452, 1453, 1472, 1473, 9000, longest] {
            let payload: Vec<u8> = (0..len).map(|i: usize| i.to_le_bytes()[0]).collect();
            net.nodes[A].send(a, Token(1), at(remote), payload.clone());
            net.run(SECOND);
            let (token, meta, got) = net.nodes[B].memory.datagrams.pop().unwrap();
            assert_eq!((token, meta.local), (Token(2), at(remote)));
            assert!(got == payload, "{len}");
            // And back to where it came from.
            net.nodes[B].send(b, Token(2), meta.remote, got);
            net.run(SECOND);
            let (token, meta, got) = net.nodes[A].memory.datagrams.pop().unwrap();
            assert_eq!((token, meta.remote), (Token(1), at(remote)));
            assert!(got == payload, "{len}");
        }
        let sent = Event::DatagramSent { token: Token(1) };
        assert_eq!(net.nodes[A].events.iter().filter(|e| **e == sent).count(), 8);
        let c = net.nodes[B].stack.counters();
        assert_eq!((c.udp_in, c.udp_out, c.drop_malformed, c.drop_fragment, c.drop_checksum), (8, 8, 0, 0, 0));
    }
}

#[test]
fn a_closed_port_is_reported_to_a_connected_socket_only() {
    for remote in ["10.0.0.2:9", "[2001:db8::2]:9"] {
        let mut net = Net::new();
        let (a, _) = udp_pair(&mut net);
        net.nodes[A].send(a, Token(1), at(remote), vec![0; 3000]);
        net.run(SECOND);
        let refused = Event::DatagramError { token: Token(1), error: Error::Refused };
        assert!(!net.nodes[A].events.contains(&refused));
        let node = &mut net.nodes[A];
        let local = node.stack.udp_set_peer(a, Some(at(remote)), &mut node.memory).unwrap();
        assert_eq!(Some(local.ip()), node.stack.source_for(at(remote).ip()));
        for len in [3000, 10] {
            net.nodes[A].events.clear();
            net.nodes[A].send(a, Token(1), at(remote), vec![0; len]);
            net.run(SECOND);
            assert!(net.nodes[A].events.contains(&refused), "{remote} {len}");
        }
    }
}

#[test]
fn reports_are_limited() {
    let mut b = config(B);
    b.limits.replies_per_second = 20;
    let mut net = Net::with(config(A), b);
    let (a, _) = udp_pair(&mut net);
    net.nodes[A].send(a, Token(1), at("10.0.0.2:7"), vec![]);
    net.run(SECOND);
    for _ in 0..500 {
        net.nodes[A].send(a, Token(1), at("10.0.0.2:9"), vec![]);
    }
    net.run(SECOND / 2);
    let c = net.nodes[B].stack.counters();
    assert_eq!(c.drop_no_socket, 500);
    assert_eq!(c.drop_rate_limited, 480);
}

#[test]
fn the_most_specific_socket_wins() {
    let mut net = Net::new();
    let (a, _) = udp_pair(&mut net);
    let node = &mut net.nodes[B];
    let specific = ListenAddress { address: Some(ip("10.0.0.2")), ..at_any(7) };
    assert_eq!(node.stack.udp_open(Token(3), specific, false), Err(Error::AddressInUse));
    let foreign = ListenAddress { address: Some(ip("10.0.0.1")), ..at_any(8) };
    assert_eq!(node.stack.udp_open(Token(3), foreign, false), Err(Error::AddressNotAvailable));
    let v4 = ListenAddress { ipv6: false, ..at_any(70) };
    let v6 = ListenAddress { ipv4: false, ..at_any(70) };
    let v4 = node.stack.udp_open(Token(3), v4, false).unwrap();
    let v6 = node.stack.udp_open(Token(3), v6, false).unwrap();
    node.stack.udp_close(v4);
    node.stack.udp_close(v6);
    assert_eq!(node.stack.udp_set_peer(v4, None, &mut node.memory), Err(Error::NoSuchSocket));
    for (token, address) in [(10, None), (11, Some(ip("10.0.0.2")))] {
        node.stack.udp_open(Token(token), ListenAddress { address, ..at_any(80) }, true).unwrap();
    }
    let third = ListenAddress { address: Some(ip("10.0.0.2")), ..at_any(80) };
    let connected = node.stack.udp_open(Token(12), third, true).unwrap();
    let from = net.nodes[A].stack.udp_local(a).unwrap().port();
    let node = &mut net.nodes[B];
    node.stack.udp_set_peer(connected, Some(SocketAddr::new(ip("10.0.0.1"), from)), &mut node.memory).unwrap();
    let take = |net: &mut Net, socket, token, to| {
        net.nodes[A].send(socket, token, at(to), vec![]);
        net.run(SECOND);
        net.nodes[B].memory.datagrams.pop().unwrap().0
    };
    assert_eq!(take(&mut net, a, Token(1), "10.0.0.2:80"), Token(12));
    assert_eq!(take(&mut net, a, Token(1), "[2001:db8::2]:80"), Token(10));
    let other = net.nodes[A].stack.udp_open(Token(4), at_any(0), false).unwrap();
    assert_eq!(take(&mut net, other, Token(4), "10.0.0.2:80"), Token(11));
    let node = &mut net.nodes[B];
    node.stack.udp_set_peer(connected, None, &mut node.memory).unwrap();
    let mut seen = 0;
    net.nodes[B].stack.udp_for_each(&mut |_, _, _, peer| seen += 1 + usize::from(peer.is_some()) * 100);
    assert_eq!(seen, 4);
}

#[test]
fn broadcast_reaches_every_listener_and_is_never_refused() {
    let mut net = Net::new();
    let (a, _) = udp_pair(&mut net);
    net.run(SECOND);
    for to in ["10.0.0.255:7", "255.255.255.255:7", "224.0.0.1:7", "[ff02::1]:7"] {
        net.nodes[A].send(a, Token(1), at(to), vec![1]);
        net.nodes[A].send(a, Token(1), SocketAddr::new(at(to).ip(), 9), vec![1]);
        net.run(SECOND);
        assert_eq!(net.nodes[B].memory.datagrams.pop().map(|d| d.0), Some(Token(2)), "{to}");
    }
    assert_eq!(net.nodes[B].stack.counters().drop_no_socket, 4);
    assert!(net.log.iter().all(|(n, f)| *n == A || f[12..14] != [8, 0] || f[23] != 1), "no ICMP");
}

#[test]
fn datagrams_to_ourselves_never_reach_the_wire() {
    let mut net = Net::new();
    net.run(SECOND);
    net.log.clear();
    let (_, b) = udp_pair(&mut net);
    for to in ["10.0.0.2:7", "127.0.0.1:7", "127.9.9.9:7", "[::1]:7", "[2001:db8::2]:7", "0.0.0.0:7"] {
        net.nodes[B].send(b, Token(2), at(to), vec![9; 20_000]);
        net.run(SECOND);
        let (_, meta, payload) = net.nodes[B].memory.datagrams.pop().unwrap();
        assert_eq!(payload.len(), 20_000, "{to}");
        assert_eq!(meta.remote.port(), 7);
    }
    assert!(net.log.is_empty());
    // A closed port refuses as on any host.
    let c = net.nodes[B].stack.udp_open(Token(5), at_any(0), false).unwrap();
    let node = &mut net.nodes[B];
    node.stack.udp_set_peer(c, Some(at("127.0.0.1:99")), &mut node.memory).unwrap();
    node.send(c, Token(5), at("127.0.0.1:99"), vec![]);
    net.run(SECOND);
    assert!(net.nodes[B].events.contains(&Event::DatagramError { token: Token(5), error: Error::Refused }));
}

#[test]
fn what_cannot_be_sent_is_told() {
    let mut net = Net::new();
    let (a, _) = udp_pair(&mut net);
    for (to, len, error) in
        [("192.0.2.1:7", 1, Error::NetworkUnreachable), ("10.0.0.2:7", 65_508, Error::MessageTooLong)]
    {
        net.nodes[A].send(a, Token(1), at(to), vec![0; len]);
        net.run(SECOND);
        assert!(net.nodes[A].events.contains(&Event::DatagramError { token: Token(1), error }), "{to}");
    }
}

/// Moves what programs would: B echoes what it received, A reads it.
pub(super) fn echo(net: &mut Net, client: usize, remote: SocketAddr, len: usize) {
    let server = B;
    let listener =
        net.nodes[server].stack.tcp_listen(Token(100), at_any(80), 16, CAPACITY, TcpOptions::default(), false);
    let listener = listener.unwrap();
    let data: Vec<u8> = (0..len).map(|i| (i * 7 + i / 251).to_le_bytes()[0]).collect();
    let now = net.now;
    let node = &mut net.nodes[client];
    node.memory.sending.insert(1, data.clone());
    let (id, _) = node
        .stack
        .tcp_connect(now, Token(1), None, remote, stream(1), TcpOptions::default(), &mut node.memory)
        .unwrap();
    let mut served: Option<SocketId> = None;
    let (mut announced, mut read, mut echoed, mut finished) = (0, 0, 0, false);
    net.run_until(SECOND * 60, |net| {
        let now = net.now;
        if served.is_none() {
            served = net.nodes[server].events.iter().find_map(|e| match e {
                Event::Accepted { stream: Token(1001), socket, .. } => Some(*socket),
                _ => None,
            });
        }
        let capacity = u64::from(CAPACITY);
        if let (Some(socket), Some(state)) = (served, net.nodes[server].states.get(&1001).copied()) {
            let upto = state.rx_tail.min(state.tx_head + capacity);
            let node = &mut net.nodes[server];
            if upto > echoed {
                let bytes = node.memory.received[&1001][..usize::try_from(upto).unwrap()].to_vec();
                node.memory.sending.insert(1001, bytes);
                node.stack.tcp_send(now, socket, upto).unwrap();
                node.stack.tcp_received(now, socket, upto).unwrap();
                echoed = upto;
            }
            if state.peer_finished && echoed == state.rx_tail && !finished {
                node.stack.tcp_close(now, socket).unwrap();
                finished = true;
            }
        }
        let Some(state) = net.nodes[client].states.get(&1).copied() else { return false };
        let node = &mut net.nodes[client];
        if state.state == TcpState::Established {
            let upto = (state.tx_head + capacity).min(len as u64);
            if upto > announced {
                node.stack.tcp_send(now, id, upto).unwrap();
                announced = upto;
                if upto == len as u64 {
                    node.stack.tcp_finish(now, id).unwrap();
                }
            }
        }
        if state.rx_tail > read && !state.released {
            read = state.rx_tail;
            // In TIME-WAIT the stack has no more use for the stream; the event that says so may not be polled yet.
            assert!(matches!(node.stack.tcp_received(now, id, read), Ok(()) | Err(Error::NoSuchSocket)));
        }
        assert_eq!(state.error, None);
        state.peer_finished
    });
    assert!(net.nodes[client].memory.received[&1] == data, "what came back is what was sent");
    net.nodes[server].stack.tcp_unlisten(listener);
}

#[test]
fn tcp_echoes_a_megabyte_in_both_families() {
    for remote in ["10.0.0.2:80", "[2001:db8::2]:80"] {
        let mut net = Net::new();
        echo(&mut net, A, at(remote), 1 << 20);
        for n in &net.nodes {
            let c = n.stack.counters();
            assert_eq!((c.drop_checksum, c.drop_malformed, c.drop_no_neighbor, c.tcp_retransmits), (0, 0, 0, 0));
        }
        assert!(net.log.iter().any(|(_, f)| f.len() == 1514), "full frames");
    }
}

#[test]
fn tcp_to_ourselves_never_reaches_the_wire() {
    for remote in ["10.0.0.2:80", "[2001:db8::2]:80", "127.0.0.1:80", "[::1]:80"] {
        let mut net = Net::new();
        net.run(SECOND);
        net.log.clear();
        echo(&mut net, B, at(remote), 1 << 20);
        assert!(net.log.is_empty(), "{remote}");
    }
}

#[test]
fn connecting_to_a_closed_port_or_nowhere() {
    let mut net = Net::new();
    let options = TcpOptions::default();
    for (token, remote) in [(1, "10.0.0.2:81"), (2, "[2001:db8::2]:81")] {
        let (node, now) = (&mut net.nodes[A], net.now);
        node.stack.tcp_connect(now, Token(token), None, at(remote), stream(token), options, &mut node.memory).unwrap();
        net.run(SECOND);
        assert_eq!(net.nodes[A].states[&token].error, Some(Error::Refused), "{remote}");
    }
    let (node, now) = (&mut net.nodes[A], net.now);
    let mut connect = |local: Option<&str>, remote| {
        node.stack.tcp_connect(now, Token(9), local.map(at), at(remote), stream(9), options, &mut node.memory).err()
    };
    assert_eq!(connect(None, "192.0.2.1:80"), Some(Error::NetworkUnreachable));
    assert_eq!(connect(None, "224.0.0.1:80"), Some(Error::NetworkUnreachable));
    assert_eq!(connect(None, "10.0.0.255:80"), Some(Error::NetworkUnreachable));
    assert_eq!(connect(Some("10.0.0.9:0"), "10.0.0.2:80"), Some(Error::AddressNotAvailable));
    assert_eq!(connect(Some("127.0.0.1:0"), "10.0.0.2:80"), Some(Error::NetworkUnreachable));
}

#[test]
fn another_shard_is_told_and_nothing_is_done() {
    let mut net = Net::new();
    let options = TcpOptions::default();
    let (node, now) = (&mut net.nodes[A], net.now);
    node.stack.tcp_connect(now, Token(1), None, at("10.0.0.2:81"), stream(1), options, &mut node.memory).unwrap();
    net.run(SECOND / 10);
    let is_syn = |f: &Vec<u8>| f.len() > 48 && f[23] == 6 && f[47] == 2;
    let syn = net.log.iter().find(|(n, f)| *n == A && is_syn(f)).unwrap().1.clone();
    let b = &mut net.nodes[B];
    let before = b.stack.counters();
    let verdict = b.stack.handle_frame(net.now, &syn, &mut b.memory, Unknown::Report);
    let Verdict::Elsewhere { protocol: 6, local_port: 81, hash } = verdict else { panic!("{verdict:?}") };
    assert_ne!(hash, 0);
    assert_eq!(b.stack.counters(), before);
    assert!(!b.stack.has_output());
    // A datagram in fragments can only be handed over whole.
    let id = net.nodes[A].stack.udp_open(Token(2), at_any(0), false).unwrap();
    net.nodes[A].send(id, Token(2), at("10.0.0.2:82"), vec![7; 3000]);
    let now = net.now;
    let frames = net.nodes[A].frames(now);
    let b = &mut net.nodes[B];
    let mut last = Verdict::Handled;
    for f in &frames {
        last = b.stack.handle_frame(now, f, &mut b.memory, Unknown::Report);
    }
    assert_eq!(last, Verdict::Handled);
    let stray = b.stack.poll_stray().unwrap();
    assert_eq!((stray.protocol, stray.local_port), (17, 82));
    b.stack.udp_open(Token(3), at_any(82), false).unwrap();
    assert_eq!(b.stack.handle_stray(now, &stray.frame, &mut b.memory, Unknown::Report), Verdict::Handled);
    assert_eq!(b.memory.datagrams[0].2, [7; 3000]);
    // Such a frame from a wire is nobody's.
    let dropped = b.stack.counters().drop_not_ours;
    assert_eq!(b.stack.handle_frame(now, &stray.frame, &mut b.memory, Unknown::Report), Verdict::Handled);
    assert_eq!((b.stack.counters().drop_not_ours, b.memory.datagrams.len()), (dropped + 1, 1));
}

/// Two shards with the same addresses: a client on one, a server on the other, and no wire.
#[test]
fn loopback_goes_from_shard_to_shard() {
    for remote in ["10.0.0.1:80", "127.0.0.1:80", "[::1]:80"] {
        let mut shards = [Node::new(config(A)), Node::new(config(A))];
        let now = Instant::from_millis(1000);
        for s in &mut shards {
            s.stack.set_shared(true);
            s.frames(now);
        }
        let [client, server] = &mut shards;
        server.stack.tcp_listen(Token(3), at_any(80), 16, CAPACITY, TcpOptions::default(), false).unwrap();
        let udp = server.stack.udp_open(Token(4), at_any(80), false).unwrap();
        client.memory.sending.insert(1, vec![0x42; 3000]);
        let options = TcpOptions::default();
        let (id, _) =
            client.stack.tcp_connect(now, Token(1), None, at(remote), stream(1), options, &mut client.memory).unwrap();
        client.stack.tcp_send(now, id, 3000).unwrap();
        let from = client.stack.udp_open(Token(2), at_any(0), false).unwrap();
        client.stack.udp_set_peer(from, Some(at(remote)), &mut client.memory).unwrap();
        client.send(from, Token(2), at(remote), vec![7; 10_000]);
        let exchange = |shards: &mut [Node; 2]| {
            for n in [A, B, A, B, A, B, A, B, A, B] {
                assert!(shards[n].frames(now).is_empty());
                while let Some(stray) = shards[n].stack.poll_stray() {
                    let to = &mut shards[1 - n];
                    to.stack.handle_stray(now, &stray.frame, &mut to.memory, Unknown::Answer);
                }
            }
        };
        exchange(&mut shards);
        assert_eq!(shards[B].memory.received[&1001], [0x42; 3000], "{remote}");
        assert_eq!(shards[B].memory.datagrams[0].2, [7; 10_000]);
        // A closed port is refused across shards, too.
        shards[B].stack.udp_close(udp);
        shards[A].send(from, Token(2), at(remote), vec![]);
        exchange(&mut shards);
        assert!(
            shards[A].events.contains(&Event::DatagramError { token: Token(2), error: Error::Refused }),
            "{remote}"
        );
    }
}

/// Segments between ourselves are as long as a quarter of the ring, and one of them costs no ACK of its own.
#[test]
fn segments_to_ourselves_are_long() {
    let mut net = Net::new();
    net.run(SECOND);
    let before = net.nodes[B].stack.counters();
    echo(&mut net, B, at("127.0.0.1:80"), 1 << 20);
    let after = net.nodes[B].stack.counters();
    let (packets, quarter) = (after.loopback - before.loopback, u64::from(CAPACITY) / 4);
    let fewest = 2 * (1 << 20) / quarter;
    assert!((fewest..4 * fewest).contains(&packets), "{packets} packets, {fewest} segments");
    assert_eq!(after.tcp_retransmits, 0);
}

/// A socket that connects to its own address is connected to itself (RFC 9293 3.5, simultaneous open; as Linux).
#[test]
fn a_connection_with_itself() {
    for own in ["127.0.0.1:7", "[::1]:7", "10.0.0.1:7"] {
        let mut node = Node::new(config(A));
        let now = Instant::from_millis(1000);
        node.frames(now);
        let options = TcpOptions::default();
        node.memory.sending.insert(1, vec![0x42; 3000]);
        let connected =
            node.stack.tcp_connect(now, Token(1), Some(at(own)), at(own), stream(1), options, &mut node.memory);
        let (id, local) = connected.unwrap();
        assert_eq!(local, at(own));
        assert!(node.frames(now).is_empty());
        node.stack.tcp_send(now, id, 3000).unwrap();
        assert!(node.frames(now).is_empty());
        assert_eq!(node.memory.received[&1], [0x42; 3000], "{own}");
        assert_eq!(node.states[&1].state, TcpState::Established);
        // Its own FIN is the peer's.
        node.stack.tcp_received(now, id, 3000).unwrap();
        node.stack.tcp_finish(now, id).unwrap();
        assert!(node.frames(now).is_empty());
        assert!(node.states[&1].peer_finished && node.states[&1].error.is_none());
    }
}

/// Whoever asks a port of ours that nobody has gets an answer, however often.
#[test]
fn refusals_to_ourselves_are_not_limited() {
    let mut c = config(A);
    c.limits.replies_per_second = 1;
    let mut node = Node::new(c);
    let now = Instant::from_millis(1000);
    let options = TcpOptions::default();
    for n in 0..20 {
        let (s, m) = (stream(n), &mut node.memory);
        node.stack.tcp_connect(now, Token(n), None, at("127.0.0.1:9"), s, options, m).unwrap();
        node.frames(now);
        assert_eq!(node.states[&n].error, Some(Error::Refused));
    }
}
