//! Nodes, links and what happens next.
//!
//! Events stand in one queue by time; those of one time happen in the order in which they were decided. Every node and
//! every direction of a link has at most a few events in it, so it stays short however many frames fly.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use sidestep_stack::Instant;

use super::link::{Direction, LinkConfig, LinkCounters, Wants};
use super::queue::QueueCounters;
use super::rng::Rng;
use super::trace::{Observers, Seen};
use crate::clock::VirtualClock;

/// Frames that a node sends: through which of its ports, and what.
pub type Outgoing = Vec<(usize, Vec<u8>)>;

/// Something at the end of links. Ports are numbered in the order of [`Network::connect`].
pub trait Node {
    /// A frame arrives. Nothing needs to be done about it before [`Self::run`].
    fn deliver(&mut self, port: usize, frame: Vec<u8>);
    /// Does all there is to do at this time.
    fn run(&mut self, now: Instant, out: &mut Outgoing);
    /// When [`Self::run`] is due although nothing arrives.
    fn wake_at(&mut self) -> Option<Instant>;
    /// For looking at the node after a run.
    fn as_any(&mut self) -> &mut dyn std::any::Any;
}

struct Place {
    node: Box<dyn Node>,
    /// Direction that leaves through each port.
    ports: Vec<usize>,
    /// The earliest wake-up of it that stands in the queue.
    armed: Option<Instant>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    Wake(u32),
    /// The transmitter of a direction is done with a frame.
    Sent(u32),
    Arrives(u32),
    Change(u32),
}

/// By time, then in the order of decision.
type Event = Reverse<(Instant, u64, What)>;

/// See the module.
pub struct Network {
    clock: VirtualClock,
    now: Instant,
    places: Vec<Place>,
    directions: Vec<Direction>,
    changes: Vec<(usize, LinkConfig)>,
    events: BinaryHeap<Event>,
    order: u64,
    happened: u64,
    out: Outgoing,
    pub observers: Observers,
    seed: u64,
}

/// What one direction of a link did.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct DirectionReport {
    #[serde(flatten)]
    pub link: LinkCounters,
    pub queue: QueueCounters,
}

impl Network {
    /// `clock` is shared with the hosts.
    #[must_use]
    pub fn new(clock: VirtualClock, seed: u64) -> Self {
        Self {
            clock,
            now: Instant::ZERO,
            places: Vec::new(),
            directions: Vec::new(),
            changes: Vec::new(),
            events: BinaryHeap::new(),
            order: 0,
            happened: 0,
            out: Vec::new(),
            observers: Observers::new(),
            seed,
        }
    }

    /// Adds a node; it runs for the first time at time 0.
    pub fn add(&mut self, name: &str, node: Box<dyn Node>) -> usize {
        let index = self.places.len();
        self.places.push(Place { node, ports: Vec::new(), armed: None });
        self.observers.add_node(name);
        self.wake(index, self.now);
        index
    }

    /// A link: what leaves `a`, and what leaves `b`. Returns the numbers of the two directions.
    pub fn connect(&mut self, a: usize, b: usize, from_a: LinkConfig, from_b: LinkConfig) -> (usize, usize) {
        let first = self.directions.len();
        let (port_a, port_b) = (self.places[a].ports.len(), self.places[b].ports.len());
        let rng = |n| Rng::new(self.seed, &format!("link {n}"));
        self.directions.push(Direction::new(from_a, a, (b, port_b), rng(first)));
        self.directions.push(Direction::new(from_b, b, (a, port_a), rng(first + 1)));
        self.places[a].ports.push(first);
        self.places[b].ports.push(first + 1);
        (first, first + 1)
    }

    /// From `at` on a direction is like this.
    pub fn change(&mut self, at: Instant, direction: usize, config: LinkConfig) {
        self.changes.push((direction, config));
        self.schedule(at, What::Change(self.changes.len() as u32 - 1));
    }

    /// What a direction is like now.
    #[must_use]
    pub fn link(&self, direction: usize) -> &LinkConfig {
        &self.directions[direction].config
    }

    #[must_use]
    pub fn report(&self, direction: usize) -> DirectionReport {
        let d = &self.directions[direction];
        DirectionReport { link: d.counters, queue: d.queue().counters }
    }

