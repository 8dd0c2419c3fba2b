//! An SAE's file, streamed.
//!
//! Bytes go through one small reused slice, so memory does not grow with the SAE. Tensors that encoding does not need
//! (the decoder is half of the file, and comes first) are skipped by asking the server for a later range.

use half::f16;
use shaders::WeightType;

use crate::Error;
use crate::safetensors::{self, LENGTH_BYTES, SaeTensors, Tensor};

/// Bytes of the reused slice: whole words, and few enough calls.
pub const SLICE_BYTES: usize = 1 << 20;
/// Reading on over a gap this long is cheaper than another request.
const SKIP_BYTES: u64 = 256 << 10;

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
    let mut content = vec![0; limit + 1];
    let mut length = 0;
    loop {
        match stream.read(&mut content[length..]).await? {
            0 => break,
            bytes => length += bytes,
        }
        if length > limit {
            return Err(Error::Fetch { url: url.to_owned(), reason: format!("it is longer than {limit} bytes") });
        }
    }
    content.truncate(length);
    Ok(content)
}

/// A reader of one SAE file.
pub struct SaeReader<'a, S: Source> {
    source: &'a S,
    url: &'a str,
    stream: S::Stream,
    slice: Vec<u8>,
}

impl<'a, S: Source> SaeReader<'a, S> {
    /// Opens the file and reads its header.
    ///
    /// # Errors
    /// [`Error::Fetch`], [`Error::Truncated`], [`Error::Safetensors`].
    pub async fn open(source: &'a S, url: &'a str) -> Result<(Self, SaeTensors), Error> {
        let stream = source.open(url, 0).await?;
        let mut reader = Self { source, url, stream, slice: vec![0; SLICE_BYTES] };
        let mut first = [0; LENGTH_BYTES as usize];
        reader.fill(&mut first).await?;
        // At most `MAX_HEADER_BYTES`.
        let mut header = vec![0; safetensors::header_length(first)? as usize];
        reader.fill(&mut header).await?;
        Ok((reader, safetensors::sae_tensors(&header)?))
    }

    /// Hands a tensor's bytes to `sink(offset in the tensor, bytes)` in order; every piece but the last is whole words.
    ///
    /// # Errors
    /// [`Error::Fetch`], [`Error::Truncated`], and what `sink` says.
    pub async fn stream_tensor(
        &mut self,
        tensor: &Tensor,
        mut sink: impl FnMut(u64, &[u8]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.seek(tensor.start).await?;
        let mut slice = std::mem::take(&mut self.slice);
        let mut offset = 0;
        let mut result = Ok(());
        while offset < tensor.bytes() && result.is_ok() {
            // At most the slice.
            let length = (tensor.bytes() - offset).min(slice.len() as u64) as usize;
            result = self.fill(&mut slice[..length]).await;
            if result.is_ok() {
                result = sink(offset, &slice[..length]);
            }
            offset += length as u64;
        }
        self.slice = slice;
        result
    }

    /// A small tensor as f32.
    ///
    /// # Errors
    /// [`Error::Fetch`], [`Error::Truncated`].
    pub async fn read_tensor(&mut self, tensor: &Tensor) -> Result<Vec<f32>, Error> {
        let mut values = Vec::new();
        let dtype = tensor.dtype;
        self.stream_tensor(tensor, |_, piece| {
            extend_f32(&mut values, piece, dtype);
            Ok(())
        })
        .await?;
        Ok(values)
    }

    /// Moves to the byte `start`: by reading on if it is near, else by a new request.
    async fn seek(&mut self, start: u64) -> Result<(), Error> {
        let position = self.stream.position();
        if start < position || start - position > SKIP_BYTES {
            self.stream = self.source.open(self.url, start).await?;
        }
        if self.stream.position() > start {
            let reason = format!("the server sent byte {} first; {start} was asked for", self.stream.position());
            return Err(Error::Fetch { url: self.url.to_owned(), reason });
        }
        let mut slice = std::mem::take(&mut self.slice);
        let mut result = Ok(());
        while self.stream.position() < start && result.is_ok() {
            let length = (start - self.stream.position()).min(slice.len() as u64) as usize;
            result = self.fill(&mut slice[..length]).await;
        }
        self.slice = slice;
        result
    }

    /// Reads exactly `slice`.
    async fn fill(&mut self, slice: &mut [u8]) -> Result<(), Error> {
        let mut filled = 0;
        while filled < slice.len() {
            let bytes = self.stream.read(&mut slice[filled..]).await?;
            if bytes == 0 {
                let at = self.stream.position();
                let expected = at + (slice.len() - filled) as u64;
                return Err(Error::Truncated { url: self.url.to_owned(), bytes: at, expected });
            }
            filled += bytes;
        }
        Ok(())
    }
}

/// Appends little-endian values as f32.
pub fn extend_f32(values: &mut Vec<f32>, bytes: &[u8], dtype: WeightType) {
    match dtype {
        WeightType::F16 => {
            values.extend(bytes.as_chunks::<2>().0.iter().map(|&bytes| f16::from_le_bytes(bytes).to_f32()));
        }
        WeightType::F32 => values.extend(bytes.as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes))),
    }
}
