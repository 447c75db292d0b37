//! An agent, the listener, the exchange with an upstream and the upstream, over real sockets. Without keys, grants and
//! receipts: those are the whole gateway's tests' business.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::HOST;
use http::{HeaderValue, Request, Response};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{LocalSet, spawn_local};

use super::Refusal;
use super::body::Relay;
use super::outbound::{Outbound, frame};
use super::upload::RequestBody;
use super::upstream::Upstreams;
use super::{Target, headers};
use crate::access::{Credential, Grant, TargetKind};
use crate::catalog::{Base, Injection, Ready};
use crate::clock::Timestamp;
use crate::config::{Limits, Timeouts, Transport};
use crate::ids::{RequestId, TargetId};
use crate::net::{Guard, Listener, ServeLimits, serve};
use crate::shutdown::Shutdown;

const LIMIT: u64 = 8_000_000;

fn upstreams() -> Upstreams {
    let limits = Limits {
        head: 8192,
        headers: 100,
        request_body: Some(LIMIT),
        request_body_rate: None,
        connections: 100,
        requests: 100,
        per_key: None,
    };
    let timeouts = Timeouts {
        connect: Duration::from_secs(5),
        handshake: Duration::from_secs(5),
        head: Duration::from_secs(5),
        idle: Duration::from_secs(1),
        total: None,
        queue: Duration::from_secs(1),
    };
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let tls = tls.with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth();
    let guard = Guard::new(vec!["127.0.0.0/8".parse().unwrap()]);
    Upstreams::new(Arc::new(guard), tls.into(), Box::new(|_| true), &limits, &timeouts)
}

fn target(address: SocketAddr) -> Arc<Target> {
    Arc::new(Target {
        id: TargetId::new(),
        slug: "crm".into(),
        name: "CRM".into(),
        base: Base {
            https: false,
            host: address.ip().to_string().into(),
            port: address.port(),
            authority: HeaderValue::try_from(address.to_string()).unwrap(),
            path: "".into(),
        },
        fence: Arc::default(),
        credential: Credential::Ready(Arc::new(Ready::new(Injection::Headers(Vec::new())))),
        kind: TargetKind::Static,
        room: None,
        reflect_guard: false,
        transport: Transport::default(),
        tls: None,
        changed: Timestamp::default(),
    })
}

/// What `forward` does, from the body on.
async fn exchange(
    upstreams: &Upstreams,
    target: Arc<Target>,
    request: Request<Incoming>,
) -> Result<Response<Relay>, Refusal> {
    let (parts, incoming) = request.into_parts();
    let body = upstreams.take_body(incoming, Some(LIMIT)).await?;
    let (mut fields, held) = (parts.headers, body.held());
    headers::clean_request(&mut fields);
    fields.insert(HOST, target.base.authority.clone());
    frame(&mut fields, &parts.method, &body);
    let upload = match &body {
        RequestBody::Streamed { upload, .. } => Some(Rc::clone(upload)),
        RequestBody::Held(_) => None,
    };
    let mut request = Request::new(body);
    *request.method_mut() = parts.method;
    *request.uri_mut() = parts.uri;
    *request.headers_mut() = fields;
    let reply = upstreams.send(Outbound { grant: Grant::to(target), request, upload, held, handshake: None }).await?;
    let (mut parts, incoming) = reply.response.into_parts();
    headers::clean_answer(&mut parts.headers, false);
    Ok(Response::from_parts(parts, Relay::new(incoming, reply.lease)))
}

/// An upstream whose connections are handled by `script`, and what it saw.
struct Upstream {
    address: SocketAddr,
    accepted: Rc<Cell<usize>>,
}

async fn upstream<W: Future<Output = ()> + 'static>(script: impl Fn(TcpStream) -> W + 'static) -> Upstream {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let accepted = Rc::new(Cell::new(0));
    let count = Rc::clone(&accepted);
    spawn_local(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            count.set(count.get() + 1);
            spawn_local(script(tcp));
        }
    });
    Upstream { address, accepted }
}

/// Reads until `end` has come; answers everything read, also when the peer closes before.
async fn read_until(tcp: &mut TcpStream, end: &[u8]) -> Vec<u8> {
    let mut seen = Vec::new();
    let mut buffer = [0u8; 16 * 1024];
    while !seen.ends_with(end) {
        match tcp.read(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(read) => seen.extend_from_slice(&buffer[..read]),
        }
    }
    seen
}

