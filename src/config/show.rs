//! A configuration as TOML again, defaults included. What is printed here parses to the same values.

use std::fmt::{Display, Write};
use std::time::Duration;

use sidestep_stack::FastOpen;

use super::file::{ECN_MODES, FAST_OPEN_MODES};

use super::{AttachMode, Backend, Config, Interface, Loopback, Poll, Sharing, ZeroCopy};

impl Config {
    /// The effective configuration.
    #[must_use]
    pub fn to_toml(&self) -> String {
        let mut out = String::new();
        let mut line = |key: &str, value: &dyn Display| {
            let _ = writeln!(out, "{key} = {value}");
        };
        // A section's heading is a line without a key.
        let e = &self.engine;
        line("[engine]\ncontrol", &quoted(e.control.as_deref().unwrap_or(super::DEFAULT_CONTROL)));
        if let Some(seed) = e.seed {
            line("seed", &seed);
        }
        line("heartbeat_timeout", &time(e.heartbeat_timeout));
        line("latency_every", &e.latency_every);
        for i in &self.interfaces {
            interface(&mut line, i);
        }
        let p = &self.programs;
        line("\n[programs]\nsockets", &p.sockets);
        line("connections", &p.connections);
        line("rx_buffer", &p.rx_buffer);
        line("tx_buffer", &p.tx_buffer);
        line("buffer_pool", &p.buffer_pool);
        line("spin", &time(p.spin));
        line("loopback", &quoted(if p.loopback == Loopback::Stack { "stack" } else { "kernel" }));
        line("syscalls", &quoted(p.syscalls.name()));
        line("exclude", &list(p.exclude.iter().map(quoted)));
        line("kernel_destinations", &list(p.kernel_destinations.iter().map(|(a, bits)| quoted(format!("{a}/{bits}")))));
        self.tcp_section(&mut line);
        out
    }

    fn tcp_section(&self, line: &mut dyn FnMut(&str, &dyn Display)) {
        let t = &self.tcp.stack;
        line("\n[tcp]\ncongestion", &quoted(if self.tcp.chosen { t.congestion.name() } else { "kernel" }));
        let ecn = ECN_MODES.iter().find(|(_, mode)| *mode == t.ecn).map_or("off", |(name, _)| name);
        line("ecn", &quoted(ecn));
        let fast_open = FAST_OPEN_MODES.iter().find(|(_, bits)| FastOpen::from_bits(*bits) == t.fast_open);
        line("fast_open", &quoted(fast_open.map_or("off", |(name, _)| name)));
        line("pacing", &t.pacing);
        line("min_rto", &time(t.min_rto));
        line("max_rto", &time(t.max_rto));
        line("delayed_ack", &time(t.delayed_ack));
        line("time_wait", &time(t.time_wait));
        line("fin_timeout", &time(t.fin_timeout));
        line("keepalive_idle", &time(t.keepalive_idle));
        line("keepalive_interval", &time(t.keepalive_interval));
        line("keepalive_probes", &t.keepalive_probes);
        line("syn_retries", &t.syn_retries);
        line("synack_retries", &t.synack_retries);
        line("data_retries", &t.data_retries);
        line("timestamps", &t.timestamps);
        line("window_scaling", &t.window_scaling);
        line("sack", &t.sack);
        line("mtu_probing", &t.mtu_probing);
        line("rmem", &list(t.rmem));
        line("wmem", &list(t.wmem));
        line("slow_start_after_idle", &t.slow_start_after_idle);
        line("tail_loss_probes", &t.tail_loss_probes);
        let limits = self.limits();
        line("half_open", &limits.half_open);
        line("time_wait_records", &limits.time_wait);
    }
}

fn interface(line: &mut dyn FnMut(&str, &dyn Display), i: &Interface) {
    line("\n[[interface]]\nname", &quoted(&i.name));
    let backend = match i.backend {
        Backend::AfXdp => "af_xdp",
        Backend::Tap => "tap",
        Backend::AfPacket => "af_packet",
        Backend::Pipe => "pipe",
        Backend::None => "none",
    };
    line("backend", &quoted(backend));
    line("queues", &list(&i.queues));
    if !i.cores.is_empty() {
        line("cores", &list(&i.cores));
    }
    line("addresses", &list(i.addresses.iter().map(|a| quoted(format!("{}/{}", a.address, a.prefix_bits)))));
    let routes = i.routes.iter().map(|r| match r.gateway {
        Some(via) => format!("{{ to = \"{}/{}\", via = \"{via}\" }}", r.network, r.prefix_bits),
        None => format!("{{ to = \"{}/{}\" }}", r.network, r.prefix_bits),
    });
    line("routes", &list(routes));
    let neighbors = i.neighbors.iter().map(|n| format!("{{ address = \"{}\", mac = \"{}\" }}", n.address, mac(n.mac)));
    line("neighbors", &list(neighbors));
    if let Some(mtu) = i.mtu {
        line("mtu", &mtu);
    }
    if let Some(m) = i.mac {
        line("mac", &quoted(mac(m)));
    }
    line("sharing", &quoted(if i.sharing == Sharing::Shared { "shared" } else { "own" }));
    line("kernel_ports", &list(i.kernel_ports.iter().map(|&r| quoted(range(r)))));
    line("ephemeral_ports", &quoted(range(i.ephemeral_ports)));
    let poll = match i.poll {
        Poll::Busy => "busy",
        Poll::Adaptive => "adaptive",
        Poll::Interrupt => "interrupt",
    };
    line("poll", &quoted(poll));
    line("spin", &time(i.spin));
    let attach = match i.attach {
        AttachMode::Auto => "auto",
        AttachMode::Native => "native",
        AttachMode::Generic => "generic",
    };
    line("attach", &quoted(attach));
    let zero_copy = match i.zero_copy {
        ZeroCopy::Auto => "auto",
        ZeroCopy::Require => "require",
        ZeroCopy::Never => "never",
    };
    line("zero_copy", &quoted(zero_copy));
    line("busy_poll", &i.busy_poll);
    line("large_sends", &i.large_sends);
    let r = &i.rings;
    let (fill, rx, tx, completion, frames, bytes) = (r.fill, r.rx, r.tx, r.completion, r.frames, r.frame_bytes);
    let sizes = format!("fill = {fill}, rx = {rx}, tx = {tx}, completion = {completion}");
    line("rings", &format!("{{ {sizes}, frames = {frames}, frame_bytes = {bytes} }}"));
}

/// A TOML string; Debug's escapes are TOML's for all that a checked configuration can hold.
fn quoted(text: impl AsRef<str>) -> String {
    format!("{:?}", text.as_ref())
}

fn list(items: impl IntoIterator<Item = impl Display>) -> String {
    format!("[{}]", items.into_iter().map(|i| i.to_string()).collect::<Vec<_>>().join(", "))
}

fn range((first, last): (u16, u16)) -> String {
    if first == last { first.to_string() } else { format!("{first}-{last}") }
}

fn mac(bytes: [u8; 6]) -> String {
    bytes.map(|b| format!("{b:02x}")).join(":")
}

/// In the largest unit that loses nothing.
fn time(d: Duration) -> String {
    let ns = d.as_nanos();
    let units = [(1_000_000_000, "s"), (1_000_000, "ms"), (1_000, "us"), (1, "ns")];
    let (size, unit) = units.into_iter().find(|(size, _)| ns.is_multiple_of(*size)).unwrap_or((1, "ns"));
    quoted(format!("{}{unit}", ns / size))
}
