//! `lmm-scope attribute`: which features speak for an answer, and which for another.

use super::{
    CliError,
    args::{RunArgs, count, count_from_one},
    device::{OnBackend, run_on},
    features::{check_feature, feature_id},
    output::{NamedTensor, Output, print, print_json},
    progress::Progress,
    provenance::RunProvenance,
    setup::{Setup, name_culprit, open_sae},
};
use burn::tensor::backend::Backend;
use clap::builder::BoolishValueParser;
use model::{
    Lmm, Sae,
    attribution::{AttributeOptions, Attribution, attribute},
    hook::Hook,
};
use serde::Serialize;
use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
};

/// Say which features speak for an answer and which for another.
#[derive(Debug, Clone, clap::Args)]
pub struct AttributeArgs {
    #[command(flatten)]
    run: RunArgs,

    /// Folder of the SAE: that of the hook point, or one that holds it; or the id of a repository on the Hugging Face Hub
    /// (owner/name), of which the main branch is taken.
    #[arg(long, env = "LMM_SCOPE_SAE", value_name = "DIR|HF_ID")]
    sae: PathBuf,

    #[command(flatten)]
    words: WordArgs,

    /// Add what the SAE does not reconstruct back to the stream.
    #[arg(long, env = "LMM_SCOPE_KEEP_ERROR", value_parser = BoolishValueParser::new())]
    keep_error: bool,

    /// Remove the n features with the largest attributions one by one, and measure what that changes.
    #[arg(long, env = "LMM_SCOPE_VERIFY", value_name = "N", default_value = "0", value_parser = count,
        allow_negative_numbers = true)]
    verify: usize,

    /// Also write this feature's attribution at every token, `attribution_map` f32 [tokens].
    #[arg(long, env = "LMM_SCOPE_MAP", value_name = "ID", value_parser = feature_id, allow_negative_numbers = true)]
    map: Option<usize>,

    /// Features in the answer, by the size of their attribution.
    #[arg(long, env = "LMM_SCOPE_TOP", value_name = "N", default_value = "20", value_parser = count_from_one,
        allow_negative_numbers = true)]
    top: usize,

    /// Safetensors file to write: `attribution`, `attribution_image`, `attribution_text` f32 [latents],
    /// `logit_difference` f32 [1].
    #[arg(long, env = "LMM_SCOPE_OUT", value_name = "FILE")]
    out: PathBuf,

    /// Print one JSON object.
    #[arg(long, env = "LMM_SCOPE_JSON", value_parser = BoolishValueParser::new())]
    json: bool,
}

/// The two next tokens that are compared, both as text or both as ids.
#[derive(Debug, Clone, clap::Args)]
struct WordArgs {
    /// The answer; its first token counts.
    #[arg(long, env = "LMM_SCOPE_ANSWER", value_name = "TEXT", allow_hyphen_values = true, requires = "baseline",
        required_unless_present = "answer_id", conflicts_with_all = ["answer_id", "baseline_id"])]
    answer: Option<String>,

    /// The answer it is compared with; its first token counts.
    #[arg(long, env = "LMM_SCOPE_BASELINE", value_name = "TEXT", allow_hyphen_values = true, requires = "answer")]
    baseline: Option<String>,

    /// Id of the answer's token.
    #[arg(long, env = "LMM_SCOPE_ANSWER_ID", value_name = "N", requires = "baseline_id", value_parser = count,
        allow_negative_numbers = true)]
    answer_id: Option<usize>,

    /// Id of the token it is compared with.
    #[arg(long, env = "LMM_SCOPE_BASELINE_ID", value_name = "N", requires = "answer_id", value_parser = count,
        allow_negative_numbers = true)]
    baseline_id: Option<usize>,
}

/// How a token is named.
enum Word {
    Text(String),
    Id(u32),
}

impl Word {
    fn token<B: Backend>(&self, lmm: &Lmm<B>) -> Result<u32, CliError> {
        match self {
            Self::Text(text) => Ok(lmm.first_token(text)?),
            Self::Id(id) => Ok(*id),
        }
    }
}

