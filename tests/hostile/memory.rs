//! A program that shares memory with a shard and writes what it likes into it: positions, requests, addresses, records
//! of datagrams, accept rings, or any bytes anywhere, while its sockets are in use. The real shard runs, with a stack at
//! the other end of its wire.
//!
//! What must hold: no panic, the shard goes on, and once the program is gone nothing of it is left in the shard.

use crate::script::Script;
use crate::world::{CAPACITY, Node, addresses, mac};
use sidestep::clock::Clock;
use sidestep::control::group::{Group, USED_BY_CONTROL};
use sidestep::port::{FrameIo, PortCounters};
use sidestep::shard::Shard;
use sidestep::shard::mailbox::{Mailbox, Message, Notices};
use sidestep_shm::slot::{kind, store_address};
use sidestep_shm::{Geometry, Slot, datagram};
use sidestep_stack::{
    Instant, InterfaceAddress, Limits, ListenAddress, NeighborMode, Stack, StackConfig, StaticNeighbor, TcpConfig,
    TcpOptions, Token, Unknown,
};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fs::File;
use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileExt;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

const GEOMETRY: Geometry = Geometry {
    shards: 1,
    open_slots: 12,
    accept_slots: 6,
    rx_bytes: CAPACITY,
    tx_bytes: CAPACITY,
    pool_bytes: 1 << 18,
};
const MAX_STEPS: usize = 400;
/// The program's number in its group, and the group's.
const PROCESS: u32 = 0;
const GROUP: u32 = 0;

type Queue = Rc<RefCell<VecDeque<Vec<u8>>>>;

/// The shard's end of a wire in memory.
struct Wire {
    incoming: Queue,
    outgoing: Queue,
    buffer: Vec<u8>,
}

impl FrameIo for Wire {
    fn receive(&mut self, budget: usize, mut handle: impl FnMut(&mut [u8])) -> usize {
        let mut taken = 0;
        while taken < budget
            && let Some(mut frame) = { self.incoming.borrow_mut().pop_front() }
        {
            handle(&mut frame);
            taken += 1;
        }
        taken
    }

    fn transmit(&mut self, budget: usize, mut fill: impl FnMut(&mut [u8]) -> Option<usize>) -> usize {
        let mut sent = 0;
        while sent < budget
            && let Some(len) = fill(&mut self.buffer)
        {
            self.outgoing.borrow_mut().push_back(self.buffer[..len].to_vec());
            sent += 1;
        }
        sent
    }

    fn flush(&mut self) {}

    fn can_transmit(&mut self) -> bool {
        true
    }

    fn frame_capacity(&self) -> usize {
        self.buffer.len()
    }

    fn poll_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn counters(&self) -> PortCounters {
        PortCounters::default()
    }
}

#[derive(Clone)]
struct Time(Rc<Cell<u64>>);

impl Clock for Time {
    fn now(&self) -> Instant {
        Instant::from_nanos(self.0.get())
    }
}

struct Scene<'a> {
    script: Script<'a>,
    shard: Shard<Wire, Time>,
    time: Time,
    mailboxes: Arc<[Mailbox]>,
    notices: Arc<Notices>,
    group: Arc<Group>,
    memory: File,
    /// The honest end of the wire.
    peer: Node,
    to_shard: Queue,
    from_shard: Queue,
}

