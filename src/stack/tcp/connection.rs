//! One connection: its state, what its owner sees of it, what its owner asks of it. What comes in changes it in
//! `input`, what goes out is decided in `output`, what time does to it is in `timers`.
//!
//! **Positions.** Inside, sequence numbers are 64 bits wide and never wrap: the SYN is at [`ORIGIN`], the first byte of
//! the stream right after it, the FIN after the last byte. The low 32 bits are the offset from the initial sequence
//! number on the wire, because `ORIGIN` is a multiple of 2^32; it is not 0 so that there is room below for old segments.

use super::acks::Reduction;
use super::assembler::Assembler;
use super::buffer;
use super::buffer::ReceiveBuffer;
use super::congestion::{self, CongestionControl};
use super::delivery::Delivery;
use super::ecn::EcnState;
use super::flow::FlowKey;
use super::path::Path;
use super::rare::Rare;
use super::rate::Usage;
use super::recovery::Scoreboard;
use super::rtt::Rtt;
use super::segment::{MIN_HEADER, TIMESTAMP_SPACE};
use super::stats::Stats;
use crate::wheel::TimerId;
use crate::{Congestion, Error, Instant, Stream, TcpConfig, TcpOptions, TcpSnapshot, TcpState, Token};
use alloc::boxed::Box;
use alloc::sync::Arc;
use core::net::IpAddr;
use core::num::NonZeroU64;
use core::time::Duration;

/// Position of a SYN.
pub(super) const ORIGIN: u64 = 1 << 32;
/// Position of a stream's first byte.
pub(super) const FIRST: u64 = ORIGIN + 1;
/// A deadline that isn't set.
pub(super) const NEVER: Instant = Instant::from_nanos(u64::MAX);

/// RFC 9293 3.7.1: what a peer that doesn't say takes.
const DEFAULT_MSS_V4: u16 = 536;
const DEFAULT_MSS_V6: u16 = 1220;
/// Smallest segment that we send, options included, whatever the peer says: with smaller ones it could make us work
/// for nothing (CVE-2019-11479).
pub(super) const MIN_MSS: u16 = 88;
/// RFC 6298 5.7.
const FALLBACK_TIMEOUT: Duration = Duration::from_secs(3);
/// Most that a program may have written and not acknowledged, in bytes, whatever its buffer is. Larger is damage.
const MOST_QUEUED: u64 = 1 << 30;
/// First guess of what the peer's full segments are.
const MIN_RECEIVE_MSS: u32 = 536;
/// ACKs at once at the beginning of a connection, where the peer is in slow start (as Linux).
const QUICK_ACKS: u8 = 16;
/// Answers to segments that don't fit the window, per connection and second (RFC 5961 7).
const ANSWERS_PER_SECOND: u8 = 10;

/// What the two SYNs agreed on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Agreed {
    /// The peer's option; None for the default.
    pub mss: Option<u16>,
    /// The peer's window shift; None: no scaling in either direction.
    pub scale: Option<u8>,
    pub sack: bool,
    /// The peer's timestamp; None: no timestamps.
    pub timestamp: Option<u32>,
    /// Explicit congestion notification (RFC 3168).
    pub ecn: bool,
}

/// What a connection is made from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Setup<'a> {
    pub key: FlowKey,
    pub hash: u64,
    pub stream: Stream,
    pub options: &'a Arc<TcpOptions>,
    pub iss: u32,
    pub timestamp_offset: u32,
    /// Largest IP packet of the link, and of the path as far as is known.
    pub mtu: usize,
    pub path_mtu: usize,
    pub loopback: bool,
}

/// No range: see [`Connection::duplicate`].
pub(super) const NO_RANGE: (u64, u64) = (0, 0);

/// SND.NXT when a tail loss probe left, and whether the probe was a repetition, in one word.
#[derive(Clone, Copy, Debug)]
pub(super) struct TailProbe(NonZeroU64);

