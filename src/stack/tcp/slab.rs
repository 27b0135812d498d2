//! Records by index, with a generation that tells a stale name from a later record in the same place.

use alloc::vec::Vec;

#[derive(Debug)]
pub(super) struct Slab<T> {
    entries: Vec<Entry<T>>,
    free: Vec<u32>,
}

#[derive(Debug)]
struct Entry<T> {
    generation: u32,
    value: Option<T>,
}

impl<T> Slab<T> {
    pub const fn new() -> Self {
        Self { entries: Vec::new(), free: Vec::new() }
    }

    pub fn len(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    /// Index and generation of the new record.
    pub fn insert(&mut self, value: T) -> (u32, u32) {
        if let Some(index) = self.free.pop() {
            let entry = &mut self.entries[index as usize];
            entry.value = Some(value);
            return (index, entry.generation);
        }
        // Every table in use has a limit far below 2^30, which is what a flow reference has room for.
        let index = u32::try_from(self.entries.len()).expect("a bounded table");
        self.entries.push(Entry { generation: 0, value: Some(value) });
        (index, 0)
    }

    pub fn remove(&mut self, index: u32) -> Option<T> {
        let entry = self.entries.get_mut(index as usize)?;
        let value = entry.value.take()?;
        entry.generation = entry.generation.wrapping_add(1);
        self.free.push(index);
        Some(value)
    }

    pub fn get(&self, index: u32) -> Option<&T> {
        self.entries.get(index as usize)?.value.as_ref()
    }

    pub fn get_mut(&mut self, index: u32) -> Option<&mut T> {
        self.entries.get_mut(index as usize)?.value.as_mut()
    }

    /// Whether this name still means the record it was given for.
    pub fn is_current(&self, index: u32, generation: u32) -> bool {
        self.entries.get(index as usize).is_some_and(|entry| entry.generation == generation && entry.value.is_some())
    }

    pub fn generation(&self, index: u32) -> u32 {
        self.entries.get(index as usize).map_or(0, |entry| entry.generation)
    }

    pub fn iter(&self) -> impl Iterator<Item = (u32, u32, &T)> {
        (0_u32..).zip(&self.entries).filter_map(|(index, entry)| Some((index, entry.generation, entry.value.as_ref()?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stale_names_are_refused() {
        let mut slab = Slab::new();
        let (first, generation) = slab.insert('a');
        assert!(slab.is_current(first, generation));
        assert_eq!(slab.remove(first), Some('a'));
        assert_eq!(slab.remove(first), None);
        assert!(!slab.is_current(first, generation));
        let (second, newer) = slab.insert('b');
        assert_eq!(second, first);
        assert_ne!(newer, generation);
        assert_eq!(slab.iter().collect::<Vec<_>>(), [(second, newer, &'b')]);
        assert_eq!((slab.len(), slab.get(99), slab.is_current(99, 0)), (1, None, false));
    }
}
