//! A bundle's wasm and JavaScript made smaller on the wire, after wasm-bindgen.
//!
//! Generic code reaches wasm as thousands of functions that differ little. What counts here is the size after brotli,
//! which already says "as before" in few bits: rewriting code (wasm-opt; one function with the others' constants as
//! parameters) makes the file smaller and its compressed form larger. What helps:
//!
//! 1. of functions with equal bodies one stays, and one that only calls another gives way to it ([`merge`]);
//! 2. like functions become neighbours, so that brotli's copies come from near ([`order`]);
//! 3. imports get short names, in the wasm and in the JavaScript ([`names`]);
//! 4. custom sections go: no browser reads them ([`rewrite`]).
//!
//! Bytes after brotli (quality 11, window 22) of a page bundle with 17 657 functions:
//!
//! | | wasm | JavaScript |
//! |---|---|---|
//! | as wasm-bindgen wrote it | 475 004 | 9 476 |
//! | equal functions merged | 468 815 | |
//! | and forwarding ones, in the order of likeness | 434 020 | |
//! | and imports renamed, no custom sections | 430 714 | 6 852 |
//!
//! Merged functions sorted by type and opcodes, without a measure of likeness, came to 444 523. At most
//! 0.2 % came of renumbering locals, imports or types, of giving the most called functions the lowest indices, and of
//! inlining the smallest functions.

mod merge;
mod module;
mod names;
mod order;
mod rewrite;

use anyhow::Context;
use module::Module;
use names::ShortNames;
use std::{fs, path::Path};

/// Makes `{name}_bg.wasm` and `{name}.js` in `folder` smaller, as wasm-bindgen wrote them.
///
/// # Errors
///
/// An unreadable file; wasm with a section or an instruction that is unknown here.
pub fn bundle(folder: &Path, name: &str) -> anyhow::Result<()> {
    let (wasm_file, script_file) = (folder.join(format!("{name}_bg.wasm")), folder.join(format!("{name}.js")));
    let wasm = fs::read(&wasm_file).with_context(|| format!("cannot read {}", wasm_file.display()))?;
    let script = fs::read_to_string(&script_file).with_context(|| format!("cannot read {}", script_file.display()))?;
    let (wasm, script) = smaller(&wasm, &script, &format!("./{name}_bg.js"))
        .with_context(|| format!("cannot make {} smaller", wasm_file.display()))?;
    fs::write(&wasm_file, wasm).with_context(|| format!("cannot write {}", wasm_file.display()))?;
    fs::write(&script_file, script).with_context(|| format!("cannot write {}", script_file.display()))
}

/// The same module and script in fewer bytes. `imported` is the module name under which the script gives its imports.
fn smaller(wasm: &[u8], script: &str, imported: &str) -> anyhow::Result<(Vec<u8>, String)> {
    let module = Module::parse(wasm)?;
    let representatives = merge::representatives(&module);
    let order = order::by_likeness(&module, &representatives);
    let names = ShortNames::choose(&module, imported, script);
    let smaller = rewrite::rewrite(&module, &representatives, &order, &names)?;
    wasmparser::Validator::new().validate_all(&smaller).context("the smaller module is not valid")?;
    Ok((smaller, names.rename(script)))
}

#[cfg(test)]
mod tests;
