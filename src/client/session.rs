//! One process's attachment to an engine: the mapping, the control connection, the doorbells; fork and exec.

use core::ffi::c_void;
use core::net::IpAddr;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, Ordering};
use core::time::Duration;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::{Arc, OnceLock};

use rustix::fs::SealFlags;
use rustix::io::{Errno, FdFlags};
use rustix::mm::{Advice, MapFlags, ProtFlags};
use rustix::net::SocketAddrUnix;
use sidestep_shm::layout::{ENGINE_SILENT_NS, MAX_PROCESSES, MAX_SHARDS};
use sidestep_shm::wire::{MAX_ROUTE_RULES, PROTOCOL, Reply, Request, RouteRule};
use sidestep_shm::{Region, Slot};

use crate::address::to_wire;
use crate::control::{self, AttachError, Descriptors, Packet};
use crate::driver::{Driver, Resting};
use crate::sys::{Fd, Patience, close_raw, coarse_ns, errno, high_numbers_from, move_high, yield_now};

/// How long a heartbeat must have been seen not to move before it counts against the engine, in nanoseconds. Without
/// it, a host on which both sides were frozen (SIGSTOP, cgroup freezer) and the program runs first would see a dead
/// engine in a healthy one.
const SEEN_SILENT_NS: u64 = 500_000_000;

/// The attachment. `Send + Sync`; every verb takes `&self`. Dropping it detaches: the engine closes the process's
/// sockets, as it does when the process ends.
pub struct Session {
    region: Region,
    bytes: usize,
    process: AtomicU32,
    /// Number of the control connection: another one after fork.
    control: AtomicI32,
    /// One doorbell eventfd a shard.
    bells: Vec<Fd>,
    /// Where the engine listens, for the connections that fork and exec need.
    address: Option<SocketAddrUnix>,
    group: u128,
    spin: Duration,
    rules: [RouteRule; MAX_ROUTE_RULES],
    rule_count: usize,
    dead: AtomicBool,
    /// A heartbeat that looked old, and when it was first seen (coarse clock).
    stale_beat: AtomicU64,
    stale_since: AtomicU64,
    /// Thread id of who talks on the control connection; 0 for nobody.
    talking: AtomicU32,
    /// Engine and program are one process: requests are answered inside the call, and there is no connection.
    in_process: Option<Box<dyn InProcess>>,
    /// The engine is in this process and its shards are run by whoever waits. Off again in a child of fork.
    driver: OnceLock<Arc<dyn Driver>>,
    is_driven: AtomicBool,
    /// Round robin over shards, for connect and accept.
    pub(crate) turn: AtomicU32,
}

/// A place in the group for a child that is about to be forked: see [`Session::prepare_fork`].
#[must_use = "give it to forked_parent or forked_child"]
#[derive(Debug)]
pub struct ForkTicket {
    control: Fd,
    process: u32,
}

impl ForkTicket {
    /// The child's process number.
    #[must_use]
    pub fn process(&self) -> u32 {
        self.process
    }
}

/// An engine in the program's own process. Dropping it is what the end of a control connection is: the engine closes
/// the process's sockets.
pub trait InProcess: Send + Sync {
    /// Answers a request, with the descriptor that goes with it; the packet that would come back over a connection.
    fn call(&self, request: &Request, with: Option<OwnedFd>) -> Reply;
}

/// What an engine in the same process hands over: what comes with a `Welcome` otherwise.
#[derive(Debug)]
pub struct Handover<'a> {
    /// [`Reply::Welcome`], and the encoded route rules that follow it.
    pub welcome: Reply,
    pub rules: &'a [u8],
    /// The group's memory, and one doorbell a shard. Duplicated.
    pub memory: BorrowedFd<'a>,
    pub doorbells: &'a [OwnedFd],
}

/// What a `Welcome` says.
struct Welcome {
    process: u32,
    shards: u32,
    region_bytes: u64,
    group: u128,
    spin_us: u32,
}

