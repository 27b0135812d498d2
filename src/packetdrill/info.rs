//! The stack's numbers of a connection under Linux's names (`struct tcp_info`), for code blocks.

use sidestep_stack::TcpInfo;

use super::code::Names;
use super::run::state_of;

/// The members of `struct tcp_info` in order, with their bytes; two bit fields come apart below.
const MEMBERS: [(&str, usize); 59] = [
    ("state", 1),
    ("ca_state", 1),
    ("retransmits", 1),
    ("probes", 1),
    ("backoff", 1),
    ("options", 1),
    ("scales", 1),
    ("delivery_rate_app_limited", 1),
    ("rto", 4),
    ("ato", 4),
    ("snd_mss", 4),
    ("rcv_mss", 4),
    ("unacked", 4),
    ("sacked", 4),
    ("lost", 4),
    ("retrans", 4),
    ("fackets", 4),
    ("last_data_sent", 4),
    ("last_ack_sent", 4),
    ("last_data_recv", 4),
    ("last_ack_recv", 4),
    ("pmtu", 4),
    ("rcv_ssthresh", 4),
    ("rtt", 4),
    ("rttvar", 4),
    ("snd_ssthresh", 4),
    ("snd_cwnd", 4),
    ("advmss", 4),
    ("reordering", 4),
    ("rcv_rtt", 4),
    ("rcv_space", 4),
    ("total_retrans", 4),
    ("pacing_rate", 8),
    ("max_pacing_rate", 8),
    ("bytes_acked", 8),
    ("bytes_received", 8),
    ("segs_out", 4),
    ("segs_in", 4),
    ("notsent_bytes", 4),
    ("min_rtt", 4),
    ("data_segs_in", 4),
    ("data_segs_out", 4),
    ("delivery_rate", 8),
    ("busy_time", 8),
    ("rwnd_limited", 8),
    ("sndbuf_limited", 8),
    ("delivered", 4),
    ("delivered_ce", 4),
    ("bytes_sent", 8),
    ("bytes_retrans", 8),
    ("dsack_dups", 4),
    ("reord_seen", 4),
    ("rcv_ooopack", 4),
    ("snd_wnd", 4),
    ("rcv_wnd", 4),
    ("rehash", 4),
    ("total_rto", 2),
    ("total_rto_recoveries", 2),
    ("total_rto_time", 4),
];

/// Gives code blocks `tcpi_*`, in the units of Linux's members.
pub fn give(names: &mut Names, info: Option<&TcpInfo>, slot_state: u32) {
    let bytes = info.copied().unwrap_or_default().to_linux();
    let mut at = 0;
    for (name, len) in MEMBERS {
        let mut word = [0; 8];
        word[..len].copy_from_slice(&bytes[at..at + len]);
        at += len;
        names.give(&format!("tcpi_{name}"), u64::from_le_bytes(word).cast_signed());
    }
    let scales = i64::from(bytes[6]);
    names.give("tcpi_snd_wscale", scales & 15);
    names.give("tcpi_rcv_wscale", scales >> 4);
    names.give("tcpi_state", i64::from(state_of(info, slot_state)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_as_long_as_the_structure() {
        assert_eq!(MEMBERS.iter().map(|m| m.1).sum::<usize>(), sidestep_stack::TCP_INFO_BYTES);
        let mut names = Names::default();
        let info = TcpInfo { cwnd: 5000, send_mss: 1000, send_scale: 7, receive_scale: 8, ..TcpInfo::default() };
        give(&mut names, Some(&info), 0);
        let code = "assert tcpi_snd_cwnd == 5 and tcpi_snd_wscale == 7 and tcpi_rcv_wscale == 8 and tcpi_state == 7";
        crate::packetdrill::code::run(code, &mut names, &mut |_| {}).unwrap();
    }
}
