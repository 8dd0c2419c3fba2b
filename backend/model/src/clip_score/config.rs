//! `config.json` of a CLIP model (Hugging Face `CLIPConfig`).

use crate::Error;
use crate::config::{VisionConfig, divides};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::path::Path;

/// The text tower (Hugging Face `CLIPTextConfig`). `transformers` leaves out what equals its defaults.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct ClipTextConfig {
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    /// Longer texts are cut.
    pub max_position_embeddings: usize,
    pub layer_norm_eps: f64,
    /// Says where a text is read: see [`Self::pooled_position`].
    pub eos_token_id: u32,
}

impl Default for ClipTextConfig {
    /// The defaults of `CLIPTextConfig`.
    fn default() -> Self {
        Self {
            vocab_size: 49_408,
            hidden_size: 512,
            intermediate_size: 2048,
            num_hidden_layers: 12,
            num_attention_heads: 8,
            max_position_embeddings: 77,
            layer_norm_eps: 1e-5,
            eos_token_id: 49_407,
        }
    }
}

/// `eos_token_id` of the configs before `transformers` 4.31: never what the tokenizer writes.
const OLDER_EOS: u32 = 2;

impl ClipTextConfig {
    /// Position whose output stands for the whole text, exactly as `CLIPTextTransformer` chooses it: the first
    /// `eos_token_id`; with the older configs' 2, the first of the highest ids, which in CLIP's own vocabulary ends the
    /// text. `None` without such a token.
    pub fn pooled_position(&self, ids: &[u32]) -> Option<usize> {
        let wanted = if self.eos_token_id == OLDER_EOS { *ids.iter().max()? } else { self.eos_token_id };
        ids.iter().position(|&id| id == wanted)
    }
}

/// Both towers and what joins them.
#[derive(Debug, Clone, PartialEq)]
pub struct ClipConfig {
    pub text: ClipTextConfig,
    pub vision: VisionConfig,
    /// Length of an embedding.
    pub projection_dim: usize,
    /// GELU itself in place of quick-GELU.
    pub text_exact_gelu: bool,
    pub vision_exact_gelu: bool,
}

/// `projection_dim` of `CLIPConfig` where the file has none.
const PROJECTION_DIM: u64 = 512;

impl ClipConfig {
    /// Reads `config.json` in `dir` and checks that its sizes fit together.
    ///
    /// # Errors
    /// A file that cannot be read, is not a CLIP model's, or has sizes or settings that are not computed here.
    pub fn load(dir: &Path) -> Result<Self, Error> {
        let path = dir.join("config.json");
        let text = std::fs::read_to_string(&path).map_err(|source| Error::io(&path, source))?;
        Self::from_json(&text).map_err(|reason| Error::bad_file(&path, reason))
    }

    fn from_json(text: &str) -> Result<Self, String> {
        let json: Map<String, Value> = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let kind = json.get("model_type").and_then(Value::as_str);
        if kind != Some("clip") {
            let found = kind.map_or("none".to_string(), |kind| format!("{kind:?}"));
            return Err(format!("model_type {found}: a CLIP model with both towers (\"clip\") is needed"));
        }
        let (text, vision) = (tower(&json, "text_config"), tower(&json, "vision_config"));
        let projection_dim = json.get("projection_dim").map_or(Some(PROJECTION_DIM), Value::as_u64);
        let config = Self {
            text_exact_gelu: exact_gelu(&text, "text_config")?,
            vision_exact_gelu: exact_gelu(&vision, "vision_config")?,
            text: ClipTextConfig::deserialize(text).map_err(|error| format!("text_config: {error}"))?,
            projection_dim: projection_dim.and_then(|dim| usize::try_from(dim).ok()).unwrap_or_default(),
            vision: vision_config(vision)?,
        };
        config.check()?;
        Ok(config)
    }

    /// The first contradiction between sizes, in words.
    fn check(&self) -> Result<(), String> {
        let (text, vision) = (&self.text, &self.vision);
        divides("text hidden_size by num_attention_heads", text.hidden_size, text.num_attention_heads)?;
        divides("vision hidden_size by num_attention_heads", vision.hidden_size, vision.num_attention_heads)?;
        divides("image_size by patch_size", vision.image_size, vision.patch_size)?;
        let counts = [
            ("projection_dim", self.projection_dim),
            ("text hidden_size", text.hidden_size),
            ("vocab_size", text.vocab_size),
            ("max_position_embeddings", text.max_position_embeddings),
            ("vision hidden_size", vision.hidden_size),
            ("image_size", vision.image_size),
        ];
        match counts.into_iter().find(|(_, count)| *count == 0) {
            Some((what, _)) => Err(format!("{what} is 0, or no number")),
            None => Ok(()),
        }
    }
}

/// One tower's settings. The first published files say them twice: `transformers` then takes the second place alone,
/// its defaults included.
fn tower(json: &Map<String, Value>, key: &str) -> Value {
    let second = json.get(&format!("{key}_dict")).filter(|settings| settings.is_object());
    second.or_else(|| json.get(key)).filter(|settings| !settings.is_null()).cloned().unwrap_or_else(|| json!({}))
}

