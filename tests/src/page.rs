//! A tab, as a journey speaks to it. Everything waits: a page becomes live some time after it is shown.

use anyhow::{Context, bail, ensure};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use thirtyfour::{By, TypingData, WebDriver, WebElement, prelude::ElementQueryable};

/// A software GPU on a busy machine is slow; a page that is not there by then never comes.
const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(100);
/// Without a change for this long, a page has come to rest.
const STILL: Duration = Duration::from_millis(1500);

/// Runs before a page's own scripts: notes when the page listens to the keyboard, which its header does on every
/// page once the wasm has taken over. Until then clicks would be lost.
const NOTE_WHEN_LIVE: &str = "
    const listen = EventTarget.prototype.addEventListener;
    EventTarget.prototype.addEventListener = function (type, ...rest) {
        if (type === 'keydown') setTimeout(() => { window.__live = true; }, 0);
        return listen.call(this, type, ...rest);
    };";

/// Decodes an element's mask (`--mask: url(data:…)`, luminance) and reads its light in the middle of every patch.
const READ_LIGHT: &str = r#"
    const [element, rows, columns, done] = arguments;
    const found = /url\("?(data:[^")]+)"?\)/.exec(element.style.getPropertyValue('--mask'));
    if (!found) return done([]);
    const image = new Image();
    image.onerror = () => done([]);
    image.onload = () => {
        const { naturalWidth: width, naturalHeight: height } = image;
        if (width < columns || height < rows) return done([]);
        const canvas = Object.assign(document.createElement('canvas'), { width, height });
        const context = canvas.getContext('2d');
        context.drawImage(image, 0, 0);
        const { data } = context.getImageData(0, 0, width, height);
        done(Array.from({ length: rows * columns }, (_, patch) => {
            const x = Math.floor(((patch % columns) + 0.5) * width / columns);
            const y = Math.floor((Math.floor(patch / columns) + 0.5) * height / rows);
            const pixel = 4 * (y * width + x);
            return data[pixel] / 255 * data[pixel + 3] / 255;
        }));
    };
    image.src = found[1];"#;

pub struct Page {
    pub driver: WebDriver,
    base: String,
}

impl Page {
    /// `base` is the server's address without a slash at the end.
    pub async fn new(driver: WebDriver, base: String) -> anyhow::Result<Self> {
        let page = Self { driver, base };
        page.devtools("Page.addScriptToEvaluateOnNewDocument", json!({ "source": NOTE_WHEN_LIVE })).await?;
        Ok(page)
    }

    /// Opens a page and waits until it is live.
    pub async fn open(&self, path: &str) -> anyhow::Result<()> {
        self.open_dead(path).await?;
        self.wait_until_live().await
    }

    /// Opens a page as the server sent it, live or not.
    pub async fn open_dead(&self, path: &str) -> anyhow::Result<()> {
        self.driver.goto(format!("{}{path}", self.base)).await.with_context(|| format!("cannot open {path}"))
    }

    /// After a reload or a link to another document.
    pub async fn wait_until_live(&self) -> anyhow::Result<()> {
        self.until("the page is live", async || self.js::<bool>("return window.__live === true", vec![]).await).await
    }

    /// Path and query of the page on the screen.
    pub async fn path(&self) -> anyhow::Result<String> {
        let url = self.driver.current_url().await?;
        Ok(url.as_str().strip_prefix(&self.base).unwrap_or(url.as_str()).to_owned())
    }

    /// The first element with this `data-testid`, once there is one.
    pub async fn one(&self, testid: &str) -> anyhow::Result<WebElement> {
        self.find(By::Testid(testid)).await.with_context(|| format!("no [data-testid={testid}]"))
    }

    /// Every element with this `data-testid`, once there is one.
    pub async fn all(&self, testid: &str) -> anyhow::Result<Vec<WebElement>> {
        self.one(testid).await?;
        Ok(self.driver.find_all(By::Testid(testid)).await?)
    }

    /// The first element of a selector, once there is one.
    pub async fn find(&self, by: By) -> anyhow::Result<WebElement> {
        Ok(self.driver.query(by).wait(PATIENCE, POLL).first().await?)
    }

    /// Visible text of the first element with this `data-testid`, or nothing when there is none yet.
    pub async fn text(&self, testid: &str) -> anyhow::Result<String> {
        let script = "const found = document.querySelector(`[data-testid=\"${arguments[0]}\"]`);
                      return found ? found.innerText.trim() : '';";
        self.js(script, vec![json!(testid)]).await
    }

    /// Clicks in the middle of an element, scrolling to it first.
    pub async fn click(&self, element: &WebElement) -> anyhow::Result<()> {
        self.driver.execute("arguments[0].scrollIntoView({ block: 'center' })", vec![element.to_json()?]).await?;
        element.click().await.with_context(|| format!("cannot click {element}"))
    }

    /// Types into whatever has the focus.
    pub async fn press(&self, keys: impl Into<TypingData>) -> anyhow::Result<()> {
        self.driver.action_chain().send_keys(keys).perform().await.context("cannot type")
    }

    /// Moves the pointer over an element.
    pub async fn hover(&self, element: &WebElement) -> anyhow::Result<()> {
        self.driver.execute("arguments[0].scrollIntoView({ block: 'center' })", vec![element.to_json()?]).await?;
        self.driver.action_chain().move_to_element_center(element).perform().await.context("cannot hover")
    }

