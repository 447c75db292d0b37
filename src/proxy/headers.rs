//! What is taken off a request before it goes out, and off an answer before it goes back. One pass over the names, in
//! place; the credential goes in afterwards, so that nothing here can touch it.

use http::header::{CONNECTION, CONTENT_LENGTH, LOCATION, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderName, HeaderValue};

use super::path;
use crate::catalog::Base;

/// Takes off everything that is not the agent's to say to an upstream.
pub(super) fn clean_request(headers: &mut HeaderMap) {
    remove_nominated(headers);
    let mut gone: Vec<HeaderName> = Vec::new();
    for name in headers.keys() {
        let text = name.as_str();
        // `x_api_key` is `X-Api-Key` to servers that turn names into variables (CGI and its heirs).
        let off = if memchr::memchr(b'_', text.as_bytes()).is_some() {
            let twin = dashed(text);
            off_request(&twin) || matches!(twin.as_str(), "host" | "content-length")
        } else {
            off_request(text)
        };
        if off {
            gone.push(name.clone());
        }
    }
    for name in gone {
        headers.remove(name);
    }
}

/// Puts the credential in: each header exactly once, and under no other spelling.
pub(super) fn inject(headers: &mut HeaderMap, ours: &[(HeaderName, HeaderValue)]) {
    for (name, value) in ours {
        if headers.keys().any(|other| other != name && twins(other.as_str(), name.as_str())) {
            let gone: Vec<_> = headers.keys().filter(|other| twins(other.as_str(), name.as_str())).cloned().collect();
            for other in gone {
                headers.remove(other);
            }
        }
        headers.insert(name.clone(), value.clone());
    }
}

/// Takes off what was between the upstream and us, or would make the agent's client act on our origin.
pub(super) fn clean_answer(headers: &mut HeaderMap) {
    remove_nominated(headers);
    if headers.contains_key(TRANSFER_ENCODING) {
        // The length was overruled (RFC 9112 §6.3); forwarded, it would frame our own answer wrongly.
        headers.remove(CONTENT_LENGTH);
    }
    let gone: Vec<_> = headers.keys().filter(|name| off_answer(name.as_str())).cloned().collect();
    for name in gone {
        headers.remove(name);
    }
}

/// Rewrites a `Location` under the target's base, so that following it stays inside `/proxy/{slug}`.
pub(super) fn relocate(headers: &mut HeaderMap, base: &Base, slug: &str) {
    let Some(value) = headers.get(LOCATION) else { return };
    let inside = value.to_str().ok().and_then(|location| under_base(location, base));
    let Some(rest) = inside else { return };
    if let Ok(value) = HeaderValue::try_from(format!("/proxy/{slug}{rest}")) {
        headers.insert(LOCATION, value);
    }
}

/// What of a location lies below the base; `None` when it leads elsewhere, or is relative (then it is right already).
fn under_base<'a>(location: &'a str, base: &Base) -> Option<&'a str> {
    let below = if let Some(rest) = location.strip_prefix("//") {
        same_authority(rest, base)?
    } else if location.starts_with('/') {
        location
    } else {
        let (scheme, rest) = location.split_once("://")?;
        let same = scheme.eq_ignore_ascii_case(if base.https { "https" } else { "http" });
        if !same {
            return None;
        }
        same_authority(rest, base)?
    };
    let rest = below.strip_prefix(&*base.path)?;
    let end = rest.find(['?', '#']).unwrap_or(rest.len());
    let path = &rest[..end];
    let whole = path.is_empty() || path.starts_with('/');
    (whole && path::check(path).is_ok()).then_some(rest)
}

/// What comes after the authority, when it is the base's.
fn same_authority<'a>(rest: &'a str, base: &Base) -> Option<&'a str> {
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, after) = rest.split_at(end);
    let ours = base.authority.to_str().ok()?;
    let same = authority.eq_ignore_ascii_case(ours)
        || authority.rsplit_once(':').is_some_and(|(host, port)| {
            host.trim_matches(['[', ']']).eq_ignore_ascii_case(&base.host) && port.parse() == Ok(base.port)
        });
    same.then_some(after)
}

/// RFC 9110 §7.6.1: what any line of `Connection` names is between two neighbours only.
fn remove_nominated(headers: &mut HeaderMap) {
    if !headers.contains_key(CONNECTION) {
        return;
    }
    let mut gone: Vec<HeaderName> = Vec::new();
    for line in headers.get_all(CONNECTION) {
        for token in line.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
            if token.eq_ignore_ascii_case(b"keep-alive") || token.eq_ignore_ascii_case(b"close") {
                continue;
            }
            gone.extend(HeaderName::from_bytes(token));
        }
    }
    for name in gone {
        headers.remove(name);
    }
}

fn dashed(name: &str) -> String {
    name.replace('_', "-")
}

