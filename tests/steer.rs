//! The XDP program on crafted frames, without a device (BPF_PROG_TEST_RUN): what goes to the engine, what to the
//! kernel.

#[path = "common/netns.rs"]
mod netns;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use sidestep::clock::{Clock, MonotonicClock};
use sidestep::xdp::{SteerCounters, Steering};

const PASS: u32 = 2;

const OURS4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const PEER4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 9);
const OURS6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
const PEER6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 9);

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;

/// The program never has a socket here, so what it would redirect ends as "no socket": ours. The counters tell.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
enum Goes {
    Ours,
    NotOurs,
    OtherPort,
    Fragment,
    Malformed,
    Stale,
}
use Goes::*;

struct Tester {
    steering: Steering,
}

impl Tester {
    fn own() -> Self {
        let mut steering = Steering::load().unwrap();
        steering.set_heartbeat_timeout(Duration::ZERO).unwrap();
        steering.set_own(&[OURS4.into(), OURS6.into()]).unwrap();
        Self { steering }
    }

    /// TCP port 80 and UDP port 53 are ours.
    fn shared() -> Self {
        let mut tester = Self::own();
        tester.steering.set_shared(&[IpAddr::from(OURS4), OURS6.into()]).unwrap();
        tester.steering.set_port(true, 80, true).unwrap();
        tester.steering.set_port(false, 53, true).unwrap();
        tester
    }

    fn goes(&self, frame: &[u8]) -> Goes {
        let before = self.steering.counters();
        // BPF_PROG_TEST_RUN wants at least an Ethernet header.
        assert_eq!(self.steering.test(frame).unwrap(), PASS, "no socket, no redirect");
        let after = self.steering.counters();
        let grown = |of: fn(&SteerCounters) -> u64| of(&after) - of(&before);
        let grown = [
            (grown(|c| c.pass_no_socket), Ours),
            (grown(|c| c.pass_not_ours), NotOurs),
            (grown(|c| c.pass_other_port), OtherPort),
            (grown(|c| c.pass_fragment), Fragment),
            (grown(|c| c.pass_malformed), Malformed),
            (grown(|c| c.pass_stale), Stale),
        ];
        let counted: Vec<_> = grown.iter().filter(|(n, _)| *n > 0).collect();
        assert!(counted.len() == 1 && counted[0].0 == 1, "one verdict for one frame: {grown:?}");
        counted[0].1
    }
}

fn eth(ethertype: u16, payload: &[u8]) -> Vec<u8> {
    [&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 9], &ethertype.to_be_bytes()[..], payload].concat()
}

/// `fragment` is the field with flags and offset, `options` a multiple of 4 bytes.
fn v4_with(
    source: Ipv4Addr,
    destination: Ipv4Addr,
    protocol: u8,
    fragment: u16,
    options: &[u8],
    data: &[u8],
) -> Vec<u8> {
    let header = 20 + options.len();
    let mut packet = vec![0x40 | (header / 4) as u8, 0];
    packet.extend(((header + data.len()) as u16).to_be_bytes());
    packet.extend([0, 1]);
    packet.extend(fragment.to_be_bytes());
    packet.extend([64, protocol, 0, 0]);
    packet.extend(source.octets());
    packet.extend(destination.octets());
    packet.extend(options);
    packet.extend(data);
    packet
}

fn v4(source: Ipv4Addr, destination: Ipv4Addr, protocol: u8, data: &[u8]) -> Vec<u8> {
    v4_with(source, destination, protocol, 0, &[], data)
}

fn v6(source: Ipv6Addr, destination: Ipv6Addr, next: u8, data: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend((data.len() as u16).to_be_bytes());
    packet.extend([next, 64]);
    packet.extend(source.octets());
    packet.extend(destination.octets());
    packet.extend(data);
    packet
}

/// The first bytes of TCP or UDP; the program looks at nothing else.
fn ports(source: u16, destination: u16) -> Vec<u8> {
    [&source.to_be_bytes()[..], &destination.to_be_bytes(), &[0; 16]].concat()
}

fn icmp(kind: u8, rest: &[u8]) -> Vec<u8> {
    [&[kind, 0, 0, 0, 0, 0, 0, 0], rest].concat()
}

fn arp(op: u16, sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let mut packet = vec![0, 1, 8, 0, 6, 4];
    packet.extend(op.to_be_bytes());
    packet.extend([2, 0, 0, 0, 0, 9]);
    packet.extend(sender.octets());
    packet.extend([0; 6]);
    packet.extend(target.octets());
    packet
}

fn ip4(packet: &[u8]) -> Vec<u8> {
    eth(0x0800, packet)
}

