//! The agent listener: one [`Gateway`] per worker thread. A request is read, its agent identified, decided on, given a
//! credential and sent on; the answer streams back with the request's receipt riding on it. Called by `app.rs` through
//! [`net::serve`](crate::net::serve).
//!
//! Not here: what a key may do (`access`), how a token is had (`accounts`), how records are written (`audit`).

mod body;
mod bootstrap;
mod call;
mod fast;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod headers;
mod key;
mod load;
mod outbound;
mod path;
mod pool;
mod reflect;
mod refusal;
mod running;
mod upload;
mod upstream;
mod websocket;
#[cfg(test)]
mod wire_tests;

pub use body::{ReplyBody, ReplyError};

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::{Bytes, BytesMut};
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version};
use hyper::body::Incoming;

use self::call::{Call, Place};
use self::load::{Load, UnderWay};
use self::outbound::{Again, Outbound};
use self::refusal::{REQUEST_ID, Refusal};
use self::upstream::{Reply, Upstreams};
use crate::access::{Access, Agent, Caller, Credential, Grant, Target, Verdict};
use crate::accounts::{Accounts, Bearer, TokenError};
use crate::audit::{self, Audit, Receipt};
use crate::clock::Clock;
use crate::config::{Limits, Timeouts};
use crate::ids::RequestId;
use crate::net::{Buffers, ClientTls, Guard, Line, Peer};
use crate::shutdown::Shutdown;
use crate::store::Store;
use crate::telemetry::Metrics;

/// What the gateways of all workers share.
pub struct Shared {
    /// Keys, grants, targets.
    pub access: Arc<Access>,
    /// Tokens.
    pub accounts: Arc<Accounts>,
    /// The audit trail.
    pub audit: Audit,
    /// Read by bootstrap only, and only on the main runtime.
    pub store: Store,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Where connections may go.
    pub guard: Arc<Guard>,
    /// TLS to upstreams that have none of their own.
    pub tls: ClientTls,
    /// Wall time.
    pub clock: Clock,
    /// `[proxy.limits]`.
    pub limits: Limits,
    /// `[proxy.timeouts]`.
    pub timeouts: Timeouts,
    /// How many gateways there are.
    pub workers: usize,
    /// How agents reach this listener; without a trailing slash.
    pub public_url: String,
    /// How people reach the other one; without a trailing slash.
    pub admin_url: String,
    /// Whether everything is up.
    pub ready: Arc<AtomicBool>,
    /// The process's end.
    pub shutdown: Shutdown,
}

/// The gateway of one worker thread. Must be used inside a `LocalRuntime` or `LocalSet`.
pub struct Gateway {
    shared: Arc<Shared>,
    upstreams: Upstreams,
    load: Load,
    buffers: Buffers,
}

impl Gateway {
    /// A gateway with no connections yet.
    #[must_use]
    pub fn new(shared: Arc<Shared>) -> Self {
        let (guard, tls) = (Arc::clone(&shared.guard), shared.tls.clone());
        let (access, clock) = (Arc::clone(&shared.access), shared.clock.clone());
        let upheld = move |grant: &Grant| access.snapshot().is_ok_and(|policy| policy.upholds(grant, clock.now()));
        let upstreams = Upstreams::new(guard, tls, Box::new(upheld), &shared.limits, &shared.timeouts);
        let load = Load::new(shared.limits.requests.div_ceil(shared.workers));
        Self { shared, upstreams, load, buffers: Buffers::default() }
    }

    /// Answers one request. Every answer carries `Keyward-Request-Id`; Keyward's own refusals carry `Keyward-Error`.
    pub async fn serve(&self, request: Request<Incoming>, line: Line) -> Response<ReplyBody> {
        let path = request.uri().path();
        if let Some(place) = Place::of(path) {
            return self.proxied(request, place, line).await;
        }
        if matches!(path, "/bootstrap" | "/verify") {
            return self.told(request, &line).await;
        }
        if let Err(refusal) = refuse_method(request.method()).and_then(|()| call::check_form(request.uri())) {
            return self.refuse(&refusal, None);
        }
        match path {
            "/healthz" => plain(StatusCode::OK, "ok"),
            "/readyz" if self.is_ready() => plain(StatusCode::OK, "ready"),
            "/readyz" => plain(StatusCode::SERVICE_UNAVAILABLE, "not_ready"),
            _ => self.refuse(&Refusal::NotFound, None),
        }
    }

    fn is_ready(&self) -> bool {
        self.shared.ready.load(Ordering::Acquire) && !self.shared.shutdown.is_stopping()
    }

