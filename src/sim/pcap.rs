//! pcapng (IETF draft-ietf-opsawg-pcapng), as much as a capture of one interface needs.

use std::io::{self, Write};

use sidestep_stack::Instant;

/// LINKTYPE_ETHERNET.
const ETHERNET: u16 = 1;

/// One capture of one interface, written as frames come.
pub struct Pcap {
    out: Box<dyn Write>,
}

impl Pcap {
    /// Starts a capture: section header and one interface, with times in nanoseconds.
    ///
    /// # Errors
    /// What the writer says.
    pub fn new(mut out: Box<dyn Write>, interface: &str) -> io::Result<Self> {
        let program = concat!("sidestep ", env!("CARGO_PKG_VERSION"), " (simulation)");
        let mut section = Vec::new();
        section.extend(0x1a2b_3c4du32.to_le_bytes());
        section.extend([1, 0, 0, 0]);
        // Length of the section: not known.
        section.extend(u64::MAX.to_le_bytes());
        // shb_userappl
        option(&mut section, 4, program.as_bytes());
        end_of_options(&mut section);
        block(&mut out, 0x0a0d_0d0a, &section)?;

        let mut description = Vec::new();
        description.extend(ETHERNET.to_le_bytes());
        description.extend([0, 0]);
        // Whole frames.
        description.extend(0u32.to_le_bytes());
        // if_name
        option(&mut description, 2, interface.as_bytes());
        // if_tsresol: 10^-9
        option(&mut description, 9, &[9]);
        end_of_options(&mut description);
        block(&mut out, 1, &description)?;
        Ok(Self { out })
    }

    /// One frame. `direction` as in epb_flags: 1 received, 2 sent.
    ///
    /// # Errors
    /// What the writer says.
    pub fn frame(&mut self, at: Instant, direction: u32, frame: &[u8]) -> io::Result<()> {
        let t = at.as_nanos();
        let mut body = Vec::with_capacity(frame.len() + 40);
        body.extend(0u32.to_le_bytes());
        body.extend(((t >> 32) as u32).to_le_bytes());
        body.extend((t as u32).to_le_bytes());
        body.extend((frame.len() as u32).to_le_bytes());
        body.extend((frame.len() as u32).to_le_bytes());
        body.extend(frame);
        pad(&mut body);
        // epb_flags
        option(&mut body, 2, &direction.to_le_bytes());
        end_of_options(&mut body);
        block(&mut self.out, 6, &body)
    }

    /// Writes out what is still in memory.
    ///
    /// # Errors
    /// What the writer says.
    pub fn finish(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

fn block(out: &mut dyn Write, kind: u32, body: &[u8]) -> io::Result<()> {
    let length = (body.len() as u32 + 12).to_le_bytes();
    out.write_all(&kind.to_le_bytes())?;
    out.write_all(&length)?;
    out.write_all(body)?;
    out.write_all(&length)
}

fn option(body: &mut Vec<u8>, code: u16, value: &[u8]) {
    body.extend(code.to_le_bytes());
    body.extend((value.len() as u16).to_le_bytes());
    body.extend(value);
    pad(body);
}

fn end_of_options(body: &mut Vec<u8>) {
    body.extend([0; 4]);
}

fn pad(body: &mut Vec<u8>) {
    body.resize(body.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use super::*;

    #[derive(Clone, Default)]
    struct Shared(Rc<RefCell<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.borrow_mut().extend(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn blocks_are_whole_and_frames_come_back() {
        let out = Shared::default();
        let mut pcap = Pcap::new(Box::new(out.clone()), "host").unwrap();
        pcap.frame(Instant::from_nanos(0x1_0000_0007), 2, &[7; 61]).unwrap();
        pcap.finish().unwrap();
        let bytes = out.0.borrow();
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        let (mut at, mut kinds) = (0, Vec::new());
        while at < bytes.len() {
            let length = word(at + 4) as usize;
            assert_eq!((length % 4, word(at + length - 4) as usize), (0, length));
            kinds.push(word(at));
            if word(at) == 6 {
                assert_eq!((word(at + 12), word(at + 16), word(at + 20)), (1, 7, 61));
                assert_eq!(bytes[at + 28..at + 28 + 61], [7; 61]);
            }
            at += length;
        }
        assert_eq!(kinds, [0x0a0d_0d0a, 1, 6]);
    }
}
