//! A tokenizer and chat template of our own, for models trained here; files in Hugging Face's form.

use crate::Error;
use crate::weights::write_atomic;
use std::path::Path;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Tokenizer};

/// Special tokens in the order of their ids.
pub const SPECIAL_TOKENS: [&str; 4] = ["<pad>", "<s>", "</s>", "<image>"];

/// A chat template in the style of LLaVA 1.5, with Hugging Face's list content.
pub const CHAT_TEMPLATE: &str = "{{ bos_token }}{% for message in messages %}{% if message.role == 'user' %}USER: {% for part in message.content %}{% if part.type == 'image' %}<image>\n{% else %}{{ part.text }}{% endif %}{% endfor %}{% else %} ASSISTANT: {% for part in message.content %}{{ part.text }}{% endfor %}{{ eos_token }}{% endif %}{% endfor %}{% if add_generation_prompt %} ASSISTANT:{% endif %}";

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
