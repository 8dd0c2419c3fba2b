//! `lmm-scope train-sae`: a TopK SAE from hidden states, on the CPU, in steps that are exact to repeat.
//!
//! ```text
//! data: shards, order ─▶ step: losses, gradients ─▶ adam ─▶ checkpoint, log ─▶ sae.safetensors, cfg.json
//! ```
//!
//! The recipe is EleutherAI's (after Gao et al. 2024): TopK, AuxK and MultiTopK losses over the batch's variance, unit
//! decoder rows, `b_dec` at the geometric median, gradients clipped to norm 1.
//!
//! Batches and learning rates follow from seed and step, sums have a fixed order, and a checkpoint has all weights and
//! moments: a run that was killed goes on to the very same numbers.

mod adam;
mod checkpoint;
mod data;
mod error;
mod kernels;
mod select;
mod settings;
mod step;
mod weights;

pub use adam::Adam;
pub use checkpoint::State;
pub use data::{HiddenShards, Order};
pub use error::TrainError;
pub use settings::{Precision, Settings};
pub use step::{Losses, Objective, Step};
pub use store::files::TrainingRow;
pub use weights::{Weights, geometric_median};

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::mpsc::sync_channel;
use std::time::Instant;
use store::files::{names, read_training, write_training};

/// The finished SAE.
const SAE: &str = "sae.safetensors";
const CONFIG: &str = "cfg.json";
/// Folder of the checkpoint and the log, in that of the SAE.
pub const TRAINING: &str = "training";
const CHECKPOINT: &str = "checkpoint.safetensors";

/// Tokens of the first batch whose geometric median is taken, at most.
const MEDIAN_TOKENS: usize = 8192;
/// Batches that are read ahead.
const READ_AHEAD: usize = 1;

/// Where a run writes, and how often.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrainOptions {
    /// The hook point's folder; made if there is none.
    pub out: PathBuf,
    /// Steps between checkpoints.
    pub save_every: u64,
}

/// A run at its end.
#[derive(Debug, Clone, PartialEq)]
pub struct Trained {
    /// Every step, those of earlier runs included.
    pub log: Vec<TrainingRow>,
    /// Step that this run went on from; 0 if it began.
    pub resumed_at: u64,
    pub state: State,
}

/// Trains an SAE, or goes on with one; tells `watch` every step. A run that is over writes its SAE again.
///
/// # Errors
/// Settings that do not fit, or differ from the checkpoint's; damaged files; a loss that is not finite; a disk that
/// takes no more. What the last checkpoint holds stays.
pub fn train(
    shards: &HiddenShards,
    settings: &Settings,
    options: &TrainOptions,
    watch: &mut dyn FnMut(&TrainingRow),
) -> Result<Trained, TrainError> {
    settings.check(shards)?;
    let folder = options.out.join(TRAINING);
    let checkpoint = folder.join(CHECKPOINT);
    refuse_other_sae(&options.out, &checkpoint)?;
    let made = !options.out.exists();
    fs::create_dir_all(&folder).map_err(|source| TrainError::io(&folder, source))?;
    let lock = Lock::take(&folder)?;
    let trained = train_in(&folder, shards, settings, options, watch);
    if trained.is_err() && !checkpoint.exists() {
        // Nothing was kept: leave nothing. A folder that holds other files stays.
        fs::remove_file(folder.join(names::TRAINING_LOG)).ok();
        fs::remove_file(&lock.path).ok();
        fs::remove_dir(&folder).ok();
        if made {
            fs::remove_dir(&options.out).ok();
        }
    }
    trained
}

/// [`train`] in its folder, which nobody else writes.
fn train_in(
    folder: &Path,
    shards: &HiddenShards,
    settings: &Settings,
    options: &TrainOptions,
    watch: &mut dyn FnMut(&TrainingRow),
) -> Result<Trained, TrainError> {
    let (checkpoint, log_path) = (folder.join(CHECKPOINT), folder.join(names::TRAINING_LOG));
    let (state, log) = match State::load(&checkpoint, settings, shards.d_model())? {
        Some(state) => {
            let log = read_log(&log_path, state.step)?;
            (state, log)
        }
        None => (begin(shards, settings)?, Vec::new()),
    };
    let resumed_at = state.step;
    let mut run = Run {
        settings,
        step: Step::new(settings.latents, shards.d_model()),
        rounded: (settings.dtype == Precision::Bf16).then(|| Weights::zeros(settings.latents, shards.d_model())),
        state,
        log,
        clock: Instant::now(),
    };
    let save = |run: &Run<'_>| {
        // The log first: what it has beyond the checkpoint is cut off when the run goes on.
        write_training(&log_path, &run.log)?;
        run.state.save(&checkpoint, settings)
    };
    let every = options.save_every.max(1);
    std::thread::scope(|scope| {
        let (sender, batches) = sync_channel(READ_AHEAD);
        let (first, batch) = (run.state.step, settings.batch_tokens);
        scope.spawn(move || {
            let mut order = Order::new(settings.seed, shards.tokens());
            for step in first..settings.steps() {
                let read = shards.batch(&mut order, step * batch as u64, batch);
                let last = read.is_err();
                // The other end is gone when training ended early.
                if sender.send(read).is_err() || last {
                    return;
                }
            }
        });
        for x in batches {
            watch(run.step(&x?)?);
            if run.state.step.is_multiple_of(every) && run.state.step < settings.steps() {
                save(&run)?;
            }
        }
        Ok::<(), TrainError>(())
    })?;
    if resumed_at < settings.steps() {
        save(&run)?;
    }
    checkpoint::write_sae(&options.out, &run.state.weights, settings)?;
    Ok(Trained { log: run.log, resumed_at, state: run.state })
}

