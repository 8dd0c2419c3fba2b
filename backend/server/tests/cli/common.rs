//! A small model, its SAE and a picture in a folder of their own, and the program run there.

use image::{ImageFormat, Rgb, RgbImage};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::{
        Mutex, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
};
use tempfile::TempDir;

/// What `model::testing::tiny_checkpoint` writes.
pub const D_MODEL: usize = 32;
pub const LATENTS: usize = 64;
pub const K: usize = 8;
/// Patches of the picture, and the newline.
pub const PICTURE_TOKENS: usize = 17;

/// Dtype, shape and bytes of a tensor.
pub type Stored = (Dtype, Vec<usize>, Vec<u8>);

/// `model/`, `sae/model.layers.1/`, `picture.png` and `hidden.safetensors`.
pub struct Place(TempDir);

impl Place {
    pub fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        for (name, bytes) in original() {
            fs::create_dir_all(place.path().join(name).parent().unwrap()).unwrap();
            fs::write(place.path().join(name), bytes).unwrap();
        }
        place
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    pub fn at(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// Runs `lmm-scope` here. Words are apart by spaces; `~` is a space within a word.
    pub fn run(&self, line: &str) -> Output {
        self.command(line).output().unwrap()
    }

    /// What [`Self::run`] runs, not yet started.
    pub fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lmm-scope"));
        for (name, _) in std::env::vars_os() {
            let settings = name.to_string_lossy().starts_with("LMM_SCOPE_");
            if settings || name == "RUST_LOG" || name == "RUST_BACKTRACE" {
                command.env_remove(&name);
            }
        }
        let words = line.split_whitespace().map(|word| word.replace('~', " "));
        command.args(words).current_dir(self.path()).env("HF_HUB_OFFLINE", "1");
        command
    }

    /// Standard output of a run that must go well and say nothing else.
    pub fn answer(&self, line: &str) -> String {
        let output = self.run(line);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && stderr.is_empty(), "{line}\n{stderr}");
        assert_eq!(self.temporary_files(), Vec::<String>::new(), "{line}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// The one JSON object of a run with `--json`.
    pub fn json(&self, line: &str) -> Value {
        serde_json::from_str(&self.answer(&format!("{line} --json"))).unwrap()
    }

    /// Names of everything that lies here.
    pub fn names(&self) -> BTreeSet<String> {
        fs::read_dir(self.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    fn temporary_files(&self) -> Vec<String> {
        self.names().into_iter().filter(|name| name.starts_with('.') || name.ends_with(".tmp")).collect()
    }
}

/// Made once for all tests, and kept in memory: name and bytes of every file.
fn original() -> &'static [(PathBuf, Vec<u8>)] {
    static ORIGINAL: OnceLock<Vec<(PathBuf, Vec<u8>)>> = OnceLock::new();
    ORIGINAL.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        model::testing::tiny_checkpoint::<model::Cpu>(folder.path(), &Default::default()).unwrap();
        let picture = RgbImage::from_fn(50, 40, |x, y| Rgb([(x * 5) as u8, (y * 6) as u8, (x ^ y) as u8]));
        picture.save_with_format(folder.path().join("picture.png"), ImageFormat::Png).unwrap();
        let hidden: Vec<f32> = (0..3 * D_MODEL).map(|i| ((i * 37 % 101) as f32 - 50.0) / 25.0).collect();
        let tensors = BTreeMap::from([("hidden".to_owned(), f32_tensor(&[3, D_MODEL], &hidden))]);
        write_tensors(&folder.path().join("hidden.safetensors"), &tensors);
        let mut files = Vec::new();
        read_all(folder.path(), Path::new(""), &mut files);
        files
    })
}

/// All files in `root/inner`, by their paths from `root`.
fn read_all(root: &Path, inner: &Path, files: &mut Vec<(PathBuf, Vec<u8>)>) {
    for entry in fs::read_dir(root.join(inner)).unwrap() {
        let entry = entry.unwrap();
        let name = inner.join(entry.file_name());
        if entry.path().is_dir() {
            read_all(root, &name, files);
        } else {
            files.push((name, fs::read(entry.path()).unwrap()));
        }
    }
}

