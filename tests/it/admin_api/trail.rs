//! The audit trail: one record for each act, found by what is asked for.

use super::*;

/// Looks at the trail again and again.
struct Trail<'a> {
    keyward: &'a Keyward,
    org: &'a str,
    seen: BTreeSet<String>,
}

impl<'a> Trail<'a> {
    async fn new(keyward: &'a Keyward, org: &'a str) -> Self {
        let mut trail = Self { keyward, org, seen: BTreeSet::new() };
        trail.fresh().await;
        trail
    }

    /// What people did since the last look. What Keyward does by itself (revoking at the provider) comes when it comes.
    async fn fresh(&mut self) -> Vec<Value> {
        let path = format!("/api/organizations/{}/audit?limit=200", self.org);
        let records = done(&self.keyward.admin("GET", &path, None).await, 200);
        let records = records["items"].as_array().unwrap().iter().filter(|record| record["actor"] != "system");
        records.filter(|record| self.seen.insert(record["id"].to_string())).cloned().collect()
    }

    async fn one(&mut self, action: &str) -> Value {
        let fresh = self.fresh().await;
        assert_eq!(fresh.len(), 1, "one {action} is wanted: {fresh:?}");
        let record = fresh[0].clone();
        assert_eq!((record["action"].as_str(), record["actor"].as_str()), (Some(action), Some("admin_token")));
        for absent in ["request_id", "method", "path", "status", "bytes_in", "bytes_out", "duration_us"] {
            assert_eq!(record[absent], Value::Null, "{absent} of {action}");
        }
        record
    }

