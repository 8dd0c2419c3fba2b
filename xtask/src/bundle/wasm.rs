//! From a crate to JavaScript and wasm.

use super::{Bundle, hash, shrink};
use crate::process;
use anyhow::{Context, bail};
use serde::Deserialize;
use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::Stdio,
};
use wasm_bindgen_cli_support::Bindgen;

const TARGET: &str = "wasm32-unknown-unknown";

/// Half of the usual stack: data lies after it, and addresses below 1 MiB are a byte shorter.
const STACK: &str = "link-arg=-zstack-size=524288";

/// Raise when this file or [`shrink`] makes other output from the same wasm, so that old bundles are not kept.
const RECIPE: &str = "2";

/// A part of the names of Rust's functions that write floats: 7 KiB after brotli.
const FLOAT_WRITER: &[u8] = b"flt2dec";

/// One line of cargo's `--message-format json`.
#[derive(Deserialize)]
struct Message {
    reason: String,
    target: Option<MessageTarget>,
    #[serde(default)]
    filenames: Vec<PathBuf>,
}

#[derive(Deserialize)]
struct MessageTarget {
    name: String,
}

/// Compiles the crate and returns the path of its wasm.
pub fn compile(bundle: &Bundle) -> anyhow::Result<PathBuf> {
    let mut cargo = process::cargo();
    cargo.args(["rustc", "--package", bundle.package, "--lib", "--target", TARGET, "--profile", bundle.profile]);
    cargo.args(["--message-format", "json-render-diagnostics"]);
    if let Some(features) = bundle.features {
        cargo.args(["--no-default-features", "--features", features]);
    }
    cargo.args(["--", "-C", STACK]);
    let line = process::line(&cargo);
    let mut child = cargo
        .current_dir(crate::paths::root())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{line}`"))?;
    let stdout = child.stdout.take().context("cargo has no output")?;
    let wasm = find_wasm(bundle, BufReader::new(stdout));
    let status = child.wait()?;
    if !status.success() {
        bail!("`{line}` failed; `cargo xtask setup --demo` installs the wasm target if it is missing");
    }
    wasm?.with_context(|| format!("`{line}` made no wasm: has {} a `cdylib` crate type?", bundle.package))
}

fn find_wasm(bundle: &Bundle, output: impl BufRead) -> anyhow::Result<Option<PathBuf>> {
    let library = bundle.package.replace('-', "_");
    let mut found = None;
    for line in output.lines() {
        let line = line.context("cannot read cargo's output")?;
        let Ok(message) = serde_json::from_str::<Message>(&line) else { continue };
        let is_ours = message.target.is_some_and(|target| target.name.replace('-', "_") == library);
        if message.reason == "compiler-artifact" && is_ours {
            found = message.filenames.into_iter().find(|file| file.extension().is_some_and(|e| e == "wasm")).or(found);
        }
    }
    Ok(found)
}

/// What decides about the bundle's content.
///
/// # Errors
/// When the wasm cannot be read, or has [`FLOAT_WRITER`].
pub fn fingerprint(bundle: &Bundle, wasm: &Path) -> anyhow::Result<String> {
    let content = fs::read(wasm).with_context(|| format!("cannot read {}", wasm.display()))?;
    if has_float_writer(&content) {
        bail!(
            "{} has Rust's code that writes floats: something formats one with {{}} or {{:?}}, or calls `clamp` on floats \
             with limits that are no constants; `frontend::format` writes them in less",
            bundle.name
        );
    }
    Ok(hash::bytes(&[RECIPE.as_bytes(), bundle.name.as_bytes(), loader(bundle).as_bytes(), &content]))
}

fn has_float_writer(wasm: &[u8]) -> bool {
    wasm.windows(FLOAT_WRITER.len()).any(|bytes| bytes == FLOAT_WRITER)
}

/// Writes the bundle's JavaScript modules and its wasm into `folder`.
pub fn bind(bundle: &Bundle, wasm: &Path, folder: &Path) -> anyhow::Result<()> {
    Bindgen::new()
        .web(true)?
        .input_path(wasm)
        .out_name(bundle.name)
        .typescript(false)
        .remove_name_section(true)
        .remove_producers_section(true)
        // The library's default differs from the tool's: without this, `init()` does not know its wasm's address.
        .omit_default_module_path(false)
        .generate(folder)
        .with_context(|| format!("wasm-bindgen failed on {}", wasm.display()))?;
    shrink::bundle(folder, bundle.name)?;
    if bundle.starts_itself {
        let entry = folder.join(format!("{}.js", bundle.name));
        fs::rename(&entry, folder.join(bindings(bundle))).context("wasm-bindgen wrote no JavaScript")?;
        fs::write(&entry, loader(bundle)).with_context(|| format!("cannot write {}", entry.display()))?;
    }
    Ok(())
}

fn bindings(bundle: &Bundle) -> String {
    format!("{}_bindings.js", bundle.name)
}

/// A worker's entry: starts the module; if that fails, says so in the worker's own protocol (`api::gpu`).
fn loader(bundle: &Bundle) -> String {
    if !bundle.starts_itself {
        return String::new();
    }
    format!(
        "import init from './{}';\n\
         init().catch((error) => postMessage([JSON.stringify({{ failed: {{ id: null, detail: String(error) }} }})]));\n",
        bindings(bundle)
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)] // tests panic on purpose
    use super::super::{PAGES, WORKER};
    use super::*;

    #[test]
    fn code_that_writes_floats_is_found_by_its_name() {
        assert!(has_float_writer(b"\0asm core3num7flt2dec8strategy6dragon15format_shortest"));
        assert!(!has_float_writer(b"\0asm core3num3imp") && !has_float_writer(b""));
    }

    #[test]
    fn the_wasm_is_found_in_cargos_messages() {
        let messages = concat!(
            r#"{"reason":"compiler-artifact","target":{"name":"api"},"filenames":["/t/libapi.rlib"]}"#,
            "\nnot json\n",
            r#"{"reason":"compiler-artifact","target":{"name":"gpu_worker"},"filenames":["/t/libgpu_worker.rlib","/t/gpu_worker.wasm"]}"#,
            "\n",
            r#"{"reason":"build-finished","success":true}"#,
            "\n",
        );
        let found = find_wasm(&WORKER, messages.as_bytes()).unwrap();
        assert_eq!(found.as_deref(), Some(Path::new("/t/gpu_worker.wasm")));
        assert_eq!(find_wasm(&PAGES[0], messages.as_bytes()).unwrap(), None);
    }

    #[test]
    fn a_failed_start_is_told_in_the_workers_protocol() {
        assert!(loader(&WORKER).contains("import init from './worker_bindings.js'"));
        assert!(loader(&WORKER).contains("{ failed: { id: null, detail: String(error) } }"));
        assert!(loader(&PAGES[0]).is_empty());
    }
}
