//! Answers that are Keyward's own and that no service gets to make: the head was late, unreadable or doubtful, or a
//! handler panicked. The same shape as every other refusal; the connection closes after each.

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONNECTION, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderName, HeaderValue, Response, StatusCode};
use http_body_util::Full;

use crate::ids::RequestId;

const ERROR: HeaderName = HeaderName::from_static("keyward-error");
const REQUEST_ID: HeaderName = HeaderName::from_static("keyward-request-id");

/// An answer in the shape of every refusal.
pub(super) fn refusal(status: StatusCode, code: &'static str, message: &str) -> Response<Full<Bytes>> {
    let (request, body) = body(code, message);
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    headers.insert(ERROR, HeaderValue::from_static(code));
    if let Ok(id) = HeaderValue::try_from(request.to_string()) {
        headers.insert(REQUEST_ID, id);
    }
    response
}

/// The whole answer, as bytes: the head did not arrive in time.
pub(super) fn too_late() -> Vec<u8> {
    bytes(StatusCode::REQUEST_TIMEOUT, "timeout", "The request's head did not arrive in time.")
}

/// The whole answer, as bytes, to a head that the parser refused with this status.
pub(super) fn unreadable(status: StatusCode) -> Vec<u8> {
    let (code, message) = match status {
        StatusCode::URI_TOO_LONG => ("uri_too_long", "The request's URL is over the limit."),
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => {
            ("request_header_fields_too_large", "The request's head is over the limit, in bytes or in lines.")
        }
        _ => ("bad_request", "The request's head is not valid HTTP/1.1."),
    };
    bytes(status, code, message)
}

fn body(code: &str, message: &str) -> (RequestId, String) {
    let request = RequestId::next();
    let body = serde_json::json!({"detail": {"code": code, "message": message, "hint": null}, "request_id": request});
    (request, body.to_string())
}

fn bytes(status: StatusCode, code: &'static str, message: &str) -> Vec<u8> {
    let (request, body) = body(code, message);
    format!(
        "HTTP/1.1 {status}\r\nconnection: close\r\ncontent-type: application/json\r\ncache-control: no-store\r\n\
         x-content-type-options: nosniff\r\nkeyward-error: {code}\r\nkeyward-request-id: {request}\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}
