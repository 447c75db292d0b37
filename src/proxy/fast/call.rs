//! A plain request: which target, which path, which key. What is doubtful in any way is odd, and read by somebody else: nothing
//! is refused here.

use std::ops::Range;

use http::Method;

use super::number;
use crate::config::Limits;
use crate::net::{Head, Parsed, is_host};
use crate::proxy::call::{PREFIX, Place, URI_BYTES};
use crate::proxy::upload::HELD;
use crate::proxy::{key, path};

/// A plain request to a target; knows where its parts stand in the bytes that it was read from.
pub(super) struct Call {
    pub(super) method: Method,
    pub(super) head: Head,
    /// Bytes of the body, all of which are here.
    pub(super) body: usize,
    /// The agent wants no further request on this connection.
    pub(super) closes: bool,
    path: Range<usize>,
    /// What follows the path, from its `?` on.
    query: Range<usize>,
    place: Place,
    key: Range<usize>,
}

/// What there is to read.
pub(super) enum Read {
    /// Less than a request.
    Partial,
    /// Something that is not for the fast path.
    Odd,
    /// A request.
    Whole(Call),
}

/// What a head's lines say of the message.
#[derive(Default)]
struct Said {
    hosts: usize,
    lengths: usize,
    length: usize,
    keys: usize,
    key: Range<usize>,
    closes: bool,
}

impl Call {
    /// Reads the request that `bytes` begin with.
    pub(super) fn read(bytes: &mut [u8], limits: &Limits) -> Read {
        let head = match Head::parse(bytes) {
            Parsed::Partial if bytes.len() < limits.head => return Read::Partial,
            Parsed::Partial | Parsed::Odd => return Read::Odd,
            Parsed::Whole(head) => head,
        };
        if head.length() > limits.head || head.count() > limits.headers {
            return Read::Odd;
        }
        let end = head.length();
        let Some(call) = Self::of(head, bytes, limits) else { return Read::Odd };
        if bytes.len() - end < call.body { Read::Partial } else { Read::Whole(call) }
    }

    fn of(head: Head, bytes: &[u8], limits: &Limits) -> Option<Self> {
        let first = head.first(bytes);
        let space = memchr::memchr(b' ', first)?;
        let method = method(&first[..space])?;
        let target = first[space + 1..].strip_suffix(b" HTTP/1.1")?;
        if target.len() > URI_BYTES || !target.iter().all(in_target) {
            return None;
        }
        let target = std::str::from_utf8(target).ok()?;
        let end = target.find('?').unwrap_or(target.len());
        let place = Place::of(&target[..end])?;
        path::check(&target[PREFIX.len() - 1..end]).ok()?;
        let said = Said::by(&head, bytes)?;
        let fits = said.length as u64 <= limits.request_body.unwrap_or(u64::MAX).min(HELD);
        // The key stands in its own place and nowhere else.
        let once = key::prefixes(&bytes[..head.length()]).nth(1).is_none() && !key::is_in(target);
        let start = space + 1;
        (fits && once).then(|| Self {
            body: said.length,
            closes: said.closes,
            path: start..start + end,
            query: start + end..start + target.len(),
            place,
            key: said.key,
            method,
            head,
        })
    }

    /// The presented key.
    pub(super) fn key<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        &bytes[self.key.clone()]
    }

    /// The target's slug as given, and the path below the target: it starts with `/` and has no query.
    pub(super) fn target<'a>(&self, bytes: &'a [u8]) -> (&'a str, &'a str) {
        let path = std::str::from_utf8(&bytes[self.path.clone()]).unwrap_or_default();
        (self.place.slug(path), self.place.below(path))
    }

    /// The query as given, with its `?`.
    pub(super) fn query<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        &bytes[self.query.clone()]
    }

    /// The body.
    pub(super) fn body<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        &bytes[self.head.length()..self.length()]
    }

    /// Bytes of the whole request.
    pub(super) fn length(&self) -> usize {
        self.head.length() + self.body
    }
}

