//! Load generators: [`run`] starts the threads, measures rounds, and shows how it goes.
//!
//! **Closed loop**: each connection has `depth` requests under way and sends the next when an answer comes. It finds
//! the most that the two ends can do together; its latencies say nothing of what happens at a lower rate.
//!
//! **Open loop** (`rate`): requests are due at fixed moments whether or not answers came, and a latency counts from the
//! moment at which its request was *due*, not from when it could be sent. So a stall is charged to every request that
//! it delayed (no coordinated omission). What is still unanswered at the end counts with the time it has waited.

mod crr;
mod idle;
mod recorder;
mod rr;
mod schedule;
mod stream;
mod udp;

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, SystemTime};

use hdrhistogram::Histogram;
use sidestep_client::now_ns;

use super::cpu::CpuTimes;
use super::hist;
use super::measure::Round;
use super::net::Net;
use recorder::{Interval, Message, Recorder};

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Test {
    /// Requests and answers on connections that stay.
    Rr,
    /// Bytes one way: to the server, or from it.
    Stream { reverse: bool },
    /// Connect, one request, one answer, close.
    Crr,
    /// Requests and answers in datagrams.
    Udp,
    /// Connections that do nothing: what they cost.
    Idle,
}

impl Test {
    /// Its name in tables and JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Rr => "rr",
            Self::Stream { reverse: false } => "stream",
            Self::Stream { reverse: true } => "stream reverse",
            Self::Crr => "crr",
            Self::Udp => "udp",
            Self::Idle => "idle",
        }
    }
}

/// A load.
#[derive(Clone, Debug)]
pub struct Load {
    pub test: Test,
    /// Where `sidestep bench serve` listens: the first of its ports.
    pub server: SocketAddr,
    pub connections: u32,
    /// Bytes of a request; of one write.
    pub size: u32,
    /// Bytes of an answer.
    pub reply: u32,
    /// Requests under way on one connection at most.
    pub depth: u32,
    pub threads: u32,
    /// Requests a second in all; None: closed loop.
    pub rate: Option<f64>,
    pub warmup: Duration,
    pub round: Duration,
    pub rounds: u32,
    /// Cores for the threads, in turn; empty: where the kernel puts them.
    pub cores: Vec<usize>,
}

/// What came of it.
pub struct Outcome {
    pub rounds: Vec<Round>,
    /// Wall-clock time at which the first interval began.
    pub began: SystemTime,
    pub interval: Duration,
    /// Latencies of each interval, over all rounds.
    pub intervals: Vec<Histogram<u64>>,
}

/// One line of progress.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// From 1.
    pub round: u32,
    pub seconds: f64,
    pub rate_per_s: f64,
    pub gbit_per_s: f64,
    /// None where a test has no latency.
    pub p50_us: Option<f64>,
    pub p99_us: Option<f64>,
}

/// What a thread needs.
struct Job<'a> {
    load: &'a Load,
    /// Connections of this thread.
    connections: u32,
    /// This thread's part of the intended rate, and its number: threads are due one after another, not all at once.
    rate: Option<f64>,
    number: u32,
    recorder: Recorder,
    start: &'a AtomicU64,
    stop: &'a AtomicBool,
}

impl Job<'_> {
    /// Says that the connections stand, and waits for the common start: the moment in nanoseconds; None when the run
    /// was called off.
    fn wait_for_start(&mut self) -> Option<u64> {
        self.recorder.ready();
        loop {
            if self.stop.load(Ordering::Acquire) {
                return None;
            }
            match self.start.load(Ordering::Acquire) {
                0 => std::thread::park_timeout(Duration::from_micros(200)),
                start => {
                    self.recorder.start_at(start + self.load.warmup.as_nanos() as u64);
                    return Some(start);
                }
            }
        }
    }

    fn is_over(&self, now: u64) -> bool {
        self.recorder.is_over(now) || self.stop.load(Ordering::Relaxed)
    }
}

/// How long connections may take to stand.
const SET_UP: Duration = Duration::from_secs(30);

