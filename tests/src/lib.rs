//! What browser journeys stand on: the real server ([`server`]), what it says ([`demo`]), and Chromium ([`browser`]).
//! A journey is one closure given to [`journey::journey`].

pub mod browser;
pub mod demo;
pub mod http;
pub mod journey;
pub mod page;
pub mod server;

use anyhow::Context;
use std::{
    net::TcpListener,
    path::{Path, PathBuf},
};

/// The repository's root.
pub fn root() -> &'static Path {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest)
}

/// Cargo's target folder, from where this program lies in it (`target/debug/deps/…`, `target/debug/examples/…`).
pub fn target() -> anyhow::Result<PathBuf> {
    let program = std::env::current_exe()?;
    let target = program.ancestors().nth(3).with_context(|| format!("{} is in no target folder", program.display()))?;
    Ok(target.to_owned())
}

/// Where pictures of failed journeys go.
pub fn screenshots() -> anyhow::Result<PathBuf> {
    let folder = target()?.join("screenshots");
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    Ok(folder)
}

/// A port that was free a moment ago.
pub fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0").context("no free port")?.local_addr()?.port())
}
