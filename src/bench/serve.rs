//! The servers that load is put on, each at a port of its own: [`Role`].

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::net::{Handle, Net, Ready};

/// Bytes read or written with one call.
const PIECE: usize = 64 * 1024;
/// How often a waiting server looks whether it is to stop.
const LOOK: Duration = Duration::from_millis(100);
/// Bytes of the header of a request to [`Role::Reply`] and [`Role::Once`].
pub const REQUEST_HEADER: usize = 8;
/// Longest answer that a request may ask for, in bytes.
const MAX_REPLY: u32 = 1 << 30;

/// What a server does. Its port is the first port plus the role's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Sends back what it gets, TCP and UDP.
    Echo = 0,
    /// Reads and forgets.
    Discard = 1,
    /// Writes as much as it can.
    Source = 2,
    /// A request is its own length and that of the answer (32 bits each, little-endian, the header included), then
    /// anything; the answer is that many bytes.
    Reply = 3,
    /// The same, and closes after one answer.
    Once = 4,
}

/// All of them.
pub const ROLES: [Role; 5] = [Role::Echo, Role::Discard, Role::Source, Role::Reply, Role::Once];

impl Role {
    /// Where it listens if the first port is that of `base`.
    #[must_use]
    pub fn at(self, base: SocketAddr) -> SocketAddr {
        SocketAddr::new(base.ip(), base.port().saturating_add(self as u16))
    }
}

/// The header of a request of `request` bytes for an answer of `reply` bytes.
#[must_use]
pub fn request_header(request: u32, reply: u32) -> [u8; REQUEST_HEADER] {
    let mut header = [0; REQUEST_HEADER];
    header[..4].copy_from_slice(&request.to_le_bytes());
    header[4..].copy_from_slice(&reply.to_le_bytes());
    header
}

/// One connection.
struct Peer {
    role: Role,
    /// Echoed bytes that found no room.
    pending: Vec<u8>,
    /// Bytes of an answer still to be written.
    owed: u64,
    header: [u8; REQUEST_HEADER],
    header_len: usize,
    /// Bytes of the request's body still to come, and of the answer to it.
    body_left: u64,
    reply: u32,
    /// An answer of [`Role::Once`] is on its way: close when it is written.
    last: bool,
}

enum Place {
    Listener(Role),
    Peer(Box<Peer>),
    Datagram,
}

/// The servers of one thread.
pub struct Server<N> {
    net: N,
    places: Vec<Option<Place>>,
    buf: Vec<u8>,
    zeros: Vec<u8>,
    ready: Vec<Ready>,
}

/// What to do with a connection after a look at it.
#[derive(PartialEq, Eq)]
enum Next {
    Keep,
    Close,
}

impl<N: Net> Server<N> {
    /// Listens for every role, from `base`'s port on.
    ///
    /// # Errors
    /// What can't be bound, with its address.
    pub fn new(mut net: N, base: SocketAddr) -> io::Result<Self> {
        let mut places = Vec::new();
        let at = |role: Role, e: io::Error| io::Error::new(e.kind(), format!("listen at {}: {e}", role.at(base)));
        for role in ROLES {
            let handle = net.listen(role.at(base)).map_err(|e| at(role, e))?;
            put(&mut places, handle, Place::Listener(role));
        }
        // A wildcard has no one source address for datagrams; the stacks choose by route, which is right for a bench.
        let handle = net.datagram(Some(Role::Echo.at(base)), None).map_err(|e| at(Role::Echo, e))?;
        put(&mut places, handle, Place::Datagram);
        Ok(Self { net, places, buf: vec![0; PIECE], zeros: vec![0; PIECE], ready: Vec::new() })
    }

    /// Serves until `stop` is raised.
    ///
    /// # Errors
    /// The stack is gone.
    pub fn run(&mut self, stop: &AtomicBool) -> io::Result<()> {
        while !stop.load(Ordering::Relaxed) {
            self.step(Some(LOOK))?;
        }
        Ok(())
    }

    /// One wait of at most `timeout`, and what follows from it.
    ///
    /// # Errors
    /// The stack is gone.
    pub fn step(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        let mut ready = std::mem::take(&mut self.ready);
        let waited = self.net.wait(timeout, &mut ready);
        let served = waited.and_then(|()| ready.iter().try_for_each(|&event| self.look(event)));
        self.ready = ready;
        served
    }

