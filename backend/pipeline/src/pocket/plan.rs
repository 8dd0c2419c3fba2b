//! Sizes: the demo as it is committed, and a smoke size that runs all stages in a minute or two.

use clap::ValueEnum;
use model::config::{LlavaNextConfig, OneOrMany, TextConfig, VisionConfig};
use model::stem::StemConfig;

/// How large the demo is built.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Size {
    /// Seconds per stage; numbers mean nothing, every code path runs.
    Smoke,
    #[default]
    Full,
}

/// Everything that differs between sizes.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Pictures per step of the tower.
    pub batch: usize,
    /// Samples per step of the language stages.
    pub lmm_batch: usize,
    /// Pictures the tower sees.
    pub tower_samples: usize,
    /// Texts the language model reads before it sees pictures.
    pub text_samples: usize,
    /// Scenes the whole model is trained on.
    pub lmm_samples: usize,
    /// Tokens the SAE is trained on.
    pub sae_tokens: usize,
    pub sae_expansion: usize,
    pub sae_k: usize,
    /// Block whose output the SAE reads.
    pub layer: usize,
    /// Scenes of the cache set in trained styles, and in the held-out style.
    pub cache_seen: usize,
    pub cache_held_out: usize,
    /// Photographs of the cache set, at most.
    pub photographs: usize,
    /// Scenes per accuracy figure.
    pub eval_scenes: usize,
    /// Sample pictures for the analyze page.
    pub samples: usize,
    pub vocabulary: usize,
    /// Side of the pictures people see, in pixels.
    pub display_side: usize,
    hidden: usize,
    vision_hidden: usize,
    stem: StemConfig,
    vision_blocks: usize,
    text_blocks: usize,
}

impl Plan {
    pub fn new(size: Size) -> Self {
        match size {
            Size::Full => Self {
                batch: 32,
                lmm_batch: 16,
                tower_samples: 150_000,
                text_samples: 12_000,
                lmm_samples: 36_000,
                sae_tokens: 3_000_000,
                sae_expansion: 16,
                sae_k: 32,
                layer: 3,
                cache_seen: 2_600,
                cache_held_out: 600,
                photographs: 1_000,
                eval_scenes: 500,
                samples: 24,
                vocabulary: 1_800,
                display_side: 192,
                hidden: 192,
                vision_hidden: 192,
                stem: StemConfig { channels: vec![40, 80, 192], depths: vec![1, 2, 3], kernel: 3 },
                vision_blocks: 2,
                text_blocks: 6,
            },
            Size::Smoke => Self {
                batch: 8,
                lmm_batch: 8,
                tower_samples: 160,
                text_samples: 64,
                lmm_samples: 64,
                sae_tokens: 8_000,
                sae_expansion: 4,
                sae_k: 8,
                layer: 1,
                cache_seen: 40,
                cache_held_out: 12,
                photographs: 6,
                eval_scenes: 8,
                samples: 4,
                vocabulary: 700,
                display_side: 96,
                hidden: 48,
                vision_hidden: 32,
                stem: StemConfig { channels: vec![8, 16, 32], depths: vec![1, 1, 1], kernel: 3 },
                vision_blocks: 1,
                text_blocks: 3,
            },
        }
    }

    /// The model's configuration with a vocabulary of `vocab_size` tokens.
    pub fn config(&self, vocab_size: usize) -> LlavaNextConfig {
        LlavaNextConfig {
            model_type: "llava_next".into(),
            architectures: vec!["LlavaNextForConditionalGeneration".into()],
            text_config: TextConfig {
                model_type: "llama".into(),
                hidden_size: self.hidden,
                intermediate_size: self.hidden * 8 / 3 / 16 * 16,
                num_hidden_layers: self.text_blocks,
                num_attention_heads: 6,
                num_key_value_heads: 2,
                rope_theta: 10_000.0,
                rms_norm_eps: 1e-5,
                vocab_size,
                max_position_embeddings: 512,
                bos_token_id: Some(1),
                eos_token_id: Some(OneOrMany::One(2)),
                tie_word_embeddings: false,
                sliding_window: None,
            },
            vision_config: self.vision_config(),
            image_token_index: 3,
            // One view: no tiles. The code path for tiles is the 8B model's.
            image_grid_pinpoints: Vec::new(),
            vision_feature_layer: -1,
            vision_feature_select_strategy: "full".into(),
        }
    }

    pub fn vision_config(&self) -> VisionConfig {
        VisionConfig {
            model_type: "clip_vision_model".into(),
            hidden_size: self.vision_hidden,
            intermediate_size: self.vision_hidden * 4,
            num_hidden_layers: self.vision_blocks,
            num_attention_heads: 4,
            image_size: 64,
            patch_size: 8,
            layer_norm_eps: 1e-5,
            stem: Some(self.stem.clone()),
        }
    }

    /// `3-res-3k`: layer, residual stream, thousands of latents.
    pub fn source_id(&self) -> String {
        let latents = self.hidden * self.sae_expansion;
        if latents >= 1000 {
            format!("{}-res-{}k", self.layer, latents / 1000)
        } else {
            format!("{}-res-{latents}", self.layer)
        }
    }

    /// `model.layers.3`.
    pub fn hook_point(&self) -> String {
        format!("model.layers.{}", self.layer)
    }
}
