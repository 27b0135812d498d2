//! The XDP program and its maps. In: which addresses and ports are ours, which socket serves which queue. Out: frames
//! on those sockets, and counts of where frames went.

use std::collections::HashSet;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use libbpf_rs::{MapCore, MapFlags, MapHandle, Object, ObjectBuilder, ProgramInput};

use super::nic::Nic;
use super::sys;
use crate::port::PortError;

/// The object that build.rs compiled. Aligned, because libbpf reads it as an ELF file in place.
#[repr(align(16))]
struct Aligned<T: ?Sized>(T);
static OBJECT: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/steer.bpf.o")));

/// Queues that the program's maps have room for.
pub const MAX_QUEUES: u32 = 64;

/// Addresses that the program's map has room for.
const MAX_ADDRESSES: usize = 1024;

/// The heartbeat's default age limit. The engine beats on every turn and at least ten times a second when idle; a
/// second of silence is an engine that is stuck, not one that was busy.
const HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(1);

/// The largest MTU for which a frame, headroom and tail room fit one page: above it, drivers want a program that takes
/// packets in several buffers.
const SINGLE_BUFFER_MTU: u32 = 3_498;

const MODE_OWN: u32 = 0;
const MODE_SHARED: u32 = 1;
const FLAG_UNTAGGED_ONLY: u64 = 1;

/// Where the program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachMode {
    /// In the driver, else as `Generic` with a warning.
    Auto,
    /// In the driver, before the kernel allocates anything for the packet.
    Native,
    /// In the kernel's receive path, for drivers without XDP: works everywhere, slowly.
    Generic,
}

/// The loaded program and its maps, attached to nothing until [`Self::attach`]. Dropping it detaches.
pub struct Steering {
    object: Object,
    xsks: MapHandle,
    settings_map: MapHandle,
    heartbeat: MapHandle,
    addresses: MapHandle,
    ports: MapHandle,
    counters: MapHandle,
    settings: Settings,
    link: Option<OwnedFd>,
}

/// `struct settings` of bpf/steer.bpf.c.
#[derive(Clone, Copy)]
struct Settings {
    mode: u32,
    queues: u32,
    heartbeat_timeout_ns: u64,
    flags: u64,
    secret: u64,
}

/// Where the program sent frames since it was loaded, summed over CPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct SteerCounters {
    /// Given to one of our sockets.
    pub redirected: u64,
    /// To another address, or not IP at all.
    pub pass_not_ours: u64,
    /// Ours, but the engine's heartbeat was too old.
    pub pass_stale: u64,
    /// Ours, but the queue had no socket.
    pub pass_no_socket: u64,
    /// Shared mode: a later fragment, which carries no ports.
    pub pass_fragment: u64,
    /// Shorter than its headers say.
    pub pass_malformed: u64,
    /// Shared mode: our address, but a port or protocol that is the kernel's.
    pub pass_other_port: u64,
    /// ARP and neighbour discovery among `redirected`.
    pub neighbor: u64,
    /// Dropped: SYNs of a flood, beyond what the engine answers (see [`Heartbeat::flooded`]).
    pub syn_refused: u64,
}

impl Steering {
    /// Loads the program and creates its maps. Nothing is attached, no traffic changes.
    pub fn load() -> Result<Self, PortError> {
        // libbpf writes to stderr by itself otherwise, a page when the verifier objects.
        libbpf_rs::set_print(Some((libbpf_rs::PrintLevel::Info, |_, text| {
            tracing::debug!("libbpf: {}", text.trim_end())
        })));
        let object = ObjectBuilder::default()
            .open_memory(&OBJECT.0)
            .and_then(|open| open.load())
            .map_err(|e| bpf_error("load the XDP program", e))?;
        let map = |name: &str| {
            let map = object.maps().find(|m| m.name() == name).ok_or_else(|| {
                sys::error(format!("find the map `{name}` of the XDP program"), io::ErrorKind::NotFound.into(), "")
            })?;
            MapHandle::try_from(&map).map_err(|e| bpf_error(&format!("open the map `{name}`"), e))
        };
        let mut steering = Self {
            xsks: map("xsks")?,
            settings_map: map("settings")?,
            heartbeat: map("heartbeat")?,
            addresses: map("addresses")?,
            ports: map("ports")?,
            counters: map("counters")?,
            settings: Settings {
                mode: MODE_OWN,
                queues: MAX_QUEUES,
                heartbeat_timeout_ns: HEARTBEAT_TIMEOUT.as_nanos() as u64,
                flags: 0,
                secret: secret(),
            },
            link: None,
            object,
        };
        steering.store_settings()?;
        Ok(steering)
    }

