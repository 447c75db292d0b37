//! Signed-in browsers: what they may do, from where, for how long.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_reads_and_changes_only_from_our_own_pages() {
    let keyward = Keyward::start().await;
    let cookie = sign_in(&keyward).await;
    let origin = format!("http://{}", keyward.app.admin_address());
    let keys = format!("{ORG}/keys");
    done(&bare(&keyward, "GET", &keys, &[("cookie", &cookie)], "").await, 200);

    let json = ("content-type", "application/json");
    let make = |proof: Vec<(&'static str, String)>| {
        let (keyward, keys, cookie) = (&keyward, &keys, &cookie);
        async move {
            let proof = proof.iter().map(|(name, value)| (*name, value.as_str()));
            let headers: Vec<_> = [("cookie", cookie.as_str()), json].into_iter().chain(proof).collect();
            bare(keyward, "POST", keys, &headers, r#"{"name": "by a session"}"#).await
        }
    };
    for proof in [
        vec![],
        vec![("sec-fetch-site", "cross-site".to_owned())],
        vec![("sec-fetch-site", "same-site".to_owned())],
        vec![("origin", "null".to_owned())],
        vec![("origin", "https://elsewhere.example.com".to_owned())],
        vec![("origin", format!("{origin}.example.com"))],
        // Who says that it is cross-site is believed, whatever else is there.
        vec![("sec-fetch-site", "cross-site".to_owned()), ("origin", origin.clone())],
    ] {
        refused(&make(proof).await, 403, "cross_site");
    }
    assert_eq!(keyward.api("GET", "/keys", None).await["items"], json!([]));

    for proof in [("origin", origin.clone()), ("sec-fetch-site", "same-origin".to_owned())] {
        done(&make(vec![proof]).await, 201);
    }
    let made = keyward.audit("").await.into_iter().filter(|record| record["action"] == "key.created");
    let actors: Vec<_> = made.map(|record| record["actor"].clone()).collect();
    assert_eq!(actors, ["session", "session"]);

    // Pages are no other: a form of another site makes nothing either.
    let form = ("content-type", "application/x-www-form-urlencoded");
    let headers = [("cookie", cookie.as_str()), form, ("sec-fetch-site", "cross-site")];
    refused(&bare(&keyward, "POST", "/keys", &headers, "name=x").await, 403, "cross_site");
    assert_eq!(keyward.api("GET", "/keys", None).await["items"].as_array().unwrap().len(), 2);
    keyward.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_beside_a_session_stands_or_falls_by_itself() {
    let keyward = Keyward::start().await;
    let cookie = sign_in(&keyward).await;
    let keys = format!("{ORG}/keys");
    let headers = [("cookie", cookie.as_str()), ("authorization", "Bearer kwa_wrong")];
    refused(&bare(&keyward, "GET", &keys, &headers, "").await, 401, "invalid_token");
    let right = bearer();
    let headers = [("cookie", cookie.as_str()), ("authorization", &right), ("content-type", "application/json")];
    done(&bare(&keyward, "POST", &keys, &headers, r#"{"name": "x"}"#).await, 201);
    assert_eq!(keyward.audit("").await[0]["actor"], "admin_token");
    keyward.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn signing_in_and_out_is_recorded_and_the_session_is_over_after() {
    let keyward = Keyward::start().await;
    let origin = format!("http://{}", keyward.app.admin_address());
    let wrong = post_login(&keyward, "kwa_wrong", &[("origin", &origin)]).await;
    assert_eq!(wrong.status, 401);
    assert_eq!(wrong.header("set-cookie"), "");
    // The right token is no proof that the person wanted to sign in here.
    for proof in [&[][..], &[("sec-fetch-site", "cross-site")], &[("origin", "https://elsewhere.example.com")]] {
        refused(&post_login(&keyward, ADMIN, proof).await, 403, "cross_site");
    }
    let cookie = sign_in(&keyward).await;
    let keys = format!("{ORG}/keys");
    done(&bare(&keyward, "GET", &keys, &[("cookie", &cookie)], "").await, 200);
    let out = bare(&keyward, "POST", "/logout", &[("cookie", &cookie), ("origin", &origin)], "").await;
    assert_eq!(out.status, 303);
    assert!(out.header("set-cookie").contains("Max-Age=0"), "{}", out.header("set-cookie"));
    refused(&bare(&keyward, "GET", &keys, &[("cookie", &cookie)], "").await, 401, "invalid_token");

    let records = keyward.audit("").await;
    let seen: Vec<_> = records.iter().rev().map(|r| (r["action"].as_str(), r["actor"].as_str())).collect();
    let wanted = [("admin.sign_in_failed", "anonymous"), ("admin.signed_in", "session")];
    assert_eq!(seen, wanted.map(|(action, actor)| (Some(action), Some(actor))));
    let text = json!(records).to_string();
    assert!(!text.contains("kwa_") && !text.contains(cookie.split('=').nth(1).unwrap()), "{text}");
    keyward.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_ends_after_twelve_hours() {
    let clock = Clock::held(Timestamp::parse("2030-01-01T00:00:00Z").unwrap());
    let keyward = Keyward::with_clock(Backend::Sqlite, Settings::default(), clock.clone()).await;
    let cookie = sign_in(&keyward).await;
    let keys = format!("{ORG}/keys");
    clock.advance(Duration::from_secs(12 * 3600 - 1));
    done(&bare(&keyward, "GET", &keys, &[("cookie", &cookie)], "").await, 200);
    clock.advance(Duration::from_secs(1));
    refused(&bare(&keyward, "GET", &keys, &[("cookie", &cookie)], "").await, 401, "invalid_token");
    keyward.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guessing_at_the_login_page_is_slowed_down_then_refused() {
    let keyward = Keyward::start().await;
    let origin = format!("http://{}", keyward.app.admin_address());
    let proof = [("origin", origin.as_str())];
    let tries = (0..14).map(|_| post_login(&keyward, "kwa_wrong", &proof));
    let answers = futures_util::future::join_all(tries).await;
    let wrong = answers.iter().filter(|answer| answer.status == 401).count();
    assert!((10..=11).contains(&wrong), "{wrong} of 14 tries were looked at");
    for answer in answers.iter().filter(|answer| answer.status != 401) {
        assert_eq!((answer.status.as_u16(), answer.header("set-cookie")), (429, ""), "{}", answer.text());
    }
    // The API is another door: programs go on.
    done(&keyward.admin("GET", &format!("{ORG}/keys"), None).await, 200);
    keyward.stop().await;
}
