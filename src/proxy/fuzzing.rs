//! Claims about what agents and upstreams say that hold for any bytes.

use http::header::LOCATION;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use url::Url;

pub use super::fast::fuzzing::{plain_answer, plain_request};

use super::call::{Line, Place};
use super::{headers, outbound, path};
use crate::catalog::{Base, Injection};

fn base(https: bool, host: &str, port: u16, authority: &'static str, path: &str) -> Base {
    Base { https, host: host.into(), port, authority: HeaderValue::from_static(authority), path: path.into() }
}

/// I15, I17: a path that passes reads alike however it is read, and goes out as it is, below the base.
///
/// # Panics
/// When a claim does not hold.
pub fn path(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let text = format!("/{text}");
    if path::check(&text).is_err() {
        return;
    }
    let plain = |text: &str| {
        assert!(text.bytes().all(|byte| (0x21..=0x7e).contains(&byte)) && !text.contains(['\\', '?', '#']), "{text:?}");
        assert!(!text.contains("//"), "{text:?}");
    };
    plain(&text);
    let decoded = path::lenient(text.as_bytes(), false);
    let decoded = String::from_utf8(decoded).expect("what passes is UTF-8 once decoded");
    assert!(!decoded.contains('\\') && !decoded.bytes().any(|byte| byte.is_ascii_control()), "{decoded:?}");
    let twice = String::from_utf8_lossy(&path::lenient(decoded.as_bytes(), false)).into_owned();
    for read in [&text, &decoded, &twice] {
        let dots = |segment: &str| matches!(segment.split(';').next(), Some("." | ".."));
        assert!(!read.split('/').any(dots), "{text:?} reads as {read:?}");
    }
    let Ok(uri) = format!("/proxy/crm{text}").parse::<Uri>() else { return };
    let place = Place::of(uri.path()).expect("it begins like one");
    let line = Line::new(Method::GET, uri, place);
    assert_eq!((line.slug(), line.path()), ("crm", &*text));
    let out = outbound::url(
        &base(true, "api.example.com", 443, "api.example.com", "/v1"),
        &line,
        &Injection::Headers(Vec::new()),
    );
    let out = out.unwrap_or_else(|_| panic!("{text:?} can't go out"));
    assert_eq!(out.to_string(), format!("/v1{text}"));
    // A URL library that normalises finds nothing to do but to escape.
    let url = Url::parse(&format!("https://api.example.com{out}")).expect("it is one");
    assert!(url.host_str() == Some("api.example.com") && url.path().starts_with("/v1/"), "{url}");
}

/// I1, I18: whatever headers there are, those of the connection and of the key are gone, and the credential is there once.
///
/// # Panics
/// When a claim does not hold.
pub fn strip(data: &[u8]) {
    let mut map = HeaderMap::new();
    for line in data.split(|byte| *byte == b'\n').take(200) {
        let colon = line.iter().position(|byte| *byte == b':').unwrap_or(line.len());
        let value = line.get(colon + 1..).unwrap_or_default();
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(&line[..colon]), HeaderValue::from_bytes(value)) {
            map.append(name, value);
        }
    }
    let fine = headers::check_request(&map).is_ok();
    headers::clean_request(&mut map);
    let mut again = map.clone();
    headers::clean_request(&mut again);
    assert_eq!(map, again, "once is enough");
    for name in map.keys().map(HeaderName::as_str) {
        let plain = name.replace('_', "-");
        let gone = [
            "connection",
            "keep-alive",
            "te",
            "trailer",
            "transfer-encoding",
            "upgrade",
            "expect",
            "cookie",
            "authorization",
            "x-api-key",
            "api-key",
            "via",
            "forwarded",
            "x-http-method-override",
            "x-original-url",
            "proxy-authorization",
        ];
        assert!(!gone.contains(&&*plain), "{name}");
        assert!(!plain.starts_with("keyward-") && !plain.starts_with("x-forwarded"), "{name}");
        assert!(!fine || name == plain || !plain.trim_matches('-').starts_with("content-"), "{name}");
    }
    let ours = [
        (HeaderName::from_static("authorization"), HeaderValue::from_static("ours")),
        (HeaderName::from_static("x-shop-token"), HeaderValue::from_static("ours")),
    ];
    headers::inject(&mut map, &ours);
    for name in ["authorization", "x-shop-token"] {
        let found: Vec<_> = map.iter().filter(|(other, _)| other.as_str().replace('_', "-") == name).collect();
        assert!(matches!(found[..], [(_, value)] if value == "ours"), "{found:?}");
    }
    // What an upstream says goes through the same kind of pass.
    headers::clean_answer(&mut again, false);
    let mut twice = again.clone();
    headers::clean_answer(&mut twice, false);
    assert_eq!(again, twice);
}

/// A `Location` that is rewritten leads below the base for a reader that normalises, too; any other is left as it is.
///
/// # Panics
/// When a claim does not hold.
pub fn location(data: &[u8]) {
    let Ok(value) = HeaderValue::from_bytes(data) else { return };
    let bases = [
        base(true, "api.example.com", 443, "api.example.com", "/v2"),
        base(true, "api.example.com", 8443, "api.example.com:8443", ""),
        base(false, "::1", 8080, "[::1]:8080", "/a/b"),
    ];
    for base in &bases {
        let mut map = HeaderMap::new();
        map.insert(LOCATION, value.clone());
        headers::relocate(&mut map, base, "crm");
        if map[LOCATION] == value {
            continue;
        }
        let rest =
            map[LOCATION].to_str().expect("text").strip_prefix("/proxy/crm").expect("below the target").to_owned();
        let scheme = if base.https { "https" } else { "http" };
        let origin = format!("{scheme}://{}", base.authority.to_str().expect("text"));
        let asked = Url::parse(&format!("{origin}{}/asked", base.path)).expect("a base is a URL");
        let meant = asked.join(value.to_str().expect("text")).expect("what is rewritten is a URL");
        let ours = Url::parse(&format!("{origin}{}{rest}", base.path)).expect("so is what is below");
        assert_eq!(meant, ours, "{value:?}");
        assert_eq!(meant.origin(), asked.origin(), "{value:?}");
        let below = meant.path().strip_prefix(&*base.path).expect("below the base path");
        assert!(below.is_empty() || below.starts_with('/'), "{value:?}");
    }
}
