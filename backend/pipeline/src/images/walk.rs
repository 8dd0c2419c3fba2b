//! All files below a folder, in the order of their names, with the names of one folder per level in memory.

use super::ImagesError;
use std::{
    fs,
    path::{Path, PathBuf},
    vec,
};

/// Folders in folders: past that, a link leads back to where it is.
const MAX_DEPTH: usize = 32;

/// A file below the root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// Path from the root, with slashes.
    pub name: String,
    pub bytes: u64,
}

/// Files whose names, and whose folders' names, do not begin with a dot.
pub(super) struct Walk {
    root: PathBuf,
    /// What is left of each folder on the way down.
    open: Vec<vec::IntoIter<String>>,
}

impl Walk {
    /// # Errors
    /// When the folder cannot be read.
    pub fn new(root: &Path) -> Result<Self, ImagesError> {
        Ok(Self { open: vec![names(root, "")?.into_iter()], root: root.to_owned() })
    }

    fn visit(&mut self, name: String) -> Result<Option<Entry>, ImagesError> {
        let path = self.root.join(&name);
        // Follows links, which data sets on shared disks are full of.
        let metadata = fs::metadata(&path).map_err(|source| ImagesError::io(&path, source))?;
        if !metadata.is_dir() {
            return Ok(metadata.is_file().then_some(Entry { name, bytes: metadata.len() }));
        }
        if self.open.len() >= MAX_DEPTH {
            let reason = format!("more than {MAX_DEPTH} folders deep: does a link lead back to a folder above?");
            return Err(ImagesError::file(&path, reason));
        }
        self.open.push(names(&path, &name)?.into_iter());
        Ok(None)
    }
}

impl Iterator for Walk {
    type Item = Result<Entry, ImagesError>;

    fn next(&mut self) -> Option<Self::Item> {
        while let Some(folder) = self.open.last_mut() {
            let Some(name) = folder.next() else {
                self.open.pop();
                continue;
            };
            if let Some(found) = self.visit(name).transpose() {
                return Some(found);
            }
        }
        None
    }
}

/// What is in a folder, sorted, as paths from the root.
fn names(path: &Path, folder: &str) -> Result<Vec<String>, ImagesError> {
    let mut names = Vec::new();
    for entry in fs::read_dir(path).map_err(|source| ImagesError::io(path, source))? {
        let entry = entry.map_err(|source| ImagesError::io(path, source))?;
        let name = entry.file_name();
        let name = name.to_str().ok_or_else(|| ImagesError::file(&entry.path(), "the name is not UTF-8; rename it"))?;
        if !name.starts_with('.') {
            names.push(super::joined(folder, name));
        }
    }
    names.sort_unstable();
    Ok(names)
}
