//! How large the receive buffer is, and how much of it the peer may fill: the window.
//!
//! The buffer begins small and grows to what a round trip brings (dynamic right-sizing, as Linux does it in
//! tcp_rcv_space_adjust): when the program has read more in one round trip than in the one before, twice that must fit
//! in, so that the sender can double too. The memory is the host's; it may give less than is wanted.
//!
//! ```text
//!   rx_head           rx_nxt              edge (announced)      head + limit       head + capacity
//!     │  not read yet   │   window            │   not announced     │  not wanted      │
//! ```

use crate::{Host, Instant, TcpConfig, TcpOptions, Token};
use core::time::Duration;

/// Least buffer, whatever options say (SOCK_MIN_RCVBUF of Linux, less its overhead).
const LEAST: u32 = 1152;
/// A segment must be this long to open the window further (tcp_event_data_recv of Linux).
const GROWING_PAYLOAD: usize = 128;
/// RFC 6928: what a sender may begin with.
const INITIAL_SEGMENTS: u32 = 10;
/// The first window never says more than this, because that of a SYN isn't scaled.
const UNSCALED: u32 = 0xffff;

#[derive(Debug)]
pub(super) struct ReceiveBuffer {
    /// What the host holds.
    capacity: u32,
    /// What we want to be held.
    limit: u32,
    /// Most that `limit` may become by itself; 0: it is fixed.
    most: u32,
    /// TCP_WINDOW_CLAMP.
    clamp: u32,
    /// The window opens up to here, and this grows with what arrives (rcv_ssthresh of Linux): a peer whose segments
    /// never come costs no memory.
    threshold: u32,
    /// Where the stream must be before the host is asked again.
    ask_at: u32,
    asked: bool,

    /// What the program read in a round trip, at most so far; where it was when the present one began, and when.
    space: u32,
    space_from: u32,
    space_at: Instant,
    /// The peer's round trip in eighths of a microsecond, 0 before the first sample.
    rtt: u32,
    /// 0: none.
    rtt_edge: u32,
    rtt_at: Instant,
    rtt_echo: u32,
}

/// What a handshake says of the receive buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Opening {
    /// Bytes; both SYN and SYN-ACK carry it unscaled.
    pub window: u32,
    pub scale: u8,
}

/// Bytes that a buffer is to hold at first.
fn first_limit(config: &TcpConfig, capacity: u32, options: &TcpOptions) -> u32 {
    let wanted = if options.receive_buffer == 0 { config.rmem[1] / 2 } else { options.receive_buffer };
    // More than the host has at first comes later.
    wanted.max(LEAST).min(capacity)
}

const fn clamp_of(options: &TcpOptions) -> u32 {
    match (options.window_clamp, options.receive_buffer) {
        (0, 0) => u32::MAX,
        // A fixed buffer never has a larger window, so the scale need not allow for one.
        (0, fixed) => fixed,
        (clamp, _) => clamp,
    }
}

/// The first window and the scale to offer: whole segments of `mss` bytes, and a scale for the largest window that there
/// may ever be, because it can't be changed later (RFC 7323 2.2).
pub(super) fn opening(config: &TcpConfig, capacity: u32, options: &TcpOptions, mss: u32) -> Opening {
    let clamp = clamp_of(options);
    let space = first_limit(config, capacity, options).min(clamp);
    let whole = if space > mss { space - space % mss.max(1) } else { space };
    let largest = capacity.max(config.rmem[2]).max(options.receive_buffer).min(clamp);
    let scale = if config.window_scaling { super::connection::scale_for(largest) } else { 0 };
    Opening { window: whole.min(UNSCALED), scale }
}

/// Whether a position comes before another that is at most 2 GiB away; only their low halves are kept.
const fn is_before(position: u32, other: u32) -> bool {
    position.wrapping_sub(other).cast_signed() < 0
}

