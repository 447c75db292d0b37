//! The Graph-shaped API's frame: bearer and scope checks, error shape, collections with `$top`, `$skip`, `$select`.

use std::collections::HashMap;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use axum::body::Body;
use axum::extract::{Extension, FromRequestParts, OriginalUri, RawPathParams, Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use bytes::Bytes;
use http::request::Parts;
use http::{StatusCode, header};
use http_body::{Frame, SizeHint};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::faults::Place;
use super::server::Line;
use super::spoil::around;
use super::{Sandbox, TEAM, calendar, lock, mail, people};
use crate::ids::RequestId;

pub(super) fn router(sandbox: &Sandbox) -> Router<Sandbox> {
    let things = mail::router().merge(calendar::router());
    Router::new()
        .route("/me", get(identity))
        .nest("/me", things.clone())
        .nest("/users/{email}", things)
        .fallback(nothing_here)
        .method_not_allowed_fallback(wrong_method)
        .layer(from_fn_with_state(sandbox.clone(), gate))
}

/// Counts, and plays faults around whatever comes.
async fn gate(
    State(sandbox): State<Sandbox>,
    Extension(line): Extension<Line>,
    OriginalUri(uri): OriginalUri,
    request: Request,
    next: Next,
) -> Response {
    let identity = uri.path() == "/v1.0/me";
    let fault = sandbox.0.faults.take(if identity { Place::Identity } else { Place::Api });
    sandbox.count(|counters| {
        counters.api_calls += 1;
        counters.identity_calls += u64::from(identity);
        if let Some(fault) = &fault {
            counters.fault(fault.name());
        }
    });
    let (head, body) = request.into_parts();
    let body = Arc::new(Mutex::new(body));
    let request = Request::from_parts(head, Body::new(Lent(Arc::clone(&body))));
    let answer = around(fault, &line, next.run(request)).await;
    read_the_rest(&body).await;
    answer
}

/// A request's body, which comes back when the handler has had enough of it.
struct Lent(Arc<Mutex<Body>>);

impl http_body::Body for Lent {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut *lock(&self.0)).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        lock(&self.0).is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        lock(&self.0).size_hint()
    }
}

/// Reads what a refusal left unread, within reason, as servers do: closing on unread bytes resets the connection, and then
/// the answer may never arrive.
async fn read_the_rest(body: &Mutex<Body>) {
    let mut left = 1 << 20;
    while left > 0 {
        let frame = poll_fn(|cx| http_body::Body::poll_frame(Pin::new(&mut *lock(body)), cx)).await;
        let Some(Ok(frame)) = frame else { return };
        left -= frame.data_ref().map_or(0, Bytes::len).min(left);
    }
}

/// A request whose bearer token was found good.
pub(super) struct Call {
    pub(super) sandbox: Sandbox,
    /// Who the token speaks for.
    pub(super) person: String,
    /// Whose mailbox or calendar is meant.
    pub(super) owner: String,
    /// The path as it came, with `/v1.0`.
    pub(super) path: String,
    scopes: Vec<String>,
    params: HashMap<String, String>,
    query: Vec<(String, String)>,
}

impl FromRequestParts<Sandbox> for Call {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, sandbox: &Sandbox) -> Result<Self, Refusal> {
        let (person, scopes) = bearer(parts, sandbox)?;
        let params: HashMap<String, String> = RawPathParams::from_request_parts(parts, sandbox)
            .await
            .map(|params| params.iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
            .map_err(|_| Refusal::bad("the path is not valid UTF-8"))?;
        let owner = params.get("email").unwrap_or(&person).to_ascii_lowercase();
        if owner != person && owner != TEAM {
            return Err(Refusal::new(StatusCode::FORBIDDEN, "ErrorAccessDenied", "Access is denied to this mailbox."));
        }
        let uri = parts.extensions.get::<OriginalUri>().map_or(&parts.uri, |original| &original.0);
        let query = serde_urlencoded::from_str(uri.query().unwrap_or_default())
            .map_err(|_| Refusal::bad("the query can't be read"))?;
        let path = uri.path().to_owned();
        Ok(Self { sandbox: sandbox.clone(), person, owner, path, scopes, params, query })
    }
}

fn bearer(parts: &Parts, sandbox: &Sandbox) -> Result<(String, Vec<String>), Refusal> {
    let mut lines = parts.headers.get_all(header::AUTHORIZATION).iter();
    let (Some(line), None) = (lines.next(), lines.next()) else {
        sandbox.count(|counters| counters.api_without_token += 1);
        return Err(Refusal::token("Access token is missing, or there is more than one Authorization line."));
    };
    let token = line.to_str().ok().and_then(|line| {
        let (scheme, token) = line.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(token)
    });
    let known = token.and_then(|token| sandbox.tokens().check(token, sandbox.now()));
    known.ok_or_else(|| {
        sandbox.count(|counters| counters.api_bad_token += 1);
        Refusal::token("Access token is unknown, expired or revoked.")
    })
}

impl Call {
    /// Passes when the token has one of these scopes; for another's mailbox, one of them with `.Shared`.
    pub(super) fn need(&self, any_of: &[&str]) -> Result<(), Refusal> {
        let shared = self.owner != self.person;
        let enough = any_of.iter().any(|wanted| {
            self.scopes.iter().any(|scope| scope == wanted || (shared && scope.strip_suffix(".Shared") == Some(wanted)))
        });
        if enough { Ok(()) } else { Err(Refusal::scope(any_of)) }
    }

    /// A part of the path by its name in the route.
    pub(super) fn param(&self, name: &str) -> &str {
        self.params.get(name).map_or("", String::as_str)
    }

