//! Exchanges with upstreams: one pool per worker and target (`pool.rs`), without locks. Each connection of HTTP/1.1 has one
//! coarse deadline that serves all its life: the wait for an answer's head, pauses in bodies, the time it may idle. Over
//! HTTP/2 a connection has many exchanges, and each has a deadline of its own.
//!
//! ```text
//!            take                       whole, clean exchange
//!  pool ───────────▶ lease ── send ──▶ reply body ─────────────▶ pool
//!   ▲ or dial           │ anything else: the connection is cut, or over HTTP/2 the stream is reset
//! ```

use std::error::Error as _;
use std::future::{Future as _, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use h2::Reason;
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri};
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;

use super::outbound::{self, Outbound};
use super::pool::{Connected, Dialer, Direct, Link, Pool};
use super::running::{Slot, Upheld};
use super::upload::{RequestBody, State, Upload};
use super::websocket::{Handshake, Switched};
use super::{Refusal, headers};
use crate::access::{Grant, Target};
use crate::catalog::Base;
use crate::config::{Limits, Timeouts};
use crate::net::{ClientTls, Deadline, Guard, Moment, Ticks};

/// The upstreams of one worker.
pub(super) struct Upstreams {
    dialer: Dialer,
    idle: Ticks,
    /// Bytes of a request body in each idle time.
    least: u64,
    total: Option<Ticks>,
}

/// What counts as progress of an exchange, and how long it may go without.
#[derive(Clone)]
pub(super) struct Pace {
    deadline: Deadline,
    idle: Ticks,
    end: Moment,
}

impl Pace {
    /// Something moved.
    pub(super) fn progress(&self) {
        self.deadline.arm_before(self.idle, self.end);
    }
}

/// A connection in use. Dropped without [`Lease::give_back`], the connection is cut.
pub(super) struct Lease {
    connected: Option<Connected>,
    pool: Rc<Pool>,
    pace: Pace,
    upload: Option<Rc<Upload>>,
    held: u64,
}

/// An upstream's answer, its body still to come.
pub(super) struct Reply {
    pub(super) response: Response<Incoming>,
    pub(super) lease: Lease,
    pub(super) target: Arc<Target>,
    /// The connection itself, when it has become a WebSocket.
    pub(super) switched: Option<Switched>,
}

/// Why there is no answer.
enum Failure {
    /// It may have been sent, unless it comes back.
    Sent(Box<TrySendError<Request<RequestBody>>>),
    /// Nothing came in time.
    Late,
}

/// What it takes to send a request again that a server of HTTP/2 has not looked at.
struct Spare {
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: RequestBody,
}

impl Upstreams {
    pub(super) fn new(guard: Arc<Guard>, tls: ClientTls, upheld: Upheld, limits: &Limits, timeouts: &Timeouts) -> Self {
        Self {
            dialer: Dialer::new(guard, tls, upheld, limits, timeouts),
            idle: Ticks::of(timeouts.idle),
            least: limits.request_body_rate.unwrap_or(0).saturating_mul(timeouts.idle.as_secs()).max(1),
            total: timeouts.total.map(Ticks::of),
        }
    }

    /// Takes a request's body in hand; waits for a small one.
    pub(super) async fn take_body(&self, incoming: Incoming, limit: Option<u64>) -> Result<RequestBody, Refusal> {
        RequestBody::take(incoming, limit, self.least, self.dialer.ticker(), self.idle).await
    }

    /// Sends a request and waits for the answer's head. Sent at most once. A second try is only for what was not looked at:
    /// a request that hyper gives back untouched because a kept connection had died, or a stream that the server says it
    /// refused before doing anything (RFC 9113 §8.7).
    pub(super) async fn send(&self, outbound: Outbound) -> Result<Reply, Refusal> {
        let Outbound { grant, request, upload, held, handshake } = outbound;
        if let Some(handshake) = handshake {
            return self.switch(&handshake, request, &grant).await;
        }
        let held = held.unwrap_or(0);
        let target = Arc::clone(grant.target());
        let pool = self.dialer.pool(&target);
        let (connected, kept) = match pool.ready(&self.dialer).await {
            Some(connected) => (connected, true),
            None => (self.dialer.dial(&pool, &target).await?, false),
        };
        let mut lease = self.lease(connected, Rc::clone(&pool), upload.clone(), held, &grant);
        let (mut result, spare) = lease.send(request, &target.base).await?;
        if let Err(failure) = &mut result
            && let Some((request, gone)) = failure.untouched(kept || lease.is_shared(), spare)
        {
            let connected = if gone {
                lease.forget();
                self.dialer.dial(&pool, &target).await?
            } else {
                self.connected(&pool, &target).await?
            };
            lease = self.lease(connected, pool, upload, held, &grant);
            (result, _) = lease.send(request, &target.base).await?;
        }
        match result {
            Ok(response) if !headers::is_sound(response.headers()) => Err(Refusal::UpstreamInvalid),
            // We never offered to switch protocols.
            Ok(response) if response.status() == StatusCode::SWITCHING_PROTOCOLS => Err(Refusal::UpstreamInvalid),
            Ok(response) => {
                lease.pace.progress();
                Ok(Reply { response, lease, target, switched: None })
            }
            Err(failure) => Err(lease.failed(&target, failure)),
        }
    }

