//! The audit trail: one record for each request, whatever became of it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use http::Method;
use http_body_util::Full;
use keyward::access::AgentKey;
use keyward::clock::{Clock, Timestamp};
use keyward::ids::{AccountId, AuditId, KeyId, OrgId, RequestId};
use serde_json::{Value, json};
use sqlx::Row;

use crate::harness::{Answer, Backend, Key, Keyward, Settings, World, agent_request, backends, call, slug};
use crate::wire::{Upstream, Wire, eventually, head};

fn held() -> Clock {
    Clock::held(Timestamp::from_millis(1_795_000_000_000))
}

/// Records of requests by request id; every id stands there once.
async fn requests(k: &Keyward, query: &str) -> BTreeMap<String, Value> {
    let mut all = BTreeMap::new();
    let mut cursor = String::new();
    loop {
        let page = k.api("GET", &format!("/audit?limit=200{query}{cursor}"), None).await;
        for row in page["items"].as_array().unwrap() {
            if row["action"] == "request" {
                let id = row["request_id"].as_str().unwrap().to_owned();
                assert!(all.insert(id.clone(), row.clone()).is_none(), "{id} stands there twice");
            }
        }
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return all,
        }
    }
}

/// Every row of the table as text, organization or not. SQLite only.
async fn rows(world: &World) -> Vec<BTreeMap<String, String>> {
    let path = world.dir.path().join("keyward.db");
    let pool = sqlx::SqlitePool::connect(&format!("sqlite://{}?mode=ro", path.display())).await.unwrap();
    let ids = ["id", "organization", "request", "agent_key", "account"];
    let texts = "at actor action target method path status code bytes_in bytes_out duration_us detail";
    let list = texts.split(' ').map(|name| format!("cast({name} as text) as {name}")).collect::<Vec<_>>().join(", ");
    // The record of a request has its id.
    let ids_of = ids.map(|name| if name == "request" { "coalesce(request, id) as request" } else { name }).join(", ");
    let sql = format!("select {ids_of}, {list} from audit join audit_series using (slice, series) order by id");
    let found = sqlx::query(sqlx::AssertSqlSafe(sql)).fetch_all(&pool).await.unwrap();
    pool.close().await;
    found
        .iter()
        .map(|row| {
            let ids = ids.map(|name| (name.to_owned(), id_text(name, row.get(name))));
            let text = |name: &str| row.get::<Option<String>, _>(name).unwrap_or_default();
            ids.into_iter().chain(texts.split(' ').map(|name| (name.to_owned(), text(name)))).collect()
        })
        .collect()
}

/// An id of this column, as the API shows it.
fn id_text(column: &str, bytes: Option<&[u8]>) -> String {
    match (column, bytes.unwrap_or_default()) {
        (_, []) => String::new(),
        ("id", bytes) => AuditId::try_from(bytes).unwrap().to_string(),
        ("organization", bytes) => OrgId::try_from(bytes).unwrap().to_string(),
        ("request", bytes) => RequestId::try_from(bytes).unwrap().to_string(),
        ("agent_key", bytes) => KeyId::try_from(bytes).unwrap().to_string(),
        (_, bytes) => AccountId::try_from(bytes).unwrap().to_string(),
    }
}

