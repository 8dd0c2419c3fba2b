//! Rendering a page to HTML on the server, whole: data first, so that it reads well without scripts.

use crate::{
    api::Client,
    app::{PageStatus, SiteAssets, shell},
};
use futures::StreamExt;
use hydration_context::{SharedContext, SsrSharedContext};
use leptos::{prelude::*, reactive::computed::ScopedFuture};
use leptos_meta::ServerMetaContext;
use leptos_router::{components::provide_server_redirect, location::RequestUrl};
use std::sync::{Arc, Mutex};

/// A page, ready to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    pub status: u16,
    /// Where to go instead, when the page redirects.
    pub location: Option<String>,
    pub html: String,
}

/// Call once before the first [`render_page`], inside the Tokio runtime.
pub fn init() {
    // A second call finds the executor in place already.
    _ = any_spawner::Executor::init_tokio();
}

/// Renders the page at `path_and_query` (`/pocket/3-res-3k?q=dog`).
pub async fn render_page(path_and_query: &str, client: Arc<dyn Client>, assets: SiteAssets) -> Rendered {
    let context = Arc::new(SsrSharedContext::new()) as Arc<dyn SharedContext + Send + Sync>;
    let owner = Owner::new_root(Some(Arc::clone(&context)));
    let (meta, meta_output) = ServerMetaContext::new();
    let status = PageStatus::default();
    let location: Arc<Mutex<Option<String>>> = Arc::default();

    let app = owner.with(|| {
        provide_context(RequestUrl::new(path_and_query));
        provide_context(meta);
        provide_context(client);
        provide_context(assets);
        provide_context(status.clone());
        let location = Arc::clone(&location);
        provide_server_redirect(move |target| {
            *location.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(target.to_owned());
        });
        shell().to_html_stream_in_order()
    });
    // Suspended parts of the page look up their context when they are polled, on whatever thread that is.
    let html = ScopedFuture { owner: owner.clone(), observer: None, fut: app.collect::<String>() }.await;
    while let Some(deferred) = context.await_deferred() {
        deferred.await;
    }
    let scripts = match context.pending_data() {
        Some(data) => data.map(|chunk| format!("<script>{chunk}</script>")).collect::<String>().await,
        None => String::new(),
    };
    let page = futures::stream::iter([html, scripts]);
    let html = meta_output.inject_meta_context(page).await.collect::<String>().await;
    owner.unset_with_forced_cleanup();
    let location = location.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
    Rendered { status: if location.is_some() { 307 } else { status.get() }, location, html }
}
