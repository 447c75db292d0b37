//! An upstream that does what it is told, without a bearer: sizes, streams, odd answers. For tests and benches.
//!
//! `/tools/1k` `/bytes/{n}` `/echo` `/mirror` `/sse` `/status/{code}` `/redirect` `/slow` `/cookies` `/cut` `/trickle`
//! `/reset` `/hang` `/once/{status}` `/headers` `/websocket`; a query parameter that is left out has a default.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use aws_lc_rs::digest;
use axum::body::Body;
use axum::extract::{Extension, OriginalUri, Path, Query, Request};
use axum::response::{AppendHeaders, IntoResponse, Response};
use axum::routing::{any, get};
use axum::{Json, Router};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::stream;
use http::{HeaderName, HeaderValue, StatusCode, header};
use http_body_util::BodyExt as _;
use serde::Deserialize;
use serde_json::json;

use super::server::Line;
use super::spoil::{broken_body, trickled};
use super::{Sandbox, bulk, lock, recorder, websocket};

pub(super) fn router() -> Router<Sandbox> {
    let seen = Seen::default();
    Router::new()
        .route("/1k", any(one_kib))
        .route("/bytes/{n}", get(bytes))
        .route("/echo", any(echo))
        .route("/mirror", any(mirror))
        .route("/sse", get(sse))
        .route("/status/{code}", any(status))
        .route("/redirect", any(redirect))
        .route("/slow", any(slow))
        .route("/cookies", get(cookies))
        .route("/cut", get(cut))
        .route("/trickle", get(trickle))
        .route("/reset", any(async |Extension(line): Extension<Line>| -> Response { match line.reset().await {} }))
        .route("/hang", any(async |Extension(line): Extension<Line>| -> Response { match line.hang().await {} }))
        .route("/once/{status}", any(async move |path: Path<u16>, request: Request| once(&seen, path, &request)))
        .route("/headers", get(headers))
        .route("/websocket", any(websocket::accept))
}

static ONE_KIB: LazyLock<Bytes> = LazyLock::new(|| {
    let frame = r#"{"value":""}"#.len();
    Bytes::from(format!(r#"{{"value":"{}"}}"#, "x".repeat(1024 - frame)))
});

/// Exactly 1024 bytes of JSON.
async fn one_kib() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], ONE_KIB.clone()).into_response()
}

#[derive(Deserialize)]
struct BytesQuery {
    #[serde(default)]
    chunked: bool,
}

/// `n` bytes 0, 1 … 255, 0 …; `?chunked=true` leaves the length out.
async fn bytes(Path(n): Path<u64>, Query(query): Query<BytesQuery>) -> Response {
    let body = Body::from_stream(bulk::pattern(n));
    let mut response = ([(header::CONTENT_TYPE, "application/octet-stream")], body).into_response();
    if !query.chunked {
        response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(n));
    }
    response
}

/// Says what arrived: method, target, header lines, the body's length and SHA-256, and the body itself below 4 KiB.
async fn echo(OriginalUri(uri): OriginalUri, request: Request) -> Response {
    let (head, mut body) = request.into_parts();
    let (mut length, mut start, mut sum) = (0u64, Vec::new(), digest::Context::new(&digest::SHA256));
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else { return StatusCode::BAD_REQUEST.into_response() };
        if let Some(data) = frame.data_ref() {
            length += data.len() as u64;
            sum.update(data);
            start.extend_from_slice(&data[..data.len().min(4096 - start.len())]);
        }
    }
    let lines = recorder::lines(&head.headers);
    let lines: Vec<_> = lines.iter().map(|(name, value)| (name, String::from_utf8_lossy(value))).collect();
    let sum: String = sum.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    Json(json!({
        "method": head.method.as_str(),
        "target": uri.path_and_query().map_or("/", |target| target.as_str()),
        "version": format!("{:?}", head.version),
        "headers": lines,
        "body_length": length,
        "body_sha256": sum,
        "body": (length < 4096).then(|| STANDARD.encode(start)),
    }))
    .into_response()
}

/// Sends the body back while it comes.
async fn mirror(request: Request) -> Response {
    let kind = request.headers().get(header::CONTENT_TYPE).cloned();
    let mut response = Response::new(request.into_body());
    if let Some(kind) = kind {
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
    }
    response
}

#[derive(Deserialize)]
struct SseQuery {
    #[serde(default = "ten")]
    events: u64,
    #[serde(default)]
    interval_ms: u64,
}

fn ten() -> u64 {
    10
}