pub fn f32_tensor(shape: &[usize], values: &[f32]) -> Stored {
    (Dtype::F32, shape.to_vec(), values.iter().flat_map(|value| value.to_le_bytes()).collect())
}

pub fn read_tensors(path: &Path) -> BTreeMap<String, Stored> {
    let bytes = fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let stored = |view: &TensorView<'_>| (view.dtype(), view.shape().to_vec(), view.data().to_vec());
    file.tensors().iter().map(|(name, view)| (name.clone(), stored(view))).collect()
}

pub fn write_tensors(path: &Path, tensors: &BTreeMap<String, Stored>) {
    let views = tensors
        .iter()
        .map(|(name, (dtype, shape, bytes))| (name.as_str(), TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
    fs::write(path, safetensors::serialize(views.collect::<Vec<_>>(), None).unwrap()).unwrap();
}

/// Reads a file of tensors, changes them, writes it again.
pub fn change_tensors(path: &Path, change: impl FnOnce(&mut BTreeMap<String, Stored>)) {
    let mut tensors = read_tensors(path);
    change(&mut tensors);
    write_tensors(path, &tensors);
}

pub fn f32_values(stored: &Stored) -> Vec<f32> {
    assert_eq!(stored.0, Dtype::F32);
    stored.2.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

pub fn i32_values(stored: &Stored) -> Vec<i32> {
    assert_eq!(stored.0, Dtype::I32);
    stored.2.chunks_exact(4).map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

/// NaN fails.
pub fn close(a: &[f32], b: &[f32], tolerance: f32) {
    assert_eq!(a.len(), b.len());
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        assert!((a - b).abs() <= tolerance, "value {i}: {a} and {b}");
    }
}

/// A run that must be refused: what is done to the place before it, and what the message must say.
pub struct Case {
    pub line: String,
    pub damage: fn(&Place),
    pub says: &'static str,
}

impl Case {
    pub fn new(line: impl Into<String>, damage: fn(&Place), says: &'static str) -> Self {
        Self { line: line.into(), damage, says }
    }

    /// What is wrong with the answer, if anything.
    fn complaint(&self) -> Option<String> {
        let place = Place::new();
        (self.damage)(&place);
        let before = place.names();
        let output = place.run(&self.line);
        let after = place.names();
        let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        let lines = stderr.lines().count();
        let errors = stderr.lines().filter(|line| line.starts_with("error: ")).count();
        let wrong = if output.status.code() != Some(2) {
            format!("exit code {:?}", output.status.code())
        } else if errors != 1 || !stderr.starts_with("error: ") {
            format!("{errors} lines of errors")
        } else if lines != 1 {
            format!("{lines} lines")
        } else if !stderr.contains(self.says) {
            format!("does not say {:?}", self.says)
        } else if stderr.contains("panicked") || stderr.contains("this is a bug") {
            "a panic".to_owned()
        } else if !stdout.is_empty() {
            format!("says on stdout: {stdout}")
        } else if before != after {
            format!("left {:?}", after.difference(&before).collect::<Vec<_>>())
        } else {
            return None;
        };
        Some(format!("{wrong}\n  {}\n  {}", self.line, stderr.trim().replace('\n', "\n  ")))
    }
}

/// Runs all cases on a few threads and tells every one that is answered wrongly.
pub fn all_refused(cases: &[Case]) {
    let (next, complaints) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let threads = std::thread::available_parallelism().map_or(2, |count| count.get().min(8));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    complaints.lock().unwrap().extend(case.complaint());
                }
            });
        }
    });
    let complaints = complaints.into_inner().unwrap();
    assert!(complaints.is_empty(), "{} of {}:\n{}", complaints.len(), cases.len(), complaints.join("\n"));
}
