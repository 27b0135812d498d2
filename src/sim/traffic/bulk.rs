//! Bulk data: as fast as TCP lets it, or in bursts; and the sink that takes it.
//!
//! The first eight bytes of a stream say which flow it is (little-endian), then comes the pattern from position 8 on.

use std::net::SocketAddr;
use std::time::Duration;

use sidestep_client::{Errno, POLLOUT};

use super::{BySlot, Pattern, Shared, listener, receive, send_pattern, socket_for};
use crate::sim::host::{Context, Program};

const HEADER: u64 = 8;

/// When a bulk sender sends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BulkPlan {
    pub start: Duration,
    /// Ends its flows at this time. None: never.
    pub stop: Option<Duration>,
    /// Bytes of each flow, after which it ends.
    pub bytes: Option<u64>,
    /// Sends for as long as the first says, then is silent for as long as the second; both exponentially distributed
    /// around these.
    pub on_off: Option<(Duration, Duration)>,
}

/// Sender of some flows. Timer keys: flow * 4 + one of these.
pub struct BulkSender {
    plan: BulkPlan,
    to: Vec<SocketAddr>,
    /// Number of the first flow in the statistics.
    first: usize,
    flows: Vec<SenderFlow>,
    by_slot: BySlot<usize>,
    stats: Shared,
}

const START: u64 = 0;
const STOP: u64 = 1;
const TOGGLE: u64 = 2;

#[derive(Clone, Copy, Default)]
struct SenderFlow {
    slot: Option<u32>,
    position: u64,
    connected: bool,
    silent: bool,
    finished: bool,
}

impl BulkSender {
    /// One flow to each of `to`, called `first` and on in the statistics.
    #[must_use]
    pub fn new(plan: BulkPlan, to: Vec<SocketAddr>, first: usize, stats: Shared) -> Self {
        let flows = vec![SenderFlow::default(); to.len()];
        Self { plan, to, first, flows, by_slot: BySlot::new(), stats }
    }

    fn connect(&mut self, c: &mut Context<'_>, flow: usize) {
        let opened =
            socket_for(c, self.to[flow]).and_then(|slot| c.session.connect(slot, self.to[flow]).map(|()| slot));
        match opened {
            Ok(slot) => {
                self.flows[flow].slot = Some(slot);
                self.by_slot.insert(slot, flow);
                let shared = &mut self.stats.borrow_mut().flows[self.first + flow];
                (shared.started, shared.slot) = (Some(c.now), Some(slot));
            }
            Err(errno) => self.stats.borrow_mut().note_failure(errno),
        }
    }

    fn send(&mut self, c: &mut Context<'_>, flow: usize) -> Result<(), Errno> {
        let f = &mut self.flows[flow];
        let Some(slot) = f.slot.filter(|_| f.connected && !f.silent && !f.finished) else { return Ok(()) };
        if f.position < HEADER {
            // The ring is empty: it takes the header whole.
            let name = (self.first as u64 + flow as u64).to_le_bytes();
            f.position += c.session.send(slot, &[std::io::IoSlice::new(&name)], true)? as u64;
        }
        let most = self.plan.bytes.map_or(u64::MAX, |all| (all + HEADER).saturating_sub(f.position));
        send_pattern(c.session, slot, &mut f.position, most)?;
        if self.plan.bytes.is_some_and(|all| f.position >= all + HEADER) {
            self.finish(c, flow);
        }
        Ok(())
    }

    fn finish(&mut self, c: &mut Context<'_>, flow: usize) {
        let f = &mut self.flows[flow];
        if let Some(slot) = f.slot.filter(|_| !f.finished) {
            f.finished = true;
            // A flow that never connected ends here too.
            let _ = c.session.shutdown(slot, false, true);
        }
    }

    fn drop_flow(&mut self, c: &mut Context<'_>, slot: u32, flow: usize, why: Option<Errno>) {
        self.by_slot.remove(slot);
        self.flows[flow].slot = None;
        let mut stats = self.stats.borrow_mut();
        stats.flows[self.first + flow].slot = None;
        if self.flows[flow].connected {
            stats.note_closed();
        }
        if let Some(errno) = why {
            stats.note_failure(errno);
        }
        c.close(slot);
    }

