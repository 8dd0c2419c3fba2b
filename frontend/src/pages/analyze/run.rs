//! One analysis: hidden states from the server, features from the GPU worker, labels from the server.

use super::{
    State,
    result::{AHEAD, ROWS},
};
use crate::by_index::ByIndex;
use crate::{
    api::{Answer, SourceKey, client, endpoint, local_problem},
    components::ProblemView,
    gpu,
    http::{self, CANCELLED, OwnFile, PictureInput},
    links::api_path,
    ranking::TopActs,
};
use api::{
    ErrorCode, FeatureQuery, Problem, Tier, TokenKind, TokenSpan,
    gpu::{Compute, ComputePath, Fault},
};
use leptos::{prelude::*, task::spawn_local};
use std::{cell::RefCell, sync::Arc};
use web_sys::{AbortController, File, Url};

/// Features per request for labels.
const BATCH: usize = 96;

/// A picture from the visitor's disk or clipboard.
#[derive(Debug, Clone, PartialEq)]
pub struct OwnPicture {
    pub file: OwnFile,
    /// `blob:` address, for showing it.
    pub url: String,
    pub name: String,
}

impl OwnPicture {
    pub fn new(file: File) -> Option<Self> {
        let url = Url::create_object_url_with_blob(&file).ok()?;
        Some(Self { url, name: file.name(), file: OwnFile::new(file) })
    }

    /// Frees what the browser holds for showing it.
    pub fn release(&self) {
        // Only an address that never existed could fail.
        _ = Url::revoke_object_url(&self.url);
    }
}

/// Where an analysis is.
#[derive(Debug, Clone, PartialEq)]
pub enum Stage {
    Idle,
    /// The server computes hidden states.
    Extracting,
    /// The SAE's weights arrive.
    Loading,
    /// The GPU encodes.
    Encoding,
    Done,
    Failed(Problem),
}

impl Stage {
    pub fn is_working(&self) -> bool {
        matches!(self, Self::Extracting | Self::Loading | Self::Encoding)
    }

    pub fn problem(&self) -> Option<impl IntoView + use<>> {
        match self {
            Self::Failed(problem) => Some(view! { <ProblemView problem=problem.clone() /> }),
            _ => None,
        }
    }
}

/// A finished analysis.
#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    pub acts: TopActs,
    pub grid: [u32; 2],
    /// Positions of the base picture's patches, row-major.
    pub base: Vec<u32>,
    /// Positions and strings of the text tokens.
    pub text: Vec<(u32, String)>,
    /// Where it was computed.
    pub computed: ComputePath,
    /// The GPU there is software.
    software: bool,
    /// Bytes of the decoder, if it can be had there.
    pub decoder: Option<u64>,
    /// What computed it.
    pub path: String,
    /// Why that, and where the autoencoder came from.
    pub why: String,
    /// What went wrong on the way and was repaired.
    pub notice: Option<String>,
    pub provenance: String,
}

impl Run {
    fn new(header: crate::safetensors::ExtractHeader, encoded: gpu::Encoded, engine: &str) -> Self {
        let path = gpu::path_line(&encoded.loaded, encoded.ms);
        let server = engine_line(engine);
        Self {
            acts: encoded.acts,
            computed: encoded.loaded.path,
            software: encoded.loaded.software,
            decoder: encoded.loaded.decoder,
            grid: header.grid,
            base: positions(&header.spans, TokenKind::Base),
            text: text_tokens(&header.spans),
            path: if server.is_empty() { path } else { format!("{path} · {server}") },
            why: gpu::why_line(&encoded.loaded),
            notice: encoded.notice,
            provenance: header.provenance,
        }
    }

    /// Whether light may be drawn on a canvas by the device that computed. Chromium without a GPU loses the device, and
    /// all its work, over a canvas (seen in 156, unless its own drawing is by Vulkan, too): there it has to be `forced`.
    pub fn draws(&self, forced: bool) -> bool {
        self.computed == ComputePath::WebGpu && (forced || !self.software)
    }
}

