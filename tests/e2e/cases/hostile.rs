//! A program that writes nonsense over the memory that it shares with the engine.

use super::{LONG, OURS, PEER, Pair, at, case};
use crate::engine::{Setup, total};
use crate::harness::{Case, Options, Verdict};
use crate::load::{self, Load};
use crate::nginx::Nginx;
use crate::program::until;
use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

pub const CASES: &[Case] = &[case("hostile::random_bytes_in_shared_memory", &["nginx"], LONG, random_bytes)];

/// How long the engine may take to clear up after a dead program, on a busy machine.
const LEAVE: Duration = Duration::from_secs(10);

fn random_bytes(options: &Options) -> Result<Verdict> {
    let pair = Pair::with("hostile", 2, &[])?;
    let setup = Setup { queues: "2".into(), cores: vec![0, 1], ..Setup::default() };
    let mut engine = pair.engine(&setup)?;
    let (ours, theirs) = (at(OURS[0], 8080), at(PEER[0], 8081));
    let (_, mut served) = pair.nginx("served", engine.command(Nginx::program()), pair.b(), &[ours])?;
    let (_, _peer) = pair.nginx("peer", pair.b().command(Nginx::program()), pair.b(), &[theirs])?;
    let (seeds, seconds): (u32, f64) = if options.quick { (3, 1.5) } else { (6, 5.0) };
    let stop = AtomicBool::new(false);
    let mut stays = Vec::new();
    let load = Load { server: ours, path: "/", connections: 4, requests: usize::MAX / 2 };
    let (outcome, sample) = std::thread::scope(|scope| {
        let driver = scope.spawn(|| pair.b().inside(|| load::drive(&load, &stop)).and_then(|r| r));
        let outcome = (1..=seeds).try_for_each(|seed| -> Result<()> {
            let mut line = engine.command(std::env::current_exe()?);
            line.args(["hostile", &seed.to_string(), &format!("{seconds:.1}"), OURS[0], &theirs.to_string()]);
            let mut hostile = pair.lab.start(&format!("hostile{seed}"), &mut line)?;
            // Its own calls may do anything now, also never return: it spoiled its own memory.
            let ended = until(Duration::from_secs_f64(seconds + 3.0), || (!hostile.runs()).then_some(()));
            let said = hostile.stdout();
            ensure!(said.contains("truncating was refused"), "seed {seed}: {said} {}", hostile.stderr());
            ensure!(said.contains("hostile: writing"), "seed {seed} wrote nothing: {said} {}", hostile.stderr());
            if ended.is_none() {
                hostile.signal_tree(Signal::KILL);
            }
            hostile.kill();
            ensure!(engine.program.runs(), "seed {seed} ended the engine: {}", engine.program.stderr());
            let alone = || (engine.stats().ok()?["groups"].as_array()?.len() <= 1 + stays.len()).then_some(());
            // Told at the end: whether the others are served on is worth knowing too.
            if until(LEAVE, alone).is_none() {
                let kept = engine.sockets().unwrap_or_default().into_iter().filter(|s| s["program"] != "nginx");
                let kept = kept.map(|s| format!("{} {} on shard {}", s["protocol"], s["state"], s["shard"]));
                stays.push(format!("seed {seed}: {}", kept.collect::<Vec<_>>().join(", ")));
            }
            Ok(())
        });
        stop.store(true, Ordering::Relaxed);
        let sample = driver.join().unwrap_or_else(|_| bail!("the load panicked"));
        (outcome, sample)
    });
    outcome?;
    let sample = sample.context("the other program's clients saw an error")?;
    ensure!(served.runs(), "the other program ended");
    load::run(pair.b(), &Load { server: ours, path: "/", connections: 4, requests: 400 })?;
    let stats = engine.stats()?;
    let (have, all) = (total(&stats, "frames_accounted"), total(&stats, "frames_total"));
    ensure!(have == all, "frames: {have:?} of {all:?}");
    let caught = total(&stats, "hostile").unwrap_or(0);
    engine.stop()?;
    ensure!(stays.is_empty(), "sockets of dead programs stay: {}", stays.join("; "));
    Ok(Verdict::Figure(format!(
        "{seeds} seeds, {:.0} s; {caught} sockets taken away; {} requests to the other program meanwhile, p99.9 {:.1} ms",
        f64::from(seeds) * seconds,
        sample.latencies_ns.len(),
        sample.percentile(0.999) as f64 / 1e6
    )))
}
