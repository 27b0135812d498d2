//! `cargo xtask demo`: an unmodified nginx on Sidestep, what it serves checked byte by byte, its latencies beside those
//! of the same nginx on the kernel's stack.
//!
//! ```text
//!   server: nginx on Sidestep             client: the kernel's stack
//!   ss0 10.77.0.2, fd77::2      <veth>    k0 10.77.0.1, fd77::1       ping, curl, the load
//!   server: nginx on the kernel           (the same namespace)
//!   k2  10.78.0.2, fd78::2      <veth>    k1 10.78.0.1, fd78::1       the load
//! ```

use crate::rights::{Rights, run_through};
use crate::{Options, build, install, picture};
use anyhow::{Context, Result, bail, ensure};
use sidestep_e2e::cleanup;
use sidestep_e2e::engine::{self, Setup};
use sidestep_e2e::files::{HUNDRED_MB, sha256, write_random};
use sidestep_e2e::lab::{Lab, Space, Veth};
use sidestep_e2e::load::{self, Load, Sample};
use sidestep_e2e::nginx::Nginx;
use sidestep_e2e::program::{HELPER, Program, TRANSFER, tail};
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

const PORT: u16 = 8080;
/// Rounds of the comparison, taken in turn: what the machine does meanwhile falls on both sides.
const ROUNDS: usize = 5;
/// Connections of the load. One is where a stack's own latency shows; more measure the two cores that all share.
const CONNECTIONS: usize = 4;

/// Runs the demo with what rights there are.
///
/// # Errors
/// The first step that did not do what it should.
pub fn main(options: &mut Options<'_>) -> Result<ExitCode> {
    let built = options.flag("--built");
    let tap = options.flag("--tap");
    let requests = match options.value("--requests")? {
        Some(text) => text.parse().ok().filter(|n| *n > 0).context("--requests needs a number above 0")?,
        None => 10_000_usize,
    };
    options.end()?;
    if built {
        show(tap, requests)?;
        return Ok(ExitCode::SUCCESS);
    }
    let rights = Rights::here();
    println!("== 1. What is installed");
    install::for_demo(rights)?;
    println!("== 2. Build");
    build::release()?;
    let number = requests.to_string();
    let mut arguments = vec!["demo", "--built", "--requests", &number];
    if !tap && rights != Rights::User {
        if rights == Rights::Root {
            show(false, requests)?;
            return Ok(ExitCode::SUCCESS);
        }
        println!("   the rest needs root: sudo");
        return through(&mut rights.myself(&arguments)?);
    }
    arguments.push("--tap");
    println!("   {}", if tap { "--tap: a user namespace, as without any rights" } else { "neither root nor sudo" });
    println!(
        "   What changes without rights: frames come from a TAP device instead of AF_XDP (every frame is a system"
    );
    println!(
        "   call, so latencies say nothing about AF_XDP), and the client is the kernel's stack at the other end of"
    );
    println!("   that device. The stack, the shared memory and the unmodified nginx are the same.");
    // Debian gives everybody this device; some machines do not, and then the failure would come late and say little.
    let tun = fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun");
    tun.context(
        "/dev/net/tun can't be opened: TAP needs it (root: `chmod 666 /dev/net/tun`, which is Debian's default)",
    )?;
    let me = std::env::current_exe()?;
    // A tmpfs on /run: `ip netns` keeps names there, and the real one belongs to root.
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--net", "--mount", "sh", "-c"]);
    command.arg("mount -t tmpfs tmpfs /run && exec \"$0\" \"$@\"").arg(me).args(&arguments);
    through(&mut command)
}

