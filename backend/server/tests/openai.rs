//! The larger model's interpreter against a server that speaks the protocol strictly: what vLLM would refuse, it
//! refuses.
#![allow(clippy::unwrap_used, clippy::expect_used)] // tests panic on purpose

mod double;

use api::{Activation, ActivationImage, Category, Explanation, JobKind, JobState};
use double::{Double, MODEL, Mood, config};
use image::{DynamicImage, ImageFormat, Rgb, RgbImage};
use pipeline::interpret::{Engine, InterpretError, Interpreter, OpenAi, OpenAiConfig, Task, Worker};
use std::{io::Cursor, sync::Arc, time::Duration};
use store::{
    Store,
    jobs::{BULK, Outcome, Queue, Usage},
    testing::{Artifacts, small_source},
};
use tokio::sync::watch;

/// A model that does every step well.
fn helpful() -> Double {
    Double::new(|body| {
        let answer = match body["messages"][0]["content"].as_str().unwrap() {
            prompt if prompt.contains("\"explanation\"") => "{\"explanation\": \"a cat that sits on a table\"}",
            prompt if prompt.contains("\"label\"") => "{\"label\": \"sitting cat\"}",
            prompt if prompt.contains("\"consistent\"") => "{\"consistent\": 1}",
            _ => "{\"category\": \"object\"}",
        };
        answer.to_owned()
    })
}

async fn interpreter(double: &Double) -> OpenAi {
    OpenAi::new(config(double.serve().await)).unwrap()
}

fn webp() -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    let picture = RgbImage::from_fn(32, 32, |x, y| Rgb([x as u8 * 8, y as u8 * 8, 90]));
    DynamicImage::ImageRgb8(picture).write_to(&mut bytes, ImageFormat::WebP).unwrap();
    bytes.into_inner()
}

fn task(kind: JobKind) -> Task {
    let example = Activation {
        image: ActivationImage { grid: [2, 2], ..ActivationImage::default() },
        feature_acts_indices: vec![0, 3],
        feature_acts_values: vec![4.0, 0.5],
        max_value: 4.0,
        ..Activation::default()
    };
    let said = Explanation { description: "a cat that sits on a table".into(), ..Explanation::default() };
    Task { kind, examples: vec![example; 3], pictures: vec![webp(); 3], said: Some(said), ..Task::default() }
}

#[tokio::test]
async fn every_step_is_asked_strictly_and_read() {
    let double = helpful();
    let interpreter = interpreter(&double).await;
    let usage = Usage { input_tokens: 100, output_tokens: 10 };
    let answer = interpreter.interpret(&task(JobKind::Explain)).await.unwrap();
    let Outcome::Explained { description, author, .. } = &answer.outcome else { panic!("{answer:?}") };
    assert_eq!((description.as_str(), author.as_str()), ("a cat that sits on a table", MODEL));
    assert_eq!(answer.usage, usage);
    let refined = interpreter.interpret(&task(JobKind::Refine)).await.unwrap().outcome;
    assert_eq!(refined, Outcome::Refined { label: "sitting cat".into() });
    let filed = interpreter.interpret(&task(JobKind::Categorise)).await.unwrap().outcome;
    assert_eq!(filed, Outcome::Categorised { category: Category::Object });
    let seen = double.seen.lock().unwrap().clone();
    assert!(seen.iter().all(|body| body["response_format"].is_object()), "asked without a schema first");
    assert_eq!(seen[0]["messages"][1]["content"].as_array().unwrap().len(), 4, "a line and three pictures");
    assert_eq!(seen[1]["messages"][1]["content"], "a cat that sits on a table");
}

#[tokio::test]
async fn sglang_is_told_of_several_pictures() {
    let url = Double { engine_is_sglang: true, ..helpful() }.serve().await;
    let sglang = OpenAi::new(OpenAiConfig { engine: Engine::Sglang, ..config(url.clone()) }).unwrap();
    sglang.interpret(&task(JobKind::Explain)).await.unwrap();
    let wrong = OpenAi::new(config(url)).unwrap();
    assert!(wrong.interpret(&task(JobKind::Explain)).await.is_err());
}

