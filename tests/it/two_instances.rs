//! Several instances on one store.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Full;
use keyward::app::App;
use keyward::clock::{Clock, Timestamp};
use keyward::sandbox::{Fault, Rotation};
use serde_json::{Value, json};

use crate::harness::{Answer, Backend, Key, Settings, World, admin, agent_request, backends, call, connect, slug};

/// Several instances in one world, an account, and a key that may use it.
struct Cluster {
    world: World,
    apps: Vec<App>,
    account: Value,
    key: Key,
}

impl Cluster {
    async fn new(backend: Backend, size: usize) -> Self {
        let world = World::with_clock(backend, Clock::held(Timestamp::from_millis(1_795_000_000_000))).await;
        world.sandbox.set_rotation(Rotation::Strict);
        let mut apps = Vec::new();
        for _ in 0..size {
            apps.push(world.instance(&Settings::default()).await);
        }
        let first = apps[0].admin_address();
        let account = connect(first, "ada@example.com", "preset=write").await;
        let made = api(first, "POST", "/keys", Some(json!({"name": "cluster"}))).await;
        let key = Key { id: made["id"].as_str().unwrap().to_owned(), secret: made["key"].as_str().unwrap().to_owned() };
        let path = format!("/keys/{}/grants/{}", key.id, slug(&account, "mail"));
        api(first, "PUT", &path, Some(json!({"access": "write"}))).await;
        let cluster = Self { world, apps, account, key };
        for app in &cluster.apps {
            cluster.until(app, 200).await;
        }
        cluster
    }

    fn path(&self) -> String {
        format!("/proxy/{}/me/messages?$top=1", slug(&self.account, "mail"))
    }

    async fn ask(&self, app: &App) -> Answer {
        get(app.proxy_address(), &self.key, &self.path()).await
    }

