//! The command line: `sidestep up | run | ss | stats | check | sim`. What the engine does is in the library.
#![deny(unsafe_code)]

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
