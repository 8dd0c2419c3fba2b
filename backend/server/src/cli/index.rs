//! `lmm-scope index`: the shards of a cache → one data set in the order of features, with statistics and examples.

use super::{
    CliError,
    args::{count, count_from_one, location},
    device::{OnBackend, run_on},
    output::{print, print_json},
    progress::Progress,
    setup::{Setup, name_culprit, open_sae},
};
use crate::{config::ComputeArgs, revision};
use burn::tensor::backend::Backend;
use clap::builder::BoolishValueParser;
use model::{Hook, Lmm, PromptInput};
use pipeline::{
    cache::{Cache, Settings},
    images::{ImageSet, Layout},
    index::{IndexError, IndexOptions, Summary, Upload, index, output_tokens},
    quantize::read_filter,
};
use serde::Serialize;
use std::path::{Path, PathBuf};
use store::objects::{Bucket, Location};
use tempfile::TempDir;

/// Most examples of a kind, and bars of a histogram: more are no overview.
const MOST: usize = 1000;

/// Sort a cache by feature: activations, statistics, examples and neighbours of each, as `serve` reads them.
#[derive(Debug, Clone, clap::Args)]
pub struct IndexArgs {
    /// Folder of a cache that is complete, as `lmm-scope cache` writes it.
    #[arg(long, env = "LMM_SCOPE_CACHE", value_name = "DIR")]
    cache: PathBuf,

    /// Folder of the SAE that the cache was made with: that of the hook point, or one that holds it; or the id of a
    /// repository on the Hugging Face Hub.
    #[arg(long, env = "LMM_SCOPE_SAE", value_name = "DIR|HF_ID")]
    sae: PathBuf,

    /// The checkpoint that the cache was made with, for the output tokens that a feature raises and lowers. Without it,
    /// features have none.
    #[arg(long, env = "LMM_SCOPE_MODEL", value_name = "DIR|HF_ID")]
    model: Option<String>,

    /// Branch, tag or commit of the repository. Without it, its main branch.
    #[arg(long, env = "LMM_SCOPE_REVISION", requires = "model")]
    revision: Option<String>,

    #[command(flatten)]
    compute: ComputeArgs,

    /// The pictures that the cache was made of. Without them, heat maps lie on plain grey.
    #[arg(long, env = "LMM_SCOPE_IMAGES", value_name = "PATH")]
    images: Option<PathBuf>,

    /// How the pictures are kept, if it is not to be found out: folder, imagefolder, parquet or webdataset.
    #[arg(long, env = "LMM_SCOPE_LAYOUT", value_name = "LAYOUT", requires = "images")]
    layout: Option<Layout>,

    /// The features of a cache that was made with --filter; the same file.
    #[arg(long, env = "LMM_SCOPE_FILTER", value_name = "FILE")]
    filter: Option<PathBuf>,

    /// Folder of the index, made if there is none; or s3://bucket/prefix. An older index there is replaced when the new
    /// one is whole.
    #[arg(long, env = "LMM_SCOPE_OUT", value_name = "DIR|S3", value_parser = location())]
    out: Location,

    /// Folder in which an index for a bucket is made first. Without it, the system's for temporary files.
    #[arg(long, env = "LMM_SCOPE_STAGING", value_name = "DIR")]
    staging: Option<PathBuf>,

    /// Examples per feature, of each kind: by mean, by maximum, by quantile of the maximum, at random.
    #[arg(long, env = "LMM_SCOPE_EXAMPLES", value_name = "N", default_value = "60", value_parser = count,
        allow_negative_numbers = true)]
    examples: usize,

    /// Bars of a feature's histogram of activations.
    #[arg(long, env = "LMM_SCOPE_BINS", value_name = "N", default_value = "24", value_parser = count_from_one,
        allow_negative_numbers = true)]
    bins: usize,

    /// Mebibytes that the files of a merge may take: 4 each. More shards than that are merged in several passes.
    #[arg(long, env = "LMM_SCOPE_MEMORY", value_name = "MB", default_value = "1024", value_parser = count_from_one,
        allow_negative_numbers = true)]
    memory: usize,

    /// Threads that count and compare. Without it, as many as there are cores.
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
struct Report {
    #[serde(flatten)]
    summary: Summary,
    out: String,
}

