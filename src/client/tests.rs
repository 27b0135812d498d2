//! The verbs against a small engine in the same process.
#![allow(clippy::disallowed_methods, reason = "tests wait for real threads and programs")]

use core::net::SocketAddr;
use core::sync::atomic::Ordering;
use core::time::Duration;
use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::os::fd::AsFd;
use std::time::Instant;

use rustix::io::Errno;
use sidestep_shm::datagram::{HEADER_BYTES, Header};
use sidestep_shm::slot::{kind, option, request, status};

use crate::address::to_wire;
use crate::fake::{Fake, GEOMETRY};
use crate::net::{Client, PollEntry, TcpListener, TcpStream, UdpSocket};
use crate::readiness::{POLLERR, POLLHUP, POLLIN, POLLOUT, POLLRDHUP, POLLRDNORM, POLLWRNORM};
use crate::sys::{Deadline, Fd};
use crate::{AttachError, DatagramOptions, Session, Waiter, wait};

const IN: u32 = POLLIN | POLLRDNORM;
const OUT: u32 = POLLOUT | POLLWRNORM;

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn attached() -> (Fake, Session) {
    let engine = Fake::start();
    let session = Session::attach(&engine.name, 0).unwrap();
    (engine, session)
}

/// An established connection of the program's own.
fn connected(engine: &Fake, session: &Session) -> u32 {
    let slot = session.open(kind::TCP4).unwrap();
    session.connect(slot, address("192.0.2.1:80")).unwrap();
    engine.establish(slot);
    (0..GEOMETRY.shards).for_each(|s| drop(engine.commands(s)));
    slot
}

fn read(session: &Session, slot: u32, most: usize) -> Result<Vec<u8>, Errno> {
    let mut buf = vec![0; most];
    let n = session.receive(slot, &mut [IoSliceMut::new(&mut buf)], false)?;
    buf.truncate(n);
    Ok(buf)
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(20), "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn attaching_says_what_is_wrong() {
    let nobody = Session::attach("@sidestep-test-nobody-listens-here", 0).unwrap_err();
    assert!(matches!(nobody, AttachError::Connect { cause: Errno::CONNREFUSED, .. }), "{nobody}");
    assert!(nobody.to_string().contains("is it running"));
    let long = Session::attach(&"x".repeat(200), 0).unwrap_err();
    assert!(matches!(long, AttachError::Address { .. }), "{long}");
    let engine = Fake::start();
    let stranger = Session::attach(&engine.name, 77).unwrap_err();
    assert!(matches!(stranger, AttachError::Refused { cause: Errno::ACCESS, .. }), "{stranger}");
}

