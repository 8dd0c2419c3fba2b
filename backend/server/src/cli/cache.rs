//! `lmm-scope cache`: an image set, a model and an SAE → sorted sparse activations in shards.

use super::{
    CliError,
    args::{HookArgs, count_from_one},
    device::{OnBackend, run_on},
    output::{print, print_json},
    progress::Progress,
    setup::{Setup, name_culprit, open_sae},
};
use crate::{
    config::ComputeArgs,
    engine::Device,
    revision::{self, digits},
};
use burn::tensor::backend::Backend;
use clap::builder::BoolishValueParser;
use model::{Hook, Lmm, PromptInput, Sae, SaeFile, chat::ChatTemplate};
use pipeline::{
    cache::{
        Beginning, CacheError, CacheFolder, Extractor, FORMAT, FilterOf, Job, MAX_SHARD_PICTURES, Manifest, SaeWeights,
        Settings, Share, Summary, TokenKind, begin, finish, run as run_job,
    },
    images::{ImageSet, Layout},
    quantize::read_filter,
};
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// How often a run without a terminal says how far it is, if it is asked to (`RUST_LOG=info`).
const LOG_EVERY: Duration = Duration::from_secs(30);
/// The prompt of the paper's cache: the picture and nothing else.
const PICTURE_ALONE: &str = "<image>";

/// Run an image set through model and SAE and keep the activations, in shards that any number of processes write.
#[derive(Debug, Clone, clap::Args)]
pub struct CacheArgs {
    /// Checkpoint folder in Hugging Face's form, or the id of a repository on the Hugging Face Hub (owner/name).
    #[arg(long, env = "LMM_SCOPE_MODEL", value_name = "DIR|HF_ID")]
    model: String,

    /// Branch, tag or commit of the repository. Without it, its main branch.
    #[arg(long, env = "LMM_SCOPE_REVISION")]
    revision: Option<String>,

    #[command(flatten)]
    compute: ComputeArgs,

    #[command(flatten)]
    hook: HookArgs,

    /// Folder of the SAE: that of the hook point, or one that holds it; or the id of a repository on the Hugging Face
    /// Hub. May be left out with --hidden: then hidden states alone are kept, for training one.
    #[arg(long, env = "LMM_SCOPE_SAE", value_name = "DIR|HF_ID", required_unless_present = "hidden")]
    sae: Option<PathBuf>,

    /// Pictures: a folder of them, an ImageFolder with metadata.jsonl, Parquet files or WebDataset tars in a folder, or
    /// one such file.
    #[arg(long, env = "LMM_SCOPE_IMAGES", value_name = "PATH")]
    images: PathBuf,

    /// How the pictures are kept, if it is not to be found out: folder, imagefolder, parquet or webdataset.
    #[arg(long, env = "LMM_SCOPE_LAYOUT", value_name = "LAYOUT")]
    layout: Option<Layout>,

