//! What a shard tells about itself: rows for `sidestep ss`, counters for `sidestep stats`.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;

use serde::Serialize;
use sidestep_stack::{Counters, SocketId, TcpInfo, TcpState, Token};

use super::apps::{AppCounters, Kind, untoken};
use super::run::{LoopCounters, Shard};
use crate::clock::Clock;
use crate::port::{FrameIo, PortCounters};

/// One socket.
#[derive(Clone, Debug, Serialize)]
pub struct SocketRow {
    pub protocol: &'static str,
    pub state: &'static str,
    /// Bytes that wait to be read; for a listener, connections that wait to be accepted.
    pub recv_q: u64,
    /// Bytes not yet acknowledged; for a listener, its backlog.
    pub send_q: u64,
    pub local: String,
    pub remote: String,
    pub shard: u32,
    /// None for what belongs to no program any more (TIME-WAIT).
    pub group: Option<u32>,
    pub slot: Option<u32>,
    /// Numbers of the processes that have it open, in the group.
    pub processes: Vec<u32>,
    pub pids: Vec<u32>,
    pub cwnd: u32,
    pub srtt_us: u64,
    pub retransmits: u32,
    pub rx_bytes: u64,
    pub tx_bytes: u64,
}

/// Counters of one shard.
#[derive(Clone, Debug, Serialize)]
pub struct ShardReport {
    pub shard: u32,
    #[serde(rename = "loop")]
    pub turns: LoopCounters,
    pub apps: AppCounters,
    pub port: PortCounters,
    pub stack: StackReport,
    /// Sockets of programs on this shard now.
    pub sockets: usize,
    pub handoff_dropped: u64,
    /// Bytes of the pools that grown streams have.
    pub buffer_bytes: u64,
}

/// The stack's counters, in the form that goes out.
#[derive(Clone, Debug)]
pub struct StackReport(pub Counters);

impl Serialize for StackReport {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let c = &self.0;
        serializer.collect_map([
            ("frames_in", c.frames_in),
            ("bytes_in", c.bytes_in),
            ("frames_out", c.frames_out),
            ("bytes_out", c.bytes_out),
            ("arp_in", c.arp_in),
            ("icmp_in", c.icmp_in),
            ("udp_in", c.udp_in),
            ("udp_out", c.udp_out),
            ("loopback", c.loopback),
            ("tcp_in", c.tcp_in),
            ("tcp_out", c.tcp_out),
            ("tcp_retransmits", c.tcp_retransmits),
            ("tcp_resets_in", c.tcp_resets_in),
            ("tcp_resets_out", c.tcp_resets_out),
            ("tcp_opened_active", c.tcp_opened_active),
            ("tcp_opened_passive", c.tcp_opened_passive),
            ("tcp_closed", c.tcp_closed),
            ("tcp_challenge_acks", c.tcp_challenge_acks),
            ("drop_not_ours", c.drop_not_ours),
            ("drop_malformed", c.drop_malformed),
            ("drop_checksum", c.drop_checksum),
            ("drop_no_socket", c.drop_no_socket),
            ("drop_queue_full", c.drop_queue_full),
            ("drop_backlog", c.drop_backlog),
            ("drop_no_neighbor", c.drop_no_neighbor),
            ("drop_no_route", c.drop_no_route),
            ("drop_rate_limited", c.drop_rate_limited),
            ("drop_fragment", c.drop_fragment),
        ])
    }
}

impl<P: FrameIo, C: Clock> Shard<P, C> {
    pub(crate) fn report(&self) -> ShardReport {
        ShardReport {
            shard: self.number,
            turns: self.counters,
            apps: self.apps.counters,
            port: self.port.counters(),
            stack: StackReport(self.stack.counters()),
            sockets: self.apps.all().count(),
            buffer_bytes: self.apps.buffer_bytes(),
            handoff_dropped: self.mailboxes[self.number as usize].frames_dropped.load(Ordering::Relaxed),
        }
    }

