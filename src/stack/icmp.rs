//! ICMP and ICMPv6: echo is answered, errors of others reach the socket they are about, errors of ours go out, few
//! enough. Neighbour discovery is in `ndp`.

use crate::ip::{self, Datagram, Header, ICMP, ICMPV6, TCP, UDP};
use crate::outbox::Reply;
use crate::stack::context;
use crate::tcp::IcmpError;
use crate::{Error, Host, Instant, Stack, Unknown, Verdict};
use alloc::collections::BTreeMap;
use alloc::vec;
use alloc::vec::Vec;
use core::net::{IpAddr, SocketAddr};
use core::time::Duration;
use smoltcp::wire::{IpProtocol, checksum};

/// An error message fits any link: 576 bytes of IPv4 (RFC 1812 4.3.2.3), 1,280 of IPv6 (RFC 4443 2.4 c).
const QUOTE_V4: usize = 576 - 20 - 8;
const QUOTE_V6: usize = 1280 - 40 - 8;
/// RFC 8201 4: what was learned of a path is forgotten after 10 minutes.
const PATH_LIFETIME: Duration = Duration::from_secs(600);
const MAX_PATHS: usize = 256;
/// No link in use is smaller; who says so wants tiny fragments (Linux's min_pmtu; RFC 8200 5).
const LEAST_MTU_V4: usize = 552;
const LEAST_MTU_V6: usize = 1280;

/// What we report about a packet that came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Report {
    PortUnreachable,
    /// IPv6: the next header field at 6 is at fault.
    ProtocolUnreachable,
    /// Reassembly took too long.
    FragmentsMissing,
    /// IPv6 only.
    Parameter {
        code: u8,
        pointer: u32,
    },
}

/// A token bucket, a second deep.
#[derive(Debug)]
pub(crate) struct RateLimit {
    per_second: u64,
    /// Billionths of a token.
    level: u64,
    at: Instant,
}

impl RateLimit {
    pub fn new(per_second: u32) -> Self {
        let per_second = u64::from(per_second);
        Self { per_second, level: per_second.saturating_mul(1_000_000_000), at: Instant::ZERO }
    }

    /// Whether one more is allowed.
    pub fn take(&mut self, now: Instant) -> bool {
        let passed = u64::try_from(now.since(self.at).as_nanos()).unwrap_or(u64::MAX);
        self.at = self.at.max(now);
        let full = self.per_second.saturating_mul(1_000_000_000);
        self.level = self.level.saturating_add(passed.saturating_mul(self.per_second)).min(full);
        let allowed = self.level >= 1_000_000_000;
        if allowed {
            self.level -= 1_000_000_000;
        }
        allowed
    }
}

/// The largest packets that paths take, where they take less than the link. TCP keeps its own by connection.
#[derive(Debug, Default)]
pub(crate) struct PathMtus(BTreeMap<IpAddr, (usize, Instant)>);

impl PathMtus {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn get(&self, now: Instant, destination: IpAddr) -> Option<usize> {
        if self.0.is_empty() {
            return None;
        }
        self.0.get(&destination).filter(|(_, until)| now < *until).map(|&(mtu, _)| mtu)
    }

    pub fn note(&mut self, now: Instant, destination: IpAddr, mtu: usize) {
        if self.0.len() >= MAX_PATHS && !self.0.contains_key(&destination) {
            let oldest = self.0.iter().min_by_key(|(_, (_, until))| *until).map(|(&d, _)| d);
            if let Some(oldest) = oldest {
                self.0.remove(&oldest);
            }
        }
        self.0.insert(destination, (mtu, now + PATH_LIFETIME));
    }
}

/// The packet of ours that an error is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Quote {
    protocol: u8,
    local: SocketAddr,
    remote: SocketAddr,
    /// TCP's.
    sequence: u32,
}

/// What an error means for who sent the packet.
enum Meaning {
    Unreachable(Error),
    TooBig(u32),
    Nothing,
}

