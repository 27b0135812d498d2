//! TCP: segments in, segments and events out.
//!
//! ```text
//!   handle_segment ─▶ segment (parse) ─▶ flow (whose?) ─┬▶ listen: SYNs, half-open connections, cookies
//!                                                       ├▶ input: a connection's state changes
//!                                                       └▶ time_wait
//!   handle_timers  ─▶ wheel ─▶ timers, listen
//!   verbs          ─▶ connection
//!                        │
//!                        ▼ settle
//!   poll_event ◀─ events ┴ ready queue ─▶ next_ready, emit ─▶ output: plan, build (scoreboard in recovery)
//! ```
//!
//! Whatever touches a connection ends in [`Tcp::settle`], which looks at what has become of it: an event for its owner,
//! a place in the ready queue, its timer, its end.

mod acks;
mod assembler;
mod buffer;
pub mod congestion;
mod connection;
mod delivery;
mod ecn;
mod fast_open;
mod flow;
mod gate;
mod info;
mod input;
mod isn;
mod large;
mod listen;
mod output;
mod path;
mod rare;
mod rate;
mod recovery;
mod rtt;
mod segment;
mod slab;
pub(crate) mod stages;
mod stats;
#[cfg(test)]
mod tests;
mod time_wait;
mod timers;
mod verbs;

use crate::icmp::PathMtus;
use crate::outbox::Outbox;
use crate::route::{LOOPBACK_MTU, Routes};
use crate::wheel::Wheel;
use crate::{Counters, Error, Event, Host, Instant, Limits, Rss, SocketId, TcpConfig, TcpOptions, TcpState};
use alloc::boxed::Box;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::sync::Arc;
use alloc::vec::Vec;
use connection::{Connection, NEVER};
use core::net::{IpAddr, SocketAddr};
use core::time::Duration;
use flow::{FlowKey, FlowRef, FlowTable};
use isn::Secrets;
pub(crate) use large::Train;
use listen::{Bucket, HalfOpen, Listener};
use output::Plan;
use segment::{ACK, MIN_HEADER, RST, SYN, Segment};
use slab::Slab;
use time_wait::{TimeWaits, Wake};

/// What a call into TCP may use of the rest of the stack.
pub(crate) struct Context<'a> {
    pub now: Instant,
    pub host: &'a mut dyn Host,
    pub outbox: &'a mut Outbox,
    pub counters: &'a mut Counters,
    /// Largest IP packet of the link in bytes.
    pub mtu: usize,
    pub routes: &'a Routes,
    /// What paths take, where it is less than the link.
    pub paths: &'a mut PathMtus,
}

impl Context<'_> {
    /// Whether `remote` is ourselves: then no wire is between the two ends.
    pub fn is_loopback(&self, remote: IpAddr) -> bool {
        self.routes.is_local(remote)
    }

    /// Largest IP packet in bytes for a connection with `remote` whose receive ring has `capacity` bytes.
    pub fn mtu_to(&self, remote: IpAddr, capacity: u32) -> usize {
        if self.is_loopback(remote) {
            // Four segments fill the ring: with fewer, each would wait for the ACK of the one before.
            LOOPBACK_MTU.min((capacity / 4) as usize).max(self.mtu)
        } else {
            self.mtu
        }
    }

    /// Largest IP packet that gets to `remote`, of a link that takes `mtu`.
    pub fn path_mtu(&self, remote: IpAddr, mtu: usize, options: &TcpOptions) -> usize {
        if !options.mtu_discovery.believes_icmp() || self.is_loopback(remote) {
            return mtu;
        }
        self.paths.get(self.now, remote).map_or(mtu, |path| path.min(mtu))
    }
}

/// What the IP header said of a segment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SegmentMeta {
    pub source: IpAddr,
    pub destination: IpAddr,
    /// DSCP and ECN bits.
    pub tos: u8,
    /// Nothing depends on it without a minimum TTL (RFC 5082).
    #[allow(dead_code)]
    pub ttl: u8,
}

/// What [`Tcp::handle_segment`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Handled,
    /// Nothing was done: the segment belongs to no flow or listener here, another shard may own it.
    Unknown,
}

/// An ICMP error that quotes a segment of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum IcmpError {
    Unreachable(Error),
    /// Fragmentation needed or packet too big: the next hop's MTU in bytes, 0 if it doesn't say.
    TooBig {
        mtu: u32,
    },
}

