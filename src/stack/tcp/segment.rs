//! Segments on the wire: parsing what came (nothing a peer sends can panic), building what goes, checksums.

use core::net::IpAddr;
use smoltcp::wire::{TcpPacket, TcpSeqNumber};

pub(super) const FIN: u8 = 0x01;
pub(super) const SYN: u8 = 0x02;
pub(super) const RST: u8 = 0x04;
pub(super) const PSH: u8 = 0x08;
pub(super) const ACK: u8 = 0x10;
/// RFC 3168 6.1.
pub(super) const ECE: u8 = 0x40;
pub(super) const CWR: u8 = 0x80;

/// Bytes of a TCP header without options, and with as many as fit.
pub(super) const MIN_HEADER: usize = 20;
pub(super) const MAX_HEADER: usize = 60;
/// Bytes of the timestamp option with its padding (RFC 7323 appendix A).
pub(super) const TIMESTAMP_SPACE: usize = 12;

/// RFC 7323 2.2: a larger shift counts as 14.
pub(super) const MAX_SCALE: u8 = 14;

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
    sack: [(u32, u32); MAX_SACK],
    sack_len: u8,
    pub payload: &'a [u8],
    /// The ECN bits of the IP header; whoever parses fills them in.
    pub ecn: u8,
}

impl<'a> Segment<'a> {
    /// None when the header doesn't fit its own length or a port is 0.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let packet = TcpPacket::new_checked(bytes).ok()?;
        if packet.src_port() == 0 || packet.dst_port() == 0 {
            return None;
        }
        let mut flags = 0;
        for (set, flag) in [
            (packet.fin(), FIN),
            (packet.syn(), SYN),
            (packet.rst(), RST),
            (packet.psh(), PSH),
            (packet.ack(), ACK),
            (packet.ece(), ECE),
            (packet.cwr(), CWR),
        ] {
            if set {
                flags |= flag;
            }
        }
        let mut segment = Self {
            source_port: packet.src_port(),
            destination_port: packet.dst_port(),
            seq: packet.seq_number().0.cast_unsigned(),
            ack: packet.ack_number().0.cast_unsigned(),
            flags,
            window: packet.window_len(),
            mss: None,
            scale: None,
            sack_permitted: false,
            timestamps: None,
            sack: [(0, 0); MAX_SACK],
            sack_len: 0,
            ecn: 0,
            payload: bytes.get(usize::from(packet.header_len())..)?,
        };
        segment.parse_options(bytes.get(MIN_HEADER..usize::from(packet.header_len()))?);
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
        if !self.sack.is_empty() {
            len += 4 + 8 * self.sack.len();
        }
        len
    }

    /// Writes header and checksum to the front of `segment`, whose payload lies behind [`Self::len`] bytes already.
    pub fn write(&self, source: IpAddr, destination: IpAddr, segment: &mut [u8]) {
        self.write_unsummed(segment);
        let checksum = checksum(source, destination, segment);
        TcpPacket::new_unchecked(segment).set_checksum(checksum);
    }

    /// As [`Self::write`], with 0 for the checksum: for segments that no wire carries.
    pub fn write_unsummed(&self, segment: &mut [u8]) {
        let len = self.len();
        let mut packet = TcpPacket::new_unchecked(&mut *segment);
        packet.set_src_port(self.source_port);
        packet.set_dst_port(self.destination_port);
        packet.set_seq_number(TcpSeqNumber(self.seq.cast_signed()));
        packet.set_ack_number(TcpSeqNumber(self.ack.cast_signed()));
        packet.clear_flags();
        packet.set_fin(self.flags & FIN != 0);
        packet.set_syn(self.flags & SYN != 0);
        packet.set_rst(self.flags & RST != 0);
        packet.set_psh(self.flags & PSH != 0);
        packet.set_ack(self.flags & ACK != 0);
        packet.set_ece(self.flags & ECE != 0);
        packet.set_cwr(self.flags & CWR != 0);
        #[allow(clippy::cast_possible_truncation)]
        packet.set_header_len(len as u8);
        packet.set_window_len(self.window);
        packet.set_urgent_at(0);
        packet.set_checksum(0);
        self.write_options(&mut segment[MIN_HEADER..len]);
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

fn put<const N: usize>(out: &mut [u8], bytes: [u8; N]) -> &mut [u8] {
    let (front, rest) = out.split_at_mut(N);
    front.copy_from_slice(&bytes);
    rest
}

/// The Internet checksum of a TCP segment with its pseudo-header (RFC 9293 3.1, RFC 8200 8.1), its own field counted
/// as it stands.
pub(super) fn checksum(source: IpAddr, destination: IpAddr, segment: &[u8]) -> u16 {
    // One's complement addition doesn't care about the width of its words: 32 bits at a time, folded at the end.
    let mut sum = segment.len() as u64 + 6;
    for address in [source, destination] {
        sum += match address {
            IpAddr::V4(v4) => sum_words(&v4.octets()),
            IpAddr::V6(v6) => sum_words(&v6.octets()),
        };
    }
    sum += sum_words(segment);
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    #[allow(clippy::cast_possible_truncation)]
    {
        !(sum as u16)
    }
}

fn sum_words(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<4>();
    let sum: u64 = words.iter().map(|word| u64::from(u32::from_be_bytes(*word))).sum();
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    sum + u64::from(u32::from_be_bytes(last))
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use alloc::vec::Vec;
    use proptest::prelude::*;
    use smoltcp::wire::IpAddress;

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
            let _ = Segment::parse(&bytes);
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
