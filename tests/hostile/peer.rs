//! The other end of live connections does what the bytes say: segments near to what is expected or far from it, SACKs,
//! options, ICMP errors that quote the connection, raw frames; programs read, write, close; time passes.
//!
//! What must hold: [`super::world`]'s promises (each byte in its place, once, in order; nothing announced that is not
//! there), and of what is sent: the bytes are the program's, inside the window that was offered; acknowledgments name
//! what came and never go back, nor does the right edge of the window; the connection's end leaves nothing behind.

use crate::script::Script;
use crate::wire::{self, ACK, FIN, RST, SYN, Tcp};
use crate::world::{Node, Ranges, addresses, mac, pattern};
use sidestep_stack::{Instant, ListenAddress, TcpOptions, Token, Unknown};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// The stack is node 0, the adversary node 1.
const STACK: u8 = 0;
const PEER: u8 = 1;
const PORT: u16 = 80;
/// What one input may ask for: beyond that nothing new comes.
const MAX_STEPS: usize = 400;
const MAX_FLOWS: usize = 12;

/// One connection as the adversary sees it.
struct Flow {
    v6: bool,
    local_port: u16,
    remote_port: u16,
    /// Our first number, and the stack's once it was seen.
    iss: u32,
    irs: Option<u32>,
    /// Our next number, if we were honest.
    next: u32,
    /// What the stack has sent and acknowledged, and the right edge of its window, from the first number on.
    sent: u64,
    acked: u64,
    edge: u64,
    /// What we have sent: positions of the stream, and where its FIN was put.
    given: Ranges,
    fins: Vec<u64>,
    /// The largest right edge that we ever offered.
    offered: u64,
    scale: u8,
    stack_scale: u8,
    /// Whether our SYNs offered a scale; None: some did and some didn't, so that nobody can say what was agreed.
    scaling: Option<bool>,
    syns: u32,
    timestamps: bool,
    /// The newest timestamp of the stack.
    recent: u32,
    /// The numbers are what they were at the beginning: nobody has opened the tuple again.
    trusted: bool,
    /// The stack's stream, for the bytes that it sends.
    token: Option<u64>,
}

struct Scene<'a> {
    script: Script<'a>,
    node: Node,
    now: Instant,
    flows: Vec<Flow>,
    last: Vec<u8>,
}

/// Plays a script.
pub fn run(bytes: &[u8]) {
    let mut script = Script::new(bytes);
    let setup = script.u8();
    let mut node = Node::new(STACK, setup & 1 != 0);
    let at = |port| ListenAddress { address: None, port, ipv4: true, ipv6: true };
    let options = TcpOptions { no_delay: setup & 2 != 0, ..TcpOptions::default() };
    let listened = node.stack.tcp_listen(Token(0), at(PORT), 4, crate::world::CAPACITY, options, false);
    listened.expect("a free port");
    node.stack.udp_open(Token(1 << 40), at(7), false).expect("a free port");
    if setup & 4 != 0 {
        node.world.room = 3;
    }
    let mut scene = Scene { script, node, now: Instant::from_millis(20_000), flows: Vec::new(), last: Vec::new() };
    scene.drain();
    // Something to attack from the first byte on.
    scene.open(setup >> 3);
    scene.handshake(0);
    for _ in 0..MAX_STEPS {
        if scene.script.is_empty() {
            break;
        }
        scene.step();
    }
    let Scene { mut node, now, .. } = scene;
    node.end(now);
}

