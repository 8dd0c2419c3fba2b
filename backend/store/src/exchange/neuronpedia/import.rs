//! Neuronpedia's rows → artefact files.

use super::{
    super::{
        Explanations, Report,
        folder::{Staging, sorted_files},
        given::{note_unknown, read_given},
        images::{self, Decode},
        jsonl::Lines,
        rows::RowFile,
    },
    ACTIVATIONS, FEATURES, PICTURE_ACTIVATIONS, SCORES,
    rows::{self, Details, Index, Neuron},
};
use crate::files::{self, ExampleRow, FeatureRow, FileError, SampleRow, TextRow, names};
use serde::de::DeserializeOwned;
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs,
    path::{Path, PathBuf},
};

/// Reads a folder of one source's exports. `given` is a `source.json`, if there is none in the folder.
///
/// # Errors
/// When a file is damaged or speaks of another source; the file and the line are named. When nobody says what the
/// format does not.
pub fn import(from: &Path, given: Option<&Path>, decode: Decode<'_>, out: &Path) -> Result<Report, FileError> {
    let (source, unknown) = read_given(from, given)?;
    let staging = Staging::new(out, &names::IMPORTED)?;
    let mut report = Report::default();
    note_unknown(&unknown, &mut report.notes);
    let mut reader = Reader { from, source, staging: &staging, report: &mut report };
    let explanations = reader.explanations()?;
    let living = reader.features(explanations)?;
    reader.texts()?;
    reader.examples(decode)?;
    let mut source = reader.source;
    // What is counted here need not be said.
    source.explained = living.explained;
    if living.alive > 0 {
        source.alive = living.alive;
    }
    RowFile::<SampleRow>::create(staging.at(names::SAMPLES))?.finish()?;
    files::write_source(&staging.at(names::SOURCE), &source)?;
    staging.finish()?;
    report.note("meanAct, fracPictures, co-firing features, categories, dates and samples are not in the format");
    Ok(report)
}

struct Reader<'a> {
    from: &'a Path,
    source: api::Source,
    staging: &'a Staging,
    report: &'a mut Report,
}

#[derive(Default)]
struct Living {
    alive: u32,
    explained: u32,
}

/// The batches of a folder, whether compressed or not.
fn batches(folder: &Path) -> Result<Vec<PathBuf>, FileError> {
    sorted_files(folder, |name| name.ends_with(".jsonl") || name.ends_with(".jsonl.gz"))
}