impl TailProbe {
    /// None for an end of 0, which is no position of a stream.
    pub fn new(end: u64, repetition: bool) -> Option<Self> {
        NonZeroU64::new(end << 1 | u64::from(repetition)).filter(|_| end > 0).map(Self)
    }

    pub const fn end(self) -> u64 {
        self.0.get() >> 1
    }

    pub const fn is_repetition(self) -> bool {
        self.0.get() & 1 == 1
    }
}

#[derive(Debug)]
pub(super) struct Connection {
    pub key: FlowKey,
    /// The part of the hash that the flow table looks at.
    pub hash: u32,
    pub token: Token,
    pub state: TcpState,
    /// Shared with other connections that have the same.
    pub options: Arc<TcpOptions>,
    /// Why it broke; told to the owner once.
    pub error: Option<Error>,
    /// What ICMP said last: reported if the connection times out (RFC 5461).
    pub soft_error: Option<Error>,

    // What the tables around it keep here.
    /// In the ready queue, or parked for a neighbour.
    pub queued: bool,
    pub event_queued: bool,
    /// The owner should hear of something.
    pub changed: bool,
    /// The owner has closed it.
    pub orphan: bool,
    /// The stream's memory was given back.
    pub released: bool,
    pub timer: Option<TimerId>,
    /// When the wheel will look; may be earlier than needed, never later.
    pub timer_at: Instant,

    // What was agreed.
    pub iss: u32,
    pub irs: u32,
    pub timestamps: bool,
    pub sack: bool,
    pub send_scale: u8,
    pub receive_scale: u8,
    pub is_scaled: bool,
    pub timestamp_offset: u32,
    /// With ourselves: no wire, no checksums, long segments.
    pub loopback: bool,
    pub timestamp_recent: u32,
    pub timestamp_recent_at: Instant,

    // Sending.
    pub una: u64,
    pub nxt: u64,
    /// After the last byte that the owner wrote.
    pub tail: u64,
    /// The owner will write no more: a FIN belongs at `tail`.
    pub finishing: bool,
    /// Right edge of the peer's window.
    pub send_edge: u64,
    pub max_window: u64,
    /// SND.WL1 and SND.WL2.
    pub window_seq: u64,
    pub window_ack: u64,
    /// Payload and options of a full segment.
    pub mss: u16,
    pub path: Path,
    /// What the send buffer should hold; grows with the congestion window.
    pub transmit_limit: u32,
    /// End of the last segment that wasn't full: with Nagle (as Minshall has it) there is only one unacknowledged.
    pub small_end: u64,
    pub last_send: Instant,
    /// Since when nothing new was acknowledged though something should be.
    pub stalled_since: Instant,
    pub board: Scoreboard,
    pub congestion: Box<dyn CongestionControl>,
    /// Only where the congestion control wants it.
    pub delivery: Option<Box<Delivery>>,
    /// How the window goes down, while it does.
    pub reduction: Reduction,
    pub usage: Usage,
    /// Nothing is sent before this: pacing.
    pub pace_at: Instant,
    pub rtt: Rtt,
    pub ecn: EcnState,
    pub rare: Option<Box<Rare>>,
    /// Data went with a SYN, and was taken.
    pub syn_data: bool,
    /// How often the timeout was doubled since the last sample (RFC 6298 5.5), and timeouts since the last progress.
    pub backoff: u8,
    pub timeouts: u8,
    /// What the last reduction was for may turn out not to have happened.
    pub may_restore: bool,
    pub retransmits: u32,
    /// Segments that D-SACKs have called needless.
    pub needless: u32,
    /// Segments delivered, and of these acknowledged with a mark.
    pub delivered: u32,
    pub delivered_marked: u32,

    // What the next segments are for.
    pub syn_due: bool,
    pub reset_due: bool,
    pub ack_due: bool,
    /// ACKs beyond the next one: without SACK, each segment out of order has to be answered by its own, because the
    /// peer counts them (RFC 5681 3.2).
    pub more_acks: u8,
    pub probe_due: bool,
    /// A tail loss probe (RFC 8985 7): nothing came back for two round trips.
    pub tail_probe_due: bool,
    /// The last tail loss probe until it is acknowledged.
    pub tail_probe: Option<TailProbe>,
    /// Send what the window allows though it is little: the override of RFC 9293 3.8.6.2.1.
    pub small_due: bool,

