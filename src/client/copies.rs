//! MSG_ZEROCOPY on TCP (Documentation/networking/msg_zerocopy.rst of Linux). Bytes are copied when they are given, so
//! they are the program's again at once; what is kept of the promise is the notice that says so, on the error queue.

use core::sync::atomic::Ordering;

use sidestep_shm::slot::option;

use crate::session::Session;

/// Bytes of `struct sock_extended_err` (linux/errqueue.h).
pub const NOTICE_BYTES: usize = 16;
/// SO_EE_ORIGIN_ZEROCOPY and SO_EE_CODE_ZEROCOPY_COPIED.
const ORIGIN: u8 = 5;
const COPIED: u8 = 1;

impl Session {
    /// A call with MSG_ZEROCOPY has given bytes to the socket. Does nothing without SO_ZEROCOPY, as on Linux.
    pub fn note_copied(&self, slot: u32) {
        if let Ok(shared) = self.slot(slot)
            && shared.options.load(Ordering::Relaxed) & option::ZERO_COPY != 0
        {
            shared.copies_done.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// Takes the notice for all calls that none was given for yet: the first and the last number of them.
    #[must_use]
    pub fn take_copied(&self, slot: u32) -> Option<(u32, u32)> {
        let shared = self.slot(slot).ok()?;
        let done = shared.copies_done.load(Ordering::Acquire);
        let told = shared.copies_told.swap(done, Ordering::AcqRel);
        (told != done).then(|| (told, done.wrapping_sub(1)))
    }

    /// How many notices there were to give so far: what an edge-triggered EPOLLERR follows.
    #[must_use]
    pub fn copies_done(&self, slot: u32) -> u32 {
        self.slot(slot).map_or(0, |s| s.copies_done.load(Ordering::Relaxed))
    }
}

/// A notice as `struct sock_extended_err`: no errno, the range of calls in `ee_info` and `ee_data`.
#[must_use]
pub fn notice((first, last): (u32, u32)) -> [u8; NOTICE_BYTES] {
    let mut bytes = [0; NOTICE_BYTES];
    bytes[4] = ORIGIN;
    bytes[6] = COPIED;
    bytes[8..12].copy_from_slice(&first.to_ne_bytes());
    bytes[12..16].copy_from_slice(&last.to_ne_bytes());
    bytes
}
