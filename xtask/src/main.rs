//! The project's own build steps, so that a clone needs nothing but Rust and `make`.
//!
//! `cargo xtask bundle` builds what the browser loads; `cargo xtask setup` gets a machine ready for the tests;
//! `cargo xtask reproduce-pocket` walks from pictures to scores on the demo.

mod bundle;
mod paths;
mod process;
mod reproduce;
mod setup;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "xtask", about = "Build steps of LMM Scope")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build both browser bundles, the style sheet and `site.json` into the target folder's `site/`.
    Bundle,
    /// Install what is missing on this machine: the wasm target and, for the tests, nextest, Chromium, a software
    /// Vulkan driver and a local S3 server.
    Setup {
        /// Only what `make demo` needs.
        #[arg(long)]
        demo: bool,
    },
    /// Walk from pictures to scores on the demo with the built `lmm-scope`, and write what it took into
    /// docs/reproduce.md.
    ReproducePocket,
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Bundle => bundle::run(),
        Command::Setup { demo } => setup::run(demo),
        Command::ReproducePocket => reproduce::run(),
    }
}
