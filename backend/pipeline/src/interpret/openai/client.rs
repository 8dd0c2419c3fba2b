//! One request to `/chat/completions`.

use super::{Engine, InterpretError, OpenAiConfig};
use reqwest::{StatusCode, Url, header::RETRY_AFTER};
use serde::Deserialize;
use serde_json::Value;
use std::{path::PathBuf, time::Duration};
use store::jobs::Usage;

/// So much of a refusal is kept.
const SHOWN: usize = 300;

pub(crate) struct Client {
    http: reqwest::Client,
    url: Url,
    key: Option<String>,
    model: String,
    engine: Engine,
}

/// What the model said.
#[derive(Debug)]
pub(super) struct Reply {
    pub text: String,
    pub usage: Usage,
}

/// Why it said nothing.
#[derive(Debug)]
pub(super) enum Failure {
    /// The server is not there, or asks for patience.
    Away { reason: String, after: Duration },
    /// The server is broken, or the connection broke.
    Again { reason: String, after: Duration },
    /// The server does not take this request.
    Refused { reason: String },
    /// It takes none of ours.
    Never { reason: String },
}

#[derive(Deserialize)]
struct Completion {
    choices: Vec<Choice>,
    #[serde(default)]
    usage: Option<Tokens>,
}

#[derive(Deserialize)]
struct Choice {
    message: Message,
}

#[derive(Deserialize)]
struct Message {
    content: Option<String>,
}

#[derive(Deserialize)]
struct Tokens {
    #[serde(default)]
    prompt_tokens: u64,
    #[serde(default)]
    completion_tokens: u64,
}

impl Client {
    pub(crate) fn new(config: &OpenAiConfig) -> Result<Self, InterpretError> {
        let refused = |reason: String| InterpretError::Files { path: PathBuf::from(&config.url), reason };
        let base = config.url.trim_end_matches('/');
        let url = Url::parse(&format!("{base}/chat/completions")).map_err(|error| refused(error.to_string()))?;
        if !["http", "https"].contains(&url.scheme()) || !url.has_host() {
            return Err(refused("expected the address of a server such as http://127.0.0.1:8000/v1".into()));
        }
        let http = reqwest::Client::builder().timeout(config.timeout);
        // Without TLS the server is a neighbour, as engines are: a proxy for the internet is never meant.
        let http = if url.scheme() == "http" { http.no_proxy() } else { http };
        let http = http.build().map_err(|error| refused(error.to_string()))?;
        Ok(Self { http, url, key: config.key.clone(), model: config.model.clone(), engine: config.engine })
    }

    /// The model's name, as the server has it.
    pub(crate) fn model(&self) -> &str {
        &self.model
    }

    pub(super) fn engine(&self) -> Engine {
        self.engine
    }

    /// Whose limits hold: host and port.
    pub(crate) fn endpoint(&self) -> String {
        let host = self.url.host_str().unwrap_or_default();
        self.url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
    }

    pub(super) async fn chat(&self, body: &Value) -> Result<Reply, Failure> {
        let mut request = self.http.post(self.url.clone()).json(body);
        if let Some(key) = &self.key {
            request = request.bearer_auth(key);
        }
        let unreachable = |error: reqwest::Error| {
            let (reason, after) = (causes(&error), Duration::ZERO);
            if error.is_connect() { Failure::Away { reason, after } } else { Failure::Again { reason, after } }
        };
        let response = request.send().await.map_err(unreachable)?;
        let status = response.status();
        if !status.is_success() {
            let after = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
            let said: String = response.text().await.unwrap_or_default().chars().take(SHOWN).collect();
            return Err(refusal(status, &said, Duration::from_secs(after.unwrap_or_default())));
        }
        let text = response.text().await.map_err(unreachable)?;
        let completion: Completion = serde_json::from_str(&text)
            .map_err(|error| Failure::Never { reason: format!("the server's answer is no completion: {error}") })?;
        let usage = completion.usage.map_or_else(Usage::default, |tokens| Usage {
            input_tokens: tokens.prompt_tokens,
            output_tokens: tokens.completion_tokens,
        });
        let text = completion.choices.into_iter().next().and_then(|choice| choice.message.content);
        Ok(Reply { text: text.unwrap_or_default(), usage })
    }
}

fn refusal(status: StatusCode, said: &str, after: Duration) -> Failure {
    let reason = format!("the server answered {status}: {}", said.trim());
    match status.as_u16() {
        429 | 503 => Failure::Away { reason, after },
        408 | 425 | 500..=599 => Failure::Again { reason, after },
        400 | 422 => Failure::Refused { reason },
        _ => Failure::Never { reason },
    }
}

/// An error with what it came from.
fn causes(error: &dyn std::error::Error) -> String {
    let mut said = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        said += &format!(": {cause}");
        source = cause.source();
    }
    said
}

impl Failure {
    /// `usage`: what earlier requests of the same try took.
    pub(super) fn into_error(self, usage: Usage) -> InterpretError {
        match self {
            Self::Away { reason, after } => InterpretError::Away { reason, after, usage },
            Self::Again { reason, after } => InterpretError::Again { reason, after, usage },
            Self::Refused { reason } | Self::Never { reason } => InterpretError::Never { reason, usage },
        }
    }
}
