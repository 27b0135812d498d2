//! What few connections have, or have for a moment only: in one box, so that the others pay for a pointer.

use super::connection::{Connection, FIRST};
use super::fast_open::Stage;
use super::path::Search;
use alloc::collections::VecDeque;

/// Ends of records that wait to be acknowledged; what is more is not kept apart.
const MOST_RECORDS: usize = 1024;

#[derive(Debug, Default)]
pub(super) struct Rare {
    /// Until the handshake is complete.
    pub fast_open: Option<Stage>,
    /// Ends of records (MSG_EOR), in order: no segment holds bytes of both sides.
    pub records: VecDeque<u64>,
    /// For how large packets may be.
    pub search: Option<Search>,
}

impl Rare {
    pub const fn search(&mut self) -> Option<&mut Search> {
        self.search.as_mut()
    }

    fn is_empty(&self) -> bool {
        self.fast_open.is_none() && self.records.is_empty() && self.search.is_none()
    }
}

impl Connection {
    pub fn fast_open(&self) -> Option<&Stage> {
        self.rare.as_deref()?.fast_open.as_ref()
    }

    pub fn fast_open_mut(&mut self) -> Option<&mut Stage> {
        self.rare.as_deref_mut()?.fast_open.as_mut()
    }

    pub fn take_fast_open(&mut self) -> Option<Stage> {
        let stage = self.rare.as_deref_mut()?.fast_open.take();
        self.tidy();
        stage
    }

    /// A record of the owner's ends after `end` bytes of its stream.
    pub fn end_record(&mut self, end: u64) {
        let position = end.saturating_add(FIRST);
        let records = &mut self.rare.get_or_insert_default().records;
        let in_order = records.back().is_none_or(|last| *last < position);
        if in_order && (self.nxt.max(FIRST)..=self.tail).contains(&position) && records.len() < MOST_RECORDS {
            records.push_back(position);
        }
    }

    /// Where the record ends that is sent next, if its end is known.
    pub fn record_end(&self) -> Option<u64> {
        let records = &self.rare.as_deref()?.records;
        records.get(records.partition_point(|end| *end <= self.nxt)).copied()
    }

    /// Whether a record ends here.
    pub fn is_record_end(&self, position: u64) -> bool {
        self.rare.as_deref().is_some_and(|rare| rare.records.binary_search(&position).is_ok())
    }

    /// Ends of records that were acknowledged are of no use any more.
    pub fn forget_records(&mut self) {
        let Some(rare) = self.rare.as_deref_mut().filter(|rare| !rare.records.is_empty()) else { return };
        while rare.records.front().is_some_and(|end| *end <= self.una) {
            rare.records.pop_front();
        }
        self.tidy();
    }

    fn tidy(&mut self) {
        if self.rare.as_deref().is_some_and(Rare::is_empty) {
            self.rare = None;
        }
    }
}
