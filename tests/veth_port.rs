//! The ports on real devices: veth pairs and TAP devices in network namespaces, with the kernel at the other end.
#![allow(clippy::disallowed_methods, reason = "tests wait for real threads and programs")]

#[path = "common/netns.rs"]
mod netns;

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, ErrorKind};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use netns::{DEVICE, Lab, Link, Namespace, can_run};
use sidestep::port::af_packet::AfPacketPort;
use sidestep::port::tap::TapPort;
use sidestep::port::{FrameIo, PortCounters};
use sidestep::xdp::nic::Nic;
use sidestep::xdp::{AttachMode, Heartbeat, Steering, XdpOptions, XdpPort, ZeroCopy};
use smoltcp::wire::{EthernetFrame, EthernetProtocol, Ipv4Packet, Ipv6Packet, UdpPacket};

/// The address of the engine in own mode, beside the kernel's 10.99.0.1.
const OURS: &str = "10.99.0.7";
const OURS6: &str = "fd99::7";
const PORT: u16 = 7;

/// Long enough for any machine; nothing here waits for it to pass.
const PATIENCE: Duration = Duration::from_secs(20);

fn now_ns() -> u64 {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
}

/// Answers UDP datagrams to `PORT` with themselves, without any stack: swaps addresses and ports, which leaves
/// checksums right. Checks the checksum that came.
#[derive(Default)]
struct Reflector {
    queue: VecDeque<Vec<u8>>,
    reflected: usize,
    bad_checksums: usize,
}

impl Reflector {
    fn turn(&mut self, port: &mut impl FrameIo) {
        port.receive(64, |frame| {
            if let Some(right) = reflect(frame) {
                self.bad_checksums += usize::from(!right);
                self.queue.push_back(frame.to_vec());
            }
        });
        let queue = &mut self.queue;
        self.reflected += port.transmit(64, |buffer| {
            let frame = queue.pop_front()?;
            buffer[..frame.len()].copy_from_slice(&frame);
            Some(frame.len())
        });
        port.flush();
    }
}

/// Turns a frame round if it is UDP to `PORT`; Some(whether its checksum was right) then.
fn reflect(frame: &mut [u8]) -> Option<bool> {
    let mut ethernet = EthernetFrame::new_checked(&mut frame[..]).ok()?;
    let (source, destination) = (ethernet.src_addr(), ethernet.dst_addr());
    let turn = |bytes: &mut [u8], a: IpAddr, b: IpAddr| {
        let mut udp = UdpPacket::new_checked(bytes).ok()?;
        let (from, to) = (udp.src_port(), udp.dst_port());
        if to != PORT {
            return None;
        }
        let right = udp.checksum() != 0 && udp.verify_checksum(&a.into(), &b.into());
        udp.set_src_port(to);
        udp.set_dst_port(from);
        Some(right)
    };
    let right = match ethernet.ethertype() {
        EthernetProtocol::Ipv4 => {
            let mut ip = Ipv4Packet::new_checked(ethernet.payload_mut()).ok()?;
            let (a, b) = (ip.src_addr(), ip.dst_addr());
            let right = turn(ip.payload_mut(), a.into(), b.into())?;
            ip.set_src_addr(b);
            ip.set_dst_addr(a);
            right
        }
        EthernetProtocol::Ipv6 => {
            let mut ip = Ipv6Packet::new_checked(ethernet.payload_mut()).ok()?;
            let (a, b) = (ip.src_addr(), ip.dst_addr());
            let right = turn(ip.payload_mut(), a.into(), b.into())?;
            ip.set_src_addr(b);
            ip.set_dst_addr(a);
            right
        }
        _ => return None,
    };
    ethernet.set_src_addr(destination);
    ethernet.set_dst_addr(source);
    Some(right)
}

/// Runs the reflector on its own thread, sleeping as a shard would, while `run` runs; gives the port back.
fn reflecting<P: FrameIo + Send, T>(
    port: P,
    heartbeat: Option<&Heartbeat>,
    run: impl FnOnce() -> T,
) -> (P, Reflector, T) {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let (mut port, mut reflector) = (port, Reflector::default());
            while !stop.load(Ordering::Relaxed) {
                if let Some(heartbeat) = heartbeat {
                    heartbeat.beat(0, now_ns());
                }
                reflector.turn(&mut port);
                if !port.prepare_sleep() {
                    let fd = port.poll_fd().expect("all of these poll");
                    let wait = rustix::time::Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
                    let mut fds = [rustix::event::PollFd::new(&fd, rustix::event::PollFlags::IN)];
                    rustix::event::poll(&mut fds, Some(&wait)).unwrap();
                }
            }
            (port, reflector)
        });
        let out = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run));
        stop.store(true, Ordering::Relaxed);
        let (port, reflector) = thread.join().unwrap();
        (port, reflector, out.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}

