//! Wrong use: one clear line each, an exit code, nothing left behind.

use super::{OURS, Pair, SHORT, case, python};
use crate::engine::{Setup, binary, has_xdp};
use crate::harness::{Case, Options, Verdict};
use crate::program::{Ended, HELPER};
use anyhow::{Context, Result, ensure};
use std::path::Path;
use std::process::Command;

pub const CASES: &[Case] = &[
    case("misuse::no_such_interface", &[], SHORT, no_such_interface),
    case("misuse::queue_out_of_range", &[], SHORT, queue_out_of_range),
    case("misuse::address_of_the_kernel", &[], SHORT, address_of_the_kernel),
    case("misuse::second_engine_on_the_device", &[], SHORT, second_engine),
    case("misuse::control_socket_in_use", &[], SHORT, control_socket_in_use),
    case("misuse::no_permission", &["setpriv"], SHORT, no_permission),
    case("misuse::configuration_typo", &[], SHORT, configuration_typo),
    case("misuse::no_such_file", &[], SHORT, no_such_file),
    case("misuse::port_in_use", &[], SHORT, port_in_use),
    case("misuse::program_not_found", &[], SHORT, program_not_found),
    case("misuse::no_engine", &[], SHORT, no_engine),
];

/// `sidestep up` with this set-up must refuse, with one line that has all of `words`.
fn refused(pair: &Pair, setup: &Setup, words: &[&str]) -> Result<()> {
    let (config, control) = setup.write(&pair.lab, "refused")?;
    let mut command = pair.a().command(binary()?);
    one_line(&pair.lab.run(command.arg("up").arg("-c").arg(&config), HELPER)?, words)?;
    ensure!(!control.exists(), "the control socket is left behind");
    Ok(())
}

fn one_line(ended: &Ended, words: &[&str]) -> Result<()> {
    let said = ended.stderr.trim();
    ensure!(!ended.status.success(), "exit code 0; {said}");
    ensure!(ended.code() < 128, "ended by {}; {said}", ended.status);
    // Warnings of the log may stand before it.
    let errors: Vec<&str> = said.lines().filter(|l| l.starts_with("sidestep:")).collect();
    ensure!(errors.len() == 1, "not one line that begins with 'sidestep:': {said}");
    ensure!(!said.contains("panicked"), "{said}");
    for word in words {
        ensure!(errors[0].contains(word), "the line does not say '{word}': {}", errors[0]);
    }
    Ok(())
}

fn nothing_attached(pair: &Pair) -> Result<Verdict> {
    ensure!(!has_xdp(pair.a(), "ss0")?, "an XDP program is left on ss0");
    Ok(Verdict::Passed)
}

fn no_such_interface(_: &Options) -> Result<Verdict> {
    let pair = Pair::new("nointerface")?;
    refused(&pair, &Setup { interface: "absent0".into(), ..Setup::default() }, &["absent0"])?;
    nothing_attached(&pair)
}

fn queue_out_of_range(_: &Options) -> Result<Verdict> {
    let pair = Pair::new("noqueue")?;
    refused(&pair, &Setup { queues: "[7]".into(), ..Setup::default() }, &["queue", "7", "ss0"])?;
    nothing_attached(&pair)
}

/// An address of one's own must not be one that the kernel has: both would answer.
fn address_of_the_kernel(_: &Options) -> Result<Verdict> {
    let pair = Pair::with("address", 1, &["10.77.0.2/24"])?;
    refused(&pair, &Setup::default(), &["10.77.0.2", "shared"])?;
    nothing_attached(&pair)
}

fn second_engine(_: &Options) -> Result<Verdict> {
    let pair = Pair::new("second")?;
    let mut engine = pair.engine(&Setup::default())?;
    refused(&pair, &Setup::default(), &["ss0"])?;
    ensure!(engine.program.runs() && has_xdp(pair.a(), "ss0")?, "the first engine suffered");
    let said = pair.must(pair.b().command("ping").args(["-n", "-c", "1", "-W", "5", OURS[0]]))?;
    ensure!(said.contains(" 1 received"), "{said}");
    engine.stop()?;
    nothing_attached(&pair)
}

fn control_socket_in_use(_: &Options) -> Result<Verdict> {
    let pair = Pair::new("control")?;
    let mut engine = pair.engine(&Setup::default())?;
    pair.lab.space(pair.b).ip(&["link", "add", "ss1", "type", "veth", "peer", "name", "k1"])?;
    pair.lab.space(pair.b).ip(&["link", "set", "ss1", "up"])?;
    let config = pair.lab.file("other.toml");
    let setup = Setup { interface: "ss1".into(), addresses: vec!["10.78.0.2/24".into()], ..Setup::default() };
    std::fs::write(&config, setup.toml(engine.control()))?;
    let mut command = pair.b().command(binary()?);
    one_line(&pair.lab.run(command.arg("up").arg("-c").arg(&config), HELPER)?, &["control socket"])?;
    ensure!(engine.program.runs(), "the first engine suffered");
    engine.stats().context("the first engine's control socket")?;
    engine.stop()?;
    Ok(Verdict::Passed)
}

