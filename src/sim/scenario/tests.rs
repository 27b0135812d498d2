use super::*;
use crate::sim::loss::Loss;

const TWO: &str = "
[[host]]
name = \"a\"
[[host]]
name = \"b\"
[[link]]
between = [\"a\", \"b\"]
";

fn one(text: &str) -> Scenario {
    let mut all = Scenario::parse(text, "t.toml").unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(all.len(), 1);
    all.remove(0).1
}

fn error(text: &str) -> String {
    Scenario::parse(text, "t.toml").map(|_| ()).unwrap_err().to_string()
}

#[test]
fn a_whole_scenario_is_read() {
    let s = one("
[simulation]
duration = \"2s\"
seed = 9
[[host]]
name = \"c\"
count = 3
address = \"10.1.0.1/16\"
rx_buffer = \"1MiB\"
tcp = { congestion = \"reno\" }
[[host]]
name = \"server\"
address = \"10.1.9.1/16\"
[[switch]]
name = \"s\"
[[link]]
between = [\"c\", \"s\"]
delay = \"1ms\"
[[link]]
between = [\"s\", \"server\"]
rate = \"100Mbit/s\"
delay = \"0.5ms\"
queue = \"1bdp\"
loss = \"0.1%\"
codel = true
back = { loss = 0, delay = \"2ms\" }
[[link.change]]
at = \"1s\"
rate = \"10Mbit/s\"
[[traffic]]
kind = \"bulk\"
from = [\"c1\", \"c3\"]
to = \"server\"
flows = 2
");
    assert_eq!((s.duration, s.seed, s.hosts.len(), s.links.len()), (Duration::from_secs(2), 9, 4, 4));
    assert_eq!(s.hosts[2].name, "c3");
    assert_eq!(s.hosts[2].config.stack.addresses[0].address.to_string(), "10.1.0.3");
    assert_eq!(s.hosts[0].config.stack.tcp.congestion, sidestep_stack::Congestion::Reno);
    let last = &s.links[3];
    assert_eq!(last.ends, (4, 3));
    assert_eq!((last.forth.loss, last.back.loss), (Loss::Independent(0.001), Loss::NONE));
    assert_eq!(last.forth.queue.frames, 64, "a short path's BDP is never less");
    assert_eq!((last.changes[0].1.rate, last.changes[0].2.delay), (Some(10_000_000), Duration::from_millis(2)));
    assert_eq!(s.traffic[0].from, [0, 2]);
    assert_eq!(s.path(2, 3), Some(vec![(2, true), (3, true)]));
    assert_eq!(s.path(3, 0), Some(vec![(3, false), (0, false)]));
}

#[test]
fn a_matrix_gives_every_combination() {
    let text = format!(
        "[matrix]\ndelay = [\"1ms\", \"2ms\"]\nloss = [0, 0.1, \"20%\"]\n{TWO}delay = \"${{delay}}\"\nloss = \"${{loss}}\"\n"
    );
    let all = Scenario::parse(&text, "t").unwrap();
    let seen: Vec<_> =
        all.iter().map(|(_, s)| (s.links[0].forth.delay.as_millis(), s.links[0].forth.loss.mean())).collect();
    assert_eq!(seen, [(1, 0.0), (1, 0.1), (1, 0.2), (2, 0.0), (2, 0.1), (2, 0.2)]);
    assert_eq!(all[5].0.iter().map(|c| c.value.as_str()).collect::<Vec<_>>(), ["2ms", "20%"]);
}

#[test]
fn mistakes_are_named_with_their_place_and_what_would_be_right() {
    let link = |line: &str| error(&format!("{TWO}{line}\n"));
    let traffic = |lines: &str| error(&format!("{TWO}[[traffic]]\nfrom = \"a\"\nto = \"b\"\n{lines}\n"));
    for (message, parts) in [
        (link("rate = \"10Mbps\""), &["t.toml:8:8", "link.rate", "Mbit/s"][..]),
        (link("dealy = \"1ms\""), &["t.toml:8:1", "dealy", "did you mean `delay`"]),
        (link("loss = 1.5"), &["t.toml:8", "probability"]),
        (link("loss = { enter = 0.1 }"), &["link.loss.leave", "missing"]),
        (link("queue = \"2bdp\""), &["needs a rate"]),
        (link("codel = 5"), &["target"]),
        (link("[[link]]\nbetween = [\"a\", \"x\"]"), &["t.toml:9", "\"x\""]),
        (link("[[link]]\nbetween = [\"a\", \"b\"]"), &["has a link already", "switch"]),
        (error("[[host]]\nname = \"a\"\n[[host]]\nname = \"a\"\n"), &["t.toml:4", "two nodes"]),
        (error("[simulaton]\n"), &["did you mean `simulation`"]),
        (error("x ="), &["not TOML"]),
        (traffic("kind = \"bluk\""), &["t.toml:11:8", "\"bulk\""]),
        (traffic("kind = \"bulk\"\nthink = \"1ms\""), &["t.toml:12:9", "traffic.think", "flows, bytes"]),
        (traffic("kind = \"bulk\"\nstart = \"2s\"\nstop = \"1s\""), &["traffic.stop", "later"]),
        (traffic("kind = \"request\"\nrequest = 3"), &["8 bytes or more"]),
        (error("[[host]]\nname = \"a\"\ntcp = { minrto = 3 }"), &["minrto", "min_rto"]),
        (error("[matrix]\na = 3"), &["t:2".replace('t', "t.toml").as_str(), "list"]),
        (error("[simulation]\nduration = \"1h\"\n"), &["simulation.duration"]),
        (
            error("[[host]]\nname=\"a\"\n[[host]]\nname=\"b\"\n[[traffic]]\nkind=\"bulk\"\nfrom=\"a\"\nto=\"b\"\n"),
            &["no link leads from a to b"],
        ),
    ] {
        for part in parts {
            assert!(message.contains(part), "{message}\nlacks {part}");
        }
    }
}

#[test]
fn the_examples_are_right() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/sim");
    let files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|f| f.unwrap().path()).collect();
    assert!(files.len() >= 6, "{files:?}");
    for file in files {
        Scenario::from_file(&file).unwrap_or_else(|e| panic!("{e}"));
    }
}
