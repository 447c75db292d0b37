//! Raw sockets: an agent that sends exactly these bytes, and an upstream that answers exactly those.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use keyward::config::Config;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use crate::harness::{Answer, Backend, Key, Keyward, Settings, World};

const LIMIT: Duration = Duration::from_secs(20);

/// A connection of an agent.
pub struct Wire {
    pub tcp: TcpStream,
    buffer: Vec<u8>,
}

impl Wire {
    pub async fn connect(address: SocketAddr) -> Self {
        Self { tcp: TcpStream::connect(address).await.unwrap(), buffer: Vec::new() }
    }

    /// Sends; a peer that has closed already is no reason to fail.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.tcp.write_all(bytes.as_ref()).await.is_ok()
    }

    /// More of what comes; false at the end.
    async fn more(&mut self) -> bool {
        let mut piece = [0u8; 16 * 1024];
        match timeout(LIMIT, self.tcp.read(&mut piece)).await.expect("bytes or an end within the limit") {
            Ok(0) | Err(_) => false,
            Ok(length) => {
                self.buffer.extend_from_slice(&piece[..length]);
                true
            }
        }
    }

    /// Everything up to and with `mark`; all there is when the connection ends before.
    pub async fn until(&mut self, mark: &[u8]) -> Vec<u8> {
        loop {
            if let Some(at) = find(&self.buffer, mark) {
                return self.buffer.drain(..at + mark.len()).collect();
            }
            if !self.more().await {
                return std::mem::take(&mut self.buffer);
            }
        }
    }

    /// Everything to the end of the connection.
    pub async fn rest(&mut self) -> Vec<u8> {
        while self.more().await {}
        std::mem::take(&mut self.buffer)
    }

    async fn exactly(&mut self, length: usize) -> Option<Vec<u8>> {
        while self.buffer.len() < length {
            if !self.more().await {
                return None;
            }
        }
        Some(self.buffer.drain(..length).collect())
    }

    /// The next answer; `None` when the connection ends before one is whole. `bare`: it is one to HEAD.
    pub async fn next(&mut self, bare: bool) -> Option<Answer> {
        let head = self.until(b"\r\n\r\n").await;
        let head = String::from_utf8(head).ok()?;
        let mut lines = head.strip_suffix("\r\n\r\n")?.split("\r\n");
        let status = lines.next()?.split(' ').nth(1)?.parse::<u16>().ok()?;
        let mut headers = HeaderMap::new();
        for (name, value) in lines.filter_map(|line| line.split_once(':')) {
            headers.append(HeaderName::try_from(name).ok()?, HeaderValue::from_str(value.trim()).ok()?);
        }
        let status = StatusCode::from_u16(status).ok()?;
        let has_body = !bare && !status.is_informational() && status != 204 && status != 304;
        let body = if !has_body {
            Vec::new()
        } else if headers.get("transfer-encoding").is_some_and(|coding| coding == "chunked") {
            self.chunks().await?
        } else if let Some(length) = headers.get("content-length") {
            self.exactly(length.to_str().ok()?.parse().ok()?).await?
        } else {
            self.rest().await
        };
        Some(Answer { status, headers, body: body.into() })
    }

    async fn chunks(&mut self) -> Option<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let size = String::from_utf8(self.until(b"\r\n").await).ok()?;
            let size = usize::from_str_radix(size.strip_suffix("\r\n")?, 16).ok()?;
            let piece = self.exactly(size + 2).await?;
            if size == 0 {
                return (piece == b"\r\n").then_some(body);
            }
            body.extend_from_slice(piece.strip_suffix(b"\r\n")?);
        }
    }

    pub async fn answer(&mut self) -> Answer {
        self.next(false).await.expect("a whole answer")
    }
}

/// Sends one request and reads its answer.
pub async fn ask(address: SocketAddr, request: impl AsRef<[u8]>) -> Answer {
    let mut wire = Wire::connect(address).await;
    wire.send(request).await;
    wire.answer().await
}

/// A request's head: `line` is method and target, `lines` are more header lines.
pub fn head(key: &Key, line: &str, lines: &[&str]) -> Vec<u8> {
    let more: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
    format!("{line} HTTP/1.1\r\nHost: keyward.test\r\nAuthorization: Bearer {}\r\n{more}\r\n", key.secret).into_bytes()
}

/// An answer as text without what differs between any two: request id and date.
pub fn plain(answer: &Answer) -> String {
    let id = answer.header("keyward-request-id").to_owned();
    let mut lines: Vec<String> = answer
        .headers
        .iter()
        .filter(|(name, _)| *name != "date")
        .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
        .collect();
    lines.push(answer.text());
    assert!(id.starts_with("req_"), "{lines:?}");
    format!("{} {}", answer.status, lines.join("\n")).replace(&id, "…")
}

/// Waits for something that nothing signals.
pub async fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < LIMIT, "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn find(text: &[u8], part: &[u8]) -> Option<usize> {
    text.windows(part.len()).position(|window| window == part)
}

/// Whether `part` is in `text`.
pub fn holds(text: &[u8], part: &[u8]) -> bool {
    find(text, part).is_some()
}

/// An upstream under the test's control.
pub struct Upstream {
    pub address: SocketAddr,
    accepted: Arc<AtomicUsize>,
    ended: Arc<AtomicUsize>,
    seen: Arc<Mutex<Vec<u8>>>,
}

