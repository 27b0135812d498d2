//! Frames over a socket that keeps message borders, many to a system call (recvmmsg(2), sendmmsg(2)). What
//! [`super::af_packet`] and [`super::pipe`] have in common.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use super::PortCounters;

/// Frames to one system call.
const BATCH: usize = 32;

/// Free bytes before each received frame, for a VLAN tag that the kernel took out.
const HEADROOM: usize = 4;

/// Words of ancillary data: a header of 16 bytes and `struct tpacket_auxdata`, of 20.
const CONTROL_WORDS: usize = 8;

/// What the kernel says beside a frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Beside {
    /// The checksum of TCP or UDP has not been computed: the frame never was on a wire.
    pub checksum_missing: bool,
    /// The VLAN tag that was taken out: protocol and TCI.
    pub vlan: Option<(u16, u16)>,
}

/// A socket and its buffers.
pub struct BatchSocket {
    fd: OwnedFd,
    rx: Messages,
    tx: Messages,
    /// Frames `tx_sent..tx_filled` of `tx` wait to be sent.
    tx_filled: usize,
    tx_sent: usize,
    congested: bool,
    closed: bool,
    last_error: Option<i32>,
    pub counters: PortCounters,
}

impl BatchSocket {
    /// `fd` is a non-blocking datagram, seqpacket or packet socket; frames are at most `rx_bytes` and `tx_bytes` long.
    pub fn new(fd: OwnedFd, rx_bytes: usize, tx_bytes: usize) -> Self {
        Self {
            fd,
            rx: Messages::new(HEADROOM, rx_bytes),
            tx: Messages::new(0, tx_bytes),
            tx_filled: 0,
            tx_sent: 0,
            congested: false,
            closed: false,
            last_error: None,
            counters: PortCounters::default(),
        }
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub fn frame_capacity(&self) -> usize {
        self.tx.capacity
    }

    /// The other end has closed a connected socket.
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// The last flush could not send everything.
    pub fn is_congested(&self) -> bool {
        self.congested
    }

    /// `handle` gets a buffer and where the frame begins in it; [`HEADROOM`] bytes before that are free to use.
    pub fn receive(&mut self, budget: usize, mut handle: impl FnMut(&mut [u8], usize, Beside)) -> usize {
        let (mut handed, mut left) = (0, budget);
        while left > 0 && !self.closed {
            let asked = left.min(BATCH);
            self.counters.syscalls += 1;
            let got = match self.rx.receive(self.fd.as_fd(), asked) {
                Ok(got) => got,
                Err(e) => {
                    self.note_error("receive", &e);
                    break;
                }
            };
            for i in 0..got {
                let (length, truncated, beside) = self.rx.received(i);
                if length == 0 {
                    // Only connected sockets say this, when the other end is gone; no frame is empty.
                    self.closed = true;
                    break;
                }
                if truncated {
                    self.counters.rx_bad += 1;
                    continue;
                }
                self.counters.rx_frames += 1;
                self.counters.rx_bytes += length as u64;
                handle(&mut self.rx.buffer(i)[..HEADROOM + length], HEADROOM, beside);
                handed += 1;
            }
            left -= got.min(left);
            if got < asked {
                break;
            }
        }
        handed
    }

    pub fn transmit(&mut self, budget: usize, mut fill: impl FnMut(&mut [u8]) -> Option<usize>) -> usize {
        let mut queued = 0;
        while queued < budget {
            if !self.can_transmit() {
                self.counters.tx_no_buffer += 1;
                break;
            }
            let buffer = self.tx.buffer(self.tx_filled);
            let capacity = buffer.len();
            let Some(length) = fill(buffer) else { break };
            debug_assert!(length <= capacity);
            self.tx.set_length(self.tx_filled, length.min(capacity));
            self.tx_filled += 1;
            queued += 1;
            self.counters.tx_frames += 1;
            self.counters.tx_bytes += length as u64;
        }
        queued
    }

    pub fn can_transmit(&mut self) -> bool {
        if self.tx_filled == BATCH {
            self.flush();
        }
        self.tx_filled < BATCH
    }

    pub fn flush(&mut self) {
        self.congested = false;
        while self.tx_sent < self.tx_filled {
            self.counters.syscalls += 1;
            match self.tx.send(self.fd.as_fd(), self.tx_sent..self.tx_filled) {
                Ok(sent) => self.tx_sent += sent,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    self.congested = true;
                    return;
                }
                // The first frame can't be sent, now or ever (device down or its queue full, too long, nobody there):
                // it is lost as on a wire.
                Err(e) => {
                    self.counters.tx_errors += 1;
                    self.tx_sent += 1;
                    self.note_error("send", &e);
                }
            }
        }
        (self.tx_filled, self.tx_sent) = (0, 0);
    }

    fn note_error(&mut self, verb: &str, error: &io::Error) {
        if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) {
            return;
        }
        // The same one over and over is said once.
        if self.last_error.replace(error.raw_os_error().unwrap_or(0)) != error.raw_os_error() {
            tracing::warn!("cannot {verb} frames: {error}");
        }
    }
}

/// BATCH buffers, and the structures that tell the kernel about them.
struct Messages {
    bytes: Box<[u8]>,
    headroom: usize,
    /// Bytes of the largest frame.
    capacity: usize,
    headers: Box<[libc::mmsghdr]>,
    iovecs: Box<[libc::iovec]>,
    control: Box<[[u64; CONTROL_WORDS]]>,
}

