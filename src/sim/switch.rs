//! An Ethernet switch: joins hosts, so that they share a link to others. Its queues are those of its links.

use std::collections::HashMap;

use sidestep_stack::{Instant, Mac};

use super::network::{Node, Outgoing};

/// Learns who is where from what they send (IEEE 802.1D 7.8). The links between switches must not form a ring.
#[derive(Default)]
pub struct Switch {
    known: HashMap<Mac, usize>,
    ports: usize,
    arrived: Vec<(usize, Vec<u8>)>,
}

impl Switch {
    #[must_use]
    pub fn new(ports: usize) -> Self {
        Self { ports, ..Self::default() }
    }
}

impl Node for Switch {
    fn deliver(&mut self, port: usize, frame: Vec<u8>) {
        self.arrived.push((port, frame));
    }

    fn run(&mut self, _: Instant, out: &mut Outgoing) {
        for (from, frame) in self.arrived.drain(..) {
            let (Some(to), Some(source)) = (frame.first_chunk::<6>(), frame.get(6..12)) else { continue };
            if source[0] & 1 == 0
                && let Ok(source) = Mac::try_from(source)
            {
                self.known.insert(source, from);
            }
            match self.known.get(to) {
                Some(&port) if port == from => {}
                Some(&port) => out.push((port, frame)),
                None => (0..self.ports).filter(|&p| p != from).for_each(|p| out.push((p, frame.clone()))),
            }
        }
    }

    fn wake_at(&mut self) -> Option<Instant> {
        None
    }

    fn as_any(&mut self) -> &mut dyn std::any::Any {
        self
    }
}
