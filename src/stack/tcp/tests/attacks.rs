//! Inputs that must not hurt.

use super::*;
use crate::tcp::segment::{ACK, FIN, Header, PSH, RST, SYN};
use proptest::prelude::*;

/// A segment from the client's side that the client did not send.
pub(super) fn forge(net: &Net, header: &Header<'_>, payload: &[u8]) -> Packet {
    forge_from(net.ends[CLIENT].address, net, header, payload)
}

pub(super) fn forge_from(from: IpAddr, net: &Net, header: &Header<'_>, payload: &[u8]) -> Packet {
    let to = net.ends[SERVER].address;
    let mut bytes = vec![0; header.len()];
    bytes.extend_from_slice(payload);
    header.write(from, to, &mut bytes);
    Packet { from, to, bytes, tos: 0 }
}

/// What the next segment from the client to the server would look like.
pub(super) fn next_header<'a>(net: &mut Net, client: u64) -> Header<'a> {
    let id = net.socket(CLIENT, client).id.unwrap();
    let connection = net.ends[CLIENT].tcp.connections.get(id.index).unwrap();
    Header {
        source_port: connection.key.local_port,
        destination_port: connection.key.remote_port,
        seq: connection.send_sequence(connection.nxt),
        ack: connection.receive_sequence(connection.rx_nxt),
        flags: ACK,
        window: 1000,
        timestamps: connection
            .timestamps
            .then(|| (isn::timestamp(net.now, connection.timestamp_offset), connection.timestamp_recent)),
        ..Header::default()
    }
}

pub(super) fn last_sent(net: &Net) -> Segment<'_> {
    Segment::parse(&net.sent.last().unwrap().bytes).unwrap()
}

pub(super) fn server_state(net: &Net, server: u64) -> TcpState {
    net.ends[SERVER].programs.sockets[&server].state()
}

#[test]
fn only_the_exact_reset_counts() {
    let mut net = Net::listening(Pipe::default());
    let (client, server) = net.pair();
    let exact = Header { flags: RST, timestamps: None, ..next_header(&mut net, client) };
    for (offset, expect) in [(1_u32, 1), (1000, 2), (1_u32.wrapping_neg(), 2), (1 << 20, 2)] {
        let header = Header { seq: exact.seq.wrapping_add(offset), ..exact };
        net.inject(SERVER, &forge(&net, &header, b""));
        assert_eq!(net.ends[SERVER].counters.tcp_challenge_acks, expect, "offset {offset}");
        assert_eq!(server_state(&net, server), TcpState::Established);
    }
    assert_eq!(last_sent(&net).flags, ACK);
    net.inject(SERVER, &forge(&net, &exact, b""));
    assert_eq!(net.socket(SERVER, server).error, Some(Error::Reset));
    // Again, and nothing is there any more: a RST is never answered.
    let sent = net.sent.len();
    net.inject(SERVER, &forge(&net, &exact, b""));
    assert_eq!(net.sent.len(), sent);
}

#[test]
fn challenges_are_limited_by_connection() {
    let mut net = Net::listening(Pipe::default());
    let (client, server) = net.pair();
    let (other, _) = net.pair();
    let syn = Header { flags: SYN, ..next_header(&mut net, client) };
    let sent = net.sent.len();
    for _ in 0..1000 {
        net.inject(SERVER, &forge(&net, &syn, b""));
    }
    assert_eq!(net.sent.len() - sent, 10);
    assert_eq!(server_state(&net, server), TcpState::Established);
    let syn = Header { flags: SYN, ..next_header(&mut net, other) };
    net.inject(SERVER, &forge(&net, &syn, b""));
    assert_eq!(net.sent.len() - sent, 11, "the other has its own allowance");
}

