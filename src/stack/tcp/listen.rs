//! Listeners and half-open connections: small records until the handshake is complete, and no record at all (a cookie,
//! RFC 4987) when there are too many.

use super::buffer::{Opening, opening};
use super::connection::{Agreed, Connection, own_mss};
use super::ecn;
use super::fast_open::Cookie;
use super::flow::{FlowKey, FlowRef};
use super::output::{reply, reply_reset};
use super::segment::{ACK, ECE, FIN, Header, RST, SYN, Segment, TIMESTAMP_SPACE};
use super::{Context, SegmentMeta, Tcp, Verdict, isn};
use crate::wheel::TimerId;
use crate::{Ecn, Event, Instant, ListenAddress, SocketId, TcpConfig, TcpInfo, TcpOptions, TcpState, Token};
use alloc::sync::Arc;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use core::time::Duration;

/// First retransmission of a SYN-ACK (RFC 6298 2.1).
const INITIAL_TIMEOUT: Duration = Duration::from_secs(1);
/// A cookie is good for this long and at most twice that.
const COOKIE_PERIOD_BITS: u32 = 36;
/// Segment sizes that a cookie can tell.
const COOKIE_MSS: [u16; 8] = [88, 536, 1220, 1300, 1400, 1440, 1460, 8940];
/// The low bits of our timestamp carry what else the SYN had: 4 bits of window shift (15: none), 1 of SACK and
/// 1 of ECN.
const COOKIE_OPTION_BITS: u32 = 6;
const COOKIE_NO_SCALE: u32 = 15;

/// A socket that listens.
#[derive(Debug)]
pub(super) struct Listener {
    pub token: Token,
    pub at: ListenAddress,
    pub backlog: u32,
    pub rx_capacity: u32,
    pub options: Arc<TcpOptions>,
    pub reuse_port: bool,
    /// Half-open connections that are its own.
    pub half_open: u32,
    /// Connections that a cookie opened and whose peer has not answered yet.
    pub fast_opening: u32,
}

impl Listener {
    /// Whether it takes connections to this address, and how exactly: larger is more exact.
    pub fn matches(&self, local: IpAddr) -> Option<u8> {
        let family = if local.is_ipv4() { self.at.ipv4 } else { self.at.ipv6 };
        match self.at.address {
            Some(address) => (address == local).then_some(1),
            None => family.then_some(0),
        }
    }

    /// Whether two listeners on one port would contend for a connection.
    pub fn overlaps(&self, at: &ListenAddress) -> bool {
        match (self.at.address, at.address) {
            (Some(ours), Some(theirs)) => ours == theirs,
            (Some(address), None) => takes_family(at, address),
            (None, Some(address)) => takes_family(&self.at, address),
            (None, None) => self.at.ipv4 && at.ipv4 || self.at.ipv6 && at.ipv6,
        }
    }

    pub fn info(&self) -> TcpInfo {
        let any = if self.at.ipv6 { IpAddr::V6(Ipv6Addr::UNSPECIFIED) } else { IpAddr::V4(Ipv4Addr::UNSPECIFIED) };
        let local = self.at.address.unwrap_or(any);
        let remote = if local.is_ipv4() { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { any };
        TcpInfo {
            backlog: self.backlog,
            half_open: self.half_open,
            ..TcpInfo::new(TcpState::Listen, (local, self.at.port).into(), (remote, 0).into())
        }
    }
}

/// Timeouts of a SYN-ACK in so many seconds.
fn deferred_retries(seconds: u8) -> u8 {
    let (mut retries, mut timeout, mut total) = (1, 1_u32, 1_u32);
    while total < u32::from(seconds) {
        retries += 1;
        timeout = (timeout * 2).min(120);
        total += timeout;
    }
    retries
}

const fn takes_family(at: &ListenAddress, address: IpAddr) -> bool {
    if address.is_ipv4() { at.ipv4 } else { at.ipv6 }
}

/// A SYN that was answered.
#[derive(Clone, Copy, Debug)]
pub(super) struct HalfOpen {
    pub key: FlowKey,
    hash: u64,
    irs: u32,
    iss: u32,
    /// 0: the peer didn't say.
    mss: u16,
    /// [`COOKIE_NO_SCALE`]: no scaling.
    scale: u8,
    sack: bool,
    timestamps: bool,
    ecn: bool,
    timestamp_recent: u32,
    timestamp_offset: u32,
    pub listener: u32,
    pub listener_generation: u32,
    retries: u8,
    /// The handshake is complete, and the owner wants to hear of it with the first data only (TCP_DEFER_ACCEPT).
    deferred: bool,
    sent_at: Instant,
    pub timer: Option<TimerId>,
}

const _: () = assert!(size_of::<HalfOpen>() <= 112);

impl HalfOpen {
    fn agreed(&self) -> Agreed {
        Agreed {
            mss: Some(self.mss).filter(|mss| *mss != 0),
            scale: Some(self.scale).filter(|scale| u32::from(*scale) != COOKIE_NO_SCALE),
            sack: self.sack,
            timestamp: self.timestamps.then_some(self.timestamp_recent),
            ecn: self.ecn,
        }
    }

