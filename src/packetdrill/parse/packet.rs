//! Packets: `< S 0:0(0) win 65535 <mss 1460>`, `> [ect0] . 1:1001(1000) ack 1`, `< icmp unreachable frag_needed …`.

use super::super::script::{Body, Icmp, IpFields, Options, Packet, Quoted, Tcp, TcpOption, flag};
use super::cursor::{Cursor, Result};

pub(super) fn packet(cursor: &mut Cursor<'_>) -> Result<Packet> {
    let inbound = cursor.take("<");
    if !inbound {
        cursor.expect(">")?;
    }
    let ip = ip_fields(cursor)?;
    for encapsulation in ["ipv4", "ipv6", "gre", "mpls"] {
        if cursor.take_word(encapsulation) {
            return cursor.fail(format!("packets inside {encapsulation} are not supported"));
        }
    }
    let body = if cursor.take_word("icmpv6") {
        Body::Icmp(icmp(cursor, true)?)
    } else if cursor.take_word("icmp") {
        Body::Icmp(icmp(cursor, false)?)
    } else if cursor.take_word("udp") {
        Body::Udp(parenthesized(cursor)?)
    } else {
        Body::Tcp(tcp(cursor)?)
    };
    Ok(Packet { inbound, ip, body })
}

fn ip_fields(cursor: &mut Cursor<'_>) -> Result<IpFields> {
    let mut fields = IpFields::default();
    if !cursor.take("[") {
        return Ok(fields);
    }
    loop {
        match cursor.word().as_str() {
            "noecn" => fields.ecn = Some(0),
            "ect1" => fields.ecn = Some(1),
            // "ecn": capable, whichever codepoint; RFC 3168 asks for ECT(0) where nothing else is agreed.
            "ect0" | "ecn" => fields.ecn = Some(2),
            "ce" => fields.ecn = Some(3),
            "tos" => fields.tos = Some(cursor.small()?),
            "ttl" => fields.ttl = Some(cursor.small()?),
            "flowlabel" => fields.flow_label = Some(cursor.small()?),
            other => {
                return cursor.fail(format!("{other:?} is no IP field: ect0, ect1, ce, noecn, tos, ttl, flowlabel"));
            }
        }
        if !cursor.take(",") {
            break;
        }
    }
    cursor.expect("]")?;
    Ok(fields)
}

fn parenthesized<T: TryFrom<u64>>(cursor: &mut Cursor<'_>) -> Result<T> {
    cursor.expect("(")?;
    let number = cursor.small()?;
    cursor.expect(")")?;
    Ok(number)
}

fn tcp(cursor: &mut Cursor<'_>) -> Result<Tcp> {
    let mut tcp = Tcp::default();
    let mark = cursor.mark();
    if cursor.peek().is_ascii_digit()
        && let Ok(source) = cursor.small()
        && cursor.take(">")
    {
        tcp.ports = Some((source, cursor.small()?));
    } else {
        cursor.back(mark);
    }
    tcp.flags = flags(cursor)?;
    (tcp.seq, tcp.len) = sequence(cursor)?;
    if cursor.take_word("ack") {
        tcp.ack = Some(cursor.small()?);
    }
    if cursor.take_word("win") {
        tcp.window = Some(cursor.small()?);
    }
    if cursor.take_word("urg") {
        tcp.urgent = Some(cursor.small()?);
    }
    if cursor.take("<") {
        tcp.options = options(cursor)?;
    }
    Ok(tcp)
}

fn flags(cursor: &mut Cursor<'_>) -> Result<u16> {
    cursor.skip();
    let text = cursor.while_true(|b| b.is_ascii_alphanumeric() || b == b'.' || b == b'-');
    if text.is_empty() {
        return cursor.unexpected("TCP flags");
    }
    let mut bits = 0;
    for c in text.chars() {
        bits |= match c {
            'F' => flag::FIN,
            'S' => flag::SYN,
            'R' => flag::RST,
            'P' => flag::PSH,
            '.' => flag::ACK,
            'U' => flag::URG,
            'E' => flag::ECE,
            'W' | 'C' => flag::CWR,
            'A' => flag::AE,
            // The three bits of RFC 9768's counter.
            '0'..='7' => u16::from(c as u8 - b'0') << 6,
            '-' => 0,
            other => return cursor.fail(format!("{other:?} is no TCP flag: F S R P . U E W A, or - for none")),
        };
    }
    Ok(bits)
}

/// `first:last(length)`.
fn sequence(cursor: &mut Cursor<'_>) -> Result<(u32, u32)> {
    let first: u32 = cursor.small()?;
    cursor.expect(":")?;
    let last: u32 = cursor.small()?;
    let len: u32 = parenthesized(cursor)?;
    if first.wrapping_add(len) != last {
        return cursor.fail(format!("{first}:{last}({len}) does not add up"));
    }
    Ok((first, len))
}

fn options(cursor: &mut Cursor<'_>) -> Result<Options> {
    if cursor.take("...") {
        cursor.expect(">")?;
        return Ok(Options::Any);
    }
    let mut list = Vec::new();
    while !cursor.take(">") {
        list.push(option(cursor)?);
        if !cursor.take(",") && !cursor.sees(">") {
            return cursor.unexpected("another TCP option or \">\"");
        }
    }
    Ok(Options::These(list))
}

