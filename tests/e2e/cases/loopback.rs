//! 127.0.0.0/8 and ::1 in the stack: programs of one engine that talk to each other, and no device anywhere.

use super::server::iperf3_to;
use super::{CURL, LONG, SHORT, case, python};
use crate::engine::{Engine, Setup, binary, total};
use crate::harness::{Case, Options, Verdict};
use crate::lab::{Lab, Space};
use crate::program::{HELPER, Program, TRANSFER};
use anyhow::{Context, Result, ensure};
use std::process::Command;

pub const CASES: &[Case] = &[
    case("loopback::http", &["curl"], SHORT, http),
    case("loopback::redis", &["redis-server", "redis-cli", "redis-benchmark"], SHORT, redis),
    case("loopback::iperf3", &["iperf3"], LONG, iperf3),
    case("loopback::as_the_kernel", &[], SHORT, as_the_kernel),
    case("loopback::a_private_engine_without_rights", &["setpriv"], SHORT, without_rights),
];

/// The loopback addresses, as a URL has them.
const HOSTS: [&str; 3] = ["127.0.0.1", "127.1.2.3", "[::1]"];

/// An engine without an interface, with so many shards.
pub fn alone(shards: u32) -> Setup {
    Setup {
        interface: "none".into(),
        backend: "none".into(),
        queues: shards.to_string(),
        cores: Vec::new(),
        addresses: Vec::new(),
        ..Setup::default()
    }
}

/// A namespace for an engine, so that its kernel has no listeners but ours.
pub fn lab(name: &str) -> Result<(Lab, usize)> {
    let mut lab = Lab::new(name)?;
    let space = lab.add_space('a')?;
    Ok((lab, space))
}

/// Waits until a client on the engine is taken by `host` (as in a URL) and `port`.
fn answers(lab: &Lab, engine: &Engine<'_>, server: &mut Program, host: &str, port: u16) -> Result<()> {
    let script = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 5).close()";
    let host = host.trim_matches(['[', ']']);
    let dial = || {
        let mut line = engine.command(python());
        line.args(["-c", script, host, &port.to_string()]);
        lab.run(&mut line, HELPER).is_ok_and(|ended| ended.status.success()).then_some(())
    };
    server.wait_until(&format!("serving {host}:{port}"), HELPER, |_| dial())
}

/// That the stack, and not the kernel, carried what happened since it had counted `before` packets to itself.
pub fn carried(engine: &Engine<'_>, before: u64, least: u64) -> Result<u64> {
    let now = looped(engine)?;
    ensure!(now >= before + least, "only {} packets went through the stack, {least} were expected", now - before);
    Ok(now)
}

fn looped(engine: &Engine<'_>) -> Result<u64> {
    total(&engine.stats()?, "loopback").context("`loopback` in stats")
}

fn http(_: &Options) -> Result<Verdict> {
    let (lab, space) = lab("lohttp")?;
    for shards in [1, 2] {
        let mut engine = Engine::start(&lab, lab.space(space), &format!("engine{shards}"), &alone(shards))?;
        let folder = lab.file("www");
        std::fs::create_dir_all(&folder)?;
        let page = "x".repeat(300_000);
        std::fs::write(folder.join("page"), &page)?;
        let mut line = engine.command(python());
        line.args(["-m", "http.server", "8000", "--bind", "::", "--directory"]).arg(&folder);
        let mut server = lab.start(&format!("server{shards}"), &mut line)?;
        let mut seen = 0;
        for host in HOSTS {
            answers(&lab, &engine, &mut server, host, 8000)?;
            let mut line = engine.command("curl");
            let said = lab.must(line.args(CURL).arg(format!("http://{host}:8000/page")), HELPER)?;
            ensure!(said == page, "{} bytes from {host} instead of {}", said.len(), page.len());
            seen = carried(&engine, seen, 10)?;
        }
        // A port that nobody has: the answer comes at once, so the client need not give up.
        let mut line = engine.command("curl");
        let ended = lab.run(line.args(CURL).arg("http://127.0.0.1:9/"), HELPER)?;
        ensure!(ended.code() == 7, "curl to a closed port: {} {}", ended.code(), ended.stderr);
        drop(server);
        engine.stop()?;
    }
    Ok(Verdict::Passed)
}

fn redis(options: &Options) -> Result<Verdict> {
    let (lab, space) = lab("loredis")?;
    let engine = Engine::start(&lab, lab.space(space), "engine", &alone(1))?;
    let mut line = engine.command("redis-server");
    line.args(["--port", "6379", "--save", "", "--dir"]).arg(lab.dir());
    let mut server = lab.start("redis", &mut line)?;
    answers(&lab, &engine, &mut server, "127.0.0.1", 6379)?;
    for host in ["127.0.0.1", "::1"] {
        let said = lab.must(engine.command("redis-cli").args(["-h", host, "set", "key", host]), HELPER)?;
        ensure!(said.trim() == "OK", "{said}");
    }
    let said = lab.must(engine.command("redis-cli").args(["get", "key"]), HELPER)?;
    ensure!(said.trim() == "::1", "{said}");
    let before = looped(&engine)?;
    let requests = if options.quick { "20000" } else { "200000" };
    let mut line = engine.command("redis-benchmark");
    line.args(["-t", "set,get", "-n", requests, "-c", "50", "--csv"]);
    let said = lab.must(&mut line, TRANSFER)?;
    carried(&engine, before, 2 * requests.parse::<u64>()?)?;
    let rates: Vec<&str> = said.lines().skip(1).filter_map(|l| l.split(',').nth(1)).collect();
    ensure!(rates.len() == 2, "{said}");
    Ok(Verdict::Figure(format!("requests/s SET, GET: {}", rates.join(", ").replace('"', ""))))
}