#[test]
fn blind_data_is_refused() {
    let mut net = Net::listening(Pipe::default());
    let (client, server) = net.pair();
    let header = next_header(&mut net, client);
    // RFC 5961 5: an ACK far from what was sent.
    for ack in [header.ack.wrapping_add(1), header.ack.wrapping_sub(1 << 30), header.ack.wrapping_add(1 << 30)] {
        net.inject(SERVER, &forge(&net, &Header { ack, ..header }, b"evil"));
    }
    // No ACK at all.
    net.inject(SERVER, &forge(&net, &Header { flags: PSH, ..header }, b"evil"));
    // Timestamps from the past (PAWS).
    let (value, echo) = header.timestamps.unwrap();
    net.inject(SERVER, &forge(&net, &Header { timestamps: Some((value - 100_000, echo)), ..header }, b"evil"));
    // Beyond the window.
    net.inject(SERVER, &forge(&net, &Header { seq: header.seq.wrapping_add(1 << 20), ..header }, b"evil"));
    assert_eq!(net.socket(SERVER, server).received, b"");
    // Without a timestamp though they were agreed on: as Linux, no reason to refuse (docs/TCP.md).
    net.inject(SERVER, &forge(&net, &Header { timestamps: None, ..header }, b"good"));
    assert_eq!(net.socket(SERVER, server).received, b"good");
}

#[test]
fn sack_nonsense_is_ignored() {
    let mut net = Net::listening(Pipe::default());
    let (client, server) = net.pair();
    net.down = true;
    net.socket(SERVER, server).outgoing = pattern(20_000, 1);
    net.pump();
    let header = next_header(&mut net, client);
    let una = header.ack;
    for blocks in [
        [(una.wrapping_add(5000), una.wrapping_add(100)), (una.wrapping_sub(10), una.wrapping_sub(5)), (una, una)],
        [(una.wrapping_add(100), una.wrapping_add(1 << 25)), (0, u32::MAX), (1, 0)],
        [(una.wrapping_add(1), una.wrapping_add(2)), (una.wrapping_add(3), una.wrapping_add(4)), (una, una)],
    ] {
        net.inject(SERVER, &forge(&net, &Header { sack: &blocks, ..header }, b""));
    }
    let info = net.info(SERVER, server);
    assert_eq!((info.retransmits, info.bytes_in_flight > 0), (0, true));
    net.down = false;
    net.run_for(Duration::from_secs(5));
    assert!(net.socket(CLIENT, client).received == pattern(20_000, 1));
}

#[test]
fn tiny_gaps_are_bounded() {
    let mut net = Net::listening(Pipe::default());
    let (client, server) = net.pair();
    let header = next_header(&mut net, client);
    for i in 0..2000_u32 {
        let hole = Header { seq: header.seq.wrapping_add(1 + 2 * i), ..header };
        net.inject(SERVER, &forge(&net, &hole, b"x"));
    }
    assert!(net.ends[SERVER].counters.drop_queue_full > 1800);
    // The real data comes and everything is well.
    net.socket(CLIENT, client).outgoing = pattern(10_000, 4);
    net.run_for(Duration::from_secs(5));
    assert_eq!(net.socket(SERVER, server).received.len(), 10_000);
}

#[test]
fn syn_flood() {
    let mut net = Net::listening(Pipe::default());
    net.down = true;
    for i in 0..100_000_u32 {
        let from = IpAddr::from((0x0b00_0000 + i).to_be_bytes());
        let header = Header {
            source_port: 1 + (i % 60_000) as u16,
            destination_port: 80,
            seq: i,
            flags: SYN,
            window: 500,
            ..Header::default()
        };
        let packet = forge_from(from, &net, &header, b"");
        let meta = SegmentMeta { source: packet.from, destination: packet.to, tos: 0, ttl: 64 };
        net.with(SERVER, |tcp, cx| tcp.handle_segment(cx, &meta, &packet.bytes, true));
        if i % 1000 == 0 {
            net.pump();
        }
    }
    net.pump();
    net.down = false;
    assert_eq!(net.ends[SERVER].tcp.half_open.len(), 128, "the backlog");
    assert_eq!(net.ends[SERVER].counters.drop_backlog, 100_000 - 128);
    // A real client gets through all the same, with everything that it asked for.
    let (client, server) = net.pair();
    net.socket(CLIENT, client).outgoing = pattern(500_000, 1);
    net.run_for(Duration::from_secs(2));
    assert!(net.socket(SERVER, server).received == pattern(500_000, 1));
    let info = net.info(SERVER, server);
    assert!(info.sack && info.timestamps);
    assert_eq!((info.send_scale, info.send_mss), (2, 1448));
    net.run_for(Duration::from_secs(200));
    assert_eq!(net.ends[SERVER].tcp.half_open.len(), 0);
}

