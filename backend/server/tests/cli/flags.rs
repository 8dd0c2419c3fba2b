//! Flags that are missing, contradict each other, or name what is not there.

use crate::common::{Case, all_refused};

const MODEL: &str = "--model model --image picture.png --prompt What~is~this?";
const FULL: &str = "--model model --image picture.png --prompt What~is~this? --layer 1";
const OUT: &str = "--out out.safetensors";
const ENCODE: &str = "encode --sae sae --hidden hidden.safetensors";

/// A run whose files are all in order.
fn case(line: impl Into<String>, says: &'static str) -> Case {
    Case::new(line, |_| (), says)
}

fn extract(flags: &str, says: &'static str) -> Case {
    case(format!("extract {flags}"), says)
}

fn steer(flags: &str, says: &'static str) -> Case {
    case(format!("steer {FULL} --sae sae --max-new-tokens 2 {flags}"), says)
}

fn attribute(flags: &str, says: &'static str) -> Case {
    case(format!("attribute {FULL} --sae sae {OUT} {flags}"), says)
}

#[test]
fn prompts_and_hook_points() {
    let raw = format!("--model model --layer 1 {OUT} --raw-prompt");
    let long = "word~".repeat(400);
    all_refused(&[
        extract(&format!("{FULL} {OUT} --raw-prompt What"), "cannot be used with"),
        extract(&format!("--model model --layer 1 {OUT}"), "required"),
        extract(&format!("{MODEL} {OUT}"), "required"),
        extract(&format!("{FULL} {OUT} --hook layers.1"), "cannot be used with"),
        extract(&format!("{MODEL} {OUT} --layer -1"), "`-1` is not a whole number"),
        extract(&format!("{MODEL} {OUT} --layer one"), "`one` is not a whole number"),
        extract(&format!("{MODEL} {OUT} --layer 3"), "--layer: block 3 does not exist: the language model has 3"),
        extract(&format!("{MODEL} {OUT} --hook layers.99"), "--hook: block 99 does not exist"),
        extract(&format!("{MODEL} {OUT} --hook blocks.1"), "not a hook point"),
        extract(&format!("{MODEL} {OUT} --hook vision.2"), "the vision tower has 2"),
        extract(&format!("--model model --prompt What --hook vision.0 {OUT}"), "needs a picture"),
        extract(&format!("{raw} What --image picture.png"), "names 0 pictures"),
        extract(&format!("{raw} <image>"), "no picture was given"),
        extract(&format!("{raw} <image>~and~<image> --image picture.png"), "names 2 pictures"),
        extract(&format!("--model model --layer 1 {OUT} --image picture.png --prompt <image>"), "names 2 pictures"),
        extract(&format!("{raw} {long}"), "at most 256"),
    ]);
}

#[test]
fn models_devices_and_outputs() {
    let mut cases = vec![
        extract(&format!("--model missing --prompt What --layer 1 {OUT}"), "missing"),
        extract(&format!("--model ./missing/model --prompt What --layer 1 {OUT}"), "./missing/model"),
        extract(&format!("{FULL} {OUT} --device tpu"), "`tpu` is not cpu"),
        extract(&format!("{FULL} {OUT} --device cuda:x"), "`cuda:x` is not cpu"),
        extract(&format!("{FULL} {OUT} --dtype f64"), "`f64` is not f32"),
        extract(&format!("{FULL} --out missing/out.safetensors"), "there is no folder missing for --out"),
        extract(&format!("{FULL} --out model"), "--out names a folder"),
        extract(FULL, "--out <FILE>; see --help"),
        extract(&format!("{FULL} {OUT} --revision main"), "leave the revision out"),
        extract(&format!("{FULL} {OUT} --lens 99999"), "vocabulary"),
        extract(&format!("{FULL} {OUT} --unknown"), "'--unknown' found; see --help"),
        case("extrat", "unrecognized subcommand 'extrat'"),
        extract(&format!("--model model --prompt What --layer 1 {OUT} --image missing.png"), "missing.png"),
        extract(&format!("--model model --prompt What --layer 1 {OUT} --image sae"), "sae: "),
        case(format!("{ENCODE} --out missing/out.safetensors"), "no folder"),
        case(format!("{ENCODE} --out sae"), "--out names a folder"),
        case(format!("encode --sae missing --hidden hidden.safetensors {OUT}"), "no such folder for --sae"),
        case(format!("encode --sae model --hidden hidden.safetensors {OUT}"), "no cfg.json"),
        case(format!("encode --sae sae --hidden missing.safetensors {OUT}"), "missing.safetensors"),
        case(
            format!("attribute {FULL} --sae sae --answer cat --baseline dog --out missing/out.safetensors"),
            "there is no folder missing for --out",
        ),
    ];
    if !cfg!(feature = "cuda") {
        cases.push(extract(
            &format!("{FULL} {OUT} --device cuda"),
            "this build has no CUDA; build with --features cuda",
        ));
        cases.push(steer("--ablate 1 --device cuda:1", "this build has no CUDA; build with --features cuda"));
        cases.push(case(format!("{ENCODE} {OUT} --device cuda:1"), "--device: this build has no CUDA"));
    }
    all_refused(&cases);
}

