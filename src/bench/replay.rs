//! Frames into an engine without a device: what a core does for a request when nothing outside it costs anything.
//!
//! The engine is the real one ([`crate::local`]: shard loop, stack, books, shared memory), and the program is the real
//! server of `bench serve` on the real client. Only the port is not a device: [`ReplayPort`] plays the peers. It keeps
//! a frame ready for each connection, sets numbers and checksums in it, and takes the answers off. That costs some tens
//! of nanoseconds a request, which are part of what is measured.

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use sidestep_stack::{Instant, Route, StackConfig, StaticNeighbor};

use super::net::{EngineNet, Waiting};
use super::serve::Server;
use crate::clock::{Clock, VirtualClock};
use crate::local::{LocalConfig, LocalEngine};
use crate::port::{FrameIo, PortCounters};

const SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
const GATEWAY_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
pub(super) const PORT: u16 = 7700;
/// Peers are at 172.16.0.1 and following, with so many ports each, from [`FIRST_PORT`] on.
const PEERS: u32 = 0xac10_0001;
const PORTS: u32 = 50_000;
const FIRST_PORT: u32 = 1_024;
/// Headers of a request: Ethernet, IPv4, TCP, and the timestamps option with its padding.
const HEADERS: usize = 14 + 20 + 20 + 12;
/// Virtual time that passes from one turn to the next: as if a turn took that long.
const STEP: Duration = Duration::from_micros(2);
/// Turns without an answer after which something is broken.
const PATIENCE: u32 = 100_000;

pub(super) const SYN: u8 = 2;
pub(super) const ACK: u8 = 16;
pub(super) const PUSH: u8 = 8;

/// One peer of the server.
pub(super) struct Peer {
    /// A request, right but for its numbers and checksum.
    frame: Box<[u8]>,
    /// Sum of everything that the checksum covers and that stays.
    sum: u32,
    seq: u32,
    ack: u32,
    /// Newest timestamp of the server's.
    echo: u32,
    got: u32,
}

/// See the module.
pub struct ReplayPort {
    peers: Vec<Peer>,
    size: u32,
    /// Peers that begin, and peers whose handshake waits for its last segment.
    to_open: VecDeque<u32>,
    to_acknowledge: VecDeque<u32>,
    /// Peers that have their answer and send the next request.
    ready: VecDeque<u32>,
    requests: bool,
    scratch: Box<[u8]>,
    /// Our timestamps: a count of turns is as good as a clock.
    stamp: u32,
    answered: u64,
    standing: u32,
    unexpected: u64,
    counters: PortCounters,
}

impl ReplayPort {
    fn new(connections: u32, size: u32) -> Self {
        Self {
            peers: (0..connections).map(|n| Peer::new(n, size)).collect(),
            size,
            to_open: (0..connections).collect(),
            to_acknowledge: VecDeque::new(),
            ready: VecDeque::new(),
            requests: false,
            scratch: vec![0; 1_522].into(),
            stamp: 1,
            answered: 0,
            standing: 0,
            unexpected: 0,
            counters: PortCounters::default(),
        }
    }

    /// The next frame for the server.
    fn next(&mut self) -> Option<(usize, u8, u32)> {
        if let Some(n) = self.to_acknowledge.pop_front() {
            self.standing += 1;
            self.ready.push_back(n);
            return Some((n as usize, ACK, 0));
        }
        if self.requests {
            return self.ready.pop_front().map(|n| (n as usize, ACK | PUSH, self.size));
        }
        self.to_open.pop_front().map(|n| (n as usize, SYN, 0))
    }

    /// A frame of the server's.
    fn answer(&mut self, frame: &[u8]) {
        if frame.len() < 54 || frame[12..14] != [8, 0] || frame[23] != 6 {
            // The engine announces its address.
            return;
        }
        let (address, port) = (word(frame, 30), half(frame, 36));
        let index = address.wrapping_sub(PEERS).wrapping_mul(PORTS).wrapping_add(port.wrapping_sub(FIRST_PORT));
        let heard = self.peers.get_mut(index as usize).and_then(|peer| Some((peer.hear(frame)?, peer)));
        let Some((payload, peer)) = heard else {
            self.unexpected += 1;
            return;
        };
        if frame[47] & SYN != 0 {
            self.to_acknowledge.push_back(index);
            return;
        }
        peer.got += payload;
        if payload > 0 && peer.got >= self.size {
            peer.got -= self.size;
            self.answered += 1;
            self.ready.push_back(index);
        }
    }
}

