//! Builds the browser bundles and runs wasm tests
