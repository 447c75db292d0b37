//! Connections to upstreams: one pool per worker and target, last used first, without locks. Each connection has one coarse
//! deadline that serves all its life: the wait for an answer's head, pauses in bodies, the time it may idle.
//!
//! ```text
//!            take                       whole, clean exchange
//!  pool ───────────▶ lease ── send ──▶ reply body ─────────────▶ pool
//!   ▲ or dial           │ anything else: the connection is cut
//! ```

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use hyper::client::conn::http1::{Builder, Connection, SendRequest};
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;

use super::Refusal;
use super::outbound::Outbound;
use super::upload::{RequestBody, State, Upload};
use crate::access::Target;
use crate::catalog::Base;
use crate::config::{Limits, Timeouts};
use crate::ids::TargetId;
use crate::net::{Deadline, Guard, Moment, Ticker, Ticks};

/// Idle connections kept per target and worker: as many as were needed at once in the last minute, up to this.
const IDLE: usize = 512;
/// How long one is kept: less than the minute after which many servers close theirs.
const KEPT: Duration = Duration::from_secs(55);
/// What hyper may hold of an answer.
const BUFFER: usize = 128 * 1024;
/// Pools from which empty ones are cleared away.
const POOLS: usize = 1024;

/// The upstreams of one worker.
pub(super) struct Upstreams {
    guard: Arc<Guard>,
    tls: TlsConnector,
    http: Builder,
    connect: Duration,
    handshake: Duration,
    idle: Ticks,
    /// Bytes of a request body in each idle time.
    least: u64,
    total: Option<Ticks>,
    kept: Ticks,
    ticker: Ticker,
    pools: RefCell<HashMap<TargetId, Rc<Pool>>>,
    clear_at: Cell<usize>,
}

/// Idle connections of one target. A target whose base changes gets a new pool; the old one goes with its last lease.
struct Pool {
    https: bool,
    host: Box<str>,
    port: u16,
    kept: Ticks,
    idle: RefCell<Vec<Connected>>,
}

struct Connected {
    sender: SendRequest<RequestBody>,
    deadline: Deadline,
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
}

impl Upstreams {
    pub(super) fn new(guard: Arc<Guard>, tls: Arc<rustls::ClientConfig>, limits: &Limits, timeouts: &Timeouts) -> Self {
        let mut http = Builder::new();
        http.max_header_size(limits.head).max_buf_size(limits.head.max(BUFFER));
        // hyper's own limit is 100, and the cheapest.
        if limits.headers > 100 {
            http.max_headers(limits.headers);
        }
        Self {
            guard,
            tls: TlsConnector::from(tls),
            http,
            connect: timeouts.connect,
            handshake: timeouts.handshake,
            idle: Ticks::of(timeouts.idle),
            least: limits.request_body_rate.unwrap_or(0).saturating_mul(timeouts.idle.as_secs()).max(1),
            total: timeouts.total.map(Ticks::of),
            kept: Ticks::of(KEPT),
            ticker: Ticker::new(),
            pools: RefCell::default(),
            clear_at: Cell::new(POOLS),
        }
    }

    /// Takes a request's body in hand; waits for a small one.
    pub(super) async fn take_body(&self, incoming: Incoming, limit: Option<u64>) -> Result<RequestBody, Refusal> {
        RequestBody::take(incoming, limit, self.least, &self.ticker, self.idle).await
    }

    /// Sends a request and waits for the answer's head. Sent at most once: the only second try is for a request that
    /// hyper gives back untouched because a kept connection had died.
    pub(super) async fn send(&self, outbound: Outbound) -> Result<Reply, Refusal> {
        let Outbound { target, request, upload, held } = outbound;
        let held = held.unwrap_or(0);
        let pool = self.pool(&target);
        let (mut lease, kept) = match pool.ready().await {
            Some(connected) => (self.lease(connected, Rc::clone(&pool), upload.clone(), held), true),
            None => (self.lease(self.dial(&target).await?, Rc::clone(&pool), upload.clone(), held), false),
        };
        let mut result = lease.send(request).await;
        if kept
            && let Err(error) = &mut result
            && let Some(request) = error.take_message()
        {
            lease = self.lease(self.dial(&target).await?, pool, upload, held);
            result = lease.send(request).await;
        }
        match result {
            // We never offered to switch protocols.
            Ok(response) if response.status() == StatusCode::SWITCHING_PROTOCOLS => Err(Refusal::UpstreamInvalid),
            Ok(response) => {
                lease.pace.progress();
                Ok(Reply { response, lease, target })
            }
            Err(error) => Err(lease.failed(&target, &error.into_error())),
        }
    }

    fn lease(&self, connected: Connected, pool: Rc<Pool>, upload: Option<Rc<Upload>>, held: u64) -> Lease {
        let end = self.total.map_or(Moment::NEVER, |total| self.ticker.after(total));
        let pace = Pace { deadline: connected.deadline.clone(), idle: self.idle, end };
        pace.progress();
        if let Some(upload) = &upload {
            upload.paced(&pace);
        }
        Lease { connected: Some(connected), pool, pace, upload, held }
    }

