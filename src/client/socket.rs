//! Verbs that happen once or seldom: open, bind, listen, connect, accept, shutdown, close, options, addresses.

use core::net::SocketAddr;
use core::sync::atomic::{AtomicU32, Ordering};

use rustix::io::Errno;
use sidestep_shm::Slot;
use sidestep_shm::slot::{kind, load_address, option, request, status, store_address};
use sidestep_shm::wire::Request;

use crate::address::{UNSPECIFIED, any, from_wire, is_udp, is_v4, to_wire};
use crate::session::Session;
use crate::sys::{Held, errno};

/// Options of a slot that are numbers. Units are those of the field in [`Slot`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Number {
    /// TCP_KEEPIDLE in seconds.
    KeepIdle,
    /// TCP_KEEPINTVL in seconds.
    KeepInterval,
    /// TCP_KEEPCNT.
    KeepCount,
    /// TCP_USER_TIMEOUT in milliseconds.
    UserTimeout,
    /// SO_LINGER seconds + 1, 0 for off.
    Linger,
    /// IP_TOS, IPV6_TCLASS.
    Tos,
    /// IP_TTL, IPV6_UNICAST_HOPS; 0 for the default.
    Ttl,
    /// TCP_MAXSEG.
    MaxSegment,
    /// SO_RCVBUF and SO_SNDBUF in bytes, as they were asked for.
    ReceiveBuffer,
    SendBuffer,
    /// TCP_WINDOW_CLAMP in bytes.
    WindowClamp,
    /// TCP_NOTSENT_LOWAT in bytes.
    NotSentLowat,
    /// SO_RCVLOWAT in bytes.
    ReceiveLowat,
    /// SO_MAX_PACING_RATE in bytes a second.
    MaxPacingRate,
    /// TCP_SYNCNT.
    SynRetries,
    /// TCP_DEFER_ACCEPT in seconds.
    DeferAccept,
    /// TCP_LINGER2 in seconds, as an i32.
    Linger2,
    /// IP_MTU_DISCOVER + 1.
    MtuDiscovery,
    /// TCP_CONGESTION: position in [`sidestep_shm::slot::CONGESTION`] + 1.
    Congestion,
    /// TCP_FASTOPEN of a listener: how many connections cookies may have opened.
    FastOpen,
}

impl Number {
    fn field(self, slot: &Slot) -> &AtomicU32 {
        match self {
            Self::KeepIdle => &slot.keep_idle_s,
            Self::KeepInterval => &slot.keep_interval_s,
            Self::KeepCount => &slot.keep_count,
            Self::UserTimeout => &slot.user_timeout_ms,
            Self::Linger => &slot.linger,
            Self::Tos => &slot.tos,
            Self::Ttl => &slot.ttl,
            Self::MaxSegment => &slot.max_segment,
            Self::ReceiveBuffer => &slot.receive_buffer,
            Self::SendBuffer => &slot.send_buffer,
            Self::WindowClamp => &slot.window_clamp,
            Self::NotSentLowat => &slot.notsent_lowat,
            Self::ReceiveLowat => &slot.receive_lowat,
            Self::MaxPacingRate => &slot.max_pacing_rate,
            Self::SynRetries => &slot.syn_retries,
            Self::DeferAccept => &slot.defer_accept,
            Self::Linger2 => &slot.linger2,
            Self::MtuDiscovery => &slot.mtu_discovery,
            Self::Congestion => &slot.congestion,
            Self::FastOpen => &slot.fast_open,
        }
    }
}

impl Session {
    /// A new socket of `kind` ([`kind`]), held by this process. The engine hears of it at bind or connect.
    ///
    /// # Errors
    /// EINVAL: no such kind. ENOBUFS: no slot is free. ENETDOWN: the engine is gone.
    pub fn open(&self, kind: u32) -> Result<u32, Errno> {
        if !(kind::TCP4..=kind::UDP6).contains(&kind) {
            return Err(Errno::INVAL);
        }
        if !self.is_alive() {
            return Err(Errno::NETDOWN);
        }
        let number = self.region().free_slots().claim().ok_or(Errno::NOBUFS)?;
        let slot = self.slot(number)?;
        slot.hold(self.process());
        slot.kind.store(kind, Ordering::Release);
        Ok(number)
    }

