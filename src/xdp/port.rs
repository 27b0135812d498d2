//! One queue of a device as a [`FrameIo`]: an AF_XDP socket with its UMEM and four rings (linux/if_xdp.h; the kernel's
//! Documentation/networking/af_xdp.rst).

mod large;
mod open;

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;
use rustix::net::sockopt::xdp_statistics;
use rustix::net::{RecvFlags, SendFlags};
use xsk_rs::umem::frame::FrameDesc;
use xsk_rs::{CompQueue, FillQueue, RxQueue, TxQueue};

use super::frames::{Frames, Place};
use super::sys;
use crate::port::{FrameIo, PortCounters};
use large::LargeSender;
use sidestep_stack::Large;

/// Whether the device reads and writes our frames itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ZeroCopy {
    /// Where the driver can; else the kernel copies.
    #[default]
    Auto,
    /// Or fail.
    Require,
    /// The kernel copies.
    Never,
}

/// Sizes and manners of a port. Rings have a power of two of entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XdpOptions {
    /// Frames in the UMEM; more than `fill`, and `fill + tx` to make use of all of both.
    pub frames: u32,
    /// Bytes of a frame, 256 of which are headroom: 2,048 for an MTU up to 1,500, else 4,096.
    pub frame_bytes: u32,
    /// Entries of the fill ring: frames that can arrive before the loop turns once.
    pub fill: u32,
    pub rx: u32,
    pub tx: u32,
    pub completion: u32,
    pub zero_copy: ZeroCopy,
    /// Let the device's softirq run inside our system calls (SO_PREFER_BUSY_POLL): lower latency for a core that polls
    /// anyway.
    pub busy_poll: bool,
    /// Let the kernel say when it must be called (XDP_USE_NEED_WAKEUP). Off, every flush is a system call.
    pub need_wakeup: bool,
    /// Bulk goes in packets of 64 KiB that the kernel or the NIC cuts, through a packet socket, where frames are copied
    /// anyway and somebody finishes checksums: every device but a veth whose `tx` offload is on.
    pub large_sends: bool,
}

impl Default for XdpOptions {
    /// For a real NIC; 32 MiB a queue.
    fn default() -> Self {
        Self {
            frames: 16_384,
            frame_bytes: 2_048,
            fill: 4_096,
            rx: 2_048,
            tx: 2_048,
            completion: 2_048,
            zero_copy: ZeroCopy::Auto,
            busy_poll: false,
            need_wakeup: true,
            large_sends: false,
        }
    }
}

impl XdpOptions {
    /// For veth and tests; 4 MiB a queue.
    pub fn small() -> Self {
        Self { frames: 2_048, fill: 1_024, rx: 1_024, tx: 512, completion: 512, ..Self::default() }
    }
}

/// Descriptors moved between a ring and us at a time: enough to hide the cost of the call, few enough to stay in the
/// first-level cache.
const BATCH: usize = 64;

/// System calls that one flush may spend on a socket that can't take all at once.
const SEND_TRIES: u32 = 4;

/// One queue of a device. Receives what the XDP program redirects to its socket (see [`super::Steering`]).
pub struct XdpPort {
    rx: RxQueue,
    tx: TxQueue,
    fill: FillQueue,
    completion: CompQueue,
    frames: Frames,
    zero_copy: bool,
    options: XdpOptions,
    /// Most frames in tx and completion rings together: both always have room for that many.
    most_sending: u32,
    /// Frames were queued that the kernel may not have seen.
    unsent: bool,
    /// The last send found the kernel out of room: worth trying again soon.
    congested: bool,
    /// Packets that span several frames are put together and taken apart here.
    jumbo: Jumbo,
    large: Option<LargeSender>,
    last_error: Option<Errno>,
    counters: PortCounters,
    descs: [FrameDesc; BATCH],
}

struct Jumbo {
    /// Bytes of the largest packet of this device.
    capacity: usize,
    /// The parts received so far.
    rx: Vec<u8>,
    /// A part was unusable: drop the packet up to its end.
    rx_bad: bool,
    /// The packet being filled; empty where each packet fits a frame.
    tx: Vec<u8>,
}

impl Jumbo {
    /// Takes one descriptor's bytes (None: they lay outside of their frame). The packet, when this was its end.
    fn take_part<'a>(&'a mut self, bytes: Option<&'a mut [u8]>, last: bool) -> Option<&'a mut [u8]> {
        let first = self.rx.is_empty() && !self.rx_bad;
        match bytes {
            Some(bytes) if first && last => Some(bytes),
            Some(bytes) if !self.rx_bad && self.rx.len() + bytes.len() <= self.capacity => {
                self.rx.extend_from_slice(bytes);
                last.then_some(&mut self.rx[..])
            }
            // Outside its frame, or longer than any packet of this device: drop it up to its end.
            _ => {
                self.rx_bad = true;
                None
            }
        }
    }