impl Session {
    /// Attaches to the engine that listens at `socket` (a path, or '@' and an abstract name), as a member of `group`
    /// (0: a group of its own; a program and what it forks and execs share one).
    ///
    /// # Errors
    /// What failed, on what, and what to do about it.
    pub fn attach(socket: &str, group: u128) -> Result<Self, AttachError> {
        let named = || socket.to_owned();
        let address =
            control::parse_address(socket).map_err(|cause| AttachError::Address { socket: named(), cause })?;
        let fd = control::connect(&address).map_err(|cause| AttachError::Connect { socket: named(), cause })?;
        Self::over(fd, socket, group)
    }

    /// Attaches as a member of the group whose socket `placeholder` came over a Unix socket. None: it is nobody's.
    ///
    /// # Errors
    /// As [`Self::attach`]; `Refused` with EACCES: of another user's program.
    pub fn attach_to_owner_of(placeholder: BorrowedFd<'_>, socket: &str) -> Result<Option<Self>, AttachError> {
        let named = || socket.to_owned();
        let address =
            control::parse_address(socket).map_err(|cause| AttachError::Address { socket: named(), cause })?;
        let fd = control::connect(&address).map_err(|cause| AttachError::Connect { socket: named(), cause })?;
        let mut packet = Packet::new();
        control::send(fd.as_fd(), &Request::Whose, Some(placeholder))
            .and_then(|()| control::receive(fd.as_fd(), &mut packet, None, false))
            .map_err(|cause| AttachError::Handshake { socket: named(), cause })?;
        match packet.reply() {
            Some((Reply::Group { group }, _)) => Self::over(fd, socket, group).map(Some),
            Some((Reply::Failed { errno: number }, _)) if errno(number) == Errno::NOENT => Ok(None),
            Some((Reply::Failed { errno: number }, _)) => {
                Err(AttachError::Refused { socket: named(), cause: errno(number) })
            }
            _ => Err(AttachError::Garbled { socket: named(), what: "neither a group nor a refusal" }),
        }
    }

    /// The socket in `slot` is about to be sent to another process, by its `placeholder`.
    ///
    /// # Errors
    /// ENOBUFS, ENETDOWN.
    pub fn send_away(&self, slot: u32, placeholder: BorrowedFd<'_>) -> Result<(), Errno> {
        self.call(&Request::SendAway { slot }, Some(placeholder)).map(|_| ())
    }

    /// The slot of a socket that was received, which this process holds from now on.
    ///
    /// # Errors
    /// ENOENT: it is none of the engine's. EXDEV: another group's. ENETDOWN.
    pub fn take_in(&self, placeholder: BorrowedFd<'_>) -> Result<u32, Errno> {
        match self.ask(&Request::TakeIn, Some(placeholder))? {
            Reply::Slot { slot } => Ok(slot),
            _ => Err(Errno::PROTO),
        }
    }

    /// Attaches over a connection that exists already. `socket` is where further connections can be made, for fork
    /// and exec; if nothing listens there, those fail.
    ///
    /// # Errors
    /// As [`Self::attach`].
    pub fn over(control: Fd, socket: &str, group: u128) -> Result<Self, AttachError> {
        control::send(control.as_fd(), &hello(group), None)
            .map_err(|cause| AttachError::Handshake { socket: socket.to_owned(), cause })?;
        Self::welcomed(control, socket)
    }

    /// Takes over, in a new image after exec, the connection that [`Self::prepare_exec`] made in the old one. `socket`
    /// is where the engine listens ([`sidestep_shm::wire::ENV_SOCKET`]).
    ///
    /// # Errors
    /// As [`Self::attach`].
    pub fn adopt(control: Fd, socket: &str) -> Result<Self, AttachError> {
        let failed = |cause| AttachError::Handshake { socket: socket.to_owned(), cause };
        let session = Self::welcomed(move_high(control).map_err(failed)?, socket)?;
        session.call(&Request::Adopt { pid: pid() }, None).map_err(failed)?;
        Ok(session)
    }

    /// Reads the `Welcome` off the connection and maps what comes with it.
    fn welcomed(control: Fd, socket: &str) -> Result<Self, AttachError> {
        let mut packet = Packet::new();
        let mut fds: Descriptors = [const { None }; 1 + MAX_SHARDS as usize];
        control::receive(control.as_fd(), &mut packet, Some(&mut fds), false)
            .map_err(|cause| AttachError::Handshake { socket: socket.to_owned(), cause })?;
        let mut fds = fds.into_iter().map_while(|fd| fd);
        let memfd = fds.next();
        Self::assembled(control, socket, packet.reply(), memfd, fds.collect(), None)
    }

