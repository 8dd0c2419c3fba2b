//! What must hold whatever happens, one function per rule. Each gets a queue of its own.

use crate::{RULES, assignment, complete, explained, postgres, source, sqlite, take};
use api::{Category, JobKind, JobState, KindStatus, Score, SteeringEffects};
use std::time::{Duration, Instant};
use store::jobs::{Assignment, BULK, Claim, ComputedScore, Enqueued, JobFilter, Outcome, Queue, Rules, Usage, VISITOR};
use tokio::time::sleep;

/// Every rule as a test on SQLite, and all of them in one test on one server of Postgres.
macro_rules! rules {
    ($($rule:ident),* $(,)?) => {
        mod on_sqlite {
            $(#[tokio::test]
            async fn $rule() {
                let (queue, _folder) = super::sqlite().await;
                super::$rule(queue).await;
            })*
        }

        #[tokio::test]
        async fn every_rule_on_postgres() {
            let server = postgres::start();
            $(
                eprintln!("{}", stringify!($rule));
                let queue = server.queue(stringify!($rule)).await.with_rules(RULES);
                $rule(queue.clone()).await;
                queue.close().await;
            )*
        }
    };
}

rules!(
    a_job_is_made_once,
    a_visitor_goes_first,
    an_explanation_is_written_with_the_end_of_its_job,
    a_failed_try_waits_longer_each_time_and_then_is_dead,
    what_is_useless_to_try_again_is_dead_at_once,
    a_vanished_workers_job_is_taken_over,
    a_heartbeat_keeps_a_job,
    a_job_that_kills_its_workers_ends,
    a_given_back_job_has_not_been_tried,
    an_endpoint_that_is_away_is_no_jobs_fault,
    what_a_lost_job_took_counts,
    all_steps_of_what_a_visitor_asks_for_go_first,
    cancelled_jobs_stay_cancelled_until_they_are_asked_for,
    a_paused_endpoint_starts_nothing,
    an_endpoint_runs_so_many_at_once,
    an_endpoint_starts_so_many_a_minute,
    a_worker_gets_jobs_of_its_own_words_and_source_only,
    the_status_counts_and_foretells,
    every_step_has_its_counts,
    a_running_job_names_its_worker,
    many_claim_at_once,
    a_computed_score_is_kept_once,
);

async fn enqueue(queue: &Queue, features: &[u32]) -> Enqueued {
    queue.enqueue(&assignment(), JobKind::Explain, features, BULK).await.unwrap()
}

async fn state(queue: &Queue, feature: u32) -> api::Job {
    queue.find_job_of(&assignment(), JobKind::Explain, feature).await.unwrap().unwrap()
}

async fn is_empty(queue: &Queue) -> bool {
    queue.claim(&assignment(), "other").await.unwrap() == Claim::Empty
}

async fn a_job_is_made_once(queue: Queue) {
    assert_eq!(enqueue(&queue, &[3, 1, 2, 3]).await, Enqueued { new: 3, raised: 0, known: 0 });
    assert_eq!(enqueue(&queue, &[1, 2, 4]).await, Enqueued { new: 1, raised: 0, known: 2 });
    let many: Vec<u32> = (0..1_200).collect();
    assert_eq!(enqueue(&queue, &many).await, Enqueued { new: 1_196, raised: 0, known: 4 });
    let lease = take(&queue).await;
    assert!(complete(&queue, &lease).await);
    assert_eq!(enqueue(&queue, &[lease.job.index]).await.known, 1, "what is done is not done again");
    // Other prompts, and another SAE of the same name, are other jobs.
    for other in [
        Assignment { prompt_hash: "other".into(), ..assignment() },
        Assignment { sae_revision: "rebuilt".into(), ..assignment() },
    ] {
        assert_eq!(queue.enqueue(&other, JobKind::Explain, &[1], BULK).await.unwrap().new, 1);
    }
}