/// # Errors
/// Bad input, in one line. An older index is then as it was.
pub fn run(args: IndexArgs) -> Result<(), CliError> {
    check(&args)?;
    let settings = Cache::open(&args.cache)?.manifest.settings;
    if settings.latents == 0 {
        return Err(CliError::file(&args.cache, "this cache has hidden states alone; make one with --sae"));
    }
    let hook: Hook = settings.hook_point.parse().map_err(|error: String| CliError::file(&args.cache, error))?;
    let (folder, sae) = open_sae(&args.sae, Some(hook))?;
    same_revision(&folder, &revision::of_sae(&folder)?, &settings.sae_revision)?;
    let filter = args.filter.as_deref().map(|path| read_filter(path, &hook.to_string(), sae.latents())).transpose()?;
    let images = args.images.as_deref().map(|path| open_images(path, &args)).transpose()?;
    let setup = args.model.as_deref().map(|model| open_model(model, hook, &args, &settings)).transpose()?;
    if let Some(setup) = &setup {
        setup.check_sae(&folder, &sae)?;
    }
    let out = Out::begin(&args)?;
    let options = IndexOptions {
        cache: &args.cache,
        out: out.folder(),
        sae: Some(&sae),
        images: images.as_ref(),
        filter: filter.as_deref(),
        examples: args.examples,
        bins: args.bins,
        memory: (args.memory as u64).saturating_mul(1 << 20),
        threads: args.threads,
    };
    let summary = match setup {
        None => {
            let progress = Progress::start("opening the cache");
            index(&options, None, &|doing| progress.say(doing))?
        }
        Some(setup) => {
            let (device, checkpoint) = (setup.device, setup.folder.clone());
            let mut summary = Summary::default();
            let work = Work { setup, options: &options, summary: &mut summary };
            run_on(device, work).map_err(|error| name_culprit(error, &checkpoint))?;
            summary
        }
    };
    out.finish()?;
    let report = Report { summary, out: args.out.to_string() };
    if args.json { print_json(&report) } else { print(&report.for_people()) }
}

/// What the flags alone show.
fn check(args: &IndexArgs) -> Result<(), CliError> {
    match (&args.out, &args.staging) {
        (Location::Folder(out), None) => check_folder(out, &args.cache)?,
        (Location::Folder(_), Some(_)) => {
            return Err(CliError::flag("--staging", "only an index for a bucket is made in another folder first"));
        }
        (Location::Bucket { .. }, Some(staging)) if !staging.is_dir() => {
            return Err(CliError::file(staging, "there is no such folder for --staging"));
        }
        (Location::Bucket { .. }, _) => {}
    }
    for (flag, number) in [("--examples", args.examples), ("--bins", args.bins)] {
        if number > MOST {
            return Err(CliError::flag(flag, format!("at most {MOST}")));
        }
    }
    Ok(())
}

fn check_folder(out: &Path, cache: &Path) -> Result<(), CliError> {
    if out.exists() && !out.is_dir() {
        return Err(CliError::file(out, "--out names a file; name a folder"));
    }
    let above = out.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !above.is_dir() {
        return Err(CliError::file(out, format!("there is no folder {} for --out", above.display())));
    }
    if let (Ok(folder), Ok(cache)) = (out.canonicalize(), cache.canonicalize())
        && folder == cache
    {
        return Err(CliError::file(out, "--out is the folder of the cache; name another"));
    }
    Ok(())
}

/// Where the index is made.
enum Out<'a> {
    Here(&'a Path),
    /// In a folder of its own, and then a bucket.
    Bucket {
        folder: TempDir,
        upload: Upload,
    },
}

impl<'a> Out<'a> {
    /// # Errors
    /// What would stop an upload, as far as that shows beforehand.
    fn begin(args: &'a IndexArgs) -> Result<Self, CliError> {
        let (bucket, prefix) = match &args.out {
            Location::Folder(folder) => return Ok(Self::Here(folder)),
            Location::Bucket { bucket, prefix } => (bucket, prefix),
        };
        let upload = Upload::begin(Bucket::connect(bucket, prefix).map_err(IndexError::from)?)?;
        let within = args.staging.clone().unwrap_or_else(std::env::temp_dir);
        let folder = tempfile::Builder::new().prefix("lmm-scope-index-").tempdir_in(&within);
        let folder = folder.map_err(|error| CliError::file(&within, format!("no folder can be made here: {error}")))?;
        Ok(Self::Bucket { folder, upload })
    }

