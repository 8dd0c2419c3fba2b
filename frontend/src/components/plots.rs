//! Small plots, drawn as HTML and SVG on the server: score axes, histograms, word bars, and where numbers come from.

use super::Erase;
use crate::format::{fixed, percent, sig3, visible_token};
use api::{Provenance, Score, SteeringEffects};
use leptos::prelude::*;

/// Name of a score for people, and what it is.
fn score_name(score: &Score) -> (String, &'static str) {
    match score.explanation_score_type_name.as_str() {
        "iou" => {
            ("IoU".into(), "overlap of the lit area with the labelled thing: intersection over union, 1 is perfect; ")
        }
        "token share" => ("token".into(), "share of the feature's activation in texts that falls on this token; "),
        "caption share" => {
            ("captions".into(), "share of the feature's top pictures whose caption has the first word; ")
        }
        // What these measure stands in their provenance.
        other => (other.to_owned(), ""),
    }
}

/// What the baseline of a score is measured on.
fn baseline_name(score: &Score) -> &'static str {
    if score.explanation_score_type_name == "iou" { "random places" } else { "baseline" }
}

/// Position of a value on the shared axis, in percent.
fn on_axis(value: f32, end: f32) -> f32 {
    (value / end * 100.0).clamp(0.0, 100.0)
}

/// Where a score, its random baseline and its interval lie on the shared axis, or on the score's own.
fn axis_style(score: &Score, end: f32) -> String {
    let end = score.full().unwrap_or(end);
    let at = |value| fixed(on_axis(value, end), 1);
    let [low, high] = score.interval.unwrap_or([score.value; 2]);
    format!("--v:{}%;--b:{}%;--l:{}%;--h:{}%", at(score.value), at(score.baseline), at(low), at(high))
}

/// All scores of a label, each as a dot beside its random baseline, on one shared axis.
#[component]
pub fn ScoreAxis(scores: Vec<Score>) -> impl IntoView {
    let shared = scores.iter().filter(|score| score.full().is_none());
    let end = shared.map(|score| score.value.max(score.baseline)).fold(1.0, f32::max);
    let rows = scores
        .into_iter()
        .map(|score| {
            let (name, meaning) = score_name(&score);
            let style = axis_style(&score, end);
            let (value, baseline) = (sig3(score.value), sig3(score.baseline));
            let text = format!("{name} {value}, {} {baseline}", baseline_name(&score));
            let comma = if score.provenance.is_empty() { "" } else { ", " };
            let by = [score.explanation_score_model_name, score.provenance].join(comma);
            view! {
                <div class="axis-row" tabindex="0" data-about=format!("{meaning}computed by {by}")>
                    <span class="axis-name">{name}</span>
                    <span class="axis" style=style role="img" aria-label=text>
                        <i class="axis-interval"></i>
                        <i class="axis-span"></i>
                        <i class="axis-base"></i>
                        <i class="axis-dot"></i>
                    </span>
                    <span class="mono number">{sig3(score.value)}</span>
                    <span class="mono number faint">{sig3(score.baseline)}</span>
                </div>
                {score.effects.map(effects_row)}
            }
        })
        .collect_view();
    view! {
        <div class="axes">
            <div class="axis-row axis-head" aria-hidden="true">
                <span></span>
                <span class="axis-ends">
                    <span>"0"</span>
                    <span>{sig3(end).trim_end_matches(".00").to_owned()}</span>
                </span>
                <span class="number">
                    <i class="axis-dot"></i>
                    "label"
                </span>
                <span class="number">
                    <i class="axis-base"></i>
                    "random"
                </span>
            </div>
            {rows}
        </div>
    }
}

/// What became of the steered answers that a score is of: one bar, and the counts below it.
fn effects_row(effects: SteeringEffects) -> impl IntoView {
    let kinds = SteeringEffects::NAMES.into_iter().zip(effects.counts()).filter(|(_, count)| *count > 0);
    let parts =
        kinds.clone().map(|(name, count)| view! { <i data-effect=name style=format!("flex-grow:{count}")></i> });
    let counts = kinds.map(|(name, count)| view! { <span data-effect=name>{count} " " {name}</span> });
    view! {
        <div class="axis-row effects" tabindex="0" data-about=EFFECTS>
            <span class="axis-name">"effects"</span>
            <div>
                <span class="effects-bar" aria-hidden="true">{parts.collect_view()}</span>
                <span class="effects-counts">{counts.collect_view()}</span>
            </div>
        </div>
    }
}

const EFFECTS: &str = "what became of the answers when the feature was made strong: none, it stays; mentions, it names \
                       the label; reasons, it argues, feels or acts from it; unrelated, it changes to something else";

/// The same on a card: one small axis and the number.
#[component]
pub fn ScoreMark(score: Score) -> impl IntoView {
    let style = axis_style(&score, score.value.max(score.baseline).max(1.0));
    let (name, _) = score_name(&score);
    let text = format!("{name} {}, {} {}", sig3(score.value), baseline_name(&score), sig3(score.baseline));
    view! {
        <span class="mark" title=text.clone()>
            <span class="axis" style=style role="img" aria-label=text.clone()>
                <i class="axis-base"></i>
                <i class="axis-dot"></i>
            </span>
            <span class="mono number">{sig3(score.value)}</span>
        </span>
    }
}

