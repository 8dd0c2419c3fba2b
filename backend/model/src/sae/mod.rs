//! Sparse autoencoders: the TopK SAE of the paper's section 3.1 (Gao et al. 2024), and those of other libraries.
//!
//! `z = TopK_k(ReLU((x − b_dec) W_encᵀ + b_enc))`, `x̂ = z W_dec + b_dec`.
//!
//! [`SaeFile`] is a folder as it lies on disk and encodes from there; [`Sae`] holds the weights on a device.

mod encode;
mod files;
mod layout;
mod select;

pub use files::SaeFile;
pub use select::{RowTopK, TokenNorm, TopK, top_k, top_k_of_row};

use crate::Error;
use crate::weights::{Saver, f32_from_tensor};
use burn::tensor::{Int, Tensor, TensorData, activation::relu, backend::Backend};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::path::Path;

/// Tokens and latents whose activations exist at once while encoding: 4 MiB on the host.
const ENCODED_TOKENS: usize = 512;
const ENCODED_LATENTS: usize = 2048;
/// Decoder rows or activations gathered at once while decoding, in numbers: 256 MiB.
const DECODED_NUMBERS: usize = 1 << 26;
/// Of SAELens, added to the deviation.
const LAYER_NORM_EPSILON: f32 = 1e-5;

/// `cfg.json` of the reference layout.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SaeConfig {
    #[serde(default)]
    pub expansion_factor: usize,
    #[serde(default = "yes")]
    pub normalize_decoder: bool,
    #[serde(default)]
    pub num_latents: usize,
    /// Latents kept per token; 0 if the activation is not TopK.
    pub k: usize,
    #[serde(default)]
    pub signed: bool,
    pub d_in: usize,
}

fn yes() -> bool {
    true
}

impl SaeConfig {
    /// Checks the sizes that `cfg.json` at `path` gives.
    fn check(&self, path: &Path, activation: Activation) -> Result<(), Error> {
        let (latents, d, k) = (self.num_latents, self.d_in, self.k);
        if d == 0 || latents == 0 {
            return Err(Error::bad_file(path, format!("{latents} latents of {d} dimensions; both must be at least 1")));
        }
        if activation == Activation::TopK && !(1..=latents).contains(&k) {
            return Err(Error::bad_file(path, format!("k is {k}; it must be between 1 and the {latents} latents")));
        }
        if u32::try_from(latents).is_err() || latents.checked_mul(d).is_none() {
            let reason = format!("{latents} latents of {d} dimensions are more than can be indexed");
            return Err(Error::bad_file(path, reason));
        }
        Ok(())
    }
}

/// What makes latents of pre-activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// The k strongest of the positive ones.
    TopK,
    /// All that are positive.
    Relu,
    /// All above the latent's threshold, if positive. BatchTopK is this once it is trained.
    JumpRelu,
}

/// What is done to each hidden state first, and undone in its reconstruction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Normalisation {
    #[default]
    None,
    /// To norm `√d_in`.
    ConstantNorm,
    /// To mean 0 and deviation 1.
    LayerNorm,
}

/// The autoencoder's weights on a device. Constant scale factors of the file are folded in.
#[derive(Debug, Clone)]
pub struct Sae<B: Backend> {
    pub config: SaeConfig,
    /// `[d_model, latents]`: the encoder, transposed for `x · W`.
    pub encoder: Tensor<B, 2>,
    /// `[latents]`
    pub encoder_bias: Tensor<B, 1>,
    /// `[latents, d_model]`
    pub w_dec: Tensor<B, 2>,
    /// `[d_model]`
    pub b_dec: Tensor<B, 1>,
    pub activation: Activation,
    /// `[latents]` of a JumpReLU.
    pub threshold: Option<Tensor<B, 1>>,
    pub normalisation: Normalisation,
    /// False in some SAELens files: the encoder reads the hidden state without `b_dec` subtracted.
    pub subtract_b_dec: bool,
}

