//! The picture with its light, and the ranking beside it.

use super::{
    AnalyzeAddress, State,
    facts::{Explained, InThisPicture},
    run::{Run, Stage, cancel},
};
use crate::{
    browser::{self, now_ms},
    components::{Choice, FeatureRow, PatchPicture, Switch, TokenStrip},
    format::{bytes, fixed, name_or_index},
    gpu, heat,
    ranking::{RankBy, Ranked},
};
use api::{
    Picture, Tier,
    gpu::{Compute, ComputePath},
};
use leptos::{ev, html, prelude::*, task::spawn_local};
use std::{sync::Arc, time::Duration};

/// Rows of the ranking.
pub const ROWS: usize = 20;
/// Features of the ranking: the first one has its labels fetched ahead.
pub const AHEAD: usize = 96;

/// Which positions the ranking is about: the token, the patch under the pointer, the picked patches, or all patches.
fn positions(state: State, run: &Run) -> Vec<u32> {
    let address = state.address.get();
    if let Some(patch) = state.hovered.get().and_then(|patch| run.base.get(patch as usize)) {
        return vec![*patch];
    }
    match address.token {
        Some(token) => vec![token],
        None => picked_or_all(state, run),
    }
}

/// Positions of the picked patches, or of all.
pub fn picked_or_all(state: State, run: &Run) -> Vec<u32> {
    let picked: Vec<u32> = state
        .address
        .with(|address| address.patches.iter().filter_map(|patch| run.base.get(*patch as usize)).copied().collect());
    if picked.is_empty() { run.base.clone() } else { picked }
}

/// Keeps the ranking: of one position at once, of more by the worker that has encoded them.
pub fn follow_ranking(state: State) {
    let newest = StoredValue::new(0_u32);
    let put = move |ranking: Vec<Ranked>| {
        // Rows that stay the same stay as they are, with the pointer on one of them.
        if state.ranking.with_untracked(|old| *old != ranking) {
            state.ranking.set(ranking);
        }
    };
    Effect::new(move |_| {
        newest.update_value(|number| *number += 1);
        let number = newest.get_value();
        let Some(run) = state.run.get() else { return put(Vec::new()) };
        let (positions, by) = (positions(state, &run), state.address.get().rank);
        if positions.len() < 2 || run.computed == ComputePath::Server {
            return put(run.acts.rank(&positions, by, AHEAD));
        }
        spawn_local(async move {
            let ranked = gpu::rank(&positions, by, AHEAD).await;
            if newest.try_get_value() == Some(number) {
                // A worker that is busy or gone: the page does it itself.
                put(ranked.unwrap_or_else(|_| run.acts.rank(&positions, by, AHEAD)));
            }
        });
    });
}

/// The feature that lights the picture: under the pointer, kept, or the first of the ranking.
fn lit_feature(state: State) -> Option<u32> {
    state.run.get()?;
    let kept = state.pointed.get().or(state.address.get().feature);
    kept.or_else(|| state.ranking.with(|rows| rows.first().map(|row| row.feature)))
}

fn name(state: State, feature: u32) -> String {
    state
        .summaries
        .with(|summaries| name_or_index(summaries.get(feature).and_then(|found| found.label.as_deref()), feature))
}

