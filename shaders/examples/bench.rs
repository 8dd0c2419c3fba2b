//! `cargo run -p shaders --example bench`: the encoder on the GPU beside its CPU twin, checked before it is timed.
//!
//! Times are medians of whole encodes from memory to memory: upload, all tiles, read back.

use std::time::Instant;

use shaders::kernels::sae_encode::SaeEncode;
use shaders::pack::pack;
use shaders::tile_shape::ALL_SHAPES;
use shaders::{Cancel, Error, Gpu, SaeShape, TopK, WeightType, cpu, known_answer};

/// tokens, d_model, latents, k
const CASES: [(u32, u32, u32, u32); 5] =
    [(1, 192, 3_072, 32), (65, 192, 3_072, 32), (64, 1_024, 8_192, 32), (576, 192, 3_072, 32), (1, 1_024, 16_384, 64)];
const RUNS: usize = 7;

fn main() -> Result<(), Error> {
    pollster::block_on(run())
}

async fn run() -> Result<(), Error> {
    let gpu = Gpu::new().await?;
    known_answer::check(&gpu, WeightType::F16, &ALL_SHAPES).await?;
    println!("{}", gpu.adapter());
    println!(
        "{:>10} {:>6} {:>6} {:>7} {:>4}  {:>9} {:>9}  {:>9} {:>9}  {:>7}",
        "kernel", "T", "D", "N", "k", "GPU ms", "GFLOP/s", "CPU ms", "GFLOP/s", "overlap"
    );
    for (tokens, d_model, latents, k) in CASES {
        bench(&gpu, SaeShape::new(d_model, latents, k)?, tokens).await?;
    }
    Ok(())
}

async fn bench(gpu: &Gpu, shape: SaeShape, tokens: u32) -> Result<(), Error> {
    let mut numbers = Numbers(1);
    let hidden = numbers.take(tokens as usize * shape.d_model as usize);
    let packed = pack(shape, WeightType::F16, &numbers.take(shape.weights()));
    let (b_enc, b_dec) = (numbers.take(shape.latents as usize), numbers.take(shape.d_model as usize));
    let mut sae = SaeEncode::new(gpu, shape, WeightType::F16)?;
    sae.write_rows(gpu, 0, &packed.rows)?;
    sae.write_biases(gpu, &b_enc, &b_dec)?;
    let mut twin = cpu::sae_encode::SaeEncode::new(shape, WeightType::F16)?;
    twin.write_rows(0, &packed.rows)?;
    twin.write_biases(&b_enc, &b_dec)?;

    let speeds = sae.probe(gpu, &Cancel::default()).await?;
    let rates: Vec<String> = speeds.0.iter().map(|seconds| format!("{:.2}", 2e-9 / seconds)).collect();
    println!("           shapes, GFLOP/s: {}", rates.join(" "));
    // Also the warm-up.
    let overlap =
        agreement(&sae.encode(gpu, &hidden, tokens, &Cancel::default()).await?, &twin.encode(&hidden, tokens)?)?;
    let (mut on_gpu, mut on_cpu) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        let start = Instant::now();
        sae.encode(gpu, &hidden, tokens, &Cancel::default()).await?;
        on_gpu.push(start.elapsed().as_secs_f64());
        let start = Instant::now();
        twin.encode(&hidden, tokens)?;
        on_cpu.push(start.elapsed().as_secs_f64());
    }
    let (gpu_seconds, cpu_seconds) = (median(on_gpu), median(on_cpu));
    let gflop = 2e-9 * f64::from(tokens) * shape.weights() as f64;
    println!(
        "{:>10} {tokens:>6} {:>6} {:>7} {:>4}  {:>9.2} {:>9.2}  {:>9.2} {:>9.2}  {overlap:>7.4}",
        "sae_encode",
        shape.d_model,
        shape.latents,
        shape.k,
        1e3 * gpu_seconds,
        gflop / gpu_seconds,
        1e3 * cpu_seconds,
        gflop / cpu_seconds
    );
    Ok(())
}

/// Share of the latents that both list; an error if it is low or activations differ.
fn agreement(gpu: &TopK, cpu: &TopK) -> Result<f64, Error> {
    let mut shared = 0;
    for token in 0..cpu.tokens {
        let ((latents, acts), (twin_latents, twin_acts)) = (gpu.row(token), cpu.row(token));
        shared += latents.iter().filter(|latent| twin_latents.contains(latent)).count();
        for (act, twin) in acts.iter().zip(twin_acts) {
            // Written so that NaN fails.
            let close = (act - twin).abs() <= 1e-3 * (1.0 + twin.abs());
            if !close {
                return Err(Error::WrongAnswer(format!("token {token}: {act} where the CPU twin has {twin}")));
            }
        }
    }
    let overlap = shared as f64 / cpu.top_indices.len() as f64;
    if overlap < 0.99 {
        return Err(Error::WrongAnswer(format!("only {overlap:.3} of the latents agree with the CPU twin")));
    }
    Ok(overlap)
}

fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}

/// Pseudo-random numbers in [-1, 1).
struct Numbers(u64);

impl Numbers {
    fn take(&mut self, count: usize) -> Vec<f32> {
        (0..count)
            .map(|_| {
                self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (self.0 >> 40) as f32 / (1 << 23) as f32 - 1.0
            })
            .collect()
    }
}
