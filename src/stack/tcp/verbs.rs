//! What owners of sockets ask for.

use super::connection::{Connection, Setup};
use super::flow::{FlowKey, FlowRef};
use super::listen::Listener;
use super::{Context, ReadyId, Tcp};
use crate::{Error, Instant, ListenAddress, SocketId, Stream, TcpInfo, TcpOptions, TcpState, Token};
use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::net::SocketAddr;

/// Tells a listener's [`SocketId`] from a connection's.
const LISTENER: u32 = 1 << 31;
/// What a record without an owner is shown with.
const NOBODY: Token = Token(u64::MAX);

impl Tcp {
    /// Listens. `rx_capacity`: what streams of [`crate::Host::accept`] will have, in bytes.
    pub fn listen(
        &mut self,
        token: Token,
        at: ListenAddress,
        backlog: u32,
        rx_capacity: u32,
        options: TcpOptions,
        reuse_port: bool,
    ) -> Result<SocketId, Error> {
        if at.port == 0 {
            return Err(Error::AddressNotAvailable);
        }
        let options = self.share(options);
        let here = self.ports.entry(at.port).or_default();
        let taken = here.iter().filter_map(|index| self.listeners.get(*index)).any(|listener| {
            let shared = reuse_port && listener.reuse_port;
            // As Linux: an exact address beside "any" needs SO_REUSEPORT too.
            listener.overlaps(&at) && !shared
        });
        if taken {
            return Err(Error::AddressInUse);
        }
        let (half_open, fast_opening) = (0, 0);
        let listener = Listener { token, at, backlog, rx_capacity, options, reuse_port, half_open, fast_opening };
        let (index, generation) = self.listeners.insert(listener);
        here.push(index);
        Ok(SocketId { index: index | LISTENER, generation })
    }

    /// Stops listening; half-open connections go with it.
    pub fn unlisten(&mut self, id: SocketId) {
        let index = id.index & !LISTENER;
        if id.index & LISTENER == 0 || !self.listeners.is_current(index, id.generation) {
            return;
        }
        let half_open: Vec<u32> =
            self.half_open.iter().filter(|(_, _, h)| h.listener == index).map(|(index, _, _)| index).collect();
        for index in half_open {
            self.drop_half_open(index);
        }
        if let Some(listener) = self.listeners.remove(index)
            && let Some(here) = self.ports.get_mut(&listener.at.port)
        {
            here.retain(|other| *other != index);
            if here.is_empty() {
                self.ports.remove(&listener.at.port);
            }
        }
    }

    /// Opens a connection. A local port of 0 is chosen here.
    pub fn connect(
        &mut self,
        cx: &mut Context<'_>,
        token: Token,
        local: SocketAddr,
        remote: SocketAddr,
        stream: Stream,
        options: TcpOptions,
    ) -> Result<(SocketId, SocketAddr), Error> {
        if self.connections.len() >= self.limits.connections {
            return Err(Error::NoBuffers);
        }
        if remote.port() == 0 || local.is_ipv4() != remote.is_ipv4() || super::listen::is_unanswerable(remote.ip()) {
            return Err(Error::AddressNotAvailable);
        }
        let local = if local.port() == 0 { self.choose_port(cx.now, local, remote)? } else { local };
        let key = FlowKey::new(local, remote);
        let hash = key.table_hash(self.secrets.flow);
        let mut iss = self.secrets.initial_sequence(&key, cx.now);
        match self.find(&key, hash) {
            None => {}
            Some(FlowRef::TimeWait(index)) => {
                let record = self.time_waits.get(index).filter(|record| record.is_reusable(cx.now));
                let least = record.ok_or(Error::AddressNotAvailable)?.reuse_sequence();
                if iss.wrapping_sub(least).cast_signed() < 0 {
                    iss = least;
                }
                self.drop_time_wait(index);
            }
            Some(_) => return Err(Error::AddressNotAvailable),
        }
        let options = self.share(options);
        let setup = Setup {
            key,
            hash,
            stream: Stream { token, ..stream },
            options: &options,
            iss,
            timestamp_offset: self.secrets.timestamp_offset(&key),
            mtu: cx.mtu_to(remote.ip(), stream.rx_capacity),
            path_mtu: cx.path_mtu(remote.ip(), cx.mtu_to(remote.ip(), stream.rx_capacity), &options),
            loopback: cx.is_loopback(remote.ip()),
        };
        let mut connection = Box::new(Connection::active(&setup, &self.config, cx.now));
        if let Some((stage, mss)) = self.fast_stage(options.fast_open > 0, options.fast_open_no_cookie, remote.ip()) {
            connection.rare.get_or_insert_default().fast_open = Some(stage);
            // What the server said last time, or the most that there may be (as Linux).
            connection.mss = mss.unwrap_or(u16::MAX).min(connection.announced_mss);
        }
        // The caller has the answer already.
        connection.changed = false;
        let (index, generation) = self.connections.insert(connection);
        self.flows.insert(hash, FlowRef::Connection(index));
        self.settle(cx.now, index);
        Ok((SocketId { index, generation }, local))
    }

