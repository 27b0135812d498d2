//! Peers that are slow, stubborn or wrong for ever, and strangers who try every flag.

use super::attacks::{forge, forge_from, last_sent, next_header, server_state};
use super::*;
use crate::tcp::flow::FlowKey;
use crate::tcp::segment::{ACK, FIN, Header, RST, SYN};

const URG: u8 = 0x20;

/// Sends a segment whose flags are all eight bits.
fn inject_flags(net: &mut Net, header: &Header<'_>, flags: u8, payload: &[u8]) {
    let mut packet = forge(net, header, payload);
    packet.bytes[13] = flags;
    net.inject(SERVER, &packet);
}

#[test]
fn an_ack_flood_at_the_cookie_path_opens_nothing() {
    let mut net = Net::new(Pipe::default());
    net.listen(1);
    // Cookies are out: one half-open connection that nobody completes, and one more SYN.
    net.filter = Some(|segment| segment.source_port == SERVER_PORT);
    net.connect();
    net.connect();
    net.run_for(Duration::from_millis(10));
    assert!(net.ends[SERVER].counters.drop_backlog > 0, "a cookie was sent");
    let (accepted, sent) = (net.ends[SERVER].programs.accepted.len(), net.sent.len());
    for i in 0..20_000_u32 {
        let (seq, ack) = (i.wrapping_mul(40_503), i.wrapping_mul(2_654_435_761));
        let header =
            Header { source_port: 7, destination_port: SERVER_PORT, seq, ack, flags: ACK, ..Header::default() };
        let packet = forge_from(IpAddr::from((0x0b00_0000 + i).to_be_bytes()), &net, &header, b"x");
        net.inject(SERVER, &packet);
    }
    assert_eq!(net.ends[SERVER].programs.accepted.len(), accepted);
    assert_eq!(net.ends[SERVER].tcp.connections.len(), 0);
    assert!(net.sent.len() - sent <= 1001, "answers are limited: {}", net.sent.len() - sent);
}

#[test]
fn a_cookie_offers_only_what_it_can_bring_back() {
    for timestamps in [None, Some((5, 0))] {
        let mut net = Net::new(Pipe::default());
        net.listen(1);
        net.down = true;
        let header = Header {
            source_port: 9,
            destination_port: SERVER_PORT,
            flags: SYN,
            window: 100,
            mss: Some(1460),
            scale: Some(7),
            sack_permitted: true,
            timestamps,
            ..Header::default()
        };
        for source_port in [9, 10] {
            net.inject(SERVER, &forge(&net, &Header { source_port, ..header }, b""));
        }
        assert_eq!(net.ends[SERVER].counters.drop_backlog, 1, "the second got a cookie");
        let answer = last_sent(&net);
        let kept = timestamps.is_some();
        assert_eq!((answer.scale.is_some(), answer.sack_permitted, answer.timestamps.is_some()), (kept, kept, kept));
        // A scale on one side only would make one of them misread every window.
        let (seq, ack) = (1, answer.seq.wrapping_add(1));
        let timestamps = answer.timestamps.map(|t| (6, t.value));
        let last =
            Header { source_port: 10, destination_port: SERVER_PORT, seq, ack, flags: ACK, timestamps, ..header };
        net.inject(SERVER, &forge(&net, &Header { mss: None, scale: None, sack_permitted: false, ..last }, b""));
        let server = net.ends[SERVER].programs.accepted[0];
        let info = net.info(SERVER, server);
        assert_eq!((info.receive_scale > 0, info.send_scale, info.sack), (kept, if kept { 7 } else { 0 }, kept));
    }
}

#[test]
fn a_question_during_the_handshake_scales_its_window() {
    let mut net = Net::listening(Pipe::default());
    net.down = true;
    let header = Header {
        source_port: 9,
        destination_port: SERVER_PORT,
        flags: SYN,
        window: 100,
        mss: Some(1460),
        scale: Some(7),
        ..Header::default()
    };
    net.inject(SERVER, &forge(&net, &header, b""));
    let (offered, scale, iss) = (last_sent(&net).window, last_sent(&net).scale.unwrap(), last_sent(&net).seq);
    assert!(scale > 0);
    let beyond = Header { seq: 1 << 30, ack: iss.wrapping_add(1), flags: ACK, mss: None, scale: None, ..header };
    net.inject(SERVER, &forge(&net, &beyond, b""));
    assert_eq!((last_sent(&net).flags, last_sent(&net).window), (ACK, offered >> scale));
}

