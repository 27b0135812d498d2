//! Sidestep and the Linux kernel's TCP over links that are not perfect.

use super::server::{iperf3_listen, iperf3_to};
use super::{LONG, OURS, PEER, Pair, at, case};
use crate::engine::{Setup, beside, repository};
use crate::files::write_random;
use crate::harness::{Case, Options, Verdict, uneven};
use crate::lab::{Lab, Veth};
use crate::nginx::Nginx;
use crate::program::{HELPER, Program};
use anyhow::{Context, Result, ensure};
use std::process::Command;
use std::time::Duration;

pub const CASES: &[Case] = &[
    case("interop::the_kernel_over_a_rough_link", &["nginx", "curl"], Duration::from_secs(900), rough_link),
    case("interop::senders_with_one_percent_loss", &["iperf3", "clang"], LONG, senders),
];

/// What Sidestep's sender must reach of Linux's throughput under loss, by congestion control: the aim is 1 with each; a part
/// of what a quiet machine shows is asked of a busy one (1.6 to 2.5 times with CUBIC, 1.1 times with BBR).
const CONTROLS: [(&str, f64); 2] = [("cubic", 0.4), ("bbr", 0.3)];

/// What the middle box does, in parts of a million and microseconds.
const ROUGH: [&str; 6] = ["drop=10000", "duplicate=10000", "reorder=30000", "corrupt=2000", "delay=200", "jitter=100"];

/// Both roles, both directions, both families, by seed; what arrives is compared by hash.
fn rough_link(options: &Options) -> Result<Verdict> {
    let mut lab = Lab::new("rough")?;
    let (a, m, b) = (lab.add_space('a')?, lab.add_space('m')?, lab.add_space('b')?);
    lab.veth(&Veth { here: (lab.space(a), "ss0", &[]), there: (lab.space(m), "m0", &[]), queues: 1 })?;
    let there = (lab.space(b), "k0", &["10.77.0.1/24", "fd77::1/64"][..]);
    lab.veth(&Veth { here: (lab.space(m), "m1", &[]), there, queues: 1 })?;
    lab.space(b).finish_checksums("k0")?;
    let pair = Pair { lab, a, b };
    let engine = pair.engine(&Setup::default())?;
    let (ours, theirs) = (OURS.map(|o| at(o, 8080)), PEER.map(|p| at(p, 8081)));
    // The link is perfect while the servers start.
    let calm = middle(&pair, m, 0, &[])?;
    let (on_sidestep, _s) = pair.nginx("ours", engine.command(Nginx::program()), pair.b(), &ours)?;
    let (on_kernel, _k) = pair.nginx("theirs", pair.b().command(Nginx::program()), pair.b(), &theirs)?;
    drop(calm);
    let (seeds, bytes) = if options.quick { (2, 1 << 20) } else { (6, 4 << 20) };
    for nginx in [&on_sidestep, &on_kernel] {
        write_random(&nginx.files().join("big"), bytes, 21)?;
    }
    let mut said = Vec::new();
    for seed in 1..=seeds {
        let mut middle = middle(&pair, m, seed, &ROUGH)?;
        for family in 0..2 {
            let context = |role: &str| format!("seed {seed}, {role}, {}", ["IPv4", "IPv6"][family]);
            let big = on_sidestep.files().join("big");
            pair.both_ways(&|| pair.b().command("curl"), ours[family], &on_sidestep, &big)
                .with_context(|| context("Sidestep serves"))?;
            let big = on_kernel.files().join("big");
            pair.both_ways(&|| engine.command("curl"), theirs[family], &on_kernel, &big)
                .with_context(|| context("the kernel serves"))?;
        }
        // It says so twice a second; the transfers may have taken less.
        let counts = middle
            .wait_until("having done all of it", HELPER, |p| {
                let last = p.stdout().lines().last()?.to_owned();
                let did = |what: &str| last.split(' ').skip_while(|w| *w != what).nth(1)?.parse::<u64>().ok();
                ["drop", "duplicate", "reorder", "corrupt"].iter().all(|what| did(what) > Some(0)).then_some(last)
            })
            .with_context(|| format!("seed {seed}"))?;
        said.push(format!("seed {seed}: {counts}"));
    }
    engine_is_well(engine)?;
    Ok(Verdict::Figure(format!("{} MB each way, v4 and v6, both roles; {}", bytes >> 20, said.join("; "))))
}

