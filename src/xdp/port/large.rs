//! Bulk beside the rings: in copy mode the kernel makes a packet of its own of each frame and takes it through the device
//! one by one. A packet socket takes 64 KiB at once, with the note (`struct virtio_net_hdr`) that lets the kernel, or the
//! NIC, cut it into frames: as for its own TCP. Only ever sends; what arrives comes through the rings.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{SendFlags, send};
use sidestep_stack::Large;

use crate::port::PortCounters;
use crate::xdp::nic::Nic;
use crate::xdp::sys;

/// `struct virtio_net_hdr` (virtio 1.2, 5.1.6): flags, gso_type, hdr_len, gso_size, csum_start, csum_offset.
const NOTE: usize = 10;
const NEEDS_CSUM: u8 = 1;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
/// Of the field in TCP's header.
const CSUM_OFFSET: u16 = 16;

/// An IP packet with Ethernet's header.
const CAPACITY: usize = 65_535 + 14;
/// Bytes that may wait in the kernel, so that a NIC's queue doesn't run dry.
const SOCKET_BUFFER: i32 = 4 << 20;
/// Sends that are tried again when interrupted.
const TRIES: u32 = 3;

/// The packet socket and the packet that it has not taken yet.
pub(super) struct LargeSender {
    socket: OwnedFd,
    /// Note and packet.
    buffer: Box<[u8]>,
    /// Bytes of `buffer` that wait for room in the kernel.
    waiting: usize,
}

impl LargeSender {
    /// # Errors
    /// The kernel has no packet sockets, or the process no right to them.
    pub fn open(nic: &Nic) -> io::Result<Self> {
        const PACKET_VNET_HDR: i32 = 15;
        let socket = sys::packet_socket()?;
        sys::set_int_option(socket.as_fd(), libc::SOL_PACKET, PACKET_VNET_HDR, 1)?;
        let _ = sys::set_int_option(socket.as_fd(), libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, SOCKET_BUFFER);
        // SAFETY: all zeros is a valid sockaddr_ll.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_ifindex = nic.ifindex as i32;
        let length = size_of_val(&address) as libc::socklen_t;
        // SAFETY: pointer and length describe `address`.
        if unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { socket, buffer: vec![0; NOTE + CAPACITY].into(), waiting: 0 })
    }

    /// Bytes of a packet that could be taken now.
    pub fn capacity(&self) -> usize {
        if self.waiting > 0 { 0 } else { CAPACITY }
    }

    pub fn is_waiting(&self) -> bool {
        self.waiting > 0
    }

    /// Sends what `fill` writes; the frames that it becomes.
    pub fn send(&mut self, counters: &mut PortCounters, fill: impl FnOnce(&mut [u8]) -> Option<Large>) -> usize {
        if self.waiting > 0 {
            return 0;
        }
        let Some(large) = fill(&mut self.buffer[NOTE..]) else { return 0 };
        self.buffer[..NOTE].copy_from_slice(&note(&large));
        self.waiting = NOTE + large.len;
        let frames = usize::from(large.frames);
        counters.tx_frames += frames as u64;
        counters.tx_bytes += (large.len + (frames - 1) * usize::from(large.headers)) as u64;
        self.flush(counters);
        frames
    }

    /// Tries again what the kernel had no room for.
    pub fn flush(&mut self, counters: &mut PortCounters) {
        if self.waiting == 0 {
            return;
        }
        for _ in 0..TRIES {
            counters.syscalls += 1;
            match send(&self.socket, &self.buffer[..self.waiting], SendFlags::DONTWAIT) {
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN | Errno::NOBUFS | Errno::NOMEM) => return,
                Ok(_) => {
                    self.waiting = 0;
                    return;
                }
                Err(why) => {
                    // Lost, as on a bad link: the segments are sent again, frame by frame.
                    tracing::debug!("a large packet was refused: {why}");
                    counters.tx_errors += 1;
                    self.waiting = 0;
                    return;
                }
            }
        }
    }
}

fn note(large: &Large) -> [u8; NOTE] {
    let mut note = [0; NOTE];
    note[0] = NEEDS_CSUM;
    note[1] = if large.ipv6 { GSO_TCPV6 } else { GSO_TCPV4 };
    for (i, word) in [large.headers, large.segment, large.transport, CSUM_OFFSET].into_iter().enumerate() {
        note[2 + 2 * i..4 + 2 * i].copy_from_slice(&word.to_ne_bytes());
    }
    note
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_note_says_where_to_cut() {
        let large = Large { len: 2962, headers: 66, transport: 34, segment: 1448, frames: 2, ipv6: false };
        let words = |n: [u8; NOTE]| [2, 4, 6, 8].map(|i| u16::from_ne_bytes([n[i], n[i + 1]]));
        assert_eq!((note(&large)[..2].to_vec(), words(note(&large))), (vec![1, 1], [66, 1448, 34, 16]));
        let large = Large { headers: 86, transport: 54, ipv6: true, ..large };
        assert_eq!((note(&large)[1], words(note(&large))), (4, [86, 1448, 54, 16]));
    }
}