    /// Attaches to an engine in this process, which answers requests inside the calls that make them; from then on all
    /// is as with an engine elsewhere, but that [`Self::control`] never hangs up and the engine counts as alive until
    /// [`Self::mark_dead`]. Nothing in the session's verbs reads a clock then.
    ///
    /// # Errors
    /// As [`Self::attach`].
    pub fn in_process(engine: Box<dyn InProcess>, handover: &Handover<'_>) -> Result<Self, AttachError> {
        let socket = "(this process)";
        let failed = |cause| AttachError::Handshake { socket: socket.into(), cause };
        let copy = |fd: BorrowedFd<'_>| rustix::io::fcntl_dupfd_cloexec(fd, high_numbers_from()).map(Fd::from);
        // Stands for the connection where one is polled: an eventfd that nobody writes.
        let silent = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).map_err(failed)?;
        let silent = move_high(Fd::from(silent)).map_err(failed)?;
        let memory = copy(handover.memory).map_err(failed)?;
        let bells = handover.doorbells.iter().map(|b| copy(b.as_fd())).collect::<Result<_, _>>().map_err(failed)?;
        let reply = Some((handover.welcome, handover.rules));
        Self::assembled(silent, socket, reply, Some(memory), bells, Some(engine))
    }

    /// Checks a `Welcome` and what came with it, and maps the memory.
    fn assembled(
        control: Fd,
        socket: &str,
        reply: Option<(Reply, &[u8])>,
        memory: Option<Fd>,
        bells: Vec<Fd>,
        in_process: Option<Box<dyn InProcess>>,
    ) -> Result<Self, AttachError> {
        let named = || socket.to_owned();
        let garbled = |what| AttachError::Garbled { socket: named(), what };
        let (welcome, rules) = match reply {
            Some((Reply::Welcome { process, shards, region_bytes, group, spin_us, rules }, payload)) => {
                let welcome = Welcome { process, shards, region_bytes, group, spin_us };
                (welcome, decode_rules(rules, payload).ok_or_else(|| garbled("route rules"))?)
            }
            Some((Reply::Failed { errno: number }, _)) => {
                return Err(AttachError::Refused { socket: named(), cause: errno(number) });
            }
            _ => return Err(garbled("another message")),
        };
        if welcome.process >= MAX_PROCESSES || welcome.shards == 0 || welcome.shards > MAX_SHARDS {
            return Err(garbled("numbers out of range"));
        }
        let memfd = memory.ok_or_else(|| garbled("no shared memory"))?;
        if bells.len() != welcome.shards as usize {
            return Err(garbled("not one doorbell a shard"));
        }
        let (region, bytes) = map(&memfd, welcome.region_bytes, socket)?;
        if region.geometry().shards != welcome.shards {
            unmap(region.base().as_ptr().cast(), bytes);
            return Err(garbled("two different numbers of shards"));
        }
        Ok(Self {
            region,
            bytes,
            process: AtomicU32::new(welcome.process),
            control: AtomicI32::new(control.into_raw()),
            bells,
            address: if in_process.is_some() { None } else { control::parse_address(socket).ok() },
            group: welcome.group,
            spin: Duration::from_micros(u64::from(welcome.spin_us)),
            rules: rules.0,
            rule_count: rules.1,
            dead: AtomicBool::new(false),
            stale_beat: AtomicU64::new(0),
            stale_since: AtomicU64::new(0),
            talking: AtomicU32::new(0),
            in_process,
            driver: OnceLock::new(),
            is_driven: AtomicBool::new(false),
            turn: AtomicU32::new(welcome.process),
        })
    }

    /// This process's number in the group.
    #[must_use]
    pub fn process(&self) -> u32 {
        self.process.load(Ordering::Relaxed)
    }

    /// The group's shared memory.
    #[must_use]
    pub fn region(&self) -> &Region {
        &self.region
    }

    /// The group's number: what a program that is to share the sockets must attach with.
    #[must_use]
    pub fn group(&self) -> u128 {
        self.group
    }

    /// How long a waiting call looks before it sleeps.
    #[must_use]
    pub fn spin(&self) -> Duration {
        self.spin
    }

    /// The control connection. It hangs up (POLLHUP) when the engine is gone; then call [`Self::mark_dead`].
    #[must_use]
    pub fn control(&self) -> BorrowedFd<'_> {
        // SAFETY: open until the session is dropped, or replaced in a fresh child of fork, which has one thread.
        unsafe { BorrowedFd::borrow_raw(self.control.load(Ordering::Relaxed)) }
    }

    /// Numbers of the descriptors that the session keeps open: whoever lets a program close descriptors by number must
    /// spare these.
    pub fn descriptors(&self) -> impl Iterator<Item = RawFd> + '_ {
        core::iter::once(self.control.load(Ordering::Relaxed)).chain(self.bells.iter().map(AsRawFd::as_raw_fd))
    }

    /// Whether `address`, as a destination or a local address, is served by the kernel's sockets and not by ours.
    #[must_use]
    pub fn kernel_serves(&self, address: IpAddr) -> bool {
        RouteRule::kernel_serves(&self.rules[..self.rule_count], to_wire(address))
    }

    /// Whether the engine is there: not known to be gone, and its heartbeat not older than [`ENGINE_SILENT_NS`]. Costs
    /// two loads and a read of the coarse clock. Once false, false for good.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        if self.dead.load(Ordering::Relaxed) {
            return false;
        }
        if self.in_process.is_some() || self.is_driven.load(Ordering::Relaxed) {
            return true;
        }
        let beat = self.region.header().heartbeat.load(Ordering::Relaxed);
        let now = coarse_ns();
        if now.saturating_sub(beat) < ENGINE_SILENT_NS {
            return true;
        }
        if self.stale_beat.swap(beat, Ordering::Relaxed) != beat || self.stale_since.load(Ordering::Relaxed) == 0 {
            self.stale_since.store(now, Ordering::Relaxed);
            return true;
        }
        if now.saturating_sub(self.stale_since.load(Ordering::Relaxed)) < SEEN_SILENT_NS {
            return true;
        }
        // If it is only stopped, it must learn that this program gave up on it.
        let _ = rustix::net::shutdown(self.control(), rustix::net::Shutdown::Both);
        self.mark_dead();
        false
    }

    /// The engine is in this process, and its shards are run by whoever waits for a socket. Once for a session.
    pub fn drive_with(&self, driver: Arc<dyn Driver>) {
        if self.driver.set(driver).is_ok() {
            self.is_driven.store(true, Ordering::Release);
        }
    }

    /// Who runs the engine's shards, if this process has to.
    #[inline]
    #[must_use]
    pub fn driver(&self) -> Option<&dyn Driver> {
        if self.is_driven.load(Ordering::Relaxed) { self.driver.get().map(|driver| &**driver) } else { None }
    }

    /// One look at a wait that goes on: runs the shards where this process has to, else lets whoever runs them have
    /// this core, without which nothing can come where there are few.
    #[inline]
    pub fn pause(&self) {
        match self.driver() {
            Some(driver) if driver.turn() => {}
            _ => yield_now(),
        }
    }

    /// At the start of a wait: what was sent leaves, and what has come is there.
    #[inline]
    pub fn turn(&self) {
        if let Some(driver) = self.driver() {
            driver.turn();
        }
    }

    /// At the end of a wait that gave `events`: see [`Driver::found`].
    #[inline]
    pub fn found(&self, events: usize) {
        if let Some(driver) = self.driver() {
            driver.found(events);
        }
    }

    /// After a verb that found nothing: whether it is worth another try.
    #[inline]
    pub(crate) fn has_come(&self) -> bool {
        self.driver().is_some_and(Driver::dry)
    }

    /// Before poll(), after [`crate::Waiter::prepare_sleep`]: until the value is dropped this thread may sleep for the
    /// engine's shards.
    pub fn rest(&self) -> Resting<'_> {
        Resting::begin(self.driver())
    }

    /// The engine is gone: every verb fails from now on.
    pub fn mark_dead(&self) {
        self.dead.store(true, Ordering::Relaxed);
    }

    /// Detaches before the session is dropped: the engine closes the process's sockets, and every verb fails from now on.
    pub fn leave(&self) {
        let _ = rustix::net::shutdown(self.control(), rustix::net::Shutdown::Both);
        self.mark_dead();
    }

    /// Looks, without sleeping, whether the control connection has hung up; marks the engine dead if so. For loops
    /// that poll the connection along with other descriptors, [`Self::mark_dead`] does.
    pub fn check_control(&self) -> bool {
        use rustix::event::{PollFd, PollFlags, poll};
        let mut fds = [PollFd::from_borrowed_fd(self.control(), PollFlags::empty())];
        let zero = crate::sys::timespec(0);
        if poll(&mut fds, Some(&zero)) == Ok(1) && fds[0].revents().intersects(PollFlags::HUP | PollFlags::ERR) {
            self.mark_dead();
        }
        self.is_alive()
    }

    // ---- fork and exec ----------------------------------------------------------------------------------------

    /// Before fork: makes a place in the group for the child, which holds `slots` from here on. No slot may be opened
    /// or closed by another thread until the fork is done (keep the table of sockets locked).
    ///
    /// # Errors
    /// The engine can't be reached or has no place. The program may fork all the same; the child then has no sockets
    /// of ours.
    pub fn prepare_fork(&self, slots: &mut dyn Iterator<Item = u32>) -> Result<ForkTicket, Errno> {
        let (control, process) = self.join(false)?;
        self.hold_all(process, slots);
        Ok(ForkTicket { control, process })
    }

    /// After fork, in the parent; also when fork failed: then the engine sees the child's place end.
    pub fn forked_parent(&self, ticket: ForkTicket) {
        drop(ticket);
    }

    /// After fork, in the child, before anything else: this process is the ticket's from here on. Event queues
    /// ([`crate::Waiter`]) stay the parent's; abandon them and make new ones.
    ///
    /// # Errors
    /// The engine does not answer; the session is dead then.
    pub fn forked_child(&self, ticket: ForkTicket) -> Result<(), Errno> {
        // Shards are run where they were made.
        self.is_driven.store(false, Ordering::Relaxed);
        self.process.store(ticket.process, Ordering::Relaxed);
        self.turn.store(ticket.process, Ordering::Relaxed);
        // Only this thread exists: a conversation that another one had is the parent's.
        self.talking.store(0, Ordering::Relaxed);
        // The parent's connection must not live on in the child, or the engine would not notice the parent's end.
        close_raw(self.control.swap(ticket.control.into_raw(), Ordering::Relaxed));
        self.call(&Request::Adopt { pid: pid() }, None).map(drop).inspect_err(|_| self.mark_dead())
    }

    /// After a fork for which no ticket could be had, in the child: the child has no part in the parent's sockets.
    pub fn forked_without_ticket(&self) {
        self.is_driven.store(false, Ordering::Relaxed);
        self.talking.store(0, Ordering::Relaxed);
        self.mark_dead();
        // The number must stay valid and must not be the parent's connection: an end-of-file takes its place.
        use rustix::net::{AddressFamily, SocketFlags, SocketType};
        let ended = rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
            .map(|(a, b)| (Fd::from(a), Fd::from(b)));
        if let Ok((ours, _)) = ended
            && let Ok(ours) = move_high(ours)
        {
            close_raw(self.control.swap(ours.into_raw(), Ordering::Relaxed));
        }
    }

    /// Before exec: makes a place in the group for the new image, which holds `slots`, and returns the number of its
    /// control connection, which stays open across exec. Pass it in [`sidestep_shm::wire::ENV_INHERIT`], and the group
    /// in [`sidestep_shm::wire::ENV_GROUP`]; the new image calls [`Self::adopt`]. If exec fails, call
    /// [`Self::cancel_exec`].
    ///
    /// # Errors
    /// As [`Self::prepare_fork`].
    pub fn prepare_exec(&self, slots: &mut dyn Iterator<Item = u32>) -> Result<RawFd, Errno> {
        let (control, process) = self.join(true)?;
        rustix::io::fcntl_setfd(&control, FdFlags::empty())?;
        self.hold_all(process, slots);
        Ok(control.into_raw())
    }

    /// exec failed: gives the place of [`Self::prepare_exec`] back.
    pub fn cancel_exec(&self, control: RawFd) {
        close_raw(control);
    }

    /// Joins the group once more. With `keep`, the `Welcome` and its descriptors stay queued for someone else.
    fn join(&self, keep: bool) -> Result<(Fd, u32), Errno> {
        if !self.is_alive() {
            return Err(Errno::NETDOWN);
        }
        let control = control::connect(self.address.as_ref().ok_or(Errno::NOTCONN)?)?;
        control::send(control.as_fd(), &hello(self.group), None)?;
        let mut packet = Packet::new();
        control::receive(control.as_fd(), &mut packet, None, keep)?;
        match packet.reply() {
            Some((Reply::Welcome { process, group, .. }, _)) if group == self.group && process < MAX_PROCESSES => {
                Ok((control, process))
            }
            Some((Reply::Failed { errno: number }, _)) => Err(errno(number)),
            _ => Err(Errno::PROTO),
        }
    }

    fn hold_all(&self, process: u32, slots: &mut dyn Iterator<Item = u32>) {
        slots.filter_map(|s| self.region.slot(s)).for_each(|slot| slot.hold(process));
    }

    // ---- for the other modules --------------------------------------------------------------------------------

    /// One request and its reply. One thread at a time talks.
    pub(crate) fn call(&self, request: &Request, with: Option<BorrowedFd<'_>>) -> Result<([u8; 16], u16), Errno> {
        match self.ask(request, with)? {
            Reply::Done { address, port } => Ok((address, port)),
            _ => Err(Errno::PROTO),
        }
    }

    /// The same with any reply but a refusal.
    pub(crate) fn ask(&self, request: &Request, with: Option<BorrowedFd<'_>>) -> Result<Reply, Errno> {
        if !self.is_alive() {
            return Err(Errno::NETDOWN);
        }
        if let Some(engine) = &self.in_process {
            let with = with.map(|fd| rustix::io::fcntl_dupfd_cloexec(fd, 0)).transpose().map_err(|_| Errno::MFILE)?;
            return granted(Some(engine.call(request, with)));
        }
        let me = rustix::thread::gettid().as_raw_nonzero().get() as u32;
        let mut patience = Patience::new();
        while let Err(other) = self.talking.compare_exchange(0, me, Ordering::Acquire, Ordering::Relaxed) {
            // A signal handler that interrupted this very thread's conversation can't wait for its end.
            if other == me || !patience.wait(2 * control::REPLY_WAIT_NS) {
                return Err(Errno::DEADLK);
            }
        }
        let mut packet = Packet::new();
        let outcome = control::send(self.control(), request, with)
            .and_then(|()| control::receive(self.control(), &mut packet, None, false));
        if outcome.is_err() {
            // Request and reply would no longer be in step.
            self.mark_dead();
        }
        self.talking.store(0, Ordering::Release);
        outcome.map_err(|_| Errno::NETDOWN)?;
        granted(packet.reply().map(|(reply, _)| reply))
    }

    /// The slot, or EBADF.
    pub(crate) fn slot(&self, slot: u32) -> Result<&Slot, Errno> {
        self.region.slot(slot).ok_or(Errno::BADF)
    }

    /// "Look here": tells the slot's shard, and wakes it if it sleeps.
    pub(crate) fn mark(&self, slot: &Slot, number: u32) {
        self.tell(slot, number, false);
    }

    /// The same, and it is to happen soon.
    pub(crate) fn mark_now(&self, slot: &Slot, number: u32) {
        self.tell(slot, number, true);
    }

    #[inline]
    fn tell(&self, slot: &Slot, number: u32, now: bool) {
        let shard = self.note(slot, number);
        self.ring(shard, now);
    }

    /// The first half of [`Self::mark`]: the slot is marked, and its shard, which this gives, not yet woken. The second
    /// half, [`Self::ring`], must follow; one for any number of slots.
    #[inline]
    pub(crate) fn note(&self, slot: &Slot, number: u32) -> u32 {
        let claimed = slot.shard.load(Ordering::Relaxed);
        // A number beyond the shards can only be damage; the engine drops such a socket, whoever tells it.
        let shard = if claimed < self.region.geometry().shards { claimed } else { 0 };
        if let Some(door) = self.region.door(shard) {
            door.dirty.mark(number);
        }
        shard
    }

    #[inline]
    pub(crate) fn ring(&self, shard: u32, now: bool) {
        let Some(door) = self.region.door(shard) else { return };
        if now
            && let Some(driver) = self.driver()
            && driver.sent(shard)
        {
            return;
        }
        if door.door.must_ring()
            && let Some(bell) = self.bells.get(shard as usize)
        {
            // An eventfd takes 8 bytes or fails; it only fails when its counter is at 2^64 - 2, and then it has rung.
            let _ = rustix::io::write(bell, &1u64.to_ne_bytes());
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        close_raw(self.control.load(Ordering::Relaxed));
        // Views of the mapping borrow from the session and are gone.
        unmap(self.region.base().as_ptr().cast(), self.bytes);
    }
}

