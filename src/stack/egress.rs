//! Frames on their way out: whose turn it is, where they go, what stands before them.

use crate::ethernet::{self, HEADER, Kind};
use crate::fragment::cut;
use crate::ip::{Cut, DEFAULT_TTL, Datagram, Header, MAX_PACKET, TCP, UDP, emit_header, header_len};
use crate::neighbor::Lookup;
use crate::outbox::Reply;
use crate::stack::context;
use crate::stray::LIMIT as STRAYS_LIMIT;
use crate::tcp::{Ready, Train};
use crate::{Error, Host, Instant, Mac, Stack, Unknown, ndp};
use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr};

/// Steps without a frame (packets between two of our addresses, connections that wait for neighbours) in one call of
/// `poll_frame`, so that a driver gets its turn.
const BUDGET: usize = 512;
/// What the headers of a large packet take at most: Ethernet, IPv6, TCP with options.
const LARGE_HEADERS: usize = HEADER + 40 + 60;
/// Destinations whose neighbour is remembered; a power of two.
const CACHED_HOPS: usize = 256;

/// An ARP packet to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Arp {
    pub request: bool,
    /// Our address.
    pub source: Ipv4Addr,
    pub target: Ipv4Addr,
    /// None: broadcast.
    pub target_mac: Option<Mac>,
}

/// A datagram that is longer than its path takes, and how much of it has been sent.
#[derive(Debug)]
pub(crate) struct Outgoing {
    packet: Reply,
    mac: Mac,
    id: u32,
    offset: usize,
    /// Payload of one fragment.
    room: usize,
}

/// The last answers of route and neighbour lookup by destination: one comparison for a packet of a busy connection.
#[derive(Debug)]
pub(crate) struct NextHopCache {
    entries: Vec<Option<CachedHop>>,
}

#[derive(Clone, Copy, Debug)]
struct CachedHop {
    destination: IpAddr,
    mac: Mac,
    until: Instant,
    epoch: u32,
}

impl NextHopCache {
    pub fn new() -> Self {
        Self { entries: alloc::vec![None; CACHED_HOPS] }
    }

    fn slot(destination: IpAddr) -> usize {
        // Not keyed: who makes destinations collide only makes them be looked up.
        let folded = match destination {
            IpAddr::V4(v4) => u32::from(v4),
            IpAddr::V6(v6) => {
                let o = u128::from(v6);
                #[allow(clippy::cast_possible_truncation, reason = "32 bits at a time")]
                let folded = (o ^ o >> 32 ^ o >> 64 ^ o >> 96) as u32;
                folded
            }
        };
        (folded.wrapping_mul(0x9e37_79b1) >> 24) as usize % CACHED_HOPS
    }

    fn get(&self, now: Instant, epoch: u32, destination: IpAddr) -> Option<Mac> {
        let entry = self.entries.get(Self::slot(destination))?.as_ref()?;
        (entry.destination == destination && entry.epoch == epoch && now < entry.until).then_some(entry.mac)
    }

    fn put(&mut self, epoch: u32, destination: IpAddr, mac: Mac, until: Instant) {
        if let Some(slot) = self.entries.get_mut(Self::slot(destination)) {
            *slot = Some(CachedHop { destination, mac, until, epoch });
        }
    }
}

/// A packet of [`Stack::poll_large`]: what a device needs to know to cut it. All in bytes but `frames`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Large {
    /// Of the whole, with the Ethernet header.
    pub len: usize,
    /// Of all headers: each frame begins with them.
    pub headers: u16,
    /// Of the headers in front of TCP's.
    pub transport: u16,
    /// Of payload in each frame.
    pub segment: u16,
    /// Frames that it becomes.
    pub frames: u16,
    pub ipv6: bool,
}

/// Where a packet goes.
enum Path {
    Wire(Mac),
    /// To ourselves.
    Loopback,
    /// Its next hop is being asked for.
    Wait(IpAddr),
    None,
}

/// What became of one turn.
pub(crate) enum Step {
    Frame(usize),
    /// Something was done, but no frame came of it.
    Progress,
    Nothing,
}

impl Stack {
    /// The next frame to send, written to the front of `out`, which has at least `mtu + 14` bytes; None when there is
    /// none now. To be called until it gives None.
    pub fn poll_frame(&mut self, now: Instant, out: &mut [u8], host: &mut dyn Host) -> Option<usize> {
        self.now = now;
        self.unfinished = false;
        if out.len() < HEADER + self.config.mtu {
            return None;
        }
        for _ in 0..BUDGET {
            if self.strays.len() >= STRAYS_LIMIT {
                // Whoever drives this hands them over first.
                break;
            }
            match self.step(now, out, host) {
                Step::Frame(len) => {
                    self.counters.frames_out += 1;
                    self.counters.bytes_out += len as u64;
                    return Some(len);
                }
                Step::Progress => {}
                Step::Nothing => return None,
            }
        }
        self.unfinished = true;
        None
    }

    /// Whether [`Self::poll_large`] would give something, with room for `bytes`.
    pub fn has_large(&mut self, now: Instant, bytes: usize) -> bool {
        self.next_train(now, bytes).is_some()
    }

