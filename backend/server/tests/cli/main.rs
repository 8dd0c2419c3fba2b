//! The experiments' commands from outside: what they write, and what they say about input that is wrong.
#![allow(clippy::unwrap_used, clippy::expect_used)] // tests panic on purpose

mod cache;
mod cache_killed;
mod common;
mod contracts;
mod damaged;
mod exchange;
mod flags;
mod index;
mod map;
mod memory;
mod objects;
mod quantize;
mod queue;
mod score;
mod train_sae;
