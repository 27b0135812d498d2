//! What the stack asks of its host, answered out of the programs' shared memory.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;

use sidestep_shm::accept::AcceptRing;
use sidestep_shm::datagram::{HEADER_BYTES, Header};
use sidestep_shm::slot::{kind, status, store_address};
use sidestep_stack::{DatagramMeta, Host, Stream, Token};

use super::apps::{Apps, Kind, Socket, StreamSocket, token, untoken};
use crate::control::address::{endpoint, mapped};

impl Host for Apps {
    fn accept(&mut self, listener: Token, local: SocketAddr, remote: SocketAddr) -> Option<Stream> {
        let (group, listening) = untoken(listener);
        let shard = self.shard;
        let (waiting, backlog, geometry) = {
            let ring_head = self.region(group)?.accept_ring(listening, shard)?.head();
            let geometry = self.geometry(group)?;
            let l = self.listener_mut(group, listening)?;
            // Programs move the head; it can only go forward, and never beyond what was put in.
            if (l.head..=l.tail).contains(&ring_head) {
                l.head = ring_head;
            }
            (l.tail - l.head + u64::from(l.coming), l.backlog, geometry)
        };
        // Linux: a queue of `backlog` is full when it holds more than backlog.
        if waiting > u64::from(backlog) || waiting >= u64::from(AcceptRing::capacity_for(&geometry)) {
            self.counters.accept_overflow += 1;
            if let Some(l) = self.region(group).and_then(|r| r.slot(listening)) {
                l.drops.fetch_add(1, Ordering::Relaxed);
            }
            return None;
        }
        let view = self.view_mut(group)?;
        let Some(slot) = view.free.pop() else {
            self.counters.slots_exhausted += 1;
            return None;
        };
        if !view.group.take(slot, shard + 1) {
            // Accept slots are ours alone, so this can't be; losing the slot is better than sharing it.
            tracing::error!(group, slot, "an accept slot was in use already");
            return None;
        }
        let shared = view.group.region().slot(slot)?;
        // As its listener: a dual-stack listener's IPv4 connections are IPv6 sockets to the program.
        let listener_kind = view.group.region().slot(listening).map(|l| l.kind.load(Ordering::Relaxed));
        let is_known = |k: &u32| matches!(*k, kind::TCP4 | kind::TCP6);
        shared.kind.store(listener_kind.filter(is_known).unwrap_or(kind::TCP4), Ordering::Relaxed);
        store_address(&shared.local_address, mapped(local.ip()));
        store_address(&shared.remote_address, mapped(remote.ip()));
        shared.local_port.store(local.port().into(), Ordering::Relaxed);
        shared.remote_port.store(remote.port().into(), Ordering::Relaxed);
        shared.shard.store(shard, Ordering::Relaxed);
        shared.listener.store(listening + 1, Ordering::Relaxed);
        shared.status.store(status::OPEN | status::CONNECTED | status::BOUND, Ordering::Release);
        self.insert(
            group,
            slot,
            Kind::Stream(StreamSocket { queued: Some((listening, u64::MAX)), ..Default::default() }),
        );
        self.listener_mut(group, listening)?.coming += 1;
        Some(Stream { token: token(group, slot), rx_capacity: geometry.rx_bytes, tx_capacity: geometry.tx_bytes })
    }

    fn rx_write(&mut self, stream: Token, at: u64, data: &[u8]) {
        self.latency.arrived(stream, at + data.len() as u64);
        let (group, slot) = untoken(stream);
        if let Some((region, s)) = self.stream_and_region(group, slot)
            && let Some(split) = s.rx_split(region, slot)
        {
            split.write(at, data);
        }
    }

    fn tx_read(&mut self, stream: Token, at: u64, out: &mut [u8]) {
        self.latency.reads(stream, at, out.len());
        let (group, slot) = untoken(stream);
        if let Some((region, s)) = self.stream_and_region(group, slot)
            && let Some(split) = s.tx_split(region, slot)
        {
            split.read(at, out);
        }
    }

    fn rx_grow(&mut self, stream: Token, written: u64, bytes: u32) -> u32 {
        let (group, slot) = untoken(stream);
        self.grow_rx(group, slot, written, bytes)
    }

    fn datagram_in(&mut self, socket: Token, meta: &DatagramMeta, payload: &[u8]) -> bool {
        let (group, slot) = untoken(socket);
        self.put_datagram(group, slot, meta, payload).unwrap_or_else(|| {
            self.counters.datagrams_dropped += 1;
            if let Some(shared) = self.region(group).and_then(|r| r.slot(slot)) {
                shared.drops.fetch_add(1, Ordering::Relaxed);
            }
            false
        })
    }