/// A finished SAE without a checkpoint is somebody else's.
fn refuse_other_sae(out: &Path, checkpoint: &Path) -> Result<(), TrainError> {
    if out.exists() && !out.is_dir() {
        return Err(TrainError::file(out, "is not a folder"));
    }
    if !checkpoint.exists() && [SAE, CONFIG].iter().any(|name| out.join(name).exists()) {
        return Err(TrainError::file(out, "holds an SAE that was not trained here; name another folder"));
    }
    Ok(())
}

/// Held while this process trains in the folder; the system lets go of it when the process dies.
struct Lock {
    path: PathBuf,
    _file: File,
}

impl Lock {
    fn take(folder: &Path) -> Result<Self, TrainError> {
        let path = folder.join("lock");
        let file = File::create(&path).map_err(|source| TrainError::io(&path, source))?;
        match file.try_lock() {
            Ok(()) => Ok(Self { path, _file: file }),
            Err(TryLockError::WouldBlock) => Err(TrainError::file(folder, "another process is training here")),
            Err(TryLockError::Error(source)) => Err(TrainError::io(&path, source)),
        }
    }
}

/// The log up to the checkpoint's step.
fn read_log(path: &Path, steps: u64) -> Result<Vec<TrainingRow>, TrainError> {
    if steps == 0 {
        return Ok(Vec::new());
    }
    let mut log = read_training(path)?;
    log.truncate(steps as usize);
    if log.len() as u64 == steps && log.last().is_some_and(|row| row.step == steps) {
        return Ok(log);
    }
    Err(TrainError::file(path, format!("lacks steps of the {steps} that the checkpoint has; begin anew elsewhere")))
}

fn begin(shards: &HiddenShards, settings: &Settings) -> Result<State, TrainError> {
    let count = settings.batch_tokens.min(MEDIAN_TOKENS);
    let tokens = shards.batch(&mut Order::new(settings.seed, shards.tokens()), 0, count)?;
    let d_model = shards.d_model();
    Ok(State {
        step: 0,
        weights: Weights::start(settings.latents, geometric_median(&tokens, d_model), settings.seed),
        adam: Adam::new(settings.latents, d_model),
        silent: vec![0; settings.latents],
    })
}

/// Training between two checkpoints.
struct Run<'a> {
    settings: &'a Settings,
    step: Step,
    /// The weights as they are multiplied, if not as they are.
    rounded: Option<Weights>,
    state: State,
    log: Vec<TrainingRow>,
    /// When the last step ended.
    clock: Instant,
}

impl Run<'_> {
    /// One batch `[batch_tokens, d_model]`; the row that it adds to the log.
    fn step(&mut self, x: &[f32]) -> Result<&TrainingRow, TrainError> {
        let (settings, state) = (self.settings, &mut self.state);
        let silent = (0u32..).zip(&state.silent).filter(|(_, silent)| **silent > settings.dead_tokens);
        let dead: Vec<u32> = silent.map(|(latent, _)| latent).collect();
        let multiplied = match &mut self.rounded {
            Some(rounded) => {
                rounded.round_from(&state.weights);
                &*rounded
            }
            None => &state.weights,
        };
        let losses = self.step.run(&settings.objective(), multiplied, x, &dead);
        if !losses.loss.is_finite() || !losses.grad_norm.is_finite() {
            return Err(TrainError::Diverged { step: state.step + 1 });
        }
        let rate = settings.rate(state.step);
        state.adam.step(&mut state.weights, &mut self.step.grads, losses.grad_norm, rate, state.step);
        for (silent, fired) in state.silent.iter_mut().zip(&self.step.fired) {
            *silent = if *fired { 0 } else { *silent + settings.batch_tokens as u64 };
        }
        state.step += 1;
        // Waiting for hidden states counts.
        let seconds = self.clock.elapsed().as_secs_f64().max(1e-9);
        self.clock = Instant::now();
        let row = TrainingRow {
            step: state.step,
            tokens: state.step * settings.batch_tokens as u64,
            loss: losses.loss as f32,
            fvu: losses.fvu as f32,
            multi_topk_fvu: losses.multi_topk_fvu as f32,
            auxk_loss: losses.auxk as f32,
            l0: losses.l0 as f32,
            dead: dead.len() as u32,
            lr: rate as f32,
            grad_norm: losses.grad_norm as f32,
            tokens_per_second: (settings.batch_tokens as f64 / seconds) as f32,
        };
        self.log.push(row);
        Ok(&self.log[self.log.len() - 1])
    }
}