    /// A query parameter.
    pub(super) fn query(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// An absolute address on this host.
    pub(super) fn absolute(&self, path: &str) -> String {
        format!("{}{path}", self.sandbox.0.origin)
    }

    /// Reads a JSON body, whatever content type it came with.
    pub(super) fn body<T: DeserializeOwned>(&self, body: &[u8]) -> Result<T, Refusal> {
        serde_json::from_slice(body).map_err(|error| Refusal::bad(&format!("The body can't be read: {error}.")))
    }

    /// One page of a collection, in OData's shape.
    pub(super) fn page(&self, mut all: Vec<Value>) -> Result<Response, Refusal> {
        if let Some((unknown, _)) = self.query.iter().find(|(name, _)| {
            name.starts_with('$') && !matches!(name.as_str(), "$top" | "$skip" | "$select" | "$orderby" | "$count")
        }) {
            return Err(Refusal::bad(&format!("The sandbox does not support {unknown}.")));
        }
        let top = self.number("$top", 10)?.clamp(1, 1000);
        let skip = self.number("$skip", 0)?;
        if let Some(order) = self.query("$orderby") {
            sort(&mut all, order);
        }
        let total = all.len();
        let value: Vec<Value> =
            all.into_iter().skip(skip).take(top).map(|item| select(item, self.query("$select"))).collect();
        let mut body = json!({ "@odata.context": self.absolute("/v1.0/$metadata") });
        if self.query("$count") == Some("true") {
            body["@odata.count"] = total.into();
        }
        if skip + value.len() < total && !value.is_empty() {
            body["@odata.nextLink"] = self.next_link(skip + value.len()).into();
        }
        body["value"] = value.into();
        Ok(Json(body).into_response())
    }

    /// One thing, with `$select` obeyed.
    pub(super) fn one(&self, item: Value) -> Response {
        Json(select(item, self.query("$select"))).into_response()
    }

    fn number(&self, name: &str, default: usize) -> Result<usize, Refusal> {
        let Some(text) = self.query(name) else { return Ok(default) };
        text.parse().map_err(|_| Refusal::bad(&format!("{name} must be a whole number.")))
    }

    fn next_link(&self, skip: usize) -> String {
        let mut pairs: Vec<(&str, String)> =
            self.query.iter().filter(|(name, _)| name != "$skip").map(|(n, v)| (n.as_str(), v.clone())).collect();
        pairs.push(("$skip", skip.to_string()));
        let query = serde_urlencoded::to_string(pairs).unwrap_or_default().replace("%24", "$");
        self.absolute(&format!("{}?{query}", self.path))
    }
}

fn select(item: Value, wanted: Option<&str>) -> Value {
    let (Value::Object(members), Some(wanted)) = (&item, wanted) else { return item };
    let wanted: Vec<&str> = wanted.split(',').map(str::trim).collect();
    let kept = members.iter().filter(|(name, _)| *name == "id" || wanted.contains(&name.as_str()));
    Value::Object(kept.map(|(name, value)| (name.clone(), value.clone())).collect())
}

/// `receivedDateTime desc`, `start/dateTime`: one key, compared as text.
fn sort(all: &mut [Value], order: &str) {
    let (key, down) = order.split_once(' ').map_or((order, false), |(key, way)| (key, way.trim() == "desc"));
    let pointer = format!("/{key}");
    let text = |item: &Value| item.pointer(&pointer).map(ToString::to_string);
    all.sort_by(|a, b| if down { text(b).cmp(&text(a)) } else { text(a).cmp(&text(b)) });
}

async fn identity(call: Call) -> Result<Response, Refusal> {
    call.need(&["User.Read"])?;
    let name = people::first_name(&call.person);
    Ok(call.one(json!({
        "id": people::subject(&call.person),
        "displayName": name,
        "givenName": name,
        "mail": call.person,
        "userPrincipalName": call.person,
        "preferredLanguage": "en",
    })))
}

async fn nothing_here(call: Call) -> Refusal {
    Refusal::new(StatusCode::NOT_FOUND, "ResourceNotFound", &format!("There is nothing at {}.", call.path))
}

async fn wrong_method(_call: Call) -> Refusal {
    Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "Request_BadRequest", "The method is not supported for this resource.")
}

/// An error in Graph's shape.
pub(super) struct Refusal {
    status: StatusCode,
    code: &'static str,
    message: String,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, code: &'static str, message: &str) -> Self {
        Self { status, code, message: message.to_owned() }
    }

    pub(super) fn bad(message: &str) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "ErrorInvalidRequest", message)
    }

    pub(super) fn not_found() -> Self {
        Self::new(StatusCode::NOT_FOUND, "ErrorItemNotFound", "The specified object was not found in the store.")
    }

    fn token(message: &str) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "InvalidAuthenticationToken", message)
    }

    fn scope(any_of: &[&str]) -> Self {
        let message = format!("Access is denied. The token needs one of: {}.", any_of.join(", "));
        Self::new(StatusCode::FORBIDDEN, "ErrorAccessDenied", &message)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let id = RequestId::next().to_string();
        let body = json!({ "error": {
            "code": self.code,
            "message": self.message,
            "innerError": { "request-id": id, "client-request-id": id },
        }});
        let mut response = (self.status, [("request-id", id)], Json(body)).into_response();
        // RFC 6750 §3.
        let challenge = match self.status {
            StatusCode::UNAUTHORIZED => "Bearer realm=\"sandbox\", error=\"invalid_token\"",
            StatusCode::FORBIDDEN => "Bearer realm=\"sandbox\", error=\"insufficient_scope\"",
            _ => return response,
        };
        response.headers_mut().insert(header::WWW_AUTHENTICATE, http::HeaderValue::from_static(challenge));
        response
    }
}
