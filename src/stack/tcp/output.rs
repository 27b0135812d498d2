//! What a connection sends next, and the segment for it. Deciding changes nothing and building follows the decision,
//! so "is there something to send" and "send it" can't disagree.

use super::connection::{Connection, FIRST, NEVER, NO_RANGE, ORIGIN, TailProbe};
use super::flow::FlowKey;
use super::recovery::Phase;
use super::segment::{ACK, FIN, Header, MAX_SACK, MIN_HEADER, PSH, RST, SYN, TIMESTAMP_SPACE};
use super::{Context, Emitted, isn};
use crate::outbox::Reply;
use crate::{Instant, TcpConfig, TcpState};
use alloc::vec;
use core::time::Duration;

const PROTOCOL_TCP: u8 = 6;
const DEFAULT_TTL: u8 = 64;
/// A window up to this size, in bytes, may be filled by one segment: the MSS that every host takes (RFC 9293 3.7.1).
const DEFAULT_MSS: u64 = 536;
/// Least payload of a segment that counts as full, in bytes.
const LEAST_PAYLOAD: u64 = 36;
/// Data sent within this time after data came answers it.
const ANSWER_TIME: Duration = Duration::from_millis(40);

/// The next segment of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Plan {
    Reset,
    /// With an ACK if the peer's SYN came first.
    Syn,
    Retransmit {
        /// In the scoreboard.
        index: usize,
        seq: u64,
        len: u32,
    },
    Data {
        /// Bytes of payload.
        len: u32,
        fin: bool,
    },
    /// Keep-alive or window probe: an old number that the peer answers (RFC 1122 4.2.3.6).
    Probe,
    Ack,
}

impl Connection {
    /// What is to be sent now, if anything.
    pub fn plan(&self, now: Instant) -> Option<Plan> {
        if now < self.parked_until {
            return None;
        }
        match self.state {
            TcpState::Closed => self.reset_due.then_some(Plan::Reset),
            TcpState::Listen | TcpState::TimeWait => None,
            TcpState::SynSent => self.syn_due.then_some(Plan::Syn),
            TcpState::SynReceived if self.syn_due => Some(Plan::Syn),
            // RFC 7413 4.2.2: answers need not wait for the peer's ACK.
            TcpState::SynReceived if self.is_opening_fast() => self.plan_stream(now),
            TcpState::SynReceived => self.ack_due.then_some(Plan::Ack),
            _ => self.plan_stream(now),
        }
    }

    fn plan_stream(&self, now: Instant) -> Option<Plan> {
        if self.tail_probe_due
            && let Some(probe) = self.plan_tail_probe(now)
        {
            return Some(probe);
        }
        if now >= self.pace_at
            && let Some(data) = self.plan_within_window(now)
        {
            return Some(data);
        }
        if self.probe_due {
            return Some(Plan::Probe);
        }
        self.ack_due.then_some(Plan::Ack)
    }

    /// What the congestion window allows: what is lost first, then new data.
    fn plan_within_window(&self, now: Instant) -> Option<Plan> {
        let in_flight = self.board.in_flight();
        let window = self.allowance();
        let Some((index, sent)) = self.board.next_lost() else { return self.plan_data(now, in_flight, window) };
        if self.board.probes_with_new {
            // RFC 5682 3.1 step 2.b. What was sent so waits for its answer.
            if let Some(data) = self.plan_data(now, in_flight, window) {
                return Some(data);
            }
            if self.nxt > self.board.recovery_point() {
                return None;
            }
        }
        let room = self.payload_room();
        let len = if sent.len - u32::from(self.is_finish(sent.end())) <= room { sent.len } else { room };
        let fits = in_flight == 0 || in_flight + u64::from(len) <= window;
        fits.then_some(Plan::Retransmit { index, seq: sent.seq, len })
    }

    /// New data if there is any, else the last segment again (RFC 8985 7.3).
    fn plan_tail_probe(&self, now: Instant) -> Option<Plan> {
        if let Some(data) = self.plan_data(now, 0, u64::MAX) {
            return Some(data);
        }
        let (index, sent) = self.board.last_in_flight()?;
        let fits = sent.len - u32::from(self.is_finish(sent.end())) <= self.payload_room();
        fits.then_some(Plan::Retransmit { index, seq: sent.seq, len: sent.len })
    }

