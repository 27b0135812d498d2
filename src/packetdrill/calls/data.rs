//! Bytes in and out. Every stream carries [`pattern`], and what is read must be that.

use std::io::{IoSlice, IoSliceMut};
use std::net::SocketAddr;

use sidestep_client::shm::slot::option;
use sidestep_client::{DatagramOptions, Errno};

use super::super::script::Expression;
use super::super::world::{World, pattern};
use super::arguments::{address, as_socket_has_it, field, is_null, number, pieces, size};
use super::sockets::expect;
use super::{Attempt, Call, Calls, Sock, Step, fails, gives, socket};

/// Bytes that are written before there is a connection, at most.
const MOST_AT_ONCE: usize = 65_536;
/// Bytes that options may take of a SYN.
const SYN_OPTIONS: usize = 40;

/// Buffers and flags of a call on bytes.
pub(super) struct Buffers {
    /// Whether the pointer is null, and bytes.
    pieces: Vec<(bool, usize)>,
    flags: i32,
}

impl Buffers {
    pub fn total(&self) -> usize {
        self.pieces.iter().map(|p| p.1).sum()
    }

    fn has_null(&self) -> bool {
        self.pieces.iter().any(|p| p.0 && p.1 > 0)
    }

    fn of(world: &World, call: &Call) -> Result<Self, String> {
        let flags = |n: usize| -> Result<i32, String> { Ok(call.number(world, n)? as i32) };
        let plain = || -> Result<_, String> { Ok(vec![(is_null(call.argument(1)?), size(world, call.argument(2)?)?)]) };
        let found = match call.syscall.name.as_str() {
            "read" | "write" => Self { pieces: plain()?, flags: 0 },
            "recv" | "send" | "recvfrom" | "sendto" => Self { pieces: plain()?, flags: flags(3)? },
            "readv" | "writev" => Self { pieces: pieces(world, call.argument(1)?)?, flags: 0 },
            _ => {
                let iov = field(call.argument(1)?, "msg_iov").ok_or("a msghdr without msg_iov")?;
                Self { pieces: pieces(world, iov)?, flags: flags(2)? }
            }
        };
        match found.total() {
            n if n > world.settings.most_bytes => Err(format!("{n} bytes are more than this runner takes")),
            _ => Ok(found),
        }
    }
}

impl Calls {
    pub(super) fn receive(&mut self, world: &mut World, call: &mut Call) -> Attempt {
        let buffers = Buffers::of(world, call)?;
        let fd = call.number(world, 0)?;
        if let Some(super::Object::Pipe { .. } | super::Object::File { .. }) = self.objects.get(&fd) {
            return self.read_file(fd, buffers.total());
        }
        let sock = socket!(self, fd);
        if buffers.flags & libc::MSG_ERRQUEUE != 0 {
            let Some(range) = world.session.take_copied(sock.slot) else { return fails(libc::EAGAIN) };
            if call.syscall.name == "recvmsg" {
                check_notice(world, sock, call.argument(1)?, range)?;
            }
            return gives(0);
        }
        if buffers.flags & libc::MSG_OOB != 0 {
            return fails(libc::EINVAL);
        }
        let mut bytes = vec![0; buffers.total()];
        let outcome = if sock.datagram {
            receive_datagram(world, sock, &buffers, &mut bytes)
        } else {
            receive_stream(world, sock, call, &buffers, &mut bytes)
        };
        match outcome {
            Ok(got) if got > 0 && buffers.has_null() => fails(libc::EFAULT),
            Ok(got) => {
                if call.syscall.name == "recvmsg" {
                    check_message(world, sock, call.argument(1)?)?;
                }
                gives(got as i64)
            }
            Err(Errno::AGAIN) if !sock.nonblocking && buffers.flags & libc::MSG_DONTWAIT == 0 => Ok(Step::Wait),
            Err(error) => fails(error.raw_os_error()),
        }
    }

