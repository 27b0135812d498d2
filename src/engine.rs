//! The engine: from a configuration to running shards, and back to a machine as it was.
//!
//! Start: facts about the device → steering program loaded → sockets and rings → shards turn → control socket open →
//! heartbeats → steering **attached last**. Stop: detached first, then everything else in reverse.

use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Context, bail};
use serde_json::json;
use sidestep_shm::Geometry;
use sidestep_shm::wire::RouteRule;
use sidestep_stack::{Instant, Limits, Mac, NeighborMode, Rss, Stack, StackConfig};

use crate::clock::{Clock, MonotonicClock};
use crate::config::{Backend, Config, DEFAULT_CONTROL, Interface, Loopback, Poll, Sharing};
use crate::control::address::mapped;
use crate::control::books::RunMessages;
use crate::control::link::LinkWatch;
use crate::control::neighbors::KernelNeighbors;
use crate::control::{Books, Control, ControlSettings, EngineGauges};
use crate::library::Seats;
use crate::port::FrameIo;
use crate::port::af_packet::AfPacketPort;
use crate::port::hooked::{HookCounters, HookMaker, Hooked};
use crate::port::none::NoPort;
use crate::port::pipe::PipePort;
use crate::port::tap::TapPort;
use crate::shard::mailbox::{Mailbox, Message, Notices};
use crate::shard::{Driven, IdlePolicy, Shard};
use crate::xdp::nic::Nic;
use crate::xdp::{Heartbeat, Steering, XdpOptions, XdpPort};

/// The stack's MTU when the device does not say and the configuration neither.
const DEFAULT_MTU: usize = 1500;

/// A running engine. Dropping it without [`Engine::stop`] stops it too.
pub struct Engine {
    control: String,
    steering: Option<Arc<Mutex<Steering>>>,
    mailboxes: Arc<[Mailbox]>,
    shards: Vec<JoinHandle<()>>,
    control_thread: Option<JoinHandle<()>>,
    gauges: Arc<EngineGauges>,
    stop: Arc<AtomicBool>,
    /// Whether the control socket's file is ours to remove.
    owns_control: bool,
    /// Set when a shard ended although nobody asked it to.
    failed: Arc<AtomicBool>,
    /// Library mode: the shards, which others turn; until [`Seats`] has them.
    driven: Option<Mutex<Vec<Box<dyn Driven>>>>,
    seats: Option<Arc<Seats>>,
}

/// What shards are built from.
struct Parts<'a> {
    interface: &'a Interface,
    nic: Option<Nic>,
    mac: Mac,
    mtu: usize,
    seed: [u8; 32],
    mailboxes: Arc<[Mailbox]>,
    notices: Arc<Notices>,
    limits: Limits,
    tcp: sidestep_stack::TcpConfig,
    latency_every: u32,
    hook: Option<(HookMaker, Arc<HookCounters>)>,
}

/// What a program that has the engine in its own process may add to the configuration.
#[derive(Default)]
pub(crate) struct Additions {
    /// One a queue, for the backend "pipe".
    pub wires: Vec<OwnedFd>,
    /// Sees every frame.
    pub hook: Option<(HookMaker, Arc<HookCounters>)>,
}

impl Engine {
    /// Starts everything that `config` says.
    ///
    /// # Errors
    /// What failed, on what, and what to do; nothing is left behind.
    pub fn start(config: &Config) -> anyhow::Result<Self> {
        Self::begin(config, None, Additions::default())
    }

    /// The same without threads for the shards: whoever has what [`Self::seats`] gives turns them.
    pub(crate) fn start_driven(config: &Config, additions: Additions) -> anyhow::Result<Self> {
        Self::begin(config, Some(Vec::new()), additions)
    }

