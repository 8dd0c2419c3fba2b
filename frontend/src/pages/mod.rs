//! One module per address: params → resource → view.
//!
//! The browser gets one of three bundles, each with its own pages (the features `browse`, `analyze` and `steer`); the
//! server has all pages. The queue travels with steer, where there is room. A page that is not in the bundle at hand is `elsewhere`.

#[cfg(any(feature = "ssr", feature = "analyze"))]
mod analyze;
#[cfg(any(feature = "ssr", feature = "browse"))]
mod docs;
#[cfg(not(feature = "ssr"))]
mod elsewhere;
#[cfg(any(feature = "ssr", feature = "browse"))]
mod feature;
#[cfg(any(feature = "ssr", feature = "browse"))]
mod landing;
mod not_found;
#[cfg(any(feature = "ssr", feature = "steer"))]
mod queue;
#[cfg(any(feature = "ssr", feature = "browse"))]
mod random;
#[cfg(any(feature = "ssr", feature = "browse"))]
mod source;
#[cfg(any(feature = "ssr", feature = "steer"))]
mod steer;

use crate::{api::SourceKey, components::Erase};
use leptos::prelude::*;
use leptos_router::hooks::use_params_map;

/// The view functions of a bundle's pages, or of the way to them.
macro_rules! pages {
    ($($bundle:literal: $($name:ident = $page:path),+;)+) => {$($(
        pub fn $name() -> AnyView {
            #[cfg(any(feature = "ssr", feature = $bundle))]
            return $page().erased();
            #[cfg(not(any(feature = "ssr", feature = $bundle)))]
            return elsewhere::elsewhere();
        }
    )+)+};
}

pages! {
    "browse": landing = landing::LandingPage, random = random::RandomPage, docs = docs::DocsPage,
        source = source::SourcePage, feature = feature::FeaturePage;
    "analyze": analyze = analyze::AnalyzePage;
    "steer": steer = steer::SteerPage, queue = queue::QueuePage;
}

pub fn not_found() -> AnyView {
    not_found::NotFoundPage().erased()
}

/// `{model}/{source}` of the address.
fn use_source_key() -> Memo<SourceKey> {
    let params = use_params_map();
    Memo::new(move |_| {
        let params = params.read();
        SourceKey::new(params.get("model").unwrap_or_default(), params.get("source").unwrap_or_default())
    })
}
