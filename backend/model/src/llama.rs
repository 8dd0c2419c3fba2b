//! The Llama decoder (Touvron et al. 2023): RMSNorm, rotary positions, grouped-query attention, SwiGLU.
//!
//! `h ← h + Attn(RMS(h))`, `h ← h + W_down(SiLU(W_gate h) ⊙ W_up h)`. The hook point `model.layers.N` is the output of
//! block `N`, before the final norm.

use crate::Error;
use crate::config::TextConfig;
use crate::weights::TensorIo;
use burn::module::{Module, Param};
use burn::nn::{Embedding, EmbeddingConfig, Initializer, Linear, LinearConfig};
use burn::tensor::activation::{silu, softmax};
use burn::tensor::{Bool, Int, Tensor, TensorData, backend::Backend};

/// The decoder with its embedding and unembedding.
#[derive(Module, Debug)]
pub struct Llama<B: Backend> {
    embed: Embedding<B>,
    blocks: Vec<LlamaBlock<B>>,
    norm: RmsNorm<B>,
    /// Absent when the embedding is tied.
    lm_head: Option<Linear<B>>,
    rope_theta: f64,
}

/// One decoder block.
#[derive(Module, Debug)]
pub struct LlamaBlock<B: Backend> {
    input_norm: RmsNorm<B>,
    q: Linear<B>,
    k: Linear<B>,
    v: Linear<B>,
    o: Linear<B>,
    post_norm: RmsNorm<B>,
    gate: Linear<B>,
    up: Linear<B>,
    down: Linear<B>,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
}

/// `x / rms(x) ⊙ γ`.
#[derive(Module, Debug)]
struct RmsNorm<B: Backend> {
    gamma: Param<Tensor<B, 1>>,
    epsilon: f64,
}

impl<B: Backend> RmsNorm<B> {
    fn new(d: usize, epsilon: f64, device: &B::Device) -> Self {
        Self { gamma: Initializer::Ones.init([d], device), epsilon }
    }

    fn forward<const D: usize>(&self, x: Tensor<B, D>) -> Tensor<B, D> {
        let mean_square = x.clone().powf_scalar(2.0).mean_dim(D - 1);
        x / (mean_square + self.epsilon).sqrt() * self.gamma.val().unsqueeze()
    }
}

/// Cosines and sines of the rotary embedding for a run of positions: `[positions, head_dim]` each.
#[derive(Debug, Clone)]
pub struct Rope<B: Backend> {
    cos: Tensor<B, 2>,
    sin: Tensor<B, 2>,
}

impl<B: Backend> Rope<B> {
    /// Positions `start .. start + count`; frequencies `θ^(−2i/d)`, each used twice (Hugging Face's half-split form).
    pub fn new(start: usize, count: usize, head_dim: usize, theta: f64, device: &B::Device) -> Self {
        let angle = |position: usize, i: usize| {
            let pair = i % (head_dim / 2);
            position as f64 * theta.powf(-2.0 * pair as f64 / head_dim as f64)
        };
        let table = |f: fn(f64) -> f64| {
            let values: Vec<f32> = (start..start + count)
                .flat_map(|position| (0..head_dim).map(move |i| f(angle(position, i)) as f32))
                .collect();
            Tensor::from_data(TensorData::new(values, [count, head_dim]), device)
        };
        Self { cos: table(f64::cos), sin: table(f64::sin) }
    }

    /// `x · cos + rotate_half(x) · sin` on `[batch, heads, positions, head_dim]`.
    fn apply(&self, x: Tensor<B, 4>) -> Tensor<B, 4> {
        let head_dim = x.dims()[3];
        let first = x.clone().narrow(3, 0, head_dim / 2);
        let second = x.clone().narrow(3, head_dim / 2, head_dim / 2);
        let rotated = Tensor::cat(vec![second.neg(), first], 3);
        x * self.cos.clone().unsqueeze() + rotated * self.sin.clone().unsqueeze()
    }
}

/// Keys and values of the tokens seen so far, one entry per block: `[batch, kv_heads, positions, head_dim]`.
#[derive(Debug, Clone)]
pub struct KvCache<B: Backend> {
    blocks: Vec<Option<(Tensor<B, 4>, Tensor<B, 4>)>>,
    positions: usize,
}

impl<B: Backend> KvCache<B> {
    /// An empty cache for `blocks` blocks.
    pub fn new(blocks: usize) -> Self {
        Self { blocks: vec![None; blocks], positions: 0 }
    }

