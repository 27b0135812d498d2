//! Requests and answers, and the server that answers. A request begins with eight bytes: its own length and the
//! answer's, little-endian; the rest, and the answer, is the pattern.

use std::io::IoSlice;
use std::net::SocketAddr;
use std::time::Duration;

use sidestep_client::Errno;
use sidestep_stack::Instant;

use super::{BySlot, Pattern, Shared, listener, receive, send_pattern, socket_for};
use crate::sim::host::{Context, Program};

/// Bytes of a request at least.
pub const HEADER: u32 = 8;

/// What a requester does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RequestPlan {
    pub start: Duration,
    pub stop: Option<Duration>,
    /// Connections at one time.
    pub connections: usize,
    /// Requests on a connection, after which it is closed and another opened. None: it stays.
    pub per_connection: Option<u64>,
    /// Bytes, at least [`HEADER`].
    pub request: u32,
    pub response: u32,
    /// Mean time from an answer to the next request, exponentially distributed.
    pub think: Duration,
}

/// Asks again when it has been answered.
pub struct Requester {
    plan: RequestPlan,
    to: SocketAddr,
    exchanges: BySlot<Exchange>,
    buffer: Box<[u8]>,
    stopped: bool,
    stats: Shared,
}

/// A connection's request and answer.
pub(super) struct Exchange {
    connecting: bool,
    began: Instant,
    done: u64,
    unsent: u64,
    position: u64,
    missing: u64,
    answer_at: u64,
    /// Tells a timer of this connection from one of an earlier connection in the same slot.
    number: u32,
}

const OPEN: u64 = u64::MAX;
const STOP: u64 = u64::MAX - 1;

impl Exchange {
    pub(super) fn connecting(now: Instant, number: u32) -> Self {
        let (done, unsent, position, missing, answer_at) = (0, 0, 0, 0, 0);
        Self { connecting: true, began: now, done, unsent, position, missing, answer_at, number }
    }

    /// Still on the way; records when it is there.
    pub(super) fn is_connecting(&mut self, c: &Context<'_>, slot: u32, stats: &Shared) -> Result<bool, Errno> {
        if self.connecting && c.session.connect_outcome(slot)? {
            self.connecting = false;
            stats.borrow_mut().note_connected(c.now.since(self.began));
        }
        Ok(self.connecting)
    }

    pub(super) fn is_idle(&self) -> bool {
        !self.connecting && self.missing == 0
    }

    /// Asks. The last answer has come, so there is room.
    pub(super) fn ask(&mut self, c: &Context<'_>, slot: u32, request: u32, response: u32) -> Result<(), Errno> {
        self.began = c.now;
        (self.missing, self.answer_at) = (response.into(), 0);
        let header = [request.to_le_bytes(), response.to_le_bytes()].concat();
        let more = request > HEADER;
        let taken = c.session.send(slot, &[IoSlice::new(&header)], more)?;
        if taken < header.len() {
            return Err(Errno::NOBUFS);
        }
        (self.unsent, self.position) = ((request - HEADER).into(), 0);
        self.push(c, slot)
    }

    fn push(&mut self, c: &Context<'_>, slot: u32) -> Result<(), Errno> {
        if self.unsent > 0 {
            self.unsent -= send_pattern(c.session, slot, &mut self.position, self.unsent)?;
        }
        Ok(())
    }

    /// Takes what has come. True when the answer is complete with it.
    pub(super) fn look(
        &mut self,
        c: &Context<'_>,
        slot: u32,
        buffer: &mut [u8],
        stats: &Shared,
    ) -> Result<bool, Errno> {
        self.push(c, slot)?;
        while let Some(data) = receive(c.session, slot, buffer)? {
            if data.is_empty() {
                return Err(Errno::CONNRESET);
            }
            let n = data.len() as u64;
            if !Pattern::matches(self.answer_at, data) || n > self.missing {
                stats.borrow_mut().damaged += 1;
            }
            self.answer_at += n;
            self.missing = self.missing.saturating_sub(n);
            if self.missing == 0 {
                self.done += 1;
                return Ok(true);
            }
        }
        Ok(false)
    }

    pub(super) fn took(&self, now: Instant) -> Duration {
        now.since(self.began)
    }
}

impl Requester {
    #[must_use]
    pub fn new(plan: RequestPlan, to: SocketAddr, stats: Shared) -> Self {
        let buffer = vec![0; 1 << 16].into();
        Self { plan, to, exchanges: BySlot::new(), buffer, stopped: false, stats }
    }

    fn connect(&mut self, c: &mut Context<'_>) {
        if self.stopped {
            return;
        }
        let opened = socket_for(c, self.to).and_then(|slot| c.session.connect(slot, self.to).map(|()| slot));
        match opened {
            Ok(slot) => {
                let number = c.rng.draw() as u32;
                self.exchanges.insert(slot, Exchange::connecting(c.now, number));
            }
            Err(errno) => self.failed(c, errno),
        }
    }

    fn failed(&mut self, c: &mut Context<'_>, errno: Errno) {
        self.stats.borrow_mut().note_failure(errno);
        // Not at once: what failed once would fail as often as there is time for.
        c.after(Duration::from_millis(100), OPEN);
    }

