//! An address that leads nowhere.

use crate::app::PageStatus;
use leptos::prelude::*;
use leptos_meta::Title;

#[component]
pub fn NotFoundPage() -> impl IntoView {
    if let Some(status) = use_context::<PageStatus>() {
        status.set(404);
    }
    view! {
        <Title text="Not found" />
        <article class="prose not-found" data-testid="not-found">
            <h1>"There is nothing at this address"</h1>
            <p>
                "A feature lives at "<span class="mono">"/{model}/{source}/{index}"</span>
                ", for example "<span class="mono">"/pocket/3-res-3k/17"</span>"."
            </p>
            <p>
                <a href="/">"Start page"</a>
                " · "
                <a href="/random">"A random feature"</a>
                " · "
                <a href="/docs">"API"</a>
            </p>
        </article>
    }
}
