//! The Llama decoder (Touvron et al. 2023): RMSNorm, rotary positions, grouped-query attention, SwiGLU.
//!
//! `h ← h + Attn(RMS(h))`, `h ← h + W_down(SiLU(W_gate h) ⊙ W_up h)`. The hook point `model.layers.N` is the output of
//! block `N`, before the final norm.

use crate::Error;
use crate::config::TextConfig;
use crate::cpu::{self, Sees};
pub use crate::kv_cache::KvCache;
use crate::layers::linear;
use crate::weights::TensorIo;
use burn::module::{AutodiffModule, Module, Param};
use burn::nn::{Embedding, EmbeddingConfig, Initializer, Linear, LinearConfig};
use burn::tensor::activation::{silu, softmax};
use burn::tensor::{Bool, DType, Int, Tensor, TensorData, backend::Backend};
use std::cell::OnceCell;
use std::convert::Infallible;

/// The decoder with its embedding and unembedding.
#[derive(Module, Debug)]
pub struct Llama<B: Backend> {
    embed: Embedding<B>,
    blocks: Vec<LlamaBlock<B>>,
    norm: RmsNorm<B>,
    /// Absent when the embedding is tied.
    lm_head: Option<Linear<B>>,
    rope_theta: f64,
    sliding_window: Option<usize>,
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

    /// In f32, rounded to the stream's format at the end.
    fn forward<const D: usize>(&self, x: Tensor<B, D>) -> Tensor<B, D> {
        if let Some(normed) = cpu::rms_norm(&x, &self.gamma.val(), self.epsilon) {
            return normed;
        }
        let dtype = x.dtype();
        let x = x.cast(DType::F32);
        let mean_square = x.clone().square().mean_dim(D - 1);
        ((x / (mean_square + self.epsilon).sqrt()) * self.gamma.val().unsqueeze()).cast(dtype)
    }
}

/// Cosines and sines of the rotary embedding for a run of positions: `[rows or 1, 1, positions, head_dim]` each.
#[derive(Debug, Clone)]
pub struct Rope<B: Backend> {
    cos: Tensor<B, 4>,
    sin: Tensor<B, 4>,
}

impl<B: Backend> Rope<B> {
    /// For each row, positions `starts[row] .. starts[row] + count`; frequencies `θ^(−2i/d)`, each used twice (Hugging
    /// Face's half-split form). Computed in f32, as `transformers` does, and rounded to `dtype` at the end.
    pub fn new(starts: &[usize], count: usize, head_dim: usize, theta: f64, dtype: DType, device: &B::Device) -> Self {
        let frequency = |i: usize| (1.0 / theta.powf(2.0 * (i % (head_dim / 2)) as f64 / head_dim as f64)) as f32;
        let frequencies: Vec<f32> = (0..head_dim).map(frequency).collect();
        let table = |f: fn(f32) -> f32| {
            let positions = starts.iter().flat_map(|&start| start..start + count);
            let values: Vec<f32> =
                positions.flat_map(|position| frequencies.iter().map(move |w| f(position as f32 * w))).collect();
            let data = TensorData::new(values, [starts.len(), 1, count, head_dim]);
            Tensor::<B, 4>::from_data(data, (device, DType::F32)).cast(dtype)
        };
        Self { cos: table(f32::cos), sin: table(f32::sin) }
    }

    /// `x · cos + rotate_half(x) · sin` on `[rows, heads, positions, head_dim]`.
    fn apply(&self, x: Tensor<B, 4>) -> Tensor<B, 4> {
        if let Some(rotated) = cpu::rotate(&x, &self.cos, &self.sin) {
            return rotated;
        }
        let head_dim = x.dims()[3];
        let first = x.clone().narrow(3, 0, head_dim / 2);
        let second = x.clone().narrow(3, head_dim / 2, head_dim / 2);
        let rotated = Tensor::cat(vec![second.neg(), first], 3);
        x * self.cos.clone() + rotated * self.sin.clone()
    }
}

/// Queries that are looked at together: bounds the score matrix, and skips what later queries alone would see.
const QUERY_BLOCK: usize = 256;

/// Neighbouring queries of a run and the keys they may see; the same for every block of the model.
#[derive(Debug, Clone)]
struct QueryBlock<B: Backend> {
    first: usize,
    count: usize,
    /// The first so many keys, at most, are seen.
    keys: usize,
    /// True where attention is forbidden: `[rows or 1, 1, count, keys]`. `None`: all keys are seen.
    mask: Option<Tensor<B, 4, Bool>>,
}

