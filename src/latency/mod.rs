//! Where the time of a request goes: stamps at each stage between the device and the program, on a sample of requests.
//!
//! ```text
//!  rx   taken ─ handled ─ published ─ woke ─ read          tx   wrote ─ seen ─ built ─ queued ─ kicked ─ acknowledged
//!       └── shard ──────────────────┘└ program ┘                └program└──── shard ─────────────────────┘└ peer ────┘
//! ```
//!
//! One frame in [`Profile::every`] that brings data is followed to the program and back: it becomes a [`Probe`]. The
//! shard stamps its own stages; the program's stages are stamped by the client library, which finds in the slot that
//! the engine asks for it (`rx_probe`, `tx_probe`: words in lines that it reads anyway). What the program writes is
//! believed only where it lies between stamps of ours.
//!
//! **Cost.** A frame that is not followed costs a decrement and a branch; a call of the program two loads of words in
//! lines that it has. A followed request costs about ten reads of the clock. At one in 64 that is a small part of a
//! percent of a request; `docs/LATENCY.md` has the figures.
//!
//! A shard owns its profile; nothing is shared or locked. Tools get a [`LatencyReport`].

mod report;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::net::SocketAddr;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use sidestep_shm::Slot;
use sidestep_stack::{Instant, Token};

pub use report::{LatencyReport, StageReport, summarize};

/// Requests followed at a time: bounds what a turn has to look through.
const MAX_OPEN: usize = 16;
/// Followed requests that are kept, newest last: for questions about one program or socket.
const RECENT: usize = 4096;
/// Slowest requests that are kept with all their stamps.
const SLOWEST: usize = 16;
/// After the program has read, how long its answer may take before the request counts as one without.
const ANSWER_NS: u64 = 10_000_000;
/// How long a request is followed at most.
const PATIENCE_NS: u64 = 1_000_000_000;
/// Longest time that is told from longer ones.
const HIGHEST_NS: u64 = 60_000_000_000;

/// Stamps of one request, in this order. Zero: not taken.
pub const STAMPS: [&str; 11] =
    ["taken", "handled", "published", "woke", "read", "wrote", "seen", "built", "queued", "kicked", "acknowledged"];

const TAKEN: usize = 0;
const HANDLED: usize = 1;
const PUBLISHED: usize = 2;
const WOKE: usize = 3;
const READ: usize = 4;
const WROTE: usize = 5;
const SEEN: usize = 6;
const BUILT: usize = 7;
const QUEUED: usize = 8;
const KICKED: usize = 9;
const ACKNOWLEDGED: usize = 10;

/// A stage: from one stamp to another.
#[derive(Clone, Copy, Debug)]
pub struct Stage {
    pub name: &'static str,
    pub from: usize,
    pub to: usize,
}

/// Stages that follow each other, then three that cover several.
pub const STAGES: [Stage; 13] = [
    Stage { name: "stack in", from: TAKEN, to: HANDLED },
    Stage { name: "publish", from: HANDLED, to: PUBLISHED },
    Stage { name: "wake", from: PUBLISHED, to: WOKE },
    Stage { name: "read", from: WOKE, to: READ },
    Stage { name: "program", from: READ, to: WROTE },
    Stage { name: "command", from: WROTE, to: SEEN },
    Stage { name: "build", from: SEEN, to: BUILT },
    Stage { name: "queue", from: BUILT, to: QUEUED },
    Stage { name: "kick", from: QUEUED, to: KICKED },
    Stage { name: "wire and peer", from: KICKED, to: ACKNOWLEDGED },
    Stage { name: "receive", from: TAKEN, to: READ },
    Stage { name: "send", from: WROTE, to: KICKED },
    Stage { name: "request", from: TAKEN, to: KICKED },
];

/// Stages that follow each other: the first of [`STAGES`].
pub const SINGLE_STAGES: usize = 10;

/// A request that was followed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timeline {
    pub group: u32,
    pub slot: u32,
    /// Number of a process of the group that had the socket open.
    pub process: u32,
    pub local: SocketAddr,
    pub remote: SocketAddr,
    /// Nanoseconds of CLOCK_MONOTONIC, by [`STAMPS`]; 0: not taken.
    pub stamps: [u64; STAMPS.len()],
}

impl Timeline {
    /// How long `stage` took, in nanoseconds, if both of its stamps are there. An answer written before the request was
    /// read is no answer to it.
    #[must_use]
    pub fn stage(&self, stage: &Stage) -> Option<u64> {
        let (from, to) = (self.stamps[stage.from], self.stamps[stage.to]);
        (from != 0 && to >= from).then(|| to - from)
    }