#[test]
fn accept_queue_overflow_costs_nothing_and_heals() {
    let mut net = Net::listening(Pipe::default());
    net.ends[SERVER].programs.room = 2;
    let clients: Vec<u64> = (0..50).map(|_| net.connect()).collect();
    net.run_for(Duration::from_secs(2));
    let open = |net: &Net| net.ends[SERVER].tcp.connections.len();
    assert_eq!(open(&net), 2, "no record for what nobody will accept");
    assert!(net.ends[SERVER].counters.drop_backlog >= 48);
    net.ends[SERVER].programs.room = usize::MAX;
    net.run_for(Duration::from_secs(30));
    assert_eq!(open(&net), 50, "the SYN-ACKs came again");
    for client in clients {
        net.socket(CLIENT, client).outgoing = vec![1; 10];
    }
    net.run_for(Duration::from_secs(5));
    let accepted = net.ends[SERVER].programs.accepted.clone();
    assert!(accepted.iter().all(|server| net.socket(SERVER, *server).received.len() == 10));
}

#[test]
fn every_flag_combination_at_a_listener_a_closed_port_and_a_connection() {
    let mut net = Net::listening(Pipe::default());
    let (client, server) = net.pair();
    let live = next_header(&mut net, client);
    net.down = true;
    for flags in 0..=u8::MAX {
        let sent = net.sent.len();
        let port = 10_000 + u16::from(flags);
        for destination_port in [SERVER_PORT, 81] {
            let header = Header { source_port: port, destination_port, seq: 5, ..Header::default() };
            inject_flags(&mut net, &header, flags, b"");
        }
        // RFC 9293 3.10.7.1 and .2: a RST is never answered; anything else at most once each.
        let answers = net.sent.len() - sent;
        assert!(answers <= if flags & RST != 0 { 0 } else { 2 }, "{flags:#x}: {answers}");
        // On a connection, outside of its window: at most a question, and nothing changes.
        let header = Header { seq: live.seq.wrapping_sub(5000), ..live };
        inject_flags(&mut net, &header, flags, b"");
        assert_eq!(server_state(&net, server), TcpState::Established, "{flags:#x}");
        net.run_for(Duration::from_millis(200));
    }
    assert_eq!(net.ends[SERVER].tcp.connections.len(), 1);
    // SYN alone, with PSH, URG, ECE, CWR in any combination.
    assert_eq!(net.ends[SERVER].counters.tcp_opened_passive, 1);
    net.down = false;
    net.socket(CLIENT, client).outgoing = pattern(5000, 3);
    net.run_for(Duration::from_secs(2));
    assert!(net.socket(SERVER, server).received == pattern(5000, 3));
}

#[test]
fn urgent_pointers_mean_nothing() {
    let mut net = Net::listening(Pipe::default());
    let (client, server) = net.pair();
    for pointer in [0_u16, 1, 3, 4, 100, u16::MAX] {
        let header = next_header(&mut net, client);
        let mut packet = forge(&net, &header, b"data");
        packet.bytes[13] = ACK | URG;
        packet.bytes[18..20].copy_from_slice(&pointer.to_be_bytes());
        net.inject(SERVER, &packet);
        net.socket(SERVER, server).received.clear();
        // The client's own stack has not sent it: its number is moved by hand.
        let id = net.socket(CLIENT, client).id.unwrap();
        net.ends[CLIENT].tcp.connections.get_mut(id.index).unwrap().nxt += 4;
    }
    let snapshot = net.socket(SERVER, server).snapshot.unwrap();
    assert_eq!((snapshot.rx_tail, snapshot.state), (24, TcpState::Established), "ordinary data in order");
}

