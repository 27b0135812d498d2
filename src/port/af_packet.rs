//! A device through a packet socket (packet(7)): works with every driver and without BPF, slowly. The kernel sees all
//! frames too, so an address of ours must not be the kernel's, or it answers as well.

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use super::batch::{BatchSocket, Beside};
use super::checksum::finish_checksum;
use super::{FrameIo, PortCounters, PortError};
use crate::xdp::nic::Nic;

/// A local sender's kernel may leave segmentation to hardware that isn't there: such "frames" are up to 64 KiB long.
const RX_BYTES: usize = 65_536 + 22;

/// The kernel's buffers for our socket, in bytes: some milliseconds of a busy 10 Gbit/s link.
const SOCKET_BUFFER: i32 = 8 << 20;

/// One device, or one of several sockets that share its frames by flow.
pub struct AfPacketPort {
    socket: BatchSocket,
    /// Frames the socket had no room for; the kernel only tells how many since it was last asked.
    dropped: Cell<u64>,
}

impl AfPacketPort {
    /// Opens the device. With a `fanout` group (any number, the same for all ports of one device in this network
    /// namespace), the ports opened share the received frames by flow (PACKET_FANOUT_HASH); without, each gets all.
    pub fn open(ifname: &str, fanout: Option<u16>) -> Result<Self, PortError> {
        let nic = Nic::query(ifname)?;
        let fd = open_socket(&nic, fanout).map_err(|cause| {
            let hint = match cause.raw_os_error() {
                Some(libc::EPERM) => "packet sockets need CAP_NET_RAW: run as root",
                Some(libc::EINVAL) if fanout.is_some() => "the fanout group may be in use with other settings",
                _ => "",
            };
            PortError { what: format!("open a packet socket on {ifname}"), cause, hint: hint.into() }
        })?;
        // Ethernet's header and two VLAN tags.
        Ok(Self { socket: BatchSocket::new(fd, RX_BYTES, nic.mtu as usize + 22), dropped: Cell::new(0) })
    }
}

impl FrameIo for AfPacketPort {
    fn receive(&mut self, budget: usize, mut handle: impl FnMut(&mut [u8])) -> usize {
        self.socket.receive(budget, |buffer, at, beside| handle(restore(buffer, at, beside)))
    }

    fn transmit(&mut self, budget: usize, fill: impl FnMut(&mut [u8]) -> Option<usize>) -> usize {
        self.socket.transmit(budget, fill)
    }

    fn flush(&mut self) {
        self.socket.flush();
    }

    fn can_transmit(&mut self) -> bool {
        self.socket.can_transmit()
    }

    fn frame_capacity(&self) -> usize {
        self.socket.frame_capacity()
    }

    fn poll_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.socket.fd())
    }

    fn prepare_sleep(&mut self) -> bool {
        self.socket.flush();
        self.socket.is_congested()
    }

    fn counters(&self) -> PortCounters {
        self.dropped.set(self.dropped.get() + dropped(self.socket.fd()));
        PortCounters { rx_ring_full: self.dropped.get(), ..self.socket.counters }
    }
}

/// Makes of what the kernel gave what was, or would have been, on the wire.
fn restore(buffer: &mut [u8], at: usize, beside: Beside) -> &mut [u8] {
    let mut start = at;
    if let Some((protocol, tci)) = beside.vlan
        && buffer.len() >= at + 12
        && at >= 4
    {
        // The tag goes between the addresses and the type (IEEE 802.1Q).
        start = at - 4;
        buffer.copy_within(at..at + 12, start);
        buffer[start + 12..start + 14].copy_from_slice(&protocol.to_be_bytes());
        buffer[start + 14..start + 16].copy_from_slice(&tci.to_be_bytes());
    }
    let frame = &mut buffer[start..];
    if beside.checksum_missing {
        finish_checksum(frame);
    }
    frame
}

fn open_socket(nic: &Nic, fanout: Option<u16>) -> io::Result<OwnedFd> {
    const PACKET_AUXDATA: i32 = 8;
    const PACKET_FANOUT: i32 = 18;
    const PACKET_IGNORE_OUTGOING: i32 = 23;
    let fd = crate::xdp::packet_socket()?;
    let set = |level, name, value| crate::xdp::set_int_option(fd.as_fd(), level, name, value);
    set(libc::SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)?;
    set(libc::SOL_PACKET, PACKET_AUXDATA, 1)?;
    // Needs CAP_NET_ADMIN, and the default is good enough without.
    let _ = set(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, SOCKET_BUFFER);
    let _ = set(libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, SOCKET_BUFFER);

    // SAFETY: all zeros is a valid sockaddr_ll.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex = nic.ifindex as i32;
    let length = size_of_val(&address) as libc::socklen_t;
    // SAFETY: pointer and length describe `address`.
    if unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), length) } < 0 {
        return Err(io::Error::last_os_error());
    }
    if let Some(group) = fanout {
        // The group in the low half, the mode (0: by flow) in the high one.
        set(libc::SOL_PACKET, PACKET_FANOUT, i32::from(group))?;
    }
    Ok(fd)
}

/// Frames that the socket's buffer had no room for, since the last call: the kernel resets its count.
fn dropped(fd: BorrowedFd<'_>) -> u64 {
    const PACKET_STATISTICS: i32 = 6;
    // struct tpacket_stats: packets, drops.
    let mut words = [0u32; 2];
    let mut length = size_of_val(&words) as libc::socklen_t;
    // SAFETY: pointer and length describe `words`.
    let rc = unsafe {
        let words = words.as_mut_ptr().cast();
        libc::getsockopt(fd.as_raw_fd(), libc::SOL_PACKET, PACKET_STATISTICS, words, &raw mut length)
    };
    if rc == 0 { u64::from(words[1]) } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_that_was_taken_out_is_put_back() {
        let mut buffer: Vec<u8> = (0..24).collect();
        let beside = Beside { checksum_missing: false, vlan: Some((0x8100, 7)) };
        let frame = restore(&mut buffer, 4, beside);
        assert_eq!(frame[..12], (4..16).collect::<Vec<u8>>()[..]);
        assert_eq!(frame[12..], [0x81, 0, 0, 7, 16, 17, 18, 19, 20, 21, 22, 23]);
    }
}
