//! Checks on demand: does an account's token work, and can it be refreshed?

use std::time::Duration;

use http::StatusCode;
use keyward::clock::{Clock, Timestamp};
use keyward::sandbox::{Fault, Place};
use serde_json::{Value, json};

use crate::browser::{Browser, trail};
use crate::harness::{Answer, Backend, Keyward, Settings, backends};

const ADA: &str = "ada@example.com";

async fn held(backend: Backend) -> (Keyward, Clock) {
    let clock = Clock::held(Timestamp::parse("2026-03-01T12:00:00Z").unwrap());
    (Keyward::with_clock(backend, Settings::default(), clock.clone()).await, clock)
}

fn down() -> Fault {
    Fault::Status { status: 503, retry_after: None }
}

async fn ask(keyward: &Keyward, account: &Value, what: &str) -> Answer {
    let id = account["id"].as_str().unwrap();
    keyward.admin("POST", &format!("/api/organizations/default/accounts/{id}/{what}"), None).await
}

async fn validate(keyward: &Keyward, account: &Value) -> Value {
    let answer = ask(keyward, account, "validate").await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
    answer.json()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_works_is_valid_and_the_answer_says_since_when() {
    for backend in backends() {
        let (keyward, clock) = held(backend).await;
        let account = keyward.connect(ADA).await;
        assert_eq!(account["checked_at"], "2026-03-01T12:00:00Z");
        clock.advance(Duration::from_secs(60));
        let seen = validate(&keyward, &account).await;
        assert_eq!((&seen["is_valid"], &seen["checked_at"]), (&json!(true), &json!("2026-03-01T12:01:00Z")));
        assert_eq!(seen["account"]["checked_at"], seen["checked_at"]);
        assert_eq!(seen["account"]["validity"], "valid");
        assert_eq!(keyward.sandbox().counters().refresh_calls(), 0, "a living token is asked about, not renewed");
        let record = &trail(&keyward, account["id"].as_str().unwrap(), "account.validated", 1).await[0];
        assert_eq!((&record["actor"], &record["detail"]["validity"]), (&json!("admin_token"), &json!("valid")));

        // One that has ended is renewed first.
        clock.advance(Duration::from_secs(2 * 3600));
        assert_eq!(validate(&keyward, &account).await["is_valid"], true);
        assert_eq!(keyward.sandbox().counters().refreshes("ok"), 1);
        keyward.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_was_withdrawn_early_is_renewed() {
    let keyward = Keyward::start().await;
    let account = keyward.connect(ADA).await;
    keyward.sandbox().expire_access_of(ADA);
    let seen = validate(&keyward, &account).await;
    assert_eq!((&seen["is_valid"], &seen["account"]["status"]), (&json!(true), &json!("connected")));
    assert_eq!(keyward.sandbox().counters().refreshes("ok"), 1);
    keyward.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grant_that_was_withdrawn_is_found_out() {
    for backend in backends() {
        let (keyward, clock) = held(backend).await;
        let account = keyward.connect(ADA).await;
        keyward.sandbox().revoke_all_of(ADA);
        clock.advance(Duration::from_secs(60));
        let seen = validate(&keyward, &account).await;
        assert_eq!((&seen["is_valid"], &seen["checked_at"]), (&json!(false), &json!("2026-03-01T12:01:00Z")));
        let after = &seen["account"];
        assert_eq!((&after["status"], &after["reason"]), (&json!("disconnected"), &json!("refresh_rejected")));
        assert_eq!(after["validity"], "invalid");
        let calls = keyward.sandbox().counters().refresh_calls();
        assert_eq!(calls, 1);

        // Asked again, it is a result, not an error; and nobody asks the provider any more.
        clock.advance(Duration::from_secs(60));
        let again = validate(&keyward, &account).await;
        assert_eq!((&again["is_valid"], &again["checked_at"]), (&json!(false), &json!("2026-03-01T12:01:00Z")));
        let refused = ask(&keyward, &account, "refresh").await;
        assert_eq!((refused.status, refused.refusal()), (StatusCode::CONFLICT, "account_disconnected".to_owned()));
        assert_eq!(keyward.sandbox().counters().refresh_calls(), calls);
        assert_eq!(trail(&keyward, account["id"].as_str().unwrap(), "account.disconnected", 1).await.len(), 1);
        keyward.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_that_is_down_says_nothing_about_an_account() {
    for backend in backends() {
        let (keyward, clock) = held(backend).await;
        let account = keyward.connect(ADA).await;
        clock.advance(Duration::from_secs(60));
        for fault in
            [down(), Fault::Html200, Fault::EmptyBody, Fault::Reset, Fault::Status { status: 403, retry_after: None }]
        {
            let name = format!("{fault:?}");
            keyward.sandbox().faults().identity(fault);
            let seen = validate(&keyward, &account).await;
            assert_eq!(seen["is_valid"], Value::Null, "{name}: it could not be asked");
            assert_eq!(seen["checked_at"], account["checked_at"], "{name}: when it last answered");
            for same in ["validity", "status", "reason", "checked_at"] {
                assert_eq!(seen["account"][same], account[same], "{name}: {same}");
            }
        }
        assert_eq!(keyward.sandbox().counters().refresh_calls(), 0);
        keyward.sandbox().faults().clear();
        assert_eq!(validate(&keyward, &account).await["is_valid"], true);
        keyward.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refresh_by_hand_brings_a_new_token_whatever_the_old_ones_age() {
    for backend in backends() {
        let (keyward, clock) = held(backend).await;
        let account = keyward.connect(ADA).await;
        let id = account["id"].as_str().unwrap().parse().unwrap();
        let generation = async || keyward.app.store().tokens(id).await.unwrap().unwrap().account.generation;
        let before = generation().await;
        clock.advance(Duration::from_secs(60));
        let after = ask(&keyward, &account, "refresh").await;
        assert_eq!(after.status, StatusCode::OK, "{}", after.text());
        let after = after.json();
        assert_eq!(account["access_expires_at"], "2026-03-01T13:00:00Z");
        assert_eq!(after["access_expires_at"], "2026-03-01T13:01:00Z");
        assert_eq!(generation().await, before + 1);
        for same in ["id", "status", "targets", "scopes", "created_at"] {
            assert_eq!(after[same], account[same], "{same}");
        }
        assert_eq!(keyward.sandbox().counters().refreshes("ok"), 1);
        let records = trail(&keyward, account["id"].as_str().unwrap(), "account.refresh_asked", 1).await;
        assert_eq!(records[0]["actor"], "admin_token");
        keyward.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refresh_by_hand_that_fails_in_passing_leaves_the_account_usable() {
    for backend in backends() {
        let (keyward, clock) = held(backend).await;
        let (account, key) = keyward.connected().await;
        keyward.sandbox().faults().times(
            Place::Token,
            Fault::Status { status: 503, retry_after: Some("7".to_owned()) },
            1,
        );
        let refused = ask(&keyward, &account, "refresh").await;
        assert_eq!((refused.status.as_u16(), refused.refusal().as_str()), (503, "token_unavailable"));
        assert_eq!(refused.header("retry-after"), "7");
        let path = format!("/accounts/{}", account["id"].as_str().unwrap());
        let degraded = keyward.api("GET", &path, None).await;
        assert_eq!((&degraded["status"], &degraded["reason"]), (&json!("degraded"), &json!("provider_unavailable")));
        let messages = format!("/proxy/{}/me/messages", crate::harness::slug(&account, "mail"));
        assert_eq!(keyward.agent(&key, "GET", &messages).await.status, StatusCode::OK);

        // A person who asks again does not have to wait.
        clock.advance(Duration::from_secs(1));
        let healed = ask(&keyward, &account, "refresh").await.json();
        assert_eq!((&healed["status"], &healed["reason"]), (&json!("connected"), &Value::Null));
        keyward.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_that_is_not_there_is_told_so() {
    let keyward = Keyward::start().await;
    keyward.admin("POST", "/api/organizations", Some(json!({"name": "other"}))).await;
    let account = keyward.connect(ADA).await;
    let id = account["id"].as_str().unwrap();
    for path in [
        "/api/organizations/default/accounts/acc_00000000000000000000000000".to_owned(),
        format!("/api/organizations/other/accounts/{id}"),
        "/api/organizations/default/accounts/nobody".to_owned(),
    ] {
        for what in ["validate", "refresh"] {
            let refused = keyward.admin("POST", &format!("{path}/{what}"), None).await;
            assert_eq!(refused.refusal(), "account_not_found", "{path}");
        }
    }
    assert_eq!(keyward.sandbox().counters().refresh_calls(), 0);
    keyward.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_dashboards_buttons_do_the_same() {
    let keyward = Keyward::start().await;
    let account = keyward.connect(ADA).await;
    let id = account["id"].as_str().unwrap();
    let mut browser = Browser::signed_in(keyward.app.admin_address()).await;
    let done = browser.post(&format!("/accounts/{id}/refresh"), &[]).await;
    assert_eq!(done.status, StatusCode::SEE_OTHER);
    assert_eq!(keyward.sandbox().counters().refreshes("ok"), 1);
    keyward.sandbox().revoke_all_of(ADA);
    let done = browser.post(&format!("/accounts/{id}/validate"), &[]).await;
    assert_eq!(done.status, StatusCode::SEE_OTHER);
    let page = browser.get(&format!("/integrations?reconnect={id}")).await.text();
    assert!(page.contains(&format!("Reconnect {ADA}")), "{page}");
    assert!(page.contains(&format!("action=\"/accounts/{id}/reconnect\"")), "{page}");
    keyward.stop().await;
}