async fn gateway<T, W: Future<Output = T>>(upstream: &Upstream, work: impl FnOnce(SocketAddr) -> W) -> T {
    let listener = Listener::bind(([127, 0, 0, 1], 0).into(), false).unwrap();
    let address = listener.address().unwrap();
    let limits = ServeLimits {
        connections: 100,
        head: Duration::from_secs(5),
        keep_alive: Duration::from_secs(5),
        head_bytes: 8192,
        headers: 100,
        handshake: Duration::from_secs(5),
        handshakes: 16,
    };
    let shutdown = Shutdown::new();
    let (upstreams, target) = (Rc::new(upstreams()), target(upstream.address));
    let service = move |request, _line| {
        let (upstreams, target) = (Rc::clone(&upstreams), Arc::clone(&target));
        async move {
            Ok(match exchange(&upstreams, target, request).await {
                Ok(response) => response.map(Either::Left),
                Err(refusal) => {
                    let (response, _) = refusal.answer(RequestId::next(), |account| account.to_string());
                    response.map(|bytes: Bytes| Either::Right(Full::new(bytes)))
                }
            })
        }
    };
    let server = spawn_local(serve(listener, limits, None, shutdown.clone(), None, service));
    let result = tokio::time::timeout(Duration::from_secs(20), work(address)).await.unwrap();
    shutdown.stop_now();
    server.await.unwrap();
    result
}

async fn connect(address: SocketAddr, request: &[u8]) -> TcpStream {
    let mut tcp = TcpStream::connect(address).await.unwrap();
    tcp.write_all(request).await.unwrap();
    tcp
}