    fn plan_data(&self, now: Instant, in_flight: u64, window: u64) -> Option<Plan> {
        let unsent = self.tail.saturating_sub(self.nxt);
        let finish = self.finishing && self.nxt <= self.tail;
        if unsent == 0 && !finish {
            return None;
        }
        let record = self.record_end().map_or(u64::MAX, |end| end - self.nxt);
        let room = self.send_edge.saturating_sub(self.nxt);
        let full = self.full_payload();
        if record == u64::MAX
            && let Some(len) = self.plan_path_probe(now, in_flight, window, unsent, room)
        {
            return Some(Plan::Data { len, fin: false });
        }
        let len = unsent.min(full).min(room).min(record);
        let fin = finish && len == unsent && room > len;
        if len == 0 && !fin || in_flight > 0 && in_flight + len > window {
            return None;
        }
        let plan = Plan::Data { len: len as u32, fin };
        // A record that others follow is as good as a full segment: what comes next can't go with it.
        if len == full || fin || len == record && len < unsent {
            return Some(plan);
        }
        if len < unsent {
            // The peer's window is the limit. RFC 9293 3.8.6.2.1: not in crumbs.
            return (len >= self.max_window / 2 || self.small_due).then_some(plan);
        }
        if now < self.cork_at && (self.options.cork || self.options.more) && self.cork_at != NEVER {
            return None;
        }
        // RFC 9293 3.7.4, Nagle, as Minshall has it: only one segment that isn't full may be unacknowledged.
        (self.options.no_delay || self.options.cork || self.small_end <= self.una).then_some(plan)
    }

    /// Whether data or a FIN wait and only the peer's window is in the way: what the persist timer is for.
    pub fn is_blocked_by_window(&self) -> bool {
        let unsent = self.tail.saturating_sub(self.nxt);
        let finish = self.finishing && self.nxt <= self.tail;
        let wanted = unsent.max(u64::from(finish)).min(self.full_payload());
        self.is_synchronized() && wanted > 0 && self.send_edge.saturating_sub(self.nxt) < wanted
    }

    /// Builds the segment at the front of `out`. None when `out` can't hold it.
    pub fn build(&mut self, cx: &mut Context<'_>, config: &TcpConfig, plan: Plan, out: &mut [u8]) -> Option<Emitted> {
        self.before_data(cx);
        match plan {
            Plan::Reset => {
                let mut header = self.header(RST | ACK, self.nxt, cx.now, &[]);
                // It has no meaning; as Linux, it is what the last segment said.
                header.window = if self.una == ORIGIN {
                    self.first_window
                } else {
                    u16::try_from(self.rx_edge.saturating_sub(self.rx_nxt) >> self.receive_scale).unwrap_or(u16::MAX)
                };
                cx.counters.tcp_resets_out += 1;
                self.reset_due = false;
                self.finish_segment(&header, cx, out, 0)
            }
            Plan::Syn => self.build_syn(cx, config, out),
            Plan::Probe => {
                let sent = self.build_ack(cx, self.una.max(FIRST) - 1, out)?;
                self.probe_due = false;
                Some(sent)
            }
            Plan::Ack => self.build_ack(cx, self.nxt, out),
            Plan::Retransmit { index, seq, len } => {
                let fin = self.is_finish(seq + u64::from(len));
                let (payload, sent) = self.build_data(cx, seq, len - u32::from(fin), fin, out)?;
                let len = payload + u32::from(sent.1);
                self.note_delivery(cx.now);
                self.board.retransmitted(index, len, cx.now, self.tail_probe_due);
                self.on_path_probe_lost(seq, cx.now);
                self.retransmits = self.retransmits.saturating_add(1);
                self.stats.bytes_retransmitted += u64::from(payload);
                cx.counters.tcp_retransmits += 1;
                self.board.probes_with_new = false;
                if seq == self.una {
                    // RFC 6298 5.1, as Linux: the timer is for the first segment, and that has just left.
                    self.retransmit_at = NEVER;
                }
                self.note_tail_probe(true);
                self.note_sent(cx.now, config, len);
                Some(sent.0)
            }
            Plan::Data { len, fin } => {
                if self.board.is_empty() {
                    self.restart_after_idle(cx.now, config);
                    self.stalled_since = cx.now;
                }
                self.forget_old_path(cx.now);
                let seq = self.nxt;
                let small = len < self.payload_room();
                self.note_path_probe(seq, len);
                let (len, (sent, fin)) = self.build_data(cx, seq, len, fin, out)?;
                self.note_delivery(cx.now);
                self.board.push(seq, len + u32::from(fin), cx.now);
                self.nxt = seq + u64::from(len) + u64::from(fin);
                self.forget_records();
                if small && len > 0 {
                    self.small_end = self.nxt;
                }
                if self.nxt >= self.tail {
                    self.cork_at = NEVER;
                }
                self.after_data(cx, config, len);
                Some(sent)
            }
        }
    }

