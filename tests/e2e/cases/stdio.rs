//! stdio on sockets, and programs whose standard streams are sockets.

use super::loopback::{alone, lab};
use super::{SHORT, case};
use crate::engine::{Engine, total};
use crate::harness::{Case, Options, Verdict};
use crate::program::TRANSFER;
use anyhow::{Result, ensure};
use std::process::Command;

pub const CASES: &[Case] = &[case("stdio::as_the_kernel", &["cc"], SHORT, as_the_kernel)];

fn as_the_kernel(_: &Options) -> Result<Verdict> {
    let (lab, space) = lab("stdio")?;
    let here = lab.space(space);
    let (source, program) = (lab.file("stdio.c"), lab.file("stdio"));
    std::fs::write(&source, include_str!("stdio.c"))?;
    let mut line = Command::new("cc");
    lab.must(line.args(["-O2", "-w", "-o"]).arg(&program).arg(&source), TRANSFER)?;
    let kernel = lab.run(&mut here.command(&program), TRANSFER)?.ok("on the kernel")?.stdout;
    ensure!(kernel.ends_with("done\n"), "{kernel}");
    let engine = Engine::start(&lab, here, "engine", &alone(1))?;
    let ours = lab.run(&mut engine.command(&program), TRANSFER)?.ok("on Sidestep")?;
    let differ: Vec<String> = kernel
        .lines()
        .zip(ours.stdout.lines())
        .filter(|(k, o)| k != o)
        .map(|(k, o)| format!("kernel: {k} / Sidestep: {o}"))
        .collect();
    ensure!(differ.is_empty(), "{}", differ.join("; "));
    ensure!(ours.stdout == kernel && ours.stderr.is_empty(), "{} {}", ours.stdout, ours.stderr);
    ensure!(total(&engine.stats()?, "tcp_opened_passive") == Some(9), "the kernel served");
    Ok(Verdict::Figure(format!("{} lines the same", kernel.lines().count())))
}
