//! TCP Fast Open (RFC 7413): data in the SYN, for those who can show by a cookie that they own their address.
//!
//! ```text
//!   server: SYN + cookie request ─▶ SYN-ACK + cookie          client: SYN-ACK + cookie ─▶ Cookies, by server
//!           SYN + good cookie    ─▶ a connection in SYN-RECEIVED that is accepted, answers and reads at once
//!           SYN + bad cookie     ─▶ as without, and the right cookie
//! ```
//!
//! A connection that was opened so has a record of its own before its peer has shown anything but the cookie; how many
//! there may be is the listener's to say (TCP_FASTOPEN; RFC 7413 5.1).

use super::connection::{Agreed, Connection, FIRST, ORIGIN, Setup};
use super::flow::{FlowKey, FlowRef};
use super::recovery::Scoreboard;
use super::segment::{FIN, SYN, Segment};
use super::{Context, Tcp};
use crate::siphash::SipKey;
use crate::{Event, Instant, SocketId, TcpConfig, TcpState};
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use core::net::IpAddr;

/// Bytes of a cookie (RFC 7413 2): least, most, and ours.
const LEAST: usize = 4;
const MOST: usize = 16;
const OURS: usize = 8;
/// Bytes of options that a SYN may have beside its data; as Linux, whatever it has.
const MOST_OPTIONS: u32 = 40;
/// Servers whose cookie is kept.
const MOST_SERVERS: usize = 1024;

/// A cookie, or a request for one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cookie {
    bytes: [u8; MOST],
    len: u8,
    /// The option's number of the time before RFC 7413, which peers still use.
    pub experimental: bool,
}

impl Cookie {
    /// None: no cookie has that length.
    pub fn new(bytes: &[u8], experimental: bool) -> Option<Self> {
        let fits = bytes.is_empty() || (LEAST..=MOST).contains(&bytes.len()) && bytes.len().is_multiple_of(2);
        let mut cookie = Self { bytes: [0; MOST], len: 0, experimental };
        cookie.bytes.get_mut(..bytes.len()).filter(|_| fits)?.copy_from_slice(bytes);
        #[allow(clippy::cast_possible_truncation)]
        {
            cookie.len = bytes.len() as u8;
        }
        Some(cookie)
    }

    pub const fn is_request(&self) -> bool {
        self.len == 0
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    /// Bytes of the option, padded to whole words.
    pub const fn option_len(&self) -> usize {
        let head = if self.experimental { 4 } else { 2 };
        (head + self.len as usize).next_multiple_of(4)
    }
}

/// What a connection has to do with fast open, until its handshake is complete.
#[derive(Debug)]
pub(super) enum Stage {
    /// Ours: what its SYN carries, and what the answer brought.
    Client { sends: Option<Cookie>, learned: Option<Cookie>, carried: u32 },
    /// Opened by a cookie at this listener.
    Server { listener: u32 },
}

/// Cookies that servers gave us.
#[derive(Debug, Default)]
pub(super) struct Cookies(BTreeMap<IpAddr, Known>);

#[derive(Clone, Copy, Debug)]
struct Known {
    /// None: it wanted none.
    cookie: Option<Cookie>,
    /// Its segment size: nothing else would tell how long the next SYN may be.
    mss: u16,
}

impl Cookies {
    fn keep(&mut self, server: IpAddr, cookie: Option<Cookie>, mss: u16) {
        if self.0.len() >= MOST_SERVERS && !self.0.contains_key(&server) {
            self.0.pop_first();
        }
        let known = self.0.entry(server).or_insert(Known { cookie: None, mss });
        *known = Known { cookie: cookie.or(known.cookie), mss };
    }
}

impl Tcp {
    /// The cookie of a client (RFC 7413 4.1.2), as Linux makes it: servers with one key know each other's.
    fn cookie_of(&self, key: &FlowKey) -> Cookie {
        let secret = self.config.fast_open_key.map_or(self.secrets.fast_open, SipKey::new);
        let mut hosts = [0; 32];
        let hosts = match (key.remote, key.local) {
            (IpAddr::V4(client), IpAddr::V4(server)) => {
                hosts[..4].copy_from_slice(&client.octets());
                hosts[4..8].copy_from_slice(&server.octets());
                &hosts[..8]
            }
            (client, server) => {
                hosts[..16].copy_from_slice(&v6(client));
                hosts[16..].copy_from_slice(&v6(server));
                &hosts[..]
            }
        };
        let mut cookie = Cookie { bytes: [0; MOST], len: OURS as u8, experimental: false };
        cookie.bytes[..OURS].copy_from_slice(&secret.hash(hosts).to_le_bytes());
        cookie
    }

