//! What tests share, here and in other crates: small artefacts, and a local server that stands for S3.

mod moto;

pub use moto::Moto;

use crate::files::{self, ExampleRow, FeatureRow, FileError, PictureRow, SampleRow, TextRow, names};
use api::{ActivationKind, Category, Explanation, Feature, Picture, Provenance, Score, Source};
use std::path::Path;

/// Labels of the first features; the others have none.
pub const LABELS: [(&str, Category); 6] = [
    ("red cat", Category::Object),
    ("happy face", Category::Emotion),
    ("blue sky", Category::Color),
    ("catalogue of stripes", Category::Texture),
    ("café table", Category::Object),
    ("left edge", Category::Position),
];

/// A set of artefact files in memory; change it, then [`Artifacts::write`] it.
#[derive(Debug, Clone, PartialEq)]
pub struct Artifacts {
    pub source: Source,
    pub features: Vec<FeatureRow>,
    pub examples: Vec<ExampleRow>,
    pub texts: Vec<TextRow>,
    pub pictures: Vec<PictureRow>,
    pub samples: Vec<SampleRow>,
}

/// A source with 12 latents on a 2×2 grid.
pub fn small_source() -> Source {
    Source {
        model_id: "tiny".into(),
        source_id: "1-res-12".into(),
        layer: 1,
        hook_point: "model.layers.1".into(),
        latents: 12,
        d_model: 8,
        k: 2,
        grid: [2, 2],
        pictures: 4,
        tokens: 16,
        alive: 11,
        provenance: Provenance { dtype: "f32".into(), date: "2025-01-01".into(), ..Provenance::default() },
        ..Source::default()
    }
}

impl Artifacts {
    /// Features 0–5 are labelled, with falling scores; the last one is dead. Every feature but the last has three
    /// examples by mean and one by maximum, and one text. `sample-0` is encoded; `webp` is every picture's content.
    pub fn new(source: Source, webp: &[u8]) -> Self {
        let latents = source.latents;
        let pictures: Vec<_> =
            ["sample-0", "scene-0", "scene-1", "photo-0"].iter().map(|id| picture(id, webp)).collect();
        let living = 0..latents.saturating_sub(1);
        let examples = living.clone().flat_map(|index| examples(&source, index, &pictures)).collect();
        let texts = living.map(text).collect();
        let samples = vec![sample(&source)];
        let features = (0..latents).map(|index| feature(&source, index)).collect();
        Self { source, features, examples, texts, pictures, samples }
    }

    /// Writes all files that the import reads.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn write(&self, folder: &Path) -> Result<(), FileError> {
        files::write_source(&folder.join(names::SOURCE), &self.source)?;
        files::write_features(&folder.join(names::FEATURES), &self.features)?;
        files::write_examples(&folder.join(names::EXAMPLES), &self.examples)?;
        files::write_texts(&folder.join(names::TEXTS), &self.texts)?;
        files::write_pictures(&folder.join(names::PICTURES), &self.pictures)?;
        files::write_samples(&folder.join(names::SAMPLES), &self.samples)
    }
}

fn feature(source: &Source, index: u32) -> FeatureRow {
    let explanations = LABELS.get(index as usize).map(|(label, category)| explanation(index, label, *category));
    let dead = index + 1 == source.latents;
    let feature = Feature {
        model_id: source.model_id.clone(),
        layer: source.source_id.clone(),
        index,
        max_act_approx: (index * 7 % source.latents) as f32 + 1.0,
        mean_act: 0.5,
        frac_nonzero: (index * 5 % source.latents) as f32 / source.latents as f32,
        frac_pictures: 0.5,
        pos_str: vec!["▁cat".into()],
        pos_values: vec![1.5],
        topk_cos_sim_indices: vec![(index + 1) % source.latents, (index + 2) % source.latents],
        topk_cos_sim_values: vec![0.9, 0.8],
        umap_x: (!dead).then_some(index as f32 * 0.5 - 1.0),
        umap_y: (!dead).then_some((index % 4) as f32),
        explanations: explanations.into_iter().collect(),
        dead,
        provenance: source.provenance.clone(),
        ..Feature::default()
    };
    FeatureRow { feature, firing: vec![((index + 3) % source.latents, 0.25)] }
}

fn explanation(index: u32, label: &str, category: Category) -> Explanation {
    let value = 0.9 - 0.1 * index as f32;
    let score = Score { value, baseline: 0.05, explanation_score_type_name: "iou".into(), ..Score::default() };
    Explanation {
        id: format!("dissect-{index}"),
        description: label.into(),
        type_name: "dissect".into(),
        category,
        scores: vec![score],
        ..Explanation::default()
    }
}

fn picture(id: &str, webp: &[u8]) -> PictureRow {
    let kind = id.split('-').next().unwrap_or_default().to_owned();
    let picture =
        Picture { id: id.into(), width: 32, height: 32, caption: format!("a {kind}"), kind, ..Picture::default() };
    PictureRow { picture, webp: webp.to_vec() }
}

fn examples(source: &Source, feature: u32, pictures: &[PictureRow]) -> Vec<ExampleRow> {
    let example = |kind, rank: u32, picture: &PictureRow| ExampleRow {
        feature,
        kind,
        rank,
        picture: picture.picture.id.clone(),
        indices: vec![0, (source.grid[0] * source.grid[1] - 1) as u16],
        values: vec![4.0 - rank as f32, 0.5],
        max_value: 4.0 - rank as f32,
        max_index: 0,
        mean_value: 1.0,
        ..ExampleRow::default()
    };
    let by_mean = (0..3).zip(pictures).map(|(rank, picture)| example(ActivationKind::Mean, rank, picture));
    let by_max = pictures.iter().take(1).map(|picture| example(ActivationKind::Max, 0, picture));
    by_mean.chain(by_max).collect()
}

fn text(feature: u32) -> TextRow {
    TextRow { feature, rank: 0, tokens: vec!["a".into(), "▁cat".into()], values: vec![0.0, 2.0] }
}

fn sample(source: &Source) -> SampleRow {
    let patches = source.grid[0] * source.grid[1];
    let cells = || (0..patches).flat_map(|patch| (0..source.k).map(move |rank| (patch, rank)));
    SampleRow {
        picture: "sample-0".into(),
        k: source.k,
        grid: source.grid,
        top_indices: cells().map(|(patch, rank)| (patch + rank) % source.latents).collect(),
        top_acts: cells().map(|(_, rank)| 3.0 / (rank + 1) as f32).collect(),
    }
}
