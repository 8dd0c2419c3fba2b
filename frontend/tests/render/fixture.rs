//! A small made-up source, served in process: one feature for every case a page has to show.

use api::{
    Activation, ActivationImage, ActivationKind, Activations, Category, ErrorCode, Explanation, Feature, FeatureList,
    FeatureQuery, FeatureSummary, Neighbour, Neighbours, Picture, PictureActivations, PictureList, Provenance, Score,
    Source, SteeringEffects, TextActivation,
};
use frontend::api::{Answer, Client, Endpoint, Pending, SourceKey, local_problem, write};
use serde::Serialize;

pub const GRID: [u32; 2] = [8, 8];
const LABELS: [(&str, Category); 8] = [
    ("dog", Category::Object),
    ("crying face", Category::Emotion),
    ("red", Category::Color),
    ("upper left", Category::Position),
    ("wheel", Category::Part),
    ("brick wall", Category::Texture),
    ("cat", Category::Object),
    ("happy", Category::Emotion),
];

pub struct FixtureClient;

fn known<T: Serialize>(key: &SourceKey, make: impl FnOnce() -> Answer<T>) -> Answer<String> {
    if *key == SourceKey::new("pocket", "3-res-3k") {
        return write(&make()?);
    }
    Err(local_problem(ErrorCode::NotFound, "No such source", format!("There is no {}/{}.", key.model, key.source)))
}

fn provenance() -> Provenance {
    Provenance {
        model: "pocket@1a2b3c4d5e6f".into(),
        sae_revision: "0f9e8d7c6b5a".into(),
        dtype: "f32".into(),
        prompt_hash: "aabbccddeeff".into(),
        image_set: "pocket-cache (3,200 pictures)".into(),
        date: "2026-11-22".into(),
    }
}

pub fn source() -> Source {
    Source {
        model_id: "pocket".into(),
        source_id: "3-res-3k".into(),
        layer: 3,
        hook_point: "model.layers.3".into(),
        latents: 3_072,
        d_model: 192,
        k: 32,
        grid: GRID,
        pictures: 3_200,
        tokens: 204_800,
        alive: 2_891,
        fvu: Some(0.183),
        explained: 1_204,
        provenance: provenance(),
        description: "A small model that looks at composed scenes.".into(),
    }
}

fn picture(number: u32) -> Picture {
    Picture {
        id: format!("sample-{number}"),
        url: format!("/pictures/sample-{number}.webp"),
        width: 192,
        height: 192,
        caption: format!("a dog beside a red ball, number {number}"),
        kind: "sample".into(),
        objects: Vec::new(),
        credit: "Noto Emoji, Apache-2.0".into(),
    }
}

/// A round spot of light around a patch that depends on the feature and the picture.
fn activation(feature: u32, number: u32) -> Activation {
    let (row, column) = ((2 + feature * 3 + number) % 6 + 1, (3 + feature * 5 + number * 2) % 6 + 1);
    let mut indices = Vec::new();
    let mut values = Vec::new();
    for patch in 0..64 {
        let distance =
            (((patch / 8) as f32 - row as f32).powi(2) + ((patch % 8) as f32 - column as f32).powi(2)).sqrt();
        if distance < 2.6 {
            indices.push(patch);
            values.push((3.4 - number as f32 * 0.09) * (1.0 - distance / 2.8));
        }
    }
    Activation {
        image: ActivationImage { picture: picture(number % 6), grid: GRID },
        max_value: values.iter().copied().fold(0.0, f32::max),
        mean_value: values.iter().sum::<f32>() / 64.0,
        max_value_token_index: row * 8 + column,
        feature_acts_indices: indices,
        feature_acts_values: values,
        bin_min: 0.0,
        bin_max: 0.0,
    }
}

