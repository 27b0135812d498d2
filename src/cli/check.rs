//! `sidestep check`: is a configuration right, what does it come to, and does it fit this machine?

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use sidestep::config::{Backend, Config, Interface, Sharing};
use sidestep::xdp::nic::Nic;

use super::{Failure, load, print};

#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Configuration: TOML (see config/), or an old nuse.conf
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

pub fn main(args: &CheckArgs) -> Result<ExitCode, Failure> {
    let config = load(&args.file)?;
    let done = print(&config.to_toml());
    for warning in warnings(&config) {
        eprintln!("sidestep: warning: {warning}");
    }
    Ok(done)
}

/// What is right in itself and yet will not work, or not as meant, on this machine.
fn warnings(config: &Config) -> Vec<String> {
    let mut out = Vec::new();
    for interface in &config.interfaces {
        match interface.backend {
            Backend::AfXdp | Backend::AfPacket => match Nic::query(&interface.name) {
                Ok(nic) => out.extend(of_device(interface, &nic)),
                Err(error) => out.push(error.to_string()),
            },
            Backend::Tap => {
                if !std::path::Path::new("/dev/net/tun").exists() {
                    out.push(
                        "there is no /dev/net/tun, which backend = \"tap\" needs; `modprobe tun` may bring it".into(),
                    );
                }
            }
            Backend::None => {}
            Backend::Pipe => {
                out.push("backend = \"pipe\" serves tests and the library; `up` and `run` refuse it".into())
            }
        }
        out.extend(of_machine(interface));
    }
    if config.engine.seed.is_some() {
        out.push("engine.seed makes sequence numbers and ports guessable; leave it out outside of experiments".into());
    }
    out
}

fn of_device(interface: &Interface, nic: &Nic) -> Vec<String> {
    let mut out = Vec::new();
    let name = &interface.name;
    if let Some(&queue) = interface.queues.iter().find(|&&q| q >= nic.rx_queues) {
        out.push(format!(
            "{name} has {} receive queues (0 to {}), not a queue {queue}",
            nic.rx_queues,
            nic.rx_queues - 1
        ));
    }
    let covered = (0..nic.rx_queues).filter(|q| interface.queues.contains(q)).count();
    if interface.backend == Backend::AfXdp && covered < nic.rx_queues as usize {
        out.push(format!(
            "{name} spreads flows over {} queues and the engine serves {covered}: what arrives on the others goes to the \
             kernel and is lost to the engine; set queues = {}, or `ethtool -L {name} combined {covered}`",
            nic.rx_queues, nic.rx_queues
        ));
    }
    if let Some(mtu) = interface.mtu.filter(|&m| m > nic.mtu as usize) {
        out.push(format!("mtu = {mtu} is more than the {} that {name} carries", nic.mtu));
    }
    let kernel_has = |i: &&sidestep_stack::InterfaceAddress| nic.addresses.contains(&i.address);
    match interface.sharing {
        Sharing::Own => {
            for a in interface.addresses.iter().filter(kernel_has) {
                out.push(format!(
                    "the kernel has {} on {name} too: both would answer for it; remove it there (`ip address del`), or set \
                     sharing = \"shared\"",
                    a.address
                ));
            }
        }
        Sharing::Shared => {
            for a in interface.addresses.iter().filter(|a| !kernel_has(a)) {
                out.push(format!(
                    "sharing = \"shared\", but the kernel has no {} on {name}: nobody would answer ARP for it; add it there \
                     (`ip address add`), or set sharing = \"own\"",
                    a.address
                ));
            }
        }
    }
    out
}

fn of_machine(interface: &Interface) -> Vec<String> {
    let mut out = Vec::new();
    let cpus = core_affinity::get_core_ids().unwrap_or_default();
    for core in interface.cores.iter().filter(|c| !cpus.iter().any(|id| id.id == **c)) {
        out.push(format!("cores names CPU {core}, which this process may not use"));
    }
    if interface.sharing == Sharing::Shared
        && let Ok(text) = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")
        && let [Ok(first), Ok(last)] = text.split_whitespace().map(str::parse::<u16>).collect::<Vec<_>>()[..]
    {
        let ours = interface.ephemeral_ports;
        if ours.0 <= last && first <= ours.1 {
            out.push(format!(
                "ephemeral_ports = \"{}-{}\" overlaps the kernel's {first}-{last}: answers to the kernel's connections would \
                 go astray; choose another range, or change net.ipv4.ip_local_port_range",
                ours.0, ours.1
            ));
        }
    }
    out
}
