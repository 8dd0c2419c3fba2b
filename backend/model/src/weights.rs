//! Checkpoints in and out: Hugging Face safetensors, memory-mapped, tensor by tensor.
//!
//! Each module says once, in its `tensors` function, which checkpoint keys its parameters have; [`Loader`] fills
//! them and [`Saver`] writes them. A linear layer is `[out, in]` in the file and `[in, out]` in burn: a transposed view
//! of the same bytes. One tensor at a time is in host memory, in the format that it is computed in.

use crate::Error;
use crate::dtype::Dtype as Compute;
use burn::module::Param;
use burn::nn::{Embedding, LayerNorm, Linear, conv::Conv2d};
use burn::tensor::{DType, Tensor, TensorData, backend::Backend};
use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Visits every parameter of a model with its checkpoint key.
pub trait TensorIo<B: Backend> {
    /// Reads or writes one parameter under `key`, as it lies in burn.
    fn param<const D: usize>(&mut self, key: &str, param: &mut Param<Tensor<B, D>>) -> Result<(), Error>;
    /// Reads or writes a matrix that is transposed in the file.
    fn transposed(&mut self, key: &str, param: &mut Param<Tensor<B, 2>>) -> Result<(), Error>;

    /// A parameter that is kept in f32 whatever the model computes in.
    fn param_f32<const D: usize>(&mut self, key: &str, param: &mut Param<Tensor<B, D>>) -> Result<(), Error> {
        self.param(key, param)
    }

    fn linear(&mut self, key: &str, layer: &mut Linear<B>) -> Result<(), Error> {
        self.transposed(&format!("{key}.weight"), &mut layer.weight)?;
        layer.bias.iter_mut().try_for_each(|bias| self.param(&format!("{key}.bias"), bias))
    }
    fn layer_norm(&mut self, key: &str, norm: &mut LayerNorm<B>) -> Result<(), Error> {
        self.param_f32(&format!("{key}.weight"), &mut norm.gamma)?;
        norm.beta.iter_mut().try_for_each(|beta| self.param_f32(&format!("{key}.bias"), beta))
    }
    fn conv(&mut self, key: &str, conv: &mut Conv2d<B>) -> Result<(), Error> {
        self.param(&format!("{key}.weight"), &mut conv.weight)?;
        conv.bias.iter_mut().try_for_each(|bias| self.param(&format!("{key}.bias"), bias))
    }
    fn embedding(&mut self, key: &str, embedding: &mut Embedding<B>) -> Result<(), Error> {
        self.param(&format!("{key}.weight"), &mut embedding.weight)
    }
}

/// An open checkpoint: one file, or the shards named by `model.safetensors.index.json`.
pub struct Checkpoint {
    /// Shown in errors: the folder or file that was opened.
    path: PathBuf,
    shards: Vec<(PathBuf, Mmap)>,
    /// Key in our spelling → (shard, key in the file).
    keys: BTreeMap<String, (usize, String)>,
}

/// Brings a checkpoint key into the older spelling, which the code uses.
///
/// Newer `transformers` saves `model.language_model.…`, `model.vision_tower.…`, `lm_head.weight`.
fn canonical_key(key: &str) -> String {
    if let Some(rest) = key.strip_prefix("model.language_model.") {
        return format!("language_model.model.{rest}");
    }
    if key.starts_with("lm_head.") {
        return format!("language_model.{key}");
    }
    for part in ["vision_tower.", "multi_modal_projector.", "image_newline"] {
        if let Some(rest) = key.strip_prefix("model.")
            && rest.starts_with(part)
        {
            return rest.to_string();
        }
    }
    key.to_string()
}

/// `dir/model.safetensors`, or the shards of `dir/model.safetensors.index.json` in the order of their names.
pub fn checkpoint_files(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let index = dir.join("model.safetensors.index.json");
    if !index.exists() {
        return Ok(vec![dir.join("model.safetensors")]);
    }
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let text = std::fs::read_to_string(&index).map_err(|source| Error::io(&index, source))?;
    let parsed: Index = serde_json::from_str(&text).map_err(|error| Error::bad_file(&index, error))?;
    let names: BTreeSet<&String> = parsed.weight_map.values().collect();
    if let Some(name) = names.iter().find(|name| name.contains('/') || name.contains("..")) {
        return Err(Error::bad_file(&index, format!("shard name `{name}` leaves the folder")));
    }
    Ok(names.into_iter().map(|name| dir.join(name)).collect())
}

