use http::StatusCode;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::client::World;
use crate::secret::sha256;

const MAIL: &[&str] = &["Mail.ReadWrite", "Mail.Send"];
const CALENDAR: &[&str] = &["Calendars.ReadWrite"];

#[tokio::test]
async fn the_api_wants_a_bearer_and_the_right_scope() {
    let world = World::start().await;
    let reader = world.sandbox.grant("ada@example.com", &["Mail.Read"]).await.access_token;
    let letter =
        json!({"message": {"subject": "Hi", "toRecipients": [{"emailAddress": {"address": "grace@example.com"}}]}});
    let cases = [
        ("GET", "/v1.0/me/messages", "nonsense", 401, "InvalidAuthenticationToken"),
        ("GET", "/v1.0/nowhere", "nonsense", 401, "InvalidAuthenticationToken"),
        ("GET", "/v1.0/me/messages", &reader, 200, ""),
        ("GET", "/v1.0/me", &reader, 403, "ErrorAccessDenied"),
        ("GET", "/v1.0/me/events", &reader, 403, "ErrorAccessDenied"),
        ("POST", "/v1.0/me/sendMail", &reader, 403, "ErrorAccessDenied"),
        ("DELETE", "/v1.0/me/messages/x", &reader, 403, "ErrorAccessDenied"),
        ("GET", "/v1.0/users/grace@example.com/messages", &reader, 403, "ErrorAccessDenied"),
        ("GET", "/v1.0/users/team@example.com/messages", &reader, 200, ""),
        ("GET", "/v1.0/users/ada@example.com/messages", &reader, 200, ""),
        ("GET", "/v1.0/me/messages/x", &reader, 404, "ErrorItemNotFound"),
        ("GET", "/v1.0/nowhere", &reader, 404, "ResourceNotFound"),
        ("PUT", "/v1.0/me/messages", &reader, 405, "Request_BadRequest"),
        ("GET", "/v1.0/me/messages?$filter=isRead", &reader, 400, "ErrorInvalidRequest"),
    ];
    for (method, target, token, status, code) in cases {
        let body = if method == "POST" { letter.clone() } else { Value::Null };
        let answer = world.api(method, target, token, body).await;
        assert_eq!(answer.status.as_u16(), status, "{method} {target}");
        assert_eq!(answer.json()["error"]["code"].as_str().unwrap_or_default(), code, "{method} {target}");
        assert_eq!(answer.headers.contains_key("www-authenticate"), matches!(status, 401 | 403), "{method} {target}");
    }
    assert_eq!(world.get("/v1.0/me").await.status, StatusCode::UNAUTHORIZED);
    let counters = world.sandbox.counters();
    assert_eq!((counters.api_calls, counters.identity_calls), (15, 2));
    assert_eq!((counters.api_without_token, counters.api_bad_token), (1, 2));
}

#[tokio::test]
async fn messages_come_in_pages_that_link_on() {
    let world = World::start().await;
    let token = world.sandbox.grant("ada@example.com", &["Mail.Read"]).await.access_token;
    let mut target = String::from("/v1.0/me/messages?$top=10&$select=subject,isRead");
    let (mut ids, mut pages) = (Vec::new(), 0);
    loop {
        let page = world.api("GET", &target, &token, Value::Null).await.json();
        for message in page["value"].as_array().unwrap() {
            assert_eq!(message.as_object().unwrap().len(), 3, "id and what was selected");
            ids.push(message["id"].as_str().unwrap().to_owned());
        }
        pages += 1;
        let Some(next) = page["@odata.nextLink"].as_str() else { break };
        target = next.strip_prefix(&world.sandbox.origin()).expect("a link on the same host").to_owned();
    }
    ids.sort();
    ids.dedup();
    assert_eq!((ids.len(), pages), (25, 3));
}

