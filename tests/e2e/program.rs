//! Programs: started in their own process group with their output in files, waited for with a bound, ended by number.

use crate::cleanup::{self, Undo};
use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal};
use std::fs::File;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How long a helper command (`ip`, `curl` of a page) may take: far more than it needs, so that only a hang trips it.
pub const HELPER: Duration = Duration::from_secs(30);
/// How long a transfer of 100 MB to 1 GB may take on a busy machine with two cores.
pub const TRANSFER: Duration = Duration::from_secs(150);

/// A program in the background.
pub struct Program {
    name: String,
    child: Child,
    stdout: PathBuf,
    stderr: PathBuf,
    _undo: Undo,
}

/// How a program ended, with what it wrote.
#[derive(Debug)]
pub struct Ended {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
    pub took: Duration,
}

impl Ended {
    /// The exit code as a shell gives it: 128 + signal for a program that a signal ended.
    #[must_use]
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or_else(|| 128 + self.status.signal().unwrap_or(0))
    }

    /// Self if the exit code was 0.
    ///
    /// # Errors
    /// Says the code and the end of what the program wrote.
    pub fn ok(self, what: &str) -> Result<Self> {
        if self.status.success() {
            return Ok(self);
        }
        bail!("{what}: {}; {}", self.status, tail(&format!("{}{}", self.stdout, self.stderr), 12))
    }
}

impl Program {
    /// Starts `command` with its output in `dir/name.out` and `dir/name.err`.
    ///
    /// # Errors
    /// When the files can't be made or the program can't be started.
    pub fn start(dir: &Path, name: &str, command: &mut Command) -> Result<Self> {
        Self::start_with_input(dir, name, command, None)
    }

    /// The same with standard input from a file; without one it is /dev/null.
    ///
    /// # Errors
    /// As [`Program::start`].
    pub fn start_with_input(dir: &Path, name: &str, command: &mut Command, input: Option<&Path>) -> Result<Self> {
        let (stdout, stderr) = (dir.join(format!("{name}.out")), dir.join(format!("{name}.err")));
        let stdin = match input {
            Some(path) => Stdio::from(File::open(path).with_context(|| format!("opening {}", path.display()))?),
            None => Stdio::null(),
        };
        command.stdin(stdin).stdout(File::create(&stdout)?).stderr(File::create(&stderr)?);
        // A group of its own: Ctrl-C reaches only us, and one signal reaches a master with its workers.
        command.process_group(0);
        let (child, undo) = cleanup::make(|| {
            let child = command.spawn().with_context(|| format!("starting {name}: {command:?}"))?;
            let group = child.id();
            anyhow::Ok((child, move || end_group(group)))
        })?;
        Ok(Self { name: name.to_owned(), child, stdout, stderr, _undo: undo })
    }

    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it wrote to standard output so far.
    #[must_use]
    pub fn stdout(&self) -> String {
        read_lossy(&self.stdout)
    }

    /// What it wrote to standard error so far.
    #[must_use]
    pub fn stderr(&self) -> String {
        read_lossy(&self.stderr)
    }

