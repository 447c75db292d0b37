//! What is taken off a request before it goes out, and off an answer before it goes back. One pass over the names, in
//! place; the credential goes in afterwards, so that nothing here can touch it.

use http::header::{
    CONNECTION, CONTENT_LENGTH, CONTENT_SECURITY_POLICY, LOCATION, TRANSFER_ENCODING, X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use super::{Refusal, path};
use crate::catalog::Base;

/// A page of an upstream must not act on the origin that all upstreams share here.
pub(super) const SANDBOX: HeaderValue = HeaderValue::from_static("sandbox; default-src 'none'; frame-ancestors 'none'");
pub(super) const NOSNIFF: HeaderValue = HeaderValue::from_static("nosniff");

/// Checks what is no oddity but an attempt: a name that some servers read as one that frames the message or opens a door,
/// and a `Connection` that names what a message can't do without.
///
/// # Errors
/// [`Refusal::BadRequest`].
pub(super) fn check_request(headers: &HeaderMap) -> Result<(), Refusal> {
    let twin = |name: &HeaderName| {
        let name = name.as_str();
        memchr::memchr(b'_', name.as_bytes()).is_some() && essential(dashed(name).trim_matches('-'))
    };
    if headers.keys().any(twin) {
        return Err(Refusal::BadRequest("A header's name differs only by underscores from one that must be plain."));
    }
    if nominated(headers).any(|token| essential(&String::from_utf8_lossy(token).to_ascii_lowercase())) {
        return Err(Refusal::BadRequest("Connection names a header that is not the connection's."));
    }
    Ok(())
}

/// Frames the message, says where it goes, or holds a credential.
fn essential(name: &str) -> bool {
    matches!(
        name,
        "host"
            | "transfer-encoding"
            | "connection"
            | "expect"
            | "authorization"
            | "x-authorization"
            | "x-api-key"
            | "api-key"
    ) || name.starts_with("content-")
        || name.starts_with("keyward-")
}

/// Whether an answer's framing can be read in one way only (RFC 9112 §6.3). The parser takes the last coding and forgets
/// a length beside it; whoever sent both may mean the other (RFC 9112 §11.2).
pub(super) fn is_sound(headers: &HeaderMap) -> bool {
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    let length = lengths.next();
    if lengths.next().is_some() || length.is_some_and(|length| !length.as_bytes().iter().all(u8::is_ascii_digit)) {
        return false;
    }
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    let Some(coding) = codings.next() else { return true };
    length.is_none() && codings.next().is_none() && coding.as_bytes().eq_ignore_ascii_case(b"chunked")
}

/// Adds what keeps a browser from running an answer as a page of ours. Beside a policy of the upstream's own: both hold
/// then, and the stricter wins (CSP3 §4.2). Not where there is nothing to show: a 304 would change what is kept already
/// (RFC 9111 §3.2), and for the same reason says nothing of the upstream's about it.
pub(super) fn guard(headers: &mut HeaderMap, status: StatusCode) {
    if !matches!(status, StatusCode::SWITCHING_PROTOCOLS | StatusCode::NOT_MODIFIED) {
        headers.insert(X_CONTENT_TYPE_OPTIONS, NOSNIFF);
        headers.append(CONTENT_SECURITY_POLICY, SANDBOX);
    } else if status == StatusCode::NOT_MODIFIED {
        headers.remove(X_CONTENT_TYPE_OPTIONS);
        headers.remove(CONTENT_SECURITY_POLICY);
    }
}

/// Whether what an upstream says here gives way to [`guard`] in an answer of this status.
pub(super) fn is_guarded(name: &[u8], status: StatusCode) -> bool {
    name == b"x-content-type-options" || (status == StatusCode::NOT_MODIFIED && name == b"content-security-policy")
}

/// Takes off everything that is not the agent's to say to an upstream.
pub(super) fn clean_request(headers: &mut HeaderMap) {
    remove_nominated(headers);
    let mut gone: Vec<HeaderName> = Vec::new();
    for name in headers.keys() {
        let text = name.as_str();
        // `x_api_key` is `X-Api-Key` to servers that turn names into variables (CGI and its heirs).
        let off = if memchr::memchr(b'_', text.as_bytes()).is_some() {
            let twin = dashed(text);
            off_request(twin.as_bytes())
        } else {
            off_request(text.as_bytes())
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
/// With `cookies` the target may set some.
pub(super) fn clean_answer(headers: &mut HeaderMap, cookies: bool) {
    remove_nominated(headers);
    if headers.contains_key(TRANSFER_ENCODING) {
        // The length was overruled (RFC 9112 §6.3); forwarded, it would frame our own answer wrongly.
        headers.remove(CONTENT_LENGTH);
    }
    let gone: Vec<_> = headers.keys().filter(|name| off_answer(name.as_str().as_bytes(), cookies)).cloned().collect();
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
            let plain = port.bytes().all(|byte| byte.is_ascii_digit()) && !port.starts_with('0');
            let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
            let host = if base.host.contains(':') { bare } else { Some(host) };
            host.is_some_and(|host| host.eq_ignore_ascii_case(&base.host)) && plain && port.parse() == Ok(base.port)
        });
    same.then_some(after)
}

/// RFC 9110 §7.6.1: what any line of `Connection` names is between two neighbours only.
fn remove_nominated(headers: &mut HeaderMap) {
    if !headers.contains_key(CONNECTION) {
        return;
    }
    let gone: Vec<_> = nominated(headers).filter_map(|token| HeaderName::from_bytes(token).ok()).collect();
    for name in gone {
        headers.remove(name);
    }
}

/// What `Connection` names, but for its two own words.
fn nominated(headers: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    let lines = headers.get_all(CONNECTION).iter();
    let tokens = lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii));
    tokens.filter(|token| !token.eq_ignore_ascii_case(b"keep-alive") && !token.eq_ignore_ascii_case(b"close"))
}