    // Deadlines.
    /// Retransmission, or window probe if `persisting`.
    pub retransmit_at: Instant,
    pub persisting: bool,
    /// When a segment that was overtaken counts as lost.
    pub reorder_at: Instant,
    pub ack_at: Instant,
    pub cork_at: Instant,
    /// End of FIN-WAIT-2 without an owner.
    pub linger_at: Instant,
    /// Nothing is sent before this: the next hop didn't answer.
    pub parked_until: Instant,
    pub last_receive: Instant,
    pub keepalives: u8,
    /// Window probes without any answer.
    pub probes: u8,

    // Receiving.
    pub rx_nxt: u64,
    /// How far the owner has read.
    pub rx_head: u64,
    /// Right edge of the window as announced; never moves back.
    pub rx_edge: u64,
    pub buffer: ReceiveBuffer,
    /// The window of our SYN, in bytes.
    pub first_window: u16,
    /// Where the peer's FIN is; `u64::MAX` before it was seen.
    pub fin_at: u64,
    pub peer_finished: bool,
    pub assembler: Assembler,
    pub receive_mss: u32,
    /// Our announced MSS.
    pub announced_mss: u16,
    /// Up to where the peer knows that we have everything.
    pub acked: u64,
    pub quick_acks: u8,
    /// The program answers what it gets, so ACKs may wait for its answers.
    pub interactive: bool,
    /// A range that came twice, for the next ACK (RFC 2883). `(0, 0)`: none, which no range can be; an Option would take
    /// eight bytes more in every connection.
    pub duplicate: (u64, u64),
    answers: u8,
    answers_since: Instant,
    pub stats: Stats,
}

impl Connection {
    fn new(setup: &Setup<'_>, config: &TcpConfig, state: TcpState, now: Instant) -> Self {
        let announced_mss = own_mss(setup.key.local, setup.mtu, setup.options);
        let mss = default_mss(setup.key.local).min(announced_mss);
        let capacity = setup.stream.rx_capacity;
        let options = setup.options;
        let opening = buffer::opening(config, capacity, options, u32::from(announced_mss));
        let algorithm = setup.options.congestion.unwrap_or(config.congestion);
        let control = congestion::controller(algorithm, u32::from(mss));
        let ecn = EcnState::opening(config.ecn, algorithm.wants_marks());
        Self {
            key: setup.key,
            hash: setup.hash as u32,
            token: setup.stream.token,
            state,
            options: Arc::clone(setup.options),
            error: None,
            soft_error: None,
            queued: false,
            event_queued: false,
            changed: true,
            orphan: false,
            released: false,
            timer: None,
            timer_at: NEVER,
            iss: setup.iss,
            irs: 0,
            timestamps: config.timestamps,
            sack: config.sack,
            send_scale: 0,
            receive_scale: opening.scale,
            is_scaled: config.window_scaling,
            timestamp_offset: setup.timestamp_offset,
            loopback: setup.loopback,
            timestamp_recent: 0,
            timestamp_recent_at: Instant::ZERO,
            una: ORIGIN,
            nxt: ORIGIN,
            tail: FIRST,
            finishing: false,
            send_edge: FIRST,
            max_window: 0,
            window_seq: ORIGIN,
            window_ack: ORIGIN,
            mss,
            path: Path::new(mss, path_mss(setup.key.local, setup.path_mtu)),
            transmit_limit: send_limit(config, options),
            small_end: ORIGIN,
            last_send: now,
            stalled_since: now,
            board: Scoreboard::new(),
            delivery: control.models_path().then(Box::default),
            congestion: control,
            reduction: Reduction::default(),
            usage: Usage::default(),
            pace_at: Instant::ZERO,
            rtt: Rtt::new(),
            ecn,
            rare: None,
            syn_data: false,
            backoff: 0,
            timeouts: 0,
            may_restore: false,
            retransmits: 0,
            needless: 0,
            delivered: 0,
            delivered_marked: 0,
            syn_due: false,
            reset_due: false,
            ack_due: false,
            more_acks: 0,
            probe_due: false,
            tail_probe_due: false,
            tail_probe: None,
            small_due: false,
            retransmit_at: NEVER,
            persisting: false,
            reorder_at: NEVER,
            ack_at: NEVER,
            cork_at: NEVER,
            linger_at: NEVER,
            parked_until: Instant::ZERO,
            last_receive: now,
            keepalives: 0,
            probes: 0,
            rx_nxt: ORIGIN,
            rx_head: FIRST,
            // The window of a SYN is not scaled (RFC 7323 2.2).
            rx_edge: FIRST + u64::from(opening.window),
            buffer: ReceiveBuffer::new(config, capacity, options, u32::from(announced_mss), now),
            first_window: opening.window as u16,
            fin_at: u64::MAX,
            peer_finished: false,
            assembler: Assembler::default(),
            receive_mss: MIN_RECEIVE_MSS,
            announced_mss,
            acked: ORIGIN,
            quick_acks: QUICK_ACKS,
            interactive: false,
            duplicate: NO_RANGE,
            answers: 0,
            answers_since: now,
            stats: Stats::new(now),
        }
    }

