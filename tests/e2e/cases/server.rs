//! Unmodified servers on Sidestep, unmodified clients on the kernel.

use super::{CURL, LONG, OURS, PEER, Pair, SHORT, at, case, python, seen, serves, takes};
use crate::engine::{Engine, Setup};
use crate::files::{HUNDRED_MB, sha256, write_random};
use crate::harness::{Case, Options, Verdict};
use crate::lab::Lab;
use crate::load::Connection;
use crate::nginx::{Nginx, page};
use crate::program::{HELPER, Program, TRANSFER, until};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

pub const CASES: &[Case] = &[
    case("server::nginx_serves_curl", &["nginx", "curl"], LONG, nginx_serves_curl),
    case("server::nginx_serves_wrk", &["nginx", "wrk"], SHORT, nginx_serves_wrk),
    case("server::nginx_reloads_under_load", &["nginx"], SHORT, nginx_reloads_under_load),
    case("server::nginx_upgrades_under_load", &["nginx"], SHORT, nginx_upgrades_under_load),
    case("server::nginx_proxies", &["nginx", "curl"], SHORT, nginx_proxies),
    case("server::python_http_server", &["curl"], SHORT, python_http_server),
    case("server::python_asyncio_echo", &[], SHORT, python_asyncio_echo),
    case("server::redis_server", &["redis-server", "redis-cli", "redis-benchmark"], SHORT, redis_server),
    case("server::nc_listens", &["nc"], SHORT, nc_listens),
    case("server::nc_udp", &["nc"], SHORT, nc_udp),
    case("server::iperf3_server", &["iperf3"], SHORT, iperf3_server),
    case("server::iperf3_udp", &["iperf3"], SHORT, iperf3_udp),
    case("server::iperf3_one_gigabyte_each_way", &["iperf3"], LONG, iperf3_one_gigabyte_each_way),
];

fn nginx_serves_curl(options: &Options) -> Result<Verdict> {
    let pair = Pair::new("nginx")?;
    let engine = pair.engine(&Setup::default())?;
    let servers = OURS.map(|address| at(address, 8080));
    let (nginx, mut program) = pair.nginx("nginx", engine.command(Nginx::program()), pair.b(), &servers)?;
    let big = nginx.files().join("big");
    write_random(&big, if options.quick { HUNDRED_MB / 10 } else { HUNDRED_MB }, 7)?;
    for server in servers {
        let said = pair.must(pair.b().command("curl").args(CURL).arg(format!("http://{server}/")))?;
        ensure!(said == page(), "not the page: {said}");
        let missing = pair.lab.run(pair.b().command("curl").args(CURL).arg(format!("http://{server}/no")), HELPER)?;
        ensure!(missing.code() == 22, "a page that is not there: {}", missing.status);
        pair.both_ways(&|| pair.b().command("curl"), server, &nginx, &big).with_context(|| server.to_string())?;
    }
    seen(&engine, "nginx listening", |s| s["state"] == "LISTEN" && s["program"] == "nginx")?;
    ensure!(program.runs(), "nginx ended");
    Ok(Verdict::Passed)
}

fn nginx_serves_wrk(_: &Options) -> Result<Verdict> {
    let pair = Pair::new("wrk")?;
    let engine = pair.engine(&Setup::default())?;
    let servers = OURS.map(|address| at(address, 8080));
    let (_nginx, _program) = pair.nginx("nginx", engine.command(Nginx::program()), pair.b(), &servers)?;
    let mut rates = Vec::new();
    for server in servers {
        let line = ["-t2", "-c50", "-d3s", "--latency"];
        let said = pair.must(pair.b().command("wrk").args(line).arg(format!("http://{server}/")))?;
        ensure!(!said.contains("Socket errors") && !said.contains("Non-2xx"), "wrk saw errors: {said}");
        let rate = said.lines().find_map(|l| l.strip_prefix("Requests/sec:")).map_or("?", str::trim);
        ensure!(rate.parse::<f64>().is_ok_and(|r| r > 0.0), "no request was answered: {said}");
        rates.push(rate.to_owned());
    }
    Ok(Verdict::Figure(format!("50 connections, requests/s: v4 {}, v6 {}", rates[0], rates[1])))
}