    pub(super) fn send(&mut self, world: &mut World, call: &mut Call) -> Attempt {
        let buffers = Buffers::of(world, call)?;
        let fd = call.number(world, 0)?;
        if let Some(super::Object::Pipe { .. } | super::Object::File { .. }) = self.objects.get(&fd) {
            return self.write_pipe(fd, buffers.total());
        }
        let sock = socket!(self, fd);
        if sock.datagram {
            return send_datagram(world, sock, call, &buffers);
        }
        if (buffers.flags & libc::MSG_FASTOPEN != 0 || sock.deferred.is_some()) && !call.begun {
            return send_fast(world, sock, call, &buffers);
        }
        if call.begun && sock.connecting {
            // The connection that it started comes first.
            match world.session.connect_outcome(sock.slot) {
                Ok(true) if call.done == buffers.total() => {
                    sock.connecting = false;
                    return gives(call.done as i64);
                }
                Ok(true) => sock.connecting = false,
                Ok(false) => return Ok(Step::Wait),
                Err(error) => return fails(error.raw_os_error()),
            }
        }
        if buffers.has_null() {
            return fails(libc::EFAULT);
        }
        let waits = !sock.nonblocking && buffers.flags & libc::MSG_DONTWAIT == 0;
        let (slot, more) = (sock.slot, buffers.flags & libc::MSG_MORE != 0);
        let how = How { more, record: buffers.flags & libc::MSG_EOR != 0, waits };
        let step = send_stream(world, sock, call, buffers.total(), how)?;
        if matches!(step, Step::Done(Ok(n)) if n > 0) && buffers.flags & libc::MSG_ZEROCOPY != 0 {
            world.session.note_copied(slot);
        }
        Ok(step)
    }
}

/// Connects with the first bytes (MSG_FASTOPEN, TCP_FASTOPEN_CONNECT), as tcp_sendmsg_fastopen() of Linux does it.
fn send_fast(world: &mut World, sock: &mut Sock, call: &mut Call, buffers: &Buffers) -> Attempt {
    if !world.settings.tcp.fast_open.client {
        return fails(libc::EOPNOTSUPP);
    }
    if sock.connecting {
        return match world.session.connect_outcome(sock.slot) {
            Ok(true) => fails(libc::EISCONN),
            Ok(false) => fails(libc::EALREADY),
            Err(error) => fails(error.raw_os_error()),
        };
    }
    let default = SocketAddr::new(world.settings.remote, world.settings.connect_port);
    let to = match call.syscall.name.as_str() {
        "sendto" => address(world, call.argument(4)?)?,
        "sendmsg" => field(call.argument(1)?, "msg_name").map_or(Ok(None), |name| address(world, name))?,
        _ => None,
    };
    let to = sock.deferred.unwrap_or_else(|| to.unwrap_or(default));
    let to = SocketAddr::new(as_socket_has_it(world.settings.family, sock.v6, to.ip()), to.port());
    // Without a cookie nothing is known of the server but what all take.
    let headers = if world.settings.remote.is_ipv4() { 40 } else { 60 };
    let most = world.settings.mtu.saturating_sub(headers + SYN_OPTIONS) as u32;
    let without = world.session.option(sock.slot, option::NO_COOKIE).then_some(most);
    let room = world.fast_open_room().or(without).map(|room| room.min(most));
    let carries = room.is_some();
    if buffers.has_null() && carries {
        return fails(libc::EFAULT);
    }
    let waits = !sock.nonblocking && buffers.flags & libc::MSG_DONTWAIT == 0;
    // One that waits has the rest go with the ACK, as on Linux, where that ACK waits for the writer.
    let first = buffers.total().min(if waits { MOST_AT_ONCE } else { room.unwrap_or(0) as usize });
    let bytes: Vec<u8> = (1..=first as u32).map(|i| pattern(sock.writes.wrapping_add(i))).collect();
    let first = match world.session.connect_with(sock.slot, to, &[IoSlice::new(&bytes)]) {
        Ok(taken) => taken,
        Err(error) => return fails(error.raw_os_error()),
    };
    sock.deferred = None;
    sock.writes = sock.writes.wrapping_add(first as u32);
    world.settle();
    let local = world.session.local_address(sock.slot).map_or(0, |a| a.port());
    world.own(sock.slot, local, to.port());
    sock.connecting = true;
    if first > 0 && buffers.flags & libc::MSG_ZEROCOPY != 0 {
        world.session.note_copied(sock.slot);
    }
    if !waits {
        return match world.session.connect_outcome(sock.slot) {
            Ok(_) if first > 0 => gives(first as i64),
            Ok(_) => fails(libc::EINPROGRESS),
            Err(error) => fails(error.raw_os_error()),
        };
    }
    call.done = first;
    call.begun = true;
    Ok(Step::Wait)
}

