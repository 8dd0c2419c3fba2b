//! A larger model behind an OpenAI-compatible server (vLLM, SGLang, others) explains, refines, categorises and scores.
//!
//! The prompts are `backend/pipeline/prompts/*.md`; their hash is part of every job and explanation. Instructions come
//! first and never change, so that a server's prefix cache has them; the pictures come after them. The score is
//! [`Consistency`], by the same model; what it is asked with is part of the score's author.

mod answer;
mod client;
mod question;

pub(crate) use client::Client;
pub(crate) use question::{Question, read_json, wrong};

use super::{Answer, Identity, InterpretError, Interpreter, Pending, Task, masked, prompt_hash};
use crate::score::{SEED, ScoreError, Scorer, consistency::Consistency, judge::Judge};
use answer::Step;
use api::JobKind;
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};
use store::jobs::{ComputedScore, Outcome, Usage, today};

/// Tokens that an answer may have.
const MAX_TOKENS: u32 = 300;

/// What serves the model; they differ in what they want to see.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Engine {
    /// Start it with `--limit-mm-per-prompt` of at least the pictures per request.
    #[default]
    Vllm,
    /// Several pictures are announced as `multi-images`.
    Sglang,
    /// Any other; as the OpenAI API is documented.
    Other,
}

/// Where the model is and how it is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenAiConfig {
    /// Up to and with the version: `http://127.0.0.1:8000/v1`.
    pub url: String,
    /// The model's name, as the server has it.
    pub model: String,
    pub key: Option<String>,
    pub engine: Engine,
    /// Pictures that one explanation looks at; the paper has 5.
    pub pictures: usize,
    pub timeout: Duration,
}

/// An interpreter behind HTTP.
pub struct OpenAi {
    identity: Identity,
    config: OpenAiConfig,
    client: Client,
}

impl OpenAi {
    /// # Errors
    /// When the address is none.
    pub fn new(config: OpenAiConfig) -> Result<Self, InterpretError> {
        let client = Client::new(&config)?;
        let settings = format!("pictures {}, {}, tokens {MAX_TOKENS}", config.pictures, masked::settings());
        let prompts = Step::ALL.map(Step::prompt);
        let identity = Identity {
            name: config.model.clone(),
            prompt_hash: prompt_hash(&[prompts[0], prompts[1], prompts[2], &settings]),
            endpoint: client.endpoint(),
        };
        Ok(Self { identity, config, client })
    }

    async fn ask(&self, task: &Task) -> Result<Answer, InterpretError> {
        let never = |reason: String| InterpretError::Never { reason, usage: Usage::default() };
        let step = Step::of(task.kind).ok_or_else(|| never(format!("no step `{}`", task.kind.as_str())))?;
        let content = match step {
            Step::Explain => self.parts(task).map_err(never)?,
            Step::Refine | Step::Categorise => {
                let said = task.said.as_ref().ok_or_else(|| never("there is no explanation to work on".into()))?;
                Value::from(said.description.as_str())
            }
        };
        let (name, prompt, schema) = (step.kind().as_str(), step.prompt(), step.schema());
        let question = Question { name, prompt, content, schema, max_tokens: MAX_TOKENS };
        let (outcome, usage) = self.client.ask(&question, |text| step.read(text)).await?;
        Ok(Answer { outcome: self.signed(outcome), usage })
    }

    /// Whether the label fits the pictures on which the feature fires.
    async fn score(&self, task: &Task) -> Result<Answer, InterpretError> {
        let setup = |reason: String| InterpretError::Never { reason, usage: Usage::default() };
        let subject = task.subject.as_ref().ok_or_else(|| setup("there is no explanation to score".into()))?;
        // The queue tries again; a judge of its own counts what this task takes.
        let judge = Judge::new(&self.config).map_err(|error| setup(error.to_string()))?.with_tries(1);
        let judge = Arc::new(judge);
        let scorer = Consistency::new(judge.clone());
        let measured = scorer.score(subject).await;
        let usage = judge.usage();
        let measured = measured.map_err(|error| match error {
            ScoreError::Away { reason, after, .. } => InterpretError::Away { reason, after, usage },
            ScoreError::Service { .. } => {
                InterpretError::Again { reason: error.to_string(), after: Duration::ZERO, usage }
            }
            other => InterpretError::Never { reason: other.to_string(), usage },
        })?;
        let Some(measured) = measured else {
            let reason = "there are no pictures to judge the label by".to_owned();
            return Ok(Answer { outcome: Outcome::Nothing { reason }, usage });
        };
        let computed = ComputedScore {
            feature: task.feature.index,
            explanation: subject.explanation.id.clone(),
            description: subject.explanation.description.clone(),
            type_name: scorer.type_name().to_owned(),
            author: scorer.author().to_owned(),
            value: measured.value,
            baseline: measured.baseline,
            interval: measured.interval,
            samples: measured.samples,
            effects: None,
            seed: SEED,
            image_set: task.image_set.clone(),
            created_at: today(),
        };
        Ok(Answer { outcome: Outcome::Scored { scores: vec![computed.into()] }, usage })
    }

    /// The masked pictures, strongest first.
    fn parts(&self, task: &Task) -> Result<Value, String> {
        if task.pictures.is_empty() {
            return Err("the feature fires on no picture".into());
        }
        let mut parts = vec![json!({ "type": "text", "text": format!("{} pictures:", task.pictures.len()) })];
        for (picture, example) in task.pictures.iter().zip(&task.examples) {
            let png = masked::masked_png(picture, example)
                .map_err(|error| format!("picture {}: {error}", example.image.picture.id))?;
            parts.push(self.client.picture(&png, task.pictures.len() > 1));
        }
        Ok(Value::Array(parts))
    }

    /// An explanation's author is the model.
    fn signed(&self, outcome: Outcome) -> Outcome {
        match outcome {
            Outcome::Explained { description, category, type_name, .. } => {
                Outcome::Explained { description, category, type_name, author: self.config.model.clone() }
            }
            other => other,
        }
    }
}

impl Interpreter for OpenAi {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn steps(&self) -> &[JobKind] {
        &[JobKind::Explain, JobKind::Refine, JobKind::Categorise, JobKind::Score]
    }

    fn pictures(&self) -> usize {
        self.config.pictures
    }

    fn judges(&self) -> bool {
        true
    }

    fn interpret<'a>(&'a self, task: &'a Task) -> Pending<'a> {
        Box::pin(async move { if task.kind == JobKind::Score { self.score(task).await } else { self.ask(task).await } })
    }
}
