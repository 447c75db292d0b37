//! What hostile upstreams answer.

use std::sync::{Arc, Mutex};

use serde_json::json;

use super::kit::CANARY;
use crate::harness::{Key, Keyward};
use crate::wire::{Upstream, Wire, eventually, head, holds};

/// What the upstream says to `/evil`; to everything else it says `fine`.
#[derive(Clone, Default)]
struct Script {
    says: Vec<u8>,
    closes: bool,
}

/// A gateway in front of one upstream, and two agents: one who asks for trouble, and a neighbour.
struct Field {
    k: Keyward,
    upstream: Upstream,
    script: Arc<Mutex<Script>>,
    key: Key,
    neighbour: Key,
    /// What the requests have beside the key: nothing, and they take the fast path; a name that is not plain, and they don't.
    lines: &'static [&'static str],
}

impl Field {
    /// One for each way that a request can take.
    async fn both() -> [Self; 2] {
        [Self::new(&[]).await, Self::new(&["X_Odd: 1"]).await]
    }

    async fn new(lines: &'static [&'static str]) -> Self {
        let k = Keyward::start().await;
        let script: Arc<Mutex<Script>> = Arc::default();
        let says = Arc::clone(&script);
        let upstream = Upstream::start(move |mut line| {
            let says = Arc::clone(&says);
            async move {
                loop {
                    let head = line.head().await;
                    if head.is_empty() {
                        return;
                    }
                    let evil = holds(&head, b"/evil");
                    let Script { says, closes } = says.lock().unwrap().clone();
                    let fine = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfine".to_vec();
                    if !line.say(if evil { says } else { fine }).await || (evil && closes) {
                        return;
                    }
                }
            }
        })
        .await;
        let base = format!("{}/v1", upstream.url());
        k.target("raw", &base, json!({"kind": "bearer", "token": CANARY})).await;
        let (key, neighbour) = (k.new_key().await, k.new_key().await);
        for key in [&key, &neighbour] {
            k.grant(key, "raw", "write").await;
        }
        Self { k, upstream, script, key, neighbour, lines }
    }

    /// Asks for trouble on a connection of its own.
    async fn ask(&self, method: &str, says: &[u8], closes: bool) -> Wire {
        *self.script.lock().unwrap() = Script { says: says.to_vec(), closes };
        let mut wire = self.k.wire().await;
        let lines = [&["Connection: close"][..], self.lines].concat();
        wire.send(head(&self.key, &format!("{method} /proxy/raw/evil"), &lines)).await;
        wire
    }

    async fn clean(&self, name: &str) {
        let mut wire = self.k.wire().await;
        let lines = [&["Connection: close"][..], self.lines].concat();
        wire.send(head(&self.neighbour, "GET /proxy/raw/clean", &lines)).await;
        let answer = wire.answer().await;
        assert_eq!((answer.status.as_u16(), &*answer.text()), (200, "fine"), "{name}");
    }

    /// The neighbour gets what they asked for; on a connection that was there before, or not.
    async fn neighbour(&self, name: &str, reused: bool) {
        let before = self.upstream.accepted();
        for _ in 0..2 {
            self.clean(name).await;
        }
        assert_eq!(self.upstream.accepted() - before, usize::from(!reused), "{name}: connections");
    }
}

