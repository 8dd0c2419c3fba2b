//! Every rule of the queue, on SQLite and on Postgres: one body, two databases.
#![allow(clippy::unwrap_used, clippy::expect_used)] // tests panic on purpose

mod killed;
mod postgres;
mod rules;

use std::time::Duration;
use store::jobs::{Assignment, Claim, Lease, Outcome, Queue, Rules, Usage};
use tempfile::TempDir;

/// Short enough to wait for.
const RULES: Rules = Rules {
    lease: Duration::from_millis(400),
    max_tries: 3,
    max_lost: 3,
    first_delay: Duration::from_millis(300),
    max_delay: Duration::from_millis(700),
};

fn assignment() -> Assignment {
    Assignment {
        model_id: "tiny".into(),
        source_id: "1-res-12".into(),
        sae_revision: "abc".into(),
        interpreter: "test".into(),
        prompt_hash: "0123456789ab".into(),
        endpoint: "local".into(),
    }
}

/// The source of [`assignment`].
fn source() -> api::Source {
    let provenance = api::Provenance { sae_revision: "abc".into(), ..api::Provenance::default() };
    api::Source { model_id: "tiny".into(), source_id: "1-res-12".into(), provenance, ..api::Source::default() }
}

fn explained(description: &str) -> Outcome {
    Outcome::Explained {
        description: description.into(),
        category: api::Category::Object,
        type_name: "test".into(),
        author: "a test".into(),
    }
}

async fn take(queue: &Queue) -> Lease {
    match queue.claim(&assignment(), "taker").await.unwrap() {
        Claim::Job(lease) => *lease,
        other => panic!("no job: {other:?}"),
    }
}

async fn complete(queue: &Queue, lease: &Lease) -> bool {
    queue.complete(lease, &explained("a cat"), Usage::default(), None).await.unwrap()
}

/// A queue in a file of its own.
async fn sqlite() -> (Queue, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", folder.path().join("queue.db").display());
    (Queue::open(&url).await.unwrap().with_rules(RULES), folder)
}
