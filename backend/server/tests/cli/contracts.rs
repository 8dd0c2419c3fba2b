//! What the commands write and print, against the model in this process.

use crate::common::{
    D_MODEL, K, LATENTS, PICTURE_TOKENS, Place, Stored, change_tensors, close, f32_values, i32_values, read_tensors,
};
use burn::tensor::{Tensor, TensorData};
use half::{bf16, f16};
use model::{
    Cpu, Edit, EditOp, GenerateOptions, Intervention, Lmm, Positions, Prepared, PromptInput, Sae, hook::Hook,
    weights::f32_from_tensor,
};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use std::{fs, ops::ControlFlow, sync::Arc};

const EXTRACT: &str =
    "extract --model model --image picture.png --prompt What~is~this? --layer 1 --out out.safetensors";
const STEER: &str = "steer --model model --sae sae --layer 1 --image picture.png --prompt What~is~this? \
                     --max-new-tokens 4 --temperature 0";
const ATTRIBUTE: &str = "attribute --model model --sae sae --layer 1 --image picture.png --prompt What~is~this? \
                         --out out.safetensors";

fn load(place: &Place) -> Lmm<Cpu> {
    Lmm::load(&place.at("model"), &Default::default()).unwrap()
}

fn load_sae(place: &Place) -> Sae<Cpu> {
    Sae::load(&place.at("sae/model.layers.1"), &Default::default()).unwrap()
}

/// What the lines above ask.
fn prepared(place: &Place, lmm: &Lmm<Cpu>) -> Prepared {
    let image = server::picture::decode_picture(&fs::read(place.at("picture.png")).unwrap()).unwrap();
    lmm.prepare(&PromptInput { text: "What is this?".into(), chat: true, image: Some(image) }).unwrap()
}

fn metadata(place: &Place, name: &str) -> String {
    let bytes = fs::read(place.at("out.safetensors")).unwrap();
    let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    metadata.metadata().as_ref().unwrap()[name].clone()
}

fn numbers(list: &Value) -> Vec<f32> {
    list.as_array().unwrap().iter().map(|number| number.as_f64().unwrap() as f32).collect()
}

