//! `/`: one sentence, one live picture, search, some features, three sentences.

use crate::{
    api::{Answer, Client, Fetched, SourceKey, client, endpoint, local_problem, write},
    app::Sources,
    by_index::ByIndex,
    components::{Erase, FeatureCard, FeatureRow, Load, PatchPicture, SearchField, Skeleton},
    format::{count, name_or_index},
    links::{analyze_path, query_string, source_path, steer_path},
    ranking::{RankBy, Ranked, TopActs},
};
use api::{Category, ErrorCode, FeatureQuery, FeatureSummary, Picture, PictureActivations, Source};
use leptos::prelude::*;
use leptos_meta::{Meta, Title};
use leptos_router::hooks::use_query_map;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Rows beside the picture.
const ROWS: usize = 9;
/// Samples under the picture.
const SAMPLES: u32 = 6;
/// Featured features: how many of which category.
const FEATURED: [(Category, u32); 4] =
    [(Category::Object, 6), (Category::Emotion, 3), (Category::Color, 2), (Category::Position, 1)];

/// Everything the page shows, in one answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Landing {
    source: Source,
    samples: Vec<Picture>,
    shown: Option<PictureActivations>,
    featured: Vec<FeatureSummary>,
}

async fn landing(client: Arc<dyn Client>, sources: Answer<Vec<Source>>, picture: String) -> Answer<Landing> {
    let none = || {
        local_problem(
            ErrorCode::NotFound,
            "No features yet",
            "This server holds no source. Build one with `lmm-scope pocket`.",
        )
    };
    let source = sources?.into_iter().next().ok_or_else(none)?;
    let key = SourceKey::from(&source);
    let samples = client.ask(endpoint::samples(key.clone(), SAMPLES)).await?.pictures;
    let id = if picture.is_empty() { samples.first().map(|sample| sample.id.clone()) } else { Some(picture) };
    let shown = match id {
        Some(id) => Some(client.ask(endpoint::picture_activations(key.clone(), id)).await?),
        None => None,
    };
    let mut featured = Vec::new();
    for (category, per_page) in FEATURED {
        let query = FeatureQuery { category: Some(category), dead: Some(false), per_page, ..FeatureQuery::default() };
        featured.extend(client.ask(endpoint::features(key.clone(), query)).await?.features);
    }
    Ok(Landing { source, samples, shown, featured })
}

#[component]
pub fn LandingPage() -> impl IntoView {
    let client = client();
    let sources = expect_context::<Sources>().0;
    let query = use_query_map();
    let picture = Memo::new(move |_| query.read().get("picture").unwrap_or_default());
    let data = Fetched::<Landing>::composed(
        move || picture.get(),
        move |picture| {
            let client = client.clone();
            Box::pin(async move { write(&landing(client, sources.wait().await, picture).await?) })
        },
    );
    view! {
        <Title text="" />
        <Meta
            name="description"
            content="See which features fire inside a large multimodal model, what each one means, and what the model says when one is turned up."
        />
        <Meta property="og:title" content="LMM Scope" />
        <Meta property="og:description" content="What a multimodal model sees, feature by feature, on your own GPU." />
        <div class="landing">
            <h1>"See what lights up inside a model that looks at a picture."</h1>
            <Load resource=data waiting=|| view! { <Skeleton shape="picture" /> } view=|landing| view! { <LandingBody landing /> } />
        </div>
    }
}

#[component]
fn LandingBody(landing: Landing) -> impl IntoView {
    let Landing { source, samples, shown, featured } = landing;
    let key = SourceKey::from(&source);
    let action = source_path(&key);
    let current = shown.as_ref().map(|shown| shown.picture.id.clone()).unwrap_or_default();
    let samples = samples
        .into_iter()
        .map(|sample| {
            let href = format!("/{}", query_string([("picture", sample.id.clone())]));
            view! {
                <a href=href data-noscroll="" aria-current=(sample.id == current).then_some("true")>
                    <img src=sample.url alt=sample.caption width=sample.width height=sample.height loading="lazy" />
                </a>
            }
        })
        .collect_view();
    let browse = action.clone();
    let steer = steer_path(&key, "");
    let analyze = analyze_path(&key, "", None);
    view! {
        {shown.map(|shown| view! { <LivePicture key=key.clone() shown samples=samples.erased() /> })}
        <section class="landing-search">
            <SearchField action=action value="" />
            <p class="faint">
                {count(source.explained)}" of "{count(source.latents)}" features of the model "
                <span class="mono">{source.model_id.clone()}</span>" have a label. "
                <a href=browse>"Browse all"</a>
            </p>
        </section>
        <section>
            <h2>"Some of them"</h2>
            <div class="cards">{featured.into_iter().map(|feature| view! { <FeatureCard feature /> }).collect_view()}</div>
        </section>
        <section class="three">
            <p>
                <strong>"A feature "</strong>
                "is one direction inside the model that a sparse autoencoder has found. Where it fires, the picture is lit."
            </p>
            <p>
                <strong>"A label "</strong>
                "says what a feature seems to be about. It always stands beside its score, and the score of random pictures, so that you can doubt it."
            </p>
            <p>
                <strong>"Your turn. "</strong>
                <a href=analyze>"Try your own picture"</a>
                ": the server computes hidden states, your GPU finds the features. Then "
                <a href=steer>"turn a feature up"</a>
                " and read what the model says."
            </p>
        </section>
    }
}

