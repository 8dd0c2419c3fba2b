use super::{Location, reason::reason};
use crate::files::FileError;
use bytes::Bytes;
use object_store::{
    ClientConfigKey, GetOptions, GetRange, ObjectStore, PutPayload, RetryConfig, WriteMultipart,
    aws::{AmazonS3Builder, AmazonS3ConfigKey},
    path::Path as ObjectPath,
};
use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, Read},
    ops::Range,
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
    time::Duration,
};
use tokio::runtime::{Builder, Runtime};

/// A request that goes wrong for a moment is tried again so many times, and for so long.
const RETRIES: usize = 4;
const PATIENCE: Duration = Duration::from_secs(300);
/// A request takes no longer, unless `AWS_TIMEOUT` says otherwise: a part at 0.5 Mbit/s.
const REQUEST_TIMEOUT: &str = "5 minutes";
/// Files that are larger travel in parts of this size, or of a larger one where they would be too many. S3 wants at
/// least 5 MiB, and takes 10,000 parts.
const PART: usize = 16 << 20;
const MOST_PARTS: u64 = 10_000;
/// Parts on their way at once.
const AT_ONCE: usize = 4;

/// The objects under a prefix of a bucket.
#[derive(Debug)]
pub struct Bucket {
    store: Arc<dyn ObjectStore>,
    prefix: ObjectPath,
    /// `s3://bucket/prefix`, for messages.
    address: String,
    /// Where requests run; there until the bucket is dropped.
    runtime: Option<Runtime>,
}

impl Bucket {
    /// Asks for nothing yet: whether there is such a bucket shows when it is used.
    ///
    /// # Errors
    /// When the variables contradict each other.
    pub fn connect(bucket: &str, prefix: &str) -> Result<Self, FileError> {
        let address = Location::Bucket { bucket: bucket.to_owned(), prefix: prefix.to_owned() }.to_string();
        let wrong =
            |reason: String| FileError::io(Path::new(&address), io::Error::new(io::ErrorKind::InvalidInput, reason));
        let retry = RetryConfig { max_retries: RETRIES, retry_timeout: PATIENCE, ..RetryConfig::default() };
        let mut builder = AmazonS3Builder::from_env().with_bucket_name(bucket).with_retry(retry);
        if std::env::var_os("AWS_TIMEOUT").is_none() {
            builder = builder.with_config(AmazonS3ConfigKey::Client(ClientConfigKey::Timeout), REQUEST_TIMEOUT);
        }
        let endpoint = builder.get_config_value(&AmazonS3ConfigKey::Endpoint).unwrap_or_default();
        let allow = builder.get_config_value(&AmazonS3ConfigKey::Client(ClientConfigKey::AllowHttp));
        let allow = allow.unwrap_or_default().to_ascii_lowercase();
        if endpoint.starts_with("http://") && !["1", "true", "on", "yes", "y"].contains(&allow.as_str()) {
            let reason = format!("the endpoint {endpoint} has no TLS; if that is wanted, set AWS_ALLOW_HTTP=true");
            return Err(wrong(reason));
        }
        let store = builder.build().map_err(|error| wrong(reason(&error).1))?;
        Self::new(Arc::new(store), &address, prefix)
    }