fn ip6(packet: &[u8]) -> Vec<u8> {
    eth(0x86dd, packet)
}

fn solicited_node(of: Ipv6Addr) -> Ipv6Addr {
    let o = of.segments();
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | o[6] & 0xff, o[7])
}

/// A hop-by-hop or destination options header of 8 bytes.
fn options(next: u8) -> Vec<u8> {
    vec![next, 0, 1, 4, 0, 0, 0, 0]
}

fn fragment_header(next: u8, offset: u16, more: bool) -> Vec<u8> {
    let field = offset << 3 | u16::from(more);
    [&[next, 0][..], &field.to_be_bytes(), &[0, 0, 0, 1]].concat()
}

#[test]
fn own_mode_takes_all_that_is_sent_to_us() {
    if !netns::can_run("own_mode_takes_all_that_is_sent_to_us") {
        return;
    }
    let t = Tester::own();
    for protocol in [ICMP, TCP, UDP, 2, 47, 132] {
        assert_eq!(t.goes(&ip4(&v4(PEER4, OURS4, protocol, &ports(1, 2)))), Ours, "protocol {protocol}");
        assert_eq!(t.goes(&ip4(&v4(PEER4, PEER4, protocol, &ports(1, 2)))), NotOurs);
        assert_eq!(t.goes(&ip4(&v4(OURS4, PEER4, protocol, &ports(1, 2)))), NotOurs, "from us is not to us");
        assert_eq!(t.goes(&ip6(&v6(PEER6, OURS6, protocol, &ports(1, 2)))), Ours);
        assert_eq!(t.goes(&ip6(&v6(PEER6, PEER6, protocol, &ports(1, 2)))), NotOurs);
    }
    // Fragments, first and later.
    for fragment in [0x2000, 0x2010, 0x0010] {
        assert_eq!(t.goes(&ip4(&v4_with(PEER4, OURS4, UDP, fragment, &[], &[0; 40]))), Ours);
    }
    assert_eq!(t.goes(&ip6(&v6(PEER6, OURS6, 44, &[fragment_header(UDP, 7, false), vec![0; 8]].concat()))), Ours);
    assert_eq!(t.goes(&ip4(&v4(PEER4, Ipv4Addr::BROADCAST, UDP, &ports(67, 68)))), NotOurs);
    assert_eq!(t.goes(&eth(0x88cc, &[0; 46])), NotOurs, "LLDP");
}

#[test]
fn own_mode_takes_arp_and_neighbor_discovery_about_us() {
    if !netns::can_run("own_mode_takes_arp_and_neighbor_discovery_about_us") {
        return;
    }
    let t = Tester::own();
    assert_eq!(t.goes(&eth(0x0806, &arp(1, PEER4, OURS4))), Ours);
    assert_eq!(t.goes(&eth(0x0806, &arp(2, PEER4, OURS4))), Ours);
    assert_eq!(t.goes(&eth(0x0806, &arp(1, PEER4, PEER4))), NotOurs);
    assert_eq!(t.goes(&eth(0x0806, &arp(1, OURS4, PEER4))), NotOurs);
    assert_eq!(t.goes(&eth(0x0806, &arp(1, PEER4, OURS4)[..20])), Malformed);

    let solicit = |target: Ipv6Addr| icmp(135, &target.octets());
    assert_eq!(t.goes(&ip6(&v6(PEER6, solicited_node(OURS6), ICMPV6, &solicit(OURS6)))), Ours);
    assert_eq!(t.goes(&ip6(&v6(PEER6, OURS6, ICMPV6, &solicit(OURS6)))), Ours);
    // The same solicited-node group, another address.
    let other: Ipv6Addr = "2001:db8:1::1".parse().unwrap();
    assert_eq!(t.goes(&ip6(&v6(PEER6, solicited_node(OURS6), ICMPV6, &solicit(other)))), NotOurs);
    let hop_by_hop = [options(ICMPV6), solicit(OURS6)].concat();
    assert_eq!(t.goes(&ip6(&v6(PEER6, solicited_node(OURS6), 0, &hop_by_hop))), Ours);
    // An advertisement to us, and one to all.
    let advertise = icmp(136, &PEER6.octets());
    assert_eq!(t.goes(&ip6(&v6(PEER6, OURS6, ICMPV6, &advertise))), Ours);
    assert_eq!(t.goes(&ip6(&v6(PEER6, "ff02::1".parse().unwrap(), ICMPV6, &advertise))), NotOurs);
    assert_eq!(t.goes(&ip6(&v6(PEER6, "ff02::1".parse().unwrap(), ICMPV6, &icmp(134, &[0; 8])))), NotOurs);
    assert_eq!(t.goes(&ip6(&v6(PEER6, solicited_node(OURS6), ICMPV6, &solicit(OURS6)[..20]))), Malformed);
}