/// Sends `count` datagrams of `length` bytes to `to`, a few at a time, and checks that each comes back.
fn ping(from: &Namespace, to: &str, count: usize, length: usize) {
    let to = SocketAddr::new(to.parse().unwrap(), PORT);
    from.enter(|| {
        let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(any).unwrap();
        socket.connect(to).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let message = |i: usize| -> Vec<u8> { (0..length).map(|j| (i + j) as u8).collect() };
        let mut buffer = vec![0; 70_000];
        for start in (0..count).step_by(8) {
            let end = count.min(start + 8);
            (start..end).for_each(|i| assert_eq!(socket.send(&message(i)).unwrap(), length));
            for i in start..end {
                let n = socket.recv(&mut buffer).unwrap_or_else(|e| panic!("datagram {i} of {count} to {to}: {e}"));
                assert!(buffer[..n] == message(i), "datagram {i} came back changed");
            }
        }
    });
}

/// Whether the kernel of `at` gets what `from` sends to `to`.
fn kernel_hears(at: &Namespace, from: &Namespace, to: &str, port: u16) -> bool {
    let address = SocketAddr::new(to.parse().unwrap(), port);
    let server = at.enter(|| UdpSocket::bind(address).unwrap());
    server.set_nonblocking(true).unwrap();
    from.enter(|| UdpSocket::bind("0.0.0.0:0").unwrap().send_to(b"hello", address).unwrap());
    for _ in 0..100 {
        match server.recv_from(&mut [0; 64]) {
            Ok(_) => return true,
            Err(e) if e.kind() == ErrorKind::WouldBlock => std::thread::sleep(Duration::from_millis(5)),
            Err(e) => panic!("{e}"),
        }
    }
    false
}

/// The far kernel knows the MAC of our addresses, since nothing here answers ARP.
fn introduce(lab: &Lab) {
    let mac = lab.near.enter(|| Nic::query(DEVICE).unwrap().mac);
    let mac = mac.map(|b| format!("{b:02x}")).join(":");
    for address in [OURS, OURS6] {
        lab.far.run(&format!("ip neigh replace {address} lladdr {mac} dev {DEVICE} nud permanent"));
    }
}

/// Port and program on the near device, attached, in own mode.
fn engine(lab: &Lab, options: &XdpOptions) -> (XdpPort, Steering, Heartbeat) {
    introduce(lab);
    lab.near.enter(|| {
        let nic = Nic::query(DEVICE).unwrap();
        let mut steering = Steering::load().unwrap();
        let port = XdpPort::open(DEVICE, 0, options).unwrap();
        steering.set_socket(0, port.fd()).unwrap();
        steering.set_own(&[OURS.parse().unwrap(), OURS6.parse().unwrap()]).unwrap();
        let heartbeat = steering.heartbeat().unwrap();
        heartbeat.beat(0, now_ns());
        assert_eq!(steering.attach(nic.ifindex, AttachMode::Auto).unwrap(), AttachMode::Native);
        (port, steering, heartbeat)
    })
}

/// After the loop has stopped and the kernel has let go of what was sent, every frame is accounted for.
fn books_balance(counters: PortCounters) {
    assert_eq!(counters.frames_accounted, counters.frames_total, "{counters:?}");
    assert_eq!((counters.rx_bad, counters.tx_errors), (0, 0), "{counters:?}");
}

#[test]
fn xdp_carries_frames_both_ways() {
    if !can_run("xdp_carries_frames_both_ways") {
        return;
    }
    let lab = Lab::new(Link::default());
    for busy_poll in [false, true] {
        let (port, mut steering, heartbeat) = engine(&lab, &XdpOptions { busy_poll, ..XdpOptions::small() });
        assert!(!port.zero_copy(), "veth can't");
        let (port, reflector, ()) = reflecting(port, Some(&heartbeat), || {
            ping(&lab.far, OURS, 3_000, 100);
            ping(&lab.far, OURS, 500, 1_472);
            ping(&lab.far, OURS6, 500, 1_452);
            assert!(kernel_hears(&lab.near, &lab.far, "10.99.0.1", 9), "the rest is the kernel's");
        });
        assert_eq!((reflector.reflected, reflector.bad_checksums), (4_000, 0));
        let counters = port.counters();
        books_balance(counters);
        assert_eq!((counters.rx_frames, counters.tx_frames), (4_000, 4_000), "{counters:?}");
        let steered = steering.counters();
        assert_eq!((steered.redirected, steered.pass_stale), (4_000, 0), "{steered:?}");
        steering.detach();
    }
}

