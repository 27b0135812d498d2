//! The C API of `include/sidestep.h`: what the libraries export, and C programs with the whole stack in their process,
//! alone, in a debugger, and under valgrind.

use super::{Pair, SHORT, case, serves};
use crate::engine::{Setup, beside, repository};
use crate::harness::{Case, Options, Verdict};
use crate::lab::Lab;
use crate::program::{HELPER, TRANSFER};
use anyhow::{Context, Result, ensure};
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;

pub const CASES: &[Case] = &[
    case("capi::exports", &["cc", "c++", "nm"], SHORT, exports),
    case("capi::hook", &["cc"], SHORT, hook),
    case("capi::own_loop", &["cc"], SHORT, own_loop),
    case("capi::gdb", &["cc", "gdb", "nm"], SHORT, gdb),
    case("capi::memcheck", &["cc", "valgrind"], SHORT, memcheck),
];

/// Names of functions that a header declares: what stands before a parenthesis and begins with `ss_`, outside of comments.
fn declared(header: &str) -> BTreeSet<String> {
    let mut code = String::new();
    let mut rest = header;
    while let Some((before, comment)) = rest.split_once("/*") {
        code.push_str(before);
        rest = comment.split_once("*/").map_or("", |(_, after)| after);
    }
    code.push_str(rest);
    let mut names = BTreeSet::new();
    for (at, _) in code.match_indices('(') {
        let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let name = code[..at].rsplit(|c| !word(c)).next().unwrap_or_default();
        if name.starts_with("ss_") {
            names.insert(name.to_owned());
        }
    }
    names
}

/// Functions `ss_…` that a library exports.
fn exported(lab: &Lab, library: &Path) -> Result<BTreeSet<String>> {
    let said = lab.must(Command::new("nm").args(["-D", "--defined-only"]).arg(library), HELPER)?;
    let names = said.lines().filter_map(|line| line.split(' ').nth(2)).filter(|name| name.starts_with("ss_"));
    Ok(names.map(str::to_owned).collect())
}

fn exports(_: &Options) -> Result<Verdict> {
    let lab = Lab::new("capi")?;
    let file = repository().join("include/sidestep.h");
    let header = std::fs::read_to_string(&file)?;
    for (compiler, standard, language) in [("cc", "-std=c11", "c"), ("c++", "-std=c++11", "c++")] {
        let mut line = Command::new(compiler);
        line.args(["-Wall", "-Wextra", "-pedantic", "-Werror", "-fsyntax-only", standard, "-x", language]);
        lab.must(line.arg(&file), HELPER)?;
    }
    let (both, library) =
        header.split_once("/* ---- library mode").context("the header has no part on library mode")?;
    let (client, all) = (declared(both), declared(&header));
    ensure!(declared(library).len() > 8 && client.len() > 30, "{} and {} names", declared(library).len(), client.len());
    for (name, wanted) in [("libsidestep.so", &all), ("libsidestep_client.so", &client)] {
        let has = exported(&lab, &beside(name)?)?;
        let missing: Vec<_> = wanted.difference(&has).collect();
        let secret: Vec<_> = has.difference(wanted).collect();
        ensure!(missing.is_empty(), "{name} does not export what the header declares: {missing:?}");
        ensure!(secret.is_empty(), "{name} exports what the header does not declare: {secret:?}");
    }
    Ok(Verdict::Figure(format!("{} functions", all.len())))
}

/// Builds an example with `libsidestep.so`.
fn build(lab: &Lab, name: &str) -> Result<PathBuf> {
    let (library, program) = (beside("libsidestep.so")?, lab.file(name));
    let folder = library.parent().unwrap_or(Path::new("."));
    let mut line = Command::new("cc");
    line.args(["-std=gnu11", "-g", "-O1", "-Wall", "-Wextra", "-Werror", "-I"]).arg(repository().join("include"));
    line.arg(repository().join(format!("examples/{name}.c"))).arg("-o").arg(&program).arg("-L").arg(folder);
    line.arg(format!("-Wl,-rpath,{}", folder.display())).args(["-lsidestep", "-lpthread"]);
    lab.must(&mut line, TRANSFER)?;
    Ok(program)
}

/// Two engines in one process, one of which drops segments by its hook; the program checks what arrives.
fn hook(_: &Options) -> Result<Verdict> {
    let lab = Lab::new("hook")?;
    let said = lab.must(Command::new(build(&lab, "hook")?).arg("20"), TRANSFER)?;
    ensure!(said.starts_with("1048576 bytes, 0 wrong; "), "{said}");
    Ok(Verdict::Figure(said.trim().to_owned()))
}

