//! `lmm-scope train-sae`: hidden states → a TopK SAE, in steps that go on exactly after a stop.

mod live;

use super::{
    CliError,
    args::{count, count_from_one},
    output::{print, print_json},
    progress::Progress,
    provenance::RunProvenance,
};
use clap::{ArgAction, builder::BoolishValueParser};
use live::LiveArgs;
use pipeline::cache::Skipped;
use pipeline::train::{
    HiddenShards, LivePlace, Precision, Settings, TRAINING, Tokens, TrainOptions, Trained, TrainingRow, train,
};
use serde::Serialize;
use std::{
    io::{self, IsTerminal},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};
use store::files::names;

/// Time between two lines of the log, where nobody looks at a terminal.
const LOG_EVERY: Duration = Duration::from_secs(10);
/// Time between two looks at a terminal.
const SAY_EVERY: Duration = Duration::from_millis(200);

/// Train a TopK SAE on hidden states; what was stopped goes on by the same command.
#[derive(Debug, Clone, clap::Args)]
pub struct TrainSaeArgs {
    #[command(flatten)]
    source: SourceArgs,

    #[command(flatten)]
    live: LiveArgs,

    /// The SAE's folder, named after its hook point (sae/model.layers.24); made if there is none. Checkpoint and log go
    /// into its folder `training`.
    #[arg(long, env = "LMM_SCOPE_OUT", value_name = "DIR")]
    out: PathBuf,

    /// Latents per dimension of the hidden states.
    #[arg(long, env = "LMM_SCOPE_EXPANSION", value_name = "N", value_parser = count_from_one, default_value = "32",
        conflicts_with = "latents")]
    expansion: usize,

    /// Latents, instead of --expansion.
    #[arg(long, env = "LMM_SCOPE_LATENTS", value_name = "N", value_parser = count_from_one)]
    latents: Option<usize>,

    /// Latents kept per token.
    #[arg(long, env = "LMM_SCOPE_K", value_name = "N", value_parser = count_from_one, default_value = "32")]
    k: usize,

    /// Tokens to train on, rounded down to whole batches; more than there are begin anew in another order. Without it,
    /// all of them once; with --images it must be given, since nobody knows how many they have.
    #[arg(long, env = "LMM_SCOPE_TOKENS", value_name = "N")]
    tokens: Option<u64>,

    /// Tokens per step.
    #[arg(long, env = "LMM_SCOPE_BATCH_TOKENS", value_name = "N", value_parser = count_from_one,
        default_value = "8192")]
    batch_tokens: usize,

    /// Peak of the learning rate. Without it, 2e-4 / √(latents / 2¹⁴).
    #[arg(long, env = "LMM_SCOPE_LR", value_name = "RATE")]
    lr: Option<f64>,

    /// Steps in which the rate rises to its peak. Without it 1,000, or a tenth of a run of fewer than 10,000.
    #[arg(long, env = "LMM_SCOPE_WARMUP_STEPS", value_name = "N")]
    warmup_steps: Option<u64>,

    /// Share of the steps, the last ones, in which the rate falls to zero; 1: from the beginning.
    #[arg(long, env = "LMM_SCOPE_DECAY_SHARE", value_name = "SHARE", default_value_t = 0.2)]
    decay_share: f64,

    /// Weight of the loss that lets dead latents explain what the living ones leave over; 0 for none.
    #[arg(long, env = "LMM_SCOPE_AUXK_ALPHA", value_name = "WEIGHT", default_value_t = 0.03125)]
    auxk_alpha: f64,

    /// Train the 4k strongest latents to reconstruct as well, with weight 1/8: true or false.
    #[arg(long, env = "LMM_SCOPE_MULTI_TOPK", default_value = "true", action = ArgAction::Set,
        value_parser = BoolishValueParser::new())]
    multi_topk: bool,

    /// Tokens without firing after which a latent is dead.
    #[arg(long, env = "LMM_SCOPE_DEAD_TOKENS", value_name = "N", default_value_t = 10_000_000)]
    dead_tokens: u64,

    /// Decides the first weights and the order of pictures and tokens.
    #[arg(long, env = "LMM_SCOPE_SEED", default_value_t = 0)]
    seed: u64,

    /// What weights and hidden states are rounded to before they are multiplied; the weights that are kept are f32.
    #[arg(long, env = "LMM_SCOPE_DTYPE", value_enum, default_value_t)]
    dtype: Precision,

    /// Steps between checkpoints: what a killed run loses at most.
    #[arg(long, env = "LMM_SCOPE_SAVE_EVERY", value_name = "STEPS", value_parser = count, default_value = "1000")]
    save_every: usize,

    /// Print one JSON object.
    #[arg(long, env = "LMM_SCOPE_JSON", value_parser = BoolishValueParser::new())]
    json: bool,
}

