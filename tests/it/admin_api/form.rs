//! What a request must look like, and what the document says about it.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unknown_paths_and_methods_are_told_and_every_documented_one_is_there() {
    let house = House::new().await;
    let keyward = &house.keyward;
    for path in ["/api", "/api/", "/nowhere", "/api/organizations/", "/API/organizations", "/api/organizations/default"]
    {
        let detail = refused(&keyward.admin("GET", path, None).await, 404, "not_found");
        assert!(detail["hint"].as_str().unwrap().contains("/openapi.json"), "{detail}");
    }
    refused(&keyward.admin("GET", &format!("{ORG}/keys/"), None).await, 404, "not_found");
    refused(&keyward.admin("POST", &format!("{ORG}/keys/{}/rotate/x", house.key.id), None).await, 404, "not_found");

    let all = operations();
    let paths: BTreeSet<_> = all.iter().map(|operation| operation.path.clone()).collect();
    for path in paths {
        let known: BTreeSet<_> = all.iter().filter(|o| o.path == path).map(|o| o.method.as_str()).collect();
        let filled = house.fill(&path);
        for method in ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"] {
            // Outside of the API a change must come from our own pages before anything else is looked at.
            let answer = bare(keyward, method, &filled, &[("sec-fetch-site", "same-origin")], "").await;
            if known.contains(method) {
                let is_public = all.iter().any(|o| o.path == path && o.method == method && o.is_public());
                assert_eq!(answer.status, if is_public { 200 } else { 401 }, "{method} {path}");
                continue;
            }
            refused(&answer, 405, "method_not_allowed");
            let allowed: BTreeSet<_> = answer.header("allow").split(',').filter(|method| *method != "HEAD").collect();
            assert_eq!(allowed, known, "{path}");
            assert_eq!(answer.header("access-control-allow-origin"), "");
        }
    }
    house.keyward.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_document_is_served_as_it_is_printed_and_a_change_of_it_is_seen() {
    let keyward = Keyward::start().await;
    let answer = bare(&keyward, "GET", "/openapi.json", &[], "").await;
    done(&answer, 200);
    assert_eq!(answer.header("content-type"), "application/json");
    assert_eq!(answer.text(), keyward::admin::openapi_json());
    let version = format!("\"version\": \"{}\"", env!("CARGO_PKG_VERSION"));
    let text = answer.text();
    assert_eq!(text.matches(&version).count(), 1);
    insta::with_settings!({ snapshot_path => "../snapshots", prepend_module_to_snapshot => false, omit_expression => true }, {
        insta::assert_snapshot!("openapi", text.replace(&version, "\"version\": \"…\""));
    });
    keyward.stop().await;
}

