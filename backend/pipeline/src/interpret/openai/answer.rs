//! What each step asks, and what counts as an answer.

use super::question::{read_json, wrong};
use api::{Category, JobKind};
use serde::Deserialize;
use serde_json::{Value, json};
use store::jobs::Outcome;

/// Longest texts that are taken, in characters.
const MAX_EXPLANATION: usize = 1_000;
const MAX_LABEL: usize = 80;

/// A step of the model's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Explain,
    Refine,
    Categorise,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Explanation {
    /// Null, but not left out.
    #[serde(deserialize_with = "Option::deserialize")]
    explanation: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Label {
    label: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Filed {
    category: String,
}

impl Step {
    pub(super) const ALL: [Self; 3] = [Self::Explain, Self::Refine, Self::Categorise];

    pub(super) fn of(kind: JobKind) -> Option<Self> {
        Self::ALL.into_iter().find(|step| step.kind() == kind)
    }

    pub(super) fn kind(self) -> JobKind {
        match self {
            Self::Explain => JobKind::Explain,
            Self::Refine => JobKind::Refine,
            Self::Categorise => JobKind::Categorise,
        }
    }

    pub(super) fn prompt(self) -> &'static str {
        match self {
            Self::Explain => include_str!("../../../prompts/explain.md"),
            Self::Refine => include_str!("../../../prompts/refine.md"),
            Self::Categorise => include_str!("../../../prompts/categorise.md"),
        }
    }

    pub(super) fn schema(self) -> Value {
        let (name, field) = match self {
            Self::Explain => ("explanation", json!({ "type": ["string", "null"] })),
            Self::Refine => ("label", json!({ "type": "string" })),
            Self::Categorise => ("category", json!({ "type": "string", "enum": Category::ALL.map(Category::as_str) })),
        };
        json!({ "type": "object", "properties": { name: field }, "required": [name], "additionalProperties": false })
    }

    /// Reads an answer; says what is wrong with one that is none.
    pub(super) fn read(self, text: &str) -> Result<Outcome, String> {
        let wrong = |what: &str| wrong(text, what);
        match self {
            Self::Explain => {
                let Explanation { explanation } = read_json(text)?;
                let Some(explanation) = explanation else {
                    return Ok(Outcome::Nothing { reason: "the model found nothing in common".into() });
                };
                let description = text_of(&explanation, MAX_EXPLANATION).map_err(|what| wrong(&what))?;
                let (type_name, author) = ("lmm".into(), String::new());
                Ok(Outcome::Explained { description, category: Category::Unknown, type_name, author })
            }
            Self::Refine => {
                let Label { label } = read_json(text)?;
                Ok(Outcome::Refined { label: text_of(&label, MAX_LABEL).map_err(|what| wrong(&what))? })
            }
            Self::Categorise => {
                let Filed { category } = read_json(text)?;
                let category = Category::from_name(&category);
                Ok(Outcome::Categorised { category: category.ok_or_else(|| wrong("names no category"))? })
            }
        }
    }
}

/// The text, if there is one and not too much of it.
fn text_of(text: &str, most: usize) -> Result<String, String> {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match text.chars().count() {
        // Or the three dots that the instructions have in its place.
        _ if !text.contains(char::is_alphanumeric) => Err("is empty".into()),
        length if length > most => Err(format!("has {length} characters, at most {most} are taken")),
        _ => Ok(text),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // tests panic on purpose
    use super::*;

    #[test]
    fn answers_are_read_with_and_without_a_fence() {
        let fenced = "```json\n{\"label\": \"red  cat\"}\n```";
        assert_eq!(Step::Refine.read(fenced), Ok(Outcome::Refined { label: "red cat".into() }));
        let nothing = Step::Explain.read("{\"explanation\": null}").unwrap();
        assert!(matches!(nothing, Outcome::Nothing { .. }));
        let filed = Step::Categorise.read("{\"category\":\"texture\"}").unwrap();
        assert_eq!(filed, Outcome::Categorised { category: Category::Texture });
    }

    #[test]
    fn what_was_not_asked_for_is_refused() {
        let long = format!("{{\"label\": \"{}\"}}", "a".repeat(MAX_LABEL + 1));
        for (step, text, says) in [
            (Step::Explain, "The pictures show cats.", "not the JSON"),
            (Step::Explain, "{\"label\": \"cat\"}", "not the JSON"),
            (Step::Explain, "{}", "not the JSON"),
            (Step::Explain, "{\"explanation\": \" \"}", "is empty"),
            (Step::Refine, "{\"label\": \"…\"}", "is empty"),
            (Step::Refine, long.as_str(), "81 characters"),
            (Step::Categorise, "{\"category\": \"animal\"}", "names no category"),
        ] {
            let error = step.read(text).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn schemas_name_what_is_read() {
        for step in Step::ALL {
            let schema = step.schema();
            let name = schema["required"][0].as_str().unwrap();
            assert!(schema["properties"][name].is_object(), "{schema}");
            assert!(step.prompt().contains(&format!("\"{name}\"")), "the prompt of {step:?} does not say {name}");
        }
    }
}
