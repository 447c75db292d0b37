//! Claims about the fast path that hold for any bytes: what it takes, whoever reads all of HTTP takes in the same way.

use http::header::{ACCEPT_ENCODING, HOST};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};

use super::answer::{Answer, Asked};
use super::call::{Call, Read};
use super::outbound;
use crate::catalog::{Base, Injection, Secrets};
use crate::config::Limits;
use crate::ids::RequestId;
use crate::net::fuzzing::is_one_request;
use crate::proxy::{call, headers, key};

const LIMITS: Limits = Limits {
    head: 32 * 1024,
    headers: 100,
    request_body: None,
    request_body_rate: None,
    connections: 1,
    requests: 1,
    per_key: None,
};

fn base() -> Base {
    let authority = HeaderValue::from_static("api.example.com");
    Base { https: true, host: "api.example.com".into(), port: 443, authority, path: "/v1".into() }
}

fn ours() -> Vec<(HeaderName, HeaderValue)> {
    let mut token = HeaderValue::from_static("Bearer the-injected-token");
    token.set_sensitive(true);
    vec![
        (HeaderName::from_static("x-version"), HeaderValue::from_static("2")),
        (HeaderName::from_static("authorization"), token),
    ]
}

/// The lines of a head in order of their names, and what is behind it.
fn lines(bytes: &[u8]) -> (Vec<String>, &[u8]) {
    let end = memchr::memmem::find(bytes, b"\r\n\r\n").expect("the end of the head");
    let head = std::str::from_utf8(&bytes[..end]).expect("plain heads are text");
    let mut lines: Vec<_> = head.split("\r\n").map(str::to_owned).collect();
    // The first is none of them.
    lines[1..].sort();
    (lines, &bytes[end + 4..])
}

fn parsed(headers: &[httparse::Header<'_>]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for line in headers {
        let name = HeaderName::from_bytes(line.name.as_bytes()).expect("plain names are names");
        map.append(name, HeaderValue::from_bytes(line.value).expect("plain values are values"));
    }
    map
}

/// I15 to I18: a request that is taken is one whole request to every reader, is one that would not have been refused for
/// its form, and goes out as it would have gone out the other way.
///
/// # Panics
/// When a claim does not hold.
pub fn plain_request(data: &[u8]) {
    let mut bytes = data.to_vec();
    let Read::Whole(taken) = Call::read(&mut bytes, &LIMITS) else { return };
    assert!(is_one_request(&data[..taken.length()]), "it is one request and nothing more");
    let mut room = [httparse::EMPTY_HEADER; 100];
    let mut request = httparse::Request::new(&mut room);
    assert_eq!(request.parse(data), Ok(httparse::Status::Complete(taken.head.length())));
    assert_eq!((request.method, request.version), (Some(taken.method.as_str()), Some(1)));

    let uri: Uri = request.path.expect("a target").parse().expect("it is a URI");
    let mut fields = parsed(request.headers);
    assert_eq!(call::check(&uri, &fields), Ok(()));
    let place = call::Place::of(uri.path()).expect("it is one of a target");
    assert_eq!((place.slug(uri.path()), place.below(uri.path())), taken.target(&bytes));
    assert_eq!(uri.query().map(|query| format!("?{query}")).unwrap_or_default().as_bytes(), taken.query(&bytes));
    let shown = key::presented(&fields).expect("one key").expect("a key");
    assert_eq!(shown.expose(), taken.key(&bytes));
    assert_eq!(key::only_where_it_belongs(shown.expose(), &uri, &fields), Ok(()));

    let (base, ours) = (base(), ours());
    for guarded in [false, true] {
        let mut out = Vec::new();
        outbound::write_to(&mut out, &taken, &bytes, (&base, guarded), &ours);
        let (lines, body) = lines(&out);
        assert_eq!(body, &data[taken.head.length()..taken.length()]);
        headers::clean_request(&mut fields);
        fields.insert(HOST, base.authority.clone());
        fields.remove("content-length");
        if taken.body > 0 || matches!(taken.method, Method::POST | Method::PUT | Method::PATCH) {
            fields.insert("content-length", taken.body.into());
        }
        if guarded {
            fields.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        }
        headers::inject(&mut fields, &ours);
        let text = |value: &HeaderValue| value.to_str().expect("plain").to_owned();
        let mut expected: Vec<_> = fields.iter().map(|(name, value)| format!("{name}: {}", text(value))).collect();
        expected.sort();
        let query = String::from_utf8(taken.query(&bytes).to_vec()).expect("plain");
        assert_eq!(lines[0], format!("{} /v1{}{query} HTTP/1.1", taken.method, taken.target(&bytes).1));
        assert_eq!(lines[1..], expected[..], "guarded: {guarded}");
    }
}

/// An answer that is plain becomes what it would have become with a parser that knows all of HTTP.
///
/// # Panics
/// When a claim does not hold.
pub fn plain_answer(data: &[u8]) {
    let (base, secrets) = (base(), Secrets::of(&Injection::Headers(ours())));
    for (method, cookies) in [(Method::GET, true), (Method::HEAD, false)] {
        let asked = Asked {
            method: &method,
            base: &base,
            slug: "crm",
            guarded: true,
            cookies,
            secrets: &secrets,
            request: RequestId::next(),
            closes: false,
        };
        let Some((plain, odd)) = Answer::both(data, &asked, &LIMITS) else { return };
        assert_eq!((plain.status, plain.keeps), (odd.status, odd.keeps));
        let become_of = |answer: Answer| {
            let (mut bytes, mut out) = (data.to_vec(), Vec::new());
            // What hands it over has brought the names into lower case.
            let _ = crate::net::Head::parse(&mut bytes);
            let relay = answer.write(&mut bytes, &asked, &mut out);
            let (mut lines, body) = lines(&out);
            assert!(body.is_empty());
            // It may have been made in the next second.
            lines.retain(|line| !line.starts_with("date: "));
            (lines, bytes, format!("{relay:?}"))
        };
        let (plain, odd) = (become_of(plain), become_of(odd));
        assert_eq!(plain, odd);
        assert!(!plain.0.iter().any(|line| line.contains("the-injected-token")));
    }
}
