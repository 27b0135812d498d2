//! Datagrams: records of header and payload in the slot's rings (`sidestep_shm::datagram`).

use core::net::{IpAddr, SocketAddr};
use core::sync::atomic::Ordering;
use std::io::{IoSlice, IoSliceMut};

use rustix::io::Errno;
use sidestep_shm::Slot;
use sidestep_shm::datagram::{HEADER_BYTES, Header};
use sidestep_shm::slot::{option, request, status};
use sidestep_shm::stream::Ring;

use crate::address::{UNSPECIFIED, is_udp, is_v4, to_wire};
use crate::session::Session;
use crate::socket::take_error;
use crate::stream::{readable, worth_telling, writable};
use crate::sys::Held;

/// What sendmsg()'s control messages may say about one datagram; None: the socket's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DatagramOptions {
    /// Source address (IP_PKTINFO, IPV6_PKTINFO).
    pub local: Option<IpAddr>,
    /// IP_TOS, IPV6_TCLASS.
    pub tos: Option<u8>,
    /// IP_TTL, IPV6_HOPLIMIT.
    pub ttl: Option<u8>,
}

/// Payload bytes over IPv4: 65,535 less the IP and UDP headers.
const MOST_OVER_V4: usize = 65_507;
/// Over IPv6 the IP header doesn't count.
const MOST_OVER_V6: usize = 65_527;

/// Header of the datagram at `head`, if a whole record is there. `Err` when what is there can't be a record.
fn next(head: u64, queued: usize, ring: Ring<'_>) -> Result<Option<Header>, ()> {
    if queued == 0 {
        return Ok(None);
    }
    if queued < HEADER_BYTES {
        return Err(());
    }
    let mut bytes = [0; HEADER_BYTES];
    ring.read(head, &mut bytes);
    let header = Header::decode(&bytes).ok_or(())?;
    if Header::record_bytes(header.len as usize) > queued as u64 { Err(()) } else { Ok(Some(header)) }
}

/// Payload length of the next datagram.
pub(crate) fn next_len(shared: &Slot, ring: Ring<'_>) -> Option<usize> {
    next_whole(shared, ring).map(|(_, header)| header.len as usize)
}

/// Position and header of the next datagram.
pub(crate) fn next_whole(shared: &Slot, ring: Ring<'_>) -> Option<(u64, Header)> {
    let queued = readable(shared, ring.capacity());
    let head = shared.rx_head.load(Ordering::Relaxed);
    next(head, queued, ring).ok()?.map(|header| (head, header))
}

