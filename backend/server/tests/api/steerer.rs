//! Texts for scores of steering, from an engine on a socket.

use crate::common::{start_engine, tiny_source, write_artifacts};
use api::{Provenance, Source};
use pipeline::score::steering::Steerer;
use server::{
    EngineState,
    engine::{EngineError, steerer::EngineSteerer},
    router::engine_router,
};
use tempfile::TempDir;
use tokio::net::TcpListener;

/// An engine on the tiny model; its files live as long as the folder.
async fn engine() -> (String, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    write_artifacts(folder.path());
    let engine = start_engine(folder.path(), 4).await;
    let router = engine_router(EngineState { engine: engine.into(), catalogue: None });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    (url, folder)
}

#[tokio::test]
async fn a_strong_feature_changes_the_last_text_alone() {
    let (url, _folder) = engine().await;
    let steerer = EngineSteerer::connect(&[url], &tiny_source()).await.unwrap();
    let strong = steerer.steer(5, 80.0, "What is this?").await.unwrap();
    assert_ne!(strong.steered, strong.reconstructed);
    assert_eq!(steerer.steer(5, 80.0, "What is this?").await.unwrap(), strong, "the same again");
    let other = steerer.steer(6, 80.0, "What is this?").await.unwrap();
    assert_eq!((&other.original, &other.reconstructed), (&strong.original, &strong.reconstructed));
    assert_ne!(other.steered, strong.steered);
}

#[tokio::test]
async fn what_the_engine_refuses_is_said() {
    let (url, _folder) = engine().await;
    let steerer = EngineSteerer::connect(std::slice::from_ref(&url), &tiny_source()).await.unwrap();
    let unknown = steerer.steer(64, 4.0, "What is this?").await.unwrap_err().to_string();
    assert!(unknown.contains("64") && unknown.contains(&url), "{unknown}");
    let negative = steerer.steer(5, -1.0, "What is this?").await.unwrap_err().to_string();
    assert!(negative.contains("never negative"), "{negative}");
}

#[tokio::test]
async fn an_engine_with_another_sae_is_refused() {
    let (url, _folder) = engine().await;
    let provenance = Provenance { sae_revision: "0123456789ab".into(), ..tiny_source().provenance };
    let other = Source { provenance, ..tiny_source() };
    let refused = EngineSteerer::connect(&[url], &other).await.err();
    assert!(matches!(refused, Some(EngineError::Unfit { .. })), "{refused:?}");
    let nobody = EngineSteerer::connect(&["http://127.0.0.1:1".to_owned()], &tiny_source()).await.err();
    assert!(matches!(nobody, Some(EngineError::NoneAnswers(_))), "{nobody:?}");
}