fn engine_is_well(mut engine: crate::engine::Engine<'_>) -> Result<()> {
    ensure!(engine.program.runs(), "the engine ended: {}", engine.program.stderr());
    engine.stop().map(drop)
}

fn middle(pair: &Pair, space: usize, seed: u64, manners: &[&str]) -> Result<Program> {
    let mut command = pair.lab.space(space).command(beside("sidestep-adversary")?);
    command.args(["middle", "m0", "m1", &seed.to_string()]).args(manners);
    let mut program = pair.lab.start(&format!("middle{seed}"), &mut command)?;
    program.wait_until("forwarding", HELPER, |p| p.stdout().contains("ready").then_some(()))?;
    Ok(program)
}

/// Sidestep's sender and Linux's by turns, to the same receiver, through the same XDP program that drops one data segment
/// in a hundred at random. With the same congestion control on both sides: the kernel's default differs from machine to
/// machine, and under loss it decides.
fn senders(options: &Options) -> Result<Verdict> {
    let pair = Pair::new("loss")?;
    let here = (pair.a(), "l0", &["10.78.0.2/24"][..]);
    pair.lab.veth(&Veth { here, there: (pair.b(), "k1", &["10.78.0.1/24"]), queues: 1 })?;
    pair.b().finish_checksums("k1")?;
    // As a wire would have it; then bulk can leave in large packets (docs/CONFIG.md, large_sends).
    pair.a().finish_checksums("ss0")?;
    let object = pair.lab.file("drop.o");
    let source = repository().join("tests/e2e/programs/drop.bpf.c");
    let include = format!("-I/usr/include/{}-linux-gnu", std::env::consts::ARCH);
    let line = ["-O2", "-g", "-Wall", "-Werror", "-target", "bpf", include.as_str(), "-c"];
    pair.must(Command::new("clang").args(line).arg(source).arg("-o").arg(&object))?;
    let object = object.to_string_lossy().into_owned();
    for device in ["k0", "k1"] {
        pair.b().ip(&["link", "set", "dev", device, "xdp", "obj", &object, "sec", "xdp"])?;
    }
    let engine = pair.engine(&Setup::default())?;
    let _ours = iperf3_listen(&pair, "iperf-k0", pair.b().command("iperf3"), PEER[0])?;
    let _theirs = iperf3_listen(&pair, "iperf-k1", pair.b().command("iperf3"), "10.78.0.1")?;
    let (rounds, seconds) = if options.quick { (3, "2") } else { (5, "4") };
    let known = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_available_congestion_control").unwrap_or_default();
    let mut figures = Vec::new();
    let mut busy = None;
    for (control, least) in CONTROLS {
        if !known.split_whitespace().any(|name| name == control) {
            figures.push(format!("{control}: this kernel hasn't got it"));
            continue;
        }
        let args = ["-t", seconds, "-C", control];
        let (mut sidestep, mut linux) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            sidestep.push(iperf3_to(&pair.lab, engine.command("iperf3"), PEER[0], &args)?);
            linux.push(iperf3_to(&pair.lab, pair.a().command("iperf3"), "10.78.0.1", &args)?);
        }
        for rates in [&mut sidestep, &mut linux] {
            rates.sort_by(f64::total_cmp);
        }
        let (ours, theirs) = (sidestep[rounds / 2], linux[rounds / 2]);
        let ratio = ours / theirs;
        figures.push(format!("{control}: Sidestep {ours:.2}, Linux {theirs:.2}, {ratio:.2} times"));
        if ratio < least {
            ensure!(uneven(&linux), "{}; all: {sidestep:.2?} and {linux:.2?}", figures.join("; "));
            busy = Some(format!("the machine is too busy to tell: Linux alone {linux:.2?} Gbit/s"));
        }
    }
    let figure = format!("Gbit/s with 1 % of data segments dropped, {}", figures.join("; "));
    engine_is_well(engine)?;
    if let Some(why) = busy {
        return Ok(Verdict::Skipped(format!("{why}; {figure}")));
    }
    Ok(Verdict::Figure(figure))
}
