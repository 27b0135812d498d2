//! A program that misbehaves: it runs on Sidestep, opens sockets, finds the memory that it shares with the engine and
//! writes nonsense over it. The engine must not notice more than that this program's sockets are broken.
//!
//! It needs no mapping of its own: the memfd is a file, and writing to the file is writing to the memory.

use crate::files::Random;
use anyhow::{Context, Result, bail};
use sidestep_shm::Geometry;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

/// `hostile SEED SECONDS OWN-ADDRESS PEER:PORT`.
///
/// # Errors
/// When the arguments are wrong or no shared memory is found: then the test would test nothing.
pub fn main(arguments: &[String]) -> Result<()> {
    let [seed, seconds, own, peer] = arguments else { bail!("hostile SEED SECONDS OWN-ADDRESS PEER:PORT") };
    let (seed, seconds): (u64, f64) = (seed.parse()?, seconds.parse()?);
    // Live sockets of every kind, so that there is state to spoil.
    let listener = TcpListener::bind((own.as_str(), 0)).context("listening")?;
    let mut connections: Vec<TcpStream> = (0..8).filter_map(|_| TcpStream::connect(peer.as_str()).ok()).collect();
    let udp = UdpSocket::bind((own.as_str(), 0));
    if connections.is_empty() {
        bail!("no connection to {peer}: nothing to spoil");
    }
    let memory = shared_memory().context("no shared memory of an engine in this process")?;
    println!("hostile: shared memory found, {} connections", connections.len());
    if memory.set_len(0).is_ok() {
        bail!("the shared memory can be truncated: it is not sealed");
    }
    println!("hostile: truncating was refused");
    println!("hostile: writing");
    let _ = std::io::stdout().flush();
    let geometry = geometry(&memory)?;
    let control_end = geometry.rx_at(0);
    let mut random = Random::new(seed);
    let end = Instant::now() + Duration::from_secs_f64(seconds);
    let mut writes = 0_u64;
    while Instant::now() < end {
        for _ in 0..512 {
            let (at, word) = (place(&mut random, &geometry, control_end), value(&mut random));
            let _ = memory.write_all_at(&word.to_le_bytes()[..1 << random.below(4)], at);
            writes += 1;
        }
        // Use of the sockets in between, so that the engine is made to look. What comes of it does not matter, but
        // none of it may block for good: the kernel's own flag on the descriptor is what the calls obey.
        let one = random.below(connections.len().max(1) as u64) as usize;
        if let Some(connection) = connections.get_mut(one) {
            let _ = connection.set_nonblocking(true);
            let _ = connection.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n");
        }
        let _ = listener.set_nonblocking(true);
        let _ = listener.accept();
        if let Ok(udp) = &udp {
            let _ = udp.send_to(b"x", peer.as_str());
        }
    }
    println!("hostile: {writes} writes");
    Ok(())
}

/// The memfd: by its descriptor, else by its mapping.
fn shared_memory() -> Option<File> {
    let writable = |path: std::path::PathBuf| OpenOptions::new().read(true).write(true).open(path).ok();
    let is_region = |file: &File| {
        let mut magic = [0; 8];
        file.read_exact_at(&mut magic, 0).is_ok() && magic == *b"SIDESTEP"
    };
    let descriptors = fs::read_dir("/proc/self/fd").into_iter().flatten().flatten().map(|e| e.path());
    let mapped = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let mapped = mapped
        .lines()
        .filter(|line| line.contains("/memfd:"))
        .filter_map(|line| line.split(' ').next())
        .map(|range| std::path::Path::new("/proc/self/map_files").join(range))
        .collect::<Vec<_>>();
    let is_memfd =
        |path: &std::path::PathBuf| fs::read_link(path).is_ok_and(|target| target.to_string_lossy().contains("memfd:"));
    descriptors.filter(is_memfd).chain(mapped).filter_map(writable).find(is_region)
}

fn geometry(memory: &File) -> Result<Geometry> {
    let word = |at: u64| -> Result<u32> {
        let mut bytes = [0; 4];
        memory.read_exact_at(&mut bytes, at)?;
        Ok(u32::from_le_bytes(bytes))
    };
    let geometry = Geometry {
        shards: word(12)?,
        open_slots: word(16)?,
        accept_slots: word(20)?,
        rx_bytes: word(24)?,
        tx_bytes: word(28)?,
        pool_bytes: u64::from(word(32)?) | u64::from(word(36)?) << 32,
    };
    geometry.validate().map_err(|error| anyhow::anyhow!("the header of the shared memory: {error}"))
}

/// Most writes hit what the engine reads: doors and sets, the slots, the accept rings; some hit anything.
fn place(random: &mut Random, geometry: &Geometry, control_end: u64) -> u64 {
    let slot_area = control_end.saturating_sub(u64::from(geometry.slots()) * 832);
    let of_the_first = |random: &mut Random, n: u64| random.below(n.max(1));
    match random.below(16) {
        0..=4 => of_the_first(random, control_end),
        5..=9 => slot_area + of_the_first(random, 832 * 64), // the slots that are really in use
        10..=12 => slot_area + u64::from(geometry.open_slots) * 832 + of_the_first(random, 832 * 64),
        13 => of_the_first(random, 65536),
        _ => geometry.rx_at(0) + of_the_first(random, 16 * (geometry.rx_at(1) - geometry.rx_at(0))),
    }
}

/// Values that break naive arithmetic come more often than chance would have them.
fn value(random: &mut Random) -> u64 {
    match random.below(8) {
        0 => 0,
        1 => u64::MAX,
        2 => 1 << random.below(64),
        3 => (1 << random.below(64)) - 1,
        4 => u64::from(u32::MAX) + random.below(3),
        _ => random.word(),
    }
}
