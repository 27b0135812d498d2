//! A socket that may be the stack's: from socket() to the last close().
//!
//! ```text
//!   socket()  ──▶ undecided: a kernel socket (the placeholder) and nothing else; most calls go to it
//!                    │ bind, listen, connect, sendto: whose is the address?
//!        the kernel's │            │ ours
//!                    ▼            ▼
//!      passed: the placeholder   slot: calls go to the engine's slot; the placeholder keeps the descriptor's number,
//!      is the socket             its flags, and validates options
//! ```

use core::ffi::c_int;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};

use sidestep_client::shm::layout::MAX_SLOTS;
use sidestep_client::shm::slot::{kind, option};
use sidestep_client::{Session, Setting};

use crate::epoll::{self, Epoll};
use crate::errno::{self, Errno};
use crate::options;
use crate::table::{self, Entry, lock};
use crate::{engine, real};

/// `slot` of a socket that is nobody's yet.
const UNDECIDED: u32 = u32::MAX;
/// `slot` of a socket that is the kernel's for good.
const PASSED: u32 = u32::MAX - 1;

/// What dup() shares. Never freed, only used again.
#[repr(align(64))]
pub struct Socket {
    /// Position among all sockets of this process, dense: for tables indexed by it.
    pub id: u32,
    slot: AtomicU32,
    /// Descriptors of this process that stand for it.
    refs: AtomicU32,
    generation: AtomicU32,
    v6: AtomicBool,
    datagram: AtomicBool,
    /// O_NONBLOCK, as it stands on the placeholder. Another process that shares the socket may change it there without
    /// our knowledge; programs set it before they fork.
    nonblock: AtomicBool,
    /// A connect() is under way whose end the program has not heard of.
    pub connecting: AtomicBool,
    /// SO_RCVTIMEO and SO_SNDTIMEO in nanoseconds, 0 for none.
    pub receive_timeout: AtomicU64,
    pub send_timeout: AtomicU64,
    /// Options that were set, as bits by [`Setting::index`], and their values: to be repeated on a slot that is claimed
    /// later.
    pub touched: AtomicU64,
    pub settings: [AtomicU32; Setting::COUNT],
    /// Control messages that recvmsg() is to give, as bits of [`options`].
    pub wants: AtomicU32,
    /// Grows with each write that found too little room: what an edge-triggered EPOLLOUT follows.
    pub starved: AtomicU32,
    /// The epoll instance that watches it; see `many`.
    epoll: AtomicPtr<Epoll>,
    /// Several do.
    many: AtomicBool,
    /// Pieces of a datagram that MSG_MORE keeps back, and where it goes.
    pub corked: Mutex<Option<(Option<SocketAddr>, Vec<u8>)>>,
    /// Where it was bound, if it was.
    bound: Mutex<Option<SocketAddr>>,
}

struct Pool {
    all: Vec<&'static Socket>,
    free: Vec<&'static Socket>,
}

static POOL: Mutex<Pool> = Mutex::new(Pool { all: Vec::new(), free: Vec::new() });
/// Read: slots are being opened or closed. Write: they must not be, because of a fork.
static GATE: RwLock<()> = RwLock::new(());

/// Slot -> socket, and id -> socket, of this process.
static BY_SLOT: Directory<{ MAX_SLOTS as usize / PIECE }> = Directory::new();
static BY_ID: Directory<{ (1 << 21) / PIECE }> = Directory::new();
const PIECE: usize = 4096;

/// Numbers -> sockets, read without a lock, in pieces that exist once used.
struct Directory<const PIECES: usize>([AtomicPtr<[AtomicPtr<Socket>; PIECE]>; PIECES]);

impl<const PIECES: usize> Directory<PIECES> {
    const fn new() -> Self {
        Self([const { AtomicPtr::new(core::ptr::null_mut()) }; PIECES])
    }