    pub fn info(&self) -> TcpInfo {
        TcpInfo {
            timestamps: self.timestamps,
            sack: self.sack,
            ..TcpInfo::new(TcpState::SynReceived, self.key.local(), self.key.remote())
        }
    }

    /// The receive buffer as our answer tells of it.
    fn opening(&self, config: &TcpConfig, listener: &Listener, mss: u16) -> Opening {
        let options = if self.timestamps { TIMESTAMP_SPACE as u32 } else { 0 };
        opening(config, listener.rx_capacity, &listener.options, u32::from(mss) - options)
    }

    fn answer(&self, cx: &mut Context<'_>, config: &TcpConfig, listener: &Listener, timestamp: u32) {
        self.answer_with(cx, config, listener, timestamp, None);
    }

    fn answer_with(
        &self,
        cx: &mut Context<'_>,
        config: &TcpConfig,
        listener: &Listener,
        timestamp: u32,
        cookie: Option<&Cookie>,
    ) {
        let scaled = u32::from(self.scale) != COOKIE_NO_SCALE && config.window_scaling;
        let mss = own_mss(self.key.local, cx.mtu_to(self.key.remote, listener.rx_capacity), &listener.options);
        let opening = self.opening(config, listener, mss);
        let header = Header {
            source_port: self.key.local_port,
            destination_port: self.key.remote_port,
            seq: self.iss,
            ack: self.irs.wrapping_add(1),
            flags: if self.ecn { SYN | ACK | ECE } else { SYN | ACK },
            window: opening.window as u16,
            mss: Some(mss),
            scale: scaled.then_some(opening.scale),
            sack_permitted: self.sack,
            timestamps: self.timestamps.then_some((timestamp, self.timestamp_recent)),
            fast_open: cookie,
            sack: &[],
        };
        reply(cx, &self.key, &header, listener.options.tos, listener.options.ttl);
    }
}

impl Tcp {
    /// The listener for a connection to this address. Among equals (SO_REUSEPORT) the tuple decides, so that a
    /// retransmitted SYN comes to the same one.
    pub(super) fn find_listener(&self, local: IpAddr, port: u16, hash: u64) -> Option<u32> {
        let here = self.ports.get(&port)?;
        let rank = |index: &u32| self.listeners.get(*index).and_then(|listener| listener.matches(local));
        let best = here.iter().filter_map(rank).max()?;
        let count = here.iter().filter(|index| rank(index) == Some(best)).count();
        // The upper half: the lower one chose the flow table's slot and may have chosen the queue.
        let nth = (hash >> 32) as usize % count;
        here.iter().filter(|index| rank(index) == Some(best)).nth(nth).copied()
    }

