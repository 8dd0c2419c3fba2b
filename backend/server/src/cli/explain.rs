//! `lmm-scope explain`: features into the queue.

use super::{
    CliError,
    chosen::FeaturesArgs,
    jobs::{InterpreterArgs, JobsArgs, block_on},
    output::{print, print_json},
};
use clap::builder::BoolishValueParser;
use serde::Serialize;
use store::jobs::{BULK, Enqueued, VISITOR};

/// Put features into the queue, for `lmm-scope work` to explain. What is there already is not put in twice.
#[derive(Debug, Clone, clap::Args)]
pub struct ExplainArgs {
    #[command(flatten)]
    jobs: JobsArgs,

    #[command(flatten)]
    by: InterpreterArgs,

    #[command(flatten)]
    of: FeaturesArgs,

    /// Before bulk runs, as a visitor's request.
    #[arg(long, env = "LMM_SCOPE_FIRST", value_parser = BoolishValueParser::new())]
    first: bool,

    /// Print one JSON object.
    #[arg(long, env = "LMM_SCOPE_JSON", value_parser = BoolishValueParser::new())]
    json: bool,
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
    let features = args.of.indices(&opened.store, &source).await?;
    let assignment = interpreter.identity().assignment(&source.source);
    let Some(&first) = interpreter.steps().first() else {
        return Err(CliError::Bug(format!("{} has no steps", interpreter.identity().name)));
    };
    let priority = if args.first { VISITOR } else { BULK };
    let Enqueued { new, raised, known } = opened.queue.enqueue(&assignment, first, &features, priority).await?;
    let (interpreter, prompt_hash) = (assignment.interpreter, assignment.prompt_hash);
    Ok(Report { interpreter, prompt_hash, features: features.len(), new, raised, known })
}

impl Report {
    fn for_people(&self) -> String {
        let Self { interpreter, features, new, raised, known, .. } = self;
        format!(
            "{features} features for {interpreter}: {new} new in the queue, {raised} moved up, {known} there already"
        )
    }
}
