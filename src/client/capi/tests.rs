//! The C API against a small engine: what is more than a verb's name.

use core::ptr::{from_mut, null, null_mut};
use std::io::Write;

use rustix::io::Errno;
use sidestep_shm::datagram::Header;
use sidestep_shm::slot::status;

use super::*;
use crate::address::to_wire;
use crate::fake::Fake;

/// struct sockaddr_in of 192.0.2.2.
fn address(port: u16) -> [u8; 16] {
    let mut at = [0u8; 16];
    at[..2].copy_from_slice(&2u16.to_ne_bytes());
    at[2..4].copy_from_slice(&port.to_be_bytes());
    at[4..8].copy_from_slice(&[192, 0, 2, 2]);
    at
}

struct C {
    engine: Fake,
    attached: *mut ss_engine,
    listener: *mut ss_sock,
}

impl C {
    fn new() -> Self {
        let engine = Fake::start();
        let name = std::ffi::CString::new(engine.name.clone()).unwrap();
        let mut at = address(80);
        // SAFETY: good pointers.
        unsafe {
            let attached = ss_attach(name.as_ptr());
            let listener = ss_socket(attached, 2, 1 | libc::SOCK_NONBLOCK);
            assert_eq!((ss_bind(listener, from_mut(&mut at).cast(), 16), ss_listen(listener, 5)), (0, 0));
            Self { engine, attached, listener }
        }
    }

    /// The `n`th connection, and its slot.
    fn connection(&self, n: u64) -> (*mut ss_sock, u32) {
        let slot = self.engine.push_connection(0, 0, n);
        // SAFETY: good pointers.
        let sock = unsafe { ss_accept4(self.listener, null_mut(), null_mut(), libc::SOCK_NONBLOCK) };
        assert!(!sock.is_null());
        (sock, slot)
    }

    fn datagram(&self, sock: *mut ss_sock, payload: &[u8]) {
        // SAFETY: open.
        let slot = unsafe { &*sock }.socket.slot();
        let remote = to_wire("192.0.2.7".parse().unwrap());
        let header = Header { len: payload.len() as u32, remote, remote_port: 99, ..Header::default() };
        let mut record = header.encode().to_vec();
        record.extend_from_slice(payload);
        record.resize(Header::record_bytes(payload.len()) as usize, 0);
        self.engine.deliver(slot, &record);
    }
}

impl Drop for C {
    fn drop(&mut self) {
        // SAFETY: each once.
        unsafe {
            ss_close(self.listener);
            ss_detach(self.attached);
        }
    }
}

fn event(events: i32, data: u64) -> libc::epoll_event {
    libc::epoll_event { events: events as u32, u64: data }
}

