//! Sockets on their way from one process to another, SCM_RIGHTS.
//!
//! ```text
//!   sender ── SendAway { slot } + placeholder ──▶ noted by its SO_COOKIE; the slot has one holder more
//!      └─── the placeholder, in a message of the kernel's ───▶ receiver
//!   receiver ── TakeIn + placeholder ──▶ who shows the socket gets the slot, and holds it
//! ```
//!
//! Messages that nobody reads are dropped by the kernel without a word. So each placeholder is in an epoll set of ours
//! without a descriptor of ours: it leaves the set when the last process, and the last message, has let it go.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::epoll;
use rustix::io::Errno;
use rustix::net::sockopt;
use sidestep_shm::layout::IN_TRANSIT;
use sidestep_shm::wire::Reply;
use sidestep_stack::Instant;

use super::books::Books;

/// Sockets under way, or sent once and still open somewhere, at most.
const MOST: usize = 65_536;

/// A socket that was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sent {
    group: u32,
    slot: u32,
    /// Messages with it that nobody has read.
    unread: u32,
    /// Who made the placeholder.
    user: u32,
}

/// See the module.
#[derive(Debug)]
pub struct Transits {
    /// Made when first needed.
    epoll: Option<OwnedFd>,
    by_cookie: HashMap<u64, Sent>,
    /// When the set is to be looked at again.
    next_look: Instant,
}

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(1);

impl Transits {
    pub fn new() -> Self {
        Self { epoll: None, by_cookie: HashMap::new(), next_look: Instant::ZERO }
    }

    /// Whose placeholders are gone: what was noted of them is forgotten and returned.
    fn gone(&mut self) -> Vec<Sent> {
        let Some(epoll) = self.epoll.as_ref().filter(|_| !self.by_cookie.is_empty()) else { return Vec::new() };
        let Ok(text) = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", epoll.as_raw_fd())) else {
            return Vec::new();
        };
        let open = members(&text);
        let gone: Vec<u64> = self.by_cookie.keys().copied().filter(|c| !open.contains(c)).collect();
        gone.iter().filter_map(|cookie| self.by_cookie.remove(cookie)).collect()
    }

    fn watch(&mut self, placeholder: BorrowedFd<'_>, cookie: u64) -> io::Result<()> {
        let epoll = match &self.epoll {
            Some(epoll) => epoll,
            None => self.epoll.insert(epoll::create(epoll::CreateFlags::CLOEXEC)?),
        };
        // No events are asked for: nobody waits on it.
        match epoll::add(epoll, placeholder, epoll::EventData::new_u64(cookie), epoll::EventFlags::empty()) {
            // There already, by a descriptor that had the same number.
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }
}

/// The data of the members of an epoll set, proc_pid_fdinfo(5).
fn members(text: &str) -> std::collections::HashSet<u64> {
    let data = |line: &str| {
        let mut words = line.strip_prefix("tfd:")?.split_whitespace();
        words.find(|w| *w == "data:")?;
        u64::from_str_radix(words.next()?, 16).ok()
    };
    text.lines().filter_map(data).collect()
}

impl Books {
    /// A process is about to send `placeholder`, which stands for its `slot`.
    pub(super) fn send_away(&mut self, group: u32, process: u32, slot: u32, fds: Vec<OwnedFd>) -> Result<Reply, Errno> {
        let placeholder = fds.into_iter().next().ok_or(Errno::BADF)?;
        let cookie = sockopt::socket_cookie(&placeholder)?;
        let user = rustix::fs::fstat(&placeholder)?.st_uid;
        let shared = std::sync::Arc::clone(&self.group(group).ok_or(Errno::BADF)?.group);
        let in_shared = shared.region().slot(slot).ok_or(Errno::BADF)?;
        if !in_shared.is_held_by(process) {
            return Err(Errno::BADF);
        }
        if self.transits.by_cookie.len() >= MOST {
            return Err(Errno::NOBUFS);
        }
        self.transits.watch(placeholder.as_fd(), cookie).map_err(|_| Errno::NOBUFS)?;
        in_shared.hold(IN_TRANSIT);
        let known = self.transits.by_cookie.get(&cookie).filter(|s| (s.group, s.slot) == (group, slot));
        let unread = known.map_or(0, |s| s.unread) + 1;
        self.transits.by_cookie.insert(cookie, Sent { group, slot, unread, user });
        Ok(Reply::Done { address: [0; 16], port: 0 })
    }

