use std::path::Path;
use std::time::Duration;

use super::*;

const SMALL: &str = "[[interface]]\nname = \"eth1\"\naddresses = [\"10.0.0.2/24\"]\n";

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(text, "f.toml")
}

/// The message for a file that consists of the small one and `more` lines of its interface.
fn complaint(more: &str) -> String {
    parse(&format!("{SMALL}{more}\n")).unwrap_err().to_string()
}

#[test]
fn the_smallest_file_has_every_default() {
    let c = parse(SMALL).unwrap();
    let i = &c.interfaces[0];
    assert_eq!((i.backend, i.sharing, i.poll), (Backend::AfXdp, Sharing::Own, Poll::Adaptive));
    assert_eq!((i.queues.as_slice(), i.cores.len(), i.ephemeral_ports), (&[0][..], 0, (49152, 65535)));
    assert_eq!((i.spin, c.programs.spin), (Duration::from_micros(50), Duration::from_micros(50)));
    assert_eq!((c.programs.sockets, c.programs.connections), (16_384, 16_384));
    assert_eq!((c.programs.rx_buffer, c.programs.tx_buffer), (131_072, 131_072));
    assert_eq!(c.engine.heartbeat_timeout, Duration::from_secs(1));
    assert_eq!((c.engine.control, c.tcp.stack), (None, TcpConfig::default()));
}

#[test]
fn every_key_arrives() {
    let c = parse(
        r#"
        [engine]
        control = "@lab"
        seed = 7
        heartbeat_timeout = "2s"
        [[interface]]
        name = "eth1"
        backend = "af_xdp"
        queues = [2, 5]
        cores = [1, 3]
        addresses = ["10.0.0.2/24", "fd00::2/64"]
        routes = [{ to = "default", via = "10.0.0.1" }, { to = "fd01::/16", via = "fd00::1" }]
        neighbors = [{ address = "10.0.0.1", mac = "02:00:00:00:00:01" }]
        mtu = 9000
        mac = "02:00:00:00:00:02"
        sharing = "shared"
        kernel_ports = ["22", "8000-8100"]
        ephemeral_ports = "62000-63000"
        poll = "busy"
        spin = "1ms"
        attach = "generic"
        zero_copy = "never"
        busy_poll = true
        rings = { fill = 1024, rx = 512, tx = 256, completion = 128, frames = 8192, frame_bytes = 4096 }
        [programs]
        sockets = 100
        connections = 200
        rx_buffer = 65536
        tx_buffer = 131072
        spin = "0us"
        loopback = "stack"
        kernel_destinations = ["192.168.0.0/16"]
        [tcp]
        congestion = "reno"
        min_rto = "5ms"
        half_open = 64
        sack = false
        "#,
    )
    .unwrap();
    let i = &c.interfaces[0];
    assert_eq!((c.engine.control.as_deref(), c.engine.seed), (Some("@lab"), Some(7)));
    assert_eq!((i.queues.as_slice(), i.cores.as_slice()), (&[2, 5][..], &[1, 3][..]));
    assert_eq!((i.addresses.len(), i.routes.len(), i.neighbors.len()), (2, 2, 1));
    assert_eq!((i.routes[0].prefix_bits, i.routes[1].prefix_bits), (0, 16));
    assert_eq!((i.mtu, i.mac), (Some(9000), Some([2, 0, 0, 0, 0, 2])));
    assert_eq!(i.kernel_ports, [(22, 22), (8000, 8100)]);
    assert_eq!((i.sharing, i.ephemeral_ports, i.poll), (Sharing::Shared, (62000, 63000), Poll::Busy));
    assert_eq!((i.attach, i.zero_copy, i.busy_poll), (AttachMode::Generic, ZeroCopy::Never, true));
    assert_eq!((i.rings.fill, i.rings.frames, i.rings.frame_bytes), (1024, 8192, 4096));
    assert_eq!((c.programs.spin, c.programs.loopback), (Duration::ZERO, Loopback::Stack));
    assert_eq!(c.programs.kernel_destinations, [("192.168.0.0".parse().unwrap(), 16)]);
    assert_eq!((c.tcp.chosen, c.tcp.on_this_machine().congestion), (true, Congestion::Reno));
    assert_eq!((c.tcp.stack.min_rto, c.tcp.stack.sack, c.limits().half_open), (Duration::from_millis(5), false, 64));
}

#[test]
fn the_machine_says_which_congestion_control_unless_the_configuration_does() {
    let named = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control").unwrap();
    let machine = Congestion::by_name(named.trim()).unwrap_or(Congestion::Cubic);
    for text in ["", "[tcp]\ncongestion = \"kernel\""] {
        let tcp = parse(&format!("{SMALL}{text}")).unwrap().tcp;
        assert_eq!((tcp.chosen, tcp.stack.congestion), (false, Congestion::Cubic));
        assert_eq!(tcp.on_this_machine().congestion, machine);
    }
}

