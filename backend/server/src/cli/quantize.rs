//! `lmm-scope quantize`: an SAE's checkpoint → the shards that browsers fetch.

use super::{
    CliError,
    encode::read_hidden,
    output::{print, print_json},
    progress::Progress,
    provenance::RunProvenance,
    setup::open_sae,
};
use api::{Agreement, SaeManifest, Tier, TierShards};
use clap::builder::BoolishValueParser;
use pipeline::quantize::{HiddenStates, MAX_SHARD_BYTES, QuantizeOptions, quantize};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// Write an SAE as browsers fetch it: in pieces, with fewer bits if they like.
#[derive(Debug, Clone, clap::Args)]
pub struct QuantizeArgs {
    /// Folder of the SAE: that of the hook point, or one that holds exactly one hook point.
    #[arg(long, env = "LMM_SCOPE_SAE", value_name = "DIR")]
    sae: PathBuf,

    /// Folder of the shards and their manifest.json; made if there is none. `serve` looks in the folder `browser` of the
    /// hook point's.
    #[arg(long, env = "LMM_SCOPE_OUT", value_name = "DIR")]
    out: PathBuf,

    /// What to write: f16, int8, int4, and slice: half floats of the latents that --filter lists.
    #[arg(long, env = "LMM_SCOPE_TIERS", value_name = "TIER,…", value_parser = tier, value_delimiter = ',',
        num_args = 1.., default_value = "f16,int8,int4")]
    tiers: Vec<Tier>,

    /// JSON file with the latents of the slice: {"model.layers.24": [5, 17, 3021]}.
    #[arg(long, env = "LMM_SCOPE_FILTER", value_name = "FILE")]
    filter: Option<PathBuf>,

    /// Write the decoder's rows as well, for reconstructions and neighbours.
    #[arg(long, env = "LMM_SCOPE_DECODER")]
    decoder: bool,

    /// Compare each tier with f32 on the `hidden` of this safetensors file, as `lmm-scope extract` writes it; of more
    /// than 4,096 tokens, as many at equal distances.
    #[arg(long, env = "LMM_SCOPE_HIDDEN", value_name = "FILE")]
    hidden: Option<PathBuf>,

    /// Print one JSON object.
    #[arg(long, env = "LMM_SCOPE_JSON", value_parser = BoolishValueParser::new())]
    json: bool,
}

fn tier(name: &str) -> Result<Tier, String> {
    Tier::from_name(name).ok_or_else(|| format!("`{name}` is not f16, int8, int4 or slice"))
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Report {
    manifest: SaeManifest,
    out: PathBuf,
    provenance: RunProvenance,
}

/// # Errors
/// Bad input, in one line.
pub fn run(args: &QuantizeArgs) -> Result<(), CliError> {
    check_out(&args.out)?;
    check_filter(args)?;
    let (folder, sae) = open_sae(&args.sae, None)?;
    let hidden = args.hidden.as_deref().map(|path| read_states(path, sae.d_in())).transpose()?;
    drop(sae);
    let options = QuantizeOptions {
        sae: folder.clone(),
        out: args.out.clone(),
        tiers: args.tiers.clone(),
        filter: args.filter.clone(),
        decoder: args.decoder,
        hidden,
        max_shard_bytes: MAX_SHARD_BYTES,
    };
    let progress = Progress::start("opening the SAE");
    let manifest = quantize(&options, &|doing| progress.say(doing))?;
    drop(progress);
    let report = Report { manifest, out: args.out.clone(), provenance: RunProvenance::of_sae(&folder)? };
    if args.json { print_json(&report) } else { print(&report.for_people()) }
}

fn check_out(out: &Path) -> Result<(), CliError> {
    if out.exists() && !out.is_dir() {
        return Err(CliError::file(out, "--out names a file; name a folder"));
    }
    match out.parent() {
        Some(above) if !above.as_os_str().is_empty() && !above.is_dir() => {
            Err(CliError::file(out, format!("there is no folder {} for --out", above.display())))
        }
        _ => Ok(()),
    }
}

/// A filter and a slice come together.
fn check_filter(args: &QuantizeArgs) -> Result<(), CliError> {
    match (&args.filter, args.tiers.contains(&Tier::Slice)) {
        (None, true) => Err(CliError::flag("--tiers", "a slice needs --filter FILE, which lists its latents")),
        (Some(_), false) => Err(CliError::flag("--filter", "only the tier slice reads it; add slice to --tiers")),
        _ => Ok(()),
    }
}

/// Hidden states, and the file's name for the manifest.
fn read_states(path: &Path, d_in: usize) -> Result<HiddenStates, CliError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok(HiddenStates { name, values: read_hidden(path, d_in)? })
}

impl Report {
    fn for_people(&self) -> String {
        let mut lines: Vec<String> = self.manifest.tiers.iter().map(tier_line).collect();
        if self.manifest.tiers.iter().all(|tier| tier.agreement.is_none()) {
            lines.push("not compared with f32; name hidden states with --hidden FILE for that".to_owned());
        }
        let SaeManifest { latents, d_model, hook_point, .. } = &self.manifest;
        lines.push(format!("{latents} latents of {d_model} dimensions at {hook_point} are in {}", self.out.display()));
        lines.join("\n")
    }
}

fn tier_line(tier: &TierShards) -> String {
    let TierShards { tier: name, rows, shards, agreement, .. } = tier;
    let mebibytes = tier.bytes() as f64 / f64::from(1 << 20);
    let files = if shards.len() == 1 { "1 file".to_owned() } else { format!("{} files", shards.len()) };
    let mut line = format!("{:<6} {rows} rows, {mebibytes:.1} MiB in {files}", name.as_str());
    if let Some(Agreement { tokens, overlap, overlap_min, value_error, fvu, fvu_f32, .. }) = agreement {
        let (overlap, overlap_min, value_error) = (100.0 * overlap, 100.0 * overlap_min, 100.0 * value_error);
        line += &format!(
            "; of f32's features {overlap:.2} % (at least {overlap_min:.1} %) with activations off by {value_error:.3} %, \
             FVU {fvu:.4} (f32 {fvu_f32:.4}), on {tokens} tokens"
        );
    }
    line
}
