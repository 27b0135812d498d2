//! Packets that no frame on the wire stands for, and that another shard may want: loopback packets whose socket is not
//! here, and datagrams that came in fragments, of which only the whole can be handed over.
//!
//! They travel as frames without Ethernet addresses. [`Stack::handle_frame`] refuses such frames, so nobody outside
//! can make one; who hands strays over must see to it that only [`Stack::poll_stray`] is where they come from.

use crate::ethernet::{self, HEADER, Kind};
use crate::ip::{Datagram, Header, emit_header, header_len};
use crate::{Host, Instant, Stack, Unknown, Verdict};
use alloc::vec;
use alloc::vec::Vec;
use smoltcp::wire::{Ipv4Packet, Ipv6Packet};

/// Strays that wait to be polled.
pub(crate) const LIMIT: usize = 64;

/// A packet for another shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stray {
    /// For [`Stack::handle_stray`]. May be longer than the MTU.
    pub frame: Vec<u8>,
    /// As in [`Verdict::Elsewhere`].
    pub protocol: u8,
    pub local_port: u16,
    pub hash: u32,
}

impl Stack {
    /// Whether other stacks have the same addresses (it is one of several shards). Then loopback packets that no socket
    /// here wants are not answered, but given by [`Self::poll_stray`].
    pub const fn set_shared(&mut self, shared: bool) {
        self.shared = shared;
    }

    /// The next packet to hand to another shard. To be called after [`Self::handle_frame`] with [`Unknown::Report`],
    /// after [`Self::poll_frame`] and [`Self::handle_stray`].
    pub fn poll_stray(&mut self) -> Option<Stray> {
        self.strays.pop_front()
    }

    /// Takes a stray of another shard, or a frame that [`Self::handle_frame`] of another shard could not place.
    pub fn handle_stray(&mut self, now: Instant, frame: &[u8], host: &mut dyn Host, unknown: Unknown) -> Verdict {
        if frame.get(..12) != Some(&[0; 12]) {
            return self.handle_frame(now, frame, host, unknown);
        }
        self.now = now;
        let packet = &frame[12..];
        let Some((header, payload)) = parse(packet) else { return self.malformed() };
        let group = !self.routes.is_local(header.destination);
        let d = Datagram { header, group, loopback: true, original: &[] };
        self.deliver(now, &d, payload, host, unknown)
    }

    /// Keeps a packet that `verdict` says is another shard's. Gives what is left to say of it here.
    pub(crate) fn keep_stray(&mut self, header: &Header, payload: &[u8], verdict: Verdict) -> Verdict {
        let Verdict::Elsewhere { protocol, local_port, hash } = verdict else { return verdict };
        if self.strays.len() >= LIMIT {
            self.counters.drop_queue_full += 1;
            return Verdict::Handled;
        }
        let kind = if header.destination.is_ipv4() { Kind::Ipv4 } else { Kind::Ipv6 };
        let mut frame = vec![0; HEADER + header_len(header.destination, false)];
        ethernet::emit(&mut frame, [0; 6], [0; 6], kind);
        emit_header(&mut frame[HEADER..], header, payload.len(), None, None);
        frame.extend_from_slice(payload);
        self.strays.push_back(Stray { frame, protocol, local_port, hash });
        Verdict::Handled
    }
}

/// Reads what `keep_stray` wrote: EtherType, IP header without options, payload.
fn parse(packet: &[u8]) -> Option<(Header, &[u8])> {
    match packet.split_first_chunk::<2>()? {
        ([0x08, 0x00], packet) => {
            let p = Ipv4Packet::new_checked(packet).ok()?;
            let header = Header {
                source: p.src_addr().into(),
                destination: p.dst_addr().into(),
                protocol: p.next_header().into(),
                tos: p.dscp() << 2 | p.ecn(),
                ttl: p.hop_limit(),
            };
            Some((header, packet.get(20..usize::from(p.total_len()))?))
        }
        ([0x86, 0xdd], packet) => {
            let p = Ipv6Packet::new_checked(packet).ok()?;
            let header = Header {
                source: p.src_addr().into(),
                destination: p.dst_addr().into(),
                protocol: p.next_header().into(),
                tos: p.traffic_class(),
                ttl: p.hop_limit(),
            };
            Some((header, packet.get(40..p.total_len())?))
        }
        _ => None,
    }
}
