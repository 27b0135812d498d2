//! TOML into [`Scenario`]s.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use sidestep_client::shm::Geometry;
use sidestep_client::shm::layout::{MAX_POOL_BYTES, MAX_RING_BYTES, MAX_SLOTS, MIN_RING_BYTES};
use sidestep_client::shm::split::GRANULE_BYTES;
use sidestep_stack::{Instant, InterfaceAddress, Limits, NeighborMode, StaticNeighbor};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::links::{WAY_KEYS, back, way};
use super::matrix::{Variant, fill, variants};
use super::traffic::{TRAFFIC_KEYS, traffic_kind};
use super::values::{size, time};
use super::{HostSpec, Kind, LinkSpec, Scenario, TrafficSpec};
use crate::config::ConfigError;
use crate::config::section::{Problem, Section, line_and_column};
use crate::config::values::{choice, nearest, ports, prefix};
use crate::local::{HostAddress, LocalConfig};
use crate::sim::link::LinkConfig;

const SECTIONS: &[&str] = &["simulation", "matrix", "host", "switch", "link", "traffic"];
const SIMULATION_KEYS: &[&str] = &["duration", "seed", "sample", "neighbors"];
const HOST_KEYS: &[&str] = &[
    "name",
    "count",
    "address",
    "mtu",
    "rx_buffer",
    "tx_buffer",
    "buffer_pool",
    "sockets",
    "connections",
    "ephemeral_ports",
    "transmit_ring",
    "tcp",
];
const SWITCH_KEYS: &[&str] = &["name"];
const LINK_KEYS: &[&str] = &[
    "between",
    "rate",
    "overhead",
    "delay",
    "jitter",
    "queue",
    "ecn_from",
    "codel",
    "loss",
    "reorder",
    "reorder_by",
    "duplicate",
    "corrupt",
    "mtu",
    "down",
    "back",
    "change",
];

pub fn parse(text: &str, file: &str) -> Result<Vec<(Variant, Scenario)>, ConfigError> {
    let all = with_table(text, file, variants)?;
    all.into_iter()
        .map(|variant| {
            let scenario = with_table(&fill(text, &variant), file, scenario)?;
            Ok((variant, scenario))
        })
        .collect()
}

fn with_table<T>(text: &str, file: &str, read: impl Fn(&DeTable<'_>) -> Result<T, Problem>) -> Result<T, ConfigError> {
    let wrong = |(span, what): Problem| ConfigError {
        file: file.into(),
        position: span.map(|s| line_and_column(text, s.start)),
        what,
    };
    let table = DeTable::parse(text)
        .map_err(|e| wrong((e.span(), format!("this is not TOML: {}", e.message().replace('\n', "; ")))))?;
    read(table.get_ref()).map_err(wrong)
}

fn scenario(root: &DeTable<'_>) -> Result<Scenario, Problem> {
    for key in root.keys() {
        if !SECTIONS.contains(&key.get_ref().as_ref()) {
            let hint = nearest(key.get_ref(), SECTIONS).map_or_else(
                || "the sections are [simulation], [matrix], [[host]], [[switch]], [[link]] and [[traffic]]".to_owned(),
                |k| format!("did you mean `{k}`?"),
            );
            return Err((Some(key.span()), format!("{}: no such section; {hint}", key.get_ref())));
        }
    }
    let empty = Spanned::new(0..0, DeTable::new());
    let simulation = match root.get("simulation") {
        None => None,
        Some(v) => Some(table(v, "simulation")?),
    };
    let s = Section::new("simulation", simulation.as_ref().unwrap_or(&empty), SIMULATION_KEYS)?;
    let duration = s.text("duration", time)?.unwrap_or(Duration::from_secs(10));
    let seed = s.number("seed", 0, i64::MAX as u64)?.unwrap_or(1);
    let sample = s.text("sample", time)?.unwrap_or(duration / 300).max(Duration::from_micros(1));
    let arp = s.text("neighbors", |t| choice(t, &[("arp", true), ("static", false)]))?.unwrap_or(true);
    if duration.is_zero() {
        return Err(s.wrong("duration", "must be more than 0"));
    }

    let mut b = Builder::default();
    each(root, "host", |t| b.host(t))?;
    if b.hosts.is_empty() {
        return Err((None, "there is no [[host]]; a scenario needs two (see config/sim/)".into()));
    }
    each(root, "switch", |t| b.switch(t))?;
    each(root, "link", |t| b.link(t))?;
    each(root, "traffic", |t| b.traffic(t))?;
    let mut scenario =
        Scenario { duration, seed, sample, hosts: b.hosts, switches: b.switches, links: b.links, traffic: b.traffic };
    for (index, span) in b.traffic_spans.into_iter().enumerate() {
        connected(&scenario, index).map_err(|what| (Some(span), what))?;
    }
    if !arp {
        without_arp(&mut scenario);
    }
    Ok(scenario)
}

/// Whether all hosts of a traffic can reach each other.
fn connected(scenario: &Scenario, index: usize) -> Result<(), String> {
    let t = &scenario.traffic[index];
    for &from in &t.from {
        for &to in &t.to {
            if scenario.path(from, to).is_none() {
                let (a, b) = (scenario.node_name(from), scenario.node_name(to));
                return Err(format!("traffic.to: no link leads from {a} to {b}; add a [[link]]"));
            }
            let family = |h: usize| scenario.hosts[h].config.stack.addresses[0].address.is_ipv4();
            if family(from) != family(to) {
                return Err("traffic.to: both ends must be IPv4, or both IPv6".into());
            }
        }
    }
    Ok(())
}

/// Hosts that talk know each other from the start, and say nothing else.
fn without_arp(scenario: &mut Scenario) {
    let known: Vec<StaticNeighbor> = scenario
        .hosts
        .iter()
        .map(|h| StaticNeighbor { address: h.config.stack.addresses[0].address, mac: h.config.stack.mac })
        .collect();
    for host in &mut scenario.hosts {
        host.config.stack.neighbor_mode = NeighborMode::External;
    }
    for t in &scenario.traffic {
        for &from in &t.from {
            for &to in &t.to {
                scenario.hosts[from].config.stack.neighbors.push(known[to]);
                scenario.hosts[to].config.stack.neighbors.push(known[from]);
            }
        }
    }
}

pub fn table<'i>(value: &Spanned<DeValue<'i>>, name: &str) -> Result<Spanned<DeTable<'i>>, Problem> {
    match value.get_ref() {
        DeValue::Table(t) => Ok(Spanned::new(value.span(), t.clone())),
        _ => Err((Some(value.span()), format!("{name}: must be a table"))),
    }
}

