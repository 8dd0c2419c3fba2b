//! Labels by network dissection (Bau et al. 2017) with exact masks: which truth does a feature's area match best?
//!
//! Protocol: the 40 pictures with the highest mean activation; patches above a fifth of the feature's maximum are its
//! area. Pictures of even rank choose the truth, pictures of odd rank measure it, so that the choice cannot flatter
//! the score. Two things keep a choice from being cheap:
//!
//! - the *random baseline* is the IoU of the same areas, each moved on by one picture and by a random offset: what the
//!   truth's size alone is worth. The truth with the largest share of the possible gain over it wins
//!   (`(IoU − baseline) / (1 − baseline)`, the form of Cohen's kappa);
//! - among truths that are as good, the rarest in the whole cache set wins: `brick background` before `empty
//!   background` for a feature that fires on bricks only.

use super::cache::Truth;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeMap;

/// Pictures looked at.
pub const PICTURES: usize = 40;
/// Share of the maximum above which a patch belongs to the area.
pub const AREA_THRESHOLD: f32 = 0.2;
/// Labels below this IoU are not given.
pub const MIN_IOU: f32 = 0.15;
/// Nor labels that gain less than this share over the random baseline.
pub const MIN_GAIN: f32 = 0.1;
/// Truths whose gains differ by less are as good as each other.
const AS_GOOD: f32 = 0.04;
/// Random offsets per picture of the baseline.
const OFFSETS: usize = 4;

/// One picture's area and truth.
pub struct Seen<'a> {
    pub area: Vec<bool>,
    pub masks: &'a BTreeMap<Truth, Vec<bool>>,
}

/// The best truth for a feature.
#[derive(Debug, Clone, PartialEq)]
pub struct Match {
    pub truth: Truth,
    /// On pictures that did not choose it.
    pub iou: f32,
    pub baseline: f32,
}

/// Area where the activation is above [`AREA_THRESHOLD`] of `max`.
pub fn area(patches: usize, indices: &[u16], values: &[f32], max: f32) -> Vec<bool> {
    let mut area = vec![false; patches];
    for (&index, &value) in indices.iter().zip(values) {
        area[index as usize] = value > AREA_THRESHOLD * max;
    }
    area
}

/// Intersection and union, summed over pictures.
#[derive(Debug, Clone, Copy, Default)]
struct Overlap {
    both: u32,
    either: u32,
}

impl Overlap {
    fn add(&mut self, area: &[bool], mask: Option<&Vec<bool>>) {
        for (patch, &on) in area.iter().enumerate() {
            let truth = mask.is_some_and(|mask| mask[patch]);
            self.both += u32::from(on && truth);
            self.either += u32::from(on || truth);
        }
    }

    fn iou(self) -> f32 {
        if self.either == 0 { 0.0 } else { self.both as f32 / self.either as f32 }
    }
}

/// The area on a square grid, moved right and down with wrap-around.
fn moved(area: &[bool], right: usize, down: usize) -> Vec<bool> {
    let grid = area.len().isqrt().max(1);
    (0..area.len())
        .map(|patch| {
            let (x, y) = (patch % grid, patch / grid);
            area[((y + grid - down % grid) % grid) * grid + (x + grid - right % grid) % grid]
        })
        .collect()
}

