//! Two stacks and a wire between them, in virtual time.

mod hostile;
mod large;
mod link;
mod sockets;

use crate::{
    DatagramMeta, Event, Host, Instant, InterfaceAddress, Limits, ListenAddress, NeighborMode, Stack, StackConfig,
    Stream, TcpConfig, TcpSnapshot, Token, Unknown, Verdict,
};
use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec;
use alloc::vec::Vec;
use core::net::{IpAddr, SocketAddr};
use core::time::Duration;

const CAPACITY: u32 = 1 << 16;

/// What a driver keeps: the streams' bytes, datagrams, and what it heard.
#[derive(Default)]
struct Memory {
    /// By token: what was received and what is to be sent, from position 0 on.
    received: BTreeMap<u64, Vec<u8>>,
    sending: BTreeMap<u64, Vec<u8>>,
    datagrams: Vec<(Token, DatagramMeta, Vec<u8>)>,
    datagrams_out: BTreeMap<u64, VecDeque<(DatagramMeta, Vec<u8>)>>,
    accepted: u64,
    deaf: bool,
}

impl Host for Memory {
    fn accept(&mut self, _: Token, _: SocketAddr, _: SocketAddr) -> Option<Stream> {
        self.accepted += 1;
        Some(stream(1000 + self.accepted))
    }
    fn rx_write(&mut self, stream: Token, at: u64, data: &[u8]) {
        let buffer = self.received.entry(stream.0).or_default();
        let at = usize::try_from(at).unwrap();
        buffer.resize(buffer.len().max(at + data.len()), 0);
        buffer[at..at + data.len()].copy_from_slice(data);
    }
    fn tx_read(&mut self, stream: Token, at: u64, out: &mut [u8]) {
        let at = usize::try_from(at).unwrap();
        out.copy_from_slice(&self.sending[&stream.0][at..at + out.len()]);
    }
    fn datagram_in(&mut self, socket: Token, meta: &DatagramMeta, payload: &[u8]) -> bool {
        assert_eq!(meta.len, payload.len());
        self.datagrams.push((socket, *meta, payload.to_vec()));
        !self.deaf
    }
    fn datagram_out(&mut self, socket: Token, out: &mut [u8]) -> Option<DatagramMeta> {
        let queue = self.datagrams_out.get_mut(&socket.0)?;
        while let Some((meta, payload)) = queue.pop_front() {
            if payload.len() <= out.len() {
                out[..payload.len()].copy_from_slice(&payload);
                return Some(meta);
            }
        }
        None
    }
}

const fn stream(token: u64) -> Stream {
    Stream { token: Token(token), rx_capacity: CAPACITY, tx_capacity: CAPACITY }
}

struct Node {
    stack: Stack,
    memory: Memory,
    events: Vec<Event>,
    /// The newest of each connection.
    states: BTreeMap<u64, TcpSnapshot>,
    /// Its device cuts large packets; how many it has cut.
    cuts: bool,
    large: usize,
}

/// Two nodes, and the frames that went between them.
struct Net {
    now: Instant,
    nodes: [Node; 2],
    wire: VecDeque<(usize, Vec<u8>)>,
    /// Every frame with its sender.
    log: Vec<(usize, Vec<u8>)>,
    cut: bool,
}

const A: usize = 0;
const B: usize = 1;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn mac(node: usize) -> [u8; 6] {
    [2, 0, 0, 0, 0, u8::try_from(node).unwrap() + 1]
}

/// Node 0 is 10.0.0.1 and 2001:db8::1, node 1 the same with 2.
fn config(node: usize) -> StackConfig {
    let n = node + 1;
    StackConfig {
        mac: mac(node),
        mtu: 1500,
        addresses: vec![
            InterfaceAddress { address: ip(&std::format!("10.0.0.{n}")), prefix_bits: 24 },
            InterfaceAddress { address: ip(&std::format!("2001:db8::{n}")), prefix_bits: 64 },
        ],
        routes: Vec::new(),
        neighbors: Vec::new(),
        neighbor_mode: NeighborMode::Own,
        ephemeral_ports: (40_000, 40_999),
        rss: None,
        checksums: true,
        tcp: TcpConfig::default(),
        limits: Limits::default(),
    }
}