/// The picture on the bench, its tokens, and what computed it.
#[component]
pub fn Picked(state: State, picture: Picture) -> impl IntoView {
    let lit = Memo::new(move |_| lit_feature(state));
    let values = Memo::new(move |_| {
        let (Some(run), Some(feature)) = (state.run.get(), lit.get()) else { return Vec::new() };
        run.acts.values(feature, run.base.iter().copied())
    });
    let grid = Memo::new(move |_| state.run.get().map_or([0, 0], |run| run.grid));
    let caption = picture.caption.clone();
    let label = Signal::derive(move || lit.get().map_or_else(|| caption.clone(), |feature| name(state, feature)));
    let size = (picture.width > 0).then_some((picture.width, picture.height));
    Effect::new(move |_| {
        let handle = window_event_listener(ev::keydown, move |event| {
            let address = state.address.get_untracked();
            let held = !address.patches.is_empty() || address.token.is_some() || address.feature.is_some();
            if event.key() == "Escape" && held {
                state.update(|address| {
                    *address = AnalyzeAddress { feature: None, ..address.for_picture(address.picture.clone()) };
                });
            }
        });
        on_cleanup(move || handle.remove());
    });
    let smooth = smooth_mask(state, lit);
    let canvas = NodeRef::new();
    let drawn = draw_light(state, values, canvas);
    view! {
        <PatchPicture
            url=Signal::stored(picture.url)
            size=Signal::stored(size)
            grid=grid
            values=values
            scale=Signal::derive(move || values.with(|values| heat::maximum(values)))
            label=label
            hovered=state.hovered
            picked=Signal::derive(move || state.address.get().patches)
            on_pick=move |patch| state.update(|address| address.toggle_patch(patch))
            smooth=smooth
        >
            <canvas class="lit-canvas" class:drawn=move || drawn.get() node_ref=canvas aria-hidden="true"></canvas>
        </PatchPicture>
        <Prompt state lit />
        {move || {
            let notice = state.run.get()?.notice.clone()?;
            Some(view! { <p class="notice" role="status" data-testid="analyze-notice">{notice}</p> })
        }}
        <p class="path mono" data-testid="analyze-path">
            {move || state.run.get().map(|run| run.path.clone())}
        </p>
        <Explained state />
        <InThisPicture state lit />
        {move || state.run.get().map(|run| view! { <Where state why=run.why.clone() /> })}
    }
}

/// Why it was computed there, and the switch to elsewhere.
#[component]
fn Where(state: State, why: String) -> impl IntoView {
    let choices = move || {
        let (address, key) = (state.address.get(), state.key.get());
        let places = Compute::ALL.map(|compute| {
            let href = AnalyzeAddress { compute, ..address.clone() }.path(&key);
            (compute.as_str(), href, compute == address.compute)
        });
        let tiers = [Tier::F16, Tier::Int8, Tier::Int4].map(|tier| {
            let href = AnalyzeAddress { tier: Some(tier), ..address.clone() }.path(&key);
            (tier.as_str(), href, Some(tier) == address.tier)
        });
        places
            .into_iter()
            .chain(tiers)
            .map(|(name, href, current)| {
                view! {
                    <a href=href rel="nofollow" aria-current=current.then_some("true")>{name}</a>
                }
            })
            .collect_view()
    };
    view! {
        <details class="where" data-testid="analyze-where">
            <summary>"Why there, and elsewhere"</summary>
            <p class="faint">{why}</p>
            <p class="where-choices">{choices}</p>
        </details>
    }
}

/// Side of the smooth map in pixels.
const SMOOTH: [u32; 2] = [192, 192];

/// How long a feature stays lit before its smooth map is asked for: a passing pointer asks for none.
const DWELL: Duration = Duration::from_millis(80);

/// The worker's upsampled map of the lit feature, where there is no canvas. It follows the coarse mask, which is there at
/// once.
fn smooth_mask(state: State, lit: Memo<Option<u32>>) -> Signal<Option<String>> {
    let mask = RwSignal::new(None::<String>);
    Effect::new(move |_| {
        if mask.with_untracked(Option::is_some) {
            mask.set(None);
        }
        let (Some(run), Some(feature)) = (state.run.get(), lit.get()) else { return };
        let Some(start) = run.base.first().copied() else { return };
        if run.draws(state.address.get_untracked().canvas) {
            return;
        }
        let is_current = {
            let run = Arc::clone(&run);
            move || state.shows(&run) && lit.try_get_untracked().flatten() == Some(feature)
        };
        let ask = async move {
            if !is_current() {
                return;
            }
            // Without a map the coarse mask stays.
            let Ok((map, max)) = gpu::map(feature, start, run.grid, SMOOTH).await else { return };
            if is_current() {
                mask.set(browser::mask_style_from_map(&map, SMOOTH, max));
            }
        };
        set_timeout(move || spawn_local(ask), DWELL);
    });
    mask.into()
}

/// How long the canvas may show the light of the feature before: then the mask, which is there at once, takes its place.
const PATIENCE: Duration = Duration::from_millis(150);