#[test]
fn a_connection_carries_bytes_both_ways_and_ends() {
    let (engine, session) = attached();
    let slot = session.open(kind::TCP4).unwrap();
    assert!(engine.slot(slot).is_held());
    assert_eq!(session.readiness(slot), OUT | POLLHUP, "as Linux says of a fresh TCP socket");
    assert_eq!(session.receive(slot, &mut [], false), Err(Errno::NOTCONN));
    assert_eq!(session.send(slot, &[IoSlice::new(b"x")], false), Err(Errno::PIPE));
    assert_eq!(session.connect(slot, address("[2001:db8::1]:80")), Err(Errno::AFNOSUPPORT));

    session.connect(slot, address("192.0.2.1:80")).unwrap();
    assert_eq!(session.connect(slot, address("192.0.2.1:80")), Err(Errno::ALREADY));
    let shard = engine.slot(slot).shard.load(Ordering::Relaxed);
    assert_eq!(engine.commands(shard), [slot]);
    assert_eq!((session.readiness(slot), session.connect_outcome(slot)), (0, Ok(false)));
    assert_eq!(session.send(slot, &[IoSlice::new(b"x")], false), Err(Errno::AGAIN));
    engine.establish(slot);
    assert_eq!((session.readiness(slot), session.connect_outcome(slot)), (OUT, Ok(true)));
    assert_eq!(session.connect(slot, address("192.0.2.1:80")), Err(Errno::ISCONN));

    engine.close_door(shard);
    assert_eq!(session.send(slot, &[IoSlice::new(b"he"), IoSlice::new(b"llo")], false), Ok(5));
    assert_eq!((engine.commands(shard), engine.rings(shard)), (vec![slot], 1), "a sleeping shard is rung once");
    assert_eq!(session.queued_out(slot), 5);
    assert_eq!(engine.sent(slot), b"hello");

    assert_eq!(read(&session, slot, 10), Err(Errno::AGAIN));
    engine.deliver(slot, b"good day");
    assert_eq!((session.readiness(slot), session.queued_in(slot)), (IN | OUT, 8));
    let mut first = [0; 4];
    assert_eq!(session.receive(slot, &mut [IoSliceMut::new(&mut first)], true), Ok(4));
    assert_eq!(session.discard(slot, 5), Ok(5));
    assert_eq!(read(&session, slot, 100).unwrap(), b"day");
    engine.deliver(slot, b"bye");
    engine.add_status(slot, status::PEER_FINISHED);
    assert_eq!(session.readiness(slot), IN | OUT | POLLRDHUP);
    assert_eq!(read(&session, slot, 100).unwrap(), b"bye");
    assert_eq!(read(&session, slot, 100).unwrap(), b"");
    engine.slot(slot).error.store(Errno::PIPE.raw_os_error() as u32, Ordering::Release);
    assert_eq!(read(&session, slot, 100).unwrap(), b"", "the stream had ended well");
    assert_eq!(session.take_error(slot), Errno::PIPE.raw_os_error() as u32, "the error is left for SO_ERROR");
    session.shutdown(slot, false, true).unwrap();
    assert_eq!(session.send(slot, &[IoSlice::new(b"x")], false), Err(Errno::PIPE));
    assert_eq!(session.readiness(slot), IN | OUT | POLLRDHUP | POLLHUP);
    engine.commands(shard);
    session.close(slot);
    assert_eq!((engine.commands(shard), engine.slot(slot).is_held()), (vec![slot], false));
}

#[test]
fn a_full_ring_takes_no_more_and_wraps() {
    let (engine, session) = attached();
    let slot = connected(&engine, &session);
    let pattern: Vec<u8> = (0..40_000u32).map(|i| (i * 7) as u8).collect();
    assert_eq!(session.send(slot, &[IoSlice::new(&pattern)], false), Ok(16384));
    assert_eq!(session.send(slot, &[IoSlice::new(b"x")], false), Err(Errno::AGAIN));
    assert_eq!(session.send(slot, &[IoSlice::new(b"")], false), Ok(0));
    assert_eq!(session.readiness(slot), 0);
    assert_eq!(engine.sent(slot), pattern[..16384]);
    assert_eq!(session.send(slot, &[IoSlice::new(&pattern[..10_000])], true), Ok(10_000));
    assert!(session.option(slot, option::MORE));
    assert_eq!(engine.sent(slot), pattern[..10_000]);
    assert_eq!(session.send(slot, &[IoSlice::new(&pattern[..10_000])], false), Ok(10_000), "over the edge");
    assert!(!session.option(slot, option::MORE));
    assert_eq!(engine.sent(slot), pattern[..10_000]);
    // Positions that can't be are cut, not believed.
    engine.slot(slot).rx_tail.store(u64::MAX, Ordering::SeqCst);
    assert_eq!(read(&session, slot, 100_000).unwrap().len(), 16384);
    engine.slot(slot).rx_tail.store(0, Ordering::SeqCst);
    assert_eq!(read(&session, slot, 1), Err(Errno::AGAIN));
    engine.slot(slot).tx_head.store(0, Ordering::SeqCst);
    assert_eq!(session.send(slot, &[IoSlice::new(b"x")], false), Err(Errno::AGAIN));
}

