//! Unmodified programs under the load generators that their users know.

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::Value;

use super::contender::{Contender, Place};
use crate::bench::cpu::CpuTimes;
use crate::bench::lab::Folder;
use crate::bench::measure::Measurement;

/// Tries to reach a server that has just been started.
const TRIES: u32 = 40;
const PAUSE: Duration = Duration::from_millis(100);
/// Requests to redis a second of measuring time: about what one core answers, so that a round takes about its time.
const REDIS_GUESS: f64 = 80_000.0;
const PAGE: &str = "Hello from the laboratory\\n";

impl Contender<'_> {
    pub(super) fn nginx(&self, connections: u32, folder: &Folder, place: Place<'_>) -> anyhow::Result<Measurement> {
        let (a, b) = (&self.lab.a, &self.lab.b);
        let file = folder.0.join("nginx.conf");
        let dir = folder.0.display();
        // A process that only watches over another would have the engine, and its worker would be the engine's guest.
        let master = if matches!(place, Place::Library(_)) { "master_process off;\n" } else { "" };
        let text = format!(
            "daemon off;\n{master}user root;\nworker_processes 1;\npid {dir}/nginx.pid;\nerror_log stderr crit;\n\
             events {{ worker_connections 8192; }}\nhttp {{\n  access_log off;\n  keepalive_requests 1000000000;\n  \
             client_body_temp_path {dir}/body;\n  proxy_temp_path {dir}/proxy;\n  fastcgi_temp_path {dir}/fastcgi;\n  \
             uwsgi_temp_path {dir}/uwsgi;\n  scgi_temp_path {dir}/scgi;\n  server {{ listen {}:8080; location / {{ \
             return 200 '{PAGE}'; }} }}\n}}\n",
            a.address
        );
        fs::write(&file, text).with_context(|| file.display().to_string())?;
        let mut server = self.program(a, 0, place, "nginx");
        server.arg("-c").arg(&file).args(["-e", "stderr"]);
        let _server = self.start(server, 0, "", "nginx")?;
        let seconds = self.plan.time.as_secs().max(1);
        let load = |seconds: u64| {
            let mut wrk = self.program(b, 1, place, "wrk");
            wrk.args(["-t", "1", "-c", &connections.to_string(), "-d", &format!("{seconds}s"), "--latency"]);
            wrk.arg(format!("http://{}:8080/", a.address));
            wrk
        };
        self.reach(|| load(1), "wrk", |text| number_after(text, "Requests/sec:").is_some_and(|n| n > 0.0))?;
        let (text, cpu) = self.with_cpu(load(seconds), "wrk")?;
        let mut m = wrk_result(&text).with_context(|| format!("read what wrk said: {text}"))?;
        (m.connections, m.cpu) = (connections, cpu);
        Ok(m)
    }

    pub(super) fn redis(&self, connections: u32, folder: &Folder, place: Place<'_>) -> anyhow::Result<Measurement> {
        let (a, b) = (&self.lab.a, &self.lab.b);
        let mut server = self.program(a, 0, place, "redis-server");
        server.args(["--bind", a.address, "--port", "6379", "--save", "", "--appendonly", "no"]);
        server.args(["--protected-mode", "no", "--dir"]).arg(&folder.0);
        let _server = self.start(server, 0, "eady to accept connections", "redis-server")?;
        let requests = (REDIS_GUESS * self.plan.time.as_secs_f64()) as u64;
        let mut load = self.program(b, 1, place, "redis-benchmark");
        load.args(["-h", a.address, "-p", "6379", "-c", &connections.to_string(), "-t", "get", "--csv", "-n"]);
        load.arg(requests.to_string());
        let (text, cpu) = self.with_cpu(load, "redis-benchmark")?;
        let mut m = redis_result(&text).with_context(|| format!("read what redis-benchmark said: {text}"))?;
        (m.connections, m.cpu) = (connections, cpu);
        Ok(m)
    }

    pub(super) fn iperf3(&self, place: Place<'_>) -> anyhow::Result<Measurement> {
        let (a, b) = (&self.lab.a, &self.lab.b);
        let mut server = self.program(a, 0, place, "iperf3");
        server.args(["-s", "-B", a.address, "--forceflush"]);
        let _server = self.start(server, 0, "listening", "iperf3 -s")?;
        let mut load = self.program(b, 1, place, "iperf3");
        load.args(["-c", a.address, "-J", "-t", &self.plan.time.as_secs().max(1).to_string()]);
        let (text, cpu) = self.with_cpu(load, "iperf3")?;
        let value: Value = serde_json::from_str(&text).context("read what iperf3 said")?;
        let bits = value["end"]["sum_received"]["bits_per_second"].as_f64().context("iperf3 gives no rate")?;
        Ok(Measurement { test: "iperf3".into(), connections: 1, gbit_per_s: bits / 1e9, cpu, ..self.blank() })
    }

    fn blank(&self) -> Measurement {
        Measurement { rounds: 1, depth: 1, seconds_a_round: self.plan.time.as_secs_f64(), ..Measurement::default() }
    }

    fn with_cpu(&self, command: Command, name: &str) -> anyhow::Result<(String, Vec<crate::bench::cpu::CpuShare>)> {
        let before = CpuTimes::now()?;
        let text = self.finish(command, 1, name)?;
        Ok((text, before.until(&CpuTimes::now()?)))
    }

    /// Until the server answers.
    fn reach(&self, command: impl Fn() -> Command, name: &str, good: impl Fn(&str) -> bool) -> anyhow::Result<()> {
        let mut last = String::new();
        for _ in 0..TRIES {
            match self.finish(command(), 1, name) {
                Ok(text) if good(&text) => return Ok(()),
                Ok(text) => last = text,
                Err(error) => last = format!("{error:#}"),
            }
            std::thread::park_timeout(PAUSE);
        }
        bail!("{name} does not reach the server: {last}")
    }
}