fn at_any(port: u16) -> ListenAddress {
    ListenAddress { address: None, port, ipv4: true, ipv6: true }
}

impl Node {
    fn new(config: StackConfig) -> Self {
        let seed = [config.mac[5]; 32];
        Self {
            stack: Stack::new(config, seed),
            memory: Memory::default(),
            events: Vec::new(),
            states: BTreeMap::new(),
            cuts: false,
            large: 0,
        }
    }

    fn frame(&mut self, now: Instant, frame: &[u8]) -> Verdict {
        self.stack.handle_frame(now, frame, &mut self.memory, Unknown::Answer)
    }

    /// All frames that it has.
    fn frames(&mut self, now: Instant) -> Vec<Vec<u8>> {
        let mut out = vec![0; 9014];
        let mut frames = Vec::new();
        loop {
            while self.cuts && self.stack.has_large(now, 1 << 16) {
                let mut packet = vec![0; 1 << 16];
                let Some(large) = self.stack.poll_large(now, &mut packet, &mut self.memory) else { break };
                self.large += 1;
                frames.extend(large::cut(&packet[..large.len], &large));
            }
            let Some(len) = self.stack.poll_frame(now, &mut out, &mut self.memory) else { break };
            assert!(len <= self.stack.config().mtu + 14);
            frames.push(out[..len].to_vec());
        }
        while let Some(event) = self.stack.poll_event() {
            if let Event::Tcp { token, state, .. } = event {
                self.states.insert(token.0, state);
            }
            self.events.push(event);
        }
        frames
    }

    fn send(&mut self, socket: crate::SocketId, token: Token, remote: SocketAddr, payload: Vec<u8>) {
        let local = SocketAddr::new(if remote.is_ipv4() { ip("0.0.0.0") } else { ip("::") }, 0);
        let meta = DatagramMeta { len: payload.len(), local, remote, tos: 0, ttl: 0 };
        self.memory.datagrams_out.entry(token.0).or_default().push_back((meta, payload));
        self.stack.udp_send_ready(socket);
    }
}

impl Net {
    fn new() -> Self {
        Self::with(config(A), config(B))
    }

    fn with(a: StackConfig, b: StackConfig) -> Self {
        Self {
            now: Instant::from_millis(10_000),
            nodes: [Node::new(a), Node::new(b)],
            wire: VecDeque::new(),
            log: Vec::new(),
            cut: false,
        }
    }

    /// Lets time pass until nothing more happens within `limit`, or `limit` is over.
    fn run(&mut self, limit: Duration) {
        self.run_until(limit, |_| false);
    }

    fn run_until(&mut self, limit: Duration, mut done: impl FnMut(&mut Self) -> bool) {
        let end = self.now + limit;
        while !done(self) {
            let mut busy = false;
            for n in [A, B] {
                for frame in self.nodes[n].frames(self.now) {
                    busy = true;
                    self.log.push((n, frame.clone()));
                    self.wire.push_back((1 - n, frame));
                }
            }
            if busy {
                self.now = self.now + Duration::from_micros(100);
                for (to, frame) in core::mem::take(&mut self.wire) {
                    if !self.cut {
                        self.nodes[to].frame(self.now, &frame);
                    }
                }
                continue;
            }
            // Events may have come with the last frames, or with a timer.
            if done(self) {
                return;
            }
            let next = self.nodes.iter().filter_map(|n| n.stack.next_deadline()).min();
            match next {
                Some(next) if next <= end => self.now = self.now.max(next),
                _ => {
                    self.now = end;
                    return;
                }
            }
            for n in &mut self.nodes {
                n.stack.handle_timers(self.now, &mut n.memory);
            }
            // A deadline in the past would stop time.
            self.now = self.now + Duration::from_nanos(1);
        }
    }
}

const SECOND: Duration = Duration::from_secs(1);
