//! Connecting again: in place for the same identity, and for nobody else.

use std::time::Duration;

use http::StatusCode;
use keyward::sandbox::Fault;
use serde_json::{Map, Value, json};
use url::Url;

use crate::browser::{Browser, consent_without, counted, trail};
use crate::connect::{ACCOUNTS, ADA, GRACE, accounts, connect_in, followed, held, slugs, started};
use crate::harness::{Answer, Keyward, Settings, backends, connect, consent, open_flow, paste_back, query, slug};

fn words(list: &Value) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect()
}

/// The tokens of a person's consents: those alive, those revoked.
fn families(keyward: &Keyward, person: &str) -> (usize, usize) {
    let counters = keyward.sandbox().counters();
    let (revoked, alive): (Vec<_>, Vec<_>) =
        counters.families.values().filter(|family| family.person == person).partition(|family| family.revoked);
    (alive.len(), revoked.len())
}

/// Flows that end at the same moment, pasted back.
async fn at_once(keyward: &Keyward, person: &str, options: &[&str]) -> Vec<Answer> {
    let address = keyward.app.admin_address();
    let mut backs = Vec::new();
    for options in options {
        let (authorization, _) = open_flow(address, options).await;
        backs.push(consent(&authorization, person, "allow").await);
    }
    let pastes: Vec<_> =
        backs.into_iter().map(|back| tokio::spawn(async move { paste_back(address, &back).await })).collect();
    let mut answers = Vec::new();
    for paste in pastes {
        answers.push(paste.await.unwrap());
    }
    answers
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flows_that_end_at_once_make_one_account_with_all_their_targets() {
    for backend in backends() {
        let keyward = started(backend).await;
        let wishes = ["capabilities=mail", "capabilities=calendar", "capabilities=mail"];
        for person in [ADA, GRACE] {
            // The account is new in the first round and there in the second.
            for _ in 0..2 {
                let answers = at_once(&keyward, person, &wishes).await;
                assert!(answers.iter().all(|answer| answer.status == StatusCode::OK), "{}", answers[0].text());
                let all = accounts(&keyward).await;
                let account = all.iter().find(|account| account["email"] == person).unwrap();
                assert!(answers.iter().all(|answer| answer.json()["id"] == account["id"]));
                assert_eq!(slugs(account).len(), 2, "no flow takes from another one");
            }
        }
        assert_eq!(accounts(&keyward).await.len(), 2);
        keyward.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connecting_again_brings_an_account_back_in_place() {
    for backend in backends() {
        let keyward = started(backend).await;
        let (before, key) = keyward.connected().await;
        let id = before["id"].as_str().unwrap();
        let grants = keyward.api("GET", &format!("/keys/{}/grants", key.id), None).await;
        keyward.sandbox().revoke_all_of(ADA);
        let refused = keyward.admin("POST", &format!("{ACCOUNTS}/{id}/refresh"), None).await;
        assert_eq!((refused.status, refused.refusal()), (StatusCode::CONFLICT, "account_disconnected".to_owned()));
        let page = format!("http://{}/integrations?reconnect={id}", keyward.app.admin_address());
        assert_eq!(refused.json()["detail"]["hint"], page);
        let ended = keyward.api("GET", &format!("/accounts/{id}"), None).await;
        assert_eq!((&ended["status"], &ended["reason"]), (&json!("disconnected"), &json!("refresh_rejected")));
        assert_eq!(slugs(&ended), slugs(&before), "targets and grants wait for it");

        let after = keyward.connect(ADA).await;
        for same in ["id", "subject", "targets", "created_at", "owner"] {
            assert_eq!(after[same], before[same], "{same}");
        }
        assert_eq!((&after["status"], &after["reason"]), (&json!("connected"), &Value::Null));
        assert_eq!(after["validity"], "valid");
        assert_eq!(keyward.api("GET", &format!("/keys/{}/grants", key.id), None).await, grants);
        assert_eq!(accounts(&keyward).await.len(), 1);
        let checked = keyward.api("POST", &format!("/accounts/{id}/refresh"), None).await;
        assert_eq!(checked["status"], "connected", "the new refresh token is the one that counts");
        trail(&keyward, id, "account.reconnected", 1).await;
        keyward.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reconnecting_as_somebody_else_changes_nothing_and_gives_the_tokens_back() {
    for backend in backends() {
        let keyward = started(backend).await;
        let address = keyward.app.admin_address();
        let ada = keyward.connect(ADA).await;
        let id = ada["id"].as_str().unwrap();
        let reconnect = format!("account={id}");

        let (authorization, _) = open_flow(address, &reconnect).await;
        assert_eq!(query(&authorization, "login_hint"), ADA);
        let refused = paste_back(address, &consent(&authorization, GRACE, "allow").await).await;
        assert_eq!((refused.status, refused.refusal()), (StatusCode::CONFLICT, "another_identity".to_owned()));
        assert_eq!(accounts(&keyward).await, std::slice::from_ref(&ada));
        counted(&keyward, |counters| counters.revoke_calls == 1).await;
        assert_eq!((families(&keyward, GRACE), families(&keyward, ADA)), ((0, 1), (1, 0)));

        // Grace has an account of her own now: tokens of hers are not revoked under it.
        keyward.connect(GRACE).await;
        let (mut browser, authorization) = followed(&keyward, &reconnect).await;
        let result = browser.come_back(&consent(&authorization, GRACE, "allow").await).await;
        assert_eq!(result, "/integrations/sandbox/failed?code=another_identity");
        assert_eq!(keyward.api("GET", &format!("/accounts/{id}"), None).await, ada);
        trail(&keyward, id, "account.connect_failed", 2).await;
        let sandbox = keyward.sandbox().clone();
        // Waits for what runs in the background.
        keyward.stop().await;
        assert_eq!(sandbox.counters().revoke_calls, 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_that_left_meanwhile_is_not_reconnected() {
    let keyward = Keyward::start().await;
    let address = keyward.app.admin_address();
    let account = keyward.connect(ADA).await;
    let id = account["id"].as_str().unwrap();
    let (authorization, _) = open_flow(address, &format!("account={id}")).await;
    keyward.api("DELETE", &format!("/accounts/{id}"), None).await;
    trail(&keyward, id, "account.revoked_at_provider", 1).await;
    let refused = paste_back(address, &consent(&authorization, ADA, "allow").await).await;
    assert_eq!((refused.status, refused.refusal()), (StatusCode::NOT_FOUND, "account_not_found".to_owned()));
    counted(&keyward, |counters| counters.revoke_calls == 2).await;
    assert_eq!(families(&keyward, ADA), (0, 2), "tokens that nobody will use were given back");
    assert!(accounts(&keyward).await.is_empty());
    keyward.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_person_unticked_is_shown_as_missing() {
    for backend in backends() {
        let keyward = started(backend).await;
        let mut browser = Browser::signed_in(keyward.app.admin_address()).await;
        let form = [("capability", "mail"), ("capability", "calendar"), ("preset", "write")];
        let gone = browser.post("/integrations/sandbox/connect", &form).await;
        let authorization = Url::parse(gone.header("location")).unwrap();
        let back = consent_without(&authorization, ADA, &["Mail.Send", "Calendars.ReadWrite"]).await;
        let result = browser.come_back(&back).await;
        let page = browser.get(&result).await.text();
        assert!(page.contains("Not granted at the provider"), "{page}");
        assert!(page.contains("<code>Mail.Send</code>") && page.contains("<code>Calendars.ReadWrite</code>"), "{page}");
        let account = accounts(&keyward).await.remove(0);
        assert_eq!(words(&account["missing_scopes"]), ["Calendars.ReadWrite", "Mail.Send"]);
        assert!(words(&account["scopes"]).contains(&"Mail.ReadWrite"));
        assert_eq!((&account["status"], slugs(&account).len()), (&json!("connected"), 2));

        // Allowed the next time, it is missing no more.
        let again = keyward.connect(ADA).await;
        assert_eq!((&again["id"], &again["missing_scopes"]), (&account["id"], &json!([])));
        keyward.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_capability_connected_later_keeps_those_before() {
    for backend in backends() {
        let keyward = started(backend).await;
        let address = keyward.app.admin_address();
        let mail = connect(address, ADA, "capabilities=mail&preset=write").await;
        assert_eq!(slugs(&mail).len(), 1);
        let key = keyward.new_key().await;
        keyward.grant(&key, &slug(&mail, "mail"), "write").await;

        // For this account by name: everything it has is asked for again, and as it was.
        let id = mail["id"].as_str().unwrap();
        let options = format!("capabilities=calendar&account={id}");
        let (authorization, _) = open_flow(address, &options).await;
        let asked = query(&authorization, "scope");
        for scope in ["Mail.ReadWrite", "Mail.Send", "Calendars.ReadWrite"] {
            assert!(asked.contains(scope), "{asked}");
        }
        let both = paste_back(address, &consent(&authorization, ADA, "allow").await).await.json();
        assert_eq!((&both["id"], slug(&both, "mail")), (&mail["id"], slug(&mail, "mail")));
        assert_eq!((slugs(&both).len(), &both["missing_scopes"]), (2, &json!([])));
        let grants = keyward.api("GET", &format!("/keys/{}/grants", key.id), None).await;
        assert_eq!(grants["items"].as_array().unwrap().len(), 1);

        // Without naming it, nobody knows before the consent whose account it will be. The targets stay all the same, and
        // what this authorization does not cover is told.
        let again = connect(address, ADA, "capabilities=calendar&preset=read").await;
        assert_eq!((&again["id"], slugs(&again)), (&mail["id"], slugs(&both)));
        assert_eq!(words(&again["missing_scopes"]), ["Mail.Read"]);
        assert_eq!(keyward.api("GET", &format!("/keys/{}/grants", key.id), None).await, grants);

        // A wish for less is granted when it is said.
        let (authorization, _) = open_flow(address, &format!("account={id}&preset=read")).await;
        let asked = query(&authorization, "scope");
        assert!(asked.contains("Calendars.Read") && !asked.contains("Write") && !asked.contains("Send"), "{asked}");
        keyward.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_person_is_another_account() {
    for backend in backends() {
        let keyward = started(backend).await;
        let (ada, grace) = (keyward.connect(ADA).await, keyward.connect(GRACE).await);
        assert_ne!(ada["id"], grace["id"]);
        assert_ne!(ada["subject"], grace["subject"]);
        assert_eq!(accounts(&keyward).await, [ada.clone(), grace.clone()]);
        assert!(slug(&grace, "mail").starts_with("grace-example-com-mail-"));
        assert_eq!(keyward.api("GET", "/targets", None).await["items"].as_array().unwrap().len(), 4);

        // The same person in another organization is another account, too.
        keyward.admin("POST", "/api/organizations", Some(json!({"name": "other"}))).await;
        let elsewhere = connect_in(&keyward, "other", ADA).await;
        assert_ne!(elsewhere["id"], ada["id"]);
        let there = keyward.admin("GET", "/api/organizations/other/accounts", None).await.json();
        assert_eq!(there["items"], json!([elsewhere]));
        assert_eq!(accounts(&keyward).await, [ada.clone(), grace]);
        let path = format!("/api/organizations/other/accounts/{}", ada["id"].as_str().unwrap());
        assert_eq!(keyward.admin("GET", &path, None).await.refusal(), "account_not_found");
        keyward.stop().await;
    }
}

/// A token answer that brings no refresh token.
fn without_refresh_token() -> Fault {
    Fault::Alter(Map::from_iter([("refresh_token".to_owned(), Value::Null)]))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refresh_token_of_an_earlier_authorization_is_not_used_for_a_later_one() {
    for backend in backends() {
        let clock = held();
        let keyward = Keyward::with_clock(backend, Settings::default(), clock.clone()).await;
        keyward.sandbox().set_refresh_ttl(Some(Duration::from_secs(90 * 86_400)));
        let before = keyward.connect(ADA).await;
        assert!(before["refresh_expires_at"].is_string());
        let id = before["id"].as_str().unwrap();

        keyward.sandbox().faults().token_times(without_refresh_token(), 1);
        let after = keyward.connect(ADA).await;
        assert_eq!((&after["id"], &after["status"]), (&before["id"], &json!("connected")));
        assert_eq!(after["refresh_expires_at"], Value::Null);
        let record = &trail(&keyward, id, "account.reconnected", 1).await[0];
        assert_eq!(record["detail"]["renewable"], false);

        // It works as long as its token does; then a person is asked, and the provider isn't.
        let seen = keyward.api("POST", &format!("/accounts/{id}/validate"), None).await;
        assert_eq!(seen["is_valid"], true);
        clock.advance(Duration::from_secs(2 * 3600));
        let seen = keyward.api("POST", &format!("/accounts/{id}/validate"), None).await;
        assert_eq!((&seen["is_valid"], &seen["account"]["reason"]), (&json!(false), &json!("sign_in_needed")));
        assert_eq!(keyward.sandbox().counters().refresh_calls(), 0);
        keyward.stop().await;
    }
}
