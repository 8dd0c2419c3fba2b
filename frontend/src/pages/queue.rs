//! `/queue`: what the queue of interpretation is doing; every state of its list is in the address.

use crate::{
    api::{Fetched, SourceKey, endpoint},
    components::{Erase, Load, Pager, Picker, Skeleton, Stat},
    format::{count, duration, fixed, sig3},
    links::{feature_path, job_query_from_params, queue_path},
};
use api::{EndpointStatus, Job, JobKind, JobList, JobQuery, JobState, KindStatus};
use leptos::prelude::*;
use leptos_meta::{Meta, Title};
use leptos_router::{
    NavigateOptions,
    hooks::{use_navigate, use_query_map},
};
use std::time::Duration;

/// Between two questions, while something waits or runs.
const EVERY: Duration = Duration::from_secs(5);

/// How a queue is filled and emptied.
const FILL: &str = "lmm-scope explain --features 0-99\nlmm-scope work --drain";

/// What is not on the network.
const OPERATE: &str = "lmm-scope queue pause
lmm-scope queue resume
lmm-scope queue limit --max-running 4
lmm-scope queue cancel --state queued
lmm-scope queue retry --state dead";

#[component]
pub fn QueuePage() -> impl IntoView {
    let params = use_query_map();
    let query = Memo::new(move |_| job_query_from_params(&params.read()));
    let list = Fetched::new(move || endpoint::jobs(query.get()));
    let busy = StoredValue::new(false);
    ask_again(list, busy);
    view! {
        <Title text="Queue" />
        <Meta property="og:title" content="Queue of interpretation" />
        <div class="queue">
            <header class="queue-head">
                <h1>"Queue of interpretation"</h1>
                <p class="lead">
                    "Features wait here until somebody says what they are about: ground truth, or a larger model. A job is one step for one feature. While something waits or runs, these numbers are fetched again every "
                    {EVERY.as_secs()}" seconds."
                </p>
            </header>
            <Load
                resource=list
                waiting=|| view! { <Skeleton shape="rows" count=3 /> }
                view=move |list: JobList| {
                    busy.set_value(is_busy(&list));
                    view! { <Overview list /> }
                }
            />
            <section class="queue-jobs">
                <h2>"Jobs"</h2>
                <Filters query />
                <Load
                    resource=list
                    quiet=true
                    waiting=|| view! { <Skeleton shape="rows" count=8 /> }
                    view=move |list: JobList| view! { <Jobs query=query.get_untracked() list /> }
                />
            </section>
            <details class="where">
                <summary>"Pause, limit, cancel, try again"</summary>
                <p>
                    "The server knows no users, so these are commands on its machine. A paused queue starts no job; those that run end. Name the jobs' database with "
                    <code class="mono">"--queue"</code>" if workers on several machines share it."
                </p>
                <pre tabindex="0">{OPERATE}</pre>
            </details>
        </div>
    }
}

/// Whether anything may change without somebody asking for it.
fn is_busy(list: &JobList) -> bool {
    list.kinds.iter().any(|kind| kind.queued + kind.running > 0)
}

/// Asks again while the page is on the screen and its last answer was busy. Effects run in browsers only.
fn ask_again(list: Fetched<JobList>, busy: StoredValue<bool>) {
    Effect::new(move |_| {
        let ask = move || {
            if busy.try_get_value() == Some(true) && !document().hidden() {
                list.text.refetch();
            }
        };
        let timer = set_interval_with_handle(ask, EVERY).ok();
        on_cleanup(move || {
            if let Some(timer) = timer {
                timer.clear();
            }
        });
    });
}

/// Counts by state and step, tokens, and how the endpoints are doing.
#[component]
fn Overview(list: JobList) -> impl IntoView {
    let JobList { endpoints, kinds, .. } = list;
    if kinds.is_empty() {
        return view! { <Empty /> }.erased();
    }
    let jobs = |state: fn(&KindStatus) -> u64| kinds.iter().map(state).sum::<u64>();
    let tokens = |way: fn(&EndpointStatus) -> u64| endpoints.iter().map(way).sum::<u64>();
    let stats = [
        ("queued", jobs(|kind| kind.queued), "jobs that wait for a worker, those after a failed try included"),
        ("running", jobs(|kind| kind.running), "jobs that a worker has"),
        ("done", jobs(|kind| kind.done), "jobs that ended as they should; one may have found nothing to say"),
        ("dead", jobs(|kind| kind.dead), "jobs given up, after too many tries or at once; each keeps its reason"),
        ("cancelled", jobs(|kind| kind.cancelled), "jobs that the operator took back"),
        (
            "tokens read",
            tokens(|endpoint| endpoint.input_tokens),
            "by a larger model, in all tries; ground truth reads none",
        ),
        ("tokens written", tokens(|endpoint| endpoint.output_tokens), "by a larger model, in all tries"),
    ];
    let stats =
        stats.into_iter().map(|(name, number, about)| view! { <Stat name value=count(number) about /> }).collect_view();
    let rows = kinds.iter().map(step_row).collect_view();
    let heads = JobState::ALL
        .into_iter()
        .map(|state| view! { <th scope="col" class="number">{state.as_str()}</th> })
        .collect_view();
    let endpoints = endpoints
        .iter()
        .map(|endpoint| {
            view! {
                <li>
                    <strong class="mono">{endpoint.name.clone()}</strong>
                    {format!(": {}", endpoint_line(endpoint))}
                </li>
            }
        })
        .collect_view();
    view! {
        <section class="queue-overview" data-testid="queue-overview">
            <dl class="stats">{stats}</dl>
            <table class="steps-table">
                <caption>"Jobs by step. A feature's next step is asked for when the one before is done."</caption>
                <thead>
                    <tr>
                        <th scope="col">"step"</th>
                        {heads}
                    </tr>
                </thead>
                <tbody>{rows}</tbody>
            </table>
            <ul class="endpoints" aria-label="Who answers">{endpoints}</ul>
        </section>
    }
    .erased()
}

