//! What the engine's thread does: the model's calls, in the wire's terms.

use super::{EngineError, ExtractInput, Hidden, SteerEvents, SteerInput};
use crate::picture::HeldPicture;
use crate::weights::{hash_file, hex};
use api::{
    Column, Positions, Provenance, Source, SteerEvent, SteerMethod, SteerRequest, SteerResult, SteeredText, TextToken,
    TokenKind, TokenSpan,
};
use model::{
    Cpu, Edit, EditOp, GenerateOptions, GeneratedToken, Generation, Intervention, Lmm, Prepared, PromptInput, Sae,
    Span, SpanKind,
};
use sha2::{Digest, Sha256};
use std::{
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};
use tokio::sync::{mpsc, oneshot};

/// New tokens when the request does not say.
const NEW_TOKENS: u32 = 64;
/// Hex digits of a SHA-256 in provenance.
const REVISION_DIGITS: usize = 12;

/// Model and SAE in memory.
pub(super) struct LoadedModel {
    lmm: Lmm<Cpu>,
    sae: Arc<Sae<Cpu>>,
    layer: usize,
    /// Everything but the prompt's hash and the date.
    provenance: Provenance,
}

impl LoadedModel {
    pub(super) fn load(artifacts: &Path, source: &Source) -> Result<Self, EngineError> {
        let started = Instant::now();
        let (model_folder, sae_folder) = (artifacts.join("model"), artifacts.join("sae").join(&source.hook_point));
        let device = Default::default();
        let lmm = Lmm::<Cpu>::load(&model_folder, &device)?;
        let sae = Sae::<Cpu>::load(&sae_folder, &device)?;
        check_sizes(&sae_folder, source, &lmm, &sae)?;
        let provenance = Provenance {
            model: format!("{}@{}", source.model_id, revision(&model::weights::checkpoint_files(&model_folder)?)?),
            sae_revision: revision(&[sae_folder.join("sae.safetensors")])?,
            dtype: "f32".into(),
            ..Provenance::default()
        };
        let took_ms = started.elapsed().as_millis() as u64;
        tracing::info!(model = provenance.model, sae = provenance.sae_revision, took_ms, "engine ready");
        Ok(Self { lmm, sae: Arc::new(sae), layer: source.layer as usize, provenance })
    }

    fn provenance(&self, prepared: &Prepared) -> Provenance {
        let hash = Sha256::digest(&prepared.rendered);
        let hash: String = hash.iter().take(REVISION_DIGITS / 2).map(|byte| format!("{byte:02x}")).collect();
        let today = time::OffsetDateTime::now_utc().date().to_string();
        Provenance { prompt_hash: hash, date: today, ..self.provenance.clone() }
    }

    pub(super) fn extract(&self, input: ExtractInput) -> Result<Hidden, EngineError> {
        let started = Instant::now();
        // The paper's cache prompt is the picture alone, without the chat template.
        let alone = input.prompt.is_empty() && input.image.is_some();
        let text = if alone { "<image>".to_owned() } else { input.prompt };
        let prepared = self.prepare(text, !alone, input.image)?;
        let hidden = self.lmm.hidden_at(&prepared, self.layer)?;
        let [tokens, d_model] = hidden.dims();
        Ok(Hidden {
            values: model::weights::f32_from_tensor(hidden),
            tokens,
            d_model,
            spans: prepared.spans.iter().map(|span| self.wire_span(&prepared, span)).collect(),
            grid: prepared.grid.unwrap_or_default(),
            provenance: self.provenance(&prepared),
            input_ids: prepared.input_ids,
            took: started.elapsed(),
        })
    }

    /// The prompt in the model's terms. The picture ends here, and gives its slot back.
    fn prepare(&self, text: String, chat: bool, picture: Option<HeldPicture>) -> Result<Prepared, model::Error> {
        let (image, _slot) = picture.map(HeldPicture::into_parts).unzip();
        let input = PromptInput { text, chat, image };
        self.lmm.prepare(&input)
    }

    fn wire_span(&self, prepared: &Prepared, span: &Span) -> TokenSpan {
        let text = |id: &u32| self.lmm.token_text(*id);
        let (kind, tokens) = match span.kind {
            SpanKind::Base => (TokenKind::Base, Vec::new()),
            SpanKind::Tile => (TokenKind::Tile, Vec::new()),
            SpanKind::Newline => (TokenKind::Newline, Vec::new()),
            SpanKind::Text => (TokenKind::Text, prepared.input_ids[span.range.clone()].iter().map(text).collect()),
        };
        TokenSpan { kind, start: span.range.start as u32, end: span.range.end as u32, tokens }
    }

