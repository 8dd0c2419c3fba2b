//! Consistency (paper, section 4.1, there by GPT-4o): does the label fit what the feature fires on?
//!
//! The judge sees the label and a group of masked pictures, bright where the feature fires, and says 1 or 0. The first
//! group has the top pictures, as the paper's one and only; the next ones come after them, so that a label which holds
//! for a few pictures alone scores lower. The score is the share of groups with a 1. The baseline is the same label
//! with random pictures under the same maps: a dark picture would tell that it is none of the feature's.

use super::{
    Measured, PendingScore, ScoreError, Scorer, Shown, Subject,
    judge::{Judge, MAX_TOKENS, label_of, seen},
};
use crate::interpret::{
    masked::{self, masked_png},
    openai::{Question, read_json, wrong},
};
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;

/// Groups of pictures, as many as there are examples for.
const GROUPS: usize = 4;
const PROMPT: &str = include_str!("../../prompts/consistency.md");

/// Share of groups of pictures that a judge finds a label to fit.
pub struct Consistency {
    judge: Arc<Judge>,
    groups: usize,
    author: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Answer {
    consistent: u8,
}

impl Consistency {
    pub fn new(judge: Arc<Judge>) -> Self {
        Self::with_groups(judge, GROUPS)
    }

    /// With another number of groups; 1 is the paper's protocol.
    pub fn with_groups(judge: Arc<Judge>, groups: usize) -> Self {
        let groups = groups.max(1);
        let settings = format!("groups {groups}, pictures {}, {}", judge.pictures(), masked::settings());
        let author = judge.author(PROMPT, &settings);
        Self { judge, groups, author }
    }

    async fn measure(&self, subject: &Subject) -> Result<Option<Measured>, ScoreError> {
        let Some(label) = label_of(subject) else { return Ok(None) };
        let size = self.judge.pictures();
        // A last group of fewer pictures would weigh as much as the others.
        let groups = (subject.shown.len().min(subject.random.len()) / size).clamp(1, self.groups);
        let (mut values, mut baseline) = (Vec::new(), Vec::new());
        let of_group = subject.shown.chunks(size).zip(subject.random.chunks(size)).take(groups);
        for (shown, random) in of_group {
            values.push(self.ask(label, shown, shown).await?);
            baseline.push(self.ask(label, random, shown).await?);
        }
        Ok(Measured::mean(&values, &baseline, subject.seed))
    }

    /// 1 or 0 for pictures, each under the map of an example.
    async fn ask(&self, label: &str, pictures: &[Shown], maps: &[Shown]) -> Result<f32, ScoreError> {
        let mut pngs = Vec::new();
        for (shown, map) in pictures.iter().zip(maps) {
            pngs.push(seen(shown, |picture| masked_png(picture, &map.activation))?);
        }
        let parts: Vec<&[u8]> = pngs.iter().map(Vec::as_slice).collect();
        let question = Question {
            name: "consistency",
            prompt: PROMPT,
            content: self.judge.content(label, &parts),
            schema: schema(),
            max_tokens: MAX_TOKENS,
        };
        self.judge.ask(&question, read).await
    }
}

impl Scorer for Consistency {
    fn type_name(&self) -> &str {
        "consistency"
    }

    fn author(&self) -> &str {
        &self.author
    }

    fn score<'a>(&'a self, subject: &'a Subject) -> PendingScore<'a> {
        Box::pin(self.measure(subject))
    }
}

fn schema() -> Value {
    json!({
        "type": "object", "properties": { "consistent": { "type": "integer", "enum": [0, 1] } },
        "required": ["consistent"], "additionalProperties": false,
    })
}

fn read(text: &str) -> Result<f32, String> {
    let Answer { consistent } = read_json(text)?;
    match consistent {
        0 | 1 => Ok(f32::from(consistent)),
        other => Err(wrong(text, &format!("is {other}, neither 0 nor 1"))),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // tests panic on purpose
    use super::*;

    #[test]
    fn an_answer_is_one_or_zero() {
        assert_eq!(read("{\"consistent\": 1}"), Ok(1.0));
        assert_eq!(read("{\"consistent\": 0}"), Ok(0.0));
        for (text, says) in [
            ("{\"consistent\": 2}", "neither 0 nor 1"),
            ("{\"consistent\": null}", "not the JSON"),
            ("{\"consistent\": 0.5}", "not the JSON"),
            ("", "not the JSON"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
    }
}
