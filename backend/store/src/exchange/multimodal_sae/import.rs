//! What the paper's scripts write → artefact files.

use super::{
    super::{
        Report,
        folder::{Staging, sorted_files},
        given::{note_unknown, read_given},
        images::{self, Decode},
        rows::RowFile,
    },
    ACTIVATIONS, EXPLANATIONS, LABELS,
    cache::CacheFile,
    feature_index,
};
use crate::files::{self, ExampleRow, FeatureRow, FileError, SampleRow, TextRow, names};
use api::{ActivationKind, Category};
use serde_json::{Map, Value};
use std::{
    collections::{BTreeMap, HashSet},
    fs,
    path::Path,
};

/// Examples by mean and by maximum that are kept of each feature.
const KEPT: usize = 10;
/// What the interpreter answers when it sees nothing in common.
const UNABLE: &str = "Unable to produce descriptions";

/// Reads a folder as [`super`] describes it. `given` is a `source.json`, if there is none in the folder.
///
/// # Errors
/// When a file is damaged; the file and the entry or the tensor's row are named. When nobody says what the format does
/// not.
pub fn import(from: &Path, given: Option<&Path>, decode: Decode<'_>, out: &Path) -> Result<Report, FileError> {
    let (mut source, unknown) = read_given(from, given)?;
    let staging = Staging::new(out, &names::IMPORTED)?;
    let mut report = Report::default();
    note_unknown(&unknown, &mut report.notes);
    let mut features = Features::default();
    read_explanations(from, &source, &mut features, &mut report)?;
    read_labels(&from.join(LABELS), &source, &mut features)?;
    let ids = images::import(&from.join(images::FOLDER), staging.path(), decode)?;
    report.pictures = ids.as_ref().map_or(0, |ids| ids.len() as u64);
    read_activations(from, &source, ids.as_deref(), &staging, &mut features, &mut report)?;
    source.explained = features.values().filter(|feature| !feature.explanations.is_empty()).count() as u32;
    let mut file = RowFile::create(staging.at(names::FEATURES))?;
    features.into_values().try_for_each(|feature| file.push(FeatureRow { feature, firing: Vec::new() }))?;
    report.features = file.finish()?;
    RowFile::<TextRow>::create(staging.at(names::TEXTS))?.finish()?;
    RowFile::<SampleRow>::create(staging.at(names::SAMPLES))?.finish()?;
    files::write_source(&staging.at(names::SOURCE), &source)?;
    staging.finish()?;
    report.note("densities, means, histograms, output tokens and neighbours are not in the format; zero is not known");
    report.note("features without explanation and activation are left out: whether they are dead is not known");
    Ok(report)
}

/// Features by index; they appear when something is said about them.
type Features = BTreeMap<u32, api::Feature>;

fn feature<'f>(features: &'f mut Features, source: &api::Source, index: u32) -> &'f mut api::Feature {
    features.entry(index).or_insert_with(|| api::Feature {
        model_id: source.model_id.clone(),
        layer: source.source_id.clone(),
        index,
        provenance: source.provenance.clone(),
        ..api::Feature::default()
    })
}

fn read_json(path: &Path) -> Result<Value, FileError> {
    let bytes = fs::read(path).map_err(|error| FileError::io(path, error))?;
    serde_json::from_slice(&bytes).map_err(|error| FileError::corrupt(path, &error))
}

/// The entries of an object whose values are texts, as far as they are of the source's hook point.
fn texts_of<'v>(
    path: &Path,
    entries: &'v Map<String, Value>,
    source: &api::Source,
) -> Result<Vec<(u32, &'v str)>, FileError> {
    let mut found = Vec::new();
    for (name, text) in entries {
        let Some(index) = feature_index(&source.hook_point, name) else { continue };
        let index = index.map_err(|reason| FileError::corrupt(path, &reason))?;
        if index >= source.latents {
            let reason = format!("{name}: an SAE with {} latents", source.latents);
            return Err(FileError::corrupt(path, &reason));
        }
        let text = text.as_str().ok_or_else(|| FileError::corrupt(path, &format!("{name} is not a text")))?;
        found.push((index, text));
    }
    Ok(found)
}

