//! One direction of a link: a queue, a transmitter of some rate, and a wire that delays, loses, reorders, duplicates and
//! damages.
//!
//! ```text
//!   frame ─▶ queue ─▶ transmitter (rate) ─▶ wire: loss, corruption, delay + jitter, reordering, duplication ─▶ node
//! ```

use std::collections::VecDeque;
use std::time::Duration;

use sidestep_stack::Instant;

use super::loss::Loss;
use super::queue::{Queue, QueueConfig};
use super::rng::Rng;
use super::trace::{Observers, Seen};

/// What a direction of a link is like.
#[derive(Clone, Debug, PartialEq)]
pub struct LinkConfig {
    /// Bits a second; None: as fast as one likes.
    pub rate: Option<u64>,
    /// Bytes that each frame costs beside its own: 24 on real Ethernet (preamble, FCS, gap), 0 by default.
    pub overhead: u32,
    pub delay: Duration,
    /// Up to this much more, evenly distributed. Order is kept: what overtakes is the business of `reorder`.
    pub jitter: Duration,
    pub queue: QueueConfig,
    pub loss: Loss,
    /// Probability with which a frame is held back for `reorder_by`, so that those behind overtake it.
    pub reorder: f64,
    pub reorder_by: Duration,
    /// Probability with which a frame arrives twice.
    pub duplicate: f64,
    /// Probability with which one bit of a frame arrives wrong.
    pub corrupt: f64,
    /// Larger IP packets vanish, as in a tunnel that tells nobody.
    pub mtu: Option<usize>,
    /// Everything that is sent is lost.
    pub down: bool,
}

impl Default for LinkConfig {
    fn default() -> Self {
        Self {
            rate: None,
            overhead: 0,
            delay: Duration::ZERO,
            jitter: Duration::ZERO,
            queue: QueueConfig::default(),
            loss: Loss::NONE,
            reorder: 0.0,
            reorder_by: Duration::from_millis(1),
            duplicate: 0.0,
            corrupt: 0.0,
            mtu: None,
            down: false,
        }
    }
}

/// What happened in one direction. All only grow.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub struct LinkCounters {
    /// Frames and bytes that the transmitter sent.
    pub frames: u64,
    pub bytes: u64,
    pub lost: u64,
    pub reordered: u64,
    pub duplicated: u64,
    pub corrupted: u64,
    /// Lost because the link was down, or too large for it.
    pub refused: u64,
}

/// See the module.
pub(super) struct Direction {
    pub config: LinkConfig,
    pub from: usize,
    /// Node and its port.
    pub to: (usize, usize),
    queue: Queue,
    /// A frame that is being sent.
    sending: Option<Vec<u8>>,
    /// By time of arrival.
    flying: VecDeque<(Instant, Vec<u8>)>,
    in_bad: bool,
    rng: Rng,
    pub counters: LinkCounters,
}

/// When a direction wants to be looked at again.
#[derive(Clone, Copy, Default)]
pub(super) struct Wants {
    /// The transmitter will be done.
    pub sent: Option<Instant>,
    /// A frame arrives that nobody waits for yet.
    pub arrives: Option<Instant>,
}

impl Direction {
    pub fn new(config: LinkConfig, from: usize, to: (usize, usize), rng: Rng) -> Self {
        Self {
            queue: Queue::new(config.queue),
            config,
            from,
            to,
            sending: None,
            flying: VecDeque::new(),
            in_bad: false,
            rng,
            counters: LinkCounters::default(),
        }
    }

    pub fn set_config(&mut self, config: LinkConfig) {
        self.queue.set_config(config.queue);
        self.config = config;
    }

    pub fn queue(&self) -> &Queue {
        &self.queue
    }

