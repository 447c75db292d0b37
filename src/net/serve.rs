//! The accept loop that both listeners share: permits, first-byte and head deadlines, graceful end.

use std::cell::Cell;
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use http::{Request, Response};
use hyper::body::{Body, Incoming};
use hyper::server::conn::{http1, http2};
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

use super::connection::connection;
use super::exchange::{Line, Peer};
use super::handshake::Handshakes;
use super::listener::Listener;
use super::multiplex::{self, LocalTasks};
use super::plain::FastPath;
use super::socket::Spans;
use super::ticker::{Ticker, Ticks};
use super::turns::{self, FEW, Turns};
use crate::shutdown::Shutdown;

/// How long a peer may go on sending after our last word.
const LINGER: Duration = Duration::from_secs(2);
/// What hyper may hold of one connection at least: body parts are read and written in pieces of up to this.
const BUFFER: usize = 64 * 1024;

/// Turns in which the kernel's queue of connections is emptied at the end; a turn takes a hundred or so.
const LAST_CALLS: usize = 32;

/// Header lines that hyper has room for on its stack; another number costs it a little work for each head.
const HEADERS: usize = 100;

/// Limits of a listener.
#[derive(Debug, Clone)]
pub struct ServeLimits {
    /// Connections at once; more wait in the kernel's queue.
    pub connections: usize,
    /// From a connection's start, or a request's first byte, to the end of the head.
    pub head: Duration,
    /// Between requests of a kept connection; also how long a peer may take nothing of an answer.
    pub keep_alive: Duration,
    /// Bytes of a head.
    pub head_bytes: usize,
    /// Header lines.
    pub headers: usize,
    /// A TLS handshake.
    pub handshake: Duration,
    /// TLS handshakes at once; one more cuts the oldest.
    pub handshakes: usize,
}

/// Serves HTTP/1.1 and HTTP/2 until the soft stop, then lets running exchanges finish until the hard stop; returns when all
/// its connections have ended. What `fast` serves of a connection of HTTP/1.1 does not come to `service`. With `tls` the
/// protocol is agreed on by ALPN, in clear by how the client begins. Each connection is a task of the current thread, so
/// the service need not be `Send`.
///
/// # Panics
/// Outside a `LocalRuntime` or `LocalSet`.
pub async fn serve<S, F, B>(
    listener: Listener,
    limits: ServeLimits,
    tls: Option<Arc<ServerConfig>>,
    shutdown: Shutdown,
    fast: Option<Rc<dyn FastPath>>,
    service: S,
) where
    S: Fn(Request<Incoming>, Line) -> F + Clone + 'static,
    F: Future<Output = Result<Response<B>, Infallible>> + 'static,
    B: Body<Data = Bytes> + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let listener = match TcpListener::from_std(listener.0) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%error, "the listener can't be used");
            return;
        }
    };
    let house = House::new(&limits, tls, fast);
    let mut stopping = pin!(shutdown.stopping());
    let mut places = FEW;
    loop {
        if places == 0 {
            // Those who are in have their turn, however many wait at the door.
            places = turns::next_turn().await;
        }
        places -= 1;
        tokio::select! {
            biased;
            () = &mut stopping => break,
            () = house.room(limits.connections) => {}
        }
        let accepted = tokio::select! {
            biased;
            () = &mut stopping => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((tcp, peer)) => begin(tcp, peer, &house, &service),
            Err(error) => accept_failed(&error).await,
        }
    }
    last_call(listener, |tcp, peer| begin(tcp, peer, &house, &service), || house.has_room(limits.connections)).await;
    house.stop(Stop::Soft);
    tokio::select! {
        () = house.empty() => return,
        () = shutdown.stopped() => {}
    }
    house.stop(Stop::Hard);
    house.empty().await;
}

fn begin<S, F, B>(tcp: TcpStream, peer: SocketAddr, house: &Rc<House>, service: &S)
where
    S: Fn(Request<Incoming>, Line) -> F + Clone + 'static,
    F: Future<Output = Result<Response<B>, Infallible>> + 'static,
    B: Body<Data = Bytes> + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    // In a box: a task is moved several times until it is in its place.
    tokio::task::spawn_local(Box::pin(connection(tcp, Peer(peer), Rc::clone(house), service.clone())));
}

