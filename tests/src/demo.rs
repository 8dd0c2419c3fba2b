//! What the server says about its demo, as JSON: journeys choose their features and pictures from it, and compare
//! what the page shows with it.

use crate::http;
use anyhow::{Context, ensure};
use api::{
    Activations, Feature, FeatureList, FeatureSummary, Neighbours, Picture, PictureActivations, PictureList,
    PictureObject, Source,
};
use serde::de::DeserializeOwned;
use std::{collections::BTreeMap, net::SocketAddr};

/// How many of a picture's features count as its strongest ones.
const STRONGEST: usize = 10;

/// The server's only source, and how to ask about it.
pub struct Demo {
    address: SocketAddr,
    pub source: Source,
}

/// A sample picture, one of its objects, and a feature that is named after the object.
#[derive(Debug)]
pub struct NamedObject {
    pub picture: Picture,
    pub object: PictureObject,
    pub feature: FeatureSummary,
}

impl Demo {
    pub fn new(address: SocketAddr) -> anyhow::Result<Self> {
        let sources: Vec<Source> = http::get(address, "/api/v1/sources")?.json()?;
        let source = sources.into_iter().next().context("the server has no source")?;
        Ok(Self { address, source })
    }

    /// Path of one of the source's pages, e.g. `page("/analyze")`.
    pub fn page(&self, rest: &str) -> String {
        format!("/{}/{}{rest}", self.source.model_id, self.source.source_id)
    }

    /// Any path of the server.
    pub fn get(&self, path: &str) -> anyhow::Result<http::Response> {
        http::get(self.address, path)
    }

    fn ask<T: DeserializeOwned>(&self, rest: &str) -> anyhow::Result<T> {
        self.get(&format!("/api/v1{}", self.page(rest)))?.json().with_context(|| format!("GET …{rest}"))
    }

    /// Feature list with this query, e.g. `sort=score&perPage=5`.
    pub fn features(&self, query: &str) -> anyhow::Result<FeatureList> {
        self.ask(&format!("/features?{query}"))
    }

    pub fn feature(&self, index: u32) -> anyhow::Result<Feature> {
        self.ask(&format!("/features/{index}"))
    }

    pub fn activations(&self, index: u32, query: &str) -> anyhow::Result<Activations> {
        self.ask(&format!("/features/{index}/activations?{query}"))
    }

    /// Features near another.
    pub fn neighbours(&self, index: u32) -> anyhow::Result<Neighbours> {
        self.ask(&format!("/features/{index}/neighbours"))
    }

    /// The sample pictures that the analyze page offers.
    pub fn samples(&self) -> anyhow::Result<Vec<Picture>> {
        let list: PictureList = self.ask("/pictures?kind=sample&perPage=24")?;
        ensure!(!list.pictures.is_empty(), "the demo has no sample pictures");
        Ok(list.pictures)
    }

    pub fn picture_activations(&self, id: &str) -> anyhow::Result<PictureActivations> {
        self.ask(&format!("/pictures/{id}/activations"))
    }

    /// The best-scored feature with a label.
    pub fn best_feature(&self) -> anyhow::Result<FeatureSummary> {
        let list = self.features("sort=score&dead=false&perPage=1")?;
        let best = list.features.into_iter().next().context("no living feature")?;
        ensure!(best.label.is_some(), "the best-scored feature has no label");
        Ok(best)
    }

    /// Among all sample pictures, the object that one of the picture's strongest features, named after it, covers
    /// best: by the precomputed activations and the scene's own rectangles.
    pub fn named_object(&self) -> anyhow::Result<NamedObject> {
        let mut best: Option<(f32, NamedObject)> = None;
        for sample in self.samples()? {
            let acts = self.picture_activations(&sample.id)?;
            for (share, found) in named_objects(&acts) {
                if best.as_ref().is_none_or(|(most, _)| share > *most) {
                    best = Some((share, found));
                }
            }
        }
        let (_, found) = best.with_context(|| {
            format!("no sample picture has an object whose feature is among its {STRONGEST} strongest")
        })?;
        Ok(found)
    }
}

/// Every object with a feature of its name among the picture's strongest, and the share of the feature's light that
/// falls on it.
fn named_objects(acts: &PictureActivations) -> Vec<(f32, NamedObject)> {
    let maps = maps(acts);
    let strongest = strongest(&maps);
    let mut found = Vec::new();
    for object in &acts.picture.objects {
        for feature in acts.features.iter().filter(|feature| names(feature, object)) {
            if !strongest.iter().take(STRONGEST).any(|index| *index == feature.index) {
                continue;
            }
            let share = share_on(&maps[&feature.index], acts.grid, &acts.picture, object);
            let named = NamedObject { picture: acts.picture.clone(), object: object.clone(), feature: feature.clone() };
            found.push((share, named));
        }
    }
    found
}

