#![allow(clippy::unwrap_used, clippy::expect_used)] // tests panic on purpose

use super::{Decoded, Explanations, Report, dataset, multimodal_sae, neuronpedia, saelens, tensors::TensorFile};
use crate::{
    Store,
    files::{
        self, ExampleRow, FeatureRow, FileError, PictureRow, SampleRow, TextRow, names, read_examples, read_features,
        read_pictures, read_samples, read_texts,
    },
    testing::{Artifacts, small_source},
};
use std::{
    collections::BTreeMap,
    fs,
    io::Read,
    path::{Path, PathBuf},
};
use tempfile::TempDir;

/// What the artefact files of a folder hold.
#[derive(Debug, PartialEq)]
struct Tables {
    source: api::Source,
    features: Vec<FeatureRow>,
    examples: Vec<ExampleRow>,
    texts: Vec<TextRow>,
    pictures: Vec<PictureRow>,
    samples: Vec<SampleRow>,
}

fn read(folder: &Path) -> Tables {
    Tables {
        source: files::read_source(&folder.join(names::SOURCE)).unwrap(),
        features: read_features(&folder.join(names::FEATURES)).unwrap(),
        examples: read_examples(&folder.join(names::EXAMPLES)).unwrap(),
        texts: read_texts(&folder.join(names::TEXTS)).unwrap(),
        pictures: read_pictures(&folder.join(names::PICTURES)).unwrap(),
        samples: read_samples(&folder.join(names::SAMPLES)).unwrap(),
    }
}

/// The small artefacts in `artefacts/`, the last feature as dead as one is, and a folder beside them.
fn place() -> (TempDir, PathBuf, PathBuf, PathBuf) {
    let place = tempfile::tempdir().unwrap();
    let [from, foreign, back] = ["artefacts", "foreign", "back"].map(|name| place.path().join(name));
    let mut artefacts = Artifacts::new(small_source(), b"RIFF a picture");
    artefacts.features.last_mut().unwrap().feature.max_act_approx = 0.0;
    artefacts.write(&from).unwrap();
    (place, from, foreign, back)
}

/// Pictures here are no pictures.
fn decode(bytes: &[u8]) -> Result<Decoded, String> {
    if bytes.starts_with(b"RIFF") {
        return Ok(Decoded { webp: bytes.to_vec(), width: 32, height: 32 });
    }
    Err("it is no picture".to_owned())
}