/// Four workers under a load of keep-alive connections that must not see a single failure while `meanwhile` runs.
/// nginx closes keep-alive connections of workers that retire, between two answers; a client then connects anew.
/// As a daemon: an nginx whose parent waits for it refuses to be upgraded.
fn nginx_under_load(name: &str, meanwhile: impl Fn(&Pair, &Nginx) -> Result<()>) -> Result<Verdict> {
    let pair = Pair::new(name)?;
    let engine = pair.engine(&Setup::default())?;
    let server = at(OURS[0], 8080);
    let nginx = Nginx::lay_out(pair.lab.dir(), "nginx", &[server], 4)?;
    nginx.as_daemon()?;
    // Kept until the end: what is left of its process group ends with it, and the daemon leaves that group only later.
    let mut starter = pair.lab.start("nginx", engine.command(Nginx::program()).args(nginx.arguments()))?;
    starter.wait(HELPER)?.ok("nginx").with_context(|| nginx.error_log())?;
    until(HELPER, || takes(pair.b(), server).then_some(())).with_context(|| nginx.error_log())?;
    let stop = AtomicBool::new(false);
    let answered = std::thread::scope(|scope| -> Result<u64> {
        let clients: Vec<_> =
            (0..4).map(|_| scope.spawn(|| pair.b().inside(|| patient_client(server, &stop))?)).collect();
        let outcome = meanwhile(&pair, &nginx);
        stop.store(true, Ordering::Relaxed);
        let mut answered = 0;
        for client in clients {
            answered += client.join().map_err(|_| anyhow::anyhow!("a client panicked"))??;
        }
        outcome.map(|()| answered)
    });
    let answered = answered.with_context(|| nginx.error_log())?;
    ensure!(answered > 100, "only {answered} requests were answered");
    end_all(&nginx)?;
    Ok(Verdict::Figure(format!("{answered} requests, none failed")))
}

/// Requests one after another until `stop`; how many were answered. A connection that the server closed after an
/// answer it had said would be the last is no failure.
fn patient_client(server: SocketAddr, stop: &AtomicBool) -> Result<u64> {
    let mut answered = 0;
    let mut connection = Connection::open(server)?;
    let mut fresh = true;
    while !stop.load(Ordering::Relaxed) {
        match connection.get("/") {
            Ok(_) => {
                answered += 1;
                fresh = false;
            }
            // An idle connection may be closed just when the next request leaves: HTTP asks clients to try again.
            Err(_) if !fresh => {
                connection = Connection::open(server)?;
                fresh = true;
            }
            Err(error) => return Err(error.context("a request on a new connection failed")),
        }
    }
    Ok(answered)
}

fn master(nginx: &Nginx) -> Result<String> {
    Ok(std::fs::read_to_string(nginx.files().with_file_name("nginx.pid"))?.trim().to_owned())
}

/// A quiet end, as an operator would ask for it.
fn end_all(nginx: &Nginx) -> Result<()> {
    let pid: i32 = master(nginx)?.parse()?;
    if let Some(pid) = rustix::process::Pid::from_raw(pid) {
        rustix::process::kill_process(pid, rustix::process::Signal::QUIT)?;
        until(HELPER, || rustix::process::test_kill_process(pid).is_err().then_some(()))
            .context("nginx did not end")?;
    }
    Ok(())
}

/// SIGHUP: new workers take over the listening sockets, old ones finish.
fn nginx_reloads_under_load(_: &Options) -> Result<Verdict> {
    nginx_under_load("reload", |pair, nginx| {
        for _ in 0..3 {
            std::thread::sleep(Duration::from_millis(500));
            pair.must(Command::new("kill").args(["-HUP", &master(nginx)?]))?;
        }
        std::thread::sleep(Duration::from_secs(1));
        Ok(())
    })
}