/// The light of the lit feature, drawn on the canvas by the GPU; whether the canvas shows it.
fn draw_light(state: State, values: Memo<Vec<f32>>, canvas: NodeRef<html::Canvas>) -> RwSignal<bool> {
    let drawn = RwSignal::new(false);
    let given_away = StoredValue::new(false);
    // Drawings asked for, and the last one that was answered.
    let numbers = StoredValue::new([0_u32; 2]);
    Effect::new(move |_| {
        numbers.update_value(|[asked, _]| *asked += 1);
        let [number, _] = numbers.get_value();
        let values = values.get();
        let scale = heat::maximum(&values);
        let run = state.run.get().filter(|run| scale > 0.0 && run.draws(state.address.get_untracked().canvas));
        let (Some(run), Some(element)) = (run, canvas.get()) else { return drawn.set(false) };
        let light: Vec<f32> = values.iter().map(|value| heat::brightness(value / scale)).collect();
        let size = browser::device_pixels(&element);
        let screen = (!given_away.get_value()).then(|| element.transfer_control_to_offscreen().ok()).flatten();
        given_away.set_value(true);
        spawn_local(async move {
            let done = gpu::draw(&light, run.grid, size, screen).await.is_ok();
            if numbers.try_get_value().is_some_and(|[asked, _]| asked == number) {
                numbers.set_value([number, number]);
                drawn.set(done);
            }
        });
        let give_up = move || {
            if numbers.try_get_value().is_some_and(|[asked, answered]| asked == number && answered != number) {
                drawn.set(false);
            }
        };
        set_timeout(give_up, PATIENCE);
    });
    drawn
}

/// The prompt's tokens, lit by the same feature.
#[component]
fn Prompt(state: State, lit: Memo<Option<u32>>) -> impl IntoView {
    let shares = Memo::new(move |_| {
        let (Some(run), Some(feature)) = (state.run.get(), lit.get()) else { return Vec::new() };
        let values = run.acts.values(feature, run.text.iter().map(|(position, _)| *position));
        let all = run.acts.values(feature, 0..run.acts.tokens() as u32);
        let scale = heat::maximum(&all);
        values.into_iter().map(|value| if scale > 0.0 { heat::brightness(value / scale) } else { 0.0 }).collect()
    });
    let pick = move |token| {
        state.update(|address| {
            address.token = if address.token == Some(token) { None } else { Some(token) };
            address.patches.clear();
        });
    };
    move || {
        let tokens = state.run.get().map(|run| run.text.clone()).filter(|tokens| !tokens.is_empty())?;
        let picked = Signal::derive(move || state.address.get().token);
        Some(view! { <TokenStrip tokens shares picked on_pick=pick /> })
    }
}

/// What is going on, with bytes and seconds, until the features are there. Always a way out.
#[component]
pub fn Waiting(state: State) -> impl IntoView {
    let progress = gpu::progress();
    let line = move || {
        let device = match state.address.get().compute {
            Compute::Auto => "machine",
            Compute::Gpu => "GPU",
            Compute::Cpu => "CPU",
            Compute::Server => "server",
        };
        match state.stage.get() {
            Stage::Extracting => Some("The server computes hidden states".to_owned()),
            Stage::Loading => Some(format!("The autoencoder is on its way to your {device}")),
            Stage::Encoding => Some(format!("Your {device} finds the features")),
            _ => None,
        }
    };
    let weights = move || {
        let progress = progress.get()?;
        let text = weights_line(progress, now_ms());
        Some(view! {
            <div class="progress">
                <progress max=progress.total.to_string() value=progress.received.to_string()></progress>
                <span class="mono">{text}</span>
            </div>
        })
    };
    view! {
        <div class="waiting" aria-live="polite">
            {move || {
                line()
                    .map(|line| {
                        view! {
                            <p class="waiting-line">
                                <span>{line}"…"</span>
                                <button
                                    class="button"
                                    on:click=move |_| {
                                        cancel();
                                        gpu::cancel(false);
                                        state.stage.set(Stage::Idle);
                                    }
                                >
                                    "Cancel"
                                </button>
                            </p>
                        }
                    })
            }}
            {move || state.stage.with(Stage::is_working).then(weights.clone())}
            {move || {
                state
                    .stage
                    .with(Stage::problem)
                    .map(|problem| {
                        view! {
                            {problem}
                            <p>
                                <button class="button" on:click=move |_| state.retry()>
                                    "Try again"
                                </button>
                            </p>
                        }
                    })
            }}
        </div>
    }
}

