//! `quantize`: shards and manifest, what is said about them, and what is refused.

use crate::common::{Case, D_MODEL, K, LATENTS, Place, all_refused, change_tensors, f32_tensor, write_tensors};
use api::{SaeManifest, Tier};
use safetensors::Dtype;
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

const QUANTIZE: &str = "quantize --sae sae --out shards";
const SLICE: &str = "quantize --sae sae --out shards --tiers slice --filter filter.json";
const SAE: &str = "sae/model.layers.1/sae.safetensors";

fn filter(place: &Place, json: &str) {
    fs::write(place.at("filter.json"), json).unwrap();
}

fn manifest(place: &Place) -> SaeManifest {
    serde_json::from_slice(&fs::read(place.at("shards/manifest.json")).unwrap()).unwrap()
}

fn shard_names(place: &Place) -> BTreeSet<String> {
    fs::read_dir(place.at("shards")).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

fn tiers(report: &Value) -> Vec<&str> {
    report["manifest"]["tiers"].as_array().unwrap().iter().map(|tier| tier["tier"].as_str().unwrap()).collect()
}

#[test]
fn every_tier_is_written_and_compared() {
    let place = Place::new();
    filter(&place, r#"{"model.layers.1": [63, 5, 17, 20, 21, 22]}"#);
    place.answer(&format!("{QUANTIZE} --tiers f16"));
    let line =
        format!("{QUANTIZE} --tiers f16,int8 int4,slice --filter filter.json --decoder --hidden hidden.safetensors");
    let report = place.json(&line);
    assert_eq!(tiers(&report), ["f16", "int8", "int4", "slice"]);
    let manifest = manifest(&place);
    assert_eq!(manifest.check(), Ok(()));
    assert_eq!(serde_json::to_value(&manifest).unwrap(), report["manifest"]);
    assert_eq!((manifest.d_model, manifest.latents, manifest.k), (D_MODEL as u32, LATENTS as u32, K as u32));
    assert_eq!((manifest.hook_point.as_str(), &report["out"]), ("model.layers.1", &"shards".into()));
    assert_eq!(report["provenance"]["saeRevision"], &manifest.source_sha256[..12]);
    let mut expected: BTreeSet<String> = manifest.files().map(|file| file.file.clone()).collect();
    expected.insert("manifest.json".into());
    assert_eq!(shard_names(&place), expected);
    assert_eq!(manifest.tier(Tier::Slice).unwrap().rows, 6);
    for tier in &manifest.tiers {
        let agreement = tier.agreement.as_ref().unwrap();
        assert_eq!((agreement.hidden.as_str(), agreement.tokens), ("hidden.safetensors", 3));
        assert_eq!(tier.decoder.len(), tier.shards.len());
        // The checkpoint holds half floats.
        if matches!(tier.tier, Tier::F16 | Tier::Slice) {
            assert_eq!((agreement.overlap_min, agreement.value_error), (1.0, 0.0), "{agreement:?}");
        }
    }
    assert_eq!(place.json(&line), report, "the same again");
    assert_eq!(shard_names(&place), expected);
}

#[test]
fn it_says_what_it_wrote_and_that_nothing_was_compared() {
    let place = Place::new();
    let text = place.answer(QUANTIZE);
    for expected in ["f16 ", "int8 ", "int4 ", "64 rows", "1 file", "--hidden FILE", "64 latents of 32", "in shards"] {
        assert!(text.contains(expected), "{text} lacks {expected:?}");
    }
    assert!(manifest(&place).tiers.iter().all(|tier| tier.agreement.is_none() && tier.decoder.is_empty()));
    let text = place.answer(&format!("{QUANTIZE} --tiers int8 --hidden hidden.safetensors"));
    assert!(text.contains("FVU") && text.contains("on 3 tokens") && !text.contains("--hidden"), "{text}");
    assert_eq!(shard_names(&place).len(), 3, "what the first run wrote is gone");
}

#[test]
fn the_demos_sae_agrees_on_what_extract_writes() {
    let place = Place::new();
    let pocket = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../public/pocket").canonicalize().unwrap();
    let pocket = pocket.display().to_string().replace(' ', "~");
    let extract = format!("extract --model {pocket}/model --image picture.png --prompt What~is~this? --layer 3");
    place.answer(&format!("{extract} --out states.safetensors"));
    place.answer(&format!("quantize --sae {pocket}/sae --out shards --hidden states.safetensors"));
    let manifest = manifest(&place);
    assert_eq!((manifest.hook_point.as_str(), manifest.check()), ("model.layers.3", Ok(())));
    let [f16, int8, int4] = [Tier::F16, Tier::Int8, Tier::Int4].map(|tier| manifest.tier(tier).unwrap());
    assert!(f16.bytes() > int8.bytes() && int8.bytes() > int4.bytes());
    let [f16, int8, int4] = [f16, int8, int4].map(|tier| tier.agreement.as_ref().unwrap());
    assert_eq!((f16.overlap, f16.value_error, f16.fvu), (1.0, 0.0, f16.fvu_f32));
    assert!(int8.overlap > 0.9 && int8.value_error < 0.05, "{int8:?}");
    assert!(int4.overlap > 0.5 && int4.overlap <= int8.overlap && int4.value_error > int8.value_error, "{int4:?}");
}

#[test]
fn flags_are_checked() {
    let case = |line: String, says| Case::new(line, |place: &Place| filter(place, r#"{"model.layers.1": [1]}"#), says);
    all_refused(&[
        case("quantize --sae sae".into(), "--out"),
        case("quantize --out shards".into(), "--sae"),
        case(format!("{QUANTIZE} --tiers int3"), "`int3` is not f16, int8, int4 or slice"),
        case(format!("{QUANTIZE} --tiers f16,,int8"), "`` is not f16"),
        case(format!("{QUANTIZE} --tiers f16,slice"), "--tiers: a slice needs --filter FILE"),
        case(format!("{QUANTIZE} --filter filter.json"), "--filter: only the tier slice reads it"),
        case(format!("{SLICE} --filter missing.json"), "cannot be used multiple times"),
        case("quantize --sae missing --out shards".into(), "missing: there is no such folder for --sae"),
        case("quantize --sae model --out shards".into(), "no cfg.json"),
        case("quantize --sae sae --out picture.png".into(), "picture.png: --out names a file; name a folder"),
        case("quantize --sae sae --out missing/shards".into(), "there is no folder missing for --out"),
        case("quantize --sae sae --out sae/model.layers.1".into(), "is the folder of the SAE itself"),
        case(format!("{QUANTIZE} --hidden missing.safetensors"), "missing.safetensors: "),
        case(SLICE.replace("filter.json", "missing.json"), "missing.json: "),
    ]);
}

#[test]
fn filters_are_checked() {
    all_refused(&[
        Case::new(SLICE, |place| filter(place, "5, 7"), "filter.json: not a filter such as"),
        Case::new(SLICE, |place| filter(place, r#"{"model.layers.2": [5]}"#), "lists no latents of model.layers.1"),
        Case::new(SLICE, |place| filter(place, r#"{"model.layers.1": []}"#), "at least one"),
        Case::new(
            SLICE,
            |place| filter(place, r#"{"model.layers.1": [3, 64]}"#),
            "latent 64 does not exist: the SAE has 64 latents (0 to 63)",
        ),
        Case::new(SLICE, |place| filter(place, r#"{"model.layers.1": [3, 5, 3]}"#), "latent 3 is named twice"),
    ]);
}

/// Makes one weight of a latent's encoder another number; the checkpoint holds half floats.
fn spoil(place: &Place, latent: usize, half: [u8; 2]) {
    change_tensors(&place.at(SAE), |tensors| {
        let (dtype, _, bytes) = tensors.get_mut("encoder.weight").unwrap();
        assert_eq!(*dtype, Dtype::F16);
        bytes[latent * D_MODEL * 2..][..2].copy_from_slice(&half);
    });
}

#[test]
fn files_are_checked() {
    let hidden = format!("{QUANTIZE} --hidden hidden.safetensors");
    all_refused(&[
        Case::new(
            &hidden,
            |place| {
                let tensors = BTreeMap::from([("hidden".to_owned(), f32_tensor(&[2, 16], &[0.5; 32]))]);
                write_tensors(&place.at("hidden.safetensors"), &tensors);
            },
            "has shape [2, 16], but the SAE reads [tokens, 32]",
        ),
        Case::new(&hidden, |place| fs::write(place.at("hidden.safetensors"), "").unwrap(), "not a safetensors file"),
        Case::new(QUANTIZE, |place| fs::write(place.at(SAE), "").unwrap(), "sae.safetensors"),
        Case::new(QUANTIZE, |place| spoil(place, 9, [0x00, 0x7e]), "latent 9: its encoder weights hold NaN"),
        Case::new(QUANTIZE, |place| spoil(place, 63, [0x00, 0xfc]), "latent 63: its encoder weights hold -inf"),
    ]);
}
