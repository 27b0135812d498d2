use std::io::{IoSlice, IoSliceMut};

use sidestep_client::shm::slot::{kind, option};
use sidestep_client::{DatagramOptions, Number, POLLIN, POLLOUT, Waiter};

use super::*;

mod in_place;

/// Two hosts and a wire between them that takes 50 µs.
struct Pair {
    clock: VirtualClock,
    hosts: [LocalHost; 2],
    wire: Vec<(Instant, usize, Vec<u8>)>,
    /// Everything that went over the wire, with its time.
    log: Vec<(u64, usize, Vec<u8>)>,
    delay: Duration,
}

const DELAY: Duration = Duration::from_micros(50);

impl Pair {
    fn new(seed: u64, shards: u32) -> Self {
        let clock = VirtualClock::default();
        let host = |address: &str, seed| {
            let mut config = LocalConfig::new(address.parse().unwrap()).seeded(seed);
            config.shards = shards;
            LocalHost::in_memory(&config, clock.clone()).unwrap()
        };
        let hosts = [host("10.0.0.1/24", seed), host("10.0.0.2/24", seed + 1)];
        Self { clock, hosts, wire: Vec::new(), log: Vec::new(), delay: DELAY }
    }

    /// Runs until nothing happens any more, at most up to `until`.
    fn run(&mut self, until: Instant) {
        loop {
            for (from, host) in self.hosts.iter().enumerate() {
                host.settle();
                for shard in 0..host.shards.len() {
                    while let Some((at, frame)) = host.take_frame(shard) {
                        assert_eq!(at, self.clock.now());
                        self.log.push((at.as_nanos(), from, frame.clone()));
                        self.wire.push((at + self.delay, 1 - from, frame));
                    }
                }
            }
            let frames = self.wire.iter().map(|w| w.0).min();
            let next = self.hosts.iter().filter_map(LocalHost::wake_at).chain(frames).min();
            let Some(next) = next.filter(|&at| at <= until) else { break };
            self.clock.set(next);
            let (due, later) = std::mem::take(&mut self.wire).into_iter().partition(|w| w.0 <= next);
            self.wire = later;
            for (_, to, frame) in due {
                // The frame's last byte of payload may be anything: shards find out whose it is.
                let shard = frame.len() % self.hosts[to].shards.len();
                self.hosts[to].put_frame(shard, frame);
            }
        }
        self.clock.set(until);
    }

    fn after(&self, millis: u64) -> Instant {
        self.clock.now() + Duration::from_millis(millis)
    }
}

fn send(session: &Session, slot: u32, data: &[u8]) -> Result<usize, Errno> {
    session.send(slot, &[IoSlice::new(data)], false)
}

fn receive(session: &Session, slot: u32) -> Result<Vec<u8>, Errno> {
    let mut buffer = vec![0; 65_536];
    let n = session.receive(slot, &mut [IoSliceMut::new(&mut buffer)], false)?;
    buffer.truncate(n);
    Ok(buffer)
}

/// A connection, a question, an answer, an orderly end. Returns what went over the wire.
fn conversation(seed: u64, shards: u32) -> Vec<(u64, usize, Vec<u8>)> {
    let mut pair = Pair::new(seed, shards);
    let [client, server] = [pair.hosts[0].attach(0).unwrap(), pair.hosts[1].attach(0).unwrap()];
    let listener = server.open(kind::TCP4).unwrap();
    server.bind(listener, "10.0.0.2:80".parse().unwrap(), 0).unwrap();
    server.listen(listener, 16).unwrap();
    let waiter = Waiter::new(&server).unwrap();
    waiter.watch(&server, listener);

    let socket = client.open(kind::TCP4).unwrap();
    client.connect(socket, "10.0.0.2:80".parse().unwrap()).unwrap();
    assert_eq!(client.connect_outcome(socket), Ok(false));
    let until = pair.after(10);
    pair.run(until);
    assert_eq!(client.connect_outcome(socket), Ok(true));
    let info = pair.hosts[0].tcp_info(&client, socket).unwrap();
    assert_eq!(info.state, sidestep_stack::TcpState::Established);
    assert!(info.srtt >= 2 * DELAY, "{info:?}");

    let mut marked = Vec::new();
    waiter.harvest(&server, 64, |slot| marked.push(slot));
    assert_eq!(marked, [listener]);
    let (accepted, from) = server.accept(listener).unwrap();
    assert_eq!(Some(from), client.local_address(socket));
    assert_eq!(send(&client, socket, b"question"), Ok(8));
    let until = pair.after(1);
    pair.run(until);
    assert_eq!(server.readiness(accepted) & (POLLIN | POLLOUT), POLLIN | POLLOUT);
    assert_eq!(receive(&server, accepted).unwrap(), b"question");
    let answer: Vec<u8> = (0..100_000u32).map(|i| i as u8).collect();
    assert_eq!(send(&server, accepted, &answer), Ok(answer.len()));
    server.close(accepted);
    let until = pair.after(100);
    pair.run(until);
    let mut got = Vec::new();
    loop {
        match receive(&client, socket) {
            Ok(piece) if piece.is_empty() => break,
            Ok(piece) => got.extend(piece),
            // The first buffer holds less than all of it.
            Err(errno) => {
                assert_eq!(errno, Errno::AGAIN);
                let until = pair.after(10);
                pair.run(until);
            }
        }
    }
    assert_eq!(got, answer);
    client.close(socket);
    let until = pair.after(100);
    pair.run(until);
    drop((client, server));
    let until = pair.after(100_000);
    pair.run(until);
    assert_eq!(pair.hosts[0].sockets(), "[]");
    assert!(pair.hosts.iter().all(|h| lock(&h.books).group_index(0).is_none() && !h.vacated.load(Ordering::Relaxed)));
    pair.log
}

