//! An SAE as browsers fetch it: `manifest.json` and the files it names, written by `lmm-scope quantize`.
//!
//! Every tier holds the encoder's rows `[latents, d_model]` in shards of at most [`MAX_SHARD_BYTES`], each a safetensors
//! file. Rows lie in the file as they lie on the GPU, filled up with zeros to [`Tier::width`] channels:
//!
//! | tier | `weight` | beside it |
//! |---|---|---|
//! | f16 | F16 `[rows, width]` | |
//! | int8 | I8 `[rows, width]`, symmetric, -127 to 127 | `scale` F32 `[rows]`: a weight is `q · scale` |
//! | int4 | U8 `[rows, width / 2]`: two channels a byte, the lower four bits first, `q + 8` with q from -7 to 7 | `scale` F16 `[rows, width / 32]`: one for 32 channels |
//! | slice | F16 `[rows, width]` | `latents` I32 `[rows]`, rising: the latent that each row is |
//!
//! The biases are one more file: `b_enc` F32 `[latents]` (of all latents, also for a slice), `b_dec` F32 `[d_model]`.
//! A tier may have its decoder's rows as well, in the same format and order, for reconstructions and neighbours. In these
//! files what stands beside `weight` lies before it: rows are used as they stream past.

use serde::{Deserialize, Serialize};

/// Name of the manifest in its folder.
pub const MANIFEST: &str = "manifest.json";
/// Version of this format.
pub const MANIFEST_FORMAT: u32 = 1;
/// Largest shard: what every WebGPU device can bind at once.
pub const MAX_SHARD_BYTES: u64 = 128 << 20;
/// Channels that share a scale in int4.
pub const INT4_GROUP: u32 = 32;

/// How weights are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum Tier {
    F16,
    Int8,
    Int4,
    /// Half floats of some latents only; exact for them, given the thresholds of the whole SAE.
    Slice,
}

impl Tier {
    pub const ALL: [Self; 4] = [Self::F16, Self::Int8, Self::Int4, Self::Slice];

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::Int8 => "int8",
            Self::Int4 => "int4",
            Self::Slice => "slice",
        }
    }

    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|tier| tier.as_str() == name)
    }

    /// Channels of a stored row.
    #[must_use]
    pub const fn width(self, d_model: u32) -> u32 {
        match self {
            Self::F16 | Self::Slice => d_model.next_multiple_of(8),
            Self::Int8 => d_model.next_multiple_of(16),
            Self::Int4 => d_model.next_multiple_of(INT4_GROUP),
        }
    }

    /// Bytes of a stored row of `weight`.
    #[must_use]
    pub const fn row_bytes(self, d_model: u32) -> u64 {
        let width = self.width(d_model) as u64;
        match self {
            Self::F16 | Self::Slice => 2 * width,
            Self::Int8 => width,
            Self::Int4 => width / 2,
        }
    }

    /// Bytes of a row of `scale`, or of `latents` in a slice; 0 in f16.
    #[must_use]
    pub const fn side_bytes(self, d_model: u32) -> u64 {
        match self {
            Self::F16 => 0,
            Self::Int8 | Self::Slice => 4,
            Self::Int4 => (self.width(d_model) / INT4_GROUP * 2) as u64,
        }
    }
}

impl std::fmt::Display for Tier {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// One safetensors file beside the manifest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct ShardFile {
    /// Its name, without a folder; holds the first digits of its hash, so that it never changes under its name.
    pub file: String,
    pub bytes: u64,
    /// Lower-case hexadecimal.
    pub sha256: String,
    /// Number of its first row, and how many there are; both 0 for the biases.
    #[serde(default)]
    pub first_row: u32,
    #[serde(default)]
    pub rows: u32,
}

/// How close a tier comes to the SAE in f32, measured on a file of hidden states.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct Agreement {
    /// Name of the file of hidden states.
    pub hidden: String,
    pub tokens: u32,
    /// Mean share of a token's k latents that the tier names as well.
    pub overlap: f64,
    /// The smallest such share.
    pub overlap_min: f64,
    /// Relative error of the activations of latents that both name: `‖a − a'‖ / ‖a‖`.
    pub value_error: f64,
    /// Fraction of variance unexplained by the tier's activations through the decoder in f32, and by those in f32.
    pub fvu: f64,
    pub fvu_f32: f64,
}

/// The encoder in one tier.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct TierShards {
    pub tier: Tier,
    /// Rows in all: the SAE's latents, or fewer in a slice.
    pub rows: u32,
    /// In rising order of rows.
    pub shards: Vec<ShardFile>,
    /// The decoder's rows, if they were asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub decoder: Vec<ShardFile>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agreement: Option<Agreement>,
}

impl TierShards {
    /// Bytes to fetch for encoding, without the biases.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.shards.iter().map(|shard| shard.bytes).sum()
    }
}

/// `manifest.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct SaeManifest {
    /// [`MANIFEST_FORMAT`].
    pub format: u32,
    pub hook_point: String,
    pub d_model: u32,
    pub latents: u32,
    pub k: u32,
    /// SHA-256 of the checkpoint's safetensors file.
    pub source_sha256: String,
    pub biases: ShardFile,
    /// Best first: f16, int8, int4, slice.
    pub tiers: Vec<TierShards>,
}