#[test]
fn extract_writes_the_output_of_the_block() {
    let place = Place::new();
    let report = place.json(EXTRACT);
    let lmm = load(&place);
    let prepared = prepared(&place, &lmm);
    let tokens = prepared.input_ids.len();
    let file = read_tensors(&place.at("out.safetensors"));
    assert_eq!(file.keys().collect::<Vec<_>>(), ["hidden", "input_ids"]);
    assert_eq!(file["hidden"].1, [tokens, D_MODEL]);
    assert_eq!(file["input_ids"].1, [tokens]);
    let ids: Vec<u32> = i32_values(&file["input_ids"]).iter().map(|id| *id as u32).collect();
    assert_eq!(ids, prepared.input_ids);
    let expected = f32_from_tensor(lmm.hidden_at(&prepared, Hook::Block(1)).unwrap());
    close(&f32_values(&file["hidden"]), &expected, 1e-5);

    assert_eq!((report["tokens"].as_u64(), report["d_model"].as_u64()), (Some(tokens as u64), Some(D_MODEL as u64)));
    assert_eq!(report["hook"], "model.layers.1");
    assert_eq!(report["out"], "out.safetensors");
    assert_eq!(report["grid"], serde_json::json!([4, 4]));
    let ends: Vec<u64> = report["spans"].as_array().unwrap().iter().map(|span| span["end"].as_u64().unwrap()).collect();
    assert_eq!(ends.last(), Some(&(tokens as u64)));
    assert_eq!(serde_json::from_str::<Value>(&metadata(&place, "spans")).unwrap(), report["spans"]);
    assert_eq!(metadata(&place, "hook_point"), "model.layers.1");

    let provenance = &report["provenance"];
    assert_eq!(serde_json::from_str::<Value>(&metadata(&place, "provenance")).unwrap(), *provenance);
    let model = provenance["model"].as_str().unwrap();
    assert!(model.starts_with("model@") && model.len() == "model@".len() + 12, "{model}");
    assert_eq!((&provenance["dtype"], &provenance["device"]), (&"f32".into(), &"cpu".into()));
    assert_eq!(provenance["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(provenance["promptHash"].as_str().unwrap().len(), 12);
    assert_eq!(provenance["date"].as_str().unwrap().len(), "2025-01-01".len());
    assert!(provenance["imageSet"].as_str().unwrap().starts_with("picture.png@"));
}

#[test]
fn a_raw_prompt_is_taken_as_it_stands() {
    let place = Place::new();
    place.answer("extract --model model --raw-prompt What~is~this? --hook layers.0 --out out.safetensors");
    let lmm = load(&place);
    let input = PromptInput { text: "What is this?".into(), ..PromptInput::default() };
    let prepared = lmm.prepare(&input).unwrap();
    let ids = i32_values(&read_tensors(&place.at("out.safetensors"))["input_ids"]);
    assert_eq!(ids, prepared.input_ids.iter().map(|id| *id as i32).collect::<Vec<_>>());
    assert_eq!(ids[0], 1, "the tokenizer's own BOS");
    place.answer("extract --model model --raw-prompt <image> --image picture.png --layer 0 --out out.safetensors");
    let ids = i32_values(&read_tensors(&place.at("out.safetensors"))["input_ids"]);
    assert_eq!(ids.len(), 1 + PICTURE_TOKENS);
}

#[test]
fn the_vision_tower_has_hook_points_too() {
    let place = Place::new();
    let report = place.json(&EXTRACT.replace("--layer 1", "--hook vision.0"));
    let hidden = &read_tensors(&place.at("out.safetensors"))["hidden"];
    let lmm = load(&place);
    let expected = lmm.hidden_at(&prepared(&place, &lmm), Hook::Vision(0)).unwrap();
    assert_eq!(hidden.1, expected.dims());
    close(&f32_values(hidden), &f32_from_tensor(expected), 1e-5);
    assert_eq!(report["rows"].as_u64(), Some(hidden.1[0] as u64));

    // The tower has no words of its own; the picture has, on its way to the language model.
    let line = format!("{} --lens 3", EXTRACT.replace("--layer 1", "--hook vision.0"));
    let lens = place.json(&line)["lens"].clone();
    let file = read_tensors(&place.at("out.safetensors"));
    assert_eq!(file["lens_embedding_ids"].1, [PICTURE_TOKENS, 3]);
    assert!(!file.contains_key("lens_logit_ids"));
    assert_eq!((&lens["logit"], lens["embedding"].as_array().map(Vec::len)), (&serde_json::json!([]), Some(17)));
    assert_eq!(place.answer(&line).lines().count(), PICTURE_TOKENS + 1, "people see a line per picture position");
}

#[test]
fn lenses_are_words_of_every_position() {
    let place = Place::new();
    let report = place.json(&format!("{EXTRACT} --lens 3"));
    let tokens = report["tokens"].as_u64().unwrap() as usize;
    let file = read_tensors(&place.at("out.safetensors"));
    for (name, rows) in [("logit", tokens), ("embedding", PICTURE_TOKENS)] {
        let (ids, scores) = (&file[&format!("lens_{name}_ids")], &file[&format!("lens_{name}_scores")]);
        assert_eq!((&ids.1, &scores.1), (&vec![rows, 3], &vec![rows, 3]), "{name}");
        assert!(f32_values(scores).chunks(3).all(|row| row[0] >= row[1] && row[1] >= row[2]), "{name}");
        let words = report["lens"][name].as_array().unwrap();
        assert_eq!(words.len(), rows);
        assert!(words.iter().all(|row| row.as_array().unwrap().len() == 3 && row[0]["token"].is_string()));
        assert_eq!(words[0][0]["id"].as_i64(), Some(i64::from(i32_values(ids)[0])));
    }
    assert!(place.answer(&format!("{EXTRACT} --lens 3")).lines().count() > tokens, "people see a line per token");
}

#[test]
fn flags_are_environment_variables_too() {
    let place = Place::new();
    place.answer(EXTRACT);
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_lmm-scope"));
    command.arg("extract").current_dir(place.path()).env_remove("RUST_LOG");
    for (name, value) in [("MODEL", "model"), ("IMAGE", "picture.png"), ("PROMPT", "What is this?"), ("LAYER", "1")] {
        command.env(format!("LMM_SCOPE_{name}"), value);
    }
    let output = command.env("LMM_SCOPE_OUT", "again.safetensors").env("LMM_SCOPE_JSON", "1").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(serde_json::from_slice::<Value>(&output.stdout).unwrap()["tokens"].is_number(), "LMM_SCOPE_JSON=1");
    let hidden = |name: &str| read_tensors(&place.at(name))["hidden"].clone();
    assert_eq!(hidden("again.safetensors"), hidden("out.safetensors"));
}

/// `top_indices` and `top_acts` are those of the SAE in this process.
fn check_encoded(place: &Place, hidden: &[f32]) {
    let tokens = hidden.len() / D_MODEL;
    let file = read_tensors(&place.at("out.safetensors"));
    assert_eq!(file.keys().collect::<Vec<_>>(), ["top_acts", "top_indices"]);
    assert_eq!((&file["top_indices"].1, &file["top_acts"].1), (&vec![tokens, K], &vec![tokens, K]));
    let sae = load_sae(place);
    let data = TensorData::new(hidden.to_vec(), [tokens, D_MODEL]);
    let hidden = Tensor::<Cpu, 2>::from_data(data, &sae.b_dec.device());
    let acts = f32_values(&file["top_acts"]);
    close(&acts, &sae.encode(hidden.clone()).acts, 1e-4);
    // Which of two nearly equal latents comes first may differ; each must have its own activation.
    let all = f32_from_tensor(sae.activations(hidden));
    for (slot, (&index, &act)) in i32_values(&file["top_indices"]).iter().zip(&acts).enumerate() {
        if act > 0.0 {
            close(&[act], &[all[slot / K * LATENTS + index as usize]], 1e-4);
        }
    }
    assert!(acts.chunks(K).all(|row| row.is_sorted_by(|a, b| a >= b)), "falling activations");
}

#[test]
fn encode_is_the_sae_of_this_process() {
    let place = Place::new();
    let line = "encode --sae sae --hidden hidden.safetensors --out out.safetensors";
    let report = place.json(line);
    assert_eq!((report["tokens"].as_u64(), report["k"].as_u64()), (Some(3), Some(K as u64)));
    let path = place.at("hidden.safetensors");
    let hidden = f32_values(&read_tensors(&path)["hidden"]);
    check_encoded(&place, &hidden);

    let halves: [(Dtype, fn(f32) -> ([u8; 2], f32)); 2] = [
        (Dtype::F16, |value| (f16::from_f32(value).to_le_bytes(), f16::from_f32(value).to_f32())),
        (Dtype::BF16, |value| (bf16::from_f32(value).to_le_bytes(), bf16::from_f32(value).to_f32())),
    ];
    for (dtype, half) in halves {
        let stored: Stored = (dtype, vec![3, D_MODEL], hidden.iter().flat_map(|value| half(*value).0).collect());
        change_tensors(&path, |tensors| drop(tensors.insert("hidden".into(), stored)));
        place.answer(line);
        check_encoded(&place, &hidden.iter().map(|value| half(*value).1).collect::<Vec<_>>());
    }
}

#[test]
fn what_extract_writes_encode_reads() {
    let place = Place::new();
    place.answer(EXTRACT);
    fs::rename(place.at("out.safetensors"), place.at("hidden.safetensors")).unwrap();
    place.answer("encode --sae sae/model.layers.1 --hidden hidden.safetensors --out out.safetensors --device cpu");
    check_encoded(&place, &f32_values(&read_tensors(&place.at("hidden.safetensors"))["hidden"]));
}

#[test]
fn steer_gives_three_texts() {
    let place = Place::new();
    let line = format!("{STEER} --clamp 3=20,5=1 --add 7=-2 --orthogonal 9=4 --ablate 11 --top-alternatives 2");
    let report = place.json(&line);
    for name in ["original", "reconstructed", "steered"] {
        let text = &report[name];
        assert!(text["text"].is_string(), "{name}: {text}");
        let tokens = text["token_ids"].as_array().unwrap().len();
        assert!(tokens <= 4);
        let logprobs = numbers(&text["logprobs"]);
        assert!(logprobs.len() == tokens && logprobs.iter().all(|logprob| *logprob <= 1e-4), "{name}: {logprobs:?}");
        if tokens > 0 {
            let first = &text["alternatives"][0];
            assert_eq!(first.as_array().unwrap().len(), 2);
            assert_eq!(first[0]["id"], text["token_ids"][0], "greedy takes the likeliest");
        }
    }
    let intervention = &report["intervention"];
    assert_eq!((&intervention["positions"], &intervention["hook"]), (&"all".into(), &"model.layers.1".into()));
    let ops: Vec<&str> =
        intervention["edits"].as_array().unwrap().iter().map(|edit| edit["op"].as_str().unwrap()).collect();
    assert_eq!(ops, ["clamp", "clamp", "add", "orthogonal", "ablate"]);
    assert_eq!(report["provenance"]["saeRevision"].as_str().unwrap().len(), 12);
}

#[test]
fn steer_is_the_intervention_of_this_process() {
    let place = Place::new();
    let report = place.json(&format!("{STEER} --add 7=30 --positions prefill"));
    let lmm = load(&place);
    let intervention = |edits: Vec<Edit>, positions: Positions| Intervention {
        hook: Hook::Block(1),
        sae: Arc::new(load_sae(&place)),
        edits,
        positions,
        keep_error: false,
    };
    let options = GenerateOptions { max_new_tokens: 4, ..GenerateOptions::default() };
    let steered = intervention(vec![Edit { feature: 7, op: EditOp::Add(30.0) }], Positions::Prefill);
    let plain = intervention(Vec::new(), Positions::All);
    for (name, intervention) in [("original", None), ("reconstructed", Some(plain)), ("steered", Some(steered))] {
        let prepared = prepared(&place, &lmm);
        let go_on = &mut |_: &model::GeneratedToken| ControlFlow::Continue(());
        let expected = model::generate(&lmm, &prepared, &options, intervention.as_ref(), go_on).unwrap();
        let ids: Vec<u32> = expected.tokens.iter().map(|token| token.id).collect();
        assert_eq!(report[name]["token_ids"], serde_json::json!(ids), "{name}");
        assert_eq!(report[name]["text"], expected.text.as_str(), "{name}");
        let logprobs: Vec<f32> = expected.tokens.iter().map(|token| token.logprob).collect();
        close(&numbers(&report[name]["logprobs"]), &logprobs, 1e-3);
    }
}

#[test]
fn steering_without_a_picture_reads_like_three_texts() {
    let place = Place::new();
    let line = "steer --model model --sae sae/model.layers.1 --hook layers.1 --raw-prompt What --ablate 3 8 \
                --positions 0,1 --max-new-tokens 3 --temperature 0.8 --top-p 0.9 --seed 5 --keep-error";
    let text = place.answer(line);
    for label in ["the model as it is:", "through the SAE:", "steered (ablate 3, ablate 8 at 0,1):"] {
        assert!(text.contains(label), "{text}");
    }
    assert_eq!(text, place.answer(line), "a seed repeats");
}

#[test]
fn attributions_are_the_sum_of_picture_and_text() {
    let place = Place::new();
    let report = place.json(&format!("{ATTRIBUTE} --answer-id 10 --baseline-id 20 --verify 5 --top 7"));
    let file = read_tensors(&place.at("out.safetensors"));
    let names = ["attribution", "attribution_image", "attribution_text", "logit_difference"];
    assert_eq!(file.keys().collect::<Vec<_>>(), names);
    let [total, image, text] = ["attribution", "attribution_image", "attribution_text"].map(|name| {
        assert_eq!(file[name].1, [LATENTS], "{name}");
        f32_values(&file[name])
    });
    let sums: Vec<f32> = image.iter().zip(&text).map(|(image, text)| image + text).collect();
    close(&total, &sums, 1e-4);
    assert_eq!(file["logit_difference"].1, [1]);
    close(&f32_values(&file["logit_difference"]), &[report["logit_difference"].as_f64().unwrap() as f32], 1e-5);

    let top = report["top_features"].as_array().unwrap();
    assert!(!top.is_empty() && top.len() <= 7);
    let sizes: Vec<f32> = top.iter().map(|feature| feature["attribution"].as_f64().unwrap().abs() as f32).collect();
    assert!(sizes.is_sorted_by(|a, b| a >= b), "{sizes:?}");
    for feature in top {
        let index = feature["index"].as_u64().unwrap() as usize;
        close(
            &numbers(&serde_json::json!([feature["attribution"], feature["image"]])),
            &[total[index], image[index]],
            1e-5,
        );
        assert!(feature["activation_max"].as_f64().unwrap() > 0.0);
    }

    let effects = report["verify"]["effects"].as_array().unwrap();
    assert!(!effects.is_empty() && effects.len() <= 5);
    assert_eq!(effects[0]["index"], top[0]["index"], "the largest are removed");
    assert!(report["verify"]["correlation"].is_number() || effects.len() < 2);
    assert!(report["verify"]["method"].as_str().unwrap().contains("no other feature takes its place"));
    assert_eq!(report["passes"], serde_json::json!({ "forward": 3, "backward": 1 }));
}

#[test]
fn an_attribution_map_adds_up_to_its_feature() {
    let place = Place::new();
    let line = format!("{ATTRIBUTE} --answer cat --baseline dog");
    let report = place.json(&line);
    let dashed = place.json(&format!("{ATTRIBUTE} --answer -cat --baseline dog"));
    assert_eq!(dashed["answer"]["text"], "-", "a word may begin with a dash");
    let lmm = load(&place);
    assert_eq!(report["answer"]["id"].as_u64(), Some(u64::from(lmm.first_token("cat").unwrap())));
    let feature = report["top_features"][0]["index"].as_u64().unwrap();
    let text = place.answer(&format!("{line} --map {feature}"));
    assert!(text.contains("logit difference"), "{text}");
    let file = read_tensors(&place.at("out.safetensors"));
    assert_eq!(file["attribution_map"].1, [prepared(&place, &lmm).input_ids.len()]);
    let sum: f32 = f32_values(&file["attribution_map"]).iter().sum();
    close(&[sum], &[f32_values(&file["attribution"])[feature as usize]], 1e-4);
}
