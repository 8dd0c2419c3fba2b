//! What surrounds every page: header, footer, keyboard help.

use crate::{app::use_current_source, browser, components::SearchField, links::source_path};
use leptos::{ev, html, prelude::*};
use leptos_router::hooks::{use_location, use_query_map};

/// Name, places, search, theme.
#[component]
pub fn Header() -> impl IntoView {
    let key = use_current_source();
    let path = use_location().pathname;
    let query = use_query_map();
    let links = move || {
        let key = key.get()?;
        let base = source_path(&key);
        let here = path.get();
        let is_feature = here.starts_with(&base) && !here.ends_with("/analyze") && !here.ends_with("/steer");
        let link = |href: String, name: &'static str, current: bool| {
            view! {
                <a href=href aria-current=current.then_some("page")>
                    {name}
                </a>
            }
        };
        Some(view! {
            {link(base.clone(), "Features", is_feature)}
            {link(format!("{base}/analyze"), "Analyze", here.ends_with("/analyze"))}
            {link(format!("{base}/steer"), "Steer", here.ends_with("/steer"))}
        })
    };
    let action = Signal::derive(move || key.get().map_or_else(String::new, |key| source_path(&key)));
    let value = Signal::derive(move || query.read().get("q").unwrap_or_default());
    // The pages with a search field of their own do without the header's.
    let own_field = move || has_search_field(&path.get());
    view! {
        <header class="top">
            <a class="brand" href="/" aria-label="LMM Scope, start page">
                <Mark />
                <span>"LMM Scope"</span>
            </a>
            <nav class="places" aria-label="Main">
                <Transition>{links}</Transition>
                <a href="/docs" aria-current=move || (path.get() == "/docs").then_some("page")>
                    "API"
                </a>
            </nav>
            <div class="top-search" class:top-search-off=own_field>
                <Transition>{move || (!own_field()).then(|| view! { <SearchField action value placeholder="Search features" /> })}</Transition>
            </div>
            <ThemeSwitch />
        </header>
    }
}

/// The landing page and the pages `/{model}/{source}`.
fn has_search_field(path: &str) -> bool {
    matches!(path.split('/').filter(|segment| !segment.is_empty()).count(), 0 | 2)
}

/// The sign: a patch grid with some light in it.
#[component]
fn Mark() -> impl IntoView {
    const LIGHT: [&str; 9] = [".16", ".3", ".16", ".3", "1", ".62", ".16", ".62", ".3"];
    let cells = LIGHT
        .into_iter()
        .enumerate()
        .map(|(cell, light)| {
            view! {
                <rect
                    x=(cell % 3 * 6).to_string()
                    y=(cell / 3 * 6).to_string()
                    width="5"
                    height="5"
                    rx="1.2"
                    opacity=light
                ></rect>
            }
        })
        .collect_view();
    view! {
        <svg class="brand-mark" viewBox="0 0 17 17" aria-hidden="true">
            {cells}
        </svg>
    }
}

/// Follows the system until told otherwise: auto, light, dark.
#[component]
fn ThemeSwitch() -> impl IntoView {
    let theme = RwSignal::new(String::new());
    Effect::new(move |_| theme.set(browser::theme()));
    let name = move || match theme.get().as_str() {
        "light" => "light",
        "dark" => "dark",
        _ => "auto",
    };
    let next = move |_| {
        let next = match theme.get_untracked().as_str() {
            "" => "light",
            "light" => "dark",
            _ => "",
        };
        browser::set_theme(next);
        theme.set(next.to_owned());
    };
    view! {
        <button
            class="theme"
            data-testid="theme-switch"
            aria-label=move || format!("Theme: {}. Change it.", name())
            title=move || format!("Theme: {}", name())
            on:click=next
        >
            <svg viewBox="0 0 16 16" aria-hidden="true">
                <circle cx="8" cy="8" r="6"></circle>
                <path d="M8 2a6 6 0 0 1 0 12z"></path>
            </svg>
            <span>{name}</span>
        </button>
    }
}

/// Where everything happens, and what this is.
#[component]
pub fn Footer() -> impl IntoView {
    view! {
        <footer class="foot">
            <p>
                "Pictures become hidden states on the server; hidden states become features on "<em>"your"</em>
                " GPU. Your own pictures are not stored."
            </p>
            <nav aria-label="More">
                <a href="/docs">"API"</a>
                <a href="/queue">"Queue"</a>
                <a href="/random" rel="nofollow">
                    "A random feature"
                </a>
                <a href="https://arxiv.org/abs/2411.14982" rel="external">
                    "The paper"
                </a>
                <button class="linklike help-open">"Keyboard "<kbd>"?"</kbd></button>
            </nav>
        </footer>
    }
}

/// The keys, in a dialog; also the page-wide `/` and `?`.
#[component]
pub fn Help() -> impl IntoView {
    let dialog = NodeRef::<html::Dialog>::new();
    let open = move || {
        if let Some(dialog) = dialog.get_untracked().filter(|dialog| !dialog.open()) {
            // A dialog that cannot open (it is not in the document) needs no message.
            _ = dialog.show_modal();
        }
    };
    Effect::new(move |_| {
        let keys = window_event_listener(ev::keydown, move |event| {
            if browser::is_typing(&event) {
                return;
            }
            match event.key().as_str() {
                "/" if browser::focus_search() => event.prevent_default(),
                "?" => open(),
                _ => {}
            }
        });
        let clicks = window_event_listener(ev::click, move |event| {
            let target =
                event.target().and_then(|target| wasm_bindgen::JsCast::dyn_into::<web_sys::Element>(target).ok());
            if target.is_some_and(|element| element.closest(".help-open").ok().flatten().is_some()) {
                open();
            }
        });
        on_cleanup(move || {
            keys.remove();
            clicks.remove();
        });
    });
    let keys = [
        ("/", "search"),
        ("j  k", "next, previous feature"),
        ("← ↑ ↓ →", "move from patch to patch"),
        ("Enter", "pick the patch"),
        ("Esc", "let go of what is picked"),
        ("?", "this list"),
    ];
    let rows = keys
        .into_iter()
        .map(|(key, meaning)| {
            view! {
                <div>
                    <dt>
                        <kbd>{key}</kbd>
                    </dt>
                    <dd>{meaning}</dd>
                </div>
            }
        })
        .collect_view();
    view! {
        <dialog class="help" node_ref=dialog aria-labelledby="help-title">
            <h2 id="help-title">"Keyboard"</h2>
            <dl>{rows}</dl>
            <form method="dialog">
                <button class="button">"Close"</button>
            </form>
        </dialog>
    }
}
