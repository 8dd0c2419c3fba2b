//! `docs/architecture.md`: dependencies point one way, and each crate knows only its own business.

use serde::Deserialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    process::Command,
};

/// What `cargo metadata` says, as far as it is looked at here. (The crate for it switches on features of others, with
/// which they would be compiled twice: for the tests and for the demo.)
#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    manifest_path: PathBuf,
    dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    /// `None`: an ordinary one; else `dev` or `build`.
    kind: Option<String>,
}

/// Every crate of the workspace and those of ours it may use, outside its own tests.
const MAY_USE: [(&str, &[&str]); 12] = [
    ("api", &[]),
    ("frontend", &["api"]),
    ("gpu-worker", &["api", "shaders"]),
    ("model", &[]),
    ("pipeline", &["api", "model", "store"]),
    ("server", &["api", "frontend", "model", "pipeline", "store"]),
    ("shaders", &[]),
    ("store", &["api"]),
    ("tests", &["api"]),
    ("wasm-runner", &[]),
    ("xtask", &[]),
    ("lmm-worker", &["api", "model", "shaders"]),
];

/// What a crate must not know, tests included: the column "never knows" of the map.
const NEVER_KNOWS: [(&str, &[&str]); 7] = [
    ("api", &["axum", "burn", "leptos", "parquet", "reqwest", "sqlx", "tokio", "wgpu"]),
    ("frontend", &["axum", "burn", "parquet", "sqlx", "wgpu"]),
    ("gpu-worker", &["burn", "leptos"]),
    ("model", &["axum", "leptos", "parquet", "reqwest", "sqlx"]),
    ("pipeline", &["axum", "leptos"]),
    ("shaders", &["api", "burn", "reqwest", "serde", "sqlx"]),
    ("store", &["axum", "burn", "leptos"]),
];

fn metadata() -> Metadata {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["metadata", "--no-deps", "--format-version", "1"]).current_dir(tests::root());
    let said = cargo.output().unwrap();
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    serde_json::from_slice(&said.stdout).unwrap()
}

fn dependencies(package: &Package, also_tests: bool) -> BTreeSet<String> {
    let counts = |found: &&Dependency| also_tests || found.kind.as_deref() != Some("dev");
    package.dependencies.iter().filter(counts).map(|found| found.name.clone()).collect()
}

#[test]
fn dependencies_point_one_way() {
    let may_use: BTreeMap<&str, &[&str]> = MAY_USE.into_iter().collect();
    let metadata = metadata();
    let ours: BTreeSet<String> = metadata.packages.iter().map(|package| package.name.to_string()).collect();
    let mut wrong = Vec::new();
    for package in &metadata.packages {
        let Some(allowed) = may_use.get(package.name.as_str()) else {
            wrong.push(format!("{}: a new crate needs its line in MAY_USE and in docs/architecture.md", package.name));
            continue;
        };
        let used = dependencies(package, false);
        let forbidden = used.iter().filter(|name| ours.contains(*name) && !allowed.contains(&name.as_str()));
        wrong.extend(forbidden.map(|name| format!("{} → {name}", package.name)));
    }
    assert!(wrong.is_empty(), "edges that docs/architecture.md does not have: {wrong:#?}");
    let edges: usize = metadata.packages.iter().map(|package| dependencies(package, false).len()).sum();
    assert!(edges > ours.len(), "only {edges} dependencies seen: is the metadata whole?");
}

#[test]
fn each_crate_knows_only_its_own_business() {
    let metadata = metadata();
    let mut wrong = Vec::new();
    for (name, never) in NEVER_KNOWS {
        let package = metadata.packages.iter().find(|package| package.name.as_str() == name);
        let known = dependencies(package.unwrap_or_else(|| panic!("no crate {name}")), true);
        let forbidden = never.iter().filter(|never| known.contains(**never));
        wrong.extend(forbidden.map(|forbidden| format!("{name} knows {forbidden}")));
    }
    assert!(wrong.is_empty(), "docs/architecture.md says never: {wrong:#?}");
}

/// Versions live once, in the root's `[workspace.dependencies]`.
#[test]
fn crates_name_no_versions_of_their_own() {
    let metadata = metadata();
    let mut wrong = Vec::new();
    for package in &metadata.packages {
        let manifest: Vec<String> =
            std::fs::read_to_string(&package.manifest_path).unwrap().lines().map(str::to_owned).collect();
        let mut section = String::new();
        for line in manifest {
            if line.starts_with('[') {
                section = line;
            } else if section.contains("dependencies") && has_own_version(&section, &line) {
                wrong.push(format!("{}: {line}", package.name));
            }
        }
    }
    assert!(wrong.is_empty(), "move these versions to the root Cargo.toml: {wrong:#?}");
}

/// `serde = "1"` or `version = …` inside a dependency.
fn has_own_version(section: &str, line: &str) -> bool {
    let Some((name, value)) = line.split_once('=') else { return false };
    let is_table = section.contains("dependencies.");
    line.contains("version =") || (!is_table && !name.contains('.') && value.trim_start().starts_with('"'))
}

#[test]
fn own_versions_are_recognised() {
    assert!(has_own_version("[dependencies]", "serde = \"1\""));
    assert!(has_own_version("[dependencies]", "serde = { version = \"1\" }"));
    assert!(has_own_version("[dependencies.serde]", "version = \"1\""));
    assert!(!has_own_version("[dependencies]", "serde.workspace = true"));
    assert!(!has_own_version("[dependencies]", "serde = { workspace = true, optional = true }"));
    assert!(!has_own_version("[dependencies.web-sys]", "features = [\"Blob\"]"));
}
