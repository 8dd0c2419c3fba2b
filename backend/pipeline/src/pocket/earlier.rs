//! Going on from an earlier build: its weights are in the artefacts, its history in `training.json` beside them.

use super::trainer::{Progress, read_progress};
use anyhow::{Context, Result};
use burn::tensor::backend::Backend;
use model::clip::ClipVision;
use model::{Dtype, LlavaNext, LlavaNextConfig};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What each stage of a build saw and cost, beside its artefacts.
const TRAINING: &str = "training.json";
/// The stages that train, in order.
pub const STAGES: [&str; 4] = ["tower", "text", "lmm", "sae"];

/// An earlier build's artefacts.
#[derive(Debug, Clone)]
pub struct Earlier {
    model: PathBuf,
    history: BTreeMap<String, Progress>,
}

impl Earlier {
    /// Reads the history in `artefacts`.
    ///
    /// # Errors
    /// No `training.json`, or a damaged one.
    pub fn open(artefacts: &Path) -> Result<Self> {
        Ok(Self { model: artefacts.join("model"), history: read_history(artefacts)? })
    }

    /// Where a stage of that build stood at its end.
    pub fn progress(&self, stage: &str) -> Progress {
        self.history.get(stage).cloned().unwrap_or_default()
    }

    /// That build's model.
    ///
    /// # Errors
    /// A missing file.
    pub fn lmm<B: Backend>(&self, device: &B::Device) -> Result<LlavaNext<B>> {
        let config = LlavaNextConfig::load(&self.model)?;
        LlavaNext::load(&config, &self.model, device, Dtype::F32)
            .with_context(|| format!("going on from the model in {}", self.model.display()))
    }

    /// That build's vision tower.
    ///
    /// # Errors
    /// A missing file.
    pub fn tower<B: Backend>(&self, device: &B::Device) -> Result<ClipVision<B>> {
        Ok(self.lmm(device)?.vision)
    }
}

/// Reads `training.json`.
pub fn read_history(artefacts: &Path) -> Result<BTreeMap<String, Progress>> {
    let path = artefacts.join(TRAINING);
    let bytes = std::fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
    serde_json::from_slice(&bytes).with_context(|| format!("{} is damaged", path.display()))
}

/// Copies what the stages in `work` saw and cost to `training.json`.
pub fn write_history(work: &Path, artefacts: &Path) -> Result<BTreeMap<String, Progress>> {
    let mut history = BTreeMap::new();
    for stage in STAGES {
        if let Some(progress) = read_progress(&work.join(stage))? {
            history.insert(stage.to_string(), progress);
        }
    }
    model::weights::write_atomic(&artefacts.join(TRAINING), &serde_json::to_vec_pretty(&history)?)?;
    Ok(history)
}