fn dashed(name: &str) -> String {
    name.replace('_', "-")
}

fn twins(one: &str, other: &str) -> bool {
    let same = |a: u8, b: u8| a == b || (matches!(a, b'-' | b'_') && matches!(b, b'-' | b'_'));
    one.len() == other.len() && one.bytes().zip(other.bytes()).all(|(a, b)| same(a, b))
}

/// Between neighbours, both ways.
fn hop_by_hop(name: &[u8]) -> bool {
    matches!(
        name,
        b"connection"
            | b"keep-alive"
            | b"proxy-connection"
            | b"proxy-authenticate"
            | b"proxy-authorization"
            | b"proxy-authentication-info"
            | b"te"
            | b"trailer"
            | b"transfer-encoding"
            | b"upgrade"
            | b"http2-settings"
    )
}

/// The first letter sorts out most names without comparing them.
pub(super) fn off_request(name: &[u8]) -> bool {
    match name.first() {
        Some(b'x') => {
            name.starts_with(b"x-forwarded")
                || matches!(
                    name,
                    // credentials
                    b"x-api-key" | b"x-authorization"
                    // who is asking
                    | b"x-real-ip" | b"x-client-ip" | b"x-cluster-client-ip" | b"x-remote-ip" | b"x-remote-addr"
                    | b"x-originating-ip" | b"x-original-forwarded-for"
                    // another method, another URL
                    | b"x-http-method" | b"x-http-method-override" | b"x-method-override"
                    | b"x-original-url" | b"x-original-uri" | b"x-original-host" | b"x-rewrite-url" | b"x-override-url"
                    | b"x-http-host-override" | b"x-http-destinationurl" | b"x-host"
                )
        }
        Some(b'a') => matches!(name, b"authorization" | b"api-key"),
        Some(b'c') => matches!(name, b"connection" | b"cookie" | b"cookie2" | b"cf-connecting-ip" | b"client-ip"),
        // An expectation is between us and the agent: its body is asked for when it is read.
        Some(b'e') => name == b"expect",
        Some(b'f') => matches!(name, b"forwarded" | b"fastly-client-ip"),
        Some(b'k') => name.starts_with(b"keyward-") || name == b"keep-alive",
        Some(b't') => matches!(name, b"te" | b"trailer" | b"transfer-encoding" | b"true-client-ip"),
        Some(b'v') => name == b"via",
        Some(b'h' | b'p' | b'u') => hop_by_hop(name),
        _ => false,
    }
}