impl Session {
    /// recvmsg(2) on UDP: the next datagram. Returns the bytes put into `bufs`, and what is known of the datagram;
    /// its `len` tells whether it was cut (MSG_TRUNC). With `peek` it stays. After shutdown for reading: 0 and an
    /// empty header.
    ///
    /// # Errors
    /// EAGAIN: none. The socket's pending error, once (ECONNREFUSED from ICMP, …). ENETDOWN.
    pub fn receive_datagram(
        &self,
        slot: u32,
        bufs: &mut [IoSliceMut<'_>],
        peek: bool,
    ) -> Result<(usize, Header), Errno> {
        let tell = |shared: &Slot| self.mark(shared, slot);
        match self.receive_datagram_once(slot, bufs, peek, tell) {
            Err(Errno::AGAIN) if self.has_come() => self.receive_datagram_once(slot, bufs, peek, tell),
            outcome => outcome,
        }
    }

    /// The same; `tell` tells the engine, if it is to be told.
    pub(crate) fn receive_datagram_once(
        &self,
        slot: u32,
        bufs: &mut [IoSliceMut<'_>],
        peek: bool,
        tell: impl FnOnce(&Slot),
    ) -> Result<(usize, Header), Errno> {
        let shared = self.slot(slot)?;
        let ring = self.region().rx(slot).ok_or(Errno::BADF)?;
        if let Some(error) = take_error(shared) {
            return Err(error);
        }
        let held = Held::take(&shared.rx_lock, self.process())?;
        let queued = readable(shared, ring.capacity());
        let head = shared.rx_head.load(Ordering::Relaxed);
        let header = match next(head, queued, ring) {
            Ok(Some(header)) => header,
            Ok(None) => {
                drop(held);
                return self.no_datagram(shared);
            }
            Err(()) => {
                // Damage. What is queued can't be told apart any more: drop it all and go on behind it.
                shared.rx_head.store(head + queued as u64, Ordering::Release);
                drop(held);
                tell(shared);
                return Err(Errno::AGAIN);
            }
        };
        let mut done = 0;
        for buf in bufs.iter_mut() {
            let n = buf.len().min(header.len as usize - done);
            ring.read(head + (HEADER_BYTES + done) as u64, &mut buf[..n]);
            done += n;
        }
        if !peek {
            let to = head + Header::record_bytes(header.len as usize);
            shared.rx_head.store(to, Ordering::Release);
            drop(held);
            if worth_telling(head, to, queued, ring.capacity()) {
                tell(shared);
            }
        }
        Ok((done, header))
    }

    fn no_datagram(&self, shared: &Slot) -> Result<(usize, Header), Errno> {
        if self.bury_if_dead(shared) {
            return Err(take_error(shared).unwrap_or(Errno::NETDOWN));
        }
        let stopped = shared.request.load(Ordering::Relaxed) & request::STOP_READING != 0;
        if stopped { Ok((0, Header::default())) } else { Err(Errno::AGAIN) }
    }

    /// sendmsg(2) on UDP: one datagram made of `bufs`, to `to` or the connected peer. A socket that is not bound yet
    /// is bound to any port first, by a message to the engine. Returns the payload's length.
    ///
    /// # Errors
    /// EDESTADDRREQ: no destination. EMSGSIZE: longer than UDP or the ring can carry. EAGAIN: no room now. EINVAL:
    /// port 0. EAFNOSUPPORT. EACCES: broadcast without SO_BROADCAST. EPIPE: after shutdown. The pending error, once.
    pub fn send_datagram(
        &self,
        slot: u32,
        bufs: &[IoSlice<'_>],
        to: Option<SocketAddr>,
        extra: &DatagramOptions,
    ) -> Result<usize, Errno> {
        self.send_datagram_telling(slot, bufs, (to, extra), |shared| self.mark_now(shared, slot))
    }

    /// The same; `tell` tells the engine.
    pub(crate) fn send_datagram_telling(
        &self,
        slot: u32,
        bufs: &[IoSlice<'_>],
        (to, extra): (Option<SocketAddr>, &DatagramOptions),
        tell: impl FnOnce(&Slot),
    ) -> Result<usize, Errno> {
        let shared = self.slot(slot)?;
        let ring = self.region().tx(slot).ok_or(Errno::BADF)?;
        let kind = shared.kind.load(Ordering::Relaxed);
        if !is_udp(kind) {
            return Err(Errno::OPNOTSUPP);
        }
        if self.bury_if_dead(shared) {
            return Err(take_error(shared).unwrap_or(Errno::NETDOWN));
        }
        if let Some(error) = take_error(shared) {
            return Err(error);
        }
        if shared.request.load(Ordering::Relaxed) & request::FINISH != 0 {
            return Err(Errno::PIPE);
        }
        let remote = to.or_else(|| self.peer(shared)).ok_or(Errno::DESTADDRREQ)?;
        self.check_destination(shared, kind, remote)?;
        let len = bufs.iter().fold(0usize, |sum, b| sum.saturating_add(b.len()));
        let over_v4 = remote.ip().to_canonical().is_ipv4();
        let most = if over_v4 { MOST_OVER_V4 } else { MOST_OVER_V6 };
        if len > most || Header::record_bytes(len) > ring.capacity() as u64 {
            return Err(Errno::MSGSIZE);
        }
        self.bind_if_unbound(slot, shared)?;
        // IP_TTL is not for groups, whose default is 1.
        let multicast = remote.ip().to_canonical().is_multicast();
        let header = Header {
            len: len as u32,
            remote: to_wire(remote.ip()),
            remote_port: remote.port(),
            local: extra.local.map_or(UNSPECIFIED, to_wire),
            tos: extra.tos.unwrap_or(shared.tos.load(Ordering::Relaxed) as u8),
            ttl: extra.ttl.unwrap_or(if multicast { 0 } else { shared.ttl.load(Ordering::Relaxed) as u8 }),
        };
        let held = Held::take(&shared.tx_lock, self.process())?;
        if (writable(shared, ring.capacity()) as u64) < Header::record_bytes(len) {
            return Err(Errno::AGAIN);
        }
        let tail = shared.tx_tail.load(Ordering::Relaxed);
        ring.write(tail, &header.encode());
        let mut at = tail + HEADER_BYTES as u64;
        for buf in bufs {
            ring.write(at, buf);
            at += buf.len() as u64;
        }
        let end = tail + Header::record_bytes(len);
        ring.write(at, &[0; 8][..(end - at) as usize]);
        shared.tx_tail.store(end, Ordering::Release);
        drop(held);
        tell(shared);
        Ok(len)
    }

    fn check_destination(&self, shared: &Slot, kind: u32, remote: SocketAddr) -> Result<(), Errno> {
        if remote.port() == 0 {
            return Err(Errno::INVAL);
        }
        if is_v4(kind) && remote.is_ipv6() {
            return Err(Errno::AFNOSUPPORT);
        }
        let options = shared.options.load(Ordering::Relaxed);
        if let IpAddr::V4(v4) = remote.ip().to_canonical() {
            if v4.is_broadcast() && options & option::BROADCAST == 0 {
                return Err(Errno::ACCESS);
            }
            if !is_v4(kind) && options & option::V6_ONLY != 0 {
                return Err(Errno::NETUNREACH);
            }
        }
        Ok(())
    }

    /// Whether the socket in `slot` sends datagrams.
    #[must_use]
    pub fn is_datagram(&self, slot: u32) -> bool {
        self.slot(slot).is_ok_and(|s| is_udp(s.kind.load(Ordering::Relaxed)))
    }

    /// Whether the engine accepts connections for the socket in `slot`.
    #[must_use]
    pub fn is_listening(&self, slot: u32) -> bool {
        self.slot(slot).is_ok_and(|s| s.status.load(Ordering::Acquire) & status::LISTENING != 0)
    }
}