fn nothing_temporary(place: &TempDir) {
    let names = fs::read_dir(place.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert_eq!(names.filter(|name| name.starts_with('.')).collect::<Vec<_>>(), Vec::<String>::new());
}

/// What `serve` does with a folder at its start.
async fn can_be_served(folder: &Path) {
    let store = Store::open("sqlite::memory:").await.unwrap();
    store.import_artifacts(folder).await.unwrap();
}

#[tokio::test]
async fn a_data_set_loses_nothing() {
    let (place, from, foreign, back) = place();
    fs::write(from.join("CREDITS.md"), "# Credits\n").unwrap();
    let report = dataset::export(&from, &Explanations::new(), &foreign).unwrap();
    assert_eq!((report.features, report.explanations, report.texts), (12, 6, 11));
    assert_eq!((report.examples, report.pictures, report.samples), (44, 4, 1));
    assert_eq!(report.notes, Vec::<String>::new());
    let card = fs::read_to_string(foreign.join("README.md")).unwrap();
    for expected in ["---\npretty_name: \"Features of 1-res-12 in tiny\"\nlicense: other\n", "| `features` | 12 |"] {
        assert!(card.contains(expected), "{card}");
    }
    for column in ["maxActApprox", "featureActsValues", "topActs", "credit"] {
        assert!(card.contains(&format!("`{column}`")), "the card does not explain {column}");
    }
    dataset::import(&foreign, &back).unwrap();
    assert_eq!(read(&back), read(&from));
    assert_eq!(fs::read_to_string(back.join("CREDITS.md")).unwrap(), "# Credits\n");
    can_be_served(&back).await;
    nothing_temporary(&place);
}

#[test]
fn a_card_without_credits_claims_no_licence() {
    let (_place, from, foreign, _) = place();
    let report = dataset::export(&from, &Explanations::new(), &foreign).unwrap();
    assert!(report.notes.iter().any(|note| note.contains("no CREDITS.md")), "{:?}", report.notes);
    let card = fs::read_to_string(foreign.join("README.md")).unwrap();
    assert!(!card.contains("license") && card.contains("names no licence"), "{card}");
}

#[tokio::test]
async fn neuronpedia_gives_back_all_that_it_can_hold() {
    let (place, from, foreign, back) = place();
    let steering = api::Score {
        value: 0.5,
        baseline: 0.25,
        explanation_score_type_name: "steering".into(),
        interval: Some([0.25, 0.75]),
        samples: 5,
        effects: Some(api::SteeringEffects { none: 1, mentions: 3, reasons: 1, unrelated: 0 }),
        provenance: "seed 7".into(),
        ..api::Score::default()
    };
    let id = "job-1".to_owned();
    let further = api::Explanation { id, scores: vec![steering], ..api::Explanation::default() };
    let more = Explanations::from([(0, vec![further.clone()])]);
    neuronpedia::export(&from, &more, Some("somebody"), &foreign).unwrap();
    let report = neuronpedia::import(&foreign, None, &decode, &back).unwrap();
    assert_eq!((report.features, report.explanations, report.examples, report.texts), (12, 7, 44, 11));
    let mut expected = read(&from);
    expected.features[0].feature.explanations.push(further);
    expected.source.explained = 6;
    expected.samples.clear();
    for row in &mut expected.features {
        row.firing.clear();
        (row.feature.mean_act, row.feature.frac_pictures) = (0.0, 0.0);
        row.feature.explanations.iter_mut().for_each(|explanation| explanation.category = api::Category::Unknown);
    }
    assert_eq!(read(&back), expected);
    can_be_served(&back).await;
    nothing_temporary(&place);
}

#[test]
fn neuronpedias_rows_have_its_names() {
    let (_place, from, foreign, _) = place();
    neuronpedia::export(&from, &Explanations::new(), Some("somebody"), &foreign).unwrap();
    let first = |folder: &str| -> serde_json::Value {
        let path = foreign.join(folder).join("batch-0.jsonl.gz");
        let mut text = String::new();
        flate2::read::GzDecoder::new(fs::File::open(path).unwrap()).read_to_string(&mut text).unwrap();
        serde_json::from_str(text.lines().next().unwrap()).unwrap()
    };
    let feature = first("features");
    assert_eq!((&feature["index"], &feature["layer"]), (&"0".into(), &"1-res-12".into()));
    assert_eq!((&feature["sourceSetName"], &feature["hookName"]), (&"res-12".into(), &"model.layers.1".into()));
    assert_eq!((&feature["creatorId"], &feature["pos_str"][0]), (&"somebody".into(), &"▁cat".into()));
    assert_eq!(feature["maxActApprox"], 1.0);
    let explanation = first("explanations");
    assert_eq!((&explanation["id"], &explanation["description"]), (&"dissect-0".into(), &"red cat".into()));
    assert_eq!((&explanation["authorId"], &explanation["typeName"]), (&"somebody".into(), &"dissect".into()));
    let score = first("explanation_scores");
    assert_eq!((&score["explanationId"], &score["jsonDetails"]), (&"dissect-0".into(), &r#"{"baseline":0.05}"#.into()));
    let text = first("activations");
    assert_eq!(
        (&text["maxValue"], &text["maxValueTokenIndex"], &text["minValue"]),
        (&2.0.into(), &1.into(), &0.0.into())
    );
}

/// As Neuronpedia exports them: columns that nothing here reads, strings for indices, nulls, activations in any order.
const NEURON: &str = r#"{"modelId": "gemma-2-2b", "layer": "20-gemmascope-res-16k", "index": "3", "maxActApprox": 12.5,
    "creatorId": "u", "frac_nonzero": 0.00125, "freq_hist_data_bar_heights": [4, 2], "freq_hist_data_bar_values":
    [0.5, 1.5], "logits_hist_data_bar_heights": [], "neuron_alignment_indices": [], "correlated_neurons_l1": [],
    "decoder_weights_dist": [], "neg_str": ["▁no"], "neg_values": [-1.5], "pos_str": null, "pos_values": null,
    "sourceSetName": "gemmascope-res-16k", "topkCosSimIndices": [3, 7], "topkCosSimValues": [1.0, 0.25], "vector": [],
    "vectorLabel": null, "hookName": null, "vectorDefaultSteerStrength": 10, "hasVector": false}"#;
const EXPLANATION: &str = r#"{"id": "clz1", "modelId": "gemma-2-2b", "layer": "20-gemmascope-res-16k", "index": "3",
    "authorId": "u", "description": "mentions of canoes", "embedding": null, "typeName": "oai_token-act-pair",
    "explanationModelName": "gpt-4o-mini", "umap_x": null, "umap_cluster": null}"#;
const ACTIVATION: &str = r#"{"id": "a1", "modelId": "gemma-2-2b", "layer": "20-gemmascope-res-16k", "index": "3",
    "creatorId": "u", "dataSource": null, "tokens": ["▁a", "▁boat"], "maxValue": 1.5, "minValue": 0, "values": [0, 1.5],
    "maxValueTokenIndex": 1, "dfaValues": [], "dfaMaxValue": null, "binContains": null, "binMin": null, "binMax":
    null}"#;
