//! Slots that a process took from the free ones and left behind where nobody knows of them: it died before it said what
//! the socket is for, or between taking the slot and writing down that it holds it.

use std::sync::Arc;
use std::time::Duration;

use sidestep_stack::Instant;

use super::books::Books;
use super::group::Group;

/// How long a slot that nobody holds may look lost before it is: far longer than the few instructions between taking a
/// slot and holding it.
const GRACE: Duration = Duration::from_secs(10);

/// Slots of a group that looked lost when one of its processes had died.
pub(super) struct Suspects {
    group: Arc<Group>,
    slots: Vec<u32>,
    /// None: not looked at yet.
    until: Option<Instant>,
}

/// Whether a slot is neither free nor held, and the engine knows nothing of it.
fn looks_lost(group: &Group, slot: u32) -> bool {
    let region = group.region();
    let unknown = group.user(slot) == 0 && !group.is_bound(slot);
    unknown && !region.free_slots().contains(slot) && region.slot(slot).is_some_and(|s| !s.is_held())
}

impl Books {
    /// After the death of a process: gives back what only it had, and remembers what may have been on its way to it.
    pub(super) fn find_lost(&mut self, group: u32, process: u32) {
        let Some(state) = self.group(group) else { return };
        let shared = Arc::clone(&state.group);
        let mut slots = Vec::new();
        for slot in 0..shared.region().geometry().open_slots {
            let Some(in_shared) = shared.region().slot(slot) else { continue };
            let was_its = in_shared.let_go(process);
            if !looks_lost(&shared, slot) {
                continue;
            }
            if was_its {
                shared.free(slot, 0);
            } else {
                slots.push(slot);
            }
        }
        if !slots.is_empty() {
            self.suspects.push(Suspects { group: shared, slots, until: None });
        }
    }

    /// To be called every turn: gives back slots that still look lost after the time of grace.
    pub(super) fn give_back_lost(&mut self, now: Instant) {
        for suspects in &mut self.suspects {
            suspects.slots.retain(|&slot| looks_lost(&suspects.group, slot));
            if now >= *suspects.until.get_or_insert(now + GRACE) {
                tracing::debug!(slots = suspects.slots.len(), "sockets of a process that died while it opened them");
                suspects.slots.drain(..).for_each(|slot| suspects.group.free(slot, 0));
            }
        }
        self.suspects.retain(|s| !s.slots.is_empty());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::books::{ControlSettings, EngineGauges};
    use crate::shard::mailbox::Mailbox;
    use sidestep_shm::Geometry;
    use sidestep_shm::slot::kind;
    use sidestep_shm::wire::{PROTOCOL, Request};

    /// Books without shards: nothing asks them anything here.
    fn books() -> Books {
        let geometry =
            Geometry { shards: 1, open_slots: 8, accept_slots: 8, rx_bytes: 65_536, tx_bytes: 65_536, pool_bytes: 0 };
        let settings = ControlSettings {
            geometry,
            spin_us: 0,
            rules: Vec::new(),
            addresses: Vec::new(),
            loopback_in_stack: true,
            ephemeral_ports: (40_000, 50_000),
            shared_address: false,
            kernel_ports: Vec::new(),
            facts: serde_json::Value::Null,
        };
        let mailboxes: Arc<[Mailbox]> = Arc::new([]);
        Books::new(settings, mailboxes, None, Arc::new(EngineGauges::default()), 7, None)
    }

    #[test]
    fn what_a_dead_process_had_is_free_again() {
        let mut books = books();
        for _ in 0..2 {
            books.answer(None, Request::Hello { protocol: PROTOCOL, group: 9, pid: 1 }, Vec::new());
        }
        let group = Arc::clone(&books.group(0).unwrap().group);
        let region = group.region();
        let claim = || region.free_slots().claim().unwrap();
        // Opened and held; taken and not yet held; held by a process that lives.
        let (opened, taken, living) = (claim(), claim(), claim());
        for (slot, process) in [(opened, 0), (living, 1)] {
            region.slot(slot).unwrap().hold(process);
            region.slot(slot).unwrap().kind.store(kind::TCP4, std::sync::atomic::Ordering::SeqCst);
        }
        books.find_lost(0, 0);
        let free = |slot| region.free_slots().contains(slot);
        assert_eq!([opened, taken, living].map(free), [true, false, false]);
        let at = Instant::from_millis(1);
        books.give_back_lost(at);
        books.give_back_lost(at + GRACE / 2);
        assert_eq!([opened, taken, living].map(free), [true, false, false]);
        books.give_back_lost(at + GRACE);
        assert_eq!([opened, taken, living].map(free), [true, true, false]);
        assert!(books.suspects.is_empty());
    }
}