    /// A connection of ours, in SYN-SENT with its SYN to be sent.
    pub fn active(setup: &Setup<'_>, config: &TcpConfig, now: Instant) -> Self {
        Self { syn_due: true, ..Self::new(setup, config, TcpState::SynSent, now) }
    }

    /// A connection whose handshake a listener has completed.
    pub fn passive(setup: &Setup<'_>, config: &TcpConfig, irs: u32, agreed: &Agreed, now: Instant) -> Self {
        let mut connection = Self::new(setup, config, TcpState::Established, now);
        connection.una = FIRST;
        connection.nxt = FIRST;
        connection.agree(irs, agreed, config, now);
        // The SYN-ACK counted the timestamps off the segments of its window; see `HalfOpen::answer`.
        let opening = opening_of_answer(config, setup.stream.rx_capacity, setup.options, &connection);
        connection.rx_edge = FIRST + u64::from(opening.window);
        connection.acked = FIRST;
        // As Linux counts: a SYN-ACK is a segment too.
        connection.delivered = 1;
        connection
    }

    /// Takes what the peer's SYN says.
    pub fn agree(&mut self, irs: u32, agreed: &Agreed, config: &TcpConfig, now: Instant) {
        self.irs = irs;
        self.rx_nxt = FIRST;
        self.timestamps = self.timestamps && agreed.timestamp.is_some();
        if let Some(value) = agreed.timestamp {
            self.timestamp_recent = value;
            self.timestamp_recent_at = now;
        }
        self.sack = self.sack && agreed.sack;
        match agreed.scale {
            Some(scale) if config.window_scaling => self.send_scale = scale,
            _ => {
                self.receive_scale = 0;
                self.is_scaled = false;
            }
        }
        let mss = agreed.mss.unwrap_or_else(|| default_mss(self.key.local));
        self.agree_on_segments(mss.min(self.announced_mss).max(MIN_MSS), now);
        self.congestion = congestion::controller(self.algorithm(config), self.full_segment());
        self.ecn.on = agreed.ecn;
    }

    /// Which congestion control it has.
    pub fn algorithm(&self, config: &TcpConfig) -> Congestion {
        self.options.congestion.unwrap_or(config.congestion)
    }

    /// Position of a sequence number on the wire near `base`.
    pub const fn receive_position(&self, seq: u32) -> u64 {
        near(self.rx_nxt, seq.wrapping_sub(self.irs))
    }

    pub const fn send_position(&self, ack: u32) -> u64 {
        near(self.una, ack.wrapping_sub(self.iss))
    }

