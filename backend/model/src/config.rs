//! `config.json` of a LLaVA-NeXT checkpoint (Hugging Face `LlavaNextConfig`): Llama-3, Vicuna and Mistral inside.

use crate::{Error, stem::StemConfig};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::Path;

/// The language model (Hugging Face `LlamaConfig` or `MistralConfig`). `transformers` leaves out what equals its
/// defaults, and those differ between the two.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TextConfig {
    pub model_type: String,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    /// Absent in the file: as many as `num_attention_heads`.
    pub num_key_value_heads: usize,
    pub rope_theta: f64,
    pub rms_norm_eps: f64,
    pub vocab_size: usize,
    pub max_position_embeddings: usize,
    pub bos_token_id: Option<u32>,
    /// One id or several.
    pub eos_token_id: Option<OneOrMany>,
    pub tie_word_embeddings: bool,
    /// Mistral: a token sees this many, itself included. Absent: all before it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sliding_window: Option<usize>,
}

/// Numbers of `MistralConfig` that differ from `LlamaConfig`'s. Its `num_key_value_heads` is 8 even without the key.
const MISTRAL_DEFAULTS: [(&str, u64); 4] = [
    ("intermediate_size", 14_336),
    ("num_key_value_heads", 8),
    ("max_position_embeddings", 131_072),
    ("sliding_window", 4096),
];

