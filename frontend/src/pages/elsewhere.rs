//! The way to a page of another bundle.

use crate::components::{Erase, Skeleton};
use leptos::prelude::*;
use leptos_router::hooks::use_location;
use std::time::Duration;

/// The router changes the address after the view is made.
const TRY_AGAIN: Duration = Duration::from_millis(5);

/// Loads the document that the address names, with the bundle that its page lives in.
pub fn elsewhere() -> AnyView {
    let path = use_location().pathname;
    Effect::new(move |_| load(path.get_untracked()));
    view! { <Skeleton shape="picture" /> }.erased()
}

fn load(path: String) {
    let location = window().location();
    if location.pathname().is_ok_and(|shown| shown == path) {
        // What it says in the error is that the page is going away already.
        drop(location.reload());
    } else {
        set_timeout(move || load(path), TRY_AGAIN);
    }
}