impl WordArgs {
    /// Answer and baseline.
    fn words(&self, vocabulary: usize) -> Result<[Word; 2], CliError> {
        let word = |text: &Option<String>, text_flag, id: Option<usize>, id_flag| match (text, id) {
            (Some(text), _) if text.is_empty() => Err(CliError::flag(text_flag, "the text is empty; give a word")),
            (Some(text), _) => Ok(Word::Text(text.clone())),
            (None, Some(id)) if id < vocabulary => Ok(Word::Id(id as u32)),
            (None, Some(id)) => Err(CliError::flag(id_flag, format!("token {id} of a vocabulary of {vocabulary}"))),
            (None, None) => Err(CliError::flag(text_flag, "is missing")),
        };
        Ok([
            word(&self.answer, "--answer", self.answer_id, "--answer-id")?,
            word(&self.baseline, "--baseline", self.baseline_id, "--baseline-id")?,
        ])
    }
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Report {
    answer: TokenReport,
    baseline: TokenReport,
    /// Logit of the answer minus that of the baseline, with the reconstruction in the stream.
    logit_difference: f32,
    /// The same of the model as it is.
    logit_difference_original: f32,
    hook: String,
    keep_error: bool,
    latents: usize,
    /// Features that are active at some token.
    active: usize,
    /// By the size of their attribution; positive speaks for the answer.
    top_features: Vec<FeatureReport>,
    #[serde(skip_serializing_if = "Option::is_none")]
    verify: Option<VerifyReport>,
    passes: PassesReport,
    out: PathBuf,
    provenance: RunProvenance,
}

#[derive(Debug, Serialize)]
struct TokenReport {
    id: u32,
    text: String,
}

#[derive(Debug, Serialize)]
struct FeatureReport {
    index: usize,
    attribution: f32,
    /// The part of the picture's tokens.
    image: f32,
    /// The part of the text's tokens.
    text: f32,
    activation_max: f32,
}

#[derive(Debug, Serialize)]
struct VerifyReport {
    effects: Vec<EffectReport>,
    /// Pearson's, between attribution and measured effect.
    correlation: Option<f32>,
    method: &'static str,
}

#[derive(Debug, Serialize)]
struct EffectReport {
    index: u32,
    attribution: f32,
    /// Logit difference with the feature minus that without it.
    measured: f32,
}

/// Through the blocks after the hook point, as they were run; verification not counted.
#[derive(Debug, Serialize)]
struct PassesReport {
    forward: usize,
    backward: usize,
}

/// How features are removed for `--verify`.
const REMOVAL: &str = "the feature is set to zero at every token after TopK; no other feature takes its place";

struct Attribute {
    setup: Setup,
    output: Output,
    sae: PathBuf,
    answer: Word,
    baseline: Word,
    keep_error: bool,
    verify: usize,
    map: Option<usize>,
    top: usize,
    json: bool,
}

/// # Errors
/// Bad input, in one line.
pub fn run(args: AttributeArgs) -> Result<(), CliError> {
    let output = Output::check(&args.out)?;
    let (hook, _) = args.run.hook.named();
    if matches!(hook, Hook::Vision(_)) {
        return Err(CliError::flag("--hook", format!("{hook}: attribution needs a language block")));
    }
    // Before the model, which may have to be fetched.
    let (sae, file) = open_sae(&args.sae, Some(hook))?;
    let latents = file.latents();
    if let Some(feature) = args.map {
        check_feature("--map", feature, latents)?;
    }
    if args.verify > latents {
        return Err(CliError::flag("--verify", format!("{} features of an SAE of {latents} latents", args.verify)));
    }
    let setup = Setup::check(args.run)?;
    setup.check_sae(&sae, &file)?;
    drop(file);
    let [answer, baseline] = args.words.words(setup.config.text_config.vocab_size)?;
    let job = Attribute {
        setup,
        output,
        sae,
        answer,
        baseline,
        keep_error: args.keep_error,
        verify: args.verify,
        map: args.map,
        top: args.top,
        json: args.json,
    };
    let (device, checkpoint) = (job.setup.device, job.setup.folder.clone());
    run_on(device, job).map_err(|error| name_culprit(error, &checkpoint))
}

impl OnBackend for Attribute {
    fn run<B: Backend>(self, device: &B::Device) -> Result<(), CliError> {
        let (lmm, prepared) = self.setup.load::<B>(device)?;
        let options = self.options(&lmm)?;
        let sae = Sae::<B>::load(&self.sae, device)?;
        let progress = Progress::start("attributing");
        let found = attribute(&lmm, &prepared, &sae, &options)?;
        drop(progress);
        let differences = [found.logit_difference, found.logit_difference_original];
        model::Error::check_finite("the logits", &differences)?;
        model::Error::check_finite("the attributions", &found.total)?;
        let provenance = RunProvenance::of_run(&self.setup, &prepared, Some(&self.sae))?;

        let metadata = HashMap::from([
            ("hook".to_owned(), self.setup.hook.to_string()),
            ("provenance".to_owned(), provenance.json()?),
        ]);
        self.output.write(&self.tensors(&found, prepared.input_ids.len()), metadata)?;
        let report = self.report(&lmm, &options, &found, provenance);
        if self.json { print_json(&report) } else { print(&report.for_people()) }
    }
}

impl Attribute {
    fn options<B: Backend>(&self, lmm: &Lmm<B>) -> Result<AttributeOptions, CliError> {
        let [answer, baseline] = [self.answer.token(lmm)?, self.baseline.token(lmm)?];
        if answer == baseline {
            let text = lmm.token_text(answer);
            let reason = format!("answer and baseline both begin with token {answer} ({text:?}); give another word");
            return Err(CliError::flag("--baseline", reason));
        }
        let (keep_error, verify) = (self.keep_error, self.verify);
        Ok(AttributeOptions { hook: self.setup.hook, answer, baseline, keep_error, verify })
    }

