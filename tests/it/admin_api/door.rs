//! Who is let in: the token, `Host`, and nobody else.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_gets_past_a_route_without_the_admin_token() {
    let house = House::new().await;
    let keyward = &house.keyward;
    let before = house.state().await;
    let agents = format!("Bearer {}", house.key.secret);
    let basic = "Basic a2V5d2FyZDprd2FfYS10b2tlbi1mb3ItdGVzdHMtYW5kLW5vdGhpbmctZWxzZQ==";
    let short = format!("Bearer {}", &ADMIN[..ADMIN.len() - 1]);
    let right = bearer();
    let wrong: [Pairs; 8] = [
        &[],
        &[("authorization", "Bearer kwa_wrong")],
        &[("authorization", &short)],
        &[("authorization", &agents)],
        &[("authorization", basic)],
        &[("x-api-key", ADMIN)],
        &[("cookie", "keyward_session=made-up")],
        &[("authorization", &right), ("authorization", &right)],
    ];
    for operation in operations() {
        let path = house.fill(&operation.path);
        if operation.is_public() {
            done(&bare(keyward, &operation.method, &path, &[], "").await, 200);
            continue;
        }
        for (at, headers) in wrong.iter().enumerate() {
            // A session's cookie on a change asks for proof of where it came from first; that is tested below.
            let headers = match *headers {
                [("cookie", value)] => vec![("cookie", *value), ("sec-fetch-site", "same-origin")],
                other => other.to_vec(),
            };
            let answer = bare(keyward, &operation.method, &path, &headers, "").await;
            assert_eq!(answer.status, 401, "{} {path} with wrong credentials {at}", operation.method);
            refused(&answer, 401, "invalid_token");
        }
        // Who is not let in does not learn which organizations there are.
        let elsewhere = path.replace("/default", "/nowhere");
        refused(&bare(keyward, &operation.method, &elsewhere, &[], "").await, 401, "invalid_token");
    }
    assert_eq!(house.state().await, before);
    house.keyward.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_token_opens_every_route_and_an_unknown_organization_is_told() {
    let house = House::new().await;
    for operation in operations().iter().filter(|operation| operation.path.contains("{org}")) {
        for name in ["nowhere", "DEFAULT", "%00", "a%2Fb", "org_01JD3X7M0GZ2V8Q4W5T6R9S1AB"] {
            let path = house.fill(&operation.path.replace("{org}", name));
            let body = operation.takes_body().then(|| House::body(operation));
            let answer = house.keyward.admin(&operation.method, &path, body).await;
            refused(&answer, 404, "organization_not_found");
        }
    }
    let organizations = house.keyward.admin("GET", "/api/organizations", None).await.json();
    let id = organizations["items"][0]["id"].as_str().unwrap();
    let by_id = house.keyward.admin("GET", &format!("/api/organizations/{id}/keys"), None).await;
    assert_eq!(done(&by_id, 200), house.keyward.api("GET", "/keys", None).await);
    house.keyward.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_token_on_the_api_is_recorded_as_nobodys() {
    let keyward = Keyward::start().await;
    for _ in 0..12 {
        bare(&keyward, "GET", &format!("{ORG}/keys"), &[("authorization", "Bearer kwa_wrong")], "").await;
    }
    let records = keyward.audit("").await;
    // A bounded number of them: a program with an old token in a loop must not fill the trail.
    assert!((10..=11).contains(&records.len()), "{records:?}");
    for record in records {
        assert_eq!(
            (record["action"].as_str(), record["actor"].as_str()),
            (Some("admin.sign_in_failed"), Some("anonymous"))
        );
        assert!(!record.to_string().contains("kwa_wrong"), "{record}");
    }
    // It is slowed down for nobody else.
    done(&keyward.admin("GET", &format!("{ORG}/keys"), None).await, 200);
    keyward.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_our_own_names_are_answered() {
    let keyward = Keyward::start().await;
    let address = keyward.app.admin_address();
    let ask = |hosts: &[&str], uri: &str| {
        let mut request = Request::get(uri).header(header::AUTHORIZATION, bearer());
        for host in hosts {
            request = request.header(header::HOST, *host);
        }
        call(address, request.body(Full::default()).unwrap())
    };
    for path in ["/api/organizations", "/healthz", "/metrics", "/login", "/nowhere", "/static/app.js"] {
        for host in ["rebound.example.com", "127.0.0.1.example.com", "127.0.0.2"] {
            let detail = refused(&ask(&[host], path).await, 421, "misdirected_request");
            assert!(detail["hint"].as_str().unwrap().contains("public_url"), "{detail}");
        }
        for hosts in [&[][..], &[""], &["localhost@rebound.example.com"]] {
            refused(&ask(hosts, path).await, 400, "bad_request");
        }
        refused(&ask(&["localhost", "localhost"], path).await, 400, "bad_request");
        // The absolute form names a host of its own.
        refused(&ask(&["localhost"], &format!("http://rebound.example.com{path}")).await, 421, "misdirected_request");
    }
    for host in ["localhost", "LOCALHOST:1", "127.0.0.1", "[::1]:8081"] {
        done(&ask(&[host], "/api/organizations").await, 200);
    }
    keyward.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_public_name_is_ours_too_and_its_cookies_are_for_tls_only() {
    let world = World::new(Backend::Sqlite).await;
    let mut config = world.config(&Settings::default());
    config.admin.public_url = Some(Url::parse("https://keyward.example.com").unwrap());
    let app = App::start(config, Clock::system()).await.unwrap();
    let request = |method: &str, path: &str| {
        Request::builder().method(method).uri(path).header(header::HOST, "keyward.example.com")
    };
    let login = request("POST", "/login")
        .header(header::ORIGIN, "https://keyward.example.com")
        .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded");
    let answer = call(app.admin_address(), login.body(Full::from(format!("token={ADMIN}"))).unwrap()).await;
    assert_eq!(answer.status, 303, "{}", answer.text());
    let cookie = answer.header("set-cookie");
    assert!(cookie.starts_with("__Host-keyward_session=") && cookie.contains("; Secure"), "{cookie}");
    for wanted in ["HttpOnly", "SameSite=Lax", "Path=/"] {
        assert!(cookie.contains(wanted), "{cookie}");
    }
    let pair = cookie.split(';').next().unwrap();
    let keys = request("GET", &format!("{ORG}/keys"));
    let answer = call(app.admin_address(), keys.header(header::COOKIE, pair).body(Full::default()).unwrap()).await;
    done(&answer, 200);
    // The name without the prefix is one that a sibling host could set.
    let plain = pair.trim_start_matches("__Host-");
    let keys = request("GET", &format!("{ORG}/keys"));
    let answer = call(app.admin_address(), keys.header(header::COOKIE, plain).body(Full::default()).unwrap()).await;
    refused(&answer, 401, "invalid_token");
    app.stop().await;
}
