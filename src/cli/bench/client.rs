//! A minimal keep-alive HTTP/1.1 client. It must be cheap, because the load generator shares its
//! cores with the server.

use std::net::SocketAddr;

use anyhow::{Context, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::wire::WireProtocol;

/// Largest answer in bytes; a longer one is an error.
const MAX_ANSWER: usize = 256 << 20;

async fn open(address: SocketAddr) -> anyhow::Result<TcpStream> {
    let stream = TcpStream::connect(address)
        .await
        .with_context(|| format!("cannot connect to {address}"))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// A client with one connection, which it reopens when needed.
pub(super) struct HttpClient {
    stream: TcpStream,
    /// The server announced that it closes this connection, as proxies do after some requests, or
    /// the last exchange failed.
    closes: bool,
    address: SocketAddr,
    host: String,
    key: String,
    received: Vec<u8>,
}

impl HttpClient {
    pub(super) async fn connect(address: SocketAddr, key: Option<&str>) -> anyhow::Result<Self> {
        let key = key.map_or_else(String::new, |key| format!("authorization: Bearer {key}\r\n"));
        let stream = open(address).await?;
        Ok(Self {
            stream,
            closes: false,
            address,
            host: address.to_string(),
            key,
            received: Vec::new(),
        })
    }

    /// The head of a POST with events; the caller sends it with the body in one write.
    pub(super) fn post_head(&self, wire: WireProtocol, body: usize) -> Vec<u8> {
        let (host, key, (path, kind)) = (&self.host, &self.key, wire.route());
        format!(
            "POST {path} HTTP/1.1\r\nhost: {host}\r\n{key}content-type: {kind}\r\ncontent-length: \
             {body}\r\n\r\n"
        )
        .into()
    }

    pub(super) async fn get(&mut self, path: &str) -> anyhow::Result<(u16, Vec<u8>)> {
        let (host, key) = (&self.host, &self.key);
        let head = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\n{key}\r\n");
        self.exchange(head.as_bytes()).await
    }

    /// Sends a whole request and returns status and body. After a failure the next exchange
    /// opens a new connection.
    pub(super) async fn exchange(&mut self, request: &[u8]) -> anyhow::Result<(u16, Vec<u8>)> {
        let answer = self.exchange_once(request).await;
        self.closes |= answer.is_err();
        answer
    }

    async fn exchange_once(&mut self, request: &[u8]) -> anyhow::Result<(u16, Vec<u8>)> {
        if std::mem::take(&mut self.closes) {
            self.stream = open(self.address).await?;
        }
        self.stream.write_all(request).await?;
        self.received.clear();
        let head = loop {
            if let Some(end) = self.received.windows(4).position(|four| four == b"\r\n\r\n") {
                break end + 4;
            }
            self.read_more().await?;
        };
        let text =
            std::str::from_utf8(&self.received[..head]).context("the answer's head is no text")?;
        let status = text
            // The status follows "HTTP/1.1 ".
            .get(9..12)
            .and_then(|digits| digits.parse().ok())
            .context("the answer has no status")?;
        let field = |wanted: &str| {
            let mut fields = text.lines().filter_map(|line| line.split_once(':'));
            fields.find_map(|(name, value)| name.eq_ignore_ascii_case(wanted).then(|| value.trim()))
        };
        self.closes = field("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
        let length = match status {
            204 => 0, // has no body, and therefore names no length
            _ => field("content-length")
                .and_then(|value| value.parse().ok())
                .context("the answer has no content-length")?,
        };
        if length > MAX_ANSWER {
            bail!("an answer of {length} bytes");
        }
        while self.received.len() < head + length {
            self.read_more().await?;
        }
        Ok((status, self.received[head..head + length].to_vec()))
    }

    async fn read_more(&mut self) -> anyhow::Result<()> {
        if self.stream.read_buf(&mut self.received).await? == 0 {
            bail!("the server closed the connection");
        }
        Ok(())
    }
}
