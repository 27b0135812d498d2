//! Six programs on one engine for as long as one likes, under a light load from the other side of a veth pair, while new
//! programs come and go: no request may fail, and nothing may grow.

use super::books::{balanced, with_details};
use super::{CURL, LONG, OURS, PEER, Pair, at, case, python, serves};
use crate::engine::{Engine, Setup, total};
use crate::harness::{Case, Options, Verdict};
use crate::nginx::Nginx;
use crate::program::{Program, TRANSFER, descendants};
use anyhow::{Context, Result, ensure};
use std::process::Command;
use std::time::{Duration, Instant};

pub const CASES: &[Case] = &[case(
    "soak::six_programs",
    &["nginx", "redis-server", "redis-benchmark", "memcached", "iperf3", "dnsmasq", "dig", "curl"],
    LONG,
    a_moment,
)];

/// Between two requests of one load: the machine has other users.
const PAUSE: Duration = Duration::from_millis(400);
/// What a resident size may grow by between two looks, beyond a twentieth, before it counts: caches of allocators.
const SLACK_KIB: u64 = 2048;

/// What is looked at, once everything has settled and again at the end.
#[derive(Clone, Debug)]
struct Look {
    after: Duration,
    /// Name, resident KiB and open descriptors of the engine and of each program with its children.
    each: Vec<(String, u64, usize)>,
    sockets: usize,
    frames: (u64, u64),
    events: u64,
}

fn a_moment(options: &Options) -> Result<Verdict> {
    soak(Duration::from_secs(if options.quick { 15 } else { 60 })).map(Verdict::Figure)
}

/// Runs the programs for `time` and gives what was seen at the beginning and at the end.
///
/// # Errors
/// A request that failed, a program that ended, growth, or books that don't balance in the end.
pub fn soak(time: Duration) -> Result<String> {
    let pair = Pair::new("soak")?;
    let engine = pair.engine(&Setup { poll: "interrupt".into(), ..Setup::default() })?;
    let there = at(PEER[0], 8081);
    let (_, kernel) = pair.nginx("kernel", pair.b().command(Nginx::program()), pair.b(), &[there])?;
    let (layout, nginx) = pair.nginx("nginx", engine.command(Nginx::program()), pair.b(), &[at(OURS[0], 8080)])?;
    std::fs::write(layout.files().join("megabyte"), vec![b'x'; 1 << 20])?;
    let mut programs = vec![nginx];
    let dir = pair.lab.dir().display().to_string();
    let pid_file = format!("--pid-file={}", pair.lab.file("dnsmasq.pid").display());
    let listen = format!("--listen-address={}", OURS[0]);
    let lines: [(&str, u16, Vec<&str>); 5] = [
        ("redis-server", 6379, vec!["--bind", OURS[0], "--save", "", "--protected-mode", "no", "--dir", &dir]),
        ("memcached", 11211, vec!["-u", "root", "-t", "4", "-l", OURS[0], "-p", "11211"]),
        ("iperf3", 5201, vec!["-s", "-B", OURS[0]]),
        (python(), 8000, vec!["-m", "http.server", "8000", "--bind", OURS[0], "--directory", "/usr/share/doc"]),
        (
            "dnsmasq",
            53,
            vec![
                "--keep-in-foreground",
                "--conf-file=/dev/null",
                "--no-resolv",
                "--no-hosts",
                "--user=root",
                &pid_file,
                "--bind-interfaces",
                &listen,
                "--host-record=soak.test,192.0.2.10",
            ],
        ),
    ];
    for (name, port, arguments) in lines {
        let file = name.rsplit('/').next().unwrap_or(name);
        let mut program = pair.lab.start(file, engine.command(name).args(arguments))?;
        serves(&mut program, pair.b(), at(OURS[0], port)).with_context(|| format!("starting {name}"))?;
        programs.push(program);
    }
    let begin = Instant::now();
    // Caches fill and buffers find their sizes in the first part.
    let settled = (time / 5).min(Duration::from_secs(180));
    let (mut rounds, mut first) = (0_u64, None);
    let mut next_word = begin + Duration::from_secs(60);
    while begin.elapsed() < time {
        for (what, mut command) in loads(&pair, &engine) {
            let ended = pair.lab.run(&mut command, TRANSFER).with_context(|| what.to_owned())?.ok(what)?;
            let good = match what {
                "redis" => ended.stdout.matches("requests per second").count() == 2,
                "memcached" => ended.stdout.trim() == "4800 stored and fetched",
                "a megabyte by nginx" => ended.stdout.trim() == "1048576",
                "dnsmasq" | "dnsmasq over TCP" => ended.stdout.trim() == "192.0.2.10",
                _ => true,
            };
            ensure!(good, "{what} after {rounds} rounds: {}{}", ended.stdout, ended.stderr);
            std::thread::sleep(PAUSE);
        }
        rounds += 1;
        if first.is_none() && begin.elapsed() >= settled {
            first = Some(look(&engine, &programs, begin)?);
        }
        if Instant::now() >= next_word {
            next_word += Duration::from_secs(60);
            let now = look(&engine, &programs, begin)?;
            eprintln!("{} s, {rounds} rounds: {:?}, {} sockets", now.after.as_secs(), now.each, now.sockets);
        }
    }
    let (first, last) = (first.context("it was too short to settle")?, look(&engine, &programs, begin)?);
    for program in &mut programs {
        ensure!(program.runs(), "{} has ended", program.name());
    }
    ensure!(last.frames.0 == last.frames.1, "{} of {} frames are accounted for", last.frames.0, last.frames.1);
    ensure!(last.sockets <= first.sockets + 2, "{} sockets, and {} in the end", first.sockets, last.sockets);
    for ((name, kib, open), (_, kib_now, open_now)) in first.each.iter().zip(&last.each) {
        ensure!(*open_now <= open + 2, "{name} had {open} descriptors and has {open_now}");
        ensure!(*kib_now <= kib + kib / 20 + SLACK_KIB, "{name} had {kib} KiB and has {kib_now}");
    }
    drop(programs);
    drop(kernel);
    balanced(&engine).map_err(|e| with_details(&engine, e))?;
    let sizes = first.each.iter().zip(&last.each).map(|((name, kib, open), (_, kib_now, open_now))| {
        format!("{name} {kib} KiB and {open} descriptors, then {kib_now} and {open_now}")
    });
    Ok(format!(
        "{rounds} rounds of {} loads in {:.1} minutes, {} packets, no error; {} s after the start and at the end: {}; \
         {} and {} sockets; all {} frames accounted for",
        loads(&pair, &engine).len(),
        last.after.as_secs_f64() / 60.0,
        last.events,
        first.after.as_secs(),
        sizes.collect::<Vec<_>>().join("; "),
        first.sockets,
        last.sockets,
        last.frames.1,
    ))
}