async fn ask(address: SocketAddr, request: &[u8]) -> String {
    let mut tcp = connect(address, request).await;
    let mut answer = Vec::new();
    let _ = tcp.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

const GET: &[u8] = b"GET /a HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
const FINE: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

#[tokio::test]
async fn a_connection_serves_again_after_a_whole_exchange() {
    LocalSet::new()
        .run_until(async {
            let upstream = upstream(async |mut tcp: TcpStream| {
                while !read_until(&mut tcp, b"\r\n\r\n").await.is_empty() {
                    tcp.write_all(FINE).await.unwrap();
                }
            })
            .await;
            gateway(&upstream, async |address| {
                for _ in 0..5 {
                    assert!(ask(address, GET).await.ends_with("\r\n\r\nok"));
                }
            })
            .await;
            assert_eq!(upstream.accepted.get(), 1);
        })
        .await;
}

#[tokio::test]
async fn a_kept_connection_that_died_is_replaced_unseen() {
    LocalSet::new()
        .run_until(async {
            let upstream = upstream(async |mut tcp: TcpStream| {
                read_until(&mut tcp, b"\r\n\r\n").await;
                tcp.write_all(FINE).await.unwrap();
                tokio::time::sleep(Duration::from_millis(20)).await;
            })
            .await;
            gateway(&upstream, async |address| {
                for pause in [0, 40, 40] {
                    tokio::time::sleep(Duration::from_millis(pause)).await;
                    assert!(ask(address, GET).await.ends_with("\r\n\r\nok"));
                }
            })
            .await;
            assert_eq!(upstream.accepted.get(), 3);
        })
        .await;
}

#[tokio::test]
async fn answers_that_are_none_are_told_apart() {
    let table: &[(&[u8], &str, &str)] = &[
        (b"", "502", "upstream_unreachable"),
        (b"HTTP/1.1 2", "502", "upstream_unreachable"),
        (b"nonsense\r\n\r\n", "502", "upstream_invalid"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n", "502", "upstream_invalid"),
        (b"HTTP/1.1 101 Switching Protocols\r\nupgrade: a\r\nconnection: upgrade\r\n\r\n", "502", "upstream_invalid"),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", "200", ""),
    ];
    for (bytes, status, code) in table {
        LocalSet::new()
            .run_until(async {
                let upstream = upstream(async |mut tcp: TcpStream| {
                    read_until(&mut tcp, b"\r\n\r\n").await;
                    let _ = tcp.write_all(bytes).await;
                })
                .await;
                let answer = gateway(&upstream, |address| ask(address, GET)).await;
                assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")) && answer.contains(code), "{answer}");
                assert_eq!(upstream.accepted.get(), 1);
            })
            .await;
    }
}

#[tokio::test]
async fn an_upstream_that_says_nothing_is_given_up_on_also_in_the_middle() {
    LocalSet::new()
        .run_until(async {
            let upstream = upstream(async |mut tcp: TcpStream| {
                let head = read_until(&mut tcp, b"\r\n\r\n").await;
                if head.starts_with(b"GET /half") {
                    tcp.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n").await.unwrap();
                }
                read_until(&mut tcp, b"never").await;
            })
            .await;
            gateway(&upstream, async |address| {
                let silent = ask(address, GET).await;
                assert!(silent.starts_with("HTTP/1.1 504 ") && silent.contains("upstream_timeout"), "{silent}");
                let half = ask(address, b"GET /half HTTP/1.1\r\nhost: x\r\n\r\n").await;
                assert!(half.ends_with("3\r\nabc\r\n"), "no clean end: {half}");
            })
            .await;
        })
        .await;
}

#[tokio::test]
async fn an_answer_that_is_cut_is_cut_for_the_agent_too() {
    for (head, end) in [("content-length: 10", "abc"), ("transfer-encoding: chunked", "3\r\nabc\r\n")] {
        LocalSet::new()
            .run_until(async {
                let upstream = upstream(move |mut tcp: TcpStream| async move {
                    read_until(&mut tcp, b"\r\n\r\n").await;
                    tcp.write_all(format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n{end}").as_bytes()).await.unwrap();
                })
                .await;
                gateway(&upstream, async |address| {
                    for _ in 0..2 {
                        let answer = ask(address, GET).await;
                        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with(end), "{answer}");
                    }
                })
                .await;
                assert_eq!(upstream.accepted.get(), 2);
            })
            .await;
    }
}

#[tokio::test]
async fn a_body_that_is_cut_is_cut_for_the_upstream_too() {
    for body in [
        "content-length: 200000\r\n\r\nabc",
        "transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n",
        "content-length: 9\r\n\r\nabc",
    ] {
        LocalSet::new()
            .run_until(async {
                let seen = Rc::new(RefCell::new(Vec::new()));
                let into = Rc::clone(&seen);
                let upstream = upstream(move |mut tcp: TcpStream| {
                    let into = Rc::clone(&into);
                    async move {
                        let bytes = read_until(&mut tcp, b"0\r\n\r\n").await;
                        into.borrow_mut().extend_from_slice(&bytes);
                    }
                })
                .await;
                gateway(&upstream, async |address| {
                    let tcp = connect(address, format!("POST /a HTTP/1.1\r\nhost: x\r\n{body}").as_bytes()).await;
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    drop(tcp);
                    tokio::time::sleep(Duration::from_millis(100)).await;
                })
                .await;
                let seen = seen.borrow();
                // A small body is not sent at all before it is whole.
                assert_eq!(seen.is_empty(), body.starts_with("content-length: 9"), "{body}");
                assert!(!seen.ends_with(b"0\r\n\r\n"), "{body}");
            })
            .await;
    }
}

#[tokio::test]
async fn a_late_or_endless_body_is_refused() {
    LocalSet::new()
        .run_until(async {
            let upstream = upstream(async |mut tcp: TcpStream| {
                read_until(&mut tcp, b"never").await;
            })
            .await;
            gateway(&upstream, async |address| {
                for body in ["content-length: 9\r\n\r\nabc", "transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n"] {
                    let late = ask(address, format!("POST /a HTTP/1.1\r\nhost: x\r\n{body}").as_bytes()).await;
                    assert!(late.starts_with("HTTP/1.1 408 ") && late.contains("\"timeout\""), "{body}: {late}");
                }
                let mut tcp =
                    connect(address, b"POST /a HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n").await;
                let chunk = [b"10000\r\n".as_slice(), &[b'x'; 0x10000], b"\r\n"].concat();
                for _ in 0..LIMIT / 0x10000 + 2 {
                    if tcp.write_all(&chunk).await.is_err() {
                        break;
                    }
                }
                let mut answer = String::new();
                tcp.read_to_string(&mut answer).await.unwrap();
                assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
            })
            .await;
        })
        .await;
}

#[tokio::test]
async fn large_bodies_stream_both_ways_and_chunked_gets_keep_theirs() {
    LocalSet::new()
        .run_until(async {
            let upstream = upstream(async |mut tcp: TcpStream| {
                let request = read_until(&mut tcp, b"0\r\n\r\n").await;
                let head = request.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
                tcp.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await.unwrap();
                tcp.write_all(&request[head..]).await.unwrap();
            })
            .await;
            for method in ["POST", "GET"] {
                gateway(&upstream, async |address| {
                    let tcp = TcpStream::connect(address).await.unwrap();
                    let (mut read, mut write) = tcp.into_split();
                    let sending = spawn_local(async move {
                        let head = format!(
                            "{method} /a HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n"
                        );
                        write.write_all(head.as_bytes()).await.unwrap();
                        for _ in 0..50 {
                            let chunk = [b"10000\r\n".as_slice(), &[b'y'; 0x10000], b"\r\n"].concat();
                            write.write_all(&chunk).await.unwrap();
                        }
                        write.write_all(b"0\r\nx-trailer: gone\r\n\r\n").await.unwrap();
                        write
                    });
                    let mut answer = Vec::new();
                    read.read_to_end(&mut answer).await.unwrap();
                    sending.await.unwrap();
                    let text = String::from_utf8_lossy(&answer);
                    assert_eq!(text.matches('y').count(), 50 * 0x10000);
                    assert!(text.ends_with("0\r\n\r\n") && !text.contains("gone"));
                })
                .await;
            }
        })
        .await;
}

#[tokio::test]
async fn an_early_answer_arrives_and_its_connection_is_not_used_again() {
    LocalSet::new()
        .run_until(async {
            let upstream = upstream(async |mut tcp: TcpStream| {
                read_until(&mut tcp, b"\r\n\r\n").await;
                tcp.write_all(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 2\r\n\r\nno").await.unwrap();
                read_until(&mut tcp, b"never").await;
            })
            .await;
            gateway(&upstream, async |address| {
                for _ in 0..2 {
                    let mut tcp =
                        connect(address, b"POST /a HTTP/1.1\r\nhost: x\r\ncontent-length: 300000\r\n\r\n").await;
                    let answer = read_until(&mut tcp, b"no").await;
                    assert!(answer.starts_with(b"HTTP/1.1 403 "));
                }
            })
            .await;
            assert_eq!(upstream.accepted.get(), 2);
        })
        .await;
}

#[tokio::test]
async fn an_agent_that_leaves_takes_the_upstream_connection_along() {
    LocalSet::new()
        .run_until(async {
            let ended = Rc::new(Cell::new(0));
            let count = Rc::clone(&ended);
            let upstream = upstream(move |mut tcp: TcpStream| {
                let count = Rc::clone(&count);
                async move {
                    let head = read_until(&mut tcp, b"\r\n\r\n").await;
                    if head.starts_with(b"GET /stream") {
                        tcp.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n")
                            .await
                            .unwrap();
                    }
                    read_until(&mut tcp, b"never").await;
                    count.set(count.get() + 1);
                }
            })
            .await;
            gateway(&upstream, async |address| {
                for path in ["/stream", "/silent"] {
                    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n");
                    let tcp = connect(address, request.as_bytes()).await;
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    drop(tcp);
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            })
            .await;
            assert_eq!(ended.get(), 2);
        })
        .await;
}

#[tokio::test]
async fn answers_without_a_body_end_whole() {
    LocalSet::new()
        .run_until(async {
            let upstream = upstream(async |mut tcp: TcpStream| {
                loop {
                    let head = read_until(&mut tcp, b"\r\n\r\n").await;
                    let answer: &[u8] = match head.get(..9) {
                        Some(b"HEAD /a H") => b"HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\n",
                        Some(b"GET /204 ") => b"HTTP/1.1 204 No Content\r\n\r\n",
                        Some(b"GET /304 ") => b"HTTP/1.1 304 Not Modified\r\netag: \"a\"\r\n\r\n",
                        Some(b"GET /own ") => b"HTTP/1.1 200 Fine By Me\r\ncontent-length: 0\r\n\r\n",
                        _ => return,
                    };
                    tcp.write_all(answer).await.unwrap();
                }
            })
            .await;
            gateway(&upstream, async |address| {
                for (line, status, field) in [
                    ("HEAD /a", "HTTP/1.1 200 OK\r\n", "content-length: 7\r\n"),
                    ("GET /204", "HTTP/1.1 204 No Content\r\n", ""),
                    ("GET /304", "HTTP/1.1 304 Not Modified\r\n", "etag: \"a\"\r\n"),
                    ("GET /own", "HTTP/1.1 200 Fine By Me\r\n", "content-length: 0\r\n"),
                ] {
                    let request = format!("{line} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
                    let answer = ask(address, request.as_bytes()).await;
                    assert!(answer.starts_with(status) && answer.contains(field), "{answer}");
                    assert!(answer.ends_with("\r\n\r\n"), "{answer}");
                }
            })
            .await;
            assert_eq!(upstream.accepted.get(), 1);
        })
        .await;
}