impl Reader<'_> {
    /// Calls `row` with every row of a folder's batches, and with its file to complain about the line.
    fn each<T: DeserializeOwned>(
        folder: &Path,
        mut row: impl FnMut(T, &Lines) -> Result<(), FileError>,
    ) -> Result<(), FileError> {
        for path in batches(folder)? {
            let mut lines = Lines::open(&path)?;
            while let Some(found) = lines.next_row::<T>()? {
                row(found, &lines)?;
            }
        }
        Ok(())
    }

    /// Explanations of all folders `explanations…`, with their scores.
    fn explanations(&mut self) -> Result<Explanations, FileError> {
        let mut scores: HashMap<String, Vec<api::Score>> = HashMap::new();
        let mut unscored = 0;
        Self::each(&self.from.join(SCORES), |score: rows::Score, _| {
            match serde_json::from_str::<Details>(&score.json_details) {
                Ok(details) => scores.entry(score.explanation_id).or_default().push(api::Score {
                    value: score.value,
                    baseline: details.baseline,
                    explanation_score_type_name: score.explanation_score_type_name,
                    explanation_score_model_name: score.explanation_score_model_name,
                    interval: details.interval,
                    samples: details.samples.unwrap_or_default(),
                    effects: details.effects,
                    provenance: details.provenance,
                }),
                Err(_) => unscored += 1,
            }
            Ok(())
        })?;
        self.report.note_count(unscored, "scores have no random baseline beside them and are left out");
        let mut found = Explanations::new();
        let source = &self.source;
        for folder in explanation_folders(self.from)? {
            Self::each(&folder, |row: rows::Explanation, lines| {
                check_row(source, &row.model_id, &row.layer, row.index, lines)?;
                found.entry(row.index.0).or_default().push(api::Explanation {
                    scores: scores.remove(&row.id).unwrap_or_default(),
                    id: row.id,
                    description: row.description,
                    type_name: row.type_name,
                    explanation_model_name: row.explanation_model_name,
                    ..api::Explanation::default()
                });
                Ok(())
            })?;
        }
        self.report.explanations = found.values().map(|explanations| explanations.len() as u64).sum();
        let lost: u64 = scores.values().map(|scores| scores.len() as u64).sum();
        self.report.note_count(lost, "scores are of explanations that are not here and are left out");
        Ok(found)
    }

    fn features(&mut self, mut explanations: Explanations) -> Result<Living, FileError> {
        let source = &self.source;
        let mut living = Living { explained: explanations.len() as u32, alive: 0 };
        let mut file = RowFile::<FeatureRow>::create(self.staging.at(names::FEATURES))?;
        let mut seen = HashSet::new();
        Self::each(&self.from.join(FEATURES), |row: Neuron, lines| {
            check_row(source, &row.model_id, &row.layer, row.index, lines)?;
            let Index(index) = row.index;
            if !seen.insert(index) {
                return Err(lines.wrong(format!("feature {index} occurs twice")));
            }
            for (names, lengths) in [
                ("pos_str and pos_values", [row.pos_str.len(), row.pos_values.len()]),
                ("neg_str and neg_values", [row.neg_str.len(), row.neg_values.len()]),
                (
                    "topkCosSimIndices and topkCosSimValues",
                    [row.topk_cos_sim_indices.len(), row.topk_cos_sim_values.len()],
                ),
            ] {
                if lengths[0] != lengths[1] {
                    let reason = format!("{names} have {} and {} items", lengths[0], lengths[1]);
                    return Err(lines.wrong(reason));
                }
            }
            // It never fired on Neuronpedia's texts.
            let dead = row.max_act_approx == 0.0;
            living.alive += u32::from(!dead);
            let feature = api::Feature {
                model_id: row.model_id,
                layer: row.layer,
                index,
                max_act_approx: row.max_act_approx,
                frac_nonzero: row.frac_nonzero,
                freq_hist_data_bar_heights: row.freq_hist_data_bar_heights,
                freq_hist_data_bar_values: row.freq_hist_data_bar_values,
                pos_str: row.pos_str,
                pos_values: row.pos_values,
                neg_str: row.neg_str,
                neg_values: row.neg_values,
                topk_cos_sim_indices: row.topk_cos_sim_indices,
                topk_cos_sim_values: row.topk_cos_sim_values,
                umap_x: row.umap_x,
                umap_y: row.umap_y,
                explanations: explanations.remove(&index).unwrap_or_default(),
                dead,
                provenance: source.provenance.clone(),
                ..api::Feature::default()
            };
            file.push(FeatureRow { feature, firing: Vec::new() })
        })?;
        let bare = explanations.len() as u64;
        for (index, explanations) in explanations {
            let feature = api::Feature {
                model_id: source.model_id.clone(),
                layer: source.source_id.clone(),
                index,
                explanations,
                provenance: source.provenance.clone(),
                ..api::Feature::default()
            };
            file.push(FeatureRow { feature, firing: Vec::new() })?;
        }
        self.report
            .note_count(bare, "features have an explanation only: their statistics are zero, which is not known");
        self.report.features = file.finish()?;
        Ok(living)
    }

    fn texts(&mut self) -> Result<(), FileError> {
        let source = &self.source;
        let mut file = RowFile::create(self.staging.at(names::TEXTS))?;
        let mut ranks: HashMap<u32, u32> = HashMap::new();
        for path in batches(&self.from.join(ACTIVATIONS))? {
            // A feature's activations come in any order; all of them are in one batch.
            let mut batch: BTreeMap<u32, Vec<rows::Activation>> = BTreeMap::new();
            let mut lines = Lines::open(&path)?;
            while let Some(row) = lines.next_row::<rows::Activation>()? {
                check_row(source, &row.model_id, &row.layer, row.index, &lines)?;
                if row.tokens.len() != row.values.len() {
                    let reason = format!("{} tokens with {} values", row.tokens.len(), row.values.len());
                    return Err(lines.wrong(reason));
                }
                batch.entry(row.index.0).or_default().push(row);
            }
            for (feature, mut rows) in batch {
                let strongest = |row: &rows::Activation| row.values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                rows.sort_by(|one, other| strongest(other).total_cmp(&strongest(one)));
                let next = ranks.entry(feature).or_default();
                for rows::Activation { tokens, values, .. } in rows {
                    file.push(TextRow { feature, rank: *next, tokens, values })?;
                    *next += 1;
                }
            }
        }
        self.report.texts = file.finish()?;
        Ok(())
    }

    fn examples(&mut self, decode: Decode<'_>) -> Result<(), FileError> {
        let source = &self.source;
        let ids = images::import(&self.from.join(images::FOLDER), self.staging.path(), decode)?;
        self.report.pictures = ids.as_ref().map_or(0, |ids| ids.len() as u64);
        let known: HashSet<String> = ids.unwrap_or_default().into_iter().collect();
        let mut file = RowFile::create(self.staging.at(names::EXAMPLES))?;
        let patches = source.grid[0] * source.grid[1];
        Self::each(&self.from.join(PICTURE_ACTIVATIONS), |row: rows::PictureActivation, lines| {
            check_row(source, &row.model_id, &row.layer, row.index, lines)?;
            let wrong = if row.feature_acts_indices.len() != row.feature_acts_values.len() {
                Some("featureActsIndices and featureActsValues differ in length".to_owned())
            } else if row.image.grid != source.grid {
                Some(format!("grid {:?}; that of source.json is {:?}", row.image.grid, source.grid))
            } else if let Some(patch) = row.feature_acts_indices.iter().find(|patch| u32::from(**patch) >= patches) {
                Some(format!("patch {patch} of a grid with {patches}"))
            } else if !known.contains(&row.image.id) {
                Some(format!("picture {} is not in {}", row.image.id, images::FOLDER))
            } else {
                None
            };
            if let Some(wrong) = wrong {
                return Err(lines.wrong(wrong));
            }
            file.push(ExampleRow {
                feature: row.index.0,
                kind: row.kind,
                rank: row.rank,
                picture: row.image.id,
                indices: row.feature_acts_indices,
                values: row.feature_acts_values,
                max_value: row.max_value,
                max_index: row.max_value_token_index,
                mean_value: row.mean_value,
                bin_min: row.bin_min,
                bin_max: row.bin_max,
            })
        })?;
        self.report.examples = file.finish()?;
        Ok(())
    }
}

/// Rows of two sources in one folder would be mixed up.
fn check_row(source: &api::Source, model: &str, layer: &str, index: Index, lines: &Lines) -> Result<(), FileError> {
    if [model, layer] != [source.model_id.as_str(), source.source_id.as_str()] {
        let expected = format!("{}/{}", source.model_id, source.source_id);
        return Err(lines.wrong(format!("a row of {model}/{layer}; source.json says {expected}")));
    }
    if index.0 >= source.latents {
        return Err(lines.wrong(format!("feature {} of an SAE with {} latents", index.0, source.latents)));
    }
    Ok(())
}

/// `explanations`, and those of other authors: `explanations-gpt-4o-mini` and the like.
fn explanation_folders(from: &Path) -> Result<Vec<PathBuf>, FileError> {
    let failed = |error| FileError::io(from, error);
    let mut found = Vec::new();
    for entry in fs::read_dir(from).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() && (name == super::EXPLANATIONS || name.starts_with("explanations-")) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}
