//! `--filter`: the latents of a slice or a cache, as the paper's code names them: `{"model.layers.24": [5, 17, 3021]}`.

use super::QuantizeError;
use model::Hook;
use std::collections::BTreeMap;
use std::path::Path;

/// The latents that a filter file lists for a hook point, rising.
///
/// # Errors
/// When the file is not a filter or says nothing about this hook point; when a latent does not exist or is named twice;
/// when there are none.
pub fn read_filter(path: &Path, hook_point: &str, latents: usize) -> Result<Vec<u32>, QuantizeError> {
    let text = std::fs::read_to_string(path).map_err(|source| QuantizeError::io(path, source))?;
    let lists: BTreeMap<String, Vec<u64>> = serde_json::from_str(&text).map_err(|error| {
        QuantizeError::file(path, format!("not a filter such as {{\"{hook_point}\": [5, 17]}}: {error}"))
    })?;
    let same = |name: &str| {
        let hooks = (name.parse::<Hook>(), hook_point.parse::<Hook>());
        name == hook_point || matches!(hooks, (Ok(one), Ok(other)) if one == other)
    };
    let Some((_, list)) = lists.iter().find(|(name, _)| same(name)) else {
        let names: Vec<&str> = lists.keys().map(String::as_str).collect();
        let names = if names.is_empty() { "nothing".to_owned() } else { names.join(", ") };
        let reason = format!("lists no latents of {hook_point}; it has: {names}");
        return Err(QuantizeError::file(path, reason));
    };
    chosen(list, latents).map_err(|reason| QuantizeError::file(path, format!("{hook_point}: {reason}")))
}

fn chosen(list: &[u64], latents: usize) -> Result<Vec<u32>, String> {
    if list.is_empty() {
        return Err("no latents are listed; a filter needs at least one".into());
    }
    let mut chosen = Vec::with_capacity(list.len());
    for &latent in list {
        match u32::try_from(latent) {
            Ok(id) if (id as usize) < latents => chosen.push(id),
            _ => {
                let last = latents.saturating_sub(1);
                return Err(format!("latent {latent} does not exist: the SAE has {latents} latents (0 to {last})"));
            }
        }
    }
    chosen.sort_unstable();
    match chosen.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(format!("latent {} is named twice; name it once", pair[0])),
        None => Ok(chosen),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // tests panic on purpose
    use super::*;

    fn read(json: &str) -> Result<Vec<u32>, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("filter.json");
        std::fs::write(&path, json).unwrap();
        read_filter(&path, "model.layers.3", 64).map_err(|error| error.to_string())
    }

    #[test]
    fn latents_are_found_by_their_hook_point() {
        assert_eq!(read(r#"{"model.layers.2": [1], "model.layers.3": [63, 0, 17]}"#), Ok(vec![0, 17, 63]));
        assert_eq!(read(r#"{"layers.3": [5]}"#), Ok(vec![5]));
    }

    #[test]
    fn what_is_wrong_with_a_filter_is_said() {
        for (json, expected) in [
            ("", "not a filter such as {\"model.layers.3\": [5, 17]}"),
            ("[1, 2]", "not a filter"),
            (r#"{"model.layers.3": 5}"#, "not a filter"),
            (r#"{"model.layers.3": [-1]}"#, "not a filter"),
            ("{}", "lists no latents of model.layers.3"),
            (r#"{"model.layers.2": [1], "b": []}"#, "it has: b, model.layers.2"),
            (r#"{"model.layers.3": []}"#, "at least one"),
            (r#"{"model.layers.3": [64]}"#, "latent 64 does not exist: the SAE has 64 latents (0 to 63)"),
            (r#"{"model.layers.3": [4294967296]}"#, "latent 4294967296 does not exist"),
            (r#"{"model.layers.3": [9, 1, 9]}"#, "latent 9 is named twice"),
        ] {
            let error = read(json).unwrap_err();
            assert!(error.contains("filter.json: ") && error.contains(expected), "{error} lacks {expected:?}");
        }
        let missing = read_filter(Path::new("missing.json"), "model.layers.3", 64).unwrap_err().to_string();
        assert!(missing.starts_with("missing.json: "), "{missing}");
    }
}
