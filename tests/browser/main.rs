//! What visitors do, in headless Chromium against the real binary and the committed demo. Features and pictures are
//! chosen through the API, so that the journeys hold for any demo that `lmm-scope pocket` builds.
//! `memory` is no journey: it measures a tab with a large SAE.

mod analyze;
mod finding;
mod landing;
mod memory;
mod queue;
mod reading;
mod steering;

/// What Chromium writes for an answer that a journey provokes on purpose.
const NOT_FOUND: &str = "the server responded with a status of 404";
