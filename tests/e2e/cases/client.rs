//! Unmodified clients on Sidestep, unmodified servers on the kernel.

use super::server::{iperf3_listen, iperf3_to, redis_commands};
use super::{CURL, LONG, PEER, Pair, SHORT, at, case, python, serves};
use crate::engine::Setup;
use crate::files::{HUNDRED_MB, sha256, write_random};
use crate::harness::{Case, Options, Verdict};
use crate::nginx::{Nginx, page};
use crate::program::{HELPER, Program, TRANSFER, until};
use anyhow::{Context, Result, ensure};

pub const CASES: &[Case] = &[
    case("client::curl", &["nginx", "curl"], LONG, curl),
    case("client::redis_cli", &["redis-server", "redis-cli"], SHORT, redis_cli),
    case("client::nc", &["nc"], SHORT, nc),
    case("client::iperf3", &["iperf3"], LONG, iperf3),
    case("client::refused_and_unreachable", &["nc"], SHORT, refused_and_unreachable),
];

fn curl(options: &Options) -> Result<Verdict> {
    let pair = Pair::new("curl")?;
    let engine = pair.engine(&Setup::default())?;
    let servers = PEER.map(|address| at(address, 8080));
    let (nginx, _program) = pair.nginx("nginx", pair.b().command(Nginx::program()), pair.b(), &servers)?;
    let big = nginx.files().join("big");
    write_random(&big, if options.quick { HUNDRED_MB / 10 } else { HUNDRED_MB }, 10)?;
    for server in servers {
        let said = pair.must(engine.command("curl").args(CURL).arg(format!("http://{server}/")))?;
        ensure!(said == page(), "not the page: {said}");
        pair.both_ways(&|| engine.command("curl"), server, &nginx, &big).with_context(|| server.to_string())?;
    }
    Ok(Verdict::Passed)
}

fn redis_cli(_: &Options) -> Result<Verdict> {
    let pair = Pair::new("rediscli")?;
    let engine = pair.engine(&Setup::default())?;
    let mut line = pair.b().command("redis-server");
    line.args(["--bind", PEER[0], PEER[1], "--port", "6379", "--save", "", "--protected-mode", "no", "--dir"]);
    let mut server = pair.lab.start("redis", line.arg(pair.lab.dir()))?;
    for address in PEER {
        serves(&mut server, pair.b(), at(address, 6379))?;
        redis_commands(&pair, &|| engine.command("redis-cli"), address)?;
    }
    Ok(Verdict::Passed)
}

fn nc(_: &Options) -> Result<Verdict> {
    let pair = Pair::new("ncc")?;
    let engine = pair.engine(&Setup::default())?;
    let file = pair.lab.file("data");
    write_random(&file, 10_000_000, 11)?;
    for (number, address) in PEER.into_iter().enumerate() {
        let mut line = pair.b().command("nc");
        let mut server = pair.lab.start(&format!("nc{number}"), line.args(["-l", address, "9000"]))?;
        let listening = || {
            let said = pair.must(pair.b().command("ss").args(["-Hltn", "sport = :9000"])).ok()?;
            said.contains(":9000").then_some(())
        };
        until(HELPER, listening).context("nc -l on the kernel does not listen")?;
        let mut line = engine.command("/usr/bin/nc");
        line.args(["-N", address, "9000"]);
        let mut client =
            Program::start_with_input(pair.lab.dir(), &format!("nc-client{number}"), &mut line, Some(&file))?;
        client.wait(TRANSFER)?.ok("nc on Sidestep")?;
        server.wait(HELPER)?;
        let got = pair.lab.file(&format!("nc{number}.out"));
        ensure!(sha256(&got)? == sha256(&file)?, "{address} got something else than nc on Sidestep sent");
    }
    Ok(Verdict::Passed)
}

fn iperf3(options: &Options) -> Result<Verdict> {
    let pair = Pair::new("iperfc")?;
    let engine = pair.engine(&Setup::default())?;
    let amount = if options.quick { "100M" } else { "1G" };
    let mut figures = Vec::new();
    for address in PEER {
        let name = format!("iperf-{address}").replace(':', "");
        let _server = iperf3_listen(&pair, &name, pair.b().command("iperf3"), address)?;
        for args in [&["-n", amount][..], &["-n", amount, "-R"], &["-t", "1", "-P", "4"]] {
            let rate = iperf3_to(&pair.lab, engine.command("iperf3"), address, args)?;
            figures.push(format!("{rate:.1}"));
        }
    }
    Ok(Verdict::Figure(format!("Gbit/s v4 out, in, 4 out; v6 the same: {}", figures.join(", "))))
}

/// Errors arrive as the kernel would give them, and in time.
fn refused_and_unreachable(_: &Options) -> Result<Verdict> {
    let pair = Pair::new("refused")?;
    let engine = pair.engine(&Setup::default())?;
    let script = "import socket, sys, errno
s = socket.socket(socket.AF_INET6 if ':' in sys.argv[1] else socket.AF_INET)
s.settimeout(None if len(sys.argv) < 4 else float(sys.argv[3]))
try:
    s.connect((sys.argv[1], int(sys.argv[2])))
    print('connected')
except OSError as e:
    print(errno.errorcode.get(e.errno, type(e).__name__))";
    let dial = |args: &[&str]| pair.must(engine.command(python()).args(["-c", script]).args(args));
    for address in PEER {
        let said = dial(&[address, "4"])?;
        ensure!(said.trim() == "ECONNREFUSED", "a closed port at {address}: {said}");
    }
    // Nobody answers ARP or NDP for these.
    for address in ["10.77.0.99", "fd77::99"] {
        let said = dial(&[address, "80"])?;
        ensure!(said.trim() == "EHOSTUNREACH", "no such host {address}: {said}");
    }
    // No route at all.
    let said = dial(&["192.0.2.1", "80"])?;
    ensure!(said.trim() == "ENETUNREACH", "no route: {said}");
    Ok(Verdict::Passed)
}