#[allow(clippy::cast_possible_truncation, reason = "positions are kept by their low halves")]
impl ReceiveBuffer {
    pub fn new(config: &TcpConfig, capacity: u32, options: &TcpOptions, mss: u32, now: Instant) -> Self {
        let window = opening(config, capacity, options, mss).window;
        Self {
            capacity,
            limit: first_limit(config, u32::MAX, options),
            most: if options.receive_buffer == 0 { config.rmem[2] } else { 0 },
            clamp: clamp_of(options),
            threshold: window,
            ask_at: 0,
            asked: false,
            space: window.min(INITIAL_SEGMENTS * mss),
            space_from: 0,
            space_at: now,
            rtt: 0,
            rtt_edge: 0,
            rtt_at: now,
            rtt_echo: 0,
        }
    }

    /// The options of a living connection have changed.
    pub fn set_options(&mut self, config: &TcpConfig, options: &TcpOptions) {
        self.clamp = clamp_of(options);
        if options.receive_buffer == 0 {
            self.most = config.rmem[2];
        } else {
            self.most = 0;
            self.limit = options.receive_buffer.max(LEAST);
            self.asked = false;
        }
        // As tcp_set_window_clamp: the window may open to the clamp at once only if it was open that far before.
        self.threshold = self.threshold.min(self.clamp);
    }

    /// What is used of the host's memory at most.
    pub fn limit(&self) -> u32 {
        self.limit.min(self.capacity)
    }

    pub const fn capacity(&self) -> u32 {
        self.capacity
    }

    pub fn threshold(&self) -> u32 {
        self.threshold
    }

    pub const fn space(&self) -> u32 {
        self.space
    }

    /// The peer's round trip as seen from here; zero before the first sample.
    pub const fn rtt(&self) -> Duration {
        Duration::from_micros((self.rtt / 8) as u64)
    }

    /// Asks the host for what is wanted and not there. To be called now and then; `position` is that of the stream.
    /// `written`: where the last byte that was ever written ends.
    pub fn ask(&mut self, host: &mut dyn Host, stream: Token, position: u64, written: u64) {
        let position = position as u32;
        if self.limit <= self.capacity || self.asked && is_before(position, self.ask_at) {
            return;
        }
        self.capacity = self.capacity.max(host.rx_grow(stream, written, self.limit));
        // It may have more when some of the stream has gone through.
        self.ask_at = position.wrapping_add(self.capacity / 4);
        self.asked = self.limit > self.capacity;
    }

    /// Whether the host is to be asked.
    pub const fn wants_more(&self) -> bool {
        self.limit > self.capacity
    }

    /// Bytes that the window should have: __tcp_select_window of Linux, without its allowance for overhead.
    /// `queued`: not read yet. `current`: what the peer was told and has not used. `segment`: its largest segment.
    pub fn window(&self, queued: u64, current: u64, segment: u32, scale: u8) -> u64 {
        let limit = u64::from(self.limit());
        let full = limit.min(u64::from(self.clamp));
        let segment = u64::from(segment).min(full).max(1);
        let free = limit.saturating_sub(queued);
        // RFC 9293 3.8.6.2.2: not in crumbs.
        if free < full / 2 && (free < limit / 16 || free < segment) {
            return 0;
        }
        let free = free.min(u64::from(self.threshold));
        if scale > 0 {
            // Rounded up, so that scaling takes nothing away from it, if the memory has that much.
            let up = free.next_multiple_of(1 << scale);
            let room = u64::from(self.capacity).saturating_sub(queued);
            return if up <= room { up } else { free >> scale << scale };
        }
        if current + segment <= free || current > free {
            free - free % segment
        } else if segment == full && free > current + full / 2 {
            free
        } else {
            current
        }
    }

