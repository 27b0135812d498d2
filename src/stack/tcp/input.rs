//! What a segment does to its connection: RFC 9293 3.10.7, in its order.

use super::Context;
use super::assembler::most_ranges;
use super::connection::{Agreed, Connection, FIRST, NEVER, NO_RANGE, ORIGIN};
use super::ecn::{self, Reaction};
use super::isn;
use super::output::reply_reset;
use super::segment::{ACK, FIN, RST, SYN, Segment};
use crate::{Error, Instant, TcpConfig, TcpState};
use core::time::Duration;

/// RFC 7323 5.5: a timestamp this old says nothing any more.
const TIMESTAMP_LIFETIME: Duration = Duration::from_secs(24 * 24 * 3600);

/// ACKs of segments out of order that wait at most: enough for a fast retransmit.
const MORE_ACKS: u8 = 3;

/// How long an ACK to another program of ours waits for data to go with. Linux waits as on a wire, 40 ms, and has the
/// stalls of Nagle's algorithm on loopback too; nothing is gained by them.
const LOOPBACK_ACK_DELAY: Duration = Duration::from_millis(1);

/// From a peer's answer that belongs to an earlier connection to the next SYN. The peer drops that connection when it
/// hears our RST, or takes the SYN because its timestamp has moved on.
const REPEATED_SYN: Duration = Duration::from_millis(4);

impl Connection {
    /// Takes a segment of this connection.
    pub fn on_segment(&mut self, cx: &mut Context<'_>, config: &TcpConfig, segment: &Segment<'_>) {
        self.stats.segments_in = self.stats.segments_in.wrapping_add(1);
        match self.state {
            TcpState::Closed | TcpState::Listen | TcpState::TimeWait => {}
            TcpState::SynSent => self.on_segment_in_syn_sent(cx, config, segment),
            _ => self.on_segment_in_order(cx, config, segment),
        }
    }

    /// RFC 9293 3.10.7.3.
    fn on_segment_in_syn_sent(&mut self, cx: &mut Context<'_>, config: &TcpConfig, segment: &Segment<'_>) {
        let ack = self.send_position(segment.ack);
        if segment.has(ACK) && (ack <= ORIGIN || ack > self.nxt) {
            if !segment.has(RST) {
                reply_reset(cx, &self.key, segment.ack, None);
                if self.backoff == 0 {
                    // As Linux: the peer has the end of an earlier connection still, and has just lost it.
                    self.retransmit_at = self.retransmit_at.min(cx.now + REPEATED_SYN);
                }
            }
            return;
        }
        if segment.has(RST) {
            if segment.has(ACK) {
                cx.counters.tcp_resets_in += 1;
                self.end(Some(Error::Refused));
            }
            return;
        }
        if !segment.has(SYN) {
            return;
        }
        if let Some(timestamps) = segment.timestamps.filter(|t| self.timestamps && segment.has(ACK) && t.echo != 0) {
            // As Linux (RFC 7323 3.2 has TSecr echo a value that was sent): the answer to another SYN, or a guess.
            let (first, now) = (self.stalled_since, cx.now);
            let [first, now] = [first, now].map(|at| isn::timestamp(at, self.timestamp_offset));
            if timestamps.echo.wrapping_sub(first) > now.wrapping_sub(first) {
                reply_reset(cx, &self.key, segment.ack, None);
                return;
            }
        }
        let agreed = Agreed {
            mss: segment.mss,
            scale: segment.scale,
            sack: segment.sack_permitted,
            timestamp: segment.timestamps.map(|t| t.value),
            // Simultaneous open: the peer's SYN asks, and ours to come agrees.
            ecn: !segment.has(ACK) && ecn::accepts(config.ecn, segment, self.ecn.exact),
        };
        self.agree(segment.seq, &agreed, config, cx.now);
        if segment.has(ACK) {
            self.ecn.on_syn_ack(segment);
        }
        self.last_receive = cx.now;
        self.stats.last_data_in = cx.now;
        // The window of a SYN is not scaled.
        self.window_seq = ORIGIN;
        self.window_ack = ack;
        self.max_window = u64::from(segment.window);
        if !segment.has(ACK) {
            // Simultaneous open: our SYN goes out again, with an ACK.
            self.state = TcpState::SynReceived;
            self.send_edge = FIRST + u64::from(segment.window);
            self.syn_due = true;
            self.changed = true;
            return;
        }
        if self.backoff == 0 {
            let took = cx.now.since(self.last_send);
            self.rtt.sample(cx.now, took, took);
        }
        self.on_fast_answer(segment, ack);
        self.una = FIRST;
        self.send_edge = ack + u64::from(segment.window);
        self.establish(cx);
        self.ack_due = true;
        if self.nxt > FIRST {
            self.on_syn_data_answer(ack, cx.now);
        }
        // Data and FIN may come with the SYN; they are as any other from here on.
        if !segment.payload.is_empty() || segment.has(FIN) {
            self.on_text(cx, config, FIRST, segment);
        }
    }

