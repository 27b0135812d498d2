//! Test suites of other projects, each module on the kernel's loopback and on an engine's, in a fresh namespace each:
//! what passes there has to pass here.

use super::loopback::{alone, carried, lab};
use super::{case, python};
use crate::engine::Engine;
use crate::harness::{Case, Options, Verdict};
use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

pub const CASES: &[Case] = &[case("suites::cpython", &[], Duration::from_secs(3600), cpython)];

/// Modules of Debian's libpython3.11-testsuite that take seconds each.
const QUICK: &[&str] = &["test_httpservers", "test_urllib2_localnet", "test_ftplib"];
/// The others that are about sockets.
const LONG: &[&str] = &[
    "test_socket",
    "test_asyncio",
    "test_selectors",
    "test_socketserver",
    "test_httplib",
    "test_ssl",
    "test_poplib",
    "test_imaplib",
    "test_smtplib",
    "test_telnetlib",
    "test_nntplib",
    "test_xmlrpc",
    "test_docxmlrpc",
    "test_smtpd",
    "test_asyncore",
    "test_asynchat",
    "test_epoll",
];
/// One module on one side; the suite itself gives up before that.
const MODULE: Duration = Duration::from_secs(600);
/// Of the tests that pass on the kernel, so many in a hundred pass on Sidestep.
const LEAST: usize = 90;

/// How each test of a module ended.
type Results = BTreeMap<String, Outcome>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Passed,
    Failed,
    Skipped,
}

/// Runs `module` by `command` (Python, whose arguments are added) and reads what it says of its tests.
fn module(lab: &crate::lab::Lab, mut command: Command, module: &str, side: &str) -> Result<Results> {
    let report = lab.file(&format!("{module}-{side}.xml"));
    // Sockets of VSOCK hang in a virtual machine, on any stack.
    command.args(["-m", "test", "-v", "-i", "*VSOCK*", "--timeout", "500"]);
    // It stays on the loopback all the same.
    if module == "test_socketserver" {
        command.args(["-u", "network"]);
    }
    command.arg("--junit-xml").arg(&report).arg(module);
    let ended = lab.run(command.current_dir(lab.dir()), MODULE)?;
    // It ends with an error when a test fails, so only the report tells.
    let text = std::fs::read_to_string(&report)
        .with_context(|| format!("{module} left no report: {}", crate::program::tail(&ended.stderr, 6)))?;
    Ok(read(&text))
}

/// The test cases of a JUnit report as CPython writes it: `<testcase name="…" …>` with, maybe, `<failure>`, `<error>` or
/// `<skipped>` inside.
fn read(report: &str) -> Results {
    let cases = report.split("<testcase ").skip(1).filter_map(|case| {
        let name = case.split_once("name=\"")?.1.split('"').next()?;
        let inside = case.split("</testcase>").next().unwrap_or_default();
        let outcome = if inside.contains("<failure") || inside.contains("<error") {
            Outcome::Failed
        } else if inside.contains("<skipped") || inside.contains("result=\"skipped\"") {
            Outcome::Skipped
        } else {
            Outcome::Passed
        };
        Some((name.to_owned(), outcome))
    });
    // A name that comes twice, for its subtests, has failed if one of them has.
    cases.fold(Results::new(), |mut all, (name, outcome)| {
        let place = all.entry(name).or_insert(outcome);
        if outcome == Outcome::Failed {
            *place = outcome;
        }
        all
    })
}

fn count(results: &Results, wanted: Outcome) -> usize {
    results.values().filter(|outcome| **outcome == wanted).count()
}

fn cpython(options: &Options) -> Result<Verdict> {
    if !Path::new("/usr/lib/python3.11/test/test_socket.py").exists() {
        return Ok(Verdict::Skipped("libpython3.11-testsuite is not installed".into()));
    }
    let modules = if options.long { [QUICK, LONG].concat() } else { QUICK.to_vec() };
    let (mut text, mut differ) = (String::new(), Vec::new());
    let (mut theirs, mut both) = (0, 0);
    for name in modules {
        let (kernel_lab, space) = lab("suitek")?;
        let kernel = module(&kernel_lab, kernel_lab.space(space).command(python()), name, "kernel")?;
        drop(kernel_lab);
        let (lab, space) = lab("suite")?;
        let engine = Engine::start(&lab, lab.space(space), "engine", &alone(1))?;
        let ours = module(&lab, engine.command(python()), name, "sidestep")?;
        let packets = carried(&engine, 0, 20).with_context(|| format!("{name} did not run on the stack"))?;
        let passed = |(test, outcome): &(&String, &Outcome)| {
            **outcome == Outcome::Passed && ours.get(*test) == Some(&Outcome::Passed)
        };
        let (there, here) = (count(&kernel, Outcome::Passed), kernel.iter().filter(passed).count());
        ensure!(there > 0, "{name}: nothing passes on the kernel");
        let skipped = count(&ours, Outcome::Skipped);
        let _ = write!(text, "{name} {here} of {there} ({skipped} skipped, {packets} packets); ");
        let lost = kernel.iter().filter(|pair| *pair.1 == Outcome::Passed && !passed(pair));
        differ.extend(lost.map(|(test, _)| test.rsplit_once("test.").map_or(test.as_str(), |t| t.1).to_owned()));
        (theirs, both) = (theirs + there, both + here);
    }
    let _ = write!(text, "together {both} of {theirs} that pass on the kernel");
    if !differ.is_empty() {
        let _ = write!(text, "; not here: {}", differ.join(", "));
    }
    ensure!(both * 100 >= theirs * LEAST, "{text}");
    Ok(Verdict::Figure(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_are_read() {
        let report = "<testsuites><testsuite start=\"x\"><testcase name=\"test.a\" status=\"run\" result=\"completed\" \
            time=\"0.1\" /><testcase name=\"test.b\" status=\"run\" result=\"completed\" time=\"0.0\"><failure>no\
            </failure></testcase><testcase name=\"test.c\" status=\"run\" result=\"completed\" time=\"0\"><skipped>why\
            </skipped></testcase></testsuite><testsuite><testcase name=\"test.a\" status=\"run\"><error>x</error>\
            </testcase></testsuite></testsuites>";
        let results = read(report);
        assert_eq!(results["test.b"], Outcome::Failed);
        assert_eq!(results["test.c"], Outcome::Skipped);
        assert_eq!(results["test.a"], Outcome::Failed, "one of two subtests");
        assert_eq!(read(&report.replace("<error>x</error>", ""))["test.a"], Outcome::Passed);
        assert_eq!(results.len(), 3);
    }
}