    fn next_train(&mut self, now: Instant, bytes: usize) -> Option<(Ready, Train, Mac)> {
        let most = bytes.min(usize::from(u16::MAX)).checked_sub(LARGE_HEADERS)?;
        let (ready, train) = self.tcp.next_train(now, most as u64)?;
        // Only where the way is known; the usual way finds it.
        let mac = self.hops.get(now, self.neighbors.epoch(), ready.destination)?;
        Some((ready, train, mac))
    }

    /// The next packet that is longer than a frame, for a device that cuts it into frames itself (TCP segmentation and
    /// checksum offload): several segments of the connection whose turn it is, written to the front of `out`. None:
    /// there is none now, and [`Self::poll_frame`] may have something all the same.
    pub fn poll_large(&mut self, now: Instant, out: &mut [u8], host: &mut dyn Host) -> Option<Large> {
        self.now = now;
        let (ready, train, mac) = self.next_train(now, out.len())?;
        let (source, destination) = (ready.source, ready.destination);
        let start = HEADER + header_len(destination, false);
        let built = self.tcp.emit_train(context!(self, now, host), ready, train, &mut out[start..])?;
        let header = Header { source, destination, protocol: TCP, tos: built.tos, ttl: built.ttl };
        emit_header(&mut out[HEADER..], &header, built.len, None, None);
        self.finish(out, mac, &header, start + built.len);
        let frames = train.segments as usize;
        let bytes = start + built.len;
        self.counters.frames_out += frames as u64;
        self.counters.bytes_out += (bytes + (frames - 1) * (start + built.header)) as u64;
        #[allow(clippy::cast_possible_truncation, reason = "less than 64 KiB")]
        Some(Large {
            len: bytes,
            headers: (start + built.header) as u16,
            transport: start as u16,
            segment: train.payload as u16,
            frames: train.segments as u16,
            ipv6: destination.is_ipv6(),
        })
    }

    fn step(&mut self, now: Instant, out: &mut [u8], host: &mut dyn Host) -> Step {
        if let Some(arp) = self.arps.pop_front() {
            return Step::Frame(ndp::emit_arp(out, self.config.mac, &arp));
        }
        if let Some(outgoing) = self.outgoing.take() {
            return self.send_fragment(outgoing, out);
        }
        if let Some(packet) = self.released.pop_front().or_else(|| self.outbox.pop()) {
            if packet.protocol == TCP {
                self.counters.tcp_out += 1;
            }
            let Reply { source, destination, protocol, tos, ttl, .. } = packet;
            let header = Header { source, destination, protocol, tos, ttl };
            return self.send(now, &header, &packet.payload, out, host);
        }
        // Neither starves the other.
        self.udp_first = !self.udp_first;
        for udp in [self.udp_first, !self.udp_first] {
            let step = if udp { self.send_udp(now, out, host) } else { self.send_tcp(now, out, host) };
            if !matches!(step, Step::Nothing) {
                return step;
            }
        }
        Step::Nothing
    }

    fn path(&mut self, now: Instant, destination: IpAddr, host: &mut dyn Host) -> Path {
        if let Some(mac) = self.hops.get(now, self.neighbors.epoch(), destination) {
            return Path::Wire(mac);
        }
        if self.routes.is_local(destination) {
            return Path::Loopback;
        }
        if destination.is_multicast() {
            return Path::Wire(ethernet::group_mac(destination));
        }
        if self.routes.is_broadcast(destination) {
            return Path::Wire(ethernet::BROADCAST);
        }
        let Some(hop) = self.routes.lookup(destination) else { return Path::None };
        let found = self.neighbors.lookup(now, hop.next_hop);
        self.settle_neighbors(now, host);
        match found {
            Lookup::Known { mac, until } => {
                self.hops.put(self.neighbors.epoch(), destination, mac, until);
                Path::Wire(mac)
            }
            Lookup::Pending => Path::Wait(hop.next_hop),
        }
    }

    /// A segment of the connection whose turn it is. The way is looked up first, so that a connection whose neighbour
    /// is unknown waits without having built anything.
    fn send_tcp(&mut self, now: Instant, out: &mut [u8], host: &mut dyn Host) -> Step {
        let Some(ready) = self.tcp.next_ready() else { return Step::Nothing };
        let (source, destination) = (ready.source, ready.destination);
        let mac = match self.path(now, destination, host) {
            Path::Wire(mac) => Some(mac),
            Path::Loopback => None,
            Path::Wait(next_hop) => {
                self.tcp.defer(ready, next_hop);
                return Step::Progress;
            }
            Path::None => {
                self.counters.drop_no_route += 1;
                self.tcp.defer(ready, destination);
                self.tcp.unreachable(context!(self, now, host), destination);
                return Step::Progress;
            }
        };
        let Some(mac) = mac else {
            // A link of its own, with longer packets than the frame has room for.
            let mut room = core::mem::take(&mut self.scratch);
            if let Some(emitted) = self.tcp.emit(context!(self, now, host), ready, &mut room) {
                let header = Header { source, destination, protocol: TCP, tos: emitted.tos, ttl: emitted.ttl };
                self.loop_back(now, &header, &room[..emitted.len], host);
            }
            self.scratch = room;
            return Step::Progress;
        };
        let start = HEADER + header_len(destination, false);
        let room = &mut out[start..HEADER + self.config.mtu];
        let Some(emitted) = self.tcp.emit(context!(self, now, host), ready, room) else { return Step::Progress };
        let header = Header { source, destination, protocol: TCP, tos: emitted.tos, ttl: emitted.ttl };
        let id = emitted.fragmentable.then(|| self.rng.next_u64() as u16);
        emit_header(&mut out[HEADER..], &header, emitted.len, id, None);
        self.finish(out, mac, &header, start + emitted.len)
    }