#[test]
fn epoll_mixes_sockets_and_descriptors() {
    let c = C::new();
    let (one, slot) = c.connection(0);
    let (two, other) = c.connection(1);
    let (reader, mut writer) = std::io::pipe().unwrap();
    let fd = std::os::fd::AsRawFd::as_raw_fd(&reader);
    let mut out = [event(0, 0); 8];
    // SAFETY: good pointers.
    unsafe {
        let epoll = ss_epoll_create(c.attached);
        let mut wait = |ms: c_int| {
            let n = ss_epoll_wait(epoll, out.as_mut_ptr(), 8, ms);
            let mut found: Vec<_> = out[..n.max(0) as usize].iter().map(|e| ({ e.u64 }, { e.events } as i32)).collect();
            found.sort_unstable();
            found
        };
        assert_eq!((ss_epoll_ctl(epoll, 3, one, &event(libc::EPOLLIN, 1)), ss_errno()), (-1, libc::ENOENT));
        assert_eq!(ss_epoll_ctl(epoll, 1, one, &event(libc::EPOLLIN, 1)), 0);
        assert_eq!((ss_epoll_ctl(epoll, 1, one, &event(libc::EPOLLIN, 1)), ss_errno()), (-1, libc::EEXIST));
        assert_eq!((ss_epoll_ctl(epoll, 1, two, null()), ss_errno()), (-1, libc::EFAULT));
        assert_eq!(ss_epoll_ctl(epoll, 1, two, &event(libc::EPOLLIN | libc::EPOLLET, 2)), 0);
        assert_eq!(ss_epoll_ctl_fd(epoll, 1, fd, &event(libc::EPOLLIN, 3)), 0);
        assert_eq!((ss_epoll_ctl_fd(epoll, 1, -1, &event(1, 3)), ss_errno()), (-1, libc::EBADF));
        assert_eq!(wait(0), []);
        // Each wakes a sleeper.
        std::thread::scope(|scope| {
            scope.spawn(|| c.engine.deliver(slot, b"hello"));
            assert_eq!(wait(-1), [(1, libc::EPOLLIN)]);
        });
        let mut buffer = [0u8; 64];
        assert_eq!(ss_recv(one, from_mut(&mut buffer).cast(), 64, 0), 5);
        std::thread::scope(|scope| {
            scope.spawn(|| writer.write_all(b"x").unwrap());
            assert_eq!(wait(-1), [(3, libc::EPOLLIN)]);
        });
        // Level, edge and the kernel's at once; the edge only once.
        c.engine.deliver(slot, b"a");
        c.engine.deliver(other, b"b");
        let all = [(1, libc::EPOLLIN), (2, libc::EPOLLIN), (3, libc::EPOLLIN)];
        assert_eq!(wait(-1), all);
        assert_eq!(wait(0), [all[0], all[2]]);
        c.engine.deliver(other, b"c");
        assert_eq!(wait(-1), all, "more arrived");
        // A change shows what is there; a socket that is closed is gone.
        assert_eq!(ss_epoll_ctl(epoll, 3, two, &event(libc::EPOLLOUT | libc::EPOLLONESHOT, 9)), 0);
        ss_close(one);
        assert_eq!(wait(0), [(3, libc::EPOLLIN), (9, libc::EPOLLOUT)]);
        assert_eq!(wait(0), [(3, libc::EPOLLIN)]);
        assert_eq!(ss_epoll_ctl_fd(epoll, 2, fd, null()), 0);
        assert_eq!((wait(0), wait(1)), (vec![], vec![]));
        // What this program does to a socket itself is seen, and by a thread that sleeps already.
        assert_eq!(ss_epoll_ctl(epoll, 3, two, &event(libc::EPOLLRDHUP, 5)), 0);
        std::thread::scope(|scope| {
            let two = two as usize;
            scope.spawn(move || assert_eq!(ss_shutdown(two as *mut ss_sock, 0), 0));
            assert_eq!(wait(-1), [(5, libc::EPOLLRDHUP)]);
        });
        // The end of the engine is an event.
        ss_epoll_close(epoll);
        ss_close(two);
    }
}

#[test]
fn an_edge_triggered_writer_hears_of_room_after_it_found_none() {
    let c = C::new();
    let (sock, slot) = c.connection(0);
    let mut out = [event(0, 0); 2];
    let data = vec![1u8; 20_000];
    // SAFETY: good pointers.
    unsafe {
        let epoll = ss_epoll_create(c.attached);
        assert_eq!(ss_epoll_ctl(epoll, 1, sock, &event(libc::EPOLLOUT | libc::EPOLLET, 2)), 0);
        let mut wait = || ss_epoll_wait(epoll, out.as_mut_ptr(), 2, 0);
        assert_eq!((wait(), wait()), (1, 0));
        assert!(ss_send(sock, data.as_ptr().cast(), data.len(), 0) < 20_000);
        assert_eq!(wait(), 0);
        c.engine.sent(slot);
        assert_eq!((wait(), wait()), (1, 0));
        ss_epoll_close(epoll);
        ss_close(sock);
    }
}

#[test]
fn poll_takes_descriptors_along() {
    let c = C::new();
    let (sock, slot) = c.connection(0);
    let (reader, mut writer) = std::io::pipe().unwrap();
    let fd = std::os::fd::AsRawFd::as_raw_fd(&reader);
    let entry = |sock, fd| ss_pollfd { sock, fd, events: 1, revents: 7 };
    let mut entries = [entry(null_mut(), fd), entry(sock, -5), entry(null_mut(), -1)];
    let mut poll = |ms: c_int| {
        // SAFETY: good pointers.
        let n = unsafe { ss_poll(entries.as_mut_ptr(), 3, ms) };
        (n, [0, 1, 2].map(|i| entries[i].revents))
    };
    assert_eq!(poll(0), (0, [0, 0, 0]));
    std::thread::scope(|scope| {
        scope.spawn(|| writer.write_all(b"x").unwrap());
        assert_eq!(poll(-1), (1, [1, 0, 0]));
    });
    c.engine.deliver(slot, b"y");
    assert_eq!(poll(-1), (2, [1, 1, 0]));
    drop(reader);
    assert_eq!(poll(0).1[1], 1);
    // SAFETY: open.
    unsafe { ss_close(sock) };
}