#[test]
fn a_window_shut_for_ever_costs_a_probe_now_and_then() {
    let mut net = Net::listening(Pipe::default());
    let (client, server) = net.pair();
    net.down = true;
    let header = next_header(&mut net, client);
    net.inject(SERVER, &forge(&net, &Header { window: 0, ..header }, b"x"));
    net.socket(SERVER, server).outgoing = pattern(100_000, 1);
    net.pump();
    // The peer answers every probe, and never opens.
    let mut probes = 0;
    for _ in 0..24 * 60 {
        let before = net.sent.len();
        net.run_for(Duration::from_secs(60));
        let new: Vec<_> = net.sent[before..].iter().filter(|p| p.to == net.ends[CLIENT].address).cloned().collect();
        probes += new.len();
        assert!(new.iter().all(|p| Segment::parse(&p.bytes).unwrap().payload.len() <= 1), "beyond a shut window");
        if !new.is_empty() {
            let now = crate::tcp::isn::timestamp(net.now, 0);
            let timestamps = header.timestamps.map(|(value, echo)| (value.wrapping_add(now), echo));
            let answer = Header { window: 0, seq: header.seq.wrapping_add(1), timestamps, ..header };
            net.inject(SERVER, &forge(&net, &answer, b""));
        }
    }
    assert_eq!(server_state(&net, server), TcpState::Established, "RFC 9293 3.8.6.1: as long as the peer answers");
    assert!((500..3000).contains(&probes), "{probes} probes in a day");
    // But not for nobody's sake.
    net.close(SERVER, server);
    net.run_for(Duration::from_secs(3600));
    assert_eq!(net.ends[SERVER].tcp.connections.len(), 0);
}

#[test]
fn a_shrinking_window_is_survived() {
    let mut net = Net::listening(Pipe::default());
    let (client, server) = net.pair();
    net.socket(SERVER, server).outgoing = pattern(3000, 1);
    net.run_for(Duration::from_millis(50));
    net.down = true;
    net.socket(SERVER, server).outgoing = pattern(60_000, 1)[3000..].to_vec();
    net.pump();
    let flight = net.info(SERVER, server).bytes_in_flight;
    let header = next_header(&mut net, client);
    // RFC 9293 3.8.6: less than what is under way already. Nothing new goes, nothing breaks.
    for window in [10, 1, 0] {
        net.inject(SERVER, &forge(&net, &Header { window, ..header }, b""));
        let before = net.sent.len();
        net.run_for(Duration::from_millis(20));
        let new = net.sent[before..].iter().map(|p| Segment::parse(&p.bytes).unwrap()).collect::<Vec<_>>();
        let limit = header.ack.wrapping_add(flight);
        assert!(
            new.iter().all(|s| limit.wrapping_sub(s.seq.wrapping_add(s.len())).cast_signed() >= 0),
            "new data beyond a window of {window}"
        );
    }
    net.down = false;
    net.socket(CLIENT, client).outgoing = vec![1];
    net.run_for(Duration::from_secs(60));
    assert!(net.socket(CLIENT, client).received == pattern(60_000, 1));
}

#[test]
fn a_fin_whose_data_comes_again_ends_the_stream_once() {
    let mut net = Net::listening(Pipe::default());
    let (client, server) = net.pair();
    let header = next_header(&mut net, client);
    let fin = Header { flags: ACK | FIN, ..header };
    net.down = true;
    for _ in 0..5 {
        net.inject(SERVER, &forge(&net, &fin, b"the last words"));
    }
    // Part of it again, with another end.
    net.inject(SERVER, &forge(&net, &fin, b"the last"));
    net.inject(SERVER, &forge(&net, &fin, b"the last words, and more"));
    assert_eq!(net.socket(SERVER, server).received, b"the last words");
    assert_eq!(server_state(&net, server), TcpState::CloseWait);
    assert_eq!(last_sent(&net).ack, header.seq.wrapping_add(15));
}

#[test]
fn a_program_that_never_reads_fills_its_ring_and_no_more() {
    let mut net = Net::listening(Pipe { rx_capacity: 1 << 14, ..Pipe::default() });
    let (client, server) = net.pair();
    net.socket(SERVER, server).reads = false;
    let header = next_header(&mut net, client);
    // A peer that doesn't obey the window: the host's memory would notice a byte too many (see `Programs::rx_write`).
    for i in 0..200_u32 {
        net.inject(SERVER, &forge(&net, &Header { seq: header.seq.wrapping_add(i * 1000), ..header }, &[7; 1000]));
    }
    let tail = net.socket(SERVER, server).snapshot.unwrap().rx_tail;
    assert!(((1 << 14) - 1448..=1 << 14).contains(&tail), "{tail}");
    assert_eq!(last_sent(&net).window, 0);
}