    async fn proxied(&self, request: Request<Incoming>, place: Place, line: Line) -> Response<ReplyBody> {
        let Some(under_way) = self.load.enter() else { return self.shed() };
        let Ok(mut receipt) = self.shared.audit.open(request.method()).await else {
            return self.refuse(&Refusal::AuditUnavailable, None);
        };
        match self.forward(request, place, line.peer(), &mut receipt).await {
            Ok((reply, bearer)) => answer(reply, &bearer, receipt, under_way, &line),
            Err(refusal) => {
                let mut response = self.refuse(&refusal, Some(receipt));
                response.body_mut().keep(under_way);
                response
            }
        }
    }

    /// Refuses a request because too many are under way: unrecorded, because even that costs something.
    fn shed(&self) -> Response<ReplyBody> {
        self.shared.metrics.requests_shed.inc();
        self.refuse(&Refusal::Overloaded, None)
    }

    /// The way of a request, in the order in which things are decided. Each step takes what the one before made.
    /// The answer, and the credential that it must not tell.
    async fn forward(
        &self,
        request: Request<Incoming>,
        place: Place,
        peer: Peer,
        receipt: &mut Receipt,
    ) -> Result<(Reply, Bearer), Refusal> {
        note(receipt, &request, &place);
        refuse_method(request.method())?;
        let call = Call::parse(request, place, peer, &self.shared.limits)?;
        let grant = self.decide(&call, receipt)?;
        let (line, headers, incoming) = call.into_parts();
        let body = self.upstreams.take_body(incoming, self.shared.limits.request_body).await?;
        let bearer = self.shared.accounts.token(&grant).await?;
        let (outbound, again) = Outbound::build(line, headers, body, &grant, &bearer)?;
        if let Some(room) = &grant.target().room {
            receipt.hold(room.enter(self.shared.timeouts.queue).await?);
        }
        if !outbound.only_reads() {
            receipt.intend().await?;
        }
        let reply = self.upstreams.send(outbound).await?;
        if reply.response.status() == StatusCode::UNAUTHORIZED && bearer.generation() != 0 {
            return self.doubted(reply, grant, bearer, again).await;
        }
        Ok((reply, bearer))
    }

    /// Who asks, and whether they may: on one view of keys and grants, which is let go before anything waits.
    fn decide(&self, call: &Call, receipt: &mut Receipt) -> Result<Grant, Refusal> {
        let policy = self.shared.access.snapshot()?;
        let agent = policy.identify(call.key(), call.from(), self.shared.clock.now())?;
        admit(&agent, receipt)?;
        let line = call.line();
        match policy.verdict(&agent, line.slug(), &line.method, line.path()) {
            Verdict::Allow(grant) => {
                uses(receipt, grant.target());
                if line.handshake.is_some() && !grant.permits_websocket(line.path()) {
                    return Err(Refusal::NotPermitted);
                }
                Ok(grant)
            }
            Verdict::NotPermitted(target) => {
                uses(receipt, &target);
                Err(Refusal::NotPermitted)
            }
            Verdict::TargetNotFound => Err(Refusal::TargetNotFound),
        }
    }

    /// The upstream refused the token: one forced refresh, and the request once more when it is still whole. Otherwise
    /// the 401 is the agent's to see, as is a second one.
    async fn doubted(
        &self,
        refused: Reply,
        grant: Grant,
        bearer: Bearer,
        again: Option<Again>,
    ) -> Result<(Reply, Bearer), Refusal> {
        let accounts = Arc::clone(&self.shared.accounts);
        let generation = bearer.generation();
        let Some(again) = again else {
            // Nobody waits for it: the next request finds the new token.
            self.shared.shutdown.spawn(async move {
                let _ = accounts.doubt(&grant, generation).await;
            });
            return Ok((refused, bearer));
        };
        match accounts.doubt(&grant, generation).await {
            Ok(Some(newer)) => {
                drop(refused);
                let reply = self.upstreams.send(again.with(&newer)?).await?;
                Ok((reply, newer))
            }
            Err(error @ TokenError::Disconnected { .. }) => Err(error.into()),
            Ok(None) | Err(TokenError::Unavailable { .. } | TokenError::Gone) => Ok((refused, bearer)),
        }
    }

    /// The agent behind the key of a request that is not to a target.
    fn identify(&self, headers: &HeaderMap, from: IpAddr, receipt: &mut Receipt) -> Result<Caller, Refusal> {
        let key = key::presented(headers)?;
        let presented = key.as_ref().map_or(&[][..], key::Key::expose);
        let agent = self.shared.access.snapshot()?.identify(presented, from, self.shared.clock.now())?;
        admit(&agent, receipt)?;
        Ok(agent)
    }

    fn refuse(&self, refusal: &Refusal, receipt: Option<Receipt>) -> Response<ReplyBody> {
        let request = receipt.as_ref().map_or_else(RequestId::next, Receipt::request_id);
        let (response, code) = refusal.answer(request, |account| self.shared.accounts.reconnect_url(account));
        fixed(response, request, receipt, Some(code))
    }
}

