//! Adversaries on real devices, for the end-to-end tests:
//!
//! `sidestep-adversary middle DEVICE DEVICE SEED [drop=N] [duplicate=N] [reorder=N] [corrupt=N] [delay=N] [jitter=N]`
//! forwards frames between two devices and does to them what the numbers say: parts of a million, and microseconds. Frames
//! that are reordered wait a few milliseconds longer than others.
//!
//! `sidestep-adversary flood DEVICE MAC ADDRESS PORT` sends SYNs to an IPv4 address as fast as the device takes them, each
//! from an address and a port of its own.
//!
//! Both run until they are ended, and say on standard output twice a second what they did.

use sidestep::clock::{Clock, MonotonicClock};
use sidestep::port::FrameIo;
use sidestep::port::af_packet::AfPacketPort;
use sidestep_hostile::wire::{self, SYN, Tcp};
use sidestep_stack::Instant;
use std::collections::BTreeMap;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

/// Frames that may wait in the middle box, in each direction: as a router's queue.
const QUEUE: usize = 4096;
/// How much later than others a reordered frame leaves, at most.
const LATE: Duration = Duration::from_millis(4);

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match arguments[..] {
        ["middle", here, there, seed, ref how @ ..] => middle(here, there, seed, how),
        ["flood", device, mac, address, port] => flood(device, mac, address, port),
        _ => Err("sidestep-adversary middle DEVICE DEVICE SEED [NAME=N]… | flood DEVICE MAC ADDRESS PORT".into()),
    };
    if let Err(error) = outcome {
        eprintln!("sidestep-adversary: {error}");
        std::process::exit(1);
    }
}

type Outcome = Result<(), Box<dyn std::error::Error>>;

/// splitmix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn one_in_a_million(&mut self, parts: u64) -> bool {
        self.next() % 1_000_000 < parts
    }
}

/// What is done to frames, and how often it was.
#[derive(Default)]
struct Manners {
    parts: BTreeMap<String, u64>,
    counts: BTreeMap<&'static str, u64>,
}

impl Manners {
    fn happens(&mut self, what: &'static str, random: &mut Random) -> bool {
        let happens = self.parts.get(what).is_some_and(|parts| random.one_in_a_million(*parts));
        *self.counts.entry(what).or_default() += u64::from(happens);
        happens
    }

    fn micros(&self, what: &str) -> u64 {
        self.parts.get(what).copied().unwrap_or(0)
    }
}

fn middle(here: &str, there: &str, seed: &str, how: &[&str]) -> Outcome {
    let mut manners = Manners::default();
    for part in how {
        let (name, number) = part.split_once('=').ok_or("NAME=N")?;
        if !["drop", "duplicate", "reorder", "corrupt", "delay", "jitter"].contains(&name) {
            return Err(format!("no such manner: {name}").into());
        }
        manners.parts.insert(name.into(), number.parse()?);
    }
    let mut random = Random(seed.parse()?);
    let mut ports = [AfPacketPort::open(here, None)?, AfPacketPort::open(there, None)?];
    // By when they leave; the number keeps the order of equals.
    let mut queues: [BTreeMap<(Instant, u64), Vec<u8>>; 2] = Default::default();
    let (clock, mut serial, mut passed) = (MonotonicClock, 0, 0);
    println!("middle: ready");
    let mut say_at = clock.now();
    loop {
        let now = clock.now();
        let mut busy = false;
        for (side, port) in ports.iter_mut().enumerate() {
            let [left, right] = &mut queues;
            let queue = if side == 0 { right } else { left };
            port.receive(64, |frame| {
                busy = true;
                if manners.happens("drop", &mut random) || queue.len() >= QUEUE {
                    return;
                }
                let mut at = now + Duration::from_micros(manners.micros("delay"));
                let jitter = manners.micros("jitter");
                if jitter > 0 {
                    at = at + Duration::from_micros(random.next() % jitter);
                }
                if manners.happens("reorder", &mut random) {
                    at = at + Duration::from_nanos(random.next() % LATE.as_nanos() as u64);
                }
                let copies = 1 + u64::from(manners.happens("duplicate", &mut random));
                let mut frame = frame.to_vec();
                if manners.happens("corrupt", &mut random) {
                    let place = random.next() as usize % frame.len();
                    frame[place] ^= 1 << (random.next() % 8);
                }
                for _ in 0..copies {
                    serial += 1;
                    queue.insert((at, serial), frame.clone());
                }
            });
        }
        for (port, queue) in ports.iter_mut().zip(&mut queues) {
            let sent = port.transmit(64, |buffer| {
                let first = queue.first_entry().filter(|e| e.key().0 <= now)?;
                let frame = first.remove();
                let len = frame.len().min(buffer.len());
                buffer[..len].copy_from_slice(&frame[..len]);
                Some(len)
            });
            port.flush();
            busy |= sent > 0;
            passed += sent as u64;
        }
        if now >= say_at {
            say_at = now + Duration::from_millis(500);
            let counts: Vec<_> = manners.counts.iter().map(|(name, n)| format!("{name} {n}")).collect();
            println!("passed {passed} {}", counts.join(" "));
            std::io::stdout().flush()?;
        }
        if !busy {
            std::thread::yield_now();
        }
    }
}

