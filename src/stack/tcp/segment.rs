//! Segments on the wire: parsing what came (nothing a peer sends can panic), building what goes, checksums.

use super::fast_open::Cookie;
use core::net::IpAddr;

pub(super) const FIN: u8 = 0x01;
pub(super) const SYN: u8 = 0x02;
pub(super) const RST: u8 = 0x04;
pub(super) const PSH: u8 = 0x08;
pub(super) const ACK: u8 = 0x10;
/// RFC 3168 6.1.
pub(super) const ECE: u8 = 0x40;
pub(super) const CWR: u8 = 0x80;
const URG: u8 = 0x20;

/// Bytes of a TCP header without options, and with as many as fit.
pub(super) const MIN_HEADER: usize = 20;
pub(super) const MAX_HEADER: usize = 60;
/// Bytes of the timestamp option with its padding (RFC 7323 appendix A).
pub(super) const TIMESTAMP_SPACE: usize = 12;

/// RFC 7323 2.2: a larger shift counts as 14.
pub(super) const MAX_SCALE: u8 = 14;

/// What tells Fast Open's option from other experiments (RFC 7413 appendix A.2).
const FAST_OPEN_MAGIC: [u8; 2] = [0xf9, 0x89];

/// SACK blocks in one segment; beside timestamps there is room for three.
pub(super) const MAX_SACK: usize = 4;

/// A timestamp option: the sender's clock and the echo of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Timestamps {
    pub value: u32,
    pub echo: u32,
}

/// A received segment, header and options checked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Segment<'a> {
    pub source_port: u16,
    pub destination_port: u16,
    pub seq: u32,
    pub ack: u32,
    /// [`FIN`] to [`CWR`]; the urgent bit is dropped.
    pub flags: u8,
    pub window: u16,
    /// Only of a SYN, as are the next two. 0 counts as none.
    pub mss: Option<u16>,
    pub scale: Option<u8>,
    pub sack_permitted: bool,
    pub timestamps: Option<Timestamps>,
    /// RFC 7413 2; of a SYN only.
    pub fast_open: Option<Cookie>,
    sack: [(u32, u32); MAX_SACK],
    sack_len: u8,
    pub payload: &'a [u8],
    /// The ECN bits of the IP header; whoever parses fills them in.
    pub ecn: u8,
}

impl<'a> Segment<'a> {
    /// None when the header doesn't fit its own length or a port is 0.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let h: &[u8; MIN_HEADER] = bytes.first_chunk()?;
        let half = |at: usize| u16::from_be_bytes([h[at], h[at + 1]]);
        let word = |at: usize| u32::from_be_bytes([h[at], h[at + 1], h[at + 2], h[at + 3]]);
        let (source_port, destination_port) = (half(0), half(2));
        if source_port == 0 || destination_port == 0 {
            return None;
        }
        let header = usize::from(h[12] >> 4) * 4;
        let options = bytes.get(MIN_HEADER..header)?;
        let mut segment = Self {
            source_port,
            destination_port,
            seq: word(4),
            ack: word(8),
            flags: h[13] & !URG,
            window: half(14),
            mss: None,
            scale: None,
            sack_permitted: false,
            timestamps: None,
            fast_open: None,
            sack: [(0, 0); MAX_SACK],
            sack_len: 0,
            ecn: 0,
            payload: bytes.get(header..)?,
        };
        segment.parse_options(options);
        Some(segment)
    }

    /// Reads what it can: like Linux, an option with a wrong length is skipped, and one that overruns the header ends
    /// the options, but the segment is taken (RFC 9293 3.2, MUST-7: be prepared for illegal option lengths).
    fn parse_options(&mut self, mut options: &[u8]) {
        let syn = self.flags & SYN != 0;
        // Nearly every segment of a connection has exactly this; RFC 7323 appendix A asks to expect it.
        if let [1, 1, 8, 10, value @ ..] = options
            && value.len() == 8
        {
            self.timestamps = Some(parse_timestamps(value));
            return;
        }
        while let [kind, rest @ ..] = options {
            match kind {
                0 => return,
                1 => {
                    options = rest;
                    continue;
                }
                _ => {}
            }
            let Some(len) = rest.first().map(|len| usize::from(*len)) else { return };
            if len < 2 || len > options.len() {
                return;
            }
            let value = &options[2..len];
            match (kind, value.len()) {
                (2, 2) if syn => {
                    self.mss = Some(u16::from_be_bytes([value[0], value[1]])).filter(|mss| *mss != 0);
                }
                (3, 1) if syn => self.scale = Some(value[0].min(MAX_SCALE)),
                (4, 0) if syn => self.sack_permitted = true,
                (5, 8 | 16 | 24 | 32) if !syn => {
                    for (i, block) in value.as_chunks::<8>().0.iter().enumerate() {
                        self.sack[i] = (word(&block[..4]), word(&block[4..]));
                    }
                    #[allow(clippy::cast_possible_truncation)]
                    {
                        self.sack_len = (value.len() / 8) as u8;
                    }
                }
                (8, 8) => self.timestamps = Some(parse_timestamps(value)),
                (34, _) if syn => self.fast_open = Cookie::new(value, false),
                (254, 2..) if syn && value.starts_with(&FAST_OPEN_MAGIC) => {
                    self.fast_open = Cookie::new(&value[2..], true);
                }
                _ => {}
            }
            options = &options[len..];
        }
    }

    pub const fn has(&self, flags: u8) -> bool {
        self.flags & flags == flags
    }

    pub fn sack_blocks(&self) -> &[(u32, u32)] {
        &self.sack[..usize::from(self.sack_len)]
    }

    /// SEG.LEN of RFC 9293: payload, SYN and FIN.
    #[allow(clippy::cast_possible_truncation)]
    pub const fn len(&self) -> u32 {
        let controls = (self.flags & SYN != 0) as u32 + (self.flags & FIN != 0) as u32;
        (self.payload.len() as u32).wrapping_add(controls)
    }
}