impl Scene<'_> {
    fn step(&mut self) {
        match self.script.u8() % 16 {
            0..=5 => self.segment(),
            6 | 7 => self.wait(),
            8 | 9 => self.program(),
            10 => {
                let how = self.script.u8();
                if self.flows.len() < MAX_FLOWS {
                    self.open(how);
                    if how & 128 != 0 {
                        self.handshake(self.flows.len() - 1);
                    }
                }
            }
            11 => self.connect(),
            12 => self.icmp(),
            13 => {
                // Bytes as they are: whose they are can't be said.
                let n = usize::from(self.script.u8());
                let kind = [wire::IPV4, wire::IPV6, 0x0806, 0x8100][self.script.below(4)];
                let bytes = self.script.bytes(n).to_vec();
                self.distrust();
                self.give(&wire::ethernet(mac(STACK), mac(PEER), kind, &bytes));
            }
            14 => {
                let mut frame = self.last.clone();
                for _ in 0..=self.script.u8() % 4 {
                    let at = usize::from(self.script.u8()).min(frame.len().saturating_sub(1));
                    if let Some(byte) = frame.get_mut(at) {
                        *byte = self.script.u8();
                    }
                }
                frame.truncate(frame.len() - usize::from(self.script.u8()).saturating_sub(200).min(frame.len()));
                self.distrust();
                self.give(&frame);
            }
            _ => self.datagram(),
        }
    }

    /// A SYN of ours, with the options that the bits of `how` name.
    fn open(&mut self, how: u8) {
        let n = self.flows.len() as u16;
        let iss = [0x1000_0000, u32::MAX - 2, u32::MAX - 20_000, 0x7fff_fff0][usize::from(how >> 5 & 3)];
        let flow = Flow {
            v6: how & 1 != 0,
            local_port: PORT,
            remote_port: 5000 + n,
            iss,
            irs: None,
            next: iss.wrapping_add(1),
            sent: 0,
            acked: 0,
            edge: 0,
            given: Ranges::default(),
            fins: Vec::new(),
            offered: 0,
            scale: if how & 4 != 0 { 7 } else { 0 },
            stack_scale: 0,
            scaling: Some(false),
            syns: 0,
            timestamps: how & 8 != 0,
            recent: 0,
            trusted: true,
            token: None,
        };
        let remote = SocketAddr::new(addresses(PEER)[usize::from(flow.v6)], flow.remote_port);
        self.node.world.trust.insert(remote, n as u8);
        let mut options = vec![2, 4, 5, 0xb4];
        if how & 16 != 0 {
            options[2..].copy_from_slice(&[0, 100]);
        }
        if how & 4 != 0 {
            options.extend_from_slice(&[1, 3, 3, flow.scale]);
        }
        if how & 2 != 0 {
            options.extend_from_slice(&[1, 1, 4, 2]);
        }
        if flow.timestamps {
            options.extend_from_slice(&wire::timestamp_option(self.clock(), 0));
        }
        let syn = Tcp { seq: iss, flags: SYN, window: 8000, options, ..Tcp::default() };
        self.flows.push(flow);
        self.send(usize::from(n), syn);
    }

    /// The last ACK of a handshake.
    fn handshake(&mut self, index: usize) {
        let Some(irs) = self.flows[index].irs else { return };
        let ack = Tcp { seq: self.flows[index].next, ack: irs.wrapping_add(1), flags: ACK, ..self.honest(index) };
        self.send(index, ack);
    }

    /// The stack opens a connection; the answer is the script's.
    fn connect(&mut self) {
        let v6 = self.script.u8() & 1 != 0;
        if self.flows.len() >= MAX_FLOWS {
            return;
        }
        let remote = SocketAddr::new(addresses(PEER)[usize::from(v6)], 6000 + self.flows.len() as u16);
        self.node.world.trust.insert(remote, self.flows.len() as u8);
        let stream = self.node.world.stream(remote);
        let node = &mut self.node;
        let options = TcpOptions::default();
        let connected = node.stack.tcp_connect(self.now, stream.token, None, remote, stream, options, &mut node.world);
        let Ok((id, local)) = connected else {
            node.world.sockets.remove(&stream.token.0);
            return;
        };
        if let Some(socket) = node.world.sockets.get_mut(&stream.token.0) {
            socket.id = Some(id);
        }
        let iss = 0x2000_0000;
        self.flows.push(Flow {
            v6,
            local_port: local.port(),
            remote_port: remote.port(),
            iss,
            irs: None,
            next: iss,
            sent: 0,
            acked: 0,
            edge: 0,
            given: Ranges::default(),
            fins: Vec::new(),
            offered: 0,
            // What the answer will say is not known; the largest window that it can mean.
            scale: 14,
            stack_scale: 0,
            scaling: Some(false),
            syns: 0,
            timestamps: true,
            recent: 0,
            trusted: true,
            token: Some(stream.token.0),
        });
        self.drain();
    }

    /// What an honest peer would send now.
    fn honest(&self, index: usize) -> Tcp {
        let flow = &self.flows[index];
        let ack = flow.irs.map_or(0, |irs| irs.wrapping_add(flow.sent as u32));
        let options = if flow.timestamps { wire::timestamp_option(self.clock(), flow.recent) } else { Vec::new() };
        Tcp { seq: flow.next, ack, flags: ACK, window: 2000, options, ..Tcp::default() }
    }

    fn segment(&mut self) {
        let index = self.script.below(self.flows.len().max(1));
        if index >= self.flows.len() {
            return;
        }
        let (flags, how, about) = (self.script.u8(), self.script.u8(), self.script.u8());
        let mut segment = self.honest(index);
        let flow = &self.flows[index];
        let irs = flow.irs.unwrap_or(0);
        segment.flags = flags & 0x3f;
        let near = |base: u32, by: i32| base.wrapping_add_signed(by);
        segment.seq = match how & 7 {
            0 | 1 => flow.next,
            2 => near(flow.next, self.script.i8()),
            3 => near(flow.next, i32::from(self.script.u16())),
            4 => self.script.u32(),
            5 => near(flow.iss.wrapping_add(flow.edge as u32), self.script.i8()),
            6 => near(flow.iss, self.script.i8()),
            _ => flow.iss.wrapping_add(flow.acked as u32),
        };
        segment.ack = match how >> 3 & 7 {
            0 | 1 => segment.ack,
            2 => near(segment.ack, self.script.i8()),
            3 => near(segment.ack, -i32::from(self.script.u16())),
            4 => self.script.u32(),
            5 => irs.wrapping_add(1),
            6 => irs,
            _ => near(segment.ack, i32::from(self.script.u16())),
        };
        match how >> 6 {
            0 | 1 => {}
            2 => segment.window = 0,
            _ => segment.window = self.script.u16(),
        }
        match about & 7 {
            0..=2 => {}
            3 => segment.options.clear(),
            4 => {
                let (value, echo) = (near(self.clock(), self.script.i8()), near(flow.recent, self.script.i8()));
                segment.options = wire::timestamp_option(value, echo);
            }
            5 => {
                let n = usize::from(self.script.u8() % 41);
                segment.options = self.script.bytes(n).to_vec();
            }
            6 => {
                let blocks = 1 + self.script.u8() % 3;
                segment.options.extend_from_slice(&[1, 1, 5, 2 + 8 * blocks]);
                for _ in 0..blocks {
                    let left = near(segment.ack, i32::from(self.script.u16().cast_signed()));
                    let right = near(left, i32::from(self.script.u16().cast_signed()));
                    segment.options.extend_from_slice(&left.to_be_bytes());
                    segment.options.extend_from_slice(&right.to_be_bytes());
                }
            }
            _ => segment.urgent = self.script.u16(),
        }
        let len = match about >> 3 & 7 {
            0..=2 => 0,
            3 => 1,
            4 => 1 + usize::from(self.script.u8()),
            5 => 1448,
            6 => usize::from(self.script.u16() % 1448),
            _ => 536,
        };
        let salt = index as u8;
        let begin = segment.seq.wrapping_sub(self.flows[index].iss.wrapping_add(1));
        let begin = begin.wrapping_add(u32::from(segment.flags & SYN != 0));
        segment.payload = (0..len as u32).map(|i| pattern(salt, begin.wrapping_add(i))).collect();
        self.send(index, segment);
    }

    /// Sends a segment on a flow and remembers what that entitles the stack to.
    fn send(&mut self, index: usize, mut segment: Tcp) {
        let v6 = self.flows[index].v6;
        let flow = &mut self.flows[index];
        (segment.source, segment.destination) = (flow.remote_port, flow.local_port);
        // The low bits of a cookie tell a segment size, so its neighbours are cookies too: whoever acknowledges one of those
        // opens a connection whose numbers begin there.
        let off = flow.irs.map_or(0, |irs| segment.ack.wrapping_sub(irs.wrapping_add(1)).cast_signed());
        let neighbour = flow.sent == 1 && segment.has(ACK) && off != 0 && (-8..=8).contains(&off);
        if neighbour || segment.flags & SYN != 0 && segment.seq != flow.iss {
            // A connection of other numbers may come of it.
            flow.trusted = false;
            let remote = SocketAddr::new(addresses(PEER)[usize::from(v6)], flow.remote_port);
            self.node.world.trust.remove(&remote);
            self.node.world.sockets.values_mut().filter(|s| s.remote == Some(remote)).for_each(|s| s.expected = None);
        }
        let flow = &mut self.flows[index];
        if segment.has(SYN) {
            let offers = segment.each_option().iter().any(|(kind, value)| *kind == 3 && value.len() == 1);
            flow.syns += 1;
            flow.scaling = flow.scaling.filter(|before| flow.syns == 1 || *before == offers).map(|_| offers);
        }
        let data = i64::from(segment.seq.wrapping_sub(flow.iss).cast_signed()) + i64::from(segment.has(SYN));
        let end = data + segment.payload.len() as i64;
        // Before the stream's first byte there is nothing that could be given.
        flow.given.add(data.max(1) as u64, end.max(1) as u64);
        flow.given.add(0, 1);
        if segment.has(FIN) {
            flow.fins.push(end.max(0) as u64);
        }
        if segment.seq == flow.next && segment.flags & (ACK | RST | SYN) == ACK {
            flow.next = flow.next.wrapping_add(segment.payload.len() as u32);
        }
        if flow.next == flow.iss && segment.has(SYN) && segment.seq == flow.iss {
            flow.next = flow.iss.wrapping_add(1);
        }
        if let Some(irs) = flow.irs.filter(|_| segment.has(ACK)) {
            let position = u64::from(segment.ack.wrapping_sub(irs));
            if position <= flow.sent {
                // A SYN's window is not scaled, a later one may be.
                flow.offered = flow.offered.max(position + (u64::from(segment.window) << flow.scale));
            }
        } else if segment.has(SYN) {
            flow.offered = flow.offered.max(1 + (u64::from(segment.window) << flow.scale));
        }
        let packet = segment.packet(addresses(PEER)[usize::from(v6)], addresses(STACK)[usize::from(v6)]);
        let kind = if v6 { wire::IPV6 } else { wire::IPV4 };
        self.give(&wire::ethernet(mac(STACK), mac(PEER), kind, &packet));
    }

    fn wait(&mut self) {
        let step = match self.script.u8() % 10 {
            0 => Duration::from_micros(100),
            1 => Duration::from_millis(1),
            2 => Duration::from_millis(10),
            3 => Duration::from_millis(41),
            4 => Duration::from_millis(250),
            5 => Duration::from_secs(1),
            6 => Duration::from_secs(15),
            7 => Duration::from_secs(61),
            _ => self.node.stack.next_deadline().map_or(Duration::ZERO, |at| at.since(self.now)),
        };
        let end = self.now + step.min(Duration::from_secs(200));
        for _ in 0..500 {
            match self.node.stack.next_deadline() {
                Some(at) if at <= end => self.now = at.max(self.now),
                _ => break,
            }
            self.node.stack.handle_timers(self.now, &mut self.node.world);
            self.now = self.now + Duration::from_nanos(1);
            self.drain();
        }
        self.now = end.max(self.now);
    }

    fn program(&mut self) {
        let what = self.script.u8();
        let open = self.node.open();
        if open.is_empty() {
            return;
        }
        let (token, id) = open[usize::from(what >> 4) % open.len()];
        match what & 15 {
            0..=3 => self.node.read(self.now, token, u64::from(self.script.u16())),
            4..=8 => self.node.write(self.now, token, u64::from(self.script.u16())),
            9 | 10 => self.node.finish(self.now, token),
            11 | 12 => self.node.close(self.now, token, false),
            13 => self.node.close(self.now, token, true),
            14 => {
                let bits = self.script.u8();
                let seconds = |bit: u8| (bits & bit != 0).then_some(Duration::from_secs(u64::from(bits) + 1));
                let options = TcpOptions {
                    no_delay: bits & 1 != 0,
                    cork: bits & 2 != 0,
                    quick_ack: bits & 4 != 0,
                    keep_alive: bits & 8 != 0,
                    keepalive_idle: seconds(16),
                    user_timeout: seconds(32),
                    ..TcpOptions::default()
                };
                let _ = self.node.stack.tcp_set_options(self.now, id, options);
            }
            _ => {
                let _ = self.node.stack.tcp_info(id);
            }
        }
        self.drain();
    }

    /// An ICMP error about a segment of a flow, which may never have been sent.
    fn icmp(&mut self) {
        let index = self.script.below(self.flows.len().max(1));
        let Some(flow) = self.flows.get(index) else { return };
        let (what, by, mtu) = (self.script.u8(), self.script.u16(), self.script.u16());
        let seq = flow.irs.unwrap_or(0).wrapping_add(u32::from(by));
        let quoted = Tcp { source: flow.local_port, destination: flow.remote_port, seq, flags: ACK, ..Tcp::default() };
        let v6 = usize::from(flow.v6);
        let (ours, theirs) = (addresses(PEER)[v6], addresses(STACK)[v6]);
        let mut message = match (flow.v6, what & 3) {
            (false, 0) => vec![3, 4, 0, 0, 0, 0],
            (false, _) => vec![3, what >> 2 & 15, 0, 0, 0, 0],
            (true, 0) => vec![2, 0, 0, 0, 0, 0],
            (true, _) => vec![1, what >> 2 & 7, 0, 0, 0, 0],
        };
        message.extend_from_slice(&mtu.to_be_bytes());
        message.extend_from_slice(&quoted.packet(theirs, ours));
        message.truncate(message.len() - usize::from(what >> 6) * 8);
        let kind = if flow.v6 {
            wire::seal(ours, theirs, 58, 2, &mut message);
            wire::IPV6
        } else {
            let sum = wire::checksum(&[&message]);
            message[2..4].copy_from_slice(&sum.to_be_bytes());
            wire::IPV4
        };
        let packet = wire::ip(ours, theirs, if flow.v6 { 58 } else { 1 }, &message);
        self.give(&wire::ethernet(mac(STACK), mac(PEER), kind, &packet));
    }

    /// UDP to an open or a closed port.
    fn datagram(&mut self) {
        let (how, len) = (self.script.u8(), usize::from(self.script.u8()));
        let v6 = usize::from(how & 1);
        let (from, to) = (addresses(PEER)[v6], addresses(STACK)[v6]);
        let mut d =
            [5555_u16.to_be_bytes(), [0, 7 + (how >> 1 & 1)], ((8 + len) as u16).to_be_bytes(), [0, 0]].concat();
        d.resize(8 + len, 0x55);
        wire::seal(from, to, 17, 6, &mut d);
        let kind = [wire::IPV4, wire::IPV6][v6];
        self.give(&wire::ethernet(mac(STACK), mac(PEER), kind, &wire::ip(from, to, 17, &d)));
    }

    /// From here on nobody can say what the stack was given.
    fn distrust(&mut self) {
        self.node.world.trust_nobody();
        self.flows.iter_mut().for_each(|f| f.trusted = false);
    }

    fn give(&mut self, frame: &[u8]) {
        self.last = frame.to_vec();
        self.node.stack.handle_frame(self.now, frame, &mut self.node.world, Unknown::Answer);
        self.drain();
    }

    fn drain(&mut self) {
        for frame in self.node.frames(self.now) {
            if let Some((from, to, segment)) = Tcp::read(&frame) {
                self.check(from, to, &segment);
            }
        }
    }

    /// What the stack sent, against what it may.
    fn check(&mut self, from: IpAddr, to: IpAddr, segment: &Tcp) {
        let v6 = from.is_ipv6();
        let is_it = |f: &Flow| f.v6 == v6 && f.local_port == segment.source && f.remote_port == segment.destination;
        let Some(flow) = self.flows.iter_mut().find(|f| is_it(f)) else { return };
        if segment.has(SYN) {
            if flow.irs.is_some_and(|irs| irs != segment.seq) {
                // A SYN opened the tuple again.
                flow.trusted = false;
            }
            flow.irs = Some(segment.seq);
            flow.sent = flow.sent.max(1);
            let scale = segment.each_option().into_iter().find(|(kind, v)| *kind == 3 && v.len() == 1);
            flow.stack_scale = scale.map_or(0, |(_, v)| v[0]);
        }
        if let Some((value, _)) = segment.timestamps() {
            flow.recent = value;
        }
        if !flow.trusted || segment.has(RST) {
            return;
        }
        let Some(irs) = flow.irs else { return };
        if segment.has(ACK) {
            let acked = u64::from(segment.ack.wrapping_sub(flow.iss));
            // A cookie's number is no promise; the first ACK of a connection is 1.
            let given = flow.given.contiguous().max(1);
            let fin = u64::from(flow.fins.contains(&given));
            assert!(acked <= given + fin, "acknowledged {acked}, given {given} and FIN {fin}");
            assert!(acked >= flow.acked, "an acknowledgment went back from {} to {acked}", flow.acked);
            flow.acked = acked;
            if let Some(scaling) = flow.scaling.filter(|_| !segment.has(SYN)) {
                let scale = if scaling { flow.stack_scale } else { 0 };
                let edge = acked + (u64::from(segment.window) << scale);
                // Scaling rounds down (RFC 7323 2.4).
                let slack = (1 << scale) - 1;
                assert!(edge + slack >= flow.edge, "the window's right edge went back from {} to {edge}", flow.edge);
                flow.edge = flow.edge.max(edge);
            }
            for (left, right) in segment.sacks() {
                // What is older than the stream may be reported as doubled (RFC 2883).
                let place = |edge: u32| i64::from(edge.wrapping_sub(flow.iss).cast_signed());
                let (left, right) = (place(left), place(right));
                let known = right <= acked as i64 || flow.given.covers(left.max(0) as u64, right as u64);
                assert!(left < right && known, "a SACK of {left}..{right}, which nobody sent");
            }
        }
        let begin = u64::from(segment.seq.wrapping_sub(irs));
        let end = begin + segment.payload.len() as u64 + u64::from(segment.has(SYN)) + u64::from(segment.has(FIN));
        if flow.token.is_none() {
            let remote = SocketAddr::new(to, flow.remote_port);
            let sockets = &self.node.world.sockets;
            flow.token = sockets.iter().find(|(_, s)| s.remote == Some(remote)).map(|(token, _)| *token);
        }
        if !segment.payload.is_empty() {
            let token = flow.token.expect("a stream whose bytes are sent");
            let wrong = segment.payload.iter().zip(begin - 1..).find(|(b, p)| **b != pattern(token as u8, *p as u32));
            assert_eq!(wrong, None, "a byte that the program did not write there");
            assert!(
                end <= flow.offered.max(1) + u64::from(segment.has(FIN)),
                "beyond the window: {end} of {}",
                flow.offered
            );
        }
        if end > flow.sent {
            assert!(begin <= flow.sent, "a gap in what is sent");
            flow.sent = end;
        }
    }

    fn clock(&self) -> u32 {
        (self.now.as_nanos() / 1_000_000) as u32 + 77
    }
}
