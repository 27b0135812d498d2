//! [`Stack`]: all of one shard's protocols behind one border. This file holds the border and the sockets' verbs; what
//! frames go through on their way in is in `ip`, on their way out in `egress`.

use crate::egress::{Arp, NextHopCache, Outgoing};
use crate::fragment::Reassembly;
use crate::icmp::{PathMtus, RateLimit};
use crate::neighbor::Neighbors;
use crate::outbox::{Outbox, Reply};
use crate::route::{Routes, loopback_of};
use crate::siphash::{Rng, SipKey};
use crate::tcp::Tcp;
use crate::udp::Udp;
use crate::{
    Counters, Error, Event, Host, Instant, ListenAddress, NeighborMode, NeighborUpdate, SocketId, StackConfig, Stray,
    Stream, TcpInfo, TcpOptions, Token,
};
use alloc::collections::VecDeque;
use alloc::vec;
use alloc::vec::Vec;
use core::net::{IpAddr, SocketAddr};

/// What to do about a packet that no socket here wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unknown {
    /// Another shard may own it: report, do nothing.
    Report,
    /// Last stop: answer (RST, ICMP port unreachable), rate-limited.
    Answer,
}

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It was used, or dropped and counted.
    Handled,
    /// No flow, listener or socket here for a TCP segment or UDP datagram to one of our addresses; nothing was done.
    Elsewhere {
        /// 6 or 17.
        protocol: u8,
        /// The port of our side.
        local_port: u16,
        /// Hash of addresses and ports, the same for all packets of a flow in this direction. Not keyed: fit to
        /// choose a place to look first, not to index a table that a peer could fill.
        hash: u32,
    },
}

/// A TCP/IP stack without a clock, threads or syscalls. The crate's page says in which order it is called.
pub struct Stack {
    pub(crate) config: StackConfig,
    pub(crate) routes: Routes,
    pub(crate) neighbors: Neighbors,
    pub(crate) hops: NextHopCache,
    pub(crate) reassembly: Reassembly,
    pub(crate) path_mtus: PathMtus,
    pub(crate) icmp_limit: RateLimit,
    pub(crate) rng: Rng,
    pub(crate) tcp: Tcp,
    pub(crate) udp: Udp,
    pub(crate) counters: Counters,
    /// Answers, oldest first.
    pub(crate) outbox: Outbox,
    /// Packets whose neighbour has become known.
    pub(crate) released: VecDeque<Reply>,
    /// ARP packets to send.
    pub(crate) arps: VecDeque<Arp>,
    /// The datagram whose fragments are being sent.
    pub(crate) outgoing: Option<Outgoing>,
    /// Addresses that the driver should resolve.
    pub(crate) wanted: VecDeque<IpAddr>,
    /// Room for the largest datagram that a program may send.
    pub(crate) scratch: Vec<u8>,
    /// Whether UDP sends before TCP this time.
    pub(crate) udp_first: bool,
    /// The last poll_frame stopped before everything was done.
    pub(crate) unfinished: bool,
    /// There are other shards.
    pub(crate) shared: bool,
    pub(crate) strays: VecDeque<Stray>,
    /// The newest time that was handed in.
    pub(crate) now: Instant,
}

/// The part of the stack that TCP may use, borrowed field by field so that `self.tcp` stays free.
macro_rules! context {
    ($stack:expr, $now:expr, $host:expr) => {
        &mut $crate::tcp::Context {
            now: $now,
            host: $host,
            outbox: &mut $stack.outbox,
            counters: &mut $stack.counters,
            mtu: $stack.config.mtu,
            routes: &$stack.routes,
            paths: &mut $stack.path_mtus,
        }
    };
}
pub(crate) use context;

impl Stack {
    /// Makes a stack. All that looks random comes from `seed`. With [`NeighborMode::Own`] its first frames announce its
    /// addresses.
    #[must_use]
    pub fn new(mut config: StackConfig, seed: [u8; 32]) -> Self {
        config.mtu = config.mtu.clamp(1280, 9000);
        let limits = &config.limits;
        let tcp = Tcp::new(&config.tcp, limits, config.ephemeral_ports, config.rss.clone(), seed);
        let mut stack = Self {
            routes: Routes::new(&config.addresses, &config.routes),
            neighbors: Neighbors::new(
                config.neighbor_mode,
                &config.neighbors,
                limits.neighbors,
                limits.packets_per_neighbor,
            ),
            hops: NextHopCache::new(),
            reassembly: Reassembly::new(),
            path_mtus: PathMtus::new(),
            icmp_limit: RateLimit::new(limits.replies_per_second),
            rng: Rng::new(SipKey::derive(&seed, b'i')),
            tcp,
            udp: Udp::new(config.ephemeral_ports, &seed),
            counters: Counters::default(),
            outbox: Outbox::new(limits.outbox),
            released: VecDeque::new(),
            arps: VecDeque::new(),
            outgoing: None,
            wanted: VecDeque::new(),
            scratch: vec![0; usize::from(u16::MAX)],
            udp_first: false,
            unfinished: false,
            shared: false,
            strays: VecDeque::new(),
            now: Instant::ZERO,
            config,
        };
        if stack.config.neighbor_mode == NeighborMode::Own {
            stack.announce();
        }
        stack
    }