    fn establish(&mut self, cx: &mut Context<'_>) {
        // That one is counted already.
        let fast = self.is_opening_fast();
        self.state = if self.finishing { TcpState::FinWait1 } else { TcpState::Established };
        self.syn_due = false;
        self.backoff = 0;
        self.retransmit_at = NEVER;
        self.soft_error = None;
        self.changed = true;
        // As Linux counts: a SYN is a segment too.
        self.delivered = self.delivered.wrapping_add(1);
        cx.counters.tcp_opened_active += u64::from(!fast);
    }

    /// RFC 9293 3.10.7.4, with RFC 7323 (PAWS) before and RFC 5961 in between.
    fn on_segment_in_order(&mut self, cx: &mut Context<'_>, config: &TcpConfig, segment: &Segment<'_>) {
        let mut seq = self.receive_position(segment.seq);
        let mut len = u64::from(segment.len());

        // RFC 7323 3.2 would drop a segment without (SHOULD); Linux takes it, because there are boxes on the way that strip
        // the option, and so do we.
        if self.timestamps
            && let Some(timestamps) = segment.timestamps
        {
            let older = self.timestamp_recent.wrapping_sub(timestamps.value).cast_signed() > 0;
            let valid = cx.now.since(self.timestamp_recent_at) < TIMESTAMP_LIFETIME;
            if older && valid && !segment.has(RST) {
                self.refuse(cx, segment, seq);
                return;
            }
        }

        if self.state == TcpState::SynReceived && segment.has(SYN) && !segment.has(ACK) && seq == ORIGIN {
            // Our answer was lost, or is under way.
            self.syn_due = true;
            return;
        }
        // Simultaneous open: the peer's SYN comes again with its ACK. The SYN was taken already.
        if self.state == TcpState::SynReceived && segment.has(SYN | ACK) && seq == ORIGIN {
            seq += 1;
            len -= 1;
        } else if !self.is_acceptable(seq, len) {
            if !segment.has(RST) {
                self.refuse(cx, segment, seq);
            }
            return;
        } else if segment.has(RST) {
            // RFC 5961 3.2: only the exact number resets; one that is merely in the window is questioned.
            if seq == self.rx_nxt {
                cx.counters.tcp_resets_in += 1;
                // As Linux tells them apart: the reader of a finished stream lost nothing, only a writer did.
                self.end(Some(match self.state {
                    TcpState::SynReceived if !self.is_opening_fast() => Error::Refused,
                    TcpState::CloseWait => Error::BrokenPipe,
                    _ => Error::Reset,
                }));
            } else if self.challenge(cx.now) {
                cx.counters.tcp_challenge_acks += 1;
            }
            return;
        } else if segment.has(SYN) {
            // RFC 5961 4.2.
            if self.challenge(cx.now) {
                cx.counters.tcp_challenge_acks += 1;
            }
            return;
        }
        if !segment.has(ACK) {
            return;
        }

        let ack = self.send_position(segment.ack);
        if self.state == TcpState::SynReceived {
            if ack <= self.una || ack > self.nxt {
                reply_reset(cx, &self.key, segment.ack, None);
                return;
            }
            if self.is_opening_fast() && self.backoff == 0 && self.board.is_empty() {
                let took = cx.now.since(self.stalled_since);
                self.rtt.sample(cx.now, took, took);
            }
            self.una = FIRST;
            self.establish(cx);
        }
        // RFC 5961 5.2: neither older than the largest window nor newer than what was sent.
        if ack > self.nxt || ack + self.max_window.max(1) < self.una {
            if self.challenge(cx.now) {
                cx.counters.tcp_challenge_acks += 1;
            }
            return;
        }

        if let Some(timestamps) = segment.timestamps
            && self.timestamps
            && seq <= self.acked
        {
            // RFC 7323 4.3: the timestamp of the segment that moves the left edge.
            self.timestamp_recent = timestamps.value;
            self.timestamp_recent_at = cx.now;
        }
        self.last_receive = cx.now;
        self.keepalives = 0;
        self.probes = 0;
        self.on_ack(cx, config, segment, seq, ack, len);
        self.on_finish_acked(cx, config);
        if !matches!(self.state, TcpState::Closed | TcpState::TimeWait)
            && (!segment.payload.is_empty() || segment.has(FIN))
        {
            self.on_text(cx, config, seq, segment);
        }
    }