pub(super) fn off_answer(name: &[u8], cookies: bool) -> bool {
    match name.first() {
        Some(b'a') => name == b"alt-svc" || name.starts_with(b"access-control-"),
        Some(b's') => match name {
            b"set-cookie" => !cookies,
            _ => matches!(name, b"set-cookie2" | b"strict-transport-security" | b"service-worker-allowed"),
        },
        Some(b'c') => matches!(name, b"connection" | b"clear-site-data"),
        // What a browser remembers of an origin, and tells others of it.
        Some(b'e' | b'n' | b'r') => matches!(name, b"expect-ct" | b"nel" | b"report-to" | b"reporting-endpoints"),
        Some(b'k') => name.starts_with(b"keyward-") || name == b"keep-alive",
        // A web server in front of us would take these as orders to serve a file of its own.
        Some(b'x') => name.starts_with(b"x-accel-") || name == b"x-sendfile",
        Some(b'p') => hop_by_hop(name) || name.starts_with(b"public-key-pins"),
        Some(b'h' | b't' | b'u') => hop_by_hop(name),
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
            ("transfer_encoding", "chunked"),
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
            ("nel", "{}"),
            ("report-to", "{}"),
            ("reporting-endpoints", "a=\"https://example.com\""),
            ("expect-ct", "max-age=1"),
            ("public-key-pins", "max-age=1"),
            ("service-worker-allowed", "/"),
        ]);
        clean_answer(&mut map, false);
        assert_eq!(
            names(&map),
            ["content-encoding", "content-type", "etag", "retry-after", "www-authenticate", "x-ratelimit-remaining"]
        );
        let mut sized = headers(&[("content-length", "12")]);
        clean_answer(&mut sized, false);
        assert_eq!(names(&sized), ["content-length"]);
    }

    #[test]
    fn names_and_nominations_that_are_attempts_are_refused() {
        for name in [
            "content_length",
            "Content_Type",
            "transfer_encoding",
            "x_api_key",
            "x-api_key",
            "api_key",
            "authorization_",
            "_authorization",
            "x_authorization",
            "host_",
            "keyward_approval",
            "connection_",
        ] {
            let mut map = headers(&[("accept", "*/*")]);
            map.insert(HeaderName::try_from(name).unwrap(), HeaderValue::from_static("1"));
            assert!(matches!(check_request(&map), Err(Refusal::BadRequest(_))), "{name}");
        }
        for tokens in ["Host", "close, content-length", "x,Authorization ", "content-type", "X-Api-Key", "keyward-a"] {
            let mut map = headers(&[("connection", "keep-alive")]);
            map.append(CONNECTION, HeaderValue::from_static(tokens));
            assert!(matches!(check_request(&map), Err(Refusal::BadRequest(_))), "{tokens}");
        }
        let fine = headers(&[
            ("connection", "keep-alive, TE, x-mine, upgrade,, not a name"),
            ("connection", "close"),
            ("x_custom", "1"),
            ("x_forwarded_for", "1"),
            ("contented_ness", "1"),
        ]);
        assert_eq!(check_request(&fine), Ok(()));
    }

    #[test]
    fn answers_whose_framing_has_two_readings_are_not_sound() {
        let table: &[(&[(&'static str, &'static str)], bool)] = &[
            (&[], true),
            (&[("content-length", "12")], true),
            (&[("transfer-encoding", "Chunked")], true),
            (&[("content-length", "12"), ("content-length", "12")], false),
            (&[("content-length", "12, 12")], false),
            (&[("content-length", "+12")], false),
            (&[("content-length", "12"), ("transfer-encoding", "chunked")], false),
            (&[("transfer-encoding", "gzip, chunked")], false),
            (&[("transfer-encoding", "gzip")], false),
            (&[("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")], false),
            (&[("transfer-encoding", "chunked"), ("transfer-encoding", "identity")], false),
        ];
        for (lines, sound) in table {
            assert_eq!(is_sound(&headers(lines)), *sound, "{lines:?}");
        }
    }

    #[test]
    fn what_browsers_must_not_do_is_said_beside_what_the_upstream_says() {
        let mut map = headers(&[("content-security-policy", "default-src *"), ("x-content-type-options", "sniff")]);
        guard(&mut map, StatusCode::OK);
        assert_eq!(map.get_all("x-content-type-options").iter().collect::<Vec<_>>(), ["nosniff"]);
        let policies: Vec<_> = map.get_all("content-security-policy").iter().collect();
        assert_eq!(policies, ["default-src *", "sandbox; default-src 'none'; frame-ancestors 'none'"]);
        let mut map = HeaderMap::new();
        guard(&mut map, StatusCode::SWITCHING_PROTOCOLS);
        assert!(map.is_empty());
        let mut map = headers(&[("content-security-policy", "default-src *"), ("x-content-type-options", "sniff")]);
        guard(&mut map, StatusCode::NOT_MODIFIED);
        assert!(map.is_empty(), "what is kept of an answer keeps its guards");
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
            (&local, "http://[::1]]:8080/x", None),
            (&local, "http://::1:8080/x", None),
            (&api, "https://[api.example.com]:443/v2/a", None),
            (&api, "https://api.example.com:0443/v2/a", None),
            (&api, "https://api.example.com:+443/v2/a", None),
        ];
        for (base, location, expected) in table {
            let mut map = HeaderMap::new();
            map.insert(LOCATION, HeaderValue::from_str(location).unwrap());
            relocate(&mut map, base, "crm");
            assert_eq!(map[LOCATION].to_str().unwrap(), expected.unwrap_or(location), "{location}");
        }
    }
}