impl core::fmt::Debug for Session {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Session")
            .field("process", &self.process())
            .field("control", &self.control().as_raw_fd())
            .field("alive", &!self.dead.load(Ordering::Relaxed))
            .finish_non_exhaustive()
    }
}

/// What a reply that should be `Done` says.
fn granted(reply: Option<Reply>) -> Result<Reply, Errno> {
    match reply {
        Some(Reply::Failed { errno: number }) if number != 0 => Err(errno(number)),
        Some(Reply::Failed { .. }) | None => Err(Errno::PROTO),
        Some(reply) => Ok(reply),
    }
}

fn hello(group: u128) -> Request {
    Request::Hello { protocol: PROTOCOL, group, pid: pid() }
}

fn pid() -> u32 {
    rustix::process::getpid().as_raw_nonzero().get() as u32
}

fn decode_rules(count: u32, payload: &[u8]) -> Option<([RouteRule; MAX_ROUTE_RULES], usize)> {
    let count = count as usize;
    let mut rules = [RouteRule { prefix: [0; 16], prefix_bits: 0, kernel: false }; MAX_ROUTE_RULES];
    if count > MAX_ROUTE_RULES || payload.len() != count * RouteRule::BYTES {
        return None;
    }
    for (rule, bytes) in rules.iter_mut().zip(payload.chunks_exact(RouteRule::BYTES)) {
        *rule = RouteRule::decode(bytes)?;
    }
    Some((rules, count))
}

