//! A small engine for tests: the control socket on a thread of its own; the shards are played by the test itself.

use core::mem::MaybeUninit;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::collections::HashMap;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType,
};
use sidestep_shm::slot::{kind, request, status, store_address};
use sidestep_shm::wire::{PROTOCOL, Reply, Request, RouteRule};
use sidestep_shm::{Geometry, Region, Slot};

use crate::address::to_wire;
use crate::control::parse_address;
use crate::sys::{now_ns, timespec};

pub const GEOMETRY: Geometry =
    Geometry { shards: 2, open_slots: 64, accept_slots: 64, rx_bytes: 16384, tx_bytes: 16384, pool_bytes: 0 };
/// The only group.
const GROUP: u128 = 0xfeed;

pub struct Fake {
    pub name: String,
    pub inner: Arc<Inner>,
    thread: Option<std::thread::JoinHandle<()>>,
}

pub struct Inner {
    region: Region,
    memfd: OwnedFd,
    doorbells: Vec<OwnedFd>,
    bells: Mutex<HashMap<u32, OwnedFd>>,
    pub stop: AtomicBool,
    /// While set, nothing is answered and no heart beats.
    pub silent: AtomicBool,
    /// Process ids that were announced by Adopt.
    pub adopted: AtomicU32,
    pub processes: AtomicU32,
}

impl Fake {
    pub fn start() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let unique = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("@sidestep-client-test-{}-{unique}", std::process::id());
        let listener = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
        let listener = listener.unwrap();
        rustix::net::bind(&listener, &parse_address(&name).unwrap()).unwrap();
        rustix::net::listen(&listener, 16).unwrap();
        let inner = Arc::new(Inner::new());
        let for_thread = Arc::clone(&inner);
        let thread = std::thread::spawn(move || for_thread.control(&listener));
        Self { name, inner, thread: Some(thread) }
    }

    /// The engine dies: every connection ends.
    pub fn kill(&mut self) {
        self.inner.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.kill();
    }
}

impl core::ops::Deref for Fake {
    type Target = Inner;
    fn deref(&self) -> &Inner {
        &self.inner
    }
}