/// A connection with something to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ready {
    pub conn: ReadyId,
    pub source: IpAddr,
    pub destination: IpAddr,
}

/// Which connection a [`Ready`] means. Only TCP looks inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ReadyId {
    index: u32,
    generation: u32,
}

/// A segment that [`Tcp::emit`] built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Emitted {
    /// Bytes of TCP header and payload.
    pub len: usize,
    /// The packet may be fragmented on the way (IP_MTU_DISCOVER).
    pub fragmentable: bool,
    pub tos: u8,
    /// Hop limit, never 0.
    pub ttl: u8,
}

/// All of TCP of one shard.
#[derive(Debug)]
pub(crate) struct Tcp {
    config: TcpConfig,
    limits: Limits,
    ephemeral_ports: (u16, u16),
    rss: Option<Rss>,
    secrets: Secrets,
    /// Every connection in any state but LISTEN, by its four-tuple.
    flows: FlowTable,
    /// Boxed, so that a growing table moves pointers and not connections.
    connections: Slab<Box<Connection>>,
    half_open: Slab<HalfOpen>,
    time_waits: TimeWaits,
    listeners: Slab<Listener>,
    /// Listeners by port.
    ports: BTreeMap<u16, Vec<u32>>,
    wheel: Wheel,
    ready: VecDeque<ReadyId>,
    /// Connections that wait for a neighbour to be resolved, by next hop.
    deferred: BTreeMap<IpAddr, Vec<ReadyId>>,
    events: VecDeque<Pending>,
    cookies_sent_at: Option<Instant>,
    /// Of Fast Open, from servers.
    cookies: fast_open::Cookies,
    gate: gate::Gate,
    /// For answers to segments of no connection.
    replies: Bucket,
    /// What sockets were last given: most have the same.
    options: Arc<TcpOptions>,
    /// Connections ended and not counted yet.
    closed: u64,
}

/// An event that waits to be polled.
#[derive(Debug)]
enum Pending {
    /// What this connection has to say then.
    Changed(ReadyId),
    Whole(Event),
}

impl Tcp {
    pub fn new(
        config: &TcpConfig,
        limits: &Limits,
        ephemeral_ports: (u16, u16),
        rss: Option<Rss>,
        seed: [u8; 32],
    ) -> Self {
        Self {
            config: *config,
            limits: *limits,
            ephemeral_ports,
            rss,
            secrets: Secrets::new(&seed),
            flows: FlowTable::new(),
            connections: Slab::new(),
            half_open: Slab::new(),
            time_waits: TimeWaits::new(limits.time_wait, config.time_wait),
            listeners: Slab::new(),
            ports: BTreeMap::new(),
            wheel: Wheel::new(),
            ready: VecDeque::new(),
            deferred: BTreeMap::new(),
            events: VecDeque::new(),
            cookies_sent_at: None,
            cookies: fast_open::Cookies::default(),
            gate: gate::Gate::new(),
            replies: Bucket::new(limits.replies_per_second),
            options: Arc::default(),
            closed: 0,
        }
    }

    pub const fn reconfigure(&mut self, config: TcpConfig) {
        self.config = config;
    }

    pub const fn take_flooded(&mut self) -> bool {
        self.gate.take_refused()
    }