    /// Frames that wait for a direction now.
    #[must_use]
    pub fn queued(&self, direction: usize) -> usize {
        self.directions[direction].queue().len()
    }

    #[must_use]
    pub fn now(&self) -> Instant {
        self.now
    }

    /// Events so far.
    #[must_use]
    pub fn happened(&self) -> u64 {
        self.happened
    }

    pub fn node(&mut self, node: usize) -> &mut dyn Node {
        &mut *self.places[node].node
    }

    /// A node of a type that the caller knows.
    ///
    /// # Panics
    /// It is of another type.
    pub fn node_as<T: 'static>(&mut self, node: usize) -> &mut T {
        self.places[node].node.as_any().downcast_mut().expect("a node is what it was added as")
    }

    /// Has a node run at this time, after something was done to it from outside.
    pub fn wake(&mut self, node: usize, at: Instant) {
        if self.places[node].armed.is_none_or(|armed| at < armed) {
            self.places[node].armed = Some(at);
            self.schedule(at, What::Wake(node as u32));
        }
    }

    /// Lets everything happen up to and with `until`, at most `most` events. True when `until` was reached.
    pub fn run(&mut self, until: Instant, most: u64) -> bool {
        for _ in 0..most {
            match self.events.peek() {
                Some(Reverse((at, ..))) if *at <= until => {}
                _ => {
                    self.set_time(until);
                    return true;
                }
            }
            let Some(Reverse((at, _, what))) = self.events.pop() else { break };
            self.set_time(at);
            self.happened += 1;
            self.happen(what);
        }
        false
    }

    /// Whether nothing will ever happen again.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.events.is_empty()
    }

    fn set_time(&mut self, at: Instant) {
        self.now = at;
        self.clock.set(at);
    }

    fn happen(&mut self, what: What) {
        match what {
            What::Wake(node) => {
                let place = &mut self.places[node as usize];
                // An older wake-up that an earlier one has made needless.
                if place.armed == Some(self.now) {
                    place.armed = None;
                    self.run_node(node as usize);
                }
            }
            What::Sent(direction) => {
                let wants = self.directions[direction as usize].sent(self.now, &mut self.observers);
                self.follow(direction, wants);
            }
            What::Arrives(direction) => self.arrive(direction),
            What::Change(change) => {
                let (direction, config) = self.changes[change as usize].clone();
                self.directions[direction].set_config(config);
            }
        }
    }

    fn arrive(&mut self, direction: u32) {
        let d = &mut self.directions[direction as usize];
        let (node, port) = d.to;
        let mut any = false;
        // What arrives at one time arrives together.
        while let Some(frame) = d.arrival(self.now) {
            any = true;
            self.observers.note(self.now, Seen::Delivered, node, &frame);
            self.places[node].node.deliver(port, frame);
        }
        if !any {
            // A later frame had overtaken the one that this event was for, and its own event has seen to both.
            return;
        }
        if let Some(at) = d.next_arrival() {
            self.schedule(at, What::Arrives(direction));
        }
        self.run_node(node);
    }

    fn run_node(&mut self, node: usize) {
        let mut out = std::mem::take(&mut self.out);
        self.places[node].node.run(self.now, &mut out);
        for (port, frame) in out.drain(..) {
            // A port that leads nowhere: the host isn't connected.
            let Some(&direction) = self.places[node].ports.get(port) else { continue };
            let wants = self.directions[direction].offer(self.now, frame, &mut self.observers);
            self.follow(direction as u32, wants);
        }
        self.out = out;
        if let Some(at) = self.places[node].node.wake_at() {
            // A node that wants to run at this very time has done all it could; a nanosecond later it may try again.
            self.wake(node, at.max(self.now + Duration::from_nanos(1)));
        }
    }

    fn follow(&mut self, direction: u32, wants: Wants) {
        if let Some(at) = wants.sent {
            self.schedule(at, What::Sent(direction));
        }
        if let Some(at) = wants.arrives {
            self.schedule(at, What::Arrives(direction));
        }
    }

    fn schedule(&mut self, at: Instant, what: What) {
        self.order += 1;
        self.events.push(Reverse((at, self.order, what)));
    }
}
