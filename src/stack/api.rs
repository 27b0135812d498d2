//! The types at the stack's border: what its driver hands in and gets back.

use crate::congestion::CongestionControl;
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::net::{IpAddr, SocketAddr};
use core::time::Duration;

/// The driver's own name for a socket or stream. The stack only hands it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(pub u64);

/// The stack's name for a socket. Stale ones are noticed and refused, never confused with a later socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SocketId {
    pub(crate) index: u32,
    pub(crate) generation: u32,
}

/// An Ethernet address.
pub type Mac = [u8; 6];

/// Memory and decisions that belong to the driver. Called from inside the stack; must not call back into it.
pub trait Host {
    /// A handshake on `listener` is complete. The stream that carries the connection from here on, or None to leave
    /// the last ACK unanswered as if it had been lost (no room in the accept queue).
    fn accept(&mut self, listener: Token, local: SocketAddr, remote: SocketAddr) -> Option<Stream>;
    /// Writes payload at a position of the receive stream: `at` is always less than `rx_capacity` beyond what the
    /// program has read, and may leave gaps that later calls fill.
    fn rx_write(&mut self, stream: Token, at: u64, data: &[u8]);
    /// Copies bytes of the transmit stream: from what was acknowledged to what `Stack::tcp_send` announced.
    fn tx_read(&mut self, stream: Token, at: u64, out: &mut [u8]);
    /// The receive buffer of `stream` should hold `bytes` from now on, more than it does; everything that was written
    /// so far lies below position `written`. Returns what it holds then; a host that can't give more keeps this
    /// default.
    fn rx_grow(&mut self, stream: Token, written: u64, bytes: u32) -> u32 {
        let _ = (stream, written, bytes);
        0
    }
    /// A datagram for `socket`. False when its queue is full: the stack counts it as dropped.
    fn datagram_in(&mut self, socket: Token, meta: &DatagramMeta, payload: &[u8]) -> bool;
    /// Takes the next datagram that `socket` wants to send, its payload copied to the front of `out`; None when there
    /// is none. A payload longer than `out` is dropped by the host and not returned.
    fn datagram_out(&mut self, socket: Token, out: &mut [u8]) -> Option<DatagramMeta>;
}

/// What [`Host::accept`] gives for a new connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream {
    pub token: Token,
    /// What the receive buffer holds at first, in bytes; [`Host::rx_grow`] may give more later. It must be what the
    /// listener announced.
    pub rx_capacity: u32,
    /// What the transmit buffer holds at first, in bytes. How much it should hold later is in
    /// [`TcpSnapshot::tx_limit`].
    pub tx_capacity: u32,
}

/// What goes with a datagram's payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DatagramMeta {
    /// Payload bytes.
    pub len: usize,
    /// In: our address. Out: the source, unspecified for "as routed".
    pub local: SocketAddr,
    /// In: the sender. Out: the destination.
    pub remote: SocketAddr,
    pub tos: u8,
    /// TTL or hop limit; out: 0 for the default.
    pub ttl: u8,
}

/// An address of the stack, with the prefix of its link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InterfaceAddress {
    pub address: IpAddr,
    /// 0 to 32 or 0 to 128.
    pub prefix_bits: u8,
}

/// A route. Longest prefix wins; among equals the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    pub network: IpAddr,
    pub prefix_bits: u8,
    /// None: on link.
    pub gateway: Option<IpAddr>,
}

/// A neighbour that needs no resolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StaticNeighbor {
    pub address: IpAddr,
    pub mac: Mac,
}

/// Who resolves neighbours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NeighborMode {
    /// The stack speaks ARP and NDP and answers for its addresses.
    Own,
    /// The kernel shares the addresses and answers; the driver feeds [`NeighborUpdate`]s and hears
    /// `Event::NeighborWanted`.
    External,
}

/// What is known of a neighbour by someone else (the kernel's table).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NeighborUpdate {
    pub address: IpAddr,
    /// None: it doesn't answer, or is gone.
    pub mac: Option<Mac>,
}

