//! Giving up long work.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use crate::Error;

/// A flag that whoever asked for work keeps, and that the work looks at between submissions.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<State>);

#[derive(Debug, Default)]
struct State {
    cancelled: AtomicBool,
    /// Checks until it cancels itself; 0: it does not.
    countdown: AtomicU32,
}

impl Cancel {
    /// Cancels itself at its `number`-th check, counted from 1. (Tests of giving up midway.)
    #[must_use]
    pub fn at_check(number: u32) -> Self {
        Self(Arc::new(State { cancelled: AtomicBool::new(number == 0), countdown: AtomicU32::new(number) }))
    }

    pub fn cancel(&self) {
        self.0.cancelled.store(true, Ordering::Relaxed);
    }

    /// # Errors
    /// [`Error::Cancelled`] if it is.
    pub fn check(&self) -> Result<(), Error> {
        let countdown = &self.0.countdown;
        if countdown.load(Ordering::Relaxed) > 0 && countdown.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.cancel();
        }
        if self.0.cancelled.load(Ordering::Relaxed) { Err(Error::Cancelled) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_cancelled_when_told_so_and_stays_so() {
        let cancel = Cancel::default();
        let kept = cancel.clone();
        assert_eq!(cancel.check(), Ok(()));
        kept.cancel();
        assert_eq!([cancel.check(), cancel.check()], [Err(Error::Cancelled), Err(Error::Cancelled)]);
    }

    #[test]
    fn it_cancels_itself_at_the_check_with_this_number() {
        let third = Cancel::at_check(3);
        let checks: Vec<bool> = (0..5).map(|_| third.check().is_ok()).collect();
        assert_eq!(checks, [true, true, false, false, false]);
        assert_eq!(Cancel::at_check(0).check(), Err(Error::Cancelled));
    }
}
