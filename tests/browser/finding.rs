//! Finding: search, filters, order, keyboard; every state is in the address.

use anyhow::{Context, ensure};
use serde_json::json;
use tests::{browser::Gpu, demo::Demo, journey::journey, page::Page};
use thirtyfour::{By, Key};

#[test]
fn a_feature_is_found_by_its_label_from_the_landing_page() -> anyhow::Result<()> {
    journey("search", Gpu::None, &[], async |page, demo| {
        let best = demo.best_feature()?;
        let label = best.label.clone().unwrap_or_default();
        page.open("/").await?;
        let search = page.one("search-input").await?;
        search.send_keys(label.as_str()).await?;
        search.send_keys(Key::Enter + "").await?;
        let list = demo.page("?q=");
        page.until("the list of what was found", async || Ok(page.path().await?.starts_with(&list))).await?;
        page.wait_until_live().await?;
        let card = By::Css(format!("[data-testid=feature-card][data-feature='{}']", best.index));
        page.click(&page.find(card).await.context("the feature is not among what was found")?).await?;
        let target = demo.page(&format!("/{}", best.index));
        page.until("the feature's page", async || Ok(page.path().await? == target)).await?;
        page.until("its label", async || Ok(page.text("feature-label").await? == label)).await
    })
}

#[test]
fn filter_and_order_live_in_the_address_and_survive_a_reload() -> anyhow::Result<()> {
    journey("filters", Gpu::None, &[], async |page, demo| {
        let category = demo.best_feature()?.category.as_str();
        page.open(&demo.page("")).await?;
        choose(page, "category", category).await?;
        page.until("the category in the address", async || {
            Ok(page.path().await?.contains(&format!("category={category}")))
        })
        .await?;
        choose(page, "sort", "max").await?;
        page.until("the order in the address", async || Ok(page.path().await?.contains("sort=max"))).await?;

        let expected: Vec<u32> = demo
            .features(&format!("category={category}&sort=max&perPage=48"))?
            .features
            .iter()
            .map(|feature| feature.index)
            .collect();
        ensure!(!expected.is_empty(), "no feature of category {category}");
        page.until("the features in that order", async || Ok(cards(page).await? == expected)).await?;

        let before = page.path().await?;
        page.driver.refresh().await?;
        page.wait_until_live().await?;
        ensure!(page.path().await? == before, "the address changed from {before} to {}", page.path().await?);
        ensure!(cards(page).await? == expected, "other features after a reload");
        let chosen: Vec<String> = page
            .js("return ['category', 'sort'].map((n) => document.querySelector(`select[name=${n}]`).value)", vec![])
            .await?;
        ensure!(chosen == [category, "max"], "the lists show {chosen:?} after a reload");
        Ok(())
    })
}

/// Chooses from a drop-down list as a person does.
async fn choose(page: &Page, list: &str, value: &str) -> anyhow::Result<()> {
    let option = page.find(By::Css(format!("select[name={list}] option[value='{value}']"))).await?;
    option.click().await.with_context(|| format!("cannot choose {value} from {list}"))
}

/// Numbers of the features in the grid, in order.
async fn cards(page: &Page) -> anyhow::Result<Vec<u32>> {
    let script = "return [...document.querySelectorAll('[data-testid=feature-card]')].map((c) => +c.dataset.feature)";
    page.js(script, vec![]).await
}

#[test]
fn typing_narrows_the_list_without_a_reload() -> anyhow::Result<()> {
    journey("live_search", Gpu::None, &[], async |page, demo| {
        let label = demo.best_feature()?.label.unwrap_or_default();
        let word = label.split_whitespace().next().unwrap_or_default().to_owned();
        page.open(&demo.page("")).await?;
        page.js::<()>("window.__same_document = true", vec![]).await?;
        page.one("search-input").await?.send_keys(word.as_str()).await?;
        let expected: Vec<u32> =
            demo.features(&format!("q={word}&perPage=48"))?.features.iter().map(|feature| feature.index).collect();
        ensure!(!expected.is_empty(), "nothing is found for “{word}”");
        page.until("what was found", async || Ok(cards(page).await? == expected)).await?;
        page.until("the search in the address", async || Ok(page.path().await?.contains("?q="))).await?;
        ensure!(page.js::<bool>("return window.__same_document === true", vec![]).await?, "the page was reloaded");
        Ok(())
    })
}