    fn begin(config: &Config, driven: Option<Vec<Box<dyn Driven>>>, additions: Additions) -> anyhow::Result<Self> {
        let interface = config.interfaces.first().context("the configuration has no [[interface]]")?;
        let count = interface.queues.len() as u32;
        let nic = match interface.backend {
            Backend::AfXdp | Backend::AfPacket => Some(Nic::query(&interface.name)?),
            Backend::Tap | Backend::Pipe | Backend::None => None,
        };
        if let Some(nic) = &nic {
            check_addresses(interface, nic)?;
        }
        let seed = seed(config);
        let parts = Parts {
            interface,
            mac: interface.mac.or(nic.as_ref().map(|n| n.mac)).unwrap_or_else(|| made_up_mac(&seed)),
            mtu: interface.mtu.or(nic.as_ref().map(|n| n.mtu as usize)).unwrap_or(DEFAULT_MTU),
            nic,
            seed,
            mailboxes: (0..count).map(|_| Mailbox::new()).collect::<Result<Vec<_>, _>>()?.into(),
            notices: Arc::new(Notices::new()?),
            limits: config.limits(),
            tcp: config.tcp.on_this_machine(),
            latency_every: config.engine.latency_every,
            hook: additions.hook,
        };
        let control = control_name(config);
        let shared = interface.sharing == Sharing::Shared;
        let steering = if interface.backend == Backend::AfXdp { Some(load_steering(&parts, config)?) } else { None };
        let mut engine = Self {
            control: control.clone(),
            steering: None,
            mailboxes: Arc::clone(&parts.mailboxes),
            shards: Vec::new(),
            control_thread: None,
            gauges: Arc::new(EngineGauges::default()),
            stop: Arc::new(AtomicBool::new(false)),
            owns_control: false,
            failed: Arc::new(AtomicBool::new(false)),
            driven: driven.map(Mutex::new),
            seats: None,
        };
        let steering = engine.start_shards(&parts, steering, additions.wires)?.map(|s| Arc::new(Mutex::new(s)));
        engine.steering.clone_from(&steering);
        if let Some(shards) = engine.driven.take() {
            let shards = shards.into_inner().unwrap_or_else(PoisonError::into_inner);
            engine.seats = Some(Arc::new(Seats::new(shards, Arc::clone(&engine.gauges))?));
        }

        let neighbors = match &parts.nic {
            Some(nic) if shared => {
                Some(KernelNeighbors::open(nic.ifindex).context("subscribe to the kernel's neighbours")?)
            }
            _ => None,
        };
        let settings = control_settings(config, &parts)?;
        let random = u64::from_le_bytes(parts.seed[..8].try_into().unwrap_or([1; 8])) | 1;
        let (mailboxes, gauges) = (Arc::clone(&parts.mailboxes), Arc::clone(&engine.gauges));
        let run_messages =
            engine.seats.clone().map(|seats| -> RunMessages { Box::new(move |n| seats.run_messages(n)) });
        let books = Books::new(settings, mailboxes, steering.clone(), gauges, random, run_messages);
        let (notices, stop) = (Arc::clone(&parts.notices), Arc::clone(&engine.stop));
        let link = match &parts.nic {
            Some(nic) => {
                Some(LinkWatch::open(nic.ifindex, &interface.name).context("subscribe to the device's state")?)
            }
            None => None,
        };
        let failed = Arc::clone(&engine.failed);
        let thread = Control::open(&control, books, notices, neighbors, link, failed, stop).with_context(|| {
            format!(
                "open the control socket {control}; if another engine uses it, stop that one or name another socket"
            )
        })?;
        engine.owns_control = true;
        engine.control_thread =
            Some(std::thread::Builder::new().name("sidestep-control".into()).spawn(move || thread.run())?);

        if let (Some(steering), Some(nic)) = (&steering, &parts.nic) {
            let mut steering = steering.lock().map_err(|_| anyhow::anyhow!("a thread of the engine failed"))?;
            steering.attach(nic.ifindex, interface.attach)?;
        }
        Ok(engine)
    }