fn word(bytes: &[u8]) -> u32 {
    bytes.first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes))
}

fn parse_timestamps(value: &[u8]) -> Timestamps {
    Timestamps { value: word(&value[..4]), echo: word(&value[4..]) }
}

/// The header of a segment to be sent.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Header<'a> {
    pub source_port: u16,
    pub destination_port: u16,
    pub seq: u32,
    pub ack: u32,
    pub flags: u8,
    pub window: u16,
    pub mss: Option<u16>,
    pub scale: Option<u8>,
    pub sack_permitted: bool,
    pub timestamps: Option<(u32, u32)>,
    /// Of a SYN.
    pub fast_open: Option<&'a Cookie>,
    /// At most 4, or 3 beside timestamps.
    pub sack: &'a [(u32, u32)],
}

impl Header<'_> {
    /// Bytes of the header with its options.
    pub const fn len(&self) -> usize {
        let mut len = MIN_HEADER;
        if self.mss.is_some() {
            len += 4;
        }
        if self.timestamps.is_some() {
            len += TIMESTAMP_SPACE;
        } else if self.sack_permitted {
            len += 4;
        }
        if self.scale.is_some() {
            len += 4;
        }
        if let Some(cookie) = self.fast_open {
            len += cookie.option_len();
        }
        if !self.sack.is_empty() {
            len += 4 + 8 * self.sack.len();
        }
        len
    }

    /// Writes header and checksum to the front of `segment`, whose payload lies behind [`Self::len`] bytes already.
    pub fn write(&self, source: IpAddr, destination: IpAddr, segment: &mut [u8]) {
        self.write_unsummed(segment);
        let checksum = checksum(source, destination, segment);
        segment[16..18].copy_from_slice(&checksum.to_be_bytes());
    }

    /// As [`Self::write`] for a device that makes checksums: the field has the pseudo-header's sum, as such devices want
    /// it (virtio 1.2, 5.1.6.2).
    pub fn write_for_device(&self, source: IpAddr, destination: IpAddr, segment: &mut [u8]) {
        self.write_unsummed(segment);
        let sum = crate::checksum::pseudo_header(source, destination, crate::ip::TCP, segment.len());
        segment[16..18].copy_from_slice(&sum.to_be_bytes());
    }

    /// As [`Self::write`], with 0 for the checksum: for segments that no wire carries.
    pub fn write_unsummed(&self, segment: &mut [u8]) {
        let len = self.len();
        let mut h = [0; MIN_HEADER];
        h[..2].copy_from_slice(&self.source_port.to_be_bytes());
        h[2..4].copy_from_slice(&self.destination_port.to_be_bytes());
        h[4..8].copy_from_slice(&self.seq.to_be_bytes());
        h[8..12].copy_from_slice(&self.ack.to_be_bytes());
        #[allow(clippy::cast_possible_truncation)]
        {
            h[12] = (len as u8 / 4) << 4;
        }
        h[13] = self.flags;
        h[14..16].copy_from_slice(&self.window.to_be_bytes());
        let (header, options) = segment[..len].split_at_mut(MIN_HEADER);
        header.copy_from_slice(&h);
        if let Some((value, echo)) = self.timestamps
            && let Some(options) = options.first_chunk_mut::<TIMESTAMP_SPACE>()
            && len == MIN_HEADER + TIMESTAMP_SPACE
        {
            // All that nearly every segment has.
            options[..4].copy_from_slice(&[1, 1, 8, 10]);
            options[4..8].copy_from_slice(&value.to_be_bytes());
            options[8..].copy_from_slice(&echo.to_be_bytes());
        } else {
            self.write_options(&mut segment[MIN_HEADER..len]);
        }
    }

    fn write_options(&self, mut out: &mut [u8]) {
        if let Some(mss) = self.mss {
            out = put(out, [2, 4, (mss >> 8) as u8, mss as u8]);
        }
        // The padding that Linux uses, so that middleboxes see nothing new.
        match (self.timestamps, self.sack_permitted) {
            (Some(_), true) => out = put(out, [4, 2, 8, 10]),
            (Some(_), false) => out = put(out, [1, 1, 8, 10]),
            (None, true) => out = put(out, [1, 1, 4, 2]),
            (None, false) => {}
        }
        if let Some((value, echo)) = self.timestamps {
            out = put(out, value.to_be_bytes());
            out = put(out, echo.to_be_bytes());
        }
        if let Some(scale) = self.scale {
            out = put(out, [1, 3, 3, scale]);
        }
        if let Some(cookie) = self.fast_open {
            let option;
            (option, out) = out.split_at_mut(cookie.option_len());
            write_cookie(cookie, option);
        }
        if !self.sack.is_empty() {
            #[allow(clippy::cast_possible_truncation)]
            let len = 2 + 8 * self.sack.len() as u8;
            out = put(out, [1, 1, 5, len]);
            for (left, right) in self.sack {
                out = put(out, left.to_be_bytes());
                out = put(out, right.to_be_bytes());
            }
        }
        debug_assert!(out.is_empty());
    }
}

