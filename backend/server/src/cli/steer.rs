//! `lmm-scope steer`: the model's answer as it is, through the SAE, and with features changed.

use super::{
    CliError,
    args::{RunArgs, count, count_from_one, finite},
    device::{OnBackend, run_on},
    features::{EditReport, FeatureArgs},
    output::{print, print_json},
    progress::Progress,
    provenance::RunProvenance,
    setup::{Setup, name_culprit, open_sae},
};
use burn::tensor::backend::Backend;
use clap::builder::BoolishValueParser;
use model::{
    Edit, GenerateOptions, Generation, Intervention, Lmm, Positions, Prepared, Sae,
    generate::{Steered, steer},
};
use serde::Serialize;
use std::{ops::ControlFlow, path::PathBuf, sync::Arc};

/// Let the model answer as it is, through the SAE, and with features changed.
#[derive(Debug, Clone, clap::Args)]
pub struct SteerArgs {
    #[command(flatten)]
    run: RunArgs,

    /// Folder of the SAE: that of the hook point, or one that holds it; or the id of a repository on the Hugging Face Hub
    /// (owner/name), of which the main branch is taken.
    #[arg(long, env = "LMM_SCOPE_SAE", value_name = "DIR|HF_ID")]
    sae: PathBuf,

    #[command(flatten)]
    pub(super) features: FeatureArgs,

    /// Where features are changed: all, prefill, image, text, generated, or positions of the prompt such as 3,5,7. At a
    /// vision hook point: all, or positions of the tower, tile after tile.
    #[arg(long, env = "LMM_SCOPE_POSITIONS", default_value = "all", allow_negative_numbers = true)]
    positions: Positions,

    /// Add what the SAE does not reconstruct back to the stream, so that only the change itself is seen.
    #[arg(long, env = "LMM_SCOPE_KEEP_ERROR", value_parser = BoolishValueParser::new())]
    keep_error: bool,

    /// Most tokens of each answer.
    #[arg(long, env = "LMM_SCOPE_MAX_NEW_TOKENS", value_name = "N", default_value = "64",
        value_parser = count_from_one, allow_negative_numbers = true)]
    max_new_tokens: usize,

    /// 0 takes the likeliest token each time.
    #[arg(long, env = "LMM_SCOPE_TEMPERATURE", default_value = "0", value_parser = temperature,
        allow_negative_numbers = true)]
    temperature: f32,

    /// Draw only from the likeliest tokens that have this probability together; 1 keeps all.
    #[arg(long, env = "LMM_SCOPE_TOP_P", default_value = "1", value_parser = top_p, allow_negative_numbers = true)]
    top_p: f32,

    /// Of the draws at a temperature above 0.
    #[arg(long, env = "LMM_SCOPE_SEED", default_value_t = 0)]
    seed: u64,

    /// Also give the n likeliest tokens at every place.
    #[arg(long, env = "LMM_SCOPE_TOP_ALTERNATIVES", value_name = "N", default_value = "0", value_parser = count,
        allow_negative_numbers = true)]
    top_alternatives: usize,

    /// Print one JSON object.
    #[arg(long, env = "LMM_SCOPE_JSON", value_parser = BoolishValueParser::new())]
    json: bool,
}

fn temperature(text: &str) -> Result<f32, String> {
    finite(text).ok().filter(|number| *number >= 0.0).ok_or_else(|| format!("`{text}` is not a number from 0 up"))
}

