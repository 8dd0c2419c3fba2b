//! Tokens lit by a feature.

use crate::{
    format::{fixed, sig3, visible_token},
    heat::brightness,
};
use api::TextActivation;
use leptos::prelude::*;

/// Above this share of light a token's letters turn dark, to keep their contrast.
const HOT: f32 = 0.5;
/// Shares of light on which, in the dark theme, neither light nor dark letters have a contrast of 4.5.
const UNREADABLE: [f32; 2] = [0.45, 0.68];

/// The share of light that is drawn: in the same order as the real ones, but none that letters cannot stand on.
fn drawn(share: f32) -> f32 {
    let [below, above] = UNREADABLE;
    if share > HOT { above + (share - HOT) / (1.0 - HOT) * (1.0 - above) } else { share / HOT * below }
}

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
                <span
                    class="token"
                    class:token-hot={share > HOT}
                    style=format!("--share:{}", fixed(drawn(share), 2))
                    title=title
                >
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
                    style=move || format!("--share:{}", fixed(drawn(share()), 2))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_never_stand_on_light_that_hides_them() {
        let shares = (0..=100).map(|percent| drawn(percent as f32 / 100.0)).collect::<Vec<_>>();
        assert_eq!((shares[0], shares[100]), (0.0, 1.0));
        assert!(shares.is_sorted());
        assert!(shares.iter().all(|share| *share <= UNREADABLE[0] || *share >= UNREADABLE[1]));
    }
}
