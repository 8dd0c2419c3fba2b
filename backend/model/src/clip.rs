//! The CLIP vision tower (Radford et al. 2021; Hugging Face `CLIPVisionModel`), and the block that both of CLIP's
//! towers are made of.
//!
//! Pre-norm transformer with quick-GELU: `h ← h + Attn(LN₁ h)`, `h ← h + MLP(LN₂ h)`. LLaVA reads the output of an
//! inner block (`vision_feature_layer`), never the post-norm; CLIP itself reads the class token after it
//! ([`crate::clip_score`]).

use crate::Error;
use crate::config::VisionConfig;
use crate::cpu::{self, Sees};
use crate::layers::{layer_norm, linear};
use crate::stem::Stem;
use crate::weights::TensorIo;
use burn::module::{Module, Param};
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{Initializer, LayerNorm, LayerNormConfig, Linear, LinearConfig};
use burn::tensor::activation::{gelu, sigmoid, softmax};
use burn::tensor::{Bool, DType, Tensor, backend::Backend};

/// Patch embedding, positions, blocks.
#[derive(Module, Debug)]
pub struct ClipVision<B: Backend> {
    /// CLIP's own embedding; absent when a stem stands in its place.
    patch: Option<PatchEmbedding<B>>,
    stem: Option<Stem<B>>,
    /// `[positions, hidden]`: patches, and the class token first if there is one.
    position: Param<Tensor<B, 2>>,
    pre_norm: LayerNorm<B>,
    blocks: Vec<ClipBlock<B>>,
    post_norm: LayerNorm<B>,
}

#[derive(Module, Debug)]
struct PatchEmbedding<B: Backend> {
    class: Param<Tensor<B, 1>>,
    conv: Conv2d<B>,
}

/// What the blocks of a tower have in common.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BlockConfig {
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_attention_heads: usize,
    pub layer_norm_eps: f64,
    /// GELU itself in place of [`quick_gelu`].
    pub exact_gelu: bool,
}

/// One transformer block.
#[derive(Module, Debug)]
pub(crate) struct ClipBlock<B: Backend> {
    norm1: LayerNorm<B>,
    q: Linear<B>,
    k: Linear<B>,
    v: Linear<B>,
    out: Linear<B>,
    norm2: LayerNorm<B>,
    fc1: Linear<B>,
    fc2: Linear<B>,
    heads: usize,
    exact_gelu: bool,
}

/// Attention scores computed at once, 64 MiB of them: the five tiles of an 8B model's picture have 27 million.
const SCORES_AT_ONCE: usize = 1 << 24;

/// `x · σ(1.702 x)`: CLIP's approximation of GELU.
fn quick_gelu<B: Backend>(x: Tensor<B, 3>) -> Tensor<B, 3> {
    cpu::quick_gelu(x).unwrap_or_else(|x| x.clone() * sigmoid(x * 1.702))
}

impl VisionConfig {
    /// A tower with random weights, with quick-GELU.
    pub fn init<B: Backend>(&self, device: &B::Device) -> ClipVision<B> {
        self.init_with(false, device)
    }

    /// A tower with random weights; `exact_gelu`: with GELU itself in place of quick-GELU.
    pub fn init_with<B: Backend>(&self, exact_gelu: bool, device: &B::Device) -> ClipVision<B> {
        let block = BlockConfig {
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            num_attention_heads: self.num_attention_heads,
            layer_norm_eps: self.layer_norm_eps,
            exact_gelu,
        };
        let hidden = self.hidden_size;
        let small = Initializer::Normal { mean: 0.0, std: 0.02 };
        let patches = self.grid() * self.grid();
        let patch = self.stem.is_none().then(|| PatchEmbedding {
            class: small.init([hidden], device),
            conv: Conv2dConfig::new([3, hidden], [self.patch_size, self.patch_size])
                .with_stride([self.patch_size, self.patch_size])
                .with_bias(false)
                .init(device),
        });
        let positions = patches + usize::from(patch.is_some());
        let norm = |d| LayerNormConfig::new(d).with_epsilon(self.layer_norm_eps).init(device);
        ClipVision {
            patch,
            stem: self.stem.as_ref().map(|stem| stem.init(device)),
            position: small.init([positions, hidden], device),
            pre_norm: norm(hidden),
            blocks: (0..self.num_hidden_layers).map(|_| ClipBlock::new(&block, device)).collect(),
            post_norm: norm(hidden),
        }
    }
}

