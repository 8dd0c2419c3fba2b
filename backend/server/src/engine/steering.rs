//! Steer requests, written side by side: each turn of the engine adds one token to every text.

use super::{
    EngineError, SteerEvents, SteerInput,
    actor::Reply,
    loaded::{LoadedModel, generate_options},
};
use api::{Column, SteerEvent, SteerResult};
use burn::tensor::backend::Backend;
use model::batch::{Batch, RowId, Step};
use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::atomic::{AtomicUsize, Ordering},
};
use tokio::sync::{OwnedSemaphorePermit, mpsc};

/// Steer requests that run at once, three texts each.
const MAX_RUNNING: usize = 4;
const COLUMNS: [Column; 3] = [Column::Default, Column::Reconstructed, Column::Steered];

/// A request that has not begun.
struct Waiting {
    input: SteerInput,
    reply: Reply<SteerEvents>,
    place: OwnedSemaphorePermit,
}

/// A request whose texts are being written.
struct Running {
    events: mpsc::UnboundedSender<SteerEvent>,
    /// Texts that have not ended.
    rows: Vec<(RowId, Column)>,
    /// Filled text by text.
    result: SteerResult,
}

/// All steer requests of an engine.
pub(super) struct Steering<'m, B: Backend> {
    model: &'m LoadedModel<B>,
    batch: Batch<'m, B>,
    waiting: VecDeque<Waiting>,
    running: Vec<Running>,
    /// `running.len()`, for whoever asks from outside.
    count: &'m AtomicUsize,
}

impl<'m, B: Backend> Steering<'m, B> {
    pub(super) fn new(model: &'m LoadedModel<B>, count: &'m AtomicUsize) -> Self {
        let batch = Batch::new(&model.lmm);
        Self { model, batch, waiting: VecDeque::new(), running: Vec::new(), count }
    }

    /// Nothing runs and nothing waits.
    pub(super) fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty()
    }

    /// Takes a request in; it keeps its place in the queue until it begins.
    pub(super) fn wait(&mut self, input: SteerInput, reply: Reply<SteerEvents>, place: OwnedSemaphorePermit) {
        self.waiting.push_back(Waiting { input, reply, place });
    }

    /// One turn. A bug outside the batch's own guard ends what runs, and never the engine.
    pub(super) fn guarded_turn(&mut self) {
        if catch_unwind(AssertUnwindSafe(|| self.turn())).is_err() {
            self.fail("the model stopped unexpectedly");
        }
    }

    /// Lets go of clients that have left, begins what there is room for, and writes one token of every text.
    fn turn(&mut self) {
        self.forget_the_gone();
        while self.running.len() < MAX_RUNNING
            && let Some(waiting) = self.waiting.pop_front()
        {
            self.begin(waiting);
        }
        self.note();
        if !self.running.is_empty() {
            self.step();
        }
    }

    /// Tells those outside how many run, before a client is told that its run has ended.
    fn note(&self) {
        self.count.store(self.running.len(), Ordering::Relaxed);
    }

    fn forget_the_gone(&mut self) {
        self.waiting.retain(|waiting| !waiting.reply.is_closed());
        let batch = &mut self.batch;
        self.running.retain(|running| {
            let gone = running.events.is_closed();
            if gone {
                running.rows.iter().for_each(|(row, _)| batch.leave(*row));
            }
            !gone
        });
    }

    fn begin(&mut self, waiting: Waiting) {
        let Waiting { input, reply, place } = waiting;
        drop(place);
        // A panic is a bug in the model's code; it costs this request its answer, not the others theirs.
        match catch_unwind(AssertUnwindSafe(|| self.join(input))) {
            Ok(Ok((running, events))) => {
                self.running.push(running);
                // Who has gone by now is noticed at the next turn.
                reply.send(Ok(events)).ok();
            }
            Ok(Err(error)) => drop(reply.send(Err(error))),
            Err(_) => tracing::error!("a steer request panicked before its first token"),
        }
    }

    fn join(&mut self, input: SteerInput) -> Result<(Running, SteerEvents), EngineError> {
        let SteerInput { request, image } = input;
        let prepared = self.model.prepare(request.prompt.clone(), true, image)?;
        let rows = self.batch.join(&prepared, &generate_options(&request), &self.model.variants(&request))?;
        let result = SteerResult {
            steer_method: request.steer_method,
            positions: request.positions,
            token_positions: request.token_positions,
            keep_error: request.keep_error,
            provenance: self.model.provenance(&prepared),
            ..SteerResult::default()
        };
        let (events, receiver) = mpsc::unbounded_channel();
        Ok((Running { events, rows: rows.into_iter().zip(COLUMNS).collect(), result }, receiver))
    }

    /// One token of every text. What goes wrong with one is told to its client alone.
    fn step(&mut self) {
        for (row, step) in self.batch.step() {
            self.pass_on(row, step);
        }
    }

    /// Ends all that runs; what comes next begins with a batch of its own.
    fn fail(&mut self, detail: &str) {
        tracing::error!(detail, requests = self.running.len(), "steering failed");
        let failed = std::mem::take(&mut self.running);
        self.note();
        for running in failed {
            running.events.send(SteerEvent::Failed { detail: detail.to_owned() }).ok();
        }
        self.batch = Batch::new(&self.model.lmm);
    }

    /// Ends one request: without one of its texts the others say nothing.
    fn give_up(&mut self, number: usize, failed: RowId, error: &model::Error) {
        let detail = error.to_string();
        match error {
            model::Error::Overflow { .. } => tracing::info!(detail, "a steer request was given up"),
            _ => tracing::error!(detail, "a steer request failed"),
        }
        let Running { events, rows, .. } = self.running.remove(number);
        for (row, _) in rows.into_iter().filter(|(row, _)| *row != failed) {
            self.batch.leave(row);
        }
        self.note();
        events.send(SteerEvent::Failed { detail }).ok();
    }

    /// Brings what happened to a row to its client. (Sending fails when the client has gone: see the next turn.)
    fn pass_on(&mut self, row: RowId, step: Step) {
        let found = self.running.iter().enumerate().find_map(|(number, running)| {
            let place = running.rows.iter().position(|(id, _)| *id == row)?;
            Some((number, place))
        });
        let Some((number, place)) = found else {
            // Left behind by a request that panicked when it began.
            return self.batch.leave(row);
        };
        let running = &mut self.running[number];
        let column = running.rows[place].1;
        let generation = match step {
            Step::Token(token) => {
                let token = self.model.text_token(&token);
                running.events.send(SteerEvent::Token { column, token }).ok();
                return;
            }
            Step::Ended(generation) => generation,
            Step::Failed(error) => return self.give_up(number, row, &error),
        };
        let text = match column {
            Column::Default => &mut running.result.default,
            Column::Reconstructed => &mut running.result.reconstructed,
            Column::Steered => &mut running.result.steered,
        };
        *text = self.model.steered_text(&generation);
        running.rows.remove(place);
        if running.rows.is_empty() {
            let Running { events, result, .. } = self.running.remove(number);
            self.note();
            events.send(SteerEvent::Done { result }).ok();
        }
    }
}
