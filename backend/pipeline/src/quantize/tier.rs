//! The shards of one matrix in one tier: rows are read, quantised and written a piece at a time.

use super::QuantizeError;
use super::folder::Folder;
use super::rows::{Packed, scale_bytes};
use super::shard::{Described, balanced, header};
use super::source::{Matrix, Source};
use api::shards::{INT4_GROUP, ShardFile, Tier};
use std::ops::Range;

/// Numbers that are in memory at once: 16 MiB as f32, and as much again in the tier.
const PIECE_NUMBERS: usize = 4 << 20;

/// What all shards of a run have in common.
pub struct Job<'a> {
    pub source: &'a Source,
    /// Of the checkpoint.
    pub sha256: &'a str,
    /// Latents of the slice, rising.
    pub slice: &'a [u32],
    pub max_shard_bytes: u64,
}

impl Job<'_> {
    /// Rows of a tier.
    pub fn tier_rows(&self, tier: Tier) -> u32 {
        if tier == Tier::Slice { self.slice.len() as u32 } else { self.source.latents() }
    }

    /// Writes the biases.
    ///
    /// # Errors
    /// When they are not finite, or the disk does not take them.
    pub fn write_biases(&self, folder: &mut Folder) -> Result<ShardFile, QuantizeError> {
        let (encoder, decoder) = self.source.file.biases();
        let vector = |name, values: &[f32]| {
            model::Error::check_finite("the SAE's biases", values)?;
            let length = values.len() as u64;
            Ok::<_, model::Error>(Described { name, dtype: "F32", shape: vec![length], bytes: 4 * length })
        };
        let tensors = [vector("b_enc", &encoder)?, vector("b_dec", &decoder)?];
        let mut writer = folder.create("biases")?;
        writer.write(&self.header(None, 0, &tensors))?;
        writer.write(&le_bytes(&encoder, f32::to_le_bytes))?;
        writer.write(&le_bytes(&decoder, f32::to_le_bytes))?;
        folder.add(writer, 0, 0)
    }

    /// Writes a matrix.
    ///
    /// # Errors
    /// A weight that the tier cannot hold, by its latent; a disk that does not take it.
    pub fn write_matrix(
        &self,
        tier: Tier,
        matrix: Matrix,
        folder: &mut Folder,
    ) -> Result<Vec<ShardFile>, QuantizeError> {
        let d_model = self.source.d_model;
        let row_bytes = tier.row_bytes(d_model) + tier.side_bytes(d_model);
        let ranges = balanced(self.tier_rows(tier), row_bytes, self.max_shard_bytes)?;
        let shards = ranges.into_iter().enumerate();
        shards.map(|(number, rows)| self.write_shard(tier, matrix, number, rows, folder)).collect()
    }

    fn write_shard(
        &self,
        tier: Tier,
        matrix: Matrix,
        number: usize,
        rows: Range<u32>,
        folder: &mut Folder,
    ) -> Result<ShardFile, QuantizeError> {
        let d_model = self.source.d_model;
        let stem = match matrix {
            Matrix::Encoder => format!("{tier}-{number:03}"),
            Matrix::Decoder => format!("{tier}-decoder-{number:03}"),
        };
        let mut tensors = described(tier, d_model, rows.end - rows.start);
        if matrix == Matrix::Decoder {
            tensors.reverse();
        }
        let mut writer = folder.create(&stem)?;
        writer.write(&self.header(Some((tier, matrix)), rows.start, &tensors))?;
        // What lies beside the weights: a slice's latents, or the scales.
        let mut side = Vec::new();
        if tier == Tier::Slice {
            let latents = &self.slice[rows.start as usize..rows.end as usize];
            side = le_bytes(latents, |latent| (latent as i32).to_le_bytes());
        }
        if matrix == Matrix::Decoder {
            if scale_bytes(tier, d_model) > 0 {
                self.each_piece(tier, matrix, &rows, &mut |packed| {
                    side.extend_from_slice(&packed.scale);
                    Ok(())
                })?;
            }
            writer.write(&side)?;
        }
        self.each_piece(tier, matrix, &rows, &mut |packed| {
            if matrix == Matrix::Encoder {
                side.extend_from_slice(&packed.scale);
            }
            writer.write(&packed.weight)
        })?;
        if matrix == Matrix::Encoder {
            writer.write(&side)?;
        }
        folder.add(writer, rows.start, rows.end - rows.start)
    }

    /// Reads and quantises some rows, a piece at a time.
    fn each_piece(
        &self,
        tier: Tier,
        matrix: Matrix,
        rows: &Range<u32>,
        each: &mut dyn FnMut(&Packed) -> Result<(), QuantizeError>,
    ) -> Result<(), QuantizeError> {
        let d_model = self.source.d_model;
        let (mut values, mut packed) = (Vec::new(), Packed::default());
        let piece = (PIECE_NUMBERS / d_model as usize).clamp(1, 1 << 16);
        for first in rows.clone().step_by(piece) {
            let some = first..rows.end.min(first.saturating_add(piece as u32));
            self.read(tier, matrix, some, &mut values);
            packed.fill(tier, d_model, &values).map_err(|(row, problem)| {
                let row = first as usize + row;
                let latent = if tier == Tier::Slice { self.slice[row] as usize } else { row };
                self.source.weight_error(matrix, latent, problem)
            })?;
            each(&packed)?;
        }
        Ok(())
    }

    /// Rows of a tier as numbers.
    fn read(&self, tier: Tier, matrix: Matrix, rows: Range<u32>, values: &mut Vec<f32>) {
        let rows = rows.start as usize..rows.end as usize;
        if tier != Tier::Slice {
            return self.source.rows(matrix, rows, values);
        }
        let mut row = Vec::new();
        values.clear();
        for &latent in &self.slice[rows] {
            self.source.rows(matrix, latent as usize..latent as usize + 1, &mut row);
            values.extend_from_slice(&row);
        }
    }

    /// A header that tells what a file is, should it ever lie alone.
    fn header(&self, part: Option<(Tier, Matrix)>, first_row: u32, tensors: &[Described]) -> Vec<u8> {
        let first_row = first_row.to_string();
        let mut metadata = vec![("hook_point", self.source.hook_point.as_str()), ("source_sha256", self.sha256)];
        if let Some((tier, matrix)) = part {
            metadata.extend([("tier", tier.as_str()), ("matrix", matrix.as_str()), ("first_row", first_row.as_str())]);
        }
        header(&metadata, tensors)
    }
}