#[test]
fn timestamps_that_go_back_are_refused_for_24_days() {
    let mut net = Net::listening(Pipe::default());
    let (client, server) = net.pair();
    let header = next_header(&mut net, client);
    let (value, echo) = header.timestamps.unwrap();
    net.down = true;
    for back in [1, 1000, 1 << 30] {
        let timestamps = Some((value.wrapping_sub(back), echo));
        net.inject(SERVER, &forge(&net, &Header { timestamps, ..header }, b"old"));
        assert_eq!(last_sent(&net).flags, ACK, "RFC 7323 5.3: answered");
    }
    assert_eq!(net.socket(SERVER, server).received, b"");
    // RFC 7323 5.5: after 24 days the clock of an honest peer may have wrapped.
    net.run_for(Duration::from_secs(25 * 24 * 3600));
    let timestamps = Some((value.wrapping_sub(1), echo));
    net.inject(SERVER, &forge(&net, &Header { timestamps, ..header }, b"new"));
    assert_eq!(net.socket(SERVER, server).received, b"new");
}

#[test]
fn time_wait_is_not_assassinated() {
    let mut net = Net::listening(Pipe::default());
    let (client, server) = net.pair();
    let (seq, ack) = {
        let header = next_header(&mut net, client);
        (header.seq, header.ack)
    };
    net.close(SERVER, server);
    net.run_for(Duration::from_millis(10));
    let header = Header { seq: seq.wrapping_add(1), ack: ack.wrapping_add(1), ..next_header(&mut net, client) };
    net.close(CLIENT, client);
    net.run_for(Duration::from_millis(10));
    assert_eq!(net.ends[SERVER].tcp.time_waits.len(), 1);
    net.down = true;
    // RFC 1337: neither a RST, nor old data, an old SYN or what they provoke ends it.
    for flags in [RST, RST | ACK] {
        for offset in [0, 1, 1_u32.wrapping_neg()] {
            let header = Header { seq: header.seq.wrapping_add(offset), flags, timestamps: None, ..header };
            net.inject(SERVER, &forge(&net, &header, b""));
        }
    }
    let sent = net.sent.len();
    for _ in 0..1000 {
        net.inject(SERVER, &forge(&net, &Header { seq: seq.wrapping_sub(100), ..header }, &[1; 50]));
        let timestamps = header.timestamps.map(|(value, echo)| (value.wrapping_sub(5000), echo));
        let old = Header { flags: SYN, seq: seq.wrapping_sub(9000), timestamps, ..header };
        net.inject(SERVER, &forge(&net, &old, b""));
    }
    assert_eq!(net.ends[SERVER].tcp.time_waits.len(), 1);
    assert_eq!(net.ends[SERVER].tcp.half_open.len(), 0);
    assert!(net.sent.len() - sent <= 10, "ten answers a second: {}", net.sent.len() - sent);
    assert!(net.sent[sent..].iter().all(|p| Segment::parse(&p.bytes).unwrap().flags == ACK), "no RST comes of it");
}

#[test]
fn headers_that_lie_about_their_length() {
    let mut net = Net::listening(Pipe::default());
    let (client, server) = net.pair();
    let header = next_header(&mut net, client);
    let good = forge(&net, &header, b"evil");
    let dropped = net.ends[SERVER].counters.drop_malformed;
    let mut lies = 0;
    for words in 0..16_u8 {
        let mut packet = good.clone();
        packet.bytes[12] = words << 4;
        // Less than 20 bytes, or more than there are.
        if words < 5 || usize::from(words) * 4 > packet.bytes.len() {
            lies += 1;
            net.inject(SERVER, &packet);
        }
    }
    for len in 0..header.len() {
        lies += 1;
        net.inject(SERVER, &Packet { bytes: good.bytes[..len].to_vec(), ..good.clone() });
    }
    assert_eq!(net.ends[SERVER].counters.drop_malformed - dropped, lies);
    assert_eq!(net.socket(SERVER, server).received, b"");
}

