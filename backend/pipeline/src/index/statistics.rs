//! What is counted of each feature: its rows are gone through once for numbers, and once more for the examples that the
//! numbers choose. Memory holds the examples, whatever the feature's density.

use super::{
    IndexError, Pool,
    counts::{Smallest, ValueCounts, mix},
    feature::{Firing, QUANTILES, bar_of, strength},
    together::SKETCH,
};
use crate::cache::Activation;
use api::ActivationKind;
use half::f16;
use rayon::prelude::*;
use std::{collections::BTreeMap, ops::Range};
use store::files::{ActivationsByFeature, FileError};

/// Rows of a feature that are kept in memory to be gone through twice; more are read twice.
const IN_MEMORY: u64 = 1 << 18;
/// Groups of features that are counted before their results are written, in order.
const AHEAD: usize = 64;

/// What is asked for.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    /// Positions of the base picture's patches.
    pub base: Range<u32>,
    /// Of each kind.
    pub examples: usize,
    /// Bars of the histogram.
    pub bins: usize,
}

/// What is known about a feature from its activations.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Studied {
    pub feature: u32,
    /// Activations, and pictures that have some.
    pub activations: u64,
    pub pictures: u64,
    pub max: f32,
    pub mean: f32,
    /// Activations per bar between 0 and `max`; none if it is dead.
    pub heights: Vec<f32>,
    /// The smallest hashes of the tokens where it fires, rising.
    pub sketch: Vec<u64>,
    pub examples: Vec<Example>,
}

/// A firing that is shown.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Example {
    pub kind: ActivationKind,
    pub rank: usize,
    pub firing: Firing,
    pub bin: (f32, f32),
}

/// Counts all features, groups of them at once, and hands them over in order.
pub(super) fn study_all(
    file: &ActivationsByFeature,
    asked: &Asked,
    pool: &Pool,
    each: &mut dyn FnMut(Studied) -> Result<(), IndexError>,
) -> Result<(), IndexError> {
    let units = units(file)?;
    for units in units.chunks(AHEAD) {
        let studied: Vec<Result<Vec<Studied>, FileError>> = pool.run(|| {
            let study = |scratch: &mut Scratch, unit: &Range<u32>| study_unit(file, unit.clone(), asked, scratch);
            units.par_iter().map_init(Scratch::new, study).collect()
        });
        for unit in studied {
            unit?.into_iter().try_for_each(&mut *each)?;
        }
    }
    Ok(())
}

/// Features whose first rows are in the same row group.
fn units(file: &ActivationsByFeature) -> Result<Vec<Range<u32>>, FileError> {
    let mut units: Vec<Range<u32>> = Vec::new();
    let mut group = None;
    for feature in 0..file.features() {
        let begins_in = Some(file.group_of(file.rows_of(feature)?.start));
        match units.last_mut() {
            Some(unit) if group == begins_in => unit.end = feature + 1,
            _ => units.push(feature..feature + 1),
        }
        group = begins_in;
    }
    Ok(units)
}

fn study_unit(
    file: &ActivationsByFeature,
    features: Range<u32>,
    asked: &Asked,
    scratch: &mut Scratch,
) -> Result<Vec<Studied>, FileError> {
    let end = file.rows_of(features.end.saturating_sub(1))?.end;
    let mut rows = file.read(file.rows_of(features.start)?.start..end);
    let mut kept: Vec<Activation> = Vec::new();
    let mut studied = Vec::with_capacity(features.len());
    for feature in features {
        let of_feature = file.rows_of(feature)?;
        studied.push(if of_feature.end - of_feature.start > IN_MEMORY {
            rows = file.read(of_feature.end..end);
            study(feature, || file.read(of_feature.clone()), asked, scratch)?
        } else {
            kept.clear();
            for row in rows.by_ref().take((of_feature.end - of_feature.start) as usize) {
                kept.push(row?);
            }
            study(feature, || kept.iter().copied().map(Ok), asked, scratch)?
        });
    }
    Ok(studied)
}

