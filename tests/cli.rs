//! The command line as a process: exit codes and the one line that says what to do. Nothing here needs rights.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn sidestep(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sidestep"));
    command.args(arguments).env_remove("SIDESTEP_SOCKET").env_remove("LD_PRELOAD");
    // A library that is not there must not be what the tests of other things fail on.
    command.env("SIDESTEP_PRELOAD", "/bin/sh").output().unwrap()
}

/// The exit code, and the only line on stderr.
fn refused(arguments: &[&str]) -> (i32, String) {
    let output = sidestep(arguments);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(said.lines().count(), 1, "{arguments:?}: {said}");
    assert!(said.starts_with("sidestep: "), "{said}");
    (output.status.code().unwrap(), said)
}

/// A file that is gone when the test is over.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str, text: &str) -> Self {
        let path = std::env::temp_dir().join(format!("sidestep-cli-{}-{name}", std::process::id()));
        std::fs::write(&path, text).unwrap();
        Self(path)
    }
    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn example(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("config").join(name).display().to_string()
}

#[test]
fn check_prints_what_a_file_comes_to_and_the_print_is_a_file() {
    let first = sidestep(&["check", &example("nic-own-address.toml")]);
    assert!(first.status.success());
    let printed = String::from_utf8(first.stdout).unwrap();
    assert!(printed.contains("min_rto = \"200ms\""), "{printed}");
    let again = Scratch::new("printed.toml", &printed);
    assert_eq!(String::from_utf8(sidestep(&["check", again.path()]).stdout).unwrap(), printed);
}

#[test]
fn a_wrong_configuration_is_wrong_use() {
    let file = Scratch::new("wrong.toml", "[[interface]]\nname = \"eth9\"\nadresses = [\"10.0.0.2/24\"]\n");
    for arguments in [&["check", file.path()][..], &["up", "-c", file.path()], &["run", "-c", file.path(), "true"]] {
        let (code, said) = refused(arguments);
        assert_eq!(code, 2, "{said}");
        // An engine needs addresses; that they are misspelt is what the user has to hear.
        assert!(said.contains("adresses") && said.contains("did you mean `addresses`?"), "{said}");
    }
    let (code, said) = refused(&["up", "-c", "/no/such.toml"]);
    assert_eq!(code, 2, "{said}");
}

#[test]
fn an_interface_that_is_not_there_is_named() {
    let text = "[[interface]]\nname = \"ss-none\"\naddresses = [\"10.0.0.2/24\"]\n";
    let file = Scratch::new("absent.toml", text);
    let control = format!("@sidestep-cli-{}", std::process::id());
    let (code, said) = refused(&["up", "-c", file.path(), "--control", &control]);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("ss-none"), "{said}");
    let checked = sidestep(&["check", file.path()]);
    assert!(checked.status.success());
    assert!(String::from_utf8(checked.stderr).unwrap().contains("warning: find the network device ss-none"));
}

#[test]
fn programs_that_can_not_run_have_a_shells_codes() {
    let file = example("veth-lab.toml");
    assert_eq!(refused(&["run", "-c", &file, "--", "no-such-program"]).0, 127);
    assert_eq!(refused(&["run", "-c", &file, "--", &file]).0, 126);
    assert_eq!(refused(&["run", "-c", &file, "--", "/tmp"]).0, 126);
}

#[test]
fn nobody_is_asked_where_nobody_is() {
    for arguments in [&["ss"][..], &["stats"], &["stats", "--json"]] {
        let mut arguments = arguments.to_vec();
        arguments.extend(["--control", "@sidestep-nobody-here"]);
        let (code, said) = refused(&arguments);
        assert_eq!(code, 1);
        assert!(said.contains("sidestep up -c FILE"), "{said}");
    }
    let (code, said) = refused(&["run", "--attach", "@sidestep-nobody-here", "--", "true"]);
    assert_eq!(code, 1);
    assert!(said.contains("--attach SOCKET"), "{said}");
}

#[test]
fn help_has_examples() {
    for arguments in [&["--help"][..], &["run", "--help"]] {
        let output = sidestep(arguments);
        assert!(output.status.success());
        assert!(String::from_utf8(output.stdout).unwrap().contains("Examples:"));
    }
    assert_eq!(sidestep(&["frobnicate"]).status.code(), Some(2));
}

#[test]
fn a_simulation_says_the_same_for_the_same_seed() {
    let arguments = ["sim", &example("sim/lossy.toml"), "--duration", "0.3", "--json"];
    let run = |seed: &str| {
        let output = sidestep(&[&arguments[..], &["--seed", seed]].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let first = run("5");
    assert!(first.contains("\"trace_hash\"") && first.contains("\"damaged\": 0"), "{first}");
    assert_eq!(first, run("5"));
    assert_ne!(first, run("6"));
}

#[test]
fn a_simulation_leaves_a_trace_captures_and_a_picture() {
    let folder = Scratch::new("sim", "");
    std::fs::remove_file(&folder.0).unwrap();
    let picture = Scratch::new("sim.svg", "");
    let lossy = example("sim/lossy.toml");
    let output =
        sidestep(&["sim", &lossy, "--duration", "0.2", "--trace", "--pcap", folder.path(), "--plot", picture.path()]);
    assert!(output.status.success());
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("client sent 10.0.0.1.") && said.contains("goodput"), "{said}");
    assert!(std::fs::read(folder.0.join("server.pcapng")).unwrap().starts_with(&[0x0a, 0x0d, 0x0d, 0x0a]));
    assert!(std::fs::read_to_string(&picture.0).unwrap().contains("round-trip time"));
    std::fs::remove_dir_all(&folder.0).unwrap();
}

#[test]
fn a_wrong_scenario_is_wrong_use() {
    let file = Scratch::new("wrong-sim.toml", "[[host]]\nname = \"a\"\ncuont = 3\n");
    let (code, said) = refused(&["sim", file.path()]);
    assert_eq!(code, 2);
    assert!(said.contains(":3:1: host.cuont") && said.contains("count"), "{said}");
    assert_eq!(refused(&["sim", "/nonexistent.toml"]).0, 2);
    assert_eq!(refused(&["sim", &example("sim/lossy.toml"), "--duration", "0"]).0, 2);
}
