//! `lmm-scope score`: how good labels are, each score beside a random baseline.

mod scorers;
mod stored;

use super::{
    CliError,
    chosen::FeaturesArgs,
    jobs::{JobsArgs, LmmArgs, block_on},
    output::{print, print_json},
    progress::Progress,
};
use crate::{config::EngineChoice, engine::Device};
use api::SteeringEffects;
use clap::builder::BoolishValueParser;
use futures::{StreamExt, stream};
use pipeline::score::{Measured, ScoreError, Scorer, Subject, Subjects, judge::Judge, report::counted};
use scorers::Scorers;
use serde::Serialize;
use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};
use store::{
    SourceEntry,
    jobs::{ComputedScore, Queue, Usage},
};

/// So many failures of one scorer without a success between them are not the labels' fault.
const MOST_FAILURES: u32 = 10;

/// Compute scores of all labels of features, those of the build and those of workers, and keep them beside the labels.
/// What is computed again replaces what was there.
#[derive(Debug, Clone, clap::Args)]
pub struct ScoreArgs {
    #[command(flatten)]
    jobs: JobsArgs,

    #[command(flatten)]
    of: FeaturesArgs,

    /// Which scores. Without it, all but steering that the other flags allow.
    #[arg(long, env = "LMM_SCOPE_KINDS", value_enum, value_delimiter = ',', num_args = 1..)]
    kinds: Vec<Kind>,

    /// Service that finds and cuts out what a label names (GroundingDINO and SAM), for iou: http://127.0.0.1:8070.
    #[arg(long, env = "LMM_SCOPE_GROUNDER_URL")]
    grounder_url: Option<String>,

    /// Seconds that one answer of the grounding service may take.
    #[arg(long, env = "LMM_SCOPE_GROUNDER_TIMEOUT_SECS", default_value_t = 60,
        value_parser = clap::value_parser!(u16).range(1..))]
    grounder_timeout_secs: u16,

    /// Folder of a CLIP model with both towers, for clip and monosemanticity.
    #[arg(long, env = "LMM_SCOPE_CLIP", value_name = "DIR")]
    clip: Option<PathBuf>,

    /// Device that computes CLIP: cpu, cuda (the first card) or cuda:1.
    #[arg(long, env = "LMM_SCOPE_DEVICE", default_value_t)]
    device: Device,

    // For consistency, detection, fuzzing and steering.
    #[command(flatten)]
    lmm: LmmArgs,

    /// Engines with the model and SAE under study, for steering, comma separated: http://10.0.0.5:8090.
    #[arg(long, env = "LMM_SCOPE_ENGINE", value_name = "URL,…")]
    engine: Option<EngineChoice>,

    /// Of all that is drawn: random pictures, other features, resamples.
    #[arg(long, env = "LMM_SCOPE_SEED", default_value_t = 0)]
    seed: u64,

    /// Features side by side: so many questions may be with the servers at once.
    #[arg(long, env = "LMM_SCOPE_AT_ONCE", default_value_t = 4,
        value_parser = clap::value_parser!(u16).range(1..=1024))]
    at_once: u16,

    /// Only what has no such score by the same author yet.
    #[arg(long, env = "LMM_SCOPE_MISSING", value_parser = BoolishValueParser::new())]
    missing: bool,

    /// Compute nothing: print the means of what is stored, by category and overall.
    #[arg(long, env = "LMM_SCOPE_REPORT", value_parser = BoolishValueParser::new(),
        conflicts_with_all = ["kinds", "missing"])]
    report: bool,

    /// Print one JSON object.
    #[arg(long, env = "LMM_SCOPE_JSON", value_parser = BoolishValueParser::new())]
    json: bool,
}

/// A kind of score.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Kind {
    /// Overlap of the feature's area with masks of what the label names.
    Iou,
    /// Likeness of label and top pictures.
    Clip,
    /// Whether a larger model finds that the label fits the top pictures.
    Consistency,
    /// Whether it can tell by the label on which pictures the feature fires.
    Detection,
    /// Whether it can tell by the label where on a picture it fires.
    Fuzzing,
    /// Likeness of the pictures on which it fires.
    Monosemanticity,
    /// Whether the steered model says what the label says.
    Steering,
}

impl Kind {
    const ALL: [Self; 7] = [
        Self::Iou,
        Self::Clip,
        Self::Consistency,
        Self::Detection,
        Self::Fuzzing,
        Self::Monosemanticity,
        Self::Steering,
    ];

    fn as_str(self) -> &'static str {
        match self {
            Self::Iou => "iou",
            Self::Clip => "clip",
            Self::Consistency => "consistency",
            Self::Detection => "detection",
            Self::Fuzzing => "fuzzing",
            Self::Monosemanticity => "monosemanticity",
            Self::Steering => "steering",
        }
    }

    fn asks_a_judge(self) -> bool {
        matches!(self, Self::Consistency | Self::Detection | Self::Fuzzing | Self::Steering)
    }
}

