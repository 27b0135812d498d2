//! A congestion controller of one's own, on a link in memory: two stacks, virtual time, nothing else.
//!
//! ```text
//! cargo run --release --example congestion
//! ```
//!
//! [`Calm`] goes by delay: it wants a few segments in the bottleneck's queue and no more. It is compared with what the
//! stack brings, on 100 Mbit/s with 20 ms of round trip and a queue of one bandwidth-delay product. A connection gets it
//! like any other, by [`TcpConfig::congestion`] or, for one socket, by [`TcpOptions::congestion`].

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use sidestep_stack::congestion::{Acked, Cause, Congested, CongestionControl, initial_window, slow_start};
use sidestep_stack::{
    Algorithm, Congestion, DatagramMeta, Error, Event, Host, Instant, InterfaceAddress, Limits, ListenAddress,
    NeighborMode, SocketId, Stack, StackConfig, StaticNeighbor, Stream, TcpConfig, TcpOptions, Token, Unknown,
};

/// Slow start until a queue forms, then one segment a round trip more or less, so that between [`LEAST`] and [`MOST`]
/// segments wait in the queue (after TCP Vegas: Brakmo and Peterson, 1995).
#[derive(Debug)]
struct Calm {
    window: u64,
    threshold: u64,
    /// Shortest round trip so far: the path without a queue.
    base: Duration,
    /// Shortest in this round trip, and where it ends.
    shortest: Duration,
    end: u64,
}

/// Segments that should wait in the queue.
const LEAST: u64 = 2;
const MOST: u64 = 4;

impl Calm {
    fn boxed(mss: u32) -> Box<dyn CongestionControl> {
        let window = initial_window(mss);
        Box::new(Self { window, threshold: u64::MAX, base: Duration::MAX, shortest: Duration::MAX, end: 0 })
    }

    /// Segments of this window that wait in the queue.
    fn queued(&self, mss: u32) -> u64 {
        let (base, now) = (self.base.as_nanos(), self.shortest.as_nanos());
        let bytes = u128::from(self.window) * (now - base) / now.max(1);
        u64::try_from(bytes).unwrap_or(u64::MAX) / u64::from(mss)
    }
}

impl CongestionControl for Calm {
    fn window(&self) -> u64 {
        self.window
    }

    fn threshold(&self) -> u64 {
        self.threshold
    }

    fn set(&mut self, window: u64, threshold: u64) {
        (self.window, self.threshold) = (window, threshold);
    }

    fn on_ack(&mut self, acked: &Acked) {
        if let Some(sample) = acked.sample {
            self.base = self.base.min(sample);
            self.shortest = self.shortest.min(sample);
        }
        if self.window < self.threshold && acked.limited {
            (self.window, _) = slow_start(self.window, self.threshold, acked.bytes);
        }
        if acked.una <= self.end || self.shortest == Duration::MAX {
            return;
        }
        // A round trip is over.
        let mss = u64::from(acked.mss);
        match self.queued(acked.mss) {
            queued if queued > MOST => {
                // Slow start ends here, and what it put into the queue drains.
                let less = if self.window < self.threshold { queued * mss } else { mss };
                self.window = (self.window - less.min(self.window)).max(2 * mss);
                self.threshold = self.threshold.min(self.window);
            }
            queued if queued < LEAST && self.window >= self.threshold && acked.limited => self.window += mss,
            _ => {}
        }
        self.end = acked.nxt;
        self.shortest = Duration::MAX;
    }

    fn on_congestion(&mut self, congested: &Congested) {
        let mss = u64::from(congested.mss);
        if congested.cause != (Cause::Timeout { reduce: false }) {
            self.threshold = (self.window / 2).max(2 * mss);
        }
        self.window = match congested.cause {
            Cause::Timeout { .. } => congested.in_flight + mss,
            Cause::Loss | Cause::Marks => self.threshold,
        };
    }
}

static CALM: Algorithm = Algorithm { name: "calm", new: Calm::boxed, wants_marks: false };

/// Bits per second of the link, time in one direction, and bytes that its queue holds.
const RATE: u64 = 100_000_000;
const DELAY: Duration = Duration::from_millis(10);
const QUEUE: usize = 250_000;

const RECEIVE_BYTES: u32 = 8 << 20;
const PORT: u16 = 9;

/// A program that sends without end to one that reads all. The bytes don't matter.
struct Bulk;

impl Host for Bulk {
    fn accept(&mut self, _: Token, _: SocketAddr, _: SocketAddr) -> Option<Stream> {
        Some(stream())
    }
    fn rx_write(&mut self, _: Token, _: u64, _: &[u8]) {}
    fn tx_read(&mut self, _: Token, _: u64, out: &mut [u8]) {
        out.fill(0);
    }
    fn datagram_in(&mut self, _: Token, _: &DatagramMeta, _: &[u8]) -> bool {
        false
    }
    fn datagram_out(&mut self, _: Token, _: &mut [u8]) -> Option<DatagramMeta> {
        None
    }
}