    /// The packet is over. Whether it had to be dropped.
    fn end(&mut self) -> bool {
        self.rx.clear();
        core::mem::take(&mut self.rx_bad)
    }
}

impl XdpPort {
    /// The socket, for [`super::Steering::set_socket`] and for polling.
    pub fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the socket is open as long as `self`, which the borrow keeps.
        unsafe { BorrowedFd::borrow_raw(self.rx.fd().as_raw_fd()) }
    }

    /// Whether the device reads and writes frames without a copy.
    pub fn zero_copy(&self) -> bool {
        self.zero_copy
    }

    /// Socket options that help where they exist; none is needed.
    fn tune(&mut self) {
        /// linux/if_xdp.h, since 6.17: frames that one system call may send in copy mode; 32 without it.
        const XDP_MAX_TX_SKB_BUDGET: i32 = 9;
        let set = |name: &str, level, option, value| match sys::set_int_option(self.fd(), level, option, value) {
            // An older kernel.
            Err(e) if e.raw_os_error() == Some(libc::ENOPROTOOPT) => {}
            Err(e) => tracing::debug!("{name} = {value}: {e}"),
            Ok(()) => {}
        };
        set("XDP_MAX_TX_SKB_BUDGET", libc::SOL_XDP, XDP_MAX_TX_SKB_BUDGET, self.options.tx as i32);
        // In copy mode each frame in flight is charged to the socket with the kernel's overhead for a packet.
        let in_flight = self.most_sending as usize * (self.options.frame_bytes as usize + 1024);
        set("SO_SNDBUFFORCE", libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, in_flight.min(1 << 29) as i32);
        if self.options.busy_poll {
            // Documentation/networking/napi.rst; 20 microseconds and 64 packets are its examples.
            set("SO_PREFER_BUSY_POLL", libc::SOL_SOCKET, libc::SO_PREFER_BUSY_POLL, 1);
            set("SO_BUSY_POLL", libc::SOL_SOCKET, libc::SO_BUSY_POLL, 20);
            set("SO_BUSY_POLL_BUDGET", libc::SOL_SOCKET, libc::SO_BUSY_POLL_BUDGET, 64);
        }
    }

    /// Keeps `options.fill` frames with the kernel to receive into.
    fn refill(&mut self) {
        let mut batch = [FrameDesc::default(); BATCH];
        while self.frames.filling() < self.options.fill {
            let wanted = (self.options.fill - self.frames.filling()) as usize;
            let mut n = 0;
            while n < wanted.min(BATCH)
                && let Some(frame) = self.frames.take()
            {
                batch[n] = self.frames.lend(frame, Place::Fill, 0);
                n += 1;
            }
            if n == 0 {
                return;
            }
            // SAFETY: the frames are this UMEM's and were lent for this ring, nobody else has them.
            let taken = unsafe { self.fill.produce(&batch[..n]) };
            // The ring holds `options.fill` entries and no more frames than that are ever lent for it.
            debug_assert!(taken == n);
            if taken < n {
                for desc in &batch[taken..n] {
                    if let Some(frame) = self.frames.reclaim(desc.addr(), Place::Fill) {
                        self.frames.give_back(frame);
                    }
                }
                return;
            }
        }
    }

    /// Takes back the frames that have been sent.
    fn drain_completions(&mut self) {
        loop {
            // SAFETY: frames in the completion ring were put into the tx ring of the same socket.
            let n = unsafe { self.completion.consume(&mut self.descs) };
            for desc in &self.descs[..n] {
                match self.frames.reclaim(desc.addr(), Place::Send) {
                    Some(frame) => self.frames.give_back(frame),
                    None => self.counters.tx_errors += 1,
                }
            }
            if n < BATCH {
                return;
            }
        }
    }

    /// Makes the kernel look at our rings from inside a system call: busy polling, or a fill ring that asks for it.
    fn wake_receive(&mut self) {
        self.counters.syscalls += 1;
        // EAGAIN is the usual answer; what matters is what came into the ring meanwhile.
        let _ = rustix::net::recv(self.fd(), &mut [0u8; 0][..], RecvFlags::DONTWAIT);
    }

    /// Makes the kernel look at the tx ring.
    fn wake_send(&mut self) {
        for _ in 0..SEND_TRIES {
            self.counters.syscalls += 1;
            self.congested = false;
            match rustix::net::send(self.fd(), &[], SendFlags::DONTWAIT) {
                Ok(_) => {
                    self.unsent = false;
                    self.last_error = None;
                    return;
                }
                // The budget of one call is spent, the device's queue or the socket's memory is full.
                Err(Errno::AGAIN | Errno::BUSY | Errno::NOBUFS | Errno::INTR) => {
                    self.congested = true;
                    self.drain_completions();
                }
                Err(why) => {
                    self.counters.tx_errors += 1;
                    if self.last_error != Some(why) {
                        tracing::warn!("cannot send: {why} (the frames wait in the ring)");
                        self.last_error = Some(why);
                    }
                    return;
                }
            }
        }
    }

    fn room_to_send(&self) -> u32 {
        self.frames.free().min(self.most_sending - self.frames.sending())
    }

    /// Frames that one packet may need.
    fn parts(&self) -> u32 {
        self.jumbo.capacity.div_ceil(self.frames.capacity()) as u32
    }

    /// Puts lent frames into the tx ring.
    fn produce(&mut self, n: usize) {
        if n == 0 {
            return;
        }
        // SAFETY: the frames are this UMEM's and were lent for this ring.
        let taken = unsafe { self.tx.produce(&self.descs[..n]) };
        // No more frames than the ring has entries are ever lent for it.
        debug_assert!(taken == n);
        for i in taken..n {
            self.counters.tx_errors += 1;
            if let Some(frame) = self.frames.reclaim(self.descs[i].addr(), Place::Send) {
                self.frames.give_back(frame);
            }
        }
        self.unsent |= taken > 0;
    }

    /// Receives one descriptor's bytes; true when a packet was handed to `handle`.
    fn receive_one(&mut self, mut desc: FrameDesc, handle: &mut impl FnMut(&mut [u8])) -> bool {
        let Some(frame) = self.frames.reclaim(desc.addr(), Place::Fill) else {
            self.counters.rx_bad += 1;
            return false;
        };
        let last = !desc.has_more_frames();
        let whole = self.jumbo.take_part(self.frames.received(&frame, &mut desc), last);
        let handed = whole.is_some();
        if let Some(bytes) = whole {
            self.counters.rx_frames += 1;
            self.counters.rx_bytes += bytes.len() as u64;
            handle(bytes);
        }
        if last {
            self.counters.rx_bad += u64::from(self.jumbo.end());
        }
        self.frames.give_back(frame);
        handed
    }
}