/// What was done.
#[derive(Debug, Clone, Default, Serialize)]
struct Done {
    /// Features that were asked for.
    features: usize,
    /// Of these, without any label.
    unlabelled: u64,
    /// Labels of the others.
    labels: u64,
    /// Scores that were computed and kept, by type.
    scores: BTreeMap<String, u64>,
    /// Scores that make no sense for a label.
    not_applicable: u64,
    /// Scores that were there already, with `--missing`.
    known: u64,
    failed: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    first_failure: Option<String>,
    /// Who computed, by type.
    authors: Vec<[String; 2]>,
    seed: u64,
    /// Of the larger model.
    input_tokens: u64,
    output_tokens: u64,
    /// Of steering: what became of the answers, of all labels together.
    #[serde(skip_serializing_if = "Option::is_none")]
    effects: Option<SteeringEffects>,
    /// Failures of each scorer since its last success.
    #[serde(skip)]
    in_a_row: Vec<u32>,
}

/// # Errors
/// Bad input, in one line.
pub fn run(args: &ScoreArgs) -> Result<(), CliError> {
    if args.report {
        return block_on(stored::report(args));
    }
    let done = block_on(compute(args))?;
    match &done.first_failure {
        Some(failure) if done.scores.is_empty() => Err(ScoreError::Setup { reason: failure.clone() }.into()),
        _ if args.json => print_json(&done),
        _ => print(&done.for_people()),
    }
}

/// One run: what it needs, and what it has done.
struct Run {
    subjects: Subjects,
    queue: Queue,
    source: SourceEntry,
    scorers: Vec<Box<dyn Scorer>>,
    seed: u64,
    missing: bool,
    done: Mutex<Done>,
}

async fn compute(args: &ScoreArgs) -> Result<Done, CliError> {
    let opened = args.jobs.open().await?;
    let source = args.jobs.source(&opened.store).await?;
    let features = args.of.indices(&opened.store, &source).await?;
    let progress = Progress::start("opening the scorers");
    let Scorers { all, judge } = Scorers::open(args, &opened.store, &source).await?;
    let authors = all.iter().map(|scorer| [scorer.type_name().to_owned(), scorer.author().to_owned()]);
    let done = Done {
        features: features.len(),
        authors: authors.collect(),
        seed: args.seed,
        in_a_row: vec![0; all.len()],
        ..Done::default()
    };
    let run = Arc::new(Run {
        subjects: Subjects::open(opened.store.clone(), opened.queue.clone(), source.clone(), args.seed).await?,
        queue: opened.queue.clone(),
        source,
        scorers: all,
        seed: args.seed,
        missing: args.missing,
        done: Mutex::new(done),
    });
    let (count, at_once) = (features.len(), usize::from(args.at_once));
    // In tasks of their own: in a single one, who computes would hold up the others' requests until they time out.
    let spawned = stream::iter(features).map(|index| {
        let run = run.clone();
        tokio::spawn(async move { run.feature(index).await })
    });
    let mut ended = spawned.buffer_unordered(at_once).enumerate();
    while let Some((number, ended)) = ended.next().await {
        ended.map_err(|error| CliError::Bug(error.to_string()))??;
        progress.say(format!("{} of {count} features", number + 1));
    }
    drop(ended);
    let mut done = std::mem::take(&mut *run.done.lock().unwrap_or_else(PoisonError::into_inner));
    let Usage { input_tokens, output_tokens } = judge.as_deref().map(Judge::usage).unwrap_or_default();
    (done.input_tokens, done.output_tokens) = (input_tokens, output_tokens);
    opened.queue.close().await;
    opened.store.close().await;
    Ok(done)
}

impl Run {
    /// Scores all labels of a feature, and keeps what was found.
    async fn feature(&self, index: u32) -> Result<(), CliError> {
        let subjects = self.subjects.load(index).await?;
        self.note(|done| match subjects.len() as u64 {
            0 => done.unlabelled += 1,
            labels => done.labels += labels,
        });
        let mut found = Vec::new();
        for subject in &subjects {
            for (number, scorer) in self.scorers.iter().enumerate() {
                if self.missing && is_known(subject, scorer.as_ref()) {
                    self.note(|done| done.known += 1);
                    continue;
                }
                match scorer.score(subject).await.and_then(|measured| finite(scorer.as_ref(), measured)) {
                    Ok(Some(measured)) => {
                        self.note(|done| done.in_a_row[number] = 0);
                        found.push(ComputedScore {
                            feature: index,
                            explanation: subject.explanation.id.clone(),
                            description: subject.explanation.description.clone(),
                            type_name: scorer.type_name().to_owned(),
                            author: scorer.author().to_owned(),
                            value: measured.value,
                            baseline: measured.baseline,
                            interval: measured.interval,
                            samples: measured.samples,
                            effects: measured.effects,
                            seed: self.seed,
                            image_set: self.source.source.provenance.image_set.clone(),
                            created_at: String::new(),
                        });
                    }
                    Ok(None) => self.note(|done| done.not_applicable += 1),
                    Err(error) => {
                        if let Err(last) = self.failed(number, index, &error) {
                            self.keep(found).await?;
                            return Err(last.into());
                        }
                    }
                }
            }
        }
        self.keep(found).await
    }