#[tokio::test]
async fn mail_can_be_read_changed_sent_and_deleted() {
    let world = World::start().await;
    let token = world.sandbox.grant("ada@example.com", MAIL).await.access_token;
    let grace = world.sandbox.grant("grace@example.com", MAIL).await.access_token;
    let all = world.api("GET", "/v1.0/me/messages?$top=25", &token, Value::Null).await.json();
    let with_file = all["value"].as_array().unwrap().iter().find(|message| message["hasAttachments"] == true).unwrap();
    let one = format!("/v1.0/me/messages/{}", with_file["id"].as_str().unwrap());

    let files = world.api("GET", &format!("{one}/attachments"), &token, Value::Null).await.json();
    let file = format!("{one}/attachments/{}/$value", files["value"][0]["id"].as_str().unwrap());
    let bytes = world.api("GET", &file, &token, Value::Null).await.body;
    assert!(bytes.len() == 1024 && bytes.iter().enumerate().all(|(at, byte)| *byte == at as u8));

    let changed = world.api("PATCH", &one, &token, json!({"isRead": true})).await;
    assert_eq!(changed.json()["isRead"], true);
    assert_eq!(world.api("PATCH", &one, &token, json!({"id": "mine"})).await.status, StatusCode::BAD_REQUEST);

    let letter = json!({"message": {"subject": "News", "body": {"contentType": "Text", "content": "All is well."},
        "toRecipients": [{"emailAddress": {"address": "grace@example.com"}}]}});
    assert_eq!(world.api("POST", "/v1.0/me/sendMail", &token, letter).await.status, StatusCode::ACCEPTED);
    let sent = world.api("GET", "/v1.0/me/mailFolders/sentitems/messages", &token, Value::Null).await.json();
    assert_eq!((sent["value"][0]["subject"].as_str(), sent["value"].as_array().unwrap().len()), (Some("News"), 1));
    let got = world.api("GET", "/v1.0/me/messages?$top=1", &grace, Value::Null).await.json();
    assert_eq!(got["value"][0]["from"]["emailAddress"]["address"], "ada@example.com");
    assert_eq!(
        world.api("POST", "/v1.0/me/sendMail", &token, json!({"message": {}})).await.status,
        StatusCode::BAD_REQUEST
    );

    for after in [StatusCode::OK, StatusCode::NOT_FOUND] {
        assert_eq!(world.api("DELETE", &one, &token, Value::Null).await.status, StatusCode::NO_CONTENT);
        assert_eq!(
            world.api("GET", &one, &token, Value::Null).await.status,
            after,
            "first into Deleted Items, then gone"
        );
    }
    let folders = world.api("GET", "/v1.0/me/mailFolders", &token, Value::Null).await.json();
    assert_eq!(folders["value"].as_array().unwrap().len(), 5);
}

