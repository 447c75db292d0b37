//! The accept loop that both listeners share: permits, first-byte and head deadlines, graceful end.

use std::any::Any;
use std::cell::Cell;
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::CatchUnwind;
use http::{Request, Response, StatusCode};
use http_body_util::{Either, Full};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper_util::rt::TokioIo;
use pin_project_lite::pin_project;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

use super::socket::{Socket, Spans, Watch};
use super::ticker::{Ticker, Ticks};
use super::words::{refusal, too_late};
use crate::shutdown::Shutdown;

/// Connections that wait in the kernel for us to accept them.
const BACKLOG: i32 = 4096;
/// How long a peer may go on sending after our last word.
const LINGER: Duration = Duration::from_secs(2);
/// What hyper may hold of one connection at least: body parts are read and written in pieces of up to this.
const BUFFER: usize = 64 * 1024;

/// Header lines that hyper has room for on its stack; another number costs it a little work for each head.
const HEADERS: usize = 100;

/// A bound socket.
pub struct Listener(std::net::TcpListener);

impl Listener {
    /// Binds `address`; with `shared`, further listeners may bind the same one (`SO_REUSEPORT`) and the kernel spreads
    /// connections over them. Port 0 picks a free port.
    ///
    /// # Errors
    /// What the system says, with the address.
    pub fn bind(address: SocketAddr, shared: bool) -> io::Result<Self> {
        use socket2::{Domain, Protocol, Socket, Type};

        let bind = || {
            let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
            socket.set_reuse_address(true)?;
            if shared {
                socket.set_reuse_port(true)?;
            }
            socket.set_nonblocking(true)?;
            socket.bind(&address.into())?;
            socket.listen(BACKLOG)?;
            Ok(Self(socket.into()))
        };
        bind().map_err(|error: io::Error| io::Error::new(error.kind(), format!("can't listen on {address}: {error}")))
    }

    /// Where it is bound.
    ///
    /// # Errors
    /// What the system says.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

/// Who is at the other end; every request carries one in its extensions.
#[derive(Debug, Clone, Copy)]
pub struct Peer(pub SocketAddr);

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
}

/// Serves HTTP/1.1 until the soft stop, then lets running exchanges finish until the hard stop; returns when all its
/// connections have ended. Runs on the current thread's `LocalSet`: each connection is a local task, so the service
/// need not be `Send`.
///
/// # Panics
/// Outside a `LocalSet`.
pub async fn serve<S, F, B>(listener: Listener, limits: ServeLimits, shutdown: Shutdown, service: S)
where
    S: Fn(Request<Incoming>) -> F + Clone + 'static,
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
    let house = House::new(&limits);
    let mut stopping = pin!(shutdown.stopping());
    loop {
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
            Ok((tcp, peer)) => {
                let _ = tcp.set_nodelay(true);
                tokio::task::spawn_local(connection(tcp, Peer(peer), Rc::clone(&house), service.clone()));
            }
            Err(error) => accept_failed(&error).await,
        }
    }
    drop(listener);
    house.stop(Stop::Soft);
    tokio::select! {
        () = house.empty() => return,
        () = shutdown.stopped() => {}
    }
    house.stop(Stop::Hard);
    house.empty().await;
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
enum Stop {
    Not,
    Soft,
    Hard,
}

/// What the connections of one listener have in common.
struct House {
    stop: Cell<Stop>,
    live: Cell<usize>,
    left: Notify,
    ticker: Ticker,
    spans: Spans,
    http: http1::Builder,
}

impl House {
    fn new(limits: &ServeLimits) -> Rc<Self> {
        let mut http = http1::Builder::new();
        http.header_read_timeout(None).max_header_size(limits.head_bytes).max_buf_size(limits.head_bytes.max(BUFFER));
        if limits.headers != HEADERS {
            http.max_headers(limits.headers);
        }
        Rc::new(Self {
            stop: Cell::new(Stop::Not),
            live: Cell::new(0),
            left: Notify::new(),
            ticker: Ticker::new(),
            spans: Spans {
                head: Ticks::of(limits.head),
                keep_alive: Ticks::of(limits.keep_alive),
                linger: Ticks::of(LINGER),
            },
            http,
        })
    }

    async fn room(&self, connections: usize) {
        while self.live.get() >= connections.max(1) {
            self.left.notified().await;
        }
    }

    async fn empty(&self) {
        while self.live.get() > 0 {
            self.left.notified().await;
        }
    }

    fn stop(&self, stop: Stop) {
        self.stop.set(stop);
        self.ticker.wake_all();
    }
}

/// A place taken by a connection; given back also when its task panics.
struct Place(Rc<House>);

