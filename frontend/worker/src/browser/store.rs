//! Storage in the browser: the origin's private file system where there is one, else the Cache API, else nothing.
//!
//! Files in the private file system are written in place, so that what arrived before a tab was killed is there for the
//! next one. The Cache API keeps whole answers only.

use js_sys::{Function, Promise, Reflect};
use wasm_bindgen::prelude::*;
use wasm_bindgen_futures::JsFuture;
use web_sys::{
    Blob, Cache, CacheStorage, DedicatedWorkerGlobalScope, File, FileSystemDirectoryHandle, FileSystemFileHandle,
    FileSystemGetDirectoryOptions, FileSystemGetFileOptions, FileSystemReadWriteOptions, FileSystemSyncAccessHandle,
    Response, StorageEstimate, StorageManager,
};

use super::{BodyStream, BrowserHost, text_of};
use crate::store::{Store, Writer};

/// Folder, and cache, of the shards.
const FOLDER: &str = "sae-shards";
/// What a browser that says nothing of its room is taken to have.
const UNKNOWN_ROOM: u64 = 1 << 40;
/// Milliseconds before the first new try.
const PAUSE_MS: u32 = 400;

/// Where files are kept.
#[derive(Clone)]
pub enum Shelf {
    Files(FileSystemDirectoryHandle),
    Cache(Cache),
    Nothing(String),
}

impl Shelf {
    /// The best that this browser has.
    pub async fn open(scope: &DedicatedWorkerGlobalScope) -> Self {
        let manager = scope.navigator().storage();
        let files = async {
            let root: FileSystemDirectoryHandle = JsFuture::from(manager.get_directory()).await?.dyn_into()?;
            let options = FileSystemGetDirectoryOptions::new();
            options.set_create(true);
            JsFuture::from(root.get_directory_handle_with_options(FOLDER, &options)).await?.dyn_into()
        };
        if has(&manager, "getDirectory") {
            match files.await {
                Ok(folder) => return Self::Files(folder),
                Err(error) => web_sys::console::warn_1(&error),
            }
        }
        let cache = async {
            let caches: CacheStorage = scope.caches()?;
            JsFuture::from(caches.open(FOLDER)).await?.dyn_into()
        };
        match cache.await {
            Ok(cache) => Self::Cache(cache),
            Err(error) => Self::Nothing(text_of(&error)),
        }
    }
}

fn has(object: &JsValue, method: &str) -> bool {
    Reflect::get(object, &method.into()).is_ok_and(|found| found.is_function())
}

/// An entry of the folder.
async fn file_handle(
    folder: &FileSystemDirectoryHandle,
    name: &str,
    create: bool,
) -> Result<FileSystemFileHandle, JsValue> {
    let options = FileSystemGetFileOptions::new();
    options.set_create(create);
    JsFuture::from(folder.get_file_handle_with_options(name, &options)).await?.dyn_into()
}

async fn file(folder: &FileSystemDirectoryHandle, name: &str) -> Result<File, JsValue> {
    JsFuture::from(file_handle(folder, name, false).await?.get_file()).await?.dyn_into()
}

async fn cached(cache: &Cache, name: &str) -> Option<Response> {
    JsFuture::from(cache.match_with_str(&cache_key(name))).await.ok()?.dyn_into().ok()
}

/// The Cache API wants an address.
fn cache_key(name: &str) -> String {
    format!("/{FOLDER}/{name}")
}

/// A file of the private file system that is being written.
pub struct ShelfWriter {
    handle: FileSystemSyncAccessHandle,
}

impl Writer for ShelfWriter {
    fn write(&mut self, at: u64, bytes: &[u8]) -> bool {
        let options = FileSystemReadWriteOptions::new();
        options.set_at(at as f64);
        let written = self.handle.write_with_u8_array_and_options(bytes, &options);
        written.is_ok_and(|written| written as usize == bytes.len())
    }

    fn flush(&mut self) {
        // What is not flushed is fetched again.
        let _ = self.handle.flush();
    }
}

impl Drop for ShelfWriter {
    fn drop(&mut self) {
        self.flush();
        self.handle.close();
    }
}