#[test]
fn cookies_without_timestamps_and_forged_ones() {
    let config = TcpConfig { timestamps: false, ..TcpConfig::default() };
    let mut net = Net::new(Pipe { config, ..Pipe::default() });
    net.listen(0);
    net.filter = Some(|segment| segment.source_port == 80 && segment.destination_port != 40_404);
    net.connect();
    net.run_for(Duration::from_millis(10));
    net.filter = None;
    let client = net.connect_with(TcpOptions::default(), 40_404, SERVER_PORT).unwrap();
    net.run_for(Duration::from_millis(10));
    assert_eq!(net.ends[SERVER].programs.accepted.len(), 1);
    let server = net.ends[SERVER].programs.accepted[0];
    let info = net.info(SERVER, server);
    assert_eq!((info.send_mss, info.sack, info.timestamps, info.receive_scale), (1460, false, false, 0));
    net.socket(CLIENT, client).outgoing = pattern(300_000, 1);
    net.run_for(Duration::from_secs(2));
    assert!(net.socket(SERVER, server).received == pattern(300_000, 1));

    // An ACK flood at the cookie path opens nothing and is answered at a limited rate.
    let sent = net.sent.len();
    let accepted = net.ends[SERVER].programs.accepted.len();
    for i in 0..20_000_u32 {
        let header = Header {
            source_port: 7,
            destination_port: 80,
            seq: i,
            ack: i.wrapping_mul(2_654_435_761),
            flags: ACK,
            ..Header::default()
        };
        net.inject(SERVER, &forge(&net, &header, b""));
    }
    assert_eq!(net.ends[SERVER].programs.accepted.len(), accepted);
    assert!(net.sent.len() - sent <= 1001);
}

#[test]
fn odd_flags_open_nothing() {
    let mut net = Net::listening(Pipe::default());
    for flags in 0..32_u8 {
        let header =
            Header { source_port: 1000 + u16::from(flags), destination_port: 80, seq: 5, flags, ..Header::default() };
        net.inject(SERVER, &forge(&net, &header, b""));
    }
    // SYN alone and SYN with PSH.
    assert_eq!(net.ends[SERVER].tcp.half_open.len(), 2);
    for port in [80, 81] {
        // To oneself, and from nowhere.
        let header = Header { source_port: port, destination_port: port, flags: SYN, ..Header::default() };
        let own = net.ends[SERVER].address;
        net.inject(SERVER, &forge_from(own, &net, &header, b""));
        net.inject(SERVER, &forge_from("224.0.0.1".parse().unwrap(), &net, &header, b""));
        net.inject(SERVER, &forge_from("255.255.255.255".parse().unwrap(), &net, &header, b""));
        net.inject(SERVER, &forge_from("0.0.0.0".parse().unwrap(), &net, &header, b""));
    }
    assert_eq!(net.ends[SERVER].tcp.half_open.len(), 2);
    assert!(net.sent.iter().all(|p| !p.to.is_multicast() && !p.to.is_unspecified()));
}

#[test]
fn closed_ports_answer_by_the_book_and_not_too_often() {
    let mut net = Net::new(Pipe::default());
    let header = Header { source_port: 9, destination_port: 8, seq: 100, ack: 200, flags: ACK, ..Header::default() };
    net.inject(SERVER, &forge(&net, &header, b"abc"));
    assert_eq!((last_sent(&net).seq, last_sent(&net).flags), (200, RST));
    net.inject(SERVER, &forge(&net, &Header { flags: SYN, ..header }, b"abc"));
    assert_eq!((last_sent(&net).seq, last_sent(&net).ack, last_sent(&net).flags), (0, 104, RST | ACK));
    for _ in 0..5000 {
        net.inject(SERVER, &forge(&net, &header, b""));
    }
    assert!(net.sent.len() < 1002 + 10);
    assert!(net.ends[SERVER].counters.drop_rate_limited > 3900);
    // Not ours to answer: another shard may know it.
    let packet = forge(&net, &header, b"");
    let meta = SegmentMeta { source: packet.from, destination: packet.to, tos: 0, ttl: 64 };
    let before = net.ends[SERVER].counters;
    assert_eq!(net.with(SERVER, |tcp, cx| tcp.handle_segment(cx, &meta, &packet.bytes, false)), Verdict::Unknown);
    assert_eq!(net.ends[SERVER].counters, before);
}