/// The NIC's receive-side scaling, so that answers to our connections come to our queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rss {
    /// Toeplitz key, 40 bytes or more.
    pub key: Vec<u8>,
    /// Indirection table: hash modulo its length gives the queue.
    pub indirection: Vec<u16>,
    /// This stack's queue.
    pub queue: u16,
}

/// Everything a stack is made with.
#[derive(Clone, Debug)]
pub struct StackConfig {
    pub mac: Mac,
    /// Largest IP packet in bytes, 1,280 to 9,000.
    pub mtu: usize,
    pub addresses: Vec<InterfaceAddress>,
    pub routes: Vec<Route>,
    pub neighbors: Vec<StaticNeighbor>,
    pub neighbor_mode: NeighborMode,
    /// First and last port for outgoing connections of this shard (each shard has its own range).
    pub ephemeral_ports: (u16, u16),
    pub rss: Option<Rss>,
    /// Whether the stack must compute and verify checksums. Off only in simulations that say so.
    pub checksums: bool,
    pub tcp: TcpConfig,
    pub limits: Limits,
}

/// TCP's numbers. Defaults are Linux's unless the field says why not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpConfig {
    /// RFC 6298 minimum retransmission timeout.
    pub min_rto: Duration,
    pub max_rto: Duration,
    /// SYN, SYN-ACK and data retransmissions before giving up (tcp_syn_retries, tcp_synack_retries, tcp_retries2).
    pub syn_retries: u8,
    pub synack_retries: u8,
    pub data_retries: u8,
    /// Longest time an ACK is held back (RFC 1122 4.2.3.2 allows 500 ms; Linux uses 40 ms).
    pub delayed_ack: Duration,
    /// TIME-WAIT, 2 x MSL as Linux counts it.
    pub time_wait: Duration,
    /// FIN-WAIT-2 without an owner (tcp_fin_timeout).
    pub fin_timeout: Duration,
    pub keepalive_idle: Duration,
    pub keepalive_interval: Duration,
    pub keepalive_probes: u8,
    pub timestamps: bool,
    pub window_scaling: bool,
    pub sack: bool,
    pub congestion: Congestion,
    /// Receive buffers: least, initial and most (tcp_rmem). As on Linux the initial window is half of the initial
    /// size; beyond that these are bytes of payload, because nothing else is in our buffers. The most also decides the
    /// window scale that is offered.
    pub rmem: [u32; 3],
    /// Send buffers: least, initial and most, in bytes of payload (tcp_wmem). The most is larger than Linux's 4 MiB,
    /// which can't fill 1 Gbit/s at 80 ms.
    pub wmem: [u32; 3],
    /// Whether segments become smaller, and larger again by trial, on a path that seems to drop large ones silently
    /// (RFC 4821; tcp_mtu_probing = 1, which Linux has off).
    pub mtu_probing: bool,
    pub ecn: Ecn,
    /// Spreads windows over round trips of a millisecond and more. Linux does where its queueing discipline is fq.
    pub pacing: bool,
    /// RFC 5681 4.1: a window that wasn't used shrinks (tcp_slow_start_after_idle).
    pub slow_start_after_idle: bool,
    /// RFC 8985 7 (tcp_early_retrans).
    pub tail_loss_probes: bool,
    /// Answers every SYN with a cookie (tcp_syncookies=2), not only those that find the queue full.
    pub always_cookies: bool,
    /// RFC 7413.
    pub fast_open: FastOpen,
    /// Its cookies' key, where several servers are to know each other's; None: one of this stack alone.
    pub fast_open_key: Option<[u8; 16]>,
}

/// Who may put data into SYNs (RFC 7413), as Linux's tcp_fastopen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools, reason = "the bits of one number")]
pub struct FastOpen {
    /// 1: connections of ours whose program asks for it.
    pub client: bool,
    /// 2: listeners whose program asks for it.
    pub server: bool,
    /// 4: of ours also without a cookie.
    pub client_without_cookie: bool,
    /// 0x200: to ours also without a cookie. Only where source addresses can't be forged.
    pub without_cookie: bool,
    /// 0x400: every listener, asked for or not.
    pub every_listener: bool,
}

