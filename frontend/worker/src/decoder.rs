//! The decoder's rows. They are fetched when they are asked for, kept in this machine's storage like every other file,
//! and stream past: memory holds one batch of them.

use api::{ShardFile, Tier};
use shaders::cpu::sae_encode::unpack;
use shaders::kernels::cosine::Cosine;
use shaders::{Cancel, Decoded, Gpu, TopK, cpu, kernels};

use crate::Error;
use crate::engine::weight_type;
use crate::fetch::Fetch;
use crate::load::{Sink, Taking};
use crate::sae::expect_rows;
use crate::safetensors::Tensor;
use crate::worker::Host;

/// Numbers of rows that are handed on at once: 4 MiB.
const BATCH_NUMBERS: usize = 1 << 20;

/// Where a decoder's rows are.
pub struct Decoder {
    /// Folder of the files, with `/` at its end.
    pub base_url: String,
    pub tier: Tier,
    pub d_model: u32,
    /// In rising order of rows.
    pub files: Vec<ShardFile>,
    /// `[d_model]`
    pub b_dec: Vec<f32>,
}

/// Who reads the rows of which latents.
pub struct Reading<'a, H> {
    pub host: &'a H,
    /// Number of the request.
    pub id: u32,
    pub cancel: &'a Cancel,
    /// Rising; `None`: all.
    pub wanted: Option<&'a [u32]>,
}

impl Decoder {
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }

    /// Streams the wanted rows, by rising latent, past what `begin` makes. A file that arrives damaged may have been used
    /// already: everything is done again, once.
    ///
    /// # Errors
    /// As of the files, of `begin` and of the use; [`Error::Shaders`], cancelled.
    pub async fn read<'u, H: Host>(
        &self,
        reading: &Reading<'_, H>,
        begin: &dyn Fn() -> Result<Use<'u>, shaders::Error>,
    ) -> Result<Use<'u>, Error> {
        let mut begun = begin()?;
        if let Err(error) = self.stream(reading, &mut begun).await {
            if !matches!(error, Error::Damaged { .. }) {
                return Err(error);
            }
            begun = begin()?;
            self.stream(reading, &mut begun).await?;
        }
        Ok(begun)
    }

    async fn stream<H: Host>(&self, reading: &Reading<'_, H>, rows_use: &mut Use<'_>) -> Result<(), Error> {
        let Reading { host, id, cancel, wanted } = *reading;
        let has_wanted = |file: &&ShardFile| {
            let before =
                |end: u32| wanted.map_or(end as usize, |wanted| wanted.partition_point(|latent| *latent < end));
            before(file.first_row) < before(file.first_row + file.rows)
        };
        let files: Vec<&ShardFile> = self.files.iter().filter(has_wanted).collect();
        let fetch = Fetch::new(host, id, &self.base_url, cancel, files.iter().map(|file| file.bytes).sum());
        let keep = fetch.room(&files).await.is_ok();
        let passed = |from_storage: i64, from_network: i64| fetch.passed(from_storage, from_network);
        let way = fetch.way(keep, &passed);
        for file in files {
            way.load(file, &mut RowSink::new(self, file, reading.wanted, cancel, rows_use)).await?;
        }
        fetch.report();
        Ok(())
    }
}

