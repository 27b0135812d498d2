//! Engines: their configuration, their start, what they say of themselves, their end.

use crate::lab::{Lab, Space};
use crate::program::{Ended, HELPER, Program};
use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use serde_json::Value;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// First words of the line that an engine prints when it serves.
pub const READY: &str = "sidestep: ready";
/// How long an engine may take to be ready: it compiles nothing and waits for nobody, but the machine may be busy.
pub const START: Duration = Duration::from_secs(30);

/// What goes into a configuration file. The defaults are one shard on core 0 over AF_XDP, ready for [`crate::pair`].
#[derive(Clone, Debug)]
pub struct Setup {
    pub interface: String,
    pub backend: String,
    /// TOML of the key `queues`: a number or a list.
    pub queues: String,
    pub cores: Vec<usize>,
    pub addresses: Vec<String>,
    pub gateway: Option<String>,
    pub poll: String,
    pub sharing: String,
    /// More lines of `[[interface]]`.
    pub more: String,
    /// Slots for sockets that programs open, and for connections accepted on each shard.
    pub sockets: u32,
    pub connections: u32,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            interface: "ss0".into(),
            backend: "af_xdp".into(),
            queues: "1".into(),
            cores: vec![0],
            addresses: vec!["10.77.0.2/24".into(), "fd77::2/64".into()],
            gateway: None,
            poll: "adaptive".into(),
            sharing: "own".into(),
            more: String::new(),
            sockets: 4096,
            connections: 4096,
        }
    }
}

impl Setup {
    /// The file, with `control` as the engine's socket.
    #[must_use]
    pub fn toml(&self, control: &Path) -> String {
        let mut text = format!("[engine]\ncontrol = {:?}\n\n[[interface]]\n", control.to_string_lossy());
        let _ = writeln!(text, "name = {:?}\nbackend = {:?}", self.interface, self.backend);
        let _ = writeln!(text, "queues = {}\ncores = {:?}\naddresses = {:?}", self.queues, self.cores, self.addresses);
        if let Some(via) = &self.gateway {
            let _ = writeln!(text, "routes = [{{ to = \"default\", via = {via:?} }}]");
        }
        let _ = writeln!(text, "poll = {:?}\nsharing = {:?}\n{}", self.poll, self.sharing, self.more);
        let _ = writeln!(text, "\n[programs]\nsockets = {}\nconnections = {}", self.sockets, self.connections);
        text
    }

    /// Writes the file as `NAME.toml` into the laboratory's folder; the control socket will be `NAME.sock` there.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn write(&self, lab: &Lab, name: &str) -> Result<(PathBuf, PathBuf)> {
        let (file, control) = (lab.file(&format!("{name}.toml")), lab.file(&format!("{name}.sock")));
        fs::write(&file, self.toml(&control)).with_context(|| format!("writing {}", file.display()))?;
        Ok((file, control))
    }
}

/// The built `sidestep`: the one of SIDESTEP_BIN, else the release build of this repository.
///
/// # Errors
/// When it has not been built.
pub fn binary() -> Result<PathBuf> {
    let path = match std::env::var_os("SIDESTEP_BIN") {
        Some(path) => PathBuf::from(path),
        None => target_dir().join("release/sidestep"),
    };
    ensure!(path.is_file(), "{} is missing: run `cargo build --release --workspace`", path.display());
    let preload = path.with_file_name("libsidestep_preload.so");
    ensure!(preload.is_file(), "{} is missing: run `cargo build --release --workspace`", preload.display());
    Ok(path)
}

/// Another built program of this repository, beside `sidestep`.
///
/// # Errors
/// When it has not been built.
pub fn beside(name: &str) -> Result<PathBuf> {
    let path = binary()?.with_file_name(name);
    ensure!(path.is_file(), "{} is missing: run `cargo build --release --workspace`", path.display());
    Ok(path)
}

/// Where cargo puts what it builds here.
#[must_use]
pub fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| repository().join("target"), PathBuf::from)
}

/// The root of the repository.
#[must_use]
pub fn repository() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_path_buf()
}

/// A running `sidestep up`.
pub struct Engine<'a> {
    lab: &'a Lab,
    space: &'a Space,
    binary: PathBuf,
    control: PathBuf,
    config: PathBuf,
    pub program: Program,
}

impl<'a> Engine<'a> {
    /// Starts an engine in `space` and waits until it is ready.
    ///
    /// # Errors
    /// When it ends or is not ready in time, with what it said.
    pub fn start(lab: &'a Lab, space: &'a Space, name: &str, setup: &Setup) -> Result<Self> {
        let binary = binary()?;
        let (config, control) = setup.write(lab, name)?;
        let program = Self::up(lab, space, &binary, &config, name)?;
        Ok(Self { lab, space, binary, control, config, program })
    }

