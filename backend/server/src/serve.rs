//! `lmm-scope serve`: open the store, start the engine, listen, and stop in good order. `lmm-scope engine`: the same
//! without store and pages.

use crate::{
    AppState, EngineState,
    assets::site_assets,
    catalogue::Catalogue,
    config::{ComputeArgs, EngineArgs, EngineChoice, ServeArgs},
    encoder::Encoder,
    engine::{Engine, EngineError, EngineSpec, Fit, Runner, remote::RemoteEngines},
    router::{engine_router, router},
    weights::Weights,
};
use anyhow::Context;
use frontend::api::SourceKey;
use pipeline::quantize::{self, QuantizeError};
use std::{
    io::{self, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};
use store::{Import, Store, files::names, jobs::Queue};
use tokio::net::TcpListener;

/// Where the server listens unless told otherwise.
const DEFAULT_PORT: u16 = 8080;
/// Ports after it that are tried when it is taken.
const FURTHER_PORTS: u16 = 20;
/// How long running requests may take to end after a signal.
const SHUTDOWN_SECS: u64 = 10;

/// Serves until SIGINT or SIGTERM.
///
/// # Errors
/// When the artefacts or the database cannot be read, or the address is taken.
pub async fn serve(args: &ServeArgs) -> anyhow::Result<()> {
    let (app, store) = app(args).await?;
    let listener = listen(args.listen).await?;
    let url = url_to_open(listener.local_addr()?);
    // People look for this line; the log goes to stderr.
    writeln!(io::stdout(), "LMM Scope is ready: {url}")?;
    tracing::info!(url, "listening");
    run(listener, app).await?;
    store.close().await;
    Ok(())
}

/// Serves the engine alone until SIGINT or SIGTERM.
///
/// # Errors
/// When model or SAE cannot be read or do not fit each other, or the address is taken.
pub async fn serve_engine(args: &EngineArgs) -> anyhow::Result<()> {
    let app = engine_app(args).await?;
    let listener = listen(Some(args.listen)).await?;
    let url = url_to_open(listener.local_addr()?);
    writeln!(io::stdout(), "LMM Scope's engine is ready: {url}")?;
    tracing::info!(url, "listening");
    run(listener, app).await
}

/// The engine's router with everything behind it.
///
/// # Errors
/// When model or SAE cannot be read or do not fit each other.
pub async fn engine_app(args: &EngineArgs) -> anyhow::Result<axum::Router> {
    let (asked, queue) = (args.clone(), usize::from(args.engine_queue));
    let spec = tokio::task::spawn_blocking(move || asked.spec()).await??;
    let engine = Engine::start(spec, queue).await?;
    Ok(engine_router(EngineState { engine: engine.into(), catalogue: None }))
}

/// Answers requests until a signal, then lets running ones end.
async fn run(listener: TcpListener, app: axum::Router) -> anyhow::Result<()> {
    let (stop, stopped) = tokio::sync::watch::channel(());
    let server = axum::serve(listener, app).with_graceful_shutdown(async move {
        shutdown_signal().await;
        tracing::info!("stopping; running requests may end");
        stop.send(()).ok();
    });
    let overdue = async {
        let mut stopped = stopped;
        stopped.changed().await.ok();
        tokio::time::sleep(Duration::from_secs(SHUTDOWN_SECS)).await;
    };
    tokio::select! {
        ended = server.into_future() => ended?,
        () = overdue => tracing::warn!(waited_secs = SHUTDOWN_SECS, "requests were cut off"),
    }
    Ok(())
}

/// The router with everything behind it, and the store to close at the end.
///
/// # Errors
/// When the artefacts are missing or damaged, or the database cannot be opened.
pub async fn app(args: &ServeArgs) -> anyhow::Result<(axum::Router, Store)> {
    let folder = &args.artifacts;
    let source = store::files::read_source(&folder.join(names::SOURCE)).with_context(|| {
        format!(
            "there is no model in {}; build one with `lmm-scope pocket`, or name its folder with --artifacts",
            folder.display()
        )
    })?;
    let key = SourceKey::from(&source);
    let sae_folder = folder.join("sae").join(&source.hook_point);
    let store = Store::open(&args.database_url()?).await?;
    // The model loads while the features are imported.
    let engine = start_runner(args, source);
    let sae_key = key.clone();
    let sae = tokio::task::spawn_blocking(move || open_sae(sae_key, &sae_folder));
    let (engine, imported, sae) = tokio::join!(engine, store.import_artifacts(folder), sae);
    let imported = imported?;
    log_import(&imported);
    let queue = match &args.queue {
        Some(url) => Queue::open(url).await?,
        None => Queue::of_store(&store),
    };
    let identity = args.by.identity(folder, imported.source())?;
    let site = args.site_folder();
    let engine = engine?;
    let (weights, encoder) = sae??;
    let state = AppState {
        catalogue: Catalogue::new(store.clone(), key).with_queue(queue, identity),
        engine,
        weights: Arc::new(weights),
        encoder: Arc::new(encoder),
        site: site_assets(&site)?,
    };
    frontend::render::init();
    Ok((router(state, &site, &args.public), store))
}

/// The engine that `--engine` names, if it is the one that the source's features were found with.
async fn start_runner(args: &ServeArgs, source: api::Source) -> Result<Runner, EngineError> {
    let ComputeArgs { device, dtype } = args.compute;
    let spec = EngineSpec { device, dtype, ..EngineSpec::of_source(&args.artifacts, &source)? };
    let sae = spec.sae.clone();
    match &args.engine {
        EngineChoice::Local => {
            let engine = Engine::start(spec, usize::from(args.engine_queue)).await?;
            let fit = Fit { source, sae_revision: None };
            fit.check(&engine.info()).map_err(|reason| EngineError::Mismatch { path: sae, reason })?;
            Ok(engine.into())
        }
        EngineChoice::Remote(urls) => {
            let revision = tokio::task::spawn_blocking(move || crate::revision::of_sae(&sae)).await;
            let sae_revision = Some(revision.map_err(|_| EngineError::Stopped)?.map_err(EngineError::from)?);
            Ok(RemoteEngines::connect(urls, Fit { source, sae_revision }).await?.into())
        }
    }
}

/// What is served of the SAE: its files, with the shards that browsers fetch, and the encoder for visitors who cannot
/// hold them. Blocking work.
fn open_sae(source: SourceKey, folder: &Path) -> anyhow::Result<(Weights, Encoder)> {
    let cache = dirs::cache_dir().map(|cache| cache.join("lmm-scope").join("shards"));
    let started = Instant::now();
    let shards = match quantize::ensure(folder, cache.as_deref()) {
        Ok(shards) => {
            let (folder, files) = (shards.folder.display(), shards.manifest.files().count());
            let did = if shards.made { "shards for browsers written" } else { "shards for browsers found" };
            tracing::info!(%folder, files, took_ms = started.elapsed().as_millis() as u64, "{did}");
            Some(shards)
        }
        // The SAE itself is damaged.
        Err(error @ QuantizeError::Model(_)) => return Err(error.into()),
        Err(error) => {
            tracing::warn!(%error, "no shards for browsers; visitors' hidden states are encoded here");
            None
        }
    };
    Ok((Weights::open(source, folder, shards.as_ref())?, Encoder::open(folder)?))
}

fn log_import(import: &Import) {
    let name = format!("{}/{}", import.source().model_id, import.source().source_id);
    match import {
        Import::Unchanged(_) => tracing::info!(source = name, "features are up to date"),
        Import::Done { features, pictures, examples, .. } => {
            tracing::info!(source = name, features, pictures, examples, "features imported");
        }
    }
}

/// The address for people: a browser cannot open "every address of this machine" (`0.0.0.0`, `::`).
fn url_to_open(mut address: SocketAddr) -> String {
    if address.ip().is_unspecified() {
        address.set_ip(IpAddr::V4(Ipv4Addr::LOCALHOST));
    }
    format!("http://{address}")
}

/// Listens on `address`, or on the first free port from the default one on.
async fn listen(address: Option<SocketAddr>) -> anyhow::Result<TcpListener> {
    if let Some(address) = address {
        return TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"));
    }
    for port in DEFAULT_PORT..=DEFAULT_PORT + FURTHER_PORTS {
        match TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await {
            Ok(listener) => return Ok(listener),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => tracing::info!(port, "port is taken"),
            Err(error) => return Err(error).with_context(|| format!("cannot listen on 127.0.0.1:{port}")),
        }
    }
    anyhow::bail!(
        "ports {DEFAULT_PORT} to {} are all taken; name another with --listen 127.0.0.1:9000",
        DEFAULT_PORT + FURTHER_PORTS
    )
}

/// Ends on the first SIGINT or SIGTERM.
pub(crate) async fn shutdown_signal() {
    let interrupt = async {
        if let Err(error) = tokio::signal::ctrl_c().await {
            tracing::error!(%error, "SIGINT cannot be watched");
            std::future::pending::<()>().await;
        }
    };
    #[cfg(unix)]
    let terminate = async {
        match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
            Ok(mut signal) => drop(signal.recv().await),
            Err(error) => {
                tracing::error!(%error, "SIGTERM cannot be watched");
                std::future::pending::<()>().await;
            }
        }
    };
    #[cfg(not(unix))]
    let terminate = std::future::pending::<()>();
    tokio::select! {
        () = interrupt => {}
        () = terminate => {}
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // tests panic on purpose
    use super::*;

    #[test]
    fn the_printed_address_can_be_opened() {
        for (address, url) in [
            ("0.0.0.0:8080", "http://127.0.0.1:8080"),
            ("[::]:8081", "http://127.0.0.1:8081"),
            ("192.168.1.5:80", "http://192.168.1.5:80"),
            ("[::1]:8080", "http://[::1]:8080"),
        ] {
            assert_eq!(url_to_open(address.parse().unwrap()), url);
        }
    }

    #[tokio::test]
    async fn a_taken_default_port_moves_on_and_a_named_one_does_not() {
        let first = listen(None).await.unwrap();
        let second = listen(None).await.unwrap();
        assert!(first.local_addr().unwrap().port() < second.local_addr().unwrap().port());
        let taken = second.local_addr().unwrap();
        let error = listen(Some(taken)).await.unwrap_err().to_string();
        assert!(error.contains(&taken.to_string()), "{error}");
    }
}
