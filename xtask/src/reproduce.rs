//! `cargo xtask reproduce-pocket`: the walk of docs/reproduce.md, done for real on the demo. Its commands, times, sizes
//! and scores go into that document.

use crate::{paths, process};
use anyhow::{Context, bail};
use serde_json::Value;
use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    thread::available_parallelism,
    time::Instant,
};

/// What the walk is written into, from the repository's root.
const DOCUMENT: &str = "docs/reproduce.md";
const BEGIN: &str = "<!-- begin: written by `make reproduce-pocket` -->\n";
const END: &str = "<!-- end: written by `make reproduce-pocket` -->\n";
/// Folder of everything that the walk makes, as the commands name it.
const WALK: &str = "walk/";
/// The demo, and a database of the walk's own.
const DEMO: &str = "--artifacts public/pocket --database sqlite://walk/scope.db";

/// One command of the walk.
struct Step {
    /// What follows `lmm-scope`, as a person types it in the repository's root.
    line: String,
    /// What it leaves in [`WALK`].
    leaves: &'static str,
    /// What its JSON says was done.
    done: fn(&Value) -> Option<Done>,
}

/// What a command has done.
struct Done {
    /// For people.
    text: String,
    /// How much of what, for the rate.
    count: f64,
    unit: &'static str,
}

impl Done {
    fn new(text: String, count: f64, unit: &'static str) -> Option<Self> {
        Some(Self { text, count, unit })
    }
}

/// What a command took.
struct Taken {
    name: String,
    done: Done,
    seconds: f64,
    bytes: u64,
}

fn steps() -> Vec<Step> {
    let pictures = "--images public/pocket/pictures.parquet";
    let weights = "--sae public/pocket/sae --model public/pocket/model";
    vec![
        Step {
            line: format!("cache {weights} --hook layers.3 {pictures} --out walk/cache"),
            leaves: "cache",
            done: |json| {
                let pictures = json["pictures"].as_f64()?;
                let [shown, tokens, kept] =
                    [pictures, json["tokens"].as_f64()?, json["activations"].as_f64()?].map(grouped);
                let bytes = json["bytesPerActivation"].as_f64()?;
                let text = format!("{shown} pictures, {tokens} tokens, {kept} activations of {bytes:.2} bytes each");
                Done::new(text, pictures, "pictures")
            },
        },
        Step {
            line: format!("index --cache walk/cache {weights} {pictures} --out walk/index"),
            leaves: "index",
            done: |json| {
                let manifest = &json["manifest"];
                let [features, dead] = [manifest["features"].as_f64()?, manifest["dead"].as_f64()?].map(grouped);
                let text = format!("{features} features, {dead} of them silent on these pictures");
                Done::new(text, manifest["activations"].as_f64()?, "activations")
            },
        },
        Step {
            line: format!("explain {DEMO} --interpreter dissect"),
            leaves: "scope.db",
            done: |json| {
                let features = json["features"].as_f64()?;
                let text = format!("the demo imported, {} features in the queue", grouped(features));
                Done::new(text, features, "features")
            },
        },
        Step {
            line: format!("work {DEMO} --interpreter dissect --drain"),
            leaves: "scope.db",
            done: |json| {
                let (done, failed) = (json["done"].as_f64()?, json["failed"].as_f64()?);
                let text = format!("{} jobs done, {} tries failed", grouped(done), grouped(failed));
                Done::new(text, done, "jobs")
            },
        },
        Step {
            line: format!("score {DEMO} --kinds iou"),
            leaves: "scope.db",
            done: |json| {
                let (scores, labels) = (json["scores"]["iou"].as_f64()?, json["labels"].as_f64()?);
                let text = format!("{} labels, {} of which have masks", grouped(labels), grouped(scores));
                Done::new(text, scores, "scores")
            },
        },
    ]
}

/// The last command, which prints for people.
fn report_line() -> String {
    format!("score {DEMO} --report")
}

