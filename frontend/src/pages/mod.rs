//! One module per address: params → resource → view.

mod analyze;
mod docs;
mod feature;
mod landing;
mod not_found;
mod queue;
mod random;
mod source;
mod steer;

pub use analyze::AnalyzePage;
pub use docs::DocsPage;
pub use feature::FeaturePage;
pub use landing::LandingPage;
pub use not_found::NotFoundPage;
pub use queue::QueuePage;
pub use random::RandomPage;
pub use source::SourcePage;
pub use steer::SteerPage;

use crate::api::SourceKey;
use leptos::prelude::*;
use leptos_router::hooks::use_params_map;

/// `{model}/{source}` of the address.
fn use_source_key() -> Memo<SourceKey> {
    let params = use_params_map();
    Memo::new(move |_| {
        let params = params.read();
        SourceKey::new(params.get("model").unwrap_or_default(), params.get("source").unwrap_or_default())
    })
}