#[test]
fn the_kernel_gets_everything_back() {
    if !can_run("the_kernel_gets_everything_back") {
        return;
    }
    let lab = Lab::new(Link::default());
    // Own by name only: the near kernel has it too, so that it can be seen to hear.
    lab.near.run(&format!("ip addr add {OURS}/24 dev {DEVICE}"));
    let (port, mut steering, heartbeat) = engine(&lab, &XdpOptions::small());
    let hears = || kernel_hears(&lab.near, &lab.far, OURS, PORT);
    assert!(!hears());
    // The engine hangs.
    heartbeat.beat(0, now_ns() - 2_000_000_000);
    assert!(hears());
    assert!(steering.counters().pass_stale > 0);
    heartbeat.beat(0, now_ns() + 3_600_000_000_000);
    assert!(!hears());
    // The socket closes: asynchronously, but within milliseconds.
    drop(port);
    assert!((0..50).any(|_| hears()));
    assert!(steering.counters().pass_no_socket > 0);
    // The same queue can be opened again at once, and serves again.
    let port = lab.near.enter(|| XdpPort::open(DEVICE, 0, &XdpOptions::small()).unwrap());
    steering.set_socket(0, port.fd()).unwrap();
    assert!(!hears());
    steering.detach();
    assert!(hears());
    // And attached again.
    lab.near.enter(|| steering.attach(Nic::query(DEVICE).unwrap().ifindex, AttachMode::Generic).unwrap());
    assert!(!hears());
    drop(steering);
    assert!(hears());
}

#[test]
fn a_killed_engine_leaves_nothing_behind() {
    if !can_run("a_killed_engine_leaves_nothing_behind") {
        return;
    }
    let lab = Lab::new(Link::default());
    lab.near.run(&format!("ip addr add {OURS}/24 dev {DEVICE}"));
    introduce(&lab);
    let program = std::env::current_exe().unwrap();
    let line = format!("{} --ignored --exact --nocapture engine_to_be_killed", program.display());
    let mut child = lab.near.command(&line).env(TO_BE_KILLED, "1").stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("attached")), "the engine is up");
    let shows_program = || lab.near.run(&format!("ip link show {DEVICE}")).contains("prog/xdp");
    assert!(shows_program() && !kernel_hears(&lab.near, &lab.far, OURS, PORT));
    // SIGKILL: no destructor runs.
    child.kill().unwrap();
    child.wait().unwrap();
    assert!((0..50).any(|_| kernel_hears(&lab.near, &lab.far, OURS, PORT)));
    assert!(!shows_program());
}

const TO_BE_KILLED: &str = "SIDESTEP_TEST_TO_BE_KILLED";

/// Not a test: the other process of the one above.
#[test]
#[ignore = "started by a_killed_engine_leaves_nothing_behind"]
fn engine_to_be_killed() {
    if std::env::var_os(TO_BE_KILLED).is_none() {
        return;
    }
    let mut steering = Steering::load().unwrap();
    let port = XdpPort::open(DEVICE, 0, &XdpOptions::small()).unwrap();
    steering.set_socket(0, port.fd()).unwrap();
    steering.set_own(&[OURS.parse().unwrap()]).unwrap();
    steering.set_heartbeat_timeout(Duration::ZERO).unwrap();
    steering.attach(Nic::query(DEVICE).unwrap().ifindex, AttachMode::Native).unwrap();
    println!("attached");
    std::thread::sleep(PATIENCE);
}

#[test]
fn queues_close_and_open_again_at_once() {
    if !can_run("queues_close_and_open_again_at_once") {
        return;
    }
    let lab = Lab::new(Link { queues: [2, 2], ..Link::default() });
    lab.near.enter(|| {
        for _ in 0..5 {
            let ports: Vec<_> = (0..2).map(|q| XdpPort::open(DEVICE, q, &XdpOptions::small()).unwrap()).collect();
            ports.iter().for_each(|p| books_balance(p.counters()));
        }
    });
}