/// The first tensor of a checkpoint folder that holds NaN or infinity, with its file. Reads everything: only for saying
/// why numbers are not finite.
///
/// # Errors
/// Files that cannot be read.
pub fn first_not_finite(dir: &Path) -> Result<Option<(PathBuf, String)>, Error> {
    let checkpoint = Checkpoint::open(dir)?;
    for (key, (shard, name)) in &checkpoint.keys {
        let finite = checkpoint.with_view(key, |view| Some(is_finite(view)))?;
        checkpoint.release(key);
        if !finite {
            return Ok(Some((checkpoint.shards[*shard].0.clone(), name.clone())));
        }
    }
    Ok(None)
}

/// True if no value has an exponent of ones alone; of other dtypes than floats always.
fn is_finite(view: &TensorView<'_>) -> bool {
    let halves = |exponent: u16| {
        let mut values = view.data().chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]));
        values.all(|value| value & exponent != exponent)
    };
    match view.dtype() {
        Dtype::F32 => {
            let mut values = view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
            values.all(f32::is_finite)
        }
        Dtype::F16 => halves(0x7c00),
        Dtype::BF16 => halves(0x7f80),
        _ => true,
    }
}

impl Checkpoint {
    /// Opens the files of [`checkpoint_files`].
    pub fn open(dir: &Path) -> Result<Self, Error> {
        Self::open_files(dir, &checkpoint_files(dir)?)
    }

    /// Opens the named safetensors files as one checkpoint.
    pub fn open_files(path: &Path, files: &[PathBuf]) -> Result<Self, Error> {
        let mut checkpoint = Self { path: path.to_path_buf(), shards: Vec::new(), keys: BTreeMap::new() };
        for file in files {
            let handle = std::fs::File::open(file).map_err(|source| Error::io(file, source))?;
            // SAFETY: the map is read-only; a file that another process truncates while it is mapped is outside
            // what any reader of memory-mapped weights can guard against.
            let map = unsafe { Mmap::map(&handle) }.map_err(|source| Error::io(file, source))?;
            let tensors = SafeTensors::deserialize(&map).map_err(|error| Error::bad_file(file, error))?;
            let shard = checkpoint.shards.len();
            for name in tensors.names() {
                checkpoint.keys.insert(canonical_key(name), (shard, name.to_string()));
            }
            checkpoint.shards.push((file.clone(), map));
        }
        Ok(checkpoint)
    }

    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.keys.keys().map(String::as_str)
    }

    /// Shape and values (as f32, in file order) of one tensor.
    pub fn read(&self, name: &str) -> Result<(Vec<usize>, Vec<f32>), Error> {
        self.with_view(name, |view| Some((view.shape().to_vec(), f32_from_view(view)?)))
    }

    /// One tensor as it is computed with: a plain copy if the file has that format.
    fn read_as(&self, name: &str, compute: Compute) -> Result<TensorData, Error> {
        self.with_view(name, |view| data_from_view(view, compute))
    }

    /// Tells the system that a tensor's pages are not needed any more: what has been loaded does not add up.
    fn release(&self, name: &str) {
        #[cfg(unix)]
        if let Some((shard, key)) = self.keys.get(name) {
            let (_, map) = &self.shards[*shard];
            let data =
                SafeTensors::deserialize(map).ok().and_then(|file| file.tensor(key).ok().map(|view| view.data()));
            let offset = data.map(|data| data.as_ptr() as usize - map.as_ptr() as usize);
            if let (Some(offset), Some(data)) = (offset, data) {
                // SAFETY: the map is read-only and backed by a file: a page that is dropped is read again.
                // A refusal costs memory, not correctness.
                let _ = unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, offset, data.len()) };
            }
        }
        #[cfg(not(unix))]
        let _ = name;
    }

    fn with_view<T>(&self, name: &str, read: impl FnOnce(&TensorView<'_>) -> Option<T>) -> Result<T, Error> {
        let missing = || Error::MissingTensor { path: self.path.clone(), name: name.to_string() };
        let (shard, key) = self.keys.get(name).ok_or_else(missing)?;
        let (file, map) = &self.shards[*shard];
        let tensors = SafeTensors::deserialize(map).map_err(|error| Error::bad_file(file, error))?;
        let view = tensors.tensor(key).map_err(|error| Error::bad_file(file, error))?;
        read(&view).ok_or_else(|| {
            Error::bad_file(file, format!("tensor `{name}` has dtype {:?}; f32, f16 and bf16 are read", view.dtype()))
        })
    }
}