/// Calls `read` with every `[[name]]`.
fn each<'i>(
    root: &DeTable<'i>,
    name: &str,
    mut read: impl FnMut(&Spanned<DeTable<'i>>) -> Result<(), Problem>,
) -> Result<(), Problem> {
    let Some(list) = root.get(name) else { return Ok(()) };
    let right = || format!("{name}: write [[{name}]], with two brackets");
    let items = list.get_ref().as_array().ok_or_else(|| (Some(list.span()), right()))?;
    for item in items.iter() {
        read(&table(item, name).map_err(|(span, _)| (span, right()))?)?;
    }
    Ok(())
}

/// What was read so far.
#[derive(Default)]
struct Builder {
    hosts: Vec<HostSpec>,
    switches: Vec<String>,
    links: Vec<LinkSpec>,
    traffic: Vec<TrafficSpec>,
    traffic_spans: Vec<std::ops::Range<usize>>,
    /// Nodes by name; a name of several hosts stands for all of them.
    names: HashMap<String, Vec<usize>>,
    /// Ports that are taken on hosts.
    taken: HashMap<(usize, u16), String>,
}

impl Builder {
    fn name(&mut self, s: &Section<'_, '_>, nodes: Vec<usize>) -> Result<String, Problem> {
        let name = s.text("name", |t| {
            let fits =
                !t.is_empty() && t.len() <= 64 && t.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
            fits.then(|| t.to_owned()).ok_or("must be 1 to 64 letters, digits, '-', '_' or '.'".into())
        })?;
        let name = name.ok_or_else(|| s.wrong("name", "is missing"))?;
        if self.names.insert(name.clone(), nodes).is_some() {
            return Err(s.wrong("name", format!("there are two nodes called \"{name}\"")));
        }
        Ok(name)
    }

    fn host(&mut self, t: &Spanned<DeTable<'_>>) -> Result<(), Problem> {
        let s = Section::new("host", t, HOST_KEYS)?;
        let count = s.number("count", 1, 65_000)?.unwrap_or(1) as usize;
        let first = self.hosts.len();
        let name = self.name(&s, (first..first + count).collect())?;
        let (address, prefix_bits) = match s.text("address", prefix)? {
            Some(given) => given,
            // 10.0.0.0/8, from 10.0.0.1 on in the order of the file.
            None => (IpAddr::from((0x0a00_0001u32 + first as u32).to_be_bytes()), 8),
        };
        let config = host_config(&s, t, InterfaceAddress { address, prefix_bits })?;
        for n in 0..count {
            let mut config = config.clone();
            let mine = InterfaceAddress { address: plus(address, n as u32), prefix_bits };
            let alone = LocalConfig::new(HostAddress(mine));
            (config.stack.addresses, config.stack.mac) = (alone.stack.addresses, alone.stack.mac);
            if self.hosts.iter().any(|h| h.config.stack.addresses[0].address == mine.address) {
                return Err(s.wrong("address", format!("two hosts have {}", mine.address)));
            }
            let name = if count == 1 { name.clone() } else { format!("{name}{}", n + 1) };
            if count > 1 && self.names.insert(name.clone(), vec![first + n]).is_some() {
                return Err(s.wrong("name", format!("there are two nodes called \"{name}\"")));
            }
            self.hosts.push(HostSpec { name, config });
        }
        Ok(())
    }

