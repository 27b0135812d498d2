//! Requests of programs, one function each.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with, sockopt};
use sidestep_shm::accept::AcceptRing;
use sidestep_shm::slot::{kind, option, status, store_address};
use sidestep_shm::wire::{PROTOCOL, Reply, Request};
use sidestep_stack::{ListenAddress, TcpState};

use super::address::{endpoint, mapped, unmapped};
use super::books::{Book, Books};
use super::group::{Group, USED_BY_CONTROL};
use super::ports::{Binding, Protocol, datagram_shard};
use crate::shard::mailbox::Message;

/// Tries to find a free port by chance before all are looked at in order.
const RANDOM_TRIES: u32 = 16;

/// What a request gets.
pub enum Answer {
    Reply(Reply),
    /// Hello went well. `reply` goes out with `rules` as its payload, and the group's memfd and doorbells.
    Welcome {
        process: u32,
        reply: Reply,
        rules: Vec<u8>,
        group: Arc<Group>,
    },
}

impl Answer {
    fn failed(errno: Errno) -> Self {
        Self::Reply(Reply::Failed { errno: errno.raw_os_error().cast_unsigned() })
    }
}

impl Books {
    /// Does what a program asks for. `who`: its group and process, once it said hello.
    pub fn answer(&mut self, who: Option<(u32, u32)>, request: Request, fds: Vec<OwnedFd>) -> Answer {
        let answer = match (request, who) {
            (Request::Hello { protocol, group, pid }, None) => {
                return self.hello(protocol, group, pid).unwrap_or_else(Answer::failed);
            }
            (Request::Adopt { pid }, Some((group, process))) => self.adopt(group, process, pid),
            (Request::EventQueue { queue }, Some((group, process))) => self.event_queue(group, process, queue, fds),
            (Request::Bind { slot, kind, options, address, port }, Some((group, _))) => {
                self.bind(group, slot, kind, options, address, port)
            }
            (Request::Listen { slot, backlog }, Some((group, _))) => self.listen(group, slot, backlog),
            (Request::Info { slot }, Some((group, _))) => self.info(group, slot),
            (Request::Unlisten { slot }, Some((group, _))) => self.unlisten(group, slot),
            (Request::SendAway { slot }, Some((group, process))) => self.send_away(group, process, slot, fds),
            (Request::TakeIn, Some((group, process))) => self.take_in(group, process, fds),
            (Request::Hello { .. } | Request::Whose, Some(_)) => Err(Errno::ISCONN),
            // A question of a tool; it needs no group, and only a connection can carry its answer.
            (Request::Inspect { .. }, _) => Err(Errno::OPNOTSUPP),
            (_, None) => Err(Errno::NOTCONN),
        };
        answer.map_or_else(Answer::failed, Answer::Reply)
    }

    fn hello(&mut self, protocol: u32, token: u128, pid: u32) -> Result<Answer, Errno> {
        if protocol != PROTOCOL {
            return Err(Errno::PROTONOSUPPORT);
        }
        let group = self.group_of(token).map_err(|error| {
            tracing::error!(%error, "can't make the shared memory of a new program");
            Errno::NOMEM
        })?;
        let state = self.group_mut(group).ok_or(Errno::BADF)?;
        let process = state.pids.iter().position(Option::is_none).ok_or(Errno::USERS)?;
        state.pids[process] = Some(pid);
        let group = Arc::clone(&state.group);
        let process = process as u32;
        if let Some(p) = group.region().process(process) {
            p.pid.store(pid, Ordering::Release);
        }
        let rules: Vec<u8> = self.settings.rules.iter().flat_map(|r| r.encode()).collect();
        let reply = Reply::Welcome {
            process,
            shards: self.mailboxes.len() as u32,
            region_bytes: self.settings.geometry.region_bytes(),
            group: group.token,
            spin_us: self.settings.spin_us,
            rules: self.settings.rules.len() as u32,
        };
        self.count_programs();
        Ok(Answer::Welcome { process, reply, rules, group })
    }

    fn adopt(&mut self, group: u32, process: u32, pid: u32) -> Result<Reply, Errno> {
        let state = self.group_mut(group).ok_or(Errno::BADF)?;
        if let Some(known) = state.pids.get_mut(process as usize) {
            *known = Some(pid);
        }
        if let Some(p) = state.group.region().process(process) {
            p.pid.store(pid, Ordering::Release);
        }
        Ok(done())
    }

