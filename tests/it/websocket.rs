//! WebSockets: the handshake on both sides, bytes both ways, and every way in which one ends.

use std::time::{Duration, Instant};

use rustls::version::TLS13;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use crate::harness::{Answer, Backend, Key, Keyward, Settings, World, admin};
use crate::tls_kit::{Authority, connect};
use crate::wire::{Line, Upstream, Wire, eventually, head, holds};

const NONCE: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
const SWITCHED: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                        Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

fn shake(key: &Key, path: &str, more: &[&str]) -> Vec<u8> {
    let nonce = format!("Sec-WebSocket-Key: {NONCE}");
    let lines = ["Connection: keep-alive, Upgrade", "Upgrade: websocket", &nonce, "Sec-WebSocket-Version: 13"];
    head(key, &format!("GET {path}"), &[&lines[..], more].concat())
}

/// A key that may write to `raw`, which forwards WebSockets.
async fn with_websockets(k: &Keyward, upstream: &Upstream) -> Key {
    let credential = json!({"kind": "bearer", "token": "the-injected-token"});
    let target = json!({"slug": "raw", "base_url": upstream.url(), "credential": credential, "websocket": true});
    assert_eq!(k.api("POST", "/targets", Some(target)).await["websocket"], true);
    let key = k.new_key().await;
    k.grant(&key, "raw", "write").await;
    key
}

/// An upstream that switches, says `hello` at once, and then gives back what it hears until `bye`.
async fn echo() -> Upstream {
    Upstream::start(|mut line| async move {
        line.head().await;
        line.say(format!("{SWITCHED}hello")).await;
        gives_back(&mut line).await;
    })
    .await
}

