//! One shard, from this machine's storage or from the network, through one small reused slice.
//!
//! Bytes are hashed as they pass; those from the network are kept for the next visit, so that a download that broke off
//! goes on where it stopped. Memory does not grow with the shard.

use std::pin::Pin;

use api::ShardFile;
use sha2::{Digest, Sha256};
use shaders::Cancel;

use crate::Error;
use crate::safetensors::{self, LENGTH_BYTES, Tensor};
use crate::store::{Store, Writer};

/// Bytes of the reused slice: whole words, and few enough calls.
pub const SLICE_BYTES: usize = 1 << 20;
/// A connection that breaks is made again this many times in a row without a byte arriving.
const RETRIES: u32 = 3;

/// Where files come from.
pub trait Source {
    type Stream: Stream;

    /// The file from the byte `start` on, or from its beginning if the server knows no ranges: see
    /// [`Stream::position`].
    async fn open(&self, url: &str, start: u64) -> Result<Self::Stream, Error>;
}

/// A file that is arriving. Dropping it gives up the rest.
pub trait Stream {
    /// Offset in the file of the next byte.
    fn position(&self) -> u64;

    /// Copies the next bytes to `slice`, as many as have arrived but at least one; 0 at the end.
    async fn read(&mut self, slice: &mut [u8]) -> Result<usize, Error>;
}

/// A whole small file.
///
/// # Errors
/// [`Error::Fetch`], also if it is longer than `limit` bytes.
pub async fn small_file<S: Source>(source: &S, url: &str, limit: usize) -> Result<Vec<u8>, Error> {
    let mut stream = source.open(url, 0).await?;
    let (mut content, mut slice) = (Vec::new(), vec![0; SLICE_BYTES.min(limit + 1)]);
    loop {
        match stream.read(&mut slice).await? {
            0 => return Ok(content),
            bytes => content.extend_from_slice(&slice[..bytes]),
        }
        if content.len() > limit {
            return Err(Error::Fetch { url: url.to_owned(), reason: format!("it is longer than {limit} bytes") });
        }
    }
}

/// A piece is being taken. (Boxed, so that all sinks share one compiled loader.)
pub type Taking<'a> = Pin<Box<dyn Future<Output = Result<(), Error>> + 'a>>;

/// Takes a shard's bytes: `(tensor, offset in the tensor, bytes)`, in order, every piece but a tensor's last one whole
/// words.
pub trait Sink {
    /// Looks at the header before anything is taken.
    fn check(&mut self, tensors: &[Tensor]) -> Result<(), Error>;
    /// The file was damaged and could come once more: whether what was taken can be taken again.
    fn begin_again(&mut self) -> bool;
    /// The next piece is read when this one is taken.
    fn take<'a>(&'a mut self, tensor: &'a Tensor, offset: u64, piece: &'a [u8]) -> Taking<'a>;
}

/// What a load needs beside the file.
pub struct Way<'a, H> {
    pub host: &'a H,
    /// Folder of the files, with `/` at its end.
    pub base_url: &'a str,
    /// Keep what is fetched.
    pub keep: bool,
    pub cancel: &'a Cancel,
    /// Called with the bytes that passed: from storage, from the network; less than none when they pass again.
    pub passed: &'a dyn Fn(i64, i64),
}

impl<H: Source + Store> Way<'_, H> {
    /// Streams one file into `sink`. A damaged one is fetched again, once.
    ///
    /// # Errors
    /// [`Error::Damaged`] if it is damaged again, or the sink cannot begin again; [`Error::Fetch`],
    /// [`Error::Truncated`], [`Error::Safetensors`], cancelled, and what `sink` says.
    pub async fn load(&self, file: &ShardFile, sink: &mut dyn Sink) -> Result<(), Error> {
        for again in [false, true] {
            let mut reader = ShardReader::new(self, file).await;
            let outcome = reader.stream(sink).await;
            let (stored, fetched) = reader.passed;
            drop(reader);
            match outcome {
                Ok(true) => return Ok(()),
                // A header that makes no sense is damage like any other.
                Ok(false) | Err(Error::Safetensors(_)) if !again => {
                    self.host.remove(&file.file).await;
                    (self.passed)(-stored, -fetched);
                    if !sink.begin_again() {
                        break;
                    }
                }
                Ok(false) | Err(Error::Safetensors(_)) => {
                    self.host.remove(&file.file).await;
                    return Err(Error::Damaged { file: file.file.clone() });
                }
                Err(error) => return Err(error),
            }
        }
        Err(Error::Damaged { file: file.file.clone() })
    }
}

/// Where the next bytes are.
enum From<R, S, W> {
    Nowhere,
    Storage(R),
    Network(S, Option<W>),
}

/// A reader of one shard.
struct ShardReader<'a, H: Source + Store> {
    way: &'a Way<'a, H>,
    file: &'a ShardFile,
    url: String,
    /// Bytes in storage when it was opened.
    stored: u64,
    from: From<H::Reader, H::Stream, H::Writer>,
    at: u64,
    hash: Sha256,
    slice: Vec<u8>,
    /// From storage, from the network.
    passed: (i64, i64),
}