    /// RFC 9293 3.10.7.2 for a SYN. `sequence`: the least initial number, when a TIME-WAIT makes room.
    pub(super) fn on_syn(
        &mut self,
        cx: &mut Context<'_>,
        key: FlowKey,
        hash: u64,
        segment: &Segment<'_>,
        listener_index: u32,
        sequence: Option<u32>,
    ) {
        let generation = self.listeners.generation(listener_index);
        let Some(listener) = self.listeners.get_mut(listener_index) else { return };
        let exact = listener.options.congestion.unwrap_or(self.config.congestion).wants_marks();
        let mut half_open = HalfOpen {
            key,
            hash,
            irs: segment.seq,
            iss: 0,
            mss: segment.mss.unwrap_or(0),
            scale: segment.scale.filter(|_| self.config.window_scaling).unwrap_or(COOKIE_NO_SCALE as u8),
            sack: segment.sack_permitted && self.config.sack,
            timestamps: segment.timestamps.is_some() && self.config.timestamps,
            ecn: ecn::accepts(self.config.ecn, segment, exact),
            timestamp_recent: segment.timestamps.map_or(0, |t| t.value),
            timestamp_offset: self.secrets.timestamp_offset(&key),
            listener: listener_index,
            listener_generation: generation,
            retries: 0,
            deferred: false,
            sent_at: cx.now,
            timer: None,
        };
        let timestamp = isn::timestamp(cx.now, half_open.timestamp_offset);
        let full = listener.half_open >= listener.backlog.max(1) || self.half_open.len() >= self.limits.half_open;
        if full || self.config.always_cookies {
            cx.counters.drop_backlog += u64::from(full);
            let id = hash ^ u64::from(segment.seq).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            if !self.gate.admit(cx.now, id) {
                cx.counters.drop_rate_limited += 1;
                return;
            }
            self.cookies_sent_at = Some(cx.now);
            if !half_open.timestamps {
                // Without a timestamp nothing brings them back: what we can't remember must not be agreed on.
                half_open.scale = COOKIE_NO_SCALE as u8;
                half_open.sack = false;
                half_open.ecn = false;
            }
            half_open.iss = self.cookie(&half_open, cx.now);
            let timestamp = cookie_timestamp(timestamp, &half_open);
            half_open.answer(cx, &self.config, listener_ref(&self.listeners, listener_index), timestamp);
            return;
        }
        let iss = self.secrets.initial_sequence(&key, cx.now);
        half_open.iss = match sequence {
            Some(least) if iss.wrapping_sub(least).cast_signed() < 0 => least,
            _ => iss,
        };
        let cookie = match self.on_fast_open(&key, segment, listener_index) {
            Ok(cookie) => cookie,
            Err(()) => {
                let opening = (half_open.iss, half_open.agreed());
                if self.open_fast(cx, key, hash, segment, listener_index, opening) {
                    return;
                }
                None
            }
        };
        let Some(listener) = self.listeners.get_mut(listener_index) else { return };
        listener.half_open += 1;
        half_open.answer_with(cx, &self.config, listener, timestamp, cookie.as_ref());
        let (index, _) = self.half_open.insert(half_open);
        let timer = self.wheel.insert(cx.now + INITIAL_TIMEOUT, FlowRef::HalfOpen(index).pack());
        if let Some(half_open) = self.half_open.get_mut(index) {
            half_open.timer = Some(timer);
        }
        self.flows.insert(hash, FlowRef::HalfOpen(index));
    }

