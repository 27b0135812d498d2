//! SCM_RIGHTS: sockets that go from process to process.

use super::loopback::{alone, lab};
use super::{SHORT, case, python};
use crate::engine::{Engine, total};
use crate::harness::{Case, Options, Verdict};
use crate::program::{HELPER, TRANSFER, until};
use anyhow::{Context, Result, ensure};

pub const CASES: &[Case] = &[
    case("rights::as_the_kernel", &[], SHORT, as_the_kernel),
    case("rights::to_another_program", &[], SHORT, another_program),
];

fn as_the_kernel(_: &Options) -> Result<Verdict> {
    let (lab, space) = lab("rights")?;
    let here = lab.space(space);
    let script = lab.file("rights.py");
    std::fs::write(&script, include_str!("rights.py"))?;
    let kernel = lab.run(here.command(python()).arg(&script), TRANSFER)?.ok("the script on the kernel")?.stdout;
    let mut lines = 0;
    for shards in [1, 2] {
        let mut engine = Engine::start(&lab, here, &format!("engine{shards}"), &alone(shards))?;
        let ended = lab.run(engine.command(python()).arg(&script), TRANSFER)?.ok("the script on Sidestep")?;
        let differ: Vec<String> = kernel
            .lines()
            .zip(ended.stdout.lines())
            .filter(|(k, o)| k != o)
            .map(|(k, o)| format!("kernel: {k} / {shards} shards: {o}"))
            .collect();
        ensure!(differ.is_empty(), "{}", differ.join("; "));
        lines = ended.stdout.lines().count();
        ensure!(lines == kernel.lines().count() && ended.stderr.is_empty(), "{} {}", ended.stdout, ended.stderr);
        ensure!(total(&engine.stats()?, "tcp_opened_passive") >= Some(60), "the kernel served");
        // Nothing is left of what was under way.
        let closed = || engine.sockets().ok()?.iter().all(|s| s["state"] == "TIME-WAIT").then_some(());
        until(HELPER, closed).with_context(|| format!("sockets stay open: {:?}", engine.sockets()))?;
        engine.stop()?;
    }
    Ok(Verdict::Figure(format!("{lines} lines the same")))
}

/// Programs that two `run`s started, one engine.
fn another_program(_: &Options) -> Result<Verdict> {
    let (lab, space) = lab("rightsother")?;
    let engine = Engine::start(&lab, lab.space(space), "engine", &alone(1))?;
    let script = lab.file("rights.py");
    std::fs::write(&script, include_str!("rights.py"))?;
    for (how, said, given) in [
        ("take", "sent", "b'from another program' b''"),
        // It has sockets in memory of its own, and there is one such memory a program: told, and not sent to the kernel.
        ("take-with-own", "BrokenPipeError", "b'' b''"),
    ] {
        let socket = lab.file(how);
        let mut line = engine.command(python());
        let mut taker = lab.start(how, line.arg(&script).arg(how).arg(&socket))?;
        taker.wait_until("ready", HELPER, |p| p.stdout().contains("ready").then_some(()))?;
        let mut line = engine.command(python());
        let got = lab.must(line.arg(&script).arg("give").arg(&socket), TRANSFER)?;
        ensure!(got.trim() == given, "{how}: the client got {got}");
        let ended = taker.wait(HELPER)?.ok(how)?;
        ensure!(ended.stdout == format!("ready\n{said}\n"), "{how}: {}", ended.stdout);
        ensure!(ended.stderr.contains("another `sidestep run`") == (how != "take"), "{how}: {}", ended.stderr);
    }
    Ok(Verdict::Passed)
}
