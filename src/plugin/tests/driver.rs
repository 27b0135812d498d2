//! Loads the library as packetdrill does and drives a connection through the table, by position, as C would.

use std::ffi::{CString, c_char, c_int, c_longlong, c_void};
use std::path::PathBuf;
use std::sync::atomic::{AtomicI64, Ordering};

use libc::{sockaddr, sockaddr_in, socklen_t, ssize_t, timeval};

/// The table as an array of words: what packetdrill sees.
#[repr(C)]
struct Table([usize; 33]);

// SAFETY: words; the library says that its functions may be called from two threads.
unsafe impl Sync for Table {}

fn load(flags: &str) -> Table {
    let mut place: PathBuf = std::env::current_exe().unwrap();
    // target/debug/deps/driver-…: built for the tests, the library lies beside it.
    place.set_file_name("libsidestep_packetdrill.so");
    let library = CString::new(place.to_str().unwrap()).unwrap();
    let flags = CString::new(flags).unwrap();
    let mut table = Table([0; 33]);
    // SAFETY: a library of ours, and the function's signature as packetdrill has it.
    unsafe {
        let how = libc::RTLD_NOW | libc::RTLD_LOCAL | libc::RTLD_NODELETE | libc::RTLD_DEEPBIND;
        let handle = libc::dlopen(library.as_ptr(), how);
        assert!(!handle.is_null(), "{library:?} is not there");
        let init = libc::dlsym(handle, c"packetdrill_interface_init".as_ptr());
        assert!(!init.is_null());
        let init: unsafe extern "C" fn(*const c_char, *mut Table) = std::mem::transmute(init);
        init(flags.as_ptr(), &raw mut table);
    }
    assert!(table.0.iter().all(|word| *word != 0));
    table
}

/// Calls a member: its position, its type, its arguments behind userdata.
macro_rules! call {
    ($table:expr, $at:expr, fn($($kind:ty),*) -> $back:ty, $($argument:expr),*) => {{
        let (user, function) = ($table.0[0], $table.0[$at]);
        // SAFETY: the member's type as packetdrill declares it.
        let function: unsafe extern "C" fn(usize, $($kind),*) -> $back = unsafe { std::mem::transmute(function) };
        // SAFETY: pointers that are good for the call.
        unsafe { function(user, $($argument),*) }
    }};
}

fn v4(last: u8, port: u16) -> sockaddr_in {
    // SAFETY: plain integers.
    let mut address: sockaddr_in = unsafe { std::mem::zeroed() };
    address.sin_family = libc::AF_INET as _;
    address.sin_port = port.to_be();
    address.sin_addr.s_addr = u32::from_be_bytes(if last == 0 { [0; 4] } else { [192, 168, 0, last] }).to_be();
    address
}

fn now(table: &Table) -> i64 {
    let mut time = timeval { tv_sec: 0, tv_usec: 0 };
    call!(table, 27, fn(*mut timeval, *mut c_void) -> c_int, &raw mut time, std::ptr::null_mut());
    time.tv_sec * 1_000_000 + time.tv_usec
}

fn send_packet(table: &Table, packet: &[u8]) {
    let sent = call!(table, 24, fn(*const c_void, usize) -> c_int, packet.as_ptr().cast(), packet.len());
    assert_eq!(sent, 0);
}

/// The next packet: its time, its TCP header and payload.
fn next_packet(table: &Table) -> (i64, Vec<u8>) {
    for _ in 0..100_000 {
        let mut packet = vec![0u8; 2048];
        let (mut len, mut at): (usize, c_longlong) = (packet.len(), 0);
        let (to, len_at) = (packet.as_mut_ptr().cast(), &raw mut len);
        let got = call!(table, 25, fn(*mut c_void, *mut usize, *mut c_longlong) -> c_int, to, len_at, &raw mut at);
        if got == 0 {
            assert_eq!(packet[0], 0x45, "a bare IPv4 packet");
            return (at, packet[20..len].to_vec());
        }
    }
    panic!("no packet");
}