    async fn keep(&self, found: Vec<ComputedScore>) -> Result<(), CliError> {
        if !found.is_empty() {
            self.queue.save_scores(&self.source.source, &found).await?;
            self.note(|done| {
                for score in found {
                    *done.scores.entry(score.type_name).or_default() += 1;
                    if let Some(effects) = score.effects {
                        *done.effects.get_or_insert_default() += effects;
                    }
                }
            });
        }
        Ok(())
    }

    /// A failure costs its score alone, unless the scorer does nothing but fail.
    fn failed(&self, number: usize, index: u32, error: &ScoreError) -> Result<(), ScoreError> {
        let type_name = self.scorers[number].type_name();
        tracing::info!(feature = index, score = type_name, %error, "a score failed");
        let failure = format!("{type_name} of feature {index}: {error}");
        let in_a_row = self.note(|done| {
            done.failed += 1;
            done.first_failure.get_or_insert_with(|| failure.clone());
            done.in_a_row[number] += 1;
            done.in_a_row[number]
        });
        if in_a_row < MOST_FAILURES {
            return Ok(());
        }
        Err(ScoreError::Setup { reason: format!("{failure} ({in_a_row} failures in a row)") })
    }

    fn note<T>(&self, change: impl FnOnce(&mut Done) -> T) -> T {
        change(&mut self.done.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What is no number is a failure of the scorer: stored, it would be in the way of every mean.
fn finite(scorer: &dyn Scorer, measured: Option<Measured>) -> Result<Option<Measured>, ScoreError> {
    let Some(Measured { value, baseline, interval: [low, high], .. }) = measured else { return Ok(None) };
    if [value, baseline, low, high].iter().all(|number| number.is_finite()) {
        return Ok(measured);
    }
    let reason = format!("the score is {value}, its baseline {baseline}, the interval {low} to {high}");
    Err(ScoreError::Service { who: scorer.author().to_owned(), reason })
}

/// Whether the label has a score of this kind by this author.
fn is_known(subject: &Subject, scorer: &dyn Scorer) -> bool {
    subject.explanation.scores.iter().any(|score| {
        score.explanation_score_type_name == scorer.type_name() && score.explanation_score_model_name == scorer.author()
    })
}

impl Done {
    fn for_people(&self) -> String {
        let Self { features, unlabelled, labels, not_applicable, known, failed, .. } = self;
        let scores: Vec<String> = self.scores.iter().map(|(type_name, count)| format!("{count} {type_name}")).collect();
        let scores = if scores.is_empty() { "no scores".to_owned() } else { scores.join(", ") };
        let mut line = format!("{scores} of {labels} labels kept; {unlabelled} of {features} features have no label");
        let others = [
            (*not_applicable, "scores do not apply"),
            (*known, "were there already"),
            (*failed, "failed, the first of them"),
        ];
        for (count, what) in others.into_iter().filter(|(count, _)| *count > 0) {
            line += &format!("; {count} {what}");
        }
        if let Some(failure) = &self.first_failure {
            line += &format!(": {failure}");
        }
        if let Some(effects) = self.effects {
            line += &format!("; effects of steering: {}", counted(effects));
        }
        if self.input_tokens + self.output_tokens > 0 {
            line += &format!("; {} tokens read, {} written", self.input_tokens, self.output_tokens);
        }
        line
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // tests panic on purpose
    use super::*;
    use pipeline::score::PendingScore;

    struct Nobody;

    impl Scorer for Nobody {
        fn type_name(&self) -> &str {
            "clip score"
        }

        fn author(&self) -> &str {
            "a tower"
        }

        fn score<'a>(&'a self, _: &'a Subject) -> PendingScore<'a> {
            Box::pin(async { Ok(None) })
        }
    }

    #[test]
    fn a_score_that_is_no_number_is_a_failure() {
        let fine = Measured { value: 0.5, baseline: 0.0, interval: [0.25, 0.75], samples: 8, effects: None };
        assert_eq!(finite(&Nobody, None).unwrap(), None);
        assert_eq!(finite(&Nobody, Some(fine)).unwrap(), Some(fine));
        for wrong in [
            Measured { value: f32::NAN, ..fine },
            Measured { baseline: f32::INFINITY, ..fine },
            Measured { interval: [0.25, f32::NAN], ..fine },
        ] {
            let error = finite(&Nobody, Some(wrong)).unwrap_err().to_string();
            assert!(error.starts_with("a tower: the score is"), "{error}");
        }
    }
}
