//! Data arrives whole and in order, whatever the pipe does.

use super::*;

/// Both directions at once, then FINs; returns the time it took.
fn transfer(pipe: Pipe, bytes: usize) -> Net {
    let mut net = Net::listening(pipe);
    let (client, server) = net.pair();
    for (side, token, salt) in [(CLIENT, client, 1), (SERVER, server, 2)] {
        let socket = net.socket(side, token);
        socket.outgoing = pattern(bytes, salt);
        socket.finish = true;
    }
    net.run_until(|net| {
        net.ends[CLIENT].programs.sockets[&client].released() && net.ends[SERVER].programs.sockets[&server].released()
    });
    assert!(net.socket(CLIENT, client).received == pattern(bytes, 2), "to the client, {pipe:?}");
    assert!(net.socket(SERVER, server).received == pattern(bytes, 1), "to the server, {pipe:?}");
    assert_eq!((net.socket(CLIENT, client).error, net.socket(SERVER, server).error), (None, None));
    net
}

#[test]
fn clean_pipe() {
    for ipv6 in [false, true] {
        let net = transfer(Pipe { ipv6, ..Pipe::default() }, 2_000_000);
        assert_eq!(net.ends.each_ref().map(|end| end.counters.tcp_retransmits), [0, 0]);
        assert!(net.now < Instant::from_millis(1_500), "{:?}", net.now);
    }
}

#[test]
fn empty_and_tiny() {
    for bytes in [0, 1, 2, 1448, 1449] {
        transfer(Pipe::default(), bytes);
    }
}

#[test]
fn lossy_pipes() {
    for seed in 0..6 {
        for (loss, duplicate, reorder) in
            [(10, 0, 0), (50, 0, 0), (100, 20, 20), (0, 0, 300), (0, 200, 0), (20, 20, 100)]
        {
            transfer(Pipe { seed, loss, duplicate, reorder, ipv6: seed % 2 == 1, ..Pipe::default() }, 300_000);
        }
    }
}

#[test]
fn without_options() {
    for (timestamps, window_scaling, sack) in [(false, true, true), (true, false, false), (false, false, false)] {
        for congestion in [crate::Congestion::Cubic, crate::Congestion::Reno] {
            let config = TcpConfig { timestamps, window_scaling, sack, congestion, ..TcpConfig::default() };
            for loss in [0, 30] {
                transfer(Pipe { config, loss, seed: 3, rx_capacity: 1 << 19, ..Pipe::default() }, 400_000);
            }
        }
    }
}

#[test]
fn small_rings_and_odd_links() {
    for (rx_capacity, tx_capacity) in [(256, 1 << 17), (1 << 17, 256), (4096, 4096), (1024, 1 << 20)] {
        transfer(Pipe { rx_capacity, tx_capacity, loss: 10, ..Pipe::default() }, 30_000);
    }
    for mtu in [1280, 1492, 9000] {
        transfer(Pipe { mtu, loss: 10, rx_capacity: 1 << 20, tx_capacity: 1 << 20, ..Pipe::default() }, 1_000_000);
    }
}

#[test]
fn numbers_wrap() {
    for fixed in [u32::MAX, u32::MAX - 1, u32::MAX - 2, u32::MAX - 50_000, 0, 1 << 31, (1 << 31) - 20_000] {
        for (sack, loss) in [(true, 0), (true, 50), (false, 50)] {
            let config = TcpConfig { sack, ..TcpConfig::default() };
            let mut net = Net::listening(Pipe { config, loss, seed: 5, ..Pipe::default() });
            for end in &mut net.ends {
                end.tcp.secrets.fixed_sequence = Some(fixed);
            }
            let (client, server) = net.pair();
            net.socket(CLIENT, client).outgoing = pattern(200_000, 1);
            net.socket(SERVER, server).outgoing = pattern(200_000, 2);
            net.socket(CLIENT, client).finish = true;
            net.socket(SERVER, server).finish = true;
            net.run_until(|net| {
                let sockets =
                    [&net.ends[CLIENT].programs.sockets[&client], &net.ends[SERVER].programs.sockets[&server]];
                sockets.iter().all(|socket| socket.released())
            });
            assert!(net.socket(CLIENT, client).received == pattern(200_000, 2), "from {fixed}");
            assert!(net.socket(SERVER, server).received == pattern(200_000, 1), "from {fixed}");
        }
    }
}