#[test]
fn shared_mode_splits_one_address() {
    if !can_run("shared_mode_splits_one_address") {
        return;
    }
    let lab = Lab::new(Link::default());
    let (port, mut steering, heartbeat) = engine(&lab, &XdpOptions::small());
    steering.set_shared(&["10.99.0.1".parse().unwrap()]).unwrap();
    steering.set_port(false, PORT, true).unwrap();
    let (_, reflector, ()) = reflecting(port, Some(&heartbeat), || {
        ping(&lab.far, "10.99.0.1", 100, 50);
        assert!(kernel_hears(&lab.near, &lab.far, "10.99.0.1", 22), "ARP and the other ports are the kernel's");
    });
    assert_eq!(reflector.reflected, 100);
}

#[test]
fn large_frames_span_buffers() {
    if !can_run("large_frames_span_buffers") {
        return;
    }
    let lab = Lab::new(Link { mtu: 9_000, ..Link::default() });
    let (port, steering, heartbeat) = engine(&lab, &XdpOptions::small());
    assert!(port.frame_capacity() >= 9_014);
    let (port, reflector, ()) = reflecting(port, Some(&heartbeat), || {
        for length in [1, 1_700, 1_800, 3_600, 8_972] {
            ping(&lab.far, OURS, 64, length);
        }
    });
    assert_eq!((reflector.reflected, reflector.bad_checksums), (320, 0), "{:?}", steering.counters());
    books_balance(port.counters());
}

#[test]
fn errors_say_what_to_do() {
    if !can_run("errors_say_what_to_do") {
        return;
    }
    let lab = Lab::new(Link { queues: [1, 4], ..Link::default() });
    lab.near.enter(|| {
        let fails = |what: &str, result: Result<XdpPort, sidestep::port::PortError>, says: &[&str]| {
            let error = result.err().unwrap_or_else(|| panic!("{what} should fail")).to_string();
            says.iter().for_each(|s| assert!(error.contains(s), "{what}: {error}"));
        };
        let small = XdpOptions::small();
        fails("no device", XdpPort::open("nope0", 0, &small), &["nope0", "ip link"]);
        fails("no such queue", XdpPort::open(DEVICE, 1, &small), &["queue 1", "1 receive queue"]);
        let odd = XdpOptions { rx: 1_000, ..small };
        fails("odd ring", XdpPort::open(DEVICE, 0, &odd), &["rx = 1000", "power of two"]);
        let few = XdpOptions { frames: 1_024, ..small };
        fails("few frames", XdpPort::open(DEVICE, 0, &few), &["frames = 1024", "fill = 1024"]);
        let require = XdpOptions { zero_copy: ZeroCopy::Require, ..small };
        fails("zero-copy", XdpPort::open(DEVICE, 0, &require), &["without a copy", "veth"]);
        let held = XdpPort::open(DEVICE, 0, &small).unwrap();
        fails("queue in use", XdpPort::open(DEVICE, 0, &small), &["bound to queue 0"]);
        drop(held);

        let ifindex = Nic::query(DEVICE).unwrap().ifindex;
        let mut first = Steering::load().unwrap();
        let error = first.attach(ifindex, AttachMode::Auto).unwrap_err().to_string();
        assert!(error.contains("numrxqueues") && error.contains("transmit queues"), "{error}");
        first.attach(ifindex, AttachMode::Generic).unwrap();
        let mut second = Steering::load().unwrap();
        let error = second.attach(ifindex, AttachMode::Generic).unwrap_err().to_string();
        assert!(error.contains("has an XDP program already (id ") && error.contains("ip link show ss0"), "{error}");
        assert!(first.attach(999_999, AttachMode::Auto).is_err());
        // What was attached is not lost by a failed try to attach elsewhere.
        assert!(first.is_attached());
        assert_eq!(first.attach(ifindex, AttachMode::Generic).unwrap(), AttachMode::Generic, "own link is replaced");
    });
}

#[test]
fn a_device_that_goes_down_and_up_loses_nothing_for_good() {
    if !can_run("a_device_that_goes_down_and_up_loses_nothing_for_good") {
        return;
    }
    let lab = Lab::new(Link::default());
    let (mut port, _steering, heartbeat) = engine(&lab, &XdpOptions::small());
    lab.near.run(&format!("ip link set {DEVICE} down"));
    // More than the ring holds: the rest is refused, not lost.
    assert_eq!(port.transmit(1_000, |_| Some(60)), 512);
    port.flush();
    assert!(!port.can_transmit() && !port.prepare_sleep(), "the loop may sleep while the device is down");
    let counters = port.counters();
    assert!(counters.tx_errors > 0 && counters.frames_accounted == counters.frames_total, "{counters:?}");
    lab.near.run(&format!("ip link set {DEVICE} up"));
    introduce(&lab);
    let (port, reflector, ()) = reflecting(port, Some(&heartbeat), || ping(&lab.far, OURS, 100, 100));
    assert_eq!(reflector.reflected, 100);
    let counters = port.counters();
    assert!(counters.frames_accounted == counters.frames_total && counters.tx_frames == 612, "{counters:?}");
}

