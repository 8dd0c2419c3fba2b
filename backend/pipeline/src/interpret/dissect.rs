//! Names from ground truth: the concept whose masks a feature's area matches best, else the words of its pictures'
//! captions ([`crate::pocket::dissect`] has the protocol).
//!
//! It reads the examples that the store keeps (some fifty pictures per feature), where the demo's build sees the whole
//! cache set: its numbers are close to the build's, not the same, and its author's name says so.

use super::{Answer, Identity, InterpretError, Interpreter, Pending, Task, prompt_hash};
use crate::pocket::{
    cache::{Truth, masks_again},
    dissect::{self, AREA_THRESHOLD, MIN_GAIN, MIN_IOU, PICTURES, Seen},
    plan::{Plan, Size},
    sprites::Sprites,
};
use api::{Category, JobKind, Picture, Score, Source};
use rayon::prelude::*;
use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
    sync::Arc,
};
use store::{
    files::{names, read_pictures},
    jobs::{Outcome, Usage},
};

type Masks = BTreeMap<Truth, Vec<bool>>;

/// Raised when the same thresholds would give other names.
const PROTOCOL: &str = "dissect of stored examples 1";
const BY_MASKS: &str = "dissection of stored examples with exact masks";
const BY_CAPTIONS: &str = "caption words of stored examples";
/// Kinds of pictures that are not part of the cache set.
const SAMPLE: &str = "sample";

/// Network dissection with the masks of composed scenes.
pub struct Dissect {
    identity: Identity,
    truth: Arc<GroundTruth>,
}

/// What is known about the pictures.
struct GroundTruth {
    /// By picture.
    masks: HashMap<String, Masks>,
    /// Share of all patches that show a truth.
    frequency: BTreeMap<Truth, f32>,
    /// Captions that have a word, and captions in all.
    words: BTreeMap<String, usize>,
    captions: usize,
}

impl Dissect {
    /// Its name and settings, without reading anything.
    pub fn identity_of() -> Identity {
        let settings = format!("pictures {PICTURES}, area {AREA_THRESHOLD}, iou {MIN_IOU}, gain {MIN_GAIN}");
        Identity { name: "dissect".into(), prompt_hash: prompt_hash(&[PROTOCOL, &settings]), endpoint: "local".into() }
    }

    /// Whether the artefacts in `folder` have what masks are made of.
    pub fn is_possible(folder: &Path, source: &Source) -> bool {
        plan_of(source).is_some() && folder.join(names::SPRITES).is_file()
    }

    /// Draws the scenes of the artefacts' pictures anew for their masks. Takes a few seconds of all cores.
    ///
    /// # Errors
    /// When the source is not a composed set, or its files are missing or not those it was built with.
    pub fn open(folder: &Path, source: &Source) -> Result<Self, InterpretError> {
        let (sprites, pictures) = (folder.join(names::SPRITES), folder.join(names::PICTURES));
        let plan = plan_of(source).ok_or_else(|| InterpretError::Files {
            path: folder.to_owned(),
            reason: format!(
                "dissect needs masks, and {}/{} is not a set of composed scenes",
                source.model_id, source.source_id
            ),
        })?;
        let sprites = Sprites::load(&sprites)
            .map_err(|error| InterpretError::Files { path: sprites.clone(), reason: format!("{error:#}") })?;
        let rows = read_pictures(&pictures)
            .map_err(|error| InterpretError::Files { path: pictures.clone(), reason: error.to_string() })?;
        let shown: Vec<Picture> = rows.into_iter().map(|row| row.picture).filter(|p| p.kind != SAMPLE).collect();
        let truth = GroundTruth::of(&plan, &sprites, &shown)
            .map_err(|reason| InterpretError::Files { path: pictures, reason })?;
        Ok(Self { identity: Self::identity_of(), truth: Arc::new(truth) })
    }
}

/// Its masks, for others.
impl Dissect {
    /// Whether a thing of this name has masks.
    pub fn knows(&self, name: &str) -> bool {
        self.truth.frequency.keys().any(|truth| truth.name == name)
    }

    /// Patches of a picture that show what is called so, row-major; `None` when nobody has masks of the picture.
    pub fn patches(&self, picture: &str, name: &str) -> Option<Vec<bool>> {
        let masks = self.truth.masks.get(picture)?;
        let patches = masks.values().next()?.len();
        let found = masks.iter().find(|(truth, _)| truth.name == name);
        Some(found.map_or_else(|| vec![false; patches], |(_, mask)| mask.clone()))
    }
}