/// Lets in whoever has connected already, closes the listener, and has what was sent by then read: closing a socket over
/// requests resets it, and their senders could not know whether they count.
async fn last_call(listener: TcpListener, begin: impl Fn(TcpStream, SocketAddr), has_room: impl Fn() -> bool) {
    for _ in 0..LAST_CALLS {
        // The runtime asks the system for what is new before it goes on here.
        tokio::task::yield_now().await;
        let mut came = false;
        while has_room()
            && let Some(Ok((tcp, peer))) = listener.accept().now_or_never()
        {
            begin(tcp, peer);
            came = true;
        }
        if !came {
            break;
        }
    }
    drop(listener);
    // Each new connection waits for its bytes in one turn, and has them in the next.
    for _ in 0..3 {
        tokio::task::yield_now().await;
    }
}

/// Waits a little when the process or the system is out of something; the next connection can be tried at once when the
/// peer only went away.
async fn accept_failed(error: &io::Error) {
    let gone = matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted
    );
    if !gone {
        tracing::warn!(%error, "accepting a connection failed; trying again shortly");
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    Not,
    Soft,
    Hard,
}

/// What the connections of one listener have in common.
pub(super) struct House {
    pub(super) stop: Cell<Stop>,
    live: Cell<usize>,
    left: Notify,
    pub(super) ticker: Ticker,
    pub(super) turns: Rc<Turns>,
    pub(super) spans: Spans,
    pub(super) head_bytes: usize,
    pub(super) headers: usize,
    pub(super) handshakes: Option<Handshakes>,
    pub(super) http1: http1::Builder,
    pub(super) http2: http2::Builder<LocalTasks>,
    pub(super) fast: Option<Rc<dyn FastPath>>,
}

impl House {
    fn new(limits: &ServeLimits, tls: Option<Arc<ServerConfig>>, fast: Option<Rc<dyn FastPath>>) -> Rc<Self> {
        let mut http1 = http1::Builder::new();
        http1.header_read_timeout(None).max_header_size(limits.head_bytes).max_buf_size(limits.head_bytes.max(BUFFER));
        if limits.headers != HEADERS {
            http1.max_headers(limits.headers);
        }
        Rc::new(Self {
            stop: Cell::new(Stop::Not),
            live: Cell::new(0),
            left: Notify::new(),
            ticker: Ticker::new(),
            turns: Turns::new(),
            spans: Spans {
                handshake: Ticks::of(limits.handshake),
                head: Ticks::of(limits.head),
                keep_alive: Ticks::of(limits.keep_alive),
                linger: Ticks::of(LINGER),
            },
            head_bytes: limits.head_bytes,
            headers: limits.headers,
            handshakes: tls.map(|config| Handshakes::new(config, limits.handshakes)),
            http1,
            http2: multiplex::builder(limits),
            fast,
        })
    }

    async fn room(&self, connections: usize) {
        while !self.has_room(connections) {
            self.left.notified().await;
        }
    }

    fn has_room(&self, connections: usize) -> bool {
        self.live.get() < connections.max(1)
    }

    async fn empty(&self) {
        while self.live.get() > 0 {
            self.left.notified().await;
        }
    }

    fn stop(&self, stop: Stop) {
        self.stop.set(stop);
        self.turns.end();
        self.ticker.wake_all();
    }

    /// Whether the deadline of stopping has passed.
    pub(super) fn is_cut(&self) -> bool {
        self.stop.get() == Stop::Hard
    }
}

/// A place taken by a connection; given back also when its task panics.
pub(super) struct Place(pub(super) Rc<House>);

