//! How a port comes to be: options checked against the device, then bind(2), again while the queue is still busy.

use std::io;
use std::num::NonZeroU32;
use std::time::Duration;

use rustix::net::sockopt::xdp_options;
use rustix::net::xdp::XdpOptionsFlags;
use xsk_rs::Socket;
use xsk_rs::config::{BindFlags, FrameSize, Interface, LibxdpFlags, QueueSize, SocketConfig, UmemConfig};
use xsk_rs::umem::frame::FrameDesc;

use super::large::LargeSender;
use super::{BATCH, Jumbo, XdpOptions, XdpPort, ZeroCopy};
use crate::port::{PortCounters, PortError};
use crate::xdp::frames::{Frames, errno};
use crate::xdp::nic::Nic;
use crate::xdp::sys;

/// Sockets close asynchronously: the queue of one just closed stays busy for up to some tens of milliseconds.
const BUSY_PAUSE: Duration = Duration::from_millis(10);
/// A second of them.
const BUSY_TRIES: u32 = 100;

impl XdpPort {
    /// Binds to one queue of a device. Waits up to a second for a queue that was in use a moment ago.
    pub fn open(ifname: &str, queue: u32, options: &XdpOptions) -> Result<Self, PortError> {
        let nic = Nic::query(ifname)?;
        let what = format!("open queue {queue} of {ifname}");
        if queue >= nic.rx_queues {
            let hint = format!("{ifname} has {} receive queue(s), numbered from 0", nic.rx_queues);
            return Err(sys::error(what, io::Error::from_raw_os_error(libc::EINVAL), hint));
        }
        let prepared = Prepared::new(&nic, queue, options)
            .map_err(|hint| sys::error(&what, io::Error::from_raw_os_error(libc::EINVAL), hint))?;
        let mut tries = 0;
        let mut port = loop {
            tries += 1;
            match prepared.bind() {
                Ok(port) => break port,
                // A socket whose bind failed can't be bound again: each try makes a new one.
                Err(e) if e.raw_os_error() == Some(libc::EBUSY) && tries < BUSY_TRIES => pause(),
                Err(cause) => {
                    let hint = bind_hint(&cause, &nic, queue, options);
                    return Err(sys::error(what, cause, hint));
                }
            }
        };
        if !port.zero_copy {
            warn_of_known_panic(&nic);
        }
        if options.large_sends && !port.zero_copy {
            port.large = open_large(&nic);
        }
        port.tune();
        port.refill();
        Ok(port)
    }
}

/// None where it can't be, which is no loss of function.
fn open_large(nic: &Nic) -> Option<LargeSender> {
    if !nic.finishes_checksums {
        // Whoever takes the frames from the other end by XDP would see them without.
        tracing::debug!(
            device = nic.name,
            "bulk goes frame by frame: the device leaves checksums unfinished (ethtool -K DEVICE tx off)"
        );
        return None;
    }
    LargeSender::open(nic).inspect_err(|why| tracing::debug!(device = nic.name, "bulk goes frame by frame: {why}")).ok()
}

/// Fragments that the kernel takes for one packet: MAX_SKB_FRAGS, and the linear part.
const MOST_PARTS: usize = 17;

/// Options checked against the device: what a bind needs.
struct Prepared<'a> {
    options: &'a XdpOptions,
    interface: Interface,
    queue: u32,
    umem: UmemConfig,
    socket: SocketConfig,
    frames: NonZeroU32,
    capacity: usize,
}

