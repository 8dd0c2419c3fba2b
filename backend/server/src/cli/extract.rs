//! `lmm-scope extract`: picture and prompt → hidden states at a hook point.

use super::{
    CliError,
    args::{RunArgs, count},
    device::{OnBackend, run_on},
    output::{NamedTensor, Output, print, print_json},
    progress::Progress,
    provenance::RunProvenance,
    setup::{Setup, name_culprit, token_spans},
};
use api::TokenSpan;
use burn::tensor::{Tensor, backend::Backend};
use clap::builder::BoolishValueParser;
use model::{
    Lmm, Prepared,
    hook::Hook,
    lens::{Lens, embedding_lens, logit_lens},
    weights::f32_from_tensor,
};
use serde::Serialize;
use std::{collections::HashMap, path::PathBuf};

/// Write the hidden states of a picture and a prompt at a hook point.
#[derive(Debug, Clone, clap::Args)]
pub struct ExtractArgs {
    #[command(flatten)]
    run: RunArgs,

    /// Safetensors file to write: `input_ids` i32 [tokens] and `hidden` f32 [tokens, d_model].
    #[arg(long, env = "LMM_SCOPE_OUT", value_name = "FILE")]
    out: PathBuf,

    /// Also write the n likeliest words of each position: by the final norm and unembedding of its hidden state, and
    /// by the vocabulary embeddings nearest to each picture position; at a vision hook point by the latter alone.
    #[arg(long, env = "LMM_SCOPE_LENS", value_name = "N", default_value = "0", value_parser = count,
        allow_negative_numbers = true)]
    lens: usize,

    /// Print one JSON object.
    #[arg(long, env = "LMM_SCOPE_JSON", value_parser = BoolishValueParser::new())]
    json: bool,
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Report {
    tokens: usize,
    /// Values per row of `hidden`.
    d_model: usize,
    /// Rows of `hidden`: the tokens, or the tower's positions at a vision hook point.
    rows: usize,
    hook: String,
    /// Rows and columns of the base picture's patches.
    grid: Option<[usize; 2]>,
    spans: Vec<TokenSpan>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lens: Option<LensReport>,
    out: PathBuf,
    provenance: RunProvenance,
}

#[derive(Debug, Serialize)]
struct LensReport {
    /// Per token, likeliest first; at a vision hook point, none.
    logit: Vec<Vec<Word>>,
    /// Per picture position, nearest first; without a picture, none.
    embedding: Vec<Vec<Word>>,
}

#[derive(Debug, Serialize)]
struct Word {
    token: String,
    id: u32,
    score: f32,
}

struct Extract {
    setup: Setup,
    output: Output,
    lens: usize,
    json: bool,
}

/// # Errors
/// Bad input, in one line.
pub fn run(args: ExtractArgs) -> Result<(), CliError> {
    let output = Output::check(&args.out)?;
    let setup = Setup::check(args.run)?;
    let words = setup.config.text_config.vocab_size;
    if args.lens > words {
        return Err(CliError::flag("--lens", format!("{} words of a vocabulary of {words}", args.lens)));
    }
    let (device, checkpoint) = (setup.device, setup.folder.clone());
    let job = Extract { setup, output, lens: args.lens, json: args.json };
    run_on(device, job).map_err(|error| name_culprit(error, &checkpoint))
}

impl OnBackend for Extract {
    fn run<B: Backend>(self, device: &B::Device) -> Result<(), CliError> {
        let (lmm, prepared) = self.setup.load::<B>(device)?;
        let tokens = prepared.input_ids.len();
        let progress = Progress::start(format!("{tokens} tokens to {}", self.setup.hook));
        let hidden = lmm.hidden_at(&prepared, self.setup.hook)?;
        let [rows, d_model] = hidden.dims();
        let values = f32_from_tensor(hidden.clone());
        model::Error::check_finite("the hidden states", &values)?;
        let lenses = self.lenses(&lmm, &prepared, hidden)?;
        let provenance = RunProvenance::of_run(&self.setup, &prepared, None)?;
        drop(progress);

        let mut tensors = vec![
            NamedTensor::ids("input_ids", &[tokens], &prepared.input_ids),
            NamedTensor::f32("hidden", &[rows, d_model], &values),
        ];
        if let Some(lenses) = &lenses {
            lenses.add_to(&mut tensors);
        }
        let report = Report {
            tokens,
            d_model,
            rows,
            hook: self.setup.hook.to_string(),
            grid: prepared.grid,
            spans: token_spans(&lmm, &prepared),
            lens: lenses.map(|lenses| lenses.report(&lmm)),
            out: self.output.path().to_owned(),
            provenance,
        };
        self.output.write(&tensors, report.metadata()?)?;
        if self.json { print_json(&report) } else { print(&report.for_people()) }
    }
}

