//! Congestion control: how much may be in flight. One small trait; a controller sees what arrived and what went wrong,
//! and answers with a window in bytes. Finding losses, and sending during their repair (RFC 6937), is not its business.
//!
//! A controller of one's own is a type with this trait and a `static` [`Algorithm`](crate::Algorithm) that makes it;
//! `examples/congestion.rs` has a whole one.
//!
//! ```text
//!   ACK ─▶ on_delivery    every ACK, if the algorithm wants marks
//!      ├─▶ on_ack         something new arrived, and no loss is being repaired
//!      └─▶ on_congestion  once for each window of data; `undo` if it turns out to have been a mistake
//!      ├─▶ on_path        every ACK that says something, if the controller models the path
//!   on_restart            something is sent after nothing was in flight
//!   set                   the window becomes this for another reason: a pause, a window that wasn't used
//! ```

mod bbr;
mod cubic;
mod dctcp;
mod hystart;
mod reno;

pub use bbr::Bbr;
pub use cubic::Cubic;
pub use dctcp::Dctcp;
pub use reno::Reno;

use crate::{Congestion, Instant};
use alloc::boxed::Box;
use core::fmt::Debug;
use core::time::Duration;

/// What an acknowledgment tells a controller. Sizes are bytes, positions are of the stream.
#[derive(Clone, Copy, Debug)]
pub struct Acked {
    pub now: Instant,
    /// Newly known to have arrived.
    pub bytes: u64,
    /// Smoothed round-trip time; zero before the first sample.
    pub rtt: Duration,
    /// What this acknowledgment measured, if it could.
    pub sample: Option<Duration>,
    /// Acknowledged, and sent, so far: what is sent now ends a round trip when `una` passes it.
    pub una: u64,
    pub nxt: u64,
    /// Whether the window was the limit. One that isn't in use must not grow (RFC 9438 5.8, RFC 7661).
    pub limited: bool,
    /// Bytes of a full segment.
    pub mss: u32,
}

/// Why a window has to shrink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Acknowledgments show that segments were lost.
    Loss,
    /// The network marked segments (RFC 3168).
    Marks,
    /// The retransmission timer fired. The window is then what is in flight and one segment (RFC 5681 3.1, equation
    /// 4, where nothing is); the threshold falls only if `reduce`.
    Timeout { reduce: bool },
}

/// What goes with a [`Cause`].
#[derive(Clone, Copy, Debug)]
pub struct Congested {
    pub now: Instant,
    pub cause: Cause,
    /// Bytes sent and not cumulatively acknowledged: FlightSize of RFC 5681.
    pub outstanding: u64,
    /// Bytes that are still in the network as far as we know.
    pub in_flight: u64,
    /// Bytes of a full segment.
    pub mss: u32,
}

/// What an acknowledgment says of the path's speed (draft-cheng-iccrg-delivery-rate-estimation).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rate {
    /// Bytes delivered since the connection began.
    pub delivered: u64,
    /// The same when that left which arrived now; a round trip ends when this passes where `delivered` was at its
    /// start. None: it isn't certain.
    pub prior: Option<u64>,
    /// Delivered in a second. None: the time was too short to say.
    pub bytes_per_second: Option<u64>,
    /// The program had no more to send: the path may be faster.
    pub limited: bool,
}

/// Whether losses are being repaired.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Repair {
    #[default]
    None,
    /// Found by acknowledgments.
    Recovery,
    /// Found by the retransmission timer.
    Timeout,
}

/// What an acknowledgment tells a controller that models the path. Sizes are bytes.
#[derive(Clone, Copy, Debug)]
pub struct PathSample {
    pub now: Instant,
    pub rate: Rate,
    /// Newly known to have arrived, and to be lost.
    pub bytes: u64,
    pub lost: u64,
    /// What this acknowledgment measured, if it could.
    pub rtt: Option<Duration>,
    /// Smoothed; zero before the first sample.
    pub smoothed: Duration,
    /// In the network before this acknowledgment, and now.
    pub in_flight_before: u64,
    pub in_flight: u64,
    pub repair: Repair,
    /// Bytes of a full segment.
    pub mss: u32,
}

/// A congestion controller of one connection. All sizes are bytes.
pub trait CongestionControl: Debug + Send {
    /// How much may be in flight.
    fn window(&self) -> u64;
    /// Slow-start threshold; `u64::MAX` before the first loss.
    fn threshold(&self) -> u64;
    /// The window becomes this, but not because of congestion: the program paused or didn't use it (RFC 5681 4.1, RFC
    /// 2861), or another controller had the connection before.
    fn set(&mut self, window: u64, threshold: u64);
    /// New data arrived while no loss was being repaired.
    fn on_ack(&mut self, acked: &Acked);
    /// The network is congested: once for each window of data. Afterwards the window is the threshold, but for
    /// [`Cause::Timeout`].
    fn on_congestion(&mut self, congested: &Congested);
    /// The last [`Self::on_congestion`] was a mistake (RFC 4015, RFC 5682): nothing was lost. A controller that doesn't
    /// remember what it was goes on with what it has.
    fn undo(&mut self) {}
    /// Bytes arrived, and the network had marked them or not. For every acknowledgment, if the connection has ECN and
    /// [`Algorithm::wants_marks`](crate::Algorithm::wants_marks) says so.
    fn on_delivery(&mut self, bytes: u64, marked: bool, una: u64, nxt: u64) {
        let _ = (bytes, marked, una, nxt);
    }
    /// Whether it decides on every acknowledgment by a model of the path, how much is in flight while losses are repaired
    /// included. Then [`Self::on_path`] is called in place of [`Self::on_ack`], nothing is reduced proportionally (RFC
    /// 6937), and pauses don't shrink the window.
    fn models_path(&self) -> bool {
        false
    }
    /// What an acknowledgment says of the path. True: the controller itself holds back now, so that what leaves from here
    /// on doesn't measure the path's speed.
    fn on_path(&mut self, seen: &PathSample) -> bool {
        let _ = seen;
        false
    }
    /// Something is about to be sent, and nothing was in flight. Only where [`Self::models_path`].
    fn on_restart(&mut self, now: Instant) {
        let _ = now;
    }
    /// Bytes per second to pace with; None: by window and round-trip time.
    fn pacing_rate(&self) -> Option<u64> {
        None
    }
}

/// RFC 6928: ten segments, but no more than 14,600 bytes unless two segments are more.
#[must_use]
pub fn initial_window(mss: u32) -> u64 {
    u64::from((10 * mss).min((2 * mss).max(14_600)))
}

/// The controller of a connection whose full segments have `mss` bytes.
#[must_use]
pub fn controller(congestion: Congestion, mss: u32) -> Box<dyn CongestionControl> {
    match congestion {
        Congestion::Cubic => Box::new(Cubic::new(mss)),
        Congestion::Reno => Box::new(Reno::new(mss)),
        Congestion::Dctcp => Box::new(Dctcp::new(mss)),
        Congestion::Bbr => Box::new(Bbr::new(mss)),
        Congestion::Custom(algorithm) => (algorithm.new)(mss),
    }
}

/// RFC 5681 3.1 by bytes: slow start adds what arrived, up to the threshold. Returns the window and what of `bytes` was
/// left when it came there. Without the limit of RFC 3465, as Linux: a receiver that takes frames in batches
/// acknowledges a whole batch at once.
#[must_use]
pub fn slow_start(window: u64, threshold: u64, bytes: u64) -> (u64, u64) {
    let grown = (window + bytes).min(threshold.max(window));
    (grown, bytes - (grown - window))
}
