//! What reading and writing cost the program alone, copying and in place: no engine runs, this plays it.

use std::hint::black_box;
use std::io::{IoSlice, IoSliceMut, Write};
use std::sync::atomic::Ordering;

use sidestep_client::Session;
use sidestep_client::net::{Client, TcpStream};
use sidestep_client::shm::slot::{kind, status};

use crate::clock::VirtualClock;
use crate::local::{LocalConfig, LocalEngine, LocalHost};

/// A connection without a peer.
pub struct Program {
    /// Keeps the memory.
    _engine: LocalHost,
    client: Client,
    stream: TcpStream,
    slot: u32,
    buffer: Vec<u8>,
}

impl Program {
    /// With messages of `size` bytes.
    ///
    /// # Errors
    /// No descriptor left.
    pub fn new(size: usize) -> anyhow::Result<Self> {
        let config = LocalConfig::new("10.0.0.1/24".parse().map_err(anyhow::Error::msg)?).seeded(1);
        let engine = LocalEngine::in_memory(&config, VirtualClock::default())?;
        let client = Client::over(engine.attach(0)?);
        let slot = client.session().open(kind::TCP4)?;
        let program =
            Self { stream: TcpStream::from_slot(&client, slot), _engine: engine, client, slot, buffer: vec![0; size] };
        if let Some(shared) = program.session().region().slot(slot) {
            shared.status.store(status::OPEN | status::CONNECTED, Ordering::Release);
        }
        Ok(program)
    }

    fn session(&self) -> &Session {
        self.client.session()
    }

    /// A message has arrived, and what was sent is acknowledged.
    fn turn(&self) {
        if let Some(shared) = self.session().region().slot(self.slot) {
            shared.rx_tail.fetch_add(self.buffer.len() as u64, Ordering::Release);
            shared.tx_head.store(shared.tx_tail.load(Ordering::Acquire), Ordering::Release);
        }
    }

    /// Receives a message and sends it back; `in_place` copies once instead of twice.
    ///
    /// # Errors
    /// Some of it is missing.
    pub fn echo(&mut self, in_place: bool) -> anyhow::Result<()> {
        self.turn();
        let done = if in_place {
            let received = self.stream.peek_slices()?;
            let mut room = self.stream.reserve(received.len())?;
            received.slices().into_iter().try_for_each(|part| room.write_all(part))?;
            let done = room.written();
            room.commit(done)?;
            received.consume(done)?;
            done
        } else {
            let n = self.client.session().receive(self.slot, &mut [IoSliceMut::new(&mut self.buffer)], false)?;
            self.client.session().send(self.slot, &[IoSlice::new(&self.buffer[..n])], false)?
        };
        anyhow::ensure!(done == self.buffer.len(), "{done} bytes came back");
        Ok(())
    }

    /// Receives a message and looks at its first 16 bytes, as a program does that passes on or counts.
    ///
    /// # Errors
    /// Some of it is missing.
    pub fn look(&mut self, in_place: bool) -> anyhow::Result<()> {
        self.turn();
        let done = if in_place {
            let received = self.stream.peek_slices()?;
            let [first, second] = received.slices();
            let head: Vec<u8> =
                if first.len() < 16 { first.iter().chain(second).take(16).copied().collect() } else { vec![] };
            black_box(if head.is_empty() { &first[..16] } else { &head });
            let done = received.len();
            received.consume(done)?;
            done
        } else {
            let n = self.client.session().receive(self.slot, &mut [IoSliceMut::new(&mut self.buffer)], false)?;
            black_box(&self.buffer[..16]);
            n
        };
        anyhow::ensure!(done == self.buffer.len(), "{done} bytes came in");
        Ok(())
    }
}