/// Tables that are used again for every feature.
pub(super) struct Scratch {
    values: ValueCounts,
    maxima: ValueCounts,
}

impl Scratch {
    pub fn new() -> Self {
        Self { values: ValueCounts::new(), maxima: ValueCounts::new() }
    }
}

/// Counts one feature; `open` begins with its first row each time.
pub(super) fn study<R: Iterator<Item = Result<Activation, FileError>>>(
    feature: u32,
    open: impl Fn() -> R,
    asked: &Asked,
    scratch: &mut Scratch,
) -> Result<Studied, FileError> {
    let Scratch { values, maxima } = scratch;
    values.clear();
    maxima.clear();
    let patches = asked.base.len();
    let chance = |image: u32| mix(mix(u64::from(feature)) ^ u64::from(image));
    let mut studied = Studied { feature, ..Studied::default() };
    let mut tokens = Smallest::new(SKETCH);
    let mut picture = None;
    // Largest first, equal ones by their pictures.
    let order = |value: f32, image: u32| (u32::MAX - value.to_bits(), image);
    let [mut by_mean, mut by_max] = [(); 2].map(|()| Smallest::new(asked.examples));
    let mut random = Smallest::new(asked.examples);
    let row_seen = |row: &Activation| {
        studied.activations += 1;
        studied.pictures += u64::from(picture.replace(row.image) != Some(row.image));
        values.add(row.value);
        tokens.offer(mix((u64::from(row.image) << 32) | u64::from(row.token)));
    };
    let firing_seen = |image: u32, _: &[u16], values: &[f32]| {
        let (_, max, mean) = strength(values, patches);
        maxima.add(f16::from_f32(max));
        by_mean.offer(order(mean, image));
        by_max.offer(order(max, image));
        random.offer((chance(image), image));
    };
    go_through(open(), &asked.base, row_seen, firing_seen)?;

    let counts = values.falling();
    if let Some((max, _)) = counts.first() {
        studied.max = max.to_f32();
        let sum: f64 = counts.iter().map(|(value, count)| value.to_f64() * *count as f64).sum();
        studied.mean = (sum / studied.activations as f64) as f32;
        let mut bars = vec![0u64; asked.bins];
        counts.iter().for_each(|(value, count)| bars[bar_of(value.to_f32(), studied.max, asked.bins)] += count);
        studied.heights = bars.into_iter().map(|count| count as f32).collect();
    }
    studied.sketch = tokens.into_sorted();
    let images = |ranked: Vec<(u32, u32)>| ranked.into_iter().map(|(_, image)| image).collect::<Vec<u32>>();
    let ranked = [
        (ActivationKind::Mean, images(by_mean.into_sorted())),
        (ActivationKind::Max, images(by_max.into_sorted())),
        (ActivationKind::Random, random.into_sorted().into_iter().map(|(_, image)| image).collect()),
    ];
    studied.examples = examples(open(), asked, maxima, &ranked, chance)?;
    Ok(studied)
}

/// Goes through a feature's rows picture by picture: `firing` gets a picture's number, its patches that fire, of which
/// there is at least one, and their values.
fn go_through(
    rows: impl Iterator<Item = Result<Activation, FileError>>,
    base: &Range<u32>,
    mut row_seen: impl FnMut(&Activation),
    mut firing: impl FnMut(u32, &[u16], &[f32]),
) -> Result<(), FileError> {
    let (mut indices, mut values, mut picture) = (Vec::new(), Vec::new(), 0);
    for row in rows {
        let row = row?;
        if row.image != picture && !indices.is_empty() {
            firing(picture, &indices, &values);
            indices.clear();
            values.clear();
        }
        picture = row.image;
        row_seen(&row);
        if base.contains(&row.token) {
            indices.push((row.token - base.start) as u16);
            values.push(row.value.to_f32());
        }
    }
    if !indices.is_empty() {
        firing(picture, &indices, &values);
    }
    Ok(())
}