/// One number with its name; the explanation is one hover, tap or press of Tab away.
#[component]
pub fn Stat(name: &'static str, #[prop(into)] value: String, about: &'static str) -> impl IntoView {
    view! {
        <div class="stat" tabindex="0" data-about=about>
            <dt>{name}</dt>
            <dd class="mono">{value}</dd>
        </div>
    }
}

/// Activation histogram: `heights[i]` counts values from `edges[i]` to `edges[i+1]`.
#[component]
pub fn HistogramPlot(heights: Vec<f32>, edges: Vec<f32>, unit: &'static str) -> impl IntoView {
    // Whole, so that the page need not know how any float is written.
    const WIDTH: u16 = 320;
    const HEIGHT: u16 = 72;
    let top = heights.iter().copied().fold(0.0, f32::max);
    if heights.is_empty() || top <= 0.0 {
        return view! { <p class="faint">"No activations to count."</p> }.erased();
    }
    let (width, full) = (f32::from(WIDTH), f32::from(HEIGHT));
    let step = width / heights.len() as f32;
    let total: f32 = heights.iter().sum();
    let bars = heights.iter().enumerate().map(|(bar, height)| {
        // A square root keeps rare strong activations visible beside the many weak ones.
        let tall = (height / top).sqrt() * full;
        let share = (bar + 1) as f32 / heights.len() as f32;
        let from = edges.get(bar).copied().unwrap_or_default();
        let to = edges.get(bar + 1).copied().unwrap_or(from);
        let text = format!("{} to {}: {} of the activations", sig3(from), sig3(to), percent(height / total));
        view! {
            <rect
                x=fixed(bar as f32 * step + 0.5, 2)
                y=fixed(full - tall, 2)
                width=fixed((step - 1.0).max(0.5), 2)
                height=fixed(tall, 2)
                style=format!("--share:{}", fixed(share, 2))
            >
                <title>{text}</title>
            </rect>
        }
    });
    let bars = bars.collect_view();
    let first = edges.first().copied().unwrap_or_default();
    let last = edges.last().copied().unwrap_or_default();
    view! {
        <figure class="histogram">
            <svg
                viewBox=format!("0 0 {WIDTH} {HEIGHT}")
                preserveAspectRatio="none"
                role="img"
                aria-label=format!("Histogram of {} {unit} from {} to {}", heights.len(), sig3(first), sig3(last))
            >
                {bars}
            </svg>
            <figcaption>
                <span class="mono">{sig3(first)}</span>
                <span>{unit}" (height: square root of the count)"</span>
                <span class="mono">{sig3(last)}</span>
            </figcaption>
        </figure>
    }
    .erased()
}

/// Output tokens with their values as bars.
#[component]
pub fn WordBars(title: &'static str, about: &'static str, words: Vec<String>, values: Vec<f32>) -> impl IntoView {
    let scale = values.iter().map(|value| value.abs()).fold(f32::MIN_POSITIVE, f32::max);
    let rows = words
        .into_iter()
        .zip(values)
        .map(|(word, value)| {
            view! {
                <li>
                    <span class="mono word">{visible_token(&word)}</span>
                    <span class="word-bar" aria-hidden="true">
                        <i style=format!("width:{}%", fixed(value.abs() / scale * 100.0, 1))></i>
                    </span>
                    <span class="mono number">{sig3(value)}</span>
                </li>
            }
        })
        .collect_view();
    view! {
        <div class="words">
            <h3 title=about>{title}</h3>
            <ul>{rows}</ul>
        </div>
    }
}

/// Where the numbers come from, one tap away.
#[component]
pub fn ProvenanceNote(provenance: Provenance) -> impl IntoView {
    let rows = [
        ("Model", provenance.model),
        ("SAE", provenance.sae_revision),
        ("Computed in", provenance.dtype),
        ("Prompt", provenance.prompt_hash),
        ("Pictures", provenance.image_set),
        ("Date", provenance.date),
    ];
    let rows = rows
        .into_iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(name, value)| {
            view! {
                <div>
                    <dt>{name}</dt>
                    <dd class="mono">{value}</dd>
                </div>
            }
        })
        .collect_view();
    view! {
        <details class="provenance">
            <summary>"Where these numbers come from"</summary>
            <dl>{rows}</dl>
        </details>
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_lies_around_its_value_on_the_scores_own_axis() {
        let clip = Score {
            value: 24.0,
            baseline: 18.0,
            explanation_score_type_name: "clip score".into(),
            interval: Some([23.0, 25.5]),
            samples: 5,
            ..Score::default()
        };
        assert_eq!(axis_style(&clip, 1.0), "--v:24.0%;--b:18.0%;--l:23.0%;--h:25.5%");
        let bare = Score { value: 0.5, baseline: 0.25, ..Score::default() };
        assert_eq!(axis_style(&bare, 1.0), "--v:50.0%;--b:25.0%;--l:50.0%;--h:50.0%", "no width");
    }

    #[test]
    fn a_value_and_its_baseline_share_the_axis() {
        assert_eq!(on_axis(0.5, 1.0), 50.0);
        assert_eq!(on_axis(2.0, 4.0), 50.0);
        assert_eq!(on_axis(-1.0, 1.0), 0.0);
        assert_eq!(on_axis(9.0, 1.0), 100.0);
    }
}
