//! A TCP that we did not write as the other end: smoltcp's sockets, over links that lose, reorder, duplicate and damage.
//! Whatever the seed, every byte arrives once and in order, and both ends close; a failure names its seed. Even seeds
//! speak IPv4, odd ones IPv6.
//!
//! `SIDESTEP_SIM_SEEDS=1000 cargo test --release --test sim_smoltcp` tries more of them, from SIDESTEP_SIM_FIRST on.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use sidestep::clock::VirtualClock;
use sidestep::local::LocalConfig;
use sidestep::sim::host::Host;
use sidestep::sim::link::LinkConfig;
use sidestep::sim::loss::Loss;
use sidestep::sim::network::{Network, Node, Outgoing};
use sidestep::sim::queue::QueueConfig;
use sidestep::sim::rng::Rng;
use sidestep::sim::traffic::bulk::{BulkPlan, BulkSender, Sink};
use sidestep::sim::traffic::{Pattern, Shared, Stats};
use sidestep_stack::Instant;
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpCidr};

const PORT: u16 = 5001;
/// Payload bytes of a stream.
const BYTES: u64 = 200_000;
/// What [`BulkSender`] and [`Sink`] put before them.
const HEADER: u64 = 8;

/// Our address and theirs, and the prefix of the link.
fn addresses(seed: u64) -> (IpAddr, IpAddr, u8) {
    let of = |text: &str| text.parse().unwrap();
    if seed.is_multiple_of(2) { (of("10.0.0.1"), of("10.0.0.2"), 24) } else { (of("fd00::1"), of("fd00::2"), 64) }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Direction {
    WeSend,
    TheySend,
}

/// Frames in memory, as smoltcp wants them.
#[derive(Default)]
struct Wire {
    received: VecDeque<Vec<u8>>,
    sent: VecDeque<Vec<u8>>,
}

struct Received(Vec<u8>);

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

struct Sending<'a>(&'a mut VecDeque<Vec<u8>>);

impl TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; len];
        let result = f(&mut frame);
        self.0.push_back(frame);
        result
    }
}

impl Device for Wire {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sending<'a>;

    fn receive(&mut self, _: smoltcp::time::Instant) -> Option<(Received, Sending<'_>)> {
        let frame = self.received.pop_front()?;
        Some((Received(frame), Sending(&mut self.sent)))
    }

    fn transmit(&mut self, _: smoltcp::time::Instant) -> Option<Sending<'_>> {
        Some(Sending(&mut self.sent))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = 1514;
        capabilities
    }
}

/// A host with smoltcp's stack, and one connection.
struct Smoltcp {
    wire: Wire,
    interface: Interface,
    sockets: SocketSet<'static>,
    socket: SocketHandle,
    direction: Direction,
    to: SocketAddr,
    now: smoltcp::time::Instant,
    /// Bytes of the stream so far, header and all.
    position: u64,
    started: bool,
    finished: bool,
    wrong: Option<String>,
}

impl Smoltcp {
    fn new(direction: Direction, seed: u64) -> Self {
        let mut wire = Wire::default();
        let mut config = Config::new(HardwareAddress::Ethernet(EthernetAddress([2, 0, 0, 0, 0, 2])));
        config.random_seed = seed;
        let now = smoltcp::time::Instant::ZERO;
        let mut interface = Interface::new(config, &mut wire, now);
        let (ours, theirs, prefix) = addresses(seed);
        interface.update_ip_addrs(|list| list.push(IpCidr::new(theirs.into(), prefix)).unwrap());
        let buffer = || tcp::SocketBuffer::new(vec![0; 65_536]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        if direction == Direction::WeSend {
            socket.listen(PORT).unwrap();
        }
        let mut sockets = SocketSet::new(Vec::new());
        let socket = sockets.add(socket);
        let (position, started, finished, wrong) = (0, direction == Direction::WeSend, false, None);
        let to = SocketAddr::new(ours, PORT);
        Self { wire, interface, sockets, socket, direction, to, now, position, started, finished, wrong }
    }

    fn work(&mut self) -> bool {
        let socket = self.sockets.get_mut::<tcp::Socket>(self.socket);
        let before = self.position;
        match self.direction {
            Direction::TheySend => {
                if !self.started {
                    self.started = true;
                    socket.connect(self.interface.context(), (self.to.ip(), self.to.port()), 49_200).unwrap();
                    return true;
                }
                while socket.can_send() && self.position < BYTES + HEADER {
                    let sent = if self.position < HEADER {
                        // Flow 0.
                        socket.send_slice(&[0; HEADER as usize][self.position as usize..])
                    } else {
                        let left = (BYTES + HEADER - self.position) as usize;
                        let piece = Pattern::at(self.position);
                        socket.send_slice(&piece[..piece.len().min(left)])
                    };
                    match sent {
                        Ok(n) => self.position += n as u64,
                        Err(e) => self.wrong = Some(format!("send: {e}")),
                    }
                }
                if self.position == BYTES + HEADER && !self.finished {
                    self.finished = true;
                    socket.close();
                    return true;
                }
            }
            Direction::WeSend => {
                while socket.can_recv() {
                    let at = self.position;
                    let taken = socket.recv(|data| {
                        let skip = HEADER.saturating_sub(at).min(data.len() as u64) as usize;
                        let right = Pattern::matches(at + skip as u64, &data[skip..]);
                        (data.len(), (data.len(), right))
                    });
                    match taken {
                        Ok((n, true)) => self.position += n as u64,
                        Ok((n, false)) => {
                            self.position += n as u64;
                            self.wrong = Some(format!("wrong bytes from {at} on"));
                        }
                        Err(e) => self.wrong = Some(format!("recv: {e}")),
                    }
                }
                if !self.finished && self.position > 0 && !socket.may_recv() {
                    self.finished = true;
                    socket.close();
                    return true;
                }
            }
        }
        self.position != before
    }
}

impl Node for Smoltcp {
    fn deliver(&mut self, _: usize, frame: Vec<u8>) {
        self.wire.received.push_back(frame);
    }