#[test]
fn many_sockets_in_one_call() {
    let c = C::new();
    let connections = [0, 1, 2].map(|n| c.connection(n));
    let shard = 0;
    c.engine.commands(shard);
    c.engine.rings(shard);
    c.engine.close_door(shard);
    let mut text = *b"hello";
    let mut buffers = [[0u8; 8]; 4];
    let io = |sock, buf: *mut u8, len| ss_io { sock, buf: buf.cast(), len, result: 99 };
    // SAFETY: good pointers.
    unsafe {
        let mut out: Vec<_> = connections.iter().map(|c| io(c.0, text.as_mut_ptr(), 5)).collect();
        out.push(io(null_mut(), text.as_mut_ptr(), 5));
        out.push(io(connections[0].0, null_mut(), 5));
        assert_eq!(ss_send_many(out.as_mut_ptr(), out.len()), 3);
        let results: Vec<_> = out.iter().map(|e| e.result as i32).collect();
        assert_eq!(results, [5, 5, 5, -libc::EBADF, -libc::EFAULT]);
        assert_eq!(c.engine.rings(shard), 1, "one ring for all");
        for (_, slot) in &connections {
            assert_eq!(c.engine.sent(*slot), b"hello");
        }
        c.engine.deliver(connections[0].1, b"abc");
        c.engine.add_status(connections[2].1, status::PEER_FINISHED);
        let mut into: Vec<_> = connections.iter().zip(&mut buffers).map(|(c, b)| io(c.0, b.as_mut_ptr(), 8)).collect();
        assert_eq!(ss_recv_many(into.as_mut_ptr(), into.len()), 2);
        assert_eq!(into.iter().map(|e| e.result as i32).collect::<Vec<_>>(), [3, -libc::EAGAIN, 0]);
        assert_eq!(&buffers[0][..3], b"abc");
        assert_eq!((ss_recv_many(null_mut(), 1), ss_errno()), (-1, libc::EFAULT));
        assert_eq!(ss_recv_many(null_mut(), 0), 0);
        connections.iter().for_each(|c| ss_close(c.0));
    }
}

#[test]
fn messages_alone_and_many() {
    let c = C::new();
    let mut to = address(9);
    // SAFETY: good pointers; zeroed headers are valid.
    unsafe {
        let udp = ss_socket(c.attached, 2, 2 | libc::SOCK_NONBLOCK);
        let mut at = address(53);
        assert_eq!(ss_bind(udp, from_mut(&mut at).cast(), 16), 0);
        let mut parts = [*b"ab", *b"cd"];
        let mut pieces: Vec<_> =
            parts.iter_mut().map(|p| libc::iovec { iov_base: p.as_mut_ptr().cast(), iov_len: 2 }).collect();
        let mut one: libc::mmsghdr = core::mem::zeroed();
        one.msg_hdr.msg_name = from_mut(&mut to).cast();
        one.msg_hdr.msg_namelen = 16;
        one.msg_hdr.msg_iov = pieces.as_mut_ptr();
        one.msg_hdr.msg_iovlen = 2;
        let mut many = [one; 3];
        assert_eq!(ss_sendmmsg(udp, many.as_mut_ptr(), 3, 0), 3);
        assert_eq!((many[2].msg_len, ss_sendmsg(udp, &one.msg_hdr, 0)), (4, 4));
        assert_eq!(ss_getsockopt_int(udp, libc::SOL_SOCKET, libc::SO_TYPE), libc::SOCK_DGRAM);
        one.msg_hdr.msg_controllen = 4;
        assert_eq!((ss_sendmsg(udp, &one.msg_hdr, 0), ss_errno()), (-1, libc::EOPNOTSUPP));
        assert_eq!((ss_sendmsg(udp, null(), 0), ss_errno()), (-1, libc::EFAULT));

        many.iter_mut().for_each(|m| m.msg_len = 0);
        assert_eq!((ss_recvmmsg(udp, many.as_mut_ptr(), 3, 0, null()), ss_errno()), (-1, libc::EAGAIN));
        c.datagram(udp, b"wxyz");
        c.datagram(udp, b"truncated");
        assert_eq!(ss_recvmmsg(udp, many.as_mut_ptr(), 3, 0, null()), 2, "as many as there are");
        assert_eq!((many[0].msg_len, many[1].msg_len, many[2].msg_len), (4, 4, 0));
        assert_eq!((many[0].msg_hdr.msg_flags, many[1].msg_hdr.msg_flags), (0, MSG_TRUNC));
        assert_eq!((parts, to[7], u16::from_be_bytes([to[2], to[3]])), ([*b"tr", *b"un"], 7, 99));
        c.datagram(udp, b"once more");
        let mut header = many[0].msg_hdr;
        assert_eq!(ss_recvmsg(udp, &raw mut header, MSG_PEEK | MSG_TRUNC), 9);
        // Blocking, with a limit: one comes, then none.
        assert_eq!(ss_fcntl(udp, libc::F_SETFL, 0), 0);
        let soon = libc::timespec { tv_sec: 0, tv_nsec: 1_000_000 };
        assert_eq!(ss_recvmmsg(udp, many.as_mut_ptr(), 3, 0, &soon), 1);
        assert_eq!((ss_recvmmsg(udp, many.as_mut_ptr(), 3, 0, &soon), ss_errno()), (-1, libc::EAGAIN));
        let wrong = libc::timespec { tv_sec: -1, tv_nsec: 0 };
        assert_eq!((ss_recvmmsg(udp, many.as_mut_ptr(), 3, 0, &wrong), ss_errno()), (-1, libc::EINVAL));
        c.datagram(udp, b"for one");
        assert_eq!(ss_recvmmsg(udp, many.as_mut_ptr(), 3, 0x1_0000, null()), 1);
        ss_close(udp);
    }
}

