//! Tokens lit by a feature.

use crate::{
    format::{sig3, visible_token},
    heat::brightness,
};
use api::TextActivation;
use leptos::prelude::*;

/// Above this share of light a token's letters turn dark, to keep their contrast.
const HOT: f32 = 0.5;

/// One text example with its tokens coloured.
#[component]
pub fn TextExample(text: TextActivation, common: f32) -> impl IntoView {
    let scale = if common > 0.0 { common } else { text.max_value };
    let label = format!("strongest {} on “{}”", sig3(text.max_value), strongest(&text));
    let tokens = text
        .tokens
        .iter()
        .zip(&text.values)
        .map(|(token, value)| {
            let share = if scale > 0.0 { brightness(value / scale) } else { 0.0 };
            let title = (*value > 0.0).then(|| sig3(*value));
            view! {
                <span class="token" class:token-hot={share > HOT} style=format!("--share:{share:.2}") title=title>
                    {visible_token(token)}
                </span>
            }
        })
        .collect_view();
    view! {
        <li class="text-example" aria-label=label>
            {tokens}
        </li>
    }
}

fn strongest(text: &TextActivation) -> String {
    let token = text.tokens.get(text.max_value_token_index as usize);
    visible_token(token.map_or("", String::as_str)).trim().to_owned()
}

/// One token of a prompt that can be picked.
#[component]
pub fn TokenStrip(
    /// Position in the sequence and its text.
    tokens: Vec<(u32, String)>,
    /// Share of light per token, same order.
    #[prop(into)]
    shares: Signal<Vec<f32>>,
    #[prop(into)] picked: Signal<Option<u32>>,
    #[prop(into)] on_pick: Callback<u32>,
) -> impl IntoView {
    let tokens = tokens
        .into_iter()
        .enumerate()
        .map(|(number, (position, token))| {
            let share = move || shares.with(|shares| shares.get(number).copied().unwrap_or(0.0));
            view! {
                <button
                    class="token"
                    class:token-hot=move || { share() > HOT }
                    class:token-picked=move || picked.get() == Some(position)
                    style=move || format!("--share:{:.2}", share())
                    data-testid="token"
                    aria-pressed=move || (picked.get() == Some(position)).to_string()
                    on:click=move |_| on_pick.run(position)
                >
                    {visible_token(&token)}
                </button>
            }
        })
        .collect_view();
    view! {
        <div class="token-strip" role="group" aria-label="Tokens of the prompt">
            {tokens}
        </div>
    }
}