    /// Tokens held.
    pub fn positions(&self) -> usize {
        self.positions
    }
}

impl TextConfig {
    pub fn init<B: Backend>(&self, device: &B::Device) -> Llama<B> {
        let small = Initializer::Normal { mean: 0.0, std: 0.02 };
        let head = || {
            LinearConfig::new(self.hidden_size, self.vocab_size)
                .with_bias(false)
                .with_initializer(small.clone())
                .init(device)
        };
        Llama {
            embed: EmbeddingConfig::new(self.vocab_size, self.hidden_size).with_initializer(small.clone()).init(device),
            blocks: (0..self.num_hidden_layers).map(|_| LlamaBlock::new(self, device)).collect(),
            norm: RmsNorm::new(self.hidden_size, self.rms_norm_eps, device),
            lm_head: (!self.tie_word_embeddings).then(head),
            rope_theta: self.rope_theta,
        }
    }
}

impl<B: Backend> LlamaBlock<B> {
    fn new(config: &TextConfig, device: &B::Device) -> Self {
        let (d, inner) = (config.hidden_size, config.intermediate_size);
        let head_dim = d / config.num_attention_heads;
        let kv = config.num_key_value_heads * head_dim;
        let linear = |from, to| {
            let small = Initializer::Normal { mean: 0.0, std: 0.02 };
            LinearConfig::new(from, to).with_bias(false).with_initializer(small).init(device)
        };
        Self {
            input_norm: RmsNorm::new(d, config.rms_norm_eps, device),
            q: linear(d, d),
            k: linear(d, kv),
            v: linear(d, kv),
            o: linear(d, d),
            post_norm: RmsNorm::new(d, config.rms_norm_eps, device),
            gate: linear(d, inner),
            up: linear(d, inner),
            down: linear(inner, d),
            heads: config.num_attention_heads,
            kv_heads: config.num_key_value_heads,
            head_dim,
        }
    }

    /// # Shapes
    /// - x, output: `[batch, positions, d_model]`
    /// - mask: `[positions, past + positions]`, true where attention is forbidden; `None` for a single new token
    fn forward(
        &self,
        x: Tensor<B, 3>,
        rope: &Rope<B>,
        mask: Option<&Tensor<B, 2, Bool>>,
        cache: Option<&mut Option<(Tensor<B, 4>, Tensor<B, 4>)>>,
    ) -> Tensor<B, 3> {
        let x = x.clone() + self.attention(self.input_norm.forward(x), rope, mask, cache);
        let normed = self.post_norm.forward(x.clone());
        let gated = silu(self.gate.forward(normed.clone())) * self.up.forward(normed);
        x + self.down.forward(gated)
    }

    fn attention(
        &self,
        x: Tensor<B, 3>,
        rope: &Rope<B>,
        mask: Option<&Tensor<B, 2, Bool>>,
        cache: Option<&mut Option<(Tensor<B, 4>, Tensor<B, 4>)>>,
    ) -> Tensor<B, 3> {
        let [batch, positions, d_model] = x.dims();
        let split = |t: Tensor<B, 3>, heads: usize| t.reshape([batch, positions, heads, self.head_dim]).swap_dims(1, 2);
        let q = rope.apply(split(self.q.forward(x.clone()), self.heads));
        let mut k = rope.apply(split(self.k.forward(x.clone()), self.kv_heads));
        let mut v = split(self.v.forward(x), self.kv_heads);
        if let Some(cache) = cache {
            if let Some((past_k, past_v)) = cache.take() {
                k = Tensor::cat(vec![past_k, k], 2);
                v = Tensor::cat(vec![past_v, v], 2);
            }
            *cache = Some((k.clone(), v.clone()));
        }
        let (k, v) = (self.repeat_kv(k), self.repeat_kv(v));
        let mut scores = q.matmul(k.swap_dims(2, 3)) / (self.head_dim as f64).sqrt();
        if let Some(mask) = mask {
            let shape = scores.dims();
            scores = scores.mask_fill(mask.clone().unsqueeze::<4>().expand(shape), f32::MIN / 2.0);
        }
        let mixed = softmax(scores, 3).matmul(v);
        self.o.forward(mixed.swap_dims(1, 2).reshape([batch, positions, d_model]))
    }

