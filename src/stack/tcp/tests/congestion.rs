//! Recovery, marks and windows of two stacks. What a scoreboard or a controller does alone is tested beside it.

use super::super::congestion::{Acked, Congested, CongestionControl};
use super::super::segment::{CWR, ECE, Header};
use super::*;
use crate::{Algorithm, Congestion, CongestionState, Ecn};
use alloc::boxed::Box;

/// 10 ms there and back.
fn big() -> Pipe {
    Pipe { rx_capacity: 1 << 20, tx_capacity: 1 << 20, delay: Duration::from_millis(5), ..Pipe::default() }
}

fn data(net: &Net, from: usize) -> impl Iterator<Item = (&Packet, Segment<'_>)> {
    let parsed = net.sent[from..].iter().map(|packet| (packet, Segment::parse(&packet.bytes).unwrap()));
    parsed.filter(|(_, segment)| !segment.payload.is_empty())
}

/// Sends so many bytes from the client, and waits for them to arrive.
fn send(net: &mut Net, client: u64, server: u64, bytes: usize) {
    let before = net.socket(SERVER, server).received.len();
    net.socket(CLIENT, client).outgoing = pattern(bytes, 1);
    net.run_until(|net| net.ends[SERVER].programs.sockets[&server].received.len() == before + bytes);
}

fn with_modes(client: Ecn, server: Ecn) -> Net {
    let mut net = Net::listening(big());
    net.ends[CLIENT].tcp.config.ecn = client;
    net.ends[SERVER].tcp.config.ecn = server;
    net
}

#[test]
fn marks_need_both_sides() {
    for (client_mode, server_mode, expect) in [
        (Ecn::Request, Ecn::Accept, true),
        (Ecn::Request, Ecn::Request, true),
        (Ecn::Request, Ecn::Off, false),
        (Ecn::Accept, Ecn::Request, false),
        (Ecn::Off, Ecn::Accept, false),
    ] {
        let mut net = with_modes(client_mode, server_mode);
        let (client, server) = net.pair();
        send(&mut net, client, server, 100_000);
        let case = std::format!("{client_mode:?} {server_mode:?}");
        assert_eq!((net.info(CLIENT, client).ecn, net.info(SERVER, server).ecn), (expect, expect), "{case}");
        assert_eq!(net.info(SERVER, server).ecn_seen, expect, "{case}");
        // Data is marked as ECN-capable, nothing else is (RFC 3168 6.1.1, 6.1.4).
        for packet in &net.sent {
            let payload = !Segment::parse(&packet.bytes).unwrap().payload.is_empty();
            assert_eq!(packet.tos & 3, if expect && payload { 2 } else { 0 }, "{case}");
        }
    }
}

#[test]
fn a_syn_that_is_sent_again_asks_no_more() {
    let mut net = with_modes(Ecn::Request, Ecn::Accept);
    net.filter = Some(|segment| segment.has(SYN | ECE) && !segment.has(ACK));
    let (client, _) = net.pair();
    assert!(!net.info(CLIENT, client).ecn);
    let syns = net.sent.iter().map(|p| Segment::parse(&p.bytes).unwrap()).filter(|s| s.has(SYN) && !s.has(ACK));
    let flags: Vec<u8> = syns.map(|s| s.flags & (ECE | CWR)).collect();
    assert_eq!(flags, [ECE | CWR, 0]);
}

