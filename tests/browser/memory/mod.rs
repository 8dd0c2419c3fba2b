//! What a tab needs while an SAE loads and encodes: under 150 MB of JS heap and wasm memory, whatever the SAE's size.
//! `memory.js` measures; the SAE is random, and the answer is compared with the CPU twin's.

mod agreement;
mod sae;

use agreement::{Agreement, agreement};
use anyhow::{Context, bail, ensure};
use api::{
    Tier,
    gpu::{ComputePath, LoadedSae},
};
use axum::Router;
use sae::{Hidden, RandomSae, TOKENS, WHOLE_TOKENS};
use serde::Deserialize;
use serde_json::json;
use shaders::TopK;
use std::{
    fs,
    net::SocketAddr,
    path::Path,
    time::{Duration, Instant},
};
use tests::{
    browser::{Driver, Gpu},
    page::Page,
    root, target,
};
use tower_http::services::ServeDir;

/// Bytes of JS heaps and wasm memory together, of the page and its worker.
const LIMIT: u64 = 150_000_000;
/// A load looks at the heaps many times; fewer would say nothing about its peak.
const LEAST_SAMPLES: u32 = 20;
/// A gigabyte through a software GPU on a busy machine.
const PATIENCE: Duration = Duration::from_secs(1800);
const POLL: Duration = Duration::from_millis(200);

/// What `memory.js` measured.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Visit {
    sae: LoadedSae,
    load_ms: f64,
    encode_ms: f64,
    /// The largest sum of both JS heaps that was seen.
    heap_bytes: u64,
    wasm_bytes: u64,
    /// How often the heaps were looked at.
    samples: u32,
    /// `[tokens, k]`, as is `acts`.
    indices: Vec<u32>,
    acts: Vec<f32>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Outcome {
    Done(Box<Visit>),
    Failed(String),
}

#[test]
fn an_eighth_of_the_full_size_stays_within_its_memory() -> anyhow::Result<()> {
    measure(16_384, &[Tier::Int8])
}

#[test]
#[ignore = "takes minutes and gigabytes: `make test-full-size`"]
fn the_full_size_stays_within_the_same_memory() -> anyhow::Result<()> {
    measure(131_072, &[Tier::Int8, Tier::F16])
}

/// Two visits per tier: the first one fetches the SAE, the second finds it in the browser's storage.
fn measure(latents: u32, tiers: &[Tier]) -> anyhow::Result<()> {
    // Beside the build and not among temporary files, which lie in memory on some systems.
    let folder = tempfile::tempdir_in(target()?)?;
    let sae = RandomSae::write(folder.path(), latents, tiers)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let (address, driver) = (serve(&sae.shards).await?, Driver::start()?);
        // `memory.js` speaks the debugging protocol; what the browser stores goes away with the folder.
        let allowed = format!("--remote-allow-origins=http://{address}");
        let profile = format!("--user-data-dir={}", folder.path().join("profile").display());
        let browser = driver.open_with(Gpu::Software, &[&allowed, &profile]).await?;
        let page = Page::new(browser, format!("http://{address}")).await?;
        let outcome = visits(&page, &sae, tiers).await;
        if outcome.is_err()
            && let Ok(log) = page.driver.browser_log().await
        {
            log.iter().for_each(|entry| eprintln!("console {}: {}", entry.level, entry.message));
        }
        page.driver.quit().await.context("cannot close Chromium")?;
        outcome
    })
}

async fn visits(page: &Page, sae: &RandomSae, tiers: &[Tier]) -> anyhow::Result<()> {
    println!("{} latents; {TOKENS} tokens; MB are millions of bytes, at their peak\n", sae.latents);
    println!("| tier | SAE, MB | from | load, s | encode, s | JS heap, MB | wasm, MB | like the CPU twin |");
    println!("|---|---:|---|---:|---:|---:|---:|---|");
    let hidden = Hidden::random();
    for &tier in tiers {
        let bytes = sae.manifest.tier(tier).context("the manifest lacks a tier")?.bytes();
        let expected = sae.twin(tier)?.encode(&hidden.floats(), TOKENS)?;
        for first in [true, false] {
            let visit = visit(page, tier, &hidden).await.with_context(|| format!("tier {tier}"))?;
            let (top_indices, top_acts) = (visit.indices.clone(), visit.acts.clone());
            let answer = TopK { tokens: TOKENS, k: expected.k, top_indices, top_acts };
            let agreement = agreement(&answer, &expected, WHOLE_TOKENS).with_context(|| format!("tier {tier}"))?;
            print_row(&visit, bytes, &agreement);
            visit.check(bytes, first)?;
        }
    }
    Ok(())
}