/// What is done with rows as they pass.
pub enum Use<'a> {
    /// They are kept: for few.
    Keep(Vec<f32>),
    Decode(cpu::sae_decode::SaeDecode),
    DecodeOnGpu(&'a Gpu, Box<kernels::sae_decode::SaeDecode>),
    /// A row and its cosines with those that have passed.
    Compare(&'a [f32], Vec<f32>),
    CompareOnGpu(&'a Gpu, Cosine, &'a [f32], Vec<f32>),
}

impl<'a> Use<'a> {
    /// A reconstruction from `top`.
    ///
    /// # Errors
    /// As of the kernel.
    pub fn decode(gpu: Option<&'a Gpu>, top: &TopK, d_model: u32) -> Result<Self, shaders::Error> {
        Ok(match gpu {
            Some(gpu) => Self::DecodeOnGpu(gpu, Box::new(kernels::sae_decode::SaeDecode::start(gpu, top, d_model)?)),
            None => Self::Decode(cpu::sae_decode::SaeDecode::start(top, d_model)?),
        })
    }

    /// Cosines with `row`.
    #[must_use]
    pub fn compare(gpu: Option<&'a Gpu>, row: &'a [f32]) -> Self {
        match gpu {
            Some(gpu) => Self::CompareOnGpu(gpu, Cosine::new(gpu), row, Vec::new()),
            None => Self::Compare(row, Vec::new()),
        }
    }

    async fn take(&mut self, latents: &[u32], rows: &[f32], cancel: &Cancel) -> Result<(), shaders::Error> {
        match self {
            Self::Keep(kept) => kept.extend_from_slice(rows),
            Self::Decode(decode) => decode.add_rows(latents, rows)?,
            Self::DecodeOnGpu(gpu, decode) => decode.add_rows(gpu, latents, rows, cancel).await?,
            Self::Compare(row, cosines) => cosines.extend(cpu::cosine::similarities(row, rows)?),
            Self::CompareOnGpu(gpu, cosine, row, cosines) => {
                cosines.extend(cosine.similarities(gpu, row, rows, cancel).await?);
            }
        }
        Ok(())
    }

    /// What was gathered: rows, or cosines; nothing of a reconstruction.
    #[must_use]
    pub fn gathered(self) -> Vec<f32> {
        match self {
            Self::Keep(rows) => rows,
            Self::Compare(_, cosines) | Self::CompareOnGpu(_, _, _, cosines) => cosines,
            Self::Decode(_) | Self::DecodeOnGpu(..) => Vec::new(),
        }
    }

    /// The reconstruction of `hidden`; nothing of other uses.
    ///
    /// # Errors
    /// As of the kernel.
    pub async fn decoded(self, hidden: &[f32], b_dec: &[f32], cancel: &Cancel) -> Result<Decoded, shaders::Error> {
        match self {
            Self::Decode(decode) => decode.finish(hidden, b_dec),
            Self::DecodeOnGpu(gpu, decode) => decode.finish(gpu, hidden, b_dec, cancel).await,
            _ => Ok(Decoded::default()),
        }
    }
}

/// One file on its way.
struct RowSink<'a, 'u> {
    decoder: &'a Decoder,
    file: &'a ShardFile,
    wanted: Option<&'a [u32]>,
    cancel: &'a Cancel,
    rows_use: &'a mut Use<'u>,
    /// Something has been taken.
    begun: bool,
    /// Scales of all rows.
    scales: Vec<u8>,
    /// The start of a row whose end is in the next piece.
    rest: Vec<u8>,
    /// Latent of the next row.
    next: u32,
    /// One row, filled up with zeros.
    row: Vec<f32>,
    /// The batch: wanted latents, and their rows `[n, d_model]`.
    latents: Vec<u32>,
    rows: Vec<f32>,
}

impl<'a, 'u> RowSink<'a, 'u> {
    fn new(
        decoder: &'a Decoder,
        file: &'a ShardFile,
        wanted: Option<&'a [u32]>,
        cancel: &'a Cancel,
        rows_use: &'a mut Use<'u>,
    ) -> Self {
        let row = vec![0.0; decoder.tier.width(decoder.d_model) as usize];
        let (begun, next) = (false, file.first_row);
        let (scales, rest, latents, rows) = Default::default();
        Self { decoder, file, wanted, cancel, rows_use, begun, scales, rest, next, row, latents, rows }
    }

    async fn put(&mut self, piece: &[u8]) -> Result<(), Error> {
        // A row is in memory.
        let row_bytes = self.decoder.tier.row_bytes(self.decoder.d_model) as usize;
        let mut bytes = std::mem::take(&mut self.rest);
        bytes.extend_from_slice(piece);
        let packed = bytes.chunks_exact(row_bytes);
        self.rest = packed.remainder().to_vec();
        for packed in packed {
            if self.wanted.is_none_or(|wanted| wanted.binary_search(&self.next).is_ok()) {
                self.unpack(packed)?;
            }
            self.next += 1;
            let is_last = self.next == self.file.first_row + self.file.rows;
            if self.rows.len() >= BATCH_NUMBERS || (is_last && !self.latents.is_empty()) {
                self.hand_on().await?;
            }
        }
        Ok(())
    }

    /// One more row for the batch.
    fn unpack(&mut self, packed: &[u8]) -> Result<(), Error> {
        let Decoder { tier, d_model, .. } = *self.decoder;
        let weight_type = weight_type(tier);
        let bytes = weight_type.scale_bytes(d_model) as usize;
        let at = (self.next - self.file.first_row) as usize * bytes;
        let Some(scales) = self.scales.get(at..at + bytes) else {
            return Err(Error::Safetensors(format!("the scales of {} lie behind its weights", self.file.file)));
        };
        unpack(weight_type, packed, scales, &mut self.row);
        if let (Tier::Int8, [scale, ..]) = (tier, scales.as_chunks::<4>().0) {
            let scale = f32::from_le_bytes(*scale);
            self.row.iter_mut().for_each(|weight| *weight *= scale);
        }
        self.rows.extend_from_slice(&self.row[..d_model as usize]);
        self.latents.push(self.next);
        Ok(())
    }

    async fn hand_on(&mut self) -> Result<(), Error> {
        let taken = self.rows_use.take(&self.latents, &self.rows, self.cancel).await;
        self.latents.clear();
        self.rows.clear();
        taken.map_err(|error| match error {
            // No decoder has such rows: these bytes are damaged.
            shaders::Error::NotFinite { .. } => Error::Safetensors(format!("{}: {error}", self.file.file)),
            error => error.into(),
        })
    }
}

impl Sink for RowSink<'_, '_> {
    fn check(&mut self, tensors: &[Tensor]) -> Result<(), Error> {
        self.begun = true;
        expect_rows(tensors, self.decoder.tier, self.file.rows, self.decoder.d_model)
    }

    /// Rows of the damaged file may have been used: whoever reads has to begin again.
    fn begin_again(&mut self) -> bool {
        !self.begun
    }

    fn take<'a>(&'a mut self, tensor: &'a Tensor, _offset: u64, piece: &'a [u8]) -> Taking<'a> {
        Box::pin(async move {
            match tensor.name.as_str() {
                "weight" => self.put(piece).await?,
                "scale" => self.scales.extend_from_slice(piece),
                _ => {}
            }
            Ok(())
        })
    }
}
