//! Grants, and what they mean for the next request.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grant_counts_for_the_next_request() {
    for backend in backends() {
        let keyward = Keyward::with(backend, Settings::default()).await;
        keyward.tools().await;
        let key = keyward.new_key().await;
        let path = format!("/keys/{}/grants", key.id);
        let ask = async |method: &str| {
            let answer = keyward.agent(&key, method, "/proxy/tools/1k").await;
            if answer.status == 200 { "ok".to_owned() } else { answer.refusal() }
        };
        assert_eq!(keyward.api("GET", &path, None).await, json!({"items": [], "next_cursor": null}));
        assert_eq!((ask("GET").await, ask("POST").await), ("target_not_found".into(), "target_not_found".into()));

        let grant = keyward.api("PUT", &format!("{path}/tools"), Some(json!({"access": "read"}))).await;
        let at = &grant["created_at"];
        assert_eq!(grant, json!({"key": key.id, "target": "tools", "access": "read", "created_at": at}));
        assert_eq!(keyward.api("GET", &path, None).await["items"], json!([grant]));
        assert_eq!((ask("GET").await, ask("POST").await), ("ok".into(), "not_permitted".into()));

        keyward.api("PUT", &format!("{path}/tools"), Some(json!({"access": "write"}))).await;
        assert_eq!(keyward.api("GET", &path, None).await["items"][0]["access"], "write");
        assert_eq!((ask("GET").await, ask("POST").await), ("ok".into(), "ok".into()));

        let answer = keyward.admin("DELETE", &format!("{ORG}{path}/tools"), None).await;
        assert_eq!((done(&answer, 204), answer.body.len()), (Value::Null, 0));
        assert_eq!(ask("GET").await, "target_not_found");
        refused(&keyward.admin("DELETE", &format!("{ORG}{path}/tools"), None).await, 404, "target_not_found");
        keyward.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grant_is_read_or_write_and_nothing_else() {
    let house = House::new().await;
    let keyward = &house.keyward;
    let path = format!("{ORG}/keys/{}/grants/tools", house.key.id);
    for wrong in [json!({}), json!({"access": "admin"}), json!({"access": "Read"}), json!({"access": null})] {
        says(&refused(&keyward.admin("PUT", &path, Some(wrong)).await, 400, "bad_request"), "access");
    }
    let rules = json!({"access": "read", "rules": []});
    says(&refused(&keyward.admin("PUT", &path, Some(rules)).await, 400, "bad_request"), "rules");
    let grants = keyward.api("GET", &format!("/keys/{}/grants", house.key.id), None).await;
    assert_eq!(grants["items"][0]["access"], "read");

    keyward.api("DELETE", &format!("/keys/{}", house.key.id), None).await;
    let answer = keyward.admin("PUT", &path, Some(json!({"access": "write"}))).await;
    says(&refused(&answer, 400, "bad_request"), "revoked");
    // Tidying up behind a revoked key is possible.
    done(&keyward.admin("DELETE", &path, None).await, 204);
    house.keyward.stop().await;
}
