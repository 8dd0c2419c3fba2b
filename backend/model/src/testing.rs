//! A tiny random checkpoint for tests of everything above this crate: the real file formats, seconds to make.

use crate::config::{LlavaNextConfig, OneOrMany, TextConfig, VisionConfig};
use crate::sae::{Sae, SaeConfig};
use crate::stem::StemConfig;
use crate::tokenize::{save_tokenizer, train_tokenizer};
use crate::{Error, LlavaNext};
use burn::tensor::{Distribution, Tensor, backend::Backend};
use std::path::Path;

/// A model of a few thousand weights with a convolutional stem, one picture view.
pub fn tiny_config(vocab_size: usize) -> LlavaNextConfig {
    LlavaNextConfig {
        model_type: "llava_next".into(),
        architectures: vec!["LlavaNextForConditionalGeneration".into()],
        text_config: TextConfig {
            model_type: "llama".into(),
            hidden_size: 32,
            intermediate_size: 48,
            num_hidden_layers: 3,
            num_attention_heads: 4,
            num_key_value_heads: 2,
            rope_theta: 10_000.0,
            rms_norm_eps: 1e-5,
            vocab_size,
            max_position_embeddings: 256,
            bos_token_id: Some(1),
            eos_token_id: Some(OneOrMany::One(2)),
            tie_word_embeddings: false,
            sliding_window: None,
        },
        vision_config: VisionConfig {
            model_type: "clip_vision_model".into(),
            hidden_size: 16,
            intermediate_size: 32,
            num_hidden_layers: 2,
            num_attention_heads: 2,
            image_size: 32,
            patch_size: 8,
            layer_norm_eps: 1e-5,
            stem: Some(StemConfig { channels: vec![8, 8, 16], depths: vec![1, 1, 1], kernel: 3 }),
        },
        image_token_index: 3,
        image_grid_pinpoints: Vec::new(),
        vision_feature_layer: -1,
        vision_feature_select_strategy: "full".into(),
    }
}

/// Writes `dir/model` (a random LMM) and `dir/sae/model.layers.1` (a random SAE with 64 latents, k = 8).
pub fn tiny_checkpoint<B: Backend>(dir: &Path, device: &B::Device) -> Result<(), Error> {
    B::seed(device, 7);
    let words = ["What is this? It is a red cat.", "Alice feels happy. Why? She saw a dog.", "a blue bird at the top"];
    let tokenizer = train_tokenizer(words.iter().map(|text| text.to_string()), 320)?;
    save_tokenizer(&tokenizer, &dir.join("model"))?;
    let config = tiny_config(tokenizer.get_vocab_size(true));
    let net: LlavaNext<B> = config.init(device);
    net.save(&config, &dir.join("model"))?;
    let (d, latents) = (config.text_config.hidden_size, 64);
    let normal = Distribution::Normal(0.0, 0.2);
    let w_dec: Tensor<B, 2> = Tensor::random([latents, d], normal, device);
    let config =
        SaeConfig { expansion_factor: 2, normalize_decoder: true, num_latents: latents, k: 8, signed: false, d_in: d };
    let b_dec = Tensor::random([d], Distribution::Normal(0.0, 0.01), device);
    let sae = Sae::<B>::top_k(config, w_dec.clone().transpose(), Tensor::zeros([latents], device), w_dec, b_dec);
    sae.save(&dir.join("sae").join("model.layers.1"))
}