    /// A person's turn; goes through the checkpoint's chat template, the picture before the words.
    #[arg(
        long,
        env = "LMM_SCOPE_PROMPT",
        value_name = "TEXT",
        allow_hyphen_values = true,
        conflicts_with = "raw_prompt"
    )]
    prompt: Option<String>,

    /// Given to the tokenizer as it stands; `<image>` is the place of the picture. Without a prompt, it is the whole
    /// prompt, as in the paper.
    #[arg(long, env = "LMM_SCOPE_RAW_PROMPT", value_name = "TEXT", allow_hyphen_values = true)]
    raw_prompt: Option<String>,

    /// Tokens whose activations are kept: image, text, or both. The token that begins every text is never kept.
    #[arg(long, env = "LMM_SCOPE_TOKENS", value_name = "KIND,…", value_parser = token_kind, value_delimiter = ',',
        num_args = 1.., default_value = "image")]
    tokens: Vec<TokenKind>,

    /// JSON file with the features that are kept: {"model.layers.24": [5, 17, 3021]}. Without it, all are.
    #[arg(long, env = "LMM_SCOPE_FILTER", value_name = "FILE", requires = "sae")]
    filter: Option<PathBuf>,

    /// Keep the hidden states of these tokens as well, in half precision.
    #[arg(long, env = "LMM_SCOPE_HIDDEN", value_parser = BoolishValueParser::new())]
    hidden: bool,

    /// Folder of the cache; made if there is none. A run that was ended goes on where it was.
    #[arg(long, env = "LMM_SCOPE_OUT", value_name = "DIR")]
    out: PathBuf,

    /// Pictures per shard. A process holds 16 bytes for every activation of a shard.
    #[arg(long, env = "LMM_SCOPE_SHARD_PICTURES", value_name = "N", default_value = "64", value_parser = count_from_one,
        allow_negative_numbers = true)]
    shard_pictures: usize,

    /// Do only every n-th shard, from shard i on: 0/4, 1/4, 2/4, 3/4. Processes that see the same folder and its locks
    /// share the work without it.
    #[arg(long, env = "LMM_SCOPE_SHARD", value_name = "I/N")]
    shard: Option<Share>,

    /// Print one JSON object.
    #[arg(long, env = "LMM_SCOPE_JSON", value_parser = BoolishValueParser::new())]
    json: bool,
}

/// `image` or `text`.
pub(super) fn token_kind(name: &str) -> Result<TokenKind, String> {
    match name {
        "image" => Ok(TokenKind::Image),
        "text" => Ok(TokenKind::Text),
        _ => Err(format!("`{name}` is not image or text")),
    }
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    manifest: Manifest,
    #[serde(flatten)]
    summary: Summary,
    /// Nothing if there are no activations.
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes_per_activation: Option<f64>,
    out: PathBuf,
    device: String,
}

/// An SAE, its matrices not yet read.
struct OpenSae {
    folder: PathBuf,
    file: SaeFile,
}

/// # Errors
/// Bad input, in one line. Shards that are done stay.
pub fn run(args: CacheArgs) -> Result<(), CliError> {
    check_out(&args)?;
    let input = prompt_of(args.prompt.as_deref(), args.raw_prompt.as_deref());
    let setup = Setup::without_picture(&args.model, args.revision.as_deref(), args.compute, args.hook.named(), input)?;
    let rendered = rendered(&setup)?;
    let sae = args.sae.as_deref().map(|dir| open_sae(dir, Some(setup.hook))).transpose()?;
    let sae = sae.map(|(folder, file)| OpenSae { folder, file });
    if let Some(sae) = &sae {
        setup.check_sae(&sae.folder, &sae.file)?;
    }
    let filter = match (&args.filter, &sae) {
        (Some(path), Some(sae)) => Some(read_filter(path, &setup.hook.to_string(), sae.file.latents())?),
        _ => None,
    };
    let settings = args.settings(&setup, &rendered, sae.as_ref(), filter.as_deref())?;
    let images = ImageSet::open(&args.images, args.layout)?;

    let folder = CacheFolder::new(&args.out);
    let progress = Progress::start("looking through the pictures");
    let date = time::OffsetDateTime::now_utc().date().to_string();
    let manifest = begin(&folder, settings, &images, date, &mut |beginning| match beginning {
        Beginning::Waiting => progress.say("waiting for the process that lists the pictures"),
        Beginning::Listed(pictures) => progress.say(format!("{pictures} pictures listed")),
    })?;
    drop(progress);

    let share = args.shard.unwrap_or_default();
    let (device, checkpoint, out) = (setup.device, setup.folder.clone(), args.out.clone());
    let missing = |shard: u32| share.has(shard) && !folder.shard(shard).is_file();
    if (0..manifest.shards).any(missing) {
        let (folder, manifest, filter) = (&folder, &manifest, filter.as_deref());
        let work = Work { setup, sae, folder, manifest, images: &images, filter, tokens: &args.tokens, share };
        run_on(device, work).map_err(|error| name_culprit(error, &checkpoint))?;
    }
    let summary = finish(&folder, &manifest)?;
    let bytes_per_activation = (summary.activations > 0).then(|| summary.bytes as f64 / summary.activations as f64);
    let report = Report { manifest, summary, bytes_per_activation, out, device: device.to_string() };
    if args.json { print_json(&report) } else { print(&report.for_people()) }
}

