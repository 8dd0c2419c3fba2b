//! `cargo xtask bundle`: everything that the browser loads, in content-hashed files, into the target's `site/`.
//!
//! 1. each wasm crate by its own cargo build ([`wasm`]), so that features are not unified between the bundles;
//! 2. wasm-bindgen as a library writes the JavaScript beside the wasm ([`wasm`]); both are made smaller ([`shrink`]);
//! 3. folders are named after their content ([`hash`]), so that the server may let browsers keep them for ever;
//! 4. style sheet and fonts ([`style`]);
//! 5. `.br` and `.gz` siblings, sizes, budgets ([`sizes`]);
//! 6. `site.json` ([`site`]) names it all; it is written last.
//!
//! What did not change is not made again: cargo's wasm is compared by its hash with the one bundled before.

mod hash;
mod shrink;
mod site;
mod sizes;
mod style;
mod wasm;

use crate::paths;
use anyhow::Context;
use site::{Built, Site};
use std::{fs, path::Path, time::Instant};

/// One wasm crate and how it becomes a bundle.
struct Bundle {
    /// Name of the files: `{name}.js`, `{name}_bg.wasm`.
    name: &'static str,
    package: &'static str,
    /// Cargo profile, see the root `Cargo.toml`.
    profile: &'static str,
    /// Features instead of the default ones.
    features: Option<&'static str>,
    /// Does the JavaScript start itself? A page calls the exported functions, a worker has nobody to do so.
    starts_itself: bool,
    /// Largest allowed size in bytes after brotli, JavaScript and wasm together.
    budget: u64,
}

/// What a page may weigh; what all three share are Leptos and the router.
const PAGE_BUDGET: u64 = 250 * 1024;

const fn page(name: &'static str, features: &'static str) -> Bundle {
    Bundle {
        name,
        package: "frontend",
        profile: "wasm-page",
        features: Some(features),
        starts_itself: false,
        budget: PAGE_BUDGET,
    }
}

/// A page's address decides which one it gets: `frontend::app::SiteAssets`.
const PAGES: [Bundle; 3] =
    [page("browse", "hydrate,browse"), page("analyze", "hydrate,analyze"), page("steer", "hydrate,steer")];

const WORKER: Bundle = Bundle {
    name: "worker",
    package: "gpu-worker",
    profile: "wasm-worker",
    features: None,
    starts_itself: true,
    budget: 150 * 1024,
};

pub fn run() -> anyhow::Result<()> {
    let begun = Instant::now();
    let out = paths::site();
    fs::create_dir_all(&out).with_context(|| format!("cannot create {}", out.display()))?;
    let before = site::read_state(&out);

    let mut built = site::State::new();
    for bundle in PAGES.iter().chain([&WORKER]) {
        built.insert(bundle.name.to_owned(), build(bundle, before.get(bundle.name), &out)?);
    }
    let style = style::build(&out)?;
    style::copy_fonts(&out)?;

    let site = Site::new(&built, &style);
    site::write(&out, &site, &built)?;
    site::remove_stale(&out, &site)?;
    println!("site ready in {:.1} s", begun.elapsed().as_secs_f32());
    Ok(())
}

/// Builds one bundle, or keeps the one from before when cargo's wasm is still the same.
fn build(bundle: &Bundle, before: Option<&Built>, out: &Path) -> anyhow::Result<Built> {
    let wasm = wasm::compile(bundle)?;
    let input = wasm::fingerprint(bundle, &wasm)?;
    let built = match before {
        Some(built) if built.input == input && out.join(&built.folder).is_dir() => built.clone(),
        _ => make(bundle, &wasm, input, out)?,
    };
    sizes::check(bundle, &built.sizes)?;
    Ok(built)
}

fn make(bundle: &Bundle, wasm: &Path, input: String, out: &Path) -> anyhow::Result<Built> {
    let unfinished = out.join(format!(".{}-unfinished", bundle.name));
    hash::remove_dir(&unfinished)?;
    wasm::bind(bundle, wasm, &unfinished)?;
    let folder = format!("{}-{}", bundle.name, hash::folder(&unfinished)?);
    let sizes = sizes::compress_folder(&unfinished)?;
    let finished = out.join(&folder);
    hash::remove_dir(&finished)?;
    fs::rename(&unfinished, &finished).with_context(|| format!("cannot create {}", finished.display()))?;
    Ok(Built { input, folder, sizes })
}
