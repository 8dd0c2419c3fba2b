//! The SAE's files, as the visitor's GPU wants them: resumable, and never fetched twice.

use crate::error::AppError;
use api::shards::MANIFEST;
use axum::{
    body::Body,
    extract::Request,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use frontend::api::SourceKey;
use pipeline::quantize::Shards;
use sha2::{Digest, Sha256};
use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};
use tower::ServiceExt;
use tower_http::services::ServeFile;

/// The checkpoint, and its settings.
const CHECKPOINT: &str = "sae.safetensors";
const SETTINGS: &str = "cfg.json";
const OCTETS: &str = "application/octet-stream";
const JSON: &str = "application/json";
/// A version in the address is at least this many digits of the file's SHA-256.
const VERSION_DIGITS: usize = 8;

/// The served files of one source.
#[derive(Debug, Clone)]
pub struct Weights {
    source: SourceKey,
    files: Vec<WeightFile>,
}

#[derive(Debug, Clone)]
struct WeightFile {
    name: String,
    content_type: &'static str,
    path: PathBuf,
    sha256: String,
    /// Its name holds its hash: there will never be another file of this name.
    immutable: bool,
}

impl Weights {
    /// The checkpoint in `folder`, and its shards. Blocking work: files are hashed, but not those whose hashes the
    /// manifest holds.
    ///
    /// # Errors
    /// When one cannot be read, or a shard has another size than the manifest says; the error names it.
    pub fn open(source: SourceKey, folder: &Path, shards: Option<&Shards>) -> io::Result<Self> {
        let known = shards.map(|shards| shards.manifest.source_sha256.clone());
        let mut files =
            vec![WeightFile::open(folder, CHECKPOINT, OCTETS, known)?, WeightFile::open(folder, SETTINGS, JSON, None)?];
        if let Some(Shards { folder, manifest, .. }) = shards {
            files.push(WeightFile::open(folder, MANIFEST, JSON, None)?);
            for shard in manifest.files() {
                let file = WeightFile::open(folder, &shard.file, OCTETS, Some(shard.sha256.clone()))?;
                let (found, expected) = (file.path.metadata()?.len(), shard.bytes);
                if found != expected {
                    let reason = format!("{}: {found} bytes; the manifest says {expected}", file.path.display());
                    return Err(io::Error::other(reason));
                }
                files.push(WeightFile { immutable: true, ..file });
            }
        }
        Ok(Self { source, files })
    }

    /// Answers a request for a file: whole, a range of it, or "not modified".
    ///
    /// With `version` (the first digits of the file's SHA-256) or a hash in its name the answer never changes and is
    /// kept for a year; without, it is asked for again each time.
    ///
    /// # Errors
    /// When there is no such file, or another version of it was asked for.
    pub async fn serve(
        &self,
        source: &SourceKey,
        name: &str,
        version: Option<&str>,
        mut request: Request,
    ) -> Result<Response, AppError> {
        let file = self.files.iter().find(|file| file.name == name && self.source == *source);
        let file = file.ok_or_else(|| {
            let shards =
                if self.files.len() > 2 { format!(", {MANIFEST} and the files it names") } else { String::new() };
            AppError::not_found(format!(
                "There are no weights {name}; this source has {CHECKPOINT}, {SETTINGS}{shards}."
            ))
        })?;
        if version.is_some_and(|version| version.len() < VERSION_DIGITS || !file.sha256.starts_with(version)) {
            return Err(AppError::not_found(format!("{name} has another version: {}. Reload the page.", file.sha256)));
        }
        let cached = cache_headers(&file.sha256, file.immutable || version.is_some());
        if is_current(request.headers(), &file.sha256) {
            return Ok((StatusCode::NOT_MODIFIED, cached).into_response());
        }
        keep_range_only_of_this_version(request.headers_mut(), &file.sha256);
        let response = ServeFile::new(&file.path).oneshot(request).await;
        let mut response = match response {
            Ok(response) => response.map(Body::new),
            Err(never) => match never {},
        };
        response.headers_mut().extend(cached);
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(file.content_type));
        Ok(response)
    }
}

impl WeightFile {
    /// A file whose hash may be known.
    fn open(folder: &Path, name: &str, content_type: &'static str, sha256: Option<String>) -> io::Result<Self> {
        let path = folder.join(name);
        let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
        let sha256 = match sha256 {
            Some(known) => path.metadata().map(|_| known),
            None => sha256_of_file(&path),
        };
        let sha256 = sha256.map_err(named)?;
        Ok(Self { name: name.to_owned(), content_type, path, sha256, immutable: false })
    }
}

/// `If-Range` with another version means: send the whole file. The other conditions are settled by then.
fn keep_range_only_of_this_version(headers: &mut HeaderMap, sha256: &str) {
    let other = headers.get(header::IF_RANGE).is_some_and(|value| *value != etag(sha256));
    if other {
        headers.remove(header::RANGE);
    }
    for name in [header::IF_MODIFIED_SINCE, header::IF_UNMODIFIED_SINCE] {
        headers.remove(name);
    }
}

fn etag(sha256: &str) -> String {
    format!("\"{sha256}\"")
}

/// `ETag` and `Cache-Control` of something whose version is `sha256`.
pub(crate) fn cache_headers(sha256: &str, immutable: bool) -> HeaderMap {
    let control = if immutable { "public, max-age=31536000, immutable" } else { "public, no-cache" };
    let mut headers = HeaderMap::new();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(control));
    if let Ok(value) = HeaderValue::from_str(&etag(sha256)) {
        headers.insert(header::ETAG, value);
    }
    headers
}

/// True if the client already holds this version.
pub(crate) fn is_current(headers: &HeaderMap, sha256: &str) -> bool {
    let etag = etag(sha256);
    let lists = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    lists
        .flat_map(|list| list.split(','))
        .map(str::trim)
        .any(|held| held == "*" || held.trim_start_matches("W/") == etag)
}

/// SHA-256 of a file in lower-case hexadecimal.
///
/// # Errors
/// When it cannot be read.
pub fn sha256_of_file(path: &Path) -> io::Result<String> {
    let mut hash = Sha256::new();
    hash_file(path, &mut hash)?;
    Ok(hex(&hash.finalize()))
}

/// Adds a file to `hash`, piece by piece.
pub(crate) fn hash_file(path: &Path, hash: &mut Sha256) -> io::Result<()> {
    let mut file = File::open(path)?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(()),
            read => hash.update(&buffer[..read]),
        }
    }
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_says_what_it_holds() {
        let with = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::IF_NONE_MATCH, HeaderValue::from_static(value));
            is_current(&headers, "abc")
        };
        assert!(with("\"abc\"") && with("W/\"abc\"") && with("\"x\", \"abc\"") && with("*"));
        assert!(!with("\"abcd\"") && !with("abc"));
        assert!(!is_current(&HeaderMap::new(), "abc"));
    }
}