    fn event_queue(&mut self, group: u32, process: u32, queue: u32, fds: Vec<OwnedFd>) -> Result<Reply, Errno> {
        let state = self.group(group).ok_or(Errno::BADF)?;
        let shared = state.group.region().event_queue(queue).ok_or(Errno::INVAL)?;
        if shared.owner.load(Ordering::Acquire) != process + 1 {
            return Err(Errno::PERM);
        }
        let doorbell = Arc::new(fds.into_iter().next().ok_or(Errno::BADF)?);
        self.ask_all(|reply| Message::EventQueue { group, queue, doorbell: Some(Arc::clone(&doorbell)), reply });
        Ok(done())
    }

    fn bind(
        &mut self,
        group: u32,
        slot: u32,
        socket_kind: u32,
        options: u32,
        address: [u8; 16],
        port: u16,
    ) -> Result<Reply, Errno> {
        let protocol = match socket_kind {
            kind::TCP4 | kind::TCP6 => Protocol::Tcp,
            kind::UDP4 | kind::UDP6 => Protocol::Udp,
            _ => return Err(Errno::INVAL),
        };
        let shared = Arc::clone(&self.group(group).ok_or(Errno::BADF)?.group);
        let in_shared = shared.region().slot(slot).ok_or(Errno::BADF)?;
        if slot >= shared.region().geometry().open_slots || shared.is_bound(slot) || shared.user(slot) != 0 {
            return Err(Errno::INVAL);
        }
        let ip = unmapped(address);
        let any = ip.is_unspecified();
        if !any && !self.may_bind(ip) {
            return Err(Errno::ADDRNOTAVAIL);
        }
        let v6_socket = matches!(socket_kind, kind::TCP6 | kind::UDP6);
        let make = || Binding {
            group,
            slot,
            address: (!any).then_some(ip),
            // A v6 socket bound to any address takes IPv4 too, unless it asked not to (ipv6(7), IPV6_V6ONLY).
            ipv4: ip.is_ipv4() || (any && v6_socket && options & option::V6_ONLY == 0),
            ipv6: ip.is_ipv6(),
            reuse_address: options & option::REUSE_ADDRESS != 0,
            reuse_port: options & option::REUSE_PORT != 0,
            listening: false,
            reservation: None,
        };
        let (port, binding) =
            if port == 0 { self.any_port(protocol, make)? } else { self.this_port(protocol, port, make)? };
        let at = ListenAddress { address: binding.address, port, ipv4: binding.ipv4, ipv6: binding.ipv6 };
        let reuse_port = binding.reuse_port;
        self.ports.claim(protocol, port, binding);
        let book = Book { protocol, address, at, reuse_port, listening: false };
        if let Some(state) = self.group_mut(group) {
            state.books.insert(slot, book);
        }
        shared.set_bound(slot, true);
        if protocol == Protocol::Udp {
            let home = datagram_shard(port, self.mailboxes.len() as u32);
            in_shared.shard.store(home, Ordering::Release);
            let opened = shared.take(slot, USED_BY_CONTROL)
                && self
                    .ask(home as usize, |reply| Message::OpenDatagram { group, slot, at, reuse: reuse_port, reply })
                    .is_some_and(|r| r.is_ok());
            if !opened {
                self.forget(group, slot);
                return Err(Errno::ADDRINUSE);
            }
        }
        // Not only for listeners: a bound socket that connects wants its answers.
        self.steer(protocol, port, true);
        store_address(&in_shared.local_address, address);
        in_shared.local_port.store(port.into(), Ordering::Relaxed);
        let open = if protocol == Protocol::Udp { status::OPEN } else { 0 };
        in_shared.status.fetch_or(status::BOUND | open, Ordering::Release);
        Ok(Reply::Done { address, port })
    }

    /// Addresses that are ours to bind to.
    fn may_bind(&self, ip: std::net::IpAddr) -> bool {
        self.settings.addresses.contains(&ip)
            || (self.settings.loopback_in_stack && ip.is_loopback())
            || ip.is_multicast()
    }

    fn this_port(
        &mut self,
        protocol: Protocol,
        port: u16,
        make: impl Fn() -> Binding,
    ) -> Result<(u16, Binding), Errno> {
        let mut binding = make();
        if self.settings.kernel_ports.iter().any(|&(first, last)| (first..=last).contains(&port)) {
            tracing::warn!(port, "a program asked for a port that the configuration keeps for the kernel");
            return Err(Errno::ADDRINUSE);
        }
        // close() goes through shared memory and may be on its way: whoever is in the way without a holder is gone.
        for (group, slot) in self.ports.in_the_way(protocol, port, &binding) {
            self.unheld(group, slot);
            // SO_REUSEADDR and SO_REUSEPORT count as they stand now, not as they stood at bind().
            let shared =
                self.group(group).and_then(|g| Some(g.group.region().slot(slot)?.options.load(Ordering::Relaxed)));
            if let Some(options) = shared {
                self.ports.set_reuse(protocol, port, (group, slot), options);
            }
        }
        if !self.ports.is_free(protocol, port, &binding) || self.is_used(protocol, port, &binding) {
            return Err(Errno::ADDRINUSE);
        }
        if self.settings.shared_address {
            binding.reservation = Some(reserve(protocol, port, &binding).inspect_err(|errno| {
                tracing::warn!(port, %errno, "a program asked for a port that the kernel's programs use");
            })?);
        }
        Ok((port, binding))
    }