impl Said {
    fn by(head: &Head, bytes: &[u8]) -> Option<Self> {
        let mut said = Self::default();
        for (name, value) in head.fields(bytes) {
            match name {
                b"host" => {
                    said.hosts += 1;
                    is_host(value).then_some(())?;
                }
                b"content-length" => {
                    said.lengths += 1;
                    said.length = usize::try_from(number(value)?).ok()?;
                }
                b"connection" => match value {
                    value if value.eq_ignore_ascii_case(b"keep-alive") => {}
                    value if value.eq_ignore_ascii_case(b"close") => said.closes = true,
                    _ => return None,
                },
                b"authorization" | b"x-api-key" | b"api-key" => {
                    let key = if name == b"authorization" { bearer(value)? } else { value };
                    said.keys += 1;
                    said.key = range_of(key, bytes);
                }
                b"transfer-encoding" | b"expect" | b"upgrade" | b"te" | b"trailer" | b"http2-settings" => return None,
                _ => {}
            }
        }
        (said.hosts == 1 && said.lengths <= 1 && said.keys == 1 && !said.key.is_empty()).then_some(said)
    }
}

/// Methods that are forwarded, in their own spelling.
fn method(word: &[u8]) -> Option<Method> {
    Some(match word {
        b"GET" => Method::GET,
        b"HEAD" => Method::HEAD,
        b"POST" => Method::POST,
        b"PUT" => Method::PUT,
        b"PATCH" => Method::PATCH,
        b"DELETE" => Method::DELETE,
        b"OPTIONS" => Method::OPTIONS,
        _ => return None,
    })
}

/// What stands in paths and queries that no server stumbles over.
fn in_target(byte: &u8) -> bool {
    matches!(byte, b'!' | b'$'..=b';' | b'=' | b'?'..=b'Z' | b'[' | b']' | b'_' | b'a'..=b'z' | b'~')
}

fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, key) = value.split_at(memchr::memchr(b' ', value)?);
    let known = scheme.eq_ignore_ascii_case(b"bearer") || scheme.eq_ignore_ascii_case(b"token");
    known.then(|| key.trim_ascii())
}