impl Place {
    pub(super) fn take(house: Rc<House>) -> Self {
        house.live.set(house.live.get() + 1);
        Self(house)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.live.set(self.0.live.get() - 1);
        self.0.left.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::Full;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::task::LocalSet;

    use super::*;

    fn limits(connections: usize) -> ServeLimits {
        ServeLimits {
            connections,
            head: Duration::from_millis(400),
            keep_alive: Duration::from_millis(900),
            head_bytes: 8192,
            headers: 20,
            handshake: Duration::from_millis(400),
            handshakes: 2,
        }
    }

    async fn with_server<T, W: Future<Output = T>>(work: impl FnOnce(SocketAddr, Shutdown) -> W) -> T {
        with_room_for(2, work).await
    }

    async fn with_room_for<T, W: Future<Output = T>>(
        connections: usize,
        work: impl FnOnce(SocketAddr, Shutdown) -> W,
    ) -> T {
        let listener = Listener::bind(([127, 0, 0, 1], 0).into(), true).unwrap();
        let address = listener.address().unwrap();
        let shutdown = Shutdown::new();
        LocalSet::new()
            .run_until(async {
                let server = tokio::task::spawn_local(serve(
                    listener,
                    limits(connections),
                    None,
                    shutdown.clone(),
                    None,
                    |request, line| async move {
                        assert!(line.peer().0.ip().is_loopback());
                        assert!(request.uri().path() != "/panic", "as asked");
                        if request.uri().path() == "/slow" {
                            tokio::time::sleep(Duration::from_millis(1500)).await;
                        }
                        Ok(Response::new(Full::new(Bytes::from_static(b"fine"))))
                    },
                ));
                let result = work(address, shutdown.clone()).await;
                shutdown.stop();
                tokio::time::timeout(Duration::from_secs(5), server).await.unwrap().unwrap();
                result
            })
            .await
    }

    async fn exchange(address: SocketAddr, request: &str) -> String {
        let mut tcp = TcpStream::connect(address).await.unwrap();
        tcp.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        tokio::time::timeout(Duration::from_secs(5), tcp.read_to_string(&mut answer)).await.unwrap().unwrap();
        answer
    }

    #[tokio::test]
    async fn half_a_head_gets_408_and_a_panic_500() {
        with_server(|address, _| async move {
            let late = exchange(address, "GET / HTTP/1.1\r\nhos").await;
            assert!(late.starts_with("HTTP/1.1 408 ") && late.contains("\r\nkeyward-error: timeout\r\n"), "{late}");
            let silent = exchange(address, "").await;
            assert!(silent.starts_with("HTTP/1.1 408 "), "{silent}");
            let panic = exchange(address, "GET /panic HTTP/1.1\r\nhost: a\r\n\r\n").await;
            assert!(panic.starts_with("HTTP/1.1 500 ") && panic.contains("\"internal_error\""), "{panic}");
            let fine = exchange(address, "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
            assert!(fine.ends_with("\r\n\r\nfine"), "{fine}");
        })
        .await;
    }

    #[tokio::test]
    async fn idle_connections_are_closed_and_busy_ones_left_alone() {
        with_server(|address, _| async move {
            let kept = exchange(address, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
            assert!(kept.starts_with("HTTP/1.1 200 ") && kept.ends_with("fine"), "{kept}");
            let slow = exchange(address, "GET /slow HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
            assert!(slow.ends_with("fine"), "{slow}");
        })
        .await;
    }

    #[tokio::test]
    async fn doubtful_framing_and_too_large_heads_are_refused() {
        with_server(|address, _| async move {
            let both = "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n";
            let answer = exchange(address, both).await;
            assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("keyward-error: bad_request"), "{answer}");
            let large = format!("GET / HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n", "a".repeat(9000));
            assert!(exchange(address, &large).await.starts_with("HTTP/1.1 431 "));
            let many = format!("GET / HTTP/1.1\r\nhost: a\r\n{}\r\n", "x: 1\r\n".repeat(30));
            assert!(exchange(address, &many).await.starts_with("HTTP/1.1 431 "));
        })
        .await;
    }

    #[tokio::test]
    async fn a_refused_body_is_read_away_so_that_the_answer_arrives() {
        with_server(|address, _| async move {
            let body = "x".repeat(2_000_000);
            let request = format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n{body}", body.len());
            let answer = exchange(address, &request).await;
            assert!(answer.ends_with("fine"), "{answer}");
        })
        .await;
    }

    #[tokio::test]
    async fn the_soft_stop_lets_a_request_finish_and_the_hard_stop_does_not() {
        with_server(|address, shutdown| async move {
            let running = tokio::task::spawn_local(exchange(address, "GET /slow HTTP/1.1\r\nhost: a\r\n\r\n"));
            tokio::time::sleep(Duration::from_millis(100)).await;
            shutdown.stop();
            assert!(running.await.unwrap().contains("connection: close"));
            assert!(TcpStream::connect(address).await.is_err());
        })
        .await;
        with_server(|address, shutdown| async move {
            let running = tokio::task::spawn_local(async move {
                let mut tcp = TcpStream::connect(address).await.unwrap();
                tcp.write_all(b"GET /slow HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
                let mut answer = Vec::new();
                let _ = tcp.read_to_end(&mut answer).await;
                answer
            });
            tokio::time::sleep(Duration::from_millis(100)).await;
            shutdown.stop_now();
            assert!(running.await.unwrap().is_empty());
        })
        .await;
    }

    /// All that the client does comes between two turns of the server's thread, and so does the stop.
    #[tokio::test]
    async fn what_was_sent_before_the_soft_stop_is_answered() {
        use std::io::{Read as _, Write as _};

        // So many that they take turns.
        const CROWD: usize = 200;
        let request = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n";
        // Sockets that are used without the runtime, which would take a turn.
        let connect = |address| std::net::TcpStream::connect(address).unwrap();
        with_room_for(CROWD, |address, shutdown| async move {
            let mut all: Vec<_> = (2..CROWD).map(|_| connect(address)).collect();
            let mut kept = TcpStream::connect(address).await.unwrap();
            kept.write_all(request).await.unwrap();
            let mut answer = Vec::new();
            while !answer.ends_with(b"fine") {
                assert_ne!(kept.read_buf(&mut answer).await.unwrap(), 0);
            }
            all.extend([kept.into_std().unwrap(), connect(address)]);
            for tcp in &mut all {
                tcp.write_all(request).unwrap();
            }
            shutdown.stop();
            let answers = tokio::task::spawn_blocking(move || {
                let answers = all.into_iter().map(|mut tcp| {
                    tcp.set_nonblocking(false).unwrap();
                    let mut answer = String::new();
                    tcp.read_to_string(&mut answer).unwrap();
                    answer
                });
                answers.collect::<Vec<_>>()
            });
            let answers = answers.await.unwrap();
            for answer in &answers {
                assert!(answer.ends_with("fine"), "{answer}");
            }
            // Most were read after the stop, and are told that this is all.
            let told = answers.iter().filter(|answer| answer.contains("\r\nconnection: close\r\n")).count();
            assert!(told > 0, "{told}");
            assert!(TcpStream::connect(address).await.is_err());
        })
        .await;
    }

    async fn by_bytes(address: SocketAddr, request: &[u8]) -> TcpStream {
        let mut tcp = TcpStream::connect(address).await.unwrap();
        tcp.set_nodelay(true).unwrap();
        for byte in request {
            tcp.write_all(&[*byte]).await.unwrap();
            tokio::task::yield_now().await;
        }
        tcp
    }

    #[tokio::test]
    async fn the_protocol_is_found_out_however_the_bytes_arrive() {
        with_server(|address, _| async move {
            // As far as "P" it could be either.
            let mut post =
                by_bytes(address, b"POST / HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
                    .await;
            let mut answer = String::new();
            post.read_to_string(&mut answer).await.unwrap();
            assert!(answer.ends_with("fine"), "{answer}");
            // The preface, then SETTINGS of nothing: SETTINGS come back.
            let mut http2 = by_bytes(address, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await;
            let mut head = [0u8; 9];
            http2.read_exact(&mut head).await.unwrap();
            assert_eq!(head[3], 4, "{head:?}");
            // Half a preface is half a head.
            let late = exchange(address, "PRI * HTTP/2.0\r\n\r\nSM").await;
            assert!(late.starts_with("HTTP/1.1 408 "), "{late}");
        })
        .await;
    }

    #[tokio::test]
    async fn a_connection_of_http2_without_streams_is_closed_in_time() {
        with_server(|address, _| async move {
            let tcp = TcpStream::connect(address).await.unwrap();
            let (mut sender, connection) = h2::client::handshake(tcp).await.unwrap();
            let driver = tokio::task::spawn_local(connection);
            for path in ["/", "/slow", "/panic"] {
                let request = Request::get(format!("http://a{path}")).body(()).unwrap();
                sender = sender.ready().await.unwrap();
                let (answer, _) = sender.send_request(request, true).unwrap();
                let status = answer.await.unwrap().status();
                assert_eq!(status, if path == "/panic" { 500 } else { 200 }, "{path}");
            }
            // With GOAWAY, which is no error.
            tokio::time::timeout(Duration::from_secs(10), driver).await.unwrap().unwrap().unwrap();
            drop(sender);
        })
        .await;
    }

    #[tokio::test]
    async fn connections_beyond_the_limit_wait_their_turn() {
        with_server(|address, _| async move {
            let slow = "GET /slow HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
            let first = tokio::task::spawn_local(exchange(address, slow));
            let second = tokio::task::spawn_local(exchange(address, slow));
            tokio::time::sleep(Duration::from_millis(100)).await;
            let start = std::time::Instant::now();
            let third = exchange(address, "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
            assert!(third.ends_with("fine") && start.elapsed() > Duration::from_secs(1));
            first.await.unwrap();
            second.await.unwrap();
        })
        .await;
    }
}
