//! Name lookups of programs on Sidestep; the name server is on the kernel's side. What the kernel of Sidestep's namespace
//! could ask is nobody: it has no address there.

use super::{LONG, PEER, Pair, case, python};
use crate::engine::Setup;
use crate::harness::{Case, Options, Verdict};
use crate::lab::Space;
use crate::program::{HELPER, TRANSFER};
use anyhow::{Result, ensure};
use std::path::Path;
use std::process::Command;

pub const CASES: &[Case] = &[case("names::as_the_kernel", &["dnsmasq", "unshare"], LONG, as_the_kernel)];

/// The name server, which knows what names.py asks.
fn server(pair: &Pair) -> Command {
    let mut line = pair.b().command("dnsmasq");
    line.args(["--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--user=root"]);
    line.arg(format!("--pid-file={}", pair.lab.file("dnsmasq.pid").display()));
    line.args(["--bind-interfaces", "--local=/test/"]);
    line.args(PEER.map(|address| format!("--listen-address={address}")));
    line.args(["--host-record=both.test,192.0.2.10,2001:db8::10", "--cname=alias.test,both.test"]);
    line.args(["--host-record=short.inside.test,192.0.2.20", "--txt-record=text.test,one,two,three"]);
    // More than the 512 bytes that a question without EDNS allows.
    line.args((1..=60).map(|n| format!("--host-record=many.test,198.51.100.{n}")));
    line
}

/// `command` with files of its own in the place of /etc/resolv.conf and /etc/hosts.
fn with_names(space: &Space, pair: &Pair, server: &str, command: &Command) -> Result<Command> {
    let (resolv, hosts) = (pair.lab.file("resolv.conf"), pair.lab.file("hosts"));
    std::fs::write(&resolv, format!("nameserver {server}\nsearch inside.test\noptions timeout:5 attempts:2\n"))?;
    std::fs::write(&hosts, "127.0.0.1 localhost\n192.0.2.77 fromhosts\n")?;
    let bind = |file: &Path, over: &str| format!("mount --bind {} {over}", file.display());
    let script = format!("{} && {} && exec \"$@\"", bind(&resolv, "/etc/resolv.conf"), bind(&hosts, "/etc/hosts"));
    let mut line = space.command("unshare");
    line.args(["--mount", "sh", "-c", &script, "sh"]).arg(command.get_program()).args(command.get_args());
    Ok(line)
}

fn as_the_kernel(_: &Options) -> Result<Verdict> {
    let pair = Pair::new("names")?;
    let engine = pair.engine(&Setup::default())?;
    let mut dns = pair.lab.start("dnsmasq", &mut server(&pair))?;
    let listening = |_: &crate::program::Program| {
        let said = pair.must(pair.b().command("ss").args(["-Hlun", "sport = :53"])).ok()?;
        (said.lines().count() >= 2).then_some(())
    };
    dns.wait_until("listening", HELPER, listening)?;
    let script = pair.lab.file("names.py");
    std::fs::write(&script, include_str!("names.py"))?;
    let mut lines = 0;
    for address in PEER {
        let mut plain = Command::new(python());
        plain.arg(&script).args(PEER);
        let mut line = with_names(pair.b(), &pair, address, &plain)?;
        let kernel = pair.lab.run(&mut line, TRANSFER)?.ok("the script on the kernel")?.stdout;
        ensure!(kernel.contains("too long for UDP 60\n"), "the test's name server fails: {kernel}");
        let mut ours = engine.command(python());
        ours.arg(&script).args(PEER);
        let mut line = with_names(pair.a(), &pair, address, &ours)?;
        let ended = pair.lab.run(&mut line, TRANSFER)?.ok("the script on Sidestep")?;
        let differ: Vec<String> = kernel
            .lines()
            .zip(ended.stdout.lines())
            .filter(|(k, o)| k != o)
            .map(|(k, o)| format!("kernel: {k} / Sidestep: {o}"))
            .collect();
        ensure!(differ.is_empty(), "name server {address}: {}", differ.join("; "));
        ensure!(kernel.lines().count() == ended.stdout.lines().count(), "{}", ended.stdout);
        ensure!(ended.stderr.is_empty(), "{}", ended.stderr);
        lines += ended.stdout.lines().count();
    }
    Ok(Verdict::Figure(format!("{lines} lines the same")))
}
