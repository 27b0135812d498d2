//! TOML into [`Config`]. `toml` finds syntax errors and their places; here are the meanings.

use std::time::Duration;

use sidestep_shm::Geometry;
use sidestep_shm::split::GRANULE_BYTES;
use sidestep_stack::{Congestion, Ecn, FastOpen, InterfaceAddress, Route, StaticNeighbor};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::section::{Problem, Section, line_and_column, whole};
use super::values::{address, choice, destination, duration, mac, nearest, ports, prefix};
use super::*;

pub fn parse(text: &str, file: &str) -> Result<Config, ConfigError> {
    let wrong = |(span, what): Problem| ConfigError {
        file: file.into(),
        position: span.map(|s| line_and_column(text, s.start)),
        what,
    };
    let table = DeTable::parse(text)
        .map_err(|e| wrong((e.span(), format!("this is not TOML: {}", e.message().replace('\n', "; ")))))?;
    config(&table).map_err(wrong)
}

/// Costs less than can be measured, and finds thousands of requests a second under load.
const DEFAULT_LATENCY_EVERY: u32 = 64;

const ENGINE_KEYS: &[&str] = &["control", "seed", "heartbeat_timeout", "latency_every"];
const INTERFACE_KEYS: &[&str] = &[
    "name",
    "backend",
    "queues",
    "cores",
    "addresses",
    "routes",
    "neighbors",
    "mtu",
    "mac",
    "sharing",
    "kernel_ports",
    "ephemeral_ports",
    "poll",
    "spin",
    "attach",
    "zero_copy",
    "busy_poll",
    "large_sends",
    "rings",
];
const RING_KEYS: &[&str] = &["fill", "rx", "tx", "completion", "frames", "frame_bytes"];
const PROGRAM_KEYS: &[&str] = &[
    "sockets",
    "connections",
    "rx_buffer",
    "tx_buffer",
    "buffer_pool",
    "spin",
    "loopback",
    "syscalls",
    "exclude",
    "kernel_destinations",
];
const TCP_KEYS: &[&str] = &[
    "congestion",
    "ecn",
    "fast_open",
    "pacing",
    "slow_start_after_idle",
    "tail_loss_probes",
    "min_rto",
    "max_rto",
    "delayed_ack",
    "time_wait",
    "fin_timeout",
    "keepalive_idle",
    "keepalive_interval",
    "keepalive_probes",
    "syn_retries",
    "synack_retries",
    "data_retries",
    "timestamps",
    "window_scaling",
    "sack",
    "mtu_probing",
    "rmem",
    "wmem",
    "half_open",
    "time_wait_records",
];

fn config(root: &Spanned<DeTable<'_>>) -> Result<Config, Problem> {
    let sections = ["engine", "interface", "programs", "tcp"];
    for key in root.get_ref().keys() {
        if !sections.contains(&key.get_ref().as_ref()) {
            let hint = nearest(key.get_ref(), &sections).map_or_else(
                || "the sections are [engine], [[interface]], [programs] and [tcp]".to_owned(),
                |k| format!("did you mean `{k}`?"),
            );
            return Err((Some(key.span()), format!("{}: no such section; {hint}", key.get_ref())));
        }
    }
    let empty = Spanned::new(0..0, DeTable::new());
    let table = |name: &str| match root.get_ref().get(name) {
        None => Ok(None),
        Some(v) => match v.get_ref() {
            DeValue::Table(t) => Ok(Some(Spanned::new(v.span(), t.clone()))),
            _ => Err((Some(v.span()), format!("{name}: must be a section: [{name}]"))),
        },
    };
    let engine = engine(table("engine")?.as_ref().unwrap_or(&empty))?;
    let tcp = tcp(table("tcp")?.as_ref().unwrap_or(&empty))?;
    let Some(list) = root.get_ref().get("interface") else {
        return Err((
            None,
            "there is no [[interface]] section; it says where frames come from (see config/veth-lab.toml)".into(),
        ));
    };
    let DeValue::Array(list_items) = list.get_ref() else {
        return Err((Some(list.span()), "interface: write [[interface]], with two brackets".into()));
    };
    let mut interfaces = Vec::new();
    for item in list_items.iter() {
        let DeValue::Table(t) = item.get_ref() else {
            return Err((Some(item.span()), "interface: write [[interface]], with two brackets".into()));
        };
        if !interfaces.is_empty() {
            return Err((
                Some(item.span()),
                "interface: an engine has one interface as yet; start a second engine for the other".into(),
            ));
        }
        interfaces.push(interface(&Spanned::new(item.span(), t.clone()))?);
    }
    let shards = interfaces.first().map_or(1, |i| i.queues.len() as u32);
    let alone = interfaces.iter().all(|i| i.backend == Backend::None);
    let programs = programs(table("programs")?.as_ref().unwrap_or(&empty), shards, alone)?;
    Ok(Config { engine, interfaces, programs, tcp })
}

