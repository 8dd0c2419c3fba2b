//! The files of one request: room for them, and what the page is told while they pass.

use std::cell::Cell;

use api::ShardFile;
use api::gpu::{GpuReply, Origin};
use shaders::Cancel;

use crate::load::Way;
use crate::worker::Host;

/// Bytes between two reports of progress.
const REPORT_BYTES: u64 = 1 << 20;

/// What a request fetches, and how much of it has passed.
pub struct Fetch<'a, H> {
    host: &'a H,
    /// Number of the request.
    id: u32,
    /// Folder of the files, with `/` at its end.
    base_url: &'a str,
    cancel: &'a Cancel,
    total: u64,
    stored: Cell<i64>,
    fetched: Cell<i64>,
    reported: Cell<u64>,
}

impl<'a, H: Host> Fetch<'a, H> {
    pub fn new(host: &'a H, id: u32, base_url: &'a str, cancel: &'a Cancel, total: u64) -> Self {
        let (stored, fetched, reported) = Default::default();
        Self { host, id, base_url, cancel, total, stored, fetched, reported }
    }

    /// Whether what is missing of `files` can be kept; `Err` says why not.
    pub async fn room(&self, files: &[&ShardFile]) -> Result<(), String> {
        let room = self.host.room().await?;
        let mut missing = 0;
        for file in files {
            missing += file.bytes.saturating_sub(self.host.length(&file.file).await);
        }
        if missing <= room {
            return Ok(());
        }
        let mib = |bytes: u64| bytes.div_ceil(1 << 20);
        Err(format!(
            "there is room for {} MiB and {} are needed; free some space in this browser's storage",
            mib(room),
            mib(missing)
        ))
    }

    /// The way of the files; `passed` is [`Self::passed`].
    pub fn way<'b>(&'b self, keep: bool, passed: &'b dyn Fn(i64, i64)) -> Way<'b, H> {
        Way { host: self.host, base_url: self.base_url, keep, cancel: self.cancel, passed }
    }

    /// Bytes have passed: from storage, from the network; less than none when they pass again.
    pub fn passed(&self, from_storage: i64, from_network: i64) {
        self.stored.set(self.stored.get() + from_storage);
        self.fetched.set(self.fetched.get() + from_network);
        let Origin { stored, fetched } = self.origin();
        if (stored + fetched).abs_diff(self.reported.get()) >= REPORT_BYTES {
            self.report();
        }
    }

    /// Tells the page how far it is.
    pub fn report(&self) {
        let Origin { stored, fetched } = self.origin();
        let received = stored + fetched;
        self.reported.set(received);
        self.host.post(&GpuReply::Progress { id: self.id, received, fetched, total: self.total });
    }

    pub fn origin(&self) -> Origin {
        let bytes = |count: &Cell<i64>| count.get().max(0).cast_unsigned();
        Origin { stored: bytes(&self.stored), fetched: bytes(&self.fetched) }
    }
}
