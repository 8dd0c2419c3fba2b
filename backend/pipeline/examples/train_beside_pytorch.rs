//! Our SAE training beside PyTorch's, on the same hidden states and the same number of tokens: `make bench-train`.
//!
//! `train_beside_pytorch [FOLDER]` reads hidden states as `lmm-scope train-sae` does; without a folder it makes some
//! with the pocket model. `PYTHON` names a Python with `torch` and `safetensors`. One side trains after the other, each
//! with all cores, once for each seed; FVU is the mean of the last tenth of the steps.

use anyhow::{Context, Result, bail};
use half::f16;
use model::{Cpu, Dtype, LlavaNext, LlavaNextConfig};
use pipeline::pocket::conversation::Writer;
use pipeline::pocket::plan::{Plan, Size};
use pipeline::pocket::sae::HiddenStates;
use pipeline::pocket::sprites::Sprites;
use pipeline::train::{HiddenShards, Settings, TrainOptions, train};
use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;
use safetensors::tensor::TensorView;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;
use store::files::names;

/// Hidden states that are made, and the sizes of the pocket SAE.
const TOKENS: usize = 400_000;
const BATCH: usize = 2048;
const EXPANSION: usize = 16;
const K: usize = 32;
/// Early enough for AuxK to have its share of the time.
const DEAD_TOKENS: u64 = 100_000;

/// First weights and the order of tokens follow from it.
const SEEDS: [u64; 3] = [0, 1, 2];

/// What one side found.
struct Side {
    fvu: f64,
    tokens_per_second: f64,
}

fn main() -> Result<()> {
    let temporary = tempfile::tempdir()?;
    let hidden = match std::env::args_os().nth(1) {
        Some(folder) => PathBuf::from(folder),
        None => pocket_hidden_states(temporary.path())?,
    };
    let shards = HiddenShards::open(&hidden)?;
    let latents = shards.d_model() * EXPANSION;
    let mut settings = Settings::new(shards.tokens(), latents, K, BATCH);
    settings.dead_tokens = DEAD_TOKENS;
    let (steps, d) = (settings.steps(), shards.d_model());
    println!("{steps} steps of {BATCH} tokens, {d} → {latents}, k = {K}, AuxK and MultiTopK");
    println!("\n| seed | FVU, ours | FVU, PyTorch | tokens/s, ours | tokens/s, PyTorch |\n|---|---:|---:|---:|---:|");
    let mut sums = [0.0; 4];
    for seed in SEEDS {
        settings.seed = seed;
        let ours = our_side(&shards, &settings, &temporary.path().join(format!("ours-{seed}")))?;
        let row = Row::of(ours, torch_side(&hidden, &settings)?);
        println!("| {seed} {row}");
        sums.iter_mut().zip(row.0).for_each(|(sum, value)| *sum += value / SEEDS.len() as f64);
    }
    println!("| mean {}", Row(sums));
    println!("\nours / PyTorch's: FVU {:.3}, tokens/s {:.2}", sums[0] / sums[1], sums[2] / sums[3]);
    Ok(())
}

/// FVU of both sides, then their tokens per second.
struct Row([f64; 4]);

impl Row {
    fn of(ours: Side, torch: Side) -> Self {
        Self([ours.fvu, torch.fvu, ours.tokens_per_second, torch.tokens_per_second])
    }
}

impl std::fmt::Display for Row {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [ours, torch, our_pace, its_pace] = self.0;
        write!(out, "| {ours:.4} | {torch:.4} | {our_pace:.0} | {its_pace:.0} |")
    }
}

/// Scenes with words, scenes alone and texts through the pocket model, at the hook point of its SAE.
fn pocket_hidden_states(folder: &Path) -> Result<PathBuf> {
    let pocket = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../public/pocket");
    let (plan, device) = (Plan::new(Size::Full), Default::default());
    let model = pocket.join("model");
    let config = LlavaNextConfig::load(&model)?;
    let net: LlavaNext<Cpu> = LlavaNext::load(&config, &model, &device, Dtype::F32)?;
    let sprites = Sprites::load(&pocket.join(names::SPRITES))?;
    let writer = Writer::load(&model)?;
    let states = HiddenStates { net: &net, plan: &plan, sprites: &sprites, writer: &writer, device: &device };
    let d = config.text_config.hidden_size;
    println!("hidden states of the pocket model at {}: {TOKENS} tokens", plan.hook_point());
    let mut rows: Vec<Vec<u8>> = Vec::with_capacity(TOKENS);
    for seed in 0.. {
        if rows.len() >= TOKENS {
            break;
        }
        let batch = states.batch(seed);
        let row = |row: &[f32]| row.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes()).collect();
        rows.extend(batch.chunks_exact(d).map(row));
    }
    rows.truncate(TOKENS);
    // Ours mixes tokens within windows, the other side all of them. Mixed before, both have the same to do: the last steps
    // of ours would otherwise be about pictures that were never seen, those of the other about pictures half seen.
    rows.shuffle(&mut ChaCha8Rng::seed_from_u64(0));
    let bytes = rows.concat();
    let hidden = folder.join("hidden");
    std::fs::create_dir_all(&hidden)?;
    let view = TensorView::new(safetensors::Dtype::F16, vec![TOKENS, d], &bytes)?;
    std::fs::write(hidden.join("hidden-00000.safetensors"), safetensors::serialize([("hidden", view)], None)?)?;
    Ok(hidden)
}

fn our_side(shards: &HiddenShards, settings: &Settings, out: &Path) -> Result<Side> {
    let begun = Instant::now();
    let options = TrainOptions { out: out.to_path_buf(), save_every: 1000 };
    let trained = train(shards, settings, &options, &mut |_| {})?;
    let seconds = begun.elapsed().as_secs_f64();
    let last = &trained.log[trained.log.len() - trained.log.len().div_ceil(10)..];
    let fvu = last.iter().map(|row| f64::from(row.fvu)).sum::<f64>() / last.len() as f64;
    Ok(Side { fvu, tokens_per_second: (settings.steps() * BATCH as u64) as f64 / seconds })
}

fn torch_side(hidden: &Path, settings: &Settings) -> Result<Side> {
    let python = std::env::var("PYTHON").unwrap_or_else(|_| "python3".into());
    let output = Command::new(&python)
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/train_reference.py"))
        .arg(hidden)
        .args(["--latents", &settings.latents.to_string(), "--k", &settings.k.to_string()])
        .args(["--tokens", &settings.tokens.to_string(), "--batch-tokens", &BATCH.to_string()])
        .args(["--dead-tokens", &DEAD_TOKENS.to_string(), "--seed", &settings.seed.to_string()])
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("starting {python}; PYTHON=… names a Python with torch and safetensors"))?;
    if !output.status.success() {
        bail!("the PyTorch side failed; PYTHON=… names a Python with torch and safetensors");
    }
    let answer: Value = serde_json::from_slice(&output.stdout).context("the answer of the PyTorch side")?;
    let number = |name: &str| answer[name].as_f64().with_context(|| format!("the PyTorch side does not say `{name}`"));
    Ok(Side { fvu: number("fvu")?, tokens_per_second: number("tokens_per_second")? })
}
