//! Every way that a connection begins and ends.

use super::*;
use crate::tcp::segment::{ACK, FIN, RST, SYN};

fn state(net: &Net, side: usize, token: u64) -> TcpState {
    net.ends[side].programs.sockets[&token].state()
}

fn both_empty(net: &Net) -> bool {
    net.ends
        .iter()
        .all(|end| end.tcp.connections.len() == 0 && end.tcp.time_waits.len() == 0 && end.tcp.flows.len() == 0)
}

/// Lets every timer run out and looks for what is left behind.
fn assert_nothing_remains(net: &mut Net) {
    net.run_for(Duration::from_secs(400));
    for end in &net.ends {
        assert_eq!(end.tcp.connections.len(), 0, "connections");
        assert_eq!(end.tcp.half_open.len(), 0, "half-open");
        assert_eq!(end.tcp.time_waits.len(), 0, "TIME-WAIT");
        assert_eq!(end.tcp.flows.len(), 0, "flows");
        assert_eq!(end.tcp.wheel.len(), 0, "timers");
        assert!(end.tcp.ready.is_empty() && end.tcp.deferred.is_empty() && end.tcp.events.is_empty());
    }
}

#[test]
fn client_finishes_first() {
    let mut net = Net::listening(Pipe::default());
    let (client, server) = net.pair();
    net.socket(CLIENT, client).finish = true;
    net.run_for(Duration::from_millis(100));
    assert_eq!((state(&net, CLIENT, client), state(&net, SERVER, server)), (TcpState::FinWait2, TcpState::CloseWait));
    assert!(net.socket(SERVER, server).peer_finished());
    // Half closed: the other direction still works, for as long as it likes.
    net.run_for(Duration::from_secs(300));
    net.socket(SERVER, server).outgoing = pattern(200_000, 3);
    net.run_for(Duration::from_secs(1));
    assert!(net.socket(CLIENT, client).received == pattern(200_000, 3));
    net.socket(SERVER, server).finish = true;
    net.run_for(Duration::from_millis(100));
    assert_eq!((state(&net, CLIENT, client), state(&net, SERVER, server)), (TcpState::TimeWait, TcpState::Closed));
    assert!(net.socket(CLIENT, client).released() && net.socket(SERVER, server).released());
    assert_eq!(net.ends[CLIENT].tcp.time_waits.len(), 1);
    let mut seen = 0;
    net.ends[CLIENT].tcp.for_each(net.now, &mut |token, _, info| {
        assert_eq!((token, info.state), (Token(u64::MAX), TcpState::TimeWait));
        seen += 1;
    });
    assert_eq!(seen, 1);
    assert_nothing_remains(&mut net);
}

#[test]
fn both_close_at_once() {
    let mut net = Net::listening(Pipe::default());
    let (client, server) = net.pair();
    net.close(CLIENT, client);
    net.close(SERVER, server);
    net.run_for(Duration::from_millis(100));
    assert_eq!((state(&net, CLIENT, client), state(&net, SERVER, server)), (TcpState::TimeWait, TcpState::TimeWait));
    assert_nothing_remains(&mut net);
}

/// Both sides do these, at these times, over a pipe that loses a tenth: no order leaves anything behind.
#[test]
fn every_order_of_closing() {
    for seed in 0..60_u64 {
        let mut net = Net::listening(Pipe { seed, loss: 100, duplicate: 50, reorder: 100, ..Pipe::default() });
        let (client, server) = net.pair();
        let steps = [(CLIENT, client), (SERVER, server)];
        for (side, token) in steps {
            let socket = net.socket(side, token);
            socket.outgoing = pattern(5_000 * (seed as usize % 3), 1);
            socket.finish = seed & 4 != 0;
        }
        let order = if seed & 1 == 0 { steps } else { [steps[1], steps[0]] };
        for (side, token) in order {
            net.run_for(Duration::from_millis(seed / 8 * 40));
            let socket = net.socket(side, token);
            if socket.released() {
                continue;
            }
            if seed & 2 == 0 {
                net.close(side, token);
            } else if socket.state() != TcpState::Closed {
                socket.closed = true;
                net.verb(side, token, Tcp::abort);
            }
        }
        net.run_for(Duration::from_secs(600));
        for (side, token) in steps {
            assert!(net.socket(side, token).released(), "seed {seed}, side {side}: {:?}", state(&net, side, token));
        }
        assert_nothing_remains(&mut net);
    }
}