    /// Asks this instance until it answers with the status; answers how long that took.
    async fn until(&self, app: &App, status: u16) -> Duration {
        let begun = Instant::now();
        loop {
            let answer = self.ask(app).await;
            if answer.status == status {
                return begun.elapsed();
            }
            assert!(begun.elapsed() < Duration::from_secs(10), "{} {}", answer.status, answer.text());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn stop(self) {
        for app in self.apps {
            app.stop().await;
        }
        self.world.outside.stop_now();
    }
}

async fn get(address: SocketAddr, key: &Key, path: &str) -> Answer {
    call(address, agent_request(key, "GET", path).body(Full::<Bytes>::default()).unwrap()).await
}

async fn api(address: SocketAddr, method: &str, path: &str, body: Option<Value>) -> Value {
    let answer = admin(address, method, &format!("/api/organizations/default{path}"), body).await;
    assert!(answer.status.is_success(), "{method} {path}: {} {}", answer.status, answer.text());
    if answer.body.is_empty() { Value::Null } else { answer.json() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_instances_refresh_an_expired_token_once() {
    for backend in backends() {
        let cluster = Cluster::new(backend, 3).await;
        for round in 1..=2u64 {
            cluster.world.clock.advance(Duration::from_secs(2 * 3600));
            let asked = (0..900).map(|n| cluster.ask(&cluster.apps[n % 3]));
            let answers = futures_util::future::join_all(asked).await;
            for answer in answers {
                assert_eq!(answer.status, 200, "{backend:?}: {}", answer.text());
            }
            let counters = cluster.world.sandbox.counters();
            assert_eq!(counters.refresh_calls(), round, "{backend:?}: one call for three instances");
            assert_eq!(counters.reuse_detected, 0);
        }
        cluster.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_key_stops_working_everywhere_within_a_second() {
    for backend in backends() {
        let cluster = Cluster::new(backend, 3).await;
        let first = &cluster.apps[0];
        api(first.admin_address(), "DELETE", &format!("/keys/{}", cluster.key.id), None).await;
        assert_eq!(cluster.ask(first).await.status, 401, "here: with the next request");
        for app in &cluster.apps[1..] {
            let took = cluster.until(app, 401).await;
            assert!(took < Duration::from_secs(1), "{backend:?}: {took:?}");
        }
        cluster.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_that_is_disconnected_here_is_gone_there() {
    for backend in backends() {
        let cluster = Cluster::new(backend, 2).await;
        let path = format!("/accounts/{}?confirm=true", cluster.account["id"].as_str().unwrap());
        api(cluster.apps[0].admin_address(), "DELETE", &path, None).await;
        let took = cluster.until(&cluster.apps[1], 404).await;
        assert!(took < Duration::from_secs(1), "{backend:?}: {took:?}");
        cluster.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_refresh_is_told_once_and_a_reconnect_reaches_every_instance() {
    for backend in backends() {
        let cluster = Cluster::new(backend, 2).await;
        cluster.world.sandbox.revoke_all_of("ada@example.com");
        cluster.world.clock.advance(Duration::from_secs(2 * 3600));
        let asked = (0..40).map(|n| cluster.ask(&cluster.apps[n % 2]));
        for answer in futures_util::future::join_all(asked).await {
            assert_eq!(answer.refusal(), "account_disconnected");
        }
        let address = cluster.apps[0].admin_address();
        let trail = api(address, "GET", "/audit?limit=200", None).await;
        let told = trail["items"].as_array().unwrap().iter().filter(|row| row["action"] == "account.disconnected");
        assert_eq!(told.count(), 1, "{backend:?}");
        assert_eq!(cluster.world.sandbox.counters().refresh_calls(), 1, "{backend:?}: later requests fail fast");

        let again = connect(address, "ada@example.com", "preset=write").await;
        assert_eq!(again["id"], cluster.account["id"], "reconnected in place");
        for app in &cluster.apps {
            cluster.until(app, 200).await;
        }
        cluster.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_that_a_provider_ended_is_refused_everywhere_although_its_token_lives() {
    for backend in backends() {
        let cluster = Cluster::new(backend, 2).await;
        cluster.world.sandbox.revoke_all_of("ada@example.com");
        let path = format!("/api/organizations/default/accounts/{}/refresh", cluster.account["id"].as_str().unwrap());
        let refused = admin(cluster.apps[0].admin_address(), "POST", &path, None).await;
        assert_eq!(refused.refusal(), "account_disconnected");
        let took = cluster.until(&cluster.apps[1], 503).await;
        assert!(took < Duration::from_secs(2), "{backend:?}: {took:?}");
        assert_eq!(cluster.ask(&cluster.apps[1]).await.refusal(), "account_disconnected");
        cluster.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_instances_ask_a_failing_provider_no_more_often_than_one() {
    for backend in backends() {
        let cluster = Cluster::new(backend, 2).await;
        cluster.world.clock.advance(Duration::from_secs(2 * 3600));
        let down = |wish: Option<&str>| Fault::Status { status: 503, retry_after: wish.map(str::to_owned) };
        let arrived = || cluster.world.sandbox.counters().token_arrived;
        let refused = async || {
            let answers = cluster.apps.iter().map(|app| cluster.ask(app));
            for answer in futures_util::future::join_all(answers).await {
                assert_eq!(answer.refusal(), "token_unavailable", "{backend:?}");
            }
        };
        cluster.world.sandbox.faults().token(down(None));
        let before = arrived();
        for _ in 0..120 {
            refused().await;
            cluster.world.clock.advance(Duration::from_millis(500));
        }
        let made = arrived() - before;
        assert!((4..=8).contains(&made), "{backend:?}: {made} calls in the first minute");

        // What one of them was told to wait, the other waits too; a third that starts now as well.
        cluster.world.clock.advance(Duration::from_secs(75));
        cluster.world.sandbox.faults().token(down(Some("1800")));
        refused().await;
        let before = arrived();
        let third = cluster.world.instance(&Settings::default()).await;
        cluster.world.clock.advance(Duration::from_secs(1790));
        refused().await;
        assert_eq!(cluster.ask(&third).await.refusal(), "token_unavailable", "{backend:?}");
        assert_eq!(arrived(), before, "{backend:?}: nobody asks before the time");

        // A person need not wait, and what they bring about is everybody's.
        cluster.world.sandbox.faults().clear();
        let path = format!("/accounts/{}/refresh", cluster.account["id"].as_str().unwrap());
        api(third.admin_address(), "POST", &path, None).await;
        for app in &cluster.apps {
            assert_eq!(cluster.ask(app).await.status, 200, "{backend:?}");
        }
        assert_eq!(arrived(), before + 1, "{backend:?}");
        third.stop().await;
        cluster.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_that_a_provider_refused_are_tried_again_after_a_restart() {
    for backend in backends() {
        let cluster = Cluster::new(backend, 2).await;
        cluster.world.clock.advance(Duration::from_secs(2 * 3600));
        let fault = Fault::Json(401, json!({"error": "invalid_client"}));
        cluster.world.sandbox.faults().token(fault);
        for app in &cluster.apps {
            assert_eq!(cluster.ask(app).await.refusal(), "token_unavailable", "{backend:?}");
        }
        assert_eq!(cluster.world.sandbox.counters().token_arrived, 2, "{backend:?}: connecting, and one refresh");
        cluster.world.sandbox.faults().clear();
        cluster.world.clock.advance(Duration::from_secs(2));
        assert_eq!(cluster.ask(&cluster.apps[1]).await.refusal(), "token_unavailable", "{backend:?}: not yet");
        let corrected = cluster.world.instance(&Settings::default()).await;
        assert_eq!(cluster.ask(&corrected).await.status, 200, "{backend:?}: at once");
        corrected.stop().await;
        cluster.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_that_waits_for_another_ones_refresh_uses_its_token() {
    for backend in backends() {
        let cluster = Cluster::new(backend, 2).await;
        cluster.world.sandbox.faults().token_times(Fault::SlowAfterWork(Duration::from_millis(800)), 1);
        cluster.world.clock.advance(Duration::from_secs(2 * 3600));
        let slow = cluster.ask(&cluster.apps[0]);
        let waiting = async {
            cluster.world.sandbox.wait_for_token_calls(2).await;
            cluster.ask(&cluster.apps[1]).await
        };
        let (slow, waiting) = tokio::join!(slow, waiting);
        assert_eq!((slow.status.as_u16(), waiting.status.as_u16()), (200, 200), "{backend:?}");
        assert_eq!(cluster.world.sandbox.counters().refresh_calls(), 1, "{backend:?}");
        cluster.stop().await;
    }
}
