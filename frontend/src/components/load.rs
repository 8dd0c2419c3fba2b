//! The one wrapper for waiting and failing.

use super::Erase;
use crate::{
    api::{Answer, Fetched, TextResource, read},
    app::PageStatus,
};
use api::Problem;
use leptos::prelude::*;
use serde::de::DeserializeOwned;
use std::sync::Arc;

/// The view of an answer's JSON.
type Viewer = Arc<dyn Fn(&str) -> Answer<AnyView> + Send + Sync>;

/// Shows `waiting` until the first answer, then the view of the newest answer, or its problem.
#[component]
pub fn Load<T, F, V>(
    resource: Fetched<T>,
    #[prop(into)] waiting: ViewFnOnce,
    view: F,
    /// Nothing instead of a problem: another `Load` of the same answer shows it.
    #[prop(optional)]
    quiet: bool,
) -> impl IntoView
where
    T: DeserializeOwned + 'static,
    F: Fn(T) -> V + Send + Sync + 'static,
    V: IntoView + 'static,
{
    let view: Viewer = Arc::new(move |text| read(text).map(|data| view(data).erased()));
    view! { <Wait text=resource.text waiting view quiet /> }
}

/// The part of [`Load`] that is the same for all data.
#[component]
fn Wait(text: TextResource, waiting: ViewFnOnce, view: Viewer, quiet: bool) -> impl IntoView {
    let answer = move || {
        let view = Arc::clone(&view);
        Suspend::new(async move {
            match text.await.0.and_then(|text| view(&text)) {
                Ok(view) => view,
                Err(_) if quiet => ().erased(),
                Err(problem) => view! { <ProblemView problem /> }.erased(),
            }
        })
    };
    view! { <Transition fallback=waiting>{answer}</Transition> }
}

/// What went wrong and what to do, from `problem+json`.
#[component]
pub fn ProblemView(problem: Problem) -> impl IntoView {
    if let Some(status) = use_context::<PageStatus>() {
        status.set(problem.status);
    }
    let help = problem.kind.clone();
    let id = (!problem.request_id.is_empty()).then(|| format!("Request {}", problem.request_id));
    view! {
        <div class="problem" role="alert" data-testid="error-message">
            <strong>{problem.title}</strong>
            <p>{problem.detail}</p>
            <p class="problem-foot">
                <a href=help>"What this error means"</a>
                <span class="mono">{id}</span>
            </p>
        </div>
    }
}

/// Grey boxes in the shape of what comes.
#[component]
pub fn Skeleton(
    /// `cards`, `feature`, `rows` or `picture`.
    shape: &'static str,
    #[prop(default = 1)] count: usize,
) -> impl IntoView {
    let boxes = (0..count).map(|_| view! { <span class="skeleton-box"></span> }).collect_view();
    view! {
        <div class=format!("skeleton skeleton-{shape}") aria-busy="true">
            <span class="visually-hidden">"Loading"</span>
            {boxes}
        </div>
    }
}
