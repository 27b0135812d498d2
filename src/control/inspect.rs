//! Questions of tools, and both ends of their answers.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, recv, send, socket_with,
};
use serde_json::{Value, json};
use sidestep_shm::wire::{MAX_PACKET_BYTES, Reply, Request, inspect as question};

use super::books::Books;
use super::server::{Control, unix_address};
use crate::shard::mailbox::Message;

/// Bytes of answer in one packet.
const PIECE_BYTES: usize = MAX_PACKET_BYTES - 64;
/// How long a tool waits for a piece of an answer.
const ANSWER_PATIENCE: std::time::Duration = std::time::Duration::from_secs(10);

impl Books {
    /// Every socket: JSON, an array of [`crate::shard::SocketRow`] with the program's name.
    pub fn sockets_json(&self) -> String {
        let mut rows: Vec<_> =
            self.ask_all(|reply| Message::Sockets { reply }).into_iter().flatten().flatten().collect();
        // A listener is on every shard: one row for it, with what waits on all of them.
        let mut listeners: Vec<crate::shard::SocketRow> = Vec::new();
        rows.retain(|row| {
            if row.state != "LISTEN" {
                return true;
            }
            match listeners.iter_mut().find(|l| (l.group, l.slot) == (row.group, row.slot)) {
                Some(seen) => seen.recv_q += row.recv_q,
                None => listeners.push(row.clone()),
            }
            false
        });
        listeners.append(&mut rows);
        for row in &mut listeners {
            let pids = row.group.and_then(|g| self.group(g)).map(|g| &g.pids);
            row.pids = row.processes.iter().filter_map(|&p| *pids?.get(p as usize)?).collect();
        }
        let mut values: Vec<Value> = listeners.iter().filter_map(|row| serde_json::to_value(row).ok()).collect();
        for value in &mut values {
            let pid = value["pids"].get(0).and_then(Value::as_u64);
            value["program"] = pid.and_then(program_name).map_or(Value::Null, Value::String);
        }
        Value::Array(values).to_string()
    }

    /// `connections`: how many the control socket has.
    /// The profile of every shard. Requests carry the process id of a program that had their socket.
    pub(super) fn latency_json(&self, recent: bool) -> String {
        let shards = self.ask_all(|reply| Message::Latency { recent, reply }).into_iter().flatten();
        let mut values: Vec<Value> = shards.filter_map(|report| serde_json::to_value(report).ok()).collect();
        for list in values.iter_mut().flat_map(|v| v.as_object_mut().into_iter().flatten()) {
            if !matches!(list.0.as_str(), "slowest" | "recent") {
                continue;
            }
            for line in list.1.as_array_mut().into_iter().flatten() {
                let number = |name: &str| line[name].as_u64().and_then(|n| u32::try_from(n).ok());
                let pids = number("group").and_then(|g| self.group(g)).map(|g| &g.pids);
                let pid = number("process").and_then(|p| *pids?.get(p as usize)?);
                line["pid"] = pid.map_or(Value::Null, Value::from);
            }
        }
        json!({ "stamps": crate::latency::STAMPS, "shards": values }).to_string()
    }

    pub(super) fn stats_json(&self, connections: usize) -> String {
        let shards: Vec<_> = self.ask_all(|reply| Message::Report { reply }).into_iter().flatten().collect();
        let steering = self.steering.as_ref().and_then(|s| s.lock().ok()).map(|s| s.counters());
        let groups: Vec<Value> = self
            .groups
            .iter()
            .flatten()
            .map(|g| {
                let open_slots = g.group.region().geometry().open_slots;
                let free = (0..open_slots).filter(|&s| g.group.region().free_slots().contains(s)).count();
                json!({
                    "group": g.group.index,
                    "processes": g.pids.iter().flatten().count(),
                    "pids": g.pids.iter().flatten().collect::<Vec<_>>(),
                    "bound_sockets": g.books.len(),
                    "slots_open_total": open_slots,
                    "slots_open_free": free,
                })
            })
            .collect();
        json!({
            "engine": self.settings.facts,
            "shards": shards,
            "steering": steering,
            "groups": groups,
            "ports_claimed": self.ports.len(),
            "control_connections": connections,
        })
        .to_string()
    }
}