#[test]
fn two_hosts_talk() {
    let log = conversation(7, 1);
    assert!(log.len() > 80, "100,000 bytes are 70 segments: {}", log.len());
}

#[test]
fn shards_hand_each_other_what_is_theirs() {
    conversation(7, 3);
}

#[test]
fn the_same_seed_gives_the_same_frames_at_the_same_times() {
    assert_eq!(conversation(7, 1), conversation(7, 1));
    assert_eq!(conversation(7, 2), conversation(7, 2));
    assert_ne!(conversation(7, 1), conversation(8, 1));
}

#[test]
fn bind_and_listen_fail_as_on_linux() {
    let pair = Pair::new(1, 1);
    let host = &pair.hosts[0];
    let [a, b] = [host.attach(0).unwrap(), host.attach(0).unwrap()];
    let address = "10.0.0.1:80".parse().unwrap();
    let first = a.open(kind::TCP4).unwrap();
    assert_eq!(a.bind(first, address, 0), Ok(address));
    assert_eq!(a.bind(first, address, 0), Err(Errno::INVAL), "bound already");
    let second = b.open(kind::TCP4).unwrap();
    assert_eq!(b.bind(second, address, 0), Err(Errno::ADDRINUSE));
    assert_eq!(b.bind(second, "10.0.0.9:80".parse().unwrap(), 0), Err(Errno::ADDRNOTAVAIL));
    assert_eq!(b.bind(second, "0.0.0.0:80".parse().unwrap(), option::REUSE_ADDRESS), Err(Errno::ADDRINUSE));
    a.close(first);
    host.settle();
    assert_eq!(b.bind(second, address, 0), Ok(address), "closed: the port is free");
    assert_eq!(b.listen(second, 5), Ok(address));
    let datagrams = a.open(kind::UDP4).unwrap();
    assert_eq!(a.listen(datagrams, 5), Err(Errno::OPNOTSUPP));
    let any = a.bind(datagrams, "0.0.0.0:0".parse().unwrap(), 0).unwrap();
    assert!((49_152..=65_535).contains(&any.port()));
}

#[test]
fn a_refused_connection_says_so() {
    let mut pair = Pair::new(1, 1);
    let client = pair.hosts[0].attach(0).unwrap();
    let socket = client.open(kind::TCP4).unwrap();
    client.connect(socket, "10.0.0.2:9".parse().unwrap()).unwrap();
    let until = pair.after(10);
    pair.run(until);
    assert_eq!(client.connect_outcome(socket), Err(Errno::CONNREFUSED));
}

#[test]
fn sockets_end_with_their_session() {
    let mut pair = Pair::new(1, 1);
    let client = pair.hosts[0].attach(0).unwrap();
    let group = client.group();
    let other = pair.hosts[0].attach(group).unwrap();
    assert_ne!(client.process(), other.process());
    let socket = client.open(kind::TCP4).unwrap();
    client.bind(socket, "10.0.0.1:80".parse().unwrap(), 0).unwrap();
    client.listen(socket, 5).unwrap();
    drop(client);
    let until = pair.after(1);
    pair.run(until);
    assert_eq!(pair.hosts[0].sockets(), "[]");
    let again = other.open(kind::TCP4).unwrap();
    assert!(other.bind(again, "10.0.0.1:80".parse().unwrap(), 0).is_ok());
}

