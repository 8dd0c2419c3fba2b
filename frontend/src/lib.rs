//! The Leptos pages
