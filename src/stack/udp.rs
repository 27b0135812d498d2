//! The table of UDP sockets: who gets a datagram, whose turn it is to send, what is to be told to whom.
//!
//! Most specific first: connected to the sender, then bound to the address, then bound to any. Sockets that share a
//! port (`reuse`) share its datagrams by a hash of the sender; of others at the same place the latest gets them.

use crate::egress::Step;
use crate::icmp::Report;
use crate::ip::{Datagram, Header, MAX_PACKET, UDP, elsewhere};
use crate::route::loopback_of;
use crate::siphash::{Rng, SipKey};
use crate::{DatagramMeta, Error, Event, Host, Instant, ListenAddress, SocketId, Stack, Token, Unknown, Verdict};
use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use smoltcp::wire::UdpPacket;

/// Bytes of a UDP header.
const HEADER: usize = 8;

/// A socket of the table.
#[derive(Debug)]
pub(crate) struct Socket {
    pub token: Token,
    pub generation: u32,
    /// As it was opened, the port chosen.
    pub at: ListenAddress,
    /// Local and remote address of a connected socket.
    pub connected: Option<(SocketAddr, SocketAddr)>,
    reuse: bool,
    /// It stands in the queue of those that have something to send.
    ready: bool,
    /// What `poll_event` will say of it.
    sent: bool,
    error: Option<Error>,
    told: bool,
}

/// All UDP sockets of a stack.
#[derive(Debug)]
pub(crate) struct Udp {
    sockets: Vec<Option<Socket>>,
    free: Vec<u32>,
    generation: u32,
    /// All sockets, by local port.
    ports: BTreeMap<u16, Vec<u32>>,
    /// Sockets with a peer, by local and remote address.
    flows: BTreeMap<(SocketAddr, SocketAddr), Vec<u32>>,
    ready: VecDeque<SocketId>,
    /// Sockets with an event.
    news: VecDeque<SocketId>,
    ephemeral: (u16, u16),
    rng: Rng,
    key: SipKey,
}

impl Udp {
    pub fn new(ephemeral: (u16, u16), seed: &[u8; 32]) -> Self {
        Self {
            sockets: Vec::new(),
            free: Vec::new(),
            generation: 0,
            ports: BTreeMap::new(),
            flows: BTreeMap::new(),
            ready: VecDeque::new(),
            news: VecDeque::new(),
            ephemeral,
            rng: Rng::new(SipKey::derive(seed, b'u')),
            key: SipKey::derive(seed, b'U'),
        }
    }

    /// Opens a socket; port 0 picks a free one of the ephemeral range.
    ///
    /// # Errors
    /// [`Error::AddressInUse`] when another socket holds the port at an overlapping address and not both share it;
    /// [`Error::AddressNotAvailable`] when the range has no free port.
    pub fn open(&mut self, token: Token, mut at: ListenAddress, reuse: bool) -> Result<SocketId, Error> {
        if at.port == 0 {
            at.port = self.free_port(&at).ok_or(Error::AddressNotAvailable)?;
        } else if self.conflicts(&at, reuse) {
            return Err(Error::AddressInUse);
        }
        self.open_beside(token, at, reuse)
    }

    /// The same at a port that somebody else has decided about: whoever is there already stays beside it. `reuse`: the
    /// sockets that say so share what comes by a hash (SO_REUSEPORT); among others the latest gets it (SO_REUSEADDR).
    ///
    /// # Errors
    /// [`Error::NoBuffers`].
    pub fn open_beside(&mut self, token: Token, at: ListenAddress, reuse: bool) -> Result<SocketId, Error> {
        self.generation = self.generation.wrapping_add(1);
        let socket = Socket {
            token,
            generation: self.generation,
            at,
            connected: None,
            reuse,
            ready: false,
            sent: false,
            error: None,
            told: false,
        };
        let index = if let Some(index) = self.free.pop() {
            self.sockets[index as usize] = Some(socket);
            index
        } else {
            let index = u32::try_from(self.sockets.len()).map_err(|_| Error::NoBuffers)?;
            self.sockets.push(Some(socket));
            index
        };
        self.ports.entry(at.port).or_default().push(index);
        Ok(SocketId { index, generation: self.generation })
    }

