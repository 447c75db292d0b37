//! What an upstream sees: made from the call's line, the grant's target and the credential, and from nothing else. Scheme,
//! host, port and base path are the target's; path and query are the agent's bytes.

use std::rc::Rc;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, HOST, TRANSFER_ENCODING};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, Version};

use super::call::Line;
use super::upload::{RequestBody, Upload};
use super::websocket::{self, Handshake};
use super::{Refusal, headers, path, reflect};
use crate::access::Grant;
use crate::accounts::Bearer;
use crate::catalog::{Base, Injection};

/// A request that may be sent: only a call, a grant and a bearer make one.
pub(super) struct Outbound {
    pub(super) grant: Grant,
    pub(super) request: Request<RequestBody>,
    pub(super) upload: Option<Rc<Upload>>,
    pub(super) held: Option<u64>,
    /// It is to become a WebSocket.
    pub(super) handshake: Option<Box<Handshake>>,
}

/// The same request once more, should the upstream refuse its token.
pub(super) struct Again {
    grant: Grant,
    line: Line,
    headers: Vec<(HeaderName, HeaderValue)>,
    body: Option<Bytes>,
}

impl Outbound {
    /// Builds the request, and keeps what it takes to send it again when that is possible and could help: the body is
    /// held whole, and the credential is a token that can be renewed.
    pub(super) fn build(
        line: Line,
        mut fields: HeaderMap,
        body: RequestBody,
        grant: &Grant,
        bearer: &Bearer,
    ) -> Result<(Self, Option<Again>), Refusal> {
        headers::clean_request(&mut fields);
        let again = match &body {
            RequestBody::Held(bytes) if bearer.generation() != 0 => Some(Again {
                grant: grant.clone(),
                line: line.clone(),
                headers: fields.iter().map(|(name, value)| (name.clone(), value.clone())).collect(),
                body: bytes.clone(),
            }),
            _ => None,
        };
        Ok((assemble(grant.clone(), line, fields, body, bearer)?, again))
    }

    /// Whether it changes nothing, as far as HTTP says (RFC 9110 §9.2.1). What a WebSocket does its handshake doesn't say.
    pub(super) fn only_reads(&self) -> bool {
        self.request.method().is_safe() && self.handshake.is_none()
    }
}

impl Again {
    /// Builds it with another token.
    pub(super) fn with(self, bearer: &Bearer) -> Result<Outbound, Refusal> {
        let mut fields = HeaderMap::with_capacity(self.headers.len() + 2);
        for (name, value) in self.headers {
            fields.append(name, value);
        }
        assemble(self.grant, self.line, fields, RequestBody::Held(self.body), bearer)
    }
}

fn assemble(
    grant: Grant,
    line: Line,
    mut fields: HeaderMap,
    body: RequestBody,
    bearer: &Bearer,
) -> Result<Outbound, Refusal> {
    let (injection, target) = (bearer.injection(), grant.target());
    let uri = url(&target.base, &line, injection)?;
    fields.insert(HOST, target.base.authority.clone());
    frame(&mut fields, &line.method, &body);
    reflect::ask_plainly(target, &mut fields);
    if line.handshake.is_some() {
        websocket::upgrade(&mut fields);
    }
    match injection {
        Injection::Headers(ours) | Injection::Query { headers: ours, .. } => headers::inject(&mut fields, ours),
    }
    let held = body.held();
    let upload = match &body {
        RequestBody::Streamed { upload, .. } => Some(Rc::clone(upload)),
        RequestBody::Held(_) => None,
    };
    let mut request = Request::new(body);
    *request.method_mut() = line.method;
    *request.uri_mut() = uri;
    *request.version_mut() = Version::HTTP_11;
    *request.headers_mut() = fields;
    Ok(Outbound { grant, request, upload, held, handshake: line.handshake })
}

