//! The engine's thread: which job next.

use super::{
    AttributeInput, EngineError, ExtractInput, Hidden, SteerEvents, SteerInput, loaded::LoadedModel, steering::Steering,
};
use api::AttributeResult;
use burn::tensor::backend::Backend;
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::atomic::AtomicUsize,
};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

pub(super) type Reply<T> = oneshot::Sender<Result<T, EngineError>>;

pub(super) enum Job {
    Extract { input: ExtractInput, reply: Reply<Hidden> },
    Attribute { input: AttributeInput, reply: Reply<AttributeResult> },
    Steer { input: SteerInput, reply: Reply<SteerEvents> },
}

/// A job and its place in the queue, which is free again when the job begins or is dropped.
pub(super) struct Ticket {
    pub job: Job,
    pub place: OwnedSemaphorePermit,
}

/// Works until every handle is gone.
pub(super) fn work<B: Backend>(
    model: &LoadedModel<B>,
    mut jobs: mpsc::UnboundedReceiver<Ticket>,
    running: &AtomicUsize,
) {
    let mut steering = Steering::new(model, running);
    loop {
        let mut waiting = Vec::new();
        if steering.is_idle() {
            match jobs.blocking_recv() {
                Some(ticket) => waiting.push(ticket),
                None => return,
            }
        }
        // Only those that are here now: more may come while they are done, and the texts must go on.
        waiting.extend(std::iter::from_fn(|| jobs.try_recv().ok()));
        for Ticket { job, place } in waiting {
            match job {
                Job::Steer { input, reply } => steering.wait(input, reply, place),
                Job::Extract { input, reply } => at_once(reply, place, |gone| model.extract(input, gone)),
                Job::Attribute { input, reply } => at_once(reply, place, |gone| model.attribute(input, gone)),
            }
        }
        steering.guarded_turn();
    }
}

/// Does a job, unless its client has gone; the job may ask whether it has in the meantime.
fn at_once<T>(
    reply: Reply<T>,
    place: OwnedSemaphorePermit,
    job: impl FnOnce(&dyn Fn() -> bool) -> Result<T, EngineError>,
) {
    drop(place);
    if reply.is_closed() {
        return tracing::debug!("a job was cancelled while waiting");
    }
    // A panic is a bug in the model's code; it costs this job its answer, not the server its engine.
    match catch_unwind(AssertUnwindSafe(|| job(&|| reply.is_closed()))) {
        Ok(Err(EngineError::Model(model::Error::Cancelled))) => tracing::debug!("a job was cancelled while it ran"),
        Ok(answer) => drop(reply.send(answer)),
        Err(_) => tracing::error!("a job of the engine panicked"),
    }
}
