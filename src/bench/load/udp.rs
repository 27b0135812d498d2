//! Requests and answers in datagrams: each carries a number, and one that has no answer after a second is lost.

use std::io;
use std::time::Duration;

use sidestep_client::now_ns;

use super::Job;
use super::schedule::Schedule;
use crate::bench::net::{Handle, Net};
use crate::bench::serve::Role;

/// How long an answer may take.
const PATIENCE_NS: u64 = 1_000_000_000;
/// Bytes of a datagram's number.
pub const NUMBER_BYTES: usize = 8;

struct Socket {
    handle: Handle,
    next: u64,
    /// Number, when it was due, when it was sent.
    in_flight: Vec<(u64, u64, u64)>,
}

pub(super) fn run<N: Net>(mut net: N, mut job: Job<'_>) -> io::Result<()> {
    let to = Role::Echo.at(job.load.server);
    let mut sockets = Vec::new();
    for _ in 0..job.connections {
        sockets.push(Socket { handle: net.datagram(None, Some(to))?, next: 0, in_flight: Vec::new() });
    }
    let most = sockets.iter().map(|s| s.handle as usize + 1).max().unwrap_or(0);
    let mut by_handle = vec![usize::MAX; most];
    sockets.iter().enumerate().for_each(|(n, s)| by_handle[s.handle as usize] = n);
    let Some(start) = job.wait_for_start() else { return Ok(()) };
    let load = job.load;
    let shift = f64::from(job.number) / f64::from(load.threads.max(1));
    let mut schedule = job.rate.map(|rate| Schedule::new(start, rate, shift));
    let (mut message, mut buf, mut ready) = (vec![0x5a; load.size as usize], vec![0; 65_536], Vec::new());
    let (mut turn, mut swept) = (0, start);
    loop {
        let now = now_ns();
        job.recorder.tick(now);
        if job.is_over(now) {
            break;
        }
        if now >= swept + PATIENCE_NS / 8 {
            swept = now;
            for socket in &mut sockets {
                let before = socket.in_flight.len();
                socket.in_flight.retain(|(_, _, sent)| now.saturating_sub(*sent) < PATIENCE_NS);
                (socket.in_flight.len()..before).for_each(|_| job.recorder.lost(now));
            }
        }
        match &mut schedule {
            Some(schedule) => {
                while let Some(due) = schedule.take(now) {
                    let n = turn % sockets.len();
                    turn += 1;
                    if !sockets[n].send(&mut net, &mut message, due, now) {
                        job.recorder.lost(now);
                    }
                }
            }
            None => {
                for socket in sockets.iter_mut().filter(|s| s.in_flight.len() < load.depth as usize) {
                    while socket.in_flight.len() < load.depth as usize && socket.send(&mut net, &mut message, now, now)
                    {
                    }
                }
            }
        }
        let timeout = schedule.as_ref().map_or(Duration::from_millis(100), |s| s.sleep(now));
        net.wait(Some(timeout), &mut ready)?;
        for event in ready.iter().filter(|e| e.readable) {
            let Some(socket) = by_handle.get(event.handle as usize).and_then(|&n| sockets.get_mut(n)) else { continue };
            loop {
                match net.receive_from(socket.handle, &mut buf) {
                    Ok(Some((n, _))) => {
                        let now = now_ns();
                        if let Some(due) = socket.answered(&buf[..n]) {
                            job.recorder.operation(now, now.saturating_sub(due), 2 * n as u64);
                        }
                    }
                    Ok(None) => break,
                    // Nobody there (ICMP): counted, and tried on.
                    Err(_) => job.recorder.error(now_ns()),
                }
            }
        }
    }
    job.recorder.finish();
    Ok(())
}

impl Socket {
    /// False: no room.
    fn send<N: Net>(&mut self, net: &mut N, message: &mut [u8], due: u64, now: u64) -> bool {
        message[..NUMBER_BYTES].copy_from_slice(&self.next.to_le_bytes());
        if !matches!(net.send_to(self.handle, message, None), Ok(Some(_))) {
            return false;
        }
        self.in_flight.push((self.next, due, now));
        self.next += 1;
        true
    }

    /// When the request of this answer was due; None for one that was given up.
    fn answered(&mut self, message: &[u8]) -> Option<u64> {
        let number = u64::from_le_bytes(message.get(..NUMBER_BYTES)?.try_into().ok()?);
        let at = self.in_flight.iter().position(|(n, ..)| *n == number)?;
        Some(self.in_flight.remove(at).1)
    }
}
