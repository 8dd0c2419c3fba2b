//! `make screenshots`: every page at desktop and phone size, light and dark, after the work on it is done.
//!
//! Usage: `screenshots FOLDER [NAME…]`; with names only those pages.

use anyhow::{Context, ensure};
use std::{fs, path::Path};
use tests::{
    browser::{Driver, Gpu},
    demo::Demo,
    page::Page,
    server::Server,
};
use thirtyfour::By;

const SIZES: [(&str, u32, u32); 2] = [("desktop", 1440, 900), ("phone", 390, 844)];
const PROMPT: &str = "Tell+me+a+story+about+Alice+and+Bob.";
const SCHEMES: [&str; 2] = ["light", "dark"];

/// A page: its name, its address, and what must be there before the picture is taken.
struct Shot {
    name: &'static str,
    path: String,
    ready: &'static str,
    /// Clicked first, if it says so.
    click: Option<&'static str>,
}

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments.next().context("usage: screenshots FOLDER [NAME…]")?;
    let only: Vec<String> = arguments.collect();
    let folder = Path::new(&folder);
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let (server, driver) = (Server::start()?, Driver::start()?);
        let demo = Demo::new(server.address)?;
        let shots: Vec<Shot> = shots(&demo)?
            .into_iter()
            .filter(|shot| only.is_empty() || only.iter().any(|name| name == shot.name))
            .collect();
        ensure!(!shots.is_empty(), "no page of these names: {only:?}");
        let page = Page::new(driver.open(Gpu::Software).await?, server.url("")).await?;
        let outcome = take_all(&page, &shots, folder).await;
        page.driver.quit().await?;
        outcome
    })
}

fn shots(demo: &Demo) -> anyhow::Result<Vec<Shot>> {
    let best = demo.best_feature()?;
    let named = demo.named_object()?;
    let shot = |name, path, ready| Shot { name, path, ready, click: None };
    let analyze = format!("/analyze?picture={}&feature={}", named.picture.id, named.feature.index);
    let steer = format!("/steer?features={}:3&prompt={PROMPT}", best.index);
    Ok(vec![
        shot("landing", "/".into(), ".patches[data-testid=heat-map]"),
        shot("source", demo.page(""), "[data-testid=feature-card]"),
        shot("feature", demo.page(&format!("/{}", best.index)), ".examples [data-testid=heat-map]"),
        shot("analyze-empty", demo.page("/analyze"), "[data-testid=analyze-sample]"),
        shot("analyze", demo.page(&analyze), "[data-testid=analyze-row]"),
        shot("steer-empty", demo.page("/steer"), "[data-testid=steer-run]"),
        Shot {
            click: Some("[data-testid=steer-run]"),
            ..shot("steer", demo.page(&steer), "[data-testid=steer-steered]")
        },
        shot("docs", "/docs".into(), "h1"),
        shot("queue", "/queue".into(), "h1"),
        shot("not-found", "/nothing".into(), "[data-testid=not-found]"),
    ])
}

async fn take_all(page: &Page, shots: &[Shot], folder: &Path) -> anyhow::Result<()> {
    for scheme in SCHEMES {
        page.prefer(scheme).await?;
        for (size, width, height) in SIZES {
            page.resize(width, height).await?;
            for shot in shots {
                take(page, shot).await.with_context(|| format!("{} ({size}, {scheme})", shot.name))?;
                let file = folder.join(format!("{}-{size}-{scheme}.png", shot.name));
                page.driver.screenshot(&file).await?;
                println!("{}", file.display());
            }
        }
    }
    Ok(())
}

/// Brings the page into the state of the picture.
async fn take(page: &Page, shot: &Shot) -> anyhow::Result<()> {
    page.open(&shot.path).await?;
    if let Some(click) = shot.click {
        page.click(&page.find(By::Css(click)).await?).await?;
    }
    page.find(By::Css(shot.ready)).await?;
    page.settle().await
}
