//! The queue over HTTP: what is shown, what a visitor may ask for, and an explanation that arrives on its feature.

use crate::common::{SOURCE, Server, serve_args, server};
use api::{Category, ErrorCode, Feature, Job, JobKind, JobList, JobState, KindStatus};
use axum::{body::Body, http::Request};
use pipeline::interpret::Identity;
use server::{
    AppState,
    catalogue::Catalogue,
    cli::{InterpreterArgs, InterpreterName, LmmArgs},
    config::ServeArgs,
    encoder::Encoder,
    engine::Engine,
    router::router,
    weights::Weights,
};
use std::sync::Arc;
use store::{
    Store,
    jobs::{Claim, Outcome, Queue, Usage, VISITOR},
};

fn identity() -> Identity {
    Identity { name: "test".into(), prompt_hash: "0123456789ab".into(), endpoint: "local".into() }
}

/// A server whose visitors' requests somebody answers, and its queue.
async fn with_interpreter() -> (Server, Queue) {
    let server = server().await;
    let key = frontend::api::SourceKey::new("tiny", "1-res-64");
    let store = Store::open("sqlite::memory:").await.unwrap();
    store.import_artifacts(server.folder.path()).await.unwrap();
    let queue = Queue::of_store(&store);
    let sae = server.folder.path().join("sae/model.layers.1");
    let (engine, _queue) = Engine::without_worker(1);
    let state = AppState {
        catalogue: Catalogue::new(store, key.clone()).with_queue(queue.clone(), Some(identity())),
        engine: engine.into(),
        weights: Arc::new(Weights::open(key, &sae, None).unwrap()),
        encoder: Arc::new(Encoder::open(&sae).unwrap()),
        site: Default::default(),
    };
    let router = router(state, server.folder.path(), server.folder.path());
    (Server { router, folder: server.folder }, queue)
}

fn explain(index: u32) -> Request<Body> {
    Request::post(format!("{SOURCE}/features/{index}/explain")).body(Body::empty()).unwrap()
}

async fn ask(server: &Server, index: u32) -> Job {
    let answer = server.send(explain(index)).await;
    assert_eq!(answer.status.as_u16(), 202, "{}", answer.text());
    serde_json::from_slice(&answer.body).unwrap()
}

#[tokio::test]
async fn a_visitors_request_is_one_job_and_its_explanation_arrives_on_the_feature() {
    let (server, queue) = with_interpreter().await;
    let before: Feature = server.json(&format!("{SOURCE}/features/3")).await;
    let job = ask(&server, 3).await;
    assert_eq!((job.state, job.kind, job.index, job.priority), (JobState::Queued, JobKind::Explain, 3, VISITOR));
    assert_eq!(ask(&server, 3).await.id, job.id);
    ask(&server, 4).await;
    let list: JobList = server.json("/api/v1/jobs?state=queued&perPage=1").await;
    assert_eq!((list.total, list.jobs.len(), list.jobs[0].index, list.endpoints[0].queued), (2, 1, 4, 2));
    assert_eq!(list.kinds, [KindStatus { kind: JobKind::Explain, queued: 2, ..KindStatus::default() }]);
    assert!(list.now >= list.jobs[0].created_at);
    assert_eq!(server.json::<JobList>("/api/v1/jobs?state=dead&kind=score").await.total, 0);

    let source: api::Source = server.json(SOURCE).await;
    let Claim::Job(lease) = queue.claim(&identity().assignment(&source), "test").await.unwrap() else {
        panic!("nothing to do");
    };
    let outcome = Outcome::Explained {
        description: "striped things".into(),
        category: Category::Texture,
        type_name: "test".into(),
        author: "a test".into(),
    };
    let usage = Usage { input_tokens: 7, output_tokens: 2 };
    assert!(queue.complete(&lease, &outcome, usage, Some(JobKind::Score)).await.unwrap());
    let after: Feature = server.json(&format!("{SOURCE}/features/3")).await;
    assert_eq!(after.label(), before.label(), "the build's label stays the first");
    let said = after.explanations.last().unwrap();
    assert_eq!((said.description.as_str(), said.prompt_hash.as_str()), ("striped things", "0123456789ab"));
    assert_eq!(said.id, format!("job-{}", job.id));
    let done: Job = server.json(&format!("/api/v1/jobs/{}", job.id)).await;
    assert_eq!((done.state, done.input_tokens, done.output_tokens), (JobState::Done, 7, 2));
    assert_eq!(ask(&server, 3).await.state, JobState::Done, "what is done is not done again");
}

