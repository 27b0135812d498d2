//! What can be seen of a run: a hash over every frame with its time, a text line a frame, and pcapng files.

use std::fmt::Write as _;
use std::io::{self, Write};

use sidestep_stack::Instant;

use super::pcap::Pcap;

/// What happened to a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// A node sent it.
    Sent,
    /// A node got it.
    Delivered,
    Lost,
    QueueFull,
    CodelDrop,
    /// The link is down, or the frame too large for it.
    Refused,
    Corrupted,
}

impl Seen {
    const fn word(self) -> &'static str {
        match self {
            Self::Sent => "sent",
            Self::Delivered => "got",
            Self::Lost => "LOST",
            Self::QueueFull => "DROPPED queue full",
            Self::CodelDrop => "DROPPED codel",
            Self::Refused => "DROPPED down or too large",
            Self::Corrupted => "DAMAGED",
        }
    }
}

/// Everyone who watches. The hash always does.
pub struct Observers {
    hash: TraceHash,
    names: Vec<String>,
    /// Nodes whose name is not shown in a trace: switches send on what others sent.
    text: Option<Box<dyn Write>>,
    captures: Vec<Option<Pcap>>,
    /// The first failure to write; the rest of the run goes on without.
    pub failed: Option<io::Error>,
}

impl Observers {
    #[must_use]
    pub fn new() -> Self {
        Self { hash: TraceHash::new(), names: Vec::new(), text: None, captures: Vec::new(), failed: None }
    }

    pub(super) fn add_node(&mut self, name: &str) {
        self.names.push(name.to_owned());
        self.captures.push(None);
    }

    /// Writes a line for every event from now on.
    pub fn trace_to(&mut self, out: Box<dyn Write>) {
        self.text = Some(out);
    }

    /// Writes what a node sends and gets into a capture.
    pub fn capture(&mut self, node: usize, capture: Pcap) {
        self.captures[node] = Some(capture);
    }

    /// The hash over everything so far.
    #[must_use]
    pub fn hash(&self) -> u64 {
        self.hash.finish()
    }

    /// `node`: who sent it; for `Delivered`, who got it.
    pub(super) fn note(&mut self, now: Instant, what: Seen, node: usize, frame: &[u8]) {
        self.hash.word(now.as_nanos() ^ (what as u64) << 60 ^ (node as u64) << 40);
        if what == Seen::Sent {
            self.hash.bytes(frame);
        }
        let direction = match what {
            Seen::Sent => Some(2),
            Seen::Delivered => Some(1),
            _ => None,
        };
        if let (Some(direction), Some(capture)) = (direction, &mut self.captures[node])
            && let Err(error) = capture.frame(now, direction, frame)
        {
            self.failed.get_or_insert(error);
            self.captures[node] = None;
        }
        if let Some(out) = &mut self.text {
            let t = now.as_nanos();
            let (s, ns) = (t / 1_000_000_000, t % 1_000_000_000);
            let line = format!("{s}.{ns:09} {} {} {}\n", self.names[node], what.word(), describe(frame));
            if let Err(error) = out.write_all(line.as_bytes()) {
                self.failed.get_or_insert(error);
                self.text = None;
            }
        }
    }

    /// Writes out what is still in memory.
    ///
    /// # Errors
    /// The first error of any writer.
    pub fn finish(&mut self) -> io::Result<()> {
        if let Some(out) = &mut self.text
            && let Err(e) = out.flush()
        {
            self.failed.get_or_insert(e);
        }
        for capture in self.captures.iter_mut().flatten() {
            if let Err(e) = capture.finish() {
                self.failed.get_or_insert(e);
            }
        }
        self.failed.take().map_or(Ok(()), Err)
    }
}

impl Default for Observers {
    fn default() -> Self {
        Self::new()
    }
}

/// A fast hash for telling runs apart; no defence against anyone.
struct TraceHash(u64);

impl TraceHash {
    const fn new() -> Self {
        Self(0x6a09_e667_f3bc_c908)
    }

    fn word(&mut self, word: u64) {
        self.0 = mix(self.0, word);
    }

    /// Four lanes: one product need not wait for the one before.
    fn bytes(&mut self, bytes: &[u8]) {
        let mut lanes = [self.0, self.0 ^ 1, self.0 ^ 2, self.0 ^ 3];
        let mut blocks = bytes.chunks_exact(32);
        for block in &mut blocks {
            for (lane, w) in lanes.iter_mut().zip(block.chunks_exact(8)) {
                *lane = mix(*lane, u64::from_le_bytes([w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7]]));
            }
        }
        let mut last = [0; 32];
        last[..blocks.remainder().len()].copy_from_slice(blocks.remainder());
        for (lane, w) in lanes.iter_mut().zip(last.chunks_exact(8)) {
            *lane = mix(*lane, u64::from_le_bytes([w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7]]));
        }
        lanes.into_iter().for_each(|lane| self.word(lane));
        self.word(bytes.len() as u64);
    }

    const fn finish(&self) -> u64 {
        self.0
    }
}