    #[allow(clippy::cast_possible_truncation)]
    pub const fn send_sequence(&self, position: u64) -> u32 {
        self.iss.wrapping_add(position as u32)
    }

    #[allow(clippy::cast_possible_truncation)]
    pub const fn receive_sequence(&self, position: u64) -> u32 {
        self.irs.wrapping_add(position as u32)
    }

    /// Payload of a full segment that carries no SACK.
    pub fn full_segment(&self) -> u32 {
        let options = if self.timestamps { TIMESTAMP_SPACE } else { 0 };
        u32::from(self.mss) - options as u32
    }

    pub const fn is_synchronized(&self) -> bool {
        !matches!(self.state, TcpState::Closed | TcpState::Listen | TcpState::SynSent | TcpState::SynReceived)
    }

    /// Whether the FIN is written, and acknowledged.
    pub const fn is_finish_acked(&self) -> bool {
        self.finishing && self.una > self.tail
    }

    /// Bytes of the stream in order, without the FIN.
    pub fn received_tail(&self) -> u64 {
        self.rx_nxt.saturating_sub(FIRST + u64::from(self.peer_finished))
    }

    pub fn snapshot(&mut self) -> TcpSnapshot {
        TcpSnapshot {
            state: self.state,
            rx_tail: self.received_tail(),
            tx_head: self.una.min(self.tail).saturating_sub(FIRST),
            tx_next: self.nxt.min(self.tail).saturating_sub(FIRST),
            tx_limit: self.transmit_limit,
            rx_limit: self.buffer.limit(),
            send_mss: self.full_segment(),
            peer_finished: self.peer_finished,
            error: self.error.take(),
            released: self.released,
        }
    }

    /// The connection is over. What its owner hears and whether the peer gets a RST was decided before.
    pub fn end(&mut self, error: Option<Error>) {
        self.state = TcpState::Closed;
        self.error = self.error.or(error);
        self.changed = true;
    }

    /// Ends it with a RST to the peer (RFC 9293 3.10.5, ABORT).
    pub fn abort(&mut self, error: Option<Error>) {
        self.reset_due = self.is_synchronized() || self.state == TcpState::SynReceived;
        self.end(error);
    }

    /// The owner wrote up to `tail` bytes of its stream. False: impossible.
    pub fn write(&mut self, now: Instant, tail: u64, config: &TcpConfig) -> bool {
        let Some(tail) = tail.checked_add(FIRST) else { return false };
        let head = self.una.clamp(FIRST, self.tail);
        if tail < self.tail || tail - head > MOST_QUEUED || self.finishing && tail > self.tail {
            return false;
        }
        self.tail = tail;
        self.hold(now, config);
        true
    }

    /// TCP_CORK, MSG_MORE: a segment that isn't full waits, but not for ever (tcp(7): 200 ms; Linux lets the timer do it
    /// that would probe a shut window).
    fn hold(&mut self, now: Instant, config: &TcpConfig) {
        if (self.options.cork || self.options.more) && self.cork_at == NEVER && self.tail > self.nxt {
            self.cork_at = now + self.timeout(config);
        }
    }

    /// The owner read up to `head` bytes of its stream. False: impossible.
    pub fn read(&mut self, now: Instant, head: u64) -> bool {
        let Some(position) = head.checked_add(FIRST) else { return false };
        if position < self.rx_head || head > self.received_tail() {
            return false;
        }
        self.rx_head = position;
        self.buffer.on_read(head, u32::from(self.announced_mss), now);
        // RFC 9293 3.8.6.2.2: tell the peer when the window has at least doubled and by a useful amount.
        let current = self.rx_edge.saturating_sub(self.rx_nxt);
        if self.is_synchronized() && !self.peer_finished && 2 * current <= u64::from(self.buffer.limit()) {
            let window = self.window();
            if window > 0 && window >= 2 * current {
                self.ack_due = true;
            }
        }
        true
    }

    /// Bytes in order that the owner has not read.
    pub const fn unread(&self) -> u64 {
        self.rx_nxt.saturating_sub(self.rx_head + self.peer_finished as u64)
    }