async fn a_visitor_goes_first(queue: Queue) {
    enqueue(&queue, &[1, 2, 3]).await;
    let asked = queue.enqueue(&assignment(), JobKind::Explain, &[3, 9], VISITOR).await.unwrap();
    assert_eq!(asked, Enqueued { new: 1, raised: 1, known: 0 });
    // Asked for again in bulk, it does not fall back.
    assert_eq!(enqueue(&queue, &[3]).await.known, 1);
    let mut order = Vec::new();
    for _ in 0..4 {
        order.push(take(&queue).await.job.index);
    }
    assert_eq!(order, [3, 9, 1, 2]);
}

async fn an_explanation_is_written_with_the_end_of_its_job(queue: Queue) {
    enqueue(&queue, &[7]).await;
    let lease = take(&queue).await;
    assert_eq!((lease.job.kind, lease.job.state), (JobKind::Explain, JobState::Running));
    let usage = Usage { input_tokens: 900, output_tokens: 30 };
    assert!(queue.complete(&lease, &explained("a long story of a cat"), usage, Some(JobKind::Refine)).await.unwrap());
    assert!(!complete(&queue, &lease).await, "the same lease ends a job once");

    let refine = take(&queue).await;
    assert_eq!((refine.job.kind, refine.job.index), (JobKind::Refine, 7));
    let refined = Outcome::Refined { label: "cat".into() };
    assert!(queue.complete(&refine, &refined, usage, Some(JobKind::Categorise)).await.unwrap());
    let file = take(&queue).await;
    let filed = Outcome::Categorised { category: Category::Part };
    assert!(queue.complete(&file, &filed, usage, Some(JobKind::Score)).await.unwrap());
    let score = take(&queue).await;
    let scores = vec![Score { value: 0.5, baseline: 0.1, ..Score::default() }];
    assert!(queue.complete(&score, &Outcome::Scored { scores: scores.clone() }, usage, None).await.unwrap());
    assert!(is_empty(&queue).await);

    let found = queue.list_explanations(&source(), &[7, 8]).await.unwrap();
    assert_eq!(found.len(), 1);
    let [explanation] = found[&7].as_slice() else { panic!("{found:?}") };
    assert_eq!((explanation.description.as_str(), explanation.category), ("cat", Category::Part));
    assert_eq!(explanation.scores, scores);
    assert_eq!((explanation.id.as_str(), explanation.prompt_hash.as_str()), ("job-1", "0123456789ab"));
    assert_eq!(explanation.created_at.len(), "2026-01-31".len());
    assert_eq!(queue.find_explanation(&assignment(), 7).await.unwrap().as_ref(), Some(explanation));
    let by_another = Assignment { interpreter: "other".into(), ..assignment() };
    assert_eq!(queue.find_explanation(&by_another, 7).await.unwrap(), None);
    let rebuilt = api::Source { provenance: api::Provenance::default(), ..source() };
    assert!(queue.list_explanations(&rebuilt, &[7]).await.unwrap().is_empty(), "of another SAE");
    let job = state(&queue, 7).await;
    assert_eq!((job.state, job.input_tokens, job.output_tokens), (JobState::Done, 900, 30));
    assert!(job.ended_at >= job.started_at && job.started_at >= Some(job.created_at), "{job:?}");

    enqueue(&queue, &[8]).await;
    let nothing = Outcome::Nothing { reason: "no two pictures agree".into() };
    assert!(queue.complete(&take(&queue).await, &nothing, usage, None).await.unwrap());
    let job = state(&queue, 8).await;
    assert_eq!((job.state, job.reason.as_deref()), (JobState::Done, Some("no two pictures agree")));
    assert_eq!(queue.count_explanations().await.unwrap(), 1);
}

