//! The wire types of LMM Scope. Field names are the field's own (Neuronpedia's, see `docs/architecture.md`);
//! serde only, so that the page, the worker and the server share one definition.
//!
//! One module per thing a person can name: [`source`], [`feature`], [`activation`], [`picture`], [`steer`],
//! [`attribute`], [`extract`], [`engine`], [`job`], [`problem`], [`shards`] for the SAE as browsers fetch it, and
//! [`gpu`] for what the page says to its GPU worker.

pub mod activation;
pub mod attribute;
pub mod engine;
pub mod extract;
pub mod feature;
pub mod gpu;
pub mod job;
pub mod json;
pub mod picture;
pub mod problem;
pub mod shards;
pub mod source;
pub mod steer;

pub use activation::{Activation, ActivationImage, ActivationKind, Activations, TextActivation};
pub use attribute::{AttributeRequest, AttributeResult, AttributedFeature, Passes, VerifiedFeature, VocabularyToken};
pub use engine::EngineInfo;
pub use extract::{EXTRACT_KINDS_HEADER, ExtractDtype, ExtractQuery, TokenKind, TokenSpan};
pub use feature::{
    Category, Explanation, Feature, FeatureList, FeatureQuery, FeatureSort, FeatureSummary, Histogram, Neighbour,
    Neighbours, Score, SteeringEffects,
};
pub use job::{EndpointStatus, Job, JobKind, JobList, JobQuery, JobState, KindStatus};
pub use picture::{Picture, PictureActivations, PictureList, PictureObject, Rect};
pub use problem::{ErrorCode, Problem};
pub use shards::{Agreement, SaeManifest, ShardFile, Tier, TierShards};
pub use source::{Provenance, Source};
pub use steer::{
    Alternative, Column, Positions, SteerEvent, SteerFeature, SteerMethod, SteerRequest, SteerResult, SteeredText,
    TextToken,
};