    /// These addresses are the engine's alone; the kernel must not have them. Replaces what was set before.
    pub fn set_own(&mut self, addresses: &[IpAddr]) -> Result<(), PortError> {
        self.set_addresses(MODE_OWN, addresses)
    }

    /// These addresses are the machine's; only ports given to [`Self::set_port`] are the engine's. Replaces what was
    /// set before, but not the ports.
    pub fn set_shared(&mut self, addresses: &[IpAddr]) -> Result<(), PortError> {
        self.set_addresses(MODE_SHARED, addresses)
    }

    /// Gives a TCP (or UDP) port of shared mode to the engine or back to the kernel. One system call; may be called
    /// while attached and from any thread.
    pub fn set_port(&self, tcp: bool, port: u16, ours: bool) -> Result<(), PortError> {
        let index = u32::from(port) + if tcp { 0 } else { 65_536 };
        self.ports
            .update(&index.to_ne_bytes(), &[u8::from(ours)], MapFlags::ANY)
            .map_err(|e| bpf_error(&format!("mark {} port {port}", if tcp { "TCP" } else { "UDP" }), e))
    }

    /// Whether frames with a VLAN tag may be ours (the default). Off, they all go to the kernel.
    pub fn set_tagged(&mut self, accept: bool) -> Result<(), PortError> {
        self.settings.flags = if accept { 0 } else { FLAG_UNTAGGED_ONLY };
        self.store_settings()
    }

