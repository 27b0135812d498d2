//! A TAP device (the kernel's Documentation/networking/tuntap.rst): the other end of the wire is the kernel's own
//! stack. Needs no privilege beyond CAP_NET_ADMIN in its network namespace, so it works in an unprivileged user
//! namespace.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};

use super::{FrameIo, PortCounters, PortError};
use crate::xdp::nic::Nic;

/// The longest frame that a TAP device can give: the largest IP packet, Ethernet's header and two VLAN tags.
const RX_BYTES: usize = 65_535 + 22;

/// One queue of a TAP device. The device goes away with its last queue, unless somebody made it persistent.
pub struct TapPort {
    fd: OwnedFd,
    name: String,
    rx: Box<[u8]>,
    tx: Box<[u8]>,
    /// Bytes of the frame in `tx` that the kernel has not taken yet; 0 if there is none.
    waiting: usize,
    last_error: Option<i32>,
    counters: PortCounters,
}

impl TapPort {
    /// Attaches to the device called `name`, or creates it; a `%d` in the name is replaced by a free number, and an
    /// empty name means `tap%d`. `multi_queue` must be the same for all ports of one device. Bringing the device up is
    /// the caller's business.
    pub fn open(name: &str, multi_queue: bool) -> Result<Self, PortError> {
        let error = |cause: io::Error, hint: &str| PortError {
            what: format!("open the TAP device {name}"),
            cause,
            hint: hint.into(),
        };
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = rustix::fs::open("/dev/net/tun", flags, Mode::empty()).map_err(|e| {
            let hint =
                "/dev/net/tun comes with the kernel module `tun` (modprobe tun), and containers must be given it";
            error(e.into(), hint)
        })?;
        let name = set_interface(fd.as_fd(), name, multi_queue).map_err(|cause| {
            let hint = match cause.raw_os_error() {
                Some(libc::EPERM) => "creating network devices needs CAP_NET_ADMIN: run as root",
                Some(libc::EBUSY) => "another program has the device open, and it has a single queue",
                Some(libc::EINVAL) => {
                    "names have up to 15 characters, and a device that exists must be a TAP device with the same \
                     setting of multi_queue"
                }
                _ => "",
            };
            error(cause, hint)
        })?;
        let mtu = Nic::query(&name)?.mtu as usize;
        Ok(Self {
            fd,
            name,
            rx: vec![0; RX_BYTES].into(),
            tx: vec![0; mtu + 22].into(),
            waiting: 0,
            last_error: None,
            counters: PortCounters::default(),
        })
    }

    /// The device's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Writes the waiting frame; false if the kernel can't take it now.
    fn write(&mut self) -> bool {
        while self.waiting > 0 {
            self.counters.syscalls += 1;
            match rustix::io::write(&self.fd, &self.tx[..self.waiting]) {
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(rustix::io::Errno::AGAIN) => return false,
                // EIO: the device is down. The frame is lost as on a wire that is cut.
                Err(e) => {
                    self.counters.tx_errors += 1;
                    self.note_error("send", e);
                }
            }
            self.waiting = 0;
        }
        true
    }

    fn note_error(&mut self, verb: &str, error: rustix::io::Errno) {
        // The same one over and over is said once.
        if self.last_error.replace(error.raw_os_error()) != Some(error.raw_os_error()) {
            tracing::warn!(device = self.name, "cannot {verb} frames: {error}");
        }
    }
}

impl FrameIo for TapPort {
    fn receive(&mut self, budget: usize, mut handle: impl FnMut(&mut [u8])) -> usize {
        let mut handed = 0;
        while handed < budget {
            self.counters.syscalls += 1;
            match rustix::io::read(&self.fd, &mut self.rx[..]) {
                Ok(0) | Err(rustix::io::Errno::AGAIN) => break,
                Ok(length) => {
                    self.counters.rx_frames += 1;
                    self.counters.rx_bytes += length as u64;
                    handle(&mut self.rx[..length]);
                    handed += 1;
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => {
                    self.note_error("receive", e);
                    break;
                }
            }
        }
        handed
    }

    fn transmit(&mut self, budget: usize, mut fill: impl FnMut(&mut [u8]) -> Option<usize>) -> usize {
        let mut queued = 0;
        while queued < budget {
            if !self.write() {
                self.counters.tx_no_buffer += 1;
                break;
            }
            let Some(length) = fill(&mut self.tx) else { break };
            debug_assert!(length <= self.tx.len());
            self.waiting = length.min(self.tx.len());
            queued += 1;
            self.counters.tx_frames += 1;
            self.counters.tx_bytes += self.waiting as u64;
        }
        queued
    }

    fn flush(&mut self) {
        self.write();
    }

    fn can_transmit(&mut self) -> bool {
        self.write()
    }

    fn frame_capacity(&self) -> usize {
        self.tx.len()
    }

    fn poll_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.fd.as_fd())
    }

    fn prepare_sleep(&mut self) -> bool {
        !self.write()
    }

    fn counters(&self) -> PortCounters {
        self.counters
    }
}

/// TUNSETIFF: makes the descriptor a queue of the device, and returns the device's name.
fn set_interface(fd: BorrowedFd<'_>, name: &str, multi_queue: bool) -> io::Result<String> {
    if name.len() >= libc::IFNAMSIZ {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: all zeros is a valid ifreq: numbers, arrays and null pointers.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    // IFF_NO_PI: no packet information before each frame.
    let mut flags = libc::IFF_TAP | libc::IFF_NO_PI;
    if multi_queue {
        flags |= libc::IFF_MULTI_QUEUE;
    }
    request.ifr_ifru.ifru_flags = flags as i16;
    // SAFETY: TUNSETIFF reads and writes one ifreq.
    if unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let name: Vec<u8> = request.ifr_name.iter().map(|&c| c as u8).take_while(|&c| c != 0).collect();
    Ok(String::from_utf8_lossy(&name).into_owned())
}