    /// bind(2). `options` are [`sidestep_shm::slot::option`] bits (REUSE_ADDRESS, REUSE_PORT, V6_ONLY); those set by
    /// [`Self::set_option`] count too. Port 0 asks for any. Returns the address that it got.
    ///
    /// # Errors
    /// EADDRINUSE, EADDRNOTAVAIL, EACCES, EINVAL (bound already), EAFNOSUPPORT, ENETDOWN.
    pub fn bind(&self, slot: u32, address: SocketAddr, options: u32) -> Result<SocketAddr, Errno> {
        let shared = self.slot(slot)?;
        let _held = Held::take(&shared.call_lock, self.process())?;
        self.bind_locked(slot, shared, address, options)
    }

    fn bind_locked(&self, slot: u32, shared: &Slot, to: SocketAddr, options: u32) -> Result<SocketAddr, Errno> {
        let kind = shared.kind.load(Ordering::Relaxed);
        if is_v4(kind) != to.is_ipv4() {
            return Err(if is_v4(kind) { Errno::AFNOSUPPORT } else { Errno::INVAL });
        }
        let only_v6 = !is_v4(kind) && (options | shared.options.load(Ordering::Relaxed)) & option::V6_ONLY != 0;
        if only_v6 && to.ip().to_canonical().is_ipv4() {
            return Err(Errno::INVAL);
        }
        if shared.status.load(Ordering::Acquire) & status::BOUND != 0
            || shared.request.load(Ordering::Relaxed) & request::CONNECT != 0
        {
            return Err(Errno::INVAL);
        }
        let options = options | shared.options.load(Ordering::Relaxed);
        let ask = Request::Bind { slot, kind, options, address: to_wire(to.ip()), port: to.port() };
        let (address, port) = self.call(&ask, None)?;
        store_address(&shared.wanted_local_address, address);
        shared.wanted_local_port.store(u32::from(port), Ordering::Release);
        Ok(from_wire(kind, address, port))
    }

    /// Binds to any address and port if the socket is not bound yet, as Linux does for listen() and sendto().
    pub(crate) fn bind_if_unbound(&self, slot: u32, shared: &Slot) -> Result<(), Errno> {
        if shared.wanted_local_port.load(Ordering::Acquire) != 0 {
            return Ok(());
        }
        let _held = Held::take(&shared.call_lock, self.process())?;
        self.bind_any_locked(slot, shared)
    }

    fn bind_any_locked(&self, slot: u32, shared: &Slot) -> Result<(), Errno> {
        if shared.wanted_local_port.load(Ordering::Acquire) != 0 {
            return Ok(());
        }
        let kind = shared.kind.load(Ordering::Relaxed);
        self.bind_locked(slot, shared, any(kind), 0).map(drop)
    }

    /// listen(2), also to change the backlog. Returns the address; an unbound socket is bound to any port.
    ///
    /// # Errors
    /// EADDRINUSE, EOPNOTSUPP (datagrams), EINVAL (connected), ENETDOWN.
    pub fn listen(&self, slot: u32, backlog: u32) -> Result<SocketAddr, Errno> {
        let shared = self.slot(slot)?;
        let kind = shared.kind.load(Ordering::Relaxed);
        if is_udp(kind) {
            return Err(Errno::OPNOTSUPP);
        }
        let _held = Held::take(&shared.call_lock, self.process())?;
        if shared.request.load(Ordering::Relaxed) & request::CONNECT != 0
            || shared.status.load(Ordering::Acquire) & status::CONNECTED != 0
        {
            return Err(Errno::INVAL);
        }
        self.bind_any_locked(slot, shared)?;
        let (address, port) = self.call(&Request::Listen { slot, backlog }, None)?;
        Ok(from_wire(kind, address, port))
    }