    fn word(&self, number: u32, make: bool) -> Option<&AtomicPtr<Socket>> {
        let place = self.0.get(number as usize / PIECE)?;
        if make && place.load(Ordering::Acquire).is_null() {
            let fresh = Box::into_raw(Box::new([const { AtomicPtr::new(core::ptr::null_mut()) }; PIECE]));
            if place.compare_exchange(core::ptr::null_mut(), fresh, Ordering::AcqRel, Ordering::Acquire).is_err() {
                // SAFETY: made above, and nobody else has seen it.
                drop(unsafe { Box::from_raw(fresh) });
            }
        }
        // SAFETY: a piece that was published is never freed.
        unsafe { place.load(Ordering::Acquire).as_ref() }.map(|piece| &piece[number as usize % PIECE])
    }

    fn get(&self, number: u32) -> Option<&'static Socket> {
        // SAFETY: only sockets, which are never freed, are put in.
        unsafe { self.word(number, false)?.load(Ordering::Acquire).as_ref() }
    }

    fn put(&self, number: u32, socket: Option<&'static Socket>) {
        if let Some(word) = self.word(number, socket.is_some()) {
            word.store(socket.map_or(core::ptr::null_mut(), |s| core::ptr::from_ref(s).cast_mut()), Ordering::Release);
        }
    }
}

/// Id of the socket of this process that has `slot`.
pub fn id_of_slot(slot: u32) -> Option<u32> {
    BY_SLOT.get(slot).map(|socket| socket.id)
}

/// The socket with `id`.
pub fn by_id(id: u32) -> Option<&'static Socket> {
    BY_ID.get(id)
}

/// Keeps forks off while slots change hands.
pub fn gate() -> RwLockReadGuard<'static, ()> {
    GATE.read().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Keeps slots from changing hands: around fork.
pub fn shut_gate() -> RwLockWriteGuard<'static, ()> {
    GATE.write().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// The slots that this process has, under [`shut_gate`].
pub fn slots_in_use() -> Vec<u32> {
    lock(&POOL).all.iter().filter(|s| s.refs.load(Ordering::Relaxed) > 0).filter_map(|s| s.claimed()).collect()
}

/// Keeps the list of sockets still: around fork, after [`slots_in_use`].
pub fn hold_pool() -> impl Sized {
    lock(&POOL)
}

