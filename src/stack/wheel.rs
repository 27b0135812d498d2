//! A hierarchical timer wheel: arming, disarming and firing cost the same however many timers there are.
//!
//! Level 0 has 64 slots of one tick each, level 1 has 64 slots of 64 ticks, and so on; a timer sits on the level of the
//! highest six bits in which its tick differs from the present one, and moves down a level when its slot comes up.
//! Timers fire up to one tick late, never early. Varghese and Lauck, "Hashed and Hierarchical Timing Wheels", 1987.

use crate::Instant;
use alloc::vec::Vec;

/// 65.5 µs: fine enough for retransmission timeouts of a data centre.
const TICK_BITS: u32 = 16;
const SLOT_BITS: u32 = 6;
const SLOTS: usize = 1 << SLOT_BITS;
/// Enough for every tick of a 64-bit nanosecond clock, so that the wheel never wraps.
const LEVELS: usize = 8;
const NONE: u32 = u32::MAX;

/// An armed timer. Belongs to whoever armed it, who forgets it when it fires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TimerId(u32);

#[derive(Debug)]
struct Node {
    tick: u64,
    key: u32,
    next: u32,
    previous: u32,
    /// Level and slot of the list that holds the node; None when it is free.
    home: Option<(u8, u8)>,
}

/// Timers with a 32-bit key each.
#[derive(Debug)]
pub(crate) struct Wheel {
    nodes: Vec<Node>,
    free: u32,
    heads: [[u32; SLOTS]; LEVELS],
    /// A bit for each slot that holds something.
    occupied: [u64; LEVELS],
    /// Everything up to this tick has fired, but for what is still in this very slot of level 0.
    now: u64,
    armed: usize,
}

impl Wheel {
    pub const fn new() -> Self {
        Self { nodes: Vec::new(), free: NONE, heads: [[NONE; SLOTS]; LEVELS], occupied: [0; LEVELS], now: 0, armed: 0 }
    }

    /// Arms a timer. A deadline in the past fires at the next tick.
    pub fn insert(&mut self, at: Instant, key: u32) -> TimerId {
        let round_up = (1 << TICK_BITS) - 1;
        let tick = at.as_nanos().saturating_add(round_up) >> TICK_BITS;
        let tick = tick.max(self.now + 1);
        let node = Node { tick, key, next: NONE, previous: NONE, home: None };
        let index = if self.free == NONE {
            self.nodes.push(node);
            u32::try_from(self.nodes.len() - 1).expect("fewer than 2^32 timers")
        } else {
            let index = self.free;
            self.free = self.nodes[index as usize].next;
            self.nodes[index as usize] = node;
            index
        };
        self.armed += 1;
        self.link(index);
        TimerId(index)
    }

    /// Disarms. A timer that fired or was disarmed already is left alone.
    pub fn remove(&mut self, id: TimerId) {
        if self.nodes.get(id.0 as usize).is_some_and(|node| node.home.is_some()) {
            self.unlink(id.0);
            self.release(id.0);
        }
    }

    /// Number of armed timers.
    #[cfg(test)]
    pub const fn len(&self) -> usize {
        self.armed
    }

    /// No timer fires before this time. It may be a little earlier than the first deadline: then [`Self::pop`] gives
    /// nothing, and the next answer is closer.
    pub fn next(&self) -> Option<Instant> {
        self.first_slot().map(|(_, _, tick)| Instant::from_nanos(tick << TICK_BITS))
    }

    /// Takes one timer whose time has come.
    pub fn pop(&mut self, now: Instant) -> Option<u32> {
        let now = now.as_nanos() >> TICK_BITS;
        while let Some((level, slot, tick)) = self.first_slot() {
            if tick > now {
                break;
            }
            self.now = self.now.max(tick);
            let index = self.heads[level][slot];
            if level == 0 {
                self.unlink(index);
                let key = self.nodes[index as usize].key;
                self.release(index);
                return Some(key);
            }
            // The whole slot moves down at once: a part left behind would be later than what it is compared with.
            let mut next = core::mem::replace(&mut self.heads[level][slot], NONE);
            self.occupied[level] &= !(1 << slot);
            while next != NONE {
                let index = next;
                next = self.nodes[index as usize].next;
                self.link(index);
            }
        }
        self.now = self.now.max(now);
        None
    }

    /// Level, slot and first tick of the earliest slot that holds something.
    fn first_slot(&self) -> Option<(usize, usize, u64)> {
        // A lower level is always earlier: it lies within the present slot of the level above.
        let level = self.occupied.iter().position(|bits| *bits != 0)?;
        let shift = SLOT_BITS * level as u32;
        // All occupied slots lie at or after the present one: a timer's higher bits equal those of now.
        let slot = self.occupied[level].trailing_zeros();
        let above = self.now >> (shift + SLOT_BITS) << (shift + SLOT_BITS);
        Some((level, slot as usize, above + (u64::from(slot) << shift)))
    }

