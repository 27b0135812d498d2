use core::sync::atomic::Ordering;
use std::io::{IoSlice, IoSliceMut, Read, Write};

use rustix::io::Errno;
use sidestep_shm::datagram::Header;
use sidestep_shm::slot::{kind, option, status};

use crate::Session;
use crate::address::to_wire;
use crate::borrow::Borrowed;
use crate::fake::{Fake, GEOMETRY};
use crate::net::{Client, Socket, TcpStream, UdpSocket};

fn connected() -> (Fake, Session, u32) {
    let engine = Fake::start();
    let session = Session::attach(&engine.name, 0).unwrap();
    let slot = session.open(kind::TCP4).unwrap();
    session.connect(slot, "192.0.2.1:80".parse().unwrap()).unwrap();
    engine.establish(slot);
    (0..GEOMETRY.shards).for_each(|s| drop(engine.commands(s)));
    (engine, session, slot)
}

fn bytes(piece: &Borrowed) -> Vec<u8> {
    // SAFETY: the tests use it before they give it back.
    unsafe { piece.slices() }.concat()
}

fn read(session: &Session, slot: u32) -> Result<Vec<u8>, Errno> {
    let mut buffer = vec![0; 20_000];
    let n = session.receive(slot, &mut [IoSliceMut::new(&mut buffer)], false)?;
    buffer.truncate(n);
    Ok(buffer)
}

#[test]
fn what_is_borrowed_stays_until_it_is_said_to_be_read() {
    let (engine, session, slot) = connected();
    assert_eq!(session.borrow_received(slot).unwrap_err(), Errno::AGAIN);
    engine.deliver(slot, b"good day");
    let (piece, header) = session.borrow_received(slot).unwrap();
    assert_eq!((bytes(&piece), header), (b"good day".to_vec(), None));
    // The direction is taken, the other one and a look at it are not; more may come meanwhile.
    assert_eq!(session.borrow_received(slot).unwrap_err(), Errno::BUSY);
    assert_eq!(read(&session, slot), Err(Errno::BUSY));
    engine.deliver(slot, b", world");
    assert_eq!(session.queued_in(slot), 15);
    assert_eq!(session.send(slot, &[IoSlice::new(b"hi")], false), Ok(2));
    assert_eq!(bytes(&piece), b"good day");
    assert_eq!(session.return_received(slot, &piece, 9), Err(Errno::INVAL), "more than was lent");
    session.return_received(slot, &piece, 5).unwrap();
    assert_eq!(session.return_received(slot, &piece, 1), Err(Errno::INVAL), "given back already");
    assert_eq!(read(&session, slot).unwrap(), b"day, world");
    engine.deliver(slot, b"last");
    engine.add_status(slot, status::PEER_FINISHED);
    let (piece, _) = session.borrow_received(slot).unwrap();
    session.return_received(slot, &piece, 4).unwrap();
    let (end, _) = session.borrow_received(slot).unwrap();
    assert!(end.is_empty());
    session.return_received(slot, &end, 0).unwrap();
}

#[test]
fn what_came_before_an_error_is_lent_before_it() {
    let (engine, session, slot) = connected();
    engine.deliver(slot, b"last words");
    engine.fail(slot, Errno::CONNRESET);
    let (piece, _) = session.borrow_received(slot).unwrap();
    assert_eq!(bytes(&piece), b"last words");
    session.return_received(slot, &piece, 10).unwrap();
    assert_eq!(session.borrow_received(slot).unwrap_err(), Errno::CONNRESET);
    assert!(session.borrow_received(slot).unwrap().0.is_empty());
}

#[test]
fn reading_in_place_tells_the_engine_as_often_as_copying_does() {
    let (engine, session, slot) = connected();
    let told = |borrowed: bool| {
        let mut told = 0;
        for _ in 0..64 {
            engine.deliver(slot, &[7; 1000]);
            if borrowed {
                let (piece, _) = session.borrow_received(slot).unwrap();
                session.return_received(slot, &piece, piece.len()).unwrap();
                if session.queued_in(slot) > 0 {
                    read(&session, slot).unwrap();
                }
            } else {
                assert_eq!(read(&session, slot).unwrap().len(), 1000);
            }
            told += (0..GEOMETRY.shards).map(|s| engine.commands(s).len()).sum::<usize>();
        }
        told
    };
    let copying = told(false);
    assert!(copying > 8, "{copying}");
    assert_eq!(told(true), copying);
}

