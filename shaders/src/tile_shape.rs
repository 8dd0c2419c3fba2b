//! How `sae_encode` is cut into workgroups and threads, and which cut is fastest here.

use crate::WeightType;
use crate::kernels::sae_encode::WGSL;
use crate::source::{unrolled, with_constant};

/// What a workgroup computes, and how its threads share the work. Both are entry points of `sae_encode.wgsl`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TileShape {
    /// Each thread computes `tokens_per_thread` × 4 `quads_per_thread` values. What they share goes through workgroup
    /// memory, of which there are 16 KiB, `step_quads` times 4 channels at a time.
    Tiled { token_threads: u32, latent_threads: u32, tokens_per_thread: u32, quads_per_thread: u32, step_quads: u32 },
    /// `lanes` threads share the channels of a few rows and add their sums at the end: for few tokens, where reading
    /// the weights is all there is to do.
    Split { lanes: u32, tokens: u32, latents: u32 },
    /// Each of `threads` threads computes `tokens` × `latents` values by itself: for adapters in software, to which
    /// waiting for other threads is dear.
    Direct { threads: u32, tokens: u32, latents: u32 },
}

impl TileShape {
    const fn tiled(
        [token_threads, latent_threads]: [u32; 2],
        tokens_per_thread: u32,
        quads_per_thread: u32,
        step_quads: u32,
    ) -> Self {
        Self::Tiled { token_threads, latent_threads, tokens_per_thread, quads_per_thread, step_quads }
    }

    /// Tokens of a workgroup.
    #[must_use]
    pub const fn tokens(self) -> u32 {
        match self {
            Self::Tiled { token_threads, tokens_per_thread, .. } => token_threads * tokens_per_thread,
            Self::Split { tokens, .. } | Self::Direct { tokens, .. } => tokens,
        }
    }

    /// Latents of a workgroup.
    #[must_use]
    pub const fn latents(self) -> u32 {
        match self {
            Self::Tiled { latent_threads, quads_per_thread, .. } => 4 * latent_threads * quads_per_thread,
            Self::Split { latents, .. } => latents,
            Self::Direct { threads, latents, .. } => threads * latents,
        }
    }

    #[must_use]
    pub const fn entry_point(self) -> &'static str {
        match self {
            Self::Tiled { .. } => "tiled",
            Self::Split { .. } => "split",
            Self::Direct { .. } => "direct",
        }
    }

    /// Whether threads compute by themselves: fastest where waiting for others is dear.
    #[must_use]
    pub const fn waits_for_nobody(self) -> bool {
        matches!(self, Self::Direct { .. })
    }

    /// `sae_encode.wgsl` with its `// host:` lines filled in and its `// unroll` loops written out.
    #[must_use]
    pub fn source(self, weight_type: WeightType) -> String {
        let weights = match weight_type {
            WeightType::F32 => 0,
            WeightType::F16 => 1,
            WeightType::Int8 => 2,
            WeightType::Int4 => 3,
        };
        let constants = match self {
            Self::Tiled { token_threads, latent_threads, tokens_per_thread, quads_per_thread, step_quads } => {
                let threads = token_threads * latent_threads;
                &[
                    ("TOKEN_THREADS", token_threads),
                    ("LATENT_THREADS", latent_threads),
                    ("TOKENS_PER_THREAD", tokens_per_thread),
                    ("QUADS_PER_THREAD", quads_per_thread),
                    ("STEP_QUADS", step_quads),
                    ("TOKEN_LOADS", (step_quads * self.tokens()).div_ceil(threads)),
                    ("OCTET_LOADS", (step_quads / 2 * self.latents()).div_ceil(threads)),
                ][..]
            }
            Self::Split { lanes, tokens, latents } => &[
                ("LANES", lanes),
                ("SPLIT_TOKENS", tokens),
                ("SPLIT_LATENTS", latents),
                ("SPLIT_VALUES", tokens * latents),
            ],
            Self::Direct { threads, tokens, latents } => &[
                ("DIRECT_THREADS", threads),
                ("DIRECT_TOKENS", tokens),
                ("DIRECT_LATENTS", latents),
                ("DIRECT_VALUES", tokens * latents),
            ],
        };
        let set = |source: String, (name, value): &(&str, u32)| with_constant(&source, name, &value.to_string());
        unrolled(&constants.iter().fold(with_constant(WGSL, "WEIGHTS", &weights.to_string()), set))
    }
}

