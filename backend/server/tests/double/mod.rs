//! A server that speaks the OpenAI protocol strictly: what vLLM would refuse, it refuses.

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::post,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use image::ImageFormat;
use pipeline::interpret::{Engine, OpenAiConfig};
use serde_json::{Value, json};
use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

pub const MODEL: &str = "some/vision-model";
pub const MOST_PICTURES: usize = 5;
const KEY: &str = "secret";

/// What the server says next instead of a good answer.
#[derive(Debug, Clone, Copy)]
pub enum Mood {
    Says(&'static str),
    Refuses(u16),
}

/// What is said to a request that is in order.
type Answers = Arc<dyn Fn(&Value) -> String + Send + Sync>;

#[derive(Clone)]
pub struct Double {
    pub moods: Arc<Mutex<VecDeque<Mood>>>,
    /// Bodies of all requests that were in order.
    pub seen: Arc<Mutex<Vec<Value>>>,
    pub engine_is_sglang: bool,
    /// What a client that is refused is told to wait.
    pub retry_after_secs: u64,
    pub answers: Answers,
}

impl Double {
    /// `answers` gets the request's body.
    pub fn new(answers: impl Fn(&Value) -> String + Send + Sync + 'static) -> Self {
        Self {
            moods: Arc::default(),
            seen: Arc::default(),
            engine_is_sglang: false,
            retry_after_secs: 7,
            answers: Arc::new(answers),
        }
    }

    /// Listens; gives its address.
    pub async fn serve(&self) -> String {
        self.serve_at(SocketAddr::from(([127, 0, 0, 1], 0))).await
    }

    /// Listens there.
    pub async fn serve_at(&self, address: SocketAddr) -> String {
        let listener = tokio::net::TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let routes = Router::new().route("/v1/chat/completions", post(chat));
        let app = routes.layer(DefaultBodyLimit::max(16 << 20)).with_state(self.clone());
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        format!("http://{address}/v1")
    }
}

/// What the double takes, at its address.
pub fn config(url: String) -> OpenAiConfig {
    OpenAiConfig {
        url,
        model: MODEL.into(),
        key: Some(KEY.into()),
        engine: Engine::Vllm,
        pictures: MOST_PICTURES,
        timeout: Duration::from_secs(10),
    }
}

fn refuse(status: u16, why: &str) -> Response {
    let status = StatusCode::from_u16(status).unwrap();
    let body = json!({ "object": "error", "message": why, "type": "BadRequestError", "code": status.as_u16() });
    (status, Json(body)).into_response()
}

async fn chat(State(double): State<Double>, headers: HeaderMap, Json(body): Json<Value>) -> Response {
    if headers.get("authorization").is_none_or(|value| value != format!("Bearer {KEY}").as_str()) {
        return refuse(401, "Unauthorized");
    }
    if let Err(why) = check(&body, double.engine_is_sglang) {
        return refuse(400, &why);
    }
    if body["model"] != MODEL {
        return refuse(404, "The model does not exist.");
    }
    double.seen.lock().unwrap().push(body.clone());
    let mood = double.moods.lock().unwrap().pop_front();
    let text = match mood {
        Some(Mood::Refuses(status)) => {
            let wait = [("retry-after", double.retry_after_secs.to_string())];
            return (wait, refuse(status, "not now")).into_response();
        }
        Some(Mood::Says(text)) => text.to_owned(),
        None => (double.answers)(&body),
    };
    Json(json!({
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": MODEL,
        "choices": [{ "index": 0, "finish_reason": "stop", "message": { "role": "assistant", "content": text } }],
        "usage": { "prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110 },
    }))
    .into_response()
}

/// What is wrong with a request.
fn check(body: &Value, sglang: bool) -> Result<(), String> {
    let known = ["model", "messages", "temperature", "max_tokens", "response_format"];
    let fields = body.as_object().ok_or("not an object")?;
    if let Some(field) = fields.keys().find(|field| !known.contains(&field.as_str())) {
        return Err(format!("extra field {field}"));
    }
    if body["max_tokens"].as_u64().unwrap_or(0) == 0 || body["temperature"] != 0 {
        return Err("max_tokens or temperature".into());
    }
    if let Some(format) = fields.get("response_format") {
        let schema = &format["json_schema"]["schema"];
        let named = format["json_schema"]["name"].is_string();
        if format["type"] != "json_schema" || !named || schema["type"] != "object" || !schema["required"].is_array() {
            return Err("response_format".into());
        }
    }
    let messages = body["messages"].as_array().ok_or("messages")?;
    let roles: Vec<&str> = messages.iter().filter_map(|message| message["role"].as_str()).collect();
    if roles != ["system", "user"] || !messages[0]["content"].is_string() {
        return Err(format!("roles {roles:?}"));
    }
    let Some(parts) = messages[1]["content"].as_array() else {
        return if messages[1]["content"].is_string() { Ok(()) } else { Err("content".into()) };
    };
    let pictures: Vec<&Value> = parts.iter().filter(|part| part["type"] == "image_url").collect();
    if pictures.len() > MOST_PICTURES {
        return Err(format!("At most {MOST_PICTURES} image(s) may be provided in one request."));
    }
    for part in &pictures {
        let several = part.get("modalities").is_some_and(|modalities| modalities == "multi-images");
        if several != (sglang && pictures.len() > 1) {
            return Err("modalities".into());
        }
        let url = part["image_url"]["url"].as_str().ok_or("image_url")?;
        let base64 = url.strip_prefix("data:image/png;base64,").ok_or("not a PNG")?;
        let bytes = STANDARD.decode(base64).map_err(|error| error.to_string())?;
        image::load_from_memory_with_format(&bytes, ImageFormat::Png).map_err(|error| error.to_string())?;
    }
    let mut others = parts.iter().filter(|part| part["type"] != "image_url");
    if others.all(|part| part["text"].is_string()) { Ok(()) } else { Err("a part that is neither".into()) }
}
