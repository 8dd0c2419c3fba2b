//! Like functions beside each other.

use super::module::{Function, Module};
use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher},
};

/// Instructions in a row that make one feature of a function: whole, and by their opcodes alone.
const WHOLE: usize = 3;
const OPCODES: usize = 6;

/// Further repetitions of a feature within a function say nothing new.
const MAX_REPEATS: u64 = 8;

/// The functions that stay (those that represent themselves), type by type; within a type each is followed by the most
/// similar one that is left. Types in their order make the function section almost nothing.
pub fn by_likeness(module: &Module<'_>, representatives: &[u32]) -> Vec<u32> {
    let mut by_type: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for (index, function) in module.own_functions() {
        if representatives[index as usize] == index {
            by_type.entry(function.type_index).or_default().push(index);
        }
    }
    by_type.into_values().flat_map(|group| chain(module, representatives, group)).collect()
}

/// Orders the functions of one type.
fn chain(module: &Module<'_>, representatives: &[u32], mut group: Vec<u32>) -> Vec<u32> {
    let function = |index: u32| &module.functions[(index - module.imported_functions) as usize];
    // Where likeness says nothing, this order goes on.
    group.sort_by_cached_key(|&index| opcodes(function(index)));

    let mut owners: Vec<(u64, u32)> = Vec::new();
    for (place, &index) in (0u32..).zip(&group) {
        owners.extend(features(function(index), representatives).into_iter().map(|feature| (feature, place)));
    }
    let mut likeness = Likeness::new(owners, group.len());

    let mut ordered = Vec::with_capacity(group.len());
    let mut first_left = 0;
    let mut next = Some(0);
    while ordered.len() < group.len() {
        let place = next.unwrap_or_else(|| {
            while likeness.placed[first_left] {
                first_left += 1;
            }
            first_left
        });
        ordered.push(group[place]);
        next = likeness.place(place);
    }
    ordered
}

/// Who shares features with whom, among functions by their places in a group.
struct Likeness {
    /// Functions with each feature; only those not placed yet, cleaned when read.
    sharers: Vec<Vec<u32>>,
    /// Features of each function, indices into `sharers`.
    features: Vec<Vec<u32>>,
    placed: Vec<bool>,
    /// Scratch: shared features with the function in question.
    shared: Vec<u32>,
}

impl Likeness {
    /// `owners` pairs features with the functions that have them.
    fn new(mut owners: Vec<(u64, u32)>, functions: usize) -> Self {
        owners.sort_unstable();
        let mut likeness = Self {
            sharers: Vec::new(),
            features: vec![Vec::new(); functions],
            placed: vec![false; functions],
            shared: vec![0; functions],
        };
        for run in owners.chunk_by(|a, b| a.0 == b.0).filter(|run| run.len() > 1) {
            for &(_, place) in run {
                likeness.features[place as usize].push(likeness.sharers.len() as u32);
            }
            likeness.sharers.push(run.iter().map(|&(_, place)| place).collect());
        }
        likeness
    }

    /// Places a function and returns the most similar one that is left: the largest share of common features among all
    /// features of both; of equals the first. `None` if nothing is shared.
    fn place(&mut self, place: usize) -> Option<usize> {
        self.placed[place] = true;
        let mut touched = Vec::new();
        for &feature in &self.features[place] {
            self.sharers[feature as usize].retain(|&other| {
                if self.placed[other as usize] {
                    return false;
                }
                let shared = &mut self.shared[other as usize];
                if *shared == 0 {
                    touched.push(other);
                }
                *shared += 1;
                true
            });
        }
        let mut best: Option<(f64, u32)> = None;
        for other in touched {
            let shared = std::mem::take(&mut self.shared[other as usize]) as usize;
            let all = self.features[place].len() + self.features[other as usize].len() - shared;
            let share = shared as f64 / all as f64;
            if best.is_none_or(|(most, first)| share > most || (share == most && other < first)) {
                best = Some((share, other));
            }
        }
        best.map(|(_, other)| other as usize)
    }
}

fn opcodes(function: &Function<'_>) -> Vec<u8> {
    function.instructions.iter().map(|instruction| instruction.opcode()).collect()
}

/// Hashes of what functions may have in common: rows of instructions, with callees by their representatives, rows of
/// opcodes, and the declaration of locals.
fn features(function: &Function<'_>, representatives: &[u32]) -> Vec<u64> {
    let whole: Vec<u64> = function
        .instructions
        .iter()
        .map(|instruction| match instruction.callee {
            Some(callee) => hash(&(instruction.opcode(), representatives[callee as usize])),
            None => hash(instruction.bytes),
        })
        .collect();
    let opcodes = opcodes(function);
    let mut features = vec![hash(function.locals)];
    features.extend(whole.windows(WHOLE.min(whole.len()).max(1)).map(hash));
    features.extend(opcodes.windows(OPCODES.min(opcodes.len()).max(1)).map(|row| hash(&(OPCODES, row))));
    features.sort_unstable();
    features
        .chunk_by(|a, b| a == b)
        .flat_map(|run| (0..=MAX_REPEATS).zip(run).map(|(repeat, feature)| hash(&(feature, repeat))))
        .collect()
}

/// The same for the same content in every run (`DefaultHasher::new` has no random key).
fn hash(content: &(impl Hash + ?Sized)) -> u64 {
    let mut hasher = DefaultHasher::new();
    content.hash(&mut hasher);
    hasher.finish()
}