impl<B: Backend> Sae<B> {
    /// The paper's SAE: TopK, nothing normalised.
    pub fn top_k(
        config: SaeConfig,
        encoder: Tensor<B, 2>,
        encoder_bias: Tensor<B, 1>,
        w_dec: Tensor<B, 2>,
        b_dec: Tensor<B, 1>,
    ) -> Self {
        let (activation, normalisation) = (Activation::TopK, Normalisation::None);
        Self {
            config,
            encoder,
            encoder_bias,
            w_dec,
            b_dec,
            activation,
            threshold: None,
            normalisation,
            subtract_b_dec: true,
        }
    }

    /// Loads the folder of a hook point, or a folder that holds exactly one; see [`SaeFile::open`].
    pub fn load(dir: &Path, device: &B::Device) -> Result<Self, Error> {
        Self::from_file(&SaeFile::open(dir)?, device)
    }

    /// Loads all weights, each with one copy on the host.
    ///
    /// # Errors
    /// [`Error::BadFile`] for NaN or infinite weights.
    pub fn from_file(file: &SaeFile, device: &B::Device) -> Result<Self, Error> {
        let (latents, d) = (file.latents(), file.d_in());
        let vector =
            |values: Vec<f32>, length: usize| Tensor::<B, 1>::from_data(TensorData::new(values, [length]), device);
        let mut encoder = file.values(&file.encoder)?;
        file.fold_encoder(&mut encoder);
        let encoder = if file.by_latent {
            Tensor::<B, 2>::from_data(TensorData::new(encoder, [latents, d]), device).transpose()
        } else {
            Tensor::<B, 2>::from_data(TensorData::new(encoder, [d, latents]), device)
        };
        let mut w_dec = file.values(&file.w_dec)?;
        file.fold_decoder(0, &mut w_dec);
        let (encoder_bias, b_dec) = file.biases();
        Ok(Self {
            config: file.config().clone(),
            encoder,
            encoder_bias: vector(encoder_bias, latents),
            w_dec: Tensor::from_data(TensorData::new(w_dec, [latents, d]), device),
            b_dec: vector(b_dec, d),
            activation: file.activation,
            threshold: (file.activation == Activation::JumpRelu).then(|| vector(file.threshold.clone(), latents)),
            normalisation: file.normalisation,
            subtract_b_dec: file.subtract_b_dec,
        })
    }

    /// Writes `dir/cfg.json` and `dir/sae.safetensors` (f16).
    ///
    /// # Errors
    /// [`Error::BadInput`] if the reference layout cannot say what this SAE computes.
    pub fn save(&self, dir: &Path) -> Result<(), Error> {
        if self.activation != Activation::TopK || self.normalisation != Normalisation::None || !self.subtract_b_dec {
            let reason =
                "only a TopK SAE without normalisation, whose encoder reads x − b_dec, fits the reference layout";
            return Err(Error::BadInput(reason.into()));
        }
        let (latents, d) = (self.config.num_latents, self.config.d_in);
        let mut saver = Saver::default();
        saver.insert("encoder.weight", &[latents, d], &f32_from_tensor(self.encoder.clone().transpose()));
        saver.insert("encoder.bias", &[latents], &f32_from_tensor(self.encoder_bias.clone()));
        saver.insert("W_dec", &[latents, d], &f32_from_tensor(self.w_dec.clone()));
        saver.insert("b_dec", &[d], &f32_from_tensor(self.b_dec.clone()));
        saver.write(&dir.join("sae.safetensors"))?;
        let path = dir.join("cfg.json");
        let json = serde_json::to_vec_pretty(&self.config).map_err(|error| Error::bad_file(&path, error))?;
        crate::weights::write_atomic(&path, &json)
    }

    pub fn latents(&self) -> usize {
        self.config.num_latents
    }

    /// `ReLU((x − b_dec) W_encᵀ + b_enc)`: `[tokens, d_model]` to `[tokens, latents]`, with the file's normalisation
    /// before and thresholds after. TopK is not applied. Differentiable.
    pub fn activations(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        self.activations_of(self.prepare(x).0, 0..self.latents())
    }

