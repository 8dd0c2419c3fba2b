//! Stage `train-tower`: the vision tower learns from composed scenes which concept and colour every patch shows.
//!
//! Dense labels from the known masks: each patch predicts its concept (0: background) and its colour word.

use super::concepts::COLORS;
use super::earlier::Earlier;
use super::plan::Plan;
use super::scene::{Drawn, Scene, Style};
use super::sprites::Sprites;
use super::trainer::{Trainer, prefetch};
use anyhow::{Context, Result};
use burn::module::{AutodiffModule, Module};
use burn::nn::{Linear, LinearConfig};
use burn::tensor::activation::log_softmax;
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Int, Tensor, TensorData};
use model::clip::ClipVision;
use model::image_processor::ImageProcessor;
use std::path::Path;
use std::sync::Arc;

/// The tower with the two heads it is trained through.
#[derive(Module, Debug)]
pub struct TowerWithHeads<B: Backend> {
    pub tower: ClipVision<B>,
    concept: Linear<B>,
    color: Linear<B>,
}

/// Seeds of one purpose do not meet those of another.
pub mod seeds {
    pub const TOWER: u64 = 1 << 40;
    pub const LMM: u64 = 2 << 40;
    pub const SAE: u64 = 3 << 40;
    pub const CACHE: u64 = 4 << 40;
    pub const EVAL: u64 = 5 << 40;
    pub const TEXT: u64 = 6 << 40;
    pub const SAMPLES: u64 = 7 << 40;
}

impl Plan {
    pub fn tower_with_heads<B: Backend>(&self, concepts: usize, device: &B::Device) -> TowerWithHeads<B> {
        let vision = self.vision_config();
        TowerWithHeads {
            concept: LinearConfig::new(vision.hidden_size, concepts + 1).init(device),
            color: LinearConfig::new(vision.hidden_size, COLORS.len()).init(device),
            tower: vision.init(device),
        }
    }
}

impl<B: Backend> TowerWithHeads<B> {
    /// Log-probabilities of concept and colour for every patch: `[batch, patches, classes]`.
    pub fn forward(&self, pixels: Tensor<B, 4>) -> (Tensor<B, 3>, Tensor<B, 3>) {
        let features = self.tower.hidden_at(pixels, self.tower.depth());
        (log_softmax(self.concept.forward(features.clone()), 2), log_softmax(self.color.forward(features), 2))
    }
}

/// Pictures and their patch labels.
pub struct TowerBatch {
    /// `[batch, 3, side, side]`
    pixels: Vec<f32>,
    /// `[batch, patches]`: 0 background, else concept + 1.
    concepts: Vec<i32>,
    colors: Vec<i32>,
    scenes: Vec<Scene>,
}

/// Draws `count` scenes from `seed` on.
pub fn tower_batch(plan: &Plan, sprites: &Sprites, style: Style, seed: u64, count: usize) -> TowerBatch {
    let vision = plan.vision_config();
    let processor = ImageProcessor::default();
    let mut batch = TowerBatch { pixels: Vec::new(), concepts: Vec::new(), colors: Vec::new(), scenes: Vec::new() };
    for i in 0..count as u64 {
        let scene = Scene::random(sprites, style, seed + i);
        let drawn: Drawn = scene.draw(sprites, vision.image_size);
        batch.pixels.extend(processor.normalise(&drawn.picture));
        for front in drawn.patch_labels(scene.items.len(), vision.grid()) {
            let item = (front as usize).checked_sub(1).map(|item| &scene.items[item]);
            batch.concepts.push(item.map_or(0, |item| item.concept as i32 + 1));
            batch.colors.push(item.map_or(scene.background.color, |item| item.color) as i32);
        }
        batch.scenes.push(scene);
    }
    batch
}

/// Mean negative log-likelihood with weights per class: background counts less than things.
fn nll<B: Backend>(log_probs: Tensor<B, 3>, labels: &[i32], background: f32) -> Tensor<B, 1> {
    let [batch, patches, _] = log_probs.dims();
    let device = log_probs.device();
    let index = Tensor::<B, 3, Int>::from_data(TensorData::new(labels.to_vec(), [batch, patches, 1]), &device);
    let weights: Vec<f32> = labels.iter().map(|&label| if label == 0 { background } else { 1.0 }).collect();
    let total: f32 = weights.iter().sum();
    let weights = Tensor::<B, 3>::from_data(TensorData::new(weights, [batch, patches, 1]), &device);
    (log_probs.gather(2, index) * weights).sum().neg() / total.max(1.0)
}

