//! HTTP/2 from agents, in clear by prior knowledge (over TLS: `tls.rs`): one forward path, the same refusals, and peers that
//! play with frames.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use http::{HeaderMap, Request, request};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::harness::{Answer, Key, Keyward};
use crate::wire::{Strict, Upstream, eventually};

const LIMIT: Duration = Duration::from_secs(20);

/// One request over HTTP/2 on a connection that was made for it.
pub async fn ask_over<T>(io: T, request: request::Builder) -> Answer
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let exchange = async {
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(io)).await.unwrap();
        let driver = tokio::spawn(connection);
        let answer = sender.send_request(request.body(Full::<Bytes>::default()).unwrap()).await.unwrap();
        let (parts, body) = answer.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        driver.abort();
        Answer { status: parts.status, headers: parts.headers, body }
    };
    timeout(LIMIT, exchange).await.expect("an answer within the limit")
}

type Sender = h2::client::SendRequest<Bytes>;

/// A connection; the error that ended it.
async fn open(address: SocketAddr) -> (Sender, tokio::task::JoinHandle<Result<(), h2::Error>>) {
    let tcp = TcpStream::connect(address).await.unwrap();
    let (sender, connection) = h2::client::handshake(tcp).await.unwrap();
    (sender, tokio::spawn(connection))
}

fn get(key: &Key, path: &str) -> request::Builder {
    Request::get(format!("http://keyward.test{path}")).header("authorization", format!("Bearer {}", key.secret))
}

async fn answer(sender: &mut Sender, request: Request<()>) -> Result<Answer, h2::Error> {
    let (answer, _) = sender.send_request(request, true)?;
    whole(answer).await
}