/// SIGUSR2: a new master is executed and inherits the listening sockets; then the old one is told to go.
fn nginx_upgrades_under_load(_: &Options) -> Result<Verdict> {
    nginx_under_load("upgrade", |pair, nginx| {
        std::thread::sleep(Duration::from_millis(500));
        let old = master(nginx)?;
        pair.must(Command::new("kill").args(["-USR2", &old]))?;
        let is_new = || master(nginx).ok().filter(|pid| !pid.is_empty() && *pid != old);
        until(HELPER, is_new).context("no new master after SIGUSR2")?;
        std::thread::sleep(Duration::from_millis(500));
        pair.must(Command::new("kill").args(["-QUIT", &old]))?;
        std::thread::sleep(Duration::from_secs(1));
        Ok(())
    })
}

/// proxy_pass to a server on the kernel, with keep-alive on both sides.
fn nginx_proxies(options: &Options) -> Result<Verdict> {
    let pair = Pair::new("proxy")?;
    let engine = pair.engine(&Setup::default())?;
    let (front, back) = (at(OURS[0], 8080), at(PEER[0], 8081));
    let (origin, _back) = pair.nginx("origin", pair.b().command(Nginx::program()), pair.b(), &[back])?;
    let big = origin.files().join("big");
    write_random(&big, if options.quick { HUNDRED_MB / 10 } else { HUNDRED_MB }, 12)?;
    let nginx = Nginx::lay_out(pair.lab.dir(), "front", &[front], 2)?;
    nginx.pass_to(back)?;
    let mut program = pair.lab.start("front", engine.command(Nginx::program()).args(nginx.arguments()))?;
    serves(&mut program, pair.b(), front).with_context(|| nginx.error_log())?;
    pair.both_ways(&|| pair.b().command("curl"), front, &origin, &big).with_context(|| nginx.error_log())?;
    let load = crate::load::Load { server: front, path: "/", connections: 8, requests: 2000 };
    crate::load::run(pair.b(), &load).with_context(|| nginx.error_log())?;
    Ok(Verdict::Passed)
}

fn python_http_server(options: &Options) -> Result<Verdict> {
    let pair = Pair::new("python")?;
    let engine = pair.engine(&Setup::default())?;
    let big = pair.lab.file("big");
    write_random(&big, if options.quick { HUNDRED_MB / 10 } else { HUNDRED_MB }, 8)?;
    let sum = sha256(&big)?;
    for (number, address) in OURS.into_iter().enumerate() {
        let mut line = engine.command(python());
        line.args(["-u", "-m", "http.server", "8000", "--bind", address, "--directory"]).arg(pair.lab.dir());
        let mut server = pair.lab.start(&format!("python{number}"), &mut line)?;
        serves(&mut server, pair.b(), at(address, 8000))?;
        let copy = pair.lab.file("copy");
        let mut get = pair.b().command("curl");
        get.args(CURL).arg("-o").arg(&copy).arg(format!("http://{}/big", at(address, 8000)));
        pair.lab.must(&mut get, TRANSFER).with_context(|| server.stderr())?;
        ensure!(sha256(&copy)? == sum, "what came from {address} is not what was sent");
    }
    Ok(Verdict::Passed)
}

fn python_asyncio_echo(_: &Options) -> Result<Verdict> {
    let pair = Pair::new("asyncio")?;
    let engine = pair.engine(&Setup::default())?;
    let script = include_str!("../programs/asyncio_echo.py");
    let mut line = engine.command(python());
    let mut server = pair.lab.start("echo", line.args(["-c", script, OURS[0], OURS[1], "7000"]))?;
    serves(&mut server, pair.b(), at(OURS[0], 7000))?;
    let client = include_str!("../programs/echo_client.py");
    for address in OURS {
        let mut line = pair.b().command(python());
        let said = pair.lab.must(line.args(["-c", client, address, "7000", "50", "100000"]), TRANSFER)?;
        ensure!(said.trim() == "50 connections, 5000000 bytes each way", "{said}");
    }
    Ok(Verdict::Passed)
}

