//! Connecting an account: every road through the flow, and everything that must not get through it.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, header};
use keyward::clock::{Clock, Timestamp};
use keyward::sandbox::{Fault, Place};
use serde_json::{Value, json};
use url::Url;

use crate::browser::{Browser, counted, hidden, path_of, trail};
use crate::harness::{ADMIN, Backend, Keyward, Settings, admin, backends, consent, open_flow, paste_back, query, slug};

pub const ADA: &str = "ada@example.com";
pub const GRACE: &str = "grace@example.com";
const CALLBACK: &str = "/api/organizations/default/integrations/sandbox/callback";
pub const ACCOUNTS: &str = "/api/organizations/default/accounts";
const OVER: &str = "/integrations/sandbox/failed?code=invalid_state";

pub fn held() -> Clock {
    Clock::held(Timestamp::parse("2026-03-01T12:00:00Z").unwrap())
}

pub async fn started(backend: Backend) -> Keyward {
    Keyward::with(backend, Settings::default()).await
}

/// Begins a flow by API; answers the path of its one-time page.
async fn link(keyward: &Keyward, options: &str) -> String {
    let link = keyward.api("GET", &format!("/integrations/sandbox/auth_link?{options}"), None).await;
    Url::parse(link["authorization_url"].as_str().unwrap()).unwrap().path().to_owned()
}

/// A browser that follows a new link to the provider.
pub async fn followed(keyward: &Keyward, options: &str) -> (Browser, Url) {
    let mut browser = Browser::new(keyward.app.admin_address());
    let page = link(keyward, options).await;
    let opened = browser.post(&page, &[]).await;
    assert_eq!(opened.status, StatusCode::SEE_OTHER, "{}", opened.text());
    (browser, Url::parse(opened.header("location")).unwrap())
}

pub async fn accounts(keyward: &Keyward) -> Vec<Value> {
    keyward.api("GET", "/accounts", None).await["items"].as_array().unwrap().clone()
}

