//! `lmm-scope activations`: one feature out of an index, and nothing else of it.

use super::{
    CliError,
    args::{count, location},
    output::print_json,
    progress::Progress,
};
use clap::builder::BoolishValueParser;
use pipeline::{
    cache::Activation,
    index::{FeatureIndex, IndexError},
};
use serde::Serialize;
use std::io::{self, BufWriter, Write};
use store::objects::Location;

/// Print one feature's activations out of an index, on disk or in a bucket.
#[derive(Debug, Clone, clap::Args)]
pub struct ActivationsArgs {
    /// Folder of an index, as `lmm-scope index` writes it, or s3://bucket/prefix.
    #[arg(long, env = "LMM_SCOPE_INDEX", value_name = "DIR|S3", value_parser = location())]
    index: Location,

    /// Number of the feature.
    #[arg(long, env = "LMM_SCOPE_FEATURE", value_name = "ID", value_parser = count, allow_negative_numbers = true)]
    feature: usize,

    /// Print one JSON object instead of a table.
    #[arg(long, env = "LMM_SCOPE_JSON", value_parser = BoolishValueParser::new())]
    json: bool,
}

/// What `--json` prints: a column each, by image and token.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    feature: u32,
    images: Vec<u32>,
    tokens: Vec<u32>,
    values: Vec<f32>,
    /// Of `activations.parquet`: row groups and bytes that were read, besides the footer; and what there is of both.
    groups_read: u64,
    bytes_read: u64,
    groups: usize,
    bytes: u64,
    index: String,
    provenance: api::Provenance,
}

/// # Errors
/// Bad input, in one line.
pub fn run(args: &ActivationsArgs) -> Result<(), CliError> {
    let progress = Progress::start(format!("opening {}", args.index));
    let index = FeatureIndex::open(&args.index)?;
    let features = index.file().features();
    let feature = u32::try_from(args.feature).ok().filter(|feature| *feature < features).ok_or_else(|| {
        let reason = format!("feature {} does not exist: the index has {features}, counted from 0", args.feature);
        CliError::flag("--feature", reason)
    })?;
    drop(progress);
    let rows = index.file().rows_of(feature).map_err(IndexError::from)?;
    let rows = index.file().read(rows).map(|row| row.map_err(|error| CliError::from(IndexError::from(error))));
    if !args.json {
        return print_table(rows);
    }
    let mut answer = Answer { feature, ..Answer::default() };
    for row in rows {
        let row = row?;
        answer.images.push(row.image);
        answer.tokens.push(row.token);
        answer.values.push(row.value.to_f32());
    }
    let file = index.file();
    (answer.groups_read, answer.groups) = (file.groups_read(), file.groups());
    (answer.bytes_read, answer.bytes) = (file.bytes_read(), file.bytes());
    answer.index = args.index.to_string();
    answer.provenance = index.manifest().provenance();
    print_json(&answer)
}

/// Tab-separated, with a head; a feature may have more rows than memory.
fn print_table(rows: impl Iterator<Item = Result<Activation, CliError>>) -> Result<(), CliError> {
    let mut stdout = BufWriter::new(io::stdout().lock());
    writeln!(stdout, "image\ttoken\tvalue").map_err(CliError::Stdout)?;
    for row in rows {
        let Activation { image, token, value, .. } = row?;
        writeln!(stdout, "{image}\t{token}\t{value}").map_err(CliError::Stdout)?;
    }
    stdout.flush().map_err(CliError::Stdout)
}