async fn a_failed_try_waits_longer_each_time_and_then_is_dead(queue: Queue) {
    enqueue(&queue, &[1]).await;
    let spent = Usage { input_tokens: 10, output_tokens: 1 };
    let mut waits = Vec::new();
    for _ in 1..RULES.max_tries {
        let lease = take(&queue).await;
        assert!(queue.fail(&lease, "503 from the server", Some(Duration::ZERO), spent).await.unwrap());
        let job = state(&queue, 1).await;
        assert_eq!((job.state, job.reason.as_deref()), (JobState::Queued, Some("503 from the server")));
        assert!(is_empty(&queue).await, "it does not wait");
        let failed = Instant::now();
        while is_empty_but_waiting(&queue).await {
            sleep(Duration::from_millis(10)).await;
        }
        waits.push(failed.elapsed());
    }
    assert!(waits[0] >= RULES.first_delay / 2 && waits[1] >= RULES.first_delay * 3 / 2, "{waits:?}");
    let lease = take(&queue).await;
    assert!(queue.fail(&lease, "500 from the server", Some(Duration::ZERO), spent).await.unwrap());
    let job = state(&queue, 1).await;
    assert_eq!((job.state, job.tries, job.reason.as_deref()), (JobState::Dead, 3, Some("500 from the server")));
    assert_eq!((job.input_tokens, job.output_tokens), (30, 3), "failed tries cost as well");
    sleep(RULES.max_delay).await;
    assert!(is_empty(&queue).await, "the dead stay dead");
    assert_eq!(queue.retry(&JobFilter { id: Some(job.id), ..JobFilter::default() }).await.unwrap(), 1);
    assert_eq!(take(&queue).await.job.tries, 0);
}

/// Whether the only job still waits for its time.
async fn is_empty_but_waiting(queue: &Queue) -> bool {
    queue.list_endpoints().await.unwrap()[0].delayed == 1
}

async fn what_is_useless_to_try_again_is_dead_at_once(queue: Queue) {
    enqueue(&queue, &[1, 2]).await;
    assert!(queue.fail(&take(&queue).await, "401: no such key", None, Usage::default()).await.unwrap());
    assert_eq!((state(&queue, 1).await.state, state(&queue, 1).await.tries), (JobState::Dead, 1));
    // A server may ask for more time than the rule gives.
    let lease = take(&queue).await;
    assert!(queue.fail(&lease, "429", Some(Duration::from_secs(3600)), Usage::default()).await.unwrap());
    let job = state(&queue, 2).await;
    assert!(job.run_at - job.started_at.unwrap() >= 3_600_000, "{job:?}");
}

async fn a_vanished_workers_job_is_taken_over(queue: Queue) {
    enqueue(&queue, &[1]).await;
    let lost = take(&queue).await;
    assert!(is_empty(&queue).await, "it is still the first worker's");
    sleep(RULES.lease + Duration::from_millis(100)).await;
    let lease = take(&queue).await;
    assert_eq!((lease.job.index, lease.job.lost, lease.job.tries), (1, 1, 0));
    // The first worker was only slow: nothing that it says counts any more.
    assert!(!queue.heartbeat(&lost).await.unwrap());
    assert!(!queue.complete(&lost, &explained("too late"), Usage::default(), None).await.unwrap());
    assert!(!queue.fail(&lost, "too late", None, Usage::default()).await.unwrap());
    assert!(!queue.release(&lost).await.unwrap());
    assert!(complete(&queue, &lease).await);
    assert_eq!(queue.list_explanations(&source(), &[1]).await.unwrap()[&1][0].description, "a cat");
    assert!(Rules::default().lease < Duration::from_secs(60), "within a minute");
}

async fn a_heartbeat_keeps_a_job(queue: Queue) {
    enqueue(&queue, &[1]).await;
    let lease = take(&queue).await;
    for _ in 0..4 {
        sleep(RULES.lease / 2).await;
        assert!(queue.heartbeat(&lease).await.unwrap());
        assert!(is_empty(&queue).await, "taken from a living worker");
    }
    assert!(complete(&queue, &lease).await);
}

async fn a_job_that_kills_its_workers_ends(queue: Queue) {
    let queue = queue.with_rules(Rules { lease: Duration::from_millis(20), ..RULES });
    enqueue(&queue, &[1]).await;
    for _ in 0..RULES.max_lost {
        take(&queue).await;
        sleep(Duration::from_millis(60)).await;
    }
    assert!(is_empty(&queue).await);
    let job = state(&queue, 1).await;
    assert_eq!((job.state, job.lost), (JobState::Dead, RULES.max_lost));
    assert!(job.reason.unwrap().contains("vanished"));
}