/// Brings a request into HTTP/2's form, in which the URL names scheme and authority and nothing is said of framing.
pub(super) fn to_http2(request: &mut Request<RequestBody>, base: &Base) -> Result<(), Refusal> {
    let fields = request.headers_mut();
    fields.remove(HOST);
    fields.remove(TRANSFER_ENCODING);
    let unfit = |_| Refusal::BadPath("The URL is not valid.");
    let mut parts = std::mem::take(request.uri_mut()).into_parts();
    parts.scheme = Some(if base.https { Scheme::HTTPS } else { Scheme::HTTP });
    parts.authority = Some(Authority::try_from(base.authority.as_bytes()).map_err(|_| Refusal::Internal)?);
    *request.uri_mut() = Uri::from_parts(parts).map_err(unfit)?;
    *request.version_mut() = Version::HTTP_2;
    Ok(())
}

/// And back into that of HTTP/1.1.
pub(super) fn to_http1(request: &mut Request<RequestBody>, base: &Base) {
    let path = request.uri().path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    *request.uri_mut() = Uri::from(path);
    *request.version_mut() = Version::HTTP_11;
    request.headers_mut().insert(HOST, base.authority.clone());
    let mut fields = std::mem::take(request.headers_mut());
    frame(&mut fields, request.method(), request.body());
    *request.headers_mut() = fields;
}

/// The framing is ours: a length when it is known, chunks when not.
pub(super) fn frame(fields: &mut HeaderMap, method: &Method, body: &RequestBody) {
    match body {
        RequestBody::Held(None) => {
            // Some servers answer 411 to these methods without a length (RFC 9110 §8.6).
            if matches!(*method, Method::POST | Method::PUT | Method::PATCH) {
                fields.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
            } else {
                fields.remove(CONTENT_LENGTH);
            }
        }
        RequestBody::Held(Some(bytes)) => {
            fields.insert(CONTENT_LENGTH, HeaderValue::from(bytes.len()));
        }
        RequestBody::Streamed { incoming, .. } => {
            use hyper::body::Body as _;
            match incoming.size_hint().exact() {
                Some(length) => fields.insert(CONTENT_LENGTH, HeaderValue::from(length)),
                None => {
                    fields.remove(CONTENT_LENGTH);
                    // Said aloud, because hyper takes a GET of unknown length for one without a body.
                    fields.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"))
                }
            };
        }
    }
}

/// `base path + path + ?query`, in one piece.
pub(super) fn url(base: &Base, line: &Line, injection: &Injection) -> Result<Uri, Refusal> {
    let path = line.path();
    let query = line.query();
    let pair = match injection {
        Injection::Headers(_) => None,
        Injection::Query { name, pair, .. } => {
            if query.is_some_and(|query| names_parameter(query, name)) {
                return Err(Refusal::BadRequest("The query has a parameter that belongs to the target's credential."));
            }
            Some(&**pair)
        }
    };
    let length = base.path.len() + path.len() + query.map_or(0, |query| query.len() + 1);
    let mut text = String::with_capacity(length + pair.map_or(0, |pair| pair.len() + 1));
    text.push_str(&base.path);
    text.push_str(path);
    if let Some(query) = query {
        text.push('?');
        text.push_str(query);
    }
    if let Some(pair) = pair {
        match query {
            None => text.push('?'),
            Some(query) if query.is_empty() || query.ends_with('&') => {}
            Some(_) => text.push('&'),
        }
        text.push_str(pair);
    }
    Uri::from_maybe_shared(Bytes::from(text)).map_err(|_| Refusal::BadPath("The URL is not valid."))
}