impl<'a, H: Source + Store> ShardReader<'a, H> {
    async fn new(way: &'a Way<'a, H>, file: &'a ShardFile) -> Self {
        let url = format!("{}{}", way.base_url, file.file);
        if way.keep {
            way.host.prepare(&url, &file.file).await;
        }
        let stored = way.host.length(&file.file).await.min(file.bytes);
        let from = match way.host.read(&file.file).await {
            Some(reader) if stored > 0 => From::Storage(reader),
            _ => From::Nowhere,
        };
        let stored = if matches!(from, From::Storage(_)) { stored } else { 0 };
        Self { way, file, url, stored, from, at: 0, hash: Sha256::new(), slice: vec![0; SLICE_BYTES], passed: (0, 0) }
    }

    /// Everything to `sink`; whether the hash is right.
    async fn stream(&mut self, sink: &mut dyn Sink) -> Result<bool, Error> {
        let mut first = [0; LENGTH_BYTES as usize];
        self.fill(&mut first).await?;
        // At most `MAX_HEADER_BYTES`.
        let mut header = vec![0; safetensors::header_length(first)? as usize];
        self.fill(&mut header).await?;
        let data_start = self.at;
        let tensors = safetensors::tensors(&header)?;
        sink.check(&tensors)?;
        let mut slice = std::mem::take(&mut self.slice);
        for tensor in &tensors {
            self.skip_to(data_start.saturating_add(tensor.start), &mut slice).await?;
            let mut offset = 0;
            while offset < tensor.bytes() {
                // At most the slice.
                let length = (tensor.bytes() - offset).min(slice.len() as u64) as usize;
                self.fill(&mut slice[..length]).await?;
                sink.take(tensor, offset, &slice[..length]).await?;
                offset += length as u64;
            }
        }
        self.skip_to(self.file.bytes, &mut slice).await?;
        if let From::Network(_, Some(writer)) = &mut self.from {
            writer.flush();
        }
        let sha256: String =
            std::mem::take(&mut self.hash).finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(self.at == self.file.bytes && sha256 == self.file.sha256)
    }

    /// Reads on to the byte `start`.
    async fn skip_to(&mut self, start: u64, slice: &mut [u8]) -> Result<(), Error> {
        while self.at < start {
            let length = (start - self.at).min(slice.len() as u64) as usize;
            self.fill(&mut slice[..length]).await?;
        }
        Ok(())
    }

    /// Reads exactly `slice`.
    async fn fill(&mut self, slice: &mut [u8]) -> Result<(), Error> {
        let (mut filled, mut failures) = (0, 0);
        while filled < slice.len() {
            self.way.cancel.check().map_err(Error::from)?;
            match self.read(&mut slice[filled..]).await {
                Ok(0) => {
                    let expected = self.at + (slice.len() - filled) as u64;
                    return Err(Error::Truncated { url: self.url.clone(), bytes: self.at, expected });
                }
                Ok(bytes) => (filled, failures) = (filled + bytes, 0),
                Err(error @ Error::Fetch { .. }) => {
                    failures += 1;
                    if failures > RETRIES {
                        return Err(error);
                    }
                    self.from = From::Nowhere;
                    self.way.host.pause(failures).await;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Some bytes: hashed, and kept if they are new.
    async fn read(&mut self, slice: &mut [u8]) -> Result<usize, Error> {
        if let From::Storage(reader) = &mut self.from {
            let left = self.stored.saturating_sub(self.at).min(slice.len() as u64) as usize;
            let bytes = if left == 0 { 0 } else { reader.read(&mut slice[..left]).await.unwrap_or(0) };
            if bytes > 0 {
                self.pass(&slice[..bytes]);
                self.passed.0 += bytes as i64;
                (self.way.passed)(bytes as i64, 0);
                return Ok(bytes);
            }
            self.from = From::Nowhere;
        }
        if self.at == self.file.bytes {
            return Ok(0);
        }
        if matches!(self.from, From::Nowhere) {
            self.from = self.connect().await?;
        }
        let at = self.at;
        let From::Network(stream, writer) = &mut self.from else { return Ok(0) };
        let bytes = stream.read(slice).await?;
        if bytes > 0 {
            if writer.as_mut().is_some_and(|writer| !writer.write(at, &slice[..bytes])) {
                *writer = None;
            }
            self.pass(&slice[..bytes]);
            self.passed.1 += bytes as i64;
            (self.way.passed)(0, bytes as i64);
        }
        Ok(bytes)
    }

    fn pass(&mut self, bytes: &[u8]) {
        self.hash.update(bytes);
        self.at += bytes.len() as u64;
    }

    /// The network from the next byte on, and the place where it is kept.
    async fn connect(&mut self) -> Result<From<H::Reader, H::Stream, H::Writer>, Error> {
        let mut stream = self.way.host.open(&self.url, self.at).await?;
        if stream.position() > self.at {
            let reason = format!("the server sent byte {} first; {} was asked for", stream.position(), self.at);
            return Err(Error::Fetch { url: self.url.clone(), reason });
        }
        let mut unwanted = vec![0; 64 << 10];
        while stream.position() < self.at {
            let length = (self.at - stream.position()).min(unwanted.len() as u64) as usize;
            if stream.read(&mut unwanted[..length]).await? == 0 {
                let bytes = stream.position();
                return Err(Error::Truncated { url: self.url.clone(), bytes, expected: self.file.bytes });
            }
        }
        let writer = if self.way.keep { self.way.host.append(&self.file.file, self.at).await } else { None };
        Ok(From::Network(stream, writer))
    }
}
