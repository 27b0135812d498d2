//! `sidestep packetdrill`: scripts in packetdrill's language against this stack, in virtual time.
//!
//! ```text
//!   FILE.pkt ──parse──▶ script: options, events in order
//!                          │ one after the other
//!                          ▼
//!   run ── calls ──▶ the client's verbs ──▶ shared memory ──▶ shard ──▶ stack     (crate::local: the real ones)
//!    │                                                                   │
//!    └── world ──▶ flows (script's numbers ⇄ live ones) ── wire ◀── frames ┘
//! ```
//!
//! In: a script. Out: that it holds, or the first line that doesn't, with what was expected and what came. Nothing
//! waits in real time, no privilege is needed, and nothing outside this process is touched: commands between backticks
//! are understood ([`shell`]), not executed.

mod calls;
mod code;
mod flows;
mod info;
mod matching;
mod names;
pub mod parse;
mod run;
pub mod script;
mod settings;
mod shell;
mod wire;
mod world;

use std::path::Path;

pub use run::{Failure, Notes};
pub use settings::{LINK, Settings};
pub use wire::Link;

/// How a script went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Passed,
    Failed(Failure),
    /// It needs what this stack leaves out on purpose.
    Unsupported(Failure),
}

/// Runs the script in `file`.
///
/// # Errors
/// The file can't be read.
pub fn run_file(file: &Path, settings: &Settings, notes: &mut Notes) -> std::io::Result<Verdict> {
    let text = std::fs::read_to_string(file)?;
    Ok(run_text(&text, settings, notes))
}

/// Runs a script.
pub fn run_text(text: &str, settings: &Settings, notes: &mut Notes) -> Verdict {
    let outcome = match parse::parse(text, &settings.names_for(text)) {
        Ok(script) => run::run(&script, settings.clone(), notes),
        Err(e) => Err(Failure { line: e.line, what: format!("column {}: {}", e.column, e.what) }),
    };
    match outcome {
        Ok(()) => Verdict::Passed,
        Err(failure) if failure.what.contains("not supported") => Verdict::Unsupported(failure),
        Err(failure) => Verdict::Failed(failure),
    }
}
