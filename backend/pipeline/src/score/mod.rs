//! How good a label is: scores of explanations, each beside the same score on a random baseline.
//!
//! A [`Scorer`] gets a [`Subject`] (a feature, what is said about it, pictures where it fires and pictures where it
//! does not) and gives a [`Measured`], or `None` where the score makes no sense. It keeps nothing and may be asked twice:
//! that a score stands once per explanation, type and author is the store's affair ([`store::jobs::ComputedScore`]).
//! [`report`] is the paper's table 1.

pub mod clip;
pub mod consistency;
pub mod detection;
pub mod fuzzing;
pub mod grounder;
pub mod interval;
pub mod iou;
pub mod judge;
pub mod monosemanticity;
mod peers;
pub mod report;
pub mod steering;
mod subject;
mod trials;

pub use interval::{bootstrap, bootstrap_by};
pub use peers::{Peer, Peers};
pub use subject::{RANDOM, SHOWN, Subjects};

use api::{Activation, Explanation, Feature, SteeringEffects};
use std::{future::Future, pin::Pin, time::Duration};

/// Of all that is drawn, where nobody asks for another.
pub const SEED: u64 = 0;

/// One score of one feature's label, and the same on a random baseline.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Measured {
    pub value: f32,
    /// The same score where the label should not fit: each scorer says on what.
    pub baseline: f32,
    /// 95 % of the bootstrap's resamples of `value` lie in it.
    pub interval: [f32; 2],
    /// What the interval is over: pictures, answers or texts.
    pub samples: u32,
    /// What became of the answers, with the label's own feature: of [`steering`] alone.
    pub effects: Option<SteeringEffects>,
}

impl Measured {
    /// Means of one number per sample and their interval ([`bootstrap`]); `None` without samples. A baseline without
    /// samples is 0.
    pub fn mean(values: &[f32], baseline: &[f32], seed: u64) -> Option<Self> {
        (!values.is_empty()).then(|| Self {
            value: interval::mean(values),
            baseline: interval::mean(baseline),
            interval: bootstrap(values, seed),
            samples: u32::try_from(values.len()).unwrap_or(u32::MAX),
            effects: None,
        })
    }
}

/// A feature's label and what there is to judge it by.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Subject {
    pub feature: Feature,
    /// Its `description` is the label.
    pub explanation: Explanation,
    /// The feature's stored examples, each picture once, by falling mean activation; at most [`SHOWN`].
    pub shown: Vec<Shown>,
    /// Pictures of the set where it is not known to fire, a seeded draw; at most [`RANDOM`]. Their activation has no
    /// patches and a maximum of 0.
    pub random: Vec<Shown>,
    /// For everything that a scorer draws: differs from feature to feature, the same at every run with the same
    /// `--seed`.
    pub seed: u64,
}

/// A feature on a picture.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Shown {
    pub activation: Activation,
    /// WebP, PNG or JPEG, as stored.
    pub picture: Vec<u8>,
}

impl Shown {
    /// The picture's id.
    pub fn id(&self) -> &str {
        &self.activation.image.picture.id
    }
}

/// Why there is no score.
#[derive(Debug, thiserror::Error)]
pub enum ScoreError {
    /// What was stored or given does not fit: the same would happen again.
    #[error("picture {id}: {reason}")]
    Picture { id: String, reason: String },
    /// A model or a service that was asked failed, for good or for now.
    #[error("{who}: {reason}")]
    Service { who: String, reason: String },
    /// A model or a service is not there, or asks for patience.
    #[error("{who}: {reason}")]
    Away { who: String, reason: String, after: Duration },
    /// The scorer cannot work with these settings or files.
    #[error("{reason}")]
    Setup { reason: String },
}

/// A score that is being worked on; dropping it gives up.
pub type PendingScore<'a> = Pin<Box<dyn Future<Output = Result<Option<Measured>, ScoreError>> + Send + 'a>>;

/// Judges labels in one way.
///
/// Futures run on a runtime of several threads, those of different features in tasks of their own. Who computes for
/// longer than some milliseconds does so in [`tokio::task::block_in_place`], so that requests of others go on.
pub trait Scorer: Send + Sync {
    /// e.g. `iou`, `clip score`, `consistency`, `detection`, `fuzzing`, `monosemanticity`, `steering`.
    fn type_name(&self) -> &str;

    /// Who computes it, for people, the model's name included. With the type it is what a rerun replaces: nothing that
    /// differs from run to run (a date, a seed) belongs in it.
    fn author(&self) -> &str;

    /// `None`: does not apply to this feature, and is not a zero.
    fn score<'a>(&'a self, subject: &'a Subject) -> PendingScore<'a>;
}