#[tokio::test]
async fn events_can_be_made_moved_and_seen_in_a_window() {
    let world = World::start().await;
    let token = world.sandbox.grant("ada@example.com", CALENDAR).await.access_token;
    let at = |hour: u32| json!({"dateTime": format!("2031-05-06T{hour:02}:00:00.0000000"), "timeZone": "UTC"});
    let made =
        world.api("POST", "/v1.0/me/events", &token, json!({"subject": "Tea", "start": at(15), "end": at(16)})).await;
    assert_eq!(made.status, StatusCode::CREATED);
    let event = made.header("location").strip_prefix(&world.sandbox.origin()).unwrap().to_owned();
    let window = "/v1.0/me/calendarView?startDateTime=2031-05-06T00:00:00Z&endDateTime=2031-05-06T15:30:00Z";
    let seen = world.api("GET", window, &token, Value::Null).await.json();
    assert_eq!(seen["value"][0]["subject"], "Tea");
    let moved = world.api("PATCH", &event, &token, json!({"start": at(17), "end": at(18)})).await;
    assert_eq!(moved.json()["start"]["dateTime"], "2031-05-06T17:00:00");
    assert_eq!(world.api("GET", window, &token, Value::Null).await.json()["value"], json!([]));
    assert_eq!(world.api("PATCH", &event, &token, json!({"end": at(9)})).await.status, StatusCode::BAD_REQUEST);
    assert_eq!(world.api("GET", "/v1.0/me/calendarView", &token, Value::Null).await.status, StatusCode::BAD_REQUEST);
    assert_eq!(world.api("DELETE", &event, &token, Value::Null).await.status, StatusCode::NO_CONTENT);
    assert_eq!(world.api("GET", &event, &token, Value::Null).await.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn the_recorder_keeps_what_arrived() {
    let world = World::start().await;
    let headers = [("x-one", "1"), ("authorization", "Bearer hush"), ("x-one", "2")];
    let body = vec![7u8; 10_000];
    let echo = world.send("POST", "/tools/echo?a=%2F&b", &headers, &body).await.unwrap().json();
    assert_eq!((&echo["target"], &echo["body_length"]), (&json!("/tools/echo?a=%2F&b"), &json!(10_000)));
    world.get("/v1.0/nowhere?x=1").await;
    let seen = world.sandbox.recorded();
    assert_eq!((seen[0].method.as_str(), seen[0].target.as_str()), ("POST", "/tools/echo?a=%2F&b"));
    assert_eq!(seen[0].header("x-one"), [b"1", b"2"]);
    assert_eq!((seen[0].body_length, seen[0].body_start.len(), seen[0].body_complete), (10_000, 4096, true));
    assert_eq!(seen[0].body_sha256, sha256(&body));
    assert_eq!(seen[1].target, "/v1.0/nowhere?x=1");
    let shown = world.get("/control/recorded").await.body;
    assert!(!String::from_utf8_lossy(&shown).contains("hush"));
    world.sandbox.set_recording(false);
    world.get("/tools/1k").await;
    assert_eq!(world.sandbox.recorded().len(), 2);
    assert_eq!(world.sandbox.counters().tool_calls, 2);
}

#[tokio::test]
async fn the_tools_do_as_they_are_told() {
    let world = World::start().await;
    assert_eq!(world.get("/tools/1k").await.body.len(), 1024);
    let bytes = world.get("/tools/bytes/200000").await;
    assert_eq!((bytes.header("content-length"), bytes.body.len(), bytes.body[199_999]), ("200000", 200_000, 63));
    assert_eq!(world.get("/tools/bytes/70000?chunked=true").await.header("transfer-encoding"), "chunked");
    assert_eq!(world.get("/tools/status/418").await.status.as_u16(), 418);
    let redirect = world.get("/tools/redirect?to=/tools/1k&status=307").await;
    assert_eq!((redirect.status.as_u16(), redirect.header("location")), (307, "/tools/1k"));
    assert_eq!(world.get("/tools/cookies").await.headers.get_all("set-cookie").iter().count(), 2);
    assert_eq!(world.get("/tools/headers?count=50&size=100").await.header("x-line-49").len(), 100);
    let sse = String::from_utf8(world.get("/tools/sse?events=3&interval_ms=1").await.body.to_vec()).unwrap();
    assert_eq!(sse.matches("data: ").count(), 3);
    assert_eq!(world.send("POST", "/tools/mirror", &[], b"abc").await.unwrap().body, "abc");
    for target in ["/tools/cut?after=100", "/tools/cut?after=100&chunked=true", "/tools/reset"] {
        assert!(world.send("GET", target, &[], b"").await.is_err(), "{target}");
    }
    for (token, status) in [("old", 401), ("old", 401), ("new", 200), ("old", 401)] {
        let answer = world.send("GET", "/tools/once/401?id=a", &[("authorization", token)], b"").await.unwrap();
        assert_eq!(answer.status.as_u16(), status);
    }
}

#[tokio::test]
async fn the_websocket_says_back_what_it_hears() {
    let world = World::start().await;
    let mut stream = TcpStream::connect(world.sandbox.address()).await.unwrap();
    let request = "GET /tools/websocket HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap();
    // The example of RFC 6455 §1.3.
    assert!(head.starts_with("HTTP/1.1 101") && head.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{head}");
    stream.write_all(&[0x81, 0x82, 1, 2, 3, 4, b'h' ^ 1, b'i' ^ 2, 0x88, 0x80, 0, 0, 0, 0]).await.unwrap();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.unwrap();
    assert_eq!(rest, [0x81, 2, b'h', b'i', 0x88, 0]);
}