/// How bytes are sent.
#[derive(Clone, Copy, Default)]
pub(super) struct How {
    /// MSG_MORE.
    pub more: bool,
    /// MSG_EOR.
    pub record: bool,
    /// The call waits for room.
    pub waits: bool,
}

/// Sends what is left of `total` bytes.
pub(super) fn send_stream(world: &mut World, sock: &mut Sock, call: &mut Call, total: usize, how: How) -> Attempt {
    loop {
        let left = total - call.done;
        let bytes: Vec<u8> = (1..=left as u32).map(|i| pattern(sock.writes.wrapping_add(i))).collect();
        let bytes = [IoSlice::new(&bytes)];
        let sent = if how.record {
            world.session.send_record(sock.slot, &bytes)
        } else {
            world.session.send(sock.slot, &bytes, how.more)
        };
        match sent {
            Ok(sent) => {
                call.done += sent;
                sock.writes = sock.writes.wrapping_add(sent as u32);
                if call.done == total {
                    return gives(total as i64);
                }
                sock.starved += 1;
                // The stack may take what was written at once, and there is room again.
                world.settle();
                if !how.waits {
                    return gives(call.done as i64);
                }
                if sent == 0 {
                    return Ok(Step::Wait);
                }
            }
            Err(Errno::AGAIN) if how.waits => {
                sock.starved += 1;
                return Ok(Step::Wait);
            }
            Err(_) if call.done > 0 => return gives(call.done as i64),
            Err(error) => {
                sock.starved += u32::from(error == Errno::AGAIN);
                return fails(error.raw_os_error());
            }
        }
    }
}

fn receive_stream(
    world: &mut World,
    sock: &mut Sock,
    call: &mut Call,
    buffers: &Buffers,
    bytes: &mut [u8],
) -> Result<usize, Errno> {
    let peek = buffers.flags & libc::MSG_PEEK != 0 || buffers.has_null();
    let all = buffers.flags & libc::MSG_WAITALL != 0 && !peek;
    if bytes.is_empty() {
        return Ok(0);
    }
    let first = world.first_byte(sock.slot);
    loop {
        let rest = &mut bytes[call.done..];
        match world.session.receive(sock.slot, &mut [IoSliceMut::new(rest)], peek) {
            Ok(got) => {
                if let Some(wrong) =
                    (0..got).find(|i| rest[*i] != pattern(first.wrapping_add(sock.reads).wrapping_add(*i as u32)))
                {
                    world.broken = Some(format!("byte {wrong} of {got} read is not the one that was sent"));
                }
                if !peek {
                    sock.reads = sock.reads.wrapping_add(got as u32);
                    call.done += got;
                }
                if peek || got == 0 || call.done == bytes.len() || !all {
                    return Ok(if peek { got } else { call.done });
                }
            }
            Err(_) if call.done > 0 && !all => return Ok(call.done),
            Err(error) => return Err(error),
        }
    }
}