/// The two halves of a 128-bit product mix every bit of both factors into every bit of the sum.
const fn mix(state: u64, word: u64) -> u64 {
    let product = ((state ^ word) as u128) * 0x9e37_79b9_7f4a_7c15;
    (product as u64) ^ ((product >> 64) as u64).rotate_left(29)
}

/// One line about a frame, in tcpdump's words.
#[must_use]
pub fn describe(frame: &[u8]) -> String {
    try_describe(frame).unwrap_or_else(|| format!("{} bytes, truncated", frame.len()))
}

fn try_describe(frame: &[u8]) -> Option<String> {
    use smoltcp::wire::{ArpPacket, IpProtocol, Ipv4Packet, Ipv6Packet};
    let packet = frame.get(14..)?;
    match frame.get(12..14)? {
        [0x08, 0x06] => {
            let arp = ArpPacket::new_checked(packet).ok()?;
            let to: [u8; 4] = arp.target_protocol_addr().try_into().ok()?;
            let from: [u8; 4] = arp.source_protocol_addr().try_into().ok()?;
            let (from, to) = (std::net::Ipv4Addr::from(from), std::net::Ipv4Addr::from(to));
            let kind = if u16::from(arp.operation()) == 1 { "who-has" } else { "reply" };
            Some(format!("ARP {kind} {to} from {from}"))
        }
        [0x08, 0x00] => {
            let ip = Ipv4Packet::new_checked(packet).ok()?;
            let (from, to) = (ip.src_addr().to_string(), ip.dst_addr().to_string());
            let ce = if ip.ecn() == 3 { " CE" } else { "" };
            Some(match ip.next_header() {
                IpProtocol::Tcp => format!("{}{ce}", tcp(&from, &to, ip.payload())?),
                other => format!("IP {from} > {to}: {other}, {} bytes{ce}", ip.total_len()),
            })
        }
        [0x86, 0xdd] => {
            let ip = Ipv6Packet::new_checked(packet).ok()?;
            let (from, to) = (ip.src_addr().to_string(), ip.dst_addr().to_string());
            let ce = if ip.traffic_class() & 3 == 3 { " CE" } else { "" };
            Some(match ip.next_header() {
                IpProtocol::Tcp => format!("{}{ce}", tcp(&from, &to, ip.payload())?),
                other => format!("IP6 {from} > {to}: {other}, {} bytes{ce}", ip.total_len()),
            })
        }
        other => Some(format!("ethertype {:02x}{:02x}, {} bytes", other[0], other[1], frame.len())),
    }
}

fn tcp(from: &str, to: &str, segment: &[u8]) -> Option<String> {
    use smoltcp::wire::{TcpOption, TcpPacket};
    let t = TcpPacket::new_checked(segment).ok()?;
    let mut flags = String::new();
    let all = [
        (t.syn(), 'S'),
        (t.fin(), 'F'),
        (t.rst(), 'R'),
        (t.psh(), 'P'),
        (t.ack(), '.'),
        (t.ece(), 'E'),
        (t.cwr(), 'W'),
    ];
    flags.extend(all.iter().filter(|(set, _)| *set).map(|(_, c)| c));
    let (seq, len) = (t.seq_number().0.cast_unsigned(), t.payload().len());
    let mut line = format!("{from}.{} > {to}.{}: [{flags}] seq {seq}", t.src_port(), t.dst_port());
    if len > 0 {
        let _ = write!(line, ":{}", seq.wrapping_add(len as u32));
    }
    if t.ack() {
        let _ = write!(line, " ack {}", t.ack_number().0.cast_unsigned());
    }
    let _ = write!(line, " win {}", t.window_len());
    let mut rest = t.options();
    while !rest.is_empty() {
        let (next, option) = TcpOption::parse(rest).ok()?;
        match option {
            TcpOption::MaxSegmentSize(mss) => _ = write!(line, " mss {mss}"),
            TcpOption::WindowScale(n) => _ = write!(line, " wscale {n}"),
            TcpOption::SackPermitted => line.push_str(" sackOK"),
            TcpOption::SackRange(ranges) => {
                ranges.iter().flatten().for_each(|(a, b)| _ = write!(line, " sack {a}:{b}"));
            }
            TcpOption::TimeStamp { tsval, tsecr } => _ = write!(line, " ts {tsval}/{tsecr}"),
            TcpOption::EndOfList => break,
            _ => {}
        }
        rest = next;
    }
    let _ = write!(line, " len {len}");
    Some(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_sees_every_bit_and_the_time() {
        let hash = |t: u64, frame: &[u8]| {
            let mut o = Observers::new();
            o.add_node("a");
            o.note(Instant::from_nanos(t), Seen::Sent, 0, frame);
            o.hash()
        };
        let frame = [0u8; 61];
        let plain = hash(5, &frame);
        assert_eq!(plain, hash(5, &frame));
        assert_ne!(plain, hash(6, &frame));
        for bit in 0..61 * 8 {
            let mut other = frame;
            other[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(plain, hash(5, &other), "bit {bit}");
        }
        assert_ne!(plain, hash(5, &[0; 60]));
    }
}
