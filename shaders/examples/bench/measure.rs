//! What all measurements share: the clock, random inputs, how answers are compared.

use std::time::Instant;

use shaders::{Error, TopK};

/// An idle GPU's clock is a fraction of what it reaches; it rises within tenths of a second of work without a pause.
const WARM_SECONDS: f64 = 0.7;
/// Timed runs, and when fewer are enough.
const MOST_RUNS: usize = 15;
const LEAST_RUNS: usize = 3;
const BUDGET_SECONDS: f64 = 3.0;

/// Median seconds of a run, once the GPU's clock has risen. The caller has run it once: it is compiled.
pub async fn median(mut run: impl AsyncFnMut() -> Result<(), Error>) -> Result<f64, Error> {
    let begun = Instant::now();
    while begun.elapsed().as_secs_f64() < WARM_SECONDS {
        run().await?;
    }
    let (mut times, begun) = (Vec::new(), Instant::now());
    while times.len() < MOST_RUNS && (times.len() < LEAST_RUNS || begun.elapsed().as_secs_f64() < BUDGET_SECONDS) {
        let start = Instant::now();
        run().await?;
        times.push(start.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}

/// Seconds of one run, and its answer: enough for a CPU twin, which may take long.
pub fn once<T>(run: impl FnOnce() -> Result<T, Error>) -> Result<(f64, T), Error> {
    let start = Instant::now();
    let answer = run()?;
    Ok((start.elapsed().as_secs_f64(), answer))
}

/// Pseudo-random numbers in [-1, 1).
pub struct Numbers(pub u64);

impl Numbers {
    pub fn take(&mut self, count: usize) -> Vec<f32> {
        (0..count)
            .map(|_| {
                self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (self.0 >> 40) as f32 / (1 << 23) as f32 - 1.0
            })
            .collect()
    }

    /// An encode that nobody computed: `k` distinct latents a token, falling activations, all positive.
    pub fn top_k(&mut self, tokens: u32, k: u32, latents: u32) -> TopK {
        let mut top = TopK { tokens, ..TopK::empty(k) };
        for first in self.take(tokens as usize) {
            let first = ((first + 1.0) / 2.0 * latents as f32) as u32;
            top.top_indices.extend((0..k).map(|i| (first + i * (latents / k)) % latents));
            let mut acts: Vec<f32> = self.take(k as usize).iter().map(|act| act.abs() + 0.01).collect();
            acts.sort_by(|a, b| b.total_cmp(a));
            top.top_acts.extend(acts);
        }
        top
    }
}

/// `Ok` if both are equal.
pub fn check_equal<T: PartialEq>(what: &str, gpu: &T, twin: &T) -> Result<(), Error> {
    if gpu == twin { Ok(()) } else { Err(Error::WrongAnswer(format!("{what} differs from its CPU twin"))) }
}

/// `Ok` if all values are within `tolerance (1 + |value|)`.
pub fn check_close(what: &str, gpu: &[f32], twin: &[f32], tolerance: f32) -> Result<(), Error> {
    if gpu.len() != twin.len() {
        return Err(Error::WrongAnswer(format!("{what}: {} values where the CPU twin has {}", gpu.len(), twin.len())));
    }
    // Written so that NaN fails.
    let close = |a: f32, b: f32| (a - b).abs() <= tolerance * (1.0 + b.abs());
    match gpu.iter().zip(twin).find(|&(&a, &b)| !close(a, b)) {
        Some((a, b)) => Err(Error::WrongAnswer(format!("{what}: {a} where the CPU twin has {b}"))),
        None => Ok(()),
    }
}