#[test]
fn the_page_about_the_api_names_every_route() {
    let page = include_str!("../../../docs/api.md");
    for operation in operations() {
        let short = operation.path.replace("/api/organizations/{org}/", "…/");
        let line = page.lines().find(|line| {
            let of_path = |code: &str| code.split([' ', ',']).any(|word| word == short);
            let of_both = |code: &str| of_path(code) && code.contains(&operation.method);
            let beside = line.contains(&format!("`{}`", operation.method));
            line.split('`').any(|code| of_both(code) || (of_path(code) && beside))
        });
        assert!(line.is_some(), "docs/api.md does not have {} {short}", operation.method);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_word_too_many_is_refused_and_named() {
    let house = House::new().await;
    let keyward = &house.keyward;
    let before = (house.state().await, keyward.audit("").await.len());
    for operation in operations().iter().filter(|operation| operation.path.starts_with("/api/")) {
        let path = house.fill(&operation.path);
        let body = operation.takes_body().then(|| House::body(operation));
        let answer = keyward.admin(&operation.method, &format!("{path}?surprise=1"), body.clone()).await;
        says(&refused(&answer, 400, "bad_request"), "surprise");
        let answer = keyward.admin(&operation.method, &format!("{path}?surprise=%00"), body.clone()).await;
        refused(&answer, 400, "bad_request");

        let Some(mut body) = body else { continue };
        body["surprise"] = json!("hush");
        let detail = refused(&keyward.admin(&operation.method, &path, Some(body)).await, 400, "bad_request");
        says(&detail, "surprise");
        assert!(!detail.to_string().contains("hush"), "{detail}");
    }
    assert_eq!((house.state().await, keyward.audit("").await.len()), before);
    house.keyward.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parameters_out_of_range_are_refused_and_named() {
    let keyward = Keyward::start().await;
    let lists = ["/keys", "/targets", "/accounts", "/audit"];
    for path in lists {
        for (query, name) in [
            ("limit=0", "limit"),
            ("limit=201", "limit"),
            ("limit=-1", "limit"),
            ("limit=many", "limit"),
            ("limit=1&limit=2", "limit"),
            ("cursor=", "cursor"),
            ("cursor=%27%20or%201%3D1", "cursor"),
            ("cursor=a%20b", "cursor"),
            ("cursor=%F0%9F%92%A5", "cursor"),
        ] {
            let answer = keyward.admin("GET", &format!("{ORG}{path}?{query}"), None).await;
            says(&refused(&answer, 400, "bad_request"), name);
        }
        let long = "a".repeat(129);
        let answer = keyward.admin("GET", &format!("{ORG}{path}?cursor={long}"), None).await;
        says(&refused(&answer, 400, "bad_request"), "cursor");
    }
    for (path, name) in [
        ("/accounts?status=fine", "status"),
        ("/audit?status=99", "status"),
        ("/audit?status=600", "status"),
        ("/audit?status=ok", "status"),
        ("/audit?since=yesterday", "since"),
        ("/audit?until=2030-01-01", "until"),
        ("/audit?key=key_1", "key"),
        ("/audit?account=key_01JD3X7M0GZ2V8Q4W5T6R9S1AB", "account"),
        ("/audit?action=key.created", "action"),
        // Lists that are never cut take no limit.
        ("/integrations?limit=1", "limit"),
    ] {
        says(&refused(&keyward.admin("GET", &format!("{ORG}{path}"), None).await, 400, "bad_request"), name);
    }
    keyward.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_is_not_what_it_should_be_is_refused() {
    let house = House::new().await;
    let keyward = &house.keyward;
    let before = house.state().await;
    let token = bearer();
    for operation in operations().iter().filter(|operation| operation.takes_body()) {
        let path = house.fill(&operation.path);
        let right = House::body(operation).to_string();
        let send = |kind: Option<&'static str>, body: String| {
            let (path, token) = (&path, &token);
            async move {
                let mut headers = vec![("authorization", token.as_str())];
                headers.extend(kind.map(|kind| ("content-type", kind)));
                bare(keyward, &operation.method, path, &headers, &body).await
            }
        };
        for kind in [None, Some("text/plain"), Some("application/x-www-form-urlencoded"), Some("application/jsonp")] {
            refused(&send(kind, right.clone()).await, 415, "unsupported_media_type");
        }
        let json = Some("application/json; charset=utf-8");
        for body in ["", "{", "\u{feff}{}", "null", "[]", "\"text\"", "{\"name\": }"] {
            says(&refused(&send(json, body.to_owned()).await, 400, "bad_request"), "body");
        }
        says(&refused(&send(json, format!("{right} {right}")).await, 400, "bad_request"), "follows");
        let (field, value) =
            House::body(operation).as_object().unwrap().iter().next().map(|(f, v)| (f.clone(), v.clone())).unwrap();
        let twice = format!("{{\"{field}\": {value}, {}", &right[1..]);
        says(&refused(&send(json, twice).await, 400, "bad_request"), &field);
        let wrong = format!("{{\"{field}\": 20301}}");
        let detail = refused(&send(json, wrong).await, 400, "bad_request");
        says(&detail, &field);
        assert!(!detail.to_string().contains("20301"), "a value is repeated: {detail}");
        let nul = format!("{{\"{field}\": \"a\\u0000b\"}}");
        says(&refused(&send(json, nul).await, 400, "bad_request"), "U+0000");
        let big = format!("{right}{}", " ".repeat((1 << 20) + 1 - right.len()));
        says(&refused(&send(json, big).await, 413, "payload_too_large"), "1 MiB");
    }
    assert_eq!(house.state().await, before);

    // One byte less is fine.
    let right = r#"{"name": "large"}"#;
    let fits = format!("{right}{}", " ".repeat((1 << 20) - right.len()));
    let headers = [("authorization", token.as_str()), ("content-type", "application/json")];
    done(&bare(keyward, "POST", &format!("{ORG}/keys"), &headers, &fits).await, 201);
    house.keyward.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_of_unsaid_length_is_bounded_too() {
    let keyward = Keyward::start().await;
    let mut stream = tokio::net::TcpStream::connect(keyward.app.admin_address()).await.unwrap();
    let head = format!(
        "POST {ORG}/keys HTTP/1.1\r\nHost: localhost\r\nAuthorization: {}\r\nContent-Type: application/json\r\n\
         Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n",
        bearer()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let (mut read, mut write) = stream.into_split();
    let chunk = format!("10000\r\n{}\r\n", " ".repeat(0x10000));
    let sending = tokio::spawn(async move {
        // 2 MiB at most; it is cut before that.
        for _ in 0..32 {
            if write.write_all(chunk.as_bytes()).await.is_err() {
                return;
            }
        }
        let _ = write.write_all(b"0\r\n\r\n").await;
    });
    let mut answer = Vec::new();
    let reading = async {
        let mut buffer = [0u8; 4096];
        while let Ok(length @ 1..) = read.read(&mut buffer).await {
            answer.extend_from_slice(&buffer[..length]);
        }
    };
    tokio::time::timeout(Duration::from_secs(20), reading).await.expect("an answer");
    sending.await.unwrap();
    let text = String::from_utf8_lossy(&answer).into_owned();
    assert!(text.starts_with("HTTP/1.1 413 "), "{text}");
    assert!(text.to_ascii_lowercase().contains("keyward-error: payload_too_large"), "{text}");
    keyward.stop().await;
}