/// Walks, prints what it took, and writes it into the document.
pub fn run() -> anyhow::Result<()> {
    let folder = paths::target().join("reproduce-pocket");
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("cannot empty {}", folder.display()))?;
    }
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let (mut taken, mut provenance) = (Vec::new(), String::new());
    let steps = steps();
    for step in &steps {
        let begun = Instant::now();
        let answer = answer(&folder, &format!("{} --json", step.line))?;
        let seconds = begun.elapsed().as_secs_f64();
        let json: Value = serde_json::from_str(&answer).with_context(|| format!("{}: {answer}", step.line))?;
        let done = (step.done)(&json).with_context(|| format!("{} says something else: {answer}", step.line))?;
        if let Some(manifest) = json["manifest"].as_object().filter(|manifest| manifest.contains_key("saeRevision")) {
            provenance = provenance_of(&Value::Object(manifest.clone()));
        }
        let name = step.line.split(' ').next().unwrap_or_default().to_owned();
        let bytes = size_of(&folder.join(step.leaves))?;
        println!("  {name}: {} in {seconds:.0} s", done.text);
        taken.push(Taken { name, done, seconds, bytes });
    }
    let report = answer(&folder, &report_line())?;
    let text = text_of(&steps, &taken, &provenance, &report);
    println!("\n{text}");
    let path = paths::root().join(DOCUMENT);
    let document = fs::read_to_string(&path).with_context(|| format!("cannot read {DOCUMENT}"))?;
    fs::write(&path, put_between(&document, &text)?).with_context(|| format!("cannot write {DOCUMENT}"))?;
    println!("written into {DOCUMENT}; what the walk made is in {}", folder.display());
    Ok(())
}

