//! One address for two: the kernel keeps it, and Sidestep serves some of its ports.

use super::{CURL, OURS, PEER, Pair, SHORT, at, case, python, serves, takes};
use crate::engine::Setup;
use crate::harness::{Case, Options, Verdict};
use crate::load::{Load, run};
use crate::nginx::{Nginx, page};
use crate::program::HELPER;
use anyhow::{Context, Result, ensure};

pub const CASES: &[Case] = &[
    case("shared::both_serve_the_same_address", &["nginx", "curl", "ping"], SHORT, both_serve),
    case("shared::a_port_goes_back_to_the_kernel", &["nginx"], SHORT, a_port_goes_back),
];

fn shared() -> Setup {
    Setup { sharing: "shared".into(), ..Setup::default() }
}

const KERNEL: [&str; 2] = ["10.77.0.2/24", "fd77::2/64"];

fn both_serve(_: &Options) -> Result<Verdict> {
    let pair = Pair::with("shared", 1, &KERNEL)?;
    pair.a().finish_checksums("ss0")?;
    let engine = pair.engine(&shared())?;
    let ours = OURS.map(|address| at(address, 8080));
    let (_, _nginx) = pair.nginx("nginx", engine.command(Nginx::program()), pair.b(), &ours)?;
    // On the kernel, at the same address: a server with another port, as sshd would be.
    let kernel = OURS.map(|address| at(address, 2222));
    let (_, _sshd) = pair.nginx("sshd", pair.a().command(Nginx::program()), pair.b(), &kernel)?;
    let there = PEER.map(|address| at(address, 8081));
    let (_, _peer) = pair.nginx("peer", pair.b().command(Nginx::program()), pair.b(), &there)?;
    let pings = || -> Result<u64> {
        let said = pair.must(pair.a().command("cat").arg("/proc/net/snmp"))?;
        let icmp: Vec<&str> = said.lines().filter(|l| l.starts_with("Icmp:")).collect();
        let column = icmp[0].split(' ').position(|c| c == "InEchos").context("InEchos")?;
        Ok(icmp[1].split(' ').nth(column).context("InEchos")?.parse()?)
    };
    let before = pings()?;
    for index in 0..2 {
        for server in [ours[index], kernel[index]] {
            run(pair.b(), &Load { server, path: "/", connections: 4, requests: 400 })
                .with_context(|| format!("{server} while both serve"))?;
        }
        let said = pair.must(pair.b().command("ping").args(["-n", "-c", "3", "-i", "0.2", "-W", "5", OURS[index]]))?;
        ensure!(said.contains(" 3 received"), "{said}");
        // Outgoing from the same address, by both.
        let url = format!("http://{}/", there[index]);
        for (who, mut command) in [("Sidestep", engine.command("curl")), ("kernel", pair.a().command("curl"))] {
            let said = pair.must(command.args(CURL).arg(&url)).with_context(|| format!("outgoing on {who}"))?;
            ensure!(said == page(), "outgoing on {who}: {said}");
        }
    }
    ensure!(pings()? == before + 3, "the kernel answered {} of 3 pings (v4)", pings()? - before);
    Ok(Verdict::Passed)
}

fn a_port_goes_back(_: &Options) -> Result<Verdict> {
    let pair = Pair::with("back", 1, &KERNEL)?;
    pair.a().finish_checksums("ss0")?;
    let mut engine = pair.engine(&shared())?;
    let server = at(OURS[0], 8080);
    {
        let (_, mut nginx) = pair.nginx("nginx", engine.command(Nginx::program()), pair.b(), &[server])?;
        nginx.signal_tree(rustix::process::Signal::TERM);
        nginx.wait(HELPER)?;
    }
    // Nobody listens there now: the kernel says so.
    let closed = crate::program::until(HELPER, || (!takes(pair.b(), server)).then_some(()));
    ensure!(closed.is_some(), "the port still takes connections");
    let script = "import http.server, sys; http.server.HTTPServer((sys.argv[1], 8080), http.server.SimpleHTTPRequestHandler).serve_forever()";
    let mut kernel = pair.lab.start("kernel", pair.a().command(python()).args(["-c", script, OURS[0]]))?;
    serves(&mut kernel, pair.b(), server).context("the kernel's server on the same port")?;
    engine.stop()?;
    ensure!(takes(pair.b(), server), "the kernel's server after the engine stopped");
    Ok(Verdict::Passed)
}