#[test]
fn vlan_tags_are_looked_through() {
    if !netns::can_run("vlan_tags_are_looked_through") {
        return;
    }
    let mut t = Tester::own();
    let packet = v4(PEER4, OURS4, TCP, &ports(1, 2));
    let one = [&[0, 5, 8, 0][..], &packet].concat();
    let two = [&[0, 5, 0x81, 0][..], &one].concat();
    let three = [&[0, 5, 0x81, 0][..], &two].concat();
    assert_eq!(t.goes(&eth(0x8100, &one)), Ours);
    assert_eq!(t.goes(&eth(0x88a8, &two)), Ours);
    assert_eq!(t.goes(&eth(0x88a8, &three)), NotOurs, "a third tag is nobody's");
    assert_eq!(t.goes(&eth(0x8100, &[0, 5])), Malformed);
    t.steering.set_tagged(false).unwrap();
    assert_eq!(t.goes(&eth(0x8100, &one)), NotOurs);
    assert_eq!(t.goes(&ip4(&packet)), Ours);
}

#[test]
fn shared_mode_takes_marked_ports_only() {
    if !netns::can_run("shared_mode_takes_marked_ports_only") {
        return;
    }
    let t = Tester::shared();
    let both = |protocol, source, destination| {
        let data = ports(source, destination);
        let four = t.goes(&ip4(&v4(PEER4, OURS4, protocol, &data)));
        let with_options = v4_with(PEER4, OURS4, protocol, 0, &[1; 8], &data);
        assert_eq!(t.goes(&ip4(&with_options)), four, "IPv4 options");
        assert_eq!(t.goes(&ip6(&v6(PEER6, OURS6, protocol, &data))), four, "IPv6");
        let extended = [options(60), options(43), options(protocol), data].concat();
        assert_eq!(t.goes(&ip6(&v6(PEER6, OURS6, 0, &extended))), four, "IPv6 with extension headers");
        four
    };
    assert_eq!(both(TCP, 40_000, 80), Ours);
    assert_eq!(both(UDP, 40_000, 53), Ours);
    assert_eq!(both(TCP, 80, 22), OtherPort, "SSH stays with the kernel");
    assert_eq!(both(TCP, 40_000, 53), OtherPort, "TCP and UDP are marked apart");
    assert_eq!(both(UDP, 40_000, 80), OtherPort);
    assert_eq!(t.goes(&ip4(&v4(PEER4, PEER4, TCP, &ports(1, 80)))), NotOurs);
    // And back to the kernel.
    t.steering.set_port(true, 80, false).unwrap();
    assert_eq!(both(TCP, 40_000, 80), OtherPort);
    t.steering.set_port(true, 65_535, true).unwrap();
    assert_eq!(both(TCP, 1, 65_535), Ours);
    assert_eq!(both(UDP, 1, 65_535), OtherPort);
    assert_eq!(both(UDP, 1, 0), OtherPort);
}

#[test]
fn shared_mode_leaves_the_kernel_what_is_the_kernels() {
    if !netns::can_run("shared_mode_leaves_the_kernel_what_is_the_kernels") {
        return;
    }
    let t = Tester::shared();
    assert_eq!(t.goes(&eth(0x0806, &arp(1, PEER4, OURS4))), NotOurs);
    assert_eq!(t.goes(&ip6(&v6(PEER6, solicited_node(OURS6), ICMPV6, &icmp(135, &OURS6.octets())))), NotOurs);
    assert_eq!(t.goes(&ip6(&v6(PEER6, OURS6, ICMPV6, &icmp(135, &OURS6.octets())))), OtherPort);
    assert_eq!(t.goes(&ip4(&v4(PEER4, OURS4, ICMP, &icmp(8, &[0; 8])))), OtherPort);
    assert_eq!(t.goes(&ip6(&v6(PEER6, OURS6, ICMPV6, &icmp(128, &[0; 8])))), OtherPort);
    assert_eq!(t.goes(&ip4(&v4(PEER4, OURS4, 47, &[0; 20]))), OtherPort);
    // Later fragments have no ports; the first one has, and goes where they say.
    assert_eq!(t.goes(&ip4(&v4_with(PEER4, OURS4, TCP, 0x0001, &[], &ports(1, 80)))), Fragment);
    assert_eq!(t.goes(&ip4(&v4_with(PEER4, OURS4, TCP, 0x2000, &[], &ports(1, 80)))), Ours);
    let later = [fragment_header(TCP, 9, true), ports(1, 80)].concat();
    assert_eq!(t.goes(&ip6(&v6(PEER6, OURS6, 44, &later))), Fragment);
    let first = [fragment_header(TCP, 0, true), ports(1, 80)].concat();
    assert_eq!(t.goes(&ip6(&v6(PEER6, OURS6, 44, &first))), Ours);
}

