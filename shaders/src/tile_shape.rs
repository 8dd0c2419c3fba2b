//! How `sae_encode` is cut into workgroups and threads, and which cut is fastest here.

use crate::WeightType;
use crate::kernels::sae_encode::WGSL;
use crate::source::with_constant;

/// Threads of a workgroup, and what each of them computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TileShape {
    pub token_threads: u32,
    pub latent_threads: u32,
    pub tokens_per_thread: u32,
    /// Quads of latents.
    pub quads_per_thread: u32,
    /// Quads of channels in a step of the loop: bounded by 16 KiB of workgroup memory.
    pub step_quads: u32,
}

impl TileShape {
    const fn new(threads: [u32; 2], tokens_per_thread: u32, quads_per_thread: u32, step_quads: u32) -> Self {
        let [token_threads, latent_threads] = threads;
        Self { token_threads, latent_threads, tokens_per_thread, quads_per_thread, step_quads }
    }

    /// Tokens of a workgroup.
    #[must_use]
    pub const fn tokens(self) -> u32 {
        self.token_threads * self.tokens_per_thread
    }

    /// Latents of a workgroup.
    #[must_use]
    pub const fn latents(self) -> u32 {
        4 * self.latent_threads * self.quads_per_thread
    }

    /// `sae_encode.wgsl` with its `// host:` lines filled in.
    #[must_use]
    pub fn source(self, weight_type: WeightType) -> String {
        let weights = match weight_type {
            WeightType::F32 => 0,
            WeightType::F16 => 1,
            WeightType::Int8 => 2,
            WeightType::Int4 => 3,
        };
        let constants = [
            ("WEIGHTS", weights),
            ("TOKEN_THREADS", self.token_threads),
            ("LATENT_THREADS", self.latent_threads),
            ("TOKENS_PER_THREAD", self.tokens_per_thread),
            ("QUADS_PER_THREAD", self.quads_per_thread),
            ("STEP_QUADS", self.step_quads),
        ];
        constants.iter().fold(WGSL.to_owned(), |source, (name, value)| with_constant(&source, name, &value.to_string()))
    }
}

/// The shapes that are tried: for one token, few, and many.
///
/// A thread of the larger ones reads `tokens + 4 quads` vectors for `16 tokens quads` multiply-adds: 3.2 of them for
/// each number read at 4 × 1, 5.3 at 4 × 2, where reading from workgroup memory no longer bounds large GPUs.
pub const TILE_SHAPES: [TileShape; 6] = [
    TileShape::new([1, 64], 1, 1, 2),
    TileShape::new([16, 16], 1, 1, 4),
    TileShape::new([16, 16], 2, 1, 4),
    TileShape::new([16, 16], 4, 1, 4),
    TileShape::new([16, 16], 4, 2, 4),
    TileShape::new([8, 32], 8, 1, 4),
];

/// All of them, as places in [`TILE_SHAPES`].
pub const ALL_SHAPES: [usize; TILE_SHAPES.len()] = [0, 1, 2, 3, 4, 5];
/// Enough for an SAE that is too small to be worth compiling and measuring all: for one token, few, and many.
pub const PLAIN_SHAPES: [usize; 3] = [0, 1, 3];

/// Most latents of a workgroup in any shape.
pub const MAX_TILE_LATENTS: u32 = 256;

/// Seconds per multiply-add of each of [`TILE_SHAPES`], counting what is computed beyond the last token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Speeds(pub [f32; TILE_SHAPES.len()]);

impl Default for Speeds {
    /// Before anything is measured: a thread's time goes into what it reads, and a workgroup's into weights that few
    /// tokens share.
    fn default() -> Self {
        Self(TILE_SHAPES.map(|shape| {
            let [tokens, latents] = [shape.tokens_per_thread, 4 * shape.quads_per_thread].map(|count| count as f32);
            (8.0 + (tokens + latents) * 16.0 / (tokens * latents) + 64.0 / shape.tokens() as f32) * 1e-12
        }))
    }
}

impl Speeds {
    /// Of these of [`TILE_SHAPES`] what is expected; the others are never the fastest.
    #[must_use]
    pub fn only(shapes: &[usize]) -> Self {
        let mut speeds = Self::default();
        for (at, seconds) in speeds.0.iter_mut().enumerate() {
            if !shapes.contains(&at) {
                *seconds = f32::INFINITY;
            }
        }
        speeds
    }

    /// The shape that takes least time for this many tokens, as a place in [`TILE_SHAPES`].
    #[must_use]
    pub fn fastest(&self, tokens: u32) -> usize {
        let seconds = |at: usize| f64::from(tokens.next_multiple_of(TILE_SHAPES[at].tokens())) * f64::from(self.0[at]);
        let order = |&a: &usize, &b: &usize| seconds(a).total_cmp(&seconds(b));
        (0..TILE_SHAPES.len()).min_by(order).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_keep_the_default_limits() {
        for shape in TILE_SHAPES {
            assert!(shape.token_threads * shape.latent_threads <= 256 && shape.step_quads.is_multiple_of(2));
            assert!(shape.latents() <= MAX_TILE_LATENTS);
            let tiles = 16 * shape.step_quads * (shape.tokens() + shape.latents());
            assert!(tiles + 8 * shape.tokens() <= 16 << 10, "{shape:?}");
        }
    }

    #[test]
    fn few_tokens_are_not_padded_far() {
        let shape = |tokens| TILE_SHAPES[Speeds::default().fastest(tokens)].tokens();
        assert_eq!([1, 2, 16, 32, 64, 576].map(shape), [1, 1, 16, 32, 64, 64]);
        let mut speeds = Speeds([1.0; TILE_SHAPES.len()]);
        speeds.0[3] = 0.1;
        assert_eq!([20, 576].map(|tokens| speeds.fastest(tokens)), [3, 3]);
    }
}