const GIVEN: &str = r#"{"modelId": "gemma-2-2b", "sourceId": "20-gemmascope-res-16k", "layer": 20, "hookPoint":
    "model.layers.20", "latents": 16384, "dModel": 2304, "grid": [24, 24]}"#;

/// One object on one line.
fn line(object: &str) -> String {
    object.split('\n').map(str::trim).collect::<Vec<_>>().join(" ") + "\n"
}

fn write(path: PathBuf, text: impl AsRef<[u8]>) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

fn foreign_neuronpedia(folder: &Path) {
    write(folder.join("features/batch-0.jsonl"), line(NEURON));
    write(folder.join("explanations/batch-0.jsonl"), line(EXPLANATION));
    let second = ACTIVATION.replace("[0, 1.5]", "[7.5, 0]").replace("\"a1\"", "\"a2\"");
    write(folder.join("activations/batch-0.jsonl"), line(ACTIVATION) + &line(&second));
    write(folder.join("source.json"), GIVEN);
}

#[tokio::test]
async fn neuronpedias_own_exports_are_read() {
    let (_place, _, foreign, back) = place();
    foreign_neuronpedia(&foreign);
    let report = neuronpedia::import(&foreign, None, &decode, &back).unwrap();
    assert_eq!((report.features, report.explanations, report.texts, report.examples), (1, 1, 2, 0));
    assert!(report.notes.iter().any(|note| note.contains("does not say") && note.contains("tokens")), "{report:?}");
    let Tables { source, features, texts, .. } = read(&back);
    assert_eq!((source.alive, source.explained, source.latents), (1, 1, 16_384));
    let feature = &features[0].feature;
    assert_eq!((feature.index, feature.max_act_approx, feature.frac_nonzero), (3, 12.5, 0.001_25));
    assert_eq!((feature.neg_str.as_slice(), feature.pos_str.len()), (["▁no".to_owned()].as_slice(), 0));
    assert_eq!(feature.topk_cos_sim_indices, [3, 7]);
    let explanation = feature.label().unwrap();
    assert_eq!((explanation.description.as_str(), explanation.id.as_str()), ("mentions of canoes", "clz1"));
    assert_eq!(explanation.explanation_model_name, "gpt-4o-mini");
    let values: Vec<_> = texts.iter().map(|text| (text.feature, text.rank, text.values.clone())).collect();
    assert_eq!(values, [(3, 0, vec![7.5, 0.0]), (3, 1, vec![0.0, 1.5])]);
    can_be_served(&back).await;
}

#[test]
fn damaged_rows_are_named() {
    let cases: [(&str, String, &str); 9] = [
        (
            "features/batch-0.jsonl",
            line(NEURON) + "{\"modelId\": \n",
            "batch-0.jsonl is damaged or not of the expected format: line 2",
        ),
        ("features/batch-0.jsonl", line(NEURON) + &line(NEURON), "line 2: feature 3 occurs twice"),
        ("features/batch-0.jsonl", line(&NEURON.replace("\"3\"", "\"16384\"")), "feature 16384 of an SAE with 16384"),
        ("features/batch-0.jsonl", line(&NEURON.replace("\"3\"", "\"x\"")), "line 1: index \"x\" is not"),
        ("features/batch-0.jsonl", line(&NEURON.replace("[3, 7]", "[3]")), "have 1 and 2 items"),
        ("features/batch-0.jsonl", line(&NEURON.replace("gemma-2-2b", "gpt2")), "a row of gpt2/"),
        (
            "explanations/batch-0.jsonl",
            line(&EXPLANATION.replace("description", "text")),
            "missing field `description`",
        ),
        ("activations/batch-0.jsonl", line(&ACTIVATION.replace("[0, 1.5]", "[0]")), "line 1: 2 tokens with 1 values"),
        (
            "source.json",
            GIVEN.replace("latents", "width"),
            "source.json is damaged or not of the expected format: there is no latents",
        ),
    ];
    for (file, text, says) in cases {
        let (place, _, foreign, back) = place();
        foreign_neuronpedia(&foreign);
        write(foreign.join(file), text);
        refused(&place, &back, says, neuronpedia::import(&foreign, None, &decode, &back));
    }
}