/// `1.2 of 2.4 MB · 3 s left`.
fn weights_line(progress: gpu::Progress, now: f64) -> String {
    let gpu::Progress { received, fetched, total, started_ms } = progress;
    let seconds = (now - started_ms) / 1000.0;
    let left = if received > 0 { seconds * (total.saturating_sub(received) as f64) / received as f64 } else { 0.0 };
    let left = if left >= 1.0 { format!(" · {} s left", fixed(left, 0)) } else { String::new() };
    let from = if received > 0 && fetched == 0 { " from this machine" } else { "" };
    format!("autoencoder {} of {}{from}{left}", bytes(received), bytes(total))
}

/// The ranked features.
#[component]
pub fn Rows(state: State) -> impl IntoView {
    let lit = Memo::new(move |_| lit_feature(state));
    let heading = move || {
        let run = state.run.get()?;
        let address = state.address.get();
        let columns = run.grid[1].max(1);
        Some(match (state.hovered.get(), address.token, address.patches.as_slice()) {
            (Some(patch), ..) => format!("At the patch in row {}, column {}", patch / columns + 1, patch % columns + 1),
            (None, Some(_), _) => "At the picked token".to_owned(),
            (None, None, []) => "On the whole picture".to_owned(),
            (None, None, [_]) => "At the picked patch".to_owned(),
            (None, None, patches) => format!("At the {} picked patches", patches.len()),
        })
    };
    let orders = Signal::derive(move || {
        let address = state.address.get();
        let key = state.key.get();
        RankBy::ALL
            .map(|rank| Choice {
                name: rank.as_str().into(),
                href: AnalyzeAddress { rank, ..address.clone() }.path(&key),
                current: rank == address.rank,
                about: match rank {
                    RankBy::Max => "by the strongest of these patches",
                    RankBy::Mean => "by the mean over these patches",
                },
            })
            .to_vec()
    });
    let rows = move || {
        let rows = state.ranking.get();
        let scale = rows.first().map_or(0.0, |row| row.value);
        rows.into_iter()
            .take(ROWS)
            .map(|row| {
                let feature = row.feature;
                view! {
                    <FeatureRow
                        key=state.key.get_untracked()
                        index=feature
                        value=row.value
                        scale
                        summary=Signal::derive(move || state.summaries.with(|found| found.get(feature).cloned()))
                        lit=lit
                        pinned=Signal::derive(move || state.address.get().feature)
                        on_light=move |feature| state.pointed.set(feature)
                        on_pin=move |feature| {
                            state
                                .update(|address| {
                                    address.feature = if address.feature == Some(feature) { None } else { Some(feature) };
                                });
                        }
                        testid="analyze-row"
                    />
                }
            })
            .collect_view()
    };
    let hint = move || match state.run.get() {
        Some(_) => "Point at a patch to rank its features, click to keep it, Esc to let go.",
        None => "The features of the picture will stand here, strongest first.",
    };
    view! {
        <div class="ranking">
            <div class="ranking-head" hidden=move || state.run.get().is_none()>
                <h2 aria-live="polite">{heading}</h2>
                <Switch label="Rank by" choices=orders />
            </div>
            <ol class="rows">{rows}</ol>
            <p class="faint hint" hidden=move || state.stage.with(Stage::is_working)>
                {hint}
            </p>
        </div>
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_has_bytes_and_seconds() {
        let progress = gpu::Progress { received: 1_200_000, fetched: 9, total: 2_400_000, started_ms: 1_000.0 };
        assert_eq!(weights_line(progress, 4_000.0), "autoencoder 1.20 MB of 2.40 MB · 3 s left");
        assert_eq!(weights_line(gpu::Progress { received: 0, ..progress }, 4_000.0), "autoencoder 0 B of 2.40 MB");
    }
}