#[test]
fn marks_shrink_the_window_once_a_round_trip() {
    let mut net = with_modes(Ecn::Request, Ecn::Accept);
    let (client, server) = net.pair();
    send(&mut net, client, server, 400_000);
    net.run_for(Duration::from_millis(20));
    let before = net.info(CLIENT, client).cwnd;
    net.pipe.mark = 1000;
    net.socket(CLIENT, client).outgoing = pattern(100_000, 1);
    net.run_for(Duration::from_millis(12));
    let info = net.info(CLIENT, client);
    assert_eq!(info.congestion_state, CongestionState::Reduced);
    let expect = (u64::from(before) * 7 / 10) as u32;
    assert!(info.ssthresh.abs_diff(expect) <= 1, "CUBIC's part, once: {} for {expect}", info.ssthresh);
    net.pipe.mark = 0;
    let from = net.sent.len();
    net.run_for(Duration::from_millis(200));
    assert_eq!(net.ends[CLIENT].counters.tcp_retransmits, 0);
    assert!(net.info(CLIENT, client).delivered_ce > 0);
    // The echo ends when CWR has come (6.1.3), and data that follows is of an open connection.
    let flags = |packet: &Packet| Segment::parse(&packet.bytes).unwrap().flags;
    let told = net.sent[..from].iter().filter(|p| flags(p) & CWR != 0 && flags(p) & SYN == 0).count();
    assert_eq!(told, 1, "one reduction, told once");
    send(&mut net, client, server, 50_000);
    let last = net.sent.iter().rev().find(|p| p.from == net.ends[SERVER].address).unwrap();
    assert_eq!(flags(last) & ECE, 0);
    assert_eq!(net.info(CLIENT, client).congestion_state, CongestionState::Open);
}

/// RFC 8257: with a tenth of the segments marked for long, the window shrinks by a twentieth and not by half; and the
/// receiver's echo is exact.
#[test]
fn dctcp_goes_by_how_much_is_marked() {
    let mut seconds = [0.0; 2];
    for (which, congestion) in [Congestion::Dctcp, Congestion::Reno].into_iter().enumerate() {
        let config = TcpConfig { congestion, ecn: Ecn::Request, ..TcpConfig::default() };
        let mut net = Net::listening(Pipe { mark: 20, config, ..big() });
        let (client, server) = net.pair();
        let start = net.now;
        send(&mut net, client, server, 8_000_000);
        seconds[which] = net.now.since(start).as_secs_f64();
        let info = net.info(CLIENT, client);
        assert_eq!(net.ends[CLIENT].counters.tcp_retransmits, 0);
        let told = f64::from(info.delivered_ce) / f64::from(info.delivered);
        if which == 0 {
            assert!((0.01..0.04).contains(&told), "{told} of 0.02");
            assert!(data(&net, 0).all(|(p, _)| p.tos & 2 == 2));
        }
    }
    assert!(seconds[0] * 1.5 < seconds[1], "{seconds:?}");
}

/// Two segments in a hundred are lost, though nothing is full.
#[test]
fn bbr_doesn_t_mind_losses() {
    let mut seconds = [0.0; 2];
    for (which, congestion) in [Congestion::Bbr, Congestion::Cubic].into_iter().enumerate() {
        let config = TcpConfig { congestion, ..TcpConfig::default() };
        let mut net = Net::listening(Pipe { loss: 20, config, ..big() });
        let (client, server) = net.pair();
        let start = net.now;
        send(&mut net, client, server, 8_000_000);
        seconds[which] = net.now.since(start).as_secs_f64();
        assert!(net.ends[CLIENT].counters.tcp_retransmits > 50);
        let info = net.info(CLIENT, client);
        assert!(which == 1 || info.pacing_rate > 1_000_000 && info.cwnd > 20 * 1448, "{info:?}");
    }
    assert!(seconds[0] * 2.0 < seconds[1], "{seconds:?}");
}

/// The path becomes slow in one moment, so that the timer fires though nothing is lost. The window comes back.
#[test]
fn timeouts_that_were_mistakes_are_taken_back() {
    for (sack, timestamps) in [(true, true), (true, false), (false, true), (false, false)] {
        let config = TcpConfig { sack, timestamps, tail_loss_probes: false, ..TcpConfig::default() };
        let mut net = Net::listening(Pipe { config, ..big() });
        let (client, server) = net.pair();
        send(&mut net, client, server, 200_000);
        let before = net.info(CLIENT, client);
        assert_eq!(before.ssthresh, u32::MAX);
        net.pipe.delay = Duration::from_millis(150);
        net.socket(CLIENT, client).outgoing = pattern(900_000, 1);
        net.run_for(Duration::from_millis(240));
        let info = net.info(CLIENT, client);
        assert_eq!((info.congestion_state, info.timeouts), (CongestionState::Loss, 1), "sack {sack} ts {timestamps}");
        net.run_for(Duration::from_millis(500));
        let info = net.info(CLIENT, client);
        assert_eq!(info.ssthresh, u32::MAX, "sack {sack} ts {timestamps}");
        assert!(info.cwnd >= before.cwnd, "{} after {}", info.cwnd, before.cwnd);
        assert!(info.retransmits <= 3, "{} sack {sack} ts {timestamps}", info.retransmits);
        net.run_until(|net| net.ends[SERVER].programs.sockets[&server].received.len() == 1_100_000);
    }
}

