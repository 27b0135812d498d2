//! Is this the packet that the script expects? And how both look.

use std::fmt::Write;

use super::script::{Body, IpFields, Options, Packet, TcpOption, flag};
use super::wire::{Live, LiveBody, LiveTcp, spell_flags};

/// Compares; `live` is in the script's numbers already, but for timestamp values.
///
/// # Errors
/// What differs.
pub fn compare(expected: &Packet, live: &Live) -> Result<(), String> {
    compare_ip(&expected.ip, live)?;
    match (&expected.body, &live.body) {
        (Body::Tcp(wanted), LiveBody::Tcp(got)) => {
            // Whoever sends many segments as one packet pushes that packet, whatever is in the segments; and the end of
            // such a packet keeps the flag when it goes alone.
            let pushed = wanted.flags & flag::PSH != 0;
            let forgiven = if got.segments > 1 || pushed && got.full { flag::PSH } else { 0 };
            if (wanted.flags | forgiven) != (got.flags | forgiven) {
                return Err(format!("flags are {}", spell_flags(got.flags)));
            }
            differ("sequence number", wanted.seq, got.seq)?;
            differ("payload length", wanted.len, got.payload)?;
            if let Some(ack) = wanted.ack {
                differ("acknowledgment", ack, got.ack)?;
            }
            if let Some(window) = wanted.window {
                differ("window", window, got.window)?;
            }
            if let Some(urgent) = wanted.urgent {
                differ("urgent pointer", urgent, got.urgent)?;
            }
            match &wanted.options {
                Options::Any => Ok(()),
                Options::These(options) => compare_options(options, &got.options),
            }
        }
        (Body::Udp(wanted), LiveBody::Udp { len, .. }) => differ("payload length", usize::from(*wanted), *len),
        (Body::Icmp(wanted), LiveBody::Icmp { kind, code }) => {
            differ("ICMP type and code", (wanted.kind, wanted.code), (*kind, *code))
        }
        _ => Err("it is of another protocol".into()),
    }
}

fn differ<T: PartialEq + std::fmt::Debug>(what: &str, wanted: T, got: T) -> Result<(), String> {
    if wanted == got { Ok(()) } else { Err(format!("{what} is {got:?}, expected {wanted:?}")) }
}

fn compare_ip(wanted: &IpFields, live: &Live) -> Result<(), String> {
    if let Some(ecn) = wanted.ecn {
        differ("ECN field", ecn, live.tos & 3)?;
    }
    if let Some(tos) = wanted.tos {
        differ("TOS", tos, live.tos)?;
    }
    if let Some(ttl) = wanted.ttl {
        differ("TTL", ttl, live.ttl)?;
    }
    if let Some(label) = wanted.flow_label {
        differ("flow label", label, live.flow_label)?;
    }
    Ok(())
}

fn compare_options(wanted: &[TcpOption], got: &[TcpOption]) -> Result<(), String> {
    let same = wanted.len() == got.len()
        && wanted.iter().zip(got).all(|pair| match pair {
            // The value is the flow's business.
            (TcpOption::Timestamps { echo: a, .. }, TcpOption::Timestamps { echo: b, .. }) => a == b,
            (a, b) => a == b,
        });
    if same { Ok(()) } else { Err(format!("options are <{}>", spell_options(got))) }
}

/// Takes `next` into `first` if a sender with segmentation offload would have sent both as one packet.
pub fn merge(first: &mut LiveTcp, next: &LiveTcp) -> bool {
    let once = flag::PSH | flag::FIN | flag::CWR;
    let fits = first.flags & (flag::SYN | flag::RST | flag::FIN) == 0
        && first.payload > 0
        && next.payload > 0
        && first.flags & !once == next.flags & !once
        && (first.source, first.destination) == (next.source, next.destination)
        && first.seq.wrapping_add(first.payload) == next.seq
        && first.ack == next.ack
        && first.options == next.options;
    if fits {
        first.flags |= next.flags & once;
        first.payload += next.payload;
        first.data.extend(&next.data);
        first.segments += 1;
    }
    fits
}

/// The packet as a script would have it.
pub fn spell_expected(packet: &Packet) -> String {
    let mut text = spell_ip(&packet.ip);
    match &packet.body {
        Body::Udp(len) => _ = write!(text, "udp ({len})"),
        Body::Icmp(icmp) => _ = write!(text, "icmp type {} code {}", icmp.kind, icmp.code),
        Body::Tcp(tcp) => {
            let options = match &tcp.options {
                Options::Any => Some("...".to_owned()),
                Options::These(list) if list.is_empty() => None,
                Options::These(list) => Some(spell_options(list)),
            };
            text += &spell_tcp((tcp.flags, tcp.seq, tcp.len), tcp.ack, tcp.window, tcp.urgent, options);
        }
    }
    text
}

/// The same of a packet that came.
pub fn spell_live(live: &Live, ip: &IpFields) -> String {
    let shown = IpFields {
        ecn: ip.ecn.map(|_| live.tos & 3),
        tos: ip.tos.map(|_| live.tos),
        ttl: ip.ttl.map(|_| live.ttl),
        flow_label: ip.flow_label.map(|_| live.flow_label),
    };
    let mut text = spell_ip(&shown);
    match &live.body {
        LiveBody::Udp { len, .. } => _ = write!(text, "udp ({len})"),
        LiveBody::Icmp { kind, code } => _ = write!(text, "icmp type {kind} code {code}"),
        LiveBody::Tcp(tcp) => {
            let ack = (tcp.flags & flag::ACK != 0).then_some(tcp.ack);
            let urgent = (tcp.flags & flag::URG != 0).then_some(tcp.urgent);
            let options = (!tcp.options.is_empty()).then(|| spell_options(&tcp.options));
            text += &spell_tcp((tcp.flags, tcp.seq, tcp.payload), ack, Some(tcp.window), urgent, options);
        }
    }
    text
}