    /// Opens one port a queue and starts a thread for each.
    fn start_shards(
        &mut self,
        parts: &Parts<'_>,
        mut steering: Option<Steering>,
        wires: Vec<OwnedFd>,
    ) -> anyhow::Result<Option<Steering>> {
        let mut wires = wires.into_iter();
        let interface = parts.interface;
        let several = interface.queues.len() > 1;
        let heartbeat = steering.as_ref().map(Steering::heartbeat).transpose()?;
        for (number, &queue) in interface.queues.iter().enumerate() {
            let number = number as u32;
            match interface.backend {
                Backend::AfXdp => {
                    let port = XdpPort::open(&interface.name, queue, &xdp_options(interface))?;
                    if let Some(steering) = &mut steering {
                        steering.set_socket(queue, port.fd())?;
                    }
                    self.spawn(parts, number, queue, port, heartbeat.clone())?;
                }
                Backend::Tap => {
                    let port = TapPort::open(&interface.name, several)?;
                    self.spawn(parts, number, queue, port, None)?;
                }
                Backend::AfPacket => {
                    let fanout = several.then_some(std::process::id() as u16);
                    let port = AfPacketPort::open(&interface.name, fanout)?;
                    self.spawn(parts, number, queue, port, None)?;
                }
                Backend::None => self.spawn(parts, number, queue, NoPort::new(parts.mtu), None)?,
                Backend::Pipe => {
                    let wire = wires.next().context(
                        "backend = \"pipe\" takes a wire from the program that starts the library; `up` and `run` need af_xdp, tap or af_packet",
                    )?;
                    self.spawn(parts, number, queue, PipePort::from_fd(wire, parts.mtu)?, None)?;
                }
            }
        }
        Ok(steering)
    }