    /// What a SYN's option comes to: it opens the connection (`Err`), or its SYN-ACK has a cookie, or neither.
    pub(super) fn on_fast_open(
        &self,
        key: &FlowKey,
        segment: &Segment<'_>,
        listener: u32,
    ) -> Result<Option<Cookie>, ()> {
        let allowed = self.config.fast_open;
        let Some(listener) = self.listeners.get(listener).filter(|_| allowed.server) else { return Ok(None) };
        let most = match u32::from(listener.options.fast_open) {
            0 if allowed.every_listener => listener.backlog,
            most => most,
        };
        // RFC 7413 5.1: with too many of them it is as if nobody had asked.
        let wanted = segment.fast_open.is_some() || !segment.payload.is_empty();
        if most == 0 || !wanted || listener.fast_opening >= most {
            return Ok(None);
        }
        if allowed.without_cookie || listener.options.fast_open_no_cookie {
            return Err(());
        }
        let Some(shown) = segment.fast_open else { return Ok(None) };
        let right = self.cookie_of(key);
        if right.bytes() == shown.bytes() {
            Err(())
        } else {
            Ok(Some(Cookie { experimental: shown.experimental, ..right }))
        }
    }

    /// RFC 7413 4.2.2: a connection of a SYN. False: there is no room for one.
    pub(super) fn open_fast(
        &mut self,
        cx: &mut Context<'_>,
        key: FlowKey,
        hash: u64,
        segment: &Segment<'_>,
        listener_index: u32,
        (iss, agreed): (u32, Agreed),
    ) -> bool {
        if self.connections.len() >= self.limits.connections {
            return false;
        }
        let Some(listener) = self.listeners.get_mut(listener_index) else { return false };
        let (local, remote) = (key.local(), key.remote());
        let Some(stream) = cx.host.accept(listener.token, local, remote) else { return false };
        let mtu = cx.mtu_to(remote.ip(), stream.rx_capacity);
        let setup = Setup {
            key,
            hash,
            stream,
            options: &listener.options,
            iss,
            timestamp_offset: self.secrets.timestamp_offset(&key),
            mtu,
            path_mtu: cx.path_mtu(remote.ip(), mtu, &listener.options),
            loopback: cx.is_loopback(remote.ip()),
        };
        listener.fast_opening += 1;
        let token = listener.token;
        let mut connection = Box::new(Connection::passive(&setup, &self.config, segment.seq, &agreed, cx.now));
        connection.begin_fast(listener_index, segment);
        let (index, generation) = self.connections.insert(connection);
        self.flows.insert(hash, FlowRef::Connection(index));
        cx.counters.tcp_opened_passive += 1;
        let socket = SocketId { index, generation };
        self.push_event(Event::Accepted { listener: token, stream: stream.token, socket, local, remote });
        if let Some(connection) = self.connections.get_mut(index) {
            connection.take_syn_data(cx, &self.config, segment);
        }
        self.settle(cx.now, index);
        true
    }

    /// What the SYN of a connection of ours is to carry. None: the program or the configuration don't want it.
    pub(super) fn fast_stage(&self, wanted: bool, no_cookie: bool, server: IpAddr) -> Option<(Stage, Option<u16>)> {
        if !wanted || !self.config.fast_open.client {
            return None;
        }
        let known = self.cookies.0.get(&server);
        let sends = match known.and_then(|known| known.cookie) {
            Some(cookie) => Some(cookie),
            None if no_cookie || self.config.fast_open.client_without_cookie => None,
            None => Cookie::new(&[], false),
        };
        Some((Stage::Client { sends, learned: None, carried: 0 }, known.map(|k| k.mss)))
    }

    /// How many bytes a SYN to that server may carry, as far as the server is the bound. None: it gave no cookie, and one
    /// is needed.
    pub fn fast_open_room(&self, server: IpAddr) -> Option<u32> {
        let allowed = self.config.fast_open;
        let known = self.cookies.0.get(&server);
        let may = allowed.client && (allowed.client_without_cookie || known.is_some_and(|k| k.cookie.is_some()));
        may.then(|| known.map_or(u32::MAX, |known| u32::from(known.mss).saturating_sub(MOST_OPTIONS)))
    }

    /// After a connection has changed: one that is through its handshake needs nothing of this any more.
    pub(super) fn end_fast(&mut self, index: u32) {
        let Some(connection) = self.connections.get_mut(index) else { return };
        if matches!(connection.state, TcpState::SynSent | TcpState::SynReceived) {
            return;
        }
        match connection.take_fast_open() {
            Some(Stage::Client { carried: 1.., learned: None, .. })
                if connection.retransmits > 0 && !connection.syn_data =>
            {
                // RFC 7413 4.1.3: something on the way swallows SYNs with data. Ask before the next one.
                self.cookies.0.remove(&connection.key.remote);
            }
            Some(Stage::Client { learned, .. }) if connection.state != TcpState::Closed => {
                self.cookies.keep(connection.key.remote, learned, connection.mss);
            }
            Some(Stage::Server { listener }) => {
                if let Some(listener) = self.listeners.get_mut(listener) {
                    listener.fast_opening = listener.fast_opening.saturating_sub(1);
                }
            }
            _ => {}
        }
    }
}

impl Connection {
    /// Whether a cookie opened it, and its peer's ACK is still to come.
    pub fn is_opening_fast(&self) -> bool {
        self.state == TcpState::SynReceived && matches!(self.fast_open(), Some(Stage::Server { .. }))
    }

