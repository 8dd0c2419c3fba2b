//! How an answer of the browser agrees with the CPU twin's.

use anyhow::ensure;
use shaders::TopK;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

/// Sums of 4,096 products in 32-bit floats, in another order: about 1e-6 of an activation among the strongest.
const ROUNDING: f32 = 1e-4;

/// What is left after everything that must agree does.
#[derive(Debug, Default, PartialEq)]
pub struct Agreement {
    /// Largest difference of an activation, relative to the twin's.
    difference: f32,
    /// Latents that only one of them names, because their activations are the k-th within rounding.
    swapped: usize,
}

impl fmt::Display for Agreement {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { difference, swapped } = self;
        write!(formatter, "whole numbers: equal; others: {swapped} swapped, activations within {difference:.0e}")
    }
}

/// Compares two answers. The first `whole` tokens must be equal to the bit, order and ties included; in the others,
/// latents may be swapped and activations differ by rounding.
///
/// # Errors
/// The first thing that is wrong.
pub fn agreement(answer: &TopK, expected: &TopK, whole: u32) -> anyhow::Result<Agreement> {
    let entries = expected.tokens as usize * expected.k as usize;
    let given = (answer.top_indices.len(), answer.top_acts.len());
    ensure!(given == (entries, entries), "{given:?} values where {entries} were expected");
    let mut all = Agreement::default();
    for token in 0..expected.tokens {
        let (answered, wanted) = (answer.row(token), expected.row(token));
        if token < whole {
            let pairs = |(latents, acts): (&[u32], &[f32])| -> Vec<(u32, f32)> {
                latents.iter().copied().zip(acts.iter().copied()).collect()
            };
            let different =
                pairs(answered).into_iter().zip(pairs(wanted)).find(|(answered, wanted)| answered != wanted);
            ensure!(different.is_none(), "token {token}: the browser's and the twin's first difference: {different:?}");
        } else {
            let Agreement { difference, swapped } = close(token, answered, wanted)?;
            all = Agreement { difference: all.difference.max(difference), swapped: all.swapped + swapped };
        }
    }
    Ok(all)
}

/// Compares the strongest latents of one token, up to rounding.
fn close(token: u32, answered: (&[u32], &[f32]), expected: (&[u32], &[f32])) -> anyhow::Result<Agreement> {
    ensure!(answered.1.is_sorted_by(|one, next| one >= next), "token {token}: activations do not fall");
    let acts = |(latents, acts): (&[u32], &[f32])| -> BTreeMap<u32, f32> {
        latents.iter().copied().zip(acts.iter().copied()).collect()
    };
    let (answer, twin) = (acts(answered), acts(expected));
    ensure!(answer.len() == answered.0.len(), "token {token}: a latent is named twice");
    // A latent that is not named is below the k-th, so one that the other names must be just there.
    let least = expected.1.last().copied().unwrap_or_default();
    let mut all = Agreement::default();
    for latent in answer.keys().chain(twin.keys()).collect::<BTreeSet<_>>() {
        let [given, wanted] = [&answer, &twin].map(|acts| acts.get(latent).copied().unwrap_or(least));
        let difference = (given - wanted).abs() / wanted;
        ensure!(difference <= ROUNDING, "token {token}, latent {latent}: {given} where the twin has {wanted}");
        all.difference = all.difference.max(difference);
        all.swapped += usize::from(answer.contains_key(latent) != twin.contains_key(latent));
    }
    Ok(all)
}

#[test]
fn only_rounding_is_forgiven_and_only_where_it_can_be() -> anyhow::Result<()> {
    let top = |top_indices: [u32; 4], top_acts: [f32; 4]| TopK {
        tokens: 2,
        k: 2,
        top_indices: top_indices.to_vec(),
        top_acts: top_acts.to_vec(),
    };
    let twin = top([5, 7, 5, 7], [3.0, 2.0, 3.0, 2.0]);
    assert_eq!(agreement(&twin, &twin, 1)?, Agreement::default());
    let rounded = agreement(&top([5, 7, 5, 8], [3.0, 2.0, 3.0, 2.000_1]), &twin, 1)?;
    assert!(rounded.swapped == 2 && (4e-5..6e-5).contains(&rounded.difference), "{rounded:?}");
    for (what, wrong) in [
        ("first difference", top([5, 8, 5, 7], [3.0, 2.0, 3.0, 2.0])),
        ("first difference", top([5, 7, 5, 7], [3.0, 2.000_001, 3.0, 2.0])),
        ("latent 7", top([5, 7, 5, 7], [3.0, 2.0, 3.0, 2.001])),
        ("latent 5", top([5, 7, 5, 7], [3.0, 2.0, 3.001, 2.0])),
        ("latent 8", top([5, 7, 5, 8], [3.0, 2.0, 3.0, 2.5])),
        ("latent 5", top([5, 7, 8, 7], [3.0, 2.0, 2.0, 2.0])),
        ("named twice", top([5, 7, 5, 5], [3.0, 2.0, 3.0, 3.0])),
        ("do not fall", top([5, 7, 7, 5], [3.0, 2.0, 2.0, 3.0])),
        ("do not fall", top([5, 7, 5, 7], [3.0, 2.0, 3.0, f32::NAN])),
        ("first difference", top([5, 7, 5, 7], [f32::NAN, 2.0, 3.0, 2.0])),
    ] {
        let error = agreement(&wrong, &twin, 1).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(error.contains(what), "{error:?} lacks {what:?}");
    }
    let short = TopK { top_acts: Vec::new(), ..twin.clone() };
    assert!(agreement(&short, &twin, 1).is_err());
    Ok(())
}