    /// Objects in another store. `address` is what errors name.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn new(store: Arc<dyn ObjectStore>, address: &str, prefix: &str) -> Result<Self, FileError> {
        let runtime = Builder::new_multi_thread().worker_threads(1).thread_name("objects").enable_all().build();
        let runtime = runtime.map_err(|error| FileError::io(Path::new(address), error))?;
        let prefix = ObjectPath::from(prefix);
        Ok(Self { store, prefix, address: address.to_owned(), runtime: Some(runtime) })
    }

    /// The name of an object in messages.
    pub fn at(&self, name: &str) -> PathBuf {
        if name.is_empty() { (&self.address).into() } else { format!("{}/{name}", self.address).into() }
    }

    /// Names of all objects, without those in folders of their own.
    ///
    /// # Errors
    /// When there is no such bucket, no right to look into it, or no answer.
    pub fn names(&self) -> Result<BTreeSet<String>, FileError> {
        let (store, prefix) = (self.store.clone(), self.prefix.clone());
        let listed = self.run("", async move { store.list_with_delimiter(Some(&prefix)).await })?;
        Ok(listed.objects.iter().filter_map(|object| object.location.filename().map(str::to_owned)).collect())
    }

    /// A whole object.
    ///
    /// # Errors
    /// When there is none, no right to read it, or no answer.
    pub fn read(&self, name: &str) -> Result<Bytes, FileError> {
        let (store, path) = self.object(name);
        self.run(name, async move { store.get(&path).await?.bytes().await })
    }

    /// The last bytes of an object, `most` of them or all there are, in one request; and the object, for more of it.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn read_end(self: &Arc<Self>, name: &str, most: u64) -> Result<(Object, Bytes), FileError> {
        let (store, path) = self.object(name);
        let options = GetOptions { range: Some(GetRange::Suffix(most)), ..GetOptions::default() };
        let (meta, end) = self.run(name, async move {
            let found = store.get_opts(&path, options).await?;
            let meta = found.meta.clone();
            Ok((meta, found.bytes().await?))
        })?;
        let object = Object { bucket: self.clone(), name: name.to_owned(), bytes: meta.size, e_tag: meta.e_tag };
        Ok((object, end))
    }

    /// Writes a small object.
    ///
    /// # Errors
    /// When there is no right to write it, or no answer.
    pub fn write(&self, name: &str, content: impl Into<Bytes>) -> Result<(), FileError> {
        let (store, path) = self.object(name);
        let content: Bytes = content.into();
        let payload = PutPayload::from(content);
        self.run(name, async move { store.put(&path, payload).await.map(drop) })
    }

    /// Writes a file as an object, a few parts of it in memory. The object is there when it is whole, not before.
    ///
    /// # Errors
    /// When the file cannot be read, or the object cannot be written.
    pub fn upload(&self, name: &str, file: &Path) -> Result<(), FileError> {
        let unreadable = |error| FileError::io(file, error);
        let bytes = fs::metadata(file).map_err(unreadable)?.len();
        if bytes <= PART as u64 {
            return self.write(name, fs::read(file).map_err(unreadable)?);
        }
        let size = part_size(bytes);
        let mut content = File::open(file).map_err(unreadable)?;
        let (store, path) = self.object(name);
        let upload = self.run(name, async move { store.put_multipart(&path).await })?;
        let mut upload = WriteMultipart::new_with_chunk_size(upload, size);
        loop {
            let mut part = Vec::with_capacity(size);
            match content.by_ref().take(size as u64).read_to_end(&mut part) {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) => {
                    self.run(name, async move { upload.abort().await }).ok();
                    return Err(unreadable(error));
                }
            }
            upload = self.run(name, async move {
                match upload.wait_for_capacity(AT_ONCE).await {
                    Ok(()) => {
                        upload.put(part.into());
                        Ok(upload)
                    }
                    Err(error) => {
                        // Parts of an upload that is given up would be kept, and paid for.
                        upload.abort().await.ok();
                        Err(error)
                    }
                }
            })?;
        }
        self.run(name, async move {
            // The library gives up nothing when one of the last parts is refused.
            match upload.wait_for_capacity(0).await {
                Ok(()) => upload.finish().await.map(drop),
                Err(error) => {
                    upload.abort().await.ok();
                    Err(error)
                }
            }
        })
    }

    /// Removes an object, if it is there.
    ///
    /// # Errors
    /// When there is no right to remove it, or no answer.
    pub fn remove(&self, name: &str) -> Result<(), FileError> {
        let (store, path) = self.object(name);
        self.run(name, async move {
            match store.delete(&path).await {
                Err(object_store::Error::NotFound { .. }) => Ok(()),
                other => other,
            }
        })
    }

    fn object(&self, name: &str) -> (Arc<dyn ObjectStore>, ObjectPath) {
        (self.store.clone(), self.prefix.child(name))
    }

    /// Waits for a request that runs elsewhere: whoever waits may be a thread of another runtime.
    fn run<T: Send + 'static>(
        &self,
        name: &str,
        request: impl Future<Output = Result<T, object_store::Error>> + Send + 'static,
    ) -> Result<T, FileError> {
        let failed = |error: io::Error| FileError::io(&self.at(name), error);
        let broken = || failed(io::Error::other("the request was broken off"));
        let runtime = self.runtime.as_ref().ok_or_else(broken)?;
        let (sender, receiver) = mpsc::channel();
        runtime.spawn(async move {
            // Nobody has stopped waiting.
            sender.send(request.await).ok();
        });
        let done = receiver.recv().map_err(|_| broken())?;
        done.map_err(|error| {
            let (kind, reason) = reason(&error);
            failed(io::Error::new(kind, reason))
        })
    }
}

