//! `/{model}/{source}/{index}`: one feature, whole.

use crate::{
    api::{Answer, Ask, Fetched, SourceKey, endpoint, local_problem},
    browser,
    components::{
        Choice, ColourBar, Erase, Examples, HistogramPlot, Load, MiniFeature, ProvenanceNote, ScoreAxis, Skeleton,
        Stat, Switch, TextExample, View, WordBars, category_name,
    },
    format::{name_or_index, percent, sig3},
    links::{analyze_path, api_path, feature_path, kind_from_params, query_string, source_path, steer_path},
    pages::use_source_key,
};
use api::{ActivationKind, Activations, ErrorCode, Explanation, Feature, Neighbour, Neighbours};
use leptos::{ev, prelude::*};
use leptos_meta::{Meta, Title};
use leptos_router::{
    NavigateOptions,
    hooks::{use_navigate, use_params_map, use_query_map},
};
use std::time::Duration;

/// Example pictures of one kind.
const LIMIT: u32 = 24;
/// Strength a link to the steer page starts with, in units of the feature's maximum.
const STRENGTH: u32 = 3;

fn feature(key: SourceKey, index: &str) -> Answer<Ask<Feature>> {
    let index = index.parse().map_err(|_| {
        local_problem(ErrorCode::NotFound, "No such feature", format!("“{index}” is not a feature's number."))
    })?;
    Ok(endpoint::feature(key, index))
}

#[component]
pub fn FeaturePage() -> impl IntoView {
    let key = use_source_key();
    let params = use_params_map();
    let index = Memo::new(move |_| params.read().get("index").unwrap_or_default());
    let number = Memo::new(move |_| index.get().parse::<u32>().unwrap_or_default());
    let query = use_query_map();
    let kind = Memo::new(move |_| kind_from_params(&query.read()));
    let view = Memo::new(move |_| query.read().get("view").and_then(|name| View::from_name(&name)).unwrap_or_default());

    let data = Fetched::attempt(move || feature(key.get(), &index.get()));
    let activations = Fetched::new(move || endpoint::activations(key.get(), number.get(), kind.get(), LIMIT));
    let neighbours = Fetched::new(move || endpoint::neighbours(key.get(), number.get()));
    // The value under the pointer, shared by the pictures and the colour bar.
    let marked = RwSignal::new(None::<f32>);
    let page = move |feature: Feature| {
        let beside = view! {
            <Load resource=neighbours waiting=|| view! { <Skeleton shape="rows" count=4 /> } view=|near| view! { <Near near /> } />
        };
        let max = feature.max_act_approx;
        let dead = feature.dead;
        let examples = move |activations: Activations| {
            view! { <ExamplePanel key=key.get_untracked() index=number.get_untracked() activations max dead marked /> }
        };
        view! {
            <div class="feature" data-view=move || view.get().as_str()>
                <div class="feature-side">
                    <FeatureHead feature=feature.clone() />
                    <FeatureDetails feature neighbours=beside.erased() />
                </div>
                <section class="feature-main" aria-label="Examples">
                    <ExampleBar key number kind view max marked />
                    <Load resource=activations waiting=|| view! { <Skeleton shape="cards" count=8 /> } view=examples />
                </section>
            </div>
        }
    };
    view! {
        <Keys key number />
        <Load resource=data waiting=|| view! { <Skeleton shape="feature" /> } view=page />
    }
}

/// j and k: the next and the previous feature.
#[component]
fn Keys(key: Memo<SourceKey>, number: Memo<u32>) -> impl IntoView {
    let navigate = use_navigate();
    Effect::new(move |_| {
        let navigate = navigate.clone();
        let handle = window_event_listener(ev::keydown, move |event| {
            if browser::is_typing(&event) {
                return;
            }
            let number = number.get_untracked();
            let target = match event.key().as_str() {
                "j" => number.checked_add(1),
                "k" => number.checked_sub(1),
                _ => None,
            };
            if let Some(target) = target {
                navigate(&feature_path(&key.get_untracked(), target), NavigateOptions::default());
            }
        });
        on_cleanup(move || handle.remove());
    });
}

