//! `lmm-scope encode`: hidden states and an SAE → sparse activations. On the CPU from the SAE's memory map.

use super::{
    CliError,
    device::{OnBackend, check_device, run_on},
    output::{NamedTensor, Output, print, print_json},
    progress::Progress,
    provenance::RunProvenance,
    setup::open_sae,
};
use crate::{engine::Device, hidden::hidden_from_safetensors};
use burn::tensor::{Tensor, TensorData, backend::Backend};
use clap::builder::BoolishValueParser;
use model::{Sae, SaeFile, TopK};
use serde::Serialize;
use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};

/// Turn hidden states into the activations of an SAE's features.
#[derive(Debug, Clone, clap::Args)]
pub struct EncodeArgs {
    /// Folder of the SAE: that of the hook point, or one that holds it; or the id of a repository on the Hugging Face Hub
    /// (owner/name), of which the main branch is taken.
    #[arg(long, env = "LMM_SCOPE_SAE", value_name = "DIR|HF_ID")]
    sae: PathBuf,

    /// Safetensors file with `hidden` [tokens, d_model] in f32, f16 or bf16, as `lmm-scope extract` writes it.
    #[arg(long, env = "LMM_SCOPE_HIDDEN", value_name = "FILE")]
    hidden: PathBuf,

    /// Safetensors file to write: `top_indices` i32 and `top_acts` f32, both [tokens, k], each row by falling
    /// activation.
    #[arg(long, env = "LMM_SCOPE_OUT", value_name = "FILE")]
    out: PathBuf,

    /// Device that computes: cpu, where the weights are read from disk as they are needed, cuda (the first card) or cuda:1.
    #[arg(long, env = "LMM_SCOPE_DEVICE", default_value_t)]
    device: Device,

    /// Print one JSON object.
    #[arg(long, env = "LMM_SCOPE_JSON", value_parser = BoolishValueParser::new())]
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
    check_device(args.device)?;
    let (folder, sae) = open_sae(&args.sae, None)?;
    let hidden = read_hidden(&args.hidden, sae.d_in())?;
    let job = Encode { args, output, folder, sae, hidden };
    match args.device {
        // From the memory map: the weights need not fit into memory.
        Device::Cpu => {
            let progress = Progress::start("encoding");
            let top = job.sae.encode(&job.hidden)?;
            job.finish(&top, progress)
        }
        card => run_on(card, job),
    }
}

struct Encode<'a> {
    args: &'a EncodeArgs,
    output: Output,
    folder: PathBuf,
    sae: SaeFile,
    hidden: Vec<f32>,
}

impl OnBackend for Encode<'_> {
    fn run<B: Backend>(self, device: &B::Device) -> Result<(), CliError> {
        let progress = Progress::start("loading the SAE");
        let sae = Sae::<B>::from_file(&self.sae, device)?;
        progress.say("encoding");
        let (values, d) = (self.hidden.clone(), self.sae.d_in());
        let shape = [values.len() / d, d];
        let top = sae.encode(Tensor::from_data(TensorData::new(values, shape), device));
        self.finish(&top, progress)
    }
}

impl Encode<'_> {
    fn finish(&self, top: &TopK, progress: Progress) -> Result<(), CliError> {
        model::Error::check_finite("the activations", &top.acts)?;
        let provenance = RunProvenance::of_sae(&self.folder)?.computed_on(self.args.device);
        drop(progress);

        let shape = [top.tokens, top.k];
        let tensors =
            [NamedTensor::ids("top_indices", &shape, &top.indices), NamedTensor::f32("top_acts", &shape, &top.acts)];
        self.output.write(&tensors, HashMap::from([("provenance".to_owned(), provenance.json()?)]))?;
        let active = top.acts.iter().filter(|act| **act > 0.0).count();
        let report = Report {
            tokens: top.tokens,
            k: top.k,
            latents: self.sae.latents(),
            mean_active: active as f32 / top.tokens as f32,
            out: self.args.out.clone(),
            provenance,
        };
        if self.args.json {
            return print_json(&report);
        }
        let (Report { tokens, mean_active, .. }, out) = (report, self.args.out.display());
        print(&format!("{tokens} tokens with {mean_active:.1} active features on average are in {out}"))
    }
}

/// The values of `hidden`, row-major.
pub(super) fn read_hidden(path: &Path, d_in: usize) -> Result<Vec<f32>, CliError> {
    let bytes = fs::read(path).map_err(|error| CliError::file(path, error))?;
    hidden_from_safetensors(&bytes, d_in).map_err(|reason| CliError::file(path, reason))
}
