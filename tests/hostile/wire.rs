//! Frames, built and read by hand: an adversary must not share its idea of a packet with the stack that it attacks.

use std::net::IpAddr;

pub const FIN: u8 = 1;
pub const SYN: u8 = 2;
pub const RST: u8 = 4;
pub const ACK: u8 = 16;

pub const IPV4: u16 = 0x0800;
pub const IPV6: u16 = 0x86dd;

/// An Ethernet frame.
#[must_use]
pub fn ethernet(to: [u8; 6], from: [u8; 6], kind: u16, payload: &[u8]) -> Vec<u8> {
    [&to[..], &from, &kind.to_be_bytes(), payload].concat()
}

/// The Internet checksum (RFC 1071) over parts of even length but for the last.
#[must_use]
pub fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0_u32;
    for part in parts {
        for pair in part.chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
            sum = (sum & 0xffff) + (sum >> 16);
        }
    }
    !(sum as u16)
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}

/// The checksum of a transport header with its pseudo-header, at offset `field` of `segment`.
pub fn seal(from: IpAddr, to: IpAddr, protocol: u8, field: usize, segment: &mut [u8]) {
    if segment.len() < field + 2 {
        return;
    }
    segment[field..field + 2].fill(0);
    let len = (segment.len() as u32).to_be_bytes();
    let sum = checksum(&[&octets(from), &octets(to), &len, &[0, 0, 0, protocol], segment]);
    segment[field..field + 2].copy_from_slice(&sum.to_be_bytes());
}

/// An IP packet of either family without options.
#[must_use]
pub fn ip(from: IpAddr, to: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => ipv4(from.octets(), to.octets(), protocol, 7, 0, payload),
        _ => {
            let mut p = vec![0x60, 0, 0, 0];
            p.extend_from_slice(&(payload.len() as u16).to_be_bytes());
            p.extend_from_slice(&[protocol, 64]);
            p.extend_from_slice(&octets(from));
            p.extend_from_slice(&octets(to));
            p.extend_from_slice(payload);
            p
        }
    }
}

/// An IPv4 packet; `fragment` is the field with flags and offset.
#[must_use]
pub fn ipv4(from: [u8; 4], to: [u8; 4], protocol: u8, id: u16, fragment: u16, payload: &[u8]) -> Vec<u8> {
    let mut p = vec![0x45, 0];
    p.extend_from_slice(&((20 + payload.len()) as u16).to_be_bytes());
    p.extend_from_slice(&id.to_be_bytes());
    p.extend_from_slice(&fragment.to_be_bytes());
    p.extend_from_slice(&[64, protocol, 0, 0]);
    p.extend_from_slice(&from);
    p.extend_from_slice(&to);
    let sum = checksum(&[&p]);
    p[10..12].copy_from_slice(&sum.to_be_bytes());
    p.extend_from_slice(payload);
    p
}

/// A TCP segment before and after the wire.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tcp {
    pub source: u16,
    pub destination: u16,
    pub seq: u32,
    pub ack: u32,
    pub flags: u8,
    pub window: u16,
    pub urgent: u16,
    /// Padded to a multiple of four when written, cut at 40 bytes.
    pub options: Vec<u8>,
    pub payload: Vec<u8>,
}

impl Tcp {
    #[must_use]
    pub fn has(&self, flags: u8) -> bool {
        self.flags & flags == flags
    }

    /// The IP packet that carries it.
    #[must_use]
    pub fn packet(&self, from: IpAddr, to: IpAddr) -> Vec<u8> {
        let mut options = self.options.clone();
        options.resize(options.len().min(40).next_multiple_of(4), 0);
        let mut s = Vec::with_capacity(60 + self.payload.len());
        for word in [self.source, self.destination] {
            s.extend_from_slice(&word.to_be_bytes());
        }
        s.extend_from_slice(&self.seq.to_be_bytes());
        s.extend_from_slice(&self.ack.to_be_bytes());
        s.extend_from_slice(&[((20 + options.len()) / 4 * 16) as u8, self.flags]);
        s.extend_from_slice(&self.window.to_be_bytes());
        s.extend_from_slice(&[0, 0]);
        s.extend_from_slice(&self.urgent.to_be_bytes());
        s.extend_from_slice(&options);
        s.extend_from_slice(&self.payload);
        seal(from, to, 6, 16, &mut s);
        ip(from, to, 6, &s)
    }

