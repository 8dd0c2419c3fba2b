//! A small map from feature (or message) numbers.

/// A sorted list that is used as a map: next to nothing in the bundle, where a `BTreeMap` is several kilobytes for each
/// type in it. Looking up is fast, inserting moves what comes after: meant for some hundred entries.
#[derive(Debug, Clone, PartialEq)]
pub struct ByIndex<T>(Vec<(u32, T)>);

impl<T> ByIndex<T> {
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    fn find(&self, index: u32) -> Result<usize, usize> {
        self.0.binary_search_by_key(&index, |(index, _)| *index)
    }

    pub fn get(&self, index: u32) -> Option<&T> {
        self.find(index).ok().map(|at| &self.0[at].1)
    }

    pub fn contains(&self, index: u32) -> bool {
        self.find(index).is_ok()
    }

    /// Puts a value in; returns whether there was none before.
    pub fn insert(&mut self, index: u32, value: T) -> bool {
        match self.find(index) {
            Ok(at) => {
                self.0[at].1 = value;
                false
            }
            Err(at) => {
                self.0.insert(at, (index, value));
                true
            }
        }
    }

    pub fn remove(&mut self, index: u32) -> Option<T> {
        self.find(index).ok().map(|at| self.0.remove(at).1)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// The numbers, rising.
    pub fn indices(&self) -> impl Iterator<Item = u32> + '_ {
        self.0.iter().map(|(index, _)| *index)
    }
}

impl<T> Default for ByIndex<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Extend<(u32, T)> for ByIndex<T> {
    fn extend<I: IntoIterator<Item = (u32, T)>>(&mut self, entries: I) {
        for (index, value) in entries {
            self.insert(index, value);
        }
    }
}

impl<T> FromIterator<(u32, T)> for ByIndex<T> {
    fn from_iter<I: IntoIterator<Item = (u32, T)>>(entries: I) -> Self {
        let mut map = Self::new();
        map.extend(entries);
        map
    }
}

impl<T> IntoIterator for ByIndex<T> {
    type Item = (u32, T);
    type IntoIter = std::vec::IntoIter<(u32, T)>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn it_does_what_a_map_does() {
        let (mut ours, mut map) = (ByIndex::new(), BTreeMap::new());
        for step in 0_u32..400 {
            let (index, value) = (step.wrapping_mul(2_654_435_761) % 64, step);
            if step % 3 == 0 {
                assert_eq!(ours.remove(index), map.remove(&index));
            } else {
                assert_eq!(ours.insert(index, value), map.insert(index, value).is_none());
            }
            assert_eq!(ours.get(index), map.get(&index));
            assert_eq!(ours.contains(index), map.contains_key(&index));
        }
        assert!(ours.indices().eq(map.keys().copied()));
        assert!(ours.clone().into_iter().eq(map.clone()));
        assert_eq!(map.into_iter().collect::<ByIndex<u32>>(), ours);
    }
}