    /// Gives a packet to ourselves, at once: what comes of it waits in queues, so this goes no deeper.
    fn loop_back(&mut self, now: Instant, header: &Header, payload: &[u8], host: &mut dyn Host) {
        self.counters.loopback += 1;
        let ttl = if header.ttl == 0 { DEFAULT_TTL } else { header.ttl };
        let d = Datagram { header: Header { ttl, ..*header }, group: false, loopback: true, original: &[] };
        let unknown = if self.shared { Unknown::Report } else { Unknown::Answer };
        let verdict = self.deliver(now, &d, payload, host, unknown);
        self.keep_stray(header, payload, verdict);
    }

    fn finish(&self, out: &mut [u8], mac: Mac, header: &Header, len: usize) -> Step {
        let kind = if header.destination.is_ipv4() { Kind::Ipv4 } else { Kind::Ipv6 };
        ethernet::emit(out, self.config.mac, mac, kind);
        Step::Frame(len)
    }

    /// Sends a packet that may be longer than the link takes, or wait for its neighbour.
    pub(crate) fn send(
        &mut self,
        now: Instant,
        header: &Header,
        payload: &[u8],
        out: &mut [u8],
        host: &mut dyn Host,
    ) -> Step {
        let destination = header.destination;
        let mac = match self.path(now, destination, host) {
            Path::Wire(mac) => mac,
            Path::Loopback => {
                self.loop_back(now, header, payload, host);
                return Step::Progress;
            }
            Path::Wait(next_hop) => {
                if self.neighbors.hold(next_hop, reply(header, payload)).is_some() {
                    self.counters.drop_no_neighbor += 1;
                }
                return Step::Progress;
            }
            Path::None => {
                self.counters.drop_no_route += 1;
                self.undeliverable(&reply(header, payload), Error::NetworkUnreachable);
                return Step::Progress;
            }
        };
        let mtu = if header.protocol == TCP { None } else { self.path_mtus.get(now, destination) };
        let mtu = mtu.unwrap_or(self.config.mtu).min(self.config.mtu);
        let plain = header_len(destination, false);
        if plain + payload.len() <= mtu {
            // Datagrams that need no cutting find the path's MTU (RFC 1191); ICMP's answers must arrive.
            #[allow(clippy::cast_possible_truncation, reason = "16 random bits")]
            let id = (!matches!(header.protocol, TCP | UDP)).then(|| self.rng.next_u64() as u16);
            emit_header(&mut out[HEADER..], header, payload.len(), id, None);
            let start = HEADER + plain;
            out[start..start + payload.len()].copy_from_slice(payload);
            return self.finish(out, mac, header, start + payload.len());
        }
        let longest = if destination.is_ipv4() { MAX_PACKET - 20 } else { MAX_PACKET };
        if payload.len() > longest {
            self.undeliverable(&reply(header, payload), Error::MessageTooLong);
            return Step::Progress;
        }
        #[allow(clippy::cast_possible_truncation, reason = "32 random bits")]
        let id = self.rng.next_u64() as u32;
        let room = mtu - header_len(destination, true);
        self.send_fragment(Outgoing { packet: reply(header, payload), mac, id, offset: 0, room }, out)
    }

    fn send_fragment(&mut self, mut outgoing: Outgoing, out: &mut [u8]) -> Step {
        let Reply { source, destination, protocol, tos, ttl, ref payload } = outgoing.packet;
        let header = Header { source, destination, protocol, tos, ttl };
        let offset = outgoing.offset;
        let (len, more) = cut(payload.len(), offset, outgoing.room);
        let Some(part) = payload.get(offset..offset + len) else { return Step::Progress };
        let written = emit_header(&mut out[HEADER..], &header, len, None, Some(Cut { offset, more, id: outgoing.id }));
        let start = HEADER + written;
        out[start..start + len].copy_from_slice(part);
        let mac = outgoing.mac;
        if more {
            outgoing.offset += len;
            self.outgoing = Some(outgoing);
        }
        self.finish(out, mac, &header, start + len)
    }
}

fn reply(h: &Header, payload: &[u8]) -> Reply {
    let Header { source, destination, protocol, tos, ttl } = *h;
    Reply { source, destination, protocol, tos, ttl, payload: payload.to_vec() }
}