impl FastOpen {
    /// Of Linux's number.
    #[must_use]
    pub const fn from_bits(bits: u32) -> Self {
        Self {
            client: bits & 1 != 0,
            server: bits & 2 != 0,
            client_without_cookie: bits & 4 != 0,
            without_cookie: bits & 0x200 != 0,
            every_listener: bits & 0x400 != 0,
        }
    }
}

/// Explicit congestion notification (RFC 3168), as Linux's tcp_ecn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ecn {
    /// 0: never.
    Off,
    /// 2: where the peer asks for it.
    Accept,
    /// 1: asked for as well.
    Request,
}

/// Congestion control of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Congestion {
    /// RFC 9438.
    Cubic,
    /// RFC 5681.
    Reno,
    /// RFC 8257, for networks of one owner whose switches mark early (ECN).
    Dctcp,
    /// BBR, its first version (draft-cardwell-iccrg-bbr-congestion-control-00): by the path's rate and round trip, for
    /// paths that lose without being full.
    Bbr,
    /// One that the stack's user brings.
    Custom(&'static Algorithm),
}

impl Congestion {
    /// The stack's own.
    pub const ALL: [Self; 4] = [Self::Cubic, Self::Reno, Self::Dctcp, Self::Bbr];

    /// As TCP_CONGESTION names it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cubic => "cubic",
            Self::Reno => "reno",
            Self::Dctcp => "dctcp",
            Self::Bbr => "bbr",
            Self::Custom(algorithm) => algorithm.name,
        }
    }

    /// See [`Algorithm::wants_marks`].
    #[must_use]
    pub const fn wants_marks(self) -> bool {
        match self {
            Self::Cubic | Self::Reno | Self::Bbr => false,
            Self::Dctcp => true,
            Self::Custom(algorithm) => algorithm.wants_marks,
        }
    }

    /// One of the stack's own by its name.
    #[must_use]
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|congestion| congestion.name() == name)
    }
}

/// A congestion controller that isn't the stack's own: a `static` of this type, given as [`Congestion::Custom`].
#[derive(Clone, Copy, Debug)]
pub struct Algorithm {
    /// At most 15 bytes, as TCP_CONGESTION takes no more; the same name means the same algorithm.
    pub name: &'static str,
    /// Makes one for a connection whose full segments have so many bytes. Called again when the peer's SYN says more.
    pub new: fn(mss: u32) -> Box<dyn CongestionControl>,
    /// It is told of ECN marks exactly ([`CongestionControl::on_delivery`]), as RFC 8257 needs it: connections ask for
    /// ECN, and echo the peer's marks segment by segment.
    pub wants_marks: bool,
}

impl PartialEq for Algorithm {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Algorithm {}

impl Default for TcpConfig {
    fn default() -> Self {
        Self {
            min_rto: Duration::from_millis(200),
            max_rto: Duration::from_secs(120),
            syn_retries: 6,
            synack_retries: 5,
            data_retries: 15,
            delayed_ack: Duration::from_millis(40),
            time_wait: Duration::from_secs(60),
            fin_timeout: Duration::from_secs(60),
            keepalive_idle: Duration::from_secs(7200),
            keepalive_interval: Duration::from_secs(75),
            keepalive_probes: 9,
            timestamps: true,
            window_scaling: true,
            sack: true,
            congestion: Congestion::Cubic,
            rmem: [4096, 131_072, 32 << 20],
            wmem: [4096, 131_072, 32 << 20],
            mtu_probing: true,
            ecn: Ecn::Accept,
            pacing: true,
            slow_start_after_idle: true,
            tail_loss_probes: true,
            always_cookies: false,
            fast_open: FastOpen::from_bits(1),
            fast_open_key: None,
        }
    }
}

/// Every table and queue of the stack has a limit; reaching it is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections in any state but TIME-WAIT and SYN-RECEIVED.
    pub connections: usize,
    /// Half-open connections over all listeners.
    pub half_open: usize,
    /// TIME-WAIT records; the oldest goes when one more comes.
    pub time_wait: usize,
    /// Entries of the neighbour cache.
    pub neighbors: usize,
    /// Packets held for one unresolved neighbour.
    pub packets_per_neighbor: usize,
    /// Answers (ARP, ICMP, RST) that wait to be sent.
    pub outbox: usize,
    /// ICMP errors and RSTs for unknown flows a second.
    pub replies_per_second: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 262_144,
            half_open: 16_384,
            time_wait: 131_072,
            neighbors: 1024,
            packets_per_neighbor: 8,
            outbox: 1024,
            replies_per_second: 1000,
        }
    }
}