    /// A segment is about to be built: its window may need more memory.
    pub(super) fn before_data(&mut self, cx: &mut Context<'_>) {
        if self.buffer.wants_more() && self.is_synchronized() {
            let written = self.assembler.end().unwrap_or(0).max(self.rx_nxt).saturating_sub(FIRST);
            self.buffer.ask(cx.host, self.token, self.rx_nxt, written);
        }
    }

    /// `len` bytes of new data have left.
    pub(super) fn after_data(&mut self, cx: &Context<'_>, config: &TcpConfig, len: u32) {
        self.small_due = false;
        self.last_send = cx.now;
        self.changed |= self.options.notsent_lowat > 0;
        self.note_tail_probe(false);
        self.note_use(cx.now, config);
        self.note_sent(cx.now, config, len);
    }

    /// Sends the present state as an ACK at once, past the queue.
    pub fn reply_ack(&mut self, cx: &mut Context<'_>) {
        let mut segment = vec![0; super::segment::MAX_HEADER];
        if let Some(sent) = self.build_ack(cx, self.nxt, &mut segment) {
            segment.truncate(sent.len);
            cx.outbox.push(Reply {
                source: self.key.local,
                destination: self.key.remote,
                protocol: PROTOCOL_TCP,
                tos: sent.tos,
                ttl: sent.ttl,
                payload: segment,
            });
        }
    }

    fn build_syn(&mut self, cx: &mut Context<'_>, config: &TcpConfig, out: &mut [u8]) -> Option<Emitted> {
        let answer = self.state == TcpState::SynReceived;
        let flags = if answer { SYN | ACK } else { SYN } | self.ecn.syn_flags(answer, self.nxt > ORIGIN);
        let mut header = self.header(flags, ORIGIN, cx.now, &[]);
        header.mss = Some(self.announced_mss);
        // An answer offers what the peer's SYN had; then receive_scale tells nothing, a scale of 0 is one too.
        header.scale = (config.window_scaling && (!answer || self.send_scale > 0 || self.receive_scale > 0))
            .then_some(self.receive_scale);
        header.sack_permitted = self.sack;
        header.window = self.first_window;
        if !answer {
            header.ack = 0;
            header.timestamps = header.timestamps.map(|(value, _)| (value, 0));
        }
        let (cookie, load) = self.syn_load();
        header.fast_open = cookie.as_ref();
        let start = header.len();
        if load > 0 {
            cx.host.tx_read(self.token, 0, out.get_mut(start..start + load as usize)?);
        }
        let sent = self.finish_segment(&header, cx, out, load as usize)?;
        if self.nxt > ORIGIN {
            self.retransmits = self.retransmits.saturating_add(1);
            cx.counters.tcp_retransmits += u64::from(!answer || self.backoff > 0);
        } else {
            self.stalled_since = cx.now;
        }
        self.nxt = self.nxt.max(FIRST);
        self.on_syn_load(load, cx.now);
        self.last_send = cx.now;
        self.syn_due = false;
        if answer {
            self.note_acked();
        }
        Some(sent)
    }

    fn build_ack(&mut self, cx: &mut Context<'_>, seq: u64, out: &mut [u8]) -> Option<Emitted> {
        let mut sack = [(0, 0); MAX_SACK];
        let blocks = self.sack_blocks(&mut sack);
        let (marks, tos) = self.ecn.mark(false);
        let header = self.header(ACK | marks, seq, cx.now, &sack[..blocks]);
        let mut sent = self.finish_segment(&header, cx, out, 0)?;
        sent.tos |= tos;
        self.note_acked();
        Some(sent)
    }