/// Plays a script.
///
/// # Panics
/// When something of the program stays.
pub fn run(bytes: &[u8]) {
    let (to_shard, from_shard) = (Queue::default(), Queue::default());
    let time = Time(Rc::new(Cell::new(60_000_000_000)));
    let mailboxes: Arc<[Mailbox]> = vec![Mailbox::new().expect("an eventfd")].into();
    let notices = Arc::new(Notices::new().expect("an eventfd"));
    let port = Wire { incoming: to_shard.clone(), outgoing: from_shard.clone(), buffer: vec![0; 1514] };
    let stack = Stack::new(stack_config(), [7; 32]);
    let heartbeat = Box::new(|_, _| {});
    let shard = Shard::new(0, port, time.clone(), stack, mailboxes.clone(), notices.clone(), heartbeat);
    let group = Arc::new(Group::new(GROUP, 1, GEOMETRY).expect("a memfd"));
    let memory = File::from(group.memfd().try_clone_to_owned().expect("a descriptor"));
    let mut peer = Node::new(1, true);
    let at = ListenAddress { address: None, port: 80, ipv4: true, ipv6: true };
    peer.stack.tcp_listen(Token(0), at, 16, CAPACITY, TcpOptions::default(), false).expect("a free port");
    let script = Script::new(bytes);
    let mut scene = Scene { script, shard, time, mailboxes, notices, group, memory, peer, to_shard, from_shard };
    let group = scene.group.clone();
    scene.tell(|reply| Message::AddGroup { group, reply }).expect("an answer");
    scene.stage();
    for _ in 0..MAX_STEPS {
        if scene.script.is_empty() {
            break;
        }
        scene.step();
        scene.turn();
    }
    scene.end();
}

fn stack_config() -> StackConfig {
    let prefix = |a: &IpAddr| if a.is_ipv4() { 24 } else { 64 };
    StackConfig {
        mac: mac(0),
        mtu: 1500,
        addresses: addresses(0).iter().map(|a| InterfaceAddress { address: *a, prefix_bits: prefix(a) }).collect(),
        routes: Vec::new(),
        neighbors: addresses(1).into_iter().map(|address| StaticNeighbor { address, mac: mac(1) }).collect(),
        neighbor_mode: NeighborMode::Own,
        ephemeral_ports: (40_000, 40_099),
        rss: None,
        checksums: true,
        tcp: TcpConfig::default(),
        limits: Limits { connections: 64, ..Limits::default() },
    }
}