async fn a_given_back_job_has_not_been_tried(queue: Queue) {
    enqueue(&queue, &[1]).await;
    let lease = take(&queue).await;
    assert!(queue.release(&lease).await.unwrap());
    let again = take(&queue).await;
    assert_eq!((again.job.tries, again.job.lost), (0, 0));
}

async fn an_endpoint_that_is_away_is_no_jobs_fault(queue: Queue) {
    enqueue(&queue, &[1, 2]).await;
    let (first, second) = (take(&queue).await, take(&queue).await);
    let usage = Usage { input_tokens: 5, output_tokens: 1 };
    let wait = Duration::from_millis(300);
    assert!(queue.hold(&first, "connection refused", wait, usage).await.unwrap());
    // A shorter hold does not end a longer one.
    assert!(queue.hold(&second, "connection refused", Duration::ZERO, Usage::default()).await.unwrap());
    assert!(!queue.hold(&second, "connection refused", Duration::ZERO, Usage::default()).await.unwrap());
    let Claim::Wait(left) = queue.claim(&assignment(), "w").await.unwrap() else { panic!("it is not held") };
    assert!(left <= wait, "{left:?}");
    let job = state(&queue, 1).await;
    assert_eq!((job.state, job.tries, job.lost), (JobState::Queued, 0, 0));
    assert_eq!((job.reason.as_deref(), job.input_tokens), (Some("connection refused"), 5));
    sleep(left + Duration::from_millis(20)).await;
    assert_eq!(take(&queue).await.job.index, 1);
}

async fn what_a_lost_job_took_counts(queue: Queue) {
    enqueue(&queue, &[1]).await;
    let usage = Usage { input_tokens: 7, output_tokens: 2 };
    let lease = take(&queue).await;
    queue.cancel(&JobFilter::default()).await.unwrap();
    assert!(!queue.complete(&lease, &explained("too late"), usage, None).await.unwrap());
    assert!(!queue.fail(&lease, "too late", None, usage).await.unwrap());
    let job = state(&queue, 1).await;
    assert_eq!((job.state, job.input_tokens, job.output_tokens), (JobState::Cancelled, 14, 4));
    assert_eq!(queue.count_explanations().await.unwrap(), 0);
}

async fn all_steps_of_what_a_visitor_asks_for_go_first(queue: Queue) {
    enqueue(&queue, &[1, 2, 3]).await;
    let (first, second) = (take(&queue).await, take(&queue).await);
    assert!(queue.complete(&first, &explained("a cat"), Usage::default(), Some(JobKind::Refine)).await.unwrap());
    // Of feature 1 a later step waits, feature 2 runs.
    queue.enqueue(&assignment(), JobKind::Explain, &[1, 2], VISITOR).await.unwrap();
    assert!(queue.complete(&second, &explained("a dog"), Usage::default(), Some(JobKind::Refine)).await.unwrap());
    let mut order = Vec::new();
    for _ in 0..3 {
        let job = take(&queue).await.job;
        order.push((job.index, job.kind, job.priority));
    }
    assert_eq!(order, [(1, JobKind::Refine, VISITOR), (2, JobKind::Refine, VISITOR), (3, JobKind::Explain, BULK)]);
}

