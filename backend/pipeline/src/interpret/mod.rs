//! What a feature is about: interpreters behind one trait, and the worker that lets them take jobs off the queue.
//!
//! An [`Interpreter`] gets a [`Task`] (a feature, its examples, what earlier steps said) and gives an
//! [`Outcome`]. It keeps nothing and may be asked twice: what holds once is what the queue writes
//! ([`store::jobs`]). [`Dissect`] compares with ground truth and is the default where a set has it; [`OpenAi`] asks a
//! larger model.

mod dissect;
pub(crate) mod masked;
pub(crate) mod openai;
mod worker;

pub use dissect::Dissect;
pub use openai::{Engine, OpenAi, OpenAiConfig};
pub use worker::{Tally, Worker};

use crate::score::Subject;
use api::{Activation, ActivationKind, Explanation, Feature, JobKind, Source};
use sha2::{Digest, Sha256};
use std::{collections::BTreeSet, future::Future, path::PathBuf, pin::Pin, time::Duration};
use store::{
    SourceEntry, Store, StoreError,
    jobs::{Assignment, Outcome, Queue, Usage},
};

/// Who interprets, by which words, and where.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Identity {
    /// e.g. `dissect`.
    pub name: String,
    /// SHA-256 of prompts and settings, first 12 hex digits: other words are another interpretation.
    pub prompt_hash: String,
    /// Whose limits hold: `local`, or the name of a server.
    pub endpoint: String,
}

impl Identity {
    /// Its jobs on the features of `source`.
    pub fn assignment(&self, source: &Source) -> Assignment {
        Assignment {
            model_id: source.model_id.clone(),
            source_id: source.source_id.clone(),
            sae_revision: source.provenance.sae_revision.clone(),
            interpreter: self.name.clone(),
            prompt_hash: self.prompt_hash.clone(),
            endpoint: self.endpoint.clone(),
        }
    }
}

/// Everything an interpreter may look at for one job.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Task {
    pub kind: JobKind,
    pub feature: Feature,
    /// Stored examples of every kind, each picture once, by falling mean activation.
    pub examples: Vec<Activation>,
    /// The pictures of the first examples, as many as the interpreter wants to see.
    pub pictures: Vec<Vec<u8>>,
    /// What earlier steps of this interpreter said.
    pub said: Option<Explanation>,
    /// The same to be judged, with pictures where the feature fires and pictures where it does not: for a score.
    pub subject: Option<Subject>,
    /// The picture set, as the source names it.
    pub image_set: String,
}

impl Task {
    /// Reads what there is to see of a feature; `None` when the source has no such feature.
    ///
    /// # Errors
    /// When a database fails.
    pub async fn load(
        store: &Store,
        queue: &Queue,
        source: &SourceEntry,
        interpreter: &dyn Interpreter,
        kind: JobKind,
        index: u32,
    ) -> Result<Option<Self>, StoreError> {
        let Some(feature) = store.find_feature(source, index).await? else { return Ok(None) };
        let examples = list_examples(store, source, index).await?;
        let mut pictures = Vec::new();
        let wanted = if kind == JobKind::Explain { interpreter.pictures() } else { 0 };
        for example in examples.iter().take(wanted) {
            // In step with the examples.
            let Some(picture) = store.picture_webp(&example.image.picture.id).await? else { break };
            pictures.push(picture.webp);
        }
        let said = queue.find_explanation(&interpreter.identity().assignment(&source.source), index).await?;
        let image_set = source.source.provenance.image_set.clone();
        Ok(Some(Self { kind, feature, examples, pictures, said, subject: None, image_set }))
    }
}

/// Stored examples of every kind, each picture once, by falling mean activation.
///
/// # Errors
/// When the database fails.
pub(crate) async fn list_examples(
    store: &Store,
    source: &SourceEntry,
    index: u32,
) -> Result<Vec<Activation>, StoreError> {
    /// More than are stored.
    const ALL: u32 = 200;
    let mut examples: Vec<Activation> = Vec::new();
    let mut known = BTreeSet::new();
    for kind in ActivationKind::ALL {
        let found = store.list_activations(source, index, kind, ALL).await?.unwrap_or_default();
        let new = found.activations.into_iter().filter(|example| known.insert(example.image.picture.id.clone()));
        examples.extend(new);
    }
    examples.sort_by(|a, b| {
        b.mean_value.total_cmp(&a.mean_value).then_with(|| a.image.picture.id.cmp(&b.image.picture.id))
    });
    Ok(examples)
}

/// An outcome, and what it took.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    pub outcome: Outcome,
    pub usage: Usage,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum InterpretError {
    /// Worth another try, not before the given wait.
    #[error("{reason}")]
    Again { reason: String, after: Duration, usage: Usage },
    /// Nobody would get an answer now: the server is not there, or asks for patience. No fault of the task's.
    #[error("{reason}")]
    Away { reason: String, after: Duration, usage: Usage },
    /// The same would happen again.
    #[error("{reason}")]
    Never { reason: String, usage: Usage },
    /// The interpreter cannot start with these files.
    #[error("{}: {reason}", path.display())]
    Files { path: PathBuf, reason: String },
}

/// An answer that is being worked on; dropping it gives up.
pub type Pending<'a> = Pin<Box<dyn Future<Output = Result<Answer, InterpretError>> + Send + 'a>>;

/// Says what features are about.
pub trait Interpreter: Send + Sync {
    fn identity(&self) -> &Identity;

    /// The steps it takes, in order; the first is what `explain` enqueues.
    fn steps(&self) -> &[JobKind];

    /// Pictures that an explanation looks at.
    fn pictures(&self) -> usize {
        0
    }

    /// Whether its score judges the label by pictures ([`Task::subject`]).
    fn judges(&self) -> bool {
        false
    }

    /// Does one step. May be called twice for the same task.
    fn interpret<'a>(&'a self, task: &'a Task) -> Pending<'a>;

    /// The step after `kind`, if there is one.
    fn next_step(&self, kind: JobKind) -> Option<JobKind> {
        let at = self.steps().iter().position(|step| *step == kind)?;
        self.steps().get(at + 1).copied()
    }
}

/// SHA-256 of prompts and settings, first 12 hex digits.
pub fn prompt_hash(parts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        // Lengths, so that no two lists of parts run into the same bytes.
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part.as_bytes());
    }
    hash.finalize().iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_words_are_another_hash() {
        let hash = prompt_hash(&["look", "say"]);
        assert_eq!(hash.len(), 12);
        assert_eq!(hash, prompt_hash(&["look", "say"]));
        assert_ne!(hash, prompt_hash(&["looks", "ay"]));
        assert_ne!(hash, prompt_hash(&["look", "say", ""]));
    }
}