const fn stream() -> Stream {
    Stream { token: Token(1), rx_capacity: RECEIVE_BYTES, tx_capacity: RECEIVE_BYTES }
}

/// One direction of the link.
#[derive(Default)]
struct Wire {
    frames: VecDeque<(Instant, Vec<u8>)>,
    /// When the last frame has left the queue.
    busy_until: Instant,
    dropped: u64,
    longest: Duration,
}

impl Wire {
    fn send(&mut self, now: Instant, frame: &[u8]) {
        let start = self.busy_until.max(now);
        let waits = start.since(now);
        if waits.as_nanos() * u128::from(RATE) / 8_000_000_000 > QUEUE as u128 {
            self.dropped += 1;
            return;
        }
        self.longest = self.longest.max(waits);
        self.busy_until = start + Duration::from_nanos(frame.len() as u64 * 8_000_000_000 / RATE);
        self.frames.push_back((self.busy_until + DELAY, frame.to_vec()));
    }

    fn receive(&mut self, now: Instant) -> Option<Vec<u8>> {
        self.frames.front().is_some_and(|(at, _)| *at <= now).then(|| self.frames.pop_front())?.map(|(_, frame)| frame)
    }
}

fn stack(number: u8, congestion: Congestion) -> Stack {
    let (mac, other) = ([2, 0, 0, 0, 0, number], 3 - number);
    let config = StackConfig {
        mac,
        mtu: 1500,
        addresses: vec![InterfaceAddress { address: address(number), prefix_bits: 24 }],
        routes: vec![],
        neighbors: vec![StaticNeighbor { address: address(other), mac: [2, 0, 0, 0, 0, other] }],
        neighbor_mode: NeighborMode::Own,
        ephemeral_ports: (32_768, 60_999),
        rss: None,
        checksums: true,
        tcp: TcpConfig { congestion, rmem: [4096, RECEIVE_BYTES, RECEIVE_BYTES], ..TcpConfig::default() },
        limits: Limits::default(),
    };
    Stack::new(config, [number; 32])
}

fn address(number: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, number])
}

/// Runs one connection for `time`, and prints what became of it.
fn run(congestion: Congestion, time: Duration) -> Result<(), Error> {
    let mut stacks = [stack(1, congestion), stack(2, congestion)];
    let mut wires = [Wire::default(), Wire::default()];
    let mut now = Instant::from_millis(1);
    let end = now + time;
    let at = ListenAddress { address: None, port: PORT, ipv4: true, ipv6: false };
    stacks[1].tcp_listen(Token(0), at, 1, RECEIVE_BYTES, TcpOptions::default(), false)?;
    let remote = SocketAddr::new(address(2), PORT);
    let (sender, _) = stacks[0].tcp_connect(now, Token(1), None, remote, stream(), TcpOptions::default(), &mut Bulk)?;
    let mut received = 0;
    let mut frame = vec![0; 2048];
    while now < end {
        for (side, stack) in stacks.iter_mut().enumerate() {
            while let Some(frame) = wires[1 - side].receive(now) {
                stack.handle_frame(now, &frame, &mut Bulk, Unknown::Answer);
            }
            stack.handle_timers(now, &mut Bulk);
            while let Some(event) = stack.poll_event() {
                if let Event::Tcp { socket, state, .. } = event {
                    if side == 1 {
                        received = state.rx_tail;
                    }
                    read_and_write(stack, now, socket, (state.rx_tail, state.tx_head), side == 0)?;
                }
            }
            while let Some(len) = stack.poll_frame(now, &mut frame, &mut Bulk) {
                wires[side].send(now, &frame[..len]);
            }
        }
        let arrivals = wires.iter().filter_map(|wire| wire.frames.front().map(|(at, _)| *at));
        let timers = stacks.iter().filter_map(Stack::next_deadline);
        now = now.max(arrivals.chain(timers).min().unwrap_or(end));
    }
    let info = stacks[0].tcp_info(sender)?;
    println!(
        "{:>6}: {:5.1} Mbit/s, {} frames dropped, queue of {:4.1} ms at most, smoothed round trip {:4.1} ms at the end",
        congestion.name(),
        received as f64 * 8.0 / time.as_secs_f64() / 1e6,
        wires[0].dropped,
        wires[0].longest.as_secs_f64() * 1e3,
        info.srtt.as_secs_f64() * 1e3,
    );
    Ok(())
}

/// The receiver reads everything; the sender's buffer is always full.
fn read_and_write(
    stack: &mut Stack,
    now: Instant,
    socket: SocketId,
    (rx_tail, tx_head): (u64, u64),
    sends: bool,
) -> Result<(), Error> {
    stack.tcp_received(now, socket, rx_tail)?;
    if sends { stack.tcp_send(now, socket, tx_head + u64::from(RECEIVE_BYTES)) } else { Ok(()) }
}

fn main() -> Result<(), Error> {
    for congestion in [Congestion::Custom(&CALM), Congestion::Cubic, Congestion::Reno] {
        run(congestion, Duration::from_secs(20))?;
    }
    Ok(())
}
