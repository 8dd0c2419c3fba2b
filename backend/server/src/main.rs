//! `lmm-scope`: one binary, its subcommands.

use clap::Parser;
use server::config::ServeArgs;
use std::{io::IsTerminal, process::ExitCode};
use tracing_subscriber::EnvFilter;

/// Look inside a large multimodal model: its features, where they fire, and what they make it say.
#[derive(Debug, Parser)]
#[command(name = "lmm-scope", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Serve the page and the API.
    Serve(ServeArgs),
    /// Build the small demo model and its data from scratch.
    Pocket(pipeline::pocket::PocketArgs),
}

/// Exit code for bad input, as documented.
const BAD_INPUT: u8 = 2;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(BAD_INPUT)
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Serve(args) => {
            tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(server::serve::serve(&args))
        }
        Command::Pocket(args) => pipeline::pocket::run(args),
    }
}