    fn free_port(&mut self, at: &ListenAddress) -> Option<u16> {
        let (first, last) = self.ephemeral;
        let count = u64::from(last.checked_sub(first)?) + 1;
        let start = self.rng.next_u64() % count;
        (0..count)
            .map(|i| {
                #[allow(clippy::cast_possible_truncation, reason = "less than 65,536")]
                let offset = ((start + i) % count) as u16;
                first + offset
            })
            .find(|&port| port != 0 && !self.conflicts(&ListenAddress { port, ..*at }, false))
    }

    fn conflicts(&self, at: &ListenAddress, reuse: bool) -> bool {
        let clash = |index: &u32| {
            let Some(s) = self.sockets.get(*index as usize).and_then(Option::as_ref) else { return false };
            let address = match (s.at.address, at.address) {
                (Some(a), Some(b)) => a == b,
                (Some(a), None) => covers(at, a),
                (None, Some(b)) => covers(&s.at, b),
                (None, None) => (s.at.ipv4 && at.ipv4) || (s.at.ipv6 && at.ipv6),
            };
            address && !(s.reuse && reuse)
        };
        self.ports.get(&at.port).is_some_and(|list| list.iter().any(clash))
    }

    pub fn get(&self, id: SocketId) -> Result<&Socket, Error> {
        match self.sockets.get(id.index as usize) {
            Some(Some(s)) if s.generation == id.generation => Ok(s),
            _ => Err(Error::NoSuchSocket),
        }
    }

    fn get_mut(&mut self, id: SocketId) -> Option<&mut Socket> {
        self.sockets.get_mut(id.index as usize)?.as_mut().filter(|s| s.generation == id.generation)
    }

    /// Connects to a peer from a local address, or back to none.
    pub fn set_flow(&mut self, id: SocketId, flow: Option<(SocketAddr, SocketAddr)>) -> Result<(), Error> {
        let old = self.get(id)?.connected;
        if let Some(old) = old {
            remove(&mut self.flows, old, id.index);
        }
        if let Some(flow) = flow {
            self.flows.entry(flow).or_default().push(id.index);
        }
        if let Some(s) = self.get_mut(id) {
            s.connected = flow;
        }
        Ok(())
    }

    pub fn close(&mut self, id: SocketId) {
        let Ok(s) = self.get(id) else { return };
        let (port, flow) = (s.at.port, s.connected);
        remove(&mut self.ports, port, id.index);
        if let Some(flow) = flow {
            remove(&mut self.flows, flow, id.index);
        }
        self.sockets[id.index as usize] = None;
        self.free.push(id.index);
    }

    /// The socket that a unicast datagram from `remote` to `local` is for.
    pub fn find(&self, local: SocketAddr, remote: SocketAddr) -> Option<SocketId> {
        if let Some(&index) = self.flows.get(&(local, remote)).and_then(|list| list.last()) {
            return self.id(index);
        }
        let list = self.ports.get(&local.port())?;
        let score = |index: u32| {
            let s = self.sockets.get(index as usize)?.as_ref()?;
            match s.at.address {
                _ if s.connected.is_some() => None,
                Some(a) if a == local.ip() => Some(2),
                None if covers(&s.at, local.ip()) => Some(1),
                _ => None,
            }
        };
        let best = list.iter().filter_map(|&i| score(i)).max()?;
        let equals = list.iter().copied().filter(|&i| score(i) == Some(best));
        let latest = equals.clone().next_back()?;
        let shares = |index: u32| self.sockets.get(index as usize).is_some_and(|s| s.as_ref().is_some_and(|s| s.reuse));
        if !shares(latest) {
            return self.id(latest);
        }
        let mut sharing = equals.filter(|&i| shares(i));
        let count = sharing.clone().count();
        if count <= 1 {
            return self.id(latest);
        }
        #[allow(clippy::cast_possible_truncation, reason = "less than count")]
        let chosen = (self.hash(remote) % count as u64) as usize;
        self.id(sharing.nth(chosen)?)
    }

    /// Calls `f` for every socket that hears what is sent to the group or broadcast address `local`.
    pub fn for_each_listening(&self, local: SocketAddr, f: &mut dyn FnMut(Token)) {
        for &index in self.ports.get(&local.port()).into_iter().flatten() {
            let Some(s) = self.sockets.get(index as usize).and_then(Option::as_ref) else { continue };
            if s.connected.is_none() && s.at.address.map_or_else(|| covers(&s.at, local.ip()), |a| a == local.ip()) {
                f(s.token);
            }
        }
    }

