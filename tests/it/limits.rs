//! What a key may use up, what the gateway and its targets have room for, and that what is over it is refused in time.

use std::io::ErrorKind;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use keyward::clock::{Clock, Timestamp};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::harness::{Answer, Backend, Key, Keyward, Settings, agent_request, backends};

fn held() -> Clock {
    Clock::held(Timestamp::from_millis(1_795_000_000_000))
}

fn settings(toml: &str) -> Settings {
    Settings { toml: toml.to_owned(), ..Settings::default() }
}

/// A key with these limits that may use `tools`.
async fn limited(k: &Keyward, limit: Value) -> Key {
    let key = k.api("POST", "/keys", Some(json!({"name": "limited", "rate_limit": limit}))).await;
    let key = Key { id: key["id"].as_str().unwrap().to_owned(), secret: key["key"].as_str().unwrap().to_owned() };
    k.grant(&key, "tools", "write").await;
    key
}

fn refused(answer: &Answer, code: &str, retry_after: &str) {
    assert_eq!(answer.refusal(), code);
    assert_eq!(answer.header("retry-after"), retry_after);
    assert_eq!(answer.status.as_u16(), if code == "rate_limited" { 429 } else { 503 });
}

/// A request whose answer is under way; dropped, the agent leaves.
struct Open {
    driver: tokio::task::JoinHandle<()>,
    answer: tokio::task::JoinHandle<http::Response<Incoming>>,
}

impl Open {
    async fn start(k: &Keyward, key: &Key, path: &str) -> Self {
        let stream = TcpStream::connect(k.app.proxy_address()).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        let driver = tokio::spawn(async move { drop(connection.await) });
        let request = agent_request(key, "GET", path).body(Empty::<Bytes>::new()).unwrap();
        let answer = tokio::spawn(async move { sender.send_request(request).await.unwrap() });
        Self { driver, answer }
    }

    async fn status(self) -> u16 {
        let answer = self.answer.await.unwrap();
        let status = answer.status().as_u16();
        answer.into_body().collect().await.unwrap();
        self.driver.abort();
        status
    }

    fn leave(self) {
        self.answer.abort();
        self.driver.abort();
    }
}

/// An upstream that answers when the test says so.
pub struct Upstream {
    listener: TcpListener,
}

impl Upstream {
    /// As the target `tools`.
    pub async fn start(k: &Keyward, more: Value) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut target = json!({
            "slug": "tools", "name": "Tools", "base_url": format!("http://{}", listener.local_addr().unwrap()),
            "credential": {"kind": "bearer", "token": "the-injected-token"},
        });
        target.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        k.api("POST", "/targets", Some(target)).await;
        Self { listener }
    }

    /// The next request that arrives, its head read.
    pub async fn next(&self) -> (TcpStream, String) {
        next(&self.listener).await
    }
}

/// The next request that arrives there, its head read. A connection that ends without a word had none: its agent left.
pub async fn next(listener: &TcpListener) -> (TcpStream, String) {
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            match stream.read_u8().await {
                Ok(byte) => head.push(byte),
                Err(error) if head.is_empty() && error.kind() == ErrorKind::UnexpectedEof => break,
                Err(error) => panic!("{error} in the middle of a head"),
            }
        }
        if !head.is_empty() {
            return (stream, String::from_utf8(head).unwrap());
        }
    }
}

pub async fn say(stream: &mut TcpStream, text: &str) {
    stream.write_all(text.as_bytes()).await.unwrap();
}