fn exact_gelu(tower: &Value, key: &str) -> Result<bool, String> {
    match &tower["hidden_act"] {
        Value::Null => Ok(false),
        found if found == "quick_gelu" => Ok(false),
        found if found == "gelu" => Ok(true),
        found => Err(format!("{key}.hidden_act {found}: only \"quick_gelu\" and \"gelu\" are supported")),
    }
}

fn vision_config(json: Value) -> Result<VisionConfig, String> {
    let channels = &json["num_channels"];
    if !channels.is_null() && *channels != 3 {
        return Err(format!("vision_config.num_channels {channels}: only 3 is supported"));
    }
    let config = VisionConfig::deserialize(json).map_err(|error| format!("vision_config: {error}"))?;
    match config.stem {
        Some(_) => Err("vision_config.stem: a CLIP model has a class token in its place".into()),
        None => Ok(config),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // tests panic on purpose
    use super::*;

    fn read(json: &Value) -> Result<ClipConfig, String> {
        ClipConfig::from_json(&json.to_string())
    }

    /// The sizes of `clip-vit-large-patch14`, said twice, as its file does.
    fn published() -> Value {
        let text = json!({
            "hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12
        });
        let vision = json!({
            "hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "num_hidden_layers": 24,
            "patch_size": 14
        });
        let mut longer = text.clone();
        longer["eos_token_id"] = json!(2);
        longer["hidden_act"] = json!("quick_gelu");
        json!({
            "model_type": "clip", "projection_dim": 768, "text_config": longer, "text_config_dict": text,
            "vision_config": vision.clone(), "vision_config_dict": vision
        })
    }

    #[test]
    fn what_is_said_twice_or_left_out_is_what_transformers_takes() {
        let config = read(&published()).unwrap();
        assert_eq!((config.text.hidden_size, config.vision.hidden_size, config.projection_dim), (768, 1024, 768));
        assert_eq!((config.vision.image_size, config.vision.grid()), (224, 16));
        // By the second place, which has none: the default.
        assert_eq!(config.text.eos_token_id, 49_407);
        let mut once = published();
        once["text_config_dict"] = Value::Null;
        assert_eq!(read(&once).unwrap().text.eos_token_id, 2);
        let plain = read(&json!({ "model_type": "clip" })).unwrap();
        assert_eq!((plain.text, plain.vision), (ClipTextConfig::default(), VisionConfig::default()));
        assert_eq!(plain.projection_dim, 512);
    }

    #[test]
    fn each_tower_has_its_own_gelu() {
        let mut json = published();
        json["vision_config_dict"]["hidden_act"] = json!("gelu");
        let config = read(&json).unwrap();
        assert!(!config.text_exact_gelu && config.vision_exact_gelu);
    }

    #[test]
    fn a_text_is_read_at_its_end() {
        let newer = ClipTextConfig { eos_token_id: 9, ..ClipTextConfig::default() };
        assert_eq!(newer.pooled_position(&[8, 3, 10, 9, 9]), Some(3), "the first end");
        assert_eq!(newer.pooled_position(&[8, 3]), None);
        let older = ClipTextConfig { eos_token_id: 2, ..ClipTextConfig::default() };
        assert_eq!(older.pooled_position(&[8, 2, 9, 9]), Some(2), "the first of the highest");
        assert_eq!(older.pooled_position(&[8, 3, 10, 9]), Some(2), "a token behind the end");
        assert_eq!(older.pooled_position(&[]), None);
    }

    #[test]
    fn what_would_be_computed_wrongly_is_refused_by_its_key() {
        let with = |tower: &str, key: &str, value: Value| {
            let mut json = published();
            json[tower][key] = value;
            read(&json)
        };
        for (tower, key, value) in [
            ("text_config_dict", "hidden_act", json!("relu")),
            ("vision_config_dict", "hidden_act", json!("gelu_new")),
            ("vision_config_dict", "num_channels", json!(1)),
            ("vision_config_dict", "patch_size", json!(15)),
            ("vision_config_dict", "image_size", json!(0)),
            ("text_config_dict", "num_attention_heads", json!(0)),
            ("text_config_dict", "vocab_size", json!(0)),
            ("text_config_dict", "max_position_embeddings", json!(0)),
        ] {
            let error = with(tower, key, value.clone()).unwrap_err();
            assert!(error.contains(key), "{key} {value}: {error}");
        }
        assert!(with("text_config_dict", "hidden_size", json!("many")).unwrap_err().starts_with("text_config"));
        for (value, named) in [(json!("siglip"), "siglip"), (Value::Null, "none")] {
            let mut json = published();
            json["model_type"] = value;
            let error = read(&json).unwrap_err();
            assert!(error.contains("model_type") && error.contains(named), "{error}");
        }
        let mut none = published();
        none["projection_dim"] = json!("wide");
        assert!(read(&none).unwrap_err().contains("projection_dim"));
        for broken in ["[]", "3", "{}", "{"] {
            assert!(ClipConfig::from_json(broken).is_err(), "{broken}");
        }
    }
}
