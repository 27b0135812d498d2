//! An engine without a network: sockets of one group reach each other, byte by byte, through the shared-memory ABI.
//! For tests of what lies on the program's side of that ABI.

pub mod run;

use std::collections::{HashMap, VecDeque};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use sidestep_client::shm::datagram::{HEADER_BYTES, Header};
use sidestep_client::shm::layout::{MAX_EVENT_QUEUES, MAX_PROCESSES};
use sidestep_client::shm::slot::{kind, load_address, option, request, status, store_address};
use sidestep_client::shm::wire::{PROTOCOL, Reply, Request, RouteRule};
use sidestep_client::shm::{Geometry, Region, Slot, lock};

/// The engine's own address, 10.9.8.7; what is not under 10.0.0.0/8 or the wildcard is the kernel's.
const OWN: [u8; 16] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 9, 8, 7];
const GROUP: u128 = 0xfeed;

pub const GEOMETRY: Geometry =
    Geometry { shards: 1, open_slots: 256, accept_slots: 256, rx_bytes: 65_536, tx_bytes: 32_768, pool_bytes: 0 };

/// What the engine knows of a slot.
#[derive(Clone, Copy, Default)]
struct Known {
    open: bool,
    /// The other end.
    peer: Option<u32>,
    /// Listener and position in its accept ring where it waits, or waited.
    queued: Option<(u32, u64)>,
    listening: bool,
    port: u16,
}

struct Engine {
    region: Region,
    memfd: OwnedFd,
    bell: OwnedFd,
    listener: OwnedFd,
    /// Control connections by process number.
    processes: HashMap<u32, OwnedFd>,
    queues: HashMap<u32, OwnedFd>,
    known: Vec<Known>,
    accept_free: VecDeque<u32>,
    accept_tail: HashMap<u32, u64>,
    next_port: u16,
    work: VecDeque<u32>,
}

/// A running engine; stops when dropped.
pub struct Running {
    pub socket: String,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<Vec<String>>>,
}

