//! One steer run: three texts that stream together.

use super::{State, address::SteerAddress};
use crate::by_index::ByIndex;
use crate::{
    api::{client, endpoint, local_problem},
    http::{self, CANCELLED},
};
use api::{Column, ErrorCode, FeatureQuery, Problem, Provenance, SteerEvent, SteerResult, TextToken};
use leptos::{prelude::*, task::spawn_local};
use std::cell::RefCell;
use web_sys::AbortController;

/// What has arrived so far.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Texts {
    pub original: Vec<TextToken>,
    pub reconstructed: Vec<TextToken>,
    pub steered: Vec<TextToken>,
    pub running: bool,
    /// All three are whole.
    pub done: bool,
    pub problem: Option<Problem>,
    pub provenance: Option<Provenance>,
    /// The settings they were made with.
    pub settings: Option<SteerAddress>,
}

impl Texts {
    pub fn column(&self, column: Column) -> &[TextToken] {
        match column {
            Column::Default => &self.original,
            Column::Reconstructed => &self.reconstructed,
            Column::Steered => &self.steered,
        }
    }

    /// Whether they were made with other settings than these.
    pub fn are_stale(&self, form: &SteerAddress) -> bool {
        self.settings.as_ref().is_some_and(|made| SteerAddress { run: made.run, ..form.clone() } != *made)
    }

    /// Takes one event of the stream.
    pub fn take(&mut self, event: SteerEvent) {
        match event {
            SteerEvent::Token { column: Column::Default, token } => self.original.push(token),
            SteerEvent::Token { column: Column::Reconstructed, token } => self.reconstructed.push(token),
            SteerEvent::Token { column: Column::Steered, token } => self.steered.push(token),
            SteerEvent::Done { result } => self.finish(result),
            SteerEvent::Failed { detail } => {
                self.problem = Some(local_problem(ErrorCode::Internal, "The model stopped", detail));
            }
        }
    }

    fn finish(&mut self, result: SteerResult) {
        self.original = result.default.tokens;
        self.reconstructed = result.reconstructed.tokens;
        self.steered = result.steered.tokens;
        self.provenance = Some(result.provenance);
        self.done = true;
    }
}

thread_local! {
    static CONTROLLER: RefCell<Option<AbortController>> = const { RefCell::new(None) };
}

/// Stops the run in progress; the server stops generating.
pub fn cancel() {
    if let Some(controller) = CONTROLLER.take() {
        controller.abort();
    }
}

/// Runs what the form says, and says so in the address.
pub fn start(state: State) {
    cancel();
    let form = state.form.get_untracked();
    if !form.run {
        state.form.update(|form| form.run = true);
    }
    let controller = AbortController::new().ok();
    CONTROLLER.set(controller.clone());
    state.texts.set(Texts { running: true, settings: Some(form.clone()), ..Texts::default() });
    let key = state.key.get_untracked();
    // The client comes from the context, which is only at hand before the first wait.
    let client = client();
    spawn_local(async move {
        let signal = controller.as_ref().map(AbortController::signal);
        let outcome = async {
            let missing: Vec<u32> = state.summaries.with_untracked(|known| {
                form.features.iter().map(|chosen| chosen.index).filter(|index| !known.contains(*index)).collect()
            });
            if !missing.is_empty() {
                let list = client.ask(endpoint::features(key.clone(), ids_query(&missing))).await?;
                state
                    .summaries
                    .update(|known| known.extend(list.features.into_iter().map(|found| (found.index, found))));
            }
            let request = state.summaries.with_untracked(|known| form.request(known)).map_err(|index| {
                let detail = format!("There is no feature {index} in this source. Take it out and run again.");
                local_problem(ErrorCode::NotFound, "No such feature", detail)
            })?;
            let is_stale = || signal.as_ref().is_some_and(web_sys::AbortSignal::aborted);
            http::steer(&key, &request, signal.as_ref(), |event| {
                if !is_stale() {
                    state.texts.update(|texts| texts.take(event));
                }
            })
            .await
        }
        .await;
        let replaced =
            signal.as_ref().is_some_and(web_sys::AbortSignal::aborted) && CONTROLLER.with_borrow(Option::is_some);
        if !replaced {
            finish(state, outcome.err());
        }
    });
}

fn finish(state: State, problem: Option<Problem>) {
    state.texts.update(|texts| {
        texts.running = false;
        if let Some(problem) = problem.filter(|problem| problem.title != CANCELLED) {
            texts.problem = Some(problem);
        }
    });
}

fn ids_query(ids: &[u32]) -> FeatureQuery {
    let text = ids.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
    FeatureQuery { ids: text, per_page: ids.len() as u32, ..FeatureQuery::default() }
}

/// Fetches label and maximum of every chosen feature.
pub fn follow_labels(state: State) {
    let client = client();
    let asked = StoredValue::new(ByIndex::<()>::new());
    let chosen =
        Memo::new(move |_| state.form.with(|form| form.features.iter().map(|chosen| chosen.index).collect::<Vec<_>>()));
    Effect::new(move |_| {
        let mut wanted = chosen.get();
        wanted.retain(|index| asked.try_update_value(|asked| asked.insert(*index, ())).unwrap_or(false));
        if wanted.is_empty() {
            return;
        }
        let (client, key) = (client.clone(), state.key.get_untracked());
        spawn_local(async move {
            // Without an answer the chip keeps its number, and the run says what is wrong.
            if let Ok(list) = client.ask(endpoint::features(key, ids_query(&wanted))).await {
                state
                    .summaries
                    .update(|known| known.extend(list.features.into_iter().map(|found| (found.index, found))));
            }
        });
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::SteeredText;

    fn token(text: &str) -> TextToken {
        TextToken { text: text.into(), id: 0, logprob: -0.1, ..TextToken::default() }
    }

    #[test]
    fn tokens_go_to_their_columns_and_the_result_replaces_them() {
        let mut texts = Texts { running: true, ..Texts::default() };
        texts.take(SteerEvent::Token { column: Column::Steered, token: token("sad") });
        texts.take(SteerEvent::Token { column: Column::Default, token: token("happy") });
        assert_eq!(texts.column(Column::Steered), [token("sad")]);
        assert_eq!(texts.column(Column::Default), [token("happy")]);
        assert!(texts.column(Column::Reconstructed).is_empty() && !texts.done);
        let whole = SteeredText { text: "so sad".into(), tokens: vec![token("so"), token("sad")] };
        texts.take(SteerEvent::Done { result: SteerResult { steered: whole, ..SteerResult::default() } });
        assert_eq!(texts.column(Column::Steered).len(), 2);
        assert!(texts.done);
    }

    #[test]
    fn texts_are_stale_once_a_setting_differs() {
        let made = SteerAddress { prompt: "hello".into(), ..SteerAddress::default() };
        let texts = Texts { settings: Some(made.clone()), ..Texts::default() };
        assert!(!texts.are_stale(&SteerAddress { run: true, ..made.clone() }));
        assert!(texts.are_stale(&SteerAddress { seed: 1, ..made }));
        assert!(!Texts::default().are_stale(&SteerAddress::default()), "no texts, nothing stale");
    }

    #[test]
    fn a_failed_run_says_why() {
        let mut texts = Texts::default();
        texts.take(SteerEvent::Failed { detail: "the engine is gone".into() });
        assert_eq!(texts.problem.map(|problem| problem.detail).as_deref(), Some("the engine is gone"));
    }
}
