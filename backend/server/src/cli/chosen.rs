//! `--features`: which features a command is about.

use super::CliError;
use api::{FeatureQuery, FeatureSort, FeatureSummary};
use store::{SourceEntry, Store};

/// Features per page while they are listed; the most that the store gives.
const PAGE: u32 = 200;

/// Some features, or all living ones.
#[derive(Debug, Clone, clap::Args)]
pub struct FeaturesArgs {
    /// Features by their indices, e.g. 5,17 or 0-999. Without it, all that fire.
    #[arg(long, env = "LMM_SCOPE_FEATURES", value_name = "ID|A-B,…", value_delimiter = ',', num_args = 1..,
        value_parser = range)]
    features: Vec<Range>,
}

/// Indices from the first to the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Range(u32, u32);

fn range(text: &str) -> Result<Range, String> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    match (first.trim().parse(), last.trim().parse()) {
        (Ok(first), Ok(last)) if first <= last => Ok(Range(first, last)),
        _ => Err(format!("`{text}` is neither an index such as 17 nor a range such as 0-999")),
    }
}

impl FeaturesArgs {
    /// Whether some are named.
    pub fn are_named(&self) -> bool {
        !self.features.is_empty()
    }

    /// Indices by rising number, each once.
    ///
    /// # Errors
    /// When one is not of the source, or a database fails.
    pub async fn indices(&self, store: &Store, source: &SourceEntry) -> Result<Vec<u32>, CliError> {
        if self.features.is_empty() {
            return Ok(living(store, source).await?.into_iter().map(|feature| feature.index).collect());
        }
        let latents = source.source.latents;
        if let Some(Range(_, last)) = self.features.iter().find(|range| range.1 >= latents) {
            let reason = format!("feature {last} does not exist: the SAE has {latents} latents, counted from 0");
            return Err(CliError::flag("--features", reason));
        }
        let mut indices: Vec<u32> = self.features.iter().flat_map(|range| range.0..=range.1).collect();
        indices.sort_unstable();
        indices.dedup();
        Ok(indices)
    }
}

/// All features that fire, by rising index.
///
/// # Errors
/// When the database fails.
pub async fn living(store: &Store, source: &SourceEntry) -> Result<Vec<FeatureSummary>, CliError> {
    let mut features = Vec::new();
    for page in 0.. {
        let query = FeatureQuery {
            sort: FeatureSort::Index,
            dead: Some(false),
            page,
            per_page: PAGE,
            ..FeatureQuery::default()
        };
        let list = store.list_features(source, &query).await?;
        if list.features.is_empty() {
            break;
        }
        features.extend(list.features);
    }
    Ok(features)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_indices_and_ranges() {
        assert_eq!(range("17"), Ok(Range(17, 17)));
        assert_eq!(range("0-999"), Ok(Range(0, 999)));
        for wrong in ["", "-", "-1", "9-3", "a", "1-2-3"] {
            assert!(range(wrong).is_err(), "{wrong}");
        }
    }
}
