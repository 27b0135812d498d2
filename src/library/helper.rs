//! The helper: a thread that turns the shards when no thread of the program does, so that ACKs, timers and answers go on
//! while the program computes.
//!
//! ```text
//!   parked   a program's thread sleeps for the shards: nothing to do until it leaves
//!   watching looks every millisecond whether somebody turned since; costs nothing else
//!   serving  nobody did, or several threads wait at once: turns, and sleeps for the shards, until a thread of the
//!            program wants to
//! ```

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use sidestep_client::now_ns;

use super::seats::{Outcome, Seats};

/// How often the helper looks whether somebody drives: as long as an answer may be late when nobody does.
const LOOK_EVERY_NS: u64 = 1_000_000;
/// For how long several threads that waited at once make it stay.
const CONTENDED_NS: u64 = 20_000_000;
/// Longest sleep in one piece.
const MOST_NS: u64 = 1_000_000_000;

/// Runs until the library is over. `spin`: how long to look before sleeping while it serves several.
pub fn run(seats: &Arc<Seats>, spin: Duration) {
    let mut seen = seats.program_turns();
    while !seats.is_over() {
        if seats.is_slept_for() {
            seats.helper.park(|| !seats.is_slept_for() || seats.is_over());
        }
        if !seats.contended.load(Ordering::Relaxed) {
            seats.helper.nap(LOOK_EVERY_NS);
        }
        let now = seats.program_turns();
        let turned = now != seen;
        seen = now;
        let contended = seats.contended.load(Ordering::Relaxed);
        if (turned && !contended) || seats.is_slept_for() {
            continue;
        }
        serve(seats, spin);
        seen = seats.program_turns();
    }
}

fn serve(seats: &Arc<Seats>, spin: Duration) {
    seats.serving.store(true, Ordering::SeqCst);
    let spin_ns = u64::try_from(spin.as_nanos()).unwrap_or(u64::MAX);
    let mut idle_since = None;
    let mut renewed = now_ns();
    while seats.serving.load(Ordering::Relaxed) && !seats.is_over() {
        let outcome = seats.turn_all(false);
        let now = now_ns();
        if seats.contended.load(Ordering::Relaxed) && now.saturating_sub(renewed) > CONTENDED_NS {
            renewed = now;
            seats.contended.store(seats.waiting() > 1, Ordering::Relaxed);
        }
        if outcome == Outcome::Worked {
            idle_since = None;
            continue;
        }
        let since = *idle_since.get_or_insert(now);
        // While the program computes, this core may be its own: looking would take it away. Whoever serves several
        // threads or processes is an engine, and waits as one.
        let several = seats.contended.load(Ordering::Relaxed) || seats.gauges.programs.load(Ordering::Relaxed) > 1;
        if several && now.saturating_sub(since) < spin_ns {
            sidestep_client::yield_now();
            continue;
        }
        if seats.sleep_as_helper(MOST_NS) {
            idle_since = None;
        } else if seats.is_slept_for() {
            break;
        }
    }
    seats.serving.store(false, Ordering::SeqCst);
}
