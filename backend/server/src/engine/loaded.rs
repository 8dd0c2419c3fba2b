//! What the engine's thread does: the model's calls, in the wire's terms.

use super::{AttributeInput, EngineError, EngineSpec, ExtractInput, Hidden, Lenses, half_float};
use crate::picture::HeldPicture;
use crate::revision;
use api::{
    Alternative, AttributeResult, AttributedFeature, EngineInfo, ExtractDtype, Passes, Positions, Provenance,
    SteerMethod, SteerRequest, SteeredText, TextToken, TokenKind, TokenSpan, VerifiedFeature, VocabularyToken,
};
use burn::tensor::{Tensor, TensorData, backend::Backend};
use model::{
    Edit, EditOp, GenerateOptions, GeneratedToken, Generation, Intervention, Lmm, Prepared, PromptInput, Sae, Span,
    SpanKind,
    attribution::{AttributeOptions, attribute_unless},
    hook::Hook,
    lens::{embedding_lens, logit_lens},
    sae::Activation,
};
use sha2::{Digest, Sha256};
use std::{collections::BTreeSet, sync::Arc, time::Instant};

/// New tokens when the request does not say.
const NEW_TOKENS: u32 = 64;
/// Attributed features when the request does not say.
const TOP_FEATURES: u32 = 50;

/// Model and SAE in memory.
pub(super) struct LoadedModel<B: Backend> {
    pub(super) lmm: Lmm<B>,
    pub(super) sae: Arc<Sae<B>>,
    hook: Hook,
    /// What it is, but for how busy it is.
    pub(super) info: EngineInfo,
    /// Everything but the prompt's hash and the date.
    provenance: Provenance,
}

impl<B: Backend> LoadedModel<B> {
    pub(super) fn load(spec: &EngineSpec, device: &B::Device) -> Result<Self, EngineError> {
        let started = Instant::now();
        let hook = spec.hook;
        let lmm = Lmm::<B>::load_as(&spec.model, device, spec.dtype)?;
        lmm.check_hook(hook)?;
        let sae = Sae::<B>::load(&spec.sae, device)?;
        let (width, d_in) = (lmm.width_at(hook), sae.config.d_in);
        if width != d_in {
            let reason =
                format!("the SAE reads {d_in} values per token, but {hook} has {width}: another model or hook");
            return Err(EngineError::Mismatch { path: spec.sae.clone(), reason });
        }
        let info = EngineInfo {
            model: format!("{}@{}", spec.name, revision::of_files(&model::weights::checkpoint_files(&spec.model)?)?),
            sae_revision: revision::of_sae(&spec.sae)?,
            hook_point: hook.to_string(),
            d_model: width as u32,
            latents: sae.latents() as u32,
            k: sae.config.k as u32,
            device: spec.device.to_string(),
            dtype: spec.dtype.to_string(),
            ..EngineInfo::default()
        };
        let provenance = Provenance {
            model: info.model.clone(),
            sae_revision: info.sae_revision.clone(),
            dtype: info.dtype.clone(),
            ..Provenance::default()
        };
        let took_ms = started.elapsed().as_millis() as u64;
        let EngineInfo { model, sae_revision, device, dtype, .. } = &info;
        tracing::info!(model, sae = sae_revision, device, dtype, took_ms, "engine ready");
        Ok(Self { lmm, sae: Arc::new(sae), hook, info, provenance })
    }

    pub(super) fn provenance(&self, prepared: &Prepared) -> Provenance {
        let hash = revision::digits(&Sha256::digest(&prepared.rendered));
        let today = time::OffsetDateTime::now_utc().date().to_string();
        Provenance { prompt_hash: hash, date: today, ..self.provenance.clone() }
    }

    /// The prompt in the model's terms. The picture ends here, and gives its slot back.
    pub(super) fn prepare(
        &self,
        text: String,
        chat: bool,
        picture: Option<HeldPicture>,
    ) -> Result<Prepared, model::Error> {
        let (image, _slot) = picture.map(HeldPicture::into_parts).unzip();
        let input = PromptInput { text, chat, image };
        self.lmm.prepare(&input)
    }

