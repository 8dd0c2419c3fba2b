//! The server from outside: every route, good and bad input, in-process on a tiny random model.
#![allow(clippy::unwrap_used, clippy::expect_used)] // tests panic on purpose

mod attribute;
mod binary;
mod common;
mod encode;
mod engine;
mod extract;
mod jobs;
mod pages;
mod read;
mod refused;
mod remote;
mod shards;
mod standalone;
mod steer;
mod steerer;
