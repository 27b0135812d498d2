//! Which bytes beyond the in-order part of a stream have come. The bytes themselves are in the receive ring already.

use super::segment::MAX_SACK;
use alloc::boxed::Box;
use alloc::collections::VecDeque;

/// Ranges kept per connection: so many in any case, and one for each two full segments of the buffer, because a slow
/// start that overflows a queue loses every second one. A peer that makes more gets its segments dropped and must send
/// them again: the work for one segment is bounded whatever it sends (CVE-2018-5390, "SegmentSmack").
const LEAST_RANGES: usize = 64;
const MAX_RANGES: usize = 8192;

/// How many ranges a buffer of `bytes` allows whose peer sends segments of `mss`.
pub(super) fn most_ranges(bytes: u32, mss: u32) -> usize {
    (bytes as usize / (2 * mss.max(536) as usize)).clamp(LEAST_RANGES, MAX_RANGES)
}

/// Half-open ranges of positions, ascending, with a gap before each. Most connections never have any, and idle ones
/// keep nothing of what a bad moment needed.
#[derive(Debug, Default)]
pub(super) struct Assembler(Option<Box<Ranges>>);

#[derive(Debug, Default)]
struct Ranges {
    ranges: VecDeque<(u64, u64)>,
    /// Starts of what changed last, newest first: the order in which RFC 2018 section 4 wants blocks reported.
    recent: [u64; MAX_SACK],
}

impl Assembler {
    pub const fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Adds `start..end`. False: it would be one range more than `most`, and nothing was changed.
    pub fn insert(&mut self, start: u64, end: u64, most: usize) -> bool {
        start >= end || self.0.get_or_insert_default().insert(start, end, most)
    }

    /// The stream is in order up to `position`. Returns up to where it is with what was waiting, and forgets that.
    pub fn advance(&mut self, position: u64) -> u64 {
        let Some(ranges) = &mut self.0 else { return position };
        let reached = ranges.advance(position);
        if ranges.ranges.is_empty() {
            self.0 = None;
        }
        reached
    }

    /// The first part of `start..end` that is here already.
    pub fn overlap(&self, start: u64, end: u64) -> Option<(u64, u64)> {
        self.0.as_ref()?.overlap(start, end)
    }

    /// End of the last range.
    pub fn end(&self) -> Option<u64> {
        self.0.as_ref()?.ranges.back().map(|range| range.1)
    }

    /// Ranges to report, at most `out.len()`, most recently changed first. Returns how many.
    pub fn report(&self, out: &mut [(u64, u64)]) -> usize {
        self.0.as_ref().map_or(0, |ranges| ranges.report(out))
    }
}

impl Ranges {
    fn insert(&mut self, start: u64, end: u64, most: usize) -> bool {
        // What it touches, neighbours included, becomes one range.
        let first = self.ranges.partition_point(|range| range.1 < start);
        let last = self.ranges.partition_point(|range| range.0 <= end);
        if first == last {
            if self.ranges.len() >= most {
                return false;
            }
            self.ranges.insert(first, (start, end));
            self.note(start);
        } else {
            let merged = (start.min(self.ranges[first].0), end.max(self.ranges[last - 1].1));
            self.ranges[first] = merged;
            self.ranges.drain(first + 1..last);
            self.note(merged.0);
        }
        true
    }

    fn advance(&mut self, position: u64) -> u64 {
        let passed = self.ranges.partition_point(|range| range.0 <= position);
        let last = passed.checked_sub(1).and_then(|last| self.ranges.get(last));
        let reached = last.map_or(position, |range| range.1.max(position));
        self.ranges.drain(..passed);
        reached
    }

    fn overlap(&self, start: u64, end: u64) -> Option<(u64, u64)> {
        let at = self.ranges.partition_point(|range| range.1 <= start);
        let range = self.ranges.get(at).filter(|range| range.0 < end)?;
        Some((start.max(range.0), end.min(range.1)))
    }

    fn report(&self, out: &mut [(u64, u64)]) -> usize {
        let mut count = 0;
        let recent = self.recent.iter().filter_map(|start| self.containing(*start));
        for range in recent.chain(self.ranges.iter().copied().take(MAX_SACK)) {
            if count == out.len() {
                break;
            }
            if !out[..count].contains(&range) {
                out[count] = range;
                count += 1;
            }
        }
        count
    }

    fn containing(&self, position: u64) -> Option<(u64, u64)> {
        let at = self.ranges.partition_point(|range| range.1 <= position);
        self.ranges.get(at).copied().filter(|range| range.0 <= position)
    }

    fn note(&mut self, start: u64) {
        if self.recent[0] != start {
            let found = self.recent.iter().position(|s| *s == start).unwrap_or(MAX_SACK - 1);
            self.recent[..=found].rotate_right(1);
            self.recent[0] = start;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;
    use std::vec::Vec;

    #[test]
    fn newest_first() {
        let mut assembler = Assembler::default();
        for start in [10, 30, 50, 70, 90] {
            assert!(assembler.insert(start, start + 5, 64));
        }
        assert!(assembler.insert(35, 36, 64));
        let mut out = [(0, 0); 3];
        assert_eq!(assembler.report(&mut out), 3);
        assert_eq!(out, [(30, 36), (90, 95), (70, 75)]);
        assert_eq!(assembler.advance(10), 15);
        assert_eq!(assembler.report(&mut out), 3);
        assert_eq!(assembler.overlap(31, 36), Some((31, 36)));
        assert_eq!(assembler.overlap(31, 37), Some((31, 36)));
        assert_eq!(assembler.overlap(15, 16), None);
        assert_eq!(assembler.overlap(5, 32), Some((30, 32)));
    }

    #[test]
    fn bounded() {
        let mut assembler = Assembler::default();
        for i in 0..1000 {
            assert_eq!(assembler.insert(i * 10 + 1, i * 10 + 2, 64), i < 64);
        }
        // Growing what is there needs no room.
        assert!(assembler.insert(0, 5000, 64));
        assert_eq!(assembler.advance(0), 5000);
        assert!(assembler.is_empty());
        let most = [most_ranges(1 << 16, 1448), most_ranges(20 << 20, 1448), most_ranges(1 << 30, 88)];
        assert_eq!(most, [64, 7241, 8192]);
    }

    proptest! {
        #[test]
        fn as_a_set(steps in prop::collection::vec((any::<bool>(), 0_u64..300, 0_u64..40), 1..100)) {
            let mut assembler = Assembler::default();
            let mut model = BTreeSet::new();
            let mut base = 0;
            for (advance, start, len) in steps {
                if advance {
                    base = base.max(start);
                    let mut reached = base;
                    while model.contains(&reached) { reached += 1; }
                    prop_assert_eq!(assembler.advance(base), reached);
                    base = reached;
                    model.retain(|x| *x >= base);
                } else if start > base && assembler.insert(start, start + len, 64) {
                    model.extend(start..start + len);
                }
                let held: BTreeSet<u64> = assembler.0.iter().flat_map(|inner| &inner.ranges).flat_map(|r| r.0..r.1).collect();
                prop_assert_eq!(&held, &model);
                let inner: Vec<(u64, u64)> = assembler.0.iter().flat_map(|inner| &inner.ranges).copied().collect();
                prop_assert!(inner.windows(2).all(|w| w[0].1 < w[1].0));
            }
        }
    }
}
