//! `sidestep bench`: the tools work; nothing is concluded from their figures.

use super::{LONG, OURS, PEER, Pair, SHORT, case};
use crate::engine::{Engine, Setup, binary};
use crate::harness::{Case, Options, Verdict};
use crate::lab::{Lab, Space};
use crate::program::{HELPER, TRANSFER};
use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

pub const CASES: &[Case] = &[
    case("bench::load_on_both_stacks", &[], LONG, load_on_both_stacks),
    case("bench::raw", &[], SHORT, raw),
    case("bench::compare", &["ethtool", "nginx", "wrk"], LONG, compare),
    case("bench::compare_on_given_devices", &["ethtool"], LONG, compare_on_given_devices),
    case("bench::latency", &[], SHORT, latency),
    case("bench::interrupted", &["ethtool"], SHORT, interrupted),
];

/// Short rounds: what is looked at is that there are answers, and what is said of them.
const BRIEF: [&str; 7] = ["--time", "0.5", "--warmup", "0.1", "--rounds", "2", "--json"];

fn load_on_both_stacks(_: &Options) -> Result<Verdict> {
    let pair = Pair::new("bench")?;
    let engine = pair.engine(&Setup::default())?;
    let mut figures = Vec::new();
    // Servers on Sidestep under load from the kernel, and the other way round.
    for (number, ours_serves) in [true, false].into_iter().enumerate() {
        let server = if ours_serves { OURS[0] } else { PEER[0] };
        let on = |ours: bool, what: &str| bench(&pair, &engine, ours, what);
        let mut serve = on(ours_serves, "serve")?;
        let mut server_program = pair.lab.start(&format!("serve{number}"), serve.arg("--listen").arg(server))?;
        server_program.wait_until("serving", HELPER, |p| p.stdout().contains("serving").then_some(()))?;
        let (hgrm, hlog) = (pair.lab.file("rr.hgrm"), pair.lab.file("rr.hlog"));
        let files = [Path::new("--hgrm"), &hgrm, Path::new("--hlog"), &hlog].map(|p| p.to_string_lossy().into_owned());
        let files: Vec<&str> = files.iter().map(String::as_str).collect();
        let loads: [(&str, &[&str]); 8] = [
            ("rr", &["--connections", "8", "--depth", "4"]),
            ("rr", &["--connections", "4", "--rate", "2000"]),
            ("rr", &["--size", "32", "--reply", "5000"]),
            ("stream", &[]),
            ("stream", &["--reverse", "--connections", "2"]),
            ("crr", &["--connections", "4", "--reply", "100"]),
            ("udp", &["--connections", "2"]),
            ("idle", &["--connections", "100"]),
        ];
        for (what, more) in loads {
            let mut command = on(!ours_serves, what)?;
            command.arg(server).args(BRIEF).args(more);
            if what == "rr" {
                command.args(&files);
            }
            let name = format!("{what} {more:?} to {server}");
            let said = pair.lab.must(&mut command, TRANSFER).with_context(|| name.clone())?;
            let m: Value = serde_json::from_str(&said).with_context(|| format!("{name}: no JSON: {said}"))?;
            ensure!(m["errors"] == 0, "{name}: errors: {m}");
            ensure!(m["rounds"] == 2 && m["cpu"].as_array().is_some_and(|c| !c.is_empty()), "{name}: {m}");
            match what {
                "idle" => {}
                "stream" => ensure!(m["gbit_per_s"].as_f64() > Some(0.0), "{name}: nothing moved: {m}"),
                _ => ensure!(m["rate_per_s"].as_f64() > Some(0.0) && m["p99_us"].as_f64() > Some(0.0), "{name}: {m}"),
            }
            if more.is_empty() || what == "rr" {
                figures.push(format!("{what} {:.0}/s", m["rate_per_s"].as_f64().unwrap_or(0.0)));
            }
        }
        ensure!(fs::read_to_string(&hgrm)?.contains("#[Mean"), "no percentiles");
        ensure!(fs::read_to_string(&hlog)?.contains("HISTFAAA"), "no interval log");
        server_program.signal(Signal::TERM);
        server_program.wait(HELPER)?.ok("bench serve after SIGTERM")?;
    }
    Ok(Verdict::Figure(figures.join(", ")))
}

/// `sidestep bench WHAT` on the engine, or on the kernel at the other end.
fn bench(pair: &Pair, engine: &Engine<'_>, ours: bool, what: &str) -> Result<Command> {
    let mut command = if ours { pair.a() } else { pair.b() }.command(binary()?);
    command.args(["bench", what, "--stack"]);
    if ours {
        command.arg("sidestep").arg("--control").arg(engine.control());
    } else {
        command.arg("kernel");
    }
    Ok(command)
}

