//! System calls that programs make without the C library's functions.

use super::loopback::{alone, lab};
use super::{LONG, SHORT, case};
use crate::engine::{Engine, total};
use crate::harness::{Case, Options, Verdict};
use crate::lab::Lab;
use crate::program::{HELPER, TRANSFER};
use anyhow::{Context, Result, ensure};
use std::path::PathBuf;
use std::process::Command;

pub const CASES: &[Case] = &[
    case("raw::by_function", &["cc"], SHORT, by_function),
    case("raw::by_instruction", &["cc"], SHORT, by_instruction),
    case("raw::go", &["go", "cc"], LONG, go),
    case("raw::static_programs_are_refused", &["cc"], SHORT, static_programs),
];

/// What raw.c says when the library serves it.
const SERVED: &str = "thread\nfork\n3900000 bytes\nvfork\nring refused\ndone\n";

/// Whether that is what raw.c says when the kernel serves it. Kernels may refuse rings too.
fn by_the_kernel(said: &str) -> bool {
    [SERVED.to_owned(), SERVED.replace("refused", "for the kernel to say")].iter().any(|all| all == said)
}

/// Builds raw.c.
fn build(lab: &Lab, name: &str, options: &[&str]) -> Result<PathBuf> {
    let (source, program) = (lab.file("raw.c"), lab.file(name));
    std::fs::write(&source, include_str!("raw.c"))?;
    let mut line = Command::new("cc");
    line.args(["-O2", "-Wall", "-pthread", "-o"]).arg(&program).arg(&source).args(options);
    lab.must(&mut line, TRANSFER)?;
    Ok(program)
}

/// Runs it with `options` of `run`. Gives the connections that the stack accepted meanwhile.
fn run(lab: &Lab, engine: &Engine<'_>, options: &[&str], program: &PathBuf, how: &str) -> Result<(String, u64)> {
    let before = accepted(engine)?;
    let mut line = engine.command_with(options, program);
    let said = lab.must(line.arg(how), TRANSFER)?;
    Ok((said, accepted(engine)? - before))
}

fn accepted(engine: &Engine<'_>) -> Result<u64> {
    total(&engine.stats()?, "tcp_opened_passive").context("tcp_opened_passive in stats")
}

fn by_function(_: &Options) -> Result<Verdict> {
    let (lab, space) = lab("rawf")?;
    let engine = Engine::start(&lab, lab.space(space), "engine", &alone(1))?;
    let program = build(&lab, "raw", &[])?;
    for options in [&[][..], &["--syscalls", "dispatch"]] {
        let (said, connections) = run(&lab, &engine, options, &program, "function")?;
        ensure!(said == SERVED && connections == 2, "{options:?}: {connections} connections, {said}");
    }
    Ok(Verdict::Passed)
}

fn by_instruction(_: &Options) -> Result<Verdict> {
    let (lab, space) = lab("rawi")?;
    let engine = Engine::start(&lab, lab.space(space), "engine", &alone(1))?;
    let program = build(&lab, "raw", &[])?;
    let (said, connections) = run(&lab, &engine, &["--syscalls", "dispatch"], &program, "instruction")?;
    ensure!(said == SERVED && connections == 2, "{connections} connections, {said}");
    // Without it nothing is caught: what docs/POSIX.md says.
    let (said, connections) = run(&lab, &engine, &[], &program, "instruction")?;
    ensure!(by_the_kernel(&said) && connections == 0, "{connections} connections, {said}");
    Ok(Verdict::Passed)
}

/// A Go program that is linked dynamically is known as one, and watched without being asked for.
fn go(_: &Options) -> Result<Verdict> {
    let (lab, space) = lab("rawgo")?;
    let engine = Engine::start(&lab, lab.space(space), "engine", &alone(1))?;
    let (source, program) = (lab.file("raw.go"), lab.file("rawgo"));
    std::fs::write(&source, include_str!("raw.go"))?;
    let mut line = Command::new("go");
    line.env("GOCACHE", lab.file("gocache")).env("GO111MODULE", "off").env("CGO_ENABLED", "1");
    lab.must(line.args(["build", "-o"]).arg(&program).arg(&source), super::LONG)?;
    let said = lab.must(&mut engine.command(&program), TRANSFER)?;
    ensure!(said.contains("requests 1600\n") && said.ends_with("done\n"), "{said}");
    let connections = accepted(&engine)?;
    ensure!(connections > 0, "the kernel served");
    Ok(Verdict::Figure(format!("1600 requests over {connections} connections")))
}

fn static_programs(_: &Options) -> Result<Verdict> {
    let (lab, space) = lab("rawstatic")?;
    let engine = Engine::start(&lab, lab.space(space), "engine", &alone(1))?;
    let program = build(&lab, "rawstatic", &["-static"])?;
    let ended = lab.run(engine.command(&program).arg("function"), HELPER)?;
    ensure!(ended.code() == 126 && ended.stderr.contains("statically linked"), "{} {}", ended.code(), ended.stderr);
    // One that a program starts runs, on the kernel's network, and that is said.
    let mut line = engine.command("sh");
    let ended = lab.run(line.args(["-c", "\"$0\" function; exit 5"]).arg(&program), TRANSFER)?;
    ensure!(ended.code() == 5 && by_the_kernel(&ended.stdout), "{} {}", ended.code(), ended.stdout);
    ensure!(ended.stderr.contains("statically linked"), "it ran on the kernel without a word: {}", ended.stderr);
    Ok(Verdict::Passed)
}
