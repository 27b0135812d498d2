//! Sidestep against Sidestep: an engine at each end of the veth pair.

use super::server::{iperf3_listen, iperf3_to};
use super::{CURL, LONG, OURS, PEER, Pair, at, case, seen};
use crate::engine::{Engine, Setup};
use crate::files::{HUNDRED_MB, write_random};
use crate::harness::{Case, Options, Verdict};
use crate::lab::{Lab, Veth};
use crate::nginx::{Nginx, page};
use anyhow::{Context, Result, ensure};

pub const CASES: &[Case] = &[case("pair::nginx_curl_and_iperf3", &["nginx", "curl", "iperf3"], LONG, both_ends)];

fn both_ends(options: &Options) -> Result<Verdict> {
    let mut lab = Lab::new("pair")?;
    let (a, b) = (lab.add_space('a')?, lab.add_space('b')?);
    // No address of the kernel's on either end.
    lab.veth(&Veth { here: (lab.space(a), "ss0", &[]), there: (lab.space(b), "k0", &[]), queues: 1 })?;
    let pair = Pair { lab, a, b };
    let server_side = pair.engine(&Setup::default())?;
    let addresses = vec![format!("{}/24", PEER[0]), format!("{}/64", PEER[1])];
    let setup = Setup { interface: "k0".into(), cores: vec![1], addresses, ..Setup::default() };
    let client_side = Engine::start(&pair.lab, pair.b(), "engine-b", &setup)?;

    let servers = OURS.map(|address| at(address, 8080));
    let nginx = Nginx::lay_out(pair.lab.dir(), "nginx", &servers, 2)?;
    let mut command = server_side.command(Nginx::program());
    let _program = pair.lab.start("nginx", command.args(nginx.arguments()))?;
    seen(&server_side, "nginx listening", |s| s["state"] == "LISTEN")?;
    let big = nginx.files().join("big");
    write_random(&big, if options.quick { HUNDRED_MB / 10 } else { HUNDRED_MB }, 12)?;
    for server in servers {
        let said = pair.must(client_side.command("curl").args(CURL).arg(format!("http://{server}/")))?;
        ensure!(said == page(), "not the page: {said}");
        pair.both_ways(&|| client_side.command("curl"), server, &nginx, &big).with_context(|| server.to_string())?;
    }
    let mut figures = Vec::new();
    for address in OURS {
        let name = format!("iperf-{address}").replace(':', "");
        let _server = iperf3_listen(&pair, &name, server_side.command("iperf3"), address)?;
        for args in [&["-t", "1"][..], &["-t", "1", "-R"]] {
            figures.push(format!("{:.1}", iperf3_to(&pair.lab, client_side.command("iperf3"), address, args)?));
        }
    }
    Ok(Verdict::Figure(format!("Gbit/s v4 there, back; v6 the same: {}", figures.join(", "))))
}
