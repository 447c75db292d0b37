//! What of a credential tells it: the runs of bytes that must not come back in an answer.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::HeaderName;
use http::header::{ACCEPT, ACCEPT_LANGUAGE, CONTENT_TYPE, USER_AGENT};
use memchr::memmem::Finder;

use super::Injection;

/// Shorter secrets are not looked for: they would be found everywhere.
const LEAST: usize = 8;

/// A credential's secrets, ready to be looked for; clones are the same. There is no `Debug`: it would show them.
#[derive(Clone)]
pub struct Secrets(Arc<[Finder<'static>]>);

impl Secrets {
    /// Those of a credential.
    #[must_use]
    pub fn of(injection: &Injection) -> Self {
        let mut secrets = Vec::new();
        each_secret(injection, |secret| secrets.push(Finder::new(secret).into_owned()));
        Self(secrets.into())
    }

    /// These.
    pub fn of_bytes<'a>(secrets: impl IntoIterator<Item = &'a [u8]>) -> Self {
        Self(secrets.into_iter().map(|secret| Finder::new(secret).into_owned()).collect())
    }

    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = &Finder<'static>> {
        self.0.iter()
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is nothing to look for.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// A credential ready to be put into requests, and to be recognised in their answers.
pub struct Ready {
    injection: Injection,
    secrets: Secrets,
}

impl Ready {
    /// Gets a credential ready, once for many requests.
    #[must_use]
    pub fn new(injection: Injection) -> Self {
        Self { secrets: Secrets::of(&injection), injection }
    }

    /// What goes into a request.
    #[must_use]
    pub fn injection(&self) -> &Injection {
        &self.injection
    }

    /// What must not come back.
    #[must_use]
    pub fn secrets(&self) -> &Secrets {
        &self.secrets
    }
}

/// Calls `found` with each run of bytes that tells a credential: the token of `Bearer …`; of `Basic …` what is sent and the
/// password; a query parameter's value as it is sent and as it is meant.
fn each_secret(injection: &Injection, mut found: impl FnMut(&[u8])) {
    let mut found = |secret: &[u8]| {
        if secret.len() >= LEAST {
            found(secret);
        }
    };
    let (headers, pair) = match injection {
        Injection::Headers(headers) => (headers, None),
        Injection::Query { pair, headers, .. } => (headers, Some(pair)),
    };
    for (_, value) in headers.iter().filter(|(name, value)| value.is_sensitive() && !is_manner(name)) {
        secrets_of_header(value.as_bytes(), &mut found);
    }
    let value = pair.and_then(|pair| pair.split_once('=')).map_or("", |(_, value)| value);
    found(value.as_bytes());
    if value.contains(['%', '+']) {
        for (meant, _) in url::form_urlencoded::parse(value.as_bytes()) {
            found(meant.as_bytes());
        }
    }
}

fn secrets_of_header(value: &[u8], found: &mut impl FnMut(&[u8])) {
    let (scheme, rest) = match memchr::memchr(b' ', value) {
        Some(space) if value.len() - space > LEAST => (&value[..space], &value[space + 1..]),
        _ => (&value[..0], value),
    };
    found(rest);
    if !scheme.eq_ignore_ascii_case(b"basic") {
        return;
    }
    if let Ok(pair) = STANDARD.decode(rest)
        && let Some(colon) = memchr::memchr(b':', &pair)
    {
        let (user, password) = (&pair[..colon], &pair[colon + 1..]);
        // Where the password is none to speak of, the user name is the secret (`api-key:x`).
        found(if password.len() < LEAST { user } else { password });
    }
}

/// Headers that a credential may bring along and that are no secret: hiding what they say would spoil answers.
fn is_manner(name: &HeaderName) -> bool {
    [ACCEPT, ACCEPT_LANGUAGE, CONTENT_TYPE, USER_AGENT].contains(name) || name.as_str().ends_with("-version")
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn header(value: &str) -> Injection {
        named("authorization", value)
    }

    fn named(name: &'static str, value: &str) -> Injection {
        let mut value = HeaderValue::from_str(value).unwrap();
        value.set_sensitive(true);
        Injection::Headers(vec![(HeaderName::from_static(name), value)])
    }

    fn secrets(injection: &Injection) -> Vec<String> {
        let mut secrets = Vec::new();
        each_secret(injection, |secret| secrets.push(String::from_utf8(secret.to_vec()).unwrap()));
        secrets
    }

    #[test]
    fn a_credentials_secrets_are_what_an_upstream_could_repeat() {
        let basic = |pair: &str| STANDARD.encode(pair);
        let query = |pair: &str| Injection::Query { name: "key".into(), pair: pair.into(), headers: Vec::new() };
        for (injection, expected) in [
            (header("Bearer the-token"), vec!["the-token".to_owned()]),
            (header("the-token"), vec!["the-token".to_owned()]),
            (header("Bearer short"), vec!["Bearer short".to_owned()]),
            (header("short"), vec![]),
            (named("accept", "application/vnd.shop+json"), vec![]),
            (named("notion-version", "2022-06-28"), vec![]),
            (
                header(&format!("Basic {}", basic("ada:the-password"))),
                vec![basic("ada:the-password"), "the-password".to_owned()],
            ),
            (
                header(&format!("Basic {}", basic("the-api-key:"))),
                vec![basic("the-api-key:"), "the-api-key".to_owned()],
            ),
            (query("key=the-token"), vec!["the-token".to_owned()]),
            (query("key=a+token%2Fwith"), vec!["a+token%2Fwith".to_owned(), "a token/with".to_owned()]),
            (query("key=short"), vec![]),
        ] {
            assert_eq!(secrets(&injection), expected);
        }
        let constant = Injection::Headers(vec![(ACCEPT, HeaderValue::from_static("application/vnd.shop+json"))]);
        assert!(secrets(&constant).is_empty());
    }
}
