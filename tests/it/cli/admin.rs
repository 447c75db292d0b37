//! The commands that speak to a running Keyward.

use serde_json::json;

use super::*;
use crate::harness::Key;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_made_listed_rotated_and_revoked() {
    let keyward = Keyward::start().await;
    let shell = Shell::of(&keyward);
    let empty = shell.run("key list");
    assert_eq!((empty.code, empty.out.as_str(), empty.err.as_str()), (Some(0), "", "Nothing here.\n"));

    let made = shell.run("key create my~agent --expires-in 90d --allow-ip 127.0.0.1 --allow-ip 10.0.0.0/8");
    assert_eq!(made.err, "The key is shown once: keep it now.\n");
    let made = pairs(&made.done());
    assert_eq!(made["name"], "my agent");
    let record = keyward.api("GET", &format!("/keys/{}", made["id"]), None).await;
    assert_eq!((&record["name"], &record["allowed_ips"]), (&json!("my agent"), &json!(["127.0.0.1/32", "10.0.0.0/8"])));
    assert_eq!(record["expires_at"], made["expires"]);
    let key = Key { id: made["id"].clone(), secret: made["key"].clone() };
    assert_eq!(keyward.agent(&key, "GET", "/verify").await.status, 200);

    let other = shell.run("key create other --expires-at 2099-01-31T00:00:00Z --json").json();
    assert_eq!(other["expires_at"], "2099-01-31T00:00:00Z");
    // Whoever reads the trail waits for it, and with it for what it tells about keys.
    let used = keyward.audit(&format!("&key={}&status=200", key.id)).await[0]["at"].clone();
    let listed = shell.run("key list").done();
    let rows = table(&listed);
    assert_eq!(rows.iter().map(|row| row["NAME"].as_str()).collect::<Vec<_>>(), ["my agent", "other"]);
    assert_eq!(rows[0]["ID"], key.id);
    assert!(key.secret.starts_with(rows[0]["BEGINS WITH"].trim_end_matches('…')) && !listed.contains(&key.secret));
    assert_eq!((used.as_str(), rows[0]["REVOKED"].as_str()), (Some(rows[0]["LAST USED"].as_str()), "-"));
    assert_eq!(rows[1]["LAST USED"], "-");
    assert_eq!(shell.run("key list --json").json(), keyward.api("GET", "/keys", None).await["items"]);

    let limits = |key: &str| {
        let path = format!("/keys/{key}");
        let keyward = &keyward;
        async move { keyward.api("GET", &path, None).await["rate_limit"].clone() }
    };
    shell.run(&format!("key update {} --requests 5 --per 1h --concurrent 2", key.id)).done();
    assert_eq!(limits(&key.id).await, json!({"requests": 5, "per": "1h", "concurrent": 2}));
    shell.run(&format!("key update {} --name renamed", key.id)).done();
    assert_eq!(limits(&key.id).await["requests"], 5, "what is not named stays");
    shell.run(&format!("key update {} --no-limits", key.id)).done();
    assert!(limits(&key.id).await.is_null());
    let limited = shell.run("key create limited --requests 9 --json").json();
    assert_eq!(limited["rate_limit"], json!({"requests": 9, "per": "1m"}));

    let rotated = pairs(&shell.run(&format!("key rotate {} --grace 1h", key.id)).done());
    let new = Key { id: rotated["id"].clone(), secret: rotated["key"].clone() };
    assert_eq!(new.id, key.id);
    for key in [&key, &new] {
        assert_eq!(keyward.agent(key, "GET", "/verify").await.status, 200);
    }
    let last = shell.run(&format!("key rotate {} --json", key.id)).json()["key"].as_str().unwrap().to_owned();
    assert_eq!(keyward.agent(&new, "GET", "/verify").await.status, 401);

    let revoked = shell.run(&format!("key revoke {}", key.id));
    assert_eq!(revoked.err, format!("{} is revoked.\n", key.id));
    assert_eq!(revoked.done(), "");
    let last = Key { id: key.id.clone(), secret: last };
    assert_eq!(keyward.agent(&last, "GET", "/verify").await.status, 401);
    assert_ne!(table(&shell.run("key list").done())[0]["REVOKED"], "-");
    keyward.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn targets_are_made_of_variables_and_deleted() {
    let keyward = Keyward::start().await;
    let base = format!("{}/tools", keyward.sandbox().origin());
    let shell = Shell::of(&keyward).with("TOKEN", "hush-1").with("SECOND", "hush-2");
    std::fs::write(keyward.world.dir.path().join("secret"), "hush-3\n").unwrap();
    let shell = shell.with("FILED_FILE", "secret");
    let basic = "Basic YWRhOmh1c2gtMg==";
    for (slug, credential, kind, header) in [
        ("a", "--bearer-env TOKEN", "bearer", ("authorization", "Bearer hush-1")),
        ("b", "--basic-user ada --basic-password-env SECOND", "basic", ("authorization", basic)),
        ("c", "--header-env X-Key=FILED", "headers", ("x-key", "hush-3")),
        ("d", "--header-env X-Key=TOKEN --header-env X-More=SECOND", "headers", ("x-more", "hush-2")),
        ("e", "--query-env key=TOKEN", "query", ("?", "key=hush-1")),
        ("f", "", "none", ("", "")),
    ] {
        let words = format!("target create {slug} --base-url {base} --name Target~{slug} --fence GET~/1k {credential}");
        let ran = shell.run(words.trim());
        assert!(!ran.err.contains("hush"), "{}", ran.err);
        let told = pairs(&ran.done());
        assert_eq!((told["slug"].as_str(), told["name"].as_str()), (slug, &*format!("Target {slug}")));
        assert_eq!((told["base URL"].as_str(), told["fence"].as_str()), (base.as_str(), "GET /1k"));
        let target = keyward.api("GET", &format!("/targets/{slug}"), None).await;
        assert_eq!(target["credential"], json!({"kind": kind}));
        let key = keyward.new_key().await;
        keyward.grant(&key, slug, "read").await;
        assert_eq!(keyward.agent(&key, "GET", &format!("/proxy/{slug}/1k")).await.status, 200);
        let seen = keyward.sandbox().recorded().pop().unwrap();
        match header {
            ("", _) => assert!(seen.header("authorization").is_empty()),
            ("?", query) => assert_eq!(seen.target, format!("/tools/1k?{query}")),
            (name, value) => assert_eq!(seen.header(name), [value.as_bytes()], "{slug}"),
        }
    }
    let account = keyward.connect("ada@example.com").await;
    let out = shell.run("target list").done();
    assert!(!out.contains("hush"));
    let rows = table(&out);
    assert_eq!(rows.len(), 8);
    assert_eq!(
        (rows[0]["SLUG"].as_str(), rows[0]["KIND"].as_str(), rows[0]["CAPABILITY"].as_str()),
        ("a", "static", "-")
    );
    let mail = crate::harness::slug(&account, "mail");
    let row = rows.iter().find(|row| row["SLUG"] == mail).unwrap();
    assert_eq!((row["KIND"].as_str(), row["CAPABILITY"].as_str()), ("managed", "mail"));
    assert_eq!(row["BASE URL"], format!("{}/v1.0", keyward.sandbox().origin()));
    assert_eq!(shell.run("target list --json").json(), keyward.api("GET", "/targets", None).await["items"]);

    let made = shell.run(&format!("target create g --base-url {base} --json")).json();
    assert_eq!((&made["name"], &made["fence"]), (&json!("g"), &json!(["/**"])));
    assert_eq!(shell.run("target delete g").err, "g is deleted.\n");
    for (words, wanted) in [
        ("target delete g".to_owned(), "target_not_found: "),
        (format!("target delete {mail}"), "managed_target: "),
        (format!("target create a --base-url {base}"), "already_exists: "),
        ("target create h --base-url http://example.com".to_owned(), "bad_request: base_url: "),
        (format!("target create h --base-url {base} --bearer-env NOWHERE"), "NOWHERE is not set (nor NOWHERE_FILE)"),
    ] {
        let err = shell.run(&words).failed(1);
        assert!(err.starts_with(wanted), "{words}: {err}");
    }
    keyward.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grants_are_set_listed_and_removed() {
    let keyward = Keyward::start().await;
    keyward.tools().await;
    let key = keyward.new_key().await;
    let shell = Shell::of(&keyward);
    let ask = async |method: &str| keyward.agent(&key, method, "/proxy/tools/1k").await.status.as_u16();
    let set = shell.run(&format!("grant set {} tools", key.id));
    assert_eq!((set.code, set.err), (Some(0), format!("{} may read tools.\n", key.id)));
    assert_eq!((ask("GET").await, ask("POST").await), (200, 403));
    shell.run(&format!("grant set {} tools --access write", key.id)).done();
    assert_eq!(ask("POST").await, 200);
    let rows = table(&shell.run(&format!("grant list {}", key.id)).done());
    assert_eq!((rows.len(), rows[0]["TARGET"].as_str(), rows[0]["ACCESS"].as_str()), (1, "tools", "write"));
    let json = shell.run(&format!("grant list {} --json", key.id)).json();
    assert_eq!(json, keyward.api("GET", &format!("/keys/{}/grants", key.id), None).await["items"]);
    let removed = shell.run(&format!("grant remove {} tools", key.id));
    assert_eq!((removed.code, removed.err), (Some(0), format!("{} may no longer use tools.\n", key.id)));
    assert_eq!(ask("GET").await, 404);
    for (words, wanted) in [
        (format!("grant remove {} tools", key.id), "target_not_found: "),
        (format!("grant set {} nothing", key.id), "target_not_found: "),
        ("grant list key_1".to_owned(), "key_not_found: "),
        // Names are encoded, never a way to another route.
        (format!("grant list {}/..", key.id), "key_not_found: "),
        ("grant list ..".to_owned(), "an empty name, . or .. names nothing"),
    ] {
        let err = shell.run(&words).failed(1);
        assert!(err.starts_with(wanted), "{words}: {err}");
    }
    keyward.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn accounts_are_listed_shown_checked_refreshed_and_disconnected() {
    let keyward = Keyward::start().await;
    let ada = keyward.connect("ada@example.com").await;
    let grace = keyward.connect("grace@example.com").await;
    let id = |account: &Value| account["id"].as_str().unwrap().to_owned();
    let (ada, grace) = (id(&ada), id(&grace));
    let shell = Shell::of(&keyward);

    let rows = table(&shell.run("account list").done());
    assert_eq!(rows.iter().map(|row| &row["ID"]).collect::<Vec<_>>(), [&ada, &grace]);
    for (head, wanted) in [
        ("PROVIDER", "sandbox"),
        ("ACCOUNT", "ada@example.com"),
        ("STATUS", "connected"),
        ("REASON", "-"),
        ("VALIDITY", "valid"),
    ] {
        assert_eq!(rows[0][head], wanted);
    }
    let shown = pairs(&shell.run(&format!("account show {ada}")).done());
    assert_eq!((shown["account"].as_str(), shown["provider"].as_str()), ("ada@example.com", "Sandbox"));
    assert!(rows[0]["TARGETS"].contains(", ") && shown["targets"] == rows[0]["TARGETS"], "{shown:?}");
    let json = shell.run(&format!("account show {ada} --json")).json();
    assert_eq!(json, keyward.api("GET", &format!("/accounts/{ada}"), None).await);

    let checked = pairs(&shell.run(&format!("account validate {ada}")).done());
    assert_eq!((checked["valid"].as_str(), checked["status"].as_str()), ("yes", "connected"));
    shell.run(&format!("account refresh {ada}")).done();
    assert_eq!(keyward.sandbox().counters().refreshes("ok"), 1);

    keyward.sandbox().revoke_all_of("grace@example.com");
    let err = shell.run(&format!("account refresh {grace}")).failed(1);
    let page = format!("http://{}/integrations?reconnect={grace}", keyward.app.admin_address());
    assert_eq!(err, format!("account_disconnected: a person must reconnect this account\n{page}\n"));
    let checked = shell.run(&format!("account validate {grace} --json")).json();
    assert_eq!((&checked["is_valid"], &checked["account"]["status"]), (&json!(false), &json!("disconnected")));
    let listed = shell.run("account list --status disconnected --provider sandbox --json").json();
    assert_eq!((listed.as_array().unwrap().len(), &listed[0]["id"]), (1, &json!(grace)));
    assert_eq!(shell.run("account list --provider github --json").json(), json!([]));

    let key = keyward.new_key().await;
    let slug = rows[0]["TARGETS"].split(", ").next().unwrap();
    keyward.grant(&key, slug, "read").await;
    let err = shell.run(&format!("account disconnect {ada}")).failed(1);
    assert!(err.starts_with("needs_confirmation: 1 grant "), "{err}");
    let done = shell.run(&format!("account disconnect {ada} --confirm"));
    assert_eq!((done.code, done.err), (Some(0), format!("{ada} is disconnected.\n")));
    let err = shell.run(&format!("account show {ada}")).failed(1);
    assert!(err.starts_with("account_not_found: "), "{err}");
    keyward.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_trail_is_read_and_filtered() {
    let keyward = Keyward::start().await;
    keyward.tools().await;
    let key = keyward.new_key().await;
    keyward.grant(&key, "tools", "read").await;
    let account = keyward.connect("ada@example.com").await;
    keyward.agent(&key, "GET", "/proxy/tools/1k").await;
    // Moments are told to the millisecond; the two shall differ.
    tokio::time::sleep(Duration::from_millis(2)).await;
    keyward.agent(&key, "POST", "/proxy/tools/1k").await;
    let shell = Shell::of(&keyward);

    let rows = table(&shell.run("audit").done());
    let actions: Vec<_> = rows.iter().rev().map(|row| row["ACTION"].as_str()).collect();
    assert_eq!(actions, ["target.created", "key.created", "grant.set", "account.connected", "request", "request"]);
    let refused = &rows[0];
    for (head, wanted) in [
        ("ACTOR", key.id.as_str()),
        ("TARGET", "tools"),
        ("METHOD", "POST"),
        ("PATH", "/1k"),
        ("STATUS", "403"),
        ("CODE", "not_permitted"),
    ] {
        assert_eq!(refused[head], wanted);
    }
    let all = shell.run("audit --json").json();
    assert_eq!(all, json!(keyward.audit("").await));
    let count = |words: &str| shell.run(&format!("audit --json {words}")).json().as_array().unwrap().len();
    let since = refused["AT"].as_str();
    for (words, wanted) in [
        (format!("--key {}", key.id), 4),
        ("--target tools".to_owned(), 4),
        (format!("--account {}", account["id"].as_str().unwrap()), 1),
        ("--status 403".to_owned(), 1),
        ("--since 1h".to_owned(), 6),
        ("--until 1h".to_owned(), 0),
        (format!("--since {since}"), 1),
        (format!("--until {since} --target tools"), 3),
        ("--limit 4".to_owned(), 4),
    ] {
        assert_eq!(count(&words), wanted, "{words}");
    }
    let err = shell.run("audit --key nonsense").failed(1);
    assert!(err.starts_with("bad_request: query `key`"), "{err}");
    keyward.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_lists_are_read_to_their_end() {
    let keyward = Keyward::start().await;
    for number in 0..120 {
        keyward.api("POST", "/keys", Some(json!({"name": format!("k{number}")}))).await;
    }
    let shell = Shell::of(&keyward);
    let rows = table(&shell.run("key list").done());
    let names: Vec<_> = rows.iter().map(|row| row["NAME"].clone()).collect();
    assert_eq!(names, (0..120).map(|number| format!("k{number}")).collect::<Vec<_>>());
    assert_eq!(shell.run("audit --json --limit 115").json().as_array().unwrap().len(), 115);
    assert_eq!(shell.run("audit --json --limit 500").json().as_array().unwrap().len(), 120);
    assert_eq!(shell.run("audit --json").json().as_array().unwrap().len(), 100);
    keyward.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_organization_is_another_list() {
    let keyward = Keyward::start().await;
    keyward.admin("POST", "/api/organizations", Some(json!({"name": "acme"}))).await;
    let shell = Shell::of(&keyward);
    shell.run("key create theirs --org acme").done();
    assert_eq!(shell.run("key list --json").json(), json!([]));
    assert_eq!(table(&shell.run("key --org acme list").done()).len(), 1);
    let err = shell.run("key list --org nowhere").failed(1);
    let wanted = "organization_not_found: there is no such organization\nGET /api/organizations lists them; ";
    assert!(err.starts_with(wanted), "{err}");
    keyward.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whom_a_command_speaks_to_is_told_when_it_can_not() {
    let keyward = Keyward::start().await;
    let shell = Shell::of(&keyward).without("KEYWARD_ADMIN_TOKEN");
    let err = shell.run("key list").failed(1);
    assert!(err.starts_with("set KEYWARD_ADMIN_TOKEN (or KEYWARD_ADMIN_TOKEN_FILE)"), "{err}");
    shell.file("token", &format!("{ADMIN}\n"));
    let shell = shell.with("KEYWARD_ADMIN_TOKEN_FILE", "token");
    shell.run("key list").done();

    let shell = Shell::of(&keyward).with("KEYWARD_ADMIN_TOKEN", "kwa_hush");
    let err = shell.run("key list").failed(1);
    assert!(err.starts_with("invalid_token: ") && !err.contains("hush"), "{err}");

    let shell = Shell::of(&keyward);
    let err = shell.run("key list --url http://127.0.0.1:1").failed(1);
    assert!(err.starts_with("can't reach http://127.0.0.1:1: is `keyward serve` running there?"), "{err}");
    // Whoever listens on the way would read the token.
    let err = shell.run("key list --url http://keyward.example.com").failed(1);
    assert!(err.contains("is not this machine: use https"), "{err}");
    // The wrong door: the agents' listener knows no such path.
    let err = shell.run(&format!("key list --url http://{}", keyward.app.proxy_address())).failed(1);
    assert!(err.contains("not_found") || err.contains("is this Keyward's admin listener?"), "{err}");
    let sandbox = keyward.sandbox().origin();
    let err = shell.run(&format!("key list --url {sandbox}")).failed(1);
    assert!(err.contains("is this Keyward's admin listener?"), "{err}");
    assert!(!err.contains(ADMIN));
    keyward.stop().await;
}
