//! `train-sae`: killed at random and started again it ends with the same numbers; what it writes is an SAE for the
//! other commands.

use crate::common::{Case, D_MODEL, Place, all_refused, f32_tensor, read_tensors, write_tensors};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};
use store::files::{TrainingRow, read_training};

const TRAIN: &str = "train-sae --hidden states --latents 512 --k 8 --batch-tokens 512 --tokens 76800 \
                     --dead-tokens 2048 --lr 0.002 --save-every 5";
const STEPS: u64 = 150;

/// `states/` with two files of 4,000 tokens.
fn states(place: &Place) {
    fs::create_dir_all(place.at("states")).unwrap();
    for file in 0..2 {
        let value = |i: usize| {
            let (token, dimension) = (i / D_MODEL + file * 4000, i % D_MODEL);
            ((token * 31 % 97) as f32 * 0.1 + dimension as f32).sin() + ((token * dimension) as f32 * 0.013).cos()
        };
        let values: Vec<f32> = (0..4000 * D_MODEL).map(value).collect();
        let tensors = BTreeMap::from([("hidden".to_owned(), f32_tensor(&[4000, D_MODEL], &values))]);
        write_tensors(&place.at(&format!("states/hidden-{file:05}.safetensors")), &tensors);
    }
}

fn log(out: &Path) -> Vec<TrainingRow> {
    let rows = read_training(&out.join("training/log.parquet")).unwrap();
    rows.into_iter().map(|row| TrainingRow { tokens_per_second: 0.0, ..row }).collect()
}

/// Starts a run and kills it after a while; true if it had ended before.
fn run_and_kill(place: &Place, out: &str, after: Duration) -> bool {
    let words = format!("{TRAIN} --out {out}");
    let mut child = Command::new(env!("CARGO_BIN_EXE_lmm-scope"))
        .args(words.split_whitespace())
        .current_dir(place.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let begun = Instant::now();
    while begun.elapsed() < after {
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success(), "{status}");
            return true;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    false
}

#[test]
fn killed_at_any_moment_it_ends_with_the_same_numbers() {
    let place = Place::new();
    states(&place);
    let begun = Instant::now();
    let whole = place.run(&format!("{TRAIN} --out sae/whole --json"));
    let took = begun.elapsed();
    assert!(whole.status.success(), "{}", String::from_utf8_lossy(&whole.stderr));
    let report: Value = serde_json::from_slice(&whole.stdout).unwrap();
    assert_eq!((report["steps"].as_u64(), report["resumed_at"].as_u64()), (Some(STEPS), Some(0)));

    // At moments that differ from round to round; later ones let it come further, whatever the machine.
    let mut kills = 0;
    for round in 0u32.. {
        let share = f64::from(round * 37 % 100) / 100.0;
        if run_and_kill(&place, "sae/parts", took.mul_f64(share.max(0.05) * (1.0 + f64::from(round) / 20.0))) {
            break;
        }
        kills += 1;
        assert!(kills < 200, "it does not get on");
    }
    assert!(kills > 0, "it was never killed");
    for file in ["sae.safetensors", "training/checkpoint.safetensors"] {
        let [whole, parts] = ["sae/whole", "sae/parts"].map(|out| read_tensors(&place.at(out).join(file)));
        assert!(whole == parts, "{file} after {kills} kills");
    }
    assert_eq!(log(&place.at("sae/whole")), log(&place.at("sae/parts")), "after {kills} kills");
    assert_eq!(log(&place.at("sae/whole")).len() as u64, STEPS);
}

#[test]
fn the_other_commands_read_what_it_writes() {
    let place = Place::new();
    states(&place);
    let line = "train-sae --hidden states --expansion 2 --k 6 --batch-tokens 500 --out trained/model.layers.1";
    let report = place.json(line);
    assert_eq!((report["latents"].as_u64(), report["k"].as_u64()), (Some(2 * D_MODEL as u64), Some(6)));
    assert_eq!((report["steps"].as_u64(), report["tokens"].as_u64()), (Some(16), Some(8000)));
    assert!(report["fvu"].as_f64().unwrap() > 0.0 && report["tokens_per_second"].as_f64().unwrap() > 0.0);
    assert_eq!(report["settings"]["multi_topk"], true);
    let again = place.json(line);
    assert_eq!((again["resumed_at"].as_u64(), &again["tokens_per_second"]), (Some(16), &Value::Null));
    assert_eq!(
        (&again["provenance"]["saeRevision"], &again["fvu"]),
        (&report["provenance"]["saeRevision"], &report["fvu"])
    );
    assert!(place.answer(line).contains("nothing was left to do"));

    let encoded = place.json("encode --sae trained --hidden hidden.safetensors --out features.safetensors");
    assert_eq!((encoded["k"].as_u64(), encoded["latents"].as_u64()), (Some(6), Some(2 * D_MODEL as u64)));
    place.answer("quantize --sae trained --out shards --tiers int8 --hidden hidden.safetensors");
    let steered = "steer --model model --sae trained --layer 1 --raw-prompt a --clamp 3=2 --max-new-tokens 2";
    place.answer(steered);
}

#[test]
fn what_is_wrong_is_said() {
    let line = |rest: &str| format!("train-sae --hidden hidden.safetensors --out out {rest}");
    all_refused(&[
        Case::new("train-sae --hidden hidden.safetensors", |_| (), "--out"),
        Case::new("train-sae --out out", |_| (), "--hidden"),
        Case::new("train-sae --hidden missing --out out", |_| (), "missing: "),
        Case::new("train-sae --hidden picture.png --out out", |_| (), "picture.png: not a safetensors file"),
        Case::new("train-sae --hidden model --out out", |_| (), "there is no tensor `hidden`"),
        Case::new(line(""), |_| (), "--batch-tokens: 8192, but there are 3 hidden states"),
        Case::new(line("--batch-tokens 2 --k 0"), |_| (), "`0` is not a whole number from 1 up"),
        Case::new(line("--batch-tokens 2 --k 99 --latents 64"), |_| (), "--k: 99; it must be between 1 and the 64"),
        Case::new(line("--batch-tokens 2 --latents 64 --expansion 2"), |_| (), "--expansion"),
        Case::new(line("--batch-tokens 2 --tokens 1"), |_| (), "--tokens: 1 are less than one batch of 2"),
        Case::new(line("--batch-tokens 2 --lr nan"), |_| (), "--lr: NaN; it must be above 0"),
        Case::new(line("--batch-tokens 2 --dtype f16"), |_| (), "f16"),
        Case::new(line("--batch-tokens 2 --multi-topk maybe"), |_| (), "--multi-topk"),
        Case::new(line("--batch-tokens 2"), |place| fs::write(place.at("out"), "").unwrap(), "out: is not a folder"),
        Case::new(
            "train-sae --hidden hidden.safetensors --batch-tokens 2 --out sae/model.layers.1",
            |_| (),
            "holds an SAE that was not trained here",
        ),
    ]);
}
