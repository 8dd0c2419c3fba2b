//! `/random`: on to a living, labelled feature.

use crate::{
    api::{Endpoint, Fetched, client, local_problem},
    app::{Sources, default_source},
    components::{Load, Skeleton},
    links::feature_path,
};
use api::{ErrorCode, FeatureSummary};
use leptos::prelude::*;
use leptos_meta::{Meta, Title};
use leptos_router::{NavigateOptions, components::Redirect};

#[component]
pub fn RandomPage() -> impl IntoView {
    let client = client();
    let sources = expect_context::<Sources>().0;
    let feature = Fetched::<FeatureSummary>::composed(String::new, move |_| {
        let client = client.clone();
        Box::pin(async move {
            let sources = sources.wait().await;
            match default_source(&sources) {
                Some(key) => client.get(Endpoint::Random(key)).await,
                None => Err(sources.err().unwrap_or_else(|| {
                    local_problem(ErrorCode::NotFound, "No features yet", "This server holds no source.")
                })),
            }
        })
    });
    let go = |feature: FeatureSummary| {
        let path = feature_path(&(&feature).into(), feature.index);
        // Going back must not lead here again, and on to another feature.
        let options = NavigateOptions { replace: true, ..NavigateOptions::default() };
        view! { <Redirect path options /> }
    };
    view! {
        <Title text="A random feature" />
        <Meta name="robots" content="noindex" />
        <Load resource=feature waiting=|| view! { <Skeleton shape="feature" /> } view=go />
    }
}
