//! The one error of this crate.

/// Why a kernel or its CPU twin gave no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("no GPU adapter: {0}")]
    NoAdapter(String),
    #[error("the GPU adapter {adapter:?} gave no device: {reason}")]
    NoDevice { adapter: String, reason: String },
    #[error("the GPU device was lost: {0}")]
    Lost(String),
    #[error("the GPU reported an error: {0}")]
    Gpu(String),
    #[error("the GPU has no memory left: {0}")]
    OutOfMemory(String),
    #[error("the weights need {bytes} bytes of memory, more than there is")]
    Memory { bytes: u64 },
    #[error("cancelled")]
    Cancelled,
    #[error("{what} has {given} values; expected {expected}")]
    Length { what: &'static str, given: usize, expected: usize },
    #[error("{what} is {given}; expected {expected}")]
    Size { what: &'static str, given: u64, expected: String },
    /// `what` names the input and its shape; `row` counts along the first of its dimensions.
    #[error("{what} has a value in row {row} that is infinite or not a number; expected finite ones")]
    NotFinite { what: &'static str, row: usize },
    #[error("the canvas cannot be drawn on: {0}")]
    Canvas(String),
    #[error("the GPU answers wrongly: {0}")]
    WrongAnswer(String),
}

/// `Ok` if `values` has `expected` entries.
pub(crate) fn check_len(what: &'static str, given: usize, expected: usize) -> Result<(), Error> {
    if given == expected { Ok(()) } else { Err(Error::Length { what, given, expected }) }
}