/// Features by their strongest patch, strongest first, ties by lower index.
fn strongest(maps: &BTreeMap<u32, Vec<f32>>) -> Vec<u32> {
    let mut order: Vec<u32> = maps.keys().copied().collect();
    order.sort_by(|a, b| maximum(&maps[b]).total_cmp(&maximum(&maps[a])));
    order
}

/// Labels of emotions end in `face`; concepts are the emotion alone.
fn names(feature: &FeatureSummary, object: &PictureObject) -> bool {
    let label = feature.label.as_deref().map(str::to_lowercase);
    label.is_some_and(|label| label.strip_suffix(" face").unwrap_or(&label) == object.concept.to_lowercase())
}

/// Patch map of every feature on the picture: `[rows · columns]`.
fn maps(acts: &PictureActivations) -> BTreeMap<u32, Vec<f32>> {
    let patches = acts.grid[0] as usize * acts.grid[1] as usize;
    let mut maps: BTreeMap<u32, Vec<f32>> = BTreeMap::new();
    for (position, (index, act)) in acts.top_indices.iter().zip(&acts.top_acts).enumerate() {
        let patch = position / (acts.k as usize).max(1);
        if patch < patches && *act > 0.0 {
            maps.entry(*index).or_insert_with(|| vec![0.0; patches])[patch] = *act;
        }
    }
    maps
}

fn maximum(map: &[f32]) -> f32 {
    map.iter().copied().fold(0.0, f32::max)
}

/// Share of a map's sum on patches that touch the object's rectangle. `map` is `[rows · columns]`, row-major.
pub fn share_on(map: &[f32], grid: [u32; 2], picture: &Picture, object: &PictureObject) -> f32 {
    let [rows, columns] = grid.map(|side| side as usize);
    let height = picture.height as f32 / rows as f32;
    let width = picture.width as f32 / columns as f32;
    let rect = object.rect;
    let mut inside = 0.0;
    for (patch, act) in map.iter().enumerate() {
        let (y, x) = ((patch / columns) as f32 * height, (patch % columns) as f32 * width);
        let touches_x = x < rect.x + rect.width && x + width > rect.x;
        let touches_y = y < rect.y + rect.height && y + height > rect.y;
        if touches_x && touches_y {
            inside += act;
        }
    }
    inside / map.iter().sum::<f32>().max(f32::MIN_POSITIVE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::Rect;

    fn scene() -> PictureActivations {
        let object = |concept: &str, x: f32| PictureObject {
            concept: concept.into(),
            rect: Rect { x, y: 0.0, width: 10.0, height: 10.0 },
            ..PictureObject::default()
        };
        let feature =
            |index, label: &str| FeatureSummary { index, label: Some(label.into()), ..FeatureSummary::default() };
        PictureActivations {
            picture: Picture {
                width: 20,
                height: 20,
                objects: vec![object("cat", 0.0), object("dog", 10.0)],
                ..Picture::default()
            },
            grid: [2, 2],
            k: 2,
            // Patch 0: cat; patch 1: dog and a little cat; patches 2 and 3: dog.
            top_indices: vec![1, 2, 2, 1, 2, 1, 2, 1],
            top_acts: vec![3.0, 0.0, 2.0, 1.0, 2.0, 0.0, 4.0, 0.0],
            features: vec![feature(1, "Cat"), feature(2, "dog")],
        }
    }

    #[test]
    fn features_are_matched_with_the_objects_they_are_named_after() {
        let found = named_objects(&scene());
        let shares: Vec<(u32, f32)> = found.iter().map(|(share, named)| (named.feature.index, *share)).collect();
        // Cat: 3 of 4 on the object; dog: 2 of 8.
        assert_eq!(shares, [(1, 0.75), (2, 0.25)]);
        assert_eq!(found[0].1.object.concept, "cat");
        assert_eq!(strongest(&maps(&scene())), [2, 1]);
    }

    #[test]
    fn a_face_is_named_after_its_feeling() {
        let face = PictureObject { concept: "in love".into(), ..PictureObject::default() };
        let labelled = |label: &str| FeatureSummary { label: Some(label.into()), ..FeatureSummary::default() };
        assert!(names(&labelled("in love face"), &face));
        assert!(!names(&labelled("sad face"), &face) && !names(&labelled("faces"), &face));
    }

    #[test]
    fn the_share_counts_patches_that_touch_the_object() {
        let acts = scene();
        let mut object = acts.picture.objects[0].clone();
        assert_eq!(share_on(&[1.0; 4], acts.grid, &acts.picture, &object), 0.25);
        object.rect.width = 10.5;
        assert_eq!(share_on(&[1.0; 4], acts.grid, &acts.picture, &object), 0.5);
        assert_eq!(share_on(&[0.0; 4], acts.grid, &acts.picture, &object), 0.0);
    }
}
