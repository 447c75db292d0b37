//! Input at the door: who, which organization, which thing, and bodies and queries without a word too many.

use std::str::FromStr;

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, RawPathParams, Request};
use http::request::Parts;
use http::{HeaderMap, StatusCode, header};
use serde::de::DeserializeOwned;

use crate::audit::Actor;
use crate::ids::{AccountId, KeyId, OrgId};

use super::AdminState;
use super::auth::Caller;
use super::error::ApiError;

/// A caller that was let in, and the organization in the path. Comes first in a handler: nobody learns what exists
/// without being let in.
pub(super) struct Scope {
    /// Who calls.
    pub(super) caller: Caller,
    /// `{org}`.
    pub(super) org: OrgId,
}

impl Scope {
    /// For acts and their records.
    pub(super) fn actor(&self) -> Actor {
        self.caller.actor.clone()
    }
}

impl FromRequestParts<AdminState> for Scope {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, state: &AdminState) -> Result<Self, ApiError> {
        let caller = Caller::from_request_parts(parts, state).await?;
        let name = path_param(parts, "org").await.filter(|name| is_word(name));
        let name = name.ok_or_else(ApiError::organization_not_found)?;
        let org = state.store.organization(&name).await?.ok_or_else(ApiError::organization_not_found)?;
        Ok(Self { caller, org: org.id })
    }
}

/// `{id}` of a path.
pub(super) struct Id<T>(pub(super) T);

/// An id that stands in paths.
pub(super) trait PathId: FromStr {
    /// What a text that is no such id is answered with: the same as an id that names nothing.
    fn not_found() -> ApiError;
}

impl PathId for KeyId {
    fn not_found() -> ApiError {
        ApiError::key_not_found()
    }
}

impl PathId for AccountId {
    fn not_found() -> ApiError {
        ApiError::account_not_found()
    }
}

impl<T: PathId> FromRequestParts<AdminState> for Id<T> {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, _: &AdminState) -> Result<Self, ApiError> {
        let text = path_param(parts, "id").await;
        text.and_then(|text| text.parse().ok()).map(Self).ok_or_else(T::not_found)
    }
}

/// `{slug}` or `{target}` of a path.
pub(super) struct Slug(pub(super) String);

impl FromRequestParts<AdminState> for Slug {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, _: &AdminState) -> Result<Self, ApiError> {
        let slug = match path_param(parts, "slug").await {
            Some(slug) => Some(slug),
            None => path_param(parts, "target").await,
        };
        slug.filter(|slug| is_slug(slug)).map(Self).ok_or_else(ApiError::target_not_found)
    }
}

/// `{provider}` of a path; a provider of the catalog.
pub(super) struct ProviderId(pub(super) String);

impl FromRequestParts<AdminState> for ProviderId {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, state: &AdminState) -> Result<Self, ApiError> {
        let id = path_param(parts, "provider").await.unwrap_or_default();
        match state.catalog.provider(&id) {
            Some(provider) => Ok(Self(provider.id.clone())),
            None => Err(ApiError::provider_not_found(&id)),
        }
    }
}

async fn path_param(parts: &mut Parts, name: &str) -> Option<String> {
    let params = RawPathParams::from_request_parts(parts, &()).await.ok()?;
    params.iter().find(|(key, _)| *key == name).map(|(_, value)| value.to_owned())
}

/// `[a-z0-9-]{1,96}`.
pub(super) fn is_slug(text: &str) -> bool {
    (1..=96).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

/// A name, an id or a cursor: nothing that a database could stumble over.
pub(super) fn is_word(text: &str) -> bool {
    (1..=128).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

/// The query; unknown and repeated names are refused.
pub(super) struct Query<T>(pub(super) T);

/// For routes that take no query.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Nothing {}

impl<T: DeserializeOwned, S: Sync> FromRequestParts<S> for Query<T> {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        read_query(parts.uri.query().unwrap_or_default()).map(Self)
    }
}

/// Reads a query string.
pub(super) fn read_query<T: DeserializeOwned>(query: &str) -> Result<T, ApiError> {
    let hint = "/openapi.json lists this route's query parameters.";
    if query.contains("%00") {
        return Err(ApiError::bad_request("query: `%00` can't stand there").hint(hint));
    }
    let pairs = serde_urlencoded::Deserializer::new(url::form_urlencoded::parse(query.as_bytes()));
    serde_path_to_error::deserialize(pairs).map_err(|error| {
        let path = error.path().to_string();
        ApiError::bad_request(explain("query", &path, &error.into_inner().to_string())).hint(hint)
    })
}

/// A JSON body; unknown fields are refused, and the message names the field.
pub(super) struct Body<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = ApiError;
    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        if !is_json(request.headers()) {
            return Err(ApiError::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "unsupported_media_type",
                "the body must be JSON",
            )
            .hint("Send `Content-Type: application/json`."));
        }
        let bytes = Bytes::from_request(request, state).await.map_err(|rejection| {
            if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
                ApiError::new(rejection.status(), "payload_too_large", "the body is larger than 1 MiB")
            } else {
                ApiError::bad_request("the body ended early")
            }
        })?;
        read_json(&bytes).map(Self)
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    kind == "application/json" || (kind.starts_with("application/") && kind.ends_with("+json"))
}

