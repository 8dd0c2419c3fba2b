//! A picture lit by one feature: dimmed below, bright through the mask above. Needs no script.

use crate::format::fixed;
use crate::heat;
use api::Activation;
use leptos::prelude::*;

/// One activation as light on its picture.
#[component]
pub fn LitPicture(
    activation: Activation,
    /// Common scale of several pictures: what full brightness means while they are compared.
    #[prop(optional)]
    common: f32,
    /// Also draw the outline, for the switch of the feature page.
    #[prop(optional)]
    outlined: bool,
    /// What the picture says to people who do not see it; empty where the text beside it says so.
    #[prop(optional, into)]
    label: String,
) -> impl IntoView {
    let values = heat::dense(&activation);
    let grid = activation.image.grid;
    let scale = heat::maximum(&values);
    let gain = if common > 0.0 { heat::brightness(scale / common) } else { 1.0 };
    let picture = activation.image.picture;
    let style = format!(
        "{};--gain:{};aspect-ratio:{}/{}",
        heat::mask_style(grid, &values, scale),
        fixed(gain, 3),
        picture.width.max(1),
        picture.height.max(1)
    );
    let outline = outlined.then(|| {
        let path = heat::outline_path(grid, &values, scale * heat::OUTLINE_SHARE);
        view! {
            <svg class="lit-outline" viewBox=format!("0 0 {} {}", grid[1], grid[0]) preserveAspectRatio="none">
                <path d=path></path>
            </svg>
        }
    });
    let hidden = label.is_empty().then_some("true");
    let role = (!label.is_empty()).then_some("img");
    let url = picture.url;
    view! {
        <span class="lit" role=role aria-label=label aria-hidden=hidden style=style data-testid="heat-map">
            <img
                class="lit-base"
                src=url.clone()
                alt=""
                width=picture.width
                height=picture.height
                loading="lazy"
                decoding="async"
            />
            <img class="lit-top" src=url alt="" loading="lazy" decoding="async" />
            <span class="lit-glow"></span>
            {outline}
        </span>
    }
}
