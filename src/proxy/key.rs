//! Where an agent's key may stand in a request, and that it stands nowhere else.

use std::ops::Range;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderName, HeaderValue, Uri};

use super::{Refusal, path};
use crate::secret::Secret;

const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");
const API_KEY: HeaderName = HeaderName::from_static("api-key");

const PREFIX: &[u8] = b"kw_";
/// No key is longer.
const LONGEST: usize = 128;
/// What follows the prefix of a key is not shorter.
const SHORTEST: usize = 40;

/// A key as it was presented.
pub(super) enum Key {
    /// Part of a header's value.
    Plain(HeaderValue, Range<usize>),
    /// The password of `Authorization: Basic`.
    Decoded(Secret<Vec<u8>>),
}

impl Key {
    pub(super) fn expose(&self) -> &[u8] {
        match self {
            Self::Plain(value, range) => &value.as_bytes()[range.clone()],
            Self::Decoded(bytes) => bytes.expose(),
        }
    }
}

/// The key that a request presents, if it presents one.
///
/// # Errors
/// [`Refusal::AmbiguousKey`] when it presents two different ones, [`Refusal::BadRequest`] for the same header twice: what
/// stands in front of us may have looked at the other one.
pub(super) fn presented(headers: &HeaderMap) -> Result<Option<Key>, Refusal> {
    let mut found: Option<Key> = None;
    let authorization = headers.get_all(AUTHORIZATION).iter().filter_map(from_authorization);
    let others = [X_API_KEY, API_KEY];
    let others = others.iter().flat_map(|name| headers.get_all(name)).filter_map(|value| plain(value, 0));
    for key in authorization.chain(others) {
        match &found {
            Some(first) if first.expose() != key.expose() => return Err(Refusal::AmbiguousKey),
            Some(_) => {}
            None => found = Some(key),
        }
    }
    if [AUTHORIZATION, X_API_KEY, API_KEY].iter().any(|name| headers.get_all(name).iter().nth(1).is_some()) {
        return Err(Refusal::BadRequest("A header for the key is there more than once."));
    }
    Ok(found)
}

fn plain(value: &HeaderValue, from: usize) -> Option<Key> {
    let bytes = &value.as_bytes()[from..];
    let key = bytes.trim_ascii();
    let start = from + bytes.len() - bytes.trim_ascii_start().len();
    (!key.is_empty()).then(|| Key::Plain(value.clone(), start..start + key.len()))
}

fn from_authorization(value: &HeaderValue) -> Option<Key> {
    let bytes = value.as_bytes();
    let space = memchr::memchr(b' ', bytes)?;
    let scheme = &bytes[..space];
    if scheme.eq_ignore_ascii_case(b"bearer") || scheme.eq_ignore_ascii_case(b"token") {
        return plain(value, space + 1);
    }
    if !scheme.eq_ignore_ascii_case(b"basic") {
        return None;
    }
    let pair = Secret::new(STANDARD.decode(bytes[space + 1..].trim_ascii()).ok()?);
    let colon = memchr::memchr(b':', pair.expose())?;
    let password = &pair.expose()[colon + 1..];
    (!password.is_empty()).then(|| Key::Decoded(Secret::new(password.to_vec())))
}

/// Checks that a key stands only where [`presented`] looks for it: anywhere else it would travel on to an upstream,
/// into its logs and into links.
///
/// # Errors
/// [`Refusal::KeyInRequest`].
pub(super) fn only_where_it_belongs(key: &[u8], uri: &Uri, headers: &HeaderMap) -> Result<(), Refusal> {
    // Anything else is refused as invalid before it could go anywhere.
    if !key.starts_with(PREFIX) || key.len() > LONGEST {
        return Ok(());
    }
    let line = uri.path_and_query().map_or("", |line| line.as_str()).as_bytes();
    let encoded = || memchr::memchr(b'%', line).is_some() && holds(&path::lenient(line, false), key);
    let in_header = || {
        headers.iter().any(|(name, value)| {
            let at_home = *name == AUTHORIZATION || *name == X_API_KEY || *name == API_KEY;
            (!at_home && holds(value.as_bytes(), key)) || names(name, key)
        })
    };
    if holds(line, key) || encoded() || in_header() { Err(Refusal::KeyInRequest) } else { Ok(()) }
}

/// Whether `text` has `key` in it. Looks for the underscore of the prefix: nothing to set up, and rare in what is searched.
fn holds(text: &[u8], key: &[u8]) -> bool {
    text.len() >= key.len() && prefixes(text).any(|at| text[at..].starts_with(key))
}

/// Header names have lost their case.
fn names(name: &HeaderName, key: &[u8]) -> bool {
    let name = name.as_str().as_bytes();
    name.len() >= key.len()
        && prefixes(name).any(|at| name[at..].get(..key.len()).is_some_and(|part| part.eq_ignore_ascii_case(key)))
}

/// Where keys may begin.
pub(super) fn prefixes(text: &[u8]) -> impl Iterator<Item = usize> {
    let starts = memchr::memchr_iter(b'_', text).filter_map(|at| at.checked_sub(PREFIX.len() - 1));
    starts.filter(move |at| text[*at..].starts_with(PREFIX))
}

/// The path as it may be written down: not when something of a key's form is in it.
pub(super) fn recordable(path: &str) -> &str {
    if is_in(path) { "/(not recorded: it holds a key)" } else { path }
}