    /// The owner wrote up to `tx_tail` bytes of its stream.
    pub fn send(&mut self, now: Instant, id: SocketId, tx_tail: u64) -> Result<(), Error> {
        let config = self.config;
        let written = self.owned(id)?.write(now, tx_tail, &config);
        self.settle(now, id.index);
        if written { Ok(()) } else { Err(Error::MessageTooLong) }
    }

    /// A record of the owner's ends after `end` bytes of its stream (MSG_EOR). To be said before [`Self::send`] tells of
    /// what follows.
    pub fn end_record(&mut self, id: SocketId, end: u64) -> Result<(), Error> {
        self.owned(id)?.end_record(end);
        Ok(())
    }

    /// The owner read up to `rx_head` bytes of its stream.
    pub fn received(&mut self, now: Instant, id: SocketId, rx_head: u64) -> Result<(), Error> {
        let connection = self.owned(id)?;
        let read = connection.read(now, rx_head);
        // Most reads change nothing that the peer needs to know.
        if connection.ack_due {
            self.settle(now, id.index);
        }
        if read { Ok(()) } else { Err(Error::MessageTooLong) }
    }

    /// The owner writes no more: a FIN after what it wrote.
    pub fn finish(&mut self, now: Instant, id: SocketId) -> Result<(), Error> {
        self.owned(id)?.finish();
        self.settle(now, id.index);
        Ok(())
    }

    /// The owner is gone. What it wrote is still sent; data that it left unread means RST. The last event, with
    /// `released`, is the only one that follows.
    pub fn close(&mut self, now: Instant, id: SocketId) -> Result<(), Error> {
        let fin_timeout = self.config.fin_timeout;
        self.owned(id)?.close(now, fin_timeout);
        self.settle(now, id.index);
        Ok(())
    }

    /// Ends the connection with a RST.
    pub fn abort(&mut self, now: Instant, id: SocketId) -> Result<(), Error> {
        let connection = self.owned(id)?;
        connection.orphan = true;
        connection.abort(None);
        self.settle(now, id.index);
        Ok(())
    }

    /// Sets the options of a connection, or those that a listener's connections begin with.
    pub fn set_options(&mut self, now: Instant, id: SocketId, options: TcpOptions) -> Result<(), Error> {
        if id.index & LISTENER != 0 {
            let index = id.index & !LISTENER;
            if !self.listeners.is_current(index, id.generation) {
                return Err(Error::NoSuchSocket);
            }
            let options = self.share(options);
            self.listeners.get_mut(index).ok_or(Error::NoSuchSocket)?.options = options;
            return Ok(());
        }
        let config = self.config;
        let congestion = options.congestion.or(self.owned(id)?.options.congestion);
        let options = self.share(TcpOptions { congestion, ..options });
        self.owned(id)?.set_options(options, &config, now);
        self.settle(now, id.index);
        Ok(())
    }