impl Inner {
    fn new() -> Self {
        let bytes = GEOMETRY.region_bytes();
        let memfd = rustix::fs::memfd_create("test", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        rustix::fs::ftruncate(&memfd, bytes).unwrap();
        rustix::fs::fcntl_add_seals(&memfd, SealFlags::SHRINK | SealFlags::GROW).unwrap();
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        // SAFETY: a new mapping; it is never unmapped.
        let base = unsafe { rustix::mm::mmap(core::ptr::null_mut(), bytes as usize, protection, flags, &memfd, 0) };
        let base = NonNull::new(base.unwrap().cast()).unwrap();
        // SAFETY: fresh, zeroed, mapped for good, sealed.
        let region = unsafe { Region::create(base, bytes, GEOMETRY) }.unwrap();
        region.header().heartbeat.store(now_ns(), Ordering::Relaxed);
        Self {
            region,
            memfd,
            doorbells: (0..GEOMETRY.shards).map(|_| eventfd(0, EventfdFlags::NONBLOCK).unwrap()).collect(),
            bells: Mutex::default(),
            stop: AtomicBool::new(false),
            silent: AtomicBool::new(false),
            adopted: AtomicU32::new(0),
            processes: AtomicU32::new(0),
        }
    }

    // ---- the shards, played by the test ---------------------------------------------------------------------------

    pub fn slot(&self, slot: u32) -> &Slot {
        self.region.slot(slot).unwrap()
    }

    /// Slots marked for a shard.
    pub fn commands(&self, shard: u32) -> Vec<u32> {
        let mut marked = Vec::new();
        self.region.door(shard).unwrap().dirty.harvest(usize::MAX, |s| marked.push(s));
        marked
    }

    /// How often a shard's doorbell rang since the last look.
    pub fn rings(&self, shard: u32) -> u64 {
        let mut count = [0; 8];
        rustix::io::read(&self.doorbells[shard as usize], &mut count).map_or(0, |_| u64::from_ne_bytes(count))
    }

    /// The shard goes to sleep.
    pub fn close_door(&self, shard: u32) {
        self.region.door(shard).unwrap().door.close();
    }

    pub fn notify(&self, slot: u32) {
        self.slot(slot).each_watcher(|queue| {
            let shared = self.region.event_queue(queue).unwrap();
            shared.dirty.mark(slot);
            if shared.door.must_ring()
                && let Some(bell) = self.bells.lock().unwrap().get(&queue)
            {
                let _ = rustix::net::send(bell, &[1], SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
            }
        });
    }

    pub fn add_status(&self, slot: u32, bits: u32) {
        self.slot(slot).status.fetch_or(bits, Ordering::SeqCst);
        self.notify(slot);
    }

    /// A handshake ends well.
    pub fn establish(&self, slot: u32) {
        assert_ne!(self.slot(slot).request.load(Ordering::SeqCst) & request::CONNECT, 0);
        self.add_status(slot, status::OPEN | status::CONNECTED | status::BOUND);
    }

    /// A connection breaks.
    pub fn fail(&self, slot: u32, errno: Errno) {
        self.slot(slot).error.store(errno.raw_os_error() as u32, Ordering::SeqCst);
        self.add_status(slot, status::BROKEN | status::CLOSED);
    }

    /// Bytes arrive.
    pub fn deliver(&self, slot: u32, data: &[u8]) {
        let tail = self.slot(slot).rx_tail.load(Ordering::SeqCst);
        self.region.rx(slot).unwrap().write(tail, data);
        self.slot(slot).rx_tail.store(tail + data.len() as u64, Ordering::Release);
        self.notify(slot);
    }

    /// Takes and acknowledges what was sent.
    pub fn sent(&self, slot: u32) -> Vec<u8> {
        let shared = self.slot(slot);
        let (head, tail) = (shared.tx_head.load(Ordering::SeqCst), shared.tx_tail.load(Ordering::Acquire));
        let mut data = vec![0; (tail - head) as usize];
        self.region.tx(slot).unwrap().read(head, &mut data);
        shared.tx_head.store(tail, Ordering::Release);
        self.notify(slot);
        data
    }

    /// A finished handshake waits on `shard`; its slot.
    pub fn push_connection(&self, listener: u32, shard: u32, position: u64) -> u32 {
        let slot = GEOMETRY.accept_range(shard).start + position as u32;
        let shared = self.slot(slot);
        shared.shard.store(shard, Ordering::Relaxed);
        shared.kind.store(kind::TCP4, Ordering::Relaxed);
        store_address(&shared.remote_address, to_wire("192.0.2.9".parse().unwrap()));
        shared.remote_port.store(5000 + slot, Ordering::Relaxed);
        shared.status.store(status::OPEN | status::CONNECTED | status::BOUND, Ordering::Release);
        self.region.accept_ring(listener, shard).unwrap().push(position, slot);
        self.notify(listener);
        slot
    }

    // ---- the control thread ---------------------------------------------------------------------------------------

    fn control(&self, listener: &OwnedFd) {
        let mut connections: Vec<(OwnedFd, Option<u32>)> = Vec::new();
        while !self.stop.load(Ordering::Relaxed) {
            if self.silent.load(Ordering::Relaxed) {
                std::thread::yield_now();
                continue;
            }
            self.region.header().heartbeat.store(now_ns(), Ordering::Relaxed);
            let mut fds = vec![PollFd::new(listener, PollFlags::IN)];
            fds.extend(connections.iter().map(|(c, _)| PollFd::new(c, PollFlags::IN)));
            let _ = poll(&mut fds, Some(&timespec(5_000_000)));
            let ready: Vec<bool> = fds.iter().map(|f| !f.revents().is_empty()).collect();
            let mut i = 0;
            connections.retain_mut(|(fd, process)| {
                i += 1;
                !ready[i] || self.serve(fd.as_fd(), process)
            });
            if ready[0] {
                connections.push((rustix::net::accept(listener).unwrap(), None));
            }
        }
    }

    /// One request; false at end-of-file.
    fn serve(&self, fd: BorrowedFd<'_>, process: &mut Option<u32>) -> bool {
        let mut packet = [0; 256];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let into = &mut [IoSliceMut::new(&mut packet)];
        let n = rustix::net::recvmsg(fd, into, &mut ancillary, RecvFlags::DONTWAIT).map_or(0, |m| m.bytes);
        let sent = ancillary.drain().find_map(|m| match m {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        let Some(request) = Request::decode(&packet[..n]) else {
            process.iter().for_each(|&p| self.process_ended(p));
            return false;
        };
        let failed = |e: Errno| Reply::Failed { errno: e.raw_os_error() as u32 };
        let reply = match request {
            Request::Hello { protocol, group, .. } => {
                assert_eq!(protocol, PROTOCOL);
                if group != 0 && group != GROUP {
                    self.reply(fd, &failed(Errno::ACCESS), &[], &[]);
                    return true;
                }
                let number = self.processes.fetch_add(1, Ordering::SeqCst);
                *process = Some(number);
                let rule = RouteRule { prefix: to_wire("127.0.0.0".parse().unwrap()), prefix_bits: 104, kernel: true };
                let welcome = Reply::Welcome {
                    process: number,
                    shards: GEOMETRY.shards,
                    region_bytes: GEOMETRY.region_bytes(),
                    group: GROUP,
                    spin_us: 20,
                    rules: 1,
                };
                let fds: Vec<_> = core::iter::once(&self.memfd).chain(&self.doorbells).map(AsFd::as_fd).collect();
                self.reply(fd, &welcome, &rule.encode(), &fds);
                return true;
            }
            // This engine serves one process and what it forks.
            Request::SendAway { .. } | Request::TakeIn | Request::Whose => failed(Errno::NOENT),
            Request::Adopt { pid } => {
                self.adopted.store(pid, Ordering::SeqCst);
                Reply::Done { address: [0; 16], port: 0 }
            }
            Request::EventQueue { queue } => {
                let owner = self.region.event_queue(queue).unwrap().owner.load(Ordering::SeqCst);
                assert_eq!(Some(owner), process.map(|p| p + 1));
                self.bells.lock().unwrap().insert(queue, sent.unwrap());
                Reply::Done { address: [0; 16], port: 0 }
            }
            Request::Bind { slot, kind, address, port, .. } if port != 22 => {
                let port = if port == 0 { 40_000 + slot as u16 } else { port };
                store_address(&self.slot(slot).local_address, address);
                self.slot(slot).local_port.store(port.into(), Ordering::SeqCst);
                let live = if kind >= kind::UDP4 { status::OPEN } else { 0 };
                self.slot(slot).status.fetch_or(status::BOUND | live, Ordering::SeqCst);
                Reply::Done { address, port }
            }
            Request::Bind { .. } => failed(Errno::ADDRINUSE),
            Request::Listen { slot, .. } => {
                (0..GEOMETRY.shards).for_each(|s| self.region.accept_ring(slot, s).unwrap().reset());
                self.add_status(slot, status::OPEN | status::LISTENING);
                let address = sidestep_shm::slot::load_address(&self.slot(slot).local_address);
                Reply::Done { address, port: self.slot(slot).local_port.load(Ordering::SeqCst) as u16 }
            }
            Request::Inspect { .. } | Request::Info { .. } | Request::Unlisten { .. } => failed(Errno::NOTSUP),
        };
        self.reply(fd, &reply, &[], &[]);
        true
    }

    fn reply(&self, to: BorrowedFd<'_>, reply: &Reply, payload: &[u8], fds: &[BorrowedFd<'_>]) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            assert!(ancillary.push(SendAncillaryMessage::ScmRights(fds)));
        }
        let encoded = reply.encode();
        let parts = [IoSlice::new(encoded.as_bytes()), IoSlice::new(payload)];
        let _ = rustix::net::sendmsg(to, &parts, &mut ancillary, SendFlags::NOSIGNAL);
    }

    fn process_ended(&self, process: u32) {
        (0..GEOMETRY.slots()).for_each(|s| {
            self.slot(s).let_go(process);
        });
    }
}
