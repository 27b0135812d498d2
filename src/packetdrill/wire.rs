//! Packets as bytes: what scripts inject is built here, what the stack sends is read here. Independent of the stack's
//! own code, so that one can't hide a mistake of the other.

use std::net::IpAddr;

use super::script::{TcpOption, flag};

const ETHERNET: usize = 14;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP: u8 = 1;
const ICMP6: u8 = 58;
/// RFC 7413 appendix A.2: what tells the option from other experiments with number 254.
const FAST_OPEN_MAGIC: [u8; 2] = [0xf9, 0x89];

/// A packet that the stack sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Live {
    /// Microseconds since the script began.
    pub at: i64,
    pub source: IpAddr,
    pub destination: IpAddr,
    pub tos: u8,
    pub ttl: u8,
    pub flow_label: u32,
    pub body: LiveBody,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LiveBody {
    Tcp(LiveTcp),
    Udp { source: u16, destination: u16, len: usize },
    Icmp { kind: u8, code: u8 },
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LiveTcp {
    pub source: u16,
    pub destination: u16,
    pub seq: u32,
    pub ack: u32,
    pub flags: u16,
    pub window: u16,
    pub urgent: u16,
    pub options: Vec<TcpOption>,
    pub payload: u32,
    /// The payload, of what was read.
    pub data: Vec<u8>,
    /// As long as segments of the connection get.
    pub full: bool,
    /// Segments that this stands for: a sender with segmentation offload would have sent one packet.
    pub segments: u32,
}

impl LiveTcp {
    /// Of the timestamps option.
    pub fn timestamp_value(&self) -> Option<u32> {
        self.options.iter().find_map(|o| match o {
            TcpOption::Timestamps { value, .. } => Some(*value),
            _ => None,
        })
    }
}

/// IP fields of a packet to be built.
#[derive(Clone, Copy, Debug)]
pub struct Ip {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub tos: u8,
    pub ttl: u8,
    pub flow_label: u32,
}

/// Addresses of the Ethernet header around every packet.
#[derive(Clone, Copy, Debug)]
pub struct Link {
    pub stack: [u8; 6],
    pub script: [u8; 6],
}

/// Reads a frame that the stack sent at `at`. None: not IP.
///
/// # Errors
/// What makes no sense: lengths, checksums.
pub fn read(frame: &[u8], at: i64) -> Result<Option<Live>, String> {
    let packet = frame.get(ETHERNET..).ok_or("a frame without room for its header")?;
    match (&frame[12..14], packet.first().map(|b| b >> 4)) {
        ([0x08, 0x00], Some(4)) => read_v4(packet, at).map(Some),
        ([0x86, 0xdd], Some(6)) => read_v6(packet, at).map(Some),
        ([0x08, 0x00] | [0x86, 0xdd], version) => {
            Err(format!("the type of the frame doesn't fit IP version {version:?}"))
        }
        _ => Ok(None),
    }
}

fn read_v4(packet: &[u8], at: i64) -> Result<Live, String> {
    let header = packet.get(..20).ok_or("an IPv4 packet of less than 20 bytes")?;
    let header_len = usize::from(header[0] & 15) * 4;
    let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
    let payload =
        packet.get(header_len..total).ok_or_else(|| format!("IPv4: total length {total} in {} bytes", packet.len()))?;
    if checksum(&[&packet[..header_len]]) != 0 {
        return Err("IPv4: the header's checksum is wrong".into());
    }
    let source = IpAddr::from(<[u8; 4]>::try_from(&header[12..16]).unwrap_or_default());
    let destination = IpAddr::from(<[u8; 4]>::try_from(&header[16..20]).unwrap_or_default());
    let body = read_body(header[9], payload, source, destination)?;
    Ok(Live { at, source, destination, tos: header[1], ttl: header[8], flow_label: 0, body })
}

fn read_v6(packet: &[u8], at: i64) -> Result<Live, String> {
    let header = packet.get(..40).ok_or("an IPv6 packet of less than 40 bytes")?;
    let len = usize::from(u16::from_be_bytes([header[4], header[5]]));
    let payload =
        packet.get(40..40 + len).ok_or_else(|| format!("IPv6: payload length {len} in {} bytes", packet.len()))?;
    let first = u32::from_be_bytes([header[0], header[1], header[2], header[3]]);
    let source = IpAddr::from(<[u8; 16]>::try_from(&header[8..24]).unwrap_or_default());
    let destination = IpAddr::from(<[u8; 16]>::try_from(&header[24..40]).unwrap_or_default());
    let body = read_body(header[6], payload, source, destination)?;
    Ok(Live { at, source, destination, tos: (first >> 20) as u8, ttl: header[7], flow_label: first & 0xf_ffff, body })
}

fn read_body(protocol: u8, bytes: &[u8], source: IpAddr, destination: IpAddr) -> Result<LiveBody, String> {
    let pseudo = pseudo_header(source, destination, protocol, bytes.len());
    let word = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    match protocol {
        TCP => {
            if checksum(&[&pseudo, bytes]) != 0 {
                return Err("TCP: the checksum is wrong".into());
            }
            read_tcp(bytes).map(LiveBody::Tcp)
        }
        UDP if bytes.len() >= 8 => {
            if word(6) != 0 && checksum(&[&pseudo, bytes]) != 0 {
                return Err("UDP: the checksum is wrong".into());
            }
            Ok(LiveBody::Udp { source: word(0), destination: word(2), len: bytes.len() - 8 })
        }
        ICMP | ICMP6 if bytes.len() >= 4 => Ok(LiveBody::Icmp { kind: bytes[0], code: bytes[1] }),
        _ => Err(format!("IP protocol {protocol} with {} bytes", bytes.len())),
    }
}

fn read_tcp(bytes: &[u8]) -> Result<LiveTcp, String> {
    let header_len = bytes.get(12).map_or(0, |b| usize::from(b >> 4) * 4);
    if header_len < 20 || header_len > bytes.len() {
        return Err(format!("TCP: a header of {header_len} bytes in {}", bytes.len()));
    }
    let word = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    let long = |at: usize| u32::from(word(at)) << 16 | u32::from(word(at + 2));
    Ok(LiveTcp {
        source: word(0),
        destination: word(2),
        seq: long(4),
        ack: long(8),
        flags: word(12) & 0x1ff,
        window: word(14),
        urgent: word(18),
        options: read_options(&bytes[20..header_len])?,
        payload: (bytes.len() - header_len) as u32,
        data: bytes[header_len..].to_vec(),
        full: false,
        segments: 1,
    })
}

fn read_options(mut rest: &[u8]) -> Result<Vec<TcpOption>, String> {
    let mut out = Vec::new();
    while let [kind, after @ ..] = rest {
        if *kind < 2 {
            out.push(if *kind == 0 { TcpOption::Eol } else { TcpOption::Nop });
            rest = after;
            if *kind == 0 {
                break;
            }
            continue;
        }
        let len = usize::from(*after.first().ok_or("TCP: an option without its length")?);
        let data = rest.get(2..len).ok_or_else(|| format!("TCP: option {kind} with length {len}"))?;
        rest = &rest[len..];
        let long = |at: usize| u32::from_be_bytes([data[at], data[at + 1], data[at + 2], data[at + 3]]);
        out.push(match (kind, data.len()) {
            (2, 2) => TcpOption::Mss(u16::from_be_bytes([data[0], data[1]])),
            (3, 1) => TcpOption::WindowScale(data[0]),
            (4, 0) => TcpOption::SackOk,
            (5, n) if n % 8 == 0 && n > 0 => {
                TcpOption::Sack((0..n / 8).map(|i| (long(8 * i), long(8 * i + 4))).collect())
            }
            (8, 8) => TcpOption::Timestamps { value: long(0), echo: long(4) },
            (34, _) => TcpOption::FastOpen { cookie: data.to_vec(), experimental: false },
            (254, 2..) if data.starts_with(&FAST_OPEN_MAGIC) => {
                TcpOption::FastOpen { cookie: data[2..].to_vec(), experimental: true }
            }
            (19, 16) => TcpOption::Md5(data.to_vec()),
            _ => TcpOption::Other { kind: *kind, data: data.to_vec() },
        });
    }
    Ok(out)
}

/// TCP's header and options in bytes, checksum zero, payload not included.
fn tcp_header(tcp: &LiveTcp) -> Result<Vec<u8>, String> {
    let mut options = Vec::new();
    for option in &tcp.options {
        write_option(&mut options, option);
    }
    while options.len() % 4 != 0 {
        options.push(0);
    }
    if options.len() > 40 {
        return Err(format!("{} bytes of TCP options; 40 are the most", options.len()));
    }
    let mut out = Vec::with_capacity(20 + options.len());
    out.extend(tcp.source.to_be_bytes());
    out.extend(tcp.destination.to_be_bytes());
    out.extend(tcp.seq.to_be_bytes());
    out.extend(tcp.ack.to_be_bytes());
    out.extend(((5 + options.len() as u16 / 4) << 12 | tcp.flags).to_be_bytes());
    out.extend(tcp.window.to_be_bytes());
    out.extend([0, 0]);
    out.extend(tcp.urgent.to_be_bytes());
    out.extend(options);
    Ok(out)
}

fn write_option(out: &mut Vec<u8>, option: &TcpOption) {
    let mut put = |kind: u8, data: &[u8]| {
        out.extend([kind, 2 + data.len() as u8]);
        out.extend(data);
    };
    match option {
        TcpOption::Eol => out.push(0),
        TcpOption::Nop => out.push(1),
        TcpOption::Mss(mss) => put(2, &mss.to_be_bytes()),
        TcpOption::WindowScale(shift) => put(3, &[*shift]),
        TcpOption::SackOk => put(4, &[]),
        TcpOption::Sack(blocks) => {
            let bytes: Vec<u8> =
                blocks.iter().flat_map(|(l, r)| [l.to_be_bytes(), r.to_be_bytes()]).flatten().collect();
            put(5, &bytes);
        }
        TcpOption::Timestamps { value, echo } => put(8, &[value.to_be_bytes(), echo.to_be_bytes()].concat()),
        TcpOption::FastOpen { cookie, experimental: false } => put(34, cookie),
        TcpOption::FastOpen { cookie, experimental: true } => put(254, &[&FAST_OPEN_MAGIC, cookie.as_slice()].concat()),
        TcpOption::Md5(digest) => put(19, digest),
        TcpOption::Other { kind, data } => put(*kind, data),
    }
}

/// A frame with a segment and its payload.
///
/// # Errors
/// Options or payload that don't fit.
pub fn tcp_frame(link: Link, ip: Ip, tcp: &LiveTcp, payload: &[u8]) -> Result<Vec<u8>, String> {
    let mut segment = tcp_header(tcp)?;
    segment.extend(payload);
    seal(&mut segment, 16, ip, TCP);
    frame(link, ip, TCP, &segment)
}

/// A frame with a datagram.
///
/// # Errors
/// A payload that doesn't fit.
pub fn udp_frame(link: Link, ip: Ip, ports: (u16, u16), payload: &[u8]) -> Result<Vec<u8>, String> {
    let mut datagram = udp_header(ports, payload.len());
    datagram.extend(payload);
    seal(&mut datagram, 6, ip, UDP);
    frame(link, ip, UDP, &datagram)
}

fn udp_header(ports: (u16, u16), len: usize) -> Vec<u8> {
    [ports.0, ports.1, 8_u16.wrapping_add(len as u16), 0].iter().flat_map(|w| w.to_be_bytes()).collect()
}

/// What an ICMP error quotes of a packet that the stack sent: IP header and the first bytes behind it.
///
/// # Errors
/// A packet that doesn't fit.
pub fn quote_tcp(ip: Ip, tcp: &LiveTcp, payload: usize) -> Result<Vec<u8>, String> {
    let header = tcp_header(tcp)?;
    let mut packet = ip_header(ip, TCP, header.len() + payload)?;
    packet.extend(header);
    Ok(packet)
}

/// The same of a datagram.
///
/// # Errors
/// As [`quote_tcp`].
pub fn quote_udp(ip: Ip, ports: (u16, u16), payload: usize) -> Result<Vec<u8>, String> {
    let mut packet = ip_header(ip, UDP, 8 + payload)?;
    packet.extend(udp_header(ports, payload));
    Ok(packet)
}

/// A frame with an ICMP message. `rest`: the four bytes behind the checksum.
///
/// # Errors
/// A quotation that doesn't fit.
pub fn icmp_frame(link: Link, ip: Ip, (kind, code): (u8, u8), rest: u32, quoted: &[u8]) -> Result<Vec<u8>, String> {
    let mut message = vec![kind, code, 0, 0];
    message.extend(rest.to_be_bytes());
    message.extend(quoted);
    if ip.source.is_ipv4() {
        let sum = checksum(&[&message]);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        frame(link, ip, ICMP, &message)
    } else {
        seal(&mut message, 2, ip, ICMP6);
        frame(link, ip, ICMP6, &message)
    }
}

/// Fills in the checksum at `at`, pseudo header included.
fn seal(bytes: &mut [u8], at: usize, ip: Ip, protocol: u8) {
    let pseudo = pseudo_header(ip.source, ip.destination, protocol, bytes.len());
    let sum = match checksum(&[&pseudo, bytes]) {
        0 => 0xffff,
        sum => sum,
    };
    bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
}

fn frame(link: Link, ip: Ip, protocol: u8, payload: &[u8]) -> Result<Vec<u8>, String> {
    let mut out = Vec::with_capacity(ETHERNET + 40 + payload.len());
    out.extend(link.stack);
    out.extend(link.script);
    out.extend(if ip.source.is_ipv4() { [0x08, 0x00] } else { [0x86, 0xdd] });
    out.extend(ip_header(ip, protocol, payload.len())?);
    out.extend(payload);
    Ok(out)
}

fn ip_header(ip: Ip, protocol: u8, payload: usize) -> Result<Vec<u8>, String> {
    let too_large = |_| format!("a packet with {payload} bytes is too large");
    let mut out = Vec::with_capacity(40);
    match (ip.source, ip.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let total = u16::try_from(20 + payload).map_err(too_large)?;
            out.extend([0x45, ip.tos]);
            out.extend(total.to_be_bytes());
            // Don't fragment, as Linux's TCP has it.
            out.extend([0, 0, 0x40, 0, ip.ttl, protocol, 0, 0]);
            out.extend(source.octets());
            out.extend(destination.octets());
            let sum = checksum(&[&out]);
            out[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            out.extend((6 << 28 | u32::from(ip.tos) << 20 | ip.flow_label & 0xf_ffff).to_be_bytes());
            out.extend(u16::try_from(payload).map_err(too_large)?.to_be_bytes());
            out.extend([protocol, ip.ttl]);
            out.extend(source.octets());
            out.extend(destination.octets());
        }
        _ => return Err("addresses of two families in one packet".into()),
    }
    Ok(out)
}

fn pseudo_header(source: IpAddr, destination: IpAddr, protocol: u8, len: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(40);
    for address in [source, destination] {
        match address {
            IpAddr::V4(a) => out.extend(a.octets()),
            IpAddr::V6(a) => out.extend(a.octets()),
        }
    }
    out.extend((len as u32).to_be_bytes());
    out.extend([0, 0, 0, protocol]);
    out
}

/// RFC 1071; every part but the last has an even length. 0 over bytes whose checksum is right.
fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0u64;
    for part in parts {
        for pair in part.chunks(2) {
            sum += u64::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// Flags as scripts write them.
pub fn spell_flags(flags: u16) -> String {
    let all = [
        (flag::FIN, 'F'),
        (flag::SYN, 'S'),
        (flag::RST, 'R'),
        (flag::PSH, 'P'),
        (flag::URG, 'U'),
        (flag::ECE, 'E'),
        (flag::CWR, 'W'),
        (flag::AE, 'A'),
        (flag::ACK, '.'),
    ];
    let text: String = all.iter().filter(|(bit, _)| flags & bit != 0).map(|(_, c)| *c).collect();
    if text.is_empty() { "-".into() } else { text }
}