/// A part of the firings by their maxima.
#[derive(Default)]
struct Quantile {
    /// Smallest and largest maximum.
    bounds: Option<(f32, f32)>,
    /// Those with the smallest chances.
    picked: Vec<(u64, Firing)>,
}

/// The firings of the pictures that `ranked` names, and some out of each fifth of all, strongest fifth first.
fn examples(
    rows: impl Iterator<Item = Result<Activation, FileError>>,
    asked: &Asked,
    maxima: &mut ValueCounts,
    ranked: &[(ActivationKind, Vec<u32>); 3],
    chance: impl Fn(u32) -> u64,
) -> Result<Vec<Example>, FileError> {
    let counts = maxima.falling();
    let firings: u64 = counts.iter().map(|(_, count)| count).sum();
    let whole = (0.0, counts.first().map_or(0.0, |(max, _)| max.to_f32()));
    let ends: Vec<u64> = (1..=QUANTILES as u64).map(|part| part * firings / QUANTILES as u64).collect();
    maxima.rank();
    let each = asked.examples.div_ceil(QUANTILES);
    let mut quantiles: Vec<Quantile> = ends.iter().map(|_| Quantile::default()).collect();
    let named = ranked.iter().flat_map(|(_, images)| images);
    let mut chosen: BTreeMap<u32, Firing> = named.map(|image| (*image, Firing::default())).collect();
    let patches = asked.base.len();
    let firing_seen = |image: u32, indices: &[u16], values: &[f32]| {
        let (_, max, _) = strength(values, patches);
        let make = || Firing::new(image as usize, indices.to_vec(), values.to_vec(), patches);
        if let Some(chosen) = chosen.get_mut(&image) {
            *chosen = make();
        }
        let rank = maxima.next_rank(f16::from_f32(max));
        let Some(quantile) = quantiles.get_mut(ends.partition_point(|end| *end <= rank)) else { return };
        let (low, high) = quantile.bounds.unwrap_or((max, max));
        quantile.bounds = Some((low.min(max), high.max(max)));
        let key = chance(image);
        if quantile.picked.len() < each || quantile.picked.last().is_some_and(|(largest, _)| key < *largest) {
            let place = quantile.picked.partition_point(|(other, _)| *other < key);
            quantile.picked.insert(place, (key, make()));
            quantile.picked.truncate(each);
        }
    };
    go_through(rows, &asked.base, |_| {}, firing_seen)?;

    let mut examples = Vec::new();
    for (kind, images) in ranked {
        let firings = images.iter().filter_map(|image| chosen.get(image)).cloned().enumerate();
        examples.extend(firings.map(|(rank, firing)| Example { kind: *kind, rank, firing, bin: whole }));
    }
    let parts = quantiles.into_iter().flat_map(|Quantile { bounds, mut picked }| {
        picked.sort_by(|(_, a), (_, b)| b.max.total_cmp(&a.max).then(a.picture.cmp(&b.picture)));
        picked.into_iter().map(move |(_, firing)| (firing, bounds.unwrap_or_default()))
    });
    let quantile = |(rank, (firing, bin))| Example { kind: ActivationKind::Quantile, rank, firing, bin };
    examples.extend(parts.enumerate().map(quantile));
    Ok(examples)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // tests panic on purpose
    use super::*;

    const ASKED: Asked = Asked { base: 1..17, examples: 4, bins: 6 };

    /// A feature on 0 to 16 patches, newlines and tiles of 50 pictures; many values and maxima are equal.
    fn rows() -> Vec<Activation> {
        let row = |number: u64| {
            let chance = mix(number);
            let value = f16::from_f32((chance % 13 + 1) as f32 / 8.0);
            let row = Activation { feature: 3, image: (number / 20) as u32, token: (number % 20) as u32, value };
            (chance >> 20).is_multiple_of(3).then_some(row)
        };
        (0..1000).filter_map(row).collect()
    }

    fn studied(rows: &[Activation]) -> Studied {
        let mut scratch = Scratch::new();
        // Tables that were used before.
        study(2, || rows.iter().copied().map(Ok), &ASKED, &mut scratch).unwrap();
        study(3, || rows.iter().copied().map(Ok), &ASKED, &mut scratch).unwrap()
    }

    /// All firings, in picture order.
    fn firings(rows: &[Activation]) -> Vec<Firing> {
        let of = |image: u32| {
            let own = || rows.iter().filter(|row| row.image == image && ASKED.base.contains(&row.token));
            let indices: Vec<u16> = own().map(|row| (row.token - 1) as u16).collect();
            let values = own().map(|row| row.value.to_f32()).collect();
            (!indices.is_empty()).then(|| Firing::new(image as usize, indices, values, 16))
        };
        (0..50).filter_map(of).collect()
    }

    #[test]
    fn statistics_are_those_of_f64() {
        let rows = rows();
        let found = studied(&rows);
        let values: Vec<f64> = rows.iter().map(|row| row.value.to_f64()).collect();
        let max = values.iter().copied().fold(0.0, f64::max);
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        assert_eq!((found.activations, f64::from(found.max)), (rows.len() as u64, max));
        assert!((f64::from(found.mean) - mean).abs() <= 1e-7 * mean, "{} and {mean}", found.mean);
        let mut pictures: Vec<u32> = rows.iter().map(|row| row.image).collect();
        pictures.dedup();
        assert_eq!(found.pictures, pictures.len() as u64);
        let bars: Vec<f32> = (0..6)
            .map(|bar| {
                let inside = |value: &&f64| ((**value / max * 6.0) as usize).min(5) == bar;
                values.iter().filter(inside).count() as f32
            })
            .collect();
        assert_eq!(found.heights, bars);
        let mut tokens: Vec<u64> =
            rows.iter().map(|row| mix((u64::from(row.image) << 32) | u64::from(row.token))).collect();
        tokens.sort_unstable();
        tokens.truncate(SKETCH);
        assert_eq!(found.sketch, tokens);
    }

    #[test]
    fn examples_are_those_of_sorted_firings() {
        let rows = rows();
        let found = studied(&rows);
        let firings = firings(&rows);
        let of = |kind: ActivationKind| -> Vec<&Example> {
            let own: Vec<&Example> = found.examples.iter().filter(|example| example.kind == kind).collect();
            assert!(own.iter().enumerate().all(|(rank, example)| example.rank == rank));
            own
        };
        let shown = |kind| of(kind).into_iter().map(|example| example.firing.clone()).collect::<Vec<Firing>>();
        let mut means = firings.clone();
        means.sort_by(|a, b| b.mean.total_cmp(&a.mean));
        assert_eq!(shown(ActivationKind::Mean), means[..4]);
        let mut maxima = firings.clone();
        maxima.sort_by(|a, b| b.max.total_cmp(&a.max));
        assert_eq!(shown(ActivationKind::Max), maxima[..4]);
        let whole = (0.0, maxima[0].max);
        assert!(of(ActivationKind::Max).iter().all(|example| example.bin == whole));

        let random = shown(ActivationKind::Random);
        assert!(random.len() == 4 && random.iter().all(|firing| firings.contains(firing)));
        assert_ne!(random, maxima[..4]);
        // One out of each fifth, with the fifth's bounds.
        let quantiles = of(ActivationKind::Quantile);
        assert_eq!(quantiles.len(), 5);
        for (part, example) in quantiles.iter().enumerate() {
            let group = &maxima[part * maxima.len() / 5..(part + 1) * maxima.len() / 5];
            assert!(group.contains(&example.firing), "{part}: {example:?}");
            assert_eq!(example.bin, (group[group.len() - 1].max, group[0].max));
        }
    }

    #[test]
    fn a_feature_without_activations_has_nothing() {
        assert_eq!(studied(&[]), Studied { feature: 3, ..Studied::default() });
        let beyond = Activation { feature: 3, image: 7, token: 19, value: f16::ONE };
        let found = studied(&[beyond]);
        assert_eq!((found.activations, found.pictures, found.examples.len()), (1, 1, 0), "not on the base picture");
    }
}
