//! Two stacks and, between them, someone who loses, doubles, delays, repeats, cuts up and damages what he forwards; and
//! a third who forges segments for connections whose numbers he nearly knows. Neither may change a byte of a stream,
//! put one in twice, or end a connection: all that is allowed to happen is that a side gives up for want of answers.

use crate::script::Script;
use crate::wire::{self, ACK, FIN, RST, SYN, Tcp};
use crate::world::{CAPACITY, Node, addresses, mac};
use sidestep_stack::{Instant, ListenAddress, TcpOptions, Token, Unknown};
use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

const PORT: u16 = 80;
const MAX_STEPS: usize = 3000;
/// Frames that are remembered for being repeated.
const MEMORY: usize = 256;

/// One direction of a connection, by its sender's and its receiver's address.
type Way = (SocketAddr, SocketAddr);

/// What everybody can see of a direction.
#[derive(Clone, Debug, Default)]
struct Seen {
    first: u32,
    /// After the last number used.
    next: u32,
    /// The last ACK and window, and timestamps.
    ack: u32,
    time: Option<u32>,
}

struct Scene {
    nodes: [Node; 2],
    now: Instant,
    wire: VecDeque<(usize, Vec<u8>)>,
    log: VecDeque<(usize, Vec<u8>)>,
    seen: BTreeMap<Way, Seen>,
    /// Connections: node 1's token, node 0's once it is accepted.
    pairs: Vec<(u64, Option<u64>)>,
    /// Bytes still to be written by each side of each connection.
    to_write: BTreeMap<(usize, u64), u64>,
    total: [u64; 2],
}

/// Plays a script.
///
/// # Panics
/// When a stream is not what was written and nobody was told.
pub fn run(bytes: &[u8]) {
    let mut script = Script::new(bytes);
    let how = script.u8();
    let total = [u64::from(script.u16()), u64::from(script.u16())];
    let mut scene = Scene {
        nodes: [Node::new(0, true), Node::new(1, true)],
        now: Instant::from_millis(50_000),
        wire: VecDeque::new(),
        log: VecDeque::new(),
        seen: BTreeMap::new(),
        pairs: Vec::new(),
        to_write: BTreeMap::new(),
        total,
    };
    let at = ListenAddress { address: None, port: PORT, ipv4: true, ipv6: true };
    // A backlog of one: with several connections some come in by cookie.
    let backlog = if how & 8 != 0 { 1 } else { 16 };
    let listened = scene.nodes[0].stack.tcp_listen(Token(0), at, backlog, CAPACITY, TcpOptions::default(), false);
    listened.expect("a free port");
    for n in 0..=how & 3 {
        scene.connect(how & 4 != 0, n);
    }
    for _ in 0..MAX_STEPS {
        if script.is_empty() {
            break;
        }
        scene.pump();
        scene.meddle(&mut script);
    }
    scene.settle();
    scene.judge();
    let Scene { nodes, now, .. } = scene;
    for mut node in nodes {
        node.end(now);
    }
}

impl Scene {
    fn connect(&mut self, v6: bool, n: u8) {
        let node = &mut self.nodes[1];
        let remote = SocketAddr::new(addresses(0)[usize::from(v6)], PORT);
        let stream = node.world.stream(remote);
        let token = stream.token.0;
        let options = TcpOptions { no_delay: n & 1 != 0, ..TcpOptions::default() };
        let connected = node.stack.tcp_connect(self.now, stream.token, None, remote, stream, options, &mut node.world);
        let (id, local) = connected.expect("a port is free");
        let socket = node.world.sockets.get_mut(&token).expect("just made");
        (socket.id, socket.local) = (Some(id), Some(local));
        // The other side's bytes are told by this side's token.
        self.nodes[0].world.trust.insert(local, token as u8);
        self.pairs.push((token, None));
        self.to_write.insert((1, token), self.total[1]);
    }

