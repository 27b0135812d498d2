//! `sidestep packetdrill`: runs packet scripts and says how they went.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use sidestep::packetdrill::{Notes, Settings, Verdict, run_file};

use super::{FAILED, Failure};

#[derive(Debug, Args)]
pub struct PacketdrillArgs {
    /// Print each event as it happens, and what was skipped
    #[arg(short, long)]
    verbose: bool,
    /// Print nothing about scripts that pass
    #[arg(short, long)]
    quiet: bool,
    /// Define a name: NAME=VALUE
    #[arg(short = 'D', long = "define", value_name = "NAME=VALUE")]
    defines: Vec<String>,
    /// Scripts, and options as scripts have them (--ip_version=ipv6, --mtu=1520, --tolerance_usecs=10000, …)
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "FILE.pkt")]
    rest: Vec<String>,
}

pub fn main(args: &PacketdrillArgs) -> Result<ExitCode, Failure> {
    let mut settings = Settings::default();
    let (mut verbose, mut quiet) = (args.verbose, args.quiet);
    let mut files = Vec::new();
    for define in &args.defines {
        settings.option("define", define).map_err(Failure::usage)?;
    }
    let mut rest = args.rest.iter();
    while let Some(word) = rest.next() {
        match word.strip_prefix("--") {
            Some("verbose") => verbose = true,
            Some("quiet") => quiet = true,
            Some(option) => {
                let (name, value) = option.split_once('=').unwrap_or((option, ""));
                settings.option(name, value).map_err(Failure::usage)?;
            }
            None if word == "-D" => {
                settings.option("define", rest.next().map_or("", String::as_str)).map_err(Failure::usage)?;
            }
            None => files.push(PathBuf::from(word)),
        }
    }
    if files.is_empty() {
        return Err(Failure::usage("no script is named"));
    }
    let (mut passed, mut failed, mut unsupported) = (0, 0, 0);
    for file in &files {
        let mut notes = Notes::default();
        let name = file.display();
        let verdict = run_file(file, &settings, &mut notes).map_err(|e| Failure::usage(format!("{name}: {e}")))?;
        if verbose {
            notes.trace.iter().for_each(|line| println!("{line}"));
            notes.lines.iter().for_each(|(line, what)| println!("{name}:{line}: {what}"));
        }
        match verdict {
            Verdict::Passed => {
                passed += 1;
                if !quiet {
                    println!("{name}: passed");
                }
            }
            Verdict::Failed(failure) => {
                failed += 1;
                println!("{name}:{}: error: {}", failure.line, failure.what);
            }
            Verdict::Unsupported(failure) => {
                unsupported += 1;
                println!("{name}:{}: not run to its end: {}", failure.line, failure.what);
            }
        }
    }
    if files.len() > 1 {
        println!("{passed} passed, {failed} failed, {unsupported} not supported");
    }
    Ok(if failed + unsupported == 0 { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
}