/// Feature 9 is dead, feature 8 has no label.
pub fn summary(index: u32) -> FeatureSummary {
    let dead = index == 9;
    let known = LABELS.get(index as usize);
    let score = Score {
        value: 0.72 - index as f32 * 0.05,
        baseline: 0.05,
        explanation_score_type_name: "iou".into(),
        explanation_score_model_name: "dissect (exact masks)".into(),
        ..Score::default()
    };
    FeatureSummary {
        model_id: "pocket".into(),
        layer: "3-res-3k".into(),
        index,
        label: known.map(|(label, _)| (*label).to_owned()),
        category: known.map_or(Category::Unknown, |(_, category)| *category),
        score: known.map(|_| score),
        max_act_approx: if dead { 0.0 } else { 3.4 },
        frac_nonzero: if dead { 0.0 } else { 0.0042 },
        dead,
        thumbnail: (!dead).then(|| activation(index, index)),
    }
}

fn feature(index: u32) -> Answer<Feature> {
    if index >= source().latents {
        return Err(local_problem(
            ErrorCode::NotFound,
            "No such feature",
            format!("There are 3,072 features, no {index}."),
        ));
    }
    let summary = summary(index);
    let pmi = Score {
        value: 2.4,
        baseline: 0.3,
        explanation_score_type_name: "pmi".into(),
        explanation_score_model_name: "caption words".into(),
        ..Score::default()
    };
    let computed = Score {
        value: 0.61,
        baseline: 0.08,
        explanation_score_type_name: "iou".into(),
        explanation_score_model_name: "a grounder".into(),
        interval: Some([0.52, 0.7]),
        samples: 20,
        provenance: "2026-11-23, seed 0, pocket-cache (3,200 pictures)".into(),
        ..Score::default()
    };
    let steering = Score {
        value: 0.4,
        baseline: 0.05,
        explanation_score_type_name: "steering".into(),
        explanation_score_model_name: "a judge".into(),
        interval: Some([0.2, 0.6]),
        samples: 5,
        effects: Some(SteeringEffects { none: 1, mentions: 3, reasons: 1, unrelated: 0 }),
        provenance: "2026-11-23, seed 0, pocket-cache (3,200 pictures)".into(),
    };
    let explanations = summary.label.iter().map(|label| Explanation {
        id: format!("e{index}"),
        description: label.clone(),
        type_name: "dissect".into(),
        explanation_model_name: "dissect (exact masks)".into(),
        category: summary.category,
        scores: summary.score.iter().cloned().chain([pmi.clone(), computed.clone(), steering.clone()]).collect(),
        created_at: "2026-11-22".into(),
        ..Explanation::default()
    });
    let bars = if summary.dead { 0 } else { 24 };
    Ok(Feature {
        model_id: summary.model_id.clone(),
        layer: summary.layer.clone(),
        index,
        max_act_approx: summary.max_act_approx,
        mean_act: 0.81,
        frac_nonzero: summary.frac_nonzero,
        frac_pictures: 0.113,
        freq_hist_data_bar_heights: (0..bars).map(|bar| 900.0 * (-(bar as f32) / 5.0).exp()).collect(),
        freq_hist_data_bar_values: (0..=bars).map(|bar| bar as f32 * 0.142).collect(),
        pos_str: ["Ġdog", "Ġpuppy", "Ġbark", "Ġtail", "dogs", "Ġpet"].map(String::from).to_vec(),
        pos_values: vec![1.92, 1.41, 1.12, 0.83, 0.71, 0.62],
        neg_str: ["Ġcat", "Ġsky", "Ġblue", "Ġwater", "Ġmoon", "Ġsea"].map(String::from).to_vec(),
        neg_values: vec![-0.91, -0.62, -0.51, -0.42, -0.38, -0.31],
        topk_cos_sim_indices: vec![1, 2],
        topk_cos_sim_values: vec![0.5, 0.4],
        umap_x: None,
        umap_y: None,
        explanations: explanations.collect(),
        dead: summary.dead,
        provenance: provenance(),
    })
}