impl BrowserHost {
    async fn stored_blob(&self, name: &str) -> Option<Blob> {
        match self.shelf().await {
            Shelf::Files(folder) => file(&folder, name).await.ok().map(Into::into),
            Shelf::Cache(cache) => {
                let promise = cached(&cache, name).await?.blob().ok()?;
                JsFuture::from(promise).await.ok()?.dyn_into().ok()
            }
            Shelf::Nothing(_) => None,
        }
    }

    pub(super) async fn timeout(&self, ms: i32) {
        let wait = Promise::new(&mut |resolve: Function, _| {
            // What is queued behind it comes first: messages.
            let _ = self.scope.set_timeout_with_callback_and_timeout_and_arguments_0(&resolve, ms);
        });
        let _ = JsFuture::from(wait).await;
    }

    /// A small text on the shelf.
    pub(super) async fn recall_text(&self, key: &str) -> Option<String> {
        let Shelf::Files(folder) = self.shelf().await else { return None };
        let text = file(&folder, &note_name(key)).await.ok()?.text();
        JsFuture::from(text).await.ok()?.as_string()
    }

    pub(super) async fn remember_text(&self, key: &str, text: &str) {
        let name = note_name(key);
        self.remove(&name).await;
        if let Some(mut writer) = self.append(&name, 0).await {
            writer.write(0, text.as_bytes());
        }
    }
}

/// A file name out of any text.
fn note_name(key: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
    format!("note-{}", key.chars().map(plain).take(80).collect::<String>())
}

impl Store for BrowserHost {
    type Reader = BodyStream;
    type Writer = ShelfWriter;

    async fn room(&self) -> Result<u64, String> {
        if let Shelf::Nothing(reason) = self.shelf().await {
            return Err(format!("this browser gives no storage: {reason}"));
        }
        let manager: StorageManager = self.scope.navigator().storage();
        let estimate = async {
            let estimate: StorageEstimate = JsFuture::from(manager.estimate().ok()?).await.ok()?.unchecked_into();
            // Both are below 2^53.
            Some((estimate.get_quota()? - estimate.get_usage()?).max(0.0) as u64)
        };
        Ok(estimate.await.unwrap_or(UNKNOWN_ROOM))
    }

    /// Puts a whole file into the Cache API, if that is what there is.
    async fn prepare(&self, url: &str, name: &str) {
        let Shelf::Cache(cache) = self.shelf().await else { return };
        if cached(&cache, name).await.is_some() {
            return;
        }
        if let Ok(response) = self.fetch(url, 0).await
            && response.ok()
        {
            // No room: the file is streamed from the network then.
            let _ = JsFuture::from(cache.put_with_str(&cache_key(name), &response)).await;
        }
    }

    async fn length(&self, name: &str) -> u64 {
        self.stored_blob(name).await.map_or(0, |blob| blob.size() as u64)
    }

    async fn read(&self, name: &str) -> Option<BodyStream> {
        BodyStream::new(name, self.stored_blob(name).await?.stream(), 0).ok()
    }

    async fn append(&self, name: &str, length: u64) -> Option<ShelfWriter> {
        let Shelf::Files(folder) = self.shelf().await else { return None };
        let handle = file_handle(&folder, name, true).await.ok()?;
        // Browsers without it have files that only a page may write.
        if !has(&handle, "createSyncAccessHandle") {
            return None;
        }
        let handle: FileSystemSyncAccessHandle = JsFuture::from(handle.create_sync_access_handle()).await.ok()?.into();
        // What lies behind is of a write that was not told.
        handle.truncate_with_f64(length as f64).ok()?;
        Some(ShelfWriter { handle })
    }

    async fn remove(&self, name: &str) {
        match self.shelf().await {
            // A file that is not there is gone already.
            Shelf::Files(folder) => _ = JsFuture::from(folder.remove_entry(name)).await,
            Shelf::Cache(cache) => _ = JsFuture::from(cache.delete_with_str(&cache_key(name))).await,
            Shelf::Nothing(_) => {}
        }
    }

    async fn pause(&self, failures: u32) {
        self.timeout((PAUSE_MS << failures.min(6)) as i32).await;
    }
}