impl Socket {
    /// A socket with one descriptor.
    pub fn new(v6: bool, datagram: bool, nonblock: bool) -> &'static Self {
        let mut pool = lock(&POOL);
        let socket = pool.free.pop().unwrap_or_else(|| {
            let fresh: &'static Self = Box::leak(Box::new(Self::blank(pool.all.len() as u32)));
            BY_ID.put(fresh.id, Some(fresh));
            pool.all.push(fresh);
            fresh
        });
        socket.v6.store(v6, Ordering::Relaxed);
        socket.datagram.store(datagram, Ordering::Relaxed);
        socket.nonblock.store(nonblock, Ordering::Relaxed);
        socket.refs.store(1, Ordering::Release);
        socket
    }

    fn blank(id: u32) -> Self {
        Self {
            id,
            slot: AtomicU32::new(UNDECIDED),
            refs: AtomicU32::new(0),
            generation: AtomicU32::new(0),
            v6: AtomicBool::new(false),
            datagram: AtomicBool::new(false),
            nonblock: AtomicBool::new(false),
            connecting: AtomicBool::new(false),
            receive_timeout: AtomicU64::new(0),
            send_timeout: AtomicU64::new(0),
            touched: AtomicU64::new(0),
            settings: [const { AtomicU32::new(0) }; Setting::COUNT],
            wants: AtomicU32::new(0),
            starved: AtomicU32::new(0),
            epoll: AtomicPtr::new(core::ptr::null_mut()),
            many: AtomicBool::new(false),
            corked: Mutex::new(None),
            bound: Mutex::new(None),
        }
    }

    /// The slot, or a number that is none.
    #[inline]
    pub fn slot(&self) -> u32 {
        self.slot.load(Ordering::Acquire)
    }

    /// The slot, if the socket is the stack's.
    #[inline]
    pub fn claimed(&self) -> Option<u32> {
        Some(self.slot()).filter(|&slot| slot < PASSED)
    }

    /// Whether it is the kernel's for good.
    #[inline]
    pub fn is_passed(&self) -> bool {
        self.slot() == PASSED
    }

    /// Another number once the socket was closed.
    pub fn generation(&self) -> u32 {
        self.generation.load(Ordering::Acquire)
    }

    /// AF_INET or AF_INET6.
    pub fn domain(&self) -> c_int {
        if self.v6.load(Ordering::Relaxed) { libc::AF_INET6 } else { libc::AF_INET }
    }

    /// UDP?
    pub fn is_datagram(&self) -> bool {
        self.datagram.load(Ordering::Relaxed)
    }

    fn kind(&self) -> u32 {
        match (self.is_datagram(), self.v6.load(Ordering::Relaxed)) {
            (false, false) => kind::TCP4,
            (false, true) => kind::TCP6,
            (true, false) => kind::UDP4,
            (true, true) => kind::UDP6,
        }
    }

    /// Whether calls return instead of waiting (O_NONBLOCK). Once there is a slot it says so, to every process that
    /// has it.
    pub fn is_nonblocking(&self) -> bool {
        match (self.claimed(), engine::session()) {
            (Some(slot), Some(session)) => session.option(slot, option::NON_BLOCKING),
            _ => self.nonblock.load(Ordering::Relaxed),
        }
    }

    /// O_NONBLOCK was set or cleared.
    pub fn set_nonblocking(&self, on: bool) {
        self.nonblock.store(on, Ordering::Relaxed);
        if let (Some(slot), Some(session)) = (self.claimed(), engine::session())
            && let Some(shared) = session.region().slot(slot)
        {
            // The engine has no use for it: nothing is marked.
            if on {
                shared.options.fetch_or(option::NON_BLOCKING, Ordering::Relaxed);
            } else {
                shared.options.fetch_and(!option::NON_BLOCKING, Ordering::Relaxed);
            }
        }
    }

    /// One more descriptor stands for it.
    pub fn share(&self) {
        self.refs.fetch_add(1, Ordering::AcqRel);
    }

    /// One descriptor less; after the last the slot is let go.
    pub fn unshare(&'static self) {
        let gate = gate();
        if self.refs.fetch_sub(1, Ordering::AcqRel) != 1 {
            return;
        }
        self.generation.fetch_add(1, Ordering::AcqRel);
        self.forget_epolls();
        let slot = self.slot.swap(UNDECIDED, Ordering::AcqRel);
        if slot < PASSED {
            let_go(slot);
        }
        for flag in [&self.connecting, &self.many, &self.nonblock] {
            flag.store(false, Ordering::Relaxed);
        }
        self.touched.store(0, Ordering::Relaxed);
        for number in [&self.wants, &self.starved] {
            number.store(0, Ordering::Relaxed);
        }
        self.receive_timeout.store(0, Ordering::Relaxed);
        self.send_timeout.store(0, Ordering::Relaxed);
        *lock(&self.bound) = None;
        *lock(&self.corked) = None;
        lock(&POOL).free.push(self);
        drop(gate);
    }

    fn forget_epolls(&'static self) {
        self.each_epoll(|epoll| epoll.forget(self));
        self.epoll.store(core::ptr::null_mut(), Ordering::Release);
    }

    /// `epoll` watches it from now on.
    pub fn watched_by(&self, epoll: &'static Epoll) {
        let ours = core::ptr::from_ref(epoll).cast_mut();
        if let Err(other) =
            self.epoll.compare_exchange(core::ptr::null_mut(), ours, Ordering::AcqRel, Ordering::Acquire)
            && other != ours
        {
            self.many.store(true, Ordering::Release);
        }
    }

    /// Calls `each` with the epoll instances that may watch it. Must not be called with one of them locked.
    pub fn each_epoll(&self, mut each: impl FnMut(&'static Epoll)) {
        if self.many.load(Ordering::Acquire) {
            epoll::each(each);
            return;
        }
        // SAFETY: epoll instances live for ever.
        if let Some(epoll) = unsafe { self.epoll.load(Ordering::Acquire).as_ref() } {
            each(epoll);
        }
    }

    /// Gives it `slot`, which this process holds.
    fn adopt_slot(&'static self, slot: u32) {
        BY_SLOT.put(slot, Some(self));
        self.slot.store(slot, Ordering::Release);
        // A connection's slot began with its listener's options.
        self.set_nonblocking(self.nonblock.load(Ordering::Relaxed));
        self.each_epoll(|epoll| epoll.decided(self));
    }

    /// Its slot, claimed now if it was undecided, with the options that were set before.
    ///
    /// # Errors
    /// ENOBUFS, ENETDOWN.
    pub fn claim(&'static self, session: &Session) -> Result<u32, Errno> {
        if let Some(slot) = self.claimed() {
            return Ok(slot);
        }
        let gate = gate();
        let slot = session.open(self.kind())?;
        self.adopt_slot(slot);
        drop(gate);
        options::repeat(session, self, slot);
        Ok(slot)
    }

    /// Another slot in place of one that is used up: a failed connection can be tried again.
    fn renew(&'static self, session: &Session) -> Result<u32, Errno> {
        let gate = gate();
        let old = self.slot.swap(UNDECIDED, Ordering::AcqRel);
        if old < PASSED {
            let_go(old);
        }
        drop(gate);
        let slot = self.claim(session)?;
        let bound = *lock(&self.bound);
        if let Some(bound) = bound {
            session.bind(slot, bound, 0)?;
        }
        Ok(slot)
    }

    /// The kernel's for good.
    fn pass(&'static self, fd: c_int) {
        let old = self.slot.swap(PASSED, Ordering::AcqRel);
        if old < PASSED {
            let gate = gate();
            let_go(old);
            drop(gate);
        }
        self.each_epoll(|epoll| epoll.passed(self));
        // With no other descriptor for it nothing needs to be known of it any more.
        if self.refs.load(Ordering::Acquire) == 1
            && let Some(Entry::Socket(socket)) = table::take(fd)
        {
            self.epoll.store(core::ptr::null_mut(), Ordering::Release);
            self.many.store(false, Ordering::Release);
            socket.unshare();
        }
    }
}

