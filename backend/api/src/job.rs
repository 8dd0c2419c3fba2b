//! Jobs of interpretation: who shall say what about a feature, and how far that is.

use serde::{Deserialize, Serialize};

/// A step on the way from a feature to a scored label, in this order.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum JobKind {
    /// Look at the examples and say what they have in common.
    #[default]
    Explain,
    /// Make a short label of it.
    Refine,
    /// File it under a category.
    Categorise,
    /// Measure how well it fits, beside a random baseline.
    Score,
}

impl JobKind {
    pub const ALL: [Self; 4] = [Self::Explain, Self::Refine, Self::Categorise, Self::Score];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Explain => "explain",
            Self::Refine => "refine",
            Self::Categorise => "categorise",
            Self::Score => "score",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name)
    }
}

/// Where a job stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum JobState {
    /// Waits for a worker, for the first time or after a failed try.
    #[default]
    Queued,
    Running,
    Done,
    /// Given up; `reason` says why.
    Dead,
    Cancelled,
}

impl JobState {
    pub const ALL: [Self; 5] = [Self::Queued, Self::Running, Self::Done, Self::Dead, Self::Cancelled];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Done => "done",
            Self::Dead => "dead",
            Self::Cancelled => "cancelled",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == name)
    }
}

/// One job. Times are milliseconds since 1970.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct Job {
    pub id: i64,
    pub model_id: String,
    /// The source id, as in a feature.
    pub layer: String,
    pub index: u32,
    pub kind: JobKind,
    pub state: JobState,
    /// Who interprets, e.g. `dissect`.
    pub interpreter: String,
    /// SHA-256 of the interpreter's prompts and settings, first 12 hex digits.
    pub prompt_hash: String,
    pub sae_revision: String,
    pub endpoint: String,
    /// Higher first: 0 for a bulk run, 100 for a visitor's request.
    pub priority: i64,
    /// Tries that ended with an error.
    pub tries: u32,
    /// Tries whose worker vanished.
    pub lost: u32,
    /// Why the last try failed, or why there is no explanation.
    pub reason: Option<String>,
    /// Who has it, while it runs: the number of a process and a random one.
    pub worker: Option<String>,
    pub input_tokens: u64,
    pub output_tokens: u64,
    pub created_at: i64,
    /// Not before this time.
    pub run_at: i64,
    pub started_at: Option<i64>,
    pub ended_at: Option<i64>,
}

/// How a place that answers is doing, over all workers.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct EndpointStatus {
    /// `local`, or the name of a server.
    pub name: String,
    pub paused: bool,
    /// Jobs that may run at once.
    pub max_running: u32,
    /// Jobs that may start in a minute; 0: as many as there are.
    pub per_minute: u32,
    /// Waiting, those after a failed try included.
    pub queued: u64,
    /// Waiting for the delay after a failed try.
    pub delayed: u64,
    pub running: u64,
    pub done: u64,
    pub dead: u64,
    pub cancelled: u64,
    /// What all tries took, failed ones included.
    pub input_tokens: u64,
    pub output_tokens: u64,
    /// Jobs done in a minute, over the last ten minutes at most.
    pub rate: Option<f64>,
    /// Until what is queued and running now is done, at that rate.
    pub seconds_left: Option<f64>,
}

/// How far a step is, over all features.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct KindStatus {
    pub kind: JobKind,
    /// Waiting, those after a failed try included.
    pub queued: u64,
    pub running: u64,
    pub done: u64,
    pub dead: u64,
    pub cancelled: u64,
}

/// Query of `GET /api/v1/jobs`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::IntoParams))]
#[serde(default)]
pub struct JobQuery {
    /// Only jobs in this state.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<JobState>,
    /// Only jobs of this kind.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<JobKind>,
    /// 0-based page, newest jobs first.
    pub page: u32,
    /// Jobs per page, at most 200; 0 means the default of 48.
    #[serde(rename = "perPage")]
    pub per_page: u32,
}

/// Answer of `GET /api/v1/jobs`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct JobList {
    pub endpoints: Vec<EndpointStatus>,
    /// All jobs by kind, in the order of the steps; kinds without jobs are left out.
    pub kinds: Vec<KindStatus>,
    pub jobs: Vec<Job>,
    /// Jobs that fit the query, on all pages.
    pub total: u32,
    /// When this was so, by the clock that all times here are of.
    pub now: i64,
    pub page: u32,
    pub per_page: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_wire() {
        for kind in JobKind::ALL {
            assert_eq!(serde_json::to_value(kind).ok(), Some(kind.as_str().into()));
            assert_eq!(JobKind::from_name(kind.as_str()), Some(kind));
        }
        for state in JobState::ALL {
            assert_eq!(serde_json::to_value(state).ok(), Some(state.as_str().into()));
            assert_eq!(JobState::from_name(state.as_str()), Some(state));
        }
        assert_eq!(JobState::from_name("lost"), None);
    }
}