    /// Payload has arrived: the window may open further.
    pub fn on_payload(&mut self, len: usize, queued: u64, mss: u32) {
        if len < GROWING_PAYLOAD {
            return;
        }
        let room = u64::from(self.limit()).saturating_sub(queued).min(u64::from(self.clamp));
        let step = (2 * mss).max(2 * u32::try_from(len).unwrap_or(u32::MAX / 2));
        let room = u32::try_from(room.saturating_sub(u64::from(self.threshold))).unwrap_or(u32::MAX);
        self.threshold = self.threshold.saturating_add(step.min(room));
    }

    /// A round trip by the echo of our timestamp in a full segment of the peer's: `elapsed` since we wrote it.
    pub fn on_echo(&mut self, echo: u32, elapsed: Duration) {
        if echo != self.rtt_echo {
            self.rtt_echo = echo;
            self.sample(elapsed, false);
        }
    }

    /// A round trip by the time in which a whole window arrives; `window`: what the peer may send now.
    pub fn on_progress(&mut self, position: u64, window: u64, now: Instant) {
        if self.rtt_edge != 0 {
            if is_before(position as u32, self.rtt_edge) {
                return;
            }
            self.sample(now.since(self.rtt_at), true);
        }
        self.rtt_edge = ((position + window) as u32).max(1);
        self.rtt_at = now;
    }

    fn sample(&mut self, rtt: Duration, whole_window: bool) {
        let micros = u32::try_from(rtt.as_micros()).unwrap_or(u32::MAX / 8).clamp(1, u32::MAX / 8);
        self.rtt = match (self.rtt, whole_window) {
            (0, _) => micros * 8,
            // The time for a window is a round trip at best.
            (old, true) => old.min(micros * 8),
            (old, false) => old - old / 8 + micros,
        };
    }

