//! Finds what is missing and installs it with apt-get, without starting any service.

use crate::rights::{Rights, run_through};
use anyhow::{Context, Result, bail};
use sidestep_e2e::cleanup;
use sidestep_e2e::program::find;
use std::path::Path;
use std::process::{Command, Stdio};

/// How to see that a package is there.
enum Sign {
    Program(&'static str),
    File(&'static str),
}

/// A Debian package, how to see that it is there, what it is for.
struct Package(&'static str, Sign, &'static str);

const BUILD: &[Package] = &[
    Package("gcc", Sign::Program("cc"), "links"),
    Package("libc6-dev", Sign::File("/usr/include/stdio.h"), "headers of libc"),
    Package("clang", Sign::Program("clang"), "compiles the XDP program"),
    Package("libelf-dev", Sign::File("/usr/include/libelf.h"), "libbpf reads object files"),
    Package("zlib1g-dev", Sign::File("/usr/include/zlib.h"), "libbpf reads object files"),
    Package("m4", Sign::Program("m4"), "libxdp is generated"),
    Package("pkg-config", Sign::Program("pkg-config"), "finds the two libraries"),
];

const LABORATORY: &[Package] = &[
    Package("iproute2", Sign::Program("ip"), "namespaces and veth pairs"),
    Package("ethtool", Sign::Program("ethtool"), "checksums of a veth peer"),
    Package("nginx-light", Sign::Program("nginx"), "the unmodified server"),
    Package("curl", Sign::Program("curl"), "the client"),
    Package("iputils-ping", Sign::Program("ping"), "ping"),
];

/// Not here, and skipped where they are missing: what is large (java, node, PostgreSQL, Go), and an SSH server, which
/// nobody's machine should get from a test.
const PROGRAMS: &[Package] = &[
    Package("wrk", Sign::Program("wrk"), "many HTTP connections"),
    Package("python3-minimal", Sign::File("/usr/bin/python3"), "http.server, asyncio, probes of socket calls"),
    Package("redis-server", Sign::Program("redis-server"), "redis"),
    Package("redis-tools", Sign::Program("redis-cli"), "redis-cli, redis-benchmark"),
    Package("dnsmasq-base", Sign::Program("dnsmasq"), "a name server"),
    Package("iperf3", Sign::Program("iperf3"), "bulk data"),
    Package("valgrind", Sign::Program("valgrind"), "counts of instructions, errors of memory"),
    Package("gdb", Sign::Program("gdb"), "stops in the stack of a running program"),
    Package("g++", Sign::Program("c++"), "the C header is C++ too"),
    Package("netcat-openbsd", Sign::Program("nc"), "nc"),
    Package("haproxy", Sign::Program("haproxy"), "a proxy with threads"),
    Package("memcached", Sign::Program("memcached"), "a server with threads"),
    Package("apache2-utils", Sign::Program("ab"), "ab"),
    Package("openssl", Sign::Program("openssl"), "TLS server and client"),
    Package("wget", Sign::Program("wget"), "wget"),
    Package("socat", Sign::Program("socat"), "a process a connection"),
    Package("sockperf", Sign::Program("sockperf"), "ping-pong over TCP and UDP"),
    Package("bind9-dnsutils", Sign::Program("dig"), "dig"),
];

/// Services that some of these packages would start at boot; nobody asked for that.
const SERVICES: &[&str] = &["nginx", "redis-server", "iperf3", "haproxy", "memcached"];

/// What the demo needs.
///
/// # Errors
/// When something is missing that can't be installed here.
pub fn for_demo(rights: Rights) -> Result<()> {
    install(&[BUILD, LABORATORY].concat_refs(), rights)
}

/// What the tests need. A plain user's tests need only what the build needs: the rest is skipped for want of root.
///
/// # Errors
/// As [`for_demo`].
pub fn for_tests(rights: Rights) -> Result<()> {
    match rights {
        Rights::User => install(&[BUILD].concat_refs(), rights),
        _ => install(&[BUILD, LABORATORY, PROGRAMS].concat_refs(), rights),
    }
}

trait ConcatRefs {
    fn concat_refs(&self) -> Vec<&'static Package>;
}

impl<const N: usize> ConcatRefs for [&'static [Package]; N] {
    fn concat_refs(&self) -> Vec<&'static Package> {
        self.iter().flat_map(|list| list.iter()).collect()
    }
}

fn install(wanted: &[&Package], rights: Rights) -> Result<()> {
    let missing: Vec<&Package> = wanted.iter().copied().filter(|p| !is_there(&p.1)).collect();
    if missing.is_empty() {
        println!("   everything that is needed is installed ({} packages looked for)", wanted.len());
        return Ok(());
    }
    for Package(name, _, why) in &missing {
        println!("   missing: {name} ({why})");
    }
    let names: Vec<&str> = missing.iter().map(|p| p.0).collect();
    let line = format!("apt-get install --no-install-recommends {}", names.join(" "));
    if find("apt-get").is_none() {
        bail!("this is no Debian or Ubuntu: install what these packages bring: {}", names.join(" "));
    }
    if rights == Rights::User {
        bail!("missing packages, and neither root nor sudo without a password: have `{line}` run");
    }
    println!("   {line}   (services are not started)");
    let _held = hold_services(rights)?;
    // On a fresh machine the lists are empty and the first try only says so.
    if !apt(rights, &install_line(&names), true)? {
        println!("   apt-get update");
        apt(rights, &["update", "-q"], false)?;
        if !apt(rights, &install_line(&names), false)? {
            bail!("`{line}` failed: see its output above");
        }
    }
    let still: Vec<&str> = wanted.iter().filter(|p| !is_there(&p.1)).map(|p| p.0).collect();
    if !still.is_empty() {
        bail!("installed, and yet not found: {}", still.join(" "));
    }
    leave_disabled(rights, &names);
    Ok(())
}

fn install_line<'a>(names: &[&'a str]) -> Vec<&'a str> {
    let mut line = vec!["install", "-y", "-q", "--no-install-recommends"];
    line.extend(names);
    line
}