// SAFETY: the raw pointers inside are set anew before each call and point into this value's own boxes.
unsafe impl Send for Messages {}

impl Messages {
    fn new(headroom: usize, capacity: usize) -> Self {
        // SAFETY: all zeros is a valid mmsghdr: null pointers and zero lengths.
        let header: libc::mmsghdr = unsafe { std::mem::zeroed() };
        Self {
            bytes: vec![0; BATCH * (headroom + capacity)].into(),
            headroom,
            capacity,
            headers: vec![header; BATCH].into(),
            iovecs: vec![libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; BATCH].into(),
            control: vec![[0; CONTROL_WORDS]; BATCH].into(),
        }
    }

    /// Headroom and frame of buffer `i`.
    fn buffer(&mut self, i: usize) -> &mut [u8] {
        let stride = self.headroom + self.capacity;
        &mut self.bytes[i * stride..(i + 1) * stride]
    }

    fn set_length(&mut self, i: usize, length: usize) {
        self.iovecs[i].iov_len = length;
    }

    fn receive(&mut self, fd: BorrowedFd<'_>, n: usize) -> io::Result<usize> {
        let stride = self.headroom + self.capacity;
        let buffers = self.bytes.chunks_exact_mut(stride);
        let parts = buffers.zip(&mut self.iovecs).zip(&mut self.headers).zip(&mut self.control);
        for (((buffer, iovec), header), control) in parts.take(n) {
            iovec.iov_base = buffer[self.headroom..].as_mut_ptr().cast();
            iovec.iov_len = self.capacity;
            let message = &mut header.msg_hdr;
            message.msg_iov = iovec;
            message.msg_iovlen = 1;
            message.msg_control = control.as_mut_ptr().cast();
            message.msg_controllen = size_of_val(control) as _;
            message.msg_flags = 0;
        }
        // SAFETY: the first `n` headers (n <= BATCH, by the callers and the zips) point to buffers of the stated
        // lengths inside `self`, which is borrowed for the call.
        let got = unsafe {
            let flags = libc::MSG_DONTWAIT as _;
            libc::recvmmsg(fd.as_raw_fd(), self.headers.as_mut_ptr(), n as u32, flags, std::ptr::null_mut())
        };
        if got < 0 { Err(io::Error::last_os_error()) } else { Ok(got as usize) }
    }

    /// Length of frame `i` of the last receive, whether it was cut off, and what was said beside it.
    fn received(&self, i: usize) -> (usize, bool, Beside) {
        let header = &self.headers[i];
        let truncated = header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0;
        (header.msg_len as usize, truncated, beside(&self.control[i], header.msg_hdr.msg_controllen as _))
    }

    fn send(&mut self, fd: BorrowedFd<'_>, frames: std::ops::Range<usize>) -> io::Result<usize> {
        let stride = self.headroom + self.capacity;
        let buffers = self.bytes.chunks_exact_mut(stride);
        for ((buffer, iovec), header) in buffers.zip(&mut self.iovecs).zip(&mut self.headers) {
            iovec.iov_base = buffer.as_mut_ptr().cast();
            header.msg_hdr.msg_iov = iovec;
            header.msg_hdr.msg_iovlen = 1;
        }
        let headers = &mut self.headers[frames];
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        // SAFETY: the headers point to buffers inside `self`, with lengths that `set_length` bounded by the buffers'.
        let sent = unsafe { libc::sendmmsg(fd.as_raw_fd(), headers.as_mut_ptr(), headers.len() as u32, flags as _) };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(sent as usize) }
    }
}

/// Reads PACKET_AUXDATA (packet(7)) out of ancillary data; other kinds are not asked for.
fn beside(control: &[u64; CONTROL_WORDS], length: usize) -> Beside {
    const PACKET_AUXDATA: i32 = 8;
    // linux/if_packet.h.
    const TP_STATUS_CSUMNOTREADY: u32 = 1 << 3;
    const TP_STATUS_VLAN_VALID: u32 = 1 << 4;
    const TP_STATUS_VLAN_TPID_VALID: u32 = 1 << 6;
    const HEAD: usize = size_of::<libc::cmsghdr>();

    let mut bytes = [0; CONTROL_WORDS * 8];
    for (to, word) in bytes.chunks_exact_mut(8).zip(control) {
        to.copy_from_slice(&word.to_ne_bytes());
    }
    let bytes = &bytes[..length.min(bytes.len())];
    let word = |at: usize| bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map(i32::from_ne_bytes);
    let half = |at: usize| bytes.get(at..at + 2).and_then(|b| b.try_into().ok()).map(u16::from_ne_bytes);
    // struct cmsghdr ends with level and type. struct tpacket_auxdata: status, len, snaplen (u32), mac, net, vlan_tci,
    // vlan_tpid (u16).
    if (word(HEAD - 8), word(HEAD - 4)) != (Some(libc::SOL_PACKET), Some(PACKET_AUXDATA)) {
        return Beside::default();
    }
    let status = word(HEAD).unwrap_or(0) as u32;
    let vlan = (status & TP_STATUS_VLAN_VALID != 0).then(|| {
        let protocol = half(HEAD + 18).filter(|_| status & TP_STATUS_VLAN_TPID_VALID != 0).unwrap_or(0x8100);
        (protocol, half(HEAD + 16).unwrap_or(0))
    });
    Beside { checksum_missing: status & TP_STATUS_CSUMNOTREADY != 0, vlan }
}
