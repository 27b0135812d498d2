//! What an idle established connection costs, measured on a process full of them: two hosts of the simulator's kind, the
//! real stack, shard loop, shared memory and client, and nothing that is sent once the handshakes are over.

use std::net::SocketAddr;

use sidestep::clock::VirtualClock;
use sidestep::local::{LocalConfig, LocalHost};
use sidestep_client::Session;
use sidestep_client::shm::slot::kind;
use sidestep_stack::{Instant, StaticNeighbor};

/// Connections, each with two ends here.
const CONNECTIONS: usize = 100_000;
/// More than 16,384 from one address to one port there can't be.
const PORTS: usize = 8;
const BATCH: usize = 500;
/// The bar: an end of a connection in the engine, stack and shard together, in bytes.
const MOST: usize = 1024;

/// A line of /proc/self/status, in bytes.
fn status(name: &str) -> usize {
    let text = std::fs::read_to_string("/proc/self/status").expect("/proc");
    let line = text.lines().find(|l| l.starts_with(name)).expect("a line of this name");
    line.split_whitespace().nth(1).and_then(|n| n.parse::<usize>().ok()).expect("a number") * 1024
}

fn pump(hosts: &[LocalHost; 2]) {
    loop {
        let mut moved = 0;
        for (from, host) in hosts.iter().enumerate() {
            host.settle();
            while let Some((_, frame)) = host.take_frame(0) {
                hosts[1 - from].put_frame(0, frame);
                moved += 1;
            }
        }
        if moved == 0 {
            return;
        }
    }
}

#[test]
fn an_idle_connection_costs_less_than_a_kilobyte() {
    let clock = VirtualClock::default();
    clock.set(Instant::from_millis(1000));
    let mut configs = ["10.0.0.1/24", "10.0.0.2/24"].map(|a| LocalConfig::new(a.parse().expect("an address")));
    let known = configs.each_ref().map(|c| (c.stack.addresses[0].address, c.stack.mac));
    for (n, config) in configs.iter_mut().enumerate() {
        let (address, mac) = known[1 - n];
        config.stack.neighbors.push(StaticNeighbor { address, mac });
        // The first host opens connections, the second accepts them.
        (config.geometry.open_slots, config.geometry.accept_slots) =
            if n == 0 { (CONNECTIONS as u32 + 64, 64) } else { (64, CONNECTIONS as u32 + 64) };
    }
    let before = (status("RssAnon:"), status("RssShmem:"));
    let hosts = configs.each_ref().map(|c| LocalHost::in_memory(c, clock.clone()).expect("a host"));
    let [client, server]: [Session; 2] = hosts.each_ref().map(|h| h.attach(0).expect("attached"));
    let at = |port: usize| SocketAddr::from(([10, 0, 0, 2], 8000 + port as u16));
    let listeners: Vec<u32> = (0..PORTS)
        .map(|port| {
            let listener = server.open(kind::TCP4).expect("a slot");
            server.bind(listener, at(port), 0).expect("bound");
            server.listen(listener, 4096).expect("listening");
            listener
        })
        .collect();
    let mut open = 0;
    let mut ends = Vec::with_capacity(2 * CONNECTIONS);
    while open < CONNECTIONS {
        for n in 0..BATCH {
            let socket = client.open(kind::TCP4).expect("a slot");
            client.connect(socket, at((open + n) % PORTS)).expect("started");
            ends.push(socket);
        }
        pump(&hosts);
        for listener in &listeners {
            while let Ok((accepted, _)) = server.accept(*listener) {
                ends.push(accepted);
            }
        }
        open += BATCH;
        // Connections of one moment would all have a place in the timer wheel at once.
        clock.set(Instant::from_millis(1000 + open as u64 / 10));
        assert_eq!(ends.len(), 2 * open, "every connection is there");
    }
    // Whatever a burst needed, and whatever waits, is over.
    clock.set(Instant::from_millis(60_000));
    pump(&hosts);
    let grown = |name: &str, before: usize| (status(name).saturating_sub(before)) / (2 * CONNECTIONS);
    // The list of ends is this test's own.
    let anonymous = grown("RssAnon:", before.0) - 4;
    // Engine and program are one process here, with a mapping each of the same pages.
    let shared = grown("RssShmem:", before.1) / 2;
    println!(
        "{CONNECTIONS} idle connections: {anonymous} bytes an end in the engine, and {shared} of shared memory (its slot)"
    );
    assert!(anonymous < MOST, "{anonymous} bytes");
    // 832 bytes of slot and the page that it begins or ends in; no page of any ring.
    assert!(shared < MOST, "{shared} bytes of shared memory: rings without bytes should have no pages");
}