#[test]
fn a_complaint_says_where_what_and_what_would_be_right() {
    assert_eq!(
        complaint("mtu = 1500\nqueuse = 2"),
        "f.toml:5:1: interface.queuse: no such key; did you mean `queues`?"
    );
    assert_eq!(
        complaint("[tcp]\nmin_rto = \"200s\""),
        "f.toml:5:11: tcp.min_rto: must be more than 0 and no more than max_rto"
    );
    assert_eq!(complaint("queuse = 2"), "f.toml:4:1: interface.queuse: no such key; did you mean `queues`?");
    let said = complaint("queues = 0");
    assert!(said.starts_with("f.toml:4:10: interface.queues: must be a whole number from 1 to 64"), "{said}");
    let cases = [
        ("queues = [1, 1]", "each queue once"),
        ("queues = []", "at least one"),
        ("queues = 2\ncores = [1]", "1 cores for 2 queues"),
        ("backend = \"dpdk\"", "\"af_xdp\", \"tap\", \"af_packet\", \"pipe\""),
        ("mtu = 100", "1280 to 9000"),
        ("mac = \"01:00:00:00:00:01\"", "first byte must be even"),
        ("mac = \"02:00\"", "six hexadecimal bytes"),
        ("poll = \"sometimes\"", "\"busy\", \"adaptive\", \"interrupt\""),
        ("spin = \"50\"", "a number and a unit"),
        ("spin = 50", "text in quotes"),
        ("busy_poll = \"yes\"", "true or false"),
        ("kernel_ports = [\"0\"]", "8000-8100"),
        ("kernel_ports = [\"9-8\"]", "must not be larger"),
        ("ephemeral_ports = \"600\"\nqueues = 2", "fewer ports than queues"),
        ("routes = [{ to = \"default\" }, 3]", "write { to ="),
        ("routes = [{ to = \"10.0.0.0\", via = \"10.0.0.1\" }]", "no prefix length"),
        ("routes = [{ to = \"fd00::/8\", via = \"10.0.0.1\" }]", "one address family"),
        ("routes = [{ to = \"default\", gw = \"10.0.0.1\" }]", "no such key in a route: gw"),
        ("neighbors = [{ address = \"10.0.0.1\" }]", "mac ="),
        ("backend = \"tap\"\nsharing = \"shared\"", "needs backend = \"af_xdp\""),
        ("rings = { rx = 1000 }", "1000 is no power of two; 1024 is"),
        ("rings = { fill = 4096, frames = 2048 }", "must be more than fill"),
        ("rings = { rxx = 1024 }", "did you mean `rx`?"),
        ("[engine]\ncontrol = \"relative.sock\"", "absolute path"),
        ("[engine]\nheartbeat_timeout = \"1ms\"", "500ms or more"),
        ("[engin]\ncontrol = \"/x\"", "did you mean `engine`?"),
        ("[programs]\nrx_buffer = 5000", "5000 is no power of two; 8192 is"),
        ("[programs]\nsockets = 262144", "must be 1 to 262144"),
        ("[programs]\nkernel_destinations = [\"10.0.0.0/33\"]", "0 to 32"),
        ("[tcp]\ndelayed_ack = \"600ms\"", "RFC 1122"),
        ("[tcp]\nmin_rto = \"200s\"", "no more than max_rto"),
        ("[tcp]\ncongestion = \"vegas\"", "\"cubic\", \"reno\""),
        ("[[interface]]\nname = \"eth2\"\naddresses = [\"10.0.0.3/24\"]", "one interface as yet"),
        ("name = ", "this is not TOML"),
    ];
    for (more, says) in cases {
        let said = complaint(more);
        assert!(said.contains(says), "{more}: {said}");
        assert!(said.starts_with("f.toml:"), "{said}");
        assert!(!said.contains('\n'), "one line: {said}");
    }
    for (text, says) in [
        ("", "there is no [[interface]]"),
        ("[interface]\nname = \"eth1\"", "two brackets"),
        ("[[interface]]\naddresses = [\"10.0.0.2/24\"]", "name: is missing"),
        ("[[interface]]\nname = \"eth1\"", "addresses: is missing"),
        ("[[interface]]\nname = \"an-overlong-interface\"", "1 to 15 characters"),
        ("[[interface]]\nname = \"eth 1\"", "can't be an interface"),
        ("[[interface]]\nname = \"eth1:0\"", "can't be an interface"),
    ] {
        let said = parse(text).unwrap_err().to_string();
        assert!(said.contains(says), "{text}: {said}");
    }
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let said = Config::from_file(Path::new("/no/such.toml")).unwrap_err().to_string();
    assert!(said.starts_with("/no/such.toml: can't read the configuration: No such file"), "{said}");
}

#[test]
fn what_is_printed_parses_to_the_same() {
    for (name, text) in examples() {
        let first = Config::parse(&text, &name).unwrap();
        let printed = first.to_toml();
        let second = Config::parse(&printed, &name).unwrap_or_else(|e| panic!("{e}\n{printed}"));
        assert_eq!(printed, second.to_toml());
        assert_eq!(first.interfaces[0].addresses, second.interfaces[0].addresses);
    }
}