/// All files of the folder, as the scripts read it. A list of objects is what the interpreter wrote; one object, what
/// the refiner made of it.
fn read_explanations(
    from: &Path,
    source: &api::Source,
    features: &mut Features,
    report: &mut Report,
) -> Result<(), FileError> {
    let mut unable = 0;
    for path in sorted_files(&from.join(EXPLANATIONS), |name| name.ends_with(".json"))? {
        let json = read_json(&path)?;
        let objects: Vec<&Value> = match &json {
            Value::Array(entries) => entries.iter().collect(),
            other => vec![other],
        };
        for (number, object) in objects.into_iter().enumerate() {
            let Value::Object(entries) = object else {
                let reason =
                    format!("entry {number} is not an object such as {{\"model.layers.24_feature17\": \"…\"}}");
                return Err(FileError::corrupt(&path, &reason));
            };
            for (index, text) in texts_of(&path, entries, source)? {
                if text.contains(UNABLE) {
                    unable += 1;
                    continue;
                }
                let explanations = &mut feature(features, source, index).explanations;
                explanations.push(api::Explanation {
                    id: format!("multimodal-sae-{index}-{}", explanations.len()),
                    description: text.to_owned(),
                    type_name: "multimodal-sae".to_owned(),
                    ..api::Explanation::default()
                });
                report.explanations += 1;
            }
        }
    }
    report.note_count(unable, "features have no explanation: the interpreter was unable to produce one");
    Ok(())
}

/// Categories, as a model answered: the first of the words that is one.
fn read_labels(path: &Path, source: &api::Source, features: &mut Features) -> Result<(), FileError> {
    if !path.is_file() {
        return Ok(());
    }
    let Value::Object(entries) = read_json(path)? else {
        return Err(FileError::corrupt(path, &"it is not an object"));
    };
    for (index, text) in texts_of(path, &entries, source)? {
        let text = text.to_ascii_lowercase();
        let mut words = text.split(|letter: char| !letter.is_ascii_alphabetic());
        let category = words.find_map(|word| match word {
            "colour" => Some(Category::Color),
            word => Category::from_name(word),
        });
        let known = features.get_mut(&index).into_iter().flat_map(|feature| &mut feature.explanations);
        known.for_each(|explanation| explanation.category = category.unwrap_or_default());
    }
    Ok(())
}

fn read_activations(
    from: &Path,
    source: &api::Source,
    ids: Option<&[String]>,
    staging: &Staging,
    features: &mut Features,
    report: &mut Report,
) -> Result<(), FileError> {
    let mut file = RowFile::create(staging.at(names::EXAMPLES))?;
    let folder = from.join(ACTIVATIONS).join(&source.hook_point);
    let (mut tiles, mut done) = (0, HashSet::new());
    for path in sorted_files(&folder, |name| name.ends_with(".safetensors"))? {
        let best = read_cache(&path, source, ids, &mut tiles)?;
        if let Some(index) = best.keys().find(|index| !done.insert(**index)) {
            return Err(FileError::corrupt(&path, &format!("feature {index} is in an earlier file as well")));
        }
        for (index, best) in best {
            let feature = feature(features, source, index);
            feature.max_act_approx = best.by_max.first().map_or(0.0, |seen| seen.max);
            if let Some(ids) = ids {
                best.rows(index, ids).into_iter().try_for_each(|row| file.push(row))?;
            }
        }
    }
    if ids.is_none() && !done.is_empty() {
        report.note(format!(
            "there is no folder {}, so that activations have no pictures to be shown on",
            images::FOLDER
        ));
    }
    report.note_count(tiles, "activations on tokens after the base picture's are passed over");
    report.examples = file.finish()?;
    Ok(())
}