impl Visit {
    /// Computed on the GPU, within the limit, the second time from storage.
    fn check(&self, bytes: u64, first: bool) -> anyhow::Result<()> {
        let Self { sae, heap_bytes, wasm_bytes, samples, .. } = self;
        ensure!(sae.path == ComputePath::WebGpu, "WebGPU did not compute this: {}", sae.reason);
        // What the browser's storage has no room for is fetched again, and the table says so.
        let expected = first || sae.not_kept.is_some();
        ensure!((sae.origin.fetched > 0) == expected, "from the wrong place: {:?}", sae.origin);
        ensure!(*samples >= LEAST_SAMPLES && *wasm_bytes > 0, "{samples} samples, {wasm_bytes} bytes of wasm memory");
        let total = heap_bytes + wasm_bytes;
        let parts = format!("{heap_bytes} bytes of JS heap and {wasm_bytes} of wasm memory");
        ensure!(total < LIMIT, "{parts}: at most {LIMIT} may be used");
        // Nothing that grows with the SAE, whatever the limit.
        ensure!(total < bytes / 2, "{parts} for weights of {bytes} bytes: they pile up on their way to the GPU");
        Ok(())
    }
}

fn print_row(visit: &Visit, bytes: u64, agreement: &Agreement) {
    let Visit { sae, load_ms, encode_ms, heap_bytes, wasm_bytes, .. } = visit;
    let megabytes = |bytes: u64| bytes as f64 / 1e6;
    let from = match (&sae.not_kept, sae.origin.fetched) {
        (Some(reason), _) => format!("network; not kept: {reason}"),
        (None, 0) => "storage".to_owned(),
        (None, _) => "network".to_owned(),
    };
    println!(
        "| {} | {:.0} | {from} | {:.1} | {:.1} | {:.1} | {:.1} | {agreement} |",
        sae.tier,
        megabytes(bytes),
        load_ms / 1e3,
        encode_ms / 1e3,
        megabytes(*heap_bytes),
        megabytes(*wasm_bytes)
    );
}

/// Opens the page anew, loads the tier and encodes.
async fn visit(page: &Page, tier: Tier, hidden: &Hidden) -> anyhow::Result<Visit> {
    page.open_dead("/memory/memory.html").await?;
    let site: serde_json::Value = serde_json::from_slice(&fs::read(target()?.join("site/site.json"))?)?;
    let wanted = json!({
        "devtools": devtools(page).await?,
        "script": site["worker"]["js"],
        "base": "/sae/",
        "tier": tier,
        "tokens": TOKENS,
        "hidden": hidden.bits(),
    });
    page.js::<()>("window.visit(arguments[0])", vec![wanted]).await?;
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        let outcome: Option<String> = page.js("return window.outcome ?? null", vec![]).await?;
        let outcome: Option<Outcome> = outcome.map(|json| serde_json::from_str(&json)).transpose()?;
        match outcome {
            Some(Outcome::Done(visit)) => return Ok(*visit),
            Some(Outcome::Failed(reason)) => bail!("the page failed: {reason}"),
            None => tokio::time::sleep(POLL).await,
        }
    }
    bail!("the page did not finish within {} s", PATIENCE.as_secs())
}

/// Where the page's own tab speaks the debugging protocol.
async fn devtools(page: &Page) -> anyhow::Result<String> {
    let options = page.driver.capabilities().get("goog:chromeOptions");
    let address = options.and_then(|options| options["debuggerAddress"].as_str());
    let address = address.context("chromedriver does not say where Chromium can be debugged")?;
    Ok(format!("ws://{address}/devtools/page/{}", page.driver.window().await?))
}

/// Serves this folder, our bundles and the SAE.
async fn serve(shards: &Path) -> anyhow::Result<SocketAddr> {
    let app = Router::new()
        .nest_service("/memory", ServeDir::new(root().join("tests/browser/memory")))
        .nest_service("/assets", ServeDir::new(target()?.join("site")))
        .nest_service("/sae", ServeDir::new(shards));
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.context("no free port")?;
    let address = listener.local_addr()?;
    tokio::spawn(async move { axum::serve(listener, app).await });
    Ok(address)
}