/// Requests are followed through all stages, and found again by process, socket and shard.
fn latency(_: &Options) -> Result<Verdict> {
    let pair = Pair::new("latency")?;
    let engine = pair.engine(&Setup::default())?;
    let mut serve = bench(&pair, &engine, true, "serve")?;
    let mut server = pair.lab.start("serve", serve.arg("--listen").arg(OURS[0]))?;
    server.wait_until("serving", HELPER, |p| p.stdout().contains("serving").then_some(()))?;
    let load = || {
        let mut command = bench(&pair, &engine, false, "rr")?;
        pair.lab.must(command.arg(OURS[0]).args(BRIEF).args(["--connections", "4"]), TRANSFER)
    };
    let ask = |more: &[&str]| -> Result<String> {
        let mut command = pair.a().command(binary()?);
        pair.must(command.arg("latency").arg("--control").arg(engine.control()).args(more))
    };
    let followed = |more: &[&str]| -> Result<Value> {
        let said = ask(&[&["--json"], more].concat())?;
        serde_json::from_str(&said).with_context(|| format!("no JSON: {said}"))
    };
    let mut all = Value::Null;
    // A busy machine answers few requests in a round, and one in 64 is followed.
    for _ in 0..20 {
        load()?;
        all = followed(&[])?;
        if all["followed"].as_u64() >= Some(20) {
            break;
        }
    }
    let stages = all["stages"].as_array().context("no stages")?;
    for name in ["stack in", "publish", "wake", "read", "program", "command", "build", "queue", "kick", "request"] {
        let stage = stages.iter().find(|s| s["stage"] == name).with_context(|| format!("no stage {name}"))?;
        ensure!(stage["count"].as_u64() > Some(0), "nothing was seen of stage {name}: {all}");
    }
    ensure!(all["garbled"] == 0, "stamps that can't be: {all}");
    let pid = all["slowest"][0]["request"]["pid"].as_u64().context("the slowest request has no process")?;
    for (more, some) in [
        (["--pid", &pid.to_string()], true),
        (["--pid", "1"], false),
        (["--socket", ":7700"], true),
        (["--socket", "192.0.2.1"], false),
        (["--shard", "0"], true),
    ] {
        let found = followed(&more)?["followed"].as_u64() > Some(0);
        ensure!(found == some, "{more:?} finds {}", if found { "requests" } else { "nothing" });
    }
    let (html, folder) = (pair.lab.file("latency.html"), pair.lab.file("stages"));
    let text = ask(&["--html", &html.to_string_lossy(), "--hgrm", &folder.to_string_lossy()])?;
    ensure!(text.contains("published  woke") && text.contains("The slowest"), "{text}");
    ensure!(fs::read_to_string(html)?.contains("<svg"), "no picture");
    ensure!(fs::read_to_string(folder.join("wake.hgrm"))?.contains("#[Mean"), "no percentiles");
    let request = stages.iter().find(|s| s["stage"] == "request").and_then(|s| s["p50_us"].as_f64()).unwrap_or(0.0);
    Ok(Verdict::Figure(format!("{} requests followed, p50 {request:.1} us from ring to kick", all["followed"])))
}

fn raw(_: &Options) -> Result<Verdict> {
    let pair = Pair::new("benchraw")?;
    let on = |space: &Space, what: &str, device: &str| -> Result<Command> {
        let mut command = space.command(binary()?);
        command.args(["bench", "raw", what, "--interface", device, "--quiet", "--block"]);
        Ok(command)
    };
    let mut reflector = pair.lab.start("reflect", on(pair.a(), "reflect", "ss0")?.arg("--json"))?;
    let ping = |more: &[&str]| -> Result<Value> {
        let said = pair.lab.must(on(pair.b(), "ping", "k0")?.args(BRIEF).args(more), TRANSFER)?;
        serde_json::from_str(&said).with_context(|| format!("no JSON: {said}"))
    };
    let mut last = Value::Null;
    // The reflector may still be starting.
    for _ in 0..20 {
        last = ping(&["--depth", "8"])?;
        if last["rate_per_s"].as_f64() > Some(0.0) {
            break;
        }
    }
    ensure!(last["p50_us"].as_f64() > Some(0.0), "no frame came back: {last}");
    let jumbo = ping(&["--size", "1514"])?;
    ensure!(jumbo["p50_us"].as_f64() > Some(0.0), "no large frame came back: {jumbo}");
    reflector.signal(Signal::TERM);
    let said = reflector.wait(HELPER)?.ok("the reflector after SIGTERM")?.stdout;
    let reflected: Value = serde_json::from_str(&said).with_context(|| format!("no JSON: {said}"))?;
    ensure!(reflected["rate_per_s"].as_f64() > Some(0.0), "{reflected}");
    Ok(Verdict::Figure(format!("p50 {:.1} us at depth 8", last["p50_us"].as_f64().unwrap_or(0.0))))
}