    /// The segment in a frame, with its addresses; None for anything else.
    ///
    /// # Panics
    /// When the checksum is wrong: it is the stack's frame.
    #[must_use]
    pub fn read(frame: &[u8]) -> Option<(IpAddr, IpAddr, Self)> {
        let (from, to, protocol, s) = read_ip(frame)?;
        if protocol != 6 {
            return None;
        }
        let len = (s.len() as u32).to_be_bytes();
        assert_eq!(checksum(&[&octets(from), &octets(to), &len, &[0, 0, 0, 6], s]), 0, "checksum of what was sent");
        let word = |at: usize| u16::from_be_bytes([s[at], s[at + 1]]);
        let long = |at: usize| u32::from(word(at)) << 16 | u32::from(word(at + 2));
        let header = usize::from(s[12] >> 4) * 4;
        Some((
            from,
            to,
            Self {
                source: word(0),
                destination: word(2),
                seq: long(4),
                ack: long(8),
                flags: s[13],
                window: word(14),
                urgent: word(18),
                options: s[20..header].to_vec(),
                payload: s[header..].to_vec(),
            },
        ))
    }

    /// Kind and value of each option, as far as they make sense.
    #[must_use]
    pub fn each_option(&self) -> Vec<(u8, Vec<u8>)> {
        let (mut all, mut at) = (Vec::new(), 0);
        while let Some(kind) = self.options.get(at) {
            match (kind, self.options.get(at + 1)) {
                (0, _) => break,
                (1, _) => at += 1,
                (_, Some(len)) if *len >= 2 && at + usize::from(*len) <= self.options.len() => {
                    all.push((*kind, self.options[at + 2..at + usize::from(*len)].to_vec()));
                    at += usize::from(*len);
                }
                _ => break,
            }
        }
        all
    }

    /// The timestamp option.
    #[must_use]
    pub fn timestamps(&self) -> Option<(u32, u32)> {
        let value = self.each_option().into_iter().find(|(kind, value)| *kind == 8 && value.len() == 8)?.1;
        let word = |at: usize| u32::from_be_bytes([value[at], value[at + 1], value[at + 2], value[at + 3]]);
        Some((word(0), word(4)))
    }

    /// Left and right edges of its SACK blocks.
    #[must_use]
    pub fn sacks(&self) -> Vec<(u32, u32)> {
        let word = |b: &[u8]| u32::from_be_bytes([b[0], b[1], b[2], b[3]]);
        let blocks = self.each_option().into_iter().filter(|(kind, _)| *kind == 5);
        blocks.flat_map(|(_, v)| v.chunks_exact(8).map(|b| (word(b), word(&b[4..]))).collect::<Vec<_>>()).collect()
    }
}

/// The timestamp option with the usual padding.
#[must_use]
pub fn timestamp_option(value: u32, echo: u32) -> Vec<u8> {
    [&[1, 1, 8, 10][..], &value.to_be_bytes(), &echo.to_be_bytes()].concat()
}

/// Addresses, protocol and payload of an unfragmented packet without extension headers; None for anything else.
///
/// # Panics
/// When an IPv4 header or a length is wrong: it is the stack's frame.
#[must_use]
pub fn read_ip(frame: &[u8]) -> Option<(IpAddr, IpAddr, u8, &[u8])> {
    let p = frame.get(14..)?;
    match u16::from_be_bytes([frame[12], frame[13]]) {
        IPV4 => {
            assert_eq!(checksum(&[&p[..20]]), 0, "header checksum of what was sent");
            assert_eq!((usize::from(p[2]) << 8) + usize::from(p[3]), p.len(), "total length of what was sent");
            let four = |at: usize| IpAddr::from([p[at], p[at + 1], p[at + 2], p[at + 3]]);
            (p[6] & 0x3f == 0 && p[7] == 0).then(|| (four(12), four(16), p[9], &p[20..]))
        }
        IPV6 => {
            assert_eq!((usize::from(p[4]) << 8) + usize::from(p[5]) + 40, p.len(), "length of what was sent");
            let sixteen = |at: usize| IpAddr::from(<[u8; 16]>::try_from(&p[at..at + 16]).unwrap_or_default());
            Some((sixteen(8), sixteen(24), p[6], &p[40..]))
        }
        _ => None,
    }
}
