//! Agent keys: made, shown once, changed, rotated, revoked.

use super::*;

async fn works(keyward: &Keyward, secret: &str) -> bool {
    let key = Key { id: String::new(), secret: secret.to_owned() };
    let answer = keyward.agent(&key, "GET", "/verify").await;
    match answer.status.as_u16() {
        200 => true,
        401 => {
            assert_eq!(answer.refusal(), "invalid_key");
            false
        }
        _ => panic!("{} {}", answer.status, answer.text()),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_is_made_read_changed_and_revoked() {
    for backend in backends() {
        let keyward = Keyward::with(backend, Settings::default()).await;
        let new = json!({"name": "  agent ", "expires_at": "2099-01-01T00:00:00+01:00",
            "allowed_ips": ["127.0.0.1", "2001:db8::/32"], "rate_limit": {"requests": 600, "concurrent": 10}});
        let made = done(&keyward.admin("POST", &format!("{ORG}/keys"), Some(new)).await, 201);
        let secret = made["key"].as_str().unwrap().to_owned();
        let id = made["id"].as_str().unwrap().to_owned();
        assert!(secret.starts_with("kw_") && secret.len() == 52, "{secret}");
        assert!(secret.starts_with(made["prefix"].as_str().unwrap().trim_end_matches('…')));
        let mut record = made.clone();
        record.as_object_mut().unwrap().remove("key");
        let wanted = json!({
            "id": id, "name": "agent", "prefix": made["prefix"], "status": "active",
            "rate_limit": {"requests": 600, "per": "1m", "concurrent": 10},
            "expires_at": "2098-12-31T23:00:00Z", "allowed_ips": ["127.0.0.1/32", "2001:db8::/32"],
            "created_at": made["created_at"], "last_used_at": null, "revoked_at": null,
        });
        assert_eq!(record, wanted);
        let path = format!("/keys/{id}");
        assert_eq!(keyward.api("GET", &path, None).await, record);
        assert_eq!(keyward.api("GET", "/keys", None).await, json!({"items": [record], "next_cursor": null}));
        assert!(works(&keyward, &secret).await);
        // Its use is written beside the record of the request; once a minute is enough.
        let requests = keyward.audit(&format!("&key={id}&status=200")).await;
        assert_eq!(requests.len(), 1, "{requests:?}");
        record["last_used_at"] = requests[0]["at"].clone();
        assert_eq!(keyward.api("GET", &path, None).await, record);

        let changed = keyward.api("PATCH", &path, Some(json!({"name": "other"}))).await;
        record["name"] = json!("other");
        assert_eq!(changed, record, "what is absent stays");
        let changed =
            keyward.api("PATCH", &path, Some(json!({"expires_at": null, "allowed_ips": ["192.0.2.0/24"]}))).await;
        assert_eq!((&changed["expires_at"], &changed["allowed_ips"]), (&Value::Null, &json!(["192.0.2.0/24"])));
        assert_eq!(keyward.api("PATCH", &path, Some(json!({}))).await, changed);
        let changed = keyward.api("PATCH", &path, Some(json!({"rate_limit": {"concurrent": 1}}))).await;
        assert_eq!(changed["rate_limit"], json!({"concurrent": 1}));
        assert!(keyward.api("PATCH", &path, Some(json!({"rate_limit": null}))).await["rate_limit"].is_null());
        let key = Key { id: id.clone(), secret: secret.clone() };
        assert_eq!(keyward.agent(&key, "GET", "/verify").await.refusal(), "address_not_allowed");
        keyward.api("PATCH", &path, Some(json!({"allowed_ips": []}))).await;
        assert!(works(&keyward, &secret).await);

        let revoked = keyward.api("DELETE", &path, None).await;
        assert_eq!((revoked["status"].as_str(), revoked["revoked_at"].is_string()), (Some("revoked"), true));
        assert!(!works(&keyward, &secret).await);
        assert_eq!(keyward.api("DELETE", &path, None).await, revoked, "revoking twice is fine");
        assert_eq!(keyward.api("GET", &path, None).await, revoked);
        // What was revoked stays so.
        for (method, path, body) in
            [("PATCH", path.clone(), Some(json!({"name": "x"}))), ("POST", format!("{path}/rotate"), None)]
        {
            let answer = keyward.admin(method, &format!("{ORG}{path}"), body).await;
            says(&refused(&answer, 400, "bad_request"), "revoked");
        }
        assert!(!works(&keyward, &secret).await);
        keyward.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_makes_no_sense_is_refused() {
    let keyward = Keyward::start().await;
    let key = keyward.new_key().await;
    let wrong = [
        (json!({"name": ""}), "name"),
        (json!({"name": " \t "}), "name"),
        (json!({"name": "x".repeat(201)}), "name"),
        (json!({"name": "line\nline"}), "name"),
        (json!({"name": "x", "expires_at": "2001-01-01T00:00:00Z"}), "expires_at"),
        (json!({"name": "x", "expires_at": "tomorrow"}), "expires_at"),
        (json!({"name": "x", "expires_at": 4102444800u64}), "expires_at"),
        (json!({"name": "x", "allowed_ips": ["127.0.0.1", "ten"]}), "allowed_ips[1]"),
        (json!({"name": "x", "allowed_ips": ["10.0.0.0/33"]}), "allowed_ips[0]"),
        (json!({"name": "x", "allowed_ips": "127.0.0.1"}), "allowed_ips"),
        (json!({"name": "x", "rate_limit": {"per_minute": 1}}), "rate_limit"),
        (json!({"name": "x", "rate_limit": 5}), "rate_limit"),
        (json!({"name": "x", "rate_limit": {}}), "rate_limit"),
        (json!({"name": "x", "rate_limit": {"requests": 0}}), "rate_limit"),
        (json!({"name": "x", "rate_limit": {"requests": 1, "per": "2d"}}), "rate_limit"),
    ];
    for (body, name) in wrong {
        let made = keyward.admin("POST", &format!("{ORG}/keys"), Some(body.clone())).await;
        says(&refused(&made, 400, "bad_request"), name);
        let changed = keyward.admin("PATCH", &format!("{ORG}/keys/{}", key.id), Some(body)).await;
        says(&refused(&changed, 400, "bad_request"), name);
    }
    says(&refused(&keyward.admin("POST", &format!("{ORG}/keys"), Some(json!({}))).await, 400, "bad_request"), "name");
    let longest = json!({"name": "ü".repeat(200)});
    done(&keyward.admin("POST", &format!("{ORG}/keys"), Some(longest)).await, 201);
    keyward.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_is_expired_from_its_end_on() {
    let clock = Clock::held(Timestamp::parse("2030-01-01T00:00:00Z").unwrap());
    let keyward = Keyward::with_clock(Backend::Sqlite, Settings::default(), clock.clone()).await;
    let made = keyward.api("POST", "/keys", Some(json!({"name": "x", "expires_at": "2030-01-01T00:01:00Z"}))).await;
    let (path, secret) = (format!("/keys/{}", made["id"].as_str().unwrap()), made["key"].as_str().unwrap());
    clock.advance(Duration::from_millis(59_999));
    assert_eq!(keyward.api("GET", &path, None).await["status"], "active");
    assert!(works(&keyward, secret).await);
    clock.advance(Duration::from_millis(1));
    assert_eq!(keyward.api("GET", &path, None).await["status"], "expired");
    assert!(!works(&keyward, secret).await);
    // It may be given more time.
    keyward.api("PATCH", &path, Some(json!({"expires_at": null}))).await;
    assert!(works(&keyward, secret).await);
    keyward.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotated_key_keeps_its_grants_and_the_old_one_works_for_the_grace() {
    let clock = Clock::held(Timestamp::parse("2030-01-01T00:00:00Z").unwrap());
    let keyward = Keyward::with_clock(Backend::Sqlite, Settings::default(), clock.clone()).await;
    keyward.tools().await;
    let key = keyward.new_key().await;
    keyward.grant(&key, "tools", "read").await;
    let rotate = |query: &'static str| {
        let path = format!("{ORG}/keys/{}/rotate{query}", key.id);
        let keyward = &keyward;
        async move { keyward.admin("POST", &path, None).await }
    };

    let second = done(&rotate("?grace=2h").await, 200);
    assert_eq!((second["id"].as_str(), second["status"].as_str()), (Some(key.id.as_str()), Some("active")));
    let second = second["key"].as_str().unwrap().to_owned();
    assert_ne!(second, key.secret);
    clock.advance(Duration::from_secs(2 * 3600 - 1));
    assert!(works(&keyward, &key.secret).await && works(&keyward, &second).await);
    clock.advance(Duration::from_secs(1));
    assert!(!works(&keyward, &key.secret).await);
    assert!(works(&keyward, &second).await);

    let third = done(&rotate("").await, 200)["key"].as_str().unwrap().to_owned();
    assert!(!works(&keyward, &second).await, "without a grace the old key is over at once");
    let agent = Key { id: key.id.clone(), secret: third.clone() };
    assert_eq!(keyward.agent(&agent, "GET", "/proxy/tools/1k").await.status, 200);

    for wrong in
        ["?grace=", "?grace=5", "?grace=-5m", "?grace=31d", "?grace=1w", "?grace=99999999999999999999d", "?grace=5%20m"]
    {
        says(&refused(&rotate(wrong).await, 400, "bad_request"), "grace");
    }
    assert!(works(&keyward, &third).await, "a refused rotation changes nothing");

    // Revoking ends a grace that runs.
    let fourth = done(&rotate("?grace=30d").await, 200)["key"].as_str().unwrap().to_owned();
    keyward.api("DELETE", &format!("/keys/{}", key.id), None).await;
    assert!(!works(&keyward, &third).await && !works(&keyward, &fourth).await);
    keyward.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_is_shown_once_and_never_again() {
    let house = House::new().await;
    let keyward = &house.keyward;
    let mut secrets = vec![house.key.secret.clone()];
    for query in ["?grace=1h", ""] {
        let rotated = keyward.api("POST", &format!("/keys/{}/rotate{query}", house.key.id), None).await;
        secrets.push(rotated["key"].as_str().unwrap().to_owned());
    }
    let agent = Key { id: house.key.id.clone(), secret: secrets[2].clone() };
    keyward.agent(&agent, "GET", "/proxy/tools/1k").await;
    keyward.api("PATCH", &format!("/keys/{}", agent.id), Some(json!({"name": "renamed"}))).await;
    keyward.api("PUT", &format!("/keys/{}/grants/tools", agent.id), Some(json!({"access": "write"}))).await;

    let mut answers = all_that_can_be_read(&house, &agent).await;
    answers.push(keyward.admin("DELETE", &format!("{ORG}/keys/{}", agent.id), None).await);
    answers.extend(all_that_can_be_read(&house, &agent).await);
    for answer in answers {
        let text = format!("{:?} {}", answer.headers, answer.text());
        for secret in &secrets {
            assert!(!text.contains(&secret[10..46]), "a key is shown again: {text}");
        }
    }
    house.keyward.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_there_is_told_alike_for_unknown_and_foreign_things() {
    let house = House::new().await;
    let keyward = &house.keyward;
    done(&keyward.admin("POST", "/api/organizations", Some(json!({"name": "other"}))).await, 201);
    let (own_key, own_account) = (house.key.id.clone(), house.account().to_owned());
    let managed = house.account["targets"][0]["slug"].as_str().unwrap();
    let access = Some(json!({"access": "read"}));
    let name = Some(json!({"name": "x"}));
    // In `default` the ids are nobody's; in `other` they are somebody else's.
    for (org, key, account) in
        [("default", NO_KEY, NO_ACCOUNT), ("default", "key", "acc"), ("other", &own_key, &own_account)]
    {
        let cases = [
            ("GET", format!("keys/{key}"), None, "key_not_found"),
            ("PATCH", format!("keys/{key}"), name.clone(), "key_not_found"),
            ("DELETE", format!("keys/{key}"), None, "key_not_found"),
            ("POST", format!("keys/{key}/rotate"), None, "key_not_found"),
            ("GET", format!("keys/{key}/grants"), None, "key_not_found"),
            ("PUT", format!("keys/{key}/grants/tools"), access.clone(), "key_not_found"),
            ("DELETE", format!("keys/{key}/grants/tools"), None, "key_not_found"),
            ("GET", format!("accounts/{account}"), None, "account_not_found"),
            ("DELETE", format!("accounts/{account}?confirm=true"), None, "account_not_found"),
            ("POST", format!("accounts/{account}/validate"), None, "account_not_found"),
            ("POST", format!("accounts/{account}/refresh"), None, "account_not_found"),
            ("GET", format!("integrations/sandbox/auth_link?account={account}"), None, "account_not_found"),
        ];
        for (method, path, body, code) in cases {
            refused(&keyward.admin(method, &format!("/api/organizations/{org}/{path}"), body).await, 404, code);
        }
    }
    for (org, slug) in [("default", "nothing"), ("default", "No_Slug"), ("other", "tools"), ("other", managed)] {
        let path = format!("/api/organizations/{org}/targets/{slug}");
        refused(&keyward.admin("GET", &path, None).await, 404, "target_not_found");
        refused(&keyward.admin("PATCH", &path, name.clone()).await, 404, "target_not_found");
        refused(&keyward.admin("DELETE", &path, None).await, 404, "target_not_found");
    }
    for slug in ["nothing", "No_Slug"] {
        let path = format!("{ORG}/keys/{own_key}/grants/{slug}");
        refused(&keyward.admin("PUT", &path, access.clone()).await, 404, "target_not_found");
        refused(&keyward.admin("DELETE", &path, None).await, 404, "target_not_found");
    }
    for (method, path) in [("POST", ""), ("DELETE", ""), ("GET", "/auth_link")] {
        let path = format!("{ORG}/integrations/nobody{path}");
        refused(&keyward.admin(method, &path, None).await, 404, "provider_not_found");
    }
    house.keyward.stop().await;
}
