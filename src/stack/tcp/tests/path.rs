//! Paths that take less than the link, with and without ICMP; options that wait; what records cost.

use super::*;
use crate::MtuDiscovery;
use crate::tcp::IcmpError;

/// Drops everything that is larger than 1,200 bytes of payload with options, in silence.
fn swallows_large(segment: &Segment<'_>) -> bool {
    segment.payload.len() > 1188
}

#[test]
fn a_black_hole_is_found_and_measured() {
    let mut net = Net::listening(Pipe { delay: Duration::from_millis(5), ..Pipe::default() });
    let (client, server) = net.pair();
    net.filter = Some(swallows_large);
    net.socket(CLIENT, client).outgoing = pattern(400_000, 1);
    let start = net.now;
    net.run_until(|net| net.ends[SERVER].programs.sockets[&server].received.len() == 400_000);
    assert!(net.socket(SERVER, server).received == pattern(400_000, 1));
    assert!(net.now.since(start) < Duration::from_secs(20), "{:?}", net.now.since(start));
    // 1024 at once, then half the distance to 1460, each time that it works or doesn't.
    let mss = net.info(CLIENT, client).send_mss + 12;
    assert!((1180..=1200).contains(&mss), "{mss}");
    // The path becomes better: after ten minutes that is found out too.
    net.filter = None;
    net.run_for(Duration::from_secs(601));
    net.socket(CLIENT, client).outgoing = pattern(400_000, 1);
    net.run_until(|net| net.ends[SERVER].programs.sockets[&server].received.len() == 800_000);
    assert!(net.info(CLIENT, client).send_mss + 12 > 1450, "{}", net.info(CLIENT, client).send_mss);
}

#[test]
fn without_probing_a_black_hole_swallows_everything() {
    let config = TcpConfig { mtu_probing: false, ..TcpConfig::default() };
    let mut net = Net::listening(Pipe { config, ..Pipe::default() });
    let (client, server) = net.pair();
    net.filter = Some(swallows_large);
    net.socket(CLIENT, client).outgoing = pattern(400_000, 1);
    net.run_for(Duration::from_secs(60));
    assert_eq!(net.socket(SERVER, server).received.len(), 0);
}

#[test]
fn a_dead_path_is_not_taken_for_a_small_one() {
    let mut net = Net::listening(Pipe::default());
    let (client, _) = net.pair();
    net.socket(CLIENT, client).outgoing = pattern(300, 1);
    net.down = true;
    net.run_for(Duration::from_secs(30));
    assert_eq!(net.info(CLIENT, client).send_mss, 1448, "segments of 300 bytes were lost as well");
}

/// Tells the client that a segment of its was too big.
fn too_big(net: &mut Net, client: u64, mtu: u32) {
    let id = net.socket(CLIENT, client).id.unwrap();
    let info = net.ends[CLIENT].tcp.info(id, net.now).unwrap();
    let connection = net.ends[CLIENT].tcp.connections.get_mut(id.index).unwrap();
    let sequence = connection.send_sequence(connection.una);
    net.with(CLIENT, |tcp, cx| tcp.handle_icmp(cx, info.local, info.remote, sequence, IcmpError::TooBig { mtu }));
}

#[test]
fn what_icmp_says_holds_for_the_next_connection_and_for_ten_minutes() {
    let mut net = Net::listening(Pipe::default());
    let (client, server) = net.pair();
    net.down = true;
    net.socket(CLIENT, client).outgoing = pattern(100_000, 1);
    net.pump();
    too_big(&mut net, client, 1200);
    net.down = false;
    let info = net.info(CLIENT, client);
    assert_eq!((info.send_mss, info.path_mtu, info.announced_mss), (1148, 1200, 1460));
    net.run_until(|net| net.ends[SERVER].programs.sockets[&server].received.len() == 100_000);
    let (next, _) = net.pair();
    let info = net.info(CLIENT, next);
    assert_eq!((info.send_mss, info.path_mtu, info.announced_mss), (1148, 1200, 1460), "we still take more");
    // RFC 1191 6.3.
    net.run_for(Duration::from_secs(601));
    net.socket(CLIENT, client).outgoing = pattern(100_000, 1);
    net.run_until(|net| net.ends[SERVER].programs.sockets[&server].received.len() == 200_000);
    assert_eq!(net.info(CLIENT, client).send_mss, 1448);
    let (last, _) = net.pair();
    assert_eq!(net.info(CLIENT, last).send_mss, 1448);
}

