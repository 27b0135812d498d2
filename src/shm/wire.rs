//! Messages on the engine's control socket (SOCK_SEQPACKET, one message a packet, one reply a request).
//!
//! The control socket carries what happens once: attach, fork, bind, listen, questions. Data, connect() and accept()
//! never touch it. It is also the life line: when one end dies the other reads end-of-file.
//!
//! | request | descriptors with it | reply | descriptors with it |
//! |---|---|---|---|
//! | `Hello` | | `Welcome` then route rules as payload | memfd, then one doorbell eventfd a shard |
//! | `EventQueue` | a datagram socket that the engine writes to ring | `Done` | |
//! | `Bind`, `Listen` | | `Done` with the address | |
//! | `Unlisten` | | `Done` | |
//! | `Adopt` (a forked child on the connection that its parent made for it) | | `Done` | |
//! | `Info` | | `Info` | |
//! | `Inspect` | | `Text` packets, the last one empty | |
//!
//! Encoding: a 4-byte code, then the fields in order, little-endian, fixed size. Anything else is refused.

/// Version of these messages. Engine and library must agree exactly.
pub const PROTOCOL: u32 = 2;
/// Largest packet in bytes.
pub const MAX_PACKET_BYTES: usize = 4096;
/// Bytes of Linux's `struct tcp_info` as [`Reply::Info`] carries it.
pub const INFO_BYTES: usize = 248;
/// Route rules in a `Welcome` at most.
pub const MAX_ROUTE_RULES: usize = 64;

/// Environment: path of the control socket (a leading '@' means the abstract namespace).
pub const ENV_SOCKET: &str = "SIDESTEP_SOCKET";
/// Environment: the group to join, 32 hexadecimal digits.
pub const ENV_GROUP: &str = "SIDESTEP_GROUP";
/// Environment, across exec only: number of the descriptor that is this process's control connection.
pub const ENV_INHERIT: &str = "SIDESTEP_INHERIT";
/// Environment: "dispatch": every system call of the program is watched, not only those that it makes through the C library.
pub const ENV_SYSCALLS: &str = "SIDESTEP_SYSCALLS";
/// Environment: names of programs that stay on the kernel's sockets, with colons between.
pub const ENV_EXCLUDE: &str = "SIDESTEP_EXCLUDE";
/// Environment: `libsidestep.so`. The first process that needs an engine has it in itself.
pub const ENV_LIBRARY: &str = "SIDESTEP_LIBRARY";
/// Environment, with [`ENV_LIBRARY`]: the configuration's file; empty for a loopback without a device.
pub const ENV_LIBRARY_CONFIG: &str = "SIDESTEP_LIBRARY_CONFIG";
/// Value of [`ENV_SYSCALLS`].
pub const DISPATCH: &str = "dispatch";

/// From a program or a tool to the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Join `group` (0: make one of my own). `pid` is for people; rights follow from the group number.
    Hello { protocol: u32, group: u128, pid: u32 },
    /// This connection's process is now `pid`: sent by a child after fork, or by a new image after exec.
    Adopt { pid: u32 },
    /// Event queue `queue`, claimed in shared memory by this process, is rung by the descriptor that comes with this.
    EventQueue { queue: u32 },
    /// bind() of the socket in `slot`; `kind` as in [`crate::slot::kind`], `options` as in [`crate::slot::option`].
    /// Port 0 asks for any free port. A UDP socket is live from here on.
    Bind { slot: u32, kind: u32, options: u32, address: [u8; 16], port: u16 },
    /// listen() of the bound socket in `slot`.
    Listen { slot: u32, backlog: u32 },
    /// A question of a tool; see [`inspect`].
    Inspect { what: u32 },
    /// The socket in `slot`, whose placeholder comes with this, is about to be sent to another process.
    SendAway { slot: u32 },
    /// A placeholder, which comes with this, was received from another process: which slot is it?
    TakeIn,
    /// The same from a process without a group: which group's is it?
    Whose,
    /// TCP_INFO of the socket in `slot`.
    Info { slot: u32 },
    /// shutdown() of the listening socket in `slot`: bound still, but it accepts nothing.
    Unlisten { slot: u32 },
}

/// Values of `Request::Inspect::what`. Answers are JSON.
pub mod inspect {
    /// Every socket: state, addresses, queues, shard, program.
    pub const SOCKETS: u32 = 1;
    /// Counters by shard.
    pub const STATS: u32 = 2;
    /// Start a clean stop of the engine.
    pub const STOP: u32 = 3;
    /// Where the time of requests goes, by shard and stage.
    pub const LATENCY: u32 = 4;
    /// The same with the requests that were followed last, one by one.
    pub const LATENCY_RECENT: u32 = 5;
}

