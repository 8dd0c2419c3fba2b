//! The worker: takes jobs, keeps their leases, writes what was found.

use super::{Answer, InterpretError, Interpreter, Task};
use crate::score::{SEED, Subjects};
use api::JobKind;
use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use store::{
    SourceEntry, Store, StoreError,
    jobs::{Assignment, Claim, Lease, Outcome, Queue, Usage},
};
use tokio::{
    sync::{OnceCell, watch},
    task::JoinSet,
    time::sleep,
};

/// Between two looks at a queue that has nothing.
const POLL: Duration = Duration::from_millis(500);
/// After the database failed; a worker outlives its restart.
const AFTER_FAILURE: Duration = Duration::from_secs(5);

/// How long an endpoint that is away is left alone: at first, and at most.
const AWAY: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(60)];

/// What a worker did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Tally {
    pub done: u64,
    /// Tries that ended with an error.
    pub failed: u64,
    /// Jobs that were cancelled or taken over meanwhile.
    pub lost: u64,
    pub input_tokens: u64,
    pub output_tokens: u64,
}

/// One process's part of the work on a source's features.
#[derive(Clone)]
pub struct Worker {
    store: Store,
    queue: Queue,
    source: SourceEntry,
    interpreter: Arc<dyn Interpreter>,
    assignment: Assignment,
    /// Unique, for leases.
    name: String,
    tally: Arc<Counters>,
    away: Arc<Mutex<Away>>,
    /// Opened when the first label is judged.
    subjects: Arc<OnceCell<Subjects>>,
}

/// An endpoint that is not there, or asks for patience.
#[derive(Debug, Default)]
struct Away {
    /// Times in a row.
    times: u32,
    /// When it may be asked again: lanes that failed beside each other are one time.
    until: Option<Instant>,
}

impl Away {
    /// How long it is left alone from now on, at least for `least`.
    fn wait(&mut self, least: Duration) -> Duration {
        let now = Instant::now();
        if self.until.is_none_or(|until| until <= now) {
            self.times = self.times.saturating_add(1);
        }
        let [first, most] = AWAY;
        let doubled = first.saturating_mul(2u32.checked_pow(self.times.saturating_sub(1)).unwrap_or(u32::MAX));
        let wait = doubled.min(most).max(least);
        self.until = now.checked_add(wait);
        wait
    }
}

#[derive(Debug, Default)]
struct Counters {
    done: AtomicU64,
    failed: AtomicU64,
    lost: AtomicU64,
    input_tokens: AtomicU64,
    output_tokens: AtomicU64,
}

/// How the work on one job ended.
enum End {
    Answered(Result<Answer, InterpretError>),
    /// Somebody cancelled it or has taken it over.
    Lost,
    Stopped,
}

impl Worker {
    pub fn new(store: Store, queue: Queue, source: SourceEntry, interpreter: Arc<dyn Interpreter>) -> Self {
        let assignment = interpreter.identity().assignment(&source.source);
        let name = format!("{}-{:016x}", std::process::id(), rand::random::<u64>());
        Self {
            store,
            queue,
            source,
            interpreter,
            assignment,
            name,
            tally: Arc::default(),
            away: Arc::default(),
            subjects: Arc::default(),
        }
    }

    /// Works with `at_once` jobs side by side until `stop` turns true; with `drain` also ends when nothing waits or
    /// runs any more. A job that is under way at a stop is given back.
    pub async fn run(&self, at_once: usize, drain: bool, stop: &watch::Receiver<bool>) -> Tally {
        let mut lanes = JoinSet::new();
        for _ in 0..at_once.max(1) {
            let (worker, stop) = (self.clone(), stop.clone());
            lanes.spawn(async move { worker.lane(drain, stop).await });
        }
        while let Some(ended) = lanes.join_next().await {
            if let Err(error) = ended {
                tracing::error!(%error, "a lane of the worker stopped; its job is taken over when its lease ends");
            }
        }
        self.tally()
    }

    /// What this worker did so far.
    pub fn tally(&self) -> Tally {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Tally {
            done: read(&self.tally.done),
            failed: read(&self.tally.failed),
            lost: read(&self.tally.lost),
            input_tokens: read(&self.tally.input_tokens),
            output_tokens: read(&self.tally.output_tokens),
        }
    }

    /// Takes one job after the other.
    async fn lane(&self, drain: bool, mut stop: watch::Receiver<bool>) {
        while !*stop.borrow() {
            let wait = match self.turn(drain, &mut stop).await {
                Ok(Some(wait)) => wait,
                Ok(None) => return,
                Err(error) => {
                    tracing::error!(%error, retry_secs = AFTER_FAILURE.as_secs(), "the queue failed");
                    AFTER_FAILURE
                }
            };
            if !wait.is_zero() {
                tokio::select! {
                    () = sleep(wait) => {}
                    () = stopped(&mut stop) => {}
                }
            }
        }
    }

    /// One job or none; says how long to wait then, `None` to end.
    async fn turn(&self, drain: bool, stop: &mut watch::Receiver<bool>) -> Result<Option<Duration>, StoreError> {
        match self.queue.claim(&self.assignment, &self.name).await? {
            Claim::Job(lease) => {
                self.work(&lease, stop).await?;
                Ok(Some(Duration::ZERO))
            }
            Claim::Wait(wait) => Ok(Some(wait)),
            // Jobs of other workers may bring further ones, or come back; a paused endpoint may go on.
            Claim::Paused | Claim::Full | Claim::Empty => {
                let ends = drain && self.queue.remaining(&self.assignment).await? == 0;
                Ok((!ends).then_some(POLL))
            }
        }
    }

