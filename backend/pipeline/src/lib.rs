//! How the numbers are made: datasets, training, statistics, labels.
//!
//! [`pocket`] builds the embedded demo from scratch, stage by stage.

pub mod pocket;