    /// The k strongest latents of each row of `[tokens, d_model]`, or all active ones if the activation is not TopK.
    pub fn encode(&self, x: Tensor<B, 2>) -> TopK {
        self.encode_top(x, 0)
    }

    /// [`Self::encode`] with room for `extra` more latents per token; TopK fills it with the next strongest.
    pub fn encode_top(&self, x: Tensor<B, 2>, extra: usize) -> TopK {
        let [tokens, _] = x.dims();
        let latents = self.latents();
        let top = self.activation == Activation::TopK;
        let k = if top { (self.config.k + extra).min(latents) } else { usize::MAX };
        let (x, norms) = self.prepare(x);
        let mut rows: Vec<Vec<(u32, f32)>> = Vec::with_capacity(tokens);
        for start in (0..tokens).step_by(ENCODED_TOKENS) {
            let count = ENCODED_TOKENS.min(tokens - start);
            let block = x.clone().narrow(0, start, count);
            let mut selects = vec![RowTopK::new(k); count];
            // A GPU waits whenever values are read: a few tokens are read at once.
            let at_once = ENCODED_LATENTS.max(ENCODED_TOKENS * ENCODED_LATENTS / count);
            for first in (0..latents).step_by(at_once) {
                let range = first..(first + at_once).min(latents);
                let width = range.len();
                let values = f32_from_tensor(self.activations_of(block.clone(), range));
                let pairs = selects.par_iter_mut().zip(values.par_chunks_exact(width));
                pairs.for_each(|(select, row)| select.extend(first, row));
            }
            rows.extend(selects.into_iter().map(RowTopK::finish));
        }
        let active = rows.iter().map(Vec::len).max().unwrap_or_default().max(1);
        TopK::from_rows(&rows, if top { k } else { active + extra }, norms.map(Norms::into_host).unwrap_or_default())
    }

    /// Latents per token that stay of an encoding with extra ones: k, or all of them if the activation is not TopK.
    pub fn kept(&self, wide: &TopK) -> usize {
        if self.activation == Activation::TopK { self.config.k.min(wide.k) } else { wide.k }
    }

    /// `z W_dec + b_dec`: sparse activations to `[tokens, d_model]`, the normalisation undone.
    pub fn decode(&self, z: &TopK) -> Tensor<B, 2> {
        let (device, d) = (self.b_dec.device(), self.config.d_in);
        if z.tokens == 0 {
            return Tensor::zeros([0, d], &device);
        }
        // Where most latents are active, multiplying all decoder rows is less than gathering.
        let dense = z.k >= self.latents() / 2;
        let per_token = if dense { self.latents() } else { z.k * d };
        let at_once = (DECODED_NUMBERS / per_token.max(1)).max(1);
        let blocks = (0..z.tokens).step_by(at_once).map(|first| {
            let tokens = first..(first + at_once).min(z.tokens);
            if dense { self.decode_dense(z, tokens) } else { self.decode_gathered(z, tokens) }
        });
        let blocks: Vec<Tensor<B, 2>> = blocks.collect();
        let out = Tensor::cat(blocks, 0) + self.b_dec.clone().unsqueeze();
        match Norms::<B>::from_host(&z.norms, &device) {
            Some(norms) => out * norms.scale + norms.mean,
            None => out,
        }
    }

    /// The direction of latent `latent` (below [`Self::latents`]) in the residual stream, `[d_model]`.
    pub fn decoder_row(&self, latent: usize) -> Vec<f32> {
        f32_from_tensor(self.w_dec.clone().narrow(0, latent, 1))
    }

    fn decode_gathered(&self, z: &TopK, tokens: Range<usize>) -> Tensor<B, 2> {
        let (device, d) = (self.b_dec.device(), self.config.d_in);
        let count = tokens.len();
        let range = tokens.start * z.k..tokens.end * z.k;
        let indices: Vec<i64> = z.indices[range.clone()].iter().map(|&index| i64::from(index)).collect();
        let indices = Tensor::<B, 1, Int>::from_data(TensorData::new(indices, [count * z.k]), &device);
        let acts = Tensor::<B, 3>::from_data(TensorData::new(z.acts[range].to_vec(), [count, 1, z.k]), &device);
        let rows = self.w_dec.clone().select(0, indices).reshape([count, z.k, d]);
        acts.matmul(rows).reshape([count, d])
    }