#[test]
fn a_refused_or_broken_connection_gives_its_error_once() {
    let (engine, session) = attached();
    let slot = session.open(kind::TCP6).unwrap();
    session.connect(slot, address("[2001:db8::1]:80")).unwrap();
    engine.fail(slot, Errno::CONNREFUSED);
    assert_eq!(session.readiness(slot), IN | OUT | POLLERR | POLLHUP | POLLRDHUP);
    assert_eq!(session.connect_outcome(slot), Err(Errno::CONNREFUSED));
    assert_eq!(session.connect_outcome(slot), Err(Errno::CONNABORTED));
    let slot = connected(&engine, &session);
    engine.deliver(slot, b"last words");
    engine.fail(slot, Errno::CONNRESET);
    assert_eq!(read(&session, slot, 100).unwrap(), b"last words", "what came before the reset is read first");
    assert_eq!(read(&session, slot, 100), Err(Errno::CONNRESET));
    assert_eq!(read(&session, slot, 100).unwrap(), b"");
    assert_eq!(session.send(slot, &[IoSlice::new(b"x")], false), Err(Errno::PIPE));
    assert_eq!(session.remote_address(slot), None);
}

#[test]
fn connections_of_both_shards_are_accepted() {
    let (engine, session) = attached();
    let listener = session.open(kind::TCP4).unwrap();
    assert_eq!(session.accept(listener), Err(Errno::INVAL));
    assert_eq!(session.bind(listener, address("192.0.2.2:22"), 0), Err(Errno::ADDRINUSE));
    assert_eq!(session.bind(listener, address("[::]:80"), 0), Err(Errno::AFNOSUPPORT));
    assert_eq!(session.bind(listener, address("192.0.2.2:80"), 0), Ok(address("192.0.2.2:80")));
    assert_eq!(session.bind(listener, address("192.0.2.2:81"), 0), Err(Errno::INVAL));
    assert_eq!(session.listen(listener, 10), Ok(address("192.0.2.2:80")));
    assert_eq!(session.local_address(listener), Some(address("192.0.2.2:80")));
    assert_eq!((session.readiness(listener), session.accept(listener)), (0, Err(Errno::AGAIN)));
    let mut waiting: Vec<u32> = (0..3).map(|i| engine.push_connection(listener, 0, i)).collect();
    waiting.extend((0..3).map(|i| engine.push_connection(listener, 1, i)));
    assert_eq!(session.readiness(listener), IN);
    let mut got = Vec::new();
    while let Ok((slot, remote)) = session.accept(listener) {
        assert_eq!(remote, SocketAddr::new("192.0.2.9".parse().unwrap(), 5000 + slot as u16));
        assert!(session.region().slot(slot).unwrap().is_held());
        got.push(slot);
    }
    assert_ne!(got[0] / 64, got[1] / 64, "shards take turns");
    got.sort_unstable();
    waiting.sort_unstable();
    assert_eq!(got, waiting);
}

#[test]
fn unbound_sockets_are_bound_when_they_must_be() {
    let (_engine, session) = attached();
    let listener = session.open(kind::TCP6).unwrap();
    assert_eq!(session.listen(listener, 1).unwrap().ip(), "::".parse::<core::net::IpAddr>().unwrap());
    let udp = session.open(kind::UDP4).unwrap();
    assert_eq!(session.local_address(udp), Some(address("0.0.0.0:0")));
    session.connect(udp, address("192.0.2.1:53")).unwrap();
    assert_ne!(session.local_address(udp).unwrap().port(), 0);
    assert_eq!(session.remote_address(udp), Some(address("192.0.2.1:53")));
    assert_eq!(session.listen(udp, 1), Err(Errno::OPNOTSUPP));
}

