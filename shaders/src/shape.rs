//! Sizes, checked once at the door.

use crate::Error;
use crate::error::check_len;
use crate::limits::check_finite;

/// Largest `k`: one workgroup holds a row's top k.
pub const MAX_K: u32 = 1024;

/// Most latents: far above any SAE, far below the end of `u32`.
pub const MAX_LATENTS: u32 = 1 << 24;

/// Sizes of a TopK SAE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SaeShape {
    pub d_model: u32,
    pub latents: u32,
    pub k: u32,
}

impl SaeShape {
    /// # Errors
    /// [`Error::Size`] for an empty dimension, `k` over [`MAX_K`] or over `latents`.
    pub fn new(d_model: u32, latents: u32, k: u32) -> Result<Self, Error> {
        let size =
            |what, given: u32, expected: &str| Error::Size { what, given: given.into(), expected: expected.into() };
        if d_model == 0 {
            return Err(size("d_model", d_model, "at least 1"));
        }
        if latents == 0 || latents > MAX_LATENTS {
            return Err(size("latents", latents, &format!("1 to {MAX_LATENTS}")));
        }
        if k == 0 || k > MAX_K || k > latents {
            return Err(size("k", k, &format!("1 to {}", MAX_K.min(latents))));
        }
        Ok(Self { d_model, latents, k })
    }

    /// Values of the encoder's weight matrix.
    #[must_use]
    pub fn weights(&self) -> usize {
        self.latents as usize * self.d_model as usize
    }

    /// `hidden` must be `[tokens, d_model]` and finite.
    pub(crate) fn check_hidden(&self, hidden: &[f32], tokens: u32) -> Result<(), Error> {
        check_len("hidden [tokens, d_model]", hidden.len(), tokens as usize * self.d_model as usize)?;
        check_finite("hidden [tokens, d_model]", hidden, self.d_model)
    }
}

/// How the encoder's weights are stored, on the GPU as in a file of shards.
///
/// A row is filled up with zeros to [`Self::width`] channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WeightType {
    F32,
    F16,
    /// Signed bytes; a weight is `q · scale`, with one f32 scale for the row.
    Int8,
    /// Two channels a byte, the lower four bits first, as `q + 8`; one f16 scale for [`INT4_GROUP`] channels.
    Int4,
}

/// Channels that share a scale in [`WeightType::Int4`].
pub const INT4_GROUP: u32 = 32;

impl WeightType {
    pub const ALL: [Self; 4] = [Self::F32, Self::F16, Self::Int8, Self::Int4];

    /// Channels of a stored row: whole 16 bytes, and whole groups of a scale.
    #[must_use]
    pub const fn width(self, d_model: u32) -> u32 {
        match self {
            Self::F32 | Self::F16 => d_model.next_multiple_of(8),
            Self::Int8 => d_model.next_multiple_of(16),
            Self::Int4 => d_model.next_multiple_of(INT4_GROUP),
        }
    }

    /// Bytes of a stored row.
    #[must_use]
    pub const fn row_bytes(self, d_model: u32) -> u64 {
        let width = self.width(d_model) as u64;
        match self {
            Self::F32 => 4 * width,
            Self::F16 => 2 * width,
            Self::Int8 => width,
            Self::Int4 => width / 2,
        }
    }

    /// Bytes of a row's scales.
    #[must_use]
    pub const fn scale_bytes(self, d_model: u32) -> u64 {
        match self {
            Self::F32 | Self::F16 => 0,
            Self::Int8 => 4,
            Self::Int4 => (self.width(d_model) / INT4_GROUP * 2) as u64,
        }
    }
}

/// Sizes of a feature map: a grid of patches, and the picture it is upsampled to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapShape {
    pub rows: u32,
    pub columns: u32,
    pub height: u32,
    pub width: u32,
}

impl MapShape {
    /// Longest side of the picture in pixels: keeps a map under the default binding size of 128 MiB.
    pub const MAX_SIDE: u32 = 4096;

    /// # Errors
    /// [`Error::Size`] for an empty grid or picture, or one over [`Self::MAX_SIDE`].
    pub fn new(grid: [u32; 2], size: [u32; 2]) -> Result<Self, Error> {
        let names = ["grid rows", "grid columns", "height", "width"];
        for (what, given) in names.into_iter().zip(grid.into_iter().chain(size)) {
            if given == 0 || given > Self::MAX_SIDE {
                return Err(Error::Size { what, given: given.into(), expected: format!("1 to {}", Self::MAX_SIDE) });
            }
        }
        Ok(Self { rows: grid[0], columns: grid[1], height: size[0], width: size[1] })
    }

    #[must_use]
    pub fn patches(&self) -> usize {
        self.rows as usize * self.columns as usize
    }

    #[must_use]
    pub fn pixels(&self) -> usize {
        self.height as usize * self.width as usize
    }
}