#[tokio::test]
async fn a_wrong_answer_gets_one_more_chance_without_a_schema() {
    let double = helpful();
    let interpreter = interpreter(&double).await;
    for first in [Mood::Says("The pictures show cats."), Mood::Refuses(400)] {
        double.seen.lock().unwrap().clear();
        double.moods.lock().unwrap().push_back(first);
        let answer = interpreter.interpret(&task(JobKind::Refine)).await.unwrap();
        assert_eq!(answer.outcome, Outcome::Refined { label: "sitting cat".into() });
        let asked = if matches!(first, Mood::Says(_)) { 2 } else { 1 };
        assert_eq!(answer.usage.input_tokens, asked * 100, "what the wrong answer took counts");
        let seen = double.seen.lock().unwrap().clone();
        assert_eq!(seen.iter().map(|body| body["response_format"].is_object()).collect::<Vec<_>>(), [true, false]);
    }
    double.moods.lock().unwrap().extend([Mood::Says("cats"), Mood::Says("still cats")]);
    let error = interpreter.interpret(&task(JobKind::Refine)).await.unwrap_err();
    let InterpretError::Never { reason, usage } = error else { panic!("{error}") };
    assert!(reason.contains("still cats") && usage.input_tokens == 200, "{reason} {usage:?}");
}