    /// Returns the bytes of payload, and what was built with whether the FIN is in it.
    fn build_data(
        &mut self,
        cx: &mut Context<'_>,
        seq: u64,
        len: u32,
        fin: bool,
        out: &mut [u8],
    ) -> Option<(u32, (Emitted, bool))> {
        let mut sack = [(0, 0); MAX_SACK];
        let blocks = self.sack_blocks(&mut sack);
        let end = seq + u64::from(len);
        let last = end >= self.tail || self.is_record_end(end);
        let mut flags = ACK;
        let mut header = self.header(flags, seq, cx.now, &sack[..blocks]);
        let start = header.len();
        // A buffer smaller than the link's packets is not expected, but must not lose bytes.
        let room = u32::try_from(out.len().checked_sub(start)?).unwrap_or(u32::MAX);
        let (len, fin) = if room < len { (room, false) } else { (len, fin) };
        if fin {
            flags |= FIN;
        }
        // MSG_MORE says that the message goes on.
        if last && len > 0 && (!self.options.more || cx.now >= self.cork_at) {
            flags |= PSH;
        }
        header.flags = flags;
        if len > 0 {
            cx.host.tx_read(self.token, seq - FIRST, &mut out[start..start + len as usize]);
        } else if !fin {
            return None;
        }
        // Something new soon after something came: an answer (tcp_event_data_sent of Linux).
        let answers = len > 0 && seq == self.nxt && self.is_answering(cx.now);
        let (marks, tos) = self.ecn.mark(len > 0 && seq == self.nxt);
        header.flags |= marks;
        let mut sent = self.finish_segment(&header, cx, out, len as usize)?;
        sent.tos |= tos;
        // Answers carry the ACKs (Linux calls it ping-pong mode).
        self.interactive |= answers;
        self.note_acked();
        Some((len, (sent, fin)))
    }

    pub(super) fn header<'a>(&mut self, flags: u8, seq: u64, now: Instant, sack: &'a [(u32, u32)]) -> Header<'a> {
        Header {
            source_port: self.key.local_port,
            destination_port: self.key.remote_port,
            seq: self.send_sequence(seq),
            ack: self.receive_sequence(self.rx_nxt),
            flags,
            window: if flags & RST == 0 { self.announce_window() } else { 0 },
            // RFC 7323 3.2 leaves RSTs to the sender; Linux's have it too.
            timestamps: self.timestamps.then(|| (isn::timestamp(now, self.timestamp_offset), self.timestamp_recent)),
            sack,
            ..Header::default()
        }
    }

    fn finish_segment(
        &mut self,
        header: &Header<'_>,
        cx: &mut Context<'_>,
        out: &mut [u8],
        payload: usize,
    ) -> Option<Emitted> {
        let len = header.len() + payload;
        let segment = out.get_mut(..len)?;
        if self.loopback {
            header.write_unsummed(segment);
        } else {
            header.write(self.key.local, self.key.remote, segment);
        }
        cx.counters.tcp_out += 1;
        self.stats.segments_out = self.stats.segments_out.wrapping_add(1);
        self.stats.data_segments_out = self.stats.data_segments_out.wrapping_add(u32::from(payload > 0));
        // The low two bits are ECN's.
        let fragmentable = !self.options.mtu_discovery.dont_fragment();
        Some(Emitted { len, fragmentable, tos: self.options.tos & 0xfc, ttl: ttl(self.options.ttl) })
    }

    /// Something is about to be in flight.
    pub(super) fn note_delivery(&mut self, now: Instant) {
        if let Some(delivery) = &mut self.delivery {
            delivery.on_sent(now, self.board.in_flight() == 0);
        }
    }

    /// Data left, for the first time or again.
    fn note_sent(&mut self, now: Instant, config: &TcpConfig, len: u32) {
        if matches!(self.board.phase(), Phase::Reduction | Phase::Recovery) {
            self.reduction.out = self.reduction.out.saturating_add(len);
        }
        self.note_paced(now, len, config);
    }

    fn note_tail_probe(&mut self, repetition: bool) {
        if core::mem::take(&mut self.tail_probe_due) {
            self.tail_probe = TailProbe::new(self.nxt, repetition);
            // RFC 8985 7.3: the other timer starts anew.
            self.retransmit_at = NEVER;
        }
    }

    /// Everything received so far is about to be acknowledged.
    pub(super) const fn note_acked(&mut self) {
        self.acked = self.rx_nxt;
        self.ack_due = self.more_acks > 0;
        self.more_acks = self.more_acks.saturating_sub(1);
        self.ack_at = NEVER;
        self.duplicate = NO_RANGE;
    }

    /// The window field, and with it the edge up to which the peer may send.
    fn announce_window(&mut self) -> u16 {
        // RFC 9293 3.8.6: the edge never moves back.
        let window = self.window().min(0xffff << self.receive_scale);
        self.rx_edge = self.rx_edge.max(self.rx_nxt + window);
        // What scaling would cut off is rounded up where the memory has room: else it would look as if the edge moved
        // back.
        let window = self.rx_edge.saturating_sub(self.rx_nxt);
        let whole = window.next_multiple_of(1 << self.receive_scale);
        if whole != window && self.unread() + whole <= u64::from(self.buffer.capacity()) {
            self.rx_edge = self.rx_nxt + whole;
        }
        let window = self.rx_edge.saturating_sub(self.rx_nxt);
        u16::try_from(window >> self.receive_scale).unwrap_or(u16::MAX)
    }

    /// Payload of a full segment: no more than half of the largest window that the peer has had, or one segment would
    /// fill a small window and leave a rest that neither side may use: the sender waits for half of it, the receiver for
    /// a segment's length (RFC 9293 3.8.6.2). As tcp_bound_to_half_wnd() of Linux.
    pub(super) fn full_payload(&self) -> u64 {
        let bound = if self.max_window > DEFAULT_MSS { self.max_window / 2 } else { self.max_window };
        u64::from(self.payload_room()).min(bound.max(LEAST_PAYLOAD))
    }

    /// Payload that fits beside the options that the next segment carries.
    fn payload_room(&self) -> u32 {
        let sack = match self.sack_count() {
            0 => 0,
            blocks => 4 + 8 * blocks as u32,
        };
        // MIN_MSS leaves room beside any options.
        self.full_segment() - sack
    }

    /// Whether new data that leaves now answers what has come.
    pub(super) fn is_answering(&self, now: Instant) -> bool {
        self.rx_nxt > FIRST && now.since(self.stats.last_data_in) < ANSWER_TIME
    }

    /// Whether the next segment carries SACK blocks.
    pub(super) fn has_sack_blocks(&self) -> bool {
        self.sack && (!self.assembler.is_empty() || self.duplicate != NO_RANGE)
    }

    pub(super) fn time_to_live(&self) -> u8 {
        ttl(self.options.ttl)
    }

    fn sack_count(&self) -> usize {
        if !self.sack || self.assembler.is_empty() && self.duplicate == NO_RANGE {
            return 0;
        }
        self.sack_blocks(&mut [(0, 0); MAX_SACK])
    }

    /// The blocks for the next ACK: D-SACK first (RFC 2883), then what came last (RFC 2018).
    fn sack_blocks(&self, out: &mut [(u32, u32); MAX_SACK]) -> usize {
        if !self.sack || self.assembler.is_empty() && self.duplicate == NO_RANGE {
            return 0;
        }
        let limit = if self.timestamps { MAX_SACK - 1 } else { MAX_SACK };
        let mut blocks = [(0, 0); MAX_SACK];
        let first = usize::from(self.duplicate != NO_RANGE);
        blocks[0] = self.duplicate;
        let count = first + self.assembler.report(&mut blocks[first..limit]);
        for (block, (left, right)) in out.iter_mut().zip(&blocks[..count]) {
            *block = (self.receive_sequence(*left), self.receive_sequence(*right));
        }
        count
    }

    /// Whether a segment that ends here has the FIN in it.
    const fn is_finish(&self, end: u64) -> bool {
        self.finishing && end == self.tail + 1
    }
}

