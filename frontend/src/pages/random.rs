//! `/random`: on to a living, labelled feature.

use crate::{
    api::{client, local_problem},
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
    let sources = expect_context::<Sources>();
    let feature = Resource::new(
        || (),
        move |()| {
            let client = client.clone();
            async move {
                let sources = sources.0.await;
                match default_source(&sources) {
                    Some(key) => client.random(key).await,
                    None => Err(sources.err().unwrap_or_else(|| {
                        local_problem(ErrorCode::NotFound, "No features yet", "This server holds no source.")
                    })),
                }
            }
        },
    );
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
