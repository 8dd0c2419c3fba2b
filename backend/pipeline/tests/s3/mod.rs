//! The same index on disk and on S3, for which moto stands.

use super::{LATENTS, Made, ROOMY, files};
use async_trait::async_trait;
use futures::stream::BoxStream;
use object_store::{
    GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions, PutOptions,
    PutPayload, PutResult, Result, aws::AmazonS3, path::Path as ObjectPath,
};
use pipeline::index::{FeatureIndex, Upload};
use std::{
    fmt,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};
use store::{files::names, objects::Bucket, testing::Moto};

/// S3, and what was fetched from it.
#[derive(Debug)]
struct Counting {
    s3: AmazonS3,
    requests: AtomicU64,
    bytes: AtomicU64,
}

impl Counting {
    /// Requests and bytes since it was asked last.
    fn fetched(&self) -> (u64, u64) {
        (self.requests.swap(0, Ordering::Relaxed), self.bytes.swap(0, Ordering::Relaxed))
    }
}

impl fmt::Display for Counting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.s3, f)
    }
}

#[async_trait]
impl ObjectStore for Counting {
    async fn put_opts(&self, location: &ObjectPath, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        self.s3.put_opts(location, payload, opts).await
    }

    async fn put_multipart_opts(
        &self,
        location: &ObjectPath,
        opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.s3.put_multipart_opts(location, opts).await
    }

    async fn get_opts(&self, location: &ObjectPath, options: GetOptions) -> Result<GetResult> {
        let found = self.s3.get_opts(location, options).await?;
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(found.range.end - found.range.start, Ordering::Relaxed);
        Ok(found)
    }

    async fn delete(&self, location: &ObjectPath) -> Result<()> {
        self.s3.delete(location).await
    }

    fn list(&self, prefix: Option<&ObjectPath>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.s3.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&ObjectPath>) -> Result<ListResult> {
        self.s3.list_with_delimiter(prefix).await
    }

    async fn copy(&self, from: &ObjectPath, to: &ObjectPath) -> Result<()> {
        self.s3.copy(from, to).await
    }

    async fn copy_if_not_exists(&self, from: &ObjectPath, to: &ObjectPath) -> Result<()> {
        self.s3.copy_if_not_exists(from, to).await
    }
}

fn start() -> Moto {
    Moto::start(Path::new(env!("CARGO_TARGET_TMPDIR"))).unwrap()
}

fn bucket(store: Arc<dyn ObjectStore>, prefix: &str) -> Bucket {
    Bucket::new(store, &format!("s3://scope/{prefix}"), prefix).unwrap()
}

#[test]
fn an_index_on_s3_is_the_one_on_disk_and_a_feature_takes_one_request() {
    let moto = start();
    let made = Made::new(200);
    made.index("out", ROOMY).unwrap();
    let counting =
        Arc::new(Counting { s3: moto.bucket().unwrap(), requests: AtomicU64::new(0), bytes: AtomicU64::new(0) });
    let place = || bucket(counting.clone(), "runs/index");
    let said = std::cell::RefCell::new(Vec::new());
    let say = |doing: &str| said.borrow_mut().push(doing.to_owned());
    Upload::begin(place()).unwrap().commit(&made.at("out"), &say).unwrap();
    // These two, in this order, after all others.
    assert!(said.borrow().ends_with(&["uploading source.json".to_owned(), "uploading index.json".to_owned()]));
    let disk = files(&made.at("out"));
    assert_eq!(place().names().unwrap(), disk.keys().cloned().collect());
    for (name, content) in &disk {
        assert!(place().read(name).unwrap() == *content, "{name}");
    }

    counting.fetched();
    let index = FeatureIndex::open_in(&Arc::new(place())).unwrap();
    let whole = disk[names::ACTIVATIONS].len() as u64;
    let (requests, bytes) = counting.fetched();
    assert_eq!(requests, 2, "index.json, and the footer");
    assert!(bytes < disk[names::INDEX].len() as u64 + whole / 3, "{bytes} of {whole}");
    let here = FeatureIndex::open(&made.at("out")).unwrap();
    assert_eq!((index.manifest(), index.file().groups() > 5), (here.manifest(), true));
    for feature in 0..LATENTS {
        let before = (index.file().groups_read(), index.file().bytes_read());
        assert!(index.activations(feature).unwrap() == here.activations(feature).unwrap(), "feature {feature}");
        let (requests, bytes) = counting.fetched();
        assert_eq!(requests, index.file().groups_read() - before.0, "feature {feature}");
        assert_eq!(bytes, index.file().bytes_read() - before.1, "feature {feature}");
        assert!(requests <= 1 && bytes < whole / 4, "feature {feature}: {requests} requests, {bytes} of {whole} bytes");
    }
    assert_eq!(index.file().bytes_read(), here.file().bytes_read());

    // Another index takes its place while this one is open.
    let other = Made::new(3);
    other.index("out", ROOMY).unwrap();
    Upload::begin(place()).unwrap().commit(&other.at("out"), &|_| {}).unwrap();
    let error = index.activations(1).unwrap_err().to_string();
    assert!(error.contains("runs/index/activations.parquet: the object has changed"), "{error}");
    assert!(FeatureIndex::open_in(&Arc::new(place())).unwrap().activations(1).is_ok());
}

#[test]
fn large_files_arrive_in_parts() {
    let moto = start();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("large");
    let content: Vec<u8> = (0..20u32 << 20).map(|number| (number % 251) as u8).collect();
    std::fs::write(&path, &content).unwrap();
    let bucket = bucket(Arc::new(moto.bucket().unwrap()), "");
    bucket.upload("large", &path).unwrap();
    assert!(bucket.read("large").unwrap() == content);
}

#[test]
fn what_s3_refuses_is_one_line() {
    let mut moto = start();
    let place = || Arc::new(bucket(Arc::new(moto.bucket().unwrap()), "empty"));
    let error = FeatureIndex::open_in(&place()).unwrap_err().to_string();
    assert!(error.contains("s3://scope/empty/index.json: there is no such object"), "{error}");
    place().write(names::INDEX, "{}").unwrap();
    let error = FeatureIndex::open_in(&place()).unwrap_err().to_string();
    assert!(error.contains("s3://scope/empty/index.json: no index"), "{error}");
    let locked = place();
    moto.lock().unwrap();
    let refused = [
        locked.read("index.json").unwrap_err(),
        locked.names().unwrap_err(),
        locked.write("a", "b").unwrap_err(),
        locked.remove("index.json").unwrap_err(),
    ];
    for error in refused.map(|error| error.to_string()) {
        assert!(error.contains("s3://scope/empty") && error.contains("no right to do this"), "{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
}
