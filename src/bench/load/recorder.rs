//! One thread's counts, cut into intervals that go to the thread that measures.

use std::io;
use std::sync::mpsc::Sender;
use std::time::Duration;

use hdrhistogram::Histogram;

use super::Progress;
use crate::bench::hist;

/// From a thread that works.
pub enum Message {
    /// Its connections stand.
    Ready,
    /// An interval is over: its index, and what happened in it.
    Cut(usize, Interval),
    Ended(io::Result<()>),
}

/// What happened in a span of time.
#[derive(Clone, Default)]
pub struct Interval {
    pub operations: u64,
    pub bytes: u64,
    pub errors: u64,
    pub lost: u64,
    /// None: nothing had a latency.
    pub latencies: Option<Histogram<u64>>,
    /// Threads whose part is in.
    pub parts: u32,
}

impl Interval {
    pub fn add(&mut self, other: &Self) {
        self.operations += other.operations;
        self.bytes += other.bytes;
        self.errors += other.errors;
        self.lost += other.lost;
        self.parts += other.parts;
        if let Some(more) = &other.latencies {
            *self.latencies.get_or_insert_with(hist::empty) += more;
        }
    }

    /// As a line of progress, `done` intervals after the start.
    pub fn progress(&self, round: u32, done: u32, each: Duration) -> Progress {
        let seconds = each.as_secs_f64();
        let at = |quantile| self.latencies.as_ref().map(|h| h.value_at_quantile(quantile) as f64 / 1e3);
        Progress {
            round,
            seconds: seconds * f64::from(done),
            rate_per_s: self.operations as f64 / seconds,
            gbit_per_s: self.bytes as f64 * 8e-9 / seconds,
            p50_us: at(0.5),
            p99_us: at(0.99),
        }
    }
}

/// Counts of one thread. Before the first interval (warm-up) they are thrown away.
pub struct Recorder {
    sender: Sender<Message>,
    each: u64,
    count: usize,
    /// When the first interval begins, and when the current one ends.
    begin: u64,
    cut_at: u64,
    /// Intervals that were sent.
    sent: usize,
    now: Interval,
}

impl Recorder {
    /// For `count` intervals of `each` nanoseconds.
    pub fn new(sender: Sender<Message>, each: u64, count: usize) -> Self {
        Self { sender, each, count, begin: u64::MAX, cut_at: u64::MAX, sent: 0, now: Interval::default() }
    }

    pub fn ready(&mut self) {
        let _ = self.sender.send(Message::Ready);
    }

    /// The first interval begins at `begin` nanoseconds.
    pub fn start_at(&mut self, begin: u64) {
        (self.begin, self.cut_at) = (begin, begin + self.each);
        self.now = Interval { latencies: self.now.latencies.take(), ..Interval::default() };
    }

    /// When all intervals are over.
    pub fn end(&self) -> u64 {
        self.begin.saturating_add(self.each * self.count as u64)
    }

    pub fn is_over(&self, now: u64) -> bool {
        now >= self.end()
    }

    /// To be called with every look at the clock: closes intervals that have passed.
    pub fn tick(&mut self, now: u64) {
        while now >= self.cut_at && self.sent < self.count {
            let cut = std::mem::take(&mut self.now);
            self.send(cut);
        }
    }

    fn send(&mut self, mut cut: Interval) {
        cut.parts = 1;
        let _ = self.sender.send(Message::Cut(self.sent, cut));
        self.sent += 1;
        self.cut_at += self.each;
    }

    /// An operation ended at `now`, after `ns`, with so many payload bytes.
    pub fn operation(&mut self, now: u64, ns: u64, bytes: u64) {
        self.tick(now);
        if now < self.begin {
            return;
        }
        self.now.operations += 1;
        self.now.bytes += bytes;
        hist::record(self.now.latencies.get_or_insert_with(hist::empty), ns);
    }

    /// A latency alone: of something that has not ended yet.
    pub fn unfinished(&mut self, ns: u64) {
        hist::record(self.now.latencies.get_or_insert_with(hist::empty), ns);
    }

    /// Writes or reads of `operations` pieces, `bytes` in all, with no latency.
    pub fn moved(&mut self, now: u64, operations: u64, bytes: u64) {
        self.tick(now);
        if now >= self.begin {
            self.now.operations += operations;
            self.now.bytes += bytes;
        }
    }

    pub fn error(&mut self, now: u64) {
        self.tick(now);
        self.now.errors += u64::from(now >= self.begin);
    }

    pub fn lost(&mut self, now: u64) {
        self.tick(now);
        self.now.lost += u64::from(now >= self.begin);
    }

    /// Closes the last interval, however late this is called.
    pub fn finish(&mut self) {
        while self.sent < self.count {
            let cut = std::mem::take(&mut self.now);
            self.send(cut);
        }
    }
}