    /// Accepts the run (or refuses it) through `reply`, then streams the three texts side by side.
    pub(super) fn steer(&self, input: SteerInput, reply: oneshot::Sender<Result<SteerEvents, EngineError>>) {
        let SteerInput { request, image } = input;
        let prepared = self.prepare(request.prompt.clone(), true, image);
        let prepared = prepared.map_err(EngineError::from).and_then(|prepared| {
            let latents = self.sae.latents();
            let unknown = request.features.iter().map(|feature| feature.index as usize).find(|index| *index >= latents);
            match unknown {
                Some(index) => Err(model::Error::UnknownFeature { index, latents }.into()),
                None => Ok(prepared),
            }
        });
        let prepared = match prepared {
            Ok(prepared) => prepared,
            Err(error) => return drop(reply.send(Err(error))),
        };
        let (events, receiver) = mpsc::unbounded_channel();
        if reply.send(Ok(receiver)).is_err() {
            return;
        }
        let last = match self.three_texts(&request, &prepared, &events) {
            Ok([default, reconstructed, steered]) => {
                let provenance = self.provenance(&prepared);
                let (steer_method, positions) = (request.steer_method, request.positions);
                let result = SteerResult { default, reconstructed, steered, steer_method, positions, provenance };
                SteerEvent::Done { result }
            }
            Err(detail) => {
                tracing::error!(detail, "steering failed");
                SteerEvent::Failed { detail }
            }
        };
        // A client that has gone does not need the end.
        events.send(last).ok();
    }

    /// One thread per column, so that the texts grow together.
    fn three_texts(
        &self,
        request: &SteerRequest,
        prepared: &Prepared,
        events: &mpsc::UnboundedSender<SteerEvent>,
    ) -> Result<[SteeredText; 3], String> {
        std::thread::scope(|scope| {
            let columns = [Column::Default, Column::Reconstructed, Column::Steered];
            let running = columns.map(|column| scope.spawn(move || self.one_text(column, request, prepared, events)));
            let [default, reconstructed, steered] = running.map(|thread| match thread.join() {
                Ok(text) => text.map(steered_text).map_err(|error| error.to_string()),
                Err(_) => Err("the model stopped unexpectedly".to_owned()),
            });
            Ok([default?, reconstructed?, steered?])
        })
    }

    fn one_text(
        &self,
        column: Column,
        request: &SteerRequest,
        prepared: &Prepared,
        events: &mpsc::UnboundedSender<SteerEvent>,
    ) -> Result<Generation, model::Error> {
        let new_tokens = if request.n_tokens == 0 { NEW_TOKENS } else { request.n_tokens };
        let options = GenerateOptions {
            max_new_tokens: new_tokens as usize,
            temperature: request.temperature,
            seed: request.seed,
            ..GenerateOptions::default()
        };
        let intervention = match column {
            Column::Default => None,
            Column::Reconstructed => Some(self.intervention(Vec::new(), Positions::All)),
            Column::Steered => Some(self.intervention(edits(request), request.positions)),
        };
        model::generate(&self.lmm, prepared, &options, intervention.as_ref(), &mut |token| {
            let event = SteerEvent::Token { column, token: text_token(token) };
            // Sending fails when the client has gone: the run ends here.
            if events.send(event).is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })
    }

    fn intervention(&self, edits: Vec<Edit>, positions: Positions) -> Intervention<Cpu> {
        let positions = match positions {
            Positions::All => model::Positions::All,
            Positions::Prefill => model::Positions::Prefill,
            Positions::Image => model::Positions::Image,
            Positions::Text => model::Positions::Text,
            Positions::Generated => model::Positions::Generated,
        };
        Intervention { layer: self.layer, sae: Arc::clone(&self.sae), edits, positions }
    }
}

/// First digits of the files' SHA-256, as one after the other.
fn revision(files: &[PathBuf]) -> Result<String, EngineError> {
    let mut hash = Sha256::new();
    for path in files {
        hash_file(path, &mut hash).map_err(|source| EngineError::Io { path: path.clone(), source })?;
    }
    Ok(hex(&hash.finalize())[..REVISION_DIGITS].to_owned())
}

/// The files must be those that the source describes, or every feature would mean something else.
fn check_sizes(folder: &Path, source: &Source, lmm: &Lmm<Cpu>, sae: &Sae<Cpu>) -> Result<(), EngineError> {
    let d_model = lmm.config.text_config.hidden_size;
    let sizes = [
        ("d_model of the model", d_model, source.d_model as usize),
        ("d_model of the SAE", sae.config.d_in, source.d_model as usize),
        ("latents", sae.latents(), source.latents as usize),
        ("k", sae.config.k, source.k as usize),
    ];
    for (what, found, expected) in sizes {
        if found != expected {
            let reason = format!("{what} is {found}, but source.json says {expected}");
            return Err(EngineError::Mismatch { path: folder.to_owned(), reason });
        }
    }
    let blocks = lmm.config.text_config.num_hidden_layers;
    if source.layer as usize >= blocks {
        return Err(model::Error::UnknownLayer { layer: source.layer as usize, blocks }.into());
    }
    Ok(())
}

fn edits(request: &SteerRequest) -> Vec<Edit> {
    let op = |strength: f32| match request.steer_method {
        SteerMethod::Clamp => EditOp::Clamp(strength),
        SteerMethod::SimpleAdditive => EditOp::Add(strength),
        SteerMethod::Ablate => EditOp::Ablate,
    };
    let edit = |feature: &api::SteerFeature| Edit { feature: feature.index as usize, op: op(feature.strength) };
    request.features.iter().map(edit).collect()
}

fn text_token(token: &GeneratedToken) -> TextToken {
    TextToken { text: token.text.clone(), id: token.id, logprob: token.logprob }
}

fn steered_text(generation: Generation) -> SteeredText {
    SteeredText { text: generation.text, tokens: generation.tokens.iter().map(text_token).collect() }
}
