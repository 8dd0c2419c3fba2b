//! `train-sae`: killed at random and started again it ends with the same numbers; what it writes is an SAE for the
//! other commands.

use crate::cache::add_pictures;
use crate::common::{Case, D_MODEL, PICTURE_TOKENS, Place, all_refused, f32_tensor, read_tensors, write_tensors};
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
/// Straight from the model, nine epochs of four pictures, three at a time.
const LIVE: &str = "train-sae --images pictures --model model --layer 1 --latents 64 --k 4 --batch-tokens 32 \
                    --tokens 640 --buffer-pictures 3 --lr 0.002 --dead-tokens 64 --save-every 2";
const LIVE_STEPS: u64 = 20;

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
fn run_and_kill(place: &Place, line: &str, out: &str, after: Duration) -> bool {
    let words = format!("{line} --out {out}");
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

/// One run that ends by itself, and one that is killed until it has ended: the same numbers.
fn killed_or_not(place: &Place, line: &str, steps: u64) -> Value {
    let begun = Instant::now();
    let whole = place.run(&format!("{line} --out sae/whole --json"));
    let took = begun.elapsed();
    assert!(whole.status.success(), "{}", String::from_utf8_lossy(&whole.stderr));
    let report: Value = serde_json::from_slice(&whole.stdout).unwrap();
    assert_eq!((report["steps"].as_u64(), report["resumed_at"].as_u64()), (Some(steps), Some(0)));

    // At moments that differ from round to round; later ones let it come further, whatever the machine.
    let mut kills = 0;
    for round in 0u32.. {
        let share = f64::from(round * 37 % 100) / 100.0;
        let after = took.mul_f64(share.max(0.05) * (1.0 + f64::from(round) / 20.0));
        if run_and_kill(place, line, "sae/parts", after) {
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
    assert_eq!(log(&place.at("sae/whole")).len() as u64, steps);
    report
}

#[test]
fn killed_at_any_moment_it_ends_with_the_same_numbers() {
    let place = Place::new();
    states(&place);
    killed_or_not(&place, TRAIN, STEPS);
}

#[test]
fn straight_from_the_model_as_well() {
    let place = Place::new();
    add_pictures(&place);
    let report = killed_or_not(&place, LIVE, LIVE_STEPS);
    assert!(report["fvu"].as_f64().unwrap() > 0.0);
    assert_eq!((&report["skipped"], &report["first_skipped"][0]["id"]), (&1.into(), &"3b.png".into()));
    // Four pictures an epoch, the duplicate and the broken one aside; the last epoch may be cut off.
    let (epoch, pictures) = (4 * PICTURE_TOKENS as u64, report["pictures"].as_u64().unwrap());
    assert!(pictures >= 4 * (640 / epoch) && pictures <= 4 * (640 / epoch + 1), "{pictures}");
    // The list of pictures stays with the checkpoint; the same command has nothing left to do.
    assert!(place.at("sae/whole/training/source/images.parquet").is_file());
    let again = place.json(&format!("{LIVE} --out sae/whole"));
    assert_eq!((again["resumed_at"].as_u64(), &again["pictures"]), (Some(LIVE_STEPS), &report["pictures"]));
    assert!(place.answer(&format!("{LIVE} --out sae/whole")).contains("skipped 4 (3b.png)"));

    // Texts through the chat template, and another hook point.
    let line = LIVE.replace("--layer 1", "--hook layers.0").replace("--tokens 640", "--tokens 64");
    place.answer(&format!("{line} --prompt What~is~this? --token-kinds text,image --out sae/text"));
    let tower = line.replace("layers.0", "vision.0");
    let report = place.json(&format!("{tower} --out sae/tower"));
    assert_eq!(report["d_model"], 16);
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

#[test]
fn what_is_wrong_with_pictures_is_said() {
    let with_pictures: fn(&Place) = add_pictures;
    let line = |rest: &str| format!("train-sae --images pictures --batch-tokens 8 --out out {rest}");
    let full = |rest: &str| line(&format!("--model model --tokens 64 --layer 1 {rest}"));
    let broken: fn(&Place) = |place| {
        fs::create_dir(place.at("pictures")).unwrap();
        fs::write(place.at("pictures/a.png"), "no picture").unwrap();
    };
    all_refused(&[
        Case::new("train-sae --tokens 64 --out out", |_| (), "--images"),
        Case::new(full("--hidden hidden.safetensors"), with_pictures, "cannot be used with"),
        Case::new(line("--tokens 64 --layer 1"), with_pictures, "--model"),
        Case::new(line("--model model --layer 1"), with_pictures, "--tokens"),
        Case::new(line("--model model --tokens 64"), with_pictures, "--hook: say where --model is read"),
        Case::new(full("--hook layers.1"), with_pictures, "cannot be used with"),
        Case::new(line("--model model --tokens 64 --layer 9"), with_pictures, "--layer: block 9 does not exist"),
        Case::new(line("--model missing --tokens 64 --layer 1"), with_pictures, "missing"),
        Case::new(full("--prompt a --raw-prompt b"), with_pictures, "cannot be used with"),
        Case::new(full("--raw-prompt no~picture"), with_pictures, "--raw-prompt: the prompt names 0 pictures"),
        Case::new(full("--token-kinds sound"), with_pictures, "`sound` is not image or text"),
        Case::new(
            line("--model model --tokens 64 --hook vision.0 --token-kinds text"),
            with_pictures,
            "--token-kinds: vision.0",
        ),
        Case::new(full("--buffer-pictures 0"), with_pictures, "`0` is not a whole number from 1 up"),
        Case::new(full("--k 9999"), with_pictures, "--k: 9999; it must be between"),
        Case::new(full("--device tpu"), with_pictures, "`tpu` is not cpu"),
        Case::new(full("--model-dtype f64"), with_pictures, "`f64` is not f32"),
        Case::new(full("--layout folders"), with_pictures, "is not folder, imagefolder"),
        Case::new(full(""), |_| (), "pictures: "),
        Case::new(full(""), broken, "none of its 1 pictures can be read"),
        Case::new(full("").replace("--out out", "--out pictures/out"), with_pictures, "--out is among the pictures"),
    ]);
}
