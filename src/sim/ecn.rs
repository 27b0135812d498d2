//! Marking packets in frames: Congestion Experienced (RFC 3168 5).

/// Sets CE in an ECN-capable IP packet; false for any other frame.
pub fn mark(frame: &mut [u8]) -> bool {
    match frame.get(12..14) {
        Some([0x08, 0x00]) if frame.len() >= 34 && frame[15] & 3 != 0 => {
            if frame[15] & 3 != 3 {
                let before = u16::from_be_bytes([frame[14], frame[15]]);
                frame[15] |= 3;
                let after = u16::from_be_bytes([frame[14], frame[15]]);
                adjust(&mut frame[24..26], before, after);
            }
            true
        }
        // The traffic class begins in the first byte's lower half.
        Some([0x86, 0xdd]) if frame.len() >= 54 && frame[15] & 0x30 != 0 => {
            frame[15] |= 0x30;
            true
        }
        _ => false,
    }
}

/// RFC 1624: a header checksum after one word has changed.
fn adjust(checksum: &mut [u8], before: u16, after: u16) {
    let mut sum = u32::from(!u16::from_be_bytes([checksum[0], checksum[1]])) + u32::from(!before) + u32::from(after);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    checksum.copy_from_slice(&(!(sum as u16)).to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use smoltcp::wire::{Ipv4Packet, Ipv6Packet};

    #[test]
    fn only_what_is_capable_is_marked_and_checksums_stay_right() {
        let mut frame = vec![0; 14 + 20];
        frame[12] = 8;
        let mut ip = Ipv4Packet::new_unchecked(&mut frame[14..]);
        ip.set_version(4);
        ip.set_header_len(20);
        ip.set_total_len(20);
        ip.set_ecn(2);
        ip.fill_checksum();
        assert!(mark(&mut frame));
        let ip = Ipv4Packet::new_checked(&frame[14..]).unwrap();
        assert_eq!(ip.ecn(), 3);
        assert!(ip.verify_checksum());
        frame[15] &= !3;
        assert!(!mark(&mut frame));

        let mut frame = vec![0; 54];
        frame[12..14].copy_from_slice(&[0x86, 0xdd]);
        let mut ip = Ipv6Packet::new_unchecked(&mut frame[14..]);
        ip.set_version(6);
        ip.set_traffic_class(1);
        assert!(mark(&mut frame));
        assert_eq!(Ipv6Packet::new_unchecked(&frame[14..]).traffic_class(), 3);
        assert!(!mark(&mut [0; 60]));
    }
}
