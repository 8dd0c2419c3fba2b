//! Rules about the tracked files themselves.

use regex::RegexSet;
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Longest Rust file: past that, look again.
const RUST_LINES: usize = 600;

/// What the committed demo may weigh.
const POCKET_BYTES: u64 = 45 << 20;

/// Tracked files and new ones that are not ignored, without those removed from disk.
fn tracked() -> Vec<PathBuf> {
    let git = ["ls-files", "-z", "--cached", "--others", "--exclude-standard"];
    let output = Command::new("git").args(git).current_dir(tests::root()).output().expect("git runs");
    assert!(output.status.success(), "git ls-files failed: {}", String::from_utf8_lossy(&output.stderr));
    let mut files: Vec<PathBuf> = String::from_utf8(output.stdout)
        .unwrap()
        .split('\0')
        .filter(|name| !name.is_empty())
        .map(|name| tests::root().join(name))
        .filter(|path| path.is_file())
        .collect();
    files.sort();
    files.dedup();
    assert!(files.len() > 20, "only {} files: is this a checkout?", files.len());
    files
}

fn name(path: &Path) -> String {
    path.strip_prefix(tests::root()).unwrap_or(path).display().to_string()
}

fn has_extension(path: &Path, extensions: &[&str]) -> bool {
    path.extension().is_some_and(|found| extensions.iter().any(|extension| found == *extension))
}

/// Folders that only exist where somebody works. The pieces are joined here, so that this file does not hold what
/// it looks for.
fn machine_paths() -> RegexSet {
    let start = r#"(^|[\s"'`(=:\[])"#;
    let folders = [["/wo", "rk/"], ["/ro", "ot/"], ["/ho", "me/[a-z]"], ["/Us", "ers/[A-Za-z]"], ["/tmp", "/[a-z]"]];
    let windows = [r"[A-Z]:\\", "Users"].concat();
    RegexSet::new(folders.map(|parts| format!("{start}{}", parts.concat())).into_iter().chain([windows])).unwrap()
}

#[test]
fn no_file_mentions_somebodys_machine() {
    let patterns = machine_paths();
    let mut wrong = Vec::new();
    let mut seen = 0;
    for path in tracked() {
        // What is not text holds no paths that a person wrote.
        let Ok(text) = fs::read_to_string(&path) else { continue };
        seen += 1;
        for (number, line) in text.lines().enumerate() {
            if patterns.is_match(line) {
                wrong.push(format!("{}:{}: {}", name(&path), number + 1, line.chars().take(120).collect::<String>()));
            }
        }
    }
    assert!(seen > 20, "only {seen} text files read");
    assert!(wrong.is_empty(), "paths of one machine:\n{}", wrong.join("\n"));
}

#[test]
fn machine_paths_are_recognised() {
    let patterns = machine_paths();
    for bad in ["cd /wo~rk/main", "\"/ro~ot/.cargo\"", "see /ho~me/ann/x", "(/tmp~/q/ask)", r"C:\Us~ers"] {
        let bad = bad.replace('~', "");
        assert!(patterns.is_match(&bad), "{bad} passes");
    }
    for fine in ["docs/framework/x", "std::env::temp_dir()", "https://example.org/home/ann", "$HOME/.cache"] {
        assert!(!patterns.is_match(fine), "{fine} is caught");
    }
}

#[test]
fn rust_files_are_short_enough_to_read() {
    let long: Vec<String> = tracked()
        .into_iter()
        .filter(|path| has_extension(path, &["rs"]))
        .filter_map(|path| {
            let lines = fs::read_to_string(&path).unwrap().lines().count();
            (lines > RUST_LINES).then(|| format!("{}: {lines} lines", name(&path)))
        })
        .collect();
    assert!(long.is_empty(), "longer than {RUST_LINES} lines: {long:#?}");
}

#[test]
fn nothing_is_left_for_later() {
    // In pieces for the same reason as above.
    let marks = [["TO", "DO"], ["FIX", "ME"], ["XX", "X"]].map(|parts| parts.concat());
    let mut wrong = Vec::new();
    for path in tracked().into_iter().filter(|path| has_extension(path, &["rs", "wgsl", "css", "sql", "toml"])) {
        for (number, line) in fs::read_to_string(&path).unwrap().lines().enumerate() {
            let words = || line.split(|c: char| !c.is_alphanumeric());
            if words().any(|word| marks.iter().any(|mark| mark == word)) {
                wrong.push(format!("{}:{}", name(&path), number + 1));
            }
        }
    }
    assert!(wrong.is_empty(), "finish these or open an issue: {wrong:#?}");
}

#[test]
fn the_committed_demo_is_small() {
    let folder = tests::root().join("public/pocket");
    let mut bytes = 0;
    for entry in walkdir::WalkDir::new(&folder) {
        let entry = entry.unwrap();
        if entry.file_type().is_file() {
            bytes += entry.metadata().unwrap().len();
        }
    }
    assert!(bytes > 0, "{} is empty", name(&folder));
    assert!(bytes <= POCKET_BYTES, "{} holds {bytes} bytes, at most {POCKET_BYTES} may be committed", name(&folder));
}

/// The README is read by people who have a minute.
#[test]
fn the_readme_is_short_and_its_links_lead_somewhere() {
    let readme = fs::read_to_string(tests::root().join("README.md")).unwrap();
    assert!(readme.lines().count() <= 120, "README.md has {} lines", readme.lines().count());
    let link = regex::Regex::new(r"\]\(([^)#]+)[^)]*\)").unwrap();
    let broken: Vec<&str> = link
        .captures_iter(&readme)
        .map(|found| found.get(1).unwrap().as_str())
        .filter(|target| !target.contains("://") && !tests::root().join(target).exists())
        .collect();
    assert!(broken.is_empty(), "README.md links to nothing at {broken:?}");
}
