//! Bare AF_XDP: frames in and out of one queue with no stack. What no stack on this machine and device can exceed.
//!
//! Frames are UDP over IPv4 between 198.18.0.1 and 198.18.0.2 (the network that RFC 2544 sets aside for benchmarks), so
//! that they come through the engine's own XDP program. They go to the broadcast address unless the peer's is given.

use std::io;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hdrhistogram::Histogram;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use sidestep_client::now_ns;

use super::cpu::CpuTimes;
use super::hist;
use super::load::Progress;
use super::measure::Round;
use crate::port::{FrameIo, PortError};
use crate::xdp::nic::Nic;
use crate::xdp::{AttachMode, Heartbeat, Steering, XdpOptions, XdpPort};

/// Ethernet, IPv4 and UDP headers.
const HEADERS: usize = 14 + 20 + 8;
/// Number and time of a ping, after the headers.
const STAMP: usize = 16;
/// Smallest frame without its check sequence (IEEE 802.3).
pub const MIN_FRAME: u32 = 60;
/// Frames taken or sent at a time.
const BATCH: usize = 64;
/// How often the XDP program hears that we live: ten times in the time after which it would give up.
const BEAT_NS: u64 = 100_000_000;
/// How long the answer to a ping may take.
const PATIENCE_NS: u64 = 100_000_000;
/// Discard (RFC 863), for those who watch with tcpdump.
const UDP_PORT: u16 = 9;
const ADDRESSES: [Ipv4Addr; 2] = [Ipv4Addr::new(198, 18, 0, 1), Ipv4Addr::new(198, 18, 0, 2)];

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RawTest {
    /// Receive and forget.
    RxDrop,
    /// Send as much as goes.
    TxOnly,
    /// Send everything back.
    Reflect,
    /// Send, and measure how long answers take.
    Ping,
}

impl RawTest {
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::RxDrop => "raw rx-drop",
            Self::TxOnly => "raw tx-only",
            Self::Reflect => "raw reflect",
            Self::Ping => "raw ping",
        }
    }
}

/// How.
#[derive(Clone, Debug)]
pub struct Raw {
    pub test: RawTest,
    pub interface: String,
    pub queue: u32,
    /// Bytes of a frame without its check sequence.
    pub size: u32,
    /// Pings under way.
    pub depth: u32,
    pub peer: [u8; 6],
    /// Sleep in poll(2) when there is nothing, instead of looking again.
    pub block: bool,
    pub busy_poll: bool,
    pub core: Option<usize>,
    pub warmup: Duration,
    pub round: Duration,
    /// 0: until stopped (a reflector).
    pub rounds: u32,
}

/// An open queue with the program in front of it.
pub struct RawPort {
    port: XdpPort,
    heartbeat: Heartbeat,
    queue: u32,
    next_beat: u64,
    mac: [u8; 6],
    /// Detaches when dropped.
    _steering: Steering,
}

impl RawPort {
    /// Opens the queue and attaches the program.
    ///
    /// # Errors
    /// As for an engine: the device, its queue, rights.
    pub fn open(raw: &Raw) -> Result<Self, PortError> {
        let nic = Nic::query(&raw.interface)?;
        let mut steering = Steering::load()?;
        let jumbo = if raw.size > 1_514 { 4_096 } else { 2_048 };
        let options = XdpOptions { busy_poll: raw.busy_poll, frame_bytes: jumbo, ..XdpOptions::small() };
        let port = XdpPort::open(&raw.interface, raw.queue, &options)?;
        steering.set_socket(raw.queue, port.fd())?;
        steering.set_own(&ADDRESSES.map(Into::into))?;
        // A process that measures is not one that must stay reachable: on a busy machine its queue is its own for as
        // long as it lives.
        steering.set_heartbeat_timeout(Duration::ZERO)?;
        let heartbeat = steering.heartbeat()?;
        heartbeat.beat(raw.queue, now_ns());
        steering.attach(nic.ifindex, AttachMode::Auto)?;
        Ok(Self { port, heartbeat, queue: raw.queue, next_beat: 0, mac: nic.mac, _steering: steering })
    }

