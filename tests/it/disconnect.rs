//! Disconnecting an account: what goes here at once, and what is done at the provider until it is done.

use std::time::Duration;

use http::StatusCode;
use keyward::clock::{Clock, Timestamp};
use keyward::ids::{AccountId, CandidateId};
use keyward::sandbox::{Fault, Place};
use keyward::vault::Sealed;
use serde_json::{Value, json};

use crate::browser::{Browser, counted, trail};
use crate::connect::connect_in;
use crate::harness::{Backend, Keyward, Settings, World, backends, consent, open_flow, paste_back, slug};

const ADA: &str = "ada@example.com";

async fn held(backend: Backend) -> (Keyward, Clock) {
    let clock = Clock::held(Timestamp::parse("2026-03-01T12:00:00Z").unwrap());
    (Keyward::with_clock(backend, Settings::default(), clock.clone()).await, clock)
}

fn failing() -> Fault {
    Fault::Status { status: 503, retry_after: None }
}

fn path(account: &Value) -> String {
    format!("/api/organizations/default/accounts/{}", id(account))
}

fn id(account: &Value) -> &str {
    account["id"].as_str().unwrap()
}

async fn grants(keyward: &Keyward, key: &str) -> Value {
    keyward.api("GET", &format!("/keys/{key}/grants"), None).await["items"].clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_with_grants_goes_when_somebody_says_so_twice() {
    for backend in backends() {
        let keyward = Keyward::with(backend, Settings::default()).await;
        let (account, key) = keyward.connected().await;
        let before = grants(&keyward, &key.id).await;
        let shown = keyward.admin("GET", &path(&account), None).await.json();

        for query in ["", "?confirm=false"] {
            let refused = keyward.admin("DELETE", &format!("{}{query}", path(&account)), None).await;
            assert_eq!((refused.status, refused.refusal()), (StatusCode::CONFLICT, "needs_confirmation".to_owned()));
            assert!(refused.text().contains("2 grants") && refused.text().contains("?confirm=true"));
        }
        assert_eq!(keyward.admin("GET", &path(&account), None).await.json(), shown, "nothing was changed");
        assert_eq!(grants(&keyward, &key.id).await, before);
        assert_eq!(keyward.agent(&key, "GET", &messages(&account)).await.status, StatusCode::OK);
        assert_eq!(keyward.sandbox().counters().revoke_calls, 0);

        let gone = keyward.admin("DELETE", &format!("{}?confirm=true", path(&account)), None).await;
        assert_eq!(gone.status, StatusCode::OK, "{}", gone.text());
        let mut slugs = vec![slug(&account, "calendar"), slug(&account, "mail")];
        slugs.sort();
        assert_eq!(gone.json(), json!({"id": id(&account), "removed_targets": slugs}));
        for method in ["GET", "DELETE"] {
            let refused = keyward.admin(method, &path(&account), None).await;
            assert_eq!((refused.status, refused.refusal()), (StatusCode::NOT_FOUND, "account_not_found".to_owned()));
        }
        assert_eq!(keyward.api("GET", "/accounts", None).await["items"], json!([]));
        assert_eq!(keyward.api("GET", "/targets", None).await["items"], json!([]));
        assert_eq!(grants(&keyward, &key.id).await, json!([]));
        let refused = keyward.agent(&key, "GET", &messages(&account)).await;
        assert_eq!((refused.status, refused.refusal()), (StatusCode::NOT_FOUND, "target_not_found".to_owned()));
        keyward.stop().await;
    }
}

fn messages(account: &Value) -> String {
    format!("/proxy/{}/me/messages", slug(account, "mail"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_grant_is_revoked_once_and_the_trail_says_so() {
    for backend in backends() {
        let keyward = Keyward::with(backend, Settings::default()).await;
        let account = keyward.connect(ADA).await;
        keyward.api("DELETE", &format!("/accounts/{}", id(&account)), None).await;
        counted(&keyward, |counters| counters.revocations == 1).await;
        let outcome = &trail(&keyward, id(&account), "account.revoked_at_provider", 1).await[0];
        assert_eq!(outcome["detail"]["outcome"], "ok");
        assert_eq!((&outcome["detail"]["tries"], &outcome["actor"]), (&json!(1), &json!("system")));
        let ended = trail(&keyward, id(&account), "account.disconnected", 1).await;
        assert_eq!((ended.len(), &ended[0]["actor"]), (1, &json!("admin_token")));
        assert_eq!(ended[0]["detail"], json!({"reason": "requested", "provider": "sandbox", "revocation": "queued"}));
        assert_eq!(keyward.app.accounts().step_revocations().await.unwrap(), 0, "nothing is left to do");
        let counters = keyward.sandbox().counters();
        assert_eq!((counters.revoke_calls, counters.families.values().all(|family| family.revoked)), (1, true));
        keyward.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revocation_that_fails_is_tried_again_until_it_is_done() {
    for backend in backends() {
        let (keyward, clock) = held(backend).await;
        let account = keyward.connect(ADA).await;
        let mut tries = 0;
        for fault in [failing(), Fault::Status { status: 429, retry_after: Some("1800".to_owned()) }] {
            keyward.sandbox().faults().times(Place::Revoke, fault, 1);
        }
        // Gone here at once, whatever the provider does.
        keyward.api("DELETE", &format!("/accounts/{}", id(&account)), None).await;
        let failed = &trail(&keyward, id(&account), "account.revoke_failed", 1).await[0];
        assert_eq!(failed["detail"], json!({"provider": "sandbox", "code": "provider_unavailable"}));
        for pause in [59, 2] {
            clock.advance(Duration::from_secs(pause));
            tries = keyward.app.accounts().step_revocations().await.unwrap();
        }
        assert_eq!(tries, 1, "a minute later, and not before");
        // The provider's own wish counts when it is longer than ours.
        clock.advance(Duration::from_secs(29 * 60));
        assert_eq!(keyward.app.accounts().step_revocations().await.unwrap(), 0);
        assert_eq!(keyward.sandbox().counters().revoke_calls, 0);
        clock.advance(Duration::from_secs(60));
        assert_eq!(keyward.app.accounts().step_revocations().await.unwrap(), 1);

        let outcome = trail(&keyward, id(&account), "account.revoked_at_provider", 1).await;
        assert_eq!(outcome[0]["detail"]["outcome"], "ok");
        assert_eq!((outcome.len(), &outcome[0]["detail"]["tries"]), (1, &json!(3)));
        assert_eq!(trail(&keyward, id(&account), "account.revoke_failed", 1).await.len(), 1, "told once");
        assert_eq!(keyward.sandbox().counters().revocations, 1);
        keyward.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revocation_that_never_works_is_given_up_where_it_can_be_seen() {
    let (keyward, clock) = held(Backend::Sqlite).await;
    let account = keyward.connect(ADA).await;
    keyward
        .sandbox()
        .faults()
        .revoke(Fault::Json(401, json!({"error": "invalid_client", "error_description": "CANARY"})));
    keyward.api("DELETE", &format!("/accounts/{}", id(&account)), None).await;
    trail(&keyward, id(&account), "account.revoke_failed", 1).await;
    let mut tries = 1;
    for _ in 0..12 {
        clock.advance(Duration::from_secs(6 * 3600));
        tries += keyward.app.accounts().step_revocations().await.unwrap();
    }
    assert_eq!(tries, 10);
    let outcome = trail(&keyward, id(&account), "account.revoked_at_provider", 1).await;
    assert_eq!(
        outcome[0]["detail"],
        json!({"provider": "sandbox", "outcome": "gave_up", "tries": 10, "code": "invalid_client"})
    );
    keyward.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_is_dead_already_counts_as_revoked() {
    let keyward = Keyward::start().await;
    let account = keyward.connect(ADA).await;
    // Google and others answer 400 to what the standard has a 200 for.
    let fault = Fault::Json(400, json!({"error": "invalid_token"}));
    keyward.sandbox().faults().times(Place::Revoke, fault, 1);
    keyward.api("DELETE", &format!("/accounts/{}", id(&account)), None).await;
    let outcome = trail(&keyward, id(&account), "account.revoked_at_provider", 1).await;
    assert_eq!((&outcome[0]["detail"]["outcome"], &outcome[0]["detail"]["tries"]), (&json!("ok"), &json!(1)));
    keyward.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connecting_again_makes_a_new_account_without_the_old_ones_grants() {
    for backend in backends() {
        let keyward = Keyward::with(backend, Settings::default()).await;
        let (before, key) = keyward.connected().await;
        keyward.api("DELETE", &format!("/accounts/{}?confirm=true", id(&before)), None).await;
        trail(&keyward, id(&before), "account.revoked_at_provider", 1).await;
        let after = keyward.connect(ADA).await;
        assert_eq!(after["subject"], before["subject"]);
        assert_ne!(after["id"], before["id"]);
        assert_ne!(slug(&after, "mail"), slug(&before, "mail"));
        assert_eq!(grants(&keyward, &key.id).await, json!([]));
        trail(&keyward, id(&after), "account.connected", 1).await;
        let seen = keyward.api("POST", &format!("/accounts/{}/validate", id(&after)), None).await;
        assert_eq!(seen["is_valid"], true, "the revocation was of the old one's tokens");
        keyward.stop().await;
    }
}

/// A second provider that is another product of the same service, through the same client.
const SECOND_PRODUCT: &str = r#"
[providers.second]
name = "Second"
env = "SANDBOX"
[providers.second.oauth]
authorize_url = "{origin}/oauth/authorize"
token_url = "{origin}/oauth/token"
revoke_url = "{origin}/oauth/revoke"
scopes = ["offline_access", "User.Read"]
[providers.second.identity]
url = "{origin}/v1.0/me"
subject = "/id"
email = ["/mail"]
[providers.second.capabilities.files]
name = "Files"
base_url = "{origin}/v1.0"
scopes.read = ["Mail.Read"]
scopes.write = ["Mail.Read"]
fence = ["/**"]
[providers.second.inputs.origin]
label = "Address"
pattern = '^http://127\.0\.0\.1:[0-9]{1,5}$'
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn accounts_that_share_a_grant_are_not_revoked_under_each_other() {
    for backend in backends() {
        let world = World::new(backend).await;
        let toml = format!("{SECOND_PRODUCT}default = \"{}\"", world.sandbox.origin());
        let settings = Settings { toml, ..Settings::default() };
        let app = world.instance(&settings).await;
        let keyward = Keyward { world, app, settings };
        keyward.admin("POST", "/api/organizations", Some(json!({"name": "other"}))).await;
        let first = keyward.connect(ADA).await;
        let link = keyward.api("GET", "/integrations/second/auth_link", None).await;
        let mut browser = Browser::new(keyward.app.admin_address());
        let page = url::Url::parse(link["authorization_url"].as_str().unwrap()).unwrap();
        let opened = browser.post(page.path(), &[]).await;
        let back = consent(&url::Url::parse(opened.header("location")).unwrap(), ADA, "allow").await;
        assert!(browser.come_back(&back).await.starts_with("/integrations/second/connected"));
        let second = keyward.api("GET", "/accounts?provider=second", None).await["items"][0].clone();
        assert_eq!((&second["subject"], second["id"] == first["id"]), (&first["subject"], false));
        let third = connect_in(&keyward, "other", ADA).await;
        // Somebody else's account has nothing to do with it.
        keyward.connect("grace@example.com").await;

        for account in [&second, &first] {
            keyward.api("DELETE", &format!("/accounts/{}", id(account)), None).await;
            let ended = &trail(&keyward, id(account), "account.disconnected", 1).await[0];
            assert_eq!(ended["detail"]["revocation"], "shared_grant");
        }
        assert_eq!(keyward.app.accounts().step_revocations().await.unwrap(), 0);
        assert_eq!(keyward.sandbox().counters().revoke_calls, 0);

        // The last one takes the grant with it.
        let path = format!("/api/organizations/other/accounts/{}", id(&third));
        assert_eq!(keyward.admin("DELETE", &path, None).await.status, StatusCode::OK);
        counted(&keyward, |counters| counters.revoke_calls == 1).await;
        keyward.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revocation_that_is_tried_again_leaves_a_grant_alone_that_is_in_use_again() {
    for backend in backends() {
        let (keyward, clock) = held(backend).await;
        let before = keyward.connect(ADA).await;
        keyward.sandbox().faults().times(Place::Revoke, failing(), 1);
        keyward.api("DELETE", &format!("/accounts/{}", id(&before)), None).await;
        trail(&keyward, id(&before), "account.revoke_failed", 1).await;
        let after = keyward.connect(ADA).await;
        clock.advance(Duration::from_secs(61));
        assert_eq!(keyward.app.accounts().step_revocations().await.unwrap(), 1);
        let outcome = &trail(&keyward, id(&before), "account.revoked_at_provider", 1).await[0];
        assert_eq!(outcome["detail"]["outcome"], "shared_grant");
        assert_eq!(keyward.sandbox().counters().revoke_calls, 0);
        let seen = keyward.api("POST", &format!("/accounts/{}/refresh", id(&after)), None).await;
        assert_eq!(seen["status"], "connected");

        // An account that is disconnected itself uses no grant: then the job is done.
        keyward.sandbox().faults().times(Place::Revoke, failing(), 1);
        keyward.api("DELETE", &format!("/accounts/{}", id(&after)), None).await;
        trail(&keyward, id(&after), "account.revoke_failed", 1).await;
        let last = keyward.connect(ADA).await;
        keyward.sandbox().revoke_all_of(ADA);
        let refused = keyward.admin("POST", &format!("{}/refresh", path(&last)), None).await;
        assert_eq!(refused.refusal(), "account_disconnected");
        clock.advance(Duration::from_secs(61));
        assert_eq!(keyward.app.accounts().step_revocations().await.unwrap(), 1);
        let outcome = &trail(&keyward, id(&after), "account.revoked_at_provider", 1).await[0];
        assert_eq!(outcome["detail"]["outcome"], "ok");
        keyward.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refresh_under_way_brings_nothing_back_and_its_tokens_are_revoked() {
    for backend in backends() {
        let (keyward, _clock) = held(backend).await;
        let (account, key) = keyward.connected().await;
        let address = keyward.app.admin_address();
        keyward.sandbox().faults().token_times(Fault::SlowAfterWork(Duration::from_millis(700)), 1);
        // The revocation of what was stored fails (and is not tried again while the clock stands), so the one that the
        // provider sees is of the refresh's own token.
        keyward.sandbox().faults().times(Place::Revoke, failing(), 1);
        let refresh_path = format!("{}/refresh", path(&account));
        let refresh = tokio::spawn(async move { crate::harness::admin(address, "POST", &refresh_path, None).await });
        counted(&keyward, |counters| counters.token_arrived >= 2).await;
        keyward.api("DELETE", &format!("/accounts/{}?confirm=true", id(&account)), None).await;
        assert!(!refresh.is_finished(), "the refresh is still under way");
        let refused = refresh.await.unwrap();
        assert_eq!((refused.status, refused.refusal()), (StatusCode::NOT_FOUND, "account_not_found".to_owned()));

        assert_eq!(keyward.api("GET", "/accounts", None).await["items"], json!([]));
        assert_eq!(keyward.api("GET", "/targets", None).await["items"], json!([]));
        assert_eq!(keyward.agent(&key, "GET", &messages(&account)).await.refusal(), "target_not_found");
        counted(&keyward, |counters| counters.revocations == 1).await;
        let counters = keyward.sandbox().counters();
        assert_eq!((counters.refreshes("ok"), counters.revoke_calls), (1, 1));
        assert!(counters.families.values().all(|family| family.revoked));
        keyward.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn disconnecting_while_it_is_refreshed_leaves_nothing_behind() {
    for backend in backends() {
        let keyward = Keyward::with(backend, Settings::default()).await;
        for round in 0..6u64 {
            let account = keyward.connect(ADA).await;
            let (address, path) = (keyward.app.admin_address(), path(&account));
            let refresh_path = format!("{path}/refresh");
            let refresh = tokio::spawn(async move {
                for _ in 0..20 {
                    let answer = crate::harness::admin(address, "POST", &refresh_path, None).await;
                    if answer.status == StatusCode::NOT_FOUND {
                        return;
                    }
                }
            });
            counted(&keyward, |counters| counters.refreshes("ok") > round).await;
            let gone = keyward.admin("DELETE", &path, None).await;
            assert_eq!(gone.status, StatusCode::OK, "{}", gone.text());
            refresh.await.unwrap();
            trail(&keyward, id(&account), "account.revoked_at_provider", 1).await;
            assert!(keyward.sandbox().counters().families.values().all(|family| family.revoked), "round {round}");
        }
        assert_eq!(keyward.api("GET", "/accounts", None).await["items"], json!([]));
        keyward.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn candidates_go_with_their_account_although_they_do_not_open() {
    for backend in backends() {
        let keyward = Keyward::with(backend, Settings::default()).await;
        let account = keyward.connect(ADA).await;
        let store = keyward.app.store();
        let account_id: AccountId = id(&account).parse().unwrap();
        for _ in 0..12 {
            let sealed = Sealed::from_bytes(vec![7; 60]);
            let now = keyward.world.clock.now();
            store
                .insert_candidate(CandidateId::new(), account_id, &sealed, now, |_| {
                    unreachable!("the account has not ended")
                })
                .await
                .unwrap();
        }
        keyward.api("DELETE", &format!("/accounts/{}", id(&account)), None).await;
        assert!(store.candidates(account_id).await.unwrap().is_empty());
        counted(&keyward, |counters| counters.revocations == 1).await;
        keyward.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_dashboard_asks_before_it_disconnects() {
    let keyward = Keyward::start().await;
    let (account, key) = keyward.connected().await;
    let mut browser = Browser::signed_in(keyward.app.admin_address()).await;
    let page = format!("/accounts/{}/disconnect", id(&account));
    let asked = browser.get(&page).await.text();
    assert!(asked.contains(ADA) && asked.contains("— Mail"), "{asked}");
    assert_eq!(browser.post(&page, &[]).await.status, StatusCode::CONFLICT);
    assert_eq!(grants(&keyward, &key.id).await.as_array().unwrap().len(), 2);
    let done = browser.post(&page, &[("confirm", "yes")]).await;
    assert_eq!((done.status, done.header("location")), (StatusCode::SEE_OTHER, "/integrations?done=disconnected"));
    assert_eq!(keyward.api("GET", "/accounts", None).await["items"], json!([]));
    assert_eq!(trail(&keyward, id(&account), "account.disconnected", 1).await[0]["actor"], "session");
    assert_eq!(browser.get(&page).await.status, StatusCode::NOT_FOUND);
    keyward.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_only_account_of_a_provider_needs_no_name() {
    for backend in backends() {
        let keyward = Keyward::with(backend, Settings::default()).await;
        let path = "/api/organizations/default/integrations/sandbox";
        let both = async |status: u16, code: &str| {
            for method in ["POST", "DELETE"] {
                let refused = keyward.admin(method, path, None).await;
                assert_eq!((refused.status.as_u16(), refused.refusal().as_str()), (status, code), "{method}");
            }
        };
        both(404, "account_not_found").await;
        for method in ["POST", "DELETE"] {
            let unknown = keyward.admin(method, &path.replace("sandbox", "nonesuch"), None).await;
            assert_eq!(unknown.refusal(), "provider_not_found");
        }
        let (ada, _) = keyward.connected().await;
        let grace = keyward.connect("grace@example.com").await;
        both(409, "several_accounts").await;
        keyward.api("DELETE", &format!("/accounts/{}", id(&grace)), None).await;

        let seen = keyward.admin("POST", path, None).await.json();
        assert_eq!((&seen["is_valid"], &seen["account"]["id"]), (&json!(true), &ada["id"]));
        assert_eq!(keyward.admin("DELETE", path, None).await.refusal(), "needs_confirmation");
        let gone = keyward.admin("DELETE", &format!("{path}?confirm=true"), None).await.json();
        assert_eq!(gone["id"], ada["id"]);
        both(404, "account_not_found").await;
        keyward.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flow_that_ends_while_its_account_goes_leaves_one_whole_account_or_none() {
    for backend in backends() {
        let keyward = Keyward::with(backend, Settings::default()).await;
        for _ in 0..5 {
            let account = keyward.connect(ADA).await;
            let (authorization, _) = open_flow(keyward.app.admin_address(), "preset=write").await;
            let back = consent(&authorization, ADA, "allow").await;
            let path = path(&account);
            let (pasted, gone) =
                tokio::join!(paste_back(keyward.app.admin_address(), &back), keyward.admin("DELETE", &path, None));
            assert_eq!((pasted.status, gone.status), (StatusCode::OK, StatusCode::OK), "{}", pasted.text());
            let all = keyward.api("GET", "/accounts", None).await["items"].as_array().unwrap().clone();
            let targets = keyward.api("GET", "/targets", None).await["items"].as_array().unwrap().len();
            // Reconnected in place and then gone with it, or gone first and connected as new.
            match &all[..] {
                [] => assert_eq!((targets, &pasted.json()["id"]), (0, &account["id"])),
                [one] => {
                    assert_eq!((targets, &pasted.json()["id"]), (2, &one["id"]));
                    assert_ne!(one["id"], account["id"]);
                    keyward.api("DELETE", &format!("/accounts/{}", id(one)), None).await;
                }
                several => panic!("{several:?}"),
            }
        }
        keyward.stop().await;
    }
}
