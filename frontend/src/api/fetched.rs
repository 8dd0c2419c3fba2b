//! Answers that a page waits for.

use super::{Answer, Ask, Endpoint, Pending, client, read};
use leptos::prelude::*;
use serde::de::DeserializeOwned;
use std::marker::PhantomData;

/// An answer that is on its way, fetched again when what it depends on changes.
///
/// Inside there is text for every type of answer: the code that waits, that carries the answer from the server's markup
/// into the live page, and that shows it, is in the bundle once and not once for every type.
pub struct Fetched<T> {
    /// The answer's JSON.
    pub text: Resource<Answer<String>>,
    answer: PhantomData<fn() -> T>,
}

impl<T> Clone for Fetched<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Fetched<T> {}

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
        self.text.get().map(|answer| answer.and_then(|text| read(&text)))
    }

    pub async fn wait(self) -> Answer<T> {
        self.text.await.and_then(|text| read(&text))
    }
}

fn one(question: Question) -> Resource<Answer<String>> {
    let client = client();
    Resource::new(question, move |endpoint| -> Pending {
        match endpoint {
            Ok(endpoint) => client.get(endpoint),
            Err(problem) => Box::pin(std::future::ready(Err(problem))),
        }
    })
}

fn many(state: Box<dyn Fn() -> String + Send + Sync>, make: Composed) -> Resource<Answer<String>> {
    Resource::new(state, make)
}
