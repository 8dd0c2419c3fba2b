//! Questions about the last encode, and light on a canvas. Numbers come in typed arrays, not as JSON.

use super::{Outcome, ask};
use crate::ranking::{RankBy, Ranked};
use api::gpu::{ComputePath, GpuReply, GpuRequest};
use js_sys::{Array, Float32Array, Uint32Array};
use std::cell::Cell;
use web_sys::OffscreenCanvas;

thread_local! {
    /// The worker reads the decoder, for as long as that takes; it would answer anything else only then.
    static READING: Cell<bool> = const { Cell::new(false) };
}

/// One feature on some tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct Facts {
    pub path: ComputePath,
    /// Among the features that fire, by their maximum, from 1; 0: it is silent.
    pub place: u32,
    /// How many features fire.
    pub firing: u32,
    /// Its activations in equal bins from 0 to its maximum.
    pub counts: Vec<f32>,
    /// Features that fire on the same tokens, most alike first; on which share of this one's tokens they do.
    pub together: Vec<(u32, f32)>,
    pub mean: f32,
    pub max: f32,
}

/// The tokens as a message's part.
fn selected(tokens: &[u32]) -> Array {
    Array::of1(&Uint32Array::from(tokens).buffer())
}

/// What was answered: words, floats.
fn read(outcome: Outcome) -> Result<(ComputePath, Vec<u32>, Vec<f32>), String> {
    let (reply, buffers) = outcome.map_err(|trouble| trouble.detail)?;
    let GpuReply::Numbers { path, .. } = reply else {
        return Err("the worker answered a question with something else".into());
    };
    let (words, floats) = match buffers.as_slice() {
        [words, floats] => (Uint32Array::new(words).to_vec(), Float32Array::new(floats).to_vec()),
        [floats] => (Vec::new(), Float32Array::new(floats).to_vec()),
        _ => Default::default(),
    };
    Ok((path, words, floats))
}

/// The strongest features of some tokens.
pub async fn rank(tokens: &[u32], by: RankBy, limit: usize) -> Result<Vec<Ranked>, String> {
    if READING.get() {
        return Err("the worker is busy".to_owned());
    }
    let (by_mean, count) = (by == RankBy::Mean, limit as u32);
    let (_, features, values) = read(ask(&|id| GpuRequest::Rank { id, by_mean, count }, &selected(tokens)).await)?;
    Ok(features.into_iter().zip(values).map(|(feature, value)| Ranked { feature, value }).collect())
}

/// What a feature does on some tokens.
pub async fn facts(feature: u32, tokens: &[u32], bins: u32, count: u32) -> Result<Facts, String> {
    let asked = ask(&|id| GpuRequest::Facts { id, feature, bins, count }, &selected(tokens)).await;
    let (path, words, floats) = read(asked)?;
    let at = 2 + bins as usize;
    let ([place, firing, ..], true, [mean, max]) = (words.as_slice(), words.len() >= at, floats.as_slice()) else {
        return Err(format!("the worker sent {} words and {} floats", words.len(), floats.len()));
    };
    let counts: Vec<f32> = words[2..at].iter().map(|count| *count as f32).collect();
    let fires = counts.iter().sum::<f32>();
    let (features, both) = words[at..].split_at((words.len() - at) / 2);
    let together = features.iter().zip(both).map(|(feature, both)| (*feature, *both as f32 / fires)).collect();
    Ok(Facts { path, place: *place, firing: *firing, counts, together, mean: *mean, max: *max })
}

/// How much of some tokens the SAE leaves unexplained: where that was computed, the fraction of variance, the mean
/// relative error.
pub async fn explained(tokens: &[u32]) -> Result<(ComputePath, f32, f32), String> {
    READING.set(true);
    let asked = ask(&|id| GpuRequest::Reconstruct { id }, &selected(tokens)).await;
    READING.set(false);
    match read(asked)? {
        (path, _, floats) if floats.len() == 2 => Ok((path, floats[0], floats[1])),
        _ => Err("the worker sent no error".to_owned()),
    }
}

/// The features whose decoder rows are nearest to this one's, with their cosines.
pub async fn neighbours(feature: u32, count: u32) -> Result<Vec<(u32, f32)>, String> {
    READING.set(true);
    let asked = ask(&|id| GpuRequest::Neighbours { id, feature, count }, &Array::new()).await;
    READING.set(false);
    let (_, features, cosines) = read(asked)?;
    Ok(features.into_iter().zip(cosines).collect())
}

/// Draws shares of light `[rows, columns]` on the canvas that was given away last, or on `canvas`, which is given away.
pub async fn draw(
    light: &[f32],
    grid: [u32; 2],
    size: [u32; 2],
    canvas: Option<OffscreenCanvas>,
) -> Result<(), String> {
    let parts = Array::of1(&Float32Array::from(light).buffer());
    if let Some(canvas) = canvas {
        parts.push(&canvas);
    }
    read(ask(&|id| GpuRequest::Draw { id, grid, size }, &parts).await).map(drop)
}