    /// From the first stamp to the last one before the wire.
    #[must_use]
    pub fn total(&self) -> u64 {
        let ours = self.stamps[..=KICKED].iter().filter(|s| **s != 0);
        let (first, last) = ours.fold((u64::MAX, 0), |(first, last), s| (first.min(*s), last.max(*s)));
        last.saturating_sub(first)
    }
}

/// A request that is being followed.
#[derive(Debug)]
struct Probe {
    token: Token,
    line: Timeline,
    /// End of the followed segment in the receive stream; 0: the probe began with a write.
    rx_end: u64,
    /// The slot says so.
    rx_told: bool,
    /// What the program is asked to repeat when it stamps its next write.
    tx_number: u32,
    tx_told: bool,
    /// End of that write in the transmit stream; 0: not seen yet.
    tx_end: u64,
    /// When it was first looked at; 0: not yet.
    since: u64,
}

/// One shard's profile.
#[derive(Debug)]
pub struct Profile {
    every: u32,
    /// Frames, and writes, until the next probe.
    frames_left: u32,
    writes_left: u32,
    /// The next data that arrives becomes a probe.
    armed: bool,
    /// The data that arrived while armed: whose, and where it ends.
    noted: Option<(Token, u64)>,
    open: Vec<Probe>,
    /// Whose turn it is to be looked at.
    turn: usize,
    number: u32,
    /// Stamps that the shard owes: bits by stamp.
    owed: u32,
    finished: u64,
    abandoned: u64,
    garbled: u64,
    stages: Vec<Histogram<u64>>,
    recent: VecDeque<Timeline>,
    slowest: Vec<Timeline>,
}

impl Default for Profile {
    /// Switched off.
    fn default() -> Self {
        Self::new(0)
    }
}

impl Profile {
    /// Follows one data segment in `every`; 0 switches it off.
    #[must_use]
    pub fn new(every: u32) -> Self {
        #[allow(clippy::expect_used, reason = "the bounds are constants that the crate accepts")]
        let empty = || Histogram::new_with_bounds(1, HIGHEST_NS, 2).expect("constant bounds");
        Self {
            every,
            frames_left: every,
            writes_left: every,
            armed: false,
            noted: None,
            open: Vec::new(),
            turn: 0,
            number: 0,
            owed: 0,
            finished: 0,
            abandoned: 0,
            garbled: 0,
            stages: if every == 0 { Vec::new() } else { STAGES.iter().map(|_| empty()).collect() },
            recent: VecDeque::new(),
            slowest: Vec::new(),
        }
    }

    /// Whether the frame that comes now is to be stamped. Cheap: called for every frame.
    #[inline]
    pub fn arm(&mut self) -> bool {
        if self.frames_left > 1 {
            self.frames_left -= 1;
            return self.armed;
        }
        self.arm_slowly()
    }

    #[cold]
    fn arm_slowly(&mut self) -> bool {
        self.frames_left = self.every.max(1);
        self.armed = self.every > 0 && self.open.len() < MAX_OPEN;
        if self.every == 0 {
            self.frames_left = u32::MAX;
        }
        self.armed
    }

    /// Data of `stream` arrived and ends at `end`.
    #[inline]
    pub fn arrived(&mut self, stream: Token, end: u64) {
        if self.armed {
            self.noted = Some((stream, end));
        }
    }

    /// The frame for which [`Self::arm`] said yes was handled between these times. `make` gives the probe's socket.
    pub fn handled(&mut self, taken: Instant, handled: Instant, make: impl FnOnce(Token) -> Option<Timeline>) {
        let Some((token, end)) = self.noted.take() else { return };
        self.armed = false;
        // One at a time on a socket: the slot has room for one.
        if self.open.iter().any(|p| p.token == token) {
            return;
        }
        if let Some(mut line) = make(token) {
            line.stamps[TAKEN] = taken.as_nanos();
            line.stamps[HANDLED] = handled.as_nanos();
            self.open(token, line, end);
        }
    }

    fn open(&mut self, token: Token, line: Timeline, rx_end: u64) {
        self.number = self.number.wrapping_add(1).max(1);
        let tx_number = self.number;
        self.open.push(Probe { token, line, rx_end, rx_told: false, tx_number, tx_told: false, tx_end: 0, since: 0 });
    }

    /// The program wrote on a socket: whether its next write is to be followed. Cheap: called for every write.
    #[inline]
    pub fn wrote(&mut self, token: Token, make: impl FnOnce(Token) -> Option<Timeline>) {
        if self.writes_left > 1 {
            self.writes_left -= 1;
            return;
        }
        self.writes_left = if self.every == 0 { u32::MAX } else { self.every };
        if self.every > 0
            && self.open.len() < MAX_OPEN
            && self.open.iter().all(|p| p.token != token)
            && let Some(line) = make(token)
        {
            self.open(token, line, 0);
        }
    }