    fn decode_dense(&self, z: &TopK, tokens: Range<usize>) -> Tensor<B, 2> {
        let (latents, count) = (self.latents(), tokens.len());
        let mut acts = vec![0.0; count * latents];
        for (token, acts) in tokens.zip(acts.chunks_exact_mut(latents)) {
            for (latent, act) in z.row(token) {
                acts[latent as usize] += act;
            }
        }
        let acts = Tensor::<B, 2>::from_data(TensorData::new(acts, [count, latents]), &self.b_dec.device());
        acts.matmul(self.w_dec.clone())
    }

    /// What the encoder multiplies, and what undoes the normalisation.
    fn prepare(&self, x: Tensor<B, 2>) -> (Tensor<B, 2>, Option<Norms<B>>) {
        let (x, norms) = self.normalise(x);
        if self.subtract_b_dec { (x - self.b_dec.clone().unsqueeze(), norms) } else { (x, norms) }
    }

    fn normalise(&self, x: Tensor<B, 2>) -> (Tensor<B, 2>, Option<Norms<B>>) {
        let d = self.config.d_in as f32;
        let deviation = |x: Tensor<B, 2>, n: f32| (x.powf_scalar(2.0).sum_dim(1) / n).sqrt();
        match self.normalisation {
            Normalisation::None => (x, None),
            Normalisation::ConstantNorm => {
                let scale = deviation(x.clone(), d);
                let zero = scale.clone().equal_elem(0.0);
                let scale = scale.mask_fill(zero, 1.0);
                (x / scale.clone(), Some(Norms { mean: scale.zeros_like(), scale }))
            }
            Normalisation::LayerNorm => {
                let mean = x.clone().mean_dim(1);
                let centred = x - mean.clone();
                let scale = deviation(centred.clone(), (d - 1.0).max(1.0));
                (centred / (scale.clone() + LAYER_NORM_EPSILON), Some(Norms { mean, scale }))
            }
        }
    }

    /// Activations of some latents of prepared hidden states.
    fn activations_of(&self, x: Tensor<B, 2>, latents: Range<usize>) -> Tensor<B, 2> {
        let [tokens, _] = x.dims();
        let (first, count) = (latents.start, latents.len());
        let bias = self.encoder_bias.clone().narrow(0, first, count).unsqueeze::<2>();
        let pre = x.matmul(self.encoder.clone().narrow(1, first, count)) + bias;
        let Some(threshold) = &self.threshold else { return relu(pre) };
        let threshold = threshold.clone().narrow(0, first, count).unsqueeze::<2>().expand([tokens, count]);
        let silent = pre.clone().lower_equal(threshold);
        relu(pre).mask_fill(silent, 0.0)
    }
}

/// [`TokenNorm`] of each token on a device, `[tokens, 1]`.
struct Norms<B: Backend> {
    mean: Tensor<B, 2>,
    scale: Tensor<B, 2>,
}

impl<B: Backend> Norms<B> {
    fn into_host(self) -> Vec<TokenNorm> {
        let (means, scales) = (f32_from_tensor(self.mean), f32_from_tensor(self.scale));
        means.into_iter().zip(scales).map(|(mean, scale)| TokenNorm { mean, scale }).collect()
    }

    fn from_host(norms: &[TokenNorm], device: &B::Device) -> Option<Self> {
        if norms.is_empty() {
            return None;
        }
        let column = |values: Vec<f32>| Tensor::<B, 2>::from_data(TensorData::new(values, [norms.len(), 1]), device);
        let mean = column(norms.iter().map(|norm| norm.mean).collect());
        let scale = column(norms.iter().map(|norm| norm.scale).collect());
        Some(Self { mean, scale })
    }
}
