//! The queue before a link: drop-tail, or CoDel (RFC 8289); both mark instead of dropping where they may (RFC 3168).

use std::collections::VecDeque;
use std::time::Duration;

use sidestep_stack::Instant;

use super::ecn;

/// How a queue is managed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct QueueConfig {
    /// Frames that may wait; one more is dropped.
    pub frames: usize,
    /// Bytes that may wait.
    pub bytes: u64,
    /// ECN-capable packets are marked when this many frames or more wait at their arrival (DCTCP's K, RFC 8257 3.1).
    pub mark_from: Option<usize>,
    pub codel: Option<CodelConfig>,
}

impl Default for QueueConfig {
    fn default() -> Self {
        Self { frames: 1000, bytes: u64::MAX, mark_from: None, codel: None }
    }
}

/// RFC 8289 4.2, 4.3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CodelConfig {
    /// A standing queue that takes longer than this is too long.
    pub target: Duration,
    /// And is one when it did for this long: about the longest round trip.
    pub interval: Duration,
    /// Mark ECN-capable packets instead of dropping them.
    pub ecn: bool,
}

impl Default for CodelConfig {
    fn default() -> Self {
        Self { target: Duration::from_millis(5), interval: Duration::from_millis(100), ecn: true }
    }
}

struct Waiting {
    since: Instant,
    frame: Vec<u8>,
}

/// What a queue did so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct QueueCounters {
    /// Dropped because the queue was full.
    pub full: u64,
    /// Dropped by CoDel.
    pub codel: u64,
    /// Marked: Congestion Experienced.
    pub marked: u64,
    /// Frames that waited at most at one time.
    pub longest: u64,
}

/// Frames that wait for a link.
pub struct Queue {
    config: QueueConfig,
    frames: VecDeque<Waiting>,
    bytes: u64,
    codel: Codel,
    pub counters: QueueCounters,
}

/// State of RFC 8289 5.
#[derive(Default)]
struct Codel {
    /// When the sojourn time will have been above target for an interval; None: it is below.
    first_above: Option<Instant>,
    dropping: bool,
    drop_next: Instant,
    count: u32,
    last_count: u32,
}

impl Queue {
    #[must_use]
    pub fn new(config: QueueConfig) -> Self {
        Self { config, frames: VecDeque::new(), bytes: 0, codel: Codel::default(), counters: QueueCounters::default() }
    }

