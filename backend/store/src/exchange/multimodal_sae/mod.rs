//! multimodal-sae, the paper's own code, and the caches of its parent sae-auto-interp (now delphi).
//!
//! One folder with what its scripts take as separate paths, each optional:
//!
//! - `activations/{hook point}/{first}_{last}.safetensors`: `locations [n, 3]` (picture, token, feature) and
//!   `activations [n]`; token counts from the first picture token, so that the base picture's patches come first.
//! - `explanations/{hook_point}.json`: `[{"model.layers.24_feature17": "text"}, …]`.
//! - `labels.json`: `{"model.layers.24_feature17": "object"}`, the categories.
//! - `filters.json`: `{"model.layers.24": [17, …]}`.
//! - `images/`: the picture set as an ImageFolder.

mod cache;
mod export;
mod import;

pub use export::export;
pub use import::import;

const ACTIVATIONS: &str = "activations";
const EXPLANATIONS: &str = "explanations";
const LABELS: &str = "labels.json";
const FILTERS: &str = "filters.json";

/// The name of a feature in explanations and labels.
fn feature_name(hook_point: &str, index: u32) -> String {
    format!("{hook_point}_feature{index}")
}

/// The index of a feature of this hook point; `None` for other hook points.
fn feature_index(hook_point: &str, name: &str) -> Option<Result<u32, String>> {
    let digits = name.strip_prefix(hook_point)?.strip_prefix("_feature")?;
    Some(digits.parse().map_err(|_| format!("{name:?} does not end with a feature's index")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_have_the_names_of_their_modules() {
        let name = feature_name("model.layers.24", 17);
        assert_eq!(name, "model.layers.24_feature17");
        assert_eq!(feature_index("model.layers.24", &name), Some(Ok(17)));
        assert_eq!(feature_index("model.layers.2", &name), None);
        assert!(feature_index("model.layers.24", "model.layers.24_feature-1").is_some_and(|found| found.is_err()));
    }
}