    /// Takes a segment, header and payload, whose checksum was verified. One that belongs to no flow or listener here
    /// is answered (RFC 9293 3.10.7.1) if `answer_unknown`, and otherwise left untouched.
    pub fn handle_segment(
        &mut self,
        cx: &mut Context<'_>,
        meta: &SegmentMeta,
        segment: &[u8],
        answer_unknown: bool,
    ) -> Verdict {
        let Some(mut segment) = Segment::parse(segment) else {
            cx.counters.tcp_in += 1;
            cx.counters.drop_malformed += 1;
            return Verdict::Handled;
        };
        segment.ecn = meta.tos & 3;
        let key = FlowKey {
            local: meta.destination,
            remote: meta.source,
            local_port: segment.destination_port,
            remote_port: segment.source_port,
        };
        let hash = key.table_hash(self.secrets.flow);
        let mut sequence = None;
        match self.find(&key, hash) {
            Some(FlowRef::Connection(index)) => {
                cx.counters.tcp_in += 1;
                self.on_connection(cx, index, &segment);
                return Verdict::Handled;
            }
            Some(FlowRef::HalfOpen(index)) => {
                cx.counters.tcp_in += 1;
                self.on_half_open(cx, index, &segment);
                return Verdict::Handled;
            }
            Some(FlowRef::TimeWait(index)) => match self.time_waits.on_segment(cx, &self.secrets, index, &segment) {
                Wake::Reuse { sequence: least } if self.find_listener(key.local, key.local_port, hash).is_some() => {
                    self.drop_time_wait(index);
                    sequence = Some(least);
                }
                _ => {
                    cx.counters.tcp_in += 1;
                    return Verdict::Handled;
                }
            },
            None => {}
        }
        if let Some(listener) = self.find_listener(key.local, key.local_port, hash) {
            if listen::is_unanswerable(meta.source)
                || meta.source == meta.destination && key.local_port == key.remote_port
            {
                // LAND: a connection with itself can't come from outside.
                cx.counters.tcp_in += 1;
                cx.counters.drop_malformed += 1;
                return Verdict::Handled;
            }
            if listen::is_opening(&segment) {
                cx.counters.tcp_in += 1;
                self.on_syn(cx, key, hash, &segment, listener, sequence);
                return Verdict::Handled;
            }
            if segment.flags & (SYN | ACK | RST) == ACK && self.on_cookie(cx, key, hash, &segment, listener) {
                cx.counters.tcp_in += 1;
                return Verdict::Handled;
            }
            if segment.flags & (RST | ACK) == 0 {
                // SYN with FIN, or no flag at all: scans. RFC 9293 3.10.7.2 drops them too, in its fourth step. A RST
                // or an ACK goes on, because it may be for a connection of this port that another shard has.
                cx.counters.tcp_in += 1;
                cx.counters.drop_malformed += 1;
                return Verdict::Handled;
            }
        }
        if !answer_unknown {
            return Verdict::Unknown;
        }
        cx.counters.tcp_in += 1;
        self.answer_unknown(cx, meta, &segment)
    }

    /// Takes an ICMP error that quotes a segment of ours, from `local` to `remote`, with this sequence number.
    /// False when there is no such connection here.
    pub fn handle_icmp(
        &mut self,
        cx: &mut Context<'_>,
        local: SocketAddr,
        remote: SocketAddr,
        sequence: u32,
        error: IcmpError,
    ) -> bool {
        let key = FlowKey::new(local, remote);
        let Some(FlowRef::Connection(index)) = self.find(&key, key.table_hash(self.secrets.flow)) else { return false };
        let Some(connection) = self.connections.get_mut(index) else { return false };
        // RFC 5927 4.1: the quoted segment must be in flight.
        let position = connection.send_position(sequence);
        if position < connection.una || position >= connection.nxt {
            return true;
        }
        match error {
            // RFC 5461 4.1: before a connection is there, believe it; afterwards it is only remembered.
            IcmpError::Unreachable(error) if connection.state == TcpState::SynSent || connection.is_opening_fast() => {
                connection.end(Some(error));
            }
            IcmpError::Unreachable(error) => connection.soft_error = Some(error),
            IcmpError::TooBig { mtu } => {
                // RFC 1191 and 8200 5: no link is smaller. As Linux, IPv4 is not lowered below 552 (min_pmtu): it
                // takes one forged message to get there.
                let least = if local.is_ipv4() { 552 } else { 1280 };
                let mtu = (mtu as usize).max(least).min(cx.mtu);
                if connection.options.mtu_discovery.believes_icmp() {
                    // RFC 1191 5.2: what one connection learned the next ones to that host begin with.
                    if mtu < cx.mtu {
                        cx.paths.note(cx.now, remote.ip(), mtu);
                    }
                    connection.limit_path(mtu, cx.now);
                }
            }
        }
        self.settle(cx.now, index);
        true
    }

    /// Does what is due. To be called when [`Self::next_deadline`] has come.
    pub fn handle_timers(&mut self, cx: &mut Context<'_>) {
        while let Some(key) = self.wheel.pop(cx.now) {
            match FlowRef::unpack(key) {
                FlowRef::Connection(index) => {
                    if let Some(connection) = self.connections.get_mut(index) {
                        connection.timer = None;
                        connection.timer_at = NEVER;
                        connection.on_timer(cx.now, &self.config);
                        self.settle(cx.now, index);
                    }
                }
                FlowRef::HalfOpen(index) => self.on_half_open_timer(cx, index),
                FlowRef::TimeWait(_) => {}
            }
        }
        while let Some(index) = self.time_waits.pop_expired(cx.now) {
            self.drop_time_wait(index);
        }
        cx.counters.tcp_closed += core::mem::take(&mut self.closed);
    }

