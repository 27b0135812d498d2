//! The books: whatever was opened is closed again, and what `stats` counts adds up.

use super::{LONG, OURS, PEER, Pair, at, case, python};
use crate::engine::{Engine, Setup, total};
use crate::harness::{Case, Options, Verdict};
use crate::lab::Space;
use crate::nginx::Nginx;
use crate::program::{HELPER, TRANSFER, until};
use anyhow::{Context, Result, bail, ensure};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

pub const CASES: &[Case] = &[case("books::ten_thousand_connections", &["nginx"], LONG, ten_thousand_connections)];

/// Waits until nothing of any program is left in the engine and the frames add up.
///
/// # Errors
/// Says what does not add up.
pub fn balanced(engine: &Engine<'_>) -> Result<()> {
    let mut wrong = String::new();
    let look = || {
        wrong = imbalance(engine).unwrap_or_else(|error| format!("{error:#}"));
        wrong.is_empty().then_some(())
    };
    until(HELPER, look).with_context(|| "the books are not balanced".to_owned())?;
    Ok(())
}

/// What does not add up, empty when all does.
///
/// # Errors
/// When the engine does not answer.
pub fn imbalance(engine: &Engine<'_>) -> Result<String> {
    let stats = engine.stats()?;
    let number = |key: &str| total(&stats, key).with_context(|| format!("no {key} in stats"));
    let groups = stats["groups"].as_array().context("no groups in stats")?.len();
    let mut wrong = Vec::new();
    for (what, have, should) in [
        ("groups", groups as u64, 0),
        ("sockets", number("sockets")?, 0),
        ("ports_claimed", number("ports_claimed")?, 0),
        ("sockets_closed", number("sockets_closed")?, number("sockets_opened")?),
        ("frames_accounted", number("frames_accounted")?, number("frames_total")?),
        // The one that asks.
        ("control_connections", number("control_connections")?, 1),
    ] {
        if have != should {
            wrong.push(format!("{what} {have}, should be {should}"));
        }
    }
    Ok(wrong.join("; "))
}

fn descriptors(engine: &Engine<'_>) -> Result<usize> {
    Ok(std::fs::read_dir(format!("/proc/{}/fd", engine.program.pid()))?.count())
}

fn ten_thousand_connections(options: &Options) -> Result<Verdict> {
    let pair = Pair::with("books", 2, &[])?;
    let setup = Setup { queues: "2".into(), cores: vec![0, 1], ..Setup::default() };
    let engine = pair.engine(&setup)?;
    let count = if options.quick { 1000 } else { 5000 };
    let server = at(OURS[0], 8080);
    let before = {
        let (_, nginx) = pair.nginx("warm", engine.command(Nginx::program()), pair.b(), &[server])?;
        open_and_close(pair.b(), server, 50, true)?;
        drop(nginx);
        balanced(&engine).map_err(|e| with_details(&engine, e))?;
        descriptors(&engine)?
    };
    let (_, nginx) = pair.nginx("nginx", engine.command(Nginx::program()), pair.b(), &[server])?;
    open_and_close(pair.b(), server, count, false).context("closed by the client")?;
    open_and_close(pair.b(), server, count, true).context("closed by the server")?;
    // Outgoing ones too.
    let there = at(PEER[0], 8082);
    let (_, _kernel) = pair.nginx("kernel", pair.b().command(Nginx::program()), pair.b(), &[there])?;
    let script = include_str!("../programs/open_close.py");
    let mut line = engine.command(python());
    line.args(["-c", script, PEER[0], "8082", if options.quick { "200" } else { "2000" }]);
    pair.lab.must(&mut line, TRANSFER).context("outgoing")?;
    drop(nginx);
    balanced(&engine).map_err(|e| with_details(&engine, e))?;
    let after = descriptors(&engine)?;
    ensure!(after <= before, "the engine had {before} descriptors and has {after}");
    let resident = std::fs::read_to_string(format!("/proc/{}/status", engine.program.pid()))?;
    let resident = resident.lines().find(|l| l.starts_with("VmRSS")).unwrap_or_default().replace(['\t', ' '], "");
    Ok(Verdict::Figure(format!("{} connections; {after} descriptors, {resident}", 2 * count)))
}

pub fn with_details(engine: &Engine<'_>, error: anyhow::Error) -> anyhow::Error {
    let wrong = imbalance(engine).unwrap_or_else(|e| format!("{e:#}"));
    error.context(wrong)
}

/// One request a connection, on four threads. The side that closes first keeps the TIME-WAIT.
fn open_and_close(space: &Space, server: SocketAddr, count: usize, server_closes: bool) -> Result<()> {
    let one = || -> Result<()> {
        let mut stream = TcpStream::connect_timeout(&server, Duration::from_secs(20)).context("connecting")?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        let close = if server_closes { "Connection: close\r\n" } else { "" };
        stream.write_all(format!("GET / HTTP/1.1\r\nHost: x\r\n{close}\r\n").as_bytes())?;
        let mut got = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            let n = stream.read(&mut buffer).context("reading")?;
            got.extend_from_slice(&buffer[..n]);
            let whole = got.ends_with(b"-->\n");
            match (n, server_closes) {
                (0, true) if whole => return Ok(()),
                (0, _) => bail!("cut off after {} bytes", got.len()),
                (_, false) if whole => return Ok(()),
                _ => {}
            }
        }
    };
    space.inside(|| {
        std::thread::scope(|scope| {
            let work = || (0..count / 4).try_for_each(|n| one().with_context(|| format!("connection {n}")));
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(work)).collect();
            threads.into_iter().try_for_each(|t| t.join().unwrap_or_else(|_| bail!("a thread panicked")))
        })
    })?
}
