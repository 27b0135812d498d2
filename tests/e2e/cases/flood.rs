//! A SYN flood at full rate: a flooder in a namespace of its own, bridged to the link that honest clients use.
//!
//! ```text
//!   a: ss0 (Sidestep, nginx) <──> b: k0 ─ bridge ─ f1 <──> c: f0 (flooder)
//! ```
//!
//! Each round measures what established connections get without a flooder, while it floods an address that nobody has
//! behind the same device (the XDP program looks at each frame and leaves it to the kernel, which drops it), and while
//! it floods them. The first says what the flooder's own work costs on a machine that all share; the difference between
//! the other two is what the flood costs the stack. The flooder has the last core, and the engine the first.

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

/// An address of the same network that nobody has.
const NOBODY: &str = "10.77.0.99";

/// What established connections must keep of what they get while the flood goes past them, in the best round. The aim is
/// 0.8 in the middle one, and a quiet machine reaches it; a stack that serves the flood first keeps a twentieth.
const KEEP: f64 = 0.5;

fn syn_flood(options: &Options) -> Result<Verdict> {
    let mut lab = Lab::new("flood")?;
    let (a, b, c) = (lab.add_space('a')?, lab.add_space('b')?, lab.add_space('c')?);
    lab.veth(&Veth { here: (lab.space(a), "ss0", &[]), there: (lab.space(b), "k0", &[]), queues: 1 })?;
    lab.veth(&Veth { here: (lab.space(c), "f0", &[]), there: (lab.space(b), "f1", &[]), queues: 1 })?;
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
    let (mut quiet, mut past, mut flooded) = (Vec::new(), Vec::new(), Vec::new());
    let (mut kept, mut refused, mut offered) = (Vec::new(), Vec::new(), Vec::new());
    let (mut opened, mut slowest) = (0_u32, Duration::ZERO);
    for round in 0..rounds {
        quiet.push(throughput(&pair, server, length, || Ok(()))?);
        let flooder = flood(&pair, c, &format!("past{round}"), NOBODY)?;
        past.push(throughput(&pair, server, length, || Ok(()))?);
        drop(flooder);
        let turned_away = |engine: &Engine<'_>| -> Result<u64> {
            let stats = engine.stats()?;
            let all = ["drop_backlog", "syn_refused"].map(|name| total(&stats, name).unwrap_or(0));
            Ok(all.iter().sum())
        };
        let before = turned_away(&engine)?;
        let flooder = flood(&pair, c, &format!("flood{round}"), OURS[0])?;
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
        let after = turned_away(&engine)?;
        refused.push((after - before) as f64 / begin.elapsed().as_secs_f64());
        offered.push((sent(&flooder) - sent_before) as f64 / begin.elapsed().as_secs_f64());
        kept.push(flooded[round] / past[round]);
        ensure!(after > before, "the backlog never was full: the flood did not arrive; {}", flooder.stdout());
        ensure!(engine.program.runs(), "the engine ended: {}", engine.program.stderr());
    }
    settled(&engine)?;
    engine.stop()?;
    let figure = format!(
        "{:.0} SYNs/s sent, {:.0} beyond the backlog; requests/s {:.0} without a flooder, {:.0} while it floods another \
         address, {:.0} flooded: {:.0} % kept, {:.0} % of those without a flooder; {opened} new clients, slowest {:.0} ms",
        middle(&offered),
        middle(&refused),
        middle(&quiet),
        middle(&past),
        middle(&flooded),
        middle(&kept) * 100.0,
        middle(&flooded) / middle(&quiet) * 100.0,
        slowest.as_secs_f64() * 1e3
    );
    let best = kept.iter().copied().fold(0.0, f64::max);
    past.sort_by(f64::total_cmp);
    if best < KEEP && uneven(&past) {
        return Ok(Verdict::Skipped(format!("the machine is too busy to tell: past {past:.0?} requests/s, {figure}")));
    }
    ensure!(best >= KEEP, "{figure}; all: quiet {quiet:.0?}, past {past:.0?}, flooded {flooded:.0?}");
    Ok(Verdict::Figure(figure))
}

fn middle(numbers: &[f64]) -> f64 {
    let mut sorted = numbers.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

/// Starts a flood to `address`, behind the engine's device, on the last core.
fn flood(pair: &Pair, from: usize, name: &str, address: &str) -> Result<Program> {
    let cores = std::thread::available_parallelism()?.get();
    let mut command = pair.lab.space(from).command("taskset");
    command.args(["-c", &(cores - 1).to_string()]).arg(beside("sidestep-adversary")?);
    command.args(["flood", "f0", &mac(pair.a(), "ss0")?, address, "8080"]);
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