fn refused(place: &TempDir, out: &Path, says: &str, done: Result<Report, FileError>) {
    let error = done.unwrap_err().to_string();
    assert!(error.contains(says), "{error} does not say {says}");
    assert!(!out.exists(), "{says}: something was written");
    nothing_temporary(place);
}

/// Patches and activations of every feature on every picture.
fn maps(examples: &[ExampleRow]) -> BTreeMap<(u32, String), (Vec<u16>, Vec<f32>)> {
    examples.iter().map(|row| ((row.feature, row.picture.clone()), (row.indices.clone(), row.values.clone()))).collect()
}

fn labels(features: &[FeatureRow]) -> Vec<(u32, String, api::Category)> {
    let labelled = features.iter().filter_map(|row| Some((row.feature.index, row.feature.label()?)));
    labelled.map(|(index, label)| (index, label.description.clone(), label.category)).collect()
}

#[tokio::test]
async fn the_papers_scripts_give_back_labels_and_activations() {
    let (place, from, foreign, back) = place();
    let report = multimodal_sae::export(&from, &Explanations::new(), &foreign).unwrap();
    // Each picture counts once: the best by maximum is one of the three by mean.
    assert_eq!((report.explanations, report.examples, report.pictures), (6, 33, 4));
    let filter: serde_json::Value = serde_json::from_slice(&fs::read(foreign.join("filters.json")).unwrap()).unwrap();
    assert_eq!(filter, serde_json::json!({ "model.layers.1": [0, 1, 2, 3, 4, 5] }));
    let texts: serde_json::Value =
        serde_json::from_slice(&fs::read(foreign.join("explanations/model_layers_1.json")).unwrap()).unwrap();
    assert_eq!(texts[1], serde_json::json!({ "model.layers.1_feature1": "happy face" }));
    assert!(foreign.join("activations/model.layers.1/0_11.safetensors").is_file());

    let report = multimodal_sae::import(&foreign, None, &decode, &back).unwrap();
    assert_eq!((report.features, report.explanations), (11, 6));
    let (before, after) = (read(&from), read(&back));
    assert_eq!(labels(&after.features), labels(&before.features));
    assert_eq!(maps(&after.examples), maps(&before.examples));
    assert_eq!(after.pictures, before.pictures);
    let first = &after.examples[0];
    assert_eq!((first.max_value, first.max_index, first.mean_value), (4.0, 0, 4.5 / 4.0));
    assert!(after.features.iter().all(|row| row.feature.max_act_approx == 4.0));
    can_be_served(&back).await;
    nothing_temporary(&place);
}

fn foreign_paper(folder: &Path) {
    let explanations = r#"[{"model.layers.20_feature3": "canoes"}, {"model.layers.20_feature9":
        "Unable to produce descriptions"}, {"model.layers.4_feature3": "of another layer"}]"#;
    write(folder.join("explanations/model_layers_20.json"), explanations);
    write(folder.join("labels.json"), r#"{"model.layers.20_feature3": "Answer: Object."}"#);
    write(folder.join("source.json"), GIVEN);
}

#[test]
fn what_the_papers_scripts_wrote_is_read() {
    let (_place, _, foreign, back) = place();
    foreign_paper(&foreign);
    let report = multimodal_sae::import(&foreign, None, &decode, &back).unwrap();
    assert!(report.notes.iter().any(|note| note.starts_with("1 features have no explanation")), "{report:?}");
    assert_eq!(labels(&read(&back).features), [(3, "canoes".to_owned(), api::Category::Object)]);
}