async fn gives_back(line: &mut Line) {
    loop {
        let heard = line.until(b"\n").await;
        if heard.is_empty() || heard == b"bye\n" {
            return;
        }
        line.say(heard).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_pass_both_ways_after_a_checked_handshake() {
    let k = Keyward::start().await;
    let upstream = echo().await;
    let key = with_websockets(&k, &upstream).await;
    let mut wire = k.wire().await;
    // What comes along with the handshake belongs to the WebSocket.
    let more = ["Sec-WebSocket-Extensions: permessage-deflate", "Origin: https://app.example.com", "Cookie: a=b"];
    wire.send([&shake(&key, "/proxy/raw/live?x=1", &more)[..], b"early\n"].concat()).await;
    let switched = wire.next(true).await.unwrap();
    assert_eq!((switched.status.as_u16(), switched.header("sec-websocket-accept")), (101, ACCEPT));
    assert_eq!((switched.header("upgrade"), switched.header("connection")), ("websocket", "Upgrade"));
    assert!(switched.header("keyward-request-id").starts_with("req_"));
    assert_eq!(wire.until(b"early\n").await, b"helloearly\n");
    let large = vec![b'x'; 3_000_000];
    let (mut reader, mut writer) = wire.tcp.into_split();
    let sent = [&large[..], b"\n"].concat();
    let writing = tokio::spawn(async move {
        writer.write_all(&sent).await.unwrap();
        writer
    });
    let mut back = vec![0; large.len() + 1];
    reader.read_exact(&mut back).await.unwrap();
    assert!(back[..large.len()] == large[..]);
    let mut writer = writing.await.unwrap();
    writer.write_all(b"bye\n").await.unwrap();
    let mut rest = Vec::new();
    reader.read_to_end(&mut rest).await.unwrap();
    assert!(rest.is_empty());
    drop(writer);

    let seen = upstream.seen();
    let head = seen.split("\r\n\r\n").next().unwrap().to_ascii_lowercase();
    assert!(head.starts_with("get /live?x=1 http/1.1\r\n"), "{head}");
    for line in [
        "connection: upgrade",
        "upgrade: websocket",
        "sec-websocket-version: 13",
        "authorization: bearer the-injected-token",
        "sec-websocket-extensions: permessage-deflate",
        "origin: https://app.example.com",
    ] {
        assert_eq!(head.matches(line).count(), 1, "{line}: {head}");
    }
    assert!(!head.contains("cookie") && !head.contains("kw_") && !head.contains("keep-alive"), "{head}");

    eventually("the WebSocket is over", || upstream.ended() == 1).await;
    let mut records = Vec::new();
    for _ in 0..100 {
        records = k.audit("&target=raw").await;
        if records.iter().any(|record| record["path"] == "/live") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let record = records.iter().find(|record| record["path"] == "/live").unwrap();
    assert_eq!((&record["status"], &record["method"], &record["code"]), (&json!(101), &json!("GET"), &json!(null)));
    let sent = (record["bytes_in"].as_u64().unwrap(), record["bytes_out"].as_u64().unwrap());
    assert_eq!(sent, (3_000_001 + 6 + 4, 3_000_001 + 6 + 5), "{record}");
    k.stop().await;
}

async fn says<T: AsyncRead + AsyncWrite + Unpin>(stream: &mut T, text: &[u8], wanted: &[u8]) {
    stream.write_all(text).await.unwrap();
    let mut heard = Vec::new();
    while !holds(&heard, wanted) {
        assert_ne!(stream.read_buf(&mut heard).await.unwrap(), 0, "{}", String::from_utf8_lossy(&heard));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_websocket_works_over_tls_too() {
    let authority = Authority::new();
    let world = World::new(Backend::Sqlite).await;
    authority.issue().write(world.dir.path());
    let toml = format!(
        "[proxy.tls]\ncert = \"cert.pem\"\nkey = \"key.pem\"\n[targets.tools]\nbase_url = \"{}/tools\"\nwebsocket = true\n",
        world.sandbox.origin()
    );
    let settings = Settings { toml, ..Settings::default() };
    let app = world.instance(&settings).await;
    let k = Keyward { world, app, settings };
    let key = k.new_key().await;
    k.grant(&key, "tools", "write").await;
    let connector = authority.connector(&["http/1.1"], &[&TLS13]);
    let mut tls = connect(k.app.proxy_address(), &connector).await.unwrap();
    says(&mut tls, &shake(&key, "/proxy/tools/websocket", &[]), b"\r\n\r\n").await;
    // A masked text frame, and its echo.
    says(&mut tls, &[0x81, 0x82, 0, 0, 0, 0, b'h', b'i'], &[0x81, 2, b'h', b'i']).await;
    says(&mut tls, &[0x89, 0x81, 1, 1, 1, 1, b'a'], &[0x8a, 1, b'a' ^ 1]).await;
    drop(tls);
    k.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_may_not_be_switched_never_leaves() {
    let k = Keyward::start().await;
    let upstream = echo().await;
    let key = with_websockets(&k, &upstream).await;
    let reader = k.new_key().await;
    k.grant(&reader, "raw", "read").await;
    k.target("plain", &upstream.url(), json!({"kind": "none"})).await;
    k.grant(&key, "plain", "write").await;
    let secret = format!("Sec-WebSocket-Protocol: chat, {}", key.secret);
    let other = format!("Sec-WebSocket-Protocol: {}", reader.secret);
    let line = "GET /proxy/raw/live";
    let nonce = format!("Sec-WebSocket-Key: {NONCE}");
    let (upgrade, version) = ("Upgrade: websocket", "Sec-WebSocket-Version: 13");
    for (what, request, status, code) in [
        ("a target that does not allow it", shake(&key, "/proxy/plain/live", &[]), 403, "not_permitted"),
        ("a grant that reads", shake(&reader, "/proxy/raw/live", &[]), 403, "not_permitted"),
        ("no target", shake(&key, "/proxy/none/live", &[]), 404, "target_not_found"),
        ("the key as a protocol", shake(&key, "/proxy/raw/live", &[&secret]), 400, "key_in_request"),
        ("another key as a protocol", shake(&key, "/proxy/raw/live", &[&other]), 400, "key_in_request"),
        ("no connection", head(&key, line, &[upgrade, &nonce, version]), 400, "bad_request"),
        ("no nonce", head(&key, line, &["Connection: Upgrade", upgrade, version]), 400, "bad_request"),
        ("no version", head(&key, line, &["Connection: Upgrade", upgrade, &nonce]), 400, "bad_request"),
        ("two nonces", shake(&key, "/proxy/raw/live", &[&nonce]), 400, "bad_request"),
        ("a body", shake(&key, "/proxy/raw/live", &["Content-Length: 3"]), 400, "bad_request"),
        ("chunks", shake(&key, "/proxy/raw/live", &["Transfer-Encoding: chunked"]), 400, "bad_request"),
        (
            "POST",
            head(&key, "POST /proxy/raw/live", &["Connection: Upgrade", upgrade, &nonce, version]),
            400,
            "bad_request",
        ),
    ] {
        let before = k.seen();
        k.refused(&k.ask(request).await, status, code, before, what);
    }
    assert_eq!(upstream.accepted(), 0);
    k.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_101_that_is_none_is_refused_and_its_connection_cut() {
    let k = Keyward::start().await;
    let begin = "HTTP/1.1 101 Switching Protocols\r\n";
    let accepted = format!("Sec-WebSocket-Accept: {ACCEPT}\r\n");
    let (upgrade, connection) = ("Upgrade: websocket\r\n", "Connection: Upgrade\r\n");
    for (number, answer) in [
        format!("{begin}{upgrade}{connection}\r\n"),
        format!("{begin}{upgrade}{connection}Sec-WebSocket-Accept: {NONCE}\r\n\r\n"),
        format!("{begin}{upgrade}{accepted}\r\n"),
        format!("{begin}{connection}{accepted}\r\n"),
        format!("{begin}Upgrade: h2c\r\n{connection}{accepted}\r\n"),
        format!("{begin}{upgrade}{connection}{accepted}{accepted}\r\n"),
        format!("{begin}{upgrade}{connection}{accepted}Sec-WebSocket-Protocol: unasked\r\n\r\n"),
    ]
    .into_iter()
    .enumerate()
    {
        let upstream = Upstream::saying(answer.clone()).await;
        let slug = format!("bad-{number}");
        let target =
            json!({"slug": slug, "base_url": upstream.url(), "credential": {"kind": "none"}, "websocket": true});
        k.api("POST", "/targets", Some(target)).await;
        let key = k.new_key().await;
        k.grant(&key, &slug, "write").await;
        let before = k.seen();
        let told = k.ask(shake(&key, &format!("/proxy/{slug}/live"), &[])).await;
        k.refused(&told, 502, "upstream_invalid", before, &answer);
        eventually("it is cut", || upstream.ended() == 1).await;
        // Nor is one taken that nobody asked for.
        let told = k.ask(head(&key, &format!("GET /proxy/{slug}/live"), &[])).await;
        k.refused(&told, 502, "upstream_invalid", before, "unasked");
        eventually("it is cut", || upstream.ended() == 2).await;
    }
    // Any other answer is one to a request.
    let upstream = Upstream::saying("HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno").await;
    let key = with_websockets(&k, &upstream).await;
    for _ in 0..2 {
        let told = k.ask(shake(&key, "/proxy/raw/live", &[])).await;
        assert_eq!((told.status.as_u16(), &*told.text(), told.header("keyward-error")), (403, "no", ""));
    }
    k.stop().await;
}

async fn opened(k: &Keyward, key: &Key) -> Wire {
    let mut wire = k.wire().await;
    wire.send(shake(key, "/proxy/raw/live", &[])).await;
    assert!(holds(&wire.until(b"hello").await, b" 101 "));
    wire
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silence_a_revoked_key_and_a_peer_that_leaves_end_it() {
    let k = Keyward::configured("[proxy.timeouts]\nidle = \"2s\"").await;
    let upstream = echo().await;
    let key = with_websockets(&k, &upstream).await;
    let begun = Instant::now();
    let mut silent = opened(&k, &key).await;
    let mut lively = opened(&k, &key).await;
    for _ in 0..8 {
        lively.send(b"tick\n").await;
        lively.until(b"tick\n").await;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    assert!(silent.rest().await.is_empty() && begun.elapsed() >= Duration::from_secs(2));
    // The agent leaves; the target is told.
    let ended = upstream.ended();
    drop(lively);
    eventually("the target is told", || upstream.ended() > ended).await;
    // The key goes.
    let mut wire = opened(&k, &key).await;
    let since = Instant::now();
    k.api("DELETE", &format!("/keys/{}", key.id), None).await;
    let cut = async {
        while wire.send(b"tick\n").await && !wire.until(b"tick\n").await.is_empty() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), cut).await.unwrap();
    assert!(since.elapsed() < Duration::from_secs(5));
    eventually("the target is told", || upstream.ended() == upstream.accepted()).await;
    let records = k.audit("&target=raw").await;
    let aborted = records.iter().filter(|record| record["code"] == "aborted" && record["status"] == json!(101)).count();
    assert!(aborted >= 2, "{records:?}");
    k.stop().await;
}

/// Whether this request is let in; what was given back is seen a moment later.
async fn let_in(k: &Keyward, request: &[u8]) -> Answer {
    for _ in 0..500 {
        let mut wire = k.wire().await;
        wire.send(request).await;
        let answer = wire.next(true).await.unwrap();
        if !matches!(answer.status.as_u16(), 429 | 503) {
            return answer;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("nothing was given back");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_request_takes_up_is_taken_until_its_websocket_ends() {
    let k = Keyward::configured("[proxy.limits]\nrequests = 2\n[proxy.timeouts]\nqueue = \"10ms\"").await;
    let upstream = echo().await;
    let key = with_websockets(&k, &upstream).await;
    let other = k.new_key().await;
    k.grant(&other, "raw", "write").await;
    k.api("PATCH", &format!("/keys/{}", key.id), Some(json!({"rate_limit": {"concurrent": 1}}))).await;
    k.api("PATCH", "/targets/raw", Some(json!({"concurrency": 1}))).await;
    let (mine, theirs) = (head(&key, "GET /verify", &[]), shake(&other, "/proxy/raw/live", &[]));
    for agent_leaves in [false, true] {
        let mut wire = opened(&k, &key).await;
        // Neither the 101 nor anything that is said afterwards gives a place back.
        for _ in 0..3 {
            assert_eq!(k.ask(&mine).await.refusal(), "rate_limited");
            assert_eq!(k.ask(&theirs).await.refusal(), "overloaded");
            wire.send(b"tick\n").await;
            assert_eq!(wire.until(b"tick\n").await, b"tick\n");
        }
        let ended = upstream.ended();
        if agent_leaves {
            drop(wire);
        } else {
            wire.send(b"bye\n").await;
            assert!(wire.rest().await.is_empty());
            drop(wire);
        }
        assert_eq!(let_in(&k, &mine).await.status, 200);
        assert_eq!(let_in(&k, &theirs).await.status, 101);
        eventually("both are over", || upstream.ended() == ended + 2).await;
    }
    // The gateway's own count goes the same way.
    k.api("PATCH", "/targets/raw", Some(json!({"concurrency": null}))).await;
    let anybody = head(&other, "GET /verify", &[]);
    let (first, second) = (opened(&k, &other).await, opened(&k, &other).await);
    assert_eq!(k.ask(&anybody).await.refusal(), "overloaded");
    drop(first);
    assert_eq!(let_in(&k, &anybody).await.status, 200);
    drop(second);
    k.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_injected_secret_does_not_come_back_with_the_101() {
    let k = Keyward::start().await;
    let secret = "the-injected-token";
    let upstream = Upstream::start(move |mut line| async move {
        line.head().await;
        let rest = SWITCHED.split_once("\r\n").unwrap().1;
        let echo = format!("X-Echo: Bearer {secret}\r\nX-{secret}: 1\r\nX-Other: fine\r\n");
        line.say(format!("HTTP/1.1 101 {secret}\r\n{echo}{rest}hello")).await;
        gives_back(&mut line).await;
    })
    .await;
    let key = with_websockets(&k, &upstream).await;
    let mut wire = k.wire().await;
    wire.send(shake(&key, "/proxy/raw/live", &[])).await;
    let told = String::from_utf8(wire.until(b"\r\n\r\n").await).unwrap();
    assert!(told.starts_with("HTTP/1.1 101 ") && !told.contains(secret), "{told}");
    assert!(told.to_ascii_lowercase().contains("x-echo: bearer ******************\r\n"), "{told}");
    assert!(told.to_ascii_lowercase().contains("x-other: fine\r\n"), "{told}");
    wire.send(b"bye\n").await;
    assert_eq!(wire.rest().await, b"hello", "it is a WebSocket all the same");
    drop(wire);
    assert!(upstream.seen().to_ascii_lowercase().contains(&format!("authorization: bearer {secret}\r\n")));
    k.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn draining_cuts_it_at_the_deadline_and_the_record_says_so() {
    let k = Keyward::configured("[shutdown]\ndeadline = \"2s\"").await;
    let upstream = echo().await;
    let key = with_websockets(&k, &upstream).await;
    let mut wire = opened(&k, &key).await;
    let Keyward { world, app, settings } = k;
    let begun = Instant::now();
    let stopping = tokio::spawn(app.stop());
    tokio::time::sleep(Duration::from_millis(500)).await;
    wire.send(b"still here\n").await;
    assert_eq!(wire.until(b"here\n").await, b"still here\n");
    assert!(wire.rest().await.is_empty());
    assert!(begun.elapsed() >= Duration::from_secs(2));
    stopping.await.unwrap();
    let app = world.instance(&settings).await;
    let records = admin(app.admin_address(), "GET", "/api/organizations/default/audit?target=raw", None).await.json();
    let record = records["items"].as_array().unwrap().iter().find(|record| record["path"] == "/live").unwrap().clone();
    assert_eq!((&record["status"], &record["code"]), (&json!(101), &json!("aborted")));
    assert_eq!((&record["bytes_in"], &record["bytes_out"]), (&json!(11), &json!(16)), "{record}");
    assert!(record["duration_us"].as_u64().unwrap() > 1_500_000, "{record}");
    app.stop().await;
    world.outside.stop_now();
}
