//! `lmm-scope map`: places for the living features of artefacts that were made before there was a map, or elsewhere.

use super::{
    CliError,
    args::count_from_one,
    export::file_error,
    output::{print, print_json},
    progress::Progress,
    setup::open_sae,
};
use crate::revision;
use clap::builder::BoolishValueParser;
use model::Hook;
use pipeline::index::map_features;
use serde::Serialize;
use std::path::PathBuf;
use store::files::{self, names};

/// Put the living features of a folder of artifacts on a map.
#[derive(Debug, Clone, clap::Args)]
pub struct MapArgs {
    /// Folder of the features, as `lmm-scope pocket` and `lmm-scope index` write it; its features.parquet is written
    /// anew.
    #[arg(long, env = "LMM_SCOPE_ARTIFACTS", value_name = "DIR", default_value = "public/pocket")]
    artifacts: PathBuf,

    /// Folder of the SAE that they are features of: that of the hook point, or one that holds it; or the id of a
    /// repository on the Hugging Face Hub. Without it, the folder `sae` of the artifacts.
    #[arg(long, env = "LMM_SCOPE_SAE", value_name = "DIR|HF_ID")]
    sae: Option<PathBuf>,

    /// Threads that compare. Without it, as many as there are cores.
    #[arg(long, env = "LMM_SCOPE_THREADS", value_name = "N", value_parser = count_from_one,
        allow_negative_numbers = true)]
    threads: Option<usize>,

    /// Print one JSON object.
    #[arg(long, env = "LMM_SCOPE_JSON", value_parser = BoolishValueParser::new())]
    json: bool,
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    features: usize,
    /// Features that are on the map.
    placed: usize,
    out: PathBuf,
    provenance: api::Provenance,
}

/// # Errors
/// Bad input, in one line. The file is then as it was.
pub fn run(args: &MapArgs) -> Result<(), CliError> {
    let path = args.artifacts.join(names::SOURCE);
    let source = files::read_source(&path).map_err(file_error)?;
    let hook: Hook = source.hook_point.parse().map_err(|error: String| CliError::file(&path, error))?;
    let beside = args.artifacts.join("sae");
    if args.sae.is_none() && !beside.is_dir() {
        return Err(CliError::file(&beside, "there is no SAE here; name one with --sae"));
    }
    let (folder, sae) = open_sae(args.sae.as_ref().unwrap_or(&beside), Some(hook))?;
    if (sae.latents(), sae.d_in()) != (source.latents as usize, source.d_model as usize) {
        let (latents, d) = (sae.latents(), sae.d_in());
        let reason = format!(
            "{latents} latents of {d} dimensions; the artifacts are of {} of {}",
            source.latents, source.d_model
        );
        return Err(CliError::file(&folder, reason));
    }
    let (found, wanted) = (revision::of_sae(&folder)?, &source.provenance.sae_revision);
    // Other programs' files may not say which weights they are of.
    if !wanted.is_empty() && found != *wanted {
        let reason = format!("these weights are {found}, but the artifacts were made with {wanted}; name the same");
        return Err(CliError::file(&folder, reason));
    }
    let path = args.artifacts.join(names::FEATURES);
    let progress = Progress::start("reading the features");
    let mut rows = files::read_features(&path).map_err(file_error)?;
    let placed = map_features(&sae, &mut rows, args.threads, &|doing| progress.say(doing))?;
    files::write_features(&path, &rows).map_err(file_error)?;
    drop(progress);
    let answer = Answer { features: rows.len(), placed, out: path, provenance: source.provenance };
    if args.json {
        return print_json(&answer);
    }
    print(&format!("{placed} of {} features have a place in {}", answer.features, answer.out.display()))
}
