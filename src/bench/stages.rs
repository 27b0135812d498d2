//! The stages of a packet's way, each alone and over and over: for criterion (`benches/stages.rs`), for counting
//! instructions (`cargo xtask counts`), and for a profiler (`sidestep bench stage NAME`).

use std::collections::VecDeque;
use std::hint::black_box;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use sidestep_client::shm::slot::kind;
use sidestep_stack::stages::{Flows, Timers, parse_segment};
use sidestep_stack::{
    DatagramMeta, Event, Host, Instant, ListenAddress, SocketId, Stack, Stream, TcpOptions, Token, Unknown,
};

use super::program::Program;
use super::replay::{self, Replay};
use crate::clock::{MonotonicClock, VirtualClock};
use crate::local::{LocalConfig, LocalEngine};

/// Bytes of a small payload, and of a full segment with timestamps.
const SMALL: u32 = 64;
const FULL: u32 = 1_400;

/// A stage: `run(n)` does it n times.
pub struct Stage {
    pub name: &'static str,
    /// What one time is.
    pub what: &'static str,
    make: fn() -> anyhow::Result<Run>,
}

type Run = Box<dyn FnMut(u64) -> anyhow::Result<()>>;

impl Stage {
    /// Sets it up; the closure does it `n` times.
    ///
    /// # Errors
    /// The engine behind it can't be made.
    pub fn ready(&self) -> anyhow::Result<Run> {
        (self.make)()
    }
}

/// All of them, from the wire inwards.
pub const STAGES: &[Stage] = &[
    Stage { name: "parse", what: "a TCP segment with timestamps read", make: parse },
    Stage { name: "flow-1k", what: "a flow found among 1,000", make: || flow(1_000) },
    Stage { name: "flow-100k", what: "a flow found among 100,000", make: || flow(100_000) },
    Stage { name: "timer", what: "a timer of 10,000 armed anew", make: timer },
    Stage { name: "segment-in", what: "64 bytes taken in, read, acknowledged", make: || segment_in(SMALL) },
    Stage { name: "segment-in-full", what: "1,400 bytes taken in, read, acknowledged", make: || segment_in(FULL) },
    Stage { name: "segment-out", what: "64 bytes sent, acknowledged", make: || segment_out(SMALL) },
    Stage { name: "segment-out-full", what: "1,400 bytes sent, acknowledged", make: || segment_out(FULL) },
    Stage { name: "ring", what: "64 bytes into a shared ring and out", make: ring },
    Stage { name: "dirty-set", what: "a slot marked and harvested", make: dirty_set },
    Stage { name: "echo", what: "the program reads and writes 16 KiB", make: || program(Program::echo, false) },
    Stage {
        name: "echo-in-place",
        what: "the same without a buffer of its own",
        make: || program(Program::echo, true),
    },
    Stage { name: "look", what: "the program reads 16 KiB, looks at 16 bytes", make: || program(Program::look, false) },
    Stage { name: "look-in-place", what: "the same where they lie", make: || program(Program::look, true) },
    Stage { name: "request-1", what: "a request through engine and program, 1 connection", make: || request(1) },
    Stage { name: "request-64", what: "the same, 64 connections", make: || request(64) },
    Stage { name: "request-real", what: "the same, 64 connections, by the real clock", make: || real(0) },
    Stage { name: "request-followed", what: "the same, one in 64 followed for the latency profile", make: || real(64) },
    Stage { name: "request-10k", what: "the same, 10,000 connections", make: || request(10_000) },
];

fn program(step: fn(&mut Program, bool) -> anyhow::Result<()>, in_place: bool) -> anyhow::Result<Run> {
    let mut program = Program::new(16_384)?;
    Ok(Box::new(move |n| (0..n).try_for_each(|_| step(&mut program, in_place))))
}

/// The stage of this name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Stage> {
    STAGES.iter().find(|s| s.name == name)
}

fn parse() -> anyhow::Result<Run> {
    let frame = replay::Peer::new(0, SMALL).segment(replay::ACK | replay::PUSH, SMALL, 1).to_vec();
    Ok(Box::new(move |n| {
        (0..n).for_each(|_| {
            black_box(parse_segment(black_box(&frame[34..])));
        });
        Ok(())
    }))
}

