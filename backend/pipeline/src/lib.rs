//! How the numbers are made: datasets, training, statistics, labels; and the SAE as browsers fetch it.
//!
//! [`pocket`] builds the embedded demo from scratch, stage by stage; [`quantize`] writes any SAE's browser shards.

pub mod pocket;
pub mod quantize;