/// Asks until the answer is not the refusal any more: what was given back is seen a moment later.
async fn until_let_in(k: &Keyward, key: &Key, path: &str) -> Answer {
    for _ in 0..500 {
        let answer = k.agent(key, "GET", path).await;
        if !matches!(answer.status.as_u16(), 429 | 503) {
            return answer;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("nothing was given back");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_has_its_requests_at_once_and_gets_them_back_evenly() {
    for backend in backends() {
        let clock = held();
        let k = Keyward::with_clock(backend, Settings::default(), clock.clone()).await;
        k.tools().await;
        let key = limited(&k, json!({"requests": 4, "per": "1m"})).await;
        let other = limited(&k, Value::Null).await;
        for path in ["/proxy/tools/1k", "/bootstrap", "/verify", "/proxy/nothing/at-all"] {
            assert_ne!(k.agent(&key, "GET", path).await.status.as_u16(), 429, "{path}");
        }
        for path in ["/proxy/tools/1k", "/bootstrap", "/verify"] {
            refused(&k.agent(&key, "GET", path).await, "rate_limited", "15");
            assert_eq!(k.agent(&other, "GET", path).await.status, 200, "another key is not touched");
        }
        // Other changes leave the count alone, those of the numbers begin it anew.
        k.api("PATCH", &format!("/keys/{}", key.id), Some(json!({"name": "renamed"}))).await;
        clock.advance(Duration::from_millis(14_001));
        refused(&k.agent(&key, "GET", "/verify").await, "rate_limited", "1");
        clock.advance(Duration::from_millis(999));
        assert_eq!(k.agent(&key, "GET", "/verify").await.status, 200);
        refused(&k.agent(&key, "GET", "/verify").await, "rate_limited", "15");
        k.api("PATCH", &format!("/keys/{}", key.id), Some(json!({"rate_limit": {"requests": 1}}))).await;
        assert_eq!(k.agent(&key, "GET", "/verify").await.status, 200);
        refused(&k.agent(&key, "GET", "/verify").await, "rate_limited", "60");
        k.api("PATCH", &format!("/keys/{}", key.id), Some(json!({"rate_limit": null}))).await;
        for _ in 0..5 {
            assert_eq!(k.agent(&key, "GET", "/verify").await.status, 200);
        }
        let records = k.audit(&format!("&key={}&status=429", key.id)).await;
        assert_eq!(records.len(), 6);
        assert!(records.iter().all(|record| record["code"] == "rate_limited"), "{records:?}");
        k.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_without_limits_have_those_of_the_configuration() {
    let toml = "[proxy.limits.per_key]\nrequests = 1\nper = \"1h\"";
    let k = Keyward::with_clock(Backend::Sqlite, settings(toml), held()).await;
    k.tools().await;
    let (usual, own) = (limited(&k, Value::Null).await, limited(&k, json!({"requests": 2})).await);
    assert_eq!(k.agent(&usual, "GET", "/verify").await.status, 200);
    refused(&k.agent(&usual, "GET", "/verify").await, "rate_limited", "3600");
    for _ in 0..2 {
        assert_eq!(k.agent(&own, "GET", "/verify").await.status, 200);
    }
    refused(&k.agent(&own, "GET", "/verify").await, "rate_limited", "30");
    k.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_place_is_taken_until_the_last_byte_or_until_the_agent_leaves() {
    let k = Keyward::start().await;
    let upstream = Upstream::start(&k, json!({})).await;
    let key = limited(&k, json!({"concurrent": 1})).await;

    let open = Open::start(&k, &key, "/proxy/tools/a").await;
    let (mut stream, _) = upstream.next().await;
    refused(&k.agent(&key, "GET", "/verify").await, "rate_limited", "1");
    say(&mut stream, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab").await;
    refused(&k.agent(&key, "GET", "/verify").await, "rate_limited", "1");
    say(&mut stream, "cd").await;
    assert_eq!(open.status().await, 200);
    assert_eq!(until_let_in(&k, &key, "/verify").await.status, 200);

    let open = Open::start(&k, &key, "/proxy/tools/b").await;
    let mut more = [0; 1];
    // The kept connection, or a new one.
    let second = tokio::select! {
        _ = stream.read(&mut more) => stream,
        (second, _) = upstream.next() => second,
    };
    refused(&k.agent(&key, "GET", "/verify").await, "rate_limited", "1");
    open.leave();
    assert_eq!(until_let_in(&k, &key, "/verify").await.status, 200);
    drop(second);
    k.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_many_requests_under_way_are_refused_before_anything_is_done() {
    let k = Keyward::with(Backend::Sqlite, settings("[proxy.limits]\nrequests = 2")).await;
    let upstream = Upstream::start(&k, json!({})).await;
    let key = limited(&k, Value::Null).await;
    let nobody = Key { id: String::new(), secret: "kw_nobody".to_owned() };

    let (first, second) =
        (Open::start(&k, &key, "/proxy/tools/a").await, Open::start(&k, &key, "/proxy/tools/b").await);
    let (mut one, _) = upstream.next().await;
    let (two, _) = upstream.next().await;
    for path in ["/proxy/tools/c", "/verify", "/bootstrap", "/proxy/nothing"] {
        refused(&k.agent(&key, "GET", path).await, "overloaded", "1");
        refused(&k.agent(&nobody, "GET", path).await, "overloaded", "1");
    }
    assert_eq!(k.agent(&key, "GET", "/healthz").await.status, 200, "whoever watches must not think that it is dead");
    let metrics = k.admin("GET", "/metrics", None).await.text();
    assert!(metrics.contains("keyward_requests_shed_total 8\n"), "{metrics}");

    say(&mut one, "HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n").await;
    drop(two);
    let mut statuses = [first.status().await, second.status().await];
    statuses.sort_unstable();
    assert_eq!(statuses, [204, 502]);
    assert_eq!(until_let_in(&k, &key, "/verify").await.status, 200);
    k.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_gets_no_more_at_once_than_it_takes() {
    for backend in backends() {
        let k = Keyward::with(backend, settings("[proxy.timeouts]\nqueue = \"60s\"")).await;
        let upstream = Upstream::start(&k, json!({"concurrency": 1})).await;
        assert_eq!(k.api("GET", "/targets/tools", None).await["concurrency"], 1);
        let key = limited(&k, Value::Null).await;

        let first = Open::start(&k, &key, "/proxy/tools/a").await;
        let (mut stream, _) = upstream.next().await;
        let second = Open::start(&k, &key, "/proxy/tools/b").await;
        // What changes elsewhere lets nobody through.
        k.api("PATCH", "/targets/tools", Some(json!({"name": "Renamed"}))).await;
        assert_eq!(k.agent(&key, "GET", "/verify").await.status, 200, "only the target is full");
        say(&mut stream, "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nConnection: close\r\n\r\n").await;
        // The second comes when the first has its last byte, and not before.
        let early = tokio::select! {
            biased;
            _ = upstream.next() => true,
            () = async {
                k.agent(&key, "GET", "/verify").await;
                say(&mut stream, "x").await;
            } => false,
        };
        assert!(!early);
        let (mut stream, head) = upstream.next().await;
        assert!(head.starts_with("GET /b "), "{head}");
        say(&mut stream, "HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n").await;
        assert_eq!((first.status().await, second.status().await), (200, 204));

        // An agent that leaves while it waits takes nothing with it.
        let held = Open::start(&k, &key, "/proxy/tools/c").await;
        let (mut stream, _) = upstream.next().await;
        let waiting = Open::start(&k, &key, "/proxy/tools/d").await;
        k.agent(&key, "GET", "/verify").await;
        waiting.leave();
        let last = Open::start(&k, &key, "/proxy/tools/e").await;
        say(&mut stream, "HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n").await;
        assert_eq!(held.status().await, 204);
        let (mut stream, head) = upstream.next().await;
        // The one that left may have been sent before it was seen to be gone.
        if head.starts_with("GET /d ") {
            drop(stream);
            stream = upstream.next().await.0;
        }
        say(&mut stream, "HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n").await;
        assert_eq!(last.status().await, 204);
        k.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_finds_no_room_at_a_target_in_time_is_refused() {
    let system = Settings {
        toml:
            "[proxy.timeouts]\nqueue = \"10ms\"\n[targets.vendor]\nbase_url = \"http://127.0.0.1:9\"\nconcurrency = 3\n\
               [providers.sandbox.capabilities.mail]\nconcurrency = 2"
                .to_owned(),
        ..Settings::default()
    };
    let k = Keyward::with(Backend::Sqlite, system).await;
    let upstream = Upstream::start(&k, json!({"concurrency": 1})).await;
    let key = limited(&k, Value::Null).await;
    let first = Open::start(&k, &key, "/proxy/tools/a").await;
    let (mut stream, _) = upstream.next().await;
    refused(&k.agent(&key, "GET", "/proxy/tools/b").await, "overloaded", "1");
    refused(&k.agent(&key, "POST", "/proxy/tools/b").await, "overloaded", "1");
    let records = k.audit("&target=tools&status=503").await;
    assert!(records.len() == 2 && records.iter().all(|record| record["code"] == "overloaded"), "{records:?}");
    say(&mut stream, "HTTP/1.1 204 No Content\r\n\r\n").await;
    assert_eq!(first.status().await, 204);

    k.api("PATCH", "/targets/tools", Some(json!({"concurrency": null}))).await;
    assert!(k.api("GET", "/targets/tools", None).await["concurrency"].is_null());
    for wrong in [json!(0), json!(10_001), json!(-1), json!("many")] {
        let path = "/api/organizations/default/targets/tools";
        let answer = k.admin("PATCH", path, Some(json!({"concurrency": wrong}))).await;
        assert_eq!(answer.status, 400, "{wrong}");
    }
    assert_eq!(k.api("GET", "/targets/vendor", None).await["concurrency"], 3);
    let account = k.connect("ada@example.com").await;
    let mail = crate::harness::slug(&account, "mail");
    assert_eq!(k.api("GET", &format!("/targets/{mail}"), None).await["concurrency"], 2);
    k.stop().await;
}

/// What becomes of a body that brings a byte five times a second: the answer's first line, or nothing when it still goes on
/// after so many bytes.
async fn trickled(k: &Keyward, key: &Key, bytes: usize) -> Option<String> {
    let mut stream = TcpStream::connect(k.app.proxy_address()).await.unwrap();
    let head = format!(
        "POST /proxy/tools/echo HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {}\r\nTransfer-Encoding: chunked\r\n\r\n",
        key.secret
    );
    say(&mut stream, &head).await;
    let mut answer = [0; 64];
    for _ in 0..bytes {
        let pause = tokio::time::sleep(Duration::from_millis(200));
        tokio::select! {
            read = stream.read(&mut answer) => {
                let text = String::from_utf8_lossy(&answer[..read.unwrap()]).into_owned();
                return text.lines().next().map(str::to_owned);
            }
            () = pause => say(&mut stream, "1\r\nx\r\n").await,
        }
    }
    None
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_only_trickles_is_cut() {
    let cut = Some("HTTP/1.1 408 Request Timeout");
    for (rate, bytes, expected) in [("100 B", 300, cut), ("none", 15, None), ("1 B", 15, None)] {
        let toml = format!("[proxy.timeouts]\nidle = \"1s\"\n[proxy.limits]\nrequest_body_rate = \"{rate}\"");
        let k = Keyward::with(Backend::Sqlite, settings(&toml)).await;
        k.tools().await;
        let key = limited(&k, Value::Null).await;
        assert_eq!(trickled(&k, &key, bytes).await.as_deref(), expected, "{rate}");
        if expected.is_some() {
            let records = k.audit("&target=tools&status=408").await;
            assert_eq!((records.len(), records[0]["code"].as_str()), (1, Some("timeout")));
        }
        k.stop().await;
    }
}
