//! What things cost the stack, in instructions: `sidestep-cost SCENE N [ROUNDS]`, to be run under
//! `valgrind --tool=callgrind --collect-atstart=no --toggle-collect='*measured*'`. It prints how many units of work were
//! measured, and the time that each took here (which only tells something without valgrind).
//!
//! | scene | N | one unit |
//! |---|---|---|
//! | `request` | established connections | 64 bytes in, read, 128 bytes written, segment out; connections in random order |
//! | `gaps` | segments | one byte or two out of order, overlapping, with a gap before it (SegmentSmack) |
//! | `sacks` | segments in flight | an ACK with three SACK blocks that cover a small segment each |
//! | `fragments` | pieces | 8 bytes of a datagram that is never whole (FragmentSmack) |
//! | `syns` | SYNs | from an address of its own each, beyond the backlog: a cookie |

// The rule that time is an argument is the stack's; this is about the machine.
#![allow(clippy::disallowed_methods)]

use sidestep_hostile::wire::{self, ACK, SYN, Tcp};
use sidestep_hostile::world::{addresses, mac};
use sidestep_stack::{
    DatagramMeta, Event, Host, Instant, InterfaceAddress, Limits, ListenAddress, NeighborMode, SocketId, Stack,
    StackConfig, StaticNeighbor, Stream, TcpConfig, TcpOptions, Token, Unknown,
};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

const PORT: u16 = 80;
const CAPACITY: u32 = 1 << 17;
const REQUEST: usize = 64;
const ANSWER: u64 = 128;

/// Programs that keep nothing: what their memory costs is not the stack's.
#[derive(Default)]
struct Programs {
    next: u64,
}

impl Host for Programs {
    fn accept(&mut self, _: Token, _: SocketAddr, _: SocketAddr) -> Option<Stream> {
        self.next += 1;
        Some(Stream { token: Token(self.next), rx_capacity: CAPACITY, tx_capacity: CAPACITY })
    }
    fn rx_write(&mut self, _: Token, _: u64, _: &[u8]) {}
    fn tx_read(&mut self, _: Token, _: u64, out: &mut [u8]) {
        out.fill(7);
    }
    fn datagram_in(&mut self, _: Token, _: &DatagramMeta, _: &[u8]) -> bool {
        true
    }
    fn datagram_out(&mut self, _: Token, _: &mut [u8]) -> Option<DatagramMeta> {
        None
    }
}

/// A connection as its peer keeps it.
struct Connection {
    remote: SocketAddr,
    seq: u32,
    ack: u32,
    recent: u32,
    socket: Option<(SocketId, u64)>,
    received: u64,
    sent: u64,
}

struct Scene {
    stack: Stack,
    programs: Programs,
    now: Instant,
    connections: Vec<Connection>,
    by_remote: BTreeMap<SocketAddr, usize>,
    by_token: BTreeMap<u64, usize>,
    out: Vec<u8>,
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let number = |n: usize, default: usize| arguments.get(n).and_then(|a| a.parse().ok()).unwrap_or(default);
    let (n, rounds) = (number(2, 1), number(3, 2000));
    let mut scene = Scene::new(if arguments.get(1).is_some_and(|s| s == "syns") { 128 } else { 1 << 20 });
    let frames = match arguments.get(1).map(String::as_str) {
        Some("request") => return scene.requests(n, rounds),
        Some("gaps") => scene.gaps(n),
        Some("sacks") => scene.sacks(n),
        Some("fragments") => scene.fragments(n),
        Some("syns") => scene.syns(n),
        _ => {
            eprintln!("sidestep-cost request|gaps|sacks|fragments|syns N [ROUNDS]");
            std::process::exit(2);
        }
    };
    let begin = std::time::Instant::now();
    scene.measured_frames(&frames);
    report(frames.len(), begin.elapsed());
}

fn report(units: usize, took: Duration) {
    println!("units {units} nanoseconds {}", took.as_nanos() / units.max(1) as u128);
}

impl Scene {
    fn new(backlog: u32) -> Self {
        let prefix = |a: &IpAddr| if a.is_ipv4() { 24 } else { 64 };
        let limits = Limits { connections: 1 << 20, half_open: 1 << 20, outbox: 1 << 20, ..Limits::default() };
        let config = StackConfig {
            mac: mac(0),
            mtu: 1500,
            addresses: addresses(0).iter().map(|a| InterfaceAddress { address: *a, prefix_bits: prefix(a) }).collect(),
            routes: vec![sidestep_stack::Route {
                network: IpAddr::from([0, 0, 0, 0]),
                prefix_bits: 0,
                gateway: Some(addresses(1)[0]),
            }],
            neighbors: addresses(1).into_iter().map(|address| StaticNeighbor { address, mac: mac(1) }).collect(),
            neighbor_mode: NeighborMode::Own,
            ephemeral_ports: (40_000, 49_999),
            rss: None,
            checksums: true,
            tcp: TcpConfig::default(),
            limits,
        };
        let mut stack = Stack::new(config, [3; 32]);
        let at = |port| ListenAddress { address: None, port, ipv4: true, ipv6: true };
        let options = TcpOptions { no_delay: true, ..TcpOptions::default() };
        stack.tcp_listen(Token(0), at(PORT), backlog, CAPACITY, options, false).expect("a free port");
        stack.udp_open(Token(1 << 40), at(7), false).expect("a free port");
        Self {
            stack,
            programs: Programs::default(),
            now: Instant::from_millis(70_000),
            connections: Vec::new(),
            by_remote: BTreeMap::new(),
            by_token: BTreeMap::new(),
            out: vec![0; 1514],
        }
    }