    /// RFC 9293 3.10.7.4 for SYN-RECEIVED.
    pub(super) fn on_half_open(&mut self, cx: &mut Context<'_>, index: u32, segment: &Segment<'_>) {
        let Some(half_open) = self.half_open.get(index).copied() else { return };
        let Some(listener) = self.listeners.get(half_open.listener) else { return };
        let offset = segment.seq.wrapping_sub(half_open.irs.wrapping_add(1));
        let timestamp = isn::timestamp(cx.now, half_open.timestamp_offset);
        if segment.has(RST) {
            // RFC 5961 3.2: exactly the next number; one that is merely in the window is questioned below.
            if offset == 0 {
                cx.counters.tcp_resets_in += 1;
                self.drop_half_open(index);
                return;
            }
        }
        if segment.has(SYN) && !segment.has(ACK) && segment.seq == half_open.irs {
            // Our SYN-ACK was lost, or is under way.
            half_open.answer(cx, &self.config, listener, timestamp);
            return;
        }
        let older = segment.timestamps.is_some_and(|t| {
            half_open.timestamps && half_open.timestamp_recent.wrapping_sub(t.value).cast_signed() > 0
        });
        let mss =
            own_mss(half_open.key.local, cx.mtu_to(half_open.key.remote, listener.rx_capacity), &listener.options);
        let opening = half_open.opening(&self.config, listener, mss);
        let window = opening.window;
        let outside = offset >= window.max(1);
        let reset = segment.has(RST);
        if reset && outside {
            return;
        }
        if segment.has(SYN) || older || outside || reset {
            // RFC 9293 3.10.7.4, first: an ACK that says where we are. Only the window of a SYN isn't scaled (RFC 7323 2.2).
            let scaled = u32::from(half_open.scale) != COOKIE_NO_SCALE && self.config.window_scaling;
            let header = Header {
                source_port: half_open.key.local_port,
                destination_port: half_open.key.remote_port,
                seq: half_open.iss.wrapping_add(1),
                ack: half_open.irs.wrapping_add(1),
                flags: ACK,
                window: (window >> if scaled { opening.scale } else { 0 }) as u16,
                timestamps: half_open.timestamps.then_some((timestamp, half_open.timestamp_recent)),
                ..Header::default()
            };
            if self.allow_reply(cx, half_open.key.remote) {
                cx.counters.tcp_challenge_acks += 1;
                reply(cx, &half_open.key, &header, 0, 0);
            }
            return;
        }
        if !segment.has(ACK) {
            return;
        }
        if segment.ack != half_open.iss.wrapping_add(1) {
            if self.allow_reply(cx, half_open.key.remote) {
                reply_reset(cx, &half_open.key, segment.ack, None);
            }
            return;
        }
        let wait = listener.options.defer_accept;
        if wait > 0 && segment.payload.is_empty() && !segment.has(FIN) && half_open.retries < deferred_retries(wait) {
            // As Linux: the ACK is forgotten but for this, and the SYN-ACK is repeated once the time is over.
            if let Some(half_open) = self.half_open.get_mut(index) {
                half_open.deferred = true;
            }
            return;
        }
        // The flow must lead to one record only, so the old goes first; if there is no room it stays as it was, and
        // the SYN-ACK is repeated (as Linux with tcp_abort_on_overflow = 0).
        self.establish(cx, &half_open, Some(index), segment);
    }

    /// An ACK for no flow: perhaps it brings a cookie back. False if not.
    pub(super) fn on_cookie(
        &mut self,
        cx: &mut Context<'_>,
        key: FlowKey,
        hash: u64,
        segment: &Segment<'_>,
        listener: u32,
    ) -> bool {
        // Only for as long as one that was sent can be good: an ACK flood at other times costs nothing.
        let lifetime = Duration::from_nanos(2 << COOKIE_PERIOD_BITS);
        if self.cookies_sent_at.is_none_or(|at| cx.now.since(at) > lifetime) {
            return false;
        }
        let mut half_open = HalfOpen {
            key,
            hash,
            irs: segment.seq.wrapping_sub(1),
            iss: segment.ack.wrapping_sub(1),
            mss: 0,
            scale: COOKIE_NO_SCALE as u8,
            sack: false,
            timestamps: false,
            ecn: false,
            timestamp_recent: 0,
            timestamp_offset: self.secrets.timestamp_offset(&key),
            listener,
            listener_generation: self.listeners.generation(listener),
            retries: 0,
            deferred: false,
            sent_at: cx.now,
            timer: None,
        };
        let Some(mss) = self.check_cookie(&half_open, cx.now) else { return false };
        half_open.mss = mss;
        // A time that no sample can be taken from.
        half_open.retries = 1;
        if let Some(timestamps) = segment.timestamps.filter(|_| self.config.timestamps) {
            let options = timestamps.echo.wrapping_sub(half_open.timestamp_offset) & ((1 << COOKIE_OPTION_BITS) - 1);
            half_open.timestamps = true;
            half_open.timestamp_recent = timestamps.value;
            half_open.scale = (options & 15).min(COOKIE_NO_SCALE) as u8;
            half_open.sack = options >> 4 & 1 == 1 && self.config.sack;
            half_open.ecn = options >> 5 == 1 && self.config.ecn != Ecn::Off;
        }
        self.establish(cx, &half_open, None, segment);
        true
    }