/// The queries of a run after `past` positions. A query sees the keys before it and itself, `window` at most, and not
/// the padding on the left of its row (`pads`, one for each row; empty: none).
#[derive(Debug)]
struct Queries<'a, B: Backend> {
    past: usize,
    positions: usize,
    window: Option<usize>,
    pads: &'a [usize],
    device: B::Device,
    /// Made when they are first needed: the CPU's own attention needs none.
    blocks: OnceCell<Vec<QueryBlock<B>>>,
}

impl<'a, B: Backend> Queries<'a, B> {
    fn new(past: usize, positions: usize, window: Option<usize>, pads: &'a [usize], device: &B::Device) -> Self {
        Self { past, positions, window, pads, device: device.clone(), blocks: OnceCell::new() }
    }

    fn sees(&self) -> Sees<'_> {
        Sees::Past { past: self.past, window: self.window, pads: self.pads }
    }

    fn blocks(&self) -> &[QueryBlock<B>] {
        let Self { past, positions, window, pads, device, .. } = self;
        self.blocks.get_or_init(|| query_blocks(*past, *positions, *window, pads, device))
    }
}

fn query_blocks<B: Backend>(
    past: usize,
    positions: usize,
    window: Option<usize>,
    pads: &[usize],
    device: &B::Device,
) -> Vec<QueryBlock<B>> {
    let padded = pads.iter().any(|&pad| pad > 0);
    let pads = if padded { pads } else { &[0] };
    let block = |first: usize| {
        let count = QUERY_BLOCK.min(positions - first);
        let (start, keys) = (past + first, past + first + count);
        let slides = window.is_some_and(|window| keys > window);
        if count == 1 && !padded && !slides {
            return QueryBlock { first, count, keys, mask: None };
        }
        let hidden = |pad: usize, query: usize, key: usize| {
            key > query || key < pad || window.is_some_and(|window| key + window <= query)
        };
        let cells = pads
            .iter()
            .flat_map(|&pad| (start..keys).flat_map(move |query| (0..keys).map(move |key| hidden(pad, query, key))));
        let data = TensorData::new(cells.collect::<Vec<bool>>(), [pads.len(), 1, count, keys]);
        QueryBlock { first, count, keys, mask: Some(Tensor::from_data(data, device)) }
    };
    (0..positions).step_by(QUERY_BLOCK).map(block).collect()
}