impl Stack {
    /// Takes an ICMP message of the datagram's family.
    pub(crate) fn handle_icmp(
        &mut self,
        now: Instant,
        d: &Datagram<'_>,
        message: &[u8],
        host: &mut dyn Host,
        unknown: Unknown,
    ) -> Verdict {
        self.counters.icmp_in += 1;
        if message.len() < 8 {
            return self.malformed();
        }
        let Header { source, destination, .. } = d.header;
        if self.config.checksums && !d.loopback && !sums_up(source, destination, message) {
            self.counters.drop_checksum += 1;
            return Verdict::Handled;
        }
        let v6 = destination.is_ipv6();
        match (v6, message[0]) {
            (false, 8) | (true, 128) => self.answer_echo(d, message),
            (false, 3 | 11 | 12) | (true, 1..=4) => return self.handle_icmp_error(now, message, v6, host, unknown),
            (true, 133..=137) => self.handle_ndp(now, d, message),
            _ => {}
        }
        Verdict::Handled
    }

    fn answer_echo(&mut self, d: &Datagram<'_>, message: &[u8]) {
        // RFC 1122 3.2.2.6 allows silence to groups; who answers amplifies for others.
        if d.group || message[1] != 0 {
            return;
        }
        let mut answer = message.to_vec();
        answer[0] = if d.header.destination.is_ipv6() { 129 } else { 0 };
        self.send_icmp(d.header.destination, d.header.source, d.header.tos, 0, answer);
    }

    /// Queues an ICMP message of which only the checksum is missing.
    pub(crate) fn send_icmp(&mut self, source: IpAddr, destination: IpAddr, tos: u8, ttl: u8, mut message: Vec<u8>) {
        message[2..4].fill(0);
        let sum = !sum(source, destination, &message);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        let protocol = if destination.is_ipv6() { ICMPV6 } else { ICMP };
        self.outbox.push(Reply { source, destination, protocol, tos, ttl, payload: message });
    }

    /// Reports to the sender of `d`, within the limits: not about groups (RFC 1122 3.2.2), not more often than
    /// configured. `payload` follows the header where the packet came in pieces.
    pub(crate) fn icmp_error(&mut self, now: Instant, d: &Datagram<'_>, payload: &[u8], report: Report) {
        let Header { source, destination, .. } = d.header;
        if d.group || source.is_unspecified() {
            return;
        }
        let v6 = destination.is_ipv6();
        let (kind, code, parameter) = match (report, v6) {
            (Report::PortUnreachable, false) => (3, 3, 0),
            (Report::PortUnreachable, true) => (1, 4, 0),
            (Report::ProtocolUnreachable, false) => (3, 2, 0),
            (Report::ProtocolUnreachable, true) => (4, 1, 6),
            (Report::FragmentsMissing, false) => (11, 1, 0),
            (Report::FragmentsMissing, true) => (3, 1, 0),
            (Report::Parameter { code, pointer }, true) => (4, code, pointer),
            (Report::Parameter { .. }, false) => return,
        };
        if !d.loopback && !self.icmp_limit.take(now) {
            self.counters.drop_rate_limited += 1;
            return;
        }
        let limit = if v6 { QUOTE_V6 } else { QUOTE_V4 };
        let mut message = vec![kind, code, 0, 0];
        message.extend_from_slice(&u32::to_be_bytes(parameter));
        if d.original.is_empty() {
            let mut header = [0; 40];
            let len = ip::emit_header(&mut header, &d.header, payload.len(), Some(0), None);
            message.extend_from_slice(&header[..len]);
            message.extend_from_slice(payload);
        } else {
            message.extend_from_slice(d.original);
        }
        message.truncate(8 + limit);
        self.send_icmp(destination, source, 0, 0, message);
    }

