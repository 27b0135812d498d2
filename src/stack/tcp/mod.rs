//! TCP: segments in, segments and events out.

use crate::outbox::Outbox;
use crate::{
    Counters, Error, Event, Host, Instant, Limits, ListenAddress, Rss, SocketId, Stream, TcpConfig, TcpInfo,
    TcpOptions, Token,
};
use core::net::{IpAddr, SocketAddr};

/// What a call into TCP may use of the rest of the stack.
pub(crate) struct Context<'a> {
    pub now: Instant,
    pub host: &'a mut dyn Host,
    pub outbox: &'a mut Outbox,
    pub counters: &'a mut Counters,
    /// Largest IP packet of the link in bytes.
    pub mtu: usize,
}

/// What the IP header said of a segment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SegmentMeta {
    pub source: IpAddr,
    pub destination: IpAddr,
    /// DSCP and ECN bits.
    pub tos: u8,
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
    pub tos: u8,
    /// Hop limit, never 0.
    pub ttl: u8,
}

/// All of TCP of one shard.
pub(crate) struct Tcp {}

#[allow(unused_variables, clippy::needless_pass_by_ref_mut)]
impl Tcp {
    pub fn new(
        config: &TcpConfig,
        limits: &Limits,
        ephemeral_ports: (u16, u16),
        rss: Option<Rss>,
        seed: [u8; 32],
    ) -> Self {
        Self {}
    }
    pub fn handle_segment(
        &mut self,
        cx: &mut Context<'_>,
        meta: &SegmentMeta,
        segment: &[u8],
        answer_unknown: bool,
    ) -> Verdict {
        Verdict::Unknown
    }
    pub fn handle_icmp(
        &mut self,
        cx: &mut Context<'_>,
        local: SocketAddr,
        remote: SocketAddr,
        sequence: u32,
        error: IcmpError,
    ) {
    }
    pub fn handle_timers(&mut self, cx: &mut Context<'_>) {}
    pub fn next_deadline(&self) -> Option<Instant> {
        None
    }
    pub fn next_ready(&mut self) -> Option<Ready> {
        None
    }
    pub fn emit(&mut self, cx: &mut Context<'_>, ready: Ready, out: &mut [u8]) -> Option<Emitted> {
        None
    }
    pub fn defer(&mut self, ready: Ready, next_hop: IpAddr) {}
    pub fn resume(&mut self, next_hop: IpAddr) {}
    pub fn unreachable(&mut self, cx: &mut Context<'_>, next_hop: IpAddr) {}
    pub fn poll_event(&mut self) -> Option<Event> {
        None
    }
    pub fn listen(
        &mut self,
        token: Token,
        at: ListenAddress,
        backlog: u32,
        rx_capacity: u32,
        options: TcpOptions,
        reuse_port: bool,
    ) -> Result<SocketId, Error> {
        Err(Error::NoBuffers)
    }
    pub fn unlisten(&mut self, id: SocketId) {}
    pub fn connect(
        &mut self,
        cx: &mut Context<'_>,
        token: Token,
        local: SocketAddr,
        remote: SocketAddr,
        stream: Stream,
        options: TcpOptions,
    ) -> Result<(SocketId, SocketAddr), Error> {
        Err(Error::NoBuffers)
    }
    pub fn send(&mut self, now: Instant, id: SocketId, tx_tail: u64) -> Result<(), Error> {
        Err(Error::NoSuchSocket)
    }
    pub fn received(&mut self, now: Instant, id: SocketId, rx_head: u64) -> Result<(), Error> {
        Err(Error::NoSuchSocket)
    }
    pub fn finish(&mut self, now: Instant, id: SocketId) -> Result<(), Error> {
        Err(Error::NoSuchSocket)
    }
    pub fn close(&mut self, now: Instant, id: SocketId) -> Result<(), Error> {
        Err(Error::NoSuchSocket)
    }
    pub fn abort(&mut self, now: Instant, id: SocketId) -> Result<(), Error> {
        Err(Error::NoSuchSocket)
    }
    pub fn set_options(&mut self, now: Instant, id: SocketId, options: TcpOptions) -> Result<(), Error> {
        Err(Error::NoSuchSocket)
    }
    pub fn info(&self, id: SocketId) -> Result<TcpInfo, Error> {
        Err(Error::NoSuchSocket)
    }
    pub fn for_each(&self, f: &mut dyn FnMut(Token, SocketId, TcpInfo)) {}
}