/// The files of config/.
fn examples() -> Vec<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("config");
    let files = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path());
    let read = |path: std::path::PathBuf| (path.display().to_string(), std::fs::read_to_string(&path).unwrap());
    let examples: Vec<_> = files.filter(|p| p.extension().is_some_and(|e| e == "toml")).map(read).collect();
    assert!(examples.len() >= 4);
    examples
}

#[test]
fn every_example_is_right_also_with_what_it_has_commented_out() {
    for (name, text) in examples() {
        Config::parse(&text, &name).unwrap_or_else(|e| panic!("{e}"));
        // "#key = value" is a key with its default, "# words" is an explanation.
        let all: String = text.lines().map(|l| format!("{}\n", uncomment(l))).collect();
        Config::parse(&all, &name).unwrap_or_else(|e| panic!("with everything: {e}"));
    }
}

fn uncomment(line: &str) -> &str {
    line.strip_prefix('#').filter(|rest| rest.starts_with(|c: char| c.is_ascii_lowercase())).unwrap_or(line)
}

const NUSE: &str = "# lab\ninterface eth1\n\taddress 10.0.0.2\n\tnetmask 255.255.255.0\n\tmacaddr 02:00:00:00:00:02\n\t\
                    viftype TAP\n\nroute\n\tnetwork 0.0.0.0\n\tnetmask 0.0.0.0\n\tgateway 10.0.0.1\n";

#[test]
fn a_nuse_conf_is_translated() {
    let c = parse(NUSE).unwrap();
    let i = &c.interfaces[0];
    assert_eq!((i.name.as_str(), i.backend, i.mac), ("eth1", Backend::Tap, Some([2, 0, 0, 0, 0, 2])));
    assert_eq!(i.addresses, [InterfaceAddress { address: "10.0.0.2".parse().unwrap(), prefix_bits: 24 }]);
    let default =
        Route { network: "0.0.0.0".parse().unwrap(), prefix_bits: 0, gateway: Some("10.0.0.1".parse().unwrap()) };
    assert_eq!(i.routes, [default]);
    assert_eq!(parse(&NUSE.replace("TAP", "RAW")).unwrap().interfaces[0].backend, Backend::AfPacket);
    assert_eq!(parse(&NUSE.replace("TAP", "PIPE")).unwrap().interfaces[0].backend, Backend::Pipe);
}

#[test]
fn a_wrong_nuse_conf_is_explained() {
    let cases = [
        (NUSE.replace("TAP", "DPDK"), "f.toml:6:10: interface.viftype: DPDK has no meaning here"),
        (NUSE.replace("TAP", "NETMAP"), "backend = \"af_xdp\""),
        (NUSE.replace("TAP", "VDE"), "none of RAW, TAP, PIPE"),
        (NUSE.replace("\taddress 10.0.0.2\n", ""), "f.toml:2:1: interface.address: is missing"),
        (NUSE.replace("10.0.0.2", "10.0.0.256"), "f.toml:3:10: interface.address: \"10.0.0.256\" is no IPv4 address"),
        (NUSE.replace("255.255.255.0", "255.0.255.0"), "ones after zeroes"),
        (NUSE.replace("macaddr", "macadr"), "did you mean `macaddr`?"),
        (NUSE.replace("\tgateway 10.0.0.1\n", ""), "route.gateway: is missing"),
        (format!("{NUSE}interface eth2\n\taddress 10.0.0.3\n\tnetmask 255.0.0.0\n"), "one interface as yet"),
        (NUSE.replace("viftype TAP", "address 10.0.0.4"), "stands twice"),
        (NUSE.replace("interface eth1", "interface eth1 eth2"), "write `interface NAME`"),
        ("route\n network 0.0.0.0\n netmask 0.0.0.0\n gateway 10.0.0.1\n".into(), "no `interface NAME` block"),
    ];
    for (text, says) in cases {
        let said = parse(&text).unwrap_err().to_string();
        assert!(said.contains(says), "{text}\n{said}");
    }
    // A value that its key begins with.
    let said = parse(&NUSE.replace("address 10.0.0.2", "address add")).unwrap_err().to_string();
    assert!(said.starts_with("f.toml:3:10: "), "{said}");
    assert!(!nuse::looks_like(SMALL));
    assert!(!nuse::looks_like("interface = 3"));
}

#[test]
fn an_engine_without_an_interface_has_its_loopback() {
    let c = Config::loopback().unwrap();
    let i = &c.interfaces[0];
    assert_eq!((i.backend, i.name.as_str(), i.addresses.len()), (Backend::None, "none", 0));
    assert_eq!((c.programs.loopback, i.ephemeral_ports), (Loopback::Stack, (32768, 60999)));
    let again = parse(&c.to_toml()).unwrap();
    assert_eq!(again.to_toml(), c.to_toml());
    let kernels = parse("[[interface]]\nbackend = \"none\"\n[programs]\nloopback = \"kernel\"\n").unwrap();
    assert_eq!(kernels.programs.loopback, Loopback::Kernel);
}
