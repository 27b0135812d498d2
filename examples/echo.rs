//! An echo server on a Sidestep engine, with the Rust library: one thread a connection.
//!
//! ```text
//! sidestep up -c config/veth-lab.toml &
//! cargo run --release --example echo -- /run/sidestep/engine.sock 10.77.0.2:7
//! ```
//!
//! The first argument is the engine's control socket ('@name' for an abstract one), the second the address to listen
//! on, which must be the engine's. Under `sidestep run`, give "env" for the first.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::process::ExitCode;

use sidestep_client::net::{Client, TcpListener, TcpStream};

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let (Some(socket), Some(address)) = (arguments.next(), arguments.next()) else {
        eprintln!("usage: echo SOCKET|env ADDRESS:PORT");
        return ExitCode::from(2);
    };
    match serve(&socket, &address) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("echo: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(socket: &str, address: &str) -> Result<(), Box<dyn std::error::Error>> {
    let address: SocketAddr =
        address.parse().map_err(|e| format!("{address:?}: {e}; like 10.77.0.2:7 or [fd00::2]:7"))?;
    let client = if socket == "env" { Client::from_environment()? } else { Client::attach(socket)? };
    let listener = TcpListener::bind(&client, address).map_err(|e| format!("listen on {address}: {e}"))?;
    println!("listening on {}", listener.local_addr()?);
    loop {
        match listener.accept() {
            Ok((stream, peer)) => {
                std::thread::spawn(move || {
                    if let Err(error) = echo(stream) {
                        eprintln!("{peer}: {error}");
                    }
                });
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(format!("accept: {error}").into()),
        }
    }
}

/// Sends back what comes until the peer has finished.
fn echo(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            n => stream.write_all(&buffer[..n])?,
        }
    }
}