/// A long fat path: the buffers grow by themselves until they hold it, and are given back.
#[test]
fn buffers_grow_with_the_path() {
    let mut pair = Pair::new(3, 1);
    pair.delay = Duration::from_millis(20);
    let [client, server] = [pair.hosts[0].attach(0).unwrap(), pair.hosts[1].attach(0).unwrap()];
    let listener = server.open(kind::TCP4).unwrap();
    server.bind(listener, "10.0.0.2:80".parse().unwrap(), 0).unwrap();
    server.listen(listener, 16).unwrap();
    let socket = client.open(kind::TCP4).unwrap();
    client.connect(socket, "10.0.0.2:80".parse().unwrap()).unwrap();
    let until = pair.after(100);
    pair.run(until);
    let (accepted, _) = server.accept(listener).unwrap();
    let pools = |pair: &Pair| [0, 1].map(|host: usize| lock(&pair.hosts[host].shards[0]).report().buffer_bytes);
    assert_eq!(pools(&pair), [0, 0]);

    // Bytes that tell their position; writer and reader do what they can, every half millisecond.
    let byte = |i: usize| (i as u8) ^ (i >> 8) as u8 ^ (i >> 16) as u8;
    let total = 12 << 20;
    let (mut sent, mut got) = (0, 0);
    let begun = pair.clock.now();
    while got < total {
        let piece: Vec<u8> = (sent..(sent + 300_000).min(total)).map(byte).collect();
        sent += send(&client, socket, &piece).unwrap_or(0);
        while let Ok(piece) = receive(&server, accepted) {
            assert!(piece.iter().enumerate().all(|(i, b)| *b == byte(got + i)), "garbled at {got}");
            got += piece.len();
        }
        pair.log.clear();
        let until = pair.clock.now() + Duration::from_micros(500);
        pair.run(until);
        assert!(pair.clock.now().since(begun) < Duration::from_secs(20), "{got} bytes only");
    }
    // 256 KiB in flight at most would take 12 MiB / 256 KiB = 48 round trips of 40 ms, 1.9 s.
    let took = pair.clock.now().since(begun);
    assert!(took < Duration::from_millis(900), "{took:?}");
    let held = pools(&pair);
    assert!(held.iter().all(|bytes| (1 << 20..64 << 20).contains(bytes)), "{held:?}");

    // Idle for some seconds: the pages go back, and the stream goes on where it was.
    for _ in 0..20 {
        let until = pair.after(200);
        pair.run(until);
        // An engine's thread turns for its signs of life, too.
        pair.hosts.iter().for_each(|host| assert!(host.turn().is_idle()));
    }
    let emptied =
        |pair: &Pair| [0, 1].map(|host: usize| lock(&pair.hosts[host].shards[0]).report().apps.buffers_emptied);
    assert_eq!(emptied(&pair), [1, 1]);
    assert_eq!(pools(&pair), held, "addresses stay");
    let piece: Vec<u8> = (0..60_000).map(byte).collect();
    assert_eq!(send(&client, socket, &piece), Ok(60_000));
    let until = pair.after(300);
    pair.run(until);
    assert_eq!(receive(&server, accepted).unwrap(), piece);
    let total = total + 60_000;

    // What getsockopt(TCP_INFO) gives: through the engine, as it is now.
    let info = client.tcp_info(socket).unwrap();
    let word = |at: usize| u32::from_ne_bytes(*info[at..].first_chunk().unwrap());
    assert_eq!((info[0], word(144)), (1, 0), "established, nothing waits");
    assert!((39_000..60_000).contains(&word(68)), "round trip {} µs", word(68));
    let acked = u64::from_ne_bytes(*info[120..].first_chunk().unwrap());
    assert!((1..=total as u64).contains(&acked), "{acked}");
    let ends = [server.tcp_info(accepted).unwrap(), server.tcp_info(listener).unwrap()];
    assert_eq!((ends[0][0], ends[1][0]), (1, 10));
    assert!(u64::from_ne_bytes(*ends[0][128..].first_chunk().unwrap()) == total as u64);

    client.close(socket);
    server.close(accepted);
    let until = pair.after(500);
    pair.run(until);
    assert_eq!(pools(&pair), [0, 0], "everything came back");
    assert_eq!(client.tcp_info(socket).unwrap()[0], 7);
}