async fn whole(answer: h2::client::ResponseFuture) -> Result<Answer, h2::Error> {
    let (parts, mut stream) = timeout(LIMIT, answer).await.expect("an answer within the limit")?.into_parts();
    let mut body = Vec::new();
    while let Some(data) = timeout(LIMIT, stream.data()).await.expect("data within the limit") {
        let data = data?;
        stream.flow_control().release_capacity(data.len())?;
        body.extend_from_slice(&data);
    }
    Ok(Answer { status: parts.status, headers: parts.headers, body: body.into() })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_requests_share_a_connection_and_go_out_as_they_should() {
    let k = Keyward::start().await;
    let strict = Strict::start().await;
    let key = k.with_upstream(&strict.upstream).await;
    let (sender, driver) = open(k.app.proxy_address()).await;
    let mut work = Vec::new();
    for number in 0..500 {
        let mut sender = sender.clone().ready().await.unwrap();
        let request = get(&key, &format!("/proxy/raw/a/{number}?b=%2F"))
            .header("te", "trailers")
            .header("cookie", "a=b")
            .header("x-forwarded-for", "1.2.3.4")
            .header("accept", "*/*")
            .body(())
            .unwrap();
        work.push(tokio::spawn(async move { answer(&mut sender, request).await.unwrap() }));
    }
    for answer in work {
        let answer = answer.await.unwrap();
        assert_eq!(answer.status, 200);
        assert!(answer.header("keyward-request-id").starts_with("req_") && answer.text().starts_with("answer "));
        assert!(answer.headers.get("connection").is_none());
    }
    assert!(!driver.is_finished());
    let seen = strict.whole();
    assert_eq!(seen.len(), 500);
    for seen in seen {
        assert!(seen.line.starts_with("GET /a/") && seen.line.ends_with("?b=%2F"), "{seen:?}");
        assert_eq!(seen.values("host"), [strict.upstream.address.to_string()]);
        assert_eq!(seen.values("authorization"), ["Bearer the-injected-token"]);
        let gone = ["te", "cookie", "x-forwarded-for", "connection"];
        assert!(gone.iter().all(|name| seen.values(name).is_empty()) && seen.values("accept") == ["*/*"], "{seen:?}");
    }
    k.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_stream_both_ways_and_trailers_end_here() {
    let k = Keyward::start().await;
    let strict = Strict::start().await;
    let key = k.with_upstream(&strict.upstream).await;
    let (mut sender, _driver) = open(k.app.proxy_address()).await;
    let post = |path: &str| {
        let mut request = get(&key, path).body(()).unwrap();
        *request.method_mut() = http::Method::POST;
        request
    };
    // Of unknown length, with trailers; far more than any window.
    let (answered, mut body) = sender.send_request(post("/proxy/raw/upload"), false).unwrap();
    for _ in 0..100 {
        body.reserve_capacity(10_000);
        let mut piece = Bytes::from(vec![b'x'; 10_000]);
        while !piece.is_empty() {
            let room = std::future::poll_fn(|cx| body.poll_capacity(cx)).await.unwrap().unwrap();
            body.send_data(piece.split_to(room.min(piece.len())), false).unwrap();
            body.reserve_capacity(piece.len());
        }
    }
    let mut trailers = HeaderMap::new();
    trailers.insert("x-trailer", "1".parse().unwrap());
    trailers.insert("authorization", "Bearer forged".parse().unwrap());
    body.send_trailers(trailers).unwrap();
    assert_eq!(whole(answered).await.unwrap().status, 200);
    let seen = strict.whole().pop().unwrap();
    assert_eq!((seen.body.len(), seen.values("transfer-encoding")), (1_000_000, vec!["chunked"]));

    // Events arrive one by one.
    let upstream = Upstream::start(|mut line| async move {
        line.head().await;
        line.say("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n").await;
        for number in 0..3 {
            line.say(format!("9\r\ndata: {number}\n\n\r\n")).await;
            // Goes on only when the event has arrived.
            line.until(b"never").await;
        }
    })
    .await;
    k.target("events", &upstream.url(), json!({"kind": "none"})).await;
    k.grant(&key, "events", "read").await;
    let (answered, _) = sender.send_request(get(&key, "/proxy/events/x").body(()).unwrap(), true).unwrap();
    let mut stream = timeout(LIMIT, answered).await.unwrap().unwrap().into_body();
    assert_eq!(timeout(LIMIT, stream.data()).await.unwrap().unwrap().unwrap(), "data: 0\n\n");
    // The agent gives the stream up: so do we, and the connection goes on.
    drop(stream);
    eventually("the upstream is let go", || upstream.ended() == 1).await;
    assert_eq!(answer(&mut sender, get(&key, "/proxy/raw/x").body(()).unwrap()).await.unwrap().status, 200);
    k.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_breaks_off_is_a_reset_and_not_an_end() {
    let k = Keyward::start().await;
    for broken in [
        "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\nzz\r\n",
    ] {
        let upstream = Upstream::start(move |mut line| async move {
            line.head().await;
            line.say(broken).await;
        })
        .await;
        let slug = format!("cut-{}", upstream.address.port());
        k.target(&slug, &upstream.url(), json!({"kind": "none"})).await;
        let key = k.new_key().await;
        k.grant(&key, &slug, "read").await;
        let (mut sender, _driver) = open(k.app.proxy_address()).await;
        let error = answer(&mut sender, get(&key, &format!("/proxy/{slug}/x")).body(()).unwrap()).await.unwrap_err();
        assert!(error.is_reset() && error.reason() != Some(Reason::NO_ERROR), "{broken}: {error:?}");
    }
    k.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_refused_is_refused_alike() {
    let k = Keyward::start().await;
    let key = k.with_tools().await;
    let (mut sender, _driver) = open(k.app.proxy_address()).await;
    let secret = &key.secret;
    let with = |path: &str, lines: &[(&'static str, String)]| {
        let mut request = get(&key, path);
        for (name, value) in lines {
            request = request.header(*name, value);
        }
        request.body(()).unwrap()
    };
    let long = "a".repeat(40_000);
    let method = |word: &str| {
        let mut request = get(&key, "/proxy/tools/echo").body(()).unwrap();
        *request.method_mut() = word.parse().unwrap();
        request
    };
    let many: Vec<_> = (0..150).map(|_| ("x-many", "1".to_owned())).collect();
    for (what, request, status, code) in [
        ("another host", with("/proxy/tools/echo", &[("host", "b.test".into())]), 400, "bad_request"),
        (
            "two hosts",
            with("/proxy/tools/echo", &[("host", "keyward.test".into()), ("host", "keyward.test".into())]),
            400,
            "bad_request",
        ),
        ("dots", with("/proxy/tools/../x", &[]), 400, "bad_path"),
        ("encoded dots", with("/proxy/tools/%2e%2e/x", &[]), 400, "bad_path"),
        ("two keys", with("/proxy/tools/echo", &[("x-api-key", "kw_other".into())]), 400, "ambiguous_key"),
        (
            "two authorizations",
            with("/proxy/tools/echo", &[("authorization", "Bearer kw_b".into())]),
            400,
            "ambiguous_key",
        ),
        ("the key in the URL", with(&format!("/proxy/tools/{secret}"), &[]), 400, "key_in_request"),
        ("the key in a cookie", with("/proxy/tools/echo", &[("cookie", format!("a={secret}"))]), 400, "key_in_request"),
        ("miracles", with("/proxy/tools/echo", &[("expect", "miracles".into())]), 417, "expectation_failed"),
        ("a target that is not there", with("/proxy/nothing/echo", &[]), 404, "target_not_found"),
        ("nothing", with("/nothing", &[]), 404, "not_found"),
        ("a long head", with("/proxy/tools/echo", &[("x-long", long)]), 431, "request_header_fields_too_large"),
        ("many lines", with("/proxy/tools/echo", &many), 431, "request_header_fields_too_large"),
        ("a long URL", with(&format!("/proxy/tools/{}", "a".repeat(9000)), &[]), 414, "uri_too_long"),
        ("TRACE", method("TRACE"), 405, "method_not_allowed"),
        (
            "CONNECT",
            Request::builder().method("CONNECT").uri("example.com:443").body(()).unwrap(),
            405,
            "method_not_allowed",
        ),
    ] {
        sender = sender.ready().await.unwrap();
        let before = k.seen();
        let answer = answer(&mut sender, request).await.unwrap_or_else(|error| panic!("{what}: {error}"));
        k.refused(&answer, status, code, before, what);
    }
    // A key that is none, as over HTTP/1.1.
    let wrong = Request::get("http://keyward.test/proxy/tools/echo").header("authorization", "Bearer kw_x").body(());
    let before = k.seen();
    k.refused(&answer(&mut sender, wrong.unwrap()).await.unwrap(), 401, "invalid_key", before, "a wrong key");
    k.stop().await;
}

// ── Frames by hand ──────────────────────────────────────────────────────────────────────────────────────────────

const HEADERS: u8 = 1;
const RESET: u8 = 3;
const GOAWAY: u8 = 7;

/// A peer that writes frames as it likes.
struct Frames {
    tcp: TcpStream,
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// Each a literal that is not indexed (RFC 7541 §6.2.2), nothing compressed.
fn packed(lines: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in lines {
        block.push(0);
        for text in [name, value] {
            assert!(text.len() < 127);
            block.push(text.len() as u8);
            block.extend(text.as_bytes());
        }
    }
    block
}

impl Frames {
    async fn open(address: SocketAddr) -> Self {
        let mut tcp = TcpStream::connect(address).await.unwrap();
        tcp.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        tcp.write_all(&frame(4, 0, 0, &[])).await.unwrap();
        Self { tcp }
    }

    async fn send(&mut self, bytes: &[u8]) -> bool {
        self.tcp.write_all(bytes).await.is_ok()
    }

    /// A whole request without a body.
    async fn ask(&mut self, stream: u32, lines: &[(&str, &str)]) {
        self.send(&frame(HEADERS, 0x5, stream, &packed(lines))).await;
    }

    /// The next frame of one of these kinds: kind, stream, payload. `None` at the end.
    async fn next(&mut self, kinds: &[u8]) -> Option<(u8, u32, Vec<u8>)> {
        let read = async {
            loop {
                let mut head = [0u8; 9];
                self.tcp.read_exact(&mut head).await.ok()?;
                let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
                let mut payload = vec![0; length];
                self.tcp.read_exact(&mut payload).await.ok()?;
                if kinds.contains(&head[3]) {
                    return Some((head[3], u32::from_be_bytes([head[5], head[6], head[7], head[8]]), payload));
                }
            }
        };
        timeout(LIMIT, read).await.expect("a frame or an end within the limit")
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn malformed_requests_are_reset_and_reach_nobody() {
    let k = Keyward::start().await;
    let key = k.with_tools().await;
    let bearer = format!("Bearer {}", key.secret);
    let base =
        [(":method", "GET"), (":scheme", "http"), (":authority", "keyward.test"), (":path", "/proxy/tools/echo")];
    let before = k.seen();
    let table: &[(&str, &[(&str, &str)])] = &[
        ("connection", &[("connection", "keep-alive")]),
        ("transfer-encoding", &[("transfer-encoding", "chunked")]),
        ("upgrade", &[("upgrade", "websocket")]),
        ("keep-alive", &[("keep-alive", "1")]),
        ("proxy-connection", &[("proxy-connection", "keep-alive")]),
        ("te", &[("te", "gzip")]),
        ("a capital", &[("X-Capital", "1")]),
        ("a pseudo header too late", &[("a", "b"), (":path", "/proxy/tools/x")]),
        ("a pseudo header twice", &[(":path", "/proxy/tools/x")]),
        ("an unknown pseudo header", &[(":odd", "1")]),
        ("extended CONNECT", &[(":protocol", "websocket")]),
        ("a line break", &[("x", "a\r\nhost: b")]),
        ("a control byte", &[("x", "a\0b")]),
        ("a length that is none", &[("content-length", "5")]),
    ];
    for (what, lines) in table {
        let mut frames = Frames::open(k.app.proxy_address()).await;
        let all = [&base[..], &[("authorization", &*bearer)], lines].concat();
        frames.ask(1, &all).await;
        let (kind, _, payload) = frames.next(&[HEADERS, RESET, GOAWAY]).await.unwrap_or((GOAWAY, 0, Vec::new()));
        // A refusal of ours is as good: 400 in HPACK's static table is 12 (RFC 7541 appendix A).
        assert!(kind != HEADERS || payload.first() == Some(&0x8c), "{what}: {payload:?}");
    }
    for missing in [":method", ":path", ":scheme"] {
        let mut frames = Frames::open(k.app.proxy_address()).await;
        let lines: Vec<_> = base.iter().copied().filter(|(name, _)| *name != missing).collect();
        frames.ask(1, &[&lines[..], &[("authorization", &*bearer)]].concat()).await;
        let (kind, ..) = frames.next(&[HEADERS, RESET, GOAWAY]).await.unwrap();
        assert!(kind == RESET || kind == GOAWAY, "{missing}");
    }
    assert_eq!(k.seen(), before);
    k.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn opening_and_resetting_ends_the_connection_and_spares_the_upstream() {
    let k = Keyward::start().await;
    let upstream = Upstream::start(|mut line| async move {
        line.head().await;
        line.until(b"never").await;
    })
    .await;
    let key = k.with_upstream(&upstream).await;
    let good = k.with_tools().await;
    let bearer = format!("Bearer {}", key.secret);
    let lines = [
        (":method", "GET"),
        (":scheme", "http"),
        (":authority", "keyward.test"),
        (":path", "/proxy/raw/x"),
        ("authorization", &*bearer),
    ];
    let mut frames = Frames::open(k.app.proxy_address()).await;
    for number in 0..5000 {
        let stream = number * 2 + 1;
        let mut bytes = frame(HEADERS, 0x5, stream, &packed(&lines));
        bytes.extend(frame(RESET, 0, stream, &8u32.to_be_bytes()));
        if !frames.send(&bytes).await {
            break;
        }
        if number % 50 == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    while frames.next(&[GOAWAY]).await.is_some() {}
    assert!(upstream.accepted() < 400, "{} connections for nothing", upstream.accepted());
    eventually("no connection is left", || upstream.ended() == upstream.accepted()).await;
    assert_eq!(k.agent(&good, "GET", "/proxy/tools/1k").await.status, 200);
    k.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn floods_of_frames_end_the_connection() {
    let k = Keyward::start().await;
    let key = k.with_tools().await;
    let bearer = format!("Bearer {}", key.secret);
    let lines =
        [(":method", "GET"), (":scheme", "http"), (":authority", "keyward.test"), (":path", "/"), ("a", &*bearer)];
    // A head that never ends.
    let mut frames = Frames::open(k.app.proxy_address()).await;
    frames.send(&frame(HEADERS, 0x1, 1, &packed(&lines))).await;
    let piece = packed(&[("x", "a".repeat(100).as_str()); 100]);
    for _ in 0..100_000 {
        if !frames.send(&frame(9, 0, 1, &piece)).await {
            break;
        }
    }
    while frames.next(&[GOAWAY]).await.is_some() {}
    // More streams than were offered.
    let hang = [&lines[..3], &[(":path", "/proxy/tools/hang"), ("authorization", &bearer)]].concat();
    let mut frames = Frames::open(k.app.proxy_address()).await;
    for number in 0..200 {
        frames.ask(number * 2 + 1, &hang).await;
    }
    let (_, stream, payload) = frames.next(&[RESET, GOAWAY]).await.unwrap();
    assert!(stream / 2 >= 128 && payload == 7u32.to_be_bytes(), "REFUSED_STREAM: {stream} {payload:?}");
    drop(frames);
    k.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopping_says_goaway_and_finishes_what_runs() {
    let k = Keyward::start().await;
    let key = k.with_tools().await;
    let (mut idle, idle_driver) = open(k.app.proxy_address()).await;
    assert_eq!(answer(&mut idle, get(&key, "/proxy/tools/1k").body(()).unwrap()).await.unwrap().status, 200);
    let (mut busy, busy_driver) = open(k.app.proxy_address()).await;
    let (slow, _) = busy.send_request(get(&key, "/proxy/tools/slow?ms=1500").body(()).unwrap(), true).unwrap();
    k.sandbox().wait_for_upstream_calls(2).await;
    let Keyward { world, app, .. } = k;
    let stopping = tokio::spawn(app.stop());
    timeout(Duration::from_secs(5), idle_driver).await.unwrap().unwrap().unwrap();
    let slow = whole(slow).await.unwrap();
    assert_eq!(slow.text(), "better late\n");
    timeout(Duration::from_secs(5), busy_driver).await.unwrap().unwrap().unwrap();
    stopping.await.unwrap();
    world.outside.stop_now();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connect_and_whole_urls_are_refused_over_http_1_too() {
    let k = Keyward::start().await;
    let before = k.seen();
    for (line, status, code) in [
        ("CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n", 405, "method_not_allowed"),
        ("TRACE / HTTP/1.1\r\nHost: a\r\n\r\n", 405, "method_not_allowed"),
        ("GET http://example.com/bootstrap HTTP/1.1\r\nHost: example.com\r\n\r\n", 400, "bad_request"),
        ("GET http://example.com/proxy/tools/x HTTP/1.1\r\nHost: example.com\r\n\r\n", 400, "bad_request"),
    ] {
        let answer = k.ask(line).await;
        k.refused(&answer, status, code, before, line);
    }
    k.stop().await;
}