#[test]
fn one_loss_is_repaired_in_a_round_trip() {
    for sack in [true, false] {
        let config = TcpConfig { sack, ..TcpConfig::default() };
        let mut net = Net::listening(Pipe { config, ..Pipe::default() });
        let (client, server) = net.pair();
        net.socket(CLIENT, client).outgoing = pattern(100_000, 1);
        net.run_for(Duration::from_millis(2));
        net.drop_next = 1;
        let start = net.now;
        net.run_until(|net| net.ends[SERVER].programs.sockets[&server].received.len() == 100_000);
        assert!(net.now.since(start) < Duration::from_millis(20), "sack {sack}: {:?}", net.now.since(start));
        assert!(net.ends[CLIENT].counters.tcp_retransmits < 20, "sack {sack}");
    }
}

/// A long fat path with 1 % lost: what recovery by timeouts alone would never reach.
#[test]
fn throughput_under_loss() {
    let pipe = Pipe {
        loss: 10,
        seed: 11,
        delay: Duration::from_millis(5),
        rx_capacity: 1 << 21,
        tx_capacity: 1 << 21,
        ..Pipe::default()
    };
    let mut net = Net::listening(pipe);
    let (client, server) = net.pair();
    net.socket(CLIENT, client).outgoing = pattern(8_000_000, 1);
    let start = net.now;
    net.run_until(|net| net.ends[SERVER].programs.sockets[&server].received.len() == 8_000_000);
    let seconds = net.now.since(start).as_secs_f64();
    // Mathis: about mss / rtt * 1.2 / sqrt(p) = 1.7 MB/s for Reno.
    assert!(seconds < 8.0, "{seconds} s");
}

#[test]
fn zero_window_and_back() {
    for (loss, seed) in [(0, 1), (300, 2), (300, 3)] {
        let mut net = Net::listening(Pipe { rx_capacity: 1 << 14, loss, seed, ..Pipe::default() });
        let (client, server) = net.pair();
        net.socket(SERVER, server).reads = false;
        net.socket(CLIENT, client).outgoing = pattern(100_000, 1);
        // Hours of a peer that doesn't read.
        net.run_for(Duration::from_secs(3 * 3600));
        let snapshot = net.socket(SERVER, server).snapshot.unwrap();
        assert!(snapshot.rx_tail > (1 << 14) - 1460, "the ring is used but for less than a segment");
        assert_eq!(net.socket(CLIENT, client).error, None);
        let probes = net.sent.len();
        net.run_for(Duration::from_secs(1200));
        assert!((5..60).contains(&(net.sent.len() - probes)), "{} segments in 20 minutes", net.sent.len() - probes);
        net.socket(SERVER, server).reads = true;
        net.run_until(|net| net.ends[SERVER].programs.sockets[&server].received.len() == 100_000);
        assert!(net.socket(SERVER, server).received == pattern(100_000, 1));
    }
}

#[test]
fn a_slow_reader_gets_full_segments() {
    let mut net = Net::listening(Pipe { rx_capacity: 1 << 14, ..Pipe::default() });
    let (client, server) = net.pair();
    net.socket(SERVER, server).reads = false;
    net.socket(CLIENT, client).outgoing = pattern(60_000, 1);
    net.run_for(Duration::from_secs(1));
    let before = net.sent.len();
    // 100 bytes at a time: silly windows would make a segment of each.
    while net.socket(SERVER, server).rx_head < 40_000 {
        let socket = net.socket(SERVER, server);
        let (tail, head) = (socket.snapshot.unwrap().rx_tail, socket.rx_head);
        if tail > head {
            socket.rx_head = (head + 100).min(tail);
            let (id, head, now) = (socket.id.unwrap(), socket.rx_head, net.now);
            net.ends[SERVER].tcp.received(now, id, head).unwrap();
        }
        net.run_for(Duration::from_micros(200));
    }
    let data =
        net.sent[before..].iter().map(|p| Segment::parse(&p.bytes).unwrap().payload.len()).filter(|len| *len > 0);
    let lengths: Vec<usize> = data.collect();
    assert!(lengths.iter().filter(|len| **len < 1000).count() <= lengths.len() / 4, "{lengths:?}");
}

fn data_lengths(net: &Net, from: usize) -> Vec<usize> {
    let parsed = net.sent[from..].iter().map(|p| Segment::parse(&p.bytes).unwrap());
    parsed.filter(|s| s.destination_port == SERVER_PORT && !s.payload.is_empty()).map(|s| s.payload.len()).collect()
}

