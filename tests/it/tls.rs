//! TLS on both listeners: protocols, versions, certificates that change, handshakes that never end.

use std::time::Duration;

use http::Request;
use http_body_util::Full;
use hyper_util::rt::TokioIo;
use rustls::version::{TLS12, TLS13};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::harness::{Answer, Backend, Key, Keyward, Settings, World};
use crate::http2::ask_over;
use crate::tls_kit::{Authority, connect};
use crate::wire::head;

const BOTH: &str = "[proxy.tls]\ncert = \"cert.pem\"\nkey = \"key.pem\"\n";

async fn guarded(authority: &Authority, toml: &str) -> Keyward {
    let world = World::new(Backend::Sqlite).await;
    authority.issue().write(world.dir.path());
    let settings = Settings { toml: toml.to_owned(), ..Settings::default() };
    let app = world.instance(&settings).await;
    Keyward { world, app, settings }
}

/// One request of HTTP/1.1, and everything that comes back.
async fn ask(mut tls: TlsStream<TcpStream>, key: &Key, line: &str) -> String {
    tls.write_all(&head(key, line, &["Connection: close"])).await.unwrap();
    let mut answer = String::new();
    tls.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agents_choose_the_version_and_the_protocol() {
    let authority = Authority::new();
    let k = guarded(&authority, BOTH).await;
    let key = k.with_tools().await;
    let address = k.app.proxy_address();
    for version in [&TLS12, &TLS13] {
        for (offered, agreed) in [
            (&["h2", "http/1.1"][..], Some(&b"h2"[..])),
            (&["http/1.1"], Some(b"http/1.1")),
            (&["http/1.1", "h2"], Some(b"h2")),
            (&[], None),
        ] {
            let connector = authority.connector(offered, &[version]);
            let tls = connect(address, &connector).await.unwrap();
            assert_eq!(tls.get_ref().1.alpn_protocol(), agreed);
            let text = if agreed == Some(b"h2") {
                let request = Request::get("https://localhost/proxy/tools/echo");
                ask_over(tls, request.header("authorization", format!("Bearer {}", key.secret))).await.text()
            } else {
                ask(tls, &key, "GET /proxy/tools/echo").await
            };
            assert!(text.contains("/tools/echo"), "{text}");
        }
        // Without ALPN, what the client begins with counts.
        let tls = connect(address, &authority.connector(&[], &[version])).await.unwrap();
        let request = Request::get("https://localhost/proxy/tools/echo");
        let answer = ask_over(tls, request.header("authorization", format!("Bearer {}", key.secret))).await;
        assert_eq!(answer.status, 200);
    }
    assert!(k.sandbox().recorded().iter().all(|sent| !format!("{sent:?}").contains("kw_")));

    // In clear nothing is answered.
    let mut clear = TcpStream::connect(address).await.unwrap();
    clear.write_all(&head(&key, "GET /proxy/tools/echo", &[])).await.unwrap();
    let mut answer = Vec::new();
    let _ = clear.read_to_end(&mut answer).await;
    assert!(!answer.starts_with(b"HTTP/"), "{}", String::from_utf8_lossy(&answer));

    // Links that Keyward makes are https.
    let tls = connect(address, &authority.connector(&[], &[&TLS13])).await.unwrap();
    assert!(ask(tls, &key, "GET /bootstrap").await.contains(&format!("https://{address}/proxy/tools")));
    k.stop().await;
}

async fn serves(k: &Keyward, authority: &Authority) -> bool {
    connect(k.app.proxy_address(), &authority.connector(&[], &[&TLS13])).await.is_ok()
}

async fn until_served(k: &Keyward, authority: &Authority) {
    for _ in 0..400 {
        if serves(k, authority).await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the new certificate was never used");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_certificate_is_used_without_a_restart_and_a_broken_one_is_not() {
    let (old, new, last) = (Authority::new(), Authority::new(), Authority::new());
    let k = guarded(&old, BOTH).await;
    let key = k.with_tools().await;
    let kept = connect(k.app.proxy_address(), &old.connector(&[], &[&TLS13])).await.unwrap();
    assert!(!serves(&k, &new).await);
    new.issue().write(k.world.dir.path());
    until_served(&k, &new).await;
    assert!(!serves(&k, &old).await, "one certificate at a time");
    // What was open stays open.
    assert!(ask(kept, &key, "GET /proxy/tools/echo").await.starts_with("HTTP/1.1 200 "));

    std::fs::write(k.world.dir.path().join("cert.pem"), "half a certificate").unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(serves(&k, &new).await);
    last.issue().write(k.world.dir.path());
    until_served(&k, &last).await;
    k.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handshakes_that_never_end_keep_nobody_out() {
    let authority = Authority::new();
    let k = guarded(&authority, &format!("{BOTH}[proxy.timeouts]\nhandshake = \"2s\"\n")).await;
    let mut silent = Vec::new();
    for _ in 0..300 {
        silent.push(TcpStream::connect(k.app.proxy_address()).await.unwrap());
    }
    for _ in 0..10 {
        assert!(serves(&k, &authority).await);
    }
    // The deadline ends the others too.
    for mut tcp in silent {
        let ended = tokio::time::timeout(Duration::from_secs(20), tcp.read(&mut [0; 16])).await;
        assert!(matches!(ended, Ok(Ok(0) | Err(_))), "{ended:?}");
    }
    k.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn people_reach_the_admin_listener_over_tls() {
    let authority = Authority::new();
    let k = guarded(&authority, "[admin.tls]\ncert = \"cert.pem\"\nkey = \"key.pem\"\n").await;
    let address = k.app.admin_address();
    let list = format!("https://{address}/api/organizations");
    let bearer = format!("Bearer {}", crate::harness::ADMIN);
    let tls = connect(address, &authority.connector(&["h2"], &[&TLS13])).await.unwrap();
    let answer = ask_over(tls, Request::get(&list).header("authorization", &bearer)).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let tls = connect(address, &authority.connector(&["h2"], &[&TLS13])).await.unwrap();
    let foreign = Request::get("https://evil.example.com/api/organizations").header("authorization", &bearer);
    assert_eq!(ask_over(tls, foreign).await.status, 421);
    let tls = connect(address, &authority.connector(&["http/1.1"], &[&TLS13])).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tls)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::get("/healthz").header("host", address.to_string()).body(Full::<bytes::Bytes>::default());
    assert_eq!(sender.send_request(request.unwrap()).await.unwrap().status(), 200);
    // A session is for https alone.
    let tls = connect(address, &authority.connector(&["h2"], &[&TLS13])).await.unwrap();
    let login = Request::get(format!("https://{address}/login"));
    let page: Answer = ask_over(tls, login).await;
    assert_eq!(page.status, 200);
    k.stop().await;
}
