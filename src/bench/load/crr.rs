//! Connect, request, answer, close: the server closes first, so that its side keeps TIME-WAIT and this side's ports
//! are free at once. A latency is from the first SYN to the end of the stream.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use sidestep_client::now_ns;

use super::Job;
use super::rr::connect_all;
use super::schedule::Schedule;
use crate::bench::net::{Handle, Net, Ready};
use crate::bench::serve::{REQUEST_HEADER, Role, request_header};

/// How long a place rests after a connection that failed: without it, a server that is gone would be hammered.
const REST_NS: u64 = 1_000_000;

/// A place for one connection at a time.
struct Place {
    handle: Option<Handle>,
    /// When it was due.
    due: u64,
    /// None before the connection stands.
    sent: Option<usize>,
    got: u64,
    /// May begin the next one from here on.
    free_at: u64,
}

pub(super) fn run<N: Net>(mut net: N, mut job: Job<'_>) -> io::Result<()> {
    // One that works proves that the server is there; its port is another one, so this costs no answer.
    let proof = connect_all(&mut net, &Job { connections: 1, ..reborrow(&job) }, Role::Echo)?;
    proof.into_iter().for_each(|handle| net.close(handle));
    let Some(start) = job.wait_for_start() else { return Ok(()) };
    let load = job.load;
    let mut request = vec![0x5a; load.size as usize];
    request[..REQUEST_HEADER].copy_from_slice(&request_header(load.size, load.reply));
    let place = || Place { handle: None, due: 0, sent: None, got: 0, free_at: 0 };
    let mut worker = Worker {
        places: (0..job.connections).map(|_| place()).collect(),
        by_handle: Vec::new(),
        schedule: job.rate.map(|rate| Schedule::new(start, rate, f64::from(job.number) / f64::from(load.threads))),
        due: VecDeque::new(),
        buf: vec![0; 64 * 1024],
        request,
        net,
        job,
    };
    worker.run()
}

/// A job like `job` for the first connection only.
fn reborrow<'a>(job: &Job<'a>) -> Job<'a> {
    let (sender, _) = std::sync::mpsc::channel();
    Job {
        load: job.load,
        connections: 1,
        rate: None,
        number: 0,
        recorder: super::recorder::Recorder::new(sender, 1, 0),
        start: job.start,
        stop: job.stop,
    }
}

struct Worker<'a, N> {
    net: N,
    job: Job<'a>,
    places: Vec<Place>,
    /// Index into `places` + 1.
    by_handle: Vec<u32>,
    schedule: Option<Schedule>,
    /// Due moments that found no free place.
    due: VecDeque<u64>,
    request: Vec<u8>,
    buf: Vec<u8>,
}

impl<N: Net> Worker<'_, N> {
    fn run(&mut self) -> io::Result<()> {
        let mut ready = Vec::new();
        loop {
            let now = now_ns();
            self.job.recorder.tick(now);
            if self.job.is_over(now) {
                break;
            }
            self.begin_what_can(now);
            let resting = self.places.iter().any(|p| p.handle.is_none());
            let timeout = match &self.schedule {
                Some(schedule) => Some(schedule.sleep(now)),
                None => resting.then_some(Duration::from_millis(1)),
            };
            self.net.wait(timeout, &mut ready)?;
            for &event in &ready {
                let at = self.by_handle.get(event.handle as usize).copied().unwrap_or(0) as usize;
                let Some(n) = at.checked_sub(1) else { continue };
                match self.look(n, event) {
                    Ok(false) => {}
                    Ok(true) => {
                        let now = now_ns();
                        let ns = now.saturating_sub(self.places[n].due);
                        let payload = u64::from(self.job.load.size) + self.places[n].got;
                        self.job.recorder.operation(now, ns, payload);
                        self.end(n, now);
                        if self.schedule.is_none() {
                            self.begin(n, now);
                        }
                    }
                    Err(_) => {
                        let now = now_ns();
                        self.job.recorder.error(now);
                        self.end(n, now + REST_NS);
                    }
                }
            }
        }
        let end = self.job.recorder.end();
        if self.schedule.is_some() {
            let under_way = self.places.iter().filter(|p| p.handle.is_some()).map(|p| p.due);
            for due in under_way.chain(self.due.iter().copied()) {
                self.job.recorder.unfinished(end.saturating_sub(due));
            }
        }
        self.job.recorder.finish();
        Ok(())
    }

    fn begin_what_can(&mut self, now: u64) {
        if let Some(schedule) = &mut self.schedule {
            self.due.extend(std::iter::from_fn(|| schedule.take(now)));
        }
        for n in 0..self.places.len() {
            if self.places[n].handle.is_some() || self.places[n].free_at > now {
                continue;
            }
            let due = if self.schedule.is_some() { self.due.pop_front() } else { Some(now) };
            let Some(due) = due else { break };
            self.begin(n, due);
        }
    }

    fn begin(&mut self, n: usize, due: u64) {
        match self.net.connect(Role::Once.at(self.job.load.server)) {
            Ok(handle) => {
                self.places[n] = Place { handle: Some(handle), due, sent: None, got: 0, free_at: 0 };
                let at = handle as usize;
                if self.by_handle.len() <= at {
                    self.by_handle.resize(at + 1, 0);
                }
                self.by_handle[at] = n as u32 + 1;
            }
            // No port or slot is free just now.
            Err(_) => {
                let now = now_ns();
                self.job.recorder.error(now);
                self.places[n].free_at = now + REST_NS;
            }
        }
    }

    fn end(&mut self, n: usize, free_at: u64) {
        if let Some(handle) = self.places[n].handle.take() {
            self.by_handle[handle as usize] = 0;
            self.net.close(handle);
        }
        self.places[n].free_at = free_at;
    }

    /// True: the whole answer came, and the end of the stream.
    fn look(&mut self, n: usize, event: Ready) -> io::Result<bool> {
        let place = &mut self.places[n];
        let Some(handle) = place.handle else { return Ok(false) };
        if place.sent.is_none() {
            if !self.net.connected(handle)? {
                return Ok(false);
            }
            place.sent = Some(0);
        }
        if let Some(sent) = &mut place.sent {
            while *sent < self.request.len() {
                match self.net.write(handle, &self.request[*sent..])? {
                    Some(done) => *sent += done,
                    None => break,
                }
            }
        }
        if !event.readable {
            return Ok(false);
        }
        loop {
            match self.net.read(handle, &mut self.buf)? {
                None => return Ok(false),
                Some(0) if place.got == u64::from(self.job.load.reply) => return Ok(true),
                Some(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Some(done) => place.got += done as u64,
            }
        }
    }
}