impl Client for FixtureClient {
    fn get(&self, endpoint: Endpoint) -> Pending {
        Box::pin(async move {
            // Like a database: not ready at once.
            tokio::task::yield_now().await;
            match endpoint {
                Endpoint::Sources => write(&[source()]),
                Endpoint::Source(key) => known(&key, || Ok(source())),
                Endpoint::Features(key, query) => features(&key, &query),
                Endpoint::Feature(key, index) => known(&key, || feature(index)),
                Endpoint::Activations { key, index, kind, limit } => activations(&key, index, kind, limit),
                Endpoint::Neighbours(key, index) => neighbours(&key, index),
                Endpoint::Pictures { key, per_page, .. } => pictures(&key, per_page),
                Endpoint::PictureActivations(key, id) => picture_activations(&key, &id),
                Endpoint::Random(key) => known(&key, || Ok(summary(3))),
                Endpoint::Jobs(query) => write(&crate::queue::jobs(&query)),
            }
        })
    }
}

fn features(key: &SourceKey, query: &FeatureQuery) -> Answer<String> {
    known(key, || {
        let fits = |feature: &FeatureSummary| {
            feature.label.as_ref().map_or(query.q.is_empty(), |label| label.contains(&query.q))
                && query.category.is_none_or(|category| category == feature.category)
                && query.dead.is_none_or(|dead| dead == feature.dead)
        };
        let features: Vec<_> = (0..48).map(summary).filter(fits).take(query.per_page.max(1) as usize).collect();
        let everything = FeatureQuery { per_page: query.per_page, page: query.page, ..FeatureQuery::default() };
        let total = if *query == everything { 3_072 } else { features.len() as u32 };
        Ok(FeatureList { features, total, page: query.page, per_page: query.per_page })
    })
}

fn activations(key: &SourceKey, index: u32, kind: ActivationKind, limit: u32) -> Answer<String> {
    let dead = summary(index).dead;
    let text = TextActivation {
        tokens: ["ĠAlice", "Ġsees", "Ġa", "Ġdog", "Ġin", "Ġthe", "Ġpark", "."].map(String::from).to_vec(),
        values: vec![0.0, 0.2, 0.4, 2.9, 0.0, 0.0, 0.7, 0.0],
        max_value: 2.9,
        max_value_token_index: 3,
    };
    known(key, || {
        Ok(Activations {
            kind,
            activations: if dead { Vec::new() } else { (0..limit).map(|number| activation(index, number)).collect() },
            texts: if dead { Vec::new() } else { vec![text.clone(), text] },
            total: if dead { 0 } else { 60 },
        })
    })
}

fn neighbours(key: &SourceKey, index: u32) -> Answer<String> {
    let near = |feature: u32, value| Neighbour { feature: summary(feature), value };
    let list: Vec<_> = (0..5).map(|step| near((index + step + 1) % 8, 0.62 - step as f32 * 0.08)).collect();
    known(key, || Ok(Neighbours { by_decoder: list.clone(), by_firing: list }))
}

fn pictures(key: &SourceKey, per_page: u32) -> Answer<String> {
    known(key, || Ok(PictureList { pictures: (0..per_page.min(6)).map(picture).collect(), total: 6 }))
}

fn picture_activations(key: &SourceKey, id: &str) -> Answer<String> {
    let number = id.trim_start_matches("sample-").parse().unwrap_or(0);
    let features: Vec<FeatureSummary> =
        (0..8).map(|index| FeatureSummary { thumbnail: None, ..summary(index) }).collect();
    let maps: Vec<Vec<f32>> = (0..8).map(|index| frontend::heat::dense(&activation(index, number))).collect();
    let (mut top_indices, mut top_acts) = (Vec::new(), Vec::new());
    for patch in 0..64 {
        let mut row: Vec<(u32, f32)> = (0..).zip(maps.iter().map(|map| map[patch])).collect();
        row.sort_by(|a, b| b.1.total_cmp(&a.1));
        for (index, act) in row.into_iter().take(4) {
            top_indices.push(index);
            top_acts.push(act);
        }
    }
    known(key, || {
        Ok(PictureActivations { picture: picture(number), grid: GRID, k: 4, top_indices, top_acts, features })
    })
}
