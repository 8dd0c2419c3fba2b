//! `/queue` with a made-up queue: filled, filtered, empty, and not there.

use crate::{count, fixture::FixtureClient, page, page_by};
use api::{EndpointStatus, ErrorCode, Job, JobKind, JobList, JobQuery, JobState, KindStatus};
use frontend::{
    api::{Answer, Client, Endpoint, Pending, local_problem, write},
    render::Rendered,
};
use std::sync::Arc;

/// Milliseconds since 1970, long after the jobs began.
const NOW: i64 = 1_800_000_000_000;

/// One job for every case that a row has to show, newest first.
fn all_jobs() -> Vec<Job> {
    let job = |id: i64, kind, state| Job {
        id,
        model_id: "pocket".into(),
        layer: "3-res-3k".into(),
        index: 16 + id as u32,
        kind,
        state,
        interpreter: "openai".into(),
        endpoint: "local".into(),
        created_at: NOW - 7_500_000,
        run_at: NOW - 7_500_000,
        ..Job::default()
    };
    vec![
        Job { created_at: NOW - 12_000, ..job(5, JobKind::Refine, JobState::Queued) },
        Job { run_at: NOW + 40_000, tries: 2, ..job(4, JobKind::Explain, JobState::Queued) },
        Job {
            started_at: Some(NOW - 3_000),
            lost: 1,
            worker: Some("4711-0123456789abcdef".into()),
            ..job(3, JobKind::Explain, JobState::Running)
        },
        Job {
            ended_at: Some(NOW - 300_000),
            tries: 6,
            reason: Some("the server answered 500 <again>".into()),
            ..job(2, JobKind::Explain, JobState::Dead)
        },
        Job { ended_at: Some(NOW - 600_000), ..job(1, JobKind::Explain, JobState::Done) },
    ]
}

/// What the API answers; four jobs on a page unless more are asked for.
pub fn jobs(query: &JobQuery) -> JobList {
    let fits = |job: &Job| {
        query.state.is_none_or(|state| state == job.state) && query.kind.is_none_or(|kind| kind == job.kind)
    };
    let found: Vec<Job> = all_jobs().into_iter().filter(fits).collect();
    let (total, per_page) = (found.len() as u32, if query.per_page == 0 { 4 } else { query.per_page });
    let status = EndpointStatus {
        name: "local".into(),
        max_running: 16,
        queued: 2,
        delayed: 1,
        running: 1,
        done: 1,
        dead: 1,
        input_tokens: 12_345,
        output_tokens: 678,
        rate: Some(1.5),
        seconds_left: Some(120.0),
        ..EndpointStatus::default()
    };
    JobList {
        endpoints: vec![status],
        kinds: vec![
            KindStatus { kind: JobKind::Explain, queued: 1, running: 1, done: 1, dead: 1, cancelled: 0 },
            KindStatus { kind: JobKind::Refine, queued: 1, ..KindStatus::default() },
        ],
        jobs: found.into_iter().skip((query.page * per_page) as usize).take(per_page as usize).collect(),
        total,
        now: NOW,
        page: query.page,
        per_page,
    }
}

/// The made-up source beside a queue that answers this.
struct WithQueue(Answer<JobList>);