    /// connect(2), TCP: starts the handshake; `Ok` means started. Then wait for POLLOUT and ask
    /// [`Self::connect_outcome`]. UDP: sets the peer; port 0 takes it away (AF_UNSPEC); then wait for
    /// [`Self::has_settled`] and ask [`Self::datagram_outcome`].
    ///
    /// # Errors
    /// EALREADY: under way. EISCONN: connected. EAFNOSUPPORT, EINVAL (listening, or port 0), ENETDOWN. After a failed
    /// handshake its error, else ECONNABORTED: a slot connects once, so open another for the next try.
    pub fn connect(&self, slot: u32, remote: SocketAddr) -> Result<(), Errno> {
        let shared = self.slot(slot)?;
        let kind = shared.kind.load(Ordering::Relaxed);
        if is_v4(kind) && remote.is_ipv6() {
            return Err(Errno::AFNOSUPPORT);
        }
        let only_v6 = !is_v4(kind) && shared.options.load(Ordering::Relaxed) & option::V6_ONLY != 0;
        if only_v6 && remote.ip().to_canonical().is_ipv4() {
            return Err(Errno::NETUNREACH);
        }
        if !self.is_alive() {
            return Err(Errno::NETDOWN);
        }
        let held = Held::take(&shared.call_lock, self.process())?;
        if is_udp(kind) {
            self.bind_any_locked(slot, shared)?;
        } else {
            let now = shared.status.load(Ordering::Acquire);
            if now & status::LISTENING != 0 || remote.port() == 0 {
                return Err(if now & status::LISTENING != 0 { Errno::ISCONN } else { Errno::CONNREFUSED });
            }
            if now & status::BROKEN != 0 {
                return Err(take_error(shared).unwrap_or(Errno::CONNABORTED));
            }
            if now & status::CONNECTED != 0 {
                return Err(Errno::ISCONN);
            }
            if shared.request.load(Ordering::Relaxed) & request::CONNECT != 0 {
                return Err(Errno::ALREADY);
            }
            // What an attempt before left behind is forgotten: tcp_connect_init().
            shared.error.store(0, Ordering::Release);
            // The engine may know the socket from bind; then it has chosen the shard.
            if now & status::OPEN == 0 {
                let shards = self.region().geometry().shards;
                shared.shard.store(self.turn.fetch_add(1, Ordering::Relaxed) % shards, Ordering::Relaxed);
            }
        }
        store_address(&shared.wanted_remote_address, to_wire(remote.ip()));
        shared.wanted_remote_port.store(u32::from(remote.port()), Ordering::Relaxed);
        shared.options_version.fetch_add(1, Ordering::Release);
        shared.request.fetch_or(request::CONNECT, Ordering::SeqCst);
        drop(held);
        self.mark_now(shared, slot);
        Ok(())
    }

    /// Whether the engine has acted upon the last connect(): the local address is known, and what fails at once has
    /// failed. For datagrams [`Self::datagram_outcome`] tells from then on.
    #[must_use]
    pub fn has_settled(&self, slot: u32) -> bool {
        let Ok(shared) = self.slot(slot) else { return true };
        if !is_udp(shared.kind.load(Ordering::Relaxed)) {
            let began = status::CONNECTING | status::CONNECTED | status::BROKEN | status::CLOSED;
            return shared.status.load(Ordering::Acquire) & began != 0 || self.bury_if_dead(shared);
        }
        let wanted = shared.options_version.load(Ordering::Relaxed);
        shared.seen_version.load(Ordering::Acquire) == wanted || self.bury_if_dead(shared)
    }

    /// How the last connect() of a datagram socket went: the association holds, or there is none.
    ///
    /// # Errors
    /// ENETUNREACH: no route. EADDRNOTAVAIL, ENETDOWN.
    pub fn datagram_outcome(&self, slot: u32) -> Result<(), Errno> {
        let shared = self.slot(slot)?;
        let wanted = shared.wanted_remote_port.load(Ordering::Relaxed) != 0;
        if !wanted || shared.status.load(Ordering::Acquire) & status::CONNECTED != 0 {
            return Ok(());
        }
        shared.wanted_remote_port.store(0, Ordering::Release);
        Err(take_error(shared).unwrap_or(Errno::NETUNREACH))
    }

    /// How a connect() that was started went: `Ok(true)` connected, `Ok(false)` still under way.
    ///
    /// # Errors
    /// The reason of the failure, once (ECONNREFUSED, ETIMEDOUT, EHOSTUNREACH, …); then ECONNABORTED. ENOTCONN when
    /// none was started.
    pub fn connect_outcome(&self, slot: u32) -> Result<bool, Errno> {
        let shared = self.slot(slot)?;
        self.bury_if_dead(shared);
        let now = shared.status.load(Ordering::Acquire);
        if now & status::BROKEN != 0 {
            return Err(take_error(shared).unwrap_or(Errno::CONNABORTED));
        }
        if now & status::CONNECTED != 0 {
            return Ok(true);
        }
        let started = shared.request.load(Ordering::Relaxed) & request::CONNECT != 0;
        if started { Ok(false) } else { Err(Errno::NOTCONN) }
    }

