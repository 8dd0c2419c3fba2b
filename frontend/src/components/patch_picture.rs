//! A picture whose patches answer: pointer, touch and arrow keys.

use crate::{
    browser::share_in,
    format::{fixed, sig3},
    heat::{self, patch_at},
};
use leptos::{html, prelude::*};
use wasm_bindgen::JsCast;
use web_sys::{HtmlElement, KeyboardEvent, PointerEvent};

/// The picture, lit by `values`, with one button per patch.
#[component]
pub fn PatchPicture(
    #[prop(into)] url: Signal<String>,
    /// Width and height in pixels, where known; keeps the page from jumping.
    #[prop(into)]
    size: Signal<Option<(u32, u32)>>,
    /// Rows and columns of patches; zero before they are known: no patch answers.
    #[prop(into)]
    grid: Signal<[u32; 2]>,
    /// The lit feature on every patch; empty: the picture as it is.
    #[prop(into)]
    values: Signal<Vec<f32>>,
    /// What full light means.
    #[prop(into)]
    scale: Signal<f32>,
    /// Name of the lit feature and its picture, for the text summary.
    #[prop(into)]
    label: Signal<String>,
    /// The patch under the pointer or the focus.
    hovered: RwSignal<Option<u32>>,
    /// Patches that stay chosen.
    #[prop(into)]
    picked: Signal<Vec<u32>>,
    /// Without it patches answer but cannot be picked.
    #[prop(optional, into)]
    on_pick: Option<Callback<u32>>,
    /// A finer mask of the same values, once there is one (a style, like [`heat::mask_style`]'s).
    #[prop(optional, into)]
    smooth: Signal<Option<String>>,
    /// What lies between picture and patches.
    #[prop(optional)]
    children: Option<Children>,
) -> impl IntoView {
    let area = NodeRef::<html::Div>::new();
    let coarse = Memo::new(move |_| heat::mask_style(grid.get(), &values.get(), scale.get()));
    let mask = move || smooth.get().unwrap_or_else(|| coarse.get());
    let lit = move || !values.with(Vec::is_empty);
    let summary = move || {
        let label = label.get();
        if lit() { format!("{label}: {}", heat::summary(grid.get(), &values.get())) } else { label }
    };
    let patch_under = move |event: &PointerEvent| {
        let grid = grid.get_untracked();
        let element = area.get_untracked()?;
        let (x, y) = share_in(&element, f64::from(event.client_x()), f64::from(event.client_y()));
        patch_at(grid, x, y).filter(|patch| *patch < grid[0] * grid[1])
    };
    let point_at = move |patch: Option<u32>| {
        if hovered.get_untracked() != patch {
            hovered.set(patch);
        }
    };
    // A finger leaves as soon as it is lifted: what it touched stays, until it is touched again.
    let is_finger = |event: &PointerEvent| event.pointer_type() == "touch";
    let follow = move |event: PointerEvent| {
        if !is_finger(&event) {
            point_at(patch_under(&event));
        }
    };
    let press = move |event: PointerEvent| {
        let patch = patch_under(&event);
        let again = is_finger(&event) && hovered.get_untracked() == patch;
        point_at(patch.filter(|_| !again));
    };
    let leave = move |event: PointerEvent| {
        if !is_finger(&event) {
            hovered.set(None);
        }
    };
    let cells = move || {
        let [rows, columns] = grid.get();
        (0..rows * columns).map(|patch| view! { <Patch patch grid hovered picked on_pick /> }).collect_view()
    };
    view! {
        <div
            class="patches lit"
            class:lit-off=move || !lit()
            style=move || {
                let [rows, columns] = grid.get();
                format!("{};--rows:{rows};--columns:{columns}", mask())
            }
            node_ref=area
            role="group"
            aria-label=summary
            data-testid="heat-map"
            on:pointermove=follow
            on:pointerdown=press
            on:pointerleave=leave
            on:pointercancel=move |_| hovered.set(None)
            on:focusout=move |_| hovered.set(None)
            on:keydown=move |event| move_focus(&event, grid.get_untracked())
        >
            <img
                class="lit-base"
                src=move || url.get()
                alt=""
                width=move || size.get().map(|(width, _)| width)
                height=move || size.get().map(|(_, height)| height)
            />
            <img class="lit-top" src=move || url.get() alt="" />
            <span class="lit-glow"></span>
            {children.map(|children| children())}
            <div class="cells">{cells}</div>
            <Readout grid hovered values />
        </div>
    }
}

#[component]
fn Patch(
    patch: u32,
    #[prop(into)] grid: Signal<[u32; 2]>,
    hovered: RwSignal<Option<u32>>,
    picked: Signal<Vec<u32>>,
    on_pick: Option<Callback<u32>>,
) -> impl IntoView {
    let columns = grid.get_untracked()[1].max(1);
    let name = format!("patch row {}, column {}", patch / columns + 1, patch % columns + 1);
    let is_picked = move || picked.with(|picked| picked.contains(&patch));
    view! {
        <button
            class="patch"
            class:patch-here=move || hovered.get() == Some(patch)
            class:patch-picked=is_picked
            data-testid="patch"
            data-patch=patch
            tabindex=if patch == 0 { "0" } else { "-1" }
            aria-label=name
            aria-pressed=move || on_pick.map(|_| is_picked().to_string())
            on:focus=move |_| hovered.set(Some(patch))
            on:click=move |_| {
                if let Some(on_pick) = on_pick {
                    on_pick.run(patch);
                }
            }
        ></button>
    }
}

/// The value under the pointer.
#[component]
fn Readout(grid: Signal<[u32; 2]>, hovered: RwSignal<Option<u32>>, values: Signal<Vec<f32>>) -> impl IntoView {
    let value = move || {
        let patch = hovered.get()?;
        values.with(|values| values.get(patch as usize).map(|value| (patch, *value)))
    };
    let style = move || {
        let [rows, columns] = grid.get();
        value().map(|(patch, _)| {
            let (row, column) = (patch / columns.max(1), patch % columns.max(1));
            let x = (column as f32 + 0.5) / columns as f32 * 100.0;
            let y = row as f32 / rows as f32 * 100.0;
            format!("left:{}%;top:{}%", fixed(x, 1), fixed(y, 1))
        })
    };
    view! {
        <output class="readout mono" style=style hidden=move || value().is_none()>
            {move || value().map(|(_, value)| sig3(value))}
        </output>
    }
}

/// Arrow keys move the focus from patch to patch; Home and End go to the first and last of the row.
fn move_focus(event: &KeyboardEvent, [rows, columns]: [u32; 2]) {
    let target = event.target().and_then(|target| target.dyn_into::<HtmlElement>().ok());
    let Some(patch) = target.as_ref().and_then(|cell| cell.dataset().get("patch")?.parse::<u32>().ok()) else {
        return;
    };
    let (row, column) = (patch / columns, patch % columns);
    let (row, column) = match event.key().as_str() {
        "ArrowLeft" => (row, column.saturating_sub(1)),
        "ArrowRight" => (row, (column + 1).min(columns - 1)),
        "ArrowUp" => (row.saturating_sub(1), column),
        "ArrowDown" => ((row + 1).min(rows - 1), column),
        "Home" => (row, 0),
        "End" => (row, columns - 1),
        _ => return,
    };
    event.prevent_default();
    let cells = target.and_then(|cell| cell.parent_element());
    let next = cells.and_then(|cells| cells.children().item(row * columns + column));
    if let Some(next) = next.and_then(|cell| cell.dyn_into::<HtmlElement>().ok()) {
        // An element that cannot take the focus leaves it where it is.
        _ = next.focus();
    }
}
