//! `features.parquet`: one row per latent, the wire type [`api::Feature`] spread over columns.

use super::{
    column::{Row, bools, f32_lists, f32s, json, optional_f32s, same_length, string_lists, strings, u32_lists, u32s},
    table::{self, FileError, RowWriter, Table},
};
use arrow_array::ArrayRef;
use std::{fs::File, path::Path};

/// A feature and the features that fire on the same patches.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct FeatureRow {
    pub feature: api::Feature,
    /// `(index, Jaccard overlap of the patches where both fire)`, highest first.
    pub firing: Vec<(u32, f32)>,
}

impl Table for FeatureRow {
    const NULLABLE: &'static [&'static str] = &["umap_x", "umap_y"];

    fn columns(rows: &[Self]) -> Result<Vec<(&'static str, ArrayRef)>, serde_json::Error> {
        let features = || rows.iter().map(|row| &row.feature);
        let firing: Vec<(Vec<u32>, Vec<f32>)> = rows.iter().map(|row| row.firing.iter().copied().unzip()).collect();
        Ok(vec![
            ("modelId", strings(features().map(|f| f.model_id.as_str()))),
            ("layer", strings(features().map(|f| f.layer.as_str()))),
            ("index", u32s(features().map(|f| f.index))),
            ("maxActApprox", f32s(features().map(|f| f.max_act_approx))),
            ("meanAct", f32s(features().map(|f| f.mean_act))),
            ("frac_nonzero", f32s(features().map(|f| f.frac_nonzero))),
            ("fracPictures", f32s(features().map(|f| f.frac_pictures))),
            ("freq_hist_data_bar_heights", f32_lists(features().map(|f| f.freq_hist_data_bar_heights.as_slice()))),
            ("freq_hist_data_bar_values", f32_lists(features().map(|f| f.freq_hist_data_bar_values.as_slice()))),
            ("pos_str", string_lists(features().map(|f| f.pos_str.as_slice()))),
            ("pos_values", f32_lists(features().map(|f| f.pos_values.as_slice()))),
            ("neg_str", string_lists(features().map(|f| f.neg_str.as_slice()))),
            ("neg_values", f32_lists(features().map(|f| f.neg_values.as_slice()))),
            ("topkCosSimIndices", u32_lists(features().map(|f| f.topk_cos_sim_indices.as_slice()))),
            ("topkCosSimValues", f32_lists(features().map(|f| f.topk_cos_sim_values.as_slice()))),
            ("umap_x", optional_f32s(features().map(|f| f.umap_x))),
            ("umap_y", optional_f32s(features().map(|f| f.umap_y))),
            ("explanations", json(features().map(|f| &f.explanations))?),
            ("dead", bools(features().map(|f| f.dead))),
            ("provenance", json(features().map(|f| &f.provenance))?),
            ("firing_indices", u32_lists(firing.iter().map(|(indices, _)| indices.as_slice()))),
            ("firing_values", f32_lists(firing.iter().map(|(_, values)| values.as_slice()))),
        ])
    }

    fn from_row(row: &Row<'_>) -> Result<Self, String> {
        let feature = api::Feature {
            model_id: row.string("modelId")?,
            layer: row.string("layer")?,
            index: row.u32("index")?,
            max_act_approx: row.f32("maxActApprox")?,
            mean_act: row.f32("meanAct")?,
            frac_nonzero: row.f32("frac_nonzero")?,
            frac_pictures: row.f32("fracPictures")?,
            freq_hist_data_bar_heights: row.f32s("freq_hist_data_bar_heights")?,
            freq_hist_data_bar_values: row.f32s("freq_hist_data_bar_values")?,
            pos_str: row.strings("pos_str")?,
            pos_values: row.f32s("pos_values")?,
            neg_str: row.strings("neg_str")?,
            neg_values: row.f32s("neg_values")?,
            topk_cos_sim_indices: row.u32s("topkCosSimIndices")?,
            topk_cos_sim_values: row.f32s("topkCosSimValues")?,
            umap_x: row.optional_f32("umap_x")?,
            umap_y: row.optional_f32("umap_y")?,
            explanations: row.json("explanations")?,
            dead: row.bool("dead")?,
            provenance: row.json("provenance")?,
        };
        let (indices, values) = (row.u32s("firing_indices")?, row.f32s("firing_values")?);
        same_length(["firing_indices", "firing_values"], [indices.len(), values.len()])?;
        Ok(Self { feature, firing: indices.into_iter().zip(values).collect() })
    }
}

/// Writes `features.parquet` row by row.
pub struct FeatureWriter<'f>(RowWriter<'f, FeatureRow>);

impl<'f> FeatureWriter<'f> {
    /// `path` is what errors name.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn new(path: &Path, file: &'f mut File) -> Result<Self, FileError> {
        RowWriter::new(path, file).map(Self)
    }

    /// # Errors
    /// When the file cannot be written.
    pub fn push(&mut self, row: FeatureRow) -> Result<(), FileError> {
        self.0.push(row)
    }

    /// # Errors
    /// When the file cannot be written.
    pub fn finish(self) -> Result<(), FileError> {
        self.0.finish()
    }
}

/// Writes `features.parquet`.
///
/// # Errors
/// When the file cannot be written.
pub fn write_features(path: &Path, rows: &[FeatureRow]) -> Result<(), FileError> {
    table::write(path, rows)
}

/// Reads `features.parquet`.
///
/// # Errors
/// When the file is missing, damaged or of another format.
pub fn read_features(path: &Path) -> Result<Vec<FeatureRow>, FileError> {
    table::read(path)
}
