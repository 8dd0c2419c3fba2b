//! How the numbers are made: datasets, training, statistics, labels; and the SAE as browsers fetch it.
//!
//! [`pocket`] builds the embedded demo from scratch, stage by stage; [`quantize`] writes any SAE's browser shards;
//! [`images`] reads image sets and [`cache`] keeps their activations; [`mod@index`] sorts these by feature and counts;
//! [`train`] trains an SAE; [`interpret`] says what its features are about, and [`score`] how well.

pub mod cache;
pub mod images;
pub mod index;
pub mod interpret;
pub mod pocket;
pub mod quantize;
pub mod score;
pub mod train;
