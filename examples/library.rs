//! Two engines in one process, joined by a pipe; one echoes, without a copy, what the other sends. A hook counts frames.
//!
//!     cargo run --release --example library

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Context;
use sidestep::config::Config;
use sidestep::library::Library;
use sidestep::port::hooked::{Frame, HookMaker, Verdict};
use sidestep_client::net::{TcpListener, TcpStream};

/// Bytes to send and to get back.
const TOTAL: usize = 1 << 20;

fn config(address: &str) -> anyhow::Result<Config> {
    let text = format!("[[interface]]\nname = \"wire\"\nbackend = \"pipe\"\naddresses = [\"{address}\"]\n");
    Config::parse(&text, "the example's configuration").map_err(Into::into)
}

pub fn main() -> anyhow::Result<()> {
    let flags = rustix::net::SocketFlags::NONBLOCK | rustix::net::SocketFlags::CLOEXEC;
    let kind = rustix::net::SocketType::SEQPACKET;
    let (a, b): (OwnedFd, OwnedFd) = rustix::net::socketpair(rustix::net::AddressFamily::UNIX, kind, flags, None)?;

    let frames = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&frames);
    let hook: HookMaker = Arc::new(move |_shard| {
        let counted = Arc::clone(&counted);
        Box::new(move |_: &mut Frame<'_>| {
            counted.fetch_add(1, Ordering::Relaxed);
            Verdict::Pass
        })
    });
    let server = Library::start_hooked(&config("10.9.0.1/24")?, vec![a], hook)?;
    let client = Library::start_on(&config("10.9.0.2/24")?, vec![b])?;

    let listener = TcpListener::bind(&server.client(), "10.9.0.1:7".parse()?)?;
    let echoing = std::thread::spawn(move || -> std::io::Result<()> {
        let (stream, _) = listener.accept()?;
        loop {
            let received = stream.peek_slices()?;
            if received.is_empty() {
                return Ok(());
            }
            let mut room = stream.reserve(received.len())?;
            // Not everything if there is less room; the rest comes again.
            for part in received.slices() {
                if room.write(part)? < part.len() {
                    break;
                }
            }
            let n = room.written();
            room.commit(n)?;
            received.consume(n)?;
        }
    });

    let data: Vec<u8> = (0..TOTAL).map(|i| (i * 7) as u8).collect();
    let stream = TcpStream::connect(&client.client(), "10.9.0.1:7".parse()?)?;
    let back = std::thread::scope(|scope| -> anyhow::Result<Vec<u8>> {
        let sending = scope.spawn(|| {
            (&stream).write_all(&data)?;
            stream.shutdown(std::net::Shutdown::Write)
        });
        let mut back = Vec::new();
        (&stream).read_to_end(&mut back)?;
        sending.join().ok().context("the sender failed")??;
        Ok(back)
    })?;
    echoing.join().ok().context("the echo failed")??;
    anyhow::ensure!(back == data, "{} bytes came back, or not the same", back.len());
    println!("{TOTAL} bytes there and back; {} frames", frames.load(Ordering::Relaxed));
    Ok(())
}