    /// Sends a WebSocket's handshake, over a connection of its own. What answers with anything but a 101 answered a request.
    async fn switch(
        &self,
        handshake: &Handshake,
        request: Request<RequestBody>,
        grant: &Grant,
    ) -> Result<Reply, Refusal> {
        let target = Arc::clone(grant.target());
        let pool = self.dialer.pool(&target);
        let (connected, switched) = self.dialer.dial_to_switch(&target).await?;
        let mut lease = self.lease(connected, pool, None, 0, grant);
        let (result, _) = lease.send(request, &target.base).await?;
        let response = result.map_err(|failure| lease.failed(&target, failure))?;
        lease.pace.progress();
        let switches = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        if switches {
            handshake.check(response.headers())?;
        }
        Ok(Reply { response, lease, target, switched: Some(switched).filter(|_| switches) })
    }

    /// The connections to a target.
    pub(super) fn pool(&self, target: &Target) -> Rc<Pool> {
        self.dialer.pool(target)
    }

    /// A new connection for an exchange that drives it itself.
    pub(super) async fn dial_direct(&self, target: &Target) -> Result<Direct, Refusal> {
        self.dialer.dial_direct(target).await
    }

    /// Takes one back that has served whole.
    pub(super) fn keep_direct(&self, pool: &Pool, direct: Direct) {
        self.dialer.keep_direct(pool, direct);
    }

    /// The pace of an exchange that begins now.
    pub(super) fn pace(&self, slot: &Slot) -> Pace {
        let end = self.total.map_or(Moment::NEVER, |total| self.dialer.ticker().after(total));
        let pace = Pace { deadline: slot.deadline.clone(), idle: self.idle, end };
        pace.progress();
        pace
    }

    async fn connected(&self, pool: &Rc<Pool>, target: &Target) -> Result<Connected, Refusal> {
        match pool.ready(&self.dialer).await {
            Some(connected) => Ok(connected),
            None => self.dialer.dial(pool, target).await,
        }
    }

    fn lease(
        &self,
        connected: Connected,
        pool: Rc<Pool>,
        upload: Option<Rc<Upload>>,
        held: u64,
        grant: &Grant,
    ) -> Lease {
        let pace = self.pace(&connected.slot);
        connected.slot.begin(grant);
        if let Some(upload) = &upload {
            upload.paced(&pace);
        }
        Lease { connected: Some(connected), pool, pace, upload, held }
    }
}

impl Failure {
    fn sent(error: TrySendError<Request<RequestBody>>) -> Self {
        Self::Sent(Box::new(error))
    }

    /// The request, when the server has not looked at it, and whether the connection is gone for others too.
    fn untouched(&mut self, kept: bool, spare: Option<Box<Spare>>) -> Option<(Request<RequestBody>, bool)> {
        let Self::Sent(error) = self else { return None };
        if let Some(request) = error.take_message() {
            return kept.then_some((request, true));
        }
        let cause = error.error().source()?.downcast_ref::<h2::Error>()?;
        let refused = cause.is_remote()
            && match cause.reason()? {
                Reason::REFUSED_STREAM => cause.is_reset(),
                // Said of streams above the last one that the server took (RFC 9113 §6.8).
                Reason::NO_ERROR => cause.is_go_away(),
                _ => false,
            };
        spare.filter(|_| refused).map(|spare| (spare.into_request(), cause.is_go_away()))
    }
}

impl Spare {
    fn of(request: &Request<RequestBody>) -> Option<Self> {
        let body = request.body().again()?;
        let (method, uri) = (request.method().clone(), request.uri().clone());
        Some(Self { method, uri, headers: request.headers().clone(), body })
    }

    fn into_request(self) -> Request<RequestBody> {
        let mut request = Request::new(self.body);
        *request.method_mut() = self.method;
        *request.uri_mut() = self.uri;
        *request.headers_mut() = self.headers;
        request
    }
}