/// The folder is one, or can be made, and not among the pictures: it would make another set of them.
fn check_out(args: &CacheArgs) -> Result<(), CliError> {
    let out = &args.out;
    if args.sae.is_none() && !args.hidden {
        return Err(CliError::flag("--sae", "without an SAE nothing is kept; name one, or ask for --hidden"));
    }
    if out.exists() && !out.is_dir() {
        return Err(CliError::file(out, "--out names a file; name a folder"));
    }
    let above = out.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !above.is_dir() {
        return Err(CliError::file(out, format!("there is no folder {} for --out", above.display())));
    }
    if args.shard_pictures > MAX_SHARD_PICTURES as usize {
        return Err(CliError::flag("--shard-pictures", format!("at most {MAX_SHARD_PICTURES}")));
    }
    let place = if out.exists() { out.canonicalize() } else { above.canonicalize() };
    if let (Ok(place), Ok(images)) = (place, args.images.canonicalize())
        && place.starts_with(&images)
    {
        let reason = format!("--out is among the pictures in {}; name a folder elsewhere", args.images.display());
        return Err(CliError::file(out, reason));
    }
    Ok(())
}

/// What every picture is asked; without a prompt, the picture alone.
pub(super) fn prompt_of(prompt: Option<&str>, raw_prompt: Option<&str>) -> PromptInput {
    let chat = prompt.is_some();
    let text = prompt.or(raw_prompt).unwrap_or(PICTURE_ALONE).to_owned();
    PromptInput { text, chat, image: None }
}

/// The text that is tokenised, with exactly one place for the picture.
pub(super) fn rendered(setup: &Setup) -> Result<String, CliError> {
    let PromptInput { text, chat, .. } = &setup.input;
    let rendered = if *chat { ChatTemplate::load(&setup.folder)?.render(text, true)? } else { text.clone() };
    match rendered.matches(PICTURE_ALONE).count() {
        1 => Ok(rendered),
        found => {
            let flag = if *chat { "--prompt" } else { "--raw-prompt" };
            let reason = format!("the prompt names {found} pictures ({PICTURE_ALONE}); every run has exactly one");
            Err(CliError::flag(flag, reason))
        }
    }
}

/// What decides the hidden states of pictures; without an SAE, and not yet cut into shards. `flag` named the tokens.
pub(super) fn settings_of(
    setup: &Setup,
    rendered: &str,
    tokens: &[TokenKind],
    flag: &'static str,
) -> Result<Settings, CliError> {
    let weights = revision::of_files(&model::weights::checkpoint_files(&setup.folder)?)?;
    let mut tokens = tokens.to_vec();
    tokens.sort_unstable();
    tokens.dedup();
    if matches!(setup.hook, Hook::Vision(_)) && tokens.contains(&TokenKind::Text) {
        return Err(CliError::flag(flag, format!("{} sees no text; keep image alone", setup.hook)));
    }
    Ok(Settings {
        format: FORMAT,
        model: format!("{}@{weights}", setup.name),
        hook_point: setup.hook.to_string(),
        dtype: setup.dtype.to_string(),
        prompt: setup.input.text.clone(),
        chat: setup.input.chat,
        prompt_hash: digits(&Sha256::digest(rendered)),
        tokens,
        d_model: setup.width() as u32,
        hidden: true,
        ..Settings::default()
    })
}

