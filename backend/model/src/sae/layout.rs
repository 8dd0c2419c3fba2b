//! `cfg.json` of the reference layout, of sparsify and of SAELens: where the weights are and what is computed of them.

use super::{Activation, Normalisation, SaeConfig};
use crate::Error;
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// What `cfg.json` says.
pub(super) struct Layout {
    pub weights: PathBuf,
    pub encoder: &'static str,
    pub encoder_bias: &'static str,
    pub by_latent: bool,
    pub config: SaeConfig,
    pub activation: Activation,
    pub normalisation: Normalisation,
    pub scale: f32,
    pub subtract_b_dec: bool,
    pub rescale_by_decoder_norm: bool,
}

impl Layout {
    /// Of the folder of a hook point. The sizes are checked.
    pub fn read(dir: &Path) -> Result<Self, Error> {
        let cfg = dir.join("cfg.json");
        let text = std::fs::read_to_string(&cfg).map_err(|source| Error::io(&cfg, source))?;
        let (reference, sae_lens) = (dir.join("sae.safetensors"), dir.join("sae_weights.safetensors"));
        let layout = if reference.exists() {
            Self::sparsify(&cfg, &text, reference)?
        } else if sae_lens.exists() {
            Self::sae_lens(dir, &cfg, &text, sae_lens)?
        } else {
            let reason = "neither sae.safetensors (reference layout, sparsify) nor sae_weights.safetensors (SAELens) \
                          lies beside cfg.json";
            return Err(Error::bad_file(dir, reason));
        };
        layout.config.check(&cfg, layout.activation)?;
        Ok(layout)
    }

    fn sparsify(cfg: &Path, text: &str, weights: PathBuf) -> Result<Self, Error> {
        /// What sparsify's `cfg.json` has beyond the reference layout and decides what is computed.
        #[derive(Deserialize)]
        struct Extras {
            activation: Option<String>,
            #[serde(default)]
            skip_connection: bool,
            #[serde(default)]
            transcode: bool,
        }
        let mut config: SaeConfig = parsed(cfg, text)?;
        let extras: Extras = parsed(cfg, text)?;
        let activation = extras.activation.as_deref().unwrap_or("topk");
        let refused = [
            (activation != "topk", format!("activation `{activation}` is not read; topk is")),
            (extras.skip_connection, "skip connections (`skip_connection`) are not read".into()),
            (extras.transcode, "transcoders (`transcode`) are not read: they do not reconstruct their input".into()),
            (config.signed, "signed SAEs (`signed`) are not read: activations must not be negative".into()),
        ];
        if let Some((_, reason)) = refused.into_iter().find(|(refused, _)| *refused) {
            return Err(Error::bad_file(cfg, reason));
        }
        if config.num_latents == 0 {
            let latents = config.d_in.checked_mul(config.expansion_factor);
            config.num_latents = latents.ok_or_else(|| Error::bad_file(cfg, "d_in · expansion_factor is too large"))?;
        }
        Ok(Self {
            weights,
            encoder: "encoder.weight",
            encoder_bias: "encoder.bias",
            by_latent: true,
            config,
            activation: Activation::TopK,
            normalisation: Normalisation::None,
            scale: 1.0,
            subtract_b_dec: true,
            rescale_by_decoder_norm: false,
        })
    }

    /// Files of SAELens 3 to 6; version 6 moved what describes the model into `metadata`, which is not needed here.
    fn sae_lens(dir: &Path, cfg: &Path, text: &str, weights: PathBuf) -> Result<Self, Error> {
        let found: SaeLensConfig = parsed(cfg, text)?;
        let (activation, k) = found.activation().map_err(|reason| Error::bad_file(cfg, reason))?;
        let mut scale = 1.0;
        let normalisation = match found.normalize_activations.name() {
            "none" => Normalisation::None,
            "constant_norm_rescale" => Normalisation::ConstantNorm,
            "layer_norm" => Normalisation::LayerNorm,
            "expected_average_only_in" => {
                scale = scaling_factor(dir)?;
                Normalisation::None
            }
            other => {
                let reason = format!(
                    "normalize_activations `{other}` is not read; none, expected_average_only_in, \
                     constant_norm_rescale and layer_norm are"
                );
                return Err(Error::bad_file(cfg, reason));
            }
        };
        Ok(Self {
            weights,
            encoder: "W_enc",
            encoder_bias: "b_enc",
            by_latent: false,
            config: SaeConfig {
                expansion_factor: found.d_sae.checked_div(found.d_in).unwrap_or_default(),
                normalize_decoder: false,
                num_latents: found.d_sae,
                k,
                signed: false,
                d_in: found.d_in,
            },
            activation,
            normalisation,
            scale,
            subtract_b_dec: found.apply_b_dec_to_input,
            rescale_by_decoder_norm: found.rescale_acts_by_decoder_norm,
        })
    }
}