    fn tensors(&self, found: &Attribution, tokens: usize) -> Vec<NamedTensor> {
        let latents = [found.total.len()];
        let mut tensors = vec![
            NamedTensor::f32("attribution", &latents, &found.total),
            NamedTensor::f32("attribution_image", &latents, &found.image),
            NamedTensor::f32("attribution_text", &latents, &found.text),
            NamedTensor::f32("logit_difference", &[1], &[found.logit_difference]),
        ];
        if let Some(feature) = self.map {
            tensors.push(NamedTensor::f32("attribution_map", &[tokens], &found.map(feature as u32, tokens)));
        }
        tensors
    }

    fn report<B: Backend>(
        &self,
        lmm: &Lmm<B>,
        options: &AttributeOptions,
        found: &Attribution,
        provenance: RunProvenance,
    ) -> Report {
        let token = |id: u32| TokenReport { id, text: lmm.token_text(id) };
        let strongest = strongest_activations(found);
        let effect = |effect: &model::attribution::Verified| EffectReport {
            index: effect.feature,
            attribution: effect.attribution,
            measured: effect.measured,
        };
        let verify = (self.verify > 0).then(|| VerifyReport {
            effects: found.verified.iter().map(effect).collect(),
            correlation: found.correlation,
            method: REMOVAL,
        });
        Report {
            answer: token(options.answer),
            baseline: token(options.baseline),
            logit_difference: found.logit_difference,
            logit_difference_original: found.logit_difference_original,
            hook: self.setup.hook.to_string(),
            keep_error: self.keep_error,
            latents: found.total.len(),
            active: strongest.len(),
            top_features: top_features(found, &strongest, self.top),
            verify,
            passes: PassesReport { forward: found.forward_passes, backward: found.backward_passes },
            out: self.output.path().to_owned(),
            provenance,
        }
    }
}

/// Largest activation of every feature that is active somewhere.
fn strongest_activations(found: &Attribution) -> BTreeMap<u32, f32> {
    let mut strongest = BTreeMap::new();
    for effect in &found.effects {
        let activation: &mut f32 = strongest.entry(effect.feature).or_default();
        *activation = activation.max(effect.activation);
    }
    strongest
}

/// Active features by the size of their attribution, ties by lower index.
fn top_features(found: &Attribution, strongest: &BTreeMap<u32, f32>, top: usize) -> Vec<FeatureReport> {
    let feature = |(&index, &activation_max): (&u32, &f32)| {
        let index = index as usize;
        let (attribution, image, text) = (found.total[index], found.image[index], found.text[index]);
        FeatureReport { index, attribution, image, text, activation_max }
    };
    let mut features: Vec<FeatureReport> = strongest.iter().map(feature).collect();
    features.sort_by(|a, b| b.attribution.abs().total_cmp(&a.attribution.abs()).then(a.index.cmp(&b.index)));
    features.truncate(top);
    features
}

impl Report {
    fn for_people(&self) -> String {
        let mut lines = vec![
            format!(
                "{:?} over {:?}: logit difference {:.4} through the SAE, {:.4} as it is",
                self.answer.text, self.baseline.text, self.logit_difference, self.logit_difference_original
            ),
            format!("{:>8} {:>12} {:>12} {:>12} {:>12}", "feature", "attribution", "picture", "text", "activation"),
        ];
        lines.extend(self.top_features.iter().map(|feature| {
            let FeatureReport { index, attribution, image, text, activation_max } = feature;
            format!("{index:>8} {attribution:>12.5} {image:>12.5} {text:>12.5} {activation_max:>12.4}")
        }));
        if let Some(verify) = &self.verify {
            lines.push(format!("removed one by one ({}):", verify.method));
            lines.extend(verify.effects.iter().map(|effect| {
                let EffectReport { index, attribution, measured } = effect;
                format!("{index:>8} {attribution:>12.5} expected {measured:>12.5} measured")
            }));
            lines.extend(verify.correlation.map(|correlation| format!("correlation {correlation:.4}")));
        }
        lines.push(format!("attributions of {} features are in {}", self.latents, self.out.display()));
        lines.join("\n")
    }
}