/// What wrk prints.
fn wrk_result(text: &str) -> Option<Measurement> {
    let rate = number_after(text, "Requests/sec:")?;
    let share = |name: &str| {
        let line = text.lines().find(|l| l.trim_start().starts_with(name))?;
        microseconds(line.split_whitespace().nth(1)?)
    };
    let errors = text
        .lines()
        .find(|l| l.contains("Socket errors"))
        .map_or(0, |line| line.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse::<u64>().ok()).sum());
    Some(Measurement {
        test: "nginx + wrk".into(),
        rate_per_s: rate,
        rate_range: [rate; 2],
        p50_us: share("50%"),
        p99_us: share("99%"),
        rounds: 1,
        depth: 1,
        errors,
        ..Measurement::default()
    })
}

/// A line of `redis-benchmark --csv`: test, rps, avg, min, p50, p95, p99, max in milliseconds.
fn redis_result(text: &str) -> Option<Measurement> {
    let line = text.lines().find(|l| l.starts_with("\"GET\""))?;
    let numbers: Vec<f64> = line.split(',').skip(1).filter_map(|n| n.trim_matches('"').parse().ok()).collect();
    let [rate, _, _, p50, _, p99, ..] = numbers[..] else { return None };
    Some(Measurement {
        test: "redis".into(),
        rate_per_s: rate,
        rate_range: [rate; 2],
        p50_us: Some(p50 * 1e3),
        p99_us: Some(p99 * 1e3),
        rounds: 1,
        depth: 1,
        ..Measurement::default()
    })
}

fn number_after(text: &str, what: &str) -> Option<f64> {
    text.split_once(what)?.1.split_whitespace().next()?.parse().ok()
}

/// "12.34us", "1.20ms", "3.00s".
fn microseconds(text: &str) -> Option<f64> {
    let units = [("us", 1.0), ("ms", 1e3), ("s", 1e6), ("m", 6e7)];
    let (number, factor) = units.into_iter().find_map(|(unit, f)| Some((text.strip_suffix(unit)?, f)))?;
    Some(number.parse::<f64>().ok()? * factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_wrk_prints_is_read() {
        let text = "Running 2s test @ http://10.78.0.1:8080/\n  1 threads and 50 connections\n  Thread Stats   Avg\n    \
                    Latency   436.66us   86.42us   1.99ms   88.90%\n  Latency Distribution\n     50%  418.00us\n     \
                    75%  450.00us\n     90%  510.00us\n     99%    1.25ms\n  240364 requests in 2.10s, 42.41MB read\n  \
                    Socket errors: connect 0, read 3, write 0, timeout 1\nRequests/sec: 114497.20\nTransfer/sec: 20MB\n";
        let m = wrk_result(text).unwrap();
        assert_eq!((m.rate_per_s, m.p50_us, m.p99_us, m.errors), (114_497.2, Some(418.0), Some(1250.0), 4));
        assert!(wrk_result("unable to connect").is_none());
    }

    #[test]
    fn what_redis_benchmark_prints_is_read() {
        let text = "\"test\",\"rps\",\"avg_latency_ms\",\"min_latency_ms\",\"p50_latency_ms\",\"p95_latency_ms\",\
                    \"p99_latency_ms\",\"max_latency_ms\"\n\"GET\",\"84530.86\",\"0.309\",\"0.104\",\"0.303\",\"0.407\",\
                    \"0.511\",\"1.503\"\n";
        let m = redis_result(text).unwrap();
        assert_eq!((m.rate_per_s, m.p50_us, m.p99_us), (84_530.86, Some(303.0), Some(511.0)));
        assert!(redis_result("Could not connect").is_none());
    }
}
