//! The engine in the program itself: `sidestep run --library`. The peer is the kernel's.

use super::{CURL, OURS, Pair, SHORT, at, case, python, serves};
use crate::engine::{Setup, binary, has_xdp, total};
use crate::files::write_random;
use crate::harness::{Case, Options, Verdict};
use crate::program::{HELPER, Program, TRANSFER, until};
use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

pub const CASES: &[Case] = &[
    case("library::nginx_alone", &["nginx", "curl"], SHORT, nginx_alone),
    case("library::nginx_with_workers", &["nginx", "curl"], SHORT, nginx_with_workers),
    case("library::redis", &["redis-server", "redis-benchmark"], SHORT, redis),
    case("library::a_client", &["curl"], SHORT, client),
    case("library::goes_on_while_the_program_computes", &[], SHORT, computes),
    case("library::children_are_guests", &[], SHORT, children),
    case("library::killed", &[], SHORT, killed),
];

/// A laboratory, and how programs get their engine there.
struct Library {
    pair: Pair,
    config: PathBuf,
    control: PathBuf,
}

impl Library {
    fn new(name: &str) -> Result<Self> {
        let pair = Pair::new(name)?;
        let setup = Setup { cores: Vec::new(), ..Setup::default() };
        let (config, control) = setup.write(&pair.lab, "library")?;
        Ok(Self { pair, config, control })
    }

    /// `program` with the engine in it.
    fn command(&self, program: &str) -> Result<Command> {
        let mut line = self.pair.a().command(binary()?);
        line.args(["run", "--library", "-c"]).arg(&self.config).args(["--", program]);
        Ok(line)
    }

    fn script(&self, name: &str, text: &str, arguments: &[&str]) -> Result<Program> {
        let mut line = self.command(python())?;
        line.args(["-c", text]).args(arguments);
        self.pair.lab.start(name, &mut line)
    }

    /// What a tool says of the engine in the program.
    fn ask(&self, what: &str) -> Result<Value> {
        let mut line = self.pair.a().command(binary()?);
        line.args([what, "--json", "--control"]).arg(&self.control);
        Ok(serde_json::from_str(&self.pair.must(&mut line)?)?)
    }

    /// That nothing of the engine is left: the device, and the control socket.
    fn is_gone(&self) -> Result<()> {
        let gone = || (!has_xdp(self.pair.a(), "ss0").unwrap_or(true)).then_some(());
        until(HELPER, gone).context("ss0 still has the XDP program")?;
        ensure!(self.ask("stats").is_err(), "an engine still answers");
        Ok(())
    }
}

fn nginx_alone(options: &Options) -> Result<Verdict> {
    nginx("libnginx", false, options)
}

fn nginx_with_workers(options: &Options) -> Result<Verdict> {
    nginx("libworkers", true, options)
}

fn nginx(name: &str, workers: bool, options: &Options) -> Result<Verdict> {
    let library = Library::new(name)?;
    let big = library.pair.lab.file("big");
    write_random(&big, if options.quick { 3_000_000 } else { 40_000_000 }, 1)?;
    let server = at(OURS[0], 8080);
    let dir = library.pair.lab.dir();
    let nginx = crate::nginx::Nginx::lay_out(dir, "nginx", &[server], 2)?;
    if !workers {
        nginx.alone()?;
    }
    std::fs::copy(&big, nginx.files().join("big"))?;
    let mut program = library.pair.lab.start("nginx", library.command("nginx")?.args(nginx.arguments()))?;
    serves(&mut program, library.pair.b(), server).with_context(|| nginx.error_log())?;
    library.pair.both_ways(&|| library.pair.b().command("curl"), server, &nginx, &big)?;
    let sockets = library.ask("ss")?;
    let listens = |s: &Value| s["state"] == "LISTEN" && s["program"] == "nginx";
    ensure!(sockets.as_array().is_some_and(|all| all.iter().any(listens)), "{sockets}");
    let stats = library.ask("stats")?;
    ensure!(total(&stats, "tcp_opened_passive").is_some_and(|n| n >= 3), "the stack did not serve: {stats}");
    program.signal(Signal::QUIT);
    program.wait(HELPER)?;
    library.is_gone()?;
    Ok(Verdict::Passed)
}

fn redis(options: &Options) -> Result<Verdict> {
    let library = Library::new("libredis")?;
    let mut line = library.command("redis-server")?;
    line.args(["--bind", OURS[0], "--port", "6379", "--save", "", "--protected-mode", "no", "--dir"]);
    let mut server = library.pair.lab.start("redis", line.arg(library.pair.lab.dir()))?;
    serves(&mut server, library.pair.b(), at(OURS[0], 6379))?;
    let requests = if options.quick { "20000" } else { "200000" };
    let mut line = library.pair.b().command("redis-benchmark");
    line.args(["-h", OURS[0], "-t", "set,get", "-n", requests, "-c", "50", "--csv"]);
    let said = library.pair.lab.must(&mut line, TRANSFER)?;
    let rates: Vec<&str> = said.lines().skip(1).filter_map(|l| l.split(',').nth(1)).collect();
    ensure!(rates.len() == 2, "{said}");
    server.signal(Signal::TERM);
    ensure!(server.wait(HELPER)?.code() == 0, "{}", server.stdout());
    library.is_gone()?;
    Ok(Verdict::Figure(format!("requests/s SET, GET: {}", rates.join(", ").replace('"', ""))))
}