    /// A process shows a placeholder that it got: the slot is open there from now on.
    pub(super) fn take_in(&mut self, group: u32, process: u32, fds: Vec<OwnedFd>) -> Result<Reply, Errno> {
        let placeholder = fds.into_iter().next().ok_or(Errno::BADF)?;
        let cookie = sockopt::socket_cookie(&placeholder)?;
        let sent = self.transits.by_cookie.get_mut(&cookie).ok_or(Errno::NOENT)?;
        if sent.group != group {
            // Its bytes lie in memory that this process doesn't have.
            return Err(Errno::XDEV);
        }
        let slot = sent.slot;
        sent.unread = sent.unread.saturating_sub(1);
        let last = sent.unread == 0;
        let shared = &self.group(group).ok_or(Errno::BADF)?.group;
        let in_shared = shared.region().slot(slot).ok_or(Errno::BADF)?;
        if !in_shared.is_held() {
            return Err(Errno::NOENT);
        }
        in_shared.hold(process);
        if last {
            in_shared.let_go(IN_TRANSIT);
        }
        Ok(Reply::Slot { slot })
    }

    /// Which group a placeholder's socket belongs to: for a process of the same user that has no group yet.
    pub(super) fn whose(&self, user: u32, placeholder: &OwnedFd) -> Result<Reply, Errno> {
        let sent = self.transits.by_cookie.get(&sockopt::socket_cookie(placeholder)?).ok_or(Errno::NOENT)?;
        if user != 0 && user != sent.user {
            return Err(Errno::ACCESS);
        }
        let group = self.group(sent.group).ok_or(Errno::NOENT)?.group.token;
        Ok(Reply::Group { group })
    }

    /// Lets go what was sent and will not arrive.
    pub(super) fn look_after_transits(&mut self, now: Instant) {
        if now < self.transits.next_look {
            return;
        }
        self.transits.next_look = now + LOOK_EVERY;
        for Sent { group, slot, unread, .. } in self.transits.gone() {
            let Some(state) = self.group(group).filter(|_| unread > 0) else { continue };
            let region = state.group.region();
            let Some(in_shared) = region.slot(slot) else { continue };
            in_shared.let_go(IN_TRANSIT);
            if in_shared.is_held() {
                continue;
            }
            if state.books.contains_key(&slot) {
                self.unheld(group, slot);
            } else {
                // As a program's close(): the slot's shard looks.
                let shard = in_shared.shard.load(std::sync::atomic::Ordering::Relaxed);
                if let (Some(door), Some(bell)) = (region.door(shard), state.group.doorbell(shard)) {
                    door.dirty.mark(slot);
                    let _ = rustix::io::write(bell, &1u64.to_ne_bytes());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketType, socket};

    #[test]
    fn a_placeholder_is_known_until_its_last_descriptor_is_closed() {
        let mut transits = Transits::new();
        let sent = |slot| Sent { group: 0, slot, unread: 1, user: 0 };
        let mut open = Vec::new();
        for slot in 0..3 {
            let placeholder = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
            let cookie = sockopt::socket_cookie(&placeholder).unwrap();
            // The engine's own descriptor is another one, and is closed at once.
            transits.watch(placeholder.try_clone().unwrap().as_fd(), cookie).unwrap();
            transits.by_cookie.insert(cookie, sent(slot));
            open.push(placeholder);
        }
        assert_eq!(transits.gone(), []);
        open.remove(1);
        assert_eq!(transits.gone(), [sent(1)]);
        open.clear();
        let mut rest = transits.gone();
        rest.sort_by_key(|s| s.slot);
        assert_eq!(rest, [sent(0), sent(2)]);
    }

    #[test]
    fn members_of_a_set_are_read() {
        let text = "pos:\t0\nflags:\t02\ntfd:        7 events:       18 data:             1f4  pos:0 ino:9 sdev:8\n";
        assert_eq!(members(text), [0x1f4].into());
        assert!(members("tfd: x").is_empty());
    }
}