    fn look(&mut self, event: Ready) -> io::Result<()> {
        match self.places.get_mut(event.handle as usize).and_then(Option::as_mut) {
            Some(Place::Listener(role)) => {
                let role = *role;
                self.accept(event.handle, role)
            }
            Some(Place::Datagram) => {
                self.echo_datagrams(event.handle);
                Ok(())
            }
            Some(Place::Peer(_)) => {
                self.serve(event);
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn accept(&mut self, listener: Handle, role: Role) -> io::Result<()> {
        // Out of descriptors or slots: the rest waits in the backlog until the next one knocks.
        while let Ok(Some(handle)) = self.net.accept(listener) {
            let peer = Peer {
                role,
                pending: Vec::new(),
                owed: if role == Role::Source { u64::MAX } else { 0 },
                header: [0; REQUEST_HEADER],
                header_len: 0,
                body_left: 0,
                reply: 0,
                last: false,
            };
            put(&mut self.places, handle, Place::Peer(Box::new(peer)));
        }
        Ok(())
    }

    fn echo_datagrams(&mut self, handle: Handle) {
        // An ICMP error of an earlier answer is reported here once and means nothing to a server.
        while let Ok(Some((n, from))) = self.net.receive_from(handle, &mut self.buf) {
            // No room, or nobody there: lost, as datagrams are.
            let _ = self.net.send_to(handle, &self.buf[..n], Some(from));
        }
    }

    fn serve(&mut self, event: Ready) {
        let Self { net, places, buf, zeros, .. } = self;
        let Some(Some(Place::Peer(peer))) = places.get_mut(event.handle as usize) else { return };
        // Whatever breaks a connection ends that one only.
        let outcome = peer.progress(net, event, buf, zeros).unwrap_or(Next::Close);
        if outcome == Next::Close {
            net.close(event.handle);
            places[event.handle as usize] = None;
        }
    }
}

impl Peer {
    fn progress<N: Net>(&mut self, net: &mut N, event: Ready, buf: &mut [u8], zeros: &[u8]) -> io::Result<Next> {
        if event.writable && !self.write_more(net, event.handle, zeros)? {
            return Ok(Next::Keep);
        }
        if self.last {
            return Ok(Next::Close);
        }
        loop {
            // What can't be answered is not read: the peer's window closes.
            if !self.pending.is_empty() || (self.owed > 0 && self.role != Role::Source) {
                return Ok(Next::Keep);
            }
            let n = match net.read(event.handle, buf)? {
                None => return Ok(Next::Keep),
                Some(0) => return Ok(Next::Close),
                Some(n) => n,
            };
            match self.role {
                Role::Echo => self.echo(net, event.handle, &buf[..n])?,
                Role::Reply | Role::Once => self.requests(&buf[..n])?,
                Role::Discard | Role::Source => {}
            }
            if self.owed > 0 && !self.write_more(net, event.handle, zeros)? {
                return Ok(Next::Keep);
            }
            if self.last {
                return Ok(Next::Close);
            }
            if n < buf.len() && !event.ended {
                return Ok(Next::Keep);
            }
        }
    }

    fn echo<N: Net>(&mut self, net: &mut N, handle: Handle, bytes: &[u8]) -> io::Result<()> {
        let mut done = 0;
        while done < bytes.len() {
            match net.write(handle, &bytes[done..])? {
                Some(n) => done += n,
                None => break,
            }
        }
        self.pending.extend_from_slice(&bytes[done..]);
        Ok(())
    }

    /// Counts requests in what came; answers are owed from here on.
    fn requests(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            if self.body_left == 0 {
                let n = bytes.len().min(REQUEST_HEADER - self.header_len);
                self.header[self.header_len..self.header_len + n].copy_from_slice(&bytes[..n]);
                self.header_len += n;
                bytes = &bytes[n..];
                if self.header_len < REQUEST_HEADER {
                    return Ok(());
                }
                let word = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|i| self.header[at + i]));
                let (length, reply) = (word(0), word(4));
                if (length as usize) < REQUEST_HEADER || reply > MAX_REPLY {
                    return Err(io::ErrorKind::InvalidData.into());
                }
                self.body_left = u64::from(length) - REQUEST_HEADER as u64;
                self.reply = reply;
            }
            let n = usize::try_from(self.body_left).unwrap_or(usize::MAX).min(bytes.len());
            bytes = &bytes[n..];
            self.body_left -= n as u64;
            if self.body_left == 0 {
                self.header_len = 0;
                self.owed += u64::from(self.reply);
                self.last |= self.role == Role::Once;
            }
        }
        Ok(())
    }

    /// Writes what is owed. False: there was no room for all.
    fn write_more<N: Net>(&mut self, net: &mut N, handle: Handle, zeros: &[u8]) -> io::Result<bool> {
        while !self.pending.is_empty() {
            match net.write(handle, &self.pending)? {
                Some(n) => drop(self.pending.drain(..n)),
                None => return Ok(false),
            }
        }
        while self.owed > 0 {
            let n = usize::try_from(self.owed).unwrap_or(usize::MAX).min(zeros.len());
            match net.write(handle, &zeros[..n])? {
                Some(n) if self.role == Role::Source => debug_assert!(n > 0),
                Some(n) => self.owed -= n as u64,
                None => return Ok(false),
            }
        }
        Ok(true)
    }
}

fn put(places: &mut Vec<Option<Place>>, handle: Handle, place: Place) {
    let at = handle as usize;
    if places.len() <= at {
        places.resize_with(at + 1, || None);
    }
    places[at] = Some(place);
}
