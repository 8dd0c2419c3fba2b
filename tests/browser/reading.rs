//! Reading: a link to a feature opens it, for everybody.

use super::NOT_FOUND;
use anyhow::ensure;
use tests::{browser::Gpu, demo::Demo, journey::journey, page::Page};
use thirtyfour::By;

/// Examples whose pictures must be on the screen; the rest loads when one scrolls to it.
const FIRST: usize = 4;

#[test]
fn a_link_to_a_feature_shows_its_label_and_pictures() -> anyhow::Result<()> {
    journey("open_link", Gpu::Software, &[], async |page, demo| {
        let best = demo.best_feature()?;
        let label = best.label.clone().unwrap_or_default();
        page.open(&demo.page(&format!("/{}", best.index))).await?;
        ensure!(page.text("feature-label").await? == label, "the label is not “{label}”");
        let title = page.driver.title().await?;
        ensure!(title.contains(&label), "the title “{title}” does not name the feature");

        let examples = demo.activations(best.index, "kind=mean&limit=24")?.activations;
        ensure!(examples.len() >= FIRST, "the best feature has only {} examples", examples.len());
        for example in &examples[..FIRST] {
            let url = &example.image.picture.url;
            page.until(&format!("picture {url}"), async || {
                Ok(page.loaded_pictures().await?.iter().any(|loaded| loaded.ends_with(url)))
            })
            .await?;
        }

        // The light lies on exactly the patches where the feature fires.
        let first = page.find(By::Css(".examples [data-testid=heat-map]")).await?;
        let light = page.light(&first, examples[0].image.grid).await?;
        let lit: Vec<u32> = (0..).zip(&light).filter(|(_, light)| **light > 0.0).map(|(patch, _)| patch).collect();
        let mut fires = examples[0].feature_acts_indices.clone();
        fires.sort_unstable();
        ensure!(lit == fires, "lit patches {lit:?}, firing patches {fires:?}");
        Ok(())
    })
}

#[test]
fn a_feature_page_needs_no_scripts() -> anyhow::Result<()> {
    journey("without_scripts", Gpu::None, &[], async |page, demo| {
        let best = demo.best_feature()?;
        page.disable_scripts().await?;
        page.open_dead(&demo.page(&format!("/{}", best.index))).await?;
        let label = page.one("feature-label").await?.text().await?;
        ensure!(Some(&label) == best.label.as_ref(), "without scripts the label is “{label}”");
        let examples = demo.activations(best.index, "kind=mean&limit=24")?.activations;
        let url = &examples[0].image.picture.url;
        page.until(&format!("picture {url}"), async || {
            Ok(page.loaded_pictures().await?.iter().any(|loaded| loaded.ends_with(url)))
        })
        .await?;

        // The search works as a plain form.
        let search = page.one("search-input").await?;
        search.send_keys(label.as_str()).await?;
        search.send_keys("\u{e007}").await?;
        page.until("the search's answer", async || Ok(page.path().await?.contains("?q="))).await?;
        page.one("feature-card").await?;
        Ok(())
    })
}

#[test]
fn what_is_not_there_is_a_404_with_a_way_on() -> anyhow::Result<()> {
    journey("not_found", Gpu::None, &[NOT_FOUND], async |page, demo| {
        let beyond = demo.page(&format!("/{}", demo.source.latents));
        let elsewhere = "/no/such/source".to_owned();
        for path in [&beyond, &elsewhere, &"/nothing".to_owned()] {
            let answer = demo.get(path)?;
            ensure!(answer.status == 404, "{path} answers {}", answer.status);
            ensure!(answer.header("content-type").is_some_and(|kind| kind.contains("html")), "{path} is not a page");
        }
        page.open(&beyond).await?;
        let shown = page.text("error-message").await?;
        ensure!(shown.contains(&demo.source.latents.to_string()), "the message does not name the feature: {shown}");
        page.open("/nothing").await?;
        ensure!(!page.text("not-found").await?.is_empty(), "no explanation at an address that leads nowhere");
        page.click(&page.find(By::Css("[data-testid=not-found] a[href='/']")).await?).await?;
        page.until("the start page", async || Ok(page.path().await? == "/")).await
    })
}

#[test]
fn no_page_scrolls_sideways_on_a_phone() -> anyhow::Result<()> {
    journey("phone", Gpu::Software, &[NOT_FOUND], async |page, demo| {
        // The narrowest phones that are still about.
        page.resize(360, 740).await?;
        for path in every_page(demo)? {
            page.open(&path).await?;
            if path.contains("/analyze?picture=") {
                page.one("analyze-row").await?;
            }
            page.check_no_sideways_scroll().await?;
        }
        Ok(())
    })
}

/// One address of every kind of page.
fn every_page(demo: &Demo) -> anyhow::Result<Vec<String>> {
    let best = demo.best_feature()?.index;
    let sample = demo.samples()?.swap_remove(0).id;
    Ok(vec![
        "/".into(),
        demo.page(""),
        demo.page("?q=a&category=object&sort=max"),
        demo.page(&format!("/{best}")),
        demo.page(&format!("/{best}?kind=quantile&view=outline")),
        demo.page("/analyze"),
        demo.page(&format!("/analyze?picture={sample}")),
        demo.page("/steer"),
        demo.page(&format!("/steer?features={best}:3")),
        "/docs".into(),
        "/queue".into(),
        "/nothing".into(),
    ])
}

#[test]
fn a_dead_feature_says_so() -> anyhow::Result<()> {
    journey("dead_feature", Gpu::None, &[], async |page, demo| {
        let dead = demo.features("dead=true&perPage=1")?;
        ensure!(dead.total == demo.source.latents - demo.source.alive, "{} dead features listed", dead.total);
        let Some(dead) = dead.features.first() else { return Ok(()) };
        open_feature(page, demo, dead.index).await?;
        page.one("dead-notice").await?;
        Ok(())
    })
}

async fn open_feature(page: &Page, demo: &Demo, index: u32) -> anyhow::Result<()> {
    page.open(&demo.page(&format!("/{index}"))).await
}