    /// Changes limits; what waits already stays.
    pub fn set_config(&mut self, config: QueueConfig) {
        self.config = config;
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.frames.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Takes a frame, or gives it back when there is no room.
    pub fn push(&mut self, now: Instant, mut frame: Vec<u8>) -> Result<(), Vec<u8>> {
        if self.frames.len() >= self.config.frames || self.bytes + frame.len() as u64 > self.config.bytes {
            self.counters.full += 1;
            return Err(frame);
        }
        if self.config.mark_from.is_some_and(|k| self.frames.len() >= k) && ecn::mark(&mut frame) {
            self.counters.marked += 1;
        }
        self.bytes += frame.len() as u64;
        self.frames.push_back(Waiting { since: now, frame });
        self.counters.longest = self.counters.longest.max(self.frames.len() as u64);
        Ok(())
    }

    /// The next frame to send. Those that CoDel drops on the way are handed to `dropped`.
    pub fn pop(&mut self, now: Instant, dropped: &mut dyn FnMut(Vec<u8>)) -> Option<Vec<u8>> {
        match self.config.codel {
            None => self.take().map(|w| w.frame),
            Some(config) => self.pop_codel(now, config, dropped),
        }
    }

    fn take(&mut self) -> Option<Waiting> {
        let waiting = self.frames.pop_front()?;
        self.bytes -= waiting.frame.len() as u64;
        Some(waiting)
    }

    /// RFC 8289 5.5, dequeue().
    fn pop_codel(&mut self, now: Instant, c: CodelConfig, dropped: &mut dyn FnMut(Vec<u8>)) -> Option<Vec<u8>> {
        let (mut head, mut ok_to_drop) = self.look(now, c);
        if self.codel.dropping {
            if !ok_to_drop {
                self.codel.dropping = false;
            }
            while self.codel.dropping && now >= self.codel.drop_next {
                self.codel.count += 1;
                if let Some(frame) = self.mark_or_drop(head.take()?, c, dropped) {
                    self.codel.drop_next = control_law(self.codel.drop_next, c.interval, self.codel.count);
                    return Some(frame);
                }
                (head, ok_to_drop) = self.look(now, c);
                if ok_to_drop {
                    self.codel.drop_next = control_law(self.codel.drop_next, c.interval, self.codel.count);
                } else {
                    self.codel.dropping = false;
                }
            }
        } else if ok_to_drop {
            let marked = self.mark_or_drop(head.take()?, c, dropped);
            self.codel.dropping = true;
            // Where the last episode has ended recently, its rate is a good start.
            let delta = self.codel.count - self.codel.last_count;
            let recently = now.since(self.codel.drop_next) < 16 * c.interval;
            self.codel.count = if delta > 1 && recently { delta } else { 1 };
            self.codel.drop_next = control_law(now, c.interval, self.codel.count);
            self.codel.last_count = self.codel.count;
            if marked.is_some() {
                return marked;
            }
            head = self.look(now, c).0;
        }
        head.map(|w| w.frame)
    }

    /// dodequeue(): the next packet, and whether it has waited too long for too long.
    fn look(&mut self, now: Instant, c: CodelConfig) -> (Option<Waiting>, bool) {
        let Some(head) = self.take() else {
            self.codel.first_above = None;
            return (None, false);
        };
        // One packet that is being sent is no standing queue (5.4: less than an MTU's worth).
        if now.since(head.since) < c.target || self.bytes <= 1514 {
            self.codel.first_above = None;
            return (Some(head), false);
        }
        let ok = match self.codel.first_above {
            None => {
                self.codel.first_above = Some(now + c.interval);
                false
            }
            Some(at) => now >= at,
        };
        (Some(head), ok)
    }

    fn mark_or_drop(&mut self, mut w: Waiting, c: CodelConfig, dropped: &mut dyn FnMut(Vec<u8>)) -> Option<Vec<u8>> {
        if c.ecn && ecn::mark(&mut w.frame) {
            self.counters.marked += 1;
            return Some(w.frame);
        }
        self.counters.codel += 1;
        dropped(w.frame);
        None
    }
}

fn control_law(t: Instant, interval: Duration, count: u32) -> Instant {
    t + interval.div_f64(f64::from(count).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Frames arrive at 1.25 times the rate at which they leave; returns the mean wait of the last second, in ms.
    fn overload(mut queue: Queue, ecn_capable: bool) -> (f64, QueueCounters) {
        let mut frame = vec![0; 1514];
        frame[12..16].copy_from_slice(&[0x08, 0, 0x45, if ecn_capable { 2 } else { 0 }]);
        let (mut sum, mut n) = (0.0, 0);
        for ms in 0..20_000u64 {
            let now = Instant::from_millis(ms);
            frame[40..48].copy_from_slice(&ms.to_le_bytes());
            let _ = queue.push(now, frame.clone());
            // Four in five milliseconds.
            if ms % 5 != 0
                && let Some(f) = queue.pop(now, &mut |_| ())
                && ms > 19_000
            {
                sum += (ms - u64::from_le_bytes(f[40..48].try_into().unwrap())) as f64;
                n += 1;
            }
        }
        (sum / f64::from(n), queue.counters)
    }

    #[test]
    fn drop_tail_fills_up() {
        let (wait, counters) = overload(Queue::new(QueueConfig { frames: 200, ..Default::default() }), false);
        assert!(wait > 200.0, "{wait}");
        assert_eq!(counters.longest, 200);
        assert!(counters.full > 3000 && counters.codel == 0);
    }

    #[test]
    fn codel_drops_more_and_more_until_the_queue_is_short() {
        let config = QueueConfig { codel: Some(CodelConfig::default()), ..Default::default() };
        let (wait, counters) = overload(Queue::new(config), false);
        assert!(wait < 60.0, "{wait} ms; a source that doesn't slow down is held near the target");
        assert!(counters.codel > 2000 && counters.full == 0, "{counters:?}");
    }

    #[test]
    fn codel_marks_what_is_ecn_capable() {
        let config = QueueConfig { codel: Some(CodelConfig::default()), ..Default::default() };
        let (_, counters) = overload(Queue::new(config), true);
        assert!(counters.marked > 100 && counters.codel == 0, "{counters:?}");
    }

    #[test]
    fn marking_starts_at_the_threshold() {
        let mut q = Queue::new(QueueConfig { mark_from: Some(2), ..Default::default() });
        let mut frame = vec![0; 60];
        frame[12..16].copy_from_slice(&[0x08, 0, 0x45, 1]);
        (0..5).for_each(|_| q.push(Instant::ZERO, frame.clone()).unwrap());
        assert_eq!(q.counters.marked, 3);
        let marked: Vec<u8> = std::iter::from_fn(|| q.pop(Instant::ZERO, &mut |_| ())).map(|f| f[15] & 3).collect();
        assert_eq!(marked, [1, 1, 3, 3, 3]);
    }

    #[test]
    fn bytes_are_a_limit_too() {
        let mut q = Queue::new(QueueConfig { bytes: 100, ..Default::default() });
        assert!(q.push(Instant::ZERO, vec![0; 60]).is_ok());
        assert!(q.push(Instant::ZERO, vec![0; 60]).is_err());
        assert!(q.push(Instant::ZERO, vec![0; 40]).is_ok());
    }
}
