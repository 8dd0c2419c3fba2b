//! The TopK sparse autoencoder (Gao et al. 2024; the paper's section 3.1).
//!
//! `z = TopK_k(ReLU((x − b_dec) W_encᵀ + b_enc))`, `x̂ = z W_dec + b_dec`.
//!
//! Files: `{hook point}/cfg.json` and `sae.safetensors` with `encoder.weight [latents, d_model]`, `encoder.bias`,
//! `W_dec [latents, d_model]`, `b_dec`.

use crate::Error;
use crate::weights::{Checkpoint, Saver, f32_from_tensor};
use burn::tensor::{Int, Tensor, TensorData, backend::Backend};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// `cfg.json` of the reference layout.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SaeConfig {
    #[serde(default)]
    pub expansion_factor: usize,
    #[serde(default = "yes")]
    pub normalize_decoder: bool,
    #[serde(default)]
    pub num_latents: usize,
    pub k: usize,
    #[serde(default)]
    pub signed: bool,
    pub d_in: usize,
}

fn yes() -> bool {
    true
}

/// The autoencoder's weights.
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
}

/// The k strongest latents of each token, by falling activation, ties by lower index.
///
/// A token with fewer than k positive latents is filled up with index 0 and activation 0.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TopK {
    pub tokens: usize,
    pub k: usize,
    /// `[tokens, k]`
    pub indices: Vec<u32>,
    /// `[tokens, k]`
    pub acts: Vec<f32>,
}

impl TopK {
    /// Index and activation pairs of one token.
    pub fn row(&self, token: usize) -> impl Iterator<Item = (u32, f32)> + '_ {
        let range = token * self.k..(token + 1) * self.k;
        self.indices[range.clone()].iter().copied().zip(self.acts[range].iter().copied())
    }
}

/// The k strongest positive values of one row.
pub fn top_k_of_row(row: &[f32], k: usize) -> Vec<(u32, f32)> {
    let order = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    let mut positive: Vec<(u32, f32)> =
        row.iter().enumerate().filter(|(_, value)| **value > 0.0).map(|(i, &value)| (i as u32, value)).collect();
    if positive.len() > k {
        positive.select_nth_unstable_by(k, order);
        positive.truncate(k);
    }
    positive.sort_unstable_by(order);
    positive
}

/// Top k of each row of a `[tokens, latents]` matrix.
pub fn top_k(pre: &[f32], latents: usize, k: usize) -> TopK {
    let tokens = pre.len().checked_div(latents).unwrap_or_default();
    let mut out = TopK { tokens, k, indices: vec![0; tokens * k], acts: vec![0.0; tokens * k] };
    for (token, row) in pre.chunks_exact(latents.max(1)).enumerate() {
        for (slot, (index, act)) in top_k_of_row(row, k).into_iter().enumerate() {
            out.indices[token * k + slot] = index;
            out.acts[token * k + slot] = act;
        }
    }
    out
}

impl<B: Backend> Sae<B> {
    /// Loads the folder of a hook point, or a folder that holds exactly one.
    pub fn load(dir: &Path, device: &B::Device) -> Result<Self, Error> {
        let dir = hook_point_dir(dir)?;
        let path = dir.join("cfg.json");
        let text = std::fs::read_to_string(&path).map_err(|source| Error::io(&path, source))?;
        let mut config: SaeConfig = serde_json::from_str(&text).map_err(|error| Error::bad_file(&path, error))?;
        if config.num_latents == 0 {
            config.num_latents = config.d_in * config.expansion_factor;
        }
        let file = dir.join("sae.safetensors");
        let checkpoint = Checkpoint::open_files(&file, std::slice::from_ref(&file))?;
        let (latents, d) = (config.num_latents, config.d_in);
        let read = |name: &str, expected: &[usize]| -> Result<Vec<f32>, Error> {
            let (found, values) = checkpoint.read(name)?;
            if found == expected {
                return Ok(values);
            }
            Err(Error::TensorShape { path: file.clone(), name: name.into(), expected: expected.to_vec(), found })
        };
        let matrix = |name: &str| -> Result<Tensor<B, 2>, Error> {
            Ok(Tensor::from_data(TensorData::new(read(name, &[latents, d])?, [latents, d]), device))
        };
        let vector = |name: &str, length: usize| -> Result<Tensor<B, 1>, Error> {
            Ok(Tensor::from_data(TensorData::new(read(name, &[length])?, [length]), device))
        };
        let encoder = matrix("encoder.weight")?.transpose().into_data();
        Ok(Self {
            encoder: Tensor::from_data(encoder, device),
            encoder_bias: vector("encoder.bias", latents)?,
            w_dec: matrix("W_dec")?,
            b_dec: vector("b_dec", d)?,
            config,
        })
    }

    /// Writes `dir/cfg.json` and `dir/sae.safetensors` (f16).
    pub fn save(&self, dir: &Path) -> Result<(), Error> {
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

    /// `ReLU((x − b_dec) W_encᵀ + b_enc)`: `[tokens, d_model]` to `[tokens, latents]`.
    pub fn activations(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let centred = x - self.b_dec.clone().unsqueeze();
        burn::tensor::activation::relu(centred.matmul(self.encoder.clone()) + self.encoder_bias.clone().unsqueeze())
    }

    /// The k strongest latents of each row of `[tokens, d_model]`.
    pub fn encode(&self, x: Tensor<B, 2>) -> TopK {
        top_k(&f32_from_tensor(self.activations(x)), self.latents(), self.config.k)
    }

    /// `z W_dec + b_dec`: sparse activations to `[tokens, d_model]`.
    pub fn decode(&self, z: &TopK) -> Tensor<B, 2> {
        let device = self.b_dec.device();
        let d = self.config.d_in;
        let indices: Vec<i64> = z.indices.iter().map(|&index| i64::from(index)).collect();
        let indices = Tensor::<B, 1, Int>::from_data(TensorData::new(indices, [z.tokens * z.k]), &device);
        let acts = Tensor::<B, 3>::from_data(TensorData::new(z.acts.clone(), [z.tokens, 1, z.k]), &device);
        let rows = self.w_dec.clone().select(0, indices).reshape([z.tokens, z.k, d]);
        acts.matmul(rows).reshape([z.tokens, d]) + self.b_dec.clone().unsqueeze()
    }
}

/// `dir` itself if it holds `cfg.json`, else its only subfolder that does.
fn hook_point_dir(dir: &Path) -> Result<PathBuf, Error> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn top_k_orders_by_activation_then_index() {
        let z = top_k(&[0.0, 2.0, 5.0, 2.0, -1.0, 3.0, 0.0, 0.0, 0.5, 0.0, 0.0, 0.0], 6, 3);
        assert_eq!(z.indices, [2, 5, 1, 2, 0, 0]);
        assert_eq!(z.acts, [5.0, 3.0, 2.0, 0.5, 0.0, 0.0]);
    }

    #[test]
    fn ties_at_the_boundary_keep_the_lower_index() {
        let z = top_k(&[1.0, 1.0, 1.0, 1.0, 2.0], 5, 3);
        assert_eq!(z.indices, [4, 0, 1]);
    }
}