#[test]
fn any_segment_size_works() {
    for mss in [None, Some(1), Some(48), Some(87), Some(536), Some(1460), Some(9000), Some(65_535)] {
        let mut net = Net::listening(Pipe::default());
        let header = Header {
            source_port: 5,
            destination_port: 80,
            seq: 1,
            flags: SYN,
            window: 60_000,
            mss,
            ..Header::default()
        };
        net.inject(SERVER, &forge(&net, &header, b""));
        let answer = last_sent(&net);
        let (ack, seq) = (answer.seq.wrapping_add(1), 2);
        net.inject(SERVER, &forge(&net, &Header { seq, ack, flags: ACK, mss: None, ..header }, b""));
        let server = net.ends[SERVER].programs.accepted[0];
        net.socket(SERVER, server).outgoing = pattern(3000, 1);
        let before = net.sent.len();
        net.pump();
        let largest = net.sent[before..].iter().map(|p| Segment::parse(&p.bytes).unwrap().payload.len()).max().unwrap();
        let expect = usize::from(mss.unwrap_or(536)).clamp(88, 1460);
        assert_eq!(largest, expect, "{mss:?}");
    }
}

#[test]
fn optimistic_and_divided_acks() {
    let mut net = Net::listening(Pipe::default());
    let (client, server) = net.pair();
    net.down = true;
    net.socket(SERVER, server).outgoing = pattern(100_000, 1);
    net.pump();
    let header = next_header(&mut net, client);
    let flight = net.info(SERVER, server).bytes_in_flight;
    // Never sent.
    net.inject(SERVER, &forge(&net, &Header { ack: header.ack.wrapping_add(flight + 1), ..header }, b""));
    assert_eq!(net.info(SERVER, server).bytes_in_flight, flight);
    // One byte at a time: the window grows by bytes, not by ACKs.
    let before = net.info(SERVER, server).cwnd;
    for i in 1..=1000 {
        net.inject(SERVER, &forge(&net, &Header { ack: header.ack.wrapping_add(i), window: 65_000, ..header }, b""));
    }
    assert!(net.info(SERVER, server).cwnd <= before + 1000);
}

#[test]
fn icmp_is_checked() {
    let mut net = Net::listening(Pipe::default());
    let (client, server) = net.pair();
    net.down = true;
    net.socket(SERVER, server).outgoing = pattern(10_000, 1);
    net.pump();
    let una = next_header(&mut net, client).ack;
    let (local, remote) = {
        let info = net.info(SERVER, server);
        (info.local, info.remote)
    };
    let big = |net: &mut Net, sequence, mtu| {
        net.with(SERVER, |tcp, cx| tcp.handle_icmp(cx, local, remote, sequence, IcmpError::TooBig { mtu }));
        net.info(SERVER, server).send_mss
    };
    assert_eq!(big(&mut net, una.wrapping_sub(1), 1000), 1448, "not in flight");
    assert_eq!(big(&mut net, una.wrapping_add(1 << 20), 1000), 1448, "never sent");
    assert_eq!(big(&mut net, una, 9000), 1448, "larger");
    assert_eq!(big(&mut net, una, 1000), 948);
    assert_eq!(big(&mut net, una, 0), 500, "as small as a forged one gets it");
    net.down = false;
    net.run_for(Duration::from_secs(5));
    assert!(net.socket(CLIENT, client).received == pattern(10_000, 1));
    // Soft errors don't end a connection.
    net.with(SERVER, |tcp, cx| {
        tcp.handle_icmp(cx, local, remote, una, IcmpError::Unreachable(Error::HostUnreachable));
    });
    net.pump();
    assert_eq!(net.socket(SERVER, server).error, None);
}

