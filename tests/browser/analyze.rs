//! Analyze: a picture's hidden states from the server, its features from the visitor's own device.

use anyhow::{Context, ensure};
use serde_json::json;
use std::{fs, path::PathBuf};
use tests::{
    browser::{Driver, Gpu},
    demo::{Demo, share_on},
    journey::{journey, with_page},
    page::Page,
    screenshots,
    server::Server,
};
use thirtyfour::By;

/// Rows that count as the top of a ranking. Two more than the precomputed ranking by which the feature was chosen,
/// because the page also ranks what lies just behind.
const TOP: usize = 12;

/// The light that must lie on the object a feature is named after.
const ON_OBJECT: f32 = 0.6;

/// A row of the ranking: feature and activation, as shown.
type Row = (u32, f32);

#[test]
fn a_sample_lights_up_where_its_object_is() -> anyhow::Result<()> {
    journey("analyze", Gpu::Software, &[], async |page, demo| {
        let named = demo.named_object()?;
        page.open(&demo.page("/analyze?compute=gpu")).await?;
        choose_sample(page, &named.picture.id).await?;
        let rows = ranking(page).await?;
        let path = page.text("analyze-path").await?;
        ensure!(path.contains("your GPU"), "WebGPU did not compute this: {path}");

        let place = rows.iter().position(|(feature, _)| *feature == named.feature.index);
        let place = place.with_context(|| format!("no row for the feature “{}”", named.object.concept))?;
        ensure!(place < TOP, "“{}” is only number {}", named.object.concept, place + 1);

        light_feature(page, named.feature.index).await?;
        let map = page.find(By::Css(".patches[data-testid=heat-map]")).await?;
        let light = page.light(&map, demo.source.grid).await?;
        let share = share_on(&light, demo.source.grid, &named.picture, &named.object);
        ensure!(share >= ON_OBJECT, "only {share:.2} of the light lies on the {}", named.object.concept);
        Ok(())
    })
}

#[test]
fn without_webgpu_the_cpu_twin_gives_the_same_features_and_says_so() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let (server, driver) = (Server::start()?, Driver::start()?);
        let demo = Demo::new(server.address)?;
        let sample = demo.samples()?.swap_remove(0).id;
        // What is not asked for is chosen by measurement, and a software GPU loses.
        let analyze = async |page: &Page, compute: &str| -> anyhow::Result<(Vec<Row>, String)> {
            page.open(&demo.page(&format!("/analyze?picture={sample}&compute={compute}"))).await?;
            let rows = ranking(page).await?;
            Ok((rows, page.text("analyze-path").await?))
        };
        let on = async |page: &Page| analyze(page, "gpu").await;
        let (on_gpu, gpu_path) = with_page("fallback_gpu", &driver, Gpu::Software, &server, &[], &on).await?;
        let off = async |page: &Page| analyze(page, "auto").await;
        let (on_cpu, cpu_path) = with_page("fallback_cpu", &driver, Gpu::None, &server, &[], &off).await?;
        ensure!(gpu_path.contains("your GPU"), "WebGPU did not compute this: {gpu_path}");
        ensure!(cpu_path.contains("CPU") && cpu_path.contains("WebGPU"), "the page does not say why: {cpu_path}");
        same_features(&on_gpu, &on_cpu)
    })
}

#[test]
fn a_lost_gpu_is_replaced_within_the_analysis() -> anyhow::Result<()> {
    journey("lost_gpu", Gpu::Software, &[], async |page, demo| {
        let sample = demo.samples()?.swap_remove(0).id;
        let address = demo.page(&format!("/analyze?picture={sample}&compute=gpu"));
        page.open(&address).await?;
        let expected = ranking(page).await?;
        for fault in ["lost", "memory"] {
            page.open(&format!("{address}&fault={fault}")).await?;
            same_features(&expected, &ranking(page).await?)?;
            let notice = page.text("analyze-notice").await?;
            ensure!(notice.contains("lost and replaced"), "the notice says: {notice}");
            let path = page.text("analyze-path").await?;
            ensure!(path.contains("your GPU") && path.contains("f16"), "the second device should do: {path}");
        }
        // Each later one is lost as well: half of the weights then, and the CPU in the end.
        for (faults, expected) in [("lost,lost", ["your GPU", "int8"]), ("lost,memory,lost", ["your CPU", "f16"])] {
            page.open(&format!("{address}&fault={faults}")).await?;
            ranking(page).await?;
            let path = page.text("analyze-path").await?;
            ensure!(expected.iter().all(|word| path.contains(word)), "after {faults}: {path}");
        }
        Ok(())
    })
}

