//! No call that may change something leaves without a record: not when the store takes nothing, and not when the gateway
//! is killed at any instant.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use serde_json::json;
use sqlx::{Connection, Executor, PgConnection, SqliteConnection};
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::harness::{Key, Keyward, Settings, World, admin, agent_request, backends, call};
use crate::wire::{Process, Upstream, eventually, head};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";

/// Path, status and code of the requests that stand in the trail, oldest first.
async fn recorded(world: &World) -> Vec<(String, Option<i64>, Option<String>)> {
    let sql = "select path, status, code from audit join audit_series using (slice, series) where action = 'request' order by id";
    if world.store_url.starts_with("postgres") {
        let mut link = PgConnection::connect(&world.store_url).await.unwrap();
        return sqlx::query_as(sql).fetch_all(&mut link).await.unwrap();
    }
    let mut link = SqliteConnection::connect(&sqlite(world, "ro")).await.unwrap();
    sqlx::query_as(sql).fetch_all(&mut link).await.unwrap()
}

fn sqlite(world: &World, mode: &str) -> String {
    format!("sqlite://{}?mode={mode}", world.dir.path().join("keyward.db").display())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_may_change_something_is_on_record_before_it_leaves() {
    for backend in backends() {
        let k = Keyward::with(backend, Settings::default()).await;
        let go = Arc::new(Notify::new());
        let held = Arc::clone(&go);
        let upstream = Upstream::start(move |mut line| {
            let held = Arc::clone(&held);
            async move {
                while !line.head().await.is_empty() {
                    held.notified().await;
                    line.say(OK).await;
                }
            }
        })
        .await;
        let key = k.with_upstream(&upstream).await;
        for (n, method) in ["POST", "PUT", "PATCH", "DELETE", "PROPPATCH", "GET", "OPTIONS"].into_iter().enumerate() {
            let before = recorded(&k.world).await;
            let path = format!("/call/{n}");
            let mut wire = k.wire().await;
            wire.send(head(&key, &format!("{method} /proxy/raw{path}"), &["Content-Length: 0"])).await;
            eventually("it arrives", || upstream.requests() == n + 1).await;
            let mut expected = before.clone();
            if !matches!(method, "GET" | "OPTIONS") {
                expected.push((path.clone(), None, Some("unknown".into())));
            }
            assert_eq!(recorded(&k.world).await, expected, "{backend:?} {method}");
            go.notify_one();
            assert_eq!(wire.answer().await.status, 200);
            k.app.audit().flush().await;
            let mut expected = before;
            expected.push((path, Some(200), None));
            assert_eq!(recorded(&k.world).await, expected, "{backend:?} {method}: one record, completed");
        }
        k.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_websocket_is_on_record_before_it_leaves() {
    let k = Keyward::start().await;
    let go = Arc::new(Notify::new());
    let held = Arc::clone(&go);
    let upstream = Upstream::start(move |mut line| {
        let held = Arc::clone(&held);
        async move {
            line.head().await;
            held.notified().await;
            // Its handshake is turned down: a request like others.
            line.say(OK).await;
        }
    })
    .await;
    let credential = json!({"kind": "bearer", "token": "the-injected-token"});
    let target = json!({"slug": "live", "base_url": upstream.url(), "credential": credential, "websocket": true});
    k.api("POST", "/targets", Some(target)).await;
    let key = k.new_key().await;
    k.grant(&key, "live", "write").await;
    let before = recorded(&k.world).await;
    let shake = [
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version: 13",
    ];
    let mut wire = k.wire().await;
    wire.send(head(&key, "GET /proxy/live/a", &shake)).await;
    eventually("it arrives", || upstream.requests() == 1).await;
    let with = |status, code: Option<&str>| {
        let mut expected = before.clone();
        expected.push(("/a".to_owned(), status, code.map(str::to_owned)));
        expected
    };
    assert_eq!(recorded(&k.world).await, with(None, Some("unknown")));
    go.notify_one();
    assert_eq!(wire.answer().await.status, 200);
    k.app.audit().flush().await;
    assert_eq!(recorded(&k.world).await, with(Some(200), None));
    k.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_can_not_be_put_on_record_does_not_leave() {
    let k = Keyward::start().await;
    let upstream = Upstream::saying(OK).await;
    let key = k.with_upstream(&upstream).await;
    // As a full disk or a stuck backup would.
    let mut lock = SqliteConnection::connect(&sqlite(&k.world, "rw")).await.unwrap();
    lock.execute("begin immediate").await.unwrap();
    let read = k.agent(&key, "GET", "/proxy/raw/read").await;
    assert_eq!(read.status, 200, "what only reads goes on while its record finds a place");
    let refused = k.agent(&key, "POST", "/proxy/raw/change").await;
    assert_eq!((refused.status.as_u16(), &*refused.refusal()), (503, "audit_unavailable"));
    assert!(!refused.header("retry-after").is_empty());
    assert!(!upstream.seen().contains("/change"));
    lock.execute("rollback").await.unwrap();
    lock.close().await.unwrap();
    let healed = k.agent(&key, "POST", "/proxy/raw/healed").await;
    assert_eq!(healed.status, 200, "without a restart: {}", healed.text());
    let Keyward { world, app, .. } = k;
    app.stop().await;
    let mut told = recorded(&world).await;
    told.sort();
    let expected = [
        ("/change".to_owned(), Some(503), Some("audit_unavailable".to_owned())),
        ("/healed".to_owned(), Some(200), None),
        ("/read".to_owned(), Some(200), None),
    ];
    assert_eq!(told, expected);
    world.outside.stop_now();
}

/// Kills in the middle of many calls: what arrived upstream stands in the trail, always.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_at_any_instant_leaves_no_call_without_a_record() {
    let rounds = std::env::var("KEYWARD_KILL_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(12);
    for backend in backends() {
        let world = World::new(backend).await;
        let upstream = Upstream::start(|mut line| async move {
            while !line.head().await.is_empty() {
                tokio::time::sleep(Duration::from_millis(3)).await;
                line.say(OK).await;
            }
        })
        .await;
        let toml = format!("[targets.raw]\nbase_url = \"{}\"", upstream.url());
        let mut key = None;
        for round in 0..rounds {
            let mut process = Process::start(&world, &toml, &[], "info").await;
            let key = match &key {
                Some(key) => Key::clone(key),
                None => key.insert(a_key(process.admin).await).clone(),
            };
            let mut agents = JoinSet::new();
            for agent in 0..8 {
                let (key, proxy) = (key.clone(), process.proxy);
                agents.spawn(async move {
                    for n in 0.. {
                        let path = format!("/proxy/raw/round/{round}/{agent}/{n}");
                        let request = agent_request(&key, "POST", &path).body(Full::default()).unwrap();
                        if tokio::spawn(call(proxy, request)).await.is_err() {
                            return;
                        }
                    }
                });
            }
            let arrived = upstream.requests();
            eventually("calls arrive", || upstream.requests() > arrived + 20).await;
            tokio::time::sleep(Duration::from_millis(7 * (round % 10))).await;
            process.child.kill().unwrap();
            process.child.wait().unwrap();
            agents.abort_all();
            while agents.join_next().await.is_some() {}
        }
        let told: BTreeSet<String> = recorded(&world).await.into_iter().map(|(path, ..)| path).collect();
        let unknown = recorded(&world).await.iter().filter(|(.., code)| code.as_deref() == Some("unknown")).count();
        let seen = upstream.seen();
        let left = seen.lines().filter_map(|line| line.strip_prefix("POST ")?.strip_suffix(" HTTP/1.1"));
        for path in left {
            assert!(told.contains(path), "{backend:?}: {path} left without a record");
        }
        assert!(unknown > 0, "no kill hit a call that was under way");
        world.outside.stop_now();
    }
}

async fn a_key(address: std::net::SocketAddr) -> Key {
    let api = "/api/organizations/default/keys";
    let made = admin(address, "POST", api, Some(json!({"name": "agent"}))).await.json();
    let text = |name: &str| made[name].as_str().unwrap().to_owned();
    let key = Key { id: text("id"), secret: text("key") };
    let grant = admin(address, "PUT", &format!("{api}/{}/grants/raw", key.id), Some(json!({"access": "write"}))).await;
    assert!(grant.status.is_success(), "{}", grant.text());
    key
}
