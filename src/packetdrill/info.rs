//! The stack's numbers of a connection under Linux's names (`struct tcp_info`), for code blocks.

use sidestep_stack::TcpInfo;

use super::code::Names;
use super::run::state_of;

/// Gives code blocks `tcpi_*`. Counts of segments are in segments, times in the units of Linux's fields.
pub fn give(names: &mut Names, info: Option<&TcpInfo>, slot_state: u32) {
    let mut give = |name: &str, value: i64| names.give(name, value);
    give("tcpi_state", i64::from(state_of(info, slot_state)));
    let Some(info) = info else { return };
    let micros = |d: std::time::Duration| d.as_micros() as i64;
    let segments = |bytes: u32| i64::from(bytes.div_ceil(info.send_mss.max(1)));
    // TCPI_OPT_TIMESTAMPS, _SACK, _WSCALE.
    let scaled = info.send_scale > 0 || info.receive_scale > 0;
    let options = i64::from(info.timestamps) | i64::from(info.sack) << 1 | i64::from(scaled) << 2;
    for (name, value) in [
        ("tcpi_options", options),
        ("tcpi_snd_wscale", info.send_scale.into()),
        ("tcpi_rcv_wscale", info.receive_scale.into()),
        ("tcpi_snd_mss", info.send_mss.into()),
        ("tcpi_rcv_mss", info.receive_mss.into()),
        ("tcpi_rto", micros(info.rto)),
        ("tcpi_rtt", micros(info.srtt)),
        ("tcpi_rttvar", micros(info.rttvar)),
        ("tcpi_snd_cwnd", segments(info.cwnd)),
        ("tcpi_snd_ssthresh", segments(info.ssthresh)),
        ("tcpi_total_retrans", info.retransmits.into()),
        ("tcpi_unacked", segments(info.bytes_in_flight)),
    ] {
        give(name, value);
    }
}
