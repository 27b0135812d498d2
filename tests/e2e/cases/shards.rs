//! Two queues, two shards.

use super::{OURS, Pair, SHORT, at, case};
use crate::engine::{Setup, total};
use crate::harness::{Case, Options, Verdict};
use crate::load::{Connection, Load, run};
use crate::nginx::Nginx;
use anyhow::{Context, Result, ensure};
use rustix::thread::{CpuSet, sched_setaffinity};
use std::fs;

pub const CASES: &[Case] = &[
    case("shards::two_queues_carry_200_connections", &["nginx"], SHORT, two_queues),
    case("shards::a_flow_on_the_wrong_queue_works", &["nginx"], SHORT, wrong_queue),
];

fn two_shards() -> Setup {
    Setup { queues: "2".into(), cores: vec![0, 1], ..Setup::default() }
}

fn two_queues(_: &Options) -> Result<Verdict> {
    let pair = Pair::with("queues", 2, &[])?;
    let engine = pair.engine(&two_shards())?;
    let server = at(OURS[0], 8080);
    let (_nginx, _program) = pair.nginx("nginx", engine.command(Nginx::program()), pair.b(), &[server])?;
    let by_shard = pair.b().inside(|| -> Result<[usize; 2]> {
        let mut connections = (0..200).map(|_| Connection::open(server)).collect::<Result<Vec<_>>>()?;
        for connection in &mut connections {
            connection.get("/")?;
        }
        // While all are open: who has them?
        let sockets = engine.sockets()?;
        let of = |shard: u64| {
            let mine = |s: &&serde_json::Value| s["shard"] == shard && s["state"] == "ESTAB";
            sockets.iter().filter(mine).count()
        };
        let counts = [of(0), of(1)];
        for connection in &mut connections {
            connection.get("/")?;
        }
        Ok(counts)
    })??;
    ensure!(by_shard.iter().sum::<usize>() == 200, "`ss` shows {by_shard:?} connections");
    ensure!(by_shard.iter().all(|n| *n > 0), "one shard carries all: {by_shard:?}");
    run(pair.b(), &Load { server, path: "/", connections: 50, requests: 5000 })?;
    let stats = engine.stats()?;
    let shards = stats["shards"].as_array().context("shards in stats")?;
    let frames: Vec<u64> = shards.iter().map(|s| total(s, "rx_frames").unwrap_or(0)).collect();
    ensure!(frames.len() == 2 && frames.iter().all(|n| *n > 100), "frames by shard: {frames:?}");
    Ok(Verdict::Figure(format!("connections by shard {by_shard:?}, frames received {frames:?}")))
}

/// The peer sends from the queue of its processor (XPS), and its thread moves to the other one in mid-connection.
fn wrong_queue(_: &Options) -> Result<Verdict> {
    let pair = Pair::with("wrongqueue", 2, &[])?;
    let processors = std::thread::available_parallelism()?.get();
    if processors < 2 {
        return Ok(Verdict::Skipped("needs two processors: a flow is moved by moving its sender".into()));
    }
    for queue in 0..2 {
        // /sys shows the devices of the namespace only to who mounted it there: `ip netns exec` does.
        let line = format!("echo {:x} > /sys/class/net/k0/queues/tx-{queue}/xps_cpus", 1 << queue);
        let ended = pair.lab.run(pair.b().command("sh").args(["-c", &line]), crate::program::HELPER)?;
        if !ended.status.success() {
            return Ok(Verdict::Skipped(format!(
                "this kernel can't choose a transmit queue by processor: {}",
                ended.stderr.trim()
            )));
        }
    }
    let engine = pair.engine(&two_shards())?;
    let servers = OURS.map(|address| at(address, 8080));
    let (_nginx, _program) = pair.nginx("nginx", engine.command(Nginx::program()), pair.b(), &servers)?;
    let handed = || -> Result<u64> { total(&engine.stats()?, "handed_in").context("handed_in in stats") };
    let before = handed()?;
    pair.b().inside(|| -> Result<()> {
        for server in servers {
            pin(0)?;
            let mut connections = (0..10).map(|_| Connection::open(server)).collect::<Result<Vec<_>>>()?;
            for processor in [0, 1, 0, 1] {
                pin(processor)?;
                for connection in &mut connections {
                    for _ in 0..20 {
                        connection.get("/").with_context(|| format!("sent from processor {processor}"))?;
                    }
                }
            }
        }
        Ok(())
    })??;
    let after = handed()?;
    let reachable = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    ensure!(after > before, "no frame came to the wrong queue (kernel {})", reachable.trim());
    ensure!(total(&engine.stats()?, "handoff_dropped") == Some(0), "frames were lost on the way to the right shard");
    Ok(Verdict::Figure(format!("{} frames handed to the shard that owns the flow", after - before)))
}

fn pin(processor: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(processor);
    sched_setaffinity(None, &set).context("pinning the client")
}