    #[must_use]
    pub const fn config(&self) -> &StackConfig {
        &self.config
    }

    /// Other numbers for TCP and another MTU of the link, as a sysctl and a changed link give them: new connections
    /// have all of them, those that exist what they look up when they need it.
    pub fn reconfigure(&mut self, tcp: crate::TcpConfig, mtu: usize) {
        self.config.mtu = mtu.clamp(1280, 9000);
        self.config.tcp = tcp;
        self.tcp.reconfigure(tcp);
    }

    /// What was counted so far.
    #[must_use]
    pub const fn counters(&self) -> Counters {
        let mut counters = self.counters;
        counters.drop_queue_full += self.outbox.dropped;
        counters
    }

    /// Whether [`Self::poll_frame`] may give something.
    #[must_use]
    pub fn has_output(&self) -> bool {
        self.outgoing.is_some()
            || !self.arps.is_empty()
            || !self.outbox.is_empty()
            || !self.released.is_empty()
            || self.udp.has_ready()
            || self.tcp.has_ready()
    }

    /// Whether SYNs were left unanswered since this was asked last, because more of them came beyond the listeners'
    /// backlogs than a core should spend its time on.
    pub const fn take_flooded(&mut self) -> bool {
        self.tcp.take_flooded()
    }

    /// It is this time now, for whoever asks for numbers that depend on it. Everything else is told with what it does.
    pub const fn note_time(&mut self, now: Instant) {
        self.now = now;
    }

    /// Does what time asks for: retransmissions, giving up, forgetting.
    pub fn handle_timers(&mut self, now: Instant, host: &mut dyn Host) {
        self.now = now;
        self.tcp.handle_timers(context!(self, now, host));
        self.neighbors.handle_timers(now);
        self.settle_neighbors(now, host);
        self.expire_fragments(now);
    }

    /// When [`Self::handle_timers`] wants to be called next. None: not before something else happens.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        // What went beyond the budget of one poll_frame: come back at once.
        let rest = self.unfinished.then_some(self.now);
        [self.tcp.next_deadline(), self.neighbors.next_deadline(), self.reassembly.next_deadline(), rest]
            .into_iter()
            .flatten()
            .min()
    }

    /// The next thing to tell a program.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.tcp
            .poll_event()
            .or_else(|| self.udp.poll_event())
            .or_else(|| self.wanted.pop_front().map(|address| Event::NeighborWanted { address }))
    }

    /// The source address that packets to `remote` get. None: no route.
    #[must_use]
    pub fn source_for(&self, remote: IpAddr) -> Option<IpAddr> {
        self.routes.source_for(remote)
    }

    /// Whether `address` is one of ours, or a loopback address: those live in the stack when a program asks for them.
    #[must_use]
    pub fn owns(&self, address: IpAddr) -> bool {
        self.routes.is_local(address)
    }

    /// Takes what the kernel's table says of a neighbour. Only with [`NeighborMode::External`].
    pub fn neighbor_update(&mut self, now: Instant, update: NeighborUpdate) {
        self.now = now;
        if let Some(packets) = self.neighbors.update(now, update) {
            self.release(update.address, packets);
        }
    }

    /// Packets and connections that waited for `next_hop` may go.
    pub(crate) fn release(&mut self, next_hop: IpAddr, packets: VecDeque<Reply>) {
        self.released.extend(packets);
        self.tcp.resume(next_hop);
    }

    fn check_listen_address(&self, at: &ListenAddress) -> Result<(), Error> {
        match at.address {
            Some(address) if !self.routes.is_local(address) => Err(Error::AddressNotAvailable),
            _ => Ok(()),
        }
    }
}

/// TCP's verbs. Positions are bytes since the start of the stream.
impl Stack {
    /// Listens. `backlog` bounds the half-open connections; `rx_capacity` is the receive capacity of every stream that
    /// [`Host::accept`] will give.
    ///
    /// # Errors
    /// [`Error::AddressNotAvailable`] for an address that is not ours, [`Error::AddressInUse`].
    pub fn tcp_listen(
        &mut self,
        token: Token,
        at: ListenAddress,
        backlog: u32,
        rx_capacity: u32,
        options: TcpOptions,
        reuse_port: bool,
    ) -> Result<SocketId, Error> {
        self.check_listen_address(&at)?;
        self.tcp.listen(token, at, backlog, rx_capacity, options, reuse_port)
    }

