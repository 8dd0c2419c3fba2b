//! Stages `train-text` and `train-lmm`: the language model on texts, then projector and language model on scenes.

use super::conversation::{Sample, Writer};
use super::earlier::Earlier;
use super::plan::Plan;
use super::scene::{Scene, Style};
use super::sprites::Sprites;
use super::tower::{TowerWithHeads, seeds};
use super::trainer::{Trainer, prefetch, read_progress};
use anyhow::{Context, Result, ensure};
use burn::module::{AutodiffModule, Module};
use burn::record::{BinFileRecorder, FullPrecisionSettings};
use burn::tensor::activation::log_softmax;
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Int, Tensor, TensorData};
use model::image_processor::ImageProcessor;
use model::llama::Llama;
use model::{LlavaNext, LlavaNextConfig};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use std::path::Path;
use std::sync::Arc;

/// Text tokens of a sample after the picture, and of a text-only sample.
const SCENE_BUDGET: usize = 72;
const TEXT_BUDGET: usize = 96;
/// Weight of the patches' own loss: each picture token is to predict the name of what it shows, so that projector and
/// blocks learn from every patch what the answers alone would teach slowly.
const NAMING: f64 = 0.5;

/// What a batch shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Chat,
    Caption,
    Text,
}

/// Which kind batch number `i` of the joint stage is: six of ten chats, two captions, two texts.
fn kind(i: usize) -> Kind {
    match i % 10 {
        3 | 8 => Kind::Caption,
        5 | 9 => Kind::Text,
        _ => Kind::Chat,
    }
}

/// Samples of one shape.
struct Batch {
    samples: Vec<Sample>,
    /// `[batch, 3, side, side]`; empty for texts.
    pixels: Vec<f32>,
    /// `[batch, patches]`: first token of the name of what a patch shows, 0 for the background; empty for texts.
    names: Vec<i32>,
}

fn batch(plan: &Plan, sprites: &Sprites, writer: &Writer, kind: Kind, seed: u64) -> Batch {
    let mut batch = Batch { samples: Vec::new(), pixels: Vec::new(), names: Vec::new() };
    let processor = ImageProcessor::default();
    for seed in seed..seed + plan.lmm_batch as u64 {
        if kind == Kind::Text {
            batch.samples.push(writer.text_chat(sprites, seed, TEXT_BUDGET));
            continue;
        }
        let scene = Scene::random(sprites, Style::Seen, seed);
        let vision = plan.vision_config();
        let drawn = scene.draw(sprites, vision.image_size);
        batch.pixels.extend(processor.normalise(&drawn.picture));
        batch.names.extend(drawn.patch_labels(scene.items.len(), vision.grid()).into_iter().map(|front| {
            let item = (front as usize).checked_sub(1).map(|item| &scene.items[item]);
            item.map_or(0, |item| writer.name_token(&sprites.concepts[item.concept]) as i32)
        }));
        batch.samples.push(match kind {
            Kind::Caption => writer.scene_caption(sprites, &scene, SCENE_BUDGET),
            _ => writer.scene_chat(sprites, &scene, SCENE_BUDGET, &mut ChaCha8Rng::seed_from_u64(seed)),
        });
    }
    batch
}

/// `[batch, n]` ids on the device.
fn ids<B: Backend>(rows: impl Iterator<Item = Vec<u32>>, device: &B::Device) -> Tensor<B, 2, Int> {
    let rows: Vec<Vec<u32>> = rows.collect();
    let shape = [rows.len(), rows.first().map_or(0, Vec::len)];
    let flat: Vec<i32> = rows.into_iter().flatten().map(|id| id as i32).collect();
    Tensor::from_data(TensorData::new(flat, shape), device)
}

/// Mean cross-entropy of the learned tokens.
///
/// hidden: `[batch, tokens, d_model]` of the positions before each token of `after`.
fn loss<B: Backend>(language: &Llama<B>, hidden: Tensor<B, 3>, samples: &[Sample]) -> Tensor<B, 1> {
    let targets = samples.iter().flat_map(|sample| sample.after.iter().map(|&id| id as i32)).collect();
    let mask = samples.iter().flat_map(|sample| sample.learned.iter().map(|&on| f32::from(u8::from(on)))).collect();
    masked_cross_entropy(language, hidden, targets, mask)
}

/// Mean cross-entropy where `mask` is 1. hidden: `[batch, tokens, d_model]`; targets, mask: `[batch, tokens]`.
fn masked_cross_entropy<B: Backend>(
    language: &Llama<B>,
    hidden: Tensor<B, 3>,
    targets: Vec<i32>,
    mask: Vec<f32>,
) -> Tensor<B, 1> {
    let [batch, tokens, _] = hidden.dims();
    let device = hidden.device();
    let log_probs = log_softmax(language.logits(hidden), 2);
    let targets = Tensor::<B, 3, Int>::from_data(TensorData::new(targets, [batch, tokens, 1]), &device);
    let count: f32 = mask.iter().sum();
    let mask = Tensor::<B, 3>::from_data(TensorData::new(mask, [batch, tokens, 1]), &device);
    (log_probs.gather(2, targets) * mask).sum().neg() / count.max(1.0)
}

/// Loss of text-only samples.
fn text_loss<B: Backend>(language: &Llama<B>, samples: &[Sample], device: &B::Device) -> Tensor<B, 1> {
    let rows = samples.iter().map(|sample| [sample.before.clone(), sample.after.clone()].concat());
    let embedded = language.embed(ids(rows, device));
    let (before, after) = samples.first().map_or((0, 0), |sample| (sample.before.len(), sample.after.len()));
    let hidden = language.blocks_forward(embedded, 0..language.depth());
    loss(language, hidden.narrow(1, before - 1, after), samples)
}

