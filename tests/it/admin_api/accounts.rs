//! Accounts and integrations: the answers of every route; the flow itself is in `connect.rs`.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn accounts_are_listed_shown_and_filtered() {
    let keyward = Keyward::start().await;
    let ada = keyward.connect("ada@example.com").await;
    let grace = keyward.connect("grace@example.com").await;
    let path = |account: &Value| format!("/accounts/{}", account["id"].as_str().unwrap());
    assert_eq!(keyward.api("GET", &path(&ada), None).await, ada);
    for (name, wanted) in [
        ("provider", json!("sandbox")),
        ("provider_name", json!("Sandbox")),
        ("email", json!("ada@example.com")),
        ("status", json!("connected")),
        ("reason", Value::Null),
        ("validity", json!("valid")),
        ("missing_scopes", json!([])),
        ("owner", Value::Null),
    ] {
        assert_eq!(ada[name], wanted, "{name}");
    }
    assert_eq!(ada["targets"].as_array().unwrap().len(), 2);

    keyward.sandbox().revoke_all_of("grace@example.com");
    let refusal = keyward.admin("POST", &format!("{ORG}{}/refresh", path(&grace)), None).await;
    refused(&refusal, 409, "account_disconnected");
    let ids = async |query: &str| -> Vec<Value> {
        let listed = keyward.api("GET", &format!("/accounts{query}"), None).await;
        listed["items"].as_array().unwrap().iter().map(|account| account["id"].clone()).collect()
    };
    let (ada, grace) = (ada["id"].clone(), grace["id"].clone());
    assert_eq!(ids("").await, [ada.clone(), grace.clone()]);
    assert_eq!(ids("?status=connected").await, std::slice::from_ref(&ada));
    assert_eq!(ids("?status=disconnected&provider=sandbox").await, [grace]);
    assert_eq!(ids("?status=degraded").await, Vec::<Value>::new());
    assert_eq!(ids("?provider=github").await, Vec::<Value>::new());

    let integrations = keyward.api("GET", "/integrations", None).await;
    assert_eq!(integrations["next_cursor"], Value::Null);
    let integrations = integrations["items"].as_array().unwrap();
    let providers: Vec<_> = integrations.iter().map(|i| i["provider"].as_str().unwrap()).collect();
    assert!(providers.is_sorted() && providers.contains(&"github") && providers.contains(&"sandbox"), "{providers:?}");
    let sandbox = integrations.iter().find(|i| i["provider"] == "sandbox").unwrap();
    assert_eq!((&sandbox["configured"], &sandbox["more_accounts"]), (&json!(true), &json!(false)));
    assert_eq!(sandbox["accounts"].as_array().unwrap().len(), 2);
    assert_eq!(sandbox["variables"], json!(["OAUTH_SANDBOX_CLIENT_ID", "OAUTH_SANDBOX_CLIENT_SECRET"]));
    let github = integrations.iter().find(|i| i["provider"] == "github").unwrap();
    assert_eq!((&github["configured"], &github["accounts"]), (&json!(false), &json!([])));
    keyward.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refreshing_says_what_the_provider_said() {
    let clock = Clock::held(Timestamp::parse("2030-01-01T00:00:00Z").unwrap());
    let keyward = Keyward::with_clock(Backend::Sqlite, Settings::default(), clock.clone()).await;
    let account = keyward.connect("ada@example.com").await;
    let id = account["id"].as_str().unwrap();
    let refresh = || {
        let (keyward, path) = (&keyward, format!("{ORG}/accounts/{id}/refresh"));
        async move { keyward.admin("POST", &path, None).await }
    };
    let status = async || keyward.api("GET", &format!("/accounts/{id}"), None).await;

    clock.advance(Duration::from_secs(60));
    let refreshed = done(&refresh().await, 200);
    assert_eq!(refreshed["access_expires_at"], "2030-01-01T01:01:00Z");
    assert_eq!(keyward.sandbox().counters().refreshes("ok"), 1);

    let faults = keyward.sandbox().faults();
    faults.token(Fault::Status { status: 503, retry_after: Some("7".to_owned()) });
    let answer = refresh().await;
    refused(&answer, 503, "token_unavailable");
    assert_eq!(answer.header("retry-after"), "7");
    let seen = status().await;
    assert_eq!((&seen["status"], &seen["reason"]), (&json!("degraded"), &json!("provider_unavailable")));

    faults.clear();
    faults.token(Fault::Json(401, json!({"error": "invalid_client", "error_description": "hush"})));
    let answer = refresh().await;
    let detail = refused(&answer, 503, "token_unavailable");
    assert!(detail["hint"].as_str().unwrap().contains("client id and secret"), "{detail}");
    assert!(!answer.text().contains("hush"));
    assert_eq!(status().await["reason"], "provider_misconfigured");

    faults.clear();
    assert_eq!(done(&refresh().await, 200)["status"], "connected");
    keyward.sandbox().revoke_all_of("ada@example.com");
    for _ in 0..2 {
        let detail = refused(&refresh().await, 409, "account_disconnected");
        let hint = detail["hint"].as_str().unwrap();
        assert_eq!(hint, format!("http://{}/integrations?reconnect={id}", keyward.app.admin_address()));
    }
    assert_eq!(status().await["status"], "disconnected");
    keyward.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn validating_is_an_answer_whatever_it_sees() {
    let keyward = Keyward::start().await;
    let account = keyward.connect("ada@example.com").await;
    let id = account["id"].as_str().unwrap();
    for path in [format!("/accounts/{id}/validate"), "/integrations/sandbox".to_owned()] {
        let seen = keyward.api("POST", &path, None).await;
        assert_eq!((&seen["is_valid"], &seen["account"]["validity"]), (&json!(true), &json!("valid")));
        assert_eq!(seen["checked_at"], seen["account"]["checked_at"]);
    }
    // Passing trouble tells nothing about the account.
    keyward.sandbox().faults().identity(Fault::Status { status: 503, retry_after: None });
    let seen = keyward.api("POST", &format!("/accounts/{id}/validate"), None).await;
    assert_eq!((&seen["is_valid"], &seen["account"]["validity"]), (&json!(null), &json!("valid")));
    assert_eq!(seen["account"]["status"], "connected");
    keyward.sandbox().faults().clear();

    keyward.sandbox().revoke_all_of("ada@example.com");
    for _ in 0..2 {
        let seen = keyward.api("POST", &format!("/accounts/{id}/validate"), None).await;
        assert_eq!((&seen["is_valid"], &seen["account"]["validity"]), (&json!(false), &json!("invalid")));
        assert_eq!(seen["account"]["status"], "disconnected");
    }
    keyward.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn disconnecting_asks_before_grants_go() {
    let keyward = Keyward::start().await;
    let (account, key) = keyward.connected().await;
    let path = format!("{ORG}/accounts/{}", account["id"].as_str().unwrap());
    for path in [path.clone(), format!("{path}?confirm=false"), format!("{ORG}/integrations/sandbox")] {
        let detail = refused(&keyward.admin("DELETE", &path, None).await, 409, "needs_confirmation");
        says(&detail, "2 grants");
        assert!(detail["hint"].as_str().unwrap().contains("?confirm=true"), "{detail}");
    }
    says(&refused(&keyward.admin("DELETE", &format!("{path}?confirm=yes"), None).await, 400, "bad_request"), "confirm");
    assert_eq!(keyward.admin("GET", &path, None).await.json(), account);

    let gone = done(&keyward.admin("DELETE", &format!("{path}?confirm=true"), None).await, 200);
    let mut slugs: Vec<_> = account["targets"].as_array().unwrap().iter().map(|t| t["slug"].clone()).collect();
    slugs.sort_by_key(ToString::to_string);
    let mut removed = gone["removed_targets"].as_array().unwrap().clone();
    removed.sort_by_key(ToString::to_string);
    assert_eq!((&gone["id"], removed), (&account["id"], slugs));
    refused(&keyward.admin("GET", &path, None).await, 404, "account_not_found");
    refused(&keyward.admin("DELETE", &path, None).await, 404, "account_not_found");
    assert_eq!(keyward.api("GET", "/targets", None).await["items"], json!([]));
    assert_eq!(keyward.api("GET", &format!("/keys/{}/grants", key.id), None).await["items"], json!([]));

    // Without grants nobody has to ask.
    keyward.connect("ada@example.com").await;
    done(&keyward.admin("DELETE", &format!("{ORG}/integrations/sandbox"), None).await, 200);
    keyward.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_only_account_is_meant_only_when_it_is_the_only_one() {
    let keyward = Keyward::start().await;
    let path = format!("{ORG}/integrations/sandbox");
    for method in ["POST", "DELETE"] {
        refused(&keyward.admin(method, &path, None).await, 404, "account_not_found");
    }
    keyward.connect("ada@example.com").await;
    keyward.connect("grace@example.com").await;
    for (method, query) in [("POST", ""), ("DELETE", ""), ("DELETE", "?confirm=true")] {
        let answer = keyward.admin(method, &format!("{path}{query}"), None).await;
        let detail = refused(&answer, 409, "several_accounts");
        assert!(detail["hint"].as_str().unwrap().contains("/accounts/{id}"), "{detail}");
    }
    assert_eq!(keyward.api("GET", "/accounts", None).await["items"].as_array().unwrap().len(), 2);
    keyward.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_to_connect_is_refused_where_it_could_not_work() {
    let keyward = Keyward::start().await;
    let link = |provider: &str, query: &str| {
        let path = format!("{ORG}/integrations/{provider}/auth_link{query}");
        let keyward = &keyward;
        async move { keyward.admin("GET", &path, None).await }
    };
    let detail = refused(&link("github", "").await, 501, "provider_not_configured");
    for variable in ["OAUTH_GITHUB_CLIENT_ID", "OAUTH_GITHUB_CLIENT_SECRET"] {
        assert!(detail["hint"].as_str().unwrap().contains(variable), "{detail}");
    }
    for (query, words) in [
        ("?capabilities=mail,fax", "fax"),
        ("?preset=admin", "preset"),
        ("?preset=read&preset=write", "preset"),
        ("?input%5Borigin%5D=https%3A%2F%2Felsewhere.example.com", "origin"),
        ("?input%5Bnothing%5D=x", "nothing"),
        ("?input%5Borigin%5D=a&input%5Borigin%5D=b", "twice"),
        ("?input=x", "input"),
    ] {
        says(&refused(&link("sandbox", query).await, 400, "bad_request"), words);
    }
    let good = done(&link("sandbox", "?capabilities=mail&preset=write").await, 200);
    let page = format!("http://{}/connect/{}", keyward.app.admin_address(), good["flow_id"].as_str().unwrap());
    assert_eq!(good["authorization_url"], page);
    let ends = Timestamp::parse(good["expires_at"].as_str().unwrap()).unwrap();
    let left = ends.since(Clock::system().now());
    assert!(left > Duration::from_secs(590) && left <= Duration::from_secs(600), "{left:?}");
    keyward.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pasting_back_takes_one_fresh_code_of_its_own_flow() {
    let keyward = Keyward::start().await;
    let address = keyward.app.admin_address();
    done(&keyward.admin("POST", "/api/organizations", Some(json!({"name": "other"}))).await, 201);
    let callback = "/integrations/sandbox/callback";
    let paste = |org: &str, body: Value| {
        let path = format!("/api/organizations/{org}{callback}");
        async move { admin(address, "POST", &path, Some(body)).await }
    };
    refused(&paste("default", json!({"code": "c", "state": "made-up"})).await, 400, "invalid_state");
    for missing in [json!({"code": "c"}), json!({"state": "s"}), json!({"code": null, "state": "s"})] {
        let detail = refused(&paste("default", missing).await, 400, "bad_request");
        assert!(
            detail["message"].as_str().unwrap().contains("code")
                || detail["message"].as_str().unwrap().contains("state")
        );
    }
    // Another organization's flow is not known there.
    let (authorization, _) = open_flow(address, "preset=read").await;
    let back = consent(&authorization, "ada@example.com", "allow").await;
    let body = json!({"code": query(&back, "code"), "state": query(&back, "state")});
    refused(&paste("other", body).await, 400, "invalid_state");
    assert_eq!(keyward.api("GET", "/accounts", None).await["items"], json!([]));

    // A code that the provider refuses; the state is spent with it.
    let (authorization, _) = open_flow(address, "preset=read").await;
    let back = consent(&authorization, "ada@example.com", "allow").await;
    let body = json!({"code": "made-up", "state": query(&back, "state")});
    let detail = refused(&paste("default", body.clone()).await, 400, "exchange_failed");
    assert_eq!(detail["hint"], "invalid_grant");
    refused(&paste("default", body).await, 400, "invalid_state");

    let (authorization, _) = open_flow(address, "preset=read").await;
    let back = consent(&authorization, "ada@example.com", "allow").await;
    let account = done(&paste_back(address, &back).await, 200);
    assert_eq!(account["email"], "ada@example.com");
    refused(&paste_back(address, &back).await, 400, "invalid_state");

    // Reconnecting is for the same person.
    let id = account["id"].as_str().unwrap();
    let (authorization, _) = open_flow(address, &format!("account={id}")).await;
    let back = consent(&authorization, "grace@example.com", "allow").await;
    refused(&paste_back(address, &back).await, 409, "another_identity");
    assert_eq!(keyward.api("GET", "/accounts", None).await["items"].as_array().unwrap().len(), 1);
    keyward.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_connects_in_its_own_browser_only() {
    let keyward = Keyward::start().await;
    let cookie = sign_in(&keyward).await;
    let path = format!("{ORG}/integrations/sandbox/auth_link?preset=read");
    let from_elsewhere = [("cookie", cookie.as_str()), ("sec-fetch-site", "cross-site")];
    let answer = bare(&keyward, "GET", &path, &from_elsewhere, "").await;
    refused(&answer, 403, "cross_site");
    assert_eq!(answer.header("set-cookie"), "");

    let answer = bare(&keyward, "GET", &path, &[("cookie", &cookie)], "").await;
    let link = done(&answer, 200);
    let authorization = Url::parse(link["authorization_url"].as_str().unwrap()).unwrap();
    assert_eq!(authorization.origin().ascii_serialization(), keyward.sandbox().origin());
    assert!(answer.header("set-cookie").starts_with("keyward_flow="), "{}", answer.header("set-cookie"));

    // Pasting back binds no browser: that is for the admin token.
    let back = consent(&authorization, "ada@example.com", "allow").await;
    let body = json!({"code": query(&back, "code"), "state": query(&back, "state")}).to_string();
    let headers =
        [("cookie", cookie.as_str()), ("sec-fetch-site", "same-origin"), ("content-type", "application/json")];
    let answer = bare(&keyward, "POST", &format!("{ORG}/integrations/sandbox/callback"), &headers, &body).await;
    refused(&answer, 403, "not_permitted");
    assert_eq!(keyward.api("GET", "/accounts", None).await["items"], json!([]));
    done(&paste_back(keyward.app.admin_address(), &back).await, 200);
    keyward.stop().await;
}
