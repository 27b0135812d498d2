//! The two commands of the README: `cargo xtask demo` and `cargo xtask test`.
//!
//! [`install`] gets what is missing, [`build`] calls cargo, [`demo`] shows the main job side by side with the kernel
//! ([`picture`] draws it), [`test`] runs everything and counts ([`count`]). [`rights`] finds out how to get the rights
//! that namespaces and AF_XDP need. The laboratory and the end-to-end tests are in `tests/e2e`.

// The rule that time is an argument is the engine's; this drives programs in real time.
#![allow(clippy::disallowed_methods)]

mod build;
mod count;
mod counts;
mod demo;
mod install;
mod picture;
mod rights;
mod test;

use anyhow::{Result, bail};
use sidestep_e2e::{cleanup, hostile, lab};
use std::process::ExitCode;
use std::time::Duration;

const HELP: &str = "\
cargo xtask demo [--tap] [--requests N]
    Installs what is missing, builds, runs an unmodified nginx on Sidestep between two network namespaces, checks
    that what arrives is what was sent, and compares latencies with the same nginx on the kernel's stack.
      --tap          over a TAP device in a user namespace: needs no rights (chosen by itself where there are none)
      --requests N   requests for the comparison, on each side (10000)

cargo xtask test [--quick | --long] [--filter NAME]
    Installs what is missing, builds, runs every test, and ends with a line that counts passed, failed and skipped.
      --quick        shorter versions of the long end-to-end tests
      --long         longer ones: all of the test suites of other projects (e2e::suites)
      --filter NAME  only tests whose name contains NAME (end-to-end tests are named e2e::GROUP::NAME)

cargo xtask sim-bars [--seed N] [--duration SECONDS]
    Builds, and runs the matrix of config/sim/bars.toml: the goodput of one simulated flow over paths of every length and
    loss, beside the CUBIC/Reno law. Fails when a line is below it.

cargo xtask soak [--minutes N]
    Runs six programs on one engine for N minutes (30) under a light load and fails on any error or growth. Needs root and
    a release build.

cargo xtask counts [--update]
    Counts the instructions of each stage of a packet's way under valgrind and compares with benches/counts.txt.
      --update       writes that file
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match dispatch(&arguments) {
        Ok(code) => code,
        // After Ctrl-C an error is only a consequence of the clean-up that is going on.
        Err(_) if cleanup::ending() => cleanup::wait_for_the_end(),
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(arguments: &[String]) -> Result<ExitCode> {
    let (command, rest) = arguments.split_first().map_or(("help", &[][..]), |(c, rest)| (c.as_str(), rest));
    if matches!(command, "help" | "--help" | "-h") {
        print!("{HELP}");
        return Ok(ExitCode::SUCCESS);
    }
    // The program that misbehaves runs on Sidestep and must not bring handlers of ours with it.
    if command == "hostile" {
        hostile::main(rest)?;
        return Ok(ExitCode::SUCCESS);
    }
    cleanup::on_signals()?;
    match command {
        "demo" => demo::main(&mut Options::new(rest)),
        "test" => test::main(&mut Options::new(rest)),
        "sim-bars" => sim_bars(&mut Options::new(rest)),
        "soak" => soak(&mut Options::new(rest)),
        "counts" => counts::main(&mut Options::new(rest)),
        // The end-to-end tests alone, without building: what `test` starts with more rights than it has itself.
        "e2e" => test::end_to_end(&mut Options::new(rest)),
        // A laboratory that waits to be interrupted: what the tests of cleaning up start.
        "lab" => {
            let mut lab = lab::Lab::new("wait")?;
            let space = lab.add_space('a')?;
            let _sleeper = lab.start("sleeper", lab.space(space).command("sleep").arg("600"))?;
            println!("waiting");
            std::thread::sleep(Duration::from_secs(600));
            Ok(ExitCode::SUCCESS)
        }
        other => bail!("no command `{other}`\n{HELP}"),
    }
}

/// The long run.
fn soak(options: &mut Options<'_>) -> Result<ExitCode> {
    let minutes: u64 = options.value("--minutes")?.map_or(Ok(30), |text| text.parse())?;
    options.end()?;
    println!("{}", sidestep_e2e::soak(Duration::from_secs(minutes * 60))?);
    Ok(ExitCode::SUCCESS)
}

/// The simulator's yardstick.
fn sim_bars(options: &mut Options<'_>) -> Result<ExitCode> {
    let mut arguments =
        vec!["run", "--release", "--quiet", "--package", "sidestep", "--", "sim", "config/sim/bars.toml"];
    let (seed, duration) = (options.value("--seed")?, options.value("--duration")?);
    options.end()?;
    for (name, value) in [("--seed", &seed), ("--duration", &duration)] {
        arguments.extend(value.as_ref().map(|value| [name, value.as_str()]).into_iter().flatten());
    }
    let status = build::cargo(&arguments).status()?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The options of a command, taken off one by one; what is left at the end is a mistake.
pub struct Options<'a>(Vec<&'a str>);

impl<'a> Options<'a> {
    fn new(arguments: &'a [String]) -> Self {
        Self(arguments.iter().map(String::as_str).collect())
    }

    /// Takes `--name`.
    pub fn flag(&mut self, name: &str) -> bool {
        let at = self.0.iter().position(|a| *a == name);
        at.map(|at| self.0.remove(at)).is_some()
    }

    /// Takes `--name VALUE`.
    ///
    /// # Errors
    /// When the value is missing.
    pub fn value(&mut self, name: &str) -> Result<Option<String>> {
        let Some(at) = self.0.iter().position(|a| *a == name) else { return Ok(None) };
        self.0.remove(at);
        if at < self.0.len() { Ok(Some(self.0.remove(at).to_owned())) } else { bail!("{name} needs a value\n{HELP}") }
    }

    /// # Errors
    /// When something is left.
    pub fn end(&self) -> Result<()> {
        match self.0.first() {
            Some(left) => bail!("no option `{left}` here\n{HELP}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_taken_and_leftovers_refused() {
        let arguments: Vec<String> = ["--quick", "--filter", "nginx", "--qick"].map(str::to_owned).to_vec();
        let mut options = Options::new(&arguments);
        assert!(options.flag("--quick"));
        assert!(!options.flag("--quick"));
        assert_eq!(options.value("--filter").unwrap().as_deref(), Some("nginx"));
        assert!(options.end().unwrap_err().to_string().contains("--qick"));
        let arguments = ["--filter".to_owned()];
        assert!(Options::new(&arguments).value("--filter").is_err());
    }
}
