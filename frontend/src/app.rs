//! The document, the router, and what every page shares.
//!
//! The server provides through the Leptos context: [`SiteAssets`], an `Arc<dyn Client>` ([`crate::api::Client`]), and
//! optionally [`PageStatus`]. [`crate::render::render_page`] does all of it.

use crate::{
    api::{Answer, Fetched, SourceKey, endpoint},
    components::{Erase, Footer, Header, Help},
    pages::{
        AnalyzePage, DocsPage, FeaturePage, LandingPage, NotFoundPage, QueuePage, RandomPage, SourcePage, SteerPage,
    },
};
use api::Source;
use leptos::prelude::*;
use leptos_meta::{Meta, MetaTags, Title, provide_meta_context};
use leptos_router::{
    SsrMode,
    components::{FlatRoutes, Route, Router},
    hooks::use_location,
    path,
};
use serde::{Deserialize, Serialize};
use std::sync::{
    Arc,
    atomic::{AtomicU16, Ordering},
};

/// Addresses of the built bundles. The serde names are those of `site.json`, which the bundler writes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SiteAssets {
    #[serde(rename = "page")]
    pub page_js: String,
    #[serde(rename = "pageWasm")]
    pub page_wasm: String,
    #[serde(rename = "worker")]
    pub worker_js: String,
    #[serde(rename = "workerWasm")]
    pub worker_wasm: String,
    pub style: String,
}

/// Element of the document that tells the browser the same addresses.
const ASSETS_ID: &str = "site-assets";

impl SiteAssets {
    /// Read back from the document that [`shell`] wrote.
    pub fn from_document() -> Option<Self> {
        let json = document().get_element_by_id(ASSETS_ID)?.text_content()?;
        serde_json::from_str(&json).ok()
    }
}

/// HTTP status of the page being rendered; a page that does not find its thing sets it.
#[derive(Debug, Clone)]
pub struct PageStatus(Arc<AtomicU16>);

impl Default for PageStatus {
    fn default() -> Self {
        Self(Arc::new(AtomicU16::new(200)))
    }
}

impl PageStatus {
    pub fn get(&self) -> u16 {
        self.0.load(Ordering::Relaxed)
    }

    pub fn set(&self, status: u16) {
        self.0.store(status, Ordering::Relaxed);
    }
}

/// The sources this server holds, fetched once.
#[derive(Clone, Copy)]
pub struct Sources(pub Fetched<Vec<Source>>);

/// The source a page without one in its address means: the first.
pub fn default_source(sources: &Answer<Vec<Source>>) -> Option<SourceKey> {
    sources.as_ref().ok()?.first().map(SourceKey::from)
}

/// The source an address is about, if it names one.
pub fn source_from_path(path: &str) -> Option<SourceKey> {
    let mut segments = path.split('/').filter(|segment| !segment.is_empty());
    Some(SourceKey::new(segments.next()?, segments.next()?))
}

/// Before anything is painted: the remembered theme, and a mark that scripts run.
const EARLY_SCRIPT: &str = "(function(r){r.classList.add('js');try{var t=localStorage.getItem('theme');\
    if(t==='light'||t==='dark')r.dataset.theme=t}catch(e){}})(document.documentElement)";

fn hydration_script(assets: &SiteAssets) -> String {
    let SiteAssets { page_js, page_wasm, .. } = assets;
    format!("import init,{{hydrate}} from {page_js:?};init({{module_or_path:{page_wasm:?}}}).then(()=>hydrate())")
}

/// The whole HTML document, for the server.
pub fn shell() -> impl IntoView {
    let assets = use_context::<SiteAssets>().unwrap_or_default();
    // `<` would end the script element early.
    let json = serde_json::to_string(&assets).unwrap_or_default().replace('<', "\\u003c");
    let script = hydration_script(&assets);
    view! {
        <!DOCTYPE html>
        <html lang="en">
            <head>
                <meta charset="utf-8" />
                <meta name="viewport" content="width=device-width, initial-scale=1" />
                <meta name="color-scheme" content="light dark" />
                <script inner_html=EARLY_SCRIPT></script>
                <link rel="preload" href="/assets/fonts/inter.woff2" r#as="font" r#type="font/woff2" crossorigin="" />
                <link rel="stylesheet" href=assets.style.clone() />
                <link rel="icon" href="/favicon.svg" r#type="image/svg+xml" />
                <link rel="modulepreload" href=assets.page_js.clone() />
                <link
                    rel="preload"
                    href=assets.page_wasm.clone()
                    r#as="fetch"
                    r#type="application/wasm"
                    crossorigin=""
                />
                <script id=ASSETS_ID r#type="application/json" inner_html=json></script>
                <script r#type="module" inner_html=script></script>
                <MetaTags />
            </head>
            <body>
                <App />
            </body>
        </html>
    }
}

/// Header, page, footer.
#[component]
pub fn App() -> impl IntoView {
    provide_meta_context();
    provide_context(Sources(Fetched::new(endpoint::sources)));
    view! {
        <Title formatter=|title: String| {
            if title.is_empty() { "LMM Scope".to_owned() } else { format!("{title} · LMM Scope") }
        } />
        <Meta property="og:site_name" content="LMM Scope" />
        <Router>
            <a class="skip" href="#main">
                "Skip to the content"
            </a>
            <Header />
            <main id="main" tabindex="-1">
                <FlatRoutes fallback=|| NotFoundPage().erased()>
                    <Route path=path!("/") view=|| LandingPage().erased() ssr=SsrMode::Async />
                    <Route path=path!("/random") view=|| RandomPage().erased() ssr=SsrMode::Async />
                    <Route path=path!("/docs") view=|| DocsPage().erased() ssr=SsrMode::Async />
                    <Route path=path!("/queue") view=|| QueuePage().erased() ssr=SsrMode::Async />
                    <Route path=path!("/:model/:source") view=|| SourcePage().erased() ssr=SsrMode::Async />
                    <Route path=path!("/:model/:source/analyze") view=|| AnalyzePage().erased() ssr=SsrMode::Async />
                    <Route path=path!("/:model/:source/steer") view=|| SteerPage().erased() ssr=SsrMode::Async />
                    <Route path=path!("/:model/:source/:index") view=|| FeaturePage().erased() ssr=SsrMode::Async />
                </FlatRoutes>
            </main>
            <Footer />
            <Help />
        </Router>
    }
}

/// The source of the page on the screen, or the default one. Read it inside a `Suspense`.
pub fn use_current_source() -> Signal<Option<SourceKey>> {
    let path = use_location().pathname;
    let sources = use_context::<Sources>();
    Signal::derive(move || {
        source_from_path(&path.get()).or_else(|| default_source(&sources?.0.get().unwrap_or(Ok(Vec::new()))))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_assets_file_of_the_bundler_is_read_as_it_stands() {
        let json = r#"{"page":"/assets/page-1/page.js","pageWasm":"/assets/page-1/page_bg.wasm",
            "worker":"/assets/worker-2/worker.js","workerWasm":"/assets/worker-2/worker_bg.wasm","style":"/assets/s.css"}"#;
        let assets: Option<SiteAssets> = serde_json::from_str(json).ok();
        assert_eq!(assets.map(|assets| assets.worker_js).as_deref(), Some("/assets/worker-2/worker.js"));
    }

    #[test]
    fn an_address_names_its_source() {
        assert_eq!(source_from_path("/pocket/3-res-3k/17"), Some(SourceKey::new("pocket", "3-res-3k")));
        assert_eq!(source_from_path("/docs"), None);
        assert_eq!(source_from_path("/"), None);
    }
}