impl<B: Backend> ClipBlock<B> {
    pub(crate) fn new(config: &BlockConfig, device: &B::Device) -> Self {
        let hidden = config.hidden_size;
        let square = || LinearConfig::new(hidden, hidden).init(device);
        let norm = || LayerNormConfig::new(hidden).with_epsilon(config.layer_norm_eps).init(device);
        Self {
            norm1: norm(),
            q: square(),
            k: square(),
            v: square(),
            out: square(),
            norm2: norm(),
            fc1: LinearConfig::new(hidden, config.intermediate_size).init(device),
            fc2: LinearConfig::new(config.intermediate_size, hidden).init(device),
            heads: config.num_attention_heads,
            exact_gelu: config.exact_gelu,
        }
    }

    /// `[batch, positions, hidden]` in and out; `causal`: a position sees those before it and itself alone.
    pub(crate) fn forward(&self, x: Tensor<B, 3>, causal: bool) -> Tensor<B, 3> {
        let x = x.clone() + self.attention(layer_norm(&self.norm1, x), causal);
        let inner = linear(&self.fc1, layer_norm(&self.norm2, x.clone()));
        let inner = if self.exact_gelu { gelu(inner) } else { quick_gelu(inner) };
        x + linear(&self.fc2, inner)
    }

    /// Self-attention; `[batch, positions, hidden]` in and out.
    fn attention(&self, x: Tensor<B, 3>, causal: bool) -> Tensor<B, 3> {
        let [batch, positions, hidden] = x.dims();
        let head = hidden / self.heads;
        let split = |t: Tensor<B, 3>| t.reshape([batch, positions, self.heads, head]).swap_dims(1, 2);
        let (dtype, device) = (x.dtype(), x.device());
        let (q, k, v) = (linear(&self.q, x.clone()), linear(&self.k, x.clone()), linear(&self.v, x));
        let (q, k, v) = (split(q), split(k), split(v));
        let sees = if causal { Sees::Past { past: 0, window: None, pads: &[] } } else { Sees::Everything };
        if let Some(mixed) = cpu::attention(&q, &k, &v, sees) {
            return linear(&self.out, mixed);
        }
        let q = q.mul_scalar((head as f64).sqrt().recip());
        // True where attention is forbidden.
        let later = causal.then(|| {
            let mask = Tensor::<B, 2, Bool>::tril_mask([positions, positions], 0, &device);
            mask.reshape([1, 1, positions, positions])
        });
        let together = (SCORES_AT_ONCE / (self.heads * positions * positions)).clamp(1, batch);
        let mixed = (0..batch).step_by(together).map(|first| {
            let rows = together.min(batch - first);
            let of = |t: &Tensor<B, 4>| t.clone().narrow(0, first, rows);
            let scores = of(&q).matmul(of(&k).swap_dims(2, 3)).cast(DType::F32);
            let scores = match &later {
                Some(later) => {
                    let everywhere = later.clone().expand([rows, self.heads, positions, positions]);
                    scores.mask_fill(everywhere, f32::MIN / 2.0)
                }
                None => scores,
            };
            softmax(scores, 3).cast(dtype).matmul(of(&v))
        });
        let mixed = Tensor::cat(mixed.collect(), 0);
        linear(&self.out, mixed.swap_dims(1, 2).reshape([batch, positions, hidden]))
    }

    /// Checkpoint keys under `path` (`vision_model.encoder.layers.0`).
    pub(crate) fn tensors(&mut self, path: &str, io: &mut impl TensorIo<B>) -> Result<(), Error> {
        io.layer_norm(&format!("{path}.layer_norm1"), &mut self.norm1)?;
        io.linear(&format!("{path}.self_attn.q_proj"), &mut self.q)?;
        io.linear(&format!("{path}.self_attn.k_proj"), &mut self.k)?;
        io.linear(&format!("{path}.self_attn.v_proj"), &mut self.v)?;
        io.linear(&format!("{path}.self_attn.out_proj"), &mut self.out)?;
        io.layer_norm(&format!("{path}.layer_norm2"), &mut self.norm2)?;
        io.linear(&format!("{path}.mlp.fc1"), &mut self.fc1)?;
        io.linear(&format!("{path}.mlp.fc2"), &mut self.fc2)
    }
}

