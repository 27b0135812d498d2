//! Who has which local port: bind() as Linux decides it.

use std::collections::HashMap;
use std::net::IpAddr;
use std::os::fd::OwnedFd;

use sidestep_shm::slot::option;

/// TCP and UDP have port spaces of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    Tcp,
    Udp,
}

/// A claim on a port.
#[derive(Debug)]
pub struct Binding {
    pub group: u32,
    pub slot: u32,
    /// None: any address.
    pub address: Option<IpAddr>,
    pub ipv4: bool,
    pub ipv6: bool,
    pub reuse_address: bool,
    pub reuse_port: bool,
    pub listening: bool,
    /// Keeps the same port from the kernel's programs where the address is shared.
    pub reservation: Option<OwnedFd>,
}

/// All claims. Ports without one take no memory.
#[derive(Debug, Default)]
pub struct PortTable {
    claims: HashMap<(Protocol, u16), Vec<Binding>>,
}

/// The shard on which the datagram sockets of a port live. A function of the port, so that every shard knows it
/// without asking.
#[must_use]
pub fn datagram_shard(port: u16, shards: u32) -> u32 {
    u32::from(port) % shards
}

impl PortTable {
    /// Whether `new` may have `port` beside those who have it (socket(7), SO_REUSEADDR and SO_REUSEPORT).
    #[must_use]
    pub fn is_free(&self, protocol: Protocol, port: u16, new: &Binding) -> bool {
        self.claims.get(&(protocol, port)).is_none_or(|claims| claims.iter().all(|old| compatible(protocol, old, new)))
    }

    /// Who is in the way of `new`, for a look at whether they are still there.
    #[must_use]
    pub fn in_the_way(&self, protocol: Protocol, port: u16, new: &Binding) -> Vec<(u32, u32)> {
        let claims = self.claims.get(&(protocol, port)).into_iter().flatten();
        claims.filter(|old| !compatible(protocol, old, new)).map(|b| (b.group, b.slot)).collect()
    }

    pub fn claim(&mut self, protocol: Protocol, port: u16, binding: Binding) {
        self.claims.entry((protocol, port)).or_default().push(binding);
    }

    /// Who listens on a port.
    #[must_use]
    pub fn listeners(&self, port: u16) -> Vec<(u32, u32)> {
        let claims = self.claims.get(&(Protocol::Tcp, port)).into_iter().flatten();
        claims.filter(|b| b.listening).map(|b| (b.group, b.slot)).collect()
    }

    /// Marks the claim of a slot as listening; false when another listener is in the way.
    pub fn listen(&mut self, port: u16, group: u32, slot: u32) -> bool {
        let Some(claims) = self.claims.get_mut(&(Protocol::Tcp, port)) else { return false };
        let is_it = |b: &Binding| (b.group, b.slot) == (group, slot);
        let Some(mine) = claims.iter().position(is_it) else { return false };
        let clash = claims.iter().enumerate().any(|(i, b)| {
            i != mine && b.listening && overlap(b, &claims[mine]) && !(b.reuse_port && claims[mine].reuse_port)
        });
        claims[mine].listening |= !clash;
        !clash
    }

    /// SO_REUSEADDR and SO_REUSEPORT of a claim as they are now (bits of [`option`]).
    pub fn set_reuse(&mut self, protocol: Protocol, port: u16, (group, slot): (u32, u32), options: u32) {
        let claims = self.claims.get_mut(&(protocol, port)).into_iter().flatten();
        for claim in claims.filter(|b| (b.group, b.slot) == (group, slot)) {
            claim.reuse_address = options & option::REUSE_ADDRESS != 0;
            claim.reuse_port = options & option::REUSE_PORT != 0;
        }
    }

    /// The claim of a slot listens no longer.
    pub fn unlisten(&mut self, port: u16, group: u32, slot: u32) {
        let claims = self.claims.get_mut(&(Protocol::Tcp, port)).into_iter().flatten();
        claims.filter(|b| (b.group, b.slot) == (group, slot)).for_each(|b| b.listening = false);
    }