impl Default for TextConfig {
    /// The defaults of `LlamaConfig`.
    fn default() -> Self {
        Self {
            model_type: "llama".into(),
            hidden_size: 4096,
            intermediate_size: 11_008,
            num_hidden_layers: 32,
            num_attention_heads: 32,
            num_key_value_heads: 32,
            rope_theta: 10_000.0,
            rms_norm_eps: 1e-6,
            vocab_size: 32_000,
            max_position_embeddings: 2048,
            bos_token_id: Some(1),
            eos_token_id: Some(OneOrMany::One(2)),
            tie_word_embeddings: false,
            sliding_window: None,
        }
    }
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
#[serde(default)]
pub struct VisionConfig {
    pub model_type: String,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub image_size: usize,
    pub patch_size: usize,
    pub layer_norm_eps: f64,
    /// Absent: CLIP's own patch embedding with a class token, the form of the 8B model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stem: Option<StemConfig>,
}

impl Default for VisionConfig {
    /// The defaults of `CLIPVisionConfig`.
    fn default() -> Self {
        Self {
            model_type: "clip_vision_model".into(),
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            image_size: 224,
            patch_size: 32,
            layer_norm_eps: 1e-5,
            stem: None,
        }
    }
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

fn model_type_llava() -> String {
    "llava_next".into()
}
fn feature_layer_default() -> i32 {
    -2
}
fn select_strategy_default() -> String {
    "default".into()
}

/// Writes out what depends on other keys.
fn fill_text_config(text: &mut serde_json::Map<String, Value>) {
    if text.get("model_type").and_then(Value::as_str) == Some("mistral") {
        for (key, value) in MISTRAL_DEFAULTS {
            text.entry(key).or_insert_with(|| value.into());
        }
    } else {
        // Only Mistral has one; other families' files may carry the key without meaning it.
        text.remove("sliding_window");
    }
    if text.get("num_key_value_heads").is_none_or(Value::is_null) {
        let default = || Value::from(TextConfig::default().num_attention_heads);
        let heads = text.get("num_attention_heads").cloned().unwrap_or_else(default);
        text.insert("num_key_value_heads".into(), heads);
    }
    // transformers 5 keeps the rotary settings in one object.
    let theta = text.get("rope_parameters").and_then(|rope| rope.get("rope_theta")).cloned();
    if let Some(theta) = theta {
        text.entry("rope_theta").or_insert(theta);
    }
}

/// Settings that the code takes for granted: absent, or exactly this.
fn check_fixed_settings(json: &Value) -> Result<(), String> {
    let family = json["text_config"]["model_type"].as_str().unwrap_or("llama");
    if !["llama", "mistral"].contains(&family) {
        return Err(format!("text model_type {family:?}: only \"llama\" and \"mistral\" are supported"));
    }
    let fixed = [
        ("/text_config/hidden_act", Value::from("silu")),
        ("/text_config/attention_bias", false.into()),
        ("/text_config/mlp_bias", false.into()),
        ("/vision_config/hidden_act", "quick_gelu".into()),
        ("/vision_config/num_channels", 3.into()),
        ("/projector_hidden_act", "gelu".into()),
        ("/multimodal_projector_bias", true.into()),
    ];
    for (key, expected) in fixed {
        match json.pointer(key) {
            Some(found) if *found != expected && !found.is_null() => {
                let key = key[1..].replace('/', ".");
                return Err(format!("{key} {found}: only {expected} is supported"));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Fails, saying `what`, if `whole` is not a multiple of `part`.
pub(crate) fn divides(what: &str, whole: usize, part: usize) -> Result<(), String> {
    if part == 0 || !whole.is_multiple_of(part) {
        return Err(format!("{what}: {whole} is not a multiple of {part}"));
    }
    Ok(())
}

impl LlavaNextConfig {
    /// Reads `config.json` in `dir` and checks that its sizes fit together.
    pub fn load(dir: &Path) -> Result<Self, Error> {
        let path = dir.join("config.json");
        let text = std::fs::read_to_string(&path).map_err(|source| Error::io(&path, source))?;
        let mut config = Self::from_json(&text).map_err(|reason| Error::bad_file(&path, reason))?;
        config.read_generation_config(dir)?;
        Ok(config)
    }

    fn from_json(text: &str) -> Result<Self, String> {
        let mut json: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
        if let Some(text_config) = json.get_mut("text_config").and_then(Value::as_object_mut) {
            fill_text_config(text_config);
        }
        let config = Self::deserialize(&json).map_err(|error| error.to_string())?;
        config.check(&json)?;
        Ok(config)
    }

    /// Adds the stop tokens of `generation_config.json`, which is what `transformers` generates by, if there is one.
    fn read_generation_config(&mut self, dir: &Path) -> Result<(), Error> {
        #[derive(Deserialize)]
        struct GenerationConfig {
            eos_token_id: Option<OneOrMany>,
        }
        let path = dir.join("generation_config.json");
        if !path.exists() {
            return Ok(());
        }
        let text = std::fs::read_to_string(&path).map_err(|source| Error::io(&path, source))?;
        let read: GenerationConfig = serde_json::from_str(&text).map_err(|error| Error::bad_file(&path, error))?;
        if let Some(ids) = read.eos_token_id {
            let mut all = self.stop_tokens();
            all.extend(ids.to_vec().into_iter().filter(|id| !self.stop_tokens().contains(id)));
            self.text_config.eos_token_id = Some(OneOrMany::Many(all));
        }
        Ok(())
    }

    /// The first contradiction between sizes, or the first setting that would be computed wrongly, in words.
    /// `json` is the whole file, with the keys that these types do not have.
    fn check(&self, json: &Value) -> Result<(), String> {
        check_fixed_settings(json)?;
        let text_json = &json["text_config"];
        let (text, vision) = (&self.text_config, &self.vision_config);
        divides("text hidden_size by num_attention_heads", text.hidden_size, text.num_attention_heads)?;
        let (head_dim, given) = (text.hidden_size / text.num_attention_heads, &text_json["head_dim"]);
        if !given.is_null() && given.as_u64() != Some(head_dim as u64) {
            return Err(format!("head_dim {given}: only hidden_size / num_attention_heads = {head_dim} is supported"));
        }
        let (scaling, rope_type) = (&text_json["rope_scaling"], &text_json["rope_parameters"]["rope_type"]);
        if !scaling.is_null() {
            return Err(format!("rope_scaling {scaling}: only plain rotary positions (null) are supported"));
        }
        if !rope_type.is_null() && rope_type.as_str() != Some("default") {
            return Err(format!("rope_type {rope_type}: only plain rotary positions (\"default\") are supported"));
        }
        divides("num_attention_heads by num_key_value_heads", text.num_attention_heads, text.num_key_value_heads)?;
        if text.sliding_window == Some(0) {
            return Err("sliding_window 0: a token must see itself".into());
        }
        for (what, count) in [("text num_hidden_layers", text.num_hidden_layers), ("vocab_size", text.vocab_size)] {
            if count == 0 {
                return Err(format!("{what} is 0"));
            }
        }
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
        // The class token would count as a patch.
        let strategy = &self.vision_feature_select_strategy;
        if vision.stem.is_none() && strategy != "default" {
            return Err(format!(
                "vision_feature_select_strategy {strategy:?}: a tower with a class token needs \"default\""
            ));
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // tests panic on purpose
    use super::*;
    use serde_json::json;

    /// `config.json` of the 8B model as `transformers` writes it: without what equals its defaults.
    fn published() -> Value {
        json!({
            "architectures": ["LlavaNextForConditionalGeneration"],
            "image_grid_pinpoints": [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
            "image_token_index": 128_256,
            "model_type": "llava_next",
            "projector_hidden_act": "gelu",
            "text_config": {
                "bos_token_id": 128_000, "eos_token_id": 128_009, "intermediate_size": 14_336,
                "max_position_embeddings": 8192, "model_type": "llama", "num_key_value_heads": 8,
                "rms_norm_eps": 1e-5, "rope_scaling": null, "rope_theta": 500_000.0, "vocab_size": 128_320
            },
            "vision_config": {
                "hidden_size": 1024, "image_size": 336, "intermediate_size": 4096, "model_type": "clip_vision_model",
                "num_attention_heads": 16, "num_hidden_layers": 24, "patch_size": 14
            },
            "vision_feature_layer": -2,
            "vision_feature_select_strategy": "default"
        })
    }

    fn read(json: &Value) -> Result<LlavaNextConfig, String> {
        LlavaNextConfig::from_json(&json.to_string())
    }

    #[test]
    fn what_transformers_leaves_out_has_its_defaults() {
        let config = read(&published()).unwrap();
        let text = &config.text_config;
        assert_eq!((text.hidden_size, text.num_hidden_layers, text.num_attention_heads), (4096, 32, 32));
        assert_eq!((text.num_key_value_heads, text.rope_theta, text.rms_norm_eps), (8, 500_000.0, 1e-5));
        assert_eq!((config.feature_layer(), config.vision_config.layer_norm_eps), (23, 1e-5));
        assert_eq!(config.stop_tokens(), [128_009]);

        let mut plain = published();
        plain["text_config"] = json!({ "hidden_size": 64, "num_attention_heads": 4 });
        plain["vision_config"] = json!({ "image_size": 336, "patch_size": 14 });
        let config = read(&plain).unwrap();
        let expected =
            TextConfig { hidden_size: 64, num_attention_heads: 4, num_key_value_heads: 4, ..TextConfig::default() };
        assert_eq!(config.text_config, expected);
        assert_eq!(config.text_config.rms_norm_eps, 1e-6);
        let expected = VisionConfig { image_size: 336, patch_size: 14, ..VisionConfig::default() };
        assert_eq!(config.vision_config, expected);

        plain["text_config"] = json!({ "model_type": "mistral", "rope_theta": 1e6, "sliding_window": null });
        let mistral = read(&plain).unwrap().text_config;
        assert_eq!((mistral.num_key_value_heads, mistral.intermediate_size, mistral.sliding_window), (8, 14_336, None));
        assert_eq!(mistral.max_position_embeddings, 131_072);
        plain["text_config"] = json!({ "model_type": "mistral" });
        assert_eq!(read(&plain).unwrap().text_config.sliding_window, Some(4096));

        plain["text_config"] = json!({ "rope_parameters": { "rope_theta": 5e5, "rope_type": "default" } });
        assert_eq!(read(&plain).unwrap().text_config.rope_theta, 5e5);
    }

    #[test]
    fn what_would_be_computed_wrongly_is_refused_by_its_key() {
        let text = |key: &str, value: Value| {
            let mut json = published();
            json["text_config"][key] = value;
            read(&json)
        };
        assert!(text("head_dim", json!(128)).is_ok());
        for (key, value) in [
            ("head_dim", json!(256)),
            ("rope_scaling", json!({ "rope_type": "llama3", "factor": 8.0 })),
            ("rope_parameters", json!({ "rope_type": "yarn" })),
            ("num_key_value_heads", json!(5)),
            ("model_type", json!("qwen2")),
            ("hidden_act", json!("gelu")),
            ("attention_bias", json!(true)),
            ("num_hidden_layers", json!(0)),
        ] {
            let named = if key == "rope_parameters" { "rope_type" } else { key };
            let error = text(key, value).unwrap_err();
            assert!(error.contains(named), "{key}: {error}");
        }
        let mut full = published();
        full["vision_feature_select_strategy"] = "full".into();
        assert!(read(&full).unwrap_err().contains("vision_feature_select_strategy"));
        for broken in ["[]", "3", "{}", "{"] {
            assert!(LlavaNextConfig::from_json(broken).is_err(), "{broken}");
        }
    }
}