#[test]
fn datagrams_keep_their_borders_over_the_wrap() {
    let (engine, session) = attached();
    let slot = session.open(kind::UDP4).unwrap();
    let plain = DatagramOptions::default();
    assert_eq!(session.send_datagram(slot, &[], None, &plain), Err(Errno::DESTADDRREQ));
    let server = address("192.0.2.1:53");
    let to = Some(server);
    let long = vec![0; 66_000];
    assert_eq!(session.send_datagram(slot, &[IoSlice::new(&long)], to, &plain), Err(Errno::MSGSIZE));
    let everyone = Some(address("255.255.255.255:67"));
    assert_eq!(session.send_datagram(slot, &[], everyone, &plain), Err(Errno::ACCESS));
    session.bind(slot, address("192.0.2.2:5353"), 0).unwrap();
    assert_eq!(session.readiness(slot), OUT | crate::readiness::POLLWRBAND);
    for round in 0..50u32 {
        let payload: Vec<u8> = (0..round * 37).map(|i| (i + round) as u8).collect();
        let (a, b) = payload.split_at(payload.len() / 3);
        let sent = session.send_datagram(slot, &[IoSlice::new(a), IoSlice::new(b)], to, &plain);
        assert_eq!(sent, Ok(payload.len()));
        let record = engine.sent(slot);
        let header = Header::decode(record[..HEADER_BYTES].try_into().unwrap()).unwrap();
        assert_eq!(record.len() as u64, Header::record_bytes(payload.len()));
        assert_eq!((header.remote, header.remote_port), (to_wire(server.ip()), 53));
        assert_eq!(record[HEADER_BYTES..][..payload.len()], payload);

        let reply = Header { remote_port: 5000 + round as u16, local: to_wire("192.0.2.2".parse().unwrap()), ..header };
        let mut record = reply.encode().to_vec();
        record.extend(&payload);
        record.resize(Header::record_bytes(payload.len()) as usize, 0);
        engine.deliver(slot, &record);
        assert_eq!(
            (session.readiness(slot), session.queued_in(slot)),
            (IN | OUT | crate::readiness::POLLWRBAND, payload.len())
        );
        let mut buf = [0; 512];
        let peeked = session.receive_datagram(slot, &mut [IoSliceMut::new(&mut buf)], true).unwrap();
        let got = session.receive_datagram(slot, &mut [IoSliceMut::new(&mut buf)], false).unwrap();
        assert_eq!((peeked, got.0, got.1), (got, payload.len().min(512), reply));
        assert_eq!(buf[..got.0], payload[..got.0]);
    }
    let mut buf = [0; 8];
    assert_eq!(session.receive_datagram(slot, &mut [IoSliceMut::new(&mut buf)], false).err(), Some(Errno::AGAIN));
    // A record that can't be loses what is queued and nothing else.
    engine.deliver(slot, &[0xff; 64]);
    assert_eq!(session.receive_datagram(slot, &mut [IoSliceMut::new(&mut buf)], false).err(), Some(Errno::AGAIN));
    assert_eq!(session.queued_in(slot), 0);
    // A full ring.
    let big = vec![1; 8000];
    assert_eq!(session.send_datagram(slot, &[IoSlice::new(&big)], to, &plain), Ok(8000));
    assert_eq!(session.send_datagram(slot, &[IoSlice::new(&big)], to, &plain), Ok(8000));
    assert_eq!(session.send_datagram(slot, &[IoSlice::new(&big)], to, &plain), Err(Errno::AGAIN));
    assert_eq!(session.readiness(slot), 0);
}

#[test]
fn a_sleeper_is_woken_by_the_engine() {
    let (engine, session) = attached();
    let slot = connected(&engine, &session);
    let waiter = Waiter::new(&session).unwrap();
    assert_eq!(wait(&session, &waiter, slot, POLLIN, Some(Deadline::after(Duration::from_millis(5))), true), Ok(0));
    for round in 0..200u32 {
        let woken = std::thread::scope(|scope| {
            scope.spawn(|| {
                // Now while it spins, now while it falls asleep, now while it sleeps.
                std::thread::sleep(Duration::from_micros(u64::from(round % 40) * 10));
                engine.deliver(slot, b"!");
            });
            let start = Instant::now();
            let ready = wait(&session, &waiter, slot, POLLIN, None, false);
            // A lost wake-up would be found by the look every second.
            assert!(start.elapsed() < Duration::from_millis(900), "round {round}");
            ready
        });
        assert_eq!(woken, Ok(POLLIN));
        assert_eq!(read(&session, slot, 10).unwrap(), b"!");
    }
    let queue = waiter.queue();
    waiter.release(&session);
    assert_eq!(session.region().event_queue(queue).unwrap().owner.load(Ordering::SeqCst), 0);
}