#[test]
fn closing_with_unread_data_resets() {
    let mut net = Net::listening(Pipe::default());
    let (client, server) = net.pair();
    net.socket(SERVER, server).reads = false;
    net.socket(CLIENT, client).outgoing = vec![1; 10];
    net.run_for(Duration::from_millis(100));
    net.close(SERVER, server);
    net.run_for(Duration::from_millis(100));
    assert_eq!(net.socket(CLIENT, client).error, Some(Error::Reset));
    assert!(net.socket(CLIENT, client).released() && both_empty(&net));
}

#[test]
fn data_for_nobody_resets() {
    let mut net = Net::listening(Pipe::default());
    let (client, server) = net.pair();
    net.close(SERVER, server);
    net.run_for(Duration::from_millis(100));
    assert_eq!(state(&net, CLIENT, client), TcpState::CloseWait);
    net.socket(CLIENT, client).outgoing = vec![1; 10];
    net.run_for(Duration::from_millis(100));
    assert_eq!(net.socket(CLIENT, client).error, Some(Error::BrokenPipe));
    assert!(both_empty(&net));
}

#[test]
fn an_orphan_does_not_wait_for_ever() {
    let mut net = Net::listening(Pipe::default());
    let (client, server) = net.pair();
    net.close(CLIENT, client);
    net.run_for(Duration::from_millis(100));
    assert!(net.socket(CLIENT, client).released(), "its memory isn't needed in FIN-WAIT-2");
    assert_eq!(net.ends[CLIENT].tcp.connections.len(), 1);
    net.run_for(Duration::from_secs(61));
    assert_eq!(net.ends[CLIENT].tcp.connections.len(), 0);
    // The server's half is alive until it uses it.
    net.socket(SERVER, server).outgoing = vec![1; 10];
    net.run_for(Duration::from_millis(100));
    assert_eq!(net.socket(SERVER, server).error, Some(Error::BrokenPipe));
}

#[test]
fn an_orphan_in_a_dead_net_gives_up() {
    let mut net = Net::listening(Pipe::default());
    let (client, _) = net.pair();
    net.socket(CLIENT, client).outgoing = vec![1; 10];
    net.pump();
    net.down = true;
    net.close(CLIENT, client);
    net.run_for(Duration::from_secs(300));
    assert!(net.socket(CLIENT, client).released());
    assert_eq!(net.ends[CLIENT].tcp.connections.len(), 0);
}

#[test]
fn simultaneous_open() {
    for loss in [0, 200] {
        for seed in 0..10 {
            let mut net = Net::new(Pipe { seed, loss, ..Pipe::default() });
            let a = net.connect_from(CLIENT, TcpOptions::default(), 1000, 2000).unwrap();
            let b = net.connect_from(SERVER, TcpOptions::default(), 2000, 1000).unwrap();
            net.socket(CLIENT, a).outgoing = pattern(50_000, 1);
            net.socket(SERVER, b).outgoing = pattern(50_000, 2);
            net.socket(CLIENT, a).finish = true;
            net.socket(SERVER, b).finish = true;
            net.run_until(|net| {
                net.ends[CLIENT].programs.sockets[&a].released() && net.ends[SERVER].programs.sockets[&b].released()
            });
            assert!(net.socket(CLIENT, a).received == pattern(50_000, 2), "seed {seed}");
            assert!(net.socket(SERVER, b).received == pattern(50_000, 1), "seed {seed}");
            assert_nothing_remains(&mut net);
        }
    }
}

#[test]
fn nobody_listens() {
    let mut net = Net::new(Pipe::default());
    let client = net.connect();
    net.run_for(Duration::from_millis(100));
    assert_eq!(net.socket(CLIENT, client).error, Some(Error::Refused));
    assert!(net.socket(CLIENT, client).released() && both_empty(&net));
}

#[test]
fn nobody_answers() {
    let mut net = Net::new(Pipe::default());
    net.down = true;
    let client = net.connect();
    net.run_for(Duration::from_secs(126));
    assert_eq!(net.socket(CLIENT, client).error, None);
    // tcp(7): six retransmissions, 127 seconds.
    net.run_for(Duration::from_secs(2));
    assert_eq!(net.socket(CLIENT, client).error, Some(Error::TimedOut));
    assert_nothing_remains(&mut net);
}

