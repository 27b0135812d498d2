//! The programs' memory with the stack's promises checked on every access: the bytes tell their own position, so
//! whatever is written to a wrong place, twice differently, or never, shows.

use sidestep_stack::{
    DatagramMeta, Event, Host, Instant, InterfaceAddress, Limits, NeighborMode, SocketId, Stack, StackConfig,
    StaticNeighbor, Stream, TcpConfig, TcpState, Token,
};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// Bytes of a ring; small, so that it wraps and fills.
pub const CAPACITY: u32 = 1 << 14;

/// Largest answer to one thing that happens: a window of the smallest segments.
pub const MAX_FRAMES_AT_ONCE: usize = 4096;

/// The byte at a position of a stream.
#[must_use]
pub const fn pattern(salt: u8, position: u32) -> u8 {
    (position as u8).wrapping_mul(31) ^ (position >> 8) as u8 ^ (position >> 16) as u8 ^ salt
}

/// What a socket's program knows and has.
#[derive(Debug, Default)]
pub struct Socket {
    pub id: Option<SocketId>,
    pub state: Option<TcpState>,
    pub local: Option<SocketAddr>,
    pub remote: Option<SocketAddr>,
    /// What the peer's bytes are made with; None when the peer is not to be trusted with that.
    pub expected: Option<u8>,
    written: Ranges,
    pub rx_head: u64,
    pub rx_tail: u64,
    pub tx_head: u64,
    pub tx_tail: u64,
    pub finished: bool,
    pub peer_finished: bool,
    pub closed: bool,
    pub released: bool,
    pub broken: bool,
}

/// The memory of all programs of one stack.
#[derive(Debug, Default)]
pub struct World {
    pub sockets: BTreeMap<u64, Socket>,
    next: u64,
    /// How many connections the listeners' queues still take.
    pub room: usize,
    /// Accepted since somebody looked.
    pub accepted: Vec<u64>,
    pub datagrams: Vec<Vec<u8>>,
    /// Who else must be told of what a token's peer sends: by the peer's address.
    pub trust: BTreeMap<SocketAddr, u8>,
}

impl World {
    /// Memory for one more connection, to `remote`.
    pub fn stream(&mut self, remote: SocketAddr) -> Stream {
        self.next += 1;
        let expected = self.trust.get(&remote).copied();
        self.sockets.insert(self.next, Socket { expected, remote: Some(remote), ..Socket::default() });
        Stream { token: Token(self.next), rx_capacity: CAPACITY, tx_capacity: CAPACITY }
    }

    /// From now on nobody vouches for the bytes of any peer.
    pub fn trust_nobody(&mut self) {
        self.trust.clear();
        self.sockets.values_mut().for_each(|s| s.expected = None);
    }

    /// What the stack tells, checked and noted.
    ///
    /// # Panics
    /// When it can't be true.
    pub fn on_event(&mut self, event: Event) {
        match event {
            Event::Accepted { stream, socket, local, remote, .. } => {
                let s = self.sockets.get_mut(&stream.0).expect("a stream that was given");
                (s.id, s.local, s.remote) = (Some(socket), Some(local), Some(remote));
            }
            Event::Tcp { token, socket, state } => {
                let s = self.sockets.get_mut(&token.0).expect("a stream that was given");
                assert_eq!(s.id, Some(socket), "an event of another socket");
                assert!(!s.released, "an event after the last");
                assert!(state.rx_tail >= s.rx_tail, "the stream received became shorter");
                assert!(state.rx_tail == 0 || s.written.covers(0, state.rx_tail), "announced and never written");
                assert!((s.tx_head..=s.tx_tail).contains(&state.tx_head), "acknowledged and never sent");
                assert!(!s.peer_finished || state.peer_finished, "the end was taken back");
                assert!(!s.peer_finished || state.rx_tail == s.rx_tail, "bytes after the end");
                s.state = Some(state.state);
                (s.rx_tail, s.tx_head) = (state.rx_tail, state.tx_head);
                s.peer_finished = state.peer_finished;
                s.released = state.released;
                s.broken |= state.error.is_some();
            }
            _ => {}
        }
    }
}