    pub(super) fn sockets(&self) -> Vec<SocketRow> {
        let mut rows = Vec::new();
        self.stack.tcp_for_each(&mut |token: Token, _: SocketId, info: TcpInfo| rows.push(self.tcp_row(token, &info)));
        self.stack.udp_for_each(&mut |token: Token, _: SocketId, local: SocketAddr, remote: Option<SocketAddr>| {
            let mut row = self.row(token, "udp", if remote.is_some() { "ESTAB" } else { "UNCONN" });
            row.local = local.to_string();
            row.remote = remote.map_or_else(|| "*".into(), |r| r.to_string());
            rows.push(row);
        });
        rows
    }

    fn tcp_row(&self, token: Token, info: &TcpInfo) -> SocketRow {
        let mut row = self.row(token, "tcp", state_name(info.state));
        row.local = info.local.to_string();
        row.remote = info.remote.to_string();
        row.cwnd = info.cwnd;
        row.srtt_us = info.srtt.as_micros() as u64;
        row.retransmits = info.retransmits;
        row
    }

    /// The part that stands in shared memory and in our books.
    fn row(&self, token: Token, protocol: &'static str, state: &'static str) -> SocketRow {
        let (group, slot) = untoken(token);
        let mut row = SocketRow {
            protocol,
            state,
            recv_q: 0,
            send_q: 0,
            local: String::new(),
            remote: String::new(),
            shard: self.number,
            group: None,
            slot: None,
            processes: Vec::new(),
            pids: Vec::new(),
            cwnd: 0,
            srtt_us: 0,
            retransmits: 0,
            rx_bytes: 0,
            tx_bytes: 0,
        };
        let Some(socket) = self.apps.index_of(group, slot).and_then(|i| self.apps.get(i)) else { return row };
        let Some(shared) = self.apps.region(group).and_then(|r| r.slot(slot)) else { return row };
        row.group = Some(group);
        row.slot = Some(slot);
        for (word, bits) in shared.holders.iter().enumerate() {
            let bits = bits.load(Ordering::Relaxed);
            row.processes.extend((0..64).filter(|b| bits >> b & 1 == 1).map(|b| word as u32 * 64 + b));
        }
        match &socket.kind {
            Kind::Stream(s) => {
                row.recv_q = s.rx_tail.saturating_sub(shared.rx_head.load(Ordering::Relaxed));
                row.send_q = s.tx_tail.saturating_sub(s.tx_head);
                (row.rx_bytes, row.tx_bytes) = (s.rx_tail, s.tx_tail);
            }
            Kind::Listener(l) => {
                let head =
                    self.apps.region(group).and_then(|r| r.accept_ring(slot, self.number)).map_or(0, |r| r.head());
                row.recv_q = l.tail.saturating_sub(head);
                row.send_q = l.backlog.into();
            }
            Kind::Datagram(d) => {
                row.recv_q = d.rx_tail.saturating_sub(shared.rx_head.load(Ordering::Relaxed));
                row.send_q = d.tx_tail.saturating_sub(d.tx_head);
                (row.rx_bytes, row.tx_bytes) = (d.rx_tail, d.tx_tail);
            }
            Kind::Over { .. } => {}
        }
        row
    }
}

/// State names as ss(8) prints them.
fn state_name(state: TcpState) -> &'static str {
    match state {
        TcpState::Established => "ESTAB",
        TcpState::SynSent => "SYN-SENT",
        TcpState::SynReceived => "SYN-RECV",
        TcpState::FinWait1 => "FIN-WAIT-1",
        TcpState::FinWait2 => "FIN-WAIT-2",
        TcpState::TimeWait => "TIME-WAIT",
        TcpState::Closed => "CLOSED",
        TcpState::CloseWait => "CLOSE-WAIT",
        TcpState::LastAck => "LAST-ACK",
        TcpState::Listen => "LISTEN",
        TcpState::Closing => "CLOSING",
    }
}
