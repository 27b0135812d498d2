//! The control connection: one packet a request, one packet a reply, and end-of-file when the other side is gone.

use core::mem::MaybeUninit;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use sidestep_shm::layout::{GeometryError, MAX_SHARDS};
use sidestep_shm::wire::{MAX_PACKET_BYTES, PROTOCOL, Reply, Request};

use crate::sys::{Fd, move_high, now_ns, timespec};

/// Longest wait for a reply, in nanoseconds: as long as an engine may be silent before it counts as dead.
pub(crate) const REPLY_WAIT_NS: u64 = sidestep_shm::layout::ENGINE_SILENT_NS + 1_000_000_000;

/// Why a process could not attach: what failed, on what, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// No address of a Unix socket: too long, or with a NUL in it.
    #[error("control socket {socket:?}: {cause}; use a path of at most 107 bytes, or '@' and a name")]
    Address { socket: String, cause: Errno },
    /// Nothing answers there.
    #[error(
        "connect to the engine at {socket:?}: {cause}; is it running there (`sidestep up`), and may this user use the socket?"
    )]
    Connect { socket: String, cause: Errno },
    /// The connection broke during the handshake.
    #[error(
        "attach to the engine at {socket:?}: {cause}; the engine closed the connection or does not answer: see its log"
    )]
    Handshake { socket: String, cause: Errno },
    /// The engine said no.
    #[error(
        "the engine at {socket:?} refused to attach: {cause}; EPROTONOSUPPORT means another version (this library speaks {PROTOCOL}), EUSERS a group that is full"
    )]
    Refused { socket: String, cause: Errno },
    /// The reply was no valid welcome.
    #[error(
        "the engine at {socket:?} sent something that is no welcome: {what}; engine and library must be of one version"
    )]
    Garbled { socket: String, what: &'static str },
    /// The shared memory can't be used.
    #[error("shared memory of the engine at {socket:?}: {cause}")]
    Region { socket: String, cause: GeometryError },
    /// The shared memory can't be mapped.
    #[error("map {bytes} bytes of the engine at {socket:?}: {cause}; is there a limit on address space (ulimit -v)?")]
    Map { socket: String, bytes: u64, cause: Errno },
}

impl AttachError {
    /// The errno that fits best: EPROTO where the engine spoke nonsense.
    #[must_use]
    pub fn errno(&self) -> Errno {
        match *self {
            Self::Address { cause, .. }
            | Self::Connect { cause, .. }
            | Self::Handshake { cause, .. }
            | Self::Refused { cause, .. }
            | Self::Map { cause, .. } => cause,
            Self::Garbled { .. } | Self::Region { .. } => Errno::PROTO,
        }
    }
}

/// A received packet without its descriptors.
pub(crate) struct Packet {
    bytes: [u8; MAX_PACKET_BYTES],
    len: usize,
}

impl Packet {
    pub(crate) fn new() -> Self {
        Self { bytes: [0; MAX_PACKET_BYTES], len: 0 }
    }

    pub(crate) fn reply(&self) -> Option<(Reply, &[u8])> {
        Reply::decode(&self.bytes[..self.len])
    }
}

/// Descriptors that came with a packet: a memfd and a doorbell a shard at most.
pub(crate) type Descriptors = [Option<Fd>; 1 + MAX_SHARDS as usize];

/// The address of `socket`; a leading '@' means the abstract namespace.
pub(crate) fn parse_address(socket: &str) -> Result<SocketAddrUnix, Errno> {
    match socket.strip_prefix('@') {
        Some(name) => SocketAddrUnix::new_abstract_name(name.as_bytes()),
        None => SocketAddrUnix::new(socket),
    }
}

/// Connects to the engine, on a high descriptor number.
pub(crate) fn connect(address: &SocketAddrUnix) -> Result<Fd, Errno> {
    let fd = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    let fd = move_high(Fd::from(fd))?;
    loop {
        match rustix::net::connect(&fd, address) {
            Ok(()) => return Ok(fd),
            Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
}

/// Sends one request, with a descriptor if there is one. Waits while the engine is behind, up to [`REPLY_WAIT_NS`].
pub(crate) fn send(control: BorrowedFd<'_>, request: &Request, with: Option<BorrowedFd<'_>>) -> Result<(), Errno> {
    let encoded = request.encode();
    let until = now_ns() + REPLY_WAIT_NS;
    loop {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let fds = with.map(|fd| [fd]);
        if let Some(fds) = &fds {
            ancillary.push(SendAncillaryMessage::ScmRights(fds));
        }
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        match rustix::net::sendmsg(control, &[IoSlice::new(encoded.as_bytes())], &mut ancillary, flags) {
            Ok(_) => return Ok(()),
            Err(Errno::AGAIN) => ready(control, PollFlags::OUT, until)?,
            Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
}

/// Receives one packet. Descriptors with it land in `fds`, on high numbers; without `fds` the kernel drops them.
/// With `peek` the packet stays queued. ECONNRESET at end-of-file, ETIMEDOUT after [`REPLY_WAIT_NS`].
pub(crate) fn receive(
    control: BorrowedFd<'_>,
    packet: &mut Packet,
    fds: Option<&mut Descriptors>,
    peek: bool,
) -> Result<(), Errno> {
    let until = now_ns() + REPLY_WAIT_NS;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(65))];
    loop {
        let mut ancillary =
            if fds.is_some() { RecvAncillaryBuffer::new(&mut space) } else { RecvAncillaryBuffer::default() };
        let mut flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        flags.set(RecvFlags::PEEK, peek);
        let into = &mut [IoSliceMut::new(&mut packet.bytes)];
        match rustix::net::recvmsg(control, into, &mut ancillary, flags) {
            // The engine sends no empty packet.
            Ok(message) if message.bytes == 0 => return Err(Errno::CONNRESET),
            Ok(message) => {
                packet.len = message.bytes;
                if let Some(fds) = fds {
                    take_descriptors(&mut ancillary, fds)?;
                }
                return Ok(());
            }
            Err(Errno::AGAIN) => ready(control, PollFlags::IN, until)?,
            Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
}

fn take_descriptors(ancillary: &mut RecvAncillaryBuffer<'_>, fds: &mut Descriptors) -> Result<(), Errno> {
    let mut next = 0;
    let mut result = Ok(());
    for message in ancillary.drain() {
        let RecvAncillaryMessage::ScmRights(rights) = message else { continue };
        // To the end even after a failure: whatever stayed in the buffer would be closed through libc.
        for fd in rights.map(|fd: OwnedFd| Fd::from(fd)) {
            match (move_high(fd), fds.get_mut(next)) {
                (Ok(fd), Some(place)) => *place = Some(fd),
                (Err(e), _) => result = Err(e),
                (Ok(_), None) => {}
            }
            next += 1;
        }
    }
    result
}

/// Sleeps until `control` is ready for `what`; ETIMEDOUT at `until`. A hung-up connection counts as ready.
fn ready(control: BorrowedFd<'_>, what: PollFlags, until: u64) -> Result<(), Errno> {
    let Some(left) = until.checked_sub(now_ns()).filter(|&left| left > 0) else { return Err(Errno::TIMEDOUT) };
    match rustix::event::poll(&mut [PollFd::from_borrowed_fd(control.as_fd(), what)], Some(&timespec(left))) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(e) => Err(e),
    }
}
