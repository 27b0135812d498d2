//! Frames over a Unix socket: one end of a pair, for tests and for joining two stacks, or a descriptor that somebody
//! passed us.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair, sockopt};

use super::batch::BatchSocket;
use super::{FrameIo, PortCounters, PortError};

/// Bytes that may wait in each direction.
const SOCKET_BUFFER: usize = 4 << 20;

/// One end of a wire.
pub struct PipePort {
    socket: BatchSocket,
}

impl PipePort {
    /// Both ends of a wire for frames with up to `mtu` bytes of payload. Order is kept, nothing is lost; a full wire
    /// makes the sender wait.
    pub fn pair(mtu: usize) -> Result<(Self, Self), PortError> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        // Seqpacket rather than datagram: the latter holds ten messages by default (net.unix.max_dgram_qlen).
        let (a, b) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).map_err(|e| PortError {
            what: "make a pair of sockets".into(),
            cause: e.into(),
            hint: String::new(),
        })?;
        Ok((Self::from_fd(a, mtu)?, Self::from_fd(b, mtu)?))
    }

    /// One end of a wire that exists: a connected Unix socket of type datagram or seqpacket.
    pub fn from_fd(fd: OwnedFd, mtu: usize) -> Result<Self, PortError> {
        let error = |cause: io::Error, hint: &str| PortError {
            what: "use the inherited descriptor as a wire".into(),
            cause,
            hint: hint.into(),
        };
        let hint = "it should be a connected Unix socket of type datagram or seqpacket";
        let kind = sockopt::socket_type(&fd).map_err(|e| error(e.into(), hint))?;
        if kind != SocketType::SEQPACKET && kind != SocketType::DGRAM {
            return Err(error(io::Error::from_raw_os_error(libc::EPROTOTYPE), hint));
        }
        rustix::io::ioctl_fionbio(&fd, true).map_err(|e| error(e.into(), ""))?;
        // Without the privilege to exceed the system's limit, up to that.
        if sockopt::set_socket_send_buffer_size_force(&fd, SOCKET_BUFFER).is_err() {
            let _ = sockopt::set_socket_send_buffer_size(&fd, SOCKET_BUFFER);
        }
        // Ethernet's header and two VLAN tags.
        let bytes = mtu + 22;
        Ok(Self { socket: BatchSocket::new(fd, bytes, bytes) })
    }

    /// The other end is gone (seqpacket only): nothing will come any more.
    pub fn is_closed(&self) -> bool {
        self.socket.is_closed()
    }
}

impl FrameIo for PipePort {
    fn receive(&mut self, budget: usize, mut handle: impl FnMut(&mut [u8])) -> usize {
        self.socket.receive(budget, |buffer, at, _| handle(&mut buffer[at..]))
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
        self.socket.counters
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(i: usize) -> Vec<u8> {
        vec![i as u8; 60 + i % 1_400]
    }

    #[test]
    fn frames_arrive_whole_and_in_order() {
        let (mut a, mut b) = PipePort::pair(1_500).unwrap();
        let (mut sent, mut got) = (0, 0);
        while got < 1_000 {
            a.transmit(50, |buffer| {
                (sent < 1_000).then(|| {
                    let frame = frame(sent);
                    buffer[..frame.len()].copy_from_slice(&frame);
                    sent += 1;
                    frame.len()
                })
            });
            a.flush();
            b.receive(40, |bytes| {
                assert_eq!(bytes, frame(got));
                got += 1;
            });
        }
        assert_eq!(a.counters().tx_frames, 1_000);
        assert_eq!(b.counters().rx_frames, 1_000);
        assert_eq!(a.counters().tx_bytes, b.counters().rx_bytes);
        assert!(a.counters().syscalls < 500, "frames go in batches: {:?}", a.counters());
        assert_eq!(b.receive(10, |_| {}), 0);
    }

    #[test]
    fn a_full_wire_keeps_frames_and_says_so() {
        let (mut a, mut b) = PipePort::pair(1_500).unwrap();
        let mut sent = 0u32;
        let mut fill = |buffer: &mut [u8]| {
            buffer[..1_000].fill(0);
            buffer[..4].copy_from_slice(&sent.to_ne_bytes());
            sent += 1;
            Some(1_000)
        };
        while a.transmit(100, &mut fill) == 100 {}
        assert!(!a.can_transmit() && a.counters().tx_no_buffer == 1);
        assert!(a.prepare_sleep());
        let mut got = 0;
        while b.receive(64, |bytes| {
            assert_eq!(bytes[..4], u32::to_ne_bytes(got));
            got += 1;
        }) > 0
        {
            a.flush();
        }
        assert!(!a.prepare_sleep());
        assert_eq!(got, sent);
    }

    #[test]
    fn the_other_end_gone_is_noticed() {
        let (mut a, b) = PipePort::pair(1_500).unwrap();
        drop(b);
        assert_eq!(a.receive(10, |_| {}), 0);
        assert!(a.is_closed());
        a.transmit(1, |_| Some(60));
        a.flush();
        assert_eq!(a.counters().tx_errors, 1);
    }

    #[test]
    fn a_descriptor_of_another_kind_is_refused() {
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(PipePort::from_fd(file.into(), 1_500).is_err());
    }
}