#[test]
fn shared_mode_takes_icmp_errors_about_our_packets() {
    if !netns::can_run("shared_mode_takes_icmp_errors_about_our_packets") {
        return;
    }
    let t = Tester::shared();
    let router: Ipv4Addr = "198.51.100.1".parse().unwrap();
    let ours = v4(OURS4, PEER4, TCP, &ports(80, 40_000)[..8]);
    for kind in [3, 11, 12] {
        assert_eq!(t.goes(&ip4(&v4(router, OURS4, ICMP, &icmp(kind, &ours)))), Ours);
    }
    for kind in [0, 4, 5, 8, 13] {
        assert_eq!(t.goes(&ip4(&v4(router, OURS4, ICMP, &icmp(kind, &ours)))), OtherPort);
    }
    let quoting = |packet: &[u8]| t.goes(&ip4(&v4(router, OURS4, ICMP, &icmp(3, packet))));
    assert_eq!(quoting(&v4(OURS4, PEER4, TCP, &ports(22, 80)[..8])), OtherPort, "the kernel's connection");
    assert_eq!(quoting(&v4(PEER4, OURS4, TCP, &ports(80, 80)[..8])), OtherPort, "not from our address");
    assert_eq!(quoting(&v4(OURS4, PEER4, UDP, &ports(53, 9)[..8])), Ours);
    assert_eq!(quoting(&v4(OURS4, PEER4, 47, &ports(80, 9)[..8])), OtherPort);
    assert_eq!(quoting(&v4_with(OURS4, PEER4, TCP, 0, &[1; 12], &ports(80, 9)[..8])), Ours);
    assert_eq!(quoting(&v4_with(OURS4, PEER4, TCP, 0x0003, &[], &ports(80, 9)[..8])), Fragment);

    let router: Ipv6Addr = "2001:db8:f::1".parse().unwrap();
    let ours = v6(OURS6, PEER6, TCP, &ports(80, 40_000));
    for kind in 1..=4 {
        assert_eq!(t.goes(&ip6(&v6(router, OURS6, ICMPV6, &icmp(kind, &ours)))), Ours);
    }
    assert_eq!(t.goes(&ip6(&v6(router, OURS6, ICMPV6, &icmp(5, &ours)))), OtherPort);
    let quoting = |packet: &[u8]| t.goes(&ip6(&v6(router, OURS6, ICMPV6, &icmp(1, packet))));
    assert_eq!(quoting(&v6(OURS6, PEER6, UDP, &ports(80, 9))), OtherPort);
    assert_eq!(quoting(&v6(OURS6, PEER6, 60, &[options(UDP), ports(53, 9)].concat())), Ours);
}

#[test]
fn what_is_cut_short_goes_to_the_kernel() {
    if !netns::can_run("what_is_cut_short_goes_to_the_kernel") {
        return;
    }
    let t = Tester::shared();
    let quoted4 = icmp(3, &v4(OURS4, PEER4, TCP, &ports(80, 1)[..4]));
    let quoted6 = icmp(1, &v6(OURS6, PEER6, 60, &[options(TCP), ports(80, 1)[..4].to_vec()].concat()));
    let whole = [
        (ip4(&v4(PEER4, OURS4, TCP, &ports(1, 80)[..4])), Ours),
        (ip4(&v4_with(PEER4, OURS4, UDP, 0, &[1; 40], &ports(1, 53)[..4])), Ours),
        (ip4(&v4(PEER4, OURS4, ICMP, &quoted4)), Ours),
        (ip6(&v6(PEER6, OURS6, 0, &[options(TCP), ports(1, 80)[..4].to_vec()].concat())), Ours),
        (ip6(&v6(PEER6, OURS6, ICMPV6, &quoted6)), Ours),
    ];
    for (frame, goes) in &whole {
        assert_eq!(t.goes(frame), *goes);
        // Every shorter one is malformed, and the kernel's: the verifier sees to it that nothing is read beyond.
        for length in 14..frame.len() {
            assert_eq!(t.goes(&frame[..length]), Malformed, "{length} of {}", frame.len());
        }
    }
    let mut tiny_header = ip4(&v4(PEER4, OURS4, TCP, &ports(1, 80)));
    tiny_header[14] = 0x44;
    assert_eq!(t.goes(&tiny_header), Malformed);
    // A chain of extension headers without end.
    let chain: Vec<u8> = (0..12).flat_map(|_| options(60)).collect();
    assert_eq!(t.goes(&ip6(&v6(PEER6, OURS6, 60, &chain))), Malformed);
}

