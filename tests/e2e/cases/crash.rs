//! The engine dies under load; the program dies under load.

use super::{LONG, OURS, PEER, Pair, SHORT, at, case, python, serves, takes};
use crate::engine::{Engine, Setup, has_xdp};
use crate::harness::{Case, Options, Verdict};
use crate::load::{self, Load, Sample};
use crate::nginx::Nginx;
use crate::program::{HELPER, Program, descendants, until};
use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

pub const CASES: &[Case] = &[
    case("crash::engine_killed_under_load", &["nginx", "ping"], LONG, engine_killed_under_load),
    case("crash::program_killed_under_load", &["nginx"], SHORT, program_killed_under_load),
    case("crash::connections_of_a_dead_program_end", &[], SHORT, connections_of_a_dead_program_end),
];

/// How long a blocked call may take to return after the engine died or fell silent: the engine is taken for dead
/// after 5 s of silence, a waiting call looks every second, and the machine is busy.
pub const RETURN: Duration = Duration::from_secs(30);

/// Starts a server in `b` that takes connections and leaves them alone.
pub fn hold(pair: &Pair, port: u16) -> Result<Program> {
    let mut line = pair.b().command(python());
    line.args(["-c", include_str!("../programs/hold.py"), PEER[0], &port.to_string()]);
    let mut server = pair.lab.start("hold", &mut line)?;
    server.wait_until("listening", HELPER, |p| p.stdout().contains("listening").then_some(()))?;
    Ok(server)
}

/// Starts the program that blocks in every kind of call.
pub fn probe(pair: &Pair, engine: &Engine<'_>, name: &str, port: u16) -> Result<Program> {
    let mut line = engine.command(python());
    line.args(["-c", include_str!("../programs/probe.py"), PEER[0], &port.to_string(), OURS[0]]);
    pair.lab.start(name, &mut line)
}

/// Whether the program had all its calls waiting.
pub fn is_blocked(program: &Program) -> bool {
    program.stdout().lines().any(|line| line == "blocked")
}

/// Every blocked call came back with an error, and so did the later ones.
pub fn all_returned_errors(program: &mut Program) -> Result<()> {
    program.wait(RETURN).context("a call still blocks")?;
    let said = program.stdout();
    let returned: Vec<&str> = said.lines().filter_map(|l| l.strip_prefix("returned ")).collect();
    ensure!(said.lines().any(|l| l == "done"), "not all calls returned: {said} {}", program.stderr());
    ensure!(returned.len() == 16, "{} results: {said}", returned.len());
    for line in returned {
        let (name, result) = line.split_once(' ').context("a result")?;
        // A reset connection gives its error once and the end afterwards, as on Linux.
        let good = match name {
            "epoll" | "poll" => result == "ERR|HUP",
            "recv" | "timed-recv" | "select" | "send" => result.starts_with('E'),
            "accept" | "recvfrom" => result.starts_with('E'),
            _ => result.starts_with('E') || result == "end",
        };
        ensure!(good, "{name} returned {result}: {said}");
    }
    Ok(())
}

/// Runs a load in the background while `meanwhile` works; both results.
fn under_load<T>(
    pair: &Pair,
    server: SocketAddr,
    meanwhile: impl FnOnce() -> Result<T>,
) -> Result<(T, Result<Sample>)> {
    let stop = AtomicBool::new(false);
    let load = Load { server, path: "/", connections: 8, requests: usize::MAX / 2 };
    std::thread::scope(|scope| {
        let driver = scope.spawn(|| pair.b().inside(|| load::drive(&load, &stop)).and_then(|r| r));
        std::thread::sleep(Duration::from_millis(300));
        let outcome = meanwhile();
        stop.store(true, Ordering::Relaxed);
        let sample = driver.join().unwrap_or_else(|_| bail!("the load panicked"));
        Ok((outcome?, sample))
    })
}