#[test]
fn damaged_files_of_the_paper_are_named() {
    for (file, text, says) in [
        ("explanations/model_layers_20.json", "[{\"model.layers.20_feature3\": 7}]", "feature3 is not a text"),
        ("explanations/model_layers_20.json", "[[]]", "entry 0 is not an object"),
        ("explanations/model_layers_20.json", "[", "model_layers_20.json"),
        ("labels.json", "{\"model.layers.20_feature99999\": \"object\"}", "an SAE with 16384 latents"),
        ("activations/model.layers.20/0_9.safetensors", "short", "too short"),
        ("images/metadata.jsonl", "{\"file_name\": \"../a.webp\"}", "line 1: file_name \"../a.webp\" is not a file"),
        ("images/metadata.jsonl", "{\"file_name\": \"a.webp\", \"id\": \"a/b\"}", "cannot be part of an address"),
        ("images/metadata.jsonl", "{\"file_name\": \"a.webp\"}", "a.webp"),
    ] {
        let (place, _, foreign, back) = place();
        foreign_paper(&foreign);
        write(foreign.join(file), text);
        refused(&place, &back, says, multimodal_sae::import(&foreign, None, &decode, &back));
    }
    let (place, _, foreign, back) = place();
    foreign_paper(&foreign);
    fs::remove_file(foreign.join("source.json")).unwrap();
    refused(&place, &back, "--source-file", multimodal_sae::import(&foreign, None, &decode, &back));
}

#[test]
fn further_explanations_come_after_a_features_own() {
    let (_place, from, foreign, back) = place();
    let further = api::Explanation { id: "job-1".into(), description: "stripes".into(), ..api::Explanation::default() };
    let more = Explanations::from([(0, vec![further.clone()]), (11, vec![further])]);
    let report = dataset::export(&from, &more, &foreign).unwrap();
    assert_eq!(report.explanations, 8);
    dataset::import(&foreign, &back).unwrap();
    let features = read(&back).features;
    let said = |index: usize| -> Vec<String> {
        features[index].feature.explanations.iter().map(|explanation| explanation.description.clone()).collect()
    };
    assert_eq!((said(0), said(11)), (vec!["red cat".into(), "stripes".into()], vec!["stripes".to_owned()]));
}

#[test]
fn the_demos_sae_comes_back_bit_for_bit() {
    let pocket = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../public/pocket");
    let source = files::read_source(&pocket.join(names::SOURCE)).unwrap();
    let from = pocket.join("sae").join(&source.hook_point);
    let shape =
        saelens::TopKShape { latents: source.latents as usize, d_in: source.d_model as usize, k: source.k as usize };
    let (place, _, foreign, back) = place();
    saelens::export(&from, shape, &source, &foreign).unwrap();
    let config: serde_json::Value = serde_json::from_slice(&fs::read(foreign.join("cfg.json")).unwrap()).unwrap();
    assert_eq!((&config["architecture"], &config["d_sae"]), (&"topk".into(), &source.latents.into()));
    let turned = TensorFile::open(&foreign.join("sae_weights.safetensors")).unwrap();
    assert_eq!(turned.tensor("W_enc").unwrap().shape, [shape.d_in, shape.latents]);
    saelens::import(&foreign, shape, None, &back).unwrap();
    let file = format!("sae/{}/sae.safetensors", source.hook_point);
    let (before, after) = (from.join("sae.safetensors"), back.join(file));
    for name in ["encoder.weight", "encoder.bias", "W_dec", "b_dec"] {
        let [before, after] = [&before, &after].map(|path| {
            let file = TensorFile::open(path).unwrap();
            let tensor = file.tensor(name).unwrap();
            let mut bytes = Vec::new();
            file.bytes(tensor).unwrap().read_to_end(&mut bytes).unwrap();
            (tensor.dtype.clone(), tensor.shape.clone(), bytes)
        });
        assert!(!before.2.is_empty() && before == after, "{name} differs");
    }

    let wrong = saelens::TopKShape { latents: shape.latents - 1, ..shape };
    let out = place.path().join("other");
    refused(&place, &out, "tensor `W_enc` has shape", saelens::import(&foreign, wrong, None, &out));
    write(foreign.join("activation_scaler.json"), "{}");
    refused(&place, &out, "activation_scaler.json", saelens::import(&foreign, shape, None, &out));
}