impl Place {
    fn take(house: Rc<House>) -> Self {
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

enum End {
    Done,
    Late,
    Cut,
}

/// One connection, from its first byte to its last. The place is taken here, synchronously, before the task first runs.
fn connection<S, F, B>(tcp: TcpStream, peer: Peer, house: Rc<House>, service: S) -> impl Future<Output = ()>
where
    S: Fn(Request<Incoming>) -> F,
    F: Future<Output = Result<Response<B>, Infallible>>,
    B: Body<Data = Bytes> + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let place = Place::take(house);
    async move {
        let house = &place.0;
        let watch = Watch::new(house.ticker.deadline(), house.spans);
        let socket = TokioIo::new(Socket::new(tcp, Rc::clone(&watch)));
        let exchanges = Exchanges { service, peer, watch: Rc::clone(&watch) };
        let mut connection = house.http.serve_connection(socket, exchanges);
        let mut told = false;
        let end = poll_fn(|cx| {
            match house.stop.get() {
                Stop::Hard => return Poll::Ready(End::Cut),
                Stop::Soft if !told => {
                    told = true;
                    Pin::new(&mut connection).graceful_shutdown();
                }
                Stop::Soft | Stop::Not => {}
            }
            if Pin::new(&mut connection).poll(cx).is_ready() {
                return Poll::Ready(End::Done);
            }
            watch.deadline.poll_passed(cx).map(|()| End::Late)
        })
        .await;
        if matches!(end, End::Late) && watch.may_be_told() {
            connection.into_parts().io.inner().tell(&too_late());
        }
    }
}

/// hyper's service for one connection: notes where the connection stands, and survives a panic.
struct Exchanges<S> {
    service: S,
    peer: Peer,
    watch: Rc<Watch>,
}

impl<S, F, B> Service<Request<Incoming>> for Exchanges<S>
where
    S: Fn(Request<Incoming>) -> F,
    F: Future<Output = Result<Response<B>, Infallible>>,
    B: Body<Data = Bytes>,
{
    type Response = Response<Answer<B>>;
    type Error = Infallible;
    type Future = Serving<F>;

    fn call(&self, mut request: Request<Incoming>) -> Serving<F> {
        let watch = Rc::clone(&self.watch);
        if let Some(fault) = watch.busy(!request.body().is_end_stream()) {
            return Serving { work: Work::Refused { fault }, watch };
        }
        request.extensions_mut().insert(self.peer);
        let future = AssertUnwindSafe((self.service)(request)).catch_unwind();
        Serving { work: Work::Running { future }, watch }
    }
}

pin_project! {
    #[project = WorkProjection]
    enum Work<F> {
        Running { #[pin] future: CatchUnwind<AssertUnwindSafe<F>> },
        Refused { fault: &'static str },
    }
}

pin_project! {
    struct Serving<F> {
        #[pin]
        work: Work<F>,
        watch: Rc<Watch>,
    }
}

impl<F, B> Future for Serving<F>
where
    F: Future<Output = Result<Response<B>, Infallible>>,
{
    type Output = Result<Response<Answer<B>>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let response = match this.work.project() {
            WorkProjection::Running { future } => match ready!(future.poll(cx)) {
                Ok(Ok(response)) => response.map(Either::Left),
                Ok(Err(never)) => match never {},
                Err(panic) => panicked(&*panic).map(Either::Right),
            },
            WorkProjection::Refused { fault } => {
                refusal(StatusCode::BAD_REQUEST, "bad_request", fault).map(Either::Right)
            }
        };
        let end = Answered(Rc::clone(this.watch));
        Poll::Ready(Ok(response.map(|body| Answer { body, end })))
    }
}

pin_project! {
    /// An answer's body; the connection is between requests when it goes.
    struct Answer<B> {
        #[pin]
        body: Either<B, Full<Bytes>>,
        end: Answered,
    }
}

struct Answered(Rc<Watch>);

impl Drop for Answered {
    fn drop(&mut self) {
        self.0.answered();
    }
}

impl<B> Body for Answer<B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        self.project().body.poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

fn panicked(panic: &(dyn Any + Send)) -> Response<Full<Bytes>> {
    // The message may hold anything; the panic hook has printed it where operators look.
    let known = panic.is::<&'static str>() || panic.is::<String>();
    tracing::error!(known, "a request handler panicked; this is a bug in keyward");
    refusal(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", "Keyward failed on this request.")
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::task::LocalSet;

    use super::*;

    fn limits() -> ServeLimits {
        ServeLimits {
            connections: 2,
            head: Duration::from_millis(400),
            keep_alive: Duration::from_millis(900),
            head_bytes: 8192,
            headers: 20,
        }
    }

    async fn with_server<T, W: Future<Output = T>>(work: impl FnOnce(SocketAddr, Shutdown) -> W) -> T {
        let listener = Listener::bind(([127, 0, 0, 1], 0).into(), true).unwrap();
        let address = listener.address().unwrap();
        let shutdown = Shutdown::new();
        LocalSet::new()
            .run_until(async {
                let server =
                    tokio::task::spawn_local(serve(listener, limits(), shutdown.clone(), |request| async move {
                        assert!(request.extensions().get::<Peer>().is_some());
                        assert!(request.uri().path() != "/panic", "as asked");
                        if request.uri().path() == "/slow" {
                            tokio::time::sleep(Duration::from_millis(1500)).await;
                        }
                        Ok(Response::new(Full::new(Bytes::from_static(b"fine"))))
                    }));
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