#[tokio::test]
async fn a_busy_server_is_asked_again_and_a_closed_one_is_not() {
    let double = helpful();
    let url = double.serve().await;
    let interpreter = OpenAi::new(config(url.clone())).unwrap();
    for status in [429, 500, 503] {
        double.moods.lock().unwrap().push_back(Mood::Refuses(status));
        let error = interpreter.interpret(&task(JobKind::Refine)).await.unwrap_err();
        // Patience is no fault of the task's.
        let (InterpretError::Again { after, reason, .. } | InterpretError::Away { after, reason, .. }) = &error else {
            panic!("{status}: {error}")
        };
        assert_eq!(matches!(error, InterpretError::Away { .. }), status != 500, "{error}");
        assert!(*after == Duration::from_secs(7) && reason.contains(&status.to_string()), "{reason}");
    }
    for wrong in [
        OpenAiConfig { key: None, ..config(url.clone()) },
        OpenAiConfig { model: "another/model".into(), ..config(url) },
    ] {
        let error = OpenAi::new(wrong).unwrap().interpret(&task(JobKind::Refine)).await.unwrap_err();
        assert!(matches!(error, InterpretError::Never { .. }), "{error}");
    }
    let nobody = OpenAi::new(config("http://127.0.0.1:1/v1".into())).unwrap();
    let error = nobody.interpret(&task(JobKind::Refine)).await.unwrap_err();
    assert!(matches!(error, InterpretError::Away { .. }), "{error}");
    for address in ["", "127.0.0.1:8000", "ftp://host/v1"] {
        assert!(OpenAi::new(config(address.into())).is_err(), "{address}");
    }
    let hosted = OpenAi::new(config("https://models.example/v1".into())).unwrap();
    assert_eq!(hosted.identity().endpoint, "models.example");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_takes_features_from_pictures_to_scored_labels() {
    let folder = tempfile::tempdir().unwrap();
    Artifacts::new(small_source(), &webp()).write(folder.path()).unwrap();
    let store = Store::open("sqlite::memory:").await.unwrap();
    store.import_artifacts(folder.path()).await.unwrap();
    let source = store.find_source("tiny", "1-res-12").await.unwrap().unwrap();
    let queue = Queue::of_store(&store);
    let double = helpful();
    let interpreter = Arc::new(interpreter(&double).await);
    let assignment = interpreter.identity().assignment(&source.source);
    queue.enqueue(&assignment, JobKind::Explain, &[0, 1, 2], BULK).await.unwrap();
    // Feature 1's explanation is that there is none: nothing follows.
    double
        .moods
        .lock()
        .unwrap()
        .extend([Mood::Says("{\"explanation\": \"cats\"}"), Mood::Says("{\"explanation\": null}")]);
    let (_stop, stopped) = watch::channel(false);
    let worker = Worker::new(store, queue.clone(), source.clone(), interpreter);
    let tally = worker.run(1, true, &stopped).await;
    assert_eq!((tally.done, tally.failed, tally.lost), (3 + 2 * 3, 0, 0), "{tally:?}");
    // A score is two questions: on the feature's pictures, and on others.
    assert_eq!((tally.input_tokens, tally.output_tokens), (1_100, 110));
    let found = queue.list_explanations(&source.source, &[0, 1, 2]).await.unwrap();
    assert_eq!(found.keys().copied().collect::<Vec<_>>(), [0, 2]);
    for said in found.values() {
        let [said] = said.as_slice() else { panic!("{said:?}") };
        assert_eq!((said.description.as_str(), said.category), ("sitting cat", Category::Object));
        assert_eq!((said.type_name.as_str(), said.explanation_model_name.as_str()), ("lmm", MODEL));
        let [score] = said.scores.as_slice() else { panic!("{said:?}") };
        assert_eq!(
            (score.explanation_score_type_name.as_str(), score.value, score.baseline),
            ("consistency", 1.0, 1.0)
        );
        assert_eq!((score.interval, score.samples), (Some([1.0, 1.0]), 1));
        assert!(score.explanation_score_model_name.starts_with(MODEL), "{score:?}");
        assert!(score.provenance.contains("seed 0") && score.provenance.contains("95% interval"), "{score:?}");
    }
    let kinds: Vec<(JobKind, u64)> =
        queue.list_kinds().await.unwrap().iter().map(|kind| (kind.kind, kind.done)).collect();
    let [explain, rest @ ..] = kinds.as_slice() else { panic!("{kinds:?}") };
    assert_eq!(*explain, (JobKind::Explain, 3));
    assert_eq!(rest, [JobKind::Refine, JobKind::Categorise, JobKind::Score].map(|kind| (kind, 2)));
    let status = queue.list_endpoints().await.unwrap().remove(0);
    assert_eq!((status.done, status.input_tokens, status.output_tokens), (9, 1_100, 110));
    assert!(status.name.starts_with("127.0.0.1:"), "{}", status.name);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_away_costs_no_job_a_try() {
    let folder = tempfile::tempdir().unwrap();
    Artifacts::new(small_source(), &webp()).write(folder.path()).unwrap();
    let store = Store::open("sqlite::memory:").await.unwrap();
    store.import_artifacts(folder.path()).await.unwrap();
    let source = store.find_source("tiny", "1-res-12").await.unwrap().unwrap();
    let queue = Queue::of_store(&store);
    // An address that nobody listens at, until later.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let interpreter = Arc::new(OpenAi::new(config(format!("http://{address}/v1"))).unwrap());
    let assignment = interpreter.identity().assignment(&source.source);
    queue.enqueue(&assignment, JobKind::Explain, &[0, 2], BULK).await.unwrap();
    let (_stop, stopped) = watch::channel(false);
    let worker = Worker::new(store, queue.clone(), source.clone(), interpreter);
    let working = tokio::spawn({
        let (worker, stopped) = (worker.clone(), stopped.clone());
        async move { worker.run(3, true, &stopped).await }
    });
    let waits = async || {
        let job = queue.find_job_of(&assignment, JobKind::Explain, 0).await.unwrap().unwrap();
        (job.state == JobState::Queued && job.reason.is_some()).then_some(job)
    };
    let mut job = None;
    for _ in 0..200 {
        job = waits().await;
        if job.is_some() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let job = job.expect("it was put back, with the reason");
    assert_eq!((job.tries, job.lost), (0, 0), "{job:?}");
    helpful().serve_at(address).await;
    let tally = tokio::time::timeout(Duration::from_secs(60), working).await.unwrap().unwrap();
    assert_eq!((tally.done, tally.failed, tally.lost), (8, 0, 0), "{tally:?}");
    let job = queue.find_job_of(&assignment, JobKind::Explain, 0).await.unwrap().unwrap();
    assert_eq!((job.state, job.tries), (JobState::Done, 0));
}