/// Loss of samples with a picture: answers, and names of patches.
fn scene_loss<B: Backend>(net: &LlavaNext<B>, batch: &Batch, side: usize, device: &B::Device) -> Tensor<B, 1> {
    let count = batch.samples.len();
    let pixels = Tensor::from_data(TensorData::new(batch.pixels.clone(), [count, 3, side, side]), device);
    let picture = net.base_image_tokens(pixels);
    let before = net.language.embed(ids(batch.samples.iter().map(|sample| sample.before.clone()), device));
    let after = net.language.embed(ids(batch.samples.iter().map(|sample| sample.after.clone()), device));
    let first = before.dims()[1] + picture.dims()[1];
    let tokens = after.dims()[1];
    let hidden = net.language.blocks_forward(Tensor::cat(vec![before, picture, after], 1), 0..net.language.depth());
    let answers = loss(&net.language, hidden.clone().narrow(1, first - 1, tokens), &batch.samples);
    let patches = batch.names.len() / count;
    let shows: Vec<f32> = batch.names.iter().map(|&name| f32::from(u8::from(name != 0))).collect();
    let naming =
        masked_cross_entropy(&net.language, hidden.narrow(1, first - 1 - patches, patches), batch.names.clone(), shows);
    answers + naming * NAMING
}

/// The newest weights of a stage; `None` if it has not begun.
pub fn load_stage<B: Backend, M: Module<B>>(module: M, folder: &Path, device: &B::Device) -> Result<Option<M>> {
    let Some(progress) = read_progress(folder)? else { return Ok(None) };
    let path = folder.join(format!("step-{}", progress.samples)).join("module");
    let recorder = BinFileRecorder::<FullPrecisionSettings>::new();
    module
        .load_file(path, &recorder, device)
        .map(Some)
        .with_context(|| format!("reading the checkpoint in {}", folder.display()))
}

/// Trains the language model alone on texts.
pub fn train_text<B: AutodiffBackend>(
    plan: &Plan,
    sprites: &Arc<Sprites>,
    writer: &Writer,
    config: &LlavaNextConfig,
    folder: &Path,
    earlier: Option<&Earlier>,
    device: &B::Device,
) -> Result<()> {
    let module: Llama<B> = config.text_config.init(device);
    let mut trainer = Trainer::new(module, folder, plan.text_samples, 2e-3, device)?;
    if let Some(earlier) = earlier {
        trainer.warm_start(earlier.progress("text"), |_| Ok(earlier.lmm(device)?.language))?;
    }
    let batches = prefetch(trainer.progress.samples / plan.lmm_batch, {
        let (plan, sprites, writer) = (plan.clone(), sprites.clone(), writer.clone());
        move |i| batch(&plan, &sprites, &writer, Kind::Text, seeds::TEXT + (i * plan.lmm_batch) as u64)
    });
    while !trainer.finished() {
        let batch = batches.recv().context("the text thread stopped")?;
        let loss = text_loss(&trainer.module, &batch.samples, device);
        trainer.step(loss, plan.lmm_batch, plan.lmm_batch * TEXT_BUDGET)?;
    }
    trainer.save()
}

/// Trains projector, newline and language model on scenes and texts; the tower stays as it is.
pub fn train_lmm<B: AutodiffBackend>(
    plan: &Plan,
    sprites: &Arc<Sprites>,
    writer: &Writer,
    config: &LlavaNextConfig,
    work: &Path,
    earlier: Option<&Earlier>,
    device: &B::Device,
) -> Result<()> {
    let mut net: LlavaNext<B> = config.init(device);
    let tower: TowerWithHeads<B> = plan.tower_with_heads(sprites.concepts.len(), device);
    let tower = load_stage(tower, &work.join("tower"), device)?;
    ensure!(tower.is_some(), "`train-lmm` needs the tower: run `train-tower` first");
    if let Some(language) = load_stage(net.language.clone(), &work.join("text"), device)? {
        net.language = language;
    }
    let mut trainer = Trainer::new(net, &work.join("lmm"), plan.lmm_samples, 1.5e-3, device)?;
    if let Some(earlier) = earlier {
        trainer.warm_start(earlier.progress("lmm"), |_| earlier.lmm(device))?;
    }
    if let Some(tower) = tower {
        trainer.module.vision = tower.tower.no_grad();
    }
    let side = config.vision_config.image_size;
    let batches = prefetch(trainer.progress.samples / plan.lmm_batch, {
        let (plan, sprites, writer) = (plan.clone(), sprites.clone(), writer.clone());
        move |i| batch(&plan, &sprites, &writer, kind(i), seeds::LMM + (i * plan.lmm_batch) as u64)
    });
    while !trainer.finished() {
        let batch = batches.recv().context("the scene thread stopped")?;
        let (loss, tokens) = if batch.pixels.is_empty() {
            (text_loss(&trainer.module.language, &batch.samples, device), TEXT_BUDGET)
        } else {
            (scene_loss(&trainer.module, &batch, side, device), SCENE_BUDGET + config.vision_config.grid().pow(2))
        };
        trainer.step(loss, plan.lmm_batch, plan.lmm_batch * tokens)?;
    }
    trainer.save()
}

/// The trained model without autodiff, newest checkpoint.
pub fn load_lmm<B: AutodiffBackend>(
    config: &LlavaNextConfig,
    work: &Path,
    device: &B::Device,
) -> Result<LlavaNext<B::InnerBackend>> {
    let net: LlavaNext<B> = config.init(device);
    let net = load_stage(net, &work.join("lmm"), device)?.context("`train-lmm` has not run in this --work folder")?;
    Ok(net.valid())
}
