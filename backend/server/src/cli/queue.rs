//! `lmm-scope queue`: what an operator sees of the queue, and does to it.

use super::{
    CliError,
    jobs::{JobsArgs, block_on},
    output::{print, print_json},
};
use api::{EndpointStatus, Job, JobKind, JobState};
use clap::builder::BoolishValueParser;
use serde::Serialize;
use store::jobs::{Found, JobFilter, Queue};

/// Look at the queue, limit it, pause it, cancel its jobs, or let dead ones start anew.
#[derive(Debug, Clone, clap::Args)]
pub struct QueueArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Clone, clap::Subcommand)]
enum Action {
    /// How every endpoint is doing: counts, tokens, rate, time left.
    Status(ShowArgs),
    /// Jobs, newest first.
    List(ListArgs),
    /// Let no further job start; running ones end.
    Pause(EndpointArgs),
    /// Let jobs start again.
    Resume(EndpointArgs),
    /// Limit an endpoint, over all workers.
    Limit(LimitArgs),
    /// Cancel jobs that wait or run.
    Cancel(ChooseArgs),
    /// Let dead and cancelled jobs start anew.
    Retry(ChooseArgs),
}

#[derive(Debug, Clone, clap::Args)]
struct ShowArgs {
    #[command(flatten)]
    jobs: JobsArgs,
    /// Print one JSON object.
    #[arg(long, env = "LMM_SCOPE_JSON", value_parser = BoolishValueParser::new())]
    json: bool,
}

#[derive(Debug, Clone, clap::Args)]
struct ListArgs {
    #[command(flatten)]
    show: ShowArgs,
    #[command(flatten)]
    filter: FilterArgs,
    /// Page of 48 jobs, counted from 0.
    #[arg(long, env = "LMM_SCOPE_PAGE", default_value_t = 0)]
    page: u32,
}

#[derive(Debug, Clone, clap::Args)]
struct EndpointArgs {
    #[command(flatten)]
    show: ShowArgs,
    /// Only this endpoint. Without it, all.
    #[arg(long, env = "LMM_SCOPE_ENDPOINT")]
    endpoint: Option<String>,
}

#[derive(Debug, Clone, clap::Args)]
struct LimitArgs {
    #[command(flatten)]
    show: ShowArgs,
    /// The endpoint: local, or the name of a server.
    #[arg(long, env = "LMM_SCOPE_ENDPOINT", default_value = "local")]
    endpoint: String,
    /// Jobs that may run at once.
    #[arg(long, env = "LMM_SCOPE_MAX_RUNNING", default_value_t = 16,
        value_parser = clap::value_parser!(u32).range(1..))]
    max_running: u32,
    /// Jobs that may start in a minute; 0: as many as there are.
    #[arg(long, env = "LMM_SCOPE_PER_MINUTE", default_value_t = 0)]
    per_minute: u32,
}

/// Which jobs.
#[derive(Debug, Clone, clap::Args)]
struct FilterArgs {
    /// The job with this id.
    #[arg(long, env = "LMM_SCOPE_ID")]
    id: Option<i64>,
    /// Jobs in this state: queued, running, done, dead or cancelled.
    #[arg(long, env = "LMM_SCOPE_STATE", value_parser = state)]
    state: Option<JobState>,
    /// Jobs of this kind: explain, refine, categorise or score.
    #[arg(long, env = "LMM_SCOPE_KIND", value_parser = kind)]
    kind: Option<JobKind>,
    /// Jobs at this endpoint.
    #[arg(long, env = "LMM_SCOPE_ENDPOINT")]
    endpoint: Option<String>,
    /// Jobs on this source: model/source.
    #[arg(long, env = "LMM_SCOPE_SOURCE", value_name = "MODEL/SOURCE", value_parser = source)]
    source: Option<(String, String)>,
}

#[derive(Debug, Clone, clap::Args)]
struct ChooseArgs {
    #[command(flatten)]
    show: ShowArgs,
    #[command(flatten)]
    filter: FilterArgs,
    /// All jobs, when nothing else chooses.
    #[arg(long, env = "LMM_SCOPE_ALL", value_parser = BoolishValueParser::new())]
    all: bool,
}

fn state(name: &str) -> Result<JobState, String> {
    JobState::from_name(name).ok_or_else(|| format!("`{name}` is not queued, running, done, dead or cancelled"))
}

fn kind(name: &str) -> Result<JobKind, String> {
    JobKind::from_name(name).ok_or_else(|| format!("`{name}` is not explain, refine, categorise or score"))
}

fn source(name: &str) -> Result<(String, String), String> {
    let (model, source) = name.split_once('/').ok_or_else(|| format!("`{name}` is not model/source"))?;
    Ok((model.to_owned(), source.to_owned()))
}

