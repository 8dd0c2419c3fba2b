//! Artefact files → what the paper's scripts read.

use super::{
    super::{Artefacts, Explanations, Report, check_latent, folder::Staging, images, rows_of},
    ACTIVATIONS, EXPLANATIONS, FILTERS, LABELS,
    cache::{self, Place, splits},
    feature_name,
};
use crate::files::{self, ExampleRow, FileError, names};
use serde_json::{Map, Value, json};
use std::{
    collections::{BTreeMap, HashMap},
    fs,
    iter::Peekable,
    path::{Component, Path},
};

/// Writes an artefact folder as the paper's scripts have it.
///
/// # Errors
/// When a file is missing or damaged, or the output cannot be written.
pub fn export(folder: &Path, more: &Explanations, out: &Path) -> Result<Report, FileError> {
    let artefacts = Artefacts::open(folder)?;
    let hook_point = &artefacts.source.hook_point;
    // It becomes a folder's name.
    if !Path::new(hook_point).components().eq([Component::Normal(hook_point.as_ref())]) {
        let reason = format!("the hook point {hook_point:?} is no module's name");
        return Err(FileError::corrupt(&artefacts.path(names::SOURCE), &reason));
    }
    let entries = [ACTIVATIONS, EXPLANATIONS, LABELS, FILTERS, images::FOLDER, names::SOURCE];
    let staging = Staging::new(out, &entries)?;
    let mut report = Report::default();
    write_explanations(&artefacts, more, &staging, &mut report)?;
    let numbers = images::export(&artefacts.path(names::PICTURES), &staging.at(images::FOLDER))?;
    report.pictures = numbers.len() as u64;
    write_activations(&artefacts, &numbers, &staging, &mut report)?;
    files::write_source(&staging.at(names::SOURCE), &artefacts.source)?;
    staging.finish()?;
    report.note("activations are those of the examples, not of the whole picture set");
    report.note(
        "multimodal-sae has no scores beside baselines, no authors, dates, statistics, neighbours, output tokens, \
         texts or kinds of examples",
    );
    report.note(format!("n_splits is {}, width {}", splits(artefacts.source.latents).len(), artefacts.source.latents));
    Ok(report)
}

/// One text per feature: its label.
fn write_explanations(
    artefacts: &Artefacts<'_>,
    more: &Explanations,
    staging: &Staging,
    report: &mut Report,
) -> Result<(), FileError> {
    let source = &artefacts.source;
    let path = artefacts.path(names::FEATURES);
    let (mut texts, mut labels, mut explained) = (Vec::new(), Map::new(), Vec::new());
    let mut left_out = 0;
    for row in artefacts.features(more)? {
        let feature = row?.feature;
        check_latent(&path, source, feature.index)?;
        report.features += 1;
        let Some(explanation) = feature.label() else { continue };
        left_out += feature.explanations.len() as u64 - 1;
        let name = feature_name(&source.hook_point, feature.index);
        texts.push(Value::Object(Map::from_iter([(name.clone(), json!(explanation.description))])));
        if explanation.category != api::Category::Unknown {
            labels.insert(name, json!(explanation.category.as_str()));
        }
        explained.push(feature.index);
    }
    report.explanations = texts.len() as u64;
    report.note_count(left_out, "explanations are left out: the format has one for each feature");
    let file = format!("{}.json", source.hook_point.replace('.', "_"));
    write_json(&staging.make(EXPLANATIONS)?.join(file), &Value::Array(texts))?;
    write_json(&staging.at(LABELS), &Value::Object(labels))?;
    let filter = Map::from_iter([(source.hook_point.clone(), json!(explained))]);
    write_json(&staging.at(FILTERS), &Value::Object(filter))
}

fn write_json(path: &Path, value: &Value) -> Result<(), FileError> {
    fs::write(path, format!("{value:#}\n")).map_err(|error| FileError::io(path, error))
}

/// One file after the other: only one part of the features is in memory.
fn write_activations(
    artefacts: &Artefacts<'_>,
    numbers: &HashMap<String, u32>,
    staging: &Staging,
    report: &mut Report,
) -> Result<(), FileError> {
    let source = &artefacts.source;
    let folder = staging.make(ACTIVATIONS)?.join(&source.hook_point);
    fs::create_dir_all(&folder).map_err(|error| FileError::io(&folder, error))?;
    let path = artefacts.path(names::EXAMPLES);
    let mut rows = rows_of::<ExampleRow>(&path)?.peekable();
    for (first, end) in splits(source.latents) {
        let places = places_below(end, &mut rows, numbers, &path, report)?;
        if let Some(place) = places.iter().find(|place| place.feature < first) {
            let reason = format!("feature {} comes after one of a later part; features must rise", place.feature);
            return Err(FileError::corrupt(&path, &reason));
        }
        cache::write(&folder.join(format!("{first}_{}.safetensors", end - 1)), &places)?;
    }
    match rows.next() {
        None => Ok(()),
        Some(row) => check_latent(&path, source, row?.feature),
    }
}

/// The activations of the next rows, as long as their features are below `end`. A picture may be an example in many
/// ways; it counts once.
fn places_below(
    end: u32,
    rows: &mut Peekable<impl Iterator<Item = Result<ExampleRow, FileError>>>,
    numbers: &HashMap<String, u32>,
    path: &Path,
    report: &mut Report,
) -> Result<Vec<Place>, FileError> {
    let mut found: BTreeMap<(u32, u32), ExampleRow> = BTreeMap::new();
    while let Some(row) = rows.next_if(|row| row.as_ref().map_or(true, |row| row.feature < end)) {
        let row = row?;
        let number = numbers.get(&row.picture).copied().ok_or_else(|| {
            FileError::corrupt(path, &format!("picture {} is not in {}", row.picture, names::PICTURES))
        })?;
        found.entry((row.feature, number)).or_insert(row);
    }
    report.examples += found.len() as u64;
    let mut places: Vec<Place> = found
        .into_iter()
        .flat_map(|((feature, image), row)| {
            let patches = row.indices.into_iter().zip(row.values);
            patches.map(move |(patch, value)| Place { image, token: u32::from(patch), feature, value })
        })
        .filter(|place| place.value > 0.0)
        .collect();
    places.sort_by_key(Place::key);
    Ok(places)
}
