//! Connections in TIME-WAIT: small records of their own, because a busy server has far more of them than of living
//! ones.

use super::Context;
use super::connection::{Connection, ORIGIN};
use super::flow::FlowKey;
use super::isn;
use super::output::reply;
use super::segment::{ACK, FIN, Header, RST, SYN, Segment};
use super::slab::Slab;
use crate::{Instant, TcpInfo, TcpState};
use alloc::collections::VecDeque;
use core::time::Duration;

/// ACKs of one record a second: two ends that both think they answer must not go on for ever.
const ANSWERS_PER_SECOND: u8 = 10;

/// What is left of a connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct TimeWait {
    pub key: FlowKey,
    rx_nxt: u32,
    tx_nxt: u32,
    timestamp_recent: u32,
    timestamp_offset: u32,
    expires: Instant,
    since: Instant,
    window: u16,
    tos: u8,
    ttl: u8,
    timestamps: bool,
    answers: u8,
}

const _: () = assert!(size_of::<Option<TimeWait>>() <= 96);

/// What a segment for such a record calls for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wake {
    Nothing,
    /// A new connection may take the tuple; its initial sequence number must be at least this.
    Reuse {
        sequence: u32,
    },
}

/// The records, oldest first.
#[derive(Debug)]
pub(super) struct TimeWaits {
    records: Slab<TimeWait>,
    /// Index, generation, and when to look.
    order: VecDeque<(u32, u32, Instant)>,
    limit: usize,
    duration: Duration,
}

impl TimeWaits {
    pub const fn new(limit: usize, duration: Duration) -> Self {
        Self { records: Slab::new(), order: VecDeque::new(), limit, duration }
    }

    pub fn get(&self, index: u32) -> Option<&TimeWait> {
        self.records.get(index)
    }

    pub fn iter(&self) -> impl Iterator<Item = (u32, u32, &TimeWait)> {
        self.records.iter()
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.records.len()
    }

    pub fn insert(&mut self, record: TimeWait) -> u32 {
        let expires = record.expires;
        let (index, generation) = self.records.insert(record);
        self.order.push_back((index, generation, expires));
        if self.order.len() > 2 * self.records.len() + 1024 {
            // Tuples that are used again and again leave stale entries behind.
            let records = &self.records;
            self.order.retain(|(index, generation, _)| records.is_current(*index, *generation));
        }
        index
    }

    pub fn remove(&mut self, index: u32) {
        self.records.remove(index);
        // The entry in `order` is stale now; they are few, and the front is cleaned as it comes up.
        while self.order.front().is_some_and(|(index, generation, _)| !self.records.is_current(*index, *generation)) {
            self.order.pop_front();
        }
    }

    pub fn is_over_limit(&self) -> bool {
        self.records.len() > self.limit
    }

    pub fn next_deadline(&self) -> Option<Instant> {
        self.order.front().map(|(_, _, at)| *at)
    }

    /// A record that is over, or too many: to be removed by the caller together with its flow.
    pub fn pop_expired(&mut self, now: Instant) -> Option<u32> {
        while let Some((index, generation, at)) = self.order.front().copied() {
            let Some(record) = self.records.get(index).filter(|_| self.records.is_current(index, generation)) else {
                self.order.pop_front();
                continue;
            };
            if self.is_over_limit() {
                return Some(index);
            }
            if now < at {
                return None;
            }
            if now >= record.expires {
                return Some(index);
            }
            // A FIN that came again has started it anew.
            let expires = record.expires;
            self.order.pop_front();
            self.order.push_back((index, generation, expires));
        }
        None
    }

    pub fn record(&self, connection: &Connection, now: Instant) -> TimeWait {
        let window = connection.rx_edge.saturating_sub(connection.rx_nxt) >> connection.receive_scale;
        TimeWait {
            key: connection.key,
            rx_nxt: connection.receive_sequence(connection.rx_nxt),
            tx_nxt: connection.send_sequence(connection.nxt.max(ORIGIN)),
            timestamp_recent: connection.timestamp_recent,
            timestamp_offset: connection.timestamp_offset,
            expires: now + self.duration,
            since: now,
            window: u16::try_from(window).unwrap_or(u16::MAX),
            tos: connection.options.tos,
            ttl: connection.options.ttl,
            timestamps: connection.timestamps,
            answers: 0,
        }
    }

    /// RFC 9293 3.10.7.4 for TIME-WAIT, with RFC 6191 and RFC 1337.
    pub fn on_segment(&mut self, cx: &mut Context<'_>, index: u32, segment: &Segment<'_>) -> Wake {
        let duration = self.duration;
        let Some(record) = self.records.get_mut(index) else { return Wake::Nothing };
        // RFC 1337: a RST must not end it early.
        if segment.has(RST) {
            return Wake::Nothing;
        }
        let newer_sequence = segment.seq.wrapping_sub(record.rx_nxt).cast_signed() > 0;
        let timestamp_distance = segment
            .timestamps
            .filter(|_| record.timestamps)
            .map(|timestamps| timestamps.value.wrapping_sub(record.timestamp_recent).cast_signed());
        if segment.has(SYN) && !segment.has(ACK) {
            let reusable = match timestamp_distance {
                Some(0) => newer_sequence,
                Some(distance) => distance > 0,
                None => newer_sequence,
            };
            if reusable {
                return Wake::Reuse { sequence: record.reuse_sequence() };
            }
        } else if segment.has(FIN) && timestamp_distance.is_none_or(|distance| distance >= 0) {
            // Our last ACK was lost: once more, and the time starts again.
            record.expires = cx.now + duration;
        }
        if segment.len() > 0 {
            record.answer(cx);
        }
        Wake::Nothing
    }
}

impl TimeWait {
    /// Beyond everything that the old connection can have in the network (RFC 6191; Linux adds the same).
    pub const fn reuse_sequence(&self) -> u32 {
        self.tx_nxt.wrapping_add(65_537)
    }

    /// Whether a new connection of ours may take the tuple: with timestamps, when their clock has moved on for sure.
    pub fn is_reusable(&self, now: Instant) -> bool {
        self.timestamps && now.since(self.since) > Duration::from_secs(1)
    }

    pub fn info(&self) -> TcpInfo {
        TcpInfo {
            receive_window: u32::from(self.window),
            timestamps: self.timestamps,
            ..TcpInfo::new(TcpState::TimeWait, self.key.local(), self.key.remote())
        }
    }

    fn answer(&mut self, cx: &mut Context<'_>) {
        if cx.now.since(self.since) >= Duration::from_secs(1) {
            self.answers = 0;
            self.since = cx.now;
        }
        if self.answers >= ANSWERS_PER_SECOND {
            return;
        }
        self.answers += 1;
        let header = Header {
            source_port: self.key.local_port,
            destination_port: self.key.remote_port,
            seq: self.tx_nxt,
            ack: self.rx_nxt,
            flags: ACK,
            window: self.window,
            timestamps: self.timestamps.then(|| (isn::timestamp(cx.now, self.timestamp_offset), self.timestamp_recent)),
            ..Header::default()
        };
        reply(cx, &self.key, &header, self.tos, self.ttl);
    }
}
