//! `/{model}/{source}`: the features of an SAE as a grid; every state is in the address.

use crate::{
    api::{Fetched, SourceKey, endpoint},
    components::{FeatureCard, Load, Pager, Picker, ProvenanceNote, SearchField, Skeleton, Stat},
    format::{count, number, percent, shortest, sig3},
    links::{PER_PAGE, api_path, feature_query_from_params, feature_query_pairs, feature_query_string, source_path},
    pages::use_source_key,
};
use api::{Category, FeatureList, FeatureQuery, FeatureSort, Source};
use leptos::{leptos_dom::helpers::TimeoutHandle, prelude::*};
use leptos_meta::{Meta, Title};
use leptos_router::{
    NavigateOptions,
    hooks::{use_navigate, use_query_map},
};
use std::time::Duration;

/// Wait after a key press before the address changes.
const TYPING: Duration = Duration::from_millis(200);

#[component]
pub fn SourcePage() -> impl IntoView {
    let key = use_source_key();
    let params = use_query_map();
    let query = Memo::new(move |_| feature_query_from_params(&params.read()));
    let source = Fetched::new(move || endpoint::source(key.get()));
    let features = Fetched::new(move || {
        let query = query.get();
        let per_page = if query.per_page == 0 { PER_PAGE } else { query.per_page };
        endpoint::features(key.get(), FeatureQuery { per_page, ..query })
    });
    let navigate = use_navigate();
    let go = Callback::new(move |query: FeatureQuery| {
        let path = source_path(&key.get_untracked()) + &feature_query_string(&query);
        navigate(&path, NavigateOptions { scroll: false, replace: true, ..NavigateOptions::default() });
    });
    let title = move || {
        let key = key.get();
        format!("Features of {} {}", key.model, key.source)
    };
    view! {
        <Title text=title />
        <Meta property="og:title" content=title />
        <div class="source">
            <Load resource=source waiting=|| view! { <Skeleton shape="rows" /> } view=|source| view! { <SourceHead source /> } />
            <Filters key query go />
            <Load
                resource=features
                waiting=|| view! { <Skeleton shape="cards" count=12 /> }
                view=move |list| view! { <Grid key=key.get_untracked() query=query.get_untracked() list /> }
            />
        </div>
    }
}

/// What the SAE is, in a few numbers.
#[component]
fn SourceHead(source: Source) -> impl IntoView {
    // A picture of the server's: the bundle has no room for another page.
    let map = api_path(&SourceKey::from(&source), "/map.svg");
    let stats = view! {
        <Stat name="latents" value=count(source.latents) about="directions the autoencoder can name; a feature is one of them" />
        <Stat name="alive" value=count(source.alive) about="latents that fired at least once on the pictures" />
        <Stat name="with a label" value=count(source.explained) about="features that somebody or something has explained" />
        <Stat name="active per token" value=source.k.to_string() about="k: latents that may fire on one token" />
        <Stat name="d_model" value=source.d_model.to_string() about="width of the hidden states that are encoded" />
        {source.fvu.map(|fvu| view! {
            <Stat
                name="variance missed"
                value=percent(fvu)
                about="share of the hidden states' variance that the autoencoder cannot give back: fraction of variance unexplained (FVU), on held-out tokens"
            />
        })}
        <Stat name="pictures" value=count(source.pictures) about="pictures all statistics were counted on" />
        <Stat name="tokens" value=count(source.tokens) about="picture tokens all statistics were counted on" />
    };
    view! {
        <header class="source-head">
            <div>
                <h1>
                    "Features of " <span class="mono">{source.model_id}</span> " at "
                    <span class="mono">{source.hook_point}</span>
                </h1>
                <p class="lead">
                    {source.description} " "
                    <a href=map rel="external">
                        "2-D map"
                    </a>
                </p>
            </div>
            <dl class="stats">{stats}</dl>
            <ProvenanceNote provenance=source.provenance />
        </header>
    }
}

