use std::collections::BTreeMap;

use super::super::script::{Body, Expression, Icmp, Kind, Options, Packet, Quoted, TcpOption, Time, flag};
use super::parse;

fn events(text: &str) -> Vec<super::Event> {
    parse(text, &BTreeMap::new()).unwrap_or_else(|e| panic!("{text}: {e}")).events
}

fn packet(text: &str) -> Packet {
    match events(text).remove(0).kind {
        Kind::Packet(p) => *p,
        other => panic!("{other:?}"),
    }
}

fn error(text: &str) -> String {
    parse(text, &BTreeMap::new()).expect_err(text).to_string()
}

#[test]
fn options_comments_commands_and_times() {
    let text = "--ip_version=ipv6\n--send_omit_free // why\n// c\n`a\nb`\n /* x */ 0 close(3) = 0\n+.1~+0.25 > . 1:1(0) ack 1\n\
                * < . 1:1(0) ack 1 win 5\n0.5...0.75 read(3, ..., 1) = 1\n+1 %{ assert True }%\n1.5~2 > R 1:1(0)\n";
    let script = parse(text, &BTreeMap::new()).unwrap();
    assert_eq!(script.options[0], ("ip_version".into(), "ipv6".into()));
    assert_eq!(script.options[1], ("send_omit_free".into(), String::new()));
    let times: Vec<_> = script.events.iter().map(|e| e.time).collect();
    assert_eq!(
        times,
        [
            Time::Relative(0),
            Time::Absolute(0),
            Time::RelativeRange(100_000, 250_000),
            Time::Any,
            Time::Absolute(500_000),
            Time::Relative(1_000_000),
            Time::AbsoluteRange(1_500_000, 2_000_000)
        ]
    );
    assert!(matches!(&script.events[0].kind, Kind::Shell(s) if s == "a\nb"));
    assert!(matches!(&script.events[4].kind, Kind::Syscall(s) if s.ends == Some(750_000)));
    assert_eq!(script.events[2].line, 7);
}

#[test]
fn segments_with_all_that_they_can_have() {
    let p = packet(
        "+0 < [ce, ttl 9] 1000 > 80 SEWAP.U 0:5(5) ack 7 win 512 urg 3 \
         <mss 1460, sackOK,TS val 1 ecr 2,nop,wscale 8,sack 1:2 3:4,eol,FO a1b2,FOEXP,md5 0011,unknown 99 ab>",
    );
    assert!(p.inbound && p.ip.ecn == Some(3) && p.ip.ttl == Some(9));
    let Body::Tcp(t) = p.body else { panic!() };
    assert_eq!(t.ports, Some((1000, 80)));
    assert_eq!(t.flags, 0x1ff & !(flag::FIN | flag::RST));
    assert_eq!((t.seq, t.len, t.ack, t.window, t.urgent), (0, 5, Some(7), Some(512), Some(3)));
    let Options::These(options) = t.options else { panic!() };
    assert_eq!(options.len(), 11);
    assert_eq!(options[2], TcpOption::Timestamps { value: 1, echo: 2 });
    assert_eq!(options[5], TcpOption::Sack(vec![(1, 2), (3, 4)]));
    assert_eq!(options[7], TcpOption::FastOpen { cookie: vec![0xa1, 0xb2], experimental: false });
    assert_eq!(options[10], TcpOption::Other { kind: 99, data: vec![0xab] });
    assert!(matches!(packet("0 > S. 0:0(0) ack 1 <...>").body, Body::Tcp(t) if t.options == Options::Any));
    assert!(matches!(packet("0 < - 1:1001(1000) win 2").body, Body::Tcp(t) if t.flags == 0));
    assert!(matches!(packet("0 < . 4294967295:0(1) ack 1").body, Body::Tcp(t) if t.seq == u32::MAX));
}

