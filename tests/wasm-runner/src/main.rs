//! `cargo test --target wasm32-unknown-unknown` runs through this program (see `.cargo/config.toml`): it starts
//! chromedriver, opens the compiled tests in headless Chromium and prints what they printed.

fn main() -> anyhow::Result<()> {
    wasm_bindgen_cli::wasm_bindgen_test_runner::run_cli_with_args(std::env::args_os())
}
