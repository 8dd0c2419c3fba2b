//! What to change, where, and what to ask.

use super::{
    State,
    address::{Chosen, METHODS, method_name, takes_negative},
    run::{cancel, start},
};
use crate::{
    api::{client, endpoint},
    components::{LitPicture, category_name},
    format::{name_or_index, number, shortest, sig3},
    links::feature_path,
};
use api::{FeatureQuery, FeatureSummary, Picture, Positions, SteerMethod};
use leptos::{leptos_dom::helpers::TimeoutHandle, prelude::*, task::spawn_local};
use std::time::Duration;

/// Questions to start from.
const PROMPTS: [&str; 3] =
    ["Tell me a story about Alice and Bob.", "What is in the picture?", "How does the face feel?"];
/// Suggestions under the search field.
const SUGGESTIONS: u32 = 8;
/// Wait after a key press before labels are searched.
const TYPING: Duration = Duration::from_millis(180);
/// Largest strength of the slider, in units of the feature's maximum.
const MAX_STRENGTH: f32 = 10.0;
/// Strength a feature starts with.
const START_STRENGTH: f32 = 3.0;

/// The chosen features with their sliders, and a search for more.
#[component]
pub fn FeaturePicker(state: State) -> impl IntoView {
    let chosen =
        Memo::new(move |_| state.form.with(|form| form.features.iter().map(|chosen| chosen.index).collect::<Vec<_>>()));
    let none = move || {
        chosen.with(Vec::is_empty).then(|| {
            view! { <p class="faint">"No feature yet: search one below. Without any, all three texts should agree."</p> }
        })
    };
    view! {
        <section class="steer-features">
            <h2>"Features"</h2>
            <ul class="chips">
                <For each=move || chosen.get() key=|index| *index children=move |index| view! { <Chip state index /> } />
            </ul>
            {none}
            <Finder state />
        </section>
    }
}

/// One chosen feature: label, strength, remove.
#[component]
fn Chip(state: State, index: u32) -> impl IntoView {
    let summary = move || state.summaries.with(|known| known.get(index).cloned());
    let name = move || name_or_index(summary().and_then(|found| found.label).as_deref(), index);
    let strength = Memo::new(move |_| {
        state.form.with(|form| {
            form.features.iter().find(|chosen| chosen.index == index).map_or(0.0, |chosen| chosen.strength)
        })
    });
    let ablates = move || state.form.with(|form| form.method == SteerMethod::Ablate);
    let value = move || {
        if ablates() {
            return "0".to_owned();
        }
        let times = format!("{} × max", sig3(strength.get()));
        summary()
            .map_or_else(|| times.clone(), |found| format!("{times} = {}", sig3(strength.get() * found.max_act_approx)))
    };
    let set = move |event| {
        if let Some(strength) = number(&event_target_value(&event)) {
            state.form.update(|form| {
                if let Some(chosen) = form.features.iter_mut().find(|chosen| chosen.index == index) {
                    chosen.strength = strength as f32;
                }
            });
        }
    };
    let remove = move |_| state.form.update(|form| form.features.retain(|chosen| chosen.index != index));
    let thumbnail =
        move || summary().and_then(|found| found.thumbnail).map(|activation| view! { <LitPicture activation /> });
    view! {
        <li class="chip-row" data-feature=index>
            <span class="mini-thumb">{thumbnail}</span>
            <a href=move || feature_path(&state.key.get(), index)>{name}</a>
            <span class="mono faint">"#"{index}</span>
            <input
                r#type="range"
                min=move || if state.form.with(|form| takes_negative(form.method)) { "-10" } else { "0" }
                max=shortest(MAX_STRENGTH)
                step="0.25"
                data-testid="steer-strength"
                aria-label=move || format!("Strength of {}", name())
                disabled=ablates
                value=shortest(strength.get_untracked())
                prop:value=move || shortest(strength.get())
                on:input=set
            />
            <output class="mono number">{value}</output>
            <button class="remove" aria-label=move || format!("Remove {}", name()) on:click=remove>
                "×"
            </button>
        </li>
    }
}

