//! Connections to upstreams, by target: those of HTTP/1.1 that idle, last used first, and the one of HTTP/2 that all exchanges
//! of a worker share. What a connection belongs to is the target as it was when it was made: where it leads, whose
//! credential goes over it, which TLS it has.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{Notify, oneshot};
use tokio::task::yield_now;
use tokio::time::MissedTickBehavior;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::Refusal;
use super::running::{Running, Slot, Upheld};
use super::upload::RequestBody;
use super::websocket::Switched;
use crate::access::Target;
use crate::clock::Timestamp;
use crate::config::{Limits, Timeouts};
use crate::ids::TargetId;
use crate::net::{ClientTls, Deadline, Guard, LocalTasks, Stream, Ticker, Ticks};

/// Idle connections kept per target and worker: as many as were needed at once in the last minute, up to this.
const IDLE: usize = 512;
/// How long one is kept: less than the minute after which many servers close theirs.
const KEPT: Duration = Duration::from_secs(55);
/// Between two looks at the direct ones.
const SWEEP: Duration = Duration::from_secs(5);
/// What hyper may hold of an answer.
const BUFFER: usize = 128 * 1024;
/// Pools from which empty ones are cleared away.
const POOLS: usize = 1024;
/// Bytes of answers that an upstream may send ahead, on a stream and on a connection of HTTP/2.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;
/// A silent connection with streams is asked whether it is still there.
const PING: Duration = Duration::from_secs(30);
const PONG: Duration = Duration::from_secs(15);

/// Makes connections, and keeps them by target.
pub(super) struct Dialer {
    guard: Arc<Guard>,
    tls: ClientTls,
    http1: http1::Builder,
    http2: http2::Builder<LocalTasks>,
    connect: Duration,
    handshake: Duration,
    kept: Ticks,
    ticker: Ticker,
    running: Running,
    pools: Rc<Pools>,
    sweeping: Rc<Cell<bool>>,
    clear_at: Cell<usize>,
}

type Pools = RefCell<HashMap<TargetId, Rc<Pool>>>;

/// The connections of one target. A target that changes gets a new pool; the old one goes with its last lease.
pub(super) struct Pool {
    https: bool,
    host: Box<str>,
    port: u16,
    http1_only: bool,
    tls: Option<ClientTls>,
    changed: Timestamp,
    kept: Ticks,
    idle: RefCell<Vec<Connected>>,
    direct: RefCell<Vec<Direct>>,
    shared: RefCell<Option<Rc<Shared>>>,
    /// Somebody is finding out whether the target speaks HTTP/2.
    dialing: Cell<bool>,
    dialed: Notify,
    /// It did not, the last time.
    alone: Cell<bool>,
}

/// A connection in use, or one that could be.
pub(super) struct Connected {
    pub(super) link: Link,
    pub(super) slot: Rc<Slot>,
}

/// A connection of HTTP/1.1 whose bytes an exchange reads and writes by itself.
pub(super) struct Direct {
    pub(super) io: Box<dyn Stream>,
    pub(super) slot: Rc<Slot>,
}

impl Direct {
    /// Whether nothing came while nothing was asked: no end, and no answer to a question that was never put.
    fn is_quiet(&mut self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        let mut space = [0u8; 1];
        let mut byte = ReadBuf::new(&mut space);
        !self.slot.deadline.passed() && Pin::new(&mut self.io).poll_read(&mut cx, &mut byte).is_pending()
    }
}

/// What a request goes over.
pub(super) enum Link {
    /// A connection of HTTP/1.1.
    Alone(http1::SendRequest<RequestBody>),
    /// A place on one of HTTP/2.
    Shared(Seat),
}

/// A connection of HTTP/2.
pub(super) struct Shared {
    sender: http2::SendRequest<RequestBody>,
    seats: Cell<usize>,
    deadline: Deadline,
    kept: Ticks,
}

/// An exchange's part in a connection of HTTP/2; an empty connection is kept for a while.
pub(super) struct Seat(Rc<Shared>);

impl Seat {
    fn take(shared: Rc<Shared>) -> Self {
        shared.seats.set(shared.seats.get() + 1);
        shared.deadline.disarm();
        Self(shared)
    }