/// From the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::large_enum_variant, reason = "made and read once, and there is no allocator here")]
pub enum Reply {
    /// `process` is the caller's number in the group; `region_bytes` the size of the memfd; `spin_us` how long a
    /// waiting call may look before it sleeps; `rules` route rules follow in the same packet.
    Welcome { process: u32, shards: u32, region_bytes: u64, group: u128, spin_us: u32, rules: u32 },
    /// It is done; the address after bind().
    Done { address: [u8; 16], port: u16 },
    /// It failed, with this errno.
    Failed { errno: u32 },
    /// A piece of an answer follows in the same packet; an empty piece ends it.
    Text,
    /// The slot of a socket that was received; this process holds it now.
    Slot { slot: u32 },
    /// The group of one that was received.
    Group { group: u128 },
    /// `struct tcp_info`.
    Info { info: [u8; INFO_BYTES] },
}

/// Which side serves a destination (or a local address in bind). The longest matching prefix decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteRule {
    /// IPv6, or IPv4 in mapped form.
    pub prefix: [u8; 16],
    /// Prefix length in bits of the 16-byte form: 96 + n for IPv4.
    pub prefix_bits: u8,
    /// True: the kernel's sockets; false: ours.
    pub kernel: bool,
}

impl RouteRule {
    /// Bytes of an encoded rule.
    pub const BYTES: usize = 18;

    #[must_use]
    pub fn encode(&self) -> [u8; Self::BYTES] {
        let mut out = [0; Self::BYTES];
        out[..16].copy_from_slice(&self.prefix);
        out[16] = self.prefix_bits;
        out[17] = u8::from(self.kernel);
        out
    }

    #[must_use]
    pub fn decode(b: &[u8]) -> Option<Self> {
        let b: &[u8; Self::BYTES] = b.try_into().ok()?;
        let mut prefix = [0; 16];
        prefix.copy_from_slice(&b[..16]);
        (b[16] <= 128 && b[17] <= 1).then_some(Self { prefix, prefix_bits: b[16], kernel: b[17] == 1 })
    }

    /// Whether `address` lies under the prefix.
    #[must_use]
    pub fn covers(&self, address: [u8; 16]) -> bool {
        let differing = u128::from_be_bytes(address) ^ u128::from_be_bytes(self.prefix);
        differing.leading_zeros() >= u32::from(self.prefix_bits)
    }

    /// Whether the kernel serves `address`: the longest rule that covers it decides; with none it is ours.
    #[must_use]
    pub fn kernel_serves(rules: &[Self], address: [u8; 16]) -> bool {
        rules.iter().filter(|r| r.covers(address)).max_by_key(|r| r.prefix_bits).is_some_and(|r| r.kernel)
    }
}

/// A message, encoded.
#[derive(Clone, Copy)]
pub struct Encoded {
    bytes: [u8; 4 + INFO_BYTES],
    len: usize,
}

impl Encoded {
    fn new(code: u32) -> Self {
        Self { bytes: [0; 4 + INFO_BYTES], len: 0 }.put(code.to_le_bytes())
    }
    fn put<const N: usize>(mut self, field: [u8; N]) -> Self {
        self.bytes[self.len..self.len + N].copy_from_slice(&field);
        self.len += N;
        self
    }
    /// The bytes to send.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// Takes fields off the front of a packet.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*field)
    }
    fn u16(&mut self) -> Option<u16> {
        self.take().map(u16::from_le_bytes)
    }
    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }
    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }
    fn u128(&mut self) -> Option<u128> {
        self.take().map(u128::from_le_bytes)
    }
}

impl Request {
    #[must_use]
    pub fn encode(&self) -> Encoded {
        match *self {
            Self::Hello { protocol, group, pid } => {
                Encoded::new(1).put(protocol.to_le_bytes()).put(group.to_le_bytes()).put(pid.to_le_bytes())
            }
            Self::Adopt { pid } => Encoded::new(2).put(pid.to_le_bytes()),
            Self::EventQueue { queue } => Encoded::new(3).put(queue.to_le_bytes()),
            Self::Bind { slot, kind, options, address, port } => Encoded::new(4)
                .put(slot.to_le_bytes())
                .put(kind.to_le_bytes())
                .put(options.to_le_bytes())
                .put(address)
                .put(port.to_le_bytes()),
            Self::Listen { slot, backlog } => Encoded::new(5).put(slot.to_le_bytes()).put(backlog.to_le_bytes()),
            Self::Inspect { what } => Encoded::new(6).put(what.to_le_bytes()),
            Self::Info { slot } => Encoded::new(7).put(slot.to_le_bytes()),
            Self::SendAway { slot } => Encoded::new(20).put(slot.to_le_bytes()),
            Self::TakeIn => Encoded::new(21),
            Self::Whose => Encoded::new(22),
            Self::Unlisten { slot } => Encoded::new(8).put(slot.to_le_bytes()),
        }
    }