#[test]
fn icmp_ends_a_connection_that_is_not_there_yet() {
    let mut net = Net::new(Pipe::default());
    net.down = true;
    let client = net.connect();
    net.pump();
    let syn = last_sent(&net);
    let (local, remote) = ((net.ends[CLIENT].address, syn.source_port).into(), (net.ends[SERVER].address, 80).into());
    let sequence = syn.seq;
    let error = IcmpError::Unreachable(Error::Refused);
    net.with(CLIENT, |tcp, cx| tcp.handle_icmp(cx, local, remote, sequence.wrapping_add(1), error));
    net.pump();
    assert_eq!(net.socket(CLIENT, client).error, None);
    net.with(CLIENT, |tcp, cx| tcp.handle_icmp(cx, local, remote, sequence, error));
    net.pump();
    assert_eq!(net.socket(CLIENT, client).error, Some(Error::Refused));
}

/// A random segment, near to what the connection expects.
fn near_miss() -> impl Strategy<Value = (u8, i32, i32, u16, Vec<u8>, Vec<u8>, i32)> {
    let near = prop_oneof![Just(0), -3..4_i32, -200_000..200_000_i32, any::<i32>()];
    let options = prop::collection::vec(any::<u8>(), 0..40);
    (0_u8..32, near.clone(), near, any::<u16>(), prop::collection::vec(any::<u8>(), 0..200), options, -3..3_i32)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    /// Whatever comes, nothing panics, and the books balance at the end.
    #[test]
    fn random_segments(segments in prop::collection::vec(near_miss(), 1..60), seed in 0..1000_u64, phase in 0..4) {
        let mut net = Net::listening(Pipe { seed, rx_capacity: 1 << 14, tx_capacity: 1 << 14, ..Pipe::default() });
        let (client, server) = net.pair();
        let mut header = next_header(&mut net, client);
        net.socket(SERVER, server).outgoing = pattern(30_000, 1);
        if phase == 1 { net.socket(SERVER, server).finish = true; }
        if phase == 2 { net.close(SERVER, server); }
        if phase == 3 { net.socket(SERVER, server).reads = false; }
        net.pump();
        for (flags, seq, ack, window, payload, mut options, time) in segments {
            header.flags = flags;
            header.window = window;
            let shifted = Header {
                seq: header.seq.wrapping_add_signed(seq),
                ack: header.ack.wrapping_add_signed(ack),
                timestamps: header.timestamps.map(|(value, echo)| (value.wrapping_add_signed(time), echo)),
                ..header
            };
            let mut packet = forge(&net, &shifted, b"");
            if time == 2 {
                // Options of any kind in place of timestamps.
                options.resize(options.len() / 4 * 4, 1);
                packet.bytes.truncate(20);
                packet.bytes[12] = ((20 + options.len()) / 4 * 16) as u8;
                packet.bytes.extend_from_slice(&options);
            }
            packet.bytes.extend_from_slice(&payload);
            net.inject(SERVER, &packet);
            if flags & FIN == 0 && seq == 0 && ack == 0 && time == 0 && flags & ACK != 0 {
                header.seq = header.seq.wrapping_add(payload.len() as u32);
            }
            if time == 1 {
                net.run_for(Duration::from_millis(u64::from(window) / 100));
            }
        }
        net.run_for(Duration::from_millis(10));
        if !net.socket(SERVER, server).released() && phase != 2 {
            net.socket(SERVER, server).closed = true;
            net.verb(SERVER, server, Tcp::abort);
        }
        net.run_for(Duration::from_secs(1000));
        prop_assert!(net.socket(SERVER, server).released());
        prop_assert_eq!(net.ends[SERVER].tcp.connections.len(), 0);
        prop_assert_eq!(net.ends[SERVER].tcp.flows.len(), 0);
        prop_assert_eq!(net.ends[SERVER].tcp.wheel.len(), 0);
    }

    /// The same for a connection that is being opened, by us (also from both sides) or half-open, or is over.
    #[test]
    fn random_segments_at_the_edges(
        segments in prop::collection::vec(near_miss(), 1..30),
        seed in 0..1000_u64,
        phase in 0..3,
    ) {
        let mut net = Net::listening(Pipe { seed, ..Pipe::default() });
        net.down = true;
        let mut header = Header { source_port: 5000, destination_port: 80, window: 1000, ..Header::default() };
        let mut token = None;
        match phase {
            0 => {
                let opened = net.connect_from(SERVER, TcpOptions::default(), 80, 5000).unwrap();
                net.pump();
                header.ack = last_sent(&net).seq.wrapping_add(1);
                token = Some(opened);
            }
            1 => {
                net.inject(SERVER, &forge(&net, &Header { flags: SYN, timestamps: Some((1, 0)), ..header }, b""));
                header.seq = 1;
                header.ack = last_sent(&net).seq.wrapping_add(1);
                header.timestamps = Some((1, last_sent(&net).timestamps.unwrap().value));
            }
            _ => {
                net.down = false;
                let (client, server) = net.pair();
                net.close(SERVER, server);
                net.run_for(Duration::from_millis(10));
                header = next_header(&mut net, client);
                net.close(CLIENT, client);
                net.run_for(Duration::from_millis(10));
                header.seq = header.seq.wrapping_add(1);
                prop_assert_eq!(net.ends[SERVER].tcp.time_waits.len(), 1);
                net.down = true;
            }
        }
        for (flags, seq, ack, _, payload, _, time) in segments {
            let shifted = Header {
                flags,
                seq: header.seq.wrapping_add_signed(seq),
                ack: header.ack.wrapping_add_signed(ack),
                timestamps: header.timestamps.map(|(value, echo)| (value.wrapping_add_signed(time), echo)),
                ..header
            };
            net.inject(SERVER, &forge(&net, &shifted, &payload));
        }
        let tokens: Vec<u64> = net.ends[SERVER].programs.accepted.iter().copied().chain(token).collect();
        for token in tokens {
            if !net.socket(SERVER, token).released() && !net.socket(SERVER, token).closed {
                net.close(SERVER, token);
            }
        }
        net.run_for(Duration::from_secs(1000));
        prop_assert_eq!(net.ends[SERVER].tcp.connections.len(), 0);
        prop_assert_eq!(net.ends[SERVER].tcp.half_open.len(), 0);
        prop_assert_eq!(net.ends[SERVER].tcp.flows.len(), 0);
        prop_assert_eq!(net.ends[SERVER].tcp.wheel.len(), 0);
    }
}

