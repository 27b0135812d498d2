//! Requests and answers on connections that stay.

use std::collections::VecDeque;
use std::io;

use sidestep_client::now_ns;

use super::schedule::Schedule;
use super::{Job, Load, SET_UP};
use crate::bench::net::{Handle, Net, Ready};
use crate::bench::serve::{REQUEST_HEADER, Role, request_header};

/// Bytes of requests written with one call at most.
const PIECE: usize = 64 * 1024;

/// One connection.
struct Connection {
    handle: Handle,
    /// Bytes of requests that are to be sent in all, and those that were.
    wanted: u64,
    sent: u64,
    /// Bytes of the current answer still to come.
    reply_left: u64,
    /// When each request under way was due, oldest first.
    in_flight: VecDeque<u64>,
    /// Due and not sent, because `depth` are under way.
    waiting: VecDeque<u64>,
}

pub(super) fn run<N: Net>(mut net: N, mut job: Job<'_>) -> io::Result<()> {
    let load = job.load;
    let connections = open(&mut net, &job)?;
    let Some(start) = job.wait_for_start() else { return Ok(()) };
    let schedule =
        job.rate.map(|rate| Schedule::new(start, rate, f64::from(job.number) / f64::from(load.threads.max(1))));
    Worker { by_handle: index(&connections), connections, pattern: pattern(load), schedule, turn: 0, net, job }
        .run(start)
}

struct Worker<'a, N> {
    net: N,
    job: Job<'a>,
    connections: Vec<Option<Connection>>,
    /// Index into `connections` + 1.
    by_handle: Vec<u32>,
    /// Requests one after another.
    pattern: Vec<u8>,
    schedule: Option<Schedule>,
    /// Whose turn it is in an open loop.
    turn: usize,
}

impl<N: Net> Worker<'_, N> {
    fn run(mut self, start: u64) -> io::Result<()> {
        if self.schedule.is_none() {
            for n in 0..self.connections.len() {
                if let Some(c) = &mut self.connections[n] {
                    c.in_flight.extend(std::iter::repeat_n(start, self.job.load.depth as usize));
                    c.wanted = u64::from(self.job.load.depth) * u64::from(self.job.load.size);
                }
                self.send(n);
            }
        }
        let mut buf = vec![0; PIECE];
        let mut ready = Vec::new();
        loop {
            let mut now = now_ns();
            self.job.recorder.tick(now);
            if self.job.is_over(now) {
                break;
            }
            self.send_what_is_due(now);
            let timeout = self.schedule.as_ref().map(|s| s.sleep(now));
            self.net.wait(timeout, &mut ready)?;
            for &event in &ready {
                let at = self.by_handle.get(event.handle as usize).copied().unwrap_or(0) as usize;
                let Some(n) = at.checked_sub(1) else { continue };
                if self.look(n, event, &mut buf).is_err() {
                    now = now_ns();
                    self.give_up(n, now)?;
                }
            }
        }
        self.charge_the_late();
        self.job.recorder.finish();
        Ok(())
    }

    /// Reads answers, and sends what they make room for.
    fn look(&mut self, n: usize, event: Ready, buf: &mut [u8]) -> io::Result<()> {
        let load = self.job.load;
        let Some(c) = &mut self.connections[n] else { return Ok(()) };
        let payload = u64::from(load.size) + u64::from(load.reply);
        let mut more = event.readable;
        while more {
            let Some(got) = self.net.read(c.handle, buf)? else { break };
            if got == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let now = now_ns();
            let mut left = got as u64;
            while left >= c.reply_left {
                left -= c.reply_left;
                c.reply_left = load.reply.into();
                let due = c.in_flight.pop_front().ok_or(io::ErrorKind::InvalidData)?;
                self.job.recorder.operation(now, now.saturating_sub(due), payload);
                if self.schedule.is_none() {
                    c.in_flight.push_back(now);
                    c.wanted += u64::from(load.size);
                } else if let Some(due) = c.waiting.pop_front() {
                    c.in_flight.push_back(due);
                    c.wanted += u64::from(load.size);
                }
            }
            c.reply_left -= left;
            more = got == buf.len() || event.ended;
        }
        self.write(n)
    }

    fn send(&mut self, n: usize) {
        if self.write(n).is_err() {
            // Reading will tell the same, and is where connections are given up.
            self.job.recorder.error(now_ns());
        }
    }

    fn write(&mut self, n: usize) -> io::Result<()> {
        let Some(c) = &mut self.connections[n] else { return Ok(()) };
        let size = u64::from(self.job.load.size);
        while c.sent < c.wanted {
            let from = (c.sent % size) as usize;
            let most = (self.pattern.len() - from).min(usize::try_from(c.wanted - c.sent).unwrap_or(usize::MAX));
            match self.net.write(c.handle, &self.pattern[from..from + most])? {
                Some(done) => c.sent += done as u64,
                None => break,
            }
        }
        Ok(())
    }

    fn send_what_is_due(&mut self, now: u64) {
        let depth = self.job.load.depth as usize;
        let size = u64::from(self.job.load.size);
        while let Some(due) = self.schedule.as_mut().and_then(|s| s.take(now)) {
            let n = self.turn % self.connections.len();
            self.turn += 1;
            let Some(c) = &mut self.connections[n] else {
                self.job.recorder.error(now);
                continue;
            };
            if c.in_flight.len() < depth {
                c.in_flight.push_back(due);
                c.wanted += size;
                self.send(n);
            } else {
                c.waiting.push_back(due);
            }
        }
    }

    /// A broken connection is counted and left; without any there is no load.
    fn give_up(&mut self, n: usize, now: u64) -> io::Result<()> {
        self.job.recorder.error(now);
        if let Some(c) = self.connections[n].take() {
            self.by_handle[c.handle as usize] = 0;
            self.net.close(c.handle);
        }
        if self.connections.iter().all(Option::is_none) {
            return Err(io::Error::new(io::ErrorKind::ConnectionReset, "the server closed all connections"));
        }
        Ok(())
    }

    /// Open loop: what is unanswered has waited so long already.
    fn charge_the_late(&mut self) {
        if self.schedule.is_none() {
            return;
        }
        let end = self.job.recorder.end();
        for c in self.connections.iter().flatten() {
            for due in c.in_flight.iter().chain(&c.waiting) {
                self.job.recorder.unfinished(end.saturating_sub(*due));
            }
        }
    }
}

