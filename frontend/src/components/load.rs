//! The one wrapper for waiting and failing.

use super::Erase;
use crate::{api::Answer, app::PageStatus};
use api::Problem;
use leptos::prelude::*;
use std::{future::Future, pin::Pin};

/// A view that comes later.
type Later = Pin<Box<dyn Future<Output = AnyView> + Send>>;

/// Shows `waiting` until the first answer, then the view of the newest answer, or its problem.
#[component]
pub fn Load<T, F, V>(resource: Resource<Answer<T>>, #[prop(into)] waiting: ViewFnOnce, view: F) -> impl IntoView
where
    T: Clone + Send + Sync + 'static,
    F: Fn(T) -> V + Clone + Send + Sync + 'static,
    V: IntoView + Send + 'static,
{
    let answer = move || -> Later {
        let view = view.clone();
        Box::pin(async move {
            match resource.await {
                Ok(data) => view(data).erased(),
                Err(problem) => view! { <ProblemView problem /> }.erased(),
            }
        })
    };
    view! { <Wait waiting answer=Box::new(answer) /> }
}

/// The part of [`Load`] that is the same for all data.
#[component]
fn Wait(waiting: ViewFnOnce, answer: Box<dyn Fn() -> Later + Send>) -> impl IntoView {
    view! { <Transition fallback=waiting>{move || Suspend::new(answer())}</Transition> }
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
