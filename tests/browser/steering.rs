//! Steering: three texts that stream side by side; the address reproduces them.

use anyhow::{Context, ensure};
use serde_json::json;
use tests::{browser::Gpu, demo::Demo, journey::journey, page::Page};

const PROMPT: &str = "Tell me a story about Alice and Bob.";
const COLUMNS: [&str; 3] = ["steer-original", "steer-reconstructed", "steer-steered"];

/// Notes every length that each column's text has had.
const WATCH: &str = "
    const seen = window.__seen = Object.fromEntries(arguments[0].map((column) => [column, []]));
    const look = () => Object.entries(seen).forEach(([column, lengths]) => {
        const length = document.querySelector(`[data-testid=${column}]`)?.textContent.length ?? 0;
        if (length > 0 && lengths.at(-1) !== length) lengths.push(length);
    });
    new MutationObserver(look).observe(document.body, { subtree: true, childList: true, characterData: true });";

/// Clicks cancel as soon as any column has some text.
const CANCEL_EARLY: &str = "
    const watcher = new MutationObserver(() => {
        const begun = arguments[0].some((column) =>
            document.querySelector(`[data-testid=${column}]`)?.textContent.length > 0);
        const cancel = document.querySelector('[data-testid=steer-cancel]');
        if (!begun || !cancel || cancel.hidden) return;
        watcher.disconnect();
        cancel.click();
        window.__cancelled = true;
    });
    watcher.observe(document.body, { subtree: true, childList: true, characterData: true });";

#[test]
fn three_texts_stream_and_their_address_reproduces_them() -> anyhow::Result<()> {
    journey("steer", Gpu::None, &[], async |page, demo| {
        open_bench(page, demo, "").await?;
        page.js::<()>(WATCH, vec![json!(COLUMNS)]).await?;
        run(page).await?;
        let texts = finished(page).await?;
        for (column, text) in COLUMNS.iter().zip(&texts) {
            let lengths: Vec<u32> = page.js("return window.__seen[arguments[0]]", vec![json!(column)]).await?;
            let words = text.split_whitespace().count();
            ensure!(words < 4 || lengths.len() > 1, "{column} did not stream: {words} words in {} step", lengths.len());
        }

        // The address follows a moment later.
        page.until("the run in the address", async || {
            let address = page.path().await?;
            Ok(address.contains("run=1") && address.contains("prompt="))
        })
        .await?;
        page.driver.refresh().await?;
        page.wait_until_live().await?;
        let again = finished(page).await?;
        ensure!(again == texts, "the same address gives other texts:\n{texts:?}\n{again:?}");
        Ok(())
    })
}

#[test]
fn without_a_feature_steered_is_reconstructed() -> anyhow::Result<()> {
    journey("steer_nothing", Gpu::None, &[], async |page, demo| {
        page.open(&demo.page("/steer")).await?;
        page.one("steer-prompt").await?.send_keys(PROMPT).await?;
        run(page).await?;
        let [_, reconstructed, steered] = finished(page).await?;
        ensure!(reconstructed == steered, "nothing was changed, and yet:\n{reconstructed}\n{steered}");
        Ok(())
    })
}

#[test]
fn a_run_can_be_cancelled() -> anyhow::Result<()> {
    journey("steer_cancel", Gpu::None, &[], async |page, demo| {
        open_bench(page, demo, "&tokens=256").await?;
        run(page).await?;
        let whole: usize = finished(page).await?.iter().map(String::len).sum();

        page.js::<()>(CANCEL_EARLY, vec![json!(COLUMNS)]).await?;
        run(page).await?;
        page.until("the click on cancel", async || page.js("return window.__cancelled === true", vec![]).await).await?;
        page.until("the end of the run", async || Ok(page.text("steer-run").await? == "Run")).await?;
        let cut: usize = texts(page).await?.iter().map(String::len).sum();
        ensure!(cut < whole, "the cancelled run wrote {cut} bytes, the whole one {whole}");
        page.settle().await?;
        let later: usize = texts(page).await?.iter().map(String::len).sum();
        ensure!(later == cut, "the cancelled run went on from {cut} to {later} bytes");
        Ok(())
    })
}

/// The steer page with the best feature at its usual strength, and a prompt.
async fn open_bench(page: &Page, demo: &Demo, more: &str) -> anyhow::Result<()> {
    let best = demo.best_feature()?.index;
    page.open(&demo.page(&format!("/steer?features={best}:3{more}"))).await?;
    page.one("steer-prompt").await?.send_keys(PROMPT).await?;
    Ok(())
}

/// Clicks run, once it can be clicked.
async fn run(page: &Page) -> anyhow::Result<()> {
    let button = page.one("steer-run").await?;
    page.until("a run button that can be clicked", async || Ok(button.is_enabled().await?)).await?;
    page.click(&button).await
}

/// The three texts of a finished run.
async fn finished(page: &Page) -> anyhow::Result<[String; 3]> {
    page.wait_for("three whole texts", async || {
        let failed = page.text("error-message").await?;
        ensure!(failed.is_empty(), "the page says: {failed}");
        // In this order: texts read before the end may be cut.
        let done = page.text("steer-run").await? == "Run";
        let texts = texts(page).await?;
        Ok((done && texts.iter().all(|text| !text.is_empty())).then_some(texts))
    })
    .await
}

async fn texts(page: &Page) -> anyhow::Result<[String; 3]> {
    let mut found = Vec::new();
    for column in COLUMNS {
        found.push(page.text(column).await?);
    }
    found.try_into().ok().context("there are not three columns")
}