impl CacheArgs {
    fn settings(
        &self,
        setup: &Setup,
        rendered: &str,
        sae: Option<&OpenSae>,
        filter: Option<&[u32]>,
    ) -> Result<Settings, CliError> {
        Ok(Settings {
            sae_revision: sae.map(|sae| revision::of_sae(&sae.folder)).transpose()?.unwrap_or_default(),
            k: sae.map_or(0, |sae| sae.file.k() as u32),
            latents: sae.map_or(0, |sae| sae.file.latents() as u32),
            filter: filter.map(FilterOf::of),
            hidden: self.hidden,
            shard_pictures: self.shard_pictures as u32,
            ..settings_of(setup, rendered, &self.tokens, "--tokens")?
        })
    }
}

/// The shards that are to be done.
struct Work<'a> {
    setup: Setup,
    sae: Option<OpenSae>,
    folder: &'a CacheFolder,
    manifest: &'a Manifest,
    images: &'a ImageSet,
    filter: Option<&'a [u32]>,
    tokens: &'a [TokenKind],
    share: Share,
}

impl OnBackend for Work<'_> {
    fn run<B: Backend>(self, device: &B::Device) -> Result<(), CliError> {
        let Self { setup, sae, folder, manifest, images, filter, tokens, share } = self;
        let progress = Progress::start(format!("loading {}", setup.name));
        let lmm = Lmm::<B>::load_as(&setup.folder, device, setup.dtype)?;
        let weights = |sae: OpenSae| match setup.device {
            Device::Cpu => Ok(SaeWeights::Mapped(Box::new(sae.file))),
            Device::Cuda(_) => Sae::<B>::from_file(&sae.file, device).map(|sae| SaeWeights::Loaded(Box::new(sae))),
        };
        let sae = sae.map(weights).transpose()?;
        let PromptInput { text, chat, .. } = setup.input;
        let extractor = Extractor::new(lmm, sae, setup.hook, text, chat, tokens);
        let job = Job { folder, manifest, images, extractor: &extractor, filter };
        progress.say("waiting for shards that other processes do");
        let mut logged = Instant::now();
        let done = run_job(&job, share, &mut |at| {
            let line = line_of(at);
            if logged.elapsed() >= LOG_EVERY {
                tracing::info!(pictures = at.pictures, shards_done = at.shards_done, shards = at.shards, "{line}");
                logged = Instant::now();
            }
            progress.say(line);
        });
        done.map_err(|error| match error {
            // Not one picture's fault: let it be looked for in the checkpoint.
            CacheError::Picture { source, .. } if matches!(*source, model::Error::NotFinite { .. }) => (*source).into(),
            other => other.into(),
        })
    }
}

fn line_of(at: &pipeline::cache::Progress) -> String {
    let left = at.left.map_or_else(String::new, |left| {
        let minutes = left.as_secs().div_ceil(60);
        if minutes < 120 { format!(", {minutes} min left") } else { format!(", {} h left", minutes / 60) }
    });
    let pipeline::cache::Progress { pictures, per_second, shards_done, shards, .. } = at;
    format!("{pictures} pictures, {per_second:.1} images/s, {shards_done} of {shards} shards done{left}")
}

impl Report {
    fn for_people(&self) -> String {
        let Summary { complete, shards_done, shards, pictures, skipped, first_skipped, activations, .. } =
            &self.summary;
        let mut lines: Vec<String> =
            first_skipped.iter().map(|one| format!("skipped {} ({}): {}", one.image, one.id, one.reason)).collect();
        if *skipped > first_skipped.len() as u64 {
            lines.push(format!("and {} more", skipped - first_skipped.len() as u64));
        }
        if !complete {
            lines.push(format!("{shards_done} of {shards} shards are done; other shares are not"));
        }
        let duplicates = self.manifest.image_set.listed.duplicates;
        let size = self.bytes_per_activation.map_or_else(String::new, |bytes| format!(" of {bytes:.2} bytes each"));
        lines.push(format!(
            "{activations} activations{size} of {pictures} pictures are in {}; {duplicates} duplicates and {skipped} \
             pictures that cannot be read were passed over",
            self.out.display()
        ));
        lines.join("\n")
    }
}
