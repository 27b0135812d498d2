//! Two stacks joined by a pipe in virtual time. The pipe loses, doubles and reorders as a seed says; every failure
//! prints the seed.

mod attacks;
mod closing;
mod congestion;
mod path;
mod peers;
mod transfer;

use super::segment::Segment;
use super::*;
use crate::{DatagramMeta, ListenAddress, Stream, TcpOptions, TcpSnapshot, Token};
use core::time::Duration;
use std::collections::BTreeMap;
use std::vec;

pub(super) const CLIENT: usize = 0;
pub(super) const SERVER: usize = 1;
const SERVER_PORT: u16 = 80;

/// What a pipe does to segments. Parts of 1,000.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pipe {
    pub seed: u64,
    pub loss: u64,
    pub duplicate: u64,
    pub reorder: u64,
    /// Of segments that say they can be marked (ECN).
    pub mark: u64,
    pub delay: Duration,
    pub rx_capacity: u32,
    pub tx_capacity: u32,
    pub mtu: usize,
    pub ipv6: bool,
    pub config: TcpConfig,
    pub limits: Limits,
}

impl Default for Pipe {
    fn default() -> Self {
        Self {
            seed: 1,
            loss: 0,
            duplicate: 0,
            reorder: 0,
            mark: 0,
            delay: Duration::from_micros(500),
            rx_capacity: 1 << 17,
            tx_capacity: 1 << 17,
            mtu: 1500,
            ipv6: false,
            config: TcpConfig::default(),
            limits: Limits::default(),
        }
    }
}

/// A socket and the program that has it.
#[derive(Debug)]
pub(super) struct Socket {
    pub id: Option<SocketId>,
    pub snapshot: Option<TcpSnapshot>,
    pub error: Option<Error>,
    pub events: usize,
    rx: Vec<u8>,
    tx: Vec<u8>,
    pub rx_head: u64,
    pub tx_tail: u64,
    /// What the program has read.
    pub received: Vec<u8>,
    /// What it wants to write, and from where on it hasn't.
    pub outgoing: Vec<u8>,
    outgoing_at: usize,
    /// Writes FIN when everything is written.
    pub finish: bool,
    finished: bool,
    /// Reads whatever comes.
    pub reads: bool,
    pub closed: bool,
}

impl Socket {
    pub fn state(&self) -> TcpState {
        self.snapshot.map_or(TcpState::Closed, |snapshot| snapshot.state)
    }

    pub fn released(&self) -> bool {
        self.snapshot.is_some_and(|snapshot| snapshot.released)
    }

    pub fn peer_finished(&self) -> bool {
        self.snapshot.is_some_and(|snapshot| snapshot.peer_finished)
    }
}

/// The memory of one side's programs.
#[derive(Debug, Default)]
pub(super) struct Programs {
    pub sockets: BTreeMap<u64, Socket>,
    rx_capacity: u32,
    tx_capacity: u32,
    next: u64,
    /// How many connections it will accept.
    pub room: usize,
    pub accepted: Vec<u64>,
}

impl Programs {
    pub fn socket(&mut self) -> Stream {
        self.next += 1;
        let socket = Socket {
            id: None,
            snapshot: None,
            error: None,
            events: 0,
            rx: vec![0; self.rx_capacity as usize],
            tx: vec![0; self.tx_capacity as usize],
            rx_head: 0,
            tx_tail: 0,
            received: vec![],
            outgoing: vec![],
            outgoing_at: 0,
            finish: false,
            finished: false,
            reads: true,
            closed: false,
        };
        self.sockets.insert(self.next, socket);
        Stream { token: Token(self.next), rx_capacity: self.rx_capacity, tx_capacity: self.tx_capacity }
    }
}

impl Host for Programs {
    fn accept(&mut self, _listener: Token, _local: SocketAddr, _remote: SocketAddr) -> Option<Stream> {
        if self.room == 0 {
            return None;
        }
        self.room -= 1;
        let stream = self.socket();
        self.accepted.push(stream.token.0);
        Some(stream)
    }

    fn rx_write(&mut self, stream: Token, at: u64, data: &[u8]) {
        let socket = self.sockets.get_mut(&stream.0).expect("a stream of ours");
        assert!(!socket.released(), "written after release");
        let capacity = socket.rx.len() as u64;
        assert!(at + data.len() as u64 <= socket.rx_head + capacity, "beyond the ring");
        assert!(at >= socket.snapshot.map_or(0, |s| s.rx_tail), "over what the program may be reading");
        for (i, byte) in data.iter().enumerate() {
            socket.rx[((at + i as u64) % capacity) as usize] = *byte;
        }
    }