impl SaeManifest {
    #[must_use]
    pub fn tier(&self, tier: Tier) -> Option<&TierShards> {
        self.tiers.iter().find(|shards| shards.tier == tier)
    }

    /// Every file that the manifest names.
    pub fn files(&self) -> impl Iterator<Item = &ShardFile> {
        let tiers = self.tiers.iter().flat_map(|tier| tier.shards.iter().chain(&tier.decoder));
        std::iter::once(&self.biases).chain(tiers)
    }

    /// Whether the parts fit together.
    ///
    /// # Errors
    /// What does not, in one line.
    pub fn check(&self) -> Result<(), String> {
        if self.format != MANIFEST_FORMAT {
            return Err(format!("the manifest has format {}; this version reads {MANIFEST_FORMAT}", self.format));
        }
        if self.d_model == 0 || self.latents == 0 || self.k == 0 || self.k > self.latents {
            let Self { d_model, latents, k, .. } = self;
            return Err(format!("d_model {d_model}, {latents} latents and k {k} make no SAE"));
        }
        for TierShards { tier, rows, shards, decoder, .. } in &self.tiers {
            let full = *tier != Tier::Slice;
            if (full && *rows != self.latents) || *rows == 0 || *rows > self.latents {
                return Err(format!("tier {tier} has {rows} rows of {} latents", self.latents));
            }
            for (name, files) in [("encoder", shards), ("decoder", decoder)] {
                if name == "decoder" && files.is_empty() {
                    continue;
                }
                let mut next = 0;
                for shard in files {
                    if shard.first_row != next || shard.rows == 0 {
                        let (file, first) = (&shard.file, shard.first_row);
                        return Err(format!("{file} of tier {tier}'s {name} begins at row {first}; expected {next}"));
                    }
                    next = shard.first_row.saturating_add(shard.rows);
                }
                if next != *rows {
                    return Err(format!("the shards of tier {tier}'s {name} end at row {next} of {rows}"));
                }
            }
        }
        let odd = |file: &&ShardFile| {
            let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
            file.file.starts_with('.') || !file.file.chars().all(plain) || file.bytes > MAX_SHARD_BYTES
        };
        match self.files().find(odd) {
            Some(file) => Err(format!("{:?} of {} bytes is no shard", file.file, file.bytes)),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shard(file: &str, first_row: u32, rows: u32) -> ShardFile {
        ShardFile { file: file.into(), bytes: 10, sha256: "00".into(), first_row, rows }
    }

    fn manifest() -> SaeManifest {
        let tier = |tier, rows, shards| TierShards { tier, rows, shards, decoder: Vec::new(), agreement: None };
        SaeManifest {
            format: MANIFEST_FORMAT,
            hook_point: "model.layers.3".into(),
            d_model: 20,
            latents: 100,
            k: 4,
            source_sha256: "00".into(),
            biases: shard("biases.safetensors", 0, 0),
            tiers: vec![
                tier(Tier::Int8, 100, vec![shard("a", 0, 60), shard("b", 60, 40)]),
                tier(Tier::Slice, 7, vec![shard("c", 0, 7)]),
            ],
        }
    }

    #[test]
    fn rows_are_as_long_as_the_table_says() {
        let bytes = |d_model| Tier::ALL.map(|tier| (tier.width(d_model), tier.row_bytes(d_model)));
        assert_eq!(bytes(4096), [(4096, 8192), (4096, 4096), (4096, 2048), (4096, 8192)]);
        assert_eq!(bytes(20), [(24, 48), (32, 32), (32, 16), (24, 48)]);
        assert_eq!(Tier::ALL.map(|tier| tier.side_bytes(20)), [0, 4, 2, 4]);
        for tier in Tier::ALL {
            assert_eq!(Tier::from_name(tier.as_str()), Some(tier));
        }
    }

    #[test]
    fn what_does_not_fit_together_is_refused() {
        assert_eq!(manifest().check(), Ok(()));
        let refused = |edit: fn(&mut SaeManifest)| {
            let mut manifest = manifest();
            edit(&mut manifest);
            manifest.check().err().unwrap_or_default()
        };
        assert!(refused(|m| m.format = 2).contains("format 2"));
        assert!(refused(|m| m.k = 101).contains("make no SAE"));
        assert!(refused(|m| m.tiers[0].shards[1].first_row = 61).contains("begins at row 61"));
        assert!(refused(|m| m.tiers[0].shards[1].rows = 39).contains("end at row 99"));
        assert!(refused(|m| m.tiers[1].rows = 0).contains("0 rows"));
        assert!(refused(|m| m.tiers[0].rows = 99).contains("99 rows"));
        assert!(refused(|m| m.tiers[0].shards[0].file = "../a".into()).contains("no shard"));
        assert!(refused(|m| m.biases.bytes = MAX_SHARD_BYTES + 1).contains("no shard"));
    }
}