/// Maps the group's memory, after a look that it is what it must be.
fn map(memfd: &Fd, region_bytes: u64, socket: &str) -> Result<(Region, usize), AttachError> {
    let named = || socket.to_owned();
    let garbled = |what| AttachError::Garbled { socket: named(), what };
    let failed = |cause| AttachError::Map { socket: named(), bytes: region_bytes, cause };
    let size = rustix::fs::fstat(memfd).map_err(failed)?.st_size;
    if region_bytes < sidestep_shm::layout::PAGE_BYTES || u64::try_from(size).unwrap_or(0) < region_bytes {
        return Err(garbled("shared memory that is too small"));
    }
    if !rustix::fs::fcntl_get_seals(memfd).map_err(failed)?.contains(SealFlags::SHRINK) {
        return Err(garbled("shared memory that is not sealed against shrinking"));
    }
    let bytes = usize::try_from(region_bytes).map_err(|_| failed(Errno::NOMEM))?;
    let flags = MapFlags::SHARED | MapFlags::NORESERVE;
    // SAFETY: a new mapping at an address of the kernel's choice; its length was checked against the file's size.
    let base =
        unsafe { rustix::mm::mmap(core::ptr::null_mut(), bytes, ProtFlags::READ | ProtFlags::WRITE, flags, memfd, 0) }
            .map_err(failed)?;
    // A core dump would otherwise be as large as the region.
    // SAFETY: the mapping just made.
    let _ = unsafe { rustix::mm::madvise(base, bytes, Advice::LinuxDontDump) };
    let base_ptr = NonNull::new(base.cast::<u8>()).ok_or_else(|| failed(Errno::NOMEM))?;
    // SAFETY: page-aligned, `bytes` long, mapped shared until the session is dropped, sealed against shrinking.
    unsafe { Region::open(base_ptr, region_bytes) }.map(|region| (region, bytes)).map_err(|cause| {
        unmap(base, bytes);
        AttachError::Region { socket: named(), cause }
    })
}

fn unmap(base: *mut c_void, bytes: usize) {
    // SAFETY: the caller mapped it and no view of it is left.
    let _ = unsafe { rustix::mm::munmap(base, bytes) };
}