    /// Whether the owner has bytes to read, the FIN aside.
    pub fn has_unread(&self) -> bool {
        self.received_tail() > self.rx_head - FIRST
    }

    /// What the peer may send from here on, if it is told now.
    pub fn window(&self) -> u64 {
        let current = self.rx_edge.saturating_sub(self.rx_nxt);
        self.buffer.window(self.unread(), current, self.receive_mss, self.receive_scale)
    }

    /// The owner writes no more.
    pub fn finish(&mut self) {
        if self.finishing {
            return;
        }
        self.finishing = true;
        match self.state {
            TcpState::Established => self.state = TcpState::FinWait1,
            TcpState::CloseWait => self.state = TcpState::LastAck,
            _ => {}
        }
        self.changed = true;
    }

    /// FIN-WAIT-2 without an owner: for how long, TCP_LINGER2 says.
    pub fn linger(&mut self, now: Instant, fin_timeout: Duration) {
        match self.options.linger2 {
            0 => self.linger_at = now + fin_timeout,
            seconds @ 1.. => self.linger_at = now + Duration::from_secs(seconds.unsigned_abs().into()),
            _ => self.abort(None),
        }
    }

    /// The owner is gone.
    pub fn close(&mut self, now: Instant, fin_timeout: Duration) {
        self.orphan = true;
        match self.state {
            TcpState::SynSent => self.end(None),
            // RFC 2525 2.17: data that nobody will read is lost, and the peer should know.
            _ if self.has_unread() => self.abort(None),
            TcpState::FinWait2 => self.linger(now, fin_timeout),
            _ => self.finish(),
        }
    }

    /// Allows an answer to a segment that doesn't fit, and marks the ACK: so many a second, counted per connection,
    /// because a count shared by all tells one peer about the others (CVE-2016-5696).
    pub fn challenge(&mut self, now: Instant) -> bool {
        if now.since(self.answers_since) >= Duration::from_secs(1) {
            self.answers_since = now;
            self.answers = 0;
        }
        if self.answers >= ANSWERS_PER_SECOND {
            return false;
        }
        self.answers += 1;
        self.ack_due = true;
        true
    }

    /// The next hop can't be reached: what was to be sent counts as lost on the way, so that it waits as long as for
    /// a retransmission, and as often.
    pub fn park(&mut self, now: Instant, config: &TcpConfig) {
        if self.backoff >= config.data_retries {
            self.abort(self.soft_error);
            self.reset_due = false;
            return;
        }
        self.parked_until = now + self.timeout(config);
        self.backoff += 1;
    }

    /// The owner has set options.
    pub fn set_options(&mut self, options: Arc<TcpOptions>, config: &TcpConfig, now: Instant) {
        if options.keep_alive && !self.options.keep_alive {
            // The idle time counts from now on, not from a past that nobody watched.
            self.last_receive = now;
            self.keepalives = 0;
        }
        if (options.receive_buffer, options.window_clamp) != (self.options.receive_buffer, self.options.window_clamp) {
            self.buffer.set_options(config, &options);
        }
        self.changed |= options.notsent_lowat != self.options.notsent_lowat;
        if options.send_buffer != self.options.send_buffer {
            self.transmit_limit = send_limit(config, &options);
            self.changed = true;
        }
        let before = self.algorithm(config);
        // TCP_NODELAY sends what waits, even corked (tcp(7)); saying it again does so again.
        let pushes = options.no_delay && (!self.options.no_delay || options == self.options);
        self.options = options;
        let after = self.algorithm(config);
        if after != before {
            // It goes on with the window of the last.
            let (window, threshold) = (self.congestion.window(), self.congestion.threshold());
            self.congestion = congestion::controller(after, self.full_segment());
            self.congestion.set(window, threshold);
            self.delivery = self.congestion.models_path().then(Box::default);
            self.ecn.exact = after.wants_marks();
            self.may_restore = false;
        }
        self.pace_at = Instant::ZERO;
        if pushes {
            self.cork_at = NEVER;
        } else {
            self.hold(now, config);
        }
    }

