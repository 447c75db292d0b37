use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::StatusCode;
use serde_json::{Value, json};

use super::client::{CALLBACK, World, pkce};
use crate::clock::{Clock, Timestamp};
use crate::sandbox::{Rotation, Sandbox};
use crate::shutdown::Shutdown;

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

#[tokio::test]
async fn it_binds_to_loopback_only() {
    let error = Sandbox::start("0.0.0.0:0".parse().unwrap(), &Shutdown::new()).await.err().unwrap();
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
}

#[tokio::test]
async fn a_person_allows_and_the_code_becomes_tokens() {
    let world = World::start().await;
    let pkce = pkce();
    let query = serde_urlencoded::to_string(world.ask(&pkce)).unwrap();
    let page = world.get(&format!("/oauth/authorize?{query}&login_hint=linus@example.com")).await;
    let html = String::from_utf8(page.body.to_vec()).unwrap();
    assert_eq!(page.status, StatusCode::OK);
    assert!(html.contains(r#"value="linus@example.com" checked"#), "the hint preselects");
    assert!(html.contains("a state &#38; more") && html.contains("Mail.Read") && !html.contains("Calendars.Read"));

    let answer = world.redeem(&world.allow(&pkce).await, &pkce.verifier).await;
    assert_eq!((answer.status, answer.header("cache-control")), (StatusCode::OK, "no-store"));
    let tokens = answer.json();
    assert_eq!(tokens["token_type"], "Bearer");
    assert_eq!(tokens["expires_in"], 3600);
    assert_eq!(tokens["scope"], "User.Read Mail.Read");
    let me = world.api("GET", "/v1.0/me", text(&tokens["access_token"]), Value::Null).await;
    assert_eq!(me.json()["mail"], "ada@example.com");
}

#[tokio::test]
async fn the_answer_of_the_consent_page_carries_state_and_issuer() {
    let world = World::start().await;
    let (origin, pkce) = (world.sandbox.origin(), pkce());
    let no = [("person", "ada@example.com"), ("granted", "Mail.Read"), ("decision", "deny")];
    let denied = world.form("/oauth/authorize", &[world.ask(&pkce).as_slice(), &no].concat()).await.unwrap();
    assert_eq!(denied.status, StatusCode::SEE_OTHER);
    assert!(denied.header("location").starts_with(CALLBACK));
    assert_eq!(denied.returned("error").as_deref(), Some("access_denied"));
    assert_eq!(denied.returned("state").as_deref(), Some("a state & more"));
    assert_eq!(denied.returned("iss"), Some(origin));
    assert_eq!(denied.returned("code"), None);
}

#[tokio::test]
async fn unticked_scopes_are_not_granted() {
    let world = World::start().await;
    let pkce = pkce();
    let choice = [("person", "grace@example.com"), ("granted", "User.Read"), ("decision", "allow")];
    let allowed = world.form("/oauth/authorize", &[world.ask(&pkce).as_slice(), &choice].concat()).await.unwrap();
    let tokens = world.redeem(&allowed.returned("code").unwrap(), &pkce.verifier).await.json();
    assert_eq!(tokens["scope"], "User.Read");
}

#[tokio::test]
async fn requests_that_are_not_in_order_are_refused_where_it_is_safe() {
    let world = World::start().await;
    let pkce = pkce();
    // (parameter, its value or absence, the error that goes back; "" when nothing may go back)
    let cases = [
        ("client_id", Some("somebody"), ""),
        ("redirect_uri", Some("https://example.com/callback"), ""),
        ("redirect_uri", Some("http://127.0.0.1.example.com/"), ""),
        ("redirect_uri", Some("http://127.0.0.1@example.com/"), ""),
        ("redirect_uri", None, ""),
        ("response_type", Some("token"), "unsupported_response_type"),
        ("code_challenge", None, "invalid_request"),
        ("code_challenge", Some("short"), "invalid_request"),
        ("code_challenge_method", Some("plain"), "invalid_request"),
        ("code_challenge_method", None, "invalid_request"),
        ("scope", Some("Mail.Read Everything"), "invalid_scope"),
    ];
    for (name, value, error) in cases {
        let mut ask = world.ask(&pkce);
        ask.retain(|(key, _)| *key != name);
        ask.extend(value.map(|value| (name, value)));
        let answer = world.get(&format!("/oauth/authorize?{}", serde_urlencoded::to_string(&ask).unwrap())).await;
        if error.is_empty() {
            assert_eq!((answer.status, answer.header("location")), (StatusCode::BAD_REQUEST, ""), "{name} {value:?}");
        } else {
            assert_eq!(answer.returned("error").as_deref(), Some(error), "{name} {value:?}");
        }
    }
    let twice = serde_urlencoded::to_string(world.ask(&pkce)).unwrap() + "&scope=User.Read";
    let twice = world.get(&format!("/oauth/authorize?{twice}")).await;
    assert_eq!(twice.returned("error").as_deref(), Some("invalid_request"));
}

#[tokio::test]
async fn pkce_is_enforced_and_a_wrong_verifier_uses_the_code_up() {
    let world = World::start().await;
    let (right, wrong) = (pkce(), pkce());
    let code = world.allow(&right).await;
    let refused = world.redeem(&code, &wrong.verifier).await;
    assert_eq!((refused.status, text(&refused.json()["error"])), (StatusCode::BAD_REQUEST, "invalid_grant"));
    assert_eq!(world.redeem(&code, &right.verifier).await.json()["error"], "invalid_grant");
}

#[tokio::test]
async fn a_code_works_once_and_its_second_use_revokes_the_family() {
    let world = World::start().await;
    let pkce = pkce();
    let code = world.allow(&pkce).await;
    let tokens = world.redeem(&code, &pkce.verifier).await.json();
    assert_eq!(world.redeem(&code, &pkce.verifier).await.json()["error"], "invalid_grant");
    let me = world.api("GET", "/v1.0/me", text(&tokens["access_token"]), Value::Null).await;
    assert_eq!(me.status, StatusCode::UNAUTHORIZED);
    assert_eq!(world.refresh(text(&tokens["refresh_token"])).await.json()["error"], "invalid_grant");
    assert_eq!(world.sandbox.counters().code_reuse_detected, 1);
}

#[tokio::test]
async fn a_code_lives_a_minute() {
    let world = World::start().await;
    let clock = Clock::held(Timestamp::from_millis(1_800_000_000_000));
    world.sandbox.set_clock(clock.clone());
    let pkce = pkce();
    let code = world.allow(&pkce).await;
    clock.advance(Duration::from_secs(60));
    assert_eq!(world.redeem(&code, &pkce.verifier).await.json()["error"], "invalid_grant");
}

#[tokio::test]
async fn the_client_must_prove_itself_in_one_way() {
    let world = World::start().await;
    let (id, secret) = (world.sandbox.client_id(), world.sandbox.client_secret());
    let granted = world.sandbox.grant("ada@example.com", &["Mail.Read"]).await;
    let refresh = granted.refresh_token.unwrap();
    let basic = format!("Basic {}", STANDARD.encode(format!("{id}:{secret}")));
    let wrong = format!("Basic {}", STANDARD.encode(format!("{id}:nonsense")));
    let form = format!("grant_type=refresh_token&refresh_token={refresh}");
    let both = format!("{form}&client_id={id}&client_secret={secret}");
    let cases = [
        (None, form.clone(), StatusCode::UNAUTHORIZED, "invalid_client"),
        (Some(&wrong), form.clone(), StatusCode::UNAUTHORIZED, "invalid_client"),
        (Some(&basic), both, StatusCode::BAD_REQUEST, "invalid_request"),
        (Some(&basic), String::from("grant_type=password"), StatusCode::BAD_REQUEST, "unsupported_grant_type"),
        (Some(&basic), form, StatusCode::OK, ""),
    ];
    for (authorization, body, status, error) in cases {
        let mut headers = vec![("content-type", "application/x-www-form-urlencoded")];
        headers.extend(authorization.map(|value| ("authorization", value.as_str())));
        let answer = world.send("POST", "/oauth/token", &headers, body.as_bytes()).await.unwrap();
        assert_eq!((answer.status, text(&answer.json()["error"])), (status, error));
    }
    assert_eq!(world.sandbox.counters().token("refresh_token", "invalid_client"), 2);
}

#[tokio::test]
async fn each_rotation_mode_means_what_it_says() {
    // (mode, whether a new refresh token comes, whether the old one works again at once, and after a minute)
    let cases = [
        (Rotation::None, false, true, true),
        (Rotation::Soft, true, true, true),
        (Rotation::Strict, true, false, false),
        (Rotation::Grace(Duration::from_secs(30)), true, true, false),
        (Rotation::Family, true, false, false),
    ];
    for (mode, rotates, at_once, later) in cases {
        let world = World::start().await;
        let clock = Clock::held(Timestamp::from_millis(1_800_000_000_000));
        world.sandbox.set_clock(clock.clone());
        world.sandbox.set_rotation(mode);
        let old = world.sandbox.grant("ada@example.com", &["Mail.Read"]).await;
        let (family, old) = (old.family, old.refresh_token.unwrap());
        let first = world.refresh(&old).await.json();
        assert_eq!(first["refresh_token"].is_string(), rotates, "{mode:?}");
        assert_eq!(world.refresh(&old).await.status.is_success(), at_once, "{mode:?}");
        clock.advance(Duration::from_secs(60));
        assert_eq!(world.refresh(&old).await.status.is_success(), later, "{mode:?}");

        // The newest token survives the reuse of an old one, except in `Family`.
        let dead = mode == Rotation::Family;
        if rotates {
            assert_eq!(world.refresh(text(&first["refresh_token"])).await.status.is_success(), !dead, "{mode:?}");
        }
        let me = world.api("GET", "/v1.0/me/messages", text(&first["access_token"]), Value::Null).await;
        assert_eq!(me.status.is_success(), !dead, "{mode:?}");
        let counters = world.sandbox.counters();
        assert_eq!(counters.families[&family].revoked, dead, "{mode:?}");
        assert_eq!(counters.reuse_detected > 0, !later, "{mode:?}");
    }
}

#[tokio::test]
async fn a_refresh_may_ask_for_less_but_not_for_more() {
    let world = World::start().await;
    let granted = world.sandbox.grant("ada@example.com", &["Mail.Read", "User.Read"]).await;
    let refresh = granted.refresh_token.unwrap();
    let ask = |scope| [("grant_type", "refresh_token"), ("refresh_token", refresh.as_str()), ("scope", scope)];
    assert_eq!(world.token(&ask("Mail.Send")).await.unwrap().json()["error"], "invalid_scope");
    assert_eq!(world.token(&ask("User.Read")).await.unwrap().json()["scope"], "User.Read");
}

#[tokio::test]
async fn tokens_end_with_their_time() {
    let world = World::start().await;
    let clock = Clock::held(Timestamp::from_millis(1_800_000_000_000));
    world.sandbox.set_clock(clock.clone());
    world.sandbox.set_access_ttl(Duration::from_secs(5));
    world.sandbox.set_refresh_ttl(Some(Duration::from_secs(60)));
    let granted = world.sandbox.grant("ada@example.com", &["User.Read"]).await;
    let refreshed = world.refresh(&granted.refresh_token.unwrap()).await.json();
    assert_eq!((&refreshed["expires_in"], &refreshed["refresh_token_expires_in"]), (&json!(5), &json!(60)));
    clock.advance(Duration::from_secs(5));
    let me = world.api("GET", "/v1.0/me", text(&refreshed["access_token"]), Value::Null).await;
    assert_eq!(me.status, StatusCode::UNAUTHORIZED);
    clock.advance(Duration::from_secs(55));
    assert_eq!(world.refresh(text(&refreshed["refresh_token"])).await.json()["error"], "invalid_grant");
}

#[tokio::test]
async fn revoking_a_refresh_token_ends_everything_of_that_consent() {
    let world = World::start().await;
    let (id, secret) = (world.sandbox.client_id(), world.sandbox.client_secret());
    let one = world.sandbox.grant("ada@example.com", &["User.Read"]).await;
    let other = world.sandbox.grant("ada@example.com", &["User.Read"]).await;
    let refresh = one.refresh_token.unwrap();
    for _ in 0..2 {
        let form = [("token", refresh.as_str()), ("client_id", id), ("client_secret", secret)];
        assert_eq!(world.form("/oauth/revoke", &form).await.unwrap().status, StatusCode::OK);
    }
    assert_eq!(world.refresh(&refresh).await.json()["error"], "invalid_grant");
    let dead = world.api("GET", "/v1.0/me", &one.access_token, Value::Null).await;
    let alive = world.api("GET", "/v1.0/me", &other.access_token, Value::Null).await;
    assert_eq!((dead.status, alive.status), (StatusCode::UNAUTHORIZED, StatusCode::OK));
    let counters = world.sandbox.counters();
    assert_eq!((counters.revoke_calls, counters.revocations), (2, 1));
    let stranger = world.form("/oauth/revoke", &[("token", &refresh)]).await.unwrap();
    assert_eq!(stranger.json()["error"], "invalid_client");
}

#[tokio::test]
async fn a_person_can_withdraw_at_the_provider() {
    let world = World::start().await;
    let ada = world.sandbox.grant("ada@example.com", &["User.Read"]).await;
    let grace = world.sandbox.grant("grace@example.com", &["User.Read"]).await;
    world.sandbox.expire_access_of("grace@example.com");
    let body = br#"{"person":"ada@example.com"}"#;
    let answer = world.send("POST", "/control/revoke", &[], body).await.unwrap();
    assert_eq!(answer.status, StatusCode::NO_CONTENT);
    assert_eq!(world.refresh(&ada.refresh_token.unwrap()).await.json()["error"], "invalid_grant");
    let refused = world.api("GET", "/v1.0/me", &grace.access_token, Value::Null).await;
    assert_eq!(refused.status, StatusCode::UNAUTHORIZED);
    assert!(world.refresh(&grace.refresh_token.unwrap()).await.status.is_success());
}

#[tokio::test]
async fn the_metadata_names_the_endpoints() {
    let world = World::start().await;
    let metadata = world.get("/.well-known/oauth-authorization-server").await.json();
    assert_eq!(metadata["issuer"], world.sandbox.origin());
    assert_eq!(metadata["token_endpoint"], format!("{}/oauth/token", world.sandbox.origin()));
    assert_eq!(metadata["code_challenge_methods_supported"], json!(["S256"]));
}
