//! An output folder that gets its files when all of them are whole.

use crate::files::FileError;
use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// A folder with a temporary name beside the output; it goes away when it is not finished.
pub(super) struct Staging {
    out: PathBuf,
    temporary: PathBuf,
}

impl Staging {
    /// `entries` are the files and folders that will be written; none of them may be in `out` already.
    ///
    /// # Errors
    /// When one of them is there, when `out` is a file, or when the folder above it does not exist.
    pub fn new(out: &Path, entries: &[&str]) -> Result<Self, FileError> {
        if out.exists() && !out.is_dir() {
            return Err(refused(out, io::ErrorKind::NotADirectory, "it is a file; name a folder"));
        }
        if let Some(entry) = entries.iter().map(|entry| out.join(entry)).find(|entry| entry.exists()) {
            return Err(refused(&entry, io::ErrorKind::AlreadyExists, "it is there already; name another folder"));
        }
        let above = out.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if !above.is_dir() {
            return Err(refused(out, io::ErrorKind::NotFound, "the folder above it does not exist"));
        }
        let Some(name) = out.file_name() else {
            return Err(refused(out, io::ErrorKind::InvalidInput, "it has no name; name a folder"));
        };
        let temporary = above.join(format!(".{}.{}.tmp", name.to_string_lossy(), std::process::id()));
        fs::create_dir(&temporary).map_err(|error| FileError::io(&temporary, error))?;
        Ok(Self { out: out.to_owned(), temporary })
    }

    /// Where to write.
    pub fn path(&self) -> &Path {
        &self.temporary
    }

    /// Where a file will be.
    pub fn at(&self, name: &str) -> PathBuf {
        self.temporary.join(name)
    }

    /// Makes a folder in it.
    pub fn make(&self, name: &str) -> Result<PathBuf, FileError> {
        let folder = self.at(name);
        fs::create_dir_all(&folder).map_err(|error| FileError::io(&folder, error))?;
        Ok(folder)
    }

    /// Gives the files their places: the whole folder at once if there is none, else file by file, `source.json` last,
    /// for without it nobody reads the others.
    pub fn finish(self) -> Result<(), FileError> {
        if !self.out.exists() {
            return fs::rename(&self.temporary, &self.out).map_err(|error| FileError::io(&self.out, error));
        }
        let mut found = Vec::new();
        list_files(&self.temporary, Path::new(""), &mut found)?;
        found.sort_by_key(|file| (file.ends_with(crate::files::names::SOURCE), file.clone()));
        for file in found {
            let place = self.out.join(&file);
            if place.exists() {
                return Err(refused(&place, io::ErrorKind::AlreadyExists, "it is there already; name another folder"));
            }
            let folder = place.parent().unwrap_or(&self.out);
            fs::create_dir_all(folder)
                .and_then(|()| fs::rename(self.temporary.join(&file), &place))
                .map_err(|error| FileError::io(&place, error))?;
        }
        Ok(())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // Best effort: after a finished run there is nothing, or only empty folders.
        fs::remove_dir_all(&self.temporary).ok();
    }
}

fn refused(path: &Path, kind: io::ErrorKind, reason: &str) -> FileError {
    FileError::io(path, io::Error::new(kind, reason))
}

/// All files in `root/inner`, by their paths from `root`.
fn list_files(root: &Path, inner: &Path, found: &mut Vec<PathBuf>) -> Result<(), FileError> {
    let folder = root.join(inner);
    for entry in fs::read_dir(&folder).map_err(|error| FileError::io(&folder, error))? {
        let entry = entry.map_err(|error| FileError::io(&folder, error))?;
        let name = inner.join(entry.file_name());
        if entry.path().is_dir() {
            list_files(root, &name, found)?;
        } else {
            found.push(name);
        }
    }
    Ok(())
}

/// Files of a folder whose names end so, in the order that their names give; none if there is no such folder.
pub(super) fn sorted_files(folder: &Path, ends: impl Fn(&str) -> bool) -> Result<Vec<PathBuf>, FileError> {
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let failed = |error: io::Error| FileError::io(folder, error);
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name().to_string_lossy().into_owned();
        if !name.starts_with('.') && ends(&name) && folder.join(&name).is_file() {
            found.push(name);
        }
    }
    // Numbers as numbers: batch-2 before batch-10.
    found.sort_by_cached_key(|name| (first_number(name), name.clone()));
    Ok(found.into_iter().map(|name| folder.join(name)).collect())
}

fn first_number(name: &str) -> u64 {
    let digits: String = name.chars().skip_while(|letter| !letter.is_ascii_digit()).collect();
    let end = digits.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(digits.len());
    digits[..end].parse().unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // tests panic on purpose
    use super::*;

    fn names(folder: &Path) -> Vec<PathBuf> {
        let mut found = Vec::new();
        list_files(folder, Path::new(""), &mut found).unwrap();
        found.sort();
        found
    }

    #[test]
    fn a_folder_appears_when_it_is_whole_and_joins_one_that_is_there() {
        let place = tempfile::tempdir().unwrap();
        let out = place.path().join("out");
        let staging = Staging::new(&out, &["a"]).unwrap();
        fs::write(staging.at("a"), "1").unwrap();
        assert!(!out.exists());
        drop(staging);
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0, "an unfinished folder stayed");

        for name in ["a", "deep/b"] {
            let staging = Staging::new(&out, &[name]).unwrap();
            fs::create_dir_all(staging.at(name).parent().unwrap()).unwrap();
            fs::write(staging.at(name), "1").unwrap();
            staging.finish().unwrap();
        }
        assert_eq!(names(&out), [PathBuf::from("a"), PathBuf::from("deep/b")]);
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 1, "a temporary folder stayed");
        let error = Staging::new(&out, &["deep"]).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("deep") && error.contains("there already"), "{error}");
        let error = Staging::new(&place.path().join("missing/out"), &[]).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("folder above"), "{error}");
        assert!(Staging::new(&out.join("a"), &[]).is_err(), "a file");
    }

    #[test]
    fn batches_are_read_in_the_order_of_their_numbers() {
        let place = tempfile::tempdir().unwrap();
        for name in ["batch-10.jsonl", "batch-2.jsonl.gz", "other.txt", ".batch-0.jsonl"] {
            fs::write(place.path().join(name), "").unwrap();
        }
        let found = sorted_files(place.path(), |name| name.contains(".jsonl")).unwrap();
        let found: Vec<_> = found.iter().map(|path| path.file_name().unwrap().to_str().unwrap()).collect();
        assert_eq!(found, ["batch-2.jsonl.gz", "batch-10.jsonl"]);
        assert!(sorted_files(&place.path().join("missing"), |_| true).unwrap().is_empty());
    }
}