/// Finds features by label or number.
#[component]
fn Finder(state: State) -> impl IntoView {
    let client = client();
    let words = RwSignal::new(String::new());
    let found = RwSignal::new(Vec::<FeatureSummary>::new());
    let timer = StoredValue::new(None::<TimeoutHandle>);
    Effect::new(move |_| {
        let q = words.get().trim().to_owned();
        if let Some(timer) = timer.get_value() {
            timer.clear();
        }
        if q.is_empty() {
            found.set(Vec::new());
            return;
        }
        let client = client.clone();
        let search = move || {
            let query =
                FeatureQuery { q: q.clone(), dead: Some(false), per_page: SUGGESTIONS, ..FeatureQuery::default() };
            let client = client.clone();
            let ask = endpoint::features(state.key.get_untracked(), query);
            spawn_local(async move {
                let list = client.ask(ask).await.map(|list| list.features).unwrap_or_default();
                if words.get_untracked().trim() == q {
                    found.set(list);
                }
            });
        };
        timer.set_value(set_timeout_with_handle(search, TYPING).ok());
    });
    let choose = Callback::new(move |feature: FeatureSummary| {
        let index = feature.index;
        state.summaries.update(|known| _ = known.insert(index, feature));
        state.form.update(|form| {
            if form.features.iter().all(|chosen| chosen.index != index) {
                form.features.push(Chosen { index, strength: START_STRENGTH });
            }
        });
        words.set(String::new());
    });
    let suggestions =
        move || found.get().into_iter().map(|feature| view! { <Suggestion feature choose /> }).collect_view();
    view! {
        <div class="finder">
            <input
                r#type="search"
                data-testid="search-input"
                aria-label="Add a feature"
                placeholder="Add a feature: label or number"
                autocomplete="off"
                prop:value=move || words.get()
                on:input=move |event| words.set(event_target_value(&event))
                on:keydown=move |event| {
                    if event.key() == "Enter" {
                        event.prevent_default();
                        if let Some(first) = found.get_untracked().into_iter().next() {
                            choose.run(first);
                        }
                    }
                }
            />
            <ul class="suggestions">{suggestions}</ul>
        </div>
    }
}

#[component]
fn Suggestion(feature: FeatureSummary, choose: Callback<FeatureSummary>) -> impl IntoView {
    let name = name_or_index(feature.label.as_deref(), feature.index);
    let category = category_name(feature.category);
    let index = feature.index;
    let thumbnail = feature.thumbnail.clone().map(|activation| view! { <LitPicture activation /> });
    view! {
        <li>
            <button class="suggestion" data-testid="steer-suggestion" on:click=move |_| choose.run(feature.clone())>
                <span class="mini-thumb">{thumbnail}</span>
                <span>{name}</span>
                <span class="faint">{category}</span>
                <span class="mono faint">"#"{index}</span>
            </button>
        </li>
    }
}

