//! What is taken off on the way out and back, and what framing attacks come to.

use http::StatusCode;
use serde_json::json;
use std::sync::Arc;
use tokio::sync::Notify;

use crate::harness::{Key, Keyward};
use crate::wire::{Strict, Upstream, Wire, head, holds};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// A gateway and an upstream that reads by the letter, granted as `raw` with a bearer credential.
async fn strict() -> (Keyward, Strict, Key) {
    let k = Keyward::start().await;
    let strict = Strict::start().await;
    let key = k.with_upstream(&strict.upstream).await;
    // The guard would ask for `identity`.
    k.api("PATCH", "/targets/raw", Some(json!({"reflect_guard": false}))).await;
    (k, strict, key)
}

// ── Out ─────────────────────────────────────────────────────────────────────────────────────────────────────────

/// Header lines that don't go out.
const OFF: &[&str] = &[
    // between neighbours
    "Keep-Alive: timeout=5",
    "Proxy-Connection: keep-alive",
    "Proxy-Authorization: Basic dGhlaXJz",
    "Proxy-Authenticate: Basic",
    "TE: trailers",
    "te: trailers, deflate;q=0.5",
    "Trailer: X-Checksum",
    "Upgrade: h2c",
    "HTTP2-Settings: AAMAAABkAAQAAP__",
    "Expect: 100-continue",
    // who asks, and from where
    "Forwarded: for=192.0.2.1;host=evil.example.org",
    "X-Forwarded-For: 192.0.2.1",
    "X-Forwarded-Host: evil.example.org",
    "X-Forwarded-Proto: http",
    "X-Forwarded-Port: 1",
    "X-Forwarded-Prefix: /admin",
    "X-Forwarded-Anything-Else: 1",
    "X-Real-IP: 192.0.2.1",
    "True-Client-IP: 192.0.2.1",
    "X-Client-IP: 192.0.2.1",
    "CF-Connecting-IP: 192.0.2.1",
    "Via: 1.1 elsewhere",
    "Cookie: session=abc",
    "Cookie2: $Version=1",
    // another URL, another method
    "X-Original-URL: /admin",
    "X-Rewrite-URL: /admin",
    "X-Original-Host: evil.example.org",
    "X-Host: evil.example.org",
    "X-HTTP-Method-Override: DELETE",
    "X-HTTP-Method: DELETE",
    "X-Method-Override: DELETE",
    // ours
    "Keyward-Approval: apr_1",
    "Keyward-Request-Id: req_forged",
    "keyward-anything: 1",
    // credentials
    "X-Authorization: Bearer theirs",
    // twins: the same to servers that turn names into variables
    "Proxy_Authorization: theirs",
    "X_Forwarded_For: 192.0.2.1",
    "X-Forwarded_For: 192.0.2.1",
    "X_Http_Method_Override: DELETE",
    "X-Http_Method-Override: DELETE",
    "X_Original_Url: /admin",
    "X_Real_Ip: 192.0.2.1",
    "X_Mine: ok", // not a twin: stays, see below
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_the_agents_to_say_does_not_go_out() {
    let (k, strict, key) = strict().await;
    for line in OFF {
        let (name, _) = line.split_once(": ").unwrap();
        let stays = name == "X_Mine";
        let more = ["Accept: text/plain", line, "X-Kept: 1", "Connection: close"];
        let answer = k.ask(head(&key, "GET /proxy/raw/x", &more)).await;
        assert_eq!(answer.status, 200, "{line}: {}", answer.text());
        let sent = strict.seen().pop().unwrap();
        assert_eq!(sent.fault, None, "{line}");
        assert_eq!(sent.values(&name.to_ascii_lowercase()).len(), usize::from(stays), "{line}: {sent:?}");
        assert_eq!((sent.values("accept"), sent.values("x-kept")), (vec!["text/plain"], vec!["1"]), "{line}");
        assert_eq!(sent.values("host"), [strict.upstream.address.to_string()], "{line}");
        assert_eq!(sent.values("authorization"), ["Bearer the-injected-token"], "{line}");
        let names: Vec<&str> = sent.headers.iter().map(|(name, _)| name.as_str()).collect();
        let expected = if stays { 5 } else { 4 };
        assert_eq!(names.len(), expected, "{line}: {names:?}");
    }
    // All of them together, and several times over.
    let mut lines: Vec<&str> = OFF.iter().chain(OFF).copied().filter(|line| !line.starts_with("X_Mine")).collect();
    lines.truncate(90);
    lines.push("X-Kept: 1");
    let answer = k.ask(head(&key, "GET /proxy/raw/x", &lines)).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let sent = strict.seen().pop().unwrap();
    assert_eq!(sent.headers.len(), 3, "{:?}", sent.headers);
    assert!(!strict.upstream.seen().contains("kw_"));
    k.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_connection_line_takes_off_what_it_names() {
    let (k, strict, key) = strict().await;
    let lines = [
        "Connection: keep-alive, X-First",
        "X-First: 1",
        "X-Second: 1",
        "Connection: x-second",
        "Connection:   X-THIRD ,,  x-fourth\t",
        "X-Third: 1",
        "X-Third: again",
        "X-Fourth: 1",
        "Content-Length: 5",
        "X-Kept: 1",
        "Connection: not a name, \u{fc}, close",
    ];
    let request = [&head(&key, "POST /proxy/raw/x", &lines)[..], b"hello"].concat();
    let answer = k.ask(request).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let sent = strict.seen().pop().unwrap();
    assert_eq!((sent.fault, &sent.body[..]), (None, &b"hello"[..]));
    for name in ["connection", "x-first", "x-second", "x-third", "x-fourth"] {
        assert!(sent.values(name).is_empty(), "{name}: {sent:?}");
    }
    assert_eq!(sent.values("content-length"), ["5"]);
    assert_eq!(sent.values("host"), [strict.upstream.address.to_string()]);
    assert_eq!(sent.values("authorization"), ["Bearer the-injected-token"]);
    assert_eq!(sent.values("x-kept"), ["1"]);
    k.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rest_goes_out_as_it_came() {
    let (k, strict, key) = strict().await;
    let lines = [
        "Accept: text/html",
        "Accept: application/json;q=0.5",
        "Accept-Encoding: gzip, br",
        "Content-Type: application/x-thing; charset=utf-8",
        "If-None-Match: \"a\", W/\"b\"",
        "Range: bytes=0-9",
        "Prefer: return=minimal",
        "Traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "X-Request-Id: 7",
        "X_Custom_Thing: 1",
        "ConsistencyLevel: eventual",
        "User-Agent: agent/1.0 (\"x\")",
        "Origin: https://app.example.com",
        "Referer: https://app.example.com/x?y=z",
        "Content-Encoding: gzip",
        "X-Empty:",
        "X-Spaces:    a  b   ",
        "Idempotency-Key: 8e03978e",
    ];
    assert_eq!(k.ask(head(&key, "GET /proxy/raw/x", &lines)).await.status, 200);
    let sent = strict.seen().pop().unwrap();
    for line in lines {
        let (name, value) = line.split_once(':').unwrap();
        let name = name.to_ascii_lowercase();
        assert!(sent.values(&name).contains(&value.trim()), "{line}: {sent:?}");
    }
    assert_eq!(sent.values("accept"), ["text/html", "application/json;q=0.5"]);
    assert_eq!(sent.headers.len(), lines.len() + 2);
    k.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_is_framed_by_us_and_only_once() {
    let (k, strict, key) = strict().await;
    for (line, lines, body, length) in [
        ("GET", vec![], "", None),
        ("DELETE", vec![], "", None),
        ("POST", vec![], "", Some("0")),
        ("PUT", vec!["Content-Length: 0"], "", Some("0")),
        ("POST", vec!["Content-Length: 5"], "hello", Some("5")),
        ("POST", vec!["Content-Length: 05"], "hello", Some("5")),
        ("GET", vec!["Content-Length: 5"], "hello", Some("5")),
        ("DELETE", vec!["Content-Length: 5"], "hello", Some("5")),
        ("POST", vec!["Transfer-Encoding: chunked"], "5\r\nhello\r\n0\r\n\r\n", None),
        ("GET", vec!["Transfer-Encoding: CHUNKED"], "5\r\nhello\r\n0\r\n\r\n", None),
    ] {
        let mut lines = lines;
        lines.push("Connection: close");
        let what = format!("{line} {lines:?}");
        let request = [&head(&key, &format!("{line} /proxy/raw/x"), &lines)[..], body.as_bytes()].concat();
        let answer = k.ask(request).await;
        assert_eq!(answer.status, 200, "{what}: {}", answer.text());
        let sent = strict.seen().pop().unwrap();
        assert_eq!(sent.fault, None, "{what}");
        assert_eq!(sent.body, if body.is_empty() { &b""[..] } else { b"hello" }, "{what}");
        let chunked = length.is_none() && !body.is_empty();
        assert_eq!(sent.values("content-length"), length.into_iter().collect::<Vec<_>>(), "{what}");
        assert_eq!(sent.values("transfer-encoding").len(), usize::from(chunked), "{what}");
    }
    k.stop().await;
}

// ── Back ────────────────────────────────────────────────────────────────────────────────────────────────────────

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_would_act_on_our_origin_does_not_come_back() {
    let k = Keyward::start().await;
    let off = [
        "Set-Cookie: a=b; Path=/",
        "Set-Cookie: c=d",
        "Set-Cookie2: e=f",
        "Alt-Svc: h3=\":443\"",
        "Strict-Transport-Security: max-age=31536000",
        "Clear-Site-Data: \"*\"",
        "Access-Control-Allow-Origin: *",
        "Access-Control-Allow-Credentials: true",
        "Access-Control-Expose-Headers: x",
        "Connection: X-Hop, keep-alive",
        "Connection: x-hop-too",
        "X-Hop: 1",
        "X-Hop-Too: 1",
        "Keep-Alive: timeout=5",
        "Proxy-Authenticate: Basic",
        "Proxy-Authentication-Info: x",
        "Trailer: X-Sum",
        "Upgrade: h2c",
        "Keyward-Error: account_disconnected",
        "Keyward-Request-Id: req_forged",
        "X-Accel-Redirect: /internal",
        "X-Sendfile: /etc/passwd",
    ];
    let kept = [
        "Content-Type: application/json",
        "ETag: \"x\"",
        "Cache-Control: max-age=60",
        "WWW-Authenticate: Bearer realm=\"x\"",
        "Retry-After: 7",
        "X-RateLimit-Remaining: 3",
        "Link: <https://api.example.com/2>; rel=\"next\"",
        "Link: <https://api.example.com/9>; rel=\"last\"",
        "Content-Encoding: gzip",
        "Server: upstream",
        "Date: Tue, 15 Nov 1994 08:12:31 GMT",
        "Content-Disposition: attachment; filename=\"x\"",
    ];
    let lines: String = off.iter().chain(&kept).map(|line| format!("{line}\r\n")).collect();
    let upstream =
        Upstream::saying(format!("HTTP/1.1 429 Slow Down Please\r\n{lines}Content-Length: 2\r\n\r\n{{}}")).await;
    let key = k.with_upstream(&upstream).await;
    let mut wire = k.wire().await;
    wire.send(head(&key, "GET /proxy/raw/x", &["Connection: close"])).await;
    let raw = String::from_utf8(wire.rest().await).unwrap();
    assert!(raw.starts_with("HTTP/1.1 429 Slow Down Please\r\n"), "the status line is the upstream's: {raw}");

    let answer = k.agent(&key, "GET", "/proxy/raw/x").await;
    assert_eq!(answer.status, 429);
    for line in off {
        let (name, value) = line.split_once(": ").unwrap();
        let name = name.to_ascii_lowercase();
        let found: Vec<_> = answer.headers.get_all(&name).iter().map(|value| value.to_str().unwrap()).collect();
        assert!(!found.contains(&value), "{line}: {found:?}");
        assert!(found.is_empty() || matches!(name.as_str(), "connection" | "keyward-request-id"), "{line}: {found:?}");
    }
    for line in kept {
        let (name, value) = line.split_once(": ").unwrap();
        let mut found = answer.headers.get_all(name).iter().map(|value| value.to_str().unwrap());
        assert!(found.any(|found| found == value), "{line}: {:?}", answer.headers);
    }
    assert_eq!(answer.headers.get_all("date").iter().count(), 1);
    assert_eq!(answer.headers.get_all("keyward-request-id").iter().count(), 1);
    assert_ne!(answer.header("keyward-request-id"), "req_forged");
    k.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn locations_stay_inside_the_target_and_redirects_are_never_followed() {
    let k = Keyward::start().await;
    let elsewhere = Upstream::saying(OK).await;
    let key = k.new_key().await;
    // Answers with whatever the query says.
    let upstream = Upstream::start(|mut line| async move {
        loop {
            let head = String::from_utf8(line.head().await).unwrap();
            let Some((status, location)) =
                head.split(' ').nth(1).and_then(|url| url.split_once("?")?.1.split_once('='))
            else {
                return;
            };
            let query = format!("l={location}");
            let (_, location) = url::form_urlencoded::parse(query.as_bytes()).next().unwrap();
            line.say(format!("HTTP/1.1 {status} X\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n")).await;
        }
    })
    .await;
    k.target("raw", &format!("{}/v1", upstream.url()), json!({"kind": "bearer", "token": "t"})).await;
    k.grant(&key, "raw", "write").await;
    let (here, there) = (upstream.address, elsewhere.address);
    let table = [
        (format!("http://{here}/v1/a/b?c=d#e"), "/proxy/raw/a/b?c=d#e".to_owned()),
        (format!("HTTP://{here}/v1/a"), "/proxy/raw/a".to_owned()),
        (format!("//{here}/v1/a"), "/proxy/raw/a".to_owned()),
        (format!("http://{here}/v1"), "/proxy/raw".to_owned()),
        ("/v1/a?b".to_owned(), "/proxy/raw/a?b".to_owned()),
        ("/v1?x=1".to_owned(), "/proxy/raw?x=1".to_owned()),
        // Elsewhere, or not surely inside: as it came.
        (format!("http://{here}/v2/a"), format!("http://{here}/v2/a")),
        (format!("http://{here}/v1x"), format!("http://{here}/v1x")),
        ("/v1/../admin".to_owned(), "/v1/../admin".to_owned()),
        ("/v1/%2e%2e/admin".to_owned(), "/v1/%2e%2e/admin".to_owned()),
        (format!("http://{there}/v1/a"), format!("http://{there}/v1/a")),
        (format!("http://{here}@{there}/v1/a"), format!("http://{here}@{there}/v1/a")),
        (format!("https://{here}/v1/a"), format!("https://{here}/v1/a")),
        ("next?page=2".to_owned(), "next?page=2".to_owned()),
    ];
    let mut asked = 0;
    for (location, expected) in &table {
        for status in ["201", "301", "302", "303", "307", "308"] {
            let quoted: String = url::form_urlencoded::byte_serialize(location.as_bytes()).collect();
            for method in ["GET", "POST"] {
                let answer = k.agent(&key, method, &format!("/proxy/raw/x?{status}={quoted}")).await;
                asked += 1;
                assert_eq!(
                    (answer.status.as_str(), answer.header("location")),
                    (status, expected.as_str()),
                    "{location}"
                );
            }
        }
    }
    assert_eq!((upstream.requests(), elsewhere.accepted()), (asked, 0), "nothing was followed");
    k.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_without_a_body_keep_their_headers_and_the_connection() {
    let k = Keyward::start().await;
    let upstream = Upstream::start(|mut line| async move {
        loop {
            let head = String::from_utf8(line.head().await).unwrap();
            let answer = match head.split(' ').nth(1) {
                Some("/head") => "HTTP/1.1 200 OK\r\nContent-Length: 1234\r\nETag: \"h\"\r\n\r\n",
                Some("/chunked") => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
                Some("/204") => "HTTP/1.1 204 No Content\r\nETag: \"n\"\r\n\r\n",
                Some("/304") => "HTTP/1.1 304 Not Modified\r\nContent-Length: 99\r\nETag: \"m\"\r\n\r\n",
                Some("/empty") => "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
                Some("/hints") => {
                    "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
                }
                _ => return,
            };
            line.say(answer).await;
        }
    })
    .await;
    let key = k.with_upstream(&upstream).await;
    let mut wire = k.wire().await;
    for _ in 0..3 {
        for (line, status, name, value, body) in [
            ("HEAD /proxy/raw/head", 200, "content-length", "1234", ""),
            ("HEAD /proxy/raw/chunked", 200, "content-length", "", ""),
            ("GET /proxy/raw/204", 204, "etag", "\"n\"", ""),
            ("GET /proxy/raw/304", 304, "etag", "\"m\"", ""),
            ("GET /proxy/raw/empty", 200, "content-length", "0", ""),
            ("GET /proxy/raw/hints", 200, "content-length", "2", "ok"),
        ] {
            wire.send(head(&key, line, &[])).await;
            let answer = wire.next(line.starts_with("HEAD")).await.expect(line);
            assert_eq!((answer.status.as_u16(), answer.header(name), &*answer.text()), (status, value, body), "{line}");
        }
    }
    wire.send(head(&key, "GET /proxy/raw/hints", &["Connection: close"])).await;
    assert_eq!(wire.answer().await.text(), "ok");
    assert!(wire.rest().await.is_empty());
    assert_eq!(upstream.accepted(), 1, "one connection served them all");
    // A refusal to HEAD has no body either.
    let mut wire = k.wire().await;
    wire.send(head(&key, "HEAD /proxy/none/x", &[])).await;
    let refused = wire.next(true).await.unwrap();
    assert_eq!((refused.status, refused.header("keyward-error")), (StatusCode::NOT_FOUND, "target_not_found"));
    k.stop().await;
}

// ── Framing ─────────────────────────────────────────────────────────────────────────────────────────────────────

/// Everything that is answered on a connection, as statuses.
async fn statuses(wire: &mut Wire) -> Vec<u16> {
    let mut all = Vec::new();
    while let Some(answer) = wire.next(false).await {
        if answer.status != 200 {
            answer.refusal();
        }
        all.push(answer.status.as_u16());
    }
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heads_that_two_servers_could_read_in_two_ways_are_refused() {
    let (k, strict, key) = strict().await;
    let secret = &key.secret;
    let auth = format!("Authorization: Bearer {secret}");
    let start = format!("Host: keyward.test\r\n{auth}\r\nConnection: close\r\n");
    let post = |lines: &str, body: &str| format!("POST /proxy/raw/x HTTP/1.1\r\n{start}{lines}\r\n{body}");
    let chunks = "5\r\nhello\r\n0\r\n\r\n";
    let smuggled = format!("GET /proxy/raw/smuggled HTTP/1.1\r\nHost: a\r\n{auth}\r\n\r\n");
    let cl_te = format!("0\r\n\r\n{smuggled}");
    // (what, bytes, what is answered, requests upstream)
    let table: Vec<(&str, String, Vec<u16>, usize)> = vec![
        (
            "CL.TE",
            post(&format!("Content-Length: {}\r\nTransfer-Encoding: chunked\r\n", cl_te.len()), &cl_te),
            vec![400],
            0,
        ),
        (
            "TE.CL",
            post("Transfer-Encoding: chunked\r\nContent-Length: 4\r\n", &format!("5\r\nhello\r\n0\r\n\r\n{smuggled}")),
            vec![400],
            0,
        ),
        ("two lengths, alike", post("Content-Length: 5\r\nContent-Length: 5\r\n", "hello"), vec![400], 0),
        ("two lengths", post("Content-Length: 5\r\nContent-Length: 6\r\n", "hello"), vec![400], 0),
        ("a list of lengths", post("Content-Length: 5, 5\r\n", "hello"), vec![400], 0),
        ("+5", post("Content-Length: +5\r\n", "hello"), vec![400], 0),
        ("-5", post("Content-Length: -5\r\n", "hello"), vec![400], 0),
        ("0x5", post("Content-Length: 0x5\r\n", "hello"), vec![400], 0),
        ("5 5", post("Content-Length: 5 5\r\n", "hello"), vec![400], 0),
        ("no length", post("Content-Length:\r\n", "hello"), vec![400], 0),
        ("5.0", post("Content-Length: 5.0\r\n", "hello"), vec![400], 0),
        ("a huge length", post("Content-Length: 18446744073709551621\r\n", "hello"), vec![400], 0),
        ("two codings", post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", chunks), vec![400], 0),
        ("chunked twice", post("Transfer-Encoding: chunked, chunked\r\n", chunks), vec![400], 0),
        ("gzip", post("Transfer-Encoding: gzip, chunked\r\n", chunks), vec![501], 0),
        ("identity first", post("Transfer-Encoding: identity, chunked\r\n", chunks), vec![400], 0),
        ("chunked first", post("Transfer-Encoding: chunked, identity\r\n", chunks), vec![400], 0),
        ("identity", post("Transfer-Encoding: identity\r\n", chunks), vec![400], 0),
        ("xchunked", post("Transfer-Encoding: xchunked\r\n", chunks), vec![400], 0),
        ("quoted", post("Transfer-Encoding: \"chunked\"\r\n", chunks), vec![400], 0),
        ("a vertical tab", post("Transfer-Encoding: \x0bchunked\r\n", chunks), vec![400], 0),
        ("a space before the colon", post("Transfer-Encoding : chunked\r\n", chunks), vec![400], 0),
        ("a folded coding", post("Transfer-Encoding:\r\n chunked\r\n", chunks), vec![400], 0),
        (
            "HTTP/1.0 with chunks",
            format!("POST /proxy/raw/x HTTP/1.0\r\n{start}Transfer-Encoding: chunked\r\n\r\n{chunks}"),
            vec![400],
            0,
        ),
        ("two hosts", post("Host: keyward.test\r\nContent-Length: 0\r\n", ""), vec![400], 0),
        ("no host", format!("GET /proxy/raw/x HTTP/1.1\r\n{auth}\r\nConnection: close\r\n\r\n"), vec![400], 0),
        ("no host, HTTP/1.0", format!("GET /proxy/raw/x HTTP/1.0\r\n{auth}\r\n\r\n"), vec![400], 0),
        ("a whole URL", format!("GET http://keyward.test/proxy/raw/x HTTP/1.1\r\n{start}\r\n"), vec![400], 0),
        (
            "a whole URL elsewhere",
            format!("GET https://evil.example.org/proxy/raw/x HTTP/1.1\r\n{start}\r\n"),
            vec![400],
            0,
        ),
        ("an authority", format!("GET keyward.test:80 HTTP/1.1\r\n{start}\r\n"), vec![400], 0),
        ("an asterisk", format!("OPTIONS * HTTP/1.1\r\n{start}\r\n"), vec![400], 0),
        ("CONNECT", format!("CONNECT {} HTTP/1.1\r\n{start}\r\n", strict.upstream.address), vec![405], 0),
        ("CONNECT to the target", format!("CONNECT /proxy/raw/x HTTP/1.1\r\n{start}\r\n"), vec![405], 0),
        ("TRACE", format!("TRACE /proxy/raw/x HTTP/1.1\r\n{start}\r\n"), vec![405], 0),
        ("a folded line", post("X-Folded: a\r\n b\r\nContent-Length: 0\r\n", ""), vec![400], 0),
        ("a folded line with a tab", post("X-Folded: a\r\n\tTransfer-Encoding: chunked\r\n", ""), vec![400], 0),
        ("a first line that is folded", format!("GET /proxy/raw/x HTTP/1.1\r\n Host: a\r\n{start}\r\n"), vec![400], 0),
        ("a carriage return alone", post("X-Odd: a\rTransfer-Encoding: chunked\r\n", ""), vec![400], 0),
        ("a zero byte", post("X-Odd: a\0b\r\n", ""), vec![400], 0),
        ("no colon", post("X-Odd\r\n", ""), vec![400], 0),
        ("no name", post(": x\r\n", ""), vec![400], 0),
        ("a space in a name", post("X Odd: x\r\n", ""), vec![400], 0),
        ("two spaces", format!("GET  /proxy/raw/x HTTP/1.1\r\n{start}\r\n"), vec![400], 0),
        ("a tab", format!("GET\t/proxy/raw/x HTTP/1.1\r\n{start}\r\n"), vec![400], 0),
        ("small letters", format!("GET /proxy/raw/x http/1.1\r\n{start}\r\n"), vec![400], 0),
        ("no version", format!("GET /proxy/raw/x\r\n{start}\r\n"), vec![400], 0),
        ("HTTP/1.11", format!("GET /proxy/raw/x HTTP/1.11\r\n{start}\r\n"), vec![400], 0),
        ("an odd method", format!("GE(T /proxy/raw/x HTTP/1.1\r\n{start}\r\n"), vec![400], 0),
        ("a fragment", format!("GET /proxy/raw/x#y HTTP/1.1\r\n{start}\r\n"), vec![400], 0),
        ("HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(), vec![], 0),
        ("TLS", "\x16\x03\x01\x02\0\x01\0\x01\r\n\r\n".to_owned(), vec![400], 0),
        // Odd, but one reading only.
        ("empty lines first", format!("\r\n\r\nGET /proxy/raw/x HTTP/1.1\r\n{start}\r\n"), vec![200], 1),
        ("an offer of h2c", post("Upgrade: h2c\r\nHTTP2-Settings: AA\r\nContent-Length: 0\r\n", ""), vec![200], 1),
        (
            "line feeds alone",
            format!("GET /proxy/raw/x HTTP/1.1\nHost: a\n{auth}\nConnection: close\n\n"),
            vec![400],
            0,
        ),
        (
            "a twin",
            post("Content_Length: 99\r\nTransfer_Encoding: chunked\r\nContent-Length: 5\r\n", "hello"),
            vec![400],
            0,
        ),
    ];
    for (what, bytes, answers, requests) in table {
        let before = strict.seen().len();
        let mut wire = k.wire().await;
        wire.send(&bytes).await;
        assert_eq!(statuses(&mut wire).await, answers, "{what}");
        let seen = strict.seen().split_off(before);
        assert_eq!(seen.len(), requests, "{what}: {seen:?}");
        assert!(seen.iter().all(|seen| seen.fault.is_none()), "{what}: {seen:?}");
        // Whoever comes next gets their own answer.
        let neighbour = k.agent(&key, "GET", "/proxy/raw/neighbour").await;
        assert_eq!(neighbour.text(), format!("answer {}", before + requests + 1), "{what}");
    }
    let arrived = strict.upstream.seen();
    assert!(!arrived.contains("smuggled") && !arrived.contains("kw_"));
    k.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chunks_are_read_strictly_and_written_anew() {
    let (k, strict, key) = strict().await;
    let start = head(&key, "POST /proxy/raw/x", &["Transfer-Encoding: chunked", "Connection: close"]);
    for (what, body, read) in [
        ("plain", "5\r\nhello\r\n0\r\n\r\n", "hello"),
        ("pieces", "2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n", "hello"),
        ("capitals and zeros", "00A\r\n0123456789\r\n0\r\n\r\n", "0123456789"),
        ("an extension", "5;a=b;c=\"d\"\r\nhello\r\n0;x\r\n\r\n", "hello"),
        ("a trailer", "5\r\nhello\r\n0\r\nX-Trailer: 1\r\nHost: evil\r\nAuthorization: x\r\n\r\n", "hello"),
        ("nothing", "0\r\n\r\n", ""),
    ] {
        let before = strict.seen().len();
        let answer = k.ask([&start[..], body.as_bytes()].concat()).await;
        assert_eq!(answer.status, 200, "{what}: {}", answer.text());
        let seen = strict.seen().split_off(before);
        assert_eq!((seen.len(), seen[0].fault), (1, None), "{what}: {seen:?}");
        assert_eq!(String::from_utf8_lossy(&seen[0].body), read, "{what}");
        assert!(!format!("{seen:?}").contains("railer"), "{what}: {seen:?}");
    }
    for (what, body) in [
        ("0x", "0x5\r\nhello\r\n0\r\n\r\n"),
        ("plus", "+5\r\nhello\r\n0\r\n\r\n"),
        ("minus", "-5\r\nhello\r\n0\r\n\r\n"),
        ("no size", "\r\nhello\r\n0\r\n\r\n"),
        ("no hexadecimal", "g\r\nhello\r\n0\r\n\r\n"),
        ("a line feed alone", "5\nhello\r\n0\r\n\r\n"),
        ("a line feed in an extension", "5;a\nb\r\nhello\r\n0\r\n\r\n"),
        ("a size that wraps", "10000000000000005\r\nhello\r\n0\r\n\r\n"),
        ("too long", "5\r\nhello!\r\n0\r\n\r\n"),
        ("too short", "6\r\nhello\r\n0\r\n\r\n"),
        ("no end of line", "5\r\nhello0\r\n\r\n"),
        ("bad later", "5\r\nhello\r\nzz\r\n0\r\n\r\n"),
        ("a bad end", "5\r\nhello\r\n0\r\nno trailer\r\n"),
    ] {
        let before = strict.whole().len();
        let mut wire = k.wire().await;
        wire.send([&start[..], body.as_bytes()].concat()).await;
        // "A bad end" waits for more; the others are over.
        let _ = tokio::io::AsyncWriteExt::shutdown(&mut wire.tcp).await;
        let answers = statuses(&mut wire).await;
        assert!(answers.is_empty() || answers == [400], "{what}: {answers:?}");
        assert_eq!(strict.whole().len(), before, "{what}: no whole request was made of it");
    }
    assert!(k.agent(&key, "GET", "/proxy/raw/x").await.text().starts_with("answer "));
    k.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pipelined_requests_are_answered_in_turn_and_a_bad_one_ends_it() {
    let (k, strict, key) = strict().await;
    let get = |name: &str| head(&key, &format!("GET /proxy/raw/{name}"), &[]);
    let last = head(&key, "GET /proxy/raw/last", &["Connection: close"]);
    let with = |name: &str, lines: &[&str], body: &str| {
        [&head(&key, &format!("POST /proxy/raw/{name}"), lines)[..], body.as_bytes()].concat()
    };
    let fine = with("fine", &["Content-Length: 5"], "hello");
    let chunked = with("chunked", &["Transfer-Encoding: chunked"], "5\r\nhello\r\n0\r\n\r\n");
    let folded = with("bad", &["X-Odd: a", " b", "Content-Length: 0"], "");
    let lengths = with("bad", &["Content-Length: 5", "Content-Length: 6"], "hello");
    let coding = with("bad", &["Transfer-Encoding: gzip"], "hello");
    let hosts = with("bad", &["Host: evil", "Content-Length: 0"], "");
    let path = head(&key, "GET /proxy/raw/../bad", &[]);
    /// What it is, the requests, what is answered, which of them arrive.
    type Row = (&'static str, Vec<Vec<u8>>, Vec<u16>, Vec<&'static str>);
    let table: Vec<Row> = vec![
        ("three", vec![get("a"), get("b"), last.clone()], vec![200, 200, 200], vec!["a", "b", "last"]),
        (
            "with bodies",
            vec![fine.clone(), chunked.clone(), last.clone()],
            vec![200, 200, 200],
            vec!["fine", "chunked", "last"],
        ),
        ("a refusal between", vec![get("a"), path, last.clone()], vec![200, 400], vec!["a"]),
        ("folded", vec![get("a"), folded, get("smuggled")], vec![200, 400], vec!["a"]),
        ("lengths", vec![get("a"), lengths.clone(), get("smuggled")], vec![200, 400], vec!["a"]),
        ("lengths after a body", vec![fine.clone(), lengths, get("smuggled")], vec![200, 400], vec!["fine"]),
        ("a coding", vec![chunked, coding, get("smuggled")], vec![200, 400], vec!["chunked"]),
        ("two hosts", vec![get("a"), hosts, last.clone()], vec![200, 400], vec!["a"]),
    ];
    for (what, requests, answers, names) in table {
        let before = strict.seen().len();
        let mut wire = k.wire().await;
        wire.send(requests.concat()).await;
        assert_eq!(statuses(&mut wire).await, answers, "{what}");
        let seen = strict.seen().split_off(before);
        let got: Vec<&str> = seen.iter().map(|seen| seen.line.rsplit('/').next().unwrap()).collect();
        assert_eq!(got, names, "{what}");
        assert!(seen.iter().all(|seen| seen.fault.is_none()), "{what}: {seen:?}");
    }

    // A second head with length and chunks in the segment of the first: refused as it is on its own, and what hides behind
    // it is never a request.
    for lines in
        [["Content-Length: 5", "Transfer-Encoding: chunked"], ["Transfer-Encoding: chunked", "Content-Length: 5"]]
    {
        for first in [get("a"), fine.clone()] {
            let before = strict.seen().len();
            let bad = with("both", &lines, "0\r\n\r\n");
            let mut wire = k.wire().await;
            wire.send([&first[..], &bad, &get("smuggled")].concat()).await;
            let answers = statuses(&mut wire).await;
            assert_eq!(answers, [200, 400], "{lines:?}");
            let seen = strict.seen().split_off(before);
            assert_eq!(seen.len(), 1, "{lines:?}: {seen:?}");
            assert!(seen.iter().all(|seen| seen.fault.is_none() && !seen.line.contains("smuggled")), "{seen:?}");
        }
    }
    assert!(!strict.upstream.seen().contains("smuggled"));
    k.stop().await;
}

// ── Connections upstream ────────────────────────────────────────────────────────────────────────────────────────

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_poisoned_connection_serves_nobody_else() {
    let k = Keyward::start().await;
    // Whoever asks for /poison gets more than an answer.
    let upstream = Upstream::start(|mut line| async move {
        loop {
            let head = String::from_utf8(line.head().await).unwrap();
            let sent = match head.split(' ').nth(1) {
                Some("/poison") => line.say(format!("{OK}HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison")).await,
                Some("/short") => {
                    line.say("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc").await;
                    return;
                }
                Some(_) => line.say(OK).await,
                None => return,
            };
            if !sent {
                return;
            }
        }
    })
    .await;
    let key = k.with_upstream(&upstream).await;
    let other = k.new_key().await;
    k.grant(&other, "raw", "write").await;
    for round in 0..20 {
        for path in ["/proxy/raw/poison", "/proxy/raw/short"] {
            let mut wire = k.wire().await;
            wire.send(head(&key, &format!("GET {path}"), &["Connection: close"])).await;
            wire.rest().await;
        }
        for _ in 0..5 {
            assert_eq!(k.agent(&other, "GET", "/proxy/raw/clean").await.text(), "ok", "round {round}");
        }
    }
    k.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_was_written_is_not_sent_again() {
    let k = Keyward::start().await;
    // Answers the first request of a connection, then ends with the second in its hand.
    let upstream = Upstream::start(|mut line| async move {
        line.head().await;
        line.say(OK).await;
        line.head().await;
        let _ = line.tcp.set_zero_linger();
    })
    .await;
    let key = k.with_upstream(&upstream).await;
    for method in ["POST", "GET", "DELETE"] {
        let before = upstream.requests();
        assert_eq!(k.agent(&key, method, "/proxy/raw/one").await.status, 200);
        let answer = k.agent(&key, method, "/proxy/raw/two").await;
        assert_eq!((answer.status.as_u16(), answer.refusal().as_str()), (502, "upstream_unreachable"), "{method}");
        assert_eq!(upstream.requests() - before, 2, "{method}");
    }
    k.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_may_set_cookies_when_it_is_allowed_to_and_never_gets_one() {
    let k = Keyward::start().await;
    let upstream =
        Upstream::saying("HTTP/1.1 200 OK\r\nSet-Cookie: a=b\r\nset-cookie: c=d\r\nContent-Length: 2\r\n\r\nok").await;
    let key = k.with_upstream(&upstream).await;
    let none: [&str; 0] = [];
    for (allowed, expected) in [(None, &none[..]), (Some(true), &["a=b", "c=d"]), (Some(false), &none)] {
        if let Some(allowed) = allowed {
            let changed = k.api("PATCH", "/targets/raw", Some(json!({"set_cookie": allowed}))).await;
            assert_eq!(changed["set_cookie"], allowed);
        }
        // On the fast path, and as hyper reads it.
        for odd in ["X-Odd: 1", "X_Odd: 1"] {
            let mut wire = k.wire().await;
            wire.send(head(&key, "GET /proxy/raw/x", &["Connection: close", "Cookie: e=f", odd])).await;
            let answer = wire.answer().await;
            let set: Vec<_> =
                answer.headers.get_all("set-cookie").iter().map(|value| value.to_str().unwrap()).collect();
            assert_eq!((answer.status.as_u16(), &set[..]), (200, expected), "{allowed:?} {odd}");
        }
    }
    assert!(!upstream.seen().to_lowercase().contains("e=f"));
    k.stop().await;
}

/// A body that ends with its connection ends whole only when the connection is closed in order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_ends_with_a_reset_is_cut() {
    let k = Keyward::start().await;
    let go = Arc::new(Notify::new());
    let waits = Arc::clone(&go);
    let upstream = Upstream::start(move |mut line| {
        let waits = Arc::clone(&waits);
        async move {
            let resets = holds(&line.head().await, b"/reset");
            line.say("HTTP/1.1 200 OK\r\n\r\nhello").await;
            waits.notified().await;
            if resets {
                let _ = line.tcp.set_zero_linger();
            }
        }
    })
    .await;
    let key = k.with_upstream(&upstream).await;
    // On the fast path, and as hyper reads it.
    for lines in [&["Connection: close"][..], &["Connection: close", "X_Odd: 1"]] {
        for (path, end) in [("whole", &b"\r\n0\r\n\r\n"[..]), ("reset", b"\r\n")] {
            let mut wire = k.wire().await;
            wire.send(head(&key, &format!("GET /proxy/raw/{path}"), lines)).await;
            wire.until(b"5\r\nhello").await;
            go.notify_one();
            assert_eq!(wire.rest().await, end, "{path} {lines:?}");
        }
    }
    k.stop().await;
}
