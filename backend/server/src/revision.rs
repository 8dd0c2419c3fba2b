//! Revisions of weights: the part of a number's provenance that says which weights made it.

use crate::weights::{hash_file, hex};
use sha2::{Digest, Sha256};
use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

/// Hex digits of a SHA-256 in provenance.
pub const DIGITS: usize = 12;
/// Weights of this many bytes and more are sampled: reading an 8B model for its hash alone would take a minute.
const HASHED_WHOLE: u64 = 1 << 30;
/// Longest header of a safetensors file that is hashed, in bytes.
const MAX_HEADER: u64 = 100_000_000;
/// Samples of a large file, evenly spaced, and bytes of each.
const SAMPLES: u64 = 256;
const SAMPLE_BYTES: u64 = 1 << 16;

/// A file that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {source}", path = path.display())]
pub struct Unreadable {
    pub path: PathBuf,
    pub source: io::Error,
}

/// Revision of a checkpoint's safetensors files, in this order: the first digits of their SHA-256, as one after the
/// other. Of 1 GiB and more only sizes, headers and samples of the values are hashed, and the revision says so.
///
/// # Errors
/// When one cannot be read.
pub fn of_files(files: &[PathBuf]) -> Result<String, Unreadable> {
    of_files_below(files, HASHED_WHOLE)
}

fn of_files_below(files: &[PathBuf], hashed_whole: u64) -> Result<String, Unreadable> {
    let unreadable = |path: &PathBuf| {
        let path = path.clone();
        move |source| Unreadable { path, source }
    };
    let mut bytes = 0;
    for path in files {
        bytes += std::fs::metadata(path).map_err(unreadable(path))?.len();
    }
    let whole = bytes < hashed_whole;
    let mut hash = Sha256::new();
    for path in files {
        let hashed = if whole { hash_file(path, &mut hash) } else { hash_samples(path, &mut hash) };
        hashed.map_err(unreadable(path))?;
    }
    let digits = digits(&hash.finalize());
    Ok(if whole { digits } else { format!("{digits} (sampled)") })
}

/// Revision of the weights in the folder of an SAE's hook point.
///
/// # Errors
/// When the folder or one of its safetensors files cannot be read.
pub fn of_sae(folder: &Path) -> Result<String, Unreadable> {
    let unreadable = |source| Unreadable { path: folder.to_owned(), source };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        if path.extension().is_some_and(|extension| extension == "safetensors") {
            files.push(path);
        }
    }
    files.sort();
    of_files(&files)
}

/// The digits of a hash that are shown.
pub fn digits(hash: &[u8]) -> String {
    hex(&hash[..DIGITS / 2])
}

/// Adds a safetensors file's size in bytes, its header, and samples of what follows.
fn hash_samples(path: &Path, hash: &mut Sha256) -> io::Result<()> {
    let mut file = File::open(path)?;
    let size = file.metadata()?.len();
    hash.update(size.to_le_bytes());
    let mut length = [0; 8];
    file.read_exact(&mut length)?;
    let header = u64::from_le_bytes(length).min(MAX_HEADER);
    let mut bytes = Vec::new();
    file.by_ref().take(header).read_to_end(&mut bytes)?;
    hash.update(&bytes);
    let start = 8 + header;
    let step = (size.saturating_sub(start) / SAMPLES).max(1);
    for sample in (0..SAMPLES).map(|sample| start + sample * step).take_while(|at| *at < size) {
        bytes.clear();
        file.seek(SeekFrom::Start(sample))?;
        file.by_ref().take(SAMPLE_BYTES.min(step)).read_to_end(&mut bytes)?;
        hash.update(&bytes);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // tests panic on purpose
    use super::*;
    use std::fs;

    #[test]
    fn a_revision_is_the_hash_of_the_files_one_after_the_other() {
        let folder = tempfile::tempdir().unwrap();
        let files = ["a", "b"].map(|name| folder.path().join(name));
        for (path, text) in files.iter().zip(["hel", "lo"]) {
            fs::write(path, text).unwrap();
        }
        assert_eq!(of_files(&files).unwrap(), hex(&Sha256::digest("hello"))[..DIGITS]);
        let missing = folder.path().join("c");
        assert_eq!(of_files(std::slice::from_ref(&missing)).unwrap_err().path, missing);
    }

    #[test]
    fn sizes_headers_and_samples_tell_large_files_apart() {
        let folder = tempfile::tempdir().unwrap();
        let files = [folder.path().join("model.safetensors")];
        let hashed = |header: &str, tail: &[u8]| {
            let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
            bytes.extend_from_slice(header.as_bytes());
            bytes.extend_from_slice(tail);
            fs::write(&files[0], bytes).unwrap();
            of_files_below(&files, 1).unwrap()
        };
        let values: Vec<u8> = (0..100_000u32).map(|i| i.to_le_bytes()[0]).collect();
        let first = hashed("{\"a\":1}", &values);
        assert!(first.ends_with(" (sampled)"), "{first}");
        assert_eq!(first, hashed("{\"a\":1}", &values));
        assert_ne!(first, hashed("{\"a\":2}", &values));
        assert_ne!(first, hashed("{\"a\":1}", &values[1..]));
        let mut changed = values.clone();
        changed.iter_mut().skip(50_000).for_each(|byte| *byte ^= 1);
        assert_ne!(first, hashed("{\"a\":1}", &changed));
        fs::write(&files[0], b"short").unwrap();
        assert!(of_files_below(&files, 1).is_err());
    }
}
