//! One exchange: a request is handed to the service, its answer back, and the connection's watch learns where things stand.

use std::any::Any;
use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::CatchUnwind;
use http::header::CONNECTION;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::{Either, Full};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::service::Service;
use pin_project_lite::pin_project;
use tokio::io::{AsyncRead, AsyncWrite};

use super::multiplex::{self, Fault};
use super::serve::{House, Stop};
use super::socket::Watch;
use super::words::refusal;

/// Who is at the other end.
#[derive(Debug, Clone, Copy)]
pub struct Peer(pub SocketAddr);

/// What is left of a connection after a 101: bytes.
pub trait Stream: AsyncRead + AsyncWrite + Unpin {}

impl<T: AsyncRead + AsyncWrite + Unpin> Stream for T {}

/// What goes on with a connection after a 101: gets it, and what was read of it already.
pub type Tunnel = Box<dyn FnOnce(Box<dyn Stream>, Bytes) -> Pin<Box<dyn Future<Output = ()>>>>;

/// The connection that a request came over.
#[derive(Clone)]
pub struct Line {
    peer: Peer,
    watch: Rc<Watch>,
}

impl Line {
    /// Who is at the other end.
    #[must_use]
    pub fn peer(&self) -> Peer {
        self.peer
    }

    /// Hands the connection over to `tunnel` as soon as the answer, a 101, is written; to be called before it is given. The hard
    /// stop cuts the tunnel; other deadlines are its own.
    pub fn switch(&self, tunnel: Tunnel) {
        *self.watch.tunnel.borrow_mut() = Some(tunnel);
    }
}

/// hyper's service for one connection: notes where the connection stands, and survives a panic.
pub(super) struct Exchanges<S> {
    pub(super) service: S,
    pub(super) peer: Peer,
    pub(super) watch: Rc<Watch>,
    pub(super) house: Rc<House>,
}

impl<S, F, B> Service<Request<Incoming>> for Exchanges<S>
where
    S: Fn(Request<Incoming>, Line) -> F,
    F: Future<Output = Result<Response<B>, Infallible>>,
    B: Body<Data = Bytes>,
{
    type Response = Response<Answer<B>>;
    type Error = Infallible;
    type Future = Serving<F>;

    fn call(&self, mut request: Request<Incoming>) -> Serving<F> {
        let end = Some(Over { watch: Rc::clone(&self.watch), answered: false });
        let closes = self.house.stop.get() != Stop::Not && !self.watch.is_multiplexed();
        if let Some(fault) = self.watch.busy(!request.body().is_end_stream()) {
            return Serving { work: Work::Refused { fault }, closes, end };
        }
        if self.watch.is_multiplexed()
            && let Err(fault) = multiplex::normalize(&mut request, self.house.head_bytes, self.house.headers)
        {
            return Serving { work: Work::Refused { fault }, closes, end };
        }
        let line = Line { peer: self.peer, watch: Rc::clone(&self.watch) };
        let future = AssertUnwindSafe((self.service)(request, line)).catch_unwind();
        Serving { work: Work::Running { future }, closes, end }
    }
}

pin_project! {
    #[project = WorkProjection]
    enum Work<F> {
        Running { #[pin] future: CatchUnwind<AssertUnwindSafe<F>> },
        Refused { fault: Fault },
    }
}

pin_project! {
    /// A request being answered.
    pub(super) struct Serving<F> {
        #[pin]
        work: Work<F>,
        // It came after the soft stop, and is the connection's last.
        closes: bool,
        end: Option<Over>,
    }
}

impl<F, B> Future for Serving<F>
where
    F: Future<Output = Result<Response<B>, Infallible>>,
{
    type Output = Result<Response<Answer<B>>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let mut response = match this.work.project() {
            WorkProjection::Running { future } => match ready!(future.poll(cx)) {
                Ok(Ok(response)) => response.map(Either::Left),
                Ok(Err(never)) => match never {},
                Err(panic) => panicked(&*panic).map(Either::Right),
            },
            WorkProjection::Refused { fault: (status, code, words) } => {
                refusal(*status, code, words).map(Either::Right)
            }
        };
        if let Some(end) = this.end {
            end.answered = true;
            if end.watch.is_multiplexed() {
                // Between two neighbours of HTTP/1.1 (RFC 9113 §8.2.2).
                response.headers_mut().remove(CONNECTION);
            }
        }
        if *this.closes && response.status() != StatusCode::SWITCHING_PROTOCOLS {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        let end = this.end.take();
        Poll::Ready(Ok(response.map(|body| Answer { body, end })))
    }
}

pin_project! {
    /// An answer's body; the exchange is over when it goes.
    pub(super) struct Answer<B> {
        #[pin]
        body: Either<B, Full<Bytes>>,
        end: Option<Over>,
    }
}

/// Says when dropped that the exchange is over.
struct Over {
    watch: Rc<Watch>,
    answered: bool,
}

impl Drop for Over {
    fn drop(&mut self) {
        self.watch.answered(self.answered);
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
