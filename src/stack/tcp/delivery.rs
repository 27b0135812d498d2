//! How fast the network delivers: samples for controllers that model the path (draft-cheng-iccrg-delivery-rate-estimation).
//!
//! What a sample needs to know of a segment is what stood here when it left. Segments that leave at the same time share
//! that, so there is one note for each moment of sending and none for each segment.

use super::congestion::Rate;
use crate::Instant;
use alloc::collections::VecDeque;
use core::time::Duration;

/// Moments of sending that are remembered at most: more than any window has, so that only a peer that acknowledges
/// nothing meets it.
const MOST_NOTES: usize = 1 << 16;

/// What stood here when something left.
#[derive(Clone, Copy, Debug)]
struct Note {
    sent_at: Instant,
    delivered: u64,
    delivered_at: Instant,
    first_sent_at: Instant,
    limited: bool,
}

/// The estimator of one connection.
#[derive(Debug, Default)]
pub(super) struct Delivery {
    /// Bytes delivered so far, and when the last of them were.
    delivered: u64,
    delivered_at: Instant,
    /// When the first segment of the present flight left.
    first_sent_at: Instant,
    /// Samples of what leaves before so much is delivered measure the program; 0: they measure the path.
    limited_until: u64,
    notes: VecDeque<Note>,
    /// The last sample that says something of the path, in bytes a second, and whether the program held it down.
    shown: (u64, bool),
}

impl Delivery {
    /// Something leaves; `idle`: nothing is in flight before it.
    pub fn on_sent(&mut self, now: Instant, idle: bool) {
        if idle {
            self.first_sent_at = now;
            self.delivered_at = now;
        }
        let note = Note {
            sent_at: now,
            delivered: self.delivered,
            delivered_at: self.delivered_at,
            first_sent_at: self.first_sent_at,
            limited: self.limited_until > 0,
        };
        match self.notes.back_mut().filter(|last| last.sent_at == now) {
            // An acknowledgment came in between: the later note makes the slower sample.
            Some(last) => *last = note,
            None => {
                if self.notes.len() >= MOST_NOTES {
                    self.notes.pop_front();
                }
                self.notes.push_back(note);
            }
        }
    }

    /// For TCP_INFO, as Linux has it: the last sample, where one that the program held down counts only if it is higher.
    pub const fn shown(&self) -> (u64, bool) {
        self.shown
    }

    /// Nothing is left to send though more might be in flight, which is `in_flight` now.
    pub fn mark_limited(&mut self, in_flight: u64) {
        self.limited_until = (self.delivered + in_flight).max(1);
    }

    /// `bytes` were delivered; `latest`: when that of them left that was sent last, as far as that is certain.
    pub fn on_delivered(&mut self, now: Instant, bytes: u64, latest: Option<Instant>, least: Duration) -> Rate {
        let mut rate = Rate { delivered: self.delivered + bytes, ..Rate::default() };
        if bytes == 0 {
            return rate;
        }
        self.delivered += bytes;
        if self.limited_until > 0 && self.delivered > self.limited_until {
            self.limited_until = 0;
        }
        self.delivered_at = now;
        let Some(latest) = latest else { return rate };
        while self.notes.front().is_some_and(|note| note.sent_at < latest) {
            self.notes.pop_front();
        }
        // What left earlier than something that arrived before says nothing new.
        let Some(note) = self.notes.front().filter(|note| note.sent_at == latest) else { return rate };
        let sending = note.sent_at.since(note.first_sent_at);
        let interval = sending.max(now.since(note.delivered_at));
        self.first_sent_at = note.sent_at;
        rate.prior = Some(note.delivered);
        rate.limited = note.limited;
        // Less than the path's own round trip: acknowledgments were compressed.
        if interval >= least && !interval.is_zero() {
            let nanos = interval.as_nanos();
            let per_second = u128::from(self.delivered - note.delivered) * 1_000_000_000 / nanos;
            rate.bytes_per_second = u64::try_from(per_second).ok();
            if let Some(speed) = rate.bytes_per_second.filter(|speed| !rate.limited || *speed >= self.shown.0) {
                self.shown = (speed, rate.limited);
            }
        }
        rate
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(micros: u64) -> Instant {
        Instant::from_nanos(micros * 1000)
    }

    #[test]
    fn a_steady_flow_is_measured() {
        let mut delivery = Delivery::default();
        // A segment of 1,000 bytes each 10 us; a round trip takes 50 us.
        let mut rates = std::vec![];
        for step in 0..100u64 {
            let now = at(1000 + step * 10);
            if step >= 5 {
                rates.push(delivery.on_delivered(
                    now,
                    1000,
                    Some(at(1000 + (step - 5) * 10)),
                    Duration::from_micros(50),
                ));
            }
            delivery.on_sent(now, step == 0);
        }
        let steady = &rates[10..];
        assert!(steady.iter().all(|r| r.bytes_per_second == Some(100_000_000)), "{steady:?}");
        assert!(steady.iter().all(|r| r.prior.is_some_and(|prior| r.delivered - prior == 5000 && !r.limited)));
        assert!(delivery.notes.len() <= 6, "only what is in flight: {}", delivery.notes.len());
    }

    #[test]
    fn pauses_of_the_program_are_told() {
        let mut delivery = Delivery::default();
        delivery.on_sent(at(10), true);
        delivery.mark_limited(1000);
        let first = delivery.on_delivered(at(60), 1000, Some(at(10)), Duration::ZERO);
        assert!(!first.limited, "it left before");
        delivery.on_sent(at(500), true);
        let second = delivery.on_delivered(at(550), 1000, Some(at(500)), Duration::ZERO);
        assert!(second.limited);
        assert_eq!(second.bytes_per_second, Some(20_000_000), "the pause before doesn't count");
        assert_eq!(delivery.shown(), (20_000_000, true));
        assert_eq!(delivery.limited_until, 0);
        delivery.on_sent(at(600), true);
        assert!(!delivery.on_delivered(at(650), 1000, Some(at(600)), Duration::ZERO).limited);
    }

    #[test]
    fn what_is_older_or_unknown_gives_no_rate() {
        let mut delivery = Delivery::default();
        delivery.on_sent(at(10), true);
        delivery.on_sent(at(20), false);
        assert!(delivery.on_delivered(at(60), 1000, Some(at(20)), Duration::ZERO).bytes_per_second.is_some());
        assert_eq!(delivery.on_delivered(at(70), 1000, Some(at(10)), Duration::ZERO).prior, None);
        assert_eq!(delivery.on_delivered(at(80), 1000, None, Duration::ZERO).prior, None);
        delivery.on_sent(at(100), true);
        let compressed = delivery.on_delivered(at(110), 1000, Some(at(100)), Duration::from_micros(50));
        assert_eq!((compressed.bytes_per_second, compressed.prior), (None, Some(3000)));
    }
}