/// One kind: its counts, and a bar of the share that is done.
fn step_row(kind: &KindStatus) -> impl IntoView + use<> {
    let KindStatus { queued, running, done, dead, cancelled, .. } = *kind;
    // Cancelled jobs are not to be done.
    let share = done as f64 / (queued + running + done + dead).max(1) as f64;
    let cells = [queued, running, done, dead, cancelled]
        .into_iter()
        .map(|number| view! { <td class="number">{count(number)}</td> })
        .collect_view();
    view! {
        <tr>
            <th scope="row">
                {kind.kind.as_str()}
                <span class="step-bar" aria-hidden="true">
                    <i style=format!("width:{}%", fixed(share * 100.0, 1))></i>
                </span>
            </th>
            {cells}
        </tr>
    }
}

/// How a place that answers is doing, in one line.
fn endpoint_line(endpoint: &EndpointStatus) -> String {
    let EndpointStatus { paused, max_running, per_minute, queued, delayed, running, rate, seconds_left, .. } = endpoint;
    let mut said = Vec::new();
    if *paused {
        said.push("paused".to_owned());
    }
    said.push(format!("{} of at most {} at once", count(*running), count(*max_running)));
    if *per_minute > 0 {
        said.push(format!("at most {} a minute", count(*per_minute)));
    }
    if *delayed > 0 {
        said.push(format!("{} waiting after a failed try", count(*delayed)));
    }
    if let Some(rate) = rate {
        said.push(format!("{} a minute in the last ten minutes", sig3(*rate as f32)));
    }
    // What is paused has no end, and later steps come on top.
    if let Some(seconds) = seconds_left.filter(|_| !paused && queued + running > 0) {
        said.push(format!("about {} for what is queued now", duration((seconds * 1_000.0) as i64)));
    }
    said.join(" · ")
}

#[component]
fn Empty() -> impl IntoView {
    view! {
        <div class="notice queue-empty" data-testid="queue-empty">
            <strong>"Nobody has asked for anything yet."</strong>
            <p>"On the server's machine, the first command asks for explanations, and the second one makes them:"</p>
            <pre tabindex="0">{FILL}</pre>
            <p>
                "Visitors ask for one feature with "
                <code class="mono">"POST /api/v1/{model}/{source}/features/{index}/explain"</code>"."
            </p>
        </div>
    }
}

/// State and kind. A GET form without scripts; live with them.
#[component]
fn Filters(query: Memo<JobQuery>) -> impl IntoView {
    let navigate = use_navigate();
    let go = Callback::new(move |query: JobQuery| {
        let options = NavigateOptions { scroll: false, replace: true, ..NavigateOptions::default() };
        navigate(&queue_path(&query), options);
    });
    let change = move |edit: fn(&mut JobQuery, &str)| {
        Callback::new(move |event: web_sys::Event| {
            let mut next = JobQuery { page: 0, ..query.get_untracked() };
            edit(&mut next, &event_target_value(&event));
            go.run(next);
        })
    };
    let states = JobState::ALL.map(|state| (state.as_str(), state.as_str())).to_vec();
    let kinds = JobKind::ALL.map(|kind| (kind.as_str(), kind.as_str())).to_vec();
    let state = Signal::derive(move || query.get().state.map_or("", JobState::as_str).to_owned());
    let kind = Signal::derive(move || query.get().kind.map_or("", JobKind::as_str).to_owned());
    view! {
        <form class="filter-form" method="get" action="/queue">
            <Picker
                name="state"
                any="every state"
                options=states
                value=state
                on_change=change(|query, value| query.state = JobState::from_name(value))
            />
            <Picker
                name="kind"
                any="every step"
                options=kinds
                value=kind
                on_change=change(|query, value| query.kind = JobKind::from_name(value))
            />
            <input r#type="hidden" name="perPage" value=move || query.get().per_page.to_string() />
            <button class="button no-script">"Apply"</button>
        </form>
    }
}

