//! An agent's request, read once: which target, which path, which key. After this nothing looks at raw bytes again.

use std::net::IpAddr;
use std::ops::Range;

use http::header::{CONTENT_LENGTH, EXPECT, HOST, TRANSFER_ENCODING};
use http::{HeaderMap, Method, Request, Uri};
use hyper::body::{Body, Incoming};

use super::key::{self, Key};
use super::websocket::Handshake;
use super::{Refusal, headers, path};
use crate::config::Limits;
use crate::net::Peer;

pub(super) const PREFIX: &str = "/proxy/";
pub(super) const URI_BYTES: usize = 8 * 1024;

/// Where in a path the target's slug stands, and where the rest begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    slug: Range<usize>,
}

impl Place {
    /// For paths of the form `/proxy/{slug}` and `/proxy/{slug}/…`.
    pub(super) fn of(path: &str) -> Option<Self> {
        let rest = path.strip_prefix(PREFIX)?;
        let length = rest.find('/').unwrap_or(rest.len());
        Some(Self { slug: PREFIX.len()..PREFIX.len() + length })
    }

    /// The slug as given.
    pub(super) fn slug<'a>(&self, path: &'a str) -> &'a str {
        path.get(self.slug.clone()).unwrap_or_default()
    }

    /// What is below the target; starts with `/`.
    pub(super) fn below<'a>(&self, path: &'a str) -> &'a str {
        path.get(self.slug.end..).filter(|rest| !rest.is_empty()).unwrap_or("/")
    }
}

/// Method and URL of a call: what was decided on, and what goes out.
#[derive(Debug, Clone)]
pub(super) struct Line {
    pub(super) method: Method,
    uri: Uri,
    place: Place,
    /// It is to become a WebSocket.
    pub(super) handshake: Option<Box<Handshake>>,
}

impl Line {
    /// Of a URL in which `place` was found.
    pub(super) fn new(method: Method, uri: Uri, place: Place) -> Self {
        Self { method, uri, place, handshake: None }
    }

    /// The target's slug as given.
    pub(super) fn slug(&self) -> &str {
        self.place.slug(self.uri.path())
    }

    /// The path below the target; starts with `/`, no query.
    pub(super) fn path(&self) -> &str {
        self.place.below(self.uri.path())
    }

    /// The query as given.
    pub(super) fn query(&self) -> Option<&str> {
        self.uri.query()
    }
}

/// A request to a target.
pub(super) struct Call {
    line: Line,
    headers: HeaderMap,
    body: Incoming,
    key: Option<Key>,
    from: IpAddr,
}

impl Call {
    /// Reads a request and refuses what is malformed.
    pub(super) fn parse(
        request: Request<Incoming>,
        place: Place,
        peer: Peer,
        limits: &Limits,
    ) -> Result<Self, Refusal> {
        let (parts, body) = request.into_parts();
        check(&parts.uri, &parts.headers)?;
        if let (Some(limit), Some(length)) = (limits.request_body, body.size_hint().exact())
            && length > limit
        {
            return Err(Refusal::PayloadTooLarge);
        }
        let key = key::presented(&parts.headers)?;
        if let Some(key) = &key {
            key::only_where_it_belongs(key.expose(), &parts.uri, &parts.headers)?;
        }
        let from = peer.0.ip();
        let handshake = Handshake::of(&parts.method, parts.version, &parts.headers)?;
        let line = Line { handshake, ..Line::new(parts.method, parts.uri, place) };
        Ok(Self { line, headers: parts.headers, body, key, from })
    }

    /// Method, target, path.
    pub(super) fn line(&self) -> &Line {
        &self.line
    }

    /// The presented key; nothing when there is none, which no key is.
    pub(super) fn key(&self) -> &[u8] {
        self.key.as_ref().map_or(&[], Key::expose)
    }

    /// Where the request comes from.
    pub(super) fn from(&self) -> IpAddr {
        self.from
    }

    /// Taken apart, to be sent on.
    pub(super) fn into_parts(self) -> (Line, HeaderMap, Incoming) {
        (self.line, self.headers, self.body)
    }
}

/// Only a path may be asked for: what else a request line can name is another proxy's business (RFC 9112 §3.2.2).
pub(super) fn check_form(uri: &Uri) -> Result<(), Refusal> {
    if uri.scheme().is_some() || uri.authority().is_some() || !uri.path().starts_with('/') {
        return Err(Refusal::BadRequest("The request names something other than a path."));
    }
    Ok(())
}

/// Whether a request's head can be read in one way only.
pub(super) fn check(uri: &Uri, headers: &HeaderMap) -> Result<(), Refusal> {
    check_url(uri)?;
    check_headers(headers)
}

fn check_url(uri: &Uri) -> Result<(), Refusal> {
    check_form(uri)?;
    if uri.path_and_query().is_some_and(|line| line.as_str().len() > URI_BYTES) {
        return Err(Refusal::UriTooLong);
    }
    // The path has more said about it; a query that is not plain ASCII reads differently to different servers too.
    let odd = |query: &str| query.bytes().any(|byte| byte == b'\\' || !(0x21..=0x7e).contains(&byte));
    if uri.query().is_some_and(odd) {
        return Err(Refusal::BadRequest("The query has a backslash or a byte that must be percent-encoded."));
    }
    path::check(&uri.path()[PREFIX.len() - 1..])
}

