//! Many verbs, one doorbell: what belongs together is told to each shard once.

use core::net::SocketAddr;
use std::io::{IoSlice, IoSliceMut};

use rustix::io::Errno;
use sidestep_shm::Slot;
use sidestep_shm::datagram::Header;
use sidestep_shm::layout::MAX_SHARDS;

use crate::datagram::DatagramOptions;
use crate::session::Session;

const _: () = assert!(MAX_SHARDS <= u64::BITS);

/// The verbs that move bytes, on any sockets of a session. Slots are marked at once, so that a shard that is awake may
/// see them already; shards that sleep are woken when the batch ends, once each, and those of an engine in this process
/// are turned then. None of these waits.
#[derive(Debug)]
#[must_use = "the shards are told when it is dropped"]
pub struct Batch<'s> {
    session: &'s Session,
    /// Shards that have something to look at; and those of them that should do so soon.
    noted: u64,
    soon: u64,
}

impl Session {
    /// A batch of verbs. Drop it to have them done.
    pub fn batch(&self) -> Batch<'_> {
        Batch { session: self, noted: 0, soon: 0 }
    }
}

impl Batch<'_> {
    fn note(&mut self, shared: &Slot, slot: u32, soon: bool) {
        let bit = 1 << self.session.note(shared, slot);
        self.noted |= bit;
        self.soon |= if soon { bit } else { 0 };
    }

    /// Has done what there is so far. Before a wait: what it waits for may depend on it.
    pub fn flush(&mut self) {
        let mut left = core::mem::take(&mut self.noted);
        while left != 0 {
            let shard = left.trailing_zeros();
            left &= left - 1;
            self.session.ring(shard, self.soon & 1 << shard != 0);
        }
        self.soon = 0;
    }

    /// [`Session::receive`].
    ///
    /// # Errors
    /// As there.
    pub fn receive(&mut self, slot: u32, bufs: &mut [IoSliceMut<'_>], peek: bool) -> Result<usize, Errno> {
        self.session.receive_once(slot, bufs, peek, |shared| self.note(shared, slot, false))
    }

    /// [`Session::send`].
    ///
    /// # Errors
    /// As there.
    pub fn send(&mut self, slot: u32, bufs: &[IoSlice<'_>], more: bool) -> Result<usize, Errno> {
        self.session.send_telling(slot, bufs, (more, false), |shared| self.note(shared, slot, true))
    }

    /// [`Session::receive_datagram`].
    ///
    /// # Errors
    /// As there.
    pub fn receive_datagram(
        &mut self,
        slot: u32,
        bufs: &mut [IoSliceMut<'_>],
        peek: bool,
    ) -> Result<(usize, Header), Errno> {
        self.session.receive_datagram_once(slot, bufs, peek, |shared| self.note(shared, slot, false))
    }

    /// [`Session::send_datagram`].
    ///
    /// # Errors
    /// As there.
    pub fn send_datagram(
        &mut self,
        slot: u32,
        bufs: &[IoSlice<'_>],
        to: Option<SocketAddr>,
        extra: &DatagramOptions,
    ) -> Result<usize, Errno> {
        self.session.send_datagram_telling(slot, bufs, (to, extra), |shared| self.note(shared, slot, true))
    }
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        self.flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{Fake, GEOMETRY};
    use sidestep_shm::slot::kind;

    #[test]
    fn every_shard_is_rung_once_for_all_of_its_sockets() {
        let engine = Fake::start();
        let session = Session::attach(&engine.name, 0).unwrap();
        let slots: Vec<u32> = (0..10)
            .map(|_| {
                let slot = session.open(kind::TCP4).unwrap();
                session.connect(slot, "192.0.2.1:80".parse().unwrap()).unwrap();
                engine.establish(slot);
                slot
            })
            .collect();
        let udp = session.open(kind::UDP4).unwrap();
        session.bind(udp, "192.0.2.2:53".parse().unwrap(), 0).unwrap();
        let mut shards: Vec<u32> = (0..GEOMETRY.shards).collect();
        shards.iter().for_each(|&s| {
            engine.commands(s);
            engine.rings(s);
            engine.close_door(s);
        });
        let mut batch = session.batch();
        for &slot in &slots {
            assert_eq!(batch.send(slot, &[IoSlice::new(b"hello")], false), Ok(5));
        }
        let to = Some("192.0.2.9:7".parse().unwrap());
        for _ in 0..5 {
            assert_eq!(batch.send_datagram(udp, &[IoSlice::new(b"?")], to, &DatagramOptions::default()), Ok(1));
        }
        let mut buffer = [0; 8];
        assert_eq!(batch.receive(slots[0], &mut [IoSliceMut::new(&mut buffer)], false), Err(Errno::AGAIN));
        let found = batch.receive_datagram(udp, &mut [IoSliceMut::new(&mut buffer)], false);
        assert_eq!(found.unwrap_err(), Errno::AGAIN);
        assert_eq!(shards.iter().map(|&s| engine.rings(s)).sum::<u64>(), 0, "nobody is woken before the end");
        drop(batch);
        shards.retain(|&s| engine.rings(s) == 1);
        assert_eq!(shards.len(), GEOMETRY.shards as usize, "each once");
        let marked = shards.iter().map(|&s| engine.commands(s).len()).sum::<usize>();
        assert_eq!(marked, slots.len() + 1);
    }
}
