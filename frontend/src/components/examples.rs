//! Example pictures of a feature, compared on one scale.

use crate::{
    api::SourceKey,
    browser::share_in,
    components::LitPicture,
    format::{fixed, sig3},
    heat::{self, brightness},
    links::analyze_path,
};
use api::Activation;
use leptos::{html, prelude::*};
use web_sys::PointerEvent;

/// What brightness means: from nothing to `max`, with a mark at the value under the pointer.
#[component]
pub fn ColourBar(max: f32, #[prop(into)] marked: Signal<Option<f32>>) -> impl IntoView {
    let style = move || {
        let share = marked.get().map_or(0.0, |value| if max > 0.0 { (value / max).clamp(0.0, 1.0) } else { 0.0 });
        format!("left:{}%", fixed(share * 100.0, 1))
    };
    view! {
        <div class="colour-bar" title="Brightness of a patch by the activation of the feature there">
            <span class="mono">"0"</span>
            <span class="colour-ramp" aria-hidden="true">
                <i style=style hidden=move || marked.get().is_none()></i>
            </span>
            <span class="mono">{sig3(max)}</span>
            <span class="mono colour-value">{move || marked.get().map(sig3)}</span>
        </div>
    }
}

/// The pictures in a justified grid that keeps their shapes. While the pointer is on one, all show the same scale.
#[component]
pub fn Examples(
    key: SourceKey,
    /// The feature.
    index: u32,
    activations: Vec<Activation>,
    /// Largest activation of the feature: full light on the common scale.
    max: f32,
    /// Value under the pointer, for the colour bar.
    marked: RwSignal<Option<f32>>,
) -> impl IntoView {
    let comparing = move || marked.get().is_some();
    let figures = activations
        .into_iter()
        .map(|activation| view! { <Example key=key.clone() index activation max marked /> })
        .collect_view();
    view! {
        <div class="examples" class:comparing=comparing>
            {figures}
            <span class="examples-end"></span>
        </div>
    }
}

#[component]
fn Example(
    key: SourceKey,
    index: u32,
    activation: Activation,
    max: f32,
    marked: RwSignal<Option<f32>>,
) -> impl IntoView {
    let area = NodeRef::<html::Div>::new();
    let here = RwSignal::new(None::<u32>);
    let grid = activation.image.grid;
    let values = StoredValue::new(heat::dense(&activation));
    let label =
        format!("{}: {}", activation.image.picture.caption, values.with_value(|values| heat::summary(grid, values)));
    let aspect = activation.image.picture.width.max(1) as f32 / activation.image.picture.height.max(1) as f32;
    let value_at = move |patch: Option<u32>| {
        patch.and_then(|patch| values.with_value(|values| values.get(patch as usize).copied()))
    };
    let follow = move |event: PointerEvent| {
        let Some(element) = area.get() else { return };
        let (x, y) = share_in(&element, f64::from(event.client_x()), f64::from(event.client_y()));
        let patch = heat::patch_at(grid, x, y);
        if here.get_untracked() != patch {
            here.set(patch);
            marked.set(value_at(patch));
        }
    };
    let leave = move || {
        here.set(None);
        marked.set(None);
    };
    let cell = move || {
        here.get().map(|patch| {
            let [rows, columns] = grid.map(|side| side.max(1) as f32);
            let (row, column) = ((patch / grid[1].max(1)) as f32, (patch % grid[1].max(1)) as f32);
            format!(
                "left:{}%;top:{}%;width:{}%;height:{}%",
                fixed(column / columns * 100.0, 2),
                fixed(row / rows * 100.0, 2),
                fixed(100.0 / columns, 2),
                fixed(100.0 / rows, 2)
            )
        })
    };
    let credit = activation.image.picture.credit.clone();
    let numbers = format!("max {} · mean {}", sig3(activation.max_value), sig3(activation.mean_value));
    let bin = (activation.bin_max > activation.bin_min)
        .then(|| format!("{}–{}", sig3(activation.bin_min), sig3(activation.bin_max)));
    let analyze = analyze_path(&key, &activation.image.picture.id, Some(index));
    let share = brightness(if max > 0.0 { activation.max_value / max } else { 0.0 });
    view! {
        <figure class="example" style=format!("--aspect:{};--share:{}", fixed(aspect, 3), fixed(share, 3)) title=credit>
            <div class="example-picture" node_ref=area on:pointermove=follow on:pointerdown=follow on:pointerleave=move |_| leave()>
                <LitPicture activation common=max outlined=true label />
                <i class="cell" style=cell hidden=move || here.get().is_none()></i>
                <output class="readout mono" hidden=move || here.get().is_none()>
                    {move || value_at(here.get()).map(sig3)}
                </output>
            </div>
            <figcaption>
                <i class="chip"></i>
                <span class="mono">{numbers}</span>
                {bin.map(|bin| view! { <span class="mono faint">{bin}</span> })}
                <a class="quiet" href=analyze title="Analyze this picture" aria-label="Analyze this picture">
                    "→"
                </a>
            </figcaption>
        </figure>
    }
}
