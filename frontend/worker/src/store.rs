//! This machine's storage for files that were fetched.

use crate::load::Stream;

/// Storage, as the load sees it. Nothing here is an error: what cannot be stored is fetched again.
pub trait Store {
    type Reader: Stream;
    type Writer: Writer;

    /// Bytes that may still be written; `Err` says why nothing can be kept.
    async fn room(&self) -> Result<u64, String>;

    /// Fetches a whole file, where whole files are all that can be kept.
    async fn prepare(&self, url: &str, name: &str);

    /// Bytes of a file that are stored; fewer than it has, if its download broke off.
    async fn length(&self, name: &str) -> u64;

    /// The stored bytes from the beginning.
    async fn read(&self, name: &str) -> Option<Self::Reader>;

    /// Opens a file to go on after its first `length` bytes; `None` if that cannot be, for instance because another
    /// tab is writing it.
    async fn append(&self, name: &str, length: u64) -> Option<Self::Writer>;

    async fn remove(&self, name: &str);

    /// Waits before another try, longer each time.
    async fn pause(&self, failures: u32);
}

/// A file that is being written; closed when dropped.
pub trait Writer {
    /// Whether it worked.
    fn write(&mut self, at: u64, bytes: &[u8]) -> bool;
    fn flush(&mut self);
}