#[test]
fn other_packets() {
    assert_eq!(packet("0 > udp (1472)").body, Body::Udp(1472));
    let icmp = Icmp { v6: false, kind: 3, code: 4, mtu: Some(1200), quoted: Some(Quoted::Tcp { seq: 1, len: 1460 }) };
    assert_eq!(packet("0 < icmp unreachable frag_needed mtu 1200 [1:1461(1460)]").body, Body::Icmp(icmp));
    let icmp = Icmp { v6: true, kind: 2, code: 0, mtu: Some(1280), quoted: Some(Quoted::Udp { len: 9 }) };
    assert_eq!(packet("0 < icmpv6 packet_too_big mtu 1280 [udp (9)]").body, Body::Icmp(icmp));
}

#[test]
fn calls_with_structures() {
    let text = "+0 recvmsg(4, {msg_name(...)=..., msg_iov(2)=[{..., 10}, {..., 20}], msg_flags=MSG_TRUNC|MSG_CTRUNC,\n\
                msg_control=[{cmsg_level=SOL_TCP, cmsg_data=9}]}, 0) = -1 EAGAIN (Resource temporarily unavailable)";
    let Kind::Syscall(call) = events(text).remove(0).kind else { panic!() };
    assert_eq!(call.name, "recvmsg");
    assert_eq!(call.result.value, Expression::Number(-1));
    assert_eq!(call.result.errno.as_deref(), Some("EAGAIN"));
    let Expression::Struct(fields) = &call.arguments[1] else { panic!() };
    assert_eq!(
        fields.iter().map(|f| f.0.as_str()).collect::<Vec<_>>(),
        ["msg_name", "msg_iov", "msg_flags", "msg_control"]
    );
    let pair = Expression::Struct(vec![(String::new(), Expression::Ellipsis), (String::new(), Expression::Number(10))]);
    assert!(matches!(&fields[1].1, Expression::List(l) if l.len() == 2 && l[0] == pair));
    assert!(matches!(&fields[2].1, Expression::Or(all) if all.len() == 2));
    let text = "0 bind(3, {sa_family = AF_INET, sin_port = htons(80), sin_addr = inet_addr(\"1.2.3.4\")}, ...) = 0";
    assert!(matches!(&events(text)[0].kind, Kind::Syscall(c) if c.arguments.len() == 3));
    assert!(matches!(&events("0 fcntl(3, F_GETFL) = 0x2 (flags O_RDWR)\n0 close(3) = 0")[..], [_, _]));
    let defines = BTreeMap::from([("LEVEL".to_owned(), "SOL_IP".to_owned()), ("N".to_owned(), "7".to_owned())]);
    let script = parse("0 f(LEVEL, N) = ...", &defines).unwrap();
    let Kind::Syscall(call) = &script.events[0].kind else { panic!() };
    assert_eq!(call.arguments, [Expression::Name("SOL_IP".into()), Expression::Number(7)]);
}

#[test]
fn errors_say_where() {
    assert_eq!(
        error("0 socket(..., 1) = 3\n+0 < X 0:0(0)"),
        "2:7: 'X' is no TCP flag: F S R P . U E W A, or - for none"
    );
    assert_eq!(error("0 > S 0:1(0)"), "1:13: 0:1(0) does not add up");
    assert!(matches!(packet("0 > 5. 1:1(0)").body, Body::Tcp(t) if t.flags == flag::ACK | flag::AE | flag::ECE));
    assert!(error("0 < S 0:0(0) win 70000").contains("too large"));
    assert!(error("+0 `never ends").contains("missing"));
    assert!(error("0 < S 0:0(0) <mss 5 5>").contains("another TCP option"));
    assert!(error("0 < S 0:0(0) <ECN e0b 1>").contains("Accurate ECN"));
    assert!(error("0 poll(").contains("found the end"));
    assert!(error("0...1 < S 0:0(0)").contains("system call"));
    assert!(error("+1~+0 > . 1:1(0) ack 1").contains("ends before"));
}