#[tokio::test]
async fn what_does_not_exist_or_nobody_does_is_refused() {
    let (server, _queue) = with_interpreter().await;
    server.send(explain(64)).await.problem(404, ErrorCode::NotFound);
    server.get("/api/v1/jobs/99").await.problem(404, ErrorCode::NotFound);
    server.get("/api/v1/jobs/one").await.problem(400, ErrorCode::BadRequest);
    server.get("/api/v1/jobs?state=lost").await.problem(400, ErrorCode::BadRequest);
    let elsewhere = Request::post("/api/v1/tiny/9-res-9/features/1/explain").body(Body::empty()).unwrap();
    server.send(elsewhere).await.problem(404, ErrorCode::NotFound);
    // Small artefacts have no ground truth.
    let without = crate::common::server().await;
    let problem = without.send(explain(1)).await.problem(400, ErrorCode::BadRequest);
    assert!(problem.detail.contains("Nobody interprets"), "{}", problem.detail);
    let empty = without.json::<JobList>("/api/v1/jobs").await;
    assert!(empty.now > 0);
    assert_eq!(empty, JobList { per_page: 48, now: empty.now, ..JobList::default() });
}

#[tokio::test]
async fn visitors_ask_the_interpreter_that_the_server_was_given() {
    let folder = server().await.folder;
    let lmm = LmmArgs {
        lmm_url: Some("http://127.0.0.1:1/v1".into()),
        lmm_name: Some("some/vision-model".into()),
        ..LmmArgs::default()
    };
    let by = InterpreterArgs { interpreter: InterpreterName::Openai, lmm };
    let args = ServeArgs { by: by.clone(), ..serve_args(folder.path()) };
    let (router, _store) = server::serve::app(&args).await.unwrap();
    let server = Server { router, folder };
    let job = ask(&server, 3).await;
    assert_eq!((job.interpreter.as_str(), job.endpoint.as_str()), ("some/vision-model", "127.0.0.1:1"));
    assert_eq!((job.state, job.priority), (JobState::Queued, VISITOR));
    // `work` with the same flags finds it under the same name.
    let source: api::Source = server.json(SOURCE).await;
    let identity = by.identity(server.folder.path(), &source).unwrap().unwrap();
    assert_eq!(identity.prompt_hash, job.prompt_hash);
    let wrong = InterpreterArgs { lmm: LmmArgs { lmm_url: Some("nowhere".into()), ..by.lmm.clone() }, ..by };
    let args = ServeArgs { by: wrong, ..serve_args(server.folder.path()) };
    assert!(server::serve::app(&args).await.is_err(), "no address");
}

#[tokio::test]
async fn the_page_shows_what_the_address_asks_for() {
    let (server, queue) = with_interpreter().await;
    let empty = server.get("/queue").await;
    assert_eq!(empty.status.as_u16(), 200, "{}", empty.text());
    assert!(empty.text().contains("data-testid=\"queue-empty\""), "{}", empty.text());
    ask(&server, 3).await;
    ask(&server, 4).await;
    let source: api::Source = server.json(SOURCE).await;
    let Claim::Job(lease) = queue.claim(&identity().assignment(&source), "test").await.unwrap() else {
        panic!("nothing to do");
    };
    assert!(queue.fail(&lease, "no picture agrees", None, Usage::default()).await.unwrap());
    for (query, features, state) in [
        ("", vec![4, 3], "queued"),
        ("?state=dead", vec![3], "dead"),
        ("?state=queued&kind=explain", vec![4], "queued"),
    ] {
        let page = server.get(&format!("/queue{query}")).await;
        assert_eq!(page.status.as_u16(), 200, "{query}: {}", page.text());
        let text = page.text();
        assert_eq!(text.matches("data-testid=\"job\"").count(), features.len(), "{query}");
        for index in features {
            assert!(text.contains(&format!("href=\"/tiny/1-res-64/{index}\"")), "{query} lacks feature {index}");
        }
        assert!(text.contains(&format!("data-state=\"{state}\"")), "{query}");
        assert_eq!(text.contains(">no picture agrees<"), !query.contains("queued"), "{query}");
    }
}