impl FrameIo for XdpPort {
    fn receive(&mut self, budget: usize, mut handle: impl FnMut(&mut [u8])) -> usize {
        let (mut handed, mut left) = (0, budget);
        let mut polled = !self.options.busy_poll;
        while left > 0 {
            let n = left.min(BATCH);
            // SAFETY: frames in the rx ring were put into the fill ring of the same socket.
            let n = unsafe { self.rx.consume(&mut self.descs[..n]) };
            if n == 0 {
                if polled {
                    break;
                }
                polled = true;
                self.wake_receive();
                continue;
            }
            for i in 0..n {
                let desc = self.descs[i];
                handed += usize::from(self.receive_one(desc, &mut handle));
            }
            self.refill();
            left -= n;
        }
        if self.options.need_wakeup && left < budget && self.fill.needs_wakeup() {
            self.wake_receive();
        }
        handed
    }

    fn transmit(&mut self, budget: usize, mut fill: impl FnMut(&mut [u8]) -> Option<usize>) -> usize {
        let parts = self.parts();
        let (mut queued, mut batched) = (0, 0);
        while queued < budget {
            if self.room_to_send() < parts {
                self.produce(batched);
                batched = 0;
                if !self.can_transmit() {
                    self.counters.tx_no_buffer += 1;
                    break;
                }
            }
            if batched + parts as usize > BATCH {
                self.produce(batched);
                batched = 0;
            }
            let Some((length, used)) = self.fill_one(batched, &mut fill) else { break };
            batched += used;
            queued += 1;
            self.counters.tx_frames += 1;
            self.counters.tx_bytes += length as u64;
        }
        self.produce(batched);
        queued
    }

    fn large_capacity(&self) -> usize {
        self.large.as_ref().map_or(0, LargeSender::capacity)
    }

    fn transmit_large(&mut self, fill: impl FnOnce(&mut [u8]) -> Option<Large>) -> usize {
        if self.large.is_none() {
            return 0;
        }
        // What is in the ring came first.
        self.flush();
        self.large.as_mut().map_or(0, |large| large.send(&mut self.counters, fill))
    }

    fn flush(&mut self) {
        if let Some(large) = &mut self.large {
            large.flush(&mut self.counters);
        }
        // Without the flag (zero-copy, the driver already at work) the kernel finds the frames by itself.
        if self.unsent {
            if !self.options.need_wakeup || self.tx.needs_wakeup() {
                self.wake_send();
            } else {
                self.unsent = false;
            }
        }
        if self.frames.sending() > 0 {
            self.drain_completions();
        }
    }

    fn is_due(&mut self) -> bool {
        // Busy polling has to ask the kernel.
        let waits = self.large.as_ref().is_some_and(LargeSender::is_waiting);
        self.options.busy_poll || self.unsent || waits || self.rx.nb_avail(1) > 0
    }