    fn switch(&mut self, t: &Spanned<DeTable<'_>>) -> Result<(), Problem> {
        let s = Section::new("switch", t, SWITCH_KEYS)?;
        let node = self.hosts.len() + self.switches.len();
        let name = self.name(&s, vec![node])?;
        self.switches.push(name);
        Ok(())
    }

    /// The nodes that a name stands for.
    fn nodes(&self, name: &str) -> Result<Vec<usize>, String> {
        self.names.get(name).cloned().ok_or_else(|| {
            let mut known: Vec<&str> = self.names.keys().map(String::as_str).collect();
            known.sort_unstable();
            let hint = nearest(name, &known).map_or_else(
                || format!("there are: {}", known.iter().take(10).copied().collect::<Vec<_>>().join(", ")),
                |k| format!("did you mean \"{k}\"?"),
            );
            format!("there is no host or switch \"{name}\"; {hint}")
        })
    }

    /// Nodes of a key that holds a name or a list of names.
    fn several(&self, s: &Section<'_, '_>, key: &'static str) -> Result<Vec<usize>, Problem> {
        let one = |v: &DeValue<'_>| self.nodes(v.as_str().ok_or("must be a name, or a list of names")?);
        let found = s.any(key, |v| match v.as_array() {
            Some(list) => {
                let all: Result<Vec<_>, String> = list.iter().map(|v| one(v.get_ref())).collect();
                all.map(|all| all.concat())
            }
            None => one(v),
        })?;
        let found = found.ok_or_else(|| s.wrong(key, "is missing"))?;
        if found.is_empty() {
            return Err(s.wrong(key, "must name at least one"));
        }
        Ok(found)
    }

    fn link(&mut self, t: &Spanned<DeTable<'_>>) -> Result<(), Problem> {
        let s = Section::new("link", t, LINK_KEYS)?;
        let ends = s.texts("between", |name| self.nodes(name))?;
        let [a, b] = <[Vec<usize>; 2]>::try_from(ends)
            .map_err(|_| s.wrong("between", "must be two names, as in between = [\"client\", \"server\"]"))?;
        let forth = way(&s, &LinkConfig::default())?;
        let back = match s.value("back") {
            None => forth.clone(),
            Some(v) => back(v, &forth)?,
        };
        let mut changes = Vec::new();
        let (mut then_forth, mut then_back) = (forth.clone(), back.clone());
        let mut last = Instant::ZERO;
        let list = s.list("change", |v| match v.get_ref() {
            DeValue::Table(t) => Ok(Spanned::new(v.span(), t.clone())),
            _ => Err("must be tables: [[link.change]]".into()),
        })?;
        for change in &list {
            let c = Section::new("link.change", change, WAY_KEYS)?;
            let at = c.text("at", time)?.ok_or_else(|| c.wrong("at", "is missing; say when, as in at = \"10s\""))?;
            let at = Instant::ZERO + at;
            if at < last {
                return Err(c.wrong("at", "must not be before the change above"));
            }
            last = at;
            // What it says holds in both directions, but for what its `back` says.
            then_forth = way(&c, &then_forth)?;
            then_back = way(&c, &then_back)?;
            if let Some(v) = c.value("back") {
                then_back = self::back(v, &then_back)?;
            }
            changes.push((at, then_forth.clone(), then_back.clone()));
        }
        for &a in &a {
            for &b in &b {
                if a == b {
                    return Err(s.wrong("between", "a node can't be linked to itself"));
                }
                let is_host = |n: usize| n < self.hosts.len();
                let linked = |n: usize| self.links.iter().any(|l| l.ends.0 == n || l.ends.1 == n);
                if let Some(twice) = [a, b].into_iter().find(|&n| is_host(n) && linked(n)) {
                    let what = format!(
                        "{} has a link already; a host has one: put a [[switch]] between",
                        self.hosts[twice].name
                    );
                    return Err(s.wrong("between", what));
                }
                self.links.push(LinkSpec {
                    ends: (a, b),
                    forth: forth.clone(),
                    back: back.clone(),
                    changes: changes.clone(),
                });
            }
        }
        Ok(())
    }

    fn hosts_of(&self, s: &Section<'_, '_>, key: &'static str) -> Result<Vec<usize>, Problem> {
        let nodes = self.several(s, key)?;
        if nodes.iter().any(|&n| n >= self.hosts.len()) {
            return Err(s.wrong(key, "a switch has no programs; name hosts"));
        }
        Ok(nodes)
    }