#[test]
fn both_ways_go_over_the_ends_of_the_rings() {
    let (engine, session, slot) = connected();
    let mut sent = Vec::new();
    let mut heard = Vec::new();
    for round in 0..200u32 {
        let data: Vec<u8> = (0..700 + round).map(|i| (i * 31 + round) as u8).collect();
        engine.deliver(slot, &data);
        // From where it was received to where it will be sent from.
        let (piece, _) = session.borrow_received(slot).unwrap();
        let used = piece.len() - round as usize % 3;
        let room = session.borrow_room(slot, used).unwrap();
        assert_eq!(room.len(), used);
        let mut from = bytes(&piece).into_iter();
        // SAFETY: used before the room is given back.
        for part in unsafe { room.slices_mut() } {
            part.iter_mut().for_each(|b| *b = from.next().unwrap());
        }
        assert_eq!(engine.sent(slot), b"", "nothing before it is said");
        session.commit_room(slot, &room, used, false).unwrap();
        session.return_received(slot, &piece, used).unwrap();
        heard.extend(engine.sent(slot));
        sent.extend(data);
    }
    assert_eq!(heard, sent[..heard.len()]);
    assert!(heard.len() > 8 * GEOMETRY.rx_bytes as usize);
}

#[test]
fn room_is_limited_held_back_and_refused_as_in_send() {
    let (engine, session, slot) = connected();
    assert_eq!(session.borrow_room(slot, 0).unwrap_err(), Errno::INVAL);
    let all = GEOMETRY.tx_bytes as usize;
    let room = session.borrow_room(slot, usize::MAX).unwrap();
    assert_eq!(room.len(), all);
    assert_eq!(session.send(slot, &[IoSlice::new(b"x")], false), Err(Errno::BUSY));
    assert_eq!(session.commit_room(slot, &room, all + 1, false), Err(Errno::INVAL));
    session.commit_room(slot, &room, 0, false).unwrap();
    assert_eq!(session.commit_room(slot, &room, 0, false), Err(Errno::INVAL));
    let more = || session.option(slot, option::MORE);
    let commit = |n: usize, hold| {
        let room = session.borrow_room(slot, n).unwrap();
        session.commit_room(slot, &room, n, hold).unwrap();
    };
    commit(10, true);
    assert!(more());
    commit(10, false);
    assert!(!more());
    commit(all - 20, true);
    assert!(!more(), "a full buffer waits for nothing");
    assert_eq!(session.borrow_room(slot, 1).unwrap_err(), Errno::AGAIN);
    engine.sent(slot);
    // The connection breaks while the room is lent.
    let room = session.borrow_room(slot, 5).unwrap();
    engine.fail(slot, Errno::CONNRESET);
    assert_eq!(session.commit_room(slot, &room, 5, false), Err(Errno::CONNRESET));
    assert_eq!(session.borrow_room(slot, 5).unwrap_err(), Errno::PIPE);
    assert_eq!(engine.sent(slot), b"");
}