/// Reads a JSON document.
pub(super) fn read_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    let hint = "/openapi.json describes this route's body.";
    // Postgres can't hold it in text, and nothing here has a use for it.
    if bytes.windows(6).any(|six| six == b"\\u0000") {
        return Err(ApiError::bad_request("body: the character U+0000 can't stand there").hint(hint));
    }
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        let inner = error.into_inner();
        let message = if inner.is_data() {
            explain("body", &path, &inner.to_string())
        } else if serde_json::from_slice::<serde::de::IgnoredAny>(bytes).is_ok() {
            // serde_json's word for "no text where one of several words is wanted" is one for broken JSON.
            explain("body", &path, "not one of the values that can stand there")
        } else {
            format!("body: not valid JSON (line {}, column {})", inner.line(), inner.column())
        };
        ApiError::bad_request(message).hint(hint)
    })?;
    json.end().map_err(|_| ApiError::bad_request("body: something follows the JSON value").hint(hint))?;
    Ok(value)
}

/// A message that names the field and what would be right there, without the value that was sent: it may be a secret.
fn explain(what: &str, path: &str, problem: &str) -> String {
    let problem = problem.rsplit_once(" at line ").map_or(problem, |(words, _)| words);
    let problem = match problem.rsplit_once(", expected ") {
        Some((start, expected)) if start.starts_with("invalid ") => format!("expected {expected}"),
        _ => problem.to_owned(),
    };
    if path == "." || path.is_empty() { format!("{what}: {problem}") } else { format!("{what} `{path}`: {problem}") }
}

/// For `deserialize_with`: tells a field that is `null` from one that is absent.
pub(super) fn nullable<'de, T, D>(deserializer: D) -> Result<Option<Option<T>>, D::Error>
where
    T: serde::Deserialize<'de>,
    D: serde::Deserializer<'de>,
{
    serde::Deserialize::deserialize(deserializer).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Thing {
        name: String,
        #[serde(default)]
        inner: Vec<Inner>,
        #[serde(default, deserialize_with = "nullable")]
        end: Option<Option<u32>>,
        #[serde(default)]
        #[expect(dead_code, reason = "read for its type")]
        word: Option<Word>,
    }

    #[derive(Debug, serde::Deserialize)]
    #[serde(rename_all = "snake_case")]
    enum Word {
        Read,
    }

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Inner {
        #[expect(dead_code, reason = "read for its type")]
        count: u32,
    }

    #[test]
    fn a_body_is_refused_by_the_name_of_its_field() {
        for (json, part) in [
            (r#"{"name":"a","nmae":"b"}"#, "`nmae`"),
            (r#"{"name":"a","inner":[{"count":1},{"count":"hunter2"}]}"#, "`inner[1].count`"),
            (r"{}", "missing field `name`"),
            (r#"{"name":"a"} {}"#, "follows"),
            (r#"{"name":"#, "line 1"),
            (r#"{"name":"a","word":"hunter"}"#, "`word`: unknown variant"),
            (r#"{"name":"a","word":5}"#, "`word`: not one of the values"),
            (r#"{"name":"a\u0000"}"#, "U+0000"),
        ] {
            let error = read_json::<Thing>(json.as_bytes()).unwrap_err();
            assert_eq!((error.status.as_u16(), error.code), (400, "bad_request"));
            assert!(error.message.contains(part), "{json}: {}", error.message);
            assert!(!error.message.contains("hunter2"), "{}", error.message);
            assert!(error.hint.is_some());
        }
    }

    #[test]
    fn null_and_absent_are_two_things() {
        let read = |json: &str| read_json::<Thing>(json.as_bytes()).unwrap();
        let absent = read(r#"{"name":"a"}"#);
        assert_eq!((absent.name.as_str(), absent.inner.len(), absent.end), ("a", 0, None));
        assert_eq!(read(r#"{"name":"a","end":null}"#).end, Some(None));
        assert_eq!(read(r#"{"name":"a","end":5}"#).end, Some(Some(5)));
    }

    #[test]
    fn a_query_takes_known_names_once() {
        #[derive(Debug, Default, serde::Deserialize)]
        #[serde(deny_unknown_fields, default)]
        struct Few {
            limit: Option<u32>,
            confirm: bool,
        }
        let few: Few = read_query("limit=5&confirm=true").unwrap();
        assert_eq!((few.limit, few.confirm), (Some(5), true));
        for (query, part) in [
            ("limt=5", "`limt`"),
            ("limit=x", "limit"),
            ("limit=1&limit=2", "duplicate"),
            ("confirm=yes", "confirm"),
            ("limit=%00", "%00"),
        ] {
            let error = read_query::<Few>(query).unwrap_err();
            assert!(error.status == 400 && error.message.contains(part), "{query}: {}", error.message);
        }
        assert!(read_query::<Nothing>("").is_ok());
        assert!(read_query::<Nothing>("a=b").is_err());
    }

    #[test]
    fn only_json_is_json() {
        for (kind, ok) in [
            ("application/json", true),
            ("Application/JSON; charset=utf-8", true),
            ("application/merge-patch+json", true),
            ("text/json", false),
            ("application/x-www-form-urlencoded", false),
            ("", false),
        ] {
            let headers = [(header::CONTENT_TYPE, kind.parse().unwrap())].into_iter().collect();
            assert_eq!(is_json(&headers), ok, "{kind}");
        }
        assert!(!is_json(&HeaderMap::new()));
    }

    #[test]
    fn slugs_and_words_are_narrow() {
        assert!(is_slug("ada-example-com-mail-x7k2qd") && !is_slug("") && !is_slug("A") && !is_slug("a b"));
        assert!(!is_slug(&"a".repeat(97)));
        assert!(is_word("org_01JD3X7M0GZ2V8Q4W5T6R9S1AB") && !is_word("a\0b") && !is_word("ä"));
    }
}
