//! The tests, by what they show.

mod house;

use crate::harness::Case;

/// All tests, in the order in which they run: what everything rests on first.
#[must_use]
pub fn cases() -> Vec<Case> {
    [house::CASES].concat()
}
