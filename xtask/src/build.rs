//! Calls of cargo, with its progress on the terminal.

use crate::rights::run_through;
use anyhow::{Result, bail};
use sidestep_e2e::engine::repository;
use std::process::Command;

/// `cargo ARGUMENTS` in the root of the repository.
#[must_use]
pub fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments).current_dir(repository());
    // What cargo tells the program that it runs must not reach the cargo that this program runs.
    for key in ["CARGO_MANIFEST_DIR", "CARGO_PKG_NAME", "CARGO_PKG_VERSION", "CARGO_BIN_NAME"] {
        command.env_remove(key);
    }
    command
}

/// The engine, the preload library and everything else, optimised.
///
/// # Errors
/// When it does not build.
pub fn release() -> Result<()> {
    println!("   cargo build --release --workspace");
    if !run_through(&mut cargo(&["build", "--release", "--workspace"]))?.success() {
        bail!("the build failed: see the compiler's output above");
    }
    Ok(())
}