    pub fn info(&self, id: SocketId, now: Instant) -> Result<TcpInfo, Error> {
        let index = id.index & !LISTENER;
        let info = if id.index & LISTENER != 0 {
            self.listeners.get(index).filter(|_| self.listeners.is_current(index, id.generation)).map(Listener::info)
        } else {
            let connection = self.connections.get(index);
            connection
                .filter(|c| self.connections.is_current(index, id.generation) && !c.released)
                .map(|connection| connection.info(&self.config, now))
        };
        info.ok_or(Error::NoSuchSocket)
    }

    pub fn is_quiet(&self, id: SocketId) -> bool {
        let current = self.connections.is_current(id.index, id.generation);
        self.connections
            .get(id.index)
            .is_some_and(|c| current && c.board.is_empty() && c.assembler.is_empty() && c.una >= c.tail)
    }

    /// Shows everything there is: listeners, connections, TIME-WAIT. Records that nobody owns have `u64::MAX` as token.
    pub fn for_each(&self, now: Instant, f: &mut dyn FnMut(Token, SocketId, TcpInfo)) {
        for (index, generation, listener) in self.listeners.iter() {
            f(listener.token, SocketId { index: index | LISTENER, generation }, listener.info());
        }
        for (index, generation, connection) in self.connections.iter() {
            let token = if connection.released { NOBODY } else { connection.token };
            f(token, SocketId { index, generation }, connection.info(&self.config, now));
        }
        // These have no numbers but their addresses; those of a listener that never moved are as empty.
        for (index, generation, record) in self.time_waits.iter() {
            f(NOBODY, SocketId { index, generation }, record.info());
        }
        for (index, generation, half_open) in self.half_open.iter() {
            f(NOBODY, SocketId { index, generation }, half_open.info());
        }
    }

    /// RFC 6056: from an unguessable place upwards. With RSS, a port whose answers come to this shard's queue; if
    /// there is none, any, because correctness doesn't rest on it.
    fn choose_port(&mut self, now: Instant, local: SocketAddr, remote: SocketAddr) -> Result<SocketAddr, Error> {
        let (first, last) = self.ephemeral_ports;
        let count = u32::from(last.saturating_sub(first)) + 1;
        let start = self.secrets.port_to_begin(&FlowKey::new(local, remote)) % count;
        let mut second_choice = None;
        for i in 0..count {
            #[allow(clippy::cast_possible_truncation)]
            let port = first + ((start + i) % count) as u16;
            if port == 0 || self.ports.contains_key(&port) {
                continue;
            }
            let candidate = SocketAddr::new(local.ip(), port);
            if candidate == remote {
                // It would connect to itself. A program may ask for that by bind(); nobody wants it by chance.
                continue;
            }
            let key = FlowKey::new(candidate, remote);
            let free = match self.find(&key, key.table_hash(self.secrets.flow)) {
                None => true,
                Some(FlowRef::TimeWait(index)) => {
                    // Usable, but only when nothing better is left.
                    if self.time_waits.get(index).is_some_and(|record| record.is_reusable(now)) {
                        second_choice.get_or_insert(candidate);
                    }
                    false
                }
                Some(_) => false,
            };
            if !free {
                continue;
            }
            match &self.rss {
                Some(rss) if rss.queue_of(remote, candidate).is_some_and(|queue| queue != rss.queue) => {
                    second_choice = Some(candidate);
                }
                _ => return Ok(candidate),
            }
        }
        second_choice.ok_or(Error::AddressNotAvailable)
    }

    /// The same options for many connections are kept once.
    fn share(&mut self, options: TcpOptions) -> Arc<TcpOptions> {
        if *self.options != options {
            self.options = Arc::new(options);
        }
        Arc::clone(&self.options)
    }

    /// A connection that still has an owner.
    /// See [`Connection::has_unread`].
    pub fn has_unread(&mut self, id: SocketId) -> bool {
        self.owned(id).is_ok_and(|connection| connection.has_unread())
    }

    fn owned(&mut self, id: SocketId) -> Result<&mut Connection, Error> {
        let connection = self.current(ReadyId { index: id.index, generation: id.generation });
        connection.filter(|c| !c.orphan && !c.released && c.state != TcpState::Closed).ok_or(Error::NoSuchSocket)
    }
}
