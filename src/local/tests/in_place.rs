//! Reading and writing in place while the streams outgrow their rings.

use std::io::{ErrorKind, Read, Write};

use sidestep_client::net::{Client, TcpStream};

use super::*;

/// Numbers that look random and are the same every time (xorshift64).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, most: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % most as u64) as usize
    }
}

fn byte(at: usize) -> u8 {
    (at * 7 + at / 251) as u8
}

/// A socket's two blocks and where the switch is, of the streams in and out.
fn maps(client: &Client, slot: u32) -> [u64; 2] {
    let shared = client.session().region().slot(slot).unwrap();
    [&shared.rx_map, &shared.tx_map].map(|m| m.load(Ordering::Acquire))
}

/// One program writes in place and by copying, another reads likewise, in pieces of any size; what is lent stays lent
/// while segments arrive and blocks are changed.
#[test]
fn what_is_lent_stays_where_it_is_while_streams_grow() {
    const TOTAL: usize = 12_000_000;
    let mut pair = Pair::new(5, 1);
    let [a, b] = [0, 1].map(|n| Client::over(pair.hosts[n].attach(0).unwrap()));
    let listener = b.session().open(kind::TCP4).unwrap();
    b.session().bind(listener, "10.0.0.2:80".parse().unwrap(), 0).unwrap();
    b.session().listen(listener, 16).unwrap();
    let out_slot = a.session().open(kind::TCP4).unwrap();
    a.session().connect(out_slot, "10.0.0.2:80".parse().unwrap()).unwrap();
    let until = pair.after(10);
    pair.run(until);
    let (in_slot, _) = b.session().accept(listener).unwrap();
    let (writer, reader) = (TcpStream::from_slot(&a, out_slot), TcpStream::from_slot(&b, in_slot));
    [&writer, &reader].into_iter().for_each(|s| s.set_nonblocking(true));

    let mut numbers = Numbers(0x5eed);
    let (mut sent, mut got) = (0, 0);
    let (mut switches_in, mut switches_out, mut while_lent) = (0, 0, 0);
    let mut before = [maps(&b, in_slot)[0], maps(&a, out_slot)[1]];
    let full = |e: &std::io::Error| assert_eq!(e.kind(), ErrorKind::WouldBlock);
    for _ in 0..200_000 {
        let want = (1 + numbers.below(300_000)).min(TOTAL - sent);
        let in_place = numbers.below(3) > 0;
        let room = if in_place && want > 0 { writer.reserve(want).inspect_err(full).ok() } else { None };
        let lent = if numbers.below(3) > 0 { reader.peek_slices().inspect_err(full).ok() } else { None };
        let copy = lent.as_ref().map(|l| l.slices().concat());
        // Time passes, the rest of the connection goes on.
        let until = pair.clock.now() + Duration::from_micros(1 + numbers.below(300) as u64);
        pair.run(until);
        let now = [maps(&b, in_slot)[0], maps(&a, out_slot)[1]];
        switches_in += usize::from(now[0] != before[0]);
        switches_out += usize::from(now[1] != before[1]);
        while_lent += usize::from(now[0] != before[0] && lent.as_ref().is_some_and(|l| !l.is_empty()));
        before = now;
        if let Some(mut room) = room {
            let n = numbers.below(room.len() + 1);
            let data: Vec<u8> = (sent..sent + n).map(byte).collect();
            room.write_all(&data).unwrap();
            room.commit(n).unwrap();
            sent += n;
        } else if want > 0 {
            let data: Vec<u8> = (sent..sent + want).map(byte).collect();
            sent += (&writer).write(&data).inspect_err(full).unwrap_or(0);
        }
        let mut check = |bytes: &[u8]| {
            let wrong = bytes.iter().enumerate().find(|(i, b)| **b != byte(got + i));
            assert_eq!(wrong, None, "of {} bytes from {got}", bytes.len());
            got += bytes.len();
        };
        if let (Some(lent), Some(copy)) = (lent, copy) {
            assert!(lent.slices().concat() == copy, "lent bytes changed");
            let n = numbers.below(lent.len() + 1);
            lent.consume(n).unwrap();
            check(&copy[..n]);
        } else {
            let mut buffer = vec![0; 1 + numbers.below(100_000)];
            if let Ok(n) = (&reader).read(&mut buffer).inspect_err(full) {
                check(&buffer[..n]);
            }
        }
        if got == TOTAL {
            break;
        }
    }
    assert_eq!((sent, got), (TOTAL, TOTAL));
    assert!(switches_in > 0 && switches_out > 0 && while_lent > 0, "{switches_in} {switches_out} {while_lent}");
}