#[test]
fn every_place_and_tier_can_be_chosen_and_agrees() -> anyhow::Result<()> {
    journey("places", Gpu::Software, &[], async |page, demo| {
        let sample = demo.samples()?.swap_remove(0).id;
        let mut rankings = Vec::new();
        for (query, place) in [("compute=cpu", "your CPU"), ("compute=server", "the server"), ("", "measured:")] {
            page.open(&demo.page(&format!("/analyze?picture={sample}&{query}"))).await?;
            rankings.push(ranking(page).await?);
            page.click(&page.find(By::Css("[data-testid=analyze-where] summary")).await?).await?;
            let said = [page.text("analyze-path").await?, page.text("analyze-where").await?].concat();
            ensure!(said.contains(place), "{query}: {said}");
        }
        same_features(&rankings[0], &rankings[1])?;
        same_features(&rankings[0], &rankings[2])?;
        page.open(&demo.page(&format!("/analyze?picture={sample}&compute=gpu&tier=int8"))).await?;
        ranking(page).await?;
        let path = page.text("analyze-path").await?;
        ensure!(path.contains("int8 weights") && path.contains("% as in f32"), "{path}");
        Ok(())
    })
}

#[test]
fn the_lit_feature_is_studied_in_the_picture() -> anyhow::Result<()> {
    journey("facts", Gpu::Software, &[], async |page, demo| {
        let named = demo.named_object()?;
        for (compute, place) in [("gpu", "your GPU"), ("cpu", "your CPU")] {
            let feature = named.feature.index;
            let query = format!("/analyze?picture={}&feature={feature}&compute={compute}", named.picture.id);
            page.open(&demo.page(&query)).await?;
            ranking(page).await?;
            let explained = page
                .wait_for("the explained variance", async || {
                    let text = page.text("analyze-explained").await?;
                    Ok((!text.is_empty()).then_some(text))
                })
                .await?;
            let share = explained.split('%').next().and_then(|text| text.split(' ').next_back()?.parse::<f32>().ok());
            ensure!(share.is_some_and(|share| (50.0..=100.0).contains(&share)), "{explained}");
            ensure!(explained.contains(place), "{explained}");

            page.click(&page.find(By::Css("[data-testid=analyze-facts] summary")).await?).await?;
            let line = page
                .wait_for("what the feature does", async || {
                    let text = page.text("analyze-place").await?;
                    Ok((!text.is_empty()).then_some(text))
                })
                .await?;
            ensure!(line.starts_with("Number ") && line.contains("your CPU"), "{line}");
            let bars = "return [...document.querySelectorAll('[data-testid=analyze-facts] .histogram rect')]
                .map((bar) => +bar.getAttribute('height'))";
            let bars: Vec<f32> = page.js(bars, vec![]).await?;
            ensure!(bars.len() == 16 && bars.iter().any(|height| *height > 1.0), "no histogram: {bars:?}");

            for list in ["analyze-together", "analyze-near"] {
                page.one(list).await?;
                let features: Vec<u32> = listed(page, list).await?.into_iter().map(|(feature, _)| feature).collect();
                ensure!((1..=5).contains(&features.len()) && !features.contains(&feature), "{list}: {features:?}");
                let ids = features.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
                let known = demo.features(&format!("ids={ids}&perPage=5"))?.features;
                let label = |feature: &u32| known.iter().find(|known| known.index == *feature)?.label.clone();
                let expected: Vec<(u32, String)> = features
                    .iter()
                    .map(|feature| (*feature, label(feature).unwrap_or_else(|| format!("feature {feature}"))))
                    .collect();
                page.until("labels", async || Ok(listed(page, list).await? == expected)).await?;
            }
            // By decoder direction the tab finds what the server has computed from the whole SAE.
            let near: Vec<u32> = listed(page, "analyze-near").await?.into_iter().map(|(feature, _)| feature).collect();
            let expected: Vec<u32> =
                demo.neighbours(feature)?.by_decoder.iter().map(|near| near.feature.index).take(5).collect();
            let common = near.iter().filter(|feature| expected.contains(feature)).count();
            ensure!(common + 1 >= near.len(), "{near:?}, where the server has {expected:?}");
        }
        page.resize(390, 844).await?;
        page.check_no_sideways_scroll().await
    })
}

