//! `lmm-scope encode`: hidden states and an SAE → sparse activations. On the CPU, the SAE's weights memory-mapped.

use super::{
    CliError,
    output::{NamedTensor, Output, print, print_json},
    progress::Progress,
    provenance::RunProvenance,
    setup::open_sae,
};
use crate::engine::Device;
use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde::Serialize;
use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};

/// Turn hidden states into the activations of an SAE's features.
#[derive(Debug, Clone, clap::Args)]
pub struct EncodeArgs {
    /// Folder of the SAE: that of the hook point, or one that holds exactly one hook point.
    #[arg(long, env = "LMM_SCOPE_SAE", value_name = "DIR")]
    sae: PathBuf,

    /// Safetensors file with `hidden` [tokens, d_model] in f32, f16 or bf16, as `lmm-scope extract` writes it.
    #[arg(long, env = "LMM_SCOPE_HIDDEN", value_name = "FILE")]
    hidden: PathBuf,

    /// Safetensors file to write: `top_indices` i32 and `top_acts` f32, both [tokens, k], each row by falling
    /// activation.
    #[arg(long, env = "LMM_SCOPE_OUT", value_name = "FILE")]
    out: PathBuf,

    /// Only cpu: the weights are read from disk as they are needed.
    #[arg(long, env = "LMM_SCOPE_DEVICE", default_value_t)]
    device: Device,

    /// Print one JSON object.
    #[arg(long, env = "LMM_SCOPE_JSON")]
    json: bool,
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Report {
    tokens: usize,
    k: usize,
    latents: usize,
    /// Activations above zero, per token.
    mean_active: f32,
    out: PathBuf,
    provenance: RunProvenance,
}

/// # Errors
/// Bad input, in one line.
pub fn run(args: &EncodeArgs) -> Result<(), CliError> {
    let output = Output::check(&args.out)?;
    if args.device != Device::Cpu {
        return Err(CliError::flag("--device", format!("encode runs on the CPU, not on {}", args.device)));
    }
    let (folder, sae) = open_sae(&args.sae, None)?;
    let hidden = read_hidden(&args.hidden, sae.d_in())?;
    let progress = Progress::start("encoding");
    let top = sae.encode(&hidden)?;
    model::Error::check_finite("the activations", &top.acts)?;
    let provenance = RunProvenance::of_sae(&folder)?;
    drop(progress);

    let shape = [top.tokens, top.k];
    let tensors =
        [NamedTensor::ids("top_indices", &shape, &top.indices), NamedTensor::f32("top_acts", &shape, &top.acts)];
    output.write(&tensors, HashMap::from([("provenance".to_owned(), provenance.json()?)]))?;
    let active = top.acts.iter().filter(|act| **act > 0.0).count();
    let report = Report {
        tokens: top.tokens,
        k: top.k,
        latents: sae.latents(),
        mean_active: active as f32 / top.tokens as f32,
        out: args.out.clone(),
        provenance,
    };
    if args.json {
        return print_json(&report);
    }
    let Report { tokens, mean_active, .. } = report;
    print(&format!("{tokens} tokens with {mean_active:.1} active features on average are in {}", args.out.display()))
}

/// The values of `hidden`, row-major.
fn read_hidden(path: &Path, d_in: usize) -> Result<Vec<f32>, CliError> {
    let refuse = |reason: String| CliError::file(path, reason);
    let bytes = fs::read(path).map_err(|error| refuse(error.to_string()))?;
    let file = SafeTensors::deserialize(&bytes).map_err(|error| refuse(format!("not a safetensors file: {error}")))?;
    let hidden = file.tensor("hidden").map_err(|_| {
        let mut names = file.names();
        names.sort_unstable();
        refuse(format!("there is no tensor `hidden`; the file has: {}", names.join(", ")))
    })?;
    let shape = hidden.shape();
    if shape.len() != 2 || shape[0] == 0 || shape[1] != d_in {
        return Err(refuse(format!("`hidden` has shape {shape:?}, but the SAE reads [tokens, {d_in}]")));
    }
    let values = f32_from_view(&hidden)
        .ok_or_else(|| refuse(format!("`hidden` has dtype {}; f32, f16 and bf16 are read", hidden.dtype())))?;
    match values.iter().position(|value| !value.is_finite()) {
        Some(place) => Err(refuse(format!("`hidden` is not finite: token {} holds {}", place / d_in, values[place]))),
        None => Ok(values),
    }
}

/// Values of a float tensor; `None` for other dtypes.
fn f32_from_view(view: &TensorView<'_>) -> Option<Vec<f32>> {
    let bytes = view.data();
    match view.dtype() {
        Dtype::F32 => Some(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()),
        Dtype::F16 => Some(bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect()),
        Dtype::BF16 => Some(bytes.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect()),
        _ => None,
    }
}