    fn spawn<P: FrameIo + Send + 'static>(
        &mut self,
        parts: &Parts<'_>,
        number: u32,
        queue: u32,
        port: P,
        heartbeat: Option<Heartbeat>,
    ) -> anyhow::Result<()> {
        let interface = parts.interface;
        if port.frame_capacity() < parts.mtu + 14 {
            bail!(
                "interface {}: an MTU of {} needs frames of {} bytes, and the rings have {}; set rings.frame_bytes = 4096 or a smaller mtu",
                interface.name,
                parts.mtu,
                parts.mtu + 14,
                port.frame_capacity()
            );
        }
        match &parts.hook {
            None => self.spawn_on(parts, number, queue, port, heartbeat),
            Some((maker, counters)) => {
                let port = Hooked::new(port, maker(number), number, Arc::clone(counters));
                self.spawn_on(parts, number, queue, port, heartbeat)
            }
        }
    }

    fn spawn_on<P: FrameIo + Send + 'static>(
        &mut self,
        parts: &Parts<'_>,
        number: u32,
        queue: u32,
        port: P,
        heartbeat: Option<Heartbeat>,
    ) -> anyhow::Result<()> {
        let interface = parts.interface;
        let stack = Stack::new(stack_config(parts, number, queue), shard_seed(parts.seed, number));
        let beat: Box<dyn FnMut(Instant, bool) + Send> = match heartbeat {
            Some(h) => {
                h.beat(queue, MonotonicClock.now().as_nanos());
                Box::new(move |now, flooded| {
                    h.beat(queue, now.as_nanos());
                    if flooded {
                        h.flooded(queue, now.as_nanos());
                    }
                })
            }
            None => Box::new(|_, _| {}),
        };
        let (mailboxes, notices) = (Arc::clone(&parts.mailboxes), Arc::clone(&parts.notices));
        let mut shard = Shard::new(number, port, MonotonicClock, stack, mailboxes, notices, beat);
        shard.profile_latency(parts.latency_every);
        if let Some(driven) = &mut self.driven {
            driven.get_mut().unwrap_or_else(PoisonError::into_inner).push(Box::new(shard));
            return Ok(());
        }
        let policy = match interface.poll {
            Poll::Busy => IdlePolicy::Busy,
            Poll::Adaptive => IdlePolicy::Adaptive(interface.spin),
            Poll::Interrupt => IdlePolicy::Adaptive(std::time::Duration::ZERO),
        };
        let core = interface.cores.get(number as usize).copied();
        let (failed, stop) = (Arc::clone(&self.failed), Arc::clone(&self.stop));
        let thread = std::thread::Builder::new().name(format!("sidestep-{number}")).spawn(move || {
            if let Some(core) = core
                && !core_affinity::set_for_current(core_affinity::CoreId { id: core })
            {
                tracing::warn!(
                    shard = number,
                    core,
                    "can't pin the shard to its core; it runs where the kernel puts it"
                );
            }
            // A panic here is a bug of ours; the engine stops as a whole, so that no call waits for a dead shard.
            let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| shard.run(policy)));
            if !matches!(ended, Ok(Ok(()))) {
                tracing::error!(shard = number, "the shard failed; the engine stops");
                failed.store(true, Ordering::Release);
                stop.store(true, Ordering::Release);
            }
        })?;
        self.shards.push(thread);
        Ok(())
    }

    /// The shards, for those who turn them.
    pub(crate) fn seats(&self) -> Option<&Arc<Seats>> {
        self.seats.as_ref()
    }

    /// Name of the control socket.
    #[must_use]
    pub fn control(&self) -> &str {
        &self.control
    }

    /// Blocks until `stop` says so, a tool asked the engine to stop, or a shard failed.
    pub fn wait(&self, stop: &dyn Fn() -> bool) {
        while !stop() && !self.stop.load(Ordering::Acquire) {
            std::thread::park_timeout(std::time::Duration::from_millis(50));
        }
    }

    /// Whether a part of the engine broke.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    /// Processes attached now.
    #[must_use]
    pub fn programs(&self) -> usize {
        self.gauges.programs.load(Ordering::Acquire)
    }

    /// Sockets of programs that the stacks still work for.
    #[must_use]
    pub fn open_connections(&self) -> usize {
        self.ask_all(|reply| Message::Report { reply }).iter().map(|r| r.sockets).sum()
    }

    fn ask_all<T>(&self, make: impl Fn(std::sync::mpsc::SyncSender<T>) -> Message) -> Vec<T> {
        if let Some(seats) = &self.seats {
            let ask = |n: usize| {
                let (reply, answer) = std::sync::mpsc::sync_channel(1);
                self.mailboxes[n].send(make(reply)).ok()?;
                seats.run_messages(n);
                answer.recv_timeout(crate::control::SHARD_PATIENCE).ok()
            };
            return (0..self.mailboxes.len()).filter_map(ask).collect();
        }
        self.mailboxes.iter().filter_map(|m| m.ask(&make, crate::control::SHARD_PATIENCE)).collect()
    }

    /// Stops: traffic goes to the kernel first, then the programs learn that the engine is gone.
    pub fn stop(self) {
        drop(self);
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if let Some(steering) = &self.steering
            && let Ok(mut steering) = steering.lock()
        {
            steering.detach();
        }
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.control_thread.take() {
            let _ = thread.join();
        }
        for mailbox in self.mailboxes.iter() {
            let _ = mailbox.send(Message::Stop);
        }
        for shard in self.shards.drain(..) {
            let _ = shard.join();
        }
        if let Some(seats) = &self.seats {
            seats.close();
        }
        if self.owns_control && !self.control.starts_with('@') {
            let _ = std::fs::remove_file(&self.control);
        }
    }
}