/// Sends `data` and gives what comes back until the end.
fn through(server: SocketAddr, data: &[u8]) -> Result<Vec<u8>> {
    let stream = TcpStream::connect(server)?;
    let limit = Some(TRANSFER);
    stream.set_read_timeout(limit)?;
    stream.set_write_timeout(limit)?;
    let mut back = Vec::new();
    std::thread::scope(|scope| {
        let sending = scope.spawn(|| {
            (&stream).write_all(data)?;
            stream.shutdown(Shutdown::Write)
        });
        (&stream).read_to_end(&mut back)?;
        sending.join().map_err(|_| anyhow::anyhow!("sending failed"))??;
        anyhow::Ok(())
    })?;
    Ok(back)
}

/// The echo server with a loop of its own, over AF_XDP, with clients on the kernel.
fn own_loop(_: &Options) -> Result<Verdict> {
    const CLIENTS: usize = 5;
    let pair = Pair::new("ownloop")?;
    let program = build(&pair.lab, "library")?;
    let (config, _) = Setup::default().write(&pair.lab, "library")?;
    let server: SocketAddr = "10.77.0.2:7".parse()?;
    let mut line = pair.a().command(program);
    // One connection more: that which looks whether it serves.
    let mut running = pair.lab.start("library", line.arg(config).arg("7").arg((CLIENTS + 1).to_string()))?;
    serves(&mut running, pair.b(), server)?;
    let data: Vec<u8> = (0..3_000_000u32).map(|i| (i * 7 + i / 251) as u8).collect();
    let outcome = pair.b().inside(|| {
        std::thread::scope(|scope| {
            let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(|| through(server, &data))).collect();
            clients.into_iter().map(|c| c.join().unwrap_or_else(|_| anyhow::bail!("a client failed"))).collect()
        })
    })?;
    let back: Result<Vec<Vec<u8>>> = outcome;
    ensure!(back?.iter().all(|b| *b == data), "something else came back");
    let ended = running.wait(HELPER)?.ok("library")?;
    ensure!(ended.stdout.contains(" segments in, "), "{}", ended.stdout);
    Ok(Verdict::Passed)
}

/// Where every segment of TCP comes by: see docs/DEBUGGING.md.
const BREAK: &str = "break sidestep_stack::tcp::Tcp::handle_segment";

/// gdb stops in the stack of a running program, and shows how it came there: what docs/DEBUGGING.md does.
fn gdb(_: &Options) -> Result<Verdict> {
    let lab = Lab::new("gdb")?;
    let program = build(&lab, "hook")?;
    let mut line = Command::new("gdb");
    line.args(["-batch", "-nx", "-ex", "set breakpoint pending on", "-ex", "set pagination off"]);
    // Where the compiler has put that function into its caller, one of these is left.
    let symbols = lab.must(Command::new("nm").arg(beside("libsidestep.so")?), HELPER)?;
    let wanted = |name: &&str| ["handle_segment", "handle_frame", "poll_frame"].iter().any(|f| name.contains(f));
    let names = symbols.lines().filter_map(|l| l.split(' ').nth(2)).filter(|n| n.contains("sidestep_stack"));
    let breaks: Vec<String> = names.filter(wanted).take(8).map(|name| format!("break {name}")).collect();
    for command in [BREAK].into_iter().chain(breaks.iter().map(String::as_str)).chain(["run", "bt"]) {
        line.args(["-ex", command]);
    }
    let said = lab.run(line.arg("--args").arg(&program).arg("20"), TRANSFER)?;
    let text = format!("{}{}", said.stdout, said.stderr);
    let frames = text.lines().filter(|l| l.starts_with('#')).count();
    ensure!(frames > 3 && text.contains("#0 ") && text.contains("sidestep_stack::"), "{text}");
    Ok(Verdict::Figure(format!("{frames} frames")))
}

/// Not one error of memory in a program, its two engines, and the hook between them.
fn memcheck(_: &Options) -> Result<Verdict> {
    let lab = Lab::new("memcheck")?;
    let program = build(&lab, "hook")?;
    let mut line = Command::new("valgrind");
    line.args(["--error-exitcode=77", "--num-callers=30"]);
    line.arg(format!("--suppressions={}", repository().join("deploy/valgrind.supp").display())).arg(&program).arg("20");
    let ended = lab.run(&mut line, TRANSFER)?;
    ensure!(ended.code() == 0, "{}: {}{}", ended.code(), ended.stdout, ended.stderr);
    ensure!(ended.stderr.contains("ERROR SUMMARY: 0 errors"), "{}", ended.stderr);
    Ok(Verdict::Passed)
}