/// Where hidden states come from, in exactly one of two ways.
#[derive(Debug, Clone, clap::Args)]
#[group(required = true, multiple = false)]
struct SourceArgs {
    /// Folder of safetensors files with `hidden` [tokens, d_model] in f16, bf16 or f32, a cache that
    /// `lmm-scope cache --hidden` wrote, or one such file.
    #[arg(long, env = "LMM_SCOPE_HIDDEN", value_name = "DIR|FILE")]
    hidden: Option<PathBuf>,

    /// Pictures whose hidden states come straight from --model, without files: a folder of them, an ImageFolder with
    /// metadata.jsonl, Parquet files or WebDataset tars in a folder, or one such file.
    #[arg(long, env = "LMM_SCOPE_IMAGES", value_name = "PATH", requires = "model", requires = "tokens")]
    images: Option<PathBuf>,
}

/// What `--json` prints. Means are those of the last tenth of the steps.
#[derive(Debug, Serialize)]
struct Report {
    steps: u64,
    tokens: u64,
    /// Step that an earlier run had reached; 0 without one.
    resumed_at: u64,
    latents: usize,
    d_model: usize,
    k: usize,
    fvu: f32,
    l0: f32,
    /// Latents that have not fired for --dead-tokens at the end.
    dead: usize,
    /// Of this run; null if nothing was left to do.
    tokens_per_second: Option<f64>,
    out: PathBuf,
    log: PathBuf,
    settings: Settings,
    /// With --images.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    seen: Option<Seen>,
    provenance: RunProvenance,
}

/// What became of the pictures, those of earlier runs included.
#[derive(Debug, Serialize)]
struct Seen {
    /// That went through the model, once in each epoch.
    pictures: u64,
    /// That could not be read.
    skipped: u64,
    first_skipped: Vec<Skipped>,
}

/// # Errors
/// Bad input, in one line.
pub fn run(args: &TrainSaeArgs) -> Result<(), CliError> {
    match (&args.source.hidden, &args.source.images) {
        (Some(hidden), _) => {
            let shards = HiddenShards::open(hidden)?;
            args.train(&shards, &Progress::start("reading hidden states"))
        }
        (None, Some(images)) => live::run(args, images),
        // The group requires one of them.
        (None, None) => Err(CliError::flag("--hidden", "name hidden states, or pictures with --images")),
    }
}

impl TrainSaeArgs {
    /// Trains on tokens, wherever they come from.
    fn train(&self, source: &dyn Tokens, progress: &Progress) -> Result<(), CliError> {
        let settings = self.settings(source.count(), source.d_model())?;
        let options = TrainOptions { out: self.out.clone(), save_every: self.save_every as u64 };
        let mut display = Display::new(settings.steps(), progress);
        let begun = Instant::now();
        let trained = train(source, &settings, &options, &mut |row| display.show(row))?;
        let seconds = begun.elapsed().as_secs_f64();
        progress.end();
        let report = Report::new(&self.out, source.d_model(), trained, seconds)?;
        if self.json { print_json(&report) } else { print(&report.for_people()) }
    }

    /// `count` is how many tokens there are, if that is known.
    fn settings(&self, count: Option<u64>, d_model: usize) -> Result<Settings, CliError> {
        let latents = self.latents.or(d_model.checked_mul(self.expansion));
        let latents = latents.ok_or_else(|| CliError::flag("--expansion", "more latents than can be counted"))?;
        let tokens = self.tokens.or(count).unwrap_or_default();
        let mut settings = Settings::new(tokens, latents, self.k, self.batch_tokens);
        settings.lr = self.lr.unwrap_or(settings.lr);
        settings.warmup_steps = self.warmup_steps.unwrap_or(settings.warmup_steps);
        settings.decay_share = self.decay_share;
        settings.auxk_alpha = self.auxk_alpha;
        settings.multi_topk = self.multi_topk;
        settings.dead_tokens = self.dead_tokens;
        settings.seed = self.seed;
        settings.dtype = self.dtype;
        Ok(settings)
    }
}