#[test]
fn closing_before_there_is_a_connection() {
    let mut net = Net::new(Pipe::default());
    net.down = true;
    let client = net.connect();
    net.pump();
    net.close(CLIENT, client);
    net.pump();
    assert!(net.socket(CLIENT, client).released() && both_empty(&net));
}

#[test]
fn a_full_accept_queue_is_tried_again() {
    let mut net = Net::listening(Pipe::default());
    net.ends[SERVER].programs.room = 0;
    let client = net.connect();
    net.run_for(Duration::from_millis(500));
    // The client thinks that it is connected, and sends.
    assert_eq!(state(&net, CLIENT, client), TcpState::Established);
    net.socket(CLIENT, client).outgoing = pattern(1000, 1);
    net.run_for(Duration::from_millis(100));
    assert_eq!(net.ends[SERVER].tcp.half_open.len(), 1);
    net.ends[SERVER].programs.room = 1;
    net.run_until(|net| !net.ends[SERVER].programs.accepted.is_empty());
    let server = net.ends[SERVER].programs.accepted[0];
    net.run_for(Duration::from_secs(3));
    assert!(net.socket(SERVER, server).received == pattern(1000, 1));
    assert_eq!(net.ends[SERVER].tcp.half_open.len(), 0);
}

#[test]
fn unlisten_takes_half_open_connections_along() {
    let mut net = Net::listening(Pipe::default());
    net.filter = Some(|segment| segment.has(SYN | ACK));
    net.connect();
    net.run_for(Duration::from_millis(100));
    assert_eq!(net.ends[SERVER].tcp.half_open.len(), 1);
    let listener = net.ends[SERVER].listener.unwrap();
    net.ends[SERVER].tcp.unlisten(listener);
    net.ends[SERVER].tcp.unlisten(listener);
    assert_eq!((net.ends[SERVER].tcp.half_open.len(), net.ends[SERVER].tcp.wheel.len()), (0, 0));
    assert!(both_empty(&Net::new(Pipe::default())));
    net.listen(1);
}

#[test]
fn listeners_and_ports() {
    let mut net = Net::new(Pipe::default());
    let tcp = &mut net.ends[SERVER].tcp;
    let mut listen = |address: Option<&str>, ipv4, ipv6, reuse| {
        let at = ListenAddress { address: address.map(|a| a.parse().unwrap()), port: 80, ipv4, ipv6 };
        tcp.listen(Token(1), at, 1, 1 << 16, TcpOptions::default(), reuse)
    };
    let first = listen(Some("10.0.0.2"), true, false, false).unwrap();
    listen(Some("10.0.0.3"), true, false, false).unwrap();
    listen(None, false, true, false).unwrap();
    assert_eq!(listen(None, true, false, false), Err(Error::AddressInUse));
    assert_eq!(listen(Some("10.0.0.2"), true, false, true), Err(Error::AddressInUse));
    assert_eq!(listen(Some("::1"), false, true, false), Err(Error::AddressInUse));
    let at = |a: &str| net.ends[SERVER].tcp.find_listener(a.parse().unwrap(), 80, 0);
    assert_eq!(at("10.0.0.2"), Some(first.index & 0xff));
    assert_eq!(at("10.0.0.9"), None);
    assert!(at("fd00::1").is_some());
    assert_eq!(net.ends[SERVER].tcp.info(first, net.now).unwrap().state, TcpState::Listen);
}

#[test]
fn reuse_port_spreads() {
    let mut net = Net::new(Pipe::default());
    let tcp = &mut net.ends[SERVER].tcp;
    let at = ListenAddress { address: None, port: 80, ipv4: true, ipv6: false };
    for _ in 0..4 {
        tcp.listen(Token(1), at, 1, 1 << 16, TcpOptions::default(), true).unwrap();
    }
    let mut hits = [0; 4];
    for i in 0..400_u64 {
        let hash = SipKey::new([0; 16]).hash_words([i]);
        hits[tcp.find_listener("10.0.0.2".parse().unwrap(), 80, hash).unwrap() as usize] += 1;
    }
    assert!(hits.iter().all(|n| *n > 60), "{hits:?}");
}

