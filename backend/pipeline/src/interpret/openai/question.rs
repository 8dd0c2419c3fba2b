//! A question to the larger model, and the answer to it: JSON by a schema first, and once more without.

use super::{
    Engine, InterpretError,
    client::{Client, Failure},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use store::jobs::Usage;

/// So much of a wrong answer is repeated in its reason.
const SHOWN: usize = 160;

/// What is asked, and which form the answer has.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Question {
    /// Of the schema.
    pub name: &'static str,
    /// Instructions: they come first and never change, so that a server's prefix cache has them.
    pub prompt: &'static str,
    /// A text, or texts and pictures.
    pub content: Value,
    pub schema: Value,
    /// Tokens that the answer may have.
    pub max_tokens: u32,
}

impl Client {
    /// Asks until `read` takes the answer: with the schema, then without. A server that does not know schemas, or a
    /// model that breaks out of one, gets this second chance: the prompt says what to answer.
    ///
    /// # Errors
    /// When the server cannot be reached, refuses, or answers both times with what `read` refuses.
    pub(crate) async fn ask<T>(
        &self,
        question: &Question,
        read: impl Fn(&str) -> Result<T, String>,
    ) -> Result<(T, Usage), InterpretError> {
        let mut usage = Usage::default();
        let mut reason = String::new();
        for schema in [true, false] {
            let reply = match self.chat(&self.body(question, schema)).await {
                Ok(reply) => reply,
                Err(Failure::Refused { reason: said }) if schema => {
                    reason = said;
                    continue;
                }
                Err(failure) => return Err(failure.into_error(usage)),
            };
            usage.input_tokens += reply.usage.input_tokens;
            usage.output_tokens += reply.usage.output_tokens;
            match read(&reply.text) {
                Ok(answer) => return Ok((answer, usage)),
                Err(wrong) => reason = wrong,
            }
        }
        Err(InterpretError::Never { reason, usage })
    }

    /// A picture as a part of a question's content; `several`: it is not the only one.
    pub(crate) fn picture(&self, png: &[u8], several: bool) -> Value {
        let url = format!("data:image/png;base64,{}", STANDARD.encode(png));
        let mut part = json!({ "type": "image_url", "image_url": { "url": url } });
        if self.engine() == Engine::Sglang && several {
            part["modalities"] = "multi-images".into();
        }
        part
    }

    fn body(&self, question: &Question, schema: bool) -> Value {
        let mut body = json!({
            "model": self.model(),
            "temperature": 0,
            "max_tokens": question.max_tokens,
            "messages": [
                { "role": "system", "content": question.prompt },
                { "role": "user", "content": question.content },
            ],
        });
        if schema {
            body["response_format"] = json!({
                "type": "json_schema",
                "json_schema": { "name": question.name, "strict": true, "schema": question.schema },
            });
        }
        body
    }
}

/// Reads an answer's JSON, with and without the fence that models put around it.
pub(crate) fn read_json<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_json::from_str(without_fence(text))
        .map_err(|error| wrong(text, &format!("is not the JSON that was asked for ({error})")))
}

/// What is wrong with an answer, and how it begins.
pub(crate) fn wrong(text: &str, what: &str) -> String {
    let shown: String = text.chars().take(SHOWN).collect();
    format!("the model's answer {what}: {shown:?}")
}

fn without_fence(text: &str) -> &str {
    let text = text.trim();
    let Some(inner) = text.strip_prefix("```").and_then(|text| text.strip_suffix("```")) else { return text };
    inner.strip_prefix("json").unwrap_or(inner).trim()
}