impl Lease {
    async fn send(
        &mut self,
        mut request: Request<RequestBody>,
        base: &Base,
    ) -> Result<(Result<Response<Incoming>, Failure>, Option<Box<Spare>>), Refusal> {
        let connected = self.connected.as_mut().expect("a lease has its connection until it is given back");
        match &mut connected.link {
            Link::Alone(sender) => {
                if request.uri().authority().is_some() {
                    outbound::to_http1(&mut request, base);
                }
                Ok((sender.try_send_request(request).await.map_err(Failure::sent), None))
            }
            Link::Shared(seat) => {
                outbound::to_http2(&mut request, base)?;
                let spare = Spare::of(&request).map(Box::new);
                let mut answer = pin!(seat.sender().try_send_request(request));
                let deadline = &connected.slot.deadline;
                let result = poll_fn(|cx| match answer.as_mut().poll(cx) {
                    Poll::Ready(result) => Poll::Ready(result.map_err(Failure::sent)),
                    Poll::Pending => deadline.poll_passed(cx).map(|()| Err(Failure::Late)),
                })
                .await;
                Ok((result, spare))
            }
        }
    }

    /// Takes no more requests to its connection of HTTP/2; those that are on it go on.
    fn forget(&self) {
        if let Some(Connected { link: Link::Shared(seat), .. }) = &self.connected {
            self.pool.forget(seat);
        }
    }

    fn is_shared(&self) -> bool {
        self.connected.as_ref().is_some_and(|connected| matches!(connected.link, Link::Shared(_)))
    }

    /// Ready when the exchange has taken too long; a connection of its own is cut by whoever drives it.
    pub(super) fn poll_late(&self, cx: &mut Context<'_>) -> Poll<()> {
        match &self.connected {
            Some(Connected { link: Link::Shared(_), slot }) => slot.deadline.poll_passed(cx),
            _ => Poll::Pending,
        }
    }

    /// Ready when a WebSocket has been silent for too long, or may not go on.
    pub(super) fn poll_passed(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.pace.deadline.poll_passed(cx)
    }

    /// More of the answer went by.
    pub(super) fn progress(&self) {
        self.pace.progress();
    }

    /// Bytes of the request's body that went by.
    pub(super) fn sent(&self) -> u64 {
        self.upload.as_ref().map_or(self.held, |upload| upload.sent())
    }

    /// The answer ended whole: the connection may serve again, unless some of the request is still unsent.
    pub(super) fn give_back(mut self) {
        let whole = self.upload.as_ref().is_none_or(|upload| upload.state() == State::Done);
        if whole && let Some(connected) = self.connected.take_if(|connected| connected.is_alone_and_open()) {
            connected.slot.end();
            self.pool.put(connected);
        }
    }

    /// What a failed exchange was.
    fn failed(&self, target: &Target, failure: Failure) -> Refusal {
        let upload = self.upload.as_ref().map(|upload| upload.state());
        let withdrawn = self.connected.as_ref().is_some_and(|connected| connected.slot.is_withdrawn());
        let error = match failure {
            Failure::Sent(error) => Some(error.into_error()),
            Failure::Late => None,
        };
        let refusal = match upload {
            _ if withdrawn => Refusal::Withdrawn,
            Some(State::TooLarge) => Refusal::PayloadTooLarge,
            Some(State::Broken) => Refusal::BadRequest("The request's body ended before its end."),
            Some(State::Waiting) if self.pace.deadline.passed() => Refusal::Timeout,
            _ if self.pace.deadline.passed() => Refusal::UpstreamTimeout,
            _ if error.as_ref().is_some_and(is_invalid) => Refusal::UpstreamInvalid,
            _ => Refusal::UpstreamUnreachable,
        };
        let error = error.map_or_else(|| "too late".to_owned(), |error| error.to_string());
        tracing::info!(target.slug = %target.slug, %error, "a target gave no answer");
        refusal
    }
}

/// Whether what came back is no HTTP.
fn is_invalid(error: &hyper::Error) -> bool {
    let http2 = error.source().and_then(|cause| cause.downcast_ref::<h2::Error>());
    error.is_parse() || http2.is_some_and(h2::Error::is_library)
}

impl Drop for Lease {
    fn drop(&mut self) {
        let Some(connected) = self.connected.take() else { return };
        connected.slot.end();
        match connected.link {
            Link::Alone(_) => connected.slot.deadline.pass(),
            // The stream goes with the answer; what is still to be sent would not notice.
            Link::Shared(_) => {
                if let Some(upload) = &self.upload {
                    upload.abandon();
                }
            }
        }
    }
}
