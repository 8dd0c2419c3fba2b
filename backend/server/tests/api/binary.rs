//! The program itself: start, stop, and what it says when it cannot start.

use crate::common::{serve_args, write_artifacts};
use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::Path,
    process::{Command, Stdio},
};

fn command(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lmm-scope"));
    command.arg("serve").args(["--listen", "127.0.0.1:0"]);
    command.arg("--database").arg(format!("sqlite://{}", folder.join("scope.db").display()));
    command.arg("--artifacts").arg(folder).arg("--site").arg(folder.join("site"));
    command.arg("--public").arg(folder.join("public")).env("RUST_LOG", "warn");
    command
}

#[test]
fn it_prints_its_address_serves_and_stops_on_a_signal() {
    let folder = tempfile::tempdir().unwrap();
    write_artifacts(folder.path());
    let mut child = command(folder.path()).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let address = line.trim().rsplit_once("http://").expect(&line).1.to_owned();

    let mut stream = TcpStream::connect(&address).unwrap();
    write!(stream, "GET /api/v1/sources HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("1-res-64"), "{answer}");

    let killed = Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    assert_eq!(child.wait().unwrap().code(), Some(0), "a signal ends it in good order");
}

/// One line on stderr, exit code 2.
fn refused(folder: &Path) -> String {
    let output = command(folder).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    stderr
}

#[test]
fn it_says_what_is_missing_or_damaged() {
    let folder = tempfile::tempdir().unwrap();
    let error = refused(folder.path());
    assert!(error.contains("lmm-scope pocket") && error.contains("source.json"), "{error}");

    write_artifacts(folder.path());
    let weights = folder.path().join("sae/model.layers.1/sae.safetensors");
    let whole = std::fs::read(&weights).unwrap();
    std::fs::write(&weights, &whole[..whole.len() / 2]).unwrap();
    assert!(refused(folder.path()).contains("sae.safetensors"));
    std::fs::write(&weights, &whole).unwrap();

    let examples = folder.path().join("examples.parquet");
    let whole = std::fs::read(&examples).unwrap();
    std::fs::write(&examples, &whole[..whole.len() / 2]).unwrap();
    assert!(refused(folder.path()).contains("examples.parquet"));
    std::fs::write(&examples, &whole).unwrap();

    let source = folder.path().join("source.json");
    let json = std::fs::read_to_string(&source).unwrap().replace("\"latents\": 64", "\"latents\": 65");
    std::fs::write(&source, json).unwrap();
    let error = refused(folder.path());
    assert!(error.contains("latents is 64, but source.json says 65"), "{error}");
}

#[tokio::test]
async fn a_site_without_bundles_still_has_pages() {
    let folder = tempfile::tempdir().unwrap();
    write_artifacts(folder.path());
    let mut args = serve_args(folder.path());
    args.site = Some(folder.path().join("nowhere"));
    let (router, _store) = server::serve::app(&args).await.unwrap();
    let request = axum::http::Request::get("/docs").body(axum::body::Body::empty()).unwrap();
    assert_eq!(crate::common::send(&router, request).await.status.as_u16(), 200);
}