    /// Runs a script in the page: `return` gives its value, `arguments` are the given ones.
    pub async fn js<T: DeserializeOwned>(&self, script: &str, arguments: Vec<Value>) -> anyhow::Result<T> {
        Ok(self
            .driver
            .execute(script, arguments)
            .await
            .with_context(|| format!("script failed: {script}"))?
            .convert()?)
    }

    /// Runs a script whose last argument is a function to call with the value.
    pub async fn js_async<T: DeserializeOwned>(&self, script: &str, arguments: Vec<Value>) -> anyhow::Result<T> {
        let value = self.driver.execute_async(script, arguments).await;
        Ok(value.with_context(|| format!("script failed: {script}"))?.convert()?)
    }

    /// Waits until a condition holds.
    pub async fn until(&self, what: &str, condition: impl AsyncFn() -> anyhow::Result<bool>) -> anyhow::Result<()> {
        self.wait_for(what, async || Ok(condition().await?.then_some(()))).await
    }

    /// Waits for a value. An error of `find` counts as "not yet": the page may be changing under it.
    pub async fn wait_for<T>(
        &self,
        what: &str,
        find: impl AsyncFn() -> anyhow::Result<Option<T>>,
    ) -> anyhow::Result<T> {
        let begun = Instant::now();
        loop {
            let last = match find().await {
                Ok(Some(found)) => return Ok(found),
                Ok(None) => None,
                Err(error) => Some(error),
            };
            if begun.elapsed() > PATIENCE {
                let reason = last.map_or(String::new(), |error| format!(" ({error:#})"));
                bail!("waited {} s in vain: {what}{reason}", PATIENCE.as_secs());
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// The light on a heat map, patch by patch, `[rows · columns]`, 0..=1: the opacity of its mask, as it is drawn.
    pub async fn light(&self, heat_map: &WebElement, grid: [u32; 2]) -> anyhow::Result<Vec<f32>> {
        let arguments = vec![heat_map.to_json()?, json!(grid[0]), json!(grid[1])];
        let light: Vec<f32> = self.js_async(READ_LIGHT, arguments).await?;
        let patches = (grid[0] * grid[1]) as usize;
        ensure!(light.len() == patches, "a heat map of {patches} patches answered with {} values", light.len());
        Ok(light)
    }

    /// Waits until nothing on the screen moves any more: the visible text and the pictures stay the same for a while.
    pub async fn settle(&self) -> anyhow::Result<()> {
        let state = "const loading = [...document.images].filter((i) => {
                const box = i.getBoundingClientRect();
                return !i.complete && box.bottom > 0 && box.top < innerHeight;
            }).length;
            return [loading, document.body.innerText, document.fonts.status]";
        let begun = Instant::now();
        let (mut last, mut since) = (Value::Null, Instant::now());
        while since.elapsed() < STILL {
            let now: Value = self.js(state, vec![]).await?;
            if now != last || now[0] != json!(0) || now[2] != json!("loaded") {
                (last, since) = (now, Instant::now());
            }
            ensure!(begun.elapsed() < PATIENCE, "the page does not come to rest");
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    /// Sizes the page itself (not the window), as a phone or a monitor shows it.
    pub async fn resize(&self, width: u32, height: u32) -> anyhow::Result<()> {
        let phone = width < 600;
        let size = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone });
        self.devtools("Emulation.setDeviceMetricsOverride", size).await
    }

    /// Light or dark, as the visitor's system would ask for it.
    pub async fn prefer(&self, scheme: &str) -> anyhow::Result<()> {
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        self.devtools("Emulation.setEmulatedMedia", json!({ "features": features })).await
    }

    /// Switches the page's scripts off for every page opened from now on.
    pub async fn disable_scripts(&self) -> anyhow::Result<()> {
        self.devtools("Emulation.setScriptExecutionDisabled", json!({ "value": true })).await
    }

    async fn devtools(&self, method: &str, parameters: Value) -> anyhow::Result<()> {
        self.driver.cdp().send_raw(method, parameters).await.with_context(|| format!("{method} failed"))?;
        Ok(())
    }

    /// Pictures of the page that have arrived: their addresses, absolute.
    pub async fn loaded_pictures(&self) -> anyhow::Result<Vec<String>> {
        let script = "return [...document.images].filter((i) => i.complete && i.naturalWidth > 0).map((i) => i.src)";
        self.js(script, vec![]).await
    }

    /// Fails when the page is wider than the screen.
    pub async fn check_no_sideways_scroll(&self) -> anyhow::Result<()> {
        let script = "const wide = document.documentElement.clientWidth;
            const over = [...document.querySelectorAll('body *')]
                .filter((e) => e.getBoundingClientRect().right > wide + 1 && !e.closest('[data-scrolls], dialog'))
                .map((e) => e.tagName.toLowerCase() + '.' + e.className);
            return [document.documentElement.scrollWidth, wide, over.slice(0, 5).join(', ')]";
        let (content, screen, over): (u32, u32, String) = self.js(script, vec![]).await?;
        let path = self.path().await?;
        ensure!(content <= screen, "{path} is {content} px wide on a screen of {screen} px; past the edge: {over}");
        Ok(())
    }
}