    fn folder(&self) -> &Path {
        match self {
            Self::Here(folder) => folder,
            Self::Bucket { folder, .. } => folder.path(),
        }
    }

    /// What was made may have taken hours: it stays if it cannot be uploaded.
    fn finish(self) -> Result<(), CliError> {
        let Self::Bucket { folder, upload } = self else { return Ok(()) };
        let progress = Progress::start("uploading the index");
        upload.commit(folder.path(), &|doing| progress.say(doing)).map_err(|error| {
            let kept = folder.keep();
            CliError::flag("--out", format!("{error}; the index itself is whole in {}", kept.display()))
        })
    }
}

/// Weights must be those that the cache was made with.
fn same_revision(path: &Path, found: &str, wanted: &str) -> Result<(), CliError> {
    if found == wanted {
        return Ok(());
    }
    Err(CliError::file(path, format!("these weights are {found}, but the cache was made with {wanted}; name the same")))
}

fn open_images(path: &Path, args: &IndexArgs) -> Result<ImageSet, CliError> {
    let images = ImageSet::open(path, args.layout)?;
    let of = Cache::open(&args.cache)?.manifest.image_set;
    if images.listing() == of.listing && images.layout().to_string() == of.layout {
        return Ok(images);
    }
    let reason = format!(
        "other pictures than the cache was made of ({}, {}), or files have come, gone or changed since; leave --images \
         out, or name the same",
        of.name, of.layout
    );
    Err(CliError::file(path, reason))
}

fn open_model(model: &str, hook: Hook, args: &IndexArgs, settings: &Settings) -> Result<Setup, CliError> {
    if let Hook::Vision(_) = hook {
        return Err(CliError::flag("--model", format!("{hook} does not write words; leave --model out")));
    }
    let named = (hook, "--cache");
    let setup = Setup::without_picture(model, args.revision.as_deref(), args.compute, named, PromptInput::default())?;
    let found = revision::of_files(&model::weights::checkpoint_files(&setup.folder)?)?;
    let wanted = settings.model.rsplit_once('@').map_or(settings.model.as_str(), |(_, revision)| revision);
    same_revision(&setup.folder, &found, wanted)?;
    Ok(setup)
}

/// An index with output tokens.
struct Work<'a> {
    setup: Setup,
    options: &'a IndexOptions<'a>,
    summary: &'a mut Summary,
}

impl OnBackend for Work<'_> {
    fn run<B: Backend>(self, device: &B::Device) -> Result<(), CliError> {
        let Self { setup, options, summary } = self;
        let progress = Progress::start(format!("loading {}", setup.name));
        let lmm = Lmm::<B>::load_as(&setup.folder, device, setup.dtype)?;
        let d_model = setup.width();
        let mut words = |rows: &[f32]| output_tokens(&lmm, rows, d_model);
        *summary = index(options, Some(&mut words), &|doing| progress.say(doing))?;
        Ok(())
    }
}

impl Report {
    fn for_people(&self) -> String {
        let Summary { manifest, passes, bytes, .. } = &self.summary;
        let share = |bytes: u64, of: u64| if of == 0 { 0.0 } else { bytes as f64 / of as f64 };
        let mut lines = vec![format!(
            "{} activations of {} features ({} dead) on {} pictures, {:.2} bytes each, sorted in {passes} {}",
            manifest.activations,
            manifest.features,
            manifest.dead,
            manifest.pictures,
            share(*bytes, manifest.activations),
            if *passes == 1 { "pass" } else { "passes" },
        )];
        if !manifest.images {
            lines.push("examples are shown on plain grey; name the pictures with --images for more".to_owned());
        }
        if !manifest.output_tokens {
            lines.push("features have no output tokens; name the checkpoint with --model for that".to_owned());
        }
        lines.push(format!("the index is in {}", self.out));
        lines.join("\n")
    }
}