#[test]
fn nagle_cork_and_no_delay() {
    for (no_delay, cork, expect) in [(false, false, vec![10, 40]), (true, false, vec![10; 5]), (false, true, vec![50])]
    {
        let mut net = Net::listening(Pipe::default());
        let (client, _) = net.pair();
        let id = net.socket(CLIENT, client).id.unwrap();
        let (now, options) = (net.now, TcpOptions { no_delay, cork, ..TcpOptions::default() });
        net.ends[CLIENT].tcp.set_options(now, id, options).unwrap();
        let from = net.sent.len();
        for _ in 0..5 {
            net.socket(CLIENT, client).outgoing = pattern(10, 1);
            net.pump();
        }
        net.run_for(Duration::from_millis(100));
        if cork {
            assert_eq!(data_lengths(&net, from), [] as [usize; 0]);
            net.run_for(Duration::from_millis(110));
        }
        assert_eq!(data_lengths(&net, from), expect, "no_delay {no_delay}, cork {cork}");
        if cork {
            net.socket(CLIENT, client).outgoing = pattern(7, 1);
            net.pump();
            let now = net.now;
            net.ends[CLIENT].tcp.set_options(now, id, TcpOptions::default()).unwrap();
            net.pump();
            assert_eq!(data_lengths(&net, from), [50, 7], "uncorked");
        }
    }
}

#[test]
fn acks_are_few_and_ride_on_answers() {
    let mut net = Net::listening(Pipe::default());
    let (client, server) = net.pair();
    net.socket(CLIENT, client).outgoing = pattern(2_000_000, 1);
    net.run_until(|net| net.ends[SERVER].programs.sockets[&server].received.len() == 2_000_000);
    net.run_for(Duration::from_millis(100));
    let acks = net.ends[SERVER].counters.tcp_out;
    // The segments of a moment come as a batch here, as from a ring, and share an ACK.
    assert!(acks < 760, "{acks} for 1382 segments");
    // Request and response: two segments each, once the first answer has shown what this is.
    for _ in 0..5 {
        let (before, len) = (net.sent.len(), net.socket(CLIENT, client).received.len());
        net.socket(CLIENT, client).outgoing = vec![1; 100];
        net.run_for(Duration::from_micros(600));
        net.socket(SERVER, server).outgoing = vec![2; 100];
        net.run_for(Duration::from_micros(600));
        assert_eq!(net.socket(CLIENT, client).received.len(), len + 100);
        assert!(net.sent.len() - before <= 3, "{}", net.sent.len() - before);
    }
    // And nobody forgets the last ACK.
    net.run_for(Duration::from_millis(41));
    assert_eq!(net.info(SERVER, server).bytes_in_flight, 0);
}

#[test]
fn keepalive() {
    let options = TcpOptions {
        keep_alive: true,
        keepalive_idle: Some(Duration::from_secs(10)),
        keepalive_interval: Some(Duration::from_secs(2)),
        keepalive_probes: Some(3),
        ..TcpOptions::default()
    };
    let mut net = Net::listening(Pipe::default());
    let client = net.connect_with(options, 0, SERVER_PORT).unwrap();
    net.run_for(Duration::from_millis(100));
    let before = net.sent.len();
    net.run_for(Duration::from_secs(101));
    assert_eq!(net.sent.len() - before, 20, "ten probes and their answers");
    net.down = true;
    net.run_for(Duration::from_secs(14));
    assert_eq!(net.socket(CLIENT, client).error, None);
    net.run_for(Duration::from_secs(3));
    assert_eq!(net.socket(CLIENT, client).error, Some(Error::TimedOut));
    assert_eq!(net.ends[CLIENT].tcp.connections.len(), 0);
}

#[test]
fn user_timeout() {
    let options = TcpOptions { user_timeout: Some(Duration::from_secs(5)), ..TcpOptions::default() };
    for zero_window in [false, true] {
        let mut net = Net::listening(Pipe { rx_capacity: 4096, ..Pipe::default() });
        let client = net.connect_with(options, 0, SERVER_PORT).unwrap();
        net.run_for(Duration::from_millis(100));
        net.run_for(Duration::from_secs(60));
        net.down = !zero_window;
        let server = net.ends[SERVER].programs.accepted[0];
        net.socket(SERVER, server).reads = false;
        net.socket(CLIENT, client).outgoing = pattern(10_000, 1);
        net.run_for(Duration::from_millis(4900));
        assert_eq!(net.socket(CLIENT, client).error, None);
        net.run_for(Duration::from_millis(400));
        assert_eq!(net.socket(CLIENT, client).error, Some(Error::TimedOut), "zero window {zero_window}");
    }
}

