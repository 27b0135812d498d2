//! Numbers of one TCP socket, for `ss` and TCP_INFO, and the form in which Linux gives them to programs.

use crate::TcpState;
use core::net::{IpAddr, Ipv4Addr, SocketAddr};
use core::time::Duration;

/// Bytes of `struct tcp_info` (linux/tcp.h) up to `tcpi_total_rto_time`. Programs built for an older kernel ask for
/// less and get the front of it.
pub const TCP_INFO_BYTES: usize = 248;

/// What sending is limited by, as Linux numbers it (`enum tcp_ca_state`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum CongestionState {
    #[default]
    Open = 0,
    /// Duplicate ACKs or SACKs came, and nothing is taken for lost yet.
    Disorder = 1,
    /// The window was reduced because of ECN.
    Reduced = 2,
    /// Fast recovery.
    Recovery = 3,
    /// After a retransmission timeout.
    Loss = 4,
}

/// Everything that TCP tells of a socket. Bytes are payload, segments are those of the wire, and what doesn't apply to
/// the state is zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpInfo {
    pub state: TcpState,
    pub local: SocketAddr,
    pub remote: SocketAddr,

    // Agreed.
    pub timestamps: bool,
    pub sack: bool,
    pub window_scaling: bool,
    pub ecn: bool,
    /// A segment with an ECN mark came since the handshake.
    pub ecn_seen: bool,
    /// Data of a SYN was taken (RFC 7413).
    pub syn_data: bool,
    pub send_scale: u8,
    pub receive_scale: u8,
    /// Payload of a full segment out, and of the largest that came.
    pub send_mss: u32,
    pub receive_mss: u32,
    /// What we announced.
    pub announced_mss: u32,
    /// Largest IP packet that the path takes.
    pub path_mtu: u32,

    // Times.
    pub srtt: Duration,
    pub rttvar: Duration,
    pub min_rtt: Duration,
    pub rto: Duration,
    /// How long an ACK is held back at most.
    pub delayed_ack: Duration,
    pub last_data_sent: Duration,
    pub last_data_received: Duration,
    pub last_ack_received: Duration,

    // Congestion control and recovery.
    pub congestion_state: CongestionState,
    /// Bytes.
    pub cwnd: u32,
    /// Bytes; `u32::MAX` before the first loss.
    pub ssthresh: u32,
    /// Bytes a second; 0: not paced, or not bounded.
    pub pacing_rate: u64,
    pub max_pacing_rate: u64,
    /// Bytes a second that arrive, by the last sample; 0 with congestion control that doesn't measure it (all but BBR).
    pub delivery_rate: u64,
    pub delivery_rate_app_limited: bool,
    /// Segments.
    pub in_flight: u32,
    pub sacked: u32,
    pub lost: u32,
    pub retransmitted: u32,
    pub reordering: u32,
    pub reordering_seen: u32,
    pub delivered: u32,
    pub delivered_ce: u32,
    pub dsack_duplicates: u32,
    /// Bytes in the network as far as we know.
    pub bytes_in_flight: u32,

    // Timers that fired.
    /// Timeouts in a row.
    pub timeouts: u8,
    /// Probes of a closed window or of a silent peer, unanswered.
    pub probes: u8,
    pub backoff: u8,
    /// In all: timeouts, recoveries from them, and the time that these took.
    pub total_timeouts: u16,
    pub total_timeout_recoveries: u16,
    pub total_timeout_time: Duration,

    // Windows and buffers, in bytes.
    pub send_window: u32,
    pub receive_window: u32,
    /// How far the announced window may grow at present.
    pub receive_threshold: u32,
    /// What the program reads in a round trip, and that round trip, as the receive buffer's size follows from it.
    pub receive_space: u32,
    pub receive_rtt: Duration,
    pub receive_buffer: u32,
    pub send_buffer: u32,
    /// Written by the program and never sent.
    pub not_sent: u64,
    /// Sent or written, and not acknowledged.
    pub send_queue: u64,

    // Sums.
    /// Segments sent more than once.
    pub retransmits: u32,
    pub bytes_acked: u64,
    pub bytes_received: u64,
    pub bytes_sent: u64,
    pub bytes_retransmitted: u64,
    pub segments_out: u32,
    pub segments_in: u32,
    pub data_segments_out: u32,
    pub data_segments_in: u32,
    pub out_of_order: u32,
    /// Time with something to send; the part of it with a closed window; the part with a full send buffer.
    pub busy: Duration,
    pub window_limited: Duration,
    pub buffer_limited: Duration,

    // Of a listener.
    /// Half-open connections, and how many there may be.
    pub half_open: u32,
    pub backlog: u32,
}