impl Host for World {
    fn accept(&mut self, _: Token, _: SocketAddr, remote: SocketAddr) -> Option<Stream> {
        self.room = self.room.checked_sub(1)?;
        let stream = self.stream(remote);
        self.accepted.push(stream.token.0);
        Some(stream)
    }

    fn rx_write(&mut self, stream: Token, at: u64, data: &[u8]) {
        let s = self.sockets.get_mut(&stream.0).expect("a stream that was given");
        assert!(!s.released, "written after release");
        let end = at + data.len() as u64;
        assert!(end <= s.rx_head + u64::from(CAPACITY), "beyond the ring");
        assert!(at >= s.rx_tail, "over what the program may be reading");
        assert!(!s.peer_finished, "written after the end");
        if let Some(salt) = s.expected {
            let wrong = data.iter().zip(at..).find(|(byte, position)| **byte != pattern(salt, *position as u32));
            assert_eq!(wrong, None, "a byte in the wrong place");
        }
        s.written.add(at, end);
    }

    fn tx_read(&mut self, stream: Token, at: u64, out: &mut [u8]) {
        let s = self.sockets.get(&stream.0).expect("a stream that was given");
        assert!(!s.released, "read after release");
        assert!(at >= s.tx_head && at + out.len() as u64 <= s.tx_tail, "bytes that are not there");
        for (byte, position) in out.iter_mut().zip(at..) {
            *byte = pattern(stream.0 as u8, position as u32);
        }
    }

    fn datagram_in(&mut self, _: Token, meta: &DatagramMeta, payload: &[u8]) -> bool {
        assert_eq!(meta.len, payload.len());
        self.datagrams.push(payload.to_vec());
        self.datagrams.len() < 64
    }

    fn datagram_out(&mut self, _: Token, _: &mut [u8]) -> Option<DatagramMeta> {
        None
    }
}

/// A stack with its programs.
#[derive(Debug)]
pub struct Node {
    pub stack: Stack,
    pub world: World,
}

/// Addresses of node `n` (0 or 1).
#[must_use]
pub fn addresses(n: u8) -> [IpAddr; 2] {
    [IpAddr::from([10, 0, 0, n + 1]), IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(n) + 1])]
}

/// Ethernet address of node `n`.
#[must_use]
pub const fn mac(n: u8) -> [u8; 6] {
    [2, 0, 0, 0, 0, n + 1]
}

impl Node {
    /// Node `n` with small tables, whose neighbour is the other one.
    #[must_use]
    pub fn new(n: u8, checksums: bool) -> Self {
        let neighbors =
            addresses(1 - n).into_iter().map(|address| StaticNeighbor { address, mac: mac(1 - n) }).collect();
        let prefix = |a: &IpAddr| if a.is_ipv4() { 24 } else { 64 };
        let config = StackConfig {
            mac: mac(n),
            mtu: 1500,
            addresses: addresses(n).iter().map(|a| InterfaceAddress { address: *a, prefix_bits: prefix(a) }).collect(),
            routes: Vec::new(),
            neighbors,
            neighbor_mode: NeighborMode::Own,
            ephemeral_ports: (40_000, 40_099),
            rss: None,
            checksums,
            tcp: TcpConfig::default(),
            limits: Limits { connections: 24, half_open: 12, time_wait: 8, neighbors: 16, ..Limits::default() },
        };
        let world = World { room: usize::MAX, ..World::default() };
        Self { stack: Stack::new(config, [n + 1; 32]), world }
    }

    /// All that it has to say.
    ///
    /// # Panics
    /// When there is no end of it, or a frame is too long.
    pub fn frames(&mut self, now: Instant) -> Vec<Vec<u8>> {
        let mut out = vec![0; 9014];
        let mut frames = Vec::new();
        loop {
            while let Some(event) = self.stack.poll_event() {
                self.world.on_event(event);
            }
            let Some(len) = self.stack.poll_frame(now, &mut out, &mut self.world) else { break };
            assert!(len <= 1514, "longer than the link takes");
            frames.push(out[..len].to_vec());
            assert!(frames.len() <= MAX_FRAMES_AT_ONCE, "frames without end");
        }
        while let Some(event) = self.stack.poll_event() {
            self.world.on_event(event);
        }
        frames
    }

