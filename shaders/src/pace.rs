//! How much work goes into one submission: measured, so that a slow GPU stays responsive and a fast one busy.

/// A submission should take about this long: Windows resets a GPU after 2 s, and a visitor notices 100 ms.
const TARGET_SECONDS: f64 = 0.04;
/// Work of the first submission, in multiply-adds: 0.1 s on the slowest software adapter that was seen.
const FIRST_WORK: f64 = (1u64 << 25) as f64;
/// A submission is at most this many times the largest one so far: early measurements are mostly latency.
const GROWTH: f64 = 4.0;

/// The speed that was measured, and what follows from it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pace {
    /// Seconds per multiply-add; 0 before the first measurement.
    seconds_per_work: f64,
    /// The most that may be asked for next.
    most: f64,
}

impl Default for Pace {
    fn default() -> Self {
        Self { seconds_per_work: 0.0, most: FIRST_WORK }
    }
}

impl Pace {
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
        let now = seconds.max(1e-7) / work.max(1.0);
        // Half of what was known is kept: one slow submission (another tab, a clock that rose) is soon forgotten.
        self.seconds_per_work = if self.seconds_per_work == 0.0 { now } else { 0.5 * (self.seconds_per_work + now) };
        if seconds <= 2.0 * TARGET_SECONDS {
            self.most = self.most.max(GROWTH * work);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Submits until `total` is done on a GPU of this speed; the longest submission in seconds, and their number.
    fn run(total: f64, work_per_second: f64, latency: f64) -> (f64, u32) {
        let (mut pace, mut done, mut longest, mut count) = (Pace::default(), 0.0, 0.0f64, 0);
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
            let (longest, count) = run(3e11, speed, 1e-3);
            assert!(longest < 0.1, "{longest} s at {speed}");
            assert!(f64::from(count) < 20.0 + 3e11 / speed / 0.02, "{count} submissions at {speed}");
        }
    }
}