    fn tx_read(&mut self, stream: Token, at: u64, out: &mut [u8]) {
        let socket = self.sockets.get_mut(&stream.0).expect("a stream of ours");
        let capacity = socket.tx.len() as u64;
        assert!(at + out.len() as u64 <= socket.tx_tail, "not written yet");
        assert!(at + capacity >= socket.tx_tail, "overwritten");
        for (i, byte) in out.iter_mut().enumerate() {
            *byte = socket.tx[((at + i as u64) % capacity) as usize];
        }
    }

    fn datagram_in(&mut self, _: Token, _: &DatagramMeta, _: &[u8]) -> bool {
        false
    }

    fn datagram_out(&mut self, _: Token, _: &mut [u8]) -> Option<DatagramMeta> {
        None
    }
}

pub(super) struct End {
    pub tcp: Tcp,
    pub programs: Programs,
    pub outbox: Outbox,
    pub counters: Counters,
    pub paths: PathMtus,
    pub address: IpAddr,
    pub listener: Option<SocketId>,
}

/// A segment on its way.
#[derive(Clone, Debug)]
pub(super) struct Packet {
    pub from: IpAddr,
    pub to: IpAddr,
    pub bytes: Vec<u8>,
    pub tos: u8,
}

pub(super) struct Net {
    pub now: Instant,
    pub ends: [End; 2],
    pub pipe: Pipe,
    /// Of nobody: both ends are behind wires.
    routes: Routes,
    random: Rng,
    wire: BTreeMap<(Instant, u64), Packet>,
    serial: u64,
    /// Everything sent, for tests that look at segments.
    pub sent: Vec<Packet>,
    pub log: bool,
    /// Drops segments for which it says so.
    pub filter: Option<fn(&Segment<'_>) -> bool>,
    pub down: bool,
    /// Drops that many segments with payload.
    pub drop_next: usize,
}

use crate::route::Routes;
use crate::siphash::{Rng, SipKey};

impl Net {
    pub fn new(pipe: Pipe) -> Self {
        // These programs' memory doesn't grow, so nothing larger is to be offered.
        let config = TcpConfig { rmem: [4096, 2 * pipe.rx_capacity, pipe.rx_capacity], ..pipe.config };
        let end = |host: u8| {
            let address = if pipe.ipv6 {
                IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, u16::from(host)])
            } else {
                IpAddr::from([10, 0, 0, host])
            };
            let mut seed = [host; 32];
            seed[..8].copy_from_slice(&pipe.seed.to_le_bytes());
            End {
                tcp: Tcp::new(&config, &pipe.limits, (40_000, 49_999), None, seed),
                programs: Programs {
                    rx_capacity: pipe.rx_capacity,
                    tx_capacity: pipe.tx_capacity,
                    room: usize::MAX,
                    next: u64::from(host) * 1_000_000,
                    ..Programs::default()
                },
                outbox: Outbox::new(1 << 20),
                counters: Counters::default(),
                paths: PathMtus::new(),
                address,
                listener: None,
            }
        };
        let mut key = [0; 16];
        key[..8].copy_from_slice(&pipe.seed.to_le_bytes());
        Self {
            now: Instant::from_millis(1_000),
            ends: [end(1), end(2)],
            pipe,
            routes: Routes::new(&[], &[]),
            random: Rng::new(SipKey::new(key)),
            wire: BTreeMap::new(),
            serial: 0,
            sent: vec![],
            log: false,
            filter: None,
            down: false,
            drop_next: 0,
        }
    }

    /// A net whose server listens.
    pub fn listening(pipe: Pipe) -> Self {
        let mut net = Self::new(pipe);
        net.listen(128);
        net
    }

    pub fn listen(&mut self, backlog: u32) {
        let at = ListenAddress { address: None, port: SERVER_PORT, ipv4: true, ipv6: true };
        let rx = self.pipe.rx_capacity;
        let end = &mut self.ends[SERVER];
        end.listener = Some(end.tcp.listen(Token(7), at, backlog, rx, TcpOptions::default(), false).unwrap());
    }

    pub fn with<T>(&mut self, side: usize, f: impl FnOnce(&mut Tcp, &mut Context<'_>) -> T) -> T {
        let end = &mut self.ends[side];
        let mut cx = Context {
            now: self.now,
            host: &mut end.programs,
            outbox: &mut end.outbox,
            counters: &mut end.counters,
            mtu: self.pipe.mtu,
            routes: &self.routes,
            paths: &mut end.paths,
        };
        f(&mut end.tcp, &mut cx)
    }

    pub fn connect(&mut self) -> u64 {
        self.connect_with(TcpOptions::default(), 0, SERVER_PORT).unwrap()
    }

    pub fn connect_with(&mut self, options: TcpOptions, local_port: u16, port: u16) -> Result<u64, Error> {
        self.connect_from(CLIENT, options, local_port, port)
    }

    pub fn connect_from(&mut self, side: usize, options: TcpOptions, local_port: u16, port: u16) -> Result<u64, Error> {
        let stream = self.ends[side].programs.socket();
        let local = SocketAddr::new(self.ends[side].address, local_port);
        let remote = SocketAddr::new(self.ends[1 - side].address, port);
        let connected = self.with(side, |tcp, cx| tcp.connect(cx, stream.token, local, remote, stream, options));
        let (id, _) = connected?;
        self.socket(side, stream.token.0).id = Some(id);
        Ok(stream.token.0)
    }

    /// Connects and accepts.
    pub fn pair(&mut self) -> (u64, u64) {
        let client = self.connect();
        let accepted = self.ends[SERVER].programs.accepted.len();
        self.run_until(|net| {
            net.ends[SERVER].programs.accepted.len() > accepted
                && net.ends[CLIENT].programs.sockets[&client].state() == TcpState::Established
        });
        (client, self.ends[SERVER].programs.accepted[accepted])
    }

    pub fn socket(&mut self, side: usize, token: u64) -> &mut Socket {
        self.ends[side].programs.sockets.get_mut(&token).unwrap()
    }

    pub fn verb(&mut self, side: usize, token: u64, f: fn(&mut Tcp, Instant, SocketId) -> Result<(), Error>) {
        let id = self.socket(side, token).id.unwrap();
        f(&mut self.ends[side].tcp, self.now, id).unwrap();
    }

    pub fn close(&mut self, side: usize, token: u64) {
        self.socket(side, token).closed = true;
        self.verb(side, token, Tcp::close);
    }

    pub fn info(&mut self, side: usize, token: u64) -> crate::TcpInfo {
        let id = self.socket(side, token).id.unwrap();
        self.ends[side].tcp.info(id, self.now).unwrap()
    }

    /// Hands a segment to a side as if it had come.
    pub fn inject(&mut self, side: usize, packet: &Packet) -> Verdict {
        let meta = SegmentMeta { source: packet.from, destination: packet.to, tos: packet.tos, ttl: 64 };
        let verdict = self.with(side, |tcp, cx| tcp.handle_segment(cx, &meta, &packet.bytes, true));
        self.pump();
        verdict
    }

    /// Programs run, segments leave, until nothing changes without time.
    pub fn pump(&mut self) {
        for side in [CLIENT, SERVER] {
            loop {
                while let Some(event) = self.ends[side].tcp.poll_event() {
                    self.on_event(side, event);
                }
                self.run_programs(side);
                let mut out = [0; 9100];
                let mut packets = vec![];
                while let Some(reply) = self.ends[side].outbox.pop() {
                    packets.push((reply.source, reply.destination, reply.payload, reply.tos));
                }
                if let Some(ready) = self.ends[side].tcp.next_ready() {
                    let emitted = self.with(side, |tcp, cx| tcp.emit(cx, ready, &mut out));
                    if let Some(emitted) = emitted {
                        packets.push((ready.source, ready.destination, out[..emitted.len].to_vec(), emitted.tos));
                    }
                } else if packets.is_empty() {
                    break;
                }
                for (from, to, bytes, tos) in packets {
                    self.transmit(Packet { from, to, bytes, tos });
                }
            }
        }
    }

    fn on_event(&mut self, side: usize, event: Event) {
        match event {
            Event::Accepted { stream, socket, .. } => self.socket(side, stream.0).id = Some(socket),
            Event::Tcp { token, socket, state } => {
                let program = self.socket(side, token.0);
                assert_eq!(program.id, Some(socket), "events of another socket");
                assert!(!program.released(), "an event after the last");
                assert!(!program.closed || state.released, "an event for an owner that is gone");
                program.snapshot = Some(state);
                program.events += 1;
                program.error = program.error.or(state.error);
            }
            other => panic!("unexpected {other:?}"),
        }
    }

    fn run_programs(&mut self, side: usize) {
        let now = self.now;
        let end = &mut self.ends[side];
        for socket in end.programs.sockets.values_mut() {
            let (Some(snapshot), Some(id)) = (socket.snapshot, socket.id) else { continue };
            if socket.reads && snapshot.rx_tail > socket.rx_head {
                let capacity = socket.rx.len() as u64;
                for at in socket.rx_head..snapshot.rx_tail {
                    socket.received.push(socket.rx[(at % capacity) as usize]);
                }
                socket.rx_head = snapshot.rx_tail;
                if !snapshot.released && !socket.closed {
                    end.tcp.received(now, id, socket.rx_head).unwrap();
                }
            }
            if snapshot.released || socket.closed {
                continue;
            }
            let capacity = socket.tx.len() as u64;
            let room = capacity - (socket.tx_tail - snapshot.tx_head);
            let len = room.min((socket.outgoing.len() - socket.outgoing_at) as u64) as usize;
            if len > 0 {
                for byte in &socket.outgoing[socket.outgoing_at..][..len] {
                    socket.tx[(socket.tx_tail % capacity) as usize] = *byte;
                    socket.tx_tail += 1;
                }
                socket.outgoing_at += len;
                if socket.outgoing_at == socket.outgoing.len() {
                    socket.outgoing.clear();
                    socket.outgoing_at = 0;
                }
                end.tcp.send(now, id, socket.tx_tail).unwrap();
            }
            if socket.finish && !socket.finished && socket.outgoing.is_empty() {
                socket.finished = true;
                end.tcp.finish(now, id).unwrap();
            }
        }
    }

    fn transmit(&mut self, mut packet: Packet) {
        assert_eq!(segment::checksum(packet.from, packet.to, &packet.bytes), 0);
        let header = if self.pipe.ipv6 { 40 } else { 20 };
        assert!(packet.bytes.len() + header <= self.pipe.mtu, "larger than the link");
        if self.log {
            let segment = Segment::parse(&packet.bytes).unwrap();
            std::println!(
                "{:>9} {} seq={} ack={} flags={:05b} win={} len={} sack={:?}",
                self.now.as_micros(),
                packet.from,
                segment.seq,
                segment.ack,
                segment.flags,
                segment.window,
                segment.payload.len(),
                segment.sack_blocks()
            );
        }
        if self.sent.len() < 100_000 {
            self.sent.push(packet.clone());
        }
        let mut chance = |parts: u64| self.random.next_u64() % 1000 < parts;
        let lost = chance(self.pipe.loss);
        if self.drop_next > 0 && !Segment::parse(&packet.bytes).unwrap().payload.is_empty() {
            self.drop_next -= 1;
            return;
        }
        if packet.tos & 3 != 0 && chance(self.pipe.mark) {
            packet.tos |= 3;
        }
        let copies = 1 + u64::from(chance(self.pipe.duplicate));
        if lost || self.down || self.filter.is_some_and(|drop| drop(&Segment::parse(&packet.bytes).unwrap())) {
            return;
        }
        for _ in 0..copies {
            let mut delay = self.pipe.delay;
            if self.random.next_u64() % 1000 < self.pipe.reorder {
                delay += self.pipe.delay * (self.random.next_u64() % 4) as u32;
            }
            self.serial += 1;
            self.wire.insert((self.now + delay, self.serial), packet.clone());
        }
    }

    /// Moves to the next thing that happens. False when nothing ever will.
    pub fn step(&mut self) -> bool {
        self.pump();
        let wire = self.wire.first_key_value().map(|((at, _), _)| *at);
        let timers = self.ends.iter().filter_map(|end| end.tcp.next_deadline()).min();
        let Some(next) = wire.into_iter().chain(timers).min() else { return false };
        self.now = self.now.max(next);
        while let Some(entry) = self.wire.first_entry() {
            if entry.key().0 > self.now {
                break;
            }
            let packet = entry.remove();
            if let Some(side) = self.ends.iter().position(|end| end.address == packet.to) {
                let meta = SegmentMeta { source: packet.from, destination: packet.to, tos: packet.tos, ttl: 64 };
                self.with(side, |tcp, cx| tcp.handle_segment(cx, &meta, &packet.bytes, true));
            }
        }
        for side in [CLIENT, SERVER] {
            self.with(side, |tcp, cx| tcp.handle_timers(cx));
        }
        self.pump();
        true
    }

    pub fn run_until(&mut self, mut done: impl FnMut(&Self) -> bool) {
        let start = self.now;
        while !done(self) {
            assert!(self.step(), "nothing happens any more, seed {}", self.pipe.seed);
            assert!(self.now.since(start) < Duration::from_secs(20_000), "takes for ever, seed {}", self.pipe.seed);
        }
    }

    /// Lets time pass, however little happens in it.
    pub fn run_for(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            self.pump();
            let wire = self.wire.first_key_value().map(|((at, _), _)| *at);
            let timers = self.ends.iter().filter_map(|end| end.tcp.next_deadline()).min();
            if wire.into_iter().chain(timers).min().is_none_or(|at| at > end) {
                break;
            }
            self.step();
        }
        self.now = end;
        self.pump();
    }
}

/// Bytes that tell their own position.
pub(super) fn pattern(len: usize, salt: u8) -> Vec<u8> {
    (0..len).map(|i| (i as u8).wrapping_mul(31) ^ (i >> 8) as u8 ^ (i >> 16) as u8 ^ salt).collect()
}
