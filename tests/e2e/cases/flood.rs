//! A SYN flood at full rate: a flooder in a namespace of its own, bridged to the link that honest clients use.
//!
//! ```text
//!   a: ss0 (Sidestep, nginx) <──> b: k0 ─ bridge ─ f1 <──> c: f0 (flooder)
//!                                 b: d1                <──> c: d0 (where the flooder sends in quiet times)
//! ```

use super::{LONG, OURS, Pair, at, case};
use crate::engine::{Engine, Setup, beside, total};
use crate::harness::{Case, Options, Verdict, uneven};
use crate::lab::{Lab, Space, Veth};
use crate::load::{Connection, Load, drive};
use crate::nginx::Nginx;
use crate::program::{HELPER, Program};
use anyhow::{Context, Result, bail, ensure};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

pub const CASES: &[Case] = &[case("flood::a_syn_flood_at_full_rate", &["nginx"], LONG, syn_flood)];

/// An Ethernet address that no device has: what is sent there costs the receiver next to nothing.
const NOBODY: &str = "02:00:00:00:00:99";

/// What established connections must keep of their throughput. The aim is 0.8, and a quiet machine reaches it; one that
/// others use as well gives half of it, and a stack that serves the flood first a twentieth.
const KEEP: f64 = 0.4;

fn syn_flood(options: &Options) -> Result<Verdict> {
    let mut lab = Lab::new("flood")?;
    let (a, b, c) = (lab.add_space('a')?, lab.add_space('b')?, lab.add_space('c')?);
    lab.veth(&Veth { here: (lab.space(a), "ss0", &[]), there: (lab.space(b), "k0", &[]), queues: 1 })?;
    lab.veth(&Veth { here: (lab.space(c), "f0", &[]), there: (lab.space(b), "f1", &[]), queues: 1 })?;
    let there = (lab.space(b), "d1", &["10.79.0.1/24"][..]);
    lab.veth(&Veth { here: (lab.space(c), "d0", &[]), there, queues: 1 })?;
    let space = lab.space(b);
    space.ip(&["link", "add", "br0", "type", "bridge", "mcast_snooping", "0"])?;
    for device in ["k0", "f1"] {
        space.ip(&["link", "set", device, "master", "br0"])?;
        space.finish_checksums(device)?;
    }
    space.address("br0", "10.77.0.1/24")?;
    space.ip(&["link", "set", "br0", "up"])?;
    space.finish_checksums("br0")?;
    let pair = Pair { lab, a, b };
    // Answers to spoofed addresses go somewhere, as on the Internet.
    let setup = Setup { gateway: Some("10.77.0.1".into()), ..Setup::default() };
    let mut engine = pair.engine(&setup)?;
    let server = at(OURS[0], 8080);
    let (_nginx, _program) = pair.nginx("nginx", engine.command(Nginx::program()), pair.b(), &[server])?;

    let (rounds, seconds) = if options.quick { (3, 2.0) } else { (5, 4.0) };
    let length = Duration::from_secs_f64(seconds);
    let (mut quiet, mut flooded, mut rates, mut offered) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let (mut opened, mut slowest) = (0_u32, Duration::ZERO);
    for round in 0..rounds {
        // The flooder takes the same share of the machine in quiet times; only where it sends is different.
        let elsewhere = flood(&pair, c, &format!("quiet{round}"), "d0", NOBODY, "10.79.0.1")?;
        quiet.push(throughput(&pair, server, length, || Ok(()))?);
        drop(elsewhere);
        let before = total(&engine.stats()?, "drop_backlog").unwrap_or(0);
        let flooder = flood(&pair, c, &format!("flood{round}"), "f0", &mac(pair.a(), "ss0")?, OURS[0])?;
        let (begin, sent_before) = (Instant::now(), sent(&flooder));
        flooded.push(throughput(&pair, server, length, || {
            // New clients, one after another, while the flood goes on.
            for _ in 0..5 {
                let begin = Instant::now();
                Connection::open(server)?.get("/").context("a new client in the flood")?;
                slowest = slowest.max(begin.elapsed());
                opened += 1;
            }
            Ok(())
        })?);
        let after = total(&engine.stats()?, "drop_backlog").unwrap_or(0);
        rates.push((after - before) as f64 / begin.elapsed().as_secs_f64());
        offered.push((sent(&flooder) - sent_before) as f64 / begin.elapsed().as_secs_f64());
        ensure!(after > before, "the backlog never was full: the flood did not arrive; {}", flooder.stdout());
        ensure!(engine.program.runs(), "the engine ended: {}", engine.program.stderr());
    }
    for numbers in [&mut quiet, &mut flooded, &mut rates, &mut offered] {
        numbers.sort_by(f64::total_cmp);
    }
    let middle = rounds / 2;
    let kept = flooded[middle] / quiet[middle];
    settled(&engine)?;
    engine.stop()?;
    let figure = format!(
        "{:.0} SYNs/s sent, {:.0} beyond the backlog; requests/s {:.0} quiet, {:.0} flooded: {:.0} % kept; {opened} new clients, \
         slowest {:.0} ms",
        offered[middle],
        rates[middle],
        quiet[middle],
        flooded[middle],
        kept * 100.0,
        slowest.as_secs_f64() * 1e3
    );
    if kept < KEEP && uneven(&quiet) {
        return Ok(Verdict::Skipped(format!(
            "the machine is too busy to tell: quiet {quiet:.0?} requests/s, {figure}"
        )));
    }
    ensure!(kept >= KEEP, "{figure}; all: quiet {quiet:.0?}, flooded {flooded:.0?}");
    Ok(Verdict::Figure(figure))
}