fn option(cursor: &mut Cursor<'_>) -> Result<TcpOption> {
    let name = cursor.word();
    Ok(match name.as_str() {
        "nop" => TcpOption::Nop,
        "eol" => TcpOption::Eol,
        "mss" => TcpOption::Mss(cursor.small()?),
        "wscale" => TcpOption::WindowScale(cursor.small()?),
        "sackOK" => TcpOption::SackOk,
        "sack" => {
            let mut blocks = Vec::new();
            while cursor.peek().is_ascii_digit() {
                let left = cursor.small()?;
                cursor.expect(":")?;
                blocks.push((left, cursor.small()?));
            }
            TcpOption::Sack(blocks)
        }
        "TS" => {
            let value = if cursor.take_word("val") { cursor.small()? } else { 0 };
            let echo = if cursor.take_word("ecr") { cursor.small()? } else { 0 };
            TcpOption::Timestamps { value, echo }
        }
        "FO" => TcpOption::FastOpen { cookie: bytes(cursor)?, experimental: false },
        "FOEXP" => TcpOption::FastOpen { cookie: bytes(cursor)?, experimental: true },
        "md5" => TcpOption::Md5(bytes(cursor)?),
        "ECN" => return cursor.fail("Accurate ECN (RFC 9768) is not supported"),
        "mpcapable" | "mp_capable" | "mp_join" | "add_address" | "dss" | "mp_reset" | "mp_fastclose" | "mp_fail"
        | "mp_prio" | "remove_address" => return cursor.fail("Multipath TCP (RFC 8684) is not supported"),
        "unknown" | "kind" => {
            let kind = cursor.small()?;
            TcpOption::Other { kind, data: bytes(cursor)? }
        }
        _ => return cursor.fail(format!("{name:?} is no TCP option that this runner knows")),
    })
}

/// Hexadecimal digits, two a byte; none for none. A name (`TFO_COOKIE`) stands for what was defined.
fn bytes(cursor: &mut Cursor<'_>) -> Result<Vec<u8>> {
    let word = cursor.word();
    let digits = cursor.defined(&word).unwrap_or(&word);
    let digits = digits.strip_prefix("0x").unwrap_or(digits);
    let pair = |i| digits.get(i..i + 2).and_then(|two| u8::from_str_radix(two, 16).ok());
    let bytes: Option<Vec<u8>> = (0..digits.len()).step_by(2).map(pair).collect();
    match bytes {
        Some(bytes) => Ok(bytes),
        None => cursor.fail(format!("{digits:?} is not a row of hexadecimal bytes")),
    }
}

fn icmp(cursor: &mut Cursor<'_>, v6: bool) -> Result<Icmp> {
    let name = cursor.word();
    // Only IPv6 has this one, whatever the word before it.
    let v6 = v6 || name == "packet_too_big";
    let Some(kind) = icmp_kind(&name, v6) else {
        return cursor.fail(format!("{name:?} is no kind of ICMP message"));
    };
    let mut icmp = Icmp { v6, kind, code: 0, mtu: None, quoted: None };
    if cursor.peek().is_ascii_alphanumeric() && !cursor.sees("mtu") && !cursor.sees("id") {
        let code = cursor.word();
        match icmp_code(&code, v6) {
            Some(code) => icmp.code = code,
            None => return cursor.fail(format!("{code:?} is no code of ICMP {name}")),
        }
    }
    if cursor.take_word("mtu") {
        icmp.mtu = Some(cursor.small()?);
    }
    if cursor.take("[") {
        icmp.quoted = Some(if cursor.take_word("udp") {
            Quoted::Udp { len: parenthesized(cursor)? }
        } else {
            // Flags may stand there; a quoted segment is found by its numbers.
            if !cursor.peek().is_ascii_digit() {
                flags(cursor)?;
            }
            let (seq, len) = sequence(cursor)?;
            Quoted::Tcp { seq, len }
        });
        cursor.expect("]")?;
    }
    Ok(icmp)
}

fn icmp_kind(name: &str, v6: bool) -> Option<u8> {
    Some(match (name, v6) {
        ("unreachable", false) => 3,
        ("echo_reply", false) => 0,
        ("source_quench", false) => 4,
        ("redirect", false) => 5,
        ("echo_request", false) => 8,
        ("time_exceeded", false) => 11,
        ("parameter_problem", false) => 12,
        ("unreachable", true) => 1,
        ("packet_too_big", true) => 2,
        ("time_exceeded", true) => 3,
        ("parameter_problem", true) => 4,
        ("echo_request", true) => 128,
        ("echo_reply", true) => 129,
        _ => return name.parse().ok(),
    })
}

fn icmp_code(name: &str, v6: bool) -> Option<u8> {
    let v4: &[&str] = &[
        "net_unreachable",
        "host_unreachable",
        "protocol_unreachable",
        "port_unreachable",
        "frag_needed",
        "source_route_failed",
        "net_unknown",
        "host_unknown",
        "source_host_isolated",
        "net_prohibited",
        "host_prohibited",
        "net_unreachable_for_tos",
        "host_unreachable_for_tos",
        "packet_filtered",
        "precedence_violation",
        "precedence_cutoff",
    ];
    let six: &[&str] = &[
        "no_route",
        "admin_prohibited",
        "not_neighbour",
        "addr_unreachable",
        "port_unreachable",
        "policy_fail",
        "reject_route",
    ];
    let name = match name {
        "noroute_unreachable" => "no_route",
        "address_unreachable" if v6 => "addr_unreachable",
        other => other,
    };
    let names = if v6 { six } else { v4 };
    names.iter().position(|n| *n == name).map(|n| n as u8).or_else(|| name.parse().ok())
}
