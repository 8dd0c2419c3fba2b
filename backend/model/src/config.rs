//! `config.json` of a LLaVA-NeXT checkpoint (Hugging Face `LlavaNextConfig`).

use crate::{Error, stem::StemConfig};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// The language model (Hugging Face `LlamaConfig`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TextConfig {
    #[serde(default = "model_type_llama")]
    pub model_type: String,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub num_key_value_heads: usize,
    #[serde(default = "rope_theta_default")]
    pub rope_theta: f64,
    #[serde(default = "rms_norm_eps_default")]
    pub rms_norm_eps: f64,
    pub vocab_size: usize,
    #[serde(default = "max_positions_default")]
    pub max_position_embeddings: usize,
    pub bos_token_id: Option<u32>,
    /// One id or several.
    pub eos_token_id: Option<OneOrMany>,
    #[serde(default)]
    pub tie_word_embeddings: bool,
}

/// A JSON field that holds one number or a list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum OneOrMany {
    One(u32),
    Many(Vec<u32>),
}

impl OneOrMany {
    pub fn to_vec(&self) -> Vec<u32> {
        match self {
            Self::One(id) => vec![*id],
            Self::Many(ids) => ids.clone(),
        }
    }
}

/// The vision tower (Hugging Face `CLIPVisionConfig`), with our optional convolutional stem.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VisionConfig {
    #[serde(default = "model_type_clip")]
    pub model_type: String,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub image_size: usize,
    pub patch_size: usize,
    #[serde(default = "layer_norm_eps_default")]
    pub layer_norm_eps: f64,
    /// Absent: CLIP's own patch embedding with a class token, the form of the 8B model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stem: Option<StemConfig>,
}

impl VisionConfig {
    /// Patches along one side.
    pub fn grid(&self) -> usize {
        self.image_size / self.patch_size
    }
}

/// The whole model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LlavaNextConfig {
    #[serde(default = "model_type_llava")]
    pub model_type: String,
    #[serde(default)]
    pub architectures: Vec<String>,
    pub text_config: TextConfig,
    pub vision_config: VisionConfig,
    #[serde(alias = "image_token_id")]
    pub image_token_index: u32,
    /// Tile layouts in pixels, `(height, width)`; empty: the base picture alone.
    #[serde(default)]
    pub image_grid_pinpoints: Vec<[usize; 2]>,
    #[serde(default = "feature_layer_default")]
    pub vision_feature_layer: i32,
    /// `default` drops the class token, `full` keeps every row.
    #[serde(default = "select_strategy_default")]
    pub vision_feature_select_strategy: String,
}

fn model_type_llama() -> String {
    "llama".into()
}
fn model_type_clip() -> String {
    "clip_vision_model".into()
}
fn model_type_llava() -> String {
    "llava_next".into()
}
fn rope_theta_default() -> f64 {
    10_000.0
}
fn rms_norm_eps_default() -> f64 {
    1e-5
}
fn max_positions_default() -> usize {
    2048
}
fn layer_norm_eps_default() -> f64 {
    1e-5
}
fn feature_layer_default() -> i32 {
    -2
}
fn select_strategy_default() -> String {
    "default".into()
}

impl LlavaNextConfig {
    /// Reads `config.json` in `dir` and checks that its sizes fit together.
    pub fn load(dir: &Path) -> Result<Self, Error> {
        let path = dir.join("config.json");
        let text = std::fs::read_to_string(&path).map_err(|source| Error::io(&path, source))?;
        let config: Self = serde_json::from_str(&text).map_err(|error| Error::bad_file(&path, error))?;
        config.check().map_err(|reason| Error::bad_file(&path, reason))?;
        Ok(config)
    }

    /// The first contradiction between sizes, in words.
    fn check(&self) -> Result<(), String> {
        let (text, vision) = (&self.text_config, &self.vision_config);
        let divides = |what: &str, whole: usize, part: usize| {
            if part == 0 || whole % part != 0 {
                Err(format!("{what}: {whole} is not a multiple of {part}"))
            } else {
                Ok(())
            }
        };
        divides("text hidden_size by num_attention_heads", text.hidden_size, text.num_attention_heads)?;
        divides("num_attention_heads by num_key_value_heads", text.num_attention_heads, text.num_key_value_heads)?;
        divides("vision hidden_size by num_attention_heads", vision.hidden_size, vision.num_attention_heads)?;
        divides("image_size by patch_size", vision.image_size, vision.patch_size)?;
        for pinpoint in &self.image_grid_pinpoints {
            divides("image_grid_pinpoints height by image_size", pinpoint[0], vision.image_size)?;
            divides("image_grid_pinpoints width by image_size", pinpoint[1], vision.image_size)?;
        }
        let layers = i32::try_from(vision.num_hidden_layers).map_err(|error| error.to_string())?;
        if self.vision_feature_layer > layers || self.vision_feature_layer < -(layers + 1) {
            return Err(format!("vision_feature_layer {} of a tower of {layers} blocks", self.vision_feature_layer));
        }
        Ok(())
    }

    /// Index into the tower's hidden states (0 is the embedding's output, `n` the output of block `n − 1`).
    pub fn feature_layer(&self) -> usize {
        let states = self.vision_config.num_hidden_layers as i32 + 1;
        self.vision_feature_layer.rem_euclid(states) as usize
    }

    /// Tokens after which generation stops.
    pub fn stop_tokens(&self) -> Vec<u32> {
        self.text_config.eos_token_id.as_ref().map(OneOrMany::to_vec).unwrap_or_default()
    }
}
