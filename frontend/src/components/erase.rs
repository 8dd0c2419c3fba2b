//! Erased views keep the page's bundle small.

#[cfg(not(feature = "ssr"))]
use super::at_once::AtOnce;
use leptos::prelude::*;

/// Every view, erased.
pub trait Erase {
    /// Forgets the view's type: its parents are compiled once for all views, not once for each.
    fn erased(self) -> AnyView;
}

impl<V: IntoView> Erase for V {
    #[cfg(not(feature = "ssr"))]
    fn erased(self) -> AnyView {
        AtOnce(self).into_any()
    }

    // The server's markup is the same without the wrapper.
    #[cfg(feature = "ssr")]
    fn erased(self) -> AnyView {
        self.into_any()
    }
}