    /// Whether a connection was tried and never came about.
    #[must_use]
    pub fn has_failed(&self, slot: u32) -> bool {
        let broken = |now: u32| now & status::BROKEN != 0 && now & status::CONNECTED == 0;
        self.is_alive() && self.slot(slot).is_ok_and(|s| broken(s.status.load(Ordering::Acquire)))
    }

    /// accept(2): takes a finished connection, held by this process when this returns. Shards take turns.
    ///
    /// # Errors
    /// EAGAIN: none waits. EINVAL: not listening. EOPNOTSUPP: datagrams. ENETDOWN.
    pub fn accept(&self, slot: u32) -> Result<(u32, SocketAddr), Errno> {
        match self.accept_once(slot) {
            Err(Errno::AGAIN) if self.has_come() => self.accept_once(slot),
            outcome => outcome,
        }
    }

    fn accept_once(&self, slot: u32) -> Result<(u32, SocketAddr), Errno> {
        let listener = self.slot(slot)?;
        let kind = listener.kind.load(Ordering::Relaxed);
        if is_udp(kind) {
            return Err(Errno::OPNOTSUPP);
        }
        if !self.is_alive() {
            return Err(Errno::NETDOWN);
        }
        if listener.status.load(Ordering::Acquire) & status::LISTENING == 0 {
            return Err(Errno::INVAL);
        }
        let shards = self.region().geometry().shards;
        let first = self.turn.fetch_add(1, Ordering::Relaxed) % shards;
        for shard in (first..shards).chain(0..first) {
            let ring = self.region().accept_ring(slot, shard);
            let taken = ring.and_then(|ring| ring.take(self.process(), |n| self.region().slot(n)));
            if let Some(number) = taken {
                let accepted = self.slot(number)?;
                // A dual-stack listener's connections are IPv6 sockets, whatever the peer speaks.
                accepted.kind.store(kind, Ordering::Relaxed);
                return Ok((number, self.remote_of(accepted, kind)));
            }
        }
        Err(Errno::AGAIN)
    }

    /// shutdown(2).
    ///
    /// # Errors
    /// ENOTCONN: neither connected nor on the way there. A listener that stops reading stops listening.
    pub fn shutdown(&self, slot: u32, read: bool, write: bool) -> Result<(), Errno> {
        let shared = self.slot(slot)?;
        let now = shared.status.load(Ordering::Acquire);
        let asked = shared.request.load(Ordering::Relaxed);
        if now & status::LISTENING != 0 {
            // Reading is what makes it a listener.
            return if read { self.call(&Request::Unlisten { slot }, None).map(drop) } else { Ok(()) };
        }
        let mut bits = 0;
        if read {
            bits |= request::STOP_READING;
        }
        if write {
            bits |= request::FINISH;
        }
        let connected = now & status::CONNECTED != 0 || asked & request::CONNECT != 0;
        let over = now & (status::BROKEN | status::CLOSED) != 0;
        // Linux sets the flags of an unconnected UDP socket too, and reports ENOTCONN all the same.
        if connected || is_udp(shared.kind.load(Ordering::Relaxed)) {
            shared.request.fetch_or(bits, Ordering::SeqCst);
            self.mark_now(shared, slot);
        }
        if connected && !over { Ok(()) } else { Err(Errno::NOTCONN) }
    }

    /// This process no longer has the socket. After the last holder the engine finishes the protocol and frees the
    /// slot; the number must not be used again.
    pub fn close(&self, slot: u32) {
        let Ok(shared) = self.slot(slot) else { return };
        shared.let_go(self.process());
        self.mark(shared, slot);
    }

    /// Asks for a reset instead of an orderly close (SO_LINGER with zero seconds); follow it with [`Self::close`].
    ///
    /// # Errors
    /// EBADF: no such slot.
    pub fn abort(&self, slot: u32) -> Result<(), Errno> {
        let shared = self.slot(slot)?;
        shared.request.fetch_or(request::ABORT, Ordering::SeqCst);
        self.mark(shared, slot);
        Ok(())
    }

