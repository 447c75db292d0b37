//! Targets: static ones with their credentials, managed and system ones left alone.

use super::*;

/// Every kind of credential with `secret` in it, the kind as shown, and the header or query that goes upstream.
fn credentials(secret: &str) -> Vec<(Value, &'static str, (&'static str, String))> {
    use base64::Engine;
    let basic = base64::engine::general_purpose::STANDARD.encode(format!("ada:{secret}"));
    vec![
        (json!({"kind": "bearer", "token": secret}), "bearer", ("authorization", format!("Bearer {secret}"))),
        (
            json!({"kind": "basic", "username": "ada", "password": secret}),
            "basic",
            ("authorization", format!("Basic {basic}")),
        ),
        (json!({"kind": "header", "name": "X-Token", "value": secret}), "headers", ("x-token", secret.to_owned())),
        (
            json!({"kind": "headers", "headers": {"X-One": "1", "X-Two": secret}}),
            "headers",
            ("x-two", secret.to_owned()),
        ),
        (json!({"kind": "query", "name": "api_key", "value": secret}), "query", ("?", format!("api_key={secret}"))),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_targets_credential_goes_upstream_and_is_never_shown() {
    for backend in backends() {
        let keyward = Keyward::with(backend, Settings::default()).await;
        let account = keyward.connect("ada@example.com").await;
        let key = keyward.new_key().await;
        let house = House { keyward, account, key };
        let keyward = &house.keyward;
        keyward.tools().await;
        let base_url = format!("{}/tools", keyward.sandbox().origin());
        let mut secrets = vec!["the-injected-token".to_owned()];
        for (at, (credential, kind, _)) in credentials("first-hush").into_iter().enumerate() {
            let slug = format!("kind-{at}");
            let new = json!({"slug": slug, "name": "N", "base_url": base_url, "credential": credential, "fence": ["GET /**"]});
            let answer = keyward.admin("POST", &format!("{ORG}/targets"), Some(new)).await;
            let made = done(&answer, 201);
            let wanted = json!({
                "slug": slug, "name": "N", "kind": "static", "base_url": base_url, "credential": {"kind": kind},
                "fence": ["GET /**"], "concurrency": null, "reflect_guard": true, "http1_only": false, "websocket": false, "set_cookie": false,
                "created_at": made["created_at"], "updated_at": made["updated_at"],
            });
            assert_eq!(made, wanted);
            assert_eq!(keyward.api("GET", &format!("/targets/{slug}"), None).await, made);
            keyward.grant(&house.key, &slug, "read").await;
            // Given anew: the second counts.
            let (again, _, (place, wanted)) = credentials(&format!("second-hush-{at}")).swap_remove(at);
            let answer =
                keyward.admin("PATCH", &format!("{ORG}/targets/{slug}"), Some(json!({"credential": again}))).await;
            assert!(!answer.text().contains("hush"), "{}", answer.text());
            done(&answer, 200);
            assert_eq!(keyward.agent(&house.key, "GET", &format!("/proxy/{slug}/1k?a=1")).await.status, 200);
            let seen = keyward.sandbox().recorded().pop().unwrap();
            if place == "?" {
                assert_eq!(seen.target, format!("/tools/1k?a=1&{wanted}"));
            } else {
                assert_eq!(seen.header(place), [wanted.as_bytes()], "{kind}");
                assert_eq!(seen.target, "/tools/1k?a=1");
            }
            secrets.push(wanted.trim_start_matches("Basic ").to_owned());
        }
        secrets.push("hush".to_owned());
        for answer in all_that_can_be_read(&house, &house.key).await {
            for secret in &secrets {
                assert!(!answer.text().contains(secret), "{secret} is in {}", answer.text());
            }
        }
        house.keyward.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_that_makes_no_sense_is_refused_without_repeating_its_secret() {
    let keyward = Keyward::start().await;
    keyward.tools().await;
    let good =
        json!({"slug": "t", "base_url": "https://example.com", "credential": {"kind": "bearer", "token": "hush"}});
    let with = |field: &str, value: Value| {
        let mut target = good.clone();
        target[field] = value;
        target
    };
    let mut wrong = vec![
        (with("slug", json!("")), "slug"),
        (with("slug", json!("Tools")), "slug"),
        (with("slug", json!("a_b")), "slug"),
        (with("slug", json!("../x")), "slug"),
        (with("slug", json!("a".repeat(97))), "slug"),
        (with("name", json!("")), "name"),
        (with("name", json!("a\u{7}b")), "name"),
        (with("base_url", json!("")), "base_url"),
        (with("base_url", json!("http://example.com")), "base_url"),
        (with("base_url", json!("ftp://example.com")), "base_url"),
        (with("base_url", json!("https://ada:hush@example.com")), "base_url"),
        (with("base_url", json!("https://example.com/?key=hush")), "base_url"),
        (with("base_url", json!("https://example.com/#x")), "base_url"),
        (with("base_url", json!("https://example.com/a/../b")), "base_url"),
        (with("base_url", json!("https://example.com/a//b")), "base_url"),
        (with("fence", json!(["me"])), "fence"),
        (with("fence", json!(["get /me"])), "fence"),
        (with("fence", json!(["/a/**/b"])), "fence"),
        (with("fence", json!(["/a/../b"])), "fence"),
        (with("fence", json!("/**")), "fence"),
    ];
    for credential in [
        json!({"kind": "bearer", "token": ""}),
        json!({"kind": "bearer", "token": "hush\r\nX-Evil: 1"}),
        json!({"kind": "bearer"}),
        json!({"kind": "bearer", "token": "hush", "password": "hush"}),
        json!({"kind": "basic", "username": "a:b", "password": "hush"}),
        json!({"kind": "basic", "username": "a"}),
        json!({"kind": "header", "name": "Host", "value": "hush"}),
        json!({"kind": "header", "name": "Content-Length", "value": "hush"}),
        json!({"kind": "header", "name": "bad name", "value": "hush"}),
        json!({"kind": "headers", "headers": {}}),
        json!({"kind": "headers", "headers": {"X-A": "hush\n"}}),
        json!({"kind": "query", "name": "a=b", "value": "hush"}),
        json!({"kind": "query", "name": "", "value": "hush"}),
        json!({"kind": "none", "token": "hush"}),
        json!({"kind": "account"}),
        json!({"token": "hush"}),
        json!("hush"),
        json!(null),
    ] {
        wrong.push((with("credential", credential), "credential"));
    }
    for (body, name) in wrong {
        let mut change = body.clone();
        change.as_object_mut().unwrap().remove("slug");
        let mut tries = vec![keyward.admin("POST", &format!("{ORG}/targets"), Some(body.clone())).await];
        // Leaving a credential out is what a change with `null` says.
        if name != "slug" && !body["credential"].is_null() {
            tries.push(keyward.admin("PATCH", &format!("{ORG}/targets/tools"), Some(change)).await);
        }
        for answer in tries {
            let detail = refused(&answer, 400, "bad_request");
            says(&detail, name);
            assert!(!detail.to_string().contains("hush"), "{body}\n{detail}");
        }
    }
    let slugs: Vec<_> = keyward.api("GET", "/targets", None).await["items"].as_array().unwrap().clone();
    assert_eq!((slugs.len(), &slugs[0]["name"]), (1, &json!("Tools")));
    keyward.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stored_credential_is_not_sent_to_another_address() {
    let keyward = Keyward::start().await;
    keyward.tools().await;
    let key = keyward.new_key().await;
    keyward.grant(&key, "tools", "read").await;
    let path = format!("{ORG}/targets/tools");
    let before = keyward.admin("GET", &path, None).await.json();
    let base_url = before["base_url"].as_str().unwrap();
    for elsewhere in
        ["https://elsewhere.example.com", &format!("{base_url}/deeper"), &base_url.replace("http", "https")]
    {
        for change in [json!({"base_url": elsewhere}), json!({"base_url": elsewhere, "name": "N", "credential": null})]
        {
            let detail = refused(&keyward.admin("PATCH", &path, Some(change)).await, 400, "bad_request");
            says(&detail, "credential");
        }
    }
    assert_eq!(keyward.admin("GET", &path, None).await.json(), before, "nothing was changed");

    // The same address is no other one.
    let same = json!({"base_url": format!("{base_url}/"), "name": "Same", "fence": ["GET /1k"]});
    let changed = done(&keyward.admin("PATCH", &path, Some(same)).await, 200);
    assert_eq!(
        (&changed["base_url"], &changed["name"], &changed["fence"]),
        (&json!(base_url), &json!("Same"), &json!(["GET /1k"]))
    );
    assert_eq!(keyward.agent(&key, "GET", "/proxy/tools/1k").await.status, 200);
    assert_eq!(keyward.agent(&key, "GET", "/proxy/tools/sse").await.refusal(), "not_permitted");
    let seen = keyward.sandbox().recorded().pop().unwrap();
    assert_eq!(seen.header("authorization"), [b"Bearer the-injected-token"]);

    let moved = json!({"base_url": format!("{base_url}/bytes"), "credential": {"kind": "none"}, "fence": []});
    let changed = done(&keyward.admin("PATCH", &path, Some(moved)).await, 200);
    assert_eq!((&changed["credential"], &changed["fence"]), (&json!({"kind": "none"}), &json!(["/**"])));
    assert_eq!(keyward.agent(&key, "GET", "/proxy/tools/16").await.body.len(), 16);
    assert!(keyward.sandbox().recorded().pop().unwrap().header("authorization").is_empty());
    // Where nothing is stored, nothing can leak.
    let back = json!({"base_url": base_url});
    done(&keyward.admin("PATCH", &path, Some(back)).await, 200);
    keyward.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slug_is_taken_once_and_free_again_after() {
    let keyward = Keyward::start().await;
    keyward.tools().await;
    let key = keyward.new_key().await;
    keyward.grant(&key, "tools", "read").await;
    let new = json!({"slug": "tools", "base_url": "https://example.com", "credential": {"kind": "none"}});
    let make = |org: &str| {
        let path = format!("/api/organizations/{org}/targets");
        let (keyward, new) = (&keyward, new.clone());
        async move { keyward.admin("POST", &path, Some(new)).await }
    };
    says(&refused(&make("default").await, 409, "already_exists"), "tools");
    done(&keyward.admin("POST", "/api/organizations", Some(json!({"name": "other"}))).await, 201);
    done(&make("other").await, 201);

    done(&keyward.admin("DELETE", &format!("{ORG}/targets/tools"), None).await, 204);
    refused(&keyward.admin("DELETE", &format!("{ORG}/targets/tools"), None).await, 404, "target_not_found");
    assert_eq!(keyward.agent(&key, "GET", "/proxy/tools/1k").await.refusal(), "target_not_found");
    let made = done(&make("default").await, 201);
    assert_eq!((&made["name"], &made["fence"]), (&json!("tools"), &json!(["/**"])));
    let grants = keyward.api("GET", &format!("/keys/{}/grants", key.id), None).await;
    assert_eq!(grants["items"], json!([]), "grants go with their target");
    let listed = keyward.admin("GET", "/api/organizations/other/targets", None).await.json();
    assert_eq!(listed["items"].as_array().unwrap().len(), 1);
    keyward.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn managed_and_system_targets_are_shown_granted_and_left_alone() {
    let toml = "[targets.shared]\nname = \"Shared\"\nbase_url = \"https://example.com/v1\"\nfence = [\"GET /x/**\"]\n\
                credential = { bearer_env = \"SHARED_TOKEN\" }\n";
    let env = [("SHARED_TOKEN".to_owned(), "hush".to_owned())].into();
    let settings = Settings { toml: toml.to_owned(), env, ..Settings::default() };
    let keyward = Keyward::with(Backend::Sqlite, settings).await;
    let account = keyward.connect("ada@example.com").await;
    let key = keyward.new_key().await;

    let listed = keyward.api("GET", "/targets", None).await;
    assert!(!listed.to_string().contains("hush"));
    let find = |slug: &str| listed["items"].as_array().unwrap().iter().find(|t| t["slug"] == slug).unwrap().clone();
    let system = find("shared");
    let at = &system["created_at"];
    let wanted = json!({"slug": "shared", "name": "Shared", "kind": "system", "base_url": "https://example.com/v1",
        "credential": {"kind": "bearer"}, "fence": ["GET /x/**"], "concurrency": null, "reflect_guard": true,
        "http1_only": false, "websocket": false, "set_cookie": false, "created_at": at, "updated_at": at});
    assert_eq!(system, wanted);
    let slug = crate::harness::slug(&account, "mail");
    let managed = find(&slug);
    assert_eq!(managed["base_url"], format!("{}/v1.0", keyward.sandbox().origin()));
    for (name, wanted) in [
        ("kind", json!("managed")),
        ("credential", json!({"kind": "account"})),
        ("account_id", account["id"].clone()),
        ("provider", json!("sandbox")),
        ("capability", json!("mail")),
    ] {
        assert_eq!(managed[name], wanted, "{name}");
    }
    for slug in ["shared", slug.as_str()] {
        let path = format!("{ORG}/targets/{slug}");
        assert_eq!(done(&keyward.admin("GET", &path, None).await, 200), find(slug));
        for change in [json!({"name": "x"}), json!({"fence": ["/**"]})] {
            refused(&keyward.admin("PATCH", &path, Some(change)).await, 409, "managed_target");
        }
        refused(&keyward.admin("DELETE", &path, None).await, 409, "managed_target");
        let new = json!({"slug": slug, "base_url": "https://example.com", "credential": {"kind": "none"}});
        refused(&keyward.admin("POST", &format!("{ORG}/targets"), Some(new)).await, 409, "already_exists");
        keyward.grant(&key, slug, "write").await;
    }
    assert_eq!(keyward.api("GET", "/targets", None).await, listed);
    // A system target is every organization's.
    done(&keyward.admin("POST", "/api/organizations", Some(json!({"name": "other"}))).await, 201);
    let elsewhere = keyward.admin("GET", "/api/organizations/other/targets", None).await.json();
    assert_eq!(elsewhere["items"], json!([system]));
    keyward.stop().await;
}
