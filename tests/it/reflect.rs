//! What Keyward puts into a request does not come back: never in an answer's head, and not in the body of a guarded target's.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::ACCEPT_ENCODING;
use http_body_util::{BodyExt as _, Empty, Full};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};

use crate::harness::{Answer, Backend, Key, Keyward, Settings, agent_request, backends, call, slug};
use crate::limits::{Upstream, next, say};

const TOKEN: &str = "the-injected-token";
const STARS: &str = "******************";

async fn granted(k: &Keyward) -> Key {
    let key = k.new_key().await;
    k.grant(&key, "tools", "write").await;
    key
}

/// One exchange with `tools`: what the upstream got, and what the agent got of `said`.
async fn exchange(k: &Keyward, key: &Key, upstream: &Upstream, method: &str, said: &str) -> (String, Answer) {
    let request = agent_request(key, method, "/proxy/tools/x").header(ACCEPT_ENCODING, "gzip");
    let request = request.body(Full::default()).unwrap();
    let asked = tokio::spawn(call(k.app.proxy_address(), request));
    let (mut stream, head) = upstream.next().await;
    say(&mut stream, said).await;
    (head, asked.await.unwrap())
}

fn chunked(pieces: &[&str]) -> String {
    let chunks: String = pieces.iter().map(|piece| format!("{:x}\r\n{piece}\r\n", piece.len())).collect();
    format!("HTTP/1.1 200 OK\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}0\r\n\r\n")
}

