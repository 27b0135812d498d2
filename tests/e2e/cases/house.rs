//! The house itself: the laboratory leaves nothing behind, however it ends. Needs no engine.

use crate::harness::{Case, Options, Verdict};
use crate::lab::{self, Lab};
use crate::program::{HELPER, Program, until};
use anyhow::{Result, bail, ensure};
use rustix::process::Signal;
use std::process::Command;
use std::time::Duration;

pub const CASES: &[Case] = &[
    Case { name: "house::ctrl_c_cleans_up", needs: &["ip"], limit: Duration::from_secs(120), run: ctrl_c_cleans_up },
    Case {
        name: "house::the_next_run_cleans_up_after_kill",
        needs: &["ip"],
        limit: Duration::from_secs(120),
        run: the_next_run_cleans_up_after_kill,
    },
];

fn waiting(lab: &Lab) -> Result<Program> {
    let mut program = lab.start("waiting", Command::new(std::env::current_exe()?).arg("lab"))?;
    program.wait_until("waiting", HELPER, |p| p.stdout().contains("waiting").then_some(()))?;
    ensure!(lab::traces_of(program.pid()).len() == 2, "a laboratory is a folder and a namespace");
    Ok(program)
}

fn ctrl_c_cleans_up(_: &Options) -> Result<Verdict> {
    for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
        let lab = Lab::new("house")?;
        let mut program = waiting(&lab)?;
        let inside = lab::processes_of(program.pid());
        ensure!(!inside.is_empty(), "nothing runs in the laboratory");
        program.signal(signal);
        let ended = program.wait(HELPER)?;
        ensure!(ended.code() == crate::cleanup::INTERRUPTED, "{signal:?}: exit code {}", ended.code());
        let left = lab::traces_of(program.pid());
        ensure!(left.is_empty(), "{signal:?} left {left:?}");
        gone(&inside)?;
    }
    Ok(Verdict::Passed)
}

fn the_next_run_cleans_up_after_kill(_: &Options) -> Result<Verdict> {
    let lab = Lab::new("house")?;
    let mut program = waiting(&lab)?;
    let inside = lab::processes_of(program.pid());
    program.kill();
    ensure!(lab::traces_of(program.pid()).len() == 2, "kill -9 leaves the folder and the namespace");
    let _next = Lab::new("house")?;
    let left = lab::traces_of(program.pid());
    ensure!(left.is_empty(), "the next laboratory left {left:?}");
    gone(&inside)?;
    Ok(Verdict::Passed)
}

fn gone(pids: &[u32]) -> Result<()> {
    let alive = || pids.iter().find(|pid| std::path::Path::new(&format!("/proc/{pid}")).exists());
    match until(HELPER, || alive().is_none().then_some(())) {
        Some(()) => Ok(()),
        None => bail!("process {:?} still runs", alive()),
    }
}