#[test]
fn datagrams_are_lent_one_at_a_time() {
    let engine = Fake::start();
    let client = Client::attach(&engine.name).unwrap();
    let udp = UdpSocket::bind(&client, "192.0.2.2:53".parse().unwrap()).unwrap();
    udp.set_nonblocking(true);
    let slot = AsRef::<Socket>::as_ref(&udp).slot();
    let deliver = |payload: &[u8]| {
        let remote = to_wire("192.0.2.7".parse().unwrap());
        let header = Header { len: payload.len() as u32, remote, remote_port: 99, ..Header::default() };
        let mut record = header.encode().to_vec();
        record.extend_from_slice(payload);
        record.resize(Header::record_bytes(payload.len()) as usize, 0);
        engine.deliver(slot, &record);
    };
    assert_eq!(udp.peek_slices().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    for round in 0..40usize {
        deliver(&[]);
        deliver(&vec![round as u8; 1000 + round]);
        let (nothing, from) = udp.peek_slices().unwrap();
        assert_eq!((nothing.len(), nothing.is_empty(), from), (0, false, Some("192.0.2.7:99".parse().unwrap())));
        assert_eq!(udp.recv(&mut [0; 9]).unwrap_err().kind(), std::io::ErrorKind::ResourceBusy);
        nothing.consume(0).unwrap();
        // Dropped: it comes again.
        drop(udp.peek_slices().unwrap());
        let (datagram, _) = udp.peek_slices().unwrap();
        assert_eq!(datagram.slices().concat(), vec![round as u8; 1000 + round]);
        datagram.consume(3).unwrap();
        assert_eq!(udp.peek_slices().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    }
    let stream_only = client.session().borrow_room(slot, 5).unwrap_err();
    assert_eq!(stream_only, Errno::OPNOTSUPP);
}

fn stream(engine: &Fake, client: &Client) -> (TcpStream, u32) {
    std::thread::scope(|scope| {
        let connecting = scope.spawn(|| TcpStream::connect(client, "192.0.2.1:9".parse().unwrap()).unwrap());
        loop {
            if let Some(slot) = (0..GEOMETRY.shards).flat_map(|s| engine.commands(s)).next() {
                engine.establish(slot);
                return (connecting.join().unwrap(), slot);
            }
            std::thread::yield_now();
        }
    })
}

#[test]
fn guards_give_back_what_they_lent() {
    let engine = Fake::start();
    let client = Client::attach(&engine.name).unwrap();
    let (stream, slot) = stream(&engine, &client);
    engine.deliver(slot, b"hello");
    drop(stream.peek_slices().unwrap());
    let lent = stream.peek_slices().unwrap();
    assert_eq!(lent.slices().concat(), b"hello");
    assert_eq!((&stream).read(&mut [0; 9]).unwrap_err().kind(), std::io::ErrorKind::ResourceBusy);
    assert_eq!(lent.consume(6).unwrap_err().raw_os_error(), Some(Errno::INVAL.raw_os_error()));
    stream.peek_slices().unwrap().consume(2).unwrap();
    let mut rest = [0; 9];
    assert_eq!((&stream).read(&mut rest).unwrap(), 3);
    assert_eq!(&rest[..3], b"llo");

    drop(stream.reserve(5).unwrap());
    let mut room = stream.reserve(5).unwrap();
    assert_eq!((room.write(b"go").unwrap(), room.write(b"od day").unwrap(), room.len()), (2, 3, 5));
    assert_eq!((room.written(), room.write(b"!").unwrap()), (5, 0));
    assert_eq!((&stream).write(b"x").unwrap_err().kind(), std::io::ErrorKind::ResourceBusy);
    room.commit(4).unwrap();
    assert_eq!(engine.sent(slot), b"good");
    // Over the ring's end, in small steps.
    for round in 0..40u32 {
        let data: Vec<u8> = (0..3_000).map(|i| (i + round) as u8).collect();
        let mut room = stream.reserve(data.len()).unwrap();
        data.chunks(701).for_each(|chunk| room.write_all(chunk).unwrap());
        room.commit(3_000).unwrap();
        assert_eq!(engine.sent(slot), data);
    }
    // A guard that is leaked leaves the direction lent, and nothing else.
    engine.deliver(slot, b"leaked");
    core::mem::forget(stream.peek_slices().unwrap());
    assert_eq!((&stream).read(&mut [0; 9]).unwrap_err().kind(), std::io::ErrorKind::ResourceBusy);
    (&stream).write_all(b"still").unwrap();
    assert_eq!(engine.sent(slot), b"still");
    drop(stream);
    assert!(!engine.slot(slot).is_held());
}

/// Threads that read one stream in turns, some in place and some not, get every byte once.
#[test]
fn threads_that_share_a_stream_never_see_a_byte_twice() {
    const TOTAL: usize = 400_000;
    let engine = Fake::start();
    let client = Client::attach(&engine.name).unwrap();
    let (stream, slot) = stream(&engine, &client);
    let sum = std::thread::scope(|scope| {
        let readers: Vec<_> = (0..3)
            .map(|n| {
                let stream = &stream;
                scope.spawn(move || {
                    let (mut sum, mut count) = (0u64, 0usize);
                    let mut add = |b: &[u8]| {
                        sum += b.iter().map(|&b| u64::from(b)).sum::<u64>();
                        count += b.len();
                    };
                    loop {
                        let outcome = if n == 0 {
                            let mut buffer = [0; 777];
                            let mut stream = stream;
                            stream.read(&mut buffer).map(|n| {
                                add(&buffer[..n]);
                                n > 0
                            })
                        } else {
                            stream.peek_slices().and_then(|lent| {
                                let all = lent.slices().concat();
                                let used = all.len().div_ceil(2);
                                let more = !lent.is_empty();
                                lent.consume(used)?;
                                add(&all[..used]);
                                Ok(more)
                            })
                        };
                        match outcome {
                            Ok(true) => {}
                            Ok(false) => return (sum, count),
                            Err(e) if e.kind() == std::io::ErrorKind::ResourceBusy => std::thread::yield_now(),
                            Err(e) => panic!("{e}"),
                        }
                    }
                })
            })
            .collect();
        let mut sent = 0u64;
        let mut at = 0;
        while at < TOTAL {
            let shared = engine.slot(slot);
            let used = shared.rx_tail.load(Ordering::SeqCst) - shared.rx_head.load(Ordering::Acquire);
            if used as usize + 1000 > GEOMETRY.rx_bytes as usize {
                std::thread::yield_now();
                continue;
            }
            let data: Vec<u8> = (at..at + 1000).map(|i| (i % 251) as u8).collect();
            sent += data.iter().map(|&b| u64::from(b)).sum::<u64>();
            engine.deliver(slot, &data);
            at += 1000;
        }
        engine.add_status(slot, status::PEER_FINISHED);
        let got = readers.into_iter().map(|r| r.join().unwrap()).fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1));
        assert_eq!(got.1, TOTAL);
        (got.0, sent)
    });
    assert_eq!(sum.0, sum.1);
}

