//! `lmm-scope train-sae`: a TopK SAE from hidden states, on the CPU, in steps that are exact to repeat.
//!
//! ```text
//! data: files, order ────┐
//! live: pictures, model ─┴▶ tokens: batches ─▶ step: losses, gradients ─▶ adam ─▶ checkpoint, log ─▶ SAE
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
mod live;
mod select;
mod settings;
mod step;
mod tokens;
mod weights;

pub use adam::Adam;
pub use checkpoint::State;
pub use data::{HiddenShards, Order};
pub use error::TrainError;
pub use live::{LivePlace, LiveProgress, LiveTokens};
pub use settings::{Precision, Settings};
pub use step::{Losses, Objective, Step};
pub use store::files::TrainingRow;
pub use tokens::{Batch, Tokens, Wanted};
pub use weights::{Weights, geometric_median};

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::sync_channel;
use std::time::Instant;
use store::files::{names, read_training, write_training};
use tokens::Enough;

/// The finished SAE.
const SAE: &str = "sae.safetensors";
const CONFIG: &str = "cfg.json";
/// Folder of the checkpoint and the log, in that of the SAE.
pub const TRAINING: &str = "training";
const CHECKPOINT: &str = "checkpoint.safetensors";
/// Folder in it of what the source of the tokens keeps.
const SOURCE: &str = "source";
/// File in it that is locked; every run leaves it.
const LOCK: &str = "lock";

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
    /// Those that were given, with what the hidden states are.
    pub settings: Settings,
}

/// Trains an SAE, or goes on with one; tells `watch` every step. A run that is over writes its SAE again.
///
/// # Errors
/// Settings that do not fit, or differ from the checkpoint's; damaged files; a loss that is not finite; a disk that
/// takes no more. What the last checkpoint holds stays.
pub fn train(
    source: &dyn Tokens,
    settings: &Settings,
    options: &TrainOptions,
    watch: &mut dyn FnMut(&TrainingRow),
) -> Result<Trained, TrainError> {
    settings.check(source.count())?;
    check_out(&options.out)?;
    let folder = options.out.join(TRAINING);
    let (checkpoint, own) = (folder.join(CHECKPOINT), folder.join(SOURCE));
    let made = !options.out.exists();
    fs::create_dir_all(&folder).map_err(|source| TrainError::io(&folder, source))?;
    let lock = Lock::take(&folder)?;
    if !checkpoint.exists() {
        // Of a run that was killed before it kept anything.
        fs::remove_dir_all(&own).ok();
    }
    let trained = source.prepare(&own).and_then(|hidden| {
        let settings = Settings { hidden, ..settings.clone() };
        train_in(&folder, source, settings, options, watch)
    });
    if trained.is_err() && !checkpoint.exists() {
        // Nothing was kept: leave nothing. A folder that holds other files stays.
        fs::remove_dir_all(&own).ok();
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
    source: &dyn Tokens,
    settings: Settings,
    options: &TrainOptions,
    watch: &mut dyn FnMut(&TrainingRow),
) -> Result<Trained, TrainError> {
    let (checkpoint, log_path) = (folder.join(CHECKPOINT), folder.join(names::TRAINING_LOG));
    let kept = State::load(&checkpoint, &settings, source.d_model())?;
    let resumed_at = kept.as_ref().map_or(0, |state| state.step);
    let log = read_log(&log_path, resumed_at)?;
    let save = |run: &Run<'_>| {
        // The log first: what it has beyond the checkpoint is cut off when the run goes on.
        write_training(&log_path, &run.log)?;
        run.state.save(&checkpoint, &settings)
    };
    let (every, steps, clock) = (options.save_every.max(1), settings.steps(), Instant::now());
    let place = kept.as_ref().map_or_else(String::new, |state| state.place.clone());
    let (own, enough) = (folder.join(SOURCE), AtomicBool::new(false));
    let wanted = Wanted {
        seed: settings.seed,
        batch_tokens: settings.batch_tokens,
        step: resumed_at,
        place: &place,
        folder: &own,
        enough: &enough,
    };
    let run = std::thread::scope(|scope| {
        let _enough = Enough(&enough);
        let (sender, batches) = sync_channel(READ_AHEAD);
        scope.spawn(move || {
            let mut left = steps - wanted.step;
            if left > 0 {
                source.stream(&wanted, &mut |batch| {
                    left -= 1;
                    // The other end is gone when training ended early.
                    sender.send(batch).is_ok() && left > 0
                });
            }
        });
        let mut batches = batches.into_iter();
        let (state, first) = match kept {
            Some(state) => (state, None),
            None => {
                let batch: Batch = batches.next().ok_or(TrainError::Ended { step: 1 })??;
                (begin(&settings, source.d_model(), &batch.rows), Some(Ok(batch)))
            }
        };
        let mut run = Run::new(&settings, source.d_model(), state, log, clock);
        for batch in first.into_iter().chain(batches) {
            watch(run.step(batch?)?);
            if run.state.step.is_multiple_of(every) && run.state.step < steps {
                save(&run)?;
            }
        }
        match run.state.step {
            step if step < steps => Err(TrainError::Ended { step: step + 1 }),
            _ => Ok(run),
        }
    })?;
    if resumed_at < steps {
        save(&run)?;
    }
    checkpoint::write_sae(&options.out, &run.state.weights, &settings)?;
    let Run { log, state, .. } = run;
    Ok(Trained { log, resumed_at, state, settings })
}