    /// Programs read, write, finish; frames come to the wire.
    fn pump(&mut self) {
        for n in [0, 1] {
            let now = self.now;
            let mut frames = self.nodes[n].frames(now);
            for token in std::mem::take(&mut self.nodes[n].world.accepted) {
                let remote = self.nodes[n].world.sockets[&token].remote;
                let pairs = &mut self.pairs;
                let client = |s: &crate::world::Socket| s.local == remote;
                let other = self.nodes[1].world.sockets.iter_mut().find(|(_, s)| client(s));
                // A cookie that was repeated opens a connection that nobody has the other end of.
                if let Some((other, socket)) = other
                    && let Some(pair) = pairs.iter_mut().find(|p| p.0 == *other && p.1.is_none())
                {
                    pair.1 = Some(token);
                    socket.expected = Some(token as u8);
                    self.to_write.insert((0, token), self.total[0]);
                }
            }
            let node = &mut self.nodes[n];
            for (token, _) in node.open() {
                node.read(now, token, u64::MAX >> 1);
                let Some(rest) = self.to_write.get_mut(&(n, token)) else { continue };
                if node.world.sockets[&token].state.is_none_or(|s| s == sidestep_stack::TcpState::SynSent) {
                    continue;
                }
                let before = node.world.sockets[&token].tx_tail;
                node.write(now, token, *rest);
                *rest -= node.world.sockets[&token].tx_tail - before;
                if *rest == 0 && !node.world.sockets[&token].finished {
                    node.finish(now, token);
                }
            }
            frames.extend(node.frames(now));
            for frame in frames {
                self.note(&frame);
                self.wire.push_back((1 - n, frame));
            }
        }
    }

    fn note(&mut self, frame: &[u8]) {
        let Some((from, to, segment)) = Tcp::read(frame) else { return };
        let way = (SocketAddr::new(from, segment.source), SocketAddr::new(to, segment.destination));
        let seen = self.seen.entry(way).or_default();
        if segment.has(SYN) {
            (seen.first, seen.next) = (segment.seq, segment.seq.wrapping_add(1));
        }
        let len = segment.payload.len() as u32 + u32::from(segment.has(FIN)) + u32::from(segment.has(SYN));
        let end = segment.seq.wrapping_add(len);
        if end.wrapping_sub(seen.next).cast_signed() > 0 {
            seen.next = end;
        }
        if segment.has(ACK) {
            seen.ack = segment.ack;
        }
        seen.time = segment.timestamps().map(|t| t.0).or(seen.time);
    }

    fn deliver(&mut self, to: usize, frame: &[u8]) {
        self.now = self.now + Duration::from_micros(20);
        if self.log.len() == MEMORY {
            self.log.pop_front();
        }
        self.log.push_back((to, frame.to_vec()));
        let node = &mut self.nodes[to];
        node.stack.handle_frame(self.now, frame, &mut node.world, Unknown::Answer);
    }

    fn meddle(&mut self, script: &mut Script<'_>) {
        let what = script.u8();
        match what & 15 {
            13 => return self.forge(script),
            14 => {
                if let Some((to, frame)) = self.log.get(script.below(MEMORY)).cloned() {
                    self.deliver(to, &frame);
                }
                return;
            }
            15 => return self.wait(),
            _ => {}
        }
        let at = if what & 15 == 12 { script.below(self.wire.len().max(1)) } else { 0 };
        let Some((to, mut frame)) = self.wire.remove(at) else { return self.wait() };
        match what & 15 {
            8 => {}
            // In a fuzzer's build smoltcp believes every checksum, and damage would be the truth.
            10 if cfg!(fuzzing) => {}
            9 => {
                self.deliver(to, &frame);
                self.deliver(to, &frame);
            }
            10 => {
                let at = usize::from(script.u16()) % frame.len();
                frame[at] ^= 1 << (what >> 5);
                // An address in the Ethernet header has no checksum, and no stream in it.
                self.deliver(to, &frame);
            }
            11 => {
                for piece in cut_up(&frame, 1 + usize::from(script.u8() % 200)) {
                    self.deliver(to, &piece);
                }
            }
            _ => self.deliver(to, &frame),
        }
    }