    /// How old a queue's heartbeat may be before its frames go to the kernel; zero switches the check off. One second
    /// at first.
    pub fn set_heartbeat_timeout(&mut self, timeout: Duration) -> Result<(), PortError> {
        self.settings.heartbeat_timeout_ns = u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX >> 1);
        self.store_settings()
    }

    /// The heartbeats that the program looks at, mapped into this process. A queue that never beat counts as stale.
    pub fn heartbeat(&self) -> Result<Heartbeat, PortError> {
        Heartbeat::map(self.heartbeat.as_fd())
    }

    /// Frames of `queue` that are ours go to this AF_XDP socket, which must be bound to the same queue of the device.
    pub fn set_socket(&mut self, queue: u32, fd: BorrowedFd<'_>) -> Result<(), PortError> {
        let what = format!("register the socket of queue {queue}");
        if queue >= MAX_QUEUES {
            let hint = format!("the XDP program serves queues 0 to {}", MAX_QUEUES - 1);
            return Err(sys::error(what, io::Error::from_raw_os_error(libc::EINVAL), hint));
        }
        self.xsks
            .update(&queue.to_ne_bytes(), &fd.as_raw_fd().to_ne_bytes(), MapFlags::ANY)
            .map_err(|e| bpf_error(&what, e))
    }

    /// Attaches the program to a device: from here on, traffic is steered. Returns how it was attached. The attachment
    /// ends with [`Self::detach`], with this value, or with the process.
    pub fn attach(&mut self, ifindex: u32, mode: AttachMode) -> Result<AttachMode, PortError> {
        let nic = Nic::by_index(ifindex)?;
        let name = if nic.mtu > SINGLE_BUFFER_MTU { "steer_frags" } else { "steer" };
        let what = format!("attach the XDP program to {}", nic.name);
        let program = self.object.progs().find(|p| p.name() == name).ok_or_else(|| {
            sys::error(&what, io::ErrorKind::NotFound.into(), "this build lacks the program: build again")
        })?;
        let mut held = self.link.take();
        let mut attach = |flags| match sys::bpf_link_create_xdp(program.as_fd(), ifindex, flags) {
            // Two links on one device are refused, and two modes too. If the one in the way is ours, it goes.
            Err(why) if matches!(why.raw_os_error(), Some(libc::EBUSY | libc::EEXIST)) && held.is_some() => {
                held = None;
                sys::bpf_link_create_xdp(program.as_fd(), ifindex, flags)
            }
            other => other,
        };
        let (link, got) = match mode {
            AttachMode::Generic => (attach(sys::XDP_FLAGS_SKB_MODE), AttachMode::Generic),
            AttachMode::Native => (attach(sys::XDP_FLAGS_DRV_MODE), AttachMode::Native),
            AttachMode::Auto => match attach(sys::XDP_FLAGS_DRV_MODE) {
                // What drivers say that have no XDP, or not with their present settings.
                Err(why) if matches!(why.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EINVAL)) => {
                    tracing::warn!(
                        device = nic.name,
                        driver = nic.driver,
                        "the driver does not take XDP programs ({why}); using generic XDP, which is slower"
                    );
                    (attach(sys::XDP_FLAGS_SKB_MODE), AttachMode::Generic)
                }
                other => (other, AttachMode::Native),
            },
        };
        // A failed try leaves what was attached before; a good one on another device replaces it.
        let (link, result) = match link {
            Ok(link) => (Some(link), Ok(got)),
            Err(cause) => {
                let hint = attach_hint(&cause, &nic);
                (held, Err(sys::error(&what, cause, hint)))
            }
        };
        self.link = link;
        result
    }

    /// Gives all traffic back to the kernel. Harmless when not attached.
    pub fn detach(&mut self) {
        self.link = None;
    }

    /// Whether the program is attached now.
    pub fn is_attached(&self) -> bool {
        self.link.is_some()
    }

    /// Where frames went. Zeros if the kernel will not say.
    pub fn counters(&self) -> SteerCounters {
        let sum = |index: u32| -> u64 {
            let per_cpu = self.counters.lookup_percpu(&index.to_ne_bytes(), MapFlags::ANY).ok().flatten();
            let number = |bytes: &Vec<u8>| bytes.as_slice().try_into().map(u64::from_ne_bytes).unwrap_or(0);
            per_cpu.unwrap_or_default().iter().map(number).sum()
        };
        // In the order of `enum verdict`.
        SteerCounters {
            redirected: sum(0),
            pass_not_ours: sum(1),
            pass_stale: sum(2),
            pass_no_socket: sum(3),
            pass_fragment: sum(4),
            pass_malformed: sum(5),
            pass_other_port: sum(6),
            neighbor: sum(7),
            syn_refused: sum(8),
        }
    }

    /// Runs the program on one frame without any device (BPF_PROG_TEST_RUN; queue 0) and returns its action: 2 is
    /// XDP_PASS, 4 is XDP_REDIRECT. For tests and diagnosis; it counts like real traffic.
    pub fn test(&self, frame: &[u8]) -> Result<u32, PortError> {
        let program = self.object.progs_mut().find(|p| p.name() == "steer").ok_or_else(|| {
            sys::error("find the XDP program", io::ErrorKind::NotFound.into(), "this build lacks it: build again")
        })?;
        let input = ProgramInput { data_in: Some(frame), repeat: 1, ..Default::default() };
        let output = program.test_run(input).map_err(|e| bpf_error("run the XDP program on a frame", e))?;
        Ok(output.return_value)
    }

    fn set_addresses(&mut self, mode: u32, addresses: &[IpAddr]) -> Result<(), PortError> {
        if addresses.len() > MAX_ADDRESSES {
            let hint = format!("at most {MAX_ADDRESSES} addresses are possible, not {}", addresses.len());
            return Err(sys::error("set the engine's addresses", io::Error::from_raw_os_error(libc::E2BIG), hint));
        }
        let wanted: HashSet<[u8; 16]> = addresses.iter().map(|&a| address_key(a)).collect();
        let old: Vec<_> = self.addresses.keys().filter(|key| !wanted.contains(key.as_slice())).collect();
        // Old ones first, so that the map never holds more than it has room for; then the mode; then the new ones. In
        // between, frames go to the kernel at worst.
        for key in old {
            self.addresses.delete(&key).map_err(|e| bpf_error("remove an address from the XDP program", e))?;
        }
        self.settings.mode = mode;
        self.store_settings()?;
        for key in &wanted {
            self.addresses
                .update(key, &[1], MapFlags::ANY)
                .map_err(|e| bpf_error("tell the XDP program an address", e))?;
        }
        Ok(())
    }

    fn store_settings(&mut self) -> Result<(), PortError> {
        let Settings { mode, queues, heartbeat_timeout_ns, flags, secret } = self.settings;
        let mut bytes = [0; 32];
        bytes[..4].copy_from_slice(&mode.to_ne_bytes());
        bytes[4..8].copy_from_slice(&queues.to_ne_bytes());
        bytes[8..16].copy_from_slice(&heartbeat_timeout_ns.to_ne_bytes());
        bytes[16..24].copy_from_slice(&flags.to_ne_bytes());
        bytes[24..].copy_from_slice(&secret.to_ne_bytes());
        self.settings_map
            .update(&0u32.to_ne_bytes(), &bytes, MapFlags::ANY)
            .map_err(|e| bpf_error("store the settings of the XDP program", e))
    }
}

