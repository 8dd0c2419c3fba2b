//! Original, reconstructed, steered: three texts side by side.

use super::{State, run::Texts};
use crate::{
    components::{ProblemView, ProvenanceNote},
    diff::differing,
    format::{percent, visible_token},
};
use api::{Column, TextToken};
use leptos::prelude::*;

const COLUMNS: [(Column, &str, &str, &str); 3] = [
    (Column::Default, "Original", "the model as it is", "steer-original"),
    (Column::Reconstructed, "Reconstructed", "through the autoencoder, nothing changed", "steer-reconstructed"),
    (Column::Steered, "Steered", "through the autoencoder, with your features", "steer-steered"),
];

#[component]
pub fn Columns(state: State) -> impl IntoView {
    let texts = state.texts;
    let columns = COLUMNS
        .into_iter()
        .map(|(column, name, about, testid)| view! { <TextColumn texts column name about testid /> })
        .collect_view();
    view! {
        <p class="stale-note faint" hidden=move || !state.stale.get()>
            "Settings changed: run again."
        </p>
        <section
            class="columns"
            class:columns-stale=move || state.stale.get()
            aria-label="What the model says"
            aria-busy=move || texts.with(|texts| texts.running.to_string())
        >
            {columns}
        </section>
        {move || texts.with(|texts| texts.problem.clone()).map(|problem| view! { <ProblemView problem /> })}
        {move || texts.with(|texts| texts.provenance.clone()).map(|provenance| view! { <ProvenanceNote provenance /> })}
    }
}

/// One token and whether it differs from the reconstruction's text.
type Marked = (TextToken, bool);

/// Tokens past the reconstruction's end are only different once it has ended.
fn marked(texts: &Texts, column: Column) -> Vec<Marked> {
    let tokens = texts.column(column);
    if column == Column::Reconstructed {
        return tokens.iter().cloned().map(|token| (token, false)).collect();
    }
    let words = |tokens: &[TextToken]| tokens.iter().map(|token| token.text.clone()).collect::<Vec<_>>();
    let differs = differing(&words(tokens), &words(&texts.reconstructed));
    let known = if texts.running { texts.reconstructed.len() } else { usize::MAX };
    tokens
        .iter()
        .cloned()
        .zip(differs)
        .enumerate()
        .map(|(at, (token, differs))| (token, differs && at < known))
        .collect()
}

#[component]
fn TextColumn(
    texts: RwSignal<Texts>,
    column: Column,
    name: &'static str,
    about: &'static str,
    testid: &'static str,
) -> impl IntoView {
    let tokens = Memo::new(move |_| texts.with(|texts| marked(texts, column)));
    let changed = move || {
        let tokens = tokens.read();
        let changed = tokens.iter().filter(|(_, differs)| *differs).count();
        (texts.with(|texts| texts.done) && column != Column::Reconstructed && !tokens.is_empty()).then(|| match changed
        {
            0 => "same as reconstructed".to_owned(),
            1 => "1 token differs".to_owned(),
            _ => format!("{changed} tokens differ"),
        })
    };
    let body = move || {
        tokens
            .get()
            .into_iter()
            .map(|(token, differs)| {
                let title = format!("{} · probability {}", visible_token(&token.text), percent(token.logprob.exp()));
                view! {
                    <span class:differs=differs title=title>
                        {token.text}
                    </span>
                }
            })
            .collect_view()
    };
    view! {
        <article class="column" class:column-steered=column == Column::Steered>
            <h2>{name}</h2>
            <p class="faint">{about}</p>
            <p class="column-text" class:writing=move || texts.with(|texts| texts.running) data-testid=testid>
                {body}
            </p>
            <p class="faint caption">{changed}</p>
        </article>
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(text: &str) -> Vec<TextToken> {
        text.split(' ')
            .map(|word| TextToken { text: word.into(), id: 0, logprob: 0.0, ..TextToken::default() })
            .collect()
    }

    fn changed(texts: &Texts) -> Vec<String> {
        marked(texts, Column::Steered)
            .into_iter()
            .filter(|(_, differs)| *differs)
            .map(|(token, _)| token.text)
            .collect()
    }

    #[test]
    fn what_is_not_written_yet_is_not_a_difference() {
        let mut texts = Texts {
            reconstructed: tokens("Bob feels"),
            steered: tokens("Bob was sad today"),
            running: true,
            ..Texts::default()
        };
        assert_eq!(changed(&texts), ["was"]);
        texts.reconstructed = tokens("Bob feels happy today");
        texts.running = false;
        assert_eq!(changed(&texts), ["was", "sad"]);
        assert!(marked(&texts, Column::Reconstructed).iter().all(|(_, differs)| !differs));
    }
}
