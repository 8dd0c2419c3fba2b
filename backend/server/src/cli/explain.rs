//! `lmm-scope explain`: features into the queue.

use super::{
    CliError,
    jobs::{InterpreterArgs, JobsArgs, block_on},
    output::{print, print_json},
};
use api::{FeatureQuery, FeatureSort};
use clap::builder::BoolishValueParser;
use serde::Serialize;
use store::{
    SourceEntry, Store,
    jobs::{BULK, Enqueued, VISITOR},
};

/// Features per page while they are counted; the most that the store gives.
const PAGE: u32 = 200;

/// Put features into the queue, for `lmm-scope work` to explain. What is there already is not put in twice.
#[derive(Debug, Clone, clap::Args)]
pub struct ExplainArgs {
    #[command(flatten)]
    jobs: JobsArgs,

    #[command(flatten)]
    by: InterpreterArgs,

    /// Features by their indices, e.g. 5,17 or 0-999. Without it, all that fire.
    #[arg(long, env = "LMM_SCOPE_FEATURES", value_name = "ID|A-B,…", value_delimiter = ',', num_args = 1..,
        value_parser = range)]
    features: Vec<Range>,

    /// Before bulk runs, as a visitor's request.
    #[arg(long, env = "LMM_SCOPE_FIRST", value_parser = BoolishValueParser::new())]
    first: bool,

    /// Print one JSON object.
    #[arg(long, env = "LMM_SCOPE_JSON", value_parser = BoolishValueParser::new())]
    json: bool,
}

/// Indices from the first to the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Range(u32, u32);

fn range(text: &str) -> Result<Range, String> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    match (first.trim().parse(), last.trim().parse()) {
        (Ok(first), Ok(last)) if first <= last => Ok(Range(first, last)),
        _ => Err(format!("`{text}` is neither an index such as 17 nor a range such as 0-999")),
    }
}

#[derive(Debug, Serialize)]
struct Report {
    interpreter: String,
    prompt_hash: String,
    /// Features that were asked for.
    features: usize,
    new: u64,
    raised: u64,
    known: u64,
}

/// # Errors
/// Bad input, in one line.
pub fn run(args: &ExplainArgs) -> Result<(), CliError> {
    let report = block_on(enqueue(args))?;
    if args.json { print_json(&report) } else { print(&report.for_people()) }
}

async fn enqueue(args: &ExplainArgs) -> Result<Report, CliError> {
    let opened = args.jobs.open().await?;
    let source = args.jobs.source(&opened.store).await?;
    // Whether it can work with these files shows now, not in a queue of dead letters.
    let interpreter = args.by.open(&args.jobs, &source).await?;
    let features = args.indices(&opened.store, &source).await?;
    let assignment = interpreter.identity().assignment(&source.source);
    let Some(&first) = interpreter.steps().first() else {
        return Err(CliError::Bug(format!("{} has no steps", interpreter.identity().name)));
    };
    let priority = if args.first { VISITOR } else { BULK };
    let Enqueued { new, raised, known } = opened.queue.enqueue(&assignment, first, &features, priority).await?;
    let (interpreter, prompt_hash) = (assignment.interpreter, assignment.prompt_hash);
    Ok(Report { interpreter, prompt_hash, features: features.len(), new, raised, known })
}

impl ExplainArgs {
    async fn indices(&self, store: &Store, source: &SourceEntry) -> Result<Vec<u32>, CliError> {
        if self.features.is_empty() {
            return living(store, source).await;
        }
        let latents = source.source.latents;
        if let Some(Range(_, last)) = self.features.iter().find(|range| range.1 >= latents) {
            let reason = format!("feature {last} does not exist: the SAE has {latents} latents, counted from 0");
            return Err(CliError::flag("--features", reason));
        }
        let mut indices: Vec<u32> = self.features.iter().flat_map(|range| range.0..=range.1).collect();
        indices.sort_unstable();
        indices.dedup();
        Ok(indices)
    }
}

async fn living(store: &Store, source: &SourceEntry) -> Result<Vec<u32>, CliError> {
    let mut indices = Vec::new();
    for page in 0.. {
        let query = FeatureQuery {
            sort: FeatureSort::Index,
            dead: Some(false),
            page,
            per_page: PAGE,
            ..FeatureQuery::default()
        };
        let list = store.list_features(source, &query).await?;
        if list.features.is_empty() {
            break;
        }
        indices.extend(list.features.iter().map(|feature| feature.index));
    }
    Ok(indices)
}

impl Report {
    fn for_people(&self) -> String {
        let Self { interpreter, features, new, raised, known, .. } = self;
        format!(
            "{features} features for {interpreter}: {new} new in the queue, {raised} moved up, {known} there already"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_indices_and_ranges() {
        assert_eq!(range("17"), Ok(Range(17, 17)));
        assert_eq!(range("0-999"), Ok(Range(0, 999)));
        for wrong in ["", "-", "-1", "9-3", "a", "1-2-3"] {
            assert!(range(wrong).is_err(), "{wrong}");
        }
    }
}