    fn look(&mut self, c: &mut Context<'_>, slot: u32) -> Result<(), Errno> {
        let Some(e) = self.exchanges.get(slot) else { return Ok(()) };
        let was_connecting = e.connecting;
        if e.is_connecting(c, slot, &self.stats)? {
            return Ok(());
        }
        if was_connecting {
            return e.ask(c, slot, self.plan.request, self.plan.response);
        }
        if e.missing == 0 {
            // Between two requests there is nothing to read but the end.
            return if receive(c.session, slot, &mut [0; 16])?.is_some() { Err(Errno::CONNRESET) } else { Ok(()) };
        }
        if !e.look(c, slot, &mut self.buffer, &self.stats)? {
            return Ok(());
        }
        self.stats.borrow_mut().note_answer(e.took(c.now));
        if self.plan.per_connection.is_some_and(|n| e.done >= n) {
            self.exchanges.remove(slot);
            self.stats.borrow_mut().note_closed();
            c.close(slot);
            self.connect(c);
            return Ok(());
        }
        if self.stopped {
            return Ok(());
        }
        if self.plan.think.is_zero() {
            return e.ask(c, slot, self.plan.request, self.plan.response);
        }
        let think = c.rng.exponential(self.plan.think);
        c.after(think, u64::from(e.number) << 32 | u64::from(slot));
        Ok(())
    }

    fn settle(&mut self, c: &mut Context<'_>, slot: u32, outcome: Result<(), Errno>) {
        if let Err(errno) = outcome {
            if self.exchanges.remove(slot).is_some_and(|e| !e.connecting) {
                self.stats.borrow_mut().note_closed();
            }
            c.close(slot);
            self.failed(c, errno);
        }
    }
}

impl Program for Requester {
    fn start(&mut self, c: &mut Context<'_>) {
        (0..self.plan.connections).for_each(|_| c.after(self.plan.start, OPEN));
        if let Some(stop) = self.plan.stop {
            c.after(stop, STOP);
        }
    }

    fn ready(&mut self, c: &mut Context<'_>, slot: u32) {
        let outcome = self.look(c, slot);
        self.settle(c, slot, outcome);
    }

    fn timer(&mut self, c: &mut Context<'_>, key: u64) {
        match key {
            OPEN => self.connect(c),
            STOP => self.stopped = true,
            _ => {
                let slot = key as u32;
                let Some(e) = self.exchanges.get(slot).filter(|e| u64::from(e.number) == key >> 32) else { return };
                if !self.stopped && e.is_idle() {
                    let outcome = e.ask(c, slot, self.plan.request, self.plan.response);
                    self.settle(c, slot, outcome);
                }
            }
        }
    }
}

/// Answers requests.
pub struct Responder {
    at: SocketAddr,
    backlog: u32,
    listener: Option<u32>,
    streams: BySlot<Served>,
    buffer: Box<[u8]>,
    stats: Shared,
}

#[derive(Default)]
struct Served {
    header: [u8; 8],
    /// Bytes of the present request that have come.
    got: u64,
    /// Bytes of answers still to be sent, each from the pattern's start.
    owed: std::collections::VecDeque<u64>,
    position: u64,
}

impl Responder {
    #[must_use]
    pub fn new(at: SocketAddr, backlog: u32, stats: Shared) -> Self {
        let buffer = vec![0; 1 << 16].into();
        Self { at, backlog, listener: None, streams: BySlot::new(), buffer, stats }
    }

    /// False when the stream is over.
    fn serve(&mut self, c: &mut Context<'_>, slot: u32) -> Result<bool, Errno> {
        let Some(s) = self.streams.get(slot) else { return Ok(true) };
        while let Some(mut data) = receive(c.session, slot, &mut self.buffer)? {
            if data.is_empty() {
                return Ok(false);
            }
            while !data.is_empty() {
                if s.got < HEADER.into() {
                    s.header[s.got as usize] = data[0];
                    s.got += 1;
                    data = &data[1..];
                } else {
                    let whole = u64::from(s.length(0));
                    let n = data.len().min(usize::try_from(whole.saturating_sub(s.got)).unwrap_or(usize::MAX));
                    if !Pattern::matches(s.got - u64::from(HEADER), &data[..n]) {
                        self.stats.borrow_mut().damaged += 1;
                    }
                    s.got += n as u64;
                    data = &data[n..];
                }
                if s.got >= HEADER.into() && s.got >= s.length(0).into() {
                    s.got = 0;
                    let answer = s.length(4);
                    s.owed.push_back(answer.into());
                }
            }
        }
        while let Some(left) = s.owed.front_mut() {
            *left -= send_pattern(c.session, slot, &mut s.position, *left)?;
            if *left > 0 {
                break;
            }
            s.position = 0;
            s.owed.pop_front();
        }
        Ok(true)
    }
}

impl Served {
    fn length(&self, at: usize) -> u32 {
        u32::from_le_bytes([self.header[at], self.header[at + 1], self.header[at + 2], self.header[at + 3]])
    }
}

impl Program for Responder {
    fn start(&mut self, c: &mut Context<'_>) {
        self.listener = listener(c, self.at, self.backlog, &self.stats);
    }

    fn ready(&mut self, c: &mut Context<'_>, slot: u32) {
        if self.listener == Some(slot) {
            while let Ok(accepted) = c.accept(slot) {
                self.streams.insert(accepted, Served::default());
                self.ready(c, accepted);
            }
            return;
        }
        let outcome = self.serve(c, slot);
        if outcome != Ok(true) {
            self.streams.remove(slot);
            c.close(slot);
        }
        if let Err(errno) = outcome {
            self.stats.borrow_mut().note_failure(errno);
        }
    }

    fn timer(&mut self, _: &mut Context<'_>, _: u64) {}
}