    fn beat(&mut self, now: u64) {
        if now >= self.next_beat {
            self.next_beat = now + BEAT_NS;
            self.heartbeat.beat(self.queue, now);
        }
    }
}

/// Runs a test and gives its rounds; a reflector's counts when it is stopped, as one round.
///
/// # Errors
/// The port can't be opened.
pub fn run(raw: &Raw, progress: &mut dyn FnMut(Progress), stop: &AtomicBool) -> Result<Vec<Round>, PortError> {
    if let Some(id) = raw.core {
        core_affinity::set_for_current(core_affinity::CoreId { id });
    }
    let mut port = RawPort::open(raw)?;
    let mut work = Work::new(raw, port.mac);
    let start = now_ns();
    let mut meter = Meter::new(start + raw.warmup.as_nanos() as u64, raw, progress);
    while !stop.load(Ordering::Relaxed) {
        let now = now_ns();
        port.beat(now);
        if meter.tick(now) {
            break;
        }
        if work.turn(raw, &mut port.port, now, &mut meter) == 0 && raw.block {
            sleep(&mut port.port);
        }
    }
    Ok(meter.finish(now_ns()))
}

fn sleep(port: &mut XdpPort) {
    if port.prepare_sleep() {
        return;
    }
    let limit = Timespec { tv_sec: 0, tv_nsec: 10_000_000 };
    if let Some(fd) = port.poll_fd() {
        let _ = poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], Some(&limit));
    }
}

/// Frames under way and to be sent.
struct Work {
    template: Vec<u8>,
    /// Received frames that go back.
    back: Vec<Vec<u8>>,
    back_len: usize,
    next: u64,
    /// Number and time of pings without an answer, oldest first.
    in_flight: std::collections::VecDeque<(u64, u64)>,
}

impl Work {
    fn new(raw: &Raw, mac: [u8; 6]) -> Self {
        let template = frame(raw.size.max(MIN_FRAME) as usize, mac, raw.peer);
        Self { template, back: vec![Vec::new(); BATCH], back_len: 0, next: 0, in_flight: Default::default() }
    }

    /// Frames moved.
    fn turn(&mut self, raw: &Raw, port: &mut XdpPort, now: u64, meter: &mut Meter<'_>) -> usize {
        match raw.test {
            RawTest::RxDrop => {
                let mut bytes = 0;
                let got = port.receive(BATCH, |frame| bytes += frame.len() as u64);
                meter.moved(got as u64, bytes);
                port.flush();
                got
            }
            RawTest::TxOnly => {
                let template = &self.template;
                let sent = port.transmit(BATCH, |buffer| {
                    buffer[..template.len()].copy_from_slice(template);
                    Some(template.len())
                });
                port.flush();
                meter.moved(sent as u64, (sent * template.len()) as u64);
                sent
            }
            RawTest::Reflect => self.reflect(port, meter),
            RawTest::Ping => self.ping(raw, port, now, meter),
        }
    }

    fn reflect(&mut self, port: &mut XdpPort, meter: &mut Meter<'_>) -> usize {
        let Self { back, back_len, .. } = self;
        let room = BATCH - *back_len;
        let got = port.receive(room, |frame| {
            if turn_round(frame) {
                let place = &mut back[*back_len];
                place.clear();
                place.extend_from_slice(frame);
                *back_len += 1;
            }
        });
        let mut next = 0;
        let sent = port.transmit(*back_len, |buffer| {
            let frame = back.get(next).filter(|_| next < *back_len)?;
            buffer.get_mut(..frame.len())?.copy_from_slice(frame);
            next += 1;
            meter.moved(1, 2 * frame.len() as u64);
            Some(frame.len())
        });
        back[..*back_len].rotate_left(sent);
        *back_len -= sent;
        port.flush();
        got + sent
    }

