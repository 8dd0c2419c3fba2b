//! Artefact files → Neuronpedia's rows, one batch of features after the other.

use super::{
    super::{Artefacts, Explanations, Report, check_latent, folder::Staging, images, jsonl::LineWriter, rows_of},
    ACTIVATIONS, BATCH, EXPLANATIONS, FEATURES, PICTURE_ACTIVATIONS, SCORES,
    rows::{self, Details, Index, Neuron},
};
use crate::files::{self, ExampleRow, FileError, TextRow, names};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// Writes the rows of an artefact folder. `creator` is the user of a Neuronpedia who owns them; its tables want one.
///
/// # Errors
/// When a file is missing or damaged, or the output cannot be written.
pub fn export(folder: &Path, more: &Explanations, creator: Option<&str>, out: &Path) -> Result<Report, FileError> {
    let artefacts = Artefacts::open(folder)?;
    let entries = [FEATURES, ACTIVATIONS, EXPLANATIONS, SCORES, PICTURE_ACTIVATIONS, images::FOLDER, names::SOURCE];
    let staging = Staging::new(out, &entries)?;
    let mut report = Report::default();
    let mut writer = Writer { artefacts: &artefacts, creator, staging: &staging, report: &mut report };
    writer.features(more)?;
    writer.texts()?;
    writer.examples()?;
    report.pictures = images::export(&artefacts.path(names::PICTURES), &staging.at(images::FOLDER))?.len() as u64;
    files::write_source(&staging.at(names::SOURCE), &artefacts.source)?;
    staging.finish()?;
    report.note("Neuronpedia has no meanAct, fracPictures, co-firing features, categories, dates or sample pictures");
    report.note("Neuronpedia itself does not read explanation_scores, picture_activations and images");
    if creator.is_none() {
        report.note("creatorId and authorId are left out; a Neuronpedia wants them: name its user with --creator");
    }
    Ok(report)
}

struct Writer<'a> {
    artefacts: &'a Artefacts<'a>,
    creator: Option<&'a str>,
    staging: &'a Staging,
    report: &'a mut Report,
}