#[test]
fn a_silent_engine_loses_its_traffic_to_the_kernel() {
    if !netns::can_run("a_silent_engine_loses_its_traffic_to_the_kernel") {
        return;
    }
    let mut t = Tester::own();
    let frame = ip4(&v4(PEER4, OURS4, TCP, &ports(1, 2)));
    let now = || {
        let t = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
    };
    t.steering.set_heartbeat_timeout(Duration::from_secs(20)).unwrap();
    let heartbeat = t.steering.heartbeat().unwrap();
    assert_eq!(t.goes(&frame), Stale, "never beat");
    heartbeat.beat(1, now());
    assert_eq!(t.goes(&frame), Stale, "another queue's");
    heartbeat.clone().beat(0, now());
    assert_eq!(t.goes(&frame), Ours);
    heartbeat.beat(0, now() + 1_000_000_000);
    assert_eq!(t.goes(&frame), Ours, "after the program read the clock");
    heartbeat.beat(0, now() - 21_000_000_000);
    assert_eq!(t.goes(&frame), Stale);
    heartbeat.beat(64, now());
}

#[test]
fn addresses_can_be_replaced() {
    if !netns::can_run("addresses_can_be_replaced") {
        return;
    }
    let mut t = Tester::own();
    let [a, b] = [OURS4, PEER4].map(|to| ip4(&v4(PEER4, to, TCP, &ports(1, 2))));
    assert_eq!((t.goes(&a), t.goes(&b)), (Ours, NotOurs));
    t.steering.set_own(&[PEER4.into()]).unwrap();
    assert_eq!((t.goes(&a), t.goes(&b)), (NotOurs, Ours));
    t.steering.set_own(&[]).unwrap();
    assert_eq!((t.goes(&a), t.goes(&b)), (NotOurs, NotOurs));
    let many: Vec<IpAddr> = (0..1_025u32).map(|i| IpAddr::V4(i.into())).collect();
    assert!(t.steering.set_own(&many).unwrap_err().to_string().contains("1024"));
    t.steering.set_own(&many[..1_024]).unwrap();
}

/// A SYN of that client; with `flags` something else.
fn segment(client: u32, flags: u8) -> [Vec<u8>; 2] {
    let mut tcp = ports(1024 + (client >> 24) as u16, 80);
    tcp[13] = flags;
    let [_, a, b, c] = client.to_be_bytes();
    let v6_client = Ipv6Addr::from_bits(PEER6.to_bits() & !0xff_ffff | u128::from(client & 0xff_ffff));
    [ip4(&v4(Ipv4Addr::new(11, a, b, c), OURS4, TCP, &tcp)), ip6(&v6(v6_client, OURS6, TCP, &tcp))]
}

#[test]
fn a_flood_of_syns_is_dropped_but_for_those_that_come_again() {
    const DROP: u32 = 1;
    const SYN: u8 = 2;
    const ACK: u8 = 16;
    if !netns::can_run("a_flood_of_syns_is_dropped_but_for_those_that_come_again") {
        return;
    }
    let t = Tester::own();
    // Queue 0 is what a test run says.
    let heartbeat = t.steering.heartbeat().unwrap();
    for client in 0..2_000 {
        assert_eq!(t.steering.test(&segment(client, SYN)[0]).unwrap(), PASS, "no flood");
    }
    for family in 0..2 {
        // However slow this machine is, at some time SYNs come faster than the allowance grows.
        let refused = (0..1_000_000).find(|client| {
            heartbeat.flooded(0, MonotonicClock.now().as_nanos());
            t.steering.test(&segment(*client, SYN)[family]).unwrap() == DROP
        });
        let client = refused.expect("a flood");
        for flags in [ACK, SYN | ACK, 4, 1 | ACK] {
            assert_eq!(t.steering.test(&segment(client, flags)[family]).unwrap(), PASS, "flags {flags:#x}");
        }
        assert_eq!(t.steering.test(&segment(client, SYN)[family]).unwrap(), PASS, "the second try");
        assert_eq!(t.steering.test(&ip4(&v4(PEER4, OURS4, UDP, &ports(1, 2)))).unwrap(), PASS);
    }
    assert_eq!(t.steering.counters().syn_refused, 2);
}
