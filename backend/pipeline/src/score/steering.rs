//! Steering (paper, section 4.3): does the model say what the label says when the feature is made strong?
//!
//! For each question of a fixed list the model answers as it is, through the SAE, and with the feature clamped to
//! [`FACTOR`] times its largest activation. The judge gets the label (which the paper's own code left out), the
//! question and the three answers; it gives a score from 1 to 10 for what the steered answer has more of the label than
//! the reconstructed one, and one of the paper's four kinds of effect. Two answers that are equal to the letter are not
//! judged: their score is 1, their effect none.
//!
//! `value` is (mean − 1) / 9, so that it is in 0..=1 as other scores are; the judge's mean is 1 + 9 · `value`. The
//! baseline is the same label with a random other feature made as strong, another one for each question.

use super::{
    Measured, PendingScore, ScoreError, Scorer, Subject,
    judge::{Judge, MAX_TOKENS, label_of, rng_of},
    peers::{Peer, Peers},
};
use crate::interpret::openai::{Question, read_json, wrong};
use api::SteeringEffects;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::{future::Future, pin::Pin, sync::Arc};

/// Times its largest activation that a feature is clamped to, as on the steering page.
pub const FACTOR: f32 = 3.0;
/// What the model is asked: questions that leave it to the model what to speak of.
pub const QUESTIONS: [&str; 5] = [
    "What do you see in this picture?",
    "What comes to your mind?",
    "Tell me a short story.",
    "What should one do on a free day?",
    "What is your feeling right now?",
];
const PROMPT: &str = include_str!("../../prompts/steering.md");

/// What the model says to one question.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Steered {
    /// As it is.
    pub original: String,
    /// Through the SAE.
    pub reconstructed: String,
    /// Through the SAE, with the feature changed.
    pub steered: String,
}

/// Texts that are being written; dropping it gives up.
pub type PendingTexts<'a> = Pin<Box<dyn Future<Output = Result<Steered, ScoreError>> + Send + 'a>>;

/// Lets the model under study answer with a feature made strong.
pub trait Steerer: Send + Sync {
    /// All that its texts depend on besides feature, strength and question.
    fn settings(&self) -> String;

    /// The model's answers with the feature clamped to `strength`.
    fn steer<'a>(&'a self, feature: u32, strength: f32, prompt: &'a str) -> PendingTexts<'a>;
}

/// What a strong feature does to an answer (paper, section 4.3); [`SteeringEffects`] counts them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Effect {
    /// The answer stays.
    None,
    /// The answer names it.
    Mentions,
    /// The answer argues, feels or acts from it.
    Reasons,
    /// The answer changes, but to something else.
    Unrelated,
}

impl Effect {
    /// In the order of [`SteeringEffects::NAMES`].
    pub const ALL: [Self; 4] = [Self::None, Self::Mentions, Self::Reasons, Self::Unrelated];
}

/// What the judge says about one question's answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// The feature that was made strong.
    pub feature: u32,
    pub question: String,
    pub texts: Steered,
    /// From 1 to 10.
    pub score: u8,
    pub effect: Effect,
}

/// The verdicts on one label.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Verdicts {
    /// With its own feature.
    pub own: Vec<Verdict>,
    /// With random other ones.
    pub random: Vec<Verdict>,
}

impl Verdicts {
    /// Answers of each kind of effect, with its own feature.
    pub fn effects(&self) -> SteeringEffects {
        let count = |effect| self.own.iter().filter(|verdict| verdict.effect == effect).count();
        SteeringEffects::from_counts(Effect::ALL.map(|effect| u32::try_from(count(effect)).unwrap_or(u32::MAX)))
    }

    fn measured(&self, seed: u64) -> Option<Measured> {
        let shares = |of: &[Verdict]| of.iter().map(|verdict| share(verdict.score)).collect::<Vec<_>>();
        let measured = Measured::mean(&shares(&self.own), &shares(&self.random), seed)?;
        Some(Measured { effects: Some(self.effects()), ..measured })
    }
}