impl Writer<'_> {
    fn features(&mut self, more: &Explanations) -> Result<(), FileError> {
        let path = self.artefacts.path(names::FEATURES);
        let source = &self.artefacts.source;
        let creator = self.creator.map(str::to_owned);
        // `24-res-131k` is layer 24 of the set `res-131k`.
        let set = source.source_id.split_once('-').map(|(_, set)| set.to_owned());
        let mut features = Batches::new(self.staging.make(FEATURES)?);
        let mut explanations = Batches::new(self.staging.make(EXPLANATIONS)?);
        let mut scores = Batches::new(self.staging.make(SCORES)?);
        for row in self.artefacts.features(more)? {
            let feature = row?.feature;
            check_latent(&path, source, feature.index)?;
            let index = Index(feature.index);
            for explanation in feature.explanations {
                for (number, score) in explanation.scores.iter().enumerate() {
                    let details = Details {
                        baseline: score.baseline,
                        interval: score.interval,
                        samples: Some(score.samples).filter(|samples| *samples > 0),
                        effects: score.effects,
                        provenance: score.provenance.clone(),
                    };
                    let row = rows::Score {
                        id: format!("{}-score-{number}", explanation.id),
                        value: score.value,
                        explanation_id: explanation.id.clone(),
                        explanation_score_type_name: score.explanation_score_type_name.clone(),
                        explanation_score_model_name: score.explanation_score_model_name.clone(),
                        json_details: serde_json::to_string(&details)
                            .map_err(|error| FileError::corrupt(&path, &error))?,
                    };
                    scores.push(index, &row)?;
                }
                let row = rows::Explanation {
                    id: explanation.id,
                    model_id: feature.model_id.clone(),
                    layer: feature.layer.clone(),
                    index,
                    author_id: creator.clone(),
                    description: explanation.description,
                    type_name: explanation.type_name,
                    explanation_model_name: explanation.explanation_model_name,
                };
                explanations.push(index, &row)?;
                self.report.explanations += 1;
            }
            let row = Neuron {
                model_id: feature.model_id,
                layer: feature.layer,
                index,
                creator_id: creator.clone(),
                source_set_name: set.clone(),
                hook_name: Some(source.hook_point.clone()),
                max_act_approx: feature.max_act_approx,
                frac_nonzero: feature.frac_nonzero,
                freq_hist_data_bar_heights: feature.freq_hist_data_bar_heights,
                freq_hist_data_bar_values: feature.freq_hist_data_bar_values,
                pos_str: feature.pos_str,
                pos_values: feature.pos_values,
                neg_str: feature.neg_str,
                neg_values: feature.neg_values,
                topk_cos_sim_indices: feature.topk_cos_sim_indices,
                topk_cos_sim_values: feature.topk_cos_sim_values,
                umap_x: feature.umap_x,
                umap_y: feature.umap_y,
            };
            features.push(index, &row)?;
            self.report.features += 1;
        }
        features.finish()?;
        explanations.finish()?;
        scores.finish()
    }

    fn texts(&mut self) -> Result<(), FileError> {
        let path = self.artefacts.path(names::TEXTS);
        let source = &self.artefacts.source;
        let mut batches = Batches::new(self.staging.make(ACTIVATIONS)?);
        for row in rows_of::<TextRow>(&path)? {
            let TextRow { feature, rank, tokens, values } = row?;
            check_latent(&path, source, feature)?;
            let strongest = (0u32..).zip(&values).fold((0, f32::NEG_INFINITY), |best, (token, value)| {
                if *value > best.1 { (token, *value) } else { best }
            });
            let row = rows::Activation {
                id: format!("{}-{}-{feature}-text-{rank}", source.model_id, source.source_id),
                model_id: source.model_id.clone(),
                layer: source.source_id.clone(),
                index: Index(feature),
                creator_id: self.creator.map(str::to_owned),
                max_value: if values.is_empty() { 0.0 } else { strongest.1 },
                max_value_token_index: strongest.0,
                min_value: values.iter().copied().reduce(f32::min).unwrap_or(0.0),
                tokens,
                values,
            };
            batches.push(Index(feature), &row)?;
            self.report.texts += 1;
        }
        batches.finish()
    }

    fn examples(&mut self) -> Result<(), FileError> {
        let path = self.artefacts.path(names::EXAMPLES);
        let source = &self.artefacts.source;
        let mut batches = Batches::new(self.staging.make(PICTURE_ACTIVATIONS)?);
        for row in rows_of::<ExampleRow>(&path)? {
            let row = row?;
            check_latent(&path, source, row.feature)?;
            let index = Index(row.feature);
            let row = rows::PictureActivation {
                model_id: source.model_id.clone(),
                layer: source.source_id.clone(),
                index,
                kind: row.kind,
                rank: row.rank,
                image: rows::Image { id: row.picture, grid: source.grid },
                feature_acts_indices: row.indices,
                feature_acts_values: row.values,
                max_value: row.max_value,
                max_value_token_index: row.max_index,
                mean_value: row.mean_value,
                bin_min: row.bin_min,
                bin_max: row.bin_max,
            };
            batches.push(index, &row)?;
            self.report.examples += 1;
        }
        batches.finish()
    }
}

/// The files `batch-N.jsonl.gz` of a folder. Rows come by rising batches, as artefact files have them.
struct Batches {
    folder: PathBuf,
    open: Option<(u32, LineWriter)>,
}

impl Batches {
    fn new(folder: PathBuf) -> Self {
        Self { folder, open: None }
    }

    fn push(&mut self, index: Index, row: &impl Serialize) -> Result<(), FileError> {
        let batch = index.0 / BATCH;
        let current = self.open.as_ref().map(|(open, _)| *open);
        if current.is_some_and(|current| current > batch) {
            let reason = format!("feature {} comes after one of a later batch; features must rise", index.0);
            return Err(FileError::corrupt(&self.folder, &reason));
        }
        if current != Some(batch) {
            self.finish()?;
            let path = self.folder.join(format!("batch-{batch}.jsonl.gz"));
            self.open = Some((batch, LineWriter::create(path)?));
        }
        match &mut self.open {
            Some((_, writer)) => writer.push(row),
            None => Ok(()),
        }
    }

    fn finish(&mut self) -> Result<(), FileError> {
        self.open.take().map_or(Ok(()), |(_, writer)| writer.finish())
    }
}