#[test]
fn a_dead_net_is_noticed_in_the_end() {
    let mut net = Net::listening(Pipe::default());
    let (client, _) = net.pair();
    net.down = true;
    net.socket(CLIENT, client).outgoing = pattern(100, 1);
    // tcp_retries2 = 15: 924.6 seconds with a timeout of 200 ms.
    net.run_for(Duration::from_secs(900));
    assert_eq!(net.socket(CLIENT, client).error, None);
    net.run_for(Duration::from_secs(60));
    assert_eq!(net.socket(CLIENT, client).error, Some(Error::TimedOut));
}

#[test]
fn neighbours_that_are_not_known_yet() {
    let mut net = Net::listening(Pipe::default());
    let hop = IpAddr::from([10, 0, 0, 254]);
    let client = net.connect();
    let ready = net.ends[CLIENT].tcp.next_ready().unwrap();
    net.ends[CLIENT].tcp.defer(ready, hop);
    assert_eq!(net.ends[CLIENT].tcp.next_ready(), None);
    net.ends[CLIENT].tcp.resume(hop);
    net.run_for(Duration::from_millis(10));
    assert_eq!(net.socket(CLIENT, client).state(), TcpState::Established);
    // An established connection outlives a neighbour that is away for a while.
    net.socket(CLIENT, client).outgoing = pattern(100, 1);
    net.ends[CLIENT].tcp.send(net.now, net.ends[CLIENT].programs.sockets[&client].id.unwrap(), 0).unwrap();
    let (id, now) = (net.socket(CLIENT, client).id.unwrap(), net.now);
    net.ends[CLIENT].tcp.finish(now, id).unwrap();
    net.socket(CLIENT, client).outgoing.clear();
    let ready = net.ends[CLIENT].tcp.next_ready().unwrap();
    net.ends[CLIENT].tcp.defer(ready, hop);
    net.with(CLIENT, |tcp, cx| tcp.unreachable(cx, hop));
    assert_eq!(net.ends[CLIENT].tcp.next_ready(), None);
    net.run_for(Duration::from_secs(1));
    assert_eq!(net.socket(CLIENT, client).state(), TcpState::FinWait2);
    // One that is only being opened does not.
    let client = net.connect();
    let ready = net.ends[CLIENT].tcp.next_ready().unwrap();
    net.ends[CLIENT].tcp.defer(ready, hop);
    net.with(CLIENT, |tcp, cx| tcp.unreachable(cx, hop));
    net.pump();
    assert_eq!(net.socket(CLIENT, client).error, Some(Error::HostUnreachable));
}

#[test]
fn a_neighbour_that_stays_away_ends_it() {
    let mut net = Net::listening(Pipe::default());
    let (client, _) = net.pair();
    let (id, now) = (net.socket(CLIENT, client).id.unwrap(), net.now);
    net.ends[CLIENT].tcp.finish(now, id).unwrap();
    let hop = IpAddr::from([10, 0, 0, 254]);
    for _ in 0..100 {
        while let Some(ready) = net.ends[CLIENT].tcp.next_ready() {
            net.ends[CLIENT].tcp.defer(ready, hop);
            net.with(CLIENT, |tcp, cx| tcp.unreachable(cx, hop));
        }
        let Some(at) = net.ends[CLIENT].tcp.next_deadline() else { break };
        net.now = net.now.max(at);
        net.with(CLIENT, |tcp, cx| tcp.handle_timers(cx));
    }
    net.pump();
    assert_eq!(net.socket(CLIENT, client).error, Some(Error::HostUnreachable));
    assert_eq!(net.ends[CLIENT].tcp.connections.len(), 0);
}