/// IoU of one truth with the areas, summed over pictures.
fn iou(seen: &[&Seen<'_>], truth: &Truth) -> f32 {
    let mut overlap = Overlap::default();
    for picture in seen {
        overlap.add(&picture.area, picture.masks.get(truth));
    }
    overlap.iou()
}

/// The same with every area moved on by one picture and by random offsets.
fn random_iou(seen: &[&Seen<'_>], truth: &Truth) -> f32 {
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let mut overlap = Overlap::default();
    for (i, picture) in seen.iter().enumerate() {
        let area = &seen[(i + 1) % seen.len()].area;
        for _ in 0..OFFSETS {
            let offset = moved(area, rng.random_range(0..area.len()), rng.random_range(0..area.len()));
            overlap.add(&offset, picture.masks.get(truth));
        }
    }
    overlap.iou()
}

/// Share of the possible gain over the baseline.
fn gain(iou: f32, baseline: f32) -> f32 {
    (iou - baseline) / (1.0 - baseline).max(1e-6)
}

/// Share of all patches that show each truth.
pub fn frequencies<'a>(pictures: impl Iterator<Item = &'a BTreeMap<Truth, Vec<bool>>>) -> BTreeMap<Truth, f32> {
    let mut counts: BTreeMap<Truth, f32> = BTreeMap::new();
    let mut patches = 0;
    for masks in pictures {
        patches += masks.values().next().map_or(0, Vec::len);
        for (truth, mask) in masks {
            *counts.entry(truth.clone()).or_default() += mask.iter().filter(|on| **on).count() as f32;
        }
    }
    counts.values_mut().for_each(|count| *count /= patches.max(1) as f32);
    counts
}

/// The truth that the feature's area matches best; `None` if nothing reaches [`MIN_IOU`] and [`MIN_GAIN`].
///
/// `frequency` holds the share of all patches that show a truth ([`frequencies`]).
pub fn best_match(seen: &[Seen<'_>], frequency: &BTreeMap<Truth, f32>) -> Option<Match> {
    let choosing: Vec<&Seen<'_>> = seen.iter().step_by(2).collect();
    let measuring: Vec<&Seen<'_>> = seen.iter().skip(1).step_by(2).collect();
    if measuring.len() < 3 {
        return None;
    }
    // Only truths that several of the pictures show can be what the feature is about.
    let mut shown: BTreeMap<&Truth, usize> = BTreeMap::new();
    for truth in choosing.iter().flat_map(|picture| picture.masks.keys()) {
        *shown.entry(truth).or_default() += 1;
    }
    let gains: Vec<(&Truth, f32)> = shown
        .into_iter()
        .filter(|(_, pictures)| *pictures >= 2)
        .map(|(truth, _)| (truth, iou(&choosing, truth)))
        .filter(|(_, iou)| *iou >= MIN_IOU)
        .map(|(truth, iou)| (truth, gain(iou, random_iou(&choosing, truth))))
        .collect();
    let most = gains.iter().map(|(_, gain)| *gain).fold(f32::MIN, f32::max);
    let rarity = |truth: &Truth| frequency.get(truth).copied().unwrap_or_default();
    let (truth, _) = gains
        .into_iter()
        .filter(|(_, gain)| *gain >= most - AS_GOOD)
        .min_by(|a, b| rarity(a.0).total_cmp(&rarity(b.0)).then_with(|| a.0.cmp(b.0)))?;
    let (iou, baseline) = measure(seen, truth);
    let found = Match { truth: truth.clone(), iou, baseline };
    (most >= MIN_GAIN && found.iou >= MIN_IOU && gain(found.iou, found.baseline) >= MIN_GAIN).then_some(found)
}

/// IoU of a truth with the feature's areas, and its random baseline, on the pictures that did not choose the truth.
pub fn measure(seen: &[Seen<'_>], truth: &Truth) -> (f32, f32) {
    let measuring: Vec<&Seen<'_>> = seen.iter().skip(1).step_by(2).collect();
    (iou(&measuring, truth), random_iou(&measuring, truth))
}

/// A label out of caption words.
#[derive(Debug, Clone, PartialEq)]
pub struct CaptionLabel {
    pub description: String,
    /// Share of the captions that have the first word.
    pub share: f32,
    /// The same over all captions.
    pub baseline: f32,
}

/// The words that go with the feature most, as a label. Arguments as in [`words_by_pmi`].
pub fn caption_label(with: &[&str], count: &BTreeMap<String, usize>, total: usize) -> Option<CaptionLabel> {
    let words = words_by_pmi(with, count, total);
    let (first, _) = words.first()?;
    let has = |caption: &&&str| caption_words(caption).contains(first);
    let list = words.iter().map(|(word, _)| word.as_str()).collect::<Vec<_>>().join(", ");
    Some(CaptionLabel {
        description: format!("pictures with: {list}"),
        share: with.iter().filter(has).count() as f32 / with.len().max(1) as f32,
        baseline: count.get(first).copied().unwrap_or_default() as f32 / total.max(1) as f32,
    })
}

/// Words of the captions that go with the feature most, by pointwise mutual information.
///
/// `with` holds the captions of pictures where it fires, `count` how often each word occurs in all `total` captions.
pub fn words_by_pmi(with: &[&str], count: &BTreeMap<String, usize>, total: usize) -> Vec<(String, f32)> {
    let mut here: BTreeMap<String, usize> = BTreeMap::new();
    for caption in with {
        for word in caption_words(caption) {
            *here.entry(word).or_default() += 1;
        }
    }
    let mut scored: Vec<(String, f32)> = here
        .into_iter()
        .filter(|(_, n)| *n >= 3)
        .filter_map(|(word, n)| {
            let all = *count.get(&word)? as f32 / total as f32;
            let pmi = (n as f32 / with.len() as f32 / all).log2();
            // Weighted by how many of the pictures it explains, so that a rare word does not win by luck.
            (pmi > 0.3).then_some((word, pmi * n as f32 / with.len() as f32))
        })
        .collect();
    scored.sort_by(|a, b| b.1.total_cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    scored.truncate(3);
    scored
}

/// Content words of a caption, each once.
pub fn caption_words(caption: &str) -> Vec<String> {
    const EMPTY: [&str; 9] = ["a", "an", "the", "at", "in", "on", "and", "background", "face"];
    let mut words: Vec<String> = caption
        .split(|c: char| !c.is_alphanumeric())
        .filter(|word| !word.is_empty())
        .map(str::to_lowercase)
        .filter(|word| !EMPTY.contains(&word.as_str()))
        .collect();
    words.sort();
    words.dedup();
    words
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // tests panic on purpose
    use super::*;
    use api::Category;

    fn truth(name: &str) -> Truth {
        Truth { category: Category::Object, name: name.into() }
    }

    #[test]
    fn a_feature_that_follows_a_concept_gets_its_name_and_beats_the_baseline() {
        let masks: Vec<BTreeMap<Truth, Vec<bool>>> = (0..12usize)
            .map(|i| {
                let cat: Vec<bool> = (0..16).map(|patch| patch == i || patch == i + 1).collect();
                let sky: Vec<bool> = (0..16).map(|patch| patch < 8).collect();
                BTreeMap::from([(truth("cat"), cat), (truth("sky"), sky)])
            })
            .collect();
        let seen: Vec<Seen<'_>> =
            masks.iter().map(|masks| Seen { area: masks[&truth("cat")].clone(), masks }).collect();
        let found = best_match(&seen, &frequencies(masks.iter())).unwrap();
        assert_eq!(found.truth, truth("cat"));
        assert!((found.iou - 1.0).abs() < 1e-6);
        assert!(found.baseline < 0.3, "{}", found.baseline);
    }

    #[test]
    fn an_area_that_matches_nothing_gets_no_label() {
        let masks: Vec<BTreeMap<Truth, Vec<bool>>> =
            (0..12usize).map(|_| BTreeMap::from([(truth("cat"), (0..64).map(|patch| patch < 32).collect())])).collect();
        let seen: Vec<Seen<'_>> =
            masks.iter().map(|masks| Seen { area: (0..64).map(|patch| patch == 60).collect(), masks }).collect();
        assert_eq!(best_match(&seen, &frequencies(masks.iter())), None);
    }

    #[test]
    fn a_place_that_every_picture_has_must_beat_chance_to_be_a_label() {
        let corner: Vec<bool> = (0..64).map(|patch| patch % 8 < 3 && patch / 8 < 3).collect();
        let masks: Vec<BTreeMap<Truth, Vec<bool>>> = (0..12)
            .map(|_| BTreeMap::from([(truth("corner"), corner.clone()), (truth("all"), vec![true; 64])]))
            .collect();
        let at = |area: &[bool]| {
            let seen: Vec<Seen<'_>> = masks.iter().map(|masks| Seen { area: area.to_vec(), masks }).collect();
            best_match(&seen, &frequencies(masks.iter()))
        };
        let found = at(&corner).unwrap();
        assert_eq!(found.truth, truth("corner"));
        assert!(found.baseline < 0.4, "{}", found.baseline);
        assert_eq!(at(&[true; 64]), None, "everything everywhere is no match");
    }

    #[test]
    fn of_truths_that_are_as_good_the_rarest_is_the_label() {
        let background: Vec<bool> = (0..64).map(|patch| patch >= 20).collect();
        let masks: Vec<BTreeMap<Truth, Vec<bool>>> = (0..24usize)
            .map(|i| {
                let mut masks = BTreeMap::from([(truth("background"), background.clone())]);
                if i < 12 {
                    masks.insert(truth("bricks"), background.clone());
                }
                masks
            })
            .collect();
        let seen: Vec<Seen<'_>> = masks[..12].iter().map(|masks| Seen { area: background.clone(), masks }).collect();
        assert_eq!(best_match(&seen, &frequencies(masks.iter())).unwrap().truth, truth("bricks"));
    }

    #[test]
    fn words_that_everything_has_are_not_labels() {
        let captions = ["a red cat", "a red cat", "a red cat", "a red dog"];
        let all = BTreeMap::from([("red".to_string(), 100), ("cat".to_string(), 5), ("dog".to_string(), 50)]);
        let words = words_by_pmi(&captions, &all, 100);
        assert_eq!(words[0].0, "cat");
        assert!(words.iter().all(|(word, _)| word != "red"));
    }
}