/// Where `part` stands in the `whole` that it is a part of.
fn range_of(part: &[u8], whole: &[u8]) -> Range<usize> {
    let start = part.as_ptr() as usize - whole.as_ptr() as usize;
    start..start + part.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "kw_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAaBcDeF";

    fn limits() -> Limits {
        Limits {
            head: 4096,
            headers: 10,
            request_body: Some(1000),
            request_body_rate: None,
            connections: 1,
            requests: 1,
            per_key: None,
        }
    }

    fn read(text: &str) -> (Read, Vec<u8>) {
        let mut bytes = text.as_bytes().to_vec();
        (Call::read(&mut bytes, &limits()), bytes)
    }

    fn request(first: &str, lines: &str) -> String {
        format!("{first} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {KEY}\r\n{lines}\r\n")
    }

    #[test]
    fn a_plain_request_is_read() {
        let text = request("POST /proxy/crm/a/b?c=d?e", "Content-Length: 5\r\nConnection: Close\r\n") + "helloGET";
        let (Read::Whole(call), bytes) = read(&text) else { panic!("it is plain") };
        assert_eq!((call.method.as_str(), call.target(&bytes)), ("POST", ("crm", "/a/b")));
        assert_eq!((call.query(&bytes), call.body(&bytes)), (&b"?c=d?e"[..], &b"hello"[..]));
        assert_eq!((call.key(&bytes), call.closes), (KEY.as_bytes(), true));
        assert_eq!(call.length(), text.len() - 3);
        for end in 0..call.length() {
            assert!(matches!(read(&text[..end]).0, Read::Partial), "{end}");
        }
        for (url, path, query) in
            [("/proxy/crm", "/", ""), ("/proxy/crm/", "/", ""), ("/proxy/crm/%20[1]?", "/%20[1]", "?")]
        {
            let (Read::Whole(call), bytes) = read(&request(&format!("GET {url}"), "")) else { panic!("{url}") };
            assert_eq!((call.target(&bytes).1, call.query(&bytes)), (path, query.as_bytes()), "{url}");
        }
    }

    #[test]
    fn each_place_of_a_key_will_do() {
        for line in [
            format!("authorization: bearer  {KEY} "),
            format!("Authorization: Token {KEY}"),
            format!("X-Api-Key: {KEY}"),
            format!("api-key:{KEY}"),
        ] {
            let text = format!("GET /proxy/crm/a HTTP/1.1\r\nHost: a\r\n{line}\r\n\r\n");
            let (Read::Whole(call), bytes) = read(&text) else { panic!("{line}") };
            assert_eq!(call.key(&bytes), KEY.as_bytes(), "{line}");
        }
    }

    #[test]
    fn whatever_is_doubtful_is_odd() {
        let long = format!("GET /proxy/crm/{}", "a".repeat(9000));
        for first in [
            "TRACE /proxy/crm/a",
            "get /proxy/crm/a",
            "GET  /proxy/crm/a",
            "GET /proxy/crm/a ",
            "GET /healthz",
            "GET http://a/proxy/crm/a",
            "GET /proxy/crm/../a",
            "GET /proxy/crm/%2e/a",
            "GET /proxy/crm//a",
            "GET /proxy//a",
            "GET /proxy/crm/a#b",
            "GET /proxy/crm/a\\b",
            "GET /proxy/crm/a?b\\c",
            "GET /proxy/crm/a?b=\"",
            &long,
            &format!("GET /proxy/crm/{KEY}"),
            &format!("GET /proxy/crm/a?b={}", KEY.replace('_', "%5f")),
        ] {
            assert!(matches!(read(&request(first, "")).0, Read::Odd), "{first}");
        }
        for lines in [
            "Host: a\r\n".to_owned(),
            "Content-Length: 1\r\nContent-Length: 1\r\n".to_owned(),
            "Content-Length: +1\r\n".to_owned(),
            "Content-Length:\r\n".to_owned(),
            "Content-Length: 1001\r\n".to_owned(),
            "Transfer-Encoding: chunked\r\n".to_owned(),
            "Connection: keep-alive, x-a\r\n".to_owned(),
            "Connection: upgrade\r\nUpgrade: websocket\r\n".to_owned(),
            "Expect: 100-continue\r\n".to_owned(),
            "X: \u{fc}\r\n".to_owned(),
            "X_Y: z\r\n".to_owned(),
            format!("X-Api-Key: {KEY}\r\n"),
            format!("Cookie: a={KEY}\r\n"),
            format!("Authorization: Bearer {KEY}\r\n"),
            "a: b\r\n".repeat(9),
        ] {
            assert!(matches!(read(&request("POST /proxy/crm/a", &lines)).0, Read::Odd), "{lines}");
        }
        for text in [
            "GET /proxy/crm/a HTTP/1.0\r\nHost: a\r\n\r\n".to_owned(),
            "GET /proxy/crm/a HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
            format!("GET /proxy/crm/a HTTP/1.1\r\nAuthorization: Bearer {KEY}\r\n\r\n"),
            format!("GET /proxy/crm/a HTTP/1.1\r\nHost: a b\r\nAuthorization: Bearer {KEY}\r\n\r\n"),
            "GET /proxy/crm/a HTTP/1.1\r\nHost: a\r\nAuthorization: Basic YTpi\r\n\r\n".to_owned(),
            "GET /proxy/crm/a HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer\r\n\r\n".to_owned(),
            "GET /proxy/crm/a HTTP/1.1\r\nHost: a\r\nX-Api-Key:\r\n\r\n".to_owned(),
            "x".repeat(4096),
        ] {
            assert!(matches!(read(&text).0, Read::Odd), "{text:?}");
        }
    }
}