/// Trains (or goes on training) the tower in `folder`.
pub fn train_tower<B: AutodiffBackend>(
    plan: &Plan,
    sprites: &Arc<Sprites>,
    folder: &Path,
    earlier: Option<&Earlier>,
    device: &B::Device,
) -> Result<()> {
    let module: TowerWithHeads<B> = plan.tower_with_heads(sprites.concepts.len(), device);
    let mut trainer = Trainer::new(module, folder, plan.tower_samples, 1.5e-3, device)?;
    if let Some(earlier) = earlier {
        trainer.warm_start(earlier.progress("tower"), |module| {
            Ok(TowerWithHeads { tower: earlier.tower(device)?, ..module })
        })?;
    }
    if trainer.finished() {
        tracing::info!("the tower is trained");
        return Ok(());
    }
    let (side, patches) = (plan.vision_config().image_size, plan.vision_config().grid().pow(2));
    let batches = prefetch(trainer.progress.samples / plan.batch, {
        let (plan, sprites) = (plan.clone(), sprites.clone());
        move |i| tower_batch(&plan, &sprites, Style::Seen, seeds::TOWER + (i * plan.batch) as u64, plan.batch)
    });
    let mut last_eval = 0;
    while !trainer.finished() {
        let batch = batches.recv().context("the scene thread stopped")?;
        let pixels = Tensor::from_data(TensorData::new(batch.pixels, [plan.batch, 3, side, side]), device);
        let (concept, color) = trainer.module.forward(pixels);
        let loss = nll(concept, &batch.concepts, 0.15) + nll(color, &batch.colors, 1.0) * 0.25;
        trainer.step(loss, plan.batch, plan.batch * patches)?;
        if trainer.progress.samples - last_eval >= 20_000 {
            last_eval = trainer.progress.samples;
            log_accuracy(plan, sprites, &trainer.module.valid(), device)?;
        }
    }
    log_accuracy(plan, sprites, &trainer.module.valid(), device)?;
    trainer.save()
}

fn log_accuracy<B: Backend>(
    plan: &Plan,
    sprites: &Sprites,
    module: &TowerWithHeads<B>,
    device: &B::Device,
) -> Result<()> {
    for (name, style) in [("seen styles", Style::Seen), ("held-out style", Style::HeldOut)] {
        let accuracy = tower_accuracy(plan, sprites, module, style, plan.eval_scenes, device);
        tracing::info!(style = name, accuracy = format!("{:.3}", accuracy), "largest thing named by the tower");
    }
    Ok(())
}

/// Share of scenes whose largest thing gets the most votes of the patches that show it.
pub fn tower_accuracy<B: Backend>(
    plan: &Plan,
    sprites: &Sprites,
    module: &TowerWithHeads<B>,
    style: Style,
    scenes: usize,
    device: &B::Device,
) -> f64 {
    let (side, patches) = (plan.vision_config().image_size, plan.vision_config().grid().pow(2));
    let (mut right, mut all) = (0, 0);
    for start in (0..scenes).step_by(50) {
        let count = 50.min(scenes - start);
        let batch = tower_batch(plan, sprites, style, seeds::EVAL + start as u64, count);
        let pixels = Tensor::from_data(TensorData::new(batch.pixels, [count, 3, side, side]), device);
        let (concept, _) = module.forward(pixels);
        let classes = concept.dims()[2];
        let log_probs = model::weights::f32_from_tensor(concept);
        for (i, scene) in batch.scenes.iter().enumerate() {
            let Some(main) = scene.items.iter().max_by(|a, b| a.side.total_cmp(&b.side)) else { continue };
            let label = main.concept as i32 + 1;
            let mut votes = vec![0.0; classes];
            for patch in (0..patches).filter(|patch| batch.concepts[i * patches + patch] == label) {
                let row = &log_probs[(i * patches + patch) * classes..][..classes];
                votes.iter_mut().zip(row).for_each(|(vote, log_prob)| *vote += f64::from(*log_prob));
            }
            let best = votes.iter().enumerate().skip(1).max_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |(class, _)| class);
            all += 1;
            right += usize::from(best as i32 == label);
        }
    }
    f64::from(right as u32) / f64::from(all.max(1) as u32)
}