    fn frame(from: IpAddr, segment: &Tcp) -> Vec<u8> {
        wire::ethernet(mac(0), mac(1), wire::IPV4, &segment.packet(from, addresses(0)[0]))
    }

    fn clock(&self) -> u32 {
        (self.now.as_nanos() / 1_000_000) as u32
    }

    fn give(&mut self, frame: &[u8]) {
        self.stack.handle_frame(self.now, frame, &mut self.programs, Unknown::Answer);
    }

    /// What the stack sent, to the peers that keep it.
    fn note(&mut self) {
        while let Some(len) = self.stack.poll_frame(self.now, &mut self.out, &mut self.programs) {
            let Some((_, to, segment)) = Tcp::read(&self.out[..len]) else { continue };
            let Some(index) = self.by_remote.get(&SocketAddr::new(to, segment.destination)) else { continue };
            let c = &mut self.connections[*index];
            let control = u32::from(segment.has(SYN));
            c.ack = segment.seq.wrapping_add(segment.payload.len() as u32 + control);
            c.recent = segment.timestamps().map_or(c.recent, |t| t.0);
        }
        while let Some(event) = self.stack.poll_event() {
            if let Event::Accepted { stream, socket, remote, .. } = event
                && let Some(index) = self.by_remote.get(&remote)
            {
                self.connections[*index].socket = Some((socket, stream.0));
                self.by_token.insert(stream.0, *index);
            }
        }
    }

    /// Connections by an ordinary handshake. `mss`: what the peer announces.
    fn establish(&mut self, n: usize, mss: u16) {
        for i in 0..n {
            let address = IpAddr::from((0x0a01_0000 + (i as u32 >> 12)).to_be_bytes());
            let remote = SocketAddr::new(address, 20_000 + (i as u16 & 0xfff));
            let seq = (i as u32).wrapping_mul(2_654_435_761);
            self.by_remote.insert(remote, self.connections.len());
            self.connections.push(Connection { remote, seq, ack: 0, recent: 0, socket: None, received: 0, sent: 0 });
            let mut options = vec![2, 4, (mss >> 8) as u8, mss as u8, 1, 3, 3, 7, 4, 2];
            options.extend_from_slice(&[8, 10]);
            options.extend_from_slice(&self.clock().to_be_bytes());
            options.extend_from_slice(&[0; 4]);
            let (source, destination) = (remote.port(), PORT);
            let syn = Tcp { source, destination, seq, flags: SYN, window: 60_000, options, ..Tcp::default() };
            self.give(&Self::frame(address, &syn));
            self.note();
            let index = self.connections.len() - 1;
            self.connections[index].seq = seq.wrapping_add(1);
            let ack = self.segment(index, &[]);
            self.give(&Self::frame(address, &ack));
            self.note();
            self.now = self.now + Duration::from_micros(3);
        }
        assert!(self.connections.iter().all(|c| c.socket.is_some()), "not all are open");
    }

    fn segment(&self, index: usize, payload: &[u8]) -> Tcp {
        let c = &self.connections[index];
        Tcp {
            source: c.remote.port(),
            destination: PORT,
            seq: c.seq,
            ack: c.ack,
            flags: ACK,
            window: 5000,
            options: wire::timestamp_option(self.clock(), c.recent),
            payload: payload.to_vec(),
            ..Tcp::default()
        }
    }

