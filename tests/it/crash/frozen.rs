//! An instance that stands still (SIGSTOP) beyond its lease with the provider's answer on its way, while another one goes
//! on: what the provider gave is never lost, and never brings back what a person ended.

use std::time::{Duration, Instant};

use keyward::sandbox::{Fault, Rotation};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::gateway::{Gateway, Listening};
use super::{api, arrived, ask};
use crate::harness::{Answer, Backend, Key, World, admin, backends, connect, slug};

/// Nothing in these tests takes longer: a lease, a refresh, and a look at what became of it.
const PATIENCE: Duration = Duration::from_secs(40);

/// Two gateways on one store, and an account whose token has ended.
struct Pair {
    world: World,
    frozen: Gateway,
    /// Kept alive.
    _other: Gateway,
    at_frozen: Listening,
    at_other: Listening,
    key: Key,
    account: String,
    path: String,
}

impl Pair {
    /// The first gateway's refresh has arrived at the provider, which works at once; then the gateway stands still.
    async fn frozen_in_a_refresh(backend: Backend, rotation: Rotation) -> (Self, JoinHandle<Option<Answer>>) {
        let world = World::new(backend).await;
        world.sandbox.set_rotation(rotation);
        let (mut frozen, mut other) = (Gateway::spawn(&world), Gateway::spawn(&world));
        let (at_frozen, at_other) = (frozen.ready().await, other.ready().await);
        let made = api(at_frozen.admin, "POST", "/keys", Some(json!({"name": "pair"}))).await;
        let text = |name: &str| made[name].as_str().unwrap().to_owned();
        let key = Key { id: text("id"), secret: text("key") };
        world.sandbox.set_access_ttl(Duration::from_secs(1));
        let account = connect(at_frozen.admin, "ada@example.com", "preset=write").await;
        let slug = slug(&account, "mail");
        api(at_frozen.admin, "PUT", &format!("/keys/{}/grants/{slug}", key.id), Some(json!({"access": "read"}))).await;
        let (account, path) = (account["id"].as_str().unwrap().to_owned(), format!("/proxy/{slug}/me/messages?$top=1"));
        let pair = Self { world, frozen, _other: other, at_frozen, at_other, key, account, path };
        pair.until_known_there().await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        pair.world.sandbox.set_access_ttl(Duration::from_secs(3600));

        let calls = pair.world.sandbox.counters().token_arrived;
        pair.world.sandbox.faults().token_times(Fault::SlowAfterWork(Duration::from_secs(1)), 1);
        let (proxy, key, path) = (pair.at_frozen.proxy, pair.key.clone(), pair.path.clone());
        let asked = tokio::spawn(async move { ask(proxy, &key, &path).await });
        arrived(&pair.world.sandbox, calls + 1).await;
        pair.frozen.signal("STOP");
        (pair, asked)
    }

