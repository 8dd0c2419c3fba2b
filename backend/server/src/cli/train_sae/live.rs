//! `train-sae --images`: hidden states straight from a model, on whatever device it runs.

use super::TrainSaeArgs;
use crate::{
    cli::{
        CliError,
        args::{count, count_from_one},
        cache::{prompt_of, rendered, settings_of, token_kind},
        device::{OnBackend, run_on},
        progress::Progress,
        setup::{Setup, name_culprit},
    },
    config::ComputeArgs,
    engine::Device,
};
use burn::tensor::backend::Backend;
use model::{Dtype, Hook, Lmm, PromptInput};
use pipeline::{
    cache::{Extractor, Settings, TokenKind},
    images::{ImageSet, Layout},
    train::{LiveProgress, LiveTokens, check_out},
};
use std::path::Path;

/// The model that looks at the pictures, and what it is asked.
#[derive(Debug, Clone, clap::Args)]
pub struct LiveArgs {
    /// With --images: checkpoint folder in Hugging Face's form, or the id of a repository on the Hugging Face Hub
    /// (owner/name).
    #[arg(long, env = "LMM_SCOPE_MODEL", value_name = "DIR|HF_ID")]
    model: Option<String>,

    /// Branch, tag or commit of the repository. Without it, its main branch.
    #[arg(long, env = "LMM_SCOPE_REVISION")]
    revision: Option<String>,

    /// Block of the language model whose output is read, counted from 0.
    #[arg(long, env = "LMM_SCOPE_LAYER", value_name = "N", value_parser = count, allow_negative_numbers = true,
        conflicts_with = "hook")]
    layer: Option<usize>,

    /// Hook point by its name: layers.24 is block 24 of the language model, vision.22 that of the vision tower.
    #[arg(long, env = "LMM_SCOPE_HOOK", value_name = "NAME", allow_negative_numbers = true)]
    hook: Option<Hook>,

    /// Device that the model runs on: cpu, cuda (the first card) or cuda:1. CUDA needs a program built with
    /// `--features cuda`.
    #[arg(long, env = "LMM_SCOPE_DEVICE", default_value_t)]
    device: Device,

    /// What the model computes in: f32, f16 or bf16.
    #[arg(long, env = "LMM_SCOPE_MODEL_DTYPE", default_value_t)]
    model_dtype: Dtype,

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
    /// prompt.
    #[arg(long, env = "LMM_SCOPE_RAW_PROMPT", value_name = "TEXT", allow_hyphen_values = true)]
    raw_prompt: Option<String>,

    /// Tokens that are trained on: image, text, or both. The token that begins every text never is.
    #[arg(long, env = "LMM_SCOPE_TOKEN_KINDS", value_name = "KIND,…", value_parser = token_kind,
        value_delimiter = ',', num_args = 1.., default_value = "image")]
    token_kinds: Vec<TokenKind>,

    /// Pictures whose tokens are mixed. Memory holds the hidden states of twice as many, in half precision.
    #[arg(long, env = "LMM_SCOPE_BUFFER_PICTURES", value_name = "N", value_parser = count_from_one,
        default_value = "256", allow_negative_numbers = true)]
    buffer_pictures: usize,
}

/// # Errors
/// Bad input, in one line.
pub fn run(args: &TrainSaeArgs, images: &Path) -> Result<(), CliError> {
    let live = &args.live;
    check_out(&args.out)?;
    check_apart(&args.out, images)?;
    let setup = live.setup()?;
    let rendered = rendered(&setup)?;
    let settings = Settings {
        shard_pictures: u32::try_from(live.buffer_pictures).unwrap_or(u32::MAX),
        ..settings_of(&setup, &rendered, &live.token_kinds, "--token-kinds")?
    };
    // Before minutes go by with the weights and the pictures.
    args.settings(None, setup.width())?.check(None)?;
    let images = ImageSet::open(images, live.layout)?;
    let (device, checkpoint) = (setup.device, setup.folder.clone());
    let work = Work { args, setup, settings, images: &images };
    run_on(device, work).map_err(|error| name_culprit(error, &checkpoint))
}

impl LiveArgs {
    fn setup(&self) -> Result<Setup, CliError> {
        let hook = match (self.hook, self.layer) {
            (Some(hook), _) => (hook, "--hook"),
            (None, Some(layer)) => (Hook::Block(layer), "--layer"),
            (None, None) => {
                let reason = "say where --model is read, such as --hook layers.24 for the output of block 24";
                return Err(CliError::flag("--hook", reason));
            }
        };
        let compute = ComputeArgs { device: self.device, dtype: self.model_dtype };
        let input = prompt_of(self.prompt.as_deref(), self.raw_prompt.as_deref());
        // The flag --images requires it.
        let model = self.model.as_deref().unwrap_or_default();
        Setup::without_picture(model, self.revision.as_deref(), compute, hook, input)
    }
}

/// What is written among the pictures would make another set of them.
fn check_apart(out: &Path, images: &Path) -> Result<(), CliError> {
    let here = Path::new(".");
    let mut above = out.ancestors().map(|above| if above.as_os_str().is_empty() { here } else { above });
    let place = above.find_map(|above| above.canonicalize().ok());
    match (place, images.canonicalize()) {
        (Some(place), Ok(images)) if place.starts_with(&images) => {
            let reason = format!("--out is among the pictures in {}; name a folder elsewhere", images.display());
            Err(CliError::file(out, reason))
        }
        _ => Ok(()),
    }
}

/// Training on the model's hidden states.
struct Work<'a> {
    args: &'a TrainSaeArgs,
    setup: Setup,
    settings: Settings,
    images: &'a ImageSet,
}

impl OnBackend for Work<'_> {
    fn run<B: Backend>(self, device: &B::Device) -> Result<(), CliError> {
        let Self { args, setup, settings, images } = self;
        let progress = Progress::start(format!("loading {}", setup.name));
        let lmm = Lmm::<B>::load_as(&setup.folder, device, setup.dtype)?;
        let PromptInput { text, chat, .. } = setup.input;
        let extractor = Extractor::new(lmm, None, setup.hook, text, chat, &settings.tokens);
        progress.say("looking through the pictures");
        let report = |at: LiveProgress| match at {
            LiveProgress::Listed(pictures) => progress.say(format!("{pictures} pictures listed")),
            LiveProgress::Filled { pictures, of } => {
                progress.say(format!("{pictures} of the first {of} pictures went through the model"));
            }
        };
        let date = time::OffsetDateTime::now_utc().date().to_string();
        let source = LiveTokens { extractor, images, settings, date, report: &report };
        args.train(&source, &progress)
    }
}
