//! Receive-side scaling: which queue a NIC puts a packet on. Outgoing connections choose their source port with it so
//! that the answers come to the shard that owns them. Microsoft, "Verifying the RSS Hash Calculation".

use crate::Rss;
use core::net::{IpAddr, SocketAddr};

/// Toeplitz hash of `input`: for each set bit of the input, the 32 bits of the key that start at that bit. Key bits
/// beyond its end count as 0.
pub(crate) fn toeplitz(key: &[u8], input: &[u8]) -> u32 {
    let byte = |i: usize| u32::from(key.get(i).copied().unwrap_or(0));
    let mut window = byte(0) << 24 | byte(1) << 16 | byte(2) << 8 | byte(3);
    let mut hash = 0;
    for (i, value) in input.iter().enumerate() {
        let next = byte(i + 4);
        for bit in (0..8).rev() {
            if value >> bit & 1 == 1 {
                hash ^= window;
            }
            window = window << 1 | next >> bit & 1;
        }
    }
    hash
}

impl Rss {
    /// The queue of a TCP packet from `source` to `destination`. None when the families differ or there is no table.
    pub(crate) fn queue_of(&self, source: SocketAddr, destination: SocketAddr) -> Option<u16> {
        let mut input = [0; 36];
        let len = match (source.ip(), destination.ip()) {
            (IpAddr::V4(s), IpAddr::V4(d)) => {
                input[..4].copy_from_slice(&s.octets());
                input[4..8].copy_from_slice(&d.octets());
                8
            }
            (IpAddr::V6(s), IpAddr::V6(d)) => {
                input[..16].copy_from_slice(&s.octets());
                input[16..32].copy_from_slice(&d.octets());
                32
            }
            _ => return None,
        };
        input[len..len + 2].copy_from_slice(&source.port().to_be_bytes());
        input[len + 2..len + 4].copy_from_slice(&destination.port().to_be_bytes());
        let hash = toeplitz(&self.key, &input[..len + 4]);
        let at = (hash as usize).checked_rem(self.indirection.len())?;
        self.indirection.get(at).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    /// The key of the Microsoft page.
    const KEY: [u8; 40] = [
        0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0, 0xd0, 0xca,
        0x2b, 0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30, 0xf2, 0x0c, 0x6a, 0x42, 0xb7, 0x3b,
        0xbe, 0xac, 0x01, 0xfa,
    ];

    /// With an indirection table of 1 << 16 entries that holds the low hash bits, `queue_of` shows the hash.
    fn low_hash(source: &str, destination: &str) -> u16 {
        let rss = Rss { key: KEY.to_vec(), indirection: (0..=u16::MAX).collect(), queue: 0 };
        rss.queue_of(source.parse().unwrap(), destination.parse().unwrap()).unwrap()
    }

    #[test]
    fn vectors_of_the_specification() {
        // IPv4 with TCP: 0x51ccc178, 0xc626b0ea, 0x5c2b394a, 0xafc7327f, 0x10e828a2.
        assert_eq!(low_hash("66.9.149.187:2794", "161.142.100.80:1766"), 0xc178);
        assert_eq!(low_hash("199.92.111.2:14230", "65.69.140.83:4739"), 0xb0ea);
        assert_eq!(low_hash("24.19.198.95:12898", "12.22.207.184:38024"), 0x394a);
        assert_eq!(low_hash("38.27.205.30:48228", "209.142.163.6:2217"), 0x327f);
        assert_eq!(low_hash("153.39.163.191:44251", "202.188.127.2:1303"), 0x28a2);
        // IPv6 with TCP: 0x40207d3d, 0xdde51bbf, 0x02d1feef.
        assert_eq!(low_hash("[3ffe:2501:200:1fff::7]:2794", "[3ffe:2501:200:3::1]:1766"), 0x7d3d);
        assert_eq!(low_hash("[3ffe:501:8::260:97ff:fe40:efab]:14230", "[ff02::1]:4739"), 0x1bbf);
        assert_eq!(low_hash("[3ffe:1900:4545:3:200:f8ff:fe21:67cf]:44251", "[fe80::200:f8ff:fe21:67cf]:38024"), 0xfeef);
        let input = [66, 9, 149, 187, 161, 142, 100, 80, 0x0a, 0xea, 0x06, 0xe6];
        assert_eq!(toeplitz(&KEY, &input), 0x51cc_c178);
    }

    #[test]
    fn nonsense_gives_no_queue() {
        let none = Rss { key: vec![], indirection: vec![], queue: 0 };
        assert_eq!(none.queue_of("1.2.3.4:5".parse().unwrap(), "1.2.3.4:6".parse().unwrap()), None);
        assert_eq!(none.queue_of("1.2.3.4:5".parse().unwrap(), "[::1]:6".parse().unwrap()), None);
    }
}