fn let_go(slot: u32) {
    BY_SLOT.put(slot, None);
    if let Some(session) = engine::session() {
        session.close(slot);
    }
}

/// Makes `fd` stand for `entry`; whatever it stood for was closed behind our back and is let go.
pub fn install(fd: c_int, entry: Entry) -> bool {
    let (old, reached) = table::put(fd, entry);
    if let Some(old) = old {
        closed(old);
    }
    reached
}

/// A descriptor that stood for `entry` is gone.
pub fn closed(entry: Entry) {
    match entry {
        Entry::Socket(socket) => socket.unshare(),
        Entry::Epoll(epoll) => epoll.unshare(),
        Entry::Internal => {}
    }
}

/// socket(2), after the placeholder `fd` was made: takes note of it if the stack could serve it.
///
/// # Errors
/// ENETDOWN: the engine can't be reached. The placeholder is closed then.
pub fn opened(fd: c_int, domain: c_int, kind: c_int, protocol: c_int) -> Result<c_int, Errno> {
    let base = kind & !(libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC);
    let datagram = match (base, protocol) {
        (libc::SOCK_STREAM, 0 | libc::IPPROTO_TCP) => false,
        (libc::SOCK_DGRAM, 0 | libc::IPPROTO_UDP) => true,
        _ => return Ok(fd),
    };
    if fd < 0 || (domain != libc::AF_INET && domain != libc::AF_INET6) {
        return Ok(fd);
    }
    match engine::attach() {
        Ok(None) => Ok(fd),
        Ok(Some(_)) => {
            let socket = Socket::new(domain == libc::AF_INET6, datagram, kind & libc::SOCK_NONBLOCK != 0);
            if !install(fd, Entry::Socket(socket)) {
                socket.unshare();
            }
            Ok(fd)
        }
        Err(error) => {
            // SAFETY: made by the caller for this call, and nobody else knows it.
            unsafe { real::close(fd) };
            Err(error)
        }
    }
}

