//! One row of a ranking: a chip of light, label, bar, number, best example.

use crate::{
    api::SourceKey,
    components::{LitPicture, category_name},
    format::{fixed, name_or_index, sig3},
    heat::brightness,
    links::feature_path,
};
use api::FeatureSummary;
use leptos::prelude::*;

/// A ranked feature; hovering or focusing it calls `on_light`, its button pins it.
#[component]
pub fn FeatureRow(
    key: SourceKey,
    index: u32,
    value: f32,
    /// What a full bar means.
    scale: f32,
    /// Arrives later than the ranking.
    #[prop(into)]
    summary: Signal<Option<FeatureSummary>>,
    /// The feature that lights the picture now.
    #[prop(into)]
    lit: Signal<Option<u32>>,
    /// The feature that stays lit without the pointer.
    #[prop(into)]
    pinned: Signal<Option<u32>>,
    #[prop(into)] on_light: Callback<Option<u32>>,
    #[prop(into)] on_pin: Callback<u32>,
    #[prop(optional)] testid: &'static str,
) -> impl IntoView {
    let share = if scale > 0.0 { brightness(value / scale) } else { 0.0 };
    let width = if scale > 0.0 { (value / scale * 100.0).clamp(0.0, 100.0) } else { 0.0 };
    let name =
        move || summary.with(|summary| name_or_index(summary.as_ref().and_then(|found| found.label.as_deref()), index));
    let unlabelled = move || summary.with(|summary| summary.as_ref().is_none_or(|found| found.label.is_none()));
    let category = move || summary.with(|summary| summary.as_ref().and_then(|found| category_name(found.category)));
    let thumbnail = move || {
        summary
            .with(|summary| summary.as_ref().and_then(|found| found.thumbnail.clone()))
            .map(|activation| view! { <LitPicture activation /> })
    };
    view! {
        <li
            class="row"
            class:row-lit=move || lit.get() == Some(index)
            data-testid=testid
            data-feature=index
            style=format!("--share:{}", fixed(share, 3))
            on:pointerenter=move |_| on_light.run(Some(index))
            on:pointerleave=move |_| on_light.run(None)
            on:focusin=move |_| on_light.run(Some(index))
            on:focusout=move |_| on_light.run(None)
        >
            <button
                class="row-chip"
                title="Keep this feature lit"
                aria-label=move || format!("Keep {} lit", name())
                aria-pressed=move || (pinned.get() == Some(index)).to_string()
                on:click=move |_| on_pin.run(index)
            ></button>
            <a class="row-label" class:faint=unlabelled href=feature_path(&key, index) data-testid="feature-label">
                {name}
            </a>
            <span class="row-note">
                <span class="mono">"#"{index}</span>
                " "
                {category}
            </span>
            <span class="row-bar" aria-hidden="true">
                <i style=format!("width:{}%", fixed(width, 1))></i>
            </span>
            <span class="mono number row-value">{sig3(value)}</span>
            <span class="row-thumb">{thumbnail}</span>
        </li>
    }
}
