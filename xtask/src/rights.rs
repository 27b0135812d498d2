//! How to get the rights that the laboratory needs: root, else sudo without a password, else a user namespace.

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal};
use sidestep_e2e::cleanup::{self, Undo};
use sidestep_e2e::program::find;
use std::process::{Child, Command, ExitStatus, Stdio};

/// What this user may do here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rights {
    Root,
    /// Root for the asking: `sudo -n` works.
    Sudo,
    /// Only what a user namespace of one's own gives.
    User,
}

impl Rights {
    #[must_use]
    pub fn here() -> Self {
        if rustix::process::geteuid().is_root() {
            return Self::Root;
        }
        let sudo = Command::new("sudo").args(["-n", "true"]).stdout(Stdio::null()).stderr(Stdio::null()).status();
        if sudo.is_ok_and(|status| status.success()) { Self::Sudo } else { Self::User }
    }

    /// A command that runs `program` as root; None for a plain user.
    #[must_use]
    pub fn as_root(self, program: &str) -> Option<Command> {
        match self {
            Self::Root => Some(Command::new(find(program).unwrap_or_else(|| program.into()))),
            Self::Sudo => {
                let mut command = Command::new("sudo");
                command.args(["-n", "-E", "--"]).arg(program);
                Some(command)
            }
            Self::User => None,
        }
    }

    /// This program again, with `arguments`, as root.
    ///
    /// # Errors
    /// When this program can't be found, or for a plain user.
    pub fn myself(self, arguments: &[&str]) -> Result<Command> {
        let me = std::env::current_exe().context("where this program is")?;
        let mut command = self.as_root(&me.to_string_lossy()).context("needs root or sudo without a password")?;
        command.args(arguments);
        Ok(command)
    }
}

/// A program that shares our fate: a signal that ends this program is passed on, and the other's clean-up is waited for.
pub struct Through(pub Child, Undo);

impl Through {
    /// Its end.
    ///
    /// # Errors
    /// When the system can't tell.
    pub fn wait(mut self) -> Result<ExitStatus> {
        let status = self.0.wait()?;
        self.1.forget(); // It is over: there is nobody left to pass a signal to.
        Ok(status)
    }
}

/// Starts a command on this terminal.
///
/// # Errors
/// When it can't be started.
pub fn start_through(command: &mut Command) -> Result<Through> {
    let line = format!("{command:?}");
    let (child, undo) = cleanup::make(|| {
        let child = command.spawn().with_context(|| format!("starting {line}"))?;
        let pid = child.id();
        anyhow::Ok((child, move || pass_on(pid)))
    })?;
    Ok(Through(child, undo))
}

/// Runs a command on this terminal to its end.
///
/// # Errors
/// When it can't be started.
pub fn run_through(command: &mut Command) -> Result<ExitStatus> {
    start_through(command)?.wait()
}

/// SIGTERM, then a while for cleaning up.
fn pass_on(pid: u32) {
    let Some(raw) = Pid::from_raw(pid.cast_signed()) else { return };
    let _ = rustix::process::kill_process(raw, Signal::TERM);
    for _ in 0..300 {
        if !is_running(pid) {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
}

/// A zombie waits only for us to look: it has ended.
fn is_running(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}
