//! What a person who waits sees: a spinner on a terminal, nothing anywhere else.

use indicatif::ProgressBar;
use std::{
    io::{self, IsTerminal},
    time::Duration,
};

const TICK_MILLIS: u64 = 120;

/// A line on stderr that goes away when it is dropped.
pub struct Progress(Option<ProgressBar>);

impl Progress {
    pub fn start(doing: impl Into<String>) -> Self {
        let bar = io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner().with_message(doing.into());
            bar.enable_steady_tick(Duration::from_millis(TICK_MILLIS));
            bar
        });
        Self(bar)
    }

    /// Says what happens now.
    pub fn say(&self, doing: impl Into<String>) {
        if let Some(bar) = &self.0 {
            bar.set_message(doing.into());
        }
    }

    /// Takes the line away before something is printed.
    pub fn end(&self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.end();
    }
}