    /// Stops listening; half-open connections go.
    pub fn tcp_unlisten(&mut self, id: SocketId) {
        self.tcp.unlisten(id);
    }

    /// Starts a connection. `local`: port 0 for any, an unspecified address or None for the one the route gives.
    /// `stream.token` is `token`. Gives the local address too.
    ///
    /// # Errors
    /// [`Error::NetworkUnreachable`] without a route, [`Error::AddressNotAvailable`] for an address that is not ours or
    /// when no port is free, [`Error::AddressInUse`], [`Error::NoBuffers`].
    #[allow(clippy::too_many_arguments, reason = "what a connection is made of")]
    pub fn tcp_connect(
        &mut self,
        now: Instant,
        token: Token,
        local: Option<SocketAddr>,
        remote: SocketAddr,
        stream: Stream,
        options: TcpOptions,
        host: &mut dyn Host,
    ) -> Result<(SocketId, SocketAddr), Error> {
        self.now = now;
        let mut remote = SocketAddr::new(remote.ip().to_canonical(), remote.port());
        if remote.ip().is_unspecified() {
            // As Linux: "any" as a destination means this host.
            remote.set_ip(loopback_of(remote.ip()));
        }
        if remote.ip().is_multicast() || self.routes.is_broadcast(remote.ip()) {
            return Err(Error::NetworkUnreachable);
        }
        let local = self.local_for(local, remote)?;
        self.tcp.connect(context!(self, now, host), token, local, remote, stream, options)
    }

    /// Bytes up to `tx_tail` may be sent.
    ///
    /// # Errors
    /// [`Error::NoSuchSocket`], as of all verbs below.
    pub fn tcp_send(&mut self, now: Instant, id: SocketId, tx_tail: u64) -> Result<(), Error> {
        self.tcp.send(now, id, tx_tail)
    }

    /// The program has read up to `rx_head`: there is room again.
    ///
    /// # Errors
    /// As [`Self::tcp_send`].
    pub fn tcp_received(&mut self, now: Instant, id: SocketId, rx_head: u64) -> Result<(), Error> {
        self.tcp.received(now, id, rx_head)
    }

    /// Nothing more will be sent: a FIN goes after the last byte. Receiving goes on (shutdown(SHUT_WR)).
    ///
    /// # Errors
    /// As [`Self::tcp_send`].
    pub fn tcp_finish(&mut self, now: Instant, id: SocketId) -> Result<(), Error> {
        self.tcp.finish(now, id)
    }

    /// Nobody holds the connection any more: what is announced is sent, what still comes is refused (close(2)).
    ///
    /// # Errors
    /// As [`Self::tcp_send`].
    pub fn tcp_close(&mut self, now: Instant, id: SocketId) -> Result<(), Error> {
        self.tcp.close(now, id)
    }

    /// Whether bytes came in order that the owner has not read: then [`Self::tcp_close`] resets.
    #[must_use]
    pub fn tcp_has_unread(&mut self, id: SocketId) -> bool {
        self.tcp.has_unread(id)
    }

    /// Ends the connection at once with a RST.
    ///
    /// # Errors
    /// As [`Self::tcp_send`].
    pub fn tcp_abort(&mut self, now: Instant, id: SocketId) -> Result<(), Error> {
        self.tcp.abort(now, id)
    }

    /// Changes the options of a connection.
    ///
    /// # Errors
    /// As [`Self::tcp_send`].
    pub fn tcp_set_options(&mut self, now: Instant, id: SocketId, options: TcpOptions) -> Result<(), Error> {
        self.tcp.set_options(now, id, options)
    }

    /// The numbers of a connection.
    ///
    /// # Errors
    /// As [`Self::tcp_send`].
    pub fn tcp_info(&self, id: SocketId) -> Result<TcpInfo, Error> {
        self.tcp.info(id, self.now)
    }

    /// A record of the owner's ends after `end` bytes of its stream (MSG_EOR): no segment holds bytes of both sides. To
    /// be said before what follows is sent.
    ///
    /// # Errors
    /// [`Error::NoSuchSocket`].
    pub fn tcp_end_record(&mut self, id: SocketId, end: u64) -> Result<(), Error> {
        self.tcp.end_record(id, end)
    }

    /// How many bytes a SYN to that server may carry (RFC 7413), as far as the server is the bound. None: it gave us no cookie, and one is needed.
    #[must_use]
    pub fn tcp_fast_open_room(&self, server: IpAddr) -> Option<u32> {
        self.tcp.fast_open_room(server.to_canonical())
    }

