//! Our CPU path beside PyTorch's, on the sizes of the 8B model, in turns within one run: `make bench`.
//!
//! Weights are random and loaded through the real file formats. `PYTHON` names a Python with `torch` and `transformers`;
//! without one, our own times are printed alone.
#![allow(clippy::expect_used)] // a bench stops where it cannot go on

use burn::tensor::{Distribution, Tensor};
use model::config::{LlavaNextConfig, TextConfig, VisionConfig};
use model::{Cpu, Dtype, LlavaNext, Sae, SaeConfig, SaeFile};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

/// As in the binary.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type B = Cpu;

/// Runs of each side; the medians are compared.
const RUNS: usize = 7;

fn main() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut torch = Torch::start();
    println!("| case | ours, ms | PyTorch, ms | our speed / PyTorch's |\n|---|---:|---:|---:|");
    compare("sae-encode", "SAE encode, 64 × 4,096 → 16,384, k = 256", sae_encode(folder.path()), &mut torch);
    let net = network(folder.path());
    let tower = &net.vision;
    let pixels = Tensor::<B, 4>::random([1, 3, 336, 336], Distribution::Normal(0.0, 1.0), &Default::default());
    compare(
        "clip-tower",
        "CLIP-L tower, 23 blocks, 577 positions",
        || drop(tower.hidden_at(pixels.clone(), 23).into_data()),
        &mut torch,
    );
    let x = Tensor::<B, 3>::random([1, 600, 4096], Distribution::Normal(0.0, 1.0), &Default::default());
    compare(
        "llama-block",
        "one Llama-3-8B block, 600 tokens",
        || drop(net.language.blocks_forward(x.clone(), 0..1).into_data()),
        &mut torch,
    );
}

/// A tower and one block of the 8B model's sizes, written and loaded as a checkpoint.
fn network(folder: &Path) -> LlavaNext<B> {
    let config = LlavaNextConfig {
        model_type: "llava_next".into(),
        architectures: Vec::new(),
        text_config: TextConfig {
            intermediate_size: 14_336,
            num_hidden_layers: 1,
            num_key_value_heads: 8,
            rope_theta: 500_000.0,
            rms_norm_eps: 1e-5,
            vocab_size: 64,
            max_position_embeddings: 8192,
            ..TextConfig::default()
        },
        vision_config: VisionConfig {
            hidden_size: 1024,
            intermediate_size: 4096,
            num_hidden_layers: 24,
            num_attention_heads: 16,
            image_size: 336,
            patch_size: 14,
            ..VisionConfig::default()
        },
        image_token_index: 3,
        image_grid_pinpoints: Vec::new(),
        vision_feature_layer: -2,
        vision_feature_select_strategy: "default".into(),
    };
    let device = Default::default();
    config.init::<B>(&device).save(&config, folder).expect("the checkpoint is written");
    LlavaNext::load(&config, folder, &device, Dtype::F32).expect("the checkpoint loads")
}

fn sae_encode(folder: &Path) -> impl FnMut() {
    let (d, latents, k) = (4096, 16_384, 256);
    let device = Default::default();
    let w_dec: Tensor<B, 2> = Tensor::random([latents, d], Distribution::Normal(0.0, 1.0 / 64.0), &device);
    let config =
        SaeConfig { expansion_factor: 4, normalize_decoder: true, num_latents: latents, k, signed: false, d_in: d };
    let bias = Tensor::random([latents], Distribution::Normal(0.0, 0.01), &device);
    let b_dec = Tensor::random([d], Distribution::Normal(0.0, 1.0), &device);
    let sae = Sae::<B>::top_k(config, w_dec.clone().transpose(), bias, w_dec, b_dec);
    let folder = folder.join("model.layers.24");
    sae.save(&folder).expect("the SAE is written");
    let file = SaeFile::open(&folder).expect("the SAE opens");
    let x: Tensor<B, 2> = Tensor::random([64, d], Distribution::Normal(0.0, 1.0), &device);
    let hidden = model::weights::f32_from_tensor(x);
    move || drop(file.encode(&hidden).expect("the hidden states fit"))
}

fn compare(case: &str, name: &str, mut ours: impl FnMut(), torch: &mut Option<Torch>) {
    ours();
    let (mut own, mut other) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        let begun = Instant::now();
        ours();
        own.push(begun.elapsed().as_secs_f64() * 1e3);
        other.extend(torch.as_mut().map(|torch| torch.run(case)));
    }
    let own = median(own);
    match median_of(other) {
        Some(other) => println!("| {name} | {own:.1} | {other:.1} | {:.2} |", other / own),
        None => println!("| {name} | {own:.1} | – | – |"),
    }
}

fn median(values: Vec<f64>) -> f64 {
    median_of(values).expect("there are runs")
}

fn median_of(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

/// The script beside this file, waiting for cases.
struct Torch {
    _process: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Torch {
    fn start() -> Option<Self> {
        let python = std::env::var("PYTHON").unwrap_or_else(|_| "python3".into());
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/beside_pytorch.py");
        let mut process =
            Command::new(&python).arg(script).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().ok()?;
        let (to, from) = (process.stdin.take()?, process.stdout.take()?);
        let mut torch = Self { _process: process, to, from: BufReader::new(from) };
        match torch.line() {
            Some(version) => println!("PyTorch's side: {version}\n"),
            None => {
                println!("{python} has no torch and transformers: our times alone. PYTHON=… names another.\n");
                return None;
            }
        }
        Some(torch)
    }

    fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        (self.from.read_line(&mut line).ok()? > 0).then(|| line.trim().to_owned())
    }

    /// Milliseconds of one run.
    fn run(&mut self, case: &str) -> f64 {
        writeln!(self.to, "{case}").expect("the script listens");
        self.line().and_then(|line| line.parse().ok()).expect("the script answers with milliseconds")
    }
}