    /// Whether it still runs.
    pub fn runs(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits until it ends.
    ///
    /// # Errors
    /// When it still runs after `limit`; it is left running.
    pub fn wait(&mut self, limit: Duration) -> Result<Ended> {
        let begin = Instant::now();
        let status = until(limit, || self.child.try_wait().transpose());
        match status {
            Some(status) => {
                Ok(Ended { status: status?, stdout: self.stdout(), stderr: self.stderr(), took: begin.elapsed() })
            }
            None => bail!(
                "{} (pid {}) still runs after {} s; {}",
                self.name,
                self.pid(),
                limit.as_secs(),
                tail(&format!("{}{}", self.stdout(), self.stderr()), 8)
            ),
        }
    }

    /// Waits until `condition` gives something, or the program ends, or the limit is reached.
    ///
    /// # Errors
    /// Says which of the two, with the end of the program's output.
    pub fn wait_until<T>(&mut self, what: &str, limit: Duration, condition: impl Fn(&Self) -> Option<T>) -> Result<T> {
        let begin = Instant::now();
        let mut ended = None;
        let found = until(limit, || {
            // Looked at in this order, so that the last words of a program that ended are still seen.
            let status = self.child.try_wait().ok().flatten();
            if let Some(found) = condition(self) {
                return Some(Some(found));
            }
            ended = status;
            status.map(|_| None)
        });
        let output = || tail(&format!("{}{}", self.stdout(), self.stderr()), 12);
        match (found.flatten(), ended) {
            (Some(found), _) => Ok(found),
            (None, Some(status)) => bail!("{} ended ({status}) before it was {what}; {}", self.name, output()),
            (None, None) => bail!("{} not {what} after {} s; {}", self.name, begin.elapsed().as_secs(), output()),
        }
    }

    /// Sends a signal to the program itself. A program that is gone already is no error.
    pub fn signal(&self, signal: Signal) {
        if let Some(pid) = Pid::from_raw(self.pid().cast_signed()) {
            let _ = rustix::process::kill_process(pid, signal);
        }
    }

    /// Sends a signal to the program and all that it forked.
    pub fn signal_group(&self, signal: Signal) {
        if let Some(pid) = Pid::from_raw(self.pid().cast_signed()) {
            let _ = rustix::process::kill_process_group(pid, signal);
        }
    }

    /// Sends a signal to the program and all its descendants, whatever groups they are in.
    pub fn signal_tree(&self, signal: Signal) {
        for pid in std::iter::once(self.pid()).chain(descendants(self.pid())) {
            if let Some(pid) = Pid::from_raw(pid.cast_signed()) {
                let _ = rustix::process::kill_process(pid, signal);
            }
        }
    }

    /// SIGKILL to the program, its group and its descendants, then the zombie is collected.
    pub fn kill(&mut self) {
        // Not when it was collected already: its number may be somebody else's by now.
        if matches!(self.child.try_wait(), Ok(None)) {
            self.signal_tree(Signal::KILL);
            self.signal_group(Signal::KILL);
        }
        let _ = self.child.wait();
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Children of `pid`, their children, and so on.
#[must_use]
pub fn descendants(pid: u32) -> Vec<u32> {
    let parent_of = |entry: std::fs::DirEntry| -> Option<(u32, u32)> {
        let child = entry.file_name().to_str()?.parse().ok()?;
        let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
        Some((child, stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()?))
    };
    let all: Vec<(u32, u32)> =
        std::fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(parent_of).collect();
    let mut found = vec![pid];
    let mut next = 0;
    while let Some(&parent) = found.get(next) {
        found.extend(all.iter().filter(|(_, p)| *p == parent).map(|(child, _)| *child));
        next += 1;
    }
    found.split_off(1)
}

fn end_group(group: u32) {
    if let Some(pid) = Pid::from_raw(group.cast_signed()) {
        let _ = rustix::process::kill_process_group(pid, Signal::KILL);
    }
}

/// Runs `command` to its end and gives what it wrote. It runs in a process group of its own and is killed at the
/// limit.
///
/// # Errors
/// When it can't be started or does not end in time. A bad exit code is in the result: see [`Ended::ok`].
pub fn run(dir: &Path, command: &mut Command, limit: Duration) -> Result<Ended> {
    let name = unique(command);
    let mut program = Program::start(dir, &name, command)?;
    let ended = program.wait(limit)?;
    // Output that was read is not evidence that anybody needs later: hundreds of these files would hide the rest.
    let _ = std::fs::remove_file(&program.stdout);
    let _ = std::fs::remove_file(&program.stderr);
    Ok(ended)
}

/// Runs a command that must succeed and gives its standard output.
///
/// # Errors
/// With the command line and what the command said.
pub fn must(dir: &Path, command: &mut Command, limit: Duration) -> Result<String> {
    let line = format!("{command:?}");
    Ok(run(dir, command, limit)?.ok(&line)?.stdout)
}

/// Calls `attempt` until it gives something or the limit is reached. Quick at first, then every 20 ms.
pub fn until<T>(limit: Duration, mut attempt: impl FnMut() -> Option<T>) -> Option<T> {
    let begin = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(found) = attempt() {
            return Some(found);
        }
        if begin.elapsed() >= limit {
            return None;
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

/// Where a program is, looked for on PATH and where administrators' programs are, which PATH of a user may lack.
#[must_use]
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from));
    places.map(|place| place.join(program)).find(|file| file.is_file())
}

/// The last `lines` lines of `text`, on one line, for an error message.
#[must_use]
pub fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().filter(|l| !l.trim().is_empty()).collect();
    match all.len() {
        0 => "it wrote nothing".to_owned(),
        n => format!("it wrote: {}", all[n.saturating_sub(lines)..].join(" | ")),
    }
}

fn read_lossy(path: &Path) -> String {
    std::fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

fn unique(command: &Command) -> String {
    use std::sync::atomic::{AtomicU32, Ordering};
    static RUNS: AtomicU32 = AtomicU32::new(0);
    let program = Path::new(command.get_program()).file_name().unwrap_or_default().to_string_lossy().into_owned();
    format!("run-{}-{program}", RUNS.fetch_add(1, Ordering::Relaxed))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn here() -> PathBuf {
        let dir = std::env::temp_dir().join(format!("sidestep-unit-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        dir
    }

    #[test]
    fn a_program_that_does_not_end_is_reported_and_killed() {
        let mut sleeper = Program::start(&here(), "sleeper", Command::new("sleep").arg("600")).unwrap();
        let pid = sleeper.pid();
        assert!(sleeper.runs());
        assert!(sleeper.wait(Duration::from_millis(20)).unwrap_err().to_string().contains("still runs"));
        drop(sleeper);
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
    }

    #[test]
    fn output_and_exit_code_come_back() {
        let ended = run(&here(), Command::new("sh").args(["-c", "echo out; echo err >&2; exit 7"]), HELPER).unwrap();
        assert_eq!((ended.code(), ended.stdout.as_str(), ended.stderr.as_str()), (7, "out\n", "err\n"));
        let error = ended.ok("the shell").unwrap_err().to_string();
        assert!(error.contains("the shell") && error.contains("out | err"), "{error}");
        let killed = run(&here(), Command::new("sh").args(["-c", "kill -9 $$"]), HELPER).unwrap();
        assert_eq!(killed.code(), 137);
    }

    #[test]
    fn waiting_for_a_word_notices_the_end() {
        let mut echo = Program::start(&here(), "echo", Command::new("echo").arg("no")).unwrap();
        let error = echo.wait_until("ready", HELPER, |p| p.stdout().contains("ready").then_some(())).unwrap_err();
        assert!(error.to_string().contains("ended"), "{error}");
    }
}
