//! `site.json`: the addresses of everything, for the server to put into its pages.

use super::sizes::Sizes;
use anyhow::Context;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fs, path::Path};

/// Where the server mounts the site.
const MOUNT: &str = "/assets";

/// What was built and from what, kept beside the site so that the next run can compare.
const STATE_FILE: &str = ".bundles.json";

/// A finished bundle.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Built {
    /// Fingerprint of what it was made from.
    pub input: String,
    /// Its folder's name, e.g. `page-1f…`.
    pub folder: String,
    pub sizes: Sizes,
}

/// The bundles of a run, by name.
pub type State = BTreeMap<String, Built>;

/// Where a bundle's JavaScript module and its wasm are.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub struct Addresses {
    pub js: String,
    pub wasm: String,
}

/// Content of `site.json`.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub struct Site {
    #[serde(flatten)]
    pub bundles: BTreeMap<String, Addresses>,
    pub style: String,
}

impl Site {
    pub fn new(built: &State, style: &str) -> Self {
        let addresses = |name: &str, folder: &str| Addresses {
            js: format!("{MOUNT}/{folder}/{name}.js"),
            wasm: format!("{MOUNT}/{folder}/{name}_bg.wasm"),
        };
        Self {
            bundles: built.iter().map(|(name, built)| (name.clone(), addresses(name, &built.folder))).collect(),
            style: format!("{MOUNT}/{style}"),
        }
    }
}

/// The last run's bundles; nothing when there was none or its file cannot be read.
pub fn read_state(out: &Path) -> State {
    fs::read(out.join(STATE_FILE)).ok().and_then(|json| serde_json::from_slice(&json).ok()).unwrap_or_default()
}

/// Writes `site.json` and the state.
pub fn write(out: &Path, site: &Site, state: &State) -> anyhow::Result<()> {
    write_json(&out.join("site.json"), site)?;
    write_json(&out.join(STATE_FILE), state)
}

/// Removes bundles and style sheets that `site.json` no longer names.
pub fn remove_stale(out: &Path, site: &Site) -> anyhow::Result<()> {
    let named: Vec<&String> = site.bundles.values().map(|bundle| &bundle.js).chain([&site.style]).collect();
    let prefixes: Vec<String> =
        site.bundles.keys().map(String::as_str).chain(["page", "style"]).map(|name| format!("{name}-")).collect();
    for entry in fs::read_dir(out).with_context(|| format!("cannot list {}", out.display()))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_hashed = prefixes.iter().any(|prefix| name.starts_with(prefix));
        let stem = name.trim_end_matches(".br").trim_end_matches(".gz");
        if !is_hashed || named.iter().any(|path| path.split('/').any(|part| part == stem)) {
            continue;
        }
        if entry.file_type()?.is_dir() {
            super::hash::remove_dir(&entry.path())?;
        } else {
            fs::remove_file(entry.path()).with_context(|| format!("cannot remove {}", entry.path().display()))?;
        }
    }
    Ok(())
}

/// Writes to a second name and renames, so that a server never reads half a file.
fn write_json(file: &Path, content: &impl Serialize) -> anyhow::Result<()> {
    let json = serde_json::to_vec_pretty(content)?;
    let unfinished = file.with_extension("unfinished");
    fs::write(&unfinished, json).with_context(|| format!("cannot write {}", unfinished.display()))?;
    fs::rename(&unfinished, file).with_context(|| format!("cannot write {}", file.display()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)] // tests panic on purpose
    use super::*;

    fn built(folder: &str) -> Built {
        Built { input: "1".into(), folder: folder.into(), sizes: Sizes::default() }
    }

    fn state() -> State {
        [("browse", "browse-1"), ("worker", "worker-2")].map(|(name, folder)| (name.to_owned(), built(folder))).into()
    }

    #[test]
    fn the_site_names_what_was_built() {
        let site = Site::new(&state(), "style-3.css");
        let json = serde_json::to_value(&site).unwrap();
        assert_eq!(json["browse"]["wasm"], "/assets/browse-1/browse_bg.wasm");
        assert_eq!(json["worker"]["js"], "/assets/worker-2/worker.js");
        assert_eq!(json["style"], "/assets/style-3.css");
    }

    #[test]
    fn only_what_nobody_names_is_removed() {
        let out = tempfile::tempdir().unwrap();
        for folder in ["browse-1", "browse-0", "page-7", "worker-2", "fonts"] {
            fs::create_dir(out.path().join(folder)).unwrap();
        }
        for file in ["style-3.css", "style-3.css.br", "style-3.css.gz", "style-0.css", "style-0.css.br"] {
            fs::write(out.path().join(file), "").unwrap();
        }
        let site = Site::new(&state(), "style-3.css");
        remove_stale(out.path(), &site).unwrap();
        let mut left: Vec<String> = fs::read_dir(out.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        left.sort();
        assert_eq!(left, ["browse-1", "fonts", "style-3.css", "style-3.css.br", "style-3.css.gz", "worker-2"]);
    }

    #[test]
    fn the_state_survives_a_round_trip_and_a_broken_file() {
        let out = tempfile::tempdir().unwrap();
        write(out.path(), &Site::new(&state(), "style-3.css"), &state()).unwrap();
        assert_eq!(read_state(out.path()), state());
        fs::write(out.path().join(STATE_FILE), "{").unwrap();
        assert!(read_state(out.path()).is_empty());
    }
}