#[test]
fn who_probes_by_himself_is_not_told() {
    let mut net = Net::listening(Pipe::default());
    let options = TcpOptions { mtu_discovery: MtuDiscovery::Probe, ..TcpOptions::default() };
    let client = net.connect_with(options, 0, SERVER_PORT).unwrap();
    net.run_for(Duration::from_millis(10));
    net.down = true;
    net.socket(CLIENT, client).outgoing = pattern(100_000, 1);
    net.pump();
    too_big(&mut net, client, 1200);
    assert_eq!(net.info(CLIENT, client).send_mss, 1448);
}

#[test]
fn a_deferred_connection_comes_with_its_data() {
    let mut net = Net::new(Pipe::default());
    let at = ListenAddress { address: None, port: SERVER_PORT, ipv4: true, ipv6: true };
    let options = TcpOptions { defer_accept: 3, ..TcpOptions::default() };
    net.ends[SERVER].tcp.listen(Token(7), at, 128, net.pipe.rx_capacity, options, false).unwrap();
    let client = net.connect();
    net.run_for(Duration::from_millis(500));
    assert_eq!(net.socket(CLIENT, client).state(), TcpState::Established);
    assert_eq!(net.ends[SERVER].programs.accepted.len(), 0, "nobody hears of it yet");
    net.socket(CLIENT, client).outgoing = pattern(100, 1);
    net.run_for(Duration::from_millis(10));
    let server = net.ends[SERVER].programs.accepted[0];
    assert_eq!(net.socket(SERVER, server).received.len(), 100);
    // Without data: at the end of the time.
    net.connect();
    net.run_for(Duration::from_millis(2500));
    assert_eq!(net.ends[SERVER].programs.accepted.len(), 1);
    net.run_for(Duration::from_secs(3));
    assert_eq!(net.ends[SERVER].programs.accepted.len(), 2);
}

#[test]
fn linger2_bounds_the_half_closed_state() {
    for (linger2, gone_after) in [(2, 3), (-1, 1)] {
        let mut net = Net::listening(Pipe::default());
        let options = TcpOptions { linger2, ..TcpOptions::default() };
        let client = net.connect_with(options, 0, SERVER_PORT).unwrap();
        net.run_for(Duration::from_millis(10));
        net.close(CLIENT, client);
        net.run_for(Duration::from_secs(1));
        assert_eq!(net.ends[CLIENT].tcp.connections.len(), usize::from(linger2 > 0), "linger2 {linger2}");
        net.run_for(Duration::from_secs(gone_after - 1));
        assert_eq!(net.ends[CLIENT].tcp.connections.len(), 0);
        let resets = net.ends[CLIENT].counters.tcp_resets_out;
        assert_eq!(resets, u64::from(linger2 < 0), "linger2 {linger2}");
    }
}

#[test]
fn syncnt_bounds_the_handshake() {
    let mut net = Net::new(Pipe::default());
    net.down = true;
    let client = net.connect_with(TcpOptions { syn_retries: 2, ..TcpOptions::default() }, 0, SERVER_PORT).unwrap();
    net.run_for(Duration::from_millis(6900));
    assert_eq!(net.socket(CLIENT, client).error, None);
    net.run_for(Duration::from_millis(200));
    assert_eq!(net.socket(CLIENT, client).error, Some(Error::TimedOut), "1 + 2 + 4 seconds");
}

#[test]
fn no_sample_from_the_handshake_means_three_seconds() {
    let config = TcpConfig { timestamps: false, ..TcpConfig::default() };
    let mut net = Net::listening(Pipe { config, ..Pipe::default() });
    net.down = true;
    let client = net.connect();
    net.run_for(Duration::from_millis(900));
    net.down = false;
    // The second SYN gets through; its answer could be that of the first.
    net.run_for(Duration::from_millis(200));
    assert_eq!(net.socket(CLIENT, client).state(), TcpState::Established);
    assert_eq!(net.info(CLIENT, client).rto, Duration::from_secs(3));
    net.socket(CLIENT, client).outgoing = pattern(100, 1);
    net.run_for(Duration::from_millis(100));
    assert!(net.info(CLIENT, client).rto < Duration::from_secs(1), "the first data measures");
}
