//! Features as cards of a grid and as small lines beside something else.

use crate::{
    api::SourceKey,
    components::{Erase, LitPicture, ScoreMark},
    format::{name_or_index, sig3},
    links::feature_path,
};
use api::{Category, FeatureSummary};
use leptos::prelude::*;

/// A card: the best picture, lit; label; number, category, score.
#[component]
pub fn FeatureCard(feature: FeatureSummary) -> impl IntoView {
    let key = SourceKey::from(&feature);
    let name = name_or_index(feature.label.as_deref(), feature.index);
    let thumbnail = match feature.thumbnail {
        Some(activation) => view! { <LitPicture activation /> }.erased(),
        None => view! { <span class="lit lit-dark">{if feature.dead { "never fires" } else { "no picture" }}</span> }
            .erased(),
    };
    let class = match (feature.dead, feature.label.is_some()) {
        (true, _) => "card card-dead",
        (false, false) => "card card-unlabelled",
        _ => "card",
    };
    view! {
        <a class=class href=feature_path(&key, feature.index) data-testid="feature-card" data-feature=feature.index>
            {thumbnail}
            <span class="card-label" title=name.clone()>
                {name.clone()}
            </span>
            <span class="card-meta">
                <span class="mono">"#"{feature.index}</span>
                <span class="category">{category_name(feature.category)}</span>
                {feature.score.map(|score| view! { <ScoreMark score /> })}
            </span>
        </a>
    }
}

/// The category's word, where there is one.
pub fn category_name(category: Category) -> Option<&'static str> {
    (category != Category::Unknown).then(|| category.as_str())
}

/// A line: thumbnail, label, one number.
#[component]
pub fn MiniFeature(
    feature: FeatureSummary,
    value: f32,
    /// What the number is, for the tooltip.
    what: &'static str,
) -> impl IntoView {
    let key = SourceKey::from(&feature);
    let name = name_or_index(feature.label.as_deref(), feature.index);
    view! {
        <a class="mini" href=feature_path(&key, feature.index)>
            <span class="mini-thumb">{feature.thumbnail.map(|activation| view! { <LitPicture activation /> })}</span>
            <span class="mini-label">{name}</span>
            <span class="mono faint">"#"{feature.index}</span>
            <span class="mono number" title=what>
                {sig3(value)}
            </span>
        </a>
    }
}