    /// Each key/value head serves `heads / kv_heads` query heads: `[b, kv, t, h]` to `[b, heads, t, h]`.
    fn repeat_kv(&self, t: Tensor<B, 4>) -> Tensor<B, 4> {
        let [batch, kv_heads, positions, head_dim] = t.dims();
        let group = self.heads / kv_heads;
        if group == 1 {
            return t;
        }
        t.reshape([batch, kv_heads, 1, positions, head_dim]).repeat_dim(2, group).reshape([
            batch,
            kv_heads * group,
            positions,
            head_dim,
        ])
    }
}

/// True above the diagonal: position `i` (absolute `past + i`) must not see later ones.
fn causal_mask<B: Backend>(past: usize, positions: usize, device: &B::Device) -> Tensor<B, 2, Bool> {
    Tensor::<B, 2, Bool>::tril_mask([positions, past + positions], past as i64, device)
}

impl<B: Backend> Llama<B> {
    /// Number of blocks.
    pub fn depth(&self) -> usize {
        self.blocks.len()
    }

    /// `[batch, positions]` ids to `[batch, positions, d_model]`.
    pub fn embed(&self, ids: Tensor<B, 2, Int>) -> Tensor<B, 3> {
        self.embed.forward(ids)
    }

    /// Runs blocks `range` over the whole sequence without a cache (training, extraction).
    pub fn blocks_forward(&self, x: Tensor<B, 3>, range: std::ops::Range<usize>) -> Tensor<B, 3> {
        let [_, positions, _] = x.dims();
        let device = x.device();
        let Some(first) = self.blocks.first() else { return x };
        let rope = Rope::new(0, positions, first.head_dim, self.rope_theta, &device);
        let mask = causal_mask(0, positions, &device);
        self.blocks[range].iter().fold(x, |x, block| block.forward(x, &rope, Some(&mask), None))
    }

    /// Runs all blocks over new tokens with a cache; `hook(layer, x)` may replace the output of each block.
    ///
    /// x: `[batch, new positions, d_model]`; the output has the same shape, before the final norm.
    pub fn cached_forward(
        &self,
        x: Tensor<B, 3>,
        cache: &mut KvCache<B>,
        mut hook: impl FnMut(usize, Tensor<B, 3>) -> Tensor<B, 3>,
    ) -> Tensor<B, 3> {
        let [_, positions, _] = x.dims();
        let device = x.device();
        let Some(first) = self.blocks.first() else { return x };
        let past = cache.positions;
        let rope = Rope::new(past, positions, first.head_dim, self.rope_theta, &device);
        let mask = (positions > 1).then(|| causal_mask(past, positions, &device));
        let mut x = x;
        for (layer, (block, slot)) in self.blocks.iter().zip(&mut cache.blocks).enumerate() {
            x = hook(layer, block.forward(x, &rope, mask.as_ref(), Some(slot)));
        }
        cache.positions += positions;
        x
    }

    /// Final norm and unembedding: `[batch, positions, d_model]` to `[batch, positions, vocabulary]`.
    pub fn logits(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        let x = self.norm.forward(x);
        match &self.lm_head {
            Some(head) => head.forward(x),
            None => x.matmul(self.embed.weight.val().transpose().unsqueeze()),
        }
    }

    /// Checkpoint keys under `path` (`language_model`).
    pub fn tensors(&mut self, path: &str, io: &mut impl TensorIo<B>) -> Result<(), Error> {
        io.embedding(&format!("{path}.model.embed_tokens"), &mut self.embed)?;
        for (b, block) in self.blocks.iter_mut().enumerate() {
            let path = format!("{path}.model.layers.{b}");
            io.param(&format!("{path}.input_layernorm.weight"), &mut block.input_norm.gamma)?;
            io.linear(&format!("{path}.self_attn.q_proj"), &mut block.q)?;
            io.linear(&format!("{path}.self_attn.k_proj"), &mut block.k)?;
            io.linear(&format!("{path}.self_attn.v_proj"), &mut block.v)?;
            io.linear(&format!("{path}.self_attn.o_proj"), &mut block.o)?;
            io.param(&format!("{path}.post_attention_layernorm.weight"), &mut block.post_norm.gamma)?;
            io.linear(&format!("{path}.mlp.gate_proj"), &mut block.gate)?;
            io.linear(&format!("{path}.mlp.up_proj"), &mut block.up)?;
            io.linear(&format!("{path}.mlp.down_proj"), &mut block.down)?;
        }
        io.param(&format!("{path}.model.norm.weight"), &mut self.norm.gamma)?;
        match &mut self.lm_head {
            Some(head) => io.linear(&format!("{path}.lm_head"), head),
            None => Ok(()),
        }
    }
}