/// Per-connection options, as setsockopt sets them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct TcpOptions {
    pub no_delay: bool,
    pub cork: bool,
    /// MSG_MORE: as `cork`, but only until an acknowledgment comes.
    pub more: bool,
    pub quick_ack: bool,
    pub keep_alive: bool,
    /// None: the configuration's.
    pub keepalive_idle: Option<Duration>,
    pub keepalive_interval: Option<Duration>,
    pub keepalive_probes: Option<u8>,
    pub user_timeout: Option<Duration>,
    /// TCP_MAXSEG: upper bound for the MSS, both announced and used.
    pub max_segment: Option<u16>,
    pub tos: u8,
    /// 0: 64.
    pub ttl: u8,
    /// SO_RCVBUF: bytes of payload that the receive buffer holds, for good; 0: it grows by itself.
    pub receive_buffer: u32,
    /// SO_SNDBUF, likewise.
    pub send_buffer: u32,
    /// TCP_WINDOW_CLAMP: the window is never announced larger; 0: no bound.
    pub window_clamp: u32,
    /// TCP_NOTSENT_LOWAT: the owner wants to hear when fewer bytes than this wait to be sent; 0: doesn't.
    pub notsent_lowat: u32,
    /// SO_MAX_PACING_RATE in bytes a second, 0: no bound.
    pub max_pacing_rate: u64,
    /// TCP_SYNCNT: SYN retransmissions; 0: the configuration's.
    pub syn_retries: u8,
    /// TCP_LINGER2: seconds in FIN-WAIT-2 without an owner; 0: the configuration's, below 0: none.
    pub linger2: i16,
    /// TCP_DEFER_ACCEPT of a listener in seconds: connections come to the owner with their first data.
    pub defer_accept: u8,
    /// TCP_FASTOPEN of a listener: connections that cookies may have opened before their peers answer. Of a connection:
    /// its SYN is to carry data, or to ask for a cookie. 0: neither.
    pub fast_open: u16,
    /// TCP_FASTOPEN_NO_COOKIE.
    pub fast_open_no_cookie: bool,
    pub mtu_discovery: MtuDiscovery,
    /// TCP_CONGESTION. None: the configuration's, or what the connection has already.
    pub congestion: Option<Congestion>,
}

/// IP_MTU_DISCOVER, with ip(7)'s numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum MtuDiscovery {
    /// Packets may be fragmented on the way; ICMP says nothing about the path.
    Dont = 0,
    /// Packets carry DF and ICMP lowers the path's MTU.
    #[default]
    Want = 1,
    /// The same, and datagrams that don't fit are refused.
    Do = 2,
    /// DF, but what ICMP says is ignored: for programs that probe by themselves.
    Probe = 3,
    /// The link's MTU always, without DF.
    Interface = 4,
    /// The same; datagrams beyond it are fragmented.
    Omit = 5,
}

impl MtuDiscovery {
    /// Of ip(7)'s number; None for others.
    #[must_use]
    pub const fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            0 => Self::Dont,
            1 => Self::Want,
            2 => Self::Do,
            3 => Self::Probe,
            4 => Self::Interface,
            5 => Self::Omit,
            _ => return None,
        })
    }

    /// Whether packets carry DF (RFC 1191 3).
    #[must_use]
    pub const fn dont_fragment(self) -> bool {
        matches!(self, Self::Want | Self::Do | Self::Probe)
    }

    /// Whether ICMP may lower the path's MTU.
    #[must_use]
    pub const fn believes_icmp(self) -> bool {
        matches!(self, Self::Want | Self::Do)
    }
}

/// Where a listener listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListenAddress {
    /// None: any address of the families below.
    pub address: Option<IpAddr>,
    pub port: u16,
    pub ipv4: bool,
    pub ipv6: bool,
}

