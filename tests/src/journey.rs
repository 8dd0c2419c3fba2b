//! Runs one journey: server, browser, closure, and what is left behind when it fails.

use crate::{
    browser::{Driver, Gpu},
    demo::Demo,
    page::Page,
    screenshots,
    server::Server,
};
use anyhow::{Context, ensure};
use futures::FutureExt;
use std::panic::{AssertUnwindSafe, resume_unwind};

/// A visitor's own journey through the page. Fails when the closure does, or when the page's console shows an
/// error (a panic of the wasm, a hydration mismatch, a missing file) that is not among `expected`.
///
/// A failure leaves `target/screenshots/{name}.png` and `.html`.
pub fn journey(
    name: &str,
    gpu: Gpu,
    expected: &[&str],
    steps: impl AsyncFnOnce(&Page, &Demo) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    journey_on(Server::start, name, gpu, expected, steps)
}

/// As [`journey`], on another server.
pub fn journey_on(
    server: fn() -> anyhow::Result<Server>,
    name: &str,
    gpu: Gpu,
    expected: &[&str],
    steps: impl AsyncFnOnce(&Page, &Demo) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let server = server()?;
        let driver = Driver::start()?;
        let demo = Demo::new(server.address)?;
        with_page(name, &driver, gpu, &server, expected, async |page| steps(page, &demo).await).await
    })
}

/// Opens a browser for a closure and closes it whatever happens.
pub async fn with_page<T>(
    name: &str,
    driver: &Driver,
    gpu: Gpu,
    server: &Server,
    expected: &[&str],
    steps: impl AsyncFnOnce(&Page) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let page = Page::new(driver.open(gpu).await?, server.url("")).await?;
    let outcome = AssertUnwindSafe(async {
        let value = steps(&page).await?;
        check_console(&page, expected).await?;
        Ok(value)
    })
    .catch_unwind()
    .await;
    if !matches!(outcome, Ok(Ok(_))) {
        leave_evidence(name, &page, server).await;
    }
    page.driver.quit().await.context("cannot close Chromium")?;
    outcome.unwrap_or_else(|panic| resume_unwind(panic))
}

/// Errors on the console fail a journey even when everything on the screen looks right.
async fn check_console(page: &Page, expected: &[&str]) -> anyhow::Result<()> {
    let log = page.driver.browser_log().await?;
    let errors: Vec<String> = log
        .into_iter()
        .filter(|entry| entry.level == "SEVERE")
        .map(|entry| entry.message)
        .filter(|message| !expected.iter().any(|known| message.contains(known)))
        .collect();
    ensure!(errors.is_empty(), "the page's console has errors:\n{}", errors.join("\n"));
    Ok(())
}

/// Best effort: the failure itself is what counts.
async fn leave_evidence(name: &str, page: &Page, server: &Server) {
    let Ok(folder) = screenshots() else { return };
    let picture = folder.join(format!("{name}.png"));
    if page.driver.screenshot(&picture).await.is_ok() {
        eprintln!("screenshot: {}", picture.display());
    }
    if let Ok(source) = page.driver.source().await {
        _ = std::fs::write(folder.join(format!("{name}.html")), source);
    }
    if let Ok(log) = page.driver.browser_log().await {
        for entry in log {
            eprintln!("console {}: {}", entry.level, entry.message);
        }
    }
    let log = server.log();
    let lines: Vec<&str> = log.lines().rev().take(20).collect();
    for line in lines.into_iter().rev() {
        eprintln!("server: {line}");
    }
}
