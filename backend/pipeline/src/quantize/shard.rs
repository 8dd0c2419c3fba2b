//! One safetensors file, written in pieces: hashed on the way, under a temporary name until it is whole.

use super::QuantizeError;
use api::shards::Tier;
use sha2::{Digest, Sha256};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Digits of the hash in a file's name.
const DIGITS: usize = 12;
/// Room for a file's header; the longest has under half of it.
const HEADER_BYTES: u64 = 4096;
/// Rows of a shard are a multiple of it if they can be: GPU kernels take latents in tiles.
const ROWS_MULTIPLE: u32 = 64;

/// A tensor as the header describes it.
#[derive(Debug, Clone)]
pub struct Described {
    pub name: &'static str,
    /// As safetensors spells it.
    pub dtype: &'static str,
    pub shape: Vec<u64>,
    pub bytes: u64,
}

/// The first bytes of a safetensors file whose tensors follow in this order, without gaps. The same input gives the
/// same bytes, in every build.
pub fn header(metadata: &[(&str, &str)], tensors: &[Described]) -> Vec<u8> {
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    let notes: Vec<String> =
        metadata.iter().map(|(name, value)| format!("{}:{}", quoted(name), quoted(value))).collect();
    let mut parts = vec![format!("\"__metadata__\":{{{}}}", notes.join(","))];
    let mut start = 0u64;
    for Described { name, dtype, shape, bytes } in tensors {
        let shape = shape.iter().map(u64::to_string).collect::<Vec<_>>().join(",");
        let (name, end) = (quoted(name), start + bytes);
        parts.push(format!("{name}:{{\"dtype\":\"{dtype}\",\"shape\":[{shape}],\"data_offsets\":[{start},{end}]}}"));
        start = end;
    }
    let mut json = format!("{{{}}}", parts.join(","));
    // Tensors begin at a multiple of 8, so that they can be read where they lie.
    while !json.len().is_multiple_of(8) {
        json.push(' ');
    }
    [(json.len() as u64).to_le_bytes().as_slice(), json.as_bytes()].concat()
}

/// Ranges of `rows` rows of `row_bytes` each for files of at most `max_bytes`: as few as can be, and of equal length but
/// for the last.
///
/// # Errors
/// When a file would not hold a single row.
pub fn balanced(rows: u32, row_bytes: u64, max_bytes: u64) -> Result<Vec<Range<u32>>, QuantizeError> {
    let most = max_bytes.saturating_sub(HEADER_BYTES) / row_bytes.max(1);
    let most = u32::try_from(most).unwrap_or(u32::MAX);
    if most == 0 {
        let reason = format!("a row of {row_bytes} bytes does not fit in a shard of at most {max_bytes} bytes");
        return Err(QuantizeError::Asked(reason));
    }
    let even = rows.div_ceil(rows.div_ceil(most).max(1)).max(1);
    let step = even.checked_next_multiple_of(ROWS_MULTIPLE).filter(|step| *step <= most).unwrap_or(even);
    Ok((0..rows).step_by(step as usize).map(|first| first..first.saturating_add(step).min(rows)).collect())
}

/// `int8-000-0123456789ab.safetensors`, `f16-decoder-002-….safetensors` or `biases-….safetensors`.
pub fn is_shard_name(name: &str) -> bool {
    let parts = name.strip_suffix(".safetensors").and_then(|stem| stem.rsplit_once('-'));
    parts.is_some_and(|(stem, hash)| {
        hash.len() == DIGITS && hash.bytes().all(|byte| byte.is_ascii_hexdigit()) && is_stem(stem)
    })
}

/// The name of a file that [`ShardWriter`] has not finished, or of a manifest on its way.
pub fn is_temporary_name(name: &str) -> bool {
    let stem =
        name.strip_prefix('.').and_then(|name| name.strip_suffix(".tmp")).and_then(|name| name.split('.').next());
    stem.is_some_and(|stem| stem == "manifest" || is_stem(stem))
}

fn is_stem(stem: &str) -> bool {
    stem == "biases"
        || stem.rsplit_once('-').is_some_and(|(kind, number)| {
            let tier = kind.strip_suffix("-decoder").unwrap_or(kind);
            Tier::from_name(tier).is_some() && number.len() >= 3 && number.bytes().all(|byte| byte.is_ascii_digit())
        })
}

/// A file that goes away again when it is dropped unfinished.
pub struct ShardWriter {
    folder: PathBuf,
    stem: String,
    temporary: PathBuf,
    file: File,
    hash: Sha256,
    bytes: u64,
}

/// What became of a [`ShardWriter`].
pub struct Whole {
    pub path: PathBuf,
    pub name: String,
    pub bytes: u64,
    pub sha256: String,
    /// There was no such file before.
    pub new: bool,
}

impl ShardWriter {
    /// # Errors
    /// When the folder cannot be written.
    pub fn create(folder: &Path, stem: &str) -> Result<Self, QuantizeError> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        // Several servers may start in one folder at once, and tests run in one process.
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let temporary = folder.join(format!(".{stem}.{}.{number}.tmp", std::process::id()));
        let file = OpenOptions::new().write(true).create_new(true).open(&temporary);
        let file = file.map_err(|source| QuantizeError::io(&temporary, source))?;
        Ok(Self { folder: folder.to_path_buf(), stem: stem.to_owned(), temporary, file, hash: Sha256::new(), bytes: 0 })
    }

    /// # Errors
    /// When the disk does not take it.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), QuantizeError> {
        self.hash.update(bytes);
        self.bytes += bytes.len() as u64;
        self.file.write_all(bytes).map_err(|source| QuantizeError::io(&self.temporary, source))
    }

    /// Gives the file its name, `{stem}-{digits}.safetensors`.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub fn finish(mut self) -> Result<Whole, QuantizeError> {
        let sha256 = hex(&std::mem::take(&mut self.hash).finalize());
        let name = format!("{}-{}.safetensors", self.stem, &sha256[..DIGITS]);
        let (path, new) = self.rename(&name)?;
        Ok(Whole { path, name, bytes: self.bytes, sha256, new })
    }

    /// Gives the file a name without its hash.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub fn finish_as(self, name: &str) -> Result<(), QuantizeError> {
        self.rename(name).map(drop)
    }

    fn rename(&self, name: &str) -> Result<(PathBuf, bool), QuantizeError> {
        let path = self.folder.join(name);
        let new = !path.exists();
        let renamed = self.file.sync_all().and_then(|()| fs::rename(&self.temporary, &path));
        renamed.map_err(|source| QuantizeError::io(&path, source))?;
        Ok((path, new))
    }
}

