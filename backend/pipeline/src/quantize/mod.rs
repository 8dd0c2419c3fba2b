//! `lmm-scope quantize`: an SAE's checkpoint to what browsers fetch ([`api::shards`]), in memory that does not grow with
//! the SAE.
//!
//! ```text
//! source ─▶ tier: rows ─▶ shard … ─▶ folder: manifest, then whatever it does not name is removed
//!    └────▶ agreement (with hidden states: how close each tier comes to f32)
//! ```
//!
//! [`ensure`] is the same for a server that starts: shards that fit are used, others are made.

mod agreement;
mod ensure;
mod error;
mod folder;
mod rows;
mod shard;
mod slice;
mod source;
mod tier;

pub use ensure::{Shards, ensure};
pub use error::QuantizeError;
pub use folder::read_manifest;
pub use rows::{Packed, Unfit, dequantize_row, quantize_row};
pub use shard::sha256_of_file;
pub use slice::read_filter;

use agreement::Measurement;
use api::shards::{MANIFEST_FORMAT, SaeManifest, Tier, TierShards};
use folder::Folder;
use source::{Matrix, Source};
use std::path::PathBuf;
use tier::Job;

pub use api::shards::MAX_SHARD_BYTES;

/// Name of the folder of shards in that of the hook point.
pub const BROWSER_FOLDER: &str = "browser";

/// Hidden states at the SAE's hook point.
#[derive(Debug, Clone, PartialEq)]
pub struct HiddenStates {
    /// Name of the file, or what else they are.
    pub name: String,
    /// `[tokens, d_model]`, row-major.
    pub values: Vec<f32>,
}

/// What is made of which SAE.
#[derive(Debug, Clone, PartialEq)]
pub struct QuantizeOptions {
    /// Folder of a hook point, or one that holds exactly one.
    pub sae: PathBuf,
    /// Folder of the shards; made if there is none.
    pub out: PathBuf,
    pub tiers: Vec<Tier>,
    /// JSON file that lists the latents of the slice.
    pub filter: Option<PathBuf>,
    /// The decoder's rows as well.
    pub decoder: bool,
    /// What the tiers are compared with f32 on.
    pub hidden: Option<HiddenStates>,
    /// Largest shard.
    pub max_shard_bytes: u64,
}

impl QuantizeOptions {
    /// Whole tiers of the encoder, without a comparison.
    pub fn new(sae: impl Into<PathBuf>, out: impl Into<PathBuf>, tiers: &[Tier]) -> Self {
        Self {
            sae: sae.into(),
            out: out.into(),
            tiers: tiers.to_vec(),
            filter: None,
            decoder: false,
            hidden: None,
            max_shard_bytes: MAX_SHARD_BYTES,
        }
    }
}

/// Writes shards and manifest; tells `say` what it does. What an earlier run left in the folder goes when the new
/// manifest is there.
///
/// # Errors
/// What is wrong with the SAE, the filter or the hidden states; a weight that a tier cannot hold; a disk that takes no
/// more. The folder is then as it was.
pub fn quantize(options: &QuantizeOptions, say: &dyn Fn(&str)) -> Result<SaeManifest, QuantizeError> {
    run(&Source::open(&options.sae)?, None, options, say)
}

/// The same of an open SAE, whose hash may be known.
fn run(
    source: &Source,
    sha256: Option<String>,
    options: &QuantizeOptions,
    say: &dyn Fn(&str),
) -> Result<SaeManifest, QuantizeError> {
    let mut tiers = options.tiers.clone();
    tiers.sort_unstable();
    tiers.dedup();
    if tiers.is_empty() {
        return Err(QuantizeError::Asked("no tier is named; f16, int8, int4 and slice are known".into()));
    }
    let slice = match &options.filter {
        Some(path) if tiers.contains(&Tier::Slice) => {
            slice::read_filter(path, &source.hook_point, source.file.latents())?
        }
        None if tiers.contains(&Tier::Slice) => {
            return Err(QuantizeError::Asked("a slice needs a filter that lists its latents".into()));
        }
        _ => Vec::new(),
    };
    // A checkpoint's revision is the hash of all safetensors files in its folder.
    if options.out.canonicalize().is_ok_and(|out| out == source.folder()) {
        let reason = format!("is the folder of the SAE itself; name another, such as {BROWSER_FOLDER} in it");
        return Err(QuantizeError::file(&options.out, reason));
    }
    let measurement = options.hidden.as_ref().map(|hidden| Measurement::new(source, hidden)).transpose()?;
    let sha256 = match sha256 {
        Some(known) => known,
        None => {
            say("hashing the checkpoint");
            source.sha256()?
        }
    };
    let job = Job { source, sha256: &sha256, slice: &slice, max_shard_bytes: options.max_shard_bytes };
    let mut folder = Folder::open(&options.out)?;
    let biases = job.write_biases(&mut folder)?;
    let mut written = Vec::with_capacity(tiers.len());
    for &tier in &tiers {
        say(&format!("writing {tier}"));
        let shards = job.write_matrix(tier, Matrix::Encoder, &mut folder)?;
        let decoder = if options.decoder { job.write_matrix(tier, Matrix::Decoder, &mut folder)? } else { Vec::new() };
        written.push(TierShards { tier, rows: job.tier_rows(tier), shards, decoder, agreement: None });
    }
    if let Some(measurement) = measurement {
        say(&format!("comparing with f32 on {} tokens", measurement.tokens()));
        let found = measurement.run(&tiers, &slice)?;
        written.iter_mut().zip(found).for_each(|(tier, found)| tier.agreement = Some(found));
    }
    let manifest = SaeManifest {
        format: MANIFEST_FORMAT,
        hook_point: source.hook_point.clone(),
        d_model: source.d_model,
        latents: source.latents(),
        k: source.file.k() as u32,
        source_sha256: sha256,
        biases,
        tiers: written,
    };
    folder.finish(&manifest)?;
    Ok(manifest)
}
