//! 1,000 jobs, workers aborted at random awaits: each feature is explained exactly once in the store.

use crate::{RULES, assignment, explained, postgres, source, sqlite};
use api::{JobKind, JobState};
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};
use store::jobs::{BULK, Claim, JobFilter, Queue, Rules, Usage};
use tokio::{task::JoinHandle, time::sleep};

const JOBS: u32 = 1_000;
const WORKERS: usize = 8;
const SEED: u64 = 7;

/// Does jobs until there is none; a job takes a moment, and its words say who did it.
fn start(queue: &Queue, name: u32, told: &Arc<Vec<AtomicU32>>) -> JoinHandle<()> {
    let (queue, told) = (queue.clone(), told.clone());
    tokio::spawn(async move {
        let name = format!("worker {name}");
        loop {
            match queue.claim(&assignment(), &name).await.unwrap() {
                Claim::Job(lease) => {
                    sleep(Duration::from_millis(u64::from(lease.job.index % 5))).await;
                    if queue.complete(&lease, &explained(&name), Usage::default(), None).await.unwrap() {
                        told[lease.job.index as usize].fetch_add(1, Ordering::Relaxed);
                    }
                }
                _ if queue.remaining(&assignment()).await.unwrap() == 0 => return,
                _ => sleep(Duration::from_millis(5)).await,
            }
        }
    })
}

async fn each_once(queue: Queue) {
    let queue = queue.with_rules(Rules { lease: Duration::from_millis(250), max_lost: 1_000, ..RULES });
    // Jobs of the killed count as running until their leases end.
    queue.limit(&assignment().endpoint, 64, 0).await.unwrap();
    let features: Vec<u32> = (0..JOBS).collect();
    assert_eq!(queue.enqueue(&assignment(), JobKind::Explain, &features, BULK).await.unwrap().new, u64::from(JOBS));
    let told: Arc<Vec<AtomicU32>> = Arc::new((0..JOBS).map(|_| AtomicU32::new(0)).collect());
    let mut rng = StdRng::seed_from_u64(SEED);
    let mut workers: Vec<JoinHandle<()>> = (0..WORKERS as u32).map(|name| start(&queue, name, &told)).collect();
    let mut kills = 0;
    while queue.remaining(&assignment()).await.unwrap() > 0 {
        sleep(Duration::from_millis(rng.random_range(1..20))).await;
        let victim = rng.random_range(0..WORKERS);
        workers[victim].abort();
        kills += 1;
        workers[victim] = start(&queue, WORKERS as u32 + kills, &told);
    }
    for worker in workers {
        worker.await.unwrap();
    }

    let mut explained = BTreeMap::new();
    for chunk in features.chunks(200) {
        explained.extend(queue.list_explanations(&source(), chunk).await.unwrap());
    }
    assert_eq!(explained.len(), JOBS as usize, "features without an explanation");
    assert!(explained.values().all(|said| said.len() == 1), "a feature was explained twice");
    assert_eq!(queue.count_explanations().await.unwrap(), u64::from(JOBS));
    assert!(told.iter().all(|told| told.load(Ordering::Relaxed) <= 1), "two workers were told that they did a job");
    let done = JobFilter { state: Some(JobState::Done), ..JobFilter::default() };
    assert_eq!(queue.list_jobs(&done, 0, 1).await.unwrap().total, JOBS);
    let mut lost = 0;
    for page in 0..JOBS / 200 {
        lost += queue.list_jobs(&done, page, 200).await.unwrap().jobs.iter().map(|job| job.lost).sum::<u32>();
    }
    eprintln!("{kills} workers killed, {lost} of them over a job");
    assert!(kills >= 20 && lost >= 5, "too few were killed for this to mean anything");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn each_feature_is_explained_once_on_sqlite() {
    let (queue, _folder) = sqlite().await;
    each_once(queue).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn each_feature_is_explained_once_on_postgres() {
    let server = postgres::start();
    let queue = server.queue("killed").await;
    each_once(queue).await;
}