/// Whether a query has a parameter of this name, however it is written.
fn names_parameter(query: &str, name: &str) -> bool {
    query.split(['&', ';']).any(|pair| {
        let written = pair.split('=').next().unwrap_or(pair);
        path::lenient(written.as_bytes(), true).trim_ascii().eq_ignore_ascii_case(name.as_bytes())
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::proxy::call::Place;

    fn base(path: &str) -> Base {
        Base {
            https: true,
            host: "api.example.com".into(),
            port: 443,
            authority: HeaderValue::from_static("api.example.com"),
            path: path.into(),
        }
    }

    fn line(url: &str) -> Line {
        let uri: Uri = url.parse().unwrap();
        let place = Place::of(uri.path()).unwrap();
        Line::new(Method::GET, uri, place)
    }

    fn query() -> Injection {
        Injection::Query { name: "api_key".into(), pair: "api_key=s%26t".into(), headers: Vec::new() }
    }

    #[test]
    fn the_url_is_the_base_and_the_agents_bytes() {
        let plain = Injection::Headers(Vec::new());
        for (base_path, url_in, injection, expected) in [
            ("/v1.0", "/proxy/crm/me/messages?$top=5&x=%2e", &plain, "/v1.0/me/messages?$top=5&x=%2e"),
            ("", "/proxy/crm", &plain, "/"),
            ("/v2", "/proxy/crm", &plain, "/v2/"),
            ("/v2", "/proxy/crm/", &plain, "/v2/"),
            ("", "/proxy/crm/a?", &plain, "/a?"),
            ("", "/proxy/crm/a", &query(), "/a?api_key=s%26t"),
            ("", "/proxy/crm/a?", &query(), "/a?api_key=s%26t"),
            ("", "/proxy/crm/a?b=c", &query(), "/a?b=c&api_key=s%26t"),
            ("", "/proxy/crm/a?b=c&", &query(), "/a?b=c&api_key=s%26t"),
        ] {
            assert_eq!(url(&base(base_path), &line(url_in), injection).unwrap(), expected, "{url_in}");
        }
    }

    #[test]
    fn the_credentials_parameter_is_nobody_elses() {
        for written in
            ["api_key=x", "a=b&api_key", "api%5Fkey=x", "%61pi_key=1", "API_KEY=x", "a;api_key=x", "+api_key=1"]
        {
            let url_in = format!("/proxy/crm/a?{written}");
            assert!(matches!(url(&base(""), &line(&url_in), &query()), Err(Refusal::BadRequest(_))), "{written}");
        }
        assert!(url(&base(""), &line("/proxy/crm/a?my_api_key=x&b=api_key"), &query()).is_ok());
    }

    #[test]
    fn bodies_are_framed_by_what_they_are() {
        let framed = |method: Method, body: RequestBody| {
            let mut fields = HeaderMap::new();
            fields.insert(CONTENT_LENGTH, HeaderValue::from_static("7"));
            frame(&mut fields, &method, &body);
            fields.get(CONTENT_LENGTH).map(|value| value.to_str().unwrap().to_owned())
        };
        assert_eq!(framed(Method::GET, RequestBody::Held(None)), None);
        assert_eq!(framed(Method::POST, RequestBody::Held(None)).as_deref(), Some("0"));
        assert_eq!(framed(Method::POST, RequestBody::Held(Some(Bytes::from_static(b"abc")))).as_deref(), Some("3"));
    }

    proptest! {
        /// I15, I17: what passes the check goes out byte for byte, under the base.
        #[test]
        fn an_accepted_path_is_forwarded_byte_for_byte(
            rest in "(/([a-zA-Z0-9._~!$&'()*+,;=:@-]|%[0-9a-fA-F]{2}){0,12}){0,5}/?",
            asked in proptest::option::of("[a-zA-Z0-9._~/?%&=+-]{0,20}"),
        ) {
            let below = asked.as_ref().map_or_else(|| rest.clone(), |query| format!("{rest}?{query}"));
            let whole = format!("/proxy/crm{below}");
            let Ok(uri) = whole.parse::<Uri>() else { return Ok(()) };
            if path::check(&uri.path()["/proxy".len()..]).is_err() {
                return Ok(());
            }
            let out = url(&base("/v1.0"), &line(&whole), &Injection::Headers(Vec::new())).unwrap();
            let slash = if rest.is_empty() { "/" } else { "" };
            prop_assert_eq!(out.path_and_query().unwrap().as_str(), format!("/v1.0{slash}{below}"));
            prop_assert!(out.authority().is_none() && out.path().starts_with("/v1.0/"));
            prop_assert_eq!(out.path(), format!("/v1.0{}", line(&whole).path()));
        }
    }
}
