//! What the page is made of, on one address.

use anyhow::{Context, bail, ensure};
use axum::{
    Router,
    http::{HeaderName, HeaderValue},
};
use serde_json::Value;
use std::{
    fs,
    net::SocketAddr,
    path::Path,
    process::{Command, Stdio},
};
use tests::{root, target};
use tower_http::{services::ServeDir, set_header::SetResponseHeaderLayer};

/// Folder of the SAEs, in the bench's own and on the page.
pub const SAES: &str = "sae";
const PACKAGE: &str = "onnxruntime-web";

/// Installs onnxruntime-web in `folder`, unless it is there, in the version that `tests/bench/package.json` names.
/// Which that is.
///
/// # Errors
/// npm is missing, or cannot fetch it.
pub fn onnxruntime(folder: &Path) -> anyhow::Result<String> {
    let page = root().join("tests/bench");
    let read = |path: &Path| -> anyhow::Result<Value> { Ok(serde_json::from_slice(&fs::read(path)?)?) };
    let wanted = read(&page.join("package.json"))?["dependencies"][PACKAGE].clone();
    let Some(version) = wanted.as_str() else { bail!("tests/bench/package.json does not name {PACKAGE}") };
    let package = folder.join("node_modules").join(PACKAGE).join("package.json");
    let is_there = read(&package).is_ok_and(|installed| installed["version"] == wanted);
    if !is_there {
        eprintln!("npm installs {PACKAGE} {version} in {}", folder.display());
        for file in ["package.json", "package-lock.json"] {
            fs::copy(page.join(file), folder.join(file)).with_context(|| format!("cannot copy {file}"))?;
        }
        // The lock file has every package's hash; none of their scripts is run.
        let output = Command::new("npm")
            .args(["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"])
            .current_dir(folder)
            .stdin(Stdio::null())
            .output()
            .context("cannot start npm, which fetches it and comes with Node.js")?;
        let errors = String::from_utf8_lossy(&output.stderr);
        let first = errors.lines().next().unwrap_or_default();
        ensure!(output.status.success(), "`npm ci` ended with {}: {first}", output.status);
    }
    Ok(version.to_owned())
}

/// Serves the page, our bundles, onnxruntime-web, the peaks' shaders and the SAEs, isolated so that wasm may have
/// threads.
///
/// # Errors
/// The bundles are missing; no free port.
pub async fn serve(folder: &Path) -> anyhow::Result<SocketAddr> {
    let bundles = target()?.join("site");
    ensure!(bundles.join("site.json").is_file(), "no bundles in {}: `cargo xtask bundle`", bundles.display());
    let header = |name: &'static str, value: &'static str| {
        SetResponseHeaderLayer::overriding(HeaderName::from_static(name), HeaderValue::from_static(value))
    };
    let app = Router::new()
        .nest_service("/bench", ServeDir::new(root().join("tests/bench")))
        .nest_service("/assets", ServeDir::new(bundles))
        .nest_service("/ort", ServeDir::new(folder.join("node_modules").join(PACKAGE).join("dist")))
        .nest_service("/peaks", ServeDir::new(root().join("shaders/examples/bench")))
        .nest_service(&format!("/{SAES}"), ServeDir::new(folder.join(SAES)))
        .layer(header("cross-origin-opener-policy", "same-origin"))
        .layer(header("cross-origin-embedder-policy", "require-corp"));
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.context("no free port")?;
    let address = listener.local_addr()?;
    tokio::spawn(async move { axum::serve(listener, app).await });
    Ok(address)
}
