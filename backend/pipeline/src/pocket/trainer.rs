//! What all training stages share: schedule, progress, checkpoints that survive a kill.

use anyhow::{Context, Result};
use burn::grad_clipping::GradientClippingConfig;
use burn::module::AutodiffModule;
use burn::optim::{AdamW, AdamWConfig, GradientsParams, Optimizer, adaptor::OptimizerAdaptor};
use burn::record::{BinFileRecorder, FullPrecisionSettings, Recorder};
use burn::tensor::{Tensor, backend::AutodiffBackend};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Where a stage stands; written beside its weights and read by `report`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    pub samples: usize,
    pub tokens: u64,
    pub seconds: f64,
    /// Exponential mean of the loss.
    pub loss: f64,
    pub device: String,
    /// Samples of the build whose weights this one began with: the optimizer warms up from here.
    #[serde(default)]
    pub begun_at: usize,
}

/// A module, its optimizer and its progress, kept in one folder.
pub struct Trainer<B: AutodiffBackend, M: AutodiffModule<B>> {
    pub module: M,
    optimizer: OptimizerAdaptor<AdamW, M, B>,
    pub progress: Progress,
    folder: PathBuf,
    /// Samples at the end of the stage.
    total: usize,
    peak_rate: f64,
    started: Instant,
    seconds_before: f64,
    saved: Instant,
    logged: Instant,
}

/// Between two checkpoints.
const SAVE_EVERY_SECS: u64 = 120;
/// Between two progress lines.
const LOG_EVERY_SECS: u64 = 15;
/// Share of the stage that warms up, and that cools down.
const WARM_UP: f64 = 0.02;
const COOL_DOWN: f64 = 0.35;

type FileRecorder = BinFileRecorder<FullPrecisionSettings>;

impl<B: AutodiffBackend, M: AutodiffModule<B>> Trainer<B, M> {
    /// Starts, or goes on from the checkpoint in `folder`.
    pub fn new(module: M, folder: &Path, total: usize, peak_rate: f64, device: &B::Device) -> Result<Self> {
        std::fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
        let optimizer = AdamWConfig::new()
            .with_beta_2(0.98)
            .with_weight_decay(0.02)
            .with_grad_clipping(Some(GradientClippingConfig::Norm(1.0)))
            .init::<B, M>();
        let mut trainer = Self {
            module,
            optimizer,
            progress: Progress { device: B::name(device), ..Progress::default() },
            folder: folder.to_path_buf(),
            total,
            peak_rate,
            started: Instant::now(),
            seconds_before: 0.0,
            saved: Instant::now(),
            logged: Instant::now(),
        };
        if let Some(progress) = read_progress(folder)? {
            let recorder = FileRecorder::new();
            let stem = folder.join(format!("step-{}", progress.samples));
            trainer.module =
                trainer.module.load_file(stem.join("module"), &recorder, device).context("reading the checkpoint")?;
            let record = recorder.load(stem.join("optimizer"), device).context("reading the checkpoint")?;
            trainer.optimizer = trainer.optimizer.load_record(record);
            trainer.seconds_before = progress.seconds;
            trainer.progress = progress;
        }
        Ok(trainer)
    }

    /// Goes on from the weights of an earlier build, whose `progress` is carried along, unless there is a checkpoint.
    pub fn warm_start(&mut self, progress: Progress, load: impl FnOnce(M) -> Result<M>) -> Result<()> {
        if read_progress(&self.folder)?.is_none() {
            self.module = load(self.module.clone())?;
            self.seconds_before = progress.seconds;
            let device = std::mem::take(&mut self.progress.device);
            self.progress = Progress { device, begun_at: progress.samples, ..progress };
        }
        Ok(())
    }

    pub fn finished(&self) -> bool {
        self.progress.samples >= self.total
    }

    /// Linear warm-up, plateau, linear cool-down to 2%.
    fn rate(&self) -> f64 {
        let total = self.total as f64;
        let done = self.progress.samples as f64 / total;
        let since = (self.progress.samples - self.progress.begun_at) as f64 / total;
        let up = (since / WARM_UP).clamp(0.01, 1.0);
        let down = ((1.0 - done) / COOL_DOWN).clamp(0.02, 1.0);
        self.peak_rate * up.min(down)
    }

    /// One optimizer step on a batch's loss.
    pub fn step(&mut self, loss: Tensor<B, 1>, samples: usize, tokens: usize) -> Result<()> {
        self.step_edited(loss, samples, tokens, |_, _| (), |module| module)
    }