fn flow(count: u32) -> anyhow::Result<Run> {
    let remote = |n: u32| SocketAddr::from((Ipv4Addr::from_bits(0xac10_0001 + n / 50_000), (1024 + n % 50_000) as u16));
    let flows = Flows::new(SocketAddr::from(([10, 0, 0, 1], 80)), (0..count).map(remote));
    let mut at = 0u32;
    Ok(Box::new(move |n| {
        for _ in 0..n {
            // Another one each time, and not its neighbour in memory.
            at = (at + 7_919) % count;
            anyhow::ensure!(flows.find(remote(at)) == Some(at), "a flow was not found");
        }
        Ok(())
    }))
}

fn timer() -> anyhow::Result<Run> {
    let mut timers = Timers::new(10_000);
    let mut at = 0;
    Ok(Box::new(move |n| {
        for _ in 0..n {
            at = (at + 7_919) % 10_000;
            black_box(timers.restart(at));
        }
        Ok(())
    }))
}

fn ring() -> anyhow::Result<Run> {
    let engine = LocalEngine::in_memory(&config()?, VirtualClock::default())?;
    let session = Arc::new(engine.attach(0)?);
    let slot = session.open(kind::TCP4)?;
    let (data, mut out, mut at) = ([7u8; SMALL as usize], [0u8; SMALL as usize], 0u64);
    Ok(Box::new(move |n| {
        let ring = session.region().rx(slot).ok_or_else(|| anyhow::anyhow!("no ring"))?;
        for _ in 0..n {
            ring.write(at, black_box(&data));
            ring.read(at, &mut out);
            black_box(&out);
            at += data.len() as u64;
        }
        Ok(())
    }))
}

fn dirty_set() -> anyhow::Result<Run> {
    let engine = LocalEngine::in_memory(&config()?, VirtualClock::default())?;
    let session = engine.attach(0)?;
    let mut slot = 0;
    Ok(Box::new(move |n| {
        let set = &session.region().event_queue(0).ok_or_else(|| anyhow::anyhow!("no event queue"))?.dirty;
        for _ in 0..n {
            slot = (slot + 61) % 1_000;
            set.mark(slot);
            set.harvest(usize::MAX, |found| {
                black_box(found);
            });
        }
        Ok(())
    }))
}

fn request(connections: u32) -> anyhow::Result<Run> {
    let mut replay = Replay::virtual_time(connections, SMALL)?;
    // Every connection has had its turn: pages are there, windows are open.
    replay.answer(2 * u64::from(connections))?;
    Ok(Box::new(move |n| replay.answer(n)))
}

/// By the clock that a program stamps with; `every` as in the configuration's `latency_every`.
fn real(every: u32) -> anyhow::Result<Run> {
    let mut replay = Replay::new(MonotonicClock, Box::new(|| ()), 64, SMALL)?;
    replay.profile_latency(every);
    replay.answer(128)?;
    Ok(Box::new(move |n| replay.answer(n)))
}

fn config() -> anyhow::Result<LocalConfig> {
    Ok(LocalConfig::new("10.0.0.1/24".parse().map_err(anyhow::Error::msg)?).seeded(1))
}

// ---- one connection in the stack alone ------------------------------------------------------------------------------

fn segment_in(size: u32) -> anyhow::Result<Run> {
    let mut wire = Wire::new(size)?;
    Ok(Box::new(move |n| (0..n).try_for_each(|_| wire.take_in(size))))
}

fn segment_out(size: u32) -> anyhow::Result<Run> {
    let mut wire = Wire::new(size)?;
    Ok(Box::new(move |n| (0..n).try_for_each(|_| wire.send(size))))
}

/// A stack with one connection, and its peer.
struct Wire {
    stack: Stack,
    memory: Memory,
    peer: replay::Peer,
    /// None before the handshake is over.
    id: Option<SocketId>,
    now: Instant,
    out: Vec<u8>,
    sent: u64,
    unacknowledged: u32,
}

impl Wire {
    fn new(size: u32) -> anyhow::Result<Self> {
        let mut config = config()?.stack;
        replay::join(&mut config);
        let now = Instant::ZERO + Duration::from_secs(1);
        let mut stack = Stack::new(config, [1; 32]);
        let at = ListenAddress { address: None, port: replay::PORT, ipv4: true, ipv6: false };
        stack
            .tcp_listen(Token(0), at, 16, Memory::BYTES, TcpOptions { no_delay: true, ..Default::default() }, false)
            .map_err(|e| anyhow::anyhow!("listen: {e:?}"))?;
        let mut wire = Self {
            stack,
            memory: Memory { rx: vec![0; Memory::BYTES as usize], tx: vec![7; Memory::BYTES as usize] },
            peer: replay::Peer::new(0, size),
            id: None,
            now,
            out: vec![0; 1_536],
            sent: 0,
            unacknowledged: 0,
        };
        let mut events = VecDeque::new();
        wire.put(replay::SYN, 0);
        wire.drain();
        wire.put(replay::ACK, 0);
        wire.events(&mut events);
        let accepted = events.iter().find_map(|e| match e {
            Event::Accepted { socket, .. } => Some(*socket),
            _ => None,
        });
        anyhow::ensure!(accepted.is_some(), "the handshake failed: {events:?}");
        wire.id = accepted;
        Ok(wire)
    }