fn engine(table: &Spanned<DeTable<'_>>) -> Result<EngineSection, Problem> {
    let s = Section::new("engine", table, ENGINE_KEYS)?;
    let control = s.text("control", |t| {
        // sun_path of unix(7) has 108 bytes.
        let fits = !t.is_empty() && t.len() < 108 && (t.starts_with('/') || t.starts_with('@'));
        fits.then(|| t.to_owned()).ok_or("must be an absolute path, or '@' and a name, of less than 108 bytes".into())
    })?;
    let seed = s.number("seed", 0, i64::MAX as u64)?;
    let heartbeat_timeout = s.text("heartbeat_timeout", duration)?.unwrap_or(Duration::from_secs(1));
    if heartbeat_timeout < Duration::from_millis(500) {
        return Err(s.wrong("heartbeat_timeout", "must be 500ms or more (a shard beats every 125 ms)"));
    }
    let latency_every = s.number("latency_every", 0, 1 << 30)?.map_or(DEFAULT_LATENCY_EVERY, |n| n as u32);
    Ok(EngineSection { control, seed, heartbeat_timeout, latency_every })
}

fn interface(table: &Spanned<DeTable<'_>>) -> Result<Interface, Problem> {
    let s = Section::new("interface", table, INTERFACE_KEYS)?;
    let name = s.text("name", |t| {
        // dev_valid_name() of the kernel; control characters would only hide in messages.
        let strange = |c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control();
        let fits = !t.is_empty() && t.len() < 16 && t != "." && t != ".." && !t.contains(strange);
        fits.then(|| t.to_owned()).ok_or(format!("\"{t}\" can't be an interface (1 to 15 characters; see `ip link`)"))
    })?;
    let backend = s.text("backend", |t| {
        choice(
            t,
            &[
                ("af_xdp", Backend::AfXdp),
                ("tap", Backend::Tap),
                ("af_packet", Backend::AfPacket),
                ("pipe", Backend::Pipe),
                ("none", Backend::None),
            ],
        )
    })?;
    let backend = backend.unwrap_or(Backend::AfXdp);
    let name = name.or_else(|| (backend == Backend::None).then(|| "none".into()));
    let name = name.ok_or_else(|| s.wrong("name", "is missing; say which interface, as in name = \"eth1\""))?;
    let queues = queues(&s)?;
    let cores: Vec<usize> = s.list("cores", |v| whole(v, 0, 1023).map(|n| n as usize))?;
    if !cores.is_empty() && cores.len() != queues.len() {
        let what =
            format!("{} cores for {} queues; name one core a queue, or leave the key out", cores.len(), queues.len());
        return Err(s.wrong("cores", what));
    }
    let addresses =
        s.texts("addresses", |t| prefix(t).map(|(address, prefix_bits)| InterfaceAddress { address, prefix_bits }))?;
    if addresses.is_empty() && backend != Backend::None {
        return Err(
            s.wrong("addresses", "is missing; give the engine at least one, as in addresses = [\"10.0.0.2/24\"]")
        );
    }
    let routes = s.list("routes", route)?;
    let neighbors = s.list("neighbors", neighbor)?;
    let mtu = s.number("mtu", 1280, 9000)?.map(|n| n as usize);
    let mac = s.text("mac", mac)?;
    let sharing = s.text("sharing", |t| choice(t, &[("own", Sharing::Own), ("shared", Sharing::Shared)]))?;
    let sharing = sharing.unwrap_or(Sharing::Own);
    if sharing == Sharing::Shared && backend != Backend::AfXdp {
        return Err(s.wrong(
            "sharing",
            "\"shared\" needs backend = \"af_xdp\": only the XDP program can divide an address by port",
        ));
    }
    let kernel_ports = s.texts("kernel_ports", ports)?;
    let default_ports = match (sharing, backend) {
        // Nobody else has any of them: as many as the kernel takes (net.ipv4.ip_local_port_range).
        (_, Backend::None) => (32768, 60999),
        (Sharing::Own, _) => (49152, 65535),
        (Sharing::Shared, _) => (61000, 65535),
    };
    let ephemeral_ports = s.text("ephemeral_ports", ports)?.unwrap_or(default_ports);
    if usize::from(ephemeral_ports.1 - ephemeral_ports.0) + 1 < queues.len() {
        return Err(s.wrong("ephemeral_ports", "fewer ports than queues; each queue needs some"));
    }
    let poll = s.text("poll", |t| {
        choice(t, &[("busy", Poll::Busy), ("adaptive", Poll::Adaptive), ("interrupt", Poll::Interrupt)])
    })?;
    let spin = s.text("spin", duration)?.unwrap_or(Duration::from_micros(50));
    let attach = s.text("attach", |t| {
        choice(t, &[("auto", AttachMode::Auto), ("native", AttachMode::Native), ("generic", AttachMode::Generic)])
    })?;
    let zero_copy = s.text("zero_copy", |t| {
        choice(t, &[("auto", ZeroCopy::Auto), ("require", ZeroCopy::Require), ("never", ZeroCopy::Never)])
    })?;
    let busy_poll = s.boolean("busy_poll")?.unwrap_or(false);
    let large_sends = s.boolean("large_sends")?.unwrap_or(true);
    let rings = rings(&s)?;
    Ok(Interface {
        name,
        backend,
        queues,
        cores,
        addresses,
        routes,
        neighbors,
        mtu,
        mac,
        sharing,
        kernel_ports,
        ephemeral_ports,
        poll: poll.unwrap_or(Poll::Adaptive),
        spin,
        attach: attach.unwrap_or(AttachMode::Auto),
        zero_copy: zero_copy.unwrap_or(ZeroCopy::Auto),
        busy_poll,
        large_sends,
        rings,
    })
}