impl TcpInfo {
    /// Of a record that has no more to tell than this.
    #[must_use]
    pub const fn new(state: TcpState, local: SocketAddr, remote: SocketAddr) -> Self {
        Self {
            state,
            local,
            remote,
            timestamps: false,
            sack: false,
            window_scaling: false,
            ecn: false,
            ecn_seen: false,
            syn_data: false,
            send_scale: 0,
            receive_scale: 0,
            send_mss: 0,
            receive_mss: 0,
            announced_mss: 0,
            path_mtu: 0,
            srtt: Duration::ZERO,
            rttvar: Duration::ZERO,
            min_rtt: Duration::ZERO,
            rto: Duration::ZERO,
            delayed_ack: Duration::ZERO,
            last_data_sent: Duration::ZERO,
            last_data_received: Duration::ZERO,
            last_ack_received: Duration::ZERO,
            congestion_state: CongestionState::Open,
            cwnd: 0,
            ssthresh: 0,
            pacing_rate: 0,
            max_pacing_rate: 0,
            delivery_rate: 0,
            delivery_rate_app_limited: false,
            in_flight: 0,
            sacked: 0,
            lost: 0,
            retransmitted: 0,
            reordering: 0,
            reordering_seen: 0,
            delivered: 0,
            delivered_ce: 0,
            dsack_duplicates: 0,
            bytes_in_flight: 0,
            timeouts: 0,
            probes: 0,
            backoff: 0,
            total_timeouts: 0,
            total_timeout_recoveries: 0,
            total_timeout_time: Duration::ZERO,
            send_window: 0,
            receive_window: 0,
            receive_threshold: 0,
            receive_space: 0,
            receive_rtt: Duration::ZERO,
            receive_buffer: 0,
            send_buffer: 0,
            not_sent: 0,
            send_queue: 0,
            retransmits: 0,
            bytes_acked: 0,
            bytes_received: 0,
            bytes_sent: 0,
            bytes_retransmitted: 0,
            segments_out: 0,
            segments_in: 0,
            data_segments_out: 0,
            data_segments_in: 0,
            out_of_order: 0,
            busy: Duration::ZERO,
            window_limited: Duration::ZERO,
            buffer_limited: Duration::ZERO,
            half_open: 0,
            backlog: 0,
        }
    }

