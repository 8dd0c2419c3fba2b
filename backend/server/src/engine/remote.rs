//! Engines in other processes: requests go to them in turn, and on to the next one when one is down or busy. Answers
//! come through as they arrive; a client that leaves here leaves there.

use super::{EngineError, Fit};
use crate::error::AppError;
use api::{EXTRACT_KINDS_HEADER, EngineInfo, Problem};
use axum::{
    body::Body,
    http::{HeaderName, StatusCode, header},
    response::Response,
};
use futures::future::join_all;
use reqwest::{Client, RequestBuilder};
use std::{
    io,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::Duration,
};

/// How long an engine may take to accept a connection.
const CONNECT_SECS: u64 = 3;
/// How long it may take to say what it holds.
const INFO_SECS: u64 = 5;
/// Headers of an engine's answer that come through.
const PASSED_ON: [HeaderName; 5] = [
    header::CONTENT_TYPE,
    header::CONTENT_LENGTH,
    header::CACHE_CONTROL,
    HeaderName::from_static(EXTRACT_KINDS_HEADER),
    HeaderName::from_static("x-accel-buffering"),
];

/// One engine.
#[derive(Debug)]
struct Remote {
    /// Without a slash at the end.
    url: String,
    /// It was reached and holds the right model; unset when it goes away, for it may come back as another.
    fits: AtomicBool,
}

/// Engines with the same model and SAE.
#[derive(Debug)]
pub struct RemoteEngines {
    client: Client,
    engines: Vec<Remote>,
    /// Counts requests, so that they go round.
    turn: AtomicUsize,
    fit: Fit,
}

impl RemoteEngines {
    /// Asks every engine what it holds. One that is down may come later, if another answers.
    ///
    /// # Errors
    /// When one holds another model or SAE than `fit` says, or when none answers.
    pub async fn connect(urls: &[String], fit: Fit) -> Result<Self, EngineError> {
        // Engines are neighbours: what a proxy for the internet would do to them is never meant.
        let client = Client::builder().no_proxy().connect_timeout(Duration::from_secs(CONNECT_SECS)).build();
        let client = client.map_err(|error| EngineError::NoneAnswers(error.to_string()))?;
        let engine = |url: &String| Remote { url: url.trim_end_matches('/').to_owned(), fits: AtomicBool::new(false) };
        let engines: Vec<Remote> = urls.iter().map(engine).collect();
        let remote = Self { client, engines, turn: AtomicUsize::new(0), fit };
        let mut down = Vec::new();
        for engine in &remote.engines {
            match remote.ask(engine).await {
                Ok(info) => {
                    let url = || engine.url.clone();
                    remote.fit.check(&info).map_err(|reason| EngineError::Unfit { url: url(), reason })?;
                    engine.fits.store(true, Ordering::Relaxed);
                    tracing::info!(url = engine.url, model = info.model, device = info.device, "engine found");
                }
                Err(reason) => {
                    tracing::warn!(url = engine.url, reason, "an engine is down; it is asked again later");
                    down.push(format!("{}: {reason}", engine.url));
                }
            }
        }
        if down.len() == remote.engines.len() {
            return Err(EngineError::NoneAnswers(down.join("; ")));
        }
        Ok(remote)
    }

    /// What the engines hold, with their room summed up; nothing if none answers.
    pub async fn info(&self) -> Option<EngineInfo> {
        let answers = join_all(self.engines.iter().map(|engine| self.ask(engine))).await;
        let fitting = answers.into_iter().flatten().filter(|info| self.fit.check(info).is_ok());
        fitting.reduce(|sum, info| EngineInfo {
            free: sum.free + info.free,
            running: sum.running + info.running,
            ..sum
        })
    }

    async fn ask(&self, engine: &Remote) -> Result<EngineInfo, String> {
        let request = self.client.get(format!("{}/api/v1/engine", engine.url)).timeout(Duration::from_secs(INFO_SECS));
        let answer = request.send().await.and_then(reqwest::Response::error_for_status);
        match answer {
            Ok(answer) => answer.json().await.map_err(|error| reason_of(&error)),
            Err(error) => Err(reason_of(&error)),
        }
    }

    /// Posts to the first engine that is up and has room, and gives its answer as it comes.
    ///
    /// # Errors
    /// "Busy" when none is; what the engine found wrong with the request.
    pub async fn post(
        &self,
        path: &str,
        fill: impl Fn(RequestBuilder) -> RequestBuilder,
    ) -> Result<Response, AppError> {
        let first = self.turn.fetch_add(1, Ordering::Relaxed);
        for next in 0..self.engines.len() {
            let engine = &self.engines[(first.wrapping_add(next)) % self.engines.len()];
            let request = fill(self.client.post(format!("{}{path}", engine.url)));
            match self.try_post(engine, request).await {
                Ok(answer) if answer.status() == StatusCode::SERVICE_UNAVAILABLE => {
                    tracing::debug!(url = engine.url, "engine is busy");
                }
                Ok(answer) => return pass_on(&engine.url, answer).await,
                Err(reason) => tracing::warn!(url = engine.url, reason, "engine left out"),
            }
        }
        Err(AppError::no_engine())
    }

    async fn try_post(&self, engine: &Remote, request: RequestBuilder) -> Result<reqwest::Response, String> {
        if !engine.fits.load(Ordering::Relaxed) {
            self.fit.check(&self.ask(engine).await?)?;
            engine.fits.store(true, Ordering::Relaxed);
        }
        request.send().await.map_err(|error| {
            engine.fits.store(false, Ordering::Relaxed);
            reason_of(&error)
        })
    }
}

/// The answer, its body still on the way; a problem becomes one of this server.
async fn pass_on(url: &str, answer: reqwest::Response) -> Result<Response, AppError> {
    let status = answer.status();
    if !status.is_success() {
        let problem: Option<Problem> = answer.json().await.ok();
        return Err(match problem {
            Some(problem) if status.is_client_error() => AppError::from_problem(status, problem),
            problem => {
                let detail =
                    problem.map_or_else(String::new, |problem| format!(" (its request {})", problem.request_id));
                AppError::internal(io::Error::other(format!("the engine {url} answered {status}{detail}")))
            }
        });
    }
    let headers = answer.headers().clone();
    let mut response = Response::new(Body::from_stream(answer.bytes_stream()));
    *response.status_mut() = status;
    for name in PASSED_ON {
        if let Some(value) = headers.get(&name) {
            response.headers_mut().insert(name, value.clone());
        }
    }
    Ok(response)
}

/// The innermost cause: "connection refused" rather than "error sending request".
pub(super) fn reason_of(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}
