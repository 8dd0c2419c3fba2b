//! What is asked without pictures, against a real server with a real model: llama.cpp and SmolLM2, of 135 million
//! parameters. It follows schemas, since the server makes it; that what it says is any good is not tested.
#![allow(clippy::unwrap_used, clippy::expect_used)] // tests panic on purpose

use api::{Activation, ActivationImage, Category, Explanation, Feature, FeatureSummary, JobKind};
use image::{DynamicImage, ImageFormat, RgbImage};
use pipeline::{
    interpret::{Engine, InterpretError, Interpreter, OpenAi, OpenAiConfig, Task},
    score::{
        Subject,
        judge::Judge,
        steering::{PendingTexts, QUESTIONS, Steered, Steerer, Steering},
    },
};
use std::{
    io::{BufRead, BufReader, Cursor},
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};
use store::jobs::Outcome;

const PROGRAM: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/real_llm/serve.py");

/// A server of its own; it ends with this value.
struct Server {
    child: Child,
    config: OpenAiConfig,
}

impl Server {
    fn start() -> Self {
        // Beside Cargo's folder for tests, where `cargo xtask setup` puts it.
        let place = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("llm-venv");
        let python = place.join(if cfg!(windows) { "Scripts/python.exe" } else { "bin/python" });
        let mut command = Command::new(&python);
        command.arg(PROGRAM).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap_or_else(|error| {
            panic!("{}: {error}; `cargo xtask setup` makes it", python.display());
        });
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let (url, model) = line.trim().split_once(' ').expect("the server started");
        let config = OpenAiConfig {
            url: url.into(),
            model: model.into(),
            key: None,
            engine: Engine::Other,
            pictures: 5,
            timeout: Duration::from_secs(120),
        };
        Self { child, config }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already; either way it is gone afterwards.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn said(description: &str) -> Explanation {
    Explanation { description: description.into(), ..Explanation::default() }
}

#[tokio::test]
async fn a_real_model_shortens_and_files() {
    let server = Server::start();
    let interpreter = OpenAi::new(server.config.clone()).unwrap();
    for description in ["a cat that sits on a table", "Red brick walls of houses."] {
        let task = |kind| Task { kind, said: Some(said(description)), ..Task::default() };
        let refined = interpreter.interpret(&task(JobKind::Refine)).await.unwrap();
        let Outcome::Refined { label } = &refined.outcome else { panic!("{refined:?}") };
        let known = description.to_lowercase();
        assert!(label.to_lowercase().split(' ').any(|word| known.contains(word)), "{description}: {label}");
        assert!(refined.usage.input_tokens > 100, "the instructions alone have more: {:?}", refined.usage);
        assert!(refined.usage.output_tokens > 3, "{:?}", refined.usage);
        let filed = interpreter.interpret(&task(JobKind::Categorise)).await.unwrap();
        let Outcome::Categorised { category } = filed.outcome else { panic!("{filed:?}") };
        assert!(Category::ALL.contains(&category));
    }
}

/// Says the same whatever is asked.
struct Speaker;

impl Steerer for Speaker {
    fn settings(&self) -> String {
        "a speaker".into()
    }

    fn steer<'a>(&'a self, feature: u32, _: f32, _: &'a str) -> PendingTexts<'a> {
        let steered = if feature == 3 { "I see nothing but \"cats\",\nall day." } else { "The moon is bright." };
        let [original, reconstructed] = ["A room.", "A room with a wall."].map(str::to_owned);
        Box::pin(async move { Ok(Steered { original, reconstructed, steered: steered.into() }) })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_model_judges_texts() {
    let server = Server::start();
    let judge = Arc::new(Judge::new(&server.config).unwrap().with_tries(1));
    let summary = |index| FeatureSummary { index, max_act_approx: 2.0, ..FeatureSummary::default() };
    let peers = Arc::new([3, 8].map(summary).into_iter().collect());
    let steering = Steering::new(judge.clone(), Arc::new(Speaker), peers);
    let feature = Feature { index: 3, max_act_approx: 2.0, ..Feature::default() };
    let subject = Subject { feature, explanation: said("cats"), shown: Vec::new(), random: Vec::new(), seed: 0 };
    let verdicts = steering.verdicts(&subject).await.unwrap().unwrap();
    let all = verdicts.own.iter().chain(&verdicts.random);
    assert!(all.clone().all(|verdict| (1..=10).contains(&verdict.score)), "{verdicts:?}");
    assert_eq!(all.count(), 2 * QUESTIONS.len());
    assert!(judge.usage().input_tokens > 1_000, "{:?}", judge.usage());
}

/// The server has no eyes, and says so; it does so with status 500, after which a request may be tried again.
#[tokio::test]
async fn a_model_without_eyes_is_named_as_the_reason() {
    let server = Server::start();
    let interpreter = OpenAi::new(server.config.clone()).unwrap();
    let mut picture = Cursor::new(Vec::new());
    DynamicImage::ImageRgb8(RgbImage::new(32, 32)).write_to(&mut picture, ImageFormat::WebP).unwrap();
    let image = ActivationImage { grid: [2, 2], ..ActivationImage::default() };
    let example = Activation { image, ..Activation::default() };
    let (examples, pictures) = (vec![example], vec![picture.into_inner()]);
    let task = Task { kind: JobKind::Explain, examples, pictures, ..Task::default() };
    let error = interpreter.interpret(&task).await.unwrap_err();
    let (InterpretError::Again { reason, .. }
    | InterpretError::Never { reason, .. }
    | InterpretError::Away { reason, .. }) = &error
    else {
        panic!("{error}")
    };
    assert!(reason.contains("image input is not supported"), "{reason}");
}