    /// A step with a hand on the gradients before it and on the module after it.
    pub fn step_edited(
        &mut self,
        loss: Tensor<B, 1>,
        samples: usize,
        tokens: usize,
        edit: impl FnOnce(&M, &mut GradientsParams),
        after: impl FnOnce(M) -> M,
    ) -> Result<()> {
        let value = f64::from(loss.clone().into_scalar().to_f32_lossy());
        anyhow::ensure!(value.is_finite(), "the loss is {value} after {} samples", self.progress.samples);
        let mut grads = GradientsParams::from_grads(loss.backward(), &self.module);
        edit(&self.module, &mut grads);
        let rate = self.rate();
        self.module = after(self.optimizer.step(rate, self.module.clone(), grads));
        let progress = &mut self.progress;
        progress.loss = if progress.samples == progress.begun_at { value } else { progress.loss * 0.98 + value * 0.02 };
        progress.samples += samples;
        progress.tokens += tokens as u64;
        progress.seconds = self.seconds_before + self.started.elapsed().as_secs_f64();
        if self.logged.elapsed().as_secs() >= LOG_EVERY_SECS {
            self.log(rate);
        }
        if self.saved.elapsed().as_secs() >= SAVE_EVERY_SECS {
            self.save()?;
        }
        Ok(())
    }

    fn log(&mut self, rate: f64) {
        self.logged = Instant::now();
        let progress = &self.progress;
        let per_second = progress.samples as f64 / progress.seconds.max(1e-9);
        let left = (self.total.saturating_sub(progress.samples)) as f64 / per_second.max(1e-9);
        tracing::info!(
            samples = progress.samples,
            of = self.total,
            loss = format!("{:.4}", progress.loss),
            per_second = format!("{per_second:.1}"),
            tokens_per_second = format!("{:.0}", progress.tokens as f64 / progress.seconds.max(1e-9)),
            minutes_left = format!("{:.1}", left / 60.0),
            rate = format!("{rate:.2e}"),
            "training"
        );
    }

    /// Writes a checkpoint: new folder first, then the pointer to it, then the old folder goes.
    pub fn save(&mut self) -> Result<()> {
        self.saved = Instant::now();
        let before = read_progress(&self.folder)?;
        let recorder = FileRecorder::new();
        let stem = self.folder.join(format!("step-{}", self.progress.samples));
        std::fs::create_dir_all(&stem)?;
        self.module.clone().save_file(stem.join("module"), &recorder).context("writing a checkpoint")?;
        recorder.record(self.optimizer.to_record(), stem.join("optimizer")).context("writing a checkpoint")?;
        write_progress(&self.folder, &self.progress)?;
        if let Some(before) = before.filter(|before| before.samples != self.progress.samples) {
            std::fs::remove_dir_all(self.folder.join(format!("step-{}", before.samples))).ok();
        }
        Ok(())
    }
}

/// Scalar conversion without naming each backend's float type.
trait ToF32Lossy {
    fn to_f32_lossy(&self) -> f32;
}

impl<T: burn::tensor::ElementConversion + Copy> ToF32Lossy for T {
    fn to_f32_lossy(&self) -> f32 {
        self.elem()
    }
}

/// Reads a stage's progress; `None` if it has not begun.
pub fn read_progress(folder: &Path) -> Result<Option<Progress>> {
    let path = folder.join("progress.json");
    match std::fs::read(&path) {
        Ok(bytes) => {
            Ok(Some(serde_json::from_slice(&bytes).with_context(|| format!("{} is damaged", path.display()))?))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
    }
}

/// Writes a stage's progress.
pub fn write_progress(folder: &Path, progress: &Progress) -> Result<()> {
    model::weights::write_atomic(&folder.join("progress.json"), &serde_json::to_vec_pretty(progress)?)?;
    Ok(())
}

/// Runs `make(i)` for `i` from `start` on a second thread, a few batches ahead.
///
/// The receiver's end stops the thread.
pub fn prefetch<T: Send + 'static>(
    start: usize,
    make: impl Fn(usize) -> T + Send + 'static,
) -> std::sync::mpsc::Receiver<T> {
    let (sender, receiver) = std::sync::mpsc::sync_channel(3);
    std::thread::spawn(move || {
        let mut i = start;
        while sender.send(make(i)).is_ok() {
            i += 1;
        }
    });
    receiver
}
