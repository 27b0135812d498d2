//! Who owns each frame of the UMEM.
//!
//! ```text
//!            take                 lend(Fill)
//!   free ──────────► Frame (ours) ──────────► fill ring ─► kernel ─► rx ring ──┐
//!    ▲                ▲   │                                                    │ reclaim(Fill)
//!    │ give_back      │   │ lend(Send)                                         │
//!    └────────────────┤   └─────────► tx ring ─► kernel ─► completion ring ────┤ reclaim(Send)
//!                     └────────────────────────────────────────────────────────┘
//! ```
//!
//! A [`Frame`] can't be copied, so a frame has one owner. xsk-rs's `FrameDesc` can: it stays in here.

use std::io;
use std::num::NonZeroU32;

use xsk_rs::Umem;
use xsk_rs::config::UmemConfig;
use xsk_rs::umem::frame::FrameDesc;

/// A frame that this program owns, by number. Dropping one leaks it from the pool, which the books show.
#[derive(Debug)]
#[must_use]
pub struct Frame(u32);

/// Where a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Free, or in our hands.
    Here,
    /// With the kernel, to receive into: fill ring, or rx ring.
    Fill,
    /// With the kernel, to send: tx ring, or completion ring.
    Send,
}

/// The UMEM and the whereabouts of its frames.
pub struct Frames {
    umem: Umem,
    /// The descriptor of each frame, at the place where data begins.
    descs: Box<[FrameDesc]>,
    places: Box<[Place]>,
    /// Last in, first out: the frame used last is the one in the cache.
    free: Vec<Frame>,
    filling: u32,
    sending: u32,
    frame_bytes: usize,
    /// Bytes of data that a frame holds.
    capacity: usize,
}

const HUGE_PAGE: usize = 2 << 20;

impl Frames {
    /// Allocates `count` frames and registers them with the kernel.
    pub fn new(config: UmemConfig, count: NonZeroU32) -> io::Result<Self> {
        let frame_bytes = config.frame_size().get() as usize;
        let bytes = frame_bytes * count.get() as usize;
        // munmap wants whole huge pages, so only a pool that fills them gets them.
        let huge = bytes.is_multiple_of(HUGE_PAGE).then(|| Umem::new(config, count, true).ok()).flatten();
        let (umem, descs) = match huge {
            Some(done) => done,
            None => Umem::new(config, count, false).map_err(errno)?,
        };
        let mut free: Vec<_> = (0..count.get()).map(Frame).collect();
        // The lowest come out first: a pool that is hardly used touches little memory.
        free.reverse();
        Ok(Self {
            umem,
            places: vec![Place::Here; descs.len()].into(),
            descs: descs.into(),
            free,
            filling: 0,
            sending: 0,
            frame_bytes,
            capacity: config.mtu() as usize,
        })
    }

    pub fn umem(&self) -> &Umem {
        &self.umem
    }

    pub fn total(&self) -> u32 {
        self.descs.len() as u32
    }

    pub fn free(&self) -> u32 {
        self.free.len() as u32
    }

    /// Frames with the kernel to be received into.
    pub fn filling(&self) -> u32 {
        self.filling
    }

    /// Frames with the kernel to be sent.
    pub fn sending(&self) -> u32 {
        self.sending
    }

    /// Bytes of data that a frame holds.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    pub fn take(&mut self) -> Option<Frame> {
        self.free.pop()
    }

    pub fn give_back(&mut self, frame: Frame) {
        self.free.push(frame);
    }

    /// The bytes of a frame that we own.
    pub fn bytes(&mut self, frame: &Frame) -> &mut [u8] {
        let desc = &mut self.descs[frame.0 as usize];
        // SAFETY: the descriptor is this UMEM's; `Frame` says that neither the kernel nor another part of this program
        // has the frame, and `&mut self` that no other slice of the pool is alive.
        let mut cursor = unsafe { self.umem.data_mut(desc) };
        cursor.cursor().set_pos(self.capacity);
        let data = cursor.contents_mut();
        // SAFETY: the slice points into the UMEM's mapping, which `self` keeps, and is returned with the life of the
        // borrow of `self` (DataMut is a temporary whose borrow ends here, but not the memory behind it).
        unsafe { std::slice::from_raw_parts_mut(data.as_mut_ptr(), data.len()) }
    }

    /// Gives a frame to the kernel, to be received into (`length` unused) or sent with `length` bytes. The descriptor
    /// must go to the ring that `place` names.
    pub fn lend(&mut self, frame: Frame, place: Place, length: usize) -> FrameDesc {
        debug_assert!(self.places[frame.0 as usize] == Place::Here && place != Place::Here);
        self.places[frame.0 as usize] = place;
        match place {
            Place::Fill => self.filling += 1,
            Place::Send => self.sending += 1,
            Place::Here => {}
        }
        let desc = &mut self.descs[frame.0 as usize];
        // SAFETY: as in `bytes`; only the length is set.
        unsafe { self.umem.data_mut(desc) }.cursor().set_pos(length);
        *desc
    }

    /// Takes a frame back from the kernel by the address that a ring gave. None if the address is outside the UMEM or
    /// of a frame that was not lent for that purpose: then the descriptor must not be used.
    pub fn reclaim(&mut self, address: usize, from: Place) -> Option<Frame> {
        let number = address / self.frame_bytes;
        let place = self.places.get_mut(number)?;
        if *place != from {
            return None;
        }
        *place = Place::Here;
        match from {
            Place::Fill => self.filling -= 1,
            Place::Send => self.sending -= 1,
            Place::Here => {}
        }
        Some(Frame(number as u32))
    }

    /// The received bytes of a frame just reclaimed; `desc` as the rx ring gave it. None if they leave the frame.
    pub fn received<'a>(&'a mut self, frame: &Frame, desc: &'a mut FrameDesc) -> Option<&'a mut [u8]> {
        let start = frame.0 as usize * self.frame_bytes;
        let (address, length) = (desc.addr(), desc.lengths().data());
        if address < start || length > self.frame_bytes || address + length > start + self.frame_bytes {
            return None;
        }
        // SAFETY: address and length were just checked to lie in this frame, which we own; `&mut self` says that no
        // other slice of the pool is alive. The second step is as in `bytes`.
        unsafe {
            let mut data = self.umem.data_mut(desc);
            let data = data.contents_mut();
            Some(std::slice::from_raw_parts_mut(data.as_mut_ptr(), data.len()))
        }
    }
}

/// The errno inside an error of xsk-rs.
pub fn errno(error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    let inner = error.source().and_then(|e| e.downcast_ref::<io::Error>()).and_then(io::Error::raw_os_error);
    inner.map_or_else(|| io::Error::other(error), io::Error::from_raw_os_error)
}