/// An address has one owner: two stacks that both answer for it would tear each other's connections down.
fn check_addresses(interface: &Interface, nic: &Nic) -> anyhow::Result<()> {
    let name = &interface.name;
    let queues = interface.queues.len();
    if interface.backend == Backend::AfXdp && (nic.rx_queues as usize) > queues {
        tracing::warn!(
            "{name} has {} receive queues and the engine takes {queues}: frames that arrive on the others stay with the \
             kernel; set queues = {0}, or reduce them (ethtool -L {name} combined {queues})",
            nic.rx_queues
        );
    }
    for address in interface.addresses.iter().map(|a| a.address) {
        let kernels = nic.addresses.contains(&address);
        match interface.sharing {
            Sharing::Own if kernels => bail!(
                "{address} is the kernel's address on {name}: set sharing = \"shared\" to share it, or take it from the \
                 kernel (ip addr del {address} dev {name})"
            ),
            Sharing::Shared if !kernels => bail!(
                "{address} is not the kernel's address on {name}: sharing = \"shared\" is for the machine's own address; \
                 add it (ip addr add) or set sharing = \"own\""
            ),
            Sharing::Own | Sharing::Shared => {}
        }
    }
    Ok(())
}

fn load_steering(parts: &Parts<'_>, config: &Config) -> anyhow::Result<Steering> {
    let mut steering = Steering::load()?;
    let addresses: Vec<IpAddr> = parts.interface.addresses.iter().map(|a| a.address).collect();
    if parts.interface.sharing == Sharing::Shared {
        steering.set_shared(&addresses)?;
        let (first, last) = parts.interface.ephemeral_ports;
        for port in first..=last {
            steering.set_port(true, port, true)?;
            steering.set_port(false, port, true)?;
        }
    } else {
        steering.set_own(&addresses)?;
    }
    // The stack has no VLAN interfaces: tagged frames stay with the kernel.
    steering.set_tagged(false)?;
    steering.set_heartbeat_timeout(config.engine.heartbeat_timeout)?;
    Ok(steering)
}

fn xdp_options(interface: &Interface) -> XdpOptions {
    let r = &interface.rings;
    XdpOptions {
        frames: r.frames,
        frame_bytes: r.frame_bytes,
        fill: r.fill,
        rx: r.rx,
        tx: r.tx,
        completion: r.completion,
        zero_copy: interface.zero_copy,
        busy_poll: interface.busy_poll,
        need_wakeup: true,
        large_sends: interface.large_sends,
    }
}

fn stack_config(parts: &Parts<'_>, number: u32, queue: u32) -> StackConfig {
    let interface = parts.interface;
    let rss = parts.nic.as_ref().and_then(|n| n.rss.as_ref()).filter(|r| r.tells_tcp_queues()).and_then(|r| {
        let indirection = r.indirection.iter().map(|&q| u16::try_from(q).ok()).collect::<Option<Vec<_>>>()?;
        Some(Rss { key: r.key.clone(), indirection, queue: queue as u16 })
    });
    StackConfig {
        mac: parts.mac,
        mtu: parts.mtu,
        addresses: interface.addresses.clone(),
        routes: interface.routes.clone(),
        neighbors: interface.neighbors.clone(),
        neighbor_mode: if interface.sharing == Sharing::Shared { NeighborMode::External } else { NeighborMode::Own },
        ephemeral_ports: port_share(interface.ephemeral_ports, number, interface.queues.len() as u32),
        // One queue: every answer comes to it.
        rss: rss.filter(|_| interface.queues.len() > 1),
        checksums: true,
        tcp: parts.tcp,
        limits: parts.limits,
    }
}

/// The part of the ephemeral range that is shard `number`'s.
pub(crate) fn port_share((first, last): (u16, u16), number: u32, shards: u32) -> (u16, u16) {
    let count = u32::from(last - first) + 1;
    let at = |n: u32| u32::from(first) + count * n / shards;
    (at(number) as u16, (at(number + 1) - 1) as u16)
}