    /// As `struct tcp_info`, in the machine's byte order: times in microseconds (`last_*` in milliseconds), windows
    /// of congestion control in segments. What Linux no longer fills either (`fackets`, `last_ack_sent`) is zero.
    #[must_use]
    pub fn to_linux(&self) -> [u8; TCP_INFO_BYTES] {
        let mut out = Writer { bytes: [0; TCP_INFO_BYTES], at: 0 };
        let segments = |bytes: u32| bytes.checked_div(self.send_mss).unwrap_or(0);
        let listening = self.state == TcpState::Listen;
        let options = u8::from(self.timestamps)
            | u8::from(self.sack) << 1
            | u8::from(self.window_scaling) << 2
            | u8::from(self.ecn) << 3
            | u8::from(self.ecn_seen) << 4
            | u8::from(self.syn_data) << 5;
        out.bytes(&[
            self.state as u8,
            self.congestion_state as u8,
            self.timeouts,
            self.probes,
            self.backoff,
            options,
            self.send_scale & 15 | self.receive_scale << 4,
            u8::from(self.delivery_rate_app_limited),
        ]);
        out.word(micros(self.rto));
        out.word(micros(self.delayed_ack));
        out.word(self.send_mss);
        out.word(self.receive_mss);
        // A listener tells how long its queue is, and may be, in place of these two.
        out.word(if listening { self.half_open } else { self.in_flight });
        out.word(if listening { self.backlog } else { self.sacked });
        out.word(self.lost);
        out.word(self.retransmitted);
        out.word(0);
        out.word(millis(self.last_data_sent));
        out.word(0);
        out.word(millis(self.last_data_received));
        out.word(millis(self.last_ack_received));
        out.word(self.path_mtu);
        out.word(self.receive_threshold);
        out.word(micros(self.srtt));
        out.word(micros(self.rttvar));
        // Linux shows "no threshold yet" as TCP_INFINITE_SSTHRESH.
        out.word(if self.ssthresh >= 0x7fff_ffff { 0x7fff_ffff } else { segments(self.ssthresh) });
        out.word(segments(self.cwnd));
        out.word(self.announced_mss);
        out.word(self.reordering);
        out.word(micros(self.receive_rtt));
        out.word(self.receive_space);
        out.word(self.retransmits);
        out.long(if self.pacing_rate == 0 { u64::MAX } else { self.pacing_rate });
        out.long(if self.max_pacing_rate == 0 { u64::MAX } else { self.max_pacing_rate });
        out.long(self.bytes_acked);
        out.long(self.bytes_received);
        out.word(self.segments_out);
        out.word(self.segments_in);
        out.word(u32::try_from(self.not_sent).unwrap_or(u32::MAX));
        out.word(if self.min_rtt.is_zero() { u32::MAX } else { micros(self.min_rtt) });
        out.word(self.data_segments_in);
        out.word(self.data_segments_out);
        out.long(self.delivery_rate);
        for time in [self.busy, self.window_limited, self.buffer_limited] {
            out.long(u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
        }
        out.word(self.delivered);
        out.word(self.delivered_ce);
        out.long(self.bytes_sent);
        out.long(self.bytes_retransmitted);
        out.word(self.dsack_duplicates);
        out.word(self.reordering_seen);
        out.word(self.out_of_order);
        out.word(self.send_window);
        out.word(self.receive_window);
        // rehash: the path isn't ours to choose.
        out.word(0);
        out.bytes(&self.total_timeouts.to_ne_bytes());
        out.bytes(&self.total_timeout_recoveries.to_ne_bytes());
        out.word(millis(self.total_timeout_time));
        debug_assert!(out.at == TCP_INFO_BYTES);
        out.bytes
    }
}

impl Default for TcpInfo {
    /// Of a socket that nothing is known of: closed, without addresses.
    fn default() -> Self {
        let nowhere = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
        Self::new(TcpState::Closed, nowhere, nowhere)
    }
}

struct Writer {
    bytes: [u8; TCP_INFO_BYTES],
    at: usize,
}

impl Writer {
    fn bytes(&mut self, value: &[u8]) {
        self.bytes[self.at..self.at + value.len()].copy_from_slice(value);
        self.at += value.len();
    }
    fn word(&mut self, value: u32) {
        self.bytes(&value.to_ne_bytes());
    }
    fn long(&mut self, value: u64) {
        self.bytes(&value.to_ne_bytes());
    }
}

fn micros(time: Duration) -> u32 {
    u32::try_from(time.as_micros()).unwrap_or(u32::MAX)
}

fn millis(time: Duration) -> u32 {
    u32::try_from(time.as_millis()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(bytes: &[u8; TCP_INFO_BYTES], at: usize) -> u32 {
        u32::from_ne_bytes(*bytes[at..].first_chunk().unwrap())
    }

    #[test]
    fn fields_stand_where_linux_has_them() {
        let info = TcpInfo {
            state: TcpState::Established,
            timestamps: true,
            window_scaling: true,
            send_scale: 7,
            receive_scale: 10,
            send_mss: 1448,
            rto: Duration::from_millis(204),
            cwnd: 14_480,
            ssthresh: u32::MAX,
            srtt: Duration::from_micros(1234),
            retransmits: 3,
            bytes_acked: 1 << 40,
            total_timeout_time: Duration::from_millis(55),
            receive_window: 64_240,
            ..TcpInfo::default()
        };
        let bytes = info.to_linux();
        assert_eq!(bytes[..8], [1, 0, 0, 0, 0, 5, 0xa7, 0]);
        // offsetof() of tcpi_rto, tcpi_rtt, tcpi_snd_ssthresh, tcpi_snd_cwnd, tcpi_total_retrans.
        assert_eq!([8, 68, 76, 80, 100].map(|at| word(&bytes, at)), [204_000, 1234, 0x7fff_ffff, 10, 3]);
        // tcpi_pacing_rate (none), tcpi_bytes_acked, tcpi_rcv_wnd, tcpi_total_rto_time.
        assert_eq!(u64::from_ne_bytes(*bytes[104..].first_chunk().unwrap()), u64::MAX);
        assert_eq!(u64::from_ne_bytes(*bytes[120..].first_chunk().unwrap()), 1 << 40);
        assert_eq!((word(&bytes, 232), word(&bytes, 244)), (64_240, 55));
    }

    #[test]
    fn a_listener_tells_of_its_queue() {
        let bytes = TcpInfo { state: TcpState::Listen, half_open: 2, backlog: 128, ..TcpInfo::default() }.to_linux();
        assert_eq!((bytes[0], word(&bytes, 24), word(&bytes, 28)), (10, 2, 128));
    }
}
