//! `export` and `import`: the demo and the small SAE through every format, and what is refused.

use crate::common::{Case, LATENTS, Place, all_refused, close, f32_values, read_tensors};
use serde_json::Value;
use std::{fs, path::Path};
use store::{
    files::{names, read_examples, read_features, read_texts, write_source},
    testing::{Artifacts, small_source},
};

fn pocket() -> String {
    let pocket = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../public/pocket").canonicalize().unwrap();
    pocket.display().to_string().replace(' ', "~")
}

/// Index and labels of every feature.
fn labels(folder: &Path) -> Vec<(u32, Option<String>)> {
    let features = read_features(&folder.join(names::FEATURES)).unwrap();
    let label = |feature: &api::Feature| feature.label().map(|label| label.description.clone());
    features.iter().map(|row| (row.feature.index, label(&row.feature))).collect()
}

#[test]
fn the_demo_goes_through_neuronpedia_and_a_data_set() {
    let place = Place::new();
    let pocket = pocket();
    let from = Path::new(&pocket.replace('~', " ")).to_owned();
    for format in ["neuronpedia", "parquet"] {
        let report = place.json(&format!("export --artifacts {pocket} --format {format} --out {format}"));
        assert_eq!(report["format"], format);
        let back = place.json(&format!("import --format {format} --from {format} --out back-{format}"));
        for count in ["features", "explanations", "examples", "texts", "pictures"] {
            assert!(report[count].as_u64().unwrap() > 0, "{format}: no {count}");
            assert_eq!(report[count], back[count], "{format}: {count}");
        }
        let back = place.at(&format!("back-{format}"));
        assert_eq!(labels(&back), labels(&from), "{format}");
        let examples = |folder: &Path| read_examples(&folder.join(names::EXAMPLES)).unwrap();
        assert!(examples(&back) == examples(&from), "{format}: examples differ");
        let texts = |folder: &Path| read_texts(&folder.join(names::TEXTS)).unwrap();
        assert!(texts(&back) == texts(&from), "{format}: texts differ");
    }
    let card = fs::read_to_string(place.at("parquet/README.md")).unwrap();
    assert!(card.starts_with("---\n") && card.contains("CREDITS.md"), "{card}");
    assert!(place.at("parquet/CREDITS.md").is_file(), "the credits are not passed on");
}

#[test]
fn the_demo_goes_through_the_papers_format() {
    let place = Place::new();
    let pocket = pocket();
    place.json(&format!("export --artifacts {pocket} --format multimodal-sae --out paper"));
    place.json("import --format multimodal-sae --from paper --out back");
    let label = |labels: Vec<(u32, Option<String>)>| {
        labels.into_iter().filter(|(_, label)| label.is_some()).collect::<Vec<_>>()
    };
    let (before, after) = (Path::new(&pocket.replace('~', " ")).to_owned(), place.at("back"));
    assert_eq!(label(labels(&after)), label(labels(&before)));
}

#[test]
fn an_sae_goes_through_saelens_and_computes_the_same() {
    let place = Place::new();
    let source = api::Source { hook_point: "model.layers.1".into(), latents: LATENTS as u32, ..small_source() };
    write_source(&place.at("source.json"), &source).unwrap();
    let output = place.run("export --artifacts . --format saelens --out saelens");
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && stderr.contains("note: SAELens has weights only"), "{stderr}");
    place.json("import --format saelens --from saelens --out back");
    let [before, after] = ["sae/model.layers.1", "back/sae/model.layers.1"]
        .map(|folder| read_tensors(&place.at(&format!("{folder}/sae.safetensors"))));
    assert!(before == after, "the weights differ");
    let features = |sae: &str| {
        place.answer(&format!("encode --sae {sae} --hidden hidden.safetensors --out {sae}.out"));
        read_tensors(&place.at(&format!("{sae}.out")))
    };
    fs::create_dir(place.at("plain")).unwrap();
    fs::rename(place.at("back/sae"), place.at("plain/sae")).unwrap();
    let expected = features("sae");
    // Sums have another order when the encoder lies the other way round.
    let turned = features("saelens");
    assert!(turned["top_indices"] == expected["top_indices"], "SAELens' layout finds other features");
    close(&f32_values(&turned["top_acts"]), &f32_values(&expected["top_acts"]), 1e-4);
    assert!(features("plain/sae") == expected, "what came back computes something else");
}

const EXPORT: &str = "export --artifacts artefacts --out out --format";
const IMPORT: &str = "import --from foreign --out out --format";

fn artefacts(place: &Place) {
    Artifacts::new(small_source(), b"no picture").write(&place.at("artefacts")).unwrap();
}

fn foreign(place: &Place, file: &str, text: &str) {
    let path = place.at("foreign").join(file);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

#[test]
fn flags_and_files_are_checked() {
    all_refused(&[
        Case::new(format!("{EXPORT} parquet"), |_| (), "there is no source.json here"),
        Case::new(format!("{EXPORT} csv"), |_| (), "invalid value 'csv'"),
        Case::new(format!("{EXPORT} parquet --creator me"), artefacts, "--creator: only --format neuronpedia"),
        Case::new(
            format!("{EXPORT} parquet"),
            |place| {
                artefacts(place);
                fs::create_dir_all(place.at("out/data")).unwrap();
            },
            "it is there already",
        ),
        Case::new(
            format!("{EXPORT} neuronpedia"),
            |place| {
                artefacts(place);
                fs::write(place.at("artefacts/texts.parquet"), "cut off").unwrap();
            },
            "texts.parquet is damaged",
        ),
        Case::new(format!("{EXPORT} saelens"), artefacts, "there is no SAE"),
        Case::new(format!("{IMPORT} parquet"), |_| (), "there is no such folder for --from"),
        Case::new(format!("{IMPORT} parquet --hook layers.1"), |_| (), "--hook: only --format saelens"),
        Case::new(format!("{IMPORT} saelens --source-file a"), |_| (), "--source-file: only"),
        Case::new(format!("{IMPORT} neuronpedia"), |place| foreign(place, "a", ""), "--source-file"),
        Case::new(
            format!("{IMPORT} neuronpedia --source-file given.json"),
            |place| {
                let given = serde_json::to_string(&small_source()).unwrap();
                fs::write(place.at("given.json"), given).unwrap();
                foreign(place, "features/batch-0.jsonl", "{\"modelId\": \"tiny\"}\n");
            },
            "batch-0.jsonl is damaged or not of the expected format: line 1: missing field `layer`",
        ),
        Case::new(
            format!("{IMPORT} multimodal-sae --source-file given.json"),
            |place| {
                let given = serde_json::to_string(&small_source()).unwrap();
                fs::write(place.at("given.json"), given).unwrap();
                foreign(place, "images/metadata.jsonl", "{\"file_name\": \"a.png\"}\n");
                foreign(place, "images/a.png", "no picture");
            },
            "a.png is damaged or not of the expected format: The file is not a picture",
        ),
        Case::new("import --from sae --out out --format saelens", |_| (), "it has no hook_name"),
        Case::new("import --from sae --out out --format saelens --hook layers.1", |_| (), "sae_weights.safetensors"),
        Case::new(
            "import --from sae --out out --format saelens",
            |place| {
                let config = fs::read(place.at("sae/model.layers.1/cfg.json")).unwrap();
                let mut config: Value = serde_json::from_slice(&config).unwrap();
                config["num_latents"] = 63.into();
                fs::write(place.at("sae/model.layers.1/cfg.json"), config.to_string()).unwrap();
            },
            "expected [63",
        ),
    ]);
}