/// The option, and NOPs up to the next word.
fn write_cookie(cookie: &Cookie, out: &mut [u8]) {
    out.fill(1);
    let head = if cookie.experimental { 4 } else { 2 };
    let len = head + cookie.bytes().len();
    #[allow(clippy::cast_possible_truncation)]
    {
        out[1] = len as u8;
    }
    out[0] = if cookie.experimental { 254 } else { 34 };
    if cookie.experimental {
        out[2..4].copy_from_slice(&FAST_OPEN_MAGIC);
    }
    out[head..len].copy_from_slice(cookie.bytes());
}

fn put<const N: usize>(out: &mut [u8], bytes: [u8; N]) -> &mut [u8] {
    let (front, rest) = out.split_at_mut(N);
    front.copy_from_slice(&bytes);
    rest
}

/// The Internet checksum of a TCP segment with its pseudo-header, its own field counted as it stands.
pub(super) fn checksum(source: IpAddr, destination: IpAddr, segment: &[u8]) -> u16 {
    crate::checksum::transport(source, destination, crate::ip::TCP, segment)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use alloc::vec::Vec;
    use proptest::prelude::*;
    use smoltcp::wire::{IpAddress, TcpPacket};

    fn with_options(flags: u8, options: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; MIN_HEADER];
        bytes[1] = 1;
        bytes[3] = 1;
        bytes[12] = ((MIN_HEADER + options.len()) / 4) as u8 * 16;
        bytes[13] = flags;
        bytes.extend_from_slice(options);
        bytes
    }

    #[test]
    fn build_and_parse() {
        let header = Header {
            source_port: 80,
            destination_port: 12345,
            seq: 0xffff_fff0,
            ack: 7,
            flags: SYN | ACK,
            window: 0xfedc,
            mss: Some(1460),
            scale: Some(7),
            sack_permitted: true,
            timestamps: Some((1, 2)),
            fast_open: None,
            sack: &[],
        };
        let (source, destination) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        let mut bytes = vec![0xaa; header.len()];
        bytes.extend_from_slice(b"hello");
        header.write(source, destination, &mut bytes);
        assert_eq!(checksum(source, destination, &bytes), 0);
        let packet = TcpPacket::new_checked(&bytes).unwrap();
        assert!(packet.verify_checksum(&IpAddress::from(source), &IpAddress::from(destination)));
        let segment = Segment::parse(&bytes).unwrap();
        assert_eq!((segment.seq, segment.ack, segment.flags, segment.window), (0xffff_fff0, 7, SYN | ACK, 0xfedc));
        assert_eq!((segment.mss, segment.scale, segment.sack_permitted), (Some(1460), Some(7), true));
        assert_eq!(segment.timestamps, Some(Timestamps { value: 1, echo: 2 }));
        assert_eq!((segment.payload, segment.len()), (&b"hello"[..], 6));
    }

    #[test]
    fn sack_blocks_travel() {
        let sack = [(1, 2), (3, 4), (u32::MAX, 9)];
        let header =
            Header { source_port: 1, destination_port: 2, timestamps: Some((1, 2)), sack: &sack, ..Header::default() };
        let mut bytes = vec![0; header.len()];
        assert_eq!(bytes.len(), MAX_HEADER);
        let (source, destination) = ("fd00::1".parse().unwrap(), "fd00::2".parse().unwrap());
        header.write(source, destination, &mut bytes);
        assert_eq!(checksum(source, destination, &bytes), 0);
        assert_eq!(Segment::parse(&bytes).unwrap().sack_blocks(), sack);
    }

    #[test]
    fn hostile_options() {
        let parse = |flags, options: &[u8]| {
            let bytes = with_options(flags, options);
            let segment = Segment::parse(&bytes).unwrap();
            (segment.mss, segment.scale, segment.sack_permitted, segment.timestamps.is_some())
        };
        assert_eq!(parse(SYN, &[2, 4, 0, 0]), (None, None, false, false), "MSS 0");
        assert_eq!(parse(SYN, &[2, 4, 0, 1]), (Some(1), None, false, false));
        assert_eq!(parse(SYN, &[2, 4, 255, 255]), (Some(65_535), None, false, false));
        assert_eq!(parse(ACK, &[2, 4, 5, 180]), (None, None, false, false), "MSS outside a SYN");
        assert_eq!(parse(SYN, &[3, 3, 200, 0]), (None, Some(14), false, false), "scale above 14");
        assert_eq!(parse(SYN, &[99, 0, 4, 2]), (None, None, false, false), "length 0");
        assert_eq!(parse(SYN, &[99, 1, 4, 2]), (None, None, false, false), "length 1");
        assert_eq!(parse(SYN, &[99, 40, 4, 2]), (None, None, false, false), "beyond the header");
        assert_eq!(parse(SYN, &[99, 2, 4, 2]), (None, None, true, false), "unknown is skipped");
        assert_eq!(parse(SYN, &[2, 3, 1, 4, 2, 0, 0, 0]), (None, None, true, false), "wrong length is skipped");
        assert_eq!(parse(SYN, &[0, 2, 4, 2]), (None, None, false, false), "after the end");
        assert_eq!(parse(SYN, &[1; 40]), (None, None, false, false), "40 NOPs");
        assert_eq!(parse(SYN, &[1, 1, 1, 8]), (None, None, false, false), "no room for the length");
    }

    proptest! {
        #[test]
        fn any_bytes_parse_or_not(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let theirs = TcpPacket::new_checked(&bytes).ok().filter(|p| p.src_port() != 0 && p.dst_port() != 0);
            let ours = Segment::parse(&bytes);
            prop_assert_eq!(ours.is_some(), theirs.is_some());
            if let (Some(ours), Some(theirs)) = (ours, theirs) {
                prop_assert_eq!(ours.seq, theirs.seq_number().0.cast_unsigned());
                prop_assert_eq!(ours.ack, theirs.ack_number().0.cast_unsigned());
                prop_assert_eq!(ours.window, theirs.window_len());
                prop_assert_eq!(ours.has(SYN), theirs.syn());
                prop_assert_eq!(ours.has(FIN), theirs.fin());
                prop_assert_eq!(ours.has(ACK), theirs.ack());
                prop_assert_eq!(ours.has(RST), theirs.rst());
                prop_assert_eq!(ours.payload, &bytes[usize::from(theirs.header_len())..]);
            }
        }

        #[test]
        fn same_checksum_as_smoltcp(bytes in prop::collection::vec(any::<u8>(), 20..100)) {
            let (source, destination) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
            let mut ours = bytes.clone();
            ours[16..18].fill(0);
            let mut theirs = ours.clone();
            TcpPacket::new_unchecked(&mut theirs).fill_checksum(&IpAddress::from(source), &IpAddress::from(destination));
            prop_assert_eq!(checksum(source, destination, &ours).to_be_bytes(), &theirs[16..18]);
        }
    }
}