    fn traffic(&mut self, t: &Spanned<DeTable<'_>>) -> Result<(), Problem> {
        let s = Section::new("traffic", t, TRAFFIC_KEYS)?;
        let (from, to) = (self.hosts_of(&s, "from")?, self.hosts_of(&s, "to")?);
        if let Some(&both) = from.iter().find(|n| to.contains(n)) {
            return Err(s.wrong("to", format!("{} is in `from` too", self.hosts[both].name)));
        }
        let kind = traffic_kind(&s)?;
        if matches!(kind, Kind::Incast(_)) && from.len() != 1 {
            return Err(s.wrong("from", "of an incast must be one host: it asks all of `to`"));
        }
        let number = self.traffic.len();
        let port = s.number("port", 1, 65_535)?.map_or(5001 + number as u16, |p| p as u16);
        let name = s.text("name", |t| Ok(t.to_owned()))?.unwrap_or_else(|| format!("{}-{}", kind.word(), number + 1));
        for &host in &to {
            if let Some(other) = self.taken.insert((host, port), name.clone()) {
                let what = format!("port {port} of {} is taken by \"{other}\"", self.hosts[host].name);
                return Err(s.wrong("port", what));
            }
        }
        let backlog = s.number("backlog", 1, 1 << 20)?.unwrap_or(4096) as u32;
        let bar = s.text("bar", |t| choice(t, &[("law", true), ("none", false)]))?.unwrap_or(false);
        self.traffic_spans.push(t.span());
        self.traffic.push(TrafficSpec { name, kind, from, to, port, backlog, bar });
        Ok(())
    }
}

fn host_config(
    s: &Section<'_, '_>,
    t: &Spanned<DeTable<'_>>,
    address: InterfaceAddress,
) -> Result<LocalConfig, Problem> {
    let mut config = LocalConfig::new(HostAddress(address));
    let most = u64::from(MAX_SLOTS);
    let sockets = s.number("sockets", 1, most)?.unwrap_or(4096) as u32;
    let connections = s.number("connections", 1, most)?.unwrap_or(4096) as u32;
    let buffer = |key| -> Result<u32, Problem> {
        let bytes = s.any(key, size)?.unwrap_or(128 << 10);
        let fits = bytes.is_power_of_two() && (MIN_RING_BYTES.into()..=u64::from(MAX_RING_BYTES)).contains(&bytes);
        let right = format!("must be a power of two from {MIN_RING_BYTES} to {MAX_RING_BYTES} bytes");
        if fits { Ok(bytes as u32) } else { Err(s.wrong(key, right)) }
    };
    let pool = s.any("buffer_pool", size)?.unwrap_or(config.geometry.pool_bytes);
    if pool > MAX_POOL_BYTES {
        return Err(s.wrong("buffer_pool", format!("must be at most {MAX_POOL_BYTES} bytes")));
    }
    config.geometry = Geometry {
        shards: 1,
        open_slots: sockets,
        accept_slots: connections,
        rx_bytes: buffer("rx_buffer")?,
        tx_bytes: buffer("tx_buffer")?,
        // What a stream needs beyond its own rings; addresses only, until it is used.
        pool_bytes: pool.next_multiple_of(GRANULE_BYTES),
    }
    .validate()
    .map_err(|e| (Some(t.span()), format!("host: {e} (sockets + connections)")))?;
    if let Some(mtu) = s.number("mtu", 1280, 9000)? {
        config.stack.mtu = mtu as usize;
    }
    if let Some(range) = s.text("ephemeral_ports", ports)? {
        config.stack.ephemeral_ports = range;
    }
    if let Some(frames) = s.number("transmit_ring", 1, 1 << 20)? {
        config.transmit_ring = frames as usize;
    }
    let slots = (sockets + connections) as usize;
    let mut limits = Limits { connections: slots.max(1024) * 2, ..Limits::default() };
    limits.half_open = limits.half_open.max(connections as usize);
    if let Some(v) = s.value("tcp") {
        let tcp = crate::config::file::tcp(&table(v, "host.tcp")?)?;
        config.stack.tcp = tcp.stack;
        limits.half_open = tcp.half_open.unwrap_or(limits.half_open);
        limits.time_wait = tcp.time_wait_records.unwrap_or(limits.time_wait);
    }
    config.stack.limits = limits;
    Ok(config)
}

/// The n-th address after this one.
fn plus(address: IpAddr, n: u32) -> IpAddr {
    match address {
        IpAddr::V4(a) => IpAddr::from(u32::from(a).wrapping_add(n).to_be_bytes()),
        IpAddr::V6(a) => IpAddr::from(u128::from(a).wrapping_add(n.into()).to_be_bytes()),
    }
}
