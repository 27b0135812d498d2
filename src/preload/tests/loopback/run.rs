//! Starting programs on the engine, and ending them whatever happens.

use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use super::Running;

pub fn library() -> PathBuf {
    // Where cargo leaves the library that it builds along with this test.
    let tests = std::env::current_exe().expect("this program's path");
    let library = tests.parent().expect("target folder").join("libsidestep_preload.so");
    assert!(library.exists(), "{} is missing: build sidestep-preload first", library.display());
    library
}

pub fn on(engine: &Running, program: &str) -> Command {
    let mut command = Command::new(program);
    command
        .env("LD_PRELOAD", library())
        .env("SIDESTEP_SOCKET", &engine.socket)
        .env("SIDESTEP_GROUP", format!("{:032x}", 0xfeedu32))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Ends with the test, whatever happens.
pub struct Background(pub Child);

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A tool that this test needs; a test without it is skipped, and says so.
pub fn has(tool: &str) -> bool {
    let found = Command::new("sh").args(["-c", &format!("command -v {tool}")]).stdout(Stdio::null()).status();
    let found = found.is_ok_and(|s| s.success());
    if !found {
        eprintln!("SKIPPED: {tool} is not installed");
    }
    found
}

pub fn within(mut child: Child, limit: Duration) -> Output {
    let end = Instant::now() + limit;
    while child.try_wait().expect("wait").is_none() {
        if Instant::now() > end {
            let _ = child.kill();
            let out = child.wait_with_output().expect("output");
            panic!("not done after {limit:?}: {out:?}");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    child.wait_with_output().expect("output")
}

pub fn within_reading(mut child: Child, limit: Duration) -> Vec<u8> {
    let mut out = child.stdout.take().expect("stdout");
    let reader = std::thread::spawn(move || {
        let mut all = Vec::new();
        std::io::Read::read_to_end(&mut out, &mut all).map(|_| all)
    });
    within(child, limit);
    reader.join().expect("reader").expect("read")
}
