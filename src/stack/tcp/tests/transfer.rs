//! Data arrives whole and in order, whatever the pipe does.

use super::*;

/// Both directions at once, then FINs; returns the time it took.
fn transfer(pipe: Pipe, bytes: usize) -> Net {
    let mut net = Net::listening(pipe);
    let (client, server) = net.pair();
    for (side, token, salt) in [(CLIENT, client, 1), (SERVER, server, 2)] {
        let socket = net.socket(side, token);
        socket.outgoing = pattern(bytes, salt);
        socket.finish = true;
    }
    net.run_until(|net| {
        net.ends[CLIENT].programs.sockets[&client].released() && net.ends[SERVER].programs.sockets[&server].released()
    });
    assert!(net.socket(CLIENT, client).received == pattern(bytes, 2), "to the client, {pipe:?}");
    assert!(net.socket(SERVER, server).received == pattern(bytes, 1), "to the server, {pipe:?}");
    assert_eq!((net.socket(CLIENT, client).error, net.socket(SERVER, server).error), (None, None));
    net
}

#[test]
fn clean_pipe() {
    for ipv6 in [false, true] {
        let net = transfer(Pipe { ipv6, ..Pipe::default() }, 2_000_000);
        assert_eq!(net.ends.each_ref().map(|end| end.counters.tcp_retransmits), [0, 0]);
        assert!(net.now < Instant::from_millis(1_500), "{:?}", net.now);
    }
}

#[test]
fn empty_and_tiny() {
    for bytes in [0, 1, 2, 1448, 1449] {
        transfer(Pipe::default(), bytes);
    }
}

#[test]
fn lossy_pipes() {
    for seed in 0..6 {
        for (loss, duplicate, reorder) in
            [(10, 0, 0), (50, 0, 0), (100, 20, 20), (0, 0, 300), (0, 200, 0), (20, 20, 100)]
        {
            transfer(Pipe { seed, loss, duplicate, reorder, ipv6: seed % 2 == 1, ..Pipe::default() }, 300_000);
        }
    }
}
