//! Headless Chromium through chromedriver.

use crate::free_port;
use anyhow::{Context, bail};
use std::{
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};
use thirtyfour::{ChromiumLikeCapabilities, DesiredCapabilities, WebDriver, common::log::LoggingPrefsLogLevel};

const START: Duration = Duration::from_secs(30);

/// Whether the browser has WebGPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gpu {
    /// SwiftShader, Chromium's own software adapter: the same on every machine.
    Software,
    /// The same, and Chromium's own drawing by it: without that it loses the GPU over a canvas.
    SoftwareCanvas,
    /// The machine's own GPU; SwiftShader if the browser finds none.
    Best,
    /// `requestAdapter()` finds nothing, as on many phones and office machines.
    None,
}

/// A chromedriver process; ends with this value.
pub struct Driver {
    child: Child,
    url: String,
}

impl Driver {
    pub fn start() -> anyhow::Result<Self> {
        let program = program();
        let port = free_port()?;
        let child = Command::new(&program)
            .arg(format!("--port={port}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start {}; `cargo xtask setup` installs it", program.display()))?;
        let driver = Self { child, url: format!("http://127.0.0.1:{port}") };
        let begun = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            if begun.elapsed() > START {
                bail!("{} did not answer for {} s", program.display(), START.as_secs());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(driver)
    }

    /// Opens a new browser at desktop size with an empty profile.
    pub async fn open(&self, gpu: Gpu) -> anyhow::Result<WebDriver> {
        self.open_with(gpu, &[]).await
    }

    /// The same with more flags.
    pub async fn open_with(&self, gpu: Gpu, more: &[&str]) -> anyhow::Result<WebDriver> {
        let mut chrome = DesiredCapabilities::chrome();
        for flag in flags(gpu).iter().chain(more) {
            chrome.add_arg(flag)?;
        }
        if let Ok(browser) = std::env::var("CHROME") {
            chrome.set_binary(&browser)?;
        }
        chrome.set_browser_log_level(LoggingPrefsLogLevel::All)?;
        WebDriver::new(&self.url, chrome).await.context("cannot start Chromium")
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // It may have ended already; either way it is gone afterwards.
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

const SOFTWARE: [&str; 2] = ["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"];

fn flags(gpu: Gpu) -> Vec<&'static str> {
    let mut flags = vec![
        "--headless=new",
        // Containers run as root, have a small /dev/shm, and are sandboxed themselves.
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--window-size=1440,900",
        "--hide-scrollbars",
        "--force-prefers-reduced-motion",
        "--lang=en",
        // Nothing but the page's own traffic.
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--disable-quic",
    ];
    match gpu {
        Gpu::Software => flags.extend(SOFTWARE),
        Gpu::SoftwareCanvas => {
            flags.extend(SOFTWARE);
            flags.extend(["--enable-features=Vulkan", "--use-vulkan=swiftshader", "--use-angle=swiftshader"]);
        }
        Gpu::Best => flags.extend(["--enable-unsafe-webgpu", "--enable-features=Vulkan", "--ignore-gpu-blocklist"]),
        Gpu::None => flags.extend(["--disable-gpu", "--disable-features=WebGPU,WebGPUService"]),
    }
    flags
}

/// `CHROMEDRIVER`, the folder that GitHub's machines name, or the one on the path.
fn program() -> PathBuf {
    let named = std::env::var_os("CHROMEDRIVER").map(PathBuf::from);
    let hosted = std::env::var_os("CHROMEWEBDRIVER").map(|folder| PathBuf::from(folder).join("chromedriver"));
    [named, hosted].into_iter().flatten().find(|file| file.is_file()).unwrap_or_else(|| "chromedriver".into())
}