impl FrameIo for ReplayPort {
    fn receive(&mut self, budget: usize, mut handle: impl FnMut(&mut [u8])) -> usize {
        let mut count = 0;
        self.stamp = self.stamp.wrapping_add(1);
        while count < budget
            && let Some((n, flags, payload)) = self.next()
        {
            let frame = self.peers[n].segment(flags, payload, self.stamp);
            let length = frame.len();
            // The stack may write into the frame.
            self.scratch[..length].copy_from_slice(frame);
            self.counters.rx_frames += 1;
            self.counters.rx_bytes += length as u64;
            handle(&mut self.scratch[..length]);
            count += 1;
        }
        count
    }

    fn transmit(&mut self, budget: usize, mut fill: impl FnMut(&mut [u8]) -> Option<usize>) -> usize {
        let mut scratch = std::mem::take(&mut self.scratch);
        let mut count = 0;
        while count < budget
            && let Some(length) = fill(&mut scratch)
        {
            self.counters.tx_frames += 1;
            self.counters.tx_bytes += length as u64;
            self.answer(&scratch[..length]);
            count += 1;
        }
        self.scratch = scratch;
        count
    }

    fn flush(&mut self) {}

    fn can_transmit(&mut self) -> bool {
        true
    }

    fn frame_capacity(&self) -> usize {
        self.scratch.len()
    }

    fn poll_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn counters(&self) -> PortCounters {
        self.counters
    }
}