/// A count, or a list of queue numbers.
fn queues(s: &Section<'_, '_>) -> Result<Vec<u32>, Problem> {
    let most = crate::xdp::MAX_QUEUES;
    let Some(value) = s.value("queues") else { return Ok(vec![0]) };
    if value.get_ref().as_array().is_none() {
        let count = whole(value, 1, most.into()).map_err(|e| s.problem("queues", value.span(), e))?;
        return Ok((0..count as u32).collect());
    }
    let list = s.list("queues", |v| whole(v, 0, u64::from(most) - 1).map(|n| n as u32))?;
    let mut sorted = list.clone();
    sorted.sort_unstable();
    sorted.dedup();
    if list.is_empty() || sorted.len() != list.len() {
        return Err(s.problem("queues", value.span(), "name each queue once, and at least one"));
    }
    Ok(list)
}

fn rings(s: &Section<'_, '_>) -> Result<Rings, Problem> {
    let defaults = crate::xdp::XdpOptions::default();
    let mut rings = Rings {
        fill: defaults.fill,
        rx: defaults.rx,
        tx: defaults.tx,
        completion: defaults.completion,
        frames: defaults.frames,
        frame_bytes: defaults.frame_bytes,
    };
    let Some(value) = s.value("rings") else { return Ok(rings) };
    let DeValue::Table(t) = value.get_ref() else {
        return Err(s.problem("rings", value.span(), "must be a table, as in rings = { rx = 1024, tx = 1024 }"));
    };
    let table = Spanned::new(value.span(), t.clone());
    let r = Section::new("interface.rings", &table, RING_KEYS)?;
    let power = |key: &'static str, field: &mut u32, least, most| match r.number(key, least, most)? {
        Some(n) if !n.is_power_of_two() => {
            Err(r.wrong(key, format!("{n} is no power of two; {} is", n.next_power_of_two())))
        }
        Some(n) => {
            *field = n as u32;
            Ok(())
        }
        None => Ok(()),
    };
    power("fill", &mut rings.fill, 64, 65_536)?;
    power("rx", &mut rings.rx, 64, 65_536)?;
    power("tx", &mut rings.tx, 64, 65_536)?;
    power("completion", &mut rings.completion, 64, 65_536)?;
    power("frames", &mut rings.frames, 128, 1 << 20)?;
    power("frame_bytes", &mut rings.frame_bytes, 2048, 4096)?;
    if rings.frames <= rings.fill {
        let what =
            format!("frames ({}) must be more than fill ({}): frames to send are needed too", rings.frames, rings.fill);
        return Err(s.problem("rings", value.span(), what));
    }
    Ok(rings)
}