/// `softmax(q kᵀ / √d + mask) v` with `heads / kv_heads` query heads for each key/value head.
///
/// # Shapes
/// - q: `[rows, heads, positions, head_dim]`
/// - k, v: `[rows, kv_heads, past + positions, head_dim]`
/// - output: `[rows, positions, heads · head_dim]`
fn grouped_attention<B: Backend>(
    q: Tensor<B, 4>,
    k: Tensor<B, 4>,
    v: Tensor<B, 4>,
    queries: &Queries<'_, B>,
) -> Tensor<B, 3> {
    if let Some(mixed) = cpu::attention(&q, &k, &v, queries.sees()) {
        return mixed;
    }
    let [rows, heads, positions, head_dim] = q.dims();
    let kv_heads = k.dims()[1];
    let group = heads / kv_heads;
    let dtype = q.dtype();
    let q = q.mul_scalar((head_dim as f64).sqrt().recip());
    let mixed = |&QueryBlock { first, count, keys, ref mask }: &QueryBlock<B>| {
        // Query heads of one group are neighbours: they share one product with their keys.
        let q = q.clone().narrow(2, first, count).reshape([rows, kv_heads, group * count, head_dim]);
        let scores = q.matmul(k.clone().narrow(2, 0, keys).swap_dims(2, 3));
        let scores = scores.reshape([rows, heads, count, keys]).cast(DType::F32);
        let scores = match mask {
            Some(mask) => scores.mask_fill(mask.clone().expand([rows, heads, count, keys]), f32::MIN / 2.0),
            None => scores,
        };
        let weights = softmax(scores, 3).cast(dtype).reshape([rows, kv_heads, group * count, keys]);
        weights.matmul(v.clone().narrow(2, 0, keys)).reshape([rows, heads, count, head_dim])
    };
    let mut parts: Vec<Tensor<B, 4>> = queries.blocks().iter().map(mixed).collect();
    let mixed = if parts.len() == 1 { parts.remove(0) } else { Tensor::cat(parts, 2) };
    mixed.swap_dims(1, 2).reshape([rows, positions, heads * head_dim])
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
            sliding_window: self.sliding_window,
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

    /// One block over new positions; `with_past` puts the earlier keys and values before the new ones.
    ///
    /// x, output: `[rows, positions, d_model]`
    fn forward(
        &self,
        x: Tensor<B, 3>,
        rope: &Rope<B>,
        queries: &Queries<'_, B>,
        with_past: impl FnOnce(Tensor<B, 4>, Tensor<B, 4>) -> (Tensor<B, 4>, Tensor<B, 4>),
    ) -> Tensor<B, 3> {
        let [rows, positions, _] = x.dims();
        let normed = self.input_norm.forward(x.clone());
        let split = |t: Tensor<B, 3>, heads: usize| t.reshape([rows, positions, heads, self.head_dim]).swap_dims(1, 2);
        let q = rope.apply(split(linear(&self.q, normed.clone()), self.heads));
        let k = rope.apply(split(linear(&self.k, normed.clone()), self.kv_heads));
        let (k, v) = with_past(k, split(linear(&self.v, normed), self.kv_heads));
        let mixed = grouped_attention(q, k, v, queries);
        let x = x + linear(&self.o, mixed);
        let normed = self.post_norm.forward(x.clone());
        let (gate, up) = (linear(&self.gate, normed.clone()), linear(&self.up, normed));
        let gated = cpu::gated(gate, up).unwrap_or_else(|(gate, up)| silu(gate) * up);
        x + linear(&self.down, gated)
    }
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

    /// Runs blocks `range` over whole sequences without a cache (training, extraction): `[rows, positions, d_model]`.
    pub fn blocks_forward(&self, x: Tensor<B, 3>, range: std::ops::Range<usize>) -> Tensor<B, 3> {
        match self.checked_forward(x, range, || Ok::<_, Infallible>(())) {
            Ok(x) => x,
            Err(never) => match never {},
        }
    }

    /// [`Self::blocks_forward`], given up when `check` fails before a block.
    pub fn checked_forward<E>(
        &self,
        x: Tensor<B, 3>,
        range: std::ops::Range<usize>,
        check: impl Fn() -> Result<(), E>,
    ) -> Result<Tensor<B, 3>, E> {
        let Some(first) = self.blocks.first() else { return Ok(x) };
        let (positions, device) = (x.dims()[1], x.device());
        let rope = Rope::new(&[0], positions, first.head_dim, self.rope_theta, x.dtype(), &device);
        let queries = Queries::new(0, positions, self.sliding_window, &[], &device);
        self.blocks[range].iter().try_fold(x, |x, block| {
            check()?;
            Ok(block.forward(x, &rope, &queries, |k, v| (k, v)))
        })
    }

    /// Runs blocks `range` over new tokens with a cache: `[rows, new positions, d_model]` in and out, before the final
    /// norm. The run that reaches the last block ends the step: its positions count as held.
    pub fn cached_forward(
        &self,
        x: Tensor<B, 3>,
        cache: &mut KvCache<B>,
        range: std::ops::Range<usize>,
    ) -> Tensor<B, 3> {
        let Some(first) = self.blocks.first() else { return x };
        let (positions, device) = (x.dims()[1], x.device());
        let rope = Rope::new(&cache.next_positions(), positions, first.head_dim, self.rope_theta, x.dtype(), &device);
        let pads = cache.pads().to_vec();
        let queries = Queries::new(cache.positions(), positions, self.sliding_window, &pads, &device);
        let ends = range.end == self.blocks.len();
        let x =
            range.fold(x, |x, layer| self.blocks[layer].forward(x, &rope, &queries, |k, v| cache.append(layer, k, v)));
        if ends {
            cache.advance(positions);
        }
        x
    }

    /// The gradient at the input of block `layer`, given the one at its output; the block is run again for it.
    ///
    /// x: the block's input `[1, positions, d_model]`; gradient: the same shape, in f32 or the model's format.
    pub fn block_vjp(&self, layer: usize, x: Tensor<B, 3>, gradient: Tensor<B, 3>) -> Tensor<B, 3> {
        type Tape<B> = burn::backend::Autodiff<B>;
        let block = <LlamaBlock<Tape<B>> as AutodiffModule<Tape<B>>>::from_inner(self.blocks[layer].clone()).no_grad();
        let x = Tensor::<Tape<B>, 3>::from_inner(x).require_grad();
        let (positions, device) = (x.dims()[1], x.device());
        let rope = Rope::new(&[0], positions, block.head_dim, self.rope_theta, x.dtype(), &device);
        let queries = Queries::new(0, positions, self.sliding_window, &[], &device);
        let y = block.forward(x.clone(), &rope, &queries, |k, v| (k, v));
        let gradient = gradient.cast(y.dtype());
        let mut gradients = (y * Tensor::from_inner(gradient)).sum().backward();
        x.grad_remove(&mut gradients).unwrap_or_else(|| x.inner().zeros_like())
    }

    /// `logits[answer] − logits[baseline]` of one stream position `[1, d_model]`, and its gradient there. From the final
    /// norm's input on in f32: the difference of two rounded logits would be mostly rounding.
    pub fn difference_vjp(&self, last: Tensor<B, 2>, answer: usize, baseline: usize) -> (f32, Tensor<B, 2>) {
        type Tape<B> = burn::backend::Autodiff<B>;
        let norm = <RmsNorm<Tape<B>> as AutodiffModule<Tape<B>>>::from_inner(self.norm.clone()).no_grad();
        let rows = self.unembedding_rows(&[answer, baseline]).cast(DType::F32);
        let direction = rows.clone().narrow(0, 0, 1) - rows.narrow(0, 1, 1);
        let last = Tensor::<Tape<B>, 2>::from_inner(last.cast(DType::F32)).require_grad();
        let difference = (norm.forward(last.clone()) * Tensor::from_inner(direction)).sum();
        let mut gradients = difference.backward();
        let value = crate::weights::f32_from_tensor(difference.inner()).first().copied().unwrap_or(f32::NAN);
        let gradient = last.grad_remove(&mut gradients).unwrap_or_else(|| last.inner().zeros_like());
        (value, gradient)
    }

    /// Rows of the unembedding: `[ids, d_model]`.
    fn unembedding_rows(&self, ids: &[usize]) -> Tensor<B, 2> {
        let row = |&id: &usize| match &self.lm_head {
            Some(head) => head.weight.val().narrow(1, id, 1).transpose(),
            None => self.embed.weight.val().narrow(0, id, 1),
        };
        Tensor::cat(ids.iter().map(row).collect(), 0)
    }

    /// The embedding matrix `[vocabulary, d_model]`.
    pub fn embedding(&self) -> Tensor<B, 2> {
        self.embed.weight.val()
    }

    /// Final norm and unembedding: `[batch, positions, d_model]` to `[batch, positions, vocabulary]`.
    pub fn logits(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        let x = self.norm.forward(x);
        match &self.lm_head {
            Some(head) => linear(head, x),
            None => {
                let [rows, positions, d_model] = x.dims();
                let y = x.reshape([rows * positions, d_model]).matmul(self.embed.weight.val().transpose());
                let vocabulary = y.dims()[1];
                y.reshape([rows, positions, vocabulary])
            }
        }
    }

    /// Checkpoint keys under `path` (`language_model`).
    pub fn tensors(&mut self, path: &str, io: &mut impl TensorIo<B>) -> Result<(), Error> {
        io.embedding(&format!("{path}.model.embed_tokens"), &mut self.embed)?;
        for (b, block) in self.blocks.iter_mut().enumerate() {
            let path = format!("{path}.model.layers.{b}");
            io.param_f32(&format!("{path}.input_layernorm.weight"), &mut block.input_norm.gamma)?;
            io.linear(&format!("{path}.self_attn.q_proj"), &mut block.q)?;
            io.linear(&format!("{path}.self_attn.k_proj"), &mut block.k)?;
            io.linear(&format!("{path}.self_attn.v_proj"), &mut block.v)?;
            io.linear(&format!("{path}.self_attn.o_proj"), &mut block.o)?;
            io.param_f32(&format!("{path}.post_attention_layernorm.weight"), &mut block.post_norm.gamma)?;
            io.linear(&format!("{path}.mlp.gate_proj"), &mut block.gate)?;
            io.linear(&format!("{path}.mlp.up_proj"), &mut block.up)?;
            io.linear(&format!("{path}.mlp.down_proj"), &mut block.down)?;
        }
        io.param_f32(&format!("{path}.model.norm.weight"), &mut self.norm.gamma)?;
        match &mut self.lm_head {
            Some(head) => io.linear(&format!("{path}.lm_head"), head),
            None => Ok(()),
        }
    }
}
