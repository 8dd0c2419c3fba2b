//! The folder of shards: complete with its manifest, or as it was before.

use super::QuantizeError;
use super::shard::{ShardWriter, is_shard_name, is_temporary_name};
use api::SaeManifest;
use api::shards::{MANIFEST, ShardFile};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A temporary file that is older belongs to a run that was killed.
const FORGOTTEN: Duration = Duration::from_secs(3600);

/// Shards on their way. What was written goes away again unless the manifest follows it.
pub struct Folder {
    path: PathBuf,
    /// It was not there before.
    made: bool,
    /// Files that were not there before.
    new: Vec<PathBuf>,
}

impl Folder {
    /// # Errors
    /// When there is no such folder and none can be made.
    pub fn open(path: &Path) -> Result<Self, QuantizeError> {
        let made = !path.is_dir();
        fs::create_dir_all(path).map_err(|source| QuantizeError::io(path, source))?;
        Ok(Self { path: path.to_path_buf(), made, new: Vec::new() })
    }

    /// Begins a file.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn create(&self, stem: &str) -> Result<ShardWriter, QuantizeError> {
        ShardWriter::create(&self.path, stem)
    }

    /// Ends a file that holds these rows.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub fn add(&mut self, writer: ShardWriter, first_row: u32, rows: u32) -> Result<ShardFile, QuantizeError> {
        let whole = writer.finish()?;
        if whole.new {
            self.new.push(whole.path);
        }
        Ok(ShardFile { file: whole.name, bytes: whole.bytes, sha256: whole.sha256, first_row, rows })
    }

    /// Writes the manifest, in one step, and removes what earlier runs left and it does not name.
    ///
    /// # Errors
    /// When the parts do not fit together, or the disk does not take it.
    pub fn finish(mut self, manifest: &SaeManifest) -> Result<(), QuantizeError> {
        let path = self.path.join(MANIFEST);
        manifest.check().map_err(|reason| QuantizeError::file(&path, reason))?;
        let mut json = serde_json::to_vec_pretty(manifest).map_err(|error| QuantizeError::file(&path, error))?;
        json.push(b'\n');
        // The shards' names are safe only when the folder is; a system that cannot sync folders has to do without.
        self.sync();
        let mut writer = self.create("manifest")?;
        writer.write(&json)?;
        writer.finish_as(MANIFEST)?;
        self.new.clear();
        self.made = false;
        self.sync();
        let named: BTreeSet<&str> = manifest.files().map(|file| file.file.as_str()).collect();
        remove_stale(&self.path, &named).map_err(|source| QuantizeError::io(&self.path, source))
    }

    fn sync(&self) {
        if let Ok(folder) = File::open(&self.path) {
            folder.sync_all().ok();
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        for path in &self.new {
            fs::remove_file(path).ok();
        }
        if self.made {
            fs::remove_dir(&self.path).ok();
        }
    }
}

/// Removes files of ours that nobody names. Other files stay.
fn remove_stale(folder: &Path, named: &BTreeSet<&str>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        let left_over = is_shard_name(name) && !named.contains(name);
        let forgotten = || {
            let written = entry.metadata().and_then(|metadata| metadata.modified()).ok();
            written.and_then(|written| written.elapsed().ok()).is_some_and(|age| age > FORGOTTEN)
        };
        if left_over || (is_temporary_name(name) && forgotten()) {
            match fs::remove_file(entry.path()) {
                // Another run was faster.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                removed => removed?,
            }
        }
    }
    Ok(())
}

/// Reads the manifest of a folder, if all that it names is there.
///
/// # Errors
/// What is missing or does not fit together.
pub fn read_manifest(folder: &Path) -> Result<SaeManifest, QuantizeError> {
    let path = folder.join(MANIFEST);
    let bytes = fs::read(&path).map_err(|source| QuantizeError::io(&path, source))?;
    let manifest: SaeManifest = serde_json::from_slice(&bytes).map_err(|error| QuantizeError::file(&path, error))?;
    manifest.check().map_err(|reason| QuantizeError::file(&path, reason))?;
    for ShardFile { file, bytes, .. } in manifest.files() {
        let path = folder.join(file);
        let found = fs::metadata(&path).map_err(|source| QuantizeError::io(&path, source))?.len();
        if found != *bytes {
            return Err(QuantizeError::file(&path, format!("has {found} bytes; the manifest says {bytes}")));
        }
    }
    Ok(manifest)
}