/// What a call on a socket comes to.
pub enum Done {
    /// It is done.
    Here,
    /// It is the kernel's: make the same call on the placeholder.
    Kernel,
}

fn kernel_serves(session: &Session, address: &SocketAddr) -> bool {
    session.kernel_serves(address.ip().to_canonical())
}

/// bind(2).
///
/// # Errors
/// Linux's.
pub fn bind(session: &Session, socket: &'static Socket, fd: c_int, to: SocketAddr) -> Result<Done, Errno> {
    let any = to.ip().to_canonical().is_unspecified();
    if socket.claimed().is_none() && !any && kernel_serves(session, &to) {
        socket.pass(fd);
        return Ok(Done::Kernel);
    }
    let slot = socket.claim(session)?;
    let got = session.bind(slot, to, 0)?;
    *lock(&socket.bound) = Some(got);
    Ok(Done::Here)
}

/// Decides, by where a datagram goes, whose an undecided UDP socket is.
///
/// # Errors
/// ENOBUFS, ENETDOWN.
pub fn sending(session: &Session, socket: &'static Socket, fd: c_int, to: SocketAddr) -> Result<Done, Errno> {
    if kernel_serves(session, &to) {
        socket.pass(fd);
        return Ok(Done::Kernel);
    }
    socket.claim(session).map(|_| Done::Here)
}

/// listen(2).
///
/// # Errors
/// Linux's.
pub fn listen(session: &Session, socket: &'static Socket, backlog: c_int) -> Result<(), Errno> {
    if socket.is_datagram() {
        return Err(Errno(libc::EOPNOTSUPP));
    }
    let slot = socket.claim(session)?;
    // listen() takes a negative backlog for a very large one; the engine has its own limit.
    session.listen(slot, u32::try_from(backlog).unwrap_or(u32::MAX))?;
    poke(socket);
    Ok(())
}

/// connect(2). `to` None dissolves an association.
///
/// # Errors
/// Linux's.
pub fn connect(session: &Session, socket: &'static Socket, fd: c_int, to: Option<SocketAddr>) -> Result<Done, Errno> {
    let Some(mut to) = to else { return disconnect(session, socket) };
    if to.ip().is_unspecified() {
        // Linux takes "any" as a destination for "this machine".
        to.set_ip(if to.is_ipv4() { IpAddr::V4(Ipv4Addr::LOCALHOST) } else { IpAddr::V6(Ipv6Addr::LOCALHOST) });
    }
    if kernel_serves(session, &to) && hand_over(session, socket, fd)? {
        return Ok(Done::Kernel);
    }
    let mut slot = socket.claim(session)?;
    match session.connect(slot, to) {
        Err(sidestep_client::Errno::CONNABORTED) => {
            slot = socket.renew(session)?;
            session.connect(slot, to)?;
        }
        // A connect() that was started is done when it is asked for again.
        Err(sidestep_client::Errno::ISCONN) if socket.connecting.swap(false, Ordering::AcqRel) => {
            return Ok(Done::Here);
        }
        Err(sidestep_client::Errno::ALREADY) if !socket.is_nonblocking() => {}
        Err(error) => return Err(failed(session, socket, error)),
        Ok(()) => {}
    }
    if socket.is_datagram() {
        engine::wait_settled(session, slot);
        return session.datagram_outcome(slot).map(|()| Done::Here).map_err(Errno::from);
    }
    socket.connecting.store(true, Ordering::Release);
    if socket.is_nonblocking() {
        // The engine does its part at once: then the socket has its name, and what fails without a packet has failed.
        engine::wait_settled(session, slot);
        return match session.connect_outcome(slot) {
            // Linux says EINPROGRESS of a handshake even if it was faster than this call.
            Ok(_) => Err(Errno(libc::EINPROGRESS)),
            Err(error @ (sidestep_client::Errno::NETUNREACH | sidestep_client::Errno::ADDRNOTAVAIL)) => {
                socket.connecting.store(false, Ordering::Release);
                Err(failed(session, socket, error))
            }
            Err(error) => {
                // For SO_ERROR to tell.
                session.leave_error(slot, error);
                Err(Errno(libc::EINPROGRESS))
            }
        };
    }
    loop {
        let timeout = socket.send_timeout.load(Ordering::Relaxed);
        if !engine::wait(session, socket, sidestep_client::POLLOUT, timeout)? {
            return Err(Errno(libc::EINPROGRESS));
        }
        match session.connect_outcome(slot) {
            Ok(false) => {}
            other => {
                socket.connecting.store(false, Ordering::Release);
                return other.map(|_| Done::Here).map_err(|error| failed(session, socket, error));
            }
        }
    }
}

