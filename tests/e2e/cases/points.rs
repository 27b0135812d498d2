//! Killing and stopping program or engine at many points of a run, drawn from a seed.

use super::books::{balanced, with_details};
use super::crash::{RETURN, all_returned_errors, hold, is_blocked, probe};
use super::{OURS, Pair, case};
use crate::engine::Setup;
use crate::files::Random;
use crate::harness::{Case, Options, Verdict};
use crate::program::HELPER;
use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use std::collections::BTreeMap;
use std::time::Duration;

pub const CASES: &[Case] =
    &[case("points::killed_and_stopped_at_many_points", &["ping"], Duration::from_secs(900), many_points)];

const SEED: u64 = 20_260_101;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Blow {
    KillEngine,
    StopEngine,
    KillProgram,
    StopProgram,
}

fn many_points(options: &Options) -> Result<Verdict> {
    let points = if options.quick { 16 } else { 104 };
    let pair = Pair::new("points")?;
    let mut held = hold(&pair, 9100)?;
    let mut engine = pair.engine(&Setup::default())?;
    let mut random = Random::new(SEED);
    let mut tally: BTreeMap<Blow, (u32, u32)> = BTreeMap::new();
    for point in 0..points {
        // A stopped engine is only noticed after seconds of silence: a few of those are enough.
        let blow = match random.below(26) {
            0 => Blow::StopEngine,
            1..=11 => Blow::KillEngine,
            12..=21 => Blow::KillProgram,
            _ => Blow::StopProgram,
        };
        let moment = Duration::from_micros(random.below(450_000));
        let context = || format!("seed {SEED}, point {point}: {blow:?} after {} ms", moment.as_millis());
        let mut program = probe(&pair, &engine, &format!("probe{}", point % 4), 9100).with_context(context)?;
        std::thread::sleep(moment);
        let blocked = is_blocked(&program);
        match blow {
            Blow::KillEngine | Blow::StopEngine => {
                engine.program.signal(if blow == Blow::KillEngine { Signal::KILL } else { Signal::STOP });
                // Started too early it may have no engine at all and end with that error, but end it must.
                program.wait(RETURN).with_context(context)?;
                if blocked {
                    all_returned_errors(&mut program).with_context(context)?;
                }
                engine.kill();
                engine.restart("engine").with_context(context)?;
            }
            Blow::KillProgram => {
                program.signal_tree(Signal::KILL);
                program.kill();
            }
            Blow::StopProgram => {
                program.signal_tree(Signal::STOP);
                let line = ["-n", "-c", "1", "-W", "5", OURS[0]];
                pair.lab.must(pair.b().command("ping").args(line), HELPER).with_context(context)?;
                engine.stats().with_context(context)?;
                program.signal_tree(Signal::KILL);
                program.kill();
            }
        }
        if matches!(blow, Blow::KillProgram | Blow::StopProgram) {
            // A connection whose peer does not read what a dead program sent is kept and probed for minutes, as on
            // Linux. Here the peer goes too, so that the books can be looked at.
            drop(held);
            held = hold(&pair, 9100)?;
            balanced(&engine).map_err(|e| with_details(&engine, e)).with_context(context)?;
        }
        ensure!(engine.program.runs(), "{}: the engine ended: {}", context(), engine.program.stderr());
        let entry = tally.entry(blow).or_default();
        entry.0 += 1;
        entry.1 += u32::from(blocked);
    }
    engine.stop()?;
    let parts: Vec<String> = tally.iter().map(|(b, (n, blocked))| format!("{b:?} {n} ({blocked} blocked)")).collect();
    Ok(Verdict::Figure(format!("{points} points: {}", parts.join(", "))))
}
