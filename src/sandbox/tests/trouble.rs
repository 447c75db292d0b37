use std::time::{Duration, Instant};

use bytes::Bytes;
use http::StatusCode;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::client::World;
use crate::sandbox::{Fault, Place, Rotation};

/// A world with one consent; the refresh token.
async fn world() -> (World, String) {
    let world = World::start().await;
    let granted = world.sandbox.grant("ada@example.com", &["Mail.Read", "User.Read"]).await;
    (world, granted.refresh_token.unwrap())
}

fn status(status: u16) -> Fault {
    Fault::Status { status, retry_after: Some(String::from("7")) }
}

#[tokio::test]
async fn faults_queue_up_before_the_standing_one_and_clear() {
    let (world, refresh) = world().await;
    world.sandbox.set_rotation(Rotation::None);
    world.sandbox.faults().token(status(500));
    world.sandbox.faults().token_times(status(429), 2);
    for expected in [429, 429, 500, 500] {
        let answer = world.refresh(&refresh).await;
        assert_eq!((answer.status.as_u16(), answer.header("retry-after")), (expected, "7"));
    }
    world.sandbox.faults().clear();
    assert_eq!(world.refresh(&refresh).await.status, StatusCode::OK);
    let counters = world.sandbox.counters();
    assert_eq!((counters.token_arrived, counters.refresh_calls()), (5, 5));
    assert_eq!((counters.refreshes("fault"), counters.refreshes("ok"), counters.faults["status"]), (4, 1, 4));
}

