//! The packet scripts below `tests/packets`, one test each, over IPv4, IPv6 and IPv4 in IPv6 sockets unless a script
//! names its family. Also: a script whose expectations are changed must fail, or the runner checks nothing.
//!
//! Prints what libtest prints, so that whoever counts tests counts these. Arguments: parts of names.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use sidestep::packetdrill::{Notes, Settings, Verdict, run_text};

/// An IPv6 header is 20 bytes longer, so this gives segments of the same length.
const MTU_V6: &str = "1520";

#[allow(clippy::disallowed_methods, reason = "how long the tests took, for whoever reads it")]
fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let listing = arguments.iter().any(|a| a == "--list");
    let filters: Vec<&String> = arguments.iter().filter(|a| !a.starts_with('-')).collect();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/packets");
    let mut scripts = Vec::new();
    find(&root, &mut scripts);
    scripts.sort();
    let begin = Instant::now();
    let (mut passed, mut failed, mut filtered) = (0, Vec::new(), 0);
    println!("\nrunning {} tests", scripts.len());
    for file in &scripts {
        let relative = file.strip_prefix(&root).unwrap_or(file).with_extension("");
        let name = format!("packets::{}", relative.display().to_string().replace('/', "::"));
        if !filters.is_empty() && !filters.iter().any(|f| name.contains(f.as_str())) {
            filtered += 1;
            continue;
        }
        if listing {
            println!("{name}: test");
            continue;
        }
        let outcome = std::fs::read_to_string(file).map_err(|e| e.to_string()).and_then(|text| check(&text));
        println!("test {name} ... {}", if outcome.is_ok() { "ok" } else { "FAILED" });
        match outcome {
            Ok(()) => passed += 1,
            Err(what) => failed.push((file.display().to_string(), what)),
        }
    }
    for (name, what) in &failed {
        println!("\n---- {name} ----\n{what}");
    }
    if scripts.len() < 150 {
        println!("\nthere should be 150 scripts at least, not {}", scripts.len());
        return ExitCode::FAILURE;
    }
    let verdict = if failed.is_empty() { "ok" } else { "FAILED" };
    println!(
        "\ntest result: {verdict}. {passed} passed; {} failed; 0 ignored; 0 measured; {filtered} filtered out; finished in {:.2}s\n",
        failed.len(),
        begin.elapsed().as_secs_f64()
    );
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn find(folder: &Path, scripts: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for path in entries.filter_map(Result::ok).map(|e| e.path()) {
        if path.is_dir() {
            find(&path, scripts);
        } else if path.extension().is_some_and(|e| e == "pkt") {
            scripts.push(path);
        }
    }
}

/// Runs a script in every family that it can have.
fn check(text: &str) -> Result<(), String> {
    if !text.starts_with("//") {
        return Err("a script begins with a comment that says which rule it shows".into());
    }
    let option = |name: &str| text.lines().any(|line| line.starts_with(name));
    let families: &[&str] = if option("--ip_version=") { &[""] } else { &["ipv4", "ipv6", "ipv4-mapped-ipv6"] };
    for family in families {
        let mut settings = Settings::default();
        if !family.is_empty() {
            settings.option("ip_version", family)?;
        }
        if *family == "ipv6" && !option("--mtu=") {
            settings.option("mtu", MTU_V6)?;
        }
        let named = |line: usize, what: &str| format!("{family} line {line}: {what}");
        match run_text(text, &settings, &mut Notes::default()) {
            Verdict::Passed => {}
            Verdict::Failed(f) | Verdict::Unsupported(f) => return Err(named(f.line, &f.what)),
        }
        // The same with another flag in the last expected packet; once is enough.
        if *family == families[0]
            && let Some(wrong) = spoil(text)
            && run_text(&wrong, &settings, &mut Notes::default()) == Verdict::Passed
        {
            return Err(named(0, "passes although its last expected packet was changed"));
        }
    }
    Ok(())
}

/// Changes what the last expected packet of a script looks like. None: the script expects none.
fn spoil(text: &str) -> Option<String> {
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let expects = |line: &&mut String| line.split_whitespace().nth(1) == Some(">");
    let last = lines.iter_mut().rev().find(expects)?;
    // Another flag: an urgent pointer, which nothing here sends.
    let at = last.find("> ")? + 2;
    let words = last[at..].to_owned();
    let flags = words.split_whitespace().find(|w| w.chars().all(|c| "FSRP.EWU-".contains(c)))?.to_owned();
    *last = last.replacen(&format!(" {flags} "), &format!(" U{flags} "), 1);
    Some(lines.join("\n"))
}