    /// Whether connections that outlived their listener, or TIME-WAIT, keep the port from a socket without SO_REUSEADDR
    /// (socket(7)).
    fn is_used(&self, protocol: Protocol, port: u16, new: &Binding) -> bool {
        if protocol != Protocol::Tcp || new.reuse_address || new.reuse_port {
            return false;
        }
        let at = ListenAddress { address: new.address, port, ipv4: new.ipv4, ipv6: new.ipv6 };
        self.ask_all(|reply| Message::UsesPort { at, reply }).contains(&Some(true))
    }

    fn any_port(&mut self, protocol: Protocol, make: impl Fn() -> Binding) -> Result<(u16, Binding), Errno> {
        let (first, last) = self.settings.ephemeral_ports;
        let count = u64::from(last - first) + 1;
        let start = self.draw() % count;
        for n in 0..count {
            let offset = if n < u64::from(RANDOM_TRIES) { self.draw() % count } else { (start + n) % count };
            let port = first + offset as u16;
            // A port for everyone to find must be nobody else's: reuse flags don't count here.
            let mut alone = make();
            alone.reuse_address = false;
            alone.reuse_port = false;
            if self.ports.is_free(protocol, port, &alone)
                && let Ok(found) = self.this_port(protocol, port, &make)
            {
                return Ok(found);
            }
        }
        Err(Errno::ADDRINUSE)
    }

    fn listen(&mut self, group: u32, slot: u32, backlog: u32) -> Result<Reply, Errno> {
        let geometry = self.settings.geometry;
        let state = self.group(group).ok_or(Errno::BADF)?;
        let shared = Arc::clone(&state.group);
        let in_shared = shared.region().slot(slot).ok_or(Errno::BADF)?;
        let book = *state.books.get(&slot).ok_or(Errno::INVAL)?;
        if book.protocol != Protocol::Tcp {
            return Err(Errno::OPNOTSUPP);
        }
        let first_time = !book.listening;
        if first_time {
            // As for bind(): a close() may be on its way.
            for (group, slot) in self.ports.listeners(book.at.port) {
                self.unheld(group, slot);
            }
            if !self.ports.listen(book.at.port, group, slot) {
                return Err(Errno::ADDRINUSE);
            }
            if !shared.take(slot, USED_BY_CONTROL) {
                return Err(Errno::INVAL);
            }
            // Marks of a listener go to the first shard; the others hear of it from here.
            in_shared.shard.store(0, Ordering::Release);
        }
        let backlog = backlog.clamp(1, AcceptRing::capacity_for(&geometry));
        let (at, reuse_port) = (book.at, book.reuse_port);
        let options = crate::shard::read_options(in_shared);
        let done = self.ask_all(|reply| {
            let options = Box::new(options);
            Message::Listen { group, slot, at, backlog, options, reuse_port, reply }
        });
        if !done.iter().all(|d| matches!(d, Some(Ok(())))) {
            if first_time {
                self.ask_all(|reply| Message::CloseShared { group, slot, reply });
            }
            return Err(Errno::ADDRINUSE);
        }
        if let Some(book) = self.group_mut(group).and_then(|s| s.books.get_mut(&slot)) {
            book.listening = true;
        }
        in_shared.tcp_state.store(TcpState::Listen as u32, Ordering::Relaxed);
        in_shared.status.fetch_or(status::OPEN | status::LISTENING, Ordering::SeqCst);
        Ok(Reply::Done { address: book.address, port: book.at.port })
    }

    /// TCP_INFO. Asked for so seldom that nothing is kept ready for it: the shard is asked in turn.
    fn info(&self, group: u32, slot: u32) -> Result<Reply, Errno> {
        let shared = &self.group(group).ok_or(Errno::BADF)?.group;
        let shard = match shared.user(slot) {
            0 => return Err(Errno::NOTCONN),
            // Of a listener: every shard has one, and programs see the first's.
            USED_BY_CONTROL => 0,
            user => user as usize - 1,
        };
        let info = self.ask(shard, |reply| Message::Info { group, slot, reply }).flatten();
        info.map(|info| Reply::Info { info: *info }).ok_or(Errno::NOTCONN)
    }

