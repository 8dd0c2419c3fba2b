//! A host in memory: files that arrive in odd chunks, connections that die, storage that fills.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use api::gpu::GpuReply;
use shaders::Cancel;

use crate::Error;
use crate::load::{Source, Stream};
use crate::store::{Store, Writer};
use crate::worker::Host;

/// Bytes that arrive at once.
const CHUNK: usize = 7_777;

type Files = Rc<RefCell<BTreeMap<String, Vec<u8>>>>;

/// Clones share everything.
#[derive(Clone)]
pub struct MemoryHost {
    pub files: Rc<BTreeMap<String, Vec<u8>>>,
    pub stored: Files,
    pub room: Rc<RefCell<Result<u64, String>>>,
    /// Whether the server knows ranges.
    pub ranges: Rc<Cell<bool>>,
    /// Only the manifest can be fetched.
    pub offline_shards: Rc<Cell<bool>>,
    /// No connection brings more bytes than these, in all.
    pub dies_after: Rc<Cell<Option<usize>>>,
    /// Every connection breaks after these.
    pub stutters_every: Rc<Cell<Option<usize>>>,
    pub pauses: Rc<Cell<u32>>,
    pub opened: Rc<RefCell<Vec<String>>>,
    pub posts: Rc<RefCell<Vec<GpuReply>>>,
    pub notes: Rc<RefCell<BTreeMap<String, String>>>,
    breaths: Rc<Cell<u32>>,
    /// When it lets messages in for this time, one of them cancels.
    pub cancel_at_breath: Rc<RefCell<Option<(u32, Cancel)>>>,
}

impl MemoryHost {
    pub fn new(files: BTreeMap<String, Vec<u8>>) -> Self {
        Self {
            files: Rc::new(files),
            stored: Rc::default(),
            room: Rc::new(RefCell::new(Ok(1 << 40))),
            ranges: Rc::new(Cell::new(true)),
            offline_shards: Rc::default(),
            dies_after: Rc::default(),
            stutters_every: Rc::default(),
            pauses: Rc::default(),
            opened: Rc::default(),
            posts: Rc::default(),
            notes: Rc::default(),
            breaths: Rc::default(),
            cancel_at_breath: Rc::default(),
        }
    }

    /// What was received of the total, as it was posted.
    pub fn progress(&self) -> Vec<(u64, u64)> {
        let posts = self.posts.borrow();
        let progress = posts.iter().map(|post| match *post {
            GpuReply::Progress { id: 1, received, total, .. } => (received, total),
            ref other => panic!("{other:?}"),
        });
        progress.collect()
    }
}

pub struct MemoryStream {
    bytes: Vec<u8>,
    position: usize,
    /// Bytes until this connection breaks.
    left: usize,
    dies_after: Rc<Cell<Option<usize>>>,
}

impl Source for MemoryHost {
    type Stream = MemoryStream;

    async fn open(&self, url: &str, start: u64) -> Result<MemoryStream, Error> {
        self.opened.borrow_mut().push(url.to_owned());
        let name = url.strip_prefix("sae/").unwrap_or(url);
        let missing = || Error::Fetch { url: url.to_owned(), reason: "404".to_owned() };
        let known = self.files.get(name).filter(|_| name == "manifest.json" || !self.offline_shards.get());
        let is_manifest = name == "manifest.json";
        Ok(MemoryStream {
            bytes: known.ok_or_else(missing)?.clone(),
            position: if self.ranges.get() { start as usize } else { 0 },
            left: self.stutters_every.get().filter(|_| !is_manifest).unwrap_or(usize::MAX),
            dies_after: if is_manifest { Rc::default() } else { Rc::clone(&self.dies_after) },
        })
    }
}

impl Stream for MemoryStream {
    fn position(&self) -> u64 {
        self.position as u64
    }

    async fn read(&mut self, slice: &mut [u8]) -> Result<usize, Error> {
        let rest = &self.bytes[self.position.min(self.bytes.len())..];
        let alive = self.dies_after.get().unwrap_or(usize::MAX).min(self.left);
        let bytes = rest.len().min(slice.len()).min(CHUNK).min(alive);
        if bytes == 0 && !rest.is_empty() {
            return Err(Error::Fetch { url: "sae".to_owned(), reason: "the connection broke".to_owned() });
        }
        slice[..bytes].copy_from_slice(&rest[..bytes]);
        self.position += bytes;
        self.left -= bytes;
        self.dies_after.set(self.dies_after.get().map(|left| left - bytes));
        Ok(bytes)
    }
}

pub struct MemoryWriter {
    stored: Files,
    name: String,
}

impl Writer for MemoryWriter {
    fn write(&mut self, at: u64, bytes: &[u8]) -> bool {
        let mut stored = self.stored.borrow_mut();
        let file = stored.entry(self.name.clone()).or_default();
        file.truncate(at as usize);
        file.extend(bytes);
        true
    }

    fn flush(&mut self) {}
}

impl Store for MemoryHost {
    type Reader = MemoryStream;
    type Writer = MemoryWriter;

    async fn room(&self) -> Result<u64, String> {
        self.room.borrow().clone()
    }

    async fn prepare(&self, _url: &str, _name: &str) {}

    async fn length(&self, name: &str) -> u64 {
        self.stored.borrow().get(name).map_or(0, |file| file.len() as u64)
    }

    async fn read(&self, name: &str) -> Option<MemoryStream> {
        let bytes = self.stored.borrow().get(name)?.clone();
        Some(MemoryStream { bytes, position: 0, left: usize::MAX, dies_after: Rc::default() })
    }

    async fn append(&self, name: &str, length: u64) -> Option<MemoryWriter> {
        if let Some(file) = self.stored.borrow_mut().get_mut(name) {
            file.truncate(length as usize);
        }
        Some(MemoryWriter { stored: Rc::clone(&self.stored), name: name.to_owned() })
    }

    async fn remove(&self, name: &str) {
        self.stored.borrow_mut().remove(name);
    }

    async fn pause(&self, _failures: u32) {
        self.pauses.set(self.pauses.get() + 1);
    }
}

impl Host for MemoryHost {
    fn post(&self, reply: &GpuReply) {
        self.posts.borrow_mut().push(reply.clone());
    }

    fn now_ms(&self) -> f64 {
        0.0
    }

    async fn adapter(&self) -> Option<(String, bool)> {
        None
    }

    async fn recall(&self, key: &str) -> Option<String> {
        self.notes.borrow().get(key).cloned()
    }

    async fn remember(&self, key: &str, text: &str) {
        self.notes.borrow_mut().insert(key.to_owned(), text.to_owned());
    }

    /// A page may speak up now.
    async fn breathe(&self) {
        let breath = self.breaths.get() + 1;
        self.breaths.set(breath);
        if let Some((at, cancel)) = &*self.cancel_at_breath.borrow()
            && *at == breath
        {
            cancel.cancel();
        }
    }
}
