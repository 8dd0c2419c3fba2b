//! `GET` from our own server on this machine. HTTP/1.0, so that the answer is neither chunked nor compressed.

use anyhow::{Context, ensure};
use serde::de::DeserializeOwned;
use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

/// An answer, whole.
#[derive(Debug)]
pub struct Response {
    pub status: u16,
    /// Status line and headers.
    pub head: String,
    pub body: Vec<u8>,
}

impl Response {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body of a good answer as a wire type.
    pub fn json<T: DeserializeOwned>(&self) -> anyhow::Result<T> {
        ensure!(self.status == 200, "status {}: {}", self.status, self.text());
        serde_json::from_slice(&self.body).with_context(|| format!("not the expected JSON: {}", self.text()))
    }

    /// Value of a header; names are not case sensitive.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.trim())
    }
}

/// `GET path`.
pub fn get(server: SocketAddr, path: &str) -> anyhow::Result<Response> {
    let mut stream = TcpStream::connect_timeout(&server, Duration::from_secs(5))?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {server}\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).with_context(|| format!("GET {path}"))?;
    parse(&answer).with_context(|| format!("GET {path}"))
}

fn parse(answer: &[u8]) -> anyhow::Result<Response> {
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n").context("the answer has no header")?;
    let head = String::from_utf8_lossy(&answer[..end]).into_owned();
    let status = head.split_whitespace().nth(1).and_then(|code| code.parse().ok());
    let status = status.with_context(|| format!("no status in {head:?}"))?;
    Ok(Response { status, head, body: answer[end + 4..].to_vec() })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)] // tests panic on purpose
    use super::*;

    #[test]
    fn an_answer_is_status_headers_and_body() {
        let answer = parse(b"HTTP/1.0 404 Not Found\r\nContent-Type: text/html\r\n\r\n<p>\r\n\r\n").unwrap();
        assert_eq!(answer.status, 404);
        assert_eq!(answer.header("content-type"), Some("text/html"));
        assert_eq!(answer.header("etag"), None);
        assert_eq!(answer.text(), "<p>\r\n\r\n");
        assert!(answer.json::<u8>().unwrap_err().to_string().contains("404"));
        assert!(parse(b"nonsense").is_err());
    }
}
