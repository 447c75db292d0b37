//! Organizations, and what they don't see of each other.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn organizations_are_made_listed_and_kept_apart() {
    for backend in backends() {
        let keyward = Keyward::with(backend, Settings::default()).await;
        let create = |body: Value| {
            let keyward = &keyward;
            async move { keyward.admin("POST", "/api/organizations", Some(body)).await }
        };
        let made = done(&create(json!({"name": "acme-2"})).await, 201);
        assert_eq!(made["name"], "acme-2");
        assert!(made["id"].as_str().unwrap().starts_with("org_"));
        says(&refused(&create(json!({"name": "acme-2"})).await, 409, "already_exists"), "acme-2");
        refused(&create(json!({"name": "default"})).await, 409, "already_exists");
        for wrong in ["", "Acme", "a b", "a_b", "ü", &"a".repeat(65)] {
            says(&refused(&create(json!({"name": wrong})).await, 400, "bad_request"), "name");
        }
        let listed = keyward.admin("GET", "/api/organizations", None).await.json();
        let names: Vec<_> =
            listed["items"].as_array().unwrap().iter().map(|org| org["name"].as_str().unwrap()).collect();
        assert_eq!((names, &listed["items"][0]), (vec!["acme-2", "default"], &made));
        assert_eq!(listed["next_cursor"], Value::Null);

        let key = done(&keyward.admin("POST", "/api/organizations/acme-2/keys", Some(json!({"name": "k"}))).await, 201);
        assert_eq!(keyward.api("GET", "/keys", None).await["items"], json!([]));
        let theirs = keyward.admin("GET", "/api/organizations/acme-2/audit", None).await.json();
        let actions: Vec<_> = theirs["items"].as_array().unwrap().iter().map(|r| r["action"].clone()).collect();
        assert_eq!(actions, ["key.created", "organization.created"]);
        assert_eq!(keyward.audit("").await, Vec::<Value>::new());
        let query = format!("{ORG}/audit?key={}", key["id"].as_str().unwrap());
        assert_eq!(keyward.admin("GET", &query, None).await.json()["items"], json!([]));
        keyward.stop().await;
    }
}
