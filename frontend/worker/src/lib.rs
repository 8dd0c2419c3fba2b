//! The web worker that owns the visitor's GPU