    /// Whether no other process has the socket open.
    #[must_use]
    pub fn is_only_holder(&self, slot: u32) -> bool {
        let me = self.process() as usize;
        let others = |(word, bits): (usize, u64)| {
            let mine = if word == me / 64 { 1 << (me % 64) } else { 0 };
            bits & !mine != 0
        };
        self.slot(slot).is_ok_and(|s| !s.holders.iter().map(|w| w.load(Ordering::SeqCst)).enumerate().any(others))
    }

    /// Whether the peer has acknowledged everything that was sent and the end of it, or the connection is over.
    #[must_use]
    pub fn has_delivered(&self, slot: u32) -> bool {
        /// FIN-WAIT-2, TIME-WAIT and CLOSE: Linux's numbers.
        const ACKNOWLEDGED: [u32; 3] = [5, 6, 7];
        let Ok(shared) = self.slot(slot) else { return true };
        let over = shared.status.load(Ordering::Acquire) & (status::BROKEN | status::CLOSED) != 0;
        over || ACKNOWLEDGED.contains(&shared.tcp_state.load(Ordering::Relaxed)) || self.bury_if_dead(shared)
    }

    /// Leaves a pending error on a socket that a call of this program ended.
    pub fn leave_error(&self, slot: u32, error: Errno) {
        if let Ok(shared) = self.slot(slot) {
            shared.error.store(error.raw_os_error() as u32, Ordering::Release);
        }
    }

    /// Takes the pending error (SO_ERROR): an errno, 0 for none.
    #[must_use]
    pub fn take_error(&self, slot: u32) -> u32 {
        let Ok(shared) = self.slot(slot) else { return 0 };
        self.bury_if_dead(shared);
        shared.error.swap(0, Ordering::AcqRel)
    }

    /// Sets or clears an [`sidestep_shm::slot::option`] bit and tells the engine.
    ///
    /// # Errors
    /// EBADF: no such slot.
    pub fn set_option(&self, slot: u32, bit: u32, on: bool) -> Result<(), Errno> {
        let shared = self.slot(slot)?;
        if on {
            shared.options.fetch_or(bit, Ordering::Release);
        } else {
            shared.options.fetch_and(!bit, Ordering::Release);
        }
        self.options_changed(slot, shared);
        Ok(())
    }

    /// Whether an [`sidestep_shm::slot::option`] bit is set.
    #[must_use]
    pub fn option(&self, slot: u32, bit: u32) -> bool {
        self.slot(slot).is_ok_and(|s| s.options.load(Ordering::Relaxed) & bit != 0)
    }

    /// Sets a number and tells the engine. The caller has checked the range.
    ///
    /// # Errors
    /// EBADF: no such slot.
    pub fn set_number(&self, slot: u32, which: Number, value: u32) -> Result<(), Errno> {
        let shared = self.slot(slot)?;
        which.field(shared).store(value, Ordering::Release);
        self.options_changed(slot, shared);
        Ok(())
    }

    /// The number as set last; 0 is the default.
    #[must_use]
    pub fn number(&self, slot: u32, which: Number) -> u32 {
        self.slot(slot).map_or(0, |s| which.field(s).load(Ordering::Relaxed))
    }

    fn options_changed(&self, slot: u32, shared: &Slot) {
        shared.options_version.fetch_add(1, Ordering::Release);
        shared.request.fetch_or(request::OPTIONS, Ordering::SeqCst);
        self.mark(shared, slot);
    }

    /// getsockname(2): the local address; the wildcard and port 0 when there is none yet.
    #[must_use]
    pub fn local_address(&self, slot: u32) -> Option<SocketAddr> {
        let shared = self.slot(slot).ok()?;
        let kind = shared.kind.load(Ordering::Relaxed);
        let now = shared.status.load(Ordering::Acquire);
        let mut address = load_address(&shared.local_address);
        let mut port = shared.local_port.load(Ordering::Relaxed);
        if now & status::OPEN == 0 || port == 0 {
            address = load_address(&shared.wanted_local_address);
            port = shared.wanted_local_port.load(Ordering::Relaxed);
        }
        let address = if address == UNSPECIFIED && is_v4(kind) { to_wire(any(kind).ip()) } else { address };
        Some(from_wire(kind, address, port as u16))
    }