fn engine_killed_under_load(_: &Options) -> Result<Verdict> {
    let pair = Pair::new("killengine")?;
    let mut engine = pair.engine(&Setup::default())?;
    let server = at(OURS[0], 8080);
    let (_, mut nginx) = pair.nginx("nginx", engine.command(Nginx::program()), pair.b(), &[server])?;
    let _hold = hold(&pair, 9100)?;
    let mut blocked = probe(&pair, &engine, "probe", 9100)?;
    blocked.wait_until("blocked", HELPER, |p| is_blocked(p).then_some(()))?;
    let (kernel_after, _) = under_load(&pair, server, || {
        engine.kill();
        let begin = Instant::now();
        // The same address, now the kernel's: it answers as soon as frames reach the kernel again.
        pair.a().address("ss0", "10.77.0.2/24")?;
        let answered = || {
            let line = ["-n", "-c", "1", "-W", "1", OURS[0]];
            pair.lab.run(pair.b().command("ping").args(line), HELPER).ok()?.status.success().then_some(())
        };
        until(HELPER, answered).context("the kernel does not answer")?;
        Ok(begin.elapsed())
    })?;
    ensure!(!has_xdp(pair.a(), "ss0")?, "an XDP program is still attached");
    all_returned_errors(&mut blocked)?;
    pair.a().ip(&["addr", "del", "10.77.0.2/24", "dev", "ss0"])?;
    // nginx lost its listening sockets; it may be alive or have ended, but it must not hang when told to end.
    nginx.signal_tree(Signal::TERM);
    nginx.wait(RETURN).context("nginx after the engine's death")?;

    let begin = Instant::now();
    engine.restart("engine-again")?;
    let again = begin.elapsed();
    let (_, _nginx) = pair.nginx("nginx-again", engine.command(Nginx::program()), pair.b(), &[server])?;
    load::run(pair.b(), &Load { server, path: "/", connections: 4, requests: 400 })?;
    let figure = format!("the kernel answers {kernel_after:.0?} after kill -9; a new engine is ready in {again:.0?}");
    Ok(Verdict::Figure(figure))
}

fn program_killed_under_load(_: &Options) -> Result<Verdict> {
    let pair = Pair::new("killprogram")?;
    let engine = pair.engine(&Setup::default())?;
    let (first, second) = (at(OURS[0], 8080), at(OURS[0], 8081));
    let (_, mut victim) = pair.nginx("victim", engine.command(Nginx::program()), pair.b(), &[first])?;
    let (_, _other) = pair.nginx("other", engine.command(Nginx::program()), pair.b(), &[second])?;
    ensure!(groups(&engine)? == 2, "two groups");
    let ((), sample) = under_load(&pair, second, || {
        let ((), _) = under_load(&pair, first, || {
            // The program, not `sidestep run`: what is tested is that the engine notices by itself.
            for pid in descendants(victim.pid())
                .into_iter()
                .chain([victim.pid()])
                .filter_map(|p| Pid::from_raw(p.cast_signed()))
            {
                rustix::process::kill_process(pid, Signal::KILL)?;
            }
            until(HELPER, || (groups(&engine).ok()? == 1).then_some(())).context("the dead program's group stays")?;
            Ok(())
        })?;
        victim.kill();
        ensure!(!takes(pair.b(), first), "port 8080 is still open");
        Ok(())
    })?;
    let sample = sample.context("the other program's clients saw an error")?;
    let (_, _again) = pair.nginx("again", engine.command(Nginx::program()), pair.b(), &[first])?;
    Ok(Verdict::Figure(format!("{} requests to the other program meanwhile", sample.latencies_ns.len())))
}

fn groups(engine: &Engine<'_>) -> Result<usize> {
    Ok(engine.stats()?["groups"].as_array().context("groups in stats")?.len())
}

/// As Linux does: a connection with nothing unread ends with FIN, one with unread data with RST.
fn connections_of_a_dead_program_end(_: &Options) -> Result<Verdict> {
    let pair = Pair::new("dead")?;
    let engine = pair.engine(&Setup::default())?;
    let script = "import socket, sys
s = socket.create_server((sys.argv[1], 7100)); quiet, _ = s.accept(); unread, _ = s.accept()
quiet.recv(1); print('accepted', flush=True); sys.stdin.read(); import time; time.sleep(600)";
    let mut server = pair.lab.start("server", engine.command(python()).args(["-c", script, OURS[0]]))?;
    let client = "import socket, sys, errno
def end(s):
    try: return 'FIN' if s.recv(1) == b'' else 'data'
    except OSError as e: return errno.errorcode[e.errno]
a = (sys.argv[1], 7100); quiet = socket.create_connection(a); unread = socket.create_connection(a)
unread.sendall(b'x' * 1000); quiet.sendall(b'x'); print('sent', flush=True)
print(end(quiet), end(unread), flush=True)";
    super::seen(&engine, "the listener", |s| s["state"] == "LISTEN")?;
    let mut client = pair.lab.start("client", pair.b().command(python()).args(["-c", client, OURS[0]]))?;
    server.wait_until("accepted", HELPER, |p| p.stdout().contains("accepted").then_some(()))?;
    client.wait_until("sent", HELPER, |p| p.stdout().contains("sent").then_some(()))?;
    std::thread::sleep(Duration::from_millis(300));
    server.kill();
    let ended = client.wait(RETURN)?;
    ensure!(ended.stdout.trim() == "sent\nFIN ECONNRESET", "{:?} {}", ended.stdout, ended.stderr);
    // The port is free at once.
    let mut again = pair.lab.start("again", engine.command("/usr/bin/nc").args(["-l", OURS[0], "7100"]))?;
    serves(&mut again, pair.b(), at(OURS[0], 7100))?;
    Ok(Verdict::Passed)
}
