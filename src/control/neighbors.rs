//! The kernel's neighbour table, for an engine that shares the machine's address: the kernel answers ARP and NDP, so
//! only the kernel hears the answers. rtnetlink(7): a dump at the start, then changes as they come.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_core::{
    NLM_F_CREATE, NLM_F_DUMP, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use sidestep_stack::NeighborUpdate;

/// RTNLGRP_NEIGH of rtnetlink(7).
const GROUP_NEIGH: u32 = 3;

/// A subscription to the neighbours of one interface.
pub struct KernelNeighbors {
    socket: Socket,
    ifindex: u32,
}

impl KernelNeighbors {
    /// # Errors
    /// No netlink socket.
    pub fn open(ifindex: u32) -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.add_membership(GROUP_NEIGH)?;
        socket.set_non_blocking(true)?;
        Ok(Self { socket, ifindex })
    }

    /// Readable when the table changed.
    #[allow(unsafe_code)]
    pub fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the socket is open as long as self is borrowed.
        unsafe { BorrowedFd::borrow_raw(self.socket.as_raw_fd()) }
    }

    /// Asks for the whole table; what is there already comes back, the rest as changes.
    pub fn dump(&mut self) -> Vec<NeighborUpdate> {
        let message = RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default());
        self.send(message, NLM_F_REQUEST | NLM_F_DUMP);
        let wait = rustix::event::Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
        let fd = self.fd();
        let mut fds = [rustix::event::PollFd::new(&fd, rustix::event::PollFlags::IN)];
        let _ = rustix::event::poll(&mut fds, Some(&wait));
        self.changes()
    }

    /// Everything that the kernel has said since the last call.
    pub fn changes(&mut self) -> Vec<NeighborUpdate> {
        let mut updates = Vec::new();
        // ENOBUFS: changes were lost; the stack asks again for whom it misses.
        while let Ok((bytes, _)) = self.socket.recv_from_full() {
            let mut rest = &bytes[..];
            while let Ok(message) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest) {
                let length = (message.header.length as usize).next_multiple_of(4);
                match message.payload {
                    NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNeighbour(n)) => {
                        updates.extend(self.update(&n, false))
                    }
                    NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelNeighbour(n)) => {
                        updates.extend(self.update(&n, true))
                    }
                    _ => {}
                }
                if length == 0 || length >= rest.len() {
                    break;
                }
                rest = &rest[length..];
            }
        }
        updates
    }

    /// Makes the kernel find out: `ip neigh … use`.
    pub fn resolve(&mut self, address: IpAddr) {
        let mut n = NeighbourMessage::default();
        n.header.family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        n.header.ifindex = self.ifindex;
        n.header.flags = NeighbourFlags::Use;
        n.header.state = NeighbourState::None;
        n.attributes.push(NeighbourAttribute::Destination(match address {
            IpAddr::V4(a) => NeighbourAddress::Inet(a),
            IpAddr::V6(a) => NeighbourAddress::Inet6(a),
        }));
        self.send(RouteNetlinkMessage::NewNeighbour(n), NLM_F_REQUEST | NLM_F_CREATE | NLM_F_REPLACE);
    }

    fn update(&self, n: &NeighbourMessage, gone: bool) -> Option<NeighborUpdate> {
        if n.header.ifindex != self.ifindex {
            return None;
        }
        let address = n.attributes.iter().find_map(|a| match a {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(a)) => Some(IpAddr::V4(*a)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(a)) => Some(IpAddr::V6(*a)),
            _ => None,
        })?;
        let mac = n.attributes.iter().find_map(|a| match a {
            NeighbourAttribute::LinkLayerAddress(mac) => <[u8; 6]>::try_from(&mac[..]).ok(),
            _ => None,
        });
        match n.header.state {
            NeighbourState::Failed => Some(NeighborUpdate { address, mac: None }),
            // Under way: nothing is known yet.
            NeighbourState::Incomplete | NeighbourState::None => None,
            _ => Some(NeighborUpdate { address, mac: if gone { None } else { mac } }),
        }
    }

    fn send(&self, message: RouteNetlinkMessage, flags: u16) {
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        if let Err(error) = self.socket.send_to(&bytes, &SocketAddr::new(0, 0), 0) {
            tracing::warn!(%error, "can't ask the kernel about a neighbour");
        }
    }
}