#[tokio::test]
async fn faults_that_answer_instead_leave_the_refresh_token_alone() {
    let faults = [
        Fault::Json(400, json!({"error": "invalid_client"})),
        Fault::RawBody { status: 200, content_type: "text/plain".into(), body: Bytes::from_static(b"\xef\xbb\xbf{") },
        Fault::Html200,
        Fault::EmptyBody,
        Fault::Redirect(307, "http://127.0.0.1:9/".into()),
        Fault::BigBody(300_000),
        Fault::GzipBomb(300_000),
    ];
    let (world, refresh) = world().await;
    for fault in faults {
        let name = fault.name();
        world.sandbox.faults().token_times(fault, 1);
        let answer = world.refresh(&refresh).await;
        let looks_right = match name {
            "json" => answer.json()["error"] == "invalid_client",
            "raw_body" => answer.header("content-type") == "text/plain" && answer.body.starts_with(b"\xef\xbb\xbf"),
            "html" => answer.body.starts_with(b"<!doctype html>"),
            "empty_body" => answer.body.is_empty() && answer.status == StatusCode::OK,
            "redirect" => answer.status.as_u16() == 307 && answer.header("location") == "http://127.0.0.1:9/",
            "big_body" => answer.body.len() == 300_000,
            _ => answer.header("content-encoding") == "gzip" && (1_800..2_000).contains(&answer.body.len()),
        };
        assert!(looks_right, "{name}: {answer:?}");
    }
    assert_eq!(world.refresh(&refresh).await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_reset_is_a_reset_and_tells_nothing_about_the_work() {
    for (fault, works_again) in [(Fault::Reset, true), (Fault::ResetAfterWork, false)] {
        let (world, refresh) = world().await;
        world.sandbox.faults().token_times(fault, 1);
        let (id, secret) = (world.sandbox.client_id(), world.sandbox.client_secret());
        let form = format!("grant_type=refresh_token&refresh_token={refresh}&client_id={id}&client_secret={secret}");
        let mut stream = TcpStream::connect(world.sandbox.address()).await.unwrap();
        let kind = "application/x-www-form-urlencoded";
        let length = form.len();
        let request = format!(
            "POST /oauth/token HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n{form}"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let error = stream.read_to_end(&mut Vec::new()).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        assert_eq!(world.refresh(&refresh).await.status.is_success(), works_again);
    }
}

#[tokio::test]
async fn hanging_after_the_work_has_rotated() {
    for (fault, works_again) in [(Fault::Hang, true), (Fault::HangAfterWork, false)] {
        let (world, refresh) = world().await;
        world.sandbox.faults().token_times(fault, 1);
        let call = world.refresh(&refresh);
        let arrived = world.sandbox.wait_for_token_calls(1);
        tokio::select! {
            answer = call => panic!("{answer:?}"),
            // Arrived, and a moment for the work.
            () = async { arrived.await; tokio::time::sleep(Duration::from_millis(50)).await } => {}
        }
        assert_eq!(world.refresh(&refresh).await.status.is_success(), works_again);
        assert_eq!(world.sandbox.counters().refresh_calls(), 2);
    }
}

#[tokio::test]
async fn a_body_can_be_cut_or_trickle() {
    let (world, refresh) = world().await;
    world.sandbox.set_rotation(Rotation::None);
    let refreshing = [("grant_type", "refresh_token"), ("refresh_token", refresh.as_str())];
    world.sandbox.faults().token_times(Fault::CutBody, 1);
    assert!(world.token(&refreshing).await.is_err());
    world.sandbox.faults().token_times(Fault::Trickle(Duration::from_millis(1)), 1);
    let start = Instant::now();
    assert!(world.token(&refreshing).await.unwrap().json()["access_token"].is_string());
    assert!(start.elapsed() > Duration::from_millis(100));
}

#[tokio::test]
async fn bent_answers_still_bring_tokens_that_work() {
    let (world, refresh) = world().await;
    let over = json!({"expires_in": "3600", "refresh_token": "", "token_type": null}).as_object().unwrap().clone();
    world.sandbox.faults().token_times(Fault::RepeatRefreshToken, 1);
    assert_eq!(world.refresh(&refresh).await.json()["refresh_token"], refresh);
    world.sandbox.set_rotation(Rotation::None);
    world.sandbox.faults().token_times(Fault::Alter(over), 1);
    let bent = world.refresh(&refresh).await.json();
    assert_eq!((&bent["expires_in"], &bent["refresh_token"]), (&json!("3600"), &json!("")));
    assert!(bent.get("token_type").is_none());
    let me = world.api("GET", "/v1.0/me", bent["access_token"].as_str().unwrap(), Value::Null).await;
    assert_eq!(me.status, StatusCode::OK);

    world.sandbox.faults().token_times(Fault::WrongTokenType("DPoP".into()), 1);
    assert_eq!(world.refresh(&refresh).await.json()["token_type"], "DPoP");
    world.sandbox.faults().token_times(Fault::FormEncoded, 1);
    let form = world.refresh(&refresh).await;
    assert_eq!(form.header("content-type"), "application/x-www-form-urlencoded");
    assert!(String::from_utf8_lossy(&form.body).contains("access_token=sbx_at_"));

    world.sandbox.faults().token_times(Fault::SmallerScope(vec!["Mail.Read".into()]), 1);
    let small = world.refresh(&refresh).await.json();
    assert_eq!(small["scope"], "Mail.Read");
    let me = world.api("GET", "/v1.0/me", small["access_token"].as_str().unwrap(), Value::Null).await;
    assert_eq!(me.status, StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn the_api_and_the_identity_call_fail_apart() {
    let (world, _) = world().await;
    let token = world.sandbox.grant("ada@example.com", &["Mail.Read", "User.Read"]).await.access_token;
    world.sandbox.faults().identity(status(503));
    world.sandbox.faults().times(Place::Api, Fault::CutBody, 1);
    assert_eq!(world.api("GET", "/v1.0/me", &token, Value::Null).await.status.as_u16(), 503);
    let bearer = format!("Bearer {token}");
    let headers = [("authorization", bearer.as_str())];
    assert!(world.send("GET", "/v1.0/me/messages", &headers, b"").await.is_err());
    assert!(world.send("GET", "/v1.0/me/messages", &headers, b"").await.is_ok());
}

#[tokio::test]
async fn the_switches_work_from_a_shell_on_this_machine_only() {
    let (world, refresh) = world().await;
    let fault = br#"{"on":"token","fault":"status","status":503,"times":1,"retry_after":"2"}"#;
    assert_eq!(world.send("POST", "/control/faults", &[], fault).await.unwrap().status, StatusCode::NO_CONTENT);
    assert_eq!(world.refresh(&refresh).await.status.as_u16(), 503);
    let mode = br#"{"mode":"grace","seconds":30}"#;
    assert_eq!(world.send("POST", "/control/rotation", &[], mode).await.unwrap().status, StatusCode::NO_CONTENT);
    assert_eq!(world.refresh(&refresh).await.status, StatusCode::OK);
    assert_eq!(world.refresh(&refresh).await.status, StatusCode::OK);
    let counters = world.get("/control/counters").await.json();
    assert_eq!(counters["token_calls"]["refresh_token"], json!({"fault": 1, "ok": 2}));
    for wrong in [&br#"{"on":"token","fault":"earthquake"}"#[..], br#"{"on":"token"}"#, b"{"] {
        assert_eq!(world.send("POST", "/control/faults", &[], wrong).await.unwrap().status, StatusCode::BAD_REQUEST);
    }
    let mut stream = TcpStream::connect(world.sandbox.address()).await.unwrap();
    let foreign = b"GET /control/counters HTTP/1.1\r\nHost: rebound.example.com\r\nConnection: close\r\n\r\n";
    stream.write_all(foreign).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 421"), "{answer}");
}