    /// shutdown() of a listener: it stays bound, and listen() may follow (as in Linux, where this undoes listen()).
    fn unlisten(&mut self, group: u32, slot: u32) -> Result<Reply, Errno> {
        let state = self.group_mut(group).ok_or(Errno::BADF)?;
        let shared = Arc::clone(&state.group);
        let in_shared = shared.region().slot(slot).ok_or(Errno::BADF)?;
        let book = state.books.get_mut(&slot).filter(|b| b.listening).ok_or(Errno::NOTCONN)?;
        book.listening = false;
        let port = book.at.port;
        self.ports.unlisten(port, group, slot);
        in_shared.tcp_state.store(TcpState::Closed as u32, Ordering::Relaxed);
        in_shared.status.fetch_and(!(status::OPEN | status::LISTENING), Ordering::SeqCst);
        self.ask_all(|reply| Message::CloseShared { group, slot, reply });
        shared.give_back(slot);
        Ok(done())
    }

    /// The last holder of a slot in the books is gone.
    pub fn unheld(&mut self, group: u32, slot: u32) {
        let Some(state) = self.group(group) else { return };
        let shared = Arc::clone(&state.group);
        let Some(in_shared) = shared.region().slot(slot) else { return };
        if in_shared.is_held() {
            return;
        }
        if let Some(book) = state.books.get(&slot).copied() {
            if book.listening || book.protocol == Protocol::Udp {
                self.ask_all(|reply| Message::CloseShared { group, slot, reply });
            }
            self.forget(group, slot);
        } else if shared.user(slot) == 0 && !shared.region().free_slots().contains(slot) {
            shared.free(slot, 0);
        }
    }

    /// Takes a slot out of the books and gives slot and port back.
    fn forget(&mut self, group: u32, slot: u32) {
        let Some(state) = self.group_mut(group) else { return };
        let shared = Arc::clone(&state.group);
        if let Some(book) = state.books.remove(&slot)
            && let Some(binding) = self.ports.release(book.protocol, book.at.port, group, slot)
        {
            let (first, last) = self.settings.ephemeral_ports;
            if self.settings.shared_address && !(first..=last).contains(&book.at.port) {
                // Connections may outlive their listener: the port stays ours until the last one is gone.
                self.leaving.push((book.protocol, book.at.port, binding));
            }
        }
        shared.set_bound(slot, false);
        shared.free(slot, u64::MAX);
    }

    /// Shared address: tells the XDP program whose a port is.
    fn steer(&self, protocol: Protocol, port: u16, ours: bool) {
        if !self.settings.shared_address {
            return;
        }
        if let Some(steering) = &self.steering
            && let Ok(steering) = steering.lock()
            && let Err(error) = steering.set_port(protocol == Protocol::Tcp, port, ours)
        {
            tracing::error!(%error, port, "can't mark a port for the XDP program");
        }
    }

    /// Gives ports of a shared address back to the kernel once no connection uses them.
    pub fn let_ports_go(&mut self) {
        let leaving = std::mem::take(&mut self.leaving);
        for (protocol, port, binding) in leaving {
            if self.ports.is_claimed(protocol, port) {
                // Somebody has it again; its own reservation keeps it.
                continue;
            }
            let used = protocol == Protocol::Tcp
                && self
                    .ask_all(|reply| Message::UsesPort {
                        at: ListenAddress { address: None, port, ipv4: true, ipv6: true },
                        reply,
                    })
                    .iter()
                    .any(|u| *u != Some(false));
            if used {
                self.leaving.push((protocol, port, binding));
            } else {
                self.steer(protocol, port, false);
            }
        }
    }
}

fn done() -> Reply {
    Reply::Done { address: [0; 16], port: 0 }
}

/// Keeps a port of a shared address from the kernel's programs, or learns that one of them has it.
fn reserve(protocol: Protocol, port: u16, binding: &Binding) -> Result<OwnedFd, Errno> {
    let any =
        if binding.ipv6 { std::net::Ipv6Addr::UNSPECIFIED.into() } else { std::net::Ipv4Addr::UNSPECIFIED.into() };
    let address = binding.address.unwrap_or(any);
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket_type = if protocol == Protocol::Tcp { SocketType::STREAM } else { SocketType::DGRAM };
    let socket = socket_with(family, socket_type, SocketFlags::CLOEXEC, None)?;
    if protocol == Protocol::Tcp {
        // Connections in TIME-WAIT are no reason to refuse; a listener still is.
        sockopt::set_socket_reuseaddr(&socket, true)?;
    }
    if family == AddressFamily::INET6 {
        sockopt::set_ipv6_v6only(&socket, !binding.ipv4)?;
    }
    bind(&socket, &endpoint(mapped(address), port))?;
    Ok(socket)
}
