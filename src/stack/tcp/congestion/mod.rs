//! Congestion control: how much may be in flight. One small trait; a controller sees what was acknowledged and what
//! was lost, and answers with a window in bytes. Loss detection is not its business.

mod cubic;
mod reno;

pub use cubic::Cubic;
pub use reno::Reno;

use crate::{Congestion, Instant};
use alloc::boxed::Box;
use core::fmt::Debug;
use core::time::Duration;

/// What an acknowledgment tells a controller.
#[derive(Clone, Copy, Debug)]
pub struct Acked {
    pub now: Instant,
    /// Bytes newly acknowledged.
    pub bytes: u64,
    /// Smoothed round-trip time; zero before the first sample.
    pub rtt: Duration,
    /// Bytes in flight before this acknowledgment.
    pub in_flight: u64,
    /// Bytes of a full segment.
    pub mss: u32,
}

/// A congestion controller of one connection. All sizes are bytes.
pub trait CongestionControl: Debug + Send {
    /// How much may be in flight.
    fn window(&self) -> u64;
    /// Slow-start threshold; `u64::MAX` before the first loss.
    fn threshold(&self) -> u64;
    /// New data was acknowledged outside of recovery and the window was in use.
    fn on_ack(&mut self, acked: &Acked);
    /// Loss was found by acknowledgments: once for each window of data.
    fn on_loss(&mut self, now: Instant, in_flight: u64, mss: u32);
    /// The retransmission timer fired; `first` unless it is a repetition for the same data.
    fn on_timeout(&mut self, now: Instant, in_flight: u64, mss: u32, first: bool);
    /// Nothing was sent for longer than the retransmission timeout (RFC 5681 4.1).
    fn on_idle(&mut self, mss: u32);
}

/// RFC 6928: ten segments, but no more than 14,600 bytes unless two segments are more.
#[must_use]
pub fn initial_window(mss: u32) -> u64 {
    u64::from((10 * mss).min((2 * mss).max(14_600)))
}

/// A controller by name.
#[must_use]
pub fn controller(name: Congestion, mss: u32) -> Box<dyn CongestionControl> {
    match name {
        Congestion::Cubic => Box::new(Cubic::new(mss)),
        Congestion::Reno => Box::new(Reno::new(mss)),
    }
}

/// RFC 5681 3.1 by bytes: what slow start adds for an acknowledgment. Without the limit of RFC 3465, as Linux: a
/// receiver that takes frames in batches acknowledges a whole batch at once.
fn slow_start(window: u64, threshold: u64, acked: &Acked) -> u64 {
    (window + acked.bytes).min(threshold.max(window))
}

/// Whether the window was the limit: one that wasn't in use must not grow (RFC 9293 says nothing, RFC 7661 does).
fn is_window_limited(window: u64, threshold: u64, acked: &Acked) -> bool {
    if window < threshold {
        // As Linux: slow start may double what was really used.
        window < 2 * acked.in_flight
    } else {
        window <= acked.in_flight + 3 * u64::from(acked.mss)
    }
}