    fn up(lab: &Lab, space: &Space, binary: &Path, config: &Path, name: &str) -> Result<Program> {
        let mut program = lab.start(name, space.command(binary).arg("up").arg("-c").arg(config))?;
        let ready = |p: &Program| p.stdout().lines().any(|line| line.starts_with(READY)).then_some(());
        program.wait_until("ready", START, ready)?;
        Ok(program)
    }

    /// Starts the engine again after its process ended, with the same configuration.
    ///
    /// # Errors
    /// As [`Engine::start`].
    pub fn restart(&mut self, name: &str) -> Result<()> {
        self.program = Self::up(self.lab, self.space, &self.binary, &self.config, name)?;
        Ok(())
    }

    /// The namespace it serves.
    #[must_use]
    pub fn space(&self) -> &'a Space {
        self.space
    }

    /// Its control socket.
    #[must_use]
    pub fn control(&self) -> &Path {
        &self.control
    }

    /// A command that runs `program` on this engine.
    #[must_use]
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        self.command_with(&[], program)
    }

    /// The same with more options of `run`.
    #[must_use]
    pub fn command_with(&self, options: &[&str], program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = self.space.command(&self.binary);
        command.arg("run").args(options).arg("--attach").arg(&self.control).arg("--").arg(program);
        command
    }

    /// `sidestep stats --json`.
    ///
    /// # Errors
    /// When the engine does not answer with JSON.
    pub fn stats(&self) -> Result<Value> {
        self.ask("stats")
    }

    /// `sidestep ss --json`: one object a socket.
    ///
    /// # Errors
    /// When the engine does not answer with JSON.
    pub fn sockets(&self) -> Result<Vec<Value>> {
        match self.ask("ss")? {
            Value::Array(list) => Ok(list),
            Value::Object(map) => Ok(map.into_iter().find_map(|(_, v)| v.as_array().cloned()).unwrap_or_default()),
            other => bail!("ss --json gave {other}"),
        }
    }

    fn ask(&self, what: &str) -> Result<Value> {
        let mut command = self.space.command(&self.binary);
        let said = self.lab.must(command.args([what, "--json", "--control"]).arg(&self.control), HELPER)?;
        serde_json::from_str(&said).with_context(|| format!("{what} --json is no JSON: {said}"))
    }

    /// SIGTERM, then its end.
    ///
    /// # Errors
    /// When it does not end, or not with exit code 0.
    pub fn stop(&mut self) -> Result<Ended> {
        self.program.signal(Signal::TERM);
        self.program.wait(HELPER)?.ok("the engine after SIGTERM")
    }

    /// SIGKILL, now.
    pub fn kill(&mut self) {
        self.program.kill();
    }
}

/// Whether an XDP program hangs on `device`.
///
/// # Errors
/// When `ip` can't tell.
pub fn has_xdp(space: &Space, device: &str) -> Result<bool> {
    Ok(space.ip(&["-d", "link", "show", "dev", device])?.contains("xdp"))
}

/// The sum of every number under `key`, wherever it stands in `value`; None when there is no such key.
#[must_use]
pub fn total(value: &Value, key: &str) -> Option<u64> {
    match value {
        Value::Object(map) => {
            let own = map.get(key).map(|v| v.as_u64().unwrap_or_else(|| numbers(v)));
            let below = map.iter().filter(|(k, _)| *k != key).filter_map(|(_, v)| total(v, key));
            sum(own.into_iter().chain(below))
        }
        Value::Array(list) => sum(list.iter().filter_map(|v| total(v, key))),
        _ => None,
    }
}

fn sum(mut parts: impl Iterator<Item = u64>) -> Option<u64> {
    parts.next().map(|first| first + parts.sum::<u64>())
}

fn numbers(value: &Value) -> u64 {
    match value {
        Value::Number(n) => n.as_u64().unwrap_or(0),
        Value::Array(list) => list.iter().map(numbers).sum(),
        Value::Object(map) => map.values().map(numbers).sum(),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_are_found_wherever_they_stand() {
        let value = serde_json::json!({"shards": [{"frames": 2, "drops": {"ttl": 1, "sum": 4}}, {"frames": 3}]});
        assert_eq!(total(&value, "frames"), Some(5));
        assert_eq!(total(&value, "drops"), Some(5));
        assert_eq!(total(&value, "absent"), None);
    }

    #[test]
    fn a_configuration_has_every_key() {
        let text = Setup { gateway: Some("10.77.0.1".into()), ..Setup::default() }.toml(Path::new("/x/e.sock"));
        for line in ["control = \"/x/e.sock\"", "queues = 1", "cores = [0]", "sharing = \"own\"", "sockets = 4096"] {
            assert!(text.contains(line), "{line} in {text}");
        }
        assert!(text.contains("routes = [{ to = \"default\", via = \"10.77.0.1\" }]"), "{text}");
    }
}