impl Running {
    pub fn start(name: &str) -> Self {
        let socket = format!("@ss-preload-{name}-{}", std::process::id());
        let stop = Arc::new(AtomicBool::new(false));
        let mut engine = Engine::new(&socket[1..]);
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || engine.run(&stopped));
        Self { socket, stop, thread: Some(thread) }
    }

    /// Stops it; what is left open that should not be.
    pub fn finish(mut self) -> Vec<String> {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.take().map(|t| t.join().expect("engine")).unwrap_or_default()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn now_ns() -> u64 {
    sidestep_client::now_ns()
}

impl Engine {
    fn new(name: &str) -> Self {
        let bytes = GEOMETRY.region_bytes();
        let flags = rustix::fs::MemfdFlags::CLOEXEC | rustix::fs::MemfdFlags::ALLOW_SEALING;
        let memfd = rustix::fs::memfd_create("loopback", flags).unwrap();
        rustix::fs::ftruncate(&memfd, bytes).unwrap();
        rustix::fs::fcntl_add_seals(&memfd, rustix::fs::SealFlags::SHRINK | rustix::fs::SealFlags::GROW).unwrap();
        use rustix::mm::{MapFlags, ProtFlags};
        // SAFETY: a new mapping, kept until the process ends.
        let base = unsafe {
            let prot = ProtFlags::READ | ProtFlags::WRITE;
            rustix::mm::mmap(std::ptr::null_mut(), bytes as usize, prot, MapFlags::SHARED, &memfd, 0).unwrap()
        };
        // SAFETY: fresh, zeroed, page-aligned, sealed.
        let region = unsafe { Region::create(NonNull::new(base.cast()).unwrap(), bytes, GEOMETRY) }.unwrap();
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let listener = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        rustix::net::bind(&listener, &SocketAddrUnix::new_abstract_name(name.as_bytes()).unwrap()).unwrap();
        rustix::net::listen(&listener, 64).unwrap();
        use rustix::event::{EventfdFlags, eventfd};
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
        region.header().heartbeat.store(now_ns(), Ordering::SeqCst);
        Self {
            region,
            memfd,
            bell,
            listener,
            processes: HashMap::new(),
            queues: HashMap::new(),
            known: vec![Known::default(); GEOMETRY.slots() as usize],
            accept_free: GEOMETRY.accept_range(0).collect(),
            accept_tail: HashMap::new(),
            next_port: 40_000,
            work: VecDeque::new(),
        }
    }

    fn slot(&self, n: u32) -> &Slot {
        self.region.slot(n).unwrap()
    }

    fn run(&mut self, stop: &AtomicBool) -> Vec<String> {
        while !stop.load(Ordering::SeqCst) {
            self.region.header().heartbeat.store(now_ns(), Ordering::SeqCst);
            self.control();
            let door = self.region.door(0).unwrap();
            let work = &mut self.work;
            door.dirty.harvest(usize::MAX, |s| work.push_back(s));
            while let Some(s) = self.work.pop_front() {
                if s < GEOMETRY.slots() {
                    self.serve(s);
                }
            }
            let door = self.region.door(0).unwrap();
            door.door.close();
            if door.dirty.is_empty() {
                self.sleep();
            }
            door.door.open();
        }
        self.left_over()
    }

    fn left_over(&self) -> Vec<String> {
        let slots = (0..GEOMETRY.slots()).filter(|&s| self.slot(s).is_held());
        slots.map(|s| format!("slot {s} is still held, port {}", self.known[s as usize].port)).collect()
    }

    fn sleep(&self) {
        let mut fds = vec![PollFd::new(&self.bell, PollFlags::IN), PollFd::new(&self.listener, PollFlags::IN)];
        fds.extend(self.processes.values().map(|c| PollFd::new(c, PollFlags::IN)));
        let _ = rustix::event::poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 50_000_000 }));
        let _ = rustix::io::read(&self.bell, &mut [0u8; 8]);
    }

    // ---- control --------------------------------------------------------------------------------------------------

    fn control(&mut self) {
        while let Ok(connection) = rustix::net::accept_with(&self.listener, SocketFlags::CLOEXEC) {
            // The first packet says hello; it comes right behind the connection.
            let free = (0..MAX_PROCESSES).find(|p| !self.processes.contains_key(p)).unwrap();
            if let Some((Request::Hello { protocol: PROTOCOL, .. }, _)) = receive(&connection, RecvFlags::empty()) {
                self.welcome(&connection, free);
                self.processes.insert(free, connection);
            }
        }
        let processes: Vec<u32> = self.processes.keys().copied().collect();
        for process in processes {
            loop {
                let connection = &self.processes[&process];
                let mut look = [0u8; 1];
                let peek = RecvFlags::PEEK | RecvFlags::DONTWAIT;
                match rustix::net::recv(connection, &mut look, peek) {
                    Ok((_, 0)) => self.gone(process),
                    Ok(_) => {
                        let (request, fd) = receive(connection, RecvFlags::empty()).expect("a request");
                        let reply = self.answer(request, fd);
                        let connection = &self.processes[&process];
                        let _ = rustix::net::send(connection, reply.encode().as_bytes(), SendFlags::NOSIGNAL);
                        continue;
                    }
                    Err(rustix::io::Errno::AGAIN) => {}
                    Err(_) => self.gone(process),
                }
                break;
            }
        }
    }

    fn welcome(&self, connection: &OwnedFd, process: u32) {
        let rules = [
            RouteRule { prefix: [0; 16], prefix_bits: 0, kernel: true },
            RouteRule { prefix: OWN, prefix_bits: 104, kernel: false },
        ];
        let reply = Reply::Welcome {
            process,
            shards: 1,
            region_bytes: GEOMETRY.region_bytes(),
            group: GROUP,
            spin_us: 20,
            rules: rules.len() as u32,
        };
        let mut bytes = reply.encode().as_bytes().to_vec();
        rules.iter().for_each(|r| bytes.extend_from_slice(&r.encode()));
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let fds = [self.memfd.as_fd(), self.bell.as_fd()];
        ancillary.push(SendAncillaryMessage::ScmRights(&fds));
        let _ = rustix::net::sendmsg(connection, &[IoSlice::new(&bytes)], &mut ancillary, SendFlags::NOSIGNAL);
    }

    fn answer(&mut self, request: Request, fd: Option<OwnedFd>) -> Reply {
        let failed = |errno: i32| Reply::Failed { errno: errno as u32 };
        match request {
            Request::Adopt { .. } => Reply::Done { address: [0; 16], port: 0 },
            Request::EventQueue { queue } => {
                self.queues.insert(queue, fd.expect("a descriptor"));
                Reply::Done { address: [0; 16], port: 0 }
            }
            Request::Bind { slot, kind, options, address, port } => {
                let port = if port == 0 { self.fresh_port() } else { port };
                let datagram = kind >= kind::UDP4;
                // UDP sockets share a port with SO_REUSEADDR too.
                let sharing = option::REUSE_PORT | if datagram { option::REUSE_ADDRESS } else { 0 };
                let taken = (0..GEOMETRY.slots()).any(|other| {
                    let theirs = self.slot(other);
                    other != slot
                        && self.known[other as usize].open
                        && self.known[other as usize].port == port
                        // Closed: the mark may still be on its way, but the port is free at once, as in Linux.
                        && theirs.is_held()
                        && (datagram || theirs.status.load(Ordering::SeqCst) & status::CONNECTED == 0)
                        && (theirs.kind.load(Ordering::SeqCst) >= kind::UDP4) == datagram
                        && theirs.options.load(Ordering::SeqCst) & options & sharing == 0
                });
                if taken {
                    return failed(libc::EADDRINUSE);
                }
                self.known[slot as usize] = Known { open: true, port, ..Known::default() };
                let s = self.slot(slot);
                store_address(&s.local_address, address);
                s.local_port.store(u32::from(port), Ordering::SeqCst);
                s.status.fetch_or(status::OPEN | status::BOUND, Ordering::SeqCst);
                Reply::Done { address, port }
            }
            Request::Listen { slot, .. } => {
                self.known[slot as usize].listening = true;
                if !self.accept_tail.contains_key(&slot) {
                    self.region.accept_ring(slot, 0).unwrap().reset();
                    self.accept_tail.insert(slot, 0);
                }
                let s = self.slot(slot);
                s.status.fetch_or(status::LISTENING, Ordering::SeqCst);
                Reply::Done { address: load_address(&s.local_address), port: self.known[slot as usize].port }
            }
            _ => failed(libc::EPROTO),
        }
    }

    fn fresh_port(&mut self) -> u16 {
        self.next_port += 1;
        self.next_port
    }

    fn gone(&mut self, process: u32) {
        self.processes.remove(&process);
        for queue in 0..MAX_EVENT_QUEUES {
            let shared = self.region.event_queue(queue).unwrap();
            if shared.owner.load(Ordering::SeqCst) == process + 1 {
                shared.owner.store(0, Ordering::SeqCst);
                self.queues.remove(&queue);
            }
        }
        for n in 0..GEOMETRY.slots() {
            let s = self.slot(n);
            for word in [&s.rx_lock, &s.tx_lock, &s.call_lock] {
                lock::break_for(word, process);
            }
            if s.let_go(process) {
                self.work.push_back(n);
            }
        }
    }

    // ---- sockets --------------------------------------------------------------------------------------------------

    fn notify(&self, n: u32) {
        self.slot(n).each_watcher(|queue| {
            let Some(shared) = self.region.event_queue(queue) else { return };
            shared.dirty.mark(n);
            if shared.door.must_ring()
                && let Some(bell) = self.queues.get(&queue)
            {
                let _ = rustix::net::send(bell, &[1], SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
            }
        });
    }

    fn serve(&mut self, n: u32) {
        let region = self.region;
        let s = region.slot(n).unwrap();
        let asked = s.request.load(Ordering::SeqCst);
        let kind = s.kind.load(Ordering::SeqCst);
        if !s.is_held() && !self.is_queued(n) {
            self.close(n);
            return;
        }
        if kind >= kind::UDP4 {
            self.datagrams(n);
            return;
        }
        let began = status::BROKEN | status::CONNECTED;
        let fresh = self.known[n as usize].peer.is_none() && s.status.load(Ordering::SeqCst) & began == 0;
        if asked & request::CONNECT != 0 && fresh {
            self.connect(n);
        }
        if let Some(peer) = self.known[n as usize].peer {
            self.carry(n, peer);
            self.carry(peer, n);
        } else if s.status.load(Ordering::SeqCst) & (status::CONNECTED | status::BROKEN) == status::CONNECTED
            && s.tx_tail.load(Ordering::SeqCst) != s.tx_head.load(Ordering::SeqCst)
        {
            // Bytes for a peer that is gone.
            s.error.store(libc::ECONNRESET as u32, Ordering::SeqCst);
            s.status.fetch_or(status::BROKEN | status::CLOSED, Ordering::SeqCst);
            self.notify(n);
        }
    }

    /// Whether nobody has accepted it yet.
    fn is_queued(&self, n: u32) -> bool {
        self.known[n as usize].queued.is_some_and(|(listener, at)| {
            self.accept_tail.contains_key(&listener) && self.region.accept_ring(listener, 0).unwrap().head() <= at
        })
    }

    fn connect(&mut self, n: u32) {
        let region = self.region;
        let s = region.slot(n).unwrap();
        let port = s.wanted_remote_port.load(Ordering::SeqCst) as u16;
        let listener = (0..GEOMETRY.slots()).find(|&l| {
            self.known[l as usize].listening && self.known[l as usize].port == port && self.slot(l).is_held()
        });
        let accepted = listener.and_then(|_| self.accept_free.pop_front());
        let (Some(listener), Some(new)) = (listener, accepted) else {
            s.error.store(libc::ECONNREFUSED as u32, Ordering::SeqCst);
            s.status.fetch_or(status::OPEN | status::BROKEN | status::CLOSED, Ordering::SeqCst);
            self.known[n as usize].open = true;
            self.notify(n);
            return;
        };
        let local_port = match self.known[n as usize].port {
            0 => self.fresh_port(),
            port => port,
        };
        let a = region.slot(new).unwrap();
        a.reset();
        let v6 = self.slot(listener).kind.load(Ordering::SeqCst) == kind::TCP6;
        a.kind.store(if v6 { kind::TCP6 } else { kind::TCP4 }, Ordering::SeqCst);
        for (slot, (local, remote)) in [(s, (local_port, port)), (a, (port, local_port))] {
            store_address(&slot.local_address, OWN);
            store_address(&slot.remote_address, OWN);
            slot.local_port.store(u32::from(local), Ordering::SeqCst);
            slot.remote_port.store(u32::from(remote), Ordering::SeqCst);
            slot.tcp_state.store(1, Ordering::SeqCst);
            slot.send_mss.store(1460, Ordering::SeqCst);
            slot.status.fetch_or(status::OPEN | status::CONNECTED, Ordering::SeqCst);
        }
        self.known[n as usize] = Known { open: true, peer: Some(new), port: local_port, ..Known::default() };
        let tail = self.accept_tail.get_mut(&listener).unwrap();
        let queued = Some((listener, *tail));
        self.known[new as usize] = Known { open: true, peer: Some(n), port, queued, ..Known::default() };
        self.region.accept_ring(listener, 0).unwrap().push(*tail, new);
        *tail += 1;
        self.notify(n);
        self.notify(listener);
    }

    /// Moves bytes, and the end of them, from one end to the other.
    fn carry(&mut self, from: u32, to: u32) {
        if self.known[from as usize].peer != Some(to) || self.known[to as usize].peer != Some(from) {
            return;
        }
        let (a, b) = (self.region.slot(from).unwrap(), self.region.slot(to).unwrap());
        let (tx, rx) = (self.region.tx(from).unwrap(), self.region.rx(to).unwrap());
        let head = a.tx_head.load(Ordering::SeqCst);
        let tail = a.tx_tail.load(Ordering::SeqCst);
        let at = b.rx_tail.load(Ordering::SeqCst);
        let room = rx.capacity() as u64 - (at - b.rx_head.load(Ordering::SeqCst));
        let n = room.min(tail - head);
        if n > 0 {
            let mut bytes = vec![0; n as usize];
            tx.read(head, &mut bytes);
            rx.write(at, &bytes);
            b.rx_tail.store(at + n, Ordering::SeqCst);
            a.tx_head.store(head + n, Ordering::SeqCst);
            self.notify(from);
            self.notify(to);
        }
        let finish = a.request.load(Ordering::SeqCst) & request::FINISH != 0;
        if finish && head + n == tail && a.status.load(Ordering::SeqCst) & status::FINISHED == 0 {
            a.status.fetch_or(status::FINISHED, Ordering::SeqCst);
            b.status.fetch_or(status::PEER_FINISHED, Ordering::SeqCst);
            self.notify(from);
            self.notify(to);
        }
    }

    fn close(&mut self, n: u32) {
        let known = self.known[n as usize];
        let region = self.region;
        let s = region.slot(n).unwrap();
        if s.kind.load(Ordering::SeqCst) == 0 {
            return;
        }
        if s.kind.load(Ordering::SeqCst) >= kind::UDP4 {
            self.datagrams(n);
        }
        if let Some(peer) = known.peer {
            self.carry(n, peer);
            let unread = s.rx_tail.load(Ordering::SeqCst) != s.rx_head.load(Ordering::SeqCst);
            let abort = s.request.load(Ordering::SeqCst) & request::ABORT != 0 || s.linger.load(Ordering::SeqCst) == 1;
            let b = region.slot(peer).unwrap();
            if unread || abort {
                b.error.store(libc::ECONNRESET as u32, Ordering::SeqCst);
                b.status.fetch_or(status::BROKEN | status::CLOSED, Ordering::SeqCst);
            } else if s.tx_head.load(Ordering::SeqCst) != s.tx_tail.load(Ordering::SeqCst) {
                // The rest goes when the peer has read: it marks itself then.
                self.work_later(n);
                return;
            } else {
                b.status.fetch_or(status::PEER_FINISHED, Ordering::SeqCst);
                s.status.fetch_or(status::FINISHED, Ordering::SeqCst);
            }
            self.known[peer as usize].peer = None;
            self.work_later(peer);
            self.notify(peer);
        }
        self.accept_tail.remove(&n);
        self.known[n as usize] = Known::default();
        s.reset();
        if n < GEOMETRY.open_slots {
            self.region.free_slots().mark(n);
        } else {
            self.accept_free.push_back(n);
        }
    }

    fn work_later(&self, n: u32) {
        self.region.door(0).unwrap().dirty.mark(n);
        std::thread::yield_now();
    }

    fn datagrams(&mut self, n: u32) {
        let a = self.region.slot(n).unwrap();
        let tx = self.region.tx(n).unwrap();
        let version = a.options_version.load(Ordering::SeqCst);
        if version != a.seen_version.load(Ordering::SeqCst) {
            if a.wanted_remote_port.load(Ordering::SeqCst) != 0 {
                a.status.fetch_or(status::CONNECTED, Ordering::SeqCst);
            }
            a.seen_version.store(version, Ordering::SeqCst);
            self.notify(n);
        }
        loop {
            let head = a.tx_head.load(Ordering::SeqCst);
            if head == a.tx_tail.load(Ordering::SeqCst) {
                break;
            }
            let mut bytes = [0; HEADER_BYTES];
            tx.read(head, &mut bytes);
            let header = Header::decode(&bytes).expect("a header");
            let mut payload = vec![0; header.len as usize];
            tx.read(head + HEADER_BYTES as u64, &mut payload);
            a.tx_head.store(head + Header::record_bytes(payload.len()), Ordering::SeqCst);
            let from_port = self.known[n as usize].port;
            // A socket that is connected to the sender comes first, one that is connected elsewhere is out.
            let to = (0..GEOMETRY.slots())
                .filter_map(|t| {
                    let s = self.slot(t);
                    let here = self.known[t as usize].port == header.remote_port
                        && s.kind.load(Ordering::SeqCst) >= kind::UDP4
                        && s.is_held();
                    let connected = s.request.load(Ordering::SeqCst) & request::CONNECT != 0;
                    let fits = s.wanted_remote_port.load(Ordering::SeqCst) == u32::from(from_port);
                    (here && (!connected || fits)).then_some((!connected, t))
                })
                .min()
                .map(|(_, t)| t);
            if let Some(to) = to {
                self.deliver(to, self.known[n as usize].port, &payload);
            } else {
                a.error.store(libc::ECONNREFUSED as u32, Ordering::SeqCst);
            }
        }
        self.notify(n);
    }

    fn deliver(&self, to: u32, from_port: u16, payload: &[u8]) {
        let (b, rx) = (self.slot(to), self.region.rx(to).unwrap());
        let at = b.rx_tail.load(Ordering::SeqCst);
        let room = rx.capacity() as u64 - (at - b.rx_head.load(Ordering::SeqCst));
        let record = Header::record_bytes(payload.len());
        if record > room {
            return;
        }
        let header = Header {
            len: payload.len() as u32,
            remote: OWN,
            remote_port: from_port,
            local: OWN,
            ttl: 64,
            ..Header::default()
        };
        rx.write(at, &header.encode());
        rx.write(at + HEADER_BYTES as u64, payload);
        b.rx_tail.store(at + record, Ordering::SeqCst);
        self.notify(to);
    }
}

/// One request and the descriptor with it.
fn receive(connection: &OwnedFd, flags: RecvFlags) -> Option<(Request, Option<OwnedFd>)> {
    let mut bytes = [0; 256];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let n = rustix::net::recvmsg(
        connection,
        &mut [IoSliceMut::new(&mut bytes)],
        &mut ancillary,
        flags | RecvFlags::CMSG_CLOEXEC,
    )
    .ok()?
    .bytes;
    let fd = ancillary.drain().find_map(|m| match m {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    Some((Request::decode(&bytes[..n])?, fd))
}