/// What happened to a socket since the last time: the newest values, however many changes there were.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    Tcp {
        token: Token,
        socket: SocketId,
        state: TcpSnapshot,
    },
    /// A new connection took a stream of [`Host::accept`]; its first `Tcp` event follows.
    Accepted {
        listener: Token,
        stream: Token,
        socket: SocketId,
        local: SocketAddr,
        remote: SocketAddr,
    },
    /// An ICMP error for a datagram that `token` had sent.
    DatagramError {
        token: Token,
        error: Error,
    },
    /// Datagrams of `token` left: there is room again.
    DatagramSent {
        token: Token,
    },
    /// [`NeighborMode::External`]: someone should resolve this address.
    NeighborWanted {
        address: IpAddr,
    },
}

/// A connection as its owner sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpSnapshot {
    pub state: TcpState,
    /// Bytes received in order since the start.
    pub rx_tail: u64,
    /// Bytes of ours acknowledged since the start.
    pub tx_head: u64,
    /// Bytes of ours sent since the start.
    pub tx_next: u64,
    /// How much the transmit buffer should hold, in bytes. Never less than before.
    pub tx_limit: u32,
    /// How much the receive buffer may hold, in bytes.
    pub rx_limit: u32,
    /// Payload of a full segment to the peer, in bytes.
    pub send_mss: u32,
    /// The peer's FIN came and everything before it.
    pub peer_finished: bool,
    /// Why the connection broke, once.
    pub error: Option<Error>,
    /// The stack is done with the connection: its stream memory is the driver's again and `socket` is stale.
    pub released: bool,
}

/// RFC 9293 3.3.2, numbered as in Linux's tcp_states.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum TcpState {
    Established = 1,
    SynSent = 2,
    SynReceived = 3,
    FinWait1 = 4,
    FinWait2 = 5,
    TimeWait = 6,
    Closed = 7,
    CloseWait = 8,
    LastAck = 9,
    Listen = 10,
    Closing = 11,
}

/// Why something failed; each stands for one errno of Linux.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Error {
    /// ECONNREFUSED
    Refused,
    /// ECONNRESET
    Reset,
    /// EPIPE: a reset after the peer had finished its half.
    BrokenPipe,
    /// ECONNABORTED
    Aborted,
    /// ETIMEDOUT
    TimedOut,
    /// EHOSTUNREACH: no answer to neighbour resolution, or an ICMP message says so.
    HostUnreachable,
    /// ENETUNREACH: no route.
    NetworkUnreachable,
    /// EADDRINUSE
    AddressInUse,
    /// EADDRNOTAVAIL: not an address of ours, or no free port.
    AddressNotAvailable,
    /// EMSGSIZE
    MessageTooLong,
    /// ENOBUFS: a limit was reached.
    NoBuffers,
    /// EBADF for a stale or foreign [`SocketId`].
    NoSuchSocket,
    /// EPROTO: an ICMP protocol error.
    Protocol,
}

/// What the stack counted. All only grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Counters {
    pub frames_in: u64,
    pub bytes_in: u64,
    pub frames_out: u64,
    pub bytes_out: u64,
    pub arp_in: u64,
    pub icmp_in: u64,
    pub udp_in: u64,
    pub udp_out: u64,
    /// Packets from one of our addresses to another, which went over no wire.
    pub loopback: u64,
    pub tcp_in: u64,
    pub tcp_out: u64,
    pub tcp_retransmits: u64,
    pub tcp_resets_in: u64,
    pub tcp_resets_out: u64,
    pub tcp_opened_active: u64,
    pub tcp_opened_passive: u64,
    pub tcp_closed: u64,
    pub tcp_challenge_acks: u64,
    /// Frames not for us, or of a protocol that we don't speak.
    pub drop_not_ours: u64,
    pub drop_malformed: u64,
    pub drop_checksum: u64,
    pub drop_no_socket: u64,
    pub drop_queue_full: u64,
    pub drop_backlog: u64,
    pub drop_no_neighbor: u64,
    pub drop_no_route: u64,
    pub drop_rate_limited: u64,
    pub drop_fragment: u64,
}