    /// Takes a claim out, and gives it back when it was the last on its port.
    pub fn release(&mut self, protocol: Protocol, port: u16, group: u32, slot: u32) -> Option<Binding> {
        let claims = self.claims.get_mut(&(protocol, port))?;
        let at = claims.iter().position(|b| (b.group, b.slot) == (group, slot))?;
        let binding = claims.swap_remove(at);
        if !claims.is_empty() {
            return None;
        }
        self.claims.remove(&(protocol, port));
        Some(binding)
    }

    /// Whether anyone claims the port.
    #[must_use]
    pub fn is_claimed(&self, protocol: Protocol, port: u16) -> bool {
        self.claims.contains_key(&(protocol, port))
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.claims.values().map(Vec::len).sum()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.claims.is_empty()
    }
}

fn compatible(protocol: Protocol, old: &Binding, new: &Binding) -> bool {
    let both_reuse = old.reuse_address && new.reuse_address && (protocol == Protocol::Udp || !old.listening);
    !overlap(old, new) || both_reuse || (old.reuse_port && new.reuse_port)
}

/// Whether one packet could be for either.
fn overlap(a: &Binding, b: &Binding) -> bool {
    let families = (a.ipv4 && b.ipv4) || (a.ipv6 && b.ipv6);
    families && (a.address.is_none() || b.address.is_none() || a.address == b.address)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn binding(slot: u32, address: Option<&str>) -> Binding {
        let address = address.map(|a| a.parse::<IpAddr>().unwrap());
        let v4 = address.is_none_or(|a| a.is_ipv4());
        Binding {
            group: 0,
            slot,
            address,
            ipv4: v4,
            ipv6: address.is_some_and(|a| a.is_ipv6()),
            reuse_address: false,
            reuse_port: false,
            listening: false,
            reservation: None,
        }
    }

    #[test]
    fn a_port_has_one_owner_for_each_address() {
        let mut t = PortTable::default();
        t.claim(Protocol::Tcp, 80, binding(1, Some("10.0.0.1")));
        assert!(!t.is_free(Protocol::Tcp, 80, &binding(2, Some("10.0.0.1"))));
        assert!(!t.is_free(Protocol::Tcp, 80, &binding(2, None)));
        assert!(t.is_free(Protocol::Tcp, 80, &binding(2, Some("10.0.0.2"))));
        assert!(t.is_free(Protocol::Tcp, 80, &binding(2, Some("fd00::1"))));
        assert!(t.is_free(Protocol::Udp, 80, &binding(2, None)));
        assert!(t.release(Protocol::Tcp, 80, 0, 1).is_some());
        assert!(t.is_free(Protocol::Tcp, 80, &binding(2, None)));
    }

    #[test]
    fn reuse_lets_in_what_linux_lets_in() {
        let mut t = PortTable::default();
        let reuse = |slot| Binding { reuse_address: true, ..binding(slot, None) };
        t.claim(Protocol::Tcp, 80, reuse(1));
        assert!(t.is_free(Protocol::Tcp, 80, &reuse(2)), "nobody listens yet");
        t.claim(Protocol::Tcp, 80, reuse(2));
        assert!(t.listen(80, 0, 1));
        assert!(!t.listen(80, 0, 2), "one listener only");
        assert!(!t.is_free(Protocol::Tcp, 80, &reuse(3)), "a listener is there");
        let group = |slot| Binding { reuse_port: true, ..binding(slot, None) };
        t.claim(Protocol::Tcp, 81, group(1));
        assert!(t.listen(81, 0, 1));
        assert!(t.is_free(Protocol::Tcp, 81, &group(2)));
        t.claim(Protocol::Tcp, 81, group(2));
        assert!(t.listen(81, 0, 2));
        assert!(t.release(Protocol::Tcp, 81, 0, 1).is_none());
    }
}