#[test]
fn many_threads_sleep_on_one_waiter() {
    let (engine, session) = attached();
    let slots: Vec<u32> = (0..4).map(|_| connected(&engine, &session)).collect();
    let waiter = Waiter::new(&session).unwrap();
    slots.iter().for_each(|&s| waiter.watch(&session, s));
    let received = core::sync::atomic::AtomicU32::new(0);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while received.load(Ordering::SeqCst) < 200 {
                    waiter.harvest(&session, usize::MAX, |slot| {
                        while read(&session, slot, 1).is_ok() {
                            received.fetch_add(1, Ordering::SeqCst);
                        }
                    });
                    if received.load(Ordering::SeqCst) < 200 && waiter.prepare_sleep(&session) {
                        let mut fds =
                            [rustix::event::PollFd::from_borrowed_fd(waiter.fd(), rustix::event::PollFlags::IN)];
                        let _ = rustix::event::poll(&mut fds, Some(&crate::sys::timespec(50_000_000)));
                        waiter.awake(&session);
                    }
                }
            });
        }
        for i in 0..200 {
            engine.deliver(slots[i % 4], b"x");
            if i % 10 == 0 {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    });
    assert_eq!(received.load(Ordering::SeqCst), 200);
}

#[test]
fn the_end_of_the_engine_ends_every_call() {
    let (mut engine, session) = attached();
    let slot = connected(&engine, &session);
    let idle = session.open(kind::UDP4).unwrap();
    let waiter = Waiter::new(&session).unwrap();
    let waited = std::thread::scope(|scope| {
        let sleeper = scope.spawn(|| wait(&session, &waiter, slot, POLLIN, None, false));
        std::thread::sleep(Duration::from_millis(20));
        engine.kill();
        sleeper.join().unwrap()
    });
    assert_eq!(waited, Ok(POLLIN | POLLERR | POLLHUP));
    assert!(!session.is_alive());
    assert_eq!(read(&session, slot, 10), Err(Errno::CONNRESET));
    assert_eq!(read(&session, slot, 10).unwrap(), b"");
    assert_eq!(session.send(slot, &[IoSlice::new(b"x")], false), Err(Errno::PIPE));
    assert_eq!(session.receive_datagram(idle, &mut [], false).err(), Some(Errno::NETDOWN));
    assert_eq!(session.open(kind::TCP4), Err(Errno::NETDOWN));
    assert_eq!(session.bind(idle, address("192.0.2.2:1"), 0), Err(Errno::NETDOWN));
    assert!(session.prepare_fork(&mut core::iter::empty()).is_err());
    assert_ne!(session.readiness(idle) & (POLLERR | POLLHUP), 0);
}

#[test]
fn an_engine_that_falls_silent_is_given_up() {
    let (engine, session) = attached();
    let slot = connected(&engine, &session);
    engine.silent.store(true, Ordering::SeqCst);
    // Two looks: an old heartbeat counts when it has been seen not to move.
    let long_ago = crate::sys::now_ns() - 2 * sidestep_shm::layout::ENGINE_SILENT_NS;
    eventually("silence is noticed", || {
        session.region().header().heartbeat.store(long_ago, Ordering::SeqCst);
        !session.is_alive()
    });
    assert_eq!(read(&session, slot, 10), Err(Errno::CONNRESET));
}

