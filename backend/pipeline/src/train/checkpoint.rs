//! A run's state on disk, and the finished SAE. Files appear whole or not at all.

use super::adam::Adam;
use super::data::map_file;
use super::weights::Weights;
use super::{Settings, TrainError};
use model::SaeConfig;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::Path;

/// What a run needs to go on: everything else follows from its settings.
#[derive(Debug, Clone, PartialEq)]
pub struct State {
    /// Steps done. Batches and learning rates follow from it.
    pub step: u64,
    pub weights: Weights,
    pub adam: Adam,
    /// Tokens since each latent fired.
    pub silent: Vec<u64>,
    /// Where the next batch begins, as the source of the tokens says it ([`super::Batch::next`]).
    pub place: String,
}

/// Keys of a checkpoint's metadata.
const STEP: &str = "step";
const PLACE: &str = "place";
const SETTINGS: &str = "settings";

impl State {
    /// Writes the checkpoint.
    ///
    /// # Errors
    /// When the disk does not take it. The old one is then still there.
    pub fn save(&self, path: &Path, settings: &Settings) -> Result<(), TrainError> {
        let settings = settings.json().map_err(|error| TrainError::file(path, error))?;
        let mut metadata = HashMap::from([(STEP.to_owned(), self.step.to_string()), (SETTINGS.to_owned(), settings)]);
        if !self.place.is_empty() {
            metadata.insert(PLACE.to_owned(), self.place.clone());
        }
        let mut tensors = named(&self.weights, "");
        tensors.extend(named(&self.adam.mean, "adam.mean."));
        tensors.extend(named(&self.adam.square, "adam.square."));
        let silent: &[u8] = bytemuck::cast_slice(&self.silent);
        tensors.push(("silent".to_owned(), Dtype::U64, vec![self.silent.len()], silent));
        write_tensors(path, tensors, metadata)
    }

    /// Reads the checkpoint of the same settings; `None` if there is none.
    ///
    /// # Errors
    /// Another run's checkpoint, with what differs; a damaged one.
    pub fn load(path: &Path, settings: &Settings, d_model: usize) -> Result<Option<Self>, TrainError> {
        if !path.exists() {
            return Ok(None);
        }
        let damaged =
            |reason: String| TrainError::file(path, format!("is no checkpoint: {reason}; remove it to begin anew"));
        let map = map_file(path)?;
        let (_, header) = SafeTensors::read_metadata(&map).map_err(|error| damaged(error.to_string()))?;
        let file = SafeTensors::deserialize(&map).map_err(|error| damaged(error.to_string()))?;
        let find = |key: &str| header.metadata().as_ref().and_then(|entries| entries.get(key));
        let entry = |key: &str| find(key).ok_or_else(|| damaged(format!("its metadata lack `{key}`")));
        let difference = settings.difference(entry(SETTINGS)?).map_err(|error| damaged(error.to_string()))?;
        if let Some(difference) = difference {
            let reason = format!("belongs to another run: {difference}; give its settings, or another --out");
            return Err(TrainError::file(path, reason));
        }
        let step = entry(STEP)?.parse::<u64>().ok().filter(|step| *step <= settings.steps());
        let step = step.ok_or_else(|| damaged("its step is none of this run".to_owned()))?;
        let read = |name: &str, shape: &[usize], dtype: Dtype| -> Result<Vec<u8>, TrainError> {
            let view = file.tensor(name).map_err(|_| damaged(format!("tensor `{name}` is missing")))?;
            if view.shape() != shape || view.dtype() != dtype {
                return Err(damaged(format!("tensor `{name}` is {} {:?}", view.dtype(), view.shape())));
            }
            Ok(view.data().to_vec())
        };
        let floats = |name: &str, shape: &[usize]| -> Result<Vec<f32>, TrainError> {
            let bytes = read(name, shape, Dtype::F32)?;
            Ok(bytes.chunks_exact(4).map(|word| f32::from_le_bytes([word[0], word[1], word[2], word[3]])).collect())
        };
        let latents = settings.latents;
        let weights = |prefix: &str| -> Result<Weights, TrainError> {
            Ok(Weights {
                d_model,
                encoder: floats(&format!("{prefix}encoder.weight"), &[latents, d_model])?,
                encoder_bias: floats(&format!("{prefix}encoder.bias"), &[latents])?,
                w_dec: floats(&format!("{prefix}W_dec"), &[latents, d_model])?,
                b_dec: floats(&format!("{prefix}b_dec"), &[d_model])?,
            })
        };
        let silent = read("silent", &[latents], Dtype::U64)?;
        let silent =
            silent.chunks_exact(8).map(|b| u64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]));
        let adam = Adam { mean: weights("adam.mean.")?, square: weights("adam.square.")? };
        let place = find(PLACE).cloned().unwrap_or_default();
        Ok(Some(Self { step, weights: weights("")?, adam, silent: silent.collect(), place }))
    }
}