fn apt(rights: Rights, arguments: &[&str], quiet: bool) -> Result<bool> {
    // env: sudo may not let a variable of ours through by itself.
    let mut command = rights.as_root("env").context("needs root")?;
    command.args(["DEBIAN_FRONTEND=noninteractive", "apt-get"]).args(arguments).stdin(Stdio::null());
    command.stdout(Stdio::null());
    if quiet {
        command.stderr(Stdio::null());
    }
    Ok(run_through(&mut command)?.success())
}

fn is_there(sign: &Sign) -> bool {
    match sign {
        Sign::Program(name) => find(name).is_some(),
        Sign::File(path) => Path::new(path).exists(),
    }
}

const POLICY: &str = "/usr/sbin/policy-rc.d";

/// Makes the packages' scripts start nothing: Debian asks this file before it starts a service. What stood there
/// before is put back when the value is dropped.
fn hold_services(rights: Rights) -> Result<cleanup::Undo> {
    let saved = format!("{POLICY}.before-sidestep-{}", std::process::id());
    let script = format!(
        "[ ! -e {POLICY} ] || mv {POLICY} {saved}; printf '#!/bin/sh\\nexit 101\\n' > {POLICY} && chmod 755 {POLICY}"
    );
    let restore = format!("rm -f {POLICY}; [ ! -e {saved} ] || mv {saved} {POLICY}");
    let sh = move |script: &str| -> Result<bool> {
        let mut command = rights.as_root("sh").context("needs root")?;
        Ok(command.args(["-c", script]).status()?.success())
    };
    let ((), undo) = cleanup::make(|| {
        if !sh(&script)? {
            bail!("{POLICY} can't be written");
        }
        anyhow::Ok(((), move || drop(sh(&restore))))
    })?;
    Ok(undo)
}

/// Packages that we brought must not start their service at the next boot either.
fn leave_disabled(rights: Rights, installed: &[&str]) {
    if !Path::new("/run/systemd/system").exists() {
        return;
    }
    for service in SERVICES.iter().filter(|s| installed.iter().any(|i| i.starts_with(**s))) {
        let disabled = rights.as_root("systemctl").map(|mut c| quiet(c.args(["disable", "--quiet", service])));
        if disabled == Some(true) {
            println!("   {service} will not start at boot: systemctl disable {service}");
        }
    }
}

fn quiet(command: &mut Command) -> bool {
    command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|s| s.success())
}