#[test]
fn a_forked_child_holds_what_its_parent_held() {
    let (engine, session) = attached();
    let slots = [session.open(kind::TCP4).unwrap(), session.open(kind::UDP6).unwrap()];
    let parent = session.process();
    // A fork that failed: the engine takes the place back.
    let ticket = session.prepare_fork(&mut slots.into_iter()).unwrap();
    let child = ticket.process();
    let holders = |slot: u32| engine.slot(slot).holders[0].load(Ordering::SeqCst);
    assert_eq!(holders(slots[0]), 1 << parent | 1 << child);
    session.forked_parent(ticket);
    eventually("the place is taken back", || holders(slots[0]) == 1 << parent);
    // A fork that worked, seen from the child. The parent's connection ends with the test's only copy of it.
    let ticket = session.prepare_fork(&mut slots.into_iter()).unwrap();
    let child = ticket.process();
    session.forked_child(ticket).unwrap();
    assert_eq!(session.process(), child);
    assert_eq!(engine.adopted.load(Ordering::SeqCst), std::process::id());
    eventually("the parent's hold ends", || slots.iter().all(|&s| holders(s) == 1 << child));
    session.close(slots[0]);
    assert!(!engine.slot(slots[0]).is_held());
    // The child works on.
    assert!(session.bind(slots[1], address("[::]:53"), 0).is_ok());
    session.forked_without_ticket();
    assert!(!session.is_alive());
}

#[test]
fn a_new_image_takes_over_after_exec() {
    let (engine, session) = attached();
    let kept = session.open(kind::TCP4).unwrap();
    let number = session.prepare_exec(&mut [kept].into_iter()).unwrap();
    // SAFETY: made by prepare_exec for this.
    let control = unsafe { Fd::from_raw(number) };
    assert!(!rustix::io::fcntl_getfd(control.as_fd()).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
    let image = Session::adopt(control, &engine.name).unwrap();
    assert_ne!(image.process(), session.process());
    assert_eq!(image.group(), session.group());
    drop(session);
    let own = 1 << image.process();
    eventually("the old image's hold ends", || engine.slot(kept).holders[0].load(Ordering::SeqCst) == own);
    assert!(rustix::io::fcntl_getfd(image.control()).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
}

#[test]
fn options_reach_the_engine() {
    let (engine, session) = attached();
    let slot = connected(&engine, &session);
    let shard = engine.slot(slot).shard.load(Ordering::SeqCst);
    session.set_option(slot, option::NO_DELAY, true).unwrap();
    session.set_number(slot, crate::Number::KeepIdle, 30).unwrap();
    assert_eq!(engine.commands(shard), [slot]);
    let shared = engine.slot(slot);
    assert_ne!(shared.request.load(Ordering::SeqCst) & request::OPTIONS, 0);
    assert_eq!((shared.options.load(Ordering::SeqCst), shared.keep_idle_s.load(Ordering::SeqCst)), (1, 30));
    assert!(session.kernel_serves("127.3.2.1".parse().unwrap()) && !session.kernel_serves("::1".parse().unwrap()));
}

#[test]
fn std_like_sockets() {
    let engine = Fake::start();
    let client = Client::attach(&engine.name).unwrap();
    let listener = TcpListener::bind(&client, address("192.0.2.2:80")).unwrap();
    listener.set_read_timeout(Some(Duration::from_millis(5)));
    assert_eq!(listener.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    let slot = engine.push_connection(AsRef::<crate::net::Socket>::as_ref(&listener).slot(), 1, 0);
    let (mut stream, peer) = listener.accept().unwrap();
    assert_eq!(stream.peer_addr().unwrap(), peer);
    stream.write_all(b"ping").unwrap();
    assert_eq!(engine.sent(slot), b"ping");
    let mut entries = [PollEntry::new(&stream, POLLIN), PollEntry::new(&listener, POLLIN)];
    assert_eq!(client.poll(&mut entries, Some(Duration::ZERO)).unwrap(), 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(20));
            engine.deliver(slot, b"pong");
        });
        assert_eq!(client.poll(&mut entries, None).unwrap(), 1);
    });
    assert_eq!((entries[0].ready, entries[1].ready), (POLLIN, 0));
    let mut buf = [0; 10];
    assert_eq!(stream.read(&mut buf).unwrap(), 4);
    drop(stream);
    assert!(!engine.slot(slot).is_held());

    let udp = UdpSocket::bind(&client, address("[::]:53")).unwrap();
    assert_eq!(udp.send(b"?").unwrap_err().raw_os_error(), Some(Errno::DESTADDRREQ.raw_os_error()));
    assert_eq!(udp.send_to(b"?", address("[2001:db8::1]:53")).unwrap(), 1);
    let outcome = std::thread::scope(|scope| {
        let connecting = scope.spawn(|| TcpStream::connect(&client, address("192.0.2.1:9")));
        eventually("connect asks", || {
            let asked = (0..GEOMETRY.shards).flat_map(|s| engine.commands(s)).collect::<Vec<_>>();
            let asks = |&s: &u32| engine.slot(s).request.load(Ordering::SeqCst) & request::CONNECT != 0;
            asked.into_iter().filter(asks).map(|s| engine.fail(s, Errno::CONNREFUSED)).count() > 0
        });
        connecting.join().unwrap()
    });
    assert_eq!(outcome.unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
}