    /// Whether neither direction of a connection has bytes that are under way, here or in the network: whatever its
    /// program has read and written is all there is.
    #[must_use]
    pub fn tcp_is_quiet(&self, id: SocketId) -> bool {
        self.tcp.is_quiet(id)
    }

    /// Calls `f` for every connection and listener.
    pub fn tcp_for_each(&self, f: &mut dyn FnMut(Token, SocketId, TcpInfo)) {
        self.tcp.for_each(self.now, f);
    }

    /// The local address towards `remote`: `wanted` where it says something, else as routed. Its port may be 0.
    fn local_for(&self, wanted: Option<SocketAddr>, remote: SocketAddr) -> Result<SocketAddr, Error> {
        let routed = self.routes.source_for(remote.ip()).ok_or(Error::NetworkUnreachable)?;
        let Some(wanted) = wanted else { return Ok(SocketAddr::new(routed, 0)) };
        let address = wanted.ip().to_canonical();
        if address.is_unspecified() {
            return Ok(SocketAddr::new(routed, wanted.port()));
        }
        if !self.routes.is_local(address) || address.is_ipv4() != remote.is_ipv4() {
            return Err(Error::AddressNotAvailable);
        }
        // Loopback addresses reach nothing outside.
        if address.is_loopback() && !self.routes.is_local(remote.ip()) {
            return Err(Error::NetworkUnreachable);
        }
        Ok(SocketAddr::new(address, wanted.port()))
    }
}

/// UDP's verbs.
impl Stack {
    /// Opens a socket. `at.port` 0 picks a free port of the ephemeral range; [`Self::udp_local`] tells which. `reuse`:
    /// several sockets may have the port if all of them say so.
    ///
    /// # Errors
    /// [`Error::AddressNotAvailable`] for an address that is not ours or when no port is free,
    /// [`Error::AddressInUse`].
    pub fn udp_open(&mut self, token: Token, at: ListenAddress, reuse: bool) -> Result<SocketId, Error> {
        self.check_listen_address(&at)?;
        self.udp.open(token, at, reuse)
    }

    /// Opens a socket at a port that the host has decided about, beside those that are there. `reuse`: it shares what
    /// comes with others that do (SO_REUSEPORT); among those that don't, the latest gets it (SO_REUSEADDR).
    ///
    /// # Errors
    /// [`Error::AddressNotAvailable`]: not an address of ours. [`Error::NoBuffers`].
    pub fn udp_open_beside(&mut self, token: Token, at: ListenAddress, reuse: bool) -> Result<SocketId, Error> {
        self.check_listen_address(&at)?;
        self.udp.open_beside(token, at, reuse)
    }

    /// The address of a socket, as getsockname gives it.
    ///
    /// # Errors
    /// [`Error::NoSuchSocket`]
    pub fn udp_local(&self, id: SocketId) -> Result<SocketAddr, Error> {
        self.udp.get(id).map(crate::udp::Socket::local)
    }

    /// Connects to a peer: only its datagrams come in from now on, and the ICMP errors of what was sent to it. None
    /// undoes it. Gives the local address.
    ///
    /// # Errors
    /// [`Error::NoSuchSocket`]; [`Error::NetworkUnreachable`] without a route; [`Error::AddressNotAvailable`] when the
    /// socket's address can't talk to the peer's.
    pub fn udp_set_peer(
        &mut self,
        id: SocketId,
        peer: Option<SocketAddr>,
        _host: &mut dyn Host,
    ) -> Result<SocketAddr, Error> {
        let at = self.udp.get(id)?.at;
        let flow = match peer {
            None => None,
            Some(peer) => {
                let mut peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
                if peer.ip().is_unspecified() {
                    peer.set_ip(loopback_of(peer.ip()));
                }
                let local = self.local_for(at.address.map(|a| SocketAddr::new(a, at.port)), peer)?;
                Some((SocketAddr::new(local.ip(), at.port), peer))
            }
        };
        self.udp.set_flow(id, flow)?;
        self.udp_local(id)
    }

    /// [`Host::datagram_out`] has datagrams of this socket.
    pub fn udp_send_ready(&mut self, id: SocketId) {
        self.udp.set_ready(id);
    }

    /// Closes a socket. Datagrams that the host still has for it are not sent.
    pub fn udp_close(&mut self, id: SocketId) {
        self.udp.close(id);
    }

    /// Calls `f` for every socket with its local and its peer's address.
    pub fn udp_for_each(&self, f: &mut dyn FnMut(Token, SocketId, SocketAddr, Option<SocketAddr>)) {
        self.udp.for_each(f);
    }
}

impl core::fmt::Debug for Stack {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Stack").field("mac", &self.config.mac).field("counters", &self.counters).finish_non_exhaustive()
    }
}
