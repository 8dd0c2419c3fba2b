//! `site.json`: where the bundler put the page's scripts and styles.

use frontend::app::SiteAssets;
use std::{fs, io, path::Path};

/// Reads `site.json` in the bundles' folder. Without bundles the pages are still rendered, only without style and
/// life; the log says how to make them.
///
/// # Errors
/// When the file is there but cannot be read.
pub fn site_assets(site: &Path) -> io::Result<SiteAssets> {
    let path = site.join("site.json");
    let named = |error: &dyn std::fmt::Display| io::Error::other(format!("{}: {error}", path.display()));
    match fs::read(&path) {
        Ok(json) => serde_json::from_slice(&json).map_err(|error| named(&error)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            tracing::warn!(file = %path.display(), "no browser bundles; build them with: cargo xtask bundle");
            Ok(SiteAssets::default())
        }
        Err(error) => Err(named(&error)),
    }
}