/// `cfg.json` of SAELens, as far as it decides what is computed.
#[derive(Deserialize)]
struct SaeLensConfig {
    architecture: Option<String>,
    d_in: usize,
    d_sae: usize,
    /// BatchTopK trains with a fraction.
    k: Option<f64>,
    #[serde(default = "super::yes")]
    apply_b_dec_to_input: bool,
    #[serde(default)]
    normalize_activations: Normalize,
    #[serde(default)]
    rescale_acts_by_decoder_norm: bool,
    // Until version 5 the activation was named apart from the architecture.
    activation_fn: Option<String>,
    activation_fn_str: Option<String>,
    activation_fn_kwargs: Option<ActivationArguments>,
}

#[derive(Deserialize)]
struct ActivationArguments {
    k: Option<f64>,
}

/// Early files say true or false.
#[derive(Deserialize, Default)]
#[serde(untagged)]
enum Normalize {
    Name(String),
    Flag(bool),
    #[default]
    Missing,
}

impl Normalize {
    fn name(&self) -> &str {
        match self {
            Self::Name(name) => name,
            Self::Flag(true) => "expected_average_only_in",
            Self::Flag(false) | Self::Missing => "none",
        }
    }
}

impl SaeLensConfig {
    /// The activation, and k if it is TopK, else 0.
    fn activation(&self) -> Result<(Activation, usize), String> {
        let named = self.activation_fn.as_deref().or(self.activation_fn_str.as_deref()).unwrap_or("relu");
        let old_k = self.activation_fn_kwargs.as_ref().and_then(|arguments| arguments.k);
        let architecture = match self.architecture.as_deref().unwrap_or("standard") {
            "standard" if named == "topk" => "topk",
            other => other,
        };
        match architecture {
            "topk" => {
                let k = self.k.or(old_k).ok_or("a TopK SAE needs `k`")?;
                if k.fract() != 0.0 || !(1.0..=f64::from(u32::MAX)).contains(&k) {
                    return Err(format!("k is {k}; it must be a whole number of at least 1"));
                }
                Ok((Activation::TopK, k as usize))
            }
            "standard" if named == "relu" => Ok((Activation::Relu, 0)),
            "standard" => Err(format!("activation function `{named}` is not read; relu and topk are")),
            "jumprelu" | "batchtopk" | "matryoshka_batchtopk" => Ok((Activation::JumpRelu, 0)),
            other => Err(format!("architecture `{other}` is not read; standard, topk, jumprelu and batchtopk are")),
        }
    }
}

/// The factor of `expected_average_only_in`: SAELens writes it beside a training checkpoint. Without one the weights
/// are taken as they are, as SAELens does: finished SAEs have it folded in.
fn scaling_factor(dir: &Path) -> Result<f32, Error> {
    #[derive(Deserialize)]
    struct Scaler {
        scaling_factor: Option<f32>,
    }
    let path = dir.join("activation_scaler.json");
    if !path.exists() {
        return Ok(1.0);
    }
    let text = std::fs::read_to_string(&path).map_err(|source| Error::io(&path, source))?;
    let factor = parsed::<Scaler>(&path, &text)?.scaling_factor.unwrap_or(1.0);
    if factor.is_finite() && factor > 0.0 {
        return Ok(factor);
    }
    Err(Error::bad_file(&path, format!("scaling_factor is {factor}; it must be positive")))
}

fn parsed<T: for<'a> Deserialize<'a>>(path: &Path, text: &str) -> Result<T, Error> {
    serde_json::from_str(text).map_err(|error| Error::bad_file(path, error))
}

/// `dir` itself if it holds `cfg.json`, else its only subfolder that does.
pub(super) fn hook_point_dir(dir: &Path) -> Result<PathBuf, Error> {
    if dir.join("cfg.json").exists() {
        return Ok(dir.to_path_buf());
    }
    let entries = std::fs::read_dir(dir).map_err(|source| Error::io(dir, source))?;
    let mut found: Vec<PathBuf> =
        entries.flatten().map(|entry| entry.path()).filter(|path| path.join("cfg.json").exists()).collect();
    found.sort();
    match found.len() {
        1 => Ok(found.remove(0)),
        0 => Err(Error::bad_file(dir, "no cfg.json here or in a subfolder; expected {hook point}/cfg.json")),
        n => Err(Error::bad_file(dir, format!("{n} hook points; name one of them"))),
    }
}
