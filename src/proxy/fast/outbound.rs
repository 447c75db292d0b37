//! The bytes that an upstream sees of a plain request: made from the call, the grant's target and the credential, and from
//! nothing else.

use http::{HeaderName, HeaderValue, Method};

use super::call::Call;
use crate::access::{Credential, Grant, Target};
use crate::accounts::Bearer;
use crate::catalog::{Base, InjectPlace, Injection};
use crate::proxy::headers;

/// Whether the credential of this target goes into headers alone: a URL with a credential needs more care.
pub(super) fn suits(target: &Target) -> bool {
    match &target.credential {
        Credential::Account { inject, .. } => matches!(inject.place, InjectPlace::Header { .. }),
        Credential::Ready(ready) => matches!(ready.injection(), Injection::Headers(_)),
    }
}

/// Writes the request that `call` becomes, `input` being what it was read from. Nothing when its credential is none that
/// [`suits`].
pub(super) fn write(out: &mut Vec<u8>, call: &Call, input: &[u8], grant: &Grant, bearer: &Bearer) -> Option<()> {
    let Injection::Headers(ours) = bearer.injection() else { return None };
    let target = grant.target();
    write_to(out, call, input, (&target.base, target.reflect_guard), ours);
    Some(())
}

pub(super) fn write_to(
    out: &mut Vec<u8>,
    call: &Call,
    input: &[u8],
    (base, guarded): (&Base, bool),
    ours: &[(HeaderName, HeaderValue)],
) {
    out.clear();
    put(out, &[call.method.as_str().as_bytes(), b" ", base.path.as_bytes()]);
    put(out, &[call.target(input).1.as_bytes(), call.query(input), b" HTTP/1.1\r\nhost: ", base.authority.as_bytes()]);
    out.extend_from_slice(b"\r\n");
    for (name, value) in call.head.fields(input) {
        let framed = matches!(name, b"host" | b"content-length") || (guarded && name == b"accept-encoding");
        if !framed && !headers::off_request(name) && !is_ours(ours, name) {
            line(out, name, value);
        }
    }
    // Some servers answer 411 to these methods without a length (RFC 9110 §8.6).
    if call.body > 0 || matches!(call.method, Method::POST | Method::PUT | Method::PATCH) {
        line(out, b"content-length", itoa::Buffer::new().format(call.body).as_bytes());
    }
    if guarded && !is_ours(ours, b"accept-encoding") {
        line(out, b"accept-encoding", b"identity");
    }
    for (name, value) in ours {
        line(out, name.as_str().as_bytes(), value.as_bytes());
    }
    put(out, &[b"\r\n", call.body(input)]);
}

fn is_ours(ours: &[(HeaderName, HeaderValue)], name: &[u8]) -> bool {
    ours.iter().any(|(our, _)| our.as_str().as_bytes() == name)
}

/// Writes a header line.
pub(super) fn line(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    put(out, &[name, b": ", value, b"\r\n"]);
}

fn put(out: &mut Vec<u8>, parts: &[&[u8]]) {
    out.reserve(parts.iter().map(|part| part.len()).sum());
    for part in parts {
        out.extend_from_slice(part);
    }
}