    /// The send buffer should hold twice the congestion window, so that there is always something to send when an ACK
    /// comes (tcp_sndbuf_expand of Linux), but only if the program writes that much.
    pub fn expand_send_buffer(&mut self, config: &TcpConfig) {
        let queued = self.tail.saturating_sub(self.una);
        if queued <= u64::from(self.transmit_limit / 2) || self.options.send_buffer != 0 {
            return;
        }
        let wanted = u32::try_from(2 * self.congestion.window()).unwrap_or(u32::MAX).min(config.wmem[2]);
        self.transmit_limit = self.transmit_limit.max(wanted);
    }

    pub fn timeout(&self, config: &TcpConfig) -> Duration {
        if !self.rtt.has_sample() && self.is_synchronized() {
            // RFC 6298 5.7: the handshake gave no sample, because something of it was lost.
            return FALLBACK_TIMEOUT.saturating_mul(1 << self.backoff.min(20)).min(config.max_rto);
        }
        self.rtt.timeout(self.backoff, config.min_rto, config.max_rto)
    }
}

/// The position closest to `base` whose low 32 bits are `offset`.
const fn near(base: u64, offset: u32) -> u64 {
    #[allow(clippy::cast_possible_truncation)]
    let distance = offset.wrapping_sub(base as u32).cast_signed();
    base.wrapping_add_signed(distance as i64)
}

/// What the send buffer holds at first.
fn send_limit(config: &TcpConfig, options: &TcpOptions) -> u32 {
    if options.send_buffer == 0 { config.wmem[1] } else { options.send_buffer.max(config.wmem[0]) }
}

/// What our SYN-ACK said of the receive buffer.
fn opening_of_answer(config: &TcpConfig, capacity: u32, options: &TcpOptions, to: &Connection) -> buffer::Opening {
    let room = if to.timestamps { TIMESTAMP_SPACE as u32 } else { 0 };
    buffer::opening(config, capacity, options, u32::from(to.announced_mss) - room)
}

/// The smallest shift with which the field can announce the whole ring.
pub(super) fn scale_for(capacity: u32) -> u8 {
    let mut scale = 0;
    while scale < super::segment::MAX_SCALE && capacity >> scale > 0xffff {
        scale += 1;
    }
    scale
}

/// What we announce.
pub(super) fn own_mss(local: IpAddr, mtu: usize, options: &TcpOptions) -> u16 {
    path_mss(local, mtu).min(options.max_segment.unwrap_or(u16::MAX)).max(MIN_MSS)
}

pub(super) fn path_mss(local: IpAddr, mtu: usize) -> u16 {
    let ip = if local.is_ipv4() { 20 } else { 40 };
    u16::try_from(mtu.saturating_sub(ip + MIN_HEADER)).unwrap_or(u16::MAX)
}

const fn default_mss(local: IpAddr) -> u16 {
    if local.is_ipv4() { DEFAULT_MSS_V4 } else { DEFAULT_MSS_V6 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_cross_the_wrap() {
        assert_eq!(near(ORIGIN, 5), ORIGIN + 5);
        assert_eq!(near(ORIGIN, 5_u32.wrapping_neg()), ORIGIN - 5);
        assert_eq!(near(2 * ORIGIN - 1, 3), 2 * ORIGIN + 3);
        assert_eq!(near(2 * ORIGIN + 3, u32::MAX), 2 * ORIGIN - 1);
    }

    #[test]
    fn small_enough() {
        // With what the tables and the shard keep beside it, an idle connection must stay below 1,024 bytes: see
        // tests/memory.rs of the root package.
        assert!(size_of::<Connection>() <= 784, "{} bytes", size_of::<Connection>());
    }

    #[test]
    fn scales() {
        assert_eq!([0, 65_535, 65_536, 1 << 20, u32::MAX].map(scale_for), [0, 0, 1, 5, 14]);
    }
}