    /// When [`Self::handle_timers`] should be called next.
    pub fn next_deadline(&self) -> Option<Instant> {
        match (self.wheel.next(), self.time_waits.next_deadline()) {
            (Some(wheel), Some(other)) => Some(wheel.min(other)),
            (wheel, other) => wheel.or(other),
        }
    }

    /// The next connection with something to send, oldest first; it leaves the queue.
    pub fn next_ready(&mut self) -> Option<Ready> {
        while let Some(conn) = self.ready.pop_front() {
            if self.connections.is_current(conn.index, conn.generation)
                && let Some(connection) = self.connections.get_mut(conn.index)
            {
                connection.queued = false;
                return Some(Ready { conn, source: connection.key.local, destination: connection.key.remote });
            }
        }
        None
    }

    /// Whether [`Self::next_ready`] may give something.
    pub fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Builds the connection's next segment at the front of `out`. With more to send it goes to the end of the queue.
    pub fn emit(&mut self, cx: &mut Context<'_>, ready: Ready, out: &mut [u8]) -> Option<Emitted> {
        if !self.connections.is_current(ready.conn.index, ready.conn.generation) {
            return None;
        }
        let connection = self.connections.get_mut(ready.conn.index)?;
        let Some(plan) = connection.plan(cx.now) else {
            self.settle(cx.now, ready.conn.index);
            return None;
        };
        let emitted = if out.len() < MIN_HEADER { None } else { connection.build(cx, &self.config, plan, out) };
        if emitted.is_none() && plan == Plan::Reset {
            connection.reset_due = false;
        }
        if emitted.is_some() || plan == Plan::Reset {
            self.settle(cx.now, ready.conn.index);
            cx.counters.tcp_closed += core::mem::take(&mut self.closed);
        }
        emitted
    }

    /// Parks a connection of [`Self::next_ready`] until [`Self::resume`] or [`Self::unreachable`] for its next hop.
    pub fn defer(&mut self, ready: Ready, next_hop: IpAddr) {
        if let Some(connection) = self.current(ready.conn)
            && !connection.queued
        {
            connection.queued = true;
            self.deferred.entry(next_hop).or_default().push(ready.conn);
        }
    }

    /// The next hop is known.
    pub fn resume(&mut self, next_hop: IpAddr) {
        self.ready.extend(self.deferred.remove(&next_hop).unwrap_or_default());
    }

    /// The next hop doesn't answer.
    pub fn unreachable(&mut self, cx: &mut Context<'_>, next_hop: IpAddr) {
        let config = self.config;
        for conn in self.deferred.remove(&next_hop).unwrap_or_default() {
            let Some(connection) = self.current(conn) else { continue };
            connection.queued = false;
            connection.reset_due = false;
            match connection.state {
                TcpState::SynSent => connection.end(Some(Error::HostUnreachable)),
                TcpState::Closed => {}
                _ => {
                    // It would ask again at once; the retransmission timer asks soon enough, and gives up in time.
                    connection.soft_error = Some(Error::HostUnreachable);
                    connection.ack_due = false;
                    connection.probe_due = false;
                    connection.park(cx.now, &config);
                }
            }
            self.settle(cx.now, conn.index);
        }
    }

    /// The next thing that a socket's owner should know.
    pub fn poll_event(&mut self) -> Option<Event> {
        loop {
            match self.events.pop_front()? {
                Pending::Whole(event) => return Some(event),
                Pending::Changed(id) => {
                    if let Some(connection) = self.current(id)
                        && !connection.released
                        && !connection.orphan
                    {
                        connection.event_queued = false;
                        connection.changed = false;
                        return Some(Event::Tcp {
                            token: connection.token,
                            socket: SocketId { index: id.index, generation: id.generation },
                            state: connection.snapshot(),
                        });
                    }
                }
            }
        }
    }

