//! Stage `report`: measures the committed artefacts and writes `docs/pocket.md`.

use super::earlier::{STAGES, write_history};
use super::plan::Plan;
use super::scene::{Scene, Style};
use super::sprites::Sprites;
use super::tower::seeds;
use super::trainer::Progress;
use super::words::{FEELING_QUESTION, STORY_PROMPT, SceneWords, Turn};
use anyhow::Result;
use api::{Category, Source};
use burn::tensor::backend::Backend;
use image::DynamicImage;
use model::{Edit, EditOp, GenerateOptions, Intervention, Lmm, Positions, PromptInput, Sae, generate};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use store::files::{FeatureRow, names, read_features, read_pictures, read_source};

/// IoU from which a feature counts as well matched.
const GOOD_IOU: f32 = 0.3;
/// Clamp values are this many times a feature's maximum: the page's own default.
const STRENGTH: f32 = 3.0;

/// Where things lie.
pub struct Paths<'a> {
    pub work: &'a Path,
    pub out: &'a Path,
    pub photographs: &'a Path,
    /// The page to write.
    pub doc: &'a Path,
}

/// Measures everything and writes `paths.doc`.
pub fn report<B: Backend>(plan: &Plan, sprites: &Sprites, paths: &Paths<'_>, device: &B::Device) -> Result<()> {
    let Paths { work, out, photographs, doc } = *paths;
    let lmm = Lmm::<B>::load(&out.join("model"), device)?;
    let sae = Arc::new(Sae::<B>::load(&out.join("sae").join(plan.hook_point()), device)?);
    let source = read_source(&out.join(names::SOURCE))?;
    let features = read_features(&out.join(names::FEATURES))?;
    let mut text = String::from(
        "# The pocket demo in numbers\n\nWritten by `lmm-scope pocket report`; do not edit. What the demo is made of and how: `docs/architecture.md`.\n\n",
    );
    stages(&mut text, &write_history(work, out)?)?;
    accuracies(&mut text, plan, sprites, &lmm)?;
    on_photographs(&mut text, plan, sprites, &lmm, photographs)?;
    sae_table(&mut text, &source, &features)?;
    stories(&mut text, plan, &lmm, &sae, &features)?;
    let provenance = &source.provenance;
    writeln!(
        text,
        "\nModel {}, SAE {}, {}, {}, {}.",
        provenance.model, provenance.sae_revision, provenance.dtype, provenance.image_set, provenance.date
    )?;
    model::weights::write_atomic(doc, text.as_bytes())?;
    Ok(())
}

/// What each training stage saw and cost.
fn stages(text: &mut String, history: &BTreeMap<String, Progress>) -> Result<()> {
    text.push_str(
        "## Training\n\n| stage | samples | tokens | hours | last loss | device |\n|---|---:|---:|---:|---:|---|\n",
    );
    for stage in STAGES {
        let Some(progress) = history.get(stage) else { continue };
        writeln!(
            text,
            "| {stage} | {} | {} | {:.2} | {:.4} | {} |",
            progress.samples,
            progress.tokens,
            progress.seconds / 3600.0,
            progress.loss,
            progress.device
        )?;
    }
    text.push_str("\nHours are wall-clock on 2 CPU cores shared with other work; the tower's and the SAE's samples are pictures and tokens.\n\n");
    Ok(())
}

/// Share of right answers, and how many were asked.
#[derive(Default, Clone, Copy)]
struct Tally {
    right: usize,
    asked: usize,
}

impl Tally {
    fn show(self) -> String {
        if self.asked == 0 {
            return "–".into();
        }
        format!("{:.1}% ({} of {})", 100.0 * self.right as f64 / self.asked as f64, self.right, self.asked)
    }
}

/// The model's greedy answer to a question about a picture.
fn answer<B: Backend>(
    lmm: &Lmm<B>,
    question: &str,
    picture: Option<&DynamicImage>,
    with: Option<&Intervention<B>>,
    tokens: usize,
) -> Result<String> {
    let prepared = lmm.prepare(&PromptInput { text: question.into(), chat: true, image: picture.cloned() })?;
    let options = GenerateOptions { max_new_tokens: tokens, ..GenerateOptions::default() };
    let generation = generate(lmm, &prepared, &options, with, &mut |_| ControlFlow::Continue(()))?;
    Ok(generation.text.trim().to_string())
}

fn accuracies<B: Backend>(text: &mut String, plan: &Plan, sprites: &Sprites, lmm: &Lmm<B>) -> Result<()> {
    text.push_str("## What the model answers, on scenes it has never seen\n\nExact match of the greedy answer.\n\n| question | trained styles | held-out style |\n|---|---:|---:|\n");
    const QUESTIONS: [&str; 4] = ["largest thing (concept)", "face's feeling (emotion)", "colour", "count"];
    let mut tallies = [[Tally::default(); 2]; 4];
    for (column, style) in [Style::Seen, Style::HeldOut].into_iter().enumerate() {
        for i in 0..plan.eval_scenes {
            let scene = Scene::random(sprites, style, seeds::EVAL + i as u64);
            let words = SceneWords::new(&sprites.concepts, &scene);
            let picture = DynamicImage::ImageRgb8(scene.draw(sprites, plan.display_side).picture);
            let turns: [Option<Turn>; 4] = [words.largest(), words.emotion(), words.color(), Some(words.count())];
            for (row, turn) in turns.into_iter().enumerate() {
                let Some(turn) = turn else { continue };
                let tally = &mut tallies[row][column];
                tally.asked += 1;
                tally.right += usize::from(answer(lmm, &turn.question, Some(&picture), None, 12)? == turn.answer);
            }
        }
    }
    for (question, [seen, held_out]) in QUESTIONS.iter().zip(tallies) {
        writeln!(text, "| {question} | {} | {} |", seen.show(), held_out.show())?;
    }
    text.push('\n');
    Ok(())
}