#[test]
fn nic_facts_of_a_veth() {
    if !can_run("nic_facts_of_a_veth") {
        return;
    }
    let lab = Lab::new(Link { queues: [3, 2], mtu: 1_400, ..Link::default() });
    let nic = lab.near.enter(|| Nic::query(DEVICE).unwrap());
    let shown = lab.near.run(&format!("cat /sys/class/net/{DEVICE}/address"));
    assert_eq!(nic.mac.map(|b| format!("{b:02x}")).join(":"), shown.trim());
    assert_eq!((nic.mtu, nic.driver.as_str(), &nic.rss), (1_400, "veth", &None));
    assert_eq!((nic.rx_queues, nic.tx_queues), (3, 3));
    for address in ["10.99.0.1", "fd99::1"] {
        assert!(nic.addresses.contains(&address.parse().unwrap()), "{:?}", nic.addresses);
    }
}

#[test]
fn packet_socket_finishes_checksums() {
    if !can_run("packet_socket_finishes_checksums") {
        return;
    }
    // As veth is by default: the far kernel leaves checksums to hardware that isn't there.
    let lab = Lab::new(Link { far_offloads: true, ..Link::default() });
    introduce(&lab);
    let port = lab.near.enter(|| AfPacketPort::open(DEVICE, None).unwrap());
    let (port, reflector, ()) = reflecting(port, None, || {
        ping(&lab.far, OURS, 1_000, 100);
        ping(&lab.far, OURS6, 100, 1_452);
    });
    assert_eq!((reflector.reflected, reflector.bad_checksums), (1_100, 0));
    // Outgoing frames do not come back.
    let counters = port.counters();
    assert!((1_100..1_200).contains(&counters.rx_frames) && counters.tx_frames == 1_100, "{counters:?}");
    assert_eq!((counters.rx_bad, counters.rx_ring_full, counters.tx_errors), (0, 0, 0));
}