/// `cpu;ms=41` as words: `hidden states: server's CPU, 41 ms`.
fn engine_line(engine: &str) -> String {
    let mut parts = engine.split(';').map(str::trim);
    let device = parts.next().unwrap_or_default();
    if device.is_empty() {
        return String::new();
    }
    let ms = parts.find_map(|part| part.strip_prefix("ms="));
    let time = ms.map(|ms| format!(", {ms} ms")).unwrap_or_default();
    format!("hidden states: server's {}{time}", device.to_ascii_uppercase())
}

fn positions(spans: &[TokenSpan], kind: TokenKind) -> Vec<u32> {
    spans.iter().filter(|span| span.kind == kind).flat_map(|span| span.start..span.end).collect()
}

fn text_tokens(spans: &[TokenSpan]) -> Vec<(u32, String)> {
    spans
        .iter()
        .filter(|span| span.kind == TokenKind::Text)
        .flat_map(|span| (span.start..span.end).zip(span.tokens.iter().cloned()))
        .collect()
}

thread_local! {
    /// The request that a newer one, or the visitor, cancels.
    static CONTROLLER: RefCell<Option<AbortController>> = const { RefCell::new(None) };
}

/// Cancels the analysis in progress.
pub fn cancel() {
    if let Some(controller) = CONTROLLER.take() {
        controller.abort();
    }
}

/// Starts an analysis whenever the picture, the prompt or the path changes, or another try is wanted; labels follow.
pub fn follow(state: State) {
    let wanted = Memo::new(move |_| {
        let address = state.address.get();
        let input = match state.own.get() {
            Some(own) => Some(PictureInput::Own(own.file)),
            None => address.picture.map(PictureInput::Demo),
        };
        let how = How { compute: address.compute, tier: address.tier, faults: address.faults.clone() };
        (state.key.get(), input, address.prompt, how, state.attempt.get())
    });
    Effect::new(move |_| {
        let (key, input, prompt, how, _) = wanted.get();
        cancel();
        gpu::cancel(true);
        state.run.set(None);
        state.hovered.set(None);
        let Some(input) = input else {
            state.stage.set(Stage::Idle);
            return;
        };
        let controller = AbortController::new().ok();
        CONTROLLER.set(controller.clone());
        state.stage.set(Stage::Extracting);
        spawn_local(async move {
            let outcome = analyze(state, &key, &input, &prompt, how, controller.as_ref()).await;
            // A newer analysis owns the page now.
            if controller.is_some_and(|controller| controller.signal().aborted()) {
                let is_newest = CONTROLLER.with_borrow(Option::is_none);
                if is_newest {
                    state.stage.set(Stage::Idle);
                }
                return;
            }
            match outcome {
                Ok(run) => {
                    state.run.set(Some(Arc::new(run)));
                    state.stage.set(Stage::Done);
                }
                Err(problem) if problem.title == CANCELLED => state.stage.set(Stage::Idle),
                Err(problem) => state.stage.set(Stage::Failed(problem)),
            }
        });
    });
    on_cleanup(cancel);
    super::result::follow_ranking(state);
    follow_labels(state);
}

/// Where and with what the features are computed.
#[derive(Debug, Clone, PartialEq, Eq)]
struct How {
    compute: Compute,
    tier: Option<Tier>,
    faults: Vec<Fault>,
}