    fn handle_icmp_error(
        &mut self,
        now: Instant,
        message: &[u8],
        v6: bool,
        host: &mut dyn Host,
        unknown: Unknown,
    ) -> Verdict {
        let meaning = if v6 { meaning_v6(message) } else { meaning_v4(message) };
        let Some(quote) = parse_quote(&message[8..], v6) else { return self.malformed() };
        // Only what we can have sent.
        if !self.routes.is_local(quote.local.ip()) || matches!(meaning, Meaning::Nothing) {
            return Verdict::Handled;
        }
        let known = match quote.protocol {
            TCP => {
                let error = match meaning {
                    Meaning::TooBig(mtu) => IcmpError::TooBig { mtu },
                    Meaning::Unreachable(error) => IcmpError::Unreachable(error),
                    Meaning::Nothing => return Verdict::Handled,
                };
                self.tcp.handle_icmp(context!(self, now, host), quote.local, quote.remote, quote.sequence, error)
            }
            UDP => self.handle_udp_error(now, &quote, &meaning),
            _ => true,
        };
        if known || unknown == Unknown::Answer {
            return Verdict::Handled;
        }
        // NICs don't spread errors by the flow that they quote.
        self.counters.icmp_in -= 1;
        ip::elsewhere_flow(quote.protocol, quote.local, quote.remote)
    }

    /// False when the datagram was of no socket here.
    fn handle_udp_error(&mut self, now: Instant, quote: &Quote, meaning: &Meaning) -> bool {
        let Some(id) = self.udp.find(quote.local, quote.remote) else { return false };
        match *meaning {
            Meaning::TooBig(mtu) => {
                let least = if quote.local.is_ipv6() { LEAST_MTU_V6 } else { LEAST_MTU_V4 };
                let mtu = (mtu as usize).max(least);
                if mtu < self.config.mtu {
                    self.path_mtus.note(now, quote.remote.ip(), mtu);
                }
            }
            // As Linux without IP_RECVERR: only a connected socket can tell what the error is about.
            Meaning::Unreachable(error) if self.udp.get(id).is_ok_and(|s| s.connected.is_some()) => {
                self.udp.note_error(id, error);
            }
            _ => {}
        }
        true
    }
}

/// RFC 792, with the errors that Linux gives (icmp_err_convert).
fn meaning_v4(message: &[u8]) -> Meaning {
    match (message[0], message[1]) {
        (3, 0 | 6) => Meaning::Unreachable(Error::NetworkUnreachable),
        (3, 2) => Meaning::Unreachable(Error::Protocol),
        (3, 3) => Meaning::Unreachable(Error::Refused),
        (3, 4) => Meaning::TooBig(u32::from(u16::from_be_bytes([message[6], message[7]]))),
        (3, 0..=15) | (11, 0) => Meaning::Unreachable(Error::HostUnreachable),
        (12, _) => Meaning::Unreachable(Error::Protocol),
        _ => Meaning::Nothing,
    }
}

/// RFC 4443, with the errors that Linux gives (icmpv6_err_convert).
fn meaning_v6(message: &[u8]) -> Meaning {
    match (message[0], message[1]) {
        (1, 0) => Meaning::Unreachable(Error::NetworkUnreachable),
        (1, 4) => Meaning::Unreachable(Error::Refused),
        (1, 0..=7) | (3, 0) => Meaning::Unreachable(Error::HostUnreachable),
        (2, _) => match u32::from_be_bytes([message[4], message[5], message[6], message[7]]) {
            // RFC 8201 4: no path is narrower than that, so this is a lie.
            mtu if (mtu as usize) < LEAST_MTU_V6 => Meaning::Nothing,
            mtu => Meaning::TooBig(mtu),
        },
        (4, _) => Meaning::Unreachable(Error::Protocol),
        _ => Meaning::Nothing,
    }
}