fn receive_datagram(world: &World, sock: &Sock, buffers: &Buffers, bytes: &mut [u8]) -> Result<usize, Errno> {
    let peek = buffers.flags & libc::MSG_PEEK != 0;
    let (got, header) = world.session.receive_datagram(sock.slot, &mut [IoSliceMut::new(bytes)], peek)?;
    Ok(if buffers.flags & libc::MSG_TRUNC != 0 { header.len as usize } else { got })
}

fn send_datagram(world: &mut World, sock: &mut Sock, call: &Call, buffers: &Buffers) -> Attempt {
    let bytes: Vec<u8> = (0..buffers.total() as u32).map(pattern).collect();
    let to = match call.syscall.name.as_str() {
        "sendto" => {
            address(world, call.argument(4)?)?.or(Some((world.settings.remote, world.settings.connect_port).into()))
        }
        _ => None,
    };
    let to = to.map(|to| (as_socket_has_it(world.settings.family, sock.v6, to.ip()), to.port()).into());
    match world.session.send_datagram(sock.slot, &[IoSlice::new(&bytes)], to, &DatagramOptions::default()) {
        Ok(sent) => gives(sent as i64),
        Err(Errno::AGAIN) if !sock.nonblocking => Ok(Step::Wait),
        Err(error) => fails(error.raw_os_error()),
    }
}

/// A notice that bytes given with MSG_ZEROCOPY are the script's again.
fn check_notice(world: &World, sock: &Sock, message: &Expression, range: (u32, u32)) -> Result<(), String> {
    if let Some(flags) = field(message, "msg_flags") {
        expect(world, "msg_flags is", flags, libc::MSG_ERRQUEUE.into())?;
    }
    let Some(Expression::List(control)) = field(message, "msg_control") else { return Ok(()) };
    let [one] = &control[..] else { return Err(format!("one notice came, expected {}", control.len())) };
    let (level, kind) = if sock.v6 { (libc::SOL_IPV6, libc::IPV6_RECVERR) } else { (libc::SOL_IP, libc::IP_RECVERR) };
    let data = field(one, "cmsg_data");
    let bytes = sidestep_client::copies::notice(range);
    for (place, name, got) in [
        (Some(one), "cmsg_level", i64::from(level)),
        (Some(one), "cmsg_type", i64::from(kind)),
        (data, "ee_errno", 0),
        (data, "ee_origin", bytes[4].into()),
        (data, "ee_type", bytes[5].into()),
        (data, "ee_code", bytes[6].into()),
        (data, "ee_info", range.0.into()),
        (data, "ee_data", range.1.into()),
    ] {
        if let Some(wanted) = place.and_then(|p| field(p, name)) {
            expect(world, &format!("{name} is"), wanted, got)?;
        }
    }
    Ok(())
}

/// What recvmsg() wrote beside the bytes.
fn check_message(world: &World, sock: &Sock, message: &Expression) -> Result<(), String> {
    if let Some(flags) = field(message, "msg_flags") {
        expect(world, "msg_flags is", flags, 0)?;
    }
    let Some(Expression::List(control)) = field(message, "msg_control") else { return Ok(()) };
    let asked = world.session.option(sock.slot, option::TELL_QUEUE);
    if control.len() != usize::from(asked) {
        return Err(format!("recvmsg() gave {} control messages, expected {}", usize::from(asked), control.len()));
    }
    for one in control {
        let part = |name: &str| field(one, name).ok_or_else(|| format!("{one} has no {name}"));
        let (level, kind) = (number(world, part("cmsg_level")?)?, number(world, part("cmsg_type")?)?);
        if (level, kind) != (libc::SOL_TCP.into(), libc::TCP_CM_INQ.into()) {
            return Err(format!("recvmsg() gave a control message of TCP_INQ, expected {one}"));
        }
        expect(world, "TCP_INQ is", part("cmsg_data")?, world.session.left_to_read(sock.slot) as i64)?;
    }
    Ok(())
}
