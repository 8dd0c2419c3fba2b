//! `lmm-scope work`: takes jobs off the queue until it is told to stop.

use super::{
    CliError,
    jobs::{InterpreterArgs, JobsArgs, block_on},
    output::{print, print_json},
};
use crate::serve::shutdown_signal;
use clap::builder::BoolishValueParser;
use pipeline::interpret::{Tally, Worker};
use std::time::Duration;
use store::jobs::Rules;
use tokio::sync::watch;

/// Take jobs off the queue and do them, until SIGINT or SIGTERM. Start as many as you like; on several machines with
/// `--queue postgres://…`.
#[derive(Debug, Clone, clap::Args)]
pub struct WorkArgs {
    #[command(flatten)]
    jobs: JobsArgs,

    #[command(flatten)]
    by: InterpreterArgs,

    /// Jobs side by side in this process. An endpoint's own limits, over all workers, are set with
    /// `lmm-scope queue limit`.
    #[arg(long, env = "LMM_SCOPE_AT_ONCE", default_value_t = 4,
        value_parser = clap::value_parser!(u16).range(1..=1024))]
    at_once: u16,

    /// A worker that has not been heard of for so many seconds is gone: another one takes over its jobs.
    #[arg(long, env = "LMM_SCOPE_LEASE_SECS", default_value_t = 40, value_parser = clap::value_parser!(u16).range(1..))]
    lease_secs: u16,

    /// End when nothing waits or runs any more.
    #[arg(long, env = "LMM_SCOPE_DRAIN", value_parser = BoolishValueParser::new())]
    drain: bool,

    /// Print one JSON object at the end.
    #[arg(long, env = "LMM_SCOPE_JSON", value_parser = BoolishValueParser::new())]
    json: bool,
}

/// # Errors
/// Bad input, in one line.
pub fn run(args: &WorkArgs) -> Result<(), CliError> {
    let tally = block_on(work(args))?;
    if args.json {
        return print_json(&tally);
    }
    let Tally { done, failed, lost, input_tokens, output_tokens } = tally;
    print(&format!(
        "{done} jobs done, {failed} tries failed, {lost} jobs cancelled or taken over meanwhile; \
         {input_tokens} tokens read, {output_tokens} written"
    ))
}

async fn work(args: &WorkArgs) -> Result<Tally, CliError> {
    let opened = args.jobs.open().await?;
    let rules = Rules { lease: Duration::from_secs(u64::from(args.lease_secs)), ..Rules::default() };
    let queue = opened.queue.with_rules(rules);
    let source = args.jobs.source(&opened.store).await?;
    let interpreter = args.by.open(&args.jobs, &source).await?;
    let identity = interpreter.identity().clone();
    // So that its limits can be set before there is a job.
    queue.add_endpoint(&identity.endpoint).await?;
    tracing::info!(interpreter = identity.name, prompt_hash = identity.prompt_hash, at_once = args.at_once, "working");
    let (stop, stopped) = watch::channel(false);
    let watcher = tokio::spawn(async move {
        shutdown_signal().await;
        tracing::info!("stopping; jobs under way are given back");
        stop.send(true).ok();
        // The channel must outlive the workers that listen.
        std::future::pending::<()>().await;
    });
    let worker = Worker::new(opened.store.clone(), queue.clone(), source, interpreter);
    let tally = worker.run(usize::from(args.at_once), args.drain, &stopped).await;
    watcher.abort();
    queue.close().await;
    opened.store.close().await;
    Ok(tally)
}
