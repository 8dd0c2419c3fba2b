//! SAE folders, memory-mapped and without a tensor library.
//!
//! - Reference layout and sparsify: `sae.safetensors` with `encoder.weight [latents, d_in]`, `encoder.bias [latents]`,
//!   `W_dec [latents, d_in]`, `b_dec [d_in]`.
//! - SAELens: `sae_weights.safetensors` with `W_enc [d_in, latents]`, `b_enc [latents]`, `W_dec`, `b_dec` and, of a
//!   JumpReLU, `threshold [latents]`.

use super::layout::{Layout, hook_point_dir};
use super::{Activation, Normalisation, SaeConfig};
use crate::Error;
use half::f16;
use half::slice::HalfFloatSliceExt;
use memmap2::Mmap;
use rayon::prelude::*;
use safetensors::{Dtype, SafeTensors};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// An SAE that stays in its file. Cheap to open: the two matrices are read when they are used.
///
/// Latents are encoded as `activation((norm(x) · scale − b_dec) W_enc + b_enc)`, where most files have no `norm` and
/// no `scale`, and some SAELens files do not subtract `b_dec`.
#[derive(Debug)]
pub struct SaeFile {
    path: PathBuf,
    map: Mmap,
    pub(super) config: SaeConfig,
    pub(super) activation: Activation,
    pub(super) normalisation: Normalisation,
    /// Every hidden state is multiplied by it, every reconstruction divided.
    pub(super) scale: f32,
    pub(super) subtract_b_dec: bool,
    pub(super) encoder: Stored,
    /// The encoder is `[latents, d_in]`, else `[d_in, latents]`.
    pub(super) by_latent: bool,
    /// `[latents, d_in]`
    pub(super) w_dec: Stored,
    /// `[latents]`
    pub(super) encoder_bias: Vec<f32>,
    /// `[d_in]`
    pub(super) b_dec: Vec<f32>,
    /// `[latents]` of a JumpReLU, else empty.
    pub(super) threshold: Vec<f32>,
    /// `[latents]`: pre-activations are multiplied by it, decoder rows divided; empty if they are taken as they are.
    pub(super) gains: Vec<f32>,
}

/// Where a tensor lies in the file.
#[derive(Debug, Clone)]
pub(super) struct Stored {
    pub name: String,
    dtype: Dtype,
    bytes: Range<usize>,
}

/// Weights of some latents: latent `j`, dimension `i` is at `j · latent_stride + i · input_stride`.
pub(super) struct Tile<'a> {
    pub weights: &'a [f32],
    pub latent_stride: usize,
    pub input_stride: usize,
}