    fn put(&mut self, flags: u8, payload: u32) {
        self.now = self.now + Duration::from_micros(1);
        let stamp = self.now.as_millis() as u32;
        let frame = self.peer.segment(flags, payload, stamp);
        let _ = self.stack.handle_frame(self.now, frame, &mut self.memory, Unknown::Answer);
    }

    /// Takes all frames out of the stack; the payload in them.
    fn drain(&mut self) -> u32 {
        let mut payload = 0;
        while let Some(length) = self.stack.poll_frame(self.now, &mut self.out, &mut self.memory) {
            payload += self.peer.hear(&self.out[..length]).unwrap_or(0);
        }
        payload
    }

    fn events(&mut self, into: &mut VecDeque<Event>) {
        while let Some(event) = self.stack.poll_event() {
            into.push_back(event);
        }
    }

    fn take_in(&mut self, size: u32) -> anyhow::Result<()> {
        self.put(replay::ACK | replay::PUSH, size);
        let mut tail = None;
        while let Some(event) = self.stack.poll_event() {
            if let Event::Tcp { state, .. } = event {
                tail = Some(state.rx_tail);
            }
        }
        let tail = tail.ok_or_else(|| anyhow::anyhow!("a segment was not taken"))?;
        let id = self.id.ok_or_else(|| anyhow::anyhow!("not connected"))?;
        self.stack.tcp_received(self.now, id, tail).map_err(|e| anyhow::anyhow!("{e:?}"))?;
        self.drain();
        Ok(())
    }

    fn send(&mut self, size: u32) -> anyhow::Result<()> {
        self.sent += u64::from(size);
        self.now = self.now + Duration::from_micros(1);
        let id = self.id.ok_or_else(|| anyhow::anyhow!("not connected"))?;
        self.stack.tcp_send(self.now, id, self.sent).map_err(|e| anyhow::anyhow!("{e:?}"))?;
        let sent = self.drain();
        anyhow::ensure!(sent == size, "{sent} bytes were sent instead of {size}");
        self.unacknowledged += 1;
        if self.unacknowledged == 2 {
            // As a peer does: one acknowledgement for two segments.
            self.unacknowledged = 0;
            self.put(replay::ACK, 0);
        }
        while let Some(event) = self.stack.poll_event() {
            black_box(event);
        }
        Ok(())
    }
}

/// The program's memory.
struct Memory {
    rx: Vec<u8>,
    tx: Vec<u8>,
}

impl Memory {
    const BYTES: u32 = 1 << 17;

    fn place(at: u64, length: usize) -> usize {
        // Far enough from the end: what wraps is the ring's business, which has a stage of its own.
        at as usize % (Self::BYTES as usize - 2_048).max(length)
    }
}

impl Host for Memory {
    fn accept(&mut self, _: Token, _: SocketAddr, _: SocketAddr) -> Option<Stream> {
        Some(Stream { token: Token(1), rx_capacity: Self::BYTES, tx_capacity: Self::BYTES })
    }
    fn rx_write(&mut self, _: Token, at: u64, data: &[u8]) {
        let at = Self::place(at, data.len());
        self.rx[at..at + data.len()].copy_from_slice(data);
    }
    fn tx_read(&mut self, _: Token, at: u64, out: &mut [u8]) {
        let at = Self::place(at, out.len());
        out.copy_from_slice(&self.tx[at..at + out.len()]);
    }
    fn datagram_in(&mut self, _: Token, _: &DatagramMeta, _: &[u8]) -> bool {
        false
    }
    fn datagram_out(&mut self, _: Token, _: &mut [u8]) -> Option<DatagramMeta> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_stage_runs() {
        for stage in STAGES {
            let mut run = stage.ready().unwrap_or_else(|e| panic!("{}: {e:#}", stage.name));
            run(300).unwrap_or_else(|e| panic!("{}: {e:#}", stage.name));
        }
        assert!(find("parse").is_some() && find("nothing").is_none());
    }
}
