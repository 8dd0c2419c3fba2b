//! All stages of `lmm-scope pocket` at smoke size, from the committed sprites to readable artefacts.
#![allow(clippy::unwrap_used)] // tests panic on purpose

use clap::Parser;
use pipeline::pocket::{PocketArgs, run};
use pipeline::quantize::{BROWSER_FOLDER, read_manifest};
use std::path::{Path, PathBuf};
use store::files::{names, read_examples, read_features, read_pictures, read_samples, read_source};

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    pocket: PocketArgs,
}

fn pocket(dir: &Path, extra: &[&str]) -> PocketArgs {
    let sprites = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../public/pocket");
    let paths = [
        ("--work", dir.join("work")),
        ("--out", dir.join("out")),
        ("--report", dir.join("pocket.md")),
        ("--sprites", sprites),
    ];
    let mut words = vec!["pocket".to_string(), "--size".into(), "smoke".into()];
    for (flag, path) in paths {
        words.extend([flag.to_string(), path.display().to_string()]);
    }
    words.extend(extra.iter().map(|word| word.to_string()));
    Cli::try_parse_from(words).unwrap().pocket
}

#[test]
fn all_stages_run_and_resume() {
    let dir = tempfile::tempdir().unwrap();
    run(pocket(dir.path(), &[])).unwrap();
    let out = dir.path().join("out");
    let source = read_source(&out.join(names::SOURCE)).unwrap();
    let features = read_features(&out.join(names::FEATURES)).unwrap();
    assert_eq!(features.len(), source.latents as usize);
    assert!(source.alive > 0 && source.alive <= source.latents);
    assert!(source.fvu.is_some_and(|fvu| fvu.is_finite() && fvu > 0.0));
    let examples = read_examples(&out.join(names::EXAMPLES)).unwrap();
    let pictures = read_pictures(&out.join(names::PICTURES)).unwrap();
    assert!(!examples.is_empty());
    for example in &examples {
        assert!(pictures.iter().any(|row| row.picture.id == example.picture), "{} is kept", example.picture);
        let max = example.values.iter().copied().fold(0.0, f32::max);
        assert!((max - example.max_value).abs() <= 1e-3 * max, "values and maximum agree");
    }
    let samples = read_samples(&out.join(names::SAMPLES)).unwrap();
    assert!(samples.iter().all(|row| row.top_acts.len() == (row.grid[0] * row.grid[1] * row.k) as usize));
    let manifest = read_manifest(&out.join("sae").join(&source.hook_point).join(BROWSER_FOLDER)).unwrap();
    let half = manifest.tiers[0].agreement.as_ref().unwrap();
    // The checkpoint holds half floats, so that nothing is lost.
    assert_eq!((half.overlap_min, half.value_error), (1.0, 0.0), "{half:?}");
    let tokens = samples.iter().map(|row| row.grid[0] * row.grid[1]).sum::<u32>();
    assert_eq!((manifest.tiers.len(), half.tokens), (3, tokens));
    let report = std::fs::read_to_string(dir.path().join("pocket.md")).unwrap();
    assert!(report.contains("## The SAE") && report.contains("## Steering"));

    // Going on: more samples than before continue from the checkpoint, and a finished stage does nothing.
    let weights = || std::fs::read(out.join("model/model.safetensors")).unwrap();
    let before = weights();
    run(pocket(dir.path(), &["train-lmm"])).unwrap();
    assert!(before == weights(), "a finished stage changes nothing");
    run(pocket(dir.path(), &["train-lmm", "--lmm-samples", "96"])).unwrap();
    assert!(before != weights(), "more samples go on training");
}

#[test]
fn a_stage_without_its_inputs_says_which_stage_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    let error = run(pocket(dir.path(), &["index"])).unwrap_err();
    assert!(format!("{error:#}").contains("train-text"), "{error:#}");
}