    /// The handshake is complete: a stream for it, if there is room.
    fn establish(&mut self, cx: &mut Context<'_>, half_open: &HalfOpen, index: Option<u32>, segment: &Segment<'_>) {
        if self.connections.len() >= self.limits.connections {
            cx.counters.drop_backlog += 1;
            return;
        }
        let Some(listener) = self.listeners.get(half_open.listener) else { return };
        let (local, remote) = (half_open.key.local(), half_open.key.remote());
        let Some(stream) = cx.host.accept(listener.token, local, remote) else {
            cx.counters.drop_backlog += 1;
            return;
        };
        let setup = super::connection::Setup {
            key: half_open.key,
            hash: half_open.hash,
            stream,
            options: &listener.options,
            iss: half_open.iss,
            timestamp_offset: half_open.timestamp_offset,
            mtu: cx.mtu_to(remote.ip(), stream.rx_capacity),
            path_mtu: cx.path_mtu(remote.ip(), cx.mtu_to(remote.ip(), stream.rx_capacity), &listener.options),
            loopback: cx.is_loopback(remote.ip()),
        };
        let mut connection = Connection::passive(&setup, &self.config, half_open.irs, &half_open.agreed(), cx.now);
        if half_open.retries == 0 {
            let took = cx.now.since(half_open.sent_at);
            connection.rtt.sample(cx.now, took, took);
        }
        let listener = listener.token;
        if let Some(index) = index {
            self.drop_half_open(index);
        }
        let hash = half_open.hash;
        let (index, generation) = self.connections.insert(alloc::boxed::Box::new(connection));
        self.flows.insert(hash, FlowRef::Connection(index));
        cx.counters.tcp_opened_passive += 1;
        let socket = SocketId { index, generation };
        self.push_event(Event::Accepted { listener, stream: stream.token, socket, local, remote });
        self.on_connection(cx, index, segment);
    }

    pub(super) fn on_half_open_timer(&mut self, cx: &mut Context<'_>, index: u32) {
        let Some(half_open) = self.half_open.get_mut(index) else { return };
        half_open.timer = None;
        let listener = self.listeners.get(half_open.listener);
        // As Linux (syn_ack_recalc): one that only waits for data waits for its time, and asks again at the end of it.
        let wait = listener.map_or(0, |l| l.options.defer_accept);
        let patience = if half_open.deferred { deferred_retries(wait) } else { 0 };
        let (Some(listener), true) = (listener, half_open.retries < self.config.synack_retries.max(patience)) else {
            self.drop_half_open(index);
            return;
        };
        let silent = half_open.deferred && half_open.retries + 1 < patience;
        half_open.retries += 1;
        let timeout = INITIAL_TIMEOUT.saturating_mul(1 << half_open.retries.min(16)).min(self.config.max_rto);
        half_open.timer = Some(self.wheel.insert(cx.now + timeout, FlowRef::HalfOpen(index).pack()));
        if silent {
            return;
        }
        cx.counters.tcp_retransmits += 1;
        half_open.answer(cx, &self.config, listener, isn::timestamp(cx.now, half_open.timestamp_offset));
    }

    pub(super) fn drop_half_open(&mut self, index: u32) {
        let Some(half_open) = self.half_open.remove(index) else { return };
        self.flows.remove(half_open.hash, FlowRef::HalfOpen(index));
        if let Some(timer) = half_open.timer {
            self.wheel.remove(timer);
        }
        if self.listeners.is_current(half_open.listener, half_open.listener_generation)
            && let Some(listener) = self.listeners.get_mut(half_open.listener)
        {
            listener.half_open = listener.half_open.saturating_sub(1);
        }
    }

    /// The number that stands for a half-open connection without a record: 29 bits of keyed hash over the tuple, the
    /// peer's number and the period, and 3 bits of segment size hidden by another hash.
    fn cookie(&self, half_open: &HalfOpen, now: Instant) -> u32 {
        let index = COOKIE_MSS.iter().rposition(|mss| *mss <= half_open.mss).unwrap_or(0);
        // A peer that said nothing gets the default.
        let index = if half_open.mss == 0 { 1 } else { index };
        self.cookie_for(half_open, now.as_nanos() >> COOKIE_PERIOD_BITS, index as u32)
    }

    fn cookie_for(&self, half_open: &HalfOpen, period: u64, mss: u32) -> u32 {
        let flow = half_open.key.hash(self.secrets.cookie);
        let mac = self.secrets.cookie.hash_words([flow, u64::from(half_open.irs), period]);
        // The period's low bit travels openly, so that the answer is looked for in one place.
        (mac as u32 & !0xf) | (period as u32 & 1) << 3 | (mss ^ (mac >> 32) as u32) & 7
    }