fn sized(more: &str, body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nConnection: close\r\n{more}Content-Length: {}\r\n\r\n{body}", body.len())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stored_secret_does_not_come_back_however_the_body_is_cut() {
    for backend in backends() {
        let k = Keyward::with(backend, Settings::default()).await;
        let upstream = Upstream::start(&k, json!({})).await;
        let key = granted(&k).await;
        for cut in 1..TOKEN.len() {
            let said = chunked(&["{\"auth\":\"Bearer ", &TOKEN[..cut], &TOKEN[cut..], "\"} the-inject"]);
            let (head, answer) = exchange(&k, &key, &upstream, "GET", &said).await;
            assert!(head.contains(&format!("authorization: Bearer {TOKEN}\r\n")), "{head}");
            assert!(head.contains("accept-encoding: identity\r\n") && !head.contains("gzip"), "{head}");
            assert_eq!(answer.text(), format!("{{\"auth\":\"Bearer {STARS}\"}} the-inject"), "cut at {cut}");
        }
        let (_, answer) = exchange(&k, &key, &upstream, "GET", &sized("", &format!("{TOKEN}{TOKEN}, the-"))).await;
        assert_eq!(answer.text(), format!("{STARS}{STARS}, the-"));
        assert_eq!(answer.header("content-length"), "42", "lengths stay");
        let (_, answer) =
            exchange(&k, &key, &upstream, "HEAD", "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 9\r\n\r\n")
                .await;
        assert_eq!((answer.status.as_u16(), answer.header("content-length"), answer.body.len()), (200, "9", 0));
        let (_, answer) =
            exchange(&k, &key, &upstream, "DELETE", "HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n").await;
        assert_eq!((answer.status.as_u16(), answer.body.len()), (204, 0));

        // What is compressed all the same passes as it is, and so does everything once the guard is off.
        let (_, answer) = exchange(&k, &key, &upstream, "GET", &sized("Content-Encoding: br\r\n", TOKEN)).await;
        assert_eq!(answer.text(), TOKEN);
        let (_, answer) = exchange(&k, &key, &upstream, "GET", &sized("Content-Encoding: identity\r\n", TOKEN)).await;
        assert_eq!(answer.text(), STARS);
        let changed = k.api("PATCH", "/targets/tools", Some(json!({"reflect_guard": false}))).await;
        assert_eq!(changed["reflect_guard"], false);
        let (head, answer) = exchange(&k, &key, &upstream, "GET", &sized("", TOKEN)).await;
        assert!(head.contains("accept-encoding: gzip\r\n"), "{head}");
        assert_eq!(answer.text(), TOKEN);
        k.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_kind_of_credential_is_hidden() {
    let k = Keyward::start().await;
    let pair = STANDARD.encode("ada:the-password");
    let mut at = None;
    for (credential, said, shown) in [
        (
            json!({"kind": "basic", "username": "ada", "password": "the-password"}),
            format!("{pair} the-password ada"),
            format!("{} ************ ada", "*".repeat(pair.len())),
        ),
        (
            json!({"kind": "headers", "headers": {"X-One": "first-secret", "X-Two": "secret-more", "X-Id": "7"}}),
            "first-secret-more 7 secret-mor".to_owned(),
            "***************** 7 secret-mor".to_owned(),
        ),
        (
            json!({"kind": "query", "name": "key", "value": "a/secret value"}),
            "key=a%2Fsecret+value (a/secret value)".to_owned(),
            "key=**************** (**************)".to_owned(),
        ),
    ] {
        let upstream = match at.take() {
            None => Upstream::start(&k, json!({"credential": credential})).await,
            Some(upstream) => {
                k.api("PATCH", "/targets/tools", Some(json!({"credential": credential}))).await;
                upstream
            }
        };
        let key = granted(&k).await;
        let (_, answer) = exchange(&k, &key, &upstream, "GET", &sized("", &said)).await;
        assert_eq!(answer.text(), shown);
        at = Some(upstream);
    }
    k.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answers_head_tells_no_secret_of_any_target() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let toml = |more: &str| format!("[providers.sandbox.capabilities.mail]\nbase_url = \"{base}\"\n{more}");
    for (more, guarded) in [("", false), ("reflect_guard = true", true)] {
        let k = Keyward::with(Backend::Sqlite, Settings { toml: toml(more), ..Settings::default() }).await;
        let (account, key) = k.connected().await;
        let mail = slug(&account, "mail");
        assert_eq!(k.api("GET", &format!("/targets/{mail}"), None).await["reflect_guard"], guarded);
        let request = agent_request(&key, "GET", &format!("/proxy/{mail}/me/messages")).body(Full::default()).unwrap();
        let asked = tokio::spawn(call(k.app.proxy_address(), request));
        let (mut stream, head) = next(&listener).await;
        let token = head.split("authorization: Bearer ").nth(1).unwrap().split("\r\n").next().unwrap().to_owned();
        let lines = format!(
            "X-Echo: Bearer {token}\r\nLocation: https://elsewhere.example.com/?t={token}&u=1\r\n\
             WWW-Authenticate: Bearer error=\"{token}\"\r\nX-Kept: {}\r\n",
            &token[1..]
        );
        say(&mut stream, &sized(&lines, &token)).await;
        let answer: Answer = asked.await.unwrap();
        let stars = "*".repeat(token.len());
        assert_eq!(answer.header("x-echo"), format!("Bearer {stars}"));
        assert_eq!(answer.header("location"), format!("https://elsewhere.example.com/?t={stars}&u=1"));
        assert_eq!(answer.header("www-authenticate"), format!("Bearer error=\"{stars}\""));
        assert_eq!(answer.header("x-kept"), &token[1..]);
        assert_eq!(answer.text(), if guarded { stars } else { token });
        assert_eq!(head.contains("accept-encoding: identity"), guarded, "{head}");
        k.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_is_not_held_back() {
    let k = Keyward::start().await;
    let upstream = Upstream::start(&k, json!({})).await;
    let key = granted(&k).await;
    let stream = TcpStream::connect(k.app.proxy_address()).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = agent_request(&key, "GET", "/proxy/tools/events").body(Empty::<Bytes>::new()).unwrap();
    let asked = tokio::spawn(async move { sender.send_request(request).await.unwrap() });
    let (mut stream, _) = upstream.next().await;
    say(&mut stream, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n").await;
    let mut body = asked.await.unwrap().into_body();
    let mut next = async || {
        let frame = tokio::time::timeout(std::time::Duration::from_secs(60), body.frame()).await.expect("an event");
        String::from_utf8(frame.unwrap().unwrap().into_data().unwrap().to_vec()).unwrap()
    };
    for n in 0..3 {
        let event = format!("data: {{\"n\":{n}}}\n\n");
        say(&mut stream, &event).await;
        assert_eq!(next().await, event, "before anything more is said");
    }
    // What could be the secret's beginning waits, and nothing else does.
    say(&mut stream, "data: the-inj").await;
    assert_eq!(next().await, "data: ");
    say(&mut stream, "ury\n\n").await;
    assert_eq!(next().await, "the-injury\n\n");
    k.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_guard_is_on_where_there_is_a_secret_of_the_operators() {
    let toml = "[targets.with]\nbase_url = \"https://with.example.com\"\ncredential = { bearer_env = \"WITH\" }\n\
                [targets.off]\nbase_url = \"https://off.example.com\"\ncredential = { bearer_env = \"WITH\" }\n\
                reflect_guard = false\n[targets.without]\nbase_url = \"https://without.example.com\"\n";
    let env = [("WITH".to_owned(), "a-secret-value".to_owned())].into();
    let k = Keyward::with(Backend::Sqlite, Settings { toml: toml.to_owned(), env, ..Settings::default() }).await;
    let account = k.connect("ada@example.com").await;
    for (slug, credential, more) in [
        ("plain", json!({"kind": "none"}), json!({})),
        ("insisting", json!({"kind": "none"}), json!({"reflect_guard": true})),
        ("stored", json!({"kind": "bearer", "token": "a-token-of-ours"}), json!({})),
        ("trusting", json!({"kind": "bearer", "token": "a-token-of-ours"}), json!({"reflect_guard": false})),
    ] {
        let mut target = json!({"slug": slug, "base_url": "https://api.example.com", "credential": credential});
        target.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        k.api("POST", "/targets", Some(target)).await;
    }
    let guarded =
        async |slug: &str| -> Value { k.api("GET", &format!("/targets/{slug}"), None).await["reflect_guard"].clone() };
    for slug in ["with", "stored", "insisting"] {
        assert_eq!(guarded(slug).await, true, "{slug}");
    }
    for slug in ["off", "without", "plain", "trusting", &slug(&account, "mail")] {
        assert_eq!(guarded(slug).await, false, "{slug}");
    }
    k.stop().await;
}
