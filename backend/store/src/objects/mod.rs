//! Files that lie in a bucket: on S3, or on a server that speaks as S3 does.
//!
//! Credentials, region and endpoint come from the usual variables (`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`,
//! `AWS_REGION`, `AWS_ENDPOINT_URL`, `AWS_ALLOW_HTTP`, …). Calls block, so that readers need not know where a file
//! lies; requests run on a thread of the bucket's own, so that a caller may be asynchronous.

mod bucket;
mod location;
mod reason;

pub use bucket::{Bucket, Object};
pub use location::Location;