async fn cancelled_jobs_stay_cancelled_until_they_are_asked_for(queue: Queue) {
    enqueue(&queue, &[1, 2, 3]).await;
    let running = take(&queue).await;
    let one = JobFilter { id: Some(running.job.id), ..JobFilter::default() };
    assert_eq!(queue.cancel(&one).await.unwrap(), 1);
    assert!(!queue.heartbeat(&running).await.unwrap(), "its worker learns of it");
    assert!(!complete(&queue, &running).await);
    assert_eq!(queue.count_explanations().await.unwrap(), 0);
    let elsewhere = JobFilter { source: Some(("other".into(), "1-res-12".into())), ..JobFilter::default() };
    assert_eq!(queue.cancel(&elsewhere).await.unwrap(), 0);
    assert_eq!(queue.cancel(&JobFilter::default()).await.unwrap(), 2);
    assert!(is_empty(&queue).await);
    assert_eq!(enqueue(&queue, &[2]).await, Enqueued { new: 0, raised: 1, known: 0 });
    assert_eq!(take(&queue).await.job.index, 2);
    assert_eq!(queue.retry(&JobFilter::default()).await.unwrap(), 2);
    // Whoever asks for a cancelled job asks for a new start.
    let tried = take(&queue).await;
    assert!(queue.fail(&tried, "503", Some(Duration::ZERO), Usage::default()).await.unwrap());
    assert_eq!(state(&queue, tried.job.index).await.tries, 1);
    let one = JobFilter { id: Some(tried.job.id), ..JobFilter::default() };
    assert_eq!(queue.cancel(&one).await.unwrap(), 1);
    assert_eq!(enqueue(&queue, &[tried.job.index]).await.raised, 1);
    let job = state(&queue, tried.job.index).await;
    assert_eq!((job.state, job.tries, job.lost, job.reason), (JobState::Queued, 0, 0, None));
}

async fn a_paused_endpoint_starts_nothing(queue: Queue) {
    enqueue(&queue, &[1, 2]).await;
    let running = take(&queue).await;
    assert_eq!(queue.pause(Some("elsewhere")).await.unwrap(), 0);
    assert_eq!(queue.pause(None).await.unwrap(), 1);
    assert_eq!(queue.claim(&assignment(), "w").await.unwrap(), Claim::Paused);
    assert!(complete(&queue, &running).await, "what runs may end");
    assert!(queue.list_endpoints().await.unwrap()[0].paused);
    assert_eq!(queue.resume(Some("local")).await.unwrap(), 1);
    assert_eq!(take(&queue).await.job.index, 2);
}

async fn an_endpoint_runs_so_many_at_once(queue: Queue) {
    queue.limit("local", 2, 0).await.unwrap();
    enqueue(&queue, &[1, 2, 3]).await;
    let (first, _second) = (take(&queue).await, take(&queue).await);
    assert_eq!(queue.claim(&assignment(), "w").await.unwrap(), Claim::Full);
    assert!(complete(&queue, &first).await);
    take(&queue).await;
    assert_eq!(queue.claim(&assignment(), "w").await.unwrap(), Claim::Full);
}

async fn an_endpoint_starts_so_many_a_minute(queue: Queue) {
    queue.limit("local", 10, 600).await.unwrap();
    enqueue(&queue, &[1, 2, 3, 4, 5, 6]).await;
    let started = Instant::now();
    let mut taken = 0;
    while taken < 6 {
        match queue.claim(&assignment(), "w").await.unwrap() {
            Claim::Job(_) => taken += 1,
            Claim::Wait(wait) => {
                assert!(wait <= Duration::from_millis(100), "{wait:?}");
                sleep(wait).await;
            }
            other => panic!("{other:?}"),
        }
    }
    // One in 100 ms: the sixth half a second after the first.
    assert!(started.elapsed() >= Duration::from_millis(480), "{:?}", started.elapsed());
}

async fn a_worker_gets_jobs_of_its_own_words_and_source_only(queue: Queue) {
    enqueue(&queue, &[1]).await;
    for other in [
        Assignment { prompt_hash: "other".into(), ..assignment() },
        Assignment { interpreter: "other".into(), ..assignment() },
        Assignment { source_id: "2-res-12".into(), ..assignment() },
        Assignment { sae_revision: "rebuilt".into(), ..assignment() },
        Assignment { endpoint: "elsewhere".into(), ..assignment() },
    ] {
        assert_eq!(queue.claim(&other, "w").await.unwrap(), Claim::Empty, "{other:?}");
        assert_eq!(queue.remaining(&other).await.unwrap(), 0);
    }
    assert_eq!(queue.remaining(&assignment()).await.unwrap(), 1);
    take(&queue).await;
    assert_eq!(queue.remaining(&assignment()).await.unwrap(), 1, "what runs remains");
}