fn spell_ip(ip: &IpFields) -> String {
    let ecn = ip.ecn.map(|e| ["noecn", "ect1", "ect0", "ce"][usize::from(e & 3)].to_owned());
    let tos = ip.tos.map(|t| format!("tos {t:#x}"));
    let ttl = ip.ttl.map(|t| format!("ttl {t}"));
    let label = ip.flow_label.map(|l| format!("flowlabel {l:#x}"));
    let all: Vec<String> = [ecn, tos, ttl, label].into_iter().flatten().collect();
    if all.is_empty() { String::new() } else { format!("[{}] ", all.join(",")) }
}

fn spell_tcp(
    (flags, seq, len): (u16, u32, u32),
    ack: Option<u32>,
    window: Option<u16>,
    urgent: Option<u16>,
    options: Option<String>,
) -> String {
    let mut text = format!("{} {seq}:{}({len})", spell_flags(flags), seq.wrapping_add(len));
    let numbers = [("ack", ack), ("win", window.map(u32::from)), ("urg", urgent.map(u32::from))];
    for (name, value) in numbers {
        if let Some(value) = value {
            let _ = write!(text, " {name} {value}");
        }
    }
    if let Some(options) = options {
        let _ = write!(text, " <{options}>");
    }
    text
}

fn spell_options(options: &[TcpOption]) -> String {
    let hex = |bytes: &[u8]| bytes.iter().fold(String::new(), |s, b| s + &format!("{b:02x}"));
    let one = |option: &TcpOption| match option {
        TcpOption::Eol => "eol".into(),
        TcpOption::Nop => "nop".into(),
        TcpOption::Mss(n) => format!("mss {n}"),
        TcpOption::WindowScale(n) => format!("wscale {n}"),
        TcpOption::SackOk => "sackOK".into(),
        TcpOption::Sack(blocks) => blocks.iter().fold("sack".to_owned(), |s, (l, r)| s + &format!(" {l}:{r}")),
        TcpOption::Timestamps { value, echo } => format!("TS val {value} ecr {echo}"),
        TcpOption::FastOpen { cookie, experimental } => {
            format!("{} {}", if *experimental { "FOEXP" } else { "FO" }, hex(cookie)).trim_end().to_owned()
        }
        TcpOption::Md5(digest) => format!("md5 {}", hex(digest)),
        TcpOption::Other { kind, data } => format!("unknown {kind} {}", hex(data)),
    };
    options.iter().map(one).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::IpAddr;

    use super::super::parse::parse;
    use super::super::script::Kind;
    use super::*;

    fn expected(text: &str) -> Packet {
        match parse(&format!("0 {text}"), &BTreeMap::new()).unwrap().events.remove(0).kind {
            Kind::Packet(p) => *p,
            _ => unreachable!(),
        }
    }

    fn live(tcp: LiveTcp) -> Live {
        let any = IpAddr::from([0, 0, 0, 0]);
        Live { at: 0, source: any, destination: any, tos: 2, ttl: 64, flow_label: 0, body: LiveBody::Tcp(tcp) }
    }

    fn segment() -> LiveTcp {
        LiveTcp {
            seq: 1,
            ack: 1,
            flags: flag::ACK | flag::PSH,
            window: 9,
            payload: 1000,
            segments: 1,
            ..LiveTcp::default()
        }
    }

    #[test]
    fn each_field_counts() {
        let fits = |text: &str| compare(&expected(text), &live(segment()));
        assert_eq!(fits("> P. 1:1001(1000) ack 1"), Ok(()));
        assert_eq!(fits("> [ect0] P. 1:1001(1000) ack 1 win 9 <...>"), Ok(()));
        for wrong in [
            "> . 1:1001(1000) ack 1",
            "> P. 2:1002(1000) ack 1",
            "> P. 1:1000(999) ack 1",
            "> P. 1:1001(1000) ack 2",
            "> P. 1:1001(1000) ack 1 win 8",
            "> P. 1:1001(1000) ack 1 <nop>",
            "> [ce] P. 1:1001(1000) ack 1",
            "> [ttl 3] P. 1:1001(1000) ack 1",
            "> udp (1000)",
        ] {
            assert!(fits(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn segments_become_one_packet_when_they_continue_each_other() {
        let mut first = LiveTcp { flags: flag::ACK, ..segment() };
        assert!(merge(&mut first, &LiveTcp { seq: 1001, ..segment() }));
        assert_eq!((first.payload, first.segments), (2000, 2));
        assert_eq!(compare(&expected("> P. 1:2001(2000) ack 1"), &live(first.clone())), Ok(()));
        assert_eq!(compare(&expected("> . 1:2001(2000) ack 1"), &live(first.clone())), Ok(()));
        assert!(!merge(&mut first, &LiveTcp { seq: 2002, ..segment() }));
        assert!(!merge(&mut first, &LiveTcp { seq: 2001, ack: 2, ..segment() }));
    }

    #[test]
    fn spelling() {
        let text = "[ect0,ttl 3] FP. 1:11(10) ack 5 win 7 urg 2 <mss 1,nop,sack 1:2 3:4,TS val 5 ecr 6>";
        assert_eq!(spell_expected(&expected(&format!("> {text}"))), text.replace("FP.", "FP.U").replace("FP.U", "FP."));
    }
}
