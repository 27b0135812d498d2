//! The numbers of one connection.

use super::connection::{Connection, FIRST, ORIGIN};
use super::recovery::Phase;
use crate::{CongestionState, Instant, TcpConfig, TcpInfo};
use core::time::Duration;

/// Most that [`Connection::info`] tells of the congestion window and its like, in bytes.
fn bytes(n: u64) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

impl Connection {
    pub fn info(&self, config: &TcpConfig, now: Instant) -> TcpInfo {
        let sent = self.nxt.min(self.tail).saturating_sub(FIRST);
        let (busy, window_limited, buffer_limited) = self.stats.times(now);
        let counts = self.board.counts();
        let syn = u32::from(self.nxt > ORIGIN && self.una == ORIGIN);
        TcpInfo {
            timestamps: self.timestamps,
            sack: self.sack,
            window_scaling: self.is_scaled,
            send_scale: self.send_scale,
            receive_scale: self.receive_scale,
            send_mss: self.full_segment(),
            receive_mss: self.receive_mss,
            announced_mss: u32::from(self.announced_mss),
            path_mtu: self.path_mtu(),
            srtt: self.rtt.smoothed(),
            rttvar: self.rtt.variation(),
            min_rtt: self.rtt.minimum().unwrap_or(Duration::ZERO),
            rto: self.timeout(config),
            delayed_ack: config.delayed_ack,
            last_data_sent: now.since(self.last_send),
            last_data_received: now.since(self.stats.last_data_in),
            last_ack_received: now.since(self.last_receive),
            congestion_state: match self.board.phase() {
                Phase::Open if self.board.is_disordered() => CongestionState::Disorder,
                Phase::Open => CongestionState::Open,
                Phase::Reduction => CongestionState::Reduced,
                Phase::Recovery => CongestionState::Recovery,
                Phase::Timeout => CongestionState::Loss,
            },
            cwnd: bytes(self.allowance()),
            ssthresh: bytes(self.congestion.threshold()),
            pacing_rate: Some(self.pacing_rate()).filter(|rate| *rate != u64::MAX).unwrap_or(0),
            max_pacing_rate: self.options.max_pacing_rate,
            delivery_rate: self.delivery.as_ref().map_or(0, |delivery| delivery.shown().0),
            delivery_rate_app_limited: self.delivery.as_ref().is_some_and(|delivery| delivery.shown().1),
            in_flight: counts.unacked + syn,
            sacked: counts.sacked,
            lost: counts.lost,
            retransmitted: counts.retransmitted,
            reordering: u32::from(self.board.reordering),
            reordering_seen: u32::from(self.board.reordered),
            delivered: self.delivered,
            delivered_ce: self.delivered_marked,
            dsack_duplicates: self.needless,
            ecn: self.ecn.on,
            syn_data: self.syn_data,
            ecn_seen: self.ecn.seen,
            bytes_in_flight: bytes(self.board.in_flight()),
            timeouts: self.timeouts,
            probes: self.probes.max(self.keepalives),
            backoff: self.backoff,
            total_timeouts: self.stats.timeouts,
            total_timeout_recoveries: self.stats.timeout_recoveries,
            total_timeout_time: self.stats.timeout_time(),
            send_window: bytes(self.send_edge.saturating_sub(self.una)),
            receive_window: bytes(self.rx_edge.saturating_sub(self.rx_nxt)),
            receive_threshold: self.buffer.threshold(),
            receive_space: self.buffer.space(),
            receive_rtt: self.buffer.rtt(),
            receive_buffer: self.buffer.limit(),
            send_buffer: self.transmit_limit,
            not_sent: self.tail.saturating_sub(self.nxt.max(FIRST)),
            send_queue: self.tail.saturating_sub(self.una.max(FIRST)),
            retransmits: self.retransmits,
            bytes_acked: self.una.saturating_sub(FIRST),
            bytes_received: self.rx_nxt.saturating_sub(FIRST),
            bytes_sent: sent + self.stats.bytes_retransmitted,
            bytes_retransmitted: self.stats.bytes_retransmitted,
            segments_out: self.stats.segments_out,
            segments_in: self.stats.segments_in,
            data_segments_out: self.stats.data_segments_out,
            data_segments_in: self.stats.data_segments_in,
            out_of_order: self.stats.out_of_order,
            busy,
            window_limited,
            buffer_limited,
            ..TcpInfo::new(self.state, self.key.local(), self.key.remote())
        }
    }

    /// Takes note of what sending waits for.
    pub fn note_limit(&mut self, now: Instant) {
        use super::stats::Limited;
        let unsent = self.nxt < self.tail;
        let limited = if !unsent && self.board.is_empty() {
            Limited::Idle
        } else if unsent && self.is_blocked_by_window() {
            Limited::Window
        } else if !unsent && self.tail - self.una.min(self.tail) >= u64::from(self.transmit_limit / 4 * 3) {
            Limited::Buffer
        } else {
            Limited::Busy
        };
        self.stats.limited_by(limited, now);
    }
}