fn pattern(load: &Load) -> Vec<u8> {
    let size = load.size as usize;
    let mut one = vec![0x5a; size];
    if role(load) == Role::Reply {
        one[..REQUEST_HEADER].copy_from_slice(&request_header(load.size, load.reply));
    }
    // As many as a call may take, and one more, so that any part of a request can be followed by whole ones.
    let times = (PIECE / size).clamp(1, load.depth as usize) + 1;
    one.repeat(times)
}

/// Equal sizes go to the echo server, which knows no sizes; others carry a header.
fn role(load: &Load) -> Role {
    if load.size == load.reply { Role::Echo } else { Role::Reply }
}

fn open<N: Net>(net: &mut N, job: &Job<'_>) -> io::Result<Vec<Option<Connection>>> {
    let handles = connect_all(net, job, role(job.load))?;
    let connection = |handle| Connection {
        handle,
        wanted: 0,
        sent: 0,
        reply_left: job.load.reply.into(),
        in_flight: VecDeque::new(),
        waiting: VecDeque::new(),
    };
    Ok(handles.into_iter().map(|handle| Some(connection(handle))).collect())
}

/// The thread's connections to a server, all standing.
pub(super) fn connect_all<N: Net>(net: &mut N, job: &Job<'_>, role: Role) -> io::Result<Vec<Handle>> {
    /// Handshakes under way at a time: far below any backlog.
    const BATCH: usize = 256;
    let to = role.at(job.load.server);
    let failed = |e: io::Error| io::Error::new(e.kind(), format!("connect to {to}: {e}"));
    let mut standing = Vec::with_capacity(job.connections as usize);
    let mut coming: Vec<Handle> = Vec::new();
    let mut ready = Vec::new();
    let until = now_ns() + SET_UP.as_nanos() as u64;
    while standing.len() < job.connections as usize {
        while coming.len() < BATCH && standing.len() + coming.len() < job.connections as usize {
            coming.push(net.connect(to).map_err(failed)?);
        }
        net.wait(None, &mut ready)?;
        for event in ready.iter().filter(|e| e.writable || e.readable) {
            if let Some(at) = coming.iter().position(|h| *h == event.handle)
                && net.connected(event.handle).map_err(failed)?
            {
                standing.push(coming.swap_remove(at));
            }
        }
        if now_ns() > until || job.stop.load(std::sync::atomic::Ordering::Relaxed) {
            let what = format!("{} of {} connections to {to} stand", standing.len(), job.connections);
            return Err(io::Error::new(io::ErrorKind::TimedOut, what));
        }
    }
    Ok(standing)
}

fn index(connections: &[Option<Connection>]) -> Vec<u32> {
    let most = connections.iter().flatten().map(|c| c.handle as usize + 1).max().unwrap_or(0);
    let mut by_handle = vec![0; most];
    for (n, c) in connections.iter().enumerate() {
        if let Some(c) = c {
            by_handle[c.handle as usize] = n as u32 + 1;
        }
    }
    by_handle
}
