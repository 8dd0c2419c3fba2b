//! Everything that decides a run's numbers.

use super::TrainError;
use super::step::Objective;
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What hidden states and weights are rounded to before they are multiplied. Sums, gradients and the weights that are
/// kept are f32.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    #[default]
    F32,
    Bf16,
}

/// The settings of a run. A checkpoint keeps them: it goes on only with the same.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    pub latents: usize,
    /// Latents kept per token.
    pub k: usize,
    /// Tokens to train on: whole batches.
    pub tokens: u64,
    /// Tokens per step.
    pub batch_tokens: usize,
    /// Peak of the learning rate.
    pub lr: f64,
    /// Steps in which the rate rises to its peak.
    pub warmup_steps: u64,
    /// Share of all steps, the last ones, in which the rate falls to zero.
    pub decay_share: f64,
    /// Weight of the loss that revives dead latents.
    pub auxk_alpha: f64,
    /// Whether the 4k strongest latents are trained to reconstruct as well.
    pub multi_topk: bool,
    /// A latent that has not fired for more tokens than this is dead.
    pub dead_tokens: u64,
    pub seed: u64,
    pub dtype: Precision,
    /// What the hidden states are: [`super::train`] fills it in.
    pub hidden: String,
}

/// Tokens per step at most: what a pick's place can count.
const MAX_BATCH: usize = 1 << 28;

impl Settings {
    /// EleutherAI's defaults: rate by [`Self::usual_rate`], `α = 1/32`, MultiTopK. `tokens` are those to train on.
    pub fn new(tokens: u64, latents: usize, k: usize, batch_tokens: usize) -> Self {
        let mut settings = Self {
            latents,
            k,
            tokens,
            batch_tokens,
            lr: Self::usual_rate(latents),
            warmup_steps: 0,
            decay_share: 0.2,
            auxk_alpha: 1.0 / 32.0,
            multi_topk: true,
            dead_tokens: 10_000_000,
            seed: 0,
            dtype: Precision::F32,
            hidden: String::new(),
        };
        settings.warmup_steps = settings.usual_warmup();
        settings
    }

    /// `2e-4 / √(latents / 2¹⁴)` (Gao et al. 2024).
    pub fn usual_rate(latents: usize) -> f64 {
        2e-4 / (latents as f64 / f64::from(1 << 14)).sqrt()
    }

    /// 1,000 steps, or a tenth of a shorter run.
    pub fn usual_warmup(&self) -> u64 {
        (self.steps() / 10).min(1000)
    }

    pub fn steps(&self) -> u64 {
        self.tokens / (self.batch_tokens as u64).max(1)
    }

    /// Checks them against each other and the number of hidden states, where that is known.
    ///
    /// # Errors
    /// The first that does not fit, by its flag's name.
    pub fn check(&self, count: Option<u64>) -> Result<(), TrainError> {
        let (latents, k, batch) = (self.latents, self.k, self.batch_tokens);
        let count = count.unwrap_or(u64::MAX);
        let positive = |value: f64| value.is_finite() && value > 0.0;
        let wrong = [
            (latents == 0 || u32::try_from(latents).is_err(), format!("--latents: {latents} cannot be trained")),
            (k == 0 || k > latents, format!("--k: {k}; it must be between 1 and the {latents} latents")),
            (
                !(2..=MAX_BATCH).contains(&batch),
                format!("--batch-tokens: {batch}; it must be between 2 and {MAX_BATCH}"),
            ),
            (batch as u64 > count, format!("--batch-tokens: {batch}, but there are {count} hidden states; give fewer")),
            (self.steps() == 0, format!("--tokens: {} are less than one batch of {batch}", self.tokens)),
            (!positive(self.lr), format!("--lr: {}; it must be above 0", self.lr)),
            (
                !(0.0..=1.0).contains(&self.decay_share),
                format!("--decay-share: {}; it must be between 0 and 1", self.decay_share),
            ),
            (
                !(self.auxk_alpha.is_finite() && self.auxk_alpha >= 0.0),
                format!("--auxk-alpha: {}; it must be 0 or more", self.auxk_alpha),
            ),
        ];
        match wrong.into_iter().find(|(wrong, _)| *wrong) {
            Some((_, reason)) => Err(TrainError::Asked(reason)),
            None => Ok(()),
        }
    }

