//! Stored credentials of static targets: how they are sealed, and how they become something to put into a request.

use std::collections::BTreeMap;

use anyhow::{Context, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderName, HeaderValue};
use zeroize::Zeroizing;

use crate::catalog::Injection;
use crate::config::StaticCredential;
use crate::secret::Secret;
use crate::vault::{Place, Sealed, Vault};

/// Headers that a credential can't be: they frame the message or name its place.
const NOT_CREDENTIALS: &[&str] =
    &["host", "content-length", "transfer-encoding", "connection", "te", "trailer", "upgrade", "expect", "keep-alive"];

/// The form that is sealed.
#[derive(serde::Serialize, serde::Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum Stored {
    Bearer { token: Zeroizing<String> },
    Basic { username: String, password: Zeroizing<String> },
    Headers { headers: BTreeMap<String, Zeroizing<String>> },
    Query { name: String, value: Zeroizing<String> },
}

fn place(row: &str) -> Place<'_> {
    Place { table: "targets", row, column: "credential" }
}

/// The word for a credential's kind, as the API shows it.
pub(super) fn kind(credential: &StaticCredential) -> &'static str {
    match credential {
        StaticCredential::Bearer(_) => "bearer",
        StaticCredential::Basic { .. } => "basic",
        StaticCredential::Headers(_) => "headers",
        StaticCredential::Query { .. } => "query",
        StaticCredential::None => "none",
    }
}

/// Seals a credential for the target with this id; `None` when there is nothing to keep.
pub(super) fn seal(vault: &Vault, row: &str, credential: &StaticCredential) -> anyhow::Result<Option<Sealed>> {
    let copy = |secret: &Secret<String>| Zeroizing::new(secret.expose().clone());
    let stored = match credential {
        StaticCredential::Bearer(token) => Stored::Bearer { token: copy(token) },
        StaticCredential::Basic { username, password } => {
            Stored::Basic { username: username.clone(), password: copy(password) }
        }
        StaticCredential::Headers(headers) => {
            Stored::Headers { headers: headers.iter().map(|(name, value)| (name.clone(), copy(value))).collect() }
        }
        StaticCredential::Query { name, value } => Stored::Query { name: name.clone(), value: copy(value) },
        StaticCredential::None => return Ok(None),
    };
    let plain = Zeroizing::new(serde_json::to_vec(&stored).context("writing a credential")?);
    Ok(Some(vault.seal(place(row), &plain)))
}

/// Opens a sealed credential.
pub(super) fn unseal(vault: &Vault, row: &str, sealed: &Sealed) -> anyhow::Result<StaticCredential> {
    let plain = vault.open(place(row), sealed)?;
    let stored: Stored =
        serde_json::from_slice(plain.expose()).map_err(|_| anyhow::anyhow!("the credential is damaged"))?;
    let secret = |text: Zeroizing<String>| Secret::new(String::clone(&text));
    Ok(match stored {
        Stored::Bearer { token } => StaticCredential::Bearer(secret(token)),
        Stored::Basic { username, password } => StaticCredential::Basic { username, password: secret(password) },
        Stored::Headers { headers } => {
            StaticCredential::Headers(headers.into_iter().map(|(name, value)| (name, secret(value))).collect())
        }
        Stored::Query { name, value } => StaticCredential::Query { name, value: secret(value) },
    })
}

/// What a credential puts into a request.
pub(super) fn injection(credential: &StaticCredential) -> anyhow::Result<Injection> {
    Ok(match credential {
        StaticCredential::Bearer(token) => {
            Injection::Headers(vec![header("authorization", &format!("Bearer {}", filled(token, "token")?))?])
        }
        StaticCredential::Basic { username, password } => {
            if username.contains(':') {
                bail!("a user name can't hold `:` (RFC 7617 §2)");
            }
            let pair = Zeroizing::new(format!("{username}:{}", password.expose()));
            Injection::Headers(vec![header("authorization", &format!("Basic {}", STANDARD.encode(pair.as_bytes())))?])
        }
        StaticCredential::Headers(headers) => {
            let headers = headers
                .iter()
                .map(|(name, value)| header(name, filled(value, name)?))
                .collect::<Result<Vec<_>, _>>()?;
            if headers.is_empty() {
                bail!("headers: at least one header is needed");
            }
            Injection::Headers(headers)
        }
        StaticCredential::Query { name, value } => {
            if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)) {
                bail!("a query parameter's name holds letters, digits, `-`, `_` and `.`");
            }
            let encoded: String = url::form_urlencoded::byte_serialize(filled(value, "value")?.as_bytes()).collect();
            Injection::Query {
                name: name.as_str().into(),
                pair: format!("{name}={encoded}").into(),
                headers: Vec::new(),
            }
        }
        StaticCredential::None => Injection::Headers(Vec::new()),
    })
}

fn filled<'a>(secret: &'a Secret<String>, what: &str) -> anyhow::Result<&'a str> {
    let text = secret.expose().as_str();
    if text.is_empty() {
        bail!("{what}: an empty credential");
    }
    Ok(text)
}

fn header(name: &str, value: &str) -> anyhow::Result<(HeaderName, HeaderValue)> {
    let name: HeaderName = name.parse().with_context(|| format!("`{name}` is not a header name"))?;
    if NOT_CREDENTIALS.contains(&name.as_str()) {
        bail!("`{name}` can't hold a credential");
    }
    let mut value =
        HeaderValue::from_str(value).map_err(|_| anyhow::anyhow!("{name}: the value can't stand in a header"))?;
    value.set_sensitive(true);
    Ok((name, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(text: &str) -> Secret<String> {
        Secret::new(text.to_owned())
    }

    #[test]
    fn each_kind_goes_where_it_belongs() {
        let Ok(Injection::Headers(headers)) = injection(&StaticCredential::Bearer(secret("t"))) else { panic!() };
        assert_eq!((headers[0].0.as_str(), headers[0].1.as_bytes()), ("authorization", &b"Bearer t"[..]));
        assert!(headers[0].1.is_sensitive());
        let basic = StaticCredential::Basic { username: "ada".into(), password: secret("pw") };
        let Ok(Injection::Headers(headers)) = injection(&basic) else { panic!() };
        assert_eq!(headers[0].1.as_bytes(), b"Basic YWRhOnB3");
        let query = StaticCredential::Query { name: "api_key".into(), value: secret("a&b") };
        let Ok(Injection::Query { pair, .. }) = injection(&query) else { panic!() };
        assert_eq!(&*pair, "api_key=a%26b");
    }

    #[test]
    fn what_can_not_be_a_credential_is_refused() {
        let headers =
            |name: &str, value: &str| StaticCredential::Headers(BTreeMap::from([(name.to_owned(), secret(value))]));
        for bad in [
            StaticCredential::Bearer(secret("")),
            StaticCredential::Bearer(secret("a\r\nx: y")),
            StaticCredential::Basic { username: "a:b".into(), password: secret("p") },
            headers("host", "evil"),
            headers("bad name", "x"),
            StaticCredential::Query { name: "a=b".into(), value: secret("x") },
        ] {
            assert!(injection(&bad).is_err(), "{bad:?}");
        }
    }
}
