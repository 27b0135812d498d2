//! The control socket and its connections.

use std::collections::HashMap;
use std::io;
use std::mem::MaybeUninit;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex};

use rustix::event::epoll;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, listen, recvmsg, sendmsg, socket_with,
};
use sidestep_shm::Geometry;
use sidestep_shm::layout::MAX_PROCESSES;
use sidestep_shm::wire::{MAX_PACKET_BYTES, Reply, Request, RouteRule};

use sidestep_stack::ListenAddress;

use super::SHARD_PATIENCE;
use super::group::Group;
use super::neighbors::KernelNeighbors;
use super::ports::{Binding, PortTable, Protocol};
use crate::shard::mailbox::{Mailbox, Message, Notice, Notices};
use crate::xdp::Steering;

/// Descriptors that come with one request at most.
const FDS_PER_REQUEST: usize = 4;
/// Connections to the control socket at most: every process of every group has one, tools a few.
const MAX_CONNECTIONS: usize = 16_384;
const LISTENER_KEY: u64 = 0;
const NOTICES_KEY: u64 = 1;
const NEIGHBORS_KEY: u64 = 2;
const FIRST_CONNECTION_KEY: u64 = 16;

/// What the control thread is made with.
#[derive(Debug, Clone)]
pub struct ControlSettings {
    pub geometry: Geometry,
    pub spin_us: u32,
    pub rules: Vec<RouteRule>,
    /// Addresses that a program may bind to.
    pub addresses: Vec<IpAddr>,
    /// Whether 127.0.0.0/8 and ::1 live in the stack.
    pub loopback_in_stack: bool,
    /// First and last port for bind() to port 0.
    pub ephemeral_ports: (u16, u16),
    /// The machine's own address: ports are marked for the XDP program and kept from the kernel's programs.
    pub shared_address: bool,
    /// Ports that programs of the engine may not have.
    pub kernel_ports: Vec<(u16, u16)>,
    /// Facts for `stats`, as JSON.
    pub facts: serde_json::Value,
}

/// Numbers that others want to see without asking.
#[derive(Debug, Default)]
pub struct EngineGauges {
    pub programs: AtomicUsize,
}

pub(super) struct GroupState {
    pub group: Arc<Group>,
    pub pids: Vec<Option<u32>>,
    pub books: HashMap<u32, Book>,
}

/// What the control thread knows of a slot.
#[derive(Debug, Clone, Copy)]
pub(super) struct Book {
    pub protocol: Protocol,
    /// As the program gave it.
    pub address: [u8; 16],
    pub at: ListenAddress,
    pub reuse_port: bool,
    pub listening: bool,
}

pub(super) struct Connection {
    fd: OwnedFd,
    /// Group and process, once it said hello.
    pub(super) who: Option<(u32, u32)>,
}

impl Connection {
    pub(super) fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    /// A second descriptor for the same connection.
    pub(super) fn duplicate(&self) -> Option<OwnedFd> {
        self.fd.try_clone().ok()
    }
}

/// The control thread's state.
pub struct Control {
    listener: OwnedFd,
    epoll: OwnedFd,
    pub(super) settings: ControlSettings,
    pub(super) connections: HashMap<u64, Connection>,
    next_key: u64,
    pub(super) groups: Vec<Option<GroupState>>,
    pub(super) ports: PortTable,
    pub(super) mailboxes: Arc<[Mailbox]>,
    notices: Arc<Notices>,
    pub(super) steering: Option<Arc<Mutex<Steering>>>,
    neighbors: Option<KernelNeighbors>,
    pub(super) gauges: Arc<EngineGauges>,
    pub(super) stop: Arc<AtomicBool>,
    /// Ports of a shared address that nobody claims any more, but connections may still use.
    pub(super) leaving: Vec<(Protocol, u16, Binding)>,
    /// State of the port chooser; any number will do, but two engines should not have the same.
    pub(super) random: u64,
}