/// Bytes of each part but the last.
fn part_size(bytes: u64) -> usize {
    usize::try_from(bytes.div_ceil(MOST_PARTS)).unwrap_or(usize::MAX).max(PART)
}

impl Drop for Bucket {
    fn drop(&mut self) {
        // Waiting for the thread is not allowed where the bucket is used by asynchronous code.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// One version of an object.
#[derive(Debug)]
pub struct Object {
    bucket: Arc<Bucket>,
    name: String,
    bytes: u64,
    e_tag: Option<String>,
}

impl Object {
    /// Its size.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Some of its bytes, and no others.
    ///
    /// # Errors
    /// When another version has taken its place, or what [`Bucket::read`] says.
    pub fn read(&self, range: Range<u64>) -> Result<Bytes, FileError> {
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let (store, path) = self.bucket.object(&self.name);
        let (wanted, if_match) = (range.end - range.start, self.e_tag.clone());
        let options = GetOptions { range: Some(GetRange::Bounded(range)), if_match, ..GetOptions::default() };
        let read = self.bucket.run(&self.name, async move { store.get_opts(&path, options).await?.bytes().await })?;
        if read.len() as u64 == wanted {
            return Ok(read);
        }
        let reason = format!("{} of {wanted} bytes came", read.len());
        Err(FileError::io(&self.bucket.at(&self.name), io::Error::new(io::ErrorKind::UnexpectedEof, reason)))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // tests panic on purpose
    use super::*;
    use object_store::memory::InMemory;

    fn bucket() -> Arc<Bucket> {
        Arc::new(Bucket::new(Arc::new(InMemory::new()), "s3://scope/runs", "runs").unwrap())
    }

    #[test]
    fn objects_are_written_read_in_parts_and_removed() {
        let bucket = bucket();
        assert!(bucket.names().unwrap().is_empty());
        bucket.write("a", "0123456789").unwrap();
        bucket.write("b", Bytes::new()).unwrap();
        assert_eq!(bucket.names().unwrap(), BTreeSet::from(["a".to_owned(), "b".to_owned()]));
        assert_eq!(bucket.read("a").unwrap(), "0123456789");
        let (object, end) = bucket.read_end("a", 4).unwrap();
        assert_eq!((object.bytes(), end), (10, "6789".into()));
        assert_eq!(bucket.read_end("a", 100).unwrap().1, "0123456789");
        assert_eq!((object.read(2..5).unwrap(), object.read(3..3).unwrap()), ("234".into(), Bytes::new()));
        assert!(object.read(8..12).is_err());
        bucket.write("a", "another").unwrap();
        let error = object.read(2..5).unwrap_err().to_string();
        assert!(error.contains("s3://scope/runs/a: the object has changed"), "{error}");
        for _ in 0..2 {
            bucket.remove("a").unwrap();
        }
        let error = bucket.read("a").unwrap_err().to_string();
        assert!(error.contains("s3://scope/runs/a: there is no such object"), "{error}");
    }

    #[test]
    fn large_files_travel_in_parts() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("large");
        let content: Vec<u8> = (0..2 * PART as u32 + 5).map(|number| (number / 7) as u8).collect();
        fs::write(&path, &content).unwrap();
        let bucket = bucket();
        bucket.upload("large", &path).unwrap();
        assert!(bucket.read("large").unwrap() == content);
        let error = bucket.upload("large", &folder.path().join("missing")).unwrap_err().to_string();
        assert!(error.contains("missing"), "{error}");
    }

    #[test]
    fn parts_are_never_too_many() {
        assert_eq!([1, PART as u64 * MOST_PARTS].map(part_size), [PART; 2]);
        for bytes in [PART as u64 * MOST_PARTS + 1, 5 << 40] {
            let size = part_size(bytes) as u64;
            assert!(size > PART as u64 && bytes.div_ceil(size) <= MOST_PARTS, "{bytes} bytes in parts of {size}");
        }
    }

    /// A thread of a runtime may not block on another one's future, and drops no runtime.
    #[tokio::test]
    async fn asynchronous_code_may_wait_too() {
        let bucket = bucket();
        bucket.write("a", "0123456789").unwrap();
        assert_eq!(bucket.read("a").unwrap(), "0123456789");
        drop(bucket);
    }
}
