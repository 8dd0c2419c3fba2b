//! The output's folder: files are made in a folder within it, and get their names when all are whole.
//!
//! `index.json` and `source.json` go first and come last: while they are missing, neither a reader of the index nor the
//! server's import takes the rest for done.

use super::IndexError;
use std::{
    fs::{self, File, OpenOptions, TryLockError},
    path::{Path, PathBuf},
};
use store::files::names;

const FOLDER: &str = ".index.tmp";
const LOCK: &str = "lock";
/// Lies in the output's folder while files get their names: what is there without `index.json` is then ours.
pub(super) const COMMITTING: &str = ".index.committing";

/// Everything an index consists of, in the order in which it gets its name.
pub(super) const FILES: [&str; 8] = [
    names::ACTIVATIONS,
    names::FEATURES,
    names::EXAMPLES,
    names::TEXTS,
    names::PICTURES,
    names::SAMPLES,
    names::SOURCE,
    names::INDEX,
];

/// Files on their way. What is not committed goes away.
#[derive(Debug)]
pub(super) struct Staging {
    out: PathBuf,
    folder: PathBuf,
    /// Whether the output's folder was there before.
    made: bool,
    /// Ends with the process, however that ends.
    _lock: File,
}

impl Staging {
    /// Removes what a killed run has left.
    ///
    /// # Errors
    /// When the folder cannot be written, holds artefacts of something else, or another process makes an index there.
    pub fn begin(out: &Path) -> Result<Self, IndexError> {
        if let Some(reason) = not_ours(|name| out.join(name).exists()) {
            return Err(IndexError::other(out, reason));
        }
        let made = !out.exists();
        let folder = out.join(FOLDER);
        fs::create_dir_all(&folder).map_err(|source| IndexError::io(&folder, source))?;
        let path = folder.join(LOCK);
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let lock = lock.map_err(|source| IndexError::io(&path, source))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(IndexError::other(out, "another process makes an index here; wait for it"));
            }
            Err(TryLockError::Error(source)) => {
                let reason = format!("this file system has no file locks ({source}); name a folder on another");
                return Err(IndexError::other(out, reason));
            }
        }
        let staging = Self { out: out.to_owned(), folder, made, _lock: lock };
        for entry in fs::read_dir(&staging.folder).map_err(|source| IndexError::io(&staging.folder, source))? {
            let entry = entry.map_err(|source| IndexError::io(&staging.folder, source))?;
            if entry.file_name() != LOCK {
                fs::remove_file(entry.path()).map_err(|source| IndexError::io(&entry.path(), source))?;
            }
        }
        Ok(staging)
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where a file is made.
    pub fn at(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Makes a file and syncs it.
    pub fn write<T, E>(&self, name: &str, fill: impl FnOnce(&Path, &mut File) -> Result<T, E>) -> Result<T, IndexError>
    where
        IndexError: From<E>,
    {
        let path = self.at(name);
        let mut file = File::create(&path).map_err(|source| IndexError::io(&path, source))?;
        let filled = fill(&path, &mut file)?;
        file.sync_all().map_err(|source| IndexError::io(&path, source))?;
        Ok(filled)
    }

    /// Gives all [`FILES`] their names. An older index ends here, not before.
    pub fn commit(self) -> Result<(), IndexError> {
        let mark = self.out.join(COMMITTING);
        File::create(&mark).map_err(|source| IndexError::io(&mark, source))?;
        self.sync();
        for name in [names::INDEX, names::SOURCE] {
            let path = self.out.join(name);
            if path.exists() {
                fs::remove_file(&path).map_err(|source| IndexError::io(&path, source))?;
            }
        }
        self.sync();
        for name in FILES {
            if name == names::SOURCE {
                self.sync();
            }
            let path = self.out.join(name);
            fs::rename(self.at(name), &path).map_err(|source| IndexError::io(&path, source))?;
        }
        self.sync();
        fs::remove_file(&mark).map_err(|source| IndexError::io(&mark, source))
    }

    /// Names are safe only when the folder is; a system that cannot sync folders has to do without.
    fn sync(&self) {
        File::open(&self.out).and_then(|folder| folder.sync_all()).unwrap_or_default();
    }
}

/// Why an index may not be put where there are such files.
pub(super) fn not_ours(there: impl Fn(&str) -> bool) -> Option<String> {
    let ours = [names::INDEX, COMMITTING].into_iter().any(&there);
    let found = FILES.iter().find(|name| !ours && there(name))?;
    Some(format!("its {found} was not made by `index`, which would replace it; name another place"))
}

impl Drop for Staging {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.folder).unwrap_or_default();
        if self.made {
            // Fails if there is something in it, as there should be.
            fs::remove_dir(&self.out).unwrap_or_default();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // tests panic on purpose
    use super::*;
    use std::io::Write;

    fn fill(staging: &Staging, text: &str) {
        for name in FILES {
            let write = |path: &Path, file: &mut File| {
                file.write_all(text.as_bytes()).map_err(|source| IndexError::io(path, source))
            };
            staging.write(name, write).unwrap();
        }
    }

    #[test]
    fn an_index_is_whole_or_as_it_was() {
        let place = tempfile::tempdir().unwrap();
        let out = place.path().join("out");
        let staging = Staging::begin(&out).unwrap();
        assert!(Staging::begin(&out).unwrap_err().to_string().contains("another process"));
        drop(staging);
        assert!(!out.exists(), "a run that failed leaves nothing");
        let staging = Staging::begin(&out).unwrap();
        fill(&staging, "first");
        staging.commit().unwrap();
        fs::write(out.join("other"), "kept").unwrap();

        // What a killed run leaves, and then one that fails.
        fs::create_dir(out.join(FOLDER)).unwrap();
        fs::write(out.join(FOLDER).join("run-0-00000.parquet"), "a part").unwrap();
        let staging = Staging::begin(&out).unwrap();
        assert!(!staging.at("run-0-00000.parquet").exists());
        fill(&staging, "second");
        drop(staging);
        let names = || fs::read_dir(&out).unwrap().count();
        assert_eq!((fs::read_to_string(out.join(names::INDEX)).unwrap().as_str(), names()), ("first", FILES.len() + 1));

        let staging = Staging::begin(&out).unwrap();
        fill(&staging, "third");
        // Half of it cannot be named: the marks are gone, so that the rest does not count.
        fs::remove_file(staging.at(names::SAMPLES)).unwrap();
        assert!(staging.commit().is_err());
        assert!(!out.join(names::INDEX).exists() && !out.join(names::SOURCE).exists());
        assert_eq!(fs::read_to_string(out.join("other")).unwrap(), "kept");

        // The next run may go on from there.
        let staging = Staging::begin(&out).unwrap();
        fill(&staging, "fourth");
        staging.commit().unwrap();
        assert_eq!(names(), FILES.len() + 1);
    }

    #[test]
    fn artefacts_of_something_else_are_not_replaced() {
        let place = tempfile::tempdir().unwrap();
        fs::write(place.path().join(names::FEATURES), "of the pocket demo").unwrap();
        let said = Staging::begin(place.path()).unwrap_err().to_string();
        assert!(said.contains("features.parquet was not made by `index`"), "{said}");
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 1);
    }
}
