//! CLIP's text tower (Hugging Face `CLIPTextTransformer`): the vision tower's blocks, each position seeing those before
//! it and itself.

use super::config::ClipTextConfig;
use crate::Error;
use crate::clip::{BlockConfig, ClipBlock};
use crate::layers::layer_norm;
use crate::weights::TensorIo;
use burn::module::{Module, Param};
use burn::nn::{Embedding, EmbeddingConfig, Initializer, LayerNorm, LayerNormConfig};
use burn::tensor::{Int, Tensor, backend::Backend};

/// Token and position embeddings, blocks, final norm.
#[derive(Module, Debug)]
pub(super) struct ClipText<B: Backend> {
    token: Embedding<B>,
    /// `[positions, hidden]`
    position: Param<Tensor<B, 2>>,
    blocks: Vec<ClipBlock<B>>,
    final_norm: LayerNorm<B>,
}

impl ClipTextConfig {
    /// A tower with random weights.
    pub(super) fn init<B: Backend>(&self, exact_gelu: bool, device: &B::Device) -> ClipText<B> {
        let small = Initializer::Normal { mean: 0.0, std: 0.02 };
        let block = BlockConfig {
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            num_attention_heads: self.num_attention_heads,
            layer_norm_eps: self.layer_norm_eps,
            exact_gelu,
        };
        ClipText {
            token: EmbeddingConfig::new(self.vocab_size, self.hidden_size).with_initializer(small.clone()).init(device),
            position: small.init([self.max_position_embeddings, self.hidden_size], device),
            blocks: (0..self.num_hidden_layers).map(|_| ClipBlock::new(&block, device)).collect(),
            final_norm: LayerNormConfig::new(self.hidden_size).with_epsilon(self.layer_norm_eps).init(device),
        }
    }
}

impl<B: Backend> ClipText<B> {
    /// What position `at` of one text says after the final norm: ids `[1, tokens]` to `[1, hidden]`.
    ///
    /// Padding behind it would not be seen, so that no text needs any.
    pub fn pooled(&self, ids: Tensor<B, 2, Int>, at: usize) -> Tensor<B, 2> {
        let [_, tokens] = ids.dims();
        let positions = self.position.val().narrow(0, 0, tokens).unsqueeze::<3>();
        let embedded = self.token.forward(ids) + positions;
        let hidden = self.blocks.iter().fold(embedded, |x, block| block.forward(x, true));
        layer_norm(&self.final_norm, hidden.narrow(1, at, 1).squeeze_dim(1))
    }

    /// Checkpoint keys under `path` (`text_model`).
    pub fn tensors(&mut self, path: &str, io: &mut impl TensorIo<B>) -> Result<(), Error> {
        io.embedding(&format!("{path}.embeddings.token_embedding"), &mut self.token)?;
        io.param(&format!("{path}.embeddings.position_embedding.weight"), &mut self.position)?;
        for (b, block) in self.blocks.iter_mut().enumerate() {
            block.tensors(&format!("{path}.encoder.layers.{b}"), io)?;
        }
        io.layer_norm(&format!("{path}.final_layer_norm"), &mut self.final_norm)
    }
}