    pub(super) fn sender(&self) -> http2::SendRequest<RequestBody> {
        self.0.sender.clone()
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let seats = self.0.seats.get() - 1;
        self.0.seats.set(seats);
        if seats == 0 {
            self.0.deadline.arm(self.0.kept);
        }
    }
}

impl Connected {
    pub(super) fn is_alone_and_open(&self) -> bool {
        matches!(&self.link, Link::Alone(sender) if !sender.is_closed())
    }
}

/// A connection before any byte of HTTP.
enum Opened {
    Clear(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Opened {
    fn into_stream(self) -> Box<dyn Stream> {
        match self {
            Self::Clear(tcp) => Box::new(tcp),
            Self::Tls(tls) => tls,
        }
    }
}

impl Dialer {
    pub(super) fn new(guard: Arc<Guard>, tls: ClientTls, upheld: Upheld, limits: &Limits, timeouts: &Timeouts) -> Self {
        let mut http1 = http1::Builder::new();
        http1.max_header_size(limits.head).max_buf_size(limits.head.max(BUFFER));
        // hyper's own limit is 100, and the cheapest.
        if limits.headers > 100 {
            http1.max_headers(limits.headers);
        }
        let mut http2 = http2::Builder::new(LocalTasks);
        http2
            .timer(TokioTimer::new())
            // Until the server has said how many streams it takes: one more than that would be refused.
            .initial_max_send_streams(1)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(u32::try_from(limits.head).unwrap_or(u32::MAX))
            .max_send_buf_size(BUFFER)
            .keep_alive_interval(PING)
            .keep_alive_timeout(PONG);
        Self {
            guard,
            tls,
            http1,
            http2,
            connect: timeouts.connect,
            handshake: timeouts.handshake,
            kept: Ticks::of(KEPT),
            ticker: Ticker::new(),
            running: Running::new(upheld),
            pools: Rc::default(),
            sweeping: Rc::default(),
            clear_at: Cell::new(POOLS),
        }
    }

    pub(super) fn ticker(&self) -> &Ticker {
        &self.ticker
    }

    /// The pool of a target as it is now.
    pub(super) fn pool(&self, target: &Target) -> Rc<Pool> {
        let mut pools = self.pools.borrow_mut();
        if let Some(pool) = pools.get(&target.id)
            && pool.belongs_to(target)
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
            http1_only: target.transport.http1_only,
            tls: target.tls.clone(),
            changed: target.changed,
            kept: self.kept,
            idle: RefCell::default(),
            direct: RefCell::default(),
            shared: RefCell::default(),
            dialing: Cell::new(false),
            dialed: Notify::new(),
            alone: Cell::new(false),
        });
        pools.insert(target.id, Rc::clone(&pool));
        pool
    }

    fn slot(&self) -> Rc<Slot> {
        self.running.slot(self.ticker.deadline())
    }

    fn seat(&self, shared: Rc<Shared>) -> Connected {
        Connected { link: Link::Shared(Seat::take(shared)), slot: self.slot() }
    }

    /// A new connection; over HTTP/2, a place on the one that somebody else may be making already.
    pub(super) async fn dial(&self, pool: &Rc<Pool>, target: &Target) -> Result<Connected, Refusal> {
        let may_share = pool.https && !pool.http1_only;
        let mut dialing = None;
        if may_share && !pool.alone.get() {
            if pool.dialing.get() {
                pool.dialed.notified().await;
                if let Some(shared) = pool.shared() {
                    return Ok(self.seat(shared));
                }
            }
            dialing = Some(Dialing::begin(pool));
        }
        let opened = self.open(target, may_share).await?;
        let connected = match opened {
            Opened::Clear(tcp) => self.alone(tcp).await?,
            Opened::Tls(tls) if tls.get_ref().1.alpn_protocol() == Some(b"h2") => {
                let shared = self.share(*tls).await?;
                pool.alone.set(false);
                self.seat(pool.adopt(shared))
            }
            Opened::Tls(tls) => {
                pool.alone.set(true);
                self.alone(*tls).await?
            }
        };
        drop(dialing);
        Ok(connected)
    }

