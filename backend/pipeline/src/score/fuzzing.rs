//! Fuzzing (delphi): can one tell by the label where on a picture the feature fires?
//!
//! All pictures are examples of the feature. On half of them the parts where it fires are highlighted, on the others
//! parts where it does not: the map of another example, or, where that would lie over the true one, the map of the
//! picture itself at another place. So right and wrong highlights are of one kind, and only what is under them differs.
//! The judge says of each whether its highlights are right. Score and baseline are those of [`super::detection`].

use super::{
    Measured, PendingScore, ScoreError, Scorer, Shown, Subject,
    judge::{FEWEST, Judge, held_out, label_of, rng_of, seen},
    peers::Peers,
    trials::{Asked, Trial, measure},
};
use crate::interpret::masked::{self, BRIGHT, masked_png};
use api::Activation;
use rand::{Rng, seq::SliceRandom};
use std::sync::Arc;

/// Pictures with right highlights, and as many with wrong ones.
const PER_CLASS: usize = 10;
/// Largest IoU of a wrong highlight with the right one.
const MAX_OVERLAP: f32 = 0.1;
const ASKED: Asked = Asked { name: "fuzzing", prompt: include_str!("../../prompts/fuzzing.md") };

/// Balanced accuracy about highlights of a judge that knows only the label.
pub struct Fuzzing {
    judge: Arc<Judge>,
    peers: Arc<Peers>,
    author: String,
}

impl Fuzzing {
    pub fn new(judge: Arc<Judge>, peers: Arc<Peers>) -> Self {
        let settings = format!(
            "per class {PER_CLASS}, overlap {MAX_OVERLAP}, at once {}, {}",
            judge.pictures(),
            masked::settings()
        );
        let author = judge.author(ASKED.prompt, &settings);
        Self { judge, peers, author }
    }

    async fn measure(&self, subject: &Subject) -> Result<Option<Measured>, ScoreError> {
        let Some(label) = label_of(subject) else { return Ok(None) };
        let mut rng = rng_of(subject);
        // Right and wrong ones are of pictures that have both: a feature that fires everywhere has no wrong place.
        let mut places: Vec<(&Shown, Activation)> = held_out(&subject.shown)
            .iter()
            .filter_map(|shown| Some((shown, wrong_place(shown, &subject.shown, &mut rng)?)))
            .collect();
        let count = PER_CLASS.min(places.len() / 2);
        if count < FEWEST {
            return Ok(None);
        }
        places.shuffle(&mut rng);
        let mut trials = Vec::new();
        for (number, (shown, elsewhere)) in places.iter().take(2 * count).enumerate() {
            let truth = number < count;
            let map = if truth { &shown.activation } else { elsewhere };
            trials.push(Trial { png: seen(shown, |picture| masked_png(picture, map))?, truth });
        }
        trials.shuffle(&mut rng);
        measure(&self.judge, ASKED, label, subject, &self.peers, &mut rng, &trials).await.map(Some)
    }
}

impl Scorer for Fuzzing {
    fn type_name(&self) -> &str {
        "fuzzing"
    }

    fn author(&self) -> &str {
        &self.author
    }

    fn score<'a>(&'a self, subject: &'a Subject) -> PendingScore<'a> {
        Box::pin(self.measure(subject))
    }
}

/// The picture's activation somewhere else: where the feature fires on one of `all`, else where it fires here, moved.
/// `None` where everything lies over the true place.
fn wrong_place(shown: &Shown, all: &[Shown], rng: &mut impl Rng) -> Option<Activation> {
    let own = &shown.activation;
    let right = area(own);
    let is_elsewhere = |map: &Activation| {
        let area = area(map);
        area.contains(&true) && overlap(&right, &area) <= MAX_OVERLAP
    };
    let mut others: Vec<&Activation> = all
        .iter()
        .filter(|other| other.id() != shown.id() && other.activation.image.grid == own.image.grid)
        .map(|other| &other.activation)
        .collect();
    others.shuffle(rng);
    if let Some(other) = others.into_iter().find(|other| is_elsewhere(other)) {
        return Some(Activation { image: own.image.clone(), ..other.clone() });
    }
    let [rows, columns] = own.image.grid;
    let mut offsets: Vec<[u32; 2]> = (0..rows).flat_map(|down| (0..columns).map(move |along| [down, along])).collect();
    offsets.shuffle(rng);
    offsets.into_iter().map(|offset| moved(own, offset)).find(is_elsewhere)
}