/// A round: what is asked of each program, from the kernel's side; and one program on the engine that comes and goes.
fn loads(pair: &Pair, engine: &Engine<'_>) -> Vec<(&'static str, Command)> {
    let b = |program: &str, arguments: &[&str]| {
        let mut command = pair.b().command(program);
        command.args(arguments);
        command
    };
    let fetch = |mut command: Command, url: String| {
        command.args(CURL).args(["-o", "/dev/null", "-w", "%{size_download}"]).arg(url);
        command
    };
    let from = format!("@{}", OURS[0]);
    let dig = ["+short", "+time=5", "+tries=2", &from, "soak.test"];
    let redis = ["-h", OURS[0], "-n", "500", "-c", "10", "-q", "-t", "set,get"];
    vec![
        ("a megabyte by nginx", fetch(b("curl", &[]), format!("http://{}:8080/megabyte", OURS[0]))),
        ("redis", b("redis-benchmark", &redis)),
        ("memcached", b(python(), &["-c", include_str!("../programs/memcached.py"), OURS[0]])),
        ("iperf3", b("iperf3", &["-c", OURS[0], "-t", "1", "-b", "50M", "-P", "2"])),
        ("python", fetch(b("curl", &[]), format!("http://{}:8000/", OURS[0]))),
        ("dnsmasq", b("dig", &dig)),
        ("dnsmasq over TCP", b("dig", &[&["+tcp"], &dig[..]].concat())),
        ("a client on the engine", fetch(engine.command("curl"), format!("http://{}:8081/", PEER[0]))),
    ]
}

fn look(engine: &Engine<'_>, programs: &[Program], begin: Instant) -> Result<Look> {
    let mut each = vec![("engine".to_owned(), engine.program.pid())];
    each.extend(programs.iter().map(|p| (p.name().to_owned(), p.pid())));
    let size = |(name, pid): (String, u32)| -> Result<(String, u64, usize)> {
        let (mut kib, mut open) = (0, 0);
        for pid in std::iter::once(pid).chain(descendants(pid)) {
            let Ok(status) = std::fs::read_to_string(format!("/proc/{pid}/status")) else { continue };
            let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap_or("0 kB");
            kib += line.trim().trim_end_matches(" kB").parse::<u64>()?;
            open += std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count);
        }
        Ok((name, kib, open))
    };
    // What clients that have just left had is closed within a moment; TIME-WAIT is no socket of anybody's.
    let mut sockets = usize::MAX;
    for _ in 0..10 {
        let held =
            engine.sockets()?.iter().filter(|s| !s["state"].as_str().unwrap_or_default().starts_with("TIME")).count();
        sockets = sockets.min(held);
        std::thread::sleep(PAUSE / 4);
    }
    let stats = engine.stats()?;
    let number = |key: &str| total(&stats, key).with_context(|| format!("no {key} in stats"));
    Ok(Look {
        after: begin.elapsed(),
        each: each.into_iter().map(size).collect::<Result<_>>()?,
        sockets,
        frames: (number("frames_accounted")?, number("frames_total")?),
        events: number("frames_in")?,
    })
}