fn top_p(text: &str) -> Result<f32, String> {
    let in_range = |number: &f32| *number > 0.0 && *number <= 1.0;
    finite(text).ok().filter(in_range).ok_or_else(|| format!("`{text}` is not a probability above 0 and up to 1"))
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Report {
    original: TextReport,
    reconstructed: TextReport,
    steered: TextReport,
    intervention: InterventionReport,
    options: OptionsReport,
    /// Tokens of the prompt, the picture's included.
    prompt_tokens: usize,
    provenance: RunProvenance,
}

/// One of the three answers.
#[derive(Debug, Serialize)]
struct TextReport {
    text: String,
    token_ids: Vec<u32>,
    /// What each token adds to the text.
    tokens: Vec<String>,
    /// Natural log of each token's probability.
    logprobs: Vec<f32>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    alternatives: Vec<Vec<Alternative>>,
}

#[derive(Debug, Serialize)]
struct Alternative {
    id: u32,
    text: String,
    logprob: f32,
}

#[derive(Debug, Serialize)]
struct InterventionReport {
    hook: String,
    edits: Vec<EditReport>,
    positions: String,
    keep_error: bool,
}

#[derive(Debug, Serialize)]
struct OptionsReport {
    max_new_tokens: usize,
    temperature: f32,
    top_p: f32,
    seed: u64,
}

struct Steer {
    setup: Setup,
    sae: PathBuf,
    edits: Vec<Edit>,
    positions: Positions,
    keep_error: bool,
    options: GenerateOptions,
    json: bool,
}

/// # Errors
/// Bad input, in one line.
pub fn run(args: SteerArgs) -> Result<(), CliError> {
    let (hook, _) = args.run.hook.named();
    args.positions.check_at(hook).map_err(wrong_positions)?;
    // Before the model, which may have to be fetched.
    let (sae, file) = open_sae(&args.sae, Some(hook))?;
    args.features.check(file.latents())?;
    let setup = Setup::check(args.run)?;
    setup.check_sae(&sae, &file)?;
    drop(file);
    let words = setup.config.text_config.vocab_size;
    if args.top_alternatives > words {
        let reason = format!("{} tokens of a vocabulary of {words}", args.top_alternatives);
        return Err(CliError::flag("--top-alternatives", reason));
    }
    let options = GenerateOptions {
        max_new_tokens: args.max_new_tokens,
        temperature: args.temperature,
        top_p: args.top_p,
        seed: args.seed,
        top_alternatives: args.top_alternatives,
    };
    let edits = args.features.edits();
    let job =
        Steer { setup, sae, edits, positions: args.positions, keep_error: args.keep_error, options, json: args.json };
    let (device, checkpoint) = (job.setup.device, job.setup.folder.clone());
    run_on(device, job).map_err(|error| name_culprit(error, &checkpoint))
}

fn wrong_positions(error: model::Error) -> CliError {
    CliError::flag("--positions", error.to_string())
}

impl OnBackend for Steer {
    fn run<B: Backend>(self, device: &B::Device) -> Result<(), CliError> {
        let (lmm, prepared) = self.setup.load::<B>(device)?;
        lmm.check_positions(&prepared, self.setup.hook, &self.positions).map_err(wrong_positions)?;
        let intervention = Intervention {
            hook: self.setup.hook,
            sae: Arc::new(Sae::<B>::load(&self.sae, device)?),
            edits: self.edits.clone(),
            positions: self.positions.clone(),
            keep_error: self.keep_error,
        };
        let progress = Progress::start("reading the prompt");
        let mut tokens = 0;
        let texts = steer(&lmm, &prepared, &self.options, &intervention, &mut |_, _| {
            tokens += 1;
            progress.say(format!("{tokens} tokens in three answers"));
            ControlFlow::Continue(())
        })?;
        drop(progress);
        check_finite(&texts)?;
        let provenance = RunProvenance::of_run(&self.setup, &prepared, Some(&self.sae))?;
        let report = self.report(&lmm, &prepared, texts, provenance);
        if self.json { print_json(&report) } else { print(&report.for_people()) }
    }
}

impl Steer {
    fn report<B: Backend>(
        &self,
        lmm: &Lmm<B>,
        prepared: &Prepared,
        texts: Steered,
        provenance: RunProvenance,
    ) -> Report {
        let options = &self.options;
        Report {
            original: text_report(lmm, texts.original),
            reconstructed: text_report(lmm, texts.reconstructed),
            steered: text_report(lmm, texts.steered),
            intervention: InterventionReport {
                hook: self.setup.hook.to_string(),
                edits: self.edits.iter().copied().map(EditReport::from).collect(),
                positions: self.positions.to_string(),
                keep_error: self.keep_error,
            },
            options: OptionsReport {
                max_new_tokens: options.max_new_tokens,
                temperature: options.temperature,
                top_p: options.top_p,
                seed: options.seed,
            },
            prompt_tokens: prepared.input_ids.len(),
            provenance,
        }
    }
}

/// NaN in the weights, or an overflow, shows in the probabilities.
fn check_finite(texts: &Steered) -> Result<(), CliError> {
    for (name, text) in
        [("original", &texts.original), ("reconstructed", &texts.reconstructed), ("steered", &texts.steered)]
    {
        let logprobs: Vec<f32> = text.tokens.iter().map(|token| token.logprob).collect();
        model::Error::check_finite(&format!("the probabilities of the {name} text"), &logprobs)?;
    }
    Ok(())
}

fn text_report<B: Backend>(lmm: &Lmm<B>, generation: Generation) -> TextReport {
    let alternatives = |alternatives: &[(u32, f32)]| -> Vec<Alternative> {
        let one = |&(id, logprob): &(u32, f32)| Alternative { id, text: lmm.token_text(id), logprob };
        alternatives.iter().map(one).collect()
    };
    let tokens = &generation.tokens;
    let asked = tokens.iter().any(|token| !token.alternatives.is_empty());
    TextReport {
        token_ids: tokens.iter().map(|token| token.id).collect(),
        tokens: tokens.iter().map(|token| token.text.clone()).collect(),
        logprobs: tokens.iter().map(|token| token.logprob).collect(),
        alternatives: tokens.iter().filter(|_| asked).map(|token| alternatives(&token.alternatives)).collect(),
        text: generation.text,
    }
}

impl Report {
    fn for_people(&self) -> String {
        let edit = |edit: &EditReport| match edit.value {
            Some(value) => format!("{} {}={value}", edit.op, edit.feature),
            None => format!("{} {}", edit.op, edit.feature),
        };
        let edits: Vec<String> = self.intervention.edits.iter().map(edit).collect();
        let steered = format!("steered ({} at {})", edits.join(", "), self.intervention.positions);
        let texts = [
            ("the model as it is", &self.original),
            ("through the SAE", &self.reconstructed),
            (steered.as_str(), &self.steered),
        ];
        let shown = texts.map(|(label, text)| format!("{label}:\n  {}", text.text.trim().replace('\n', "\n  ")));
        shown.join("\n\n")
    }
}
