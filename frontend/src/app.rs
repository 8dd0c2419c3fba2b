//! The document, the router, and what every page shares.
//!
//! The server provides through the Leptos context: [`SiteAssets`], an `Arc<dyn Client>` ([`crate::api::Client`]), and
//! optionally [`PageStatus`]. [`crate::render::render_page`] does all of it.

use crate::{
    api::{Answer, Fetched, SourceKey, endpoint},
    components::{Footer, Header, Help},
    pages,
};
use api::Source;
use leptos::prelude::*;
use leptos_meta::{Meta, MetaTags, Title, provide_meta_context};
use leptos_router::{
    SsrMode,
    components::{FlatRoutes, Route, Router},
    hooks::use_location,
    location::RequestUrl,
    path,
};
use serde::{Deserialize, Serialize};
use std::sync::{
    Arc,
    atomic::{AtomicU16, Ordering},
};

/// A bundle's JavaScript module and its wasm.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bundle {
    pub js: String,
    pub wasm: String,
}

/// Addresses of the built bundles, as `site.json` has them, which the bundler writes. Which pages are in which bundle
/// says [`crate::pages`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SiteAssets {
    pub browse: Bundle,
    pub analyze: Bundle,
    pub steer: Bundle,
    pub worker: Bundle,
    pub style: String,
}

impl SiteAssets {
    /// The bundle that the page at `path` lives in.
    pub fn page(&self, path: &str) -> &Bundle {
        match path.split('/').filter(|segment| !segment.is_empty()).collect::<Vec<_>>()[..] {
            [_, _, "analyze"] => &self.analyze,
            [_, _, "steer"] | ["queue"] => &self.steer,
            _ => &self.browse,
        }
    }
}

/// Where the document says, in its root element, that the worker's module is (`data-worker`).
pub fn worker_address() -> Option<String> {
    document().document_element()?.get_attribute("data-worker")
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

fn hydration_script(Bundle { js, wasm }: &Bundle) -> String {
    format!("import init,{{hydrate}} from {js:?};init({{module_or_path:{wasm:?}}}).then(()=>hydrate())")
}

/// The whole HTML document, for the server.
pub fn shell() -> impl IntoView {
    let assets = use_context::<SiteAssets>().unwrap_or_default();
    let address = use_context::<RequestUrl>().map(|url| url.as_ref().to_owned()).unwrap_or_default();
    let bundle = assets.page(address.split(['?', '#']).next().unwrap_or_default()).clone();
    let script = hydration_script(&bundle);
    view! {
        <!DOCTYPE html>
        <html lang="en" data-worker=assets.worker.js.clone()>
            <head>
                <meta charset="utf-8" />
                <meta name="viewport" content="width=device-width, initial-scale=1" />
                <meta name="color-scheme" content="light dark" />
                <script inner_html=EARLY_SCRIPT></script>
                <link rel="preload" href="/assets/fonts/inter.woff2" r#as="font" r#type="font/woff2" crossorigin="" />
                <link rel="stylesheet" href=assets.style.clone() />
                <link rel="icon" href="/favicon.svg" r#type="image/svg+xml" />
                <link rel="modulepreload" href=bundle.js.clone() />
                <link
                    rel="preload"
                    href=bundle.wasm.clone()
                    r#as="fetch"
                    r#type="application/wasm"
                    crossorigin=""
                />
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
                <FlatRoutes fallback=pages::not_found>
                    <Route path=path!("/") view=pages::landing ssr=SsrMode::Async />
                    <Route path=path!("/random") view=pages::random ssr=SsrMode::Async />
                    <Route path=path!("/docs") view=pages::docs ssr=SsrMode::Async />
                    <Route path=path!("/queue") view=pages::queue ssr=SsrMode::Async />
                    <Route path=path!("/:model/:source") view=pages::source ssr=SsrMode::Async />
                    <Route path=path!("/:model/:source/analyze") view=pages::analyze ssr=SsrMode::Async />
                    <Route path=path!("/:model/:source/steer") view=pages::steer ssr=SsrMode::Async />
                    <Route path=path!("/:model/:source/:index") view=pages::feature ssr=SsrMode::Async />
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
        let bundle =
            |name: &str| format!(r#"{{"js":"/assets/{name}-1/{name}.js","wasm":"/assets/{name}-1/{name}.wasm"}}"#);
        let [browse, analyze, steer, worker] = ["browse", "analyze", "steer", "worker"].map(bundle);
        let json = format!(
            r#"{{"browse":{browse},"analyze":{analyze},"steer":{steer},"worker":{worker},"style":"/assets/s.css"}}"#
        );
        let assets: Option<SiteAssets> = serde_json::from_str(&json).ok();
        let js = |path| assets.as_ref().map(|assets| assets.page(path).js.as_str());
        assert_eq!(js("/"), Some("/assets/browse-1/browse.js"));
        assert_eq!(js("/pocket/3-res-3k/17"), Some("/assets/browse-1/browse.js"));
        assert_eq!(js("/pocket/3-res-3k/analyze"), Some("/assets/analyze-1/analyze.js"));
        assert_eq!(js("/pocket/3-res-3k/steer/"), Some("/assets/steer-1/steer.js"));
        assert_eq!(js("/queue"), js("/pocket/3-res-3k/steer"));
    }

    #[test]
    fn an_address_names_its_source() {
        assert_eq!(source_from_path("/pocket/3-res-3k/17"), Some(SourceKey::new("pocket", "3-res-3k")));
        assert_eq!(source_from_path("/docs"), None);
        assert_eq!(source_from_path("/"), None);
    }
}
