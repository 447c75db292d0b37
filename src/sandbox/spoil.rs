//! How a [`Fault`] is played around the work of an endpoint.

use std::time::Duration;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http::{HeaderValue, StatusCode, header};
use http_body_util::BodyExt as _;
use serde_json::{Map, Value};

use super::bulk::{big, gzip_bomb};
use super::faults::Fault;
use super::server::Line;

/// Plays `fault`, if any, around the work.
pub(super) async fn around(fault: Option<Fault>, line: &Line, work: impl Future<Output = Response>) -> Response {
    let Some(fault) = fault else { return work.await };
    if let Some(answer) = fault.instead(line).await {
        return answer;
    }
    if let Fault::Slow(wait) = fault {
        tokio::time::sleep(wait).await;
    }
    let answer = work.await;
    fault.spoil(answer, line).await
}

impl Fault {
    /// The answer, if this fault gives one instead of the work.
    async fn instead(&self, line: &Line) -> Option<Response> {
        Some(match self {
            Self::Status { status, retry_after } => {
                let mut response = (code(*status), "trouble on demand\n").into_response();
                if let Some(value) = retry_after.as_deref().and_then(|text| HeaderValue::from_str(text).ok()) {
                    response.headers_mut().insert(header::RETRY_AFTER, value);
                }
                response
            }
            Self::Json(status, value) => (code(*status), axum::Json(value.clone())).into_response(),
            Self::RawBody { status, content_type, body } => raw(code(*status), content_type, body.clone()),
            Self::Html200 => raw(
                StatusCode::OK,
                "text/html; charset=utf-8",
                Bytes::from_static(b"<!doctype html><title>Maintenance</title><h1>We will be back soon</h1>\n"),
            ),
            Self::EmptyBody => raw(StatusCode::OK, "application/json", Bytes::new()),
            Self::Redirect(status, location) => {
                let location = HeaderValue::from_str(location).unwrap_or(HeaderValue::from_static("/"));
                (code(*status), [(header::LOCATION, location)]).into_response()
            }
            Self::BigBody(length) => big(*length),
            Self::GzipBomb(length) => gzip_bomb(*length),
            Self::Reset => match line.reset().await {},
            Self::Hang => match line.hang().await {},
            _ => return None,
        })
    }

    /// Spoils the answer of work that was done.
    async fn spoil(self, answer: Response, line: &Line) -> Response {
        match self {
            Self::SlowAfterWork(wait) => {
                tokio::time::sleep(wait).await;
                answer
            }
            Self::HangAfterWork => match line.hang().await {},
            Self::ResetAfterWork => match line.reset().await {},
            Self::CutBody => {
                let (head, body) = whole(answer).await;
                let half = body.slice(..body.len() / 2);
                Response::from_parts(head, broken_body(half)).with_length(body.len())
            }
            Self::Trickle(wait) => {
                let (head, body) = whole(answer).await;
                let length = body.len();
                Response::from_parts(head, trickled(body, wait)).with_length(length)
            }
            Self::FormEncoded => form_encoded(answer).await,
            Self::Alter(over) => altered(answer, over).await,
            Self::WrongTokenType(kind) => {
                altered(answer, Map::from_iter([("token_type".to_owned(), Value::String(kind))])).await
            }
            _ => answer,
        }
    }
}

trait WithLength {
    fn with_length(self, length: usize) -> Self;
}

impl WithLength for Response {
    /// hyper takes a stated length as given, also when the body is going to end before it.
    fn with_length(mut self, length: usize) -> Self {
        self.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(length));
        self
    }
}

fn code(status: u16) -> StatusCode {
    StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

fn raw(status: StatusCode, content_type: &str, body: Bytes) -> Response {
    let kind = HeaderValue::from_str(content_type).unwrap_or(HeaderValue::from_static("application/octet-stream"));
    (status, [(header::CONTENT_TYPE, kind)], body).into_response()
}

async fn whole(answer: Response) -> (http::response::Parts, Bytes) {
    let (head, body) = answer.into_parts();
    let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    (head, body)
}

async fn altered(answer: Response, over: Map<String, Value>) -> Response {
    let (mut head, body) = whole(answer).await;
    let Ok(Value::Object(mut members)) = serde_json::from_slice(&body) else {
        return Response::from_parts(head, Body::from(body));
    };
    for (name, value) in over {
        if value.is_null() {
            members.remove(&name);
        } else {
            members.insert(name, value);
        }
    }
    head.headers.remove(header::CONTENT_LENGTH);
    Response::from_parts(head, Body::from(Value::Object(members).to_string()))
}

async fn form_encoded(answer: Response) -> Response {
    let (mut head, body) = whole(answer).await;
    let members: Map<String, Value> = serde_json::from_slice(&body).unwrap_or_default();
    let pairs: Vec<(String, String)> = members
        .into_iter()
        .map(|(name, value)| (name, value.as_str().map_or_else(|| value.to_string(), str::to_owned)))
        .collect();
    head.headers.remove(header::CONTENT_LENGTH);
    head.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
    Response::from_parts(head, Body::from(serde_urlencoded::to_string(pairs).unwrap_or_default()))
}

/// A body that yields these bytes and then fails, which ends the connection without a proper end of the body.
pub(super) fn broken_body(start: Bytes) -> Body {
    let rest = stream::once(async {
        // Lets the bytes before go out: hyper forgets what it holds when a body fails at once.
        tokio::time::sleep(Duration::from_millis(5)).await;
        Err(std::io::Error::other("cut on demand"))
    });
    Body::from_stream(stream::iter([Ok(start)]).chain(rest))
}

/// A body of these bytes, one at a time.
pub(super) fn trickled(bytes: Bytes, wait: Duration) -> Body {
    let one_by_one = stream::unfold(bytes, move |mut left| async move {
        if left.is_empty() {
            return None;
        }
        tokio::time::sleep(wait).await;
        let next = left.split_to(1);
        Some((Ok::<_, std::io::Error>(next), left))
    });
    Body::from_stream(one_by_one)
}