    fn run(&mut self, now: Instant, out: &mut Outgoing) {
        self.now = smoltcp::time::Instant::from_micros(now.as_micros() as i64);
        loop {
            self.interface.poll(self.now, &mut self.wire, &mut self.sockets);
            if !self.work() {
                break;
            }
        }
        out.extend(self.wire.sent.drain(..).map(|frame| (0, frame)));
    }

    fn wake_at(&mut self) -> Option<Instant> {
        let at = self.interface.poll_at(self.now, &self.sockets)?;
        Some(Instant::from_micros(at.total_micros() as u64))
    }

    fn as_any(&mut self) -> &mut dyn std::any::Any {
        self
    }
}

fn rough(seed: u64) -> LinkConfig {
    // Every seed has links of its own: from good to bad.
    let mut rng = Rng::new(seed, "roughness");
    LinkConfig {
        rate: Some(20_000_000),
        delay: Duration::from_micros(200 + rng.below(10_000)),
        jitter: rng.duration(Duration::from_millis(2)),
        queue: QueueConfig { frames: 10 + rng.below(100) as usize, ..QueueConfig::default() },
        loss: Loss::Independent(rng.unit() * 0.03),
        reorder: rng.unit() * 0.05,
        reorder_by: Duration::from_micros(rng.below(5_000)),
        duplicate: rng.unit() * 0.03,
        corrupt: rng.unit() * 0.005,
        ..LinkConfig::default()
    }
}

/// One stream; Err says what was wrong.
fn transfer(direction: Direction, seed: u64) -> Result<(), String> {
    let clock = VirtualClock::default();
    let mut network = Network::new(clock.clone(), seed);
    let (ours, theirs, prefix) = addresses(seed);
    let config = LocalConfig::new(format!("{ours}/{prefix}").parse()?).seeded(seed);
    let mut host = Host::new(&config, clock, Rng::new(seed, "ours")).map_err(|e| format!("{e:#}"))?;
    let stats: Shared = Stats::new(1);
    let at = |address: IpAddr| SocketAddr::new(address, PORT);
    match direction {
        Direction::WeSend => {
            let start = Duration::from_millis(1);
            let plan = BulkPlan { start, stop: None, bytes: Some(BYTES), on_off: None };
            host.add(Box::new(BulkSender::new(plan, vec![at(theirs)], 0, stats.clone())));
        }
        Direction::TheySend => host.add(Box::new(Sink::new(at(ours), 16, stats.clone()))),
    }
    let we = network.add("sidestep", Box::new(host));
    let they = network.add("smoltcp", Box::new(Smoltcp::new(direction, seed)));
    network.connect(we, they, rough(seed), rough(seed + 1_000_000));

    // smoltcp backs off to many seconds, so that the worst links take minutes; more than this is a stall.
    let end = Instant::from_millis(900_000);
    let is_done = |network: &mut Network| {
        let s = network.node_as::<Smoltcp>(they);
        let state = s.sockets.get::<tcp::Socket>(s.socket).state();
        let closed = matches!(state, tcp::State::Closed | tcp::State::TimeWait);
        let stats = stats.borrow();
        s.wrong.is_some() || s.finished && closed && (direction == Direction::WeSend || stats.flows[0].ended.is_some())
    };
    while network.now() < end && !is_done(&mut network) {
        let next = network.now() + Duration::from_millis(100);
        network.run(next, u64::MAX);
    }
    let at = network.now().as_millis();
    let s = network.node_as::<Smoltcp>(they);
    if let Some(wrong) = &s.wrong {
        return Err(format!("smoltcp, at {at} ms: {wrong}"));
    }
    let stats = stats.borrow();
    if stats.damaged > 0 || !stats.failures.is_empty() {
        return Err(format!("ours, at {at} ms: {} damaged, {:?}", stats.damaged, stats.failures));
    }
    let (received, wanted) = match direction {
        Direction::WeSend => (s.position, BYTES + HEADER),
        Direction::TheySend => (stats.flows[0].received, BYTES),
    };
    if received != wanted || at >= 900_000 {
        let state = s.sockets.get::<tcp::Socket>(s.socket).state();
        return Err(format!("{received} of {wanted} bytes at {at} ms; smoltcp is {state}"));
    }
    Ok(())
}

fn all_seeds(direction: Direction) {
    let number = |name: &str, default| std::env::var(name).ok().and_then(|n| n.parse::<u64>().ok()).unwrap_or(default);
    let (first, seeds) = (number("SIDESTEP_SIM_FIRST", 0), number("SIDESTEP_SIM_SEEDS", 40));
    let failed: Vec<String> = (first..first + seeds)
        .filter_map(|seed| transfer(direction, seed).err().map(|e| format!("seed {seed}: {e}")))
        .collect();
    assert!(failed.is_empty(), "{} of {seeds} seeds, {direction:?}:\n{}", failed.len(), failed.join("\n"));
}

#[test]
fn what_we_send_arrives_once_and_in_order() {
    all_seeds(Direction::WeSend);
}

#[test]
fn what_they_send_arrives_once_and_in_order() {
    all_seeds(Direction::TheySend);
}