impl Control {
    /// Opens the control socket at `path` (a leading '@' means the abstract namespace).
    ///
    /// # Errors
    /// What bind(2) and listen(2) say. A socket file that nobody listens on is replaced.
    #[allow(clippy::too_many_arguments)]
    pub fn open(
        path: &str,
        settings: ControlSettings,
        mailboxes: Arc<[Mailbox]>,
        notices: Arc<Notices>,
        steering: Option<Arc<Mutex<Steering>>>,
        neighbors: Option<KernelNeighbors>,
        gauges: Arc<EngineGauges>,
        stop: Arc<AtomicBool>,
        random: u64,
    ) -> io::Result<Self> {
        let listener = open_listener(path)?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let watch = |fd: std::os::fd::BorrowedFd<'_>, key| {
            epoll::add(&epoll, fd, epoll::EventData::new_u64(key), epoll::EventFlags::IN)
        };
        watch(listener.as_fd(), LISTENER_KEY)?;
        watch(notices.wake_fd(), NOTICES_KEY)?;
        if let Some(n) = &neighbors {
            watch(n.fd(), NEIGHBORS_KEY)?;
        }
        Ok(Self {
            listener,
            epoll,
            settings,
            connections: HashMap::new(),
            next_key: FIRST_CONNECTION_KEY,
            groups: Vec::new(),
            ports: PortTable::default(),
            mailboxes,
            notices,
            steering,
            neighbors,
            gauges,
            stop,
            leaving: Vec::new(),
            random,
        })
    }

    /// Serves until told to stop.
    pub fn run(mut self) {
        if let Some(n) = &mut self.neighbors {
            let updates = n.dump();
            self.spread_neighbors(updates);
        }
        while !self.stop.load(Ordering::Acquire) {
            let mut events =
                [epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) }; 64];
            let tick = rustix::event::Timespec { tv_sec: 0, tv_nsec: 200_000_000 };
            let count = epoll::wait(&self.epoll, events.as_mut_slice(), Some(&tick)).unwrap_or(0);
            for event in &events[..count] {
                match event.data.u64() {
                    LISTENER_KEY => self.accept(),
                    NOTICES_KEY => self.take_notices(),
                    NEIGHBORS_KEY => {
                        let updates = self.neighbors.as_mut().map(KernelNeighbors::changes).unwrap_or_default();
                        self.spread_neighbors(updates);
                    }
                    key => self.serve(key),
                }
            }
            self.drop_empty_groups();
            self.let_ports_go();
        }
    }

    fn accept(&mut self) {
        while let Ok(fd) = accept_with(&self.listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
            if self.connections.len() >= MAX_CONNECTIONS {
                tracing::warn!("more than {MAX_CONNECTIONS} control connections: one more was refused");
                continue;
            }
            let key = self.next_key;
            if epoll::add(&self.epoll, &fd, epoll::EventData::new_u64(key), epoll::EventFlags::IN).is_ok() {
                self.next_key += 1;
                self.connections.insert(key, Connection { fd, who: None });
            }
        }
    }

    /// Reads one request of a connection and answers it; at its end, cleans up after its process.
    fn serve(&mut self, key: u64) {
        let Some(connection) = self.connections.get(&key) else { return };
        match receive(&connection.fd) {
            Ok(Some((packet, fds))) => match Request::decode(&packet) {
                Some(request) => self.handle(key, request, fds),
                None => self.hang_up(key),
            },
            Ok(None) => self.hang_up(key),
            Err(e) if e == rustix::io::Errno::AGAIN || e == rustix::io::Errno::INTR => {}
            Err(_) => self.hang_up(key),
        }
    }

    fn hang_up(&mut self, key: u64) {
        let Some(connection) = self.connections.remove(&key) else { return };
        let _ = epoll::delete(&self.epoll, &connection.fd);
        if let Some((group, process)) = connection.who {
            self.process_died(group, process);
        }
    }

    /// Sends a reply with a payload and descriptors. A program that doesn't read its replies loses its connection.
    pub(super) fn reply(&mut self, key: u64, reply: Reply, payload: &[u8], fds: &[std::os::fd::BorrowedFd<'_>]) {
        let Some(connection) = self.connections.get(&key) else { return };
        let head = reply.encode();
        let parts = [io::IoSlice::new(head.as_bytes()), io::IoSlice::new(payload)];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(65))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let pushed = fds.is_empty() || control.push(SendAncillaryMessage::ScmRights(fds));
        let sent = sendmsg(&connection.fd, &parts, &mut control, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
        if !pushed || sent.is_err() {
            self.hang_up(key);
        }
    }

    // ---- shards ---------------------------------------------------------------------------------------------------

    /// Asks one shard and waits for its answer.
    pub(super) fn ask<T>(&self, shard: usize, make: impl FnOnce(SyncSender<T>) -> Message) -> Option<T> {
        let answer = self.mailboxes.get(shard)?.ask(make, SHARD_PATIENCE);
        if answer.is_none() {
            tracing::error!(shard, "a shard doesn't answer");
        }
        answer
    }

    /// Asks every shard; None for those that don't answer.
    pub(super) fn ask_all<T>(&self, make: impl Fn(SyncSender<T>) -> Message) -> Vec<Option<T>> {
        (0..self.mailboxes.len()).map(|shard| self.ask(shard, &make)).collect()
    }

    fn take_notices(&mut self) {
        self.notices.silence();
        while let Some(notice) = self.notices.pop() {
            match notice {
                Notice::Unheld { group, slot } => self.unheld(group, slot),
                Notice::NeighborWanted { address } => {
                    if let Some(n) = &mut self.neighbors {
                        n.resolve(address);
                    }
                }
            }
        }
    }

    fn spread_neighbors(&mut self, updates: Vec<sidestep_stack::NeighborUpdate>) {
        for update in updates {
            for mailbox in self.mailboxes.iter() {
                // A full box loses an update; the stack asks for the neighbour again.
                let _ = mailbox.send(Message::Neighbor(update));
            }
        }
    }

    // ---- groups ---------------------------------------------------------------------------------------------------

    pub(super) fn group(&self, group: u32) -> Option<&GroupState> {
        self.groups.get(group as usize)?.as_ref()
    }

    pub(super) fn group_mut(&mut self, group: u32) -> Option<&mut GroupState> {
        self.groups.get_mut(group as usize)?.as_mut()
    }

    /// Finds the group of a token, or makes it on every shard.
    pub(super) fn group_of(&mut self, token: u128) -> io::Result<u32> {
        let known = self.groups.iter().flatten().find(|g| token != 0 && g.group.token == token);
        if let Some(known) = known {
            return Ok(known.group.index);
        }
        let index = self.groups.iter().position(Option::is_none).unwrap_or(self.groups.len());
        let token = if token == 0 { u128::from(self.draw()) << 64 | u128::from(self.draw()) } else { token };
        let group = Arc::new(Group::new(index as u32, token, self.settings.geometry)?);
        let added = self.ask_all(|reply| Message::AddGroup { group: Arc::clone(&group), reply });
        if added.iter().any(Option::is_none) {
            return Err(io::Error::other("a shard doesn't answer"));
        }
        let state = GroupState { group, pids: vec![None; MAX_PROCESSES as usize], books: HashMap::new() };
        if index == self.groups.len() {
            self.groups.push(Some(state));
        } else {
            self.groups[index] = Some(state);
        }
        Ok(index as u32)
    }

    /// What a process held is let go, its event queues are free, its locks open.
    pub(super) fn process_died(&mut self, group: u32, process: u32) {
        let Some(state) = self.group_mut(group) else { return };
        if let Some(pid) = state.pids.get_mut(process as usize) {
            *pid = None;
        }
        let last = state.pids.iter().all(Option::is_none);
        let shared = Arc::clone(&state.group);
        let region = shared.region();
        if let Some(p) = region.process(process) {
            p.pid.store(0, Ordering::Release);
        }
        for queue in 0..sidestep_shm::layout::MAX_EVENT_QUEUES {
            let Some(q) = region.event_queue(queue) else { break };
            if q.owner.load(Ordering::Acquire) == process + 1 {
                self.ask_all(|reply| Message::EventQueue { group, queue, doorbell: None, reply });
                q.door.open();
                q.dirty.clear();
                q.owner.store(0, Ordering::Release);
            }
        }
        let held: Vec<u32> = self.group(group).map(|s| s.books.keys().copied().collect()).unwrap_or_default();
        for slot in held {
            if let Some(shared_slot) = region.slot(slot) {
                shared_slot.break_locks(process);
                shared_slot.let_go(process);
                if last {
                    shared_slot.let_all_go();
                }
            }
        }
        self.ask_all(|reply| Message::ProcessDied { group, process, last, reply });
        let unheld: Vec<u32> = self
            .group(group)
            .map(|s| s.books.keys().copied().filter(|&n| region.slot(n).is_some_and(|s| !s.is_held())).collect())
            .unwrap_or_default();
        for slot in unheld {
            self.unheld(group, slot);
        }
        self.count_programs();
    }

    pub(super) fn count_programs(&self) {
        let programs = self.groups.iter().flatten().map(|g| g.pids.iter().flatten().count()).sum();
        self.gauges.programs.store(programs, Ordering::Release);
    }

    /// Groups that have neither processes nor sockets give their memory back.
    fn drop_empty_groups(&mut self) {
        for index in 0..self.groups.len() {
            let Some(state) = &self.groups[index] else { continue };
            if state.pids.iter().any(Option::is_some) || !state.books.is_empty() {
                continue;
            }
            let group = index as u32;
            let counts = self.ask_all(|reply| Message::CountSockets { group, reply });
            if counts.iter().all(|c| *c == Some(0)) {
                self.ask_all(|reply| Message::RemoveGroup { group, reply });
                self.groups[index] = None;
            }
        }
    }

    /// A number nobody can guess from outside: xorshift over a seed from the kernel.
    pub(super) fn draw(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }
}