    /// A segment of the third, who saw the numbers and gets them wrong by a little. What must not be forged is the one
    /// that is exactly right: nobody can tell it from the truth.
    fn forge(&mut self, script: &mut Script<'_>) {
        let index = script.below(self.seen.len().max(1));
        let (kind, by) = (script.u8(), u32::from(script.u16()));
        let Some((way, seen)) = self.seen.iter().nth(index) else { return };
        let (from, to) = *way;
        let Some(back) = self.seen.get(&(to, from)) else { return };
        let n = usize::from(to.ip() == addresses(1)[0] || to.ip() == addresses(1)[1]);
        let own = |s: &&crate::world::Socket| s.local == Some(to) && s.remote == Some(from) && !s.released;
        let Some(socket) = self.nodes[n].world.sockets.values().find(own) else { return };
        // What the receiver waits for.
        let expected = seen.first.wrapping_add(1 + socket.rx_tail as u32 + u32::from(socket.peer_finished));
        let options = match (kind & 64, seen.time) {
            (0, Some(time)) => wire::timestamp_option(time, back.time.unwrap_or(0)),
            _ => Vec::new(),
        };
        let beyond = back.next.wrapping_add(1 + by);
        let mut segment = Tcp { source: from.port(), destination: to.port(), window: 9, options, ..Tcp::default() };
        match kind & 7 {
            0 => (segment.flags, segment.seq, segment.ack) = (RST, expected.wrapping_add(1 + by), back.next),
            1 => (segment.flags, segment.seq, segment.ack) = (RST | ACK, expected.wrapping_sub(1 + by), back.next),
            2 => (segment.flags, segment.seq) = (SYN, expected.wrapping_add(by)),
            3 => (segment.flags, segment.seq, segment.ack) = (SYN | ACK, expected.wrapping_add(by), back.next),
            // Data and FIN that acknowledge what was never sent, or what is long past (RFC 5961 5).
            4 => (segment.flags, segment.seq, segment.ack) = (ACK, expected.wrapping_add(by & 0xff), beyond),
            5 => (segment.flags, segment.seq, segment.ack) = (ACK | FIN, expected, beyond),
            6 => {
                let past = back.first.wrapping_sub(1 << 30).wrapping_sub(by);
                (segment.flags, segment.seq, segment.ack) = (ACK, expected, past);
            }
            // Out of the window.
            _ => (segment.flags, segment.seq, segment.ack) = (ACK, expected.wrapping_add(1 << 17), back.next),
        }
        if kind & 4 != 0 {
            segment.payload = vec![0xee; 1 + usize::from(kind >> 3)];
        }
        let frame = frame(from.ip(), to.ip(), n, &segment);
        self.deliver(n, &frame);
        // Repeated later it might be exactly right.
        self.log.pop_back();
    }

    fn wait(&mut self) {
        let next = self.nodes.iter().filter_map(|n| n.stack.next_deadline()).min();
        let limit = self.now + Duration::from_secs(130);
        self.now = next.unwrap_or(limit).clamp(self.now, limit) + Duration::from_nanos(1);
        for node in &mut self.nodes {
            node.stack.handle_timers(self.now, &mut node.world);
        }
    }

    /// Everybody behaves from now on.
    fn settle(&mut self) {
        for _ in 0..200_000 {
            self.pump();
            match self.wire.pop_front() {
                Some((to, frame)) => self.deliver(to, &frame),
                None if self.is_done() => return,
                None => self.wait(),
            }
        }
        panic!("no end: {:?}", self.pairs);
    }

    fn is_done(&self) -> bool {
        let socket = |n: usize, token: &u64| &self.nodes[n].world.sockets[token];
        let over = |n: usize, token: &u64| {
            let s = socket(n, token);
            s.released || s.peer_finished && s.tx_head == self.total[n]
        };
        // Where one side has given up, and its RST was lost, the other waits for as long as its program likes.
        self.pairs.iter().all(|(client, server)| match server {
            _ if socket(1, client).broken => true,
            Some(server) => socket(0, server).broken || over(1, client) && over(0, server),
            None => over(1, client),
        })
    }

    fn judge(&self) {
        for (client, server) in &self.pairs {
            let c = &self.nodes[1].world.sockets[client];
            let Some(server) = server else {
                assert!(c.broken, "a connection to nobody, and nobody was told");
                continue;
            };
            let s = &self.nodes[0].world.sockets[server];
            let whole = c.rx_tail == self.total[0] && s.rx_tail == self.total[1];
            assert!(whole || c.broken || s.broken, "{} and {} bytes of {:?}", c.rx_tail, s.rx_tail, self.total);
        }
    }
}

fn frame(from: IpAddr, to: IpAddr, node: usize, segment: &Tcp) -> Vec<u8> {
    let kind = if to.is_ipv6() { wire::IPV6 } else { wire::IPV4 };
    wire::ethernet(mac(node as u8), mac(1 - node as u8), kind, &segment.packet(from, to))
}

/// The payload of a segment in pieces of `size` bytes that overlap, the last one first.
fn cut_up(whole: &[u8], size: usize) -> Vec<Vec<u8>> {
    let Some((from, to, segment)) = Tcp::read(whole) else { return vec![whole.to_vec()] };
    if segment.flags & (SYN | RST) != 0 || segment.payload.is_empty() {
        return vec![whole.to_vec()];
    }
    let node = usize::from(whole[5]) - 1;
    let last = segment.payload.len().div_ceil(size) - 1;
    let piece = |n: usize| {
        let begin = n * size;
        let end = (begin + size + size / 2).min(segment.payload.len());
        let fin = if n == last { segment.flags } else { segment.flags & !FIN };
        let seq = segment.seq.wrapping_add(begin as u32);
        let payload = segment.payload[begin..if n == last { segment.payload.len() } else { end }].to_vec();
        frame(from, to, node, &Tcp { seq, flags: fin, payload, ..segment.clone() })
    };
    (0..=last).rev().map(piece).collect()
}
