//! The model under study, for scores by steering: questions about a plain white picture (paper, section 4.3), put to
//! engines at other addresses.

use super::{
    EngineError, Fit,
    remote::{RemoteEngines, reason_of},
};
use crate::error::AppError;
use api::{EngineInfo, Source, SteerEvent, SteerFeature, SteerRequest, SteerResult};
use axum::{body::to_bytes, http::StatusCode, response::Response};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use image::{ImageFormat, Rgb, RgbImage};
use pipeline::score::{
    ScoreError,
    steering::{PendingTexts, Steered, Steerer},
};
use std::{
    io::{self, Cursor},
    time::Duration,
};
use tokio::time::sleep;

/// Side of the white picture in pixels: nothing is to be seen in it, so what is said comes from elsewhere.
const SIDE: u32 = 336;
/// New tokens of each text.
const TOKENS: u32 = 64;
/// Requests for one answer, while all engines are busy.
const TRIES: u32 = 6;
/// Before the second try; twice as long before each further one.
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// Longest answer in bytes: some hundred times what the texts take.
const MAX_ANSWER: usize = 8 << 20;

/// Steers at `lmm-scope engine` or `serve`, over HTTP.
pub struct EngineSteerer {
    engines: RemoteEngines,
    /// The picture as a `data:` address.
    white: String,
    settings: String,
    /// For errors.
    who: String,
}

impl EngineSteerer {
    /// The SAE must be the one that the source's features were found with, if the source says which.
    ///
    /// # Errors
    /// When an engine holds another model or SAE than the source's, or when none answers.
    pub async fn connect(urls: &[String], source: &Source) -> Result<Self, EngineError> {
        let revision = source.provenance.sae_revision.clone();
        let fit = Fit { source: source.clone(), sae_revision: Some(revision).filter(|revision| !revision.is_empty()) };
        let engines = RemoteEngines::connect(urls, fit).await?;
        let gone = || EngineError::NoneAnswers(urls.join(", "));
        let EngineInfo { model, sae_revision, dtype, .. } = engines.info().await.ok_or_else(gone)?;
        let settings = format!(
            "{model} with SAE {sae_revision} in {dtype}, a white picture of {SIDE} pixels, {TOKENS} tokens, greedy, \
             clamped at all positions"
        );
        let mut png = Cursor::new(Vec::new());
        RgbImage::from_pixel(SIDE, SIDE, Rgb([255; 3]))
            .write_to(&mut png, ImageFormat::Png)
            .map_err(|error| EngineError::Io { path: "the white picture".into(), source: io::Error::other(error) })?;
        let white = format!("data:image/png;base64,{}", STANDARD.encode(png.into_inner()));
        Ok(Self { engines, white, settings, who: format!("the engine {}", urls.join(", ")) })
    }

    async fn texts(&self, feature: u32, strength: f32, prompt: &str) -> Result<Steered, ScoreError> {
        let request = SteerRequest {
            features: vec![SteerFeature { index: feature, strength }],
            prompt: prompt.to_owned(),
            image: Some(self.white.clone()),
            n_tokens: TOKENS,
            ..SteerRequest::default()
        };
        let failed = |reason: String| ScoreError::Service { who: self.who.clone(), reason };
        let answer = self.post(&request).await.map_err(|error| failed(error.reason()))?;
        let body = to_bytes(answer.into_body(), MAX_ANSWER).await.map_err(|error| failed(reason_of(&error)))?;
        let result = result_of(&String::from_utf8_lossy(&body)).map_err(failed)?;
        let SteerResult { default, reconstructed, steered, .. } = result;
        Ok(Steered { original: default.text, reconstructed: reconstructed.text, steered: steered.text })
    }

    /// The first answer that is not "busy".
    async fn post(&self, request: &SteerRequest) -> Result<Response, AppError> {
        let mut wait = FIRST_WAIT;
        for _ in 1..TRIES {
            match self.engines.post("/api/v1/steer", |post| post.json(request)).await {
                Err(error) if error.problem("").status == StatusCode::SERVICE_UNAVAILABLE.as_u16() => {
                    tracing::debug!(wait_secs = wait.as_secs(), "all engines are busy");
                    sleep(wait).await;
                    wait *= 2;
                }
                answer => return answer,
            }
        }
        self.engines.post("/api/v1/steer", |post| post.json(request)).await
    }
}

impl Steerer for EngineSteerer {
    fn settings(&self) -> String {
        self.settings.clone()
    }

    fn steer<'a>(&'a self, feature: u32, strength: f32, prompt: &'a str) -> PendingTexts<'a> {
        Box::pin(self.texts(feature, strength, prompt))
    }
}

/// The texts of a stream of events; what went wrong in one that has none.
fn result_of(stream: &str) -> Result<SteerResult, String> {
    for json in stream.lines().filter_map(|line| line.strip_prefix("data:")) {
        let event: SteerEvent = serde_json::from_str(json.trim_start())
            .map_err(|error| format!("an event of its answer cannot be read: {error}"))?;
        match event {
            SteerEvent::Done { result } => return Ok(result),
            SteerEvent::Failed { detail } => return Err(detail),
            SteerEvent::Token { .. } => {}
        }
    }
    Err("its answer ended before the texts did".to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // tests panic on purpose
    use super::*;
    use api::{Column, SteeredText, TextToken};

    fn stream(events: &[SteerEvent]) -> String {
        let event = |event: &SteerEvent| format!("event: steer\ndata: {}\n\n", serde_json::to_string(event).unwrap());
        format!(":\n\n{}", events.iter().map(event).collect::<String>())
    }

    #[test]
    fn the_last_event_counts() {
        let token = SteerEvent::Token { column: Column::Default, token: TextToken::default() };
        let steered = SteeredText { text: "data: a\ncat".into(), ..SteeredText::default() };
        let result = SteerResult { steered, ..SteerResult::default() };
        let done = SteerEvent::Done { result: result.clone() };
        assert_eq!(result_of(&stream(&[token.clone(), done])), Ok(result));
        let failed = SteerEvent::Failed { detail: "out of memory".into() };
        assert_eq!(result_of(&stream(&[token.clone(), failed])), Err("out of memory".into()));
        assert!(result_of(&stream(&[token])).unwrap_err().contains("ended before"));
        assert!(result_of("data: {\"type\":\"done\"}\n\n").unwrap_err().contains("cannot be read"));
    }
}