/// Method, positions, prompt, picture, run.
#[component]
pub fn Controls(state: State, samples: Vec<Picture>) -> impl IntoView {
    let form = state.form;
    let running = move || state.texts.with(|texts| texts.running);
    let ready = move || form.with(|form| !form.prompt.trim().is_empty() || form.picture.is_some());
    let methods = METHODS
        .into_iter()
        .map(|(method, name, about)| {
            view! {
                <label title=about>
                    <input
                        r#type="radio"
                        name="method"
                        value=name
                        checked=move || form.with(|form| form.method == method)
                        prop:checked=move || form.with(|form| form.method == method)
                        on:change=move |_| form.update(|form| form.method = method)
                    />
                    <span>{name}</span>
                </label>
            }
        })
        .collect_view();
    let positions = Positions::ALL
        .into_iter()
        .map(|positions| {
            view! {
                <option value=positions.as_str() selected=move || form.with(|form| form.positions == positions)>
                    {positions.as_str()}
                </option>
            }
        })
        .collect_view();
    let prompts = PROMPTS
        .into_iter()
        .map(|prompt| {
            view! {
                <button class="linklike" on:click=move |_| form.update(|form| form.prompt = prompt.into())>
                    {prompt}
                </button>
            }
        })
        .collect_view();
    let about = move || {
        let method = form.with(|form| method_name(form.method));
        METHODS.iter().find(|(_, name, _)| *name == method).map(|(.., about)| *about)
    };
    view! {
        <section class="steer-controls">
            <h2>"Change"</h2>
            <div class="field-row">
                <div class="switch radios" role="radiogroup" aria-label="Method">
                    {methods}
                </div>
                <label class="inline-field">
                    <span>"at"</span>
                    <select
                        aria-label="Positions"
                        prop:value=move || form.with(|form| form.positions.as_str())
                        on:change=move |event| {
                            if let Some(positions) = Positions::from_name(&event_target_value(&event)) {
                                form.update(|form| form.positions = positions);
                            }
                        }
                    >
                        {positions}
                    </select>
                    <span>"positions"</span>
                </label>
                <NumberField
                    name="tokens"
                    step="1"
                    range=(1.0, 256.0)
                    value=Signal::derive(move || form.with(|form| f64::from(form.tokens)))
                    on_change=move |value: f64| form.update(|form| form.tokens = value as u32)
                />
                <NumberField
                    name="temperature"
                    step="0.1"
                    range=(0.0, 2.0)
                    value=Signal::derive(move || form.with(|form| f64::from((form.temperature * 10.0).round()) / 10.0))
                    on_change=move |value: f64| form.update(|form| form.temperature = value as f32)
                />
                <NumberField
                    name="seed"
                    step="1"
                    range=(0.0, 4_294_967_295.0)
                    value=Signal::derive(move || form.with(|form| form.seed as f64))
                    on_change=move |value: f64| form.update(|form| form.seed = value as u64)
                />
            </div>
            <p class="faint caption">{about}</p>
            <h2>"Ask"</h2>
            <textarea
                rows="2"
                data-testid="steer-prompt"
                aria-label="Prompt"
                placeholder="Ask the model something"
                prop:value=move || form.with(|form| form.prompt.clone())
                on:input=move |event| form.update(|form| form.prompt = event_target_value(&event))
            >
                {form.with_untracked(|form| form.prompt.clone())}
            </textarea>
            <p class="prompts">{prompts}</p>
            <PictureChoice state samples />
            <div class="run-row">
                <button
                    class="button button-steer button-large"
                    data-testid="steer-run"
                    disabled=move || !ready() || running()
                    on:click=move |_| start(state)
                >
                    {move || if running() { "Running…" } else { "Run" }}
                </button>
                <button class="button" data-testid="steer-cancel" hidden=move || !running() on:click=move |_| cancel()>
                    "Cancel"
                </button>
                <span class="faint" hidden=ready>
                    "Write a prompt or choose a picture first."
                </span>
            </div>
        </section>
    }
}

#[component]
fn NumberField(
    name: &'static str,
    step: &'static str,
    range: (f64, f64),
    #[prop(into)] value: Signal<f64>,
    #[prop(into)] on_change: Callback<f64>,
) -> impl IntoView {
    view! {
        <label class="inline-field">
            <span>{name}</span>
            <input
                class="number-field mono"
                r#type="number"
                min=shortest(range.0)
                max=shortest(range.1)
                step=step
                value=shortest(value.get_untracked())
                prop:value=move || shortest(value.get())
                on:change=move |event| {
                    if let Some(number) = number(&event_target_value(&event)) {
                        // `clamp` would bring its message, and with it the code that writes floats.
                        on_change.run(number.max(range.0).min(range.1));
                    }
                }
            />
        </label>
    }
}

/// A sample picture with the prompt, or none.
#[component]
fn PictureChoice(state: State, samples: Vec<Picture>) -> impl IntoView {
    let form = state.form;
    let strip = samples
        .into_iter()
        .map(|sample| {
            let id = StoredValue::new(sample.id.clone());
            let is_chosen = move || form.with(|form| form.picture == Some(id.get_value()));
            let choose = move |_| {
                let next = (!is_chosen()).then(|| id.get_value());
                form.update(|form| form.picture = next);
            };
            view! {
                <button
                    class="sample"
                    data-testid="steer-sample"
                    data-picture=sample.id
                    aria-pressed=move || is_chosen().to_string()
                    title=sample.credit
                    on:click=choose
                >
                    <img src=sample.url alt=sample.caption width=sample.width height=sample.height loading="lazy" />
                </button>
            }
        })
        .collect_view();
    view! {
        <div class="samples" role="group" aria-label="Picture with the prompt, optional">
            {strip}
        </div>
    }
}