async fn the_status_counts_and_foretells(queue: Queue) {
    assert!(queue.list_endpoints().await.unwrap().is_empty());
    enqueue(&queue, &(0..10).collect::<Vec<_>>()).await;
    let usage = Usage { input_tokens: 100, output_tokens: 5 };
    for _ in 0..3 {
        let lease = take(&queue).await;
        assert!(queue.complete(&lease, &explained("a cat"), usage, None).await.unwrap());
        sleep(Duration::from_millis(30)).await;
    }
    assert!(queue.fail(&take(&queue).await, "no", None, usage).await.unwrap());
    let running = take(&queue).await;
    let later = take(&queue).await;
    assert!(queue.fail(&later, "later", Some(Duration::ZERO), usage).await.unwrap());
    let status = queue.list_endpoints().await.unwrap().remove(0);
    assert_eq!((status.name.as_str(), status.done, status.dead, status.running), ("local", 3, 1, 1));
    assert_eq!((status.queued, status.delayed, status.cancelled), (5, 1, 0));
    assert_eq!((status.input_tokens, status.output_tokens), (500, 25));
    // 3 in at least 60 ms, 6 to go.
    let (rate, left) = (status.rate.unwrap(), status.seconds_left.unwrap());
    assert!(rate > 0.0 && rate <= 3_000.0, "{rate}");
    assert!((left - 6.0 / rate * 60.0).abs() < 1e-9, "{left}");

    let dead = JobFilter { state: Some(JobState::Dead), ..JobFilter::default() };
    let found = queue.list_jobs(&dead, 0, 0).await.unwrap();
    assert_eq!((found.total, found.jobs[0].reason.as_deref()), (1, Some("no")));
    let page = queue.list_jobs(&JobFilter::default(), 1, 4).await.unwrap();
    let started = queue.find_job(running.job.id).await.unwrap().unwrap().started_at.unwrap();
    assert!((started..started + 60_000).contains(&page.now), "{} is not the database's time", page.now);
    assert_eq!((page.total, page.jobs.len(), page.jobs[0].id), (10, 4, 6), "newest first, a page of four");
    assert_eq!(queue.find_job(running.job.id).await.unwrap().unwrap().state, JobState::Running);
    assert_eq!(queue.find_job(9_999).await.unwrap(), None);
}

async fn every_step_has_its_counts(queue: Queue) {
    // Nothing here may be put back, however slow the machine is.
    let queue = queue.with_rules(Rules { lease: Duration::from_secs(60), ..RULES });
    assert!(queue.list_kinds().await.unwrap().is_empty());
    // The later step is asked for first: the order is that of the steps.
    queue.enqueue(&assignment(), JobKind::Score, &[90, 91], VISITOR).await.unwrap();
    let one = JobFilter { id: Some(take(&queue).await.job.id), ..JobFilter::default() };
    assert_eq!(queue.cancel(&one).await.unwrap(), 1);
    assert_eq!(take(&queue).await.job.index, 91);
    enqueue(&queue, &[1, 2, 3, 4]).await;
    let elsewhere = Assignment { endpoint: "elsewhere".into(), ..assignment() };
    queue.enqueue(&elsewhere, JobKind::Explain, &[5], BULK).await.unwrap();
    let explain = take(&queue).await;
    let usage = Usage::default();
    assert!(queue.complete(&explain, &explained("a cat"), usage, Some(JobKind::Refine)).await.unwrap());
    assert!(queue.fail(&take(&queue).await, "no", None, usage).await.unwrap());
    take(&queue).await;
    let counts = |kind, [queued, running, done, dead, cancelled]: [u64; 5]| KindStatus {
        kind,
        queued,
        running,
        done,
        dead,
        cancelled,
    };
    let expected = [
        counts(JobKind::Explain, [2, 1, 1, 1, 0]),
        counts(JobKind::Refine, [1, 0, 0, 0, 0]),
        counts(JobKind::Score, [0, 1, 0, 0, 1]),
    ];
    assert_eq!(queue.list_kinds().await.unwrap(), expected);
}