/// The best pictures of every feature in one file. Rows of a picture lie together, so that one picture and the best so
/// far are all that is in memory.
fn read_cache(
    path: &Path,
    source: &api::Source,
    ids: Option<&[String]>,
    tiles: &mut u64,
) -> Result<BTreeMap<u32, Best>, FileError> {
    let patches = source.grid[0] * source.grid[1];
    let mut file = CacheFile::open(path)?;
    let (mut best, mut current) = (BTreeMap::<u32, Best>::new(), BTreeMap::<u32, Vec<(u16, f32)>>::new());
    let (mut image, mut done) = (None, HashSet::new());
    while let Some(place) = file.next_place()? {
        if place.feature >= source.latents {
            let reason = format!("feature {} of an SAE with {} latents", place.feature, source.latents);
            return Err(file.wrong("locations", reason));
        }
        if let Some(ids) = ids.filter(|ids| place.image as usize >= ids.len()) {
            let reason = format!("picture {}, but {} has {}", place.image, images::FOLDER, ids.len());
            return Err(file.wrong("locations", reason));
        }
        if image != Some(place.image) {
            if !done.insert(place.image) {
                let reason = format!("picture {} comes again; its rows must lie together", place.image);
                return Err(file.wrong("locations", reason));
            }
            flush(image, &mut current, patches, &mut best);
            image = Some(place.image);
        }
        match u16::try_from(place.token).ok().filter(|token| u32::from(*token) < patches) {
            Some(patch) => current.entry(place.feature).or_default().push((patch, place.value)),
            None => *tiles += 1,
        }
    }
    flush(image, &mut current, patches, &mut best);
    Ok(best)
}

fn flush(
    image: Option<u32>,
    current: &mut BTreeMap<u32, Vec<(u16, f32)>>,
    patches: u32,
    best: &mut BTreeMap<u32, Best>,
) {
    let Some(image) = image else { return };
    for (feature, mut acts) in std::mem::take(current) {
        acts.sort_by_key(|(patch, _)| *patch);
        let sum: f64 = acts.iter().map(|(_, value)| f64::from(*value)).sum();
        let mut strongest = (0, 0.0);
        for (patch, value) in &acts {
            if *value > strongest.1 {
                strongest = (*patch, *value);
            }
        }
        let (max_index, max) = strongest;
        let mean = (sum / f64::from(patches)) as f32;
        best.entry(feature).or_default().offer(Seen { image, mean, max, max_index, acts });
    }
}

/// A feature on a picture.
#[derive(Debug, Clone)]
struct Seen {
    image: u32,
    mean: f32,
    max: f32,
    max_index: u16,
    acts: Vec<(u16, f32)>,
}

/// The best pictures of a feature, best first.
#[derive(Debug, Default)]
struct Best {
    by_mean: Vec<Seen>,
    by_max: Vec<Seen>,
}

impl Best {
    fn offer(&mut self, seen: Seen) {
        insert(&mut self.by_mean, &seen, |seen| seen.mean);
        insert(&mut self.by_max, &seen, |seen| seen.max);
    }

    fn rows(self, feature: u32, ids: &[String]) -> Vec<ExampleRow> {
        let row = |kind: ActivationKind, rank: usize, seen: Seen| {
            let (indices, values) = seen.acts.into_iter().unzip();
            ExampleRow {
                feature,
                kind,
                rank: rank as u32,
                picture: ids.get(seen.image as usize).cloned().unwrap_or_default(),
                indices,
                values,
                max_value: seen.max,
                max_index: u32::from(seen.max_index),
                mean_value: seen.mean,
                ..ExampleRow::default()
            }
        };
        let by_mean = self.by_mean.into_iter().enumerate().map(|(rank, seen)| row(ActivationKind::Mean, rank, seen));
        let by_max = self.by_max.into_iter().enumerate().map(|(rank, seen)| row(ActivationKind::Max, rank, seen));
        by_mean.chain(by_max).collect()
    }
}

/// Keeps a list sorted and short; of equals the earlier picture comes first.
fn insert(list: &mut Vec<Seen>, seen: &Seen, by: impl Fn(&Seen) -> f32) {
    let place = list.partition_point(|kept| by(kept) >= by(seen));
    if place < KEPT {
        list.insert(place, seen.clone());
        list.truncate(KEPT);
    }
}