    /// Waits until the other gateway lets the key at the target.
    async fn until_known_there(&self) {
        let begun = Instant::now();
        loop {
            let seen = ask(self.at_other.proxy, &self.key, "/verify").await.unwrap();
            if seen.status == 200 && seen.json()["targets"] == 1 {
                return;
            }
            assert!(begun.elapsed() < PATIENCE, "{}", seen.text());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Asks a gateway until it answers with the status, and the code if it is Keyward's own answer.
    async fn until(&self, at: Listening, status: u16, code: &str) {
        let begun = Instant::now();
        loop {
            let answer = ask(at.proxy, &self.key, &self.path).await.unwrap();
            if (answer.status.as_u16(), answer.header("keyward-error")) == (status, code) {
                return;
            }
            assert!(begun.elapsed() < PATIENCE, "{} {}\n{}", answer.status, answer.text(), self.frozen.log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn account(&self) -> Value {
        api(self.at_other.admin, "GET", &format!("/accounts/{}", self.account), None).await
    }

    /// Records of this action about the account, newest first.
    async fn told(&self, action: &str) -> Vec<Value> {
        let trail = api(self.at_other.admin, "GET", &format!("/audit?limit=200&account={}", self.account), None).await;
        trail["items"].as_array().unwrap().iter().filter(|record| record["action"] == action).cloned().collect()
    }

    async fn until_told(&self, action: &str, times: usize) -> Vec<Value> {
        let begun = Instant::now();
        loop {
            let told = self.told(action).await;
            if told.len() >= times {
                return told;
            }
            assert!(begun.elapsed() < PATIENCE, "{action}: {told:?}\n{}", self.frozen.log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_of_a_frozen_instance_bring_back_an_account_that_another_one_gave_up() {
    for backend in backends() {
        let (pair, asked) = Pair::frozen_in_a_refresh(backend, Rotation::Strict).await;
        // The refresh token is spent and its successor unknown here: once the lease is over, the account is lost.
        pair.until(pair.at_other, 503, "account_disconnected").await;
        let lost = pair.account().await;
        assert_eq!(
            (&lost["status"], &lost["reason"]),
            (&json!("disconnected"), &json!("lost_in_window")),
            "{backend:?}"
        );

        pair.frozen.signal("CONT");
        let _ = asked.await;
        pair.until(pair.at_frozen, 200, "").await;
        pair.until(pair.at_other, 200, "").await;
        let back = pair.account().await;
        assert_eq!(
            (&back["status"], &back["reason"], &back["validity"]),
            (&json!("connected"), &Value::Null, &json!("valid"))
        );
        let recovered = pair.told("account.recovered").await;
        assert_eq!(recovered.len(), 1, "{backend:?}");
        assert_eq!(recovered[0]["detail"]["after"], "lost_in_window");
        assert_eq!(pair.told("account.disconnected").await.len(), 1, "{backend:?}");
        assert_eq!(pair.world.sandbox.counters().refreshes("ok"), 1, "{backend:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_of_a_frozen_instance_are_given_back_when_a_person_disconnected_meanwhile() {
    for backend in backends() {
        let (pair, asked) = Pair::frozen_in_a_refresh(backend, Rotation::Soft).await;
        api(pair.at_other.admin, "DELETE", &format!("/accounts/{}?confirm=true", pair.account), None).await;
        pair.until_told("account.revoked_at_provider", 1).await;
        pair.frozen.signal("CONT");
        let _ = asked.await;
        let outcomes = pair.until_told("account.revoked_at_provider", 2).await;
        assert!(outcomes.iter().all(|record| record["detail"]["outcome"] == "ok"), "{backend:?}: {outcomes:?}");
        let path = format!("/api/organizations/default/accounts/{}", pair.account);
        assert_eq!(admin(pair.at_other.admin, "GET", &path, None).await.status, 404, "{backend:?}: no resurrection");
        pair.until(pair.at_frozen, 404, "target_not_found").await;
        assert!(pair.told("account.recovered").await.is_empty());
        let counters = pair.world.sandbox.counters();
        assert_eq!(counters.revoke_calls, 2, "{backend:?}: the stored token, and the one that came after it");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_of_a_frozen_instance_are_kept_when_another_one_fetched_its_own() {
    for backend in backends() {
        let (pair, asked) = Pair::frozen_in_a_refresh(backend, Rotation::Soft).await;
        pair.until(pair.at_other, 200, "").await;
        pair.frozen.signal("CONT");
        let _ = asked.await;
        pair.until(pair.at_frozen, 200, "").await;
        assert_eq!(pair.account().await["status"], "connected");
        for action in ["account.degraded", "account.disconnected", "account.recovered"] {
            assert!(pair.told(action).await.is_empty(), "{backend:?}: {action}");
        }
        // The current one is refused; what came late is not.
        let calls = pair.world.sandbox.counters().token_arrived;
        pair.world.sandbox.faults().token_times(Fault::Json(400, json!({"error": "invalid_grant"})), 1);
        api(pair.at_other.admin, "POST", &format!("/accounts/{}/refresh", pair.account), None).await;
        assert_eq!(
            pair.world.sandbox.counters().token_arrived - calls,
            2,
            "{backend:?}: the current one, then the late one"
        );
        assert_eq!(pair.account().await["status"], "connected", "{backend:?}");
    }
}