/// A number that nobody can guess.
fn secret() -> u64 {
    let mut bytes = [0; 8];
    // Without it floods are judged all the same, only by a hash that a peer could work out.
    let _ = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    u64::from_ne_bytes(bytes)
}

/// The map's key: IPv6, or IPv4 as ::ffff:a.b.c.d (RFC 4291 section 2.5.5.2).
fn address_key(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
    .octets()
}

impl std::fmt::Debug for Steering {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Steering").field("attached", &self.is_attached()).field("mode", &self.settings.mode).finish()
    }
}

/// The engine's sign of life for the XDP program: one number for each queue. Clones share the same memory.
#[derive(Clone, Debug)]
pub struct Heartbeat(Arc<Beats>);

/// The mapped array; unmapped when the last clone goes.
#[derive(Debug)]
struct Beats(NonNull<AtomicU64>);

/// One page holds the numbers of all queues: first their beats, then until when their SYNs are judged.
const BEATS_BYTES: usize = 4096;
const BEATS: usize = 2 * MAX_QUEUES as usize;
const _: () = assert!(BEATS * 8 <= BEATS_BYTES);

/// How long the program judges SYNs after it was told to; each refusal begins this time anew.
const JUDGED_FOR: Duration = Duration::from_secs(1);

impl Heartbeat {
    /// Queue `queue` is alive at `now_ns` of CLOCK_MONOTONIC: one store. Numbers beyond the last queue do nothing.
    #[inline]
    pub fn beat(&self, queue: u32, now_ns: u64) {
        if let Some(beat) = self.0.all().get(queue as usize).filter(|_| queue < MAX_QUEUES) {
            // Nothing else is published with it, so the order does not matter.
            beat.store(now_ns, Ordering::Relaxed);
        }
    }

    /// More SYNs come to `queue` than anyone should answer: from now on the program drops what goes beyond an allowance,
    /// until it had nothing to drop for a second. SYNs that come a second time, as those of honest clients do, have an
    /// allowance of their own.
    pub fn flooded(&self, queue: u32, now_ns: u64) {
        if let Some(until) = self.0.all().get((queue + MAX_QUEUES) as usize).filter(|_| queue < MAX_QUEUES) {
            until.store(now_ns + JUDGED_FOR.as_nanos() as u64, Ordering::Relaxed);
        }
    }