impl Client for WithQueue {
    fn get(&self, endpoint: Endpoint) -> Pending {
        if !matches!(endpoint, Endpoint::Jobs(_)) {
            return FixtureClient.get(endpoint);
        }
        let answer = self.0.clone();
        Box::pin(async move {
            tokio::task::yield_now().await;
            write(&answer?)
        })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_queue_shows_counts_steps_and_jobs_before_any_script() {
    let Rendered { status, html, .. } = page("/queue").await;
    assert_eq!(status, 200);
    assert!(html.contains("<title>Queue · LMM Scope</title>"));
    assert!(html.contains(">12,345<") && html.contains(">678<"), "tokens");
    assert!(html.contains("<caption>"), "the table says what it counts");
    assert_eq!(count(&html, "scope=\"row\""), 2, "one row for each kind that was asked for");
    assert_eq!(count(&html, "scope=\"col\""), 6);
    assert!(html.contains("width:25.0%"), "one of four explanations is done");
    assert!(html.contains("1 of at most 16 at once") && html.contains("about 2 min for what is queued now"));
    assert_eq!(count(&html, "data-testid=\"job\""), 4, "the first page");
    assert!(html.contains("href=\"/queue?page=1\""), "a way to the next page");
    assert!(html.contains("href=\"/pocket/3-res-3k/18\""), "a job leads to its feature");
    for said in ["waits 12 s", "again in 40 s", "runs 3 s", "5 min ago"] {
        assert!(html.contains(&format!(">{said}<")), "no job says “{said}”");
    }
    assert!(html.contains("job 4 by openai · 2 failed tries"));
    assert!(html.contains("1 worker vanished · worker 4711-0123456789abcdef"));
    assert!(html.contains("class=\"job-reason\">the server answered 500 &lt;again&gt;<"), "the reason of a dead one");
    assert!(html.contains("lmm-scope queue pause"), "what only the operator may do");
    assert!(html.contains("All jobs, newest first"));
    let second = page("/queue?page=1").await.html;
    assert_eq!(count(&second, "data-testid=\"job\""), 1);
    assert!(second.contains("10 min ago"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_queues_filters_are_a_form_and_their_state_is_the_address() {
    let Rendered { status, html, .. } = page("/queue?state=dead&kind=explain").await;
    assert_eq!(status, 200);
    assert_eq!(count(&html, "data-testid=\"job\""), 1);
    assert!(html.contains("data-state=\"dead\"") && html.contains("Only dead explain jobs, newest first"));
    assert!(html.contains("method=\"get\" action=\"/queue\""), "a form that works without scripts");
    for chosen in ["dead", "explain"] {
        let option = format!("<option value=\"{chosen}\" selected");
        assert!(html.contains(&option), "{chosen} is not chosen in its list");
    }
    assert!(html.contains(">12,345<"), "the counts are those of the whole queue");
    let paged = page("/queue?kind=explain&perPage=2").await.html;
    assert!(paged.contains("href=\"/queue?kind=explain&amp;page=1&amp;perPage=2\""), "the next page keeps the filters");
    let none = page("/queue?state=cancelled").await.html;
    assert!(none.contains("No job fits these filters."));
    assert_eq!(count(&none, "data-testid=\"job\""), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_queue_says_how_it_is_filled() {
    let empty = JobList { now: NOW, per_page: 48, ..JobList::default() };
    let Rendered { status, html, .. } = page_by("/queue", Arc::new(WithQueue(Ok(empty)))).await;
    assert_eq!(status, 200);
    assert_eq!(count(&html, "data-testid=\"queue-empty\""), 1);
    assert!(html.contains("lmm-scope explain --features 0-99\nlmm-scope work --drain"));
    assert_eq!(count(&html, "data-testid=\"job\"") + count(&html, "<table"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_does_not_answer_is_one_problem() {
    let detail = "The database of the jobs cannot be reached.";
    let problem = local_problem(ErrorCode::Internal, "No queue", detail);
    let Rendered { status, html, .. } = page_by("/queue", Arc::new(WithQueue(Err(problem)))).await;
    assert_eq!(status, 500);
    assert_eq!(count(&html, "data-testid=\"error-message\""), 1, "said once");
    assert!(html.contains(&format!("<p>{detail}</p>")));
    assert!(html.contains("<h1>Queue of interpretation</h1>"));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_page_leads_to_the_queue() {
    for path in ["/", "/docs", "/pocket/3-res-3k/0"] {
        assert!(page(path).await.html.contains("href=\"/queue\""), "{path}");
    }
}