#[component]
fn Jobs(query: JobQuery, list: JobList) -> impl IntoView {
    let JobList { jobs, total, now, page, per_page, .. } = list;
    let chosen: String = [query.state.map(JobState::as_str), query.kind.map(JobKind::as_str)]
        .into_iter()
        .flatten()
        .map(|name| format!("{name} "))
        .collect();
    let said = match (total, chosen.as_str()) {
        (0, _) => "No job fits these filters.".to_owned(),
        (_, "") => "All jobs, newest first".to_owned(),
        _ => format!("Only {chosen}jobs, newest first"),
    };
    // Apart from what is read aloud: it changes with every look at a busy queue.
    let number = (total > 0).then(|| format!(" · {}", count(total)));
    let rows = jobs.into_iter().map(|job| job_row(job, now)).collect_view();
    let pages = total.div_ceil(per_page.max(1));
    view! {
        <p class="found">
            <span role="status" data-testid="job-filter">{said}</span>
            <span class="faint" data-testid="job-count">{number}</span>
        </p>
        <ul class="jobs" role="list" aria-label="Jobs">{rows}</ul>
        <Pager page pages href=move |page: u32| queue_path(&JobQuery { page, ..query.clone() }) />
    }
}

fn job_row(job: Job, now: i64) -> impl IntoView {
    let (time, by) = (time_of(&job, now), by(&job));
    let key = SourceKey::new(job.model_id, job.layer);
    let feature = format!("{}/{}/{}", key.model, key.source, job.index);
    let state = job.state.as_str();
    view! {
        <li class="job" data-testid="job" data-state=state>
            <span class="job-kind">{job.kind.as_str()}</span>
            <a class="job-feature mono" href=feature_path(&key, job.index)>
                {feature}
            </a>
            <span class="job-state">{state}</span>
            <span class="job-time">{time}</span>
            <span class="job-by">{by}</span>
            {job.reason.map(|reason| view! { <p class="job-reason">{reason}</p> })}
        </li>
    }
}

/// How long it waits, runs, or has been over.
fn time_of(job: &Job, now: i64) -> String {
    let since = |time: i64| duration(now.saturating_sub(time));
    match job.state {
        JobState::Queued if job.run_at > now => format!("again in {}", duration(job.run_at.saturating_sub(now))),
        JobState::Queued => format!("waits {}", since(job.created_at)),
        JobState::Running => format!("runs {}", since(job.started_at.unwrap_or(now))),
        JobState::Done | JobState::Dead | JobState::Cancelled => {
            format!("{} ago", since(job.ended_at.unwrap_or(job.created_at)))
        }
    }
}

/// Which job, by whom, and what went wrong on the way.
fn by(job: &Job) -> String {
    let mut said = vec![format!("job {} by {}", job.id, job.interpreter)];
    match job.tries {
        0 => {}
        1 => said.push("1 failed try".to_owned()),
        tries => said.push(format!("{} failed tries", count(tries))),
    }
    match job.lost {
        0 => {}
        1 => said.push("1 worker vanished".to_owned()),
        lost => said.push(format!("{} workers vanished", count(lost))),
    }
    if let Some(worker) = &job.worker {
        said.push(format!("worker {worker}"));
    }
    said.join(" · ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jobs_time_is_that_of_its_state() {
        let job = Job { created_at: 0, run_at: 0, started_at: Some(60_000), ended_at: Some(90_000), ..Job::default() };
        let said = |state, run_at| time_of(&Job { state, run_at, ..job.clone() }, 120_000);
        assert_eq!(said(JobState::Queued, 0), "waits 2 min");
        assert_eq!(said(JobState::Queued, 140_000), "again in 20 s");
        assert_eq!(said(JobState::Running, 0), "runs 1 min");
        assert_eq!(said(JobState::Dead, 0), "30 s ago");
    }

    #[test]
    fn what_is_paused_has_no_time_left() {
        let endpoint = EndpointStatus {
            max_running: 16,
            queued: 30,
            running: 2,
            rate: Some(12.0),
            seconds_left: Some(160.0),
            ..EndpointStatus::default()
        };
        let said = endpoint_line(&endpoint);
        let expected =
            "2 of at most 16 at once · 12.0 a minute in the last ten minutes · about 2 min for what is queued now";
        assert_eq!(said, expected);
        let paused = endpoint_line(&EndpointStatus { paused: true, per_minute: 60, delayed: 1, ..endpoint });
        assert!(paused.starts_with("paused · ") && !paused.contains("about"), "{paused}");
        assert!(paused.contains("at most 60 a minute") && paused.contains("1 waiting after a failed try"), "{paused}");
    }
}
