//! Connections that come at a rate, stay for a while, and go.

use std::net::SocketAddr;
use std::time::Duration;

use sidestep_client::Errno;
use sidestep_stack::Instant;

use super::{BySlot, Shared, receive, socket_for};
use crate::sim::host::{Context, Program};

/// What a connector does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ConnectPlan {
    pub start: Duration,
    pub stop: Option<Duration>,
    /// Connections a second.
    pub rate: f64,
    /// Connections altogether. None: as many as there is time for.
    pub total: Option<u64>,
    /// How long a connection stays once it is there. None: for good.
    pub hold: Option<Duration>,
}

/// Opens connections at its rate, whatever becomes of them.
pub struct Connector {
    plan: ConnectPlan,
    /// Destinations take turns.
    to: Vec<SocketAddr>,
    begun: u64,
    connections: BySlot<Connection>,
    stats: Shared,
}

struct Connection {
    began: Instant,
    connected: bool,
    /// Which one it is: a timer's word for it.
    number: u64,
}

const NEXT: u64 = u64::MAX;
/// Bits of a timer's key that name the slot.
const SLOT_BITS: u32 = 20;

impl Connector {
    #[must_use]
    pub fn new(plan: ConnectPlan, to: Vec<SocketAddr>, stats: Shared) -> Self {
        Self { plan, to, begun: 0, connections: BySlot::new(), stats }
    }

    fn next(&mut self, c: &mut Context<'_>) {
        let over = self.plan.stop.is_some_and(|stop| c.now >= Instant::ZERO + stop);
        if over || self.plan.total.is_some_and(|all| self.begun >= all) {
            return;
        }
        let to = self.to[(self.begun % self.to.len() as u64) as usize];
        self.begun += 1;
        match socket_for(c, to).and_then(|slot| c.session.connect(slot, to).map(|()| slot)) {
            Ok(slot) => {
                let connection = Connection { began: c.now, connected: false, number: self.begun };
                self.connections.insert(slot, connection);
            }
            Err(errno) => self.stats.borrow_mut().note_failure(errno),
        }
        // By the clock, not by the last one, so that rounding does not add up.
        let due = self.plan.start + Duration::from_secs_f64(self.begun as f64 / self.plan.rate);
        c.after((Instant::ZERO + due).since(c.now), NEXT);
    }

    /// False when the connection is over.
    fn look(&mut self, c: &mut Context<'_>, slot: u32) -> Result<bool, Errno> {
        let Some(connection) = self.connections.get(slot) else { return Ok(true) };
        if !connection.connected {
            if !c.session.connect_outcome(slot)? {
                return Ok(true);
            }
            connection.connected = true;
            self.stats.borrow_mut().note_connected(c.now.since(connection.began));
            match self.plan.hold {
                Some(hold) if hold.is_zero() => return Ok(false),
                Some(hold) => c.after(hold, connection.number << SLOT_BITS | u64::from(slot)),
                None => {}
            }
        }
        Ok(receive(c.session, slot, &mut [0; 16])?.is_none())
    }

    fn end(&mut self, c: &mut Context<'_>, slot: u32) {
        if self.connections.remove(slot).is_some_and(|connection| connection.connected) {
            self.stats.borrow_mut().note_closed();
        }
        c.close(slot);
    }
}

impl Program for Connector {
    fn start(&mut self, c: &mut Context<'_>) {
        c.after(self.plan.start, NEXT);
    }

    fn ready(&mut self, c: &mut Context<'_>, slot: u32) {
        match self.look(c, slot) {
            Ok(true) => {}
            Ok(false) => self.end(c, slot),
            Err(errno) => {
                self.stats.borrow_mut().note_failure(errno);
                self.end(c, slot);
            }
        }
    }

    fn timer(&mut self, c: &mut Context<'_>, key: u64) {
        if key == NEXT {
            return self.next(c);
        }
        let slot = (key & ((1 << SLOT_BITS) - 1)) as u32;
        if self.connections.get(slot).is_some_and(|connection| connection.number == key >> SLOT_BITS) {
            self.end(c, slot);
        }
    }
}