/// The shapes that are tried: for one token, few, and many.
///
/// A thread of the larger tiles reads `tokens + 4 quads` vectors for `16 tokens quads` multiply-adds: 3.2 of them for
/// each number read at 4 × 1, 5.3 at 4 × 2, where reading from workgroup memory no longer bounds large GPUs.
/// A software adapter takes ten times as long for a tile as for the same sums without waiting; the last two are for it.
pub const TILE_SHAPES: [TileShape; 9] = [
    TileShape::Split { lanes: 128, tokens: 1, latents: 8 },
    TileShape::Split { lanes: 128, tokens: 4, latents: 4 },
    TileShape::tiled([16, 16], 1, 1, 4),
    TileShape::tiled([16, 16], 2, 1, 4),
    TileShape::tiled([16, 16], 4, 1, 4),
    TileShape::tiled([16, 16], 4, 2, 4),
    TileShape::tiled([8, 32], 8, 2, 2),
    TileShape::Direct { threads: 64, tokens: 1, latents: 4 },
    TileShape::Direct { threads: 16, tokens: 8, latents: 8 },
];

/// All of them, as places in [`TILE_SHAPES`].
pub const ALL_SHAPES: [usize; TILE_SHAPES.len()] = [0, 1, 2, 3, 4, 5, 6, 7, 8];
/// Enough for an SAE that is too small to be worth compiling and measuring all: for one token, few, and many.
pub const PLAIN_SHAPES: [usize; 3] = [0, 2, 4];

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
            let read = match shape {
                TileShape::Tiled { tokens_per_thread, quads_per_thread, .. } => {
                    let [tokens, latents] = [tokens_per_thread, 4 * quads_per_thread].map(|count| count as f32);
                    (tokens + latents) * 16.0 / (tokens * latents)
                }
                TileShape::Split { .. } => 16.0,
                TileShape::Direct { .. } => 64.0,
            };
            (8.0 + read + 64.0 / shape.tokens() as f32) * 1e-12
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
    use crate::source::constant;

    #[test]
    fn shapes_keep_the_default_limits() {
        for shape in TILE_SHAPES {
            let (threads, memory) = match shape {
                TileShape::Tiled { token_threads, latent_threads, step_quads, .. } => {
                    assert!(step_quads.is_multiple_of(2));
                    let tiles = 16 * step_quads * (shape.tokens() + shape.latents());
                    (token_threads * latent_threads, tiles + 8 * shape.tokens())
                }
                TileShape::Split { lanes, tokens, latents } => {
                    assert!(lanes.is_multiple_of(constant(WGSL, "PARTS")));
                    (lanes, 4 * (lanes + 1) * tokens * latents)
                }
                TileShape::Direct { threads, .. } => (threads, 0),
            };
            assert!(threads <= 256 && memory <= 16 << 10 && shape.latents() <= MAX_TILE_LATENTS, "{shape:?}");
        }
    }

    #[test]
    fn few_tokens_are_not_padded_far() {
        let shape = |tokens| TILE_SHAPES[Speeds::default().fastest(tokens)].tokens();
        assert_eq!([1, 2, 16, 32, 64, 576].map(shape), [1, 4, 16, 32, 64, 64]);
        let mut speeds = Speeds([1.0; TILE_SHAPES.len()]);
        speeds.0[3] = 0.1;
        assert_eq!([20, 576].map(|tokens| speeds.fastest(tokens)), [3, 3]);
    }
}