const OK: &str = "HTTP/1.1 200 OK\r\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_are_none() {
    for field in Field::both().await {
        let body = |lines: &str| format!("{OK}{lines}\r\n5\r\nhello\r\n0\r\n\r\n");
        let long = format!("{OK}X: {}\r\n\r\n", "a".repeat(400_000));
        let many = format!("{OK}{}Content-Length: 0\r\n\r\n", "X: a\r\n".repeat(3000));
        let table: Vec<(&str, String)> = vec![
            ("no HTTP", "nonsense\r\n\r\n".into()),
            ("SMTP", "220 mail.example.com ESMTP\r\n".into()),
            ("TLS", "\x15\x03\x03\0\x02\x02\x16\r\n\r\n".into()),
            ("a status of two digits", "HTTP/1.1 20 OK\r\n\r\n".into()),
            ("a status of four digits", "HTTP/1.1 2000 OK\r\n\r\n".into()),
            ("a status of letters", "HTTP/1.1 abc OK\r\n\r\n".into()),
            ("a status below 100", "HTTP/1.1 099 OK\r\n\r\n".into()),
            ("a negative status", "HTTP/1.1 -20 OK\r\n\r\n".into()),
            ("HTTP/2.0", "HTTP/2.0 200 OK\r\n\r\n".into()),
            ("HTTP/0.9", "HTTP/0.9 200 OK\r\n\r\n".into()),
            ("small letters", "http/1.1 200 OK\r\n\r\n".into()),
            ("ICY", "ICY 200 OK\r\n\r\n".into()),
            ("a space before", " HTTP/1.1 200 OK\r\n\r\n".into()),
            ("a control byte in the reason", "HTTP/1.1 200 O\x01K\r\n\r\n".into()),
            ("a carriage return in the reason", "HTTP/1.1 200 O\rK\r\n\r\n".into()),
            ("no colon", body("nonsense\r\n")),
            ("no name", body(": a\r\n")),
            ("a space before the colon", body("X : a\r\n")),
            ("a space in a name", body("X Y: a\r\n")),
            ("a fold", body("X: a\r\n b\r\n")),
            ("a folded coding", body("Transfer-Encoding:\r\n chunked\r\n")),
            ("a zero byte", body("X: a\0b\r\n")),
            ("a control byte", body("X: a\x07b\r\n")),
            ("a carriage return alone", body("X: a\rSet-Cookie: b=c\r\n")),
            ("length and chunks", body("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n")),
            ("chunks and length", body("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n")),
            ("lengths alike", body("Content-Length: 5\r\nContent-Length: 5\r\n")),
            ("lengths that differ", body("Content-Length: 5\r\nContent-Length: 6\r\n")),
            ("a list of lengths", body("Content-Length: 5, 5\r\n")),
            ("+5", body("Content-Length: +5\r\n")),
            ("-5", body("Content-Length: -5\r\n")),
            ("0x5", body("Content-Length: 0x5\r\n")),
            ("no length", body("Content-Length:\r\n")),
            ("a length that overflows", body("Content-Length: 18446744073709551621\r\n")),
            ("gzip, chunked", body("Transfer-Encoding: gzip, chunked\r\n")),
            ("gzip", body("Transfer-Encoding: gzip\r\n")),
            ("identity", body("Transfer-Encoding: identity\r\n")),
            ("chunked twice", body("Transfer-Encoding: chunked, chunked\r\n")),
            ("two codings", body("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n")),
            ("chunked and identity", body("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n")),
            ("a coding of nothing", body("Transfer-Encoding:\r\n")),
            ("chunks over HTTP/1.0", body("Transfer-Encoding: chunked\r\n").replace("HTTP/1.1", "HTTP/1.0")),
            (
                "another protocol",
                "HTTP/1.1 101 Switching Protocols\r\nUpgrade: a\r\nConnection: upgrade\r\n\r\nraw".into(),
            ),
            ("another protocol without a name", "HTTP/1.1 101 X\r\n\r\n".into()),
            ("a head that is too long", long),
            ("a head of too many lines", many),
        ];
        for (name, says) in &table {
            let answer = field.ask("GET", says.as_bytes(), false).await.answer().await;
            let found = (answer.status.as_u16(), answer.refusal());
            assert_eq!(found, (502, "upstream_invalid".to_owned()), "{name}");
            assert!(!answer.text().contains("hello") && !answer.text().contains(CANARY), "{name}");
            field.neighbour(name, false).await;
        }
        assert_eq!(table.len(), 46);
        field.k.stop().await;
    }
}

