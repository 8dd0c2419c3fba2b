//! SAELens: `cfg.json` and `sae_weights.safetensors` with `W_enc [d_in, d_sae]`, `b_enc`, `W_dec [d_sae, d_in]` and
//! `b_dec`.
//!
//! The reference layout holds the same numbers with the encoder the other way round. Bytes are moved, never converted:
//! every tensor keeps its dtype and its bits. Whether both layouts can say this SAE is checked by the caller, who
//! has a reader of SAEs, and here as far as `cfg.json` shows it.

use super::{
    Report,
    folder::Staging,
    tensors::{Tensor, TensorFile, header},
};
use crate::files::FileError;
use serde_json::{Value, json};
use std::{
    fs::{self, File},
    io::{BufWriter, Write},
    path::Path,
};

const CONFIG: &str = "cfg.json";
const REFERENCE: &str = "sae.safetensors";
const SAE_LENS: &str = "sae_weights.safetensors";

/// Sizes of a TopK SAE whose encoder reads `x − b_dec`, with nothing normalised: what both layouts can say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TopKShape {
    pub latents: usize,
    pub d_in: usize,
    pub k: usize,
}

/// What a finished conversion notes.
const WEIGHTS_ONLY: &str = "SAELens has weights only: no features, explanations or activations";

/// Writes the SAE in `folder` (that of a hook point, in the reference layout) as SAELens has it.
///
/// # Errors
/// When a file is missing or damaged, a tensor is not what `shape` says, or the output cannot be written.
pub fn export(folder: &Path, shape: TopKShape, source: &api::Source, out: &Path) -> Result<Report, FileError> {
    let TopKShape { latents, d_in, k } = shape;
    let staging = Staging::new(out, &[CONFIG, SAE_LENS])?;
    let file = TensorFile::open(&folder.join(REFERENCE))?;
    let encoder = file.floats("encoder.weight", &[latents, d_in])?;
    let others = [
        ("b_enc", file.floats("encoder.bias", &[latents])?),
        ("W_dec", file.floats("W_dec", &[latents, d_in])?),
        ("b_dec", file.floats("b_dec", &[d_in])?),
    ];
    write_tensors(&file, ("W_enc", encoder), &others, &staging.at(SAE_LENS))?;
    let dtype = match encoder.dtype.as_str() {
        "F64" => "float64",
        "F16" => "float16",
        "BF16" => "bfloat16",
        _ => "float32",
    };
    let config = json!({
        "architecture": "topk",
        "d_in": d_in,
        "d_sae": latents,
        "k": k,
        "dtype": dtype,
        "device": "cpu",
        "apply_b_dec_to_input": true,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "rescale_acts_by_decoder_norm": false,
        "metadata": { "model_name": source.model_id, "hook_name": source.hook_point },
    });
    write_json(&staging.at(CONFIG), &config)?;
    staging.finish()?;
    let mut report = Report { tensors: 4, ..Report::default() };
    report.note(WEIGHTS_ONLY);
    report.note(format!("hook_name is the module's name in the checkpoint, {}", source.hook_point));
    Ok(report)
}

/// Writes the SAE in `from` into `sae/{hook point}/` of `out`, in the reference layout. `hook` names the hook point if
/// `cfg.json` does not, or against it.
///
/// # Errors
/// When a file is missing or damaged, a tensor is not what `shape` says, the SAE is scaled in a way that the reference
/// layout cannot say, or nobody names the hook point.
pub fn import(from: &Path, shape: TopKShape, hook: Option<&str>, out: &Path) -> Result<Report, FileError> {
    let TopKShape { latents, d_in, k } = shape;
    let path = from.join(CONFIG);
    let text = fs::read(&path).map_err(|error| FileError::io(&path, error))?;
    let config: Value = serde_json::from_slice(&text).map_err(|error| FileError::corrupt(&path, &error))?;
    check_scales(from, &path, &config)?;
    let hook = match hook {
        Some(hook) => hook.to_owned(),
        None => hook_point(&config).map_err(|reason| FileError::corrupt(&path, &reason))?,
    };
    let place = format!("sae/{hook}");
    let staging = Staging::new(out, &[place.as_str()])?;
    let folder = staging.make(&place)?;
    let file = TensorFile::open(&from.join(SAE_LENS))?;
    let encoder = file.floats("W_enc", &[d_in, latents])?;
    let others = [
        ("encoder.bias", file.floats("b_enc", &[latents])?),
        ("W_dec", file.floats("W_dec", &[latents, d_in])?),
        ("b_dec", file.floats("b_dec", &[d_in])?),
    ];
    write_tensors(&file, ("encoder.weight", encoder), &others, &folder.join(REFERENCE))?;
    let config = json!({
        "expansion_factor": latents / d_in.max(1),
        "normalize_decoder": false,
        "num_latents": latents,
        "k": k,
        "signed": false,
        "d_in": d_in,
    });
    write_json(&folder.join(CONFIG), &config)?;
    staging.finish()?;
    let mut report = Report { tensors: 4, ..Report::default() };
    report.note(format!("the SAE is in {place}; its activations are those of the encoder's k strongest"));
    report.note(WEIGHTS_ONLY);
    Ok(report)
}

