//! Controls whose state is an address: they work as plain links and forms, and without a reload when scripts run.

use super::Erase;
use crate::browser;
use leptos::{html, prelude::*};

/// One choice of a switch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    pub name: String,
    pub href: String,
    pub current: bool,
    /// What it shows, for the tooltip.
    pub about: &'static str,
}

/// A row of links of which one is current.
#[component]
pub fn Switch(label: &'static str, #[prop(into)] choices: Signal<Vec<Choice>>) -> impl IntoView {
    let links = move || {
        choices
            .get()
            .into_iter()
            .map(|choice| {
                view! {
                    <a
                        href=choice.href
                        title=choice.about
                        aria-current=choice.current.then_some("true")
                        data-noscroll=""
                        data-choice=choice.name.clone()
                    >
                        {choice.name.clone()}
                    </a>
                }
            })
            .collect_view()
    };
    view! {
        <nav class="switch" aria-label=label>
            {links}
        </nav>
    }
}

/// How a heat map is drawn.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum View {
    /// The rest of the picture steps back.
    #[default]
    Dim,
    /// The picture stays as it is, warm light lies on the lit patches.
    Highlight,
    /// Only a line around the patches of at least half the maximum.
    Outline,
}

impl View {
    pub const ALL: [Self; 3] = [Self::Dim, Self::Highlight, Self::Outline];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Dim => "dim",
            Self::Highlight => "highlight",
            Self::Outline => "outline",
        }
    }

    pub fn about(self) -> &'static str {
        match self {
            Self::Dim => "the rest of the picture steps back",
            Self::Highlight => "warm light on the whole picture",
            Self::Outline => "a line around the patches of at least half the maximum",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|view| view.as_str() == name)
    }
}

/// The search field: a plain GET form to the source page, and live where `on_input` and `on_submit` are given.
#[component]
pub fn SearchField(
    #[prop(into)] action: Signal<String>,
    #[prop(into)] value: Signal<String>,
    #[prop(optional, into)] on_input: Option<Callback<String>>,
    #[prop(optional, into)] on_submit: Option<Callback<String>>,
    #[prop(default = "Search labels, or a number")] placeholder: &'static str,
    /// Hidden fields: what else the form asks for when there are no scripts.
    #[prop(optional)]
    children: Option<Children>,
) -> impl IntoView {
    let field = NodeRef::<html::Input>::new();
    let submit = move |event: web_sys::SubmitEvent| {
        if let (Some(on_submit), Some(field)) = (on_submit, field.get_untracked()) {
            event.prevent_default();
            on_submit.run(field.value());
        }
    };
    // While somebody types, the field is ahead of the address: it is left alone.
    let shown = move || {
        let value = value.get();
        field.get_untracked().filter(|field| browser::has_focus(field)).map_or(value, |field| field.value())
    };
    view! {
        <form class="search" role="search" method="get" action=move || action.get() on:submit=submit>
            <svg viewBox="0 0 16 16" aria-hidden="true">
                <circle cx="7" cy="7" r="4.5"></circle>
                <path d="M10.5 10.5 14 14"></path>
            </svg>
            <input
                r#type="search"
                name="q"
                data-testid="search-input"
                aria-label="Search features"
                placeholder=placeholder
                autocomplete="off"
                spellcheck="false"
                value=value.get_untracked()
                node_ref=field
                prop:value=shown
                on:input=move |event| {
                    if let Some(on_input) = on_input {
                        on_input.run(event_target_value(&event));
                    }
                }
            />
            <kbd aria-hidden="true">"/"</kbd>
            {children.map(|children| children())}
        </form>
    }
}

/// A drop-down list whose first entry, if named, means "no filter".
#[component]
pub fn Picker(
    name: &'static str,
    any: &'static str,
    options: Vec<(&'static str, &'static str)>,
    value: Signal<String>,
    on_change: Callback<web_sys::Event>,
) -> impl IntoView {
    let first = (!any.is_empty()).then_some(("", any));
    let options = first
        .into_iter()
        .chain(options)
        .map(|(option, text)| {
            view! {
                <option value=option selected=move || value.get() == option>
                    {text}
                </option>
            }
        })
        .collect_view();
    let label = if name == "minScore" { "least score" } else { name };
    view! {
        <select
            name=name
            aria-label=label
            class:chosen=move || !any.is_empty() && !value.get().is_empty()
            prop:value=move || value.get()
            on:change=move |event| on_change.run(event)
        >
            {options}
        </select>
    }
}

/// Pages of a list, as links.
#[component]
pub fn Pager(
    page: u32,
    pages: u32,
    /// Address of page n (0-based).
    href: impl Fn(u32) -> String + Send + 'static,
) -> impl IntoView {
    if pages <= 1 {
        return ().erased();
    }
    let numbers = page_numbers(page, pages)
        .into_iter()
        .map(|number| match number {
            Some(number) => view! {
                <a href=href(number) aria-current=(number == page).then_some("page")>
                    {number + 1}
                </a>
            }
            .erased(),
            None => view! { <span aria-hidden="true">"…"</span> }.erased(),
        })
        .collect_view();
    let previous = page.checked_sub(1).map(|page| view! { <a href=href(page) rel="prev">"← Previous"</a> });
    let next = (page + 1 < pages).then(|| view! { <a href=href(page + 1) rel="next">"Next →"</a> });
    view! {
        <nav class="pager" aria-label="Pages">
            <span class="pager-end">{previous}</span>
            <span class="pager-numbers mono">{numbers}</span>
            <span class="pager-end">{next}</span>
        </nav>
    }
    .erased()
}

/// First, last and the neighbours of the current page; `None` is a gap.
fn page_numbers(page: u32, pages: u32) -> Vec<Option<u32>> {
    let mut shown = Vec::new();
    let mut last = None;
    for number in (0..pages).filter(|number| *number == 0 || number + 1 == pages || number.abs_diff(page) <= 1) {
        if last.is_some_and(|last| number > last + 1) {
            shown.push(None);
        }
        shown.push(Some(number));
        last = Some(number);
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn far_pages_are_left_out() {
        let shown = |page, pages| page_numbers(page, pages);
        assert_eq!(shown(0, 3), [Some(0), Some(1), Some(2)]);
        assert_eq!(shown(5, 20), [Some(0), None, Some(4), Some(5), Some(6), None, Some(19)]);
        assert_eq!(shown(19, 20), [Some(0), None, Some(18), Some(19)]);
    }

    #[test]
    fn views_have_names() {
        assert!(View::ALL.into_iter().all(|view| View::from_name(view.as_str()) == Some(view)));
        assert_eq!(View::from_name("blink"), None);
    }
}
