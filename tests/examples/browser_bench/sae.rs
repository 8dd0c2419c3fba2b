//! A random SAE as browsers fetch it.
//!
//! Weights are whole multiples of a power of two, which f16, int8 and f32 hold exactly: our tiers and onnxruntime-web
//! multiply with the very same numbers. int4 rounds them.

use crate::options::Sae;
use anyhow::{Context, ensure};
use api::{
    SaeManifest,
    shards::{MANIFEST, MANIFEST_FORMAT},
};
use half::f16;
use serde_json::json;
use std::{
    fs::{self, File},
    io::{BufWriter, Write},
    path::Path,
    process::{Command, Stdio},
};
use tests::server;

/// What weights are multiples of.
const STEP: f32 = 1.0 / 1024.0;
/// Weights lie within this many steps. Every row reaches it, so that int8's scale is one step.
const MOST_STEPS: i8 = 127;

/// Writes the SAE's shards by `lmm-scope quantize`, unless they are there from an earlier run. Where in `folder` they
/// lie.
///
/// # Errors
/// When the disk does not take them, or the program is not there.
pub fn write(folder: &Path, sae: &Sae) -> anyhow::Result<String> {
    let name = format!("{}-{}-{}", sae.d_model, sae.latents, sae.k);
    let checkpoint = folder.join(&name);
    let (shards, place) = (checkpoint.join("browser"), format!("{name}/browser"));
    let manifest: Option<SaeManifest> =
        fs::read(shards.join(MANIFEST)).ok().and_then(|json| serde_json::from_slice(&json).ok());
    if manifest.is_some_and(|manifest| manifest.format == MANIFEST_FORMAT) {
        return Ok(place);
    }
    eprintln!("writing a random SAE, {sae}, to {}", checkpoint.display());
    fs::create_dir_all(&checkpoint).with_context(|| format!("cannot create {}", checkpoint.display()))?;
    write_checkpoint(&checkpoint, sae).with_context(|| format!("cannot write to {}", checkpoint.display()))?;
    let program = server::program()?;
    let status = Command::new(&program)
        .arg("quantize")
        .arg("--sae")
        .arg(&checkpoint)
        .arg("--out")
        .arg(&shards)
        .args(["--tiers", "f16,int8,int4"])
        .stdout(Stdio::null())
        .status()
        .with_context(|| format!("cannot start {}", program.display()))?;
    ensure!(status.success(), "`lmm-scope quantize` of {} ended with {status}", checkpoint.display());
    fs::remove_file(checkpoint.join("sae.safetensors"))?;
    Ok(place)
}

/// `cfg.json` and `sae.safetensors`. `b_dec` is zero, as an exporter to ONNX would fold it into the bias; the decoder,
/// which nobody reads, is zeros that take no room on most disks.
fn write_checkpoint(folder: &Path, sae: &Sae) -> anyhow::Result<()> {
    let Sae { d_model, latents, k, .. } = sae;
    let config = json!({
        "expansion_factor": latents / d_model, "normalize_decoder": true, "num_latents": latents, "k": k,
        "signed": false, "d_in": d_model,
    });
    fs::write(folder.join("cfg.json"), config.to_string())?;
    let (d, n) = (u64::from(*d_model), u64::from(*latents));
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
    file.write_all(&vec![0u8; 4 * *d_model as usize])?;
    let mut random = Random(1);
    for _ in 0..*latents {
        // In [-0.5, 0.5).
        let bias = f32::from(random.draw().cast_signed()) / 65_536.0;
        file.write_all(&bias.to_le_bytes())?;
    }
    let bytes_of = |steps: i8| f16::from_f32(STEP * f32::from(steps)).to_le_bytes();
    // Of every byte, as a signed one.
    let halves: Vec<[u8; 2]> = (0..=u8::MAX).map(|byte| bytes_of(byte.cast_signed().max(-MOST_STEPS))).collect();
    let mut row = Vec::new();
    for _ in 0..*latents {
        row.clear();
        row.extend(bytes_of(MOST_STEPS));
        for _ in 1..*d_model {
            row.extend(halves[usize::from(random.draw() >> 8)]);
        }
        file.write_all(&row)?;
    }
    file.flush()?;
    Ok(file.get_ref().set_len(8 + header.len() as u64 + end)?)
}

/// Pseudo-random numbers, the same in every run.
struct Random(u64);

impl Random {
    /// The upper bits, which are the better ones.
    fn draw(&mut self) -> u16 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 48) as u16
    }
}