    /// Whether anything is being followed. One load.
    #[inline]
    #[must_use]
    pub fn is_following(&self) -> bool {
        !self.open.is_empty()
    }

    /// Before a socket's news are written to its slot: asks the program for its stamps.
    pub fn publish(&mut self, token: Token, rx_tail: u64, tx_head: u64, shared: &Slot) {
        use std::sync::atomic::Ordering::Relaxed;
        let Some(probe) = self.open.iter_mut().find(|p| p.token == token) else { return };
        if !probe.tx_told {
            probe.tx_told = true;
            shared.tx_probe.store(probe.tx_number, Relaxed);
        }
        if probe.rx_end != 0 && !probe.rx_told && rx_tail >= probe.rx_end {
            probe.rx_told = true;
            shared.rx_probe.store(probe.rx_end, Relaxed);
            self.owed |= 1 << PUBLISHED;
        }
        if probe.tx_end != 0 && tx_head >= probe.tx_end && probe.line.stamps[ACKNOWLEDGED] == 0 {
            self.owed |= 1 << ACKNOWLEDGED;
            // Marked here, dated by the stamp that is owed.
            probe.line.stamps[ACKNOWLEDGED] = u64::MAX;
        }
    }

    /// A program's news of a socket are looked at: takes the stamp of its write.
    pub fn command(&mut self, token: Token, tx_tail: u64, shared: &Slot) {
        use std::sync::atomic::Ordering::{Acquire, Relaxed};
        let Some(probe) = self.open.iter_mut().find(|p| p.token == token) else { return };
        if !probe.tx_told {
            probe.tx_told = true;
            shared.tx_probe.store(probe.tx_number, Relaxed);
            return;
        }
        if probe.tx_end != 0 || shared.tx_probe_done.load(Acquire) != probe.tx_number {
            return;
        }
        let (end, when) = (shared.tx_probe_end.load(Relaxed), shared.tx_probe_ns.load(Relaxed));
        if end == 0 || end > tx_tail {
            self.garbled += 1;
            self.drop_probe(token);
            return;
        }
        probe.tx_end = end;
        probe.line.stamps[WROTE] = when;
        self.owed |= 1 << SEEN;
    }

    /// Bytes from `at` on, `length` of them, go into a frame.
    #[inline]
    pub fn reads(&mut self, token: Token, at: u64, length: usize) {
        if !self.open.is_empty() {
            self.reads_slowly(token, at, length);
        }
    }

    fn reads_slowly(&mut self, token: Token, at: u64, length: usize) {
        let end = at + length as u64;
        let of = |p: &&mut Probe| p.token == token && p.tx_end != 0 && p.line.stamps[BUILT] == 0;
        if let Some(probe) = self.open.iter_mut().find(of)
            && (at + 1..=end).contains(&probe.tx_end)
        {
            probe.line.stamps[BUILT] = u64::MAX;
            self.owed |= 1 << BUILT;
        }
    }

    /// Whether a stamp of this stage is owed. One load.
    #[inline]
    #[must_use]
    pub fn owes_any(&self) -> bool {
        self.owed != 0
    }

    /// After the events were written to the slots.
    pub fn stamp_published(&mut self, now: Instant) {
        for probe in self.open.iter_mut().filter(|p| p.rx_told && p.line.stamps[PUBLISHED] == 0) {
            probe.line.stamps[PUBLISHED] = now.as_nanos();
        }
        self.date(ACKNOWLEDGED, now);
        self.owed &= !(1 << PUBLISHED);
    }

    /// After the commands were looked at.
    pub fn stamp_seen(&mut self, now: Instant) {
        for probe in self.open.iter_mut().filter(|p| p.tx_end != 0 && p.line.stamps[SEEN] == 0) {
            probe.line.stamps[SEEN] = now.as_nanos();
        }
        self.owed &= !(1 << SEEN);
    }

    /// After a frame was built.
    pub fn stamp_built(&mut self, now: Instant) {
        self.date(BUILT, now);
        self.owed |= 1 << QUEUED;
    }

    /// After the frames of a turn were queued, and after they were kicked.
    pub fn stamp_sent(&mut self, queued: Instant, kicked: Instant) {
        for probe in self.open.iter_mut().filter(|p| p.line.stamps[BUILT] != 0 && p.line.stamps[QUEUED] == 0) {
            probe.line.stamps[QUEUED] = queued.as_nanos();
            probe.line.stamps[KICKED] = kicked.as_nanos();
        }
        self.owed &= !(1 << QUEUED);
    }