fn id(answer: &Answer) -> String {
    answer.header("keyward-request-id").to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_request_has_one_record_that_says_what_became_of_it() {
    for backend in backends() {
        let settings = Settings { toml: "[proxy.limits]\nrequest_body = \"1 KiB\"".into(), ..Settings::default() };
        let k = Keyward::with(backend, settings).await;
        let account = k.connect("ada@example.com").await;
        let key = k.with_tools().await;
        let mail = slug(&account, "mail");
        k.grant(&key, &mail, "read").await;
        k.target("closed", "http://127.0.0.1:1", json!({"kind": "none"})).await;
        k.grant(&key, "closed", "write").await;
        let account = account["id"].as_str().unwrap();
        let body = "x".repeat(1000);
        let long = "y".repeat(2000);
        // (method, target, path with query, body) → (status, code, is the account's)
        let table = [
            ("GET", mail.as_str(), "/me/messages?$top=1", "", 200, None, true),
            ("GET", &mail, "/me/messages/none", "", 404, None, true),
            ("HEAD", &mail, "/me/messages", "", 200, None, true),
            ("DELETE", &mail, "/me/messages/x", "", 403, Some("not_permitted"), true),
            ("GET", &mail, "/me/events", "", 403, Some("not_permitted"), true),
            ("POST", "tools", "/echo?q=1", &body, 200, None, false),
            ("PUT", "tools", "/status/503", "", 503, None, false),
            ("POST", "tools", "/status/201", &body, 201, None, false),
            ("GET", "tools", "/bytes/5000", "", 200, None, false),
            ("GET", "tools", "/bytes/300000?chunked=true", "", 200, None, false),
            ("GET", "tools", "/status/204", "", 204, None, false),
            ("PROPFIND", "tools", "/echo", "", 200, None, false),
            ("TRACE", "tools", "/echo", "", 405, Some("method_not_allowed"), false),
            ("GET", "closed", "/x", "", 502, Some("upstream_unreachable"), false),
            ("POST", "tools", "/reset", "", 502, Some("upstream_unreachable"), false),
            ("GET", "no-such-target", "/x/y", "", 404, Some("target_not_found"), false),
            ("POST", "tools", "/echo", &long, 413, Some("payload_too_large"), false),
        ];
        let mut asked = Vec::new();
        for (method, target, path, sent, status, code, managed) in table {
            let request = agent_request(&key, method, &format!("/proxy/{target}{path}"));
            let answer = call(k.app.proxy_address(), request.body(Full::from(sent.to_owned())).unwrap()).await;
            assert_eq!(answer.status, status, "{method} {path}: {}", answer.text());
            asked.push((answer, method, target, path, sent, status, code, managed));
        }
        for path in ["/bootstrap", "/verify"] {
            let answer = k.agent(&key, "GET", path).await;
            asked.push((answer, "GET", "", path, "", 200, None, false));
        }
        let answer = k.agent(&key, "POST", "/bootstrap").await;
        asked.push((answer, "POST", "", "/bootstrap", "", 405, Some("method_not_allowed"), false));

        let records = requests(&k, "").await;
        // What was refused before anybody knew whose it is belongs to no organization; see below.
        let unknown = ["method_not_allowed", "payload_too_large"];
        let known = asked.iter().filter(|row| !row.6.is_some_and(|code| unknown.contains(&code))).count();
        assert_eq!(records.len(), known, "{backend:?}");
        for (answer, method, target, path, sent, status, code, managed) in &asked {
            let what = format!("{backend:?}: {method} {target}{path}");
            if code.is_some_and(|code| unknown.contains(&code)) {
                continue;
            }
            let record = records.get(&id(answer)).unwrap_or_else(|| panic!("{what}: no record"));
            assert_eq!(record["actor"], key.id.as_str(), "{what}");
            assert_eq!(record["key"], key.id.as_str(), "{what}");
            assert_eq!(record["method"], *method, "{what}");
            let target = if target.is_empty() { Value::Null } else { json!(target) };
            assert_eq!(record["target"], target, "{what}");
            assert_eq!(record["path"], *path.split('?').next().unwrap(), "{what}");
            assert_eq!(record["status"], *status, "{what}");
            assert_eq!(record["code"], json!(code), "{what}");
            assert_eq!(record["account"], if *managed { json!(account) } else { Value::Null }, "{what}");
            assert!(record["duration_us"].as_i64().unwrap() > 0, "{what}");
            assert!(Timestamp::parse(record["at"].as_str().unwrap()).is_ok(), "{what}");
            if code.is_none() {
                assert_eq!(record["bytes_in"], sent.len(), "{what}");
                assert_eq!(record["bytes_out"], answer.body.len(), "{what}");
            }
        }
        // Health checks are nobody's business.
        k.agent(&key, "GET", "/healthz").await;
        k.agent(&key, "GET", "/nowhere").await;
        assert_eq!(requests(&k, "").await.len(), known);
        k.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_asked_is_recorded_too() {
    let k = Keyward::start().await;
    let key = k.with_tools().await;
    let other = k.new_key().await;
    let twice = format!("X-Api-Key: {}", other.secret);
    let leaked = format!("Cookie: a={}", key.secret);
    let stranger = Key { id: String::new(), secret: AgentKey::generate().expose().to_owned() };
    let table = [
        ("invalid_key", head(&stranger, "GET /proxy/tools/echo", &[])),
        ("invalid_key", head(&stranger, "GET /proxy/none/echo", &[])),
        ("invalid_key", head(&stranger, "GET /bootstrap", &[])),
        ("bad_path", head(&key, "GET /proxy/tools/../echo", &[])),
        ("ambiguous_key", head(&key, "GET /proxy/tools/echo", &[&twice])),
        ("key_in_request", head(&key, "GET /proxy/tools/echo", &[&leaked])),
        ("uri_too_long", head(&key, &format!("GET /proxy/tools/{}", "a".repeat(9000)), &[])),
        ("expectation_failed", head(&key, "POST /proxy/tools/echo", &["Expect: more"])),
        ("method_not_allowed", head(&key, "TRACE /proxy/tools/echo", &[])),
        ("not_implemented", head(&key, &format!("{} /proxy/tools/echo", key.secret), &[])),
    ];
    let mut asked = Vec::new();
    for (code, request) in table {
        let answer = k.ask(request).await;
        assert_eq!(answer.refusal(), code);
        asked.push((id(&answer), code, answer.status));
    }
    k.app.audit().flush().await;
    let found: Vec<_> = rows(&k.world).await.into_iter().filter(|row| row["action"] == "request").collect();
    assert_eq!(found.len(), asked.len());
    for (request, code, status) in &asked {
        let mine: Vec<_> = found.iter().filter(|row| &row["request"] == request).collect();
        assert_eq!(mine.len(), 1, "{code}");
        assert_eq!((mine[0]["code"].as_str(), mine[0]["status"].as_str()), (*code, status.as_str()), "{code}");
        assert_eq!((mine[0]["actor"].as_str(), mine[0]["organization"].as_str()), ("anonymous", ""), "{code}");
        assert!(mine[0]["path"].len() <= 2000, "{code}");
    }
    let text = format!("{found:?}");
    for secret in [&key.secret, &other.secret, &stranger.secret] {
        assert!(!text.contains(secret.as_str()));
    }
    // Nobody's requests are nobody's to read: an organization sees its own.
    assert!(requests(&k, "").await.is_empty());
    k.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_ended_early_says_so() {
    let k = Keyward::configured("[proxy.timeouts]\nidle = \"1s\"").await;
    let upstream = Upstream::start(|mut line| async move {
        let head = line.head().await;
        if head.starts_with(b"GET /silent") {
            line.until(b"never").await;
        } else {
            line.say("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhello").await;
            if head.starts_with(b"GET /half") {
                line.until(b"never").await;
            }
        }
    })
    .await;
    let key = k.with_upstream(&upstream).await;

    // The agent leaves before an answer, and in the middle of one.
    let mut wire = k.wire().await;
    wire.send(head(&key, "GET /proxy/raw/silent", &[])).await;
    eventually("it is sent", || upstream.requests() == 1).await;
    drop(wire);
    eventually("it ends", || upstream.ended() == 1).await;
    let mut wire = k.wire().await;
    wire.send(head(&key, "GET /proxy/raw/half", &[])).await;
    wire.until(b"hello").await;
    drop(wire);
    eventually("it ends", || upstream.ended() == 2).await;
    // The upstream cuts its answer, and stops in the middle of one.
    for path in ["/proxy/raw/cut", "/proxy/raw/half"] {
        let mut wire = k.wire().await;
        wire.send(head(&key, &format!("GET {path}"), &[])).await;
        assert!(wire.rest().await.ends_with(b"hello"), "{path}");
    }
    // The agent leaves its own upload unfinished.
    let mut wire = k.wire().await;
    wire.send([&head(&key, "POST /proxy/raw/up", &["Content-Length: 10"])[..], b"hello"].concat()).await;
    drop(wire);

    let mut seen = Vec::new();
    for _ in 0..200 {
        seen = k.audit(&format!("&key={}", key.id)).await;
        seen.retain(|row| row["action"] == "request");
        if seen.len() == 5 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    seen.reverse();
    let told: Vec<_> = seen.iter().map(|row| (row["path"].as_str().unwrap(), row["status"].as_i64())).collect();
    assert_eq!(told[..4], [("/silent", None), ("/half", Some(200)), ("/cut", Some(200)), ("/half", Some(200))]);
    for row in &seen[..4] {
        assert_eq!(row["code"], "aborted", "{row}");
        let arrived = if row["path"] == "/silent" { 0 } else { 5 };
        assert_eq!(row["bytes_out"], arrived, "{row}");
    }
    assert_eq!((seen[4]["path"].as_str(), seen[4]["method"].as_str()), (Some("/up"), Some("POST")));
    assert!(!seen[4]["code"].is_null(), "{}", seen[4]);
    k.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_whose_handling_panics_is_recorded() {
    let k = Keyward::start().await;
    let mut receipt = k.app.audit().open(&Method::POST).await.unwrap();
    let request = receipt.request_id().to_string();
    let panicking = tokio::spawn(async move {
        receipt.asked(&Method::POST, "tools", "/boom");
        let _held = receipt;
        std::panic::panic_any("as asked");
    });
    assert!(panicking.await.unwrap_err().is_panic());
    k.app.audit().flush().await;
    let found: Vec<_> = rows(&k.world).await.into_iter().filter(|row| row["request"] == request).collect();
    assert_eq!(found.len(), 1);
    assert_eq!((&*found[0]["code"], &*found[0]["path"], &*found[0]["status"]), ("aborted", "/boom", ""));
    k.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_trail_is_filtered_and_paged() {
    for backend in backends() {
        let clock = held();
        let k = Keyward::with_clock(backend, Settings::default(), clock.clone()).await;
        let account = k.connect("ada@example.com").await;
        let (mail, calendar) = (slug(&account, "mail"), slug(&account, "calendar"));
        let one = k.with_tools().await;
        let two = k.new_key().await;
        for (key, target) in [(&one, &mail), (&two, &mail), (&two, &calendar)] {
            k.grant(key, target, "read").await;
        }
        let begun = clock.now();
        let mut asked = Vec::new();
        for (key, target, path) in [
            (&one, "tools", "/status/200"),
            (&one, "tools", "/status/418"),
            (&one, &*mail, "/me/messages"),
            (&two, &*mail, "/me/messages"),
            (&two, &*calendar, "/me/events"),
            (&two, &*calendar, "/me/messages"),
            (&two, "tools", "/1k"),
        ] {
            clock.advance(Duration::from_secs(1));
            let answer = k.agent(key, "GET", &format!("/proxy/{target}{path}")).await;
            asked.push((id(&answer), key.id.clone(), target.to_owned(), answer.status.as_u16(), clock.now()));
        }
        let (first, second) = (one.id.as_str(), two.id.as_str());
        let account = account["id"].as_str().unwrap();
        let since = begun.after(Duration::from_secs(3));
        let until = begun.after(Duration::from_secs(5));
        type Wanted<'a> = Box<dyn Fn(&(String, String, String, u16, Timestamp)) -> bool + 'a>;
        let table: Vec<(String, Wanted<'_>)> = vec![
            (String::new(), Box::new(|_| true)),
            (format!("&key={first}"), Box::new(|row| row.1 == first)),
            (format!("&key={second}"), Box::new(|row| row.1 == second)),
            ("&target=tools".into(), Box::new(|row| row.2 == "tools")),
            (format!("&target={mail}"), Box::new(|row| row.2 == mail)),
            // Unknown to this key: it may not even say whose it would be.
            (format!("&account={account}"), Box::new(|row| row.2 != "tools")),
            ("&status=200".into(), Box::new(|row| row.3 == 200)),
            ("&status=403".into(), Box::new(|row| row.3 == 403)),
            ("&status=418".into(), Box::new(|row| row.3 == 418)),
            ("&status=599".into(), Box::new(|_| false)),
            (format!("&since={since}"), Box::new(|row| row.4 >= since)),
            (format!("&until={until}"), Box::new(|row| row.4 < until)),
            (format!("&since={since}&until={until}"), Box::new(|row| row.4 >= since && row.4 < until)),
            (format!("&key={second}&target={mail}&status=200"), Box::new(|row| row.1 == second && row.2 == mail)),
            (format!("&key={second}&account={account}&status=403"), Box::new(|row| row.3 == 403)),
        ];
        for (query, wanted) in table {
            let expected: BTreeSet<_> = asked.iter().filter(|row| wanted(row)).map(|row| row.0.clone()).collect();
            let found: BTreeSet<_> = requests(&k, &query).await.into_keys().collect();
            assert_eq!(found, expected, "{backend:?}: {query}");
        }
        // Newest first, in pages that join without a gap or a repetition.
        let mut all = Vec::new();
        let mut cursor = String::new();
        loop {
            let page = k.api("GET", &format!("/audit?limit=2&key={second}{cursor}"), None).await;
            let items = page["items"].as_array().unwrap();
            assert!(items.len() <= 2);
            all.extend(items.iter().filter(|row| row["action"] == "request").map(|row| row["request_id"].clone()));
            match page["next_cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => break,
            }
        }
        let expected: Vec<_> = asked.iter().rev().filter(|row| row.1 == second).map(|row| json!(row.0)).collect();
        assert_eq!(all, expected, "{backend:?}");
        for bad in ["key=nobody", "since=yesterday", "status=42", "limit=0", "limit=1000", "who=me"] {
            let path = format!("/api/organizations/default/audit?{bad}");
            assert_eq!(k.admin("GET", &path, None).await.refusal(), "bad_request", "{bad}");
        }
        k.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_that_was_sent_can_forge_a_line_or_leave_a_secret() {
    let k = Keyward::start().await;
    let upstream =
        Upstream::saying("HTTP/1.1 200 OK\r\nSet-Cookie: canary-in-an-answer\r\nContent-Length: 0\r\n\r\n").await;
    let key = k.with_upstream(&upstream).await;
    let path = |path: &[u8]| {
        let end = format!(" HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {}\r\n\r\n", key.secret);
        [b"GET /proxy/raw", path, end.as_bytes()].concat()
    };
    // What a terminal or a log reader would obey: control characters of ASCII are refused by the parser (such a head is
    // no request, and no record), those of Unicode by us.
    for bytes in [&b"/a\x7fb"[..], b"/a\rb", b"/a\x1b[31mb", b"/a\xc2\x85GET /forged"] {
        assert_eq!(k.ask(path(bytes)).await.refusal(), "bad_request");
    }
    for bytes in [&b"/a\xc2\x85forged"[..], b"/a\xc2\x9b31mred", b"/a\xe2\x80\xaeb"] {
        assert_eq!(k.ask(path(bytes)).await.refusal(), "bad_path");
    }
    k.ask(path(b"/a%0d%0aGET%20/forged")).await;
    k.ask(path(format!("/{}", "long".repeat(1500)).as_bytes())).await;
    // Queries, headers, bodies.
    let sent = [
        &head(
            &key,
            "POST /proxy/raw/form?token=canary-in-a-query&x=canary",
            &["X-Canary: canary", "Content-Length: 16"],
        )[..],
        b"canary-in-a-body",
    ];
    assert_eq!(k.ask(sent.concat()).await.status, 200);
    k.ask(path(b"/fine?password=canary")).await;
    k.agent(&key, "GET", "/bootstrap?canary=canary").await;
    // Keys in places where they are recorded if anything is.
    let hidden = key.secret.replacen('k', "%6b", 1);
    k.ask(path(format!("/x/{hidden}").as_bytes())).await;
    k.ask(head(&key, &format!("GET /proxy/{hidden}/x"), &[])).await;
    k.ask(head(&key, &format!("GET /proxy/{}/x", key.secret), &[])).await;
    k.ask(head(&key, &format!("{} /verify", key.secret), &[])).await;

    k.app.audit().flush().await;
    let found: Vec<_> = rows(&k.world).await.into_iter().filter(|row| row["action"] == "request").collect();
    assert_eq!(found.len(), 12);
    for row in &found {
        let text = format!("{:?}", row.values());
        let plain = row.values().all(|value| !value.chars().any(char::is_control));
        assert!(plain, "a control character was stored: {text}");
        assert!(row["path"].chars().count() <= 2100 && row["method"].len() <= 32, "{text}");
        let tail = &key.secret[4..];
        assert!(!text.contains("canary") && !text.contains(tail) && !text.contains('?'), "{text}");
    }
    assert!(found.iter().any(|row| row["path"] == "/a%0d%0aGET%20/forged"), "what is harmless stays as it came");
    k.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_hundred_requests_at_once_are_three_hundred_records() {
    for backend in backends() {
        let k = Keyward::with(backend, Settings::default()).await;
        let key = k.with_tools().await;
        let asked = (0..300).map(|n| {
            let (k, key) = (&k, &key);
            async move {
                let path = match n % 3 {
                    0 => "/proxy/tools/1k",
                    1 => "/proxy/none/x",
                    _ => "/proxy/tools/status/404",
                };
                id(&k.agent(key, "GET", path).await)
            }
        });
        let asked: BTreeSet<_> = futures_util::future::join_all(asked).await.into_iter().collect();
        let found: BTreeSet<_> = requests(&k, &format!("&key={}", key.id)).await.into_keys().collect();
        assert_eq!((asked.len(), found), (300, asked), "{backend:?}");
        let metrics = k.admin("GET", "/metrics", None).await.text();
        for line in ["{outcome=\"2xx\"} 100", "{outcome=\"4xx\"} 100", "{outcome=\"refused\"} 100"] {
            assert!(metrics.contains(&format!("keyward_requests_total{line}\n")), "{line}: {metrics}");
        }
        assert!(metrics.contains("keyward_audit_dropped_total 0\n"));
        k.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopping_writes_every_record() {
    let k = Keyward::configured("[shutdown]\ndeadline = \"1s\"").await;
    let upstream = Upstream::start(|mut line| async move {
        line.head().await;
        line.say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n").await;
        line.until(b"never").await;
    })
    .await;
    let key = k.with_tools().await;
    k.target("raw", &upstream.url(), json!({"kind": "none"})).await;
    k.grant(&key, "raw", "write").await;
    let mut open: Vec<Wire> = Vec::new();
    for _ in 0..5 {
        let mut wire = k.wire().await;
        wire.send(head(&key, "GET /proxy/raw/endless", &[])).await;
        wire.until(b"hello").await;
        open.push(wire);
    }
    let address = k.app.proxy_address();
    let request = || agent_request(&key, "GET", "/proxy/tools/1k").body(Full::<Bytes>::default()).unwrap();
    futures_util::future::join_all((0..200).map(|_| call(address, request()))).await;
    let Keyward { world, app, .. } = k;
    app.stop().await;
    let found: Vec<_> = rows(&world).await.into_iter().filter(|row| row["action"] == "request").collect();
    let count =
        |status: &str, code: &str| found.iter().filter(|row| row["status"] == status && row["code"] == code).count();
    assert_eq!((found.len(), count("200", ""), count("200", "aborted")), (205, 200, 5));
    world.outside.stop_now();
}

/// Places in the queue; as many requests as may be under way or unwritten.
const QUEUE: usize = 16_384;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_room_for_a_record_nothing_is_done() {
    let k = Keyward::start().await;
    let key = k.with_tools().await;
    let mut receipts = Vec::with_capacity(QUEUE);
    for _ in 0..QUEUE {
        receipts.push(k.app.audit().open(&Method::POST).await.unwrap());
    }
    let (proxied, told) = tokio::join!(k.agent(&key, "POST", "/proxy/tools/echo"), k.agent(&key, "GET", "/verify"));
    for answer in [&proxied, &told] {
        k.refused(answer, 503, "audit_unavailable", 0, "the queue is full");
        assert_eq!(answer.header("retry-after"), "5");
    }
    // A request that is waiting goes on as soon as there is room.
    let waiting = tokio::spawn(call(
        k.app.proxy_address(),
        agent_request(&key, "POST", "/proxy/tools/echo").body(Full::<Bytes>::default()).unwrap(),
    ));
    receipts.truncate(QUEUE - 10);
    assert_eq!(waiting.await.unwrap().status, 200);
    drop(receipts);
    // Writing them takes longer than one flush waits.
    let stored = async || rows(&k.world).await.iter().filter(|row| row["action"] == "request").count();
    for _ in 0..400 {
        if stored().await == QUEUE + 1 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(stored().await, QUEUE + 1, "every one of them is stored");
    k.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_an_operator_prefers_it_records_are_lost_and_counted() {
    let settings = Settings { toml: "[audit]\non_full = \"drop\"".into(), ..Settings::default() };
    let k = Keyward::with(Backend::Sqlite, settings).await;
    let key = k.with_tools().await;
    let mut receipts = Vec::with_capacity(QUEUE);
    for _ in 0..QUEUE {
        receipts.push(k.app.audit().open(&Method::POST).await.unwrap());
    }
    for _ in 0..3 {
        assert_eq!(k.agent(&key, "GET", "/proxy/tools/1k").await.status, 200);
    }
    let metrics = k.admin("GET", "/metrics", None).await.text();
    assert!(metrics.contains("keyward_audit_dropped_total 3\n"), "{metrics}");
    let changes = k.agent(&key, "POST", "/proxy/tools/echo").await;
    assert_eq!(changes.refusal(), "audit_unavailable", "what may change something never goes unrecorded");
    drop(receipts);
    let Keyward { world, app, .. } = k;
    app.stop().await;
    let rows = rows(&world).await;
    let gaps: Vec<_> =
        rows.iter().filter(|row| row["action"] == "audit.gap").map(|row| row["detail"].as_str()).collect();
    assert_eq!(gaps, [r#"{"lost":3}"#], "the trail itself says what is missing");
    world.outside.stop_now();
}