/// Extra bytes, bodies where none belong, and ends too soon: the agent gets what is certain, the connection is not used again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_go_on() {
    for field in Field::both().await {
        let poison = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison";
        let with = |head: &str, rest: &str| format!("HTTP/1.1 {head}\r\n\r\n{rest}");
        /// Name, method, what is said, status, body.
        type Row = (&'static str, &'static str, String, u16, &'static str);
        let table: Vec<Row> = vec![
            ("a second answer", "GET", with("200 OK\r\nContent-Length: 2", &format!("ok{poison}")), 200, "ok"),
            (
                "a second answer behind chunks",
                "GET",
                with("200 OK\r\nTransfer-Encoding: chunked", &format!("2\r\nok\r\n0\r\n\r\n{poison}")),
                200,
                "ok",
            ),
            ("one byte more", "GET", with("200 OK\r\nContent-Length: 2", "ok!"), 200, "ok"),
            ("a line end more", "GET", with("200 OK\r\nContent-Length: 2", "ok\r\n"), 200, "ok"),
            ("204 with a body", "GET", with("204 No Content\r\nContent-Length: 6", "poison"), 204, ""),
            (
                "204 with chunks",
                "GET",
                with("204 No Content\r\nTransfer-Encoding: chunked", "6\r\npoison\r\n0\r\n\r\n"),
                204,
                "",
            ),
            ("204 and a second answer", "GET", with("204 No Content", poison), 204, ""),
            ("304 with a body", "GET", with("304 Not Modified\r\nContent-Length: 6", "poison"), 304, ""),
            ("304 and a second answer", "GET", with("304 Not Modified", poison), 304, ""),
            ("HEAD with a body", "HEAD", with("200 OK\r\nContent-Length: 6", "poison"), 200, ""),
            (
                "HEAD with chunks",
                "HEAD",
                with("200 OK\r\nTransfer-Encoding: chunked", "6\r\npoison\r\n0\r\n\r\n"),
                200,
                "",
            ),
        ];
        for (name, method, says, status, body) in &table {
            let mut wire = field.ask(method, says.as_bytes(), false).await;
            let answer = wire.next(*method == "HEAD").await.unwrap_or_else(|| panic!("{name}: no answer"));
            assert_eq!((answer.status.as_u16(), &*answer.text()), (*status, *body), "{name}");
            assert!(wire.rest().await.is_empty(), "{name}");
            // One that is poisoned may only be found to be so when it is looked at.
            for _ in 0..3 {
                field.clean(name).await;
            }
        }
        let bad = [
            "zz\r\nok\r\n0\r\n\r\n",
            "2\nok\r\n0\r\n\r\n",
            "2\r\nokay\r\n0\r\n\r\n",
            "2\r\nok\r\n-1\r\n\r\n",
            "2\r\nok\r\n0\r\nno trailer\r\n\r\n",
            "10000000000000002\r\nok\r\n0\r\n\r\n",
            "2\r\nok0\r\n\r\n",
            "2;a\nb\r\nok\r\n0\r\n\r\n",
        ];
        for chunks in bad {
            let says = with("200 OK\r\nTransfer-Encoding: chunked", chunks);
            let raw = field.ask("GET", says.as_bytes(), false).await.rest().await;
            assert!(!raw.ends_with(b"\r\n0\r\n\r\n"), "{chunks:?}: {}", String::from_utf8_lossy(&raw));
            field.neighbour(chunks, false).await;
        }
        // Whole answers, for comparison: the connection serves again.
        for says in [
            with("200 OK\r\nContent-Length: 2", "ok"),
            with("200 OK\r\nTransfer-Encoding: chunked", "2\r\nok\r\n0\r\nX: y\r\n\r\n"),
            with("204 No Content", ""),
        ] {
            field.neighbour("before", true).await;
            let _ = field.ask("GET", says.as_bytes(), false).await.next(false).await.unwrap();
            field.neighbour(&says, true).await;
        }
        field.k.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_ends_at_any_byte() {
    for field in Field::both().await {
        for (head, body) in [
            ("Transfer-Encoding: chunked\r\n\r\n", "3\r\none\r\n4;x=y\r\ntwo!\r\n0\r\nX: y\r\n\r\n"),
            ("Content-Length: 7\r\n\r\n", "onetwo!"),
        ] {
            let says = format!("HTTP/1.1 200 OK\r\nX-Kept: 1\r\n{head}{body}");
            let begun = says.len() - body.len();
            for end in 0..=says.len() {
                let mut wire = field.ask("GET", &says.as_bytes()[..end], true).await;
                let answer = wire.next(false).await;
                match (end, answer) {
                    (_, Some(answer)) if end < begun => {
                        assert_eq!(
                            (answer.status.as_u16(), &*answer.refusal()),
                            (502, "upstream_unreachable"),
                            "{end}"
                        );
                    }
                    (_, Some(answer)) => assert_eq!((end, &*answer.text()), (says.len(), "onetwo!")),
                    (_, None) => assert!(end >= begun && end < says.len(), "{end}"),
                }
            }
        }
        field.neighbour("in the end", false).await;
        field.k.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upstream_that_never_comes_to_its_answer_is_given_up_on() {
    let k = Keyward::configured("[proxy.timeouts]\nidle = \"1s\"\nhead = \"1s\"").await;
    for piece in [
        "HTTP/1.1 103 Early Hints\r\nLink: </a>; rel=preload\r\n\r\n",
        "HTTP/1.1 100 Continue\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX: ",
        "\r\n",
    ] {
        let upstream = Upstream::start(move |mut line| async move {
            line.head().await;
            while line.say(piece).await {
                tokio::task::yield_now().await;
            }
        })
        .await;
        let slug = format!("endless-{}", upstream.address.port());
        k.target(&slug, &upstream.url(), json!({"kind": "bearer", "token": CANARY})).await;
        let key = k.new_key().await;
        k.grant(&key, &slug, "read").await;
        let answer = k.agent(&key, "GET", &format!("/proxy/{slug}/x")).await;
        let code = answer.refusal();
        assert!(matches!(&*code, "upstream_timeout" | "upstream_invalid"), "{piece:?}: {code}");
        eventually("the connection is closed", || upstream.ended() == 1).await;
        assert_eq!(upstream.requests(), 1, "{piece:?}");
    }
    k.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headers_that_act_on_our_origin() {
    for field in Field::both().await {
        let ours = [
            ("x-content-type-options", "nosniff"),
            ("content-security-policy", "sandbox; default-src 'none'; frame-ancestors 'none'"),
        ];
        let gone = [
            "Set-Cookie: a=b",
            "Set-Cookie2: a=b",
            "Alt-Svc: h3=\":443\"",
            "Strict-Transport-Security: max-age=1",
            "Clear-Site-Data: \"*\"",
            "Access-Control-Allow-Origin: *",
            "Access-Control-Allow-Private-Network: true",
            "NEL: {}",
            "Report-To: {}",
            "Reporting-Endpoints: a=\"/\"",
            "Expect-CT: max-age=1",
            "Public-Key-Pins: max-age=1",
            "Public-Key-Pins-Report-Only: max-age=1",
            "Service-Worker-Allowed: /",
            "Keyward-Error: invalid_key",
            "Keyward-Request-Id: req_forged",
            "Keyward-Anything: 1",
            "Connection: x-hop\r\nX-Hop: 1",
            "Keep-Alive: timeout=9",
            "Proxy-Authenticate: Basic",
            "Proxy-Connection: keep-alive",
            "Trailer: X",
            "Upgrade: h2c",
            "X-Accel-Redirect: /a",
            "X-Sendfile: /a",
        ];
        for line in gone {
            let says = format!("{OK}{line}\r\nX-Kept: 1\r\nContent-Length: 2\r\n\r\nok");
            let answer = field.ask("GET", says.as_bytes(), false).await.answer().await;
            assert_eq!((answer.status.as_u16(), &*answer.text(), answer.header("x-kept")), (200, "ok", "1"), "{line}");
            let mut names: Vec<_> = answer.headers.keys().map(|name| name.as_str()).collect();
            names.sort_unstable();
            let expected = [
                "connection",
                "content-length",
                "content-security-policy",
                "date",
                "keyward-request-id",
                "x-content-type-options",
                "x-kept",
            ];
            assert_eq!(names, expected, "{line}");
            assert_eq!(answer.header("connection"), "close");
            assert!(answer.header("keyward-request-id") != "req_forged");
            assert!(ours.iter().all(|(name, value)| answer.header(name) == *value), "{line}: {:?}", answer.headers);
        }
        // Policies hold beside each other; of what is said about sniffing, ours counts. Nothing is added where nothing is shown.
        let says = format!(
            "{OK}Content-Security-Policy: default-src *\r\nX-Content-Type-Options: x\r\nContent-Length: 0\r\n\r\n"
        );
        let answer = field.ask("GET", says.as_bytes(), false).await.answer().await;
        let policies: Vec<_> = answer.headers.get_all("content-security-policy").iter().collect();
        assert_eq!(policies, ["default-src *", ours[1].1]);
        assert_eq!(answer.headers.get_all("x-content-type-options").iter().collect::<Vec<_>>(), ["nosniff"]);
        let answer = field
            .ask("GET", b"HTTP/1.1 304 Not Modified\r\nETag: \"a\"\r\n\r\n", false)
            .await
            .next(false)
            .await
            .unwrap();
        assert!(ours.iter().all(|(name, _)| answer.header(name).is_empty()), "{:?}", answer.headers);
        field.k.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn locations() {
    for field in Field::both().await {
        let (host, port) = (field.upstream.address, field.upstream.address.port());
        let inside = [
            (format!("http://{host}/v1/a?b=c#d"), "/proxy/raw/a?b=c#d"),
            (format!("HTTP://{host}/v1/a"), "/proxy/raw/a"),
            (format!("//{host}/v1/a"), "/proxy/raw/a"),
            (format!("http://{host}/v1"), "/proxy/raw"),
            (format!("http://{host}/v1?a"), "/proxy/raw?a"),
            ("/v1/a".to_owned(), "/proxy/raw/a"),
            ("/v1/a%2Fb".to_owned(), "/proxy/raw/a%2Fb"),
        ];
        let elsewhere = [
            format!("http://{host}/v10/a"),
            format!("http://{host}/v1x"),
            format!("http://{host}/V1/a"),
            format!("http://{host}/"),
            format!("http://{host}"),
            format!("https://{host}/v1/a"),
            format!("http://127.0.0.1:{}/v1/a", port ^ 1),
            format!("http://127.0.0.1:0{port}/v1/a"),
            format!("http://127.0.0.1:+{port}/v1/a"),
            "http://evil.example.org/v1/a".to_owned(),
            format!("http://{host}.evil.example.org/v1/a"),
            format!("http://{host}@evil.example.org/v1/a"),
            format!("http://user@{host}/v1/a"),
            format!("http://user:{port}@127.0.0.1/v1/a"),
            "//evil.example.org/v1/a".to_owned(),
            "///v1/a".to_owned(),
            format!("http:///{host}/v1/a"),
            "/v1/../admin".to_owned(),
            "/v1/%2e%2e/admin".to_owned(),
            "/v1/..;/admin".to_owned(),
            "/v1//evil.example.org".to_owned(),
            "/v1/\\evil.example.org".to_owned(),
            "/\\evil.example.org/v1/a".to_owned(),
            format!("\\\\{host}/v1/a"),
            format!("http:\\\\{host}/v1/a"),
            "/v10/a".to_owned(),
            "/v1%2fa".to_owned(),
            "v1/a".to_owned(),
            "../v1/a".to_owned(),
            "?a=b".to_owned(),
            "#a".to_owned(),
            "javascript:alert(1)".to_owned(),
            "data:text/html,x".to_owned(),
            "/v1/m\u{fc}".to_owned(),
            String::new(),
        ];
        let same = elsewhere.iter().map(|location| (location.clone(), location.as_str()));
        for (location, expected) in inside.into_iter().chain(same) {
            let says = format!("HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n");
            let mut wire = field.ask("GET", says.as_bytes(), false).await;
            let raw = String::from_utf8(wire.rest().await).unwrap();
            assert!(raw.contains(&format!("\r\nlocation: {expected}\r\n")), "{location}: {raw}");
        }
        field.k.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_credential_does_not_come_back_in_a_head() {
    for field in Field::both().await {
        let stars = "*".repeat(CANARY.len());
        let host = field.upstream.address;
        for (line, expected) in [
            (format!("X-Echo: Bearer {CANARY}"), format!("x-echo: Bearer {stars}")),
            (format!("X-Echo: {CANARY}{CANARY}, a{CANARY}"), format!("x-echo: {stars}{stars}, a{stars}")),
            (
                format!("Location: https://evil.example.org/?t={CANARY}"),
                format!("location: https://evil.example.org/?t={stars}"),
            ),
            (format!("Location: http://{host}/v1/a?t={CANARY}"), format!("location: /proxy/raw/a?t={stars}")),
            (
                format!("WWW-Authenticate: Bearer token=\"{CANARY}\""),
                format!("www-authenticate: Bearer token=\"{stars}\""),
            ),
            (format!("Content-Type: text/{CANARY}"), format!("content-type: text/{stars}")),
        ] {
            for status in ["200 OK", "401 Unauthorized", "302 Found", "500 Oops"] {
                let says = format!("HTTP/1.1 {status}\r\n{line}\r\nContent-Length: 0\r\n\r\n");
                let raw = String::from_utf8(field.ask("GET", says.as_bytes(), false).await.rest().await).unwrap();
                assert!(!raw.contains(CANARY) && raw.contains(&expected), "{line}: {raw}");
            }
        }
        let says = format!("HTTP/1.1 200 Bearer {CANARY}\r\nContent-Length: 0\r\n\r\n");
        let raw = String::from_utf8(field.ask("GET", says.as_bytes(), false).await.rest().await).unwrap();
        assert!(raw.starts_with("HTTP/1.1 200 OK\r\n") && !raw.contains(CANARY), "{raw}");
        field.k.stop().await;
    }
}