fn checksum(bytes: &[u8], mut sum: u32) -> u16 {
    for pair in bytes.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// A segment from 192.0.2.1:2000 to 192.168.0.1:8080.
fn segment(seq: u32, ack: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut tcp = [&2000u16.to_be_bytes()[..], &8080u16.to_be_bytes(), &seq.to_be_bytes(), &ack.to_be_bytes()].concat();
    tcp.extend([0x50, flags, 0x40, 0, 0, 0, 0, 0]);
    tcp.extend(payload);
    let addresses = [192, 0, 2, 1, 192, 168, 0, 1];
    let pseudo: u32 = addresses.chunks(2).map(|p| u32::from(u16::from_be_bytes([p[0], p[1]]))).sum();
    let sum = checksum(&tcp, pseudo + 6 + tcp.len() as u32);
    tcp[16..18].copy_from_slice(&sum.to_be_bytes());
    let mut ip = vec![0x45, 0];
    ip.extend((20 + tcp.len() as u16).to_be_bytes());
    ip.extend([0, 0, 0x40, 0, 64, 6, 0, 0]);
    ip.extend(addresses);
    let sum = checksum(&ip, 0);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    [ip, tcp].concat()
}

fn long(tcp: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(tcp[at..at + 4].try_into().unwrap())
}

#[test]
fn a_connection_from_handshake_to_reset() {
    let table = &load("defaults,tcp_timestamps=0");
    let fd = call!(table, 2, fn(c_int, c_int, c_int) -> c_int, libc::AF_INET, libc::SOCK_STREAM, 0);
    assert_eq!(fd, 3);
    let at = v4(1, 8080);
    let (to, len) = ((&raw const at).cast::<sockaddr>(), size_of::<sockaddr_in>() as socklen_t);
    assert_eq!(call!(table, 3, fn(c_int, *const sockaddr, socklen_t) -> c_int, fd, to, len), 0);
    assert_eq!(call!(table, 4, fn(c_int, c_int) -> c_int, fd, 1), 0);

    // accept() waits on another thread while this one moves time.
    let accepted = AtomicI64::new(-1);
    std::thread::scope(|threads| {
        threads.spawn(|| {
            let mut from = v4(0, 0);
            let mut len = size_of::<sockaddr_in>() as socklen_t;
            let (to, len_at) = ((&raw mut from).cast::<sockaddr>(), &raw mut len);
            let got = call!(table, 5, fn(c_int, *mut sockaddr, *mut socklen_t) -> c_int, fd, to, len_at);
            assert_eq!(u16::from_be(from.sin_port), 2000);
            accepted.store(got.into(), Ordering::SeqCst);
        });
        let begin = now(table);
        call!(table, 26, fn(u32) -> c_int, 100_000);
        assert!((100_000..100_010).contains(&(now(table) - begin)), "time is what usleep says it is");
        send_packet(table, &segment(0, 0, 2, b""));
        let (when, answer) = next_packet(table);
        assert!((when - begin - 100_000).abs() < 20);
        assert_eq!((answer[13], long(&answer, 8)), (0x12, 1));
        send_packet(table, &segment(1, long(&answer, 4) + 1, 0x10, b""));
        // The second thread gets its answer without time passing.
        while accepted.load(Ordering::SeqCst) < 0 {
            std::thread::yield_now();
        }
    });
    let connection = accepted.load(Ordering::SeqCst) as c_int;
    assert_eq!(connection, 4);

    // Data out, acknowledged never: it comes again after the timeout, in virtual time.
    let text = b"hello";
    let wrote = call!(table, 12, fn(c_int, *const c_void, usize) -> ssize_t, connection, text.as_ptr().cast(), 5);
    assert_eq!(wrote, 5);
    let (first, data) = next_packet(table);
    assert_eq!(&data[20..], text);
    let (second, again) = next_packet(table);
    assert_eq!(&again[20..], text);
    assert!((190_000..1_100_000).contains(&(second - first)), "after {} us", second - first);

    // A read that would wait, made by the thread that moves time: nothing is there, so it must not be made to wait.
    let mut buffer = [0u8; 16];
    let read = call!(
        table,
        9,
        fn(c_int, *mut c_void, usize, c_int) -> ssize_t,
        connection,
        buffer.as_mut_ptr().cast(),
        16,
        libc::MSG_DONTWAIT
    );
    // SAFETY: this thread's own.
    assert_eq!((read, unsafe { *libc::__errno_location() }), (-1, libc::EAGAIN));
    send_packet(table, &segment(1, long(&data, 4) + 5, 0x18, b"world"));
    let read = call!(table, 7, fn(c_int, *mut c_void, usize) -> ssize_t, connection, buffer.as_mut_ptr().cast(), 16);
    assert_eq!((read, &buffer[..5]), (5, &b"world"[..]));

    // SO_LINGER with zero seconds: a reset.
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    let value = (&raw const linger).cast();
    let set = call!(
        table,
        22,
        fn(c_int, c_int, c_int, *const c_void, socklen_t) -> c_int,
        connection,
        libc::SOL_SOCKET,
        libc::SO_LINGER,
        value,
        8
    );
    assert_eq!(set, 0);
    assert_eq!(call!(table, 19, fn(c_int) -> c_int, connection), 0);
    loop {
        let (_, segment) = next_packet(table);
        if segment[13] & 4 != 0 {
            break;
        }
    }
    assert_eq!(call!(table, 19, fn(c_int) -> c_int, connection), -1);
    let (user, free) = (table.0[0], table.0[1]);
    // SAFETY: the member's type; nothing is used after it.
    unsafe { std::mem::transmute::<usize, unsafe extern "C" fn(usize)>(free)(user) };
}