fn compare(_: &Options) -> Result<Verdict> {
    let lab = Lab::new("benchcompare")?;
    let html = lab.file("report.html");
    let mut command = Command::new(binary()?);
    command.args(["bench", "compare", "--rounds", "1", "--time", "1", "--warmup", "0.2", "--json", "--html"]);
    command.arg(&html).args(["--tests", "rr:4,stream,nginx:4", "--stacks", "kernel,kernel-plain,sidestep,raw"]);
    let measurements = measurements(&lab.must(&mut command, TRANSFER)?)?;
    for (test, stacks) in [("rr", 4), ("stream", 4), ("nginx + wrk", 3)] {
        let of_test = measurements.iter().filter(|m| m["test"] == test).count();
        // Raw frames may starve on a machine that is busy with something else; the stacks may not.
        ensure!(of_test == stacks || of_test + 1 == stacks && stacks == 4, "{test}: {of_test} of {stacks} stacks");
    }
    let ours = measurements.iter().find(|m| m["test"] == "rr" && m["stack"] == "sidestep").context("no sidestep")?;
    let ratio = ours["ratio_to_kernel"].as_f64().context("no ratio")?;
    let html = fs::read_to_string(html)?;
    ensure!(html.contains("<svg") && html.ends_with("</html>\n") && !html.contains("<script"), "a report looks else");
    ensure!(left_behind("").is_empty(), "left behind: {:?}", left_behind(""));
    Ok(Verdict::Figure(format!("rr, 4 connections: {ratio:.2} times the kernel's rate")))
}

fn compare_on_given_devices(_: &Options) -> Result<Verdict> {
    // Devices of the machine that the command runs on: here a namespace plays the machine.
    let mut lab = Lab::new("benchdev")?;
    let space = lab.add_space('m')?;
    let machine = lab.space(space);
    machine.ip(&["link", "add", "cable0", "type", "veth", "peer", "name", "cable1"])?;
    let mut command = machine.command(binary()?);
    command.args(["bench", "compare", "--rounds", "1", "--time", "0.5", "--warmup", "0.1", "--json"]);
    command.args(["--tests", "rr:2", "--stacks", "kernel,sidestep", "--interfaces", "cable0,cable1"]);
    let measurements = measurements(&lab.must(&mut command, TRANSFER)?)?;
    ensure!(measurements.len() == 2, "{measurements:?}");
    Ok(Verdict::Passed)
}

fn measurements(said: &str) -> Result<Vec<Value>> {
    said.lines().map(|line| serde_json::from_str(line).with_context(|| format!("no JSON: {line}"))).collect()
}

fn interrupted(_: &Options) -> Result<Verdict> {
    let lab = Lab::new("benchint")?;
    let mut command = Command::new(binary()?);
    command.args(["bench", "compare", "--time", "30", "--tests", "rr:4", "--stacks", "sidestep"]);
    let mut program = lab.start("compare", &mut command)?;
    let pid = program.pid().to_string();
    let engines = || left_behind(&pid).len() >= 3;
    program.wait_until("laboratory", HELPER, |_| engines().then_some(()))?;
    program.signal(Signal::INT);
    let ended = program.wait(HELPER)?;
    ensure!(ended.code() == 130, "exit code {}", ended.code());
    ensure!(left_behind(&pid).is_empty(), "left behind: {:?}", left_behind(&pid));
    Ok(Verdict::Passed)
}

/// Namespaces and folders of `bench compare` that carry `pid`; with "", of processes that are gone.
fn left_behind(pid: &str) -> Vec<PathBuf> {
    let places = [PathBuf::from("/run/netns"), std::env::temp_dir()];
    let entries = places.iter().flat_map(|p| fs::read_dir(p).into_iter().flatten().flatten()).map(|e| e.path());
    let of = |path: &PathBuf| {
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let Some(owner) = name.strip_prefix("ss-bench-").and_then(|rest| rest.split('-').next()) else { return false };
        let gone = || owner.parse::<u32>().is_ok() && !Path::new(&format!("/proc/{owner}")).exists();
        if pid.is_empty() { gone() } else { owner == pid }
    };
    entries.filter(of).collect()
}
