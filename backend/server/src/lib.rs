//! The server: the page, the API, and the engine behind them.
//!
//! A request goes [`router`] → a thin handler in [`handlers`] → one call of [`catalogue`] (what the store knows) or
//! [`engine`] (what the model computes) → wire type. Errors become RFC 9457 problems in one place, [`error`].

pub mod assets;
pub mod catalogue;
pub mod cli;
pub mod config;
pub mod encoder;
pub mod engine;
pub mod error;
mod extractors;
mod handlers;
mod hidden;
#[cfg(feature = "cuda")]
mod kernels;
mod map;
pub mod openapi;
pub mod picture;
mod revision;
pub mod router;
pub mod serve;
pub mod ssr;
mod static_files;
pub mod weights;

use axum::extract::FromRef;
use catalogue::Catalogue;
use encoder::Encoder;
use engine::Runner;
use frontend::app::SiteAssets;
use std::sync::Arc;
use weights::Weights;

/// What handlers share.
#[derive(Clone)]
pub struct AppState {
    pub catalogue: Catalogue,
    pub engine: Runner,
    pub weights: Arc<Weights>,
    pub encoder: Arc<Encoder>,
    pub site: SiteAssets,
}

/// What the routes of the model need; an engine alone has nothing else.
#[derive(Clone)]
pub struct EngineState {
    pub engine: Runner,
    /// Where the pictures are that a request may name; an engine alone has none.
    pub catalogue: Option<Catalogue>,
}

impl FromRef<AppState> for EngineState {
    fn from_ref(state: &AppState) -> Self {
        Self { engine: state.engine.clone(), catalogue: Some(state.catalogue.clone()) }
    }
}