impl SaeFile {
    /// Opens the folder of a hook point, or a folder that holds exactly one.
    ///
    /// # Errors
    /// A file that is missing or not what it should be, with its path and the reason: sizes that differ from
    /// `cfg.json`, k outside 1 to latents, NaN or infinity in a vector, an architecture that is not read.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        let dir = hook_point_dir(dir)?;
        let layout = Layout::read(&dir)?;
        let path = layout.weights;
        let handle = std::fs::File::open(&path).map_err(|source| Error::io(&path, source))?;
        // SAFETY: the map is read-only; a file that another process truncates while it is mapped is outside what any
        // reader of memory-mapped weights can guard against.
        let map = unsafe { Mmap::map(&handle) }.map_err(|source| Error::io(&path, source))?;
        let tensors = Tensors {
            file: SafeTensors::deserialize(&map).map_err(|error| Error::bad_file(&path, error))?,
            start: map.as_ptr() as usize,
            path: &path,
        };
        let (latents, d) = (layout.config.num_latents, layout.config.d_in);
        let encoder_shape = if layout.by_latent { [latents, d] } else { [d, latents] };
        let encoder = tensors.stored(layout.encoder, &encoder_shape)?;
        let w_dec = tensors.stored("W_dec", &[latents, d])?;
        let encoder_bias = tensors.finite(layout.encoder_bias, latents)?;
        let b_dec = tensors.finite("b_dec", d)?;
        tensors.check_finetuning_scale()?;
        let threshold =
            if layout.activation == Activation::JumpRelu { tensors.threshold(latents)? } else { Vec::new() };
        let mut file = Self {
            encoder,
            w_dec,
            encoder_bias,
            b_dec,
            threshold,
            config: layout.config,
            activation: layout.activation,
            normalisation: layout.normalisation,
            scale: layout.scale,
            subtract_b_dec: layout.subtract_b_dec,
            by_latent: layout.by_latent,
            gains: Vec::new(),
            path,
            map,
        };
        if layout.rescale_by_decoder_norm {
            file.gains = file.decoder_norms()?;
            // A threshold that was learned on rescaled pre-activations: they shrink with the decoder.
            file.threshold.iter_mut().for_each(|threshold| *threshold /= file.scale);
        }
        Ok(file)
    }

    /// The sizes; see [`SaeConfig`].
    pub fn config(&self) -> &SaeConfig {
        &self.config
    }

    pub fn latents(&self) -> usize {
        self.config.num_latents
    }

    /// Width of the hidden states that are encoded.
    pub fn d_in(&self) -> usize {
        self.config.d_in
    }

    /// Latents kept per token; 0 if the activation is not TopK.
    pub fn k(&self) -> usize {
        self.config.k
    }

    pub fn activation(&self) -> Activation {
        self.activation
    }

    pub fn normalisation(&self) -> Normalisation {
        self.normalisation
    }

    /// False in some SAELens files: the encoder reads the hidden state as it is.
    pub fn subtracts_b_dec(&self) -> bool {
        self.subtract_b_dec
    }

    /// The file with the weights.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Encoder weights of some latents (all below [`Self::latents`]) as `[latents, d_in]` in `rows`, whose old content
    /// goes. The file's factors are folded in, as in [`Sae`](super::Sae): with [`Self::biases`] these are the rows of
    /// `(x − b_dec) W_encᵀ + b_enc`. The file's pages are given back, so that reading row after row takes no memory.
    pub fn encoder_rows(&self, latents: Range<usize>, rows: &mut Vec<f32>) {
        let d = self.config.d_in;
        if self.by_latent {
            self.read_rows(&self.encoder, latents.clone(), rows);
        } else {
            let mut columns = Vec::new();
            let Tile { weights, latent_stride, input_stride } = self.encoder_tile(latents.clone(), &mut columns);
            rows.clear();
            for latent in 0..latents.len() {
                rows.extend((0..d).map(|i| weights[latent * latent_stride + i * input_stride]));
            }
        }
        for (latent, row) in latents.zip(rows.chunks_exact_mut(d)) {
            let factor = self.gains.get(latent).copied().unwrap_or(1.0) * self.scale;
            if factor != 1.0 {
                row.iter_mut().for_each(|value| *value *= factor);
            }
        }
    }

    /// The same of the decoder: with [`Self::biases`] a reconstruction is `z · rows + b_dec`.
    pub fn decoder_rows(&self, latents: Range<usize>, rows: &mut Vec<f32>) {
        self.read_rows(&self.w_dec, latents.clone(), rows);
        self.fold_decoder(latents.start, rows);
    }

    /// `b_enc [latents]` and `b_dec [d_in]` with the file's factors folded in.
    pub fn biases(&self) -> (Vec<f32>, Vec<f32>) {
        let mut encoder = self.encoder_bias.clone();
        encoder.iter_mut().zip(&self.gains).for_each(|(bias, gain)| *bias *= gain);
        (encoder, self.b_dec.iter().map(|value| value / self.scale).collect())
    }

    /// Fills `rows` from a tensor that is `[latents, d_in]` in the file.
    fn read_rows(&self, tensor: &Stored, latents: Range<usize>, rows: &mut Vec<f32>) {
        let row_bytes = self.config.d_in * size_of_dtype(tensor.dtype);
        let start = tensor.bytes.start;
        let bytes = start + latents.start * row_bytes..start + latents.end * row_bytes;
        rows.resize(latents.len() * self.config.d_in, 0.0);
        widen(&self.map[bytes.clone()], tensor.dtype, rows);
        self.release(bytes);
    }

    /// An error about the file with the weights.
    pub(super) fn bad(&self, reason: impl std::fmt::Display) -> Error {
        Error::bad_file(&self.path, reason)
    }

    fn bytes(&self, tensor: &Stored) -> &[u8] {
        &self.map[tensor.bytes.clone()]
    }

    /// All values of a tensor as f32: the one copy that is made of it. Its pages are given back.
    pub(super) fn values(&self, tensor: &Stored) -> Result<Vec<f32>, Error> {
        const PIECE: usize = 1 << 16;
        let size = size_of_dtype(tensor.dtype);
        let bytes = self.bytes(tensor);
        let mut values = vec![0.0; bytes.len() / size];
        let finite = values.par_chunks_mut(PIECE).zip(bytes.par_chunks(PIECE * size)).map(|(values, bytes)| {
            widen(bytes, tensor.dtype, values);
            all_finite(values)
        });
        let finite = finite.reduce(|| true, |a, b| a & b);
        self.release(tensor.bytes.clone());
        if finite { Ok(values) } else { Err(not_finite(&self.path, &tensor.name)) }
    }

    /// Encoder weights of some latents, where they lie if they are f32 latent by latent, else as a copy in `buffer`.
    pub(super) fn encoder_tile<'a>(&'a self, latents: Range<usize>, buffer: &'a mut Vec<f32>) -> Tile<'a> {
        let d = self.config.d_in;
        let (dtype, bytes) = (self.encoder.dtype, self.bytes(&self.encoder));
        let size = size_of_dtype(dtype);
        if self.by_latent {
            let bytes = &bytes[latents.start * d * size..latents.end * d * size];
            if dtype == Dtype::F32
                && let Some(weights) = cast(bytes)
            {
                return Tile { weights, latent_stride: d, input_stride: 1 };
            }
            buffer.resize(latents.len() * d, 0.0);
            widen(bytes, dtype, buffer);
            return Tile { weights: buffer, latent_stride: d, input_stride: 1 };
        }
        let count = latents.len();
        buffer.resize(count * d, 0.0);
        for (i, out) in buffer.chunks_exact_mut(count).enumerate() {
            let start = (i * self.config.num_latents + latents.start) * size;
            widen(&bytes[start..start + count * size], dtype, out);
        }
        Tile { weights: buffer, latent_stride: 1, input_stride: count }
    }

    /// Folds `scale` and gains into the encoder's values, in the file's order.
    pub(super) fn fold_encoder(&self, values: &mut [f32]) {
        if self.scale == 1.0 && self.gains.is_empty() {
            return;
        }
        let factors: Vec<f32> = match self.gains.as_slice() {
            [] => vec![self.scale; self.latents()],
            gains => gains.iter().map(|gain| gain * self.scale).collect(),
        };
        if self.by_latent {
            let rows = values.chunks_exact_mut(self.d_in()).zip(&factors);
            rows.for_each(|(row, factor)| row.iter_mut().for_each(|value| *value *= factor));
        } else {
            let rows = values.chunks_exact_mut(self.latents());
            rows.for_each(|row| row.iter_mut().zip(&factors).for_each(|(value, factor)| *value *= factor));
        }
    }

    /// The counterpart of [`Self::fold_encoder`], of the rows from `first` on. A row of norm 0 stays: its latent is
    /// never active.
    pub(super) fn fold_decoder(&self, first: usize, values: &mut [f32]) {
        if self.scale == 1.0 && self.gains.is_empty() {
            return;
        }
        for (latent, row) in (first..).zip(values.chunks_exact_mut(self.d_in())) {
            let gain = self.gains.get(latent).copied().filter(|gain| *gain > 0.0).unwrap_or(1.0);
            let divisor = gain * self.scale;
            row.iter_mut().for_each(|value| *value /= divisor);
        }
    }

    /// Norms of the decoder's rows as they are after division by `scale`.
    fn decoder_norms(&self) -> Result<Vec<f32>, Error> {
        let d = self.config.d_in;
        let row_bytes = d * size_of_dtype(self.w_dec.dtype);
        let rows = self.bytes(&self.w_dec).par_chunks_exact(row_bytes);
        let norm = |row: &mut Vec<f32>, bytes: &[u8]| {
            widen(bytes, self.w_dec.dtype, row);
            let squares: f64 = row.iter().map(|&value| f64::from(value) * f64::from(value)).sum();
            (squares.sqrt() / f64::from(self.scale)) as f32
        };
        let norms: Vec<f32> = rows.map_init(|| vec![0.0; d], norm).collect();
        self.release(self.w_dec.bytes.clone());
        if all_finite(&norms) { Ok(norms) } else { Err(not_finite(&self.path, "W_dec")) }
    }

    /// Tells the system that pages of the map are not needed any more: what has been loaded does not add up.
    fn release(&self, bytes: Range<usize>) {
        #[cfg(unix)]
        {
            let (offset, length) = (bytes.start, bytes.len());
            // SAFETY: the map is read-only and backed by a file: a page that is dropped is read again.
            // A refusal costs memory, not correctness.
            let _ = unsafe { self.map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, offset, length) };
        }
        #[cfg(not(unix))]
        let _ = bytes;
    }
}