    fn can_transmit(&mut self) -> bool {
        let parts = self.parts();
        if self.room_to_send() < parts {
            self.drain_completions();
            if self.room_to_send() < parts && self.unsent {
                self.wake_send();
                self.drain_completions();
            }
        }
        self.room_to_send() >= parts
    }

    fn frame_capacity(&self) -> usize {
        self.jumbo.capacity
    }

    fn poll_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.fd())
    }

    fn prepare_sleep(&mut self) -> bool {
        if self.unsent {
            self.flush();
        }
        let waits = self.large.as_ref().is_some_and(LargeSender::is_waiting);
        waits || self.congested && self.unsent || self.rx.nb_avail(1) > 0
    }

    fn counters(&self) -> PortCounters {
        let kernel = xdp_statistics(self.fd()).ok();
        let kernel = kernel.as_ref();
        PortCounters {
            // Frames longer than ours are among rx_dropped; the kernel does not tell them apart.
            rx_ring_full: kernel.map_or(0, |k| k.rx_ring_full.unwrap_or(0) + k.rx_dropped),
            rx_bad: self.counters.rx_bad + kernel.map_or(0, |k| k.rx_invalid_descs),
            tx_errors: self.counters.tx_errors + kernel.map_or(0, |k| k.tx_invalid_descs),
            frames_total: u64::from(self.frames.total()),
            frames_accounted: u64::from(self.frames.free() + self.frames.filling() + self.frames.sending()),
            ..self.counters
        }
    }
}

impl XdpPort {
    /// Lets `fill` write a packet and lends its frames, as descriptors from `at` on. Returns its length and the number
    /// of frames; None when there is nothing to send. The caller saw to room for [`Self::parts`] frames.
    fn fill_one(&mut self, at: usize, fill: &mut impl FnMut(&mut [u8]) -> Option<usize>) -> Option<(usize, usize)> {
        let part = self.frames.capacity();
        if self.parts() == 1 {
            let frame = self.frames.take()?;
            let bytes = self.frames.bytes(&frame);
            let most = bytes.len().min(self.jumbo.capacity);
            let Some(length) = fill(&mut bytes[..most]) else {
                self.frames.give_back(frame);
                return None;
            };
            debug_assert!(length <= most);
            let length = length.min(most);
            self.descs[at] = self.frames.lend(frame, Place::Send, length);
            return Some((length, 1));
        }

        let capacity = self.jumbo.capacity;
        let length = fill(&mut self.jumbo.tx)?.min(capacity);
        let mut used = 0;
        let chunks = self.jumbo.tx[..length].chunks(part);
        let last = chunks.len().saturating_sub(1);
        for (i, chunk) in chunks.enumerate() {
            let Some(frame) = self.frames.take() else { break };
            self.frames.bytes(&frame)[..chunk.len()].copy_from_slice(chunk);
            let mut desc = self.frames.lend(frame, Place::Send, chunk.len());
            desc.set_options(if i < last { XDP_PKT_CONTD } else { 0 });
            self.descs[at + i] = desc;
            used += 1;
        }
        Some((length, used))
    }
}

/// linux/if_xdp.h: the packet goes on in the next descriptor.
const XDP_PKT_CONTD: u32 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_across_descriptors_are_whole_or_not_there() {
        let mut jumbo = Jumbo { capacity: 9000, rx: Vec::with_capacity(9000), rx_bad: false, tx: Vec::new() };
        let mut part = [7; 4096];
        // One, and three.
        assert_eq!(jumbo.take_part(Some(&mut part), true).map(|b| b.len()), Some(4096));
        assert!(!jumbo.end());
        assert!(jumbo.take_part(Some(&mut part), false).is_none());
        assert!(jumbo.take_part(Some(&mut part), false).is_none());
        assert_eq!(jumbo.take_part(Some(&mut part[..800]), true).map(|b| b.len()), Some(8992));
        assert!(!jumbo.end());
        // Without end: what is kept stays within the largest packet, and the next one is whole again.
        for _ in 0..1000 {
            assert!(jumbo.take_part(Some(&mut part), false).is_none());
            assert!(jumbo.rx.capacity() <= 9000);
        }
        assert!(jumbo.take_part(Some(&mut part), true).is_none() && jumbo.end());
        // A part in the middle that lies outside of its frame, or the first one.
        for bad in [0, 1] {
            for n in 0..3 {
                let bytes = (n != bad).then_some(&mut part[..10]);
                assert!(jumbo.take_part(bytes, n == 2).is_none(), "part {n} of a packet whose part {bad} is bad");
            }
            assert!(jumbo.end());
        }
        assert_eq!(jumbo.take_part(Some(&mut part[..60]), true).map(|b| b.len()), Some(60));
    }
}