/// Starts a flood out of `device` to `address` at the neighbour `mac`.
fn flood(pair: &Pair, from: usize, name: &str, device: &str, mac: &str, address: &str) -> Result<Program> {
    let mut command = pair.lab.space(from).command(beside("sidestep-adversary")?);
    command.args(["flood", device, mac, address, "8080"]);
    let mut program = pair.lab.start(name, &mut command)?;
    program.wait_until("flooding", HELPER, |p| p.stdout().contains("sent").then_some(()))?;
    Ok(program)
}

/// SYNs that a flooder has sent so far.
fn sent(flooder: &Program) -> u64 {
    let said = flooder.stdout();
    let last = said.lines().filter_map(|line| line.split(' ').nth(1)?.parse().ok()).next_back();
    last.unwrap_or(0)
}

fn mac(space: &Space, device: &str) -> Result<String> {
    let shown = space.ip(&["-o", "link", "show", "dev", device])?;
    let mac = shown.split_whitespace().skip_while(|w| *w != "link/ether").nth(1);
    mac.map(str::to_owned).context("its Ethernet address")
}

/// Requests a second of established connections for a while, and what `meanwhile` does in it.
fn throughput(
    pair: &Pair,
    server: std::net::SocketAddr,
    length: Duration,
    meanwhile: impl FnOnce() -> Result<()> + Send,
) -> Result<f64> {
    let load = Load { server, path: "/", connections: 4, requests: usize::MAX / 2 };
    let stop = AtomicBool::new(false);
    pair.b().inside(|| {
        std::thread::scope(|scope| {
            let driver = scope.spawn(|| drive(&load, &stop));
            let begin = Instant::now();
            let done = meanwhile();
            std::thread::sleep(length.saturating_sub(begin.elapsed()));
            stop.store(true, Ordering::Relaxed);
            let sample = driver.join().unwrap_or_else(|_| bail!("the load panicked"))?;
            done.map(|()| sample.rate())
        })
    })?
}

/// The flood leaves nothing but the backlog's records, and those only for a while.
fn settled(engine: &Engine<'_>) -> Result<()> {
    let waiting = engine.sockets()?.iter().filter(|s| s["state"] == "SYN-RECV").count();
    ensure!(waiting <= 4096, "{waiting} half-open connections");
    Ok(())
}