/// Where we are, the label, who said so, the scores.
#[component]
fn FeatureHead(feature: Feature) -> impl IntoView {
    let key = SourceKey::new(&feature.model_id, &feature.layer);
    let explanation = feature.label().cloned();
    let name = name_or_index(explanation.as_ref().map(|said| said.description.as_str()), feature.index);
    let summary = if feature.dead {
        "It never fired on the picture set.".to_owned()
    } else {
        format!(
            "Fires on {} of the picture tokens, at most {}.",
            percent(feature.frac_nonzero),
            sig3(feature.max_act_approx)
        )
    };
    let title = format!("{name} · feature {} of {} {}", feature.index, key.model, key.source);
    let previous = feature.index.checked_sub(1).map(|index| {
        view! {
            <a href=feature_path(&key, index) rel="prev" title="Previous feature (k)" aria-label="Previous feature">
                "←"
            </a>
        }
    });
    let dead = feature.dead.then(|| {
        view! {
            <p class="notice" data-testid="dead-notice">
                <strong>"A dead feature. "</strong>
                "It never fired on the picture set, so there is nothing to show but its direction."
            </p>
        }
    });
    view! {
        <Title text=title.clone() />
        <Meta property="og:title" content=title />
        <Meta property="og:type" content="article" />
        <Meta property="og:description" content=summary.clone() />
        <Meta name="description" content=summary />
        <header class="feature-head">
            <nav class="crumbs mono" aria-label="Where this is">
                <a href=source_path(&key)>{key.model.clone()} "/" {key.source.clone()}</a>
                <span>"#"{feature.index}</span>
                <span class="steps">
                    {previous}
                    <a
                        href=feature_path(&key, feature.index + 1)
                        rel="next"
                        title="Next feature (j)"
                        aria-label="Next feature"
                    >
                        "→"
                    </a>
                </span>
            </nav>
            <h1 data-testid="feature-label" class:faint=explanation.is_none()>
                {name}
            </h1>
            {match explanation {
                Some(said) => view! { <Said said /> }.erased(),
                None if feature.dead => ().erased(),
                None => view! { <p class="faint">"Nobody has explained this feature yet. Look at the pictures."</p> }.erased(),
            }}
            {dead}
        </header>
    }
}

/// Who says so, when, and how well it fits.
#[component]
fn Said(said: Explanation) -> impl IntoView {
    view! {
        <p class="said">
            <span class="category">{category_name(said.category)}</span>
            <span>
                "said by " <span class="mono">{said.explanation_model_name}</span>
                {(!said.created_at.is_empty()).then(|| format!(", {}", said.created_at))}
            </span>
        </p>
        {(!said.scores.is_empty()).then(|| view! { <ScoreAxis scores=said.scores /> })}
    }
}

/// Numbers, plots, words, neighbours, actions.
#[component]
fn FeatureDetails(feature: Feature, neighbours: AnyView) -> impl IntoView {
    let key = SourceKey::new(&feature.model_id, &feature.layer);
    let others = feature.explanations.iter().skip(1).cloned().collect::<Vec<_>>();
    let others = (!others.is_empty()).then(|| {
        let rows = others
            .into_iter()
            .map(|said| {
                view! {
                    <li>
                        <strong>{said.description.clone()}</strong>
                        <Said said />
                    </li>
                }
            })
            .collect_view();
        view! {
            <section>
                <h2>"Also said"</h2>
                <ul class="also">{rows}</ul>
            </section>
        }
    });
    let histogram = (!feature.dead).then(|| {
        view! {
            <section>
                <h2>"How strongly it fires"</h2>
                <HistogramPlot
                    heights=feature.freq_hist_data_bar_heights.clone()
                    edges=feature.freq_hist_data_bar_values.clone()
                    unit="activation"
                />
            </section>
        }
    });
    view! {
        <div class="feature-details">
            <Actions key index=feature.index dead=feature.dead />
            <dl class="stats">
                <Stat
                    name="density"
                    value=percent(feature.frac_nonzero)
                    about="share of picture tokens where the feature fires"
                />
                <Stat
                    name="pictures"
                    value=percent(feature.frac_pictures)
                    about="share of pictures where it fires on at least one patch"
                />
                <Stat name="max" value=sig3(feature.max_act_approx) about="largest activation seen on the picture set" />
                <Stat name="mean" value=sig3(feature.mean_act) about="mean of the activations that are not zero" />
            </dl>
            {histogram}
            {others}
            <section>
                <h2>"What it makes the model say"</h2>
                <div class="word-columns">
                    <WordBars
                        title="more"
                        about="output tokens that the feature's direction raises most: logits through the final norm and the unembedding"
                        words=feature.pos_str
                        values=feature.pos_values
                    />
                    <WordBars
                        title="less"
                        about="output tokens that it lowers most"
                        words=feature.neg_str
                        values=feature.neg_values
                    />
                </div>
            </section>
            {neighbours}
            <ProvenanceNote provenance=feature.provenance />
        </div>
    }
}