impl Control {
    pub(super) fn inspect(&mut self, key: u64, what: u32) {
        let text = match what {
            question::SOCKETS => self.books.sockets_json(),
            question::STATS => self.books.stats_json(self.connections.len()),
            question::LATENCY | question::LATENCY_RECENT => self.books.latency_json(what == question::LATENCY_RECENT),
            question::STOP if !self.may_stop(key) => {
                let errno = Errno::PERM.raw_os_error().cast_unsigned();
                return self.reply(key, Reply::Failed { errno }, &[], &[]);
            }
            question::STOP => {
                self.stop.store(true, Ordering::Release);
                "{}".into()
            }
            _ => {
                let errno = Errno::INVAL.raw_os_error().cast_unsigned();
                return self.reply(key, Reply::Failed { errno }, &[], &[]);
            }
        };
        self.send_text(key, &text);
    }

    /// Sends a long answer in pieces. The tool reads as they come; one that does not loses its connection.
    fn send_text(&mut self, key: u64, text: &str) {
        let Some(fd) = self.connection_fd(key) else { return };
        // A tool's socket takes few packets at once: waiting for it must not stop the control thread, so the answer
        // goes out on a thread of its own.
        let text = text.to_owned();
        let spawned = std::thread::Builder::new().name("sidestep-answer".into()).spawn(move || {
            let head = Reply::Text.encode();
            let pieces = text.as_bytes().chunks(PIECE_BYTES).chain(std::iter::once(&[][..]));
            for piece in pieces {
                let packet = [head.as_bytes(), piece].concat();
                let ready = rustix::event::PollFd::new(&fd, rustix::event::PollFlags::OUT);
                let patience = rustix::event::Timespec { tv_sec: 2, tv_nsec: 0 };
                let _ = rustix::event::poll(&mut [ready], Some(&patience));
                if send(&fd, &packet, SendFlags::DONTWAIT | SendFlags::NOSIGNAL).is_err() {
                    // The tool must not wait for the rest.
                    let _ = rustix::net::shutdown(&fd, rustix::net::Shutdown::Both);
                    return;
                }
            }
        });
        if let Err(error) = spawned {
            tracing::warn!(%error, "can't answer a tool");
        }
    }

    /// Any user may attach a program; only root and the engine's own user may stop the engine.
    fn may_stop(&self, key: u64) -> bool {
        let peer = self.connections.get(&key).and_then(|c| rustix::net::sockopt::socket_peercred(c.fd()).ok());
        peer.is_some_and(|p| p.uid.is_root() || p.uid == rustix::process::geteuid())
    }

    fn connection_fd(&self, key: u64) -> Option<OwnedFd> {
        self.connections.get(&key).and_then(super::server::Connection::duplicate)
    }
}

/// What the kernel calls a process.
fn program_name(pid: u64) -> Option<String> {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).ok().map(|s| s.trim().to_owned())
}

/// Asks a running engine; the answer is JSON. `what` is one of [`sidestep_shm::wire::inspect`].
///
/// # Errors
/// No engine at `control`, or one that does not answer.
pub fn inspect(control: &str, what: u32) -> anyhow::Result<String> {
    use anyhow::Context;
    let address = unix_address(control)?;
    let fd = connect(&address).with_context(|| {
        format!("no engine answers at {control}; is it running? (`sidestep up -c FILE`, or --control SOCKET)")
    })?;
    // A stopped engine keeps its socket open: its silence must not be ours.
    rustix::net::sockopt::set_socket_timeout(&fd, rustix::net::sockopt::Timeout::Recv, Some(ANSWER_PATIENCE))?;
    send(&fd, Request::Inspect { what }.encode().as_bytes(), SendFlags::NOSIGNAL)?;
    let mut text = Vec::new();
    loop {
        let mut packet = [0; MAX_PACKET_BYTES];
        let (_, n) = recv(&fd, packet.as_mut_slice(), RecvFlags::empty()).context("the engine gives no answer")?;
        match Reply::decode(&packet[..n]) {
            Some((Reply::Text, [])) => return Ok(String::from_utf8(text)?),
            Some((Reply::Text, piece)) => text.extend_from_slice(piece),
            Some((Reply::Failed { errno }, _)) => return Err(io::Error::from_raw_os_error(errno.cast_signed()).into()),
            _ => anyhow::bail!("the engine at {control} answered with something that is no answer (another version?)"),
        }
    }
}

pub(super) fn connect(address: &SocketAddrUnix) -> io::Result<OwnedFd> {
    let fd = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    rustix::net::connect(&fd, address)?;
    Ok(fd)
}