/// The pool is a limit: who comes too late keeps the first buffer, and is counted.
#[test]
fn a_pool_that_is_used_up_refuses_and_counts() {
    let clock = VirtualClock::default();
    let host = |address: &str, pool| {
        let mut config = LocalConfig::new(address.parse().unwrap());
        config.geometry.pool_bytes = pool;
        LocalHost::in_memory(&config, clock.clone()).unwrap()
    };
    let hosts = [host("10.0.0.1/24", 1 << 30), host("10.0.0.2/24", 1 << 19)];
    let mut pair = Pair { clock, hosts, wire: Vec::new(), log: Vec::new(), delay: Duration::from_millis(10) };
    let [client, server] = [pair.hosts[0].attach(0).unwrap(), pair.hosts[1].attach(0).unwrap()];
    let listener = server.open(kind::TCP4).unwrap();
    server.bind(listener, "10.0.0.2:80".parse().unwrap(), 0).unwrap();
    server.listen(listener, 16).unwrap();
    let sockets: Vec<u32> = (0..3).map(|_| client.open(kind::TCP4).unwrap()).collect();
    for socket in &sockets {
        client.connect(*socket, "10.0.0.2:80".parse().unwrap()).unwrap();
    }
    let until = pair.after(100);
    pair.run(until);
    let accepted: Vec<u32> = (0..3).map(|_| server.accept(listener).unwrap().0).collect();
    let mut got = 0;
    while got < 9 << 20 {
        for socket in &sockets {
            let _ = send(&client, *socket, &[7; 200_000]);
        }
        for socket in &accepted {
            while let Ok(piece) = receive(&server, *socket) {
                got += piece.len();
            }
        }
        pair.log.clear();
        let until = pair.clock.now() + Duration::from_millis(1);
        pair.run(until);
        assert!(pair.clock.now() < Instant::from_millis(20_000), "{got} bytes only");
    }
    let shard = lock(&pair.hosts[1].shards[0]).report();
    assert_eq!(shard.buffer_bytes, 1 << 19);
    assert!(shard.apps.buffers_refused > 0 && shard.apps.buffers_grown > 0);
}

/// socket.create_server(), one accept(), and out of its `with`: as Python's ftplib tests do for each transfer.
#[test]
fn what_an_accepted_connection_wrote_survives_the_listener() {
    for shards in [1, 3] {
        let mut pair = Pair::new(11, shards);
        let [client, server] = [pair.hosts[0].attach(0).unwrap(), pair.hosts[1].attach(0).unwrap()];
        let listener = server.open(kind::TCP4).unwrap();
        server.bind(listener, "10.0.0.2:80".parse().unwrap(), 0).unwrap();
        server.listen(listener, 16).unwrap();
        let sockets = [(); 2].map(|()| client.open(kind::TCP4).unwrap());
        for socket in sockets {
            client.connect(socket, "10.0.0.2:80".parse().unwrap()).unwrap();
        }
        let until = pair.after(10);
        pair.run(until);
        let (accepted, from) = server.accept(listener).unwrap();
        server.close(listener);
        // A shard has seen that nobody holds the listener; before it hears back from the books, the rest happens.
        for shard in pair.hosts[1].shards.iter() {
            lock(shard).turn();
        }
        assert_eq!(send(&server, accepted, b"answer"), Ok(6));
        server.close(accepted);
        pair.hosts[1].take_notices();
        let until = pair.after(10);
        pair.run(until);
        for socket in sockets {
            if client.local_address(socket) == Some(from) {
                assert_eq!(receive(&client, socket).unwrap(), b"answer");
                assert_eq!(receive(&client, socket).unwrap(), b"");
            } else {
                assert_eq!(receive(&client, socket), Err(Errno::CONNRESET), "nobody accepted this one");
            }
        }
    }
}

/// sendto() says that the datagram is sent; what the program does then is its own affair.
#[test]
fn datagrams_are_sent_although_their_socket_is_closed_at_once() {
    let mut pair = Pair::new(13, 2);
    let [client, server] = [pair.hosts[0].attach(0).unwrap(), pair.hosts[1].attach(0).unwrap()];
    let receiver = server.open(kind::UDP4).unwrap();
    server.bind(receiver, "10.0.0.2:53".parse().unwrap(), 0).unwrap();
    for round in 0..3u8 {
        let sender = client.open(kind::UDP4).unwrap();
        client.bind(sender, "10.0.0.1:0".parse().unwrap(), 0).unwrap();
        let to = Some("10.0.0.2:53".parse().unwrap());
        for piece in [b"one", b"two"] {
            client.send_datagram(sender, &[IoSlice::new(piece)], to, &DatagramOptions::default()).unwrap();
        }
        client.close(sender);
        let until = pair.after(10);
        pair.run(until);
        for piece in [b"one", b"two"] {
            let mut buffer = [0; 16];
            let got = server.receive_datagram(receiver, &mut [IoSliceMut::new(&mut buffer)], false).unwrap();
            assert_eq!(&buffer[..3], piece, "round {round}: {got:?}");
        }
    }
    assert!(!pair.hosts[0].sockets().contains("udp"), "their slots are free again: {}", pair.hosts[0].sockets());
}

