//! Pieces of datagrams: overlapping, doubled, missing, too many, with a length that changes. The pieces tell the truth
//! about their bytes, so a datagram that is delivered must be one that could be made of them.

use crate::script::Script;
use crate::wire;
use crate::world::{Node, addresses, mac, pattern};
use sidestep_stack::{Instant, ListenAddress, Token, Unknown};
use std::net::IpAddr;
use std::time::Duration;

/// The bytes are pieces of UDP datagrams to one socket.
///
/// # Panics
/// When a datagram arrives that nobody sent, or something stays.
pub fn run(bytes: &[u8]) {
    let mut script = Script::new(bytes);
    let mut node = Node::new(0, false);
    let mut now = Instant::from_millis(40_000);
    let at = ListenAddress { address: None, port: 7, ipv4: true, ipv6: true };
    node.stack.udp_open(Token(1 << 40), at, false).expect("a free port");
    node.frames(now);
    for _ in 0..2000 {
        if script.is_empty() {
            break;
        }
        let how = script.u8();
        if how & 0xc0 == 0xc0 {
            now = now + Duration::from_secs(u64::from(script.u8() % 40));
            node.stack.handle_timers(now, &mut node.world);
            node.frames(now);
            continue;
        }
        let (v6, more, id) = (how & 1 != 0, how & 2 != 0, how >> 2 & 7);
        let offset = match how >> 5 & 1 {
            0 => usize::from(script.u8()) * 8,
            _ => usize::from(script.u16()) / 8 * 8,
        };
        let mut len = usize::from(script.u8()) * 8;
        if !more {
            len += script.below(8);
        }
        // Where a fragment says that it lies beyond the end of any packet, its bytes are any.
        let payload: Vec<u8> = (offset..offset + len).map(|at| content(id, at)).collect();
        let (source, to) = (addresses(1)[usize::from(v6)], addresses(0)[usize::from(v6)]);
        let packet = piece(source, to, id, offset, more, &payload);
        let kind = if v6 { wire::IPV6 } else { wire::IPV4 };
        node.stack.handle_frame(now, &wire::ethernet(mac(0), mac(1), kind, &packet), &mut node.world, Unknown::Answer);
        for datagram in std::mem::take(&mut node.world.datagrams) {
            // UDP's own length cuts it, at the 8 bytes of header that each datagram says it has and more.
            let id = (0..8).find(|id| datagram.iter().zip(8..).all(|(b, at)| *b == content(*id, at)));
            assert!(id.is_some(), "a datagram of {} bytes that nobody sent", datagram.len());
        }
        node.frames(now);
    }
    node.end(now);
}

/// The byte of datagram `id` at an offset: a UDP header for port 7 first, whose length depends on the datagram.
fn content(id: u8, at: usize) -> u8 {
    let len = [16_u16, 24, 100, 1000, 1480, 2000, 4000, 60_000][usize::from(id)].to_be_bytes();
    [0x15, 0xb3, 0, 7, len[0], len[1], 0, 0].get(at).copied().unwrap_or_else(|| pattern(id, at as u32))
}

fn piece(from: IpAddr, to: IpAddr, id: u8, offset: usize, more: bool, payload: &[u8]) -> Vec<u8> {
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let field = (offset / 8) as u16 & 0x1fff | u16::from(more) << 13;
            wire::ipv4(from.octets(), to.octets(), 17, u16::from(id), field, payload)
        }
        _ => {
            let field = (offset as u16 & 0xfff8 | u16::from(more)).to_be_bytes();
            let header = [17, 0, field[0], field[1], 0, 0, 0, id];
            wire::ip(from, to, 44, &[&header[..], payload].concat())
        }
    }
}