    /// The program has read up to `head`: tcp_rcv_space_adjust of Linux.
    pub fn on_read(&mut self, head: u64, mss: u32, now: Instant) {
        if self.rtt == 0 || now.since(self.space_at) < self.rtt() {
            return;
        }
        let copied = u64::from((head as u32).wrapping_sub(self.space_from));
        if copied > u64::from(self.space) {
            if self.most > 0 {
                // Twice what came, and some segments in case that growth has only begun; more if it is fast.
                let window = 2 * copied + 16 * u64::from(mss);
                let space = u64::from(self.space.max(1));
                let wanted = window + 2 * (window.saturating_mul(copied - space) / space);
                self.limit = self.limit.max(u32::try_from(wanted).unwrap_or(u32::MAX).min(self.most));
            }
            self.space = u32::try_from(copied).unwrap_or(u32::MAX);
        }
        self.space_from = head as u32;
        self.space_at = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives what it is asked for up to a bound.
    struct Pool(u32);

    impl Host for Pool {
        fn accept(&mut self, _: Token, _: core::net::SocketAddr, _: core::net::SocketAddr) -> Option<crate::Stream> {
            None
        }
        fn rx_write(&mut self, _: Token, _: u64, _: &[u8]) {}
        fn tx_read(&mut self, _: Token, _: u64, _: &mut [u8]) {}
        fn rx_grow(&mut self, _: Token, _: u64, bytes: u32) -> u32 {
            bytes.min(self.0)
        }
        fn datagram_in(&mut self, _: Token, _: &crate::DatagramMeta, _: &[u8]) -> bool {
            false
        }
        fn datagram_out(&mut self, _: Token, _: &mut [u8]) -> Option<crate::DatagramMeta> {
            None
        }
    }

    fn config(rmem: [u32; 3]) -> TcpConfig {
        TcpConfig { rmem, ..TcpConfig::default() }
    }

    #[test]
    fn first_windows_and_scales_are_linuxs() {
        let open = |rmem, options: TcpOptions, mss| {
            let opening = opening(&config(rmem), 1 << 17, &options, mss);
            (opening.window, opening.scale)
        };
        let none = TcpOptions::default();
        // A SYN (MSS 1460), and a SYN-ACK with timestamps, with the tcp_rmem of several releases of Linux.
        assert_eq!(open([4096, 131_072, 6_291_456], none, 1460), (64_240, 7));
        assert_eq!(open([4096, 131_072, 6_291_456], none, 1448), (65_160, 7));
        assert_eq!(open([4096, 131_072, 15_728_640], none, 1460), (64_240, 8));
        assert_eq!(open([4096, 131_072, 32 << 20], none, 1460), (64_240, 10));
        let fixed = TcpOptions { receive_buffer: 10_000, ..none };
        assert_eq!(open([4096, 131_072, 6_291_456], fixed, 1000), (10_000, 0), "no scale beyond what was asked for");
        let clamped = TcpOptions { window_clamp: 5000, ..none };
        assert_eq!(open([4096, 131_072, 6_291_456], clamped, 1460), (4380, 0));
    }

    #[test]
    fn it_grows_with_the_path_and_no_further() {
        let config = config([4096, 131_072, 1 << 20]);
        let mut buffer = ReceiveBuffer::new(&config, 1 << 17, &TcpOptions::default(), 1448, Instant::ZERO);
        let mut host = Pool(1 << 30);
        let (mut now, mut head) = (Instant::ZERO, 0);
        let rtt = Duration::from_millis(10);
        // Each round trip brings the whole window, and the program reads it.
        let mut windows = std::vec![];
        for echo in 1..12 {
            now = now + rtt;
            buffer.on_echo(echo, rtt);
            let window = buffer.window(0, 0, 1448, 7);
            windows.push(window);
            for _ in 0..window / 1448 {
                buffer.on_payload(1448, 0, 1448);
            }
            head += window;
            buffer.on_read(head, 1448, now);
            buffer.ask(&mut host, Token(1), head, head);
        }
        assert!(windows.windows(2).all(|w| w[0] <= w[1]), "{windows:?}");
        assert_eq!(*windows.last().unwrap(), 1 << 20, "the most that is allowed: {windows:?}");
        assert!(windows[6] > 600_000, "it doubles: {windows:?}");
        // A slow reader keeps what it has.
        let mut slow = ReceiveBuffer::new(&config, 1 << 17, &TcpOptions::default(), 1448, Instant::ZERO);
        for echo in 1..12 {
            slow.on_echo(echo, rtt);
            slow.on_read(u64::from(echo) * 5000, 1448, Instant::ZERO + rtt * echo);
        }
        assert_eq!(slow.limit(), 65_536);
    }

    #[test]
    fn a_host_without_memory_is_asked_seldom_and_never_exceeded() {
        let config = config([4096, 131_072, 1 << 20]);
        let mut buffer = ReceiveBuffer::new(&config, 65_536, &TcpOptions::default(), 1448, Instant::ZERO);
        buffer.limit = 1 << 20;
        buffer.threshold = 1 << 20;
        let mut host = Pool(100_000);
        buffer.ask(&mut host, Token(1), 0, 0);
        assert_eq!((buffer.limit(), buffer.window(0, 0, 1448, 7)), (100_000, 99_968));
        let asked = u64::from(buffer.ask_at);
        buffer.ask(&mut Pool(1 << 30), Token(1), asked - 1, 0);
        assert_eq!(buffer.limit(), 100_000);
        buffer.ask(&mut Pool(1 << 30), Token(1), asked, 0);
        assert_eq!(buffer.limit(), 1 << 20);
    }

    #[test]
    fn no_crumbs() {
        let config = config([4096, 20_000, 20_000]);
        let buffer = ReceiveBuffer::new(&config, 10_000, &TcpOptions::default(), 1000, Instant::ZERO);
        assert_eq!(buffer.window(0, 0, 1000, 0), 10_000);
        assert_eq!(buffer.window(9500, 0, 1000, 0), 0, "less than a segment");
        assert_eq!(buffer.window(8700, 300, 1000, 0), 1000, "whole segments");
        assert_eq!(buffer.window(4000, 5500, 1000, 0), 5500, "less than a segment more is no reason to move");
    }
}