#[test]
fn the_c_api_lends_too() {
    use crate::capi::*;
    use core::ptr::{from_mut, null_mut};
    let engine = Fake::start();
    let name = std::ffi::CString::new(engine.name.clone()).unwrap();
    let mut at = [0u8; 16];
    at[..2].copy_from_slice(&2u16.to_ne_bytes());
    at[3] = 80;
    at[4..8].copy_from_slice(&[192, 0, 2, 2]);
    let nowhere = || libc::iovec { iov_base: null_mut(), iov_len: 0 };
    let mut pieces = [nowhere(), nowhere()];
    // SAFETY: handles as given and not closed twice; buffers with their lengths.
    unsafe {
        let attached = ss_attach(name.as_ptr());
        let listener = ss_socket(attached, 2, 1);
        assert_eq!((ss_bind(listener, from_mut(&mut at).cast(), 16), ss_listen(listener, 5)), (0, 0));
        let slot = engine.push_connection(0, 0, 0);
        let sock = ss_accept(listener, null_mut(), null_mut());
        let zc = |pieces: &mut [libc::iovec; 2]| ss_recv_zc(sock, pieces.as_mut_ptr(), 0x40, null_mut(), null_mut());
        assert_eq!((zc(&mut pieces), ss_errno()), (-1, Errno::AGAIN.raw_os_error()));
        engine.deliver(slot, b"hello");
        assert_eq!((zc(&mut pieces), pieces[0].iov_len, pieces[1].iov_len), (5, 5, 0));
        assert_eq!(core::slice::from_raw_parts(pieces[0].iov_base.cast::<u8>(), 5), b"hello");
        assert_eq!((zc(&mut pieces), ss_errno()), (-1, Errno::BUSY.raw_os_error()));
        assert_eq!((ss_recv_done(sock, 6), ss_errno()), (-1, Errno::INVAL.raw_os_error()));
        assert_eq!((ss_recv_done(sock, 3), ss_recv_done(sock, 1), ss_recv_done(sock, 0)), (0, -1, 0));
        assert_eq!((zc(&mut pieces), ss_recv_done(sock, 2)), (2, 0));
        assert_eq!(ss_send_reserve(sock, 7, pieces.as_mut_ptr(), 0), 7);
        core::ptr::copy_nonoverlapping(b"answer!".as_ptr(), pieces[0].iov_base.cast(), 7);
        assert_eq!((ss_send_commit(sock, 8, 0), ss_send_commit(sock, 6, 0), ss_send_commit(sock, 1, 0)), (-1, 0, -1));
        assert_eq!(engine.sent(slot), b"answer");
        // Closed with both directions lent: other holders could go on.
        engine.deliver(slot, b"more");
        assert_eq!((zc(&mut pieces), ss_send_reserve(sock, 7, pieces.as_mut_ptr(), 0)), (4, 7));
        let locks = || [&engine.slot(slot).rx_lock, &engine.slot(slot).tx_lock].map(|l| l.load(Ordering::SeqCst));
        assert!(locks().iter().all(|l| *l != 0));
        ss_close(sock);
        assert_eq!(locks(), [0, 0]);
        ss_close(listener);
        ss_detach(attached);
    }
}
