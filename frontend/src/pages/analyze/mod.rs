//! `/{model}/{source}/analyze`: a picture, its hidden states from the server, its features from the visitor's GPU.

mod address;
mod facts;
mod intake;
mod result;
mod run;

use crate::by_index::ByIndex;
use crate::{
    api::{Fetched, SourceKey, endpoint},
    components::{Load, Skeleton},
    pages::use_source_key,
    ranking::Ranked,
};
use address::AnalyzeAddress;
use api::{FeatureSummary, Picture, PictureList};
use intake::{Intake, PromptField};
use leptos::prelude::*;
use leptos_meta::{Meta, Title};
use leptos_router::{
    NavigateOptions,
    hooks::{use_navigate, use_query_map},
};
use result::{Picked, Rows, Waiting};
use run::{OwnPicture, Run, Stage};
use std::sync::Arc;

/// Sample pictures offered.
const SAMPLES: u32 = 24;

/// Everything the parts of the page share.
#[derive(Clone, Copy)]
struct State {
    key: Memo<SourceKey>,
    /// What a person set, from the address.
    address: Memo<AnalyzeAddress>,
    /// Sets it anew.
    go: Callback<AnalyzeAddress>,
    /// The visitor's own picture; it never leaves this page but for its hidden states.
    own: RwSignal<Option<OwnPicture>>,
    /// Counts up to analyze the same thing once more.
    attempt: RwSignal<u32>,
    stage: RwSignal<Stage>,
    run: RwSignal<Option<Arc<Run>>>,
    /// The strongest features of the places that are asked about, more than are shown.
    ranking: RwSignal<Vec<Ranked>>,
    /// Features named elsewhere on the page.
    named: RwSignal<Vec<u32>>,
    /// The visitor wants a large decoder.
    decoder: RwSignal<bool>,
    /// The patch under the pointer.
    hovered: RwSignal<Option<u32>>,
    /// The feature whose row is under the pointer.
    pointed: RwSignal<Option<u32>>,
    /// Labels and thumbnails that have arrived.
    summaries: RwSignal<ByIndex<FeatureSummary>>,
}

impl State {
    fn update(self, edit: impl FnOnce(&mut AnalyzeAddress)) {
        let mut address = self.address.get_untracked();
        edit(&mut address);
        self.go.run(address);
    }

    fn retry(self) {
        self.attempt.update(|attempt| *attempt += 1);
    }

    /// Whether the page still shows this analysis.
    fn shows(self, run: &Arc<Run>) -> bool {
        self.run.try_get_untracked().flatten().is_some_and(|now| Arc::ptr_eq(&now, run))
    }
}

#[component]
pub fn AnalyzePage() -> impl IntoView {
    let key = use_source_key();
    let params = use_query_map();
    let navigate = use_navigate();
    let state = State {
        key,
        address: Memo::new(move |_| AnalyzeAddress::from_params(&params.read())),
        go: Callback::new(move |address: AnalyzeAddress| {
            let options = NavigateOptions { scroll: false, replace: true, ..NavigateOptions::default() };
            navigate(&address.path(&key.get_untracked()), options);
        }),
        own: RwSignal::new(None),
        attempt: RwSignal::new(0),
        stage: RwSignal::new(Stage::Idle),
        run: RwSignal::new(None),
        ranking: RwSignal::new(Vec::new()),
        named: RwSignal::new(Vec::new()),
        decoder: RwSignal::new(false),
        hovered: RwSignal::new(None),
        pointed: RwSignal::new(None),
        summaries: RwSignal::new(ByIndex::new()),
    };
    run::follow(state);
    let samples = Fetched::new(move || endpoint::samples(key.get(), SAMPLES));
    let title = move || format!("Analyze a picture with {} {}", key.get().model, key.get().source);
    view! {
        <Title text=title />
        <Meta property="og:title" content=title />
        <Meta
            property="og:description"
            content="Drop a picture: the server computes hidden states, your GPU finds the features."
        />
        <div class="analyze">
            <header class="page-head">
                <h1>"Analyze a picture"</h1>
                <p class="lead">
                    "Choose a sample or use your own. The server computes hidden states, your GPU finds the features, and every patch answers."
                </p>
            </header>
            <Load
                resource=samples
                waiting=|| view! { <Skeleton shape="picture" /> }
                view=move |list: PictureList| view! { <Bench state samples=list.pictures /> }
            />
        </div>
    }
}

/// Picture on the left, features on the right.
#[component]
fn Bench(state: State, samples: Vec<Picture>) -> impl IntoView {
    let known = StoredValue::new(samples.clone());
    let shown = Memo::new(move |_| match (state.own.get(), state.address.get().picture) {
        (Some(own), _) => Some(Picture { url: own.url, caption: own.name, ..Picture::default() }),
        (None, Some(id)) => known
            .with_value(|known| known.iter().find(|sample| sample.id == id).cloned())
            .or_else(|| Some(Picture { url: format!("/pictures/{id}.webp"), id, ..Picture::default() })),
        (None, None) => None,
    });
    view! {
        <Intake state samples empty=Signal::derive(move || shown.get().is_none()) />
        <div class="bench">
            <div class="bench-left">
                {move || shown.get().map(|picture| view! { <Picked state picture /> })} <PromptField state />
            </div>
            <div class="bench-right">
                <Waiting state />
                <Rows state />
            </div>
        </div>
    }
}