/// A RST for a segment that fits no connection, or not this one. `ack` as RFC 9293 3.10.7.1 says: None when the
/// segment had one, whose number is then `seq`.
pub(super) fn reply_reset(cx: &mut Context<'_>, key: &FlowKey, seq: u32, ack: Option<u32>) {
    let header = Header {
        source_port: key.local_port,
        destination_port: key.remote_port,
        seq,
        ack: ack.unwrap_or(0),
        flags: if ack.is_some() { RST | ACK } else { RST },
        ..Header::default()
    };
    cx.counters.tcp_resets_out += 1;
    reply(cx, key, &header, 0, 0);
}

/// Sends a segment without payload past the queue.
pub(super) fn reply(cx: &mut Context<'_>, key: &FlowKey, header: &Header<'_>, tos: u8, hops: u8) {
    let mut payload = vec![0; header.len().max(MIN_HEADER)];
    header.write(key.local, key.remote, &mut payload);
    cx.counters.tcp_out += 1;
    cx.outbox.push(Reply {
        source: key.local,
        destination: key.remote,
        protocol: PROTOCOL_TCP,
        tos: tos & 0xfc,
        ttl: ttl(hops),
        payload,
    });
}

const fn ttl(option: u8) -> u8 {
    if option == 0 { DEFAULT_TTL } else { option }
}

// Room for options and eight bytes at least in the smallest segment.
const _: () = assert!(88 - TIMESTAMP_SPACE - 4 - 8 * MAX_SACK >= 8);
