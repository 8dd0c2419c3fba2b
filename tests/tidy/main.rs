//! The rules that this project keeps, checked: each test names the rule and every place that breaks it.
#![allow(clippy::unwrap_used, clippy::expect_used)] // tests panic on purpose

mod dependencies;
mod files;
mod kernels;
mod licences;
