//! Upstreams over TLS: HTTP/2 by ALPN, what happens when such a connection ends, and what a target may say about itself.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::{Request, Response};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::harness::{Answer, Backend, Key, Keyward, Settings, World};
use crate::http2::{GOAWAY, HEADERS, frame, packed};
use crate::tls_kit::Authority;
use crate::wire::{eventually, head};

/// What an upstream does with its `number`th request.
type Script = fn(usize, Request<RecvStream>, SendResponse<Bytes>, Says);

/// What a script can say of its connection.
#[derive(Clone)]
struct Says(Arc<tokio::sync::Notify>);

impl Says {
    /// GOAWAY, taking nothing after what was taken.
    fn goaway(&self) {
        self.0.notify_one();
    }
}

/// An upstream that speaks TLS.
struct Secure {
    address: SocketAddr,
    /// The protocol of each connection.
    agreed: Arc<Mutex<Vec<Option<String>>>>,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Secure {
    async fn start(acceptor: TlsAcceptor, script: Script) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let upstream =
            Self { address: listener.local_addr().unwrap(), agreed: Arc::default(), requests: Arc::default() };
        let (agreed, requests) = (Arc::clone(&upstream.agreed), Arc::clone(&upstream.requests));
        let count = Arc::new(AtomicUsize::new(0));
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let (acceptor, agreed) = (acceptor.clone(), Arc::clone(&agreed));
                let (requests, count) = (Arc::clone(&requests), Arc::clone(&count));
                tokio::spawn(async move {
                    let Ok(tls) = acceptor.accept(tcp).await else { return };
                    let protocol =
                        tls.get_ref().1.alpn_protocol().map(|name| String::from_utf8_lossy(name).into_owned());
                    agreed.lock().unwrap().push(protocol.clone());
                    if protocol.as_deref() == Some("h2") {
                        http2(tls, &requests, &count, script).await;
                    } else {
                        http1(tls, &requests).await;
                    }
                });
            }
        });
        upstream
    }

    fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    fn agreed(&self) -> Vec<Option<String>> {
        self.agreed.lock().unwrap().clone()
    }

    fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

async fn http2(tls: TlsStream<TcpStream>, requests: &Mutex<Vec<String>>, count: &AtomicUsize, script: Script) {
    let mut builder = h2::server::Builder::new();
    let mut connection = builder.max_concurrent_streams(20).handshake(tls).await.unwrap();
    let says = Says(Arc::default());
    loop {
        let (request, respond) = tokio::select! {
            accepted = connection.accept() => match accepted {
                Some(Ok(accepted)) => accepted,
                _ => return,
            },
            () = says.0.notified() => {
                connection.graceful_shutdown();
                continue;
            }
        };
        requests.lock().unwrap().push(format!("{} {} {:?}", request.method(), request.uri(), request.headers()));
        script(count.fetch_add(1, Ordering::SeqCst), request, respond, says.clone());
    }
}

async fn http1(mut tls: TlsStream<TcpStream>, requests: &Mutex<Vec<String>>) {
    let mut head = Vec::new();
    let mut byte = [0; 1];
    while let Ok(1) = tls.read(&mut byte).await {
        head.push(byte[0]);
        if head.ends_with(b"\r\n\r\n") {
            requests.lock().unwrap().push(String::from_utf8_lossy(&head).into_owned());
            head.clear();
            tls.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\none").await.unwrap();
        }
    }
}

fn fine(_: usize, _: Request<RecvStream>, mut respond: SendResponse<Bytes>, _: Says) {
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(20)).await;
        if let Ok(mut body) = respond.send_response(Response::builder().header("x-up", "1").body(()).unwrap(), false) {
            let _ = body.send_data(Bytes::from_static(b"two"), false);
            let mut trailers = http::HeaderMap::new();
            trailers.insert("x-trailer", "1".parse().unwrap());
            let _ = body.send_trailers(trailers);
        }
    });
}

/// A gateway that trusts the authority for everything, with the upstream as `up`.
async fn trusting(authority: &Authority, url: &str, more: &str) -> (Keyward, Key) {
    let world = World::new(Backend::Sqlite).await;
    std::fs::write(world.dir.path().join("ca.pem"), authority.pem()).unwrap();
    let toml = format!(
        "egress.ca = \"ca.pem\"\n[targets.up]\nbase_url = \"{url}/base\"\ncredential = {{ bearer_env = \"UP\" }}\n{more}\n",
    );
    let k = system(world, toml).await;
    let key = k.new_key().await;
    k.grant(&key, "up", "write").await;
    (k, key)
}

