//! `score` as a process: on the demo's labels, with the exact masks of its scenes.

use serde_json::Value;
use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};
use store::{Store, jobs::Queue};
use tempfile::TempDir;

const FEATURES: &str = "0-79";

struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn artifacts() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../public/pocket")
    }

    fn database(&self) -> String {
        format!("sqlite://{}", self.0.path().join("scope.db").display())
    }

    fn run(&self, line: &str) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lmm-scope"));
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("LMM_SCOPE_") || name == "RUST_LOG" {
                command.env_remove(&name);
            }
        }
        command.args(line.split_whitespace()).arg("--database").arg(self.database());
        command.arg("--artifacts").arg(Self::artifacts()).current_dir(self.0.path()).output().unwrap()
    }

    fn said(&self, line: &str) -> String {
        let output = self.run(line);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && stderr.is_empty(), "{line}\n{stderr}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn json(&self, line: &str) -> Value {
        serde_json::from_str(&self.said(&format!("{line} --json"))).unwrap()
    }
}

#[test]
fn labels_are_scored_once_and_reported_as_in_the_papers_table() {
    let place = Place::new();
    let nothing = place.said("score --report");
    assert_eq!(nothing.lines().count(), 1, "{nothing}");
    assert!(nothing.starts_with("no scores of pocket/"), "{nothing}");
    assert_eq!(place.json("score --report")["tables"], serde_json::json!([]));

    let score = format!("score --kinds iou --features {FEATURES} --seed 5");
    let done = place.json(&score);
    let scored = done["scores"]["iou"].as_u64().unwrap();
    let labels = done["labels"].as_u64().unwrap();
    assert!(scored >= 5 && scored <= labels && done["failed"] == 0, "{done}");
    // Names that are no masks', such as words of captions, have no IoU: that is no zero.
    assert_eq!(done["not_applicable"].as_u64().unwrap() + scored, labels, "{done}");

    let runtime = tokio::runtime::Runtime::new().unwrap();
    let stored = || {
        runtime.block_on(async {
            let store = Store::open(&place.database()).await.unwrap();
            let source = store.list_sources().await.unwrap().remove(0);
            let scores = Queue::of_store(&store).list_scores(&source, None).await.unwrap();
            store.close().await;
            scores.into_values().flatten().collect::<Vec<_>>()
        })
    };
    let first = stored();
    assert_eq!(first.len() as u64, scored);
    for score in &first {
        let [low, high] = score.interval;
        assert!(0.0 <= low && low <= score.value && score.value <= high && high <= 1.0, "{score:?}");
        assert!(score.samples >= 1 && score.baseline < 1.0 && score.seed == 5, "{score:?}");
        assert!(score.image_set.contains("pictures"), "{score:?}");
    }
    assert_eq!(place.json(&score)["scores"]["iou"], scored);
    assert_eq!(stored(), first, "replaced by the same");
    let missing = place.json(&format!("{score} --missing"));
    assert_eq!((&missing["known"], &missing["scores"]), (&scored.into(), &serde_json::json!({})), "{missing}");

    let report = place.json("score --report");
    let table = &report["tables"][0];
    assert_eq!(table["columns"][0]["type"], "iou", "{report}");
    let rows = table["rows"].as_array().unwrap();
    let overall = rows.last().unwrap();
    assert_eq!((&overall["category"], &overall["n"]), (&"overall".into(), &scored.into()), "{report}");
    let (value, random) =
        (overall["scores"][0]["value"].as_f64().unwrap(), overall["scores"][0]["random"].as_f64().unwrap());
    assert!(value > random + 0.1, "labels fit better than chance: {value} and {random}");
    let by_category: u64 = rows[..rows.len() - 1].iter().map(|row| row["n"].as_u64().unwrap()).sum();
    assert_eq!(by_category, scored);
    let text = place.said("score --report");
    assert!(text.contains("| category ") && text.contains("| IoU (random) ") && text.contains("| overall "), "{text}");
    assert!(text.contains("\nIoU: exact masks of composed scenes"), "{text}");
    let one = place.json(&format!("score --report --features {}", first[0].feature));
    assert_eq!(one["tables"][0]["rows"].as_array().unwrap().last().unwrap()["n"], 1, "{one}");
}

/// The small random checkpoint that the model's own tests compare with `transformers`: its numbers mean nothing.
#[test]
fn a_clip_model_scores_labels_and_pictures() {
    let place = Place::new();
    let clip = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/fixtures/clip/newer");
    let score = format!("score --kinds clip,monosemanticity --features 0-9 --clip {}", clip.display());
    let done = place.json(&score);
    assert_eq!(done["failed"], 0, "{done}");
    for (number, type_name) in ["clip score", "monosemanticity"].into_iter().enumerate() {
        let author = &done["authors"][number];
        assert_eq!(author[0], type_name, "{done}");
        // Folder and weights.
        assert!(author[1].as_str().is_some_and(|author| author.starts_with("newer@")), "{done}");
        assert!(done["scores"][type_name].as_u64().is_some_and(|count| count > 0), "{done}");
    }
    let report = place.json("score --report");
    let columns = report["tables"][0]["columns"].as_array().unwrap();
    let at = columns.iter().position(|column| column["type"] == "clip score").unwrap();
    let overall = report["tables"][0]["rows"].as_array().unwrap().last().unwrap();
    let cell = &overall["scores"][at];
    let [value, random] = ["value", "random"].map(|key| cell[key].as_f64().unwrap());
    // Cosines would be within 1.
    assert!(value.abs() > 1.0 && value.abs() <= 100.0 && random.abs() <= 100.0, "{report}");

    let other = Place::artifacts().join("model");
    let output = place.run(&format!("score --kinds clip --clip {}", other.display()));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), stderr.lines().count()), (Some(2), 1), "{stderr}");
    assert!(stderr.contains("config.json: model_type \"llava_next\": a CLIP model"), "{stderr}");
}

#[test]
fn what_cannot_be_scored_is_refused_in_one_line() {
    let place = Place::new();
    for (line, says) in [
        ("score --kinds taste", "taste"),
        ("score --kinds clip", "--clip: clip needs it"),
        ("score --kinds iou,monosemanticity", "--clip: monosemanticity needs it"),
        ("score --kinds detection", "--lmm-url: detection needs it"),
        ("score --kinds fuzzing --lmm-url http://127.0.0.1:1/v1", "--lmm-name: fuzzing needs it"),
        ("score --kinds steering --lmm-url http://127.0.0.1:1/v1 --lmm-name m", "--engine: steering needs it"),
        ("score --kinds consistency --lmm-url host:1 --lmm-name m", "host:1: "),
        ("score --kinds clip --clip nowhere", "nowhere"),
        ("score --grounder-url host:1", "host:1: expected the address"),
        ("score --features 99999", "feature 99999 does not exist"),
        ("score --report --kinds iou", "cannot be used with"),
        ("score --seed many", "many"),
        ("score --at-once 0", "at-once"),
    ] {
        let output = place.run(line);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), stderr.lines().count()), (Some(2), 1), "{line}\n{stderr}");
        assert!(stderr.starts_with("error: ") && stderr.contains(says), "{line}\n{stderr}");
        assert!(output.stdout.is_empty(), "{line}");
    }
}