/// The tensors of one open file.
struct Tensors<'a> {
    file: SafeTensors<'a>,
    /// Address of the map.
    start: usize,
    path: &'a Path,
}

impl Tensors<'_> {
    fn has(&self, name: &str) -> bool {
        self.file.tensor(name).is_ok()
    }

    /// A float tensor of the given shape; one value may be `[]` or `[1]`.
    fn stored(&self, name: &str, expected: &[usize]) -> Result<Stored, Error> {
        let missing = |_| Error::MissingTensor { path: self.path.to_path_buf(), name: name.into() };
        let view = self.file.tensor(name).map_err(missing)?;
        let same = view.shape() == expected || (expected == [1] && view.shape().is_empty());
        if !same {
            let (expected, found) = (expected.to_vec(), view.shape().to_vec());
            return Err(Error::TensorShape { path: self.path.to_path_buf(), name: name.into(), expected, found });
        }
        let dtype = view.dtype();
        if !matches!(dtype, Dtype::F16 | Dtype::BF16 | Dtype::F32 | Dtype::F64) {
            let reason = format!("tensor `{name}` has dtype {dtype:?}; f16, bf16, f32 and f64 are read");
            return Err(Error::bad_file(self.path, reason));
        }
        let first = view.data().as_ptr() as usize - self.start;
        Ok(Stored { name: name.into(), dtype, bytes: first..first + view.data().len() })
    }

    fn vector(&self, name: &str, length: usize) -> Result<Vec<f32>, Error> {
        let stored = self.stored(name, &[length])?;
        let mut values = vec![0.0; length];
        let view = self.file.tensor(name).map_err(|error| Error::bad_file(self.path, error))?;
        widen(view.data(), stored.dtype, &mut values);
        Ok(values)
    }

    fn finite(&self, name: &str, length: usize) -> Result<Vec<f32>, Error> {
        let values = self.vector(name, length)?;
        if all_finite(&values) { Ok(values) } else { Err(not_finite(self.path, name)) }
    }

    /// One threshold per latent. BatchTopK as it is trained has one for all, `topk_threshold`. Infinite: never active.
    fn threshold(&self, latents: usize) -> Result<Vec<f32>, Error> {
        let (name, values) = if !self.has("threshold") && self.has("topk_threshold") {
            ("topk_threshold", vec![self.vector("topk_threshold", 1)?[0]; latents])
        } else {
            ("threshold", self.vector("threshold", latents)?)
        };
        if values.iter().any(|value| value.is_nan()) {
            return Err(not_finite(self.path, name));
        }
        Ok(values)
    }

    /// SAELens once had a factor per latent that was tuned after training. Saves of that time hold ones.
    fn check_finetuning_scale(&self) -> Result<(), Error> {
        for name in ["scaling_factor", "finetuning_scaling_factor"] {
            if let Ok(view) = self.file.tensor(name) {
                let values = self.vector(name, view.shape().iter().product())?;
                if values.iter().any(|value| (value - 1.0).abs() > 1e-5) {
                    let reason =
                        format!("`{name}` is not 1: finetuned scaling factors are not read; fold them in W_dec");
                    return Err(Error::bad_file(self.path, reason));
                }
            }
        }
        Ok(())
    }
}

