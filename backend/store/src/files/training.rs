//! The log of `lmm-scope train-sae`: one row per step.

use super::{
    column::{Row, f32s, u32s, u64s},
    table::{self, FileError, Table},
};
use arrow_array::ArrayRef;
use std::path::Path;

/// One step of an SAE's training.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct TrainingRow {
    /// Counted from 1.
    pub step: u64,
    /// Tokens trained on so far.
    pub tokens: u64,
    /// What is minimised: `fvu + multi_topk_fvu / 8 + α · auxk_loss`.
    pub loss: f32,
    /// Fraction of the batch's variance that the k strongest latents leave unexplained.
    pub fvu: f32,
    /// The same of the 4k strongest; 0 without MultiTopK.
    pub multi_topk_fvu: f32,
    /// What the dead latents leave unexplained of the error, over the batch's variance.
    pub auxk_loss: f32,
    /// Active latents per token.
    pub l0: f32,
    /// Latents that were dead before the step.
    pub dead: u32,
    /// Learning rate.
    pub lr: f32,
    /// Norm of the gradients before clipping.
    pub grad_norm: f32,
    /// Since the step before, waiting for hidden states included.
    pub tokens_per_second: f32,
}

impl Table for TrainingRow {
    fn columns(rows: &[Self]) -> Result<Vec<(&'static str, ArrayRef)>, serde_json::Error> {
        Ok(vec![
            ("step", u64s(rows.iter().map(|row| row.step))),
            ("tokens", u64s(rows.iter().map(|row| row.tokens))),
            ("loss", f32s(rows.iter().map(|row| row.loss))),
            ("fvu", f32s(rows.iter().map(|row| row.fvu))),
            ("multi_topk_fvu", f32s(rows.iter().map(|row| row.multi_topk_fvu))),
            ("auxk_loss", f32s(rows.iter().map(|row| row.auxk_loss))),
            ("l0", f32s(rows.iter().map(|row| row.l0))),
            ("dead", u32s(rows.iter().map(|row| row.dead))),
            ("lr", f32s(rows.iter().map(|row| row.lr))),
            ("grad_norm", f32s(rows.iter().map(|row| row.grad_norm))),
            ("tokens_per_second", f32s(rows.iter().map(|row| row.tokens_per_second))),
        ])
    }

    fn from_row(row: &Row<'_>) -> Result<Self, String> {
        Ok(Self {
            step: row.u64("step")?,
            tokens: row.u64("tokens")?,
            loss: row.f32("loss")?,
            fvu: row.f32("fvu")?,
            multi_topk_fvu: row.f32("multi_topk_fvu")?,
            auxk_loss: row.f32("auxk_loss")?,
            l0: row.f32("l0")?,
            dead: row.u32("dead")?,
            lr: row.f32("lr")?,
            grad_norm: row.f32("grad_norm")?,
            tokens_per_second: row.f32("tokens_per_second")?,
        })
    }
}

/// Writes the log.
///
/// # Errors
/// When the file cannot be written.
pub fn write_training(path: &Path, rows: &[TrainingRow]) -> Result<(), FileError> {
    table::write(path, rows)
}

/// Reads the log.
///
/// # Errors
/// When the file is missing or is not a log of this version.
pub fn read_training(path: &Path) -> Result<Vec<TrainingRow>, FileError> {
    table::read(path)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // tests panic on purpose
    use super::*;

    #[test]
    fn a_log_comes_back_to_the_bit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log.parquet");
        // More than one batch of rows, and counts past 32 bits.
        let row = |step: u64| TrainingRow {
            step,
            tokens: step << 33,
            loss: 1.0 / step as f32,
            fvu: 0.1,
            dead: u32::MAX - step as u32,
            lr: f32::MIN_POSITIVE,
            tokens_per_second: 1e6 + step as f32,
            ..TrainingRow::default()
        };
        let rows: Vec<TrainingRow> = (1..3000).map(row).collect();
        write_training(&path, &rows).unwrap();
        assert_eq!(read_training(&path).unwrap(), rows);
        write_training(&path, &[]).unwrap();
        assert!(read_training(&path).unwrap().is_empty());
    }
}