/// What an action says.
enum Said {
    Endpoints(Vec<EndpointStatus>),
    Jobs(Found),
    Changed { changed: u64, what: &'static str },
}

/// What `--json` prints of a change.
#[derive(Debug, Serialize)]
struct Changed {
    changed: u64,
}

/// # Errors
/// Bad input, in one line.
pub fn run(args: &QueueArgs) -> Result<(), CliError> {
    let show = args.action.show();
    let said = block_on(async {
        let queue = show.jobs.open_queue().await?;
        let said = args.action.take(&queue).await;
        queue.close().await;
        said
    })?;
    match said {
        Said::Endpoints(endpoints) if show.json => print_json(&endpoints),
        Said::Endpoints(endpoints) => print(&status_lines(&endpoints)),
        Said::Jobs(found) if show.json => print_json(&found.jobs),
        Said::Jobs(found) => print(&job_lines(&found.jobs, found.total)),
        Said::Changed { changed, .. } if show.json => print_json(&Changed { changed }),
        Said::Changed { changed, what } => print(&format!("{changed} {what}")),
    }
}

impl Action {
    fn show(&self) -> &ShowArgs {
        match self {
            Self::Status(show) => show,
            Self::List(args) => &args.show,
            Self::Pause(args) | Self::Resume(args) => &args.show,
            Self::Limit(args) => &args.show,
            Self::Cancel(args) | Self::Retry(args) => &args.show,
        }
    }

    async fn take(&self, queue: &Queue) -> Result<Said, CliError> {
        let (changed, what) = match self {
            Self::Status(_) => return Ok(Said::Endpoints(queue.list_endpoints().await?)),
            Self::List(args) => {
                return Ok(Said::Jobs(queue.list_jobs(&args.filter.to_filter(), args.page, 0).await?));
            }
            Self::Pause(args) => (queue.pause(args.endpoint.as_deref()).await?, "endpoints paused"),
            Self::Resume(args) => (queue.resume(args.endpoint.as_deref()).await?, "endpoints go on"),
            Self::Limit(args) => {
                queue.limit(&args.endpoint, args.max_running, args.per_minute).await?;
                (1, "endpoint limited")
            }
            Self::Cancel(args) => (queue.cancel(&args.chosen()?).await?, "jobs cancelled"),
            Self::Retry(args) => (queue.retry(&args.chosen()?).await?, "jobs wait again"),
        };
        Ok(Said::Changed { changed, what })
    }
}

impl FilterArgs {
    fn to_filter(&self) -> JobFilter {
        JobFilter {
            id: self.id,
            state: self.state,
            kind: self.kind,
            endpoint: self.endpoint.clone(),
            interpreter: None,
            source: self.source.clone(),
        }
    }
}

impl ChooseArgs {
    /// Everything is a choice that must be made on purpose.
    fn chosen(&self) -> Result<JobFilter, CliError> {
        let filter = self.filter.to_filter();
        if filter == JobFilter::default() && !self.all {
            return Err(CliError::flag(
                "--all",
                "name the jobs with --id, --state, --kind, --endpoint or --source, or all",
            ));
        }
        Ok(filter)
    }
}

fn status_lines(endpoints: &[EndpointStatus]) -> String {
    if endpoints.is_empty() {
        return "the queue is empty; fill it with lmm-scope explain".to_owned();
    }
    endpoints.iter().map(status_line).collect::<Vec<_>>().join("\n")
}

fn status_line(status: &EndpointStatus) -> String {
    let EndpointStatus { name, queued, delayed, running, done, dead, cancelled, .. } = status;
    let paused = if status.paused { " (paused)" } else { "" };
    let mut line = format!(
        "{name}{paused}: {queued} queued ({delayed} after a failed try), {running} of at most {} running, {done} done, \
         {dead} dead, {cancelled} cancelled; {} tokens read, {} written",
        status.max_running, status.input_tokens, status.output_tokens
    );
    if status.per_minute > 0 {
        line += &format!("; at most {} a minute", status.per_minute);
    }
    if let (Some(rate), Some(left)) = (status.rate, status.seconds_left) {
        line += &format!("; {rate:.1} a minute, {} left", duration(left));
    }
    line
}

/// `3 h 05 min`, `4 min`, `12 s`.
fn duration(seconds: f64) -> String {
    let seconds = seconds.round().max(0.0) as u64;
    match (seconds / 3600, seconds / 60) {
        (0, 0) => format!("{seconds} s"),
        (0, minutes) => format!("{minutes} min"),
        (hours, minutes) => format!("{hours} h {:02} min", minutes % 60),
    }
}

fn job_lines(jobs: &[Job], total: u32) -> String {
    let line = |job: &Job| {
        let Job { id, model_id, layer, index, interpreter, tries, lost, .. } = job;
        let (kind, state) = (job.kind.as_str(), job.state.as_str());
        let reason = job.reason.as_deref().map(|reason| format!(": {reason}")).unwrap_or_default();
        format!("{id} {state} {kind} {model_id}/{layer}/{index} by {interpreter}, {tries} failed, {lost} lost{reason}")
    };
    let mut lines: Vec<String> = jobs.iter().map(line).collect();
    lines.push(format!("{} of {total} jobs", jobs.len()));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_left_is_said_as_people_say_it() {
        assert_eq!([11.6, 240.0, 11_100.0].map(duration), ["12 s", "4 min", "3 h 05 min"]);
    }
}