    fn find(&self, key: &FlowKey, hash: u64) -> Option<FlowRef> {
        self.flows.find(hash, |reference| match reference {
            FlowRef::Connection(index) => self.connections.get(index).is_some_and(|c| c.key == *key),
            FlowRef::HalfOpen(index) => self.half_open.get(index).is_some_and(|h| h.key == *key),
            FlowRef::TimeWait(index) => self.time_waits.get(index).is_some_and(|t| t.is_of(key)),
        })
    }

    fn current(&mut self, id: ReadyId) -> Option<&mut Connection> {
        if !self.connections.is_current(id.index, id.generation) {
            return None;
        }
        self.connections.get_mut(id.index).map(|connection| &mut **connection)
    }

    fn push_event(&mut self, event: Event) {
        self.events.push_back(Pending::Whole(event));
    }

    fn on_connection(&mut self, cx: &mut Context<'_>, index: u32, segment: &Segment<'_>) {
        if let Some(connection) = self.connections.get_mut(index) {
            connection.on_segment(cx, &self.config, segment);
            if connection.fast_open().is_some() {
                self.end_fast(index);
            }
            self.settle(cx.now, index);
            cx.counters.tcp_closed += core::mem::take(&mut self.closed);
        }
    }

    /// Looks at what has become of a connection. To be called after anything that touched it.
    fn settle(&mut self, now: Instant, index: u32) {
        let id = ReadyId { index, generation: self.connections.generation(index) };
        let Some(connection) = self.connections.get_mut(index) else { return };
        let over = matches!(connection.state, TcpState::Closed | TcpState::TimeWait);
        // Nobody reads any more and everything written is acknowledged: the memory isn't needed for what remains.
        let unneeded = connection.orphan && connection.state == TcpState::FinWait2;
        if (over || unneeded) && !connection.released {
            connection.released = true;
            let socket = SocketId { index, generation: id.generation };
            let event = Event::Tcp { token: connection.token, socket, state: connection.snapshot() };
            self.events.push_back(Pending::Whole(event));
        }
        if over && !connection.reset_due {
            self.free(now, index);
            return;
        }
        let plan = connection.plan(now);
        if plan.is_some() && !connection.queued {
            connection.queued = true;
            self.ready.push_back(id);
        }
        if connection.changed && !connection.event_queued && !connection.orphan && !connection.released {
            connection.event_queued = true;
            self.events.push_back(Pending::Changed(id));
        }
        if plan.is_some() && connection.timer_at != NEVER {
            // What it sends brings it here again, most likely within this turn. Until then the timer that is armed will do.
            return;
        }
        connection.note_limit(now);
        connection.update_timers(now, &self.config, plan.is_none());
        let mut deadline = connection.deadline(&self.config);
        if plan.is_none()
            && let Some(at) = connection.paced_until(now)
        {
            deadline = deadline.min(at);
        }
        if deadline < connection.timer_at {
            if let Some(timer) = connection.timer.take() {
                self.wheel.remove(timer);
            }
            // Not before the next tick: a deadline that stays in the past must not keep `handle_timers` from returning.
            let at = deadline.max(now + Duration::from_nanos(1));
            connection.timer = Some(self.wheel.insert(at, FlowRef::Connection(index).pack()));
            connection.timer_at = deadline;
        }
    }

    /// Ends a connection's record; TIME-WAIT goes on in its own.
    fn free(&mut self, now: Instant, index: u32) {
        if self.connections.get(index).is_some_and(|c| c.fast_open().is_some()) {
            self.end_fast(index);
        }
        let Some(connection) = self.connections.remove(index) else { return };
        self.closed += 1;
        if let Some(timer) = connection.timer {
            self.wheel.remove(timer);
        }
        self.flows.remove(connection.hash.into(), FlowRef::Connection(index));
        if connection.state == TcpState::TimeWait && self.limits.time_wait > 0 {
            let record = self.time_waits.record(&connection, now);
            let index = self.time_waits.insert(record);
            self.flows.insert(connection.hash.into(), FlowRef::TimeWait(index));
            if self.time_waits.is_over_limit()
                && let Some(oldest) = self.time_waits.pop_expired(now)
            {
                self.drop_time_wait(oldest);
            }
        }
    }

    fn drop_time_wait(&mut self, index: u32) {
        if let Some(record) = self.time_waits.get(index) {
            let hash = record.key().table_hash(self.secrets.flow);
            self.flows.remove(hash, FlowRef::TimeWait(index));
            self.time_waits.remove(index);
        }
    }
}