impl Drop for ShardWriter {
    /// A finished file has another name by now.
    fn drop(&mut self) {
        fs::remove_file(&self.temporary).ok();
    }
}

/// SHA-256 of a file in lower-case hexadecimal.
///
/// # Errors
/// When it cannot be read.
pub fn sha256_of_file(path: &Path) -> io::Result<String> {
    let (mut file, mut hash) = (File::open(path)?, Sha256::new());
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex(&hash.finalize())),
            read => hash.update(&buffer[..read]),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // tests panic on purpose
    use super::*;
    use safetensors::{Dtype, SafeTensors};

    #[test]
    fn a_file_is_whole_named_by_its_hash_or_not_there() {
        let folder = tempfile::tempdir().unwrap();
        let names = || -> Vec<String> {
            fs::read_dir(folder.path())
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect()
        };
        let tensors = [
            Described { name: "weight", dtype: "I8", shape: vec![3, 8], bytes: 24 },
            Described { name: "scale", dtype: "F32", shape: vec![3], bytes: 12 },
        ];
        let write = || {
            let mut writer = ShardWriter::create(folder.path(), "int8-000").unwrap();
            writer.write(&header(&[("hook \"point\"", "äöü")], &tensors)).unwrap();
            writer.write(&[7; 24]).unwrap();
            assert!(names().iter().any(|name| is_temporary_name(name) && !is_shard_name(name)), "{:?}", names());
            writer.write(&[0; 12]).unwrap();
            writer
        };
        drop(write());
        assert_eq!(names(), Vec::<String>::new());
        for new in [true, false] {
            let whole = write().finish().unwrap();
            assert_eq!((names(), whole.new), (vec![whole.name.clone()], new));
            assert!(is_shard_name(&whole.name), "{}", whole.name);
            assert_eq!(sha256_of_file(&whole.path).unwrap(), whole.sha256);
            let bytes = fs::read(&whole.path).unwrap();
            assert_eq!(bytes.len() as u64, whole.bytes);
            let file = SafeTensors::deserialize(&bytes).unwrap();
            let weight = file.tensor("weight").unwrap();
            assert_eq!((weight.dtype(), weight.shape(), weight.data()), (Dtype::I8, &[3, 8][..], &[7; 24][..]));
            assert_eq!(file.tensor("scale").unwrap().data(), [0; 12]);
            let (length, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
            assert!(length.is_multiple_of(8));
            assert_eq!(metadata.metadata().as_ref().unwrap()["hook \"point\""], "äöü");
        }
    }

    #[test]
    fn rows_are_shared_out_evenly() {
        let lengths = |rows, row_bytes, max| -> Vec<u32> {
            let ranges = balanced(rows, row_bytes, max).unwrap();
            assert_eq!(ranges.first().unwrap().start, 0);
            assert!(ranges.windows(2).all(|pair| pair[0].end == pair[1].start));
            assert_eq!(ranges.last().unwrap().end, rows);
            ranges.into_iter().map(|range| range.end - range.start).collect()
        };
        assert_eq!(lengths(1, 10, 5000), [1]);
        assert_eq!(lengths(131_072, 8192, 128 << 20), [[14_592; 8].as_slice(), &[14_336]].concat());
        assert_eq!(lengths(131_072, 4100, 128 << 20), [26_240, 26_240, 26_240, 26_240, 26_112]);
        // 90 rows fit: two shards of 50 become 64 and 36; with room for 60, they stay.
        assert_eq!(lengths(100, 10, 4096 + 900), [64, 36]);
        assert_eq!(lengths(100, 10, 4096 + 600), [50, 50]);
        assert_eq!(lengths(7, 10, 4096 + 29), [2, 2, 2, 1]);
        assert!(balanced(7, 10, 4096 + 9).unwrap_err().to_string().contains("does not fit"));
    }

    #[test]
    fn our_files_are_known_by_their_names() {
        for name in ["f16-000-0123456789ab.safetensors", "int4-decoder-1000-0123456789ab.safetensors"] {
            assert!(is_shard_name(name), "{name}");
        }
        assert!(
            is_shard_name("biases-0123456789ab.safetensors") && is_shard_name("slice-012-0123456789ab.safetensors")
        );
        for name in [
            "sae.safetensors",
            "f16-000.safetensors",
            "f32-000-0123456789ab.safetensors",
            "f16-00-0123456789ab.safetensors",
            "f16-000-0123456789ag.safetensors",
            "f16-000-0123456789ab.json",
            "manifest.json",
        ] {
            assert!(!is_shard_name(name), "{name}");
        }
        assert!(is_temporary_name(".f16-decoder-000.17.2.tmp") && is_temporary_name(".manifest.17.2.tmp"));
        assert!(!is_temporary_name(".notes.tmp") && !is_temporary_name("f16-000.17.2.tmp"));
    }
}
