//! The engine's device, as the kernel tells of it: rtnetlink(7). A device that goes takes its queues along without a
//! word to the sockets on them: an engine would wait for frames for ever.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::link::{LinkFlags, LinkMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_ROUTE;

/// RTNLGRP_LINK of rtnetlink(7).
const GROUP_LINK: u32 = 1;

/// A subscription to one device.
pub struct LinkWatch {
    socket: Socket,
    ifindex: u32,
    name: String,
    /// None: not known yet.
    up: Option<bool>,
}

impl LinkWatch {
    /// # Errors
    /// No netlink socket.
    pub fn open(ifindex: u32, name: &str) -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.add_membership(GROUP_LINK)?;
        socket.set_non_blocking(true)?;
        Ok(Self { socket, ifindex, name: name.into(), up: None })
    }

    /// Readable when a device changed.
    #[allow(unsafe_code)]
    pub fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the socket is open as long as self is borrowed.
        unsafe { BorrowedFd::borrow_raw(self.socket.as_raw_fd()) }
    }

    /// Reads what the kernel has said, and says what matters. True: the device is gone.
    pub fn is_gone(&mut self) -> bool {
        let mut gone = false;
        // ENOBUFS: messages were lost. The device is asked for by name then.
        loop {
            match self.socket.recv_from_full() {
                Ok((bytes, _)) => gone |= self.read(&bytes),
                Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => {
                    gone |= crate::xdp::nic::Nic::query(&self.name).is_ok_and(|nic| nic.ifindex != self.ifindex);
                }
                Err(_) => break,
            }
        }
        if gone {
            tracing::error!(
                "the interface {} is gone (deleted, or moved to another namespace): the engine can't serve any more and \
                 stops; its programs' sockets give errors",
                self.name
            );
        }
        gone
    }

    fn read(&mut self, mut rest: &[u8]) -> bool {
        let mut gone = false;
        while let Ok(message) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest) {
            let length = (message.header.length as usize).next_multiple_of(4);
            match message.payload {
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(link)) => gone |= self.is_it(&link),
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) if self.is_it(&link) => {
                    self.note(link.header.flags.contains(LinkFlags::Up | LinkFlags::LowerUp));
                }
                _ => {}
            }
            if length == 0 || length >= rest.len() {
                break;
            }
            rest = &rest[length..];
        }
        gone
    }

    /// A bridge tells of its ports by messages of its own family.
    fn is_it(&self, link: &LinkMessage) -> bool {
        link.header.index == self.ifindex && link.header.interface_family == AddressFamily::Unspec
    }

    fn note(&mut self, up: bool) {
        match (self.up.replace(up), up) {
            (Some(true) | None, false) => {
                tracing::warn!("the interface {} is down, or has no carrier: nothing arrives", self.name);
            }
            (Some(false), true) => tracing::info!("the interface {} is up again", self.name),
            _ => {}
        }
    }
}
