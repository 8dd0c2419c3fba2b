//! The landing page answers the pointer from precomputed activations.

use anyhow::{Context, ensure};
use api::PictureActivations;
use tests::{browser::Gpu, journey::journey, page::Page};
use thirtyfour::By;

#[test]
fn pointing_at_the_picture_names_the_features_under_the_pointer() -> anyhow::Result<()> {
    journey("landing", Gpu::None, &[], async |page, demo| {
        page.open("/").await?;
        let picture = page.find(By::Css(".patches[data-testid=heat-map] img")).await?;
        let src = picture.attr("src").await?.context("the picture has no address")?;
        let shown = demo.samples()?.into_iter().find(|sample| src.ends_with(&sample.url));
        let acts = demo.picture_activations(&shown.with_context(|| format!("{src} is no sample"))?.id)?;

        for patch in [0, acts.grid[0] * acts.grid[1] - 1, acts.grid[1] * (acts.grid[0] / 2)] {
            let cell = page.find(By::Css(format!("[data-testid=patch][data-patch='{patch}']"))).await?;
            page.hover(&cell).await?;
            let expected = top_of_patch(&acts, patch).with_context(|| format!("nothing fires on patch {patch}"))?;
            page.until(&format!("feature {expected} on top at patch {patch}"), async || {
                Ok(first_row(page).await? == Some(expected))
            })
            .await?;
        }
        Ok(())
    })
}

#[test]
fn another_sample_can_be_picked() -> anyhow::Result<()> {
    journey("landing_samples", Gpu::None, &[], async |page, demo| {
        let samples = demo.samples()?;
        ensure!(samples.len() > 1, "only one sample picture");
        page.open("/").await?;
        let shown = async || -> anyhow::Result<String> {
            let picture = page.find(By::Css(".patches[data-testid=heat-map] img")).await?;
            picture.attr("src").await?.context("the picture has no address")
        };
        let first = shown().await?;
        let others = page.driver.find_all(By::Css(".samples img")).await?;
        let mut other = None;
        for sample in others {
            if sample.attr("src").await?.is_some_and(|src| src != first) {
                other = Some(sample);
                break;
            }
        }
        page.click(&other.context("no other sample to click")?).await?;
        page.until("another picture", async || Ok(shown().await? != first)).await
    })
}

/// The strongest feature of a patch.
fn top_of_patch(acts: &PictureActivations, patch: u32) -> Option<u32> {
    let start = (patch * acts.k) as usize;
    (*acts.top_acts.get(start)? > 0.0).then(|| acts.top_indices[start])
}

/// The feature of the first row beside the picture.
async fn first_row(page: &Page) -> anyhow::Result<Option<u32>> {
    let script = "const row = document.querySelector('[data-testid=landing-row]'); return row && +row.dataset.feature";
    page.js(script, vec![]).await
}