    async fn none(&mut self, what: &str) {
        let fresh = self.fresh().await;
        assert!(fresh.is_empty(), "{what}: {fresh:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_act_leaves_exactly_one_record() {
    for backend in backends() {
        let keyward = Keyward::with(backend, Settings::default()).await;
        let api = async |method: &str, path: &str, body: Option<Value>| keyward.api(method, path, body).await;
        let mut trail = Trail::new(&keyward, "default").await;

        let key = keyward.new_key().await;
        let id = json!(key.id);
        let path = format!("/keys/{}", key.id);
        let record = trail.one("key.created").await;
        assert_eq!((&record["key"], &record["detail"]), (&id, &json!({"name": "test"})));
        api("PATCH", &path, Some(json!({"name": "renamed"}))).await;
        let record = trail.one("key.updated").await;
        assert_eq!((&record["key"], &record["detail"]["name"]), (&id, &json!("renamed")));
        api("POST", &format!("{path}/rotate?grace=1h"), None).await;
        assert_eq!(trail.one("key.rotated").await["key"], id);

        keyward.tools().await;
        assert_eq!(trail.one("target.created").await["target"], "tools");
        api("PATCH", "/targets/tools", Some(json!({"name": "T", "credential": {"kind": "none"}}))).await;
        let record = trail.one("target.updated").await;
        assert_eq!(
            (&record["target"], &record["detail"]),
            (&json!("tools"), &json!({"changed": ["credential", "name"]}))
        );

        keyward.grant(&key, "tools", "write").await;
        let record = trail.one("grant.set").await;
        assert_eq!(
            (&record["key"], &record["target"], &record["detail"]),
            (&id, &json!("tools"), &json!({"access": "write"}))
        );
        api("DELETE", &format!("{path}/grants/tools"), None).await;
        let record = trail.one("grant.removed").await;
        assert_eq!((&record["key"], &record["target"]), (&id, &json!("tools")));
        api("DELETE", "/targets/tools", None).await;
        assert_eq!(trail.one("target.deleted").await["target"], "tools");
        api("DELETE", &path, None).await;
        assert_eq!(trail.one("key.revoked").await["key"], id);
        api("DELETE", &path, None).await;
        trail.none("revoking what is revoked").await;

        let account = keyward.connect("ada@example.com").await;
        let record = trail.one("account.connected").await;
        assert_eq!((&record["account"], &record["detail"]["provider"]), (&account["id"], &json!("sandbox")));
        let path = format!("/accounts/{}", account["id"].as_str().unwrap());
        api("POST", &format!("{path}/validate"), None).await;
        assert_eq!(trail.one("account.validated").await["account"], account["id"]);
        api("POST", "/integrations/sandbox", None).await;
        assert_eq!(trail.one("account.validated").await["account"], account["id"]);
        api("POST", &format!("{path}/refresh"), None).await;
        assert_eq!(trail.one("account.refresh_asked").await["account"], account["id"]);
        keyward.connect("ada@example.com").await;
        assert_eq!(trail.one("account.reconnected").await["account"], account["id"]);
        let body = json!({"code": "made-up", "state": "made-up"});
        keyward.admin("POST", &format!("{ORG}/integrations/sandbox/callback"), Some(body)).await;
        trail.none("a callback of no flow").await;
        api("DELETE", &path, None).await;
        let record = trail.one("account.disconnected").await;
        assert_eq!((&record["account"], &record["detail"]["reason"]), (&account["id"], &json!("requested")));

        for path in ["/keys", "/targets", "/accounts", "/integrations", "/audit", "/integrations/sandbox/auth_link"] {
            api("GET", path, None).await;
        }
        trail.none("reading").await;
        done(&keyward.admin("POST", "/api/organizations", Some(json!({"name": "other"}))).await, 201);
        trail.none("an organization's record is its own").await;
        let mut theirs = Trail { keyward: &keyward, org: "other", seen: BTreeSet::new() };
        assert_eq!(theirs.one("organization.created").await["detail"], json!({"name": "other"}));
        keyward.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_refused_leaves_no_record() {
    let house = House::new().await;
    let keyward = &house.keyward;
    let mut trail = Trail::new(keyward, "default").await;
    let key = &house.key.id;
    for (method, path, body) in [
        ("POST", "/keys".to_owned(), Some(json!({"name": ""}))),
        ("PATCH", format!("/keys/{NO_KEY}"), Some(json!({"name": "x"}))),
        ("POST", format!("/keys/{key}/rotate?grace=x"), None),
        ("PUT", format!("/keys/{key}/grants/nothing"), Some(json!({"access": "read"}))),
        ("DELETE", format!("/keys/{key}/grants/{}", house.account["targets"][0]["slug"].as_str().unwrap()), None),
        (
            "POST",
            "/targets".to_owned(),
            Some(json!({"slug": "tools", "base_url": "https://example.com", "credential": {"kind": "none"}})),
        ),
        ("PATCH", "/targets/tools".to_owned(), Some(json!({"base_url": "https://example.com"}))),
        ("DELETE", format!("/targets/{}", house.account["targets"][0]["slug"].as_str().unwrap()), None),
        ("DELETE", format!("/accounts/{NO_ACCOUNT}"), None),
        ("POST", format!("/accounts/{NO_ACCOUNT}/refresh"), None),
    ] {
        let answer = keyward.admin(method, &format!("{ORG}{path}"), body).await;
        assert!(answer.status.is_client_error(), "{method} {path}: {}", answer.text());
        trail.none(&format!("{method} {path}")).await;
    }
    refused(
        &keyward.admin("POST", "/api/organizations", Some(json!({"name": "default"}))).await,
        409,
        "already_exists",
    );
    trail.none("an organization that is there").await;
    house.keyward.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_trail_is_filtered_by_what_is_asked_for() {
    for backend in backends() {
        let clock = Clock::held(Timestamp::parse("2030-01-01T00:00:00Z").unwrap());
        let keyward = Keyward::with_clock(backend, Settings::default(), clock.clone()).await;
        keyward.tools().await;
        clock.advance(Duration::from_secs(1));
        let one = keyward.new_key().await;
        let two = keyward.new_key().await;
        clock.advance(Duration::from_secs(1));
        keyward.grant(&one, "tools", "read").await;
        keyward.grant(&two, "tools", "read").await;
        let account = keyward.connect("ada@example.com").await;
        clock.advance(Duration::from_secs(1));
        keyward.agent(&one, "GET", "/proxy/tools/1k").await;
        keyward.agent(&two, "POST", "/proxy/tools/1k").await;

        let actions = async |query: &str| -> Vec<String> {
            let records = keyward.audit(query).await;
            records.iter().rev().map(|record| record["action"].as_str().unwrap().to_owned()).collect()
        };
        let all = [
            "target.created",
            "key.created",
            "key.created",
            "grant.set",
            "grant.set",
            "account.connected",
            "request",
            "request",
        ];
        assert_eq!(actions("").await, all);
        assert_eq!(actions(&format!("&key={}", one.id)).await, ["key.created", "grant.set", "request"]);
        assert_eq!(actions("&target=tools").await, ["target.created", "grant.set", "grant.set", "request", "request"]);
        assert_eq!(actions(&format!("&key={}&target=tools", two.id)).await, ["grant.set", "request"]);
        assert_eq!(actions(&format!("&account={}", account["id"].as_str().unwrap())).await, ["account.connected"]);
        assert_eq!(actions("&status=200").await, ["request"]);
        assert_eq!(actions(&format!("&status=403&key={}", one.id)).await, Vec::<String>::new());
        assert_eq!(actions("&since=2030-01-01T00:00:02Z").await, all[3..]);
        assert_eq!(actions("&until=2030-01-01T00:00:02Z").await, all[..3]);
        assert_eq!(actions("&since=2030-01-01T00:00:01Z&until=2030-01-01T01:00:02%2B01:00").await, all[1..3]);
        assert_eq!(actions("&target=nothing").await, Vec::<String>::new());
        assert_eq!(actions(&format!("&key={NO_KEY}")).await, Vec::<String>::new());

        let refusal = &keyward.audit("&status=403").await[0];
        for (name, wanted) in [
            ("actor", json!(two.id)),
            ("key", json!(two.id)),
            ("target", json!("tools")),
            ("method", json!("POST")),
            ("path", json!("/1k")),
            ("code", json!("not_permitted")),
        ] {
            assert_eq!(refusal[name], wanted, "{name}");
        }
        assert!(refusal["request_id"].as_str().unwrap().starts_with("req_"));
        keyward.stop().await;
    }
}