/// Puts the load on and measures. `net` makes the sockets of one thread; `progress` hears of every interval; `stop`
/// ends early, with the rounds that are whole.
///
/// # Errors
/// Connections can't be made, or the stack is gone; whole rounds are lost then.
pub fn run<N: Net>(
    load: &Load,
    net: impl Fn() -> io::Result<N> + Sync,
    progress: &mut dyn FnMut(Progress),
    stop: &AtomicBool,
) -> io::Result<Outcome> {
    let threads = load.threads.clamp(1, load.connections.max(1));
    let per_round = load.round.as_secs().max(1) as u32;
    let interval = load.round / per_round;
    let start = AtomicU64::new(0);
    let (sender, messages) = channel();
    let mut cuts = vec![Interval::default(); (per_round * load.rounds) as usize];
    let mut cpu = Vec::new();
    let mut began = SystemTime::UNIX_EPOCH;

    std::thread::scope(|scope| -> io::Result<()> {
        for number in 0..threads {
            let job = Job {
                load,
                connections: (load.connections + threads - 1 - number) / threads,
                rate: load.rate.map(|r| r / f64::from(threads)),
                number,
                recorder: Recorder::new(sender.clone(), interval.as_nanos() as u64, cuts.len()),
                start: &start,
                stop,
            };
            let (net, sender) = (&net, sender.clone());
            let core = load.cores.get(number as usize % load.cores.len().max(1)).copied();
            scope.spawn(move || {
                let done = work(core, net, job);
                let _ = sender.send(Message::Ended(done));
            });
        }
        drop(sender);
        // Whoever fails must not leave the others running.
        let failed = |error| {
            stop.store(true, Ordering::Release);
            Err(error)
        };
        let mut ready = 0;
        while ready < threads {
            match messages.recv_timeout(SET_UP) {
                Ok(Message::Ready) => ready += 1,
                Ok(Message::Ended(Err(error))) => return failed(error),
                Ok(Message::Ended(Ok(())) | Message::Cut(..)) => {}
                Err(_) => return failed(io::Error::new(io::ErrorKind::TimedOut, "connections do not come to stand")),
            }
            if stop.load(Ordering::Acquire) {
                return Ok(());
            }
        }
        let first = now_ns();
        start.store(first, Ordering::Release);
        began = system_time() + load.warmup;
        let at = |round: usize| first + (load.warmup + load.round * round as u32).as_nanos() as u64;
        let mut left = threads;
        while left > 0 {
            if cpu.len() <= load.rounds as usize && now_ns() >= at(cpu.len()) {
                cpu.push(CpuTimes::now().unwrap_or_default());
            }
            let patience = if cpu.len() <= load.rounds as usize {
                Duration::from_nanos(at(cpu.len()).saturating_sub(now_ns()))
            } else {
                SET_UP
            };
            match messages.recv_timeout(patience) {
                Ok(Message::Cut(index, cut)) => {
                    let all = &mut cuts[index];
                    all.add(&cut);
                    if all.parts == threads {
                        progress(all.progress(index as u32 / per_round + 1, index as u32 + 1, interval));
                    }
                }
                Ok(Message::Ended(Ok(()))) => left -= 1,
                Ok(Message::Ended(Err(error))) => return failed(error),
                Ok(Message::Ready) => {}
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        if cpu.len() == load.rounds as usize {
            cpu.push(CpuTimes::now().unwrap_or_default());
        }
        Ok(())
    })?;
    let whole = cuts.chunks(per_round as usize).take_while(|round| round.iter().all(|cut| cut.parts == threads));
    let rounds = whole.enumerate().map(|(n, round)| {
        let all = round.iter().fold(Interval::default(), |mut all, cut| {
            all.add(cut);
            all
        });
        Round {
            seconds: load.round.as_secs_f64(),
            operations: all.operations,
            bytes: all.bytes,
            errors: all.errors,
            lost: all.lost,
            latencies: all.latencies.unwrap_or_else(hist::empty),
            cpu: cpu.get(n).zip(cpu.get(n + 1)).map_or_else(Vec::new, |(before, after)| before.until(after)),
        }
    });
    let rounds = rounds.collect();
    let intervals = cuts.into_iter().map(|cut| cut.latencies.unwrap_or_else(hist::empty)).collect();
    Ok(Outcome { rounds, began, interval, intervals })
}

fn work<N: Net>(core: Option<usize>, net: &(impl Fn() -> io::Result<N> + Sync), job: Job<'_>) -> io::Result<()> {
    if let Some(id) = core
        && !core_affinity::set_for_current(core_affinity::CoreId { id })
    {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("can't run on core {id}")));
    }
    let net = net()?;
    match job.load.test {
        Test::Rr => rr::run(net, job),
        Test::Stream { reverse } => stream::run(net, job, reverse),
        Test::Crr => crr::run(net, job),
        Test::Udp => udp::run(net, job),
        Test::Idle => idle::run(net, job),
    }
}

/// Wall-clock time, for the heads of logs only.
#[allow(clippy::disallowed_methods, reason = "the log's format wants a date; nothing is measured with it")]
fn system_time() -> SystemTime {
    SystemTime::now()
}