/// One connection of it. What is read is kept for [`Upstream::seen`].
pub struct Line {
    pub tcp: TcpStream,
    seen: Arc<Mutex<Vec<u8>>>,
    ahead: Vec<u8>,
}

impl Line {
    /// Reads to `mark`; what came until the end when it does not come.
    pub async fn until(&mut self, mark: &[u8]) -> Vec<u8> {
        loop {
            if let Some(at) = find(&self.ahead, mark) {
                return self.ahead.drain(..at + mark.len()).collect();
            }
            let mut piece = [0u8; 16 * 1024];
            match self.tcp.read(&mut piece).await {
                Ok(0) | Err(_) => return std::mem::take(&mut self.ahead),
                Ok(length) => {
                    self.seen.lock().unwrap().extend_from_slice(&piece[..length]);
                    self.ahead.extend_from_slice(&piece[..length]);
                }
            }
        }
    }

    /// The next request's head; empty at the end.
    pub async fn head(&mut self) -> Vec<u8> {
        self.until(b"\r\n\r\n").await
    }

    pub async fn say(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.tcp.write_all(bytes.as_ref()).await.is_ok()
    }
}

impl Upstream {
    /// Serves each connection with `serve`; the connection ends when it returns.
    pub async fn start<W>(serve: impl Fn(Line) -> W + Send + 'static) -> Self
    where
        W: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let upstream = Self {
            address: listener.local_addr().unwrap(),
            accepted: Arc::default(),
            ended: Arc::default(),
            seen: Arc::default(),
        };
        let (accepted, ended) = (Arc::clone(&upstream.accepted), Arc::clone(&upstream.ended));
        let seen = Arc::clone(&upstream.seen);
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                accepted.fetch_add(1, Ordering::SeqCst);
                let work = serve(Line { tcp, seen: Arc::clone(&seen), ahead: Vec::new() });
                let ended = Arc::clone(&ended);
                tokio::spawn(async move {
                    work.await;
                    ended.fetch_add(1, Ordering::SeqCst);
                });
            }
        });
        upstream
    }

    /// Answers every request head with these bytes and keeps the connection.
    pub async fn saying(answer: impl Into<Vec<u8>>) -> Self {
        let answer: Arc<Vec<u8>> = Arc::new(answer.into());
        Self::start(move |mut line| {
            let answer = Arc::clone(&answer);
            async move { while !line.head().await.is_empty() && line.say(&*answer).await {} }
        })
        .await
    }

    /// Connections so far.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }

    /// Connections that are over.
    pub fn ended(&self) -> usize {
        self.ended.load(Ordering::SeqCst)
    }

    /// All that arrived.
    pub fn seen(&self) -> String {
        String::from_utf8_lossy(&self.seen.lock().unwrap()).into_owned()
    }

    /// Request heads that arrived.
    pub fn requests(&self) -> usize {
        self.seen().matches(" HTTP/1.1\r\n").count()
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Keyward {
    /// A gateway whose configuration is changed in `change` before it starts.
    pub async fn altered(settings: Settings, change: impl FnOnce(&mut Config)) -> Self {
        let world = World::new(Backend::Sqlite).await;
        let mut config = world.config(&settings);
        change(&mut config);
        let app = keyward::app::App::start(config, world.clock.clone()).await.unwrap();
        Self { world, app, settings }
    }

    /// With more of `gateway.toml`.
    pub async fn configured(toml: &str) -> Self {
        Self::with(Backend::Sqlite, Settings { toml: toml.to_owned(), ..Settings::default() }).await
    }

    /// A static target.
    pub async fn target(&self, slug: &str, base_url: &str, credential: Value) {
        let target = json!({"slug": slug, "base_url": base_url, "credential": credential});
        self.api("POST", "/targets", Some(target)).await;
    }

    /// A key that may write to the sandbox's `/tools`.
    pub async fn with_tools(&self) -> Key {
        self.tools().await;
        let key = self.new_key().await;
        self.grant(&key, "tools", "write").await;
        key
    }

    /// A key that may write to this upstream, as `raw`, with a bearer credential.
    pub async fn with_upstream(&self, upstream: &Upstream) -> Key {
        self.target("raw", &upstream.url(), json!({"kind": "bearer", "token": "the-injected-token"})).await;
        let key = self.new_key().await;
        self.grant(&key, "raw", "write").await;
        key
    }

    /// One raw request.
    pub async fn ask(&self, request: impl AsRef<[u8]>) -> Answer {
        ask(self.app.proxy_address(), request).await
    }

    /// A connection to the agents' listener.
    pub async fn wire(&self) -> Wire {
        Wire::connect(self.app.proxy_address()).await
    }

    /// Requests that the sandbox's APIs have seen.
    pub fn seen(&self) -> usize {
        self.sandbox().recorded().len()
    }

    /// Checks a refusal: status, code, the whole shape of it, and that nothing went upstream since `before`.
    pub fn refused(&self, answer: &Answer, status: u16, code: &str, before: usize, what: &str) {
        assert_eq!(
            (answer.status.as_u16(), answer.header("keyward-error")),
            (status, code),
            "{what}: {}",
            answer.text()
        );
        assert_eq!(answer.refusal(), code, "{what}");
        assert_eq!(answer.header("content-type"), "application/json", "{what}");
        assert_eq!(answer.header("cache-control"), "no-store", "{what}");
        assert_eq!(self.seen(), before, "{what}: something went upstream");
    }
}