fn iperf3(options: &Options) -> Result<Verdict> {
    let (lab, space) = lab("loiperf")?;
    let engine = Engine::start(&lab, lab.space(space), "engine", &alone(1))?;
    let amount = if options.quick { "200M" } else { "2G" };
    let mut figures = Vec::new();
    let mut server = lab.start("iperf3", engine.command("iperf3").args(["-s", "-p", "5201"]))?;
    answers(&lab, &engine, &mut server, "127.0.0.1", 5201)?;
    for address in ["127.0.0.1", "::1"] {
        for args in [&["-n", amount][..], &["-n", amount, "-R"], &["-t", "1", "-P", "8"]] {
            let rate = iperf3_to(&lab, engine.command("iperf3"), address, args)?;
            figures.push(format!("{rate:.1}"));
        }
    }
    ensure!(looped(&engine)? > 1000, "the kernel carried it");
    Ok(Verdict::Figure(format!("Gbit/s v4 out, in, 8 out; v6 the same: {}", figures.join(", "))))
}

/// One script on the kernel and on the stack, with one and with several shards: every line must be the same.
fn as_the_kernel(_: &Options) -> Result<Verdict> {
    let (lab, space) = lab("loparity")?;
    let here = lab.space(space);
    let script = lab.file("script.py");
    std::fs::write(&script, include_str!("loopback.py"))?;
    let kernel = lab.run(here.command(python()).arg(&script), TRANSFER)?.ok("the script on the kernel")?.stdout;
    let mut lines = 0;
    for shards in [1, 3] {
        let mut engine = Engine::start(&lab, here, &format!("engine{shards}"), &alone(shards))?;
        let ours = lab.run(engine.command(python()).arg(&script), TRANSFER)?.ok("the script on Sidestep")?.stdout;
        let differ: Vec<String> = kernel
            .lines()
            .zip(ours.lines())
            .filter(|(k, o)| k != o)
            .map(|(k, o)| format!("kernel: {k} / {shards} shards: {o}"))
            .collect();
        ensure!(differ.is_empty() && kernel.lines().count() == ours.lines().count(), "{}", differ.join("; "));
        carried(&engine, 0, 1000)?;
        lines = ours.lines().count();
        engine.stop()?;
    }
    Ok(Verdict::Figure(format!("{lines} lines the same")))
}

/// `run --loopback` needs no device, so it needs no rights either.
fn without_rights(_: &Options) -> Result<Verdict> {
    let (lab, space) = lab("loprivate")?;
    let here: &Space = lab.space(space);
    // The build's folder may be closed to other users.
    let place = lab.file("bin");
    std::fs::create_dir_all(&place)?;
    let built = binary()?;
    for name in ["sidestep", "libsidestep_preload.so"] {
        let copy = place.join(name);
        std::fs::copy(built.with_file_name(name), &copy)?;
        std::fs::set_permissions(&copy, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    }
    for folder in [lab.dir(), place.as_path()] {
        std::fs::set_permissions(folder, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    }
    let sidestep = place.join("sidestep");
    let script = "import os, socket
s = socket.create_server(('', 0), family=socket.AF_INET6, dualstack_ipv6=True)
port = s.getsockname()[1]
for host in ('127.0.0.1', '::1'):
    c = socket.create_connection((host, port))
    a, _ = s.accept()
    a.sendall(b'hello'); a.close()
    print(os.getuid(), c.recv(10))
os.execvp(os.environ['SIDESTEP_COMMAND'], ['sidestep', 'stats', '--json'])";
    let mut line: Command = here.command("setpriv");
    line.args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "env"]);
    line.arg(format!("SIDESTEP_COMMAND={}", sidestep.display())).arg(&sidestep);
    line.args(["run", "--loopback", "--", python(), "-c", script]).current_dir("/");
    let said = lab.run(&mut line, HELPER)?.ok("run --loopback")?.stdout;
    let (text, json) = said.split_once('{').with_context(|| said.clone())?;
    ensure!(text == "65534 b'hello'\n65534 b'hello'\n", "{text}");
    let stats: serde_json::Value = serde_json::from_str(&format!("{{{json}"))?;
    ensure!(total(&stats, "tcp_opened_passive") == Some(2), "the stack did not serve: {stats}");
    Ok(Verdict::Passed)
}
