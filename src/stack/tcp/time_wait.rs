//! Connections in TIME-WAIT: small records of their own, because a busy server has far more of them than of living
//! ones. A million take 92 MB: 64 bytes each, 8 for their place in the order of expiry, 16 in the flow table.

use super::Context;
use super::connection::{Connection, ORIGIN};
use super::flow::FlowKey;
use super::isn::{self, Secrets};
use super::output::reply;
use super::segment::{ACK, FIN, Header, RST, SYN, Segment};
use crate::{Instant, TcpInfo, TcpState};
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::net::{IpAddr, Ipv6Addr};
use core::time::Duration;

/// ACKs of one record a second: two ends that both think they answer must not go on for ever.
const ANSWERS_PER_SECOND: u8 = 10;

/// What is left of a connection. Times are milliseconds that wrap: none is further from now than 24 days.
#[derive(Clone, Copy, Debug)]
pub(super) struct TimeWait {
    /// IPv6, or IPv4 in mapped form.
    local: [u32; 4],
    remote: [u32; 4],
    local_port: u16,
    remote_port: u16,
    rx_nxt: u32,
    tx_nxt: u32,
    timestamp_recent: u32,
    expires: u32,
    since: u32,
    window: u16,
    tos: u8,
    ttl: u8,
    generation: u8,
    answers: u8,
    timestamps: bool,
    in_use: bool,
}

const _: () = assert!(size_of::<TimeWait>() == 64);

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
    records: Vec<TimeWait>,
    free: Vec<u32>,
    order: VecDeque<Place>,
    limit: usize,
    duration: Duration,
    /// The newest time that was handed in: what milliseconds are counted from.
    now: Instant,
}

/// A record in the order of expiry: when to look (32 bits), its generation (8), its index (24).
#[derive(Clone, Copy, Debug)]
struct Place(u64);

/// Records that a [`Place`] can name.
const MOST_RECORDS: usize = 1 << 24;