/// connect() is about to report `error`. When it is the end of a handshake, the socket is as good as new, as in Linux.
fn failed(session: &Session, socket: &'static Socket, error: sidestep_client::Errno) -> Errno {
    if let Some(slot) = socket.claimed()
        && session.has_failed(slot)
    {
        // Without a new slot the next call says why.
        let _ = socket.renew(session);
    }
    error.into()
}

/// Gives a socket that is not connected to the kernel, because its destination is there. False: it can't go any more.
fn hand_over(session: &Session, socket: &'static Socket, fd: c_int) -> Result<bool, Errno> {
    if let Some(slot) = socket.claimed() {
        let bound = *lock(&socket.bound);
        if session.remote_address(slot).is_some() || session.connect_outcome(slot) == Ok(false) {
            return Ok(false);
        }
        if let Some(bound) = bound {
            let (address, len) = crate::address::to_c(socket.domain(), &bound);
            // SAFETY: a whole address.
            if unsafe { real::bind(fd, (&raw const address).cast(), len) } != 0 {
                return Err(Errno(errno::get()));
            }
        }
    }
    socket.pass(fd);
    Ok(true)
}

fn disconnect(session: &Session, socket: &'static Socket) -> Result<Done, Errno> {
    let Some(slot) = socket.claimed() else { return Ok(Done::Kernel) };
    if socket.is_datagram() {
        let nowhere = SocketAddr::new(
            if socket.domain() == libc::AF_INET { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() },
            0,
        );
        session.connect(slot, nowhere)?;
        engine::wait_settled(session, slot);
    } else if session.connect_outcome(slot) == Ok(false) {
        give_up(session, socket, slot)?;
    } else {
        session.abort(slot)?;
        socket.renew(session)?;
    }
    Ok(Done::Here)
}

/// Ends a handshake that is under way. As in Linux, ECONNRESET stays behind on a socket that can be used again.
fn give_up(session: &Session, socket: &'static Socket, slot: u32) -> Result<(), Errno> {
    session.abort(slot)?;
    socket.connecting.store(false, Ordering::Release);
    let fresh = socket.renew(session)?;
    session.leave_error(fresh, sidestep_client::Errno::CONNRESET);
    poke(socket);
    Ok(())
}