#[test]
fn ports_follow_the_queue() {
    let pipe = Pipe::default();
    let key: Vec<u8> = (0..40_u8).map(|i| i.wrapping_mul(73)).collect();
    for queue in 0..2 {
        let rss = Rss { key: key.clone(), indirection: vec![0, 1], queue };
        let mut net = Net::new(pipe);
        net.ends[CLIENT].tcp = Tcp::new(&pipe.config, &pipe.limits, (40_000, 40_063), Some(rss.clone()), [9; 32]);
        let mut ports = std::collections::BTreeSet::new();
        let mut ours = 0;
        for _ in 0..64 {
            let client = net.connect();
            let info = net.info(CLIENT, client);
            assert!(ports.insert(info.local.port()), "twice");
            ours += usize::from(rss.queue_of(info.remote, info.local) == Some(queue));
            if ports.len() == 20 {
                assert_eq!(ours, 20, "while there are some of this queue");
            }
        }
        assert_eq!(net.connect_with(TcpOptions::default(), 0, SERVER_PORT), Err(Error::AddressNotAvailable));
    }
}

#[test]
fn impossible_wishes_are_refused() {
    let mut net = Net::listening(Pipe::default());
    let (client, server) = net.pair();
    let now = net.now;
    let id = net.socket(CLIENT, client).id.unwrap();
    let tcp = &mut net.ends[CLIENT].tcp;
    assert!(tcp.send(now, id, (1 << 30) + 1).is_err() && tcp.send(now, id, u64::MAX).is_err());
    assert!(tcp.received(now, id, 1).is_err() && tcp.received(now, id, u64::MAX).is_err());
    tcp.finish(now, id).unwrap();
    assert!(tcp.send(now, id, 1).is_err(), "after the end");
    tcp.close(now, id).unwrap();
    for stale in
        [id, SocketId { index: id.index, generation: id.generation + 1 }, SocketId { index: 99, generation: 0 }]
    {
        assert_eq!(tcp.send(now, stale, 0), Err(Error::NoSuchSocket));
        assert_eq!(tcp.close(now, stale), Err(Error::NoSuchSocket));
        assert_eq!(tcp.abort(now, stale), Err(Error::NoSuchSocket));
    }
    net.socket(CLIENT, client).closed = true;
    net.close(SERVER, server);
    net.run_for(Duration::from_secs(100));
    assert!(net.ends.iter().all(|end| end.tcp.connections.len() == 0));
}

#[test]
fn same_seed_same_bytes() {
    let run = || {
        let pipe = Pipe { seed: 42, loss: 50, reorder: 100, ..Pipe::default() };
        transfer(pipe, 100_000).sent.into_iter().map(|packet| packet.bytes).collect::<Vec<_>>()
    };
    assert!(run() == run());
}

#[test]
fn a_lost_tail_is_probed_for() {
    // The probe of a lone segment allows for an ACK held back as long as the timeout's minimum.
    let config = TcpConfig { min_rto: Duration::from_millis(20), ..TcpConfig::default() };
    let mut net = Net::listening(Pipe { config, ..Pipe::default() });
    let (client, server) = net.pair();
    let threshold = |net: &mut Net| net.info(CLIENT, client).ssthresh;
    let before = threshold(&mut net);
    net.socket(CLIENT, client).outgoing = pattern(10_000, 1);
    // The seventh and last.
    net.filter = Some(|segment| segment.payload.len() == 10_000 - 6 * 1448);
    net.pump();
    net.filter = None;
    let start = net.now;
    net.run_until(|net| net.ends[SERVER].programs.sockets[&server].received.len() == 10_000);
    assert!(net.now.since(start) < Duration::from_millis(50), "{:?}", net.now.since(start));
    assert_eq!(net.ends[CLIENT].counters.tcp_retransmits, 1);
    // Both transmissions may have arrived: the next ACK beyond the probe tells (RFC 8985 7.4.2).
    assert_eq!((before, threshold(&mut net)), (u32::MAX, u32::MAX));
    net.socket(CLIENT, client).outgoing = pattern(100, 1);
    net.run_for(Duration::from_millis(100));
    assert!(threshold(&mut net) < before, "the loss counts though the probe repaired it");

    // A probe that wasn't needed: the ACK was late. Its D-SACK says so, and nothing shrinks.
    let before = threshold(&mut net);
    net.socket(CLIENT, client).outgoing = pattern(4_000, 1);
    net.pump();
    net.down = true;
    net.run_for(Duration::from_millis(1));
    net.down = false;
    net.run_for(Duration::from_millis(1000));
    assert_eq!(net.ends[CLIENT].counters.tcp_retransmits, 2);
    assert_eq!(threshold(&mut net), before);
    assert_eq!(net.info(CLIENT, client).bytes_in_flight, 0);
}
