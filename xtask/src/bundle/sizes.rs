//! Sizes on the wire: compressed siblings (`x.js.br`, `x.js.gz`) that the server may send as they are, and budgets.

use super::Bundle;
use anyhow::{Context, bail};
use flate2::{Compression, write::GzEncoder};
use serde::{Deserialize, Serialize};
use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
};
use walkdir::WalkDir;

/// Brotli's best quality and its usual window (4 MiB): the bundles are made rarely and sent often.
const BROTLI: (u32, u32) = (11, 22);

/// Bytes of a file or of a folder's files.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sizes {
    pub raw: u64,
    pub gzip: u64,
    pub brotli: u64,
}

/// Compresses every JavaScript and wasm file of a folder; returns their sizes together.
pub fn compress_folder(folder: &Path) -> anyhow::Result<Sizes> {
    let files: Vec<PathBuf> = WalkDir::new(folder)
        .sort_by_file_name()
        .into_iter()
        .filter_map(Result::ok)
        .map(|entry| entry.into_path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "js" || extension == "wasm"))
        .collect();
    let mut total = Sizes::default();
    for file in files {
        let sizes = compress_file(&file)?;
        total.raw += sizes.raw;
        total.gzip += sizes.gzip;
        total.brotli += sizes.brotli;
    }
    Ok(total)
}

/// Writes `{file}.br` and `{file}.gz`.
pub fn compress_file(file: &Path) -> anyhow::Result<Sizes> {
    let content = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let (brotli, gzip) = (brotli(&content)?, gzip(&content)?);
    fs::write(sibling(file, "br"), &brotli)?;
    fs::write(sibling(file, "gz"), &gzip)?;
    Ok(Sizes { raw: content.len() as u64, gzip: gzip.len() as u64, brotli: brotli.len() as u64 })
}

/// Prints a bundle's sizes; a bundle over its budget is an error.
pub fn check(bundle: &Bundle, sizes: &Sizes) -> anyhow::Result<()> {
    let kib = |bytes: u64| bytes as f64 / 1024.0;
    println!(
        "{:<8}{:>8.1} KiB raw{:>8.1} KiB gzip{:>8.1} KiB brotli (budget {:.0})",
        bundle.name,
        kib(sizes.raw),
        kib(sizes.gzip),
        kib(sizes.brotli),
        kib(bundle.budget)
    );
    if sizes.brotli > bundle.budget {
        bail!(
            "the {} bundle has {} bytes after brotli, its budget is {}: look for a new dependency or a generic \
             function that is instantiated too often (twiggy helps), or move code behind a lazy import",
            bundle.name,
            sizes.brotli,
            bundle.budget
        );
    }
    Ok(())
}

fn sibling(file: &Path, extension: &str) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".");
    name.push(extension);
    name.into()
}

fn brotli(content: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut packed = Vec::new();
    let mut writer = brotli::CompressorWriter::new(&mut packed, 4096, BROTLI.0, BROTLI.1);
    writer.write_all(content).context("brotli failed")?;
    drop(writer);
    Ok(packed)
}

fn gzip(content: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut writer = GzEncoder::new(Vec::new(), Compression::best());
    writer.write_all(content).context("gzip failed")?;
    writer.finish().context("gzip failed")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)] // tests panic on purpose
    use super::super::WORKER;
    use super::*;
    use std::io::Read;

    #[test]
    fn compressed_siblings_hold_the_same_content() {
        let folder = tempfile::tempdir().unwrap();
        let content = "export const heat = [0.1, 0.2, 0.3];\n".repeat(200);
        let file = folder.path().join("a.js");
        fs::write(&file, &content).unwrap();
        let sizes = compress_folder(folder.path()).unwrap();
        assert_eq!(sizes.raw, content.len() as u64);
        assert!(sizes.brotli < sizes.gzip && sizes.gzip < sizes.raw, "{sizes:?}");

        let mut text = String::new();
        let packed = fs::File::open(folder.path().join("a.js.br")).unwrap();
        brotli::Decompressor::new(packed, 4096).read_to_string(&mut text).unwrap();
        assert_eq!(text, content);
        text.clear();
        let packed = fs::File::open(folder.path().join("a.js.gz")).unwrap();
        flate2::read::GzDecoder::new(packed).read_to_string(&mut text).unwrap();
        assert_eq!(text, content);
    }

    #[test]
    fn a_bundle_over_its_budget_is_an_error() {
        let fits = Sizes { brotli: WORKER.budget, ..Sizes::default() };
        assert!(check(&WORKER, &fits).is_ok());
        let grown = Sizes { brotli: WORKER.budget + 1, ..Sizes::default() };
        assert!(check(&WORKER, &grown).unwrap_err().to_string().contains("budget"));
    }
}