    /// RFC 9293 3.4, table 6. The right edge is what was announced; the left side takes whatever touches the window.
    fn is_acceptable(&self, seq: u64, len: u64) -> bool {
        let edge = self.rx_edge.max(self.rx_nxt);
        if len == 0 {
            return seq == self.rx_nxt || self.rx_nxt <= seq && seq < edge;
        }
        seq < edge.max(self.rx_nxt + 1) && seq + len > self.rx_nxt
    }

    /// Answers a segment outside the window with an ACK that says where it is.
    fn refuse(&mut self, cx: &Context<'_>, segment: &Segment<'_>, seq: u64) {
        if segment.payload.is_empty() && !segment.has(FIN) {
            // Two ends that disagree could answer each other for ever.
            self.challenge(cx.now);
            return;
        }
        let end = seq + segment.payload.len() as u64;
        if self.sack && end <= self.rx_nxt && seq < end {
            self.duplicate = (seq, end);
        }
        self.ack_due = true;
        if self.state == TcpState::SynReceived {
            self.syn_due = true;
        }
    }

    fn on_finish_acked(&mut self, cx: &mut Context<'_>, config: &TcpConfig) {
        if !self.is_finish_acked() {
            return;
        }
        match self.state {
            TcpState::FinWait1 => {
                self.state = TcpState::FinWait2;
                self.changed = true;
                if self.orphan {
                    self.linger(cx.now, config.fin_timeout);
                }
            }
            TcpState::Closing => self.enter_time_wait(cx),
            TcpState::LastAck => self.end(None),
            _ => {}
        }
    }

    /// Payload and FIN.
    pub fn on_text(&mut self, cx: &mut Context<'_>, config: &TcpConfig, seq: u64, segment: &Segment<'_>) {
        let mut start = seq;
        let mut data = segment.payload;
        let mut end = start + data.len() as u64;
        let mut fin = segment.has(FIN);

        if self.orphan && end > self.rx_nxt && !self.peer_finished {
            // RFC 9293 3.6.1 and RFC 2525 2.17: nobody will read this. The RST is one for a segment of no connection, as
            // Linux's.
            reply_reset(cx, &self.key, segment.ack, None);
            self.end(None);
            return;
        }
        if start < self.rx_nxt && start < end {
            let old = (self.rx_nxt - start).min(data.len() as u64);
            if self.sack {
                self.duplicate = (start, start + old);
            }
            #[allow(clippy::cast_possible_truncation)]
            {
                data = &data[old as usize..];
            }
            start += old;
            self.ack_due = true;
        }
        // Beyond the window, or beyond the end that the peer has declared. With nothing unread a segment whose front is in
        // the window is taken as far as there is memory, as on Linux.
        let alone = start == self.rx_nxt && self.unread() == 0 && self.assembler.is_empty();
        let room = if alone { self.rx_head + u64::from(self.buffer.capacity()) } else { 0 };
        let limit = self.fin_at.min(self.rx_edge.max(room)).max(start);
        if end > limit {
            #[allow(clippy::cast_possible_truncation)]
            {
                data = &data[..(limit - start) as usize];
            }
            end = limit;
            fin = false;
            self.ack_due = true;
        }
        if self.peer_finished {
            self.ack_due = true;
            return;
        }
        if !segment.payload.is_empty() {
            self.on_mark(cx, segment);
        }
        if !data.is_empty() {
            self.note_payload(cx, segment, data.len());
            self.receive_mss = self.receive_mss.max(data.len().min(usize::from(self.announced_mss)) as u32);
            if !self.accept_data(cx, start, end, data) {
                return;
            }
        }
        // A FIN below what was received already is a lie; its place will never come.
        if fin && self.fin_at == u64::MAX && end >= self.assembler.end().unwrap_or(end) {
            self.fin_at = end;
        }
        if self.fin_at == self.rx_nxt {
            // As Linux: the ACK of a FIN waits for the program's own (which mostly follows at once) if data came before.
            let data = self.stats.data_segments_in > u32::from(self.syn_data);
            let waits = self.state == TcpState::Established && data && self.rx_edge > self.rx_nxt;
            self.rx_nxt += 1;
            self.peer_finished = true;
            self.changed = true;
            self.duplicate = NO_RANGE;
            self.interactive = true;
            self.ack_due = !waits;
            self.on_peer_finished(cx);
        } else if fin {
            self.ack_due = true;
        }
        self.schedule_ack(cx.now, config);
    }