/// Features of a list and what they are called there.
async fn listed(page: &Page, list: &str) -> anyhow::Result<Vec<(u32, String)>> {
    let script = "return [...document.querySelectorAll(`[data-testid=${arguments[0]}] a`)]
        .map((link) => [+link.getAttribute('href').split('/').pop(),
            link.querySelector('.mini-label').textContent.trim()])";
    page.js(script, vec![json!(list)]).await
}

#[test]
fn the_gpu_draws_the_light_on_a_canvas() -> anyhow::Result<()> {
    journey("canvas", Gpu::SoftwareCanvas, &[], async |page, demo| {
        let named = demo.named_object()?;
        let feature = named.feature.index;
        let picture = &named.picture.id;
        page.open(&demo.page(&format!("/analyze?picture={picture}&feature={feature}&compute=gpu&canvas=1"))).await?;
        ranking(page).await?;
        page.find(By::Css(".lit-canvas.drawn")).await.context("the canvas does not take the mask's place")?;
        // The frame is on its way to the screen.
        let shares = page
            .wait_for("light on the canvas", async || {
                let [rows, columns] = demo.source.grid;
                let shares: Vec<f32> = page.js(READ_CANVAS, vec![json!(rows), json!(columns)]).await?;
                Ok(shares.iter().any(|share| *share > 0.5).then_some(shares))
            })
            .await?;
        let share = share_on(&shares, demo.source.grid, &named.picture, &named.object);
        ensure!(share >= ON_OBJECT, "only {share:.2} of the light lies on the {}", named.object.concept);

        let size = "const canvas = document.querySelector('.lit-canvas');
            return [canvas.width, canvas.height, canvas.clientWidth * devicePixelRatio,
                canvas.clientHeight * devicePixelRatio].map(Math.round)";
        let [width, height, shown_width, shown_height]: [u32; 4] = page.js(size, vec![]).await?;
        ensure!(
            [width, height] == [shown_width, shown_height],
            "{width} × {height} pixels for {shown_width} × {shown_height}"
        );
        // Under the mask's place there is no second light.
        let below = "return getComputedStyle(document.querySelector('.patches .lit-base')).filter";
        ensure!(page.js::<String>(below, vec![]).await? == "none", "the picture is dimmed twice");
        Ok(())
    })
}

/// The canvas's light in the middle of every patch, 0..=1, by the colour that is laid on there.
const READ_CANVAS: &str = "
    const [rows, columns] = arguments;
    const canvas = document.querySelector('.lit-canvas');
    const copy = Object.assign(document.createElement('canvas'), { width: canvas.width, height: canvas.height });
    const context = copy.getContext('2d');
    context.drawImage(canvas, 0, 0);
    const { data } = context.getImageData(0, 0, copy.width, copy.height);
    return Array.from({ length: rows * columns }, (_, patch) => {
        const x = Math.floor(((patch % columns) + 0.5) * copy.width / columns);
        const y = Math.floor((Math.floor(patch / columns) + 0.5) * copy.height / rows);
        const [red, , , alpha] = data.slice(4 * (y * copy.width + x));
        // A fifth of full light is colour.
        return red * alpha / 255 / 255 / 0.2;
    });";

/// Two rankings agree when they differ only where activations are as good as equal.
fn same_features(a: &[Row], b: &[Row]) -> anyhow::Result<()> {
    ensure!(a.len() >= 5 && a.len() == b.len(), "{} and {} rows", a.len(), b.len());
    for ((_, act), (feature, other)) in a.iter().zip(b) {
        let close = (act - other).abs() <= 0.02 * act.abs().max(other.abs());
        ensure!(close, "feature {feature}: {act} and {other} in the same row");
    }
    let common = a.iter().filter(|(feature, _)| b.iter().any(|(other, _)| other == feature)).count();
    ensure!(common + 1 >= a.len(), "only {common} of {} features are in both rankings:\n{a:?}\n{b:?}", a.len());
    Ok(())
}

