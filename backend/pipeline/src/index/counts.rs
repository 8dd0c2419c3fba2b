//! Exact counts and choices over any number of activations, in memory that does not grow with them.

use half::f16;
use std::collections::BinaryHeap;

/// How often each positive half float occurs: there are 31,743 of them, so nothing has to be rounded.
pub(super) struct ValueCounts {
    counts: Vec<u64>,
    /// Bits of the values that occur.
    seen: Vec<u16>,
}

impl ValueCounts {
    pub fn new() -> Self {
        Self { counts: vec![0; 1 << 15], seen: Vec::new() }
    }

    pub fn add(&mut self, value: f16) {
        let count = &mut self.counts[slot(value)];
        if *count == 0 {
            self.seen.push(value.to_bits());
        }
        *count += 1;
    }

    /// Values and how often they occur, largest first.
    pub fn falling(&mut self) -> Vec<(f16, u64)> {
        self.seen.sort_unstable_by(|a, b| b.cmp(a));
        self.seen.iter().map(|bits| f16::from_bits(*bits)).map(|value| (value, self.counts[slot(value)])).collect()
    }

    /// Turns counts into ranks: from now on [`Self::next_rank`] is asked for.
    pub fn rank(&mut self) {
        let mut before = 0;
        for (value, count) in self.falling() {
            self.counts[slot(value)] = before;
            before += count;
        }
    }

    /// How many values come before this one: all larger ones, and the equal ones that were asked for earlier.
    pub fn next_rank(&mut self, value: f16) -> u64 {
        let rank = &mut self.counts[slot(value)];
        *rank += 1;
        *rank - 1
    }

    pub fn clear(&mut self) {
        for bits in self.seen.drain(..) {
            self.counts[slot(f16::from_bits(bits))] = 0;
        }
    }
}

/// Positive half floats are in the order of their bits; there is no other value in a checked file.
fn slot(value: f16) -> usize {
    usize::from(value.to_bits() & 0x7fff)
}

/// The `most` smallest of what is offered.
pub(super) struct Smallest<T> {
    most: usize,
    heap: BinaryHeap<T>,
}

impl<T: Ord> Smallest<T> {
    pub fn new(most: usize) -> Self {
        Self { most, heap: BinaryHeap::new() }
    }

    pub fn offer(&mut self, item: T) {
        if self.heap.len() < self.most {
            self.heap.push(item);
        } else if let Some(mut largest) = self.heap.peek_mut()
            && item < *largest
        {
            *largest = item;
        }
    }

    /// Smallest first.
    pub fn into_sorted(self) -> Vec<T> {
        self.heap.into_sorted_vec()
    }
}

/// A number that looks random for each input, and is different for each (the finaliser of SplitMix64, a bijection).
/// The smallest of them are a sample that does not depend on the order.
pub(super) fn mix(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_and_ranks_are_those_of_the_sorted_values() {
        let values: Vec<f16> = [0.5, 3.0, 0.5, 65504.0, 6e-8, 0.5].map(f16::from_f32).to_vec();
        let mut counts = ValueCounts::new();
        for _ in 0..2 {
            values.iter().for_each(|value| counts.add(*value));
            let expected = [(65504.0, 1), (3.0, 1), (0.5, 3), (6e-8, 1)];
            assert_eq!(counts.falling(), expected.map(|(value, count)| (f16::from_f32(value), count)));
            counts.rank();
            let ranks: Vec<u64> = values.iter().map(|value| counts.next_rank(*value)).collect();
            assert_eq!(ranks, [2, 1, 3, 0, 5, 4]);
            counts.clear();
        }
        assert!(counts.falling().is_empty() && counts.counts.iter().all(|count| *count == 0));
    }

    #[test]
    fn the_smallest_are_kept() {
        for most in [0, 1, 5, 200] {
            let mut smallest = Smallest::new(most);
            (0..100u64).for_each(|number| smallest.offer(mix(number)));
            let mut expected: Vec<u64> = (0..100).map(mix).collect();
            expected.sort_unstable();
            expected.dedup();
            assert_eq!(expected.len(), 100);
            expected.truncate(most);
            assert_eq!(smallest.into_sorted(), expected);
        }
    }
}
