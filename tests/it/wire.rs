//! Raw sockets: an agent that sends exactly these bytes, and an upstream that answers exactly those.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use keyward::config::Config;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
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
        Self::over(TcpStream::connect(address).await.unwrap())
    }

    pub fn over(tcp: TcpStream) -> Self {
        Self { tcp, buffer: Vec::new() }
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
    memchr::memmem::find(text, part)
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
            if !self.more().await {
                return std::mem::take(&mut self.ahead);
            }
        }
    }

    /// The next request's head; empty at the end.
    pub async fn head(&mut self) -> Vec<u8> {
        self.until(b"\r\n\r\n").await
    }

    /// So many bytes, if they come.
    pub async fn exactly(&mut self, length: usize) -> Option<Vec<u8>> {
        while self.ahead.len() < length {
            if !self.more().await {
                return None;
            }
        }
        Some(self.ahead.drain(..length).collect())
    }

    /// Whether more came; false at the end.
    async fn more(&mut self) -> bool {
        let mut piece = [0u8; 16 * 1024];
        let Ok(length) = self.tcp.read(&mut piece).await else { return false };
        self.seen.lock().unwrap().extend_from_slice(&piece[..length]);
        self.ahead.extend_from_slice(&piece[..length]);
        length > 0
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
        Self::on(TcpListener::bind("127.0.0.1:0").await.unwrap(), serve)
    }

    /// With so little room in the system's buffers that no 220 KiB are sent before they are read.
    pub async fn narrow<W>(serve: impl Fn(Line) -> W + Send + 'static) -> Self
    where
        W: Future<Output = ()> + Send + 'static,
    {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        // What a sender's buffer begins with goes by the size of a segment.
        socket2::SockRef::from(&socket).set_tcp_mss(536).unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        Self::on(socket.listen(16).unwrap(), serve)
    }

    fn on<W>(listener: TcpListener, serve: impl Fn(Line) -> W + Send + 'static) -> Self
    where
        W: Future<Output = ()> + Send + 'static,
    {
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

    /// All that arrived, as it is.
    pub fn raw(&self) -> Vec<u8> {
        self.seen.lock().unwrap().clone()
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

/// A request that [`Strict`] has seen.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Method and URL.
    pub line: String,
    /// In their order, names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Whether head and body were whole and well-formed; else why not.
    pub fault: Option<&'static str>,
}

impl Seen {
    pub fn values(&self, name: &str) -> Vec<&str> {
        self.headers.iter().filter(|(line, _)| line == name).map(|(_, value)| value.as_str()).collect()
    }
}

/// An upstream that reads requests by the letter of RFC 9112 and answers each with 200 and its own number.
pub struct Strict {
    pub upstream: Upstream,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Strict {
    pub async fn start() -> Self {
        let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let list = Arc::clone(&seen);
        let upstream = Upstream::start(move |mut line| {
            let list = Arc::clone(&list);
            async move {
                while let Some(seen) = strictly(&mut line).await {
                    let (fine, answer) = {
                        let mut list = list.lock().unwrap();
                        let fine = seen.fault.is_none();
                        list.push(seen);
                        let body = format!("answer {}", list.len());
                        (fine, format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()))
                    };
                    if !fine || !line.say(answer).await {
                        return;
                    }
                }
            }
        })
        .await;
        Self { upstream, seen }
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// Requests that were whole.
    pub fn whole(&self) -> Vec<Seen> {
        self.seen().into_iter().filter(|seen| seen.fault.is_none()).collect()
    }
}

async fn strictly(line: &mut Line) -> Option<Seen> {
    let head = line.head().await;
    if head.is_empty() {
        return None;
    }
    let mut seen = Seen { line: String::new(), headers: Vec::new(), body: Vec::new(), fault: None };
    seen.fault = read_strictly(line, &head, &mut seen.line, &mut seen.headers, &mut seen.body).await.err();
    Some(seen)
}

async fn read_strictly(
    line: &mut Line,
    head: &[u8],
    request: &mut String,
    headers: &mut Vec<(String, String)>,
    body: &mut Vec<u8>,
) -> Result<(), &'static str> {
    let head = std::str::from_utf8(head).map_err(|_| "a head that is not text")?;
    let mut lines = head.strip_suffix("\r\n\r\n").ok_or("half a head")?.split("\r\n");
    *request = lines.next().and_then(|line| line.strip_suffix(" HTTP/1.1")).ok_or("no request line")?.to_owned();
    for line in lines {
        let (name, value) = line.split_once(": ").ok_or("no header line")?;
        let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        if name.is_empty()
            || !name.bytes().all(token)
            || value.bytes().any(|byte| (byte < b' ' && byte != b'\t') || byte == 0x7f)
        {
            return Err("a bad header line");
        }
        headers.push((name.to_ascii_lowercase(), value.to_owned()));
    }
    let values = |name: &str| headers.iter().filter(|(line, _)| line == name).map(|(_, v)| v).collect::<Vec<_>>();
    let (lengths, codings) = (values("content-length"), values("transfer-encoding"));
    if values("host").len() != 1 {
        return Err("not one host");
    }
    match (&lengths[..], &codings[..]) {
        ([], []) => Ok(()),
        ([length], []) => {
            let length = length.parse().map_err(|_| "a bad length")?;
            *body = line.exactly(length).await.ok_or("a body that was cut")?;
            Ok(())
        }
        ([], [coding]) if *coding == "chunked" => loop {
            let size = String::from_utf8(line.until(b"\r\n").await).map_err(|_| "a bad size")?;
            let size = size.strip_suffix("\r\n").ok_or("a body that was cut")?;
            let size = usize::from_str_radix(size, 16).map_err(|_| "a bad size")?;
            let piece = line.exactly(size + 2).await.ok_or("a body that was cut")?;
            body.extend_from_slice(piece.strip_suffix(b"\r\n").ok_or("a bad chunk")?);
            if size == 0 {
                return Ok(());
            }
        },
        _ => Err("doubtful framing"),
    }
}

/// `keyward serve` as a process of its own, its logs in a file.
pub struct Process {
    pub child: std::process::Child,
    pub log: std::path::PathBuf,
    pub proxy: SocketAddr,
    pub admin: SocketAddr,
}

impl Process {
    /// In the world's folder, with more of `gateway.toml` and more environment, logging at this level.
    pub async fn start(world: &World, toml: &str, env: &[(&str, &str)], level: &str) -> Self {
        let dir = world.dir.path();
        let config = format!(
            "[proxy]\nlisten = \"127.0.0.1:0\"\nworkers = 1\n[admin]\nlisten = \"127.0.0.1:0\"\n\
             [egress]\nallow = [\"127.0.0.0/8\"]\n[providers.sandbox.inputs.origin]\ndefault = \"{}\"\n{toml}\n",
            world.sandbox.origin(),
        );
        std::fs::write(dir.join("gateway.toml"), config).unwrap();
        let log = dir.join("keyward.log");
        let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_keyward"))
            .args(["serve", "--config"])
            .arg(dir.join("gateway.toml"))
            .env_clear()
            .env("RUST_BACKTRACE", "1")
            .env("KEYWARD_LOG", level)
            .env("KEYWARD_STORE_URL", &world.store_url)
            .env("KEYWARD_ADMIN_TOKEN", crate::harness::ADMIN)
            .env("KEYWARD_SEALING_KEYS", crate::harness::SEALING)
            .env("OAUTH_SANDBOX_CLIENT_ID", world.sandbox.client_id())
            .env("OAUTH_SANDBOX_CLIENT_SECRET", world.sandbox.client_secret())
            .envs(env.iter().copied())
            .stdin(std::process::Stdio::null())
            .stdout(std::fs::File::create(dir.join("stdout")).unwrap())
            .stderr(std::fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let begun = Instant::now();
        loop {
            let text = std::fs::read_to_string(&log).unwrap();
            let ready = text.split_once("keyward is ready on ").and_then(|(_, rest)| rest.split_once(" for people"));
            if let Some((proxy, admin)) = ready.and_then(|(ready, _)| ready.split_once(" for agents and ")) {
                return Self { child, log, proxy: proxy.parse().unwrap(), admin: admin.parse().unwrap() };
            }
            assert!(child.try_wait().unwrap().is_none() && begun.elapsed() < LIMIT, "it did not start: {text}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// As a service manager stops it.
    pub fn terminate(&self) {
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.child), rustix::process::Signal::TERM)
            .unwrap();
    }

    /// Waits for the end of it; its exit code.
    pub async fn ended(&mut self) -> Option<i32> {
        let mut status = None;
        eventually("the process ends", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        })
        .await;
        status.and_then(|status| status.code())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