#[test]
fn features_and_sampling() {
    all_refused(&[
        steer("", "required"),
        steer("--ablate 64", "--ablate: feature 64 does not exist: the SAE has 64 latents"),
        steer("--clamp 99999=1", "feature 99999 does not exist"),
        steer("--ablate -1", "`-1` is not the id of a feature"),
        steer("--ablate 1.5", "`1.5` is not the id of a feature"),
        steer("--clamp 5", "`5` is not ID=VALUE"),
        steer("--clamp five=5", "`five` is not the id of a feature"),
        steer("--clamp 5=NaN", "`NaN` is not a finite number"),
        steer("--clamp 5=inf", "`inf` is not a finite number"),
        steer("--clamp 5=-1", "-1 is below zero"),
        steer("--add 5=1e99", "`1e99` is not a finite number"),
        steer("--orthogonal 5=", "`` is not a finite number"),
        steer("--clamp 5=1 --ablate 5", "--ablate: feature 5 is named twice"),
        steer("--clamp 5=1,5=2", "--clamp: feature 5 is named twice"),
        steer("--ablate 1 --positions nonsense", "`nonsense` is not all"),
        steer("--ablate 1 --positions 2,500", "--positions: there is no position 500"),
        steer("--ablate 1 --positions -1", "`-1` is not all"),
        steer("--ablate 1 --temperature -1", "`-1` is not a number from 0 up"),
        steer("--ablate 1 --temperature NaN", "`NaN` is not a number from 0 up"),
        steer("--ablate 1 --top-p 0", "`0` is not a probability"),
        steer("--ablate 1 --top-p 1.5", "`1.5` is not a probability"),
        steer("--ablate 1 --top-alternatives 99999", "vocabulary"),
        case(format!("steer {FULL} --sae sae --ablate 1 --max-new-tokens 0"), "`0` is not a whole number from 1 up"),
        case(format!("steer {FULL} --ablate 1"), "--sae"),
        case(format!("steer {FULL} --sae missing --ablate 1"), "missing: there is no such folder for --sae"),
        case(
            format!("steer {MODEL} --hook vision.0 --sae sae --ablate 1"),
            "this SAE reads model.layers.1, but vision.0 is asked for",
        ),
        case(
            format!("steer {MODEL} --layer 2 --sae sae/model.layers.1 --ablate 1"),
            "this SAE reads model.layers.1, but model.layers.2 is asked for",
        ),
        case(
            format!("steer {MODEL} --hook vision.0 --sae sae --ablate 1 --positions generated"),
            "--positions: there are no generated positions at vision.0",
        ),
        // Found before the model, which is not there either.
        case(
            "steer --model missing --prompt What --layer 1 --sae sae --clamp 99999=1",
            "--clamp: feature 99999 does not exist",
        ),
        case("steer --model missing --prompt What --layer 1 --sae missing --ablate 1", "no such folder for --sae"),
        case(
            format!("attribute --model missing --prompt What --layer 1 --sae nowhere {OUT} --answer a --baseline b"),
            "nowhere: there is no such folder for --sae",
        ),
        case(
            format!("steer {FULL} --sae owner/sae --ablate 1"),
            "--sae: there is no folder owner/sae, and on the hub: the cache",
        ),
    ]);
}

#[test]
fn answers_and_baselines() {
    all_refused(&[
        attribute("", "required"),
        attribute("--answer cat", "--baseline"),
        attribute("--answer-id 5", "--baseline-id"),
        attribute("--answer cat --baseline-id 5", "--baseline"),
        attribute("--answer= --baseline dog", "--answer: the text is empty"),
        attribute("--answer cat --baseline=", "--baseline: the text is empty"),
        attribute("--answer cat --baseline cat", "both begin with token"),
        attribute("--answer-id 7 --baseline-id 7", "both begin with token 7"),
        attribute("--answer-id 99999 --baseline-id 7", "--answer-id: token 99999 of a vocabulary"),
        attribute("--answer-id 7 --baseline-id 99999", "--baseline-id: token 99999 of a vocabulary"),
        attribute("--answer-id -7 --baseline-id 7", "`-7` is not a whole number"),
        attribute("--answer-id 7 --baseline-id 8 --map 64", "--map: feature 64 does not exist"),
        attribute("--answer-id 7 --baseline-id 8 --verify 65", "--verify: 65 features"),
        attribute("--answer-id 7 --baseline-id 8 --top 0", "`0` is not a whole number from 1 up"),
        case(
            format!("attribute {MODEL} --hook vision.0 --sae sae {OUT} --answer-id 7 --baseline-id 8"),
            "attribution needs a language block",
        ),
    ]);
}
