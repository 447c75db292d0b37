//! Health and metrics.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_is_public_and_metrics_are_not() {
    let keyward = Keyward::start().await;
    for path in ["/healthz", "/readyz"] {
        assert_eq!(done(&bare(&keyward, "GET", path, &[], "").await, 200), json!({"status": "ok"}));
    }
    refused(&bare(&keyward, "GET", "/metrics", &[], "").await, 401, "invalid_token");
    refused(
        &bare(&keyward, "GET", "/metrics", &[("authorization", "Bearer kwa_wrong")], "").await,
        401,
        "invalid_token",
    );

    let (account, key) = keyward.connected().await;
    keyward.api("POST", &format!("/accounts/{}/refresh", account["id"].as_str().unwrap()), None).await;
    let slug = crate::harness::slug(&account, "mail");
    assert_eq!(keyward.agent(&key, "GET", &format!("/proxy/{slug}/me/messages")).await.status, 200);
    assert_eq!(keyward.agent(&key, "GET", "/proxy/nothing/x").await.status, 404);
    let answer = keyward.admin("GET", "/metrics", None).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("content-type"), "application/openmetrics-text; version=1.0.0; charset=utf-8");
    let text = answer.text();
    for line in [
        "# TYPE keyward_requests counter",
        "keyward_requests_total{outcome=\"2xx\"} 1",
        "keyward_requests_total{outcome=\"refused\"} 1",
        "# TYPE keyward_request_seconds histogram",
        "keyward_request_seconds_count 2",
        "keyward_refreshes_total{outcome=\"ok\"} 1",
        "keyward_refreshes_total{outcome=\"rejected\"} 0",
        "# TYPE keyward_audit_records counter",
        "keyward_audit_dropped_total 0",
        "keyward_accounts{status=\"connected\"} 1",
        "# EOF",
    ] {
        assert!(text.lines().any(|shown| shown == line), "{line} is not in\n{text}");
    }
    for private in ["ada", "example.com", &key.id, &slug, "kw"] {
        let shown = text.lines().find(|line| line.replace("keyward", "").contains(private));
        assert_eq!(shown, None, "metrics tell about {private}");
    }
    keyward.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_its_store_keyward_lives_is_not_ready_and_tells_no_causes() {
    let keyward = Keyward::start().await;
    keyward.app.store().close().await;
    done(&bare(&keyward, "GET", "/healthz", &[], "").await, 200);
    says(&refused(&bare(&keyward, "GET", "/readyz", &[], "").await, 503, "not_ready"), "store");
    for (method, path, body) in [
        ("GET", "/api/organizations".to_owned(), None),
        ("GET", format!("{ORG}/keys"), None),
        ("POST", format!("{ORG}/keys"), Some(json!({"name": "x"}))),
        ("POST", "/api/organizations".to_owned(), Some(json!({"name": "x"}))),
    ] {
        let answer = keyward.admin(method, &path, body).await;
        let detail = refused(&answer, 500, "internal");
        assert!(detail["hint"].as_str().unwrap().contains("log"), "{detail}");
        for cause in ["pool", "sqlite", "database", "sqlx"] {
            assert!(!answer.text().to_lowercase().contains(cause), "{}", answer.text());
        }
    }
    keyward.stop().await;
}