/// Server-sent events `data: {"n":0}`, `data: {"n":1}`…
async fn sse(Query(query): Query<SseQuery>) -> Response {
    let wait = Duration::from_millis(query.interval_ms);
    let events = stream::unfold(0, move |n| async move {
        if n == query.events {
            return None;
        }
        if !wait.is_zero() && n > 0 {
            tokio::time::sleep(wait).await;
        }
        let event = Bytes::from(format!("id: {n}\ndata: {{\"n\":{n}}}\n\n"));
        Some((Ok::<_, std::io::Error>(event), n + 1))
    });
    let headers = [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-cache")];
    (headers, Body::from_stream(events)).into_response()
}

/// Any status from 200 on, without reading the body.
async fn status(Path(code): Path<u16>) -> Response {
    match StatusCode::from_u16(code) {
        Ok(code) if code.as_u16() >= 200 => (code, "as you asked\n").into_response(),
        _ => (StatusCode::BAD_REQUEST, "a status from 200 to 999, please\n").into_response(),
    }
}

#[derive(Deserialize)]
struct RedirectQuery {
    to: String,
    status: Option<u16>,
}

/// 302, or `?status=`, to `?to=`.
async fn redirect(Query(query): Query<RedirectQuery>) -> Response {
    let status = query.status.and_then(|code| StatusCode::from_u16(code).ok()).unwrap_or(StatusCode::FOUND);
    match HeaderValue::from_str(&query.to) {
        Ok(to) => (status, [(header::LOCATION, to)]).into_response(),
        Err(_) => StatusCode::BAD_REQUEST.into_response(),
    }
}

#[derive(Deserialize)]
struct SlowQuery {
    #[serde(default)]
    ms: u64,
}

/// 200 after `?ms=`.
async fn slow(Query(query): Query<SlowQuery>) -> &'static str {
    tokio::time::sleep(Duration::from_millis(query.ms)).await;
    "better late\n"
}

/// Headers that concern a browser and this host, and are nothing to pass on.
async fn cookies() -> Response {
    let headers = AppendHeaders([
        ("set-cookie", "session=upstream; Path=/; HttpOnly"),
        ("set-cookie", "second=1"),
        ("alt-svc", "h3=\":443\"; ma=86400"),
        ("strict-transport-security", "max-age=31536000"),
        ("clear-site-data", "\"*\""),
        ("access-control-allow-origin", "*"),
        ("x-kept", "yes"),
    ]);
    (headers, "biscuits\n").into_response()
}

#[derive(Deserialize)]
struct CutQuery {
    #[serde(default)]
    after: usize,
    of: Option<usize>,
    #[serde(default)]
    chunked: bool,
}

/// `?after=` bytes of a body that should have `?of=` (twice as many and one), then the end of the connection. With
/// `?chunked=true` no length is said and the last chunk never comes.
async fn cut(Query(query): Query<CutQuery>) -> Response {
    let after = query.after.min(16 << 20);
    let start: Bytes = (0..after).map(|at| at as u8).collect();
    let mut response = Response::new(broken_body(start));
    if !query.chunked {
        let whole = query.of.unwrap_or(after * 2 + 1);
        response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(whole));
    }
    response
}

#[derive(Deserialize)]
struct TrickleQuery {
    #[serde(default = "ten")]
    bytes: u64,
    #[serde(default)]
    interval_ms: u64,
}

/// `?bytes=` bytes, one every `?interval_ms=`.
async fn trickle(Query(query): Query<TrickleQuery>) -> Response {
    let bytes: Bytes = (0..query.bytes.min(1 << 20)).map(|at| at as u8).collect();
    Response::new(trickled(bytes, Duration::from_millis(query.interval_ms)))
}

/// The credential that was refused, by `?id=`.
type Seen = Arc<Mutex<HashMap<String, Option<HeaderValue>>>>;

/// Refuses the first credential it sees, every time, and takes any other: what a gateway meets when a token was revoked
/// early. `?id=` keeps tests apart.
fn once(seen: &Seen, Path(code): Path<u16>, request: &Request) -> Response {
    let id = request.uri().query().unwrap_or_default().to_owned();
    let shown = request.headers().get(header::AUTHORIZATION).cloned();
    let refused = lock(seen).entry(id).or_insert_with(|| shown.clone()).clone();
    if refused != shown {
        return "welcome\n".into_response();
    }
    let code = StatusCode::from_u16(code).unwrap_or(StatusCode::UNAUTHORIZED);
    (code, [(header::WWW_AUTHENTICATE, "Bearer error=\"invalid_token\"")]).into_response()
}

#[derive(Deserialize)]
struct HeadersQuery {
    #[serde(default)]
    count: usize,
    #[serde(default)]
    size: usize,
}

/// `?count=` header lines with values of `?size=` bytes.
async fn headers(Query(query): Query<HeadersQuery>) -> Response {
    let mut response = "many words\n".into_response();
    let value = HeaderValue::from_str(&"v".repeat(query.size.min(1 << 20))).unwrap_or(HeaderValue::from_static("v"));
    for n in 0..query.count.min(10_000) {
        if let Ok(name) = HeaderName::try_from(format!("x-line-{n}")) {
            response.headers_mut().append(name, value.clone());
        }
    }
    response
}