#[test]
fn a_picked_patch_ranks_its_own_features_and_stays_picked() -> anyhow::Result<()> {
    journey("patch", Gpu::Software, &[], async |page, demo| {
        let sample = demo.samples()?.swap_remove(0).id;
        let acts = demo.picture_activations(&sample)?;
        let patch = acts.grid[1] * (acts.grid[0] / 2) + acts.grid[1] / 2;
        let expected = acts.top_indices[(patch * acts.k) as usize];

        page.open(&demo.page(&format!("/analyze?picture={sample}"))).await?;
        ranking(page).await?;
        page.click(&page.find(By::Css(format!("[data-testid=patch][data-patch='{patch}']"))).await?).await?;
        let picked = format!("patches={patch}");
        page.until("the patch in the address", async || Ok(page.path().await?.contains(&picked))).await?;
        page.hover(&page.find(By::Css("h1")).await?).await?;
        page.until("the patch's strongest feature on top", async || {
            Ok(rows(page).await?.first().map(|(feature, _)| *feature) == Some(expected))
        })
        .await?;

        let before = ranking(page).await?;
        page.driver.refresh().await?;
        page.wait_until_live().await?;
        same_features(&before, &ranking(page).await?)
    })
}

#[test]
fn an_own_picture_is_analyzed_like_a_sample() -> anyhow::Result<()> {
    journey("own_picture", Gpu::Software, &[], async |page, demo| {
        let sample = demo.samples()?.swap_remove(0);
        page.open(&demo.page(&format!("/analyze?picture={}", sample.id))).await?;
        let expected = ranking(page).await?;

        let file = write_upload("own.webp", &demo.get(&sample.url)?.body)?;
        page.open(&demo.page("/analyze")).await?;
        page.one("upload-input").await?.send_keys(file.display().to_string()).await?;
        same_features(&expected, &ranking(page).await?)?;
        ensure!(!page.path().await?.contains("picture="), "an own picture must not be in the address");
        Ok(())
    })
}

#[test]
fn a_file_that_is_no_picture_gets_a_clear_message() -> anyhow::Result<()> {
    journey("bad_upload", Gpu::Software, &["Failed to load resource"], async |page, demo| {
        let file = write_upload("notes.png", b"Dear diary, this is not a picture.\n")?;
        page.open(&demo.page("/analyze")).await?;
        page.one("upload-input").await?.send_keys(file.display().to_string()).await?;
        page.one("error-message").await?;
        let message = page.text("error-message").await?.to_lowercase();
        ensure!(message.contains("image") || message.contains("picture"), "the message does not help: {message}");
        ensure!(!message.contains("500") && !message.contains("internal"), "blames the server: {message}");

        // The page goes on working.
        let sample = demo.samples()?.swap_remove(0).id;
        choose_sample(page, &sample).await?;
        ranking(page).await?;
        ensure!(page.text("error-message").await?.is_empty(), "the message is still there");
        Ok(())
    })
}

/// Chromium reads uploads from the disk; the target folder is readable for sandboxed ones, too.
fn write_upload(name: &str, content: &[u8]) -> anyhow::Result<PathBuf> {
    let folder = screenshots()?.join("uploads");
    fs::create_dir_all(&folder)?;
    let file = folder.join(name);
    fs::write(&file, content).with_context(|| format!("cannot write {}", file.display()))?;
    Ok(file)
}

async fn choose_sample(page: &Page, id: &str) -> anyhow::Result<()> {
    let sample = page.find(By::Css(format!("[data-testid=analyze-sample][data-picture='{id}']"))).await?;
    page.click(&sample).await
}

/// Points at a feature's row until the picture shows it.
async fn light_feature(page: &Page, feature: u32) -> anyhow::Result<()> {
    let row = page.find(By::Css(format!("[data-testid=analyze-row][data-feature='{feature}']"))).await?;
    page.hover(&row).await?;
    let lit = format!("[data-testid=analyze-row][data-feature='{feature}'].row-lit");
    page.find(By::Css(lit)).await.context("pointing at the row does not light it")?;
    Ok(())
}

/// The ranking, once the analysis is done.
async fn ranking(page: &Page) -> anyhow::Result<Vec<Row>> {
    page.wait_for("ranked features", async || {
        let failed = page.text("error-message").await?;
        ensure!(failed.is_empty(), "the page says: {failed}");
        let found = rows(page).await?;
        let done = !page.text("analyze-path").await?.is_empty();
        Ok((done && !found.is_empty()).then_some(found))
    })
    .await
}

async fn rows(page: &Page) -> anyhow::Result<Vec<Row>> {
    let script = "return [...document.querySelectorAll('[data-testid=analyze-row]')]
        .map((row) => [+row.dataset.feature, +row.querySelector('.row-value').textContent.replaceAll(',', '')])";
    page.js(script, vec![]).await
}