fn no_permission(_: &Options) -> Result<Verdict> {
    let pair = Pair::new("nopermission")?;
    // A copy that anybody may run: the build may stand in somebody's home.
    let (built, copy) = (binary()?, pair.lab.file("sidestep"));
    std::fs::copy(&built, &copy)?;
    let (config, control) = Setup::default().write(&pair.lab, "engine")?;
    let mut command = pair.a().command("setpriv");
    command
        .args(["--reuid", "65534", "--regid", "65534", "--clear-groups"])
        .arg(&copy)
        .arg("up")
        .arg("-c")
        .arg(&config);
    one_line(&pair.lab.run(&mut command, HELPER)?, &[])?;
    ensure!(!control.exists(), "the control socket is left behind");
    nothing_attached(&pair)
}

fn configuration_typo(_: &Options) -> Result<Verdict> {
    let pair = Pair::new("typo")?;
    let config = pair.lab.file("typo.toml");
    let text = Setup::default().toml(Path::new("/tmp/unused.sock")).replace("queues =", "qeues =");
    let line = text.lines().position(|l| l.starts_with("qeues")).context("the typo")? + 1;
    std::fs::write(&config, text)?;
    let place = format!("typo.toml:{line}");
    for (verb, option) in [("up", Some("-c")), ("check", None)] {
        let mut command = Command::new(binary()?);
        command.arg(verb).args(option).arg(&config);
        one_line(&pair.lab.run(&mut command, HELPER)?, &[&place, "qeues", "queues"]).context(verb)?;
    }
    nothing_attached(&pair)
}

fn no_such_file(_: &Options) -> Result<Verdict> {
    let pair = Pair::new("nofile")?;
    let mut command = Command::new(binary()?);
    one_line(&pair.lab.run(command.args(["up", "-c", "/nonexistent/x.toml"]), HELPER)?, &["/nonexistent/x.toml"])?;
    Ok(Verdict::Passed)
}

/// Not with nc: it asks for SO_REUSEPORT, with which two may listen.
fn port_in_use(_: &Options) -> Result<Verdict> {
    let pair = Pair::new("port")?;
    let engine = pair.engine(&Setup::default())?;
    let script = "import errno, socket, sys, time
s = socket.socket(socket.AF_INET6 if ':' in sys.argv[1] else socket.AF_INET)
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
try:
    s.bind((sys.argv[1], 9000)); s.listen()
except OSError as e:
    sys.exit(errno.errorcode[e.errno])
print('listening', flush=True); time.sleep(600)";
    let listen = |address: &str| {
        let mut command = engine.command(python());
        command.args(["-c", script, address]);
        command
    };
    for address in OURS {
        let mut first = pair.lab.start("first", &mut listen(address))?;
        first.wait_until("listening", HELPER, |p| p.stdout().contains("listening").then_some(()))?;
        let second = pair.lab.run(&mut listen(address), HELPER)?;
        ensure!(second.code() == 1, "the second listener ended with {}", second.status);
        ensure!(second.stderr.trim() == "EADDRINUSE", "the second listener said: {}", second.stderr);
        ensure!(first.runs(), "the first listener ended");
    }
    Ok(Verdict::Passed)
}

fn program_not_found(_: &Options) -> Result<Verdict> {
    let pair = Pair::new("noprogram")?;
    let (config, control) = Setup::default().write(&pair.lab, "engine")?;
    for program in ["/no/such/program", "no-such-program"] {
        let mut command = pair.a().command(binary()?);
        let ended = pair.lab.run(command.arg("run").arg("-c").arg(&config).args(["--", program]), HELPER)?;
        one_line(&ended, &[program])?;
        ensure!(ended.code() == 127, "exit code {}", ended.code());
        ensure!(!control.exists(), "the control socket is left behind");
    }
    nothing_attached(&pair)
}

fn no_engine(_: &Options) -> Result<Verdict> {
    let pair = Pair::new("noengine")?;
    let absent = pair.lab.file("absent.sock");
    for line in [&["ss", "--control"][..], &["stats", "--control"], &["run", "--attach"]] {
        let mut command = Command::new(binary()?);
        command.args(line).arg(&absent);
        if line[0] == "run" {
            command.args(["--", "true"]);
        }
        one_line(&pair.lab.run(&mut command, HELPER)?, &["absent.sock"]).with_context(|| line.join(" "))?;
    }
    Ok(Verdict::Passed)
}