/// What may be written to: a folder, or what is none yet. A finished SAE without a checkpoint is somebody else's, and
/// so is a source's folder without a lock beside it: what a killed run leaves of one is removed.
///
/// # Errors
/// When it is something else.
pub fn check_out(out: &Path) -> Result<(), TrainError> {
    if out.exists() && !out.is_dir() {
        return Err(TrainError::file(out, "is not a folder"));
    }
    let folder = out.join(TRAINING);
    if folder.join(CHECKPOINT).exists() {
        return Ok(());
    }
    if [SAE, CONFIG].iter().any(|name| out.join(name).exists()) {
        return Err(TrainError::file(out, "holds an SAE that was not trained here; name another folder"));
    }
    let own = folder.join(SOURCE);
    if own.exists() && !folder.join(LOCK).exists() {
        return Err(TrainError::file(&own, "was not made by training; name another folder"));
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
        let path = folder.join(LOCK);
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

/// Where training starts, with the first batch at hand.
fn begin(settings: &Settings, d_model: usize, rows: &[f32]) -> State {
    let rows = &rows[..rows.len().min(MEDIAN_TOKENS * d_model)];
    State {
        step: 0,
        weights: Weights::start(settings.latents, geometric_median(rows, d_model), settings.seed),
        adam: Adam::new(settings.latents, d_model),
        silent: vec![0; settings.latents],
        place: String::new(),
    }
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

impl<'a> Run<'a> {
    fn new(settings: &'a Settings, d_model: usize, state: State, log: Vec<TrainingRow>, clock: Instant) -> Self {
        let rounded = (settings.dtype == Precision::Bf16).then(|| Weights::zeros(settings.latents, d_model));
        Self { settings, step: Step::new(settings.latents, d_model), rounded, state, log, clock }
    }

    /// One batch; the row that it adds to the log.
    fn step(&mut self, batch: Batch) -> Result<&TrainingRow, TrainError> {
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
        let losses = self.step.run(&settings.objective(), multiplied, &batch.rows, &dead);
        if !losses.loss.is_finite() || !losses.grad_norm.is_finite() {
            return Err(TrainError::Diverged { step: state.step + 1 });
        }
        let rate = settings.rate(state.step);
        state.adam.step(&mut state.weights, &mut self.step.grads, losses.grad_norm, rate, state.step);
        for (silent, fired) in state.silent.iter_mut().zip(&self.step.fired) {
            *silent = if *fired { 0 } else { *silent + settings.batch_tokens as u64 };
        }
        state.step += 1;
        state.place = batch.next;
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