impl<B: Backend> ClipVision<B> {
    /// Hidden state number `layer` (0: the embedding, `n`: output of block `n − 1`).
    ///
    /// # Shapes
    /// - pixels: `[batch, 3, side, side]`, normalised
    /// - output: `[batch, positions, hidden]`; the class token, if any, is position 0
    pub fn hidden_at(&self, pixels: Tensor<B, 4>, layer: usize) -> Tensor<B, 3> {
        self.blocks_forward(self.embed(pixels), 0..layer)
    }

    /// What CLIP itself makes of a picture: the first position (the class token) after all blocks and the post-norm.
    ///
    /// `[batch, 3, side, side]`, normalised, to `[batch, hidden]`.
    pub fn pooled(&self, pixels: Tensor<B, 4>) -> Tensor<B, 2> {
        let first = self.hidden_at(pixels, self.depth()).narrow(1, 0, 1);
        layer_norm(&self.post_norm, first.squeeze_dim(1))
    }

    /// Blocks `range` alone: `[batch, positions, hidden]` in and out.
    pub fn blocks_forward(&self, x: Tensor<B, 3>, range: std::ops::Range<usize>) -> Tensor<B, 3> {
        self.blocks[range].iter().fold(x, |x, block| block.forward(x, false))
    }

    /// What the first block sees: patches, positions and the class token, normalised.
    fn embed(&self, pixels: Tensor<B, 4>) -> Tensor<B, 3> {
        let embedded = match (&self.patch, &self.stem) {
            (Some(patch), _) => patch.forward(pixels),
            (None, Some(stem)) => stem.forward(pixels),
            (None, None) => unreachable!("VisionConfig::init makes one of the two"),
        };
        layer_norm(&self.pre_norm, embedded + self.position.val().unsqueeze())
    }

    /// Number of blocks.
    pub fn depth(&self) -> usize {
        self.blocks.len()
    }

    /// True if position 0 is a class token.
    pub fn has_class_token(&self) -> bool {
        self.patch.is_some()
    }

    /// Checkpoint keys under `path` (`vision_tower.vision_model`).
    pub fn tensors(&mut self, path: &str, io: &mut impl TensorIo<B>) -> Result<(), Error> {
        if let Some(patch) = &mut self.patch {
            io.param(&format!("{path}.embeddings.class_embedding"), &mut patch.class)?;
            io.conv(&format!("{path}.embeddings.patch_embedding"), &mut patch.conv)?;
        }
        if let Some(stem) = &mut self.stem {
            stem.tensors(&format!("{path}.embeddings.stem"), io)?;
        }
        io.param(&format!("{path}.embeddings.position_embedding.weight"), &mut self.position)?;
        // The misspelling is Hugging Face's.
        io.layer_norm(&format!("{path}.pre_layrnorm"), &mut self.pre_norm)?;
        for (b, block) in self.blocks.iter_mut().enumerate() {
            block.tensors(&format!("{path}.encoder.layers.{b}"), io)?;
        }
        io.layer_norm(&format!("{path}.post_layernorm"), &mut self.post_norm)
    }
}

impl<B: Backend> PatchEmbedding<B> {
    /// `[batch, 3, side, side]` to `[batch, 1 + patches, hidden]`.
    fn forward(&self, pixels: Tensor<B, 4>) -> Tensor<B, 3> {
        let patches = self.conv.forward(pixels);
        let [batch, hidden, rows, columns] = patches.dims();
        let patches = patches.reshape([batch, hidden, rows * columns]).swap_dims(1, 2);
        let class = self.class.val().reshape([1, 1, hidden]).repeat_dim(0, batch);
        Tensor::cat(vec![class, patches], 1)
    }
}