/// As over the kernel's sockets: a RST comes after what send() took before it.
#[test]
fn a_reset_does_not_overtake_what_was_sent() {
    let mut pair = Pair::new(17, 1);
    let [client, server] = [pair.hosts[0].attach(0).unwrap(), pair.hosts[1].attach(0).unwrap()];
    let listener = server.open(kind::TCP4).unwrap();
    server.bind(listener, "10.0.0.2:80".parse().unwrap(), 0).unwrap();
    server.listen(listener, 16).unwrap();
    let socket = client.open(kind::TCP4).unwrap();
    client.connect(socket, "10.0.0.2:80".parse().unwrap()).unwrap();
    let until = pair.after(10);
    pair.run(until);
    let (accepted, _) = server.accept(listener).unwrap();
    // Seconds + 1.
    client.set_number(socket, Number::Linger, 1).unwrap();
    assert_eq!(send(&client, socket, b"last words"), Ok(10));
    client.close(socket);
    let until = pair.after(10);
    pair.run(until);
    assert_eq!(receive(&server, accepted).unwrap(), b"last words");
    assert_eq!(receive(&server, accepted), Err(Errno::CONNRESET));
}

/// Buffers of a few kilobytes, as set by programs that want to see them full, over a loopback whose segments are longer
/// than they are: whatever the sizes of writes and reads, the stream goes on.
#[test]
fn small_buffers_never_stand_still() {
    for seed in 0..200u64 {
        let clock = VirtualClock::default();
        let mut config = LocalConfig::new("10.0.0.1/24".parse().unwrap()).seeded(seed);
        config.loopback = true;
        let host = LocalHost::in_memory(&config, clock.clone()).unwrap();
        let session = host.attach(0).unwrap();
        let run = |nanos: u64| {
            let end = clock.now() + Duration::from_nanos(nanos);
            host.settle();
            while let Some(at) = host.wake_at().filter(|&at| at <= end) {
                clock.set(at.max(clock.now()));
                host.settle();
            }
            clock.set(end);
        };
        let listener = session.open(kind::TCP4).unwrap();
        session.bind(listener, "127.0.0.1:80".parse().unwrap(), 0).unwrap();
        let inherited = seed % 2 == 0;
        if inherited {
            session.set_number(listener, Number::ReceiveBuffer, 8192).unwrap();
        }
        session.listen(listener, 16).unwrap();
        let socket = session.open(kind::TCP4).unwrap();
        session.connect(socket, "127.0.0.1:80".parse().unwrap()).unwrap();
        run(1_000_000);
        let (accepted, _) = session.accept(listener).unwrap();
        session.set_number(socket, Number::SendBuffer, 8192).unwrap();
        if !inherited {
            session.set_number(accepted, Number::ReceiveBuffer, 8192).unwrap();
        }
        session.set_option(socket, option::NO_DELAY, true).unwrap();
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut random = |below: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % below
        };
        let total = 100_000usize;
        let (mut sent, mut got, mut progress) = (0usize, 0usize, clock.now());
        let mut buffer = vec![0; 65_536];
        while got < total {
            let piece = vec![7u8; (1 + random(16_384) as usize).min(total - sent)];
            sent += send(&session, socket, &piece).unwrap_or(0);
            run(random(100_000));
            let room = 1 + random(20_000) as usize;
            if random(3) > 0
                && let Ok(n) = session.receive(accepted, &mut [IoSliceMut::new(&mut buffer[..room])], false)
            {
                got += n;
                progress = clock.now();
            }
            let still = clock.now().since(progress);
            assert!(
                still < Duration::from_millis(if inherited { 150 } else { 3000 }),
                "seed {seed}: {sent} sent, {got} received; {:?} {:?}",
                host.tcp_info(&session, socket),
                host.tcp_info(&session, accepted)
            );
            if sent == total {
                run(10_000_000);
            }
        }
    }
}
