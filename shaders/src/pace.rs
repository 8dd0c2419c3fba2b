//! How much work goes into one submission: measured, so that a slow GPU stays responsive and a fast one busy.

use std::cell::Cell;
use std::ops::Range;

use web_time::Instant;
use wgpu::Buffer;

use crate::gpu::{Gpu, Submitted};
use crate::{Cancel, Error};

/// A submission should take about this long: Windows resets a GPU after 2 s, and a visitor notices 100 ms.
const TARGET_SECONDS: f64 = 0.04;
/// Work of the first submission, in multiply-adds: 0.1 s on the slowest software adapter that was seen.
const FIRST_WORK: f64 = (1u64 << 25) as f64;
/// A submission is at most this many times the largest one so far: early measurements are mostly latency.
const GROWTH: f64 = 4.0;
/// What takes less is mostly latency.
const SHORT_SECONDS: f64 = 0.25 * TARGET_SECONDS;

/// The speed that was measured, and what follows from it.
///
/// Work is counted in multiply-adds of the encoder. Where a kernel waits for memory or for atomic operations, one of
/// its steps counts as several: the first submission must not be too long there either.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pace {
    /// Seconds per multiply-add; 0 before the first measurement.
    seconds_per_work: f64,
    /// The most that may be asked for next.
    most: f64,
    /// The most that may ever be asked for.
    limit: f64,
}

impl Default for Pace {
    fn default() -> Self {
        Self { seconds_per_work: 0.0, most: FIRST_WORK, limit: f64::INFINITY }
    }
}

impl Pace {
    /// Never more than `work` multiply-adds in a submission, however fast the GPU; at least the smallest piece of a
    /// kernel. (Tests of work in many pieces.)
    #[must_use]
    pub fn at_most(work: f64) -> Self {
        Self { most: FIRST_WORK.min(work), limit: work, ..Self::default() }
    }

    /// Multiply-adds that the next submission should have.
    #[must_use]
    pub fn next_work(&self) -> f64 {
        if self.seconds_per_work == 0.0 {
            return self.most;
        }
        (TARGET_SECONDS / self.seconds_per_work).min(self.most)
    }

    /// A submission of `work` multiply-adds took this long.
    pub fn measured(&mut self, work: f64, seconds: f64) {
        let (known, now) = (self.seconds_per_work, seconds.max(1e-7) / work.max(1.0));
        if known == 0.0 {
            self.seconds_per_work = now;
        } else if now < known || seconds >= SHORT_SECONDS {
            // Half of what was known is kept: one slow submission (another tab, a clock that rose) is soon forgotten.
            self.seconds_per_work = 0.5 * (known + now);
        }
        if seconds <= 2.0 * TARGET_SECONDS {
            self.most = self.most.max(GROWTH * work).min(self.limit);
        }
    }
}

/// A walk through long work in submissions, each as large as the pace allows. Two are on their way at any time: the
/// host prepares one while the GPU computes the other. Between them whoever asked may cancel.
pub(crate) struct Paced<'a> {
    gpu: &'a Gpu,
    pace: &'a Cell<Pace>,
    cancel: &'a Cancel,
    /// When the GPU came to what is running.
    clock: Instant,
    /// The last submission, and its work.
    running: Option<(Submitted, f64)>,
}

impl<'a> Paced<'a> {
    pub fn new(gpu: &'a Gpu, pace: &'a Cell<Pace>, cancel: &'a Cancel) -> Self {
        Self { gpu, pace, cancel, clock: Instant::now(), running: None }
    }

    /// How many items of this `work` each the next submission should have: from 1 to `most`.
    ///
    /// # Errors
    /// [`Error::Cancelled`].
    pub fn next_items(&self, work: f64, most: u32) -> Result<u32, Error> {
        self.cancel.check()?;
        Ok(((self.pace.get().next_work() / work) as u32).min(most).max(1))
    }

    /// Notes a submission, and waits for the one before it.
    ///
    /// # Errors
    /// As of [`Gpu::wait`].
    pub async fn submitted(&mut self, submitted: Submitted, work: f64) -> Result<(), Error> {
        if let Some((before, work)) = self.running.replace((submitted, work)) {
            self.gpu.wait(before).await?;
            self.measured(work);
        }
        Ok(())
    }

    /// Submits all `items` of this `work` each, at most `most` at a time.
    ///
    /// # Errors
    /// [`Error::Cancelled`], and as of [`Gpu::wait`].
    pub async fn each(
        &mut self,
        items: Range<u32>,
        work: f64,
        most: u32,
        mut submit: impl FnMut(Range<u32>) -> Submitted,
    ) -> Result<(), Error> {
        let mut first = items.start;
        while first < items.end {
            let end = first.saturating_add(self.next_items(work, most)?).min(items.end);
            self.submitted(submit(first..end), work * f64::from(end - first)).await?;
            first = end;
        }
        Ok(())
    }

    /// Waits for the last submission.
    ///
    /// # Errors
    /// [`Error::Cancelled`], and as of [`Gpu::wait`].
    pub async fn finish(mut self) -> Result<(), Error> {
        if let Some((last, work)) = self.running.take() {
            self.gpu.wait(last).await?;
            self.measured(work);
        }
        self.cancel.check()
    }

    /// The first `bytes` of `buffer` after the last submission, for which a read waits anyway.
    ///
    /// # Errors
    /// [`Error::Cancelled`], and as of [`Gpu::read`].
    pub async fn read(mut self, buffer: &Buffer, bytes: u64) -> Result<Vec<u8>, Error> {
        self.cancel.check()?;
        let content = self.gpu.read(buffer, bytes).await?;
        if let Some((_, work)) = self.running.take() {
            self.measured(work);
        }
        Ok(content)
    }

    fn measured(&mut self, work: f64) {
        let mut pace = self.pace.get();
        pace.measured(work, self.clock.elapsed().as_secs_f64());
        self.pace.set(pace);
        self.clock = Instant::now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Submits until `total` is done on a GPU of this speed; the longest submission in seconds, and their number.
    fn run(mut pace: Pace, total: f64, work_per_second: f64, latency: f64) -> (f64, u32) {
        let (mut done, mut longest, mut count) = (0.0, 0.0f64, 0);
        while done < total {
            let work = pace.next_work().min(total - done);
            let seconds = latency + work / work_per_second;
            pace.measured(work, seconds);
            (done, longest, count) = (done + work, longest.max(seconds), count + 1);
        }
        (longest, count)
    }

    #[test]
    fn submissions_stay_short_on_slow_and_fast_gpus() {
        // Half a GFLOP/s to 50 TFLOP/s, in multiply-adds.
        for speed in [0.5e9, 1e10, 1e12, 2.5e13] {
            let (longest, count) = run(Pace::default(), 3e11, speed, 1e-3);
            assert!(longest < 0.1, "{longest} s at {speed}");
            assert!(f64::from(count) < 20.0 + 3e11 / speed / 0.02, "{count} submissions at {speed}");
        }
    }

    #[test]
    fn a_small_rest_does_not_seem_slow() {
        let mut pace = Pace::default();
        pace.measured(1e8, TARGET_SECONDS);
        let before = pace.next_work();
        pace.measured(10.0, 1e-3);
        assert!(pace.next_work() >= before);
        // What takes long is.
        pace.measured(1e7, TARGET_SECONDS);
        assert!(pace.next_work() < 0.5 * before);
    }

    #[test]
    fn a_limit_holds_on_the_fastest_gpu() {
        assert_eq!(run(Pace::at_most(100.0), 1000.0, 1e13, 1e-6).1, 10);
    }
}