/// The plan that the source was built by: only these have scenes that can be drawn anew.
fn plan_of(source: &Source) -> Option<Plan> {
    let fits = |plan: &Plan| {
        let grid = plan.vision_config().grid() as u32;
        source.model_id == "pocket" && source.source_id == plan.source_id() && source.grid == [grid, grid]
    };
    [Size::Full, Size::Smoke].map(Plan::new).into_iter().find(fits)
}

impl GroundTruth {
    fn of(plan: &Plan, sprites: &Sprites, pictures: &[Picture]) -> Result<Self, String> {
        let scenes: Vec<&Picture> = pictures.iter().filter(|picture| picture.kind == "scene").collect();
        let masks: HashMap<String, Masks> = scenes
            .par_iter()
            .map(|picture| {
                let masks = masks_again(plan, sprites, picture);
                let masks = masks.ok_or_else(|| {
                    format!("{} is not the scene that {} gives; use the files of one build", picture.id, names::SPRITES)
                })?;
                Ok((picture.id.clone(), masks))
            })
            .collect::<Result<_, String>>()?;
        let mut words = BTreeMap::new();
        for word in pictures.iter().flat_map(|picture| dissect::caption_words(&picture.caption)) {
            *words.entry(word).or_default() += 1;
        }
        let frequency = dissect::frequencies(masks.values());
        Ok(Self { frequency, masks, words, captions: pictures.len() })
    }

    /// The feature's areas on the pictures that have masks, by falling mean.
    fn seen(&self, task: &Task) -> Vec<Seen<'_>> {
        let max = task.examples.iter().map(|example| example.max_value).fold(0.0, f32::max);
        let with_masks = task.examples.iter().filter_map(|example| {
            let masks = self.masks.get(&example.image.picture.id)?;
            let patches = masks.values().next()?.len();
            let firing = example.feature_acts_indices.iter().zip(&example.feature_acts_values);
            let (indices, values): (Vec<u16>, Vec<f32>) = firing
                .filter_map(|(index, value)| Some((u16::try_from(*index).ok()?, *value)))
                .filter(|(index, _)| usize::from(*index) < patches)
                .unzip();
            Some(Seen { area: dissect::area(patches, &indices, &values, max), masks })
        });
        with_masks.take(PICTURES).collect()
    }

    fn captions<'a>(&self, task: &'a Task) -> Vec<&'a str> {
        task.examples.iter().take(PICTURES).map(|example| example.image.picture.caption.as_str()).collect()
    }

    fn explain(&self, task: &Task) -> Outcome {
        let explained = |description: String, category, type_name: &str, author: &str| Outcome::Explained {
            description,
            category,
            type_name: type_name.to_owned(),
            author: author.to_owned(),
        };
        if let Some(found) = dissect::best_match(&self.seen(task), &self.frequency) {
            return explained(found.truth.name, found.truth.category, "dissect", BY_MASKS);
        }
        match dissect::caption_label(&self.captions(task), &self.words, self.captions) {
            Some(label) => explained(label.description, Category::Unknown, "words", BY_CAPTIONS),
            None => Outcome::Nothing { reason: "no mask fits and no caption word stands out".into() },
        }
    }

    fn score(&self, task: &Task) -> Result<Outcome, String> {
        let said = task.said.as_ref().ok_or("there is no explanation to score")?;
        let score = if said.type_name == "dissect" {
            let truth = self.frequency.keys().find(|truth| truth.name == said.description);
            let truth = truth.ok_or_else(|| format!("no mask is called `{}`", said.description))?;
            let (value, baseline) = dissect::measure(&self.seen(task), truth);
            Score {
                value,
                baseline,
                explanation_score_type_name: "iou".into(),
                explanation_score_model_name: "exact masks of composed scenes, stored examples".into(),
                ..Score::default()
            }
        } else {
            let label = dissect::caption_label(&self.captions(task), &self.words, self.captions);
            let label = label.ok_or("the captions have changed since they were explained")?;
            Score {
                value: label.share,
                baseline: label.baseline,
                explanation_score_type_name: "caption share".into(),
                explanation_score_model_name: "captions of stored examples that have the first word".into(),
                ..Score::default()
            }
        };
        Ok(Outcome::Scored { scores: vec![score] })
    }
}