    fn pool(&self, target: &Target) -> Rc<Pool> {
        let mut pools = self.pools.borrow_mut();
        if let Some(pool) = pools.get(&target.id)
            && pool.leads_to(&target.base)
        {
            return Rc::clone(pool);
        }
        if pools.len() >= self.clear_at.get() {
            pools.retain(|_, pool| Rc::strong_count(pool) > 1 || pool.alive());
            self.clear_at.set(POOLS.max(pools.len() * 2));
        }
        let pool = Rc::new(Pool {
            https: target.base.https,
            host: target.base.host.clone(),
            port: target.base.port,
            kept: self.kept,
            idle: RefCell::default(),
        });
        pools.insert(target.id, Rc::clone(&pool));
        pool
    }

    async fn dial(&self, target: &Target) -> Result<Connected, Refusal> {
        let base = &target.base;
        let tcp = self.guard.dial(&base.host, base.port, self.connect).await.map_err(|error| {
            tracing::info!(target.slug = %target.slug, %error, "connecting to a target failed");
            Refusal::from(error)
        })?;
        if !base.https {
            return self.open(tcp).await;
        }
        let failed = |error: &dyn std::fmt::Display| {
            tracing::info!(target.slug = %target.slug, %error, "the TLS handshake with a target failed");
            Refusal::UpstreamUnreachable
        };
        let name = ServerName::try_from(base.host.to_string()).map_err(|error| failed(&error))?;
        match tokio::time::timeout(self.handshake, self.tls.connect(name, tcp)).await {
            Ok(Ok(tls)) => self.open(tls).await,
            Ok(Err(error)) => Err(failed(&error)),
            Err(_elapsed) => Err(Refusal::UpstreamTimeout),
        }
    }

    async fn open<T>(&self, io: T) -> Result<Connected, Refusal>
    where
        T: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        let handshake = self.http.handshake(TokioIo::new(io)).await;
        let (sender, connection) = handshake.map_err(|_| Refusal::UpstreamUnreachable)?;
        let deadline = self.ticker.deadline();
        tokio::task::spawn_local(drive(connection, deadline.clone()));
        Ok(Connected { sender, deadline })
    }
}

/// Moves a connection's bytes until it ends or its deadline passes. Ending early makes whoever waits on it see an error.
async fn drive<T>(mut connection: Connection<TokioIo<T>, RequestBody>, deadline: Deadline)
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    poll_fn(|cx| {
        if deadline.poll_passed(cx).is_ready() {
            return Poll::Ready(());
        }
        Pin::new(&mut connection).poll(cx).map(|ended| {
            if let Err(error) = ended {
                tracing::debug!(%error, "a connection to a target ended");
            }
        })
    })
    .await;
}

impl Pool {
    fn leads_to(&self, base: &Base) -> bool {
        self.port == base.port && self.https == base.https && self.host == base.host
    }

    fn alive(&self) -> bool {
        self.idle.borrow().iter().any(|connected| !connected.sender.is_closed())
    }

    /// A kept connection that can take a request now.
    async fn ready(&self) -> Option<Connected> {
        loop {
            let mut connected = self.pop()?;
            // Not ready yet means: whole, but its task has not run since.
            if connected.sender.is_ready() || connected.sender.ready().await.is_ok() {
                return Some(connected);
            }
        }
    }

    fn pop(&self) -> Option<Connected> {
        let mut idle = self.idle.borrow_mut();
        loop {
            let connected = idle.pop()?;
            if !connected.sender.is_closed() && !connected.deadline.passed() {
                return Some(connected);
            }
        }
    }

    fn put(&self, connected: Connected) {
        let mut idle = self.idle.borrow_mut();
        if idle.len() >= IDLE {
            idle.retain(|connected| !connected.sender.is_closed());
        }
        if idle.len() < IDLE {
            connected.deadline.arm(self.kept);
            idle.push(connected);
        } else {
            connected.deadline.pass();
        }
    }
}

impl Lease {
    async fn send(
        &mut self,
        request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, TrySendError<Request<RequestBody>>> {
        let connected = self.connected.as_mut().expect("a lease has its connection until it is given back");
        connected.sender.try_send_request(request).await
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
        if whole && let Some(connected) = self.connected.take_if(|connected| !connected.sender.is_closed()) {
            self.pool.put(connected);
        }
    }

    /// What a failed exchange was.
    fn failed(&self, target: &Target, error: &hyper::Error) -> Refusal {
        let upload = self.upload.as_ref().map(|upload| upload.state());
        let refusal = match upload {
            Some(State::TooLarge) => Refusal::PayloadTooLarge,
            Some(State::Broken) => Refusal::BadRequest("The request's body ended before its end."),
            Some(State::Waiting) if self.pace.deadline.passed() => Refusal::Timeout,
            _ if self.pace.deadline.passed() => Refusal::UpstreamTimeout,
            _ if error.is_parse() => Refusal::UpstreamInvalid,
            _ => Refusal::UpstreamUnreachable,
        };
        tracing::info!(target.slug = %target.slug, %error, "a target gave no answer");
        refusal
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(connected) = self.connected.take() {
            connected.deadline.pass();
        }
    }
}