#[test]
fn pages_of_other_bundles_are_reached_and_left_like_any_page() -> anyhow::Result<()> {
    journey("other_bundles", Gpu::None, &[], async |page, demo| {
        let feature = demo.best_feature()?.index;
        let path = demo.page(&format!("/{feature}"));
        page.open(&path).await?;
        let before: u32 = page.js("return history.length", vec![]).await?;
        for (name, testid) in [("analyze", "analyze-sample"), ("steer", "steer-run")] {
            let link = page.find(By::Css(format!("main a[href*='/{name}']"))).await?;
            page.click(&link).await?;
            page.until("the other page", async || {
                Ok(page.path().await?.contains(&format!("/{name}")) && !page.all(testid).await?.is_empty())
            })
            .await?;
            page.wait_until_live().await?;
            // Going back leaves one entry ahead, which the next link replaces.
            let after: u32 = page.js("return history.length", vec![]).await?;
            ensure!(after == before + 1, "the way to {name} made {} entries in the history", after - before);
            page.js::<()>("history.back()", vec![]).await?;
            page.until("the feature again", async || {
                Ok(page.path().await? == path && !page.all("feature-label").await?.is_empty())
            })
            .await?;
            page.wait_until_live().await?;
        }
        Ok(())
    })
}

#[test]
fn enter_in_the_search_field_keeps_the_filters() -> anyhow::Result<()> {
    journey("search_in_filters", Gpu::None, &[], async |page, demo| {
        let best = demo.best_feature()?;
        let category = best.category.as_str();
        // With a space at the end, as between two words.
        let words = format!("{} ", best.label.clone().unwrap_or_default());
        page.open(&demo.page(&format!("?category={category}&sort=max"))).await?;
        let search = page.find(By::Css("main [data-testid=search-input]")).await?;
        search.send_keys(words.as_str()).await?;
        page.until("the search in the address", async || Ok(page.path().await?.contains("q="))).await?;
        page.settle().await?;
        let value = "return document.querySelector('main [data-testid=search-input]').value";
        let shown: String = page.js(value, vec![]).await?;
        ensure!(shown == words, "“{words}” became “{shown}” while it was typed");

        page.js::<()>("window.__same_document = true", vec![]).await?;
        search.send_keys(Key::Enter + "").await?;
        page.settle().await?;
        let path = page.path().await?;
        let kept = path.contains(&format!("category={category}")) && path.contains("sort=max");
        ensure!(kept && path.contains("q="), "after Enter the address is {path}");
        ensure!(page.js::<bool>("return window.__same_document === true", vec![]).await?, "the page was reloaded");
        Ok(())
    })
}

#[test]
fn the_keyboard_searches_and_steps_through_features() -> anyhow::Result<()> {
    journey("keyboard", Gpu::None, &[], async |page, demo| {
        let index = step_from(demo)?;
        let at = |index: u32| demo.page(&format!("/{index}"));
        page.open(&at(index)).await?;
        page.press("/").await?;
        let focused = "const field = document.activeElement; return [field.dataset.testid || '', field.value || '']";
        page.until("the focus in the search field", async || {
            let (testid, value): (String, String) = page.js(focused, vec![]).await?;
            Ok(testid == "search-input" && value.is_empty())
        })
        .await?;

        page.js::<()>("document.activeElement.blur()", vec![json!(null)]).await?;
        for (key, index) in [("j", index + 1), ("k", index), ("k", index - 1)] {
            page.press(key).await?;
            page.until(&format!("feature {index} after {key}"), async || Ok(page.path().await? == at(index))).await?;
            let feature = demo.feature(index)?;
            let label = feature.label().map_or_else(|| format!("feature {index}"), |said| said.description.clone());
            page.until(&format!("the label “{label}”"), async || Ok(page.text("feature-label").await? == label))
                .await?;
        }
        Ok(())
    })
}

/// A feature with neighbours on both sides.
fn step_from(demo: &Demo) -> anyhow::Result<u32> {
    Ok(demo.best_feature()?.index.clamp(1, demo.source.latents - 2))
}

#[test]
fn a_random_feature_is_a_living_one() -> anyhow::Result<()> {
    journey("random", Gpu::None, &[], async |page, demo| {
        page.open("/random").await?;
        let start = demo.page("/");
        let index = page
            .wait_for("a feature's address", async || {
                Ok(page.path().await?.strip_prefix(&start).and_then(|rest| rest.parse::<u32>().ok()))
            })
            .await?;
        let feature = demo.feature(index)?;
        ensure!(!feature.dead && feature.label().is_some(), "feature {index} is dead or has no label");
        page.one("feature-label").await?;
        Ok(())
    })
}