fn route(value: &Spanned<DeValue<'_>>) -> Result<Route, String> {
    let right = "write { to = \"default\", via = \"10.0.0.1\" }";
    let table = value.get_ref().as_table().ok_or(right)?;
    let field = |key: &str| table.get(key).and_then(|v| v.get_ref().as_str());
    for key in table.keys() {
        if !["to", "via"].contains(&key.get_ref().as_ref()) {
            return Err(format!("no such key in a route: {}; {right}", key.get_ref()));
        }
    }
    let gateway = field("via").map(address).transpose()?;
    let (network, prefix_bits) = destination(field("to").ok_or(right)?, gateway)?;
    if gateway.is_some_and(|g| g.is_ipv4() != network.is_ipv4()) {
        return Err("`to` and `via` must be of one address family".into());
    }
    Ok(Route { network, prefix_bits, gateway })
}

fn neighbor(value: &Spanned<DeValue<'_>>) -> Result<StaticNeighbor, String> {
    let right = "write { address = \"10.0.0.1\", mac = \"02:00:00:00:00:01\" }";
    let table = value.get_ref().as_table().ok_or(right)?;
    let field = |key: &str| table.get(key).and_then(|v| v.get_ref().as_str()).ok_or(right);
    Ok(StaticNeighbor { address: address(field("address")?)?, mac: mac(field("mac")?)? })
}

/// `alone`: there is no interface, so loopback is what the engine is for.
fn programs(table: &Spanned<DeTable<'_>>, shards: u32, alone: bool) -> Result<Programs, Problem> {
    let s = Section::new("programs", table, PROGRAM_KEYS)?;
    let most = u64::from(sidestep_shm::layout::MAX_SLOTS);
    let sockets = s.number("sockets", 1, most)?.unwrap_or(16_384) as u32;
    let connections = s.number("connections", 1, most)?.unwrap_or(16_384) as u32;
    let buffer = |key| -> Result<u32, Problem> {
        let (least, most) = (sidestep_shm::layout::MIN_RING_BYTES, sidestep_shm::layout::MAX_RING_BYTES);
        let bytes = s.number(key, least.into(), most.into())?.unwrap_or(131_072);
        if !bytes.is_power_of_two() {
            return Err(s.wrong(key, format!("{bytes} is no power of two; {} is", bytes.next_power_of_two())));
        }
        Ok(bytes as u32)
    };
    let (rx_buffer, tx_buffer) = (buffer("rx_buffer")?, buffer("tx_buffer")?);
    let most_pool = sidestep_shm::layout::MAX_POOL_BYTES / u64::from(shards);
    let buffer_pool = s.number("buffer_pool", 0, most_pool)?.unwrap_or(4 << 30).next_multiple_of(GRANULE_BYTES);
    let spin = s.text("spin", duration)?.unwrap_or(Duration::from_micros(50));
    let loopback = s.text("loopback", |t| choice(t, &[("kernel", Loopback::Kernel), ("stack", Loopback::Stack)]))?;
    let kernel_destinations = s.texts("kernel_destinations", prefix)?;
    // Two rules are for loopback.
    let most_rules = sidestep_shm::wire::MAX_ROUTE_RULES - 2;
    if kernel_destinations.len() > most_rules {
        return Err(s.wrong("kernel_destinations", format!("at most {most_rules}")));
    }
    let (open_slots, accept_slots, rx_bytes, tx_bytes) = (sockets, connections, rx_buffer, tx_buffer);
    Geometry { shards, open_slots, accept_slots, rx_bytes, tx_bytes, pool_bytes: buffer_pool }
        .validate()
        .map_err(|e| (Some(table.span()), format!("programs: {e} (sockets + queues x connections)")))?;
    let loopback = loopback.unwrap_or(if alone { Loopback::Stack } else { Loopback::Kernel });
    let syscalls = s.text("syscalls", |t| choice(t, &Syscalls::NAMES))?.unwrap_or(Syscalls::Preload);
    let exclude = s.texts("exclude", |name| match name.is_empty() || name.contains(['/', ':']) {
        true => Err("must be a program's name, without its folder".into()),
        false => Ok(name.to_owned()),
    })?;
    Ok(Programs {
        sockets,
        connections,
        rx_buffer,
        tx_buffer,
        buffer_pool,
        spin,
        loopback,
        syscalls,
        exclude,
        kernel_destinations,
    })
}

