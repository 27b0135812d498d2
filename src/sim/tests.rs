use super::*;

fn run(text: &str) -> Report {
    let (_, scenario) = Scenario::parse(text, "test").unwrap_or_else(|e| panic!("{e}")).remove(0);
    Run::new(&scenario, RunOptions::default()).unwrap().finish(&mut |_, _| ()).unwrap()
}

/// Two hosts and a link between them.
fn pair(seed: u64, seconds: &str, link: &str, traffic: &str) -> String {
    format!(
        "[simulation]\nduration = \"{seconds}\"\nseed = {seed}\n[[host]]\nname = \"a\"\n[[host]]\nname = \"b\"\n\
         [[link]]\nbetween = [\"a\", \"b\"]\n{link}\n[[traffic]]\nfrom = \"a\"\nto = \"b\"\n{traffic}\n"
    )
}

const ROUGH: &str = "rate = \"50Mbit/s\"\ndelay = \"5ms\"\nqueue = 60\nloss = \"1%\"\nreorder = \"2%\"\n\
                     duplicate = \"1%\"\ncorrupt = \"0.5%\"\njitter = \"300us\"";

#[test]
fn a_clean_link_is_filled() {
    let r = run(&pair(1, "4s", "rate = \"50Mbit/s\"\ndelay = \"5ms\"\nqueue = \"1bdp\"", "kind = \"bulk\""));
    let t = &r.traffic[0];
    assert!(t.goodput_mbit > 40.0, "{t:?}");
    assert_eq!((t.damaged, t.failures.len()), (0, 0), "{t:?}");
}

#[test]
fn bytes_arrive_once_and_in_order_over_a_rough_link() {
    for seed in 1..=3 {
        let r = run(&pair(seed, "60s", ROUGH, "kind = \"bulk\"\nbytes = 2000000"));
        let t = &r.traffic[0];
        assert_eq!((t.flows[0].bytes, t.flows[0].ended, t.damaged), (2_000_000, true, 0), "seed {seed}: {t:?}");
        assert!(r.links[0].counters.link.corrupted > 0 && r.hosts[1].checksum_errors > 0, "{r:?}");
    }
}

#[test]
fn the_same_seed_gives_the_same_bytes_at_the_same_times() {
    let text =
        |seed| pair(seed, "3s", ROUGH, "kind = \"request\"\nconnections = 5\nper_connection = 3\nresponse = 20000");
    let json = |seed| serde_json::to_string(&run(&text(seed))).unwrap();
    assert_eq!(json(4), json(4));
    let hash = |seed| run(&text(seed)).trace_hash;
    assert_ne!(hash(4), hash(5));
}

#[test]
fn every_kind_of_traffic_works() {
    let link = "rate = \"100Mbit/s\"\ndelay = \"100us\"";
    let r = run(&pair(1, "2s", link, "kind = \"request\"\nconnections = 3\nthink = \"10ms\"\nrequest = 10000"));
    let t = &r.traffic[0];
    assert!(t.requests > 400 && t.connected == 3 && t.failures.is_empty() && t.damaged == 0, "{t:?}");
    // One round trip, and the time that the request takes.
    assert!(t.answering.unwrap().p50 > 200.0 + 800.0, "{t:?}");

    let r = run(&pair(1, "2s", link, "kind = \"connect\"\nrate = 500\ntotal = 600"));
    let t = &r.traffic[0];
    assert_eq!((t.connected, t.closed, t.failures.len()), (600, 600, 0), "{t:?}");
    let connect = t.connecting.unwrap();
    assert!((200.0..260.0).contains(&connect.p50), "{connect:?}");

    let r = run(&pair(1, "2s", link, "kind = \"on-off\"\non = \"50ms\"\noff = \"150ms\""));
    let t = &r.traffic[0];
    assert!((2.0..80.0).contains(&t.goodput_mbit) && t.damaged == 0, "{t:?}");
}