fn twins(one: &str, other: &str) -> bool {
    let same = |a: u8, b: u8| a == b || (matches!(a, b'-' | b'_') && matches!(b, b'-' | b'_'));
    one.len() == other.len() && one.bytes().zip(other.bytes()).all(|(a, b)| same(a, b))
}

/// Between neighbours, both ways.
fn hop_by_hop(name: &str) -> bool {
    matches!(
        name,
        "connection"
            | "keep-alive"
            | "proxy-connection"
            | "proxy-authenticate"
            | "proxy-authorization"
            | "proxy-authentication-info"
            | "te"
            | "trailer"
            | "transfer-encoding"
            | "upgrade"
            | "http2-settings"
    )
}

/// The first letter sorts out most names without comparing them.
fn off_request(name: &str) -> bool {
    match name.as_bytes().first() {
        Some(b'x') => {
            name.starts_with("x-forwarded")
                || matches!(
                    name,
                    // credentials
                    "x-api-key" | "x-authorization"
                    // who is asking
                    | "x-real-ip" | "x-client-ip" | "x-cluster-client-ip" | "x-remote-ip" | "x-remote-addr"
                    | "x-originating-ip" | "x-original-forwarded-for"
                    // another method, another URL
                    | "x-http-method" | "x-http-method-override" | "x-method-override"
                    | "x-original-url" | "x-original-uri" | "x-original-host" | "x-rewrite-url" | "x-override-url"
                    | "x-http-host-override" | "x-http-destinationurl" | "x-host"
                )
        }
        Some(b'a') => matches!(name, "authorization" | "api-key"),
        Some(b'c') => matches!(name, "connection" | "cookie" | "cookie2" | "cf-connecting-ip" | "client-ip"),
        // An expectation is between us and the agent: its body is asked for when it is read.
        Some(b'e') => name == "expect",
        Some(b'f') => matches!(name, "forwarded" | "fastly-client-ip"),
        Some(b'k') => name.starts_with("keyward-") || name == "keep-alive",
        Some(b't') => matches!(name, "te" | "trailer" | "transfer-encoding" | "true-client-ip"),
        Some(b'v') => name == "via",
        Some(b'h' | b'p' | b'u') => hop_by_hop(name),
        _ => false,
    }
}

