//! What the lit feature does in this picture, and how much of the picture the autoencoder explains.

use super::{State, run::Run};
use crate::{
    components::{Erase, HistogramPlot, MiniFeature},
    format::{bytes, percent, sig3},
    gpu::{self, place},
};
use api::{FeatureSummary, gpu::ComputePath};
use leptos::{prelude::*, task::spawn_local};
use std::{sync::Arc, time::Duration};

/// Bars of the histogram.
const BINS: u32 = 16;
/// Features of a list.
const NEAR: u32 = 5;
/// A decoder up to this size is read without asking.
const SMALL_DECODER: u64 = 16 << 20;
/// How long a feature stays lit before the worker is asked about it.
const DWELL: Duration = Duration::from_millis(150);

/// Whether the decoder may be read now.
fn reads_decoder(state: State, run: &Run) -> bool {
    run.decoder.is_some_and(|bytes| bytes <= SMALL_DECODER || state.decoder.get())
}

/// How much of the picture is explained, and where that was computed.
#[component]
pub fn Explained(state: State) -> impl IntoView {
    let said = RwSignal::new(None::<String>);
    // The ranking comes first: the worker does one thing after another.
    let is_ranked = Memo::new(move |_| state.ranking.with(|rows| !rows.is_empty()));
    Effect::new(move |_| {
        said.set(None);
        let run = state.run.get().filter(|run| is_ranked.get() && reads_decoder(state, run));
        let Some(run) = run else { return };
        spawn_local(async move {
            let text = match gpu::explained(&run.base).await {
                Ok((path, unexplained, error)) => format!(
                    "the autoencoder explains {} of this picture's variance · patches differ by {} · {}",
                    percent(1.0 - unexplained),
                    percent(error),
                    place(path)
                ),
                Err(detail) => format!("how much is explained is not known: {detail}"),
            };
            if state.shows(&run) {
                said.set(Some(text));
            }
        });
    });
    view! {
        <p class="path mono" data-testid="analyze-explained" hidden=move || said.with(Option::is_none)>
            {move || said.get()}
        </p>
    }
}

/// A feature, what it does, and those that point the same way.
#[derive(Clone)]
struct Shown {
    feature: u32,
    facts: gpu::Facts,
    near: Vec<(u32, f32)>,
}

/// The lit feature on the picked patches or the whole picture: asked for while it is open.
#[component]
pub fn InThisPicture(state: State, lit: Memo<Option<u32>>) -> impl IntoView {
    let open = RwSignal::new(false);
    let shown = RwSignal::new(None::<Shown>);
    let problem = RwSignal::new(None::<String>);
    Effect::new(move |_| {
        problem.set(None);
        let (true, Some(run), Some(feature)) = (open.get(), state.run.get(), lit.get()) else {
            return shown.set(None);
        };
        let places = super::result::picked_or_all(state, &run);
        let reads = reads_decoder(state, &run);
        let is_current = move |run: &Arc<Run>| state.shows(run) && lit.try_get_untracked().flatten() == Some(feature);
        let ask = async move {
            if !is_current(&run) {
                return;
            }
            let mut found = match gpu::facts(feature, &places, BINS, NEAR).await {
                Ok(facts) => Shown { feature, facts, near: Vec::new() },
                Err(detail) if is_current(&run) => return problem.set(Some(detail)),
                Err(_) => return,
            };
            if is_current(&run) {
                show(state, shown, found.clone());
            }
            if reads
                && let Ok(near) = gpu::neighbours(feature, NEAR).await
                && is_current(&run)
            {
                found.near = near;
                show(state, shown, found);
            }
        };
        set_timeout(move || spawn_local(ask), DWELL);
    });
    let content =
        move || shown.get().filter(|shown| lit.get() == Some(shown.feature)).map(|shown| facts_view(state, shown));
    // A large decoder comes when it is wanted.
    let large = move || {
        let run = state.run.get()?;
        run.decoder.filter(|_| !reads_decoder(state, &run))
    };
    let button = move || {
        large().map(|size| {
            view! {
                <button class="button" on:click=move |_| state.decoder.set(true)>
                    {format!("Compare with the decoder ({})", bytes(size))}
                </button>
            }
        })
    };
    view! {
        <details
            class="where"
            data-testid="analyze-facts"
            hidden=move || state.run.with(|run| run.as_ref().is_none_or(|run| run.computed == ComputePath::Server))
            on:toggle=move |_| open.update(|open| *open = !*open)
        >
            <summary>"In this picture"</summary>
            <div class="facts">
                {content} <p class="faint">{move || problem.get()}</p> {button}
            </div>
        </details>
    }
}

/// Shows what was found; its features are named.
fn show(state: State, shown: RwSignal<Option<Shown>>, found: Shown) {
    let features = found.facts.together.iter().chain(&found.near).map(|(feature, _)| *feature);
    state.named.set(features.collect());
    shown.set(Some(found));
}

fn facts_view(state: State, shown: Shown) -> AnyView {
    let Shown { feature, facts, near } = shown;
    let line = match facts.place {
        0 => format!("It does not fire here ({}).", place(facts.path)),
        number => format!(
            "Number {number} of {} features that fire here · mean {} · max {} ({})",
            facts.firing,
            sig3(facts.mean),
            sig3(facts.max),
            place(facts.path)
        ),
    };
    let edges: Vec<f32> = (0..=BINS).map(|edge| facts.max * edge as f32 / BINS as f32).collect();
    view! {
        <p class="faint" data-testid="analyze-place" data-feature=feature>
            {line}
        </p>
        <HistogramPlot heights=facts.counts edges unit="activation" />
        {list(
            state,
            "Fires together",
            "analyze-together",
            "share of this feature's patches on which it fires as well",
            facts.together,
        )}
        {list(state, "Points the same way", "analyze-near", "cosine of the decoder rows", near)}
    }
    .erased()
}

/// Features with a number each; nothing where there are none.
fn list(
    state: State,
    title: &'static str,
    testid: &'static str,
    what: &'static str,
    features: Vec<(u32, f32)>,
) -> Option<AnyView> {
    if features.is_empty() {
        return None;
    }
    let rows = move || {
        let row = |&(index, value): &(u32, f32)| {
            let feature = state.summaries.with(|found| found.get(index).cloned()).unwrap_or_else(|| {
                // Until its label comes.
                let key = state.key.get_untracked();
                FeatureSummary { model_id: key.model, layer: key.source, index, ..FeatureSummary::default() }
            });
            view! { <li><MiniFeature feature value what /></li> }
        };
        features.iter().map(row).collect_view()
    };
    Some(
        view! {
            <h3 title=what>{title}</h3>
            <ul class="minis" data-testid=testid>
                {rows}
            </ul>
        }
        .erased(),
    )
}
