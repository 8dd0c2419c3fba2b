//! `/{model}/{source}/steer`: the model's answer with a feature turned up or off, beside what it says otherwise.

mod address;
mod columns;
mod controls;
mod run;

use crate::by_index::ByIndex;
use crate::{
    api::{Fetched, SourceKey, endpoint},
    components::{Load, Skeleton},
    pages::use_source_key,
};
use address::SteerAddress;
use api::{FeatureSummary, Picture, PictureList};
use columns::Columns;
use controls::{Controls, FeaturePicker};
use leptos::{leptos_dom::helpers::TimeoutHandle, prelude::*};
use leptos_meta::{Meta, Title};
use leptos_router::{
    NavigateOptions,
    hooks::{use_navigate, use_query_map},
};
use run::Texts;
use std::time::Duration;

/// Sample pictures offered.
const SAMPLES: u32 = 12;
/// Wait after a change before the address follows.
const SETTLE: Duration = Duration::from_millis(250);

/// Everything the parts of the page share.
#[derive(Clone, Copy)]
struct State {
    key: Memo<SourceKey>,
    /// What a person set; the address follows it, and it follows the address.
    form: RwSignal<SteerAddress>,
    texts: RwSignal<Texts>,
    /// The texts were made with other settings than the form's.
    stale: Memo<bool>,
    /// Labels and maxima of the chosen features.
    summaries: RwSignal<ByIndex<FeatureSummary>>,
}

#[component]
pub fn SteerPage() -> impl IntoView {
    let key = use_source_key();
    let params = use_query_map();
    let address = Memo::new(move |_| SteerAddress::from_params(&params.read()));
    let form = RwSignal::new(address.get_untracked());
    let texts = RwSignal::new(Texts::default());
    let state = State {
        key,
        form,
        texts,
        stale: Memo::new(move |_| texts.with(|texts| form.with(|form| texts.are_stale(form)))),
        summaries: RwSignal::new(ByIndex::new()),
    };
    keep_in_step(state, address);
    let samples = Fetched::new(move || endpoint::samples(key.get(), SAMPLES));
    let title = move || format!("Steer {} {}", key.get().model, key.get().source);
    let bench = move |samples: Vec<Picture>| {
        view! {
            <FeaturePicker state />
            <Controls state samples />
        }
    };
    view! {
        <Title text=title />
        <Meta property="og:title" content=title />
        <Meta
            property="og:description"
            content="Turn a feature up or off and read what the model says: original, reconstructed and steered, side by side."
        />
        <div class="steer">
            <header class="page-head">
                <h1>"Steer"</h1>
                <p class="lead">
                    "Turn a feature up or off while the model answers. "<em>"Reconstructed"</em>
                    " is the model through the autoencoder with nothing changed: only what differs from it comes from the feature."
                </p>
            </header>
            <div class="steer-bench">
                <Load
                    resource=samples
                    waiting=|| view! { <Skeleton shape="rows" count=4 /> }
                    view=move |list: PictureList| bench(list.pictures)
                />
            </div>
            <Columns state />
        </div>
    }
}

/// Form → address after a moment; address → form when somebody went back or followed a link. A link that says
/// `run=1` starts at once.
fn keep_in_step(state: State, address: Memo<SteerAddress>) {
    let navigate = use_navigate();
    let timer = StoredValue::new(None::<TimeoutHandle>);
    // What this page itself put into the address: somebody may have typed on since.
    let ours = StoredValue::new(None::<SteerAddress>);
    Effect::new(move |_| {
        let address = address.get();
        let is_ours = ours.with_value(|ours| ours.as_ref() == Some(&address));
        if !is_ours && address != state.form.get_untracked() {
            state.form.set(address);
        }
    });
    Effect::new(move |_| {
        let form = state.form.get();
        if let Some(timer) = timer.get_value() {
            timer.clear();
        }
        if form == address.get_untracked() {
            return;
        }
        let navigate = navigate.clone();
        let follow = move || {
            let path = form.path(&state.key.get_untracked());
            ours.set_value(Some(form));
            navigate(&path, NavigateOptions { scroll: false, replace: true, ..NavigateOptions::default() });
        };
        timer.set_value(set_timeout_with_handle(follow, SETTLE).ok());
    });
    // The address says `run=1` only while it leads to the texts on the screen.
    Effect::new(move |_| {
        let run = !state.stale.get();
        let has_texts = state.texts.with_untracked(|texts| texts.settings.is_some());
        if has_texts && state.form.with_untracked(|form| form.run) != run {
            state.form.update(|form| form.run = run);
        }
    });
    run::follow_labels(state);
    Effect::new(move |opened: Option<()>| {
        if opened.is_none() && address.get_untracked().run {
            run::start(state);
        }
    });
    on_cleanup(move || {
        run::cancel();
        // An address that comes late must not lead back here.
        if let Some(timer) = timer.try_get_value().flatten() {
            timer.clear();
        }
    });
}