fn check_headers(headers: &HeaderMap) -> Result<(), Refusal> {
    let mut hosts = headers.get_all(HOST).iter();
    if hosts.next().is_none() || hosts.next().is_some() {
        return Err(Refusal::BadRequest("The request must have exactly one Host."));
    }
    let coding = headers.get(TRANSFER_ENCODING);
    if let Some(coding) = coding {
        if headers.contains_key(CONTENT_LENGTH) {
            return Err(Refusal::BadRequest("The request has both Content-Length and Transfer-Encoding."));
        }
        let one = headers.get_all(TRANSFER_ENCODING).iter().count() == 1;
        if !one || !coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked") {
            return Err(Refusal::NotImplemented("Only the transfer coding `chunked` is understood."));
        }
    }
    if headers.get_all(CONTENT_LENGTH).iter().count() > 1 {
        return Err(Refusal::BadRequest("The request has more than one Content-Length."));
    }
    if headers.get_all(EXPECT).iter().any(|value| !value.as_bytes().eq_ignore_ascii_case(b"100-continue")) {
        return Err(Refusal::ExpectationFailed);
    }
    headers::check_request(headers)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn a_place_is_a_slug_and_what_is_below() {
        for (path, slug, below) in [
            ("/proxy/crm/a/b", "crm", "/a/b"),
            ("/proxy/crm/", "crm", "/"),
            ("/proxy/crm", "crm", "/"),
            ("/proxy/", "", "/"),
            ("/proxy//a", "", "/a"),
            ("/proxy/a%2fb/c", "a%2fb", "/c"),
        ] {
            let place = Place::of(path).unwrap();
            assert_eq!((place.slug(path), place.below(path)), (slug, below), "{path}");
        }
        for path in ["/proxy", "/prox/crm", "/", "*", "/Proxy/crm"] {
            assert_eq!(Place::of(path), None, "{path}");
        }
    }

    #[test]
    fn urls_that_are_not_plain_paths_are_refused() {
        let long = format!("/proxy/crm/{}", "a".repeat(9000));
        type Expected = fn(&Refusal) -> bool;
        let table: &[(&str, Option<Expected>)] = &[
            ("/proxy/crm/a?b=../c", None),
            ("/proxy/crm/a?b=\\c", Some(|refusal| matches!(refusal, Refusal::BadRequest(_)))),
            ("/proxy/crm/a?b=\u{fc}", Some(|refusal| matches!(refusal, Refusal::BadRequest(_)))),
            ("http://example.com/proxy/crm/a", Some(|refusal| matches!(refusal, Refusal::BadRequest(_)))),
            (&long, Some(|refusal| *refusal == Refusal::UriTooLong)),
            ("/proxy/crm/../other/a", Some(|refusal| matches!(refusal, Refusal::BadPath(_)))),
            ("/proxy//a", Some(|refusal| matches!(refusal, Refusal::BadPath(_)))),
            ("/proxy/..%2fcrm/a", Some(|refusal| matches!(refusal, Refusal::BadPath(_)))),
        ];
        for (url, expected) in table {
            let result = check_url(&url.parse().unwrap());
            match expected {
                None => assert_eq!(result, Ok(()), "{url}"),
                Some(expected) => assert!(result.as_ref().is_err_and(expected), "{url}: {result:?}"),
            }
        }
    }

    #[test]
    fn doubtful_headers_are_refused() {
        let table: &[(&[(&'static str, &'static str)], u16)] = &[
            (&[("host", "a")], 0),
            (&[("host", "a"), ("transfer-encoding", "Chunked"), ("expect", "100-Continue")], 0),
            (&[("host", "a"), ("upgrade", "h2c")], 0),
            (&[], 400),
            (&[("host", "a"), ("host", "a")], 400),
            (&[("host", "a"), ("content-length", "1"), ("transfer-encoding", "chunked")], 400),
            (&[("host", "a"), ("content-length", "1"), ("content-length", "1")], 400),
            (&[("host", "a"), ("transfer-encoding", "gzip, chunked")], 501),
            (&[("host", "a"), ("transfer-encoding", "gzip"), ("transfer-encoding", "chunked")], 501),
            (&[("host", "a"), ("expect", "miracles")], 417),
            (&[("host", "a"), ("content_length", "1")], 400),
            (&[("host", "a"), ("connection", "content-length")], 400),
        ];
        for (lines, expected) in table {
            let mut headers = HeaderMap::new();
            for (name, value) in *lines {
                headers.append(*name, HeaderValue::from_static(value));
            }
            let status = match check_headers(&headers) {
                Ok(()) => 0,
                Err(Refusal::BadRequest(_)) => 400,
                Err(Refusal::NotImplemented(_)) => 501,
                Err(Refusal::ExpectationFailed) => 417,
                Err(other) => panic!("{other:?}"),
            };
            assert_eq!(status, *expected, "{lines:?}");
        }
    }
}