    fn link(&mut self, index: u32) {
        let tick = self.nodes[index as usize].tick;
        let differing = 63 - ((self.now ^ tick) | 1).leading_zeros();
        let level = (differing / SLOT_BITS) as usize;
        let slot = (tick >> (SLOT_BITS * level as u32)) as usize % SLOTS;
        let head = self.heads[level][slot];
        if head != NONE {
            self.nodes[head as usize].previous = index;
        }
        let node = &mut self.nodes[index as usize];
        node.next = head;
        node.previous = NONE;
        #[allow(clippy::cast_possible_truncation)]
        {
            node.home = Some((level as u8, slot as u8));
        }
        self.heads[level][slot] = index;
        self.occupied[level] |= 1 << slot;
    }

    fn unlink(&mut self, index: u32) {
        let node = &mut self.nodes[index as usize];
        let Some((level, slot)) = node.home.take() else { return };
        let (next, previous) = (node.next, node.previous);
        let (level, slot) = (usize::from(level), usize::from(slot));
        if next != NONE {
            self.nodes[next as usize].previous = previous;
        }
        if previous == NONE {
            self.heads[level][slot] = next;
            if next == NONE {
                self.occupied[level] &= !(1 << slot);
            }
        } else {
            self.nodes[previous as usize].next = next;
        }
    }

    fn release(&mut self, index: u32) {
        self.nodes[index as usize].next = self.free;
        self.free = index;
        self.armed -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::time::Duration;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    #[test]
    fn fires_in_time_and_once() {
        let mut wheel = Wheel::new();
        let deadlines = [0, 1, 50, 4_000, 70_000, 1_000_000, 60_000_000, 7_200_000_000_u64];
        for (key, micros) in deadlines.iter().enumerate() {
            wheel.insert(Instant::from_micros(*micros), key as u32);
        }
        let mut seen = [false; 8];
        for (key, micros) in deadlines.iter().enumerate() {
            // Follow the wheel's own advice on when to look.
            let fired = loop {
                let at = wheel.next().unwrap();
                if let Some(fired) = wheel.pop(at) {
                    assert!(at >= Instant::from_micros(*micros), "early: {at:?} for {micros}");
                    assert!(at.since(Instant::from_micros(*micros)) <= Duration::from_micros(132), "late");
                    break fired;
                }
            };
            seen[fired as usize] = true;
            // Those of one tick come in any order.
            assert!(key < 3 || fired == key as u32);
        }
        assert_eq!(seen, [true; 8]);
        assert_eq!(wheel.next(), None);
        assert_eq!(wheel.len(), 0);
    }

    #[test]
    fn very_late_deadlines_are_cut() {
        let mut wheel = Wheel::new();
        assert_eq!(wheel.pop(Instant::from_millis(5)), None);
        wheel.insert(Instant::from_nanos(u64::MAX), 9);
        assert_eq!(wheel.pop(Instant::from_millis(1_000_000)), None);
        assert_eq!(wheel.pop(Instant::from_nanos(u64::MAX)), Some(9));
    }

    proptest! {
        #[test]
        fn as_a_sorted_list(steps in prop::collection::vec((0_u8..3, 0_u64..1 << 34, any::<prop::sample::Index>()), 1..200)) {
            let mut wheel = Wheel::new();
            let mut model: BTreeMap<u32, (TimerId, u64)> = BTreeMap::new();
            let mut now = 0;
            for (key, (what, nanos, which)) in steps.into_iter().enumerate() {
                let key = key as u32;
                match what {
                    0 => {
                        let at = now + nanos;
                        model.insert(key, (wheel.insert(Instant::from_nanos(at), key), at));
                    }
                    1 if !model.is_empty() => {
                        let key = *model.keys().nth(which.index(model.len())).unwrap();
                        wheel.remove(model.remove(&key).unwrap().0);
                    }
                    _ => {
                        now += nanos / 4;
                        while let Some(key) = wheel.pop(Instant::from_nanos(now)) {
                            let (_, at) = model.remove(&key).expect("armed");
                            prop_assert!(at <= now);
                        }
                        let slack = 2 << TICK_BITS;
                        prop_assert!(model.values().all(|(_, at)| at + slack > now));
                    }
                }
                prop_assert_eq!(wheel.len(), model.len());
                prop_assert_eq!(wheel.next().is_some(), !model.is_empty());
            }
        }
    }
}