/// Writes the SAE in the reference layout, in f32: the weights first, so that a folder with `cfg.json` is complete.
///
/// # Errors
/// When the disk does not take it.
pub fn write_sae(folder: &Path, weights: &Weights, settings: &Settings) -> Result<(), TrainError> {
    let path = folder.join(super::SAE);
    let settings_json = settings.json().map_err(|error| TrainError::file(&path, error))?;
    // One entry only: headers order more as they like, and the same weights must be the same file.
    let metadata = HashMap::from([("training".to_owned(), settings_json)]);
    write_tensors(&path, named(weights, ""), metadata)?;
    let (latents, d_in) = (weights.latents(), weights.d_model);
    let config = SaeConfig {
        // As in the field: 0 where the latents are no multiple of the width.
        expansion_factor: if latents.is_multiple_of(d_in) { latents / d_in } else { 0 },
        normalize_decoder: true,
        num_latents: latents,
        k: settings.k,
        signed: false,
        d_in,
    };
    let path = folder.join(super::CONFIG);
    let json = serde_json::to_vec_pretty(&config).map_err(|error| TrainError::file(&path, error))?;
    Ok(model::weights::write_atomic(&path, &json)?)
}

type Named<'a> = (String, Dtype, Vec<usize>, &'a [u8]);

/// Names of the reference layout, after a prefix.
fn named<'a>(weights: &'a Weights, prefix: &str) -> Vec<Named<'a>> {
    let (latents, d) = (weights.latents(), weights.d_model);
    let of = |name: &str, shape: Vec<usize>, values: &'a [f32]| {
        (format!("{prefix}{name}"), Dtype::F32, shape, bytemuck::cast_slice::<f32, u8>(values))
    };
    vec![
        of("encoder.weight", vec![latents, d], &weights.encoder),
        of("encoder.bias", vec![latents], &weights.encoder_bias),
        of("W_dec", vec![latents, d], &weights.w_dec),
        of("b_dec", vec![d], &weights.b_dec),
    ]
}

/// Streams a safetensors file to a temporary name, syncs it, gives it its own name, and syncs the folder.
fn write_tensors(path: &Path, tensors: Vec<Named<'_>>, metadata: HashMap<String, String>) -> Result<(), TrainError> {
    let views: Result<Vec<(String, TensorView<'_>)>, _> = tensors
        .into_iter()
        .map(|(name, dtype, shape, bytes)| TensorView::new(dtype, shape, bytes).map(|view| (name, view)))
        .collect();
    let views = views.map_err(|error| TrainError::file(path, error))?;
    let temporary = path.with_extension("tmp");
    let written = safetensors::serialize_to_file(views, Some(metadata), &temporary)
        .map_err(|error| TrainError::file(path, format!("cannot be written: {error}")))
        .and_then(|()| take_name(&temporary, path).map_err(|source| TrainError::io(path, source)));
    if written.is_err() {
        // Best effort: the error that matters is the one above.
        fs::remove_file(&temporary).ok();
    }
    written
}

fn take_name(temporary: &Path, path: &Path) -> io::Result<()> {
    OpenOptions::new().write(true).open(temporary)?.sync_all()?;
    fs::rename(temporary, path)?;
    // The new name is safe only when the folder is; a system that cannot sync folders has to do without.
    if let Some(folder) = path.parent().and_then(|folder| File::open(folder).ok()) {
        folder.sync_all().ok();
    }
    Ok(())
}
