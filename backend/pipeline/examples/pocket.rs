//! `lmm-scope pocket` without the web server around it: for machines that only train
//! (`cargo run -p pipeline --features libtorch --example pocket -- --device libtorch train-tower`).

use clap::Parser;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    pocket: pipeline::pocket::PocketArgs,
}

fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_target(false).init();
    pipeline::pocket::run(Cli::parse().pocket)
}