/// Search, filters, order. A GET form without scripts; live with them.
#[component]
fn Filters(key: Memo<SourceKey>, query: Memo<FeatureQuery>, go: Callback<FeatureQuery>) -> impl IntoView {
    let action = Signal::derive(move || source_path(&key.get()));
    let timer = StoredValue::new(None::<TimeoutHandle>);
    let stop = move || {
        if let Some(timer) = timer.try_get_value().flatten() {
            timer.clear();
        }
    };
    let search = move |q: String| {
        go.run(FeatureQuery { q: q.trim().to_owned(), page: 0, ..query.get_untracked() });
    };
    let on_input = Callback::new(move |q: String| {
        stop();
        timer.set_value(set_timeout_with_handle(move || search(q), TYPING).ok());
    });
    let on_submit = Callback::new(move |q: String| {
        stop();
        search(q);
    });
    // An address that comes late must not lead back here.
    on_cleanup(stop);
    let others = move || {
        feature_query_pairs(&query.get())
            .into_iter()
            .filter(|(name, value)| !matches!(*name, "q" | "page") && !value.is_empty())
            .map(|(name, value)| view! { <input r#type="hidden" name=name value=value /> })
            .collect_view()
    };
    let change = move |edit: fn(&mut FeatureQuery, &str)| {
        move |event: web_sys::Event| {
            let mut next = FeatureQuery { page: 0, ..query.get_untracked() };
            edit(&mut next, &event_target_value(&event));
            go.run(next);
        }
    };
    let categories: Vec<(&str, &str)> =
        Category::ALL.into_iter().map(|category| (category.as_str(), category.as_str())).collect();
    let sorts = vec![("score", "best score"), ("density", "densest"), ("max", "strongest"), ("index", "number")];
    let scores = vec![("0.1", "score ≥ 0.1"), ("0.3", "score ≥ 0.3"), ("0.5", "score ≥ 0.5"), ("0.7", "score ≥ 0.7")];
    let lives = vec![("false", "alive"), ("true", "dead")];
    view! {
        <div class="filters">
            <SearchField action value=Signal::derive(move || query.get().q) on_input on_submit>
                {others}
            </SearchField>
            <form class="filter-form" method="get" action=move || action.get()>
                <input r#type="hidden" name="q" value=move || query.get().q />
                <Picker
                    name="category"
                    any="every category"
                    options=categories
                    value=Signal::derive(move || query.get().category.map_or("", Category::as_str).to_owned())
                    on_change=Callback::new(change(|query, value| query.category = Category::from_name(value)))
                />
                <Picker
                    name="minScore"
                    any="any score"
                    options=scores
                    value=Signal::derive(move || query.get().min_score.map_or_else(String::new, shortest))
                    on_change=Callback::new(change(|query, value| query.min_score = number(value).map(|score| score as f32)))
                />
                <Picker
                    name="dead"
                    any="alive and dead"
                    options=lives
                    value=Signal::derive(move || query.get().dead.map_or_else(String::new, |dead| dead.to_string()))
                    on_change=Callback::new(change(|query, value| query.dead = value.parse().ok()))
                />
                <Picker
                    name="sort"
                    any=""
                    options=sorts
                    value=Signal::derive(move || query.get().sort.as_str().to_owned())
                    on_change=Callback::new(
                        change(|query, value| query.sort = FeatureSort::from_name(value).unwrap_or_default()),
                    )
                />
                <button class="button no-script">"Apply"</button>
            </form>
        </div>
    }
}

#[component]
fn Grid(key: SourceKey, query: FeatureQuery, list: FeatureList) -> impl IntoView {
    let pages = list.total.div_ceil(list.per_page.max(1));
    let found = match (list.total, query.q.as_str()) {
        (0, "") => "No feature fits these filters.".to_owned(),
        (0, q) => format!("No feature for “{q}” with these filters. Labels are searched by the beginnings of words."),
        (1, "") => "1 feature".to_owned(),
        (total, "") => format!("{} features", count(total)),
        (1, q) => format!("1 feature for “{q}”"),
        (total, q) => format!("{} features for “{q}”", count(total)),
    };
    let best =
        list.features.iter().filter_map(|feature| feature.score.as_ref()).map(|score| score.value).fold(0.0, f32::max);
    let about = (best > 0.0 && list.page == 0).then(|| format!(" · best score {}", sig3(best)));
    let path = source_path(&key);
    let href = move |page: u32| format!("{path}{}", feature_query_string(&FeatureQuery { page, ..query.clone() }));
    view! {
        <p class="found" role="status" data-testid="result-count">
            {found}
            <span class="faint">{about}</span>
        </p>
        <div class="cards">
            {list.features.into_iter().map(|feature| view! { <FeatureCard feature /> }).collect_view()}
        </div>
        <Pager page=list.page pages href />
    }
}