    /// TCP, and TLS when the target has it.
    async fn open(&self, target: &Target, http2: bool) -> Result<Opened, Refusal> {
        let base = &target.base;
        let tcp = self.guard.dial(&base.host, base.port, self.connect).await.map_err(|error| {
            tracing::info!(target.slug = %target.slug, %error, "connecting to a target failed");
            Refusal::from(error)
        })?;
        if !base.https {
            return Ok(Opened::Clear(tcp));
        }
        let failed = |error: &dyn std::fmt::Display| {
            tracing::info!(target.slug = %target.slug, %error, "the TLS handshake with a target failed");
            Refusal::UpstreamUnreachable
        };
        let name = ServerName::try_from(base.host.to_string()).map_err(|error| failed(&error))?;
        let tls = target.tls.as_ref().unwrap_or(&self.tls);
        let config = if http2 { tls.http2() } else { tls.http1() };
        let connecting = TlsConnector::from(Arc::clone(config)).connect(name, tcp);
        match tokio::time::timeout(self.handshake, connecting).await {
            Ok(Ok(tls)) => Ok(Opened::Tls(Box::new(tls))),
            Ok(Err(error)) => Err(failed(&error)),
            Err(_elapsed) => Err(Refusal::UpstreamTimeout),
        }
    }

    /// A new connection for an exchange that drives it itself.
    pub(super) async fn dial_direct(&self, target: &Target) -> Result<Direct, Refusal> {
        Ok(Direct { io: self.open(target, false).await?.into_stream(), slot: self.slot() })
    }

    /// Takes one back that has served whole, and sees to it that it does not stay for ever.
    pub(super) fn keep_direct(&self, pool: &Pool, direct: Direct) {
        let mut kept = pool.direct.borrow_mut();
        if kept.len() >= IDLE {
            return;
        }
        direct.slot.end();
        direct.slot.deadline.arm(self.kept);
        kept.push(direct);
        if !self.sweeping.replace(true) {
            tokio::task::spawn_local(sweep(Rc::downgrade(&self.pools), Rc::clone(&self.sweeping)));
        }
    }

    async fn alone<T>(&self, io: T) -> Result<Connected, Refusal>
    where
        T: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        let handshake = self.http1.handshake(TokioIo::new(io)).await;
        let (sender, connection) = handshake.map_err(|_| Refusal::UpstreamUnreachable)?;
        let slot = self.slot();
        tokio::task::spawn_local(drive(connection, slot.deadline.clone()));
        Ok(Connected { link: Link::Alone(sender), slot })
    }

    /// A connection of HTTP/1.1 that nobody else will use, and what becomes of it after a 101.
    pub(super) async fn dial_to_switch(&self, target: &Target) -> Result<(Connected, Switched), Refusal> {
        let io = self.open(target, false).await?.into_stream();
        let handshake = self.http1.handshake(TokioIo::new(io)).await;
        let (sender, connection) = handshake.map_err(|_| Refusal::UpstreamUnreachable)?;
        let (slot, (done, switched)) = (self.slot(), oneshot::channel());
        let deadline = slot.deadline.clone();
        tokio::task::spawn_local(async move {
            let mut connection = connection;
            let ended = poll_fn(|cx| {
                if deadline.poll_passed(cx).is_ready() {
                    return Poll::Ready(false);
                }
                Pin::new(&mut connection).poll(cx).map(|ended| ended.is_ok())
            })
            .await;
            if ended {
                let parts = connection.into_parts();
                let _ = done.send((parts.io.into_inner(), parts.read_buf));
            }
        });
        Ok((Connected { link: Link::Alone(sender), slot }, switched))
    }

    async fn share<T>(&self, io: T) -> Result<Shared, Refusal>
    where
        T: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        let handshake = self.http2.handshake(TokioIo::new(io)).await;
        let (sender, connection) = handshake.map_err(|_| Refusal::UpstreamUnreachable)?;
        let deadline = self.ticker.deadline();
        tokio::task::spawn_local(drive(connection, deadline.clone()));
        Ok(Shared { sender, seats: Cell::new(0), deadline, kept: self.kept })
    }
}

