//! `make bench`: our SAE encoder beside onnxruntime-web, in one page of one browser (`tests/bench/`).
//!
//! The page is opened once per SAE and backend; [`site`] serves it with the bundles, onnxruntime-web and the SAEs that
//! [`sae`] makes. Everything lies in `target/bench`. What it prints is Markdown ([`table`]); what it is doing meanwhile
//! goes to the standard error.

mod options;
mod sae;
mod site;
mod table;

use anyhow::{Context, bail, ensure};
use api::Tier;
use options::{Options, Sae};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};
use table::{Adapter, Peaks, Row};
use tests::{browser::Driver, page::Page, target};

const POLL: Duration = Duration::from_millis(500);
/// onnxruntime's wasm backend blocks the page while it computes; WebDriver's own patience ends at 30 s.
const SCRIPT_TIMEOUT: Duration = Duration::from_secs(110);
/// Without a line from the page for this long, nothing comes any more.
const PATIENCE: Duration = Duration::from_secs(1800);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Backend {
    WebGpu,
    Wasm,
}

/// One SAE on one backend, as the page reads it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Case<'a> {
    /// Folder of the SAE's manifest.
    base: String,
    d_model: u32,
    latents: u32,
    k: u32,
    tokens: &'a [u32],
    tiers: &'a [Tier],
    backend: Backend,
    /// Whether onnxruntime-web is there.
    ort: bool,
}

#[derive(Deserialize)]
struct Outcome {
    rows: Vec<Row>,
    failed: Option<String>,
}

/// What has happened since the last question.
#[derive(Deserialize)]
struct News {
    log: Vec<String>,
    result: Option<Outcome>,
}

#[derive(Deserialize)]
struct PeaksOutcome {
    peaks: Option<Peaks>,
    failed: Option<String>,
}

fn main() -> anyhow::Result<()> {
    let options = Options::read(std::env::args().skip(1))?;
    let folder = target()?.join("bench");
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let version = match site::onnxruntime(&folder) {
        Ok(version) => Some(version),
        Err(reason) => {
            println!("onnxruntime-web is left out: {reason:#}.");
            None
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let (address, driver) = (site::serve(&folder).await?, Driver::start()?);
        // Not among temporary files, which lie in memory on some systems: the browser's storage keeps the SAEs.
        let profile = tempfile::tempdir_in(&folder)?;
        let profile = format!("--user-data-dir={}", profile.path().display());
        let more = std::env::var("CHROME_FLAGS").unwrap_or_default();
        let flags: Vec<&str> = more.split_whitespace().chain([&*profile]).collect();
        let browser = driver.open_with(options.gpu, &flags).await?;
        let page = Page::new(browser, format!("http://{address}")).await?;
        let outcome = bench(&page, &folder, &options, version.as_deref()).await;
        let quit = page.driver.quit().await;
        outcome?;
        quit.context("cannot close Chromium")
    })
}

/// Measures everything; rows are printed as they come.
async fn bench(page: &Page, folder: &Path, options: &Options, version: Option<&str>) -> anyhow::Result<()> {
    page.driver.set_script_timeout(SCRIPT_TIMEOUT).await?;
    let adapter = open(page).await?;
    if adapter.name.is_none() {
        bail!("this browser has no WebGPU adapter: `--adapter swiftshader` has one, CHROME_FLAGS adds flags");
    }
    let script = "const done = arguments[0];
        window.peaks().then((peaks) => done({ peaks }), (error) => done({ failed: String(error) }))";
    let outcome: PeaksOutcome = page.js_async(script, vec![]).await?;
    let Some(peaks) = outcome.peaks else {
        bail!("the adapter's peaks could not be measured: {}", outcome.failed.unwrap_or_default());
    };
    let saes = options.saes(adapter.software);
    let mut bases = Vec::new();
    for sae in &saes {
        bases.push(sae::write(&folder.join(site::SAES), sae)?);
    }
    table::print_about(&adapter, &peaks, version);
    let mut wrong = 0;
    for backend in [Backend::WebGpu, Backend::Wasm] {
        table::print_head(backend);
        let mut measured = 0;
        for (sae, base) in saes.iter().zip(&bases) {
            let Sae { d_model, latents, k, ref tokens } = *sae;
            let (tiers, ort) = (options.tiers.as_slice(), version.is_some());
            let base = format!("/{}/{base}/", site::SAES);
            let case = Case { base, d_model, latents, k, tokens, tiers, backend, ort };
            let rows = measure(page, &case).await.with_context(|| format!("{sae}, {backend:?}"))?;
            let ours = rows.iter().filter(|row| row.is_ours());
            wrong += ours.clone().filter(|row| row.wrong).count();
            measured += ours.filter(|row| row.is_measured()).count();
            rows.iter().for_each(|row| row.print(sae, (backend == Backend::WebGpu).then_some(&peaks)));
        }
        // What has no room may be left out, but not everything.
        ensure!(measured > 0, "ours could not be measured on {backend:?}; its rows say why");
    }
    ensure!(wrong == 0, "{wrong} rows of ours are marked as wrong: they differ from what they were compared with");
    Ok(())
}

/// Opens the page anew, which gives back all memory and devices, and waits until it knows its adapter.
async fn open(page: &Page) -> anyhow::Result<Adapter> {
    page.open_dead("/bench/bench.html").await?;
    page.wait_for("the adapter", async || page.js("return window.adapter ?? null", vec![]).await).await
}

/// One case, from an empty page.
async fn measure(page: &Page, case: &Case<'_>) -> anyhow::Result<Vec<Row>> {
    open(page).await?;
    page.js::<Value>("window.bench(arguments[0])", vec![json!(case)]).await?;
    let mut heard = Instant::now();
    while heard.elapsed() < PATIENCE {
        let script = "return { log: window.benchLog.splice(0), result: window.benchResult ?? null }";
        let News { log, result } = page.js(script, vec![]).await?;
        if !log.is_empty() {
            heard = Instant::now();
        }
        log.iter().for_each(|line| eprintln!("{line}"));
        match result {
            Some(Outcome { failed: Some(failed), .. }) => bail!("the page stopped: {failed}"),
            Some(Outcome { rows, .. }) => return Ok(rows),
            None => tokio::time::sleep(POLL).await,
        }
    }
    bail!("the page has said nothing for {} s", PATIENCE.as_secs())
}
