//! Watching: the queue's page keeps up with the queue.

use anyhow::{Context, ensure};
use serde_json::json;
use tests::{browser::Gpu, demo::Demo, journey::journey_on, page::Page, server::Server};
use thirtyfour::By;

/// Posts to an address; gives the answer's status.
const POST: &str = "const done = arguments[arguments.length - 1];
    fetch(arguments[0], { method: 'POST' }).then((answer) => done(answer.status), () => done(0))";

/// Addresses of the features whose jobs are on the page, in order.
async fn jobs(page: &Page) -> anyhow::Result<Vec<String>> {
    let script = "return [...document.querySelectorAll('[data-testid=job] a')].map((a) => a.getAttribute('href'))";
    page.js(script, vec![]).await
}

/// Asks for an explanation as a visitor does.
async fn explain(page: &Page, demo: &Demo, index: u32) -> anyhow::Result<()> {
    let address = format!("/api/v1{}", demo.page(&format!("/features/{index}/explain")));
    let status: u16 = page.js_async(POST, vec![json!(address)]).await?;
    ensure!(status == 202, "{address} answers {status}");
    Ok(())
}

#[test]
fn the_queue_is_watched_and_filtered_without_a_reload() -> anyhow::Result<()> {
    journey_on(Server::start_alone, "queue", Gpu::None, &[], async |page, demo| {
        let features = demo.features("sort=density&perPage=2")?.features;
        let [first, second] = features.as_slice() else { anyhow::bail!("{} features listed", features.len()) };
        let path = |index: u32| demo.page(&format!("/{index}"));
        page.open("/queue").await?;
        page.one("queue-empty").await?;
        ensure!(!page.find(By::Css(".queue-jobs")).await?.is_displayed().await?, "filters without anything to filter");

        explain(page, demo, first.index).await?;
        page.open("/queue").await?;
        ensure!(jobs(page).await? == [path(first.index)], "not the job that was asked for");
        page.js::<()>("window.__same_document = true", vec![]).await?;

        // Nobody works: the job waits, so the page looks again, and finds the next one.
        explain(page, demo, second.index).await?;
        let both = [path(second.index), path(first.index)];
        page.until("the second job", async || Ok(jobs(page).await? == both)).await?;

        let option = page.find(By::Css("select[name=state] option[value=dead]")).await?;
        option.click().await.context("cannot choose dead jobs")?;
        page.until("the filter in the address", async || Ok(page.path().await? == "/queue?state=dead")).await?;
        page.until("no job", async || Ok(jobs(page).await?.is_empty())).await?;
        ensure!(
            page.text("job-filter").await? == "No job fits these filters.",
            "the page does not say why it is empty"
        );
        ensure!(page.js::<bool>("return window.__same_document === true", vec![]).await?, "the page was reloaded");
        Ok(())
    })
}