/// accept4(2): the new descriptor and the peer.
///
/// # Errors
/// Linux's.
pub fn accept(
    session: &'static Session,
    listener: &'static Socket,
    slot: u32,
    flags: c_int,
) -> Result<(c_int, SocketAddr), Errno> {
    if flags & !(libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC) != 0 {
        return Err(Errno(libc::EINVAL));
    }
    loop {
        // The descriptor comes first: with none to be had, the connection stays in the queue, as in Linux. It is only
        // made when there seems to be a connection.
        if session.is_listening(slot) && session.readiness(slot) & sidestep_client::POLLIN == 0 {
            if listener.is_nonblocking() {
                return Err(errno::AGAIN);
            }
            let timeout = listener.receive_timeout.load(Ordering::Relaxed);
            if !engine::wait(session, listener, sidestep_client::POLLIN, timeout)? {
                return Err(errno::AGAIN);
            }
            continue;
        }
        // SAFETY: no pointers.
        let fd = unsafe { real::socket(listener.domain(), libc::SOCK_STREAM | flags, 0) };
        if fd < 0 {
            return Err(Errno(errno::get()));
        }
        let gate = gate();
        match session.accept(slot) {
            Ok((taken, remote)) => {
                let socket = Socket::new(listener.domain() == libc::AF_INET6, false, flags & libc::SOCK_NONBLOCK != 0);
                socket.adopt_slot(taken);
                drop(gate);
                options::inherit(listener, socket, fd);
                if !install(fd, Entry::Socket(socket)) {
                    socket.unshare();
                }
                return Ok((fd, remote));
            }
            Err(error) => {
                drop(gate);
                // SAFETY: made above.
                unsafe { real::close(fd) };
                // Another process or thread was faster.
                if error != sidestep_client::Errno::AGAIN || listener.is_nonblocking() {
                    return Err(error.into());
                }
            }
        }
    }
}

/// shutdown(2).
///
/// # Errors
/// EINVAL, ENOTCONN.
pub fn shutdown(session: &Session, socket: &'static Socket, slot: u32, how: c_int) -> Result<(), Errno> {
    let (read, write) = match how {
        libc::SHUT_RD => (true, false),
        libc::SHUT_WR => (false, true),
        libc::SHUT_RDWR => (true, true),
        _ => return Err(Errno(libc::EINVAL)),
    };
    if !socket.is_datagram() && session.connect_outcome(slot) == Ok(false) {
        // Linux gives up a handshake that is under way, whichever half was meant: inet_shutdown().
        return give_up(session, socket, slot);
    }
    let outcome = session.shutdown(slot, read, write);
    // The engine has nothing to tell of what this process did itself.
    poke(socket);
    Ok(outcome?)
}

/// Before the last close(): with SO_LINGER and a time, waits until the peer has everything and the end of it, whatever
/// O_NONBLOCK says (socket(7)). Not for a socket that others still hold, nor with bytes unread, which make a reset.
pub fn linger(socket: &'static Socket) {
    if socket.refs.load(Ordering::Acquire) != 1 || socket.is_datagram() {
        return;
    }
    let (Some(session), Some(slot)) = (engine::session(), socket.claimed()) else { return };
    let seconds = session.number(slot, sidestep_client::Number::Linger).saturating_sub(1);
    let connected = session.remote_address(slot).is_some();
    if seconds == 0 || !connected || !session.is_only_holder(slot) || session.queued_in(slot) > 0 {
        return;
    }
    let _ = session.shutdown(slot, false, true);
    let until = sidestep_client::Deadline(sidestep_client::now_ns().saturating_add(u64::from(seconds) * 1_000_000_000));
    engine::wait_for(session, slot, &|| session.has_delivered(slot), until);
}

/// The socket's readiness changed by a call of this process: whoever waits for it must look.
pub fn poke(socket: &'static Socket) {
    socket.each_epoll(|epoll| epoll.poke(socket));
}

/// A socket for `slot`, which came through exec with descriptor `fd`.
pub fn inherited(fd: c_int, slot: u32, kind: u32, nonblock: bool) -> &'static Socket {
    let v6 = kind == kind::TCP6 || kind == kind::UDP6;
    let datagram = kind == kind::UDP4 || kind == kind::UDP6;
    let socket = Socket::new(v6, datagram, nonblock);
    socket.adopt_slot(slot);
    install(fd, Entry::Socket(socket));
    socket
}