fn through(command: &mut Command) -> Result<ExitCode> {
    let status = run_through(command)?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Where the two servers listen.
struct Servers {
    ours: SocketAddr,
    ours_v6: SocketAddr,
    kernel: SocketAddr,
}

fn show(tap: bool, requests: usize) -> Result<()> {
    let servers = Servers {
        ours: SocketAddr::new("10.77.0.2".parse()?, PORT),
        ours_v6: SocketAddr::new("fd77::2".parse()?, PORT),
        kernel: SocketAddr::new("10.78.0.2".parse()?, PORT),
    };
    let sidestep = engine::binary()?;

    println!("== 3. Laboratory");
    let mut lab = Lab::new("demo")?;
    let (a, b, c) = (lab.add_space('a')?, lab.add_space('b')?, lab.add_space('c')?);
    // Over TAP the kernel's end of the device is in the engine's own namespace, and so must the client be.
    let (server, client, kernel_server) = (lab.space(a), lab.space(if tap { a } else { b }), lab.space(c));
    println!("   namespaces {} (Sidestep), {} (client), {}", server.name(), client.name(), kernel_server.name());
    if tap {
        server.ip(&["tuntap", "add", "dev", "ss0", "mode", "tap"])?;
        server.address("ss0", "10.77.0.1/24")?;
        server.address("ss0", "fd77::1/64")?;
        server.ip(&["link", "set", "ss0", "up"])?;
        println!("   ss0: TAP, the engine at 10.77.0.2, fd77::2, the kernel at 10.77.0.1, fd77::1");
    } else {
        let there = (client, "k0", &["10.77.0.1/24", "fd77::1/64"][..]);
        lab.veth(&Veth { here: (server, "ss0", &[]), there, queues: 1 })?;
        client.finish_checksums("k0")?;
        println!("   ss0 (10.77.0.2, fd77::2, Sidestep's) <veth> k0 (10.77.0.1, fd77::1); on k0: ethtool -K k0 tx off");
    }
    let there = (client, "k1", &["10.78.0.1/24", "fd78::1/64"][..]);
    let here = (kernel_server, "k2", &["10.78.0.2/24", "fd78::2/64"][..]);
    lab.veth(&Veth { here, there, queues: 1 })?;
    println!("   k2  (10.78.0.2, the kernel's)             <veth> k1 (10.78.0.1): the comparison, kernel defaults");

    println!("== 4. nginx, unmodified, on Sidestep and on the kernel: 2 workers, sendfile, the same files");
    let ours = Nginx::lay_out(lab.dir(), "nginx-sidestep", &[servers.ours, servers.ours_v6], 2)?;
    let theirs = Nginx::lay_out(lab.dir(), "nginx-kernel", &[servers.kernel], 2)?;
    let big = ours.files().join("big");
    write_random(&big, HUNDRED_MB, 1)?;
    let setup = Setup { backend: if tap { "tap" } else { "af_xdp" }.into(), ..Setup::default() };
    let (config, _) = setup.write(&lab, "engine")?;
    println!("   sidestep run -c {} -- nginx {}", config.display(), ours.arguments().join(" "));
    let mut command = server.command(&sidestep);
    command.arg("run").arg("-c").arg(&config).arg("--").arg(Nginx::program()).args(ours.arguments());
    let mut on_sidestep = lab.start("sidestep", &mut command)?;
    answers(&mut on_sidestep, client, servers.ours).with_context(|| ours.error_log())?;
    let mut command = kernel_server.command(Nginx::program());
    let mut on_kernel = lab.start("nginx-kernel", command.args(theirs.arguments()))?;
    answers(&mut on_kernel, client, servers.kernel)?;
    println!("   both answer");

    println!("== 5. From the client, with the kernel's stack");
    let checked = check(&lab, client, &servers, &ours, &big);
    checked.with_context(|| tail(&format!("{}{}", on_sidestep.stderr(), ours.error_log()), 8))?;

    println!("== 6. {requests} requests on each side: {CONNECTIONS} keep-alive connections, {ROUNDS} rounds in turn");
    let rounds = compare(client, &servers, requests)
        .with_context(|| tail(&format!("{}{}", on_sidestep.stderr(), ours.error_log()), 8))?;
    let table = picture::table(&rounds, tap);
    print!("{table}");
    let folder = engine::target_dir().join("demo");
    match picture::write(&folder, &rounds, tap, &table) {
        Ok(path) => println!("   picture: {}", path.display()),
        Err(error) => println!("   no picture: {error:#}"),
    }

    println!("== 7. Stop");
    on_sidestep.signal(rustix::process::Signal::TERM);
    let ended = on_sidestep.wait(HELPER)?;
    println!("   SIGTERM to sidestep: {}", ended.status);
    drop(on_kernel);
    if !tap {
        ensure!(!engine::has_xdp(server, "ss0")?, "an XDP program is still attached to ss0");
        println!("   no XDP program is attached to ss0");
    }
    drop(lab);
    let left = sidestep_e2e::lab::traces_of(std::process::id());
    ensure!(left.is_empty(), "left behind: {}", left.join(" "));
    println!("   namespaces, programs and temporary files are gone");
    Ok(())
}

/// Waits until the server behind `program` takes connections.
fn answers(program: &mut Program, client: &Space, server: SocketAddr) -> Result<()> {
    program.wait_until("answering", Duration::from_secs(60), |p| {
        let dial = || std::net::TcpStream::connect_timeout(&server, Duration::from_millis(200)).is_ok();
        let _ = p;
        client.inside(dial).unwrap_or(false).then_some(())
    })
}

/// Ping, a page, 100 MB down, 100 MB up.
fn check(lab: &Lab, client: &Space, servers: &Servers, ours: &Nginx, big: &Path) -> Result<()> {
    for address in ["10.77.0.2", "fd77::2"] {
        let said = lab.must(client.command("ping").args(["-n", "-c", "3", "-i", "0.2", "-W", "2", address]), HELPER)?;
        let last = said.lines().filter(|l| l.contains("packets") || l.contains("rtt")).collect::<Vec<_>>();
        println!("   ping {address}: {}", last.join("; "));
        ensure!(said.contains(" 3 received"), "ping {address}: {said}");
    }
    for server in [servers.ours, servers.ours_v6] {
        let said = lab.must(curl(client).arg(format!("http://{server}/")), HELPER)?;
        ensure!(said == sidestep_e2e::nginx::page(), "the page from {server} is not the page: {said}");
        println!("   curl http://{server}/: {} bytes, the page", said.len());
    }
    let sum = sha256(big)?;
    let copy = lab.file("copy");
    let line = format!("http://{}/big", servers.ours);
    let speed = lab.must(curl(client).args(["-w", "%{speed_download}", "-o"]).arg(&copy).arg(&line), TRANSFER)?;
    same("download of 100 MB", &speed, &sum, &copy)?;
    let line = format!("http://{}/upload", servers.ours);
    let speed =
        lab.must(curl(client).args(["-w", "%{speed_upload}", "-o", "/dev/null", "-T"]).arg(big).arg(&line), TRANSFER)?;
    same("upload of 100 MB", &speed, &sum, &ours.files().join("upload"))?;
    fs::remove_file(copy)?;
    Ok(())
}

fn same(what: &str, speed: &str, sum: &str, copy: &Path) -> Result<()> {
    let got = sha256(copy)?;
    if got != sum {
        bail!("{what}: SHA-256 {got}, and it should be {sum}");
    }
    let megabytes = speed.trim().parse::<f64>().unwrap_or(0.0) / 1e6;
    println!("   {what}: SHA-256 {}… matches, {megabytes:.0} MB/s", &sum[..16]);
    Ok(())
}

fn curl(client: &Space) -> Command {
    let mut command = client.command("curl");
    command.args(["-sS", "--fail", "--noproxy", "*", "--max-time", "140"]);
    command
}

/// The rounds of both sides.
pub struct Rounds {
    pub sidestep: Vec<Sample>,
    pub kernel: Vec<Sample>,
}

fn compare(client: &Space, servers: &Servers, requests: usize) -> Result<Rounds> {
    let mut rounds = Rounds { sidestep: Vec::new(), kernel: Vec::new() };
    let one = |server, requests| load::run(client, &Load { server, path: "/", connections: CONNECTIONS, requests });
    for server in [servers.ours, servers.kernel] {
        one(server, 200)?; // Neighbours resolved, files opened, code paged in: not what is compared.
    }
    let part = requests.div_ceil(ROUNDS);
    for round in 1..=ROUNDS {
        let sidestep = one(servers.ours, part).context("on Sidestep")?;
        let kernel = one(servers.kernel, part).context("on the kernel")?;
        let micro = |s: &Sample| s.percentile(0.5) as f64 / 1e3;
        println!("   round {round}: p50 sidestep {:.1} us, kernel {:.1} us", micro(&sidestep), micro(&kernel));
        rounds.sidestep.push(sidestep);
        rounds.kernel.push(kernel);
        if cleanup::ending() {
            cleanup::wait_for_the_end();
        }
    }
    Ok(rounds)
}
