//! Built-in traffic: small state machines on the client's verbs, and what they measured.
//!
//! Every byte of a stream is known in advance ([`Pattern`]), so every receiver checks what it gets; a run in which a byte
//! is wrong, missing or doubled says so.

pub mod bulk;
pub mod connect;
pub mod incast;
pub mod request;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::{IoSlice, IoSliceMut};
use std::rc::Rc;
use std::sync::LazyLock;
use std::time::Duration;

use hdrhistogram::Histogram;
use sidestep_client::shm::slot::kind;
use sidestep_client::{Errno, Session};
use sidestep_stack::Instant;

use super::host::Context;
use super::rng::Rng;

/// What the programs of one traffic share.
pub type Shared = Rc<RefCell<Stats>>;

/// What one traffic measured.
pub struct Stats {
    pub flows: Vec<Flow>,
    /// Nanoseconds from connect() to connected.
    pub connecting: Histogram<u64>,
    /// Nanoseconds from a request to the end of its answer; for incast, of all answers.
    pub answering: Histogram<u64>,
    pub connected: u64,
    pub closed: u64,
    /// Connections that are open now, and that were at most.
    pub open: u64,
    pub most_open: u64,
    pub requests: u64,
    /// Failed connections, by errno's name.
    pub failures: BTreeMap<String, u64>,
    /// Places at which a stream was not what had been sent.
    pub damaged: u64,
}

/// One stream of bulk data.
#[derive(Clone, Copy, Debug, Default)]
pub struct Flow {
    /// When connect() was called.
    pub started: Option<Instant>,
    /// When the receiver saw the end.
    pub ended: Option<Instant>,
    pub received: u64,
    /// The sender's socket, while it lives.
    pub slot: Option<u32>,
}

impl Stats {
    /// # Panics
    /// Never: the bounds are constants that a histogram can have.
    #[must_use]
    pub fn new(flows: usize) -> Shared {
        // One nanosecond to an hour at three digits.
        let histogram = || Histogram::new_with_bounds(1, 3_600_000_000_000, 3).expect("constant bounds");
        Rc::new(RefCell::new(Self {
            flows: vec![Flow::default(); flows],
            connecting: histogram(),
            answering: histogram(),
            connected: 0,
            closed: 0,
            open: 0,
            most_open: 0,
            requests: 0,
            failures: BTreeMap::new(),
            damaged: 0,
        }))
    }

    fn note_connected(&mut self, took: Duration) {
        self.connecting.saturating_record(took.as_nanos() as u64);
        self.connected += 1;
        self.open += 1;
        self.most_open = self.most_open.max(self.open);
    }

    fn note_closed(&mut self) {
        self.closed += 1;
        self.open = self.open.saturating_sub(1);
    }

    fn note_failure(&mut self, errno: Errno) {
        *self.failures.entry(format!("{errno:?}")).or_default() += 1;
    }

    fn note_answer(&mut self, took: Duration) {
        self.answering.saturating_record(took.as_nanos() as u64);
        self.requests += 1;
    }
}

/// The bytes of every stream, by position.
pub struct Pattern;

impl Pattern {
    /// A prime, so that a shift by any power of two shows.
    const PERIOD: usize = 65_521;

    /// Bytes from a position on: as many as the period has.
    #[must_use]
    pub fn at(position: u64) -> &'static [u8] {
        static TWICE: LazyLock<Vec<u8>> = LazyLock::new(|| {
            let mut rng = Rng::new(0, "pattern");
            let once: Vec<u8> = (0..Pattern::PERIOD).map(|_| rng.draw() as u8).collect();
            [once.as_slice(), &once].concat()
        });
        let start = (position % Self::PERIOD as u64) as usize;
        &TWICE[start..start + Self::PERIOD]
    }

    /// Whether `data` is what stands at `position`.
    #[must_use]
    pub fn matches(position: u64, data: &[u8]) -> bool {
        data.chunks(Self::PERIOD)
            .enumerate()
            .all(|(i, piece)| Self::at(position + (i * Self::PERIOD) as u64).starts_with(piece))
    }
}

/// Sends the pattern from `position` on, at most `most` bytes and as many as fit.
fn send_pattern(session: &Session, slot: u32, position: &mut u64, most: u64) -> Result<u64, Errno> {
    let mut sent = 0;
    while sent < most {
        let piece = Pattern::at(*position);
        let piece = &piece[..piece.len().min(usize::try_from(most - sent).unwrap_or(usize::MAX))];
        match session.send(slot, &[IoSlice::new(piece)], false) {
            Ok(n) => {
                *position += n as u64;
                sent += n as u64;
                if n < piece.len() {
                    break;
                }
            }
            Err(Errno::AGAIN) => break,
            Err(e) => return Err(e),
        }
    }
    Ok(sent)
}

/// recv(2) into `buffer`: Ok(None) when there is nothing now.
fn receive<'b>(session: &Session, slot: u32, buffer: &'b mut [u8]) -> Result<Option<&'b [u8]>, Errno> {
    match session.receive(slot, &mut [IoSliceMut::new(buffer)], false) {
        Ok(n) => Ok(Some(&buffer[..n])),
        Err(Errno::AGAIN) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Opens a socket for the family of `address`.
fn socket_for(c: &mut Context<'_>, address: std::net::SocketAddr) -> Result<u32, Errno> {
    c.open(if address.is_ipv4() { kind::TCP4 } else { kind::TCP6 })
}

/// A listening socket; without one the failure is counted.
fn listener(c: &mut Context<'_>, address: std::net::SocketAddr, backlog: u32, stats: &Shared) -> Option<u32> {
    let opened = socket_for(c, address).and_then(|slot| {
        c.session.bind(slot, address, 0)?;
        c.session.listen(slot, backlog)?;
        Ok(slot)
    });
    opened.inspect_err(|errno| stats.borrow_mut().note_failure(*errno)).ok()
}

/// State by slot: slots are small numbers that come again.
struct BySlot<T>(Vec<Option<T>>);

impl<T> BySlot<T> {
    const fn new() -> Self {
        Self(Vec::new())
    }

    fn insert(&mut self, slot: u32, value: T) {
        let index = slot as usize;
        if self.0.len() <= index {
            self.0.resize_with(index + 1, || None);
        }
        self.0[index] = Some(value);
    }

    fn get(&mut self, slot: u32) -> Option<&mut T> {
        self.0.get_mut(slot as usize)?.as_mut()
    }

    fn remove(&mut self, slot: u32) -> Option<T> {
        self.0.get_mut(slot as usize)?.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pattern_knows_its_place() {
        let data = [Pattern::at(1000), Pattern::at(1000 + 65_521)].concat();
        assert!(Pattern::matches(1000, &data));
        assert!(!Pattern::matches(1001, &data));
        assert!(!Pattern::matches(1000 + 65_536, &data));
        let mut wrong = data;
        wrong[100_000] ^= 1;
        assert!(!Pattern::matches(1000, &wrong));
    }
}