/// The tensors of an encoder's shard, as [`api::shards`] has them; a decoder's has them the other way round, so that its
/// rows can be used as they stream past.
fn described(tier: Tier, d_model: u32, rows: u32) -> Vec<Described> {
    let rows = u64::from(rows);
    let width = u64::from(tier.width(d_model));
    let (dtype, columns) = match tier {
        Tier::F16 | Tier::Slice => ("F16", width),
        Tier::Int8 => ("I8", width),
        Tier::Int4 => ("U8", width / 2),
    };
    let weight = Described { name: "weight", dtype, shape: vec![rows, columns], bytes: rows * tier.row_bytes(d_model) };
    let scale = |dtype, shape| Described { name: "scale", dtype, shape, bytes: rows * scale_bytes(tier, d_model) };
    match tier {
        Tier::F16 => vec![weight],
        Tier::Int8 => vec![weight, scale("F32", vec![rows])],
        Tier::Int4 => vec![weight, scale("F16", vec![rows, width / u64::from(INT4_GROUP)])],
        Tier::Slice => {
            vec![weight, Described { name: "latents", dtype: "I32", shape: vec![rows], bytes: 4 * rows }]
        }
    }
}

fn le_bytes<T: Copy>(values: &[T], bytes: impl Fn(T) -> [u8; 4]) -> Vec<u8> {
    values.iter().flat_map(|value| bytes(*value)).collect()
}