    fn hash(&self, remote: SocketAddr) -> u64 {
        let address = match remote.ip() {
            IpAddr::V4(v4) => u128::from(u32::from(v4)),
            IpAddr::V6(v6) => u128::from(v6),
        };
        #[allow(clippy::cast_possible_truncation, reason = "both halves are used")]
        self.key.hash_words([address as u64, (address >> 64) as u64, u64::from(remote.port())])
    }

    fn id(&self, index: u32) -> Option<SocketId> {
        let generation = self.sockets.get(index as usize)?.as_ref()?.generation;
        Some(SocketId { index, generation })
    }

    pub fn set_ready(&mut self, id: SocketId) {
        if let Some(s) = self.get_mut(id)
            && !s.ready
        {
            s.ready = true;
            self.ready.push_back(id);
        }
    }

    /// The next socket that has something to send; [`Self::set_ready`] puts it back at the end.
    pub fn next_ready(&mut self) -> Option<SocketId> {
        while let Some(id) = self.ready.pop_front() {
            if let Some(s) = self.get_mut(id) {
                s.ready = false;
                return Some(id);
            }
        }
        None
    }

    pub fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    pub fn note_sent(&mut self, id: SocketId) {
        self.note(id, |s| s.sent = true);
    }

    pub fn note_error(&mut self, id: SocketId, error: Error) {
        self.note(id, |s| s.error = Some(error));
    }

    fn note(&mut self, id: SocketId, f: impl FnOnce(&mut Socket)) {
        if let Some(s) = self.get_mut(id) {
            f(s);
            if !s.told {
                s.told = true;
                self.news.push_back(id);
            }
        }
    }

    pub fn poll_event(&mut self) -> Option<Event> {
        while let Some(&id) = self.news.front() {
            if let Some(s) = self.get_mut(id) {
                let token = s.token;
                if let Some(error) = s.error.take() {
                    return Some(Event::DatagramError { token, error });
                }
                if core::mem::take(&mut s.sent) {
                    return Some(Event::DatagramSent { token });
                }
                s.told = false;
            }
            self.news.pop_front();
        }
        None
    }

    pub fn for_each(&self, f: &mut dyn FnMut(Token, SocketId, SocketAddr, Option<SocketAddr>)) {
        for (index, s) in (0_u32..).zip(&self.sockets) {
            let Some(s) = s else { continue };
            let id = SocketId { index, generation: s.generation };
            f(s.token, id, s.local(), s.connected.map(|(_, remote)| remote));
        }
    }
}

impl Socket {
    /// Its address as getsockname gives it.
    pub fn local(&self) -> SocketAddr {
        if let Some((local, _)) = self.connected {
            return local;
        }
        let any = if self.at.ipv6 { IpAddr::V6(Ipv6Addr::UNSPECIFIED) } else { IpAddr::V4(Ipv4Addr::UNSPECIFIED) };
        SocketAddr::new(self.at.address.unwrap_or(any), self.at.port)
    }
}

/// Whether a socket bound to any address hears what comes to `address`.
const fn covers(at: &ListenAddress, address: IpAddr) -> bool {
    match address {
        IpAddr::V4(_) => at.ipv4,
        IpAddr::V6(_) => at.ipv6,
    }
}

fn remove<K: Ord>(map: &mut BTreeMap<K, Vec<u32>>, key: K, index: u32) {
    if let Some(list) = map.get_mut(&key) {
        list.retain(|&i| i != index);
        if list.is_empty() {
            map.remove(&key);
        }
    }
}