fn redis_server(_: &Options) -> Result<Verdict> {
    let pair = Pair::new("redis")?;
    let engine = pair.engine(&Setup::default())?;
    let mut line = engine.command("redis-server");
    line.args(["--bind", OURS[0], OURS[1], "--port", "6379", "--save", "", "--protected-mode", "no", "--dir"]);
    let mut server = pair.lab.start("redis", line.arg(pair.lab.dir()))?;
    let mut rates = Vec::new();
    for address in OURS {
        serves(&mut server, pair.b(), at(address, 6379))?;
        redis_commands(&pair, &|| pair.b().command("redis-cli"), address)?;
        let mut bench = pair.b().command("redis-benchmark");
        bench.args(["-h", address, "-n", "20000", "-c", "20", "-P", "4", "-t", "set,get", "--csv"]);
        let said = pair.must(&mut bench)?;
        let gets = said.lines().find(|l| l.starts_with("\"GET\"")).with_context(|| said.clone())?;
        rates.push(gets.split('"').nth(3).unwrap_or("?").to_owned());
    }
    Ok(Verdict::Figure(format!("GET/s: v4 {}, v6 {}", rates[0], rates[1])))
}

/// Small and large values in and out with redis-cli.
pub fn redis_commands(pair: &Pair, command: &dyn Fn() -> Command, address: &str) -> Result<()> {
    let cli = |args: &[&str]| pair.must(command().args(["-h", address, "-p", "6379"]).args(args));
    ensure!(cli(&["PING"])?.trim() == "PONG", "PING");
    ensure!(cli(&["SET", "key", "value"])?.trim() == "OK", "SET");
    ensure!(cli(&["GET", "key"])?.trim() == "value", "GET");
    let large = "x".repeat(100_000);
    ensure!(cli(&["SET", "large", &large])?.trim() == "OK", "SET of 100 kB");
    ensure!(cli(&["GET", "large"])?.trim() == large, "GET of 100 kB");
    Ok(())
}

fn nc_listens(_: &Options) -> Result<Verdict> {
    let pair = Pair::new("nc")?;
    let engine = pair.engine(&Setup::default())?;
    let file = pair.lab.file("data");
    write_random(&file, 10_000_000, 9)?;
    for (number, address) in OURS.into_iter().enumerate() {
        let mut line = engine.command("/usr/bin/nc");
        let mut server = pair.lab.start(&format!("nc{number}"), line.args(["-l", address, "9000"]))?;
        seen(&engine, "nc listening", |s| s["state"] == "LISTEN")?;
        let mut line = pair.b().command("nc");
        line.args(["-N", address, "9000"]);
        let mut client =
            Program::start_with_input(pair.lab.dir(), &format!("nc-client{number}"), &mut line, Some(&file))?;
        client.wait(TRANSFER)?.ok("nc on the kernel")?;
        server.wait(HELPER)?.status.success().then_some(()).context("nc -l failed")?;
        let got = pair.lab.file(&format!("nc{number}.out"));
        ensure!(sha256(&got)? == sha256(&file)?, "nc -l on {address} got something else than was sent");
    }
    Ok(Verdict::Passed)
}

fn nc_udp(_: &Options) -> Result<Verdict> {
    let pair = Pair::new("udp")?;
    let engine = pair.engine(&Setup::default())?;
    let echo = include_str!("../programs/udp_echo.py");
    for (number, address) in OURS.into_iter().enumerate() {
        let mut line = engine.command(python());
        let mut server = pair.lab.start(&format!("udp{number}"), line.args(["-u", "-c", echo, address, "9001"]))?;
        server.wait_until("bound", HELPER, |p| p.stdout().contains("bound").then_some(()))?;
        let text = pair.lab.file("question");
        std::fs::write(&text, "is it there?\n")?;
        let mut line = pair.b().command("nc");
        line.args(["-u", "-w", "2", address, "9001"]);
        let mut client =
            Program::start_with_input(pair.lab.dir(), &format!("udp-client{number}"), &mut line, Some(&text))?;
        let ended = client.wait(HELPER)?;
        ensure!(ended.stdout == "is it there?\n", "nc -u to {address} got {:?}; {}", ended.stdout, server.stderr());
    }
    Ok(Verdict::Passed)
}

