//! A cache's folder: what is where, and files that are whole or not there.
//!
//! ```text
//! manifest.json            what the numbers are made from; written last when a cache is begun
//! images.parquet           number, id, caption, hash and place of every picture
//! shards/00000.parquet     activations, sorted; there when the shard is done
//! hidden/00000.safetensors hidden states, if they are kept; renamed before the shard is
//! skipped.jsonl            pictures without activations, and why; written when all shards are done
//! locks/                   claims of processes; a shard's goes away when all are done
//! ```

use super::{CacheError, Manifest};
use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Write},
    path::{Path, PathBuf},
};

/// Paths in a cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheFolder(PathBuf);

impl CacheFolder {
    pub fn new(path: &Path) -> Self {
        Self(path.to_owned())
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn manifest(&self) -> PathBuf {
        self.0.join("manifest.json")
    }

    pub fn images(&self) -> PathBuf {
        self.0.join("images.parquet")
    }

    pub fn shard(&self, number: u32) -> PathBuf {
        self.0.join("shards").join(format!("{number:05}.parquet"))
    }

    pub fn hidden(&self, number: u32) -> PathBuf {
        self.0.join("hidden").join(format!("{number:05}.safetensors"))
    }

    pub fn skipped(&self) -> PathBuf {
        self.0.join("skipped.jsonl")
    }

    fn lock_file(&self, name: &str) -> PathBuf {
        self.0.join("locks").join(format!("{name}.lock"))
    }

    /// What the folder holds.
    ///
    /// # Errors
    /// When there is no manifest, or one of another version.
    pub fn read_manifest(&self) -> Result<Manifest, CacheError> {
        let path = self.manifest();
        let bytes = fs::read(&path).map_err(|source| CacheError::io(&path, source))?;
        let manifest: Manifest = serde_json::from_slice(&bytes)
            .map_err(|error| CacheError::other(&path, format!("no manifest: {error}")))?;
        match manifest.settings.format {
            super::FORMAT => Ok(manifest),
            other => Err(CacheError::other(&path, format!("format {other}; this program reads {}", super::FORMAT))),
        }
    }

    /// Takes the lock of this name, waiting for whoever holds it; `waiting` is called before that.
    pub(super) fn lock(&self, name: &str, waiting: impl FnOnce()) -> Result<Claim, CacheError> {
        let path = self.lock_file(name);
        let file = open_lock(&path).map_err(|source| CacheError::io(&path, source))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                waiting();
                file.lock().map_err(|source| cannot_lock(&path, &source))?;
            }
            Err(TryLockError::Error(source)) => return Err(cannot_lock(&path, &source)),
        }
        Ok(Claim { _file: file })
    }

    /// Removes the claims of a shard that is done. Who still holds one finds the shard, and does nothing.
    pub(super) fn forget_claims(&self, shard: u32) {
        fs::remove_file(self.lock_file(&format!("{shard:05}"))).unwrap_or_default();
    }

    /// Takes the lock of a shard, unless a living process has it.
    pub(super) fn claim(&self, shard: u32) -> Result<Option<Claim>, CacheError> {
        let path = self.lock_file(&format!("{shard:05}"));
        let file = open_lock(&path).map_err(|source| CacheError::io(&path, source))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Claim { _file: file })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(source)) => Err(cannot_lock(&path, &source)),
        }
    }
}

/// A lock of the operating system on a file. It ends with the process, however that ends: a killed process leaves no
/// claim behind.
#[derive(Debug)]
pub(super) struct Claim {
    _file: File,
}

fn open_lock(path: &Path) -> io::Result<File> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    OpenOptions::new().create(true).truncate(false).write(true).open(path)
}

fn cannot_lock(path: &Path, source: &io::Error) -> CacheError {
    let reason = format!("this file system has no file locks ({source}); name a folder on another with --out");
    CacheError::other(path, reason)
}

/// Fills a file under a temporary name, syncs it, gives it its name, and syncs the folder. Only one process may write
/// `path` at a time: the temporary name is always the same, so that what a killed process leaves is overwritten.
pub(super) fn write_whole<T>(
    path: &Path,
    fill: impl FnOnce(&mut File) -> Result<T, CacheError>,
) -> Result<T, CacheError> {
    let failed = |source| CacheError::io(path, source);
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(failed)?;
    let temporary = folder.join(format!(".{}.tmp", path.file_name().unwrap_or_default().to_string_lossy()));
    let write = || -> Result<T, CacheError> {
        let mut file = File::create(&temporary).map_err(failed)?;
        let filled = fill(&mut file)?;
        file.sync_all().map_err(failed)?;
        fs::rename(&temporary, path).map_err(failed)?;
        Ok(filled)
    };
    let written = write();
    match &written {
        // The new name is safe only when the folder is; a system that cannot sync folders has to do without.
        Ok(_) => File::open(folder).and_then(|folder| folder.sync_all()).unwrap_or_default(),
        Err(_) => fs::remove_file(&temporary).unwrap_or_default(),
    }
    written
}

pub(super) fn write_bytes(path: &Path, bytes: &[u8]) -> Result<(), CacheError> {
    write_whole(path, |file| file.write_all(bytes).map_err(|source| CacheError::io(path, source)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // tests panic on purpose
    use super::*;

    #[test]
    fn a_claim_keeps_others_away_until_it_is_dropped() {
        let place = tempfile::tempdir().unwrap();
        let folder = CacheFolder::new(place.path());
        let first = folder.claim(3).unwrap();
        assert!(first.is_some());
        assert!(folder.claim(3).unwrap().is_none());
        assert!(folder.claim(4).unwrap().is_some());
        drop(first);
        assert!(folder.claim(3).unwrap().is_some());
    }

    #[test]
    fn a_file_is_whole_or_as_it_was() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("inner/file");
        let names = || fs::read_dir(place.path().join("inner")).unwrap().count();
        write_bytes(&path, b"first").unwrap();
        // What a killed process has left.
        fs::write(place.path().join("inner/.file.tmp"), "a very long part of something").unwrap();
        write_bytes(&path, b"second").unwrap();
        assert_eq!((fs::read(&path).unwrap().as_slice(), names()), (&b"second"[..], 1));
        let error = write_whole(&path, |file| -> Result<(), CacheError> {
            file.write_all(b"third").unwrap();
            Err(CacheError::other(&path, "no more"))
        });
        assert!(error.unwrap_err().to_string().contains("no more"));
        assert_eq!((fs::read(&path).unwrap().as_slice(), names()), (&b"second"[..], 1));
    }
}