/// What a person who waits sees, or a log.
struct Display<'a> {
    progress: &'a Progress,
    steps: u64,
    terminal: bool,
    begun: Instant,
    /// Tokens of earlier runs.
    before: Option<u64>,
    last: Instant,
}

impl<'a> Display<'a> {
    fn new(steps: u64, progress: &'a Progress) -> Self {
        let now = Instant::now();
        let terminal = io::stderr().is_terminal();
        Self { progress, steps, terminal, begun: now, before: None, last: now }
    }

    fn show(&mut self, row: &TrainingRow) {
        let every = if self.terminal { SAY_EVERY } else { LOG_EVERY };
        // The first step is not yet a pace.
        let before = *self.before.get_or_insert_with(|| {
            self.begun = Instant::now();
            row.tokens
        });
        if self.last.elapsed() < every || row.tokens == before {
            return;
        }
        self.last = Instant::now();
        let pace = (row.tokens - before) as f64 / self.begun.elapsed().as_secs_f64().max(1e-9);
        let tokens_per_step = row.tokens / row.step.max(1);
        let minutes_left = ((self.steps - row.step) * tokens_per_step) as f64 / pace / 60.0;
        let TrainingRow { step, fvu, l0, dead, .. } = row;
        let steps = self.steps;
        if self.terminal {
            self.progress.say(format!(
                "step {step} of {steps}: FVU {fvu:.4}, L0 {l0:.1}, {dead} dead, {pace:.0} tokens/s, \
                 {minutes_left:.1} min left"
            ));
        } else {
            let (fvu, l0) = (format!("{fvu:.4}"), format!("{l0:.1}"));
            let (pace, minutes_left) = (format!("{pace:.0}"), format!("{minutes_left:.1}"));
            tracing::info!(step, steps, fvu, l0, dead, tokens_per_second = pace, minutes_left, "training");
        }
    }
}

impl Report {
    fn new(out: &Path, d_model: usize, trained: Trained, seconds: f64) -> Result<Self, CliError> {
        let Trained { log, resumed_at, state, settings } = trained;
        // At least one step: settings without any are refused.
        let last = &log[log.len() - log.len().div_ceil(10)..];
        let mean = |value: fn(&TrainingRow) -> f32| last.iter().map(value).sum::<f32>() / last.len().max(1) as f32;
        let tokens = (state.step - resumed_at) * settings.batch_tokens as u64;
        Ok(Self {
            steps: state.step,
            tokens: state.step * settings.batch_tokens as u64,
            resumed_at,
            latents: settings.latents,
            d_model,
            k: settings.k,
            fvu: mean(|row| row.fvu),
            l0: mean(|row| row.l0),
            dead: state.silent.iter().filter(|silent| **silent > settings.dead_tokens).count(),
            tokens_per_second: (tokens > 0).then(|| tokens as f64 / seconds.max(1e-9)),
            out: out.to_path_buf(),
            log: out.join(TRAINING).join(names::TRAINING_LOG),
            settings,
            seen: LivePlace::read(&state.place).map(|place| Seen {
                pictures: place.pictures,
                skipped: place.skipped,
                first_skipped: place.first_skipped,
            }),
            provenance: RunProvenance::of_sae(out)?,
        })
    }

    fn for_people(&self) -> String {
        let Self { steps, tokens, latents, d_model, fvu, l0, dead, .. } = self;
        let pace = self.tokens_per_second.map_or_else(
            || "nothing was left to do".to_owned(),
            |pace| format!("{pace:.0} tokens/s, from step {}", self.resumed_at),
        );
        let (out, log) = (self.out.display(), self.log.display());
        let seen = self.seen.as_ref().map_or_else(String::new, |seen| {
            let Seen { pictures, skipped, first_skipped } = seen;
            let named = first_skipped.iter().map(|one| format!("skipped {} ({}): {}\n", one.image, one.id, one.reason));
            let named: String = named.collect();
            format!("{named}{pictures} pictures went through the model, {skipped} cannot be read\n")
        });
        format!(
            "{seen}\
             {steps} steps, {tokens} tokens: FVU {fvu:.4}, L0 {l0:.1}, {dead} of {latents} latents dead ({pace})\n\
             {latents} latents of {d_model} dimensions are in {out}, every step in {log}"
        )
    }
}