/// Whether something of a key's form is in a part of a URL, also percent-encoded.
pub(super) fn is_in(text: &str) -> bool {
    let holds_key = |text: &[u8]| {
        prefixes(text).any(|at| {
            let rest = &text[at + PREFIX.len()..];
            let body = rest.iter().take_while(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
            body.count() >= SHORTEST
        })
    };
    let bytes = text.as_bytes();
    holds_key(bytes) || (memchr::memchr(b'%', bytes).is_some() && holds_key(&path::lenient(bytes, false)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "kw_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAaBcDeF";
    const OTHER: &str = "kw_BBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBaBcDeF";

    fn headers(lines: &[(&'static str, String)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in lines {
            map.append(*name, value.parse().unwrap());
        }
        map
    }

    fn basic(pair: &str) -> String {
        format!("Basic {}", STANDARD.encode(pair))
    }

    #[test]
    fn a_key_is_found_in_each_of_its_places() {
        for (name, value) in [
            ("authorization", format!("Bearer {KEY}")),
            ("authorization", format!("bearer   {KEY} ")),
            ("authorization", format!("token {KEY}")),
            ("authorization", basic(&format!("ada:{KEY}"))),
            ("authorization", basic(&format!(":{KEY}"))),
            ("x-api-key", KEY.to_owned()),
            ("api-key", KEY.to_owned()),
        ] {
            let found = presented(&headers(&[(name, value.clone())])).ok().flatten();
            assert_eq!(found.map(|key| key.expose().to_vec()), Some(KEY.as_bytes().to_vec()), "{name}: {value}");
        }
    }

    #[test]
    fn what_is_not_a_key_is_absent() {
        for (name, value) in [
            ("authorization", "Bearer ".to_owned()),
            ("authorization", "Bearer".to_owned()),
            ("authorization", "Digest username=\"a\"".to_owned()),
            ("authorization", "Basic !!!".to_owned()),
            ("authorization", basic(KEY)),
            ("authorization", basic("ada:")),
            ("x-auth-key", KEY.to_owned()),
            ("x-api-key", String::new()),
        ] {
            assert!(matches!(presented(&headers(&[(name, value.clone())])), Ok(None)), "{name}: {value}");
        }
    }

    #[test]
    fn two_keys_are_one_too_many_unless_they_are_the_same_in_other_places() {
        let bearer = |key: &str| ("authorization", format!("Bearer {key}"));
        for (lines, fine) in [
            (vec![bearer(KEY), ("x-api-key", KEY.to_owned())], true),
            (vec![bearer(KEY), ("api-key", KEY.to_owned()), ("x-api-key", KEY.to_owned())], true),
            (vec![bearer(KEY), bearer(KEY)], false),
            (vec![bearer(KEY), ("authorization", "Digest a".to_owned())], false),
            (vec![("x-api-key", KEY.to_owned()), ("x-api-key", KEY.to_owned())], false),
            (vec![bearer(KEY), ("authorization", basic(&format!("a:{KEY}")))], false),
            (vec![bearer(KEY), ("x-api-key", OTHER.to_owned())], false),
            (vec![bearer(KEY), bearer(OTHER)], false),
            (vec![("api-key", OTHER.to_owned()), ("x-api-key", KEY.to_owned())], false),
        ] {
            assert_eq!(presented(&headers(&lines)).is_ok(), fine, "{lines:?}");
        }
    }

    #[test]
    fn a_key_anywhere_else_is_refused() {
        let check = |uri: &str, lines: &[(&'static str, String)]| {
            only_where_it_belongs(KEY.as_bytes(), &uri.parse().unwrap(), &headers(lines))
        };
        let home =
            [("authorization", format!("Bearer {KEY}")), ("x-api-key", KEY.to_owned()), ("accept", "*/*".into())];
        assert!(check("/proxy/crm/a?b=c%20d", &home).is_ok());
        assert!(check(&format!("/proxy/crm/{OTHER}"), &home).is_ok());
        for uri in [
            format!("/proxy/crm/{KEY}"),
            format!("/proxy/{KEY}/a"),
            format!("/proxy/crm/a?key={KEY}&b"),
            format!("/proxy/crm/a?key={}", KEY.replace('_', "%5F")),
            format!("/proxy/crm/{}", KEY.replace('A', "%41")),
        ] {
            assert!(matches!(check(&uri, &home), Err(Refusal::KeyInRequest)), "{uri}");
        }
        for line in [
            ("cookie", format!("session={KEY}")),
            ("x-authorization", format!("Bearer {KEY}")),
            ("x_api_key", KEY.to_owned()),
            ("referer", format!("http://example.com/?k={KEY}")),
            ("proxy-authorization", format!("Bearer {KEY}")),
            ("user-agent", KEY.to_owned()),
        ] {
            assert!(
                matches!(check("/proxy/crm/a", std::slice::from_ref(&line)), Err(Refusal::KeyInRequest)),
                "{line:?}"
            );
        }
        let mut named = HeaderMap::new();
        named.insert(HeaderName::try_from(format!("x-{KEY}")).unwrap(), HeaderValue::from_static("1"));
        let uri = "/proxy/crm/a".parse().unwrap();
        assert!(matches!(only_where_it_belongs(KEY.as_bytes(), &uri, &named), Err(Refusal::KeyInRequest)));
    }

    #[test]
    fn a_path_that_holds_a_key_is_not_written_down() {
        assert_eq!(recordable("/me/messages"), "/me/messages");
        assert_eq!(recordable("/kw_short"), "/kw_short");
        assert!(!recordable(&format!("/a/{KEY}")).contains(KEY));
        assert!(!recordable(&format!("/a/{}", KEY.replace('_', "%5f"))).contains("AAAA"));
    }
}