    /// Measures the peer by what it sends.
    fn note_payload(&mut self, cx: &Context<'_>, segment: &Segment<'_>, len: usize) {
        self.stats.data_segments_in = self.stats.data_segments_in.wrapping_add(1);
        self.stats.last_data_in = cx.now;
        if let Some(timestamps) = segment.timestamps.filter(|t| self.timestamps && t.echo != 0)
            && segment.payload.len() >= self.receive_mss as usize
        {
            let elapsed = isn::timestamp(cx.now, self.timestamp_offset).wrapping_sub(timestamps.echo);
            if elapsed < 1 << 20 {
                self.buffer.on_echo(timestamps.echo, Duration::from_millis(u64::from(elapsed.max(1))));
            }
        }
        let window = self.rx_edge.saturating_sub(self.rx_nxt);
        self.buffer.on_progress(self.rx_nxt, window, cx.now);
        self.buffer.on_payload(len, self.unread(), u32::from(self.announced_mss));
    }

    /// What the network and the peer say by ECN, of a segment with payload.
    fn on_mark(&mut self, cx: &mut Context<'_>, segment: &Segment<'_>) {
        match self.ecn.on_data(segment) {
            Reaction::Nothing => {}
            Reaction::Quick => self.quick_acks = self.quick_acks.max(2),
            Reaction::Now => self.ack_due = true,
            Reaction::Flip => {
                if self.rx_nxt > self.acked {
                    // RFC 8257 3.2: what came before is acknowledged as what it was.
                    self.reply_ack(cx);
                }
                self.ecn.echoes = !self.ecn.echoes;
                self.ack_due = true;
            }
        }
    }

    /// Puts data into the ring. False when it had to be dropped.
    fn accept_data(&mut self, cx: &mut Context<'_>, start: u64, end: u64, data: &[u8]) -> bool {
        if start > self.rx_nxt {
            self.stats.out_of_order = self.stats.out_of_order.wrapping_add(1);
            // RFC 5681 4.2: a gap is reported at once.
            if self.ack_due && !self.sack {
                self.more_acks = self.more_acks.saturating_add(1).min(MORE_ACKS);
            }
            self.ack_due = true;
            if self.sack
                && let Some(twice) = self.assembler.overlap(start, end)
            {
                // RFC 2883 4.1: what came twice, even if it is a part only.
                self.duplicate = twice;
                if twice == (start, end) {
                    return true;
                }
            }
            let most = most_ranges(self.buffer.limit(), self.receive_mss);
            if !self.assembler.insert(start, end, most) {
                cx.counters.drop_queue_full += 1;
                return false;
            }
            cx.host.rx_write(self.token, start - FIRST, data);
            return true;
        }
        cx.host.rx_write(self.token, start - FIRST, data);
        self.rx_nxt = end;
        self.changed = true;
        if !self.assembler.is_empty() {
            if self.sack
                && self.duplicate == NO_RANGE
                && let Some(twice) = self.assembler.overlap(start, end)
            {
                self.duplicate = twice;
            }
            self.rx_nxt = self.assembler.advance(end);
            self.ack_due = true;
        }
        true
    }

    fn on_peer_finished(&mut self, cx: &mut Context<'_>) {
        match self.state {
            TcpState::Established | TcpState::SynReceived => self.state = TcpState::CloseWait,
            TcpState::FinWait1 => {
                self.state = if self.is_finish_acked() { TcpState::TimeWait } else { TcpState::Closing };
            }
            TcpState::FinWait2 => self.state = TcpState::TimeWait,
            _ => {}
        }
        if self.state == TcpState::TimeWait {
            self.enter_time_wait(cx);
        }
    }

    fn enter_time_wait(&mut self, cx: &mut Context<'_>) {
        self.state = TcpState::TimeWait;
        self.changed = true;
        if self.ack_due || self.acked < self.rx_nxt {
            // The connection's record ends here, so its last ACK can't wait for its turn.
            self.reply_ack(cx);
        }
    }

    /// RFC 1122 4.2.3.2 and RFC 5681 4.2: at least every second full segment at once, the rest within the delay.
    fn schedule_ack(&mut self, now: Instant, config: &TcpConfig) {
        if self.ack_due || self.rx_nxt == self.acked {
            return;
        }
        if self.quick_acks > 0 && !self.interactive || self.options.quick_ack {
            self.quick_acks = self.quick_acks.saturating_sub(1);
            self.ack_due = true;
        } else if self.rx_nxt - self.acked > u64::from(self.receive_mss) {
            self.ack_due = true;
        } else if self.ack_at == NEVER {
            // Between two programs of ours an ACK costs less than the timer.
            let delay = if self.loopback { config.delayed_ack.min(LOOPBACK_ACK_DELAY) } else { config.delayed_ack };
            self.ack_at = now + delay;
        }
    }
}
