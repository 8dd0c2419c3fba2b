//! Yes or no of pictures, several in one question: what detection and fuzzing have in common.

use super::{
    Measured, ScoreError, Subject, bootstrap_by,
    judge::{Judge, MAX_TOKENS},
    peers::Peers,
};
use crate::interpret::openai::{Question, read_json, wrong};
use rand::Rng;
use serde::Deserialize;
use serde_json::{Value, json};

/// Balanced accuracy of answers that do not depend on the pictures.
const CHANCE: f32 = 0.5;

/// A picture, and what is right to say of it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Trial {
    pub png: Vec<u8>,
    pub truth: bool,
}

/// What the judge is asked of each picture.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked {
    /// Of the schema.
    pub name: &'static str,
    pub prompt: &'static str,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Answers {
    answers: Vec<bool>,
}

/// Balanced accuracy of the judge's answers under the subject's label; beside it under a random other label, or chance
/// where there is no other label.
pub(super) async fn measure(
    judge: &Judge,
    asked: Asked,
    label: &str,
    subject: &Subject,
    peers: &Peers,
    rng: &mut impl Rng,
    trials: &[Trial],
) -> Result<Measured, ScoreError> {
    let other = peers.other_label(subject, rng);
    let said = answers(judge, asked, label, trials).await?;
    let baseline = match other {
        Some(other) => accuracy(&pairs(trials, &answers(judge, asked, other, trials).await?)),
        None => CHANCE,
    };
    let pairs = pairs(trials, &said);
    let of_drawn = |drawn: &[usize]| accuracy(&drawn.iter().map(|&i| pairs[i]).collect::<Vec<_>>());
    let samples = u32::try_from(pairs.len()).unwrap_or(u32::MAX);
    let interval = bootstrap_by(pairs.len(), subject.seed, of_drawn);
    Ok(Measured { value: accuracy(&pairs), baseline, interval, samples, effects: None })
}

/// What the judge says of each picture, as many pictures in one question as it takes.
async fn answers(judge: &Judge, asked: Asked, label: &str, trials: &[Trial]) -> Result<Vec<bool>, ScoreError> {
    let mut said = Vec::with_capacity(trials.len());
    for some in trials.chunks(judge.pictures()) {
        let pngs: Vec<&[u8]> = some.iter().map(|trial| trial.png.as_slice()).collect();
        let question = Question {
            name: asked.name,
            prompt: asked.prompt,
            content: judge.content(label, &pngs),
            schema: schema(pngs.len()),
            max_tokens: MAX_TOKENS,
        };
        let count = pngs.len();
        said.extend(judge.ask(&question, |text| read(text, count)).await?);
    }
    Ok(said)
}

fn schema(count: usize) -> Value {
    let answers = json!({ "type": "array", "items": { "type": "boolean" }, "minItems": count, "maxItems": count });
    json!({
        "type": "object", "properties": { "answers": answers }, "required": ["answers"], "additionalProperties": false,
    })
}

fn read(text: &str, count: usize) -> Result<Vec<bool>, String> {
    let Answers { answers } = read_json(text)?;
    match answers.len() {
        given if given == count => Ok(answers),
        given => Err(wrong(text, &format!("has {given} answers for {count} pictures"))),
    }
}

/// What is right and what was said, of each picture.
fn pairs(trials: &[Trial], said: &[bool]) -> Vec<(bool, bool)> {
    trials.iter().map(|trial| trial.truth).zip(said.iter().copied()).collect()
}

/// Mean of the shares of right answers among pictures that are true and among those that are not; of one kind alone,
/// its share.
fn accuracy(pairs: &[(bool, bool)]) -> f32 {
    let share = |of: bool| {
        let said: Vec<bool> = pairs.iter().filter(|(truth, _)| *truth == of).map(|(_, said)| *said).collect();
        let right = said.iter().filter(|said| **said == of).count();
        (!said.is_empty()).then(|| right as f32 / said.len() as f32)
    };
    match (share(true), share(false)) {
        (Some(among_true), Some(among_false)) => f32::midpoint(among_true, among_false),
        (one, other) => one.or(other).unwrap_or(CHANCE),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // tests panic on purpose
    use super::*;

    #[test]
    fn both_kinds_weigh_the_same() {
        let (t, f) = (true, false);
        assert_eq!(accuracy(&[(t, t), (f, f), (f, f)]), 1.0);
        assert_eq!(accuracy(&[(t, f), (f, t)]), 0.0);
        assert_eq!(accuracy(&[(t, t), (f, t), (f, t), (f, t)]), 0.5, "always yes");
        assert_eq!(accuracy(&[(t, t), (t, f), (f, f), (f, f)]), 0.75);
        assert_eq!(accuracy(&[(f, f), (f, t), (f, t), (f, f)]), 0.5, "of one kind alone");
    }

    #[test]
    fn an_answer_has_one_word_for_each_picture() {
        assert_eq!(read("```json\n{\"answers\": [true, false]}\n```", 2), Ok(vec![true, false]));
        for (text, says) in [
            ("{\"answers\": [true]}", "1 answers for 2 pictures"),
            ("{\"answers\": [1, 0]}", "not the JSON"),
            ("{\"answer\": [true, false]}", "not the JSON"),
            ("I cannot see pictures.", "not the JSON"),
        ] {
            let error = read(text, 2).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
        assert_eq!(schema(3)["properties"]["answers"]["maxItems"], 3);
    }
}