#[test]
fn incast_asks_all_and_waits_for_all() {
    let r =
        run("[simulation]\nduration = \"1s\"\n[[host]]\nname = \"asker\"\n[[host]]\nname = \"server\"\ncount = 8\n\
         [[switch]]\nname = \"s\"\n[[link]]\nbetween = [\"server\", \"s\"]\nrate = \"1Gbit/s\"\ndelay = \"10us\"\n\
         [[link]]\nbetween = [\"asker\", \"s\"]\nrate = \"1Gbit/s\"\ndelay = \"10us\"\nback = { queue = 64 }\n\
         [[traffic]]\nkind = \"incast\"\nfrom = \"asker\"\nto = \"server\"\nresponse = \"64KiB\"\npause = \"1ms\"\n");
    let t = &r.traffic[0];
    assert!(t.requests > 5 && t.failures.is_empty() && t.damaged == 0, "{t:?}");
    // 8 x 64 KiB over one link of 1 Gbit/s.
    assert!(t.answering.unwrap().p50 > 4_200.0, "{t:?}");
}

#[test]
fn flows_of_one_bottleneck_share_it() {
    let r = run("[simulation]\nduration = \"12s\"\n[[host]]\nname = \"c\"\ncount = 4\n[[host]]\nname = \"server\"\n\
         [[switch]]\nname = \"s\"\n[[link]]\nbetween = [\"c\", \"s\"]\ndelay = \"1ms\"\n\
         [[link]]\nbetween = [\"s\", \"server\"]\nrate = \"20Mbit/s\"\ndelay = \"4ms\"\nqueue = \"1bdp\"\n\
         [[traffic]]\nkind = \"bulk\"\nfrom = \"c\"\nto = \"server\"\n");
    let t = &r.traffic[0];
    assert!(t.fairness.unwrap() > 0.8, "{t:?}");
    assert!(t.goodput_mbit > 16.0, "{t:?}");
}

#[test]
fn changes_and_outages_come_when_they_are_due() {
    let link = "rate = \"50Mbit/s\"\ndelay = \"1ms\"\nqueue = 100\n[[link.change]]\nat = \"1s\"\ndown = true\n\
                [[link.change]]\nat = \"1500ms\"\ndown = false\nrate = \"10Mbit/s\"";
    let text = pair(1, "4s", link, "kind = \"bulk\"").replace("seed = 1", "seed = 1\nsample = \"100ms\"");
    let (_, scenario) = Scenario::parse(&text, "test").unwrap().remove(0);
    let options = RunOptions { series: true, ..RunOptions::default() };
    let r = Run::new(&scenario, options).unwrap().finish(&mut |_, _| ()).unwrap();
    let mean = |from: f64, to: f64| {
        let of: Vec<f64> = r.series[0]
            .points
            .iter()
            .filter(|p| p.seconds > from && p.seconds <= to)
            .filter_map(|p| p.goodput)
            .collect();
        of.iter().sum::<f64>() / of.len() as f64
    };
    assert!(mean(0.3, 0.95) > 35.0, "{}", mean(0.3, 0.95));
    assert!(mean(1.15, 1.45) < 1.0, "{}", mean(1.15, 1.45));
    assert!((6.0..10.0).contains(&mean(3.0, 4.0)), "{}", mean(3.0, 4.0));
    let picture = plot::svg(&r, "an outage");
    assert!(picture.starts_with("<svg") && picture.matches("<polyline").count() >= 3);
}

#[test]
fn a_run_can_be_traced_and_captured() {
    let folder = std::env::temp_dir().join(format!("sidestep-sim-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let text = pair(1, "1s", "delay = \"1ms\"", "kind = \"bulk\"\nbytes = 3000");
    let (_, scenario) = Scenario::parse(&text, "test").unwrap().remove(0);
    let trace = folder.join("trace");
    let options = RunOptions {
        trace: Some(Box::new(std::fs::File::create(&trace).unwrap())),
        pcap: Some(folder.clone()),
        series: false,
    };
    let r = Run::new(&scenario, options).unwrap().finish(&mut |_, _| ()).unwrap();
    let lines = std::fs::read_to_string(trace).unwrap();
    assert!(lines.contains(" a sent 10.0.0.1.") && lines.contains("[S] seq") && lines.contains(" b got "), "{lines}");
    let sent = r.hosts[0].tcp_out;
    assert!(std::fs::metadata(folder.join("a.pcapng")).unwrap().len() > sent * 60);
    assert_eq!(r.trace_hash, run(&text).trace_hash, "watching changes nothing");
    std::fs::remove_dir_all(folder).unwrap();
}