/// An option that is an int.
///
/// # Safety
/// `sock` is open.
unsafe fn ss_getsockopt_int(sock: *mut ss_sock, level: c_int, name: c_int) -> c_int {
    let (mut value, mut len) = (-1, 4u32);
    // SAFETY: room for an int.
    assert_eq!(unsafe { ss_getsockopt(sock, level, name, from_mut(&mut value).cast(), &raw mut len) }, 0);
    assert_eq!(len, 4);
    value
}

#[test]
fn options_and_flags() {
    let c = C::new();
    let (sock, _) = c.connection(0);
    // SAFETY: good pointers.
    unsafe {
        assert_eq!(ss_fcntl(sock, libc::F_GETFL, 0), libc::O_RDWR | libc::O_NONBLOCK);
        assert_eq!((ss_fcntl(sock, libc::F_SETFL, 0), ss_fcntl(sock, libc::F_GETFL, 0)), (0, libc::O_RDWR));
        assert_eq!((ss_fcntl(sock, libc::F_GETFD, 0), ss_errno()), (-1, libc::EINVAL));
        let set =
            |level, name, value: &[u8]| ss_setsockopt(sock, level, name, value.as_ptr().cast(), value.len() as u32);
        assert_eq!(set(libc::IPPROTO_TCP, libc::TCP_NODELAY, &1i32.to_ne_bytes()), 0);
        assert_eq!(ss_getsockopt_int(sock, libc::IPPROTO_TCP, libc::TCP_NODELAY), 1);
        assert_eq!(ss_getsockopt_int(sock, libc::SOL_SOCKET, libc::SO_DOMAIN), libc::AF_INET);
        assert_eq!(ss_getsockopt_int(sock, libc::SOL_SOCKET, libc::SO_PROTOCOL), libc::IPPROTO_TCP);
        assert_eq!((set(1, 9999, &[0; 4]), ss_errno()), (-1, libc::ENOPROTOOPT));
        // A read that waits no longer than it is told.
        let time = [0i64.to_ne_bytes(), 2_000i64.to_ne_bytes()].concat();
        assert_eq!(set(libc::SOL_SOCKET, libc::SO_RCVTIMEO, &time), 0);
        let mut got = [0u8; 16];
        let mut len = 16u32;
        assert_eq!(ss_getsockopt(sock, 1, libc::SO_RCVTIMEO, from_mut(&mut got).cast(), &raw mut len), 0);
        assert_eq!((&got[..], len), (&time[..], 16));
        assert_eq!((ss_recv(sock, from_mut(&mut got).cast(), 16, 0), ss_errno()), (-1, Errno::AGAIN.raw_os_error()));
        ss_close(sock);
    }
}
