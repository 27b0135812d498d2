//! A small HTTP load generator: several keep-alive connections, each sends a request, waits for the answer, sends the
//! next. Closed loop, so that a latency is the latency of a request and not the length of a queue.

use crate::lab::Space;
use anyhow::{Context, Result, bail};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Longest wait for one answer. Only a hang takes so long.
const ANSWER: Duration = Duration::from_secs(20);

/// What to ask.
#[derive(Clone, Copy, Debug)]
pub struct Load<'a> {
    pub server: SocketAddr,
    pub path: &'a str,
    pub connections: usize,
    /// All connections together.
    pub requests: usize,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct Sample {
    /// Nanoseconds from the first byte of a request sent to the last byte of its answer received, ascending.
    pub latencies_ns: Vec<u64>,
    pub elapsed: Duration,
}

impl Sample {
    /// The latency that a share of the requests (0 to 1) did not exceed, in nanoseconds (nearest rank); 0 when empty.
    #[must_use]
    pub fn percentile(&self, share: f64) -> u64 {
        let n = self.latencies_ns.len();
        if n == 0 {
            return 0;
        }
        let rank = (share * n as f64).ceil() as usize;
        self.latencies_ns[rank.clamp(1, n) - 1]
    }

    /// Requests a second.
    #[must_use]
    pub fn rate(&self) -> f64 {
        self.latencies_ns.len() as f64 / self.elapsed.as_secs_f64().max(f64::MIN_POSITIVE)
    }

    /// Takes in another sample of the same thing.
    pub fn merge(&mut self, other: &Self) {
        self.latencies_ns.extend(&other.latencies_ns);
        self.latencies_ns.sort_unstable();
        self.elapsed += other.elapsed;
    }
}

/// Sends the load from `space`.
///
/// # Errors
/// The first thing that went wrong on any connection: not connected, not 200, cut off, no answer in time.
pub fn run(space: &Space, load: &Load<'_>) -> Result<Sample> {
    space.inside(|| drive(load, &AtomicBool::new(false)))?
}

/// Sends the load from the namespace of the calling thread, until all is sent or `stop` is set.
///
/// # Errors
/// As [`run`].
pub fn drive(load: &Load<'_>, stop: &AtomicBool) -> Result<Sample> {
    let taken = AtomicUsize::new(0);
    let begin = Instant::now();
    let parts: Vec<Result<Vec<u64>>> = std::thread::scope(|scope| {
        let spawn = |_| scope.spawn(|| one_connection(load, &taken, stop));
        let threads: Vec<_> = (0..load.connections).map(spawn).collect();
        threads.into_iter().map(|t| t.join().unwrap_or_else(|_| bail!("a load thread panicked"))).collect()
    });
    let elapsed = begin.elapsed();
    let mut latencies_ns = Vec::new();
    for part in parts {
        latencies_ns.extend(part?);
    }
    latencies_ns.sort_unstable();
    Ok(Sample { latencies_ns, elapsed })
}

fn one_connection(load: &Load<'_>, taken: &AtomicUsize, stop: &AtomicBool) -> Result<Vec<u64>> {
    let mut connection = Connection::open(load.server)?;
    // Room for what is usual, so that growing does not show up as latency; a load without end grows.
    let mut latencies = Vec::with_capacity((load.requests / load.connections + 1).min(1 << 16));
    while !stop.load(Ordering::Relaxed) && taken.fetch_add(1, Ordering::Relaxed) < load.requests {
        latencies.push(connection.get(load.path)?.as_nanos() as u64);
    }
    Ok(latencies)
}

/// One keep-alive connection.
pub struct Connection {
    stream: TcpStream,
    server: SocketAddr,
    buffer: Vec<u8>,
}

impl Connection {
    /// # Errors
    /// When the server does not take the connection within 20 s.
    pub fn open(server: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect_timeout(&server, ANSWER).with_context(|| format!("connecting to {server}"))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(ANSWER))?;
        stream.set_write_timeout(Some(ANSWER))?;
        Ok(Self { stream, server, buffer: vec![0; 64 * 1024] })
    }

    /// One GET; how long the answer took.
    ///
    /// # Errors
    /// When the answer is not a whole 200.
    pub fn get(&mut self, path: &str) -> Result<Duration> {
        let server = self.server;
        let request = format!("GET {path} HTTP/1.1\r\nHost: sidestep\r\n\r\n");
        let begin = Instant::now();
        self.stream.write_all(request.as_bytes()).with_context(|| format!("sending a request to {server}"))?;
        let mut have = 0;
        loop {
            let n = self.stream.read(&mut self.buffer[have..]).with_context(|| format!("answer of {server}"))?;
            if n == 0 {
                bail!("{server} closed the connection after {have} bytes of an answer");
            }
            have += n;
            match answer_length(&self.buffer[..have])? {
                Some(length) if length <= have => return Ok(begin.elapsed()),
                Some(length) if length > self.buffer.len() => self.buffer.resize(length, 0),
                None if have == self.buffer.len() => bail!("{server}: an answer with {have} bytes of header"),
                _ => {}
            }
        }
    }
}

/// Length in bytes of the whole answer that begins in `bytes`, once its header is there.
fn answer_length(bytes: &[u8]) -> Result<Option<usize>> {
    let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") else { return Ok(None) };
    let header = String::from_utf8_lossy(&bytes[..end]);
    let mut lines = header.lines();
    let status = lines.next().unwrap_or_default();
    if status.split(' ').nth(1) != Some("200") {
        bail!("answered with '{status}'");
    }
    let body = lines
        .filter_map(|line| line.split_once(':'))
        .find(|(key, _)| key.eq_ignore_ascii_case("content-length"))
        .with_context(|| format!("an answer without a length: {header}"))?;
    Ok(Some(end + 4 + body.1.trim().parse::<usize>().context("length of an answer")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_nearest_ranks() {
        let sample = Sample { latencies_ns: (1..=1000).collect(), elapsed: Duration::from_secs(2) };
        assert_eq!(sample.percentile(0.5), 500);
        assert_eq!(sample.percentile(0.99), 990);
        assert_eq!(sample.percentile(0.999), 999);
        assert_eq!(sample.percentile(1.0), 1000);
        assert_eq!(sample.percentile(0.0), 1);
        assert_eq!(Sample::default().percentile(0.5), 0);
        assert!((sample.rate() - 500.0).abs() < 1e-9);
    }

    #[test]
    fn answers_are_measured_and_refused() {
        let whole = b"HTTP/1.1 200 OK\r\nServer: x\r\ncontent-length: 5\r\n\r\nhello";
        assert_eq!(answer_length(whole).unwrap(), Some(whole.len()));
        assert_eq!(answer_length(&whole[..30]).unwrap(), None);
        assert!(answer_length(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n").is_err());
        assert!(answer_length(b"HTTP/1.1 200 OK\r\n\r\n").is_err());
    }
}
