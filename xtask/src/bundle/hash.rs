//! Names from content.

use anyhow::Context;
use sha2::{Digest, Sha256};
use std::{fs, io, path::Path};
use walkdir::WalkDir;

/// Enough of a SHA-256 to name a file: 16 hex digits.
const DIGITS: usize = 16;

/// Short hash of bytes.
pub fn bytes(parts: &[&[u8]]) -> String {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    short(hasher)
}

/// Short hash of a folder: names and content of its files, in sorted order.
pub fn folder(folder: &Path) -> anyhow::Result<String> {
    let mut hasher = Sha256::new();
    for entry in WalkDir::new(folder).sort_by_file_name() {
        let entry = entry.with_context(|| format!("cannot list {}", folder.display()))?;
        if !entry.file_type().is_file() {
            continue;
        }
        let name = entry.path().strip_prefix(folder).unwrap_or(entry.path()).to_string_lossy().into_owned();
        let content = fs::read(entry.path()).with_context(|| format!("cannot read {}", entry.path().display()))?;
        hasher.update((name.len() as u64).to_le_bytes());
        hasher.update(name);
        hasher.update((content.len() as u64).to_le_bytes());
        hasher.update(content);
    }
    Ok(short(hasher))
}

/// Removes a folder if it is there.
pub fn remove_dir(folder: &Path) -> anyhow::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}

fn short(hasher: Sha256) -> String {
    let mut name = String::with_capacity(DIGITS);
    for byte in hasher.finalize().iter().take(DIGITS / 2) {
        name.push_str(&format!("{byte:02x}"));
    }
    name
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)] // tests panic on purpose
    use super::*;

    #[test]
    fn a_folder_hash_depends_on_names_and_content() {
        let [first, second] = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        fs::write(first.path().join("a.js"), "1").unwrap();
        fs::write(second.path().join("a.js"), "1").unwrap();
        let same = folder(first.path()).unwrap();
        assert_eq!(same, folder(second.path()).unwrap());
        assert_eq!(same.len(), DIGITS);

        fs::write(second.path().join("a.js"), "2").unwrap();
        assert_ne!(same, folder(second.path()).unwrap());
        fs::write(second.path().join("a.js"), "1").unwrap();
        fs::rename(second.path().join("a.js"), second.path().join("b.js")).unwrap();
        assert_ne!(same, folder(second.path()).unwrap());
    }

    #[test]
    fn parts_do_not_run_together() {
        assert_ne!(bytes(&[b"ab", b"c"]), bytes(&[b"a", b"bc"]));
    }

    #[test]
    fn removing_a_missing_folder_is_fine() {
        let parent = tempfile::tempdir().unwrap();
        remove_dir(&parent.path().join("never")).unwrap();
    }
}
