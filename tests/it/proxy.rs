//! `/proxy/{target}/…`, bootstrap, verify, health: who is let in, where requests go, and every refusal there is.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::Full;
use keyward::access::AgentKey;
use keyward::clock::{Clock, Timestamp};
use keyward::sandbox::{Fault, Recorded};
use serde_json::{Value, json};

use crate::harness::{Answer, Backend, Key, Keyward, Settings, World, agent_request, backends, call, slug};
use crate::wire::{Upstream, ask, head, plain};

fn held() -> Clock {
    Clock::held(Timestamp::from_millis(1_795_000_000_000))
}

fn key(secret: &str) -> Key {
    Key { id: String::new(), secret: secret.to_owned() }
}

/// A request with these header lines and no other but `Host`.
fn bare(line: &str, lines: &[&str]) -> Vec<u8> {
    let more: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
    format!("{line} HTTP/1.1\r\nHost: keyward.test\r\n{more}\r\n").into_bytes()
}

fn text(values: Vec<&[u8]>) -> Vec<String> {
    values.into_iter().map(|value| String::from_utf8_lossy(value).into_owned()).collect()
}

fn last(k: &Keyward) -> Recorded {
    k.sandbox().recorded().pop().expect("a request went upstream")
}

// ── The way through ─────────────────────────────────────────────────────────────────────────────────────────────

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_reaches_the_account_with_its_token_and_nothing_else() {
    for backend in backends() {
        let k = Keyward::with(backend, Settings::default()).await;
        let (account, key) = k.connected().await;
        let (mail, calendar) = (slug(&account, "mail"), slug(&account, "calendar"));
        let answer = k.agent(&key, "GET", &format!("/proxy/{mail}/me/messages?$top=2&x=%2F..%2F&y=a+b")).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.json()["value"].as_array().unwrap().len(), 2);
        assert!(answer.header("keyward-request-id").starts_with("req_"));
        assert_eq!(answer.header("keyward-error"), "");

        let sent = last(&k);
        assert_eq!((sent.method.as_str(), &*sent.target), ("GET", "/v1.0/me/messages?$top=2&x=%2F..%2F&y=a+b"));
        assert_eq!(text(sent.header("host")), [k.sandbox().address().to_string()]);
        let credential = text(sent.header("authorization"));
        assert!(credential.len() == 1 && credential[0].starts_with("Bearer ") && !credential[0].contains("kw_"));

        let event = json!({"subject": "x", "start": {"dateTime": "2026-05-01T10:00:00", "timeZone": "UTC"},
            "end": {"dateTime": "2026-05-01T11:00:00", "timeZone": "UTC"}});
        let request = agent_request(&key, "POST", &format!("/proxy/{calendar}/me/events"))
            .header("content-type", "application/json")
            .body(Full::from(event.to_string()))
            .unwrap();
        let made = call(k.app.proxy_address(), request).await;
        assert_eq!(made.status, 201, "{}", made.text());
        k.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_key_is_taken_wherever_official_clients_put_it() {
    let k = Keyward::start().await;
    let key = k.with_tools().await;
    let secret = &key.secret;
    let basic = |pair: String| format!("Authorization: Basic {}", STANDARD.encode(pair));
    for lines in [
        vec![format!("Authorization: Bearer {secret}")],
        vec![format!("AUTHORIZATION:  bearer   {secret}  ")],
        vec![format!("Authorization: token {secret}")],
        vec![format!("X-Api-Key: {secret}")],
        vec![format!("Api-Key: {secret}")],
        vec![basic(format!("anything:{secret}"))],
        vec![basic(format!(":{secret}"))],
        // The same one twice is one.
        vec![format!("Authorization: Bearer {secret}"), format!("X-Api-Key: {secret}")],
        vec![basic(format!("a:{secret}")), format!("Api-Key: {secret}")],
    ] {
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        let answer = k.ask(bare("GET /proxy/tools/echo", &lines)).await;
        assert_eq!(answer.status, 200, "{lines:?}: {}", answer.text());
        let sent = last(&k);
        assert_eq!(text(sent.header("authorization")), ["Bearer the-injected-token"], "{lines:?}");
        let all = format!("{sent:?}");
        assert!(!all.contains("kw_") && !all.contains(&STANDARD.encode(format!("anything:{secret}"))), "{lines:?}");
        assert!(sent.header("x-api-key").is_empty() && sent.header("api-key").is_empty(), "{lines:?}");
        let verified = k.ask(bare("GET /verify", &lines)).await;
        assert_eq!(verified.status, 200, "{lines:?}: {}", verified.text());
    }
    k.stop().await;
}

// ── Who is let in ───────────────────────────────────────────────────────────────────────────────────────────────

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_that_do_not_work_are_all_alike_to_the_byte() {
    for backend in backends() {
        let clock = held();
        let k = Keyward::with_clock(backend, Settings::default(), clock.clone()).await;
        let good = k.with_tools().await;
        let revoked = k.new_key().await;
        k.grant(&revoked, "tools", "write").await;
        k.api("DELETE", &format!("/keys/{}", revoked.id), None).await;
        let end = clock.now().after(Duration::from_secs(60));
        let short = k.api("POST", "/keys", Some(json!({"name": "short", "expires_at": end}))).await;
        let expired = key(short["key"].as_str().unwrap());
        let rotated = k.new_key().await;
        k.api("POST", &format!("/keys/{}/rotate", rotated.id), None).await;
        clock.advance(Duration::from_secs(61));

        let mut typo = good.secret.clone();
        let wrong = if typo.ends_with('A') { "B" } else { "A" };
        typo.replace_range(typo.len() - 1.., wrong);
        let bearer = |key: &str| vec![format!("Authorization: Bearer {key}")];
        let table = [
            ("absent", vec![]),
            ("empty", vec!["Authorization: Bearer ".to_owned()]),
            ("another scheme", vec!["Authorization: Digest username=\"a\"".to_owned()]),
            ("malformed", bearer("kw_short")),
            ("not a key", bearer("sk-live-something")),
            ("bytes", vec!["X-Api-Key: \u{fc}\u{f6}".to_owned()]),
            ("an admin token", bearer(crate::harness::ADMIN)),
            ("typo", bearer(&typo)),
            ("unknown", bearer(AgentKey::generate().expose())),
            ("revoked", bearer(&revoked.secret)),
            ("expired", bearer(&expired.secret)),
            ("rotated away", bearer(&rotated.secret)),
            ("with the case changed", bearer(&good.secret.to_uppercase())),
        ];
        for path in ["/proxy/tools/echo", "/proxy/no-such-target/x", "/bootstrap", "/verify"] {
            let mut first = None;
            for (what, lines) in &table {
                let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
                let before = k.seen();
                let answer = k.ask(bare(&format!("GET {path}"), &lines)).await;
                k.refused(&answer, 401, "invalid_key", before, what);
                assert_eq!(answer.header("www-authenticate"), "Bearer", "{what}");
                let shown = plain(&answer);
                assert_eq!(first.get_or_insert_with(|| shown.clone()), &shown, "{path}: {what}");
            }
        }
        assert_eq!(k.ask(head(&good, "GET /proxy/tools/echo", &[])).await.status, 200);
        k.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotated_key_works_until_its_grace_is_over() {
    let clock = held();
    let k = Keyward::with_clock(Backend::Sqlite, Settings::default(), clock.clone()).await;
    let old = k.with_tools().await;
    let made = k.api("POST", &format!("/keys/{}/rotate?grace=60s", old.id), None).await;
    let new = key(made["key"].as_str().unwrap());
    assert_ne!(old.secret, new.secret);
    let status = async |key: &Key| k.agent(key, "GET", "/proxy/tools/1k").await.status.as_u16();
    assert_eq!((status(&old).await, status(&new).await), (200, 200));
    clock.advance(Duration::from_secs(59));
    assert_eq!((status(&old).await, status(&new).await), (200, 200));
    clock.advance(Duration::from_secs(1));
    assert_eq!((status(&old).await, status(&new).await), (401, 200));
    // Revoked, both are over at once.
    k.api("POST", &format!("/keys/{}/rotate?grace=1d", old.id), None).await;
    assert_eq!(status(&new).await, 200);
    k.api("DELETE", &format!("/keys/{}", old.id), None).await;
    assert_eq!(status(&new).await, 401);
    k.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_counts_only_from_the_addresses_it_is_for() {
    let k = Keyward::start().await;
    let key = k.with_tools().await;
    let path = format!("/keys/{}", key.id);
    for (allowed, status) in [
        (json!(["10.0.0.0/8", "2001:db8::/32"]), 403),
        (json!(["127.0.0.2"]), 403),
        (json!(["10.0.0.0/8", "127.0.0.1"]), 200),
        (json!(["127.0.0.0/8"]), 200),
        (json!([]), 200),
    ] {
        k.api("PATCH", &path, Some(json!({"allowed_ips": allowed}))).await;
        for line in ["GET /proxy/tools/1k", "GET /verify", "GET /bootstrap"] {
            let before = k.seen();
            // A header that claims another address changes nothing.
            let answer = k.ask(head(&key, line, &["X-Forwarded-For: 10.1.2.3", "X-Real-IP: 10.1.2.3"])).await;
            if status == 403 {
                k.refused(&answer, 403, "address_not_allowed", before, line);
            } else {
                assert_eq!(answer.status, 200, "{allowed} {line}");
            }
        }
    }
    k.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_keys_are_ambiguous_and_a_key_elsewhere_is_refused() {
    let k = Keyward::start().await;
    let key = k.with_tools().await;
    let other = k.new_key().await;
    k.grant(&other, "tools", "write").await;
    let (secret, second) = (key.secret.as_str(), other.secret.as_str());
    let basic = STANDARD.encode(format!("u:{second}"));
    for more in [
        format!("X-Api-Key: {second}"),
        format!("Api-Key: {second}"),
        format!("Authorization: Bearer {second}"),
        format!("Authorization: Basic {basic}"),
        "X-Api-Key: sk-of-somebody-else".to_owned(),
    ] {
        let before = k.seen();
        for line in ["GET /proxy/tools/echo", "GET /bootstrap"] {
            let answer = k.ask(head(&key, line, &[&more])).await;
            k.refused(&answer, 400, "ambiguous_key", before, &more);
            assert!(!answer.text().contains("kw_A") && !answer.text().contains(secret));
        }
    }

    let coded: String = secret.bytes().map(|byte| format!("%{byte:02X}")).collect();
    let lines = [
        format!("Cookie: session={secret}"),
        format!("X-Authorization: Bearer {secret}"),
        format!("x_api_key: {secret}"),
        format!("Authorization_: {secret}"),
        format!("Proxy-Authorization: Bearer {secret}"),
        format!("Referer: http://example.com/?key={secret}"),
        format!("User-Agent: agent/{secret}"),
        format!("Content-Type: {secret}"),
        format!("X-{secret}: 1"),
        format!("Connection: close, {secret}"),
        format!("Keyward-Approval: {secret}"),
        format!("Accept: a;q={secret};b"),
    ];
    let targets = [
        format!("/proxy/tools/{secret}"),
        format!("/proxy/{secret}/echo"),
        format!("/proxy/tools/echo?key={secret}"),
        format!("/proxy/tools/echo?a=b&c=x{secret}y"),
        format!("/proxy/tools/{coded}"),
        format!("/proxy/tools/echo?key={coded}"),
        format!("/proxy/tools/echo?key={}", secret.replace('_', "%5f")),
    ];
    for line in &lines {
        let before = k.seen();
        let answer = k.ask(head(&key, "GET /proxy/tools/echo", &[line])).await;
        k.refused(&answer, 400, "key_in_request", before, line);
        assert!(!answer.text().contains(secret));
    }
    for target in &targets {
        let before = k.seen();
        let answer = k.ask(head(&key, &format!("GET {target}"), &[])).await;
        k.refused(&answer, 400, "key_in_request", before, target);
        assert!(!answer.text().contains(secret));
    }
    let host = format!("GET /proxy/tools/echo HTTP/1.1\r\nHost: {secret}\r\nAuthorization: Bearer {secret}\r\n\r\n");
    let before = k.seen();
    k.refused(&k.ask(host).await, 400, "key_in_request", before, "Host");
    // A key is a word that the grammar takes for a method.
    for line in [format!("{secret} /proxy/tools/echo"), format!("{secret}x /proxy/tools/echo")] {
        k.refused(&k.ask(head(&key, &line, &[])).await, 501, "not_implemented", before, &line);
    }
    k.stop().await;
}

// ── Where requests may go ───────────────────────────────────────────────────────────────────────────────────────

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unknown_targets_and_those_of_others_are_alike_to_the_byte() {
    for backend in backends() {
        let k = Keyward::with(backend, Settings::default()).await;
        let (account, _) = k.connected().await;
        let key = k.with_tools().await;
        let origin = k.sandbox().origin();
        for slug in ["not-granted", "taken-away", "deleted"] {
            k.target(slug, &format!("{origin}/tools"), json!({"kind": "none"})).await;
        }
        for slug in ["taken-away", "deleted"] {
            k.grant(&key, slug, "write").await;
            assert_eq!(k.agent(&key, "GET", &format!("/proxy/{slug}/1k")).await.status, 200);
        }
        k.api("DELETE", &format!("/keys/{}/grants/taken-away", key.id), None).await;
        k.api("DELETE", "/targets/deleted", None).await;
        let managed = slug(&account, "mail");
        let long = "a".repeat(97);
        let mut first = None;
        for slug in [
            "no-such-target",
            "not-granted",
            "taken-away",
            "deleted",
            &managed,
            &long,
            "Tools",
            "%74ools",
            "tools;x",
            "",
        ] {
            let before = k.seen();
            let answer = k.ask(head(&key, &format!("GET /proxy/{slug}/1k"), &[])).await;
            if slug.is_empty() {
                // `//`, which is refused before anybody looks.
                k.refused(&answer, 400, "bad_path", before, "empty");
                continue;
            }
            k.refused(&answer, 404, "target_not_found", before, slug);
            let shown = plain(&answer);
            assert!(!shown.contains("tools") && !shown.contains("deleted"), "the slug is not repeated");
            assert_eq!(first.get_or_insert_with(|| shown.clone()), &shown, "{slug}");
        }
        for path in ["/", "/proxy", "/proxies/tools/1k", "/Proxy/tools/1k", "/proxy%2ftools/1k", "/metrics", "/api/x"] {
            let before = k.seen();
            let answer = k.ask(head(&key, &format!("GET {path}"), &[])).await;
            k.refused(&answer, 404, "not_found", before, path);
        }
        k.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn paths_that_somebody_may_read_differently_are_refused() {
    let k = Keyward::start().await;
    let upstream = Upstream::saying("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    let key = k.new_key().await;
    k.target("api", &format!("{}/v1/base", upstream.url()), json!({"kind": "none"})).await;
    k.grant(&key, "api", "write").await;
    let tricks: &[&[u8]] = &[
        b"/..",
        b"/.",
        b"/../echo",
        b"/../../v1.0/me",
        b"/a/../echo",
        b"/a/..",
        b"/./echo",
        b"/a/./b",
        b"/%2e%2e/v1.0/me",
        b"/%2E%2E/v1.0/me",
        b"/.%2e/v1.0/me",
        b"/%2e./v1.0/me",
        b"/%2e",
        b"/a%2e",
        b"/..%2fv1.0%2fme",
        b"/..%2Fv1.0/me",
        b"/a%2f..%2f..%2fv1.0",
        b"/a%2F.",
        b"/..;/v1.0/me",
        b"/..;x=1/v1.0/me",
        b"/.;/echo",
        b"/..%3b/v1.0/me",
        b"/a\\..\\v1.0",
        b"/..\\v1.0",
        b"/a%5c..%5cb",
        b"/%5C..",
        b"/%252e%252e/v1.0/me",
        b"/%25252e%25252e/me",
        b"/a%252fb",
        b"/a%255cb",
        b"/a%2500",
        b"/a%00",
        b"/echo%00.json",
        b"/a%0d%0aHost:%20evil",
        b"/a%0a",
        b"/a%09b",
        b"/a%1fb",
        b"/a%7f",
        b"//echo",
        b"/a//b",
        b"/echo//",
        b"/http://example.com/",
        b"/%c0%ae%c0%ae/v1.0",
        b"/%e0%80%ae/v1.0",
        b"/%ff",
        b"/%c0%af",
        b"/%",
        b"/%2",
        b"/%zz",
        b"/%u002e%u002e/me",
        "/m\u{fc}nchen".as_bytes(),
        "/a\u{ff0f}b".as_bytes(),
        b"/a\x7fb",
        b"/\xff",
        // The parser refuses these.
        b"/a\x01b",
        b"/a\tb",
        b"/a b",
        b"/a\0b",
    ];
    assert!(tricks.len() >= 25);
    for trick in tricks {
        for prefix in ["/proxy/api", "/proxy/api/echo"] {
            let shown = format!("{prefix}{}", String::from_utf8_lossy(trick));
            let lines = format!(" HTTP/1.1\r\nHost: keyward.test\r\nAuthorization: Bearer {}\r\n\r\n", key.secret);
            let answer = k.ask([b"GET ", prefix.as_bytes(), trick, lines.as_bytes()].concat()).await;
            let code = answer.refusal();
            assert!(code == "bad_path" || code == "bad_request", "{shown}: {}", answer.text());
            assert_eq!((answer.status.as_u16(), upstream.accepted()), (400, 0), "{shown}");
        }
    }
    for path in ["/proxy/..", "/proxy/../admin", "/proxy/%2e%2e/x", "/proxy/api/../../bootstrap", "/proxy/api/..%2f"] {
        let answer = k.ask(head(&key, &format!("GET {path}"), &[])).await;
        assert_eq!((answer.refusal().as_str(), upstream.accepted()), ("bad_path", 0), "{path}");
    }
    // And what reads alike everywhere goes through byte for byte, below the base path.
    for path in [
        "/echo",
        "/echo?a=../../x&b=%2e%2e&c=//&d=\\&e=%00",
        "/echo?",
        "/echo?q=%E4%BD%A0&%24x=1&r=http://example.com/?x=y",
        "/a/...",
        "/a/..b/c..",
        "/.well-known/x",
        "/group%2Fproject/x",
        "/a%20b/plan.txt:/content",
        "/(a)'b'*!~;v=1,2@x:y&z=$t+u",
        "/100%25/x",
        "/proxy/api/echo",
        "/",
        "",
    ] {
        let before = upstream.seen().len();
        let answer = k.ask(head(&key, &format!("GET /proxy/api{path}"), &[])).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        let slash = if path.is_empty() { "/" } else { "" };
        let line = format!("GET /v1/base{slash}{path} HTTP/1.1\r\n");
        assert!(upstream.seen()[before..].starts_with(&line), "{line}{}", &upstream.seen()[before..]);
        assert!(upstream.seen()[before..].contains(&format!("\r\nhost: {}\r\n", upstream.address)));
    }
    k.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fences_keep_mail_and_calendar_apart_on_one_host() {
    let k = Keyward::start().await;
    let (account, _) = k.connected().await;
    let (mail, calendar) = (slug(&account, "mail"), slug(&account, "calendar"));
    let (reader, writer) = (k.new_key().await, k.new_key().await);
    for slug in [&mail, &calendar] {
        k.grant(&reader, slug, "read").await;
        k.grant(&writer, slug, "write").await;
    }
    let event = "/me/events";
    // (target, method, path, may the reader, may the writer)
    let table = [
        (&mail, "GET", "/me/messages", true, true),
        (&mail, "GET", "/me/mailFolders/inbox/messages", true, true),
        (&mail, "HEAD", "/me/messages", true, true),
        (&mail, "DELETE", "/me/messages/none", false, true),
        (&mail, "PATCH", "/me/messages/none", false, true),
        (&mail, "POST", "/me/sendMail", false, true),
        (&mail, "GET", "/me/sendMail", false, false),
        (&mail, "GET", "/me", false, false),
        (&mail, "GET", "/", false, false),
        (&mail, "GET", event, false, false),
        (&mail, "POST", event, false, false),
        (&mail, "GET", "/me/messagesx", false, false),
        (&mail, "GET", "/ME/messages", false, false),
        (&mail, "GET", "/users/team@example.com/messages", false, false),
        (&mail, "POST", "/$batch", false, false),
        (&mail, "PROPFIND", "/me/messages", false, true),
        (&calendar, "GET", event, true, true),
        (&calendar, "GET", "/me/calendarView?startDateTime=2026-01-01T00:00:00Z", true, true),
        (&calendar, "POST", "/me/calendarView", false, false),
        (&calendar, "POST", event, false, true),
        (&calendar, "DELETE", "/me/events/none", false, true),
        (&calendar, "GET", "/me/messages", false, false),
        (&calendar, "POST", "/me/sendMail", false, false),
        (&calendar, "GET", "/me", false, false),
    ];
    for (slug, method, path, read, write) in table {
        for (key, may) in [(&reader, read), (&writer, write)] {
            let what = format!("{method} {path} (write: {})", std::ptr::eq(key, &writer));
            let before = k.seen();
            let answer = k.agent(key, method, &format!("/proxy/{slug}{path}")).await;
            if may {
                assert_eq!(answer.header("keyward-error"), "", "{what}: {}", answer.text());
                assert_eq!(last(&k).target, format!("/v1.0{path}"), "{what}");
            } else if method == "HEAD" {
                assert_eq!((answer.status.as_u16(), k.seen()), (403, before), "{what}");
            } else {
                k.refused(&answer, 403, "not_permitted", before, &what);
            }
        }
    }
    k.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_of_a_grant_counts_for_the_next_request() {
    for backend in backends() {
        let k = Keyward::with(backend, Settings::default()).await;
        let key = k.with_tools().await;
        let status = async |method: &str| {
            let answer = k.agent(&key, method, "/proxy/tools/echo").await;
            (answer.status.as_u16(), answer.header("keyward-error").to_owned())
        };
        let fine = (200, String::new());
        for _ in 0..10 {
            assert_eq!(status("POST").await, fine);
            k.grant(&key, "tools", "read").await;
            assert_eq!(status("POST").await, (403, "not_permitted".to_owned()));
            assert_eq!(status("GET").await, fine);
            k.api("DELETE", &format!("/keys/{}/grants/tools", key.id), None).await;
            assert_eq!(status("GET").await, (404, "target_not_found".to_owned()));
            k.grant(&key, "tools", "write").await;
        }
        k.api("PATCH", "/targets/tools", Some(json!({"fence": ["GET /echo"]}))).await;
        assert_eq!(status("POST").await, (403, "not_permitted".to_owned()));
        assert_eq!(status("GET").await, fine);
        k.api("DELETE", &format!("/keys/{}", key.id), None).await;
        assert_eq!(status("GET").await, (401, "invalid_key".to_owned()));
        k.stop().await;
    }
}

// ── Plain HTTP reasons ──────────────────────────────────────────────────────────────────────────────────────────

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_http_forbids_or_this_gateway_does_not_do_is_said_in_one_shape() {
    let k = Keyward::configured("[proxy.limits]\nrequest_body = \"64 KiB\"\nheaders = 30").await;
    let key = k.with_tools().await;
    let secret = &key.secret;
    let long = format!("GET /proxy/tools/echo?q={}", "a".repeat(8 * 1024));
    let longer = format!("GET /proxy/tools/echo?q={}", "a".repeat(20 * 1024));
    let big = format!("X-Big: {}", "b".repeat(40 * 1024));
    let auth = format!("Authorization: Bearer {secret}");
    let many: Vec<String> = (0..40).map(|n| format!("X-Line-{n}: 1")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let echo = "POST /proxy/tools/echo";
    let table: Vec<(&str, Vec<u8>, u16, &str)> = vec![
        ("no host", format!("GET /proxy/tools/echo HTTP/1.1\r\n{auth}\r\n\r\n").into(), 400, "bad_request"),
        ("two hosts", head(&key, "GET /proxy/tools/echo", &["Host: keyward.test"]), 400, "bad_request"),
        ("a whole URL", head(&key, "GET http://example.com/proxy/tools/echo", &[]), 400, "bad_request"),
        ("a fragment", head(&key, "GET /proxy/tools/echo#x", &[]), 400, "bad_request"),
        ("no HTTP", b"hello\r\n\r\n".to_vec(), 400, "bad_request"),
        ("HTTP/9", format!("GET /proxy/tools/echo HTTP/9.9\r\nHost: a\r\n{auth}\r\n\r\n").into(), 400, "bad_request"),
        ("TRACE", head(&key, "TRACE /proxy/tools/echo", &[]), 405, "method_not_allowed"),
        ("TRACK", head(&key, "TRACK /proxy/tools/echo", &[]), 405, "method_not_allowed"),
        ("CONNECT to a path", head(&key, "CONNECT /proxy/tools/echo", &[]), 405, "method_not_allowed"),
        ("CONNECT", head(&key, "CONNECT example.com:443", &[]), 405, "method_not_allowed"),
        ("POST /bootstrap", head(&key, "POST /bootstrap", &[]), 405, "method_not_allowed"),
        ("DELETE /verify", head(&key, "DELETE /verify", &[]), 405, "method_not_allowed"),
        ("a large body", head(&key, echo, &["Content-Length: 65537"]), 413, "payload_too_large"),
        ("no number", head(&key, echo, &["Content-Length: 99999999999999999999"]), 400, "bad_request"),
        ("a long URL", head(&key, &long, &[]), 414, "uri_too_long"),
        ("a longer URL", head(&key, &longer, &[]), 414, "uri_too_long"),
        ("an expectation", head(&key, echo, &["Expect: miracles"]), 417, "expectation_failed"),
        ("a large head", head(&key, "GET /proxy/tools/echo", &[&big]), 431, "request_header_fields_too_large"),
        ("many lines", head(&key, "GET /proxy/tools/echo", &many), 431, "request_header_fields_too_large"),
        ("a coding", head(&key, echo, &["Transfer-Encoding: gzip, chunked"]), 501, "not_implemented"),
    ];
    for (what, request, status, code) in table {
        let before = k.seen();
        let answer = k.ask(request).await;
        k.refused(&answer, status, code, before, what);
        if status == 405 {
            assert!(answer.header("allow").contains("GET"), "{what}");
        }
    }
    // On the people's listener too, what the parser refuses has the one shape.
    let admin = k.app.admin_address();
    assert_eq!(ask(admin, "GET / HTTP/1.1\r\nbad header\r\n\r\n").await.refusal(), "bad_request");
    k.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_dawdles_is_told_so() {
    let k = Keyward::configured("[proxy.timeouts]\nidle = \"1s\"\nhead = \"1s\"").await;
    let key = k.with_tools().await;
    let small = [&head(&key, "POST /proxy/tools/echo", &["Content-Length: 10"])[..], b"abc"].concat();
    k.refused(&k.ask(small).await, 408, "timeout", 0, "a body that is held");
    let half = format!("GET /proxy/tools/echo HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {}\r\nX-", key.secret);
    let late = k.ask(half).await;
    assert_eq!((late.status.as_u16(), late.refusal().as_str()), (408, "timeout"));
    assert_eq!(k.seen(), 0);
    let chunks = head(&key, "POST /proxy/tools/echo", &["Transfer-Encoding: chunked"]);
    let late = k.ask([&chunks[..], b"3\r\nabc\r\n"].concat()).await;
    assert_eq!((late.status.as_u16(), late.refusal().as_str()), (408, "timeout"));
    assert!(k.sandbox().recorded().iter().all(|request| !request.body_complete), "no clean end was made up");
    k.stop().await;
}

// ── Trouble beyond ──────────────────────────────────────────────────────────────────────────────────────────────

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upstream_that_gives_no_answer_is_told_apart_by_why() {
    let k = Keyward::configured("[proxy.timeouts]\nidle = \"1s\"\nconnect = \"1s\"").await;
    let key = k.with_tools().await;
    let reset = k.agent(&key, "POST", "/proxy/tools/reset").await;
    assert_eq!((reset.status.as_u16(), reset.refusal().as_str()), (502, "upstream_unreachable"));
    let hang = k.agent(&key, "GET", "/proxy/tools/hang").await;
    assert_eq!((hang.status.as_u16(), hang.refusal().as_str()), (504, "upstream_timeout"));
    assert_eq!(k.seen(), 2, "each was sent once");

    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    k.target("closed", &format!("http://{closed}"), json!({"kind": "none"})).await;
    // Nothing there speaks TLS.
    k.target("tls", &k.sandbox().origin().replace("http:", "https:"), json!({"kind": "none"})).await;
    k.target("nowhere", "https://no-such-host.invalid", json!({"kind": "none"})).await;
    for slug in ["closed", "tls", "nowhere"] {
        k.grant(&key, slug, "write").await;
        let before = k.seen();
        let answer = k.agent(&key, "GET", &format!("/proxy/{slug}/x")).await;
        k.refused(&answer, 502, "upstream_unreachable", before, slug);
    }
    let table: [(&str, &[u8]); 6] = [
        ("words", b"hello, who is there?\r\n\r\n"),
        ("length", b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n"),
        ("lengths", b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab"),
        ("version", b"HTTP/7.0 200 OK\r\n\r\n"),
        ("folded", b"HTTP/1.1 200 OK\r\nx: a\r\n b\r\nContent-Length: 0\r\n\r\n"),
        ("switch", b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"),
    ];
    for (slug, bytes) in table {
        let upstream = Upstream::saying(bytes).await;
        k.target(slug, &upstream.url(), json!({"kind": "none"})).await;
        k.grant(&key, slug, "write").await;
        let before = k.seen();
        let answer = k.agent(&key, "POST", &format!("/proxy/{slug}/x")).await;
        k.refused(&answer, 502, "upstream_invalid", before, slug);
        assert_eq!((upstream.accepted(), upstream.requests()), (1, 1), "{slug}: sent once");
    }
    k.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn private_addresses_are_out_of_reach_unless_allowed() {
    let k = Keyward::with(Backend::Sqlite, Settings { loopback: false, ..Settings::default() }).await;
    let key = k.with_tools().await;
    let origin = k.sandbox().origin();
    let port = k.sandbox().address().port();
    k.target("by-name", &format!("http://localhost:{port}/tools"), json!({"kind": "none"})).await;
    k.target("lan", "https://10.0.0.1/x", json!({"kind": "none"})).await;
    k.target("mapped", "https://[::ffff:127.0.0.1]/x", json!({"kind": "none"})).await;
    k.target("zero", "https://0.0.0.0/x", json!({"kind": "none"})).await;
    for slug in ["tools", "by-name", "lan", "mapped", "zero"] {
        k.grant(&key, slug, "write").await;
        let answer = k.agent(&key, "GET", &format!("/proxy/{slug}/1k")).await;
        k.refused(&answer, 502, "upstream_unreachable", 0, slug);
        assert!(answer.text().contains("[egress] allow"), "{slug}: {}", answer.text());
        assert!(!answer.text().contains(&origin) && !answer.text().contains("127.0.0.1"), "no address is told");
    }
    k.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metadata_services_are_out_of_reach_whatever_is_allowed() {
    let k = Keyward::altered(Settings::default(), |config| {
        for range in
            ["169.254.0.0/16", "100.64.0.0/10", "168.63.129.16/32", "fd00::/8", "::ffff:0:0/96", "64:ff9b::/96"]
        {
            config.egress.allow.push(range.parse().unwrap());
        }
        config.proxy.timeouts.connect = Duration::from_millis(300);
    })
    .await;
    let key = k.new_key().await;
    for (n, host) in [
        "169.254.169.254",
        "169.254.170.2",
        "169.254.170.23",
        "100.100.100.200",
        "168.63.129.16",
        "[fd00:ec2::254]",
        "[::ffff:169.254.169.254]",
        "[::ffff:a9fe:a9fe]",
        "[64:ff9b::a9fe:a9fe]",
        "2852039166",
        "0xa9.0xfe.0xa9.0xfe",
        "0251.0376.0251.0376",
        "169.254.43518",
    ]
    .into_iter()
    .enumerate()
    {
        let slug = format!("metadata-{n}");
        k.target(&slug, &format!("https://{host}/latest"), json!({"kind": "none"})).await;
        k.grant(&key, &slug, "read").await;
        let answer = k.agent(&key, "GET", &format!("/proxy/{slug}/meta-data/")).await;
        k.refused(&answer, 502, "upstream_unreachable", 0, host);
        assert!(answer.text().contains("not one that may be reached"), "{host}: {}", answer.text());
    }
    // The rest of the range was opened: here only the network says no.
    k.target("neighbour", "https://169.254.7.7/x", json!({"kind": "none"})).await;
    k.grant(&key, "neighbour", "read").await;
    let answer = k.agent(&key, "GET", "/proxy/neighbour/x").await;
    assert!(!answer.text().contains("not one that may be reached"), "{}", answer.text());
    k.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disconnected_account_says_where_to_reconnect_it() {
    for backend in backends() {
        let clock = held();
        let k = Keyward::with_clock(backend, Settings::default(), clock.clone()).await;
        let (account, key) = k.connected().await;
        let path = format!("/proxy/{}/me/messages", slug(&account, "mail"));
        assert_eq!(k.agent(&key, "GET", &path).await.status, 200);
        k.sandbox().revoke_all_of("ada@example.com");
        clock.advance(Duration::from_secs(2 * 3600));
        let before = k.seen();
        for _ in 0..3 {
            let answer = k.agent(&key, "GET", &path).await;
            k.refused(&answer, 503, "account_disconnected", before, "revoked at the provider");
            let hint = answer.json()["detail"]["hint"].as_str().unwrap().to_owned();
            let page = format!("http://{}/integrations", k.app.admin_address());
            let id = account["id"].as_str().unwrap();
            assert!(hint.contains(&page) && hint.contains(id), "{hint}");
            for secret in ["sbx_", "kw_", "kwa_", "state=", "code=", "token="] {
                assert!(!answer.text().contains(secret), "{secret}: {}", answer.text());
            }
        }
        assert_eq!(k.sandbox().counters().refresh_calls(), 1, "later requests fail without asking the provider");

        let shown = k.agent(&key, "GET", "/bootstrap").await.json();
        for target in shown["targets"].as_array().unwrap() {
            let integration = &target["integration"];
            assert_eq!(integration["status"], "disconnected");
            assert_eq!(integration["reason"], "refresh_rejected");
            let url = integration["connect_url"].as_str().unwrap();
            assert!(url.contains(account["id"].as_str().unwrap()), "{url}");
        }
        let text = markdown(&k, &key).await;
        assert!(text.contains("disconnected") && text.contains("To reconnect"), "{text}");

        // Connected again, the same key and slug work.
        let again = k.connect("ada@example.com").await;
        assert_eq!(again["id"], account["id"]);
        assert_eq!(k.agent(&key, "GET", &path).await.status, 200);
        k.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_token_the_agent_learns_when_to_ask_again() {
    let clock = held();
    let k = Keyward::with_clock(Backend::Sqlite, Settings::default(), clock.clone()).await;
    let (account, key) = k.connected().await;
    let path = format!("/proxy/{}/me/messages", slug(&account, "mail"));
    clock.advance(Duration::from_secs(2 * 3600));
    k.sandbox().faults().token(Fault::Status { status: 503, retry_after: Some("17".into()) });
    let before = k.seen();
    let answer = k.agent(&key, "GET", &path).await;
    k.refused(&answer, 503, "token_unavailable", before, "the provider is down");
    let wait: u64 = answer.header("retry-after").parse().unwrap();
    assert!((1..=17).contains(&wait), "{wait}");
    // Asking more often asks the provider no more often.
    let calls = k.sandbox().counters().token_arrived;
    for _ in 0..5 {
        let answer = k.agent(&key, "GET", &path).await;
        k.refused(&answer, 503, "token_unavailable", before, "backing off");
        assert!(answer.header("retry-after").parse::<u64>().unwrap() >= 1);
    }
    assert_eq!(k.sandbox().counters().token_arrived, calls);
    k.sandbox().faults().clear();
    clock.advance(Duration::from_secs(60));
    assert_eq!(k.agent(&key, "GET", &path).await.status, 200);

    clock.advance(Duration::from_secs(2 * 3600));
    k.sandbox().faults().token(Fault::Json(401, json!({"error": "invalid_client"})));
    let before = k.seen();
    let answer = k.agent(&key, "GET", &path).await;
    k.refused(&answer, 503, "token_unavailable", before, "the client's settings are wrong");
    assert!(answer.json()["detail"]["hint"].as_str().unwrap().contains("operator"), "{}", answer.text());
    k.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_token_is_renewed_once_and_the_request_sent_once_more() {
    let k = Keyward::start().await;
    let (account, key) = k.connected().await;
    let mail = slug(&account, "mail");
    k.sandbox().expire_access_of("ada@example.com");
    let before = k.seen();
    let answer = k.agent(&key, "GET", &format!("/proxy/{mail}/me/messages?$top=1")).await;
    assert_eq!((answer.status.as_u16(), k.seen() - before), (200, 2));
    let sent = k.sandbox().recorded();
    let (first, second) = (&sent[before], &sent[before + 1]);
    assert_eq!((&first.target, &first.method), (&second.target, &second.method));
    assert_ne!(first.header("authorization"), second.header("authorization"));
    assert_eq!((first.header("authorization").len(), second.header("authorization").len()), (1, 1));
    assert_eq!(k.sandbox().counters().refresh_calls(), 1);

    // A second 401 is the agent's to see, and the account is none the worse.
    k.sandbox().faults().api(Fault::Status { status: 401, retry_after: None });
    k.sandbox().expire_access_of("ada@example.com");
    let before = k.seen();
    let answer = k.agent(&key, "GET", &format!("/proxy/{mail}/me/messages?$top=1")).await;
    assert_eq!((answer.status.as_u16(), answer.header("keyward-error")), (401, ""));
    assert!(k.seen() - before <= 2);
    let seen = k.api("GET", &format!("/accounts/{}", account["id"].as_str().unwrap()), None).await;
    assert_eq!(seen["status"], "connected");
    k.stop().await;
}

// ── Credentials ─────────────────────────────────────────────────────────────────────────────────────────────────

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_kind_of_credential_goes_out_once_and_is_ours() {
    for backend in backends() {
        let k = Keyward::with(backend, Settings::default()).await;
        let key = k.new_key().await;
        let base = format!("{}/tools", k.sandbox().origin());
        let headers = json!({"X-Shop-Token": "shop-secret", "X-Shop-Id": "7"});
        for (slug, credential) in [
            ("bearer", json!({"kind": "bearer", "token": "bearer-secret"})),
            ("basic", json!({"kind": "basic", "username": "ada", "password": "p:w"})),
            ("header", json!({"kind": "header", "name": "X-Api-Key", "value": "header-secret"})),
            ("headers", json!({"kind": "headers", "headers": headers})),
            ("query", json!({"kind": "query", "name": "api_key", "value": "query&secret"})),
            ("none", json!({"kind": "none"})),
        ] {
            k.target(slug, &base, credential).await;
            k.grant(&key, slug, "write").await;
        }
        let lines = [
            "X-Shop-Token: theirs",
            "x_shop_token: theirs",
            "X-Shop_Id: theirs",
            "X-Shop-Id: theirs",
            "X-Shop-Id: theirs too",
            "Proxy-Authorization: Basic dGhlaXJz",
            "X-Authorization: theirs",
            "api_key: theirs",
        ];
        let sent = async |slug: &str, target: &str| {
            let answer = k.ask(head(&key, &format!("GET /proxy/{slug}{target}"), &lines)).await;
            assert_eq!(answer.status, 200, "{slug}: {}", answer.text());
            last(&k)
        };
        let bearer = sent("bearer", "/echo").await;
        assert_eq!(text(bearer.header("authorization")), ["Bearer bearer-secret"]);
        let basic = sent("basic", "/echo").await;
        assert_eq!(text(basic.header("authorization")), [format!("Basic {}", STANDARD.encode("ada:p:w"))]);
        let one = sent("header", "/echo").await;
        assert_eq!(text(one.header("x-api-key")), ["header-secret"]);
        assert!(one.header("authorization").is_empty() && one.header("api_key").is_empty());
        let several = sent("headers", "/echo").await;
        assert_eq!(text(several.header("x-shop-token")), ["shop-secret"]);
        assert_eq!(text(several.header("x-shop-id")), ["7"]);
        assert!(several.header("x_shop_token").is_empty() && several.header("x-shop_id").is_empty());
        assert!(several.header("authorization").is_empty());
        for (asked, expected) in [
            ("/echo", "/tools/echo?api_key=query%26secret"),
            ("/echo?a=1", "/tools/echo?a=1&api_key=query%26secret"),
            ("/echo?a=1&", "/tools/echo?a=1&api_key=query%26secret"),
        ] {
            let query = sent("query", asked).await;
            assert_eq!(query.target, expected);
            assert!(query.header("authorization").is_empty());
        }
        for asked in ["/echo?api_key=theirs", "/echo?a=1&API%5Fkey=x&api%5fkey=theirs", "/echo?x=1;api_key=theirs"] {
            let before = k.seen();
            let answer = k.ask(head(&key, &format!("GET /proxy/query{asked}"), &[])).await;
            k.refused(&answer, 400, "bad_request", before, asked);
        }
        let none = sent("none", "/echo").await;
        assert!(none.header("authorization").is_empty() && none.header("x-api-key").is_empty());

        // Changed, the new credential goes out with the next request; no answer of the API shows either.
        let change = json!({"credential": {"kind": "bearer", "token": "another-secret"}});
        let shown = k.api("PATCH", "/targets/bearer", Some(change)).await;
        assert!(!shown.to_string().contains("another-secret"));
        assert_eq!(text(sent("bearer", "/echo").await.header("authorization")), ["Bearer another-secret"]);
        k.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_of_the_configuration_is_there_for_every_organization() {
    let world = World::new(Backend::Sqlite).await;
    let settings = Settings {
        toml: format!(
            "[targets.shop]\nname = \"Shop\"\nbase_url = \"{}/tools\"\nfence = [\"GET /echo\"]\n\
             credential = {{ bearer_env = \"SHOP_TOKEN\" }}\n",
            world.sandbox.origin()
        ),
        env: [("SHOP_TOKEN".to_owned(), "shop-secret".to_owned())].into(),
        ..Settings::default()
    };
    let app = world.instance(&settings).await;
    let k = Keyward { world, app, settings };
    let key = k.new_key().await;
    let before = k.seen();
    k.refused(&k.agent(&key, "GET", "/proxy/shop/echo").await, 404, "target_not_found", before, "not granted yet");
    k.grant(&key, "shop", "write").await;
    assert_eq!(k.agent(&key, "GET", "/proxy/shop/echo").await.status, 200);
    assert_eq!(text(last(&k).header("authorization")), ["Bearer shop-secret"]);
    let before = k.seen();
    k.refused(&k.agent(&key, "POST", "/proxy/shop/echo").await, 403, "not_permitted", before, "outside its fence");
    let shown = k.api("GET", "/targets", None).await.to_string();
    assert!(shown.contains("\"shop\"") && !shown.contains("shop-secret"));

    // Another organization's key gets its own grant, and the same credential.
    assert_eq!(k.admin("POST", "/api/organizations", Some(json!({"name": "second"}))).await.status, 201);
    let made = k.admin("POST", "/api/organizations/second/keys", Some(json!({"name": "theirs"}))).await.json();
    let theirs = Key { id: made["id"].as_str().unwrap().into(), secret: made["key"].as_str().unwrap().into() };
    let before = k.seen();
    k.refused(&k.agent(&theirs, "GET", "/proxy/shop/echo").await, 404, "target_not_found", before, "not theirs yet");
    let path = format!("/api/organizations/second/keys/{}/grants/shop", theirs.id);
    assert!(k.admin("PUT", &path, Some(json!({"access": "read"}))).await.status.is_success());
    assert_eq!(k.agent(&theirs, "GET", "/proxy/shop/echo").await.status, 200);
    k.stop().await;
}

// ── What an agent is told ───────────────────────────────────────────────────────────────────────────────────────

async fn markdown(k: &Keyward, key: &Key) -> String {
    let request = agent_request(key, "GET", "/bootstrap").header("accept", "text/markdown").body(Full::default());
    let answer = call(k.app.proxy_address(), request.unwrap()).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("content-type"), "text/markdown; charset=utf-8");
    answer.text()
}

fn keys_of(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bootstrap_tells_an_agent_all_it_may_use() {
    for backend in backends() {
        let k = Keyward::with(backend, Settings::default()).await;
        let account = k.connect("ada@example.com").await;
        let key = k.with_tools().await;
        let (mail, calendar) = (slug(&account, "mail"), slug(&account, "calendar"));
        k.grant(&key, &mail, "read").await;
        k.grant(&key, &calendar, "write").await;
        k.target("not-granted", "https://api.example.com", json!({"kind": "none"})).await;

        let answer = k.agent(&key, "GET", "/bootstrap").await;
        assert_eq!((answer.status.as_u16(), answer.header("cache-control")), (200, "no-store"));
        assert!(answer.header("keyward-request-id").starts_with("req_"));
        let shown = answer.json();
        let sorted = |mut names: Vec<String>| {
            names.sort();
            names
        };
        let names = |value: &Value| sorted(keys_of(value).into_iter().map(str::to_owned).collect());
        assert_eq!(names(&shown), ["instructions", "key", "organization", "targets"]);
        assert_eq!(shown["organization"]["name"], "default");
        assert_eq!(shown["key"]["id"], key.id.as_str());
        let targets = shown["targets"].as_array().unwrap();
        assert_eq!(targets.len(), 3);
        for target in targets {
            assert_eq!(
                names(target),
                [
                    "access",
                    "allowed",
                    "base_url",
                    "capability",
                    "examples",
                    "hint",
                    "integration",
                    "name",
                    "proxy_url",
                    "slug"
                ]
            );
            let slug = target["slug"].as_str().unwrap();
            assert_eq!(target["proxy_url"], format!("http://{}/proxy/{slug}", k.app.proxy_address()));
        }
        let find = |slug: &str| targets.iter().find(|target| target["slug"] == slug).unwrap();
        let (mail, calendar, tools) = (find(&mail), find(&calendar), find("tools"));
        assert_eq!((&mail["access"], &mail["capability"]), (&json!("read"), &json!("mail")));
        assert_eq!(mail["base_url"], format!("{}/v1.0", k.sandbox().origin()));
        assert_eq!(
            names(&mail["integration"]),
            ["account", "connect_url", "provider", "provider_name", "reason", "status"]
        );
        assert_eq!(mail["integration"]["account"], "ada@example.com");
        assert_eq!(
            (&mail["integration"]["status"], &mail["integration"]["provider"]),
            (&json!("connected"), &json!("sandbox"))
        );
        assert!(tools["integration"].is_null() && tools["capability"].is_null());

        // What it says is so: an example works as it stands, and what is allowed to a reader is only reading.
        let allowed: Vec<&str> = mail["allowed"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
        assert!(
            !allowed.is_empty() && allowed.iter().all(|line| line.starts_with("GET ") || line.starts_with("HEAD ")),
            "{allowed:?}"
        );
        for target in [mail, calendar] {
            let examples = target["examples"].as_array().unwrap();
            assert_eq!(examples.len(), 2);
            for example in examples {
                let (method, url) = example.as_str().unwrap().split_once(' ').unwrap();
                let path = url.strip_prefix(&format!("http://{}", k.app.proxy_address())).unwrap();
                if method == "GET" {
                    assert_eq!(k.agent(&key, method, path).await.status, 200, "{example}");
                }
            }
        }
        assert!(shown["instructions"].as_str().unwrap().contains("/bootstrap"));
        for secret in ["the-injected-token", "sbx_", &key.secret] {
            assert!(!answer.text().contains(secret), "{secret}");
        }

        let text = markdown(&k, &key).await;
        for part in [mail["proxy_url"].as_str().unwrap(), "ada@example.com", "Access: read", "Access: write"] {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert!(!text.contains("not-granted") && !text.contains("the-injected-token"));

        let verified = k.agent(&key, "GET", "/verify").await.json();
        assert_eq!(names(&verified), ["key", "organization", "targets", "valid"]);
        assert_eq!((&verified["valid"], &verified["targets"]), (&json!(true), &json!(3)));

        let bare = k.new_key().await;
        assert_eq!(k.agent(&bare, "GET", "/bootstrap").await.json()["targets"], json!([]));
        assert_eq!(k.agent(&bare, "HEAD", "/verify").await.status, 200);
        k.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_is_for_everybody_and_readiness_ends_when_stopping_begins() {
    let k = Keyward::configured("[shutdown]\npause = \"3s\"").await;
    let (proxy, admin) = (k.app.proxy_address(), k.app.admin_address());
    let get = async |address, path: &str| -> Answer {
        ask(address, format!("GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n")).await
    };
    for address in [proxy, admin] {
        for path in ["/healthz", "/readyz"] {
            let answer = get(address, path).await;
            assert_eq!(answer.status, 200, "{path}: {}", answer.text());
            assert!(answer.header("keyward-request-id").starts_with("req_"));
        }
    }
    let key = k.with_tools().await;
    let Keyward { world, app, .. } = k;
    let stopping = tokio::spawn(app.stop());
    let begun = std::time::Instant::now();
    loop {
        let (agents, people) = (get(proxy, "/readyz").await, get(admin, "/readyz").await);
        if agents.status == 503 && people.status == 503 {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(2), "{} {}", agents.status, people.status);
    }
    // Load balancers have not noticed yet: until the pause is over, everything is served.
    assert_eq!(get(proxy, "/healthz").await.status, 200);
    let request = agent_request(&key, "GET", "/proxy/tools/1k").body(Full::<Bytes>::default()).unwrap();
    assert_eq!(call(proxy, request).await.status, 200);
    stopping.await.unwrap();
    assert!(tokio::net::TcpStream::connect(proxy).await.is_err());
    world.outside.stop_now();
}