/// Starts `iperf3 -s` by `command`, to serve until it is dropped.
pub fn iperf3_listen(pair: &Pair, name: &str, mut command: Command, address: &str) -> Result<Program> {
    let mut server = pair.lab.start(name, command.args(["-s", "-B", address, "--forceflush"]))?;
    server.wait_until("listening", HELPER, |p| p.stdout().contains("Server listening").then_some(()))?;
    Ok(server)
}

/// Runs `iperf3 -c`; Gbit/s that the receiver saw.
pub fn iperf3_to(lab: &Lab, mut command: Command, address: &str, args: &[&str]) -> Result<f64> {
    command.args(["-c", address, "-J", "--connect-timeout", "5000"]).args(args);
    let mut report = Value::Null;
    let mut last: Result<()> = Ok(());
    // Between two tests the server closes its listening socket and opens it again, and it may not have noticed yet that
    // the last client went: refused, reset in its queue, or told to come again is no failure then.
    let attempt = || {
        last = (|| -> Result<()> {
            let ended = lab.run(&mut command, TRANSFER)?;
            report = serde_json::from_str(&ended.stdout).with_context(|| format!("iperf3: {}", ended.stdout))?;
            Ok(())
        })();
        let refused = report["error"]
            .as_str()
            .is_some_and(|e| ["Connection re", "try again later"].iter().any(|known| e.contains(known)));
        (last.is_err() || !refused).then_some(())
    };
    until(std::time::Duration::from_secs(5), attempt);
    last?;
    if let Some(error) = report["error"].as_str() {
        anyhow::bail!("iperf3 {}: {error}", args.join(" "));
    }
    let end = if args.contains(&"-u") { &report["end"]["sum"] } else { &report["end"]["sum_received"] };
    ensure!(end["bytes"].as_f64().unwrap_or(0.0) > 0.0, "iperf3 moved nothing: {end}");
    Ok(end["bits_per_second"].as_f64().unwrap_or(0.0) / 1e9)
}

fn iperf3_server(_: &Options) -> Result<Verdict> {
    let pair = Pair::new("iperf")?;
    let engine = pair.engine(&Setup::default())?;
    let mut figures = Vec::new();
    for address in OURS {
        let _server =
            iperf3_listen(&pair, &format!("iperf-{address}").replace(':', ""), engine.command("iperf3"), address)?;
        for args in [&["-t", "1"][..], &["-t", "1", "-R"], &["-t", "1", "-P", "4"]] {
            let rate = iperf3_to(&pair.lab, pair.b().command("iperf3"), address, args)?;
            figures.push(format!("{rate:.1}"));
        }
    }
    Ok(Verdict::Figure(format!("Gbit/s v4 in, out, 4 in; v6 the same: {}", figures.join(", "))))
}

fn iperf3_udp(_: &Options) -> Result<Verdict> {
    let pair = Pair::new("iperfudp")?;
    let engine = pair.engine(&Setup::default())?;
    for address in OURS {
        let _server =
            iperf3_listen(&pair, &format!("udp-{address}").replace(':', ""), engine.command("iperf3"), address)?;
        for args in [&["-u", "-b", "50M", "-t", "1"][..], &["-u", "-b", "50M", "-t", "1", "-R"]] {
            iperf3_to(&pair.lab, pair.b().command("iperf3"), address, args)?;
        }
    }
    Ok(Verdict::Passed)
}

fn iperf3_one_gigabyte_each_way(options: &Options) -> Result<Verdict> {
    let pair = Pair::new("gigabyte")?;
    let engine: Engine<'_> = pair.engine(&Setup::default())?;
    let amount = if options.quick { "100M" } else { "1G" };
    let mut figures = Vec::new();
    let families = if options.quick { 1 } else { 2 };
    for address in OURS.into_iter().take(families) {
        let _server =
            iperf3_listen(&pair, &format!("iperf-{address}").replace(':', ""), engine.command("iperf3"), address)?;
        for args in [&["-n", amount][..], &["-n", amount, "-R"]] {
            let rate = iperf3_to(&pair.lab, pair.b().command("iperf3"), address, args)?;
            figures.push(format!("{rate:.1}"));
        }
    }
    Ok(Verdict::Figure(format!("Gbit/s in, out (v4, v6): {}", figures.join(", "))))
}