/// The sample picture whose patches answer, from precomputed activations.
#[component]
fn LivePicture(key: SourceKey, shown: PictureActivations, samples: AnyView) -> impl IntoView {
    let PictureActivations { picture, grid, k, top_indices, top_acts, features } = shown;
    let acts = Arc::new(TopActs { k: k as usize, indices: top_indices, acts: top_acts });
    let names: Arc<ByIndex<FeatureSummary>> =
        Arc::new(features.into_iter().map(|feature| (feature.index, feature)).collect());
    let hovered = RwSignal::new(None::<u32>);
    let pinned = RwSignal::new(None::<u32>);
    let pointed = RwSignal::new(None::<u32>);

    let ranking = {
        let (acts, names) = (acts.clone(), names.clone());
        Memo::new(move |_| labelled_first(&acts, &names, grid, hovered.get()))
    };
    // Without a pointer the strongest labelled feature of the picture lights it.
    let at_rest = labelled_first(&acts, &names, grid, None).first().map(|ranked| ranked.feature);
    let lit = Memo::new(move |_| {
        let under_pointer = hovered.get().and_then(|_| ranking.with(|rows| rows.first().map(|row| row.feature)));
        pointed.get().or(pinned.get()).or(under_pointer).or(at_rest)
    });
    let patches = grid[0] * grid[1];
    let values = {
        let acts = acts.clone();
        Memo::new(move |_| lit.get().map_or_else(Vec::new, |feature| acts.values(feature, 0..patches)))
    };
    let scale = Memo::new(move |_| values.with(|values| crate::heat::maximum(values)));
    let label = {
        let names = names.clone();
        Signal::derive(move || lit.get().map_or_else(String::new, |feature| name_of(&names, feature)))
    };
    let rows = move || {
        let rows = ranking.get();
        let top = rows.first().map_or(0.0, |row| row.value);
        rows.into_iter()
            .map(|row| {
                let summary = names.get(row.feature).cloned();
                view! {
                    <FeatureRow
                        key=key.clone()
                        index=row.feature
                        value=row.value
                        scale=top
                        summary=Signal::stored(summary)
                        lit=lit
                        pinned=pinned
                        on_light=move |feature| pointed.set(feature)
                        on_pin=move |feature| {
                            pinned.update(|pinned| *pinned = if *pinned == Some(feature) { None } else { Some(feature) });
                        }
                        testid="landing-row"
                    />
                }
            })
            .collect_view()
    };
    let heading = move || match hovered.get() {
        Some(patch) => format!("At the patch in row {}, column {}", patch / grid[1] + 1, patch % grid[1] + 1),
        None => "On this picture".to_owned(),
    };
    let size = Some((picture.width, picture.height));
    let credit = (!picture.credit.is_empty()).then_some(picture.credit);
    view! {
        <section class="live" aria-label="A live sample">
            <div class="live-left">
                <PatchPicture
                    url=picture.url
                    size=Signal::stored(size)
                    grid=Signal::stored(grid)
                    values=values
                    scale=scale
                    label=label
                    hovered
                    picked=Signal::stored(Vec::new())
                />
                <div class="samples">{samples}</div>
                <p class="caption faint">{picture.caption}{credit.map(|credit| format!(" · {credit}"))}</p>
            </div>
            <div class="live-right">
                <h2 class="live-heading" aria-live="polite">
                    {heading}
                </h2>
                <ol class="rows">{rows}</ol>
                <p class="faint hint">"Point at the picture, or at a feature."</p>
            </div>
        </section>
    }
}

/// The ranking of a patch or of the whole picture; features without a label only fill up what labels leave.
fn labelled_first(
    acts: &TopActs,
    names: &ByIndex<FeatureSummary>,
    [rows, columns]: [u32; 2],
    patch: Option<u32>,
) -> Vec<Ranked> {
    let positions: Vec<u32> = patch.map_or_else(|| (0..rows * columns).collect(), |patch| vec![patch]);
    let by = if patch.is_some() { RankBy::Max } else { RankBy::Mean };
    let ranked = acts.rank(&positions, by, usize::MAX);
    if patch.is_some() {
        return ranked.into_iter().take(ROWS).collect();
    }
    let has_label = |ranked: &Ranked| names.get(ranked.feature).is_some_and(|feature| feature.label.is_some());
    let (labelled, bare): (Vec<Ranked>, Vec<Ranked>) = ranked.into_iter().partition(has_label);
    labelled.into_iter().chain(bare).take(ROWS).collect()
}

fn name_of(names: &ByIndex<FeatureSummary>, feature: u32) -> String {
    name_or_index(names.get(feature).and_then(|found| found.label.as_deref()), feature)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_patch_is_ranked_by_activation_and_the_picture_by_labels_first() {
        let acts = TopActs { k: 2, indices: vec![1, 2, 1, 2], acts: vec![9.0, 1.0, 9.0, 1.0] };
        let labelled = FeatureSummary { index: 2, label: Some("dog".into()), ..FeatureSummary::default() };
        let names = ByIndex::from_iter([(2, labelled)]);
        let order =
            |patch| labelled_first(&acts, &names, [1, 2], patch).iter().map(|row| row.feature).collect::<Vec<_>>();
        assert_eq!(order(Some(0)), [1, 2]);
        assert_eq!(order(None), [2, 1]);
        assert_eq!(name_of(&names, 2), "dog");
        assert_eq!(name_of(&names, 1), "feature 1");
    }
}
