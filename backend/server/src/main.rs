//! `lmm-scope`: one binary, its subcommands.

use clap::{Parser, error::ErrorKind};
use server::{
    cli,
    config::{EngineArgs, ServeArgs},
};
use std::{io::IsTerminal, process::ExitCode};
use tracing_subscriber::EnvFilter;

/// The system's allocator gives large buffers back after every operation and pays for their pages anew.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

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
    /// Serve the model alone, for servers elsewhere.
    Engine(EngineArgs),
    /// Build the small demo model and its data from scratch.
    Pocket(pipeline::pocket::PocketArgs),
    #[command(flatten)]
    Experiment(cli::Command),
}

impl Command {
    /// What is logged unless `RUST_LOG` says otherwise.
    fn log_level(&self) -> &'static str {
        match self {
            Self::Serve(_) | Self::Engine(_) | Self::Pocket(_) => "info",
            Self::Experiment(command) => command.log_level(),
        }
    }
}

/// Exit code for bad input, as documented.
const BAD_INPUT: u8 = 2;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return answer_of_clap(&error),
    };
    let level = cli.command.log_level();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("error: {}", one_line(&message));
            ExitCode::from(BAD_INPUT)
        }
    }
}

fn run(command: Command) -> Result<(), String> {
    match command {
        Command::Serve(args) => block_on(server::serve::serve(&args)),
        Command::Engine(args) => block_on(server::serve::serve_engine(&args)),
        Command::Pocket(args) => pipeline::pocket::run(args).map_err(|error| format!("{error:#}")),
        // These errors name their cause themselves.
        Command::Experiment(command) => cli::run(command).map_err(|error| error.to_string()),
    }
}

fn block_on(work: impl Future<Output = anyhow::Result<()>>) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let done = runtime.map_err(anyhow::Error::from).and_then(|runtime| runtime.block_on(work));
    done.map_err(|error| format!("{error:#}"))
}

/// Prints help, version, or in one line what is wrong with the flags.
fn answer_of_clap(error: &clap::Error) -> ExitCode {
    use ErrorKind::{DisplayHelp, DisplayHelpOnMissingArgumentOrSubcommand, DisplayVersion, ValueValidation};
    if let DisplayHelp | DisplayVersion | DisplayHelpOnMissingArgumentOrSubcommand = error.kind() {
        error.exit();
    }
    let rendered = error.render().to_string();
    // What follows the first paragraph is the usage.
    let message = one_line(rendered.split("\n\n").next().unwrap_or_default());
    if error.kind() == ValueValidation {
        eprintln!("{message}");
    } else {
        eprintln!("{message}; see --help");
    }
    ExitCode::from(BAD_INPUT)
}

/// Messages of libraries and paths may hold line breaks.
fn one_line(message: &str) -> String {
    message.split(['\n', '\r']).map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" ")
}