impl Peer {
    pub(super) fn new(n: u32, size: u32) -> Self {
        let mut frame = vec![0x5a; HEADERS + size as usize];
        frame[..6].copy_from_slice(&mac_of_server());
        frame[6..12].copy_from_slice(&GATEWAY_MAC);
        frame[12..14].copy_from_slice(&[8, 0]);
        let ip = &mut frame[14..34];
        ip.copy_from_slice(&[0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        ip[12..16].copy_from_slice(&(PEERS + n / PORTS).to_be_bytes());
        ip[16..20].copy_from_slice(&SERVER.octets());
        let tcp = &mut frame[34..HEADERS];
        tcp.fill(0);
        tcp[..2].copy_from_slice(&((FIRST_PORT + n % PORTS) as u16).to_be_bytes());
        tcp[2..4].copy_from_slice(&PORT.to_be_bytes());
        tcp[12] = 8 << 4;
        tcp[14..16].copy_from_slice(&u16::MAX.to_be_bytes());
        tcp[20..24].copy_from_slice(&[1, 1, 8, 10]);
        let mut peer = Self { frame: frame.into(), sum: 0, seq: 0, ack: 0, echo: 0, got: 0 };
        // Addresses, protocol, ports, header length, window, option head; the payload is added where there is one.
        peer.sum = words(&peer.frame[26..34])
            + 6
            + words(&peer.frame[34..38])
            + words(&peer.frame[48..50])
            + words(&peer.frame[54..58])
            + (8 << 12);
        peer
    }

    /// The next segment, with `payload` bytes.
    pub(super) fn segment(&mut self, flags: u8, payload: u32, stamp: u32) -> &[u8] {
        self.number(flags, payload, stamp);
        self.seq = self.seq.wrapping_add(payload);
        &self.frame[..HEADERS + payload as usize]
    }

    /// Takes a segment of the server's; its payload's length. None: it makes no sense here.
    pub(super) fn hear(&mut self, frame: &[u8]) -> Option<u32> {
        if frame.len() < 54 || frame[12..14] != [8, 0] || frame[23] != 6 {
            return None;
        }
        let (flags, header) = (frame[47], u32::from(frame[46] >> 4) * 4);
        let payload = half(frame, 16).saturating_sub(20 + header);
        if frame.get(54..58) == Some(&[1, 1, 8, 10]) {
            self.echo = word(frame, 58);
        }
        if flags & SYN != 0 {
            self.ack = word(frame, 38).wrapping_add(1);
            // A SYN of the server's that has options in another order: theirs are not ours to know.
            self.echo = timestamp(&frame[54..34 + header as usize]).unwrap_or(self.echo);
            self.seq = 1;
            return Some(0);
        }
        if flags & !(ACK | PUSH) != 0 || (payload > 0 && word(frame, 38) != self.ack) {
            return None;
        }
        self.ack = self.ack.wrapping_add(payload);
        Some(payload)
    }

    /// Sets numbers, flags and checksums for a segment with `payload` bytes.
    fn number(&mut self, flags: u8, payload: u32, stamp: u32) {
        let length = (20 + 32 + payload) as u16;
        let frame = &mut self.frame;
        frame[16..18].copy_from_slice(&length.to_be_bytes());
        frame[24..26].fill(0);
        let checksum = fold(words(&frame[14..34]));
        frame[24..26].copy_from_slice(&checksum.to_be_bytes());
        frame[38..42].copy_from_slice(&self.seq.to_be_bytes());
        frame[42..46].copy_from_slice(&self.ack.to_be_bytes());
        frame[47] = flags;
        frame[58..62].copy_from_slice(&stamp.to_be_bytes());
        frame[62..66].copy_from_slice(&self.echo.to_be_bytes());
        let changing = words(&frame[38..46]) + words(&frame[58..66]) + u32::from(flags) + 32 + payload;
        let body = words(&frame[HEADERS..HEADERS + payload as usize]);
        let checksum = fold(self.sum + changing + body);
        frame[50..52].copy_from_slice(&checksum.to_be_bytes());
        // A SYN takes a sequence number of its own.
        self.seq = self.seq.wrapping_add(u32::from(flags & SYN != 0));
    }
}

fn half(frame: &[u8], at: usize) -> u32 {
    u32::from(u16::from_be_bytes([frame[at], frame[at + 1]]))
}

fn word(frame: &[u8], at: usize) -> u32 {
    half(frame, at) << 16 | half(frame, at + 2)
}

/// The value of the timestamps option (RFC 7323) among `options`.
fn timestamp(mut options: &[u8]) -> Option<u32> {
    loop {
        match *options {
            [8, 10, a, b, c, d, ..] => return Some(u32::from_be_bytes([a, b, c, d])),
            [1, ref rest @ ..] => options = rest,
            [kind, length, ..] if kind >= 2 && length >= 2 => options = options.get(length as usize..)?,
            _ => return None,
        }
    }
}

/// Sum of 16-bit words, not folded: enough for a few thousand of them.
fn words(bytes: &[u8]) -> u32 {
    let pairs = bytes.chunks(2).map(|c| u32::from(c[0]) << 8 | u32::from(c.get(1).copied().unwrap_or(0)));
    pairs.sum()
}

/// RFC 1071.
fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    !((sum & 0xffff) + (sum >> 16)) as u16
}

fn mac_of_server() -> [u8; 6] {
    [2, 0, 0, 0, 0, 1]
}

/// Gives a stack at 10.0.0.1 the way to the peers.
pub(super) fn join(config: &mut StackConfig) {
    config.mac = mac_of_server();
    config.neighbors = vec![StaticNeighbor { address: GATEWAY.into(), mac: GATEWAY_MAC }];
    config.routes =
        vec![Route { network: Ipv4Addr::UNSPECIFIED.into(), prefix_bits: 0, gateway: Some(GATEWAY.into()) }];
}

/// An engine, a server on it, and its peers.
pub struct Replay<C: Clock> {
    engine: LocalEngine<ReplayPort, C>,
    server: Server<EngineNet>,
    advance: Box<dyn FnMut() + Send>,
}

impl Replay<VirtualClock> {
    /// In virtual time: the same calls do the same, instruction for instruction.
    ///
    /// # Errors
    /// As [`Replay::new`].
    pub fn virtual_time(connections: u32, size: u32) -> anyhow::Result<Self> {
        let clock = VirtualClock::at(Instant::from_nanos(1_000_000_000));
        let mut now = clock.now();
        let ticking = clock.clone();
        let advance = move || {
            now = now + STEP;
            ticking.set(now);
        };
        Self::new(clock, Box::new(advance), connections, size)
    }
}

impl<C: Clock + Clone + Send + 'static> Replay<C> {
    /// `connections` that stand, with requests and answers of `size` bytes (one segment at most). `advance` moves the
    /// clock on between turns, where it does not move by itself.
    ///
    /// # Errors
    /// No descriptors or memory for the engine; connections that do not come to stand.
    pub fn new(clock: C, advance: Box<dyn FnMut() + Send>, connections: u32, size: u32) -> anyhow::Result<Self> {
        anyhow::ensure!((1..=1_400).contains(&size), "requests of {size} bytes: must be 1 to 1400");
        let mut config = LocalConfig::new(format!("{SERVER}/24").parse().map_err(anyhow::Error::msg)?).seeded(1);
        join(&mut config.stack);
        config.geometry.open_slots = 64;
        config.geometry.accept_slots = connections.next_power_of_two().max(64);
        let engine = LocalEngine::new(&config, vec![ReplayPort::new(connections, size)], clock)?;
        let session = Arc::new(engine.attach(0)?);
        let net = EngineNet::new(session, Waiting::default())?;
        let server = Server::new(net, (SERVER, PORT).into())?;
        let mut replay = Self { engine, server, advance };
        replay.until(|port| port.standing == connections, "connections do not come to stand")?;
        replay.engine.with_port(0, |port| port.requests = true);
        Ok(replay)
    }