    fn look(&mut self, c: &mut Context<'_>, slot: u32, flow: usize) -> Result<bool, Errno> {
        if !self.flows[flow].connected {
            if !c.session.connect_outcome(slot)? {
                return Ok(true);
            }
            self.flows[flow].connected = true;
            let mut stats = self.stats.borrow_mut();
            let started = stats.flows[self.first + flow].started.unwrap_or(c.now);
            stats.note_connected(c.now.since(started));
        }
        // The receiver says nothing, but ends its side after ours.
        if receive(c.session, slot, &mut [0; 16])?.is_some_and(<[u8]>::is_empty) {
            return Ok(false);
        }
        if c.session.readiness(slot) & POLLOUT != 0 {
            self.send(c, flow)?;
        }
        Ok(true)
    }
}

impl Program for BulkSender {
    fn start(&mut self, c: &mut Context<'_>) {
        for flow in 0..self.flows.len() as u64 {
            c.after(self.plan.start, flow * 4 + START);
            if let Some(stop) = self.plan.stop {
                c.after(stop, flow * 4 + STOP);
            }
            if let Some((on, _)) = self.plan.on_off {
                let first = self.plan.start + c.rng.exponential(on);
                c.after(first, flow * 4 + TOGGLE);
            }
        }
    }

    fn ready(&mut self, c: &mut Context<'_>, slot: u32) {
        let Some(&mut flow) = self.by_slot.get(slot) else { return };
        match self.look(c, slot, flow) {
            Ok(true) => {}
            Ok(false) => self.drop_flow(c, slot, flow, None),
            Err(errno) => self.drop_flow(c, slot, flow, Some(errno)),
        }
    }

    fn timer(&mut self, c: &mut Context<'_>, key: u64) {
        let flow = (key / 4) as usize;
        match key % 4 {
            START => self.connect(c, flow),
            STOP => self.finish(c, flow),
            _ => {
                let Some((on, off)) = self.plan.on_off.filter(|_| !self.flows[flow].finished) else { return };
                let silent = !self.flows[flow].silent;
                self.flows[flow].silent = silent;
                let next = c.rng.exponential(if silent { off } else { on });
                c.after(next, key);
                if let Some(slot) = self.flows[flow].slot.filter(|_| !silent) {
                    self.ready(c, slot);
                }
            }
        }
    }
}

/// Takes whatever comes, checks it and counts it.
pub struct Sink {
    at: SocketAddr,
    backlog: u32,
    listener: Option<u32>,
    streams: BySlot<SinkStream>,
    buffer: Box<[u8]>,
    stats: Shared,
}

#[derive(Default)]
struct SinkStream {
    flow: [u8; 8],
    position: u64,
}

impl Sink {
    #[must_use]
    pub fn new(at: SocketAddr, backlog: u32, stats: Shared) -> Self {
        let buffer = vec![0; 1 << 17].into();
        Self { at, backlog, listener: None, streams: BySlot::new(), buffer, stats }
    }

    /// Reads all there is; false when the stream is over.
    fn drain(&mut self, c: &mut Context<'_>, slot: u32) -> bool {
        let Some(stream) = self.streams.get(slot) else { return true };
        loop {
            let mut data = match receive(c.session, slot, &mut self.buffer) {
                Ok(Some(data)) => data,
                Ok(None) => return true,
                Err(errno) => {
                    self.stats.borrow_mut().note_failure(errno);
                    return false;
                }
            };
            let mut stats = self.stats.borrow_mut();
            let ended = data.is_empty();
            while stream.position < HEADER
                && let Some((byte, rest)) = data.split_first()
            {
                stream.flow[stream.position as usize] = *byte;
                stream.position += 1;
                data = rest;
            }
            if !Pattern::matches(stream.position, data) {
                stats.damaged += 1;
            }
            stream.position += data.len() as u64;
            let flow = u64::from_le_bytes(stream.flow) as usize;
            let known = stream.position >= HEADER;
            if let Some(flow) = stats.flows.get_mut(flow).filter(|_| known) {
                flow.received += data.len() as u64;
                if ended {
                    flow.ended = Some(c.now);
                }
            }
            if ended {
                return false;
            }
        }
    }
}

impl Program for Sink {
    fn start(&mut self, c: &mut Context<'_>) {
        self.listener = listener(c, self.at, self.backlog, &self.stats);
    }

    fn ready(&mut self, c: &mut Context<'_>, slot: u32) {
        if self.listener == Some(slot) {
            while let Ok(accepted) = c.accept(slot) {
                self.streams.insert(accepted, SinkStream::default());
                self.ready(c, accepted);
            }
        } else if !self.drain(c, slot) {
            self.streams.remove(slot);
            c.close(slot);
        }
    }

    fn timer(&mut self, _: &mut Context<'_>, _: u64) {}
}