/// A real loss of everything is no mistake.
#[test]
fn timeouts_that_were_none_stay() {
    for sack in [true, false] {
        let config = TcpConfig { sack, tail_loss_probes: false, ..TcpConfig::default() };
        let mut net = Net::listening(Pipe { config, ..big() });
        let (client, server) = net.pair();
        send(&mut net, client, server, 200_000);
        net.drop_next = 1000;
        net.socket(CLIENT, client).outgoing = pattern(900_000, 1);
        net.run_for(Duration::from_millis(100));
        net.drop_next = 0;
        net.run_until(|net| net.ends[SERVER].programs.sockets[&server].received.len() == 1_100_000);
        assert!(net.info(CLIENT, client).ssthresh < 1_000_000, "sack {sack}");
        assert_eq!(net.info(CLIENT, client).timeouts, 0);
    }
}

/// One segment is so late that it is sent again; its D-SACK, or the echo of its timestamp, says that it wasn't lost.
#[test]
fn recoveries_that_were_mistakes_are_taken_back() {
    for timestamps in [true, false] {
        let config = TcpConfig { timestamps, ..TcpConfig::default() };
        let mut net = Net::listening(Pipe { config, ..big() });
        let (client, server) = net.pair();
        send(&mut net, client, server, 200_000);
        let from = net.sent.len();
        net.drop_next = 1;
        net.socket(CLIENT, client).outgoing = pattern(100_000, 1);
        net.run_for(Duration::from_millis(13));
        let late = data(&net, from).next().unwrap().0.clone();
        assert_eq!(net.info(CLIENT, client).congestion_state, CongestionState::Recovery);
        assert!(net.info(CLIENT, client).ssthresh < u32::MAX);
        // The original arrives now, the repetition after it.
        net.inject(SERVER, &late);
        net.run_until(|net| net.ends[SERVER].programs.sockets[&server].received.len() == 300_000);
        net.run_for(Duration::from_millis(50));
        let info = net.info(CLIENT, client);
        assert_eq!((info.congestion_state, info.ssthresh), (CongestionState::Open, u32::MAX), "ts {timestamps}");
        assert!(info.dsack_duplicates > 0);
    }
}

/// A slow start ends in many losses: they are repaired in some round trips and without the timer.
#[test]
fn many_losses_at_once() {
    for seed in 0..10 {
        let mut net = Net::listening(Pipe { seed, ..big() });
        let (client, server) = net.pair();
        send(&mut net, client, server, 300_000);
        net.pipe.loss = 300;
        net.socket(CLIENT, client).outgoing = pattern(300_000, 1);
        net.run_for(Duration::from_millis(4));
        net.pipe.loss = 0;
        let start = net.now;
        net.run_until(|net| net.ends[SERVER].programs.sockets[&server].received.len() == 600_000);
        assert_eq!(net.info(CLIENT, client).total_timeouts, 0, "seed {seed}");
        assert!(net.now.since(start) < Duration::from_millis(120), "seed {seed}: {:?}", net.now.since(start));
    }
}

#[test]
fn pacing_spreads_a_window() {
    for (pacing, most) in [(true, 16), (false, 1000)] {
        let config = TcpConfig { pacing, slow_start_after_idle: false, ..TcpConfig::default() };
        let mut net = Net::listening(Pipe { config, delay: Duration::from_millis(20), ..big() });
        let (client, server) = net.pair();
        send(&mut net, client, server, 500_000);
        net.run_for(Duration::from_secs(1));
        let from = net.sent.len();
        net.socket(CLIENT, client).outgoing = pattern(300_000, 1);
        net.pump();
        let at_once = data(&net, from).count();
        assert!(at_once <= most && at_once >= 10, "{at_once} at once, pacing {pacing}");
        assert!(pacing || at_once > 100);
        let start = net.now;
        net.run_until(|net| net.ends[SERVER].programs.sockets[&server].received.len() == 800_000);
        assert!(net.now.since(start) < Duration::from_millis(65), "{:?}", net.now.since(start));
    }
}