    /// None for anything that is not exactly one request.
    #[must_use]
    pub fn decode(packet: &[u8]) -> Option<Self> {
        let mut f = Fields(packet);
        let request = match f.u32()? {
            1 => Self::Hello { protocol: f.u32()?, group: f.u128()?, pid: f.u32()? },
            2 => Self::Adopt { pid: f.u32()? },
            3 => Self::EventQueue { queue: f.u32()? },
            4 => Self::Bind { slot: f.u32()?, kind: f.u32()?, options: f.u32()?, address: f.take()?, port: f.u16()? },
            5 => Self::Listen { slot: f.u32()?, backlog: f.u32()? },
            6 => Self::Inspect { what: f.u32()? },
            7 => Self::Info { slot: f.u32()? },
            20 => Self::SendAway { slot: f.u32()? },
            21 => Self::TakeIn,
            22 => Self::Whose,
            8 => Self::Unlisten { slot: f.u32()? },
            _ => return None,
        };
        f.0.is_empty().then_some(request)
    }
}

impl Reply {
    #[must_use]
    pub fn encode(&self) -> Encoded {
        match *self {
            Self::Welcome { process, shards, region_bytes, group, spin_us, rules } => Encoded::new(101)
                .put(process.to_le_bytes())
                .put(shards.to_le_bytes())
                .put(region_bytes.to_le_bytes())
                .put(group.to_le_bytes())
                .put(spin_us.to_le_bytes())
                .put(rules.to_le_bytes()),
            Self::Done { address, port } => Encoded::new(102).put(address).put(port.to_le_bytes()),
            Self::Failed { errno } => Encoded::new(103).put(errno.to_le_bytes()),
            Self::Text => Encoded::new(104),
            Self::Info { info } => Encoded::new(105).put(info),
            Self::Slot { slot } => Encoded::new(120).put(slot.to_le_bytes()),
            Self::Group { group } => Encoded::new(121).put(group.to_le_bytes()),
        }
    }

    /// The reply and the payload behind it; None for anything else.
    #[must_use]
    pub fn decode(packet: &[u8]) -> Option<(Self, &[u8])> {
        let mut f = Fields(packet);
        let reply = match f.u32()? {
            101 => Self::Welcome {
                process: f.u32()?,
                shards: f.u32()?,
                region_bytes: f.u64()?,
                group: f.u128()?,
                spin_us: f.u32()?,
                rules: f.u32()?,
            },
            102 => Self::Done { address: f.take()?, port: f.u16()? },
            103 => Self::Failed { errno: f.u32()? },
            104 => Self::Text,
            105 => Self::Info { info: f.take()? },
            120 => Self::Slot { slot: f.u32()? },
            121 => Self::Group { group: f.u128()? },
            _ => return None,
        };
        Some((reply, f.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_back_and_nothing_else_does() {
        let requests = [
            Request::Hello { protocol: PROTOCOL, group: 7 << 100, pid: 42 },
            Request::Adopt { pid: 1 },
            Request::EventQueue { queue: 1023 },
            Request::Bind { slot: 3, kind: 2, options: 5, address: [1; 16], port: 443 },
            Request::Listen { slot: 3, backlog: 511 },
            Request::Inspect { what: inspect::STATS },
            Request::Info { slot: 70_000 },
            Request::SendAway { slot: 9 },
            Request::TakeIn,
            Request::Whose,
            Request::Unlisten { slot: 7 },
        ];
        for r in requests {
            let bytes = r.encode();
            assert_eq!(Request::decode(bytes.as_bytes()), Some(r));
            assert_eq!(Request::decode(&bytes.as_bytes()[..bytes.as_bytes().len() - 1]), None);
        }
        assert_eq!(Request::decode(&[9, 0, 0, 0]), None);
        let info = Reply::Info { info: core::array::from_fn(|i| i as u8) };
        assert_eq!(Reply::decode(info.encode().as_bytes()), Some((info, &[][..])));
        let reply = Reply::Welcome { process: 1, shards: 2, region_bytes: 1 << 40, group: 3, spin_us: 50, rules: 0 };
        assert_eq!(Reply::decode(reply.encode().as_bytes()), Some((reply, &[][..])));
    }

    #[test]
    fn the_longest_rule_decides() {
        let v4 = |a: [u8; 4], bits: u8, kernel| RouteRule { prefix: mapped(a), prefix_bits: 96 + bits, kernel };
        let rules = [v4([10, 0, 0, 0], 8, true), v4([10, 1, 0, 0], 16, false)];
        assert!(RouteRule::kernel_serves(&rules, mapped([10, 2, 3, 4])));
        assert!(!RouteRule::kernel_serves(&rules, mapped([10, 1, 3, 4])));
        assert!(!RouteRule::kernel_serves(&rules, mapped([192, 0, 2, 1])));
        assert_eq!(RouteRule::decode(&rules[0].encode()), Some(rules[0]));
    }

    fn mapped(v4: [u8; 4]) -> [u8; 16] {
        let mut out = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 0, 0];
        out[12..].copy_from_slice(&v4);
        out
    }
}