impl Place {
    const fn new(index: u32, generation: u8, at: u32) -> Self {
        Self((at as u64) << 32 | (generation as u64) << 24 | index as u64)
    }
    #[allow(clippy::cast_possible_truncation)]
    const fn index(self) -> u32 {
        self.0 as u32 & 0xff_ffff
    }
    #[allow(clippy::cast_possible_truncation)]
    const fn generation(self) -> u8 {
        (self.0 >> 24) as u8
    }
    #[allow(clippy::cast_possible_truncation)]
    const fn at(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

#[allow(clippy::cast_possible_truncation)]
fn millis(at: Instant) -> u32 {
    at.as_millis() as u32
}

impl TimeWaits {
    pub fn new(limit: usize, duration: Duration) -> Self {
        let limit = limit.min(MOST_RECORDS - 1);
        Self { records: Vec::new(), free: Vec::new(), order: VecDeque::new(), limit, duration, now: Instant::ZERO }
    }

    pub fn get(&self, index: u32) -> Option<&TimeWait> {
        self.records.get(index as usize).filter(|record| record.in_use)
    }

    fn get_mut(&mut self, index: u32) -> Option<&mut TimeWait> {
        self.records.get_mut(index as usize).filter(|record| record.in_use)
    }

    pub fn iter(&self) -> impl Iterator<Item = (u32, u32, &TimeWait)> {
        let in_use = (0_u32..).zip(&self.records).filter(|(_, record)| record.in_use);
        in_use.map(|(index, record)| (index, record.generation.into(), record))
    }

    pub fn len(&self) -> usize {
        self.records.len() - self.free.len()
    }

    pub fn insert(&mut self, record: TimeWait) -> u32 {
        let (index, generation) = if let Some(index) = self.free.pop() {
            let place = &mut self.records[index as usize];
            let generation = place.generation;
            *place = TimeWait { generation, ..record };
            (index, generation)
        } else {
            let index = u32::try_from(self.records.len()).expect("fewer than MOST_RECORDS");
            self.records.push(record);
            (index, record.generation)
        };
        self.order.push_back(Place::new(index, generation, record.expires));
        if self.order.len() > 2 * self.len() + 1024 {
            // Tuples that are used again and again leave stale entries behind.
            let records = &self.records;
            self.order.retain(|place| is_current(records, *place));
        }
        index
    }

    pub fn remove(&mut self, index: u32) {
        if let Some(record) = self.get_mut(index) {
            record.in_use = false;
            record.generation = record.generation.wrapping_add(1);
            self.free.push(index);
        }
        // The entry in `order` is stale now; they are few, and the front is cleaned as it comes up.
        while self.order.front().is_some_and(|place| !is_current(&self.records, *place)) {
            self.order.pop_front();
        }
    }

    pub fn is_over_limit(&self) -> bool {
        self.len() > self.limit
    }

    /// The moment of these milliseconds that is nearest to now.
    fn moment(&self, at: u32) -> Instant {
        let distance = at.wrapping_sub(millis(self.now)).cast_signed();
        Instant::from_millis(self.now.as_millis().saturating_add_signed(distance.into()))
    }

    pub fn next_deadline(&self) -> Option<Instant> {
        self.order.front().map(|place| self.moment(place.at()))
    }

    /// A record that is over, or too many: to be removed by the caller together with its flow.
    pub fn pop_expired(&mut self, now: Instant) -> Option<u32> {
        self.now = self.now.max(now);
        let due = |at: u32| at.wrapping_sub(millis(now)).cast_signed() <= 0;
        while let Some(place) = self.order.front().copied() {
            if !is_current(&self.records, place) {
                self.order.pop_front();
                continue;
            }
            if self.is_over_limit() {
                return Some(place.index());
            }
            if !due(place.at()) {
                return None;
            }
            let expires = self.records[place.index() as usize].expires;
            if due(expires) {
                return Some(place.index());
            }
            // A FIN that came again has started it anew.
            self.order.pop_front();
            self.order.push_back(Place::new(place.index(), place.generation(), expires));
        }
        None
    }

    pub fn record(&mut self, connection: &Connection, now: Instant) -> TimeWait {
        self.now = self.now.max(now);
        let window = connection.rx_edge.saturating_sub(connection.rx_nxt) >> connection.receive_scale;
        TimeWait {
            local: words(connection.key.local),
            remote: words(connection.key.remote),
            local_port: connection.key.local_port,
            remote_port: connection.key.remote_port,
            rx_nxt: connection.receive_sequence(connection.rx_nxt),
            tx_nxt: connection.send_sequence(connection.nxt.max(ORIGIN)),
            timestamp_recent: connection.timestamp_recent,
            expires: self.expiry(now),
            since: millis(now),
            window: u16::try_from(window).unwrap_or(u16::MAX),
            tos: connection.options.tos,
            ttl: connection.options.ttl,
            generation: 0,
            answers: 0,
            timestamps: connection.timestamps,
            in_use: true,
        }
    }

    /// The first whole millisecond after the time is over.
    fn expiry(&self, now: Instant) -> u32 {
        millis(now + self.duration).wrapping_add(1)
    }

    /// RFC 9293 3.10.7.4 for TIME-WAIT, with RFC 6191 and RFC 1337.
    pub fn on_segment(&mut self, cx: &mut Context<'_>, secrets: &Secrets, index: u32, segment: &Segment<'_>) -> Wake {
        let expires = self.expiry(cx.now);
        let Some(record) = self.get_mut(index) else { return Wake::Nothing };
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
            record.expires = expires;
        }
        if segment.len() > 0 {
            record.answer(cx, secrets);
        }
        Wake::Nothing
    }
}

impl TimeWait {
    pub fn key(&self) -> FlowKey {
        FlowKey {
            local: address(self.local),
            remote: address(self.remote),
            local_port: self.local_port,
            remote_port: self.remote_port,
        }
    }

    /// Whether it is what is left of this connection.
    pub fn is_of(&self, key: &FlowKey) -> bool {
        self.local_port == key.local_port
            && self.remote_port == key.remote_port
            && self.remote == words(key.remote)
            && self.local == words(key.local)
    }

    /// Beyond everything that the old connection can have in the network (RFC 6191; Linux adds the same).
    pub const fn reuse_sequence(&self) -> u32 {
        self.tx_nxt.wrapping_add(65_537)
    }

    /// Whether a new connection of ours may take the tuple: with timestamps, when their clock has moved on for sure.
    pub fn is_reusable(&self, now: Instant) -> bool {
        self.timestamps && millis(now).wrapping_sub(self.since) > 1000
    }

    pub fn info(&self) -> TcpInfo {
        TcpInfo {
            receive_window: u32::from(self.window),
            timestamps: self.timestamps,
            ..TcpInfo::new(TcpState::TimeWait, self.key().local(), self.key().remote())
        }
    }