pub fn slugs(account: &Value) -> Vec<&str> {
    account["targets"].as_array().unwrap().iter().map(|target| target["slug"].as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_that_somebody_opens_connects_their_account() {
    for backend in backends() {
        let keyward = started(backend).await;
        let page = link(&keyward, "preset=write").await;
        assert!(page.starts_with("/connect/flow_"), "{page}");
        let mut browser = Browser::new(keyward.app.admin_address());

        // Looking at it opens nothing, however often (previews of chats look at links, too).
        for _ in 0..2 {
            let shown = browser.get(&page).await;
            assert_eq!(shown.status, StatusCode::OK);
            assert!(shown.text().contains("Connect Sandbox") && shown.text().contains("Read and write"));
            assert!(!shown.headers.contains_key(header::SET_COOKIE));
        }
        let opened = browser.post(&page, &[]).await;
        let cookie = opened.header("set-cookie").to_owned();
        for attribute in ["HttpOnly", "SameSite=Lax", "Path=/integrations/", "Max-Age=600"] {
            assert!(cookie.contains(attribute), "{cookie}");
        }
        let back = consent(&Url::parse(opened.header("location")).unwrap(), ADA, "allow").await;
        assert_eq!(back.path(), "/integrations/sandbox/callback");

        // Opening the redirect URI spends nothing either; sending its page's form does.
        let connecting = browser.get(&path_of(&back)).await;
        assert!(connecting.text().contains("Connecting integration…"), "{}", connecting.text());
        assert_eq!(keyward.sandbox().counters().token_arrived, 0);
        assert!(accounts(&keyward).await.is_empty());
        let result = browser.come_back(&back).await;
        assert!(result.starts_with("/integrations/sandbox/connected?account=acc_"), "{result}");
        assert!(browser.cookie("keyward_flow").is_none(), "the flow is over, and so is its cookie");
        assert_eq!(keyward.sandbox().counters().token("authorization_code", "ok"), 1);

        // Whoever got a link sees that it worked, and nothing that is for those who are signed in.
        let connected = browser.get(&result).await.text();
        assert!(connected.contains("Integration connected"), "{connected}");
        assert!(!connected.contains(ADA) && !connected.contains("-mail-"), "{connected}");

        let all = accounts(&keyward).await;
        assert_eq!(all.len(), 1);
        let account = &all[0];
        assert_eq!((&account["email"], &account["provider"]), (&json!(ADA), &json!("sandbox")));
        assert_eq!((&account["status"], &account["reason"]), (&json!("connected"), &Value::Null));
        assert_eq!((&account["validity"], &account["missing_scopes"]), (&json!("valid"), &json!([])));
        for target in account["targets"].as_array().unwrap() {
            let (capability, slug) = (target["capability"].as_str().unwrap(), target["slug"].as_str().unwrap());
            let tail = slug.strip_prefix(&format!("ada-example-com-{capability}-")).unwrap();
            assert!(tail.len() == 6 && tail.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()), "{slug}");
            let shown = keyward.api("GET", &format!("/targets/{slug}"), None).await;
            assert_eq!(shown["slug"], slug);
        }
        assert_eq!(account["targets"].as_array().unwrap().len(), 2);
        let record = &trail(&keyward, account["id"].as_str().unwrap(), "account.connected", 1).await[0];
        assert_eq!(record["actor"], "admin_token");
        keyward.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_authorization_url_has_a_challenge_and_a_state_and_no_secret() {
    let keyward = Keyward::start().await;
    let (browser, one) = followed(&keyward, "capabilities=mail").await;
    let (_, two) = followed(&keyward, "capabilities=mail").await;
    let redirect = format!("http://{}/integrations/sandbox/callback", keyward.app.admin_address());
    for (name, value) in [
        ("response_type", "code"),
        ("code_challenge_method", "S256"),
        ("client_id", keyward.sandbox().client_id()),
        ("redirect_uri", &redirect),
        ("scope", "offline_access User.Read Mail.Read"),
    ] {
        assert_eq!(query(&one, name), value);
    }
    for name in ["state", "code_challenge"] {
        assert_eq!(query(&one, name).len(), 43, "{name}");
        assert_ne!(query(&one, name), query(&two, name), "{name}");
    }
    let cookie = browser.cookie("keyward_flow").unwrap();
    assert_eq!(cookie.len(), 43);
    for secret in [keyward.sandbox().client_secret(), ADMIN, cookie] {
        assert!(!one.as_str().contains(secret));
    }
    assert!(!one.as_str().contains("verifier"));
    keyward.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_goes_straight_to_the_provider() {
    let keyward = Keyward::start().await;
    let mut browser = Browser::signed_in(keyward.app.admin_address()).await;
    let path = "/api/organizations/default/integrations/sandbox/auth_link?capabilities=mail";
    let elsewhere = browser.send(Request::get(path).header("sec-fetch-site", "cross-site"), path, Bytes::new()).await;
    assert_eq!((elsewhere.status, elsewhere.refusal()), (StatusCode::FORBIDDEN, "cross_site".to_owned()));
    assert!(browser.cookie("keyward_flow").is_none());

    let link = browser.get(path).await;
    let authorization = Url::parse(link.json()["authorization_url"].as_str().unwrap()).unwrap();
    assert_eq!(authorization.origin().ascii_serialization(), keyward.sandbox().origin());
    assert!(browser.cookie("keyward_flow").is_some());
    let page = format!("/connect/{}", link.json()["flow_id"].as_str().unwrap());
    assert_eq!(browser.get(&page).await.status, StatusCode::GONE, "it is open already, in this browser");

    let back = consent(&authorization, ADA, "allow").await;
    let result = browser.come_back(&back).await;
    let connected = browser.get(&result).await.text();
    let all = accounts(&keyward).await;
    assert!(connected.contains("Integration connected") && connected.contains(ADA), "{connected}");
    assert!(connected.contains(&slug(&all[0], "mail")), "{connected}");
    let record = &trail(&keyward, all[0]["id"].as_str().unwrap(), "account.connected", 1).await[0];
    assert_eq!(record["actor"], "session");
    keyward.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_dashboards_buttons_connect_and_reconnect() {
    let keyward = Keyward::start().await;
    let mut browser = Browser::signed_in(keyward.app.admin_address()).await;
    let form = [("capability", "mail"), ("preset", "write")];
    let gone = browser.post("/integrations/sandbox/connect", &form).await;
    let authorization = Url::parse(gone.header("location")).unwrap();
    assert!(query(&authorization, "scope").contains("Mail.Send"));
    browser.come_back(&consent(&authorization, ADA, "allow").await).await;
    let before = accounts(&keyward).await.remove(0);
    assert_eq!(slugs(&before).len(), 1);

    let path = format!("/accounts/{}/reconnect", before["id"].as_str().unwrap());
    let gone = browser.post(&path, &[]).await;
    let again = Url::parse(gone.header("location")).unwrap();
    assert_eq!(query(&again, "scope"), query(&authorization, "scope"), "what it was connected with");
    assert_eq!(query(&again, "login_hint"), ADA);
    let result = browser.come_back(&consent(&again, ADA, "allow").await).await;
    assert!(result.contains("reconnected=1"), "{result}");
    assert!(browser.get(&result).await.text().contains("connected again"));
    let after = accounts(&keyward).await;
    assert_eq!((after.len(), &after[0]["id"], slugs(&after[0])), (1, &before["id"], slugs(&before)));

    // Without a session the buttons lead to the login page, and begin nothing.
    let mut stranger = Browser::new(keyward.app.admin_address());
    let refused = stranger.post("/integrations/sandbox/connect", &form).await;
    assert_eq!((refused.status, refused.header("location")), (StatusCode::SEE_OTHER, "/login"));
    keyward.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pasting_back_needs_the_admin_token_and_no_cookie() {
    for backend in backends() {
        let keyward = started(backend).await;
        keyward.admin("POST", "/api/organizations", Some(json!({"name": "other"}))).await;
        let address = keyward.app.admin_address();
        let mut browser = Browser::signed_in(address).await;
        let (authorization, _) = open_flow(address, "preset=read").await;
        let back = consent(&authorization, ADA, "allow").await;
        let body = json!({"code": query(&back, "code"), "state": query(&back, "state")});

        // A session is no proof here, and neither is no proof at all.
        let request = Request::post(CALLBACK)
            .header(header::ORIGIN, format!("http://{address}"))
            .header(header::CONTENT_TYPE, "application/json");
        let refused = browser.send(request, CALLBACK, body.to_string().into()).await;
        assert_eq!((refused.status, refused.refusal()), (StatusCode::FORBIDDEN, "not_permitted".to_owned()));
        for body in [json!({"code": "a"}), json!({"code": "a", "state": "b", "cookie": "c"})] {
            let refused = keyward.admin("POST", CALLBACK, Some(body)).await;
            assert_eq!((refused.status, refused.refusal()), (StatusCode::BAD_REQUEST, "bad_request".to_owned()));
        }
        assert_eq!(keyward.sandbox().counters().token_arrived, 0);

        let answer = paste_back(address, &back).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
        assert_eq!(answer.json()["email"], ADA);
        assert_eq!(accounts(&keyward).await, [answer.json()], "the same everywhere");
        for secret in ["sbx_at_", "sbx_rt_", "sbx_code_"] {
            assert!(!answer.text().contains(secret));
        }
        let again = paste_back(address, &back).await;
        assert_eq!((again.status, again.refusal()), (StatusCode::BAD_REQUEST, "invalid_state".to_owned()));

        // Somebody else's flow is no flow.
        let (authorization, _) = open_flow(address, "preset=read").await;
        let back = consent(&authorization, GRACE, "allow").await;
        let body = json!({"code": query(&back, "code"), "state": query(&back, "state")});
        let path = CALLBACK.replace("default", "other");
        let refused = keyward.admin("POST", &path, Some(body)).await;
        assert_eq!((refused.status, refused.refusal()), (StatusCode::BAD_REQUEST, "invalid_state".to_owned()));
        assert_eq!(keyward.sandbox().counters().token_arrived, 1);
        keyward.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_is_good_for_one_callback() {
    for backend in backends() {
        let keyward = started(backend).await;
        let (mut browser, authorization) = followed(&keyward, "preset=read").await;
        let cookie = browser.cookie("keyward_flow").unwrap().to_owned();
        let back = consent(&authorization, ADA, "allow").await;
        assert!(browser.come_back(&back).await.contains("/connected"));
        browser.put_cookie("keyward_flow", &cookie);
        assert_eq!(browser.come_back(&back).await, OVER);
        assert_eq!(paste_back(keyward.app.admin_address(), &back).await.refusal(), "invalid_state");
        let counters = keyward.sandbox().counters();
        assert_eq!((counters.token_arrived, counters.code_reuse_detected), (1, 0));
        let page = browser.get(OVER).await.text();
        assert!(page.contains("Failed to connect integration") && page.contains("Back to integrations"), "{page}");
        keyward.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flow_ends_after_ten_minutes_with_its_code_unspent() {
    for backend in backends() {
        let clock = held();
        let keyward = Keyward::with_clock(backend, Settings::default(), clock.clone()).await;
        let address = keyward.app.admin_address();
        let unopened = link(&keyward, "preset=read").await;
        let (mut browser, authorization) = followed(&keyward, "preset=read").await;
        let back = consent(&authorization, ADA, "allow").await;
        let (other, _) = open_flow(address, "preset=read").await;
        let pasted = consent(&other, ADA, "allow").await;
        clock.advance(Duration::from_secs(9 * 60));
        assert_eq!(browser.get(&unopened).await.status, StatusCode::OK);
        clock.advance(Duration::from_secs(2 * 60));

        assert_eq!(browser.come_back(&back).await, OVER);
        assert_eq!(paste_back(address, &pasted).await.refusal(), "invalid_state");
        assert_eq!(keyward.sandbox().counters().token_arrived, 0);
        assert_eq!(browser.get(&unopened).await.status, StatusCode::GONE);
        assert_eq!(browser.post(&unopened, &[]).await.status, StatusCode::GONE);
        keyward.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_callback_that_is_not_the_flows_own_spends_nothing() {
    let keyward = Keyward::start().await;
    let back_at_another_provider = "/integrations/google/failed?code=invalid_state";
    let cases: [(&str, &str); 6] = [
        ("no cookie", OVER),
        ("another browser", OVER),
        ("another provider", back_at_another_provider),
        ("another issuer", OVER),
        ("another state", OVER),
        ("no state", OVER),
    ];
    for (case, expected) in cases {
        let (mut browser, authorization) = followed(&keyward, "preset=read").await;
        let cookie = browser.cookie("keyward_flow").unwrap().to_owned();
        let back = consent(&authorization, ADA, "allow").await;
        let (mut path, mut form) = (back.path().to_owned(), hidden(&browser.get(&path_of(&back)).await.text()));
        let mut field = |name: &str, value: &str| {
            form.iter_mut().find(|(have, _)| have == name).unwrap().1 = value.to_owned();
        };
        match case {
            "no cookie" => browser = Browser::new(keyward.app.admin_address()),
            "another browser" => browser = followed(&keyward, "preset=read").await.0,
            "another provider" => path = "/integrations/google/callback".to_owned(),
            "another issuer" => field("iss", "http://127.0.0.1:1"),
            "another state" => field("state", &"A".repeat(43)),
            _ => form.retain(|(name, _)| name != "state"),
        }
        let fields: Vec<_> = form.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let done = browser.post(&path, &fields).await;
        assert_eq!((done.status, done.header("location")), (StatusCode::SEE_OTHER, expected), "{case}");

        // What was tried with the flow's own state has used it up.
        let mut own = Browser::new(keyward.app.admin_address());
        own.put_cookie("keyward_flow", &cookie);
        if !case.ends_with("state") {
            assert_eq!(own.come_back(&back).await, OVER, "{case}");
            assert_eq!(keyward.sandbox().counters().token_arrived, 0, "{case}");
        }
    }
    assert_eq!(keyward.sandbox().counters().token_arrived, 0);
    assert!(accounts(&keyward).await.is_empty());
    keyward.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_parameter_that_comes_twice_is_no_callback() {
    let keyward = Keyward::start().await;
    let (mut browser, authorization) = followed(&keyward, "preset=read").await;
    let back = consent(&authorization, ADA, "allow").await;
    let form = hidden(&browser.get(&path_of(&back)).await.text());
    let fields: Vec<_> = form.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    for name in ["state", "code", "iss"] {
        let doubled = [&fields[..], &[(name, "x")]].concat();
        let done = browser.post(back.path(), &doubled).await;
        assert_eq!(done.header("location"), "/integrations/sandbox/failed?code=bad_request", "{name}");
        let shown = browser.get(&format!("{}&{name}=x", path_of(&back))).await;
        assert_eq!(shown.header("location"), "/integrations/sandbox/failed?code=bad_request", "{name}");
    }
    assert_eq!(keyward.sandbox().counters().token_arrived, 0);
    // Nothing was begun with it, so the person's own callback still counts.
    assert!(browser.come_back(&back).await.contains("/connected"));
    keyward.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_form_from_another_site_is_refused_before_it_spends_anything() {
    let keyward = Keyward::start().await;
    let (mut browser, authorization) = followed(&keyward, "preset=read").await;
    let back = consent(&authorization, ADA, "allow").await;
    let body = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(back.query_pairs()).finish();
    for origin in ["https://evil.example.com", "null"] {
        let request = Request::post(back.path())
            .header(header::ORIGIN, origin)
            .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded");
        let refused = browser.send(request, back.path(), body.clone().into()).await;
        assert_eq!((refused.status, refused.refusal()), (StatusCode::FORBIDDEN, "cross_site".to_owned()));
    }
    assert_eq!(keyward.sandbox().counters().token_arrived, 0);
    assert!(browser.come_back(&back).await.contains("/connected"));
    keyward.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_person_may_say_no() {
    let keyward = Keyward::start().await;
    let (mut browser, authorization) = followed(&keyward, "preset=read").await;
    let back = consent(&authorization, ADA, "deny").await;
    assert_eq!((query(&back, "error").as_str(), query(&back, "code").as_str()), ("access_denied", ""));
    let result = browser.come_back(&back).await;
    assert_eq!(result, "/integrations/sandbox/failed?code=denied");
    let page = browser.get(&result).await.text();
    assert!(page.contains("Failed to connect integration") && page.contains("not allowed"), "{page}");

    // An error of the provider's own, with a text of its own: told in our words.
    let (mut browser, authorization) = followed(&keyward, "preset=read").await;
    let state = query(&authorization, "state");
    let form = [("error", "server_error"), ("error_description", "CANARY <b>"), ("state", &state)];
    let done = browser.post("/integrations/sandbox/callback", &form).await;
    assert_eq!(done.header("location"), "/integrations/sandbox/failed?code=refused");
    assert!(!browser.get(done.header("location")).await.text().contains("CANARY"));

    assert_eq!(keyward.sandbox().counters().token_arrived, 0);
    assert!(accounts(&keyward).await.is_empty());
    let records = failures(&keyward, 2).await;
    let told: Vec<_> = records.iter().map(|record| record["detail"]["provider_code"].as_str().unwrap()).collect();
    assert_eq!(told, ["server_error", "access_denied"]);
    assert!(records.iter().all(|record| record["code"] == "denied" && !record.to_string().contains("CANARY")));
    keyward.stop().await;
}

/// Records of flows that failed, newest first.
async fn failures(keyward: &Keyward, wanted: usize) -> Vec<Value> {
    for _ in 0..500 {
        let mut records = keyward.audit("").await;
        records.retain(|record| record["action"] == "account.connect_failed");
        if records.len() >= wanted {
            return records;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("fewer than {wanted} failures were recorded");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_exchange_tells_the_providers_code_and_never_its_text() {
    let keyward = Keyward::start().await;
    let address = keyward.app.admin_address();
    let canary = "CANARY: the code sbx_code_x of client 7";
    let told = |status, error: &str| Fault::Json(status, json!({"error": error, "error_description": canary}));
    let down = || Fault::Status { status: 503, retry_after: None };
    let cases = [
        (Place::Token, told(400, "invalid_grant"), "invalid_grant"),
        (Place::Token, told(401, "invalid_client"), "invalid_client"),
        (Place::Token, told(400, canary), "provider_unavailable"),
        (Place::Token, told(400, "temporarily_unavailable"), "provider_unavailable"),
        (Place::Token, Fault::Html200, "provider_unavailable"),
        (Place::Token, down(), "provider_unavailable"),
        (
            Place::Token,
            Fault::Redirect(307, format!("{}/oauth/token", keyward.sandbox().origin())),
            "provider_unavailable",
        ),
        (Place::Token, Fault::WrongTokenType("mac".to_owned()), "unsupported_token_type"),
        (Place::Identity, told(401, "invalid_token"), "invalid_token"),
        (Place::Identity, down(), "provider_unavailable"),
        (Place::Identity, Fault::Json(200, json!({"displayName": canary})), "identity_without_subject"),
    ];
    let number = cases.len();
    for (place, fault, hint) in cases {
        let name = format!("{fault:?}");
        keyward.sandbox().faults().times(place, fault, 1);
        let (authorization, _) = open_flow(address, "preset=read").await;
        let back = consent(&authorization, ADA, "allow").await;
        let refused = paste_back(address, &back).await;
        assert_eq!(
            (refused.status, refused.refusal()),
            (StatusCode::BAD_REQUEST, "exchange_failed".to_owned()),
            "{name}"
        );
        assert_eq!(refused.json()["detail"]["hint"], hint, "{name}");
        assert!(!refused.text().contains("CANARY"), "{name}");
        // The state is spent with the try: there is no second one.
        assert_eq!(paste_back(address, &back).await.refusal(), "invalid_state", "{name}");
    }
    // A page says so in our words.
    keyward.sandbox().faults().times(Place::Token, told(400, "invalid_grant"), 1);
    let (mut browser, authorization) = followed(&keyward, "preset=read").await;
    let result = browser.come_back(&consent(&authorization, ADA, "allow").await).await;
    assert_eq!(result, "/integrations/sandbox/failed?code=exchange_failed");
    assert!(!browser.get(&result).await.text().contains("CANARY"));

    let records = failures(&keyward, number + 1).await;
    assert_eq!(
        (records[0]["code"].as_str(), &records[0]["detail"]["provider_code"]),
        (Some("exchange_failed"), &json!("invalid_grant"))
    );
    assert!(records.iter().all(|record| !record.to_string().contains("CANARY")));
    assert!(accounts(&keyward).await.is_empty());
    keyward.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_callbacks_with_one_state_one_wins() {
    for backend in backends() {
        let keyward = started(backend).await;
        for round in 1..=5 {
            let (mut one, authorization) = followed(&keyward, "preset=read").await;
            let mut two = Browser::new(keyward.app.admin_address());
            two.put_cookie("keyward_flow", one.cookie("keyward_flow").unwrap());
            let back = consent(&authorization, ADA, "allow").await;
            let (first, second) = tokio::join!(one.come_back(&back), two.come_back(&back));
            let mut results = [first, second];
            results.sort();
            assert!(results[0].contains("/connected"), "{results:?}");
            assert_eq!(results[1], OVER);
            let counters = keyward.sandbox().counters();
            assert_eq!((counters.token_arrived, counters.code_reuse_detected), (round, 0));
        }
        assert_eq!(accounts(&keyward).await.len(), 1);
        keyward.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_works_once() {
    for backend in backends() {
        let keyward = started(backend).await;
        let page = link(&keyward, "preset=read").await;
        let address = keyward.app.admin_address();
        let (mut one, mut two) = (Browser::new(address), Browser::new(address));
        let (first, second) = tokio::join!(one.post(&page, &[]), two.post(&page, &[]));
        let mut statuses = [first.status, second.status];
        statuses.sort();
        assert_eq!(statuses, [StatusCode::SEE_OTHER, StatusCode::GONE]);
        for path in [page.as_str(), "/connect/flow_00000000000000000000000000", "/connect/x"] {
            for answer in [one.get(path).await, one.post(path, &[]).await] {
                assert_eq!(answer.status, StatusCode::GONE, "{path}");
                assert!(answer.text().contains("This link is over"), "{path}");
            }
        }
        keyward.stop().await;
    }
}

/// As [`Keyward::connect`], for another organization.
pub async fn connect_in(keyward: &Keyward, organization: &str, person: &str) -> Value {
    let address = keyward.app.admin_address();
    let path = format!("/api/organizations/{organization}/integrations/sandbox");
    let link = admin(address, "GET", &format!("{path}/auth_link?preset=write"), None).await.json();
    let page = Url::parse(link["authorization_url"].as_str().unwrap()).unwrap();
    let opened = Browser::new(address).post(page.path(), &[]).await;
    let back = consent(&Url::parse(opened.header("location")).unwrap(), person, "allow").await;
    let body = json!({"code": query(&back, "code"), "state": query(&back, "state")});
    let answer = admin(address, "POST", &format!("{path}/callback"), Some(body)).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
    answer.json()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn managed_targets_are_changed_by_nobody() {
    for backend in backends() {
        let keyward = started(backend).await;
        let account = keyward.connect(ADA).await;
        let path = format!("/api/organizations/default/targets/{}", slug(&account, "mail"));
        let before = keyward.admin("GET", &path, None).await.json();
        for (method, body) in [("PATCH", Some(json!({"name": "Mine"}))), ("DELETE", None)] {
            let refused = keyward.admin(method, &path, body).await;
            assert_eq!(
                (refused.status, refused.refusal()),
                (StatusCode::CONFLICT, "managed_target".to_owned()),
                "{method}"
            );
        }
        assert_eq!(keyward.admin("GET", &path, None).await.json(), before);
        keyward.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_can_not_be_connected_is_refused_before_anything_begins() {
    let keyward = Keyward::start().await;
    let nobody = "acc_00000000000000000000000000";
    for (path, status, code, says) in [
        ("nonesuch/auth_link", 404, "provider_not_found", "nonesuch"),
        ("google/auth_link", 501, "provider_not_configured", "OAUTH_GOOGLE_CLIENT_ID and OAUTH_GOOGLE_CLIENT_SECRET"),
        ("sandbox/auth_link?capabilities=mail,fax", 400, "bad_request", "`fax`"),
        ("sandbox/auth_link?preset=all", 400, "bad_request", "preset"),
        ("sandbox/auth_link?input[origin]=http://127.0.0.1.example.com", 400, "bad_request", "Sandbox address"),
        ("sandbox/auth_link?input[origin]=https://example.com", 400, "bad_request", "Sandbox address"),
        ("sandbox/auth_link?input[tenant]=common", 400, "bad_request", "`tenant`"),
        (&format!("sandbox/auth_link?account={nobody}"), 404, "account_not_found", ""),
        ("sandbox/auth_link?scopes=all", 400, "bad_request", "scopes"),
    ] {
        let refused = keyward.admin("GET", &format!("/api/organizations/default/integrations/{path}"), None).await;
        assert_eq!((refused.status.as_u16(), refused.refusal().as_str()), (status, code), "{path}");
        assert!(refused.text().contains(says), "{path}: {}", refused.text());
        assert!(!refused.headers.contains_key(header::SET_COOKIE));
    }
    let mut browser = Browser::signed_in(keyward.app.admin_address()).await;
    for (path, form, status, says) in [
        ("/integrations/nonesuch/connect", vec![("capability", "mail")], 404, "no such provider"),
        ("/integrations/google/connect", vec![("capability", "mail")], 501, "OAUTH_GOOGLE_CLIENT_SECRET"),
        ("/integrations/sandbox/connect", vec![("capability", "fax")], 400, "fax"),
    ] {
        let refused = browser.post(path, &form).await;
        assert_eq!(refused.status.as_u16(), status, "{path}");
        assert!(refused.text().contains(says), "{path}: {}", refused.text());
    }
    assert!(browser.cookie("keyward_flow").is_none());
    keyward.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_connects_although_its_person_has_left() {
    for backend in backends() {
        let keyward = started(backend).await;
        let (mut browser, authorization) = followed(&keyward, "preset=read").await;
        let back = consent(&authorization, ADA, "allow").await;
        keyward.sandbox().faults().token_times(Fault::SlowAfterWork(Duration::from_millis(500)), 1);
        let leaving = tokio::spawn(async move { browser.come_back(&back).await });
        counted(&keyward, |counters| counters.token_arrived >= 1).await;
        leaving.abort();
        assert!(leaving.await.unwrap_err().is_cancelled());
        for _ in 0..500 {
            if accounts(&keyward).await.len() == 1 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let account = &accounts(&keyward).await[0];
        let checked =
            keyward.api("POST", &format!("/accounts/{}/refresh", account["id"].as_str().unwrap()), None).await;
        assert_eq!(checked["status"], "connected");
        keyward.stop().await;
    }
}