#[test]
fn icmp_about_strangers_and_paths_below_the_minimum() {
    for (ipv6, least) in [(false, 552 - 40), (true, 1280 - 60)] {
        let mut net = Net::listening(Pipe { ipv6, ..Pipe::default() });
        let (client, server) = net.pair();
        net.down = true;
        net.socket(SERVER, server).outgoing = pattern(20_000, 1);
        net.pump();
        let una = next_header(&mut net, client).ack;
        let info = net.info(SERVER, server);
        let (local, remote) = (info.local, info.remote);
        let stranger = SocketAddr::new(remote.ip(), remote.port() ^ 1);
        let known =
            net.with(SERVER, |tcp, cx| tcp.handle_icmp(cx, local, stranger, una, IcmpError::TooBig { mtu: 600 }));
        assert!(!known);
        for mtu in [0, 1, 67, 68, 551, 1279] {
            net.with(SERVER, |tcp, cx| tcp.handle_icmp(cx, local, remote, una, IcmpError::TooBig { mtu }));
            let mss = net.info(SERVER, server).send_mss;
            assert!(mss + 12 >= least, "{mtu} made it {mss}");
        }
        net.down = false;
        net.run_for(Duration::from_secs(20));
        assert!(net.socket(CLIENT, client).received == pattern(20_000, 1));
    }
}

/// Numbers of one stack for a few tuples at one time: first sequence numbers, timestamp offsets, and ports.
fn numbers(seed: [u8; 32]) -> Vec<u32> {
    let mut tcp = Tcp::new(&TcpConfig::default(), &Limits::default(), (40_000, 49_999), None, seed);
    let mut all = vec![];
    for host in 0..20_u8 {
        let key = FlowKey::new((IpAddr::from([10, 0, 0, 1]), 80).into(), (IpAddr::from([10, 0, 0, host]), 4000).into());
        all.push(tcp.secrets.initial_sequence(&key, Instant::from_millis(5)));
        all.push(tcp.secrets.timestamp_offset(&key));
        all.push(tcp.secrets.random.next_u64() as u32);
    }
    all
}

#[test]
fn numbers_differ_by_restart_and_by_shard_and_follow_no_line() {
    // A restart changes the seed, a shard one bit of it.
    let seeds: Vec<[u8; 32]> = (0..32_u8)
        .map(|n| {
            let mut seed = [9; 32];
            seed[usize::from(n)] ^= 1 << (n % 8);
            seed
        })
        .chain([[9; 32]])
        .collect();
    let all: Vec<Vec<u32>> = seeds.iter().map(|seed| numbers(*seed)).collect();
    assert_eq!(all[32], numbers([9; 32]), "the seed decides");
    let mut pooled: Vec<u32> = all.iter().flatten().copied().collect();
    // Whoever knows some of them knows nothing of the next: neither equal, nor at equal steps.
    for a in 0..all.len() {
        for b in 0..a {
            let steps: Vec<u32> = all[a].iter().zip(&all[b]).map(|(x, y)| x.wrapping_sub(*y)).collect();
            assert!(steps.windows(2).all(|w| w[0] != w[1]), "shards {a} and {b} move together");
        }
        assert!(all[a].windows(3).all(|w| w[2].wrapping_sub(w[1]) != w[1].wrapping_sub(w[0])));
    }
    // And every bit is set in about half of them.
    let count = pooled.len() as f64;
    for bit in 0..32 {
        let ones = pooled.iter().filter(|n| **n >> bit & 1 == 1).count() as f64;
        assert!((0.42..0.58).contains(&(ones / count)), "bit {bit}: {ones} of {count}");
    }
    pooled.sort_unstable();
    pooled.dedup();
    assert!(pooled.len() as f64 > count - 5.0);
}

#[test]
fn corked_data_before_a_shut_window_lets_the_stack_sleep() {
    let mut net = Net::listening(Pipe::default());
    let (client, server) = net.pair();
    net.down = true;
    let header = next_header(&mut net, client);
    net.inject(SERVER, &forge(&net, &Header { window: 0, ..header }, b"x"));
    let id = net.socket(SERVER, server).id.unwrap();
    let now = net.now;
    net.ends[SERVER].tcp.set_options(now, id, TcpOptions { cork: true, ..TcpOptions::default() }).unwrap();
    net.socket(SERVER, server).outgoing = pattern(100, 1);
    net.pump();
    // The cork's 200 ms are over, and what it held back can't go.
    let mut wakes = 0;
    let end = net.now + Duration::from_secs(100);
    while let Some(at) = net.ends[SERVER].tcp.next_deadline().filter(|at| *at < end) {
        net.now = net.now.max(at);
        net.with(SERVER, |tcp, cx| tcp.handle_timers(cx));
        net.pump();
        wakes += 1;
        assert!(wakes < 200, "a deadline that is never done with");
    }
}