    fn ping(&mut self, raw: &Raw, port: &mut XdpPort, now: u64, meter: &mut Meter<'_>) -> usize {
        let Self { template, next, in_flight, .. } = self;
        let got = port.receive(BATCH, |frame| {
            let word = |at: usize| frame.get(at..at + 8).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes);
            let (Some(number), Some(sent)) = (word(HEADERS), word(HEADERS + 8)) else { return };
            // In order on one queue: whatever is older than this one was lost.
            while in_flight.front().is_some_and(|(n, _)| *n < number) {
                in_flight.pop_front();
                meter.lost();
            }
            if in_flight.front().is_some_and(|(n, _)| *n == number) {
                in_flight.pop_front();
                meter.answered(now_ns().saturating_sub(sent), 2 * frame.len() as u64);
            }
        });
        while in_flight.front().is_some_and(|(_, sent)| now.saturating_sub(*sent) > PATIENCE_NS) {
            in_flight.pop_front();
            meter.lost();
        }
        let room = (raw.depth as usize).saturating_sub(in_flight.len()).min(BATCH);
        let sent = port.transmit(room, |buffer| {
            let buffer = buffer.get_mut(..template.len())?;
            let now = now_ns();
            buffer.copy_from_slice(template);
            buffer[HEADERS..HEADERS + 8].copy_from_slice(&next.to_le_bytes());
            buffer[HEADERS + 8..HEADERS + STAMP].copy_from_slice(&now.to_le_bytes());
            in_flight.push_back((*next, now));
            *next += 1;
            Some(buffer.len())
        });
        port.flush();
        got + sent
    }
}

/// A frame of `size` bytes from the first address to the second.
fn frame(size: usize, from: [u8; 6], to: [u8; 6]) -> Vec<u8> {
    let mut frame = vec![0; size];
    frame[..6].copy_from_slice(&to);
    frame[6..12].copy_from_slice(&from);
    frame[12..14].copy_from_slice(&[0x08, 0x00]);
    let ip = &mut frame[14..34];
    ip[0] = 0x45;
    ip[2..4].copy_from_slice(&((size - 14) as u16).to_be_bytes());
    // Don't fragment; TTL 64; UDP.
    ip[6..10].copy_from_slice(&[0x40, 0, 64, 17]);
    ip[12..16].copy_from_slice(&ADDRESSES[0].octets());
    ip[16..20].copy_from_slice(&ADDRESSES[1].octets());
    let sum: u32 = ip.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let checksum = !((folded & 0xffff) + (folded >> 16)) as u16;
    ip[10..12].copy_from_slice(&checksum.to_be_bytes());
    let udp = &mut frame[34..42];
    udp[..2].copy_from_slice(&UDP_PORT.to_be_bytes());
    udp[2..4].copy_from_slice(&UDP_PORT.to_be_bytes());
    // No checksum, which IPv4 allows (RFC 768).
    udp[4..6].copy_from_slice(&((size - 34) as u16).to_be_bytes());
    frame
}

/// Makes a frame go back: swapped addresses leave the checksum as it is. False: not one of ours.
fn turn_round(frame: &mut [u8]) -> bool {
    if frame.len() < HEADERS || frame[12..14] != [0x08, 0x00] || frame[23] != 17 {
        return false;
    }
    let (to, from) = frame.split_at_mut(6);
    to.swap_with_slice(&mut from[..6]);
    let (source, destination) = frame[26..34].split_at_mut(4);
    source.swap_with_slice(destination);
    true
}

/// Counts and rounds.
struct Meter<'a> {
    begin: u64,
    round_ns: u64,
    rounds: u32,
    progress: &'a mut dyn FnMut(Progress),
    /// Begin of the current round; its counts.
    since: u64,
    cpu: Option<CpuTimes>,
    operations: u64,
    bytes: u64,
    lost: u64,
    latencies: Histogram<u64>,
    done: Vec<Round>,
}

impl<'a> Meter<'a> {
    fn new(begin: u64, raw: &Raw, progress: &'a mut dyn FnMut(Progress)) -> Self {
        Self {
            begin,
            round_ns: raw.round.as_nanos() as u64,
            rounds: raw.rounds,
            progress,
            since: begin,
            cpu: None,
            operations: 0,
            bytes: 0,
            lost: 0,
            latencies: hist::empty(),
            done: Vec::new(),
        }
    }

