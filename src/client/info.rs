//! TCP_INFO.

use core::sync::atomic::Ordering;

use rustix::io::Errno;
use sidestep_shm::wire::{INFO_BYTES, Reply, Request};

use crate::address::is_udp;
use crate::session::Session;

/// TCP_CLOSE of Linux's states.
const CLOSED: u8 = 7;

impl Session {
    /// getsockopt(TCP_INFO): `struct tcp_info` as it is now. The engine is asked, which costs two context switches;
    /// nothing is kept up to date for this otherwise.
    ///
    /// # Errors
    /// EOPNOTSUPP: UDP. EBADF: no such slot. ENETDOWN: the engine is gone.
    pub fn tcp_info(&self, slot: u32) -> Result<[u8; INFO_BYTES], Errno> {
        let shared = self.slot(slot)?;
        if is_udp(shared.kind.load(Ordering::Relaxed)) {
            return Err(Errno::OPNOTSUPP);
        }
        match self.ask(&Request::Info { slot }, None) {
            Ok(Reply::Info { info }) => Ok(info),
            Ok(_) => Err(Errno::PROTO),
            Err(Errno::NETDOWN) => Err(Errno::NETDOWN),
            // The stack doesn't have it yet, or no more.
            Err(_) => {
                let mut info = [0; INFO_BYTES];
                info[0] = match shared.tcp_state.load(Ordering::Relaxed) {
                    0 => CLOSED,
                    state => state as u8,
                };
                Ok(info)
            }
        }
    }
}
