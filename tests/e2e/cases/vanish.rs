//! The device goes away under a running engine.

use super::{OURS, Pair, SHORT, at, case, python};
use crate::engine::Setup;
use crate::harness::{Case, Options, Verdict};
use crate::program::HELPER;
use anyhow::{Result, ensure};
use std::net::TcpStream;

pub const CASES: &[Case] =
    &[case("vanish::is_noticed", &[], SHORT, is_noticed), case("vanish::down_is_told", &[], SHORT, down_is_told)];

/// A server that waits for a client's bytes, and says how the wait ended.
const WAITS: &str = "import errno, socket
s = socket.create_server(('10.77.0.2', 9000))
c, _ = s.accept()
c.settimeout(None)
print('waiting', flush=True)
try:
    print('got', c.recv(10), flush=True)
except OSError as e:
    print(errno.errorcode[e.errno], flush=True)
try:
    socket.create_connection(('10.77.0.1', 1), 5)
except OSError as e:
    print(errno.errorcode[e.errno], flush=True)";

fn is_noticed(_: &Options) -> Result<Verdict> {
    let pair = Pair::new("vanish")?;
    let mut engine = pair.engine(&Setup::default())?;
    let mut server = pair.lab.start("server", engine.command(python()).args(["-c", WAITS]))?;
    let dial = || pair.b().inside(|| TcpStream::connect(at(OURS[0], 9000)).ok()).ok().flatten();
    let client = server.wait_until("serving", HELPER, |_| dial())?;
    server.wait_until("waiting", HELPER, |p| p.stdout().contains("waiting").then_some(()))?;
    pair.a().ip(&["link", "del", "ss0"])?;
    let ended = engine.program.wait(HELPER)?;
    ensure!(ended.code() == 1, "the engine ended with {}: {}", ended.code(), ended.stderr);
    let said = ended.stderr.contains("the interface ss0 is gone");
    ensure!(said, "the engine did not say why: {}", ended.stderr);
    let ended = server.wait(HELPER)?.ok("the server")?;
    let lines: Vec<&str> = ended.stdout.lines().collect();
    ensure!(lines == ["waiting", "ECONNRESET", "ENETDOWN"], "the program heard: {lines:?}");
    drop(client);
    Ok(Verdict::Passed)
}

fn down_is_told(_: &Options) -> Result<Verdict> {
    let pair = Pair::new("down")?;
    let mut engine = pair.engine(&Setup::default())?;
    for (state, said) in [("down", "the interface ss0 is down"), ("up", "the interface ss0 is up again")] {
        pair.a().ip(&["link", "set", "ss0", state])?;
        engine.program.wait_until(said, HELPER, |p| p.stderr().contains(said).then_some(()))?;
    }
    engine.stop()?;
    Ok(Verdict::Passed)
}