#[test]
fn packet_sockets_share_flows() {
    if !can_run("packet_sockets_share_flows") {
        return;
    }
    let lab = Lab::new(Link::default());
    introduce(&lab);
    let open = || lab.near.enter(|| AfPacketPort::open(DEVICE, Some(7)).unwrap());
    let (mut a, mut b) = (open(), open());
    let to = SocketAddr::new(OURS.parse().unwrap(), PORT);
    lab.far.enter(|| {
        (0..64).for_each(|_| assert_eq!(UdpSocket::bind("0.0.0.0:0").unwrap().send_to(b"x", to).unwrap(), 1))
    });
    let (mut at_a, mut at_b) = (0, 0);
    for _ in 0..400 {
        a.receive(64, |f| at_a += usize::from(reflect(f).is_some()));
        b.receive(64, |f| at_b += usize::from(reflect(f).is_some()));
        if at_a + at_b == 64 {
            break;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(at_a + at_b == 64 && at_a > 0 && at_b > 0, "each flow once, on one of both: {at_a} + {at_b}");
}

#[test]
fn packet_socket_puts_vlan_tags_back() {
    if !can_run("packet_socket_puts_vlan_tags_back") {
        return;
    }
    let lab = Lab::new(Link::default());
    let mut port = lab.near.enter(|| AfPacketPort::open(DEVICE, None).unwrap());
    let mut far = lab.far.enter(|| AfPacketPort::open(DEVICE, None).unwrap());
    let tagged = [&[2, 0, 0, 0, 0, 7, 2, 0, 0, 0, 0, 9, 0x81, 0, 0, 5, 8, 0][..], &[0; 46]].concat();
    far.transmit(1, |buffer| {
        buffer[..tagged.len()].copy_from_slice(&tagged);
        Some(tagged.len())
    });
    far.flush();
    let mut found = false;
    for _ in 0..400 {
        port.receive(64, |f| found |= f == tagged);
        if found {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("no tagged frame came");
}

#[test]
fn tap_joins_the_kernel() {
    if !can_run("tap_joins_the_kernel") {
        return;
    }
    if !std::path::Path::new("/dev/net/tun").exists() {
        use std::io::Write;
        let _ = writeln!(std::io::stderr(), "SKIPPED: tap_joins_the_kernel: there is no /dev/net/tun");
        return;
    }
    let space = Namespace::new("tap");
    for queues in [1, 2] {
        let mut ports: Vec<_> =
            space.enter(|| (0..queues).map(|_| TapPort::open("tap-ss", queues > 1).unwrap()).collect());
        assert_eq!(ports[0].name(), "tap-ss");
        space.run("ip addr add 10.97.0.1/24 dev tap-ss");
        space.run("ip link set tap-ss up");
        space.run("ip neigh replace 10.97.0.7 lladdr 02:00:00:00:00:07 dev tap-ss nud permanent");
        if queues > 1 {
            // Flows choose a queue; all come here when the other one closes.
            ports.pop();
        }
        let (port, reflector, ()) = reflecting(ports.pop().unwrap(), None, || ping(&space, "10.97.0.7", 500, 300));
        assert_eq!((reflector.reflected, reflector.bad_checksums), (500, 0));
        assert_eq!(port.counters().tx_errors, 0);
    }
    let error = space.enter(|| TapPort::open("a-name-that-is-too-long", false)).err().unwrap().to_string();
    assert!(error.contains("15 characters"), "{error}");
}

/// Not a check but a measurement: `cargo test --release --test veth_port -- --ignored --nocapture round_trip`.
#[test]
#[ignore = "a measurement, for a quiet machine"]
fn round_trip_time_between_two_ports() {
    if !can_run("round_trip_time_between_two_ports") {
        return;
    }
    const ROUNDS: usize = 100_000;
    for busy_poll in [false, true] {
        let lab = Lab::new(Link::default());
        let (near, _near_steering, heartbeat) = engine(&lab, &XdpOptions { busy_poll, ..XdpOptions::small() });
        let (mut far, _far_steering) = lab.far.enter(|| {
            let nic = Nic::query(DEVICE).unwrap();
            let mut steering = Steering::load().unwrap();
            steering.set_heartbeat_timeout(Duration::ZERO).unwrap();
            let port = XdpPort::open(DEVICE, 0, &XdpOptions { busy_poll, ..XdpOptions::small() }).unwrap();
            steering.set_socket(0, port.fd().as_fd()).unwrap();
            steering.set_own(&["10.99.0.200".parse().unwrap()]).unwrap();
            steering.attach(nic.ifindex, AttachMode::Native).unwrap();
            (port, steering)
        });
        let [near_mac, far_mac] = [&lab.near, &lab.far].map(|n| n.enter(|| Nic::query(DEVICE).unwrap().mac));
        let frame = datagram(near_mac, far_mac);
        let stop = AtomicBool::new(false);
        let mut times = Vec::with_capacity(ROUNDS);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (mut port, mut reflector) = (near, Reflector::default());
                while !stop.load(Ordering::Relaxed) {
                    heartbeat.beat(0, now_ns());
                    reflector.turn(&mut port);
                }
            });
            for _ in 0..ROUNDS {
                let sent = now_ns();
                far.transmit(1, |buffer| {
                    buffer[..frame.len()].copy_from_slice(&frame);
                    Some(frame.len())
                });
                far.flush();
                while far.receive(1, |_| {}) == 0 {}
                times.push(now_ns() - sent);
            }
            stop.store(true, Ordering::Relaxed);
        });
        times.sort_unstable();
        let at = |q: f64| times[(ROUNDS as f64 * q) as usize] as f64 / 1_000.0;
        println!(
            "veth round trip, {} bytes, busy_poll {busy_poll}: p50 {:.2} us, p99 {:.2} us, p99.9 {:.2} us",
            frame.len(),
            at(0.5),
            at(0.99),
            at(0.999)
        );
    }
}

/// A UDP datagram of 64 bytes on the wire from 10.99.0.200 to the engine.
fn datagram(to: [u8; 6], from: [u8; 6]) -> Vec<u8> {
    let mut frame = [&to[..], &from, &[8, 0, 0x45, 0, 0, 46, 0, 0, 0x40, 0, 64, 17, 0, 0]].concat();
    frame.extend([10, 99, 0, 200, 10, 99, 0, 7]);
    frame.extend([0, 9, 0, PORT as u8, 0, 26, 0, 0]);
    frame.extend([0; 18]);
    let mut ip = Ipv4Packet::new_unchecked(&mut frame[14..]);
    ip.fill_checksum();
    frame
}
