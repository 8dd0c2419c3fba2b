//! Answers that a page waits for.

use super::{Answer, Ask, Endpoint, Pending, client, read, write as write_json};
use api::Problem;
use leptos::{prelude::*, server::codee::string::FromToStringCodec};
use serde::de::DeserializeOwned;
use std::{fmt, marker::PhantomData, str::FromStr};

/// An answer that is on its way, fetched again when what it depends on changes.
///
/// Inside there is text for every type of answer: the code that waits, that carries the answer from the server's markup
/// into the live page, and that shows it, is in the bundle once and not once for every type.
pub struct Fetched<T> {
    pub text: TextResource,
    answer: PhantomData<fn() -> T>,
}

impl<T> Clone for Fetched<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Fetched<T> {}

/// A resource of any answer.
pub type TextResource = Resource<Text, FromToStringCodec>;

/// An answer's JSON. In the markup it has a sign before it: `=` for an answer, `!` for a problem.
#[derive(Debug, Clone, PartialEq)]
pub struct Text(pub Answer<String>);

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Ok(json) => write!(f, "={json}"),
            Err(problem) => write!(f, "!{}", write_json(problem).unwrap_or_default()),
        }
    }
}

impl FromStr for Text {
    type Err = Problem;

    fn from_str(text: &str) -> Answer<Self> {
        match text.split_at_checked(1) {
            Some(("=", json)) => Ok(Self(Ok(json.to_owned()))),
            Some((_, json)) => Ok(Self(Err(read(json)?))),
            None => Ok(Self(Ok(String::new()))),
        }
    }
}

/// What to ask for: reads signals.
type Question = Box<dyn Fn() -> Answer<Endpoint> + Send + Sync>;
/// Several questions, one after the other, made into one answer for one state of the address.
type Composed = Box<dyn Fn(String) -> Pending + Send + Sync>;

impl<T> Fetched<T> {
    /// The answer to one question; `question` reads signals.
    pub fn new(question: impl Fn() -> Ask<T> + Send + Sync + 'static) -> Self
    where
        T: 'static,
    {
        Self::attempt(move || Ok(question()))
    }

    /// The same, where the address may name something that cannot be asked for.
    pub fn attempt(question: impl Fn() -> Answer<Ask<T>> + Send + Sync + 'static) -> Self
    where
        T: 'static,
    {
        Self { text: one(Box::new(move || question().map(|ask| ask.endpoint))), answer: PhantomData }
    }

    /// An answer made of several; `state` reads signals, and `make` writes the answer with [`super::write`].
    pub fn composed(
        state: impl Fn() -> String + Send + Sync + 'static,
        make: impl Fn(String) -> Pending + Send + Sync + 'static,
    ) -> Self {
        Self { text: many(Box::new(state), Box::new(make)), answer: PhantomData }
    }
}

impl<T: DeserializeOwned> Fetched<T> {
    /// The answer so far. Read it inside a `Suspense`.
    pub fn get(self) -> Option<Answer<T>> {
        self.text.get().map(|Text(answer)| answer.and_then(|text| read(&text)))
    }

    pub async fn wait(self) -> Answer<T> {
        self.text.await.0.and_then(|text| read(&text))
    }
}

fn one(question: Question) -> TextResource {
    let client = client();
    Resource::new_str(question, move |endpoint| {
        let pending = endpoint.map(|endpoint| client.get(endpoint));
        async move {
            match pending {
                Ok(pending) => Text(pending.await),
                Err(problem) => Text(Err(problem)),
            }
        }
    })
}

fn many(state: Box<dyn Fn() -> String + Send + Sync>, make: Composed) -> TextResource {
    Resource::new_str(state, move |state| {
        let pending = make(state);
        async move { Text(pending.await) }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::local_problem;
    use ::api::ErrorCode;

    #[test]
    fn answers_and_problems_survive_the_markup() {
        for text in [
            Text(Ok("{\"a\":[1,\"é\"]}".into())),
            Text(Ok(String::new())),
            Text(Err(local_problem(ErrorCode::NotFound, "No such feature", "“x” is no number."))),
        ] {
            assert_eq!(text.to_string().parse(), Ok(text));
        }
        assert!("!no JSON".parse::<Text>().is_err());
    }
}
