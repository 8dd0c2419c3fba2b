//! The experiments from the shell: `lmm-scope extract`, `encode`, `steer`, `attribute`, `cache`, `index`,
//! `activations`, `map`, `quantize`, `train-sae`, `export`, `import`; and those of interpretation: `explain`, `work`,
//! `score`, `queue`.
//!
//! A command is arguments → checks of everything that is cheap ([`setup`]) → weights → numbers → a file that appears
//! under its final name when it is whole ([`output`]). Nothing is loaded for a mistake that the flags, `config.json`
//! or the picture show.

mod activations;
mod args;
mod attribute;
mod cache;
mod chosen;
mod device;
mod encode;
mod error;
mod explain;
mod export;
mod extract;
mod features;
mod import;
mod index;
mod jobs;
mod map;
mod output;
mod progress;
mod provenance;
mod quantize;
mod queue;
mod score;
mod setup;
mod steer;
mod train_sae;
mod work;

pub use jobs::{InterpreterArgs, InterpreterName, LmmArgs};

pub use activations::ActivationsArgs;
pub use attribute::AttributeArgs;
pub use cache::CacheArgs;
pub use encode::EncodeArgs;
pub use error::CliError;
pub use explain::ExplainArgs;
pub use export::ExportArgs;
pub use extract::ExtractArgs;
pub use import::ImportArgs;
pub use index::IndexArgs;
pub use map::MapArgs;
pub use quantize::QuantizeArgs;
pub use queue::QueueArgs;
pub use score::ScoreArgs;
pub use steer::SteerArgs;
pub use train_sae::TrainSaeArgs;
pub use work::WorkArgs;

use std::{
    panic::{AssertUnwindSafe, catch_unwind, set_hook},
    sync::Mutex,
};

/// Commands that run a model or an SAE once and end, and those of the queue of interpretation.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Write the hidden states of a picture and a prompt at a hook point.
    Extract(Box<ExtractArgs>),
    /// Turn hidden states into the activations of an SAE's features.
    Encode(Box<EncodeArgs>),
    /// Let the model answer as it is, through the SAE, and with features changed.
    Steer(Box<SteerArgs>),
    /// Say which features speak for an answer and which for another.
    Attribute(Box<AttributeArgs>),
    /// Run an image set through model and SAE and keep the activations, in shards that any number of processes write.
    Cache(Box<CacheArgs>),
    /// Sort a cache by feature: activations, statistics, examples and neighbours of each, as `serve` reads them.
    Index(Box<IndexArgs>),
    /// Print one feature's activations out of an index, on disk or in a bucket.
    Activations(Box<ActivationsArgs>),
    /// Put the living features of a folder of artifacts on a map.
    Map(Box<MapArgs>),
    /// Write an SAE as browsers fetch it: in pieces, with fewer bits if they like.
    Quantize(Box<QuantizeArgs>),
    /// Train a TopK SAE on hidden states; what was stopped goes on by the same command.
    TrainSae(Box<TrainSaeArgs>),
    /// Write features, explanations, activations and pictures, or the SAE, as other programs read them.
    Export(Box<ExportArgs>),
    /// Read what other programs wrote into a folder of artifacts.
    Import(Box<ImportArgs>),
    /// Put features into the queue of interpretation.
    Explain(Box<ExplainArgs>),
    /// Take jobs off the queue and do them; start as many workers as you like.
    Work(Box<WorkArgs>),
    /// Compute how good labels are, beside random baselines; or print what is known.
    Score(Box<ScoreArgs>),
    /// Look at the queue, limit it, pause it, cancel its jobs, or let dead ones start anew.
    Queue(Box<QueueArgs>),
}

impl Command {
    /// What is logged unless `RUST_LOG` says otherwise: an experiment's stderr is for its one error.
    pub fn log_level(&self) -> &'static str {
        match self {
            Self::Work(_) | Self::TrainSae(_) => "info",
            _ => "warn",
        }
    }
}

/// Runs one command to its end.
///
/// Takes over the process's panic hook: whatever happens, the caller has one line to print.
///
/// # Errors
/// The flag or the file that is wrong, and why. Nothing is left at `--out` then.
pub fn run(command: Command) -> Result<(), CliError> {
    remember_panics();
    let work = AssertUnwindSafe(|| match command {
        Command::Extract(args) => extract::run(*args),
        Command::Encode(args) => encode::run(&args),
        Command::Steer(args) => steer::run(*args),
        Command::Attribute(args) => attribute::run(*args),
        Command::Cache(args) => cache::run(*args),
        Command::Index(args) => index::run(*args),
        Command::Activations(args) => activations::run(&args),
        Command::Map(args) => map::run(&args),
        Command::Quantize(args) => quantize::run(&args),
        Command::TrainSae(args) => train_sae::run(&args),
        Command::Export(args) => export::run(&args),
        Command::Import(args) => import::run(&args),
        Command::Explain(args) => explain::run(&args),
        Command::Work(args) => work::run(&args),
        Command::Score(args) => score::run(&args),
        Command::Queue(args) => queue::run(&args),
    });
    catch_unwind(work).unwrap_or_else(|_| Err(CliError::Bug(first_panic())))
}

/// What the first panic said, and where.
static FIRST_PANIC: Mutex<Option<String>> = Mutex::new(None);

/// Keeps panics off stderr, in every thread.
fn remember_panics() {
    set_hook(Box::new(|panic| {
        let message = panic.payload_as_str().unwrap_or("no message");
        let place = panic.location().map(|at| format!(" ({}:{})", at.file(), at.line())).unwrap_or_default();
        if let Ok(mut first) = FIRST_PANIC.lock() {
            first.get_or_insert(format!("{message}{place}"));
        }
    }));
}

fn first_panic() -> String {
    FIRST_PANIC.lock().ok().and_then(|mut first| first.take()).unwrap_or_else(|| "no message".to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // tests panic on purpose
    use super::*;
    use clap::{CommandFactory, Parser};

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(subcommand)]
        command: Command,
    }

    #[test]
    fn the_flags_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn features_are_lists_and_repeated_flags() {
        let line = "lmm-scope steer --model m --sae s --layer 1 --prompt p --clamp 1=2,3=4 --clamp 5=6 --ablate 7 8";
        let cli = Cli::try_parse_from(line.split(' ')).unwrap();
        let Command::Steer(args) = cli.command else { panic!("not a steer run") };
        let named: Vec<usize> = args.features.edits().iter().map(|edit| edit.feature).collect();
        assert_eq!(named, [1, 3, 5, 7, 8]);
    }
}