async fn a_running_job_names_its_worker(queue: Queue) {
    enqueue(&queue, &[1]).await;
    assert_eq!(state(&queue, 1).await.worker, None);
    let lease = take(&queue).await;
    assert_eq!(lease.job.worker.as_deref(), Some("taker"));
    assert_eq!(state(&queue, 1).await.worker.as_deref(), Some("taker"));
    assert!(complete(&queue, &lease).await);
    assert_eq!(state(&queue, 1).await.worker, None);
}

async fn many_claim_at_once(queue: Queue) {
    queue.limit("local", 5, 0).await.unwrap();
    enqueue(&queue, &(0..40).collect::<Vec<_>>()).await;
    let claims = (0..16).map(|i| {
        let queue = queue.clone();
        tokio::spawn(async move { queue.claim(&assignment(), &format!("w{i}")).await.unwrap() })
    });
    let mut taken = Vec::new();
    for claim in claims.collect::<Vec<_>>() {
        match claim.await.unwrap() {
            Claim::Job(lease) => taken.push(lease.job.index),
            other => assert_eq!(other, Claim::Full),
        }
    }
    taken.sort_unstable();
    assert_eq!(taken, [0, 1, 2, 3, 4], "each once, and no more than may run");
}

async fn a_computed_score_is_kept_once(queue: Queue) {
    let score = |feature: u32, author: &str, value: f32| ComputedScore {
        feature,
        explanation: format!("{feature}-dissect"),
        description: "cat".into(),
        type_name: "iou".into(),
        author: author.into(),
        value,
        baseline: 0.1,
        interval: [value - 0.125, value + 0.125],
        samples: 20,
        effects: None,
        seed: u64::MAX - 1,
        image_set: "a set (4 pictures)".into(),
        created_at: String::new(),
    };
    let first = [score(1, "masks", 0.5), score(1, "a service", 0.25), score(2, "masks", 0.75)];
    queue.save_scores(&source(), &first).await.unwrap();
    let effects = Some(SteeringEffects { none: 2, mentions: 0, reasons: 3, unrelated: u32::MAX });
    queue.save_scores(&source(), &[ComputedScore { samples: 5, effects, ..score(1, "masks", 0.625) }]).await.unwrap();

    let found = queue.list_scores(&source(), None).await.unwrap();
    let values =
        |feature: u32| found[&feature].iter().map(|score| (score.author.as_str(), score.value)).collect::<Vec<_>>();
    assert_eq!(values(1), [("a service", 0.25), ("masks", 0.625)], "by author; the second run replaced the first");
    assert_eq!((values(2), found.len()), (vec![("masks", 0.75)], 2));
    let replaced = &found[&1][1];
    assert_eq!((replaced.samples, replaced.seed, replaced.interval), (5, u64::MAX - 1, [0.5, 0.75]));
    assert_eq!((replaced.effects, found[&1][0].effects), (effects, None));
    assert_eq!(replaced.created_at.len(), "2026-01-31".len());
    assert_eq!(queue.list_scores(&source(), Some(&[2, 3])).await.unwrap().keys().copied().collect::<Vec<_>>(), [2]);
    assert!(queue.list_scores(&source(), Some(&[])).await.unwrap().is_empty());
    let rebuilt = api::Source { provenance: api::Provenance::default(), ..source() };
    assert!(queue.list_scores(&rebuilt, None).await.unwrap().is_empty(), "of another SAE");

    // All or nothing: JSON has no NaN, and a page could not be read.
    let wrong = [score(3, "masks", 0.5), score(4, "masks", f32::NAN)];
    assert!(queue.save_scores(&source(), &wrong).await.unwrap_err().to_string().contains("feature 4"));
    assert_eq!(queue.list_scores(&source(), None).await.unwrap().len(), 2);
}