impl<'a> Prepared<'a> {
    /// Err says what is wrong with the options.
    fn new(nic: &Nic, queue: u32, options: &'a XdpOptions) -> Result<Self, String> {
        let XdpOptions { frames, frame_bytes, fill, rx, tx, completion, .. } = *options;
        let ring = |name: &str, n: u32| {
            QueueSize::new(n)
                .map_err(|_| format!("{name} = {n} should be a power of two: a ring has that many entries"))
        };
        if frames <= fill {
            return Err(format!("frames = {frames} should be more than fill = {fill}, or nothing can be sent"));
        }
        let umem = UmemConfig::builder()
            .frame_size(FrameSize::new(frame_bytes).map_err(|e| format!("frame_bytes = {frame_bytes}: {e}"))?)
            .fill_queue_size(ring("fill", fill)?)
            .comp_queue_size(ring("completion", completion)?)
            .build()
            .map_err(|_| format!("frame_bytes = {frame_bytes} should be 2048 or 4096"))?;

        // Ethernet's header and two VLAN tags.
        let capacity = nic.mtu as usize + 22;
        let parts = capacity.div_ceil(umem.mtu() as usize);
        if parts > MOST_PARTS {
            return Err(format!(
                "the MTU of {} ({}) needs {parts} frames of {frame_bytes} bytes, and the kernel takes {MOST_PARTS}: \
                 lower the MTU, or use frame_bytes = 4096",
                nic.name, nic.mtu
            ));
        }
        let mut flags = match options.zero_copy {
            // Without either flag, the kernel tries without a copy and falls back by itself (EOPNOTSUPP).
            ZeroCopy::Auto => BindFlags::empty(),
            ZeroCopy::Require => BindFlags::XDP_ZEROCOPY,
            ZeroCopy::Never => BindFlags::XDP_COPY,
        };
        flags.set(BindFlags::XDP_USE_NEED_WAKEUP, options.need_wakeup);
        flags.set(BindFlags::XDP_USE_SG, parts > 1);
        let socket = SocketConfig::builder()
            .rx_queue_size(ring("rx", rx)?)
            .tx_queue_size(ring("tx", tx)?)
            .bind_flags(flags)
            // The program is ours (Steering), not libxdp's.
            .libxdp_flags(LibxdpFlags::XSK_LIBXDP_FLAGS_INHIBIT_PROG_LOAD)
            .build();
        Ok(Self {
            options,
            interface: nic.name.parse().map_err(|e| format!("the name {:?}: {e}", nic.name))?,
            queue,
            umem,
            socket,
            frames: NonZeroU32::new(frames).ok_or("frames = 0 leaves nothing to receive into")?,
            capacity,
        })
    }

    /// One try, with a new UMEM and a new socket.
    fn bind(&self) -> io::Result<XdpPort> {
        let frames = Frames::new(self.umem, self.frames)?;
        // SAFETY: the UMEM is not shared, and no program is loaded by libxdp.
        let made = unsafe { Socket::new(self.socket, frames.umem(), &self.interface, self.queue) };
        let (tx, rx, rings) = made.map_err(errno)?;
        let (fill, completion) = rings.ok_or_else(|| io::Error::other("libxdp made a socket without rings"))?;
        let most_sending = self.options.tx.min(self.options.completion);
        let joined = if self.capacity > frames.capacity() { self.capacity } else { 0 };
        let mut port = XdpPort {
            rx,
            tx,
            fill,
            completion,
            frames,
            zero_copy: false,
            options: *self.options,
            most_sending,
            unsent: false,
            congested: false,
            jumbo: Jumbo {
                capacity: self.capacity,
                rx: Vec::with_capacity(joined),
                rx_bad: false,
                tx: vec![0; joined],
            },
            large: None,
            last_error: None,
            counters: PortCounters::default(),
            descs: [FrameDesc::default(); BATCH],
        };
        port.zero_copy = xdp_options(port.fd()).is_ok_and(|o| o.contains(XdpOptionsFlags::XDP_OPTIONS_ZEROCOPY));
        Ok(port)
    }
}

/// Between two tries to bind; the port is being opened, no shard runs yet.
#[allow(clippy::disallowed_methods, reason = "start-up, before any loop")]
fn pause() {
    std::thread::sleep(BUSY_PAUSE);
}

/// Some kernels of the time of 6.16 can panic when frames are sent over veth in copy mode (the fix is kernel commit
/// 0ebc27a4c67d, 3b333c936c3f elsewhere). The version does not say which kernels have it, so this can only warn.
fn warn_of_known_panic(nic: &Nic) {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    if nic.driver == "veth" && (release.starts_with("6.16.") || release.starts_with("6.17.")) {
        tracing::warn!(
            device = nic.name,
            "kernel {} may lack a fix (commit 0ebc27a4c67d) without which sending over veth can crash the machine",
            release.trim_end()
        );
    }
}

fn bind_hint(cause: &io::Error, nic: &Nic, queue: u32, options: &XdpOptions) -> String {
    let device = &nic.name;
    match cause.raw_os_error() {
        Some(libc::EBUSY) => format!(
            "another AF_XDP socket is bound to queue {queue} of {device}, in this program or in another one (`ss \
                 --xdp` lists them)"
        ),
        Some(libc::EOPNOTSUPP) if options.zero_copy == ZeroCopy::Require => {
            format!("the driver `{}` can't give frames without a copy: set zero_copy to auto or never", nic.driver)
        }
        Some(libc::ENETDOWN) => format!("the device is down: ip link set {device} up"),
        Some(libc::EINVAL) => format!(
            "the device refuses these sizes: MTU {}, frame_bytes {}; frames of 4,096 bytes fit an MTU up to 3,498",
            nic.mtu, options.frame_bytes
        ),
        Some(libc::EAFNOSUPPORT) => "this kernel has no AF_XDP (CONFIG_XDP_SOCKETS)".into(),
        _ => String::new(),
    }
}
