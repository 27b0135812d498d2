use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use super::*;
use crate::clock::VirtualClock;
use crate::local::{LocalConfig, LocalEngine};

const SOCKET: Token = Token(7);

/// A free slot in the memory of a real session, kept for the rest of the test run.
fn slot() -> &'static Slot {
    let config = LocalConfig::new("10.0.0.1/24".parse().unwrap());
    let engine = Box::leak(Box::new(LocalEngine::in_memory(&config, VirtualClock::default()).unwrap()));
    let session = Box::leak(Box::new(engine.attach(0).unwrap()));
    session.region().slot(3).unwrap()
}

fn line(_: Token) -> Option<Timeline> {
    let here = "10.0.0.1:80".parse().unwrap();
    let there = "10.0.0.2:5000".parse().unwrap();
    Some(Timeline { group: 0, slot: 3, process: 0, local: here, remote: there, stamps: [0; STAMPS.len()] })
}

fn at(us: u64) -> Instant {
    Instant::ZERO + Duration::from_secs(1) + Duration::from_micros(us)
}

/// What the client library does.
fn program(shared: &Slot, woke: u64, read: u64, wrote: u64, end: u64) {
    shared.woke_ns.store(at(woke).as_nanos(), Relaxed);
    shared.woke_probe.store(shared.rx_probe.load(Relaxed), Relaxed);
    shared.read_ns.store(at(read).as_nanos(), Relaxed);
    shared.read_probe.store(shared.rx_probe.load(Relaxed), Relaxed);
    shared.tx_probe_ns.store(at(wrote).as_nanos(), Relaxed);
    shared.tx_probe_end.store(end, Relaxed);
    shared.tx_probe_done.store(shared.tx_probe.load(Relaxed), Relaxed);
}

/// A followed request: 100 bytes in, 200 bytes out.
fn request(profile: &mut Profile, shared: &Slot, wrote: u64) {
    assert!(profile.arm());
    profile.arrived(SOCKET, 100);
    profile.handled(at(0), at(1), line);
    profile.publish(SOCKET, 100, 0, shared);
    profile.stamp_published(at(3));
    program(shared, 6, 7, wrote, 200);
    profile.command(SOCKET, 200, shared);
    profile.stamp_seen(at(15));
    profile.reads(SOCKET, 0, 150);
    assert!(!profile.owes_built(), "the last byte is not in this frame");
    profile.reads(SOCKET, 150, 50);
    profile.stamp_built(at(16));
    profile.stamp_sent(at(18), at(20));
    profile.publish(SOCKET, 100, 200, shared);
    profile.stamp_published(at(60));
    profile.look(at(61), |_| Some(shared));
}

#[test]
fn a_request_has_all_its_stages() {
    let shared = slot();
    let mut profile = Profile::new(1);
    request(&mut profile, shared, 11);
    let report = profile.report(0, true);
    assert_eq!((report.followed, report.abandoned, report.garbled), (1, 0, 0));
    let us: Vec<Option<u64>> = STAGES.iter().map(|s| report.recent[0].stage(s).map(|ns| ns / 1000)).collect();
    assert_eq!(us, [1, 2, 3, 1, 4, 4, 1, 2, 2, 40, 7, 9, 20].map(Some));
    assert_eq!(report.slowest[0].total(), 20_000);
    assert!(report.stages.iter().all(|s| s.count == 1));
    assert!(!profile.is_following());
}

#[test]
fn an_answer_that_came_before_is_none() {
    let shared = slot();
    let mut profile = Profile::new(1);
    request(&mut profile, shared, 5);
    let report = profile.report(0, true);
    let stage = |name: &str| STAGES.iter().find(|s| s.name == name).and_then(|s| report.recent[0].stage(s));
    assert_eq!((report.followed, stage("program"), stage("send")), (1, None, Some(15_000)));
}

#[test]
fn a_program_that_lies_is_not_believed() {
    let shared = slot();
    let mut profile = Profile::new(1);
    // Written after it was seen.
    request(&mut profile, shared, 40);
    assert_eq!(profile.report(0, false).garbled, 1);
    // An end beyond what it has written.
    assert!(profile.arm());
    profile.arrived(SOCKET, 300);
    profile.handled(at(100), at(101), line);
    profile.publish(SOCKET, 300, 200, shared);
    program(shared, 110, 111, 112, 5000);
    profile.command(SOCKET, 400, shared);
    assert_eq!((profile.report(0, false).garbled, profile.is_following()), (2, false));
}

#[test]
fn one_in_so_many_is_followed_and_only_where_there_is_data() {
    let mut profile = Profile::new(4);
    let asked: Vec<bool> = (0..8).map(|_| profile.arm()).collect();
    assert_eq!(asked, [false, false, false, true, true, true, true, true], "armed until data comes");
    profile.handled(at(0), at(1), line);
    assert!(!profile.is_following(), "no data, no request");
    profile.arrived(SOCKET, 1);
    profile.handled(at(0), at(1), line);
    assert!(profile.is_following());
    assert!(!profile.arm());
    let mut off = Profile::default();
    assert!((0..1000).all(|_| !off.arm()));
    off.wrote(SOCKET, line);
    assert!(!off.is_following());
}

#[test]
fn nothing_is_followed_for_ever() {
    let shared = slot();
    let mut profile = Profile::new(1);
    assert!(profile.arm());
    profile.arrived(SOCKET, 100);
    profile.handled(at(0), at(1), line);
    profile.look(at(2), |_| Some(shared));
    profile.look(at(2) + Duration::from_secs(2), |_| Some(shared));
    assert_eq!((profile.report(0, false).abandoned, profile.is_following()), (1, false));
    // A socket that goes takes its request along.
    profile.arm();
    profile.arrived(SOCKET, 100);
    profile.handled(at(0), at(1), line);
    profile.forget(SOCKET);
    assert!(!profile.is_following());
}

#[test]
fn a_report_can_be_built_upon() {
    let shared = slot();
    let mut profile = Profile::new(1);
    request(&mut profile, shared, 11);
    let report = profile.report(2, true);
    let text = serde_json::to_string(&report).unwrap();
    let read: LatencyReport = serde_json::from_str(&text).unwrap();
    let of_buckets = summarize([].iter(), [&read].into_iter());
    let of_requests = summarize(read.recent.iter(), [].iter());
    assert_eq!((of_buckets.len(), of_buckets[0].count), (STAGES.len(), 1));
    for (a, b) in of_buckets.iter().zip(&of_requests) {
        assert!((a.p50_us - b.p50_us).abs() <= 0.02 * a.p50_us, "{a:?} {b:?}");
    }
}