fn flood(device: &str, mac: &str, address: &str, port: &str) -> Outcome {
    let mut to = [0; 6];
    for (byte, part) in to.iter_mut().zip(mac.split(':')) {
        *byte = u8::from_str_radix(part, 16)?;
    }
    let address: Ipv4Addr = address.parse()?;
    let port: u16 = port.parse()?;
    let mut device = AfPacketPort::open(device, None)?;
    let (clock, mut random) = (MonotonicClock, Random(1));
    // A template whose checksum is mended for what changes: making each from nothing would be slower than the device.
    let syn = Tcp {
        source: 0,
        destination: port,
        flags: SYN,
        window: 64_240,
        options: [&[2, 4, 5, 0xb4, 4, 2][..], &[8, 10, 0, 0, 0, 1, 0, 0, 0, 0], &[1, 3, 3, 7]].concat(),
        ..Tcp::default()
    };
    let packet = syn.packet(IpAddr::from([0, 0, 0, 0]), address.into());
    let template = wire::ethernet(to, [2, 0xf, 0xf, 0xf, 0xf, 0xf], wire::IPV4, &packet);
    let sum = |frame: &[u8], at: usize| u64::from(u16::from_be_bytes([frame[at], frame[at + 1]]));
    let (ip_sum, tcp_sum) = (sum(&template, 24), sum(&template, 50));
    let (mut sent, mut say_at) = (0_u64, clock.now());
    loop {
        sent += device.transmit(256, |buffer| {
            let r = random.next();
            // 11.0.0.0/8; a port from 1024 on; any number.
            let from = 0x0b00_0000 | r as u32 & 0x00ff_ffff;
            let source = 1024 + (r >> 24) as u16 % 60_000;
            let seq = (r >> 32) as u32;
            let frame = &mut buffer[..template.len()];
            frame.copy_from_slice(&template);
            frame[26..30].copy_from_slice(&from.to_be_bytes());
            frame[34..36].copy_from_slice(&source.to_be_bytes());
            frame[38..42].copy_from_slice(&seq.to_be_bytes());
            let halves = |n: u32| u64::from(n >> 16) + u64::from(n & 0xffff);
            // RFC 1624 3: what was 0 before is added.
            let mend = |old: u64, added: u64| {
                let mut sum = (!old & 0xffff) + added;
                while sum >> 16 != 0 {
                    sum = (sum & 0xffff) + (sum >> 16);
                }
                (!(sum as u16)).to_be_bytes()
            };
            frame[24..26].copy_from_slice(&mend(ip_sum, halves(from)));
            frame[50..52].copy_from_slice(&mend(tcp_sum, halves(from) + u64::from(source) + halves(seq)));
            Some(template.len())
        }) as u64;
        device.flush();
        let now = clock.now();
        if now >= say_at {
            say_at = now + Duration::from_millis(500);
            println!("sent {sent} after {} ms", now.as_millis());
            std::io::stdout().flush()?;
        }
    }
}