fn not_finite(path: &Path, name: &str) -> Error {
    Error::bad_file(path, format!("tensor `{name}` holds NaN or infinite values"))
}

/// True if no value is NaN or infinite. No early exit, so that it runs at the speed of memory.
fn all_finite(values: &[f32]) -> bool {
    values.iter().fold(true, |finite, value| finite & value.is_finite())
}

fn size_of_dtype(dtype: Dtype) -> usize {
    match dtype {
        Dtype::F64 => 8,
        Dtype::F32 => 4,
        _ => 2,
    }
}

/// Bytes of a little-endian file as numbers, if they can be used where they lie.
fn cast<T: bytemuck::AnyBitPattern>(bytes: &[u8]) -> Option<&[T]> {
    if cfg!(target_endian = "little") { bytemuck::try_cast_slice(bytes).ok() } else { None }
}

/// Reads as many values as `out` has.
fn widen(bytes: &[u8], dtype: Dtype, out: &mut [f32]) {
    match dtype {
        Dtype::F64 => widen_each(bytes, out, |value| f64::from_le_bytes(value) as f32),
        Dtype::F32 => widen_each(bytes, out, f32::from_le_bytes),
        Dtype::BF16 => widen_each(bytes, out, |value| f32::from_bits(u32::from(u16::from_le_bytes(value)) << 16)),
        // With the processor's instruction where it has one.
        _ => match cast::<f16>(bytes) {
            Some(halves) => halves.convert_to_f32_slice(out),
            None => widen_each(bytes, out, |value| f16::from_le_bytes(value).to_f32()),
        },
    }
}

fn widen_each<const N: usize>(bytes: &[u8], out: &mut [f32], read: impl Fn([u8; N]) -> f32) {
    let (values, _) = bytes.as_chunks::<N>();
    for (out, value) in out.iter_mut().zip(values) {
        *out = read(*value);
    }
}