    fn datagram_out(&mut self, socket: Token, out: &mut [u8]) -> Option<DatagramMeta> {
        let (group, slot) = untoken(socket);
        loop {
            // One that is too long for any packet was dropped: the next one is looked at.
            if let Ok(meta) = self.take_datagram(group, slot, out)? {
                return Some(meta);
            }
        }
    }
}

struct TooLong;

impl Apps {
    fn stream_and_region(&self, group: u32, slot: u32) -> Option<(&sidestep_shm::Region, &StreamSocket)> {
        let view = self.view(group)?;
        match &self.get(view.index_of(slot)?)?.kind {
            Kind::Stream(s) => Some((view.group.region(), s)),
            _ => None,
        }
    }

    /// Writes a record into the socket's receive ring. None: no such socket, or no room.
    fn put_datagram(&mut self, group: u32, slot: u32, meta: &DatagramMeta, payload: &[u8]) -> Option<bool> {
        let index = self.index_of(group, slot)?;
        let (head_said, capacity) = {
            let region = self.region(group)?;
            (region.slot(slot)?.rx_head.load(Ordering::Acquire), u64::from(region.geometry().rx_bytes))
        };
        let Some(Socket { kind: Kind::Datagram(d), .. }) = self.at(index) else { return None };
        if (d.rx_head..=d.rx_tail).contains(&head_said) {
            d.rx_head = head_said;
        }
        let at = d.rx_tail;
        let record = Header::record_bytes(payload.len());
        if at + record - d.rx_head > capacity {
            return None;
        }
        d.rx_tail = at + record;
        let header = Header {
            len: payload.len() as u32,
            remote: mapped(meta.remote.ip()),
            remote_port: meta.remote.port(),
            local: mapped(meta.local.ip()),
            tos: meta.tos,
            ttl: meta.ttl,
        };
        let region = self.region(group)?;
        let ring = region.rx(slot)?;
        ring.write(at, &header.encode());
        ring.write(at + HEADER_BYTES as u64, payload);
        region.slot(slot)?.rx_tail.store(at + record, Ordering::Release);
        self.notify(group, slot);
        Some(true)
    }

    /// Takes a record out of the socket's transmit ring. None: no such socket, nothing there, or nonsense.
    fn take_datagram(&mut self, group: u32, slot: u32, out: &mut [u8]) -> Option<Result<DatagramMeta, TooLong>> {
        let index = self.index_of(group, slot)?;
        let Socket { kind: Kind::Datagram(d), .. } = self.get(index)? else { return None };
        let (head, tail) = (d.tx_head, d.tx_tail);
        let region = self.region(group)?;
        let ring = region.tx(slot)?;
        let header = (tail - head >= HEADER_BYTES as u64).then(|| {
            let mut bytes = [0; HEADER_BYTES];
            ring.read(head, &mut bytes);
            Header::decode(&bytes)
        });
        let record = match header {
            None => return None,
            Some(Some(h)) if Header::record_bytes(h.len as usize) <= tail - head => Some(h),
            // Nonsense: everything that is queued is thrown away, because no record can be found in it.
            Some(_) => None,
        };
        let next = record.map_or(tail, |h| head + Header::record_bytes(h.len as usize));
        let fits = record.is_some_and(|h| h.len as usize <= out.len());
        if let Some(h) = record.filter(|_| fits) {
            ring.read(head + HEADER_BYTES as u64, &mut out[..h.len as usize]);
        }
        let shared = region.slot(slot)?;
        shared.tx_head.store(next, Ordering::Release);
        let is_v4 = shared.kind.load(Ordering::Relaxed) == kind::UDP4;
        if record.is_none() {
            self.counters.hostile += 1;
        }
        if let Some(Socket { kind: Kind::Datagram(d), .. }) = self.at(index) {
            d.tx_head = next;
        }
        let h = record?;
        if !fits {
            return Some(Err(TooLong));
        }
        let remote = endpoint(h.remote, h.remote_port);
        // An unspecified mapped address is "::" in the header whatever the family is.
        let local = match endpoint(h.local, 0) {
            SocketAddr::V6(a) if a.ip().is_unspecified() && (is_v4 || remote.is_ipv4()) => {
                SocketAddr::new(std::net::Ipv4Addr::UNSPECIFIED.into(), 0)
            }
            other => other,
        };
        Some(Ok(DatagramMeta { len: h.len as usize, local, remote, tos: h.tos, ttl: h.ttl }))
    }
}
