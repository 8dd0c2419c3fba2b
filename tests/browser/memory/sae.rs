//! A random SAE as browsers fetch it, hidden states for it, and its CPU twin.
//!
//! Weights are whole multiples of a power of two, which f16 and int8 hold exactly: for hidden states that are whole
//! numbers every sum is exact in f32, in any order, and the GPU's answer must equal the twin's to the bit.

use anyhow::{Context, bail, ensure};
use api::{SaeManifest, Tier, shards::MANIFEST};
use half::f16;
use safetensors::SafeTensors;
use serde_json::json;
use shaders::{SaeShape, WeightType, cpu::sae_encode::SaeEncode};
use std::{
    fs::{self, File},
    io::{BufWriter, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// Of LLaVA-NeXT-8B.
const D_MODEL: u32 = 4096;
const K: u32 = 256;
/// Tokens of an encode; of the first ones the hidden states are whole numbers.
pub const TOKENS: u32 = 4;
pub const WHOLE_TOKENS: u32 = 2;
/// What weights and biases are multiples of.
const STEP: f32 = 1.0 / 1024.0;
/// Weights lie within this many steps. Every row reaches it, so that int8's scale is one step.
const MOST_STEPS: i8 = 127;

/// The folder of shards, and what they hold.
pub struct RandomSae {
    pub latents: u32,
    pub shards: PathBuf,
    pub manifest: SaeManifest,
}

impl RandomSae {
    /// Writes a checkpoint into `folder`, and its shards by `lmm-scope quantize`.
    ///
    /// # Errors
    /// When the disk does not take them, or the program is not there.
    pub fn write(folder: &Path, latents: u32, tiers: &[Tier]) -> anyhow::Result<Self> {
        let (checkpoint, shards) = (folder.join("model.layers.24"), folder.join("browser"));
        fs::create_dir(&checkpoint)?;
        write_checkpoint(&checkpoint, latents).with_context(|| format!("cannot write to {}", folder.display()))?;
        let program = tests::server::program()?;
        let names: Vec<&str> = tiers.iter().map(|tier| tier.as_str()).collect();
        let status = Command::new(&program)
            .arg("quantize")
            .arg("--sae")
            .arg(&checkpoint)
            .arg("--out")
            .arg(&shards)
            .args(["--tiers", &names.join(",")])
            .stdout(Stdio::null())
            .status()
            .with_context(|| format!("cannot start {}", program.display()))?;
        ensure!(status.success(), "`lmm-scope quantize` ended with {status}");
        // At full size it is a gigabyte that the browser's storage may want.
        fs::remove_dir_all(&checkpoint)?;
        let manifest: SaeManifest = serde_json::from_slice(&fs::read(shards.join(MANIFEST))?)?;
        Ok(Self { latents, shards, manifest })
    }

    /// The CPU twin with the weights of a tier.
    ///
    /// # Errors
    /// When the shards are not as the manifest says.
    pub fn twin(&self, tier: Tier) -> anyhow::Result<SaeEncode> {
        let weight_type = match tier {
            Tier::F16 => WeightType::F16,
            Tier::Int8 => WeightType::Int8,
            Tier::Int4 | Tier::Slice => bail!("tier {tier} is not measured"),
        };
        let mut twin = SaeEncode::new(SaeShape::new(D_MODEL, self.latents, K)?, weight_type)?;
        for shard in &self.manifest.tier(tier).context("the manifest lacks a tier")?.shards {
            let bytes = fs::read(self.shards.join(&shard.file))?;
            let (file, first) = (SafeTensors::deserialize(&bytes)?, u64::from(shard.first_row));
            twin.write_rows(first * tier.row_bytes(D_MODEL), file.tensor("weight")?.data())?;
            if tier == Tier::Int8 {
                twin.write_scales(first * tier.side_bytes(D_MODEL), file.tensor("scale")?.data())?;
            }
        }
        let bytes = fs::read(self.shards.join(&self.manifest.biases.file))?;
        let file = SafeTensors::deserialize(&bytes)?;
        let floats = |name: &str| -> anyhow::Result<Vec<f32>> {
            let (values, _) = file.tensor(name)?.data().as_chunks::<4>();
            Ok(values.iter().map(|value| f32::from_le_bytes(*value)).collect())
        };
        twin.write_biases(&floats("b_enc")?, &floats("b_dec")?)?;
        Ok(twin)
    }
}

/// `cfg.json` and `sae.safetensors`. The decoder, which nobody reads, is zeros that take no room on most disks.
fn write_checkpoint(folder: &Path, latents: u32) -> anyhow::Result<()> {
    let config = json!({
        "expansion_factor": latents / D_MODEL, "normalize_decoder": true, "num_latents": latents, "k": K,
        "signed": false, "d_in": D_MODEL,
    });
    fs::write(folder.join("cfg.json"), config.to_string())?;
    let (d, n) = (u64::from(D_MODEL), u64::from(latents));
    let mut end = 0;
    let mut tensor = |dtype: &str, shape: &[u64], bytes: u64| {
        let start = end;
        end += bytes;
        json!({ "dtype": dtype, "shape": shape, "data_offsets": [start, end] })
    };
    let b_dec = tensor("F32", &[d], 4 * d);
    let bias = tensor("F32", &[n], 4 * n);
    let weight = tensor("F16", &[n, d], 2 * n * d);
    let w_dec = tensor("F16", &[n, d], 2 * n * d);
    let header = json!({ "b_dec": b_dec, "encoder.bias": bias, "encoder.weight": weight, "W_dec": w_dec });
    let mut header = header.to_string();
    while !header.len().is_multiple_of(8) {
        header.push(' ');
    }
    let mut file = BufWriter::new(File::create(folder.join("sae.safetensors"))?);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(header.as_bytes())?;
    let mut random = Random(1);
    for _ in 0..d {
        file.write_all(&f32::from(random.whole(2)).to_le_bytes())?;
    }
    for _ in 0..n {
        file.write_all(&(STEP * f32::from(random.whole(2000))).to_le_bytes())?;
    }
    // Of every byte, as a signed one.
    let weights: Vec<[u8; 2]> = (0..=u8::MAX)
        .map(|byte| f16::from_f32(STEP * f32::from(byte.cast_signed().max(-MOST_STEPS))).to_le_bytes())
        .collect();
    let mut row = Vec::new();
    for _ in 0..latents {
        row.clear();
        for _ in 0..D_MODEL / 8 {
            row.extend(random.draw().to_le_bytes().iter().flat_map(|byte| weights[usize::from(*byte)]));
        }
        file.write_all(&row)?;
    }
    file.flush()?;
    Ok(file.get_ref().set_len(8 + header.len() as u64 + end)?)
}

/// Hidden states `[tokens, d_model]`.
pub struct Hidden(Vec<f16>);

impl Hidden {
    /// Whole numbers from -3 to 3, then any numbers between them.
    pub fn random() -> Self {
        let mut random = Random(2);
        let whole = (WHOLE_TOKENS * D_MODEL) as usize;
        let numbers = (0..(TOKENS * D_MODEL) as usize)
            .map(|at| if at < whole { f32::from(random.whole(3)) } else { f32::from(random.whole(30_000)) / 1e4 });
        Self(numbers.map(f16::from_f32).collect())
    }

    pub fn floats(&self) -> Vec<f32> {
        self.0.iter().map(|value| value.to_f32()).collect()
    }

    pub fn bits(&self) -> Vec<u16> {
        self.0.iter().map(|value| value.to_bits()).collect()
    }
}

/// SplitMix64 (Steele et al. 2014): the same numbers in every run.
struct Random(u64);

impl Random {
    fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A whole number from `-most` to `most`.
    fn whole(&mut self, most: i16) -> i16 {
        let numbers = 2 * i64::from(most) + 1;
        // Below 2^32, so neither conversion loses anything.
        let drawn = (self.draw() >> 32) as i64 % numbers - i64::from(most);
        drawn as i16
    }
}