/// The encoder transposed, the others as they are.
fn write_tensors(
    file: &TensorFile,
    encoder: (&str, &Tensor),
    others: &[(&str, &Tensor)],
    out: &Path,
) -> Result<(), FileError> {
    let failed = |error| FileError::io(out, error);
    let turned: Vec<usize> = encoder.1.shape.iter().rev().copied().collect();
    let first = (encoder.0, encoder.1.dtype.as_str(), turned.as_slice());
    let rest = others.iter().map(|(name, tensor)| (*name, tensor.dtype.as_str(), tensor.shape.as_slice()));
    let names: Vec<(&str, &str, &[usize])> = std::iter::once(first).chain(rest).collect();
    let mut to = BufWriter::new(File::create(out).map_err(failed)?);
    to.write_all(&header(&names)).map_err(failed)?;
    file.transpose(encoder.1, out, &mut to)?;
    others.iter().try_for_each(|(_, tensor)| file.copy(tensor, out, &mut to))?;
    to.flush().and_then(|()| to.get_ref().sync_all()).map_err(failed)
}

fn write_json(path: &Path, value: &Value) -> Result<(), FileError> {
    fs::write(path, format!("{value:#}\n")).map_err(|error| FileError::io(path, error))
}

/// Factors that SAELens applies when it encodes; the reference layout has none.
fn check_scales(from: &Path, path: &Path, config: &Value) -> Result<(), FileError> {
    let scaled = if config["rescale_acts_by_decoder_norm"] == true {
        Some("rescale_acts_by_decoder_norm")
    } else if from.join("activation_scaler.json").exists() {
        Some("activation_scaler.json, a factor that is not folded in")
    } else {
        None
    };
    match scaled {
        None => Ok(()),
        Some(scaled) => {
            let reason =
                format!("it has {scaled}; the reference layout cannot say that. Fold it in with SAELens first");
            Err(FileError::corrupt(path, &reason))
        }
    }
}

/// `hook_name`, in `metadata` since version 6. A block's output has a name in the checkpoint, and TransformerLens's.
fn hook_point(config: &Value) -> Result<String, String> {
    let name = config["metadata"]["hook_name"].as_str().or(config["hook_name"].as_str());
    let Some(name) = name else {
        return Err("it has no hook_name; name the hook point with --hook layers.24".to_owned());
    };
    let block = |digits: &str| !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_digit());
    let found = match name.strip_prefix("blocks.").and_then(|rest| rest.strip_suffix(".hook_resid_post")) {
        Some(digits) if block(digits) => Some(format!("model.layers.{digits}")),
        _ => {
            let known = ["model.layers.", "vision."].iter().filter_map(|prefix| name.strip_prefix(prefix)).any(block);
            known.then(|| name.to_owned())
        }
    };
    found.ok_or_else(|| {
        format!("hook_name {name} is not the output of a block; name the hook point with --hook layers.24")
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // tests panic on purpose
    use super::*;

    #[test]
    fn hook_points_have_two_names() {
        for (config, hook) in [
            (json!({ "metadata": { "hook_name": "model.layers.24" } }), "model.layers.24"),
            (json!({ "hook_name": "blocks.7.hook_resid_post" }), "model.layers.7"),
            (json!({ "hook_name": "vision.22" }), "vision.22"),
        ] {
            assert_eq!(hook_point(&config).unwrap(), hook);
        }
        for wrong in ["blocks.7.hook_mlp_out", "blocks..hook_resid_post", "model.layers.x", "../../etc", ""] {
            assert!(hook_point(&json!({ "hook_name": wrong })).is_err(), "{wrong}");
        }
        assert!(hook_point(&json!({})).unwrap_err().contains("--hook"));
    }
}
