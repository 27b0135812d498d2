use std::io::{Read, Write};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use sidestep_client::net::{TcpListener, TcpStream};

use super::*;

fn config(n: u8) -> Config {
    let text = format!("[[interface]]\nname = \"wire\"\nbackend = \"pipe\"\naddresses = [\"10.1.0.{n}/24\"]\n");
    Config::parse(&text, "test").unwrap()
}

/// Two libraries in this process, and a wire between them.
fn pair() -> [Library; 2] {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let (a, b) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
    [(1, a), (2, b)].map(|(n, wire)| Library::start_on(&config(n), vec![wire]).unwrap())
}

#[test]
fn two_libraries_in_one_process_talk_without_threads_of_their_own() {
    let [a, b] = pair();
    let listener = TcpListener::bind(&a.client(), "10.1.0.1:80".parse().unwrap()).unwrap();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut buf = [0; 64];
        let mut total = 0;
        loop {
            match stream.read(&mut buf).unwrap() {
                0 => return total,
                n => {
                    total += n;
                    stream.write_all(&buf[..n]).unwrap();
                }
            }
        }
    });
    let mut stream = TcpStream::connect(&b.client(), "10.1.0.1:80".parse().unwrap()).unwrap();
    for n in 0..1000_u32 {
        stream.write_all(&n.to_le_bytes()).unwrap();
        let mut answer = [0; 4];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(u32::from_le_bytes(answer), n);
    }
    drop(stream);
    assert_eq!(server.join().unwrap(), 4000);
    assert!(a.sockets().unwrap().contains("10.1.0.1:80"));
    assert_ne!(a.control(), b.control());
    assert!(a.stats().unwrap().contains("\"pid\""));
}
