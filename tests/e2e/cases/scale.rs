//! What things cost the stack with many connections, and when a peer tries to make them expensive: in instructions, which
//! are the same on every machine that is busy or not.

use super::{LONG, case};
use crate::engine::beside;
use crate::harness::{Case, Options, Verdict};
use crate::lab::Lab;
use crate::program::TRANSFER;
use anyhow::{Context, Result, ensure};
use std::process::Command;

pub const CASES: &[Case] = &[
    case("scale::cost_of_a_request", &["valgrind"], LONG, requests),
    case("scale::work_that_a_peer_can_cause", &["valgrind"], LONG, work),
];

/// Instructions for each unit of a scene of `sidestep-cost`.
fn cost(lab: &Lab, scene: &str, n: usize) -> Result<f64> {
    let mut command = Command::new("valgrind");
    command.args(["--tool=callgrind", "--collect-atstart=no", "--toggle-collect=*measured*"]);
    command.arg(format!("--callgrind-out-file={}", lab.file("callgrind.out").display()));
    command.arg(beside("sidestep-cost")?).args([scene, &n.to_string()]);
    let ended = lab.run(&mut command, TRANSFER)?.ok(&format!("sidestep-cost {scene} {n}"))?;
    let number = |text: &str, after: &str| {
        let rest = text.split(after).nth(1)?.trim_start();
        rest.split(|c: char| !c.is_ascii_digit()).next()?.parse::<f64>().ok()
    };
    let instructions = number(&ended.stderr, "Collected :").context("what callgrind counted")?;
    let units = number(&ended.stdout, "units ").context("how many units were measured")?;
    ensure!(instructions > 0.0 && units > 0.0, "nothing was measured: {}", ended.stderr);
    Ok(instructions / units)
}

fn requests(options: &Options) -> Result<Verdict> {
    let lab = Lab::new("cost")?;
    let one = cost(&lab, "request", 1)?;
    let mut said = vec![format!("{one:.0} with 1 connection")];
    for (n, most) in [(10_000, 1.5), (100_000, 2.0)] {
        if options.quick && n > 10_000 {
            continue;
        }
        let many = cost(&lab, "request", n)?;
        let ratio = many / one;
        ensure!(ratio <= most, "{many:.0} instructions with {n} connections, {one:.0} with one: {ratio:.2} times");
        said.push(format!("{many:.0} with {n} ({ratio:.2} times)"));
    }
    Ok(Verdict::Figure(format!("instructions for a request: {}", said.join(", "))))
}

/// Ten times as much of something must not make each of it dearer.
fn work(_: &Options) -> Result<Verdict> {
    let lab = Lab::new("work")?;
    let mut said = Vec::new();
    for (scene, few, many) in
        [("gaps", 500, 5000), ("sacks", 160, 1600), ("fragments", 1000, 10_000), ("syns", 1000, 10_000)]
    {
        let (small, large) = (cost(&lab, scene, few)?, cost(&lab, scene, many)?);
        ensure!(large <= 2.0 * small, "{scene}: {small:.0} instructions each with {few}, {large:.0} with {many}");
        said.push(format!("{scene} {small:.0} and {large:.0}"));
    }
    Ok(Verdict::Figure(format!("instructions each with few and ten times as many: {}", said.join(", "))))
}