#[test]
fn time_wait_is_reused_by_a_newer_connection() {
    for timestamps in [true, false] {
        let config = TcpConfig { timestamps, ..TcpConfig::default() };
        let mut net = Net::listening(Pipe { config, ..Pipe::default() });
        let client = net.connect_with(TcpOptions::default(), 5000, SERVER_PORT).unwrap();
        net.run_for(Duration::from_millis(50));
        let server = net.ends[SERVER].programs.accepted[0];
        net.close(SERVER, server);
        net.run_for(Duration::from_millis(50));
        net.close(CLIENT, client);
        net.run_for(Duration::from_millis(50));
        assert_eq!(net.ends[SERVER].tcp.time_waits.len(), 1);
        // The same tuple again: the server's TIME-WAIT makes room for it.
        let again = net.connect_with(TcpOptions::default(), 5000, SERVER_PORT).unwrap();
        net.socket(CLIENT, again).outgoing = pattern(100, 9);
        net.run_for(Duration::from_millis(50));
        assert_eq!(state(&net, CLIENT, again), TcpState::Established, "timestamps {timestamps}");
        let server = net.ends[SERVER].programs.accepted[1];
        assert!(net.socket(SERVER, server).received == pattern(100, 9));
        assert_eq!(net.ends[SERVER].tcp.time_waits.len(), 0);
    }
}

#[test]
fn our_own_time_wait_is_reused_when_the_clock_has_moved() {
    let mut net = Net::listening(Pipe::default());
    let client = net.connect_with(TcpOptions::default(), 5000, SERVER_PORT).unwrap();
    net.run_for(Duration::from_millis(50));
    let server = net.ends[SERVER].programs.accepted[0];
    net.close(CLIENT, client);
    net.run_for(Duration::from_millis(50));
    net.close(SERVER, server);
    net.run_for(Duration::from_millis(50));
    let again = |net: &mut Net| net.connect_with(TcpOptions::default(), 5000, SERVER_PORT);
    assert_eq!(again(&mut net), Err(Error::AddressNotAvailable));
    net.run_for(Duration::from_secs(2));
    let client = again(&mut net).unwrap();
    net.run_for(Duration::from_millis(50));
    assert_eq!(state(&net, CLIENT, client), TcpState::Established);
}

#[test]
fn time_wait_records_are_bounded() {
    let limits = Limits { time_wait: 3, ..Limits::default() };
    let mut net = Net::listening(Pipe { limits, ..Pipe::default() });
    for _ in 0..10 {
        let (client, server) = net.pair();
        net.close(CLIENT, client);
        net.run_for(Duration::from_millis(20));
        net.close(SERVER, server);
        net.run_for(Duration::from_millis(20));
    }
    assert_eq!(net.ends[CLIENT].tcp.time_waits.len(), 3);
    assert_nothing_remains(&mut net);
}

#[test]
fn a_lost_last_ack_is_repeated_by_time_wait() {
    let mut net = Net::listening(Pipe::default());
    let (client, server) = net.pair();
    net.close(CLIENT, client);
    net.run_for(Duration::from_millis(20));
    // The ACK of the server's FIN gets lost, and the FIN comes again.
    net.filter = Some(|segment| segment.destination_port == SERVER_PORT && segment.flags == ACK);
    net.close(SERVER, server);
    net.run_for(Duration::from_millis(150));
    assert_eq!(net.ends[CLIENT].tcp.time_waits.len(), 1);
    assert_eq!(net.ends[SERVER].tcp.connections.len(), 1);
    net.filter = None;
    net.run_for(Duration::from_secs(1));
    assert_eq!(net.ends[SERVER].tcp.connections.len(), 0);
}

#[test]
fn fins_ride_on_the_last_data() {
    let mut net = Net::listening(Pipe::default());
    let (client, _) = net.pair();
    net.socket(CLIENT, client).outgoing = pattern(100, 1);
    net.socket(CLIENT, client).finish = true;
    let before = net.sent.len();
    net.pump();
    // The programs of the harness write first and finish then, within one turn.
    let sent: Vec<u8> = net.sent[before..].iter().map(|p| Segment::parse(&p.bytes).unwrap().flags).collect();
    assert_eq!(sent.len(), 1, "{sent:?}");
    assert!(sent[0] & (FIN | RST) == FIN);
}