    fn answer(&mut self, cx: &mut Context<'_>, secrets: &Secrets) {
        let key = self.key();
        if millis(cx.now).wrapping_sub(self.since) >= 1000 {
            self.answers = 0;
            self.since = millis(cx.now);
        }
        if self.answers >= ANSWERS_PER_SECOND {
            return;
        }
        self.answers += 1;
        let header = Header {
            source_port: self.local_port,
            destination_port: self.remote_port,
            seq: self.tx_nxt,
            ack: self.rx_nxt,
            flags: ACK,
            window: self.window,
            timestamps: self
                .timestamps
                .then(|| (isn::timestamp(cx.now, secrets.timestamp_offset(&key)), self.timestamp_recent)),
            ..Header::default()
        };
        reply(cx, &key, &header, self.tos, self.ttl);
    }
}

fn is_current(records: &[TimeWait], place: Place) -> bool {
    records.get(place.index() as usize).is_some_and(|r| r.in_use && r.generation == place.generation())
}

fn words(address: IpAddr) -> [u32; 4] {
    let bits = match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
        IpAddr::V6(v6) => v6.to_bits(),
    };
    #[allow(clippy::cast_possible_truncation)]
    [(bits >> 96) as u32, (bits >> 64) as u32, (bits >> 32) as u32, bits as u32]
}

fn address(words: [u32; 4]) -> IpAddr {
    let bits = words.iter().fold(0_u128, |bits, word| bits << 32 | u128::from(*word));
    IpAddr::V6(Ipv6Addr::from_bits(bits)).to_canonical()
}

#[cfg(test)]
mod tests {
    use super::super::flow::{FlowRef, FlowTable};
    use super::*;
    use crate::siphash::SipKey;

    fn record(n: u32, expires: u32) -> TimeWait {
        TimeWait {
            local: words(IpAddr::from([10, 0, 0, 1])),
            remote: [0xfd00_0000, 0, n >> 12, 1],
            local_port: 80,
            remote_port: n as u16,
            rx_nxt: 0,
            tx_nxt: 0,
            timestamp_recent: 0,
            expires,
            since: 0,
            window: 0,
            tos: 0,
            ttl: 0,
            generation: 0,
            answers: 0,
            timestamps: true,
            in_use: true,
        }
    }

    #[test]
    fn a_million_take_less_than_100_mb() {
        let key = SipKey::derive(&[1; 32], 1);
        let mut flows = FlowTable::new();
        let mut all = TimeWaits::new(1 << 20, Duration::from_secs(60));
        for n in 0..1_000_000 {
            let record = record(n, 60_000);
            let hash = record.key().hash(key);
            let index = all.insert(record);
            flows.insert(hash, FlowRef::TimeWait(index));
        }
        let bytes = all.records.capacity() * size_of::<TimeWait>()
            + all.order.capacity() * size_of::<Place>()
            + all.free.capacity() * size_of::<u32>()
            + flows.bytes();
        std::println!("a million connections in TIME-WAIT: {bytes} bytes");
        assert!(bytes < 100_000_000, "{bytes} bytes");
        assert_eq!(all.len(), 1_000_000);
    }

    #[test]
    fn times_and_generations_wrap() {
        let mut all = TimeWaits::new(100, Duration::from_secs(60));
        // Near the end of what 32 bits of milliseconds hold.
        let start = Instant::from_millis(u64::from(u32::MAX) - 5000);
        all.now = start;
        let first = all.insert(record(1, all.expiry(start)));
        let second = all.insert(record(2, all.expiry(start + Duration::from_millis(10))));
        assert_eq!(all.next_deadline(), Some(start + Duration::from_millis(60_001)));
        assert_eq!(all.pop_expired(start + Duration::from_secs(60)), None);
        assert_eq!(all.pop_expired(start + Duration::from_millis(60_001)), Some(first));
        all.remove(first);
        assert_eq!(all.next_deadline(), Some(start + Duration::from_millis(60_011)));
        // The place is used again and again; what was said of it before doesn't count.
        for round in 0..1000 {
            let index = all.insert(record(round, all.expiry(start + Duration::from_secs(1))));
            assert_eq!(index, first);
            all.remove(index);
        }
        assert!(all.get(first).is_none() && all.get(second).is_some());
        assert_eq!(all.pop_expired(start + Duration::from_secs(600)), Some(second));
        all.remove(second);
        assert_eq!((all.len(), all.next_deadline()), (0, None));
    }

    #[test]
    fn addresses_come_back() {
        for text in ["10.1.2.3", "2001:db8::7", "::1"] {
            let ip: IpAddr = text.parse().unwrap();
            assert_eq!(address(words(ip)), ip);
        }
    }
}