/// Reads as much as an error must quote: the IP header and 8 bytes.
fn parse_quote(quote: &[u8], v6: bool) -> Option<Quote> {
    let (source, destination, protocol, transport): (IpAddr, IpAddr, u8, &[u8]) = if v6 {
        let header = quote.get(..40)?;
        let address = |at: usize| <[u8; 16]>::try_from(&header[at..at + 16]).ok().map(IpAddr::from);
        if header[0] >> 4 != 6 {
            return None;
        }
        let walked = ip::walk(header[6], &quote[40..]).ok()?;
        // Ports are in the first fragment only.
        if walked.piece.is_some_and(|(_, offset, _)| offset != 0) {
            return None;
        }
        (address(8)?, address(24)?, walked.protocol, &quote[40 + walked.offset..])
    } else {
        let header = quote.get(..20)?;
        let address = |at: usize| <[u8; 4]>::try_from(&header[at..at + 4]).ok().map(IpAddr::from);
        let len = usize::from(header[0] & 0xf) * 4;
        let offset = u16::from_be_bytes([header[6], header[7]]) & 0x1fff;
        if header[0] >> 4 != 4 || len < 20 || offset != 0 {
            return None;
        }
        (address(12)?, address(16)?, header[9], quote.get(len..)?)
    };
    let t: &[u8; 8] = transport.first_chunk()?;
    Some(Quote {
        protocol,
        local: SocketAddr::new(source, u16::from_be_bytes([t[0], t[1]])),
        remote: SocketAddr::new(destination, u16::from_be_bytes([t[2], t[3]])),
        sequence: u32::from_be_bytes([t[4], t[5], t[6], t[7]]),
    })
}

/// The ones' complement sum of a message, with the pseudo header that only ICMPv6 has (RFC 4443 2.3).
fn sum(source: IpAddr, destination: IpAddr, message: &[u8]) -> u16 {
    match (source, destination) {
        (IpAddr::V6(s), IpAddr::V6(d)) => {
            #[allow(clippy::cast_possible_truncation, reason = "a packet is shorter than 64 KiB")]
            let pseudo = checksum::pseudo_header_v6(&s, &d, IpProtocol::Icmpv6, message.len() as u32);
            checksum::combine(&[pseudo, checksum::data(message)])
        }
        _ => checksum::data(message),
    }
}

fn sums_up(source: IpAddr, destination: IpAddr, message: &[u8]) -> bool {
    sum(source, destination, message) == 0xffff
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bucket_fills_with_time() {
        let mut limit = RateLimit::new(10);
        let at = Instant::from_millis(5_000);
        assert_eq!((0..100).filter(|_| limit.take(at)).count(), 10);
        assert_eq!((0..100).filter(|_| limit.take(at + Duration::from_millis(350))).count(), 3);
        assert_eq!((0..100).filter(|_| limit.take(at)).count(), 0, "time going back gives nothing");
        assert!(!RateLimit::new(0).take(at));
    }

    #[test]
    fn quotes_are_read_with_care() {
        let mut quote = [0; 28];
        quote[0] = 0x45;
        quote[9] = TCP;
        quote[12..20].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
        quote[20..28].copy_from_slice(&[0, 80, 1, 0, 1, 2, 3, 4]);
        let q = parse_quote(&quote, false).unwrap();
        assert_eq!((q.local, q.remote), ("10.0.0.1:80".parse().unwrap(), "10.0.0.2:256".parse().unwrap()));
        assert_eq!(q.sequence, 0x0102_0304);
        for len in 0..28 {
            assert_eq!(parse_quote(&quote[..len], false), None);
            assert_eq!(parse_quote(&quote[..len], true), None);
        }
        quote[0] = 0x44;
        assert_eq!(parse_quote(&quote, false), None);
        quote[0] = 0x4f;
        assert_eq!(parse_quote(&quote, false), None);
        quote[0] = 0x45;
        quote[7] = 1;
        assert_eq!(parse_quote(&quote, false), None, "not the first fragment");
    }

    #[test]
    fn paths_are_bounded_and_forgotten() {
        let mut paths = PathMtus::new();
        let at = Instant::from_millis(1);
        for i in 0..10_000_u32 {
            paths.note(at, IpAddr::V4(i.into()), 600);
        }
        assert_eq!(paths.0.len(), MAX_PATHS);
        let last = IpAddr::V4(9_999.into());
        assert_eq!(paths.get(at, last), Some(600));
        assert_eq!(paths.get(at + PATH_LIFETIME, last), None);
    }
}