    /// True: all rounds are over.
    fn tick(&mut self, now: u64) -> bool {
        if self.cpu.is_none() && now >= self.begin {
            (self.operations, self.bytes, self.lost) = (0, 0, 0);
            self.latencies.reset();
            self.since = now;
            self.cpu = CpuTimes::now().ok();
        }
        if self.rounds > 0 && self.cpu.is_some() && now >= self.since + self.round_ns {
            self.close(now);
        }
        self.rounds > 0 && self.done.len() >= self.rounds as usize
    }

    fn close(&mut self, now: u64) {
        let cpu = CpuTimes::now().ok();
        let shares = self.cpu.as_ref().zip(cpu.as_ref()).map_or_else(Vec::new, |(before, after)| before.until(after));
        let seconds = now.saturating_sub(self.since).max(1) as f64 / 1e9;
        let at = |q| (!self.latencies.is_empty()).then(|| self.latencies.value_at_quantile(q) as f64 / 1e3);
        (self.progress)(Progress {
            round: self.done.len() as u32 + 1,
            seconds: now.saturating_sub(self.begin) as f64 / 1e9,
            rate_per_s: self.operations as f64 / seconds,
            gbit_per_s: self.bytes as f64 * 8e-9 / seconds,
            p50_us: at(0.5),
            p99_us: at(0.99),
        });
        self.done.push(Round {
            seconds,
            operations: std::mem::take(&mut self.operations),
            bytes: std::mem::take(&mut self.bytes),
            errors: 0,
            lost: std::mem::take(&mut self.lost),
            latencies: std::mem::replace(&mut self.latencies, hist::empty()),
            cpu: shares,
        });
        (self.cpu, self.since) = (cpu, now_ns());
    }

    fn moved(&mut self, frames: u64, bytes: u64) {
        self.operations += frames;
        self.bytes += bytes;
    }

    fn answered(&mut self, ns: u64, bytes: u64) {
        self.moved(1, bytes);
        hist::record(&mut self.latencies, ns);
    }

    fn lost(&mut self) {
        self.lost += 1;
    }

    fn finish(mut self, now: u64) -> Vec<Round> {
        if self.rounds == 0 {
            self.close(now);
        }
        self.done
    }
}

/// A MAC address as people write it.
///
/// # Errors
/// What is wrong with it.
pub fn parse_mac(text: &str) -> Result<[u8; 6], io::Error> {
    let bytes: Option<Vec<u8>> = text.split(':').map(|part| u8::from_str_radix(part, 16).ok()).collect();
    let mac = bytes.and_then(|b| b.try_into().ok());
    mac.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "must be six bytes, as 02:00:00:00:00:01"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use smoltcp::wire::{EthernetFrame, Ipv4Packet, UdpPacket};

    #[test]
    fn frames_are_right_and_turn_round() {
        let (a, b) = ([2, 0, 0, 0, 0, 1], [0xff; 6]);
        let mut bytes = frame(64, a, b);
        for (turn, source) in ADDRESSES.into_iter().enumerate() {
            let ethernet = EthernetFrame::new_checked(&bytes[..]).unwrap();
            assert_eq!((ethernet.dst_addr().0, ethernet.src_addr().0), if turn == 0 { (b, a) } else { (a, b) });
            let ip = Ipv4Packet::new_checked(ethernet.payload()).unwrap();
            assert!(ip.verify_checksum());
            assert_eq!(ip.src_addr(), source);
            let udp = UdpPacket::new_checked(ip.payload()).unwrap();
            assert_eq!((udp.src_port(), udp.len()), (UDP_PORT, 30));
            assert!(turn_round(&mut bytes));
        }
        bytes[23] = 6;
        assert!(!turn_round(&mut bytes));
    }

    #[test]
    fn addresses_are_read() {
        assert_eq!(parse_mac("02:0a:00:00:00:Ff").unwrap(), [2, 10, 0, 0, 0, 255]);
        assert!(parse_mac("02:0a").is_err() && parse_mac("02:0a:00:00:00:1ff").is_err());
    }
}