    async fn work(&self, lease: &Lease, stop: &mut watch::Receiver<bool>) -> Result<(), StoreError> {
        let job = &lease.job;
        let end = tokio::select! {
            answer = self.answer(lease) => End::Answered(answer?),
            () = self.keep(lease) => End::Lost,
            () = stopped(stop) => End::Stopped,
        };
        let mine = match end {
            End::Answered(Ok(answer)) => {
                // A feature without an explanation has nothing to refine or score.
                let ends = matches!(answer.outcome, Outcome::Nothing { .. });
                let next = if ends { None } else { self.interpreter.next_step(job.kind) };
                let mine = self.queue.complete(lease, &answer.outcome, answer.usage, next).await?;
                self.count(&self.tally.done, mine, answer.usage);
                self.away().times = 0;
                mine
            }
            End::Answered(Err(InterpretError::Away { reason, after, usage })) => {
                let wait = self.away().wait(after);
                let endpoint = self.assignment.endpoint.as_str();
                tracing::warn!(endpoint, reason, wait_secs = wait.as_secs(), "the endpoint is left alone for a while");
                let mine = self.queue.hold(lease, &reason, wait, usage).await?;
                self.spend(usage);
                mine
            }
            End::Answered(Err(error)) => {
                let reason = error.to_string();
                let (retry, usage) = match error {
                    InterpretError::Again { after, usage, .. } | InterpretError::Away { after, usage, .. } => {
                        (Some(after), usage)
                    }
                    InterpretError::Never { usage, .. } => (None, usage),
                    InterpretError::Files { .. } => (None, Usage::default()),
                };
                tracing::warn!(job = job.id, feature = job.index, kind = job.kind.as_str(), reason, "a try failed");
                let mine = self.queue.fail(lease, &reason, retry, usage).await?;
                self.count(&self.tally.failed, mine, usage);
                mine
            }
            End::Lost => false,
            End::Stopped => {
                self.queue.release(lease).await?;
                return Ok(());
            }
        };
        if !mine {
            self.tally.lost.fetch_add(1, Ordering::Relaxed);
            tracing::info!(job = job.id, feature = job.index, "the job was cancelled or taken over");
        }
        Ok(())
    }

    async fn answer(&self, lease: &Lease) -> Result<Result<Answer, InterpretError>, StoreError> {
        let job = &lease.job;
        let interpreter = &*self.interpreter;
        let task = Task::load(&self.store, &self.queue, &self.source, interpreter, job.kind, job.index).await?;
        let Some(mut task) = task else {
            let reason = format!("the source has no feature {}", job.index);
            return Ok(Err(InterpretError::Never { reason, usage: Usage::default() }));
        };
        if job.kind == JobKind::Score && interpreter.judges() {
            let open = || Subjects::open(self.store.clone(), self.queue.clone(), self.source.clone(), SEED);
            let of = task.said.as_ref().map(|said| said.id.clone());
            let subjects = self.subjects.get_or_try_init(open).await?.load(job.index).await?;
            task.subject = subjects.into_iter().find(|subject| Some(&subject.explanation.id) == of.as_ref());
        }
        Ok(self.interpreter.interpret(&task).await)
    }

    /// Moves the lease on; ends when it is lost.
    async fn keep(&self, lease: &Lease) {
        loop {
            sleep(self.queue.rules().lease / 3).await;
            match self.queue.heartbeat(lease).await {
                Ok(true) => {}
                Ok(false) => return,
                // The lease may outlast the failure; if not, the job's end says so.
                Err(error) => tracing::warn!(%error, job = lease.job.id, "a heartbeat failed"),
            }
        }
    }

    fn count(&self, counter: &AtomicU64, mine: bool, usage: Usage) {
        if mine {
            counter.fetch_add(1, Ordering::Relaxed);
        }
        self.spend(usage);
    }

    fn away(&self) -> MutexGuard<'_, Away> {
        self.away.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn spend(&self, usage: Usage) {
        self.tally.input_tokens.fetch_add(usage.input_tokens, Ordering::Relaxed);
        self.tally.output_tokens.fetch_add(usage.output_tokens, Ordering::Relaxed);
    }
}

/// Ends when `stop` turns true, or never when nobody can turn it any more.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    if stop.wait_for(|stop| *stop).await.is_err() {
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_that_stays_away_is_asked_less_and_less() {
        let mut away = Away::default();
        // Lanes that fail beside each other are one time.
        assert_eq!([away.wait(Duration::ZERO), away.wait(Duration::ZERO)], [AWAY[0]; 2]);
        let mut waits = Vec::new();
        for _ in 0..9 {
            away.until = None;
            waits.push(away.wait(Duration::ZERO).as_secs());
        }
        assert_eq!(waits, [2, 4, 8, 16, 32, 60, 60, 60, 60]);
        assert_eq!(away.wait(Duration::from_secs(90)).as_secs(), 90, "as long as the server asks for");
        away.times = 0;
        away.until = None;
        assert_eq!(away.wait(Duration::ZERO), AWAY[0]);
    }
}
