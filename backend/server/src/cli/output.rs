//! What a command hands over: a safetensors file that is either whole or not there, and lines on stdout.

use super::CliError;
use safetensors::{Dtype, tensor::TensorView};
use serde::Serialize;
use std::{
    collections::HashMap,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

/// A tensor with its name, as it goes into a file.
#[derive(Debug, Clone, PartialEq)]
pub struct NamedTensor {
    name: &'static str,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl NamedTensor {
    pub fn f32(name: &'static str, shape: &[usize], values: &[f32]) -> Self {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Self { name, dtype: Dtype::F32, shape: shape.to_vec(), bytes }
    }

    /// Ids of tokens or features, as i32.
    pub fn ids(name: &'static str, shape: &[usize], ids: &[u32]) -> Self {
        let bytes = ids.iter().flat_map(|&id| (id as i32).to_le_bytes()).collect();
        Self { name, dtype: Dtype::I32, shape: shape.to_vec(), bytes }
    }
}

/// `--out`, checked before anything is loaded.
#[derive(Debug, Clone)]
pub struct Output {
    path: PathBuf,
    folder: PathBuf,
    temporary: PathBuf,
}

impl Output {
    /// # Errors
    /// When the folder does not exist, or something else than a file has the file's name.
    pub fn check(path: &Path) -> Result<Self, CliError> {
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
            _ => PathBuf::from("."),
        };
        if path.is_dir() {
            return Err(CliError::file(path, "--out names a folder; name a file in it"));
        }
        if path.exists() && !path.is_file() {
            return Err(CliError::file(path, "--out names something that is not a file; name a file"));
        }
        let name = path.file_name().ok_or_else(|| CliError::file(path, "--out does not name a file"))?;
        if !folder.is_dir() {
            return Err(CliError::file(path, format!("there is no folder {} for --out", folder.display())));
        }
        let temporary = folder.join(format!(".{}.{}.tmp", name.to_string_lossy(), std::process::id()));
        Ok(Self { path: path.to_owned(), folder, temporary })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a temporary file beside the output, syncs it, and gives it the output's name.
    ///
    /// # Errors
    /// When the disk does not take it. Nothing is left then.
    pub fn write(&self, tensors: &[NamedTensor], metadata: HashMap<String, String>) -> Result<(), CliError> {
        let mut views = Vec::with_capacity(tensors.len());
        for NamedTensor { name, dtype, shape, bytes } in tensors {
            let view = TensorView::new(*dtype, shape.clone(), bytes);
            views.push((*name, view.map_err(|error| CliError::Bug(format!("tensor `{name}`: {error}")))?));
        }
        let bytes = safetensors::serialize(views, Some(metadata)).map_err(|error| CliError::file(&self.path, error))?;
        let failed = |error: io::Error| CliError::file(&self.path, format!("cannot be written: {error}"));
        self.write_bytes(&bytes).map_err(failed)
    }

    fn write_bytes(&self, bytes: &[u8]) -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).open(&self.temporary)?;
        let unfinished = Unfinished(&self.temporary);
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&self.temporary, &self.path)?;
        std::mem::forget(unfinished);
        // The new name is safe only when the folder is; a system that cannot sync folders has to do without.
        if let Ok(folder) = File::open(&self.folder) {
            folder.sync_all().ok();
        }
        Ok(())
    }
}

/// A file that goes away when it is not finished.
struct Unfinished<'a>(&'a Path);

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        fs::remove_file(self.0).ok();
    }
}

/// For machines: one JSON object.
pub fn print_json(answer: &impl Serialize) -> Result<(), CliError> {
    print(&serde_json::to_string_pretty(answer).map_err(|error| CliError::Bug(error.to_string()))?)
}

/// For people.
pub fn print(text: &str) -> Result<(), CliError> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{text}").and_then(|()| stdout.flush()).map_err(CliError::Stdout)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // tests panic on purpose
    use super::*;

    #[test]
    fn a_file_is_whole_or_not_there() {
        let folder = tempfile::tempdir().unwrap();
        let names = || fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>();
        let output = Output::check(&folder.path().join("out.safetensors")).unwrap();
        let wrong = NamedTensor::f32("hidden", &[2, 2], &[1.0]);
        assert!(output.write(&[wrong], HashMap::new()).is_err());
        assert!(names().is_empty(), "{:?}", names());
        let right = NamedTensor::ids("input_ids", &[2], &[1, 70_000]);
        for _ in 0..2 {
            output.write(std::slice::from_ref(&right), HashMap::new()).unwrap();
            assert_eq!(names(), ["out.safetensors"]);
        }
        let bytes = fs::read(output.path()).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(tensors.tensor("input_ids").unwrap().data(), right.bytes);
    }

    #[test]
    fn a_failed_write_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.safetensors");
        let output = Output::check(&path).unwrap();
        // A folder takes the name in the meantime: the rename fails.
        fs::create_dir_all(path.join("sub")).unwrap();
        let error = output.write(&[NamedTensor::f32("hidden", &[1], &[1.0])], HashMap::new()).unwrap_err();
        assert!(error.to_string().contains("cannot be written"), "{error}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_place_that_cannot_be_written_is_refused_at_once() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Output::check(folder.path()).unwrap_err().to_string().contains("a folder"));
        let error = Output::check(&folder.path().join("missing/out.safetensors")).unwrap_err().to_string();
        assert!(error.contains("no folder"), "{error}");
        assert!(Output::check(Path::new("out.safetensors")).is_ok(), "the working folder");
        assert!(Output::check(Path::new("..")).is_err());
        #[cfg(unix)]
        {
            let socket = folder.path().join("socket");
            let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
            let error = Output::check(&socket).unwrap_err().to_string();
            assert!(error.contains("not a file"), "{error}");
        }
    }
}