    fn requests(&mut self, n: usize, rounds: usize) {
        self.establish(n, 1460);
        let mut random = 1_u64;
        let mut took = Duration::ZERO;
        for round in 0..rounds + 200 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let index = (random >> 33) as usize % n;
            self.now = self.now + Duration::from_micros(20);
            let request = self.segment(index, &[1; REQUEST]);
            let c = &mut self.connections[index];
            c.seq = c.seq.wrapping_add(REQUEST as u32);
            let frame = Self::frame(c.remote.ip(), &request);
            // The first ones find the stack's tables cold, and the connections in slow start.
            if round < 200 {
                self.one_request(&frame);
            } else {
                let begin = std::time::Instant::now();
                self.measured_request(&frame);
                took += begin.elapsed();
            }
            let Some((_, _, answer)) = Tcp::read(&self.out) else { panic!("no answer") };
            assert_eq!(answer.payload.len() as u64, ANSWER);
            let c = &mut self.connections[index];
            c.ack = answer.seq.wrapping_add(ANSWER as u32);
            c.recent = answer.timestamps().map_or(c.recent, |t| t.0);
            self.out.resize(1514, 0);
        }
        report(rounds, took);
    }

    #[inline(never)]
    fn measured_request(&mut self, frame: &[u8]) {
        self.one_request(frame);
    }

    /// What a shard does for a request, its memory and its system calls aside. The answer is left in `out`, which is cut
    /// to its length.
    fn one_request(&mut self, frame: &[u8]) {
        let now = self.now;
        if self.stack.next_deadline().is_some_and(|at| at <= now) {
            self.stack.handle_timers(now, &mut self.programs);
        }
        self.stack.handle_frame(now, frame, &mut self.programs, Unknown::Answer);
        while let Some(event) = self.stack.poll_event() {
            let Event::Tcp { token, socket, state } = event else { continue };
            let Some(c) = self.by_token.get(&token.0).map(|i| &mut self.connections[*i]) else { continue };
            if state.rx_tail > c.received {
                c.received = state.rx_tail;
                let _ = self.stack.tcp_received(now, socket, c.received);
                c.sent += ANSWER;
                let _ = self.stack.tcp_send(now, socket, c.sent);
            }
        }
        let mut answer = 0;
        while let Some(len) = self.stack.poll_frame(now, &mut self.out, &mut self.programs) {
            answer = len;
        }
        self.out.truncate(answer);
        while self.stack.poll_event().is_some() {}
    }

    #[inline(never)]
    fn measured_frames(&mut self, frames: &[Vec<u8>]) {
        for frame in frames {
            self.now = self.now + Duration::from_micros(10);
            self.stack.handle_frame(self.now, frame, &mut self.programs, Unknown::Answer);
            while self.stack.poll_frame(self.now, &mut self.out, &mut self.programs).is_some() {}
            while self.stack.poll_event().is_some() {}
        }
    }

    /// Segments of one or two bytes from the window's far end down, so that each comes before all the others.
    fn gaps(&mut self, n: usize) -> Vec<Vec<u8>> {
        self.establish(1, 1460);
        let seq = self.connections[0].seq;
        let piece = |i: usize| {
            let place = 60_000_u32.wrapping_sub((i as u32 * 3) % 59_000);
            let segment = self.segment(0, &[7; 2][..1 + i % 2]);
            Self::frame(self.connections[0].remote.ip(), &Tcp { seq: seq.wrapping_add(place), ..segment })
        };
        (0..n).map(piece).collect()
    }

    /// The smallest segments that a peer can ask for fill the window, and each ACK reports three of them.
    fn sacks(&mut self, n: usize) -> Vec<Vec<u8>> {
        self.establish(1, 48);
        let (socket, _) = self.connections[0].socket.expect("open");
        let (address, segment) = (self.connections[0].remote.ip(), 76_u32);
        let flight = n as u32 * segment;
        let mut acked = 0;
        // Let the congestion window grow until all of it is in flight at once.
        for _ in 0..4000 {
            let una = self.connections[0].ack;
            let written = acked + u64::from(flight);
            self.stack.tcp_send(self.now, socket, written).expect("its own socket");
            for _ in 0..20 {
                // Paced, perhaps.
                self.now = self.now + Duration::from_micros(50);
                if self.stack.next_deadline().is_some_and(|at| at <= self.now) {
                    self.stack.handle_timers(self.now, &mut self.programs);
                }
                self.note();
            }
            let sent = self.connections[0].ack.wrapping_sub(una);
            if sent >= flight {
                let ack = |i: usize| {
                    let mut s = Tcp { ack: una, ..self.segment(0, &[]) };
                    s.options.extend_from_slice(&[1, 1, 5, 26]);
                    for k in 0..3 {
                        let left = una.wrapping_add(segment * (1 + 2 * (3 * i + k) as u32 % (n as u32 - 2)));
                        s.options.extend_from_slice(&left.to_be_bytes());
                        s.options.extend_from_slice(&left.wrapping_add(segment).to_be_bytes());
                    }
                    Self::frame(address, &s)
                };
                return (0..n / 8).map(ack).collect();
            }
            // Acknowledge what came.
            acked += u64::from(sent);
            let ack = self.segment(0, &[]);
            self.give(&Self::frame(address, &ack));
        }
        panic!("{n} segments are never in flight at once");
    }

    fn fragments(&mut self, n: usize) -> Vec<Vec<u8>> {
        let (IpAddr::V4(from), IpAddr::V4(to)) = (addresses(1)[0], addresses(0)[0]) else { return Vec::new() };
        let piece = |i: usize| {
            let (id, place) = ((i / 100) as u16, (i % 100) as u16 * 2 + 1);
            wire::ethernet(
                mac(0),
                mac(1),
                wire::IPV4,
                &wire::ipv4(from.octets(), to.octets(), 17, id, place | 1 << 13, &[0; 8]),
            )
        };
        (0..n).map(piece).collect()
    }

    fn syns(&mut self, n: usize) -> Vec<Vec<u8>> {
        let syn = |i: usize| {
            let from = IpAddr::from((0x0b00_0000 + i as u32).to_be_bytes());
            let segment =
                Tcp { source: 9, destination: PORT, seq: i as u32, flags: SYN, window: 500, ..Tcp::default() };
            Self::frame(from, &segment)
        };
        (0..n).map(syn).collect()
    }
}