/// Values of a float tensor as f32; `None` for other dtypes.
fn f32_from_view(view: &TensorView<'_>) -> Option<Vec<f32>> {
    let bytes = view.data();
    match view.dtype() {
        Dtype::F32 => Some(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()),
        Dtype::F16 => Some(bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect()),
        Dtype::BF16 => Some(bytes.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect()),
        _ => None,
    }
}

/// A float tensor in another format; `None` if it holds something else.
fn data_from_view(view: &TensorView<'_>, compute: Compute) -> Option<TensorData> {
    let (shape, bytes) = (view.shape().to_vec(), view.data());
    let as_stored = |dtype| Some(TensorData::from_bytes_vec(bytes.to_vec(), shape.clone(), dtype));
    match (view.dtype(), compute) {
        (Dtype::F16, Compute::F16) => as_stored(DType::F16),
        (Dtype::BF16, Compute::Bf16) => as_stored(DType::BF16),
        (_, Compute::F32) => Some(TensorData::new(f32_from_view(view)?, shape)),
        (_, Compute::F16) => Some(TensorData::new(halves(view, f16::from_f32)?, shape)),
        (_, Compute::Bf16) => Some(TensorData::new(halves(view, bf16::from_f32)?, shape)),
    }
}

/// Values in a half format, without a copy of the tensor in f32 between.
fn halves<H>(view: &TensorView<'_>, half: fn(f32) -> H) -> Option<Vec<H>> {
    let pairs = || view.data().chunks_exact(2).map(|b| [b[0], b[1]]);
    match view.dtype() {
        Dtype::F32 => {
            let words = view.data().chunks_exact(4);
            Some(words.map(|b| half(f32::from_le_bytes([b[0], b[1], b[2], b[3]]))).collect())
        }
        Dtype::F16 => Some(pairs().map(|b| half(f16::from_le_bytes(b).to_f32())).collect()),
        Dtype::BF16 => Some(pairs().map(|b| half(bf16::from_le_bytes(b).to_f32())).collect()),
        _ => None,
    }
}

/// Fills parameters from a checkpoint and remembers which keys it used.
pub struct Loader<'a> {
    checkpoint: &'a Checkpoint,
    compute: Compute,
    used: BTreeSet<String>,
}

impl<'a> Loader<'a> {
    pub fn new(checkpoint: &'a Checkpoint, compute: Compute) -> Self {
        Self { checkpoint, compute, used: BTreeSet::new() }
    }

    /// Fails if the checkpoint holds tensors that nothing asked for (rotary caches of old saves excepted).
    pub fn finish(self) -> Result<(), Error> {
        let known = |key: &str| {
            self.used.contains(key) || key.ends_with("rotary_emb.inv_freq") || key.ends_with("position_ids")
        };
        let extra: Vec<&str> = self.checkpoint.keys().filter(|key| !known(key)).collect();
        if extra.is_empty() {
            return Ok(());
        }
        let shown = extra.iter().take(5).copied().collect::<Vec<_>>().join(", ");
        let names = if extra.len() > 5 { format!("{shown} and {} more", extra.len() - 5) } else { shown };
        Err(Error::ExtraTensors { path: self.checkpoint.path.clone(), names })
    }

    /// One number: a tensor without dimensions, which burn has not.
    pub fn scalar(&mut self, key: &str) -> Result<f32, Error> {
        let (shape, values) = self.checkpoint.read(key)?;
        self.used.insert(key.to_string());
        match values.as_slice() {
            [value] => Ok(*value),
            _ => Err(Error::TensorShape {
                path: self.checkpoint.path.clone(),
                name: key.to_string(),
                expected: Vec::new(),
                found: shape,
            }),
        }
    }

