//! The control socket and its connections.

use std::collections::HashMap;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::epoll;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, listen, recvmsg, sendmsg, socket_with,
};
use sidestep_shm::wire::{MAX_PACKET_BYTES, Reply, Request};

use super::books::Books;
use super::link::LinkWatch;
use super::neighbors::KernelNeighbors;
use super::requests::Answer;
use crate::clock::{Clock, MonotonicClock};
use crate::shard::mailbox::{Message, Notice, Notices};

/// Descriptors that come with one request at most.
const FDS_PER_REQUEST: usize = 4;
/// Connections to the control socket at most: every process of every group has one, tools a few.
const MAX_CONNECTIONS: usize = 16_384;
const LISTENER_KEY: u64 = 0;
const NOTICES_KEY: u64 = 1;
const NEIGHBORS_KEY: u64 = 2;
const LINK_KEY: u64 = 3;
const FIRST_CONNECTION_KEY: u64 = 16;

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
    pub(super) books: Books,
    pub(super) connections: HashMap<u64, Connection>,
    next_key: u64,
    notices: Arc<Notices>,
    neighbors: Option<KernelNeighbors>,
    link: Option<LinkWatch>,
    /// Told when the device is gone.
    failed: Arc<AtomicBool>,
    pub(super) stop: Arc<AtomicBool>,
}

impl Control {
    /// Opens the control socket at `path` (a leading '@' means the abstract namespace).
    ///
    /// # Errors
    /// What bind(2) and listen(2) say. A socket file that nobody listens on is replaced.
    pub fn open(
        path: &str,
        books: Books,
        notices: Arc<Notices>,
        neighbors: Option<KernelNeighbors>,
        link: Option<LinkWatch>,
        failed: Arc<AtomicBool>,
        stop: Arc<AtomicBool>,
    ) -> io::Result<Self> {
        let listener = open_listener(path)?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let watch =
            |fd: BorrowedFd<'_>, key| epoll::add(&epoll, fd, epoll::EventData::new_u64(key), epoll::EventFlags::IN);
        watch(listener.as_fd(), LISTENER_KEY)?;
        watch(notices.wake_fd(), NOTICES_KEY)?;
        if let Some(link) = &link {
            watch(link.fd(), LINK_KEY)?;
        }
        if let Some(n) = &neighbors {
            watch(n.fd(), NEIGHBORS_KEY)?;
        }
        let (connections, next_key) = (HashMap::new(), FIRST_CONNECTION_KEY);
        Ok(Self { listener, epoll, books, connections, next_key, notices, neighbors, link, failed, stop })
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
                    LINK_KEY => {
                        if self.link.as_mut().is_some_and(LinkWatch::is_gone) {
                            self.failed.store(true, Ordering::Release);
                            self.stop.store(true, Ordering::Release);
                        }
                    }
                    key => self.serve(key),
                }
            }
            self.books.drop_empty_groups();
            self.books.let_ports_go();
            let now = MonotonicClock.now();
            self.books.look_after_transits(now);
            self.books.give_back_lost(now);
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
            self.books.process_died(group, process);
        }
    }

    /// Has the books answer, but for what only a connection can be asked.
    fn handle(&mut self, key: u64, request: Request, fds: Vec<OwnedFd>) {
        if let Request::Inspect { what } = request {
            return self.inspect(key, what);
        }
        let who = self.connections.get(&key).and_then(|c| c.who);
        if who.is_none() && request == Request::Whose {
            return self.whose(key, &fds);
        }
        match self.books.answer(who, request, fds) {
            Answer::Reply(reply) => self.reply(key, reply, &[], &[]),
            Answer::Welcome { process, reply, rules, group } => {
                if let Some(connection) = self.connections.get_mut(&key) {
                    connection.who = Some((group.index, process));
                }
                let mut fds: Vec<BorrowedFd<'_>> = vec![group.memfd()];
                fds.extend(group.doorbells().iter().map(AsFd::as_fd));
                self.reply(key, reply, &rules, &fds);
            }
        }
    }

    /// The group of a socket that somebody shows. Its user is the connection's.
    fn whose(&mut self, key: u64, fds: &[OwnedFd]) {
        let user = self.connections.get(&key).and_then(|c| rustix::net::sockopt::socket_peercred(&c.fd).ok());
        let answer = match (user, fds.first()) {
            (Some(user), Some(placeholder)) => self.books.whose(user.uid.as_raw(), placeholder),
            _ => Err(rustix::io::Errno::BADF),
        };
        let reply = answer.unwrap_or_else(|e| Reply::Failed { errno: e.raw_os_error().cast_unsigned() });
        self.reply(key, reply, &[], &[]);
    }

    /// Sends a reply with a payload and descriptors. A program that doesn't read its replies loses its connection.
    pub(super) fn reply(&mut self, key: u64, reply: Reply, payload: &[u8], fds: &[BorrowedFd<'_>]) {
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

    fn take_notices(&mut self) {
        self.notices.silence();
        while let Some(notice) = self.notices.pop() {
            match notice {
                Notice::Unheld { group, slot } => self.books.unheld(group, slot),
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
            for mailbox in self.books.mailboxes.iter() {
                // A full box loses an update; the stack asks for the neighbour again.
                let _ = mailbox.send(Message::Neighbor(update));
            }
        }
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