/// As Linux's tcp_ecn: 0, 2 and 1.
pub(super) const ECN_MODES: [(&str, Ecn); 3] = [("off", Ecn::Off), ("accept", Ecn::Accept), ("request", Ecn::Request)];

/// The low bits of Linux's tcp_fastopen. The others are for networks in which nobody forges an address.
pub(super) const FAST_OPEN_MODES: [(&str, u32); 4] = [("off", 0), ("client", 1), ("server", 2), ("both", 3)];

/// The `[tcp]` section.
pub fn tcp(table: &Spanned<DeTable<'_>>) -> Result<Tcp, Problem> {
    let s = Section::new("tcp", table, TCP_KEYS)?;
    let mut tcp = Tcp::default();
    let t = &mut tcp.stack;
    let [a, b, c, d] = Congestion::ALL.map(|c| (c.name(), Some(c)));
    if let Some(Some(congestion)) = s.text("congestion", |t| choice(t, &[a, b, c, d, ("kernel", None)]))? {
        (t.congestion, tcp.chosen) = (congestion, true);
    }
    if let Some(mode) = s.text("ecn", |t| choice(t, &ECN_MODES))? {
        t.ecn = mode;
    }
    if let Some(bits) = s.text("fast_open", |t| choice(t, &FAST_OPEN_MODES))? {
        t.fast_open = FastOpen::from_bits(bits);
    }
    for (key, field) in [
        ("min_rto", &mut t.min_rto),
        ("max_rto", &mut t.max_rto),
        ("delayed_ack", &mut t.delayed_ack),
        ("time_wait", &mut t.time_wait),
        ("fin_timeout", &mut t.fin_timeout),
        ("keepalive_idle", &mut t.keepalive_idle),
        ("keepalive_interval", &mut t.keepalive_interval),
    ] {
        if let Some(d) = s.text(key, duration)? {
            *field = d;
        }
    }
    for (key, field) in [
        ("syn_retries", &mut t.syn_retries),
        ("synack_retries", &mut t.synack_retries),
        ("data_retries", &mut t.data_retries),
        ("keepalive_probes", &mut t.keepalive_probes),
    ] {
        if let Some(n) = s.number(key, 1, 255)? {
            *field = n as u8;
        }
    }
    for (key, field) in [
        ("timestamps", &mut t.timestamps),
        ("window_scaling", &mut t.window_scaling),
        ("sack", &mut t.sack),
        ("mtu_probing", &mut t.mtu_probing),
        ("pacing", &mut t.pacing),
        ("slow_start_after_idle", &mut t.slow_start_after_idle),
        ("tail_loss_probes", &mut t.tail_loss_probes),
    ] {
        if let Some(b) = s.boolean(key)? {
            *field = b;
        }
    }
    for (key, field) in [("rmem", &mut t.rmem), ("wmem", &mut t.wmem)] {
        let most = u64::from(sidestep_shm::layout::MAX_RING_BYTES);
        let sizes = s.list(key, |v| whole(v, 1024, most))?;
        match sizes[..] {
            [] => {}
            [least, first, most] if least <= first && first <= most => {
                *field = [least, first, most].map(|n| n as u32);
            }
            _ => return Err(s.wrong(key, "must be three numbers of bytes, least, initial and most, in this order")),
        }
    }
    if t.min_rto > t.max_rto || t.min_rto.is_zero() {
        return Err(s.wrong("min_rto", "must be more than 0 and no more than max_rto"));
    }
    // RFC 1122 4.2.3.2: an ACK must not be held back for 500 ms or more.
    if t.delayed_ack >= Duration::from_millis(500) {
        return Err(s.wrong("delayed_ack", "must be less than 500ms (RFC 1122)"));
    }
    tcp.half_open = s.number("half_open", 16, 1 << 20)?.map(|n| n as usize);
    tcp.time_wait_records = s.number("time_wait_records", 16, 1 << 24)?.map(|n| n as usize);
    Ok(tcp)
}