    /// getpeername(2): None (ENOTCONN) unless connected.
    #[must_use]
    pub fn remote_address(&self, slot: u32) -> Option<SocketAddr> {
        let shared = self.slot(slot).ok()?;
        let kind = shared.kind.load(Ordering::Relaxed);
        if is_udp(kind) {
            return self.peer(shared);
        }
        let now = shared.status.load(Ordering::Acquire);
        (now & status::CONNECTED != 0 && now & (status::BROKEN | status::CLOSED) == 0)
            .then(|| self.remote_of(shared, kind))
    }

    /// The peer of a datagram socket, as connect() set it last.
    pub(crate) fn peer(&self, shared: &Slot) -> Option<SocketAddr> {
        if shared.request.load(Ordering::Acquire) & request::CONNECT == 0 {
            return None;
        }
        let port = shared.wanted_remote_port.load(Ordering::Relaxed) as u16;
        let address = load_address(&shared.wanted_remote_address);
        (port != 0).then(|| from_wire(shared.kind.load(Ordering::Relaxed), address, port))
    }

    fn remote_of(&self, shared: &Slot, kind: u32) -> SocketAddr {
        let port = shared.remote_port.load(Ordering::Relaxed) as u16;
        from_wire(kind, load_address(&shared.remote_address), port)
    }

    /// FIONREAD: bytes that can be read; of datagrams, the length of the next.
    #[must_use]
    pub fn queued_in(&self, slot: u32) -> usize {
        let (Ok(shared), Some(ring)) = (self.slot(slot), self.region().rx(slot)) else { return 0 };
        if is_udp(shared.kind.load(Ordering::Relaxed)) {
            return crate::datagram::next_len(shared, ring).unwrap_or(0);
        }
        if shared.status.load(Ordering::Relaxed) & status::LISTENING != 0 {
            return 0;
        }
        let queued = crate::stream::readable(shared, usize::MAX);
        self.region().rx_split(slot).map_or(0, |split| queued.min(split.span()))
    }

    /// What TCP_INQ tells along with a read: bytes that are left, and 1 when only the end of the stream is.
    #[must_use]
    pub fn left_to_read(&self, slot: u32) -> usize {
        let ended = self.slot(slot).is_ok_and(|s| s.status.load(Ordering::Acquire) & status::PEER_FINISHED != 0);
        self.queued_in(slot).max(usize::from(ended))
    }

    /// SIOCOUTQ: bytes written and not yet acknowledged (datagrams: not yet sent).
    #[must_use]
    pub fn queued_out(&self, slot: u32) -> usize {
        let (Ok(shared), Some(ring)) = (self.slot(slot), self.region().tx(slot)) else { return 0 };
        if is_udp(shared.kind.load(Ordering::Relaxed)) {
            return ring.capacity() - crate::stream::writable(shared, ring.capacity());
        }
        self.region().tx_split(slot).map_or(0, |split| crate::stream::room(shared, &split).queued)
    }

    /// When the engine is gone, does to the socket what a reset would: its error once, then end-of-file and EPIPE.
    /// Returns whether the engine is gone.
    pub(crate) fn bury_if_dead(&self, shared: &Slot) -> bool {
        if self.is_alive() {
            return false;
        }
        let before = shared.status.fetch_or(status::BROKEN | status::CLOSED, Ordering::SeqCst);
        if before & status::BROKEN == 0 {
            let connected = before & (status::CONNECTED | status::CONNECTING) != 0;
            let errno = if connected { Errno::CONNRESET } else { Errno::NETDOWN };
            shared.error.store(errno.raw_os_error() as u32, Ordering::SeqCst);
        }
        true
    }
}

/// Takes the slot's pending error.
pub(crate) fn take_error(shared: &Slot) -> Option<Errno> {
    // Errors are rare; a load first spares the line a locked write for every call.
    if shared.error.load(Ordering::Acquire) == 0 {
        return None;
    }
    match shared.error.swap(0, Ordering::AcqRel) {
        0 => None,
        number => Some(errno(number)),
    }
}