async fn analyze(
    state: State,
    key: &SourceKey,
    input: &PictureInput,
    prompt: &str,
    how: How,
    controller: Option<&AbortController>,
) -> Answer<Run> {
    let How { compute, tier, faults } = how;
    let wanted = gpu::Wanted { base_url: api_path(key, "/weights/"), tier, compute };
    if compute != Compute::Server {
        // The weights travel while the server computes; both loads are the same one.
        let early = wanted.clone();
        spawn_local(async move { drop(gpu::load(&early).await) });
    }
    let signal = controller.map(AbortController::signal);
    let is_stale = || signal.as_ref().is_some_and(web_sys::AbortSignal::aborted);

    let thresholds = tier == Some(Tier::Slice);
    let extracted = http::extract(key, input, prompt, thresholds, signal.as_ref()).await?;
    let encode_there = async |reason: &str| {
        let encoded = http::encode_hidden(key, &extracted.header, &extracted.hidden, reason, signal.as_ref()).await?;
        Ok(Run::new(extracted.header.clone(), encoded, &extracted.engine))
    };
    if compute == Compute::Server {
        return encode_there("as asked for in the address").await;
    }
    if !is_stale() {
        state.stage.set(Stage::Loading);
    }
    let loaded = match gpu::load(&wanted).await {
        Ok(loaded) => loaded,
        // Neither GPU nor CPU can hold it: the server is the last resort.
        Err(detail) if compute == Compute::Auto && !is_stale() => return encode_there(&detail).await,
        Err(detail) => return Err(gpu_problem(detail)),
    };
    if loaded.d_model != extracted.header.d_model {
        return Err(gpu_problem(format!(
            "the hidden states are {} wide, the autoencoder expects {}",
            extracted.header.d_model, loaded.d_model
        )));
    }
    if !is_stale() {
        state.stage.set(Stage::Encoding);
    }
    let encoded = gpu::encode(extracted.hidden, extracted.thresholds, extracted.header.tokens, &faults).await;
    Ok(Run::new(extracted.header, encoded.map_err(gpu_problem)?, &extracted.engine))
}

fn gpu_problem(detail: String) -> Problem {
    let help = "Reload the page, or add compute=cpu or compute=server to its address to compute elsewhere.";
    local_problem(ErrorCode::Internal, "The features could not be computed", format!("{detail}. {help}"))
}

/// Fetches the labels of the strongest features ahead, of the kept feature, of every row that is shown without one, and
/// of what else is named on the page.
fn follow_labels(state: State) {
    let client = client();
    let asked = StoredValue::new(ByIndex::<()>::new());
    Effect::new(move |previous: Option<SourceKey>| {
        let key = state.key.get();
        if previous.is_some_and(|previous| previous != key) {
            asked.update_value(ByIndex::clear);
            state.summaries.set(Default::default());
        }
        key
    });
    Effect::new(move |_| {
        let shown = if asked.with_value(ByIndex::is_empty) { AHEAD } else { ROWS };
        let mut wanted = state.ranking.with(|rows| rows.iter().take(shown).map(|row| row.feature).collect::<Vec<_>>());
        if wanted.is_empty() {
            return;
        }
        wanted.extend(state.named.get());
        wanted.extend(state.address.get().feature);
        wanted.retain(|feature| asked.try_update_value(|asked| asked.insert(*feature, ())).unwrap_or(false));
        for batch in wanted.chunks(BATCH) {
            let ids = batch.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
            let query = FeatureQuery { ids, per_page: batch.len() as u32, ..FeatureQuery::default() };
            let (client, key, batch) = (client.clone(), state.key.get_untracked(), batch.to_vec());
            spawn_local(async move {
                match client.ask(endpoint::features(key, query)).await {
                    Ok(list) => state.summaries.update(|summaries| {
                        summaries.extend(list.features.into_iter().map(|feature| (feature.index, feature)));
                    }),
                    // Rows stay with their numbers; the next ranking asks again.
                    Err(_) => asked.update_value(|asked| batch.iter().for_each(|feature| _ = asked.remove(*feature))),
                }
            });
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_become_positions_and_tokens() {
        let span = |kind, start, end, tokens: &[&str]| TokenSpan {
            kind,
            start,
            end,
            tokens: tokens.iter().map(|token| (*token).to_owned()).collect(),
        };
        let spans = [
            span(TokenKind::Text, 0, 1, &["<s>"]),
            span(TokenKind::Base, 1, 5, &[]),
            span(TokenKind::Newline, 5, 6, &[]),
            span(TokenKind::Text, 6, 8, &["What", "?"]),
        ];
        assert_eq!(positions(&spans, TokenKind::Base), [1, 2, 3, 4]);
        assert_eq!(text_tokens(&spans), [(0, "<s>".to_owned()), (6, "What".to_owned()), (7, "?".to_owned())]);
    }

    #[test]
    fn the_engine_header_becomes_words() {
        assert_eq!(engine_line("cpu;ms=41"), "hidden states: server's CPU, 41 ms");
        assert_eq!(engine_line("cuda"), "hidden states: server's CUDA");
        assert_eq!(engine_line(""), "");
    }
}