#[component]
fn Actions(key: SourceKey, index: u32, dead: bool) -> impl IntoView {
    let copied = RwSignal::new(false);
    let copy = move |_| {
        browser::copy(&browser::page_url());
        copied.set(true);
        set_timeout(move || copied.set(false), Duration::from_secs(2));
    };
    let steer = (!dead).then(|| {
        view! {
            <a class="button button-steer" href=steer_path(&key, &format!("{index}:{STRENGTH}"))>
                "Steer"
            </a>
        }
    });
    view! {
        <div class="actions">
            {steer}
            <a class="button" href=analyze_path(&key, "", Some(index))>
                "Test it"
            </a>
            <button class="button needs-script" on:click=copy>
                {move || if copied.get() { "Copied" } else { "Copy link" }}
            </button>
            <a class="button" rel="external" href=api_path(&key, &format!("/features/{index}"))>
                "JSON"
            </a>
        </div>
    }
}

fn kind_about(kind: ActivationKind) -> (&'static str, &'static str) {
    match kind {
        ActivationKind::Mean => ("top mean", "highest mean over the picture"),
        ActivationKind::Max => ("top max", "highest single patch"),
        ActivationKind::Quantile => ("quantiles", "spread from strong to weak, so that the label can be doubted"),
        ActivationKind::Random => ("random", "drawn from all pictures where it fires"),
        ActivationKind::Heldout => ("held-out", "pictures in a style the model was never trained on"),
    }
}

/// Which examples, drawn how, on what scale.
#[component]
fn ExampleBar(
    key: Memo<SourceKey>,
    number: Memo<u32>,
    kind: Memo<ActivationKind>,
    view: Memo<View>,
    max: f32,
    marked: RwSignal<Option<f32>>,
) -> impl IntoView {
    let href = move |kind: ActivationKind, view: View| {
        let kind = if kind == ActivationKind::default() { "" } else { kind.as_str() };
        let view = if view == View::default() { "" } else { view.as_str() };
        feature_path(&key.get(), number.get()) + &query_string([("kind", kind.to_owned()), ("view", view.to_owned())])
    };
    let kinds = Signal::derive(move || {
        let choice = |this: ActivationKind| {
            let (name, about) = kind_about(this);
            Choice { name: name.into(), href: href(this, view.get()), current: this == kind.get(), about }
        };
        ActivationKind::ALL.map(choice).to_vec()
    });
    let views = Signal::derive(move || {
        let choice = |this: View| Choice {
            name: this.as_str().into(),
            href: href(kind.get(), this),
            current: this == view.get(),
            about: this.about(),
        };
        View::ALL.map(choice).to_vec()
    });
    view! {
        <div class="example-bar">
            <Switch label="Which examples" choices=kinds />
            <Switch label="How the heat map is drawn" choices=views />
            <ColourBar max marked />
        </div>
    }
}

#[component]
fn ExamplePanel(
    key: SourceKey,
    index: u32,
    activations: Activations,
    max: f32,
    dead: bool,
    marked: RwSignal<Option<f32>>,
) -> impl IntoView {
    let shown = activations.activations.len() as u32;
    let note = (activations.total > shown).then(|| format!("{shown} of {} shown", activations.total));
    let empty = (shown == 0 && !dead).then(|| view! { <p class="faint">"No pictures of this kind."</p> });
    let text_max = activations.texts.iter().map(|text| text.max_value).fold(0.0, f32::max);
    let texts = (!activations.texts.is_empty()).then(|| {
        let rows =
            activations.texts.iter().cloned().map(|text| view! { <TextExample text common=text_max /> }).collect_view();
        view! {
            <section class="text-examples">
                <h2>"On text"</h2>
                <ul>{rows}</ul>
            </section>
        }
    });
    view! {
        <Examples key index activations=activations.activations max marked />
        {empty}
        <p class="faint caption">{note}</p>
        {texts}
    }
}

/// Features like this one, two ways.
#[component]
fn Near(near: Neighbours) -> impl IntoView {
    let list = |title: &'static str, about: &'static str, what: &'static str, list: Vec<Neighbour>| {
        (!list.is_empty()).then(|| {
            let rows = list
                .into_iter()
                .map(|near| view! { <li><MiniFeature feature=near.feature value=near.value what /></li> })
                .collect_view();
            view! {
                <section>
                    <h2 title=about>{title}</h2>
                    <ul class="minis">{rows}</ul>
                </section>
            }
        })
    };
    view! {
        {list("Points the same way", "nearest by the cosine of the decoder rows", "cosine of the decoder rows", near.by_decoder)}
        {list(
            "Fires together",
            "features that fire on the same patches",
            "overlap of the patches where both fire (Jaccard)",
            near.by_firing,
        )}
    }
}