#[test]
fn a_pacing_rate_is_kept() {
    let options = TcpOptions { max_pacing_rate: 1_000_000, ..TcpOptions::default() };
    let mut net = Net::listening(Pipe { delay: Duration::from_micros(50), ..big() });
    let client = net.connect_with(options, 0, SERVER_PORT).unwrap();
    net.run_for(Duration::from_millis(1));
    let server = net.ends[SERVER].programs.accepted[0];
    let start = net.now;
    send(&mut net, client, server, 1_000_000);
    let took = net.now.since(start).as_secs_f64();
    assert!((0.97..1.1).contains(&took), "{took} s for a second's worth");
    assert_eq!(net.info(CLIENT, client).max_pacing_rate, 1_000_000);
}

/// Three segments, whatever happens.
#[derive(Debug)]
struct Three {
    mss: u32,
}

impl CongestionControl for Three {
    fn window(&self) -> u64 {
        3 * u64::from(self.mss)
    }
    fn threshold(&self) -> u64 {
        self.window()
    }
    fn set(&mut self, _: u64, _: u64) {}
    fn on_ack(&mut self, _: &Acked) {}
    fn on_congestion(&mut self, _: &Congested) {}
}

static THREE: Algorithm = Algorithm { name: "three", new: |mss| Box::new(Three { mss }), wants_marks: false };

#[test]
fn a_controller_of_ones_own_and_a_change_of_it() {
    let congestion = Some(Congestion::Custom(&THREE));
    let mut net = Net::listening(big());
    let client = net.connect_with(TcpOptions { congestion, ..TcpOptions::default() }, 0, SERVER_PORT).unwrap();
    net.run_for(Duration::from_millis(20));
    let server = net.ends[SERVER].programs.accepted[0];
    net.socket(CLIENT, client).outgoing = pattern(100_000, 1);
    for _ in 0..50 {
        net.step();
        assert!(net.info(CLIENT, client).bytes_in_flight <= 3 * 1448);
    }
    // Another goes on with the same window; one without a wish changes nothing.
    let (id, now) = (net.socket(CLIENT, client).id.unwrap(), net.now);
    net.ends[CLIENT].tcp.set_options(now, id, TcpOptions::default()).unwrap();
    assert_eq!(net.info(CLIENT, client).ssthresh, 3 * 1448);
    let options = TcpOptions { congestion: Congestion::by_name("reno"), ..TcpOptions::default() };
    net.ends[CLIENT].tcp.set_options(now, id, options).unwrap();
    assert_eq!(net.info(CLIENT, client).cwnd, 3 * 1448);
    net.run_until(|net| net.ends[SERVER].programs.sockets[&server].received.len() == 100_000);
    assert!(net.info(CLIENT, client).cwnd > 4 * 1448, "Reno's growth");
    assert_eq!(Congestion::by_name("vegas"), None);
}

#[test]
fn reordering_is_told() {
    use super::attacks::{forge, next_header};
    let config = TcpConfig { timestamps: false, ..TcpConfig::default() };
    let mut net = Net::listening(Pipe { config, mtu: 1040, delay: Duration::from_millis(50), ..big() });
    let (client, server) = net.pair();
    net.run_for(Duration::from_millis(200));
    let header = next_header(&mut net, client);
    let first = header.ack;
    net.down = true;
    net.socket(SERVER, server).outgoing = pattern(10_000, 1);
    net.pump();
    net.run_for(Duration::from_millis(100));
    let block = |left: u32, right: u32| (first.wrapping_add(left * 1000), first.wrapping_add(right * 1000));
    net.inject(SERVER, &forge(&net, &Header { sack: &[block(7, 8)], ..header }, b""));
    net.run_for(Duration::from_millis(29));
    let info = net.info(SERVER, server);
    assert_eq!((info.lost, info.reordering, info.congestion_state), (7, 3, CongestionState::Recovery));
    net.inject(SERVER, &forge(&net, &Header { sack: &[block(3, 4), block(7, 8)], ..header }, b""));
    let info = net.info(SERVER, server);
    assert_eq!((info.lost, info.reordering, info.reordering_seen), (6, 5, 1));
}
