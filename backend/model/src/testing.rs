//! A tiny random checkpoint for tests of everything above this crate: the real file formats, seconds to make.

use crate::config::{LlavaNextConfig, OneOrMany, TextConfig, VisionConfig};
use crate::sae::{Sae, SaeConfig};
use crate::stem::StemConfig;
use crate::weights::write_atomic;
use crate::{Error, LlavaNext};
use burn::tensor::{Distribution, Tensor, backend::Backend};
use std::path::Path;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Tokenizer};

/// Special tokens in the order of their ids.
pub const SPECIAL_TOKENS: [&str; 4] = ["<pad>", "<s>", "</s>", "<image>"];

/// A chat template in the style of LLaVA 1.5, with Hugging Face's list content.
pub const CHAT_TEMPLATE: &str = "{{ bos_token }}{% for message in messages %}{% if message.role == 'user' %}USER: {% for part in message.content %}{% if part.type == 'image' %}<image>\n{% else %}{{ part.text }}{% endif %}{% endfor %}{% else %} ASSISTANT: {% for part in message.content %}{{ part.text }}{% endfor %}{{ eos_token }}{% endif %}{% endfor %}{% if add_generation_prompt %} ASSISTANT:{% endif %}";

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

/// Byte-level BPE trained on `texts`, at most `vocab_size` tokens, [`SPECIAL_TOKENS`] first.
pub fn train_tokenizer(texts: impl Iterator<Item = String> + Send, vocab_size: usize) -> Result<Tokenizer, Error> {
    let failed = |error: tokenizers::Error| Error::Tokenizer(error.to_string());
    let specials: Vec<AddedToken> = SPECIAL_TOKENS.iter().map(|token| AddedToken::from(*token, true)).collect();
    let mut tokenizer = Tokenizer::new(BPE::default());
    let byte_level = ByteLevel::new(false, true, true);
    tokenizer.with_pre_tokenizer(Some(byte_level)).with_decoder(Some(byte_level));
    let trainer = BpeTrainer::builder()
        .vocab_size(vocab_size)
        .show_progress(false)
        .special_tokens(specials.clone())
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    let mut trainer = tokenizers::models::TrainerWrapper::from(trainer);
    tokenizer.train(&mut trainer, texts).map_err(failed)?;
    tokenizer.add_special_tokens(&specials);
    let bos = tokenizers::processors::template::TemplateProcessing::builder()
        .try_single("<s> $A")
        .map_err(Error::Tokenizer)?
        .special_tokens(vec![("<s>", 1)])
        .build()
        .map_err(|error| Error::Tokenizer(error.to_string()))?;
    tokenizer.with_post_processor(Some(bos));
    Ok(tokenizer)
}

/// Writes tokenizer.json, tokenizer_config.json, chat_template.jinja and preprocessor_config.json.
pub fn save_tokenizer(tokenizer: &Tokenizer, dir: &Path) -> Result<(), Error> {
    let json = tokenizer.to_string(false).map_err(|error| Error::Tokenizer(error.to_string()))?;
    write_atomic(&dir.join("tokenizer.json"), json.as_bytes())?;
    let settings = serde_json::json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "add_bos_token": true,
    });
    write_atomic(&dir.join("tokenizer_config.json"), format!("{settings:#}\n").as_bytes())?;
    write_atomic(&dir.join("chat_template.jinja"), CHAT_TEMPLATE.as_bytes())?;
    let processor = serde_json::to_string_pretty(&crate::image_processor::ImageProcessor::default())
        .map_err(|error| Error::bad_file(dir, error))?;
    write_atomic(&dir.join("preprocessor_config.json"), processor.as_bytes())
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
    let sae = Sae::<B> {
        config: SaeConfig { expansion_factor: 2, normalize_decoder: true, num_latents: latents, k: 8, signed: false, d_in: d },
        encoder: w_dec.clone().transpose(),
        encoder_bias: Tensor::zeros([latents], device),
        w_dec,
        b_dec: Tensor::random([d], Distribution::Normal(0.0, 0.01), device),
    };
    sae.save(&dir.join("sae").join("model.layers.1"))
}