    /// Follows one request in `every` through all stages, as an engine does; 0: none.
    pub fn profile_latency(&self, every: u32) {
        self.engine.profile_latency(every);
    }

    /// One turn of the shard, and one look of the server.
    ///
    /// # Errors
    /// The server's.
    pub fn step(&mut self) -> std::io::Result<()> {
        (self.advance)();
        self.engine.turn();
        self.server.step(Some(Duration::ZERO))
    }

    /// Steps until `requests` more were answered.
    ///
    /// # Errors
    /// No answers come any more.
    pub fn answer(&mut self, requests: u64) -> anyhow::Result<()> {
        let goal = self.answered() + requests;
        self.until(|port| port.answered >= goal, "answers stop coming")
    }

    /// Requests that were answered since the start.
    #[must_use]
    pub fn answered(&self) -> u64 {
        self.engine.with_port(0, |port| port.answered)
    }

    fn until(&mut self, done: impl Fn(&ReplayPort) -> bool, complaint: &str) -> anyhow::Result<()> {
        let mut quiet = 0;
        let mut before = 0;
        loop {
            let (over, moved, unexpected) = self
                .engine
                .with_port(0, |port| (done(port), port.counters.rx_frames + port.counters.tx_frames, port.unexpected));
            if over {
                return Ok(());
            }
            quiet = if moved == before { quiet + 1 } else { 0 };
            before = moved;
            anyhow::ensure!(quiet < PATIENCE, "{complaint} ({unexpected} frames made no sense)");
            self.step()?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_answered_in_virtual_time() {
        for (connections, size) in [(1, 64), (100, 1), (70, 1_400)] {
            let mut replay = Replay::virtual_time(connections, size).unwrap();
            replay.answer(1_000).unwrap();
            assert_eq!(replay.engine.with_port(0, |p| p.unexpected), 0, "{connections} connections, {size} bytes");
            let counters = replay.engine.with_stack(0, |s| s.counters());
            assert_eq!((counters.drop_checksum, counters.tcp_retransmits, counters.drop_malformed), (0, 0, 0));
        }
    }

    #[test]
    fn the_same_calls_do_the_same() {
        let run = || {
            let mut replay = Replay::virtual_time(10, 64).unwrap();
            replay.answer(500).unwrap();
            let counters = replay.engine.with_port(0, |p| p.counters);
            (replay.answered(), counters.rx_frames, counters.tx_frames)
        };
        assert_eq!(run(), run());
    }
}