    fn begin_fast(&mut self, listener: u32, segment: &Segment<'_>) {
        self.state = TcpState::SynReceived;
        self.una = ORIGIN;
        self.nxt = ORIGIN;
        self.syn_due = true;
        self.delivered = 0;
        self.rare.get_or_insert_default().fast_open = Some(Stage::Server { listener });
        // The window of a SYN is not scaled.
        self.send_edge = FIRST + u64::from(segment.window);
        self.max_window = u64::from(segment.window);
        self.first_window = u16::try_from(self.rx_edge - FIRST).unwrap_or(u16::MAX);
    }

    /// The data of a peer's SYN.
    fn take_syn_data(&mut self, cx: &mut Context<'_>, config: &TcpConfig, segment: &Segment<'_>) {
        if segment.payload.is_empty() {
            return;
        }
        let mut data = *segment;
        data.flags &= !(SYN | FIN);
        self.on_text(cx, config, FIRST, &data);
        self.syn_data = self.rx_nxt > FIRST;
        // The SYN-ACK says it.
        self.ack_due = false;
    }

    /// What our SYN carries: a cookie or a request for one, and bytes of the stream.
    pub fn syn_load(&self) -> (Option<Cookie>, u32) {
        let Some(Stage::Client { sends, carried: 0, .. }) = self.fast_open() else { return (None, 0) };
        if self.nxt > ORIGIN {
            // RFC 7413 4.1.3: a SYN that goes again goes without; something on the way may not like it.
            return (None, 0);
        }
        let room = u32::from(self.mss).saturating_sub(MOST_OPTIONS);
        let waits = u32::try_from(self.tail - FIRST).unwrap_or(u32::MAX).min(room);
        match sends {
            Some(cookie) if cookie.is_request() => (Some(*cookie), 0),
            // Without data the cookie says nothing.
            Some(cookie) => (Some(*cookie), waits),
            None => (None, waits),
        }
    }

    /// Our SYN left with so many bytes.
    pub fn on_syn_load(&mut self, len: u32, now: Instant) {
        if let Some(Stage::Client { carried, .. }) = self.fast_open_mut().filter(|_| len > 0) {
            *carried = len;
            self.board.push(FIRST, len, now);
            self.nxt = FIRST + u64::from(len);
        }
    }

    /// The SYN-ACK came: `ack` is its position. What the SYN carried and the server didn't take goes again
    /// (RFC 7413 4.2.1), and its cookie is kept.
    pub fn on_fast_answer(&mut self, segment: &Segment<'_>, ack: u64) {
        let Some(Stage::Client { sends, learned, carried }) = self.fast_open_mut() else { return };
        if let Some(cookie) = segment.fast_open.filter(|cookie| !cookie.is_request() && sends.is_some()) {
            *learned = Some(cookie);
        }
        // As Linux tells it: all of it, or it doesn't count.
        self.syn_data = *carried > 0 && ack == FIRST + u64::from(*carried);
    }

    /// The answer to a SYN with data acknowledges up to `ack`: what it left goes again as if it had never been sent.
    pub fn on_syn_data_answer(&mut self, ack: u64, now: Instant) {
        self.board = Scoreboard::new();
        self.una = ack.max(FIRST);
        self.nxt = self.una;
        self.small_end = ORIGIN;
        self.stalled_since = now;
    }
}

fn v6(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cookies_have_an_even_length_within_bounds() {
        assert!(Cookie::new(&[], false).is_some_and(|c| c.is_request() && c.option_len() == 4));
        assert!([2, 3, 5, 17, 18, 40].iter().all(|n| Cookie::new(&[7; 40][..*n], false).is_none()));
        for (len, option) in [(4, 8), (8, 12), (16, 20)] {
            let cookie = Cookie::new(&[7; 16][..len], false).unwrap();
            assert_eq!((cookie.bytes().len(), cookie.option_len()), (len, option));
        }
        assert_eq!(Cookie::new(&[7; 8], true).unwrap().option_len(), 12);
    }

    #[test]
    fn memory_of_servers_is_bounded() {
        let mut cookies = Cookies::default();
        let cookie = Cookie::new(&[1; 8], false);
        for n in 0..3000_u32 {
            cookies.keep(IpAddr::from(n.to_be_bytes()), cookie, 1460);
        }
        assert_eq!(cookies.0.len(), MOST_SERVERS);
    }
}