#[test]
fn a_fin_below_received_data_is_a_lie() {
    let mut net = Net::listening(Pipe::default());
    let (client, server) = net.pair();
    let header = next_header(&mut net, client);
    let at = |offset| Header { seq: header.seq.wrapping_add(offset), ..header };
    net.inject(SERVER, &forge(&net, &at(100), &[1; 100]));
    net.inject(SERVER, &forge(&net, &Header { flags: ACK | FIN, ..at(50) }, b""));
    net.inject(SERVER, &forge(&net, &at(0), &[1; 100]));
    assert_eq!(net.socket(SERVER, server).received.len(), 200);
    net.inject(SERVER, &forge(&net, &Header { flags: ACK | FIN, ..at(200) }, b""));
    assert_eq!(server_state(&net, server), TcpState::CloseWait);
    // Nothing comes after the end.
    net.inject(SERVER, &forge(&net, &at(201), &[1; 100]));
    assert_eq!(net.socket(SERVER, server).received.len(), 200);
}

#[test]
fn a_segment_of_another_shard_is_left_alone() {
    let mut net = Net::listening(Pipe::default());
    for flags in [ACK, RST, RST | ACK, SYN | ACK, FIN | ACK] {
        let header = Header { source_port: 5, destination_port: 80, seq: 1, ack: 1, flags, ..Header::default() };
        let packet = forge(&net, &header, b"");
        let meta = SegmentMeta { source: packet.from, destination: packet.to, tos: 0, ttl: 64 };
        let verdict = net.with(SERVER, |tcp, cx| tcp.handle_segment(cx, &meta, &packet.bytes, false));
        assert_eq!(verdict, Verdict::Unknown, "{flags:b}");
    }
}