fn control_settings(config: &Config, parts: &Parts<'_>) -> anyhow::Result<ControlSettings> {
    let interface = parts.interface;
    let programs = &config.programs;
    let geometry = Geometry {
        shards: interface.queues.len() as u32,
        open_slots: programs.sockets,
        accept_slots: programs.connections,
        rx_bytes: programs.rx_buffer,
        tx_bytes: programs.tx_buffer,
        pool_bytes: programs.buffer_pool,
    }
    .validate()?;
    let rule = |address: IpAddr, bits: u8, kernel| RouteRule {
        prefix: mapped(address),
        prefix_bits: if address.is_ipv4() { 96 + bits } else { bits },
        kernel,
    };
    let kernel_loopback = programs.loopback == Loopback::Kernel;
    let mut rules = vec![
        rule(std::net::Ipv4Addr::LOCALHOST.into(), 8, kernel_loopback),
        rule(std::net::Ipv6Addr::LOCALHOST.into(), 128, kernel_loopback),
    ];
    rules.extend(programs.kernel_destinations.iter().map(|d| rule(d.0, d.1, true)));
    Ok(ControlSettings {
        geometry,
        spin_us: u32::try_from(programs.spin.as_micros()).unwrap_or(u32::MAX),
        rules,
        addresses: interface.addresses.iter().map(|a| a.address).collect(),
        loopback_in_stack: !kernel_loopback,
        ephemeral_ports: interface.ephemeral_ports,
        shared_address: interface.sharing == Sharing::Shared,
        kernel_ports: interface.kernel_ports.clone(),
        facts: json!({
            "version": env!("CARGO_PKG_VERSION"),
            "pid": std::process::id(),
            "interface": interface.name,
            "backend": format!("{:?}", interface.backend),
            "queues": interface.queues,
            "cores": interface.cores,
            "mtu": parts.mtu,
            "syscalls": programs.syscalls.name(),
            "exclude": programs.exclude,
        }),
    })
}

/// The control socket of a configuration, or one that nobody else has.
fn control_name(config: &Config) -> String {
    config.engine.control.clone().unwrap_or_else(|| DEFAULT_CONTROL.into())
}

/// All randomness of the engine comes from here: the configuration's seed, or the kernel's.
fn seed(config: &Config) -> [u8; 32] {
    let mut seed = [0; 32];
    match config.engine.seed {
        Some(n) => seed[..8].copy_from_slice(&n.to_le_bytes()),
        None => {
            let mut filled = 0;
            while filled < seed.len() {
                match rustix::rand::getrandom(&mut seed[filled..], rustix::rand::GetRandomFlags::empty()) {
                    Ok(n) => filled += n,
                    Err(rustix::io::Errno::INTR) => {}
                    Err(error) => {
                        tracing::error!(%error, "no random numbers from the kernel; the clock must do");
                        seed[filled..filled + 8].copy_from_slice(&MonotonicClock.now().as_nanos().to_le_bytes());
                        break;
                    }
                }
            }
        }
    }
    seed
}

/// Shards share the keys (a flow's ISN must not depend on where it lands), but not the sequence of draws.
pub(crate) fn shard_seed(mut seed: [u8; 32], number: u32) -> [u8; 32] {
    for (byte, n) in seed[24..].iter_mut().zip(number.to_le_bytes()) {
        *byte ^= n;
    }
    seed
}

/// A locally administered unicast address (IEEE 802c), for devices that have none of their own.
fn made_up_mac(seed: &[u8; 32]) -> Mac {
    let mut mac = [0; 6];
    mac.copy_from_slice(&seed[8..14]);
    mac[0] = (mac[0] & !1) | 2;
    mac
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_split_the_ephemeral_range_without_gap_or_overlap() {
        for shards in 1..=16 {
            let parts: Vec<_> = (0..shards).map(|n| port_share((49152, 65535), n, shards)).collect();
            assert_eq!((parts[0].0, parts[shards as usize - 1].1), (49152, 65535));
            assert!(parts.windows(2).all(|w| w[0].1 + 1 == w[1].0));
        }
    }

    #[test]
    fn made_up_addresses_are_local_and_unicast() {
        let mac = made_up_mac(&[0xff; 32]);
        assert_eq!(mac[0] & 3, 2);
    }
}
