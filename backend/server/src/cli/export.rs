//! `lmm-scope export`: artefacts → other programs' formats.

use super::{
    CliError,
    jobs::{JobsArgs, block_on},
    output::{print, print_json},
    progress::Progress,
    setup::open_sae,
};
use clap::builder::BoolishValueParser;
use model::{
    SaeFile,
    sae::{Activation, Normalisation},
};
use serde::Serialize;
use std::path::{Path, PathBuf};
use store::{
    StoreError,
    exchange::{Explanations, Report, dataset, multimodal_sae, neuronpedia, saelens, saelens::TopKShape},
    files::{self, FileError, names},
    jobs::add_scores,
};

/// Features per question to the database.
const FEATURES_AT_ONCE: u32 = 500;

/// Another program's format; docs/formats.md says what each carries and loses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// JSON lines of features, activations, explanations and scores, as Neuronpedia exports them.
    Neuronpedia,
    /// Explanations, labels, a filter and cached activations, as the paper's scripts have them.
    MultimodalSae,
    /// The SAE's weights.
    Saelens,
    /// One data set with a data card; it loses nothing of the store's files.
    Parquet,
}

/// Write features, explanations, activations and pictures, or the SAE, as other programs read them.
#[derive(Debug, Clone, clap::Args)]
pub struct ExportArgs {
    #[command(flatten)]
    jobs: JobsArgs,

    /// Format of the output.
    #[arg(long, env = "LMM_SCOPE_FORMAT", value_enum)]
    format: Format,

    /// Folder of the output; made if there is none. What will be written must not be in it already.
    #[arg(long, env = "LMM_SCOPE_OUT", value_name = "DIR")]
    out: PathBuf,

    /// User of a Neuronpedia who owns the rows there, for --format neuronpedia.
    #[arg(long, env = "LMM_SCOPE_CREATOR")]
    creator: Option<String>,

    /// Print one JSON object.
    #[arg(long, env = "LMM_SCOPE_JSON", value_parser = BoolishValueParser::new())]
    json: bool,
}

/// # Errors
/// Bad input, in one line.
pub fn run(args: &ExportArgs) -> Result<(), CliError> {
    if args.creator.is_some() && args.format != Format::Neuronpedia {
        return Err(CliError::flag("--creator", "only --format neuronpedia has owners of rows"));
    }
    let folder = &args.jobs.artifacts;
    if !folder.join(names::SOURCE).is_file() {
        let reason = format!("there is no {} here; name a folder with --artifacts", names::SOURCE);
        return Err(CliError::file(folder, reason));
    }
    let source = files::read_source(&folder.join(names::SOURCE)).map_err(file_error)?;
    let (more, lost) = explanations(args, &source)?;
    let progress = Progress::start("exporting");
    let done = match args.format {
        Format::Neuronpedia => neuronpedia::export(folder, &more, args.creator.as_deref(), &args.out),
        Format::MultimodalSae => multimodal_sae::export(folder, &more, &args.out),
        Format::Parquet => dataset::export(folder, &more, &args.out),
        Format::Saelens => {
            let place = folder.join("sae").join(&source.hook_point);
            if !place.is_dir() {
                return Err(CliError::file(&place, "there is no SAE of the source's hook point"));
            }
            let (sae_folder, sae) = open_sae(&place, None)?;
            saelens::export(&sae_folder, top_k_shape(&sae)?, &source, &args.out)
        }
    };
    drop(progress);
    let mut report = done.map_err(file_error)?;
    if args.jobs.database.is_none() && args.jobs.queue.is_none() {
        report.note("explanations that workers wrote are left out: name their database with --database or --queue");
    }
    if lost > 0 {
        report.note(format!("{lost} computed scores are of the files' own labels, which are exported as they are"));
    }
    say(args.format, &args.out, &report, args.json)
}

/// What workers wrote, if a database is named; and how many computed scores are of other explanations.
fn explanations(args: &ExportArgs, source: &api::Source) -> Result<(Explanations, usize), CliError> {
    if args.jobs.database.is_none() && args.jobs.queue.is_none() {
        return Ok((Explanations::new(), 0));
    }
    block_on(async {
        let queue = args.jobs.open_queue().await?;
        let (mut found, mut lost) = (Explanations::new(), 0);
        for first in (0..source.latents).step_by(FEATURES_AT_ONCE as usize) {
            let features: Vec<u32> = (first..source.latents.min(first.saturating_add(FEATURES_AT_ONCE))).collect();
            found.extend(queue.list_explanations(source, &features).await?);
            for (feature, mut scores) in queue.list_scores(source, Some(&features)).await? {
                let all = scores.len();
                let explanations = found.get_mut(&feature).map(Vec::as_mut_slice).unwrap_or_default();
                scores.retain(|score| explanations.iter().any(|said| said.id == score.explanation));
                lost += all - scores.len();
                add_scores(explanations, scores);
            }
        }
        queue.close().await;
        Ok((found, lost))
    })
}

/// Sizes of an SAE that both layouts can say.
///
/// # Errors
/// What it computes that one of them cannot say.
pub(super) fn top_k_shape(sae: &SaeFile) -> Result<TopKShape, CliError> {
    let refused = if sae.activation() != Activation::TopK {
        Some(format!("its activation is {:?}", sae.activation()))
    } else if sae.normalisation() != Normalisation::None {
        Some(format!("its hidden states are normalised ({:?})", sae.normalisation()))
    } else if !sae.subtracts_b_dec() {
        Some("its encoder reads the hidden state without b_dec subtracted".to_owned())
    } else {
        None
    };
    match refused {
        None => Ok(TopKShape { latents: sae.latents(), d_in: sae.d_in(), k: sae.k() }),
        Some(reason) => {
            let reason = format!("{reason}; only a TopK SAE that reads x − b_dec is converted");
            Err(CliError::file(sae.path(), reason))
        }
    }
}

pub(super) fn file_error(error: FileError) -> CliError {
    CliError::Store(StoreError::from(error))
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Answer<'a> {
    format: Format,
    out: &'a Path,
    #[serde(flatten)]
    report: &'a Report,
}

/// Prints what was written; for people, what the format does not hold goes to stderr.
pub(super) fn say(format: Format, out: &Path, report: &Report, json: bool) -> Result<(), CliError> {
    if json {
        return print_json(&Answer { format, out, report });
    }
    for note in &report.notes {
        eprintln!("note: {note}");
    }
    let counts = [
        (report.features, "features"),
        (report.explanations, "explanations"),
        (report.examples, "features on pictures"),
        (report.texts, "features on texts"),
        (report.pictures, "pictures"),
        (report.samples, "sample pictures"),
        (report.tensors, "tensors"),
    ];
    let said: Vec<String> =
        counts.into_iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")).collect();
    let said = if said.is_empty() { "nothing".to_owned() } else { said.join(", ") };
    print(&format!("{said} written to {}", out.display()))
}