    /// The learning rate of a step, counted from 0.
    pub fn rate(&self, step: u64) -> f64 {
        let rise = (step + 1) as f64 / self.warmup_steps.max(1) as f64;
        let falling = self.steps() as f64 * self.decay_share;
        let fall = if falling >= 1.0 { self.steps().saturating_sub(step) as f64 / falling } else { 1.0 };
        self.lr * rise.min(fall).min(1.0)
    }

    pub(super) fn objective(&self) -> Objective {
        let Self { k, multi_topk, auxk_alpha, dtype, .. } = *self;
        Objective { k, multi_topk, auxk_alpha, bf16: dtype == Precision::Bf16 }
    }

    pub(super) fn json(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string(self)
    }

    /// What differs from the settings that a checkpoint keeps; `None` if nothing does.
    pub(super) fn difference(&self, kept: &str) -> Result<Option<String>, serde_json::Error> {
        // Both go through text once, so that equal numbers are read to equal ones.
        let kept: Value = serde_json::from_str(kept)?;
        let own: Value = serde_json::from_str(&self.json()?)?;
        if kept.get("hidden") != own.get("hidden") {
            return Ok(Some("other hidden states than those it was trained on".to_owned()));
        }
        let names = own.as_object().into_iter().flatten().map(|(name, _)| name);
        let differences = names.filter(|name| kept.get(name) != own.get(name)).map(|name| {
            let show = |from: &Value| from.get(name).map_or_else(|| "nothing".to_owned(), Value::to_string);
            format!("--{} is {} there and {} here", name.replace('_', "-"), show(&kept), show(&own))
        });
        let differences: Vec<String> = differences.collect();
        Ok((!differences.is_empty()).then(|| differences.join(", ")))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // tests panic on purpose
    use super::*;

    fn settings() -> Settings {
        Settings {
            latents: 1 << 16,
            k: 32,
            tokens: 100_050,
            batch_tokens: 100,
            lr: Settings::usual_rate(1 << 16),
            warmup_steps: 100,
            decay_share: 0.2,
            auxk_alpha: 1.0 / 32.0,
            multi_topk: true,
            dead_tokens: 10,
            seed: 1,
            dtype: Precision::Bf16,
            hidden: "00".into(),
        }
    }

    #[test]
    fn the_rate_rises_stays_and_falls() {
        let settings = settings();
        assert_eq!(settings.steps(), 1000);
        assert!((settings.lr - 1e-4).abs() < 1e-12, "√(2¹⁶/2¹⁴) = 2");
        let share = |step| settings.rate(step) / settings.lr;
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-9, "{a} and {b}");
        [(0, 0.01), (49, 0.5), (99, 1.0), (500, 1.0), (800, 1.0), (900, 0.5), (999, 0.005)]
            .into_iter()
            .for_each(|(step, truth)| close(share(step), truth));
        let constant = Settings { warmup_steps: 0, decay_share: 0.0, ..settings.clone() };
        assert!([0, 500, 999].into_iter().all(|step| constant.rate(step) == settings.lr));
    }

    #[test]
    fn differences_are_named_by_their_flags() {
        let settings = settings();
        let kept = settings.json().unwrap();
        assert_eq!(settings.difference(&kept).unwrap(), None);
        let other = Settings { k: 16, batch_tokens: 50, ..settings.clone() };
        let said = other.difference(&kept).unwrap().unwrap();
        assert!(said.contains("--k is 32 there and 16 here") && said.contains("--batch-tokens is 100 there"), "{said}");
        let other = Settings { hidden: "01".into(), ..settings.clone() };
        assert!(other.difference(&kept).unwrap().unwrap().contains("other hidden states"));
        assert!(settings.difference("[]").unwrap().is_some() && settings.difference("{").is_err());
    }
}