fn off_answer(name: &str) -> bool {
    match name.as_bytes().first() {
        Some(b'a') => name == "alt-svc" || name.starts_with("access-control-"),
        Some(b's') => matches!(name, "set-cookie" | "set-cookie2" | "strict-transport-security"),
        Some(b'c') => matches!(name, "connection" | "clear-site-data"),
        Some(b'k') => name.starts_with("keyward-") || name == "keep-alive",
        // A web server in front of us would take these as orders to serve a file of its own.
        Some(b'x') => name.starts_with("x-accel-") || name == "x-sendfile",
        Some(b'h' | b'p' | b't' | b'u') => hop_by_hop(name),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in lines {
            map.append(*name, HeaderValue::from_static(value));
        }
        map
    }

    fn names(map: &HeaderMap) -> Vec<&str> {
        let mut names: Vec<_> = map.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn nothing_of_ours_or_of_the_connection_goes_out() {
        let mut map = headers(&[
            ("accept", "*/*"),
            ("content-type", "application/json"),
            ("user-agent", "agent/1"),
            ("traceparent", "00-1-1-00"),
            ("if-none-match", "\"a\""),
            ("x-request-id", "7"),
            ("prefer", "return=minimal"),
            ("x_custom", "kept"),
            ("consistencylevel", "eventual"),
            // and now what has to go
            ("connection", "close, X-First"),
            ("connection", "x-second,  keep-alive"),
            ("x-first", "1"),
            ("x-second", "1"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "keep-alive"),
            ("proxy-authorization", "Basic a"),
            ("te", "trailers"),
            ("trailer", "x"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("http2-settings", "AA"),
            ("expect", "100-continue"),
            ("authorization", "Bearer kw_x"),
            ("x-api-key", "kw_x"),
            ("api-key", "kw_x"),
            ("x-authorization", "a"),
            ("x_api_key", "kw_x"),
            ("api_key", "kw_x"),
            ("x-api_key", "kw_x"),
            ("content_length", "5"),
            ("transfer_encoding", "chunked"),
            ("host_", "kept too"),
            ("cookie", "a=b"),
            ("forwarded", "for=1.2.3.4"),
            ("x-forwarded-for", "1.2.3.4"),
            ("x-forwarded-anything", "1"),
            ("x_forwarded_host", "evil.example.com"),
            ("x-real-ip", "1.2.3.4"),
            ("via", "1.1 a"),
            ("true-client-ip", "1.2.3.4"),
            ("x-http-method-override", "DELETE"),
            ("x-http-method", "DELETE"),
            ("x-method-override", "DELETE"),
            ("x-original-url", "/admin"),
            ("x-rewrite-url", "/admin"),
            ("keyward-approval", "1"),
            ("keyward-request-id", "1"),
        ]);
        clean_request(&mut map);
        assert_eq!(
            names(&map),
            [
                "accept",
                "consistencylevel",
                "content-type",
                "host_",
                "if-none-match",
                "prefer",
                "traceparent",
                "user-agent",
                "x-request-id",
                "x_custom",
            ]
        );
    }

    #[test]
    fn the_credential_is_there_once_and_under_one_name() {
        let ours = [
            (HeaderName::from_static("x-shop-token"), HeaderValue::from_static("ours")),
            (HeaderName::from_static("accept"), HeaderValue::from_static("application/vnd.shop+json")),
        ];
        let mut map = headers(&[
            ("x-shop-token", "theirs"),
            ("x-shop-token", "theirs again"),
            ("x_shop_token", "theirs"),
            ("x-shop_token", "theirs"),
            ("accept", "*/*"),
            ("x-shop", "kept"),
        ]);
        inject(&mut map, &ours);
        assert_eq!(names(&map), ["accept", "x-shop", "x-shop-token"]);
        assert_eq!(map.get_all("x-shop-token").iter().collect::<Vec<_>>(), ["ours"]);
        assert_eq!(map["accept"], "application/vnd.shop+json");
    }

    #[test]
    fn nothing_that_acts_on_our_origin_comes_back() {
        let mut map = headers(&[
            ("content-type", "application/json"),
            ("etag", "\"a\""),
            ("www-authenticate", "Bearer"),
            ("retry-after", "3"),
            ("content-encoding", "gzip"),
            ("content-length", "12"),
            ("x-ratelimit-remaining", "3"),
            // and now what has to go
            ("transfer-encoding", "chunked"),
            ("connection", "x-hop"),
            ("x-hop", "1"),
            ("keep-alive", "timeout=5"),
            ("trailer", "x"),
            ("upgrade", "h2"),
            ("proxy-authenticate", "Basic"),
            ("set-cookie", "a=b"),
            ("set-cookie", "c=d"),
            ("alt-svc", "h3=\":443\""),
            ("strict-transport-security", "max-age=1"),
            ("clear-site-data", "*"),
            ("access-control-allow-origin", "*"),
            ("access-control-allow-credentials", "true"),
            ("keyward-error", "invalid_key"),
            ("keyward-request-id", "forged"),
            ("x-accel-redirect", "/secret"),
        ]);
        clean_answer(&mut map);
        assert_eq!(
            names(&map),
            ["content-encoding", "content-type", "etag", "retry-after", "www-authenticate", "x-ratelimit-remaining"]
        );
        let mut sized = headers(&[("content-length", "12")]);
        clean_answer(&mut sized);
        assert_eq!(names(&sized), ["content-length"]);
    }

    fn base(https: bool, host: &str, port: u16, authority: &'static str, path: &str) -> Base {
        Base { https, host: host.into(), port, authority: HeaderValue::from_static(authority), path: path.into() }
    }

    #[test]
    fn locations_under_the_base_are_rewritten_and_others_left_alone() {
        let api = base(true, "api.example.com", 443, "api.example.com", "/v2");
        let local = base(false, "::1", 8080, "[::1]:8080", "");
        let table: &[(&Base, &str, Option<&str>)] = &[
            (&api, "https://api.example.com/v2/a/b?c=d#e", Some("/proxy/crm/a/b?c=d#e")),
            (&api, "HTTPS://API.example.COM/v2/a", Some("/proxy/crm/a")),
            (&api, "https://api.example.com:443/v2/a", Some("/proxy/crm/a")),
            (&api, "//api.example.com/v2/a", Some("/proxy/crm/a")),
            (&api, "https://api.example.com/v2", Some("/proxy/crm")),
            (&api, "https://api.example.com/v2?x", Some("/proxy/crm?x")),
            (&api, "/v2/a?b", Some("/proxy/crm/a?b")),
            (&api, "/v20/a", None),
            (&api, "/v1/a", None),
            (&api, "/v2/../admin", None),
            (&api, "/v2/%2e%2e/admin", None),
            (&api, "/v2//x", None),
            (&api, "http://api.example.com/v2/a", None),
            (&api, "https://api.example.com:444/v2/a", None),
            (&api, "https://api.example.com.evil.example.org/v2/a", None),
            (&api, "https://ada@api.example.com/v2/a", None),
            (&api, "https://api.example.com@evil.example.org/v2/a", None),
            (&api, "https://elsewhere.example.org/v2/a", None),
            (&api, "a/b", None),
            (&api, "?page=2", None),
            (&local, "http://[::1]:8080/x", Some("/proxy/crm/x")),
            (&local, "/", Some("/proxy/crm/")),
            (&local, "http://[::1]:8081/x", None),
        ];
        for (base, location, expected) in table {
            let mut map = HeaderMap::new();
            map.insert(LOCATION, HeaderValue::from_str(location).unwrap());
            relocate(&mut map, base, "crm");
            assert_eq!(map[LOCATION].to_str().unwrap(), expected.unwrap_or(location), "{location}");
        }
    }
}