    fn map(fd: BorrowedFd<'_>) -> Result<Self, PortError> {
        use rustix::mm::{MapFlags, ProtFlags, mmap};
        // SAFETY: a new shared mapping at an address of the kernel's choice; `Beats` unmaps it exactly once.
        let at = unsafe {
            mmap(std::ptr::null_mut(), BEATS_BYTES, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, fd, 0)
        };
        let at = at.map_err(|e| sys::error("map the heartbeats of the XDP program", e.into(), ""))?;
        let at = NonNull::new(at.cast()).ok_or_else(|| {
            sys::error("map the heartbeats of the XDP program", io::Error::from_raw_os_error(libc::ENOMEM), "")
        })?;
        Ok(Self(Arc::new(Beats(at))))
    }
}

impl Beats {
    fn all(&self) -> &[AtomicU64] {
        // SAFETY: the mapping is page-aligned, BEATS_BYTES long (asserted above to hold all queues) and lives as long
        // as `self`; the kernel side uses whole words, and every access of ours is atomic.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr(), BEATS) }
    }
}

impl Drop for Beats {
    fn drop(&mut self) {
        // SAFETY: `map` made this mapping, and no reference into it outlives `self`.
        let unmapped = unsafe { rustix::mm::munmap(self.0.as_ptr().cast(), BEATS_BYTES) };
        debug_assert!(unmapped.is_ok());
    }
}

// SAFETY: the mapping belongs to the process, not to a thread.
unsafe impl Send for Beats {}
// SAFETY: all access is through atomics.
unsafe impl Sync for Beats {}

fn attach_hint(cause: &io::Error, nic: &Nic) -> String {
    let device = &nic.name;
    match cause.raw_os_error() {
        Some(libc::EBUSY | libc::EEXIST) => {
            let which = sys::xdp_program_id(nic.ifindex).map_or(String::new(), |id| format!(" (id {id})"));
            format!(
                "the device has an XDP program already{which}: `ip link show {device}` shows it, `ip link set {device} \
                 xdp off` removes it unless another running program owns it"
            )
        }
        Some(libc::ENOSPC) => format!(
            "the other end of {device} has more transmit queues than {device} has receive queues ({}): create the \
             pair with enough (ip link add … numrxqueues N), or reduce the peer's (ethtool -L PEER tx N)",
            nic.rx_queues
        ),
        Some(libc::ERANGE) => format!(
            "the MTU of {device} ({}) is too large for XDP in this driver: lower it (ip link set {device} mtu 1500), \
             or use generic mode",
            nic.mtu
        ),
        Some(libc::EOPNOTSUPP | libc::EINVAL) => format!(
            "the driver `{}` does not take XDP programs with the device's present settings (large receive offload and \
             an MTU over {SINGLE_BUFFER_MTU} are usual reasons); generic mode works with every driver",
            nic.driver
        ),
        Some(libc::ENODEV) => format!("there is no device {device} any more"),
        _ => String::new(),
    }
}

fn bpf_error(what: &str, e: libbpf_rs::Error) -> PortError {
    // The crate keeps the errno to itself; its text has it, as every io::Error's.
    let text = format!("{e:#}");
    let errno = text.rsplit_once("(os error ").and_then(|(_, rest)| rest.split_once(')')).map(|(n, _)| n.parse());
    let cause = match errno {
        Some(Ok(errno)) => io::Error::from_raw_os_error(errno),
        _ => io::Error::other(text),
    };
    sys::error(what, cause, "")
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use super::*;

    #[test]
    fn v4_addresses_are_mapped() {
        let key = address_key(IpAddr::from([192, 0, 2, 1]));
        assert_eq!(key, Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0xc000, 0x0201).octets());
    }
}