impl Extract {
    fn lenses<B: Backend>(
        &self,
        lmm: &Lmm<B>,
        prepared: &Prepared,
        hidden: Tensor<B, 2>,
    ) -> Result<Option<Lenses>, CliError> {
        if self.lens == 0 {
            return Ok(None);
        }
        let (language, picture) = (matches!(self.setup.hook, Hook::Block(_)), prepared.pixels.is_some());
        let logit = language.then(|| logit_lens(lmm, hidden, self.lens)).transpose()?;
        let embedding = picture.then(|| embedding_lens(lmm, prepared, self.lens)).transpose()?;
        Ok(Some(Lenses { logit, embedding }))
    }
}

/// Words that positions resemble.
struct Lenses {
    /// Only at the language model's hook points: the vision tower has no words.
    logit: Option<Lens>,
    /// Only with a picture.
    embedding: Option<Lens>,
}

impl Lenses {
    fn add_to(&self, tensors: &mut Vec<NamedTensor>) {
        let mut add = |lens: &Lens, ids: &'static str, scores: &'static str| {
            let shape = [lens.ids.len() / lens.n.max(1), lens.n];
            tensors.push(NamedTensor::ids(ids, &shape, &lens.ids));
            tensors.push(NamedTensor::f32(scores, &shape, &lens.scores));
        };
        if let Some(logit) = &self.logit {
            add(logit, "lens_logit_ids", "lens_logit_scores");
        }
        if let Some(embedding) = &self.embedding {
            add(embedding, "lens_embedding_ids", "lens_embedding_scores");
        }
    }

    fn report<B: Backend>(&self, lmm: &Lmm<B>) -> LensReport {
        let rows = |lens: &Lens| -> Vec<Vec<Word>> {
            let words: Vec<(u32, f32)> = lens.ids.iter().copied().zip(lens.scores.iter().copied()).collect();
            let word = |&(id, score): &(u32, f32)| Word { token: lmm.token_text(id), id, score };
            words.chunks(lens.n.max(1)).map(|row| row.iter().map(word).collect()).collect()
        };
        let rows = |lens: &Option<Lens>| lens.as_ref().map(rows).unwrap_or_default();
        LensReport { logit: rows(&self.logit), embedding: rows(&self.embedding) }
    }
}

impl LensReport {
    /// What people see of it.
    fn shown(&self) -> &[Vec<Word>] {
        if self.logit.is_empty() { &self.embedding } else { &self.logit }
    }
}

impl Report {
    /// As in the server's answer.
    fn metadata(&self) -> Result<HashMap<String, String>, CliError> {
        let bug = |error: serde_json::Error| CliError::Bug(error.to_string());
        Ok(HashMap::from([
            ("hook_point".to_owned(), self.hook.clone()),
            ("spans".to_owned(), serde_json::to_string(&self.spans).map_err(bug)?),
            // `[0, 0]` without a picture.
            ("grid".to_owned(), serde_json::to_string(&self.grid.unwrap_or_default()).map_err(bug)?),
            ("provenance".to_owned(), self.provenance.json()?),
        ]))
    }

    fn for_people(&self) -> String {
        let mut lines = Vec::new();
        for (position, words) in self.lens.iter().flat_map(|lens| lens.shown().iter().enumerate()) {
            let words: Vec<String> = words.iter().map(|word| format!("{:?} {:.3}", word.token, word.score)).collect();
            lines.push(format!("{position:>5}  {}", words.join("  ")));
        }
        let Self { rows, d_model, hook, .. } = self;
        lines.push(format!("{rows} × {d_model} values at {hook} are in {}", self.out.display()));
        lines.join("\n")
    }
}