    /// `gone`: nobody waits any more.
    pub(super) fn extract(&self, input: ExtractInput, gone: &dyn Fn() -> bool) -> Result<Hidden, EngineError> {
        let started = Instant::now();
        let hook = input.hook.unwrap_or(self.hook);
        self.lmm.check_hook(hook)?;
        if input.threshold.is_some() {
            self.check_threshold(hook)?;
        }
        // The paper's cache prompt is the picture alone, without the chat template.
        let alone = input.prompt.is_empty() && input.image.is_some();
        let text = if alone { "<image>".to_owned() } else { input.prompt };
        let prepared = self.prepare(text, !alone, input.image)?;
        let hidden = self.lmm.hidden_unless(&prepared, hook, gone)?;
        let [tokens, d_model] = hidden.dims();
        let lenses = match input.lens {
            0 => None,
            n => Some(self.lenses(&prepared, hook, hidden.clone(), n)?),
        };
        let values = model::weights::f32_from_tensor(hidden);
        let thresholds = input.threshold.map(|dtype| self.thresholds(&values, dtype));
        Ok(Hidden {
            values,
            tokens,
            d_model,
            hook,
            spans: self.wire_spans(&prepared),
            grid: prepared.grid.unwrap_or_default(),
            lenses,
            thresholds,
            provenance: self.provenance(&prepared),
            input_ids: prepared.input_ids,
            took: started.elapsed(),
        })
    }

    /// Thresholds are the SAE's: it must read this hook point, and have a k.
    fn check_threshold(&self, hook: Hook) -> Result<(), model::Error> {
        if hook != self.hook {
            let reason = format!("threshold: the SAE reads {}, not {hook}; leave out `hook` or `threshold`", self.hook);
            return Err(model::Error::BadInput(reason));
        }
        if self.sae.activation != Activation::TopK {
            let reason = "threshold: only a TopK SAE has one for each token; leave out `threshold`";
            return Err(model::Error::BadInput(reason.into()));
        }
        Ok(())
    }

    /// The k-th largest activation of each token, of the values as they are sent.
    fn thresholds(&self, values: &[f32], dtype: ExtractDtype) -> Vec<f32> {
        let sent = |value: &f32| match dtype {
            ExtractDtype::F16 => half_float(*value).to_f32(),
            ExtractDtype::F32 => *value,
        };
        let d = self.sae.config.d_in;
        let sent = TensorData::new(values.iter().map(sent).collect::<Vec<f32>>(), [values.len() / d, d]);
        let top = self.sae.encode(Tensor::from_data(sent, &self.lmm.device));
        // Rows fall, and are filled up with zeros.
        top.acts.chunks_exact(top.k).map(|row| row.last().copied().unwrap_or_default()).collect()
    }

    fn lenses(&self, prepared: &Prepared, hook: Hook, hidden: Tensor<B, 2>, n: usize) -> Result<Lenses, model::Error> {
        let logit = matches!(hook, Hook::Block(_)).then(|| logit_lens(&self.lmm, hidden, n)).transpose()?;
        let embedding = prepared.pixels.is_some().then(|| embedding_lens(&self.lmm, prepared, n)).transpose()?;
        let lenses = [&logit, &embedding].into_iter().flatten();
        let ids: BTreeSet<u32> = lenses.flat_map(|lens| lens.ids.iter().copied()).collect();
        let tokens = ids.into_iter().map(|id| (id, self.lmm.token_text(id))).collect();
        Ok(Lenses { logit, embedding, tokens })
    }