    /// A node sends a frame.
    pub fn offer(&mut self, now: Instant, frame: Vec<u8>, seen: &mut Observers) -> Wants {
        seen.note(now, Seen::Sent, self.from, &frame);
        if self.config.down || self.config.mtu.is_some_and(|mtu| frame.len() > mtu + 14) {
            self.counters.refused += 1;
            seen.note(now, Seen::Refused, self.from, &frame);
            return Wants::default();
        }
        let Some(rate) = self.config.rate else {
            return Wants { sent: None, arrives: self.fly(now, frame, seen) };
        };
        if self.sending.is_none() {
            return Wants { sent: Some(self.start(now, rate, frame)), arrives: None };
        }
        if let Err(frame) = self.queue.push(now, frame) {
            seen.note(now, Seen::QueueFull, self.from, &frame);
        }
        Wants::default()
    }

    /// The transmitter is done with a frame; the next one starts.
    pub fn sent(&mut self, now: Instant, seen: &mut Observers) -> Wants {
        let arrives = self.sending.take().and_then(|frame| self.fly(now, frame, seen));
        let from = self.from;
        let next = self.queue.pop(now, &mut |frame| seen.note(now, Seen::CodelDrop, from, &frame));
        // A rate that was taken away meanwhile: the rest leaves at the old pace of one frame a microsecond at most.
        let rate = self.config.rate.unwrap_or(u64::MAX);
        Wants { sent: next.map(|frame| self.start(now, rate, frame)), arrives }
    }

    /// The next frame that has arrived by now, and when the one after it will.
    pub fn arrival(&mut self, now: Instant) -> Option<Vec<u8>> {
        let due = self.flying.front().is_some_and(|(at, _)| *at <= now);
        if due { self.flying.pop_front().map(|(_, frame)| frame) } else { None }
    }

    pub fn next_arrival(&self) -> Option<Instant> {
        self.flying.front().map(|(at, _)| *at)
    }

    fn start(&mut self, now: Instant, rate: u64, frame: Vec<u8>) -> Instant {
        let bits = (frame.len() as u64 + u64::from(self.config.overhead)) * 8;
        self.counters.frames += 1;
        self.counters.bytes += frame.len() as u64;
        self.sending = Some(frame);
        now + Duration::from_nanos((u128::from(bits) * 1_000_000_000 / u128::from(rate.max(1))) as u64)
    }

    /// Onto the wire. Returns the time of arrival when it is earlier than that of everything that flies.
    fn fly(&mut self, now: Instant, mut frame: Vec<u8>, seen: &mut Observers) -> Option<Instant> {
        if self.config.down || self.config.loss.loses(&mut self.in_bad, &mut self.rng) {
            self.counters.lost += 1;
            seen.note(now, Seen::Lost, self.from, &frame);
            return None;
        }
        if self.rng.chance(self.config.corrupt) {
            let bit = self.rng.below(frame.len() as u64 * 8) as usize;
            frame[bit / 8] ^= 1 << (bit % 8);
            self.counters.corrupted += 1;
            seen.note(now, Seen::Corrupted, self.from, &frame);
        }
        let copy = self.rng.chance(self.config.duplicate).then(|| frame.clone());
        let first = self.put(now, frame);
        let Some(copy) = copy else { return first };
        self.counters.duplicated += 1;
        let second = self.put(now, copy);
        first.or(second)
    }

    fn put(&mut self, now: Instant, frame: Vec<u8>) -> Option<Instant> {
        let mut at = now + self.config.delay + self.rng.duration(self.config.jitter);
        let held = self.rng.chance(self.config.reorder);
        if held {
            self.counters.reordered += 1;
            at = at + self.config.reorder_by;
        } else if !self.config.jitter.is_zero() && self.config.reorder == 0.0 {
            at = at.max(self.flying.back().map_or(at, |(last, _)| *last));
        }
        // Nearly always the end.
        let place = self.flying.iter().rposition(|(other, _)| *other <= at).map_or(0, |i| i + 1);
        self.flying.insert(place, (at, frame));
        (place == 0).then_some(at)
    }
}
