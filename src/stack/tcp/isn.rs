//! What a peer must not be able to guess: initial sequence numbers, timestamp offsets, cookies, ports.

use super::flow::FlowKey;
use crate::Instant;
use crate::siphash::{Rng, SipKey};

/// The keys of one stack, one for each purpose.
#[derive(Debug)]
pub(super) struct Secrets {
    /// Of the flow table.
    pub flow: SipKey,
    pub cookie: SipKey,
    pub random: Rng,
    isn: SipKey,
    timestamp: SipKey,
    /// Of Fast Open's cookies, unless the configuration has one.
    pub fast_open: SipKey,
    port: SipKey,
    /// Where the search for a port begins, beside what depends on the destination.
    next_port: u32,
    /// For tests of what happens where numbers wrap.
    #[cfg(test)]
    pub fixed_sequence: Option<u32>,
}

impl Secrets {
    pub fn new(seed: &[u8; 32]) -> Self {
        Self {
            flow: SipKey::derive(seed, 1),
            cookie: SipKey::derive(seed, 2),
            random: Rng::new(SipKey::derive(seed, 3)),
            isn: SipKey::derive(seed, 4),
            timestamp: SipKey::derive(seed, 5),
            fast_open: SipKey::derive(seed, 6),
            port: SipKey::derive(seed, 7),
            next_port: 0,
            #[cfg(test)]
            fixed_sequence: None,
        }
    }

    /// RFC 6056 3.3.3 and 3.3.5: where to look for a port towards `flow`'s remote end; a secret of each destination, and
    /// small random steps. Ports by chance alone come back too soon: among 50,000 connections a second some took a tuple
    /// that had ended in the same millisecond, which the peer can't tell from an old SYN.
    #[allow(clippy::cast_possible_truncation)]
    pub fn port_to_begin(&mut self, flow: &FlowKey) -> u32 {
        self.next_port = self.next_port.wrapping_add(1 + (self.random.next_u64() % 8) as u32);
        let towards = FlowKey { local_port: 0, ..*flow };
        (towards.hash(self.port) as u32).wrapping_add(self.next_port)
    }

    /// RFC 6528: a clock of 4 µs, so that a tuple's numbers advance from one connection to the next, plus a keyed hash
    /// of the tuple.
    #[allow(clippy::cast_possible_truncation)]
    pub fn initial_sequence(&self, flow: &FlowKey, now: Instant) -> u32 {
        #[cfg(test)]
        if let Some(fixed) = self.fixed_sequence {
            return fixed;
        }
        let clock = (now.as_nanos() >> 12) as u32;
        (flow.hash(self.isn) as u32).wrapping_add(clock)
    }

    /// RFC 7323 7.1: what is added to the millisecond clock. The same for all connections between two hosts, so that
    /// the clock also advances from one connection to the next (RFC 6191).
    #[allow(clippy::cast_possible_truncation)]
    pub fn timestamp_offset(&self, flow: &FlowKey) -> u32 {
        flow.hash_hosts(self.timestamp) as u32
    }
}

/// Our timestamp clock: milliseconds, as Linux.
#[allow(clippy::cast_possible_truncation)]
pub(super) const fn timestamp(now: Instant, offset: u32) -> u32 {
    (now.as_millis() as u32).wrapping_add(offset)
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::time::Duration;

    #[test]
    fn numbers_advance_and_differ() {
        let secrets = Secrets::new(&[1; 32]);
        let flow =
            |port| FlowKey::new("10.0.0.1:80".parse().unwrap(), std::net::SocketAddr::from(([10, 0, 0, 2], port)));
        let now = Instant::from_millis(5);
        let first = secrets.initial_sequence(&flow(1), now);
        let later = secrets.initial_sequence(&flow(1), now + Duration::from_secs(1));
        assert!((240_000..250_000).contains(&later.wrapping_sub(first)));
        assert_ne!(first, secrets.initial_sequence(&flow(2), now));
        assert_ne!(first, Secrets::new(&[2; 32]).initial_sequence(&flow(1), now));
        assert_eq!(secrets.timestamp_offset(&flow(1)), secrets.timestamp_offset(&flow(2)));
    }
}