impl Interpreter for Dissect {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Its names are short, and truths have their category: there is nothing to refine or to file.
    fn steps(&self) -> &[JobKind] {
        &[JobKind::Explain, JobKind::Score]
    }

    fn interpret<'a>(&'a self, task: &'a Task) -> Pending<'a> {
        Box::pin(async move {
            let (truth, task) = (self.truth.clone(), task.clone());
            let usage = Usage::default();
            let work = tokio::task::spawn_blocking(move || match task.kind {
                JobKind::Explain => Ok(truth.explain(&task)),
                JobKind::Score => truth.score(&task),
                other => Err(format!("dissect has no step `{}`", other.as_str())),
            });
            let outcome = work
                .await
                .map_err(|error| InterpretError::Never { reason: format!("a bug in dissect: {error}"), usage })?;
            outcome.map(|outcome| Answer { outcome, usage }).map_err(|reason| InterpretError::Never { reason, usage })
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // tests panic on purpose
    use super::*;
    use api::{Activation, ActivationImage, Explanation};

    /// 12 pictures on a 4×4 grid: `cat` walks over them, `sky` never moves; the example fires on the cat.
    fn example(i: usize) -> (String, Masks, Activation) {
        let truth = |name: &str| Truth { category: Category::Object, name: name.into() };
        let cat: Vec<bool> = (0..16).map(|patch| patch == i || patch == i + 1).collect();
        let sky: Vec<bool> = (0..16).map(|patch| patch < 8).collect();
        let id = format!("scene-{i:05}");
        let picture = Picture { id: id.clone(), caption: "a cat under the sky".into(), ..Picture::default() };
        let activation = Activation {
            image: ActivationImage { picture, grid: [4, 4] },
            feature_acts_indices: vec![i as u32, i as u32 + 1],
            feature_acts_values: vec![2.0, 1.5],
            max_value: 2.0,
            ..Activation::default()
        };
        (id, BTreeMap::from([(truth("cat"), cat), (truth("sky"), sky)]), activation)
    }

    fn dissect_and_task() -> (Dissect, Task) {
        let (mut masks, mut examples) = (HashMap::new(), Vec::new());
        for (id, mask, activation) in (0..12).map(example) {
            masks.insert(id, mask);
            examples.push(activation);
        }
        let words = BTreeMap::from([("cat".to_owned(), 100), ("sky".to_owned(), 100), ("under".to_owned(), 100)]);
        let frequency = dissect::frequencies(masks.values());
        let truth = GroundTruth { masks, frequency, words, captions: 100 };
        let task = Task { examples, ..Task::default() };
        (Dissect { identity: Dissect::identity_of(), truth: Arc::new(truth) }, task)
    }

    #[tokio::test]
    async fn a_feature_is_named_by_its_mask_and_scored_beside_chance() {
        let (dissect, mut task) = dissect_and_task();
        let Outcome::Explained { description, type_name, .. } = dissect.interpret(&task).await.unwrap().outcome else {
            panic!("not explained");
        };
        assert_eq!((description.as_str(), type_name.as_str()), ("cat", "dissect"));
        assert_eq!(dissect.next_step(JobKind::Explain), Some(JobKind::Score));
        task.kind = JobKind::Score;
        task.said = Some(Explanation { description, type_name, ..Explanation::default() });
        let Outcome::Scored { scores } = dissect.interpret(&task).await.unwrap().outcome else { panic!("no score") };
        assert!((scores[0].value - 1.0).abs() < 1e-6, "{scores:?}");
        assert!(scores[0].baseline < 0.3, "{scores:?}");
        assert_eq!(dissect.next_step(JobKind::Score), None);
    }

    #[tokio::test]
    async fn what_nothing_fits_is_done_with_a_reason_and_what_makes_no_sense_is_refused() {
        let (dissect, task) = dissect_and_task();
        let nothing = Task { examples: task.examples[..2].to_vec(), ..Task::default() };
        let outcome = dissect.interpret(&nothing).await.unwrap().outcome;
        assert!(matches!(outcome, Outcome::Nothing { .. }), "{outcome:?}");
        for kind in [JobKind::Refine, JobKind::Score] {
            let error = dissect.interpret(&Task { kind, ..task.clone() }).await.unwrap_err();
            assert!(matches!(error, InterpretError::Never { .. }), "{error}");
        }
    }
}