    /// The peer's segment size, if `half_open.iss` is a cookie of ours.
    fn check_cookie(&self, half_open: &HalfOpen, now: Instant) -> Option<u16> {
        let current = now.as_nanos() >> COOKIE_PERIOD_BITS;
        let period = if current as u32 & 1 == half_open.iss >> 3 & 1 { current } else { current.checked_sub(1)? };
        (0..8).find(|mss| self.cookie_for(half_open, period, *mss) == half_open.iss).map(|mss| COOKIE_MSS[mss as usize])
    }

    /// Whether a segment that nobody asked for may be answered.
    pub(super) fn allow_reply(&mut self, cx: &mut Context<'_>, to: IpAddr) -> bool {
        // Our own programs are no flood; Linux doesn't limit RSTs to itself either.
        let allowed = cx.is_loopback(to) || self.replies.take(cx.now);
        if !allowed {
            cx.counters.drop_rate_limited += 1;
        }
        allowed
    }

    /// RFC 9293 3.10.7.1, CLOSED.
    pub(super) fn answer_unknown(
        &mut self,
        cx: &mut Context<'_>,
        meta: &SegmentMeta,
        segment: &Segment<'_>,
    ) -> Verdict {
        cx.counters.drop_no_socket += 1;
        if segment.has(RST) || is_unanswerable(meta.source) || is_unanswerable(meta.destination) {
            return Verdict::Handled;
        }
        if self.allow_reply(cx, meta.source) {
            let key = FlowKey {
                local: meta.destination,
                remote: meta.source,
                local_port: segment.destination_port,
                remote_port: segment.source_port,
            };
            if segment.has(ACK) {
                reply_reset(cx, &key, segment.ack, None);
            } else {
                reply_reset(cx, &key, 0, Some(segment.seq.wrapping_add(segment.len())));
            }
        }
        Verdict::Handled
    }
}

/// RFC 1122 4.2.3.10: neither from nor to such an address is there a connection.
pub(super) fn is_unanswerable(address: IpAddr) -> bool {
    address.is_unspecified() || address.is_multicast() || matches!(address, IpAddr::V4(v4) if v4.is_broadcast())
}

/// Whether a SYN may open a connection: with RST or FIN it is a probe (Linux drops it too).
pub(super) const fn is_opening(segment: &Segment<'_>) -> bool {
    segment.has(SYN) && segment.flags & (ACK | RST | FIN) == 0
}

fn listener_ref(listeners: &super::slab::Slab<Listener>, index: u32) -> &Listener {
    listeners.get(index).expect("looked up before")
}

fn cookie_timestamp(now: u32, half_open: &HalfOpen) -> u32 {
    let mask = (1 << COOKIE_OPTION_BITS) - 1;
    let clock = now.wrapping_sub(half_open.timestamp_offset);
    let options = u32::from(half_open.scale) & 15 | u32::from(half_open.sack) << 4 | u32::from(half_open.ecn) << 5;
    // Never ahead of the clock: later timestamps must not look older.
    let mut value = clock & !mask | options;
    if value > clock {
        value = value.wrapping_sub(1 << COOKIE_OPTION_BITS);
    }
    value.wrapping_add(half_open.timestamp_offset)
}

/// So many answers a second, and as many at once.
#[derive(Debug)]
pub(super) struct Bucket {
    rate: u64,
    /// Billionths of an answer.
    tokens: u64,
    filled_at: Instant,
}

impl Bucket {
    pub fn new(rate: u32) -> Self {
        let rate = u64::from(rate);
        Self { rate, tokens: rate * 1_000_000_000, filled_at: Instant::ZERO }
    }

    pub fn take(&mut self, now: Instant) -> bool {
        let elapsed = u64::try_from(now.since(self.filled_at).as_nanos()).unwrap_or(u64::MAX);
        let full = self.rate * 1_000_000_000;
        self.tokens = elapsed.saturating_mul(self.rate).saturating_add(self.tokens).min(full);
        self.filled_at = self.filled_at.max(now);
        let Some(rest) = self.tokens.checked_sub(1_000_000_000) else { return false };
        self.tokens = rest;
        true
    }
}