/// Where the highlight is fully bright, row-major.
fn area(map: &Activation) -> Vec<bool> {
    let [rows, columns] = map.image.grid.map(|length| length as usize);
    let mut area = vec![false; rows * columns];
    for (index, value) in map.feature_acts_indices.iter().zip(&map.feature_acts_values) {
        // One that is not on the grid is told when the picture is drawn.
        if let Some(patch) = area.get_mut(*index as usize) {
            *patch = *value >= BRIGHT * map.max_value;
        }
    }
    area
}

/// IoU of two areas of one grid; 1 of nothing.
fn overlap(one: &[bool], other: &[bool]) -> f32 {
    let both = one.iter().zip(other).filter(|(one, other)| **one && **other).count();
    let either = one.iter().zip(other).filter(|(one, other)| **one || **other).count();
    if either == 0 { 1.0 } else { both as f32 / either as f32 }
}

/// The map moved down and to the right, what leaves the grid coming back on the other side.
fn moved(map: &Activation, [down, along]: [u32; 2]) -> Activation {
    let [rows, columns] = map.image.grid;
    let to = |index: &u32| {
        // Offsets are smaller than the grid, so it has patches.
        let (row, column) = (index / columns, index % columns);
        (row + down) % rows * columns + (column + along) % columns
    };
    Activation { feature_acts_indices: map.feature_acts_indices.iter().map(to).collect(), ..map.clone() }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // tests panic on purpose
    use super::*;
    use api::{ActivationImage, Picture};
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    fn fires_on(id: &str, patches: &[u32]) -> Shown {
        let picture = Picture { id: id.into(), ..Picture::default() };
        let activation = Activation {
            image: ActivationImage { picture, grid: [3, 4] },
            feature_acts_indices: patches.to_vec(),
            feature_acts_values: vec![2.0; patches.len()],
            max_value: 2.0,
            ..Activation::default()
        };
        Shown { activation, ..Shown::default() }
    }

    #[test]
    fn a_wrong_place_is_that_of_another_picture() {
        let all = [fires_on("a", &[0, 1]), fires_on("b", &[0, 1, 2]), fires_on("c", &[10, 11])];
        for seed in 0..20 {
            let found = wrong_place(&all[0], &all, &mut ChaCha8Rng::seed_from_u64(seed)).unwrap();
            assert_eq!(found.feature_acts_indices, [10, 11], "b lies over it");
            assert_eq!(found.image.picture.id, "a");
        }
    }

    #[test]
    fn else_it_is_the_own_one_moved() {
        let all = [fires_on("a", &[0, 1]), fires_on("b", &[0, 1])];
        let mut found = Vec::new();
        for seed in 0..20 {
            let wrong = wrong_place(&all[0], &all, &mut ChaCha8Rng::seed_from_u64(seed)).unwrap();
            let indices = wrong.feature_acts_indices;
            assert!(indices.len() == 2 && !indices.contains(&0) && !indices.contains(&1), "{indices:?}");
            found.push(indices);
        }
        found.sort();
        found.dedup();
        assert!(found.len() > 3, "{found:?}");
        assert_eq!(moved(&all[0].activation, [2, 3]).feature_acts_indices, [11, 8], "round the edge");
    }

    #[test]
    fn what_fires_everywhere_has_no_wrong_place() {
        let everywhere: Vec<u32> = (0..12).collect();
        let all = [fires_on("a", &everywhere), fires_on("b", &everywhere)];
        assert!(wrong_place(&all[0], &all, &mut ChaCha8Rng::seed_from_u64(0)).is_none());
        let nowhere = Shown::default();
        assert!(wrong_place(&nowhere, &all, &mut ChaCha8Rng::seed_from_u64(0)).is_none());
    }
}