    fn read<B: Backend, const D: usize>(
        &mut self,
        key: &str,
        expected: [usize; D],
        compute: Compute,
        device: &B::Device,
    ) -> Result<Tensor<B, D>, Error> {
        let data = self.checkpoint.read_as(key, compute)?;
        self.checkpoint.release(key);
        self.used.insert(key.to_string());
        if data.shape.as_slice() != expected {
            return Err(Error::TensorShape {
                path: self.checkpoint.path.clone(),
                name: key.to_string(),
                expected: expected.to_vec(),
                found: data.shape.to_vec(),
            });
        }
        Ok(Tensor::from_data(data, (device, DType::from(compute))))
    }
}

impl<B: Backend> TensorIo<B> for Loader<'_> {
    fn param<const D: usize>(&mut self, key: &str, param: &mut Param<Tensor<B, D>>) -> Result<(), Error> {
        let tensor = self.read::<B, D>(key, param.lazy_shape().dims(), self.compute, &param.lazy_device())?;
        *param = Param::initialized(param.id, tensor.require_grad());
        Ok(())
    }

    fn param_f32<const D: usize>(&mut self, key: &str, param: &mut Param<Tensor<B, D>>) -> Result<(), Error> {
        let tensor = self.read::<B, D>(key, param.lazy_shape().dims(), Compute::F32, &param.lazy_device())?;
        *param = Param::initialized(param.id, tensor.require_grad());
        Ok(())
    }

    fn transposed(&mut self, key: &str, param: &mut Param<Tensor<B, 2>>) -> Result<(), Error> {
        let [d_in, d_out] = param.lazy_shape().dims();
        let tensor = self.read::<B, 2>(key, [d_out, d_in], self.compute, &param.lazy_device())?;
        *param = Param::initialized(param.id, tensor.transpose().require_grad());
        Ok(())
    }
}

/// Collects parameters as f16 and writes them as one safetensors file.
#[derive(Default)]
pub struct Saver {
    tensors: BTreeMap<String, (Vec<usize>, Vec<u8>)>,
}

impl Saver {
    pub fn insert(&mut self, key: &str, shape: &[usize], values: &[f32]) {
        let bytes = values.iter().flat_map(|&value| f16::from_f32(value).to_le_bytes()).collect();
        self.tensors.insert(key.to_string(), (shape.to_vec(), bytes));
    }

    /// Writes under a temporary name and renames: a reader never sees half a file.
    pub fn write(&self, path: &Path) -> Result<(), Error> {
        let views: Result<Vec<(&String, TensorView<'_>)>, _> = self
            .tensors
            .iter()
            .map(|(key, (shape, bytes))| TensorView::new(Dtype::F16, shape.clone(), bytes).map(|view| (key, view)))
            .collect();
        let views = views.map_err(|error| Error::bad_file(path, error))?;
        let metadata = std::collections::HashMap::from([("format".to_string(), "pt".to_string())]);
        let bytes = safetensors::serialize(views, Some(metadata)).map_err(|error| Error::bad_file(path, error))?;
        write_atomic(path, &bytes)
    }
}

/// Writes `bytes` to a temporary file beside `path`, syncs it and renames it.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    use std::io::Write;
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(|source| Error::io(parent, source))?;
    }
    let temporary = path.with_extension("tmp");
    let write = || {
        let mut file = std::fs::File::create(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)
    };
    write().map_err(|source| Error::io(path, source))
}

/// Values of a tensor as f32, row-major.
pub fn f32_from_tensor<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Vec<f32> {
    tensor.into_data().convert::<f32>().to_vec().unwrap_or_default()
}

impl<B: Backend> TensorIo<B> for Saver {
    fn param<const D: usize>(&mut self, key: &str, param: &mut Param<Tensor<B, D>>) -> Result<(), Error> {
        let shape = param.val().dims();
        self.insert(key, &shape, &f32_from_tensor(param.val()));
        Ok(())
    }

    fn transposed(&mut self, key: &str, param: &mut Param<Tensor<B, 2>>) -> Result<(), Error> {
        let [d_in, d_out] = param.val().dims();
        self.insert(key, &[d_out, d_in], &f32_from_tensor(param.val().transpose()));
        Ok(())
    }
}