/// A short-lived client: what it wrote leaves before it is gone.
fn client(_: &Options) -> Result<Verdict> {
    let library = Library::new("libclient")?;
    let folder = library.pair.lab.file("www");
    std::fs::create_dir_all(&folder)?;
    write_random(&folder.join("page"), 300_000, 1)?;
    let mut line = library.pair.b().command(python());
    line.args(["-m", "http.server", "8000", "--bind", super::PEER[0], "--directory"]).arg(&folder);
    let mut server = library.pair.lab.start("server", &mut line)?;
    serves(&mut server, library.pair.b(), at(super::PEER[0], 8000))?;
    let copy = library.pair.lab.file("copy");
    for _ in 0..2 {
        let mut line = library.command("curl")?;
        line.args(CURL).arg("-o").arg(&copy).arg(format!("http://{}:8000/page", super::PEER[0]));
        library.pair.lab.must(&mut line, TRANSFER)?;
        same(&copy, &folder.join("page"))?;
        library.is_gone()?;
    }
    Ok(Verdict::Passed)
}

fn same(one: &Path, other: &Path) -> Result<()> {
    ensure!(std::fs::read(one)? == std::fs::read(other)?, "{} is not what was sent", one.display());
    Ok(())
}

/// The program takes a connection and then makes no call on sockets until a file is there. The peer makes that file once
/// everything that it sent is acknowledged: by the helper, because nobody else is there to do it.
fn computes(_: &Options) -> Result<Verdict> {
    let library = Library::new("libcompute")?;
    let flag = library.pair.lab.file("acknowledged");
    let path = flag.to_string_lossy().into_owned();
    let script = "import os, socket, sys
s = socket.create_server((sys.argv[1], 9000))
print('listening', flush=True)
c, _ = s.accept()
while not os.path.exists(sys.argv[2]): pass
data = b''
while len(data) < 20000: data += c.recv(65536)
c.sendall(b'thanks')
print('read', len(data), flush=True)";
    let mut server = library.script("server", script, &[OURS[0], &path])?;
    server.wait_until("listening", HELPER, |p| p.stdout().contains("listening").then_some(()))?;
    let script = "import array, fcntl, socket, sys, termios, time
s = socket.create_connection((sys.argv[1], 9000))
s.sendall(b'x' * 20000)
left = array.array('i', [1])
while left[0]:
    fcntl.ioctl(s, termios.TIOCOUTQ, left)
    time.sleep(0.01)
open(sys.argv[2], 'w').close()
print(s.recv(100))";
    let mut line = library.pair.b().command(python());
    line.args(["-c", script, OURS[0], &path]);
    let said = library.pair.lab.must(&mut line, HELPER)?;
    ensure!(said == "b'thanks'\n", "{said}");
    ensure!(server.wait(HELPER)?.code() == 0 && server.stdout().contains("read 20000"), "{}", server.stderr());
    Ok(Verdict::Passed)
}

/// A listener goes through fork, the child serves on it, and a program that the parent starts has sockets too: all on
/// the parent's engine.
fn children(_: &Options) -> Result<Verdict> {
    let library = Library::new("libfork")?;
    let script = "import os, socket, subprocess, sys
s = socket.create_server((sys.argv[1], 9000))
print('listening', flush=True)
child = os.fork()
if child == 0:
    c, _ = s.accept()
    c.sendall(b'child of %d' % os.getppid()); c.close()
    os._exit(0)
os.waitpid(child, 0)
other = '''import socket, sys
s = socket.create_server((sys.argv[1], 9001))
print(\"another\", flush=True)
c, _ = s.accept(); c.sendall(b\"guest\"); c.close()'''
subprocess.run([sys.executable, '-c', other, sys.argv[1]], check=True)
c, _ = s.accept()
c.sendall(b'parent'); c.close()
print('done', flush=True)";
    let mut server = library.script("server", script, &[OURS[0]])?;
    server.wait_until("listening", HELPER, |p| p.stdout().contains("listening").then_some(()))?;
    let read = |port: &str| -> Result<String> {
        let script = "import socket, sys
print(socket.create_connection((sys.argv[1], int(sys.argv[2]))).makefile().read())";
        let mut line = library.pair.b().command(python());
        line.args(["-c", script, OURS[0], port]);
        Ok(library.pair.must(&mut line)?.trim().to_owned())
    };
    ensure!(read("9000")? == format!("child of {}", server.pid()), "the child did not serve");
    server.wait_until("another", HELPER, |p| p.stdout().contains("another").then_some(()))?;
    ensure!(read("9001")? == "guest", "the other program did not serve");
    ensure!(read("9000")? == "parent", "the parent did not serve");
    ensure!(server.wait(HELPER)?.code() == 0 && server.stdout().contains("done"), "{}", server.stderr());
    ensure!(server.stderr().contains("library mode"), "nobody was told whose engine it is: {}", server.stderr());
    library.is_gone()?;
    Ok(Verdict::Passed)
}

/// Nothing is left of a program that is killed, and the next one starts.
fn killed(_: &Options) -> Result<Verdict> {
    let library = Library::new("libkilled")?;
    let script = "import os, signal, socket, sys
s = socket.create_server((sys.argv[1], 9000))
print('listening', flush=True)
while True: s.accept()[0].close()";
    for round in 0..2 {
        let mut server = library.script(&format!("server{round}"), script, &[OURS[0]])?;
        server.wait_until("listening", HELPER, |p| p.stdout().contains("listening").then_some(()))?;
        serves(&mut server, library.pair.b(), at(OURS[0], 9000))?;
        ensure!(has_xdp(library.pair.a(), "ss0")?, "no XDP program on ss0 while it runs");
        server.signal(Signal::KILL);
        ensure!(server.wait(HELPER)?.code() == 137, "it was not killed");
        library.is_gone()?;
    }
    Ok(Verdict::Passed)
}