/// `egress.…` dotted keys have to come before the first table.
async fn system(world: World, toml: String) -> Keyward {
    let (first, rest) = match toml.split_once('\n') {
        Some((first, rest)) if first.starts_with("egress.") => (first.to_owned(), rest.to_owned()),
        _ => (String::new(), toml),
    };
    let env = [("UP".to_owned(), "the-injected-token".to_owned())].into();
    let settings = Settings { toml: rest, env, ..Settings::default() };
    let mut config = world.config(&settings);
    if let Some(file) = first.split('"').nth(1) {
        let file = world.dir.path().join(file);
        for target in config.targets.values_mut().filter_map(|target| target.tls.as_mut()) {
            target.authorities.push(file.clone());
        }
        config.egress.ca = Some(file);
    }
    let app = keyward::app::App::start(config, world.clock.clone()).await.unwrap();
    Keyward { world, app, settings }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http2_is_chosen_by_alpn_and_shared_by_all_exchanges() {
    let authority = Authority::new();
    let upstream = Secure::start(authority.acceptor(&["h2", "http/1.1"], false), fine).await;
    let (k, key) = trusting(&authority, &upstream.url(), "").await;
    let ask = |number: usize| {
        let (address, key) = (k.app.proxy_address(), key.clone());
        async move {
            crate::wire::ask(address, head(&key, &format!("GET /proxy/up/a/{number}?x=%2F"), &["Cookie: a=b"])).await
        }
    };
    // More at once than the server takes: the rest wait their turn.
    let answers: Vec<Answer> = futures_util::future::join_all((0..100).map(ask)).await;
    for answer in &answers {
        assert_eq!((answer.status.as_u16(), &*answer.text()), (200, "two"), "{}", answer.text());
        assert!(answer.headers.get("x-trailer").is_none() && answer.header("x-up") == "1");
    }
    assert_eq!(upstream.agreed(), [Some("h2".to_owned())], "one connection");
    let seen: BTreeSet<_> = upstream.requests().into_iter().collect();
    assert_eq!(seen.len(), 100);
    for request in &seen {
        assert!(request.starts_with(&format!("GET {}/base/a/", upstream.url())), "{request}");
        assert_eq!(
            request.matches("Sensitive").count() + request.matches("the-injected-token").count(),
            1,
            "{request}"
        );
        assert!(!request.contains("cookie") && !request.contains("\"host\"") && !request.contains("kw_"), "{request}");
    }
    k.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_may_have_http_1_only() {
    let authority = Authority::new();
    let upstream = Secure::start(authority.acceptor(&["h2", "http/1.1"], false), fine).await;
    let (k, key) = trusting(&authority, &upstream.url(), "http1_only = true").await;
    for _ in 0..3 {
        assert_eq!(k.agent(&key, "GET", "/proxy/up/x").await.text(), "one");
    }
    assert_eq!(upstream.agreed(), [Some("http/1.1".to_owned())]);
    // By the API, and changed there: a connection of before is not used again.
    let url = upstream.url();
    let target = json!({"slug": "api", "base_url": url, "credential": {"kind": "none"}, "http1_only": true});
    assert_eq!(k.api("POST", "/targets", Some(target)).await["http1_only"], true);
    k.grant(&key, "api", "read").await;
    assert_eq!(k.agent(&key, "GET", "/proxy/api/x").await.text(), "one");
    let changed = k.api("PATCH", "/targets/api", Some(json!({"http1_only": false}))).await;
    assert_eq!((&changed["http1_only"], &changed["websocket"]), (&json!(false), &json!(false)));
    assert_eq!(k.agent(&key, "GET", "/proxy/api/x").await.text(), "two");
    // Another credential, another connection.
    k.api("PATCH", "/targets/api", Some(json!({"credential": {"kind": "bearer", "token": "other"}}))).await;
    assert_eq!(k.agent(&key, "GET", "/proxy/api/x").await.text(), "two");
    let protocols: Vec<_> = upstream.agreed().into_iter().flatten().collect();
    assert_eq!(protocols, ["http/1.1", "http/1.1", "h2", "h2"]);
    // Files on the server's disk are not for the API to name.
    for field in ["ca_file", "client_cert", "client_key"] {
        let target = json!({"slug": "b", "base_url": url, "credential": {"kind": "none"}, field: "/etc/passwd"});
        let refused = k.admin("POST", "/api/organizations/default/targets", Some(target)).await;
        assert_eq!((refused.status.as_u16(), refused.text().contains(field)), (400, true), "{}", refused.text());
    }
    k.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_server_refused_unseen_is_sent_again_once_and_nothing_else_is() {
    // The first is refused unseen; the retry is fine.
    let authority = Authority::new();
    let upstream =
        Secure::start(authority.acceptor(&["h2"], false), |number, request, mut respond, says| match number {
            0 => respond.send_reset(Reason::REFUSED_STREAM),
            _ => fine(number, request, respond, says),
        })
        .await;
    let (k, key) = trusting(&authority, &upstream.url(), "").await;
    let answer = k.ask([&head(&key, "POST /proxy/up/x", &["Content-Length: 5"])[..], b"hello"].concat()).await;
    assert_eq!((answer.status.as_u16(), &*answer.text()), (200, "two"));
    assert_eq!(upstream.requests().len(), 2);
    k.stop().await;

    // Refused for ever: two tries. Any other end: one.
    for (script, tries) in [
        ((|_, _, mut respond: SendResponse<Bytes>, _| respond.send_reset(Reason::REFUSED_STREAM)) as Script, 2),
        (|_, _, mut respond: SendResponse<Bytes>, _| respond.send_reset(Reason::INTERNAL_ERROR), 1),
        (|_, _, mut respond: SendResponse<Bytes>, _| respond.send_reset(Reason::CANCEL), 1),
    ] {
        let upstream = Secure::start(authority.acceptor(&["h2"], false), script).await;
        let (k, key) = trusting(&authority, &upstream.url(), "").await;
        let answer = k.agent(&key, "POST", "/proxy/up/x").await;
        assert_eq!((answer.status.as_u16(), &*answer.refusal()), (502, "upstream_unreachable"));
        assert_eq!(upstream.requests().len(), tries);
        k.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_goes_away_is_replaced_and_loses_nothing() {
    let authority = Authority::new();
    let upstream = Secure::start(authority.acceptor(&["h2"], false), |number, request, respond, says| {
        if number % 5 == 4 {
            says.goaway();
        }
        fine(number, request, respond, says);
    })
    .await;
    let (k, key) = trusting(&authority, &upstream.url(), "").await;
    for number in 0..40 {
        let answer = k.agent(&key, "POST", &format!("/proxy/up/{number}")).await;
        assert_eq!((answer.status.as_u16(), &*answer.text()), (200, "two"), "{number}: {}", answer.text());
    }
    assert_eq!(upstream.requests().len(), 40, "each was sent once");
    assert!(upstream.agreed().len() >= 4, "{:?}", upstream.agreed());
    k.stop().await;
}

/// A server of HTTP/2 from frames by hand. The first connection answers a first request, takes two more, and goes away
/// saying that it looked at one of those; any other answers everything. What streams brought: connection, stream, body.
async fn one_that_goes_away(acceptor: TlsAcceptor) -> (SocketAddr, Arc<Mutex<Vec<(usize, u32, String)>>>) {
    const STATUS_200: &[(&str, &str)] = &[(":status", "200")];
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, streams) = (listener.local_addr().unwrap(), Arc::<Mutex<Vec<_>>>::default());
    let taken = Arc::clone(&streams);
    tokio::spawn(async move {
        for number in 0.. {
            let (Ok((tcp, _)), taken) = (listener.accept().await, Arc::clone(&taken)) else { return };
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let mut tls = acceptor.accept(tcp).await.unwrap();
                tls.read_exact(&mut [0; 24]).await.unwrap();
                tls.write_all(&frame(4, 0, 0, &[])).await.unwrap();
                let mut bodies = std::collections::BTreeMap::<u32, String>::new();
                let mut whole = Vec::new();
                while let Some((kind, flags, stream, payload)) = next_frame(&mut tls).await {
                    if kind != 0 && kind != HEADERS {
                        continue;
                    }
                    let body = bodies.entry(stream).or_default();
                    if kind == 0 {
                        body.push_str(&String::from_utf8_lossy(&payload));
                    }
                    if flags & 0x1 == 0 {
                        continue;
                    }
                    taken.lock().unwrap().push((number, stream, body.clone()));
                    whole.push(stream);
                    let answered = match (number, &whole[..]) {
                        (0, [first]) => *first,
                        (0, [_, one, other]) => {
                            let last = *one.min(other);
                            let payload = [last.to_be_bytes(), 0u32.to_be_bytes()].concat();
                            tls.write_all(&frame(GOAWAY, 0, 0, &payload)).await.unwrap();
                            last
                        }
                        (0, _) => continue,
                        _ => stream,
                    };
                    tls.write_all(&frame(HEADERS, 0x5, answered, &packed(STATUS_200))).await.unwrap();
                }
            });
        }
    });
    (address, streams)
}

/// Kind, flags, stream and payload.
async fn next_frame(tls: &mut TlsStream<TcpStream>) -> Option<(u8, u8, u32, Vec<u8>)> {
    let mut head = [0; 9];
    tls.read_exact(&mut head).await.ok()?;
    let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
    tls.read_exact(&mut payload).await.ok()?;
    Some((head[3], head[4], u32::from_be_bytes([head[5], head[6], head[7], head[8]]), payload))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_above_the_last_stream_that_was_looked_at_is_sent_again() {
    let authority = Authority::new();
    let (address, streams) = one_that_goes_away(authority.acceptor(&["h2"], false)).await;
    let (k, key) = trusting(&authority, &format!("https://{address}"), "").await;
    let post = async |body: &str| {
        let lines = format!("Content-Length: {}", body.len());
        k.ask([&head(&key, "POST /proxy/up/x", &[&lines])[..], body.as_bytes()].concat()).await.status.as_u16()
    };
    assert_eq!(post("first").await, 200);
    assert_eq!(tokio::join!(post("one"), post("two")), (200, 200));
    let mut streams = streams.lock().unwrap().clone();
    let (again, mut before): (Vec<_>, Vec<_>) = streams.drain(..).partition(|(connection, _, _)| *connection > 0);
    before.sort_by(|one, other| one.2.cmp(&other.2));
    let bodies: Vec<_> = before.iter().map(|(_, _, body)| &**body).collect();
    assert_eq!(bodies, ["first", "one", "two"]);
    let unseen = before.iter().max_by_key(|(_, stream, _)| *stream).unwrap();
    assert_eq!(again, [(1, 1, unseen.2.clone())], "the one above the last, once, and on another connection");
    k.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resets_and_silence_of_a_stream_are_seen_and_stay_with_it() {
    let authority = Authority::new();
    let upstream = Secure::start(authority.acceptor(&["h2"], false), |number, request, mut respond, says| {
        let path = request.uri().path().to_owned();
        match path.as_str() {
            "/base/cut" => {
                let mut body = respond.send_response(Response::new(()), false).unwrap();
                body.send_data(Bytes::from_static(b"half"), false).unwrap();
                tokio::spawn(async move {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    body.send_reset(Reason::INTERNAL_ERROR);
                });
            }
            "/base/hang" => {
                tokio::spawn(async move {
                    let reset = std::future::poll_fn(|cx| respond.poll_reset(cx)).await;
                    RESET.fetch_add(usize::from(matches!(reset, Ok(Reason::CANCEL))), Ordering::SeqCst);
                });
            }
            _ => fine(number, request, respond, says),
        }
    })
    .await;
    let (k, key) = trusting(&authority, &upstream.url(), "[proxy.timeouts]\nidle = \"1s\"").await;
    let mut wire = k.wire().await;
    wire.send(head(&key, "GET /proxy/up/cut", &[])).await;
    assert!(wire.next(false).await.is_none(), "an abort is no end");
    let late = k.agent(&key, "GET", "/proxy/up/hang").await;
    assert_eq!((late.status.as_u16(), &*late.refusal()), (504, "upstream_timeout"));
    eventually("the stream is reset", || RESET.load(Ordering::SeqCst) == 1).await;
    // An agent that goes away takes its stream along, and nobody else's.
    let mut gone = k.wire().await;
    gone.send(head(&key, "GET /proxy/up/hang", &[])).await;
    eventually("it arrived", || upstream.requests().len() == 3).await;
    drop(gone);
    eventually("the stream is reset", || RESET.load(Ordering::SeqCst) == 2).await;
    assert_eq!(k.agent(&key, "GET", "/proxy/up/x").await.text(), "two");
    assert_eq!(upstream.agreed().len(), 1, "one connection all the time");
    k.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_without_a_body_have_none_over_any_protocol() {
    let authority = Authority::new();
    let upstream = Secure::start(authority.acceptor(&["h2", "http/1.1"], false), |_, request, mut respond, _| {
        let status = request.uri().path().trim_start_matches("/base/").parse::<u16>().unwrap();
        let answer = Response::builder().status(status).header("etag", "\"a\"");
        let bare = request.method() == http::Method::HEAD || status == 204 || status == 304;
        let answer = if request.method() == http::Method::HEAD { answer.header("content-length", "5") } else { answer };
        let mut body = respond.send_response(answer.body(()).unwrap(), bare).unwrap();
        if !bare {
            body.send_data(Bytes::from_static(b"hello"), true).unwrap();
        }
    })
    .await;
    let (k, key) = trusting(&authority, &upstream.url(), "").await;
    let bearer = format!("Bearer {}", key.secret);
    for (method, status, body) in [
        ("GET", 200, "hello"),
        ("HEAD", 200, ""),
        ("GET", 204, ""),
        ("GET", 304, ""),
        ("HEAD", 404, ""),
        ("GET", 500, "hello"),
    ] {
        let path = format!("/proxy/up/{status}");
        let tcp = TcpStream::connect(k.app.proxy_address()).await.unwrap();
        let request = Request::builder().method(method).uri(format!("http://keyward.test{path}"));
        let two = crate::http2::ask_over(tcp, request.header("authorization", &bearer)).await;
        // Twice on one connection: the framing is right when the second is read well.
        let mut wire = k.wire().await;
        for _ in 0..2 {
            wire.send(head(&key, &format!("{method} {path}"), &[])).await;
            let one = wire.next(method == "HEAD").await.unwrap();
            assert_eq!(
                (one.status, &one.body, one.header("etag")),
                (two.status, &two.body, "\"a\""),
                "{method} {status}"
            );
            assert_eq!(one.headers.get("content-length"), two.headers.get("content-length"), "{method} {status}");
        }
        assert_eq!((two.status.as_u16(), &*two.text(), two.header("etag")), (status, body, "\"a\""), "{method}");
        if method == "HEAD" {
            assert_eq!(two.header("content-length"), "5");
        }
    }
    k.stop().await;
}

/// Streams that [`resets_and_silence_of_a_stream_are_seen_and_stay_with_it`] saw reset.
static RESET: AtomicUsize = AtomicUsize::new(0);

fn files(folder: &Path, authority: &Authority) {
    std::fs::write(folder.join("ca.pem"), authority.pem()).unwrap();
    authority.issue().write(folder);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_system_target_may_have_an_authority_and_an_identity_of_its_own() {
    let (authority, other) = (Authority::new(), Authority::new());
    let upstream = Secure::start(authority.acceptor(&["h2", "http/1.1"], true), fine).await;
    let world = World::new(Backend::Sqlite).await;
    files(world.dir.path(), &authority);
    std::fs::write(world.dir.path().join("other.pem"), other.pem()).unwrap();
    let base = format!("base_url = \"{}\"", upstream.url());
    let toml = format!(
        "[targets.known]\n{base}\nca_file = \"ca.pem\"\nclient_cert = \"cert.pem\"\nclient_key = \"key.pem\"\n\
         [targets.nobody]\n{base}\nca_file = \"ca.pem\"\n[targets.distrust]\n{base}\nca_file = \"other.pem\"\n[targets.plain]\n{base}\n"
    );
    let k = system(world, toml).await;
    let key = k.new_key().await;
    for slug in ["known", "nobody", "distrust", "plain"] {
        k.grant(&key, slug, "read").await;
    }
    assert_eq!(k.agent(&key, "GET", "/proxy/known/x").await.text(), "two");
    for slug in ["nobody", "distrust", "plain"] {
        let answer = k.agent(&key, "GET", &format!("/proxy/{slug}/x")).await;
        assert_eq!((answer.status.as_u16(), &*answer.refusal()), (502, "upstream_unreachable"), "{slug}");
    }
    assert_eq!(upstream.requests().len(), 1);
    k.stop().await;
}