/// Standard output of a command; people see what it says besides.
fn answer(folder: &Path, line: &str) -> anyhow::Result<String> {
    let program = paths::target().join("debug").join(format!("lmm-scope{}", std::env::consts::EXE_SUFFIX));
    let place = format!("{}/", folder.display());
    let mut command = Command::new(&program);
    command.args(line.split_whitespace().map(|word| word.replace(WALK, &place)));
    for (name, _) in std::env::vars_os() {
        // The walk is that of the document, whatever is set here.
        if name.to_string_lossy().starts_with("LMM_SCOPE_") {
            command.env_remove(&name);
        }
    }
    println!("  $ {}", process::line(&command));
    command.current_dir(paths::root()).stderr(Stdio::inherit());
    let output = command.output().with_context(|| format!("cannot start {}", program.display()))?;
    if !output.status.success() {
        bail!("`lmm-scope {line}` failed with {}", output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Where the numbers come from, of a cache's manifest.
fn provenance_of(manifest: &Value) -> String {
    let text = |name: &str| manifest[name].as_str().unwrap_or_default().to_owned();
    let cores = available_parallelism().map_or(1, usize::from);
    format!(
        "On {}, {cores} CPU cores, no GPU: model {}, SAE {}, {}, pictures of `public/pocket/pictures.parquet`, \
         lmm-scope {}.",
        text("date"),
        text("model"),
        text("saeRevision"),
        text("dtype"),
        text("version"),
    )
}

/// Bytes of a file, or of all files in a folder.
fn size_of(path: &Path) -> anyhow::Result<u64> {
    let mut bytes = 0;
    for entry in walkdir::WalkDir::new(path) {
        let metadata = entry.and_then(|entry| entry.metadata());
        let metadata = metadata.with_context(|| format!("cannot measure {}", path.display()))?;
        bytes += if metadata.is_file() { metadata.len() } else { 0 };
    }
    Ok(bytes)
}

/// Commands, what they took, and the scores.
fn text_of(steps: &[Step], taken: &[Taken], provenance: &str, report: &str) -> String {
    let mut text = "```sh\nmkdir walk\n".to_owned();
    for line in steps.iter().map(|step| step.line.clone()).chain([report_line()]) {
        text += &format!("lmm-scope {line}\n");
    }
    text += "```\n\n| step | what was done | time, s | rate | on disk, MB |\n|---|---|---:|---:|---:|\n";
    for Taken { name, done: Done { text: what, count, unit }, seconds, bytes } in taken {
        let (rate, megabytes) = (grouped((count / seconds.max(1e-9)).round()), *bytes as f64 / 1e6);
        text += &format!("| {name} | {what} | {seconds:.0} | {rate} {unit}/s | {megabytes:.1} |\n");
    }
    let seconds: f64 = taken.iter().map(|taken| taken.seconds).sum();
    text += &format!("| all together | | {seconds:.0} | | |\n\n{provenance}\n\n");
    text + "What `score --report` prints, one table for each author of labels:\n\n" + report.trim() + "\n"
}

/// The document with `text` between its marks.
fn put_between(document: &str, text: &str) -> anyhow::Result<String> {
    let parts = document.split_once(BEGIN).and_then(|(before, rest)| Some((before, rest.split_once(END)?.1)));
    let Some((before, after)) = parts else {
        bail!("{DOCUMENT} lacks the lines {} and {}", BEGIN.trim(), END.trim());
    };
    Ok(format!("{before}{BEGIN}\n{text}\n{END}{after}"))
}

/// A whole number as people read it: 1,234,567.
fn grouped(number: f64) -> String {
    let digits = format!("{number:.0}");
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // tests panic on purpose
    use super::*;

    #[test]
    fn the_document_has_a_place_for_the_walk() {
        let document = fs::read_to_string(paths::root().join(DOCUMENT)).unwrap();
        let written = put_between(&document, "the walk\n").unwrap();
        assert!(written.contains(&format!("{BEGIN}\nthe walk\n\n{END}")));
        // Twice is once, and the rest is untouched.
        assert_eq!(put_between(&written, "the walk\n").unwrap(), written);
        assert!(document.starts_with(written.split_once(BEGIN).unwrap().0));
        assert!(document.ends_with(written.split_once(END).unwrap().1));
        assert!(put_between("no marks", "").unwrap_err().to_string().contains(BEGIN.trim()));
    }

    #[test]
    fn commands_say_what_they_have_done() {
        let cache = r#"{"pictures": 3429, "tokens": 222885, "activations": 7132320, "bytesPerActivation": 2.861}"#;
        let index = r#"{"manifest": {"features": 3072, "dead": 1340, "activations": 7132320}}"#;
        let score = r#"{"labels": 2480, "scores": {"iou": 1700}, "not_applicable": 780}"#;
        let answers = [cache, index, r#"{"features": 2073}"#, r#"{"done": 2989, "failed": 0}"#, score];
        let steps = steps();
        let mut taken = Vec::new();
        for (step, answer) in steps.iter().zip(answers) {
            let json: Value = serde_json::from_str(answer).unwrap();
            assert!((step.done)(&Value::Null).is_none(), "{}", step.line);
            let name = step.line.split(' ').next().unwrap().to_owned();
            taken.push(Taken { name, done: (step.done)(&json).unwrap(), seconds: 10.0, bytes: 20_400_000 });
        }
        assert_eq!(taken.len(), steps.len());
        let text = text_of(&steps, &taken, "On a day.", "| table |\n");
        for line in [
            "lmm-scope cache --sae public/pocket/sae --model public/pocket/model --hook layers.3",
            "| cache | 3,429 pictures, 222,885 tokens, 7,132,320 activations of 2.86 bytes each | 10 | 343 pictures/s",
            "| index | 3,072 features, 1,340 of them silent on these pictures | 10 | 713,232 activations/s | 20.4 |",
            "| score | 2,480 labels, 1,700 of which have masks | 10 | 170 scores/s | 20.4 |",
            "| all together | | 50 | | |",
        ] {
            assert!(text.contains(line), "{text} lacks {line}");
        }
        assert!(text.ends_with("| table |\n") && text.contains("score --artifacts public/pocket"), "{text}");
    }

    #[test]
    fn numbers_are_read_in_groups_of_three() {
        assert_eq!([0.0, 7.0, 999.0, 1000.0, 1_234_567.0].map(grouped), ["0", "7", "999", "1,000", "1,234,567"]);
    }

    #[test]
    fn sizes_are_those_of_all_files() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("inner")).unwrap();
        fs::write(folder.path().join("a"), [0; 10]).unwrap();
        fs::write(folder.path().join("inner/b"), [0; 5]).unwrap();
        assert_eq!((size_of(folder.path()).unwrap(), size_of(&folder.path().join("a")).unwrap()), (15, 10));
        assert!(size_of(&folder.path().join("missing")).is_err());
    }
}
