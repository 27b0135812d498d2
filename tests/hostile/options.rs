//! Options of a SYN, read twice: by the stack, whose SYN-ACK and connection show what it understood, and here.

use crate::script::Script;
use crate::wire::{self, ACK, SYN, Tcp};
use crate::world::{CAPACITY, Node, addresses, mac};
use sidestep_stack::{Instant, ListenAddress, TcpOptions, TcpState, Token, Unknown};

const NOW: Instant = Instant::from_millis(30_000);

/// What a SYN's options say.
#[derive(Debug, Default, PartialEq, Eq)]
struct Understood {
    mss: Option<u16>,
    scale: Option<u8>,
    sack: bool,
    timestamp: Option<u32>,
}

/// The reading: one option after another; a wrong length skips the option, one that can't be skipped ends the list.
fn understand(mut options: &[u8]) -> Understood {
    let mut u = Understood::default();
    loop {
        let (kind, len) = match options {
            [] | [0, ..] | [2..=255] => return u,
            [1, rest @ ..] => {
                options = rest;
                continue;
            }
            [kind, len, ..] => (*kind, usize::from(*len)),
        };
        if len < 2 || len > options.len() {
            return u;
        }
        match (kind, &options[2..len]) {
            // RFC 9293 3.7.1; 0 says nothing.
            (2, [high, low]) => u.mss = Some(u16::from_be_bytes([*high, *low])).filter(|mss| *mss > 0),
            // RFC 7323 2.3: more than 14 is 14.
            (3, [scale]) => u.scale = Some((*scale).min(14)),
            (4, []) => u.sack = true,
            (8, [a, b, c, d, ..]) if len == 10 => u.timestamp = Some(u32::from_be_bytes([*a, *b, *c, *d])),
            _ => {}
        }
        options = &options[len..];
    }
}

/// The bytes are the options of a SYN to a listener; the first says how many words of them there are.
///
/// # Panics
/// When the stack understands something else than this module.
pub fn run(bytes: &[u8]) {
    let mut script = Script::new(bytes);
    let how = script.u8();
    let v6 = how & 1 != 0;
    let mut options = script.bytes(usize::from(how >> 1 & 15).min(10) * 4).to_vec();
    options.resize(options.len().next_multiple_of(4), 0);
    let mut node = Node::new(0, true);
    node.frames(NOW);
    let at = ListenAddress { address: None, port: 80, ipv4: true, ipv6: true };
    // Without room for half-open connections the options travel in a cookie.
    let cookie = how & 32 != 0;
    node.stack.tcp_listen(Token(0), at, 1, CAPACITY, TcpOptions::default(), false).expect("a free port");
    let give = |node: &mut Node, segment: Tcp| {
        let packet = segment.packet(addresses(1)[usize::from(v6)], addresses(0)[usize::from(v6)]);
        let kind = if v6 { wire::IPV6 } else { wire::IPV4 };
        node.stack.handle_frame(NOW, &wire::ethernet(mac(0), mac(1), kind, &packet), &mut node.world, Unknown::Answer);
        node.frames(NOW).iter().filter_map(|f| Tcp::read(f)).map(|(_, _, s)| s).collect::<Vec<_>>()
    };
    let mut syn = Tcp { source: 4999, destination: 80, seq: 1000, flags: SYN, window: 500, ..Tcp::default() };
    if cookie {
        give(&mut node, syn.clone());
    }
    (syn.source, syn.options) = (5000, options.clone());
    let answers = give(&mut node, syn);
    let [answer] = &answers[..] else { panic!("{} answers to a SYN", answers.len()) };
    assert!(answer.has(SYN | ACK) && answer.ack == 1001);
    let said = understand(&options);
    let offered = understand(&answer.options);
    assert_eq!(offered.mss, Some(if v6 { 1440 } else { 1460 }));
    // A cookie has room for the options only where there is a timestamp, and what isn't kept must not be offered.
    let kept = !cookie || said.timestamp.is_some();
    let wanted = (said.scale.is_some() && kept, said.sack && kept);
    assert_eq!((offered.scale.is_some(), offered.sack), wanted, "{options:?}");
    let echo = answer.timestamps();
    assert_eq!(echo.map(|(_, echo)| echo), said.timestamp, "{options:?}");

    let with_time = |value: u32| echo.map_or(Vec::new(), |(ours, _)| wire::timestamp_option(value, ours));
    let value = said.timestamp.unwrap_or(0);
    let ack = Tcp { seq: 1001, ack: answer.seq.wrapping_add(1), flags: ACK, window: 100, ..Tcp::default() };
    give(&mut node, Tcp { source: 5000, destination: 80, options: with_time(value), ..ack });
    let open = node.open();
    let [(token, id)] = open[..] else { panic!("not open after {options:?}") };
    let info = node.stack.tcp_info(id).expect("its own socket");
    assert_eq!(info.state, TcpState::Established);
    // And it has room for some segment sizes.
    assert_eq!(info.sack, said.sack && kept, "{options:?}");
    assert_eq!(info.timestamps, said.timestamp.is_some(), "{options:?}");
    let scale = if kept { said.scale.unwrap_or(0) } else { 0 };
    assert_eq!(info.send_scale, scale, "{options:?}");
    let least = if said.timestamp.is_some() { 88 - 12 } else { 88 };
    let most = if v6 { 1440 } else { 1460 } - if said.timestamp.is_some() { 12 } else { 0 };
    assert!((least..=most).contains(&info.send_mss), "{} after {options:?}", info.send_mss);
    if !cookie {
        let default = if v6 { 1220 } else { 536 };
        let mss = u32::from(said.mss.unwrap_or(default)).clamp(88, if v6 { 1440 } else { 1460 });
        assert_eq!(info.send_mss, mss - if said.timestamp.is_some() { 12 } else { 0 }, "{options:?}");
    }
    node.close(NOW, token, true);
    node.end(NOW);
}