    fn wire_spans(&self, prepared: &Prepared) -> Vec<TokenSpan> {
        prepared.spans.iter().map(|span| self.wire_span(prepared, span)).collect()
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

    /// `gone`: nobody waits any more.
    pub(super) fn attribute(
        &self,
        input: AttributeInput,
        gone: &dyn Fn() -> bool,
    ) -> Result<AttributeResult, EngineError> {
        let AttributeInput { request, image } = input;
        let answer = self.vocabulary_token(request.answer_id, request.answer.as_deref())?;
        let baseline = self.vocabulary_token(request.baseline_id, request.baseline.as_deref())?;
        if answer.id == baseline.id {
            let detail = format!(
                "baseline: begins with the same token as the answer (`{}`, id {}); name one that differs from the \
                 first token on",
                answer.text, answer.id
            );
            return Err(model::Error::BadInput(detail).into());
        }
        let latents = self.sae.latents();
        if let Some(index) = request.map.map(|index| index as usize).filter(|index| *index >= latents) {
            return Err(model::Error::UnknownFeature { index, latents }.into());
        }
        let prepared = self.prepare(request.prompt, true, image)?;
        let options = AttributeOptions {
            hook: self.hook,
            answer: answer.id,
            baseline: baseline.id,
            keep_error: request.keep_error,
            verify: request.verify as usize,
        };
        let found = attribute_unless(&self.lmm, &prepared, &self.sae, &options, gone)?;
        let top = if request.top == 0 { TOP_FEATURES } else { request.top };
        let top = found.strongest(top as usize).into_iter().map(|index| {
            let at = index as usize;
            AttributedFeature { index, attribution: found.total[at], image: found.image[at], text: found.text[at] }
        });
        let verified = found.verified.iter().map(|one| VerifiedFeature {
            index: one.feature,
            attribution: one.attribution,
            measured: one.measured,
        });
        Ok(AttributeResult {
            answer,
            baseline,
            logit_difference: found.logit_difference,
            logit_difference_original: found.logit_difference_original,
            top: top.collect(),
            map: request.map.map(|feature| found.map(feature, prepared.input_ids.len())),
            verified: verified.collect(),
            correlation: found.correlation.filter(|correlation| correlation.is_finite()),
            passes: Passes { forward: found.forward_passes as u32, backward: found.backward_passes as u32 },
            spans: self.wire_spans(&prepared),
            grid: prepared.grid.unwrap_or_default().map(|side| side as u32),
            provenance: self.provenance(&prepared),
        })
    }

    /// The token that a request names by id or by text.
    fn vocabulary_token(&self, id: Option<u32>, text: Option<&str>) -> Result<VocabularyToken, model::Error> {
        let id = match id {
            Some(id) => id,
            None => self.lmm.first_token(text.unwrap_or_default())?,
        };
        Ok(VocabularyToken { id, text: self.lmm.token_text(id) })
    }

    /// The three texts of a steer request: the model as it is, through the SAE, and with the features changed.
    pub(super) fn variants(&self, request: &SteerRequest) -> [Option<Arc<Intervention<B>>>; 3] {
        let intervention = |edits, positions| {
            let (sae, keep_error) = (Arc::clone(&self.sae), request.keep_error);
            Some(Arc::new(Intervention { hook: self.hook, sae, edits, positions, keep_error }))
        };
        let reconstructed = intervention(Vec::new(), model::Positions::All);
        [None, reconstructed, intervention(edits(request), positions(request))]
    }

    pub(super) fn text_token(&self, token: &GeneratedToken) -> TextToken {
        let alternatives = token.alternatives.iter().map(|&(id, logprob)| {
            let text = self.lmm.token_text(id);
            Alternative { text, id, logprob }
        });
        let alternatives = alternatives.collect();
        TextToken { text: token.text.clone(), id: token.id, logprob: token.logprob, alternatives }
    }

    pub(super) fn steered_text(&self, generation: &Generation) -> SteeredText {
        let tokens = generation.tokens.iter().map(|token| self.text_token(token)).collect();
        SteeredText { text: generation.text.clone(), tokens }
    }
}

pub(super) fn generate_options(request: &SteerRequest) -> GenerateOptions {
    GenerateOptions {
        max_new_tokens: if request.n_tokens == 0 { NEW_TOKENS } else { request.n_tokens } as usize,
        temperature: request.temperature,
        top_p: request.top_p.unwrap_or(1.0),
        seed: request.seed,
        top_alternatives: request.top_alternatives as usize,
    }
}

fn positions(request: &SteerRequest) -> model::Positions {
    if let Some(named) = &request.token_positions {
        return model::Positions::Tokens(named.iter().map(|position| *position as usize).collect());
    }
    match request.positions {
        Positions::All => model::Positions::All,
        Positions::Prefill => model::Positions::Prefill,
        Positions::Image => model::Positions::Image,
        Positions::Text => model::Positions::Text,
        Positions::Generated => model::Positions::Generated,
    }
}

fn edits(request: &SteerRequest) -> Vec<Edit> {
    let op = |strength: f32| match request.steer_method {
        SteerMethod::Clamp => EditOp::Clamp(strength),
        SteerMethod::SimpleAdditive => EditOp::Add(strength),
        SteerMethod::Orthogonal => EditOp::Orthogonal(strength),
        SteerMethod::Ablate => EditOp::Ablate,
    };
    let edit = |feature: &api::SteerFeature| Edit { feature: feature.index as usize, op: op(feature.strength) };
    request.features.iter().map(edit).collect()
}
