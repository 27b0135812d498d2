//! UDP in a byte ring: a record is this header, then the payload, then zeroes up to a multiple of 8.

/// Bytes of an encoded [`Header`].
pub const HEADER_BYTES: usize = 48;
/// Largest UDP payload over IPv4 or IPv6 without jumbograms, in bytes.
pub const MAX_PAYLOAD_BYTES: usize = 65_527;

/// What goes with a datagram. In a receive ring `remote` is the sender; in a transmit ring it is the destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Header {
    /// Payload bytes.
    pub len: u32,
    /// IPv6, or IPv4 in mapped form. Unspecified in a transmit ring: the connected peer.
    pub remote: [u8; 16],
    pub remote_port: u16,
    /// Our address: where it arrived, or where it is to leave from (unspecified: as routed).
    pub local: [u8; 16],
    /// IP_TOS / traffic class.
    pub tos: u8,
    /// TTL / hop limit as received; 0 in a transmit ring means the socket's.
    pub ttl: u8,
}

impl Header {
    /// Bytes that a record with `len` payload bytes takes in a ring.
    #[must_use]
    pub fn record_bytes(len: usize) -> u64 {
        (HEADER_BYTES + len.next_multiple_of(8)) as u64
    }

    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        out[0..4].copy_from_slice(&self.len.to_le_bytes());
        out[4..6].copy_from_slice(&self.remote_port.to_le_bytes());
        out[6] = self.tos;
        out[7] = self.ttl;
        out[8..24].copy_from_slice(&self.remote);
        out[24..40].copy_from_slice(&self.local);
        out
    }

    /// Reads a header out of bytes that another process may have written: None when it can't be.
    #[must_use]
    pub fn decode(b: &[u8; HEADER_BYTES]) -> Option<Self> {
        let mut h = Self {
            len: u32::from_le_bytes([b[0], b[1], b[2], b[3]]),
            remote_port: u16::from_le_bytes([b[4], b[5]]),
            tos: b[6],
            ttl: b[7],
            ..Self::default()
        };
        h.remote.copy_from_slice(&b[8..24]);
        h.local.copy_from_slice(&b[24..40]);
        (h.len as usize <= MAX_PAYLOAD_BYTES).then_some(h)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_comes_back_and_an_impossible_length_does_not() {
        let h = Header { len: 1200, remote: [7; 16], remote_port: 53, local: [9; 16], tos: 2, ttl: 64 };
        assert_eq!(Header::decode(&h.encode()), Some(h));
        assert_eq!(Header::record_bytes(1), 56);
        assert_eq!(Header::decode(&Header { len: 65_528, ..h }.encode()), None);
    }
}