    /// Whether [`Self::stamp_sent`] is due.
    #[inline]
    #[must_use]
    pub fn owes_sent(&self) -> bool {
        self.owed & (1 << QUEUED) != 0
    }

    /// Whether [`Self::stamp_built`] is due.
    #[inline]
    #[must_use]
    pub fn owes_built(&self) -> bool {
        self.owed & (1 << BUILT) != 0
    }

    fn date(&mut self, stamp: usize, now: Instant) {
        for probe in self.open.iter_mut().filter(|p| p.line.stamps[stamp] == u64::MAX) {
            probe.line.stamps[stamp] = now.as_nanos();
        }
        self.owed &= !(1 << stamp);
    }

    /// Looks at one of the followed requests: has the program read, is it over? `slot` finds its shared part.
    pub fn look<'a>(&mut self, now: Instant, slot: impl Fn(&Timeline) -> Option<&'a Slot>) {
        use std::sync::atomic::Ordering::{Acquire, Relaxed};
        if self.open.is_empty() {
            return;
        }
        self.turn = (self.turn + 1) % self.open.len();
        let (now, probe) = (now.as_nanos(), &mut self.open[self.turn]);
        if probe.since == 0 {
            probe.since = now;
        }
        let unread = probe.rx_told && probe.line.stamps[READ] == 0;
        let shared = if unread { slot(&probe.line) } else { None };
        let stamps = &mut probe.line.stamps;
        if let Some(shared) = shared
            && shared.read_probe.load(Acquire) == probe.rx_end
        {
            let read = shared.read_ns.load(Relaxed);
            let woke =
                if shared.woke_probe.load(Acquire) == probe.rx_end { shared.woke_ns.load(Relaxed) } else { read };
            (stamps[WOKE], stamps[READ]) = (woke, read);
            // On another core the program may be at work before our stamp of the news is taken.
            stamps[PUBLISHED] = stamps[PUBLISHED].min(woke);
        }
        let read_done = probe.rx_end == 0 || stamps[READ] != 0;
        let no_answer = stamps[READ] != 0 && stamps[WROTE] == 0 && now.saturating_sub(stamps[READ]) > ANSWER_NS;
        let acknowledged = stamps[ACKNOWLEDGED] != 0 && stamps[KICKED] != 0;
        if read_done && (acknowledged || no_answer) {
            self.finish();
        } else if now.saturating_sub(probe.since) > PATIENCE_NS {
            self.abandoned += 1;
            self.open.swap_remove(self.turn);
        }
    }

    /// The socket is no longer on this shard.
    pub fn forget(&mut self, token: Token) {
        if !self.open.is_empty() {
            self.drop_probe(token);
        }
    }

    fn drop_probe(&mut self, token: Token) {
        self.open.retain(|p| p.token != token);
    }

    fn finish(&mut self) {
        let line = self.open.swap_remove(self.turn).line;
        if !is_sane(&line) {
            self.garbled += 1;
            return;
        }
        self.finished += 1;
        for (stage, histogram) in STAGES.iter().zip(&mut self.stages) {
            if let Some(ns) = line.stage(stage) {
                histogram.saturating_record(ns.max(1));
            }
        }
        let total = line.total();
        if self.slowest.len() < SLOWEST || self.slowest.last().is_some_and(|l| l.total() < total) {
            let at = self.slowest.partition_point(|l| l.total() >= total);
            self.slowest.insert(at, line.clone());
            self.slowest.truncate(SLOWEST);
        }
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(line);
    }

    /// What tools get; with `recent`, also the requests that were followed last.
    #[must_use]
    pub fn report(&self, shard: u32, recent: bool) -> LatencyReport {
        LatencyReport {
            shard,
            every: self.every,
            followed: self.finished,
            abandoned: self.abandoned,
            garbled: self.garbled,
            stages: STAGES.iter().zip(&self.stages).map(|(stage, h)| StageReport::of(stage.name, h)).collect(),
            slowest: self.slowest.clone(),
            recent: if recent { self.recent.iter().cloned().collect() } else { Vec::new() },
        }
    }
}

/// Whether the program's stamps lie between ours: each chain only goes forward.
fn is_sane(line: &Timeline) -> bool {
    let rises = |part: &[u64]| {
        let known = part.iter().filter(|s| **s != 0).collect::<Vec<_>>();
        known.windows(2).all(|w| w[0] <= w[1])
    };
    rises(&line.stamps[TAKEN..=READ]) && rises(&line.stamps[WROTE..])
}
