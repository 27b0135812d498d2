//! Several full segments at once, for devices that cut packets themselves: one pass through the stack, one copy and one
//! system call for all of them. Only the common case of a bulk transfer: whatever asks for more than the same header in
//! front of each segment (a repair, SACK blocks, marks, records, a probe, a FIN, a last segment that isn't full) goes the usual
//! way.

use super::connection::{Connection, FIRST};
use super::output::Plan;
use super::segment::{ACK, Header, PSH};
use super::{Context, Ready, ReadyId, Tcp};
use crate::{Instant, TcpConfig};
use core::time::Duration;

/// What a paced connection may send at once.
const PACED_BURST: Duration = Duration::from_micros(131);

/// Segments that leave as one packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Train {
    pub segments: u32,
    /// Bytes of payload of each.
    pub payload: u32,
}

/// A packet of several segments, built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Built {
    /// Bytes of the TCP header and of all payload.
    pub len: usize,
    pub header: usize,
    pub tos: u8,
    pub ttl: u8,
}

impl Connection {
    /// Two full segments or more that may all be sent now, with at most `most` bytes of payload together.
    fn plan_train(&self, now: Instant, most: u64) -> Option<Train> {
        let unsent = self.tail.saturating_sub(self.nxt);
        // The first comparison is enough for a connection that isn't moving bulk.
        if unsent < 2 * u64::from(self.mss)
            || self.loopback
            || self.ecn.on
            || self.tail_probe_due
            || !self.options.mtu_discovery.dont_fragment()
            || self.has_sack_blocks()
            || self.record_end().is_some()
        {
            return None;
        }
        let full = self.full_payload();
        match self.plan(now) {
            // Longer ones probe the path.
            Some(Plan::Data { len, fin: false }) if u64::from(len) == full => {}
            _ => return None,
        }
        let window = self.allowance().saturating_sub(self.board.in_flight());
        let room = self.send_edge.saturating_sub(self.nxt);
        let mut bytes = most.min(unsent).min(window).min(room);
        if let Some(paced) = self.paced_bytes(PACED_BURST) {
            bytes = bytes.min(paced);
        }
        let segments = u32::try_from(bytes / full).ok()?;
        (segments >= 2).then_some(Train { segments, payload: u32::try_from(full).ok()? })
    }

    /// Builds them at the front of `out`. The checksum is the pseudo-header's: the device makes each segment's own.
    fn build_train(&mut self, cx: &mut Context<'_>, config: &TcpConfig, train: Train, out: &mut [u8]) -> Option<Built> {
        let Train { segments, payload } = train;
        let total = segments * payload;
        let seq = self.nxt;
        if self.board.is_empty() {
            self.restart_after_idle(cx.now, config);
            self.stalled_since = cx.now;
        }
        self.forget_old_path(cx.now);
        self.before_data(cx);
        let last = seq + u64::from(total) >= self.tail;
        let push = if last && (!self.options.more || cx.now >= self.cork_at) { PSH } else { 0 };
        let header: Header<'_> = self.header(ACK | push, seq, cx.now, &[]);
        let header_len = header.len();
        let len = header_len + total as usize;
        let out = out.get_mut(..len)?;
        cx.host.tx_read(self.token, seq - FIRST, &mut out[header_len..]);
        header.write_for_device(self.key.local, self.key.remote, out);
        cx.counters.tcp_out += u64::from(segments);
        self.stats.segments_out = self.stats.segments_out.wrapping_add(segments);
        self.stats.data_segments_out = self.stats.data_segments_out.wrapping_add(segments);
        self.interactive |= self.is_answering(cx.now);
        self.note_acked();
        self.note_delivery(cx.now);
        for n in 0..segments {
            self.board.push(seq + u64::from(n * payload), payload, cx.now);
        }
        self.nxt = seq + u64::from(total);
        if self.nxt >= self.tail {
            self.cork_at = super::connection::NEVER;
        }
        self.after_data(cx, config, total);
        Some(Built { len, header: header_len, tos: self.options.tos & 0xfc, ttl: self.time_to_live() })
    }
}

impl Tcp {
    /// The connection whose turn it is, if it has several full segments to send: see [`Self::emit_train`].
    pub fn next_train(&mut self, now: Instant, most: u64) -> Option<(Ready, Train)> {
        let id: ReadyId = *self.ready.front()?;
        if !self.connections.is_current(id.index, id.generation) {
            return None;
        }
        let connection = self.connections.get_mut(id.index)?;
        let train = connection.plan_train(now, most)?;
        let (source, destination) = (connection.key.local, connection.key.remote);
        Some((Ready { conn: id, source, destination }, train))
    }

    /// Builds what [`Self::next_train`] has just said.
    pub fn emit_train(&mut self, cx: &mut Context<'_>, ready: Ready, train: Train, out: &mut [u8]) -> Option<Built> {
        self.ready.pop_front();
        let connection = self.connections.get_mut(ready.conn.index)?;
        connection.queued = false;
        let built = connection.build_train(cx, &self.config, train, out);
        self.settle(cx.now, ready.conn.index);
        cx.counters.tcp_closed += core::mem::take(&mut self.closed);
        built
    }
}