fn open_listener(path: &str) -> io::Result<OwnedFd> {
    let address = unix_address(path)?;
    if !path.starts_with('@') {
        let path = std::path::Path::new(path);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        if path.exists() {
            // A live engine answers; a dead one's file is in the way.
            if super::inspect::connect(&address).is_ok() {
                return Err(rustix::io::Errno::ADDRINUSE.into());
            }
            std::fs::remove_file(path)?;
        }
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let listener = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    bind(&listener, &address)?;
    if !path.starts_with('@') {
        // Programs drop privileges before they fork (nginx): any user may connect; a group is joined by its number.
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o666))?;
    }
    listen(&listener, 512)?;
    Ok(listener)
}

pub(super) fn unix_address(path: &str) -> io::Result<SocketAddrUnix> {
    Ok(match path.strip_prefix('@') {
        Some(name) => SocketAddrUnix::new_abstract_name(name.as_bytes())?,
        None => SocketAddrUnix::new(path)?,
    })
}

/// A packet, and the descriptors that came with it.
type Packet = (Vec<u8>, Vec<OwnedFd>);

/// One packet; None at the end of the connection.
fn receive(fd: &OwnedFd) -> Result<Option<Packet>, rustix::io::Errno> {
    let mut bytes = [0; MAX_PACKET_BYTES];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_PER_REQUEST))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [io::IoSliceMut::new(&mut bytes)];
    let got = recvmsg(fd, &mut parts, &mut control, RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC)?;
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            fds.extend(received);
        }
    }
    let len = got.bytes;
    Ok((len > 0).then(|| (bytes[..len].to_vec(), fds)))
}