impl Stack {
    pub(crate) fn handle_udp(
        &mut self,
        now: Instant,
        d: &Datagram<'_>,
        packet: &[u8],
        host: &mut dyn Host,
        unknown: Unknown,
    ) -> Verdict {
        let Ok(p) = UdpPacket::new_checked(packet) else { return self.malformed() };
        let Header { source, destination, tos, ttl, .. } = d.header;
        let packet = &packet[..usize::from(p.len())];
        let payload = &packet[HEADER..];
        if self.config.checksums && !d.loopback {
            // RFC 768: 0 means none was made. RFC 8200 8.1: not with IPv6, whose header has no checksum either.
            let good = match p.checksum() {
                0 => destination.is_ipv4(),
                _ => UdpPacket::new_unchecked(packet).verify_checksum(&source.into(), &destination.into()),
            };
            if !good {
                self.counters.drop_checksum += 1;
                return Verdict::Handled;
            }
        }
        if p.dst_port() == 0 {
            return self.malformed();
        }
        let local = SocketAddr::new(destination, p.dst_port());
        let remote = SocketAddr::new(source, p.src_port());
        let meta = DatagramMeta { len: payload.len(), local, remote, tos, ttl };
        let mut taken = false;
        let counters = &mut self.counters;
        let mut give = |token| {
            taken = true;
            if !host.datagram_in(token, &meta, payload) {
                counters.drop_queue_full += 1;
            }
        };
        if destination.is_multicast() || self.routes.is_broadcast(destination) {
            self.udp.for_each_listening(local, &mut give);
        } else if let Some(socket) = self.udp.find(local, remote).and_then(|id| self.udp.get(id).ok()) {
            give(socket.token);
        }
        if taken {
            self.counters.udp_in += 1;
            return Verdict::Handled;
        }
        if unknown == Unknown::Report {
            return elsewhere(UDP, d, packet);
        }
        self.counters.udp_in += 1;
        self.counters.drop_no_socket += 1;
        self.icmp_error(now, d, packet, Report::PortUnreachable);
        Verdict::Handled
    }

    /// A datagram of the socket whose turn it is.
    pub(crate) fn send_udp(&mut self, now: Instant, out: &mut [u8], host: &mut dyn Host) -> Step {
        let Some(id) = self.udp.next_ready() else { return Step::Nothing };
        let Ok(socket) = self.udp.get(id) else { return Step::Progress };
        let mut scratch = core::mem::take(&mut self.scratch);
        let step = match host.datagram_out(socket.token, &mut scratch[HEADER..]) {
            None => Step::Progress,
            Some(meta) => {
                self.udp.set_ready(id);
                self.udp.note_sent(id);
                self.send_datagram(now, id, &meta, &mut scratch, out, host)
            }
        };
        self.scratch = scratch;
        step
    }

    /// `buffer` holds room for the header and the payload behind it.
    fn send_datagram(
        &mut self,
        now: Instant,
        id: SocketId,
        meta: &DatagramMeta,
        buffer: &mut [u8],
        out: &mut [u8],
        host: &mut dyn Host,
    ) -> Step {
        let Ok(socket) = self.udp.get(id) else { return Step::Progress };
        let mut destination = meta.remote.ip().to_canonical();
        if destination.is_unspecified() {
            destination = loopback_of(destination);
        }
        let asked = meta.local.ip().to_canonical();
        let fixed = socket.connected.map(|(local, _)| local.ip()).or(socket.at.address);
        let source =
            if asked.is_unspecified() { fixed.or_else(|| self.routes.source_for(destination)) } else { Some(asked) };
        let port = socket.at.port;
        let possible = |source: &IpAddr| {
            source.is_ipv4() == destination.is_ipv4()
                && self.routes.is_local(*source)
                && (!source.is_loopback() || self.routes.is_local(destination))
                && meta.remote.port() != 0
        };
        let len = HEADER + meta.len;
        let Some(source) = source.filter(possible) else {
            self.udp.note_error(id, Error::NetworkUnreachable);
            return Step::Progress;
        };
        let longest = if destination.is_ipv4() { MAX_PACKET - 20 } else { MAX_PACKET };
        if len > longest || len > buffer.len() {
            self.udp.note_error(id, Error::MessageTooLong);
            return Step::Progress;
        }
        let packet = &mut buffer[..len];
        let mut p = UdpPacket::new_unchecked(&mut *packet);
        p.set_src_port(port);
        p.set_dst_port(meta.remote.port());
        #[allow(clippy::cast_possible_truncation, reason = "checked above")]
        p.set_len(len as u16);
        p.set_checksum(0);
        if self.config.checksums {
            p.fill_checksum(&source.into(), &destination.into());
        }
        self.counters.udp_out += 1;
        let header = Header { source, destination, protocol: UDP, tos: meta.tos, ttl: meta.ttl };
        self.send(now, &header, packet, out, host)
    }
}