/// Photographs whose main thing is a concept: nothing like them was trained on.
fn on_photographs<B: Backend>(
    text: &mut String,
    plan: &Plan,
    sprites: &Sprites,
    lmm: &Lmm<B>,
    photographs: &Path,
) -> Result<()> {
    let mut tally = Tally::default();
    for row in read_pictures(photographs)?.into_iter().take(plan.photographs) {
        let Some(object) = row.picture.objects.first() else { continue };
        let Some(concept) = sprites.concepts.iter().find(|concept| concept.name == object.concept) else { continue };
        let picture = image::load_from_memory(&row.webp)?;
        let said = answer(lmm, "What is the largest thing?", Some(&picture), None, 12)?.to_lowercase();
        tally.asked += 1;
        tally.right += usize::from(said == format!("{}.", concept.phrase(None)));
    }
    writeln!(text, "On photographs the largest thing is named in {}; no photograph was trained on.\n", tally.show())?;
    Ok(())
}

fn sae_table(text: &mut String, source: &Source, features: &[FeatureRow]) -> Result<()> {
    let l0: f32 = features.iter().map(|row| row.feature.frac_nonzero).sum();
    let iou = |row: &&FeatureRow, baseline: bool| {
        row.feature
            .label()
            .and_then(|label| label.scores.first())
            .filter(|score| score.explanation_score_type_name == "iou")
            .is_some_and(|score| (if baseline { score.baseline } else { score.value }) >= GOOD_IOU)
    };
    let good = features.iter().filter(|row| iou(row, false)).count();
    let random = features.iter().filter(|row| iou(row, true)).count();
    let dead = features.iter().filter(|row| row.feature.dead).count();
    writeln!(
        text,
        "## The SAE\n\n| | |\n|---|---:|\n| latents | {} |\n| k | {} |\n| mean active latents per picture token | {l0:.1} |",
        source.latents, source.k
    )?;
    if let Some(fvu) = source.fvu {
        writeln!(text, "| fraction of variance unexplained, picture tokens of the cache set | {fvu:.3} |")?;
    }
    writeln!(text, "| silent on cache set and texts | {dead} ({:.1}%) |", 100.0 * dead as f32 / source.latents as f32)?;
    writeln!(text, "| features with an explanation | {} |", source.explained)?;
    writeln!(text, "| features with IoU ≥ {GOOD_IOU} to a truth | {good} |")?;
    writeln!(text, "| the same labels with areas moved at random, IoU ≥ {GOOD_IOU} | {random} |\n")?;
    text.push_str("| category | features with IoU ≥ 0.3 | different labels among them |\n|---|---:|---:|\n");
    for category in Category::ALL {
        let labels: Vec<&str> = features
            .iter()
            .filter(|row| iou(row, false))
            .filter_map(|row| row.feature.label())
            .filter(|label| label.category == category)
            .map(|label| label.description.as_str())
            .collect();
        if !labels.is_empty() {
            let different: BTreeSet<&str> = labels.iter().copied().collect();
            writeln!(text, "| {} | {} | {} |", category.as_str(), labels.len(), different.len())?;
        }
    }
    text.push('\n');
    Ok(())
}

/// The best-scored features of the first few emotions.
fn emotion_features(features: &[FeatureRow]) -> Vec<&FeatureRow> {
    let mut rows: Vec<(&FeatureRow, f32, &str)> = features
        .iter()
        .filter_map(|row| {
            let label = row.feature.label()?;
            (label.category == Category::Emotion)
                .then(|| (row, label.scores.first().map_or(0.0, |s| s.value), label.description.as_str()))
        })
        .collect();
    rows.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.feature.index.cmp(&b.0.feature.index)));
    let mut seen: Vec<&str> = Vec::new();
    rows.retain(|(_, _, name)| {
        let new = !seen.contains(name);
        seen.push(name);
        new
    });
    rows.into_iter().take(4).map(|(row, _, _)| row).collect()
}

fn stories<B: Backend>(
    text: &mut String,
    plan: &Plan,
    lmm: &Lmm<B>,
    sae: &Arc<Sae<B>>,
    features: &[FeatureRow],
) -> Result<()> {
    writeln!(text, "## Steering\n\nClamped to {STRENGTH} × the feature's maximum at all positions, greedy.\n")?;
    for prompt in [FEELING_QUESTION, STORY_PROMPT] {
        writeln!(text, "**{prompt}**\n\n| | |\n|---|---|")?;
        writeln!(text, "| original | {} |", answer(lmm, prompt, None, None, 60)?)?;
        let with = |edits: Vec<Edit>| Intervention {
            hook: plan.layer.into(),
            sae: sae.clone(),
            edits,
            positions: Positions::All,
            keep_error: false,
        };
        writeln!(text, "| reconstructed | {} |", answer(lmm, prompt, None, Some(&with(Vec::new())), 60)?)?;
        for row in emotion_features(features) {
            let feature = &row.feature;
            let name = feature.label().map_or("", |label| label.description.as_str());
            let edit = Edit { feature: feature.index as usize, op: EditOp::Clamp(STRENGTH * feature.max_act_approx) };
            let said = answer(lmm, prompt, None, Some(&with(vec![edit])), 60)?;
            writeln!(text, "| #{} {name} | {said} |", feature.index)?;
        }
        text.push('\n');
    }
    Ok(())
}