/// Writes down what is asked for, before anything can refuse it.
fn note(receipt: &mut Receipt, request: &Request<Incoming>, place: &Place) {
    let path = request.uri().path();
    // A slug is short and plain; what is not could hold anything, and a key among it.
    let slug = Some(place.slug(path)).filter(|slug| slug.len() <= 96 && !key::is_in(slug)).unwrap_or_default();
    receipt.asked(request.method(), slug, key::recordable(place.below(path)));
}

/// Writes down who asks, and counts the request against what the key may use up.
fn admit(agent: &Agent, receipt: &mut Receipt) -> Result<(), Refusal> {
    receipt.agent(agent.key, agent.organization);
    if let Some(place) = agent.admit()? {
        receipt.hold(place);
    }
    Ok(())
}

fn uses(receipt: &mut Receipt, target: &Target) {
    if let Credential::Account { account, .. } = &target.credential {
        receipt.account(*account);
    }
}

/// Methods that would show a credential (`TRACE` echoes headers) or make a tunnel, and words that are no methods: an
/// agent key is one to the grammar of HTTP, and would travel on as one.
fn refuse_method(method: &Method) -> Result<(), Refusal> {
    if matches!(*method, Method::CONNECT | Method::TRACE) || method.as_str() == "TRACK" {
        return Err(Refusal::MethodNotAllowed("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"));
    }
    if method.as_str().len() > audit::METHOD_BYTES {
        return Err(Refusal::NotImplemented("The method is longer than any that is known."));
    }
    Ok(())
}

/// An upstream's answer as the agent gets it: status, reason and body as they came, but for what was put into the request.
/// Receipt and count end with what is behind its head: a body, or both ways of a WebSocket.
fn answer(
    reply: Reply,
    bearer: &Bearer,
    mut receipt: Receipt,
    under_way: UnderWay,
    line: &Line,
) -> Response<ReplyBody> {
    let Reply { response, lease, target, switched } = reply;
    let (mut parts, incoming) = response.into_parts();
    parts.version = Version::HTTP_11;
    headers::clean_answer(&mut parts.headers, target.transport.set_cookie);
    reflect::hide_in_head(&mut parts, bearer.secrets());
    headers::relocate(&mut parts.headers, &target.base, &target.slug);
    headers::guard(&mut parts.headers, parts.status);
    identified(&mut parts.headers, receipt.request_id());
    receipt.answered(parts.status, None);
    if let Some(switched) = switched {
        websocket::upgrade(&mut parts.headers);
        let rides = (receipt, under_way);
        line.switch(Box::new(move |io, ahead| Box::pin(websocket::join((io, ahead), switched, lease, rides))));
        return Response::from_parts(parts, ReplyBody::fixed(Bytes::new(), None));
    }
    let compressed = reflect::is_compressed(&parts.headers);
    let mask = if target.reflect_guard { reflect::mask(&target.slug, bearer.secrets(), compressed) } else { None };
    let mut body = ReplyBody::upstream(incoming, lease, mask, receipt);
    body.keep(under_way);
    Response::from_parts(parts, body)
}

/// One of Keyward's own answers.
fn fixed(
    mut response: Response<Bytes>,
    request: RequestId,
    mut receipt: Option<Receipt>,
    code: Option<&'static str>,
) -> Response<ReplyBody> {
    identified(response.headers_mut(), request);
    if let Some(receipt) = &mut receipt {
        receipt.answered(response.status(), code);
    }
    response.map(|bytes| ReplyBody::fixed(bytes, receipt))
}

fn plain(status: StatusCode, word: &'static str) -> Response<ReplyBody> {
    let mut response = Response::new(Bytes::from(format!("{{\"status\":\"{word}\"}}")));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    fixed(response, RequestId::next(), None, None)
}

fn identified(headers: &mut HeaderMap, request: RequestId) {
    use std::fmt::Write as _;

    let mut text = BytesMut::with_capacity(32);
    if write!(text, "{request}").is_ok()
        && let Ok(value) = HeaderValue::from_maybe_shared(text.freeze())
    {
        headers.insert(REQUEST_ID, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_answer_gets_its_id_once() {
        let mut headers = HeaderMap::new();
        headers.append(REQUEST_ID, HeaderValue::from_static("forged"));
        let request = RequestId::next();
        identified(&mut headers, request);
        assert_eq!(headers.get_all(REQUEST_ID).iter().collect::<Vec<_>>(), [&request.to_string()]);
    }

    #[test]
    fn methods_that_echo_or_tunnel_are_refused() {
        for method in ["CONNECT", "TRACE", "TRACK"] {
            assert!(refuse_method(&method.parse().unwrap()).is_err(), "{method}");
        }
        let word = "kw_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAaBcDeF";
        assert!(refuse_method(&word.parse().unwrap()).is_err());
        for method in ["GET", "DELETE", "PROPFIND", "UPDATEREDIRECTREF"] {
            assert!(refuse_method(&method.parse().unwrap()).is_ok(), "{method}");
        }
    }
}