impl Scene<'_> {
    /// What the control thread would have done: a listener in slot 0, a datagram socket in slot 1; and the program's own
    /// connections in 2 and 3.
    fn stage(&mut self) {
        for (number, of) in [(0, kind::TCP6), (1, kind::UDP6), (2, kind::TCP4), (3, kind::TCP6)] {
            let _ = self.group.region().free_slots().remove(number);
            let slot = self.slot(number);
            slot.hold(PROCESS);
            slot.kind.store(of, Ordering::Release);
            slot.watch(0);
        }
        let at = |port| ListenAddress { address: None, port, ipv4: true, ipv6: true };
        assert!(self.group.take(0, USED_BY_CONTROL) && self.group.take(1, USED_BY_CONTROL));
        let listening = self.tell(|reply| Message::Listen {
            group: GROUP,
            slot: 0,
            at: at(8080),
            backlog: 4,
            options: Box::default(),
            reuse_port: false,
            reply,
        });
        assert!(listening.is_ok_and(|r| r.is_ok()));
        let open = self.tell(|reply| Message::OpenDatagram { group: GROUP, slot: 1, at: at(7), reuse: false, reply });
        assert!(open.is_ok_and(|r| r.is_ok()));
        for number in [2, 3] {
            self.connect(number);
        }
        self.dial();
        for _ in 0..6 {
            self.turn();
        }
    }

    fn connect(&self, number: u32) {
        let slot = self.slot(number);
        let address = addresses(1)[usize::from(number & 1 != 0)];
        let mapped = match address {
            IpAddr::V4(a) => a.to_ipv6_mapped().octets(),
            IpAddr::V6(a) => a.octets(),
        };
        store_address(&slot.wanted_remote_address, mapped);
        slot.wanted_remote_port.store(80, Ordering::Relaxed);
        slot.request.fetch_or(sidestep_shm::slot::request::CONNECT, Ordering::Release);
        self.mark(number);
    }

    /// A connection from outside to the program's listener.
    fn dial(&mut self) {
        let now = self.time.now();
        let remote = std::net::SocketAddr::new(addresses(0)[0], 8080);
        if self.peer.world.sockets.len() > 40 {
            return;
        }
        let stream = self.peer.world.stream(remote);
        let node = &mut self.peer;
        let options = TcpOptions::default();
        match node.stack.tcp_connect(now, stream.token, None, remote, stream, options, &mut node.world) {
            Ok((id, _)) => {
                if let Some(s) = node.world.sockets.get_mut(&stream.token.0) {
                    s.id = Some(id);
                }
            }
            Err(_) => {
                node.world.sockets.remove(&stream.token.0);
            }
        }
    }

    fn slot(&self, number: u32) -> &Slot {
        self.group.region().slot(number % GEOMETRY.slots()).expect("a slot")
    }

    fn mark(&self, number: u32) {
        if let Some(door) = self.group.region().door(0) {
            door.dirty.mark(number);
        }
    }

    fn step(&mut self) {
        let what = self.script.u8();
        let number = u32::from(self.script.u8()) % GEOMETRY.slots();
        match what & 15 {
            // Honest use, so that there is something to spoil.
            0 | 1 => {
                let n = u64::from(self.script.u16());
                let slot = self.slot(number);
                slot.tx_tail.store(slot.tx_tail.load(Ordering::Relaxed).wrapping_add(n), Ordering::Release);
            }
            2 => {
                let slot = self.slot(number);
                slot.rx_head.store(slot.rx_tail.load(Ordering::Relaxed), Ordering::Release);
            }
            3 => {
                if let Some(ring) = self.group.region().accept_ring(0, 0) {
                    let region = self.group.region();
                    let _ = ring.take(PROCESS, |slot| region.slot(slot));
                }
            }
            4 => self.connect(number),
            5 => self.record(),
            // One word of a slot.
            6 | 7 => {
                let (word, which) = (self.word(), self.script.u8() % 12);
                let slot = self.slot(number);
                match which {
                    0 => slot.tx_tail.store(word, Ordering::Release),
                    1 => slot.rx_head.store(word, Ordering::Release),
                    2 => slot.tx_head.store(word, Ordering::Release),
                    3 => slot.rx_tail.store(word, Ordering::Release),
                    4 => slot.request.store(word as u32, Ordering::Release),
                    5 => slot.status.store(word as u32, Ordering::Release),
                    6 => slot.kind.store(word as u32, Ordering::Release),
                    7 => slot.holders[0].store(word, Ordering::Release),
                    8 => slot.options_version.store(word as u32, Ordering::Release),
                    9 => slot.watcher_words.store(word as u32, Ordering::Release),
                    10 => slot.linger.store(word as u32, Ordering::Release),
                    _ => slot.wanted_remote_port.store(word as u32, Ordering::Release),
                }
            }
            // Bytes of a slot, or of anything.
            8 | 9 => {
                let slots_at = GEOMETRY.rx_at(0) - u64::from(GEOMETRY.slots() * 832).next_multiple_of(4096);
                let at = slots_at + u64::from(number) * 832 + u64::from(self.script.u16() % 832);
                self.scribble(at);
            }
            10 => {
                let at = u64::from(self.script.u32()) % GEOMETRY.region_bytes();
                self.scribble(at);
            }
            11 => {
                // The first bytes of a listener's receive ring are its accept ring.
                let at = GEOMETRY.rx_at(number) + u64::from(self.script.u8());
                self.scribble(at);
            }
            12 => {
                let (now, n) = (self.time.now(), u64::from(self.script.u16()));
                let open = self.peer.open();
                if let Some((token, _)) = open.get(number as usize % open.len().max(1)).copied() {
                    match what >> 4 & 3 {
                        0 => self.peer.write(now, token, n),
                        1 => self.peer.read(now, token, n),
                        2 => self.peer.finish(now, token),
                        _ => self.peer.close(now, token, n & 1 != 0),
                    }
                }
            }
            13 => self.dial(),
            14 => {
                let by = [1_000_000, 50_000_000, 300_000_000, 70_000_000_000][usize::from(what >> 4 & 3)];
                self.time.0.set(self.time.0.get() + by);
            }
            _ => {
                let slot = self.slot(number);
                if what & 16 != 0 {
                    slot.hold(PROCESS);
                } else {
                    let _ = slot.let_go(PROCESS);
                }
            }
        }
        self.mark(number);
    }

    /// A datagram's record with a header that may be any.
    fn record(&mut self) {
        let slot = self.slot(1);
        let tail = slot.tx_tail.load(Ordering::Relaxed);
        let len = u32::from(self.script.u16());
        let port = u16::from(self.script.u8());
        let remote = match addresses(1)[0] {
            IpAddr::V4(a) => a.to_ipv6_mapped().octets(),
            IpAddr::V6(a) => a.octets(),
        };
        let mut header = datagram::Header { len, remote, remote_port: port, ..Default::default() }.encode();
        if self.script.u8() & 1 != 0 {
            let at = self.script.below(header.len());
            header[at] = self.script.u8();
        }
        if let Some(ring) = self.group.region().tx(1) {
            ring.write(tail, &header);
        }
        let record = datagram::Header::record_bytes(len as usize);
        self.slot(1).tx_tail.store(tail.wrapping_add(record), Ordering::Release);
        self.mark(1);
    }

    fn word(&mut self) -> u64 {
        match self.script.u8() % 6 {
            0 => 0,
            1 => u64::MAX,
            2 => 1 << (self.script.u8() % 64),
            3 => (1 << (self.script.u8() % 64)) - 1,
            4 => u64::from(self.script.u16()),
            _ => u64::from(self.script.u32()) << 32 | u64::from(self.script.u32()),
        }
    }

    fn scribble(&mut self, at: u64) {
        let n = 1 + usize::from(self.script.u8() % 16);
        let bytes = self.script.bytes(n).to_vec();
        if at + bytes.len() as u64 <= GEOMETRY.region_bytes() {
            self.memory.write_all_at(&bytes, at).expect("writing shared memory");
        }
    }

    fn turn(&mut self) {
        self.time.0.set(self.time.0.get() + 20_000);
        self.shard.turn();
        let now = self.time.now();
        let arrived: Vec<_> = self.from_shard.borrow_mut().drain(..).collect();
        assert!(arrived.len() <= 512, "frames without end");
        let Node { stack, world } = &mut self.peer;
        for frame in arrived {
            stack.handle_frame(now, &frame, world, Unknown::Answer);
        }
        if stack.next_deadline().is_some_and(|at| at <= now) {
            stack.handle_timers(now, world);
        }
        for (token, _) in self.peer.open() {
            self.peer.read(now, token, 1 << 20);
        }
        let frames = self.peer.frames(now);
        self.to_shard.borrow_mut().extend(frames);
        // The control thread would look into them; here they only must not pile up without bound.
        let mut notices = 0;
        while self.notices.pop().is_some() {
            notices += 1;
        }
        assert!(notices <= 2 * GEOMETRY.slots() as usize + 64, "{notices} notices in one turn");
    }

    /// Sends a message of the control thread, and its answer.
    fn tell<T>(&mut self, make: impl FnOnce(SyncSender<T>) -> Message) -> Result<T, String> {
        let (reply, answer): (_, Receiver<T>) = sync_channel(1);
        self.mailboxes[0].send(make(reply)).map_err(|_| "a full mailbox")?;
        self.turn();
        answer.try_recv().map_err(|e| e.to_string())
    }

    /// The program dies, as the control thread hears of it.
    fn end(mut self) {
        let died = self.tell(|reply| Message::ProcessDied { group: GROUP, process: PROCESS, last: true, reply });
        died.expect("an answer");
        for slot in 0..GEOMETRY.open_slots {
            if self.group.user(slot) == USED_BY_CONTROL {
                self.tell(|reply| Message::CloseShared { group: GROUP, slot, reply }).expect("an answer");
            }
        }
        // The other ends go too, and time passes.
        let now = self.time.now();
        for (token, _) in self.peer.open() {
            self.peer.close(now, token, true);
        }
        let mut left = usize::MAX;
        for _ in 0..400 {
            self.time.0.set(self.time.0.get() + Duration::from_secs(3).as_nanos() as u64);
            for _ in 0..4 {
                self.turn();
            }
            left = self.tell(|reply| Message::CountSockets { group: GROUP, reply }).expect("an answer");
            if left == 0 {
                break;
            }
        }
        let rows = self.tell(|reply| Message::Sockets { reply }).expect("an answer");
        assert_eq!(left, 0, "sockets of a dead program; the stack has {rows:?}");
        assert_eq!(self.tell(|reply| Message::RemoveGroup { group: GROUP, reply }), Ok(true));
    }
}