/// Moves a connection's bytes until it ends or its deadline passes. Ending early makes whoever waits on it see an error.
async fn drive(connection: impl Future<Output = hyper::Result<()>>, deadline: Deadline) {
    let mut connection = pin!(connection);
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

/// Lets go of direct connections that nobody drives while they idle: those whose time is up, and those that were closed at
/// the other end. Ends when none is left.
async fn sweep(pools: Weak<Pools>, sweeping: Rc<Cell<bool>>) {
    let mut interval = tokio::time::interval(SWEEP);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        let Some(pools) = pools.upgrade() else { return };
        let mut left = 0;
        for pool in pools.borrow().values() {
            let mut direct = pool.direct.borrow_mut();
            direct.retain_mut(Direct::is_quiet);
            left += direct.len();
        }
        if left == 0 {
            sweeping.set(false);
            return;
        }
    }
}

/// Others wait for what this one finds out.
struct Dialing(Rc<Pool>);

impl Dialing {
    fn begin(pool: &Rc<Pool>) -> Self {
        pool.dialing.set(true);
        Self(Rc::clone(pool))
    }
}

impl Drop for Dialing {
    fn drop(&mut self) {
        self.0.dialing.set(false);
        self.0.dialed.notify_waiters();
    }
}

impl Pool {
    fn belongs_to(&self, target: &Target) -> bool {
        let base = &target.base;
        let same_tls = match (&self.tls, &target.tls) {
            (None, None) => true,
            (Some(ours), Some(theirs)) => ours.is(theirs),
            _ => false,
        };
        let same_place = self.port == base.port && self.https == base.https && self.host == base.host;
        same_place && same_tls && self.http1_only == target.transport.http1_only && self.changed == target.changed
    }

    fn alive(&self) -> bool {
        self.shared().is_some()
            || !self.direct.borrow().is_empty()
            || self.idle.borrow().iter().any(Connected::is_alone_and_open)
    }

    fn shared(&self) -> Option<Rc<Shared>> {
        let shared = self.shared.borrow();
        shared.as_ref().filter(|shared| !shared.sender.is_closed() && !shared.deadline.passed()).map(Rc::clone)
    }

    /// Whether it is known to speak HTTP/1.1 and nothing newer.
    pub(super) fn is_old(&self) -> bool {
        !self.https || self.http1_only || self.alone.get()
    }

    /// A direct connection that can take a request now.
    pub(super) fn direct(&self) -> Option<Direct> {
        let mut kept = self.direct.borrow_mut();
        while let Some(mut direct) = kept.pop() {
            if direct.is_quiet() {
                return Some(direct);
            }
        }
        None
    }

    /// Keeps a new connection of HTTP/2, unless somebody else's came first.
    fn adopt(&self, shared: Shared) -> Rc<Shared> {
        self.shared().unwrap_or_else(|| {
            let shared = Rc::new(shared);
            *self.shared.borrow_mut() = Some(Rc::clone(&shared));
            shared
        })
    }

    /// Takes no more requests to this connection of HTTP/2.
    pub(super) fn forget(&self, seat: &Seat) {
        self.shared.borrow_mut().take_if(|shared| Rc::ptr_eq(shared, &seat.0));
    }

    /// A connection that can take a request now.
    pub(super) async fn ready(&self, dialer: &Dialer) -> Option<Connected> {
        if let Some(shared) = self.shared() {
            return Some(dialer.seat(shared));
        }
        loop {
            let connected = self.pop()?;
            let Link::Alone(sender) = &connected.link else { continue };
            if !sender.is_ready() {
                // Its task has not run since the last answer ended.
                yield_now().await;
            }
            if sender.is_ready() {
                return Some(connected);
            }
            // The upstream answered before it took all of the last request, and may never take the rest.
            connected.slot.deadline.pass();
        }
    }

    fn pop(&self) -> Option<Connected> {
        let mut idle = self.idle.borrow_mut();
        loop {
            let connected = idle.pop()?;
            if connected.is_alone_and_open() && !connected.slot.deadline.passed() {
                return Some(connected);
            }
        }
    }

    pub(super) fn put(&self, connected: Connected) {
        let mut idle = self.idle.borrow_mut();
        if idle.len() >= IDLE {
            idle.retain(Connected::is_alone_and_open);
        }
        if idle.len() < IDLE {
            connected.slot.deadline.arm(self.kept);
            idle.push(connected);
        } else {
            connected.slot.deadline.pass();
        }
    }
}