    /// Sockets that the program still has.
    #[must_use]
    pub fn open(&self) -> Vec<(u64, SocketId)> {
        let open = |(token, s): (&u64, &Socket)| (!s.released && !s.closed).then_some((*token, s.id?));
        self.world.sockets.iter().filter_map(open).collect()
    }

    /// The program of `token` reads up to `bytes`, writes up to `bytes`.
    pub fn read(&mut self, now: Instant, token: u64, bytes: u64) {
        let Some(s) = self.world.sockets.get_mut(&token).filter(|s| !s.closed && !s.released) else { return };
        let head = s.rx_tail.min(s.rx_head + bytes);
        if head > s.rx_head
            && let Some(id) = s.id
        {
            s.rx_head = head;
            let _ = self.stack.tcp_received(now, id, head);
        }
    }

    pub fn write(&mut self, now: Instant, token: u64, bytes: u64) {
        let Some(s) = self.world.sockets.get_mut(&token).filter(|s| !s.closed && !s.released && !s.finished) else {
            return;
        };
        let tail = (s.tx_tail + bytes).min(s.tx_head + u64::from(CAPACITY));
        if tail > s.tx_tail
            && let Some(id) = s.id
        {
            s.tx_tail = tail;
            let _ = self.stack.tcp_send(now, id, tail);
        }
    }

    pub fn finish(&mut self, now: Instant, token: u64) {
        let Some(s) = self.world.sockets.get_mut(&token).filter(|s| !s.closed && !s.released) else { return };
        s.finished = true;
        if let Some(id) = s.id {
            let _ = self.stack.tcp_finish(now, id);
        }
    }

    pub fn close(&mut self, now: Instant, token: u64, abort: bool) {
        let Some(s) = self.world.sockets.get_mut(&token).filter(|s| !s.closed && !s.released) else { return };
        let Some(id) = s.id else { return };
        (s.closed, s.finished) = (true, true);
        let _ = if abort { self.stack.tcp_abort(now, id) } else { self.stack.tcp_close(now, id) };
    }

    /// Everything is closed and time passes: nothing may stay.
    ///
    /// # Panics
    /// When something does.
    pub fn end(&mut self, mut now: Instant) {
        for (token, _) in self.open() {
            self.close(now, token, false);
        }
        let last = now + Duration::from_secs(4000);
        for _ in 0..20_000 {
            let _ = self.frames(now);
            match self.stack.next_deadline() {
                Some(at) if at <= last => now = at.max(now),
                _ => break,
            }
            self.stack.handle_timers(now, &mut self.world);
            now = now + Duration::from_nanos(1);
        }
        let mut left = Vec::new();
        self.stack.tcp_for_each(&mut |_, _, info| {
            if info.state != TcpState::Listen {
                left.push(info);
            }
        });
        assert!(left.is_empty(), "left behind: {left:?}");
        assert!(self.world.sockets.values().all(|s| s.released), "a stream that is never given back");
        assert!(!self.stack.has_output(), "still something to say");
    }
}

/// Which positions have been seen.
#[derive(Clone, Debug, Default)]
pub struct Ranges(BTreeMap<u64, u64>);

impl Ranges {
    pub fn add(&mut self, mut start: u64, mut end: u64) {
        if start >= end {
            return;
        }
        let touching: Vec<(u64, u64)> =
            self.0.range(..=end).rev().take_while(|(_, e)| **e >= start).map(|(s, e)| (*s, *e)).collect();
        for (s, e) in touching {
            self.0.remove(&s);
            (start, end) = (start.min(s), end.max(e));
        }
        self.0.insert(start, end);
    }

    #[must_use]
    pub fn covers(&self, start: u64, end: u64) -> bool {
        start >= end || self.0.range(..=start).next_back().is_some_and(|(_, e)| *e >= end)
    }

    /// Up to where everything from 0 on is there.
    #[must_use]
    pub fn contiguous(&self) -> u64 {
        self.0.first_key_value().filter(|(s, _)| **s == 0).map_or(0, |(_, e)| *e)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_grow_together() {
        let mut r = Ranges::default();
        for (start, end) in [(10, 20), (0, 5), (30, 40), (20, 30), (3, 10)] {
            r.add(start, end);
        }
        assert_eq!(r.contiguous(), 40);
        assert!(r.covers(0, 40) && !r.covers(0, 41) && r.covers(7, 7));
    }
}