#[test]
fn the_c_api_does_what_the_rust_api_does() {
    use crate::capi::*;
    use core::ptr::{from_mut, from_ref, null_mut};
    let engine = Fake::start();
    let name = std::ffi::CString::new(engine.name.clone()).unwrap();
    // struct sockaddr_in of 192.0.2.2, ports 80 and 9.
    let mut at = [0u8; 16];
    at[..2].copy_from_slice(&2u16.to_ne_bytes());
    at[3] = 80;
    at[4..8].copy_from_slice(&[192, 0, 2, 2]);
    // SAFETY: handles as given and not closed twice; buffers with their lengths.
    unsafe {
        let attached = ss_attach(name.as_ptr());
        assert!(!attached.is_null());
        assert!(ss_socket(attached, 1, 1).is_null());
        assert_eq!(ss_errno(), Errno::AFNOSUPPORT.raw_os_error());
        let listener = ss_socket(attached, 2, 1);
        assert_eq!(ss_bind(listener, from_ref(&at).cast(), 8), -1, "an address cut short");
        assert_eq!((ss_bind(listener, from_ref(&at).cast(), 16), ss_listen(listener, 5)), (0, 0));
        let (mut name_is, mut len) = ([0u8; 28], 28u32);
        assert_eq!(ss_getsockname(listener, from_mut(&mut name_is).cast(), &raw mut len), 0);
        assert_eq!((&name_is[..16], len), (&at[..], 16));
        ss_set_nonblocking(listener, 1);
        assert!(ss_accept(listener, null_mut(), null_mut()).is_null());
        assert_eq!(ss_errno(), Errno::AGAIN.raw_os_error());
        let slot = engine.push_connection(0, 0, 0);
        len = 4;
        let sock = ss_accept(listener, from_mut(&mut name_is).cast(), &raw mut len);
        assert!(!sock.is_null());
        assert_eq!(len, 16, "the whole length, though only 4 bytes were written");
        assert_eq!(ss_send(sock, c"hello".as_ptr().cast(), 5, 0x4000), 5);
        assert_eq!(engine.sent(slot), b"hello");
        assert_eq!(ss_send(sock, null_mut(), 5, 0), -1);
        assert_eq!(ss_errno(), Errno::FAULT.raw_os_error());
        let mut buf = [0u8; 8];
        let into = from_mut(&mut buf).cast();
        assert_eq!(ss_recv(sock, into, 8, 0x40), -1);
        engine.deliver(slot, b"world");
        assert_eq!((ss_recv(sock, into, 8, 2), ss_recv(sock, into, 8, 0), &buf[..5]), (5, 5, &b"world"[..]));
        assert_eq!(ss_shutdown(sock, 9), -1);
        assert_eq!((ss_shutdown(sock, 1), ss_send(sock, into, 1, 0)), (0, -1));
        assert_eq!(ss_errno(), Errno::PIPE.raw_os_error());
        let udp = ss_socket(attached, 2, 2);
        assert_eq!(ss_sendto(udp, into, 8, 0, from_ref(&at).cast(), 16), 8);
        ss_close(udp);
        // The attachment outlives its handle while sockets are open.
        ss_detach(attached);
        ss_close(listener);
        assert!(engine.slot(slot).is_held());
        ss_close(sock);
        assert!(!engine.slot(slot).is_held());
    }
}