/// A score from 1 to 10 in 0..=1.
fn share(score: u8) -> f32 {
    (f32::from(score) - 1.0) / 9.0
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Answer {
    score: u8,
    effect: Effect,
}

/// How far a judge finds the label in what the steered model says.
pub struct Steering {
    judge: Arc<Judge>,
    steerer: Arc<dyn Steerer>,
    peers: Arc<Peers>,
    author: String,
}

impl Steering {
    pub fn new(judge: Arc<Judge>, steerer: Arc<dyn Steerer>, peers: Arc<Peers>) -> Self {
        let settings = format!("clamp to {FACTOR} times the maximum, {}, {QUESTIONS:?}", steerer.settings());
        let author = judge.author(PROMPT, &settings);
        Self { judge, steerer, peers, author }
    }

    /// What is behind the score: every text with its verdict. `None` where there is no label, no other feature, or
    /// where the feature never fires.
    ///
    /// # Errors
    /// When the model does not answer, or the judge not in the form that it was asked for.
    pub async fn verdicts(&self, subject: &Subject) -> Result<Option<Verdicts>, ScoreError> {
        let Some(label) = label_of(subject) else { return Ok(None) };
        let (feature, max) = (subject.feature.index, subject.feature.max_act_approx);
        let peers = self.peers.draw(subject, QUESTIONS.len(), &mut rng_of(subject));
        if peers.is_empty() || max <= 0.0 {
            return Ok(None);
        }
        let mut verdicts = Verdicts::default();
        for (question, &Peer { index, max: its_max, .. }) in QUESTIONS.into_iter().zip(peers) {
            verdicts.own.push(self.ask(label, feature, FACTOR * max, question).await?);
            verdicts.random.push(self.ask(label, index, FACTOR * its_max, question).await?);
        }
        Ok(Some(verdicts))
    }

    async fn ask(&self, label: &str, feature: u32, strength: f32, asked: &str) -> Result<Verdict, ScoreError> {
        let texts = self.steerer.steer(feature, strength, asked).await?;
        let (score, effect) = if texts.steered == texts.reconstructed {
            (1, Effect::None)
        } else {
            let question = Question {
                name: "steering",
                prompt: PROMPT,
                content: content(label, asked, &texts),
                schema: schema(),
                max_tokens: MAX_TOKENS,
            };
            self.judge.ask(&question, read).await?
        };
        Ok(Verdict { feature, question: asked.to_owned(), texts, score, effect })
    }

    async fn measure(&self, subject: &Subject) -> Result<Option<Measured>, ScoreError> {
        Ok(self.verdicts(subject).await?.and_then(|verdicts| verdicts.measured(subject.seed)))
    }
}

impl Scorer for Steering {
    fn type_name(&self) -> &str {
        "steering"
    }

    fn author(&self) -> &str {
        &self.author
    }

    fn score<'a>(&'a self, subject: &'a Subject) -> PendingScore<'a> {
        Box::pin(self.measure(subject))
    }
}

/// One JSON object: what a model said is quoted, whatever it says.
fn content(label: &str, question: &str, texts: &Steered) -> Value {
    let Steered { original, reconstructed, steered } = texts;
    let described = json!({
        "description": label, "question": question,
        "original": original, "reconstructed": reconstructed, "steered": steered,
    });
    Value::from(format!("{described:#}"))
}

fn schema() -> Value {
    let score = json!({ "type": "integer", "minimum": 1, "maximum": 10 });
    let effect = json!({ "type": "string", "enum": SteeringEffects::NAMES });
    json!({
        "type": "object", "properties": { "score": score, "effect": effect },
        "required": ["score", "effect"], "additionalProperties": false,
    })
}

fn read(text: &str) -> Result<(u8, Effect), String> {
    let Answer { score, effect } = read_json(text)?;
    match score {
        1..=10 => Ok((score, effect)),
        other => Err(wrong(text, &format!("has the score {other}, not one from 1 to 10"))),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // tests panic on purpose
    use super::*;

    #[test]
    fn scores_come_back_from_shares() {
        let verdict =
            |score, effect| Verdict { feature: 3, question: String::new(), texts: Steered::default(), score, effect };
        let own = vec![verdict(10, Effect::Reasons), verdict(5, Effect::Mentions), verdict(6, Effect::Mentions)];
        let random = vec![verdict(1, Effect::None), verdict(2, Effect::Unrelated)];
        let verdicts = Verdicts { own, random };
        let measured = verdicts.measured(0).unwrap();
        let counted = SteeringEffects { none: 0, mentions: 2, reasons: 1, unrelated: 0 };
        assert_eq!(measured.effects, Some(counted), "of its own feature");
        assert!((1.0 + 9.0 * measured.value - 7.0).abs() < 1e-5, "{measured:?}");
        assert!((1.0 + 9.0 * measured.baseline - 1.5).abs() < 1e-5, "{measured:?}");
        assert_eq!(measured.samples, 3);
        assert_eq!((share(1), share(10)), (0.0, 1.0));
        assert_eq!(Verdicts::default().measured(0), None);
    }

    #[test]
    fn an_answer_is_a_score_and_an_effect() {
        assert_eq!(read("{\"score\": 7, \"effect\": \"reasons\"}"), Ok((7, Effect::Reasons)));
        for (text, says) in [
            ("{\"score\": 0, \"effect\": \"none\"}", "the score 0"),
            ("{\"score\": 11, \"effect\": \"none\"}", "the score 11"),
            ("{\"score\": 7}", "not the JSON"),
            ("{\"score\": 7, \"effect\": \"strong\"}", "not the JSON"),
            ("7", "not the JSON"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn effects_are_named_alike_in_answers_schema_and_counts() {
        for (effect, name) in Effect::ALL.into_iter().zip(SteeringEffects::NAMES) {
            assert_eq!(serde_json::to_value(effect).unwrap(), name);
            assert!(PROMPT.contains(&format!("- {name}:")), "the prompt does not say {effect:?}");
        }
    }
}
