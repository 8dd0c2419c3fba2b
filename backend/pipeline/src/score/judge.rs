//! A larger model as judge, behind an OpenAI-compatible server: what the scorers that ask one have in common.
//!
//! An answer is asked for by a JSON schema and checked again here; one that does not hold gets one more question
//! without (as interpreters do). What the judge refuses, or cannot say in the form that was asked for, is an error,
//! never a score.

use super::{ScoreError, Shown, Subject};
use crate::interpret::{
    InterpretError, OpenAiConfig,
    openai::{Client, Question},
    prompt_hash,
};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};
use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};
use store::jobs::Usage;
use tokio::{task::block_in_place, time::sleep};

/// Tokens that an answer may have.
pub(super) const MAX_TOKENS: u32 = 300;
/// Requests for one answer, while the server is busy or away.
const TRIES: u32 = 5;
/// Before the second try, unless the server says longer; twice as long before each further one.
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// Longest wait between two of them, whatever the server says.
const MAX_WAIT: Duration = Duration::from_secs(120);
/// The first examples, which interpreters make labels from.
const INTERPRETED: usize = 5;
/// A class of pictures with fewer says nothing.
pub(super) const FEWEST: usize = 2;

/// The larger model.
pub struct Judge {
    client: Client,
    /// Most pictures in one question.
    pictures: usize,
    /// For errors: the model and its server.
    who: String,
    tries: u32,
    input_tokens: AtomicU64,
    output_tokens: AtomicU64,
}

impl Judge {
    /// # Errors
    /// When the address is none.
    pub fn new(config: &OpenAiConfig) -> Result<Self, ScoreError> {
        let client = Client::new(config).map_err(|error| ScoreError::Setup { reason: error.to_string() })?;
        let who = format!("{} at {}", client.model(), client.endpoint());
        let (input_tokens, output_tokens) = Default::default();
        Ok(Self { client, pictures: config.pictures.max(1), who, tries: TRIES, input_tokens, output_tokens })
    }

    /// With so many tries of a question while the server is busy or away; at least one.
    pub fn with_tries(self, tries: u32) -> Self {
        Self { tries: tries.max(1), ..self }
    }

    /// What all questions so far took.
    pub fn usage(&self) -> Usage {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Usage { input_tokens: read(&self.input_tokens), output_tokens: read(&self.output_tokens) }
    }

    /// Most pictures in one question.
    pub(super) fn pictures(&self) -> usize {
        self.pictures
    }

    /// The model, and the hash of the words and settings that it is asked with: other words are another score.
    pub(super) fn author(&self, prompt: &str, settings: &str) -> String {
        format!("{}, prompt {}", self.client.model(), prompt_hash(&[prompt, settings]))
    }

    /// A label, then pictures after their numbers.
    pub(super) fn content(&self, label: &str, pngs: &[&[u8]]) -> Value {
        // As JSON: what somebody said is quoted, whatever it says.
        let mut parts = vec![json!({ "type": "text", "text": format!("Label: {}", Value::from(label)) })];
        for (number, png) in (1..).zip(pngs) {
            parts.push(json!({ "type": "text", "text": format!("Picture {number}:") }));
            parts.push(self.client.picture(png, pngs.len() > 1));
        }
        Value::Array(parts)
    }

    /// Asks until `read` takes the answer, and again while the server is busy or away.
    pub(super) async fn ask<T>(
        &self,
        question: &Question,
        read: impl Fn(&str) -> Result<T, String>,
    ) -> Result<T, ScoreError> {
        let (mut tries, mut wait) = (self.tries, FIRST_WAIT);
        loop {
            tries -= 1;
            let (reason, usage) = match self.client.ask(question, &read).await {
                Ok((answer, usage)) => {
                    self.count(usage);
                    return Ok(answer);
                }
                Err(InterpretError::Again { reason, after, usage } | InterpretError::Away { reason, after, usage })
                    if tries > 0 =>
                {
                    self.count(usage);
                    let pause = after.max(wait).min(MAX_WAIT);
                    tracing::debug!(who = self.who, reason, wait_secs = pause.as_secs(), "the judge is asked again");
                    sleep(pause).await;
                    wait *= 2;
                    continue;
                }
                Err(InterpretError::Away { reason, after, usage }) => {
                    self.count(usage);
                    return Err(ScoreError::Away { who: self.who.clone(), reason, after });
                }
                Err(InterpretError::Again { reason, usage, .. } | InterpretError::Never { reason, usage }) => {
                    (reason, usage)
                }
                Err(error @ InterpretError::Files { .. }) => (error.to_string(), Usage::default()),
            };
            self.count(usage);
            return Err(ScoreError::Service { who: self.who.clone(), reason });
        }
    }

    fn count(&self, usage: Usage) {
        self.input_tokens.fetch_add(usage.input_tokens, Ordering::Relaxed);
        self.output_tokens.fetch_add(usage.output_tokens, Ordering::Relaxed);
    }
}

/// What is said about the feature, if that is anything.
pub(super) fn label_of(subject: &Subject) -> Option<&str> {
    Some(subject.explanation.description.trim()).filter(|label| !label.is_empty())
}

/// For all that is drawn for one score.
pub(super) fn rng_of(subject: &Subject) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(subject.seed)
}

/// The examples that no label was made from: those after the first [`INTERPRETED`]. Where fewer than [`FEWEST`] are
/// left, all of them.
pub(super) fn held_out(shown: &[Shown]) -> &[Shown] {
    shown.get(INTERPRETED..).filter(|rest| rest.len() >= FEWEST).unwrap_or(shown)
}

/// A picture as the judge sees it: through `png`.
pub(super) fn seen(shown: &Shown, png: impl FnOnce(&[u8]) -> Result<Vec<u8>, String>) -> Result<Vec<u8>, ScoreError> {
    let drawn = block_in_place(|| png(&shown.picture));
    drawn.map_err(|reason| ScoreError::Picture { id: shown.id().to_owned(), reason })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_that_made_the_label_are_left_out_where_others_are_left() {
        let shown: Vec<Shown> = (0..9).map(|_| Shown::default()).collect();
        assert_eq!(held_out(&shown).len(), 4);
        assert_eq!(held_out(&shown[..7]).len(), 2);
        assert_eq!(held_out(&shown[..6]).len(), 6);
        assert_eq!(held_out(&shown[..3]).len(), 3);
    }
}
