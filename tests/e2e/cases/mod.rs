//! The tests, by what they show. Each stands in a laboratory of its own: `a` with Sidestep's device `ss0`, `b` with the
//! kernel's end `k0` of the same veth pair.

mod bench;
mod books;
mod capi;
mod client;
mod crash;
mod flood;
mod hostile;
mod house;
mod interop;
mod library;
mod life;
mod loopback;
mod misuse;
mod names;
mod pair;
mod points;
mod posix;
mod programs;
mod raw;
mod rights;
mod scale;
mod server;
mod shards;
mod shared;
mod soak;
mod stdio;
mod suites;
mod vanish;

pub use soak::soak;

use crate::engine::{Engine, Setup};
use crate::files::sha256;
use crate::harness::Case;
use crate::lab::{Lab, Space, Veth};
use crate::nginx::Nginx;
use crate::program::{HELPER, Program, TRANSFER, until};
use anyhow::{Context, Result, ensure};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// All tests, in the order in which they run: what everything rests on first, what takes longest last.
#[must_use]
pub fn cases() -> Vec<Case> {
    [
        house::CASES,
        life::CASES,
        loopback::CASES,
        capi::CASES,
        library::CASES,
        misuse::CASES,
        names::CASES,
        raw::CASES,
        rights::CASES,
        stdio::CASES,
        suites::CASES,
        server::CASES,
        client::CASES,
        programs::CASES,
        pair::CASES,
        shards::CASES,
        shared::CASES,
        crash::CASES,
        vanish::CASES,
        books::CASES,
        hostile::CASES,
        interop::CASES,
        flood::CASES,
        scale::CASES,
        posix::CASES,
        soak::CASES,
        points::CASES,
        bench::CASES,
    ]
    .concat()
}

/// Sidestep's addresses on `ss0`, and the kernel's on `k0`.
const OURS: [&str; 2] = ["10.77.0.2", "fd77::2"];
const PEER: [&str; 2] = ["10.77.0.1", "fd77::1"];

/// How long a test may take that needs a few seconds.
const SHORT: Duration = Duration::from_secs(120);
/// The same for one that moves much data or runs many rounds.
const LONG: Duration = Duration::from_secs(400);

/// A case that needs `programs`.
const fn case(
    name: &'static str,
    needs: &'static [&'static str],
    limit: Duration,
    run: fn(&crate::harness::Options) -> Result<crate::harness::Verdict>,
) -> Case {
    Case { name, needs, limit, run }
}

/// Two namespaces and the veth pair between them.
struct Pair {
    lab: Lab,
    a: usize,
    b: usize,
}

impl Pair {
    fn new(name: &str) -> Result<Self> {
        Self::with(name, 1, &[])
    }

    /// `kernel_on_ss0`: addresses that the kernel has on Sidestep's device.
    fn with(name: &str, queues: u32, kernel_on_ss0: &[&str]) -> Result<Self> {
        let mut lab = Lab::new(name)?;
        let (a, b) = (lab.add_space('a')?, lab.add_space('b')?);
        let here = (lab.space(a), "ss0", kernel_on_ss0);
        lab.veth(&Veth { here, there: (lab.space(b), "k0", &["10.77.0.1/24", "fd77::1/64"]), queues })?;
        lab.space(b).finish_checksums("k0")?;
        Ok(Self { lab, a, b })
    }

    /// Sidestep's side.
    fn a(&self) -> &Space {
        self.lab.space(self.a)
    }

    /// The kernel's side.
    fn b(&self) -> &Space {
        self.lab.space(self.b)
    }

    fn engine(&self, setup: &Setup) -> Result<Engine<'_>> {
        Engine::start(&self.lab, self.a(), "engine", setup)
    }

    /// Starts nginx by `command` (whose arguments are added) and waits until it answers `client`.
    fn nginx(
        &self,
        name: &str,
        mut command: Command,
        client: &Space,
        listen: &[SocketAddr],
    ) -> Result<(Nginx, Program)> {
        let nginx = Nginx::lay_out(self.lab.dir(), name, listen, 2)?;
        let mut program = self.lab.start(name, command.args(nginx.arguments()))?;
        for address in listen {
            serves(&mut program, client, *address).with_context(|| nginx.error_log())?;
        }
        Ok((nginx, program))
    }

    /// Runs a command to a good end within the limit for helpers.
    fn must(&self, command: &mut Command) -> Result<String> {
        self.lab.must(command, HELPER)
    }

    /// Both ways with curl: what is fetched from and stored on the nginx at `server` must be what was sent.
    fn both_ways(&self, command: &dyn Fn() -> Command, server: SocketAddr, nginx: &Nginx, big: &Path) -> Result<()> {
        let sum = sha256(big)?;
        let copy = self.lab.file("copy");
        let mut get = command();
        get.args(CURL).arg("-o").arg(&copy).arg(format!("http://{server}/big"));
        self.lab.must(&mut get, TRANSFER).context("download")?;
        ensure!(sha256(&copy)? == sum, "what was downloaded from {server} is not what was sent");
        let mut put = command();
        put.args(CURL).args(["-o", "/dev/null", "-T"]).arg(big).arg(format!("http://{server}/upload"));
        self.lab.must(&mut put, TRANSFER).context("upload")?;
        ensure!(sha256(&nginx.files().join("upload"))? == sum, "what arrived at {server} is not what was uploaded");
        std::fs::remove_file(nginx.files().join("upload"))?;
        Ok(())
    }
}

/// curl without the machine's proxies, quiet, failing on an error of HTTP, never longer than a transfer may take.
const CURL: [&str; 7] = ["-q", "-sS", "--fail", "--noproxy", "*", "--max-time", "140"];

fn at(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(address.parse().unwrap_or(IpAddr::from([0, 0, 0, 0])), port)
}

/// Waits until `server` takes a connection from `client`, while `program` runs.
fn serves(program: &mut Program, client: &Space, server: SocketAddr) -> Result<()> {
    let what = format!("serving {server}");
    program.wait_until(&what, HELPER, |_| takes(client, server).then_some(()))
}

/// Whether `server` takes a connection from `client` at once.
fn takes(client: &Space, server: SocketAddr) -> bool {
    client.inside(|| TcpStream::connect_timeout(&server, Duration::from_millis(500)).is_ok()).unwrap_or(false)
}

/// Waits until `program` has the listening sockets or whatever else `ss` must show.
fn seen(engine: &Engine<'_>, what: &str, found: impl Fn(&serde_json::Value) -> bool) -> Result<()> {
    let look = || engine.sockets().ok()?.iter().any(&found).then_some(());
    until(HELPER, look).with_context(|| format!("`sidestep ss` does not show {what}"))
}

/// Python that the distribution brings: one of a user's tool manager may be a script that starts another program.
fn python() -> &'static str {
    "/usr/bin/python3"
}
